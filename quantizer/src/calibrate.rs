//! Calibration: the float model runs over samples, and the range of every tensor is kept.

use crate::params::{Range, floats};
use litegpu_cpu::{Executor, Options, Value};
use litegpu_graph::{DType, Error, Model, Result, TensorId, shapes};
use std::fmt;
use std::str::FromStr;
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

impl Method {
    fn check(self) -> Result<()> {
        match self {
            Method::MovingAverage(p) | Method::Percentile(p) if !(p > 0.0 && p <= 1.0) => {
                Err(Error::invalid(format!("calibration: {p} is not a share between 0 and 1")))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::MinMax => f.write_str("minmax"),
            Method::MovingAverage(p) => write!(f, "average:{p}"),
            Method::Percentile(p) => write!(f, "percentile:{p}"),
            Method::Mse => f.write_str("mse"),
            Method::Entropy => f.write_str("entropy"),
        }
    }
}

/// `minmax`, `average` or `average:0.95`, `percentile` or `percentile:0.9999`, `mse`, `entropy`.
impl FromStr for Method {
    type Err = Error;

    fn from_str(s: &str) -> Result<Method> {
        let (name, share) = s.split_once(':').map_or((s, None), |(n, p)| (n, Some(p)));
        let share = |default: f32| match share {
            None => Ok(default),
            Some(p) => p.parse().map_err(|_| Error::invalid(format!("calibration method '{s}': '{p}' is no number"))),
        };
        let method = match name {
            "minmax" if !s.contains(':') => Method::MinMax,
            "average" => Method::MovingAverage(share(0.95)?),
            "percentile" => Method::Percentile(share(0.9999)?),
            "mse" if !s.contains(':') => Method::Mse,
            "entropy" if !s.contains(':') => Method::Entropy,
            _ => {
                let all = "minmax, average[:SHARE], percentile[:SHARE], mse, entropy";
                return Err(Error::invalid(format!("calibration method '{s}' is none of {all}")));
            }
        };
        method.check()?;
        Ok(method)
    }
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
    /// Per subgraph and tensor: what each channel (index of the innermost dimension) held, where that was recorded.
    pub channels: Vec<Vec<Option<Channels>>>,
}

impl Ranges {
    /// The range of one tensor.
    pub fn get(&self, subgraph: usize, tensor: TensorId) -> Option<Range> {
        self.tensors.get(subgraph)?.get(tensor).copied().flatten()
    }

    /// The channels of one tensor.
    pub fn channels(&self, subgraph: usize, tensor: TensorId) -> Option<&Channels> {
        self.channels.get(subgraph)?.get(tensor)?.as_ref()
    }
}

/// What the channels of a tensor held.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Channels {
    /// Sums.
    pub sum: Vec<f64>,
    /// Largest magnitudes.
    pub magnitude: Vec<f32>,
    /// Values per channel.
    pub count: u64,
}

impl Channels {
    /// The channels' means.
    pub fn means(&self) -> Vec<f64> {
        self.sum.iter().map(|s| s / self.count.max(1) as f64).collect()
    }

    pub(crate) fn add(&mut self, values: &[f32], channels: usize) {
        if self.sum.is_empty() {
            (self.sum, self.magnitude) = (vec![0.0; channels], vec![0.0; channels]);
        }
        // The innermost dimension of a tensor may change from sample to sample: then channels mean nothing.
        if self.sum.len() != channels || channels == 0 {
            return;
        }
        for row in values.chunks_exact(channels) {
            for ((s, m), v) in self.sum.iter_mut().zip(&mut self.magnitude).zip(row) {
                *s += f64::from(*v);
                *m = m.max(v.abs());
            }
            self.count += 1;
        }
    }

    fn merge(&mut self, other: &Channels) {
        if self.sum.is_empty() {
            *self = other.clone();
        } else if self.sum.len() == other.sum.len() {
            self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
            self.magnitude.iter_mut().zip(&other.magnitude).for_each(|(a, b)| *a = a.max(*b));
            self.count += other.count;
        }
    }
}

