//! WebAssembly's 128-bit vectors.
//!
//! The engines that compile this have 16 vector registers at most and keep one or two for themselves: a tile is 4 rows
//! by 8 columns (8 sums, 2 vectors of weights, one of the left operand and one product). They keep the order of loads, so
//! that two steps of the depth at a time spill sums: one step it is.

use super::{
    Dot, Isa, LineF32, LineI8, LineI16, MAX_MR, NR, Panel, Portable, Requant, Strip, Sum, Taps, narrow_rows, reach,
    tiles,
};
use crate::requant::Quantized;
use core::arch::wasm32::*;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// `rows_f32` of the module of relaxed instructions (`web/relaxed`): rows by a panel with fused multiply-add.
type FusedRows = unsafe extern "C" fn(
    a: *const f32,
    lda: usize,
    rows: usize,
    runs: *const usize,
    count: usize,
    length: usize,
    w: *const f32,
    bias: *const f32,
    low: f32,
    high: f32,
    out: *mut f32,
    ldc: usize,
    columns: usize,
);

/// `depthwise_f32` of that module: pixels by eights of channels.
type FusedDepthwise = unsafe extern "C" fn(
    x: *const f32,
    step: usize,
    count: usize,
    taps: *const [isize; 2],
    used: usize,
    w: *const f32,
    block: usize,
    eights: usize,
    bias: *const f32,
    low: f32,
    high: f32,
    out: *mut f32,
    stride: usize,
);

// A tap is an offset, then a line.
const _: () = assert!(core::mem::offset_of!((isize, usize), 0) == 0 && size_of::<(isize, usize)>() == 8);

/// Where these functions are in this module's table of functions; 0 where the browser has no such instructions.
static FUSED_ROWS: AtomicUsize = AtomicUsize::new(0);
static FUSED_DEPTHWISE: AtomicUsize = AtomicUsize::new(0);

/// Called by the page once it has put the functions there. A call of anything with another signature is a trap.
#[unsafe(no_mangle)]
pub extern "C" fn litegpu_fused(rows: usize, depthwise: usize) {
    FUSED_ROWS.store(rows, Relaxed);
    FUSED_DEPTHWISE.store(depthwise, Relaxed);
}

/// 128-bit vectors, without fused multiply-add but for what the page may bring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Simd128;

/// # Safety
/// 16 bytes at `from` can be read.
#[inline(always)]
unsafe fn read<T>(from: *const T) -> v128 {
    // SAFETY: the caller's promise; vector loads need no alignment.
    unsafe { v128_load(from.cast()) }
}

/// # Safety
/// 16 bytes at `to` can be written.
#[inline(always)]
unsafe fn write<T>(to: *mut T, x: v128) {
    // SAFETY: the caller's promise; vector stores need no alignment.
    unsafe { v128_store(to.cast(), x) }
}

/// Clamps; the value is the operand that a comparison with NaN returns.
#[inline(always)]
fn clamp4(x: v128, low: v128, high: v128) -> v128 {
    f32x4_pmin(f32x4_pmax(x, low), high)
}

