//! Scales, zero points and the rounding of values: the arithmetic of the reference converters, step for step, so that
//! the same weights give the same bytes.

use bytes::Bytes;
use litegpu_graph::{DType, Error, Quant, Result};

/// A range of real values, as calibration found it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
}

impl Range {
    /// The range of some values; `None` when there is none.
    pub fn of(values: &[f32]) -> Option<Range> {
        values.iter().fold(None, |r: Option<Range>, &v| match r {
            None => Some(Range { min: v, max: v }),
            Some(r) => Some(Range { min: r.min.min(v), max: r.max.max(v) }),
        })
    }

    /// The smallest range that holds both.
    pub fn union(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// The larger of the two magnitudes.
    pub fn magnitude(self) -> f32 {
        self.min.abs().max(self.max.abs())
    }
}

/// Per-tensor quantization of activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// int8 or int16 (or uint8 at the interface).
    pub dtype: DType,
    /// Real value of one step.
    pub scale: f32,
    /// The integer that stands for zero.
    pub zero: i32,
}

impl Params {
    /// For values of `range` as `dtype`: int8 with a zero point, int16 symmetric.
    pub fn activation(dtype: DType, range: Range) -> Params {
        if dtype == DType::I16 {
            return Params::symmetric16(range);
        }
        // Zero is always in the range, since padding and RELU need it, and the arithmetic is done in double.
        let (mut min, mut max) = (f64::from(range.min).min(0.0), f64::from(range.max).max(0.0));
        if max - min < 1e-6 {
            // Nearly constant: a range of 1e-6 around it, or the scale would be a denormal.
            (min, max) = (min.min(-0.5e-6), max.max(0.5e-6));
        }
        let scale = (max - min) / 255.0;
        // The zero point from the end at which rounding hurts less.
        let (from_min, from_max) = (-128.0 - min / scale, 127.0 - max / scale);
        let error_min = 128.0 + (min / scale).abs();
        let error_max = 127.0 + (max / scale).abs();
        let zero = if error_min < error_max { from_min } else { from_max };
        Params { dtype, scale: scale as f32, zero: zero.round().clamp(-128.0, 127.0) as i32 }
    }

    fn symmetric16(range: Range) -> Params {
        let scale = range.magnitude().max(1e-6) / 32767.0;
        Params { dtype: DType::I16, scale, zero: 0 }
    }

    /// int16 with a scale that is a power of two (LSTM cell states).
    pub fn power_of_two(range: Range) -> Params {
        let mut bound = 1.0 / 1024.0f32;
        while bound < range.magnitude() && bound < 1024.0 {
            bound *= 2.0;
        }
        Params { dtype: DType::I16, scale: bound / 32768.0, zero: 0 }
    }

    /// As the graph stores it.
    pub fn quant(self) -> Quant {
        Quant::scalar(self.scale, i64::from(self.zero))
    }

    /// The same values as uint8.
    pub fn as_u8(self) -> Params {
        Params { dtype: DType::U8, zero: self.zero + 128, ..self }
    }

    /// The bytes of constant values, rounded half away from zero.
    pub fn quantize(self, values: &[f32]) -> Bytes {
        let (lo, hi) = match self.dtype {
            DType::I16 => (-32768.0, 32767.0),
            DType::U8 => (0.0, 255.0),
            _ => (-128.0, 127.0),
        };
        let q = values.iter().map(|v| ((v / self.scale).round() + self.zero as f32).clamp(lo, hi));
        match self.dtype {
            DType::I16 => q.flat_map(|q| (q as i16).to_le_bytes()).collect(),
            DType::U8 => q.map(|q| q as u8).collect(),
            _ => q.map(|q| q as i8 as u8).collect(),
        }
    }
}

/// How values of a weight tensor are grouped under a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Grouping {
    /// One scale.
    Tensor,
    /// One scale per index of the axis.
    Axis(usize),
}

