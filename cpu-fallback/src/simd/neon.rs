//! NEON, which every 64-bit ARM machine has: 32 registers of 128 bits, multiply-add by a lane, and the reference's own
//! rounding instructions (its kernels were first written for them).

use super::{
    Dot, Isa, LineF32, LineI8, LineI16, MAX_MR, NR, Panel, Requant, RequantWide, Scaled, Strip, Sum, Taps, Term, clamp,
    narrow_rows, reach, tiles,
};
use crate::requant::Quantized;
use litegpu_graph::fixed::Multiplier;
use std::arch::aarch64::*;
use std::marker::PhantomData;

/// 128-bit vectors with fused multiply-add.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon;

/// 16 sums.
type Sixteen = [int32x4_t; 4];

// SAFETY, for every block in this implementation without a comment of its own: the machine has NEON, for the module is
// part of builds that need it, and the intrinsics have no pointers.
impl Isa for Neon {
    // Twenty sums, a line, and four elements of each row: 29 registers.
    const MR: usize = 5;
    const MRI: usize = 4;
    type F = [float32x4_t; 2];
    type W = [int16x8_t; 2];
    type I = [int32x4_t; 2];

    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn load(x: &[f32; 8]) -> [float32x4_t; 2] {
        // SAFETY: 32 bytes of an array of 32.
        unsafe { [vld1q_f32(x.as_ptr()), vld1q_f32(x.as_ptr().add(4))] }
    }
    #[inline(always)]
    fn store(x: [float32x4_t; 2], to: &mut [f32; 8]) {
        // SAFETY: 32 bytes of an array of 32.
        unsafe {
            vst1q_f32(to.as_mut_ptr(), x[0]);
            vst1q_f32(to.as_mut_ptr().add(4), x[1]);
        }
    }
    #[inline(always)]
    fn fma8(a: [float32x4_t; 2], b: [float32x4_t; 2], c: [float32x4_t; 2]) -> [float32x4_t; 2] {
        // SAFETY: see above.
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }
    #[inline(always)]
    fn mul_add8(a: [float32x4_t; 2], b: [float32x4_t; 2], c: [float32x4_t; 2]) -> [float32x4_t; 2] {
        // SAFETY: see above.
        unsafe { [vaddq_f32(vmulq_f32(a[0], b[0]), c[0]), vaddq_f32(vmulq_f32(a[1], b[1]), c[1])] }
    }
    #[inline(always)]
    fn reals(x: &[i32; 8]) -> [float32x4_t; 2] {
        // SAFETY: 32 bytes of an array of 32.
        unsafe { [vcvtq_f32_s32(vld1q_s32(x.as_ptr())), vcvtq_f32_s32(vld1q_s32(x.as_ptr().add(4)))] }
    }
    #[inline(always)]
    fn clamp8(x: [float32x4_t; 2], range: (f32, f32)) -> [float32x4_t; 2] {
        // SAFETY: see above.
        unsafe {
            let range = [vdupq_n_f32(range.0), vdupq_n_f32(range.1)];
            [clamp4(x[0], range), clamp4(x[1], range)]
        }
    }
    #[inline(always)]
    fn load_words(x: &[i16; NR]) -> [int16x8_t; 2] {
        // SAFETY: 32 bytes of an array of 32.
        unsafe { [vld1q_s16(x.as_ptr()), vld1q_s16(x.as_ptr().add(8))] }
    }
    // Products widen lane by lane: the words of a pair need not be neighbours.
    #[inline(always)]
    fn pair(a: [int16x8_t; 2], b: [int16x8_t; 2]) -> [[int16x8_t; 2]; 2] {
        [[a[0], b[0]], [a[1], b[1]]]
    }
    #[inline(always)]
    fn dot(sum: [int32x4_t; 2], a: [int16x8_t; 2], b: [int16x8_t; 2]) -> [int32x4_t; 2] {
        // SAFETY: see above.
        unsafe {
            let [mut low, mut high] = sum;
            for (a, b) in a.into_iter().zip(b) {
                low = vmlal_s16(low, vget_low_s16(a), vget_low_s16(b));
                high = vmlal_high_s16(high, a, b);
            }
            [low, high]
        }
    }
    #[inline(always)]
    fn sums(x: [[int32x4_t; 2]; 2]) -> [i32; NR] {
        let mut out = [0i32; NR];
        // SAFETY: four stores of 4 lanes fill the array of 16.
        unsafe { write(&mut out, [x[0][0], x[0][1], x[1][0], x[1][1]]) };
        out
    }
    #[inline(always)]
    fn load_sums(x: &[i32; NR]) -> [[int32x4_t; 2]; 2] {
        // SAFETY: see above.
        let [a, b, c, d] = unsafe { read(x) };
        [[a, b], [c, d]]
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
        if rows == 0 {
            return;
        }
        assert!(out.len() > (rows - 1) * ldc && a.len() >= reach(runs, w.len()) + (rows - 1) * lda);
        let mut r = 0;
        // SAFETY: the assert covers every run of every row of `a`, and `out`.
        unsafe {
            while r + 4 <= rows {
                float_dots::<4, 2>(&a[r * lda..], runs, lda, w, finish, &mut out[r * ldc..], ldc);
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
        // Lines are pairs of steps.
        assert!(
            (1..=MAX_MR).contains(&rows)
                && a.len() >= reach(runs, b.len()) + b.len() / runs.len().max(1) + (rows - 1) * lda
        );
        let half = (columns > 8) as usize;
        // SAFETY: the assert covers every run of every row of `a`; `b` is read line by line.
        unsafe {
            match b {
                Panel::Narrow(b) => NARROW_TILES[rows - 1][half](a, runs, lda, b, acc),
                Panel::Wide(b) => WIDE_TILES[rows - 1][half](a, runs, lda, b, acc),
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
        if q.once.is_none() || !q.saturates::<O>() {
            return tiles::<Self>(a, runs, lda, rows, b, q.columns, |r, acc| {
                Self::store_rounded(acc, q, &mut out[r * ldc..], ldc)
            });
        }
        // SAFETY: the function checks its arguments.
        unsafe { multiply_panel(a, runs, lda, rows, b, q.bias, &mut Rounded::<_, O>::new(q), out, ldc) }
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
        unsafe { multiply_panel(a, runs, lda, rows, b, &[0; NR], &mut Rounded::<_, O>::new(q), out, ldc) }
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
        unsafe { multiply_panel(a, runs, lda, rows, b, &[0; NR], &mut Scaling::new(q), out, ldc) };
        true
    }

    #[inline(always)]
    fn strip_scaled(strip: &Strip<'_>, q: &Scaled<'_>, out: &mut [f32], stride: usize) -> bool {
        // SAFETY: the function checks its arguments.
        unsafe { finished_strip(strip, &[0; NR], &mut Scaling::new(q), out, stride) };
        true
    }
    #[inline(always)]
    fn strip<O: Quantized>(strip: &Strip<'_>, q: &Requant<'_>, out: &mut [O], stride: usize) {
        if q.once.is_none() || !q.saturates::<O>() {
            return strip.each::<Self>(|p, sums| Self::store_rounded(sums, q, &mut out[p * stride..], stride));
        }
        // SAFETY: the function checks its arguments.
        unsafe { finished_strip(strip, q.bias, &mut Rounded::<_, O>::new(q), out, stride) }
    }
    #[inline(always)]
    fn strip_wide<O: Quantized>(strip: &Strip<'_>, q: &RequantWide<'_>, out: &mut [O], stride: usize) {
        if !q.saturates::<O>() {
            return strip.each::<Self>(|p, sums| Self::store_wide(sums, q, &mut out[p * stride..], stride));
        }
        // SAFETY: the function checks its arguments.
        unsafe { finished_strip(strip, &[0; NR], &mut Rounded::<_, O>::new(q), out, stride) }
    }

    #[inline(always)]
    fn sum(x: &mut [[i32; NR]], y: &[[i32; NR]], k: &Sum) {
        // SAFETY: see above.
        unsafe { sums_of_terms(x, y, k) }
    }
    #[inline(always)]
    fn sum_i8(a: &[i8], b: &[i8], out: &mut [i8], k: &Sum) -> usize {
        // SAFETY: see above.
        unsafe { sums_of_bytes(a, b, out, k) }
    }
    #[inline(always)]
    fn sum_u8(a: &[u8], b: &[u8], out: &mut [u8], k: &Sum) -> usize {
        // SAFETY: see above.
        unsafe { sums_of_bytes(a, b, out, k) }
    }

    #[inline(always)]
    fn look_up(table: &[u8; 256], from: Option<&[u8]>, to: &mut [u8]) {
        // SAFETY: see above.
        unsafe { bytes_of_table(table, from, to) }
    }

    #[inline(always)]
    fn narrow_i8(x: &[i32; NR], to: &mut [i8; NR]) {
        // SAFETY: the store fills the array's 16 bytes.
        unsafe {
            let [a, b] = words(read(x));
            vst1q_s8(to.as_mut_ptr(), vqmovn_high_s16(vqmovn_s16(a), b));
        }
    }
    #[inline(always)]
    fn narrow_u8(x: &[i32; NR], to: &mut [u8; NR]) {
        // SAFETY: the store fills the array's 16 bytes.
        unsafe {
            let [a, b] = words(read(x));
            vst1q_u8(to.as_mut_ptr(), vqmovun_high_s16(vqmovun_s16(a), b));
        }
    }
    #[inline(always)]
    fn narrow_i16(x: &[i32; NR], to: &mut [i16; NR]) {
        // SAFETY: two stores of 8 words fill the array of 16.
        unsafe {
            let [a, b] = words(read(x));
            vst1q_s16(to.as_mut_ptr(), a);
            vst1q_s16(to.as_mut_ptr().add(8), b);
        }
    }
}

/// That no product is shifted left, and each is shifted right: the instructions that round as the reference does then
/// need no case that depends on the shift.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Once;

impl Once {
    /// From fractions and powers of two; `None` when a column is not shifted to the right.
    pub(crate) fn new(value: &[i32; NR], shift: &[i32; NR]) -> Option<Once> {
        // Times 0 is 0, whatever the shift.
        value.iter().zip(shift).all(|(v, s)| *v == 0 || (-31..=-1).contains(s)).then_some(Once)
    }
}

/// Clamps. Comparisons, not minimum and maximum: those prefer positive zero, and a zero keeps its sign here.
#[inline]
#[target_feature(enable = "neon")]
fn clamp4(x: float32x4_t, [low, high]: [float32x4_t; 2]) -> float32x4_t {
    let x = vbslq_f32(vcltq_f32(x, low), low, x);
    vbslq_f32(vcgtq_f32(x, high), high, x)
}

#[inline]
#[target_feature(enable = "neon")]
fn read(x: &[i32; NR]) -> Sixteen {
    let p = x.as_ptr();
    // SAFETY: four loads of 4 lanes cover the array of 16.
    unsafe { [vld1q_s32(p), vld1q_s32(p.add(4)), vld1q_s32(p.add(8)), vld1q_s32(p.add(12))] }
}

#[inline]
#[target_feature(enable = "neon")]
fn write(to: &mut [i32; NR], x: Sixteen) {
    for (c, x) in x.into_iter().enumerate() {
        // SAFETY: four stores of 4 lanes fill the array of 16.
        unsafe { vst1q_s32(to.as_mut_ptr().add(4 * c), x) };
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn read_floats(x: &[f32; NR]) -> [float32x4_t; 4] {
    let p = x.as_ptr();
    // SAFETY: four loads of 4 lanes cover the array of 16.
    unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
}

/// 16 values as words, saturated.
#[inline]
#[target_feature(enable = "neon")]
fn words(x: Sixteen) -> [int16x8_t; 2] {
    [vqmovn_high_s32(vqmovn_s32(x[0]), x[1]), vqmovn_high_s32(vqmovn_s32(x[2]), x[3])]
}

/// `x` times a fraction, then shifted right (`right` is not positive), rounded twice as `graph::fixed` does: the
/// doubled high product rounded half up, which is what half away from zero with a truncating division comes to; then
/// half away from zero, for which negative numbers are made one less before they are rounded half up. None can be the
/// least there is, since a high product is not.
#[inline]
#[target_feature(enable = "neon")]
fn scale_down(x: int32x4_t, value: int32x4_t, right: int32x4_t) -> int32x4_t {
    let x = vqrdmulhq_s32(x, value);
    // Not where nothing is shifted.
    let x = vsraq_n_s32::<31>(x, vandq_s32(x, right));
    vrshlq_s32(x, right)
}

/// [`Isa::requantize`], in one place for all that use it.
#[inline(never)]
#[target_feature(enable = "neon")]
fn round_twice(acc: &mut [[i32; NR]], q: &Requant<'_>) {
    let (zero, low, high) = (vdupq_n_s32(q.zero), vdupq_n_s32(q.low), vdupq_n_s32(q.high));
    let (values, shifts, biases) = (read(q.value), read(q.shift), read(q.bias));
    for c in 0..4 {
        let (value, bias) = (values[c], biases[c]);
        // Shifts by a register take its low byte: larger ones do what these limits do.
        let left = vminq_s32(vmaxq_s32(shifts[c], vdupq_n_s32(0)), vdupq_n_s32(32));
        let right = vmaxq_s32(vminq_s32(shifts[c], vdupq_n_s32(0)), vdupq_n_s32(-31));
        for acc in &mut *acc {
            // SAFETY: 4 lanes from lane 4 c on of an array of 16.
            unsafe {
                let place = acc.as_mut_ptr().add(4 * c);
                let x = vshlq_s32(vaddq_s32(vld1q_s32(place), bias), left);
                let x = vaddq_s32(scale_down(x, value, right), zero);
                vst1q_s32(place, vminq_s32(vmaxq_s32(x, low), high));
            }
        }
    }
}

/// [`Isa::requantize_wide`], in one place for all that use it.
#[inline(never)]
#[target_feature(enable = "neon")]
fn round_once(acc: &mut [[i32; NR]], q: &RequantWide<'_>) {
    let (low, high) = (vdupq_n_s32(q.low), vdupq_n_s32(q.high));
    let constants = q.constants();
    for acc in acc {
        let x = RequantWide::round::<4>(&constants, read(acc));
        write(acc, x.map(|x| vminq_s32(vmaxq_s32(x, low), high)));
    }
}

/// How sums become values, before zero point and limits.
trait Rounding {
    type Constants: Copy;
    fn constants(&self) -> Self::Constants;
    /// The first 4 C of 16.
    fn round<const C: usize>(constants: &Self::Constants, x: Sixteen) -> Sixteen;
    /// Zero point, limits and number of columns.
    fn limits(&self) -> (i32, i32, i32, usize);
}

/// Where there is a [`Once`].
impl Rounding for Requant<'_> {
    /// Fractions and shifts.
    type Constants = [Sixteen; 2];
    #[inline(always)]
    fn constants(&self) -> [Sixteen; 2] {
        // SAFETY: the machine has NEON.
        unsafe { [read(self.value), read(self.shift)] }
    }
    /// See [`scale_down`].
    #[inline(always)]
    fn round<const C: usize>([value, right]: &[Sixteen; 2], mut x: Sixteen) -> Sixteen {
        for c in 0..C {
            // SAFETY: the machine has NEON.
            x[c] = unsafe {
                let x = vqrdmulhq_s32(x[c], value[c]);
                vrshlq_s32(vsraq_n_s32::<31>(x, x), right[c])
            };
        }
        x
    }
    #[inline(always)]
    fn limits(&self) -> (i32, i32, i32, usize) {
        (self.zero, self.low, self.high, self.columns)
    }
}

/// [`RequantWide`] of 16 columns, those of 64 bits two by two.
#[derive(Clone, Copy)]
struct WideSixteen {
    value: Sixteen,
    offset: [int64x2_t; 8],
    /// Negative to the right.
    shift: [int64x2_t; 8],
}

impl Rounding for RequantWide<'_> {
    type Constants = WideSixteen;
    #[inline(always)]
    fn constants(&self) -> WideSixteen {
        // SAFETY: eight loads of two lanes cover arrays of 16; the machine has NEON.
        unsafe {
            let load = |x: &[i64; NR]| -> [int64x2_t; 8] { std::array::from_fn(|i| vld1q_s64(x.as_ptr().add(2 * i))) };
            let shift = load(self.shift).map(|s| vnegq_s64(s));
            WideSixteen { value: read(self.value), offset: load(self.offset), shift }
        }
    }
    #[inline(always)]
    fn round<const C: usize>(k: &WideSixteen, mut x: Sixteen) -> Sixteen {
        for c in 0..C {
            // SAFETY: the machine has NEON.
            x[c] = unsafe {
                let low = vmlal_s32(k.offset[2 * c], vget_low_s32(x[c]), vget_low_s32(k.value[c]));
                let high = vmlal_high_s32(k.offset[2 * c + 1], x[c], k.value[c]);
                vmovn_high_s64(vmovn_s64(vshlq_s64(low, k.shift[2 * c])), vshlq_s64(high, k.shift[2 * c + 1]))
            };
        }
        x
    }
    #[inline(always)]
    fn limits(&self) -> (i32, i32, i32, usize) {
        (0, self.low, self.high, self.columns)
    }
}

/// What becomes of rows of sums, elements of type `O`.
trait Finish<O> {
    fn columns(&self) -> usize;
    /// Stores what becomes of the first 4 C sums of row `row`.
    ///
    /// # Safety
    /// As many elements as there are columns, at most 4 C, can be written at `out`.
    unsafe fn row<const C: usize>(&mut self, row: usize, sums: Sixteen, out: *mut O);
}

/// Rounded, moved by the zero point and limited: what [`Requant::saturates`] allows.
struct Rounded<G: Rounding, O> {
    constants: G::Constants,
    /// As words.
    zero: int16x8_t,
    /// As elements.
    low: int8x16_t,
    high: int8x16_t,
    columns: usize,
    to: PhantomData<O>,
}

impl<G: Rounding, O: Quantized> Rounded<G, O> {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(rounding: &G) -> Rounded<G, O> {
        let (zero, low, high, columns) = rounding.limits();
        let each = |x: i32| match size_of::<O>() {
            2 => vreinterpretq_s8_s16(vdupq_n_s16(x as i16)),
            _ => vdupq_n_s8(x as i8),
        };
        let (zero, low, high) = (vdupq_n_s16(zero as i16), each(low), each(high));
        Rounded { constants: rounding.constants(), zero, low, high, columns, to: PhantomData }
    }
}

impl<G: Rounding, O: Quantized> Finish<O> for Rounded<G, O> {
    #[inline(always)]
    fn columns(&self) -> usize {
        self.columns
    }
    #[inline(always)]
    unsafe fn row<const C: usize>(&mut self, _row: usize, sums: Sixteen, out: *mut O) {
        // SAFETY: the caller's promise; what is not a whole row is copied from an array of 16.
        unsafe {
            let [a, b] = words(G::round::<C>(&self.constants, sums));
            let (a, b) = (vqaddq_s16(a, self.zero), vqaddq_s16(b, self.zero));
            if size_of::<O>() == 2 {
                let (low, high) = (vreinterpretq_s16_s8(self.low), vreinterpretq_s16_s8(self.high));
                let (a, b) = (vminq_s16(vmaxq_s16(a, low), high), vminq_s16(vmaxq_s16(b, low), high));
                let mut part = [0i16; NR];
                let whole = self.columns >= NR;
                let to = if whole { out.cast() } else { part.as_mut_ptr() };
                vst1q_s16(to, a);
                vst1q_s16(to.add(8), b);
                if !whole {
                    std::ptr::copy_nonoverlapping(part.as_ptr(), out.cast(), self.columns);
                }
                return;
            }
            let bytes = if O::LOW < 0 {
                let x = vqmovn_high_s16(vqmovn_s16(a), b);
                vreinterpretq_u8_s8(vminq_s8(vmaxq_s8(x, self.low), self.high))
            } else {
                let (low, high) = (vreinterpretq_u8_s8(self.low), vreinterpretq_u8_s8(self.high));
                vminq_u8(vmaxq_u8(vqmovun_high_s16(vqmovun_s16(a), b), low), high)
            };
            if self.columns >= NR {
                vst1q_u8(out.cast(), bytes);
            } else if self.columns == 8 {
                vst1_u8(out.cast(), vget_low_u8(bytes));
            } else {
                let mut part = [0u8; NR];
                vst1q_u8(part.as_mut_ptr(), bytes);
                std::ptr::copy_nonoverlapping(part.as_ptr(), out.cast(), self.columns);
            }
        }
    }
}

/// [`Scaled`] in registers, with the scales of one piece.
struct Scaling<'a> {
    of: &'a Scaled<'a>,
    scale: [float32x4_t; 4],
    /// The scales times the piece's.
    now: [float32x4_t; 4],
    bias: [float32x4_t; 4],
    range: [float32x4_t; 2],
    /// The first row of the next piece.
    until: usize,
}

impl<'a> Scaling<'a> {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(of: &'a Scaled<'a>) -> Scaling<'a> {
        let (scale, bias) = (read_floats(of.scale), read_floats(of.bias));
        let range = [vdupq_n_f32(of.range.0), vdupq_n_f32(of.range.1)];
        Scaling { of, scale, now: scale, bias, range, until: 0 }
    }
}

impl Finish<f32> for Scaling<'_> {
    #[inline(always)]
    fn columns(&self) -> usize {
        self.of.columns
    }
    #[inline(always)]
    unsafe fn row<const C: usize>(&mut self, row: usize, sums: Sixteen, out: *mut f32) {
        let (row, rows) = (self.of.row + row, self.of.rows.max(1));
        if row >= self.until {
            let piece = if rows == 1 { row } else { row / rows };
            self.until = if rows == 1 { row + 1 } else { (piece + 1).saturating_mul(rows) };
            let scale = self.of.pieces.get(piece).map_or(0, |p| p.load(std::sync::atomic::Ordering::Relaxed));
            // SAFETY: the machine has NEON.
            self.now = self.scale.map(|s| unsafe { vmulq_n_f32(s, f32::from_bits(scale)) });
        }
        let mut part = [0f32; NR];
        let whole = self.of.columns >= 4 * C;
        let to = if whole { out } else { part.as_mut_ptr() };
        // SAFETY: the caller's promise; what is not a whole row is copied from an array of 16.
        unsafe {
            for c in 0..C {
                let x = vaddq_f32(vmulq_f32(vcvtq_f32_s32(sums[c]), self.now[c]), self.bias[c]);
                vst1q_f32(to.add(4 * c), clamp4(x, self.range));
            }
            if !whole {
                std::ptr::copy_nonoverlapping(part.as_ptr(), out, self.of.columns);
            }
        }
    }
}

/// [`Isa::panel`], [`Isa::panel_wide`] and [`Isa::panel_scaled`]; sums begin at `bias`.
#[inline]
#[target_feature(enable = "neon")]
fn multiply_panel<O>(
    a: &[i16],
    runs: &[usize],
    lda: usize,
    rows: usize,
    b: Panel<'_>,
    bias: &[i32; NR],
    finish: &mut impl Finish<O>,
    out: &mut [O],
    ldc: usize,
) {
    let columns = finish.columns();
    if rows == 0 {
        return;
    }
    // Lines are pairs of steps.
    let reach = reach(runs, b.len()) + b.len() / runs.len().max(1);
    assert!(a.len() >= reach + (rows - 1) * lda && out.len() >= (rows - 1) * ldc + columns && columns <= NR);
    // SAFETY: the assert covers every run of every row of `a`, and `out`; `b` is read line by line.
    unsafe {
        match (b, columns > 8) {
            (Panel::Narrow(b), false) => finished_panel::<2, _, _, _>(a, runs, lda, rows, b, bias, finish, out, ldc),
            (Panel::Narrow(b), true) => finished_panel::<4, _, _, _>(a, runs, lda, rows, b, bias, finish, out, ldc),
            (Panel::Wide(b), false) => finished_panel::<2, _, _, _>(a, runs, lda, rows, b, bias, finish, out, ldc),
            (Panel::Wide(b), true) => finished_panel::<4, _, _, _>(a, runs, lda, rows, b, bias, finish, out, ldc),
        }
    }
}

/// # Safety
/// From each of `runs` on, `a` holds the run's share of pairs of `rows` rows, `lda` apart; `out` holds as many rows of
/// outputs, `ldc` apart; there are 4 C columns at most.
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn finished_panel<const C: usize, L: Line, F: Finish<O>, O>(
    a: &[i16],
    runs: &[usize],
    lda: usize,
    rows: usize,
    b: &[L],
    bias: &[i32; NR],
    finish: &mut F,
    out: &mut [O],
    ldc: usize,
) {
    /// # Safety
    /// As for the whole, of the R rows from row `r` on.
    #[inline(always)]
    unsafe fn some<const R: usize, const C: usize, L: Line, F: Finish<O>, O>(
        a: *const i16,
        runs: &[usize],
        lda: usize,
        r: usize,
        b: &[L],
        bias: &[i32; NR],
        finish: &mut F,
        out: *mut O,
        ldc: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let sums = int_sums::<R, C, L>(a.add(r * lda), runs, lda, b, bias);
            for (i, sums) in sums.into_iter().enumerate() {
                finish.row::<C>(r + i, sums, out.add((r + i) * ldc));
            }
        }
    }
    let (a, out) = (a.as_ptr(), out.as_mut_ptr());
    // SAFETY: the caller's promise.
    unsafe {
        let mut r = 0;
        while r + 4 <= rows {
            some::<4, C, L, F, O>(a, runs, lda, r, b, bias, finish, out, ldc);
            r += 4;
        }
        match rows - r {
            3 => some::<3, C, L, F, O>(a, runs, lda, r, b, bias, finish, out, ldc),
            2 => some::<2, C, L, F, O>(a, runs, lda, r, b, bias, finish, out, ldc),
            1 => some::<1, C, L, F, O>(a, runs, lda, r, b, bias, finish, out, ldc),
            _ => {}
        }
    }
}

