// Serves the repository (demo, package, shipped models) on 127.0.0.1.
import { createServer } from 'node:http';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { dirname, extname, join, normalize, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

const repository = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const types = {
  '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css', '.wasm': 'application/wasm',
  '.json': 'application/json', '.png': 'image/png', '.tflite': 'application/octet-stream',
};

/** Starts a server for the repository; `extra` maps a path prefix to another folder. Resolves to { port, close }. */
export function serve(port = 0, extra = {}) {
  const server = createServer(async (request, response) => {
    let path = decodeURIComponent(new URL(request.url, 'http://localhost').pathname);
    if (path === '/') path = '/web/demo/';
    if (path.endsWith('/')) path += 'index.html';
    const prefix = Object.keys(extra).find((p) => path.startsWith(p));
    const folder = prefix ? resolve(extra[prefix]) : repository;
    const file = normalize(join(folder, prefix ? path.slice(prefix.length) : path));
    try {
      if (file !== folder && !file.startsWith(folder + sep)) throw new Error('outside');
      const { size } = await stat(file);
      const type = types[extname(file)] ?? 'application/octet-stream';
      response.writeHead(200, { 'content-type': type, 'content-length': size, 'access-control-allow-origin': '*' });
      createReadStream(file).pipe(response);
    } catch {
      response.writeHead(404).end('not found');
    }
  });
  return new Promise((done) => server.listen(port, '127.0.0.1', () => done({ port: server.address().port, close: () => server.close() })));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const at = process.argv.indexOf('--port');
  const { port } = await serve(at > 0 ? Number(process.argv[at + 1]) : 8080);
  console.log(`the demo is at http://127.0.0.1:${port}/web/demo/`);
}
