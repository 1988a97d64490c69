//! Quantization that looks at samples twice: which weights are rounded up and which down, and what biases take back, is
//! decided by what layers see, and each decision is kept only where the model's outputs on the samples come nearer to the
//! float model's.

use crate::calibrate::Sample;
use crate::compare::{feed, real};
use crate::equalize::activation;
use crate::moments::{BUDGET, Moments, Operand, operands};
use crate::params::{Grouping, Rounding, Weights, floats};
use crate::rules::{Kind, rule};
use crate::{Form, Options, QuantReport, Ranges, Scheme, WeightRange, as_float, build, finish, weights};
use bytes::Bytes;
use litegpu_cpu::{Executor, Options as CpuOptions};
use litegpu_graph::schema::ActivationFunctionType as Activation;
use litegpu_graph::{DType, Error, Graph, Model, NodeId, Op, Result, TensorId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// So far below the largest of its row, what goes into SOFTMAX adds a share of 1e-4 to what comes out, which is 0 in 8 bits.
pub(crate) const SILENT: f32 = 9.0;
/// Bytes of the float model's outputs that are kept to measure against; samples beyond are not measured on.
const KEPT: usize = 256 << 20;

/// Samples, and how to run them.
pub struct Data<'a> {
    /// Begins the samples from the first: they are gone through many times, and never held all at once.
    pub samples: &'a dyn Fn() -> Box<dyn Iterator<Item = Result<Sample>> + 'a>,
    /// As in the executor's options.
    pub threads: usize,
    /// Whether variables keep their values from one sample to the next.
    pub keep_state: bool,
    /// Told how many of how many passes are done.
    pub progress: &'a dyn Fn(usize, usize),
}

impl fmt::Debug for Data<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Data").field("threads", &self.threads).field("keep_state", &self.keep_state).finish()
    }
}

/// Changes to what rounding to the nearest makes, by subgraph and node of the float model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tuning {
    /// Ranges of weights are not fitted unless here.
    pub plain: bool,
    weights: HashMap<(usize, NodeId), Arc<Vec<(usize, Weights)>>>,
    bias: HashMap<(usize, NodeId), Arc<Vec<f32>>>,
}

impl Tuning {
    /// The integers that operand `slot` is to have.
    pub fn weights(&self, subgraph: usize, node: NodeId, slot: usize) -> Option<&Weights> {
        self.weights.get(&(subgraph, node))?.iter().find(|(i, _)| *i == slot).map(|(_, w)| w)
    }

    /// What is to be added to the float bias.
    pub fn bias(&self, subgraph: usize, node: NodeId) -> Option<&[f32]> {
        self.bias.get(&(subgraph, node)).map(|b| b.as_slice())
    }
}

/// A layer that can be tuned.
struct Target {
    subgraph: usize,
    node: NodeId,
    /// Operands whose weights are to be fitted, and how they are grouped, rounded and how many bits they have.
    operands: Vec<(Operand, Grouping, Rounding, u32)>,
    /// The result, where the bias is to be corrected.
    result: Option<TensorId>,
    /// Its activation lets results between these through as they are.
    limits: (f32, f32),
    name: String,
}

/// Weights that fit what a layer sees.
struct Fit {
    at: (usize, NodeId),
    weights: Arc<Vec<(usize, Weights)>>,
}

impl Fit {
    /// Takes the fit away where it is, or puts it where it is not.
    fn toggle(&self, tuning: &mut Tuning) {
        if tuning.weights.remove(&self.at).is_none() {
            tuning.weights.insert(self.at, self.weights.clone());
        }
    }
}

/// What a pass over the samples found.
#[derive(Clone)]
struct Trial {
    /// Per sample: error of the outputs against the float model's, squared, as a share of all that they hold.
    noise: Vec<f64>,
    /// Per target: sums over the channels of its result.
    channels: Vec<Means>,
}

/// Sums over a tensor's channels.
#[derive(Debug, Clone, Default)]
struct Means {
    sum: Vec<f64>,
    /// How many values the fused activation lets through as they are.
    open: Vec<u64>,
    count: u64,
}

impl Means {
    /// `limits`: what the activation lets through lies between them.
    fn add(&mut self, values: &[f32], channels: usize, limits: (f32, f32)) {
        if self.sum.is_empty() {
            (self.sum, self.open) = (vec![0.0; channels], vec![0; channels]);
        }
        // The innermost dimension of a tensor may change from sample to sample: then channels mean nothing.
        if self.sum.len() != channels || channels == 0 {
            return;
        }
        for row in values.chunks_exact(channels) {
            for ((s, o), v) in self.sum.iter_mut().zip(&mut self.open).zip(row) {
                *s += f64::from(*v);
                *o += u64::from(limits.0 < *v && *v < limits.1);
            }
            self.count += 1;
        }
    }

