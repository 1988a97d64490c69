// Browser tests: shipped models (and ../shared/models where that folder is there) give the recorded results in headless
// Chromium, on WebGPU (SwiftShader: no shader-f16) and on wasm; errors are what the documentation says; the demo works.
import { readFile, readdir, mkdir } from 'node:fs/promises';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, resolve, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { chromium } from 'playwright-core';
import { unzipSync } from 'fflate';
import { asked, assert, inputsOf, judge, known, parse, wrongRecording } from './judge.mjs';
import { mixed } from './mixed.mjs';
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
const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--disable-background-networking', '--no-first-run'],
});
const page = await browser.newPage();
page.on('pageerror', (e) => console.log('page error:', e.message));
await page.goto(`http://127.0.0.1:${server.port}/web/tests/page.html`);
await page.waitForFunction(() => window.ready);

let passed = 0;
let failed = 0;
const check = async (name, test) => {
  if (only && !new RegExp(only).test(name)) return;
  try {
    const note = await test();
    passed++;
    console.log(`ok   ${name}${note ? `: ${note}` : ''}`);
  } catch (e) {
    failed++;
    console.log(`FAIL ${name}: ${e.message.split('\n')[0]}`);
  }
};

// Runs a case's arrays on a device and compares.
async function runCase(entry, arrays, device, precision, source) {
  const out = await page.evaluate((o) => window.runModel(o), { ...source, device, precision, ...asked(inputsOf(entry, arrays)) });
  judge(entry, arrays, out, precision);
  return out;
}

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