/// [`Isa::strip`], [`Isa::strip_wide`] and [`Isa::strip_scaled`]; sums begin at `bias`. All pixels count as the first row.
#[inline(never)]
#[target_feature(enable = "neon")]
fn finished_strip<F: Finish<O>, O>(strip: &Strip<'_>, bias: &[i32; NR], finish: &mut F, out: &mut [O], stride: usize) {
    let (pixels, step, columns) = (strip.pixels, strip.step, finish.columns());
    if pixels == 0 || strip.rows == 0 {
        return;
    }
    strip.check();
    assert!(out.len() >= (pixels * strip.rows - 1) * stride + columns && columns <= NR);
    let start = read(bias);
    // SAFETY: the asserts cover the lowest and the highest element that any tap of any pixel reads, every line, and
    // what is written.
    unsafe {
        for r in 0..strip.rows {
            let x = strip.image.as_ptr().add(strip.first + r * strip.line);
            let to = out.as_mut_ptr().add(r * pixels * stride);
            let mut p = 0;
            while p + 4 <= pixels {
                let sums = tap_sums::<4>(x.add(p * step), step, strip.taps, strip.lines, start);
                for (i, sums) in sums.into_iter().enumerate() {
                    finish.row::<4>(0, sums, to.add((p + i) * stride));
                }
                p += 4;
            }
            while p < pixels {
                let [sums] = tap_sums::<1>(x.add(p * step), step, strip.taps, strip.lines, start);
                finish.row::<4>(0, sums, to.add(p * stride));
                p += 1;
            }
        }
    }
}

