//! What follows an integer product: bias, scale, zero point, activation.

use crate::gemm::{Finish, refill};
use crate::simd::{Isa, NR, Requant, RequantWide, clamp};
use crate::weights::Weights;
use litegpu_graph::fixed::Multiplier;
use litegpu_graph::schema::ActivationFunctionType;
use litegpu_graph::{DType, Error, Result};

/// A quantized element.
pub(crate) trait Quantized: Copy + Send + Sync + bytemuck::Pod + Into<i32> {
    /// From a value already within the type's range.
    fn narrow(x: i32) -> Self;
    /// The same for 16.
    fn narrow_all<S: Isa>(x: &[i32; NR], to: &mut [Self; NR]);
}
impl Quantized for i8 {
    #[inline(always)]
    fn narrow(x: i32) -> i8 {
        x as i8
    }
    #[inline(always)]
    fn narrow_all<S: Isa>(x: &[i32; NR], to: &mut [i8; NR]) {
        S::narrow_i8(x, to);
    }
}
impl Quantized for u8 {
    #[inline(always)]
    fn narrow(x: i32) -> u8 {
        x as u8
    }
    #[inline(always)]
    fn narrow_all<S: Isa>(x: &[i32; NR], to: &mut [u8; NR]) {
        S::narrow_u8(x, to);
    }
}
impl Quantized for i16 {
    #[inline(always)]
    fn narrow(x: i32) -> i16 {
        x as i16
    }
    #[inline(always)]
    fn narrow_all<S: Isa>(x: &[i32; NR], to: &mut [i16; NR]) {
        S::narrow_i16(x, to);
    }
}

/// 16 constants from `column` on; lists are padded to whole panels.
#[inline(always)]
pub(crate) fn lanes<T: Copy + Default>(list: &[T], column: usize) -> &[T; NR] {
    match list.get(column..).and_then(|l| l.first_chunk()) {
        Some(l) => l,
        None => panic_lanes(),
    }
}

#[cold]
fn panic_lanes() -> ! {
    unreachable!("constants are padded to whole panels")
}

/// 32-bit sums, a 32-bit bias, multipliers rounded twice.
#[derive(Debug, Default)]
pub(crate) struct Rounded {
    bias: Vec<i32>,
    value: Vec<i32>,
    shift: Vec<i32>,
    pub zero: i32,
    pub low: i32,
    pub high: i32,
}

impl Rounded {
    /// Sets bias and multipliers of the columns.
    pub(crate) fn set(&mut self, bias: Option<&[i64]>, multipliers: &[Multiplier]) -> Result<()> {
        let n = multipliers.len();
        for list in [&mut self.bias, &mut self.value, &mut self.shift] {
            refill(list, n.next_multiple_of(NR), 0)?;
        }
        for (i, m) in multipliers.iter().enumerate() {
            (self.value[i], self.shift[i]) = (m.value, m.shift);
        }
        for (to, b) in self.bias.iter_mut().zip(bias.unwrap_or_default()) {
            *to = *b as i32;
        }
        Ok(())
    }
}

/// Narrows rows of 16 values to the first `n` of outputs `stride` apart.
#[inline(always)]
fn narrow_rows<S: Isa, O: Quantized>(rows: &[[i32; NR]], out: &mut [O], stride: usize, n: usize) {
    for (l, row) in rows.iter().enumerate() {
        let out = &mut out[l * stride..][..n];
        if let Some(out) = out.first_chunk_mut::<NR>() {
            O::narrow_all::<S>(row, out);
        } else {
            for (o, x) in out.iter_mut().zip(row) {
                *o = O::narrow(*x);
            }
        }
    }
}

impl<O: Quantized> Finish<i32, O> for Rounded {
    #[inline(always)]
    fn finish<S: Isa>(&self, row: usize, column: usize, sums: &[i32; NR], out: &mut [O]) {
        let n = out.len();
        self.tile::<S>(row, column, &mut [*sums], out, n, n);
    }
    #[inline(always)]
    fn tile<S: Isa>(&self, _row: usize, column: usize, acc: &mut [[i32; NR]], out: &mut [O], stride: usize, n: usize) {
        let q = Requant {
            bias: lanes(&self.bias, column),
            value: lanes(&self.value, column),
            shift: lanes(&self.shift, column),
            zero: self.zero,
            low: self.low,
            high: self.high,
        };
        S::requantize(acc, &q);
        narrow_rows::<S, O>(acc, out, stride, n);
    }
}

/// 64-bit sums and bias, multipliers reduced to 16 bits and rounded once: 16x8.
#[derive(Debug, Default)]
pub(crate) struct Wide {
    bias: Vec<i64>,
    multipliers: Vec<Multiplier>,
    /// The multipliers reduced to 15 bits, and how far the product is shifted.
    value: Vec<i64>,
    shift: Vec<i64>,
    /// Whether every shift suits the vector kernel.
    shallow: bool,
    pub low: i32,
    pub high: i32,
}

