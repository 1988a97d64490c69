//! Logistic and hyperbolic tangent of 16-bit fixed-point numbers, bit for bit as gemmlowp has them. A number with `n`
//! integer bits counts units of 2^(n - 15).

use crate::simd::{Isa, Task, dispatch};

// Numbers of 16 bits are computed in 32, without branches, so that loops over them become vector code.

/// A constant given with 32 bits, rounded to 16.
const fn constant(x: i32) -> i32 {
    (x + (1 << 15)) >> 16
}

#[inline(always)]
fn saturate(x: i32) -> i32 {
    x.clamp(i16::MIN as i32, i16::MAX as i32)
}

/// The product of two fractions of 2^15, rounded half away from zero.
#[inline(always)]
fn mul(a: i32, b: i32) -> i32 {
    let ab = a * b;
    let nudge = if ab >= 0 { 1 << 14 } else { 1 - (1 << 14) };
    saturate((ab + nudge) / (1 << 15))
}

#[inline(always)]
fn shift_right(x: i32, n: u32) -> i32 {
    let mask = (1 << n) - 1;
    (x >> n) + ((x & mask) > (mask >> 1) + (x < 0) as i32) as i32
}

#[inline(always)]
fn shift_left(x: i32, n: u32) -> i32 {
    saturate(x << n)
}

/// exp(a) for a in [-1/4, 0): a Taylor series around -1/8.
#[inline(always)]
fn exp_quarter(a: i32) -> i32 {
    const AT: i32 = constant(1_895_147_668);
    const THIRD: i32 = constant(715_827_883);
    let x = a + (1 << 12);
    let x2 = mul(x, x);
    let x3 = mul(x2, x);
    let x4 = mul(x2, x2);
    let tail = shift_right(mul(shift_right(x4, 2) + x3, THIRD) + x2, 1);
    saturate(AT + mul(AT, x + tail))
}

/// exp(a) for a <= 0 with `bits` integer bits: the last quarter by the series, the rest by one factor per bit.
#[inline(always)]
fn exp_negative(a: i32, bits: i32) -> i32 {
    const FACTORS: [i32; 7] = [
        constant(1_672_461_947),
        constant(1_302_514_674),
        constant(790_015_084),
        constant(290_630_308),
        constant(39_332_535),
        constant(720_401),
        constant(242),
    ];
    let first = 13 - bits;
    let quarter = 1 << first;
    let last = (a & (quarter - 1)) - quarter;
    let mut y = exp_quarter(shift_left(last, bits as u32));
    let rest = last - a;
    for (i, factor) in FACTORS.into_iter().enumerate() {
        let bit = if (i as i32) < bits + 2 { 1 << (first + i as i32) } else { 0 };
        y = if rest & bit != 0 { mul(y, factor) } else { y };
    }
    let y = if bits > 5 && a < -(1 << (20 - bits)) { 0 } else { y };
    if a == 0 { i16::MAX as i32 } else { y }
}

/// 1 / (1 + a) with 2 integer bits, halved, for a in (0, 1): three Newton steps.
#[inline(always)]
fn reciprocal(a: i32) -> i32 {
    const FIRST: i32 = constant(1_515_870_810);
    const SLOPE: i32 = constant(-1_010_580_540);
    let half = (a + 32767 + 1) / 2;
    let mut x = FIRST + mul(half, SLOPE);
    for _ in 0..3 {
        let rest = (1 << 13) - mul(half, x);
        x = saturate(x + shift_left(mul(x, rest), 2));
    }
    x
}

#[inline(always)]
fn logistic_of(a: i32, bits: i32) -> i32 {
    let y = shift_left(reciprocal(exp_negative(-a.abs(), bits)), 1);
    let y = if a > 0 { y } else { i16::MAX as i32 - y };
    if a == 0 { 1 << 14 } else { y }
}

#[inline(always)]
fn tanh_of(a: i32, bits: i32) -> i32 {
    // exp(2 a) is the exponential of the same digits with one more integer bit.
    let y = shift_left(reciprocal(exp_negative(-a.abs(), bits + 1)) - (1 << 13), 2);
    let y = if a > 0 { y } else { -y };
    if a == 0 { 0 } else { y }
}

/// 1 / (1 + exp(-a)) with no integer bits, for `a` with `bits` integer bits, at most 6.
pub(super) fn logistic(a: i16, bits: i32) -> i16 {
    logistic_of(a as i32, bits) as i16
}

/// tanh(a) with no integer bits, for `a` with `bits` integer bits, at most 6.
pub(super) fn tanh(a: i16, bits: i32) -> i16 {
    tanh_of(a as i32, bits) as i16
}

/// [`logistic`] of every number, in place.
pub(super) fn logistic_all(a: &mut [i16], bits: i32) {
    dispatch(Logistic(a, bits));
}

/// [`tanh`] of every number, in place.
pub(super) fn tanh_all(a: &mut [i16], bits: i32) {
    dispatch(Tanh(a, bits));
}

struct Logistic<'a>(&'a mut [i16], i32);

impl Task for Logistic<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        self.0.iter_mut().for_each(|a| *a = logistic_of(*a as i32, self.1) as i16);
    }
}

struct Tanh<'a>(&'a mut [i16], i32);

impl Task for Tanh<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        self.0.iter_mut().for_each(|a| *a = tanh_of(*a as i32, self.1) as i16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    #[test]
    fn near_the_real_functions() {
        let all: Vec<i16> = (i16::MIN..=i16::MAX).collect();
        for bits in 0..=6 {
            let (mut t, mut l) = (all.clone(), all.clone());
            tanh_all(&mut t, bits);
            logistic_all(&mut l, bits);
            for ((a, t), l) in all.iter().zip(&t).zip(&l) {
                let x = *a as f64 * 2f64.powi(bits - 15);
                let t = *t as f64 / 32768.0;
                assert!((t - x.tanh()).abs() < 1.5e-3, "tanh({x}) = {t} with {bits} bits");
                let l = *l as f64 / 32768.0;
                assert!((l - 1.0 / (1.0 + (-x).exp())).abs() < 1e-3, "logistic({x}) = {l} with {bits} bits");
            }
            let (mut portable, mut other) = (all.clone(), all.clone());
            Tanh(&mut portable, bits).run::<Portable>();
            Logistic(&mut other, bits).run::<Portable>();
            assert!(portable == t && other == l, "vector code differs with {bits} bits");
        }
    }

    #[test]
    fn symmetric_and_saturated() {
        assert_eq!((logistic(0, 3), tanh(0, 3)), (1 << 14, 0));
        for a in [1, 100, 1 << 12, i16::MAX] {
            assert_eq!(logistic(a, 3) as i32 + logistic(-a, 3) as i32, 32767);
            assert_eq!(tanh(a, 3), -tanh(-a, 3));
        }
        assert!(logistic(i16::MIN, 3) <= 12 && tanh(i16::MIN, 3) <= -32760);
    }
}
