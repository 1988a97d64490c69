//! How far a quantized model is from its float original: signal-to-noise ratio, cosine, error per layer in steps.

use crate::calibrate::{Inputs, Observer, Sample};
use crate::params::Range;
use litegpu_cpu::{Executor, Options, Value};
use litegpu_graph::{DType, Error, Model, Op, Quant, Result, TensorId, elements};
use std::sync::Arc;

/// Sums over pairs of values (wanted, got), from which the measures follow.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Distance {
    /// Values compared.
    pub count: u64,
    signal: f64,
    noise: f64,
    got: f64,
    product: f64,
    /// Largest absolute difference.
    pub max: f64,
    sum: f64,
    sum_abs: f64,
}

impl Distance {
    /// Adds pairs.
    pub fn add(&mut self, want: &[f32], got: &[f32]) {
        for (w, g) in want.iter().zip(got) {
            let (w, g) = (f64::from(*w), f64::from(*g));
            let d = g - w;
            self.count += 1;
            self.signal += w * w;
            self.got += g * g;
            self.noise += d * d;
            self.product += w * g;
            self.sum += d;
            self.sum_abs += d.abs();
            self.max = self.max.max(d.abs());
        }
    }

    /// Signal-to-noise ratio in dB; infinite for equal values.
    pub fn snr(&self) -> f64 {
        if self.noise == 0.0 { f64::INFINITY } else { 10.0 * (self.signal / self.noise).log10() }
    }

    /// Cosine of the angle between the two; 1 for equal directions.
    pub fn cosine(&self) -> f64 {
        let norm = (self.signal * self.got).sqrt();
        if norm == 0.0 { f64::from(u8::from(self.noise == 0.0)) } else { self.product / norm }
    }

    /// Root of the mean squared error.
    pub fn rmse(&self) -> f64 {
        (self.noise / self.count.max(1) as f64).sqrt()
    }

    /// Mean of the signed error: far from 0 means a bias.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    /// Mean of the error's magnitude.
    pub fn mean_abs(&self) -> f64 {
        self.sum_abs / self.count.max(1) as f64
    }

    /// Standard deviation of the error's magnitude.
    pub fn deviation(&self) -> f64 {
        (self.noise / self.count.max(1) as f64 - self.mean_abs().powi(2)).max(0.0).sqrt()
    }
}

/// One tensor that both models compute.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Subgraph.
    pub subgraph: usize,
    /// The tensor's name.
    pub name: String,
    /// The quantized model's operator that makes it.
    pub op: String,
    /// Its type in the quantized model.
    pub dtype: DType,
    /// Scale in the quantized model; 0 where it is float there.
    pub scale: f32,
    /// What the quantized model's integers can stand for.
    pub range: Option<Range>,
    /// How far it is off.
    pub distance: Distance,
    /// Values of the float model outside that range.
    pub clipped: u64,
    /// Values of the float model; only for layers.
    seen: Option<Box<Observer>>,
}

impl Layer {
    /// Error in quantization steps. Rounding alone gives 0.29; above 0.7 something is wrong before or in this layer.
    pub fn steps(&self) -> f64 {
        if self.scale > 0.0 { self.distance.rmse() / f64::from(self.scale) } else { 0.0 }
    }

    /// Share of the float model's values that the integers cannot stand for.
    pub fn clipping(&self) -> f64 {
        self.clipped as f64 / self.distance.count.max(1) as f64
    }

    /// The float model's values as counts in equal bins from the smallest to the largest.
    pub fn histogram(&self, bins: usize) -> Option<(Range, Vec<f64>)> {
        let seen = self.seen.as_ref()?;
        let (lo, width) = (f64::from(seen.range.min), f64::from(seen.range.max) - f64::from(seen.range.min));
        let mut out = vec![0.0; bins];
        if !(width > 0.0) || bins == 0 {
            return None;
        }
        for (i, n) in seen.bins.iter().enumerate().filter(|(_, n)| **n > 0.0) {
            let at = ((seen.center(i) - lo) / width * bins as f64).clamp(0.0, (bins - 1) as f64) as usize;
            out[at] += n;
        }
        Some((seen.range, out))
    }
}

