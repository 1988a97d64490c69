//! Vector kernels: the only module of the crate with unsafe code.
//!
//! Kernels are written once, generic over an instruction set ([`Isa`]), and compiled once per set: [`dispatch`] enters
//! a function compiled for the best set that the machine has and everything inlined into it uses that set. What an
//! instruction set adds by hand (tiles of matrix products, requantization) is a method of the trait; the portable
//! versions are the definition, and tests compare the others with them.
#![allow(unsafe_code)]

/// Repeats a block for `$i` from 0 below a constant of at most 5. Loops that index vectors in registers must be
/// unrolled, which compilers do not do when they optimise for size.
macro_rules! unrolled {
    ($i:ident < $n:expr, $body:block) => {
        unrolled!($i < $n, $body, 0 1 2 3 4)
    };
    ($i:ident < $n:expr, $body:block, $($k:literal)*) => {
        $(if $k < $n {
            #[allow(non_upper_case_globals)]
            const $i: usize = $k;
            $body
        })*
    };
}
pub(crate) use unrolled;

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) use wasm::Once;

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Once;

use crate::requant::Quantized;
use bytemuck::{Pod, Zeroable};
use litegpu_graph::fixed::Multiplier;
use smallvec::SmallVec;
use std::sync::atomic::AtomicU32;

/// Columns of a packed panel.
pub(crate) const NR: usize = 16;
/// The most rows that an integer tile of any instruction set has.
pub(crate) const MAX_MR: usize = 4;

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

/// Four steps of the depth for 16 columns, as instructions want them that multiply bytes.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct LineQuad(pub [[i8; 4]; NR]);

/// The most rows of a tile of [`Quads`].
pub(crate) const MAX_QUADS: usize = 8;

/// Whether machines that the build is for may multiply bytes by fours: elsewhere nothing of it is compiled.
pub(crate) const QUADS: bool = cfg!(target_arch = "x86_64");

/// Whether the machine multiplies unsigned by signed bytes, four products at a time.
#[inline]
pub(crate) fn quads_here() -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512::here();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A panel of 16 columns of bytes. The left operand is unsigned bytes as they are, zero points and all: what these
/// amount to is in the sums from the start, or taken from them row by row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quads<'a> {
    pub lines: &'a [LineQuad],
    /// Where sums begin.
    pub start: &'a [i32; NR],
    /// The sum of each column.
    pub sums: &'a [i32; NR],
    /// Elements of a run that count; zeros fill the last four up.
    pub run: usize,
    /// The zero point of the weights, which takes as many times the sum of a row's elements from the row's sums.
    pub zero: i32,
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
impl Quads<'_> {
    /// # Panics
    /// When the rows cannot be read.
    #[inline(always)]
    fn check(&self, a: &[u8], runs: &[usize], lda: usize, rows: usize) {
        let padded = 4 * (self.lines.len() / runs.len().max(1));
        let last = runs.iter().max().copied().unwrap_or(0);
        assert!(padded / 4 * runs.len() == self.lines.len() && self.run <= padded && rows > 0);
        assert!(a.len() >= (rows - 1) * lda + last + padded);
    }
}

/// A panel of 16 columns of bytes whose depth is in blocks of equal length, each of which has scales of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks<'a> {
    pub lines: &'a [LineQuad],
    /// The sums of the columns, block by block.
    pub sums: &'a [[i32; NR]],
    pub scales: &'a [[f32; NR]],
}

impl Blocks<'_> {
    /// Lines of a block.
    ///
    /// # Panics
    /// When blocks are not equally long, or rows cannot be read.
    #[inline(always)]
    fn check(&self, a: &[u8], lda: usize, rows: &[(f32, i32)]) -> usize {
        let length = self.lines.len() / self.scales.len().max(1);
        assert!(length * self.scales.len() == self.lines.len() && self.sums.len() == self.scales.len());
        assert!(rows.len() <= MAX_MR && a.len() >= (rows.len().max(1) - 1) * lda + 4 * self.lines.len());
        length
    }
}

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
    /// How many of the columns matter.
    pub columns: usize,
    /// Both roundings as one, where the shifts allow that.
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
    pub once: Option<&'a Once>,
}

#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
impl Requant<'_> {
    /// Whether values of at most 16 bits can be moved by the zero point, saturated and limited as elements of type `O`
    /// with the same result.
    #[inline(always)]
    fn saturates<O: Quantized>(&self) -> bool {
        let within = |x: i32| (O::LOW..=O::HIGH).contains(&x);
        // Saturated 16-bit values must not move back into the type's range.
        within(self.low) && within(self.high) && within(self.zero) && (size_of::<O>() == 1 || self.zero == 0)
    }
}

/// Where column `j` lies in constants that are read by 64-bit lanes: the even columns of each eight, then the odd ones,
/// as products of every other lane come. NEON multiplies neighbours.
#[inline(always)]
pub(crate) const fn apart(j: usize) -> usize {
    if cfg!(target_arch = "aarch64") { j } else { j / 8 * 8 + j % 2 * 4 + j % 8 / 2 }
}

/// The two roundings of 16 columns as one.
///
/// Of P = x * value the reference makes y = floor((P + 2^30) / 2^31), then floor((y + 2^(r-1) - [y < 0]) / 2^r), where
/// -r is the shift. Nested floors are one: floor((P + 2^30 + 2^(30+r) - 2^31 [y < 0]) / 2^(31+r)). The sign of P
/// does for that of y: they differ only for P from -2^30 to -1, where the quotient is 0 with either constant. From r = 1
/// to 31 nothing exceeds 64 bits. The shift takes the sum's high half, then r - 1 bits.
#[cfg(not(any(all(target_arch = "wasm32", target_feature = "simd128"), target_arch = "aarch64")))]
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
pub(crate) struct Once {
    /// What is added to products of at least 0, columns [`apart`].
    up: [i64; NR],
    /// What is added to negative ones.
    down: [i64; NR],
    right: [i32; NR],
}

#[cfg(not(any(all(target_arch = "wasm32", target_feature = "simd128"), target_arch = "aarch64")))]
impl Once {
    /// From fractions and powers of two; `None` when a column is not shifted to the right.
    pub(crate) fn new(value: &[i32; NR], shift: &[i32; NR]) -> Option<Once> {
        let mut once = Once { up: [0; NR], down: [0; NR], right: [0; NR] };
        for j in 0..NR {
            // Times 0 is 0, whatever the shift.
            let r = if value[j] == 0 { 1 } else { -shift[j] };
            if !(1..=31).contains(&r) {
                return None;
            }
            once.up[apart(j)] = (1 << 30) + (1i64 << (30 + r));
            once.down[apart(j)] = once.up[apart(j)] - (1 << 31);
            once.right[j] = r - 1;
        }
        Some(once)
    }
}

/// Constants of the requantization of 16 columns of 64-bit sums, rounded once: (sum * value + offset) >> shift.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequantWide<'a> {
    /// Fractions of 15 bits.
    pub value: &'a [i32; NR],
    /// The bias times the fraction and one half, columns [`apart`].
    pub offset: &'a [i64; NR],
    /// At most 32, columns [`apart`].
    pub shift: &'a [i64; NR],
    pub low: i32,
    pub high: i32,
    /// How many of the columns matter.
    pub columns: usize,
}

#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
impl RequantWide<'_> {
    /// See [`Requant::saturates`].
    #[inline(always)]
    fn saturates<O: Quantized>(&self) -> bool {
        let within = |x: i32| (O::LOW..=O::HIGH).contains(&x);
        within(self.low) && within(self.high)
    }
}

/// Narrows rows of 16 values to the first `n` of outputs `stride` apart.
#[inline(always)]
pub(crate) fn narrow_rows<S: Isa, O: Quantized>(rows: &[[i32; NR]], out: &mut [O], stride: usize, n: usize) {
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

/// What becomes of the sums of 16 columns where activations are quantized by pieces: times the column's scale and the
/// piece's, plus `bias`, limited.
#[derive(Debug, Clone, Copy)]
// Read by instruction sets that have code of their own for it.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
pub(crate) struct Scaled<'a> {
    pub bias: &'a [f32; NR],
    pub scale: &'a [f32; NR],
    pub range: (f32, f32),
    pub columns: usize,
    /// The pieces' scales, as bits. What is missing counts as zero.
    pub pieces: &'a [AtomicU32],
    /// The pieces' zero points, for products of bytes.
    pub zeros: &'a [AtomicU32],
    /// Rows to a piece, and the first row.
    pub rows: usize,
    pub row: usize,
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
impl Scaled<'_> {
    /// Scale and zero point of the piece that a row belongs to, counted from the first, where that is not the piece
    /// before: `until` is one past that one's last row.
    #[inline(always)]
    fn piece(&self, row: usize, until: &mut usize) -> Option<(f32, i32)> {
        let (row, rows) = (self.row + row, self.rows.max(1));
        if row < *until {
            return None;
        }
        let piece = if rows == 1 { row } else { row / rows };
        *until = if rows == 1 { row + 1 } else { (piece + 1).saturating_mul(rows) };
        let of = |list: &[AtomicU32]| list.get(piece).map_or(0, |p| p.load(std::sync::atomic::Ordering::Relaxed));
        Some((f32::from_bits(of(self.pieces)), of(self.zeros) as i32))
    }
}

/// Any number of rows times a panel, tile by tile, finished by `finish(row, sums)`.
#[inline(always)]
pub(crate) fn tiles<S: Isa>(
    a: &[i16],
    runs: &[usize],
    lda: usize,
    rows: usize,
    b: Panel<'_>,
    columns: usize,
    mut finish: impl FnMut(usize, &mut [[i32; NR]]),
) {
    for r in (0..rows).step_by(S::MRI) {
        let m = S::MRI.min(rows - r);
        let mut acc = [[0i32; NR]; MAX_MR];
        S::tile_i16(&a[r * lda..], runs, lda, m, b, columns, &mut acc);
        finish(r, &mut acc[..m]);
    }
}

/// Any number of rows times a panel, tile by tile.
#[inline(always)]
fn tiles_f32<S: Isa>(
    a: &[f32],
    runs: &[usize],
    lda: usize,
    rows: usize,
    b: &[LineF32],
    bias: &[f32; NR],
    range: (f32, f32),
    out: &mut [f32],
    ldc: usize,
    columns: usize,
) {
    for r in (0..rows).step_by(S::MR) {
        let m = S::MR.min(rows - r);
        S::tile_f32(&a[r * lda..], runs, lda, m, b, bias, range, &mut out[r * ldc..], ldc, columns);
    }
}

/// What is added to the products of one column, and the limits of their sums.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dot {
    pub bias: f32,
    pub range: (f32, f32),
}

/// An operand of a quantized sum: less its zero point, shifted left, times a multiplier of at most one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term {
    pub zero: i32,
    pub left: u32,
    pub scale: Multiplier,
}

/// The sum (or the difference) of two terms, rescaled and limited.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sum {
    pub terms: [Term; 2],
    pub negative: bool,
    pub scale: Multiplier,
    pub zero: i32,
    pub low: i32,
    pub high: i32,
}

