//! The delegate's side of a session: opening an adapter, planning, and running the GPU parts.

use crate::error::{Error, ErrorKind, Result};
use crate::fold;
use crate::report::{Memory, NodeTime, Target};
use crate::session::{Device, Precision, StepPlan, Verdict, has_nan};
use crate::tensor::View;
use litegpu_cpu::{Executor, Value};
use litegpu_delegate as delegate;
use litegpu_delegate::{Engine, EngineOptions, GpuError, GpuErrorKind, Loaded, PlanOptions};
use litegpu_graph::shapes::Shapes;
use litegpu_graph::{Graph, Model, NodeId, TensorId};
use std::sync::Arc;

pub use litegpu_delegate::{AdapterClass, AdapterInfo, Caps, Ceiling, DeviceMemory, HalfStorage, Tune, wgpu};

/// A tensor that a GPU part reads or writes, as it lies in device memory: rows of the innermost dimension, each padded
/// with zeros to a multiple of four elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePort {
    /// How elements are stored: `f32`, `f16` (two to a word), `i8`, `u8`, `bool` (one byte), or `i32`.
    pub elem: &'static str,
    /// The tensor's shape; of complex numbers that of their floats, twice as long innermost.
    pub shape: Vec<usize>,
    /// Bytes in all.
    pub bytes: u64,
}

fn device_port(p: &delegate::Port) -> DevicePort {
    use delegate::Elem;
    let elem = match p.elem {
        Elem::F32 => "f32",
        Elem::F16 | Elem::F16Packed => "f16",
        Elem::I8 => "i8",
        Elem::U8 => "u8",
        Elem::Bool => "bool",
        Elem::I32 => "i32",
        Elem::I4 => "i4",
        Elem::I2 => "i2",
    };
    DevicePort { elem, shape: p.stored().1.to_vec(), bytes: p.gpu_bytes() }
}

/// How a GPU is chosen.
pub type GpuOptions = EngineOptions;

/// An opened GPU. Sessions that share one share its compiled pipelines. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gpu(Arc<Engine>);

impl Gpu {
    /// Opens an adapter.
    ///
    /// # Errors
    /// `Device` when there is none that fits the options, or it refuses.
    pub fn open_async(options: GpuOptions) -> impl Future<Output = Result<Gpu>> {
        // In a browser, `navigator.gpu` is looked up here and not when the future is first polled.
        let opening = Engine::open(options);
        async move {
            let engine = opening.await.map_err(device_error)?;
            log::info!("opened {:?}", engine.caps());
            Ok(Gpu(Arc::new(engine)))
        }
    }

    /// [`Gpu::open_async`], blocking.
    ///
    /// # Errors
    /// As [`Gpu::open_async`].
    #[cfg(not(target_family = "wasm"))]
    pub fn open(options: GpuOptions) -> Result<Gpu> {
        pollster::block_on(Gpu::open_async(options))
    }

    /// The delegate on a device that the application made and goes on to use: what features and limits it was made with
    /// decide which kernels there are. `adapter`, and options other than how one is chosen, are as for [`Gpu::open`].
    /// Handlers of errors and of loss stay the application's; when the device is lost, [`Gpu::close`] says so to sessions.
    #[cfg(not(target_family = "wasm"))]
    pub fn share(adapter: wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue, options: GpuOptions) -> Gpu {
        Gpu(Arc::new(Engine::share(adapter, device, queue, options)))
    }

    /// The adapters of this machine.
    pub async fn adapters_async() -> Vec<AdapterInfo> {
        Engine::adapters().await
    }

    /// [`Gpu::adapters_async`], blocking.
    #[cfg(not(target_family = "wasm"))]
    pub fn adapters() -> Vec<AdapterInfo> {
        pollster::block_on(Gpu::adapters_async())
    }

