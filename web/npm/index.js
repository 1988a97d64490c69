// litegpu: LiteRT (.tflite) models in the page, on WebGPU where it pays and on wasm where it must.

import init, { Network, Upload } from './litegpu_web.js';

let ready;

/** Loads the runtime ahead of the first model. `wasm` may name another place for the module. */
export function initialize(wasm = new URL('./litegpu_web_bg.wasm', import.meta.url)) {
  ready ??= init({ module_or_path: wasm }).catch((e) => {
    ready = undefined;
    throw e;
  });
  return ready;
}

/** What went wrong; `code` is 'invalid', 'unsupported', 'device', 'internal', 'network' or 'closed'. */
export class LiteGpuError extends Error {
  constructor(message, code, cause) {
    super(message, { cause });
    this.name = 'LiteGpuError';
    this.code = code;
  }
}

const arrays = {
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
};

const wrap = (e) =>
  e instanceof LiteGpuError || e?.name === 'AbortError' ? e : new LiteGpuError(e?.message ?? String(e), e?.code ?? 'internal', e);

/** Loads a model from a URL, a Response, an ArrayBuffer or a typed array. */
export async function load(source, options = {}) {
  const { device = 'auto', precision = 'f16', strict = false, signal, onProgress, wasm } = options;
  signal?.throwIfAborted();
  try {
    await initialize(wasm);
    const file = await receive(source, signal, onProgress);
    signal?.throwIfAborted();
    const network = await Network.open(file, device, precision, strict);
    if (signal?.aborted) {
      network.free();
      signal.throwIfAborted();
    }
    return new Model(network);
  } catch (e) {
    throw wrap(e);
  }
}

/** Brings a file into the module's memory, chunk by chunk as it arrives. */
async function receive(source, signal, onProgress) {
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source)) {
    const bytes = ArrayBuffer.isView(source)
      ? new Uint8Array(source.buffer, source.byteOffset, source.byteLength)
      : new Uint8Array(source);
    const file = new Upload(bytes.length);
    file.push(bytes);
    onProgress?.(bytes.length, bytes.length);
    return file;
  }
  const response = source instanceof Response ? source : await fetch(source, { signal });
  if (!response.ok) {
    throw new LiteGpuError(`cannot fetch ${response.url || source}: HTTP ${response.status}`, 'network');
  }
  const total = Number(response.headers.get('content-length')) || 0;
  const file = new Upload(total);
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
  return file;
}

/** A model ready to run. Runs are queued: a second `run` starts when the first has ended. */
export class Model {
  #network;
  #queue = Promise.resolve();
  #signature;
  #info;

  constructor(network) {
    this.#network = network;
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
  /** Where each operator runs, and why. */
  plan() {
    return this.report.placements;
  }

  /**
   * Runs the model on an array of inputs, an object by name, or a single input. An input is a typed array (or an array of
   * numbers), or a picture for an input of shape [1, height, width, 1 | 3 | 4]. Resolves to an array of
   * `{ name, dtype, shape, data }`, whose entries are also properties by name.
   */
  run(inputs, { signature, signal, range } = {}) {
    const job = async () => {
      signal?.throwIfAborted();
      const network = this.#open();
      try {
        if (signature !== this.#signature) {
          network.select(signature);
          this.#signature = signature;
          this.#info = JSON.parse(network.describe());
        }
        const list = this.#ordered(inputs);
        list.forEach((value, i) => network.set(i, bytesOf(value, this.#info.inputs[i], range)));
        await network.invoke();
        signal?.throwIfAborted();
        return this.#results(network);
      } catch (e) {
        throw wrap(e);
      }
    };
    const result = this.#queue.then(job);
    this.#queue = result.catch(() => {});
    return result;
  }

  /** Changes an input's shape; by index or name. */
  resize(input, shape) {
    const job = () => {
      const i = typeof input === 'number' ? input : this.#info.inputs.findIndex((t) => t.name === input);
      try {
        this.#open().resize(i, new Uint32Array(shape));
      } catch (e) {
        throw wrap(e);
      }
      this.#info = JSON.parse(this.#network.describe());
    };
    const result = this.#queue.then(job);
    this.#queue = result.catch(() => {});
    return result;
  }

  /** Forgets state between runs (variables). */
  reset() {
    this.#open().reset();
  }

  /** Frees the model's memory on both sides. */
  close() {
    const network = this.#network;
    this.#network = undefined;
    if (network) this.#queue = this.#queue.then(() => network.free());
  }

  #open() {
    if (!this.#network) throw new LiteGpuError('the model is closed', 'closed');
    return this.#network;
  }

  #ordered(inputs) {
    const want = this.#info.inputs;
    if (Array.isArray(inputs) && !(want.length === 1 && typeof inputs[0] === 'number')) {
      if (inputs.length !== want.length) {
        throw new LiteGpuError(`${inputs.length} inputs given, the model takes ${want.length}`, 'invalid');
      }
      return inputs;
    }
    if (ArrayBuffer.isView(inputs) || isPicture(inputs) || Array.isArray(inputs)) {
      if (want.length !== 1) throw new LiteGpuError(`one input given, the model takes ${want.length}`, 'invalid');
      return [inputs];
    }
    return want.map((t) => {
      if (!(t.name in inputs)) throw new LiteGpuError(`input '${t.name}' is missing`, 'invalid');
      return inputs[t.name];
    });
  }

  #results(network) {
    const list = this.#info.outputs.map((t, i) => {
      const bytes = network.output(i);
      const shape = Array.from(network.shape(i));
      const Type = arrays[t.dtype] ?? Uint8Array;
      const data = new Type(bytes.buffer, bytes.byteOffset, bytes.byteLength / Type.BYTES_PER_ELEMENT);
      return { name: t.name, dtype: t.dtype, shape, data };
    });
    for (const t of [...list]) if (t.name && !(t.name in list)) list[t.name] = t;
    return list;
  }
}
if (Symbol.dispose) Model.prototype[Symbol.dispose] = Model.prototype.close;

