// The demo: a model, a picture, the result, and where every operator ran.
import { load } from '../npm/index.js';

const $ = (id) => document.getElementById(id);
const shipped = [
  ['Super-resolution ×2, float16', '../../models/sr_x2_f16.tflite', '../../models/samples/sr_input.png'],
  ['Super-resolution ×2, int8', '../../models/sr_x2_int8.tflite', '../../models/samples/sr_input.png'],
  ['Super-resolution ×2, 16x8', '../../models/sr_x2_16x8.tflite', '../../models/samples/sr_input.png'],
  ['Digits, float32', '../../models/digits_f32.tflite', '../../models/samples/digit_3.png'],
  ['Digits, int8', '../../models/digits_int8.tflite', '../../models/samples/digit_7.png'],
];
const digitLabels = [...'0123456789'];

let source; // URL or bytes of the model
let picture; // what is drawn into the input
let busy = false;
let camera;
let watching; // the camera loop that is running

for (const [i, [name]] of shipped.entries()) $('model').append(new Option(name, i));

const say = (text) => ($('status').textContent = text);
const ms = (t) => `${t < 10 ? t.toFixed(2) : t.toFixed(0)} ms`;
const range = () => $('range').value.split(',').map(Number);

async function decode(blobOrUrl) {
  const blob = blobOrUrl instanceof Blob ? blobOrUrl : await (await fetch(blobOrUrl)).blob();
  return createImageBitmap(blob);
}

async function go() {
  if (busy) return;
  busy = true;
  watching = undefined;
  try {
    await compare();
  } catch (e) {
    say(`${e.name}: ${e.message}`);
    console.error(e);
  } finally {
    busy = false;
    document.body.dataset.ready = 'yes';
  }
}

// Runs the chosen device, then the CPU on the same input, and shows both.
async function compare() {
  const wanted = $('device').value;
  const rows = [];
  let [shown, note, live] = [false, '', undefined];
  for (const device of wanted === 'cpu' ? ['cpu'] : [wanted, 'cpu']) {
    say(`Loading the model for ${device}…`);
    const t0 = performance.now();
    const model = await load(source, {
      device,
      onProgress(done, total) {
        $('progress').hidden = done >= total;
        $('progress').value = total ? done / total : 0;
      },
    });
    const loaded = performance.now() - t0;
    const inputs = inputsFor(model);
    const t1 = performance.now();
    let outputs = await model.run(inputs, { range: range() });
    const first = performance.now() - t1;
    const times = [];
    for (let i = 0; i < 10; i++) {
      const t = performance.now();
      outputs = await model.run(inputs, { range: range() });
      times.push(performance.now() - t);
    }
    times.sort((a, b) => a - b);
    const report = model.report;
    const used = report.adapter && report.partitions.some((p) => p.target === 'gpu') ? `GPU: ${report.adapter}` : 'CPU (wasm)';
    rows.push({ used, loaded, first, median: times[5], outputs });
    if (!shown) {
      shown = true;
      draw(model, outputs);
      plan(report);
      bars(await model.profile(inputs, { range: range() }));
    }
    if (report.note) note = report.note;
    const onCpu = report.adapter === null;
    if (device === wanted && camera) live = { model, inputs };
    else model.close();
    // The same twice tells nothing.
    if (onCpu) break;
  }
  $('timing').replaceChildren(
    ...rows.map((r) => {
      const difference = r === rows[0] ? '' : String(largestDifference(rows[0].outputs, r.outputs).toPrecision(3));
      return row([r.used, ms(r.loaded), ms(r.first), ms(r.median), difference]);
    }),
  );
  say(note ? `Done. ${note}` : 'Done.');
  if (live) watch(live.model);
}

// Runs on every frame of the camera until it is stopped or something else is chosen.
async function watch(model) {
  const mine = (watching = {});
  while (camera && watching === mine) {
    const t = performance.now();
    const outputs = await model.run(inputsFor(model), { range: range() });
    draw(model, outputs);
    say(`Camera: ${ms(performance.now() - t)} a frame.`);
    await new Promise(requestAnimationFrame);
  }
  model.close();
}

function inputsFor(model) {
  return model.inputs.map((t) => {
    const isPicture = t.shape.length === 4 && t.shape[0] === 1 && [1, 3, 4].includes(t.shape[3]);
    if (isPicture && picture) {
      const [w, h] = [picture.videoWidth || picture.width, picture.videoHeight || picture.height];
      const canvas = $('input');
      canvas.width = w;
      canvas.height = h;
      canvas.getContext('2d').drawImage(picture, 0, 0);
      $('input-caption').textContent = `input, ${w}×${h} to ${t.shape[2]}×${t.shape[1]}`;
      return picture;
    }
    const n = t.shape.reduce((a, b) => a * b, 1);
    const types = { float32: Float32Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array, int32: Int32Array };
    return new (types[t.dtype] ?? Uint8Array)(n);
  });
}

function largestDifference(a, b) {
  let worst = 0;
  a.forEach((t, i) => {
    for (let j = 0; j < t.data.length; j++) worst = Math.max(worst, Math.abs(Number(t.data[j]) - Number(b[i].data[j])));
  });
  return worst;
}

