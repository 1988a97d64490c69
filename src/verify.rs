//! Checking models against recorded outputs: a folder or a zip with a `manifest.json`, a folder of such zips, or a
//! model with its array file.

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::Model;
use crate::npz;
use crate::report::Target;
use crate::session::{Builder, Device, Precision, Session};
use crate::tensor::{Tensor, View, numbers};
use bytes::Bytes;
use litegpu_graph::validate::called;
use litegpu_graph::{DType, Family, Graph, Node};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest relative norm that a run in 16-bit float arithmetic may have.
pub const F16_NORM: f64 = 1e-2;
/// The largest relative norm that one operator with quantized weights on float activations (dynamic range) may add when
/// the GPU runs it. The reference quantizes such activations to 8 bits as it runs; the GPU keeps them in float, so that
/// the recording carries an error that the GPU's result lacks: steps of max/127, uniformly distributed, hence a relative
/// root mean square of crest / (127 sqrt 12), where the crest (peak over root mean square) of activations is taken as
/// 16 at most. The product passes a relative error on; those of further operators are independent and add up in
/// quadrature.
pub const HYBRID_NORM: f64 = 16.0 / (127.0 * 3.4641016151377544);
/// The largest file that is unpacked from a zip.
const MAX_FILE: u64 = 4 << 30;

/// How to check.
#[derive(Debug, Clone)]
pub struct Options {
    /// Device.
    pub device: Device,
    /// Float arithmetic on the GPU.
    pub precision: Precision,
    /// How the GPU is chosen.
    #[cfg(feature = "gpu")]
    pub gpu: crate::GpuOptions,
    /// Run on the GPU whatever can run there.
    pub everything_on_gpu: bool,
    /// Threads of each session.
    pub threads: usize,
    /// Cases that run at the same time; 0 means one per core on the CPU and one on a GPU.
    pub jobs: usize,
    /// Only cases whose name, class or operators contain one of these words, in any case of letters.
    pub filter: Vec<String>,
    /// Tolerance of float outputs where no manifest gives one.
    pub tolerance: Tolerance,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            device: Device::Cpu,
            precision: Precision::F16,
            #[cfg(feature = "gpu")]
            gpu: crate::GpuOptions::default(),
            everything_on_gpu: false,
            threads: 1,
            jobs: 0,
            filter: Vec::new(),
            tolerance: Tolerance { atol: 1e-5, rtol: 1e-4 },
        }
    }
}

/// |got - want| <= atol + rtol * |want|
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Tolerance {
    /// Absolute part.
    pub atol: f64,
    /// Relative part.
    pub rtol: f64,
}

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every output is right.
    Passed,
    /// An output is wrong, or the run failed.
    Failed,
    /// litegpu does not have an operator or type yet, and said so.
    Skipped,
}

/// One case's result.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Where the case is from: name of the zip or folder.
    pub suite: String,
    /// Its name.
    pub case: String,
    /// Its class, e.g. `int8`.
    pub class: String,
    /// Its operators.
    pub ops: Vec<String>,
    /// How it ended.
    pub status: Status,
    /// What is wrong, with the first differing element.
    pub message: Option<String>,
    /// Operators that ran on the GPU.
    pub gpu_ops: usize,
    /// Operators that ran on the CPU.
    pub cpu_ops: usize,
    /// Reasons for which operators ran on the CPU, when a GPU was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpu_reasons: Vec<String>,
    /// The largest relative norm of the error of a float output.
    pub norm: f64,
    /// Milliseconds, from reading the model to the last comparison.
    pub ms: f64,
}

/// Where files come from.
#[derive(Debug, Clone)]
enum Source {
    Folder(PathBuf),
    Zip(zip::ZipArchive<Cursor<Bytes>>),
    Pair(PathBuf, PathBuf),
}

/// One case to run.
#[derive(Debug, Clone)]
pub struct Case {
    source: usize,
    suite: String,
    entry: Entry,
}

