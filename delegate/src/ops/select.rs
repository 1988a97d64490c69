//! SELECT and SELECT_V2.

use super::WG;
use super::binary::broadcast;
use crate::lower::{Lower, Lowered, Operand, line, no};
use litegpu_graph::Op;
use litegpu_shaders::KernelKey;

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    match cx.node.op {
        Op::Select | Op::SelectV2 => {}
        _ => return no("the shape of its result hangs on values"),
    }
    let (mut c, a, b) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    let y = cx.result(0)?;
    if a.elem.is_float() != b.elem.is_float() || a.dtype != b.dtype {
        return no("operands of different types");
    }
    if matches!(cx.node.op, Op::Select) && c.shape.len() == 1 && y.shape.len() > 1 {
        // SELECT takes a vector of conditions for the outermost dimension. Only where that dimension is the whole
        // row can it be read as it lies.
        if c.inner() == 1 {
            c = Operand { shape: [1].into_iter().collect(), ..c };
        } else {
            return no("a condition for the outermost dimension");
        }
    }
    emit(cx, &c, &a, &b, &y)
}

/// One pass over the elements that takes each from `a` or from `b`.
pub(super) fn emit(
    cx: &mut Lower<'_, '_>,
    c: &Operand<'_>,
    a: &Operand<'_>,
    b: &Operand<'_>,
    y: &Operand<'_>,
) -> Lowered {
    let how = broadcast(&[c, a, b], y)?;
    let key = KernelKey::new("pick", &[("in0", a.elem), ("in1", b.elem), ("out", y.elem)]).set("SPLAT", how.splat);
    let params = how.params(y);
    cx.dispatch(key, &[c.slot, a.slot, b.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}
