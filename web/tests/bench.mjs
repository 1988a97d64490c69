// Times models in headless Chromium: node web/tests/bench.mjs [--device gpu|cpu] [--runs N] MODEL.tflite...
// One JSON line per model, each in a new browser with an empty profile; times in milliseconds, as a page sees them: every
// run is given new inputs and reads all outputs back. Cold is from an empty page to the first result.
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { basename, dirname, extname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';

const { values: options, positionals: models } = parseArgs({
  allowPositionals: true,
  options: {
    device: { type: 'string', default: 'gpu' },
    precision: { type: 'string' },
    runs: { type: 'string', default: '30' },
    'warmup-s': { type: 'string', default: '2' },
    'budget-s': { type: 'string', default: '12' },
    profile: { type: 'boolean', default: false },
  },
});
const root = resolve(dirname(fileURLToPath(import.meta.url)), '../npm');
const types = { '.js': 'text/javascript', '.wasm': 'application/wasm' };
let current;
const server = createServer(async (request, response) => {
  const path = new URL(request.url, 'http://localhost').pathname;
  const send = (type, body) => response.writeHead(200, { 'content-type': type, 'cache-control': 'no-store' }).end(body);
  if (path === '/') return send('text/html', '<!doctype html><title>bench</title>');
  if (path === '/model') return send('application/octet-stream', current);
  try {
    send(types[extname(path)] ?? 'application/octet-stream', await readFile(resolve(root, basename(path))));
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((done) => server.listen(0, '127.0.0.1', done));

async function inPage(o) {
  // xorshift32, the same inputs in every configuration.
  let s = 0x9e3779b9;
  const random = () => ((s ^= s << 13), (s ^= s >>> 17), (s ^= s << 5), (s >>> 0) / 4294967296);
  const kinds = {
    float32: [Float32Array, () => random()],
    int32: [Int32Array, () => random() * 4],
    uint8: [Uint8Array, () => random() * 256],
    int8: [Int8Array, () => Math.floor(random() * 256) - 128],
    int16: [Int16Array, () => Math.floor(random() * 65536) - 32768],
  };
  const result = {};
  let t = performance.now();
  const { load, initialize } = await import('/index.js');
  await initialize();
  result.runtime_load_ms = performance.now() - t;
  t = performance.now();
  const model = await load('/model', { device: o.device, precision: o.precision, strict: o.device === 'gpu', profile: o.profile });
  result.compile_ms = performance.now() - t;
  const inputs = model.inputs.map((i) => {
    const [Type, draw] = kinds[i.dtype];
    return Type.from({ length: i.shape.reduce((a, b) => a * b, 1) }, draw);
  });
  t = performance.now();
  const first = await model.run(inputs);
  result.first_run_ms = performance.now() - t;
  result.load_to_first_result_ms = result.compile_ms + result.first_run_ms;
  result.output_means = first.map((y) => y.data.reduce((a, v) => a + Number(v), 0) / y.data.length);
  const times = [];
  let began = performance.now();
  while (performance.now() - began < o.warmup * 1e3) await model.run(inputs);
  began = performance.now();
  while (times.length < o.runs && (times.length < 5 || performance.now() - began < o.budget * 1e3)) {
    t = performance.now();
    await model.run(inputs);
    times.push(performance.now() - t);
  }
  times.sort((a, b) => a - b);
  result.runs = times.length;
  result.min_ms = times[0];
  result.median_ms = (times[(times.length - 1) >> 1] + times[times.length >> 1]) / 2;
  const { placements, timings, adapter } = model.report;
  result.adapter = adapter;
  result.on_gpu = placements.filter((p) => p.target === 'gpu').length;
  result.on_cpu = placements.filter((p) => p.target === 'cpu').length;
  result.timings = timings;
  if (o.profile) {
    const totals = {};
    for (const { op, kernel, ms } of await model.profile(inputs)) {
      const key = `${op} ${kernel}`;
      totals[key] ??= [0, 0];
      totals[key][0] += ms;
      totals[key][1]++;
    }
    result.profile = Object.entries(totals).sort((a, b) => b[1][0] - a[1][0]).slice(0, 24);
  }
  return result;
}

const round = (v) => (typeof v === 'number' && !Number.isInteger(v) ? Number(v.toPrecision(4)) : v);
for (const path of models) {
  current = await readFile(path);
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--disable-background-networking', '--no-first-run'],
  });
  const page = await browser.newPage();
  page.on('console', (m) => console.error(`[${m.type()}] ${m.text().slice(0, 600)}`));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  const o = { device: options.device, precision: options.precision, runs: +options.runs, warmup: +options['warmup-s'], budget: +options['budget-s'], profile: options.profile };
  let result;
  try {
    result = await page.evaluate(inPage, o);
  } catch (e) {
    result = { error: e.message.split('\n')[0] };
  }
  await browser.close();
  console.log(JSON.stringify({ model: basename(path), device: options.device, ...result }, (_, v) => round(v)));
}
server.close();
