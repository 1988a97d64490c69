//! Post-training quantization: a float model (and samples of its inputs, where activations become integers) in, a
//! smaller model out.
//!
//! - [`Mode::Dynamic`]: weights int8 (or int4), activations float; needs no data.
//! - [`Mode::Int8`]: activations int8 too; needs a [`calibrate::Calibrator`].
//! - [`Mode::Float16`]: constants float16; needs no data.
//! - [`Mode::Int16x8`]: activations int16, weights int8, biases int64; needs calibration.
//!
//! The integers are those that TensorFlow's converter makes of the same ranges. Ranges differ in one place: the
//! converter's calibration overwrites an ADD's operand with its result before it looks; ours does not.

pub mod calibrate;
pub mod compare;
pub mod equalize;
mod integer;
mod moments;
pub mod params;
pub mod recipe;
pub mod rules;
mod saved;
mod tune;
mod weights;

use bytes::Bytes;
use litegpu_cpu::{Executor, Options as CpuOptions, Value};
use litegpu_graph::{DType, Error, Graph, Model, NodeId, Op, Result, TensorId, passes};
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use calibrate::{Calibrator, Inputs, Method, Observations, Ranges, Sample};
pub use params::Range;
pub use recipe::{Recipe, Scheme};
use tune::Tuning;
pub use tune::{Data, quantize_with};

/// What to make of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Weights as integers, everything else float.
    Dynamic {
        /// 8 or 4. With 4, operators that have no int4 form get int8.
        bits: u32,
        /// Weights are dequantized before use, so that every operator computes in float.
        weight_only: bool,
        /// Smaller constants stay float.
        min_elements: usize,
    },
    /// Weights and activations int8.
    Int8 {
        /// Type of the model's inputs and outputs: float32, int8 or uint8.
        io: DType,
        /// An operator without an integer form is an error, not a float island.
        only: bool,
    },
    /// Constants float16.
    Float16,
    /// Weights int8, activations int16.
    Int16x8 {
        /// Type of the model's inputs and outputs: float32 or int16.
        io: DType,
        /// An operator without a 16x8 form is an error, not a float island.
        only: bool,
        /// int64, or int32: smaller and faster where the runtime knows it.
        bias: DType,
    },
}

impl Mode {
    /// Dynamic range with 8 bits, as the reference converter does it.
    pub const DYNAMIC: Mode = Mode::Dynamic { bits: 8, weight_only: false, min_elements: MIN_ELEMENTS };

    /// Whether the mode needs ranges.
    pub fn needs_calibration(self) -> bool {
        matches!(self, Mode::Int8 { .. } | Mode::Int16x8 { .. })
    }
}

/// How the range of a group of weights is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WeightRange {
    /// All that occurs; the reference's choice.
    #[default]
    MinMax,
    /// That with the least mean squared error of rounding and clipping; given samples ([`quantize_with`]), with the least
    /// error of what the layer computes, and each weight rounded as that wants it.
    Mse,
}

/// `minmax` or `mse`.
impl FromStr for WeightRange {
    type Err = Error;

    fn from_str(s: &str) -> Result<WeightRange> {
        match s {
            "minmax" => Ok(WeightRange::MinMax),
            "mse" => Ok(WeightRange::Mse),
            _ => Err(Error::invalid(format!("the range of weights can be minmax or mse, not '{s}'"))),
        }
    }
}

/// How to quantize.
#[derive(Debug, Clone)]
pub struct Options {
    /// What to make.
    pub mode: Mode,
    /// Operators that stay float: by the operator's name (`CONV_2D`) or the name of one of its outputs.
    pub keep_float: Vec<String>,
    /// Rules for single operators.
    pub recipe: Recipe,
    /// How the range of weights is chosen, where no rule says otherwise.
    pub weights: WeightRange,
    /// Corrects biases by what quantization moves the results on average. Needs samples: [`quantize_with`].
    pub correct_bias: bool,
}

impl Options {
    /// Everything that the mode can quantize.
    pub fn new(mode: Mode) -> Options {
        Options {
            mode,
            keep_float: Vec::new(),
            recipe: Recipe::default(),
            weights: WeightRange::MinMax,
            correct_bias: false,
        }
    }

    /// Whether ranges are needed to quantize this model.
    pub fn needs_calibration(&self, model: &Model) -> bool {
        let any = |g: &Graph| (0..g.nodes.len()).any(|n| self.scheme(g, n).needs_calibration());
        self.mode.needs_calibration() || model.subgraphs.iter().any(any)
    }