// Whole tiles are functions of their own: a call costs little beside a tile, and the code would be large were it
// repeated in every kernel.
impl Isa for Simd128 {
    const MR: usize = 4;
    const MRI: usize = 4;
    const HALVES: usize = 1;
    const STRIP: usize = 2;
    type F = [v128; 2];
    type W = [v128; 2];
    type I = [v128; 2];

    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    fn load(x: &[f32; 8]) -> [v128; 2] {
        // SAFETY: 32 bytes of an array of 32.
        unsafe { [read(x.as_ptr()), read(x.as_ptr().add(4))] }
    }
    #[inline(always)]
    fn store(x: [v128; 2], to: &mut [f32; 8]) {
        // SAFETY: 32 bytes of an array of 32.
        unsafe {
            write(to.as_mut_ptr(), x[0]);
            write(to.as_mut_ptr().add(4), x[1]);
        }
    }
    #[inline(always)]
    fn fma8(a: [v128; 2], b: [v128; 2], c: [v128; 2]) -> [v128; 2] {
        [f32x4_add(f32x4_mul(a[0], b[0]), c[0]), f32x4_add(f32x4_mul(a[1], b[1]), c[1])]
    }
    #[inline(always)]
    fn clamp8(x: [v128; 2], range: (f32, f32)) -> [v128; 2] {
        let (low, high) = (f32x4_splat(range.0), f32x4_splat(range.1));
        [clamp4(x[0], low, high), clamp4(x[1], low, high)]
    }
    #[inline(always)]
    fn load_words(x: &[i16; NR]) -> [v128; 2] {
        // SAFETY: 32 bytes of an array of 32.
        unsafe { [read(x.as_ptr()), read(x.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn pair(a: [v128; 2], b: [v128; 2]) -> [[v128; 2]; 2] {
        let low = |a, b| i16x8_shuffle::<0, 8, 1, 9, 2, 10, 3, 11>(a, b);
        let high = |a, b| i16x8_shuffle::<4, 12, 5, 13, 6, 14, 7, 15>(a, b);
        [[low(a[0], b[0]), high(a[0], b[0])], [low(a[1], b[1]), high(a[1], b[1])]]
    }
    #[inline(always)]
    fn dot(sum: [v128; 2], a: [v128; 2], b: [v128; 2]) -> [v128; 2] {
        [i32x4_add(sum[0], i32x4_dot_i16x8(a[0], b[0])), i32x4_add(sum[1], i32x4_dot_i16x8(a[1], b[1]))]
    }
    #[inline(always)]
    fn sums(x: [[v128; 2]; 2]) -> [i32; NR] {
        let mut out = [0i32; NR];
        // SAFETY: four stores of 4 lanes fill the array of 16.
        unsafe {
            write(out.as_mut_ptr(), x[0][0]);
            write(out.as_mut_ptr().add(4), x[0][1]);
            write(out.as_mut_ptr().add(8), x[1][0]);
            write(out.as_mut_ptr().add(12), x[1][1]);
        }
        out
    }
    #[inline(always)]
    fn load_sums(x: &[i32; NR]) -> [[v128; 2]; 2] {
        let p = x.as_ptr();
        // SAFETY: four loads of 4 lanes cover the array of 16.
        unsafe { [[read(p), read(p.add(4))], [read(p.add(8)), read(p.add(12))]] }
    }

    #[inline(never)]
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
        assert!((1..=4).contains(&rows) && (1..=NR).contains(&columns));
        assert!(a.len() >= reach(runs, b.len()) + (rows - 1) * lda && out.len() >= (rows - 1) * ldc + columns);
        for at in (0..columns).step_by(8) {
            // SAFETY: the assert covers every run of every row of `a`, and `out`; `b` is read line by line.
            unsafe {
                match rows {
                    1 => float_tile::<1>(a, runs, lda, b, bias, range, out, ldc, columns, at),
                    2 => float_tile::<2>(a, runs, lda, b, bias, range, out, ldc, columns, at),
                    3 => float_tile::<3>(a, runs, lda, b, bias, range, out, ldc, columns, at),
                    _ => float_tile::<4>(a, runs, lda, b, bias, range, out, ldc, columns, at),
                }
            }
        }
    }

    #[inline(never)]
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
        let fused = FUSED_ROWS.load(Relaxed);
        if fused == 0 {
            return super::tiles_f32::<Self>(a, runs, lda, rows, b, bias, range, out, ldc, columns);
        }
        if rows == 0 {
            return;
        }
        assert!((1..=NR).contains(&columns));
        assert!(a.len() >= reach(runs, b.len()) + (rows - 1) * lda && out.len() >= (rows - 1) * ldc + columns);
        let (length, b, bias, to) = (b.len() / runs.len().max(1), b.as_ptr().cast(), bias.as_ptr(), out.as_mut_ptr());
        // SAFETY: the asserts cover every run of every row of `a`, and `out`; `b` has as many lines as a row is long. A
        // place in the table that is not 0 holds a `FusedRows`.
        unsafe {
            let go = core::mem::transmute::<usize, FusedRows>(fused);
            go(a.as_ptr(), lda, rows, runs.as_ptr(), runs.len(), length, b, bias, range.0, range.1, to, ldc, columns);
        }
    }

    #[inline(never)]
    fn depthwise_pixels(
        image: &[f32],
        first: isize,
        step: usize,
        taps: &Taps,
        lines: &[[f32; NR]],
        block: usize,
        bias: &[f32],
        range: (f32, f32),
        out: &mut [f32],
        stride: usize,
    ) -> usize {
        let (fused, eights, count) = (FUSED_DEPTHWISE.load(Relaxed), stride / 8, out.len() / stride.max(1));
        if fused == 0 || eights == 0 || count == 0 {
            return 0;
        }
        let blocks = eights.div_ceil(2);
        assert!(taps.readable(image.len(), first, step, count, 8 * eights) && taps.lines <= block);
        assert!(lines.len() >= blocks * block && bias.len() >= 8 * eights);
        let (list, w) = (&taps.list[..taps.count], lines.as_ptr().cast());
        let (list, used) = (list.as_ptr().cast(), list.len());
        // SAFETY: the asserts cover what every tap reads of every pixel, the lines and biases of all eights, and `count` rows of
        // `out` have all channels. A place in the table that is not 0 holds a `FusedDepthwise`.
        unsafe {
            let go = core::mem::transmute::<usize, FusedDepthwise>(fused);
            let (x, bias, to) = (image.as_ptr().wrapping_offset(first), bias.as_ptr(), out.as_mut_ptr());
            let (low, high) = range;
            go(x, step, count, list, used, w, block, eights, bias, low, high, to, stride);
        }
        8 * eights
    }

    #[inline(never)]
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
        if rows == 0 {
            return;
        }
        assert!(a.len() >= reach(runs, w.len()) + (rows - 1) * lda && out.len() > (rows - 1) * ldc);
        let length = (w.len() / runs.len().max(1)).max(1);
        for r in 0..rows {
            let (mut acc, mut sum) = (f32x4_splat(0.0), finish.bias);
            for (run, w) in runs.iter().zip(w.chunks_exact(length)) {
                let (four, rest) = w.as_chunks::<4>();
                // SAFETY: the assert covers every run of every row of `a`.
                unsafe {
                    let x = a.as_ptr().add(run + r * lda);
                    for (k, w) in four.iter().enumerate() {
                        acc = f32x4_add(acc, f32x4_mul(read(x.add(4 * k)), read(w.as_ptr())));
                    }
                    for (k, w) in rest.iter().enumerate() {
                        sum += *x.add(4 * four.len() + k) * w;
                    }
                }
            }
            let lanes = [0, 1, 2, 3].map(|i: usize| match i {
                0 => f32x4_extract_lane::<0>(acc),
                1 => f32x4_extract_lane::<1>(acc),
                2 => f32x4_extract_lane::<2>(acc),
                _ => f32x4_extract_lane::<3>(acc),
            });
            out[r * ldc] = super::clamp(sum + (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]), finish.range);
        }
    }

