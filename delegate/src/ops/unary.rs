//! Element-wise operators with one operand.

use super::{WG, acc, is_quantized};
use crate::lower::{Lower, Lowered, Operand, Params, Unsupported, line, no};
use crate::program::tail;
use litegpu_graph::ops::Fact;
use litegpu_graph::{DType, Op, Shape};
use litegpu_shaders::{KernelKey, Lit, Step};

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    if matches!(x.dtype, DType::I8 | DType::U8) {
        if !is_quantized(&x) {
            return no(format!("{} without quantization", x.dtype));
        }
        return table(cx);
    }
    let float = x.elem.is_float();
    let bool = x.dtype == DType::Bool;
    let f = match (&cx.node.op, float, bool) {
        (Op::Relu, true, _) => Step::call("f_relu", &[]),
        (Op::Relu6, true, _) => Step::call("f_clamp", &[Lit::f(0.0), Lit::f(6.0)]),
        (Op::ReluN1To1, true, _) => Step::call("f_clamp", &[Lit::f(-1.0), Lit::f(1.0)]),
        (Op::Relu0To1, true, _) => Step::call("f_clamp", &[Lit::f(0.0), Lit::f(1.0)]),
        (Op::LeakyRelu(o), true, _) => Step::call("f_leaky", &[Lit::f(o.alpha)]),
        (Op::Gelu(o), true, _) => Step::call(if o.approximate { "f_gelu_tanh" } else { "f_gelu" }, &[]),
        (Op::Logistic, true, _) => Step::call("f_logistic", &[]),
        (Op::Tanh, true, _) => Step::call("f_tanh", &[]),
        (Op::HardSwish, true, _) => Step::call("f_hard_swish", &[]),
        (Op::Elu, true, _) => Step::call("f_elu", &[]),
        (Op::Exp, true, _) => Step::call("f_exp", &[]),
        (Op::Log, true, _) => Step::call("f_log", &[]),
        (Op::Sqrt, true, _) => Step::call("f_sqrt", &[]),
        (Op::Rsqrt, true, _) => Step::call("f_rsqrt", &[]),
        (Op::Sin, true, _) => Step::call("f_sin", &[]),
        (Op::Cos, true, _) => Step::call("f_cos", &[]),
        (Op::Floor, true, _) => Step::call("f_floor", &[]),
        (Op::Ceil, true, _) => Step::call("f_ceil", &[]),
        (Op::Round, true, _) => Step::call("f_round", &[]),
        (Op::Neg, true, _) => Step::call("f_neg", &[]),
        (Op::Abs, true, _) => Step::call("f_abs", &[]),
        (Op::Sign, true, _) => Step::call("f_sign", &[]),
        (Op::Square, true, _) => Step::call("f_square", &[]),
        (Op::ZerosLike, true, _) => Step::call("f_zero", &[]),
        (Op::LogicalNot, _, true) => Step::call("i_not", &[]),
        (Op::ZerosLike, false, _) => Step::call("i_zero", &[]),
        (Op::Neg, false, false) => Step::call("i_neg", &[]),
        (Op::Abs, false, false) => Step::call("i_abs", &[]),
        (Op::Sign, false, false) => Step::call("i_sign", &[]),
        (Op::Square, false, false) => Step::call("i_square", &[]),
        (Op::Relu, false, false) => Step::call("i_relu", &[]),
        _ => return no(format!("{} elements", x.dtype)),
    };
    let y = cx.result(0)?;
    emit(cx, &x, &y, vec![f])
}

/// One pass over the elements that applies `steps`.
pub(super) fn emit(cx: &mut Lower<'_, '_>, x: &Operand<'_>, y: &Operand<'_>, steps: Vec<Step>) -> Lowered {
    if x.shape != y.shape {
        return no(format!("operand {:?} and result {:?} differ", x.shape.as_slice(), y.shape.as_slice()));
    }
    let mut key = KernelKey::new("unary", &[("in0", x.elem), ("acc", acc(x.elem)), ("out", y.elem)]);
    key.epilogue = steps;
    let params = Params::new().u(y.quads()).u(y.row_quads()).u(tail(&y.shape));
    cx.dispatch(key, &[x.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}

/// An element-wise operator from 8 bits to 8 bits: the CPU kernel's results for all 256 operands, looked up.
pub(super) fn table(cx: &mut Lower<'_, '_>) -> Lowered {
    let (x, y) = (cx.operand(0)?, cx.result(0)?);
    if x.shape != y.shape || !matches!(y.dtype, DType::I8 | DType::U8) {
        return no("an 8-bit operator with a result that is not");
    }
    let node = cx.node;
    let every: Vec<u8> = (0..=255).collect();
    let bytes = if cx.dry {
        if cx.eval.is_none() {
            return no("its table comes from the CPU kernels, which are not here");
        }
        every
    } else {
        let shape = Shape::from_slice(&[256]);
        let facts = [Some(Fact { dtype: x.dtype, shape: &shape, value: Some(&every) })];
        let done = cx.eval.as_mut().and_then(|eval| eval(node, &facts, std::slice::from_ref(&shape)));
        let table = done.and_then(|mut v| v.pop()).filter(|t| t.len() == 256);
        table.ok_or_else(|| Unsupported::new("the CPU kernel gave no table"))?.to_vec()
    };
    look_up(cx, &x, &y, bytes)
}

/// One pass that replaces each byte by its entry in a table of 256.
pub(super) fn look_up(cx: &mut Lower<'_, '_>, x: &Operand<'_>, y: &Operand<'_>, bytes: Vec<u8>) -> Lowered {
    let table = cx.weight(|| Ok(bytes))?;
    let params = Params::new().u(y.quads()).u(y.row_quads()).u(tail(&y.shape));
    let groups = line(y.quads().div_ceil(WG));
    cx.dispatch(KernelKey::new("lut", &[]), &[x.slot, table], &[y.slot], &[], params, groups)
}
