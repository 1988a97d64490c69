//! Calibration: the float model runs over samples, and the range of every tensor is kept.

use crate::params::{Range, floats};
use litegpu_cpu::{Executor, Options, Value};
use litegpu_graph::{DType, Error, Model, Result, TensorId, shapes};
use std::sync::Arc;

/// How the values that were seen become a range.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Method {
    /// Everything that was seen; the reference's choice.
    #[default]
    MinMax,
    /// An average over samples of their smallest and largest values, in which the past keeps this share (0.95, say).
    /// Clips outliers, and with few samples clips too much.
    MovingAverage(f32),
    /// The range that holds this share of the values (0.9999, say).
    Percentile(f32),
    /// The range with the least mean squared error of 8-bit rounding and clipping.
    Mse,
    /// The range whose 8-bit distribution diverges least from the true one.
    Entropy,
}

/// The inputs of a sample.
#[derive(Debug, Clone)]
pub enum Inputs {
    /// By name: the signature's names, or the tensors' own where no signature is meant.
    Named(Vec<(String, Value)>),
    /// In the order of the graph's inputs.
    Ordered(Vec<Value>),
}

/// One sample of representative data.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The signature it is for; `None` means the only one, or the first subgraph.
    pub signature: Option<String>,
    /// Its inputs.
    pub inputs: Inputs,
}

/// Ranges by subgraph and tensor of the float model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ranges {
    /// Per subgraph: how many samples it saw.
    pub samples: Vec<usize>,
    /// Per subgraph and tensor: the range, where values were seen.
    pub tensors: Vec<Vec<Option<Range>>>,
}

impl Ranges {
    /// The range of one tensor.
    pub fn get(&self, subgraph: usize, tensor: TensorId) -> Option<Range> {
        self.tensors.get(subgraph)?.get(tensor).copied().flatten()
    }
}

/// Runs samples and watches.
#[derive(Debug)]
pub struct Calibrator {
    model: Arc<Model>,
    exec: Executor,
    method: Method,
    keep_state: bool,
    samples: Vec<usize>,
    total: usize,
    seen: Vec<Vec<Option<Observer>>>,
}

impl Calibrator {
    /// A calibrator for a float model; `threads` as in the executor's options.
    ///
    /// # Errors
    /// `Invalid` for a method whose share is not between 0 and 1, or as the executor's.
    pub fn new(model: &Model, method: Method, threads: usize) -> Result<Calibrator> {
        if let Method::MovingAverage(p) | Method::Percentile(p) = method
            && !(p > 0.0 && p <= 1.0)
        {
            return Err(Error::invalid(format!("calibration: {p} is not a share between 0 and 1")));
        }
        let model = Arc::new(model.clone());
        let exec = Executor::new(model.clone(), Options { keep_all: true, threads, ..Options::default() })?;
        let seen = model.subgraphs.iter().map(|g| vec![None; g.tensors.len()]).collect();
        Ok(Calibrator {
            samples: vec![0; model.subgraphs.len()],
            total: 0,
            seen,
            exec,
            method,
            model,
            keep_state: false,
        })
    }

    /// Whether variables keep their values from one sample to the next: samples are then pieces of one stream. By
    /// default each starts from zero. (TensorFlow's converter never resets them, whatever the samples are.)
    pub fn keep_state(mut self, keep: bool) -> Calibrator {
        self.keep_state = keep;
        self
    }

    /// Runs one sample.
    ///
    /// # Errors
    /// `Invalid`, naming the sample and the input or tensor: inputs that are missing, too many, of the wrong type or
    /// shape, values that are NaN or infinite; or the error of the operator that failed.
    pub fn add(&mut self, sample: &Sample) -> Result<()> {
        let n = self.total;
        self.run(sample).map_err(|e| e.at(format!("calibration sample {n}")))?;
        self.total += 1;
        Ok(())
    }

    /// The ranges.
    pub fn finish(self) -> Ranges {
        let of = |o: Option<Observer>| o.map(|o| o.range(self.method));
        let tensors = self.seen.into_iter().map(|g| g.into_iter().map(of).collect()).collect();
        Ranges { samples: self.samples, tensors }
    }

