//! Sessions: a model made ready to run, on whichever devices pay.

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::fold;
use crate::model::Model;
use crate::report::{Crossing, Memory, NodeTime, Partition, Placement, Report, Target, Timings};
use crate::tensor::{Tensor, View};
use litegpu_cpu::{Executor, Options};
use litegpu_graph::shapes::{Shapes, check_resize};
use litegpu_graph::{DType, Graph, NodeId, Quant, Shape, TensorId, elements};
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// Which device a session is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The GPU where there is a real one and it pays, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// Any adapter, a software one too, for every operator that it can run.
    Gpu,
}

/// Float arithmetic on the GPU. Integers are exact in either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Tensors are stored as 16-bit floats; sums are kept in 32 bits.
    #[default]
    F16,
    /// 32-bit throughout.
    F32,
}

macro_rules! words {
    ($t:ty { $($word:literal => $v:expr),* }) => {
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $( if *self == $v { return f.pad($word); } )*
                Ok(())
            }
        }
        impl FromStr for $t {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                match s {
                    $( $word => Ok($v), )*
                    _ => Err(Error::invalid(format!("'{s}' is none of {}", [$($word),*].join(", ")))),
                }
            }
        }
    };
}
words!(Device { "auto" => Device::Auto, "cpu" => Device::Cpu, "gpu" => Device::Gpu });
words!(Precision { "f16" => Precision::F16, "f32" => Precision::F32 });

/// Names an input or output: by position in the file's order, or by the name that the signature or the tensor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// By position.
    Index(usize),
    /// By name.
    Name(&'a str),
}

impl From<usize> for Key<'_> {
    fn from(i: usize) -> Self {
        Key::Index(i)
    }
}
impl<'a> From<&'a str> for Key<'a> {
    fn from(s: &'a str) -> Self {
        Key::Name(s)
    }
}
impl<'a> From<&'a String> for Key<'a> {
    fn from(s: &'a String) -> Self {
        Key::Name(s)
    }
}
impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Index(i) => write!(f, "{i}"),
            Key::Name(s) => write!(f, "'{s}'"),
        }
    }
}

/// An input or output of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// The signature's name for it, or the tensor's own.
    pub name: String,
    /// The tensor's own name.
    pub tensor_name: String,
    /// The tensor.
    pub tensor: TensorId,
    /// Element type.
    pub dtype: DType,
    /// Shape: for an input the one it has now, for an output the declared one.
    pub shape: Vec<usize>,
    /// The declared shape with -1 where the caller may choose; `None` when all is fixed.
    pub signature: Option<Vec<i32>>,
    /// Quantization.
    pub quant: Option<Quant>,
}

/// How a session is to be built.
#[derive(Debug, Clone)]
pub struct Builder {
    model: Model,
    device: Device,
    precision: Precision,
    threads: usize,
    adapter: Option<String>,
    signature: Option<String>,
    require_gpu: bool,
    profile: bool,
    keep_all: bool,
    shapes: Vec<(OwnedKey, Vec<usize>)>,
}

/// A [`Key`] that a builder keeps.
#[derive(Debug, Clone)]
enum OwnedKey {
    Index(usize),
    Name(String),
}

