//! Normalizations along the innermost dimension.

use super::{WG, activation, binary, is_quantized, team};
use crate::convert;
use crate::lower::{Lower, Lowered, Operand, Params, Scene, line, no};
use crate::program::{row_quads, rows};
use litegpu_graph::fixed::{Multiplier, high_mul, rounding_shift, saturating_shl, type_range};
use litegpu_graph::schema::ActivationFunctionType;
use litegpu_graph::{Node, Op, Shape, TensorId};
use litegpu_shaders::{Elem, KernelKey, Step};

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
    emit(cx, &x, &y, kind, beta, step)
}

fn emit(cx: &mut Lower<'_, '_>, x: &Operand<'_>, y: &Operand<'_>, kind: i32, beta: f32, step: Option<Step>) -> Lowered {
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

/// A normalization that a file spells out: x, less its mean if that is taken off, divided by the root of the mean of
/// squares.
struct Standard {
    x: TensorId,
    axes: Vec<usize>,
    epsilon: f32,
    mean: Option<TensorId>,
}

/// Normalizations and softmax in elementary operators, recognised at the operator that yields their result. What only led
/// there is then read by nobody, and is not run. Whether the operator was one.
pub(super) fn spelled_out(cx: &mut Lower<'_, '_>) -> Lowered<bool> {
    let plain = |f: ActivationFunctionType| f == ActivationFunctionType::NONE;
    let found = match (&cx.node.op, cx.node.input(0), cx.node.input(1)) {
        (Op::Mul(o), Some(a), Some(b)) if plain(o.fused_activation_function) => {
            product(cx.scene, a, b).map(|s| (s, None, None))
        }
        (Op::Div(o), Some(a), Some(b)) if plain(o.fused_activation_function) => {
            if let Some(x) = softmax(cx.scene, a, b) {
                return soft(cx, x);
            }
            quotient(cx.scene, a, b).map(|s| (s, None, None))
        }
        (Op::Add(o), Some(a), Some(b)) if plain(o.fused_activation_function) => {
            shifted(cx.scene, a, b).or_else(|| shifted(cx.scene, b, a))
        }
        _ => None,
    };
    match found {
        Some((standard, factor, offset)) => standardize(cx, &standard, factor, offset),
        None => Ok(false),
    }
}

/// The operator that writes a tensor, and its operands.
fn made<'a>(scene: &Scene<'a>, t: TensorId) -> Option<(&'a Node, TensorId, Option<TensorId>)> {
    let node = scene.producer(t)?;
    let activation = match &node.op {
        Op::Add(o) => o.fused_activation_function,
        Op::Sub(o) => o.fused_activation_function,
        Op::Mul(o) => o.fused_activation_function,
        _ => ActivationFunctionType::NONE,
    };
    let known = scene.shapes.is_known(node) || activation != ActivationFunctionType::NONE;
    (!known).then_some((node, node.input(0)?, node.input(1)))
}

fn scalar(scene: &Scene<'_>, t: TensorId) -> Option<f32> {
    match convert::floats(&scene.constant(t).ok()??)?.as_slice() {
        [v] => Some(*v),
        _ => None,
    }
}

/// A mean (or, with `sum`, a sum; or, with `most`, a maximum) that keeps its dimensions: of what, and over which axes.
fn reduced(scene: &Scene<'_>, t: TensorId, kind: fn(&Op) -> bool) -> Option<(TensorId, Vec<usize>)> {
    let (node, x, Some(axes)) = made(scene, t)? else { return None };
    let keeps = match &node.op {
        Op::Mean(o) | Op::Sum(o) | Op::ReduceMax(o) => o.keep_dims,
        _ => false,
    };
    if !keeps || !kind(&node.op) {
        return None;
    }
    let rank = scene.shape(x).ok()?.len();
    let given = convert::ints(&scene.constant(axes).ok()??)?;
    let mut axes: Vec<usize> = given.iter().map(|&a| litegpu_graph::ops::axis(a, rank).ok()).collect::<Option<_>>()?;
    litegpu_graph::order(&mut axes, &mut |a, b| a.cmp(&b));
    axes.dedup();
    Some((x, axes))
}

fn is_mean(op: &Op) -> bool {
    matches!(op, Op::Mean(_))
}

