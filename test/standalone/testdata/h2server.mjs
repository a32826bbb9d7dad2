// SPDX-License-Identifier: Apache-2.0
//
// A server of Node's http2 without TLS: node h2server.mjs NAME PORT. It answers
// with its name and what it was sent, and takes WebSockets (RFC 8441), in which it
// says its name and then what it is told.
import http2 from 'node:http2';

const [name, port] = process.argv.slice(2);
const server = http2.createServer({ settings: { enableConnectProtocol: true } });
server.on('stream', (stream, headers) => {
  stream.on('error', () => {});
  if (headers[':method'] === 'CONNECT') {
    if (headers[':protocol'] !== 'websocket') {
      stream.respond({ ':status': 501 }, { endStream: true });
      return;
    }
    stream.respond({ ':status': 200 });
    stream.write(`${name}\n`);
    stream.pipe(stream);
    return;
  }
  stream.respond({ ':status': 200, 'x-served-by': name }, { waitForTrailers: true });
  stream.on('wantTrailers', () => stream.sendTrailers({ 'x-trailer': name }));
  stream.write(`${name} `);
  stream.pipe(stream);
});
server.listen(Number(port), '::');
