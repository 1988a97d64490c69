//! The fixed-point arithmetic of quantized operators, bit for bit as the reference kernels do it.
//!
//! A real multiplier is a 32-bit fraction in [0.5, 1) and a power of two. Products are rounded twice: once when the
//! high half of the doubled product is taken, once when it is shifted (half away from zero both times).

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::schema::ActivationFunctionType;

/// A real multiplier as fraction and power of two: value * 2^(shift - 31).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Multiplier {
    /// The fraction, scaled by 2^31.
    pub value: i32,
    /// The power of two; negative shifts right.
    pub shift: i32,
}

impl Multiplier {
    /// The nearest representable multiplier. Values below 2^-32 become zero, as does a value that is not finite.
    pub fn new(real: f64) -> Multiplier {
        if real == 0.0 || !real.is_finite() {
            return Multiplier::default();
        }
        let (fraction, mut shift) = frexp(real);
        let mut q = (fraction * (1i64 << 31) as f64).round() as i64;
        if q == 1 << 31 {
            q /= 2;
            shift += 1;
        }
        if shift < -31 {
            return Multiplier::default();
        }
        Multiplier { value: q.clamp(i32::MIN as i64, i32::MAX as i64) as i32, shift }
    }

    /// `x` times the multiplier, rounded twice.
    #[inline]
    pub fn apply(self, x: i32) -> i32 {
        let left = self.shift.max(0) as u32;
        let x = x.wrapping_mul(1i32.checked_shl(left).unwrap_or(0));
        rounding_shift(high_mul(x, self.value), (-self.shift).max(0))
    }

    /// `x` times the multiplier when it is known to be no greater than one (shift <= 0).
    #[inline]
    pub fn apply_small(self, x: i32) -> i32 {
        rounding_shift(high_mul(x, self.value), -self.shift)
    }

    /// The fraction reduced to 16 bits, as the 16x8 kernels use it.
    #[inline]
    pub fn reduced(self) -> i32 {
        if self.value < 0x7FFF_0000 { (self.value + (1 << 15)) >> 16 } else { 0x7FFF }
    }

    /// A 48-bit accumulator times the multiplier, reduced to 16 bits, rounded once (half up): the 16x8 kernels.
    #[inline]
    pub fn apply_wide(self, x: i64) -> i32 {
        let reduced = self.reduced();
        let total = (15 - self.shift).clamp(1, 62);
        (x.wrapping_mul(reduced as i64).wrapping_add(1i64 << (total - 1)) >> total) as i32
    }
}

/// Splits a finite number into a fraction in [0.5, 1) (with the number's sign) and a power of two.
pub fn frexp(x: f64) -> (f64, i32) {
    if x == 0.0 || !x.is_finite() {
        return (x, 0);
    }
    let (x, bias) = if x.abs() < f64::MIN_POSITIVE { (x * (1u64 << 54) as f64, 54) } else { (x, 0) };
    let bits = x.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as i32 - 1022;
    (f64::from_bits((bits & !(0x7ff << 52)) | (1022 << 52)), exponent - bias)
}

/// The high half of the doubled 64-bit product, rounded half away from zero; the one overflow saturates.
#[inline]
pub fn high_mul(a: i32, b: i32) -> i32 {
    if a == i32::MIN && b == i32::MIN {
        return i32::MAX;
    }
    let ab = a as i64 * b as i64;
    let nudge = if ab >= 0 { 1 << 30 } else { 1 - (1 << 30) };
    ((ab + nudge) / (1i64 << 31)) as i32
}

/// The same for 16 bits.
#[inline]
pub fn high_mul16(a: i16, b: i16) -> i16 {
    if a == i16::MIN && b == i16::MIN {
        return i16::MAX;
    }
    let ab = a as i32 * b as i32;
    let nudge = if ab >= 0 { 1 << 14 } else { 1 - (1 << 14) };
    ((ab + nudge) / (1 << 15)) as i16
}

/// Division by a power of two, rounded half away from zero. Exponents past 31 give what 31 gives.
#[inline]
pub fn rounding_shift(x: i32, exponent: i32) -> i32 {
    let e = exponent.clamp(0, 31);
    let mask = ((1i64 << e) - 1) as i32;
    let threshold = (mask >> 1) + (x < 0) as i32;
    (x >> e) + ((x & mask) > threshold) as i32
}