    #[inline(never)]
    fn tile_i16(
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        columns: usize,
        acc: &mut [[i32; NR]; MAX_MR],
    ) {
        // Lines are pairs of steps.
        assert!(
            (1..=MAX_MR).contains(&rows)
                && a.len() >= reach(runs, b.len()) + b.len() / runs.len().max(1) + (rows - 1) * lda
        );
        for at in (0..columns).step_by(8) {
            // SAFETY: the assert covers every run of every row of `a`; `b` is read line by line.
            unsafe {
                match (b, rows) {
                    (Panel::Narrow(b), 1) => int_tile::<1, _>(a, runs, lda, b, at, acc),
                    (Panel::Narrow(b), 2) => int_tile::<2, _>(a, runs, lda, b, at, acc),
                    (Panel::Narrow(b), 3) => int_tile::<3, _>(a, runs, lda, b, at, acc),
                    (Panel::Narrow(b), _) => int_tile::<4, _>(a, runs, lda, b, at, acc),
                    (Panel::Wide(b), 1) => int_tile::<1, _>(a, runs, lda, b, at, acc),
                    (Panel::Wide(b), 2) => int_tile::<2, _>(a, runs, lda, b, at, acc),
                    (Panel::Wide(b), 3) => int_tile::<3, _>(a, runs, lda, b, at, acc),
                    (Panel::Wide(b), _) => int_tile::<4, _>(a, runs, lda, b, at, acc),
                }
            }
        }
    }

