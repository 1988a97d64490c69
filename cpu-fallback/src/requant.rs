//! What follows an integer product: bias, scale, zero point, activation.

use crate::gemm::{Finish, refill};
use crate::real::whole;
use crate::simd::{
    Isa, MAX_QUADS, NR, Once, Panel, Quads, Requant, RequantWide, Scaled, Strip, Task, apart, dispatch, narrow_rows,
    tiles,
};
use crate::weights::Weights;
use litegpu_graph::fixed::Multiplier;
use litegpu_graph::schema::ActivationFunctionType;
use litegpu_graph::{DType, Error, Result};
use std::sync::atomic::{AtomicU32, Ordering};

/// A quantized element.
pub(crate) trait Quantized: Copy + Send + Sync + bytemuck::Pod + Into<i32> {
    /// The type's range.
    const LOW: i32;
    const HIGH: i32;
    /// From a value already within the type's range.
    fn narrow(x: i32) -> Self;
    /// The same for 16.
    fn narrow_all<S: Isa>(x: &[i32; NR], to: &mut [Self; NR]);
}
impl Quantized for i8 {
    const LOW: i32 = i8::MIN as i32;
    const HIGH: i32 = i8::MAX as i32;
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
    const LOW: i32 = u8::MIN as i32;
    const HIGH: i32 = u8::MAX as i32;
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
    const LOW: i32 = i16::MIN as i32;
    const HIGH: i32 = i16::MAX as i32;
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
    /// Both roundings as one, for each 16 columns.
    once: Vec<Option<Once>>,
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
        refill(&mut self.once, n.div_ceil(NR), None)?;
        for (i, once) in self.once.iter_mut().enumerate() {
            *once = Once::new(lanes(&self.value, i * NR), lanes(&self.shift, i * NR));
        }
        Ok(())
    }
    /// The constants of 16 columns.
    #[inline(always)]
    fn requant(&self, column: usize) -> Requant<'_> {
        Requant {
            bias: lanes(&self.bias, column),
            value: lanes(&self.value, column),
            shift: lanes(&self.shift, column),
            zero: self.zero,
            low: self.low,
            high: self.high,
            columns: NR,
            once: self.once.get(column / NR).and_then(|o| o.as_ref()),
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
        let q = Requant { columns: n, ..self.requant(column) };
        S::requantize(acc, &q);
        narrow_rows::<S, O>(acc, out, stride, n);
    }
    #[inline(always)]
    fn panel<S: Isa>(
        &self,
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        _row: usize,
        column: usize,
        out: &mut [O],
        ldc: usize,
        n: usize,
    ) {
        S::panel(a, runs, lda, rows, b, &Requant { columns: n, ..self.requant(column) }, out, ldc);
    }
    #[inline(always)]
    fn quads<S: Isa>(
        &self,
        a: &[u8],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &Quads<'_>,
        _row: usize,
        column: usize,
        out: &mut [O],
        ldc: usize,
        n: usize,
    ) {
        S::panel_quads(a, runs, lda, rows, b, &Requant { columns: n, ..self.requant(column) }, out, ldc);
    }
    #[inline(always)]
    fn strip<S: Isa>(&self, strip: &Strip<'_>, _row: usize, column: usize, out: &mut [O], stride: usize, n: usize) {
        S::strip(strip, &Requant { columns: n, ..self.requant(column) }, out, stride);
    }
}