/// 1/sqrt(x) of a non-negative integer as a multiplier: five Newton steps in fixed point with 3 integer bits. The
/// shift is given as the reference gives it, times `reverse` (-1 turns the right shift into this module's sign).
pub fn inv_sqrt(x: i32, reverse: i32) -> Multiplier {
    if x <= 1 {
        return Multiplier { value: i32::MAX, shift: 0 };
    }
    let mut input = x;
    let mut shift = 11;
    while input >= 1 << 29 {
        input /= 4;
        shift += 1;
    }
    let pairs = (input.leading_zeros() as i32 - 1) / 2 - 1;
    shift -= pairs;
    input <<= 2 * pairs;
    // Products of two numbers with 3 integer bits have 6; three factors have 9. Back to 3 by saturating left shifts.
    let mul = high_mul;
    let input = input >> 1;
    let half_input = rounding_shift(input, 1);
    let half_three = (1 << 28) + (1 << 27);
    let mut r = 1i32 << 28;
    for _ in 0..5 {
        let cube = saturating_shl(mul(mul(r, r), r), 6);
        r = saturating_shl(mul(half_three, r).wrapping_sub(mul(half_input, cube)), 3);
    }
    let mut value = mul(r, 1_518_500_250);
    if shift < 0 {
        value = value.wrapping_shl(-shift as u32);
        shift = 0;
    }
    Multiplier { value, shift: shift * reverse }
}

/// 1/(1+x) for x in [0, 1], both with 31 fraction bits: Newton's division, three steps from a linear guess.
pub fn one_over_one_plus(x: i32) -> i32 {
    // Half of 1+x, with "1" as the largest fraction; the quotient has 2 integer bits.
    let sum = x as i64 + i32::MAX as i64;
    let half = ((sum + if sum >= 0 { 1 } else { -1 }) / 2) as i32;
    let mut r = 1_515_870_810i32.wrapping_add(high_mul(half, -1_010_580_540));
    for _ in 0..3 {
        let error = (1i32 << 29).wrapping_sub(high_mul(half, r));
        r = r.wrapping_add(saturating_shl(high_mul(r, error), 2));
    }
    saturating_shl(r, 1)
}

/// 1/x of a positive integer with `digits` integer bits: the fraction (31 bits) and the power of two it lacks. For zero
/// there is a result without meaning, the reference's.
pub fn reciprocal(x: i32, digits: i32) -> (i32, i32) {
    let zeros = x.leading_zeros();
    let fraction = ((x as u32).checked_shl(zeros).unwrap_or(0)).wrapping_sub(1 << 31) as i32;
    (one_over_one_plus(fraction), digits - zeros as i32)
}

/// `x << n`, saturated.
#[inline]
pub fn saturating_shl(x: i32, n: u32) -> i32 {
    ((x as i64) << n.min(31)).clamp(i32::MIN as i64, i32::MAX as i64) as i32
}

/// The limits that a fused activation sets on real values.
///
/// # Errors
/// `Unsupported` for activations that are no clamp.
pub fn float_range(activation: ActivationFunctionType) -> Result<(f32, f32)> {
    match activation {
        ActivationFunctionType::NONE => Ok((f32::NEG_INFINITY, f32::INFINITY)),
        ActivationFunctionType::RELU => Ok((0.0, f32::INFINITY)),
        ActivationFunctionType::RELU_N1_TO_1 => Ok((-1.0, 1.0)),
        ActivationFunctionType::RELU6 => Ok((0.0, 6.0)),
        a => Err(Error::unsupported(format!("fused activation {a:?}"))),
    }
}

/// The smallest and the largest value of an integer type that quantized tensors have.
///
/// # Errors
/// `Unsupported` for other types.
pub fn type_range(dtype: DType) -> Result<(i32, i32)> {
    match dtype {
        DType::I8 => Ok((-128, 127)),
        DType::U8 => Ok((0, 255)),
        DType::I16 => Ok((-32768, 32767)),
        DType::I4 => Ok((-8, 7)),
        DType::I32 => Ok((i32::MIN, i32::MAX)),
        d => Err(Error::unsupported(format!("quantized {d}"))),
    }
}

