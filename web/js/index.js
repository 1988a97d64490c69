// litegpu: LiteRT (.tflite) models in the page, on WebGPU where it pays and on wasm where it must.

import { arrays } from './arrays.js';
import { hostFor } from './host.js';
import { isPicture, sizeOf } from './kinds.js';

export { arrays };

/** Loads the runtime ahead of the first model. `wasm` may name another place for the module. */
export async function initialize(wasm, { worker } = {}) {
  try {
    await hostFor({ wasm, worker });
  } catch (e) {
    throw wrap(e);
  }
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

const codes = ['invalid', 'unsupported', 'device', 'network', 'closed'];
const wrap = (e) =>
  e instanceof LiteGpuError || e?.name === 'AbortError' || e?.name === 'TimeoutError'
    ? e
    : new LiteGpuError(e?.message ?? String(e), codes.includes(e?.code) ? e.code : 'internal', e);

/** Loads a model from a URL, a Request, a Response, a Blob, an ArrayBuffer or a typed array. */
export async function load(source, options = {}) {
  const { device = 'auto', precision, strict = false, signal, onProgress, gpuDevice, cache, tune = false } = options;
  signal?.throwIfAborted();
  try {
    if (!['auto', 'gpu', 'cpu'].includes(device)) throw new LiteGpuError(`device '${device}': auto, gpu or cpu`, 'invalid');
    // The runtime, the GPU and the file come side by side.
    const coming = stream(source, signal, cache);
    coming.catch(() => {});
    const host = await hostFor({ ...options, device });
    const file = await coming;
    const id = await host.call('begin', [file.total, device, gpuDevice]);
    let state;
    try {
      await receive(file, host, id, signal, onProgress);
      state = await host.call('open', [id, { device, precision, strict, tune, cache: named(cache) }]);
    } catch (e) {
      host.call('drop', [id]).catch(() => {});
      throw e;
    }
    const model = new Model(host, id, state);
    if (signal?.aborted) {
      model.close();
      signal.throwIfAborted();
    }
    return model;
  } catch (e) {
    if (signal?.aborted && e === signal.reason) throw e;
    throw wrap(e);
  }
}

/** The name of the store that `cache` asks for. */
const named = (cache) => (typeof cache === 'string' ? cache : cache ? 'litegpu' : undefined);

/** Forgets what `load` has kept with `cache`: models, and what was measured. */
export const clearCache = (name = 'litegpu') => globalThis.caches?.delete(name);

/** Chunks of a file: `{ name, total, chunks, own }`; `own`: the chunks' memory may be given away. */
async function stream(source, signal, cache) {
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source)) {
    const bytes = ArrayBuffer.isView(source)
      ? new Uint8Array(source.buffer, source.byteOffset, source.byteLength)
      : new Uint8Array(source);
    return { name: 'the bytes', total: bytes.length, chunks: (function* () { yield bytes; })(), own: false };
  }
  let response;
  if (source instanceof Blob) response = new Response(source, { headers: { 'content-length': source.size } });
  else if (source instanceof Response) response = source;
  else response = await request(source, signal, cache);
  const name = response.url || String(source);
  if (!response.ok) throw new LiteGpuError(`cannot fetch ${name}: HTTP ${response.status}`, 'network');
  const total = Number(response.headers.get('content-length')) || 0;
  return { name, total, chunks: read(response, name, signal), own: true };
}

