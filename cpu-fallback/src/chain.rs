//! Element-wise operators that follow another operator, done in its place while what it has written is still in the
//! cache.
//!
//! A chain is planned once, from the graph alone: each of its operators is the only reader of the one before, and its
//! other operand exists before the chain begins. Whether the shapes fit is seen in each run. The producer either takes
//! what follows ([`Then`]) and applies it to every block of rows that it has finished, or leaves that to the executor.
//! The functions are those of the operators' own kernels, so that results are the same bits.

use crate::fixed::Fixed;
use crate::kernel::Site;
use crate::ops;
use crate::pool::Pool;
use crate::strided::{InPlace, Line2, PARALLEL};
use crate::tables::look_up;
use litegpu_graph::passes::exported;
use litegpu_graph::{Family, Graph, Model, NodeId, TensorId};
use smallvec::SmallVec;

/// Operators that one chain holds at most, its first among them.
pub(crate) const LONGEST: usize = 6;
/// Bytes that go through all steps of a chain before the next ones.
const BLOCK: usize = 4096;
/// Floats that a step with two operands copies before it writes over them: so many that calls weigh little, and so few
/// that room for them is quickly cleared (which takes wasm longer).
const COPY: usize = if cfg!(target_family = "wasm") { 128 } else { 256 };
/// Bytes that the executor gives a thread at a time.
const CHUNK: usize = 1 << 14;
/// Elements that a row is repeated to which other rows all meet.
const ROW: usize = 256;

/// An element-wise operator on float32 or on bytes.
pub(crate) enum Step {
    Real(Box<InPlace>),
    Pair(Box<Line2<f32, f32, f32>>),
    Bytes(Box<[u8; 256]>),
}

/// A node of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub node: NodeId,
    /// The operand that the node before does not compute, where there are two, and whether it is the second.
    pub other: Option<(TensorId, bool)>,
}

/// The chains of one subgraph.
#[derive(Default)]
pub(crate) struct Chains {
    /// For each node: those that follow it.
    pub links: Vec<SmallVec<[Link; 2]>>,
    /// For each node: its function, where it has one of this kind.
    pub steps: Vec<Option<Step>>,
    /// For each node: its other operand, repeated to a row of some length.
    pub rows: Vec<Vec<f32>>,
    /// For each node, whether the one that it follows has done its work in this run.
    pub done: Vec<bool>,
}

impl Chains {
    pub(crate) fn none(g: &Graph) -> Chains {
        Chains { links: vec![SmallVec::new(); g.nodes.len()], ..Chains::default() }
    }

    pub(crate) fn new(model: &Model, subgraph: usize, g: &Graph, fixed: &Fixed) -> Chains {
        let n = g.nodes.len();
        let mut chains = Chains { done: vec![false; n], ..Chains::none(g) };
        chains.rows.resize_with(n, Vec::new);
        let sparse = |t: TensorId| g.tensors.get(t).is_none_or(|t| t.sparsity.is_some());
        chains.steps.extend(g.nodes.iter().map(|node| {
            let plain = !node.inputs.iter().flatten().any(|&t| sparse(t));
            plain.then(|| ops::step(&Site { model, graph: g, node })).flatten()
        }));
        let mut readers: Vec<Option<(usize, NodeId)>> = vec![None; g.tensors.len()];
        let mut writer: Vec<Option<NodeId>> = vec![None; g.tensors.len()];
        for (i, node) in g.nodes.iter().enumerate() {
            for &t in node.inputs.iter().flatten() {
                if let Some(r) = readers.get_mut(t) {
                    *r = Some((r.map_or(0, |r| r.0) + 1, i));
                }
            }
            for &t in &node.outputs {
                if let Some(w) = writer.get_mut(t) {
                    *w = Some(i);
                }
            }
        }
        let exported = exported(model, subgraph);
        let seen = |t: TensorId| {
            let held = g.tensors.get(t).is_none_or(|t| t.is_variable || t.is_constant());
            held || g.outputs.contains(&t) || g.inputs.contains(&t) || exported.contains(&t)
        };
        let every_time = |i: NodeId| fixed.skip.get(i) == Some(&false) && fixed.once.get(i) == Some(&false);
        let mut taken = vec![false; n];
        for (i, node) in g.nodes.iter().enumerate() {
            let heads = !matches!(node.op.family(), Family::Control | Family::Reshape) && every_time(i);
            if taken.get(i) != Some(&false) || !heads {
                continue;
            }
            let mut at = node;
            while let [t] = at.outputs.as_slice()
                && !seen(*t)
                && let Some(Some((1, next))) = readers.get(*t)
                && *next > i
                && every_time(*next)
                && chains.steps.get(*next).is_some_and(Option::is_some)
                && let Some(follower) = g.nodes.get(*next)
                && let Some(links) = chains.links.get_mut(i)
                && links.len() + 1 < LONGEST
            {
                let other = follower.inputs.iter().position(|o| o.is_some_and(|o| o != *t));
                let other = other.and_then(|p| follower.inputs.get(p).copied().flatten().map(|o| (o, p == 1)));
                let early = |o: TensorId| {
                    g.tensors.get(o).is_some_and(|t| !t.is_variable)
                        && writer.get(o).copied().flatten().is_none_or(|w| w < i)
                };
                let variable =
                    follower.outputs.iter().any(|&o| g.tensors.get(o).is_none_or(|o| o.is_variable || o.is_constant()));
                if variable || other.is_some_and(|(o, _)| !early(o)) {
                    break;
                }
                links.push(Link { node: *next, other });
                if let Some(slot) = taken.get_mut(*next) {
                    *slot = true;
                }
                at = follower;
            }
        }
        chains
    }