    /// What the adapter can do at most, measured; `None` where it has no timestamps.
    ///
    /// # Errors
    /// `Device` when it fails.
    pub async fn ceiling_async(&self) -> Result<Option<Ceiling>> {
        self.0.ceiling().await.map_err(device_error)
    }

    /// Memory on this device, for [`Session::attach_input`](crate::Session::attach_input) and
    /// [`Session::attach_output`](crate::Session::attach_output).
    pub fn memory(&self, bytes: u64) -> DeviceMemory {
        self.0.memory(bytes)
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        self.0.caps()
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.caps().name
    }

    /// What was found by measuring about which kernels are fastest on this adapter ([`Tune`]), for
    /// [`Gpu::set_tuned`]. Outside a browser it is kept on disk as well.
    pub fn tuned(&self) -> Vec<u8> {
        self.0.tuned()
    }

    /// Takes over what was measured before. What was measured on another adapter, or with another driver or version, or
    /// is damaged, counts for nothing. In a browser this also asks for measuring what is not known yet ([`Tune::Auto`]).
    pub fn set_tuned(&self, bytes: &[u8]) {
        self.0.set_tuned(bytes);
    }

    /// Gives the device and all its memory back. Sessions on it go on on the CPU, as if it had been lost.
    pub fn close(&self) {
        self.0.destroy();
    }

    /// Whether shaders run on the CPU.
    pub fn is_software(&self) -> bool {
        self.caps().class == AdapterClass::Software
    }
}

/// What `auto` and `gpu` mean to the opening of an adapter. `Err` is the reason for which the CPU runs everything.
pub(crate) async fn acquire(device: Device, options: &GpuOptions, given: Option<&Gpu>) -> Result<Gpu, String> {
    if device == Device::Cpu {
        return Err("the CPU was asked for".into());
    }
    // Who names a software adapter wants it.
    let auto = device == Device::Auto && options.adapter.is_none();
    let gpu = match given {
        Some(g) => g.clone(),
        None => {
            let mut options = options.clone();
            options.allow_software &= !auto;
            Gpu::open_async(options).await.map_err(|e| e.message)?
        }
    };
    match auto && gpu.is_software() {
        true => Err(format!("{} runs shaders on the CPU, which the CPU executor does faster", gpu.caps().name)),
        false => Ok(gpu),
    }
}

/// Options that a plan hangs on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Wish {
    pub(crate) device: Device,
    pub(crate) precision: Precision,
    /// Whatever can run on the GPU does.
    pub(crate) everything: bool,
    pub(crate) budget: Option<u64>,
}

/// Plans a subgraph for an adapter.
pub(crate) fn plan(
    model: &Model,
    subgraph: usize,
    graph: &Graph,
    shapes: &Shapes,
    caps: &Caps,
    wish: Wish,
) -> Result<(Vec<StepPlan>, Vec<Verdict>, Memory)> {
    let options = PlanOptions {
        precision: match wish.precision {
            Precision::F16 => delegate::Precision::F16,
            Precision::F32 => delegate::Precision::F32,
        },
        force_gpu: wish.everything,
        prefer_gpu: wish.device == Device::Gpu,
        memory_budget: wish.budget,
        ..PlanOptions::default()
    };
    let mut eval = fold::evaluator(model, graph);
    let plan = delegate::plan(model, subgraph, shapes, caps, &options, Some(&mut eval))?;
    let (gpu_planned, gpu_lower_bound) = plan.memory();
    let gpu_weights = plan.programs().map(|p| p.weight_bytes()).sum();
    let memory = Memory { gpu_planned, gpu_lower_bound, gpu_weights, ..Memory::default() };
    let kernels = kernels(&plan, graph.nodes.len());
    let verdicts = plan
        .placements
        .iter()
        .map(|p| match p.device {
            delegate::Device::Gpu => {
                let names = kernels.get(p.node).map(|k| k.join(" + ")).unwrap_or_default();
                let reason =
                    if names.is_empty() { "fused into another kernel, or an alias".to_string() } else { names };
                Verdict { node: p.node, target: Target::Gpu, reason }
            }
            delegate::Device::Cpu => Verdict { node: p.node, target: Target::Cpu, reason: p.reason.clone() },
            delegate::Device::Folded => Verdict { node: p.node, target: Target::Folded, reason: p.reason.clone() },
        })
        .collect();
    let steps = plan
        .steps
        .into_iter()
        .map(|s| match s {
            delegate::Step::Cpu(nodes) => StepPlan::Cpu(nodes),
            delegate::Step::Gpu(p) => StepPlan::Gpu(Box::new(Program(p))),
        })
        .collect();
    Ok((steps, verdicts, memory))
}