/// 64-bit sums and bias, multipliers reduced to 16 bits and rounded once ([`Multiplier::apply_wide`]): 16x8.
#[derive(Debug, Default)]
pub(crate) struct Wide {
    /// See [`RequantWide`].
    value: Vec<i32>,
    offset: Vec<i64>,
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
        refill(&mut self.value, n.next_multiple_of(NR), 0)?;
        refill(&mut self.offset, n.next_multiple_of(NR), 0)?;
        refill(&mut self.shift, n.next_multiple_of(NR), 1)?;
        for (i, m) in multipliers.iter().enumerate() {
            let (value, at) = (m.reduced(), i / NR * NR + apart(i % NR));
            let shift = (15 - m.shift).clamp(1, 62) as i64;
            let bias = bias.and_then(|b| b.get(i)).copied().unwrap_or(0);
            self.value[i] = value;
            self.offset[at] = bias.wrapping_mul(value as i64).wrapping_add(1i64 << (shift - 1));
            self.shift[at] = shift;
        }
        self.shallow = self.shift.iter().all(|s| *s <= 32);
        Ok(())
    }

    /// The constants of the `n` columns from `column` on, where they suit the vector kernel.
    #[inline(always)]
    fn requant(&self, column: usize, n: usize) -> Option<RequantWide<'_>> {
        self.shallow.then(|| RequantWide {
            value: lanes(&self.value, column),
            offset: lanes(&self.offset, column),
            shift: lanes(&self.shift, column),
            low: self.low,
            high: self.high,
            columns: n,
        })
    }
}

impl<O: Quantized> Finish<i64, O> for Wide {
    #[inline(always)]
    fn finish<S: Isa>(&self, _row: usize, column: usize, sums: &[i64; NR], out: &mut [O]) {
        let (value, offset, shift) =
            (lanes(&self.value, column), lanes(&self.offset, column), lanes(&self.shift, column));
        for (j, o) in out.iter_mut().enumerate().take(NR) {
            let x = sums[j].wrapping_mul(value[j] as i64).wrapping_add(offset[apart(j)]) >> shift[apart(j)];
            *o = O::narrow((x as i32).max(self.low).min(self.high));
        }
    }
    #[inline(always)]
    fn tile<S: Isa>(&self, row: usize, column: usize, acc: &mut [[i32; NR]], out: &mut [O], stride: usize, n: usize) {
        for (l, acc) in acc.iter().enumerate() {
            let sums = acc.map(|x| x as i64);
            self.finish::<S>(row + l, column, &sums, &mut out[l * stride..][..n]);
        }
    }
    #[inline(always)]
    fn panel<S: Isa>(
        &self,
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        row: usize,
        column: usize,
        out: &mut [O],
        ldc: usize,
        n: usize,
    ) {
        match self.requant(column, n) {
            Some(q) => S::panel_wide(a, runs, lda, rows, b, &q, out, ldc),
            None => tiles::<S>(a, runs, lda, rows, b, n, |r, acc| {
                self.tile::<S>(row + r, column, acc, &mut out[r * ldc..], ldc, n);
            }),
        }
    }
    #[inline(always)]
    fn strip<S: Isa>(&self, strip: &Strip<'_>, row: usize, column: usize, out: &mut [O], stride: usize, n: usize) {
        match self.requant(column, n) {
            Some(q) => S::strip_wide(strip, &q, out, stride),
            None => strip.each::<S>(|p, sums| self.tile::<S>(row, column, sums, &mut out[p * stride..], stride, n)),
        }
    }
}

/// [`Rounded`] values added to 16-bit ones, saturated: the recurrent part of a gate's sum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Onto<'a> {
    pub constants: &'a Rounded,
    /// What is added to, its rows `stride` apart.
    pub values: &'a [i16],
    pub stride: usize,
}

impl Finish<i32, i16> for Onto<'_> {
    #[inline(always)]
    fn finish<S: Isa>(&self, row: usize, column: usize, sums: &[i32; NR], out: &mut [i16]) {
        let n = out.len();
        self.tile::<S>(row, column, &mut [*sums], out, n, n);
    }
    #[inline(always)]
    fn tile<S: Isa>(&self, row: usize, column: usize, acc: &mut [[i32; NR]], out: &mut [i16], stride: usize, n: usize) {
        S::requantize(acc, &self.constants.requant(column));
        for (l, acc) in acc.iter().enumerate() {
            let onto = &self.values[(row + l) * self.stride + column..][..n];
            for ((o, x), y) in out[l * stride..][..n].iter_mut().zip(acc).zip(onto) {
                *o = x.saturating_add(*y as i32).clamp(i16::MIN as i32, i16::MAX as i32) as i16;
            }
        }
    }
}