/// Sums of 16 channels of P pixels, `step` apart.
///
/// # Safety
/// 16 elements can be read at each tap's offset from `x` and from P - 1 places after it, `step` apart; there are as many
/// lines as the taps name.
#[inline(always)]
unsafe fn tap_sums<const P: usize>(
    x: *const i16,
    step: usize,
    taps: &Taps,
    lines: &[[i16; NR]],
    start: Sixteen,
) -> [Sixteen; P] {
    // SAFETY: the caller's promise; a line has 16 elements.
    unsafe {
        let mut sum = [start; P];
        for (offset, line) in taps.iter() {
            let w = lines.as_ptr().add(line).cast::<i16>();
            let w = [vld1q_s16(w), vld1q_s16(w.add(8))];
            let x = x.wrapping_offset(offset);
            for p in 0..P {
                for h in 0..2 {
                    let v = vld1q_s16(x.add(p * step + 8 * h));
                    sum[p][2 * h] = vmlal_s16(sum[p][2 * h], vget_low_s16(v), vget_low_s16(w[h]));
                    sum[p][2 * h + 1] = vmlal_high_s16(sum[p][2 * h + 1], v, w[h]);
                }
            }
        }
        sum
    }
}

/// A multiplier that is the same in all lanes.
#[derive(Clone, Copy)]
struct Uniform {
    value: int32x4_t,
    left: int32x4_t,
    right: int32x4_t,
}