function draw(model, outputs) {
  const image = outputs.find((t) => t.shape.length === 4 && t.shape[1] > 7 && t.shape[2] > 7);
  const info = image && model.outputs[outputs.indexOf(image)];
  $('gpu-figure').hidden = !image;
  if (image) {
    const [, h, w, c] = image.shape;
    const canvas = $('output');
    canvas.width = w;
    canvas.height = h;
    const pixels = new ImageData(w, h);
    const [scale, zero] = info.quantization ?? [1, 0];
    const [low, high] = range();
    const value = (i) => (255 * ((Number(image.data[i]) - zero) * scale - low)) / (high - low);
    for (let p = 0; p < w * h; p++) {
      for (let k = 0; k < 3; k++) pixels.data[4 * p + k] = value(p * c + (c >= 3 ? k : 0));
      pixels.data[4 * p + 3] = 255;
    }
    canvas.getContext('2d').putImageData(pixels, 0, 0);
    $('output-caption').textContent = `output, ${w}×${h}`;
  }
  const scores = outputs.find((t) => t.shape.length === 2 && t.shape[1] > 1);
  $('labels').replaceChildren();
  if (scores) {
    const [scale, zero] = model.outputs[outputs.indexOf(scores)].quantization ?? [1, 0];
    const labels = scores.data.length === 10 ? digitLabels : [];
    const ranked = Array.from(scores.data, (v, i) => [(Number(v) - zero) * scale, i]).sort((a, b) => b[0] - a[0]);
    for (const [v, i] of ranked.slice(0, 5)) {
      const li = document.createElement('li');
      const meter = Object.assign(document.createElement('meter'), { value: v, max: 1 });
      li.append(`${labels[i] ?? `class ${i}`} ${(100 * v).toFixed(1)} %`, meter);
      $('labels').append(li);
    }
  }
}

function plan(report) {
  const on = (p) => (p.partition === null ? 'none' : p.target);
  const count = (k) => report.placements.filter((p) => on(p) === k).length;
  const parts = (k) => report.partitions.filter((p) => p.target === k).length;
  $('plan-text').innerHTML = '';
  $('plan-text').append(
    `${report.placements.length} operators: `,
    span('gpu-text', `${count('gpu')} on the GPU in ${parts('gpu')} part(s)`),
    ', ',
    span('cpu-text', `${count('cpu')} on the CPU in ${parts('cpu')} part(s)`),
    `, ${count('none')} not needed.`,
  );
  $('plan-drawing').replaceChildren(
    ...report.placements.map((p) => {
      const bar = document.createElement('i');
      bar.className = on(p);
      bar.setAttribute('aria-hidden', 'true');
      bar.title = `${p.node} ${p.op}: ${p.reason}`;
      return bar;
    }),
  );
  $('plan-table').replaceChildren(...report.placements.map((p) => row([p.node, p.op, p.output, on(p), p.reason])));
}

// The slowest operators, longest first, and what the others take together.
function bars(times) {
  const known = times.filter((t) => t.ms > 0).sort((a, b) => b.ms - a.ms);
  const total = known.reduce((sum, t) => sum + t.ms, 0);
  const first = known.slice(0, 12);
  const rest = known.slice(12).reduce((sum, t) => sum + t.ms, 0);
  const list = first.map((t) => [`${t.node} ${t.op}`, t.ms, t.target, t.kernel]);
  if (rest > 0) list.push([`${known.length - 12} others`, rest, 'none', '']);
  const longest = Math.max(...list.map(([, t]) => t), 1e-9);
  $('bars-text').textContent = total ? `${ms(total)} in all, one run with every operator timed.` : 'This device does not time its operators.';
  $('bars').replaceChildren(
    ...list.map(([name, t, target, kernel]) => {
      const item = document.createElement('li');
      item.title = kernel;
      const bar = span(`bar ${target}`, '');
      bar.style.inlineSize = `${(100 * t) / longest}%`;
      bar.setAttribute('aria-hidden', 'true');
      const track = span('track', '');
      track.append(bar);
      item.append(span('name', name), track, span('value', ms(t)));
      return item;
    }),
  );
}

function span(className, text) {
  return Object.assign(document.createElement('span'), { className, textContent: text });
}

function row(cells) {
  const tr = document.createElement('tr');
  for (const c of cells) tr.insertCell().textContent = c;
  return tr;
}

async function choose(i) {
  source = new URL(shipped[i][1], import.meta.url);
  picture = await decode(new URL(shipped[i][2], import.meta.url));
  await go();
}

$('model').onchange = () => choose($('model').value);
$('device').onchange = go;
$('range').onchange = go;
$('again').onclick = go;

for (const [zone, input, use] of [
  ['drop-model', 'file-model', async (file) => (source = await file.arrayBuffer())],
  ['drop-picture', 'file-picture', async (file) => (picture = await decode(file))],
]) {
  const take = async (file) => {
    if (!file) return;
    try {
      await use(file);
      await go();
    } catch (e) {
      say(`${file.name}: ${e.message}`);
    }
  };
  $(input).onchange = (e) => take(e.target.files[0]);
  $(zone).ondragover = (e) => {
    e.preventDefault();
    $(zone).classList.add('over');
  };
  $(zone).ondragleave = () => $(zone).classList.remove('over');
  $(zone).ondrop = (e) => {
    e.preventDefault();
    $(zone).classList.remove('over');
    take(e.dataTransfer.files[0]);
  };
}

$('camera').onclick = async () => {
  if (camera) {
    camera.getTracks().forEach((t) => t.stop());
    camera = watching = undefined;
    $('camera').setAttribute('aria-pressed', 'false');
    return;
  }
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: true });
    const video = Object.assign(document.createElement('video'), { srcObject: camera, muted: true });
    await video.play();
    picture = video;
    $('camera').setAttribute('aria-pressed', 'true');
    await go();
  } catch (e) {
    say(`No camera: ${e.message}`);
  }
};

// ?device=gpu starts there.
const asked = new URLSearchParams(location.search).get('device');
if ([...$('device').options].some((o) => o.value === asked)) $('device').value = asked;
choose(0);