    #[inline(never)]
    fn requantize(acc: &mut [[i32; NR]], q: &Requant<'_>) {
        let own = if q.once.is_none() { Once::new(q.value, q.shift) } else { None };
        let Some(once) = q.once.or(own.as_ref()) else {
            return Portable::requantize(acc, q);
        };
        let near = NearHalf::new(q.zero, q.low, q.high);
        for at in (0..NR).step_by(4) {
            // SAFETY: each load and store covers lanes `at` to `at + 4` of arrays of 16.
            unsafe {
                let (bias, once) = (read(q.bias.as_ptr().add(at)), once.four(at));
                for acc in &mut *acc {
                    let place = acc.as_mut_ptr().add(at);
                    let x = i32x4_add(read(place), bias);
                    let (rounded, off) = near.round(once.real(x));
                    if !v128_any_true(f32x4_gt(off, near.limit)) {
                        write(place, rounded);
                        continue;
                    }
                    let mut four = [*acc];
                    Portable::requantize(&mut four, q);
                    acc[at..at + 4].copy_from_slice(&four[0][at..at + 4]);
                }
            }
        }
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
        if let (1, Ok(out)) = (size_of::<O>(), bytemuck::try_cast_slice_mut(out)) {
            return panel_bytes(a, runs, lda, rows, b, q, out, ldc);
        }
        tiles::<Self>(a, runs, lda, rows, b, q.columns, |r, acc| Self::store_rounded(acc, q, &mut out[r * ldc..], ldc));
    }
    #[inline(always)]
    fn strip<O: Quantized>(strip: &Strip<'_>, q: &Requant<'_>, out: &mut [O], stride: usize) {
        if let (1, Ok(out)) = (size_of::<O>(), bytemuck::try_cast_slice_mut(out)) {
            return strip_bytes(strip, q, out, stride);
        }
        strip.each::<Self>(|p, sums| Self::store_rounded(sums, q, &mut out[p * stride..], stride));
    }

    #[inline(never)]
    fn sum(x: &mut [[i32; NR]], y: &[[i32; NR]], k: &Sum) {
        let near = NearHalf::new(k.zero, k.low, k.high);
        let real = |m: &litegpu_graph::fixed::Multiplier| m.value as f32 * (m.shift as f32 - 31.0).exp2();
        let out = real(&k.scale);
        let factor = |t: &super::Term| real(&t.scale) * (t.left as f32).exp2() * out;
        let (a, b) = (factor(&k.terms[0]), factor(&k.terms[1]));
        // Each term is rounded to an integer, with an error of 1 at most; the sum is rounded twice; and floats round a
        // few times: numbers, as they can be shifted, are below 2^(31 - left).
        let largest = k.terms.iter().map(|t| (31.0 - t.left as f32).exp2()).fold(0.0, f32::max);
        let error = 2.0 * out + (k.scale.shift as f32 - 1.0).exp2() + largest * (a + b) / 2_097_152.0;
        let limit = f32x4_sub(near.limit, f32x4_splat(error));
        let (a, b) = (f32x4_splat(a), f32x4_splat(if k.negative { -b } else { b }));
        let zeros = [i32x4_splat(k.terms[0].zero), i32x4_splat(k.terms[1].zero)];
        for (x, y) in x.iter_mut().zip(y) {
            for at in (0..NR).step_by(4) {
                // SAFETY: each load and store covers lanes `at` to `at + 4` of arrays of 16.
                unsafe {
                    let place = x.as_mut_ptr().add(at);
                    let u = f32x4_convert_i32x4(i32x4_sub(read(place), zeros[0]));
                    let v = f32x4_convert_i32x4(i32x4_sub(read(y.as_ptr().add(at)), zeros[1]));
                    let (rounded, off) = near.round(f32x4_add(f32x4_mul(u, a), f32x4_mul(v, b)));
                    if !v128_any_true(f32x4_gt(off, limit)) {
                        write(place, rounded);
                        continue;
                    }
                }
                let mut four = [[0; NR]; 2];
                four[0][..4].copy_from_slice(&x[at..at + 4]);
                four[1][..4].copy_from_slice(&y[at..at + 4]);
                let [u, v] = &mut four;
                Portable::sum(std::slice::from_mut(u), std::slice::from_ref(v), k);
                x[at..at + 4].copy_from_slice(&u[..4]);
            }
        }
    }

