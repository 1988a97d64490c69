// litegpu: LiteRT (.tflite) models in the page, on WebGPU where it pays and on wasm where it must.

import init, { Network, Upload } from './litegpu_web.js';
import { adopt, fromDense, gpuFor, lent, toDense, toHost } from './device.js';
import { isPicture, pixels, uploadPicture } from './picture.js';

let ready;

/** Loads the runtime ahead of the first model. `wasm` may name another place for the module. */
export function initialize(wasm = new URL('./litegpu_web_bg.wasm', import.meta.url)) {
  ready ??= init({ module_or_path: wasm }).catch((e) => {
    ready = undefined;
    // The one thing that every browser with WebGPU has and an old one may lack.
    throw new LiteGpuError(`the wasm module does not load (it needs fixed-width SIMD): ${e?.message ?? e}`, 'unsupported', e);
  });
  return ready;
}

/** What went wrong; `code` is 'invalid', 'unsupported', 'device', 'internal', 'network' or 'closed'. */
export class LiteGpuError extends Error {
  constructor(message, code, cause) {
    super(message, { cause });
    this.name = 'LiteGpuError';
    this.code = code;
    /** The operator that the message names, if it names one. */
    this.operator = /\boperator \d+[ :(]+([A-Z][A-Z0-9_]+)/.exec(message)?.[1];
  }
}

/** The typed array of each element type. Types that JavaScript lacks come as bits, packed ones as bytes. */
export const arrays = {
  float32: Float32Array,
  float64: Float64Array,
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  bool: Uint8Array,
  float16: globalThis.Float16Array ?? Uint16Array,
  bfloat16: Uint16Array,
  complex64: Float32Array,
  complex128: Float64Array,
  int4: Uint8Array,
  uint4: Uint8Array,
};

const wrap = (e) =>
  e instanceof LiteGpuError || e?.name === 'AbortError' ? e : new LiteGpuError(e?.message ?? String(e), e?.code ?? 'internal', e);

/** Loads a model from a URL, a Request, a Response, a Blob, an ArrayBuffer or a typed array. */
export async function load(source, options = {}) {
  const { device = 'auto', precision, strict = false, signal, onProgress, wasm, gpuDevice, cache } = options;
  signal?.throwIfAborted();
  try {
    if (!['auto', 'gpu', 'cpu'].includes(device)) throw new LiteGpuError(`device '${device}': auto, gpu or cpu`, 'invalid');
    // The module, the GPU and the file come side by side.
    const gpu = device === 'cpu' ? undefined : gpuFor(gpuDevice).catch((e) => ({ reason: e?.message ?? String(e) }));
    await initialize(wasm);
    const [file, opened] = await Promise.all([receive(source, signal, onProgress, cache), gpu]);
    signal?.throwIfAborted();
    if (strict && opened && !opened.device) throw new LiteGpuError(opened.reason, 'device');
    const ready = opened?.device ? await lent(opened) : undefined;
    const half = precision ?? (opened?.software && !opened.half ? 'f32' : 'f16');
    const network = await Network.open(file, device, half, strict, ready?.share(), 8);
    if (signal?.aborted) {
      network.free();
      signal.throwIfAborted();
    }
    return new Model(network, opened?.device ? opened : undefined);
  } catch (e) {
    throw wrap(e);
  }
}

/** Forgets models that `load` has kept with `cache`. */
export const clearCache = (name = 'litegpu') => globalThis.caches?.delete(name);

/** Brings a file into the module's memory, chunk by chunk as it arrives. */
async function receive(source, signal, onProgress, cache) {
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source)) {
    const bytes = ArrayBuffer.isView(source)
      ? new Uint8Array(source.buffer, source.byteOffset, source.byteLength)
      : new Uint8Array(source);
    const file = new Upload(bytes.length);
    file.push(bytes);
    onProgress?.(bytes.length, bytes.length);
    return file;
  }
  let response;
  if (source instanceof Blob) response = new Response(source, { headers: { 'content-length': source.size } });
  else if (source instanceof Response) response = source;
  else response = await request(source, signal, cache);
  if (!response.ok) {
    throw new LiteGpuError(`cannot fetch ${response.url || source}: HTTP ${response.status}`, 'network');
  }
  const total = Number(response.headers.get('content-length')) || 0;
  const file = new Upload(total);
  try {
    let done = 0;
    const reader = response.body.getReader();
    for (;;) {
      signal?.throwIfAborted();
      const { done: end, value } = await reader.read();
      if (end) break;
      file.push(value);
      done += value.length;
      onProgress?.(done, total);
    }
  } catch (e) {
    file.free();
    if (e?.name === 'AbortError' || e?.code) throw e;
    throw new LiteGpuError(`the download of ${response.url || source} broke off: ${e?.message ?? e}`, 'network', e);
  }
  return file;
}

