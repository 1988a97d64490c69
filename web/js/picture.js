// Pictures as inputs: resized to the input's shape and scaled to its values, on the GPU where a GPU part reads them.
//
// Both ways compute the same: each output pixel is the mean of the source over a box as wide as the pixel (at least one
// source pixel wide: enlarging is bilinear), in the picture's own 8-bit values.

import { arrays } from './arrays.js';
import { dispatch } from './device.js';
import { failure } from './failure.js';
import { sizeOf } from './kinds.js';

const limitsOf = { int8: [-128, 127], uint8: [0, 255], int16: [-32768, 32767] };

/** How a source value of 0 to 255 becomes an element: `v * factor + offset`, rounded and clamped for integers. */
function scaling(tensor, range) {
  const limits = limitsOf[tensor.dtype];
  if (!limits) {
    const [low, high] = range ?? [0, 1];
    return { factor: (high - low) / 255, offset: low };
  }
  const [scale, zero] = tensor.quantization ?? [0, 0];
  if (!scale || (!range && tensor.dtype !== 'int16')) {
    // The whole range of the type: what quantized vision models are made for.
    return { factor: (limits[1] - limits[0]) / 255, offset: limits[0], limits };
  }
  const [low, high] = range ?? [0, 1];
  return { factor: (high - low) / 255 / scale, offset: low / scale + zero, limits };
}

function check(picture, tensor) {
  const [n, height, width, channels] = tensor.shape;
  if (tensor.shape.length !== 4 || n !== 1 || ![1, 3, 4].includes(channels)) {
    throw failure(`input '${tensor.name}' of shape [${tensor.shape}] takes no picture`, 'invalid');
  }
  if (!['float32', 'int8', 'uint8', 'int16'].includes(tensor.dtype)) {
    throw failure(`input '${tensor.name}' of type ${tensor.dtype} takes no picture`, 'invalid');
  }
  const [w, h] = sizeOf(picture);
  if (!w || !h) throw failure(`input '${tensor.name}': the picture is empty or has not been loaded`, 'invalid');
  return { height, width, channels, w, h };
}

/** The picture as elements of the input. */
export function pixels(picture, tensor, range) {
  const { height, width, channels, w, h } = check(picture, tensor);
  let data;
  if (globalThis.ImageData && picture instanceof ImageData) ({ data } = picture);
  else {
    const context = new OffscreenCanvas(w, h).getContext('2d', { willReadFrequently: true });
    context.drawImage(picture, 0, 0, w, h);
    ({ data } = context.getImageData(0, 0, w, h));
  }
  const { factor, offset, limits } = scaling(tensor, range);
  const out = new arrays[tensor.dtype](width * height * channels);
  const boxes = (from, to) =>
    Array.from({ length: to }, (_, i) => {
      const half = Math.max(from / to, 1) / 2;
      const low = ((i + 0.5) * from) / to - half;
      const taps = [];
      for (let s = Math.floor(low); s < low + 2 * half; s++) {
        const weight = (Math.min(s + 1, low + 2 * half) - Math.max(s, low)) / (2 * half);
        taps.push([Math.min(Math.max(s, 0), from - 1), weight]);
      }
      return taps;
    });
  const [xs, ys] = [boxes(w, width), boxes(h, height)];
  const sum = new Float64Array(4);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += channels) {
      sum.fill(0);
      for (const [sy, wy] of ys[y]) {
        for (const [sx, wx] of xs[x]) {
          const p = 4 * (sy * w + sx);
          for (let c = 0; c < 4; c++) sum[c] += wy * wx * data[p + c];
        }
      }
      if (channels === 1) sum[0] = 0.299 * sum[0] + 0.587 * sum[1] + 0.114 * sum[2];
      for (let c = 0; c < channels; c++) {
        const v = sum[c] * factor + offset;
        out[at + c] = limits ? Math.min(limits[1], Math.max(limits[0], Math.floor(v + 0.5))) : v;
      }
    }
  }
  return out;
}

const text = (store) => `
struct Params { items: u32, width: u32, height: u32, across: u32, w: u32, h: u32, channels: u32, quads: u32,
  factor: f32, offset: f32, low: f32, high: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> to: array<u32>;
@group(0) @binding(2) var picture: texture_2d<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * p.across + id.x;
  if (i >= p.items) { return; }
  let size = vec2<f32>(f32(p.w), f32(p.h));
  let step = size / vec2<f32>(f32(p.width), f32(p.height));
  let half = max(step, vec2<f32>(1.0)) / 2.0;
  let low = (vec2<f32>(f32(i % p.width), f32(i / p.width)) + 0.5) * step - half;
  let high = low + 2.0 * half;
  var sum = vec4<f32>();
  for (var y = floor(low.y); y < high.y; y += 1.0) {
    let wy = min(y + 1.0, high.y) - max(y, low.y);
    for (var x = floor(low.x); x < high.x; x += 1.0) {
      let wx = min(x + 1.0, high.x) - max(x, low.x);
      let at = vec2<i32>(clamp(vec2<f32>(x, y), vec2<f32>(), size - 1.0));
      sum += wx * wy * textureLoad(picture, at, 0);
    }
  }
  sum = sum * 255.0 / (4.0 * half.x * half.y);
  if (p.channels == 1u) { sum.x = dot(sum.xyz, vec3<f32>(0.299, 0.587, 0.114)); }
  let used = vec4<bool>(true, p.channels > 1u, p.channels > 2u, p.channels > 3u);
  let v = select(vec4<f32>(), clamp(${store.integer ? 'floor(sum * p.factor + p.offset + 0.5)' : 'sum * p.factor + p.offset'},
    vec4<f32>(p.low), vec4<f32>(p.high)), used);
  ${store.text}
}`;
const stores = {
  f32: { text: 'for (var l = 0u; l < 4u; l++) { to[4u * i + l] = bitcast<u32>(v[l]); }' },
  f16: { text: 'to[2u * i] = pack2x16float(v.xy); to[2u * i + 1u] = pack2x16float(v.zw);' },
  i8: { integer: true, text: 'let b = vec4<u32>(vec4<i32>(v)) & vec4<u32>(255u); to[i] = b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);' },
};
stores.u8 = stores.i8;

/** Writes the picture into a port's memory; false where the port has another form. */
export function uploadPicture(gpu, picture, tensor, port, range, room) {
  const { height, width, channels, w, h } = check(picture, tensor);
  const store = stores[port.elem];
  const { device } = gpu;
  if (!store || Math.max(w, h) > device.limits.maxTextureDimension2D) return false;
  const usage = GPUTextureUsage.TEXTURE_BINDING | GPUTextureUsage.COPY_DST | GPUTextureUsage.RENDER_ATTACHMENT;
  // The next frame of a video is of the same size.
  if (gpu.texture?.width !== w || gpu.texture?.height !== h) {
    gpu.texture?.destroy();
    gpu.texture = device.createTexture({ size: [w, h], format: 'rgba8unorm', usage });
  }
  try {
    device.queue.copyExternalImageToTexture({ source: picture }, { texture: gpu.texture }, [w, h]);
  } catch {
    // Not every browser copies every frame of every video: the canvas can draw it.
    return false;
  }
  const { factor, offset, limits } = scaling(tensor, range);
  const floats = new Uint32Array(new Float32Array([factor, offset, limits?.[0] ?? -3e38, limits?.[1] ?? 3e38]).buffer);
  const params = [width, height, w, h, channels, 1, ...floats];
  const resources = [{ buffer: room() }, gpu.texture.createView()];
  dispatch(gpu, `picture ${port.elem}`, text(store), width * height, params, resources);
  return true;
}