/// What the manifest says of a case. Fields that checking does not need are not read.
#[derive(Debug, Clone, Deserialize)]
struct Entry {
    case: String,
    #[serde(default)]
    class: String,
    #[serde(default)]
    ops: Vec<String>,
    model: Option<String>,
    arrays: Option<String>,
    runs: Option<usize>,
    #[serde(default)]
    tolerance: Vec<Limit>,
    #[serde(default)]
    resized_input_shapes: Option<Vec<Vec<usize>>>,
}

/// A tolerance in a manifest: 0 for exact, or an object.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Limit {
    Number(f64),
    Object(Tolerance),
}

/// The cases found at some paths.
#[derive(Debug)]
pub struct Suite {
    sources: Vec<Source>,
    /// The cases that the filter leaves.
    pub cases: Vec<Case>,
    /// Cases that the filter drops.
    pub filtered: usize,
}

impl Suite {
    /// Collects the cases at `paths`.
    ///
    /// # Errors
    /// `Io` or `Invalid` when a path holds none of what can be checked.
    pub fn open(paths: &[PathBuf], filter: &[String]) -> Result<Suite> {
        let mut suite = Suite { sources: Vec::new(), cases: Vec::new(), filtered: 0 };
        let mut rest = paths.iter();
        while let Some(path) = rest.next() {
            let place = |e: Error| e.at(path.display());
            if path.is_dir() && path.join("manifest.json").exists() {
                suite.add(name_of(path), Source::Folder(path.clone()), filter).map_err(place)?;
            } else if path.is_dir() {
                let mut zips: Vec<PathBuf> = Vec::new();
                for e in std::fs::read_dir(path).map_err(|e| place(e.into()))? {
                    let p = e.map_err(|e| place(e.into()))?.path();
                    if p.extension().is_some_and(|e| e == "zip") {
                        zips.push(p);
                    }
                }
                zips.sort();
                if zips.is_empty() {
                    return Err(place(Error::invalid("no manifest.json and no zip in this folder")));
                }
                for z in zips {
                    suite.add_zip(&z, filter).map_err(|e| e.at(z.display()))?;
                }
            } else if path.extension().is_some_and(|e| e == "tflite") {
                let Some(arrays) = rest.next() else {
                    return Err(place(Error::invalid("a model must be followed by its array file (.npz)")));
                };
                suite.sources.push(Source::Pair(path.clone(), arrays.clone()));
                let entry = Entry {
                    case: name_of(path),
                    class: String::new(),
                    ops: Vec::new(),
                    model: None,
                    arrays: None,
                    runs: None,
                    tolerance: Vec::new(),
                    resized_input_shapes: None,
                };
                suite.cases.push(Case { source: suite.sources.len() - 1, suite: name_of(path), entry });
            } else {
                suite.add_zip(path, filter).map_err(place)?;
            }
        }
        Ok(suite)
    }

    fn add_zip(&mut self, path: &Path, filter: &[String]) -> Result<()> {
        let file = Bytes::from(std::fs::read(path)?);
        let zip = zip::ZipArchive::new(Cursor::new(file))
            .map_err(|e| Error::invalid(format!("neither a folder, a zip nor a .tflite file: {e}")))?;
        self.add(name_of(path), Source::Zip(zip), filter)
    }

    fn add(&mut self, suite: String, mut source: Source, filter: &[String]) -> Result<()> {
        let manifest = source.read("manifest.json")?;
        let entries: Vec<Entry> = serde_json::from_slice(&strict_json(&manifest))
            .map_err(|e| Error::invalid(format!("manifest.json: {e}")))?;
        let at = self.sources.len();
        for mut entry in entries {
            if entry.ops.is_empty() && !filter.is_empty() {
                // A network's manifest does not list operators: ask the model.
                entry.ops =
                    source.read(&entry.model()).and_then(Model::from_bytes).map(|m| ops(&m)).unwrap_or_default();
            }
            if matches(filter, &suite, &entry) {
                self.cases.push(Case { source: at, suite: suite.clone(), entry });
            } else {
                self.filtered += 1;
            }
        }
        self.sources.push(source);
        Ok(())
    }