/** A response from the network, or from the page's store of models. */
async function request(source, signal, cache) {
  const fetched = async () => {
    try {
      return await fetch(source, { signal });
    } catch (e) {
      if (e?.name === 'AbortError') throw e;
      throw new LiteGpuError(`cannot fetch ${source?.url ?? source}: ${e?.message ?? e}`, 'network', e);
    }
  };
  if (!cache || !globalThis.caches) return fetched();
  let store;
  try {
    store = await caches.open(typeof cache === 'string' ? cache : 'litegpu');
    const kept = await store.match(source);
    if (kept) return kept;
  } catch {
    // No permission, no room: the store is a convenience.
    return fetched();
  }
  const response = await fetched();
  if (!response.ok) return response;
  // To the disk first, and read from there: never twice in memory.
  try {
    await store.put(source, response.clone());
  } catch (e) {
    if (signal?.aborted) throw e;
  }
  return response;
}

/** A model ready to run. Runs are queued: a second `run` starts when the first has ended. */
export class Model {
  #network;
  #gpu;
  #queue = Promise.resolve();
  #signature;
  #info;
  /** Device memory that stands for an input or output: 'i0' or 'o0' -> { buffer, own }. */
  #attached = new Map();

  constructor(network, gpu) {
    this.#network = network;
    this.#gpu = gpu;
    this.#info = JSON.parse(network.describe());
  }

