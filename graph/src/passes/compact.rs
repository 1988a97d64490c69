//! Tensors that nothing names any more are dropped, and the rest renumbered: before a rewritten model is written.

use crate::model::*;

/// Renumbers every subgraph. Returns how many tensors were dropped.
pub fn run(model: &mut Model) -> usize {
    let mut dropped = 0;
    for i in 0..model.subgraphs.len() {
        let mut used: Vec<TensorId> = Vec::new();
        for s in model.signatures.iter().filter(|s| s.subgraph == i) {
            used.extend(s.inputs.iter().chain(&s.outputs).map(|(_, t)| *t));
        }
        let Some(g) = model.subgraphs.get_mut(i) else { continue };
        let new = renumber(g, used);
        dropped += new.iter().filter(|n| n.is_none()).count();
        for s in model.signatures.iter_mut().filter(|s| s.subgraph == i) {
            s.inputs.iter_mut().chain(&mut s.outputs).for_each(|(_, t)| rename(&new, t));
        }
    }
    dropped
}

fn renumber(g: &mut Graph, mut used: Vec<TensorId>) -> Vec<Option<TensorId>> {
    used.extend(g.inputs.iter().chain(&g.outputs));
    for n in &g.nodes {
        used.extend(n.inputs.iter().chain(&n.intermediates).flatten().chain(&n.outputs));
    }
    let mut live = vec![false; g.tensors.len()];
    while let Some(t) = used.pop() {
        if let Some(l) = live.get_mut(t)
            && !std::mem::replace(l, true)
            && let Some(b) = g.tensors.get(t).and_then(|t| t.quant.as_ref()?.blockwise)
        {
            used.push(b.scales);
            used.extend(b.zero_points);
        }
    }
    let mut next = 0..;
    let new: Vec<Option<TensorId>> = live.iter().map(|&l| if l { next.next() } else { None }).collect();
    let mut keep = live.into_iter();
    g.tensors.retain(|_| keep.next() == Some(true));
    for t in &mut g.tensors {
        if let Some(b) = t.quant.as_mut().and_then(|q| q.blockwise.as_mut()) {
            rename(&new, &mut b.scales);
            b.zero_points.iter_mut().for_each(|t| rename(&new, t));
        }
    }
    for n in &mut g.nodes {
        n.inputs.iter_mut().chain(&mut n.intermediates).flatten().chain(&mut n.outputs).for_each(|t| rename(&new, t));
    }
    g.inputs.iter_mut().chain(&mut g.outputs).for_each(|t| rename(&new, t));
    new
}

fn rename(new: &[Option<TensorId>], t: &mut TensorId) {
    if let Some(Some(n)) = new.get(*t) {
        *t = *n;
    }
}
