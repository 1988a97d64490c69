declare module '*.tflite?url' {
  const url: string;
  export default url;
}
