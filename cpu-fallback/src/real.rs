//! Real functions without calls, branches or tables, so that loops over them become vector code. Results are within
//! two units in the last place of the exact ones (tests below). Tables of quantized operators do not use them: those
//! must equal the C library's results to the bit.

/// 2^(i / 32) as bits.
const ROOTS: [u64; 32] = [
    0x3FF0_0000_0000_0000,
    0x3FF0_59B0_D315_8574,
    0x3FF0_B558_6CF9_890F,
    0x3FF1_1301_D012_5B51,
    0x3FF1_72B8_3C7D_517B,
    0x3FF1_D487_3168_B9AA,
    0x3FF2_387A_6E75_6238,
    0x3FF2_9E9D_F51F_DEE1,
    0x3FF3_06FE_0A31_B715,
    0x3FF3_71A7_373A_A9CB,
    0x3FF3_DEA6_4C12_3422,
    0x3FF4_4E08_6061_892D,
    0x3FF4_BFDA_D536_2A27,
    0x3FF5_342B_569D_4F82,
    0x3FF5_AB07_DD48_5429,
    0x3FF6_247E_B03A_5585,
    0x3FF6_A09E_667F_3BCD,
    0x3FF7_1F75_E8EC_5F74,
    0x3FF7_A114_73EB_0187,
    0x3FF8_2589_994C_CE13,
    0x3FF8_ACE5_422A_A0DB,
    0x3FF9_3737_B0CD_C5E5,
    0x3FF9_C491_82A3_F090,
    0x3FFA_5503_B23E_255D,
    0x3FFA_E89F_995A_D3AD,
    0x3FFB_7F76_F2FB_5E47,
    0x3FFC_199B_DD85_529C,
    0x3FFC_B720_DCEF_9069,
    0x3FFD_5818_DCFB_A487,
    0x3FFD_FC97_337B_9B5F,
    0x3FFE_A4AF_A2A4_90DA,
    0x3FFF_5076_5B6E_4540,
];

/// e^x to the last bit, as the C library has it that the reference was recorded with: in double precision, 2^(k / 32)
/// for the nearest k from a table, times a cubic of what is left (Arm's optimized routines).
#[inline(always)]
pub(crate) fn exact_exp(x: f32) -> f32 {
    let mut y = [x];
    exact_exps(&mut y);
    y[0]
}

/// The same for several numbers: the look-ups apart, so that the rest is vector code.
#[inline(always)]
pub(crate) fn exact_exps<const N: usize>(x: &mut [f32; N]) {
    /// 1.5 * 2^52: see [`ROUNDER`].
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    let (mut k, mut r) = ([0u64; N], [0f64; N]);
    for j in 0..N {
        // Beyond these the result is zero or infinite; a NaN passes both comparisons.
        let x = if x[j] < -104.0 { -104.0 } else { x[j] };
        let x = if x > 89.0 { 89.0 } else { x };
        let z = x as f64 * (32.0 * std::f64::consts::LOG2_E);
        let shifted = z + ROUNDER;
        (k[j], r[j]) = (shifted.to_bits(), z - (shifted - ROUNDER));
    }
    let mut root = [0u64; N];
    for j in 0..N {
        root[j] = ROOTS[(k[j] & 31) as usize];
    }
    for j in 0..N {
        // The high bits of k are the power of two.
        let power = f64::from_bits(root[j].wrapping_add((k[j] << 47) & !0xF_FFFF_FFFF_FFFF));
        let p = 5.550_361_559_341_535_1e-2 / 32_768.0 * r[j] + 2.402_284_522_445_722_05e-1 / 1024.0;
        let y = p * (r[j] * r[j]) + (6.931_471_806_916_202_9e-1 / 32.0 * r[j] + 1.0);
        x[j] = (y * power) as f32;
    }
}

/// 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold.
const ROUNDER: f32 = 12_582_912.0;

/// A whole number of at most 22 bits, without a conversion: those saturate, for which there is no vector code.
#[inline(always)]
pub(crate) fn whole(x: f32) -> i32 {
    (x + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i32
}

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
    // One less that, or that itself. As selections, compilers divide both ways.
    let (base, sign) = if large { (1.0, -1.0) } else { (0.0, 1.0) };
    (base + sign * q).copysign(x)
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

    /// The C library's function is what the reference was recorded with.
    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn exact_exp_is_the_c_library_s() {
        let ends =
            [0.0, -0.0, 1e-30, -1e-30, f32::INFINITY, f32::NEG_INFINITY, 88.722_84, 88.72, -103.97, -103.98, -87.4];
        let sweep = (0..200_000).map(|i| i as f32 * 9.7e-4 - 104.5);
        for x in ends.into_iter().chain(sweep) {
            assert_eq!(exact_exp(x).to_bits(), x.exp().to_bits(), "{x}");
            let mut eight = [0.5, x, 1.0, x, 0.0, -3.0, x, x];
            exact_exps(&mut eight);
            assert_eq!(eight[6].to_bits(), x.exp().to_bits(), "{x}");
        }
        assert!(exact_exp(f32::NAN).is_nan());
    }

    #[test]
    fn whole_numbers() {
        for x in (-70_000..70_000).chain([(1 << 22) - 1, 1 - (1 << 22)]) {
            assert_eq!(whole(x as f32), x);
        }
        assert_eq!(whole(-0.0), 0);
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
