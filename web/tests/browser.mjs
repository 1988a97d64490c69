// Browser tests: shipped models (and ../shared/models where that folder is there) give the recorded results in headless
// Chromium, on WebGPU (SwiftShader: no shader-f16) and on wasm; errors are what the documentation says; the demo works.
import { readFile, readdir, mkdir } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { dirname, resolve, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { readNpz } from './npz.mjs';
import { serve } from '../serve.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, '../..');
const shared = process.env.LITEGPU_SHARED ?? resolve(root, '../shared');
const only = process.argv[2] ?? '';
const maxBytes = 6e6;

const folders = [{ path: join(root, 'models'), url: '/models/' }];
if (existsSync(join(shared, 'models/manifest.json'))) folders.push({ path: join(shared, 'models'), url: '/shared-models/' });
else console.log(`skipped: ${shared}/models is not there`);

const server = await serve(0, { '/shared-models/': join(shared, 'models') });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--disable-background-networking', '--no-first-run'],
});
const page = await browser.newPage();
page.on('pageerror', (e) => console.log('page error:', e.message));
await page.goto(`http://127.0.0.1:${server.port}/web/tests/page.html`);
await page.waitForFunction(() => window.ready);

let passed = 0;
let failed = 0;
const check = async (name, test) => {
  if (only && !name.includes(only)) return;
  try {
    const note = await test();
    passed++;
    console.log(`ok   ${name}${note ? `: ${note}` : ''}`);
  } catch (e) {
    failed++;
    console.log(`FAIL ${name}: ${e.message.split('\n')[0]}`);
  }
};
const assert = (condition, message) => {
  if (!condition) throw new Error(message);
};

const views = { '<f4': Float32Array, '|i1': Int8Array, '|u1': Uint8Array, '<i2': Int16Array, '<i4': Int32Array, '<i8': BigInt64Array, '|b1': Uint8Array };

