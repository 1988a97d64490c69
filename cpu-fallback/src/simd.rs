//! Vector kernels: the only module of the crate with unsafe code.
//!
//! Kernels are written once, generic over an instruction set ([`Isa`]), and compiled once per set: [`dispatch`] enters
//! a function compiled for the best set that the machine has and everything inlined into it uses that set. What an
//! instruction set adds by hand (tiles of matrix products, requantization) is a method of the trait; the portable
//! versions are the definition, and tests compare the others with them.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

/// Columns of a packed panel.
pub(crate) const NR: usize = 16;
/// The most rows that a tile of any instruction set has.
pub(crate) const MAX_MR: usize = 6;

/// One step of the depth for 16 columns.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct LineF32(pub [f32; NR]);

/// Two steps of the depth for 16 columns, side by side as multiply-add instructions want them.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct LineI16(pub [[i16; 2]; NR]);

/// The same for values that fit 8 bits.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(crate) struct LineI8(pub [[i8; 2]; NR]);

/// A panel of 16 columns of packed integers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Panel<'a> {
    Narrow(&'a [LineI8]),
    Wide(&'a [LineI16]),
}

impl<'a> Panel<'a> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Panel::Narrow(l) => l.len(),
            Panel::Wide(l) => l.len(),
        }
    }
    pub(crate) fn part(&self, range: std::ops::Range<usize>) -> Panel<'a> {
        match self {
            Panel::Narrow(l) => Panel::Narrow(&l[range]),
            Panel::Wide(l) => Panel::Wide(&l[range]),
        }
    }
}

/// Constants of the requantization of 16 columns, rounded twice; see `graph::fixed`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requant<'a> {
    pub bias: &'a [i32; NR],
    /// Fractions.
    pub value: &'a [i32; NR],
    /// Powers of two, negative to the right.
    pub shift: &'a [i32; NR],
    pub zero: i32,
    pub low: i32,
    pub high: i32,
}

/// An instruction set.
pub(crate) trait Isa: Copy + Send + Sync + 'static {
    /// Rows of a tile.
    const MR: usize;

    /// a * b + c, fused where the set has it.
    fn fma(a: f32, b: f32, c: f32) -> f32;

    /// One tile of a product: `rows` (at most MR) rows of `a`, `lda` apart, times a panel, plus `bias`, clamped, into
    /// the first `columns` columns of the rows of `out`, `ldc` apart.
    #[inline(always)]
    fn tile_f32(
        a: &[f32],
        lda: usize,
        rows: usize,
        b: &[LineF32],
        bias: &[f32; NR],
        range: (f32, f32),
        out: &mut [f32],
        ldc: usize,
        columns: usize,
    ) {
        for r in 0..rows {
            let mut acc = *bias;
            for (x, line) in a[r * lda..].iter().zip(b) {
                for j in 0..NR {
                    acc[j] = Self::fma(*x, line.0[j], acc[j]);
                }
            }
            for (o, v) in out[r * ldc..][..columns].iter_mut().zip(acc) {
                *o = clamp(v, range);
            }
        }
    }

    /// One tile of an integer product, in pairs of depth steps: `acc` receives the sums, modulo 2^32.
    #[inline(always)]
    fn tile_i16(a: &[i16], lda: usize, rows: usize, b: Panel<'_>, acc: &mut [[i32; NR]; MAX_MR]) {
        for r in 0..rows {
            let mut sum = [0i32; NR];
            let row = &a[r * lda..][..2 * b.len()];
            match b {
                Panel::Narrow(lines) => {
                    for (x, line) in row.as_chunks::<2>().0.iter().zip(lines) {
                        for j in 0..NR {
                            let [w0, w1] = line.0[j];
                            let dot = (x[0] as i32 * w0 as i32).wrapping_add(x[1] as i32 * w1 as i32);
                            sum[j] = sum[j].wrapping_add(dot);
                        }
                    }
                }
                Panel::Wide(lines) => {
                    for (x, line) in row.as_chunks::<2>().0.iter().zip(lines) {
                        for j in 0..NR {
                            let [w0, w1] = line.0[j];
                            let dot = (x[0] as i32 * w0 as i32).wrapping_add(x[1] as i32 * w1 as i32);
                            sum[j] = sum[j].wrapping_add(dot);
                        }
                    }
                }
            }
            acc[r] = sum;
        }
    }

    /// Accumulators of 16 columns to quantized values, which the caller narrows.
    #[inline(always)]
    fn requantize(acc: &[i32; NR], q: &Requant<'_>) -> [i32; NR] {
        let mut out = [0; NR];
        for j in 0..NR {
            let m = litegpu_graph::fixed::Multiplier { value: q.value[j], shift: q.shift[j] };
            out[j] = m.apply(acc[j].wrapping_add(q.bias[j])).wrapping_add(q.zero).max(q.low).min(q.high);
        }
        out
    }
}

/// `x` clamped; NaN stays NaN.
#[inline(always)]
pub(crate) fn clamp(x: f32, range: (f32, f32)) -> f32 {
    let x = if x < range.0 { range.0 } else { x };
    if x > range.1 { range.1 } else { x }
}

/// No instruction beyond what the compiler may use anyway.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Isa for Portable {
    const MR: usize = 4;
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// Something to compile once per instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Task {
    type Output;
    fn run<S: Isa>(self) -> Self::Output;
}

/// Runs a task with the best instruction set that the machine has.
#[inline]
pub(crate) fn dispatch<T: Task>(task: T) -> T::Output {
    task.run::<Portable>()
}
