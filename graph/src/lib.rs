//! The `.tflite` graph of litegpu: reading, validating, inferring shapes, rewriting and writing.
//!
//! Nothing here knows of devices. Model files are hostile input: whatever the bytes, [`Model::read`] returns a model
//! whose indices, sizes and quantization are consistent, or an error that names the part that is wrong.

extern crate alloc;

mod appended;
mod dtype;
mod error;
pub mod fixed;
pub mod flexbuffer;
mod model;
mod op;
pub mod ops;
mod order;
pub mod passes;
mod read;
pub mod schema;
pub mod shapes;
pub mod text;
pub mod validate;
mod work;
mod write;

pub use dtype::DType;
pub use error::{Error, ErrorKind, Result};
pub use model::*;
pub use op::{CustomOp, Family, Op};
pub use order::{order, ordered};
pub use work::{Work, work};
pub use write::WriteOptions;