/// [`Rounded`] values and a zero point, added with saturation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Saturated<'a> {
    pub constants: &'a Rounded,
    pub zero: i32,
}

impl Finish<i32, i8> for Saturated<'_> {
    #[inline(always)]
    fn finish<S: Isa>(&self, _row: usize, column: usize, sums: &[i32; NR], out: &mut [i8]) {
        let mut acc = [*sums];
        S::requantize(&mut acc, &self.constants.requant(column));
        for (o, x) in out.iter_mut().zip(&acc[0]) {
            *o = x.saturating_add(self.zero).clamp(-128, 127) as i8;
        }
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

/// The scales of separately quantized pieces of a product's left operand. A thread that multiplies a piece may quantize it
/// first.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    scales: Vec<AtomicU32>,
    /// Zero points of pieces that are unsigned bytes.
    zeros: Vec<AtomicU32>,
}

impl Pieces {
    /// Makes room for `n`.
    pub(crate) fn resize(&mut self, n: usize) -> Result<()> {
        for list in [&mut self.scales, &mut self.zeros] {
            list.clear();
            list.try_reserve(n).map_err(|_| Error::invalid(format!("cannot allocate {n} scales")))?;
            list.resize_with(n, || AtomicU32::new(0));
        }
        Ok(())
    }
    /// Sets scale and zero point of a piece, from what it was quantized to.
    #[inline(always)]
    pub(crate) fn set(&self, i: usize, steps: &Steps) {
        if let (Some(scale), Some(zero)) = (self.scales.get(i), self.zeros.get(i)) {
            scale.store(steps.scale.to_bits(), Ordering::Relaxed);
            zero.store((steps.zero + 128) as u32, Ordering::Relaxed);
        }
    }
    #[inline(always)]
    fn get(&self, i: usize) -> f32 {
        self.scales.get(i).map_or(0.0, |p| f32::from_bits(p.load(Ordering::Relaxed)))
    }
    #[inline(always)]
    fn zero(&self, i: usize) -> i32 {
        self.zeros.get(i).map_or(0, |p| p.load(Ordering::Relaxed) as i32)
    }
}

/// [`Hybrid`] with the scales of one invocation's activations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HybridRows<'a> {
    pub constants: &'a Hybrid,
    /// Scale of each separately quantized piece of the input.
    pub pieces: &'a Pieces,
    /// The piece of the first row.
    pub first: usize,
    /// Output rows to a piece.
    pub rows: usize,
}