impl Builder {
    /// The device. Default: [`Device::Auto`].
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }
    /// Float arithmetic on the GPU. Default: [`Precision::F16`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }
    /// Threads of the CPU executor; 0 means one per core. Default: 0. Results do not depend on it.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }
    /// Takes the first GPU adapter whose name contains this text, in any case of letters.
    pub fn adapter(mut self, name: impl Into<String>) -> Self {
        self.adapter = Some(name.into());
        self
    }
    /// Runs this signature rather than the main subgraph.
    pub fn signature(mut self, key: impl Into<String>) -> Self {
        self.signature = Some(key.into());
        self
    }
    /// With [`Device::Gpu`]: fail when there is no adapter, or when it is lost, instead of running on the CPU.
    pub fn require_gpu(mut self, require: bool) -> Self {
        self.require_gpu = require;
        self
    }
    /// Takes the time of each operator (see [`Session::times`]).
    pub fn profile(mut self, profile: bool) -> Self {
        self.profile = profile;
        self
    }
    /// Keeps every tensor that the CPU computes, so that [`Session::tensor`] can read it after a run.
    pub fn keep_all(mut self, keep: bool) -> Self {
        self.keep_all = keep;
        self
    }

    /// Gives an input another shape before anything is planned (see [`Session::resize_input`]).
    pub fn input_shape<'k>(mut self, input: impl Into<Key<'k>>, shape: &[usize]) -> Self {
        let key = match input.into() {
            Key::Index(i) => OwnedKey::Index(i),
            Key::Name(n) => OwnedKey::Name(n.to_string()),
        };
        self.shapes.push((key, shape.to_vec()));
        self
    }

    /// Builds the session: opens the device, plans, and prepares kernels. A model that leaves more than the batch of
    /// an input open, without a shape from [`Builder::input_shape`], is planned when it first runs.
    ///
    /// # Errors
    /// `Invalid` for a signature that the model does not have; `Unsupported` for an operator that no device runs;
    /// `Device` when a GPU is required and missing.
    #[cfg(not(target_family = "wasm"))]
    pub fn build(self) -> Result<Session> {
        pollster::block_on(self.build_async())
    }

    /// [`Builder::build`], without blocking.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub async fn build_async(self) -> Result<Session> {
        let entry = Entry::new(&self.model, self.signature.as_deref())?;
        let options =
            Options { threads: self.threads, keep_all: self.keep_all, profile: self.profile, ..Options::default() };
        let exec = Executor::new(self.model.graph().clone(), options)?;
        let mut session = Session {
            model: self.model,
            exec,
            entry,
            requested: self.device,
            precision: self.precision,
            planned: None,
            note: None,
            timings: Timings::default(),
        };
        for (key, shape) in &self.shapes {
            match key {
                OwnedKey::Index(i) => session.resize_input(*i, shape)?,
                OwnedKey::Name(n) => session.resize_input(n, shape)?,
            }
        }
        // A placeholder of 1 is a batch like any other; as the height of an image it may not even be possible.
        let open = |i: &TensorInfo| i.signature.as_ref().is_some_and(|s| s.iter().skip(1).any(|&d| d < 0));
        if !self.shapes.is_empty() || !session.entry.inputs.iter().any(open) {
            session.prepare_async().await?;
        }
        Ok(session)
    }
}

/// What the session runs: a subgraph with its inputs and outputs.
#[derive(Debug, Clone)]
struct Entry {
    subgraph: usize,
    signature: Option<String>,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
}

impl Entry {
    fn new(model: &Model, key: Option<&str>) -> Result<Entry> {
        let graphs = model.graph();
        let signature = match key {
            Some(key) => Some(graphs.signatures.iter().find(|s| s.key == key).ok_or_else(|| {
                let all: Vec<_> = model.signatures().collect();
                Error::invalid(format!("no signature '{key}'; the model has {}", list(&all)))
            })?),
            // The main subgraph's own signature still supplies names.
            None => graphs.signatures.iter().find(|s| s.subgraph == 0),
        };
        let subgraph = signature.map_or(0, |s| s.subgraph);
        let graph = graphs.subgraphs.get(subgraph).ok_or_else(|| Error::invalid("the model has no subgraph"))?;
        let ports = |ids: &[TensorId], names: Option<&[(String, TensorId)]>| -> Result<Vec<TensorInfo>> {
            ids.iter()
                .map(|&id| {
                    let t = graph.tensors.get(id).ok_or_else(|| Error::invalid(format!("no tensor {id}")))?;
                    let name = names.and_then(|n| n.iter().find(|(_, t)| *t == id)).map(|(n, _)| n);
                    Ok(TensorInfo {
                        name: name.unwrap_or(&t.name).clone(),
                        tensor_name: t.name.clone(),
                        tensor: id,
                        dtype: t.dtype,
                        shape: t.shape.to_vec(),
                        signature: t.signature.clone(),
                        quant: t.quant.clone(),
                    })
                })
                .collect()
        };
        Ok(Entry {
            subgraph,
            signature: key.map(str::to_string),
            inputs: ports(&graph.inputs, signature.map(|s| &s.inputs[..]))?,
            outputs: ports(&graph.outputs, signature.map(|s| &s.outputs[..]))?,
        })
    }
}

/// A step of a plan.
#[derive(Debug)]
enum Step {
    /// Operators for the CPU executor.
    Cpu(Vec<NodeId>),
}

/// The plan for the input shapes of the moment.
#[derive(Debug)]
struct Planned {
    steps: Vec<Step>,
    placements: Vec<Placement>,
    partitions: Vec<Partition>,
    memory: Memory,
}

/// A model made ready to run. Variables keep their values from run to run.
#[derive(Debug)]
pub struct Session {
    model: Model,
    exec: Executor,
    entry: Entry,
    requested: Device,
    precision: Precision,
    planned: Option<Planned>,
    note: Option<String>,
    timings: Timings,
}