    /// Whether samples are needed to quantize this model, and ranges alone are not enough: for [`quantize_with`].
    pub fn needs_samples(&self, model: &Model) -> bool {
        let wanted = |g: &Graph, n: NodeId| {
            let integer = !matches!(self.scheme(g, n), Scheme::Float | Scheme::Float16);
            integer && (self.correct_bias || self.weight_range(g, n) == WeightRange::Mse)
        };
        model.subgraphs.iter().any(|g| (0..g.nodes.len()).any(|n| wanted(g, n)))
    }

    fn scheme(&self, g: &Graph, n: NodeId) -> Scheme {
        if self.keeps(g, n) {
            return Scheme::Float;
        }
        self.recipe.scheme(g, n).unwrap_or(Scheme::of(self.mode))
    }

    fn weight_range(&self, g: &Graph, n: NodeId) -> WeightRange {
        self.recipe.weights(g, n).unwrap_or(self.weights)
    }

    fn keeps(&self, g: &Graph, n: NodeId) -> bool {
        let Some(node) = g.nodes.get(n) else { return false };
        self.keep_float.iter().any(|k| {
            k == node.op.name() || node.outputs.iter().any(|&t| g.tensors.get(t).is_some_and(|t| t.name == *k))
        })
    }
}

/// What is to become of one operator of a subgraph, and then what has.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub scheme: Scheme,
    pub weights: WeightRange,
    pub form: Form,
}

/// What became of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// It computes in integers.
    Integer,
    /// Its weights are integers, its activations float.
    Weights,
    /// Its constants are float16.
    Half,
    /// It stays float, for this reason.
    Float(String),
    /// It never was float.
    Untouched,
}

/// One operator of the float model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// Subgraph of the float model.
    pub subgraph: usize,
    /// Node of the float model.
    pub node: NodeId,
    /// The operator's name.
    pub op: String,
    /// Its first output's name.
    pub output: String,
    /// What became of it.
    pub form: Form,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QuantReport {
    /// Every operator of the float model.
    pub nodes: Vec<NodeReport>,
    /// Things worth knowing.
    pub notes: Vec<String>,
    /// File size before.
    pub bytes_before: usize,
    /// File size after.
    pub bytes_after: usize,
}

impl fmt::Display for QuantReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |form: fn(&Form) -> bool| self.nodes.iter().filter(|n| form(&n.form)).count();
        let ratio = self.bytes_before as f64 / self.bytes_after.max(1) as f64;
        writeln!(f, "{} -> {} bytes ({ratio:.2}x smaller)", self.bytes_before, self.bytes_after)?;
        for (what, n) in [
            ("integer", count(|f| *f == Form::Integer)),
            ("integer weights", count(|f| *f == Form::Weights)),
            ("float16 constants", count(|f| *f == Form::Half)),
            ("float", count(|f| matches!(f, Form::Float(_)))),
        ] {
            if n > 0 {
                writeln!(f, "{n} operators: {what}")?;
            }
        }
        for n in &self.nodes {
            if let Form::Float(why) = &n.form {
                writeln!(f, "float: {} #{} '{}': {why}", n.op, n.node, n.output)?;
            }
        }
        self.notes.iter().try_for_each(|n| writeln!(f, "note: {n}"))
    }
}

/// Quantizes a float model. The result has been written, read back and run.
///
/// # Errors
/// `Invalid` when options contradict each other, calibration is missing, or a constant is NaN or infinite; `Unsupported`
/// when every operator must become an integer one and one cannot, with its name and the reason; whatever the result's own
/// reading or running yields.
pub fn quantize(model: &Model, options: &Options, calibration: Option<&Ranges>) -> Result<(Model, QuantReport)> {
    quantize_to_bytes(model, options, calibration).map(|(m, _, r)| (m, r))
}

/// [`quantize`], with the file's bytes too: those that were read back.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_to_bytes(
    model: &Model,
    options: &Options,
    calibration: Option<&Ranges>,
) -> Result<(Model, Bytes, QuantReport)> {
    if options.correct_bias && options.needs_samples(model) {
        return Err(Error::invalid("correcting biases needs samples: quantize_with"));
    }
    let (m, report) = build(model, options, calibration, &Tuning::default())?;
    finish(model, &m, report)
}

