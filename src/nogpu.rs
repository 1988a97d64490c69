//! What stands for the delegate in a build without it: types that have no value, so that nothing can reach them.

use crate::error::Result;
use crate::report::{Memory, NodeTime};
use crate::session::{Device, Precision, StepPlan, Verdict};
use litegpu_cpu::Executor;
use litegpu_graph::shapes::Shapes;
use litegpu_graph::{Error, Graph, Model, NodeId, TensorId};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Never {}

#[derive(Debug, Clone)]
pub(crate) struct Gpu(Never);
#[derive(Debug)]
pub(crate) struct Program(Never);
#[derive(Debug)]
pub(crate) struct Part(Never);
#[derive(Debug)]
pub(crate) struct Caps(Never);
#[derive(Debug, Clone)]
pub(crate) struct DeviceMemory(#[allow(dead_code)] Never);
#[derive(Debug)]
pub(crate) struct DevicePort;

#[derive(Debug, PartialEq)]
pub(crate) struct Kept(Never);

#[allow(dead_code)]
#[derive(Debug)]
pub(crate) enum Fault {
    Gone(String),
    Memory(String),
    Nan(Kept, String),
    Error(crate::Error),
}

#[allow(dead_code)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) device: Device,
    pub(crate) precision: Precision,
    pub(crate) everything: bool,
    pub(crate) budget: Option<u64>,
}

impl Gpu {
    pub(crate) fn caps(&self) -> &Caps {
        match self.0 {}
    }
    pub(crate) fn name(&self) -> &str {
        match self.0 {}
    }
}

/// How a GPU is chosen: nothing to choose.
#[derive(Debug, Clone, Default)]
pub(crate) struct GpuOptions {
    pub(crate) adapter: Option<String>,
}

pub(crate) async fn acquire(device: Device, _: &GpuOptions, _: Option<&Gpu>) -> Result<Gpu, String> {
    Err(match device {
        Device::Cpu => "the CPU was asked for",
        _ => "litegpu was built without its GPU delegate",
    }
    .into())
}

pub(crate) fn plan(
    _: &Model,
    _: usize,
    _: &Graph,
    _: &Shapes,
    caps: &Caps,
    _: Wish,
) -> Result<(Vec<StepPlan>, Vec<Verdict>, Memory)> {
    match caps.0 {}
}

impl Kept {
    pub(crate) fn is_nan(&self, _: &mut Executor, _: usize) -> bool {
        match self.0 {}
    }
    pub(crate) fn name(&self, _: &Graph) -> String {
        match self.0 {}
    }
}

impl Program {
    pub(crate) fn nodes(&self) -> &[NodeId] {
        match self.0 {}
    }
    pub(crate) fn inputs(&self) -> Vec<TensorId> {
        match self.0 {}
    }
    pub(crate) fn outputs(&self) -> Vec<TensorId> {
        match self.0 {}
    }
}

impl Part {
    pub(crate) async fn load(gpu: &Gpu, _: &Program, _: &Graph) -> Result<Part, Fault> {
        match gpu.0 {}
    }
    pub(crate) fn nodes(&self) -> &[NodeId] {
        match self.0 {}
    }
    pub(crate) fn states(&self) -> impl Iterator<Item = Kept> {
        std::iter::empty()
    }
    pub(crate) fn keep_states(&mut self, _: bool) {
        match self.0 {}
    }
    pub(crate) fn port(&self, _: TensorId, _: bool) -> Option<DevicePort> {
        match self.0 {}
    }
    pub(crate) async fn run(
        &mut self,
        _: &mut Executor,
        _: usize,
        _: Option<&mut Vec<NodeTime>>,
        _: bool,
    ) -> Result<(), Fault> {
        match self.0 {}
    }
}

impl From<Error> for Fault {
    fn from(e: Error) -> Fault {
        Fault::Error(e.into())
    }
}
