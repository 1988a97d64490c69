import { LiteGpuError, load, type Output } from 'litegpu';
import modelUrl from '../../../models/sr_x2_f16.tflite?url';

const status = document.querySelector<HTMLParagraphElement>('#status')!;
const canvas = document.querySelector<HTMLCanvasElement>('#result')!;
const input = document.querySelector<HTMLInputElement>('#file')!;

const model = await load(modelUrl, {
  onProgress: (done, total) => (status.textContent = `${done} of ${total} bytes`),
});
status.textContent = `Ready on ${model.report.adapter ?? 'the CPU'}: choose a picture.`;

function draw({ shape, data }: Output) {
  const [, height, width] = shape;
  const image = new ImageData(width, height);
  for (let p = 0; p < width * height; p++) {
    for (let c = 0; c < 3; c++) image.data[4 * p + c] = 255 * Number(data[3 * p + c]);
    image.data[4 * p + 3] = 255;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext('2d')!.putImageData(image, 0, 0);
}

input.onchange = async () => {
  const file = input.files?.[0];
  if (!file) return;
  try {
    const start = performance.now();
    const [result] = await model.run(await createImageBitmap(file));
    draw(result);
    status.textContent = `${(performance.now() - start).toFixed(1)} ms`;
  } catch (e) {
    status.textContent = e instanceof LiteGpuError ? `${e.code}: ${e.message}` : String(e);
  }
};