impl Uniform {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(m: Multiplier) -> Uniform {
        // Larger shifts do what these limits do.
        let (left, right) = (m.shift.clamp(0, 32), m.shift.clamp(-31, 0));
        Uniform { value: vdupq_n_s32(m.value), left: vdupq_n_s32(left), right: vdupq_n_s32(right) }
    }
}

/// A [`Sum`] in registers.
#[derive(Clone, Copy)]
struct Summation {
    zeros: [i32; 2],
    /// Shifts of the terms before their products.
    left: [int32x4_t; 2],
    terms: [Uniform; 2],
    negative: bool,
    scale: Uniform,
    zero: int32x4_t,
}

impl Summation {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(k: &Sum) -> Summation {
        let [a, b] = k.terms;
        let left = |t: Term| vdupq_n_s32(t.left.min(32) as i32);
        Summation {
            zeros: [a.zero, b.zero],
            left: [left(a), left(b)],
            terms: [Uniform::new(a.scale), Uniform::new(b.scale)],
            negative: k.negative,
            scale: Uniform::new(k.scale),
            zero: vdupq_n_s32(k.zero),
        }
    }
    /// The sum of numbers less their zero points, before limits.
    #[inline]
    #[target_feature(enable = "neon")]
    fn of(&self, x: int32x4_t, y: int32x4_t) -> int32x4_t {
        let [a, b] = self.terms;
        let x = scale_down(vshlq_s32(x, self.left[0]), a.value, a.right);
        let y = scale_down(vshlq_s32(y, self.left[1]), b.value, b.right);
        let sum = if self.negative { vsubq_s32(x, y) } else { vaddq_s32(x, y) };
        let sum = scale_down(vshlq_s32(sum, self.scale.left), self.scale.value, self.scale.right);
        vaddq_s32(sum, self.zero)
    }
}

