//! 512-bit vectors: a panel's 16 columns are one register, and two or four products an instruction (VNNI).
//!
//! What this set has no own code for is AVX2's, which every machine of this kind has.

use super::avx2::{Avx2, PAIRS};
use super::*;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// AVX-512 with its instructions for bytes, words and integer dot products. Its methods are used inside [`enter`] only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512;

/// Whether the machine has all that [`enter`] is compiled for.
#[inline]
pub(super) fn here() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
}

/// Compiles a task for AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) fn enter<T: Task>(task: T) -> T::Output {
    task.run::<Avx512>()
}

// SAFETY, for every block in this implementation: intrinsics without pointers only need their instruction set, which
// `enter` guarantees; loads and stores stay inside the arrays or the ranges that the asserts check.
impl Isa for Avx512 {
    // Enough sums to keep the multipliers busy, of 32 registers, and a divisor of the blocks' rows.
    const MR: usize = 10;
    const MRI: usize = 4;
    const LONG: bool = true;
    type F = __m256;
    type W = __m256i;
    type I = __m256i;

    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        Avx2::fma(a, b, c)
    }
    #[inline(always)]
    fn load(x: &[f32; 8]) -> __m256 {
        Avx2::load(x)
    }
    #[inline(always)]
    fn store(x: __m256, to: &mut [f32; 8]) {
        Avx2::store(x, to);
    }
    #[inline(always)]
    fn fma8(a: __m256, b: __m256, c: __m256) -> __m256 {
        Avx2::fma8(a, b, c)
    }
    #[inline(always)]
    fn mul_add8(a: __m256, b: __m256, c: __m256) -> __m256 {
        Avx2::mul_add8(a, b, c)
    }
    #[inline(always)]
    fn reals(x: &[i32; 8]) -> __m256 {
        Avx2::reals(x)
    }
    #[inline(always)]
    fn clamp8(x: __m256, range: (f32, f32)) -> __m256 {
        Avx2::clamp8(x, range)
    }
    #[inline(always)]
    fn load_words(x: &[i16; NR]) -> __m256i {
        Avx2::load_words(x)
    }
    #[inline(always)]
    fn pair(a: __m256i, b: __m256i) -> [__m256i; 2] {
        Avx2::pair(a, b)
    }
    #[inline(always)]
    fn dot(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_dpwssd_epi32(sum, a, b) }
    }
    #[inline(always)]
    fn sums(x: [__m256i; 2]) -> [i32; NR] {
        Avx2::sums(x)
    }
    #[inline(always)]
    fn load_sums(x: &[i32; NR]) -> [__m256i; 2] {
        Avx2::load_sums(x)
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
        assert!((1..=10).contains(&rows) && (1..=NR).contains(&columns));
        let reach = reach(runs, b.len()) + (rows - 1) * lda;
        assert!(a.len() >= reach && out.len() >= (rows - 1) * ldc + columns);
        // SAFETY: the asserts cover every run of every row of `a`, and `out`; `b` is read line by line.
        unsafe { FLOAT_TILES[rows - 1](a, runs, lda, b, bias, range, out, ldc, columns) }
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
        Avx2::dots_f32(a, runs, lda, rows, w, finish, out, ldc);
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
        assert!((1..=MAX_MR).contains(&rows));
        assert!(a.len() >= reach(runs, b.len()) + b.len() / runs.len().max(1) + (rows - 1) * lda);
        // SAFETY: the assert covers every run of every row of `a`; `b` is read line by line.
        unsafe {
            match b {
                Panel::Narrow(b) => NARROW_TILES[rows - 1](a, runs, lda, b, acc),
                Panel::Wide(b) => WIDE_TILES[rows - 1](a, runs, lda, b, acc),
            }
        }
    }

    #[inline(always)]
    fn tile_quads(a: &[u8], runs: &[usize], lda: usize, rows: usize, b: &Quads<'_>, acc: &mut [[i32; NR]; MAX_QUADS]) {
        // SAFETY: the function checks its arguments.
        unsafe { quad_tile(a, runs, lda, rows, b, acc) }
    }
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
        if let Some(once) = q.once.filter(|_| q.saturates::<O>()) {
            // SAFETY: the function checks its arguments.
            return unsafe { rounded_quads(a, runs, lda, rows, b, q.bias, &Twice { q, once }, out, ldc) };
        }
        quads_in_tiles::<Self, O>(a, runs, lda, rows, b, q, out, ldc);
    }
    #[inline(always)]
    fn blocks(a: &[u8], lda: usize, rows: &[(f32, i32)], b: &Blocks<'_>, out: &mut [[f32; NR]; MAX_MR]) {
        // SAFETY: the function checks its arguments.
        unsafe { in_blocks(a, lda, rows, b, out) }
    }
    #[inline(always)]
    fn panel_quads_scaled(
        a: &[u8],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &Quads<'_>,
        q: &Scaled<'_>,
        out: &mut [f32],
        ldc: usize,
    ) -> bool {
        // SAFETY: the function checks its arguments.
        unsafe { scaled_quads(a, runs, lda, rows, b, q, out, ldc) };
        true
    }

    #[inline(always)]
    fn requantize(acc: &mut [[i32; NR]], q: &Requant<'_>) {
        match q.once {
            // SAFETY: see above.
            Some(once) => unsafe { requantize_once(acc, q, once) },
            None => Avx2::requantize(acc, q),
        }
    }
    #[inline(always)]
    fn requantize_wide(acc: &mut [[i32; NR]], q: &RequantWide<'_>) {
        Avx2::requantize_wide(acc, q);
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
                Self::store_rounded(acc, q, &mut out[r * ldc..], ldc)
            });
        };
        // SAFETY: the function checks its arguments.
        unsafe { multiply_panel(a, runs, lda, rows, b, q.bias, &Twice { q, once }, out, ldc) }
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
                Self::store_wide(acc, q, &mut out[r * ldc..], ldc)
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
        Avx2::strip_scaled(strip, q, out, stride)
    }

    #[inline(always)]
    fn strip<O: Quantized>(strip: &Strip<'_>, q: &Requant<'_>, out: &mut [O], stride: usize) {
        let Some(once) = q.once.filter(|_| q.saturates::<O>() && strip.taps.list.len() <= 2 * PAIRS) else {
            return strip.each::<Self>(|p, sums| Self::store_rounded(sums, q, &mut out[p * stride..], stride));
        };
        // SAFETY: see above; the function checks its arguments.
        unsafe { rounded_strip(strip, q.bias, &Twice { q, once }, out, stride) }
    }
    #[inline(always)]
    fn strip_wide<O: Quantized>(strip: &Strip<'_>, q: &RequantWide<'_>, out: &mut [O], stride: usize) {
        if !q.saturates::<O>() || strip.taps.list.len() > 2 * PAIRS {
            return strip.each::<Self>(|p, sums| Self::store_wide(sums, q, &mut out[p * stride..], stride));
        }
        // SAFETY: see above; the function checks its arguments.
        unsafe { rounded_strip(strip, &[0; NR], q, out, stride) }
    }

    #[inline(always)]
    fn strip_f32(
        strip: &Strip<'_, f32>,
        bias: &[f32; NR],
        range: (f32, f32),
        out: &mut [f32],
        stride: usize,
        n: usize,
    ) {
        // SAFETY: the function checks its arguments.
        unsafe { float_strip(strip, bias, range, out, stride, n) }
    }

    #[inline(always)]
    fn extremes(x: &[f32]) -> (f32, f32) {
        // SAFETY: see above.
        unsafe { extremes(x) }
    }

    #[inline(always)]
    fn quantize<Q: Whole>(steps: &Steps, x: &[f32], to: &mut [Q], more: i32) {
        // SAFETY: see above.
        unsafe { quantize(steps, x, to, more) }
    }

    #[inline(always)]
    fn sum(x: &mut [[i32; NR]], y: &[[i32; NR]], k: &Sum) {
        Avx2::sum(x, y, k);
    }
    #[inline(always)]
    fn sum_i8(a: &[i8], b: &[i8], out: &mut [i8], k: &Sum) -> usize {
        Avx2::sum_i8(a, b, out, k)
    }
    #[inline(always)]
    fn sum_u8(a: &[u8], b: &[u8], out: &mut [u8], k: &Sum) -> usize {
        Avx2::sum_u8(a, b, out, k)
    }

    #[inline(always)]
    fn narrow_i8(x: &[i32; NR], to: &mut [i8; NR]) {
        // SAFETY: load and store cover the arrays.
        unsafe {
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(_mm512_loadu_si512(x.as_ptr().cast())))
        }
    }
    #[inline(always)]
    fn narrow_u8(x: &[i32; NR], to: &mut [u8; NR]) {
        // SAFETY: load and store cover the arrays; the values are within the type's range.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_loadu_si512(x.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn narrow_i16(x: &[i32; NR], to: &mut [i16; NR]) {
        // SAFETY: load and store cover the arrays.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtsepi32_epi16(_mm512_loadu_si512(x.as_ptr().cast())));
        }
    }
}