    /// What biases must gain for these means to become the `wanted` ones: a step of Newton's method, since a mean
    /// behind an activation moves by the share of values that the activation lets through when the bias moves by one.
    fn step(&self, wanted: &Means) -> Option<Vec<f32>> {
        /// The step is at most so many times the difference: what few values say is not taken further.
        const MOST: f64 = 10.0;
        if self.sum.is_empty() || self.sum.len() != wanted.sum.len() {
            return None;
        }
        let (count, of) = (self.count.max(1) as f64, wanted.count.max(1) as f64);
        let one = |((s, o), w): ((&f64, &u64), &f64)| ((w / of - s / count) * (count / *o as f64).min(MOST)) as f32;
        let all: Vec<f32> = self.sum.iter().zip(&self.open).zip(&wanted.sum).map(one).collect();
        all.iter().all(|v| v.is_finite()).then_some(all)
    }
}

impl Trial {
    fn total(&self) -> f64 {
        self.noise.iter().sum()
    }

    /// Whether the error is less, by more than what chance makes of these samples.
    fn better(&self, than: &Trial, sure: f64) -> bool {
        let pairs = || self.noise.iter().zip(&than.noise).map(|(a, b)| a - b);
        let (sum, spread) = (pairs().sum::<f64>(), pairs().map(|d| d * d).sum::<f64>().sqrt());
        self.noise.len() == than.noise.len() && sum < 0.0 && sum <= -sure * spread
    }
}

/// As [`crate::quantize_to_bytes`], with samples: `weights: Mse` then weighs the error of each weight by what the layer
/// sees; `correct_bias` makes the mean of each channel of a layer's results what it is in the float model, layer after layer.
/// With either, ranges before SOFTMAX end where its results end. A layer is changed only where that brings the outputs on
/// the samples nearer to the float model's, by more than chance.
///
/// # Errors
/// As [`crate::quantize`]; what a sample's run yields.
pub fn quantize_with(
    model: &Model,
    options: &Options,
    calibration: Option<&Ranges>,
    data: &Data<'_>,
) -> Result<(Model, Bytes, QuantReport)> {
    let plain = Tuning { plain: true, ..Tuning::default() };
    let (base, report) = build(model, options, calibration, &plain)?;
    let mut float = model.clone();
    as_float(&mut float)?;
    let targets = targets(&float, options, &report);
    if targets.is_empty() {
        return finish(model, &base, report);
    }
    let mut search = Search::new(model, &float, &base, options, calibration, data, targets)?;
    let (tuning, notes) = search.run(plain)?;
    let (m, mut report) = build(model, options, search.calibration.as_ref(), &tuning)?;
    report.notes.extend(notes);
    finish(model, &m, report)
}

/// The layers that options want tuned and that were quantized.
fn targets(float: &Model, options: &Options, report: &QuantReport) -> Vec<Target> {
    let one = |r: &crate::NodeReport| -> Option<Target> {
        let g = float.subgraphs.get(r.subgraph)?;
        let node = g.nodes.get(r.node)?;
        if !matches!(r.form, Form::Integer | Form::Weights) {
            return None;
        }
        let (rounding, bits) = match options.scheme(g, r.node) {
            Scheme::Int8 => (Rounding::Inverse, 8),
            Scheme::Int16x8 => (Rounding::Single, 8),
            Scheme::Dynamic { bits, .. } => (Rounding::Double, if weights::has_four(&node.op) { bits } else { 8 }),
            Scheme::Float | Scheme::Float16 => return None,
        };
        let grouping = weights::grouping(&node.op)?;
        let mut list = Vec::new();
        if options.weight_range(g, r.node) == WeightRange::Mse {
            let alone = |o: &Operand| {
                let readers = g.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).filter(|&&t| t == o.weights);
                let float = g.tensors.get(o.weights).is_some_and(|t| t.dtype == DType::F32 && t.quant.is_none());
                float && readers.count() == 1
            };
            list.extend(operands(g, r.node).into_iter().filter(alone).map(|o| (o, grouping, rounding, bits)));
        }
        let result = biased(g, r.node).filter(|_| options.correct_bias);
        (!list.is_empty() || result.is_some()).then(|| Target {
            subgraph: r.subgraph,
            node: r.node,
            operands: list,
            result,
            limits: match activation(&node.op) {
                Some(Activation::RELU) => (0.0, f32::INFINITY),
                Some(Activation::RELU6) => (0.0, 6.0),
                Some(Activation::RELU_N1_TO_1) => (-1.0, 1.0),
                _ => (f32::NEG_INFINITY, f32::INFINITY),
            },
            name: r.output.clone(),
        })
    };
    report.nodes.iter().filter_map(one).collect()
}

