// SPDX-License-Identifier: Apache-2.0
//
// A client of Node's http2 with one connection: node h2client.mjs URL ROUNDS
// NAME=KEY... (an empty KEY sends none). Each round it sends requests with every
// key at the same time, and opens a WebSocket over HTTP/2 with each. It says what
// went wrong, and OK at the end.
import http2 from 'node:http2';

const [url, rounds, ...pairs] = process.argv.slice(2);
const keys = pairs.map((p) => p.split('='));
const session = http2.connect(url, { settings: { initialWindowSize: 100000 } });
const settled = new Promise((resolve) => session.once('remoteSettings', resolve));
let failed = 0;
const complain = (...words) => { failed++; console.log(...words); };

const header = (key) => (key ? { baggage: `a=b,sidetrack=${key}` } : {});

const ask = ([name, key], n) => new Promise((resolve) => {
  const body = Buffer.alloc((n % 5) * 30000, `${n}`);
  const stream = session.request({ ':path': `/${n}`, ':method': 'POST', ...header(key) });
  const got = [];
  let by, trailer;
  stream.on('response', (h) => { by = h['x-served-by']; });
  stream.on('trailers', (h) => { trailer = h['x-trailer']; });
  stream.on('data', (b) => got.push(b));
  stream.on('error', (e) => complain(name, n, e.message));
  stream.on('close', () => {
    const text = Buffer.concat(got);
    if (by !== name || trailer !== name || !text.equals(Buffer.concat([Buffer.from(`${name} `), body]))) {
      complain(`request ${n} for ${name}: served by ${by}, trailer ${trailer}, ${text.length} bytes`);
    }
    resolve();
  });
  stream.end(body);
});

const talk = ([name, key], n) => new Promise((resolve) => {
  const stream = session.request({ ':method': 'CONNECT', ':protocol': 'websocket', ':path': '/chat', ':scheme': 'http', ':authority': 'web', ...header(key) });
  let text = '';
  stream.setEncoding('utf8');
  stream.on('data', (b) => {
    text += b;
    if (text === `${name}\n`) stream.write('hello');
    if (text === `${name}\nhello`) stream.end(' and bye');
  });
  stream.on('error', (e) => complain(name, n, e.message));
  stream.on('close', () => {
    if (text !== `${name}\nhello and bye`) complain(`WebSocket ${n} for ${name}: ${JSON.stringify(text)}`);
    resolve();
  });
});

session.on('error', (e) => { complain('connection:', e.message); process.exit(1); });
await settled;
for (let n = 0; n < Number(rounds); n++) {
  await Promise.all(keys.flatMap((k) => [ask(k, n), ask(k, n + 1), talk(k, n)]));
}
await new Promise((resolve) => session.ping((e) => { if (e) complain('ping:', e.message); resolve(); }));
session.close(() => {
  console.log(failed ? `${failed} failed` : 'OK');
});