/// Everything that calibration saw, as it was seen: can be saved, merged with what was seen elsewhere, and resumed.
#[derive(Debug, Clone, PartialEq)]
pub struct Observations {
    pub(crate) samples: Vec<usize>,
    pub(crate) names: Vec<Vec<String>>,
    pub(crate) methods: Vec<Vec<Method>>,
    pub(crate) seen: Vec<Vec<Option<Observer>>>,
}

impl Observations {
    fn new(model: &Model, method: Method) -> Observations {
        let sizes = || model.subgraphs.iter().map(|g| g.tensors.len());
        Observations {
            samples: vec![0; model.subgraphs.len()],
            names: model.subgraphs.iter().map(|g| g.tensors.iter().map(|t| t.name.clone()).collect()).collect(),
            methods: sizes().map(|n| vec![method; n]).collect(),
            seen: sizes().map(|n| vec![None; n]).collect(),
        }
    }

    /// The ranges that follow.
    pub fn ranges(&self) -> Ranges {
        let tensors = self.seen.iter().zip(&self.methods);
        let tensors = tensors.map(|(g, m)| g.iter().zip(m).map(|(o, m)| Some(o.as_ref()?.range(*m))).collect());
        let channels = self.seen.iter().map(|g| g.iter().map(|o| o.as_ref()?.channels.clone()).collect());
        Ranges { samples: self.samples.clone(), tensors: tensors.collect(), channels: channels.collect() }
    }

    /// How many samples were seen.
    pub fn samples(&self) -> usize {
        self.samples.iter().sum()
    }

    /// Adds what was seen elsewhere, of the same model and by the same method.
    ///
    /// # Errors
    /// `Invalid` when model or method differ, naming the tensor.
    pub fn merge(&mut self, other: &Observations) -> Result<()> {
        self.fits(other)?;
        let weight = |o: &Observations, g: usize| o.samples.get(g).copied().unwrap_or(0) as f32;
        for g in 0..self.seen.len() {
            let (a, b) = (weight(self, g), weight(other, g));
            let (Some(mine), Some(theirs)) = (self.seen.get_mut(g), other.seen.get(g)) else { continue };
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                match (mine.as_mut(), theirs) {
                    (Some(m), Some(t)) => m.merge(t, a, b),
                    (None, Some(t)) => *mine = Some(t.clone()),
                    (_, None) => {}
                }
            }
        }
        self.samples.iter_mut().zip(&other.samples).for_each(|(a, b)| *a += b);
        Ok(())
    }

    fn fits(&self, other: &Observations) -> Result<()> {
        if self.names != other.names {
            let pairs = self.names.iter().flatten().zip(other.names.iter().flatten());
            let odd = pairs.into_iter().find(|(a, b)| a != b).map(|(a, _)| format!(" ('{a}' differs)"));
            return Err(Error::invalid(format!("the calibration is of another model{}", odd.unwrap_or_default())));
        }
        for ((n, a), b) in
            self.names.iter().flatten().zip(self.methods.iter().flatten()).zip(other.methods.iter().flatten())
        {
            if a != b {
                return Err(Error::invalid(format!("tensor '{n}' was calibrated by {b}, now by {a}")));
            }
        }
        Ok(())
    }
}

/// Runs samples and watches.
#[derive(Debug)]
pub struct Calibrator {
    model: Arc<Model>,
    exec: Executor,
    keep_state: bool,
    channels: bool,
    total: usize,
    data: Observations,
}

impl Calibrator {
    /// A calibrator for a float model; `threads` as in the executor's options.
    ///
    /// # Errors
    /// `Invalid` for a method whose share is not between 0 and 1, or as the executor's.
    pub fn new(model: &Model, method: Method, threads: usize) -> Result<Calibrator> {
        method.check()?;
        let model = Arc::new(model.clone());
        let exec = Executor::new(model.clone(), Options { keep_all: true, threads, ..Options::default() })?;
        let data = Observations::new(&model, method);
        Ok(Calibrator { total: 0, exec, data, model, keep_state: false, channels: false })
    }

