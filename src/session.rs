//! Sessions: a model made ready to run, on whichever devices pay.

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::fold;
#[cfg(feature = "gpu")]
use crate::gpu::Ceiling;
use crate::gpu::{self, Caps, DeviceMemory, DevicePort, Fault, Gpu, GpuOptions, Kept, Part, Program, Wish};
use crate::model::Model;
use crate::report::{Crossing, Memory, NodeTime, Partition, Placement, Report, Target, Timings};
use crate::tensor::{Tensor, View};
use bytes::Bytes;
use litegpu_cpu::{CustomOperators, Executor, Options};
use litegpu_graph::shapes::{self, Shapes, check_resize};
use litegpu_graph::{DType, Family, Graph, NodeId, Op, Quant, Shape, TensorId, elements};
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
    gpu_options: GpuOptions,
    signature: Option<String>,
    require_gpu: bool,
    nan_guard: bool,
    profile: bool,
    keep_all: bool,
    everything: bool,
    budget: Option<u64>,
    memory_limit: Option<usize>,
    custom: CustomOperators,
    gpu: Option<Gpu>,
    shapes: Vec<(OwnedKey, Vec<usize>)>,
    #[cfg(target_family = "wasm")]
    pause: Option<(f64, Pause)>,
}

/// Gives the event loop a turn.
#[cfg(target_family = "wasm")]
pub type Pause = fn() -> std::pin::Pin<Box<dyn Future<Output = ()>>>;

/// A [`Key`] that a builder keeps.
#[derive(Debug, Clone)]
enum OwnedKey {
    Index(usize),
    Name(String),
}

