//! Reductions over any set of axes, and ARG_MAX / ARG_MIN.

use super::{WG, acc, is_quantized};
use crate::lower::{Lower, Lowered, Operand, Params, line, no};
use crate::program::row_quads;
use litegpu_graph::fixed::{Multiplier, type_range};
use litegpu_graph::ops::axis;
use litegpu_graph::{DType, Op, elements};
use litegpu_shaders::KernelKey;

/// Joins neighbouring (size, stride) pairs, innermost first.
fn join(list: impl Iterator<Item = (usize, usize)>) -> Lowered<Vec<(usize, usize)>> {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for (n, s) in list.filter(|(n, _)| *n != 1) {
        match out.last_mut() {
            Some((m, t)) if s == *t * *m => *m *= n,
            _ => out.push((n, s)),
        }
    }
    if out.len() > 6 { no("more than 6 dimensions") } else { Ok(out) }
}

fn pairs(params: Params, list: &[(usize, usize)]) -> Params {
    (0..6).fold(params, |p, i| {
        let (n, s) = list.get(i).copied().unwrap_or((1, 0));
        p.u(n).u(s).u(0).u(0)
    })
}

/// (size, stride in padded elements) of each dimension, outermost first.
fn layout(x: &Operand<'_>) -> Vec<(usize, usize)> {
    let s = super::layout::strides(&x.shape);
    x.shape.iter().zip(s).map(|(&n, s)| (n, s as usize)).collect()
}

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    if matches!(cx.node.op, Op::ArgMax(_) | Op::ArgMin(_)) {
        return arg(cx, &x);
    }
    let float = x.elem.is_float();
    let lowest = f32::MIN.to_bits();
    let highest = f32::MAX.to_bits();
    let (combine, neutral) = match (&cx.node.op, float) {
        (Op::Sum(_) | Op::Mean(_), true) => ("f_add", 0),
        (Op::ReduceProd(_), true) => ("f_mul", 1f32.to_bits()),
        (Op::ReduceMax(_), true) => ("f_max", lowest),
        (Op::ReduceMin(_), true) => ("f_min", highest),
        (Op::Sum(_) | Op::Mean(_), false) => ("i_add", 0),
        (Op::ReduceProd(_), false) if x.dtype == DType::I32 => ("i_mul", 1),
        (Op::ReduceMax(_), false) => ("i_max", i32::MIN as u32),
        (Op::ReduceMin(_), false) => ("i_min", i32::MAX as u32),
        (Op::ReduceAny(_), false) => ("i_or", 0),
        (Op::ReduceAll(_), false) => ("i_and", 1),
        _ => return no(format!("{} elements", x.dtype)),
    };
    let rank = x.shape.len();
    let mut reduced = vec![false; rank];
    for a in cx.ints(1)? {
        let a = axis(a, rank)?;
        if let Some(r) = reduced.get_mut(a) {
            *r = true;
        }
    }
    let y = cx.result(0)?;
    let mean = matches!(cx.node.op, Op::Mean(_));
    let dims = layout(&x);
    let count: usize = dims.iter().zip(&reduced).filter(|(_, r)| **r).map(|((n, _), _)| n).product();
    let mut q = (Multiplier::default(), 0, [i32::MIN, i32::MAX, 0, 0]);
    if is_quantized(&x) && matches!(cx.node.op, Op::Sum(_) | Op::Mean(_) | Op::ReduceProd(_)) {
        q = scaled(&x, &y, count, mean)?;
    } else if !float && mean {
        return no("MEAN of plain integers");
    } else if is_quantized(&x) && x.scale_zero()? != y.scale_zero()? {
        return no("a result quantized differently than its operand");
    }
    let lanes = !reduced.last().copied().unwrap_or(false);
    let kept = dims.iter().zip(&reduced).rev();
    // Kept dimensions number the output's elements, so none may be dropped before the innermost is placed.
    let keep = join(kept.clone().filter(|(_, r)| !**r).map(|(d, _)| *d))?;
    let over = join(kept.filter(|(_, r)| **r).map(|(d, _)| *d).skip(usize::from(!lanes && rank > 0)))?;
    let inner = if lanes { 4 } else { x.inner() };
    let steps: usize = over.iter().map(|(n, _)| n).product();
    // The result's own innermost dimension: 1 where it is kept as a reduced one.
    let width = y.inner();
    if lanes && width != x.inner() {
        return no("a result whose innermost dimension is not its operand's");
    }
    let work = steps * if lanes { 1 } else { row_quads(&x.shape) };
    let coop = work >= 256 && y.quads() <= 4096;
    let close = if float { "close_f" } else { "close_i" };
    let key = KernelKey::new("reduce", &[("in0", x.elem), ("acc", acc(x.elem)), ("out", y.elem)])
        .with("COMBINE", combine)
        .with("CLOSE", close)
        .set("LANES", lanes as i32)
        .set("COOP", coop as i32);
    let (m, offset, limits) = q;
    let params = Params::new()
        .u(y.quads())
        .u(y.row_quads())
        .u(width)
        .u(keep.len())
        .u(steps)
        .u(inner)
        .u(over.len())
        .f(if mean { count as f32 } else { 1.0 })
        .i(neutral as i32)
        .i(m.value)
        .i(m.shift)
        .i(offset)
        .i4(limits);
    let params = pairs(pairs(params, &keep), &over);
    let groups = if coop { line(y.quads()) } else { line(y.quads().div_ceil(WG)) };
    cx.dispatch(key, &[x.slot], &[y.slot], &[], params, groups)
}