impl Wide {
    /// Sets bias and multipliers of the columns.
    pub(crate) fn set(&mut self, bias: Option<&[i64]>, multipliers: &[Multiplier]) -> Result<()> {
        let n = multipliers.len();
        refill(&mut self.bias, n.next_multiple_of(NR), 0)?;
        refill(&mut self.multipliers, n.next_multiple_of(NR), Multiplier::default())?;
        self.multipliers[..n].copy_from_slice(multipliers);
        refill(&mut self.value, n.next_multiple_of(NR), 0)?;
        refill(&mut self.shift, n.next_multiple_of(NR), 1)?;
        for (i, m) in multipliers.iter().enumerate() {
            (self.value[i], self.shift[i]) = (m.reduced() as i64, 15 - m.shift as i64);
        }
        self.shallow = self.shift.iter().all(|s| (1..=32).contains(s));
        for (to, b) in self.bias.iter_mut().zip(bias.unwrap_or_default()) {
            *to = *b;
        }
        Ok(())
    }
}

impl<O: Quantized> Finish<i64, O> for Wide {
    #[inline(always)]
    fn finish<S: Isa>(&self, _row: usize, column: usize, sums: &[i64; NR], out: &mut [O]) {
        let (bias, m) = (lanes(&self.bias, column), lanes(&self.multipliers, column));
        for (j, o) in out.iter_mut().enumerate().take(NR) {
            let x = m[j].apply_wide(sums[j].wrapping_add(bias[j]));
            *o = O::narrow(x.max(self.low).min(self.high));
        }
    }
    #[inline(always)]
    fn tile<S: Isa>(&self, row: usize, column: usize, acc: &mut [[i32; NR]], out: &mut [O], stride: usize, n: usize) {
        if !self.shallow {
            for (l, acc) in acc.iter().enumerate() {
                let mut sums = [0i64; NR];
                for j in 0..NR {
                    sums[j] = acc[j] as i64;
                }
                self.finish::<S>(row + l, column, &sums, &mut out[l * stride..][..n]);
            }
            return;
        }
        let q = RequantWide {
            bias: lanes(&self.bias, column),
            value: lanes(&self.value, column),
            shift: lanes(&self.shift, column),
            low: self.low,
            high: self.high,
        };
        S::requantize_wide(acc, &q);
        narrow_rows::<S, O>(acc, out, stride, n);
    }
}

/// Sums scaled in double precision and rounded once, half away from zero: fully connected layers.
#[derive(Debug, Default)]
pub(crate) struct Real {
    bias: Vec<i64>,
    scale: Vec<f64>,
    pub zero: i32,
    pub low: i32,
    pub high: i32,
}

impl Real {
    /// Sets bias and scales of the columns.
    pub(crate) fn set(&mut self, bias: Option<&[i64]>, scales: impl ExactSizeIterator<Item = f64>) -> Result<()> {
        let n = scales.len();
        refill(&mut self.bias, n.next_multiple_of(NR), 0)?;
        refill(&mut self.scale, n.next_multiple_of(NR), 0.0)?;
        for (to, s) in self.scale.iter_mut().zip(scales) {
            *to = s;
        }
        for (to, b) in self.bias.iter_mut().zip(bias.unwrap_or_default()) {
            *to = *b;
        }
        Ok(())
    }
    #[inline(always)]
    fn one(&self, sum: f64, scale: f64) -> i32 {
        // Half away from zero: just under a half is added, so that the largest fraction below it does not carry.
        let x = sum * scale;
        let x = (x + 0.499_999_999_999_999_94f64.copysign(x)).trunc() as i32;
        x.wrapping_add(self.zero).max(self.low).min(self.high)
    }
}

impl<O: Quantized> Finish<i32, O> for Real {
    #[inline(always)]
    fn finish<S: Isa>(&self, _row: usize, column: usize, sums: &[i32; NR], out: &mut [O]) {
        let (bias, scale) = (lanes(&self.bias, column), lanes(&self.scale, column));
        for (j, o) in out.iter_mut().enumerate().take(NR) {
            *o = O::narrow(self.one(sums[j].wrapping_add(bias[j] as i32) as f64, scale[j]));
        }
    }
}

impl<O: Quantized> Finish<i64, O> for Real {
    #[inline(always)]
    fn finish<S: Isa>(&self, _row: usize, column: usize, sums: &[i64; NR], out: &mut [O]) {
        let (bias, scale) = (lanes(&self.bias, column), lanes(&self.scale, column));
        for (j, o) in out.iter_mut().enumerate().take(NR) {
            *o = O::narrow(self.one(sums[j].wrapping_add(bias[j]) as f64, scale[j]));
        }
    }
}

/// Sums to floats: the scale of the activations times the scale of the column's weights, a float bias, a fused
/// activation. Dynamic range.
#[derive(Debug, Default)]
pub(crate) struct Hybrid {
    bias: Vec<f32>,
    scale: Vec<f32>,
    pub range: (f32, f32),
}