    #[inline(always)]
    fn narrow_i8(x: &[i32; NR], to: &mut [i8; NR]) {
        let [a, b] = words(x);
        // SAFETY: the store fills the array's 16 bytes.
        unsafe { write(to.as_mut_ptr(), i8x16_narrow_i16x8(a, b)) }
    }
    #[inline(always)]
    fn narrow_u8(x: &[i32; NR], to: &mut [u8; NR]) {
        let [a, b] = words(x);
        // SAFETY: the store fills the array's 16 bytes.
        unsafe { write(to.as_mut_ptr(), u8x16_narrow_i16x8(a, b)) }
    }
    #[inline(always)]
    fn narrow_i16(x: &[i32; NR], to: &mut [i16; NR]) {
        let [a, b] = words(x);
        // SAFETY: two stores of 8 words fill the array of 16.
        unsafe {
            write(to.as_mut_ptr(), a);
            write(to.as_mut_ptr().add(8), b);
        }
    }
}

/// Rounding twice done as one product of floats, of 16 columns.
///
/// With a shift of -r the reference makes floor(x / 2^r + 1/2 + 2^-(r + 1)) of a real number x of at least 0, and has
/// 1/2 - 2^-(r + 1) for negative ones (see the other `Once`): that is one rounding of x moved away from zero, which
/// floats get wrong only where the result is close to a half.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Once {
    scale: [f32; NR],
    /// How far numbers are moved: 2^-(r + 1).
    away: [f32; NR],
}

impl Once {
    /// From fractions and powers of two; `None` when a column is not shifted to the right.
    pub(crate) fn new(value: &[i32; NR], shift: &[i32; NR]) -> Option<Once> {
        let mut once = Once { scale: [0.0; NR], away: [0.0; NR] };
        for j in 0..NR {
            // Times 0 is 0, whatever the shift.
            let r = if value[j] == 0 { 1 } else { -shift[j] };
            if !(1..=31).contains(&r) {
                return None;
            }
            let power = |n: i32| f32::from_bits(((127 - n) as u32) << 23);
            once.scale[j] = value[j] as f32 * power(r + 31);
            once.away[j] = power(r + 1);
        }
        Some(once)
    }
    /// The constants of 4 columns.
    ///
    /// # Safety
    /// `at` is at most 12.
    #[inline(always)]
    unsafe fn four(&self, at: usize) -> Four {
        // SAFETY: 4 lanes from `at` on of arrays of 16.
        unsafe { Four { scale: read(self.scale.as_ptr().add(at)), away: read(self.away.as_ptr().add(at)) } }
    }
}

/// 4 columns of a [`Once`].
struct Four {
    scale: v128,
    away: v128,
}

impl Four {
    /// The numbers that are to be rounded, from sums.
    #[inline(always)]
    fn real(&self, sums: v128) -> v128 {
        let x = f32x4_mul(f32x4_convert_i32x4(sums), self.scale);
        f32x4_add(x, v128_or(v128_and(x, f32x4_splat(-0.0)), self.away))
    }
}

/// Rounds real numbers to integers, and says how far from them they are.
struct NearHalf {
    low: v128,
    high: v128,
    /// What rounds by being added, and its bits less the zero point.
    magic: v128,
    bits: v128,
    /// Where a number is further from its integer it may be one that rounds otherwise: four roundings to floats have
    /// moved it by a part of 2^22 at most, and half as much again is left over.
    limit: v128,
}