/// A comparison over some samples.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Comparison {
    /// Per output of each subgraph that ran, by name.
    pub outputs: Vec<Layer>,
    /// Per tensor that both models have, in the quantized model's order of execution.
    pub layers: Vec<Layer>,
    /// Samples whose largest output value is at the same place in both (of the first output), and all of them.
    pub same_top: (usize, usize),
}

impl Comparison {
    /// The layers, the most harmful first: by error in steps, and float ones by error against their size.
    pub fn by_harm(&self) -> Vec<&Layer> {
        let harm = |l: &Layer| if l.scale > 0.0 { l.steps() } else { 10f64.powf(-l.distance.snr() / 20.0) };
        let mut all: Vec<&Layer> = self.layers.iter().collect();
        all.sort_by(|a, b| harm(b).total_cmp(&harm(a)));
        all
    }
}

/// Runs both models on the samples. Inputs are given as the float model takes them, and quantized where the other takes
/// integers. With `layers`, every tensor is compared, by name.
///
/// # Errors
/// As [`Comparer::add`].
pub fn compare(float: &Model, quantized: &Model, samples: &[Sample], layers: bool) -> Result<Comparison> {
    let mut c = Comparer::new(float, quantized, layers, Options::default().threads)?;
    samples.iter().try_for_each(|s| c.add(s))?;
    Ok(c.finish())
}

/// Compares two models sample by sample.
#[derive(Debug)]
pub struct Comparer {
    want: Executor,
    got: Executor,
    layers: bool,
    out: Comparison,
}

impl Comparer {
    /// A comparison of a float model with a quantized one; `threads` as in the executor's options.
    ///
    /// # Errors
    /// As the executor's.
    pub fn new(float: &Model, quantized: &Model, layers: bool, threads: usize) -> Result<Comparer> {
        let options = Options { keep_all: layers, threads, ..Options::default() };
        let want = Executor::new(Arc::new(float.clone()), options.clone())?;
        let got = Executor::new(Arc::new(quantized.clone()), options)?;
        Ok(Comparer { want, got, layers, out: Comparison::default() })
    }

    /// Runs both on one sample.
    ///
    /// # Errors
    /// `Invalid` when the models have different inputs or outputs, with the name; the errors of either run; with the
    /// sample's number.
    pub fn add(&mut self, sample: &Sample) -> Result<()> {
        let n = self.out.same_top.1;
        one(&mut self.want, &mut self.got, sample, self.layers, &mut self.out).map_err(|e| e.at(format!("sample {n}")))
    }

    /// What was found.
    pub fn finish(self) -> Comparison {
        self.out
    }
}