impl Session {
    /// Starts to build a session.
    pub fn builder(model: &Model) -> Builder {
        Builder {
            model: model.clone(),
            device: Device::Auto,
            precision: Precision::F16,
            threads: 0,
            adapter: None,
            signature: None,
            require_gpu: false,
            profile: false,
            keep_all: false,
            shapes: Vec::new(),
        }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The inputs, in the file's order, with the shapes they have now.
    pub fn inputs(&self) -> &[TensorInfo] {
        &self.entry.inputs
    }

    /// The outputs, in the file's order.
    pub fn outputs(&self) -> &[TensorInfo] {
        &self.entry.outputs
    }

    /// Switches to another signature (`None`: the main subgraph). Variables and tables are the session's, shared by
    /// all signatures; inputs must be set anew.
    ///
    /// # Errors
    /// `Invalid` when the model has no such signature.
    pub fn select(&mut self, signature: Option<&str>) -> Result<()> {
        if self.entry.signature.as_deref() != signature {
            self.entry = Entry::new(&self.model, signature)?;
            self.planned = None;
        }
        Ok(())
    }

    /// Gives an input another shape. All shapes that follow from it change too.
    ///
    /// # Errors
    /// `Invalid`, naming the input, when the rank or a fixed dimension does not fit.
    pub fn resize_input<'k>(&mut self, input: impl Into<Key<'k>>, shape: &[usize]) -> Result<()> {
        let i = find(&self.entry.inputs, input.into(), "input")?;
        let graph = graph(&self.model, self.entry.subgraph)?;
        let Some(info) = self.entry.inputs.get_mut(i) else { return Ok(()) };
        if let Some(t) = graph.tensors.get(info.tensor) {
            check_resize(t, shape)?;
        }
        if info.dtype.byte_len(elements(shape)).is_none() && info.dtype.bits() != 0 {
            return Err(Error::invalid(format!("input '{}' cannot take shape {shape:?}: it is too large", info.name)));
        }
        if info.shape != shape {
            info.shape = shape.to_vec();
            self.planned = None;
        }
        Ok(())
    }