impl NearHalf {
    #[inline(always)]
    fn new(zero: i32, low: i32, high: i32) -> NearHalf {
        const MAGIC: f32 = 12_582_912.0;
        let (low, high) = (low.saturating_sub(zero) as f32, high.saturating_sub(zero) as f32);
        let reach = if low < -high { -low } else { high };
        NearHalf {
            low: f32x4_splat(low),
            high: f32x4_splat(high),
            magic: f32x4_splat(MAGIC),
            bits: i32x4_splat((MAGIC.to_bits() as i32).wrapping_sub(zero)),
            limit: f32x4_splat(0.5 - (reach.abs() + 1.0) / 2_097_152.0),
        }
    }
    /// `x` rounded, moved by the zero point and limited; and how far it was from an integer.
    #[inline(always)]
    fn round(&self, x: v128) -> (v128, v128) {
        let x = f32x4_pmin(f32x4_pmax(x, self.low), self.high);
        let moved = f32x4_add(x, self.magic);
        (i32x4_sub(moved, self.bits), f32x4_abs(f32x4_sub(x, f32x4_sub(moved, self.magic))))
    }
}

/// What rounds sums to bytes: the constants of a [`Requant`] as floats.
struct Bytes<'a> {
    q: &'a Requant<'a>,
    once: Option<&'a Once>,
    near: NearHalf,
}

impl Bytes<'_> {
    /// The sums of P pixels by 8 columns from `at` on (biases added) as bytes, or nothing where floats do not say which.
    ///
    /// # Safety
    /// `at` is 0 or 8; `out` holds P rows, `stride` apart, of the columns that matter and are 8 at most from `at` on.
    #[inline(always)]
    unsafe fn store<const P: usize>(
        &self,
        mut sums: [[v128; 2]; 4],
        once: &Once,
        at: usize,
        out: *mut u8,
        stride: usize,
    ) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let mut most = f32x4_splat(0.0);
            unrolled!(h < 2, {
                let once = once.four(at + 4 * h);
                unrolled!(p < P, {
                    let (rounded, off) = self.near.round(once.real(sums[p][h]));
                    sums[p][h] = rounded;
                    most = f32x4_pmax(most, off);
                }, 0 1 2 3);
            }, 0 1);
            if v128_any_true(f32x4_gt(most, self.near.limit)) {
                return false;
            }
            let n = self.q.columns - at;
            unrolled!(p < P, {
                let to = out.add(p * stride + at);
                // Signed or not, the low byte is what the type has.
                let words = v128_and(i16x8_narrow_i32x4(sums[p][0], sums[p][1]), i16x8_splat(0xFF));
                let bytes = u8x16_narrow_i16x8(words, words);
                if n >= 8 {
                    v128_store64_lane::<0>(bytes, to.cast());
                } else {
                    let eight = i64x2_extract_lane::<0>(bytes).to_le_bytes();
                    to.copy_from_nonoverlapping(eight.as_ptr(), n);
                }
            }, 0 1 2 3);
            true
        }
    }
    /// The same of sums in memory, without biases, exactly.
    fn exact(&self, sums: &mut [[i32; NR]], out: &mut [u8], stride: usize) {
        Simd128::requantize(sums, self.q);
        for (sums, out) in sums.iter().zip(out.chunks_mut(stride)) {
            out.iter_mut().zip(sums).take(self.q.columns).for_each(|(to, x)| *to = *x as u8);
        }
    }
}

/// [`Isa::panel`] for bytes.
#[inline(never)]
fn panel_bytes(
    a: &[i16],
    runs: &[usize],
    lda: usize,
    rows: usize,
    b: Panel<'_>,
    q: &Requant<'_>,
    out: &mut [u8],
    ldc: usize,
) {
    if rows == 0 {
        return;
    }
    let columns = q.columns;
    // Lines are pairs of steps.
    assert!(a.len() >= reach(runs, b.len()) + b.len() / runs.len().max(1) + (rows - 1) * lda);
    assert!((1..=NR).contains(&columns) && columns <= ldc && out.len() >= (rows - 1) * ldc + columns);
    let bytes = Bytes { q, once: q.once, near: NearHalf::new(q.zero, q.low, q.high) };
    for r in (0..rows).step_by(4) {
        let (a, out, rows) = (&a[r * lda..], &mut out[r * ldc..], (rows - r).min(4));
        // SAFETY: the asserts cover every run of every row of `a`, and four rows of `out`.
        let sure = rows == 4
            && bytes.once.is_some_and(|once| unsafe {
                (0..columns).step_by(8).all(|at| {
                    let sums = match b {
                        Panel::Narrow(b) => int_sums::<4, _>(a, runs, lda, b, at, q.bias),
                        Panel::Wide(b) => int_sums::<4, _>(a, runs, lda, b, at, q.bias),
                    };
                    bytes.store::<4>(sums, once, at, out.as_mut_ptr(), ldc)
                })
            });
        if !sure {
            let mut acc = [[0; NR]; MAX_MR];
            Simd128::tile_i16(a, runs, lda, rows, b, columns, &mut acc);
            bytes.exact(&mut acc[..rows], out, ldc);
        }
    }
}

