//! TOPK_V2. Operators whose results' sizes hang on values stay on the CPU.

use crate::lower::{Lower, Lowered, Params, line, no};
use crate::program::rows;
use litegpu_graph::{DType, Op};
use litegpu_shaders::KernelKey;

/// Steps of the selection (k times the quads of all rows) up to which it beats the CPU's sort and cannot make the
/// adapter's watchdog fire.
const MAX_STEPS: usize = 1 << 26;

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    if cx.node.op != Op::TopkV2 {
        return no("the size of the result hangs on values");
    }
    let x = cx.operand(0)?;
    let (values, places) = (cx.result(0)?, cx.result(1)?);
    let x = cx.stored(x, values.elem)?;
    if places.dtype != DType::I32 || values.elem != x.elem {
        return no(format!("{} values and {} indices of {}", values.dtype, places.dtype, x.dtype));
    }
    let rows = rows(&x.shape);
    let k = values.inner();
    if k.saturating_mul(x.quads()) > MAX_STEPS {
        return no(format!("the {k} greatest of {} are too many", x.inner()));
    }
    let team = x.row_quads().next_power_of_two().clamp(1, 64);
    let key = KernelKey::new("topk", &[("in0", x.elem)]).set("WG", team as i32);
    let params = Params::new().u(rows).u(x.row_quads()).u(x.inner()).u(k).u(values.row_quads());
    cx.dispatch(key, &[x.slot], &[values.slot, places.slot], &[], params, line(rows))
}
