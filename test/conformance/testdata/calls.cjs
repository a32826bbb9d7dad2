// SPDX-License-Identifier: Apache-2.0
//
// Calls servers of the program "calls" with @grpc/grpc-js: keys per call on one
// channel.
//
//	node calls.cjs ADDRESS KEY=NAME,... CALLS
//
// NAME is who has to answer what is tagged with KEY. Prints a line of JSON for
// each case.
'use strict';
const grpc = require('@grpc/grpc-js');

const [address, pairs, count] = process.argv.slice(2);
const targets = pairs.split(',').map((pair) => {
  const at = pair.indexOf('=');
  return { key: pair.slice(0, at), name: pair.slice(at + 1) };
});
const patience = 60000;

const same = (b) => b;
const method = (name, requestStream, responseStream) => ({
  path: '/calls/' + name, requestStream, responseStream,
  requestSerialize: same, requestDeserialize: same, responseSerialize: same, responseDeserialize: same,
});
const Client = grpc.makeGenericClientConstructor({
  Echo: method('Echo', false, false), Sum: method('Sum', true, false), Repeat: method('Repeat', false, true),
  Chat: method('Chat', true, true), Sleep: method('Sleep', false, true), Ended: method('Ended', false, false),
  Status: method('Status', false, false),
}, 'calls');
const client = new Client(address, grpc.credentials.createInsecure(), {
  'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1, 'grpc.enable_http_proxy': 0,
});

function metadata(key) {
  const md = new grpc.Metadata();
  if (key) md.set('x-sidetrack-key', key);
  return md;
}
const deadline = (ms = patience) => ({ deadline: Date.now() + ms });

function checked(answer, name) {
  const bar = answer.indexOf('|');
  const server = answer.subarray(0, bar).toString();
  if (server !== name) throw new Error(`${server} has answered, want ${name}`);
  return answer.subarray(bar + 1);
}

function expect(got, want) {
  const [g, w] = [JSON.stringify(got), JSON.stringify(want)];
  if (g !== w) throw new Error(`got ${g.slice(0, 200)}, want ${w.slice(0, 200)}`);
}

const unary = (name, t, request) => new Promise((resolve, reject) => {
  client[name](request, metadata(t.key), deadline(), (err, answer) => {
    try {
      if (err) throw err;
      resolve(checked(answer, t.name));
    } catch (e) { reject(e); }
  });
});

// all collects the messages of a stream.
const all = (call, t) => new Promise((resolve, reject) => {
  const got = [];
  call.on('data', (m) => { try { got.push(checked(m, t.name)); } catch (e) { reject(e); } });
  call.on('error', reject);
  call.on('end', () => resolve(got));
});

async function one(number) {
  const t = targets[Math.floor(Math.random() * targets.length)];
  const request = Buffer.from(`${number} ${'.'.repeat(Math.floor(Math.random() * 3000))}`);
  if (number % 5 === 0) {
    const call = client.Chat(metadata(t.key), deadline());
    call.write(request);
    call.write(Buffer.from('two'));
    call.end();
    expect((await all(call, t)).map(String), [String(request), 'two']);
    return;
  }
  expect(String(await unary('Echo', t, request)), String(request));
}

const cases = {
  async mixed() {
    let next = 0;
    await Promise.all(Array.from({ length: 16 }, async () => {
      while (next < Number(count)) await one(next++);
    }));
  },
  async streaming() {
    for (const t of targets) {
      const got = await new Promise((resolve, reject) => {
        const call = client.Sum(metadata(t.key), deadline(), (err, answer) => (err ? reject(err) : resolve(answer)));
        for (let i = 0; i < 100; i++) call.write(Buffer.alloc(1000, 'x'));
        call.end();
      });
      expect(String(checked(got, t.name)), '100 100000');
      const answers = await all(client.Repeat(Buffer.from('100 1000'), metadata(t.key), deadline()), t);
      expect(answers.map((b) => b.length), Array(100).fill(1000));
    }
  },
  async large() {
    const request = Buffer.alloc(4 << 20, 'a large message, ');
    for (const t of targets) expect((await unary('Echo', t, request)).equals(request), true);
  },
  async 'without buffering'() {
    for (const t of targets) {
      await new Promise((resolve, reject) => {
        const call = client.Chat(metadata(t.key), deadline());
        let n = 0;
        call.on('data', (m) => {
          try { expect(String(checked(m, t.name)), String(n)); } catch (e) { reject(e); }
          if (++n === 50) call.end(); else call.write(Buffer.from(String(n)));
        });
        call.on('error', reject);
        call.on('end', () => (n === 50 ? resolve() : reject(new Error(`${n} messages, want 50`))));
        call.write(Buffer.from('0'));
      });
    }
  },
  async ends() {
    const gone = async (name, t) => {
      for (let i = 0; i < 5000; i++) if ((await unary('Ended', t, Buffer.from(name))).length > 0) return;
      throw new Error('the server never heard of the call\'s end');
    };
    for (const t of targets) {
      for (const [name, ms, cancel, codes] of [
        // The server may be first, and it resets the stream.
        ['js-deadline-' + t.name, 2000, false, [grpc.status.DEADLINE_EXCEEDED, grpc.status.CANCELLED]],
        ['js-cancel-' + t.name, patience, true, [grpc.status.CANCELLED]],
      ]) {
        await new Promise((resolve, reject) => {
          const call = client.Sleep(Buffer.from(name), metadata(t.key), deadline(ms));
          call.on('data', (m) => {
            try { checked(m, t.name); } catch (e) { reject(e); }
            if (cancel) call.cancel();
          });
          call.on('error', (e) => { try { expect(codes.includes(e.code), true); resolve(); } catch (x) { reject(x); } });
          call.on('end', () => {});
        });
        await gone(name, t);
      }
    }
  },
  async statuses() {
    for (const t of targets) {
      await new Promise((resolve, reject) => {
        client.Status(Buffer.from('8 ☺ 100% of it'), metadata(t.key), deadline(), (err) => {
          try {
            if (!err) throw new Error('a call that fails has not failed');
            expect([err.code, err.details], [grpc.status.RESOURCE_EXHAUSTED, '☺ 100% of it']);
            expect(err.metadata.get('x-trailer'), [t.name]);
            resolve();
          } catch (e) { reject(e); }
        });
      });
    }
  },
};

(async () => {
  for (const [name, run] of Object.entries(cases)) {
    let error = '';
    try { await run(); } catch (e) { error = String(e); }
    console.log(JSON.stringify({ Case: name, Error: error }));
  }
  client.close();
})();
