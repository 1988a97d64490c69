//! Normalizations along the innermost dimension.

use super::{WG, activation, is_quantized, team};
use crate::lower::{Lower, Lowered, Operand, Params, line, no};
use crate::program::rows;
use litegpu_graph::Op;
use litegpu_graph::fixed::{Multiplier, high_mul, rounding_shift, saturating_shl, type_range};
use litegpu_graph::schema::ActivationFunctionType;
use litegpu_shaders::{Elem, KernelKey};

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    let (kind, beta, step) = match &cx.node.op {
        Op::Softmax(o) => (0, o.beta, None),
        Op::LogSoftmax => (1, 1.0, None),
        Op::L2Normalization(o) => (2, 1.0, activation(o.fused_activation_function)?),
        Op::LocalResponseNormalization(_) => return local(cx, &x),
        _ => return no("no GPU kernel"),
    };
    if is_quantized(&x) {
        return integer(cx, &x, kind, beta);
    }
    if !x.elem.is_float() {
        return no(format!("{} elements", x.dtype));
    }
    let y = cx.result(0)?;
    let rows = rows(&x.shape);
    let coop = team(cx, rows, x.row_quads());
    let mut key = KernelKey::new("normalize", &[("in0", x.elem), ("acc", Elem::F32), ("out", y.elem)])
        .set("KIND", kind)
        .set("COOP", coop.is_some() as i32)
        .set("WG", coop.unwrap_or(WG) as i32);
    key.epilogue.extend(step);
    let params = Params::new().u(rows).u(x.row_quads()).u(x.inner()).f(beta);
    let groups = if coop.is_some() { line(rows) } else { line(rows.div_ceil(WG)) };
    cx.dispatch(key, &[x.slot], &[y.slot], &[], params, groups)
}

fn local(cx: &mut Lower<'_, '_>, x: &Operand<'_>) -> Lowered {
    let Op::LocalResponseNormalization(o) = &cx.node.op else { return no("no GPU kernel") };
    if !x.elem.is_float() {
        return no(format!("{} elements", x.dtype));
    }
    let Ok(radius) = usize::try_from(o.radius) else { return no("a negative radius") };
    let y = cx.result(0)?;
    let key = KernelKey::new("lrn", &[("in0", x.elem), ("acc", Elem::F32), ("out", y.elem)]);
    let params = Params::new()
        .u(y.quads())
        .u(y.row_quads())
        .u(y.inner())
        .u(radius.min(y.inner()))
        .f(o.bias)
        .f(o.alpha)
        .f(o.beta);
    cx.dispatch(key, &[x.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}

/// The 8-bit kernels in the reference's fixed point: differences to a row's maximum have 5 integer bits.
const INTEGER_BITS: i32 = 5;

fn integer(cx: &mut Lower<'_, '_>, x: &Operand<'_>, kind: i32, beta: f32) -> Lowered {
    if let Op::L2Normalization(o) = &cx.node.op
        && o.fused_activation_function != ActivationFunctionType::NONE
    {
        return no("a fused activation on quantized elements");
    }
    let y = cx.result(0)?;
    if y.elem != x.elem {
        return no(format!("{} to {}", x.dtype, y.dtype));
    }
    let (low, high) = type_range(y.dtype)?;
    let (scale, zero) = x.scale_zero()?;
    let mut table = vec![0u8; 16];
    let (mut diff_min, mut reverse) = (0, Multiplier::default());
    if kind != 2 {
        let real = (beta as f64 * scale as f64 * f64::from(1 << (31 - INTEGER_BITS))).min(f64::from(i32::MAX));
        let m = Multiplier::new(real);
        if real.is_nan() || real <= 1.0 || !(1..=31).contains(&m.shift) {
            return no("a scale that the fixed-point arithmetic cannot express");
        }
        // Differences below this would overflow; their exponential is as good as zero.
        let reach = f64::from((1 << INTEGER_BITS) - 1) * f64::from(1 << (31 - INTEGER_BITS));
        diff_min = -((reach / 2f64.powi(m.shift)).floor() as i32);
        table = (0..256).flat_map(|d| entry(-d, m, diff_min)).flat_map(i32::to_le_bytes).collect();
        reverse = Multiplier::new(2f64.powi(31 - m.shift) / m.value as f64);
    }
    let table = cx.weight(|| Ok(table))?;
    let rows = rows(&x.shape);
    let coop = team(cx, rows, x.row_quads());
    let key = KernelKey::new("qnormalize", &[("in0", x.elem), ("acc", Elem::I32), ("out", y.elem)])
        .set("KIND", kind)
        .set("COOP", coop.is_some() as i32)
        .set("WG", coop.unwrap_or(WG) as i32);
    // L2: int8 folds the result's scale (2^7) into the multiplication, uint8 multiplies by it before.
    let signed = x.elem == Elem::I8;
    let params = Params::new()
        .u(rows)
        .u(x.row_quads())
        .u(x.inner())
        .i(low)
        .i(high)
        .i(zero)
        .u(if signed { 0 } else { 7 })
        .i(if signed { 7 } else { 0 })
        .i(if signed { 0 } else { 128 })
        .i(diff_min)
        .i(reverse.value)
        .i(reverse.shift);
    let groups = if coop.is_some() { line(rows) } else { line(rows.div_ceil(WG)) };
    cx.dispatch(key, &[x.slot, table], &[y.slot], &[], params, groups)
}

/// The table's entry for a difference: (its exponential, the difference in fixed point).
fn entry(diff: i32, m: Multiplier, diff_min: i32) -> [i32; 2] {
    if diff < diff_min {
        return [0, 0];
    }
    let fixed = m.apply(diff);
    [exp_negative(fixed), fixed]
}

/// exp(a) with 31 fraction bits, for a <= 0 with 26: a Taylor series within the last quarter, and a product of
/// constants exp(-2^k) for the bits above.
fn exp_negative(a: i32) -> i32 {
    const FRACTION: u32 = 31 - INTEGER_BITS as u32;
    const QUARTER: i32 = 1 << (FRACTION - 2);
    if a == 0 {
        return i32::MAX;
    }
    let low = (a & (QUARTER - 1)) - QUARTER;
    let rest = low.wrapping_sub(a);
    // Around -1/8.
    let x = saturating_shl(low, INTEGER_BITS as u32).wrapping_add(1 << 28);
    let x2 = high_mul(x, x);
    let x3 = high_mul(x2, x);
    let x4 = high_mul(x2, x2);
    let third = 715_827_883;
    let tail = rounding_shift(high_mul(rounding_shift(x4, 2).wrapping_add(x3), third).wrapping_add(x2), 1);
    let eighth = 1_895_147_668i32;
    let mut r = eighth.wrapping_add(high_mul(eighth, x.wrapping_add(tail)));
    // exp(-1/4), exp(-1/2), exp(-1), ... exp(-16).
    let powers = [1_672_461_947, 1_302_514_674, 790_015_084, 290_630_308, 39_332_535, 720_401, 242];
    for (k, &power) in powers.iter().enumerate() {
        if rest & (QUARTER << k) != 0 {
            r = high_mul(r, power);
        }
    }
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials() {
        for i in 0..4000 {
            let real = -f64::from(i) * 0.0078;
            let a = (real * f64::from(1 << 26)) as i32;
            let got = f64::from(exp_negative(a)) / 2f64.powi(31);
            assert!((got - real.exp()).abs() < 3e-7, "{real}: {got}");
        }
        assert_eq!(exp_negative(0), i32::MAX);
    }
}
