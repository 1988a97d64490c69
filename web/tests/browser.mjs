// Browser tests: shipped models (and ../shared/models where that folder is there) give the recorded results in headless
// Chromium, on WebGPU (SwiftShader: no shader-f16) and on wasm; errors are what the documentation says; the demo works.
import { readFile, readdir, mkdir } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { dirname, resolve, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { unzipSync } from 'fflate';
import { readNpz } from './npz.mjs';
import { serve } from '../serve.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, '../..');
const shared = process.env.LITEGPU_SHARED ?? resolve(root, '../shared');
const only = process.argv.slice(2).find((a) => !a.startsWith('-')) ?? '';
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

const views = {
  '<f4': Float32Array, '<f8': Float64Array, '<c8': Float32Array, '<c16': Float64Array, '|i1': Int8Array, '|u1': Uint8Array,
  '<i2': Int16Array, '<u2': Uint16Array, '<i4': Int32Array, '<u4': Uint32Array, '<i8': BigInt64Array, '<u8': BigUint64Array,
  '|b1': Uint8Array, '<f2': Uint16Array,
};
const real = (View) => View === Float32Array || View === Float64Array;

// Integers exactly; floats by the manifest's tolerance or, where a `norm` is given, by the norm of the difference over the
// norm of what is expected.
function compare(got, want, tolerance, norm) {
  assert(String(got.shape) === String(want.shape), `shape [${got.shape}], expected [${want.shape}]`);
  const bytes = Buffer.from(got.bytes, 'base64');
  if (bytes.equals(Buffer.from(want.bytes))) return;
  const View = views[want.dtype];
  const a = new View(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  const b = new View(want.bytes.slice().buffer);
  assert(a.length === b.length, `${a.length} elements, expected ${b.length}`);
  if (!real(View) && !norm) {
    const i = a.findIndex((v, i) => v !== b[i]);
    throw new Error(`[${i}] is ${a[i]}, expected ${b[i]}`);
  }
  const { atol = typeof tolerance === 'number' ? tolerance : 0, rtol = 0 } = tolerance || {};
  const zero = (!real(View) && got.quantization?.[1]) || 0;
  let up = 0;
  let down = 0;
  for (let i = 0; i < a.length; i++) {
    assert(Number.isNaN(a[i]) === Number.isNaN(b[i]), `[${i}] is ${a[i]}, expected ${b[i]}`);
    if (!norm) assert(Object.is(a[i], b[i]) || !(Math.abs(a[i] - b[i]) > atol + rtol * Math.abs(b[i])), `[${i}] is ${a[i]}, expected ${b[i]}`);
    if (Number.isFinite(a[i]) && Number.isFinite(b[i])) {
      up += (a[i] - b[i]) ** 2;
      down += (b[i] - zero) ** 2;
    } else if (norm) assert(Object.is(a[i], b[i]), `[${i}] is ${a[i]}, expected ${b[i]}`);
  }
  if (norm) assert(Math.sqrt(up) <= norm * Math.sqrt(down) + 1e-6, `relative norm ${Math.sqrt(up / down)}, at most ${norm}`);
}

// As the library's own `verify` judges: 16-bit storage may add 1e-2; and each operator with quantized weights on float
// activations 16 / (127 sqrt 12), because the reference quantizes those activations as it runs and the GPU does not. Such
// errors of one operator after the other add up in quadrature. In a deep network the CPU's own rounding of activations
// needs the same: wasm lacks the fused multiply-add that the recording was made with, and what then falls on the other
// side of a half is off by a whole step.
const hybridOps = /^(CONV_2D|DEPTHWISE_CONV_2D|TRANSPOSE_CONV|CONV_3D|FULLY_CONNECTED|BATCH_MATMUL)$/;
const norm = (entry, out, half) => {
  const quantized = /dynamic|hybrid|int4/.test(entry.class) ? out.ops.filter((op) => hybridOps.test(op)).length : 0;
  if (quantized && (out.gpu || quantized > 8)) return 1e-2 + (16 / (127 * Math.sqrt(12))) * Math.sqrt(quantized);
  return half && out.gpu ? 1e-2 : 0;
};

// Manifests hold NaN, which JSON has not.
const parse = (bytes) => JSON.parse(Buffer.from(bytes).toString().replace(/-?\b(NaN|Infinity)\b/g, 'null'));

// Runs a case's arrays on a device and compares.
async function runCase(entry, arrays, device, precision, source) {
  const runs = [];
  for (let r = 0; r < entry.runs; r++) {
    const prefix = r ? `run${r}_` : '';
    const list = [];
    for (let i = 0; arrays[`${prefix}in${i}`]; i++) list.push(arrays[`${prefix}in${i}`]);
    runs.push(list);
  }
  const out = await page.evaluate((o) => window.runModel(o), {
    ...source,
    device,
    precision,
    runs: runs.map((list) => list.map((a) => Buffer.from(a.bytes).toString('base64'))),
    shapes: runs[0].map((a) => a.shape),
  });
  out.results.forEach((outputs, r) =>
    outputs.forEach((o, i) => {
      const want = arrays[`${r ? `run${r}_` : ''}out${i}`];
      const float = real(views[want.dtype]) || want.dtype === '<f2';
      const allowed = norm(entry, out, precision === 'f16');
      // An integer that is rounded from float arithmetic on the GPU is as good as that.
      compare(o, want, entry.tolerance[i], float ? allowed : out.requantized ? Math.max(allowed, 1e-3) : 0);
    }),
  );
  return out;
}

const known = (arrays) => Object.values(arrays).every((a) => views[a.dtype]);
// The reference is wrong in these (tests/recorded.rs says how).
const wrongRecording = /^(quantizer-bmm_constant_input-static_wi8_ai16|identify_dilated_conv1?d?-i16x8-(57b3dc16|59798863|c30d976f|d14fc6ef|61a83164|89d57529|9f88d64f|ad6262bf|b9f3db5c|e2431df4))/;

for (const folder of folders) {
  const manifest = parse(await readFile(join(folder.path, 'manifest.json')));
  for (const entry of manifest) {
    const file = entry.model ?? `${entry.case}.tflite`;
    if ((await readFile(join(folder.path, file))).length > maxBytes) continue;
    const arrays = readNpz(await readFile(join(folder.path, entry.arrays ?? `${entry.case}.npz`)));
    if (!known(arrays)) continue;
    for (const [device, precision] of [['gpu', 'f16'], ['gpu', 'f32'], ['cpu', 'f16']]) {
      await check(`${device} ${device === 'gpu' ? precision : ''} ${entry.case}`, async () => {
        const out = await runCase(entry, arrays, device, precision, { url: folder.url + file });
        return `${out.gpu} operators on the GPU, ${out.cpu} on the CPU; load ${out.load_ms.toFixed(0)} ms, first ${out.first_ms.toFixed(1)} ms`;
      });
    }
  }
}

// The operator cases of the field's own generators: of each zip every n-th case (--conformance=n; 0: all).
const every = Number(process.argv.find((a) => a.startsWith('--conformance='))?.split('=')[1] ?? 40);
const zips = existsSync(join(shared, 'conformance')) ? (await readdir(join(shared, 'conformance'))).filter((f) => f.endsWith('.zip')) : [];
if (!zips.length) console.log(`skipped: ${shared}/conformance is not there`);
let [cases, wrong] = [0, []];
for (const zip of zips.filter((z) => !only || only.startsWith('conformance') || z.includes(only))) {
  const files = unzipSync(await readFile(join(shared, 'conformance', zip)));
  const manifest = parse(files['manifest.json']);
  for (const entry of manifest.filter((_, i) => i % Math.max(1, every) === 0)) {
    const arrays = readNpz(files[`${entry.case}.npz`]);
    if (!known(arrays) || wrongRecording.test(entry.case)) continue;
    const bytes = Buffer.from(files[`${entry.case}.tflite`]).toString('base64');
    for (const device of ['gpu', 'cpu']) {
      cases++;
      await runCase(entry, arrays, device, 'f32', { bytes }).catch((e) => wrong.push(`${device} ${entry.case}: ${e.message.split('\n')[0]}`));
    }
  }
}
if (zips.length) {
  await check('conformance', async () => {
    assert(!wrong.length, `${wrong.length} of ${cases} wrong:\n  ${wrong.join('\n  ')}`.replaceAll('\n', ' | '));
    return `${cases} cases`;
  });
}

// Code that runs in the page, with `litegpu` and helpers of its own.
const inPage = (f, argument) => page.evaluate(f, argument);

await check('pictures give the same on the GPU and on the CPU', () =>
  inPage(async () => {
    const canvas = new OffscreenCanvas(150, 97);
    const context = canvas.getContext('2d');
    const gradient = context.createLinearGradient(0, 0, 150, 97);
    for (const [at, colour] of [[0, '#102030'], [0.5, '#f0a040'], [1, '#20e0ff']]) gradient.addColorStop(at, colour);
    context.fillStyle = gradient;
    context.fillRect(0, 0, 150, 97);
    const data = context.getImageData(0, 0, 150, 97);
    const bitmap = await createImageBitmap(canvas);
    for (const [file, limit] of [['sr_x2_f32', 1e-4], ['sr_x2_int8', 0.02], ['digits_int8', 2]]) {
      const url = `/models/${file}.tflite`;
      const gpu = await litegpu.load(url, { device: 'gpu', precision: 'f32', strict: true });
      const cpu = await litegpu.load(url, { device: 'cpu' });
      const [want] = await cpu.run(data);
      for (const picture of [data, canvas, bitmap]) {
        const [got] = await gpu.run(picture);
        const worst = got.data.reduce((w, v, i) => Math.max(w, Math.abs(v - want.data[i])), 0);
        if (!(worst <= limit)) throw new Error(`${file} ${picture.constructor.name}: ${worst}`);
      }
      // Back to numbers after a picture.
      const numbers = new ({ float32: Float32Array, int8: Int8Array })[gpu.inputs[0].dtype](gpu.inputs[0].shape.reduce((a, b) => a * b, 1));
      const [[a], [b]] = [await gpu.run([numbers]), await cpu.run([numbers])];
      const worst = a.data.reduce((w, v, i) => Math.max(w, Math.abs(v - b.data[i])), 0);
      if (!(worst <= limit)) throw new Error(`${file} after a picture: ${worst}`);
      gpu.close();
      cpu.close();
    }
  }),
);
await check('buffers of the page, on its own device, go in and out', () =>
  inPage(async () => {
    const adapter = await navigator.gpu.requestAdapter();
    const device = await adapter.requestDevice({ requiredLimits: { maxStorageBuffersPerShaderStage: adapter.limits.maxStorageBuffersPerShaderStage } });
    for (const [file, precision] of [['sr_x2_f32', 'f32'], ['sr_x2_f32', 'f16'], ['digits_int8', 'f16'], ['digits_16x8', 'f16']]) {
      const model = await litegpu.load(`/models/${file}.tflite`, { device: 'gpu', gpuDevice: device, precision });
      const onGpu = model.report.placements.some((p) => p.target === 'gpu');
      if (onGpu && model.device !== device) throw new Error('another device');
      const Type = { float32: Float32Array, int8: Int8Array, int16: Int16Array }[model.inputs[0].dtype];
      const count = (t) => t.shape.reduce((a, b) => a * b, 1);
      const input = Type.from({ length: count(model.inputs[0]) }, (_, i) => (Type === Float32Array ? (i % 97) / 97 : (i * 37) % 128));
      const [want] = await model.run([input]);
      const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
      const x = device.createBuffer({ size: Math.ceil(input.byteLength / 4) * 4, usage });
      device.queue.writeBuffer(x, 0, input);
      const y = device.createBuffer({ size: Math.ceil(want.data.byteLength / 4) * 4, usage });
      for (let n = 0; n < 2; n++) {
        const [got] = await model.run([x], { outputs: [y] });
        if (got.buffer !== y || String(got.shape) !== String(want.shape)) throw new Error(`${file}: ${JSON.stringify(got)}`);
        const read = device.createBuffer({ size: y.size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
        const encoder = device.createCommandEncoder();
        encoder.copyBufferToBuffer(y, 0, read, 0, y.size);
        device.queue.submit([encoder.finish()]);
        await read.mapAsync(GPUMapMode.READ);
        const values = new Type(read.getMappedRange().slice(0, want.data.byteLength));
        const at = values.findIndex((v, i) => v !== want.data[i]);
        if (at >= 0) throw new Error(`${file} ${precision} [${at}]: ${values[at]} instead of ${want.data[at]}`);
      }
      const [again] = await model.run([input]);
      if (again.data.some((v, i) => v !== want.data[i])) throw new Error(`${file}: another result after buffers`);
      model.close();
    }
  }),
);
await check('a lost device: the CPU finishes the run, and the next model opens another', () =>
  inPage(async () => {
    const device = await (await navigator.gpu.requestAdapter()).requestDevice();
    const model = await litegpu.load('/models/digits_int8.tflite', { device: 'gpu', gpuDevice: device });
    const input = Int8Array.from({ length: 64 }, (_, i) => (i * 37) % 128);
    const [want] = await model.run([input]);
    device.destroy();
    const [got] = await model.run([input]);
    if (String(got.data) !== String(want.data)) throw new Error(`${got.data} instead of ${want.data}`);
    if (model.report.adapter !== null || !model.report.note) throw new Error(JSON.stringify(model.report));
    const other = await litegpu.load('/models/digits_int8.tflite', { device: 'gpu', strict: true });
    if (!other.report.adapter) throw new Error('no other device');
    return model.report.note;
  }),
);
await check('operators are timed', () =>
  inPage(async () => {
    for (const device of ['gpu', 'cpu']) {
      const model = await litegpu.load('/models/sr_x2_f32.tflite', { device });
      const input = new Float32Array(64 * 64 * 3);
      await model.run(input);
      const times = await model.profile(input);
      if (!(times.length > 3 && times.every((t) => t.target === device && t.op) && times.some((t) => t.ms > 0))) throw new Error(JSON.stringify(times));
    }
  }),
);
await check('the page keeps its turn while the CPU works', () =>
  inPage(async () => {
    const model = await litegpu.load('/models/sr_x2_16x8.tflite', { device: 'cpu' });
    const input = new Float32Array(64 * 64 * 3);
    await model.run(input);
    const slowest = Math.max(...(await model.profile(input)).map((t) => t.ms));
    // The longest time between two tasks is a slice and the operator that ends it.
    let [longest, last, on] = [0, performance.now(), true];
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      const now = performance.now();
      longest = Math.max(longest, now - last);
      last = now;
      if (on) channel.port2.postMessage(0);
    };
    channel.port2.postMessage(0);
    const before = performance.now();
    await model.run(input);
    on = false;
    const whole = performance.now() - before;
    if (!(longest < 16 + 3 * slowest)) throw new Error(`${longest} ms of ${whole}, slowest operator ${slowest}`);
    return `${longest.toFixed(1)} ms of ${whole.toFixed(1)}`;
  }),
);
await check('an abort answers while a run is under way, and the model goes on', async () => {
  const name = await inPage(async () => {
    const model = await litegpu.load('/models/sr_x2_f32.tflite', { device: 'gpu' });
    const controller = new AbortController();
    const run = model.run(new Float32Array(64 * 64 * 3), { signal: controller.signal });
    controller.abort();
    const { name } = await run.catch((e) => e);
    await model.run(new Float32Array(64 * 64 * 3));
    return name;
  });
  assert(name === 'AbortError', name);
});
await check('a model that the cache keeps needs no network', () =>
  inPage(async () => {
    await litegpu.clearCache('test');
    const url = '/models/digits_f32.tflite';
    (await litegpu.load(url, { device: 'cpu', cache: 'test' })).close();
    const { fetch } = window;
    window.fetch = () => Promise.reject(new Error('offline'));
    try {
      const model = await litegpu.load(url, { device: 'cpu', cache: 'test' });
      await model.run(new Float32Array(64));
      const code = await litegpu.load(url, { device: 'cpu' }).catch((e) => e.code);
      if (code !== 'network') throw new Error(code);
    } finally {
      window.fetch = fetch;
    }
  }),
);
await check('named inputs, signatures, resizing, disposal', () =>
  inPage(async () => {
    const model = await litegpu.load('/models/digits_f32.tflite', { device: 'cpu' });
    const [{ name, shape }] = model.inputs;
    const input = Float32Array.from({ length: 64 }, (_, i) => (i % 7) / 7);
    const [a] = await model.run([input]);
    const [b] = await model.run({ [name]: input });
    if (String(a.data) !== String(b.data)) throw new Error('by name');
    for (const signature of model.signatures) await model.run([input], { signature });
    const code = await model.run([input], { signature: 'no such' }).catch((e) => e.code);
    if (code !== 'invalid') throw new Error(code);
    // Another signature, or none: shapes are the file's again.
    await model.run([input]);
    const wrong = await model.resize(0, [1, 2]).catch((e) => e.code);
    if (wrong !== 'invalid') throw new Error(`resize: ${wrong}`);
    // A batch that a constant shape in the graph does not admit: the error names the operator, and the model stays usable.
    const { code: refused, operator } = await model.resize(name, [2, ...shape.slice(1)]).catch((e) => e);
    if (refused !== 'invalid' || operator !== 'RESHAPE') throw new Error(`resize: ${refused} ${operator}`);
    const [c] = await model.run([input]);
    if (String(c.data) !== String(a.data)) throw new Error('another result after a refused shape');
    if (Symbol.dispose) model[Symbol.dispose]();
    else model.close();
  }),
);
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
  await demo.goto(`http://127.0.0.1:${server.port}/web/demo/?device=gpu`);
  await demo.waitForFunction(() => document.body.dataset.ready === 'yes', null, { timeout: 120000 });
  const status = await demo.textContent('#status');
  assert((await demo.locator('#plan-drawing i').count()) > 10, `no plan: ${status}`);
  assert((await demo.locator('#timing tr').count()) === 2, `not both devices: ${status}`);
  assert((await demo.locator('#bars li').count()) > 3, `no times: ${status}`);
  await mkdir(join(root, 'web/out'), { recursive: true });
  await demo.screenshot({ path: join(root, 'web/out/demo.png') });
  await demo.emulateMedia({ colorScheme: 'dark' });
  await demo.setViewportSize({ width: 480, height: 900 });
  await demo.screenshot({ path: join(root, 'web/out/demo-dark.png') });
  return status;
});
await check('GPU and CPU parts in turns, without JSPI', async () => {
  const entry = { case: 'tflite-support__yamnet_audio_classifier_with_metadata' };
  if (!existsSync(join(shared, 'models', `${entry.case}.tflite`))) return 'skipped: no such model here';
  const bare = await browser.newPage();
  await bare.addInitScript(() => delete WebAssembly.Suspending);
  await bare.goto(`http://127.0.0.1:${server.port}/web/tests/page.html`);
  await bare.waitForFunction(() => window.ready);
  const r = await bare.evaluate(async (url) => {
    const gpu = await window.litegpu.load(url, { device: 'gpu', precision: 'f32', strict: true });
    const cpu = await window.litegpu.load(url, { device: 'cpu' });
    const input = Float32Array.from({ length: gpu.inputs[0].shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(i / 9) / 2);
    const [[a], [b]] = [await gpu.run([input]), await cpu.run([input])];
    const worst = a.data.reduce((w, v, i) => Math.max(w, Math.abs(v - b.data[i])), 0);
    return { parts: gpu.report.partitions.map((p) => p.target), worst, jspi: 'Suspending' in WebAssembly };
  }, `/shared-models/${entry.case}.tflite`);
  assert(!r.jspi && r.parts.includes('gpu') && r.parts.includes('cpu') && r.worst < 1e-3, JSON.stringify(r));
  return JSON.stringify(r);
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