impl Finish<i32, f32> for HybridRows<'_> {
    #[inline(always)]
    fn finish<S: Isa>(&self, row: usize, column: usize, sums: &[i32; NR], out: &mut [f32]) {
        let n = out.len();
        self.tile::<S>(row, column, &mut [*sums], out, n, n);
    }
    #[inline(always)]
    fn tile<S: Isa>(&self, row: usize, column: usize, acc: &mut [[i32; NR]], out: &mut [f32], stride: usize, n: usize) {
        let (bias, scale) = (lanes(&self.constants.bias, column), lanes(&self.constants.scale, column));
        let rows = self.rows.max(1);
        // Mostly a piece holds one row, or more than a tile has: few divisions.
        let (first, left) = if rows == 1 { (row, 0) } else { (row / rows, rows - row % rows) };
        for (l, sums) in acc.iter().enumerate() {
            let further = match l.checked_sub(left) {
                None => 0,
                Some(l) if rows == 1 => l,
                Some(l) => 1 + l / rows,
            };
            let piece = self.pieces.get(self.first + first + further);
            let out = &mut out[l * stride..][..n];
            // Straight from registers to whole rows.
            if let Some(out) = out.first_chunk_mut::<NR>() {
                self.halves::<S>(sums, scale, piece, bias, out);
            } else {
                let mut y = [0.0; NR];
                self.halves::<S>(sums, scale, piece, bias, &mut y);
                out.copy_from_slice(&y[..n]);
            }
        }
    }
    #[inline(always)]
    fn panel<S: Isa>(
        &self,
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        row: usize,
        column: usize,
        out: &mut [f32],
        ldc: usize,
        n: usize,
    ) {
        if !S::panel_scaled(a, runs, lda, rows, b, &self.scaled(row, column, n), out, ldc) {
            self.in_tiles::<S>(a, runs, lda, rows, b, row, column, out, ldc, n);
        }
    }
    #[inline(always)]
    fn quads<S: Isa>(
        &self,
        a: &[u8],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &Quads<'_>,
        row: usize,
        column: usize,
        out: &mut [f32],
        ldc: usize,
        n: usize,
    ) {
        if S::panel_quads_scaled(a, runs, lda, rows, b, &self.scaled(row, column, n), out, ldc) {
            return;
        }
        for r in (0..rows).step_by(MAX_QUADS) {
            let m = MAX_QUADS.min(rows - r);
            let mut acc = [[0i32; NR]; MAX_QUADS];
            S::tile_quads(&a[r * lda..], runs, lda, m, b, &mut acc);
            for (l, acc) in acc.iter_mut().enumerate().take(m) {
                let zero = self.pieces.zero(self.first + (row + r + l) / self.rows.max(1));
                for j in 0..NR {
                    acc[j] = acc[j].wrapping_sub(b.sums[j].wrapping_mul(zero));
                }
            }
            self.tile::<S>(row + r, column, &mut acc[..m], &mut out[r * ldc..], ldc, n);
        }
    }
    #[inline(always)]
    fn strip<S: Isa>(&self, strip: &Strip<'_>, row: usize, column: usize, out: &mut [f32], stride: usize, n: usize) {
        if !S::strip_scaled(strip, &self.scaled(row, column, n), out, stride) {
            self.by_pixels::<S>(strip, row, column, out, stride, n);
        }
    }
}

impl HybridRows<'_> {
    /// What the 16 columns from `column` on and the rows from `row` on need.
    #[inline(always)]
    fn scaled(&self, row: usize, column: usize, columns: usize) -> Scaled<'_> {
        let (bias, scale) = (lanes(&self.constants.bias, column), lanes(&self.constants.scale, column));
        let pieces = self.pieces.scales.get(self.first..).unwrap_or_default();
        let zeros = self.pieces.zeros.get(self.first..).unwrap_or_default();
        Scaled { bias, scale, range: self.constants.range, columns, pieces, zeros, rows: self.rows, row }
    }

    #[inline(always)]
    fn halves<S: Isa>(&self, x: &[i32; NR], scale: &[f32; NR], piece: f32, bias: &[f32; NR], out: &mut [f32; NR]) {
        // Less than nothing is added, so that a product of negative zero stays one.
        let (piece, none) = (S::load(&[piece; 8]), S::load(&[-0.0; 8]));
        let operands = x.as_chunks().0.iter().zip(scale.as_chunks().0).zip(bias.as_chunks().0);
        for (((x, s), bias), out) in operands.zip(out.as_chunks_mut().0) {
            let scale = S::mul_add8(S::load(s), piece, none);
            let sum = S::mul_add8(S::reals(x), scale, S::load(bias));
            S::store(S::clamp8(sum, self.constants.range), out);
        }
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

/// What is added to round: just under a half, so that the largest fraction below it does not carry.
pub(crate) const ALMOST_HALF: f32 = 0.499_999_97;

/// How some floats become 8-bit integers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    pub scale: f32,
    pub zero: i32,
    pub inverse: f32,
    pub low: f32,
    pub high: f32,
}

/// Integers that quantized floats become; the low bits are what counts.
pub(crate) trait Whole: bytemuck::Pod {
    fn of(x: i32) -> Self;
}

impl Whole for i8 {
    #[inline(always)]
    fn of(x: i32) -> i8 {
        x as i8
    }
}

impl Whole for u8 {
    #[inline(always)]
    fn of(x: i32) -> u8 {
        x as u8
    }
}

impl Whole for i16 {
    #[inline(always)]
    fn of(x: i32) -> i16 {
        x as i16
    }
}