    /// Runs every case and calls `done` as each ends, in any order. The results are in the order of the cases.
    ///
    /// # Errors
    /// `Device` when a GPU is asked for and there is none: the CPU's answers would say nothing of it.
    pub fn run(&self, options: &Options, done: impl Fn(&Outcome) + Sync) -> Result<Vec<Outcome>> {
        // One device for all cases, so that equal kernels are compiled once.
        #[cfg(feature = "gpu")]
        let shared = match options.device {
            Device::Gpu => Some(crate::Gpu::open(options.gpu.clone())?),
            Device::Auto => {
                let mut gpu = options.gpu.clone();
                gpu.allow_software &= gpu.adapter.is_some();
                crate::Gpu::open(gpu).ok()
            }
            Device::Cpu => None,
        };
        #[cfg(feature = "gpu")]
        let device = if shared.is_some() { options.device } else { Device::Cpu };
        #[cfg(not(feature = "gpu"))]
        let device = options.device;
        let setup = |model: &Model| {
            let b = Session::builder(model).device(device).precision(options.precision);
            let b = b.threads(options.threads).require_gpu(device == Device::Gpu);
            let b = b.everything_on_gpu(options.everything_on_gpu);
            #[cfg(feature = "gpu")]
            let b = match &shared {
                Some(gpu) => b.gpu(gpu).gpu_options(options.gpu.clone()),
                None => b,
            };
            b
        };
        let jobs = match (options.jobs, device) {
            (0, Device::Cpu) => std::thread::available_parallelism().map_or(1, |n| n.get()),
            (0, _) => 1,
            (n, _) => n,
        };
        let next = AtomicUsize::new(0);
        let results = Mutex::new(vec![None; self.cases.len()]);
        std::thread::scope(|scope| {
            for _ in 0..jobs.clamp(1, self.cases.len().max(1)) {
                scope.spawn(|| {
                    while let Some((i, case)) = {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        self.cases.get(i).map(|c| (i, c))
                    } {
                        let outcome = self.one(case, options, &setup);
                        done(&outcome);
                        if let Ok(mut all) = results.lock()
                            && let Some(slot) = all.get_mut(i)
                        {
                            *slot = Some(outcome);
                        }
                    }
                });
            }
        });
        Ok(results.into_inner().unwrap_or_else(|e| e.into_inner()).into_iter().flatten().collect())
    }

    fn one(&self, case: &Case, options: &Options, setup: &dyn Fn(&Model) -> Builder) -> Outcome {
        let start = Clock::now();
        let mut outcome = Outcome {
            suite: case.suite.clone(),
            case: case.entry.case.clone(),
            class: case.entry.class.clone(),
            ops: case.entry.ops.clone(),
            status: Status::Passed,
            message: None,
            gpu_ops: 0,
            cpu_ops: 0,
            cpu_reasons: Vec::new(),
            norm: 0.0,
            ms: 0.0,
        };
        // A panic is a bug, and a failure of this case alone.
        let run = catch_unwind(AssertUnwindSafe(|| self.check(case, options, setup, &mut outcome)));
        match run {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                outcome.status = if e.kind == ErrorKind::Unsupported { Status::Skipped } else { Status::Failed };
                outcome.message = Some(e.to_string());
            }
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                outcome.status = Status::Failed;
                outcome.message = Some(format!("panic: {text}"));
            }
        }
        outcome.ms = start.ms();
        outcome
    }

    fn check(
        &self,
        case: &Case,
        options: &Options,
        setup: &dyn Fn(&Model) -> Builder,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let entry = &case.entry;
        let mut source = self.sources.get(case.source).cloned().ok_or_else(|| Error::internal("no source"))?;
        let model = match &source {
            Source::Pair(path, _) => Model::open(path)?,
            Source::Folder(dir) => Model::open(inside(dir, &entry.model())?)?,
            Source::Zip(_) => Model::from_bytes(source.read(&entry.model())?)?,
        };
        if outcome.ops.is_empty() {
            outcome.ops = ops(&model);
        }
        let arrays = npz::read(&source.read(&entry.arrays())?).map_err(|e| e.at(entry.arrays()))?;
        let mut session = setup(&model);
        for (i, shape) in entry.resized_input_shapes.iter().flatten().enumerate() {
            session = session.input_shape(i, shape);
        }
        let mut session = session.build()?;
        for r in 0.. {
            let prefix = if r == 0 { String::new() } else { format!("run{r}_") };
            let last = entry.runs.map_or(!arrays.keys().any(|k| k.starts_with(&prefix)), |n| r >= n);
            if r > 0 && last {
                break;
            }
            run(&mut session, &arrays, &prefix, entry, options, outcome)
                .map_err(|e| if r > 0 { e.at(format!("run {r}")) } else { e })?;
        }
        Ok(())
    }
}

