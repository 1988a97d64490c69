// Runs a model on encoded inputs, in a page or in Node.
const decode = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const encode = (bytes) => {
  let text = '';
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
};
// Loads a model, runs it on each list of inputs (base64 of little-endian bytes), returns outputs likewise.
export async function runModel(litegpu, { url, bytes, device, precision, runs, shapes, repeat = 0, wasm }) {
  const t0 = performance.now();
  const model = await litegpu.load(bytes ? decode(bytes) : url, { device, precision, strict: device === 'gpu', wasm });
  const load_ms = performance.now() - t0;
  for (const [i, shape] of (shapes ?? []).entries()) {
    if (String(model.inputs[i].shape) !== String(shape)) await model.resize(i, shape);
  }
  const results = [];
  let first_ms;
  let feed;
  for (const inputs of runs) {
    feed = inputs.map((text, i) => {
      const bytes = decode(text);
      return new litegpu.arrays[model.inputs[i].dtype](bytes.buffer);
    });
    const t = performance.now();
    const outputs = await model.run(feed);
    first_ms ??= performance.now() - t;
    results.push(outputs.map((o, i) => ({ shape: o.shape, dtype: o.dtype, quantization: model.outputs[i].quantization, bytes: encode(new Uint8Array(o.data.buffer, o.data.byteOffset, o.data.byteLength)) })));
  }
  const times = [];
  for (let i = 0; i < repeat; i++) {
    const t = performance.now();
    await model.run(feed);
    times.push(performance.now() - t);
  }
  const report = model.report;
  model.close();
  const onGpu = report.placements.filter((p) => p.target === 'gpu' && p.partition !== null);
  const ops = report.placements.filter((p) => p.partition !== null).map((p) => p.op);
  // Float arithmetic on the GPU before an integer result.
  const requantized = onGpu.some((p) => /^float/.test(p.output));
  return { ops, requantized, results, load_ms, first_ms, times, adapter: report.adapter, note: report.note, gpu: report.placements.filter((p) => p.target === 'gpu' && p.partition !== null).length, cpu: report.placements.filter((p) => p.target === 'cpu' && p.partition !== null).length };
}