const isPicture = (v) =>
  ['ImageData', 'ImageBitmap', 'HTMLCanvasElement', 'OffscreenCanvas', 'HTMLImageElement', 'HTMLVideoElement', 'VideoFrame'].some(
    (n) => globalThis[n] && v instanceof globalThis[n],
  );

/** The bytes of one input value. */
function bytesOf(value, tensor, range = [0, 1]) {
  if (isPicture(value)) value = pixels(value, tensor, range);
  const Type = arrays[tensor.dtype];
  if (!Type) throw new LiteGpuError(`input '${tensor.name}' has type ${tensor.dtype}, which this page cannot fill`, 'unsupported');
  if (Array.isArray(value)) value = Type.from(value);
  if (!ArrayBuffer.isView(value)) throw new LiteGpuError(`input '${tensor.name}': a typed array or a picture is needed`, 'invalid');
  if (!(value instanceof Type) && !(value instanceof Uint8ClampedArray && Type === Uint8Array)) {
    throw new LiteGpuError(`input '${tensor.name}' is ${tensor.dtype}: a ${Type.name} is needed, ${value.constructor.name} given`, 'invalid');
  }
  return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
}

/** Resizes a picture to the input's shape and scales its values to `range`, or by the input's quantization. */
function pixels(picture, tensor, [low, high]) {
  const [n, height, width, channels] = tensor.shape;
  if (tensor.shape.length !== 4 || n !== 1 || ![1, 3, 4].includes(channels)) {
    throw new LiteGpuError(`input '${tensor.name}' of shape [${tensor.shape}] takes no picture`, 'invalid');
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  if (picture instanceof ImageData) {
    const whole = new OffscreenCanvas(picture.width, picture.height);
    whole.getContext('2d').putImageData(picture, 0, 0);
    picture = whole;
  }
  context.drawImage(picture, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const Type = arrays[tensor.dtype];
  const out = new Type(width * height * channels);
  const [scale, zero] = tensor.quantization ?? [1, 0];
  const limits = { int8: [-128, 127], uint8: [0, 255], int16: [-32768, 32767] }[tensor.dtype];
  const set = limits
    ? (i, v) => (out[i] = Math.min(limits[1], Math.max(limits[0], Math.round((low + ((high - low) * v) / 255) / scale) + zero)))
    : (i, v) => (out[i] = low + ((high - low) * v) / 255);
  for (let p = 0; p < width * height; p++) {
    if (channels === 1) {
      set(p, 0.299 * data[4 * p] + 0.587 * data[4 * p + 1] + 0.114 * data[4 * p + 2]);
    } else {
      for (let c = 0; c < channels; c++) set(p * channels + c, data[4 * p + c]);
    }
  }
  return out;
}