fn run(
    session: &mut Session,
    arrays: &BTreeMap<String, Tensor>,
    prefix: &str,
    entry: &Entry,
    options: &Options,
    outcome: &mut Outcome,
) -> Result<()> {
    let get = |name: String| arrays.get(&name).ok_or_else(|| Error::invalid(format!("the array file has no {name}")));
    for i in 0..session.inputs().len() {
        let array = get(format!("{prefix}in{i}"))?;
        let info = &session.inputs()[i];
        let value = match info.dtype {
            d if d == array.dtype() => array.clone(),
            // NumPy lacks the type: its bits come as an integer.
            d => reinterpret(array, d).ok_or_else(|| {
                Error::invalid(format!("{prefix}in{i} is {}, input '{}' is {d}", array.dtype(), info.name))
            })?,
        };
        if info.shape != value.shape() {
            session.resize_input(i, value.shape())?;
        }
        session.set_input(i, &value)?;
    }
    session.invoke()?;
    let report = session.report();
    outcome.gpu_ops = report.count(Target::Gpu);
    outcome.cpu_ops = report.count(Target::Cpu);
    if options.device != Device::Cpu {
        let mut reasons: Vec<String> = report
            .placements
            .iter()
            .filter(|p| p.target == Target::Cpu)
            .map(|p| format!("{}: {}", p.op, p.reason))
            .collect();
        reasons.sort();
        reasons.dedup();
        outcome.cpu_reasons = reasons;
    }
    let touched = touched(session, &report);
    let mut wrong = None;
    for i in 0..session.outputs().len() {
        let want = get(format!("{prefix}out{i}"))?;
        let got = session.output(i)?;
        let limit = match entry.tolerance.get(i) {
            Some(Limit::Number(n)) => Tolerance { atol: *n, rtol: 0.0 },
            Some(Limit::Object(t)) => *t,
            None if is_float(got.dtype) => options.tolerance,
            None => Tolerance::default(),
        };
        let info = &session.outputs()[i];
        let touched = touched.get(info.tensor).copied().flatten();
        let real = is_float(got.dtype) || got.quant.is_some_and(|q| q.per_tensor().is_some());
        let rule = match touched.filter(|_| real) {
            Some(hybrid) if hybrid > 0 => Rule::Norm(F16_NORM + HYBRID_NORM * f64::from(hybrid).sqrt()),
            Some(_) if options.precision == Precision::F16 => Rule::Norm(F16_NORM),
            _ => Rule::Elements(limit),
        };
        let found = compare(&got, want, rule)?;
        outcome.norm = outcome.norm.max(found.norm);
        if let Some(m) = found.wrong
            && wrong.is_none()
        {
            wrong = Some(format!("output {i} '{}': {m}", session.outputs()[i].name));
        }
    }
    wrong.map_or(Ok(()), |m| Err(Error::invalid(m)))
}

/// By tensor of the running subgraph: whether its value hangs on float arithmetic on the GPU, and on how many operators
/// with quantized weights in a row there. Only such values may differ when that arithmetic is in 16 bits; all others keep
/// to their exact rule.
fn touched(session: &Session, report: &crate::Report) -> Vec<Option<u32>> {
    let Some(graph) = session.model().graph().main() else { return Vec::new() };
    let mut on_gpu = vec![false; graph.nodes.len()];
    for p in &report.placements {
        if let Some(slot) = on_gpu.get_mut(p.node) {
            *slot = p.target == Target::Gpu;
        }
    }
    let mut touched: Vec<Option<u32>> = vec![None; graph.tensors.len()];
    for (node, on_gpu) in graph.nodes.iter().zip(on_gpu) {
        let float = |t: &usize| graph.tensors.get(*t).is_some_and(|t| t.dtype.is_float());
        let by_input = node.inputs.iter().flatten().filter_map(|&t| touched.get(t).copied().flatten()).max();
        // A float that the GPU reads is rounded on the way in, even where the result is none.
        let here = on_gpu && (node.outputs.iter().any(float) || node.inputs.iter().flatten().any(float));
        let now =
            if here { Some(by_input.unwrap_or(0) + hybrids(session.model().graph(), graph, node)) } else { by_input };
        for &t in &node.outputs {
            if let Some(slot) = touched.get_mut(t) {
                *slot = now;
            }
        }
    }
    touched
}