fn one(want: &mut Executor, got: &mut Executor, sample: &Sample, layers: bool, out: &mut Comparison) -> Result<()> {
    let (a, b) = (want.model().clone(), got.model().clone());
    want.reset();
    got.reset();
    let s = feed(&a, want, sample, "")?;
    feed(&a, got, sample, " of the quantized model")?;
    let missing = || Error::invalid(format!("no subgraph {s}"));
    let (ga, gb) = (a.subgraphs.get(s).ok_or_else(missing)?, b.subgraphs.get(s).ok_or_else(missing)?);
    if ga.outputs.len() != gb.outputs.len() {
        return Err(Error::invalid("the models have different outputs"));
    }
    want.run(s).map_err(|e| e.at("the float model"))?;
    got.run(s).map_err(|e| e.at("the quantized model"))?;
    for (i, (&ta, &tb)) in ga.outputs.iter().zip(&gb.outputs).enumerate() {
        let name = ga.tensors.get(ta).map(|t| t.name.clone()).unwrap_or_default();
        let (w, g) = (real(want, s, ta)?, real(got, s, tb)?);
        if w.len() != g.len() {
            return Err(Error::invalid(format!("output '{name}': {} values and {}", w.len(), g.len())));
        }
        if i == 0 {
            out.same_top.0 += usize::from(top(&w) == top(&g));
            out.same_top.1 += 1;
        }
        record(&mut out.outputs, gb, s, tb, &name, &w, &g, false);
    }
    if layers {
        let by_name: std::collections::HashMap<&str, TensorId> = ga
            .tensors
            .iter()
            .enumerate()
            .filter(|(_, t)| t.dtype == DType::F32 && !t.is_constant() && !t.is_variable)
            .map(|(i, t)| (t.name.as_str(), i))
            .collect();
        for tb in gb.nodes.iter().flat_map(|n| n.outputs.clone()) {
            let Some(t) = gb.tensors.get(tb) else { continue };
            let base = t.name.strip_suffix("_int8").or(t.name.strip_suffix("_int16")).unwrap_or(&t.name);
            let exact = by_name.contains_key(t.name.as_str());
            let base = if exact { t.name.as_str() } else { base };
            // A float output of an integer model is the same tensor once more.
            if exact && gb.nodes.iter().any(|n| n.op == Op::Dequantize && n.outputs.contains(&tb)) {
                continue;
            }
            let Some(&ta) = by_name.get(base) else { continue };
            let (Ok(mut w), Ok(mut g)) = (real(want, s, ta), real(got, s, tb)) else { continue };
            if w.len() == g.len() {
                let mut readers = gb.nodes.iter().filter(|n| n.inputs.contains(&Some(tb))).peekable();
                let softmax =
                    readers.peek().is_some() && readers.all(|n| matches!(&n.op, Op::Softmax(o) if o.beta == 1.0));
                if let (true, Some(&row)) = (softmax && t.quant.is_some(), t.shape.last()) {
                    told_apart(&mut w, &mut g, row);
                }
                record(&mut out.layers, gb, s, tb, base, &w, &g, true);
            }
        }
    }
    Ok(())
}

/// Writes a sample, given as the float model takes it, into an executor of that model or of a quantized one. Returns the
/// subgraph.
pub(crate) fn feed(float: &Model, exec: &mut Executor, sample: &Sample, whose: &str) -> Result<usize> {
    let model = exec.model().clone();
    let (s, inputs) = crate::calibrate::arrange(float, sample)?;
    let missing = || Error::invalid(format!("no subgraph {s}"));
    let ga = float.subgraphs.get(s).ok_or_else(missing)?;
    let gb = model.subgraphs.get(s).ok_or_else(missing)?;
    if ga.inputs.len() != gb.inputs.len() {
        return Err(Error::invalid("the models have different inputs"));
    }
    for (t, name, value) in inputs {
        let at = ga.inputs.iter().position(|&i| i == t).and_then(|i| gb.inputs.get(i)).copied();
        let at = at.ok_or_else(|| Error::invalid(format!("input '{name}' is missing{whose}")))?;
        let Some(tensor) = gb.tensors.get(at) else { continue };
        let value = quantize_value(value, tensor.dtype, tensor.quant.as_ref())?;
        exec.set(s, at, value.view()).map_err(|e| e.at(format!("input '{name}'{whose}")))?;
    }
    Ok(s)
}

/// Of what goes into SOFTMAX, makes equal what comes out as nothing: a range may end there.
fn told_apart(want: &mut [f32], got: &mut [f32], row: usize) {
    for (w, g) in want.chunks_mut(row.max(1)).zip(got.chunks_mut(row.max(1))) {
        let least = w.iter().copied().fold(f32::NEG_INFINITY, f32::max) - crate::tune::SILENT;
        w.iter_mut().chain(g).for_each(|v| *v = v.max(least));
    }
}