fn node_that_makes(g: &Graph, t: TensorId) -> Option<NodeId> {
    g.nodes.iter().position(|n| n.outputs.contains(&t))
}

/// What SOFTMAX alone reads in 8 bits, with the elements of a row.
fn logits(float: &Model, options: &Options, calibration: Option<&Ranges>) -> Vec<(usize, TensorId, usize, f32)> {
    let Some(ranges) = calibration else { return Vec::new() };
    let mut out = Vec::new();
    for (s, g) in float.subgraphs.iter().enumerate() {
        let consumers = g.consumers();
        for (n, node) in g.nodes.iter().enumerate() {
            let (Op::Softmax(o), Some(t)) = (&node.op, node.input(0)) else { continue };
            let last = g.tensors.get(t).and_then(|t| t.shape.last().copied()).unwrap_or(0);
            let alone =
                consumers.get(t).is_some_and(|c| *c == [n]) && !g.outputs.contains(&t) && !g.inputs.contains(&t);
            let seen = ranges.get(s, t).is_some();
            let mse = || node_that_makes(g, t).is_some_and(|m| options.weight_range(g, m) == WeightRange::Mse);
            let tuned = options.correct_bias || mse();
            let whole = alone && seen && last > 0 && o.beta == 1.0;
            if whole && tuned && options.scheme(g, n) == Scheme::Int8 {
                out.push((s, t, last, f32::INFINITY));
            }
        }
    }
    out
}

/// The result of a layer with a bias that can be changed.
fn biased(g: &Graph, n: NodeId) -> Option<TensorId> {
    let node = g.nodes.get(n)?;
    let Kind::Weighted { bias, .. } = rule(&node.op)?.kind else { return None };
    let b = g.operand(node, bias).filter(|b| b.dtype == DType::F32 && b.is_constant() && !b.is_variable)?;
    let result = *node.outputs.first()?;
    let last = *g.tensors.get(result)?.shape.last()?;
    (last > 0 && b.elements() == last).then_some(result)
}

/// Where an output's error is measured. Behind a function that saturates, the few samples it is unsure of would outvote
/// all others: then it is what goes in.
struct Gauge {
    tensor: TensorId,
    name: String,
    /// Whether it is the output itself.
    output: bool,
    /// For SOFTMAX, which a shift of a row does not change: elements of a row.
    row: Option<usize>,
    /// What is less counts as this much.
    floor: f32,
}

impl Gauge {
    /// `found`: whether the quantized model has a tensor of this name, too.
    fn of(g: &Graph, output: TensorId, found: &dyn Fn(&str) -> bool) -> Gauge {
        let name = |t: TensorId| g.tensors.get(t).map(|t| t.name.clone()).unwrap_or_default();
        let mut gauge = Gauge { tensor: output, name: name(output), output: true, row: None, floor: f32::NEG_INFINITY };
        for _ in 0..g.nodes.len() {
            let Some(node) = g.nodes.iter().find(|n| n.outputs.contains(&gauge.tensor)) else { break };
            let Some(from) = node.input(0).filter(|&t| g.tensors.get(t).is_some_and(|t| t.dtype == DType::F32)) else {
                break;
            };
            let last = g.tensors.get(from).and_then(|t| t.shape.last().copied());
            if !found(&name(from)) {
                break;
            }
            match node.op {
                Op::Softmax(_) | Op::LogSoftmax => {
                    gauge = Gauge { tensor: from, name: name(from), output: false, row: last, ..gauge };
                    break;
                }
                Op::Logistic | Op::Tanh => {
                    gauge = Gauge { tensor: from, name: name(from), output: false, row: None, ..gauge };
                    break;
                }
                Op::Reshape(_) | Op::Squeeze(_) | Op::ExpandDims => {
                    gauge = Gauge { tensor: from, name: name(from), output: false, row: None, ..gauge };
                }
                _ => break,
            }
        }
        gauge
    }

