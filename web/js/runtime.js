// The runtime: the wasm module and what it needs of the browser, on whatever thread this file is loaded. It is the
// script of the package's own worker, and it is imported where the runtime has to live on the page's thread.

import init, { Network, Upload, functions } from './litegpu_web.js';
import relaxed from './relaxed.wasm';
import { adopt, fromDense, gpuFor, lent, toDense, toHost } from './device.js';
import { failure } from './failure.js';
import { kept, keep } from './tuned.js';
import { pixels, uploadPicture } from './picture.js';

/** A model in the module's memory. */
class Loaded {
  #network;
  #gpu;
  #info;
  /** Device memory that stands for an input or output: 'i0' or 'o0' -> { buffer, own }. */
  #attached = new Map();

  constructor(network, gpu) {
    this.#network = network;
    this.#gpu = gpu;
    this.#info = JSON.parse(network.describe());
  }

  get device() {
    return this.#gpu?.device;
  }

  /** What the application's side has to know: of the report, what has changed. */
  state(described) {
    return { info: described ? this.#info : undefined, news: this.#network.news() };
  }

  select(signature) {
    this.#network.select(signature);
    this.#renewed();
  }

  resize(input, shape) {
    this.#network.resize(input, new Uint32Array(shape));
    this.#renewed();
  }

  reset() {
    this.#network.reset();
  }

  #renewed() {
    this.#attached.clear();
    this.#info = JSON.parse(this.#network.describe());
  }

  async run(inputs, range, wanted) {
    for (const [i, input] of inputs.entries()) await this.#set(i, input, range);
    for (const [i, buffer] of wanted.entries()) await this.#direct(i, buffer);
    await this.#network.invoke();
    return this.#info.outputs.map((t, i) => this.#result(t, i, wanted[i]));
  }

  async profile(inputs, range) {
    for (const [i, input] of inputs.entries()) await this.#set(i, input, range);
    this.#network.set_profile(true);
    try {
      await this.#network.invoke();
      return this.#network.times();
    } finally {
      this.#network.set_profile(false);
    }
  }