    /// Breaks the chains that these tensors are in: another device reads or writes them.
    pub(crate) fn keep(&mut self, g: &Graph, tensors: &[TensorId]) {
        let late = |o: TensorId| tensors.contains(&o) || g.outputs.contains(&o);
        for (i, links) in self.links.iter_mut().enumerate() {
            let mut before = i;
            let whole = links.iter().take_while(|l| {
                let out = g.nodes.get(before).and_then(|n| n.outputs.first());
                before = l.node;
                !out.is_none_or(|t| tensors.contains(t)) && !l.other.is_some_and(|(o, _)| late(o))
            });
            let n = whole.count();
            links.truncate(n);
        }
    }
}

/// One step on the values of one run.
#[derive(Clone, Copy)]
pub(crate) struct Applied<'a> {
    pub step: &'a Step,
    /// The other operand, of which every element meets one: what is left of the element's place divided by its length.
    pub other: &'a [f32],
    /// Whether it is the second.
    pub second: bool,
}

/// What is done with a tensor's elements once they are written.
#[derive(Clone, Copy, Default)]
pub(crate) struct Then<'a> {
    pub steps: &'a [Applied<'a>],
}

impl std::fmt::Debug for Then<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Then {{ {} steps }}", self.steps.len())
    }
}

impl Then<'_> {
    /// Whether nothing follows.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Applies all steps to a piece of the tensor that begins with element `at`.
    #[inline]
    pub(crate) fn apply<T: bytemuck::Pod>(&self, at: usize, piece: &mut [T]) {
        if !self.is_empty() {
            self.go(at * size_of::<T>(), None, bytemuck::cast_slice_mut(piece));
        }
    }

    /// Applies all steps to a whole tensor, or to what they make of `from`.
    pub(crate) fn whole(&self, pool: &Pool, from: Option<&[u8]>, out: &mut [u8]) {
        let parallel = out.len() >= PARALLEL;
        pool.chunks(out, CHUNK, parallel, |i, piece| {
            let at = i * CHUNK;
            self.go(at, from.map(|f| &f[at..][..piece.len()]), piece);
        });
    }

    #[inline(never)]
    fn go(&self, at: usize, from: Option<&[u8]>, piece: &mut [u8]) {
        for (i, block) in piece.chunks_mut(BLOCK).enumerate() {
            let mut from = from.map(|f| &f[i * BLOCK..][..block.len()]);
            for step in self.steps {
                step.go(at + i * BLOCK, from.take(), block);
            }
        }
    }
}

impl Applied<'_> {
    fn go(&self, at: usize, from: Option<&[u8]>, block: &mut [u8]) {
        if let Step::Bytes(table) = self.step {
            return look_up(table, from, block);
        }
        // Storage is aligned, and blocks begin at whole elements.
        let Ok(block) = bytemuck::try_cast_slice_mut::<u8, f32>(block) else { return };
        let from = from.and_then(|from| bytemuck::try_cast_slice::<u8, f32>(from).ok());
        match self.step {
            Step::Real(f) => {
                if let Some(from) = from {
                    block.copy_from_slice(from);
                }
                f(block);
            }
            Step::Pair(f) => {
                if let Some(from) = from {
                    return self.pair(f, at / 4, from, block);
                }
                let mut copy = [0f32; COPY];
                let (mut rest, mut at, row) = (block, at / 4, self.other.len());
                while !rest.is_empty() {
                    // No further than the other operand's row: one call of `f` each.
                    let reach = if row > 1 { row - at % row } else { COPY };
                    let (part, next) = rest.split_at_mut(reach.min(COPY).min(rest.len()));
                    let copy = &mut copy[..part.len()];
                    copy.copy_from_slice(part);
                    self.pair(f, at, copy, part);
                    (rest, at) = (next, at + copy.len());
                }
            }
            Step::Bytes(_) => {}
        }
    }

    /// The elements from `at` on.
    fn pair(&self, f: &Line2<f32, f32, f32>, at: usize, from: &[f32], out: &mut [f32]) {
        let steps = if self.second { [1, 0] } else { [0, 1] };
        if self.other.len() == 1 {
            let [a, b] = if self.second { [from, self.other] } else { [self.other, from] };
            return f(a, b, steps, out);
        }
        let (n, mut done, mut at) = (out.len(), 0, at % self.other.len().max(1));
        while done < n {
            let m = (n - done).min(self.other.len() - at);
            let (from, other) = (&from[done..done + m], &self.other[at..at + m]);
            let [a, b] = if self.second { [from, other] } else { [other, from] };
            f(a, b, [1, 1], &mut out[done..done + m]);
            (done, at) = (done + m, 0);
        }
    }
}

