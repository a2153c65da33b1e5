// The ways of Node to the network: `client.mjs http|fetch|undici|net HOST PORT`.
import http from 'node:http';
import net from 'node:net';
import { request } from 'undici';

const [, , way, host, port] = process.argv;
const literal = host.includes(':') ? `[${host}]` : host;
const url = `http://${literal}:${port}/whoami`;

const ways = {
  http: () =>
    new Promise((resolve, reject) => {
      http
        .get(url, async (response) => {
          let body = '';
          for await (const chunk of response) body += chunk;
          resolve(body);
        })
        .on('error', reject);
    }),

  fetch: async () => (await fetch(url)).text(),

  undici: async () => (await request(url)).body.text(),

  net: () =>
    new Promise((resolve, reject) => {
      let response = '';
      const socket = net.connect({ host, port: Number(port) }, () => {
        console.log(`peer ${socket.remoteAddress} ${socket.remotePort}`);
        socket.write(`GET /whoami HTTP/1.0\r\nHost: interop\r\n\r\n`);
      });
      socket.on('data', (chunk) => (response += chunk));
      socket.on('end', () => resolve(response.split('\r\n\r\n')[1]));
      socket.on('error', reject);
    }),
};

try {
  process.stdout.write(await ways[way]());
} catch (error) {
  console.log((error.cause ?? error).code);
  process.exitCode = 1;
}
