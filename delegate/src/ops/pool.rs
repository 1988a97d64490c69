//! Pooling.

use super::{WG, acc, activation, is_quantized};
use crate::lower::{Lower, Lowered, Params, line, no};
use crate::program::tail;
use litegpu_graph::Op;
use litegpu_graph::fixed::quantized_range;
use litegpu_graph::schema::Padding;
use litegpu_shaders::KernelKey;

/// The padding before the first element: half of what is missing, rounded down.
pub(super) fn before(padding: Padding, input: usize, output: usize, stride: usize, filter: usize) -> usize {
    match padding {
        Padding::SAME => ((output.saturating_sub(1)) * stride + filter).saturating_sub(input) / 2,
        _ => 0,
    }
}

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    let (kind, o) = match &cx.node.op {
        Op::AveragePool2d(o) => (0, o.clone()),
        Op::MaxPool2d(o) => (1, o.clone()),
        Op::L2Pool2d(o) => (2, o.clone()),
        _ => return no("no GPU kernel"),
    };
    let (x, y) = (cx.operand(0)?, cx.result(0)?);
    let (&[_, ih, iw, _], &[_, oh, ow, _]) = (x.shape.as_slice(), y.shape.as_slice()) else {
        return no("an operand whose rank is not 4");
    };
    if o.filter_width < 1 || o.filter_height < 1 || o.stride_w < 1 || o.stride_h < 1 {
        return no("a window or a stride that is not positive");
    }
    let float = x.elem.is_float();
    let mut steps = Vec::new();
    let (mut low, mut high) = (i32::MIN, i32::MAX);
    if float {
        steps.extend(activation(o.fused_activation_function)?);
    } else {
        if !is_quantized(&x) || kind == 2 {
            return no(format!("{} elements", x.dtype));
        }
        let (s, z) = y.scale_zero()?;
        if x.scale_zero()? != (s, z) {
            return no("a result quantized differently than its operand");
        }
        (low, high) = quantized_range(o.fused_activation_function, y.dtype, s, z)?;
    }
    let mut key = KernelKey::new("pool", &[("in0", x.elem), ("acc", acc(x.elem)), ("out", y.elem)])
        .with("CLOSE", if float { "close_f" } else { "close_i" })
        .set("KIND", kind);
    key.epilogue = steps;
    let top = before(o.padding, ih, oh, o.stride_h as usize, o.filter_height as usize);
    let left = before(o.padding, iw, ow, o.stride_w as usize, o.filter_width as usize);
    let params = Params::new()
        .u(y.quads())
        .u(y.row_quads())
        .u(tail(&y.shape))
        .u(ih)
        .u(iw)
        .u(oh)
        .u(ow)
        .i(o.filter_height)
        .i(o.filter_width)
        .i(o.stride_h)
        .i(o.stride_w)
        .u(top)
        .u(left)
        .i(low)
        .i(high);
    cx.dispatch(key, &[x.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}