impl Hybrid {
    /// Without a fused activation.
    pub(crate) fn linear() -> Hybrid {
        Hybrid { range: (f32::NEG_INFINITY, f32::INFINITY), ..Hybrid::default() }
    }
    /// Sets bias and weight scales of the columns.
    pub(crate) fn set(&mut self, bias: Option<&[f32]>, scales: &[f32]) -> Result<()> {
        let n = scales.len();
        refill(&mut self.bias, n.next_multiple_of(NR), 0.0)?;
        refill(&mut self.scale, n.next_multiple_of(NR), 0.0)?;
        self.scale[..n].copy_from_slice(scales);
        if let Some(b) = bias {
            self.bias[..n].copy_from_slice(b);
        }
        Ok(())
    }
}

/// [`Hybrid`] with the scales of one invocation's activations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HybridRows<'a> {
    pub constants: &'a Hybrid,
    /// Scale of each separately quantized piece of the input.
    pub pieces: &'a [f32],
    /// Output rows to a piece.
    pub rows: usize,
}

impl Finish<i32, f32> for HybridRows<'_> {
    #[inline(always)]
    fn finish<S: Isa>(&self, row: usize, column: usize, sums: &[i32; NR], out: &mut [f32]) {
        let (bias, scale) = (lanes(&self.constants.bias, column), lanes(&self.constants.scale, column));
        let piece = self.pieces.get(row / self.rows.max(1)).copied().unwrap_or(0.0);
        let mut y = [0.0; NR];
        for j in 0..NR {
            y[j] = clamp(sums[j] as f32 * (scale[j] * piece) + bias[j], self.constants.range);
        }
        out.copy_from_slice(&y[..out.len()]);
    }
}

/// Sums as they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sums;

impl Finish<i32, i32> for Sums {
    #[inline(always)]
    fn finish<S: Isa>(&self, _row: usize, _column: usize, sums: &[i32; NR], out: &mut [i32]) {
        out.copy_from_slice(&sums[..out.len()]);
    }
}

/// Quantizes floats to int8 symmetrically; returns the scale.
pub(crate) fn quantize_symmetric(x: &[f32], q: &mut [i8]) -> f32 {
    let range = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if range == 0.0 || !range.is_finite() {
        q.fill(0);
        return 1.0;
    }
    let inverse = 127.0 / range;
    for (q, x) in q.iter_mut().zip(x) {
        *q = (x * inverse).round().clamp(-127.0, 127.0) as i8;
    }
    range / 127.0
}

/// Quantizes floats to int8 so that zero and the extremes are kept; returns scale and zero point.
pub(crate) fn quantize_asymmetric(x: &[f32], q: &mut [i8]) -> (f32, i32) {
    let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(l, h), &v| (l.min(v), h.max(v)));
    let (low, high) = (low as f64, high as f64);
    if low == high || !(high - low).is_finite() {
        q.fill(0);
        return (1.0, 0);
    }
    let scale = (high - low) / 255.0;
    let (from_low, from_high) = (-128.0 - low / scale, 127.0 - high / scale);
    let low_error = 128.0 + (low / scale).abs();
    let high_error = 127.0 + (high / scale).abs();
    let zero = if low_error < high_error { from_low } else { from_high };
    let zero = zero.round().clamp(-128.0, 127.0) as i32;
    let scale = scale as f32;
    let inverse = 1.0 / scale;
    for (q, x) in q.iter_mut().zip(x) {
        *q = (zero as f32 + x * inverse).round().clamp(-128.0, 127.0) as i8;
    }
    (scale, zero)
}

/// Multipliers of a quantized convolution: in double precision, per channel.
pub(crate) fn multipliers(input: f32, weights: &[f32], output: f32) -> Vec<Multiplier> {
    weights.iter().map(|&w| Multiplier::new(input as f64 * w as f64 / output as f64)).collect()
}

/// The multiplier of the older kernels, with one weight scale: the product of scales is rounded to single precision.
pub(crate) fn multiplier(input: f32, weights: f32, output: f32) -> Multiplier {
    Multiplier::new((input * weights) as f64 / output as f64)
}

/// The bias of a quantized operator, widened; checks its length.
pub(crate) fn bias_ints(bias: Option<&Weights<'_>>, channels: usize) -> Result<Option<Vec<i64>>> {
    let Some(b) = bias else { return Ok(None) };
    if b.len() != channels {
        return Err(Error::invalid(format!("a bias of {} elements for {channels} channels", b.len())));
    }
    if !matches!(b.dtype, DType::I32 | DType::I64) {
        return Err(Error::invalid(format!("a bias of type {} on integers", b.dtype)));
    }
    b.wide().map(Some)
}

/// The same for float operators.
pub(crate) fn bias_floats(bias: Option<&Weights<'_>>, channels: usize) -> Result<Option<Vec<f32>>> {
    let Some(b) = bias else { return Ok(None) };
    if b.len() != channels {
        return Err(Error::invalid(format!("a bias of {} elements for {channels} channels", b.len())));
    }
    b.floats().map(|f| Some(f.into_owned()))
}

/// Activations that are no clamp, applied after the rest.
pub(crate) fn after(activation: ActivationFunctionType) -> Option<fn(f32) -> f32> {
    match activation {
        ActivationFunctionType::TANH => Some(f32::tanh),
        ActivationFunctionType::SIGN_BIT => Some(|x| if x.is_sign_negative() { 1.0 } else { 0.0 }),
        _ => None,
    }
}