/// The first `n` lanes of 16.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    if n >= NR { !0 } else { (1 << n) - 1 }
}

/// [`Isa::extremes`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn extremes(x: &[f32]) -> (f32, f32) {
    let mut ends = [[_mm512_setzero_ps(); 2]; 2];
    // What is no number is the first operand, and so does not count.
    let meet = |[low, high]: [__m512; 2], x| [_mm512_min_ps(x, low), _mm512_max_ps(x, high)];
    let (pairs, rest) = x.as_chunks::<{ 2 * NR }>();
    // SAFETY: the loads are of 32 and of at most 16 floats, in arrays and slices of as many.
    unsafe {
        for pair in pairs {
            ends[0] = meet(ends[0], _mm512_loadu_ps(pair.as_ptr()));
            ends[1] = meet(ends[1], _mm512_loadu_ps(pair.as_ptr().add(NR)));
        }
        for rest in rest.chunks(NR) {
            ends[0] = meet(ends[0], _mm512_maskz_loadu_ps(first(rest.len()), rest.as_ptr()));
        }
    }
    let [[low, high], more] = ends;
    (_mm512_reduce_min_ps(_mm512_min_ps(low, more[0])), _mm512_reduce_max_ps(_mm512_max_ps(high, more[1])))
}

/// [`Isa::quantize`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn quantize<Q: Whole>(steps: &Steps, x: &[f32], to: &mut [Q], more: i32) {
    let (zero, inverse) = (_mm512_set1_ps(steps.zero as f32), _mm512_set1_ps(steps.inverse));
    let (low, high, more) = (_mm512_set1_ps(steps.low), _mm512_set1_ps(steps.high), _mm512_set1_epi32(more));
    let (sign, half) = (_mm512_set1_ps(-0.0), _mm512_set1_ps(ALMOST_HALF));
    let whole = |x| {
        let v = _mm512_add_ps(zero, _mm512_mul_ps(x, inverse));
        let v = _mm512_add_ps(v, _mm512_or_ps(half, _mm512_and_ps(v, sign)));
        // What is no number is the first operand, and becomes the second.
        let v = _mm512_min_ps(_mm512_max_ps(v, low), high);
        _mm512_add_epi32(_mm512_cvttps_epi32(v), more)
    };
    let n = x.len().min(to.len());
    let (blocks, rest) = x[..n].as_chunks::<NR>();
    let (out, left) = to[..n].as_chunks_mut::<NR>();
    // SAFETY: as many bytes or words are written as the blocks have elements, and under the mask as are left.
    unsafe {
        for (x, out) in blocks.iter().zip(out) {
            let v = whole(_mm512_loadu_ps(x.as_ptr()));
            match size_of::<Q>() {
                1 => _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)),
                _ => _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(v)),
            }
        }
        if !rest.is_empty() {
            let mask = first(rest.len());
            let v = whole(_mm512_maskz_loadu_ps(mask, rest.as_ptr()));
            match size_of::<Q>() {
                1 => _mm_mask_storeu_epi8(left.as_mut_ptr().cast(), mask, _mm512_cvtepi32_epi8(v)),
                _ => _mm256_mask_storeu_epi16(left.as_mut_ptr().cast(), mask, _mm512_cvtepi32_epi16(v)),
            }
        }
    }
}

type FloatTile = unsafe fn(&[f32], &[usize], usize, &[LineF32], &[f32; NR], (f32, f32), &mut [f32], usize, usize);
type IntTile<L> = unsafe fn(&[i16], &[usize], usize, &[L], &mut [[i32; NR]; MAX_MR]);

// One copy of each, as with AVX2.
static FLOAT_TILES: [FloatTile; 10] = [
    float_tile::<1, 8>,
    float_tile::<2, 4>,
    float_tile::<3, 2>,
    float_tile::<4, 2>,
    float_tile::<5, 2>,
    float_tile::<6, 1>,
    float_tile::<7, 1>,
    float_tile::<8, 1>,
    float_tile::<9, 1>,
    float_tile::<10, 1>,
];
static NARROW_TILES: [IntTile<LineI8>; MAX_MR] =
    [int_tile::<1, _>, int_tile::<2, _>, int_tile::<3, _>, int_tile::<4, _>];
static WIDE_TILES: [IntTile<LineI16>; MAX_MR] =
    [int_tile::<1, _>, int_tile::<2, _>, int_tile::<3, _>, int_tile::<4, _>];

