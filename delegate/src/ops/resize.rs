//! RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR.

use super::{WG, acc, is_quantized};
use crate::lower::{Lower, Lowered, Params, line, no};
use crate::program::tail;
use litegpu_graph::Op;
use litegpu_shaders::{Elem, KernelKey};

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
    let kind = match (bilinear, x.elem) {
        (true, e) if e.is_float() => 0,
        (true, Elem::I8) => 1,
        (true, Elem::U8) => 3,
        (true, _) => return no(format!("{} elements", x.dtype)),
        (false, _) => 2,
    };
    if x.elem.is_float() != y.elem.is_float() || (!x.elem.is_float() && x.elem != y.elem) {
        return no(format!("{} to {}", x.dtype, y.dtype));
    }
    if ih.max(iw).max(oh).max(ow) >= 1 << 20 {
        return no("an image that is too large");
    }
    // uint8 is interpolated in floats. With few fraction bits every product is exact, in whatever order it is made.
    let exact = |s: f32| s * 64.0 == (s * 64.0).trunc();
    if kind == 3 && !(exact(scale(ih, oh)) && exact(scale(iw, ow)) && ih.max(iw) < 1 << 14) {
        return no("uint8 interpolation at this scale is rounded as only the CPU rounds it");
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