  free() {
    for (const { buffer, own } of this.#attached.values()) if (own) buffer.destroy();
    this.#network.free();
  }

  /** Sets an input from `{ bytes }`, `{ picture }` or `{ buffer }`. */
  async #set(i, { bytes, picture, buffer }, range) {
    const network = this.#network;
    const tensor = this.#info.inputs[i];
    if (buffer || picture) {
      await network.prepare();
      const text = this.#gpu ? network.input_port(i) : undefined;
      const port = text && JSON.parse(text);
      if (buffer) {
        if (!this.#gpu) throw failure(`input '${tensor.name}': a GPUBuffer for a model without a GPU`, 'invalid');
        if (port && fromDense(this.#gpu, buffer, tensor, port, () => this.#room(`i${i}`, port.bytes))) {
          return this.#attach('i', i, this.#attached.get(`i${i}`)?.own ? undefined : buffer);
        }
        bytes = await toHost(this.#gpu, buffer, tensor);
      } else {
        if (port && uploadPicture(this.#gpu, picture, tensor, port, range, () => this.#room(`i${i}`, port.bytes))) {
          return this.#attach('i', i);
        }
        const { buffer, byteOffset, byteLength } = pixels(picture, tensor, range);
        bytes = new Uint8Array(buffer, byteOffset, byteLength);
      }
    }
    this.#detach('i', i);
    network.set(i, bytes);
  }

  /** Asks for an output in device memory. */
  async #direct(i, buffer) {
    if (!buffer) return this.#detach('o', i);
    const network = this.#network;
    const tensor = this.#info.outputs[i];
    if (!this.#gpu) throw failure(`output '${tensor.name}': a GPUBuffer for a model without a GPU`, 'invalid');
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

  /** `{ shape, bytes }`, or `{ shape, buffer }` where the caller's buffer has the values. */
  #result(tensor, i, wanted) {
    const network = this.#network;
    const kept = this.#attached.get(`o${i}`);
    // Nothing when the device was lost on the way and the CPU has the result.
    const text = wanted && kept ? network.output_port(i) : undefined;
    if (text) {
      const port = JSON.parse(text);
      toDense(this.#gpu, kept.buffer, wanted, tensor, port);
      return { shape: port.shape, buffer: wanted };
    }
    const bytes = network.output(i);
    const shape = Array.from(network.shape(i));
    if (!wanted) return { shape, bytes };
    const whole = new Uint8Array(Math.ceil(bytes.length / 4) * 4);
    whole.set(bytes);
    this.#gpu.device.queue.writeBuffer(wanted, 0, whole);
    return { shape, buffer: wanted };
  }
}

/** Gives the module the kernels that need relaxed SIMD, where the browser has it. */
function fuse({ memory, litegpu_fused: set }) {
  if (!WebAssembly.validate(relaxed)) return;
  const { rows_f32, depthwise_f32 } = new WebAssembly.Instance(new WebAssembly.Module(relaxed), { env: { memory } }).exports;
  set(functions().grow(1, rows_f32), functions().grow(1, depthwise_f32));
}

/** The calls that the application's side makes, directly or by message. Models and files on their way go by number. */
export class Host {
  #files = new Map();
  #models = new Map();
  #next = 1;
  #slice;

  /** `slice`: how long, in milliseconds, the CPU may work before this thread gets a turn. */
  async start(module, slice) {
    this.#slice = slice;
    fuse(await init({ module_or_path: module }));
    return { webgpu: Boolean(globalThis.navigator?.gpu) };
  }

  /** Opens the GPU ahead of the first model. */
  gpu(device) {
    gpuFor(device).catch(() => {});
  }

  /** A file is about to come, and the GPU may be opened meanwhile. */
  begin(bytes, device, gpuDevice) {
    const gpu = device === 'cpu' ? undefined : gpuFor(gpuDevice).catch((e) => ({ reason: e?.message ?? String(e) }));
    this.#files.set(this.#next, { upload: new Upload(bytes), gpu });
    return this.#next++;
  }

  push(id, chunk) {
    this.#files.get(id)?.upload.push(chunk);
  }

  drop(id) {
    this.#files.get(id)?.upload.free();
    this.#files.delete(id);
  }

  async open(id, { device, precision, strict, tune, cache }) {
    const { upload, gpu } = this.#files.get(id);
    this.#files.delete(id);
    const opened = await gpu;
    if (strict && opened && !opened.device) {
      upload.free();
      throw failure(opened.reason, 'device');
    }
    const ready = opened?.device ? await lent(opened) : undefined;
    if (tune && ready) ready.tune(await kept(cache));
    const half = precision ?? (opened?.software && !opened.half ? 'f32' : 'f16');
    const network = await Network.open(upload, device, half, strict, ready?.share(), this.#slice);
    if (tune && ready) await keep(cache, ready.tuned());
    const model = new Loaded(network, opened?.device ? opened : undefined);
    this.#models.set(id, model);
    return model.state(true);
  }

  /** The GPU device of a model; only on the application's own thread. */
  device(id) {
    return this.#models.get(id).device;
  }

  select(id, signature) {
    this.#models.get(id).select(signature);
    return this.#models.get(id).state(true);
  }

  resize(id, input, shape) {
    this.#models.get(id).resize(input, shape);
    return this.#models.get(id).state(true);
  }

  reset(id) {
    this.#models.get(id).reset();
  }

  async run(id, inputs, range, wanted) {
    const outputs = await this.#models.get(id).run(inputs, range, wanted);
    return { outputs, ...this.#models.get(id).state(false) };
  }

  async profile(id, inputs, range) {
    const times = await this.#models.get(id).profile(inputs, range);
    return { times, ...this.#models.get(id).state(false) };
  }

  close(id) {
    this.#models.get(id)?.free();
    this.#models.delete(id);
  }
}

/** The name of the package's own worker, by which this file knows that it is its script. */
if (globalThis.name === 'litegpu runtime' && globalThis.WorkerGlobalScope) {
  const host = new Host();
  globalThis.onmessage = async ({ data: { call, method, given } }) => {
    try {
      const result = await host[method](...given);
      // Results are the receiver's, and so is the memory that inputs came in: the next ones can use it.
      const spent = result?.outputs && given[1].flatMap((i) => i.bytes?.buffer ?? []);
      postMessage({ call, result, spent }, spent ? [...result.outputs.map((o) => o.bytes.buffer), ...spent] : []);
    } catch (e) {
      postMessage({ call, error: { message: e?.message ?? String(e), code: e?.code ?? 'internal' } });
    } finally {
      // Pictures were sent, or copies of them: they hold memory until they are closed.
      if (method === 'run' || method === 'profile') for (const { picture } of given[1]) picture?.close?.();
    }
  };
}