impl Steps {
    /// All become zero.
    const NONE: Steps = Steps { scale: 1.0, zero: 0, inverse: 0.0, low: 0.0, high: 0.0 };

    /// For some numbers; `asymmetric` keeps zero and both extremes.
    pub(crate) fn of(x: &[f32], asymmetric: bool) -> Steps {
        Steps::between(dispatch(Extremes(x)), asymmetric)
    }

    pub(crate) fn between((low, high): (f32, f32), asymmetric: bool) -> Steps {
        if !asymmetric {
            let range = high.max(-low);
            if range == 0.0 || !range.is_finite() {
                return Steps::NONE;
            }
            return Steps { scale: range / 127.0, zero: 0, inverse: 127.0 / range, low: -127.0, high: 127.0 };
        }
        let (low, high) = (low as f64, high as f64);
        if low == high || !(high - low).is_finite() {
            return Steps::NONE;
        }
        let scale = (high - low) / 255.0;
        // The zero point is taken from the end that it follows from with the smaller error.
        let (from_low, from_high) = (-128.0 - low / scale, 127.0 - high / scale);
        let low_error = 128.0 + (low / scale).abs();
        let high_error = 127.0 + (high / scale).abs();
        let zero = if low_error < high_error { from_low } else { from_high };
        let zero = zero.round().clamp(-128.0, 127.0) as i32;
        let scale = scale as f32;
        Steps { scale, zero, inverse: 1.0 / scale, low: -128.0, high: 127.0 }
    }

    /// x / scale + zero point, rounded half away from zero, within int8.
    #[inline(always)]
    pub(crate) fn one(&self, x: f32) -> i32 {
        let v = self.zero as f32 + x * self.inverse;
        let v = v + ALMOST_HALF.copysign(v);
        // What is no number becomes the lowest.
        let v = if v > self.low { v } else { self.low };
        let v = if v < self.high { v } else { self.high };
        whole(v.trunc())
    }

    /// The quantized numbers less the zero point, as a part of code for an instruction set.
    #[inline(always)]
    pub(crate) fn words_in<S: Isa>(&self, x: &[f32], to: &mut [i16]) {
        S::quantize(self, x, to, -self.zero);
    }

    /// The same, in a function of its own.
    pub(crate) fn words(&self, x: &[f32], to: &mut [i16]) {
        dispatch(Quantize { steps: self, x, to, more: -self.zero });
    }

    /// The quantized numbers as unsigned bytes: 128 more. A part of code for an instruction set.
    #[inline(always)]
    pub(crate) fn unsigned_in<S: Isa>(&self, x: &[f32], to: &mut [u8]) {
        S::quantize(self, x, to, 128);
    }

    /// The same, in a function of its own.
    pub(crate) fn unsigned(&self, x: &[f32], to: &mut [u8]) {
        dispatch(Quantize { steps: self, x, to, more: 128 });
    }

    /// The quantized numbers.
    pub(crate) fn bytes(&self, x: &[f32], to: &mut [i8]) {
        dispatch(Quantize { steps: self, x, to, more: 0 });
    }
}

/// [`Isa::extremes`].
struct Extremes<'a>(&'a [f32]);

impl Task for Extremes<'_> {
    type Output = (f32, f32);
    #[inline(always)]
    fn run<S: Isa>(self) -> (f32, f32) {
        S::extremes(self.0)
    }
}

/// [`Isa::quantize`].
struct Quantize<'a, Q> {
    steps: &'a Steps,
    x: &'a [f32],
    to: &'a mut [Q],
    more: i32,
}

