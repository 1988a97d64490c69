//! Element-wise operators with one operand.

use crate::lower::{Lower, Lowered, Params, line, no};
use crate::program::tail;
use litegpu_graph::Op;
use litegpu_shaders::{KernelKey, Step};

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    let step = match cx.node.op {
        Op::Relu => Step::call("f_relu", &[]),
        _ => return no("no kernel yet"),
    };
    let x = cx.operand(0)?;
    let y = cx.result(0)?;
    let key = KernelKey::new("unary", &[("in0", x.elem), ("out", y.elem)]).then(step);
    let params = Params::new().u(y.quads()).u(y.row_quads()).u(tail(&y.shape));
    cx.dispatch(key, &[x.slot], &[y.slot], &[], params, line(y.quads().div_ceil(64)))
}
