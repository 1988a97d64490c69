// Reads .npz files: a zip of .npy arrays.
import { unzipSync } from 'fflate';

/** name -> { shape, dtype, bytes } */
export function readNpz(bytes) {
  const out = {};
  for (const [name, data] of Object.entries(unzipSync(bytes))) {
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    const wide = data[6] > 1;
    const length = wide ? view.getUint32(8, true) : view.getUint16(8, true);
    const start = wide ? 12 : 10;
    const header = new TextDecoder('latin1').decode(data.subarray(start, start + length));
    const shape = header.match(/'shape':\s*\(([^)]*)\)/)[1].split(',').map((s) => s.trim()).filter(Boolean).map(Number);
    const dtype = header.match(/'descr':\s*'([^']*)'/)[1];
    out[name.replace(/\.npy$/, '')] = { shape, dtype, bytes: data.slice(start + length) };
  }
  return out;
}