impl OwnedKey {
    fn borrow(&self) -> Key<'_> {
        match self {
            OwnedKey::Index(i) => Key::Index(*i),
            OwnedKey::Name(n) => Key::Name(n),
        }
    }
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
        self.gpu_options.adapter = Some(name.into());
        self
    }
    /// How the GPU is chosen and used, in every detail.
    #[cfg(feature = "gpu")]
    pub fn gpu_options(mut self, options: GpuOptions) -> Self {
        self.gpu_options = options;
        self
    }
    /// Shares an opened GPU, and its compiled pipelines, with other sessions.
    #[cfg(feature = "gpu")]
    pub fn gpu(mut self, gpu: &Gpu) -> Self {
        self.gpu = Some(gpu.clone());
        self
    }
    /// Runs on the GPU whatever can run there, even where an estimate favours the CPU: for tests and measurements.
    pub fn everything_on_gpu(mut self, everything: bool) -> Self {
        self.everything = everything;
        self
    }
    /// Bytes of GPU memory that weights and activations may take; what does not fit runs on the CPU.
    pub fn gpu_memory(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }
    /// Bytes of tensors that the host may hold at a time; a run that would need more fails. Default: 16 GiB.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = Some(bytes);
        self
    }
    /// Custom operators that the application brings. A registered one wins over one of that name that litegpu has.
    pub fn custom(mut self, operators: CustomOperators) -> Self {
        self.custom = operators;
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
    /// Whether a GPU part's NaN is looked into (it is unless this says no): where the CPU finds numbers, as with values
    /// that only 16 bits cannot hold, the CPU's results count and it runs everything from then on, or a session that
    /// [requires the GPU](Builder::require_gpu) fails. Results in [device memory](Session::attach_output) are not looked at.
    pub fn nan_guard(mut self, guard: bool) -> Self {
        self.nan_guard = guard;
        self
    }
    /// Takes the time of each operator (see [`Session::times`]).
    pub fn profile(mut self, profile: bool) -> Self {
        self.profile = profile;
        self
    }
    /// Awaits `pause` whenever the CPU has worked for `ms` milliseconds, so that a long run does not hold up the page.
    /// An operator is never interrupted.
    #[cfg(target_family = "wasm")]
    pub fn pause(mut self, ms: f64, pause: Pause) -> Self {
        self.pause = Some((ms, pause));
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

    /// Plans for an adapter with these capabilities, which need not be there: what would run where, and why.
    ///
    /// # Errors
    /// As [`Builder::build`].
    #[cfg(feature = "gpu")]
    pub fn plan_for(self, caps: &Caps) -> Result<Report> {
        let mut entry = Entry::new(&self.model, self.signature.as_deref())?;
        for (key, shape) in &self.shapes {
            resize(&self.model, &mut entry, key.borrow(), shape)?;
        }
        let wish = self.wish();
        let draft = draft(&self.model, &entry, Some(caps), wish, None, |_| None)?;
        Ok(Report {
            signature: entry.signature,
            requested: wish.device,
            adapter: Some(caps.name.clone()),
            note: Some("a plan for this adapter, without using it".into()),
            precision: wish.precision,
            threads: self.threads,
            placements: draft.placements,
            partitions: draft.partitions,
            memory: Memory { file_constants: constants(&self.model), ..draft.memory },
            timings: Timings::default(),
        })
    }

    fn wish(&self) -> Wish {
        Wish { device: self.device, precision: self.precision, everything: self.everything, budget: self.budget }
    }

    /// [`Builder::build`], without blocking.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub async fn build_async(self) -> Result<Session> {
        let entry = Entry::new(&self.model, self.signature.as_deref())?;
        let wish = self.wish();
        let base = Options::default();
        let options = Options {
            threads: self.threads,
            keep_all: self.keep_all,
            profile: self.profile,
            custom: self.custom,
            memory_limit: self.memory_limit.unwrap_or(base.memory_limit),
            packed: self.model.packed(),
        };
        let exec = Executor::new(self.model.graph().clone(), options)?;
        let start = Clock::now();
        let (gpu, note) = match gpu::acquire(self.device, &self.gpu_options, self.gpu.as_ref()).await {
            Ok(gpu) => (Some(gpu), None),
            Err(why) if self.require_gpu => return Err(Error::new(ErrorKind::Device, why)),
            Err(why) => (None, Some(why)),
        };
        if let (Some(why), Device::Gpu) = (&note, self.device) {
            log::warn!("the CPU runs everything: {why}");
        }
        let timings = Timings { device_ms: start.ms(), ..Timings::default() };
        let mut session = Session {
            model: self.model,
            exec,
            entry,
            wish,
            gpu,
            require_gpu: self.require_gpu,
            nan_guard: self.nan_guard,
            profile: self.profile,
            planned: None,
            note,
            timings,
            states_held: false,
            replanned: 0,
            gpu_times: Vec::new(),
            attached: Vec::new(),
            #[cfg(target_family = "wasm")]
            pause: self.pause,
        };
        for (key, shape) in &self.shapes {
            session.resize_input(key.borrow(), shape)?;
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

/// A step of a plan, as plain data.
#[derive(Debug)]
pub(crate) enum StepPlan {
    /// Operators for the CPU executor, in this order.
    Cpu(Vec<NodeId>),
    /// A part for the GPU.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code))]
    Gpu(Box<Program>),
}

/// Where an operator runs and why.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) node: NodeId,
    pub(crate) target: Target,
    pub(crate) reason: String,
}

/// A step made ready.
#[derive(Debug)]
enum Step {
    Cpu(Vec<NodeId>),
    Gpu(Box<Part>),
}

/// The plan for the input shapes of the moment, before anything is loaded.
#[derive(Debug)]
struct Draft {
    steps: Vec<StepPlan>,
    shapes: Shapes,
    hangs_on: Vec<(TensorId, Option<Bytes>)>,
    placements: Vec<Placement>,
    partitions: Vec<Partition>,
    memory: Memory,
}

/// A plan made ready.
#[derive(Debug)]
struct Planned {
    steps: Vec<Step>,
    shapes: Shapes,
    /// Inputs whose values shapes hang on, with the values that the plan holds for; without one, shapes are left to the
    /// run.
    hangs_on: Vec<(TensorId, Option<Bytes>)>,
    placements: Vec<Placement>,
    partitions: Vec<Partition>,
    memory: Memory,
    /// No state is changed by a GPU part and by anything else.
    apart: bool,
}

/// A model made ready to run. Variables keep their values from run to run.
#[derive(Debug)]
pub struct Session {
    model: Model,
    exec: Executor,
    entry: Entry,
    wish: Wish,
    gpu: Option<Gpu>,
    require_gpu: bool,
    nan_guard: bool,
    profile: bool,
    planned: Option<Planned>,
    note: Option<String>,
    timings: Timings,
    /// The last run went well, and nobody has changed states since.
    states_held: bool,
    /// Plans that were made anew because a value had changed that shapes hang on.
    replanned: u64,
    gpu_times: Vec<NodeTime>,
    /// Device memory that stands for inputs (false) and outputs (true) of the present plan.
    attached: Vec<(bool, TensorId, DeviceMemory)>,
    #[cfg(target_family = "wasm")]
    pause: Option<(f64, Pause)>,
}

impl Session {
    /// Starts to build a session.
    pub fn builder(model: &Model) -> Builder {
        Builder {
            model: model.clone(),
            device: Device::Auto,
            precision: Precision::F16,
            threads: 0,
            gpu_options: GpuOptions::default(),
            signature: None,
            require_gpu: false,
            nan_guard: true,
            profile: false,
            keep_all: false,
            everything: false,
            budget: None,
            memory_limit: None,
            custom: CustomOperators::new(),
            gpu: None,
            shapes: Vec::new(),
            #[cfg(target_family = "wasm")]
            pause: None,
        }
    }

    /// The inputs that a session would have, without building one.
    ///
    /// # Errors
    /// `Invalid` when the model has no such signature.
    pub fn inputs_of(model: &Model, signature: Option<&str>) -> Result<Vec<TensorInfo>> {
        Entry::new(model, signature).map(|e| e.inputs)
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
        if resize(&self.model, &mut self.entry, input.into(), shape)? {
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
        if self.outdated() {
            self.planned = None;
            self.replanned += 1;
            self.prepare_async().await?;
        }
        let start = Clock::now();
        let s = self.entry.subgraph;
        for (i, info) in self.entry.inputs.iter().enumerate() {
            let attached = self.attached.iter().any(|(o, t, _)| !o && *t == info.tensor);
            let set = attached || self.exec.get(s, info.tensor).is_ok_and(|v| v.shape == info.shape);
            if !set {
                return Err(Error::invalid(format!("input {i} '{}' has not been set", info.name)));
            }
        }
        self.gpu_times.clear();
        let Some(planned) = self.planned.as_mut() else { return Err(Error::internal("no plan")) };
        let mut lost = None;
        let kept = std::mem::take(&mut self.states_held) && planned.apart;
        for (i, step) in planned.steps.iter_mut().enumerate() {
            match step {
                #[cfg(target_family = "wasm")]
                Step::Cpu(nodes) if self.pause.is_some() => {
                    let mut since = Clock::now();
                    for &n in nodes.iter() {
                        self.exec.run_nodes(s, [n])?;
                        if let Some((_, pause)) = self.pause.filter(|(ms, _)| since.ms() > *ms) {
                            pause().await;
                            since = Clock::now();
                        }
                    }
                }
                Step::Cpu(nodes) => self.exec.run_nodes(s, nodes.iter().copied())?,
                Step::Gpu(part) => {
                    let start = Clock::now();
                    part.keep_states(kept);
                    let before = self.gpu_times.len();
                    let times = self.profile.then_some(&mut self.gpu_times);
                    if let Err(fault) = part.run(&mut self.exec, s, times, self.nan_guard).await {
                        lost = Some((i, fault));
                        break;
                    }
                    if self.profile && self.gpu_times.len() == before {
                        self.gpu_times.push(NodeTime {
                            node: part.nodes().first().copied().unwrap_or_default(),
                            op: String::new(),
                            kernel: format!("a part of {} operators", part.nodes().len()),
                            target: Target::Gpu,
                            ms: start.ms(),
                        });
                    }
                }
            }
        }
        match lost {
            // What the CPU makes NaN of as well is the model's own, and the GPU is right.
            Some((at, Fault::Nan(kept, why))) => {
                let planned = self.rescue(at)?;
                if kept.is_nan(&mut self.exec, s) {
                    (self.planned, self.nan_guard) = (planned, false);
                } else {
                    let name = kept.name(graph(&self.model, s)?);
                    let why = format!("{why}, in {name}; in float32 precision it may not");
                    self.give_up_gpu(Fault::Gone(why))?;
                    self.prepare_async().await?;
                }
            }
            Some((at, fault)) => {
                self.give_up_gpu(fault)?;
                self.rescue(at)?;
                self.prepare_async().await?;
            }
            None => self.states_held = true,
        }
        let ms = start.ms();
        if self.timings.runs == 0 {
            self.timings.first_run_ms = ms;
        }
        self.timings.last_run_ms = ms;
        self.timings.runs += 1;
        Ok(())
    }

    /// An input's value as it was set, where the CPU has it.
    fn value(&self, t: TensorId) -> Option<&[u8]> {
        if self.attached.iter().any(|(output, a, _)| !output && *a == t) {
            return None;
        }
        let value = self.exec.get(self.entry.subgraph, t).ok()?;
        let shape = &self.entry.inputs.iter().find(|i| i.tensor == t)?.shape;
        (value.shape == shape).then_some(value.bytes)
    }

    /// Whether shapes hang on inputs whose values are other than the plan's. A model whose values change with nearly
    /// every run is left with the plan that holds for all of them.
    fn outdated(&self) -> bool {
        let Some(planned) = &self.planned else { return false };
        let changed = |(t, held): &(TensorId, Option<Bytes>)| match (self.value(*t), held) {
            (Some(now), Some(held)) => now != held,
            (Some(_), None) => !self.fickle(),
            (None, held) => held.is_some(),
        };
        planned.hangs_on.iter().any(changed)
    }

    fn fickle(&self) -> bool {
        self.replanned > 8 && self.replanned * 2 > self.timings.runs
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
        self.states_held = false;
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
        self.timings.prepare_ms = 0.0;
        self.attached.clear();
        let mut refused: Option<String> = None;
        loop {
            let start = Clock::now();
            let caps = self.gpu.as_ref().map(Gpu::caps);
            let fickle = self.fickle();
            let value = |t| self.value(t).filter(|_| !fickle).map(Bytes::copy_from_slice);
            let draft = draft(&self.model, &self.entry, caps, self.wish, self.note.as_deref(), value)?;
            self.timings.plan_ms = start.ms();
            let start = Clock::now();
            let loaded = self.load(&draft).await;
            self.timings.prepare_ms += start.ms();
            let Draft { shapes, hangs_on, placements, partitions, memory, .. } = draft;
            match loaded {
                Ok(steps) => {
                    let left = steps.iter().any(|s| matches!(s, Step::Gpu(_)));
                    if let Some(why) = refused.filter(|_| self.require_gpu && !left) {
                        return Err(Error::new(ErrorKind::Device, why));
                    }
                    let apart = apart(graph(&self.model, self.entry.subgraph)?, &steps);
                    self.states_held = false;
                    self.planned = Some(Planned { steps, shapes, hangs_on, placements, partitions, memory, apart });
                    // What a device was given need not be read again.
                    self.model.release();
                    return Ok(());
                }
                Err(Fault::Memory(why)) if memory.gpu_planned + memory.gpu_weights > 0 => {
                    // Half of what did not fit, and half again: in the end nothing is left for the GPU.
                    let budget = (memory.gpu_planned + memory.gpu_weights) / 2;
                    self.wish.budget = Some(budget);
                    log::warn!("{why}; planning anew for {budget} bytes");
                    self.note = Some(format!("{why}; the plan keeps to {budget} bytes"));
                    refused = Some(why);
                }
                Err(Fault::Error(e)) if self.gpu.is_none() => return Err(e),
                Err(fault) => self.give_up_gpu(fault)?,
            }
        }
    }

    /// Makes the steps of a plan ready.
    async fn load(&mut self, draft: &Draft) -> Result<Vec<Step>, Fault> {
        let s = self.entry.subgraph;
        let graph = graph(&self.model, s).map_err(Fault::Error)?;
        self.exec.keep(s, &outlive(graph, &draft.steps))?;
        let mut steps = Vec::with_capacity(draft.steps.len());
        for step in &draft.steps {
            steps.push(match (step, &self.gpu) {
                (StepPlan::Cpu(nodes), _) => {
                    self.exec.prepare(s, nodes.iter().copied())?;
                    Step::Cpu(nodes.clone())
                }
                (StepPlan::Gpu(p), Some(gpu)) => Step::Gpu(Box::new(Part::load(gpu, p, graph).await?)),
                (StepPlan::Gpu(_), None) => return Err(Fault::Error(Error::internal("a GPU part without a GPU"))),
            });
        }
        Ok(steps)
    }

    /// After a fault of the device: the CPU runs everything from here on, unless the GPU is required.
    fn give_up_gpu(&mut self, fault: Fault) -> Result<()> {
        let why = match fault {
            Fault::Error(e) if e.kind != ErrorKind::Internal && e.kind != ErrorKind::Device => return Err(e),
            Fault::Error(e) if self.require_gpu => return Err(e),
            Fault::Error(e) => e.to_string(),
            Fault::Gone(m) | Fault::Memory(m) | Fault::Nan(_, m) => m,
        };
        if self.require_gpu {
            return Err(Error::new(ErrorKind::Device, why));
        }
        log::warn!("the CPU runs everything from now on: {why}");
        self.gpu = None;
        self.note = Some(why);
        Ok(())
    }

    /// Ends a run on the CPU that a GPU part could not end: what it was to compute, and all that follows. Yields the plan,
    /// which no longer is the session's.
    fn rescue(&mut self, at: usize) -> Result<Option<Planned>> {
        let s = self.entry.subgraph;
        let Some(planned) = self.planned.take() else { return Ok(None) };
        let graph = graph(&self.model, s)?;
        // What the plan had folded away is wanted now: known values are set, the rest (constants in another form) runs.
        for p in planned.placements.iter().filter(|p| p.partition.is_none()) {
            let Some(node) = graph.nodes.get(p.node) else { continue };
            if !planned.shapes.is_known(node) {
                self.exec.run_nodes(s, [p.node])?;
                continue;
            }
            for &t in &node.outputs {
                let value = planned.shapes.values.get(t).and_then(Option::as_ref);
                if let (Some(value), Some(shape)) = (value, planned.shapes.get(t)) {
                    let to = self.exec.write(s, t, shape)?;
                    if to.bytes().len() == value.len() {
                        to.bytes_mut().copy_from_slice(value);
                    }
                }
            }
        }
        for step in planned.steps.iter().skip(at) {
            let nodes = match step {
                Step::Cpu(nodes) => nodes,
                Step::Gpu(part) => part.nodes(),
            };
            self.exec.run_nodes(s, nodes.iter().copied())?;
        }
        Ok(Some(planned))
    }

    /// How the GPU reads an input, if GPU parts alone read it. The session must be prepared.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code))]
    fn port(&self, tensor: TensorId, output: bool) -> Option<DevicePort> {
        let graph = self.model.graph().subgraphs.get(self.entry.subgraph)?;
        let mut found = None;
        for step in &self.planned.as_ref()?.steps {
            match step {
                Step::Gpu(part) => found = part.port(tensor, output).or(found),
                Step::Cpu(nodes) => {
                    let mut nodes = nodes.iter().filter_map(|&n| graph.nodes.get(n));
                    if nodes.any(|n| n.inputs.contains(&Some(tensor)) || n.outputs.contains(&tensor)) {
                        return None;
                    }
                }
            }
        }
        let both = graph.inputs.contains(&tensor) && graph.outputs.contains(&tensor);
        found.filter(|_| !both)
    }

    /// How an input lies in device memory, if GPU parts alone read it. The session must be
    /// [prepared](Session::prepare_async).
    ///
    /// # Errors
    /// `Invalid` when there is no such input.
    #[cfg(feature = "gpu")]
    pub fn input_port<'k>(&self, input: impl Into<Key<'k>>) -> Result<Option<DevicePort>> {
        let i = find(&self.entry.inputs, input.into(), "input")?;
        Ok(self.entry.inputs.get(i).and_then(|t| self.port(t.tensor, false)))
    }

    /// How an output lies in device memory, if a GPU part writes it and no operator on the CPU reads it. The session
    /// must be [prepared](Session::prepare_async).
    ///
    /// # Errors
    /// `Invalid` when there is no such output.
    #[cfg(feature = "gpu")]
    pub fn output_port<'k>(&self, output: impl Into<Key<'k>>) -> Result<Option<DevicePort>> {
        let i = find(&self.entry.outputs, output.into(), "output")?;
        Ok(self.entry.outputs.get(i).and_then(|t| self.port(t.tensor, true)))
    }

    /// Reads an input from device memory, laid out as [`Session::input_port`] says, in every run until `None` is
    /// given. Another plan (a resize, another signature) ends it.
    ///
    /// # Errors
    /// `Invalid` when there is no such input, or no GPU part alone reads it.
    #[cfg(feature = "gpu")]
    pub fn attach_input<'k>(&mut self, input: impl Into<Key<'k>>, memory: Option<&DeviceMemory>) -> Result<()> {
        let i = find(&self.entry.inputs, input.into(), "input")?;
        let tensor = self.entry.inputs.get(i).map(|t| t.tensor);
        self.attach(tensor, false, memory).map_err(|e| e.at(format!("input {i}")))
    }

    /// Leaves an output in device memory, laid out as [`Session::output_port`] says: it is then not read back.
    ///
    /// # Errors
    /// `Invalid` when there is no such output, or an operator on the CPU reads or writes it.
    #[cfg(feature = "gpu")]
    pub fn attach_output<'k>(&mut self, output: impl Into<Key<'k>>, memory: Option<&DeviceMemory>) -> Result<()> {
        let i = find(&self.entry.outputs, output.into(), "output")?;
        let tensor = self.entry.outputs.get(i).map(|t| t.tensor);
        self.attach(tensor, true, memory).map_err(|e| e.at(format!("output {i}")))
    }

    #[cfg(feature = "gpu")]
    fn attach(&mut self, tensor: Option<TensorId>, output: bool, memory: Option<&DeviceMemory>) -> Result<()> {
        let Some(tensor) = tensor else { return Ok(()) };
        self.attached.retain(|(o, t, _)| (*o, *t) != (output, tensor));
        if let Some(m) = memory {
            let Some(port) = self.port(tensor, output) else {
                return Err(Error::invalid("device memory cannot stand for a tensor that the CPU reads or writes"));
            };
            m.check(output, port.bytes).map_err(Error::invalid)?;
            self.attached.push((output, tensor, m.clone()));
        }
        for step in self.planned.iter_mut().flat_map(|p| &mut p.steps) {
            if let Step::Gpu(part) = step {
                part.attach(tensor, output, memory.cloned());
            }
        }
        Ok(())
    }

    /// Whether the time of each operator is taken from the next run on (see [`Session::times`]).
    pub fn set_profile(&mut self, profile: bool) {
        self.profile = profile;
        self.exec.set_profile(profile);
    }

    /// [`Session::prepare_async`], blocking.
    ///
    /// # Errors
    /// As [`Session::prepare_async`].
    #[cfg(not(target_family = "wasm"))]
    pub fn prepare(&mut self) -> Result<()> {
        pollster::block_on(self.prepare_async())
    }

    /// What the session does and why. Complete once it is prepared.
    pub fn report(&self) -> Report {
        let planned = self.planned.as_ref();
        let memory = Memory {
            cpu_tensors: self.exec.bytes() as u64,
            file_constants: constants(&self.model),
            ..planned.map(|p| p.memory).unwrap_or_default()
        };
        Report {
            signature: self.entry.signature.clone(),
            requested: self.wish.device,
            adapter: self.gpu.as_ref().map(|g| g.name().to_string()),
            note: self.note.clone().filter(|_| self.wish.device != Device::Cpu),
            precision: self.wish.precision,
            threads: self.exec.pool().threads(),
            placements: planned.map(|p| p.placements.clone()).unwrap_or_default(),
            partitions: planned.map(|p| p.partitions.clone()).unwrap_or_default(),
            memory,
            timings: self.timings,
        }
    }

    /// What the session's GPU can do at most, measured; `None` without one, or where it has no timestamps.
    ///
    /// # Errors
    /// `Device` when it fails.
    #[cfg(feature = "gpu")]
    pub async fn ceiling_async(&self) -> Result<Option<Ceiling>> {
        match &self.gpu {
            Some(gpu) => gpu.ceiling_async().await,
            None => Ok(None),
        }
    }

    /// Time spent in each operator in the last run; empty unless [`Builder::profile`] is set.
    pub fn times(&self) -> Vec<NodeTime> {
        let placements = self.planned.iter().flat_map(|p| &p.placements);
        let times = self.exec.times(self.entry.subgraph);
        let cpu = placements.clone().filter(|p| p.target == Target::Cpu).filter_map(|p| {
            let ms = times.get(p.node)?.as_secs_f64() * 1e3;
            Some(NodeTime { node: p.node, op: p.op.clone(), kernel: String::new(), target: Target::Cpu, ms })
        });
        let names: std::collections::HashMap<NodeId, &str> = placements.clone().map(|p| (p.node, &p.op[..])).collect();
        let gpu = self
            .gpu_times
            .iter()
            .map(|t| NodeTime { op: names.get(&t.node).map(|n| n.to_string()).unwrap_or_default(), ..t.clone() });
        litegpu_graph::ordered(cpu.chain(gpu).collect(), &mut |a, b| a.node.cmp(&b.node))
    }
}