/// How a weight becomes an integer. The reference has three tools, and of a million weights a few lie so near to the
/// middle between two integers that the tools disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// Times (127 / largest magnitude), in float64: the dynamic range converter.
    Double,
    /// Times (1 / scale), in float32: the int8 converter.
    Inverse,
    /// Times (127 / largest magnitude), in float32: the 16x8 converter.
    Single,
}

/// Symmetric weights: the integers, one a value, and their scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// In the order of the float values.
    pub q: Vec<i32>,
    /// One or one per channel.
    pub scale: Vec<f32>,
    grouping: Grouping,
    shape: Vec<usize>,
}

impl Weights {
    /// Quantizes to `bits` bits: the largest magnitude of a group becomes the largest integer.
    pub fn symmetric(values: &[f32], shape: &[usize], grouping: Grouping, bits: u32, rounding: Rounding) -> Weights {
        let mut w = Weights { q: vec![0; values.len()], scale: Vec::new(), grouping, shape: shape.to_vec() };
        let mut largest = vec![0f32; w.groups()];
        for (i, v) in values.iter().enumerate() {
            let g = w.group(i);
            largest[g] = largest[g].max(v.abs());
        }
        let top = ((1u32 << (bits - 1)) - 1) as f32;
        // A group of zeros gets a small scale: its bias must not become coarse.
        w.scale = largest.iter().map(|m| if *m == 0.0 { 1e-6 / top } else { m / top }).collect();
        for (i, v) in values.iter().enumerate() {
            let g = w.group(i);
            let m = largest[g].max(f32::MIN_POSITIVE);
            let q = match rounding {
                Rounding::Double => (f64::from(*v) * (f64::from(top) / f64::from(m))).round() as f32,
                Rounding::Inverse => (v * (1.0 / w.scale[g])).round(),
                Rounding::Single => (v * (top / m)).round(),
            };
            w.q[i] = q.clamp(-top, top) as i32;
        }
        w
    }

    /// Quantizes with scales that are given, after some were raised.
    fn requantize(&mut self, values: &[f32], bits: u32) {
        let top = ((1u32 << (bits - 1)) - 1) as f32;
        for (i, v) in values.iter().enumerate() {
            self.q[i] = (v / self.scale[self.group(i)]).round().clamp(-top, top) as i32;
        }
    }

    /// Lowers each group's scale to where the squared error of rounding and clipping is least.
    pub fn fit_squares(&mut self, values: &[f32], bits: u32) {
        self.fit_weighted(values, bits, &[]);
    }

    /// [`Weights::fit_squares`] with a weight for each value's error; none given, all count alike.
    pub(crate) fn fit_weighted(&mut self, values: &[f32], bits: u32, weights: &[f64]) {
        /// Scales that are tried, as shares of the one at which nothing is clipped.
        const STEPS: usize = 64;
        /// Below this share more is clipped than any distribution of weights repays.
        const LEAST: f64 = 0.3;
        let top = f64::from((1u32 << (bits - 1)) - 1);
        let mut members: Vec<Vec<(f64, f64)>> = vec![Vec::new(); self.groups()];
        for (i, v) in values.iter().enumerate() {
            members[self.group(i)].push((f64::from(*v), weights.get(i).copied().unwrap_or(1.0)));
        }
        let mut changed = false;
        for (scale, values) in self.scale.iter_mut().zip(&members) {
            let error = |s: f64| -> f64 {
                let inverse = 1.0 / s;
                values.iter().map(|(v, w)| w * (v - (v * inverse).round().clamp(-top, top) * s).powi(2)).sum()
            };
            let whole = f64::from(*scale);
            let mut best = (error(whole), *scale);
            for k in 1..=STEPS {
                let s = (whole * (1.0 - (1.0 - LEAST) * k as f64 / STEPS as f64)) as f32;
                let e = error(f64::from(s));
                if s > 0.0 && e < best.0 {
                    best = (e, s);
                }
            }
            changed |= best.1 != *scale;
            *scale = best.1;
        }
        if changed {
            self.requantize(values, bits);
        }
    }