/// R rows by 16 columns, the depth in U interleaved sums (so that few rows still keep the multipliers busy).
///
/// # Safety
/// AVX-512; from each of `runs` on, `a` holds R rows of the run's share of `b`, `lda` apart; `out` holds R rows of
/// `columns`, `ldc` apart.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn float_tile<const R: usize, const U: usize>(
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
    // SAFETY: the caller's promise bounds every pointer below; masked stores do not touch what is masked.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); R]; U];
        for r in 0..R {
            acc[0][r] = _mm512_loadu_ps(bias.as_ptr());
        }
        let length = b.len() / runs.len().max(1);
        let mut bp = b.as_ptr().cast::<f32>();
        for run in runs {
            let ap = a.as_ptr().add(*run);
            let mut k = 0;
            while k + U <= length {
                for u in 0..U {
                    let w = _mm512_load_ps(bp.add(NR * u));
                    for r in 0..R {
                        acc[u][r] = _mm512_fmadd_ps(_mm512_set1_ps(*ap.add(r * lda + k + u)), w, acc[u][r]);
                    }
                }
                bp = bp.add(NR * U);
                k += U;
            }
            while U > 1 && k < length {
                let w = _mm512_load_ps(bp);
                for r in 0..R {
                    acc[0][r] = _mm512_fmadd_ps(_mm512_set1_ps(*ap.add(r * lda + k)), w, acc[0][r]);
                }
                bp = bp.add(NR);
                k += 1;
            }
        }
        let (low, high) = (_mm512_set1_ps(range.0), _mm512_set1_ps(range.1));
        let (mask, out) = (first(columns), out.as_mut_ptr());
        for r in 0..R {
            let mut v = acc[0][r];
            for u in 1..U {
                v = _mm512_add_ps(v, acc[u][r]);
            }
            // The value is the second operand: NaN stays NaN.
            let v = _mm512_min_ps(high, _mm512_max_ps(low, v));
            if columns >= NR {
                _mm512_storeu_ps(out.add(r * ldc), v);
            } else {
                _mm512_mask_storeu_ps(out.add(r * ldc), mask, v);
            }
        }
    }
}

/// [`Isa::strip_f32`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn float_strip(strip: &Strip<'_, f32>, bias: &[f32; NR], range: (f32, f32), out: &mut [f32], stride: usize, n: usize) {
    let (pixels, step) = (strip.pixels, strip.step);
    if pixels == 0 || strip.rows == 0 {
        return;
    }
    strip.check();
    assert!(out.len() >= (pixels * strip.rows - 1) * stride + n && n <= NR);
    // Neighbouring pixels share elements where a filter's columns are as far apart as they are.
    let taps = &strip.taps.list[..strip.taps.count];
    let shared = |k: usize| {
        let together = |t: &[(isize, usize)]| t.windows(2).all(|t| t[1].0 == t[0].0 + step as isize);
        taps.len().is_multiple_of(k) && taps.chunks_exact(k).all(together)
    };
    let lines: unsafe fn(&Strip<'_, f32>, &[f32; NR], (f32, f32), &mut [f32], usize, usize) = if shared(5) {
        float_lines::<5>
    } else if shared(3) {
        float_lines::<3>
    } else {
        float_lines::<1>
    };
    // SAFETY: the asserts cover the lowest and the highest element that any tap of any pixel reads, every line, and what
    // is written.
    unsafe { lines(strip, bias, range, out, stride, n) }
}

/// The same; taps come in groups of K, in which each reads a step after the one before.
///
/// # Safety
/// AVX-512; windows can be read 16 elements at a time, there are as many lines as the taps name, and at `out` `n`
/// elements of each pixel can be written, `stride` apart.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn float_lines<const K: usize>(
    strip: &Strip<'_, f32>,
    bias: &[f32; NR],
    range: (f32, f32),
    out: &mut [f32],
    stride: usize,
    n: usize,
) {
    let (pixels, step) = (strip.pixels, strip.step);
    // SAFETY: the caller's promise.
    unsafe {
        for r in 0..strip.rows {
            let x = strip.image.as_ptr().add(strip.first + r * strip.line);
            let to = out.as_mut_ptr().add(r * pixels * stride);
            let mut p = 0;
            while p + 8 <= pixels {
                float_pixels::<8, K>(x.add(p * step), strip, bias, range, to.add(p * stride), stride, n);
                p += 8;
            }
            let (x, to) = (x.add(p * step), to.add(p * stride));
            match pixels - p {
                7 => float_pixels::<7, K>(x, strip, bias, range, to, stride, n),
                6 => float_pixels::<6, K>(x, strip, bias, range, to, stride, n),
                5 => float_pixels::<5, K>(x, strip, bias, range, to, stride, n),
                4 => float_pixels::<4, K>(x, strip, bias, range, to, stride, n),
                3 => float_pixels::<3, K>(x, strip, bias, range, to, stride, n),
                2 => float_pixels::<2, K>(x, strip, bias, range, to, stride, n),
                1 => float_pixels::<1, K>(x, strip, bias, range, to, stride, n),
                _ => {}
            }
        }
    }
}

/// P pixels of a strip, a step apart.
///
/// # Safety
/// AVX-512; 16 elements can be read at each tap from `x` and from P - 1 places after it, a step apart, there are as many
/// lines as the taps name, and at `out` P times `n` elements can be written, `stride` apart.
#[inline(always)]
unsafe fn float_pixels<const P: usize, const K: usize>(
    x: *const f32,
    strip: &Strip<'_, f32>,
    bias: &[f32; NR],
    range: (f32, f32),
    out: *mut f32,
    stride: usize,
    n: usize,
) {
    const { assert!(P <= 8 && K <= 5) };
    // SAFETY: the caller's promise: a group's last tap reads as far as P - 1 steps after its own place, which is K - 1
    // steps after the first's. Masked stores do not touch what is masked.
    unsafe {
        let mut sum = [_mm512_loadu_ps(bias.as_ptr()); P];
        let line = |l: usize| _mm512_loadu_ps(strip.lines.as_ptr().add(l).cast());
        for group in strip.taps.list[..strip.taps.count].as_chunks::<K>().0 {
            let x = x.wrapping_offset(group[0].0);
            if K == 1 {
                let w = line(group[0].1);
                for p in 0..P {
                    sum[p] = _mm512_fmadd_ps(_mm512_loadu_ps(x.add(p * strip.step)), w, sum[p]);
                }
                continue;
            }
            let mut seen = [_mm512_setzero_ps(); 12];
            for i in 0..P + K - 1 {
                seen[i] = _mm512_loadu_ps(x.add(i * strip.step));
            }
            for k in 0..K {
                let w = line(group[k].1);
                for p in 0..P {
                    sum[p] = _mm512_fmadd_ps(seen[p + k], w, sum[p]);
                }
            }
        }
        let (low, high) = (_mm512_set1_ps(range.0), _mm512_set1_ps(range.1));
        for p in 0..P {
            // The value is the second operand: NaN stays NaN.
            let v = _mm512_min_ps(high, _mm512_max_ps(low, sum[p]));
            if n >= NR {
                _mm512_storeu_ps(out.add(p * stride), v);
            } else {
                _mm512_mask_storeu_ps(out.add(p * stride), first(n), v);
            }
        }
    }
}

