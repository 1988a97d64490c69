//! Which tensors take turns in the same storage.
//!
//! Tensors that are not alive together are given one place, the largest first, so that a run holds little more than it
//! must. The plan knows the shapes that the file declares. Where a run has others, places grow to what it needs.

use crate::chain::Chains;
use crate::fixed::Fixed;
use litegpu_graph::{Graph, NodeId, Op, TensorId};

/// Bytes of places that are made as large as the plan says at once. More is only what tensors turn out to need: a file
/// may declare what it likes.
const TRUSTED: usize = 1 << 28;

/// Tensors from which a graph is not planned: that takes time by the square of them.
const MOST: usize = 4096;

/// Where a tensor's storage comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// From whatever is free.
    Any,
    /// It keeps its own for good.
    Own,
    /// A planned place, and how large it will be.
    Place(u32, usize),
}

/// A tensor's life: from the node that writes it to its last reader.
#[derive(Debug, Clone, Copy)]
struct Life {
    first: NodeId,
    last: NodeId,
    bytes: usize,
}

/// The homes of a graph's tensors; tensors of at most `small` bytes have none.
pub(crate) fn plan(g: &Graph, release: &[Vec<TensorId>], fixed: &Fixed, chains: &Chains, small: usize) -> Vec<Home> {
    let mut homes = vec![Home::Own; g.tensors.len()];
    let mut last: Vec<Option<NodeId>> = vec![None; g.tensors.len()];
    for (n, list) in release.iter().enumerate() {
        for &t in list {
            if let Some(l) = last.get_mut(t) {
                *l = Some(n);
            }
        }
    }
    // Tensors that pass their storage on count as one, the last of them.
    let mut lives: Vec<Option<Life>> = vec![None; g.tensors.len()];
    let mut heirs: Vec<(TensorId, TensorId)> = Vec::new();
    let mut inner = vec![false; g.tensors.len()];
    let mut writer: Vec<NodeId> = (0..g.nodes.len()).collect();
    for (n, links) in chains.links.iter().enumerate() {
        let mut at = n;
        for l in links {
            for &t in g.nodes.get(at).map(|n| &n.outputs[..]).unwrap_or_default() {
                if let Some(i) = inner.get_mut(t) {
                    *i = true;
                }
            }
            at = l.node;
        }
        if at != n
            && let Some(w) = writer.get_mut(at)
        {
            *w = n;
        }
    }
    for (n, node) in g.nodes.iter().enumerate() {
        let moves = matches!(node.op, Op::Reshape(_) | Op::Squeeze(_) | Op::ExpandDims);
        let from = node.input(0).filter(|t| moves && release.get(n).is_some_and(|r| r.contains(t)));
        for &t in &node.outputs {
            let (Some(tensor), Some(&end)) = (g.tensors.get(t), last.get(t)) else { continue };
            let bytes = tensor.dtype.byte_len(tensor.elements()).unwrap_or(0);
            let inherits = from.and_then(|f| lives.get(f).copied().flatten().map(|l| (f, l)));
            let first = writer.get(n).copied().unwrap_or(n);
            let life = match inherits {
                Some((_, l)) => Life { first: l.first, last: end.unwrap_or(g.nodes.len()), bytes: bytes.max(l.bytes) },
                None => Life { first, last: end.unwrap_or(g.nodes.len()), bytes },
            };
            let planned = inner.get(t) == Some(&false) && fixed.skip.get(n) == Some(&false) && bytes > small;
            if planned
                && (end.is_some() || inherits.is_some())
                && let Some(slot) = lives.get_mut(t)
            {
                *slot = Some(life);
                if let Some((f, _)) = inherits {
                    heirs.push((f, t));
                }
            }
        }
    }
    for (from, _) in &heirs {
        if let Some(l) = lives.get_mut(*from) {
            *l = None;
        }
    }
    let mut order: Vec<(TensorId, Life)> = (0..).zip(&lives).filter_map(|(t, l)| Some((t, (*l)?))).collect();
    if order.len() > MOST {
        order.clear();
    }
    let order = litegpu_graph::ordered(order, &mut |a, b| b.1.bytes.cmp(&a.1.bytes).then(a.0.cmp(&b.0)));
    let mut places: Vec<(usize, Vec<Life>)> = Vec::new();
    for (t, life) in order {
        let apart = |l: &Life| l.last < life.first || life.last < l.first;
        let place = match places.iter().position(|(_, lives)| lives.iter().all(apart)) {
            Some(p) => p,
            None => {
                places.push((life.bytes, Vec::new()));
                places.len() - 1
            }
        };
        let Some((bytes, lives)) = places.get_mut(place) else { continue };
        lives.push(life);
        if let Some(h) = homes.get_mut(t) {
            *h = Home::Place(place as u32 + 1, *bytes);
        }
    }
    let trusted = places.iter().fold(0usize, |sum, (bytes, _)| sum.saturating_add(*bytes)) <= TRUSTED;
    for (h, end) in homes.iter_mut().zip(&last) {
        *h = match *h {
            Home::Place(p, _) if !trusted => Home::Place(p, 0),
            Home::Own if end.is_some() => Home::Any,
            h => h,
        };
    }
    for &(from, to) in heirs.iter().rev() {
        let home = homes.get(to).copied();
        if let (Some(home), Some(h)) = (home, homes.get_mut(from)) {
            *h = home;
        }
    }
    homes
}

