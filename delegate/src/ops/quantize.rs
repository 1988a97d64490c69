//! QUANTIZE, DEQUANTIZE, CAST and their kin.

use super::is_quantized;
use crate::lower::{Lower, Lowered, no};
use litegpu_graph::fixed::type_range;
use litegpu_graph::{DType, Op};
use litegpu_shaders::{Lit, Step};

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    match cx.node.op {
        Op::Quantize => {
            if is_quantized(&x) {
                return super::unary::table(cx);
            }
            let y = cx.result(0)?;
            if !x.elem.is_float() || !is_quantized(&y) {
                return no(format!("{} to {}", x.dtype, y.dtype));
            }
            let (scale, zero) = y.scale_zero()?;
            let (low, high) = type_range(y.dtype)?;
            let step = Step::call("quantize", &[Lit::f(scale), Lit::I(zero), Lit::I(low), Lit::I(high)]);
            super::unary::emit(cx, &x, &y, vec![step])
        }
        Op::Dequantize => {
            let y = cx.result(0)?;
            if x.elem.is_float() {
                return super::unary::emit(cx, &x, &y, Vec::new());
            }
            if !is_quantized(&x) {
                return no(format!("{} without quantization", x.dtype));
            }
            let (scale, zero) = x.scale_zero()?;
            super::unary::emit(cx, &x, &y, vec![Step::call("dequantize", &[Lit::f(scale), Lit::I(zero)])])
        }
        Op::Cast(_) => {
            let y = cx.result(0)?;
            let step = match (x.dtype, y.dtype) {
                (a, DType::Bool) => Some(if a.is_float() { "f_to_bool" } else { "i_to_bool" }),
                (a, b) if a.is_float() && b.is_float() => None,
                (_, b) if b.is_float() => Some("to_float"),
                (a, DType::I32) if a.is_float() => Some("to_int"),
                (_, DType::I32) => None,
                (DType::I32, DType::I8) => Some("to_byte"),
                (DType::I32, DType::U8) => Some("to_ubyte"),
                (DType::Bool, DType::I8 | DType::U8) => None,
                (a, b) => return no(format!("{a} to {b}")),
            };
            super::unary::emit(cx, &x, &y, step.map(|s| Step::call(s, &[])).into_iter().collect())
        }
        _ => no("no GPU kernel"),
    }
}