    fn run(&mut self, sample: &Sample) -> Result<()> {
        let model = self.model.clone();
        let (subgraph, inputs) = arrange(&model, sample)?;
        let Some(g) = model.subgraphs.get(subgraph) else {
            return Err(Error::invalid(format!("no subgraph {subgraph}")));
        };
        if !self.keep_state {
            self.exec.reset();
        }
        for (t, name, value) in inputs {
            let place = |e: Error| e.at(format!("input '{name}'"));
            if let Some(tensor) = g.tensors.get(t) {
                shapes::check_resize(tensor, &value.shape).map_err(place)?;
                if tensor.dtype != value.dtype {
                    let (got, want) = (value.dtype, tensor.dtype);
                    return Err(place(Error::invalid(format!("type {got} given, {want} expected"))));
                }
            }
            self.exec.set(subgraph, t, value.view()).map_err(place)?;
        }
        self.exec.run(subgraph)?;
        let Some(seen) = self.seen.get_mut(subgraph) else { return Ok(()) };
        for (t, (tensor, seen)) in g.tensors.iter().zip(seen).enumerate() {
            if tensor.dtype != DType::F32 || tensor.is_constant() && !tensor.is_variable {
                continue;
            }
            // A tensor that no node writes (an intermediate) has no value.
            let Ok(view) = self.exec.get(subgraph, t) else { continue };
            let values = floats(view.bytes);
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::invalid(format!("tensor {t} '{}': value {i} is {}", tensor.name, values[i])));
            }
            if !values.is_empty() {
                seen.get_or_insert_with(Observer::new).add(&values, self.method);
            }
        }
        if let Some(n) = self.samples.get_mut(subgraph) {
            *n += 1;
        }
        Ok(())
    }
}