    /// Whether variables keep their values from one sample to the next: samples are then pieces of one stream. By
    /// default each starts from zero. (TensorFlow's converter never resets them, whatever the samples are.)
    pub fn keep_state(mut self, keep: bool) -> Calibrator {
        self.keep_state = keep;
        self
    }

    /// Whether sums and extremes are kept per channel too, which equalization can use.
    pub fn channels(mut self, keep: bool) -> Calibrator {
        self.channels = keep;
        self
    }

    /// Gives some tensors another method: those for which `of` (subgraph, tensor) names one.
    ///
    /// # Errors
    /// As [`Calibrator::new`].
    pub fn methods(mut self, of: impl Fn(usize, TensorId) -> Option<Method>) -> Result<Calibrator> {
        for (g, list) in self.data.methods.iter_mut().enumerate() {
            for (t, m) in list.iter_mut().enumerate() {
                if let Some(new) = of(g, t) {
                    new.check()?;
                    *m = new;
                }
            }
        }
        Ok(self)
    }

    /// Goes on where another calibration ended.
    ///
    /// # Errors
    /// `Invalid` when that was of another model or by another method.
    pub fn resume(mut self, data: Observations) -> Result<Calibrator> {
        self.data.fits(&data)?;
        self.data = data;
        Ok(self)
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

    /// Takes values that something else computed from one sample: `value` gives the bytes and shape of a float32
    /// tensor, or `None` where it has none.
    ///
    /// # Errors
    /// `Invalid` for a value that is NaN or infinite, naming sample and tensor.
    pub fn observe<'a>(
        &mut self,
        subgraph: usize,
        value: impl FnMut(TensorId) -> Option<(&'a [u8], &'a [usize])>,
    ) -> Result<()> {
        let n = self.total;
        let model = self.model.clone();
        record(&model, &mut self.data, subgraph, self.channels, value)
            .map_err(|e| e.at(format!("calibration sample {n}")))?;
        self.total += 1;
        Ok(())
    }

    /// The ranges.
    ///
    /// To save, merge or resume, take [`Calibrator::observations`].
    pub fn finish(self) -> Ranges {
        self.data.ranges()
    }

    /// Everything that was seen.
    pub fn observations(self) -> Observations {
        self.data
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
        let exec = &self.exec;
        // A tensor that no node writes (an intermediate) has no value.
        let value = |t: TensorId| exec.get(subgraph, t).ok().map(|v| (v.bytes, v.shape));
        record(&model, &mut self.data, subgraph, self.channels, value)?;
        Ok(())
    }
}

/// Adds the values of one sample. Nothing is added when one of them is NaN or infinite.
fn record<'a>(
    model: &Model,
    data: &mut Observations,
    subgraph: usize,
    channels: bool,
    mut value: impl FnMut(TensorId) -> Option<(&'a [u8], &'a [usize])>,
) -> Result<()> {
    let Some(g) = model.subgraphs.get(subgraph) else {
        return Err(Error::invalid(format!("no subgraph {subgraph}")));
    };
    let (Some(seen), Some(methods)) = (data.seen.get_mut(subgraph), data.methods.get(subgraph)) else { return Ok(()) };
    let mut found = Vec::new();
    for (t, tensor) in g.tensors.iter().enumerate() {
        if tensor.dtype != DType::F32 || tensor.is_constant() && !tensor.is_variable {
            continue;
        }
        let Some((bytes, shape)) = value(t) else { continue };
        match extremes(bytes) {
            Some(range) if range.min.is_finite() && range.max.is_finite() => found.push((t, bytes, shape, range)),
            Some(_) => {
                let at = floats(bytes).iter().enumerate().find(|(_, v)| !v.is_finite()).map(|(i, v)| (i, *v));
                let (i, v) = at.unwrap_or_default();
                return Err(Error::invalid(format!("tensor {t} '{}': value {i} is {v}", tensor.name)));
            }
            None => {}
        }
    }
    for (t, bytes, shape, range) in found {
        let (Some(seen), Some(method)) = (seen.get_mut(t), methods.get(t)) else { continue };
        let o = seen.get_or_insert_with(Observer::new);
        o.add(bytes, range, *method);
        if let (true, Some(&n)) = (channels && shape.len() >= 2, shape.last()) {
            o.channels.get_or_insert_with(Channels::default).add(&floats(bytes), n);
        }
    }
    if let Some(n) = data.samples.get_mut(subgraph) {
        *n += 1;
    }
    Ok(())
}

