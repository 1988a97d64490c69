// WebGPU devices, the runtime's or the page's own, and tensors in their memory.

import { failure } from './failure.js';
import { Gpu } from './litegpu_web.js';

const opened = new WeakMap();
let shared;

/** The GPU of a device that the page brings, or the one that all other models share: `{ device, software, half, info }`. */
export function gpuFor(device) {
  if (device) {
    if (!opened.has(device)) opened.set(device, describe(device, device.adapterInfo ?? {}, false));
    return Promise.resolve(opened.get(device));
  }
  shared ??= own().then(
    (gpu) => {
      // After a loss the next model opens another device.
      gpu.device.lost.then(() => (shared = undefined));
      return gpu;
    },
    (e) => {
      shared = undefined;
      throw e;
    },
  );
  return shared;
}

async function own() {
  const gpu = globalThis.navigator?.gpu;
  if (!gpu) throw new Error('this browser has no WebGPU');
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) throw new Error('WebGPU finds no adapter');
  const requiredFeatures = ['shader-f16', 'subgroups', 'timestamp-query'].filter((f) => adapter.features.has(f));
  const requiredLimits = {};
  for (const name in adapter.limits) {
    if (typeof adapter.limits[name] === 'number' && !/subgroup/i.test(name)) requiredLimits[name] = adapter.limits[name];
  }
  const device = await adapter.requestDevice({ label: 'litegpu', requiredFeatures, requiredLimits });
  const fallback = adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter ?? false;
  return describe(device, adapter.info ?? {}, fallback);
}

function describe(device, info, fallback) {
  const words = [info.vendor, info.architecture, info.device].filter(Boolean).join(' ');
  const name = info.description || words || 'WebGPU';
  const software = fallback || info.isFallbackAdapter || /swiftshader|llvmpipe|lavapipe|basic render/i.test(`${name} ${words}`);
  return { device, name, info, software: Boolean(software), half: device.features.has('shader-f16') };
}

/** The runtime's handle of a GPU. The runtime looks for `navigator.gpu`: for the moment of the call it finds this device. */
export function lent(gpu) {
  gpu.handle ??= (() => {
    const { device, info } = gpu;
    const adapter = {
      features: device.features,
      limits: device.limits,
      info: {
        vendor: info.vendor ?? '',
        architecture: info.architecture ?? '',
        device: info.device ?? '',
        description: gpu.name,
        isFallbackAdapter: gpu.software,
        subgroupMinSize: info.subgroupMinSize ?? 0,
        subgroupMaxSize: info.subgroupMaxSize ?? 0,
      },
      requestDevice: async () => device,
    };
    // The runtime expects a window or a worker; Node, with a WebGPU of its own, is neither.
    if (!globalThis.Window && !globalThis.WorkerGlobalScope) globalThis.Window = class Window {};
    const stand = { requestAdapter: async () => adapter, wgslLanguageFeatures: globalThis.navigator?.gpu?.wgslLanguageFeatures };
    const before = Object.getOwnPropertyDescriptor(navigator, 'gpu');
    Object.defineProperty(navigator, 'gpu', { value: stand, configurable: true });
    try {
      return Gpu.open(device.features.has('subgroups'));
    } finally {
      if (before) Object.defineProperty(navigator, 'gpu', before);
      else delete navigator.gpu;
    }
  })();
  return gpu.handle.then((handle) => (gpu.runtime = handle));
}

/** The runtime's name for a buffer: its one call of `createBuffer` is answered with the buffer that there is. */
export function adopt(gpu, buffer) {
  Object.defineProperty(gpu.device, 'createBuffer', { value: () => buffer, configurable: true });
  try {
    return gpu.runtime.memory(buffer.size);
  } finally {
    delete gpu.device.createBuffer;
  }
}

const sizes = { f32: 4, i32: 4, f16: 2, i8: 1, u8: 1, bool: 1 };
const forms = { float32: ['f32', 'f16'], int32: ['i32'], int8: ['i8'], uint8: ['u8'], bool: ['bool'] };

/** Bytes of a tensor with its elements side by side, in whole words. */
function denseBytes(tensor, port) {
  const n = port.shape.reduce((a, b) => a * b, 1);
  return Math.ceil((n * (tensor.dtype === 'float32' ? 4 : sizes[port.elem])) / 4) * 4;
}

const innerOf = (port) => port.shape.at(-1) ?? 1;
const sameLayout = (tensor, port) => innerOf(port) % 4 === 0 && !(tensor.dtype === 'float32' && port.elem === 'f16');

/** Brings a buffer of dense elements into a port's layout, into `room()` if it is another; whether that can be done. */
export function fromDense(gpu, buffer, tensor, port, room) {
  if (!forms[tensor.dtype]?.includes(port.elem)) return false;
  const need = denseBytes(tensor, port);
  if (buffer.size < need) throw failure(`input '${tensor.name}': a buffer of ${buffer.size} bytes, ${need} are needed`, 'invalid');
  if (sameLayout(tensor, port) && buffer.size >= port.bytes && buffer.usage & GPUBufferUsage.COPY_SRC) return true;
  if (!(buffer.usage & GPUBufferUsage.STORAGE)) return false;
  convert(gpu, port, buffer, room(), 'in');
  return true;
}