    /// The squares of what `values` are off from `wanted`; of `wanted` itself, where none are given.
    fn squares(&self, values: Option<&[f32]>, wanted: &[f32]) -> f64 {
        let row = self.row.filter(|n| *n > 0);
        let floor = |v: f32| f64::from(v.max(self.floor));
        let of = |values: Option<&[f32]>, wanted: &[f32]| {
            let at = |i: usize, w: &f32| values.map_or(0.0, |v| v.get(i).map_or(f64::NAN, |v| floor(*v))) - floor(*w);
            let shift = match row {
                Some(_) => wanted.iter().enumerate().map(|(i, w)| at(i, w)).sum::<f64>() / wanted.len().max(1) as f64,
                None => 0.0,
            };
            wanted.iter().enumerate().map(|(i, w)| (at(i, w) - shift).powi(2)).sum::<f64>()
        };
        let row = row.unwrap_or(wanted.len().max(1));
        let rows = wanted.chunks(row).enumerate();
        rows.map(|(i, w)| of(values.map(|v| v.get(i * row..i * row + w.len()).unwrap_or_default()), w)).sum()
    }
}

struct Search<'a, 'd> {
    model: &'a Model,
    float: &'a Model,
    options: &'a Options,
    calibration: Option<Ranges>,
    data: &'a Data<'d>,
    targets: Vec<Target>,
    /// What SOFTMAX alone reads: subgraph, tensor, elements of a row, and the least of the rows' largest.
    logits: Vec<(usize, TensorId, usize, f32)>,
    /// Per subgraph and output.
    gauges: Vec<Vec<Gauge>>,
    /// Per sample and gauge: what the float model yields.
    wanted: Vec<(usize, Vec<Vec<f32>>)>,
    /// Per subgraph and gauge: the squares of all that the float model yields.
    signal: Vec<Vec<f64>>,
    /// Per target: what the channels of its result hold.
    channels: Vec<Means>,
    done: usize,
    passes: usize,
}

impl<'a, 'd> Search<'a, 'd> {
    fn new(
        model: &'a Model,
        float: &'a Model,
        base: &Model,
        options: &'a Options,
        calibration: Option<&'a Ranges>,
        data: &'a Data<'d>,
        targets: Vec<Target>,
    ) -> Result<Search<'a, 'd>> {
        let logits = logits(float, options, calibration);
        let count = |of: fn(&Target) -> bool| targets.iter().filter(|t| of(t)).count();
        let fitted = count(|t| !t.operands.is_empty());
        let passes = 2 + fitted + usize::from(fitted > 1) + count(|t| t.result.is_some());
        let channels = vec![Means::default(); targets.len()];
        let signal = float.subgraphs.iter().map(|g| vec![0.0; g.outputs.len()]).collect();
        let gauges = float.subgraphs.iter().enumerate().map(|(s, g)| {
            let found = |name: &str| find(float, base, s, name).is_some();
            g.outputs.iter().map(|&t| Gauge::of(g, t, &found)).collect()
        });
        let gauges = gauges.collect();
        let wanted = Vec::new();
        Ok(Search {
            model,
            float,
            options,
            calibration: calibration.cloned(),
            data,
            targets,
            logits,
            gauges,
            wanted,
            signal,
            channels,
            done: 0,
            passes,
        })
    }

    fn pass(&mut self) {
        self.done += 1;
        (self.data.progress)(self.done, self.passes.max(self.done));
    }

