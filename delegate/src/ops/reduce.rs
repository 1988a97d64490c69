//! Reductions over any set of axes, ARG_MAX, ARG_MIN and CUMSUM.

use super::{MAX_LOOP, RARE, WG, acc, is_quantized, team};
use crate::lower::{Lower, Lowered, Operand, Params, line, no};
use crate::program::{row_quads, rows, tail};
use litegpu_graph::fixed::{Multiplier, type_range};
use litegpu_graph::ops::axis;
use litegpu_graph::{DType, Op, elements};
use litegpu_shaders::{Elem, KernelKey};

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
    match cx.node.op {
        Op::ArgMax(_) | Op::ArgMin(_) => arg(cx),
        Op::Cumsum(_) => cumsum(cx),
        Op::SegmentSum
        | Op::UnsortedSegmentSum
        | Op::UnsortedSegmentProd
        | Op::UnsortedSegmentMax
        | Op::UnsortedSegmentMin => super::gather::segments(cx),
        _ => reduce(cx),
    }
}

fn reduce(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    let float = x.elem.is_float();
    let plain = x.dtype == DType::I32;
    let (combine, neutral) = match (&cx.node.op, float) {
        (Op::Sum(_) | Op::Mean(_), true) => ("f_add", 0),
        (Op::ReduceProd(_), true) => ("f_mul", 1f32.to_bits()),
        (Op::ReduceMax(_), true) => ("f_max", f32::MIN.to_bits()),
        (Op::ReduceMin(_), true) => ("f_min", f32::MAX.to_bits()),
        (Op::Mean(_), false) if !is_quantized(&x) => return no("an integer MEAN needs 64-bit sums"),
        (Op::Sum(_), false) if RARE && is_quantized(&x) => ("i_add", 0),
        (Op::Sum(_), false) if !plain => return no(format!("{} sums", x.dtype)),
        (Op::Sum(_) | Op::Mean(_), false) => ("i_add", 0),
        (Op::ReduceProd(_), false) if plain => ("i_mul", 1),
        (Op::ReduceProd(_), false) => return no("every step of a quantized product is rounded, one after the other"),
        (Op::ReduceMax(_), false) => ("i_max", i32::MIN as u32),
        (Op::ReduceMin(_), false) => ("i_min", i32::MAX as u32),
        (Op::ReduceAny(_), false) if x.dtype == DType::Bool => ("i_or", 0),
        (Op::ReduceAll(_), false) if x.dtype == DType::Bool => ("i_and", 1),
        (op, _) => return no(format!("no GPU kernel for {} of {}", op.name(), x.dtype)),
    };
    let rank = x.shape.len();
    let mut reduced = vec![false; rank];
    for a in cx.ints(1)? {
        // A scalar has no axis; 0 and -1 are accepted for it.
        if rank > 0 {
            let a = axis(a, rank)?;
            if let Some(r) = reduced.get_mut(a) {
                *r = true;
            }
        }
    }
    let y = cx.result(0)?;
    let mean = matches!(cx.node.op, Op::Mean(_));
    let dims = layout(&x);
    let count: usize = dims.iter().zip(&reduced).filter(|(_, r)| **r).map(|((n, _), _)| n).product();
    let mut q = (Multiplier::default(), 0, [i32::MIN, i32::MAX, 0, 0]);
    let summed = RARE && is_quantized(&x) && matches!(cx.node.op, Op::Sum(_));
    // Sums of bytes, which are scaled after that.
    let result = y.clone();
    let y = match summed {
        true => Operand { slot: cx.temp(&y.shape, Elem::I32), elem: Elem::I32, dtype: DType::I32, quant: None, ..y },
        false => y,
    };
    if is_quantized(&x) && !summed {
        if mean {
            q = scaled(&x, &y, count)?;
        } else if x.scale_zero()? != y.scale_zero()? {
            return no("a result quantized differently than its operand");
        }
    }
    let lanes = !reduced.last().copied().unwrap_or(false);
    let kept = dims.iter().zip(&reduced).rev();
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
    let coop = team(cx, y.quads(), work);
    if work > MAX_LOOP * 256 {
        return no("too many elements to reduce");
    }
    let close = if float { "close_f" } else { "close_i" };
    let key = KernelKey::new("reduce", &[("in0", x.elem), ("acc", acc(x.elem)), ("out", y.elem)])
        .with("COMBINE", combine)
        .with("CLOSE", close)
        .set("LANES", lanes as i32)
        .set("COOP", coop.is_some() as i32)
        .set("WG", coop.unwrap_or(WG) as i32);
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
    let groups = if coop.is_some() { line(y.quads()) } else { line(y.quads().div_ceil(WG)) };
    cx.dispatch(key, &[x.slot], &[y.slot], &[], params, groups)?;
    if summed { climb(cx, &x, count, &y, &result) } else { Ok(()) }
}