/// Writes, reads back and runs.
fn finish(before: &Model, m: &Model, mut report: QuantReport) -> Result<(Model, Bytes, QuantReport)> {
    report.bytes_before = before.write()?.len();
    let bytes: Bytes = m.write().map_err(|e| e.at("writing the quantized model"))?.into();
    report.bytes_after = bytes.len();
    let back = Model::read(bytes.clone()).map_err(|e| e.at("reading the quantized model back"))?;
    try_run(&back).map_err(|e| e.at("running the quantized model"))?;
    Ok((back, bytes, report))
}

/// The quantized model, not yet written.
fn build(
    model: &Model,
    options: &Options,
    calibration: Option<&Ranges>,
    tuning: &Tuning,
) -> Result<(Model, QuantReport)> {
    check(options)?;
    let mut report = QuantReport::default();
    let mut m = model.clone();
    // What becomes or stays float16 may stay as sparse, and as short, as it is.
    let short = |g: &Graph| (0..g.nodes.len()).all(|n| matches!(options.scheme(g, n), Scheme::Float | Scheme::Float16));
    let short = model.subgraphs.iter().all(short);
    if !short {
        as_float(&mut m)?;
    }
    for g in &m.subgraphs {
        for (n, node) in g.nodes.iter().enumerate() {
            for t in node.inputs.iter().flatten().filter_map(|&t| g.tensors.get(t)) {
                if let (DType::F32, Some(data)) = (t.dtype, &t.data) {
                    params::finite(&params::floats(data))
                        .map_err(|e| e.at(format!("operator {n} {}: constant '{}'", node.op.name(), t.name)))?;
                }
            }
        }
    }
    if let Some(r) = calibration {
        fits(r, model)?;
        if options.needs_calibration(&m) && r.samples.iter().all(|n| *n == 0) {
            return Err(Error::invalid("the calibration saw no samples"));
        }
    } else if options.needs_calibration(&m) {
        return Err(Error::invalid("this needs calibration data"));
    }
    for i in options.recipe.idle(&m) {
        report.notes.push(format!("rule {i} of the recipe applies to no operator"));
    }
    let float = m.subgraphs.clone();
    let task = |g: &Graph, n: NodeId| {
        let scheme = options.scheme(g, n);
        let kept = scheme == Scheme::Float && is_float(g, n);
        let form = if kept { Form::Float("kept on request".into()) } else { Form::Untouched };
        let weights = if tuning.plain { WeightRange::MinMax } else { options.weight_range(g, n) };
        Task { scheme, weights, form }
    };
    let mut tasks: Vec<Vec<Task>> = float.iter().map(|g| (0..g.nodes.len()).map(|n| task(g, n)).collect()).collect();
    let min_elements = match options.mode {
        Mode::Dynamic { min_elements, .. } => min_elements,
        _ => MIN_ELEMENTS,
    };
    let all_half = options.mode == Mode::Float16;
    let inserted = weights::run(&mut m, &mut tasks, min_elements, tuning, all_half, &mut report);
    let target = match options.mode {
        Mode::Int8 { io, only } => integer::Target { bias: DType::I64, io, only },
        Mode::Int16x8 { io, only, bias } => integer::Target { bias, io, only },
        _ => integer::Target { bias: DType::I64, io: DType::F32, only: false },
    };
    if let Some(r) = calibration
        && tasks.iter().flatten().any(|t| t.scheme.needs_calibration())
    {
        let job = integer::Job { target, ranges: r, tuning, inserted: &inserted };
        integer::run(&mut m, &mut tasks, &job, &mut report)?;
    }
    for (s, (g, tasks)) in float.iter().zip(tasks).enumerate() {
        report.nodes.extend(tasks.into_iter().enumerate().map(|(n, t)| node_report(g, s, n, t.form)));
    }
    passes::compact::run(&mut m);
    share(&mut m);
    Ok((m, report))
}

/// Constants with fewer elements keep their type in dynamic range, unless the caller says otherwise.
pub const MIN_ELEMENTS: usize = 1024;

