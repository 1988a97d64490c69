//! The wasm module behind the npm package `litegpu`: a thin layer over the `litegpu` crate. The JavaScript beside it
//! (`npm/index.js`) turns bytes into typed arrays and queues calls; nothing here blocks.

use litegpu::{DType, Device, Error, ErrorKind, Model, Precision, Session, TensorInfo};
use serde_json::{Value as Json, json};
use wasm_bindgen::prelude::*;

/// A file on its way in: chunks of a download are written straight into the module's memory, so that the model
/// exists once.
#[wasm_bindgen]
pub struct Upload(Vec<u8>);

#[wasm_bindgen]
impl Upload {
    /// Room for `expected` bytes; more may come.
    #[wasm_bindgen(constructor)]
    pub fn new(expected: usize) -> Upload {
        let mut bytes = Vec::new();
        // A wrong Content-Length must not end the page: what is missing is allocated as it comes.
        let _ = bytes.try_reserve_exact(expected.min(1 << 31));
        Upload(bytes)
    }
    /// Appends a chunk.
    pub fn push(&mut self, chunk: &[u8]) {
        self.0.extend_from_slice(chunk);
    }
}

/// A loaded model with its session.
#[wasm_bindgen]
pub struct Network {
    model: Model,
    session: Session,
}

#[wasm_bindgen]
impl Network {
    /// Reads the model and prepares it. `device` is `auto`, `gpu` or `cpu`; `precision` is `f16` or `f32`.
    pub async fn open(file: Upload, device: String, precision: String, strict: bool) -> Result<Network, JsValue> {
        let model = Model::from_bytes(file.0).map_err(js)?;
        let device = match device.as_str() {
            "auto" => Device::Auto,
            "gpu" => Device::Gpu,
            "cpu" => Device::Cpu,
            other => return Err(js(Error::invalid(format!("device '{other}': auto, gpu or cpu")))),
        };
        let precision = match precision.as_str() {
            "f16" => Precision::F16,
            "f32" => Precision::F32,
            other => return Err(js(Error::invalid(format!("precision '{other}': f16 or f32")))),
        };
        let builder = Session::builder(&model).device(device).precision(precision).require_gpu(strict);
        let session = builder.build_async().await.map_err(js)?;
        Ok(Network { model, session })
    }

    /// Inputs, outputs and signatures, as JSON.
    pub fn describe(&self) -> String {
        json!({
            "inputs": self.session.inputs().iter().map(info).collect::<Vec<_>>(),
            "outputs": self.session.outputs().iter().map(info).collect::<Vec<_>>(),
            "signatures": self.model.signatures().collect::<Vec<_>>(),
        })
        .to_string()
    }

    /// Chooses the signature that later calls run; none means the main subgraph.
    pub fn select(&mut self, signature: Option<String>) -> Result<(), JsValue> {
        self.session.select(signature.as_deref()).map_err(js)
    }

    /// Changes an input's shape.
    pub fn resize(&mut self, input: usize, shape: Vec<usize>) -> Result<(), JsValue> {
        self.session.resize_input(input, &shape).map_err(js)
    }

    /// Sets an input from little-endian bytes.
    pub fn set(&mut self, input: usize, bytes: &[u8]) -> Result<(), JsValue> {
        let Some(i) = self.session.inputs().get(input) else {
            return Err(js(Error::invalid(format!("there is no input {input}"))));
        };
        let tensor = litegpu::Tensor::from_bytes(i.dtype, &i.shape.clone(), bytes).map_err(js)?;
        self.session.set_input(input, &tensor).map_err(js)
    }

    /// Runs the model.
    pub async fn invoke(&mut self) -> Result<(), JsValue> {
        self.session.invoke_async().await.map_err(js)
    }

    /// An output's little-endian bytes.
    pub fn output(&self, output: usize) -> Result<Vec<u8>, JsValue> {
        Ok(self.session.output(output).map_err(js)?.bytes.to_vec())
    }

    /// An output's shape in the last run.
    pub fn shape(&self, output: usize) -> Result<Vec<usize>, JsValue> {
        Ok(self.session.output(output).map_err(js)?.shape.to_vec())
    }

    /// Placements with reasons, parts, memory and timings, as JSON.
    pub fn report(&self) -> Result<String, JsValue> {
        serde_json::to_string(&self.session.report()).map_err(|e| js(Error::internal(e.to_string())))
    }

    /// Forgets state between runs.
    pub fn reset(&mut self) {
        self.session.reset();
    }
}

fn info(t: &TensorInfo) -> Json {
    json!({ "name": t.name, "dtype": name(t.dtype), "shape": t.shape, "quantization": t.quant.as_ref().and_then(|q| q.per_tensor()) })
}

fn name(dtype: DType) -> &'static str {
    dtype.name()
}

/// An `Error` with a `code`, as JavaScript expects.
fn js(e: Error) -> JsValue {
    let code = match e.kind {
        ErrorKind::Invalid => "invalid",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Internal => "internal",
        _ => "device",
    };
    let error = js_sys::Error::new(&e.to_string());
    let _ = js_sys::Reflect::set(&error, &"code".into(), &code.into());
    error.into()
}
