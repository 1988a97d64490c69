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
        Op::SparseToDense(_) => super::gather::sparse(cx),
        Op::MatrixDiag | Op::MatrixSetDiag => diagonal(cx),
        Op::BroadcastArgs => no("shapes are computed on the CPU, which reports those that do not broadcast"),
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

/// MATRIX_DIAG and MATRIX_SET_DIAG.
fn diagonal(cx: &mut Lower<'_, '_>) -> Lowered {
    let around = cx.node.op == Op::MatrixSetDiag;
    let x = cx.operand(0)?;
    let d = if around { cx.operand(1)? } else { x.clone() };
    let y = cx.result(0)?;
    let fits = |e: Elem| if y.elem.is_float() { e.is_float() } else { e == y.elem };
    if !fits(x.elem) || !fits(d.elem) {
        return no(format!("{} and {} to {}", x.dtype, d.dtype, y.dtype));
    }
    let (Some((outer, &[h, w])), Some((&n, lines))) = (y.shape.split_last_chunk::<2>(), d.shape.split_last()) else {
        return no("an operand whose rank is too low");
    };
    if n != h.min(w) || lines != outer || (around && x.shape != y.shape) {
        return no("a diagonal that does not fit");
    }
    let roles = [("in0", x.elem), ("in1", d.elem), ("acc", acc(y.elem)), ("out", y.elem)];
    let key = KernelKey::new("diagonal", &roles).set("AROUND", around as i32);
    let params = Params::new().u(y.quads()).u(y.row_quads()).u(w).u(h).u(d.row_quads());
    cx.dispatch(key, &[x.slot, d.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}
