//! Lowering, one file per operator family: the same stems as in the other crates.

mod attention;
mod binary;
mod control;
mod conv;
mod fill;
mod gather;
mod layout;
mod matmul;
mod normalize;
mod pool;
mod quantize;
mod recurrent;
mod reduce;
mod reshape;
mod resize;
mod select;
mod signal;
mod sort;
mod stablehlo;
mod unary;

use crate::caps::AdapterClass;
use crate::lower::{Lower, Lowered, Operand, no};
use litegpu_graph::schema::ActivationFunctionType;
use litegpu_graph::{DType, Family, Op};
use litegpu_shaders::{Elem, Lit, Step};

/// Invocations in a workgroup of the kernels that have no reason for another number.
pub(crate) const WG: usize = 64;

/// Forms that few networks have are the CPU's in a browser, which downloads every byte of the module.
pub(crate) const RARE: bool = !cfg!(target_family = "wasm");

/// Passes of a loop in one invocation: beyond, an adapter's watchdog may fire, and older software adapters stop
/// counting.
pub(crate) const MAX_LOOP: usize = 65_535;

/// The size of the workgroup that should share each of `groups` pieces of work of `steps` steps, where sharing beats
/// one invocation a piece.
pub(crate) fn team(cx: &Lower<'_, '_>, groups: usize, steps: usize) -> Option<usize> {
    // Barriers cost a software adapter more than a GPU, and it has fewer invocations to keep busy.
    let (least, busy) = match cx.scene.caps.class {
        AdapterClass::Software => (64, 64),
        _ => (8, 16_384),
    };
    if steps > MAX_LOOP {
        return Some(256);
    }
    if steps < least || groups > busy {
        return None;
    }
    Some(match steps {
        0..64 => 32,
        64..1024 => 64,
        _ => 256,
    })
}

/// Emits the dispatches of the operator that `cx` stands at, or says why it stays on the CPU.
pub(crate) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    // A complex number is two floats of its row: whoever does not know takes them for elements.
    if !matches!(cx.node.op.family(), Family::Signal | Family::Reshape) {
        let all = cx.node.inputs.iter().flatten().chain(&cx.node.outputs);
        for &t in all {
            if cx.scene.tensor(t)?.dtype == DType::C64 {
                return no("complex numbers");
            }
        }
    }
    // Chosen, then called: see litegpu_graph::ops::infer.
    let family: fn(&mut Lower<'_, '_>) -> Lowered = match cx.node.op.family() {
        Family::Unary => unary::lower,
        Family::Binary => binary::lower,
        Family::Select => select::lower,
        Family::Quantize => quantize::lower,
        Family::Normalize => normalize::lower,
        Family::Reduce => reduce::lower,
        Family::Reshape => reshape::lower,
        Family::Layout => layout::lower,
        Family::Fill => fill::lower,
        Family::Gather => gather::lower,
        Family::Pool => pool::lower,
        Family::Resize => resize::lower,
        Family::Conv => conv::lower,
        Family::Matmul => matmul::lower,
        Family::Sort => sort::lower,
        Family::Recurrent => recurrent::lower,
        Family::Control => control::lower,
        Family::Signal => signal::lower,
        Family::Text => return no("text operators stay on the CPU"),
        Family::Stablehlo => stablehlo::lower,
        Family::Custom => match &cx.node.op {
            Op::Custom(c) if c.name == "Convolution2DTransposeBias" => conv::lower,
            Op::Custom(c) => return no(format!("no GPU kernel for the custom operator {}", c.name)),
            _ => return no("no GPU kernel"),
        },
    };
    family(cx)
}

/// Copies floats from one storage to another.
pub(crate) fn convert(cx: &mut Lower<'_, '_>, x: &Operand<'_>, to: &Operand<'_>) -> Lowered {
    unary::emit(cx, x, to, Vec::new())
}

pub(crate) use stablehlo::builtin;

/// Selects between two tensors of the result's shape by one bool.
pub(crate) fn pick(
    cx: &mut Lower<'_, '_>,
    flag: &Operand<'_>,
    a: &Operand<'_>,
    b: &Operand<'_>,
    y: &Operand<'_>,
) -> Lowered {
    select::emit(cx, flag, a, b, y)
}

/// The type that arithmetic on an element is done in, as the `acc` role wants it.
pub(crate) fn acc(elem: Elem) -> Elem {
    if elem.is_float() { Elem::F32 } else { Elem::I32 }
}

/// Whether the operand is an 8-bit quantized tensor.
pub(crate) fn is_quantized(x: &Operand<'_>) -> bool {
    matches!(x.dtype, DType::I8 | DType::U8) && x.quant.is_some_and(|q| !q.scale.is_empty())
}

/// The epilogue step of a fused activation on floats.
pub(crate) fn activation(a: ActivationFunctionType) -> Lowered<Option<Step>> {
    Ok(Some(match a {
        ActivationFunctionType::NONE => return Ok(None),
        ActivationFunctionType::RELU => Step::call("f_relu", &[]),
        ActivationFunctionType::RELU6 => Step::call("f_clamp", &[Lit::f(0.0), Lit::f(6.0)]),
        ActivationFunctionType::RELU_N1_TO_1 => Step::call("f_clamp", &[Lit::f(-1.0), Lit::f(1.0)]),
        ActivationFunctionType::TANH => Step::call("f_tanh", &[]),
        a => return no(format!("fused activation {a:?}")),
    }))
}