/// Sums of `count` bytes to a quantized result. The reference scales and rounds in floats, which no GPU promises to round as
/// it does; but that grows with the sum, so that where it takes each next step says all.
fn climb(cx: &mut Lower<'_, '_>, x: &Operand<'_>, count: usize, sums: &Operand<'_>, y: &Operand<'_>) -> Lowered {
    let ((si, zi), (so, zo)) = (x.scale_zero()?, y.scale_zero()?);
    let ((least, most), (low, high)) = (type_range(x.dtype)?, type_range(y.dtype)?);
    let scale = si / so;
    let bias = -zi as f32 * scale * count as f32;
    if !is_quantized(y) || count > 1 << 22 || !(scale > 0.0 && scale.is_finite() && bias.is_finite()) {
        return no("a sum that cannot be scaled");
    }
    let value = |sum: i32| ((sum as f32 * scale + bias).round() as i32).saturating_add(zo).clamp(low, high);
    let first = |wanted: i32| {
        let (mut from, mut to) = (least * count as i32, most * count as i32);
        if value(to) < wanted {
            return i32::MAX;
        }
        while from < to {
            let middle = from + (to - from) / 2;
            if value(middle) >= wanted { to = middle } else { from = middle + 1 }
        }
        from
    };
    let rungs = cx.weight(|| Ok((low + 1..=high).flat_map(|v| first(v).to_le_bytes()).collect()))?;
    let params = Params::new().u(y.quads()).u(y.row_quads()).u(tail(&y.shape)).i(low);
    let key = KernelKey::new("ladder", &[("out", y.elem)]);
    cx.dispatch(key, &[sums.slot, rungs], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}

/// The fixed-point scaling of a mean: (multiplier, offset, limits and what is subtracted from the sum first).
fn scaled(x: &Operand<'_>, y: &Operand<'_>, count: usize) -> Lowered<(Multiplier, i32, [i32; 4])> {
    let ((si, zi), (so, zo)) = (x.scale_zero()?, y.scale_zero()?);
    let (low, high) = type_range(y.dtype)?;
    // 2^22 elements of 8 bits, and their zero points, still add up in 32 bits.
    let Some(n) = i32::try_from(count).ok().filter(|&n| n > 0 && n <= 1 << 22) else {
        return no("too many elements to reduce");
    };
    let mut m = Multiplier::new(si as f64 / so as f64);
    // The count divides the multiplier's fraction, with as many bits kept as fit.
    let shift = (n.ilog2() as i32).min(31 + m.shift);
    if shift < 0 || m.shift > 30 {
        return no("a scale ratio out of range");
    }
    m.value = (((m.value as i64) << shift) / n as i64) as i32;
    m.shift -= shift;
    if m.value == 0 {
        return no("a scale ratio out of range");
    }
    Ok((m, zo, [low, high, zi.saturating_mul(n), 0]))
}

fn arg(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    let Some(&[a]) = cx.ints(1)?.first_chunk() else { return no("no axis") };
    let at = axis(a, x.shape.len())?;
    let y = cx.result(0)?;
    if !matches!(y.dtype, DType::I32 | DType::I64) {
        return no(format!("{} indices", y.dtype));
    }
    let dims = layout(&x);
    let keep = join(dims.iter().enumerate().rev().filter(|(d, _)| *d != at).map(|(_, d)| *d))?;
    let (n, stride) = dims.get(at).copied().unwrap_or((1, 1));
    let lanes = at + 1 != x.shape.len();
    if lanes && n > MAX_LOOP {
        return no(format!("{n} comparisons one after the other"));
    }
    let least = matches!(cx.node.op, Op::ArgMin(_));
    let coop = if lanes { None } else { team(cx, y.quads(), row_quads(&x.shape)) };
    let key = KernelKey::new("argext", &[("in0", x.elem), ("out", y.elem)])
        .set("LEAST", least as i32)
        .set("LANES", lanes as i32)
        .set("COOP", coop.is_some() as i32)
        .set("WG", coop.unwrap_or(WG) as i32);
    let params = Params::new().u(y.quads()).u(y.row_quads()).u(y.inner()).u(keep.len()).u(n).u(stride / 4).row();
    let groups = if coop.is_some() { line(y.quads()) } else { line(y.quads().div_ceil(WG)) };
    cx.dispatch(key, &[x.slot], &[y.slot], &[], pairs(params, &keep), groups)
}

fn cumsum(cx: &mut Lower<'_, '_>) -> Lowered {
    let Op::Cumsum(o) = &cx.node.op else { return no("no GPU kernel") };
    let x = cx.operand(0)?;
    if !x.elem.is_float() && x.dtype != DType::I32 {
        return no(format!("{} elements", x.dtype));
    }
    let Some(&[a]) = cx.ints(1)?.first_chunk() else { return no("no axis") };
    let at = axis(a, x.shape.len())?;
    let y = cx.result(0)?;
    let lanes = at + 1 != x.shape.len();
    let count = x.shape.get(at).copied().unwrap_or(1).max(1);
    if count > MAX_LOOP {
        return no(format!("{count} sums one after the other"));
    }
    let behind = x.shape.get(at + 1..).unwrap_or_default();
    let block = match behind.split_last() {
        Some((_, between)) => elements(between) * x.row_quads(),
        None => 1,
    };
    let lines = if lanes { y.quads() / count } else { rows(&x.shape) };
    let key = KernelKey::new("cumsum", &[("in0", x.elem), ("acc", acc(x.elem)), ("out", y.elem)])
        .set("LANES", lanes as i32)
        .set("EXCLUSIVE", o.exclusive as i32)
        .set("REVERSE", o.reverse as i32);
    let params = Params::new().u(lines).u(block * count).u(block).u(count).u(x.row_quads()).u(x.inner());
    cx.dispatch(key, &[x.slot], &[y.slot], &[], params, line(lines.div_ceil(WG)))
}