/// [`Isa::sum`].
#[inline(never)]
#[target_feature(enable = "neon")]
fn sums_of_terms(x: &mut [[i32; NR]], y: &[[i32; NR]], k: &Sum) {
    let sum = Summation::new(k);
    let zeros = sum.zeros.map(|z| vdupq_n_s32(z));
    let (low, high) = (vdupq_n_s32(k.low), vdupq_n_s32(k.high));
    for (x, y) in x.iter_mut().zip(y) {
        let (mut to, y) = (read(x), read(y));
        for c in 0..4 {
            let v = sum.of(vsubq_s32(to[c], zeros[0]), vsubq_s32(y[c], zeros[1]));
            to[c] = vminq_s32(vmaxq_s32(v, low), high);
        }
        write(x, to);
    }
}

/// [`Isa::sum_i8`] and [`Isa::sum_u8`].
#[inline(never)]
#[target_feature(enable = "neon")]
fn sums_of_bytes<T: Quantized>(a: &[T], b: &[T], out: &mut [T], k: &Sum) -> usize {
    let within = |x: i32| (T::LOW..=T::HIGH).contains(&x);
    // Saturated words must not move back into the type's range, and numbers less their zero points must be words.
    if size_of::<T>() != 1 || ![k.low, k.high, k.zero].into_iter().chain(k.terms.map(|t| t.zero)).all(within) {
        return 0;
    }
    let sum = Summation { zero: vdupq_n_s32(0), ..Summation::new(k) };
    let zeros = sum.zeros.map(|z| vdupq_n_s16(z as i16));
    let zero = vdupq_n_s16(k.zero as i16);
    let (a, b, out) = (a.as_chunks::<16>().0, b.as_chunks::<16>().0, out.as_chunks_mut::<16>().0);
    let mut done = 0;
    for ((a, b), out) in a.iter().zip(b).zip(out) {
        done += 16;
        // SAFETY: the loads and the store cover arrays of 16 bytes.
        unsafe {
            let load = |x: &[T; 16], zero: int16x8_t| -> [int16x8_t; 2] {
                let words = if T::LOW < 0 {
                    let x = vld1q_s8(x.as_ptr().cast());
                    [vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x)]
                } else {
                    let x = vld1q_u8(x.as_ptr().cast());
                    [vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x))), vreinterpretq_s16_u16(vmovl_high_u8(x))]
                };
                words.map(|w| vsubq_s16(w, zero))
            };
            let (x, y) = (load(a, zeros[0]), load(b, zeros[1]));
            let mut of = [zero; 2];
            for h in 0..2 {
                let low = sum.of(vmovl_s16(vget_low_s16(x[h])), vmovl_s16(vget_low_s16(y[h])));
                let high = sum.of(vmovl_high_s16(x[h]), vmovl_high_s16(y[h]));
                of[h] = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(low), high), zero);
            }
            let bytes = if T::LOW < 0 {
                let x = vqmovn_high_s16(vqmovn_s16(of[0]), of[1]);
                vreinterpretq_u8_s8(vminq_s8(vmaxq_s8(x, vdupq_n_s8(k.low as i8)), vdupq_n_s8(k.high as i8)))
            } else {
                let x = vqmovun_high_s16(vqmovun_s16(of[0]), of[1]);
                vminq_u8(vmaxq_u8(x, vdupq_n_u8(k.low as u8)), vdupq_n_u8(k.high as u8))
            };
            vst1q_u8(out.as_mut_ptr().cast(), bytes);
        }
    }
    done
}

