// Node's HTTP/2, server and client, by commands (see peer.mjs for how these look).
//
// serve: `port`, `name`. PUT or POST /echo: "NAME BODY", with the body's length in a trailer;
//   /stream: the body as it comes. /forever: a byte, and no end.
// retire: of the server at `port`, in order: its clients are sent away, and answered.
// burst: `count` requests to `address`, `concurrency` at a time on one connection, each with a text
//   of its own of `size` characters: how many were answered ("right"), how many by another's answer
//   ("wrong"), and how often there was which error ("error CODE"). With `each`, a connection takes
//   so many requests, and is then closed in order, which waits for the answers.
// duplex: `count` pieces of `size` bytes, each sent when the last has come back.
// cancel: takes a request back whose answer has begun.
import { once } from 'node:events';
import http2 from 'node:http2';
import readline from 'node:readline';

const servers = new Map();
let cancelled = 0;

async function bodyOf(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

async function echo(stream, name) {
  const body = await bodyOf(stream);
  stream.respond({ ':status': 200 }, { waitForTrailers: true });
  stream.on('wantTrailers', () => stream.sendTrailers({ 'x-length': `${body.length}` }));
  stream.end(`${name} ${body}`);
}

async function serve({ port, name }) {
  const server = http2.createServer();
  server.on('stream', (stream, headers) => {
    stream.on('error', () => {});
    stream.on('close', () => {
      if (stream.rstCode === http2.constants.NGHTTP2_CANCEL) cancelled++;
    });
    if (headers[':path'] === '/echo') {
      echo(stream, name).catch(() => stream.destroy());
    } else {
      stream.respond({ ':status': 200 });
      if (headers[':path'] === '/forever') stream.write('x');
      else stream.pipe(stream);
    }
  });
  server.sessions = new Set();
  server.on('session', (session) => {
    server.sessions.add(session);
    session.on('close', () => server.sessions.delete(session));
    session.on('error', () => {});
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
  for (const session of server.sessions) session.close();
  await closed;
  return {};
}

function connect(address) {
  const session = http2.connect(`http://${address}`);
  session.on('error', () => {});
  return session;
}

async function ask(session, text) {
  const stream = session.request({ ':method': 'PUT', ':path': '/echo' });
  const trailers = once(stream, 'trailers');
  trailers.catch(() => {});
  stream.end(text);
  const [headers] = await once(stream, 'response');
  if (headers[':status'] !== 200) return `error ${headers[':status']}`;
  const body = await bodyOf(stream);
  const [{ 'x-length': length }] = await trailers;
  return body.endsWith(` ${text}`) && Number(length) === text.length ? 'right' : 'wrong';
}

async function burst({ address, count, concurrency, size, each, id }) {
  const results = {};
  const ends = [];
  let session = connect(address);
  let next = 0;
  const one = async () => {
    while (next < Number(count)) {
      const number = next++;
      if (each && number > 0 && number % Number(each) === 0) {
        ends.push(once(session, 'close'));
        session.close();
        session = connect(address);
      }
      const text = `${id}-${number}`.padEnd(Number(size ?? 0), '.x');
      const result = await ask(session, text).catch((error) => `error ${error.code}`);
      results[result] = (results[result] ?? 0) + 1;
    }
  };
  await Promise.all(Array.from({ length: Number(concurrency) }, one));
  session.close();
  await Promise.all(ends);
  return results;
}

async function duplex({ address, count, size }) {
  const session = connect(address);
  const stream = session.request({ ':method': 'POST', ':path': '/stream' });
  const chunks = stream.iterator({ destroyOnReturn: false });
  for (let i = 0; i < Number(count); i++) {
    stream.write(Buffer.alloc(Number(size), `${i}`));
    for (let left = Number(size); left > 0; ) left -= (await chunks.next()).value.length;
  }
  stream.end();
  const { done } = await chunks.next();
  session.close();
  return { value: `${done}` };
}

async function cancel({ address }) {
  const session = connect(address);
  const stream = session.request({ ':method': 'POST', ':path': '/forever' });
  stream.on('error', () => {});
  await once(stream, 'data');
  stream.close(http2.constants.NGHTTP2_CANCEL);
  await once(stream, 'close');
  session.close();
  return {};
}

const operations = {
  serve,
  retire,
  burst,
  duplex,
  cancel,
  cancelled: async () => ({ value: cancelled }),
};

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