/// A line of packed integers, as words.
trait Line: Copy {
    /// # Safety
    /// AVX-512.
    unsafe fn words(&self) -> __m512i;
}
impl Line for LineI8 {
    #[inline(always)]
    unsafe fn words(&self) -> __m512i {
        // SAFETY: a line's 32 bytes.
        unsafe { _mm512_cvtepi8_epi16(_mm256_load_si256(self.0.as_ptr().cast())) }
    }
}
impl Line for LineI16 {
    #[inline(always)]
    unsafe fn words(&self) -> __m512i {
        // SAFETY: a line's 64 bytes.
        unsafe { _mm512_load_si512(self.0.as_ptr().cast()) }
    }
}

/// R rows by 16 columns; see [`float_tile`].
///
/// # Safety
/// AVX-512; from each of `runs` on, `a` holds R rows of the run's share of pairs, `lda` apart.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn int_tile<const R: usize, L: Line>(
    a: &[i16],
    runs: &[usize],
    lda: usize,
    b: &[L],
    acc: &mut [[i32; NR]; MAX_MR],
) {
    // SAFETY: the caller's promise; each store fills an array of 16.
    unsafe {
        let sum = int_sums::<R, L>(a.as_ptr(), runs, lda, b, &[0; NR]);
        for r in 0..R {
            _mm512_storeu_si512(acc[r].as_mut_ptr().cast(), sum[r]);
        }
    }
}

/// Sums of R rows by 16 columns, from `bias` on.
///
/// # Safety
/// AVX-512; from each of `runs` on, `a` holds R rows of the run's share of pairs, `lda` apart.
#[inline(always)]
unsafe fn int_sums<const R: usize, L: Line>(
    a: *const i16,
    runs: &[usize],
    lda: usize,
    b: &[L],
    bias: &[i32; NR],
) -> [__m512i; R] {
    // SAFETY: the caller's promise bounds every pointer below.
    unsafe {
        let mut sum = [_mm512_loadu_si512(bias.as_ptr().cast()); R];
        let length = b.len() / runs.len().max(1);
        let mut lines = b.as_ptr();
        // Few rows take turns with as many sums more, since each waits for the one before.
        let mut more = [_mm512_setzero_si512(); R];
        for run in runs {
            let ap = a.add(*run);
            let mut k = 0;
            while R < 4 && k + 2 <= length {
                let (v, w) = ((*lines).words(), (*lines.add(1)).words());
                for r in 0..R {
                    let x = ap.add(r * lda + 2 * k).cast::<i32>();
                    sum[r] = _mm512_dpwssd_epi32(sum[r], _mm512_set1_epi32(x.read_unaligned()), v);
                    more[r] = _mm512_dpwssd_epi32(more[r], _mm512_set1_epi32(x.add(1).read_unaligned()), w);
                }
                lines = lines.add(2);
                k += 2;
            }
            while k < length {
                let w = (*lines).words();
                for r in 0..R {
                    let x = ap.add(r * lda + 2 * k).cast::<i32>();
                    sum[r] = _mm512_dpwssd_epi32(sum[r], _mm512_set1_epi32(x.read_unaligned()), w);
                }
                lines = lines.add(1);
                k += 1;
            }
        }
        if R < 4 {
            for r in 0..R {
                sum[r] = _mm512_add_epi32(sum[r], more[r]);
            }
        }
        sum
    }
}

/// How sums become values, before zero point and limits.
trait Rounding {
    type Constants: Copy + Round;
    /// # Safety
    /// AVX-512.
    unsafe fn constants(&self) -> Self::Constants;
    /// Zero point, limits and number of columns.
    fn limits(&self) -> (i32, i32, i32, usize);
}
trait Round {
    /// # Safety
    /// AVX-512.
    unsafe fn round(&self, x: __m512i) -> __m512i;
}

/// The odd lanes of 32 bits, each where its even neighbour was.
#[inline]
#[target_feature(enable = "avx512f")]
fn odd(x: __m512i) -> __m512i {
    _mm512_shuffle_epi32::<0b11_11_01_01>(x)
}

/// The even columns of constants that lie [`apart`], and the odd ones.
///
/// # Safety
/// AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_apart(x: &[i64; NR]) -> [__m512i; 2] {
    // SAFETY: four loads of four lanes cover an array of 16.
    unsafe {
        let load = |at: usize| _mm256_loadu_si256(x.as_ptr().add(at).cast());
        let both = |at: usize| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load(at)), load(at + 8));
        [both(0), both(4)]
    }
}

/// [`Once`] and what goes with it.
struct Twice<'a> {
    q: &'a Requant<'a>,
    once: &'a Once,
}

#[derive(Clone, Copy)]
struct TwiceSixteen {
    value: [__m512i; 2],
    up: [__m512i; 2],
    right: __m512i,
}

impl Rounding for Twice<'_> {
    type Constants = TwiceSixteen;
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn constants(&self) -> TwiceSixteen {
        // SAFETY: the loads cover arrays of 16.
        unsafe {
            let value = _mm512_loadu_si512(self.q.value.as_ptr().cast());
            let right = _mm512_loadu_si512(self.once.right.as_ptr().cast());
            TwiceSixteen { value: [value, odd(value)], up: load_apart(&self.once.up), right }
        }
    }
    #[inline(always)]
    fn limits(&self) -> (i32, i32, i32, usize) {
        (self.q.zero, self.q.low, self.q.high, self.q.columns)
    }
}

impl Round for TwiceSixteen {
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn round(&self, x: __m512i) -> __m512i {
        let down = _mm512_set1_epi64(1 << 31);
        // The constant is 2^31 less where the product is negative.
        let add = |x: __m512i, i: usize| {
            let x = _mm512_mul_epi32(x, self.value[i]);
            let sum = _mm512_add_epi64(x, self.up[i]);
            _mm512_mask_sub_epi64(sum, _mm512_movepi64_mask(x), sum, down)
        };
        let (even, odd) = (add(x, 0), add(odd(x), 1));
        let x = _mm512_mask_shuffle_epi32::<0b11_11_01_01>(odd, 0x5555, even);
        _mm512_srav_epi32(x, self.right)
    }
}