/// Whether elements of an operand of shape `other` lie under those of a tensor of shape `out` over and over: it is the
/// tensor's trailing dimensions.
pub(crate) fn repeats(other: &[usize], out: &[usize]) -> bool {
    let first = other.iter().position(|&d| d != 1).unwrap_or(other.len());
    let ones = other.len() <= out.len();
    ones && !out.contains(&0) && out.ends_with(other.get(first..).unwrap_or_default())
}

/// Repeats a short row.
pub(crate) fn repeat(row: &[f32], to: &mut Vec<f32>) {
    to.clear();
    if (2..=ROW / 2).contains(&row.len()) {
        for _ in 0..ROW / row.len() {
            to.extend_from_slice(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use litegpu_graph::schema::AddOptionsT;
    use litegpu_graph::{DType, Node, Op, Tensor};

    fn add() -> Op {
        Op::Add(AddOptionsT::default())
    }

    /// The chains of a graph of float tensors whose input is tensor 0.
    fn links(nodes: Vec<Node>, outputs: &[TensorId]) -> Vec<Vec<(NodeId, Option<(TensorId, bool)>)>> {
        let tensors = (0..=nodes.len()).map(|i| Tensor::new(format!("t{i}"), DType::F32, &[2, 3])).collect();
        let g = Graph { tensors, nodes, inputs: vec![0], outputs: outputs.to_vec(), ..Graph::default() };
        let fixed = Fixed::none(&g);
        let model = Model { subgraphs: vec![g], ..Model::default() };
        let chains = Chains::new(&model, 0, &model.subgraphs[0], &fixed);
        chains.links.iter().map(|l| l.iter().map(|l| (l.node, l.other)).collect()).collect()
    }

    #[test]
    fn a_chain_ends_where_somebody_else_reads() {
        let chain = |outputs: &[TensorId]| {
            let nodes = vec![
                Node::new(Op::Neg, &[0], &[1]),
                Node::new(Op::Relu, &[1], &[2]),
                Node::new(add(), &[0, 2], &[3]),
                Node::new(Op::Tanh, &[3], &[4]),
            ];
            links(nodes, outputs)
        };
        let (relu, sum, tanh) = ((1, None), (2, Some((0, false))), (3, None));
        assert_eq!(chain(&[4]), [vec![relu, sum, tanh], vec![], vec![], vec![]]);
        assert_eq!(chain(&[2, 4]), [vec![relu], vec![], vec![tanh], vec![]]);
        // Both operands are the one tensor.
        let twice = vec![Node::new(Op::Neg, &[0], &[1]), Node::new(add(), &[1, 1], &[2])];
        assert_eq!(links(twice, &[2]), [vec![], vec![]]);
        // The other operand is made after the chain begins: it begins there.
        let late =
            vec![Node::new(Op::Neg, &[0], &[1]), Node::new(Op::Abs, &[0], &[2]), Node::new(add(), &[1, 2], &[3])];
        assert_eq!(links(late, &[3]), [vec![], vec![(2, Some((1, false)))], vec![]]);
    }

    #[test]
    fn operands_that_repeat() {
        let out = &[2, 3, 4];
        for other in [&[][..], &[1], &[4], &[1, 1, 4], &[3, 4], &[2, 3, 4], &[1, 3, 4]] {
            assert!(repeats(other, out), "{other:?}");
        }
        for other in [&[3][..], &[2, 1, 4], &[3, 1], &[2, 3, 1], &[1, 2, 3, 4]] {
            assert!(!repeats(other, out), "{other:?}");
        }
        assert!(!repeats(&[0], &[0]));
    }
}
