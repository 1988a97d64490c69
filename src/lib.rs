//! litegpu runs LiteRT (`.tflite`) models: on the GPU through WGSL compute shaders on wgpu, and on the CPU where an
//! operator, a type or a graph's size argues for it, with integers exact to the byte on both.
//!
//! ```no_run
//! use litegpu::{Model, Session, Tensor};
//!
//! let model = Model::open("model.tflite")?;
//! let mut session = Session::builder(&model).build()?;
//! let outputs = session.run(&[Tensor::new(&[1, 4], &[0.0f32, 1.0, 2.0, 3.0])?])?;
//! println!("{:?}\n{}", outputs[0].view::<f32>()?, session.report());
//! # Ok::<(), litegpu::Error>(())
//! ```
//!
//! [`Session::run`] blocks; [`Session::run_async`] is what it waits for, and the only way in a browser.

#[cfg(feature = "cli")]
pub mod bisect;
mod clock;
mod error;
mod fold;
#[cfg(feature = "gpu")]
mod gpu;
#[cfg(not(feature = "gpu"))]
#[path = "nogpu.rs"]
mod gpu;
#[cfg(not(target_family = "wasm"))]
mod mapped;
mod model;
#[cfg(feature = "cli")]
pub mod npz;
#[cfg(feature = "cli")]
pub mod picture;
mod report;
#[cfg(feature = "cli")]
pub mod samples;
mod session;
mod tensor;
#[cfg(feature = "cli")]
pub mod verify;

pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "gpu")]
pub use gpu::{
    AdapterClass, AdapterInfo, Caps, Ceiling, DeviceMemory, DevicePort, Gpu, GpuOptions, HalfStorage, Tune, wgpu,
};
pub use litegpu_cpu as cpu;
pub use litegpu_cpu::{CustomOperator, CustomOperators};
pub use litegpu_graph as graph;
pub use litegpu_graph::{DType, Quant};
#[cfg(feature = "quantizer")]
pub use litegpu_quantizer as quantizer;
pub use model::Model;
pub use report::{Crossing, Memory, NodeTime, Partition, Placement, Report, Target, Timings};
#[cfg(target_family = "wasm")]
pub use session::Pause;
pub use session::{Builder, Device, Key, Precision, Session, TensorInfo};
pub use tensor::{Element, Tensor, View};