/// Whether the operator itself has quantized weights for float activations, and how many such operators there are in the
/// subgraphs that it runs: a pass of a loop whose state is bounded (by LOGISTIC, TANH) adds what the first adds.
fn hybrids(model: &litegpu_graph::Model, graph: &Graph, node: &Node) -> u32 {
    let one = |graph: &Graph, node: &Node| {
        let tensor = |t: usize| graph.tensors.get(t);
        let weights = node.input(1).and_then(tensor);
        matches!(node.op.family(), Family::Conv | Family::Matmul)
            && node.outputs.iter().any(|&t| tensor(t).is_some_and(|t| t.dtype.is_float()))
            && weights.is_some_and(|w| w.is_constant() && !w.dtype.is_float())
    };
    let (mut open, mut seen) = (called(&node.op), Vec::new());
    let mut count = u32::from(one(graph, node));
    while let Some(s) = open.pop() {
        let body = usize::try_from(s).ok().filter(|_| !seen.contains(&s)).and_then(|s| model.subgraphs.get(s));
        let Some(body) = body else { continue };
        seen.push(s);
        for node in &body.nodes {
            count += u32::from(one(body, node));
            open.extend(called(&node.op));
        }
    }
    count
}

fn is_float(d: DType) -> bool {
    d.is_float() || matches!(d, DType::C64 | DType::C128)
}

/// An array as the tensor type whose bits it holds, or whose values it widens.
fn reinterpret(array: &Tensor, to: DType) -> Option<Tensor> {
    let bytes = match (array.dtype(), to) {
        (DType::U16, DType::BF16) | (DType::U8, DType::F8E4M3 | DType::F8E5M2) => array.bytes().to_vec(),
        (DType::I8, DType::I4) | (DType::U8, DType::U4) => {
            array.bytes().chunks(2).map(|c| c.iter().enumerate().fold(0, |b, (i, v)| b | (v & 15) << (4 * i))).collect()
        }
        (DType::I8, DType::I2) => {
            array.bytes().chunks(4).map(|c| c.iter().enumerate().fold(0, |b, (i, v)| b | (v & 3) << (2 * i))).collect()
        }
        _ => return None,
    };
    Tensor::from_bytes(to, array.shape(), &bytes).ok()
}

/// What an output must satisfy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Every element.
    Elements(Tolerance),
    /// The norm of the difference over the norm of the expected values (of quantized ones: of the numbers they stand
    /// for), and no NaN where none is expected.
    Norm(f64),
}

/// The result of a comparison.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// What is wrong.
    pub wrong: Option<String>,
    /// Norm of the difference over the norm of the expected values (finite ones).
    pub norm: f64,
}