/// Whether float values hold NaN.
pub(crate) fn has_nan(v: &View<'_>) -> bool {
    match v.dtype {
        DType::F32 => v.bytes.as_chunks::<4>().0.iter().any(|b| f32::from_le_bytes(*b).is_nan()),
        DType::F16 => v.bytes.as_chunks::<2>().0.iter().any(|b| half::f16::from_le_bytes(*b).is_nan()),
        _ => false,
    }
}

/// Gives an input another shape; whether it is another.
fn resize(model: &Model, entry: &mut Entry, input: Key<'_>, shape: &[usize]) -> Result<bool> {
    let i = find(&entry.inputs, input, "input")?;
    let graph = graph(model, entry.subgraph)?;
    let Some(info) = entry.inputs.get_mut(i) else { return Ok(false) };
    if let Some(t) = graph.tensors.get(info.tensor) {
        check_resize(t, shape)?;
    }
    if info.dtype.byte_len(elements(shape)).is_none() && info.dtype.bits() != 0 {
        return Err(Error::invalid(format!("input '{}' cannot take shape {shape:?}: it is too large", info.name)));
    }
    let changed = info.shape != shape;
    if changed {
        info.shape = shape.to_vec();
    }
    Ok(changed)
}

/// Bytes of constants in the file.
fn constants(model: &Model) -> u64 {
    let tensors = model.graph().subgraphs.iter().flat_map(|g| &g.tensors);
    tensors.filter_map(|t| t.data.as_ref()).map(|d| d.len() as u64).sum()
}