/// [`RequantWide`] of 16 columns, the even and the odd ones.
#[derive(Clone, Copy)]
struct WideSixteen {
    value: [__m512i; 2],
    offset: [__m512i; 2],
    shift: [__m512i; 2],
}

impl Rounding for RequantWide<'_> {
    type Constants = WideSixteen;
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn constants(&self) -> WideSixteen {
        // SAFETY: the loads cover arrays of 16.
        unsafe {
            let value = _mm512_loadu_si512(self.value.as_ptr().cast());
            WideSixteen { value: [value, odd(value)], offset: load_apart(self.offset), shift: load_apart(self.shift) }
        }
    }
    #[inline(always)]
    fn limits(&self) -> (i32, i32, i32, usize) {
        (0, self.low, self.high, self.columns)
    }
}

impl Round for WideSixteen {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(&self, x: __m512i) -> __m512i {
        // Only the low half of the quotient counts: a logical shift by at most 32 gives it.
        let quotient = |x: __m512i, i: usize| {
            _mm512_srlv_epi64(_mm512_add_epi64(_mm512_mul_epi32(x, self.value[i]), self.offset[i]), self.shift[i])
        };
        let (even, odd) = (quotient(x, 0), quotient(odd(x), 1));
        _mm512_mask_shuffle_epi32::<0b10_10_00_00>(even, 0xAAAA, odd)
    }
}

/// [`Isa::requantize`] where both roundings are one.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn requantize_once(acc: &mut [[i32; NR]], q: &Requant<'_>, once: &Once) {
    // SAFETY: the loads and stores cover arrays of 16.
    unsafe {
        let constants = Twice { q, once }.constants();
        let bias = _mm512_loadu_si512(q.bias.as_ptr().cast());
        let (zero, low, high) = (_mm512_set1_epi32(q.zero), _mm512_set1_epi32(q.low), _mm512_set1_epi32(q.high));
        for acc in acc {
            let x = constants.round(_mm512_add_epi32(_mm512_loadu_si512(acc.as_ptr().cast()), bias));
            let x = _mm512_min_epi32(_mm512_max_epi32(_mm512_add_epi32(x, zero), low), high);
            _mm512_storeu_si512(acc.as_mut_ptr().cast(), x);
        }
    }
}

/// What follows rounding: the zero point as words, limits as words or bytes.
#[derive(Clone, Copy)]
struct Limits {
    zero: __m512i,
    low: __m512i,
    high: __m512i,
    columns: usize,
}

impl Limits {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new<O: Quantized>((zero, low, high, columns): (i32, i32, i32, usize)) -> Limits {
        let each = |x: i32| match size_of::<O>() {
            2 => _mm512_set1_epi16(x as i16),
            _ => _mm512_set1_epi8(x as i8),
        };
        Limits { zero: _mm512_set1_epi16(zero as i16), low: each(low), high: each(high), columns }
    }
}

/// Rounds sums of R (at most 8) rows and stores what becomes of them.
///
/// # Safety
/// AVX-512; at `out`, R rows of as many elements as there are columns, `ldc` apart, can be written. The limits are
/// within the type's range.
#[inline(always)]
unsafe fn round_rows<const R: usize, E: Round, O: Quantized>(
    mut sum: [__m512i; R],
    constants: &E,
    limits: &Limits,
    out: *mut O,
    ldc: usize,
) {
    // SAFETY: the caller's promise; masked stores do not touch what is masked.
    unsafe {
        for r in 0..R {
            sum[r] = constants.round(sum[r]);
        }
        let Limits { zero, low, high, columns } = *limits;
        if size_of::<O>() == 2 {
            let (low, high) = (_mm512_castsi512_si256(low), _mm512_castsi512_si256(high));
            for r in 0..R {
                let x = _mm256_min_epi16(_mm256_max_epi16(_mm512_cvtsepi32_epi16(sum[r]), low), high);
                let to = out.add(r * ldc);
                if columns >= NR {
                    _mm256_storeu_si256(to.cast(), x);
                } else {
                    _mm256_mask_storeu_epi16(to.cast(), first(columns), x);
                }
            }
            return;
        }
        // Four rows are packed at a time; packing works within quarters, of which each then holds a piece of each row.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        for r in (0..R).step_by(4) {
            let row = |i: usize| sum[(r + i).min(R - 1)];
            let words = |x, y| _mm512_adds_epi16(_mm512_packs_epi32(x, y), zero);
            let (x, y) = (words(row(0), row(1)), words(row(2), row(3)));
            let bytes = if O::LOW < 0 {
                _mm512_min_epi8(_mm512_max_epi8(_mm512_packs_epi16(x, y), low), high)
            } else {
                _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(x, y), low), high)
            };
            let bytes = _mm512_permutexvar_epi32(order, bytes);
            let store = |i: usize, x: __m128i| {
                if r + i < R {
                    let to = out.add((r + i) * ldc);
                    if columns >= NR {
                        _mm_storeu_si128(to.cast(), x);
                    } else {
                        _mm_mask_storeu_epi8(to.cast(), first(columns), x);
                    }
                }
            };
            store(0, _mm512_castsi512_si128(bytes));
            store(1, _mm512_extracti32x4_epi32::<1>(bytes));
            store(2, _mm512_extracti32x4_epi32::<2>(bytes));
            store(3, _mm512_extracti32x4_epi32::<3>(bytes));
        }
    }
}

/// [`Isa::panel`] and [`Isa::panel_wide`]; sums begin at `bias`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
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
            Panel::Narrow(b) => rounded_panel(a, runs, lda, rows, b, bias, rounding, out, ldc),
            Panel::Wide(b) => rounded_panel(a, runs, lda, rows, b, bias, rounding, out, ldc),
        }
    }
}

/// # Safety
/// AVX-512; from each of `runs` on, `a` holds the run's share of pairs of `rows` rows, `lda` apart; `out` holds as many
/// rows of outputs, `ldc` apart.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn rounded_panel<L: Line, G: Rounding, O: Quantized>(
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
    // SAFETY: the caller's promise bounds every pointer below.
    unsafe {
        let (constants, limits) = (rounding.constants(), Limits::new::<O>(rounding.limits()));
        let mut r = 0;
        while r + 8 <= rows {
            let sum = int_sums::<8, L>(a.add(r * lda), runs, lda, b, bias);
            round_rows::<8, _, O>(sum, &constants, &limits, out.add(r * ldc), ldc);
            r += 8;
        }
        if r + 4 <= rows {
            let sum = int_sums::<4, L>(a.add(r * lda), runs, lda, b, bias);
            round_rows::<4, _, O>(sum, &constants, &limits, out.add(r * ldc), ldc);
            r += 4;
        }
        let (a, out) = (a.add(r * lda), out.add(r * ldc));
        match rows - r {
            3 => round_rows::<3, _, O>(int_sums::<3, L>(a, runs, lda, b, bias), &constants, &limits, out, ldc),
            2 => round_rows::<2, _, O>(int_sums::<2, L>(a, runs, lda, b, bias), &constants, &limits, out, ldc),
            1 => round_rows::<1, _, O>(int_sums::<1, L>(a, runs, lda, b, bias), &constants, &limits, out, ldc),
            _ => {}
        }
    }
}