/// An instruction set.
pub(crate) trait Isa: Copy + Send + Sync + 'static {
    /// Rows of a tile of floats.
    const MR: usize;
    /// Rows of a tile of integers.
    const MRI: usize;
    /// Eights of channels of four pixels, and pixels of 16 channels, that a depthwise convolution has in registers.
    const HALVES: usize = 2;
    /// Whether it pays to do a whole line of a depthwise convolution of floats as a [`Strip`].
    const LONG: bool = false;
    const STRIP: usize = 4;
    /// 8 floats.
    type F: Copy;
    /// 16 words.
    type W: Copy;
    /// 8 32-bit sums.
    type I: Copy;

    /// a * b + c, fused where the set has it.
    fn fma(a: f32, b: f32, c: f32) -> f32;

    fn load(x: &[f32; 8]) -> Self::F;
    fn store(x: Self::F, to: &mut [f32; 8]);
    /// a * b + c on each lane, fused where the set has it.
    fn fma8(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a * b + c on each lane, rounded twice: the same on every machine.
    #[inline(always)]
    fn mul_add8(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let [mut x, mut y, mut z] = [[0.0; 8]; 3];
        Self::store(a, &mut x);
        Self::store(b, &mut y);
        Self::store(c, &mut z);
        Self::load(&std::array::from_fn(|j| x[j] * y[j] + z[j]))
    }
    /// The nearest floats.
    #[inline(always)]
    fn reals(x: &[i32; 8]) -> Self::F {
        Self::load(&x.map(|x| x as f32))
    }
    /// Clamps each lane.
    fn clamp8(x: Self::F, range: (f32, f32)) -> Self::F;

    fn load_words(x: &[i16; NR]) -> Self::W;
    /// The words of two vectors side by side, in an order that only [`Isa::sums`] undoes.
    fn pair(a: Self::W, b: Self::W) -> [Self::W; 2];
    /// sum + a0 * b0 + a1 * b1 for each pair of words, modulo 2^32.
    fn dot(sum: Self::I, a: Self::W, b: Self::W) -> Self::I;
    /// The sums of 16 lanes in their order.
    fn sums(x: [Self::I; 2]) -> [i32; NR];
    /// The other way round.
    fn load_sums(x: &[i32; NR]) -> [Self::I; 2];

    /// One tile of a product: `rows` (at most MR) rows of `a`, `lda` apart, times a panel, plus `bias`, clamped, into
    /// the first `columns` columns of the rows of `out`, `ldc` apart. A row is made of runs of equal length that begin
    /// at the places `runs`.
    fn tile_f32(
        a: &[f32],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &[LineF32],
        bias: &[f32; NR],
        range: (f32, f32),
        out: &mut [f32],
        ldc: usize,
        columns: usize,
    );

    /// Any number of rows, tile by tile.
    #[inline(always)]
    fn rows_f32(
        a: &[f32],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &[LineF32],
        bias: &[f32; NR],
        range: (f32, f32),
        out: &mut [f32],
        ldc: usize,
        columns: usize,
    ) {
        tiles_f32::<Self>(a, runs, lda, rows, b, bias, range, out, ldc, columns);
    }

    /// The first channels of pixels of a depthwise convolution, `step` apart, where that has code of its own: how many
    /// channels. A line of `out` has `stride` of them, and a block of 16 `block` of the `lines`.
    #[inline(always)]
    fn depthwise_pixels(
        _: &[f32],
        _first: isize,
        _step: usize,
        _: &Taps,
        _lines: &[[f32; NR]],
        _block: usize,
        _bias: &[f32],
        _range: (f32, f32),
        _out: &mut [f32],
        _stride: usize,
    ) -> usize {
        0
    }

    /// Rows as in [`Isa::tile_f32`], any number of them, times one column `w`: for products too narrow for a tile.
    fn dots_f32(
        a: &[f32],
        runs: &[usize],
        lda: usize,
        rows: usize,
        w: &[f32],
        finish: Dot,
        out: &mut [f32],
        ldc: usize,
    );

    /// One tile of an integer product, at most MRI rows, in pairs of depth steps: `acc` receives the sums, modulo 2^32. Only the first
    /// `columns` matter. Rows are made of runs as in [`Isa::tile_f32`].
    fn tile_i16(
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        columns: usize,
        acc: &mut [[i32; NR]; MAX_MR],
    );

    /// One tile of a product of bytes, at most [`MAX_QUADS`] rows; see [`Quads`].
    #[inline(always)]
    fn tile_quads(a: &[u8], runs: &[usize], lda: usize, rows: usize, b: &Quads<'_>, acc: &mut [[i32; NR]; MAX_QUADS]) {
        let length = b.lines.len() / runs.len().max(1);
        for (r, acc) in acc.iter_mut().enumerate().take(rows) {
            let (mut sum, mut all) = (*b.start, 0i32);
            for (run, lines) in runs.iter().zip(b.lines.chunks_exact(length.max(1))) {
                let row = &a[run + r * lda..][..4 * length];
                for (x, line) in row.as_chunks::<4>().0.iter().zip(lines) {
                    for j in 0..NR {
                        for i in 0..4 {
                            sum[j] = sum[j].wrapping_add(x[i] as i32 * line.0[j][i] as i32);
                        }
                    }
                }
                all = row[..b.run].iter().fold(all, |s, x| s.wrapping_add(*x as i32));
            }
            *acc = sum.map(|s| s.wrapping_sub(all.wrapping_mul(b.zero)));
        }
    }
    /// Any number of rows of bytes times a panel, requantized and narrowed.
    #[inline(always)]
    fn panel_quads<O: Quantized>(
        a: &[u8],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &Quads<'_>,
        q: &Requant<'_>,
        out: &mut [O],
        ldc: usize,
    ) {
        for r in (0..rows).step_by(MAX_QUADS) {
            let m = MAX_QUADS.min(rows - r);
            let mut acc = [[0i32; NR]; MAX_QUADS];
            Self::tile_quads(&a[r * lda..], runs, lda, m, b, &mut acc);
            Self::requantize(&mut acc[..m], q);
            narrow_rows::<Self, O>(&acc[..m], &mut out[r * ldc..], ldc, q.columns);
        }
    }
    /// At most [`MAX_MR`] rows of bytes times a panel in blocks: the blocks' sums, scaled, are added up in their order.
    /// Each row has a scale and a zero point.
    #[inline(always)]
    fn blocks(a: &[u8], lda: usize, rows: &[(f32, i32)], b: &Blocks<'_>, out: &mut [[f32; NR]; MAX_MR]) {
        let length = b.check(a, lda, rows);
        for (r, (out, &(piece, zero))) in out.iter_mut().zip(rows).enumerate() {
            *out = [0.0; NR];
            let lines = b.lines.chunks_exact(length.max(1)).zip(a[r * lda..].chunks_exact(4 * length.max(1)));
            for ((sums, scales), (lines, row)) in b.sums.iter().zip(b.scales).zip(lines) {
                let mut sum = sums.map(|s| s.wrapping_mul(zero).wrapping_neg());
                for (x, line) in row.as_chunks::<4>().0.iter().zip(lines) {
                    for j in 0..NR {
                        for i in 0..4 {
                            sum[j] = sum[j].wrapping_add(x[i] as i32 * line.0[j][i] as i32);
                        }
                    }
                }
                for j in 0..NR {
                    out[j] += sum[j] as f32 * (scales[j] * piece);
                }
            }
        }
    }
    /// [`Isa::panel_scaled`] of bytes, whose zero points are the pieces'.
    #[inline(always)]
    fn panel_quads_scaled(
        _: &[u8],
        _runs: &[usize],
        _lda: usize,
        _rows: usize,
        _: &Quads<'_>,
        _: &Scaled<'_>,
        _out: &mut [f32],
        _ldc: usize,
    ) -> bool {
        false
    }

    /// Accumulators of 16 columns to quantized values, which the caller narrows.
    fn requantize(acc: &mut [[i32; NR]], q: &Requant<'_>);

    /// The same with 64-bit biases and reduced multipliers.
    #[inline(always)]
    fn requantize_wide(acc: &mut [[i32; NR]], q: &RequantWide<'_>) {
        for acc in acc {
            for j in 0..NR {
                let x = (acc[j] as i64).wrapping_mul(q.value[j] as i64);
                let x = x.wrapping_add(q.offset[apart(j)]) >> q.shift[apart(j)];
                acc[j] = (x as i32).max(q.low).min(q.high);
            }
        }
    }

    /// Any number of rows times a panel as in [`Isa::tile_i16`], requantized and narrowed.
    #[inline(always)]
    fn panel<O: Quantized>(
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        q: &Requant<'_>,
        out: &mut [O],
        ldc: usize,
    ) {
        tiles::<Self>(a, runs, lda, rows, b, q.columns, |r, acc| {
            Self::requantize(acc, q);
            narrow_rows::<Self, O>(acc, &mut out[r * ldc..], ldc, q.columns);
        });
    }
    #[inline(always)]
    fn panel_wide<O: Quantized>(
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        q: &RequantWide<'_>,
        out: &mut [O],
        ldc: usize,
    ) {
        tiles::<Self>(a, runs, lda, rows, b, q.columns, |r, acc| {
            Self::requantize_wide(acc, q);
            narrow_rows::<Self, O>(acc, &mut out[r * ldc..], ldc, q.columns);
        });
    }

    /// Any number of rows times a panel, scaled in registers; false where that has no code of its own.
    #[inline(always)]
    fn panel_scaled(
        _: &[i16],
        _runs: &[usize],
        _lda: usize,
        _rows: usize,
        _: Panel<'_>,
        _: &Scaled<'_>,
        _out: &mut [f32],
        _ldc: usize,
    ) -> bool {
        false
    }

    /// The same of the sums of a strip, all of whose pixels belong to the first row.
    #[inline(always)]
    fn strip_scaled(_: &Strip<'_>, _: &Scaled<'_>, _out: &mut [f32], _stride: usize) -> bool {
        false
    }

    /// The sums of a strip of a depthwise convolution, requantized and narrowed.
    #[inline(always)]
    fn strip<O: Quantized>(strip: &Strip<'_>, q: &Requant<'_>, out: &mut [O], stride: usize) {
        strip.each::<Self>(|p, sums| {
            Self::requantize(sums, q);
            narrow_rows::<Self, O>(sums, &mut out[p * stride..], stride, q.columns);
        });
    }
    #[inline(always)]
    fn strip_wide<O: Quantized>(strip: &Strip<'_>, q: &RequantWide<'_>, out: &mut [O], stride: usize) {
        strip.each::<Self>(|p, sums| {
            Self::requantize_wide(sums, q);
            narrow_rows::<Self, O>(sums, &mut out[p * stride..], stride, q.columns);
        });
    }

    /// The sums of a strip of a depthwise convolution of floats from `bias` on, clamped: the first `n` of 16 channels.
    #[inline(always)]
    fn strip_f32(
        strip: &Strip<'_, f32>,
        bias: &[f32; NR],
        range: (f32, f32),
        out: &mut [f32],
        stride: usize,
        n: usize,
    ) {
        for r in 0..strip.rows {
            let (mut p, line) = (0, strip.first + r * strip.line);
            while p < strip.pixels {
                let (at, out) = ((line + p * strip.step) as isize, &mut out[(r * strip.pixels + p) * stride..]);
                if strip.pixels - p >= 4 {
                    strip_group::<Self, 4>(strip, at, bias, range, out, stride, n);
                    p += 4;
                } else {
                    strip_group::<Self, 1>(strip, at, bias, range, out, stride, n);
                    p += 1;
                }
            }
        }
    }

    /// Sums of quantized numbers, left in `x`.
    fn sum(x: &mut [[i32; NR]], y: &[[i32; NR]], k: &Sum);

    /// Sums of bytes without a detour over 32 bits, as many of them as go fast: how many, from the first on.
    #[inline(always)]
    fn sum_i8(_: &[i8], _: &[i8], _: &mut [i8], _: &Sum) -> usize {
        0
    }
    #[inline(always)]
    fn sum_u8(_: &[u8], _: &[u8], _: &mut [u8], _: &Sum) -> usize {
        0
    }

    /// What a table has for each byte of `from`, or for those that `to` holds.
    #[inline(always)]
    fn look_up(table: &[u8; 256], from: Option<&[u8]>, to: &mut [u8]) {
        match from {
            Some(from) => to.iter_mut().zip(from).for_each(|(t, &v)| *t = table[v as usize]),
            None => to.iter_mut().for_each(|t| *t = table[*t as usize]),
        }
    }

    /// Values within the type's range, narrowed.
    fn narrow_i8(x: &[i32; NR], to: &mut [i8; NR]);
    fn narrow_u8(x: &[i32; NR], to: &mut [u8; NR]);
    fn narrow_i16(x: &[i32; NR], to: &mut [i16; NR]);
}

/// Elements that depthwise convolutions of integers read, as words.
pub(crate) trait Word: Copy + Send + Sync + 'static {
    fn word(self) -> i16;
}
impl Word for i8 {
    #[inline(always)]
    fn word(self) -> i16 {
        self as i16
    }
}
impl Word for u8 {
    #[inline(always)]
    fn word(self) -> i16 {
        self as i16
    }
}
impl Word for i16 {
    #[inline(always)]
    fn word(self) -> i16 {
        self
    }
}

/// Taps of a depthwise filter that lie inside the image: how far each reads from the first element under the window,
/// and which line of the filter it multiplies. An odd one is paired with the line of zeros that ends each filter.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    list: SmallVec<[(isize, usize); 26]>,
    count: usize,
    low: isize,
    high: isize,
    /// One past the last line that is read.
    lines: usize,
}

impl Taps {
    /// The taps that `each` gives to its argument, as offset and line; `zero` is the line of zeros.
    pub(crate) fn set(&mut self, zero: usize, each: impl FnOnce(&mut dyn FnMut(isize, usize))) {
        self.list.clear();
        (self.low, self.high, self.lines) = (isize::MAX, isize::MIN, 0);
        each(&mut |offset, line| {
            (self.low, self.high) = (self.low.min(offset), self.high.max(offset));
            self.lines = self.lines.max(line + 1);
            self.list.push((offset, line));
        });
        self.count = self.list.len();
        if self.count == 0 {
            (self.low, self.high) = (0, 0);
        }
        if self.count % 2 == 1 {
            let (offset, _) = self.list[0];
            self.lines = self.lines.max(zero + 1);
            self.list.push((offset, zero));
        }
    }
    /// (offset, line) of each tap.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (isize, usize)> + '_ {
        self.list.iter().take(self.count).copied()
    }
    /// Whether windows from `first` on, `pixels` of them `step` apart, can be read `lanes` elements at a time.
    #[inline(always)]
    pub(crate) fn readable(&self, len: usize, first: isize, step: usize, pixels: usize, lanes: usize) -> bool {
        let end = first + self.high + ((pixels - 1) * step + lanes) as isize;
        first + self.low >= 0 && end >= 0 && end as usize <= len
    }
}

/// Depthwise sums of P (at most 4) pixels, `step` apart, of 8 H channels from lane `lane` of the lines on.
///
/// # Panics
/// When `taps` are not [readable](Taps::readable) or the lines are too few.
#[inline(always)]
pub(crate) fn depthwise_f32<S: Isa, const P: usize, const H: usize>(
    image: &[f32],
    first: isize,
    step: usize,
    taps: &Taps,
    lines: &[[f32; NR]],
    bias: &[f32; NR],
    lane: usize,
) -> [[S::F; 2]; 4] {
    assert!(taps.readable(image.len(), first, step, P, 8 * H) && taps.lines <= lines.len() && lane + 8 * H <= NR);
    const { assert!(P <= 4 && H <= 2) };
    let zero = S::load(&[0.0; 8]);
    let mut acc = [[zero, zero], [zero, zero], [zero, zero], [zero, zero]];
    // SAFETY: the assert covers the lowest and the highest element that any tap of any pixel reads, every line, and
    // the lanes of lines and bias.
    unsafe {
        unrolled!(h < H, {
            let b = S::load(&*bias.as_ptr().add(lane + 8 * h).cast());
            unrolled!(p < P, { acc[p][h] = b }, 0 1 2 3);
        }, 0 1);
        for &(offset, line) in taps.list.iter().take(taps.count) {
            let w = lines.as_ptr().add(line).cast::<f32>().add(lane);
            let x = image.as_ptr().offset(first + offset);
            unrolled!(h < H, {
                let w = S::load(&*w.add(8 * h).cast());
                unrolled!(p < P, {
                    acc[p][h] = S::fma8(S::load(&*x.add(p * step + 8 * h).cast()), w, acc[p][h]);
                }, 0 1 2 3);
            }, 0 1);
        }
    }
    acc
}

/// P neighbouring pixels of a strip; see [`Isa::strip_f32`].
#[inline(always)]
fn strip_group<S: Isa, const P: usize>(
    strip: &Strip<'_, f32>,
    at: isize,
    bias: &[f32; NR],
    range: (f32, f32),
    out: &mut [f32],
    stride: usize,
    n: usize,
) {
    let Strip { image, step, taps, lines, .. } = *strip;
    // Both halves at once where the registers hold them.
    let both = (S::HALVES == 2).then(|| depthwise_f32::<S, P, 2>(image, at, step, taps, lines, bias, 0));
    for half in 0..if n > 8 { 2 } else { 1 } {
        let sums = match &both {
            Some(acc) => acc.map(|a| a[half]),
            None => {
                let at = at + 8 * half as isize;
                depthwise_f32::<S, P, 1>(image, at, step, taps, lines, bias, 8 * half).map(|a| a[0])
            }
        };
        unrolled!(p < P, {
            let (x, to) = (S::clamp8(sums[p], range), &mut out[p * stride + 8 * half..]);
            if let (Some(to), true) = (to.first_chunk_mut(), n >= 8 * (half + 1)) {
                S::store(x, to);
            } else {
                let mut part = [0.0; 8];
                S::store(x, &mut part);
                to[..n - 8 * half].copy_from_slice(&part[..n - 8 * half]);
            }
        }, 0 1 2 3);
    }
}

/// 16 channels of lines of pixels of a depthwise convolution, whose windows all hold the same taps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strip<'a, T = i16> {
    /// Zero points subtracted.
    pub image: &'a [T],
    /// Where the first pixel's window begins.
    pub first: usize,
    /// From one pixel to the next.
    pub step: usize,
    pub pixels: usize,
    /// From one line to the next.
    pub line: usize,
    pub rows: usize,
    pub taps: &'a Taps,
    pub lines: &'a [[T; NR]],
}

impl<T> Strip<'_, T> {
    /// # Panics
    /// When a window cannot be read 16 elements at a time or the lines are too few.
    #[inline(always)]
    fn check(&self) {
        let reach = (self.rows.max(1) - 1) * self.line + (self.pixels.max(1) - 1) * self.step + NR;
        let end = self.first as isize + self.taps.high + reach as isize;
        assert!(self.first as isize + self.taps.low >= 0 && end >= 0 && end as usize <= self.image.len());
        assert!(self.taps.lines <= self.lines.len());
    }
}

