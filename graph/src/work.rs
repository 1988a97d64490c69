//! How much an operator computes and moves.

use crate::{Family, Graph, Node, Op, Shape, TensorId, elements};

/// The work in one operator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Arithmetic operations, a multiply-add as two.
    pub flops: u64,
    /// Bytes of operands and results, as the host stores them.
    pub bytes: u64,
}

/// The work in a node: an estimate, in the operations of the textbook algorithm. `shape` answers shapes that are known.
pub fn work(graph: &Graph, node: &Node, shape: &dyn Fn(TensorId) -> Option<Shape>) -> Work {
    let size = |t: TensorId| {
        let n = shape(t).map_or(0, |s| elements(&s)) as u64;
        let bits = graph.tensors.get(t).map_or(0, |t| t.dtype.bits()) as u64;
        (n, n.saturating_mul(bits) / 8)
    };
    let sum = |mut it: std::slice::Iter<'_, TensorId>| {
        it.try_fold((0u64, 0u64), |(a, b), &t| {
            let (n, bytes) = size(t);
            Some((a.saturating_add(n), b.saturating_add(bytes)))
        })
        .unwrap_or_default()
    };
    let inputs: Vec<TensorId> = node.inputs.iter().flatten().copied().collect();
    let (in_n, in_bytes) = sum(inputs.iter());
    let (out_n, out_bytes) = sum(node.outputs.iter());
    let weight = node.input(1).and_then(shape).unwrap_or_default();
    let taps =
        |from: usize, to: usize| weight.iter().take(to).skip(from).fold(2u64, |n, &d| n.saturating_mul(d as u64));
    // A transposed convolution multiplies each element of its operand.
    let operand = || node.input(2).map_or(0, |t| size(t).0);
    let flops = match (&node.op, node.op.family()) {
        (Op::DepthwiseConv2d(_), _) => out_n.saturating_mul(taps(0, 3)),
        (Op::TransposeConv(_), _) => operand().saturating_mul(taps(0, 3)),
        (Op::Conv3d(_), _) => out_n.saturating_mul(taps(0, 4)),
        (Op::Conv3dTranspose(_), _) => operand().saturating_mul(taps(0, 4)),
        (_, Family::Conv) => out_n.saturating_mul(taps(1, usize::MAX)),
        (_, Family::Matmul) => out_n.saturating_mul(2 * weight.last().map_or(1, |&d| d as u64)),
        (Op::AveragePool2d(o) | Op::MaxPool2d(o) | Op::L2Pool2d(o), _) => {
            let side = |v: i32| u64::try_from(v).unwrap_or(0);
            out_n.saturating_mul(side(o.filter_height)).saturating_mul(side(o.filter_width))
        }
        (_, Family::Reshape) => 0,
        _ => in_n.max(out_n).saturating_mul(4),
    };
    Work { flops, bytes: in_bytes.saturating_add(out_bytes) }
}