/// Names of the kernels that each operator runs as.
fn kernels(plan: &delegate::Plan, nodes: usize) -> Vec<Vec<String>> {
    let mut out: Vec<Vec<String>> = vec![Vec::new(); nodes];
    for p in plan.programs() {
        let labels: Vec<String> = p.kernels.iter().map(|k| k.label()).collect();
        for d in &p.dispatches {
            let mut name = |node: NodeId, label: &String| match out.get_mut(node) {
                Some(list) if !list.contains(label) => list.push(label.clone()),
                _ => {}
            };
            match labels.get(d.kernel) {
                Some(label) if d.members.is_empty() => name(d.node, label),
                _ => d.members.iter().for_each(|m| name(m.node, &m.label)),
            }
        }
    }
    out
}

/// A part of the graph for the GPU, as plain data.
#[derive(Debug)]
pub(crate) struct Program(delegate::Program);

impl Program {
    pub(crate) fn nodes(&self) -> &[NodeId] {
        &self.0.nodes
    }
    pub(crate) fn inputs(&self) -> Vec<TensorId> {
        self.0.inputs.iter().filter(|p| p.variable.is_none()).map(|p| p.tensor).collect()
    }
    pub(crate) fn outputs(&self) -> Vec<TensorId> {
        self.0.outputs.iter().filter(|p| p.variable.is_none()).map(|p| p.tensor).collect()
    }
}

/// A part of the graph on the GPU, ready to run.
#[derive(Debug)]
pub(crate) struct Part {
    nodes: Vec<NodeId>,
    loaded: Loaded,
    /// Where results are read to, before they are exchanged with the executor's values.
    outputs: Vec<Value>,
    /// Inputs that come from device memory, outputs that stay there.
    attached: Vec<TensorId>,
    detoured: Vec<TensorId>,
}

/// Whether the CPU takes over after a device error, or the error is a bug to be shown.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The device is of no more use.
    Gone(String),
    /// Memory did not suffice.
    Memory(String),
    /// A result holds NaN, where no operand does.
    Nan(Kept, String),
    /// Anything else.
    Error(Error),
}

impl From<litegpu_graph::Error> for Fault {
    fn from(e: litegpu_graph::Error) -> Fault {
        Fault::Error(e.into())
    }
}

impl From<GpuError> for Fault {
    fn from(e: GpuError) -> Fault {
        match e.kind {
            GpuErrorKind::OutOfMemory => Fault::Memory(e.to_string()),
            GpuErrorKind::Lost | GpuErrorKind::Timeout | GpuErrorKind::NoAdapter | GpuErrorKind::Refused => {
                Fault::Gone(e.to_string())
            }
            GpuErrorKind::Invalid | GpuErrorKind::Internal => Fault::Error(device_error(e)),
        }
    }
}

impl Part {
    pub(crate) async fn load(gpu: &Gpu, program: &Program, graph: &Graph) -> Result<Part, Fault> {
        let loaded = gpu.0.load(&program.0).await?;
        let outputs = loaded
            .outputs()
            .map(|p| Value::empty(p.dtype, graph.tensors.get(p.tensor).and_then(|t| t.quant.clone()).map(Into::into)))
            .collect();
        let nodes = program.0.nodes.clone();
        Ok(Part { nodes, loaded, outputs, attached: Vec::new(), detoured: Vec::new() })
    }