/// Plans the entry's subgraph for its input shapes: for an adapter, or all on the CPU. `value` gives an input's value
/// where it is set; for an adapter, what shapes hang on is taken from there.
fn draft(
    model: &Model,
    entry: &Entry,
    caps: Option<&Caps>,
    wish: Wish,
    note: Option<&str>,
    value: impl Fn(TensorId) -> Option<Bytes>,
) -> Result<Draft> {
    let graph = graph(model, entry.subgraph)?;
    let inputs: Vec<(TensorId, Shape)> = entry.inputs.iter().map(|i| (i.tensor, Shape::from_slice(&i.shape))).collect();
    let mut shapes = fold::propagate(model.graph(), graph, &inputs, &[])?;
    let mut hangs_on: Vec<(TensorId, Option<Bytes>)> = Vec::new();
    if caps.is_some() {
        hangs_on.extend(shapes::shape_inputs(graph, &shapes).into_iter().map(|t| (t, value(t))));
        let known: Vec<(TensorId, Bytes)> = hangs_on.iter().filter_map(|(t, v)| Some((*t, v.clone()?))).collect();
        if !known.is_empty() {
            shapes = fold::propagate(model.graph(), graph, &inputs, &known)?;
        }
    }
    let (steps, verdicts, memory) = match caps {
        Some(caps) => gpu::plan(model.graph(), entry.subgraph, graph, &shapes, caps, wish)?,
        None => {
            let nodes: Vec<NodeId> = (0..graph.nodes.len()).collect();
            let reason = note.unwrap_or("the CPU was asked for");
            let verdict = |&node: &NodeId| Verdict { node, target: Target::Cpu, reason: reason.to_string() };
            let verdicts = nodes.iter().map(verdict).collect();
            let steps = if nodes.is_empty() { Vec::new() } else { vec![StepPlan::Cpu(nodes)] };
            (steps, verdicts, Memory::default())
        }
    };
    let cross = |ids: Vec<TensorId>| ids.into_iter().map(|t| crossing(graph, &shapes, t)).collect();
    let partitions: Vec<Partition> = steps
        .iter()
        .map(|s| match s {
            StepPlan::Cpu(nodes) => {
                Partition { target: Target::Cpu, nodes: nodes.clone(), inputs: Vec::new(), outputs: Vec::new() }
            }
            StepPlan::Gpu(p) => Partition {
                target: Target::Gpu,
                nodes: p.nodes().to_vec(),
                inputs: cross(p.inputs()),
                outputs: cross(p.outputs()),
            },
        })
        .collect();
    let mut part_of = vec![None; graph.nodes.len()];
    for (i, p) in partitions.iter().enumerate() {
        for &n in &p.nodes {
            if let Some(slot) = part_of.get_mut(n) {
                *slot = Some(i);
            }
        }
    }
    let placements = verdicts
        .into_iter()
        .filter_map(|v| {
            let node = graph.nodes.get(v.node)?;
            let work = litegpu_graph::work(graph, node, &|t| shapes.get(t).cloned());
            Some(Placement {
                flops: work.flops,
                bytes: work.bytes,
                node: v.node,
                op: node.op.name().to_string(),
                output: node.outputs.first().map_or(String::new(), |&t| form(graph, &shapes, t)),
                target: v.target,
                partition: part_of.get(v.node).copied().flatten(),
                reason: v.reason,
            })
        })
        .collect();
    Ok(Draft { steps, shapes, hangs_on, placements, partitions, memory })
}