  /** Inputs: `{ name, dtype, shape, quantization: [scale, zeroPoint] | null }`. */
  get inputs() {
    return this.#info.inputs;
  }
  /** Outputs, as `inputs`. */
  get outputs() {
    return this.#info.outputs;
  }
  /** Keys of the signatures. */
  get signatures() {
    return this.#info.signatures;
  }
  /** Placements with reasons, parts, memory and timings. */
  get report() {
    return JSON.parse(this.#open().report());
  }
  /** The WebGPU device that the model's GPU parts run on; none when the CPU runs everything. */
  get device() {
    return this.report.adapter ? this.#gpu?.device : undefined;
  }
  /** Where each operator runs, and why. */
  plan() {
    return this.report.placements;
  }

  /**
   * Runs the model on an array of inputs, an object by name, or a single input. An input is a typed array (or an array of
   * numbers), a GPUBuffer of the model's device with the tensor's elements side by side, or a picture for an input of shape
   * [1, height, width, 1 | 3 | 4]. Resolves to an array of `{ name, dtype, shape, data }`, whose entries are also
   * properties by name.
   */
  run(inputs, { signature, signal, range, outputs } = {}) {
    return this.#enqueue(signal, async () => {
      const network = this.#select(signature);
      const list = this.#ordered(inputs);
      for (const [i, value] of list.entries()) await this.#set(i, value, range);
      const wanted = this.#wanted(outputs);
      for (const [i, buffer] of wanted.entries()) await this.#direct(i, buffer);
      await network.invoke();
      return this.#results(network, wanted);
    });
  }

  /** Runs once with each operator timed: `[{ node, op, kernel, target, ms }]`. */
  profile(inputs, { signature, signal, range } = {}) {
    return this.#enqueue(signal, async () => {
      const network = this.#select(signature);
      for (const [i, value] of this.#ordered(inputs).entries()) await this.#set(i, value, range);
      network.set_profile(true);
      try {
        await network.invoke();
        return JSON.parse(network.times());
      } finally {
        network.set_profile(false);
      }
    });
  }

  /** Changes an input's shape; by index or name. */
  resize(input, shape) {
    return this.#enqueue(undefined, async () => {
      const i = typeof input === 'number' ? input : this.#info.inputs.findIndex((t) => t.name === input);
      const network = this.#open();
      network.resize(i < 0 ? this.#info.inputs.length : i, new Uint32Array(shape));
      this.#attached.clear();
      this.#info = JSON.parse(network.describe());
    });
  }

  /** Forgets state between runs (variables). */
  reset() {
    return this.#enqueue(undefined, async () => this.#open().reset());
  }

  /** Frees the model's memory on both sides, when the runs under way have ended. */
  close() {
    const network = this.#network;
    this.#network = undefined;
    if (network) {
      this.#queue = this.#queue.then(() => {
        for (const { buffer, own } of this.#attached.values()) if (own) buffer.destroy();
        network.free();
      });
    }
  }

  /** Runs `job` after those before it. An abort answers at once; a run that has begun ends in the background. */
  #enqueue(signal, job) {
    if (signal?.aborted) return Promise.reject(signal.reason);
    const result = this.#queue.then(async () => {
      signal?.throwIfAborted();
      this.#open();
      try {
        return await job();
      } catch (e) {
        throw wrap(e);
      }
    });
    this.#queue = result.catch(() => {});
    if (!signal) return result;
    return new Promise((resolve, reject) => {
      const abort = () => reject(signal.reason);
      signal.addEventListener('abort', abort, { once: true });
      result.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
    });
  }

  #open() {
    if (!this.#network) throw new LiteGpuError('the model is closed', 'closed');
    return this.#network;
  }

  #select(signature) {
    const network = this.#open();
    if (signature !== this.#signature) {
      network.select(signature);
      this.#signature = signature;
      this.#attached.clear();
      this.#info = JSON.parse(network.describe());
    }
    return network;
  }

  #ordered(inputs) {
    const want = this.#info.inputs;
    if (Array.isArray(inputs) && !(want.length === 1 && typeof inputs[0] === 'number')) {
      if (inputs.length !== want.length) {
        throw new LiteGpuError(`${inputs.length} inputs given, the model takes ${want.length}`, 'invalid');
      }
      return inputs;
    }
    if (ArrayBuffer.isView(inputs) || isPicture(inputs) || isBuffer(inputs) || Array.isArray(inputs)) {
      if (want.length !== 1) throw new LiteGpuError(`one input given, the model takes ${want.length}`, 'invalid');
      return [inputs];
    }
    if (inputs === null || typeof inputs !== 'object') throw new LiteGpuError('inputs: an array or an object by name', 'invalid');
    return want.map((t) => {
      if (!(t.name in inputs)) throw new LiteGpuError(`input '${t.name}' is missing`, 'invalid');
      return inputs[t.name];
    });
  }

  /** Buffers for outputs, by position. */
  #wanted(outputs) {
    const all = this.#info.outputs;
    if (!outputs) return all.map(() => undefined);
    if (isBuffer(outputs)) outputs = [outputs];
    return Array.isArray(outputs) ? all.map((_, i) => outputs[i]) : all.map((t) => outputs[t.name]);
  }

  async #set(i, value, range) {
    const network = this.#open();
    const tensor = this.#info.inputs[i];
    const onDevice = isBuffer(value) || isPicture(value);
    if (onDevice) await network.prepare();
    const text = onDevice && this.#gpu ? network.input_port(i) : undefined;
    const port = text && JSON.parse(text);
    if (isBuffer(value)) {
      if (!this.#gpu) throw new LiteGpuError(`input '${tensor.name}': a GPUBuffer for a model without a GPU`, 'invalid');
      if (port && fromDense(this.#gpu, value, tensor, port, () => this.#room(`i${i}`, port.bytes))) {
        return this.#attach('i', i, this.#attached.get(`i${i}`)?.own ? undefined : value);
      }
      const bytes = await toHost(this.#gpu, value, tensor);
      this.#detach('i', i);
      return network.set(i, bytes);
    }
    if (isPicture(value)) {
      if (port && uploadPicture(this.#gpu, value, tensor, port, range, () => this.#room(`i${i}`, port.bytes), LiteGpuError)) {
        return this.#attach('i', i);
      }
      value = pixels(value, tensor, range, arrays, LiteGpuError);
    }
    this.#detach('i', i);
    network.set(i, bytesOf(value, tensor));
  }

  /** Asks for an output in device memory. */
  async #direct(i, buffer) {
    if (!buffer) return this.#detach('o', i);
    const network = this.#open();
    const tensor = this.#info.outputs[i];
    if (!isBuffer(buffer)) throw new LiteGpuError(`output '${tensor.name}': a GPUBuffer is needed`, 'invalid');
    if (!this.#gpu) throw new LiteGpuError(`output '${tensor.name}': a GPUBuffer for a model without a GPU`, 'invalid');
    await network.prepare();
    const text = network.output_port(i);
    const port = text && JSON.parse(text);
    if (!port || !toDense(this.#gpu, undefined, buffer, tensor, port)) return this.#detach('o', i);
    this.#room(`o${i}`, port.bytes);
    this.#attach('o', i);
  }

  /** A buffer of the model's own for a port. */
  #room(key, bytes) {
    let kept = this.#attached.get(key);
    if (!kept?.own || kept.buffer.size < bytes) {
      const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
      kept = { buffer: this.#gpu.device.createBuffer({ size: Math.max(32, bytes), usage }), own: true, fresh: true };
      this.#attached.set(key, kept);
    }
    return kept.buffer;
  }

  #attach(kind, i, given) {
    const key = `${kind}${i}`;
    let kept = this.#attached.get(key);
    if (given && kept?.buffer !== given) {
      kept = { buffer: given, own: false, fresh: true };
      this.#attached.set(key, kept);
    }
    if (!kept.fresh) return;
    const memory = adopt(this.#gpu, kept.buffer);
    if (kind === 'i') this.#network.attach_input(i, memory);
    else this.#network.attach_output(i, memory);
    kept.fresh = false;
  }

  #detach(kind, i) {
    const key = `${kind}${i}`;
    const kept = this.#attached.get(key);
    if (!kept) return;
    this.#attached.delete(key);
    if (kept.own) kept.buffer.destroy();
    if (kind === 'i') this.#network.attach_input(i, undefined);
    else this.#network.attach_output(i, undefined);
  }

  #results(network, wanted) {
    const list = this.#info.outputs.map((t, i) => {
      const kept = this.#attached.get(`o${i}`);
      // Nothing when the device was lost on the way and the CPU has the result.
      const text = wanted[i] && kept ? network.output_port(i) : undefined;
      if (text) {
        const port = JSON.parse(text);
        toDense(this.#gpu, kept.buffer, wanted[i], t, port);
        return { name: t.name, dtype: t.dtype, shape: port.shape, buffer: wanted[i] };
      }
      const bytes = network.output(i);
      const shape = Array.from(network.shape(i));
      if (wanted[i]) {
        const whole = new Uint8Array(Math.ceil(bytes.length / 4) * 4);
        whole.set(bytes);
        this.#gpu.device.queue.writeBuffer(wanted[i], 0, whole);
        return { name: t.name, dtype: t.dtype, shape, buffer: wanted[i] };
      }
      const Type = arrays[t.dtype] ?? Uint8Array;
      const data = new Type(bytes.buffer, bytes.byteOffset, bytes.byteLength / Type.BYTES_PER_ELEMENT);
      return { name: t.name, dtype: t.dtype, shape, data };
    });
    for (const t of [...list]) if (t.name && !(t.name in list)) list[t.name] = t;
    return list;
  }
}
if (Symbol.dispose) Model.prototype[Symbol.dispose] = Model.prototype.close;

const isBuffer = (v) => globalThis.GPUBuffer !== undefined && v instanceof GPUBuffer;

/** The bytes of one input value. */
function bytesOf(value, tensor) {
  const Type = arrays[tensor.dtype];
  if (!Type) throw new LiteGpuError(`input '${tensor.name}' has type ${tensor.dtype}, which this page cannot fill`, 'unsupported');
  if (Array.isArray(value)) value = Type.from(value);
  if (!ArrayBuffer.isView(value)) throw new LiteGpuError(`input '${tensor.name}': a typed array, a GPUBuffer or a picture is needed`, 'invalid');
  const bits = value instanceof Uint16Array && tensor.dtype === 'float16';
  if (!(value instanceof Type) && !bits && !(value instanceof Uint8ClampedArray && Type === Uint8Array)) {
    throw new LiteGpuError(`input '${tensor.name}' is ${tensor.dtype}: a ${Type.name} is needed, ${value.constructor.name} given`, 'invalid');
  }
  return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
}
