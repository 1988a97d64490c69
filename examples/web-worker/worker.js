// The model lives here; the page sends pictures and gets sentences.
import { load } from '../../web/npm/index.js';

const model = load('../../models/digits_int8.tflite');

self.onmessage = async ({ data: picture }) => {
  try {
    const ready = await model;
    const start = performance.now();
    const [{ data }] = await ready.run(picture);
    const best = data.indexOf(Math.max(...data));
    postMessage(`A ${best}, in ${(performance.now() - start).toFixed(1)} ms on ${ready.report.adapter ?? 'the CPU'}.`);
  } catch (e) {
    postMessage(`${e.name}: ${e.message}`);
  }
};
