/** Element types, by TFLite's names. */
export type DType =
  | 'float32' | 'float16' | 'bfloat16' | 'float64' | 'complex64' | 'complex128'
  | 'int4' | 'uint4' | 'int8' | 'uint8' | 'int16' | 'uint16' | 'int32' | 'uint32' | 'int64' | 'uint64' | 'bool'
  | (string & {});

export interface TensorInfo {
  name: string;
  dtype: DType;
  shape: number[];
  /** [scale, zero point] when quantized per tensor. */
  quantization: [number, number] | null;
}

/**
 * Values as they lie in memory: float16 in a Float16Array where the browser has it, else (and bfloat16) as bits in a
 * Uint16Array; complex numbers as pairs; 4-bit integers two to a byte.
 */
export type Data =
  | Float32Array | Float64Array | Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array
  | BigInt64Array | BigUint64Array;

export interface Output {
  name: string;
  dtype: DType;
  shape: number[];
  /** The values; absent where `buffer` has them. */
  data: Data;
  /** The buffer that the caller gave for this output. */
  buffer?: GPUBuffer;
}

export type Picture =
  | ImageData | ImageBitmap | HTMLCanvasElement | OffscreenCanvas | HTMLImageElement | HTMLVideoElement | VideoFrame;

export type Input = Data | Uint8ClampedArray | number[] | Picture | GPUBuffer;

export interface LoadOptions {
  /** 'auto' (default): WebGPU where there is a hardware adapter, else wasm. */
  device?: 'auto' | 'gpu' | 'cpu';
  /** How the GPU stores floats. Default: 'f16' (sums are kept in f32), on software adapters without shader-f16 'f32'. */
  precision?: 'f16' | 'f32';
  /** With device 'gpu': fail instead of falling back to wasm. */
  strict?: boolean;
  /** Run on this device; GPUBuffers of it can be inputs and outputs. Default: one device that all models share. */
  gpuDevice?: GPUDevice;
  signal?: AbortSignal;
  /** Bytes received so far and in all (0 if unknown). */
  onProgress?: (done: number, total: number) => void;
  /** Keep the model in the browser's Cache API (in a cache of that name; `true`: 'litegpu') and read it from there. */
  cache?: boolean | string;
  /**
   * Choose the GPU's kernels by measuring them on this adapter, for about a second at the first load of a model; `cache`
   * keeps what was found. Default: false.
   */
  tune?: boolean;
  /**
   * Whether the runtime lives in a worker of the package's own. Default: in a page, unless `gpuDevice` is given or the
   * page cannot have one. GPUBuffers need the thread of their device: false.
   */
  worker?: boolean;
  /** Another place for the wasm module, or the module. */
  wasm?: string | URL | Response | Promise<Response> | BufferSource | WebAssembly.Module;
}

export interface RunOptions {
  signature?: string;
  /** Rejects at once when aborted; a run that has begun on the device ends in the background. */
  signal?: AbortSignal;
  /**
   * What a picture's values 0 and 255 become. Default: [0, 1] for floats; for 8-bit inputs the whole range of the type.
   */
  range?: [number, number];
  /** Buffers to leave outputs in, by position or name: elements side by side. Usage STORAGE or COPY_DST. */
  outputs?: GPUBuffer | (GPUBuffer | undefined)[] | Record<string, GPUBuffer>;
}

export interface Placement {
  node: number;
  op: string;
  /** Type and shape of the first output. */
  output: string;
  target: 'cpu' | 'gpu' | 'folded';
  /** Index into `partitions`; null when the operator does not run at all. */
  partition: number | null;
  reason: string;
}

export interface Crossing {
  tensor: number;
  name: string;
  form: string;
  bytes: number | null;
}

export interface Partition {
  target: 'cpu' | 'gpu';
  nodes: number[];
  inputs: Crossing[];
  outputs: Crossing[];
}

export interface Report {
  signature: string | null;
  requested: 'auto' | 'gpu' | 'cpu';
  /** The GPU in use, if any. */
  adapter: string | null;
  /** Why there is no GPU although one was asked for, or why 'auto' left it alone. */
  note: string | null;
  precision: 'f16' | 'f32';
  threads: number;
  placements: Placement[];
  partitions: Partition[];
  /** Bytes. */
  memory: Record<'gpu_planned' | 'gpu_lower_bound' | 'gpu_weights' | 'cpu_tensors' | 'file_constants', number>;
  /** Milliseconds, and the number of runs. */
  timings: Record<'device_ms' | 'plan_ms' | 'prepare_ms' | 'first_run_ms' | 'last_run_ms' | 'runs', number>;
}

export interface NodeTime {
  node: number;
  op: string;
  kernel: string;
  target: 'cpu' | 'gpu';
  ms: number;
}

export declare class LiteGpuError extends Error {
  readonly code: 'invalid' | 'unsupported' | 'device' | 'internal' | 'network' | 'closed';
  /** The operator that failed, where one did. */
  readonly operator?: string;
}

export declare class Model {
  private constructor();
  readonly inputs: TensorInfo[];
  readonly outputs: TensorInfo[];
  readonly signatures: string[];
  readonly report: Report;
  /** The device of the GPU parts; undefined in a worker, and when the CPU runs everything. */
  readonly device: GPUDevice | undefined;
  plan(): Placement[];
  run(inputs: Input | Input[] | Record<string, Input>, options?: RunOptions): Promise<Output[] & Record<string, Output>>;
  /** Runs once with every operator timed. */
  profile(inputs: Input | Input[] | Record<string, Input>, options?: Omit<RunOptions, 'outputs'>): Promise<NodeTime[]>;
  resize(input: number | string, shape: number[]): Promise<void>;
  /** Forgets the values of variables. */
  reset(): Promise<void>;
  close(): void;
  [Symbol.dispose](): void;
}

/** The typed array of each element type. */
export declare const arrays: Record<string, { from(values: ArrayLike<any>): Data; new (length: number): Data }>;

/** Loads the runtime ahead of the first model. */
export declare function initialize(wasm?: LoadOptions['wasm'], options?: Pick<LoadOptions, 'worker'>): Promise<void>;

/** Loads a model. */
export declare function load(
  source: string | URL | Request | Response | Blob | ArrayBuffer | ArrayBufferView,
  options?: LoadOptions,
): Promise<Model>;

/** Forgets what `load` has kept with `cache`: models, and what was measured with `tune`. */
export declare function clearCache(name?: string): Promise<boolean> | undefined;