/// Smallest and largest value; a value that is not finite makes both NaN. `None` for no values.
fn extremes(bytes: &[u8]) -> Option<Range> {
    const LANES: usize = 8;
    let (values, _) = bytes.as_chunks::<4>();
    let first = f32::from_le_bytes(*values.first()?);
    let (mut lo, mut hi, mut odd) = ([first; LANES], [first; LANES], [0u32; LANES]);
    let mut step = |i: usize, b: &[u8; 4]| {
        let v = f32::from_le_bytes(*b);
        lo[i] = if v < lo[i] { v } else { lo[i] };
        hi[i] = if v > hi[i] { v } else { hi[i] };
        odd[i] |= u32::from(v.to_bits() & 0x7f80_0000 == 0x7f80_0000);
    };
    let (rows, rest) = values.as_chunks::<LANES>();
    for row in rows {
        for (i, b) in row.iter().enumerate() {
            step(i, b);
        }
    }
    rest.iter().for_each(|b| step(0, b));
    if odd.iter().any(|&o| o != 0) {
        return Some(Range { min: f32::NAN, max: f32::NAN });
    }
    Some(Range { min: lo.into_iter().fold(first, f32::min), max: hi.into_iter().fold(first, f32::max) })
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
pub(crate) const BINS: usize = 4096;
/// Ranges that are tried, as shares of the whole.
const STEPS: usize = 100;
/// Integers of 8 bits.
const LEVELS: usize = 256;

/// What was seen of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observer {
    pub(crate) range: Range,
    pub(crate) average: Option<Range>,
    /// Half of what the histogram spans; a power of two.
    pub(crate) half: f32,
    pub(crate) bins: Vec<f64>,
    pub(crate) channels: Option<Channels>,
}

impl Observer {
    pub(crate) fn new() -> Observer {
        let range = Range { min: f32::INFINITY, max: f32::NEG_INFINITY };
        Observer { range, average: None, half: f32::MIN_POSITIVE, bins: Vec::new(), channels: None }
    }

