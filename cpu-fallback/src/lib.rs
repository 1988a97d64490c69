//! The CPU executor of litegpu: every operator of the format, integers exact to the byte.

mod arena;
mod chain;
mod custom;
mod eval;
mod exec;
mod fixed;
mod gemm;
mod in_order;
mod kernel;
mod moves;
pub mod ops;
mod pool;
mod real;
mod requant;
mod resources;
mod share;
mod simd;
mod strided;
pub mod strings;
mod tables;
mod value;
mod weights;

pub use custom::{CustomOperator, CustomOperators};
pub use eval::evaluate;
pub use exec::{Executor, Options, Packed};
pub use kernel::{Call, Kernel, Site};
pub use pool::Pool;
pub use resources::{HashTable, Resources, Variables};
pub use value::{Storage, Value, View};