/// [`Isa::look_up`]: the table lies in sixteen registers, of which an instruction reads four. What it does not find there
/// it leaves alone.
#[inline(never)]
#[target_feature(enable = "neon")]
fn bytes_of_table(table: &[u8; 256], from: Option<&[u8]>, to: &mut [u8]) {
    let n = from.map_or(to.len(), |f| f.len().min(to.len()));
    let to = &mut to[..n];
    let (blocks, rest) = to.as_chunks_mut::<16>();
    let done = 16 * blocks.len();
    // SAFETY: a quarter of a table is 64 bytes; the loads and stores cover blocks of 16 bytes, of which `from` has no fewer
    // than `to`.
    unsafe {
        let quarter = |i: usize| vld1q_u8_x4(table.as_ptr().add(64 * i));
        let (a, b, c, d) = (quarter(0), quarter(1), quarter(2), quarter(3));
        for (i, block) in blocks.iter_mut().enumerate() {
            let x = vld1q_u8(from.map_or(block.as_ptr(), |f| f.as_ptr().add(16 * i)));
            // Indices past the end wrap to more than 63, and those before the beginning too.
            let y = vqtbl4q_u8(a, x);
            let y = vqtbx4q_u8(y, b, vsubq_u8(x, vdupq_n_u8(64)));
            let y = vqtbx4q_u8(y, c, vsubq_u8(x, vdupq_n_u8(128)));
            let y = vqtbx4q_u8(y, d, vsubq_u8(x, vdupq_n_u8(192)));
            vst1q_u8(block.as_mut_ptr(), y);
        }
    }
    for (i, t) in rest.iter_mut().enumerate() {
        let x = from.map_or(*t, |f| f[done + i]);
        *t = table[x as usize];
    }
}