/// [`Scaled`] in registers, with the scales of one piece.
struct Scaling<'a> {
    of: &'a Scaled<'a>,
    scale: __m512,
    /// The scales times the piece's.
    now: __m512,
    /// The sums of the columns, where the rows are bytes with a zero point, and these times the piece's.
    sums: __m512i,
    less: __m512i,
    zero: i32,
    bias: __m512,
    range: [__m512; 2],
    /// The first row of the next piece.
    until: usize,
}

impl<'a> Scaling<'a> {
    #[inline(always)]
    fn new(of: &'a Scaled<'a>, sums: &[i32; NR]) -> Scaling<'a> {
        // SAFETY: the function is part of functions for AVX-512; the loads cover arrays of 16.
        unsafe {
            let (sums, less) = (_mm512_loadu_si512(sums.as_ptr().cast()), _mm512_setzero_si512());
            let (scale, bias) = (_mm512_loadu_ps(of.scale.as_ptr()), _mm512_loadu_ps(of.bias.as_ptr()));
            let range = [_mm512_set1_ps(of.range.0), _mm512_set1_ps(of.range.1)];
            Scaling { of, scale, now: scale, sums, less, zero: 0, bias, range, until: 0 }
        }
    }

    /// Comes to a row, counted from the first.
    #[inline(always)]
    fn come_to(&mut self, row: usize) {
        if let Some((scale, zero)) = self.of.piece(row, &mut self.until) {
            // SAFETY: see above.
            unsafe {
                self.now = _mm512_mul_ps(self.scale, _mm512_set1_ps(scale));
                // Mostly the same for all: a multiplication that takes ten times as long as the other.
                if zero != self.zero {
                    (self.zero, self.less) = (zero, _mm512_mullo_epi32(self.sums, _mm512_set1_epi32(zero)));
                }
            }
        }
    }

    /// Stores what becomes of the sums of R rows from row `row` on.
    ///
    /// # Safety
    /// AVX-512; at `out`, R rows of as many floats as there are columns, `ldc` apart, can be written.
    #[inline(always)]
    unsafe fn store<const R: usize>(&mut self, row: usize, sum: [__m512i; R], out: *mut f32, ldc: usize) {
        for r in 0..R {
            self.come_to(row + r);
            // SAFETY: the caller's promise; masked stores do not touch what is masked.
            unsafe {
                let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[r], self.less));
                let x = _mm512_add_ps(_mm512_mul_ps(sum, self.now), self.bias);
                // The value is the second operand: NaN stays NaN.
                let x = _mm512_min_ps(self.range[1], _mm512_max_ps(self.range[0], x));
                if self.of.columns >= NR {
                    _mm512_storeu_ps(out.add(r * ldc), x);
                } else {
                    _mm512_mask_storeu_ps(out.add(r * ldc), first(self.of.columns), x);
                }
            }
        }
    }
}

/// [`Isa::panel_scaled`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
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
            Panel::Narrow(b) => scaled_panel(a, runs, lda, rows, b, q, out, ldc),
            Panel::Wide(b) => scaled_panel(a, runs, lda, rows, b, q, out, ldc),
        }
    }
}

/// # Safety
/// AVX-512; from each of `runs` on, `a` holds the run's share of pairs of `rows` rows, `lda` apart; `out` holds as many
/// rows of outputs, `ldc` apart.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn scaled_panel<L: Line>(
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
    let mut scaling = Scaling::new(q, &[0; NR]);
    // SAFETY: the caller's promise bounds every pointer below.
    unsafe {
        let mut r = 0;
        while r + 8 <= rows {
            let sum = int_sums::<8, L>(a.add(r * lda), runs, lda, b, &[0; NR]);
            scaling.store(r, sum, out.add(r * ldc), ldc);
            r += 8;
        }
        if r + 4 <= rows {
            let sum = int_sums::<4, L>(a.add(r * lda), runs, lda, b, &[0; NR]);
            scaling.store(r, sum, out.add(r * ldc), ldc);
            r += 4;
        }
        let (a, out) = (a.add(r * lda), out.add(r * ldc));
        match rows - r {
            3 => scaling.store(r, int_sums::<3, L>(a, runs, lda, b, &[0; NR]), out, ldc),
            2 => scaling.store(r, int_sums::<2, L>(a, runs, lda, b, &[0; NR]), out, ldc),
            1 => scaling.store(r, int_sums::<1, L>(a, runs, lda, b, &[0; NR]), out, ldc),
            _ => {}
        }
    }
}

/// A pair of taps: how far each reads from the first element under the window, and the paired lines of the filter.
#[derive(Clone, Copy)]
struct Pair {
    offsets: [isize; 2],
    weights: __m512i,
}

/// The words of two vectors side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn pair(a: __m256i, b: __m256i) -> __m512i {
    let order = _mm512_set_epi16(
        47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1,
        32, 0,
    );
    _mm512_permutex2var_epi16(_mm512_castsi256_si512(a), order, _mm512_castsi256_si512(b))
}