/** Writes a port's memory `from` as dense elements to `to`; without `from` only says whether that can be done. */
export function toDense(gpu, from, to, tensor, port) {
  if (!forms[tensor.dtype]?.includes(port.elem)) return false;
  const need = denseBytes(tensor, port);
  if (to.size < need) throw failure(`output '${tensor.name}': a buffer of ${to.size} bytes, ${need} are needed`, 'invalid');
  const copy = sameLayout(tensor, port) && Boolean(to.usage & GPUBufferUsage.COPY_DST);
  if (!copy && !(to.usage & GPUBufferUsage.STORAGE)) return false;
  if (!from) return true;
  if (!copy) convert(gpu, port, from, to, 'out');
  else {
    const encoder = gpu.device.createCommandEncoder();
    encoder.copyBufferToBuffer(from, 0, to, 0, need);
    gpu.device.queue.submit([encoder.finish()]);
  }
  return true;
}

/** Reads a buffer of dense elements back. */
export async function toHost(gpu, buffer, tensor) {
  const bits = { float64: 64, int64: 64, uint64: 64, int16: 16, uint16: 16, float16: 16, int8: 8, uint8: 8, bool: 8 }[tensor.dtype] ?? 32;
  const bytes = (tensor.shape.reduce((a, b) => a * b, 1) * bits) / 8;
  const size = Math.ceil(bytes / 4) * 4;
  const read = gpu.device.createBuffer({ size, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
  const encoder = gpu.device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, read, 0, size);
  gpu.device.queue.submit([encoder.finish()]);
  await read.mapAsync(GPUMapMode.READ);
  const out = new Uint8Array(read.getMappedRange().slice(0, bytes));
  read.destroy();
  return out;
}

const head = `
struct Params { items: u32, inner: u32, quads: u32, across: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> source: array<u32>;
@group(0) @binding(2) var<storage, read_write> to: array<u32>;
fn byte(e: u32) -> u32 { return (source[e / 4u] >> (8u * (e % 4u))) & 255u; }
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * p.across + id.x;
  if (i >= p.items) { return; }
`;
const quad = `
  let r = i / p.quads;
  let q = i % p.quads;
  let base = r * p.inner + q * 4u;
  let n = min(4u, p.inner - q * 4u);
`;
const texts = {
  in32: `${head}${quad} for (var l = 0u; l < 4u; l++) { to[4u * i + l] = select(0u, source[base + min(l, n - 1u)], l < n); } }`,
  in16: `${head}${quad} var v = vec4<f32>(); for (var l = 0u; l < n; l++) { v[l] = bitcast<f32>(source[base + l]); }
    to[2u * i] = pack2x16float(v.xy); to[2u * i + 1u] = pack2x16float(v.zw); }`,
  in8: `${head}${quad} var v = 0u; for (var l = 0u; l < n; l++) { v |= byte(base + l) << (8u * l); } to[i] = v; }`,
  out32: `${head}${quad} for (var l = 0u; l < n; l++) { to[base + l] = source[4u * i + l]; } }`,
  out16: `${head}${quad} let v = vec4<f32>(unpack2x16float(source[2u * i]), unpack2x16float(source[2u * i + 1u]));
    for (var l = 0u; l < n; l++) { to[base + l] = bitcast<u32>(v[l]); } }`,
  // One word of dense bytes each.
  out8: `${head} var v = 0u; for (var l = 0u; l < 4u; l++) { let e = 4u * i + l;
    v |= byte((e / p.inner) * p.quads * 4u + e % p.inner) << (8u * l); } to[i] = v; }`,
};

function convert(gpu, port, from, to, way) {
  const inner = innerOf(port);
  const quads = Math.ceil(inner / 4);
  const n = port.shape.reduce((a, b) => a * b, 1);
  const bits = 8 * sizes[port.elem];
  const items = way === 'out' && bits === 8 ? Math.ceil(n / 4) : (n / inner) * quads;
  dispatch(gpu, `${way}${bits}`, texts[`${way}${bits}`], items, [inner, quads], [{ buffer: from }, { buffer: to }]);
}

/** Runs a kernel of this package once for each of `items`. */
export function dispatch(gpu, name, code, items, params, resources) {
  const { device } = gpu;
  gpu.kernels ??= new Map();
  if (!gpu.kernels.has(name)) {
    const module = device.createShaderModule({ label: name, code });
    gpu.kernels.set(name, device.createComputePipeline({ label: name, layout: 'auto', compute: { module } }));
  }
  const pipeline = gpu.kernels.get(name);
  const groups = Math.ceil(items / 64);
  const across = Math.min(groups, 65535);
  const [a, b, ...rest] = params;
  const words = new Uint32Array([items, a, b, across * 64, ...rest]);
  const uniform = device.createBuffer({ size: Math.ceil(words.byteLength / 16) * 16, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
  device.queue.writeBuffer(uniform, 0, words);
  const entries = [{ buffer: uniform }, ...resources].map((resource, binding) => ({ binding, resource }));
  const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, group);
  pass.dispatchWorkgroups(across, Math.ceil(groups / across));
  pass.end();
  device.queue.submit([encoder.finish()]);
  uniform.destroy();
}