/// Compares an output with what is expected.
///
/// # Errors
/// `Invalid` for types that cannot be compared.
pub fn compare(got: &View<'_>, want: &Tensor, rule: Rule) -> Result<Found> {
    let wrong = |m: String| Ok(Found { wrong: Some(m), norm: 0.0 });
    if got.shape != want.shape() {
        return wrong(format!("shape {:?}, expected {:?}", got.shape, want.shape()));
    }
    if got.bytes == want.bytes() && got.dtype == want.dtype() {
        return Ok(Found::default());
    }
    if got.dtype == DType::String {
        let (g, w) = (Tensor::from_view(got)?.to_strings()?, want.to_strings()?);
        return match g.iter().zip(&w).position(|(g, w)| g != w) {
            Some(i) => wrong(format!("{} is {:?}, expected {:?}", place(got.shape, i), g[i], w[i])),
            None => Ok(Found::default()),
        };
    }
    let held;
    let want = match want.dtype() == got.dtype {
        true => want,
        false => match reinterpret(want, got.dtype) {
            Some(t) => {
                held = t;
                &held
            }
            None => return wrong(format!("type {}, expected {}", got.dtype, want.dtype())),
        },
    };
    let (mut g, mut w) = (numbers(got.dtype, got.bytes)?, numbers(got.dtype, want.bytes())?);
    if let (Rule::Norm(_), Some((_, zero)), false) =
        (rule, got.quant.and_then(litegpu_graph::Quant::per_tensor), got.dtype.is_float())
    {
        g.iter_mut().chain(&mut w).for_each(|v| *v -= f64::from(zero));
    }
    if g.len() != w.len() {
        return wrong(format!("{} elements, expected {}", g.len(), w.len()));
    }
    let (mut diff, mut size) = (0.0, 0.0);
    let (mut count, mut first, mut worst) = (0usize, None, 0.0f64);
    for (i, (&a, &b)) in g.iter().zip(&w).enumerate() {
        // Shaders may flush subnormal numbers to zero.
        let flushed = matches!(rule, Rule::Norm(_)) && a.abs().max(b.abs()) < f64::from(f32::MIN_POSITIVE);
        let d = if flushed { 0.0 } else { (a - b).abs() };
        if a.is_finite() && b.is_finite() {
            diff += d * d;
            size += b * b;
        }
        let bad = match rule {
            Rule::Elements(t) => !(a == b || (a.is_nan() && b.is_nan()) || d <= t.atol + t.rtol * b.abs()),
            // An infinity that a 16-bit float rounds to is a large finite number in 32 bits, and is wrong all the same.
            Rule::Norm(_) => {
                (a.is_nan() && !b.is_nan()) || ((a.is_infinite() || b.is_infinite()) && a != b && !b.is_nan())
            }
        };
        if bad {
            count += 1;
            first = first.or(Some(i));
            worst = worst.max(d);
        }
    }
    let norm = if diff == 0.0 { 0.0 } else { (diff / f64::max(size, f64::MIN_POSITIVE)).sqrt() };
    let parts = if matches!(got.dtype, DType::C64 | DType::C128) { 2 } else { 1 };
    let at = |i: usize| place(got.shape, i / parts);
    let message = match (rule, first) {
        (_, Some(i)) => Some(format!(
            "{count} of {} elements differ, by at most {worst:.6e}, relative norm {norm:.3e}; {} is {}, expected {}",
            g.len(),
            at(i),
            g[i],
            w[i]
        )),
        (Rule::Norm(limit), None) if !(norm <= limit) => {
            let far = |i: &usize| (g[*i] - w[*i]).abs();
            let i = (0..g.len()).filter(|i| far(i).is_finite()).max_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(0);
            Some(format!(
                "relative norm {norm:.3e} is above {limit:.0e}; furthest off is {}: {}, expected {}",
                at(i),
                g[i],
                w[i]
            ))
        }
        _ => None,
    };
    Ok(Found { wrong: message, norm })
}

/// An element's position, as an index per dimension.
fn place(shape: &[usize], mut i: usize) -> String {
    let mut at = vec![0; shape.len()];
    for (a, &d) in at.iter_mut().zip(shape).rev() {
        *a = i % d.max(1);
        i /= d.max(1);
    }
    format!("{at:?}")
}

fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn ops(model: &Model) -> Vec<String> {
    let nodes = model.graph().subgraphs.iter().flat_map(|g| &g.nodes);
    let mut ops: Vec<String> = nodes.map(|n| n.op.name().to_string()).collect();
    ops.sort();
    ops.dedup();
    ops
}

fn matches(filter: &[String], suite: &str, entry: &Entry) -> bool {
    let has = |word: &String| {
        let word = word.to_lowercase();
        let hit = |s: &str| s.to_lowercase().contains(&word);
        hit(&entry.case) || hit(&entry.class) || hit(suite) || entry.ops.iter().any(|o| hit(o))
    };
    filter.is_empty() || filter.iter().any(has)
}

