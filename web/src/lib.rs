//! The wasm module behind the npm package `litegpu`: a thin layer over the `litegpu` crate. The JavaScript beside it
//! (`npm/index.js`) turns bytes into typed arrays and queues calls; nothing here blocks.

use litegpu::{
    DType, Device, DeviceMemory, DevicePort, Error, ErrorKind, GpuOptions, Model, Precision, Report, Session,
    TensorInfo,
};
use serde_json::{Value as Json, json};
use std::pin::Pin;
use wasm_bindgen::prelude::*;

/// The module's table of functions, into which the page may put kernels of its own module.
#[wasm_bindgen]
pub fn functions() -> JsValue {
    wasm_bindgen::function_table()
}

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
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), JsValue> {
        let more = self.0.try_reserve(chunk.len());
        more.map_err(|_| js(Error::invalid(format!("no memory for {} bytes", self.0.len() + chunk.len()))))?;
        self.0.extend_from_slice(chunk);
        Ok(())
    }
}

/// An opened GPU, shared by models.
#[wasm_bindgen]
pub struct Gpu(litegpu::Gpu);

#[wasm_bindgen]
impl Gpu {
    /// Opens what `navigator.gpu` is at the time of the call; resolves to a `Gpu`.
    pub fn open(subgroups: bool) -> js_sys::Promise {
        let opening = litegpu::Gpu::open_async(GpuOptions { known_subgroups: subgroups, ..GpuOptions::default() });
        wasm_bindgen_futures::future_to_promise(async move { Ok(Gpu(opening.await.map_err(js)?).into()) })
    }
    /// The same GPU, for another model.
    pub fn share(&self) -> Gpu {
        Gpu(self.0.clone())
    }
    /// Chooses kernels by measuring from now on, with what was measured before.
    pub fn tune(&self, before: &[u8]) {
        self.0.set_tuned(before);
    }
    /// What has been measured on this adapter.
    pub fn tuned(&self) -> Vec<u8> {
        self.0.tuned()
    }
    /// Memory on the device, made by one call of `createBuffer`.
    pub fn memory(&self, bytes: f64) -> Memory {
        Memory(self.0.memory(bytes as u64))
    }
}

/// Memory on the device.
#[wasm_bindgen]
pub struct Memory(DeviceMemory);

/// A loaded model with its session.
#[wasm_bindgen]
pub struct Network {
    model: Model,
    session: Session,
    /// The report that the page has.
    told: Option<Report>,
}

#[wasm_bindgen]
impl Network {
    /// Reads the model and prepares it. `device` is `auto`, `gpu` or `cpu`; `precision` is `f16` or `f32`; `slice` is
    /// how long, in milliseconds, the CPU may work before the page gets a turn (0: as long as it takes).
    pub async fn open(
        file: Upload,
        device: String,
        precision: String,
        strict: bool,
        gpu: Option<Gpu>,
        slice: f64,
    ) -> Result<Network, JsValue> {
        let model = Model::from_bytes(file.0).map_err(js)?;
        let device: Device = device.parse().map_err(js)?;
        let precision: Precision = precision.parse().map_err(js)?;
        let mut builder = Session::builder(&model).device(device).precision(precision).require_gpu(strict);
        if slice > 0.0 {
            builder = builder.pause(slice, turn);
        }
        if let Some(gpu) = &gpu {
            builder = builder.gpu(&gpu.0);
        }
        let session = builder.build_async().await.map_err(js)?;
        Ok(Network { model, session, told: None })
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

    /// Plans and compiles for the present shapes.
    pub async fn prepare(&mut self) -> Result<(), JsValue> {
        self.session.prepare_async().await.map_err(js)
    }

    /// Sets an input from little-endian bytes.
    pub fn set(&mut self, input: usize, bytes: &[u8]) -> Result<(), JsValue> {
        let Some(i) = self.session.inputs().get(input) else {
            return Err(js(Error::invalid(format!("there is no input {input}"))));
        };
        let (dtype, shape) = (i.dtype, i.shape.clone());
        self.session.set_input_view(input, litegpu::View { dtype, shape: &shape, bytes, quant: None }).map_err(js)
    }

    /// How an input lies in device memory, as JSON; nothing when the host has to provide it.
    pub fn input_port(&self, input: usize) -> Result<Option<String>, JsValue> {
        Ok(self.session.input_port(input).map_err(js)?.map(port))
    }

    /// How an output lies in device memory, as JSON; nothing when it comes from the CPU.
    pub fn output_port(&self, output: usize) -> Result<Option<String>, JsValue> {
        Ok(self.session.output_port(output).map_err(js)?.map(port))
    }

    /// Reads an input from device memory in every run until nothing is given.
    pub fn attach_input(&mut self, input: usize, memory: Option<Memory>) -> Result<(), JsValue> {
        self.session.attach_input(input, memory.as_ref().map(|m| &m.0)).map_err(js)
    }

    /// Leaves an output in device memory in every run until nothing is given.
    pub fn attach_output(&mut self, output: usize, memory: Option<Memory>) -> Result<(), JsValue> {
        self.session.attach_output(output, memory.as_ref().map(|m| &m.0)).map_err(js)
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

    /// Placements with reasons, parts, memory and timings, as JSON; only the timings when nothing else is new since
    /// the last call.
    pub fn news(&mut self) -> Result<String, JsValue> {
        let mut report = self.session.report();
        let timings = std::mem::take(&mut report.timings);
        let text = if self.told.as_ref() == Some(&report) {
            serde_json::to_string(&json!({ "timings": timings }))
        } else {
            self.told = Some(report.clone());
            report.timings = timings;
            serde_json::to_string(&report)
        };
        text.map_err(|e| js(Error::internal(e.to_string())))
    }

    /// Whether later runs are timed operator by operator.
    pub fn set_profile(&mut self, on: bool) {
        self.session.set_profile(on);
    }

    /// Time of each operator in the last run, as JSON.
    pub fn times(&self) -> Result<String, JsValue> {
        serde_json::to_string(&self.session.times()).map_err(|e| js(Error::internal(e.to_string())))
    }

    /// Forgets state between runs.
    pub fn reset(&mut self) {
        self.session.reset();
    }
}

/// Lets the page have a turn: resolves in a later task.
fn turn() -> Pin<Box<dyn Future<Output = ()>>> {
    let promise = js_sys::Promise::new(&mut |resolve, _| match web_sys::MessageChannel::new() {
        Ok(channel) => {
            let (port, woken) = (channel.port1(), resolve.clone());
            // Node goes on living for an open port.
            let done = Closure::once_into_js(move |_: JsValue| {
                port.close();
                let _ = woken.call0(&JsValue::NULL);
            });
            channel.port1().set_onmessage(Some(done.unchecked_ref()));
            // Without a message nobody would resolve.
            if channel.port2().post_message(&JsValue::NULL).is_err() {
                let _ = resolve.call0(&JsValue::NULL);
            }
        }
        Err(_) => {
            let _ = resolve.call0(&JsValue::NULL);
        }
    });
    Box::pin(async move {
        let _ = wasm_bindgen_futures::JsFuture::from(promise).await;
    })
}

fn port(p: DevicePort) -> String {
    json!({ "elem": p.elem, "shape": p.shape, "bytes": p.bytes }).to_string()
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
