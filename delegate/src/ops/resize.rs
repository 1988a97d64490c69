//! RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR.

use super::{WG, acc, is_quantized};
use crate::lower::{Lower, Lowered, Params, line, no};
use crate::program::tail;
use litegpu_graph::Op;
use litegpu_shaders::KernelKey;

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    let (bilinear, align, half) = match &cx.node.op {
        Op::ResizeBilinear(o) => (true, o.align_corners, o.half_pixel_centers),
        Op::ResizeNearestNeighbor(o) => (false, o.align_corners, o.half_pixel_centers),
        _ => return no("no GPU kernel"),
    };
    let (x, y) = (cx.operand(0)?, cx.result(0)?);
    let (&[_, ih, iw, _], &[_, oh, ow, _]) = (x.shape.as_slice(), y.shape.as_slice()) else {
        return no("an operand whose rank is not 4");
    };
    if is_quantized(&x) && is_quantized(&y) && x.scale_zero()? != y.scale_zero()? {
        return no("a result quantized differently than its operand");
    }
    let scale = |input: usize, output: usize| match align && output > 1 {
        true => (input - 1) as f32 / (output - 1) as f32,
        false => input as f32 / output as f32,
    };
    // 10 bits of fraction, rounded to the nearest.
    let fixed = |input: usize, output: usize| match align && output > 1 {
        true => ((1 << 10) * (input - 1) + (output - 1) / 2) / (output - 1),
        false => ((1 << 10) * input + output / 2) / output,
    };
    let kind = match (bilinear, x.elem.is_float()) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    };
    if !bilinear && !matches!(x.elem.quad_bytes(), 4 | 8 | 16) {
        return no(format!("{} elements", x.dtype));
    }
    let key = KernelKey::new("resize", &[("in0", x.elem), ("acc", acc(x.elem)), ("out", y.elem)])
        .set("KIND", kind)
        .set("HALF_PIXEL", half as i32)
        .set("ALIGN", align as i32);
    let params = Params::new()
        .u(y.quads())
        .u(y.row_quads())
        .u(tail(&y.shape))
        .u(ih)
        .u(iw)
        .u(oh)
        .u(ow)
        .u(0)
        .f(scale(ih, oh))
        .f(scale(iw, ow))
        .u(fixed(ih, oh))
        .u(fixed(iw, ow));
    cx.dispatch(key, &[x.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}