/// What `t` is the mean of squares of, more `epsilon`.
fn spread(scene: &Scene<'_>, t: TensorId) -> Option<Standard> {
    let (node, a, Some(b)) = made(scene, t)? else { return None };
    if !matches!(node.op, Op::Add(_)) {
        return None;
    }
    let (variance, epsilon) = match (scalar(scene, a), scalar(scene, b)) {
        (None, Some(e)) => (a, e),
        (Some(e), None) => (b, e),
        _ => return None,
    };
    let (squares, axes) = reduced(scene, variance, is_mean)?;
    let (node, a, b) = made(scene, squares)?;
    let less = |x: TensorId, mean: TensorId| {
        let (of, over) = reduced(scene, mean, is_mean)?;
        (of == x && over == axes).then(|| Standard { x, axes: axes.clone(), epsilon, mean: Some(mean) })
    };
    match node.op {
        Op::SquaredDifference => less(a, b?).or_else(|| less(b?, a)),
        Op::Square | Op::Mul(_) if matches!(node.op, Op::Square) || b == Some(a) => {
            let centred = made(scene, a).filter(|(n, ..)| matches!(n.op, Op::Sub(_)));
            let centred = centred.and_then(|(_, x, mean)| less(x, mean?));
            Some(centred.unwrap_or(Standard { x: a, axes, epsilon, mean: None }))
        }
        _ => None,
    }
}

/// Whether `t` is what a normalization divides.
fn is_dividend(scene: &Scene<'_>, t: TensorId, s: &Standard) -> bool {
    match s.mean {
        None => t == s.x,
        Some(mean) => made(scene, t).is_some_and(|(n, a, b)| matches!(n.op, Op::Sub(_)) && (a, b) == (s.x, Some(mean))),
    }
}

/// What `t` is the reciprocal of the root of the spread of.
fn reciprocal(scene: &Scene<'_>, t: TensorId) -> Option<Standard> {
    let (node, x, _) = made(scene, t)?;
    if matches!(node.op, Op::Rsqrt) { spread(scene, x) } else { None }
}

fn product(scene: &Scene<'_>, a: TensorId, b: TensorId) -> Option<Standard> {
    let of = |x: TensorId, r: TensorId| reciprocal(scene, r).filter(|s| is_dividend(scene, x, s));
    of(a, b).or_else(|| of(b, a))
}

fn quotient(scene: &Scene<'_>, a: TensorId, b: TensorId) -> Option<Standard> {
    let (node, x, _) = made(scene, b)?;
    let root = matches!(node.op, Op::Sqrt);
    spread(scene, x).filter(|s| root && is_dividend(scene, a, s))
}

type Shifted = (Standard, Option<TensorId>, Option<TensorId>);

/// x s + (offset - mean s), where s is the reciprocal, or that times a factor.
fn shifted(scene: &Scene<'_>, a: TensorId, b: TensorId) -> Option<Shifted> {
    let (first, x, Some(s)) = made(scene, a)? else { return None };
    let (rest, offset, Some(taken)) = made(scene, b)? else { return None };
    let (second, m, Some(t)) = made(scene, taken)? else { return None };
    if !matches!((&first.op, &rest.op, &second.op), (Op::Mul(_), Op::Sub(_), Op::Mul(_))) {
        return None;
    }
    let scaled = |s: TensorId| {
        if let Some(standard) = reciprocal(scene, s) {
            return Some((standard, None));
        }
        let (node, r, Some(factor)) = made(scene, s)? else { return None };
        let is = matches!(node.op, Op::Mul(_));
        let either = reciprocal(scene, r).map(|s| (s, Some(factor)));
        either.or_else(|| reciprocal(scene, factor).map(|s| (s, Some(r)))).filter(|_| is)
    };
    for (x, s) in [(x, s), (s, x)] {
        for (m, t) in [(m, t), (t, m)] {
            if let Some((standard, factor)) = scaled(s).filter(|_| s == t)
                && standard.x == x
                && standard.mean == Some(m)
            {
                return Some((standard, factor, Some(offset)));
            }
        }
    }
    None
}

/// exp(x - max) divided by the sum of that.
fn softmax(scene: &Scene<'_>, a: TensorId, b: TensorId) -> Option<TensorId> {
    let (of, axes) = reduced(scene, b, |op| matches!(op, Op::Sum(_)))?;
    let (node, less, _) = made(scene, a)?;
    let (taken, x, Some(most)) = made(scene, less)? else { return None };
    let (whole, over) = reduced(scene, most, |op| matches!(op, Op::ReduceMax(_)))?;
    let last = scene.shape(x).ok()?.len().checked_sub(1)?;
    let is = of == a && matches!(node.op, Op::Exp) && matches!(taken.op, Op::Sub(_));
    (is && whole == x && axes == [last] && over == axes).then_some(x)
}

