//! What need not be computed in every run: constants that a graph stores in another form, and nodes whose operands are
//! all constant.
//!
//! A PAD of zeros whose only reader is a convolution does not run either: the convolution pads.
//!
//! Converters put float16 and sparse weights behind DEQUANTIZE and DENSIFY. Convolutions and fully connected layers pack
//! their weights anyway, from any form: they read the stored constant, and the conversion does not run at all. Tensors
//! and nodes keep their numbers, so that callers need not know.

use litegpu_graph::passes::{constants, exported, pad};
use litegpu_graph::{DType, Family, Graph, Model, NodeId, Op, TensorId};
use std::sync::Arc;

/// How often the nodes of a subgraph run.
#[derive(Debug, Default)]
pub(crate) struct Fixed {
    /// Nodes whose results nobody reads any more.
    pub skip: Vec<bool>,
    /// Nodes that run once.
    pub once: Vec<bool>,
    /// Tensors that stay what they are after the first run.
    pub kept: Vec<bool>,
    /// Convolutions that pad for the PAD before them, which is skipped.
    pub pads: Vec<Padded>,
}

/// A convolution that reads the operand of a PAD.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Padded {
    pub conv: NodeId,
    pub from: TensorId,
    /// Rows and columns before and behind the image.
    pub amounts: [[usize; 2]; 2],
}

impl Fixed {
    /// Every node runs every time.
    pub(crate) fn none(g: &Graph) -> Fixed {
        let nodes = vec![false; g.nodes.len()];
        Fixed { skip: nodes.clone(), once: nodes, kept: vec![false; g.tensors.len()], pads: Vec::new() }
    }
}

/// The model with such operands replaced, and how often its nodes run.
pub(crate) fn analyse(model: Arc<Model>) -> (Arc<Model>, Vec<Fixed>) {
    let mut all = Vec::with_capacity(model.subgraphs.len());
    let mut replaced: Vec<(usize, NodeId, usize, TensorId)> = Vec::new();
    for (s, g) in model.subgraphs.iter().enumerate() {
        let stored = stored(g);
        let first = replaced.len();
        for (n, node) in g.nodes.iter().enumerate().filter(|(_, node)| packs(&node.op)) {
            for (i, t) in node.inputs.iter().enumerate().skip(1) {
                if let Some(from) = t.and_then(|t| stored.get(t).copied().flatten()) {
                    replaced.push((s, n, i, from));
                }
            }
        }
        all.push(plan(g, &exported(&model, s), &stored, replaced.get(first..).unwrap_or_default()));
    }
    if replaced.is_empty() {
        return (model, all);
    }
    let mut model = Arc::unwrap_or_clone(model);
    for (s, n, i, from) in replaced {
        let node = model.subgraphs.get_mut(s).and_then(|g| g.nodes.get_mut(n));
        if let Some(slot) = node.and_then(|n| n.inputs.get_mut(i)) {
            *slot = Some(from);
        }
    }
    (Arc::new(model), all)
}

/// Whether the operator's kernels pack their weights from any form.
fn packs(op: &Op) -> bool {
    op.family() == Family::Conv || matches!(op, Op::FullyConnected(_))
}

/// For each tensor that DENSIFY and DEQUANTIZE make of a constant: that constant.
fn stored(g: &Graph) -> Vec<Option<TensorId>> {
    let mut stored: Vec<Option<TensorId>> = vec![None; g.tensors.len()];
    for n in &g.nodes {
        let (Some(from), [to]) = (n.input(0), n.outputs.as_slice()) else { continue };
        let from = stored.get(from).copied().flatten().unwrap_or(from);
        let (Some(x), Some(y)) = (g.tensors.get(from), g.tensors.get(*to)) else { continue };
        let fits = match n.op {
            Op::Densify => x.sparsity.is_some() && x.dtype == y.dtype,
            Op::Dequantize => x.dtype == DType::F16 && y.dtype == DType::F32,
            _ => false,
        };
        if fits
            && x.is_constant()
            && !x.is_variable
            && x.shape == y.shape
            && let Some(slot) = stored.get_mut(*to)
        {
            *slot = Some(from);
        }
    }
    stored
}

fn plan(
    g: &Graph,
    exported: &[TensorId],
    stored: &[Option<TensorId>],
    replaced: &[(usize, NodeId, usize, TensorId)],
) -> Fixed {
    let mut fixed = Fixed::none(g);
    let mut read = vec![false; g.tensors.len()];
    let mark = |read: &mut [bool], t: TensorId| {
        if let Some(r) = read.get_mut(t) {
            *r = true;
        }
    };
    g.outputs.iter().chain(exported).for_each(|&t| mark(&mut read, t));
    let leaves = |t: TensorId| g.outputs.contains(&t) || exported.contains(&t);
    for (n, node) in g.nodes.iter().enumerate().rev() {
        let converts = node.outputs.iter().all(|&t| stored.get(t).is_some_and(Option::is_some));
        let unread = node.outputs.iter().all(|&t| read.get(t) == Some(&false));
        if converts
            && unread
            && !node.outputs.is_empty()
            && let Some(skip) = fixed.skip.get_mut(n)
        {
            *skip = true;
            continue;
        }
        for (i, t) in node.inputs.iter().enumerate() {
            let elsewhere = replaced.iter().any(|r| (r.1, r.2) == (n, i));
            if let (false, Some(t)) = (elsewhere, t) {
                mark(&mut read, *t);
            }
        }
    }
    for (n, node) in g.nodes.iter().enumerate() {
        let known = |t: &TensorId| {
            let constant = g.tensors.get(*t).is_some_and(|t| t.is_constant() && !t.is_variable);
            constant || fixed.kept.get(*t) == Some(&true)
        };
        let once = fixed.skip.get(n) == Some(&false)
            && (constants::pure(g, node) || matches!(node.op, Op::VarHandle(_)))
            && node.inputs.iter().flatten().all(known)
            && !node.outputs.iter().any(|&t| leaves(t));
        if !once {
            continue;
        }
        if let Some(slot) = fixed.once.get_mut(n) {
            *slot = true;
        }
        for &t in &node.outputs {
            if let Some(slot) = fixed.kept.get_mut(t) {
                *slot = true;
            }
        }
    }
    for p in pad::opportunities(g) {
        let node = g.nodes.get(p.pad);
        let operand = node.and_then(|n| n.input(0));
        let (Some(from), Some(&to)) = (operand, node.and_then(|n| n.outputs.first())) else { continue };
        let changes = |t: TensorId| g.tensors.get(t).is_none_or(|t| t.is_variable);
        let every_time = [p.pad, p.conv].iter().all(|&n| fixed.once.get(n) == Some(&false));
        // More would be no padding, and numbers that nobody has checked.
        let few = p.before.iter().chain(&p.after).all(|&n| n <= 1024);
        // One pixel times a matrix needs no lines of an image laid out.
        let filter = g.nodes.get(p.conv).and_then(|n| g.operand(n, 1)).map(|t| &t.shape[..]);
        let wide = matches!(filter, Some([_, h, w, _]) if h * w > 1);
        if every_time
            && few
            && wide
            && p.pad < p.conv
            && !leaves(to)
            && !changes(from)
            && !changes(to)
            && let Some(skip) = fixed.skip.get_mut(p.pad)
        {
            *skip = true;
            let amounts = [[p.before[0], p.after[0]], [p.before[1], p.after[1]]];
            fixed.pads.push(Padded { conv: p.conv, from, amounts });
        }
    }
    fixed
}