/// The subgraph of a sample, and its inputs as (tensor, name, value).
pub(crate) fn arrange<'a>(model: &Model, sample: &'a Sample) -> Result<(usize, Vec<(TensorId, String, &'a Value)>)> {
    let signature = match &sample.signature {
        Some(key) => {
            let keys = || model.signatures.iter().map(|s| s.key.as_str()).collect::<Vec<_>>().join(", ");
            let found = model.signatures.iter().find(|s| s.key == *key);
            Some(found.ok_or_else(|| Error::invalid(format!("no signature '{key}'; there are: {}", keys())))?)
        }
        None => match model.signatures.as_slice() {
            [one] => Some(one),
            _ => None,
        },
    };
    let subgraph = signature.map_or(0, |s| s.subgraph);
    let g = model.subgraphs.get(subgraph).ok_or_else(|| Error::invalid(format!("no subgraph {subgraph}")))?;
    let tensor_name = |t: TensorId| g.tensors.get(t).map(|t| t.name.clone()).unwrap_or_default();
    let name_of = |t: TensorId| {
        let by_signature = signature.and_then(|s| s.inputs.iter().find(|(_, id)| *id == t).map(|(n, _)| n.clone()));
        by_signature.unwrap_or_else(|| tensor_name(t))
    };
    let mut out = Vec::new();
    match &sample.inputs {
        Inputs::Ordered(values) => {
            if values.len() != g.inputs.len() {
                return Err(Error::invalid(format!("{} inputs given, {} expected", values.len(), g.inputs.len())));
            }
            out.extend(g.inputs.iter().zip(values).map(|(&t, v)| (t, name_of(t), v)));
        }
        Inputs::Named(values) => {
            for &t in &g.inputs {
                let name = name_of(t);
                let found = values.iter().find(|(n, _)| *n == name || *n == tensor_name(t));
                let (_, v) = found.ok_or_else(|| Error::invalid(format!("input '{name}' is missing")))?;
                out.push((t, name, v));
            }
            let known = |n: &str| out.iter().any(|(t, name, _)| name == n || tensor_name(*t) == n);
            if let Some((n, _)) = values.iter().find(|(n, _)| !known(n)) {
                return Err(Error::invalid(format!("the model has no input '{n}'")));
            }
        }
    }
    Ok((subgraph, out))
}

/// Bins of the histogram, half of them for each sign.
const BINS: usize = 4096;
/// Ranges that are tried, as shares of the whole.
const STEPS: usize = 100;
/// Integers of 8 bits.
const LEVELS: usize = 256;

/// What was seen of one tensor.
#[derive(Debug, Clone)]
struct Observer {
    range: Range,
    average: Option<Range>,
    /// Half of what the histogram spans; a power of two.
    half: f32,
    bins: Vec<f64>,
}

impl Observer {
    fn new() -> Observer {
        let range = Range { min: f32::INFINITY, max: f32::NEG_INFINITY };
        Observer { range, average: None, half: f32::MIN_POSITIVE, bins: Vec::new() }
    }

    fn add(&mut self, values: &[f32], method: Method) {
        let Some(now) = Range::of(values) else { return };
        self.range = self.range.union(now);
        match method {
            Method::MinMax => {}
            Method::MovingAverage(keep) => {
                let mix = |old: f32, new: f32| keep * old + (1.0 - keep) * new;
                self.average = Some(match self.average {
                    Some(a) => Range { min: mix(a.min, now.min), max: mix(a.max, now.max) },
                    None => now,
                });
            }
            Method::Percentile(_) | Method::Mse | Method::Entropy => self.count(values, now.magnitude()),
        }
    }

    fn count(&mut self, values: &[f32], magnitude: f32) {
        if self.bins.is_empty() {
            self.bins = vec![0.0; BINS];
            while self.half < magnitude && self.half < f32::MAX / 4.0 {
                self.half *= 2.0;
            }
        }
        // Twice the span: two bins become one, and move towards the middle.
        while self.half < magnitude && self.half < f32::MAX / 4.0 {
            let mut wide = vec![0.0; BINS];
            for (i, pair) in self.bins.chunks(2).enumerate() {
                wide[BINS / 4 + i] = pair.iter().sum();
            }
            self.bins = wide;
            self.half *= 2.0;
        }
        let scale = (BINS / 2) as f32 / self.half;
        for v in values {
            let i = (v * scale + (BINS / 2) as f32).floor().clamp(0.0, (BINS - 1) as f32) as usize;
            self.bins[i] += 1.0;
        }
    }

    /// The middle of a bin.
    fn center(&self, bin: usize) -> f64 {
        (bin as f64 + 0.5 - (BINS / 2) as f64) * f64::from(self.half) / (BINS / 2) as f64
    }

    fn range(&self, method: Method) -> Range {
        match method {
            Method::MinMax => self.range,
            Method::MovingAverage(_) => self.average.unwrap_or(self.range),
            Method::Percentile(share) => self.percentile(f64::from(share)),
            Method::Mse => self.best(|r| self.squared_error(r)),
            Method::Entropy => self.best(|r| self.divergence(r)),
        }
    }

    fn percentile(&self, share: f64) -> Range {
        let total: f64 = self.bins.iter().sum();
        let tail = total * (1.0 - share) / 2.0;
        let edge = |bins: &mut dyn Iterator<Item = usize>| {
            let mut sum = 0.0;
            for i in bins {
                sum += self.bins[i];
                if sum > tail {
                    return self.center(i) as f32;
                }
            }
            0.0
        };
        let (min, max) = (edge(&mut (0..BINS)), edge(&mut (0..BINS).rev()));
        // Whole bins are coarser than what was seen.
        let (min, max) = (min.max(self.range.min), max.min(self.range.max));
        if share >= 1.0 || min > max { self.range } else { Range { min, max } }
    }

    /// What is left of the whole range at the magnitude with the least cost.
    fn best(&self, cost: impl Fn(Range) -> f64) -> Range {
        let mut best = (f64::INFINITY, self.range);
        for k in (1..=STEPS).rev() {
            let limit = self.range.magnitude() * (k as f32 / STEPS as f32);
            let r = Range { min: self.range.min.min(0.0).max(-limit), max: self.range.max.max(0.0).min(limit) };
            let c = cost(r);
            if c < best.0 {
                best = (c, r);
            }
        }
        best.1
    }

    fn squared_error(&self, r: Range) -> f64 {
        let step = f64::from(r.max - r.min) / (LEVELS - 1) as f64;
        let bins = self.bins.iter().enumerate().filter(|(_, n)| **n > 0.0);
        bins.map(|(i, n)| {
            let v = self.center(i);
            let outside = (f64::from(r.min) - v).max(v - f64::from(r.max)).max(0.0);
            n * (outside * outside + step * step / 12.0)
        })
        .sum()
    }

    /// Kullback-Leibler divergence of the quantized distribution from the true one, both clipped to `r`.
    fn divergence(&self, r: Range) -> f64 {
        let width = f64::from(r.max - r.min);
        if width <= 0.0 {
            return f64::INFINITY;
        }
        let level = |v: f64| ((v - f64::from(r.min)) / width * LEVELS as f64).clamp(0.0, (LEVELS - 1) as f64) as usize;
        // Mass and occupied bins of each level; what is clipped adds mass, but no bin.
        let (mut inside, mut bins) = (vec![0.0; LEVELS], vec![0.0; LEVELS]);
        let (mut first, mut last) = (0.0, 0.0);
        let total: f64 = self.bins.iter().sum();
        let occupied = || self.bins.iter().enumerate().filter(|(_, n)| **n > 0.0).map(|(i, n)| (self.center(i), *n));
        for (v, n) in occupied() {
            if v < f64::from(r.min) {
                first += n;
            } else if v > f64::from(r.max) {
                last += n;
            } else {
                inside[level(v)] += n;
                bins[level(v)] += 1.0;
            }
        }
        let kept: f64 = inside.iter().sum();
        if kept <= 0.0 {
            return f64::INFINITY;
        }
        let mut sum = 0.0;
        let mut edges = [first, last];
        for (v, n) in occupied().filter(|(v, _)| *v >= f64::from(r.min) && *v <= f64::from(r.max)) {
            let l = level(v);
            // Clipped mass piles up on the outermost levels.
            let extra = if l == 0 {
                std::mem::take(&mut edges[0])
            } else if l == LEVELS - 1 {
                std::mem::take(&mut edges[1])
            } else {
                0.0
            };
            let p = (n + extra) / total;
            let q = inside[l] / bins[l] / kept;
            sum += p * (p / q).ln();
        }
        // Mass that found no level to pile up on is lost altogether.
        sum + (edges[0] + edges[1]) / total * 16.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(method: Method, samples: &[&[f32]]) -> Range {
        let mut o = Observer::new();
        samples.iter().for_each(|s| o.add(s, method));
        o.range(method)
    }

    /// A bell of values around zero with one outlier.
    fn bell() -> Vec<f32> {
        let mut v: Vec<f32> = (0..10_000).map(|i| ((i % 101) as f32 + (i % 89) as f32 - 94.0) / 94.0).collect();
        v.push(50.0);
        v
    }

    #[test]
    fn ranges() {
        assert_eq!(observe(Method::MinMax, &[&[1.0, -2.0], &[0.5, 3.0]]), Range { min: -2.0, max: 3.0 });
        let r = observe(Method::MovingAverage(0.5), &[&[1.0, -2.0], &[0.0, 3.0]]);
        assert_eq!(r, Range { min: -1.0, max: 2.0 });
        // One outlier in ten thousand is worth its range to the squared error, but not to the other two.
        for method in [Method::Percentile(0.999), Method::Entropy] {
            let r = observe(method, &[&bell()]);
            assert!(r.max < 10.0 && r.max > 0.8, "{method:?} {r:?}");
        }
        for method in [Method::Percentile(1.0), Method::Mse, Method::Entropy] {
            let even: Vec<f32> = (0..=1000).map(|i| i as f32 / 1000.0).collect();
            let r = observe(method, &[&even[..10], &even]);
            assert!((r.max - 1.0).abs() < 0.02 && r.min.abs() < 0.02, "{method:?} {r:?}");
        }
    }

    #[test]
    fn nothing_and_zero() {
        for method in
            [Method::MinMax, Method::Percentile(0.99), Method::Mse, Method::Entropy, Method::MovingAverage(0.9)]
        {
            assert_eq!(observe(method, &[&[0.0, 0.0]]), Range { min: 0.0, max: 0.0 }, "{method:?}");
            let r = observe(method, &[&[f32::MAX, f32::MIN, 1e-40]]);
            assert!(r.min.is_finite() && r.max.is_finite(), "{method:?} {r:?}");
        }
    }
}