fn record(
    list: &mut Vec<Layer>,
    g: &litegpu_graph::Graph,
    s: usize,
    t: TensorId,
    name: &str,
    w: &[f32],
    got: &[f32],
    count: bool,
) {
    let at = list.iter().position(|l| l.subgraph == s && l.name == name).unwrap_or_else(|| {
        let maker = g.nodes.iter().find(|n| n.outputs.contains(&t));
        let tensor = g.tensors.get(t);
        let params = tensor.and_then(|t| t.per_tensor()).filter(|(s, _)| *s > 0.0);
        let dtype = tensor.map_or(DType::F32, |t| t.dtype);
        let range = params.and_then(|(scale, zero)| {
            let (lo, hi) = match dtype {
                DType::I8 => (-128, 127),
                DType::U8 => (0, 255),
                DType::I16 => (-32768, 32767),
                _ => return None,
            };
            Some(Range { min: (lo - zero) as f32 * scale, max: (hi - zero) as f32 * scale })
        });
        list.push(Layer {
            subgraph: s,
            name: name.to_string(),
            op: maker.map(|n| n.op.name().to_string()).unwrap_or_default(),
            dtype,
            scale: params.map_or(0.0, |(s, _)| s),
            range,
            distance: Distance::default(),
            clipped: 0,
            seen: count.then(|| Box::new(Observer::new())),
        });
        list.len() - 1
    });
    if let Some(l) = list.get_mut(at) {
        l.distance.add(w, got);
        if let Some(r) = l.range {
            // Rounding brings values within half a step of an end back to it.
            let slack = l.scale / 2.0;
            l.clipped += w.iter().filter(|v| **v < r.min - slack || **v > r.max + slack).count() as u64;
        }
        if let Some(seen) = &mut l.seen {
            let finite: Vec<f32> = w.iter().copied().filter(|v| v.is_finite()).collect();
            if let Some(r) = Range::of(&finite) {
                seen.range = seen.range.union(r);
                seen.count(&finite, r.magnitude());
            }
        }
    }
}

fn top(v: &[f32]) -> Option<usize> {
    v.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i)
}

/// A tensor's values as real numbers.
pub(crate) fn real(exec: &Executor, s: usize, t: TensorId) -> Result<Vec<f32>> {
    let v = exec.get(s, t)?;
    let (scale, zero) = v.quant.and_then(Quant::per_tensor).unwrap_or((1.0, 0));
    let of = |q: i32| (q - zero) as f32 * scale;
    Ok(match v.dtype {
        DType::F32 => crate::params::floats(v.bytes),
        DType::I8 => v.bytes.iter().map(|&b| of(i32::from(b as i8))).collect(),
        DType::U8 => v.bytes.iter().map(|&b| of(i32::from(b))).collect(),
        DType::I16 => v.bytes.as_chunks::<2>().0.iter().map(|b| of(i32::from(i16::from_le_bytes(*b)))).collect(),
        DType::I32 => v.bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b) as f32).collect(),
        DType::I64 => v.bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect(),
        DType::Bool => v.bytes.iter().map(|&b| f32::from(b)).collect(),
        d => return Err(Error::unsupported(format!("comparing {d}"))),
    })
}

/// A float value as an input of type `dtype` takes it.
///
/// # Errors
/// `Invalid` when the value is not float and of another type, or the input has no scale.
pub fn quantize_value(value: &Value, dtype: DType, quant: Option<&Quant>) -> Result<Value> {
    if value.dtype == dtype {
        return Ok(value.clone());
    }
    let (Some((scale, zero)), DType::F32) = (quant.and_then(Quant::per_tensor), value.dtype) else {
        return Err(Error::invalid(format!("type {} given, {dtype} expected", value.dtype)));
    };
    let p = crate::params::Params { dtype, scale, zero };
    Value::from_bytes(dtype, &value.shape, &p.quantize(&crate::params::floats(value.bytes())))
}

/// Samples from rows of one array: `shape` is one sample's, and the array holds any number of them.
///
/// # Errors
/// `Invalid` when the array is no multiple of the shape.
pub fn rows(values: &[f32], shape: &[usize]) -> Result<Vec<Sample>> {
    let n = elements(shape);
    if n == 0 || !values.len().is_multiple_of(n) {
        return Err(Error::invalid(format!("{} values are no multiple of shape {shape:?}", values.len())));
    }
    values
        .chunks(n)
        .map(|row| {
            let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
            let inputs = Inputs::Ordered(vec![Value::from_bytes(DType::F32, shape, &bytes)?]);
            Ok(Sample { signature: None, inputs })
        })
        .collect()
}