    fn run(&mut self, mut tuning: Tuning) -> Result<(Tuning, Vec<String>)> {
        /// How many standard deviations surer than chance a change has to be.
        const SURE: f64 = 0.5;
        let (fits, cut) = self.look()?;
        let first = self.attempt(&tuning)?;
        let mut now = first.clone();
        let many = fits.len() > 1;
        let (mut fitted, mut corrected) = (0, 0);
        let (of_fits, mut of_biases) = (fits.len(), 0);
        if many {
            let mut all = tuning.clone();
            fits.iter().for_each(|f| f.toggle(&mut all));
            let t = self.attempt(&all)?;
            if t.better(&now, SURE) {
                (tuning, now) = (all, t);
            }
        }
        for fit in fits {
            let mut other = tuning.clone();
            fit.toggle(&mut other);
            let t = self.attempt(&other)?;
            if t.better(&now, SURE) {
                (tuning, now) = (other, t);
            }
        }
        fitted += tuning.weights.len();
        for i in 0..self.targets.len() {
            let Some((at, true)) = self.targets.get(i).map(|t| ((t.subgraph, t.node), t.result.is_some())) else {
                continue;
            };
            of_biases += 1;
            let (Some(want), Some(got)) = (self.channels.get(i), now.channels.get(i)) else { continue };
            let Some(add) = got.step(want) else {
                self.pass();
                continue;
            };
            let mut other = tuning.clone();
            other.bias.insert(at, Arc::new(add));
            let t = self.attempt(&other)?;
            if t.better(&now, SURE) {
                (tuning, now) = (other, t);
                corrected += 1;
            }
        }
        let db = |t: &Trial| -10.0 * t.total().log10();
        let mut did = Vec::new();
        if of_fits > 0 {
            did.push(format!("weights of {fitted} of {of_fits} layers were fitted"));
        }
        if of_biases > 0 {
            did.push(format!("biases of {corrected} of {of_biases} layers were corrected"));
        }
        if cut > 0 {
            did.push(format!("{cut} ranges before SOFTMAX were cut to what it can tell apart"));
        }
        let note = format!(
            "{}: {:.1} dB on the samples before, {:.1} dB after, over {} passes",
            did.join(", "),
            db(&first),
            db(&now),
            self.done
        );
        Ok((tuning, vec![note]))
    }