impl Strip<'_> {
    /// Calls `finish(pixel, sums)` for a few pixels of a line at a time, then for one at a time. Sums are modulo 2^32.
    ///
    /// # Panics
    /// When a window cannot be read 16 elements at a time or the lines are too few.
    #[inline(always)]
    pub(crate) fn each<S: Isa>(&self, mut finish: impl FnMut(usize, &mut [[i32; NR]])) {
        self.check();
        for r in 0..self.rows {
            let (x, at) = (self.first + r * self.line, r * self.pixels);
            let mut p = 0;
            // SAFETY: the check covers the windows of all pixels.
            unsafe {
                while p + S::STRIP <= self.pixels {
                    if S::STRIP == 2 {
                        finish(at + p, &mut self.sums::<S, 2>(x + p * self.step));
                    } else {
                        finish(at + p, &mut self.sums::<S, 4>(x + p * self.step));
                    }
                    p += S::STRIP;
                }
                while p < self.pixels {
                    finish(at + p, &mut self.sums::<S, 1>(x + p * self.step));
                    p += 1;
                }
            }
        }
    }

    /// The sums of four pixels of a line, or of the one where there are fewer, and how many these are. Sums are modulo
    /// 2^32.
    ///
    /// # Panics
    /// When there is no such pixel, a window cannot be read 16 elements at a time or the lines are too few.
    #[inline(always)]
    pub(crate) fn pixels<S: Isa>(&self, row: usize, pixel: usize, acc: &mut [[i32; NR]; 4]) -> usize {
        self.check();
        assert!(row < self.rows && pixel < self.pixels);
        let first = self.first + row * self.line + pixel * self.step;
        // SAFETY: the check covers the windows of all pixels, and these are some of them.
        unsafe {
            if self.pixels - pixel >= 4 {
                *acc = self.sums::<S, 4>(first);
                return 4;
            }
            [acc[0]] = self.sums::<S, 1>(first);
        }
        1
    }

    /// # Safety
    /// The windows of P (at most 4) pixels from `first` on can be read 16 elements at a time, and there are as many
    /// lines as the taps name.
    #[inline(always)]
    unsafe fn sums<S: Isa, const P: usize>(&self, first: usize) -> [[i32; NR]; P] {
        // SAFETY: the caller's promise.
        let acc = unsafe { self.vectors::<S, P>(first, &[0; NR]) };
        let mut out = [[0; NR]; P];
        unrolled!(p < P, { out[p] = S::sums(acc[p]) }, 0 1 2 3);
        out
    }

    /// The same sums in registers, from `bias` on.
    ///
    /// # Safety
    /// As [`Strip::sums`].
    #[inline(always)]
    unsafe fn vectors<S: Isa, const P: usize>(&self, first: usize, bias: &[i32; NR]) -> [[S::I; 2]; 4] {
        const { assert!(P <= 4) };
        let mut acc = [S::load_sums(bias); 4];
        // SAFETY: the caller's promise.
        unsafe {
            let (x, step) = (self.image.as_ptr().add(first), self.step);
            for &[(o0, l0), (o1, l1)] in self.taps.list.as_chunks::<2>().0 {
                let (w0, w1) = (self.lines.get_unchecked(l0), self.lines.get_unchecked(l1));
                let w = S::pair(S::load_words(w0), S::load_words(w1));
                let (x0, x1) = (x.wrapping_offset(o0), x.wrapping_offset(o1));
                unrolled!(p < P, {
                    let (a, b) = (&*x0.add(p * step).cast(), &*x1.add(p * step).cast());
                    let x = S::pair(S::load_words(a), S::load_words(b));
                    acc[p][0] = S::dot(acc[p][0], x[0], w[0]);
                    acc[p][1] = S::dot(acc[p][1], x[1], w[1]);
                }, 0 1 2 3);
            }
        }
        acc
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
#[cfg_attr(target_arch = "aarch64", allow(dead_code))]
pub(crate) struct Portable;

impl Isa for Portable {
    const MR: usize = 4;
    const MRI: usize = 4;
    type F = [f32; 8];
    type W = [i16; NR];
    type I = [i32; 8];

    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    fn load(x: &[f32; 8]) -> [f32; 8] {
        *x
    }
    #[inline(always)]
    fn store(x: [f32; 8], to: &mut [f32; 8]) {
        *to = x;
    }
    #[inline(always)]
    fn fma8(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|j| a[j] * b[j] + c[j])
    }
    #[inline(always)]
    fn clamp8(x: [f32; 8], range: (f32, f32)) -> [f32; 8] {
        x.map(|x| clamp(x, range))
    }
    #[inline(always)]
    fn load_words(x: &[i16; NR]) -> [i16; NR] {
        *x
    }
    #[inline(always)]
    fn pair(a: [i16; NR], b: [i16; NR]) -> [[i16; NR]; 2] {
        let at = |from: usize| std::array::from_fn(|j| if j % 2 == 0 { a[from + j / 2] } else { b[from + j / 2] });
        [at(0), at(8)]
    }
    #[inline(always)]
    fn dot(sum: [i32; 8], a: [i16; NR], b: [i16; NR]) -> [i32; 8] {
        std::array::from_fn(|j| {
            let even = a[2 * j] as i32 * b[2 * j] as i32;
            sum[j].wrapping_add(even.wrapping_add(a[2 * j + 1] as i32 * b[2 * j + 1] as i32))
        })
    }
    #[inline(always)]
    fn sums(x: [[i32; 8]; 2]) -> [i32; NR] {
        std::array::from_fn(|j| x[j / 8][j % 8])
    }
    #[inline(always)]
    fn load_sums(x: &[i32; NR]) -> [[i32; 8]; 2] {
        std::array::from_fn(|h| std::array::from_fn(|j| x[8 * h + j]))
    }

    #[inline(always)]
    fn tile_f32(
        a: &[f32],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &[LineF32],
        bias: &[f32; NR],
        range: (f32, f32),
        out: &mut [f32],
        ldc: usize,
        columns: usize,
    ) {
        let length = b.len() / runs.len().max(1);
        for r in 0..rows {
            let mut acc = *bias;
            for (run, b) in runs.iter().zip(b.chunks_exact(length.max(1))) {
                for (x, line) in a[run + r * lda..].iter().zip(b) {
                    for j in 0..NR {
                        acc[j] += x * line.0[j];
                    }
                }
            }
            for (o, v) in out[r * ldc..][..columns].iter_mut().zip(acc) {
                *o = clamp(v, range);
            }
        }
    }

    #[inline(always)]
    fn dots_f32(
        a: &[f32],
        runs: &[usize],
        lda: usize,
        rows: usize,
        w: &[f32],
        finish: Dot,
        out: &mut [f32],
        ldc: usize,
    ) {
        let length = w.len() / runs.len().max(1);
        for r in 0..rows {
            let mut sum = finish.bias;
            for (run, w) in runs.iter().zip(w.chunks_exact(length.max(1))) {
                sum += a[run + r * lda..].iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
            }
            out[r * ldc] = clamp(sum, finish.range);
        }
    }

    #[inline(always)]
    fn tile_i16(
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        _columns: usize,
        acc: &mut [[i32; NR]; MAX_MR],
    ) {
        let length = b.len() / runs.len().max(1);
        for (r, acc) in acc.iter_mut().enumerate().take(rows) {
            let mut sum = [0i32; NR];
            for (i, run) in runs.iter().enumerate() {
                let row = a[run + r * lda..][..2 * length].as_chunks::<2>().0;
                let mut step = |x: &[i16; 2], w: [[i32; 2]; NR]| {
                    for j in 0..NR {
                        let dot = (x[0] as i32 * w[j][0]).wrapping_add(x[1] as i32 * w[j][1]);
                        sum[j] = sum[j].wrapping_add(dot);
                    }
                };
                match b.part(i * length..(i + 1) * length) {
                    Panel::Narrow(lines) => {
                        row.iter().zip(lines).for_each(|(x, l)| step(x, l.0.map(|p| p.map(|w| w as i32))));
                    }
                    Panel::Wide(lines) => {
                        row.iter().zip(lines).for_each(|(x, l)| step(x, l.0.map(|p| p.map(|w| w as i32))));
                    }
                }
            }
            *acc = sum;
        }
    }

    #[inline(always)]
    fn requantize(acc: &mut [[i32; NR]], q: &Requant<'_>) {
        for acc in acc {
            for j in 0..NR {
                let m = Multiplier { value: q.value[j], shift: q.shift[j] };
                let x = m.apply(acc[j].wrapping_add(q.bias[j]));
                acc[j] = x.wrapping_add(q.zero).max(q.low).min(q.high);
            }
        }
    }
    #[inline(always)]
    fn sum(x: &mut [[i32; NR]], y: &[[i32; NR]], k: &Sum) {
        let term = |v: i32, t: &Term| t.scale.apply_small(v.wrapping_sub(t.zero) << t.left);
        for (x, y) in x.iter_mut().zip(y) {
            for j in 0..NR {
                let (a, b) = (term(x[j], &k.terms[0]), term(y[j], &k.terms[1]));
                let sum = if k.negative { a.wrapping_sub(b) } else { a.wrapping_add(b) };
                x[j] = k.scale.apply(sum).wrapping_add(k.zero).max(k.low).min(k.high);
            }
        }
    }
    #[inline(always)]
    fn narrow_i8(x: &[i32; NR], to: &mut [i8; NR]) {
        *to = x.map(|x| x as i8);
    }
    #[inline(always)]
    fn narrow_u8(x: &[i32; NR], to: &mut [u8; NR]) {
        *to = x.map(|x| x as u8);
    }
    #[inline(always)]
    fn narrow_i16(x: &[i32; NR], to: &mut [i16; NR]) {
        *to = x.map(|x| x as i16);
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
    #[cfg(target_arch = "x86_64")]
    if avx512::here() {
        // SAFETY: the machine has the features that the function is compiled for.
        return unsafe { avx512::enter(task) };
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the machine has the features that the function is compiled for.
        return unsafe { avx2::enter(task) };
    }
    enter(task)
}

/// Compiles a task for every machine that a build is for. One copy of each: a boxed closure would have its own in each
/// way to call it.
#[inline(never)]
fn enter<T: Task>(task: T) -> T::Output {
    task.run::<Base>()
}

/// What every machine has that a build is for.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
type Base = wasm::Simd128;
#[cfg(target_arch = "aarch64")]
type Base = neon::Neon;
#[cfg(not(any(all(target_arch = "wasm32", target_feature = "simd128"), target_arch = "aarch64")))]
type Base = Portable;

/// How many elements from its first on a row reaches that is made of `runs`, for `depth` steps in all.
///
/// # Panics
/// When the runs cannot be equally long.
#[cfg(any(target_arch = "x86_64", all(target_arch = "wasm32", target_feature = "simd128"), target_arch = "aarch64"))]
#[inline(always)]
fn reach(runs: &[usize], depth: usize) -> usize {
    match runs {
        [run] => run + depth,
        _ => {
            let last = runs.iter().max().copied().unwrap_or(0);
            let length = depth / runs.len().max(1);
            assert!(length * runs.len() == depth);
            last + length
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;
    use std::arch::x86_64::*;
    use std::mem::MaybeUninit;

    /// 256-bit vectors with fused multiply-add. Its methods are used inside [`enter`] only.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Avx2;

    /// Compiles a task for AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn enter<T: Task>(task: T) -> T::Output {
        task.run::<Avx2>()
    }

    // SAFETY, for every block in this implementation: intrinsics without pointers only need their instruction set,
    // which `enter` guarantees; loads and stores stay inside the arrays or the ranges that the asserts check.
    impl Isa for Avx2 {
        // Sums, a line and a broadcast must stay in 16 registers: one row more, and the compiler spills sums.
        const MR: usize = 5;
        const MRI: usize = 4;
        type F = __m256;
        type W = __m256i;
        type I = __m256i;

        #[inline(always)]
        fn fma(a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }
        #[inline(always)]
        fn load(x: &[f32; 8]) -> __m256 {
            // SAFETY: 32 bytes of an array of 32.
            unsafe { _mm256_loadu_ps(x.as_ptr()) }
        }
        #[inline(always)]
        fn store(x: __m256, to: &mut [f32; 8]) {
            // SAFETY: 32 bytes of an array of 32.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
        }
        #[inline(always)]
        fn fma8(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: see above.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn mul_add8(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: see above.
            unsafe { _mm256_add_ps(_mm256_mul_ps(a, b), c) }
        }
        #[inline(always)]
        fn reals(x: &[i32; 8]) -> __m256 {
            // SAFETY: 32 bytes of an array of 32.
            unsafe { _mm256_cvtepi32_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
        }
        #[inline(always)]
        fn clamp8(x: __m256, range: (f32, f32)) -> __m256 {
            // SAFETY: see above. The value is the second operand: NaN stays NaN.
            unsafe { _mm256_min_ps(_mm256_set1_ps(range.1), _mm256_max_ps(_mm256_set1_ps(range.0), x)) }
        }
        #[inline(always)]
        fn load_words(x: &[i16; NR]) -> __m256i {
            // SAFETY: 32 bytes of an array of 32.
            unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
        }
        #[inline(always)]
        fn pair(a: __m256i, b: __m256i) -> [__m256i; 2] {
            // SAFETY: see above.
            unsafe { [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)] }
        }
        #[inline(always)]
        fn dot(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
            // SAFETY: see above.
            unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) }
        }
        #[inline(always)]
        fn sums(x: [__m256i; 2]) -> [i32; NR] {
            let mut out = [0i32; NR];
            // SAFETY: the two stores fill the array's 64 bytes.
            unsafe {
                let [low, high] = in_order(x);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), low);
                _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), high);
            }
            out
        }
        #[inline(always)]
        fn load_sums(x: &[i32; NR]) -> [__m256i; 2] {
            // SAFETY: the two loads cover the array's 64 bytes.
            unsafe {
                let low = _mm256_loadu_si256(x.as_ptr().cast());
                let high = _mm256_loadu_si256(x.as_ptr().add(8).cast());
                [_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high)]
            }
        }

        #[inline(always)]
        fn tile_f32(
            a: &[f32],
            runs: &[usize],
            lda: usize,
            rows: usize,
            b: &[LineF32],
            bias: &[f32; NR],
            range: (f32, f32),
            out: &mut [f32],
            ldc: usize,
            columns: usize,
        ) {
            assert!((1..=5).contains(&rows) && (1..=NR).contains(&columns));
            let reach = reach(runs, b.len()) + (rows - 1) * lda;
            assert!(a.len() >= reach && out.len() >= (rows - 1) * ldc + columns);
            // SAFETY: the asserts cover every run of every row of `a`, and `out`; `b` is read line by line.
            unsafe { FLOAT_TILES[rows - 1][(columns > 8) as usize](a, runs, lda, b, bias, range, out, ldc, columns) }
        }

        #[inline(always)]
        fn dots_f32(
            a: &[f32],
            runs: &[usize],
            lda: usize,
            rows: usize,
            w: &[f32],
            finish: Dot,
            out: &mut [f32],
            ldc: usize,
        ) {
            assert!(rows > 0 && out.len() > (rows - 1) * ldc && a.len() >= reach(runs, w.len()) + (rows - 1) * lda);
            let mut r = 0;
            // SAFETY: the assert covers every run of every row of `a`, and `out`.
            unsafe {
                while r + 4 <= rows {
                    float_dots::<4, 1>(&a[r * lda..], runs, lda, w, finish, &mut out[r * ldc..], ldc);
                    r += 4;
                }
                while r < rows {
                    float_dots::<1, 4>(&a[r * lda..], runs, lda, w, finish, &mut out[r * ldc..], ldc);
                    r += 1;
                }
            }
        }

        #[inline(always)]
        fn tile_i16(
            a: &[i16],
            runs: &[usize],
            lda: usize,
            rows: usize,
            b: Panel<'_>,
            columns: usize,
            acc: &mut [[i32; NR]; MAX_MR],
        ) {
            assert!(
                (1..=6).contains(&rows)
                    && a.len() >= reach(runs, b.len()) + b.len() / runs.len().max(1) + (rows - 1) * lda
            );
            // SAFETY: the assert covers every run of every row of `a`; `b` is read line by line.
            unsafe {
                match b {
                    Panel::Narrow(b) => NARROW_TILES[rows - 1][(columns > 8) as usize](a, runs, lda, b, acc),
                    Panel::Wide(b) => WIDE_TILES[rows - 1](a, runs, lda, b, acc),
                }
            }
        }

        #[inline(always)]
        fn requantize(acc: &mut [[i32; NR]], q: &Requant<'_>) {
            // SAFETY: see above.
            unsafe { round_twice(acc, q) }
        }

        #[inline(always)]
        fn requantize_wide(acc: &mut [[i32; NR]], q: &RequantWide<'_>) {
            // SAFETY: see above.
            unsafe { round_once(acc, q) }
        }

        #[inline(always)]
        fn panel<O: Quantized>(
            a: &[i16],
            runs: &[usize],
            lda: usize,
            rows: usize,
            b: Panel<'_>,
            q: &Requant<'_>,
            out: &mut [O],
            ldc: usize,
        ) {
            let Some(once) = q.once.filter(|_| q.saturates::<O>()) else {
                return tiles::<Self>(a, runs, lda, rows, b, q.columns, |r, acc| {
                    Self::requantize(acc, q);
                    narrow_rows::<Self, O>(acc, &mut out[r * ldc..], ldc, q.columns);
                });
            };
            let rounding = Twice { q, once };
            // SAFETY: the function checks its arguments.
            unsafe { multiply_panel(a, runs, lda, rows, b, q.bias, &rounding, out, ldc) }
        }

        #[inline(always)]
        fn panel_wide<O: Quantized>(
            a: &[i16],
            runs: &[usize],
            lda: usize,
            rows: usize,
            b: Panel<'_>,
            q: &RequantWide<'_>,
            out: &mut [O],
            ldc: usize,
        ) {
            if !q.saturates::<O>() {
                return tiles::<Self>(a, runs, lda, rows, b, q.columns, |r, acc| {
                    Self::requantize_wide(acc, q);
                    narrow_rows::<Self, O>(acc, &mut out[r * ldc..], ldc, q.columns);
                });
            }
            // SAFETY: the function checks its arguments.
            unsafe { multiply_panel(a, runs, lda, rows, b, &[0; NR], q, out, ldc) }
        }

        #[inline(always)]
        fn panel_scaled(
            a: &[i16],
            runs: &[usize],
            lda: usize,
            rows: usize,
            b: Panel<'_>,
            q: &Scaled<'_>,
            out: &mut [f32],
            ldc: usize,
        ) -> bool {
            // SAFETY: the function checks its arguments.
            unsafe { scaled(a, runs, lda, rows, b, q, out, ldc) };
            true
        }

        #[inline(always)]
        fn strip_scaled(strip: &Strip<'_>, q: &Scaled<'_>, out: &mut [f32], stride: usize) -> bool {
            let few = strip.taps.list.len() <= 2 * PAIRS;
            if few {
                // SAFETY: the function checks its arguments.
                unsafe { scaled_strip(strip, q, out, stride) };
            }
            few
        }

        #[inline(always)]
        fn strip<O: Quantized>(strip: &Strip<'_>, q: &Requant<'_>, out: &mut [O], stride: usize) {
            let Some(once) = q.once.filter(|_| q.saturates::<O>() && strip.taps.list.len() <= 2 * PAIRS) else {
                return strip.each::<Self>(|p, sums| {
                    Self::requantize(sums, q);
                    narrow_rows::<Self, O>(sums, &mut out[p * stride..], stride, q.columns);
                });
            };
            // SAFETY: see above; the function checks its arguments.
            unsafe { rounded_strip(strip, q.bias, &Twice { q, once }, out, stride) }
        }

        #[inline(always)]
        fn strip_wide<O: Quantized>(strip: &Strip<'_>, q: &RequantWide<'_>, out: &mut [O], stride: usize) {
            if !q.saturates::<O>() || strip.taps.list.len() > 2 * PAIRS {
                return strip.each::<Self>(|p, sums| {
                    Self::requantize_wide(sums, q);
                    narrow_rows::<Self, O>(sums, &mut out[p * stride..], stride, q.columns);
                });
            }
            // SAFETY: see above; the function checks its arguments.
            unsafe { rounded_strip(strip, &[0; NR], q, out, stride) }
        }

        #[inline(always)]
        fn sum(x: &mut [[i32; NR]], y: &[[i32; NR]], k: &Sum) {
            // SAFETY: see above.
            unsafe { sums_of_terms(x, y, k) }
        }

        #[inline(always)]
        fn sum_i8(a: &[i8], b: &[i8], out: &mut [i8], k: &Sum) -> usize {
            // SAFETY: see above.
            unsafe {
                sums_of_bytes::<true>(
                    bytemuck::cast_slice(a),
                    bytemuck::cast_slice(b),
                    bytemuck::cast_slice_mut(out),
                    k,
                )
            }
        }
        #[inline(always)]
        fn sum_u8(a: &[u8], b: &[u8], out: &mut [u8], k: &Sum) -> usize {
            // SAFETY: see above.
            unsafe { sums_of_bytes::<false>(a, b, out, k) }
        }

        #[inline(always)]
        fn narrow_i8(x: &[i32; NR], to: &mut [i8; NR]) {
            // SAFETY: the store fills the array's 16 bytes.
            unsafe {
                let words = words_of(x);
                let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packs_epi16(low, high));
            }
        }
        #[inline(always)]
        fn narrow_u8(x: &[i32; NR], to: &mut [u8; NR]) {
            // SAFETY: the store fills the array's 16 bytes.
            unsafe {
                let words = words_of(x);
                let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packus_epi16(low, high));
            }
        }
        #[inline(always)]
        fn narrow_i16(x: &[i32; NR], to: &mut [i16; NR]) {
            // SAFETY: the store fills the array's 32 bytes.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), words_of(x)) }
        }
    }

    /// [`Isa::requantize`], in one place for all that use it.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    fn round_twice(acc: &mut [[i32; NR]], q: &Requant<'_>) {
        for half in 0..if q.columns > 8 { 2 } else { 1 } {
            let at = 8 * half;
            // SAFETY: each load and store covers lanes `at` to `at + 8` of arrays of 16.
            unsafe {
                let value = _mm256_loadu_si256(q.value.as_ptr().add(at).cast());
                let shift = _mm256_loadu_si256(q.shift.as_ptr().add(at).cast());
                let bias = _mm256_loadu_si256(q.bias.as_ptr().add(at).cast());
                let zero = _mm256_setzero_si256();
                let one = _mm256_set1_epi32(1);
                let odd_value = _mm256_srli_epi64::<32>(value);
                let left = _mm256_max_epi32(shift, zero);
                let right = _mm256_max_epi32(_mm256_sub_epi32(zero, shift), zero);
                let mask = _mm256_sub_epi32(_mm256_sllv_epi32(one, right), one);
                let half_mask = _mm256_srli_epi32::<1>(mask);
                let round = _mm256_set1_epi64x(1 << 30);
                let (low, high) = (_mm256_set1_epi32(q.low), _mm256_set1_epi32(q.high));
                let offset = _mm256_set1_epi32(q.zero);
                for acc in &mut *acc {
                    let place = acc.as_mut_ptr().add(at).cast::<__m256i>();
                    let x = _mm256_add_epi32(_mm256_loadu_si256(place), bias);
                    let x = _mm256_sllv_epi32(x, left);
                    // The doubled product's high half, rounded half up: (x * value + 2^30) >> 31, which is what
                    // rounding half away from zero with a truncating division comes to.
                    let even = _mm256_add_epi64(_mm256_mul_epi32(x, value), round);
                    let odd = _mm256_mul_epi32(_mm256_srli_epi64::<32>(x), odd_value);
                    let odd = _mm256_add_epi64(odd, round);
                    let x = _mm256_blend_epi32::<0xAA>(_mm256_srli_epi64::<31>(even), _mm256_slli_epi64::<1>(odd));
                    // Division by a power of two, half away from zero.
                    let rest = _mm256_and_si256(x, mask);
                    let threshold = _mm256_sub_epi32(half_mask, _mm256_srai_epi32::<31>(x));
                    let up = _mm256_cmpgt_epi32(rest, threshold);
                    let x = _mm256_sub_epi32(_mm256_srav_epi32(x, right), up);
                    let x = _mm256_add_epi32(x, offset);
                    let x = _mm256_min_epi32(_mm256_max_epi32(x, low), high);
                    _mm256_storeu_si256(place, x);
                }
            }
        }
    }

    /// [`Isa::requantize_wide`], in one place for all that use it.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    fn round_once(acc: &mut [[i32; NR]], q: &RequantWide<'_>) {
        for half in 0..if q.columns > 8 { 2 } else { 1 } {
            let (low, high) = (_mm256_set1_epi32(q.low), _mm256_set1_epi32(q.high));
            for acc in &mut *acc {
                // SAFETY: load and store cover 8 lanes of an array of 16; AVX2 is there.
                unsafe {
                    let place = acc.as_mut_ptr().add(8 * half).cast::<__m256i>();
                    let x = q.constants(half).round(_mm256_loadu_si256(place));
                    _mm256_storeu_si256(place, _mm256_min_epi32(_mm256_max_epi32(x, low), high));
                }
            }
        }
    }

    /// How sums become values, before zero point and limits.
    trait Rounding {
        type Constants: Copy + RoundEight;
        /// The constants of columns `8 half` to `8 half + 8`.
        ///
        /// # Safety
        /// AVX2; `half` is 0 or 1.
        unsafe fn constants(&self, half: usize) -> Self::Constants;
        /// Zero point, limits and number of columns.
        fn limits(&self) -> (i32, i32, i32, usize);
    }
    trait RoundEight: Sized {
        /// The constants of columns 0 to 3 and 8 to 11, and of the others.
        ///
        /// # Safety
        /// AVX2.
        unsafe fn paired(x: [Self; 2]) -> [Self; 2];
        /// # Safety
        /// AVX2.
        unsafe fn round(&self, x: __m256i) -> __m256i;
    }

    /// The odd lanes of 32 bits, each where its even neighbour was. Not a shift: what compilers know of its zeros leads
    /// them to replace the signed product that follows by several instructions.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn odd(x: __m256i) -> __m256i {
        _mm256_shuffle_epi32::<0b11_11_01_01>(x)
    }

    /// [`Once`] and what goes with it.
    struct Twice<'a> {
        q: &'a Requant<'a>,
        once: &'a Once,
    }

    /// [`Once`] of 8 columns, the even and the odd ones.
    #[derive(Clone, Copy)]
    struct TwiceEight {
        value: [__m256i; 2],
        up: [__m256i; 2],
        down: [__m256i; 2],
        right: __m256i,
    }

    impl Rounding for Twice<'_> {
        type Constants = TwiceEight;
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn constants(&self, half: usize) -> TwiceEight {
            let at = 8 * half;
            // SAFETY: each load covers 8 lanes of 32 bits or 4 of 64, of arrays of 16 that have 8 from `at` on.
            unsafe {
                let load = |x: &[i64; NR]| {
                    let x = x.as_ptr().add(at);
                    [_mm256_load_si256(x.cast()), _mm256_load_si256(x.add(4).cast())]
                };
                let value = _mm256_loadu_si256(self.q.value.as_ptr().add(at).cast());
                TwiceEight {
                    value: [value, odd(value)],
                    up: load(&self.once.up),
                    down: load(&self.once.down),
                    right: _mm256_load_si256(self.once.right.as_ptr().add(at).cast()),
                }
            }
        }
        #[inline(always)]
        fn limits(&self) -> (i32, i32, i32, usize) {
            (self.q.zero, self.q.low, self.q.high, self.q.columns)
        }
    }

    /// The first halves of two vectors, and the second ones.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn halves(x: __m256i, y: __m256i) -> [__m256i; 2] {
        [_mm256_permute2x128_si256::<0x20>(x, y), _mm256_permute2x128_si256::<0x31>(x, y)]
    }

    impl RoundEight for TwiceEight {
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn paired([x, y]: [TwiceEight; 2]) -> [TwiceEight; 2] {
            let both = |a: [__m256i; 2], b: [__m256i; 2]| (halves(a[0], b[0]), halves(a[1], b[1]));
            let ((v0, v1), right) = (both(x.value, y.value), halves(x.right, y.right));
            let ((u0, u1), (d0, d1)) = (both(x.up, y.up), both(x.down, y.down));
            [0, 1].map(|i: usize| TwiceEight {
                value: [v0[i], v1[i]],
                up: [u0[i], u1[i]],
                down: [d0[i], d1[i]],
                right: right[i],
            })
        }
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn round(&self, x: __m256i) -> __m256i {
            // The constant goes by the product's sign.
            let add = |x: __m256i, i: usize| {
                let x = _mm256_mul_epi32(x, self.value[i]);
                let (up, down) = (_mm256_castsi256_pd(self.up[i]), _mm256_castsi256_pd(self.down[i]));
                let constant = _mm256_blendv_pd(up, down, _mm256_castsi256_pd(x));
                _mm256_add_epi64(x, _mm256_castpd_si256(constant))
            };
            let (even, odd) = (add(x, 0), add(odd(x), 1));
            let x = _mm256_blend_epi32::<0xAA>(_mm256_srli_epi64::<32>(even), odd);
            _mm256_srav_epi32(x, self.right)
        }
    }

    /// [`RequantWide`] of 8 columns, the even and the odd ones.
    #[derive(Clone, Copy)]
    struct WideEight {
        value: [__m256i; 2],
        offset: [__m256i; 2],
        shift: [__m256i; 2],
    }

    impl Rounding for RequantWide<'_> {
        type Constants = WideEight;
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn constants(&self, half: usize) -> WideEight {
            let at = 8 * half;
            // SAFETY: each load covers 8 lanes of 32 bits or 4 of 64, of arrays of 16 that have 8 from `at` on.
            unsafe {
                let load = |x: &[i64; NR]| {
                    let x = x.as_ptr().add(at);
                    [_mm256_loadu_si256(x.cast()), _mm256_loadu_si256(x.add(4).cast())]
                };
                let value = _mm256_loadu_si256(self.value.as_ptr().add(at).cast());
                WideEight { value: [value, odd(value)], offset: load(self.offset), shift: load(self.shift) }
            }
        }
        #[inline(always)]
        fn limits(&self) -> (i32, i32, i32, usize) {
            (0, self.low, self.high, self.columns)
        }
    }

    impl RoundEight for WideEight {
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn paired([x, y]: [WideEight; 2]) -> [WideEight; 2] {
            let both = |a: [__m256i; 2], b: [__m256i; 2]| (halves(a[0], b[0]), halves(a[1], b[1]));
            let ((v0, v1), (o0, o1)) = (both(x.value, y.value), both(x.offset, y.offset));
            let (s0, s1) = both(x.shift, y.shift);
            [0, 1].map(|i: usize| WideEight { value: [v0[i], v1[i]], offset: [o0[i], o1[i]], shift: [s0[i], s1[i]] })
        }
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn round(&self, x: __m256i) -> __m256i {
            // Only the low half of the quotient counts: a logical shift by at most 32 gives it.
            let quotient = |x: __m256i, i: usize| {
                let x = _mm256_add_epi64(_mm256_mul_epi32(x, self.value[i]), self.offset[i]);
                _mm256_srlv_epi64(x, self.shift[i])
            };
            let (even, odd) = (quotient(x, 0), quotient(odd(x), 1));
            _mm256_blend_epi32::<0xAA>(even, _mm256_slli_epi64::<32>(odd))
        }
    }

    /// What follows rounding: the zero point as words, limits as words or bytes.
    #[derive(Clone, Copy)]
    struct Limits {
        zero: __m256i,
        low: __m256i,
        high: __m256i,
        columns: usize,
        /// Where the four bytes of packed values belong.
        order: __m256i,
    }

    impl Limits {
        /// `paired`: sums lie as [`Isa::pair`] leaves them, which packing undoes.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn new<O: Quantized>((zero, low, high, columns): (i32, i32, i32, usize), paired: bool) -> Limits {
            let each = |x: i32| match size_of::<O>() {
                2 => _mm256_set1_epi16(x as i16),
                _ => _mm256_set1_epi8(x as i8),
            };
            // Packing works within halves: words once, bytes of two rows twice.
            let order = match (size_of::<O>(), paired) {
                (2, true) => _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                (2, false) | (_, true) => _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7),
                (_, false) => _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7),
            };
            Limits { zero: _mm256_set1_epi16(zero as i16), low: each(low), high: each(high), columns, order }
        }
    }

    /// Rounds sums of R rows of 8 C columns and stores what becomes of them.
    ///
    /// # Safety
    /// AVX2; at `out`, R rows of as many elements as there are columns, `ldc` apart, can be written. The limits are
    /// within the type's range.
    #[inline(always)]
    unsafe fn round_rows<const R: usize, const C: usize, E: RoundEight, O: Quantized>(
        mut sum: [[__m256i; 2]; R],
        constants: &[E; 2],
        limits: &Limits,
        out: *mut O,
        ldc: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            for r in 0..R {
                sum[r][0] = constants[0].round(sum[r][0]);
            }
            if C > 1 {
                for r in 0..R {
                    sum[r][1] = constants[1].round(sum[r][1]);
                }
            }
            let Limits { zero, low, high, columns, order } = *limits;
            if size_of::<O>() == 2 {
                for r in 0..R {
                    let x = _mm256_permutevar8x32_epi32(words_and(sum[r], zero), order);
                    let x = _mm256_min_epi16(_mm256_max_epi16(x, low), high);
                    let to = out.add(r * ldc);
                    if columns >= NR {
                        _mm256_storeu_si256(to.cast(), x);
                    } else {
                        let mut part = [0i16; NR];
                        _mm256_storeu_si256(part.as_mut_ptr().cast(), x);
                        std::ptr::copy_nonoverlapping(part.as_ptr().cast::<O>(), to, columns);
                    }
                }
                return;
            }
            if R > 1 {
                let out = [out, out.add(ldc)];
                round_pair::<O>([sum[0], sum[1 % R]], limits, out);
            }
            if R > 3 {
                let out = [out.add(2 * ldc), out.add(3 * ldc)];
                round_pair::<O>([sum[2 % R], sum[3 % R]], limits, out);
            }
            if R % 2 == 1 {
                let x = pack_rows::<O>([sum[R - 1], sum[R - 1]], limits);
                store_bytes(_mm256_castsi256_si128(x), out.add((R - 1) * ldc), columns);
            }
        }
    }

    /// Two rows of bytes, moved by the zero point and limited.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn pack_rows<O: Quantized>(rows: [[__m256i; 2]; 2], limits: &Limits) -> __m256i {
        let (x, y) = (words_and(rows[0], limits.zero), words_and(rows[1], limits.zero));
        let bytes = if O::LOW < 0 {
            _mm256_min_epi8(_mm256_max_epi8(_mm256_packs_epi16(x, y), limits.low), limits.high)
        } else {
            _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(x, y), limits.low), limits.high)
        };
        _mm256_permutevar8x32_epi32(bytes, limits.order)
    }

    /// # Safety
    /// AVX2; as many bytes as there are columns can be written at each place of `out`.
    #[inline(always)]
    unsafe fn round_pair<O: Quantized>(rows: [[__m256i; 2]; 2], limits: &Limits, out: [*mut O; 2]) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = pack_rows::<O>(rows, limits);
            store_bytes(_mm256_castsi256_si128(x), out[0], limits.columns);
            store_bytes(_mm256_extracti128_si256::<1>(x), out[1], limits.columns);
        }
    }

    /// 16 sums as words plus `zero`, saturated, in the order in which packing leaves them.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn words_and(x: [__m256i; 2], zero: __m256i) -> __m256i {
        _mm256_adds_epi16(_mm256_packs_epi32(x[0], x[1]), zero)
    }

    /// # Safety
    /// AVX2; `columns` bytes, 16 at most, can be written at `out`.
    #[inline(always)]
    unsafe fn store_bytes<O>(x: __m128i, out: *mut O, columns: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if columns >= NR {
                _mm_storeu_si128(out.cast(), x);
            } else if columns == 8 {
                _mm_storel_epi64(out.cast(), x);
            } else {
                let mut part = [0u8; NR];
                _mm_storeu_si128(part.as_mut_ptr().cast(), x);
                std::ptr::copy_nonoverlapping(part.as_ptr(), out.cast::<u8>(), columns);
            }
        }
    }

    /// Pairs of taps that a strip keeps at hand.
    const PAIRS: usize = 13;

    /// A pair of taps: how far each reads from the first element under the window, and the paired lines of the filter.
    #[derive(Clone, Copy)]
    struct Pair {
        offsets: [isize; 2],
        weights: [__m256i; 2],
    }

    /// The pairs of a strip's taps.
    ///
    /// # Safety
    /// AVX2; there are as many lines as the taps name.
    #[inline(always)]
    unsafe fn pairs_of<'r>(strip: &Strip<'_>, room: &'r mut [MaybeUninit<Pair>; PAIRS]) -> &'r [Pair] {
        let mut count = 0;
        // SAFETY: the caller's promise; as many pairs as are counted have been written.
        unsafe {
            for (pair, &[(o0, l0), (o1, l1)]) in room.iter_mut().zip(strip.taps.list.as_chunks::<2>().0) {
                let line = |l: usize| _mm256_loadu_si256(strip.lines.as_ptr().add(l).cast());
                pair.write(Pair { offsets: [o0, o1], weights: Avx2::pair(line(l0), line(l1)) });
                count += 1;
            }
            std::slice::from_raw_parts(room.as_ptr().cast::<Pair>(), count)
        }
    }

    /// [`Scaled`] in registers, with the scales of one piece.
    struct Scaling<'a> {
        of: &'a Scaled<'a>,
        scale: [__m256; 2],
        /// The scales times the piece's.
        now: [__m256; 2],
        bias: [__m256; 2],
        range: [__m256; 2],
        /// The first row of the next piece.
        until: usize,
    }

    impl<'a> Scaling<'a> {
        #[inline(always)]
        fn new(of: &'a Scaled<'a>) -> Scaling<'a> {
            // SAFETY: the function is part of functions for AVX2; the loads are the halves of arrays of 16.
            unsafe {
                let (scale, bias) = (of.scale.as_ptr(), of.bias.as_ptr());
                let scale = [_mm256_loadu_ps(scale), _mm256_loadu_ps(scale.add(8))];
                let bias = [_mm256_loadu_ps(bias), _mm256_loadu_ps(bias.add(8))];
                let range = [_mm256_set1_ps(of.range.0), _mm256_set1_ps(of.range.1)];
                Scaling { of, scale, now: scale, bias, range, until: 0 }
            }
        }

        /// Comes to a row, counted from the first.
        #[inline(always)]
        fn come_to(&mut self, row: usize) {
            let Some((scale, _)) = self.of.piece(row, &mut self.until) else { return };
            // SAFETY: see above.
            unsafe {
                let scale = _mm256_set1_ps(scale);
                self.now = [_mm256_mul_ps(self.scale[0], scale), _mm256_mul_ps(self.scale[1], scale)];
            }
        }

        #[inline(always)]
        fn half(&self, sums: [__m256i; 2], c: usize) -> __m256 {
            // SAFETY: see above.
            unsafe {
                let x = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[c]), self.now[c]), self.bias[c]);
                // The value is the second operand: NaN stays NaN.
                _mm256_min_ps(self.range[1], _mm256_max_ps(self.range[0], x))
            }
        }

        /// Stores what becomes of the first C halves of 16 sums of a row.
        ///
        /// # Safety
        /// AVX2; as many floats as there are columns, at most 8 C, can be written at `out`.
        #[inline(always)]
        unsafe fn store<const C: usize>(&self, sums: [__m256i; 2], out: *mut f32) {
            let columns = self.of.columns;
            // SAFETY: the caller's promise; what is not a whole row is copied from an array of 16.
            unsafe {
                if C > 1 && columns >= NR {
                    _mm256_storeu_ps(out, self.half(sums, 0));
                    _mm256_storeu_ps(out.add(8), self.half(sums, 1));
                } else {
                    let mut part = [0f32; NR];
                    for c in 0..C {
                        _mm256_storeu_ps(part.as_mut_ptr().add(8 * c), self.half(sums, c));
                    }
                    std::ptr::copy_nonoverlapping(part.as_ptr(), out, columns);
                }
            }
        }
    }

    /// [`Isa::panel_scaled`].
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn scaled(
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        q: &Scaled<'_>,
        out: &mut [f32],
        ldc: usize,
    ) {
        if rows == 0 {
            return;
        }
        let reach = reach(runs, b.len()) + b.len() / runs.len().max(1);
        assert!(a.len() >= reach + (rows - 1) * lda && out.len() >= (rows - 1) * ldc + q.columns && q.columns <= NR);
        // SAFETY: the assert covers every run of every row of `a`, and `out`; `b` is read line by line.
        unsafe {
            match b {
                Panel::Narrow(b) if q.columns <= 8 => scaled_panel::<1, _>(a, runs, lda, rows, b, q, out, ldc),
                Panel::Narrow(b) => scaled_panel::<2, _>(a, runs, lda, rows, b, q, out, ldc),
                Panel::Wide(b) => scaled_panel::<2, _>(a, runs, lda, rows, b, q, out, ldc),
            }
        }
    }

    /// # Safety
    /// AVX2; from each of `runs` on, `a` holds the run's share of pairs of `rows` rows, `lda` apart; `out` holds as
    /// many rows of outputs, `ldc` apart; there are 8 C columns at most.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn scaled_panel<const C: usize, L: Line>(
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &[L],
        q: &Scaled<'_>,
        out: &mut [f32],
        ldc: usize,
    ) {
        let (a, out) = (a.as_ptr(), out.as_mut_ptr());
        let mut scaling = Scaling::new(q);
        // SAFETY: the caller's promise bounds every pointer below.
        unsafe {
            let mut r = 0;
            while r + 4 <= rows {
                let sum = int_sums::<4, C, L>(a.add(r * lda), runs, lda, b, &[0; NR]);
                scale_rows::<4, C>(sum, r, &mut scaling, out.add(r * ldc), ldc);
                r += 4;
            }
            let (a, out) = (a.add(r * lda), out.add(r * ldc));
            match rows - r {
                3 => scale_rows::<3, C>(int_sums::<3, C, L>(a, runs, lda, b, &[0; NR]), r, &mut scaling, out, ldc),
                2 => scale_rows::<2, C>(int_sums::<2, C, L>(a, runs, lda, b, &[0; NR]), r, &mut scaling, out, ldc),
                1 => scale_rows::<1, C>(int_sums::<1, C, L>(a, runs, lda, b, &[0; NR]), r, &mut scaling, out, ldc),
                _ => {}
            }
        }
    }

    /// Rows from row `row` on.
    ///
    /// # Safety
    /// AVX2; at `out`, R rows of as many floats as there are columns, at most 8 C, `ldc` apart, can be written.
    #[inline(always)]
    unsafe fn scale_rows<const R: usize, const C: usize>(
        sum: [[__m256i; 2]; R],
        row: usize,
        scaling: &mut Scaling<'_>,
        out: *mut f32,
        ldc: usize,
    ) {
        for (r, sum) in sum.into_iter().enumerate() {
            scaling.come_to(row + r);
            // SAFETY: the caller's promise.
            unsafe { scaling.store::<C>(sum, out.add(r * ldc)) };
        }
    }

    /// [`Isa::strip_scaled`].
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    fn scaled_strip(strip: &Strip<'_>, q: &Scaled<'_>, out: &mut [f32], stride: usize) {
        let (pixels, step) = (strip.pixels, strip.step);
        if pixels == 0 || strip.rows == 0 {
            return;
        }
        strip.check();
        assert!(strip.taps.list.len() <= 2 * PAIRS);
        assert!(out.len() >= (pixels * strip.rows - 1) * stride + q.columns && q.columns <= NR);
        let mut scaling = Scaling::new(q);
        scaling.come_to(0);
        // SAFETY: the asserts cover the lowest and the highest element that any tap of any pixel reads, every line, and
        // what is written; the loads cover arrays of 16.
        unsafe {
            let mut room = [MaybeUninit::<Pair>::uninit(); PAIRS];
            let pairs = pairs_of(strip, &mut room);
            let start = [_mm256_setzero_si256(); 2];
            for r in 0..strip.rows {
                let x = strip.image.as_ptr().add(strip.first + r * strip.line);
                let to = out.as_mut_ptr().add(r * pixels * stride);
                let mut p = 0;
                while p + 4 <= pixels {
                    let sums = pair_sums::<4>(x.add(p * step), step, pairs, start);
                    for (i, sums) in sums.into_iter().enumerate() {
                        scaling.store::<2>(in_order(sums), to.add((p + i) * stride));
                    }
                    p += 4;
                }
                while p < pixels {
                    let [sums] = pair_sums::<1>(x.add(p * step), step, pairs, start);
                    scaling.store::<2>(in_order(sums), to.add(p * stride));
                    p += 1;
                }
            }
        }
    }

    /// Sums of pairs by column: pairing works within halves, so that the first sums hold lanes 0 to 3 and 8 to 11.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn in_order(x: [__m256i; 2]) -> [__m256i; 2] {
        [_mm256_permute2x128_si256::<0x20>(x[0], x[1]), _mm256_permute2x128_si256::<0x31>(x[0], x[1])]
    }

    /// [`Isa::strip`] and [`Isa::strip_wide`]; sums begin at `bias`.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    fn rounded_strip<G: Rounding, O: Quantized>(
        strip: &Strip<'_>,
        bias: &[i32; NR],
        rounding: &G,
        out: &mut [O],
        stride: usize,
    ) {
        let (limits, pixels, step) = (Limits::new::<O>(rounding.limits(), true), strip.pixels, strip.step);
        if pixels == 0 || strip.rows == 0 {
            return;
        }
        strip.check();
        assert!(strip.taps.list.len() <= 2 * PAIRS);
        assert!(out.len() >= (pixels * strip.rows - 1) * stride + limits.columns && limits.columns <= NR);
        // SAFETY: the asserts cover the lowest and the highest element that any tap of any pixel reads, every line, and
        // what is written; the loads cover arrays of 16.
        unsafe {
            let constants = G::Constants::paired([rounding.constants(0), rounding.constants(1)]);
            let start = Avx2::load_sums(bias);
            let mut room = [MaybeUninit::<Pair>::uninit(); PAIRS];
            let pairs = pairs_of(strip, &mut room);
            for r in 0..strip.rows {
                let x = strip.image.as_ptr().add(strip.first + r * strip.line);
                let to = out.as_mut_ptr().add(r * pixels * stride);
                let mut p = 0;
                while p + 4 <= pixels {
                    let sum = pair_sums::<4>(x.add(p * step), step, pairs, start);
                    round_rows::<4, 2, _, O>(sum, &constants, &limits, to.add(p * stride), stride);
                    p += 4;
                }
                let (x, to) = (x.add(p * step), to.add(p * stride));
                match pixels - p {
                    3 => {
                        let sum = pair_sums::<3>(x, step, pairs, start);
                        round_rows::<3, 2, _, O>(sum, &constants, &limits, to, stride);
                    }
                    2 => {
                        let sum = pair_sums::<2>(x, step, pairs, start);
                        round_rows::<2, 2, _, O>(sum, &constants, &limits, to, stride);
                    }
                    1 => {
                        let sum = pair_sums::<1>(x, step, pairs, start);
                        round_rows::<1, 2, _, O>(sum, &constants, &limits, to, stride);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Sums of P pixels, `step` apart, as [`Isa::pair`] leaves their lanes.
    ///
    /// # Safety
    /// AVX2; 16 elements can be read at each offset from `x` and from P - 1 places after it, `step` apart.
    #[inline(always)]
    unsafe fn pair_sums<const P: usize>(
        x: *const i16,
        step: usize,
        pairs: &[Pair],
        start: [__m256i; 2],
    ) -> [[__m256i; 2]; P] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sum = [start; P];
            for pair in pairs {
                let (x0, x1) = (x.wrapping_offset(pair.offsets[0]), x.wrapping_offset(pair.offsets[1]));
                for p in 0..P {
                    let a = _mm256_loadu_si256(x0.add(p * step).cast());
                    let b = _mm256_loadu_si256(x1.add(p * step).cast());
                    let x = Avx2::pair(a, b);
                    sum[p][0] = Avx2::dot(sum[p][0], x[0], pair.weights[0]);
                    sum[p][1] = Avx2::dot(sum[p][1], x[1], pair.weights[1]);
                }
            }
            sum
        }
    }

    /// [`Isa::panel`] and [`Isa::panel_wide`]; sums begin at `bias`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn multiply_panel<G: Rounding, O: Quantized>(
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        bias: &[i32; NR],
        rounding: &G,
        out: &mut [O],
        ldc: usize,
    ) {
        let columns = rounding.limits().3;
        if rows == 0 {
            return;
        }
        // Lines are pairs of steps.
        let reach = reach(runs, b.len()) + b.len() / runs.len().max(1);
        assert!(a.len() >= reach + (rows - 1) * lda && out.len() >= (rows - 1) * ldc + columns && columns <= NR);
        // SAFETY: the assert covers every run of every row of `a`, and `out`; `b` is read line by line.
        unsafe {
            match b {
                Panel::Narrow(b) if columns <= 8 => {
                    rounded_panel::<1, _, _, _>(a, runs, lda, rows, b, bias, rounding, out, ldc);
                }
                Panel::Narrow(b) => rounded_panel::<2, _, _, _>(a, runs, lda, rows, b, bias, rounding, out, ldc),
                Panel::Wide(b) => rounded_panel::<2, _, _, _>(a, runs, lda, rows, b, bias, rounding, out, ldc),
            }
        }
    }

    /// # Safety
    /// AVX2; from each of `runs` on, `a` holds the run's share of pairs of `rows` rows, `lda` apart; `out` holds as
    /// many rows of outputs, `ldc` apart.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn rounded_panel<const C: usize, L: Line, G: Rounding, O: Quantized>(
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &[L],
        bias: &[i32; NR],
        rounding: &G,
        out: &mut [O],
        ldc: usize,
    ) {
        let (a, out) = (a.as_ptr(), out.as_mut_ptr());
        let limits = Limits::new::<O>(rounding.limits(), false);
        // SAFETY: the caller's promise bounds every pointer below.
        unsafe {
            let constants = [rounding.constants(0), rounding.constants(1)];
            let mut r = 0;
            while r + 4 <= rows {
                let sum = int_sums::<4, C, L>(a.add(r * lda), runs, lda, b, bias);
                round_rows::<4, C, _, O>(sum, &constants, &limits, out.add(r * ldc), ldc);
                r += 4;
            }
            let (a, out) = (a.add(r * lda), out.add(r * ldc));
            match rows - r {
                3 => {
                    let sum = int_sums::<3, C, L>(a, runs, lda, b, bias);
                    round_rows::<3, C, _, O>(sum, &constants, &limits, out, ldc);
                }
                2 => {
                    let sum = int_sums::<2, C, L>(a, runs, lda, b, bias);
                    round_rows::<2, C, _, O>(sum, &constants, &limits, out, ldc);
                }
                1 => {
                    let sum = int_sums::<1, C, L>(a, runs, lda, b, bias);
                    round_rows::<1, C, _, O>(sum, &constants, &limits, out, ldc);
                }
                _ => {}
            }
        }
    }

    /// A multiplier that is the same in all lanes.
    #[derive(Clone, Copy)]
    struct Uniform {
        value: __m256i,
        left: __m128i,
        right: __m128i,
        mask: __m256i,
        half: __m256i,
        shifts: bool,
    }

    impl Uniform {
        #[target_feature(enable = "avx2,fma")]
        fn new(m: Multiplier) -> Uniform {
            let (left, right) = (m.shift.clamp(0, 32), (-m.shift).clamp(0, 31));
            let mask = ((1i64 << right) - 1) as i32;
            Uniform {
                value: _mm256_set1_epi32(m.value),
                left: _mm_cvtsi32_si128(left),
                right: _mm_cvtsi32_si128(right),
                mask: _mm256_set1_epi32(mask),
                half: _mm256_set1_epi32(mask >> 1),
                shifts: right > 0,
            }
        }
        /// `x` times the multiplier; see [`round_twice`].
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn apply(&self, x: __m256i) -> __m256i {
            let round = _mm256_set1_epi64x(1 << 30);
            let even = _mm256_add_epi64(_mm256_mul_epi32(x, self.value), round);
            let odd = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64::<32>(x), self.value), round);
            let x = _mm256_blend_epi32::<0xAA>(_mm256_srli_epi64::<31>(even), _mm256_slli_epi64::<1>(odd));
            if !self.shifts {
                return x;
            }
            let threshold = _mm256_sub_epi32(self.half, _mm256_srai_epi32::<31>(x));
            let up = _mm256_cmpgt_epi32(_mm256_and_si256(x, self.mask), threshold);
            _mm256_sub_epi32(_mm256_sra_epi32(x, self.right), up)
        }
    }

    /// [`Isa::sum`].
    #[target_feature(enable = "avx2,fma")]
    fn sums_of_terms(x: &mut [[i32; NR]], y: &[[i32; NR]], k: &Sum) {
        /// One half: a shift does for it.
        const HALF: Multiplier = Multiplier { value: 1 << 30, shift: 0 };
        let [a, b] = k.terms;
        let half = [a.scale == HALF && a.left > 0, b.scale == HALF && b.left > 0];
        let left = |t: &Term, half: bool| _mm_cvtsi32_si128(t.left as i32 - half as i32);
        let (left_a, left_b) = (left(&a, half[0]), left(&b, half[1]));
        let (zero_a, zero_b) = (_mm256_set1_epi32(a.zero), _mm256_set1_epi32(b.zero));
        let (a, b, scale) = (Uniform::new(a.scale), Uniform::new(b.scale), Uniform::new(k.scale));
        let (low, high) = (_mm256_set1_epi32(k.low), _mm256_set1_epi32(k.high));
        let zero = _mm256_set1_epi32(k.zero);
        let (x, y) = (x.as_flattened_mut().as_chunks_mut::<8>().0, y.as_flattened().as_chunks::<8>().0);
        for (x, y) in x.iter_mut().zip(y) {
            // SAFETY: the loads and the store cover arrays of 32 bytes.
            unsafe {
                let mut v = _mm256_sub_epi32(_mm256_loadu_si256(x.as_ptr().cast()), zero_a);
                v = _mm256_sll_epi32(v, left_a);
                if !half[0] {
                    v = a.apply(v);
                }
                let mut w = _mm256_sub_epi32(_mm256_loadu_si256(y.as_ptr().cast()), zero_b);
                w = _mm256_sll_epi32(w, left_b);
                if !half[1] {
                    w = b.apply(w);
                }
                let sum = if k.negative { _mm256_sub_epi32(v, w) } else { _mm256_add_epi32(v, w) };
                let sum = scale.apply(_mm256_sll_epi32(sum, scale.left));
                let sum = _mm256_min_epi32(_mm256_max_epi32(_mm256_add_epi32(sum, zero), low), high);
                _mm256_storeu_si256(x.as_mut_ptr().cast(), sum);
            }
        }
    }

    /// A [`Term`] of bytes, which are shifted left by 20 and multiplied by at most one half.
    ///
    /// The doubled high product of `x << 20` and `m`, (x * m + 2^10) >> 11, is x * (m >> 11) and, rounded, what the low
    /// 11 bits of `m` make of it: products of `x` (9 bits) and `x << 6` with words, in two instructions.
    #[derive(Clone, Copy)]
    struct ByteTerm {
        zero: __m256i,
        high: __m256i,
        low: __m256i,
        right: __m128i,
        half: __m256i,
        shifts: bool,
    }

    impl ByteTerm {
        /// `None` when the term is another one.
        #[target_feature(enable = "avx2,fma")]
        fn new(t: &Term) -> Option<ByteTerm> {
            let right = -t.scale.shift;
            if t.left != 20 || !(0..=31).contains(&right) || t.scale.value < 0 || !(-128..=255).contains(&t.zero) {
                return None;
            }
            let (high, low) = (t.scale.value >> 11, t.scale.value & 0x7FF);
            Some(ByteTerm {
                zero: _mm256_set1_epi16(t.zero as i16),
                high: _mm256_set1_epi32((high & 63) | (high >> 6) << 16),
                low: _mm256_set1_epi32(low),
                right: _mm_cvtsi32_si128(right),
                half: _mm256_set1_epi32(if right > 0 { 1 << (right - 1) } else { 0 }),
                shifts: right > 0,
            })
        }
        /// The terms of 16 numbers: of 0 to 3 and 8 to 11, and of the others.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn apply(&self, x: __m256i) -> [__m256i; 2] {
            let x = _mm256_sub_epi16(x, self.zero);
            let shifted = _mm256_slli_epi16::<6>(x);
            [_mm256_unpacklo_epi16(x, shifted), _mm256_unpackhi_epi16(x, shifted)].map(|pairs| {
                let rest = _mm256_add_epi32(_mm256_madd_epi16(pairs, self.low), _mm256_set1_epi32(1 << 10));
                let v = _mm256_add_epi32(_mm256_madd_epi16(pairs, self.high), _mm256_srai_epi32::<11>(rest));
                if !self.shifts {
                    return v;
                }
                // Half away from zero. At most 28 bits: nothing overflows.
                let v = _mm256_add_epi32(_mm256_add_epi32(v, self.half), _mm256_srai_epi32::<31>(v));
                _mm256_sra_epi32(v, self.right)
            })
        }
    }

    /// A quantized sum of bytes as a x + b y + c with 20 bits of fraction: what the reference's four or five roundings
    /// make of it, unless that lies near a half.
    #[derive(Clone, Copy)]
    struct QuickSum {
        /// 14 bits of fraction of both factors, and the next 14.
        high: __m256i,
        low: __m256i,
        constant: __m256i,
        /// How far from a half the numbers may be, and twice that.
        margin: __m256i,
        twice: __m256i,
    }

    impl QuickSum {
        /// `None` where the numbers would be too large or too many near a half. The terms have passed
        /// [`ByteTerm::new`].
        #[target_feature(enable = "avx2,fma")]
        fn new(k: &Sum) -> Option<QuickSum> {
            let real = |m: &Multiplier| m.value as f64 * (m.shift as f64 - 31.0).exp2();
            let unit = real(&k.scale);
            let factor = |t: &Term| real(&t.scale) * unit * 20f64.exp2();
            let (a, b) = (factor(&k.terms[0]), factor(&k.terms[1]));
            // Each term is off by 3/4 at most (rounded to a half, then after its shift), the first rounding of their
            // sum's product by 1/2 before the shift; factors and constant of this form by less than 2^-18 together.
            let margin = 1.5 * unit + (k.scale.shift as f64 - 1.0).exp2() + (-18f64).exp2();
            let margin = (margin * 20f64.exp2()).ceil() + 1.0;
            let limits = (-31..=0).contains(&k.scale.shift) && (-128..=255).contains(&k.zero);
            if !(limits && a.abs() < 1.99 && b.abs() < 1.99 && margin < 4096.0) {
                return None;
            }
            let fixed = |x: f64| (x * 28f64.exp2()).round() as i64;
            let (a, b) = (fixed(a), fixed(if k.negative { -b } else { b }));
            let word = |x: i64, y: i64| (x as i16 as u16 as i32) | (y as i32) << 16;
            let zeros = (a * k.terms[0].zero as i64 + b * k.terms[1].zero as i64) >> 8;
            let constant = ((k.zero as i64) << 20) + (1 << 19) - zeros;
            Some(QuickSum {
                high: _mm256_set1_epi32(word(a >> 14, b >> 14)),
                low: _mm256_set1_epi32(word(a & 0x3FFF, b & 0x3FFF)),
                constant: _mm256_set1_epi32(constant as i32),
                margin: _mm256_set1_epi32(margin as i32),
                twice: _mm256_set1_epi32(2 * margin as i32),
            })
        }
        /// The sum of each pair, and lanes of ones where it may be another one.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn apply(&self, pairs: __m256i) -> (__m256i, __m256i) {
            let high = _mm256_slli_epi32::<6>(_mm256_madd_epi16(pairs, self.high));
            let low = _mm256_srai_epi32::<8>(_mm256_madd_epi16(pairs, self.low));
            let v = _mm256_add_epi32(_mm256_add_epi32(high, self.constant), low);
            let rest = _mm256_and_si256(_mm256_add_epi32(v, self.margin), _mm256_set1_epi32((1 << 20) - 1));
            (_mm256_srai_epi32::<20>(v), _mm256_cmpgt_epi32(self.twice, rest))
        }
    }

    /// [`Isa::sum_i8`] and [`Isa::sum_u8`].
    #[target_feature(enable = "avx2,fma")]
    fn sums_of_bytes<const SIGNED: bool>(a: &[u8], b: &[u8], out: &mut [u8], k: &Sum) -> usize {
        let (Some(first), Some(second)) = (ByteTerm::new(&k.terms[0]), ByteTerm::new(&k.terms[1])) else { return 0 };
        if k.scale.shift > 0 {
            return 0;
        }
        let scale = Uniform::new(k.scale);
        let zero = _mm256_set1_epi16(k.zero as i16);
        let (low, high) = (_mm_set1_epi8(k.low as i8), _mm_set1_epi8(k.high as i8));
        let mut quick = QuickSum::new(k);
        // Near halves are rare unless the scales are in a simple proportion.
        let mut misses = 0;
        let (a, b, out) = (a.as_chunks::<16>().0, b.as_chunks::<16>().0, out.as_chunks_mut::<16>().0);
        let mut done = 0;
        for ((a, b), out) in a.iter().zip(b).zip(out) {
            done += 16;
            // SAFETY: the loads and the store cover arrays of 16 bytes.
            unsafe {
                let (x, y) = (_mm_loadu_si128(a.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().cast()));
                let wide = |x| if SIGNED { _mm256_cvtepi8_epi16(x) } else { _mm256_cvtepu8_epi16(x) };
                let (x, y) = (wide(x), wide(y));
                let mut finish = |words: __m256i| {
                    let (left, right) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                    let bytes = if SIGNED {
                        _mm_min_epi8(_mm_max_epi8(_mm_packs_epi16(left, right), low), high)
                    } else {
                        _mm_min_epu8(_mm_max_epu8(_mm_packus_epi16(left, right), low), high)
                    };
                    _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
                };
                if let Some(quick) = &quick {
                    let (v, near_v) = quick.apply(_mm256_unpacklo_epi16(x, y));
                    let (w, near_w) = quick.apply(_mm256_unpackhi_epi16(x, y));
                    let near = _mm256_or_si256(near_v, near_w);
                    if _mm256_testz_si256(near, near) != 0 {
                        finish(_mm256_packs_epi32(v, w));
                        continue;
                    }
                }
                misses += 1;
                if misses > 64 && misses > done / 64 {
                    quick = None;
                }
                let ([x0, x1], [y0, y1]) = (first.apply(x), second.apply(y));
                let join = |x, y| if k.negative { _mm256_sub_epi32(x, y) } else { _mm256_add_epi32(x, y) };
                let words = _mm256_packs_epi32(scale.apply(join(x0, y0)), scale.apply(join(x1, y1)));
                // Saturation leaves what the limits would.
                finish(_mm256_adds_epi16(words, zero));
            }
        }
        done
    }

    /// 16 values as words, saturated.
    ///
    /// # Safety
    /// AVX2.
    #[inline(always)]
    unsafe fn words_of(x: &[i32; NR]) -> __m256i {
        // SAFETY: the loads cover the array's 64 bytes.
        unsafe {
            let low = _mm256_loadu_si256(x.as_ptr().cast());
            let high = _mm256_loadu_si256(x.as_ptr().add(8).cast());
            _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high))
        }
    }

    type FloatTile = unsafe fn(&[f32], &[usize], usize, &[LineF32], &[f32; NR], (f32, f32), &mut [f32], usize, usize);
    type IntTile<L> = unsafe fn(&[i16], &[usize], usize, &[L], &mut [[i32; NR]; MAX_MR]);

    // Called through tables, so that there is one copy of each: inlined into the many loops that use them, tiles are
    // compiled a hundred times, and their sums do not stay in registers.
    static FLOAT_TILES: [[FloatTile; 2]; 5] = [
        [float_tile::<1, 1, 4>, float_tile::<1, 2, 4>],
        [float_tile::<2, 1, 4>, float_tile::<2, 2, 2>],
        [float_tile::<3, 1, 2>, float_tile::<3, 2, 1>],
        [float_tile::<4, 1, 2>, float_tile::<4, 2, 1>],
        [float_tile::<5, 1, 2>, float_tile::<5, 2, 1>],
    ];
    static NARROW_TILES: [[IntTile<LineI8>; 2]; 4] = [
        [int_tile::<1, 1, _>, int_tile::<1, 2, _>],
        [int_tile::<2, 1, _>, int_tile::<2, 2, _>],
        [int_tile::<3, 1, _>, int_tile::<3, 2, _>],
        [int_tile::<4, 1, _>, int_tile::<4, 2, _>],
    ];
    static WIDE_TILES: [IntTile<LineI16>; 4] =
        [int_tile::<1, 2, _>, int_tile::<2, 2, _>, int_tile::<3, 2, _>, int_tile::<4, 2, _>];

    /// R rows by 8 C columns, the depth in U interleaved sums (so that few rows still keep the multipliers busy).
    ///
    /// # Safety
    /// AVX2 and FMA; from each of `runs` on, `a` holds R rows of the run's share of `b`, `lda` apart; `out` holds R
    /// rows of `columns`, `ldc` apart.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn float_tile<const R: usize, const C: usize, const U: usize>(
        a: &[f32],
        runs: &[usize],
        lda: usize,
        b: &[LineF32],
        bias: &[f32; NR],
        range: (f32, f32),
        out: &mut [f32],
        ldc: usize,
        columns: usize,
    ) {
        // SAFETY: the caller's promise bounds every pointer below.
        unsafe {
            let mut acc = [[[_mm256_setzero_ps(); C]; R]; U];
            for r in 0..R {
                for c in 0..C {
                    acc[0][r][c] = _mm256_loadu_ps(bias.as_ptr().add(8 * c));
                }
            }
            let length = b.len() / runs.len().max(1);
            let mut bp = b.as_ptr().cast::<f32>();
            for run in runs {
                let ap = a.as_ptr().add(*run);
                let mut k = 0;
                while k + U <= length {
                    for u in 0..U {
                        let mut w = [_mm256_setzero_ps(); C];
                        for c in 0..C {
                            w[c] = _mm256_load_ps(bp.add(8 * c));
                        }
                        for r in 0..R {
                            let x = _mm256_broadcast_ss(&*ap.add(r * lda + k + u));
                            for c in 0..C {
                                acc[u][r][c] = _mm256_fmadd_ps(x, w[c], acc[u][r][c]);
                            }
                        }
                        bp = bp.add(NR);
                    }
                    k += U;
                }
                while U > 1 && k < length {
                    for r in 0..R {
                        let x = _mm256_broadcast_ss(&*ap.add(r * lda + k));
                        for c in 0..C {
                            acc[0][r][c] = _mm256_fmadd_ps(x, _mm256_load_ps(bp.add(8 * c)), acc[0][r][c]);
                        }
                    }
                    bp = bp.add(NR);
                    k += 1;
                }
            }
            let (low, high) = (_mm256_set1_ps(range.0), _mm256_set1_ps(range.1));
            for r in 0..R {
                for c in 0..C {
                    let mut v = acc[0][r][c];
                    for u in 1..U {
                        v = _mm256_add_ps(v, acc[u][r][c]);
                    }
                    acc[0][r][c] = _mm256_min_ps(high, _mm256_max_ps(low, v));
                }
            }
            let out = out.as_mut_ptr();
            if columns >= 8 * C {
                for r in 0..R {
                    for c in 0..C {
                        _mm256_storeu_ps(out.add(r * ldc + 8 * c), acc[0][r][c]);
                    }
                }
                return;
            }
            // The last vector is stored in part; more than 8 columns are asked for where there are two.
            let rest = _mm256_set1_epi32((columns % 8) as i32);
            let mask = _mm256_cmpgt_epi32(rest, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            for r in 0..R {
                for c in 0..C - 1 {
                    _mm256_storeu_ps(out.add(r * ldc + 8 * c), acc[0][r][c]);
                }
                _mm256_maskstore_ps(out.add(r * ldc + 8 * (C - 1)), mask, acc[0][r][C - 1]);
            }
        }
    }

    /// R rows times one column, U vectors of the depth at a time.
    ///
    /// # Safety
    /// AVX2 and FMA; from each of `runs` on, `a` holds R rows of the run's share of `w`, `lda` apart; `out` holds R
    /// elements, `ldc` apart.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn float_dots<const R: usize, const U: usize>(
        a: &[f32],
        runs: &[usize],
        lda: usize,
        w: &[f32],
        finish: Dot,
        out: &mut [f32],
        ldc: usize,
    ) {
        // SAFETY: the caller's promise bounds every pointer below; masked loads do not touch what is masked.
        unsafe {
            let mut acc = [[_mm256_setzero_ps(); U]; R];
            let length = w.len() / runs.len().max(1);
            let mut wp = w.as_ptr();
            let rest = _mm256_set1_epi32((length % 8) as i32);
            let mask = _mm256_cmpgt_epi32(rest, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            for run in runs {
                let ap = a.as_ptr().add(*run);
                let mut k = 0;
                while k + 8 * U <= length {
                    for u in 0..U {
                        let v = _mm256_loadu_ps(wp.add(k + 8 * u));
                        for r in 0..R {
                            let x = _mm256_loadu_ps(ap.add(r * lda + k + 8 * u));
                            acc[r][u] = _mm256_fmadd_ps(x, v, acc[r][u]);
                        }
                    }
                    k += 8 * U;
                }
                while k + 8 <= length {
                    let v = _mm256_loadu_ps(wp.add(k));
                    for r in 0..R {
                        acc[r][0] = _mm256_fmadd_ps(_mm256_loadu_ps(ap.add(r * lda + k)), v, acc[r][0]);
                    }
                    k += 8;
                }
                if k < length {
                    let v = _mm256_maskload_ps(wp.add(k), mask);
                    for r in 0..R {
                        let x = _mm256_maskload_ps(ap.add(r * lda + k), mask);
                        acc[r][0] = _mm256_fmadd_ps(x, v, acc[r][0]);
                    }
                }
                wp = wp.add(length);
            }
            for r in 0..R {
                let mut v = acc[r][0];
                for u in 1..U {
                    v = _mm256_add_ps(v, acc[r][u]);
                }
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                let v = _mm_add_ss(v, _mm_movehdup_ps(v));
                out[r * ldc] = clamp(_mm_cvtss_f32(v) + finish.bias, finish.range);
            }
        }
    }

    /// A line of packed integers, as words.
    trait Line: Copy {
        /// # Safety
        /// AVX2.
        unsafe fn words(&self, c: usize) -> __m256i;
    }
    impl Line for LineI8 {
        #[inline(always)]
        unsafe fn words(&self, c: usize) -> __m256i {
            // SAFETY: half `c` of a line's 32 bytes.
            unsafe { _mm256_cvtepi8_epi16(_mm_load_si128(self.0.as_ptr().cast::<__m128i>().add(c))) }
        }
    }
    impl Line for LineI16 {
        #[inline(always)]
        unsafe fn words(&self, c: usize) -> __m256i {
            // SAFETY: half `c` of a line's 64 bytes.
            unsafe { _mm256_load_si256(self.0.as_ptr().cast::<__m256i>().add(c)) }
        }
    }

    /// R rows by 8 C columns; see [`float_tile`].
    ///
    /// # Safety
    /// AVX2; from each of `runs` on, `a` holds R rows of the run's share of pairs, `lda` apart.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn int_tile<const R: usize, const C: usize, L: Line>(
        a: &[i16],
        runs: &[usize],
        lda: usize,
        b: &[L],
        acc: &mut [[i32; NR]; MAX_MR],
    ) {
        // SAFETY: the caller's promise; the stores cover lanes of arrays of 16.
        unsafe {
            let sum = int_sums::<R, C, L>(a.as_ptr(), runs, lda, b, &[0; NR]);
            for r in 0..R {
                for c in 0..C {
                    _mm256_storeu_si256(acc[r].as_mut_ptr().add(8 * c).cast(), sum[r][c]);
                }
            }
        }
    }

    /// Sums of R rows by 8 C columns, from `bias` on.
    ///
    /// # Safety
    /// AVX2; from each of `runs` on, `a` holds R rows of the run's share of pairs, `lda` apart.
    #[inline(always)]
    unsafe fn int_sums<const R: usize, const C: usize, L: Line>(
        a: *const i16,
        runs: &[usize],
        lda: usize,
        b: &[L],
        bias: &[i32; NR],
    ) -> [[__m256i; 2]; R] {
        // SAFETY: the caller's promise bounds every pointer below.
        unsafe {
            let mut sum = [[_mm256_setzero_si256(); 2]; R];
            for c in 0..C {
                let bias = _mm256_loadu_si256(bias.as_ptr().add(8 * c).cast());
                for r in 0..R {
                    sum[r][c] = bias;
                }
            }
            let length = b.len() / runs.len().max(1);
            let mut lines = b.as_ptr();
            for run in runs {
                let ap = a.add(*run);
                for k in 0..length {
                    let line = &*lines;
                    let mut w = [_mm256_setzero_si256(); C];
                    for c in 0..C {
                        w[c] = line.words(c);
                    }
                    for r in 0..R {
                        let x = _mm256_set1_epi32(ap.add(r * lda + 2 * k).cast::<i32>().read_unaligned());
                        for c in 0..C {
                            sum[r][c] = _mm256_add_epi32(sum[r][c], _mm256_madd_epi16(x, w[c]));
                        }
                    }
                    lines = lines.add(1);
                }
            }
            sum
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a task gives by each instruction set with code of its own that the machine has, the best one first.
    fn fast<T: Task + Copy>(task: T) -> Vec<T::Output> {
        let mut all = vec![dispatch(task)];
        #[cfg(target_arch = "x86_64")]
        if avx512::here() {
            // SAFETY: machines with AVX-512 have AVX2.
            all.push(unsafe { avx2::enter(task) });
        }
        all.push(enter(task));
        all
    }

    /// Numbers without a pattern, the same in every run.
    fn numbers(n: usize, seed: u32) -> Vec<u32> {
        let mut x = seed.wrapping_mul(2_654_435_761).max(1);
        (0..n)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 17;
                x ^= x << 5;
                x
            })
            .collect()
    }

    #[derive(Clone, Copy)]
    struct FloatTile<'a>(&'a [f32], usize, usize, &'a [LineF32], usize);
    impl Task for FloatTile<'_> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Isa>(self) -> Vec<f32> {
            let FloatTile(a, lda, rows, b, columns) = self;
            let mut out = vec![9.0; 24 * 20];
            let bias = std::array::from_fn(|j| j as f32);
            for r in (0..rows).step_by(S::MR) {
                let m = S::MR.min(rows - r);
                S::tile_f32(&a[r * lda..], &[0], lda, m, b, &bias, (-50.0, 50.0), &mut out[r * 20..], 20, columns);
            }
            out
        }
    }

    #[test]
    fn float_tiles_agree() {
        for depth in [0, 1, 3, 4, 17] {
            let x = |v: u32| (v % 1000) as f32 / 100.0 - 5.0;
            let a: Vec<f32> = numbers(24 * 20, 3).into_iter().map(x).collect();
            let w: Vec<f32> = numbers(depth * NR, 5).into_iter().map(x).collect();
            let b: Vec<LineF32> = w.as_chunks::<NR>().0.iter().map(|c| LineF32(*c)).collect();
            for rows in 1..=24 {
                for columns in [1, 7, 8, 9, 15, 16] {
                    let slow = FloatTile(&a, 20, rows, &b, columns).run::<Portable>();
                    for fast in fast(FloatTile(&a, 20, rows, &b, columns)) {
                        for (i, (f, s)) in fast.iter().zip(&slow).enumerate() {
                            assert!((f - s).abs() < 1e-3, "{depth} {rows} {columns} [{i}]: {f} {s}");
                        }
                    }
                }
            }
        }
    }

    #[derive(Clone, Copy)]
    struct IntTile<'a>(&'a [i16], usize, usize, Panel<'a>, usize);
    impl Task for IntTile<'_> {
        type Output = Vec<i32>;
        #[inline(always)]
        fn run<S: Isa>(self) -> Vec<i32> {
            let IntTile(a, lda, rows, b, columns) = self;
            let mut out = Vec::new();
            for r in (0..rows).step_by(S::MRI) {
                let m = S::MRI.min(rows - r);
                let mut acc = [[0; NR]; MAX_MR];
                S::tile_i16(&a[r * lda..], &[0], lda, m, b, columns, &mut acc);
                out.extend(acc.iter().take(m).flat_map(|a| a[..columns].to_vec()));
            }
            out
        }
    }

    #[test]
    fn integer_tiles_are_equal() {
        for pairs in [0, 1, 2, 9] {
            let a: Vec<i16> = numbers(6 * 2 * 9, 7).into_iter().map(|v| v as i16).collect();
            let w: Vec<i16> = numbers(pairs * 2 * NR, 11).into_iter().map(|v| v as i16).collect();
            let wide: Vec<LineI16> =
                w.as_chunks::<{ 2 * NR }>().0.iter().map(|c| LineI16(bytemuck::cast(*c))).collect();
            let narrow: Vec<LineI8> = wide.iter().map(|l| LineI8(l.0.map(|p| p.map(|w| w as i8)))).collect();
            for rows in 1..=6 {
                for columns in [1, 8, 9, 16] {
                    for panel in [Panel::Wide(&wide), Panel::Narrow(&narrow)] {
                        let task = IntTile(&a, 18, rows, panel, columns);
                        fast(task).iter().for_each(|f| assert_eq!(*f, task.run::<Portable>()));
                    }
                }
            }
        }
    }

    #[derive(Clone, Copy)]
    struct Requantize<'a>(&'a [i32; NR], Requant<'a>);
    impl Task for Requantize<'_> {
        type Output = [i32; NR];
        #[inline(always)]
        fn run<S: Isa>(self) -> [i32; NR] {
            let mut acc = [*self.0; 2];
            S::requantize(&mut acc, &self.1);
            assert_eq!(acc[0], acc[1]);
            acc[0]
        }
    }

    #[derive(Clone, Copy)]
    struct RequantizeWide<'a>(&'a [i32; NR], RequantWide<'a>);
    impl Task for RequantizeWide<'_> {
        type Output = [i32; NR];
        #[inline(always)]
        fn run<S: Isa>(self) -> [i32; NR] {
            let mut acc = [*self.0];
            S::requantize_wide(&mut acc, &self.1);
            acc[0]
        }
    }

    #[test]
    fn wide_requantization_is_equal() {
        for seed in 1..400u32 {
            let n = numbers(4 * NR, seed);
            let acc = std::array::from_fn(|j| n[j] as i32 >> (n[j] % 24));
            let offset = std::array::from_fn(|j| (n[NR + j] as i32 as i64) << (n[j] % 31));
            let value = std::array::from_fn(|j| (n[2 * NR + j] % 0x8000) as i32);
            let shift = std::array::from_fn(|j| (n[3 * NR + j] % 32) as i64 + 1);
            let (offset, value, shift, columns) = (&offset, &value, &shift, NR);
            let q = RequantWide { value, offset, shift, low: i32::MIN, high: i32::MAX, columns };
            let task = RequantizeWide(&acc, q);
            fast(task).iter().for_each(|f| assert_eq!(*f, task.run::<Portable>(), "seed {seed}"));
        }
    }

    #[test]
    fn requantization_is_equal() {
        let edge = [i32::MIN, i32::MAX, 0, 1, -1, 1 << 30, -(1 << 30), i32::MIN + 1];
        for seed in 1..400u32 {
            let n = numbers(4 * NR, seed);
            let acc = std::array::from_fn(|j| if n[j] % 5 == 0 { edge[j % 8] } else { n[j] as i32 >> (n[j] % 24) });
            let bias = std::array::from_fn(|j| n[NR + j] as i32 >> 12);
            let value = std::array::from_fn(|j| (1 << 30) | (n[2 * NR + j] >> 2) as i32);
            let shift = std::array::from_fn(|j| (n[3 * NR + j] % 40) as i32 - 31);
            let (bias, value, shift) = (&bias, &value, &shift);
            let q = Requant { bias, value, shift, zero: -3, low: i32::MIN, high: i32::MAX, columns: NR, once: None };
            let task = Requantize(&acc, q);
            fast(task).iter().for_each(|f| assert_eq!(*f, task.run::<Portable>(), "seed {seed}"));
        }
    }

    /// A product with every rounding that follows one, in panels and as pixels, narrowed to each type.
    #[derive(Clone, Copy)]
    struct Finished<'a>(&'a [i16], &'a [[i32; NR]; 4], Panel<'a>, Requant<'a>, RequantWide<'a>);
    impl Task for Finished<'_> {
        type Output = (Vec<i8>, Vec<u8>, Vec<i16>);
        #[inline(always)]
        fn run<S: Isa>(self) -> Self::Output {
            let Finished(a, sums, b, q, wide) = self;
            let (mut i8s, mut u8s, mut i16s) = (vec![1i8; 400], vec![1u8; 400], vec![1i16; 800]);
            let bytes = Requant { zero: 3, low: -100, high: 90, ..q };
            let unsigned = Requant { zero: 130, low: 3, high: 250, ..q };
            let words = Requant { zero: 0, low: -30000, high: 32767, ..q };
            for rows in [1, 2, 3, 4, 5, 6, 7, 11] {
                S::panel(a, &[0, 40], 4, rows, b, &bytes, &mut i8s[7 * rows..], 20);
                S::panel(a, &[0, 40], 4, rows, b, &unsigned, &mut u8s[7 * rows..], 20);
                S::panel(a, &[0, 40], 4, rows, b, &words, &mut i16s[7 * rows..], 20);
                S::panel_wide(a, &[0, 40], 4, rows, b, &wide, &mut i16s[400 + 7 * rows..], 20);
            }
            // Strips whose sums are as given: four times 2^14 times the upper half, 2^8 times a byte, a byte.
            let mut taps = Taps::default();
            let (next, last) = (NR as isize, 2 * NR as isize);
            let list = [(0, 0), (0, 0), (0, 0), (0, 0), (next, 1), (last, 2)];
            taps.set(3, |tap| list.iter().for_each(|&(offset, line)| tap(offset, line)));
            let lines = &[[1 << 14; NR], [1 << 8; NR], [1; NR], [0; NR]];
            for (i, sums) in sums.iter().enumerate() {
                let parts = [
                    sums.map(|s| (s >> 16) as i16),
                    sums.map(|s| (s >> 8 & 0xFF) as i16),
                    sums.map(|s| (s & 0xFF) as i16),
                ];
                let image = [parts; 3];
                let (image, step, taps) = (image.as_flattened().as_flattened(), 3 * NR, &taps);
                let strip = Strip { image, first: 0, step, pixels: 1 + i % 3, line: 0, rows: 2, taps, lines };
                S::strip(&strip, &bytes, &mut i8s[200 + 17 * i..], 20);
                S::strip(&strip, &unsigned, &mut u8s[200 + 17 * i..], 20);
                S::strip(&strip, &words, &mut i16s[200 + 17 * i..], 20);
                S::strip(&strip, &Requant { zero: 7, ..words }, &mut i16s[300 + 17 * i..], 20);
                S::strip_wide(&strip, &wide, &mut i16s[600 + 17 * i..], 20);
            }
            (i8s, u8s, i16s)
        }
    }

    #[test]
    fn finished_products_are_equal() {
        for seed in 1..200u32 {
            let n = numbers(8 * NR + 600, seed);
            let value: [i32; NR] = std::array::from_fn(|j| (1 << 30) | (n[j] >> 2) as i32);
            // Shifts that leave bytes, and any.
            let reach = if seed % 2 == 0 { 31 } else { 10 };
            let shift: [i32; NR] = std::array::from_fn(|j| -1 - (n[NR + j] % reach) as i32);
            let bias: [i32; NR] = std::array::from_fn(|j| n[2 * NR + j] as i32 >> (n[j] % 31));
            let reduced: [i32; NR] = std::array::from_fn(|j| value[j] >> 16);
            let offset: [i64; NR] = std::array::from_fn(|j| (n[3 * NR + j] as i64) << (n[j] % 20));
            let right: [i64; NR] = std::array::from_fn(|j| 15 + (n[3 * NR + j] % 18) as i64);
            let sums = std::array::from_fn(|p| std::array::from_fn(|j| n[(4 + p) * NR + j] as i32 >> (n[j] % 24)));
            let a: Vec<i16> = n[8 * NR..][..120].iter().map(|v| *v as i8 as i16).collect();
            let w: Vec<i8> = n[8 * NR + 120..][..6 * NR].iter().map(|v| *v as i8).collect();
            let narrow: Vec<LineI8> = w.as_chunks::<{ 2 * NR }>().0[..2]
                .iter()
                .chain(&w.as_chunks::<{ 2 * NR }>().0[1..])
                .map(|c| LineI8(bytemuck::cast(*c)))
                .collect();
            let wide: Vec<LineI16> = narrow.iter().map(|l| LineI16(l.0.map(|p| p.map(|w| w as i16)))).collect();
            let once = Once::new(&value, &shift);
            assert!(once.is_some());
            for columns in [1, 7, 8, 9, 15, 16] {
                let (low, high) = (-32768, 32767);
                let q = Requant {
                    bias: &bias,
                    value: &value,
                    shift: &shift,
                    zero: 0,
                    low,
                    high,
                    columns,
                    once: once.as_ref(),
                };
                let k = RequantWide { value: &reduced, offset: &offset, shift: &right, low, high: 30000, columns };
                for panel in [Panel::Narrow(&narrow), Panel::Wide(&wide)] {
                    let task = Finished(&a, &sums, panel, q, k);
                    let portable = task.run::<Portable>();
                    fast(task).iter().for_each(|f| assert_eq!(*f, portable, "{seed} {columns}"));
                }
            }
        }
    }

    /// Rows of bytes times a panel, as they are and finished.
    #[derive(Clone, Copy)]
    struct OfBytes<'a>(&'a [u8], &'a [usize], Quads<'a>, Requant<'a>);
    impl Task for OfBytes<'_> {
        type Output = (Vec<i32>, Vec<i8>, Vec<u8>);
        #[inline(always)]
        fn run<S: Isa>(self) -> Self::Output {
            let OfBytes(a, runs, b, q) = self;
            let (mut sums, mut signed, mut unsigned) = (Vec::new(), vec![1i8; 700], vec![1u8; 700]);
            for rows in 1..=MAX_QUADS {
                let mut acc = [[0; NR]; MAX_QUADS];
                S::tile_quads(a, runs, 5, rows, &b, &mut acc);
                sums.extend_from_slice(acc[..rows].as_flattened());
            }
            for rows in [1, 2, 3, 4, 7, 8, 13] {
                S::panel_quads(
                    a,
                    runs,
                    5,
                    rows,
                    &b,
                    &Requant { zero: 3, low: -100, ..q },
                    &mut signed[31 * rows..],
                    20,
                );
                let q = Requant { zero: 130, low: 3, high: 250, ..q };
                S::panel_quads(a, runs, 5, rows, &b, &q, &mut unsigned[31 * rows..], 20);
            }
            (sums, signed, unsigned)
        }
    }

    #[test]
    fn products_of_bytes_are_equal() {
        for seed in 1..60u32 {
            let n = numbers(5 * NR + 4000, seed);
            let run = 1 + (n[0] % 90) as usize;
            let (lines, start, sums) = (run.div_ceil(4), n[NR..].first_chunk().unwrap(), [0; NR]);
            let start = &start.map(|v| v as i32 >> 8);
            let runs: &[usize] = if seed % 2 == 0 { &[0] } else { &[7, 120, 3] };
            let a: Vec<u8> = n[5 * NR..][..400].iter().map(|v| *v as u8).collect();
            let mut w = n[5 * NR + 400..].iter().map(|v| *v as i8);
            let mut panel = Vec::new();
            for _ in runs {
                for k in 0..lines {
                    let count = |k: usize| 4 * k < run;
                    let line = std::array::from_fn(|_| {
                        std::array::from_fn(|i| w.next().filter(|_| count(k) && 4 * k + i < run).unwrap_or(0))
                    });
                    panel.push(LineQuad(line));
                }
            }
            let value: [i32; NR] = std::array::from_fn(|j| (1 << 30) | (n[2 * NR + j] >> 2) as i32);
            let shift: [i32; NR] = std::array::from_fn(|j| -6 - (n[3 * NR + j] % 8) as i32);
            let bias: [i32; NR] = std::array::from_fn(|j| n[4 * NR + j] as i32 >> 18);
            let once = Once::new(&value, &shift);
            for (zero, columns) in [(0, 16), (-11, 16), (127, 9), (0, 1)] {
                let b = Quads { lines: &panel, start, sums: &sums, run, zero };
                let (bias, value, shift, once) = (&bias, &value, &shift, once.as_ref().filter(|_| seed % 3 > 0));
                let q = Requant { bias, value, shift, zero: 0, low: -128, high: 127, columns, once };
                let task = OfBytes(&a, runs, b, q);
                let portable = task.run::<Portable>();
                fast(task).iter().for_each(|f| assert_eq!(*f, portable, "{seed} {zero} {columns}"));
                // By the definition: (a - 0)(b - zero), from the start on.
                let sum: i32 = runs.iter().enumerate().fold(start[0], |s, (i, at)| {
                    (0..run).fold(s, |s, k| {
                        let w = panel[i * lines + k / 4].0[0][k % 4] as i32;
                        s.wrapping_add(a[at + k] as i32 * (w - zero))
                    })
                });
                assert_eq!(portable.0[0], sum);
            }
        }
    }

    #[derive(Clone, Copy)]
    struct InBlocks<'a>(&'a [u8], Blocks<'a>);
    impl Task for InBlocks<'_> {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<S: Isa>(self) -> Vec<u32> {
            let rows = [(0.25, 131), (0.7, 0), (1.3, 255), (-0.1, 3)];
            let mut all = Vec::new();
            for n in 1..=MAX_MR {
                let mut out = [[9.0; NR]; MAX_MR];
                S::blocks(self.0, 7, &rows[..n], &self.1, &mut out);
                all.extend(out[..n].as_flattened().iter().map(|x: &f32| x.to_bits()));
            }
            all
        }
    }

    /// To the last bit: blocks are added up in their order.
    #[test]
    fn products_in_blocks_are_equal() {
        for (seed, (length, count)) in [(8, 5), (1, 3), (3, 7), (0, 0), (2, 1)].into_iter().enumerate() {
            let n = numbers(400 + 40 * 64, seed as u32 + 1);
            let a: Vec<u8> = n[..400].iter().map(|v| *v as u8).collect();
            let mut w = n[400..].iter();
            let mut next = || w.next().map_or(0, |v| *v as i8 >> 4);
            let mut lines = Vec::new();
            lines.resize_with(length * count, || LineQuad(std::array::from_fn(|_| std::array::from_fn(|_| next()))));
            let sum = |l: &[LineQuad], j: usize| l.iter().flat_map(|l| l.0[j]).map(i32::from).sum();
            let sums: Vec<[i32; NR]> =
                lines.chunks(length.max(1)).map(|l| std::array::from_fn(|j| sum(l, j))).collect();
            let scales: Vec<[f32; NR]> =
                (0..count).map(|b| std::array::from_fn(|j| 0.01 * (b * NR + j) as f32 - 0.3)).collect();
            let task = InBlocks(&a, Blocks { lines: &lines, sums: &sums, scales: &scales });
            let portable = task.run::<Portable>();
            fast(task).iter().for_each(|f| assert_eq!(*f, portable, "{length} {count}"));
        }
    }

    /// Both roundings as one, around every half that numbers of 20 bits reach, for every shift.
    #[test]
    fn two_roundings_are_one() {
        for seed in 1..10u32 {
            let n = numbers(NR, seed);
            let value: [i32; NR] = std::array::from_fn(|j| match n[j] % 4 {
                0 => 1 << 30,
                1 => i32::MAX,
                2 => 0,
                _ => (1 << 30) | (n[j] >> 2) as i32,
            });
            for r in 1..=31 {
                let shift = [-r; NR];
                let once = Once::new(&value, &shift).map(Box::new);
                let (low, high) = (-32768, 32767);
                let (bias, columns, once) = (&[0; NR], NR, once.as_deref());
                let q = Requant { bias, value: &value, shift: &shift, zero: 0, low, high, columns, once };
                for i in -12..12i64 {
                    // Sums whose product is nearest to a multiple of one half, and its neighbours.
                    let sums = std::array::from_fn(|p| {
                        std::array::from_fn(|j| {
                            let half = (i as i128) << (30 + r);
                            let x = half / (value[j].max(1) as i128) + p as i128 - 1;
                            x.clamp(i32::MIN as i128, i32::MAX as i128) as i32
                        })
                    });
                    let k = RequantWide { value: &value, offset: &[0; NR], shift: &[32; NR], low, high, columns };
                    let none = Panel::Narrow(&[]);
                    let task = Finished(&[0; 120], &sums, none, q, k);
                    let portable = task.run::<Portable>();
                    fast(task).iter().for_each(|f| assert_eq!(*f, portable, "{seed} {r} {i}"));
                }
            }
        }
        let (value, mut shift) = ([1 << 30; NR], [-1; NR]);
        shift[5] = 0;
        assert!(Once::new(&value, &shift).is_none());
    }

    #[derive(Clone, Copy)]
    struct Strips<'a>(&'a [i16], &'a [[i16; NR]], &'a Taps, Requant<'a>);
    impl Task for Strips<'_> {
        type Output = Vec<i8>;
        #[inline(always)]
        fn run<S: Isa>(self) -> Vec<i8> {
            let Strips(image, lines, taps, q) = self;
            let mut out = vec![0; 1100];
            for pixels in 1..=13 {
                let strip = Strip { image, first: 40, step: 24, pixels, line: 30, rows: 3, taps, lines };
                S::strip(&strip, &q, &mut out[20 * pixels..], 20);
            }
            out
        }
    }

    #[test]
    fn depthwise_strips_are_equal() {
        for taps in [1, 2, 9, 25, 26, 27, 40] {
            let n = numbers(1000 + 41 * NR, taps as u32);
            let image: Vec<i16> = n[..1000].iter().map(|v| *v as i16 >> 7).collect();
            let mut lines: Vec<[i16; NR]> =
                n[1000..].as_chunks::<NR>().0.iter().map(|c| c.map(|v| v as i8 as i16)).collect();
            lines[40] = [0; NR];
            let mut list = Taps::default();
            list.set(40, |tap| (0..taps).for_each(|t| tap((t * 29 % 400) as isize - 40, t)));
            let value: [i32; NR] = std::array::from_fn(|j| (1 << 30) | (n[j] >> 2) as i32);
            let shift: [i32; NR] = std::array::from_fn(|j| -6 - (n[NR + j] % 6) as i32);
            let bias: [i32; NR] = std::array::from_fn(|j| n[2 * NR + j] as i32 >> 20);
            let once = Once::new(&value, &shift);
            for columns in [5, 8, 16] {
                let (bias, value, shift, once) = (&bias, &value, &shift, once.as_ref());
                let q = Requant { bias, value, shift, zero: -5, low: -120, high: 127, columns, once };
                let task = Strips(&image, &lines, &list, q);
                fast(task).iter().for_each(|f| assert_eq!(*f, task.run::<Portable>(), "{taps} {columns}"));
            }
        }
    }

    #[derive(Clone, Copy)]
    struct FloatStrips<'a>(&'a [f32], &'a [[f32; NR]], &'a Taps, usize);
    impl Task for FloatStrips<'_> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Isa>(self) -> Vec<f32> {
            let FloatStrips(image, lines, taps, n) = self;
            let mut out = vec![7.0; 1200];
            let bias = std::array::from_fn(|j| j as f32);
            for pixels in 1..=13 {
                let strip = Strip { image, first: 40, step: 24, pixels, line: 30, rows: 3, taps, lines };
                S::strip_f32(&strip, &bias, (-900.0, 1000.0), &mut out[20 * pixels..], 20, n);
            }
            out
        }
    }

    /// Numbers that are sums of few bits: the same however they are added up.
    #[test]
    fn float_strips_are_equal() {
        for taps in [1, 2, 9, 25] {
            let n = numbers(1000 + 26 * NR, taps as u32);
            let image: Vec<f32> = n[..1000].iter().map(|v| (*v as i8 >> 2) as f32).collect();
            let lines: Vec<[f32; NR]> =
                n[1000..].as_chunks::<NR>().0.iter().map(|c| c.map(|v| (v as i8 >> 2) as f32)).collect();
            let mut list = Taps::default();
            list.set(25, |tap| (0..taps).for_each(|t| tap((t * 29 % 400) as isize - 40, t)));
            for columns in [1, 5, 8, 9, 16] {
                let task = FloatStrips(&image, &lines, &list, columns);
                let portable = task.run::<Portable>();
                fast(task).iter().for_each(|f| assert_eq!(*f, portable, "{taps} {columns}"));
                let sum = |at: usize, j: usize| {
                    let products = list.iter().map(|(o, l)| image[(at as isize + o) as usize + j] * lines[l][j]);
                    (j as f32 + products.sum::<f32>()).clamp(-900.0, 1000.0)
                };
                // The 13 pixels of the last call, whose rows lie after one another.
                for (p, j) in (0..39).flat_map(|p| (0..columns).map(move |j| (p, j))) {
                    let at = 40 + p / 13 * 30 + p % 13 * 24;
                    assert_eq!(portable[20 * 13 + 20 * p + j], sum(at, j), "{taps} {columns} {p} {j}");
                }
            }
        }
    }

    #[derive(Clone, Copy)]
    struct Sums<'a>(&'a [[i32; NR]; 2], Sum);
    impl Task for Sums<'_> {
        type Output = [i32; NR];
        #[inline(always)]
        fn run<S: Isa>(self) -> [i32; NR] {
            let mut x = [self.0[0]];
            S::sum(&mut x, &[self.0[1]], &self.1);
            x[0]
        }
    }

    #[test]
    fn quantized_sums_are_equal() {
        for seed in 1..400u32 {
            let n = numbers(2 * NR + 4, seed);
            let values = std::array::from_fn(|i| std::array::from_fn(|j| n[i * NR + j] as i8 as i32));
            let scale = |n: u32, m: i32| Multiplier { value: (1 << 30) | (n >> 2) as i32, shift: (n % 12) as i32 - m };
            let half = Multiplier { value: 1 << 30, shift: 0 };
            let small = [if seed % 3 == 0 { half } else { scale(n[32], 11) }, scale(n[33], 11)];
            let left = if seed % 2 == 0 { 15 } else { 20 };
            let terms = std::array::from_fn(|i| Term { zero: n[34] as i8 as i32, left, scale: small[i] });
            let (scale, negative) = (scale(n[35], 14), seed % 5 == 0);
            let k = Sum { terms, negative, scale, zero: -3, low: i32::MIN, high: i32::MAX };
            let task = Sums(&values, k);
            fast(task).iter().for_each(|f| assert_eq!(*f, task.run::<Portable>(), "seed {seed}"));
        }
    }

    #[derive(Clone, Copy)]
    struct Bytes<'a>(&'a [u8], &'a [u8], Sum);
    impl Task for Bytes<'_> {
        type Output = [Option<Vec<u8>>; 2];
        #[inline(always)]
        fn run<S: Isa>(self) -> Self::Output {
            let Bytes(a, b, k) = self;
            let (mut signed, mut unsigned) = (vec![0i8; a.len()], vec![0u8; a.len()]);
            let n = S::sum_i8(bytemuck::cast_slice(a), bytemuck::cast_slice(b), &mut signed, &k);
            let k = Sum { low: 3, high: 250, ..k };
            let m = S::sum_u8(a, b, &mut unsigned, &k);
            let signed = signed.into_iter().map(|v| v as u8).collect();
            [(n == a.len()).then_some(signed), (m == a.len()).then_some(unsigned)]
        }
    }

    /// Every pair of bytes, with multipliers of every kind.
    #[test]
    fn sums_of_bytes_are_equal() {
        let pairs: Vec<(u8, u8)> = (0..=255u8).flat_map(|a| (0..=255u8).map(move |b| (a, b))).collect();
        let (a, b): (Vec<u8>, Vec<u8>) = pairs.iter().copied().unzip();
        for seed in 1..36u32 {
            let n = numbers(6, seed);
            let multiplier = |n: u32, shift: i32| Multiplier { value: (1 << 30) | (n >> 2) as i32, shift };
            let half = Multiplier { value: 1 << 30, shift: 0 };
            let one = if seed % 3 == 0 { half } else { multiplier(n[0], -((n[1] % 9) as i32)) };
            let two = if seed % 7 == 0 { one } else { multiplier(n[2], -((n[1] % 31) as i32)) };
            let terms =
                [Term { zero: n[3] as i8 as i32, left: 20, scale: one }, Term { zero: 17, left: 20, scale: two }];
            // What networks have, powers of two (with sums halfway between numbers), and any.
            let scale = match seed % 4 {
                0 => Multiplier { value: 1 << 30, shift: -18 },
                1 | 2 => multiplier(n[4], -17 - (n[5] % 4) as i32),
                _ => multiplier(n[4], -((n[5] % 24) as i32)),
            };
            let k = Sum { terms, negative: seed % 5 == 0, scale, zero: -9, low: -100, high: 90 };
            let want = |k: &Sum, x: i32, y: i32| {
                let term = |v: i32, t: &Term| t.scale.apply_small(v.wrapping_sub(t.zero) << t.left);
                let (x, y) = (term(x, &k.terms[0]), term(y, &k.terms[1]));
                let sum = if k.negative { x.wrapping_sub(y) } else { x.wrapping_add(y) };
                k.scale.apply(sum).wrapping_add(k.zero).clamp(k.low, k.high)
            };
            let [signed, unsigned] = dispatch(Bytes(&a, &b, k));
            for (i, &(x, y)) in pairs.iter().enumerate() {
                if let Some(s) = &signed {
                    assert_eq!(s[i] as i8 as i32, want(&k, x as i8 as i32, y as i8 as i32), "{seed}: {x} {y}");
                }
                if let Some(u) = &unsigned {
                    let k = Sum { low: 3, high: 250, ..k };
                    assert_eq!(u[i] as i32, want(&k, x as i32, y as i32), "{seed}: {x} {y}");
                }
            }
            #[cfg(target_arch = "x86_64")]
            assert!(signed.is_some() == is_x86_feature_detected!("avx2"), "{seed}");
            #[cfg(target_arch = "aarch64")]
            assert!(signed.is_some());
        }
    }

    /// Rows of two runs that lie apart, in tiles and as dot products, and the same rows laid out in one piece.
    #[derive(Clone, Copy)]
    struct Runs<'a>(&'a [f32], &'a [usize], usize, &'a [LineF32]);
    impl Task for Runs<'_> {
        type Output = (Vec<f32>, Vec<f32>);
        #[inline(always)]
        fn run<S: Isa>(self) -> Self::Output {
            let Runs(a, runs, lda, b) = self;
            let (mut tile, mut dots) = (vec![0.0; 3 * NR], vec![0.0; 9]);
            S::tile_f32(a, runs, lda, 3, b, &[0.5; NR], (-50.0, 50.0), &mut tile, NR, NR);
            let w: Vec<f32> = b.iter().map(|l| l.0[3]).collect();
            S::dots_f32(a, runs, lda, 9, &w, Dot { bias: 0.5, range: (-50.0, 50.0) }, &mut dots, 1);
            (tile, dots)
        }
    }

    #[test]
    fn runs_are_rows() {
        let x = |v: u32| (v % 1000) as f32 / 100.0 - 5.0;
        for length in [1, 3, 8, 21, 40] {
            let a: Vec<f32> = numbers(200, 31).into_iter().map(x).collect();
            let w: Vec<f32> = numbers(2 * length * NR, 37).into_iter().map(x).collect();
            let b: Vec<LineF32> = w.as_chunks::<NR>().0.iter().map(|c| LineF32(*c)).collect();
            let (runs, lda) = ([4, 100], 2);
            let row = |r: usize| runs.iter().flat_map(move |f| f + r * lda..f + r * lda + length);
            let sum = |r: usize, j: usize| {
                let products: f64 = row(r).zip(&b).map(|(i, l)| a[i] as f64 * l.0[j] as f64).sum();
                (products + 0.5).clamp(-50.0, 50.0)
            };
            for (tile, dots) in fast(Runs(&a, &runs, lda, &b)) {
                for (i, v) in tile.iter().enumerate() {
                    assert!((*v as f64 - sum(i / NR, i % NR)).abs() < 1e-3, "{length} {i}: {v}");
                }
                for (r, v) in dots.iter().enumerate() {
                    assert!((*v as f64 - sum(r, 3)).abs() < 1e-3, "{length} {r}: {v}");
                }
            }
        }
    }

    struct LookUp<'a>(&'a [u8; 256], &'a [u8], bool);
    impl Task for LookUp<'_> {
        type Output = Vec<u8>;
        #[inline(always)]
        fn run<S: Isa>(self) -> Vec<u8> {
            let LookUp(table, from, in_place) = self;
            let mut out = if in_place { from.to_vec() } else { vec![7; from.len()] };
            S::look_up(table, (!in_place).then_some(from), &mut out);
            out
        }
    }

    /// Every byte, at every place of a vector.
    #[test]
    fn tables_are_equal() {
        let table: [u8; 256] = std::array::from_fn(|i| (i * 167 + i / 3) as u8);
        let all: Vec<u8> = (0..=255u8).cycle().take(700).collect();
        for length in [0, 1, 15, 16, 17, 31, 64, 600] {
            for from in 0..17 {
                let x = &all[from..from + length];
                let want: Vec<u8> = x.iter().map(|v| table[*v as usize]).collect();
                for in_place in [false, true] {
                    assert_eq!(dispatch(LookUp(&table, x, in_place)), want);
                    assert_eq!(LookUp(&table, x, in_place).run::<Portable>(), want);
                }
            }
        }
    }

    #[derive(Clone, Copy)]
    struct Narrow<'a>(&'a [i32; NR]);
    impl Task for Narrow<'_> {
        type Output = ([i8; NR], [u8; NR], [i16; NR]);
        #[inline(always)]
        fn run<S: Isa>(self) -> Self::Output {
            let mut out = Self::Output::default();
            S::narrow_i8(&self.0.map(|x| x / 512), &mut out.0);
            S::narrow_u8(&self.0.map(|x| (x + 32768) / 256), &mut out.1);
            S::narrow_i16(self.0, &mut out.2);
            out
        }
    }

    #[test]
    fn narrowing_is_equal() {
        let x = std::array::from_fn(|j| [-32768, 32767, 0, -1, 777, -12345][j % 6]);
        assert_eq!(dispatch(Narrow(&x)), Narrow(&x).run::<Portable>());
    }

    #[derive(Clone, Copy)]
    struct Dots<'a>(&'a [[i16; NR]; 3]);
    impl Task for Dots<'_> {
        type Output = [i32; NR];
        #[inline(always)]
        fn run<S: Isa>(self) -> [i32; NR] {
            let [x, y, z] = self.0;
            let a = S::pair(S::load_words(x), S::load_words(y));
            let b = S::pair(S::load_words(z), S::load_words(x));
            let start = S::load_sums(&std::array::from_fn(|j| j as i32));
            S::sums([S::dot(start[0], a[0], b[0]), S::dot(start[1], a[1], b[1])])
        }
    }

    #[test]
    fn paired_products_are_equal() {
        let n = numbers(3 * NR, 23);
        let words: [[i16; NR]; 3] = std::array::from_fn(|i| std::array::from_fn(|j| n[i * NR + j] as i16 >> i));
        let [x, y, z] = words.map(|w| w.map(|v| v as i32));
        let want: [i32; NR] = std::array::from_fn(|j| j as i32 + x[j] * z[j] + y[j] * x[j]);
        assert_eq!(dispatch(Dots(&words)), want);
        assert_eq!(Dots(&words).run::<Portable>(), want);
    }
}
