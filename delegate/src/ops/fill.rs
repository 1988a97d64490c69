//! Operators that make tensors from few values.

use super::{WG, acc};
use crate::lower::{Lower, Lowered, Params, line, no};
use crate::program::{row_quads, tail};
use litegpu_graph::ops::axis;
use litegpu_graph::{Op, elements};
use litegpu_shaders::{Elem, KernelKey};

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    match cx.node.op {
        Op::Fill => fill(cx),
        Op::OneHot(_) => one_hot(cx),
        Op::RandomStandardNormal(_) | Op::RandomUniform(_) | Op::Multinomial(_) => {
            no("random numbers come from the CPU")
        }
        Op::Range => no("the number of elements hangs on computed values"),
        _ => no("no GPU kernel"),
    }
}

fn fill(cx: &mut Lower<'_, '_>) -> Lowered {
    let (v, y) = (cx.operand(1)?, cx.result(0)?);
    if v.elem.is_float() != y.elem.is_float() || (!v.elem.is_float() && v.elem != y.elem) {
        return no(format!("{} to {}", v.dtype, y.dtype));
    }
    let key = KernelKey::new("fill", &[("in0", v.elem), ("acc", acc(v.elem)), ("out", y.elem)]);
    let params = Params::new().u(y.quads()).u(y.row_quads()).u(tail(&y.shape));
    cx.dispatch(key, &[v.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}

fn one_hot(cx: &mut Lower<'_, '_>) -> Lowered {
    let Op::OneHot(o) = &cx.node.op else { return no("no GPU kernel") };
    let (slot, shape) = super::gather::indices(cx, 0)?;
    let (on, off, y) = (cx.operand(2)?, cx.operand(3)?, cx.result(0)?);
    let same = |e: Elem| if y.elem.is_float() { e.is_float() } else { e == y.elem };
    if !same(on.elem) || !same(off.elem) {
        return no(format!("{} and {} to {}", on.dtype, off.dtype, y.dtype));
    }
    let at = if o.axis == -1 { shape.len() } else { axis(o.axis as i64, shape.len() + 1)? };
    let depth = y.shape.get(at).copied().unwrap_or(1);
    let inner = elements(shape.get(at..).unwrap_or_default());
    let roles = [("in0", on.elem), ("in1", off.elem), ("acc", acc(y.elem)), ("out", y.elem)];
    let params = Params::new()
        .u(y.quads())
        .u(y.row_quads())
        .u(y.inner())
        .u(depth)
        .u(inner)
        .u(shape.last().copied().unwrap_or(1))
        .u(row_quads(&shape) * 4);
    let key = KernelKey::new("onehot", &roles);
    cx.dispatch(key, &[slot, on.slot, off.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}
