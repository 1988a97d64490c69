//! What a session did and why: where each operator ran, what crossed between devices, memory, time.

use crate::session::{Device, Precision};
use serde::Serialize;
use std::fmt;

/// Where an operator runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The CPU executor.
    Cpu,
    /// The GPU delegate.
    Gpu,
    /// Nowhere: its result is a constant, or is read through another operator.
    Folded,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Target::Cpu => "cpu",
            Target::Gpu => "gpu",
            Target::Folded => "folded",
        })
    }
}

/// One operator's placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// Index of the operator in its subgraph, in execution order.
    pub node: usize,
    /// The operator's name.
    pub op: String,
    /// Type and shape of the first output, `?` where only a run can tell.
    pub output: String,
    /// Arithmetic operations, a multiply-add as two: an estimate, 0 where a shape is not known.
    pub flops: u64,
    /// Bytes of its operands and results, as the file has them.
    pub bytes: u64,
    /// Where it runs.
    pub target: Target,
    /// Index into [`Report::partitions`]; `None` when the operator does not run at all.
    pub partition: Option<usize>,
    /// Why.
    pub reason: String,
}

/// A tensor that passes between the host and a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Crossing {
    /// Tensor id.
    pub tensor: usize,
    /// Tensor name.
    pub name: String,
    /// Type and shape.
    pub form: String,
    /// Size in bytes, where known.
    pub bytes: Option<usize>,
}

/// Operators that run together on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Where.
    pub target: Target,
    /// The operators.
    pub nodes: Vec<usize>,
    /// What it reads from the host (GPU partitions).
    pub inputs: Vec<Crossing>,
    /// What it hands back to the host (GPU partitions).
    pub outputs: Vec<Crossing>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Planned for computed tensors on the GPU.
    pub gpu_planned: u64,
    /// The least that any plan needs: the largest sum of tensors alive at one time.
    pub gpu_lower_bound: u64,
    /// Weights on the GPU.
    pub gpu_weights: u64,
    /// Held by tensors of the CPU executor.
    pub cpu_tensors: u64,
    /// Constants in the model file.
    pub file_constants: u64,
}

/// Times in milliseconds; 0 where there is no clock or it has not happened yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Finding and opening the device.
    pub device_ms: f64,
    /// Shapes, partition and memory plan.
    pub plan_ms: f64,
    /// Preparing kernels: pipelines, packing and uploading weights.
    pub prepare_ms: f64,
    /// The first run.
    pub first_run_ms: f64,
    /// The latest run.
    pub last_run_ms: f64,
    /// Runs so far.
    pub runs: u64,
}

/// Time spent in one operator, or in one GPU partition where the device cannot time its operators.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeTime {
    /// The operator; of a whole partition, its first one.
    pub node: usize,
    /// Name of the operator.
    pub op: String,
    /// The GPU kernel, or what else the entry stands for; empty on the CPU.
    pub kernel: String,
    /// Where it ran.
    pub target: Target,
    /// Milliseconds in the latest run.
    pub ms: f64,
}

/// What a session does with its model and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The signature that runs; `None` for the main subgraph.
    pub signature: Option<String>,
    /// The device that was asked for.
    pub requested: Device,
    /// The GPU adapter in use, if any.
    pub adapter: Option<String>,
    /// Why there is no GPU although one was asked for, or why `auto` left it alone.
    pub note: Option<String>,
    /// Arithmetic on the GPU.
    pub precision: Precision,
    /// Threads of the CPU executor.
    pub threads: usize,
    /// Every operator, in execution order.
    pub placements: Vec<Placement>,
    /// Groups of operators, in the order in which they run.
    pub partitions: Vec<Partition>,
    /// Memory.
    pub memory: Memory,
    /// Times.
    pub timings: Timings,
}

impl Report {
    /// Operators on a device.
    pub fn count(&self, target: Target) -> usize {
        self.placements.iter().filter(|p| p.target == target).count()
    }
    /// Partitions on a device.
    pub fn partition_count(&self, target: Target) -> usize {
        self.partitions.iter().filter(|p| p.target == target).count()
    }
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} KB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

impl fmt::Display for Report {
    /// Every operator, where it runs and why, and what crosses each boundary. Times are left out, so that the text of
    /// a plan is the same at every run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(s) = &self.signature {
            writeln!(f, "signature  {s}")?;
        }
        match &self.adapter {
            Some(a) => writeln!(f, "adapter    {a}, {} arithmetic", self.precision)?,
            None => writeln!(f, "adapter    none")?,
        }
        if let Some(n) = &self.note {
            writeln!(f, "note       {n}")?;
        }
        let part = |t: Target| format!("{} in {} part(s)", self.count(t), self.partition_count(t));
        let (gpu, cpu, folded) = (part(Target::Gpu), part(Target::Cpu), self.count(Target::Folded));
        writeln!(f, "operators  on the GPU {gpu}, on the CPU {cpu}, folded away {folded}")?;
        if self.count(Target::Gpu) > 0 {
            let m = &self.memory;
            writeln!(
                f,
                "memory     {} planned on the GPU (at least {} needed), {} of weights there",
                size(m.gpu_planned),
                size(m.gpu_lower_bound),
                size(m.gpu_weights)
            )?;
        }
        for (i, p) in self.partitions.iter().enumerate() {
            writeln!(f, "\npart {i} on the {}", p.target)?;
            for c in &p.inputs {
                writeln!(f, "  in   {c}")?;
            }
            for &n in &p.nodes {
                if let Some(p) = self.placements.iter().find(|p| p.node == n) {
                    writeln!(f, "  {p}")?;
                }
            }
            for c in &p.outputs {
                writeln!(f, "  out  {c}")?;
            }
        }
        let idle: Vec<_> = self.placements.iter().filter(|p| p.partition.is_none()).collect();
        if !idle.is_empty() {
            writeln!(f, "\nfolded away")?;
            for p in idle {
                writeln!(f, "  {p}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>4} {:<24} {:<26} {}", self.node, self.op, self.output, self.reason)
    }
}

impl fmt::Display for Crossing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.map_or("unknown size".to_string(), |b| size(b as u64));
        write!(f, "tensor {} '{}' {} ({bytes})", self.tensor, self.name, self.form)
    }
}