    pub(crate) fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// How the part reads or writes a tensor.
    pub(crate) fn port(&self, tensor: TensorId, output: bool) -> Option<DevicePort> {
        match output {
            false => self.loaded.inputs().find(|p| is(p, tensor)).map(device_port),
            true => self.loaded.outputs().find(|p| is(p, tensor)).map(device_port),
        }
    }

    /// Lets a tensor be read from, or written to, device memory.
    pub(crate) fn attach(&mut self, tensor: TensorId, output: bool, memory: Option<DeviceMemory>) {
        let (list, at) = match output {
            false => (&mut self.attached, self.loaded.inputs().position(|p| is(p, tensor))),
            true => (&mut self.detoured, self.loaded.outputs().position(|p| is(p, tensor))),
        };
        let Some(at) = at else { return };
        list.retain(|&t| t != tensor);
        if memory.is_some() {
            list.push(tensor);
        }
        match output {
            false => self.loaded.attach_input(at, memory),
            true => self.loaded.attach_output(at, memory),
        }
    }

    /// The states that go in or out.
    pub(crate) fn states(&self) -> impl Iterator<Item = Kept> {
        self.loaded.inputs().chain(self.loaded.outputs()).filter(|p| p.state).map(Kept::new)
    }

    /// Says of the next run whether nobody else has changed the part's states since its last.
    pub(crate) fn keep_states(&mut self, unchanged: bool) {
        self.loaded.keep_states(unchanged);
    }

    /// Runs the part on the executor's values. Times are filled when `times` is there. With `guard`, results that hold NaN
    /// are a fault, unless an operand does, or is in device memory; the executor's values are then as before.
    pub(crate) async fn run(
        &mut self,
        exec: &mut Executor,
        subgraph: usize,
        times: Option<&mut Vec<NodeTime>>,
        guard: bool,
    ) -> Result<(), Fault> {
        let kept: Vec<Kept> = self.loaded.outputs().map(Kept::new).collect();
        for (v, port) in self.outputs.iter_mut().zip(self.loaded.outputs()) {
            v.reshape(&port.shape)?;
        }
        let given: Vec<Kept> = self.loaded.inputs().map(Kept::new).collect();
        let given: Vec<Held> = given.iter().map(|k| k.find(exec)).collect();
        let mut inputs: Vec<&[u8]> = Vec::with_capacity(given.len());
        for (held, port) in given.iter().zip(self.loaded.inputs()) {
            if self.attached.contains(&port.tensor) && port.variable.is_none() {
                inputs.push(&[]);
                continue;
            }
            let view = held.view(exec, subgraph)?;
            if view.shape != port.shape.as_slice() || view.dtype != port.dtype {
                let (s, want) = (view.shape, port.shape.as_slice());
                let why = format!(
                    "a variable decides shapes: {}{s:?} where the file declares {}{want:?}",
                    view.dtype, port.dtype
                );
                return Err(Fault::Gone(why));
            }
            inputs.push(view.bytes);
        }
        let mut outputs: Vec<&mut [u8]> = self.outputs.iter_mut().map(Value::bytes_mut).collect();
        match times {
            None => self.loaded.run(&inputs, &mut outputs).await?,
            Some(times) => {
                for t in self.loaded.profile(&inputs, &mut outputs).await? {
                    times.push(NodeTime {
                        node: t.node,
                        op: String::new(),
                        kernel: t.kernel,
                        target: Target::Gpu,
                        ms: t.time.as_secs_f64() * 1e3,
                    });
                }
            }
        }
        if guard && self.attached.is_empty() {
            let here = self.outputs.iter().zip(&kept).filter(|(_, k)| !k.is_in(&self.detoured));
            let mut wrong = here.filter(|(v, _)| has_nan(&v.view())).map(|(_, k)| k.clone());
            if let Some(k) = wrong.next() {
                let mut operands = given.iter().map(|h| h.view(exec, subgraph));
                if !operands.any(|v| v.is_ok_and(|v| has_nan(&v))) {
                    return Err(Fault::Nan(k, "the GPU made NaN of numbers".into()));
                }
            }
        }
        for (v, k) in self.outputs.iter_mut().zip(&kept) {
            match k {
                Kept::Tensor(_) if k.is_in(&self.detoured) => {}
                Kept::Tensor(t) => exec.exchange(subgraph, *t, v)?,
                Kept::Variable(variable) => assign(exec, variable, v)?,
            }
        }
        Ok(())
    }
}