    /// Sets an input. A shape that differs from the input's present one resizes it where the model leaves the
    /// dimension open; any other resize wants [`Session::resize_input`] first.
    ///
    /// # Errors
    /// `Invalid`, naming the input, when type or shape do not fit.
    pub fn set_input<'k>(&mut self, input: impl Into<Key<'k>>, value: &Tensor) -> Result<()> {
        self.set_input_view(input, value.as_view())
    }

    /// [`Session::set_input`] from borrowed bytes.
    ///
    /// # Errors
    /// As [`Session::set_input`].
    pub fn set_input_view<'k>(&mut self, input: impl Into<Key<'k>>, value: View<'_>) -> Result<()> {
        let i = find(&self.entry.inputs, input.into(), "input")?;
        let Some(info) = self.entry.inputs.get(i) else { return Ok(()) };
        if info.dtype != value.dtype {
            return Err(Error::invalid(format!("input {i} '{}' is {}, {} given", info.name, info.dtype, value.dtype)));
        }
        if info.shape != value.shape {
            let open = |(at, &d): (usize, &usize)| {
                let marked = info.signature.as_ref().and_then(|s| s.get(at)).is_some_and(|&s| s < 0);
                marked || info.shape.get(at) == Some(&d)
            };
            if info.shape.len() != value.shape.len() || !value.shape.iter().enumerate().all(open) {
                return Err(Error::invalid(format!(
                    "input {i} '{}' has shape {}, {:?} given",
                    info.name,
                    shape_text(info),
                    value.shape
                )));
            }
            self.resize_input(i, value.shape)?;
        }
        let Some(info) = self.entry.inputs.get(i) else { return Ok(()) };
        let place = || format!("input {i} '{}'", info.name);
        self.exec.set(self.entry.subgraph, info.tensor, value).map_err(|e| Error::from(e).at(place()))
    }

    /// Runs the model on the inputs that have been set.
    ///
    /// # Errors
    /// Naming the input that was not set, or the operator that failed.
    #[cfg(not(target_family = "wasm"))]
    pub fn invoke(&mut self) -> Result<()> {
        pollster::block_on(self.invoke_async())
    }

    /// [`Session::invoke`], without blocking.
    ///
    /// # Errors
    /// As [`Session::invoke`].
    pub async fn invoke_async(&mut self) -> Result<()> {
        self.prepare_async().await?;
        let start = Clock::now();
        let s = self.entry.subgraph;
        for (i, info) in self.entry.inputs.iter().enumerate() {
            let set = self.exec.get(s, info.tensor).is_ok_and(|v| v.shape == info.shape);
            if !set {
                return Err(Error::invalid(format!("input {i} '{}' has not been set", info.name)));
            }
        }
        let Some(planned) = self.planned.as_ref() else { return Err(Error::internal("no plan")) };
        for step in &planned.steps {
            match step {
                Step::Cpu(nodes) => self.exec.run_nodes(s, nodes.iter().copied())?,
            }
        }
        let ms = start.ms();
        if self.timings.runs == 0 {
            self.timings.first_run_ms = ms;
        }
        self.timings.last_run_ms = ms;
        self.timings.runs += 1;
        Ok(())
    }

    /// An output of the last run, without a copy.
    ///
    /// # Errors
    /// `Invalid` when there is no such output, or nothing has run yet.
    pub fn output<'k>(&self, output: impl Into<Key<'k>>) -> Result<View<'_>> {
        let i = find(&self.entry.outputs, output.into(), "output")?;
        let info = self.entry.outputs.get(i).ok_or_else(|| Error::internal("no output"))?;
        self.exec.get(self.entry.subgraph, info.tensor).map_err(|e| Error::from(e).at(format!("output {i}")))
    }

    /// Any tensor of the running subgraph after a run, if its value is at hand: constants, inputs and outputs always,
    /// other tensors that the CPU computes with [`Builder::keep_all`].
    ///
    /// # Errors
    /// `Invalid` when there is no such tensor or no value.
    pub fn tensor(&self, tensor: TensorId) -> Result<View<'_>> {
        Ok(self.exec.get(self.entry.subgraph, tensor)?)
    }

    /// Sets the inputs by position, runs, and returns the outputs by position.
    ///
    /// # Errors
    /// As [`Session::set_input`] and [`Session::invoke`].
    #[cfg(not(target_family = "wasm"))]
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        pollster::block_on(self.run_async(inputs))
    }

    /// [`Session::run`], without blocking.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub async fn run_async(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        if inputs.len() != self.entry.inputs.len() {
            return Err(Error::invalid(format!(
                "{} inputs given, the model has {}",
                inputs.len(),
                self.entry.inputs.len()
            )));
        }
        for (i, t) in inputs.iter().enumerate() {
            self.set_input(i, t)?;
        }
        self.invoke_async().await?;
        (0..self.entry.outputs.len()).map(|i| Tensor::from_view(&self.output(i)?)).collect()
    }

    /// Sets inputs by name, runs, and returns the outputs with their names.
    ///
    /// # Errors
    /// As [`Session::set_input`] and [`Session::invoke`].
    #[cfg(not(target_family = "wasm"))]
    pub fn run_named(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>> {
        pollster::block_on(self.run_named_async(inputs))
    }

    /// [`Session::run_named`], without blocking.
    ///
    /// # Errors
    /// As [`Session::run_named`].
    pub async fn run_named_async(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>> {
        for (name, t) in inputs {
            self.set_input(*name, t)?;
        }
        self.invoke_async().await?;
        let outputs = self.entry.outputs.iter().enumerate();
        outputs.map(|(i, info)| Ok((info.name.clone(), Tensor::from_view(&self.output(i)?)?))).collect()
    }

    /// Sets variables to their initial values and forgets tables: the next run starts as the first did.
    pub fn reset(&mut self) {
        self.exec.reset();
    }

    /// Plans and prepares for the present input shapes, if that has not been done. Runs do it by themselves.
    ///
    /// # Errors
    /// `Unsupported`, naming the operator, when no device has a kernel for it.
    pub async fn prepare_async(&mut self) -> Result<()> {
        if self.planned.is_some() {
            return Ok(());
        }
        let start = Clock::now();
        let s = self.entry.subgraph;
        let planned = self.plan()?;
        self.timings.plan_ms = start.ms();
        let start = Clock::now();
        for step in &planned.steps {
            match step {
                Step::Cpu(nodes) => self.exec.prepare(s, nodes.iter().copied())?,
            }
        }
        self.timings.prepare_ms = start.ms();
        self.planned = Some(planned);
        Ok(())
    }

    /// [`Session::prepare_async`], blocking.
    ///
    /// # Errors
    /// As [`Session::prepare_async`].
    #[cfg(not(target_family = "wasm"))]
    pub fn prepare(&mut self) -> Result<()> {
        pollster::block_on(self.prepare_async())
    }

    fn plan(&self) -> Result<Planned> {
        let model = self.model.graph();
        let graph = graph(&self.model, self.entry.subgraph)?;
        let inputs: Vec<(TensorId, Shape)> =
            self.entry.inputs.iter().map(|i| (i.tensor, Shape::from_slice(&i.shape))).collect();
        let shapes = fold::propagate(model, graph, &inputs)?;
        let reason = match self.requested {
            Device::Cpu => "the CPU was asked for".to_string(),
            _ => self.note.clone().unwrap_or_else(|| "built without a GPU delegate".to_string()),
        };
        let all: Vec<NodeId> = (0..graph.nodes.len()).collect();
        let placements = graph
            .nodes
            .iter()
            .enumerate()
            .map(|(n, node)| Placement {
                node: n,
                op: node.op.name().to_string(),
                output: node.outputs.first().map_or(String::new(), |&t| form(graph, &shapes, t)),
                target: Target::Cpu,
                partition: Some(0),
                reason: reason.clone(),
            })
            .collect();
        let partitions = if all.is_empty() {
            Vec::new()
        } else {
            vec![Partition { target: Target::Cpu, nodes: all.clone(), inputs: Vec::new(), outputs: Vec::new() }]
        };
        let steps = vec![Step::Cpu(all)];
        Ok(Planned { steps, placements, partitions, memory: Memory::default() })
    }

    /// What the session does and why. Complete once it is prepared.
    pub fn report(&self) -> Report {
        let planned = self.planned.as_ref();
        let constants = self.model.graph().subgraphs.iter().flat_map(|g| &g.tensors);
        let file_constants = constants.filter_map(|t| t.data.as_ref()).map(|d| d.len() as u64).sum();
        let memory = Memory {
            cpu_tensors: self.exec.bytes() as u64,
            file_constants,
            ..planned.map(|p| p.memory).unwrap_or_default()
        };
        Report {
            signature: self.entry.signature.clone(),
            requested: self.requested,
            adapter: None,
            note: self.note.clone(),
            precision: self.precision,
            threads: self.exec.pool().threads(),
            placements: planned.map(|p| p.placements.clone()).unwrap_or_default(),
            partitions: planned.map(|p| p.partitions.clone()).unwrap_or_default(),
            memory,
            timings: self.timings,
        }
    }

    /// Time spent in each operator in the last run; empty unless [`Builder::profile`] is set.
    pub fn times(&self) -> Vec<NodeTime> {
        let Ok(graph) = graph(&self.model, self.entry.subgraph) else { return Vec::new() };
        let times = self.exec.times(self.entry.subgraph);
        let nodes = graph.nodes.iter().zip(times).enumerate();
        nodes
            .map(|(n, (node, t))| NodeTime {
                node: n,
                op: node.op.name().to_string(),
                target: Target::Cpu,
                ms: t.as_secs_f64() * 1e3,
            })
            .collect()
    }
}

fn graph(model: &Model, subgraph: usize) -> Result<&Graph> {
    model.graph().subgraphs.get(subgraph).ok_or_else(|| Error::new(ErrorKind::Internal, "no subgraph"))
}

/// Type and shape of a tensor, as propagation found it.
pub(crate) fn form(graph: &Graph, shapes: &Shapes, t: TensorId) -> String {
    let Some(tensor) = graph.tensors.get(t) else { return String::new() };
    match shapes.get(t) {
        Some(s) => format!("{}{:?}", tensor.dtype, s.as_slice()),
        None => format!("{}?", tensor.dtype),
    }
}

fn find(ports: &[TensorInfo], key: Key<'_>, what: &str) -> Result<usize> {
    let at = match key {
        Key::Index(i) => (i < ports.len()).then_some(i),
        Key::Name(n) => {
            ports.iter().position(|p| p.name == n).or_else(|| ports.iter().position(|p| p.tensor_name == n))
        }
    };
    at.ok_or_else(|| {
        let names: Vec<_> = ports.iter().map(|p| p.name.as_str()).collect();
        Error::invalid(format!("no {what} {key}; the model has {}", list(&names)))
    })
}

fn list(names: &[&str]) -> String {
    if names.is_empty() {
        "none".to_string()
    } else {
        names.iter().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ")
    }
}

/// The shape with -1 where it is open.
fn shape_text(info: &TensorInfo) -> String {
    match &info.signature {
        Some(s) => format!("{s:?}"),
        None => format!("{:?}", info.shape),
    }
}

#[allow(dead_code)]
fn crossing(graph: &Graph, shapes: &Shapes, t: TensorId) -> Crossing {
    let tensor = graph.tensors.get(t);
    Crossing {
        tensor: t,
        name: tensor.map(|t| t.name.clone()).unwrap_or_default(),
        form: form(graph, shapes, t),
        bytes: tensor.zip(shapes.get(t)).and_then(|(t, s)| t.dtype.byte_len(elements(s))),
    }
}