/// [`Isa::strip`] and [`Isa::strip_wide`]; sums begin at `bias`.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn rounded_strip<G: Rounding, O: Quantized>(
    strip: &Strip<'_>,
    bias: &[i32; NR],
    rounding: &G,
    out: &mut [O],
    stride: usize,
) {
    let (limits, pixels, step) = (Limits::new::<O>(rounding.limits()), strip.pixels, strip.step);
    if pixels == 0 || strip.rows == 0 {
        return;
    }
    strip.check();
    assert!(strip.taps.list.len() <= 2 * PAIRS);
    assert!(out.len() >= (pixels * strip.rows - 1) * stride + limits.columns && limits.columns <= NR);
    // SAFETY: the asserts cover the lowest and the highest element that any tap of any pixel reads, every line, and
    // what is written; the loads cover arrays of 16; as many pairs as are counted have been written.
    unsafe {
        let constants = rounding.constants();
        let start = _mm512_loadu_si512(bias.as_ptr().cast());
        let mut room = [MaybeUninit::<Pair>::uninit(); PAIRS];
        let mut count = 0;
        for (room, &[(o0, l0), (o1, l1)]) in room.iter_mut().zip(strip.taps.list.as_chunks::<2>().0) {
            let line = |l: usize| _mm256_loadu_si256(strip.lines.as_ptr().add(l).cast());
            room.write(Pair { offsets: [o0, o1], weights: pair(line(l0), line(l1)) });
            count += 1;
        }
        let pairs = std::slice::from_raw_parts(room.as_ptr().cast::<Pair>(), count);
        for r in 0..strip.rows {
            let x = strip.image.as_ptr().add(strip.first + r * strip.line);
            let to = out.as_mut_ptr().add(r * pixels * stride);
            let mut p = 0;
            while p + 8 <= pixels {
                let sum = pair_sums::<8>(x.add(p * step), step, pairs, start);
                round_rows::<8, _, O>(sum, &constants, &limits, to.add(p * stride), stride);
                p += 8;
            }
            if p + 4 <= pixels {
                let sum = pair_sums::<4>(x.add(p * step), step, pairs, start);
                round_rows::<4, _, O>(sum, &constants, &limits, to.add(p * stride), stride);
                p += 4;
            }
            let (x, to) = (x.add(p * step), to.add(p * stride));
            match pixels - p {
                3 => round_rows::<3, _, O>(pair_sums::<3>(x, step, pairs, start), &constants, &limits, to, stride),
                2 => round_rows::<2, _, O>(pair_sums::<2>(x, step, pairs, start), &constants, &limits, to, stride),
                1 => round_rows::<1, _, O>(pair_sums::<1>(x, step, pairs, start), &constants, &limits, to, stride),
                _ => {}
            }
        }
    }
}

/// Sums of P pixels, `step` apart.
///
/// # Safety
/// AVX-512; 16 elements can be read at each offset from `x` and from P - 1 places after it, `step` apart.
#[inline(always)]
unsafe fn pair_sums<const P: usize>(x: *const i16, step: usize, pairs: &[Pair], start: __m512i) -> [__m512i; P] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = [start; P];
        for of in pairs {
            let (x0, x1) = (x.wrapping_offset(of.offsets[0]), x.wrapping_offset(of.offsets[1]));
            for p in 0..P {
                let a = _mm256_loadu_si256(x0.add(p * step).cast());
                let b = _mm256_loadu_si256(x1.add(p * step).cast());
                sum[p] = _mm512_dpwssd_epi32(sum[p], pair(a, b), of.weights);
            }
        }
        sum
    }
}

/// Lines up to which a row's elements are summed beside its products, 16 times the same: fewer than it takes to add up a
/// register.
const BESIDE: usize = 12;

/// Sums of R rows of bytes by 16 columns; see [`Quads`].
///
/// # Safety
/// AVX-512; from each of `runs` on, `a` holds R rows of the run's share of lines, `lda` apart.
#[inline(always)]
unsafe fn quad_sums<const R: usize>(
    a: *const u8,
    runs: &[usize],
    lda: usize,
    b: &Quads<'_>,
    start: __m512i,
) -> [__m512i; R] {
    // SAFETY: the caller's promise.
    unsafe {
        if b.zero == 0 {
            return quad_products::<R, false>(a, runs, lda, b, [start; R]);
        }
        if b.lines.len() <= BESIDE {
            return quad_products::<R, true>(a, runs, lda, b, [start; R]);
        }
        let mut sum = [start; R];
        for r in 0..R {
            let all = sum_of_bytes(a.add(r * lda), runs, b.run);
            sum[r] = _mm512_sub_epi32(start, _mm512_set1_epi32(all.wrapping_mul(b.zero)));
        }
        quad_products::<R, false>(a, runs, lda, b, sum)
    }
}

/// The same from `sum` on. `BESIDE`: with what the zero point of the weights takes.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn quad_products<const R: usize, const BESIDE: bool>(
    a: *const u8,
    runs: &[usize],
    lda: usize,
    b: &Quads<'_>,
    mut sum: [__m512i; R],
) -> [__m512i; R] {
    // SAFETY: the caller's promise bounds every pointer below.
    unsafe {
        let length = b.lines.len() / runs.len().max(1);
        let mut lines = b.lines.as_ptr();
        let line = |l: *const LineQuad| _mm512_load_si512(l.cast());
        let ones = _mm512_set1_epi8(1);
        // Of the last four elements of a run, those that count.
        let last = _mm512_set1_epi32(0x0101_0101 >> (8 * (4 * length - b.run).min(3)));
        let mut all = [_mm512_setzero_si512(); R];
        // Few rows take turns with sums more, since each waits for the one before: two take two, one takes four.
        let mut more = [[_mm512_setzero_si512(); R]; 3];
        let turns = match R {
            1 => 4,
            2 | 3 => 2,
            _ => 1,
        };
        for run in runs {
            let ap = a.add(*run);
            let mut k = 0;
            while turns > 1 && !BESIDE && k + turns <= length {
                for t in 0..turns {
                    let w = line(lines.add(t));
                    for r in 0..R {
                        let x = _mm512_set1_epi32(ap.add(r * lda + 4 * (k + t)).cast::<i32>().read_unaligned());
                        let to = if t == 0 { &mut sum[r] } else { &mut more[t - 1][r] };
                        *to = _mm512_dpbusd_epi32(*to, x, w);
                    }
                }
                lines = lines.add(turns);
                k += turns;
            }
            while k < length {
                let w = line(lines);
                let ones = if k + 1 == length { last } else { ones };
                for r in 0..R {
                    let x = _mm512_set1_epi32(ap.add(r * lda + 4 * k).cast::<i32>().read_unaligned());
                    sum[r] = _mm512_dpbusd_epi32(sum[r], x, w);
                    if BESIDE {
                        all[r] = _mm512_dpbusd_epi32(all[r], x, ones);
                    }
                }
                lines = lines.add(1);
                k += 1;
            }
        }
        let zero = _mm512_set1_epi32(b.zero);
        for r in 0..R {
            if BESIDE {
                sum[r] = _mm512_sub_epi32(sum[r], _mm512_mullo_epi32(all[r], zero));
            } else if turns > 1 {
                let more = _mm512_add_epi32(_mm512_add_epi32(more[0][r], more[1][r]), more[2][r]);
                sum[r] = _mm512_add_epi32(sum[r], more);
            }
        }
        sum
    }
}

