//! 256-bit vectors: two products an instruction for words, one for floats.

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
            (1..=6).contains(&rows) && a.len() >= reach(runs, b.len()) + b.len() / runs.len().max(1) + (rows - 1) * lda
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
                Self::store_rounded(acc, q, &mut out[r * ldc..], ldc)
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
    fn quantize<Q: Whole>(steps: &Steps, x: &[f32], to: &mut [Q], more: i32) {
        // SAFETY: see above.
        unsafe { quantize(steps, x, to, more) }
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
            sums_of_bytes::<true>(bytemuck::cast_slice(a), bytemuck::cast_slice(b), bytemuck::cast_slice_mut(out), k)
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

/// [`Isa::quantize`].
#[inline]
#[target_feature(enable = "avx2,fma")]
fn quantize<Q: Whole>(steps: &Steps, x: &[f32], to: &mut [Q], more: i32) {
    const N: usize = 32;
    let (zero, inverse) = (_mm256_set1_ps(steps.zero as f32), _mm256_set1_ps(steps.inverse));
    let (low, high) = (_mm256_set1_ps(steps.low), _mm256_set1_ps(steps.high));
    let (sign, half) = (_mm256_set1_ps(-0.0), _mm256_set1_ps(ALMOST_HALF));
    let whole = |x| {
        let v = _mm256_add_ps(zero, _mm256_mul_ps(x, inverse));
        let v = _mm256_add_ps(v, _mm256_or_ps(half, _mm256_and_ps(v, sign)));
        // What is no number is the first operand, and becomes the second.
        _mm256_cvttps_epi32(_mm256_min_ps(_mm256_max_ps(v, low), high))
    };
    let block = |x: &[f32; N], out: &mut [Q; N]| {
        // SAFETY: the loads and stores cover arrays of 32.
        unsafe {
            let v = [0, 8, 16, 24].map(|at| whole(_mm256_loadu_ps(x.as_ptr().add(at))));
            let words = [_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3])];
            if size_of::<Q>() == 1 {
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                let v = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words[0], words[1]), order);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_add_epi8(v, _mm256_set1_epi8(more as i8)));
            } else {
                for (words, out) in words.into_iter().zip(out.as_chunks_mut::<NR>().0) {
                    let v = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                    _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_add_epi16(v, _mm256_set1_epi16(more as i16)));
                }
            }
        }
    };
    let n = x.len().min(to.len());
    let (blocks, rest) = x[..n].as_chunks::<N>();
    let (out, left) = to[..n].as_chunks_mut::<N>();
    blocks.iter().zip(out).for_each(|(x, out)| block(x, out));
    if !rest.is_empty() {
        let (mut x, mut out) = ([0.0; N], [Q::of(0); N]);
        x[..rest.len()].copy_from_slice(rest);
        block(&x, &mut out);
        left.copy_from_slice(&out[..left.len()]);
    }
}

/// Pairs of taps that a strip keeps at hand.
pub(super) const PAIRS: usize = 13;

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