fn check(options: &Options) -> Result<()> {
    let io = |io: DType, allowed: &[DType]| {
        if allowed.contains(&io) {
            return Ok(());
        }
        let names: Vec<_> = allowed.iter().map(|d| d.name()).collect();
        Err(Error::invalid(format!("inputs and outputs cannot be {io} in this mode, only {}", names.join(", "))))
    };
    match options.mode {
        Mode::Dynamic { bits, .. } if bits != 8 && bits != 4 => {
            Err(Error::invalid(format!("weights of {bits} bits: only 8 and 4 are possible")))
        }
        Mode::Int8 { io: t, .. } => io(t, &[DType::F32, DType::I8, DType::U8]),
        Mode::Int16x8 { bias, .. } if bias != DType::I64 && bias != DType::I32 => {
            Err(Error::invalid(format!("biases cannot be {bias}, only int64 or int32")))
        }
        Mode::Int16x8 { io: t, .. } => io(t, &[DType::F32, DType::I16]),
        _ => Ok(()),
    }
}

fn fits(r: &Ranges, model: &Model) -> Result<()> {
    let fits = r.tensors.len() == model.subgraphs.len()
        && r.tensors.iter().zip(&model.subgraphs).all(|(r, g)| r.len() == g.tensors.len());
    if fits { Ok(()) } else { Err(Error::invalid("the calibration is of another model")) }
}

/// Gives constants of the same bytes one place in the file.
fn share(m: &mut Model) {
    let mut known: HashSet<Bytes> = HashSet::new();
    for t in m.subgraphs.iter_mut().flat_map(|g| &mut g.tensors).filter(|t| !t.is_variable) {
        let Some(data) = &mut t.data else { continue };
        match known.get(data) {
            Some(same) => *data = same.clone(),
            None => drop(known.insert(data.clone())),
        }
    }
}

/// Whether an operator reads or writes floats.
pub(crate) fn is_float(g: &Graph, n: NodeId) -> bool {
    let float = |t: &TensorId| g.tensors.get(*t).is_some_and(|t| t.dtype.is_float());
    g.nodes.get(n).is_some_and(|n| n.inputs.iter().flatten().chain(&n.outputs).any(float))
}

/// Makes sparse and float16 constants what they stand for: dense float32. Tensors keep their numbers.
pub(crate) fn as_float(m: &mut Model) -> Result<()> {
    for (i, g) in m.subgraphs.iter_mut().enumerate() {
        passes::densify::run(g).map_err(|e| e.at(format!("subgraph {i}")))?;
        widen(g);
    }
    Ok(())
}

/// Float16 constants behind DEQUANTIZE become float32 constants: what follows knows float32 only.
fn widen(g: &mut Graph) {
    passes::constants::fold(g, |g, n| {
        let node = g.nodes.get(n)?;
        let t = g.operand(node, 0).filter(|t| node.op == Op::Dequantize && t.dtype == DType::F16)?;
        let halves = t.data.as_ref()?.as_chunks::<2>().0.iter();
        let wide: Vec<u8> = halves.flat_map(|h| half::f16::from_le_bytes(*h).to_f32().to_le_bytes()).collect();
        Some(vec![(t.shape.clone(), wide.into())])
    });
}

/// Runs every entry point once, on zeros in the declared shapes.
fn try_run(model: &Model) -> Result<()> {
    let shared = Arc::new(model.clone());
    let mut exec = Executor::new(shared, CpuOptions::default())?;
    for s in entries(model) {
        let Some(g) = model.subgraphs.get(s) else { continue };
        for &t in &g.inputs {
            if let Some(t2) = g.tensors.get(t).filter(|t| t.dtype.bits() > 0) {
                let zeros = Value::zeros(t2.dtype, &t2.shape)?;
                exec.set(s, t, zeros.view()).map_err(|e| e.at(format!("input '{}'", t2.name)))?;
            }
        }
        exec.run(s)?;
    }
    Ok(())
}

/// Subgraphs that a caller may run: the first, and those with a signature.
pub(crate) fn entries(model: &Model) -> Vec<usize> {
    let mut all: Vec<usize> = std::iter::once(0).chain(model.signatures.iter().map(|s| s.subgraph)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

pub(crate) fn node_report(g: &Graph, subgraph: usize, node: NodeId, form: Form) -> NodeReport {
    let n = g.nodes.get(node);
    NodeReport {
        subgraph,
        node,
        op: n.map(|n| n.op.name().to_string()).unwrap_or_default(),
        output: n.and_then(|n| g.tensors.get(*n.outputs.first()?)).map(|t| t.name.clone()).unwrap_or_default(),
        form,
    }
}