fn soft(cx: &mut Lower<'_, '_>, t: TensorId) -> Lowered<bool> {
    let x = cx.operand_of(t)?;
    let y = cx.result(0)?;
    if !x.elem.is_float() || !y.elem.is_float() || x.shape != y.shape {
        return Ok(false);
    }
    emit(cx, &x, &y, 0, 1.0, None).map(|()| true)
}

/// How groups lie: (groups in all, beside each other, rows of a group, elements of its stretch of a row); `None` where no
/// stretch of whole quads is a row of a group.
fn groups(shape: &[usize], axes: &[usize]) -> Option<(usize, usize, usize, usize)> {
    let n = |d: std::ops::Range<usize>| shape.get(d).map(|s| s.iter().product::<usize>());
    let last = shape.len().checked_sub(1)?;
    if axes.last() != Some(&last) {
        return None;
    }
    // Those of the innermost dimensions, and those of the rows before the groups.
    let mut inner = last;
    while inner > 0 && axes.contains(&(inner - 1)) {
        inner -= 1;
    }
    let before: Vec<usize> = axes.iter().copied().filter(|a| *a < inner).collect();
    if before.is_empty() {
        return Some((n(0..inner)?, 1, n(inner..last)?, *shape.get(last)?));
    }
    let (start, end) = (*before.first()?, before.last()? + 1);
    let width = *shape.get(last)?;
    if end - start != before.len() || inner != last || width % 4 != 0 {
        return None;
    }
    let beside = n(end..last)?;
    Some((n(0..start)?.checked_mul(beside)?, beside, n(start..end)?, width))
}

fn standardize(
    cx: &mut Lower<'_, '_>,
    s: &Standard,
    factor: Option<TensorId>,
    offset: Option<TensorId>,
) -> Lowered<bool> {
    let shape: Shape = cx.scene.shape(s.x)?;
    let Some((count, beside, rows, width)) = groups(&shape, &s.axes) else { return Ok(false) };
    if count == 0 || !s.epsilon.is_finite() || s.epsilon < 0.0 {
        return Ok(false);
    }
    let x = cx.operand_of(s.x)?;
    let more = [factor, offset].map(|t| t.map(|t| cx.operand_of(t)).transpose());
    let [factor, offset] = more;
    let (factor, offset) = (factor?, offset?);
    let y = cx.result(0)?;
    let floats = [Some(&x), Some(&y), factor.as_ref(), offset.as_ref()];
    if y.shape != shape || floats.iter().flatten().any(|o| !o.elem.is_float()) {
        return Ok(false);
    }
    let quads = row_quads(&[width]);
    let coop = team(cx, count, rows * quads);
    let mut steps = Vec::new();
    if let Some(f) = &factor {
        steps.push(("f_mul", f));
    }
    if let Some(o) = &offset {
        steps.push(("f_add", o));
    }
    // What follows the normalization is element-wise, and joins its kernel.
    let mut at = match steps.is_empty() {
        true => y.clone(),
        false => Operand { slot: cx.temp(&shape, y.elem), ..y.clone() },
    };
    let key = KernelKey::new("standardize", &[("in0", x.elem), ("acc", Elem::F32), ("out", y.elem)])
        .set("CENTRE", s.mean.is_some() as i32)
        .set("LONG", (rows > 1) as i32)
        .set("COOP", coop.is_some() as i32)
        .set("WG", coop.unwrap_or(WG) as i32);
    let params = Params::new().u(count).u(beside).u(rows).u(quads).u(beside * quads).u(width).f(s.epsilon);
    let groups = if coop.is_some() { line(count) } else { line(count.div_ceil(WG)) };
    cx.dispatch(key, &[x.slot], &[at.slot], &[], params, groups)?;
    let last = steps.len();
    for (i, (f, operand)) in steps.into_iter().enumerate() {
        let to = match i + 1 == last {
            true => y.clone(),
            false => Operand { slot: cx.temp(&shape, y.elem), ..y.clone() },
        };
        binary::emit(cx, &at, operand, &to, f, Vec::new())?;
        at = to;
    }
    Ok(true)
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
