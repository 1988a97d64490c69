//! Dead code, and nodes whose operands are all constant.

use crate::model::*;
use crate::op::{Family, Op};
use bytes::Bytes;

/// Whether a node does something beside writing its outputs: resources, other subgraphs, variables, unknown code.
pub fn has_effect(g: &Graph, n: &Node) -> bool {
    matches!(n.op.family(), Family::Control | Family::Custom)
        || n.op == Op::Delegate
        || n.mutating_inputs.iter().any(|&m| m)
        || n.inputs.iter().flatten().chain(&n.outputs).any(|&t| g.tensors.get(t).is_some_and(|t| t.is_variable))
}

/// Drops nodes that no output hangs on. `keep` are tensors that matter beside the graph's outputs. Returns how many
/// were dropped.
pub fn remove_dead(g: &mut Graph, keep: &[TensorId]) -> usize {
    let mut live = vec![false; g.tensors.len()];
    let mark = |live: &mut [bool], t: TensorId| {
        if let Some(l) = live.get_mut(t) {
            *l = true;
        }
    };
    g.outputs.iter().chain(keep).for_each(|&t| mark(&mut live, t));
    let mut needed = vec![false; g.nodes.len()];
    for (n, need) in g.nodes.iter().zip(&mut needed).rev() {
        *need = has_effect(g, n) || n.outputs.iter().any(|&t| live.get(t) == Some(&true));
        if *need {
            n.inputs.iter().flatten().for_each(|&t| mark(&mut live, t));
        }
    }
    let before = g.nodes.len();
    let mut needed = needed.into_iter();
    g.nodes.retain(|_| needed.next() == Some(true));
    before - g.nodes.len()
}

/// Evaluates nodes whose operands are all constant and puts the values in their place. `evaluate` runs a node (this
/// crate has no kernels); it answers one (shape, bytes) per output, or `None` where it would rather not: an operator
/// that it does not have, or a result that is larger than it is worth. Returns how many nodes were folded.
pub fn fold(g: &mut Graph, mut evaluate: impl FnMut(&Graph, NodeId) -> Option<Vec<(Shape, Bytes)>>) -> usize {
    let mut folded = vec![false; g.nodes.len()];
    for i in 0..g.nodes.len() {
        let Some(n) = g.nodes.get(i).filter(|n| foldable(g, n)) else { continue };
        let outputs = n.outputs.clone();
        let Some(values) = evaluate(g, i).filter(|v| v.len() == outputs.len()) else { continue };
        let fits = outputs.iter().zip(&values).all(|(&t, (shape, data))| {
            let want = g.tensors.get(t).and_then(|t| t.dtype.byte_len(elements(shape)));
            // Without bytes the tensor would not be a constant.
            want == Some(data.len()) && !data.is_empty()
        });
        if !fits {
            continue;
        }
        for (&t, (shape, data)) in outputs.iter().zip(values) {
            if let Some(t) = g.tensors.get_mut(t) {
                (t.shape, t.signature, t.has_rank, t.data) = (shape, None, true, Some(data));
            }
        }
        if let Some(f) = folded.get_mut(i) {
            *f = true;
        }
    }
    let before = g.nodes.len();
    let mut folded = folded.into_iter();
    g.nodes.retain(|_| folded.next() == Some(false));
    before - g.nodes.len()
}

fn foldable(g: &Graph, n: &Node) -> bool {
    let constant = |t: &TensorId| {
        let t = g.tensors.get(*t);
        t.is_some_and(|t| t.is_constant() && !t.is_variable && t.sparsity.is_none())
    };
    pure(g, n) && n.inputs.iter().flatten().all(constant)
}

/// Whether a node gives the same outputs whenever it is given the same operands, of which it has some, and does nothing
/// else.
pub fn pure(g: &Graph, n: &Node) -> bool {
    let random = matches!(
        n.op,
        Op::RandomStandardNormal(_) | Op::RandomUniform(_) | Op::Multinomial(_) | Op::StablehloRngBitGenerator(_)
    );
    let repeated = n.outputs.iter().enumerate().any(|(i, t)| n.outputs.iter().skip(i + 1).any(|o| o == t));
    !random
        && !has_effect(g, n)
        && !repeated
        && n.outputs.iter().all(|t| !g.inputs.contains(t))
        && n.inputs.iter().flatten().next().is_some()
}
