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

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;

use bytemuck::{Pod, Zeroable};
use litegpu_graph::fixed::Multiplier;
use smallvec::SmallVec;

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
    /// How many of the columns matter. Only wide vectors gain from knowing.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub columns: usize,
}

/// Constants of the requantization of 16 columns of 64-bit sums, rounded once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequantWide<'a> {
    pub bias: &'a [i64; NR],
    /// Fractions of 15 bits.
    pub value: &'a [i64; NR],
    /// How far the product is shifted to the right: at most 32.
    pub shift: &'a [i64; NR],
    pub low: i32,
    pub high: i32,
    /// How many of the columns matter. Only wide vectors gain from knowing.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub columns: usize,
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
    /// Clamps each lane.
    fn clamp8(x: Self::F, range: (f32, f32)) -> Self::F;

    fn load_words(x: &[i16; NR]) -> Self::W;
    fn widen_i8(x: &[i8; NR]) -> Self::W;
    fn widen_u8(x: &[u8; NR]) -> Self::W;
    /// The words of two vectors side by side, in an order that only [`Isa::sums`] undoes.
    fn pair(a: Self::W, b: Self::W) -> [Self::W; 2];
    fn zero() -> Self::I;
    /// sum + a0 * b0 + a1 * b1 for each pair of words, modulo 2^32.
    fn dot(sum: Self::I, a: Self::W, b: Self::W) -> Self::I;
    /// The sums of 16 lanes in their order.
    fn sums(x: [Self::I; 2]) -> [i32; NR];

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

    /// Accumulators of 16 columns to quantized values, which the caller narrows.
    fn requantize(acc: &mut [[i32; NR]], q: &Requant<'_>);

    /// The same with 64-bit biases and reduced multipliers.
    fn requantize_wide(acc: &mut [[i32; NR]], q: &RequantWide<'_>);

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

    /// Values within the type's range, narrowed.
    fn narrow_i8(x: &[i32; NR], to: &mut [i8; NR]);
    fn narrow_u8(x: &[i32; NR], to: &mut [u8; NR]);
    fn narrow_i16(x: &[i32; NR], to: &mut [i16; NR]);
}

/// Elements that depthwise convolutions of integers read, as words.
pub(crate) trait Word: Copy + Send + Sync + 'static {
    fn load<S: Isa>(x: &[Self; NR]) -> S::W;
    fn word(self) -> i16;
}
impl Word for i8 {
    #[inline(always)]
    fn load<S: Isa>(x: &[i8; NR]) -> S::W {
        S::widen_i8(x)
    }
    #[inline(always)]
    fn word(self) -> i16 {
        self as i16
    }
}
impl Word for u8 {
    #[inline(always)]
    fn load<S: Isa>(x: &[u8; NR]) -> S::W {
        S::widen_u8(x)
    }
    #[inline(always)]
    fn word(self) -> i16 {
        self as i16
    }
}
impl Word for i16 {
    #[inline(always)]
    fn load<S: Isa>(x: &[i16; NR]) -> S::W {
        S::load_words(x)
    }
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
    /// From (offset, line) pairs; `zero` is the line of zeros.
    pub(crate) fn set(&mut self, taps: impl Iterator<Item = (isize, usize)>, zero: usize) {
        self.list.clear();
        self.list.extend(taps);
        self.count = self.list.len();
        if self.count % 2 == 1 {
            let (offset, _) = self.list[0];
            self.list.push((offset, zero));
        }
        self.low = self.list.iter().map(|t| t.0).min().unwrap_or(0);
        self.high = self.list.iter().map(|t| t.0).max().unwrap_or(0);
        self.lines = self.list.iter().map(|t| t.1 + 1).max().unwrap_or(0);
    }
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
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

/// Depthwise sums of P pixels, `step` apart, of 16 channels, modulo 2^32.
///
/// # Panics
/// When `taps` are not [readable](Taps::readable) or the lines are too few.
#[inline(always)]
pub(crate) fn depthwise_int<S: Isa, X: Word, const P: usize>(
    image: &[X],
    first: isize,
    step: usize,
    taps: &Taps,
    lines: &[[i16; NR]],
) -> [[i32; NR]; P] {
    assert!(taps.readable(image.len(), first, step, P, NR) && taps.lines <= lines.len());
    const { assert!(P <= 4) };
    let zero = S::zero();
    let mut acc = [[zero, zero], [zero, zero], [zero, zero], [zero, zero]];
    // SAFETY: the assert covers the lowest and the highest element that any tap of any pixel reads, and every line.
    unsafe {
        for &[(o0, l0), (o1, l1)] in taps.list.as_chunks::<2>().0 {
            let w = S::pair(S::load_words(lines.get_unchecked(l0)), S::load_words(lines.get_unchecked(l1)));
            let (x0, x1) = (image.as_ptr().offset(first + o0), image.as_ptr().offset(first + o1));
            unrolled!(p < P, {
                let x = S::pair(X::load::<S>(&*x0.add(p * step).cast()), X::load::<S>(&*x1.add(p * step).cast()));
                acc[p][0] = S::dot(acc[p][0], x[0], w[0]);
                acc[p][1] = S::dot(acc[p][1], x[1], w[1]);
            }, 0 1 2 3);
        }
    }
    let mut out = [[0; NR]; P];
    unrolled!(p < P, { out[p] = S::sums(acc[p]) }, 0 1 2 3);
    out
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
    fn widen_i8(x: &[i8; NR]) -> [i16; NR] {
        x.map(|x| x as i16)
    }
    #[inline(always)]
    fn widen_u8(x: &[u8; NR]) -> [i16; NR] {
        x.map(|x| x as i16)
    }
    #[inline(always)]
    fn pair(a: [i16; NR], b: [i16; NR]) -> [[i16; NR]; 2] {
        let at = |from: usize| std::array::from_fn(|j| if j % 2 == 0 { a[from + j / 2] } else { b[from + j / 2] });
        [at(0), at(8)]
    }
    #[inline(always)]
    fn zero() -> [i32; 8] {
        [0; 8]
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
    fn requantize_wide(acc: &mut [[i32; NR]], q: &RequantWide<'_>) {
        for acc in acc {
            for j in 0..NR {
                let x = (acc[j] as i64).wrapping_add(q.bias[j]).wrapping_mul(q.value[j]);
                let x = x.wrapping_add(1i64 << (q.shift[j] - 1)) >> q.shift[j];
                acc[j] = (x as i32).max(q.low).min(q.high);
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
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the machine has the features that the function is compiled for.
        return unsafe { avx2::enter(task) };
    }
    task.run::<Base>()
}

/// What every machine has that a build is for.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
type Base = wasm::Simd128;
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
type Base = Portable;

/// How many elements from its first on a row reaches that is made of `runs`, for `depth` steps in all.
///
/// # Panics
/// When the runs cannot be equally long.
#[cfg(any(target_arch = "x86_64", all(target_arch = "wasm32", target_feature = "simd128")))]
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
        fn widen_i8(x: &[i8; NR]) -> __m256i {
            // SAFETY: 16 bytes of an array of 16.
            unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().cast())) }
        }
        #[inline(always)]
        fn widen_u8(x: &[u8; NR]) -> __m256i {
            // SAFETY: 16 bytes of an array of 16.
            unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(x.as_ptr().cast())) }
        }
        #[inline(always)]
        fn pair(a: __m256i, b: __m256i) -> [__m256i; 2] {
            // SAFETY: see above.
            unsafe { [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)] }
        }
        #[inline(always)]
        fn zero() -> __m256i {
            // SAFETY: see above.
            unsafe { _mm256_setzero_si256() }
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
                // Pairing works within halves: the first sums hold lanes 0 to 3 and 8 to 11.
                let low = _mm256_permute2x128_si256::<0x20>(x[0], x[1]);
                let high = _mm256_permute2x128_si256::<0x31>(x[0], x[1]);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), low);
                _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), high);
            }
            out
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
        for quarter in 0..q.columns.min(NR).div_ceil(4) {
            let at = 4 * quarter;
            // SAFETY: each load and store covers lanes `at` to `at + 4` of arrays of 16.
            unsafe {
                let value = _mm256_loadu_si256(q.value.as_ptr().add(at).cast());
                let shift = _mm256_loadu_si256(q.shift.as_ptr().add(at).cast());
                let bias = _mm256_loadu_si256(q.bias.as_ptr().add(at).cast());
                let one = _mm256_set1_epi64x(1);
                let round = _mm256_sllv_epi64(one, _mm256_sub_epi64(shift, one));
                let (low, high) = (_mm_set1_epi32(q.low), _mm_set1_epi32(q.high));
                let even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
                for acc in &mut *acc {
                    let place = acc.as_mut_ptr().add(at).cast::<__m128i>();
                    let x = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm_loadu_si128(place)), bias);
                    // 64 by 15 bits, from two products of 32.
                    let bottom = _mm256_mul_epu32(x, value);
                    let top = _mm256_mul_epi32(_mm256_srli_epi64::<32>(x), value);
                    let x = _mm256_add_epi64(bottom, _mm256_slli_epi64::<32>(top));
                    // Only the low half of the quotient counts: a logical shift by at most 32 gives it.
                    let x = _mm256_srlv_epi64(_mm256_add_epi64(x, round), shift);
                    let x = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(x, even));
                    _mm_storeu_si128(place, _mm_min_epi32(_mm_max_epi32(x, low), high));
                }
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
        let (a, b, out) = (a.as_chunks::<16>().0, b.as_chunks::<16>().0, out.as_chunks_mut::<16>().0);
        let mut done = 0;
        for ((a, b), out) in a.iter().zip(b).zip(out) {
            // SAFETY: the loads and the store cover arrays of 16 bytes.
            unsafe {
                let (x, y) = (_mm_loadu_si128(a.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().cast()));
                let wide = |x| if SIGNED { _mm256_cvtepi8_epi16(x) } else { _mm256_cvtepu8_epi16(x) };
                let ([x0, x1], [y0, y1]) = (first.apply(wide(x)), second.apply(wide(y)));
                let join = |x, y| if k.negative { _mm256_sub_epi32(x, y) } else { _mm256_add_epi32(x, y) };
                let words = _mm256_packs_epi32(scale.apply(join(x0, y0)), scale.apply(join(x1, y1)));
                // Saturation leaves what the limits would.
                let words = _mm256_adds_epi16(words, zero);
                let (left, right) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                let bytes = if SIGNED {
                    _mm_min_epi8(_mm_max_epi8(_mm_packs_epi16(left, right), low), high)
                } else {
                    _mm_min_epu8(_mm_max_epu8(_mm_packus_epi16(left, right), low), high)
                };
                _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
            }
            done += 16;
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
        // SAFETY: the caller's promise bounds every pointer below.
        unsafe {
            let mut sum = [[_mm256_setzero_si256(); C]; R];
            let length = b.len() / runs.len().max(1);
            let mut lines = b.as_ptr();
            for run in runs {
                let ap = a.as_ptr().add(*run);
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
            for r in 0..R {
                for c in 0..C {
                    _mm256_storeu_si256(acc[r].as_mut_ptr().add(8 * c).cast(), sum[r][c]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    struct FloatTile<'a>(&'a [f32], usize, usize, &'a [LineF32], usize);
    impl Task for FloatTile<'_> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Isa>(self) -> Vec<f32> {
            let FloatTile(a, lda, rows, b, columns) = self;
            let mut out = vec![9.0; 6 * 20];
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
            let a: Vec<f32> = numbers(6 * 20, 3).into_iter().map(x).collect();
            let w: Vec<f32> = numbers(depth * NR, 5).into_iter().map(x).collect();
            let b: Vec<LineF32> = w.as_chunks::<NR>().0.iter().map(|c| LineF32(*c)).collect();
            for rows in 1..=6 {
                for columns in [1, 7, 8, 9, 15, 16] {
                    let fast = dispatch(FloatTile(&a, 20, rows, &b, columns));
                    let slow = FloatTile(&a, 20, rows, &b, columns).run::<Portable>();
                    for (i, (f, s)) in fast.iter().zip(&slow).enumerate() {
                        assert!((f - s).abs() < 1e-3, "{depth} {rows} {columns} [{i}]: {f} {s}");
                    }
                }
            }
        }
    }

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
                        let fast = dispatch(IntTile(&a, 18, rows, panel, columns));
                        assert_eq!(fast, IntTile(&a, 18, rows, panel, columns).run::<Portable>());
                    }
                }
            }
        }
    }

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
            let bias = std::array::from_fn(|j| (n[NR + j] as i32 as i64) << (n[j] % 16));
            let value = std::array::from_fn(|j| (n[2 * NR + j] % 0x8000) as i64);
            let shift = std::array::from_fn(|j| (n[3 * NR + j] % 32) as i64 + 1);
            let (bias, value, shift, columns) = (&bias, &value, &shift, NR);
            let q = RequantWide { bias, value, shift, low: i32::MIN, high: i32::MAX, columns };
            assert_eq!(dispatch(RequantizeWide(&acc, q)), RequantizeWide(&acc, q).run::<Portable>(), "seed {seed}");
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
            let q = Requant { bias, value, shift, zero: -3, low: i32::MIN, high: i32::MAX, columns: NR };
            assert_eq!(dispatch(Requantize(&acc, q)), Requantize(&acc, q).run::<Portable>(), "seed {seed}");
        }
    }

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
            assert_eq!(dispatch(Sums(&values, k)), Sums(&values, k).run::<Portable>(), "seed {seed}");
        }
    }

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
        for seed in 1..24u32 {
            let n = numbers(6, seed);
            let multiplier = |n: u32, shift: i32| Multiplier { value: (1 << 30) | (n >> 2) as i32, shift };
            let half = Multiplier { value: 1 << 30, shift: 0 };
            let one = if seed % 3 == 0 { half } else { multiplier(n[0], -((n[1] % 9) as i32)) };
            let two = multiplier(n[2], -((n[1] % 31) as i32));
            let terms =
                [Term { zero: n[3] as i8 as i32, left: 20, scale: one }, Term { zero: 17, left: 20, scale: two }];
            let scale = multiplier(n[4], -((n[5] % 24) as i32));
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
        }
    }

    /// Rows of two runs that lie apart, in tiles and as dot products, and the same rows laid out in one piece.
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
            for (tile, dots) in [dispatch(Runs(&a, &runs, lda, &b)), Runs(&a, &runs, lda, &b).run::<Portable>()] {
                for (i, v) in tile.iter().enumerate() {
                    assert!((*v as f64 - sum(i / NR, i % NR)).abs() < 1e-3, "{length} {i}: {v}");
                }
                for (r, v) in dots.iter().enumerate() {
                    assert!((*v as f64 - sum(r, 3)).abs() < 1e-3, "{length} {r}: {v}");
                }
            }
        }
    }

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

    struct Dots<'a>(&'a [i16; NR], &'a [i8; NR], &'a [u8; NR]);
    impl Task for Dots<'_> {
        type Output = [i32; NR];
        #[inline(always)]
        fn run<S: Isa>(self) -> [i32; NR] {
            let a = S::pair(S::load_words(self.0), S::widen_i8(self.1));
            let b = S::pair(S::widen_u8(self.2), S::load_words(self.0));
            S::sums([S::dot(S::zero(), a[0], b[0]), S::dot(S::zero(), a[1], b[1])])
        }
    }

    #[test]
    fn paired_products_are_equal() {
        let n = numbers(3 * NR, 23);
        let w = std::array::from_fn(|j| n[j] as i16);
        let (i, u) = (std::array::from_fn(|j| n[NR + j] as i8), std::array::from_fn(|j| n[2 * NR + j] as u8));
        let want = std::array::from_fn(|j| w[j] as i32 * u[j] as i32 + i[j] as i32 * w[j] as i32);
        assert_eq!(dispatch(Dots(&w, &i, &u)), want);
        assert_eq!(Dots(&w, &i, &u).run::<Portable>(), want);
    }
}