    /// The scale of value `i`.
    pub(crate) fn scale_of(&self, i: usize) -> f32 {
        self.scale.get(self.group(i)).copied().unwrap_or(1.0)
    }

    /// What the integers stand for.
    pub fn real(&self) -> Vec<f32> {
        self.q.iter().enumerate().map(|(i, &q)| q as f32 * self.scale[self.group(i)]).collect()
    }

    fn groups(&self) -> usize {
        match self.grouping {
            Grouping::Tensor => 1,
            Grouping::Axis(a) => self.shape.get(a).copied().unwrap_or(1),
        }
    }

    fn group(&self, i: usize) -> usize {
        match self.grouping {
            Grouping::Tensor => 0,
            Grouping::Axis(a) => {
                let inner: usize = self.shape.iter().skip(a + 1).product();
                i / inner.max(1) % self.groups().max(1)
            }
        }
    }

    /// Raises scales so that every bias, divided by `input * scale`, stays within half of int32, and quantizes the
    /// groups anew. Returns whether any was raised.
    pub fn fit_bias(&mut self, values: &[f32], bias: &[f32], input: f32, bits: u32) -> bool {
        const LIMIT: f64 = (i32::MAX / 2) as f64;
        let mut raised = false;
        for (i, b) in bias.iter().enumerate() {
            let g = if self.scale.len() == 1 { 0 } else { i };
            let Some(s) = self.scale.get_mut(g) else { continue };
            let need = f64::from(b.abs()) / (LIMIT * f64::from(input));
            if f64::from(*s) < need {
                *s = (need as f32).next_up();
                raised = true;
            }
        }
        if raised {
            self.requantize(values, bits);
        }
        raised
    }

    /// As the graph stores it. One scale is stored without an axis.
    pub fn quant(&self) -> Quant {
        let axis = if let (Grouping::Axis(a), 2..) = (self.grouping, self.scale.len()) { a } else { 0 };
        Quant { scale: self.scale.clone(), zero_point: vec![0; self.scale.len()], axis, ..Quant::default() }
    }

    /// The bytes as int8, or two to a byte as int4.
    pub fn bytes(&self, dtype: DType) -> Bytes {
        match dtype {
            DType::I4 => {
                self.q.chunks(2).map(|p| (p[0] as u8 & 15) | (p.get(1).copied().unwrap_or(0) as u8 & 15) << 4).collect()
            }
            DType::I16 => self.q.iter().flat_map(|&q| (q as i16).to_le_bytes()).collect(),
            _ => self.q.iter().map(|&q| q as i8 as u8).collect(),
        }
    }
}

/// A bias: integers whose scale is that of the products, `input * weight scale`.
pub fn bias(values: &[f32], input: f32, weights: &[f32], dtype: DType) -> (Bytes, Quant) {
    let scale: Vec<f32> = weights.iter().map(|w| input * w).collect();
    let q = values.iter().enumerate().map(|(i, b)| {
        let s = scale.get(i).or(scale.first()).copied().unwrap_or(1.0);
        // A multiplication with the float32 inverse, not a division: it decides the last bit of 64-bit biases.
        (b * (1.0 / s)).round()
    });
    let bytes = match dtype {
        DType::I64 => q.flat_map(|q| (q as i64).to_le_bytes()).collect(),
        _ => q.flat_map(|q| (q as i32).to_le_bytes()).collect(),
    };
    let n = scale.len();
    (bytes, Quant { scale, zero_point: vec![0; n], ..Quant::default() })
}

/// The values of a float32 constant.
pub fn floats(data: &[u8]) -> Vec<f32> {
    data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Fails on NaN and infinities, which no integer stands for.
pub fn finite(values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(Error::invalid(format!("value {i} is {}", values[i]))),
        None => Ok(()),
    }
}