/// [`Isa::strip`] for bytes.
#[inline(never)]
fn strip_bytes(strip: &Strip<'_>, q: &Requant<'_>, out: &mut [u8], stride: usize) {
    if strip.rows * strip.pixels == 0 {
        return;
    }
    let columns = q.columns;
    strip.check();
    assert!((1..=NR).contains(&columns) && columns <= stride);
    assert!(out.len() >= (strip.rows * strip.pixels - 1) * stride + columns);
    let bytes = Bytes { q, once: q.once, near: NearHalf::new(q.zero, q.low, q.high) };
    for r in 0..strip.rows {
        for p in (0..strip.pixels).step_by(2) {
            let (first, pixels) = (strip.first + r * strip.line + p * strip.step, (strip.pixels - p).min(2));
            let out = &mut out[(r * strip.pixels + p) * stride..];
            // SAFETY: the check covers the windows of all pixels, the asserts two rows of `out`.
            unsafe {
                if let (2, Some(once)) = (pixels, bytes.once) {
                    let [a, b, ..] = strip.vectors::<Simd128, 2>(first, q.bias);
                    let halves = |h: usize| [a[h], b[h], a[h], b[h]];
                    if (0..columns)
                        .step_by(8)
                        .all(|at| bytes.store::<2>(halves(at / 8), once, at, out.as_mut_ptr(), stride))
                    {
                        continue;
                    }
                }
                let mut sums = [[0; NR]; 2];
                for (p, sums) in sums.iter_mut().enumerate().take(pixels) {
                    [*sums] = strip.sums::<Simd128, 1>(first + p * strip.step);
                }
                bytes.exact(&mut sums[..pixels], out, stride);
            }
        }
    }
}

/// 16 values as words, saturated.
#[inline(always)]
fn words(x: &[i32; NR]) -> [v128; 2] {
    // SAFETY: four loads of 4 lanes cover the array of 16.
    unsafe {
        let p = x.as_ptr();
        [i16x8_narrow_i32x4(read(p), read(p.add(4))), i16x8_narrow_i32x4(read(p.add(8)), read(p.add(12)))]
    }
}

/// R rows by the 8 columns from `at` on.
///
/// # Safety
/// `a` holds R rows of `b.len()` elements, `lda` apart, each in runs that begin at `runs`, `out` R rows of `columns`, `ldc` apart; `at` is 0 or 8 and
/// less than `columns`.
#[inline(always)]
unsafe fn float_tile<const R: usize>(
    a: &[f32],
    runs: &[usize],
    lda: usize,
    b: &[LineF32],
    bias: &[f32; NR],
    range: (f32, f32),
    out: &mut [f32],
    ldc: usize,
    columns: usize,
    at: usize,
) {
    // SAFETY: the caller's promise bounds every pointer below.
    unsafe {
        let first = [read(bias.as_ptr().add(at)), read(bias.as_ptr().add(at + 4))];
        let mut acc = [first, first, first, first];
        // Without depth there is nothing to add.
        let length = b.len() / runs.len().max(1);
        let mut w = b.as_ptr().cast::<f32>().add(at);
        for run in runs {
            let mut x = [a.as_ptr().add(*run); 4];
            unrolled!(r < R, { x[r] = x[0].add(r * lda) }, 1 2 3);
            let mut left = length;
            while left > 0 {
                let line = [read(w), read(w.add(4))];
                unrolled!(r < R, {
                    let v = v128_load32_splat(x[r].cast());
                    x[r] = x[r].add(1);
                    acc[r][0] = f32x4_add(acc[r][0], f32x4_mul(v, line[0]));
                    acc[r][1] = f32x4_add(acc[r][1], f32x4_mul(v, line[1]));
                }, 0 1 2 3);
                w = w.add(NR);
                left -= 1;
            }
        }
        let (low, high) = (f32x4_splat(range.0), f32x4_splat(range.1));
        let n = (columns - at).min(8);
        unrolled!(r < R, {
            let v = [clamp4(acc[r][0], low, high), clamp4(acc[r][1], low, high)];
            let to = out.as_mut_ptr().add(r * ldc + at);
            if n == 8 {
                write(to, v[0]);
                write(to.add(4), v[1]);
            } else {
                let mut part = [0f32; 8];
                write(part.as_mut_ptr(), v[0]);
                write(part.as_mut_ptr().add(4), v[1]);
                for (j, v) in part.iter().enumerate().take(n) {
                    *to.add(j) = *v;
                }
            }
        }, 0 1 2 3);
    }
}

