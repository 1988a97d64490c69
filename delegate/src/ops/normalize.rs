//! Normalizations along the innermost dimension.

use super::{WG, activation};
use crate::lower::{Lower, Lowered, Params, line, no};
use crate::program::rows;
use litegpu_graph::Op;
use litegpu_shaders::{Elem, KernelKey};

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    let (kind, beta, step) = match &cx.node.op {
        Op::Softmax(o) => (0, o.beta, None),
        Op::LogSoftmax => (1, 1.0, None),
        Op::L2Normalization(o) => (2, 1.0, activation(o.fused_activation_function)?),
        _ => return no("no GPU kernel"),
    };
    if !x.elem.is_float() {
        return no(format!("{} elements", x.dtype));
    }
    let y = cx.result(0)?;
    let rows = rows(&x.shape);
    let coop = x.row_quads() >= 128 && rows < 4096;
    let mut key = KernelKey::new("normalize", &[("in0", x.elem), ("acc", Elem::F32), ("out", y.elem)])
        .set("KIND", kind)
        .set("COOP", coop as i32);
    key.epilogue.extend(step);
    let params = Params::new().u(rows).u(x.row_quads()).u(x.inner()).f(beta);
    let groups = if coop { line(rows) } else { line(rows.div_ceil(WG)) };
    cx.dispatch(key, &[x.slot], &[y.slot], &[], params, groups)
}