/// Where a session keeps what crosses the boundary of a part.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kept {
    Tensor(TensorId),
    Variable(delegate::Variable),
}

/// The same, with the number that a variable's handle has.
#[derive(Debug)]
enum Held {
    Tensor(TensorId),
    Variable(i32),
}

impl Kept {
    fn new(port: &delegate::Port) -> Kept {
        match &port.variable {
            Some(v) => Kept::Variable(v.clone()),
            None => Kept::Tensor(port.tensor),
        }
    }
    fn is_in(&self, tensors: &[TensorId]) -> bool {
        matches!(self, Kept::Tensor(t) if tensors.contains(t))
    }
    /// Whether its value holds NaN.
    pub(crate) fn is_nan(&self, exec: &mut Executor, subgraph: usize) -> bool {
        let held = self.find(exec);
        held.view(exec, subgraph).is_ok_and(|v| has_nan(&v))
    }
    fn find(&self, exec: &mut Executor) -> Held {
        match self {
            Kept::Tensor(t) => Held::Tensor(*t),
            Kept::Variable(v) => Held::Variable(exec.resources.handle(&v.container, &v.name)),
        }
    }
    /// What the user knows it by.
    pub(crate) fn name(&self, graph: &Graph) -> String {
        match self {
            Kept::Tensor(t) => {
                let name = graph.tensors.get(*t).map(|t| t.name.as_str()).unwrap_or_default();
                format!("tensor {t} '{name}'")
            }
            Kept::Variable(v) => format!("variable '{}'", v.name),
        }
    }
}

impl Held {
    fn view<'e>(&self, exec: &'e Executor, subgraph: usize) -> Result<View<'e>, litegpu_graph::Error> {
        match self {
            Held::Tensor(t) => exec.get(subgraph, *t),
            Held::Variable(n) => {
                let none = || litegpu_graph::Error::invalid("a variable is read that has no value yet");
                exec.resources.variables.get(*n).map(Value::view).ok_or_else(none)
            }
        }
    }
}

/// Gives a resource variable the value that the GPU has computed.
fn assign(exec: &mut Executor, variable: &delegate::Variable, from: &Value) -> Result<(), litegpu_graph::Error> {
    let n = exec.resources.handle(&variable.container, &variable.name);
    if exec.resources.variables.get(n).is_none_or(|v| v.dtype != from.dtype) {
        let empty = exec.resources.empty(from.dtype);
        exec.resources.variables.insert(n, empty);
    }
    let Some(held) = exec.resources.variables.get_mut(n) else { return Ok(()) };
    let view = from.view();
    held.reshape(view.shape)?;
    held.bytes_mut().copy_from_slice(view.bytes);
    Ok(())
}

/// Whether it is the port of a tensor.
fn is(p: &delegate::Port, tensor: TensorId) -> bool {
    p.tensor == tensor && p.variable.is_none()
}

fn device_error(e: GpuError) -> Error {
    let kind = match e.kind {
        GpuErrorKind::Internal | GpuErrorKind::Invalid => ErrorKind::Internal,
        _ => ErrorKind::Device,
    };
    Error::new(kind, e.to_string()).because(e)
}