/// A line of packed integers, as words.
trait Line: Copy {
    /// 4 columns from `at` on.
    ///
    /// # Safety
    /// `at` is at most 12.
    unsafe fn words(&self, at: usize) -> v128;
}
impl Line for LineI8 {
    #[inline(always)]
    unsafe fn words(&self, at: usize) -> v128 {
        // SAFETY: 8 of a line's 32 bytes.
        unsafe { i16x8_load_extend_i8x8(self.0.as_ptr().add(at).cast()) }
    }
}
impl Line for LineI16 {
    #[inline(always)]
    unsafe fn words(&self, at: usize) -> v128 {
        // SAFETY: 16 of a line's 64 bytes.
        unsafe { read(self.0.as_ptr().add(at)) }
    }
}

/// R rows by the 8 columns from `at` on.
///
/// # Safety
/// `a` holds R rows of `2 * b.len()` elements, `lda` apart, each in runs that begin at `runs`; `at` is 0 or 8.
#[inline(always)]
unsafe fn int_tile<const R: usize, L: Line>(
    a: &[i16],
    runs: &[usize],
    lda: usize,
    b: &[L],
    at: usize,
    acc: &mut [[i32; NR]; MAX_MR],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let sum = int_sums::<R, L>(a, runs, lda, b, at, &[0; NR]);
        unrolled!(r < R, {
            write(acc[r].as_mut_ptr().add(at), sum[r][0]);
            write(acc[r].as_mut_ptr().add(at + 4), sum[r][1]);
        }, 0 1 2 3);
    }
}

/// The sums of R rows by the 8 columns from `at` on, from `bias` on.
///
/// # Safety
/// As [`int_tile`].
#[inline(always)]
unsafe fn int_sums<const R: usize, L: Line>(
    a: &[i16],
    runs: &[usize],
    lda: usize,
    b: &[L],
    at: usize,
    bias: &[i32; NR],
) -> [[v128; 2]; 4] {
    // SAFETY: the caller's promise bounds every pointer below.
    unsafe {
        let first = [read(bias.as_ptr().add(at)), read(bias.as_ptr().add(at + 4))];
        let mut sum = [first, first, first, first];
        let length = b.len() / runs.len().max(1);
        let mut line = b.as_ptr();
        for run in runs {
            let mut x = [a.as_ptr().add(*run); 4];
            unrolled!(r < R, { x[r] = x[0].add(r * lda) }, 1 2 3);
            let mut left = length;
            while left > 0 {
                let w = [(*line).words(at), (*line).words(at + 4)];
                unrolled!(r < R, {
                    let v = v128_load32_splat(x[r].cast());
                    x[r] = x[r].add(2);
                    sum[r][0] = i32x4_add(sum[r][0], i32x4_dot_i16x8(v, w[0]));
                    sum[r][1] = i32x4_add(sum[r][1], i32x4_dot_i16x8(v, w[1]));
                }, 0 1 2 3);
                line = line.add(1);
                left -= 1;
            }
        }
        sum
    }
}