/// The limits that a fused activation sets on quantized values of a type.
///
/// # Errors
/// `Unsupported` for activations that are no clamp and types that are not quantized; `Invalid` when a limit
/// overflows.
pub fn quantized_range(
    activation: ActivationFunctionType,
    dtype: DType,
    scale: f32,
    zero_point: i32,
) -> Result<(i32, i32)> {
    let (low, high) = type_range(dtype)?;
    let quantize = |x: f32| -> Result<i32> {
        let q = (x / scale).round();
        if !(q >= i32::MIN as f32 && q < 2147483648.0) {
            return Err(Error::invalid(format!("activation limit {x} overflows at scale {scale}")));
        }
        Ok(zero_point.saturating_add(q as i32))
    };
    let (min, max) = float_range(activation)?;
    let low = if min.is_finite() { low.max(quantize(min)?) } else { low };
    let high = if max.is_finite() { high.min(quantize(max)?) } else { high };
    // A zero point outside the type's range would cross the limits.
    Ok((low.min(high), high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipliers() {
        assert_eq!(Multiplier::new(0.5), Multiplier { value: 1 << 30, shift: 0 });
        assert_eq!(Multiplier::new(1.0), Multiplier { value: 1 << 30, shift: 1 });
        assert_eq!(Multiplier::new(1.0).apply(123), 123);
        assert_eq!(Multiplier::new(0.25).apply(6), 2);
        assert_eq!(Multiplier::new(0.25).apply(-6), -2);
        assert_eq!(Multiplier::new(f64::MIN_POSITIVE / 4.0), Multiplier::default());
        assert_eq!(Multiplier::new(f64::NAN), Multiplier::default());
        assert_eq!(Multiplier::new(1.0 - 1e-17).value, 1 << 30);
        assert_eq!(Multiplier::new(0.125).apply_wide(1 << 40), 0);
        assert_eq!(Multiplier::new(0.125).apply_wide(804), 101);
    }

    #[test]
    fn frexp_is_exact() {
        for x in [1.0, 0.3, -7.25, 1e300, 5e-324, f64::MIN_POSITIVE] {
            let (f, e) = frexp(x);
            assert!((0.5..1.0).contains(&f.abs()), "{x}: {f}");
            let half = 2f64.powi(e / 2);
            assert_eq!(f * half * 2f64.powi(e - e / 2), x);
        }
    }

    #[test]
    fn rounding() {
        assert_eq!(high_mul(i32::MIN, i32::MIN), i32::MAX);
        assert_eq!(rounding_shift(5, 1), 3);
        assert_eq!(rounding_shift(-5, 1), -3);
        assert_eq!(rounding_shift(-5, 99), 0);
        assert_eq!(rounding_shift(7, 0), 7);
    }

    #[test]
    fn inverse_square_root() {
        for x in [2, 3, 100, 65536, 1 << 29, i32::MAX] {
            let m = inv_sqrt(x, -1);
            let real = m.value as f64 * 2f64.powi(m.shift - 31);
            assert!((real * (x as f64).sqrt() - 1.0).abs() < 1e-4, "{x}: {real}");
        }
    }

    #[test]
    fn reciprocals() {
        for x in [1, 2, 3, 255, 1000, i32::MAX] {
            let (m, shift) = reciprocal(x, 31);
            let real = m as f64 * 2f64.powi(-31 - shift);
            assert!((real * x as f64 - 1.0).abs() < 1e-7, "{x}: {real}");
        }
    }

    #[test]
    fn ranges() {
        let relu6 = quantized_range(ActivationFunctionType::RELU6, DType::I8, 0.05, -128);
        assert_eq!(relu6, Ok((-128, -8)));
        assert_eq!(quantized_range(ActivationFunctionType::NONE, DType::U8, 1.0, 3), Ok((0, 255)));
        assert!(quantized_range(ActivationFunctionType::RELU6, DType::I8, 1e-30, 0).is_err());
    }
}