type FloatTile = unsafe fn(&[f32], &[usize], usize, &[LineF32], &[f32; NR], (f32, f32), &mut [f32], usize, usize);
type IntTile<L> = unsafe fn(&[i16], &[usize], usize, &[L], &mut [[i32; NR]; MAX_MR]);

// Called through tables, so that there is one copy of each. Eight sums at least, or multipliers wait for the one before.
static FLOAT_TILES: [[FloatTile; 2]; 5] = [
    [float_tile::<1, 2, 4>, float_tile::<1, 4, 2>],
    [float_tile::<2, 2, 2>, float_tile::<2, 4, 1>],
    [float_tile::<3, 2, 2>, float_tile::<3, 4, 1>],
    [float_tile::<4, 2, 1>, float_tile::<4, 4, 1>],
    [float_tile::<5, 2, 1>, float_tile::<5, 4, 1>],
];
static NARROW_TILES: [[IntTile<LineI8>; 2]; 4] = [
    [int_tile::<1, 2, _>, int_tile::<1, 4, _>],
    [int_tile::<2, 2, _>, int_tile::<2, 4, _>],
    [int_tile::<3, 2, _>, int_tile::<3, 4, _>],
    [int_tile::<4, 2, _>, int_tile::<4, 4, _>],
];
static WIDE_TILES: [[IntTile<LineI16>; 2]; 4] = [
    [int_tile::<1, 2, _>, int_tile::<1, 4, _>],
    [int_tile::<2, 2, _>, int_tile::<2, 4, _>],
    [int_tile::<3, 2, _>, int_tile::<3, 4, _>],
    [int_tile::<4, 2, _>, int_tile::<4, 4, _>],
];

/// R rows by 4 C columns, the depth in U interleaved sums (so that few rows still keep the multipliers busy).
///
/// # Safety
/// From each of `runs` on, `a` holds R rows of the run's share of `b`, `lda` apart; `out` holds R rows of `columns`,
/// `ldc` apart.
#[inline(never)]
#[target_feature(enable = "neon")]
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
        let mut acc = [[[vdupq_n_f32(0.0); C]; R]; U];
        for r in 0..R {
            for c in 0..C {
                acc[0][r][c] = vld1q_f32(bias.as_ptr().add(4 * c));
            }
        }
        let length = b.len() / runs.len().max(1);
        let mut bp = b.as_ptr().cast::<f32>();
        for run in runs {
            let ap = a.as_ptr().add(*run);
            let mut k = 0;
            while k + 4 <= length {
                let mut x = [vdupq_n_f32(0.0); R];
                for r in 0..R {
                    x[r] = vld1q_f32(ap.add(r * lda + k));
                }
                unrolled!(i < 4, {
                    let mut w = [x[0]; C];
                    for c in 0..C {
                        w[c] = vld1q_f32(bp.add(NR * i + 4 * c));
                    }
                    for r in 0..R {
                        for c in 0..C {
                            acc[i % U][r][c] = vfmaq_laneq_f32::<{ i as i32 }>(acc[i % U][r][c], w[c], x[r]);
                        }
                    }
                }, 0 1 2 3);
                bp = bp.add(4 * NR);
                k += 4;
            }
            while k < length {
                for r in 0..R {
                    let x = *ap.add(r * lda + k);
                    for c in 0..C {
                        acc[0][r][c] = vfmaq_n_f32(acc[0][r][c], vld1q_f32(bp.add(4 * c)), x);
                    }
                }
                bp = bp.add(NR);
                k += 1;
            }
        }
        let range = [vdupq_n_f32(range.0), vdupq_n_f32(range.1)];
        let whole = columns >= 4 * C;
        for r in 0..R {
            let mut part = [0f32; NR];
            let place = out.as_mut_ptr().add(r * ldc);
            let to = if whole { place } else { part.as_mut_ptr() };
            for c in 0..C {
                let mut v = acc[0][r][c];
                for u in 1..U {
                    v = vaddq_f32(v, acc[u][r][c]);
                }
                vst1q_f32(to.add(4 * c), clamp4(v, range));
            }
            if !whole {
                std::ptr::copy_nonoverlapping(part.as_ptr(), place, columns);
            }
        }
    }
}

/// R rows times one column, U vectors of the depth at a time.
///
/// # Safety
/// From each of `runs` on, `a` holds R rows of the run's share of `w`, `lda` apart; `out` holds R elements, `ldc` apart.
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn float_dots<const R: usize, const U: usize>(
    a: &[f32],
    runs: &[usize],
    lda: usize,
    w: &[f32],
    finish: Dot,
    out: &mut [f32],
    ldc: usize,
) {
    // SAFETY: the caller's promise bounds every pointer below.
    unsafe {
        let mut acc = [[vdupq_n_f32(0.0); U]; R];
        let mut rest = [finish.bias; R];
        let length = w.len() / runs.len().max(1);
        let mut wp = w.as_ptr();
        for run in runs {
            let ap = a.as_ptr().add(*run);
            let mut k = 0;
            while k + 4 * U <= length {
                for u in 0..U {
                    let v = vld1q_f32(wp.add(k + 4 * u));
                    for r in 0..R {
                        acc[r][u] = vfmaq_f32(acc[r][u], vld1q_f32(ap.add(r * lda + k + 4 * u)), v);
                    }
                }
                k += 4 * U;
            }
            while k + 4 <= length {
                let v = vld1q_f32(wp.add(k));
                for r in 0..R {
                    acc[r][0] = vfmaq_f32(acc[r][0], vld1q_f32(ap.add(r * lda + k)), v);
                }
                k += 4;
            }
            while k < length {
                for r in 0..R {
                    rest[r] = (*ap.add(r * lda + k)).mul_add(*wp.add(k), rest[r]);
                }
                k += 1;
            }
            wp = wp.add(length);
        }
        for r in 0..R {
            let mut v = acc[r][0];
            for u in 1..U {
                v = vaddq_f32(v, acc[r][u]);
            }
            out[r * ldc] = clamp(vaddvq_f32(v) + rest[r], finish.range);
        }
    }
}

