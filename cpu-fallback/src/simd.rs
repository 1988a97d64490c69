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
mod avx2;
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

#[cfg(target_arch = "x86_64")]
use crate::requant::ALMOST_HALF;
use crate::requant::{Quantized, Steps, Whole};
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

/// [`Isa::panel_quads`] by tiles.
#[inline(always)]
fn quads_in_tiles<S: Isa, O: Quantized>(
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
        S::tile_quads(&a[r * lda..], runs, lda, m, b, &mut acc);
        S::store_rounded(&mut acc[..m], q, &mut out[r * ldc..], ldc);
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
        quads_in_tiles::<Self, O>(a, runs, lda, rows, b, q, out, ldc);
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

    /// Rows of accumulators, `ldc` apart in `out`, requantized and narrowed.
    #[inline(always)]
    fn store_rounded<O: Quantized>(acc: &mut [[i32; NR]], q: &Requant<'_>, out: &mut [O], ldc: usize) {
        Self::requantize(acc, q);
        narrow_rows::<Self, O>(acc, out, ldc, q.columns);
    }
    #[inline(always)]
    fn store_wide<O: Quantized>(acc: &mut [[i32; NR]], q: &RequantWide<'_>, out: &mut [O], ldc: usize) {
        Self::requantize_wide(acc, q);
        narrow_rows::<Self, O>(acc, out, ldc, q.columns);
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
        tiles::<Self>(a, runs, lda, rows, b, q.columns, |r, acc| Self::store_rounded(acc, q, &mut out[r * ldc..], ldc));
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
        tiles::<Self>(a, runs, lda, rows, b, q.columns, |r, acc| Self::store_wide(acc, q, &mut out[r * ldc..], ldc));
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
        strip.each::<Self>(|p, sums| Self::store_rounded(sums, q, &mut out[p * stride..], stride));
    }
    #[inline(always)]
    fn strip_wide<O: Quantized>(strip: &Strip<'_>, q: &RequantWide<'_>, out: &mut [O], stride: usize) {
        strip.each::<Self>(|p, sums| Self::store_wide(sums, q, &mut out[p * stride..], stride));
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

    /// The smallest and the largest of some numbers and zero; what is no number does not count.
    #[inline(always)]
    fn extremes(x: &[f32]) -> (f32, f32) {
        let (blocks, rest) = x.as_chunks::<32>();
        let (mut low, mut high) = ([0f32; 32], [0f32; 32]);
        for b in blocks {
            for j in 0..32 {
                low[j] = if b[j] < low[j] { b[j] } else { low[j] };
                high[j] = if b[j] > high[j] { b[j] } else { high[j] };
            }
        }
        // Both halves of the lanes meet until there are few left: vector code, where a fold over all is not.
        let mut n = 16;
        while n >= 4 {
            for j in 0..n {
                low[j] = if low[j + n] < low[j] { low[j + n] } else { low[j] };
                high[j] = if high[j + n] > high[j] { high[j + n] } else { high[j] };
            }
            n /= 2;
        }
        let both = rest.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
        low[..4].iter().zip(&high).fold(both, |(l, h), (&a, &b)| (l.min(a), h.max(b)))
    }

    /// Floats in `steps`, each `more` than its number of steps.
    #[inline(always)]
    fn quantize<Q: Whole>(steps: &Steps, x: &[f32], to: &mut [Q], more: i32) {
        for (q, x) in to.iter_mut().zip(x) {
            *q = Q::of(steps.one(*x) + more);
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
