//! Real functions without calls, branches or tables, so that loops over them become vector code. Results are within
//! two units in the last place of the exact ones (tests below). Tables of quantized operators do not use them: those
//! must equal the C library's results to the bit.

/// e^x to the last bit, as C libraries have it. The one that comes with wasm is up to a unit off, which a graph that
/// quantizes a softmax can show.
#[inline]
pub(crate) fn exact_exp(x: f32) -> f32 {
    if cfg!(target_family = "wasm") { f64::from(x).exp() as f32 } else { x.exp() }
}

/// 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold.
const ROUNDER: f32 = 12_582_912.0;

/// e^x.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Beyond these the result is infinite or zero; a NaN passes both comparisons.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    // ln 2 in two parts, so that the remainder is exact.
    let r = x - n * 0.693_359_375;
    let r = r + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    // 2^n in two factors: each is a normal number, where 2^n itself need not be.
    let n = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    y * power(half) * power(n.wrapping_sub(half))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent in a third of the time of [`tanh`], within eight units in the last place: a quotient of
/// polynomials (degrees 13 and 6, the coefficients of Eigen's fit), 1 beyond 7.9.
#[inline(always)]
pub(crate) fn quick_tanh(v: f32) -> f32 {
    let x = if v < -7.905_311 { -7.905_311 } else { v };
    let x = if x > 7.905_311 { 7.905_311 } else { x };
    let x2 = x * x;
    let p = x2 * -2.760_768_5e-16 + 2.000_188e-13;
    let p = p * x2 - 8.604_671_5e-11;
    let p = p * x2 + 5.122_297e-8;
    let p = p * x2 + 1.485_722_4e-5;
    let p = p * x2 + 6.372_619_3e-4;
    let p = (p * x2 + 4.893_524_6e-3) * x;
    let q = x2 * 1.198_258_4e-6 + 1.185_347_1e-4;
    let q = q * x2 + 2.268_434_6e-3;
    let q = q * x2 + 4.893_525_2e-3;
    if v.abs() < 4e-4 { v } else { p / q }
}

/// The hyperbolic tangent, as the C library that the reference was recorded with has it, to the bit: from e^y - 1
/// (fdlibm's reduction and rational approximation, its branches made selections) with y = 2|x|, or -2|x| below 1.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    const LN2_HIGH: f32 = 6.931_381_225_6e-1;
    const LN2_LOW: f32 = 9.058_000_614_5e-6;
    let size = x.abs();
    // The result is 1 long before this.
    let size = if size > 20.0 { 20.0 } else { size };
    let large = size >= 1.0;
    let y = if large { 2.0 * size } else { -2.0 * size };
    // The nearest whole number of halvings or doublings, cut off towards zero, without a conversion: those have no
    // vector code.
    let v = (std::f32::consts::LOG2_E * y + 0.5f32.copysign(y)).abs();
    let near = (v + ROUNDER) - ROUNDER;
    let n = if near > v { near - 1.0 } else { near };
    let n = if y.abs() < 1.039_720_8 { 1.0 } else { n };
    let n = if y.abs() <= 0.346_573_6 { 0.0 } else { n };
    let n = if large { n } else { -n };
    let (high, low) = (y - n * LN2_HIGH, n * LN2_LOW);
    let r = high - low;
    let c = (high - r) - low;
    let half = 0.5 * r;
    let h = r * half;
    let p = 1.0
        + h * (-3.333_333_507_2e-2
            + h * (1.587_301_609_1e-3
                + h * (-7.936_507_609_0e-5 + h * (4.008_217_729_3e-6 + h * -2.010_992_119_5e-7))));
    let t = 3.0 - p * half;
    let e = h * ((p - t) / (6.0 - r * t));
    let e = (r * (e - c) - c) - h;
    // 2^n, of a whole number: the low bits of n + ROUNDER are the number.
    let power =
        |n: f32| f32::from_bits((n + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127) << 23);
    let rest = e - r;
    // Every branch is computed and one taken: with branches there would be no vector code.
    let negative = (1.0 - rest) * power(n) - 1.0;
    let minus_one = 0.5 * (r - e) - 0.5;
    let small = ((1.0 - power(-n)) - rest) * power(n);
    let big = ((r - (e + power(-n))) + 1.0) * power(n);
    let z = if n < 23.0 { small } else { big };
    let z = if n < 0.0 { negative } else { z };
    let z = if n == -1.0 { minus_one } else { z };
    let z = if n == 0.0 { r - e } else { z };
    let top = if large { 2.0 } else { -z };
    let q = top / (z + 2.0);
    let whole = 1.0 - q;
    let q = if large { whole } else { q };
    q.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest error of `f` over a sweep, in units in the last place.
    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, range: f32) -> f64 {
        let steps = 200_000;
        let mut worst = 0f64;
        for i in 0..=steps {
            let x = range * (i as f32 / steps as f32 * 2.0 - 1.0);
            let (got, want) = (f(x) as f64, exact(x as f64));
            let unit = 2f64.powi((want.abs().log2().floor() as i32).max(-126) - 23);
            worst = worst.max((got - want).abs() / unit);
        }
        worst
    }

    #[test]
    fn within_two_units() {
        assert!(worst(exp, f64::exp, 87.0) < 2.0);
        assert!(worst(logistic, |x| 1.0 / (1.0 + (-x).exp()), 80.0) < 3.0);
        assert!(worst(tanh, f64::tanh, 10.0) < 3.0);
        assert!(worst(tanh, f64::tanh, 0.01) < 2.0);
        for most in [0.01, 1.0, 10.0] {
            let off = worst(quick_tanh, f64::tanh, most);
            // Three roundings end the numerator, two the denominator, one the quotient, and what came before counts for
            // two more: eight of up to one unit each.
            assert!(off < 8.0, "{off} up to {most}");
        }
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!((exp(0.0), exp(1000.0), exp(-1000.0)), (1.0, f32::INFINITY, 0.0));
        assert_eq!((exp(f32::INFINITY), exp(f32::NEG_INFINITY)), (f32::INFINITY, 0.0));
        assert!(
            exp(f32::NAN).is_nan()
                && tanh(f32::NAN).is_nan()
                && quick_tanh(f32::NAN).is_nan()
                && logistic(f32::NAN).is_nan()
        );
        assert_eq!((tanh(1000.0), tanh(-1000.0), tanh(0.0)), (1.0, -1.0, 0.0));
        assert_eq!((quick_tanh(1000.0), quick_tanh(-1000.0), quick_tanh(-0.0)), (1.0, -1.0, 0.0));
        assert_eq!((logistic(f32::INFINITY), logistic(f32::NEG_INFINITY)), (1.0, 0.0));
        assert!((exp(-95.0) as f64 / (-95f64).exp() - 1.0).abs() < 1e-3);
    }
}
