// What a result must satisfy: shared by the browser tests and those in Node.
export const assert = (condition, message) => {
  if (!condition) throw new Error(message);
};

const views = {
  '<f4': Float32Array, '<f8': Float64Array, '<c8': Float32Array, '<c16': Float64Array, '|i1': Int8Array, '|u1': Uint8Array,
  '<i2': Int16Array, '<u2': Uint16Array, '<i4': Int32Array, '<u4': Uint32Array, '<i8': BigInt64Array, '<u8': BigUint64Array,
  '|b1': Uint8Array, '<f2': Uint16Array,
};
const real = (View) => View === Float32Array || View === Float64Array;

// Integers exactly; floats by the manifest's tolerance or, where a `norm` is given, by the norm of the difference over the
// norm of what is expected.
function compare(got, want, tolerance, norm) {
  assert(String(got.shape) === String(want.shape), `shape [${got.shape}], expected [${want.shape}]`);
  const bytes = Buffer.from(got.bytes, 'base64');
  if (bytes.equals(Buffer.from(want.bytes))) return;
  const View = views[want.dtype];
  const a = new View(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  const b = new View(want.bytes.slice().buffer);
  assert(a.length === b.length, `${a.length} elements, expected ${b.length}`);
  if (!real(View) && !norm) {
    const i = a.findIndex((v, i) => v !== b[i]);
    throw new Error(`[${i}] is ${a[i]}, expected ${b[i]}`);
  }
  const { atol = typeof tolerance === 'number' ? tolerance : 0, rtol = 0 } = tolerance || {};
  const zero = (!real(View) && got.quantization?.[1]) || 0;
  let up = 0;
  let down = 0;
  for (let i = 0; i < a.length; i++) {
    assert(Number.isNaN(a[i]) === Number.isNaN(b[i]), `[${i}] is ${a[i]}, expected ${b[i]}`);
    if (!norm) assert(Object.is(a[i], b[i]) || !(Math.abs(a[i] - b[i]) > atol + rtol * Math.abs(b[i])), `[${i}] is ${a[i]}, expected ${b[i]}`);
    if (Number.isFinite(a[i]) && Number.isFinite(b[i])) {
      up += (a[i] - b[i]) ** 2;
      down += (b[i] - zero) ** 2;
    } else if (norm) assert(Object.is(a[i], b[i]), `[${i}] is ${a[i]}, expected ${b[i]}`);
  }
  if (norm) assert(Math.sqrt(up) <= norm * Math.sqrt(down) + 1e-6, `relative norm ${Math.sqrt(up / down)}, at most ${norm}`);
}

// As the library's own `verify` judges: 16-bit storage may add 1e-2; and each operator with quantized weights on float
// activations 16 / (127 sqrt 12), because the reference quantizes those activations as it runs and the GPU does not. Such
// errors of one operator after the other add up in quadrature. In a deep network the CPU's own rounding of activations
// needs the same: wasm lacks the fused multiply-add that the recording was made with, and what then falls on the other
// side of a half is off by a whole step.
const hybridOps = /^(CONV_2D|DEPTHWISE_CONV_2D|TRANSPOSE_CONV|CONV_3D|FULLY_CONNECTED|BATCH_MATMUL)$/;
const norm = (entry, out, half) => {
  const quantized = /dynamic|hybrid|int4/.test(entry.class) ? out.ops.filter((op) => hybridOps.test(op)).length : 0;
  if (quantized && (out.gpu || quantized > 8)) return 1e-2 + (16 / (127 * Math.sqrt(12))) * Math.sqrt(quantized);
  return half && out.gpu ? 1e-2 : 0;
};

// Manifests hold NaN, which JSON has not.
export const parse = (bytes) => JSON.parse(Buffer.from(bytes).toString().replace(/-?\b(NaN|Infinity)\b/g, 'null'));

export const known = (arrays) => Object.values(arrays).every((a) => views[a.dtype]);
// The reference is wrong in these (tests/recorded.rs says how).
export const wrongRecording = /^(quantizer-bmm_constant_input-static_wi8_ai16|identify_dilated_conv1?d?-i16x8-(57b3dc16|59798863|c30d976f|d14fc6ef|61a83164|89d57529|9f88d64f|ad6262bf|b9f3db5c|e2431df4))/;

/** The inputs of each run of a case. */
export function inputsOf(entry, arrays) {
  return Array.from({ length: entry.runs }, (_, r) => {
    const prefix = r ? `run${r}_` : '';
    const list = [];
    for (let i = 0; arrays[`${prefix}in${i}`]; i++) list.push(arrays[`${prefix}in${i}`]);
    return list;
  });
}

/** What `runModel` takes for the runs of a case. */
export const asked = (runs) => ({
  runs: runs.map((list) => list.map((a) => Buffer.from(a.bytes).toString('base64'))),
  shapes: runs[0].map((a) => a.shape),
});

/** Compares what `runModel` gave with what a case expects. */
export function judge(entry, arrays, out, precision) {
  out.results.forEach((outputs, r) =>
    outputs.forEach((o, i) => {
      const want = arrays[`${r ? `run${r}_` : ''}out${i}`];
      const float = real(views[want.dtype]) || want.dtype === '<f2';
      const allowed = norm(entry, out, precision === 'f16');
      // An integer that is rounded from float arithmetic on the GPU is as good as that.
      compare(o, want, entry.tolerance[i], float ? allowed : out.requantized ? Math.max(allowed, 1e-3) : 0);
    }),
  );
}