/// A line of packed integers, as words.
trait Line: Copy {
    /// Both steps of each eight of the first 4 C columns.
    ///
    /// # Safety
    /// C is 2 or 4.
    unsafe fn words<const C: usize>(&self) -> [int16x8x2_t; 2];
}
impl Line for LineI8 {
    #[inline(always)]
    unsafe fn words<const C: usize>(&self) -> [int16x8x2_t; 2] {
        let line = self.0.as_ptr().cast::<i8>();
        // SAFETY: 8 C of a line's 32 bytes.
        unsafe {
            if C <= 2 {
                let int8x8x2_t(x, y) = vld2_s8(line);
                return [int16x8x2_t(vmovl_s8(x), vmovl_s8(y)); 2];
            }
            let int8x16x2_t(x, y) = vld2q_s8(line);
            let low = int16x8x2_t(vmovl_s8(vget_low_s8(x)), vmovl_s8(vget_low_s8(y)));
            [low, int16x8x2_t(vmovl_high_s8(x), vmovl_high_s8(y))]
        }
    }
}
impl Line for LineI16 {
    #[inline(always)]
    unsafe fn words<const C: usize>(&self) -> [int16x8x2_t; 2] {
        let line = self.0.as_ptr().cast::<i16>();
        // SAFETY: 16 C of a line's 64 bytes.
        unsafe {
            let low = vld2q_s16(line);
            [low, if C <= 2 { low } else { vld2q_s16(line.add(16)) }]
        }
    }
}

/// R rows by 4 C columns; see [`float_tile`].
///
/// # Safety
/// From each of `runs` on, `a` holds R rows of the run's share of pairs, `lda` apart.
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn int_tile<const R: usize, const C: usize, L: Line>(
    a: &[i16],
    runs: &[usize],
    lda: usize,
    b: &[L],
    acc: &mut [[i32; NR]; MAX_MR],
) {
    // SAFETY: the caller's promise; the stores cover lanes of arrays of 16.
    unsafe {
        let sums = int_sums::<R, C, L>(a.as_ptr(), runs, lda, b, &[0; NR]);
        for (acc, sums) in acc.iter_mut().zip(sums) {
            for c in 0..C {
                vst1q_s32(acc.as_mut_ptr().add(4 * c), sums[c]);
            }
        }
    }
}

/// Sums of R rows by 4 C columns (2 or 4 times 4), from `bias` on.
///
/// # Safety
/// From each of `runs` on, `a` holds R rows of the run's share of pairs, `lda` apart.
#[inline(always)]
unsafe fn int_sums<const R: usize, const C: usize, L: Line>(
    a: *const i16,
    runs: &[usize],
    lda: usize,
    b: &[L],
    bias: &[i32; NR],
) -> [Sixteen; R] {
    const { assert!(C == 2 || C == 4) };
    // SAFETY: the caller's promise bounds every pointer below.
    unsafe {
        let mut sum = [read(bias); R];
        let length = b.len() / runs.len().max(1);
        let mut line = b.as_ptr();
        for run in runs {
            let ap = a.add(*run);
            let mut k = 0;
            // Four pairs of each row at a time.
            while k + 4 <= length {
                let mut x = [vdupq_n_s16(0); R];
                for r in 0..R {
                    x[r] = vld1q_s16(ap.add(r * lda + 2 * k));
                }
                unrolled!(i < 4, {
                    let w = (*line.add(i)).words::<C>();
                    for h in 0..C / 2 {
                        let int16x8x2_t(w0, w1) = w[h];
                        for r in 0..R {
                            let (mut low, mut high) = (sum[r][2 * h], sum[r][2 * h + 1]);
                            low = vmlal_laneq_s16::<{ 2 * i as i32 }>(low, vget_low_s16(w0), x[r]);
                            high = vmlal_high_laneq_s16::<{ 2 * i as i32 }>(high, w0, x[r]);
                            low = vmlal_laneq_s16::<{ 2 * i as i32 + 1 }>(low, vget_low_s16(w1), x[r]);
                            high = vmlal_high_laneq_s16::<{ 2 * i as i32 + 1 }>(high, w1, x[r]);
                            (sum[r][2 * h], sum[r][2 * h + 1]) = (low, high);
                        }
                    }
                }, 0 1 2 3);
                line = line.add(4);
                k += 4;
            }
            while k < length {
                let w = (*line).words::<C>();
                for r in 0..R {
                    let x = ap.add(r * lda + 2 * k);
                    let (x0, x1) = (*x, *x.add(1));
                    for h in 0..C / 2 {
                        let int16x8x2_t(w0, w1) = w[h];
                        let (mut low, mut high) = (sum[r][2 * h], sum[r][2 * h + 1]);
                        low = vmlal_n_s16(low, vget_low_s16(w0), x0);
                        high = vmlal_high_n_s16(high, w0, x0);
                        low = vmlal_n_s16(low, vget_low_s16(w1), x1);
                        high = vmlal_high_n_s16(high, w1, x1);
                        (sum[r][2 * h], sum[r][2 * h + 1]) = (low, high);
                    }
                }
                line = line.add(1);
                k += 1;
            }
        }
        sum
    }
}
