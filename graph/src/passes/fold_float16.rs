//! Float16 constants that are widened only to be read: the reader reads the float16 constant itself.
//!
//! Converters store float16 weights behind a DEQUANTIZE each. Taken literally they would be 32-bit from the first run on.

use crate::dtype::DType;
use crate::model::*;
use crate::op::{Family, Op};

/// Whether kernels read a float16 constant as this operand of an otherwise float32 operator: weights, biases and the
/// operands of arithmetic.
pub fn accepts(node: &Node, operand: usize) -> bool {
    match node.op.family() {
        Family::Conv => operand > 0,
        Family::Matmul => operand > 0 || matches!(node.op, Op::BatchMatmul(_)),
        Family::Binary => {
            matches!(node.op, Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) | Op::Prelu | Op::Maximum | Op::Minimum)
        }
        _ => false,
    }
}

/// Replaces operands and drops the DEQUANTIZE nodes that nobody reads any more. Returns how many were dropped.
pub fn run(g: &mut Graph, accepts: impl Fn(&Node, usize) -> bool) -> usize {
    // For each tensor, the float16 constant that it is a wide copy of.
    let mut narrow: Vec<Option<TensorId>> = vec![None; g.tensors.len()];
    for n in g.nodes.iter().filter(|n| n.op == Op::Dequantize) {
        if let (Some(from), [to]) = (n.input(0), n.outputs.as_slice())
            && g.tensors
                .get(from)
                .is_some_and(|t| t.dtype == DType::F16 && t.is_constant() && !t.is_variable && t.sparsity.is_none())
            && g.tensors.get(*to).is_some_and(|t| t.dtype == DType::F32)
            && let Some(slot) = narrow.get_mut(*to)
        {
            *slot = Some(from);
        }
    }
    for n in &mut g.nodes {
        for i in 0..n.inputs.len() {
            let from = n.input(i).and_then(|t| narrow.get(t).copied().flatten());
            if let Some(from) = from
                && accepts(n, i)
                && let Some(slot) = n.inputs.get_mut(i)
            {
                *slot = Some(from);
            }
        }
    }
    let mut read = vec![false; g.tensors.len()];
    for &t in g.outputs.iter().chain(g.nodes.iter().flat_map(|n| n.inputs.iter().flatten())) {
        if let Some(r) = read.get_mut(t) {
            *r = true;
        }
    }
    let before = g.nodes.len();
    g.nodes.retain(|n| {
        let folded = n.op == Op::Dequantize && n.outputs.iter().all(|&t| narrow.get(t).is_some_and(Option::is_some));
        !folded || n.outputs.iter().any(|&t| read.get(t) == Some(&true))
    });
    before.saturating_sub(g.nodes.len())
}
