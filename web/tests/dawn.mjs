// The same package on a second implementation of WebGPU, Dawn for Node, over a software Vulkan adapter with shader-f16:
// shipped models, ../shared/models and operator cases give the recorded results there too.
import { readFile, readdir } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { dirname, resolve, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { unzipSync } from 'fflate';
import { create, globals } from 'webgpu';
import { asked, assert, inputsOf, judge, known, parse, wrongRecording } from './judge.mjs';
import { readNpz } from './npz.mjs';
import { runModel } from './run.mjs';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const shared = process.env.LITEGPU_SHARED ?? resolve(root, '../shared');
Object.assign(globalThis, globals);
if (!globalThis.navigator) Object.defineProperty(globalThis, 'navigator', { value: {}, configurable: true });
const gpu = create([]);
Object.defineProperty(navigator, 'gpu', { value: gpu, configurable: true });
const adapter = await gpu.requestAdapter();
assert(adapter, 'Dawn finds no Vulkan adapter (VK_DRIVER_FILES names one)');
console.log(`${adapter.info.description}, shader-f16: ${adapter.features.has('shader-f16')}`);
const litegpu = await import('../npm/index.js');
const wasm = await readFile(join(root, 'web/npm/litegpu_web_bg.wasm'));

const failed = [];
let passed = 0;
async function check(entry, bytes, arrays, precision) {
  const name = `${precision} ${entry.case}`;
  try {
    const out = await runModel(litegpu, {
      bytes: Buffer.from(bytes).toString('base64'),
      device: 'gpu',
      precision,
      wasm,
      ...asked(inputsOf(entry, arrays)),
    });
    judge(entry, arrays, out, precision);
    passed++;
  } catch (e) {
    failed.push(`${name}: ${e.message.split('\n')[0]}`);
    console.log(`FAIL ${failed.at(-1)}`);
  }
}

for (const folder of [join(root, 'models'), join(shared, 'models')]) {
  if (!existsSync(join(folder, 'manifest.json'))) {
    console.log(`skipped: ${folder} is not there`);
    continue;
  }
  for (const entry of parse(await readFile(join(folder, 'manifest.json')))) {
    const bytes = await readFile(join(folder, entry.model ?? `${entry.case}.tflite`));
    const arrays = readNpz(await readFile(join(folder, entry.arrays ?? `${entry.case}.npz`)));
    if (bytes.length > 6e6 || !known(arrays)) continue;
    for (const precision of ['f16', 'f32']) await check(entry, bytes, arrays, precision);
  }
}
console.log(`models: ${passed} passed, ${failed.length} failed`);

const every = Number(process.argv.find((a) => a.startsWith('--conformance='))?.split('=')[1] ?? 40);
const cases = join(shared, 'conformance');
for (const zip of existsSync(cases) ? (await readdir(cases)).filter((f) => f.endsWith('.zip')) : []) {
  const files = unzipSync(await readFile(join(cases, zip)));
  for (const entry of parse(files['manifest.json']).filter((_, i) => i % Math.max(1, every) === 0)) {
    const arrays = readNpz(files[`${entry.case}.npz`]);
    if (known(arrays) && !wrongRecording.test(entry.case)) await check(entry, files[`${entry.case}.tflite`], arrays, 'f16');
  }
}
console.log(`${passed} passed, ${failed.length} failed`);
process.exit(failed.length ? 1 : 0);
