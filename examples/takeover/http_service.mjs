// An HTTP service that other hosts call by its name: its sidecar registers it.
//
// node http_service.mjs 8080 greetings.example
import { once } from 'node:events';
import http from 'node:http';

const SIDECAR = process.env.SIDECAR ?? 'http://127.0.0.1:13330';
const [port, service] = [Number(process.argv[2]), process.argv[3]];

async function tellSidecar(path, body) {
  const response = await fetch(SIDECAR + path, { method: 'POST', body: JSON.stringify(body) });
  const answer = await response.json();
  if (!answer.success) throw new Error(`the sidecar says: ${answer.errorMessage}`);
}

const server = http.createServer((request, response) => {
  response.end(`Node greets ${request.url.slice(1)}\n`);
});
server.listen(port, '127.0.0.1');
await once(server, 'listening');
await tellSidecar('/services/publish', { serviceName: service, protocolType: 'http', port });
console.log(`${service} is published`);

for (const signal of ['SIGTERM', 'SIGINT']) {
  process.once(signal, async () => {
    // In this order no request is lost: the answer comes when nobody calls any more.
    await tellSidecar('/services/unpublish', { serviceName: service, protocolType: 'http' });
    server.close();
    server.closeIdleConnections();
  });
}
