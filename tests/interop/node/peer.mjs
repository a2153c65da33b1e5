// HTTP server and clients by commands: one a line on standard input and all at the same time, each
// written as a form, `id=1&op=burst&...`; the answers are such lines, too.
//
// serve: `port`, `name`. See `paths` for what is served; WebSocket messages come back as they are.
// retire: of the server at `port`, in order: it takes no more connections, and answers as long as
//   there are requests on those that it has.
// burst: `count` requests to `address` (host:port), `concurrency` at a time, with the `host` named
//   in the header, each with a text of its own of `size` characters, by `way` (http, undici):
//   how many were answered ("right"), how many by another's answer ("wrong"), and how often there
//   was which error ("error CODE"). progress: the same so far, of the burst that began last.
// trailers: a request with `text` as body and `trailer` as its trailer; the answer's body and its
//   trailer.
// websocket: `count` messages of `size` bytes, each sent when the last has come back; how it ended.
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import readline from 'node:readline';
import { setTimeout } from 'node:timers/promises';
import { Agent } from 'undici';
import { WebSocket, WebSocketServer } from 'ws';

async function bodyOf(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

// By the first part of the path; the second is a number.
const paths = {
  // "NAME BODY", after so many milliseconds.
  echo: async (request, response, number, name) => {
    const body = await bodyOf(request);
    await setTimeout(number);
    response.end(`${name} ${body}`);
  },
  // The body as it comes, in chunks.
  stream: (request, response) => {
    response.flushHeaders();
    request.pipe(response);
  },
  // The body's hash, and the number of its bytes.
  digest: async (request, response) => {
    const hash = createHash('sha256');
    let size = 0;
    for await (const chunk of request) {
      hash.update(chunk);
      size += chunk.length;
    }
    response.end(`${hash.digest('hex')} ${size}`);
  },
  // So many bytes, of which the hash is in the trailer where there can be one.
  bytes: async (request, response, number) => {
    const hash = createHash('sha256');
    const chunked = request.httpVersion === '1.1';
    response.writeHead(200, chunked ? { Trailer: 'x-sha256' } : {});
    const chunk = randomBytes(65536);
    for (let left = number; left > 0; left -= chunk.length) {
      const piece = chunk.subarray(0, Math.min(left, chunk.length));
      hash.update(piece);
      if (!response.write(piece)) await once(response, 'drain');
    }
    if (chunked) response.addTrailers({ 'x-sha256': hash.digest('hex') });
    response.end();
  },
  // The headers as they came.
  headers: (request, response) => response.end(JSON.stringify(request.rawHeaders)),
  // The request's trailer, and one of our own.
  trailers: async (request, response, number, name) => {
    response.writeHead(200, { Trailer: 'x-trailer' });
    response.write(await bodyOf(request));
    response.addTrailers({ 'x-trailer': `${name} ${request.trailers['x-trailer']}` });
    response.end();
  },
  // That status, without a body where it has none.
  status: (request, response, number, name) => {
    response.writeHead(number, { 'x-name': name, 'x-method': request.method });
    response.end(number === 204 || number === 304 ? '' : `${name} ${number}`);
  },
  // Answers before it has read a byte of the body, which it then reads.
  early: (request, response, number, name) => {
    response.writeHead(number, { 'Content-Type': 'text/plain' });
    response.end(`${name} early`);
    request.resume();
  },
  // Sends so many bytes of an answer twice as long, and resets.
  broken: (request, response, number) => {
    response.writeHead(200, { 'Content-Length': 2 * number });
    response.write(Buffer.alloc(number), () => response.socket.resetAndDestroy());
  },
};

const servers = new Map();

function unknown(request, response) {
  response.writeHead(404);
  response.end();
}

async function serve({ port, name }) {
  const server = http.createServer({ keepAliveTimeout: 60_000 }, async (request, response) => {
    const [, path, number] = request.url.split('?')[0].split('/');
    try {
      await (paths[path] ?? unknown)(request, response, Number(number ?? 0), name);
    } catch {
      response.destroy(); // the client went away
    }
  });
  server.on('checkContinue', (request, response) => {
    // Refuses the body that has not come yet; takes all others.
    if (request.url.startsWith('/early')) {
      server.emit('request', request, response);
    } else {
      response.writeContinue();
      server.emit('request', request, response);
    }
  });
  const sockets = new WebSocketServer({ server, maxPayload: 64 << 20 });
  sockets.on('connection', (socket) => {
    socket.on('message', (data, binary) => socket.send(data, { binary }));
  });
  server.listen({ port: Number(port), host: '127.0.0.1' });
  await once(server, 'listening');
  servers.set(port, server);
  return {};
}

async function retire({ port }) {
  const server = servers.get(port);
  const closed = once(server, 'close');
  server.close();
  const sweep = setInterval(() => server.closeIdleConnections(), 10);
  await closed;
  clearInterval(sweep);
  return {};
}

const agent = new http.Agent({ keepAlive: true });

const ways = {
  http: async (host, address, path, text) => {
    const [hostname, port] = address.split(':');
    const options = { host: hostname, port, path, method: 'PUT', agent, headers: { Host: host } };
    const request = http.request(options);
    request.end(text);
    const [response] = await once(request, 'response');
    return [response.statusCode, await bodyOf(response)];
  },
  undici: async (host, address, path, text, dispatcher) => {
    const { statusCode, body } = await dispatcher.request({
      origin: `http://${address}`,
      path,
      method: 'PUT', // idempotent, else undici does not pipeline
      headers: { Host: host },
      body: text,
    });
    return [statusCode, await body.text()];
  },
};

let progress = {};

async function burst({ address, host, path, count, concurrency, size, way, pipelining = 1, id }) {
  const dispatcher = new Agent({ connections: Number(concurrency), pipelining: Number(pipelining) });
  const results = (progress = {});
  let next = 0;
  const one = async () => {
    while (next < Number(count)) {
      const text = `${id}-${next++}`.padEnd(Number(size ?? 0), '.x');
      let result;
      try {
        const [status, body] = await ways[way](host, address, path, text, dispatcher);
        result = status !== 200 ? `error ${status}` : body.endsWith(` ${text}`) ? 'right' : 'wrong';
      } catch (error) {
        result = `error ${(error.cause ?? error).code}`;
      }
      results[result] = (results[result] ?? 0) + 1;
    }
  };
  await Promise.all(Array.from({ length: concurrency * pipelining }, one));
  await dispatcher.close();
  return results;
}

async function trailers({ address, host, text, trailer }) {
  const [hostname, port] = address.split(':');
  const request = http.request({
    ...{ host: hostname, port, path: '/trailers', method: 'POST', agent },
    headers: { Host: host, Trailer: 'x-trailer' },
  });
  request.write(text);
  request.addTrailers({ 'x-trailer': trailer });
  request.end();
  const [response] = await once(request, 'response');
  return { body: await bodyOf(response), trailer: response.trailers['x-trailer'] };
}

async function websocket({ address, host, count, size }) {
  const socket = new WebSocket(`ws://${address}/ws`, { headers: { Host: host } });
  await once(socket, 'open');
  for (let i = 0; i < Number(count); i++) {
    const sent = randomBytes(Number(size));
    socket.send(sent);
    const [received] = await once(socket, 'message');
    if (!sent.equals(received)) return { error: `message ${i} came back changed` };
  }
  socket.close(1000, 'done');
  const [code] = await once(socket, 'close');
  return { code };
}

const operations = { serve, retire, burst, progress: async () => progress, trailers, websocket };

function answer(values) {
  process.stdout.write(`${new URLSearchParams(values)}\n`);
}

answer({ id: 'ready' });
for await (const line of readline.createInterface({ input: process.stdin })) {
  const command = Object.fromEntries(new URLSearchParams(line));
  operations[command.op](command)
    .catch((error) => ({ error: error.code ?? error.message }))
    .then((values) => answer({ ...values, id: command.id }));
}
process.exit(0);