await check('the kernels with fused products give products, limited', () =>
  inPage(async () => {
    const bytes = await (await fetch('/web/js/relaxed.wasm')).arrayBuffer();
    const memory = new WebAssembly.Memory({ initial: 16 });
    const { rows_f32: rows, depthwise_f32: depthwise } = new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory } }).exports;
    const f = new Float32Array(memory.buffer);
    const [a, w, bias, out, lists] = [1000, 2000, 4000, 5000, 6000];
    // Small integers: exact, in any order and with any rounding.
    for (let i = 0; i < 900; i++) f[a + i] = ((i * 7) % 13) - 6;
    for (let i = 0; i < 900; i++) f[w + i] = ((i * 5) % 11) - 5;
    for (let i = 0; i < 32; i++) f[bias + i] = i;
    const compare = (what, count, ldc, columns, sum) => {
      for (let r = 0; r <= count; r++) {
        for (let c = 0; c < ldc; c++) {
          const right = r < count && c < columns ? Math.min(Math.max(sum(r, c), -40), 55) : 1e9;
          const is = f[out + r * ldc + c];
          if (!Object.is(is, right)) throw new Error(`${what}: ${is} in row ${r}, column ${c}, not ${right}`);
        }
      }
    };
    const [lda, ldc, length, starts] = [40, 19, 5, [3, 17]];
    f[a + 2 * lda + starts[1]] = NaN;
    new Uint32Array(memory.buffer).set(starts, lists);
    for (let count = 1; count <= 9; count++) {
      for (let columns = 1; columns <= 16; columns++) {
        f.fill(1e9, out, out + 10 * ldc);
        rows(4 * a, lda, count, 4 * lists, 2, length, 4 * w, 4 * bias, -40, 55, 4 * out, ldc, columns);
        compare(`${count} rows`, count, ldc, columns, (r, c) => {
          let sum = f[bias + c];
          starts.forEach((s, i) => {
            for (let k = 0; k < length; k++) sum += f[a + r * lda + s + k] * f[w + (i * length + k) * 16 + c];
          });
          return sum;
        });
      }
    }
    const taps = [[-30, 0], [0, 1], [33, 4]];
    new Int32Array(memory.buffer).set(taps.flat(), lists);
    for (let count = 1; count <= 9; count++) {
      for (let eights = 1; eights <= 3; eights++) {
        f.fill(1e9, out, out + 10 * 27);
        depthwise(4 * (a + 50), 28, count, 4 * lists, 3, 4 * w, 6, eights, 4 * bias, -40, 55, 4 * out, 27);
        compare(`${count} pixels`, count, 27, 8 * eights, (p, c) =>
          taps.reduce((sum, [at, line]) => sum + f[a + 50 + 28 * p + at + c] * f[w + ((c >> 4) * 6 + line) * 16 + (c % 16)], f[bias + c]));
      }
    }
  }));

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
    const image = Object.assign(new Image(), { src: URL.createObjectURL(await canvas.convertToBlob()) });
    await image.decode();
    for (const [file, limit] of [['sr_x2_f32', 1e-4], ['sr_x2_int8', 0.02], ['digits_int8', 2]]) {
      const url = `/models/${file}.tflite`;
      const gpu = await litegpu.load(url, { device: 'gpu', precision: 'f32', strict: true });
      const here = await litegpu.load(url, { device: 'gpu', precision: 'f32', strict: true, worker: false });
      if (gpu.device || !here.device) throw new Error('not on the threads that were asked for');
      const cpu = await litegpu.load(url, { device: 'cpu' });
      const [want] = await cpu.run(data);
      for (const model of [gpu, here, cpu]) {
        // The same pictures again and again: they stay the page's.
        for (const picture of [data, canvas, bitmap, image]) {
          const [got] = await model.run(picture);
          const worst = got.data.reduce((w, v, i) => Math.max(w, Math.abs(v - want.data[i])), 0);
          if (!(worst <= limit)) throw new Error(`${file} ${picture.constructor.name}: ${worst}`);
        }
      }
      here.close();
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
// The longest time in which the page gets no turn while `job` runs; found in the page.
const heartbeat = `async (job) => {
  let [longest, last, on] = [0, performance.now(), true];
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    if (on) port2.postMessage(0);
  };
  port2.postMessage(0);
  const began = performance.now();
  await job();
  on = false;
  return { longest: Math.max(longest, performance.now() - last), whole: performance.now() - began };
}`;
await check('a CPU model of 100 ms and more holds up the page for less than 16 ms', async () => {
  const r = await inPage(async ([heartbeat, bytes]) => {
    const beat = eval(heartbeat);
    // Sines of a million numbers, one after another: operators of many milliseconds each.
    const model = await litegpu.load(Uint8Array.from(bytes), { device: 'cpu' });
    const input = new Float32Array(256 * 256 * 16).map((_, i) => (i % 97) / 97);
    const slowest = Math.max(...(await model.profile(input)).map((t) => t.ms));
    const runs = [];
    // Other processes hold the page up too: the median of several runs counts, beside that of the page at rest.
    for (let n = 0; n < 7; n++) runs.push(await beat(() => model.run(input)));
    model.close();
    const rest = [];
    for (let n = 0; n < 7; n++) rest.push(await beat(() => new Promise((done) => setTimeout(done, runs[n].whole))));
    for (const list of [runs, rest]) list.sort((a, b) => a.longest - b.longest);
    return { ...runs[3], rest: rest[3].longest, slowest };
  }, [heartbeat, Array.from(mixed([1, 256, 256, 16], Array(24).fill('SIN')))]);
  const text = JSON.stringify(r, (_, v) => (typeof v === 'number' ? Number(v.toFixed(1)) : v));
  assert(r.whole > 100 && r.slowest > 16 && r.longest < Math.max(16, 1.5 * r.rest), text);
  return text;
});
await check('on the page\'s own thread, the CPU stops after the operator that ends a slice', () =>
  inPage(async (heartbeat) => {
    const beat = eval(heartbeat);
    const model = await litegpu.load('/models/sr_x2_16x8.tflite', { device: 'cpu', worker: false });
    const input = new Float32Array(64 * 64 * 3);
    await model.run(input);
    const slowest = Math.max(...(await model.profile(input)).map((t) => t.ms));
    const { longest, whole } = await beat(() => model.run(input));
    if (!(longest < 16 + 3 * slowest)) throw new Error(`${longest} ms of ${whole}, slowest operator ${slowest}`);
    return `${longest.toFixed(1)} ms of ${whole.toFixed(1)}`;
  }, heartbeat),
);
await check('results on the page\'s thread are those of the worker', () =>
  inPage(async () => {
    for (const [file, length, Type] of [['digits_int8', 64, Int8Array], ['digits_f32', 64, Float32Array]]) {
      const results = [];
      for (const worker of [true, false]) {
        const model = await litegpu.load(`/models/${file}.tflite`, { device: 'cpu', worker });
        for (const signature of [undefined, ...model.signatures]) {
          const [t] = await model.run([Type.from({ length }, (_, i) => (i * 37) % 100)], { signature });
          results.push(`${t.name} ${t.shape} ${t.data}`);
        }
        const { placements, timings } = model.report;
        if (!(placements.length > 3 && timings.runs === 1 + model.signatures.length)) throw new Error(JSON.stringify(timings));
        model.close();
      }
      const half = results.length / 2;
      if (String(results.slice(0, half)) !== String(results.slice(half))) throw new Error(results.join(' | '));
    }
  }),
);
await check('a page that forbids workers runs on its own thread', async () => {
  const bare = await fresh(() => {
    const meta = Object.assign(document.createElement('meta'), { httpEquiv: 'Content-Security-Policy', content: "worker-src 'none'" });
    new MutationObserver((_, o) => document.head && (document.head.append(meta), o.disconnect())).observe(document, { childList: true, subtree: true });
  });
  const r = await bare.evaluate(async () => {
    const model = await window.litegpu.load('/models/digits_f32.tflite', { device: 'gpu' });
    const [{ shape }] = await model.run([new Float32Array(64)]);
    const code = await window.litegpu.load('/models/digits_f32.tflite', { device: 'cpu', worker: true }).then(() => 'loaded', (e) => e.code);
    return { shape: String(shape), here: Boolean(model.device), code };
  });
  await bare.close();
  assert(r.shape === '1,10' && r.here && r.code === 'internal', JSON.stringify(r));
});
await check('the package on another host', async () => {
  // Its worker cannot be made from there directly.
  const r = await inPage(async (url) => {
    const there = await import(url);
    const model = await there.load('/models/digits_f32.tflite', { device: 'cpu', worker: true });
    const [{ shape }] = await model.run([new Float32Array(64)]);
    return String(shape);
  }, `http://localhost:${server.port}/web/npm/index.js`);
  assert(r === '1,10', r);
});
await check('a buffer of the page for a model in the worker is refused with what to do', async () => {
  const e = await inPage(async () => {
    const device = await (await navigator.gpu.requestAdapter()).requestDevice();
    const model = await litegpu.load('/models/digits_f32.tflite', { device: 'gpu' });
    const buffer = device.createBuffer({ size: 256, usage: GPUBufferUsage.STORAGE });
    const { code, message } = await model.run([buffer]).catch((e) => e);
    return { code, message };
  });
  assert(e.code === 'invalid' && e.message.includes('gpuDevice'), JSON.stringify(e));
});
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
await check('measured choices of kernels are kept, and taken from the store by the next page', async () => {
  const load = () =>
    inPage(async () => {
      const model = await litegpu.load('/models/digits_f32.tflite', { device: 'gpu', cache: 'tuned', tune: true });
      const [{ data }] = await model.run(new Float32Array(64).fill(0.25));
      const kept = await (await caches.open('tuned')).match(`${origin}/litegpu-tuned`);
      return { text: await kept.text(), mean: data.reduce((a, b) => a + b) / data.length, ms: model.report.timings.prepare_ms };
    });
  await inPage(() => litegpu.clearCache('tuned'));
  const first = await load();
  await page.reload();
  await page.waitForFunction(() => window.ready);
  const again = await load();
  assert(first.text.split('\n').length > 3, first.text);
  assert(again.text === first.text, again.text);
  assert(Math.abs(again.mean - first.mean) < 1e-3, `${first.mean} ${again.mean}`);
  await inPage(() => litegpu.clearCache('tuned'));
});
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
    const both = Float32Array.from([...input, ...input]);
    const refused = await model.resize(name, [2, ...shape.slice(1)]).then(() => model.run([both])).catch((e) => e);
    if (refused.code !== 'invalid' || refused.operator !== 'RESHAPE') throw new Error(`resize: ${refused.code} ${refused.message}`);
    await model.resize(name, shape);
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
// A page of its own, prepared by `before`.
async function fresh(before, argument) {
  const bare = await browser.newPage();
  await bare.addInitScript(before, argument);
  await bare.goto(`http://127.0.0.1:${server.port}/web/tests/page.html`);
  await bare.waitForFunction(() => window.ready);
  return bare;
}
await check('one operator in the middle without a GPU kernel: all others on the GPU, without JSPI', async () => {
  const bare = await fresh(() => delete WebAssembly.Suspending);
  const r = await bare.evaluate(async (bytes) => {
    const file = Uint8Array.from(bytes);
    // A worker would have a WebAssembly of its own.
    const gpu = await window.litegpu.load(file, { device: 'gpu', precision: 'f32', strict: true, worker: false });
    const cpu = await window.litegpu.load(file, { device: 'cpu' });
    const input = Float32Array.from({ length: 256 * 256 * 16 }, (_, i) => Math.sin(i / 9) * 3);
    const [[a], [b]] = [await gpu.run([input]), await cpu.run([input])];
    const worst = a.data.reduce((w, v, i) => Math.max(w, Math.abs(v - b.data[i])), 0);
    const onCpu = gpu.report.placements.filter((p) => p.target === 'cpu').map((p) => p.op);
    return { parts: String(gpu.report.partitions.map((p) => p.target)), onCpu: String(onCpu), worst, jspi: 'Suspending' in WebAssembly };
  }, Array.from(mixed([1, 256, 256, 16])));
  await bare.close();
  // FAKE_QUANT has steps of 2/255; a last-bit difference before it may move a value by one.
  assert(!r.jspi && r.parts === 'gpu,cpu,gpu' && r.onCpu === 'FAKE_QUANT' && r.worst <= 2 / 255, JSON.stringify(r));
  return JSON.stringify(r);
});
await check('GPU and CPU parts of a network with state in turns, without JSPI', async () => {
  const entry = { case: 'micro-wake-word-models__v2_okay_nabu' };
  if (!existsSync(join(shared, 'models', `${entry.case}.tflite`))) return 'skipped: no such model here';
  const bare = await fresh(() => delete WebAssembly.Suspending);
  const r = await bare.evaluate(async (url) => {
    const gpu = await window.litegpu.load(url, { device: 'gpu', strict: true, worker: false });
    const cpu = await window.litegpu.load(url, { device: 'cpu' });
    const [a, b] = [[], []];
    const length = gpu.inputs[0].shape.reduce((n, d) => n * d, 1);
    for (let run = 0; run < 5; run++) {
      const input = Int8Array.from({ length }, (_, i) => (i * 37 + run * 11) % 127);
      for (const [model, list] of [[gpu, a], [cpu, b]]) list.push(String((await model.run([input]))[0].data));
    }
    return { parts: gpu.report.partitions.map((p) => p.target), a, b, jspi: 'Suspending' in WebAssembly };
  }, `/shared-models/${entry.case}.tflite`);
  await bare.close();
  assert(!r.jspi && r.parts.includes('gpu') && r.parts.includes('cpu') && String(r.a) === String(r.b), JSON.stringify(r));
  return `${r.parts}: ${r.a}`;
});
await check('the page gets its turns while a model runs', async () => {
  const r = await inPage(async () => {
    const gaps = {};
    for (const device of ['cpu', 'gpu']) {
      const model = await litegpu.load('/models/sr_x2_f32.tflite', { device });
      const picture = new Float32Array(64 * 64 * 3);
      await model.run(picture);
      // The longest time between two turns of the page in a run. Other processes make it longer: it has to be short in one of many.
      gaps[device] = Infinity;
      for (let n = 0; n < 25 && gaps[device] > 16; n++) {
        let [longest, last, open] = [0, performance.now(), true];
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = () => {
          const now = performance.now();
          longest = Math.max(longest, now - last);
          last = now;
          if (open) port2.postMessage(0);
        };
        port2.postMessage(0);
        await model.run(picture);
        longest = Math.max(longest, performance.now() - last);
        open = false;
        gaps[device] = Math.min(gaps[device], longest);
      }
      model.close();
    }
    return gaps;
  });
  assert(r.cpu <= 16 && r.gpu <= 16, JSON.stringify(r));
  return JSON.stringify(r);
});
await check('a frame of a video', () =>
  inPage(async () => {
    const canvas = Object.assign(document.createElement('canvas'), { width: 128, height: 128 });
    const context = canvas.getContext('2d');
    const video = Object.assign(document.createElement('video'), { muted: true, srcObject: canvas.captureStream(30) });
    document.body.append(video);
    const drawing = setInterval(() => {
      context.fillStyle = '#fff';
      context.fillRect(0, 0, 128, 128);
    }, 10);
    await video.play();
    // Some frames, so that the video shows what the canvas does.
    for (let n = 0; n < 3; n++) await new Promise((done) => video.requestVideoFrameCallback(done));
    clearInterval(drawing);
    for (const device of ['gpu', 'cpu']) {
      const model = await litegpu.load('/models/sr_x2_f32.tflite', { device, precision: 'f32' });
      const [{ data }] = await model.run(video);
      const [{ data: white }] = await model.run(new Float32Array(64 * 64 * 3).fill(1));
      const worst = data.reduce((w, v, i) => Math.max(w, Math.abs(v - white[i])), 0);
      if (!(worst < 0.05)) throw new Error(`${device}: ${worst}`);
      model.close();
    }
    video.srcObject.getTracks().forEach((t) => t.stop());
    video.remove();
  }),
);
await check('the plain example recognizes what is drawn', async () => {
  const plain = await browser.newPage();
  await plain.goto(`http://127.0.0.1:${server.port}/examples/web-plain/`);
  await plain.waitForFunction(() => /Ready/.test(document.querySelector('#answer').textContent), null, { timeout: 60000 });
  const box = await plain.locator('#board').boundingBox();
  // A stroke from top to bottom.
  await plain.mouse.move(box.x + box.width / 2, box.y + box.height * 0.15);
  await plain.mouse.down();
  await plain.mouse.move(box.x + box.width / 2, box.y + box.height * 0.85, { steps: 20 });
  await plain.mouse.up();
  await plain.waitForFunction(() => /looks like/.test(document.querySelector('#answer').textContent), null, { timeout: 20000 });
  const answer = await plain.textContent('#answer');
  await plain.close();
  return answer;
});
await check('the worker example', async () => {
  const worker = await browser.newPage();
  await worker.goto(`http://127.0.0.1:${server.port}/examples/web-worker/`);
  await worker.waitForFunction(() => /^A \d/.test(document.querySelector('#answer').textContent), null, { timeout: 60000 });
  const answer = await worker.textContent('#answer');
  assert(/^A 3,/.test(answer), answer);
  await worker.selectOption('#sample', '7');
  await worker.waitForFunction(() => /^A 7,/.test(document.querySelector('#answer').textContent), null, { timeout: 20000 });
  await worker.close();
  return answer;
});
await check('the Vite example, built', async () => {
  if (!existsSync(join(root, 'examples/web-vite/dist/index.html'))) return 'skipped: it has not been built';
  const vite = await browser.newPage();
  await vite.goto(`http://127.0.0.1:${server.port}/examples/web-vite/dist/`);
  await vite.waitForFunction(() => /Ready/.test(document.querySelector('#status').textContent), null, { timeout: 60000 });
  await vite.setInputFiles('#file', join(root, 'models/samples/sr_input.png'));
  await vite.waitForFunction(() => / ms$/.test(document.querySelector('#status').textContent), null, { timeout: 60000 });
  const size = await vite.evaluate(() => [document.querySelector('#result').width, document.querySelector('#result').height]);
  await vite.close();
  assert(String(size) === '128,128', String(size));
});
await check('the package holds what it needs and nothing else', async () => {
  const { stdout } = await promisify(execFile)('npm', ['pack', '--dry-run', '--json'], { cwd: join(root, 'web/npm') });
  const files = JSON.parse(stdout)[0].files.map((f) => f.path).sort();
  const want = ['README.md', 'index.d.ts', 'index.js', 'litegpu_web_bg.wasm', 'package.json', 'runtime.js'];
  assert(String(files) === String(want), String(files));
  return `${JSON.parse(stdout)[0].size} bytes`;
});
await check('without WebGPU the CPU runs and the report says so', async () => {
  // No switch, no WebGPU: not in the page, not in workers.
  const plain = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-background-networking', '--no-first-run', '--disable-gpu'] });
  const bare = await plain.newPage();
  await bare.goto(`http://127.0.0.1:${server.port}/web/tests/page.html`);
  await bare.waitForFunction(() => window.ready);
  const r = await bare.evaluate(async () => {
    const reports = [];
    for (const [device, worker] of [['auto', true], ['gpu', true], ['auto', false], ['gpu', false]]) {
      const m = await window.litegpu.load('/models/digits_f32.tflite', { device, worker });
      await m.run([new Float32Array(64)]);
      reports.push(m.report);
    }
    return reports;
  });
  await plain.close();
  for (const { adapter, note, partitions } of r) {
    assert(adapter === null && note && partitions.every((p) => p.target === 'cpu'), JSON.stringify({ adapter, note }));
  }
  return r[0].note;
});

await browser.close();
server.close();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