#[cfg(test)]
mod tests {
    use super::*;
    use litegpu_graph::schema::ReshapeOptionsT;
    use litegpu_graph::{DType, Node, Tensor};

    /// Random graphs: who is alive together shares nothing, and places are not many more than live tensors.
    #[test]
    fn neighbours_do_not_meet() {
        let mut seed = 1u32;
        let mut next = move |n: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize % n
        };
        for _ in 0..50 {
            let mut g = Graph::default();
            g.tensors.push(Tensor::new("x", DType::F32, &[4000]));
            let mut release = Vec::new();
            let mut last = vec![0];
            for n in 0..40 {
                let (a, b) = (next(6.min(n + 1)), next(6.min(n + 1)));
                let reads = [n - a, n - b];
                g.tensors.push(Tensor::new("t", DType::F32, &[2000 + 500 * next(9)]));
                reads.iter().for_each(|&t| last[t] = n);
                last.push(n);
                g.nodes.push(Node::new(Op::Add(Default::default()), &reads, &[n + 1]));
                release.push(Vec::new());
            }
            (1..40).for_each(|t| release[last[t]].push(t));
            let homes = plan(&g, &release, &Fixed::none(&g), &Chains::none(&g), 4096);
            assert_eq!((homes[0], homes[40]), (Home::Own, Home::Own));
            let mut rooms = std::collections::BTreeMap::new();
            for t in 1..40 {
                let Home::Place(p, bytes) = homes[t] else { panic!("{t}: {:?}", homes[t]) };
                assert!(bytes >= 4 * g.tensors[t].elements());
                rooms.insert(p, bytes);
                let together = |u: usize| u - 1 <= last[t] && t - 1 <= last[u];
                assert!((t + 1..40).filter(|&u| together(u)).all(|u| !matches!(homes[u], Home::Place(q, _) if q == p)));
            }
            let bytes = |t: usize| 4 * g.tensors[t].elements();
            let alive = |n: usize| (1..40).filter(|&t| t - 1 <= n && n <= last[t]).map(bytes).sum::<usize>();
            let most = (0..40).map(alive).max().unwrap();
            assert!(rooms.values().sum::<usize>() <= 2 * most);
        }
    }

    /// A chain's result is written while its first operator still reads.
    #[test]
    fn chains_write_early() {
        let mut g = Graph::default();
        for name in ["x", "a", "b", "c", "y"] {
            g.tensors.push(Tensor::new(name, DType::F32, &[4000]));
        }
        let nodes = [(0, 1), (1, 2), (2, 3), (3, 4)];
        g.nodes.extend(nodes.map(|(from, to)| Node::new(Op::Abs, &[from], &[to])));
        let release = vec![vec![], vec![1], vec![2], vec![3]];
        let mut chains = Chains::none(&g);
        chains.links[1].push(crate::chain::Link { node: 2, other: None });
        let homes = plan(&g, &release, &Fixed::none(&g), &chains, 4096);
        assert_eq!(homes, [Home::Own, Home::Place(1, 16_000), Home::Any, Home::Place(2, 16_000), Home::Own]);
    }

    /// What a RESHAPE hands on has the home of the result, and what a small tensor holds is its own.
    #[test]
    fn storage_that_moves() {
        let mut g = Graph::default();
        for (name, n) in [("x", 4000), ("a", 4000), ("b", 4000), ("c", 10), ("y", 10)] {
            g.tensors.push(Tensor::new(name, DType::F32, &[n]));
        }
        g.nodes = vec![
            Node::new(Op::Abs, &[0], &[1]),
            Node::new(Op::Reshape(ReshapeOptionsT::default()), &[1], &[2]),
            Node::new(Op::Sum(Default::default()), &[2], &[3]),
            Node::new(Op::Abs, &[3], &[4]),
        ];
        let release = vec![vec![], vec![1], vec![2], vec![3]];
        let homes = plan(&g, &release, &Fixed::none(&g), &Chains::none(&g), 4096);
        let place = Home::Place(1, 16_000);
        assert_eq!(homes, [Home::Own, place, place, Home::Any, Home::Own]);
    }
}
