//! Operators that only change the shape: an alias wherever the padding stays in place.

use super::layout::{Copy, Dim};
use crate::lower::{Lower, Lowered, no};
use crate::program::row_quads;
use litegpu_graph::{Op, elements};

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    match cx.node.op {
        Op::Reshape(_) | Op::Squeeze(_) | Op::ExpandDims => {}
        _ => return no("its result is a shape"),
    }
    let x = cx.operand(0)?;
    let Some(&t) = cx.node.outputs.first() else { return no("no result") };
    let shape = cx.scene.shape(t)?;
    if elements(&shape) != elements(&x.shape) {
        return no("a reshape that changes the number of elements");
    }
    let (a, b) = (x.inner(), shape.last().copied().unwrap_or(1));
    if !x.constant && x.elem == cx.scene.elem(t)? && (a == b || (a % 4 == 0 && b % 4 == 0)) {
        return cx.alias(0, &x);
    }
    let y = cx.result(0)?;
    let dims = vec![
        Dim { n: a, stride: 1, low: 0, high: a },
        Dim::whole(elements(&x.shape) / a.max(1), (row_quads(&x.shape) * 4) as i64),
    ];
    Copy::all(&y, dims).emit(cx, &x, &y)
}