impl<Q: Whole> Task for Quantize<'_, Q> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        S::quantize(self.steps, self.x, self.to, self.more);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{LineI8, LineI16, LineQuad, Portable, Taps};

    #[test]
    fn quantized_floats_are_rounded_half_away() {
        let x: Vec<f32> = (0..301).map(|i| (i as f32 - 120.0) * 0.037).chain([0.0, -0.0, 6.7]).collect();
        let mut q = vec![0i8; x.len()];
        let steps = Steps::of(&x, false);
        steps.bytes(&x, &mut q);
        let scale = steps.scale;
        let range = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert_eq!(scale, range / 127.0);
        for (x, q) in x.iter().zip(&q) {
            assert_eq!(*q, (x * (127.0 / range)).round().clamp(-127.0, 127.0) as i8);
        }
        let steps = Steps::of(&x, true);
        let (scale, zero) = (steps.scale, steps.zero);
        steps.bytes(&x, &mut q);
        for (x, q) in x.iter().zip(&q) {
            assert_eq!(*q, (zero as f32 + x * (1.0 / scale)).round().clamp(-128.0, 127.0) as i8);
            assert!(((*q as i32 - zero) as f32 * scale - x).abs() <= scale * 0.501);
        }
        // The vector code and the portable code agree.
        let mut portable = vec![0i8; x.len()];
        Quantize { steps: &steps, x: &x, to: &mut portable, more: 0 }.run::<Portable>();
        assert_eq!(portable, q);
        let mut words = vec![0i16; x.len()];
        steps.words(&x, &mut words);
        assert!(words.iter().zip(&q).all(|(w, q)| *w == *q as i16 - zero as i16));
        for n in [0, 1, 31, 32, 33, 70] {
            let least = x[..n].iter().fold(0f32, |m, v| m.min(*v));
            assert_eq!(dispatch(Extremes(&x[..n])), (least, x[..n].iter().fold(0f32, |m, v| m.max(*v))));
        }
        assert_eq!(Extremes(&x).run::<Portable>(), dispatch(Extremes(&x)));
    }

    /// With shifts that suit the vector kernel and with others, and for columns beyond a panel's.
    #[test]
    fn wide_sums_are_the_multipliers() {
        let shifts = [-40, -17, -16, 0, 1, 14, 20];
        let multipliers: Vec<Multiplier> = (0..21)
            .map(|i| Multiplier { value: 0x4000_0000 + i * 0x0312_3457, shift: shifts[i as usize % 7] })
            .collect();
        let bias: Vec<i64> = (0..21).map(|i| (i - 9) * 1_234_567_891).collect();
        let mut wide = Wide { low: -32768, high: 32767, ..Wide::default() };
        wide.set(Some(&bias), &multipliers).unwrap();
        assert!(!wide.shallow);
        for column in [0, NR] {
            let sums: [i64; NR] = std::array::from_fn(|j| (j as i64 - 7) * 98_765_432_109);
            let mut out = [0i16; NR];
            let n = NR.min(21 - column);
            wide.finish::<Portable>(0, column, &sums, &mut out[..n]);
            for j in 0..n {
                let x = multipliers[column + j].apply_wide(sums[j].wrapping_add(bias[column + j]));
                assert_eq!(out[j] as i32, x.clamp(-32768, 32767), "column {}", column + j);
            }
        }
    }

    /// Tiles of four rows, whose rows belong to pieces of any size.
    #[test]
    fn rows_meet_the_scale_of_their_piece() {
        let mut pieces = Pieces::default();
        pieces.resize(16).unwrap();
        (0..16).for_each(|i| pieces.set(i, &Steps { scale: (i + 1) as f32, ..Steps::NONE }));
        let mut constants = Hybrid::linear();
        constants.set(Some(&[0.5; 3]), &[2.0; 3]).unwrap();
        for rows in 1..7 {
            let finish = HybridRows { constants: &constants, pieces: &pieces, first: 2, rows };
            for row in 0..9 {
                let mut out = [0.0; 4 * 3];
                finish.tile::<Portable>(row, 0, &mut [[1; NR]; 4], &mut out, 3, 3);
                for (l, out) in out.chunks(3).enumerate() {
                    let scale = ((row + l) / rows + 2 + 1) as f32;
                    assert!(out.iter().all(|v| *v == 2.0 * scale + 0.5), "{rows} {row} {l}: {out:?}");
                }
            }
        }
    }

    struct Finished<'a>(&'a HybridRows<'a>, usize);
    impl Task for Finished<'_> {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<S: Isa>(self) -> Vec<u32> {
            let mut acc: [[i32; NR]; 4] =
                std::array::from_fn(|l| std::array::from_fn(|j| (l as i32 - 2) * 77_777_777 + 3 * j as i32));
            let mut out = vec![0.0; 4 * self.1];
            self.0.tile::<S>(0, 0, &mut acc, &mut out, self.1, self.1);
            out.iter().map(|v| v.to_bits()).collect()
        }
    }

    /// Vector code and portable code give the same bits, of whole rows and of shorter ones.
    #[test]
    fn hybrid_rows_agree() {
        let mut pieces = Pieces::default();
        pieces.resize(4).unwrap();
        (0..4).for_each(|i| pieces.set(i, &Steps { scale: 0.013 * (i as f32 - 1.5), ..Steps::NONE }));
        let mut constants = Hybrid::linear();
        let columns = |f: f32| -> Vec<f32> { (0..NR).map(|j| f * (j as f32 - 7.0)).collect() };
        constants.set(Some(&columns(1.7)), &columns(3.1e-6)).unwrap();
        constants.range = (-9.0, 20.0);
        let finish = HybridRows { constants: &constants, pieces: &pieces, first: 0, rows: 1 };
        for n in [1, 7, 8, 15, 16] {
            let fast = dispatch(Finished(&finish, n));
            assert_eq!(fast, Finished(&finish, n).run::<Portable>(), "{n} columns");
        }
    }

    /// Panels and strips of a product, finished.
    struct Whole<'a>(&'a HybridRows<'a>, &'a [i16], Panel<'a>, &'a Taps, &'a [[i16; NR]], usize);
    impl Task for Whole<'_> {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<S: Isa>(self) -> Vec<u32> {
            let Whole(finish, a, panel, taps, lines, n) = self;
            let mut out = vec![0.0; 1200];
            for rows in 1..=9 {
                for row in [0, 1, 5] {
                    finish.panel::<S>(a, &[0, 40], 4, rows, panel, row, 0, &mut out[20 * rows + row..], 20, n);
                }
            }
            for pixels in 1..=7 {
                let strip = Strip { image: a, first: 40, step: 8, pixels, line: 20, rows: 3, taps, lines };
                // All pixels of a strip are of one piece.
                let finish = HybridRows { rows: 1000, ..*finish };
                finish.strip::<S>(&strip, 3000, 0, &mut out[400 + 20 * pixels..], 24, n);
            }
            out.iter().map(|v| v.to_bits()).collect()
        }
    }

    #[test]
    fn hybrid_products_agree() {
        let mut pieces = Pieces::default();
        pieces.resize(12).unwrap();
        (0..12).for_each(|i| pieces.set(i, &Steps { scale: 0.013 * (i as f32 - 1.5), ..Steps::NONE }));
        let mut constants = Hybrid::linear();
        let columns = |f: f32| -> Vec<f32> { (0..NR).map(|j| f * (j as f32 - 7.0)).collect() };
        constants.set(Some(&columns(1.7)), &columns(3.1e-3)).unwrap();
        let mut seed = 1u32;
        let mut next = |_: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as i16 - 128
        };
        let a: Vec<i16> = (0..400).map(&mut next).collect();
        let narrow: Vec<LineI8> =
            (0..4).map(|_| LineI8(std::array::from_fn(|j| [next(j) as i8, next(j) as i8]))).collect();
        let wide: Vec<LineI16> = narrow.iter().map(|l| LineI16(l.0.map(|p| p.map(|w| w as i16)))).collect();
        let mut lines: Vec<[i16; NR]> = (0..41).map(|_| std::array::from_fn(&mut next)).collect();
        lines[40] = [0; NR];
        for (range, rows, taps) in [((f32::MIN, f32::MAX), 1, 9), ((-9.0, 20.0), 3, 25), ((0.0, 6.0), 1000, 27)] {
            constants.range = range;
            let finish = HybridRows { constants: &constants, pieces: &pieces, first: 1, rows };
            let mut list = Taps::default();
            list.set(40, |tap| (0..taps).for_each(|t| tap((t * 29 % 200) as isize - 40, t)));
            for n in [1, 7, 8, 9, 15, 16] {
                for panel in [Panel::Narrow(&narrow), Panel::Wide(&wide)] {
                    let fast = dispatch(Whole(&finish, &a, panel, &list, &lines, n));
                    let portable = Whole(&finish, &a, panel, &list, &lines, n).run::<Portable>();
                    assert_eq!(fast, portable, "{rows} rows a piece, {taps} taps, {n} columns");
                }
            }
        }
    }

    struct OfBytes<'a>(&'a HybridRows<'a>, &'a [u8], Quads<'a>, usize);
    impl Task for OfBytes<'_> {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<S: Isa>(self) -> Vec<u32> {
            let OfBytes(finish, a, b, n) = self;
            let mut out = vec![0.0; 300];
            for rows in [1, 2, 3, 4, 7, 8, 13] {
                finish.quads::<S>(a, &[0], 8, rows, &b, 0, 0, &mut out[rows..], 20, n);
            }
            out.iter().map(|v| v.to_bits()).collect()
        }
    }

    /// Rows of bytes with zero points of their own give what the same rows give as words less these.
    #[test]
    fn hybrid_products_of_bytes_agree() {
        let (mut pieces, mut constants) = (Pieces::default(), Hybrid::linear());
        pieces.resize(20).unwrap();
        let zero = |i: usize| [-128, 127, 0, 5, 5][i % 5];
        (0..20).for_each(|i| pieces.set(i, &Steps { scale: 0.02 * (i as f32 + 1.0), zero: zero(i), ..Steps::NONE }));
        let columns = |f: f32| -> Vec<f32> { (0..NR).map(|j| f * (j as f32 - 7.0)).collect() };
        constants.set(Some(&columns(1.7)), &columns(3.1e-3)).unwrap();
        constants.range = (-60.0, 50.0);
        let a: Vec<u8> = (0..13 * 8).map(|i| (i * 89 % 256) as u8).collect();
        let weight = |k: usize, j: usize| (k * 57 + j * 31) as i8;
        let fours: Vec<LineQuad> =
            (0..2).map(|l| LineQuad(std::array::from_fn(|j| std::array::from_fn(|i| weight(4 * l + i, j))))).collect();
        let pairs: Vec<LineI8> =
            (0..4).map(|l| LineI8(std::array::from_fn(|j| std::array::from_fn(|i| weight(2 * l + i, j))))).collect();
        let sums = std::array::from_fn(|j| (0..8).map(|k| weight(k, j) as i32).sum());
        for rows in [1, 3, 100] {
            let finish = HybridRows { constants: &constants, pieces: &pieces, first: 1, rows };
            let words: Vec<i16> =
                a.iter().enumerate().map(|(i, q)| *q as i16 - 128 - zero(1 + i / 8 / rows) as i16).collect();
            for n in [1, 9, 16] {
                let b = Quads { lines: &fours, start: &[0; NR], sums: &sums, run: 8, zero: 0 };
                let portable = OfBytes(&finish, &a, b, n).run::<Portable>();
                assert_eq!(dispatch(OfBytes(&finish, &a, b, n)), portable, "{rows} {n}");
                let mut out = vec![0.0; 300];
                for count in [1, 2, 3, 4, 7, 8, 13] {
                    let panel = Panel::Narrow(&pairs);
                    finish.panel::<Portable>(&words, &[0], 8, count, panel, 0, 0, &mut out[count..], 20, n);
                }
                assert_eq!(out.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), portable, "{rows} {n}");
            }
        }
    }

    #[test]
    fn what_is_no_number_is_quantized_to_something() {
        let mut q = [1i8; 2];
        for (x, asymmetric) in
            [([0.0; 2], true), ([f32::NAN, f32::INFINITY], true), ([f32::NAN, f32::NEG_INFINITY], false)]
        {
            let steps = Steps::of(&x, asymmetric);
            steps.bytes(&x, &mut q);
            assert_eq!((steps.scale, steps.zero, q), (1.0, 0, [0, 0]));
        }
    }
}
