/** Element types, by TFLite's names. */
export type DType =
  | 'float32' | 'float16' | 'float64' | 'int8' | 'uint8' | 'int16' | 'uint16' | 'int32' | 'uint32' | 'int64' | 'uint64' | 'bool';

export interface TensorInfo {
  name: string;
  dtype: DType;
  shape: number[];
  /** [scale, zero point] when quantized per tensor. */
  quantization: [number, number] | null;
}

export type Data =
  | Float32Array | Float64Array | Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array
  | BigInt64Array | BigUint64Array;

export interface Output {
  name: string;
  dtype: DType;
  shape: number[];
  data: Data;
}

export type Picture =
  | ImageData | ImageBitmap | HTMLCanvasElement | OffscreenCanvas | HTMLImageElement | HTMLVideoElement;

export type Input = Data | Uint8ClampedArray | number[] | Picture;

export interface LoadOptions {
  /** 'auto' (default): WebGPU where there is a hardware adapter, else wasm. */
  device?: 'auto' | 'gpu' | 'cpu';
  /** How the GPU stores activations; 'f16' (default) accumulates in f32. */
  precision?: 'f16' | 'f32';
  /** Fail instead of falling back to wasm. */
  strict?: boolean;
  signal?: AbortSignal;
  /** Bytes received so far and in all (0 if unknown). */
  onProgress?: (done: number, total: number) => void;
  /** Another place for the wasm module. */
  wasm?: string | URL | Response | Promise<Response> | BufferSource;
}

export interface RunOptions {
  signature?: string;
  signal?: AbortSignal;
  /** What pixel values 0 and 255 become in a float input; [0, 1] by default. */
  range?: [number, number];
}

export interface Placement {
  [key: string]: unknown;
}

export interface Report {
  placements: Placement[];
  [key: string]: unknown;
}

export declare class LiteGpuError extends Error {
  readonly code: 'invalid' | 'unsupported' | 'device' | 'internal' | 'network' | 'closed';
}

export declare class Model {
  readonly inputs: TensorInfo[];
  readonly outputs: TensorInfo[];
  readonly signatures: string[];
  readonly report: Report;
  plan(): Placement[];
  run(inputs: Input | Input[] | Record<string, Input>, options?: RunOptions): Promise<Output[] & Record<string, Output>>;
  resize(input: number | string, shape: number[]): Promise<void>;
  reset(): void;
  close(): void;
  [Symbol.dispose](): void;
}

/** Loads the runtime ahead of the first model. */
export declare function initialize(wasm?: LoadOptions['wasm']): Promise<unknown>;

/** Loads a model. */
export declare function load(
  source: string | URL | Request | Response | ArrayBuffer | ArrayBufferView,
  options?: LoadOptions,
): Promise<Model>;
