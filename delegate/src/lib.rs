//! The GPU delegate of litegpu.
//!
//! ```text
//! plan(model, subgraph, &shapes, &caps, &options, eval) -> Plan { steps: [Gpu(Program) | Cpu(nodes)], placements, .. }
//! Engine::open(options).await -> Engine            // the one thing that knows wgpu
//! engine.load(&program).await -> Loaded             // pipelines compiled, weights uploaded, bind groups made: once
//! loaded.run(&[input bytes], &mut [output bytes]).await
//! ```
//!
//! [`plan()`] needs no adapter, only its [`Caps`] ([`Engine::caps`], or [`Caps::baseline`]). A caller that holds a CPU
//! executor walks `plan.steps` in order: for [`Step::Cpu`] it runs those nodes; for [`Step::Gpu`] it passes the bytes
//! of `program.inputs` (in that order, dense and little endian, as the graph declares them) to [`Loaded::run`] and
//! stores what it writes into the tensors of `program.outputs`. Steps are ordered so that every tensor is written
//! before it is read. Graph inputs and outputs appear among the ports of the programs that read and write them; an
//! output tensor that only CPU operators compute appears in none. Tensors that CPU operators hand to a program must
//! outlive their last CPU reader.
//!
//! Errors of the engine ([`GpuError`]) say whether another adapter, a smaller budget or the CPU is the way out; none of
//! them aborts.

mod caps;
mod ceiling;
mod convert;
mod cost;
mod counter;
mod engine;
mod fuse;
mod lower;
#[cfg(not(target_family = "wasm"))]
mod matrices;
mod ops;
mod plan;
mod program;
mod series;
mod tune;

pub use caps::{AdapterClass, Caps, Matrices, Precision};
pub use ceiling::Ceiling;
pub use cost::{Estimate, estimate, work};
pub use engine::{
    AdapterInfo, DeviceMemory, Engine, EngineOptions, GpuError, GpuErrorKind, HalfStorage, Loaded, Power, Timing,
};
pub use litegpu_shaders::Elem;
pub use lower::{Const, Lower, Lowered, Operand, Params, Scene, Unsupported, line, no};
pub use plan::{Device, Placement, Plan, PlanOptions, Step, plan};
pub use program::{
    Access, Binding, Dispatch, Flow, Form, Member, Move, Passes, Place, Port, Program, Slot, SlotId, Variable,
    padded_bytes, quads, row_quads, rows, tail,
};
pub use tune::{Tune, Tuned};
/// The graphics interface, in the version that [`Engine::share`] takes devices of.
pub use wgpu;
