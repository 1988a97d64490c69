//! Logistic and hyperbolic tangent of 16-bit fixed-point numbers, bit for bit as gemmlowp has them. A number with `n`
//! integer bits counts units of 2^(n - 15).

use litegpu_graph::fixed::{high_mul16 as mul, rounding_shift};

/// A constant given with 32 bits, rounded to 16.
const fn constant(x: i32) -> i16 {
    ((x + (1 << 15)) >> 16) as i16
}

fn shift_right(x: i16, n: i32) -> i16 {
    rounding_shift(x as i32, n) as i16
}

fn shift_left(x: i16, n: u32) -> i16 {
    ((x as i32) << n).clamp(i16::MIN as i32, i16::MAX as i32) as i16
}

/// exp(a) for a in [-1/4, 0): a Taylor series around -1/8.
fn exp_quarter(a: i16) -> i16 {
    const AT: i16 = constant(1_895_147_668);
    const THIRD: i16 = constant(715_827_883);
    let x = a.wrapping_add(1 << 12);
    let x2 = mul(x, x);
    let x3 = mul(x2, x);
    let x4 = mul(x2, x2);
    let tail = shift_right(mul(shift_right(x4, 2).wrapping_add(x3), THIRD).wrapping_add(x2), 1);
    AT.saturating_add(mul(AT, x.wrapping_add(tail)))
}

/// exp(a) for a <= 0 with `bits` integer bits: the last quarter by the series, the rest by one factor per bit.
fn exp_negative(a: i16, bits: i32) -> i16 {
    const FACTORS: [i16; 7] = [
        constant(1_672_461_947),
        constant(1_302_514_674),
        constant(790_015_084),
        constant(290_630_308),
        constant(39_332_535),
        constant(720_401),
        constant(242),
    ];
    if a == 0 {
        return i16::MAX;
    }
    if bits > 5 && a < -(1 << (20 - bits)) {
        return 0;
    }
    let fraction = 15 - bits;
    let quarter = 1i16 << (fraction - 2);
    let last = (a & (quarter - 1)) - quarter;
    let mut y = exp_quarter(shift_left(last, bits as u32));
    let rest = last.wrapping_sub(a);
    for (exponent, factor) in (-2..bits).zip(FACTORS) {
        if rest & (1i16 << (fraction + exponent)) != 0 {
            y = mul(y, factor);
        }
    }
    y
}

/// 1 / (1 + a) with 2 integer bits, halved, for a in (0, 1): three Newton steps.
fn reciprocal(a: i16) -> i16 {
    const FIRST: i16 = constant(1_515_870_810);
    const SLOPE: i16 = constant(-1_010_580_540);
    let half = ((a as i32 + 32767 + 1) / 2) as i16;
    let mut x = FIRST.wrapping_add(mul(half, SLOPE));
    for _ in 0..3 {
        let rest = (1i16 << 13).wrapping_sub(mul(half, x));
        x = x.wrapping_add(shift_left(mul(x, rest), 2));
    }
    x
}

/// 1 / (1 + exp(-a)) with no integer bits.
pub(super) fn logistic(a: i16, bits: i32) -> i16 {
    if a == 0 {
        return 1 << 14;
    }
    let y = shift_left(reciprocal(exp_negative(if a > 0 { a.wrapping_neg() } else { a }, bits)), 1);
    if a > 0 { y } else { i16::MAX.wrapping_sub(y) }
}

/// tanh(a) with no integer bits; `bits` at most 6.
pub(super) fn tanh(a: i16, bits: i32) -> i16 {
    if a == 0 {
        return 0;
    }
    // exp(2 a) is the exponential of the same digits with one more integer bit.
    let x = exp_negative(if a > 0 { a.wrapping_neg() } else { a }, bits + 1);
    let y = shift_left(reciprocal(x).wrapping_sub(1 << 13), 2);
    if a > 0 { y } else { y.wrapping_neg() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_the_real_functions() {
        for bits in 0..=6 {
            for a in i16::MIN..=i16::MAX {
                let x = a as f64 * 2f64.powi(bits - 15);
                let t = tanh(a, bits) as f64 / 32768.0;
                assert!((t - x.tanh()).abs() < 1.5e-3, "tanh({x}) = {t} with {bits} bits");
                let l = logistic(a, bits) as f64 / 32768.0;
                assert!((l - 1.0 / (1.0 + (-x).exp())).abs() < 1e-3, "logistic({x}) = {l} with {bits} bits");
            }
        }
    }
}