    /// Runs the float model: keeps its outputs, and fits weights to what their layers see.
    fn look(&mut self) -> Result<(Vec<Fit>, usize)> {
        let keep_all = CpuOptions { keep_all: true, threads: self.data.threads, ..CpuOptions::default() };
        let mut exec = Executor::new(Arc::new(self.float.clone()), keep_all)?;
        let mut budget = BUDGET;
        let operands = |t: &Target| t.operands.iter().map(|(o, ..)| Moments::new(o, &mut budget)).collect();
        let mut moments: Vec<Vec<Moments>> = self.targets.iter().map(operands).collect();
        let mut bytes = 0;
        for (n, sample) in (self.data.samples)().enumerate() {
            let place = |e: Error| e.at(format!("sample {n}"));
            let sample = sample?;
            if !self.data.keep_state {
                exec.reset();
            }
            let s = feed(self.float, &mut exec, &sample, "").map_err(place)?;
            exec.run(s).map_err(place)?;
            let Some(gauges) = self.gauges.get(s) else { continue };
            let outputs = gauges.iter().map(|g| real(&exec, s, g.tensor)).collect::<Result<Vec<_>>>().map_err(place)?;
            bytes += outputs.iter().map(|v| v.len() * 4).sum::<usize>();
            if bytes > KEPT && !self.wanted.is_empty() {
                break;
            }
            self.wanted.push((s, outputs));
            for (_, t, row, least) in self.logits.iter_mut().filter(|l| l.0 == s) {
                let Ok(v) = real(&exec, s, *t) else { continue };
                let tops = v.chunks(*row).map(|r| r.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                *least = tops.fold(*least, f32::min);
            }
            for ((t, moments), channels) in self.targets.iter().zip(&mut moments).zip(&mut self.channels) {
                if t.subgraph != s {
                    continue;
                }
                for ((o, ..), m) in t.operands.iter().zip(moments) {
                    let Ok(v) = exec.get(s, o.seen) else { continue };
                    if v.dtype == DType::F32 {
                        m.add(o, &floats(v.bytes), v.shape);
                    }
                }
                if let Some(v) = t.result.and_then(|r| exec.get(s, r).ok())
                    && let Some(&last) = v.shape.last()
                {
                    channels.add(&floats(v.bytes), last, t.limits);
                }
            }
        }
        self.pass();
        if self.wanted.is_empty() {
            return Err(Error::invalid("no samples"));
        }
        let cut = self.cut();
        for (s, outputs) in &self.wanted {
            let (Some(signal), Some(gauges)) = (self.signal.get_mut(*s), self.gauges.get(*s)) else { continue };
            for ((signal, gauge), v) in signal.iter_mut().zip(gauges).zip(outputs) {
                *signal += gauge.squares(None, v);
            }
        }
        let mut fits = Vec::new();
        for (t, moments) in self.targets.iter().zip(&moments) {
            let Some(g) = self.float.subgraphs.get(t.subgraph) else { continue };
            let mut list = Vec::new();
            for ((o, grouping, rounding, bits), m) in t.operands.iter().zip(moments) {
                let Some(w) = g.tensors.get(o.weights) else { continue };
                let Some(data) = &w.data else { continue };
                let values = floats(data);
                let whole = Weights::symmetric(&values, &w.shape, *grouping, *bits, *rounding);
                if let Some(fit) = m.fit(o, &values, &whole, *bits) {
                    list.push((o.slot, fit));
                }
            }
            if !list.is_empty() {
                fits.push(Fit { at: (t.subgraph, t.node), weights: Arc::new(list) });
            }
        }
        Ok((fits, cut))
    }

    /// Ends ranges of what SOFTMAX alone reads where its results end: the steps between what matters become smaller.
    fn cut(&mut self) -> usize {
        let mut done = 0;
        for &(s, t, _, least) in &self.logits {
            let range = self.calibration.as_mut().and_then(|r| r.tensors.get_mut(s)?.get_mut(t)?.as_mut());
            let floor = (least - SILENT).min(0.0);
            let Some(range) = range.filter(|r| r.min < floor && floor <= r.max) else { continue };
            range.min = floor;
            done += 1;
            for gauge in self.gauges.get_mut(s).into_iter().flatten().filter(|g| g.tensor == t) {
                gauge.floor = floor;
            }
        }
        done
    }

    /// Quantizes, and runs the result over the samples.
    fn attempt(&mut self, tuning: &Tuning) -> Result<Trial> {
        let (m, _) = build(self.model, self.options, self.calibration.as_ref(), tuning)?;
        let m = Arc::new(m);
        let mut exec = Executor::new(m.clone(), CpuOptions { threads: self.data.threads, ..CpuOptions::default() })?;
        let mut results: Vec<Option<TensorId>> = Vec::with_capacity(self.targets.len());
        for t in &self.targets {
            let at = t.result.and_then(|_| find(self.float, &m, t.subgraph, &t.name));
            if let Some(at) = at {
                exec.keep(t.subgraph, &[at])?;
            }
            results.push(at);
        }
        let mut gauges: Vec<Vec<TensorId>> = Vec::with_capacity(self.gauges.len());
        for (s, list) in self.gauges.iter().enumerate() {
            let Some(g) = m.subgraphs.get(s) else { continue };
            let at = |(gauge, &output): (&Gauge, &TensorId)| match gauge.output {
                true => Some(output),
                false => find(self.float, &m, s, &gauge.name),
            };
            let all: Option<Vec<TensorId>> = list.iter().zip(&g.outputs).map(at).collect();
            let all = all.ok_or_else(|| Error::internal("a tensor that is measured vanished"))?;
            exec.keep(s, &all)?;
            gauges.push(all);
        }
        let mut out = Trial { noise: Vec::new(), channels: vec![Means::default(); self.targets.len()] };
        for (n, (sample, (_, wanted))) in (self.data.samples)().zip(&self.wanted).enumerate() {
            let place = |e: Error| e.at(format!("sample {n}, the quantized model"));
            if !self.data.keep_state {
                exec.reset();
            }
            let s = feed(self.float, &mut exec, &sample?, "").map_err(place)?;
            exec.run(s).map_err(place)?;
            let (Some(at), Some(list), Some(signal)) = (gauges.get(s), self.gauges.get(s), self.signal.get(s)) else {
                continue;
            };
            let mut noise = 0.0;
            for (((&t, want), gauge), signal) in at.iter().zip(wanted).zip(list).zip(signal) {
                let got = real(&exec, s, t).map_err(place)?;
                noise += gauge.squares(Some(&got), want) / signal.max(f64::MIN_POSITIVE);
            }
            out.noise.push(noise);
            for ((t, at), channels) in self.targets.iter().zip(&results).zip(&mut out.channels) {
                if let (true, Some(at)) = (t.subgraph == s, *at)
                    && let Some(&last) = exec.get(s, at).ok().and_then(|v| v.shape.last())
                {
                    channels.add(&real(&exec, s, at).map_err(place)?, last, t.limits);
                }
            }
        }
        self.pass();
        Ok(out)
    }
}

/// A tensor's integer form in the quantized model, by its name: one that is an output has a float form as well.
fn find(float: &Model, m: &Model, s: usize, name: &str) -> Option<TensorId> {
    let old = float.subgraphs.get(s)?;
    if old.tensors.iter().filter(|x| x.name == name).count() != 1 {
        return None;
    }
    let g = m.subgraphs.get(s)?;
    let named = |name: &str| {
        let made = g.nodes.iter().flat_map(|n| &n.outputs);
        made.copied().find(|&o| g.tensors.get(o).is_some_and(|x| x.name == name))
    };
    ["_int8", "_int16", ""].iter().find_map(|suffix| named(&format!("{name}{suffix}")))
}