/// The sum of the first `n` bytes of each run.
///
/// # Safety
/// AVX-512; as many bytes can be read.
#[inline(always)]
unsafe fn sum_of_bytes(a: *const u8, runs: &[usize], n: usize) -> i32 {
    // SAFETY: the caller's promise; masked loads do not touch what is masked.
    unsafe {
        let (mut sum, ones) = (_mm512_setzero_si512(), _mm512_set1_epi8(1));
        let rest = n % 64;
        let mask = (1u64 << rest) - 1;
        for run in runs {
            let x = a.add(*run);
            for k in 0..n / 64 {
                sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(x.add(64 * k).cast()), ones);
            }
            if rest > 0 {
                sum = _mm512_dpbusd_epi32(sum, _mm512_maskz_loadu_epi8(mask, x.add(n - rest).cast()), ones);
            }
        }
        _mm512_reduce_add_epi32(sum)
    }
}

/// Does `body` for tiles of at most eight rows, the last two of them about even: a few rows by themselves take nearly
/// as long as eight. `r` is the tile's first row, `R` how many it has.
macro_rules! in_tiles {
    ($rows:expr, $r:ident, $R:ident, $body:block) => {
        let mut $r = 0;
        while $r < $rows {
            let n = match $rows - $r {
                left @ ..=8 => left,
                left @ 9..16 => left.div_ceil(2),
                _ => 8,
            };
            in_tiles!(n, $R, $body, 1 2 3 4 5 6 7 8);
            $r += n;
        }
    };
    ($n:ident, $R:ident, $body:block, $($k:literal)*) => {
        match $n {
            $($k => {
                const $R: usize = $k;
                $body
            })*
            _ => {}
        }
    };
}

/// [`Isa::tile_quads`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn quad_tile(a: &[u8], runs: &[usize], lda: usize, rows: usize, b: &Quads<'_>, acc: &mut [[i32; NR]; MAX_QUADS]) {
    b.check(a, runs, lda, rows);
    assert!(rows <= MAX_QUADS);
    // SAFETY: the checks cover every run of every row of `a`; loads and stores cover arrays of 16.
    unsafe {
        let start = _mm512_loadu_si512(b.start.as_ptr().cast());
        let mut r = 0;
        while r + 4 <= rows {
            let sum = quad_sums::<4>(a.as_ptr().add(r * lda), runs, lda, b, start);
            for (acc, sum) in acc[r..].iter_mut().zip(sum) {
                _mm512_storeu_si512(acc.as_mut_ptr().cast(), sum);
            }
            r += 4;
        }
        while r < rows {
            let [sum] = quad_sums::<1>(a.as_ptr().add(r * lda), runs, lda, b, start);
            _mm512_storeu_si512(acc[r].as_mut_ptr().cast(), sum);
            r += 1;
        }
    }
}

/// [`Isa::panel_quads`]; sums begin at `bias` and where the panel says.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn rounded_quads<G: Rounding, O: Quantized>(
    a: &[u8],
    runs: &[usize],
    lda: usize,
    rows: usize,
    b: &Quads<'_>,
    bias: &[i32; NR],
    rounding: &G,
    out: &mut [O],
    ldc: usize,
) {
    let limits = Limits::new::<O>(rounding.limits());
    if rows == 0 {
        return;
    }
    b.check(a, runs, lda, rows);
    assert!(out.len() >= (rows - 1) * ldc + limits.columns && limits.columns <= NR);
    let (a, out) = (a.as_ptr(), out.as_mut_ptr());
    // SAFETY: the checks cover every run of every row of `a`, and `out`; the loads cover arrays of 16.
    unsafe {
        let constants = rounding.constants();
        let start = _mm512_loadu_si512(b.start.as_ptr().cast());
        let start = _mm512_add_epi32(start, _mm512_loadu_si512(bias.as_ptr().cast()));
        in_tiles!(rows, r, R, {
            let sum = quad_sums::<R>(a.add(r * lda), runs, lda, b, start);
            round_rows::<R, _, O>(sum, &constants, &limits, out.add(r * ldc), ldc);
        });
    }
}

/// [`Isa::panel_quads_scaled`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn scaled_quads(
    a: &[u8],
    runs: &[usize],
    lda: usize,
    rows: usize,
    b: &Quads<'_>,
    q: &Scaled<'_>,
    out: &mut [f32],
    ldc: usize,
) {
    if rows == 0 {
        return;
    }
    b.check(a, runs, lda, rows);
    assert!(out.len() >= (rows - 1) * ldc + q.columns && q.columns <= NR);
    let (a, out) = (a.as_ptr(), out.as_mut_ptr());
    // SAFETY: the checks cover every run of every row of `a`, and `out`; the load covers an array of 16.
    unsafe {
        let start = _mm512_loadu_si512(b.start.as_ptr().cast());
        if rows == 1 {
            // Apart, so that what it scales by stays in registers.
            return Scaling::new(q, b.sums).store(0, quad_sums::<1>(a, runs, lda, b, start), out, ldc);
        }
        let mut scaling = Scaling::new(q, b.sums);
        in_tiles!(rows, r, R, {
            scaling.store(r, quad_sums::<R>(a.add(r * lda), runs, lda, b, start), out.add(r * ldc), ldc);
        });
    }
}

/// [`Isa::blocks`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn in_blocks(a: &[u8], lda: usize, rows: &[(f32, i32)], b: &Blocks<'_>, out: &mut [[f32; NR]; MAX_MR]) {
    let length = b.check(a, lda, rows);
    for (r, (out, &(piece, zero))) in out.iter_mut().zip(rows).enumerate() {
        // SAFETY: the check covers the rows and the blocks' lines; the other loads and the store cover arrays of 16.
        unsafe {
            let (piece, zero) = (_mm512_set1_ps(piece), _mm512_set1_epi32(zero));
            let (mut all, mut x, mut lines) = (_mm512_setzero_ps(), a.as_ptr().add(r * lda), b.lines.as_ptr());
            for (sums, scales) in b.sums.iter().zip(b.scales) {
                // Two sums in turns, since each waits for the one before.
                let mut sum = [_mm512_setzero_si512(); 2];
                for k in 0..length {
                    let quad = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
                    let line = _mm512_load_si512(lines.cast());
                    if k % 2 == 0 {
                        sum[0] = _mm512_dpbusd_epi32(sum[0], quad, line);
                    } else {
                        sum[1] = _mm512_dpbusd_epi32(sum[1], quad, line);
                    }
                    (x, lines) = (x.add(4), lines.add(1));
                }
                let less = _mm512_mullo_epi32(_mm512_loadu_si512(sums.as_ptr().cast()), zero);
                let sum = _mm512_sub_epi32(_mm512_add_epi32(sum[0], sum[1]), less);
                let scale = _mm512_mul_ps(_mm512_loadu_ps(scales.as_ptr()), piece);
                all = _mm512_add_ps(all, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale));
            }
            _mm512_storeu_ps(out.as_mut_ptr(), all);
        }
    }
}