/// The fixed-point scaling of a sum: (multiplier, offset, limits and what is subtracted first).
fn scaled(x: &Operand<'_>, y: &Operand<'_>, count: usize, mean: bool) -> Lowered<(Multiplier, i32, [i32; 4])> {
    let ((si, zi), (so, zo)) = (x.scale_zero()?, y.scale_zero()?);
    let (low, high) = type_range(y.dtype)?;
    let n = i32::try_from(count).map_err(|_| crate::lower::Unsupported::new("too many elements to reduce"))?;
    if count == 0 || n > 1 << 22 {
        return no("too many elements to reduce");
    }
    let mut m = Multiplier::new(si as f64 / so as f64);
    if mean {
        // The count divides the multiplier's fraction, with as many bits kept as fit.
        let mut shift = 63 - i32::try_from((count as u64).leading_zeros()).unwrap_or(0);
        shift = shift.min(32).min(31 + m.shift);
        if shift < 0 {
            return no("a scale ratio too small");
        }
        m.value = (((m.value as i64) << shift) / count as i64) as i32;
        m.shift -= shift;
    }
    Ok((m, zo, [low, high, zi.saturating_mul(n), 0]))
}

fn arg(cx: &mut Lower<'_, '_>, x: &Operand<'_>) -> Lowered {
    let at = axis(cx.ints(1)?.first().copied().unwrap_or(0), x.shape.len())?;
    let y = cx.result(0)?;
    if !matches!(y.dtype, DType::I32 | DType::I64) {
        return no(format!("{} indices", y.dtype));
    }
    let dims = layout(x);
    let keep = join(dims.iter().enumerate().rev().filter(|(d, _)| *d != at).map(|(_, d)| *d))?;
    let (n, stride) = dims.get(at).copied().unwrap_or((1, 1));
    let least = matches!(cx.node.op, Op::ArgMin(_));
    let key = KernelKey::new("argext", &[("in0", x.elem), ("out", y.elem)]).set("LEAST", least as i32);
    let params = Params::new().u(y.quads()).u(y.row_quads()).u(y.inner()).u(keep.len()).u(n).u(stride).row();
    let _ = elements;
    cx.dispatch(key, &[x.slot], &[y.slot], &[], pairs(params, &keep), line(y.quads().div_ceil(WG)))
}