// Integers exactly; floats by the manifest on the CPU, by relative norm (1e-2) where the GPU stores float16.
function compare(got, want, tolerance, half) {
  assert(String(got.shape) === String(want.shape), `shape [${got.shape}], expected [${want.shape}]`);
  const bytes = Buffer.from(got.bytes, 'base64');
  if (bytes.equals(Buffer.from(want.bytes))) return;
  const View = views[want.dtype];
  const a = new View(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  const b = new View(want.bytes.slice().buffer);
  assert(a.length === b.length, `${a.length} elements, expected ${b.length}`);
  if (View !== Float32Array) {
    const i = a.findIndex((v, i) => v !== b[i]);
    throw new Error(`[${i}] is ${a[i]}, expected ${b[i]}`);
  }
  let up = 0;
  let down = 0;
  for (let i = 0; i < a.length; i++) {
    assert(Number.isNaN(a[i]) === Number.isNaN(b[i]), `[${i}] is ${a[i]}, expected ${b[i]}`);
    const { atol = 0, rtol = 0 } = tolerance || {};
    if (!half) assert(!(Math.abs(a[i] - b[i]) > atol + rtol * Math.abs(b[i])), `[${i}] is ${a[i]}, expected ${b[i]}`);
    up += (a[i] - b[i]) ** 2;
    down += b[i] ** 2;
  }
  if (half) assert(Math.sqrt(up) <= 1e-2 * Math.sqrt(down) + 1e-6, `relative norm ${Math.sqrt(up / down)}`);
}

for (const folder of folders) {
  const manifest = JSON.parse(await readFile(join(folder.path, 'manifest.json')));
  for (const entry of manifest) {
    const file = entry.model ?? `${entry.case}.tflite`;
    if ((await readFile(join(folder.path, file))).length > maxBytes) continue;
    const arrays = readNpz(await readFile(join(folder.path, entry.arrays ?? `${entry.case}.npz`)));
    const runs = [];
    for (let r = 0; r < entry.runs; r++) {
      const prefix = r ? `run${r}_` : '';
      const list = [];
      for (let i = 0; arrays[`${prefix}in${i}`]; i++) list.push(arrays[`${prefix}in${i}`]);
      runs.push(list);
    }
    if (runs.flat().some((a) => !views[a.dtype])) continue;
    for (const device of ['gpu', 'cpu']) {
      await check(`${device} ${entry.case}`, async () => {
        const out = await page.evaluate((o) => window.runModel(o), {
          url: folder.url + file,
          device,
          precision: 'f16',
          runs: runs.map((list) => list.map((a) => Buffer.from(a.bytes).toString('base64'))),
          shapes: runs[0].map((a) => a.shape),
        });
        out.results.forEach((outputs, r) =>
          outputs.forEach((o, i) => {
            const want = arrays[`${r ? `run${r}_` : ''}out${i}`];
            compare(o, want, entry.tolerance[i], device === 'gpu' && out.gpu > 0);
          }),
        );
        return `${out.gpu} operators on the GPU, ${out.cpu} on the CPU; load ${out.load_ms.toFixed(0)} ms, first ${out.first_ms.toFixed(1)} ms`;
      });
    }
  }
}

await check('a corrupt file is an Error with a code', async () => {
  const e = await page.evaluate(() => window.litegpu.load(new Uint8Array(100)).catch((e) => ({ name: e.name, code: e.code, isError: e instanceof Error })));
  assert(e.isError && e.code === 'invalid' && e.name === 'LiteGpuError', JSON.stringify(e));
});
await check('a wrong input names itself', async () => {
  const e = await page.evaluate(async () => {
    const m = await window.litegpu.load('/models/digits_f32.tflite', { device: 'cpu' });
    return m.run([new Int8Array(64)]).catch((e) => ({ message: e.message, code: e.code }));
  });
  assert(e.code === 'invalid' && e.message.includes('Float32Array'), JSON.stringify(e));
});
await check('a missing file is a network error', async () => {
  const code = await page.evaluate(() => window.litegpu.load('/no-such.tflite').catch((e) => e.code));
  assert(code === 'network', code);
});
await check('an abort is obeyed', async () => {
  const name = await page.evaluate(() => {
    const c = new AbortController();
    c.abort();
    return window.litegpu.load('/models/digits_f32.tflite', { signal: c.signal }).catch((e) => e.name);
  });
  assert(name === 'AbortError', name);
});
await check('a closed model says so', async () => {
  const code = await page.evaluate(async () => {
    const m = await window.litegpu.load('/models/digits_f32.tflite', { device: 'cpu' });
    m.close();
    return m.run([new Float32Array(64)]).catch((e) => e.code);
  });
  assert(code === 'closed', code);
});
await check('several models at once', async () => {
  const sums = await page.evaluate(async () => {
    const [a, b] = await Promise.all(['f32', 'int8'].map((k) => window.litegpu.load(`/models/digits_${k}.tflite`, { device: 'cpu' })));
    const [x, y] = await Promise.all([a.run([new Float32Array(64)]), b.run([new Int8Array(64).fill(-128)])]);
    return [x[0].data.length, y[0].data.length];
  });
  assert(String(sums) === '10,10', String(sums));
});
await check('the demo shows a result and a plan', async () => {
  const demo = await browser.newPage({ viewport: { width: 1100, height: 1250 } });
  await demo.goto(`http://127.0.0.1:${server.port}/web/demo/`);
  await demo.waitForFunction(() => document.body.dataset.ready === 'yes', null, { timeout: 120000 });
  const status = await demo.textContent('#status');
  assert((await demo.locator('#plan-drawing i').count()) > 10, `no plan: ${status}`);
  assert((await demo.locator('#timing tr').count()) >= 1, `no timing: ${status}`);
  await mkdir(join(root, 'web/out'), { recursive: true });
  await demo.screenshot({ path: join(root, 'web/out/demo.png') });
  return status;
});
await check('without WebGPU the CPU runs and the report says so', async () => {
  const bare = await browser.newPage();
  await bare.addInitScript(() => Object.defineProperty(Navigator.prototype, 'gpu', { get: () => undefined }));
  await bare.goto(`http://127.0.0.1:${server.port}/web/tests/page.html`);
  await bare.waitForFunction(() => window.ready);
  const r = await bare.evaluate(async () => {
    const m = await window.litegpu.load('/models/digits_f32.tflite', { device: 'auto' });
    await m.run([new Float32Array(64)]);
    return m.report;
  });
  assert(r.adapter === null && r.partitions.every((p) => p.target === 'cpu'), JSON.stringify(r.adapter));
});

await browser.close();
server.close();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