/// Python writes NaN and Infinity, which JSON does not have: they become null. Text in quotes stays.
fn strict_json(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let (mut rest, mut quoted) = (text, false);
    while let Some((&c, after)) = rest.split_first() {
        let word = [&b"NaN"[..], b"-Infinity", b"Infinity"].into_iter().find(|w| !quoted && rest.starts_with(w));
        if let Some(w) = word {
            out.extend_from_slice(b"null");
            rest = rest.get(w.len()..).unwrap_or_default();
            continue;
        }
        out.push(c);
        rest = after;
        match c {
            b'"' => quoted = !quoted,
            b'\\' if quoted => {
                if let Some((&c, after)) = rest.split_first() {
                    out.push(c);
                    rest = after;
                }
            }
            _ => {}
        }
    }
    out
}

/// A manifest's file name inside its folder; it must not lead out of it.
fn inside(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    match path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        true => Ok(dir.join(path)),
        false => Err(Error::invalid(format!("the manifest names a file outside its folder: {name:?}"))),
    }
}

impl Entry {
    fn model(&self) -> String {
        self.model.clone().unwrap_or_else(|| format!("{}.tflite", self.case))
    }
    fn arrays(&self) -> String {
        self.arrays.clone().unwrap_or_else(|| format!("{}.npz", self.case))
    }
}

impl Source {
    fn read(&mut self, name: &str) -> Result<Bytes> {
        let place = |e: Error| e.at(name);
        match self {
            Source::Folder(dir) => Ok(std::fs::read(inside(dir, name)?).map_err(|e| place(e.into()))?.into()),
            Source::Pair(model, arrays) => {
                let path = if name.ends_with(".tflite") { model } else { arrays };
                Ok(std::fs::read(&*path).map_err(|e| Error::from(e).at(path.display()))?.into())
            }
            Source::Zip(zip) => {
                let file = zip.by_name(name).map_err(|e| place(Error::invalid(e.to_string())))?;
                let mut out = Vec::new();
                file.take(MAX_FILE).read_to_end(&mut out).map_err(|e| place(e.into()))?;
                Ok(out.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(got: &[f32], want: &[f32], rule: Rule) -> Found {
        let (g, w) = (Tensor::new(&[got.len()], got).unwrap(), Tensor::new(&[want.len()], want).unwrap());
        compare(&g.as_view(), &w, rule).unwrap()
    }

    #[test]
    fn elements_are_judged_one_by_one() {
        let rule = Rule::Elements(Tolerance { atol: 0.1, rtol: 0.0 });
        assert_eq!(found(&[1.0, f32::NAN, f32::INFINITY], &[1.05, f32::NAN, f32::INFINITY], rule).wrong, None);
        let bad = found(&[1.0, 2.0], &[1.0, 3.0], rule).wrong.unwrap();
        assert!(bad.contains("[1] is 2, expected 3"), "{bad}");
        assert!(found(&[f32::NAN], &[0.0], rule).wrong.is_some());
        assert!(found(&[f32::INFINITY], &[0.0], rule).wrong.is_some());
    }

    #[test]
    fn half_precision_is_judged_by_norm() {
        let rule = Rule::Norm(1e-2);
        assert_eq!(found(&[100.0, 0.5], &[100.0, 0.1], rule).wrong, None);
        assert!(found(&[100.0, 5.0], &[100.0, 0.1], rule).wrong.is_some());
        assert!(found(&[100.0, f32::NAN], &[100.0, 0.1], rule).wrong.is_some());
        assert!(found(&[f32::INFINITY], &[100.0], rule).wrong.is_some());
        assert!(found(&[1e-3], &[0.0], rule).wrong.is_some());
        assert_eq!(found(&[0.0], &[6e-41], rule).wrong, None, "subnormal");
    }

    #[test]
    fn numbers_that_json_lacks_are_read() {
        let text = strict_json(br#"[NaN, -Infinity, "NaN \" Infinity", 1]"#);
        assert_eq!(text, br#"[null, null, "NaN \" Infinity", 1]"#);
    }

    #[test]
    fn manifests_stay_in_their_folder() {
        assert!(inside(Path::new("a"), "../b").is_err());
        assert!(inside(Path::new("a"), "/b").is_err());
        assert!(inside(Path::new("a"), "expected/b.npz").is_ok());
    }
}