    /// Adds values (float32 bytes) that lie in `now`.
    fn add(&mut self, values: &[u8], now: Range, method: Method) {
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
            Method::Percentile(_) | Method::Mse | Method::Entropy => self.count(&floats(values), now.magnitude()),
        }
    }

    /// Adds what another saw in `b` samples, to what this one saw in `a`.
    fn merge(&mut self, other: &Observer, a: f32, b: f32) {
        self.range = self.range.union(other.range);
        self.average = match (self.average, other.average) {
            (Some(x), Some(y)) => {
                let mix = |x: f32, y: f32| (x * a + y * b) / (a + b).max(1.0);
                Some(Range { min: mix(x.min, y.min), max: mix(x.max, y.max) })
            }
            (x, y) => x.or(y),
        };
        if !other.bins.is_empty() {
            let mut other = other.clone();
            self.span(other.half);
            other.span(self.half);
            self.bins.iter_mut().zip(&other.bins).for_each(|(a, b)| *a += b);
        }
        if let Some(theirs) = &other.channels {
            match &mut self.channels {
                Some(mine) => mine.merge(theirs),
                None => self.channels = Some(theirs.clone()),
            }
        }
    }

    /// Makes the histogram hold values of this magnitude.
    fn span(&mut self, magnitude: f32) {
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
    }

    pub(crate) fn count(&mut self, values: &[f32], magnitude: f32) {
        self.span(magnitude);
        let scale = (BINS / 2) as f32 / self.half;
        for v in values {
            let i = (v * scale + (BINS / 2) as f32).floor().clamp(0.0, (BINS - 1) as f32) as usize;
            self.bins[i] += 1.0;
        }
    }

    /// The middle of a bin.
    pub(crate) fn center(&self, bin: usize) -> f64 {
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

    /// The middles of bins and what they hold. Zero is a quantized value in every range: a spike of zeros, as RELU
    /// leaves it, loses nothing by rounding, and only as much is left of it as its larger neighbour holds.
    fn occupied(&self) -> impl Iterator<Item = (f64, f64)> {
        const ZERO: usize = BINS / 2;
        let held = |i: usize| self.bins.get(i).copied().unwrap_or(0.0);
        let spike = held(ZERO).min(held(ZERO - 1).max(held(ZERO + 1)));
        let bins = self.bins.iter().enumerate().map(move |(i, n)| (i, if i == ZERO { spike } else { *n }));
        bins.filter(|(_, n)| *n > 0.0).map(|(i, n)| (self.center(i), n))
    }

    fn squared_error(&self, r: Range) -> f64 {
        let step = f64::from(r.max - r.min) / (LEVELS - 1) as f64;
        let errors = self.occupied().map(|(v, n)| {
            let outside = (f64::from(r.min) - v).max(v - f64::from(r.max)).max(0.0);
            n * (outside * outside + step * step / 12.0)
        });
        errors.sum()
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
        let total: f64 = self.occupied().map(|(_, n)| n).sum();
        for (v, n) in self.occupied() {
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
        for (v, n) in self.occupied().filter(|(v, _)| *v >= f64::from(r.min) && *v <= f64::from(r.max)) {
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
        for s in samples {
            let bytes: Vec<u8> = s.iter().flat_map(|v| v.to_le_bytes()).collect();
            o.add(&bytes, extremes(&bytes).unwrap(), method);
        }
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

    /// RELU leaves zeros, which every range has: they say nothing about where to end it.
    #[test]
    fn zeros_do_not_count() {
        let half: Vec<f32> = bell().iter().map(|v| v.abs()).collect();
        let with: Vec<f32> = half.iter().flat_map(|v| [*v, 0.0, 0.0, 0.0]).collect();
        for method in [Method::Mse, Method::Entropy] {
            let (a, b) = (observe(method, &[&half]), observe(method, &[&with]));
            assert!((a.max - b.max).abs() <= 0.02 * a.max, "{method:?} {a:?} {b:?}");
        }
    }

    #[test]
    fn extremes_see_everything() {
        let bytes = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(extremes(&[]), None);
        let v: Vec<f32> = (0..37).map(|i| ((i * 11) % 37) as f32 - 5.0).collect();
        assert_eq!(extremes(&bytes(&v)), Some(Range { min: -5.0, max: 31.0 }));
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 7, 36] {
                let mut v = v.clone();
                v[at] = odd;
                assert!(extremes(&bytes(&v)).unwrap().min.is_nan(), "{odd} at {at}");
            }
        }
    }

    /// Two halves merged are the whole, whichever way the histogram had to grow.
    #[test]
    fn merged_halves() {
        let (small, large) = (bell()[..5000].to_vec(), bell()[5000..].to_vec());
        for method in [Method::MinMax, Method::Percentile(0.999), Method::Mse, Method::Entropy] {
            let of = |parts: &[&[f32]]| {
                let mut o = Observer::new();
                for s in parts {
                    let bytes: Vec<u8> = s.iter().flat_map(|v| v.to_le_bytes()).collect();
                    o.add(&bytes, extremes(&bytes).unwrap(), method);
                }
                o
            };
            let whole = of(&[&small, &large]);
            for (a, b) in [(&small, &large), (&large, &small)] {
                let mut merged = of(&[a]);
                merged.merge(&of(&[b]), 1.0, 1.0);
                assert_eq!(merged.range(method), whole.range(method), "{method}");
                assert_eq!(merged.bins.iter().sum::<f64>(), whole.bins.iter().sum::<f64>(), "{method}");
            }
        }
    }

    #[test]
    fn methods_by_name() {
        for m in [Method::MinMax, Method::MovingAverage(0.9), Method::Percentile(0.999), Method::Mse, Method::Entropy] {
            assert_eq!(m.to_string().parse::<Method>().unwrap(), m);
        }
        for bad in ["", "max", "mse:3", "percentile:2", "average:x", "percentile:nan"] {
            assert!(bad.parse::<Method>().is_err(), "{bad}");
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
