// What counts as a picture.

const kinds = ['ImageData', 'ImageBitmap', 'HTMLCanvasElement', 'OffscreenCanvas', 'HTMLImageElement', 'HTMLVideoElement', 'VideoFrame'];

export const isPicture = (v) => kinds.some((n) => globalThis[n] && v instanceof globalThis[n]);

/** Width and height; zero or nothing while there is no picture yet. */
export const sizeOf = (v) => [
  v.displayWidth ?? (v.videoWidth || v.naturalWidth || v.width),
  v.displayHeight ?? (v.videoHeight || v.naturalHeight || v.height),
];