async function* read(response, name, signal) {
  const reader = response.body.getReader();
  try {
    for (;;) {
      signal?.throwIfAborted();
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (e) {
    if (e?.name === 'AbortError' || e?.code || signal?.aborted) throw e;
    throw new LiteGpuError(`the download of ${name} broke off: ${e?.message ?? e}`, 'network', e);
  }
}

/** Brings a file into the module's memory, chunk by chunk as it arrives. */
async function receive(file, host, id, signal, onProgress) {
  let done = 0;
  let pushed;
  for await (const chunk of file.chunks) {
    signal?.throwIfAborted();
    await pushed;
    done += chunk.length;
    const given = host.local ? chunk : file.own ? whole(chunk) : chunk.slice();
    pushed = host.call('push', [id, given], host.local ? [] : [given.buffer]);
    // It is awaited before the next one.
    pushed.catch(() => {});
    onProgress?.(done, file.total);
  }
  await pushed;
}

/** The chunk in memory of its own. */
const whole = (chunk) => (chunk.byteLength === chunk.buffer.byteLength ? chunk : chunk.slice());

/** A response from the network, or from the page's store of models. */
async function request(source, signal, cache) {
  const fetched = async () => {
    try {
      return await fetch(source, { signal });
    } catch (e) {
      if (e?.name === 'AbortError' || signal?.aborted) throw e;
      throw new LiteGpuError(`cannot fetch ${source?.url ?? source}: ${e?.message ?? e}`, 'network', e);
    }
  };
  if (!cache || !globalThis.caches) return fetched();
  let store;
  try {
    store = await caches.open(named(cache));
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
  #host;
  #id;
  #queue = Promise.resolve();
  #signature;
  #info;
  /** The report as text, and what has changed since. */
  #report = '{}';
  #news = '{}';

  constructor(host, id, state) {
    this.#host = host;
    this.#id = id;
    this.#learn(state);
  }

  #learn({ info, news }) {
    if (info) this.#info = info;
    // Only a plan that is new comes with every field.
    if (news.includes('"placements":')) [this.#report, this.#news] = [news, '{}'];
    else this.#news = news;
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
    this.#open();
    return { ...JSON.parse(this.#report), ...JSON.parse(this.#news) };
  }
  /** The WebGPU device that the model's GPU parts run on; none in a worker, or when the CPU runs everything. */
  get device() {
    return this.report.adapter ? this.#host.local?.device(this.#id) : undefined;
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
      await this.#select(signature);
      const { list, transfer } = await this.#given(inputs);
      const wanted = this.#wanted(outputs);
      const result = await this.#call('run', [list, range, wanted], transfer);
      return this.#results(result.outputs);
    });
  }

  /** Runs once with each operator timed: `[{ node, op, kernel, target, ms }]`. */
  profile(inputs, { signature, signal, range } = {}) {
    return this.#enqueue(signal, async () => {
      await this.#select(signature);
      const { list, transfer } = await this.#given(inputs);
      const { times } = await this.#call('profile', [list, range], transfer);
      return JSON.parse(times);
    });
  }

  /** Changes an input's shape; by index or name. */
  resize(input, shape) {
    return this.#enqueue(undefined, async () => {
      const i = typeof input === 'number' ? input : this.#info.inputs.findIndex((t) => t.name === input);
      await this.#call('resize', [i < 0 ? this.#info.inputs.length : i, Array.from(shape)]);
    });
  }

  /** Forgets state between runs (variables). */
  reset() {
    return this.#enqueue(undefined, async () => void (await this.#call('reset', [])));
  }

  /** Frees the model's memory on both sides, when the runs under way have ended. */
  close() {
    const host = this.#host;
    this.#host = undefined;
    if (host) this.#queue = this.#queue.then(() => host.call('close', [this.#id])).catch(() => {});
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
    if (!this.#host) throw new LiteGpuError('the model is closed', 'closed');
    return this.#host;
  }

  async #call(method, given, transfer) {
    const result = await this.#open().call(method, [this.#id, ...given], transfer);
    if (result?.news) this.#learn(result);
    return result;
  }

  async #select(signature) {
    if (signature === this.#signature) return;
    await this.#call('select', [signature]);
    this.#signature = signature;
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

  /** Inputs as the runtime takes them, and what of them leaves this thread for good. */
  async #given(inputs) {
    const { local, room } = this.#open();
    const list = [];
    const transfer = [];
    for (const [i, value] of this.#ordered(inputs).entries()) {
      const tensor = this.#info.inputs[i];
      if (isBuffer(value)) {
        if (!local) throw new LiteGpuError(`input '${tensor.name}': a GPUBuffer ${elsewhere}`, 'invalid');
        list.push({ buffer: value });
      } else if (isPicture(value)) {
        const picture = local ? value : await portable(value, tensor);
        if (picture !== value) transfer.push(picture);
        list.push({ picture });
      } else {
        const given = bytesOf(value, tensor);
        const bytes = local ? given : await copied(given, room(given.length));
        if (!local) transfer.push(bytes.buffer);
        list.push({ bytes });
      }
    }
    return { list, transfer };
  }

  /** Buffers for outputs, by position. */
  #wanted(outputs) {
    const all = this.#info.outputs;
    if (!outputs) return all.map(() => undefined);
    if (isBuffer(outputs)) outputs = [outputs];
    return all.map((t, i) => {
      const buffer = Array.isArray(outputs) ? outputs[i] : outputs[t.name];
      if (!buffer) return undefined;
      if (!isBuffer(buffer)) throw new LiteGpuError(`output '${t.name}': a GPUBuffer is needed`, 'invalid');
      if (!this.#open().local) throw new LiteGpuError(`output '${t.name}': a GPUBuffer ${elsewhere}`, 'invalid');
      return buffer;
    });
  }

  #results(outputs) {
    const list = outputs.map(({ shape, bytes, buffer }, i) => {
      const { name, dtype } = this.#info.outputs[i];
      if (buffer) return { name, dtype, shape, buffer };
      const Type = arrays[dtype] ?? Uint8Array;
      const data = new Type(bytes.buffer, bytes.byteOffset, bytes.byteLength / Type.BYTES_PER_ELEMENT);
      return { name, dtype, shape, data };
    });
    for (const t of [...list]) if (t.name && !(t.name in list)) list[t.name] = t;
    return list;
  }
}
if (Symbol.dispose) Model.prototype[Symbol.dispose] = Model.prototype.close;

const isBuffer = (v) => globalThis.GPUBuffer !== undefined && v instanceof GPUBuffer;
const elsewhere = 'cannot be passed to the worker that the model is in: load it with `gpuDevice`, the device of the buffer';

/** The picture as something that can be sent to a worker; the caller keeps its own. */
async function portable(picture, tensor) {
  if (globalThis.ImageData && picture instanceof ImageData) return picture;
  if (globalThis.VideoFrame && picture instanceof VideoFrame) return picture.clone();
  if (!sizeOf(picture).every(Boolean)) throw new LiteGpuError(`input '${tensor.name}': the picture is empty or has not been loaded`, 'invalid');
  return createImageBitmap(picture);
}

/** Bytes that are copied before the page gets a turn. */
const PIECE = 1 << 21;

/** The bytes in memory that can be given away. */
async function copied(bytes, copy) {
  for (let at = 0; at < bytes.length; at += PIECE) {
    if (at) await turn();
    copy.set(bytes.subarray(at, at + PIECE), at);
  }
  return copy;
}

/** Resolves in a later task. */
const turn = () =>
  new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => resolve(port1.close());
    port2.postMessage(0);
  });

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
