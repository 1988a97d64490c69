// The wasm module lies beside the package's own module: left as it is, Vite finds it by its URL.
export default {
  // Wherever the result is served from.
  base: './',
  optimizeDeps: { exclude: ['litegpu'] },
  build: { target: 'es2022' },
  server: { fs: { allow: ['../..'] } },
};
