// Where the runtime lives: in a worker of the package's own, so that nothing it does holds up the page, or on the thread
// of the application. Both answer the same calls: `call(method, [arguments], [transferred objects])`.

import { failure } from './failure.js';

/** The compiled module; the download begins with the first call. */
let module;
/** The runtimes that have been started: 'worker' and 'here'. */
const started = {};
/** Whether this page has been found to have no worker for the runtime. */
let refused = false;

function compiled(wasm = new URL('./litegpu_web_bg.wasm', import.meta.url)) {
  module ??= compile(wasm).catch((e) => {
    module = undefined;
    // The one thing that every browser with WebGPU has and an old one may lack.
    throw failure(`the wasm module does not load (it needs fixed-width SIMD): ${e?.message ?? e}`, 'unsupported', e);
  });
  return module;
}

async function compile(wasm) {
  const source = await wasm;
  if (source instanceof WebAssembly.Module) return source;
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source)) return WebAssembly.compile(source);
  const response = source instanceof Response ? source : await fetch(source);
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  const typed = response.headers.get('content-type')?.startsWith('application/wasm');
  return typed ? WebAssembly.compileStreaming(response) : WebAssembly.compile(await response.arrayBuffer());
}

/** Whether the runtime leaves the page's thread by itself: there is a page, and nothing that has to stay with it. */
const hasPage = () => globalThis.document !== undefined && typeof Worker === 'function';

/** The runtime that a model is to live in. */
export async function hostFor({ worker, device, gpuDevice, wasm }) {
  if (gpuDevice && worker) throw failure('a GPUDevice of the page works on the page\'s own thread only (worker: true)', 'invalid');
  const aside = worker ?? (hasPage() && !gpuDevice && !refused);
  // The GPU is opened while the module loads.
  const gpu = device !== undefined && device !== 'cpu';
  if (!aside) return here(wasm, gpu, gpuDevice);
  try {
    const host = await inWorker(wasm, gpu);
    // WebGPU came to pages before it came to workers.
    if (worker || host.webgpu || device === 'cpu' || !globalThis.navigator?.gpu) return host;
  } catch (e) {
    if (worker || e?.code === 'unsupported') throw e;
    // The page's policy forbids workers, or the package lies where they cannot be loaded from.
    refused = true;
  }
  return here(wasm, gpu, gpuDevice);
}

function here(wasm, gpu, gpuDevice) {
  return once('here', async () => {
    const arriving = compiled(wasm);
    arriving.catch(() => {});
    const { Host } = await import('./runtime.js');
    const host = new Host();
    if (gpu) host.gpu(gpuDevice);
    const { webgpu } = await host.start(await arriving, 8);
    return { webgpu, local: host, call: async (method, given) => host[method](...given) };
  });
}

function inWorker(wasm, gpu) {
  return once('worker', async () => {
    // Both are on their way at once.
    const arriving = compiled(wasm);
    arriving.catch(() => {});
    const link = new Link(launch());
    try {
      if (gpu) link.call('gpu', []).catch(() => {});
      const { webgpu } = await link.call('start', [await arriving, 16]);
      return { webgpu, call: (...given) => link.call(...given), room: (bytes) => link.room(bytes) };
    } catch (e) {
      link.end(e);
      throw e;
    }
  });
}

function once(kind, start) {
  started[kind] ??= start().catch((e) => {
    started[kind] = undefined;
    throw e;
  });
  return started[kind];
}

function launch() {
  try {
    return new Worker(new URL('./runtime.js', import.meta.url), { type: 'module', name: 'litegpu runtime' });
  } catch (e) {
    // A worker's script must come from the page's own origin; what that script imports need not.
    const file = 'runtime.js';
    const text = `import ${JSON.stringify(new URL(file, import.meta.url).href)};`;
    const url = URL.createObjectURL(new Blob([text], { type: 'text/javascript' }));
    const worker = new Worker(url, { type: 'module', name: 'litegpu runtime' });
    worker.addEventListener('message', () => URL.revokeObjectURL(url), { once: true });
    return worker;
  }
}

/** Calls by message. */
class Link {
  #worker;
  #waiting = new Map();
  #calls = 0;
  #fault;
  /** Memory of the last call's inputs, which the worker has returned. */
  #spent = [];

  constructor(worker) {
    this.#worker = worker;
    worker.onmessage = ({ data: { call, result, error, spent } }) => {
      if (spent) this.#spent = spent;
      const waiting = this.#waiting.get(call);
      this.#waiting.delete(call);
      if (error) waiting?.reject(failure(error.message, error.code));
      else waiting?.resolve(result);
    };
    // A script that does not load, a module that cannot be passed on, memory that is used up: the next model gets another worker.
    worker.onmessageerror = worker.onerror = (e) => {
      e.preventDefault?.();
      started.worker = undefined;
      this.end(failure(`the worker of the runtime has failed: ${e.message ?? e.type}`, 'internal'));
    };
  }

  call(method, given, transfer = []) {
    if (this.#fault) return Promise.reject(this.#fault);
    const call = ++this.#calls;
    return new Promise((resolve, reject) => {
      this.#waiting.set(call, { resolve, reject });
      try {
        this.#worker.postMessage({ call, method, given }, transfer);
      } catch (e) {
        this.#waiting.delete(call);
        reject(e);
      }
    });
  }

  /** Memory to be given away: what has come back, where it fits. New memory is cleared, and touched for the first time. */
  room(bytes) {
    const i = this.#spent.findIndex((b) => b.byteLength === bytes);
    return new Uint8Array(i < 0 ? bytes : this.#spent.splice(i, 1)[0]);
  }

  end(fault) {
    this.#fault = fault;
    this.#worker.terminate();
    for (const { reject } of this.#waiting.values()) reject(fault);
    this.#waiting.clear();
  }
}