/// Whether each state is changed by one GPU part alone, or by operators on the CPU alone. Initialisers run before any part.
fn apart(graph: &Graph, steps: &[Step]) -> bool {
    let mut states = Vec::new();
    for step in steps {
        match step {
            Step::Gpu(part) => {
                let mut own: Vec<Kept> = Vec::new();
                own.extend(part.states());
                if own.iter().any(|s| states.contains(s)) {
                    return false;
                }
                states.append(&mut own);
            }
            Step::Cpu(nodes) => {
                let changes = |n: &NodeId| {
                    graph.nodes.get(*n).is_some_and(|n| match n.op.family() {
                        Family::Control => !matches!(n.op, Op::VarHandle(_) | Op::CallOnce(_)),
                        _ => n.inputs.iter().flatten().any(|&t| graph.tensors.get(t).is_some_and(|t| t.is_variable)),
                    })
                };
                if nodes.iter().any(changes) {
                    return false;
                }
            }
        }
    }
    true
}

/// Tensors whose storage the executor must not reuse when their last reader in the file's order has run: those that
/// GPU parts read, and those that an operator reads which this plan runs later.
fn outlive(graph: &Graph, steps: &[StepPlan]) -> Vec<TensorId> {
    let mut out: Vec<TensorId> = Vec::new();
    let mut order: Vec<NodeId> = Vec::new();
    for step in steps {
        match step {
            StepPlan::Cpu(nodes) => order.extend(nodes),
            StepPlan::Gpu(p) => {
                out.extend(p.inputs());
                out.extend(p.outputs());
            }
        }
    }
    // By tensor: the reader that the file puts last, of those that have run.
    let mut last: Vec<Option<NodeId>> = vec![None; graph.tensors.len()];
    for &n in &order {
        for &t in graph.nodes.get(n).iter().flat_map(|node| node.inputs.iter().flatten()) {
            let Some(latest) = last.get_mut(t) else { continue };
            if latest.is_some_and(|l| n < l) {
                // A reader that the file puts last has run before this one.
                out.push(t);
            }
            *latest = (*latest).max(Some(n));
        }
    }
    litegpu_graph::order(&mut out, &mut |a, b| a.cmp(&b));
    out.dedup();
    out
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
pub(crate) fn shape_text(info: &TensorInfo) -> String {
    match &info.signature {
        Some(s) => format!("{s:?}"),
        None => format!("{:?}", info.shape),
    }
}

fn crossing(graph: &Graph, shapes: &Shapes, t: TensorId) -> Crossing {
    let tensor = graph.tensors.get(t);
    Crossing {
        tensor: t,
        name: tensor.map(|t| t.name.clone()).unwrap_or_default(),
        form: form(graph, shapes, t),
        bytes: tensor.zip(shapes.get(t)).and_then(|(t, s)| t.dtype.byte_len(elements(s))),
    }
}
