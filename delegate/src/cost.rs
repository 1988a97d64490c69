//! A coarse price for operators: enough to tell a part that pays from one that does not.

use crate::caps::AdapterClass;
use crate::counter::passes;
use crate::lower::Scene;
use crate::plan::overhead;
use litegpu_graph::{Family, Node, NodeId, Op, TensorId, Work, elements};

/// What a part costs on either side.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    /// Microseconds on the CPU.
    pub cpu_us: f64,
    /// Microseconds on the GPU, dispatches included.
    pub gpu_us: f64,
    /// Microseconds for submit, transfers and read-back.
    pub crossing_us: f64,
}

fn size(scene: &Scene<'_>, t: TensorId) -> (u64, u64) {
    let n = scene.shape(t).map_or(0, |s| elements(&s)) as u64;
    let bits = scene.graph.tensors.get(t).map_or(0, |t| t.dtype.bits()) as u64;
    (n, n.saturating_mul(bits) / 8)
}

/// The work in a subgraph.
pub(crate) fn whole(scene: &Scene<'_>) -> Work {
    (0..scene.graph.nodes.len()).map(|i| work(scene, i)).fold(Work::default(), add)
}

fn add(a: Work, b: Work) -> Work {
    Work { flops: a.flops.saturating_add(b.flops), bytes: a.bytes.saturating_add(b.bytes) }
}

/// Condition and body, if the node is a loop.
fn looped<'s, 'a>(node: &Node, parts: &'s [Scene<'a>]) -> Option<&'s [Scene<'a>; 2]> {
    parts.first_chunk().filter(|_| litegpu_graph::shapes::loop_of(&node.op).is_some())
}

/// How often a loop runs, as far as a guess goes.
fn passes_of(scene: &Scene<'_>, id: NodeId, cond: &Scene<'_>, body: &Scene<'_>) -> u64 {
    const GUESS: u64 = 8;
    scene.graph.nodes.get(id).and_then(|n| passes(scene, n, cond, body)).map_or(GUESS, u64::from)
}

/// The operators that a node stands for in a run, and how often the host is asked what follows.
fn steps(scene: &Scene<'_>, id: NodeId) -> (f64, f64) {
    let Some(parts) = scene.flows.get(&id) else { return (1.0, 0.0) };
    let count = |s: &Scene<'_>| s.graph.nodes.len() as f64;
    match scene.graph.nodes.get(id).and_then(|n| Some((n, looped(n, parts)?))) {
        Some((node, [cond, body])) => {
            let times = passes_of(scene, id, cond, body) as f64;
            let asks = if passes(scene, node, cond, body).is_some() { 0.0 } else { times };
            ((count(cond) + count(body)) * times, asks)
        }
        None => (parts.iter().map(count).fold(0.0, f64::max), 1.0),
    }
}

/// The work in a node, with the shapes of the plan.
pub fn work(scene: &Scene<'_>, id: NodeId) -> Work {
    if let Some(body) = scene.bodies.get(&id) {
        return whole(body);
    }
    if let Some(parts) = scene.flows.get(&id) {
        let all = parts.iter().map(whole);
        let Some([cond, body]) = scene.graph.nodes.get(id).and_then(|n| looped(n, parts)) else {
            return all.max_by_key(|w| w.flops.saturating_add(w.bytes)).unwrap_or_default();
        };
        let passes = passes_of(scene, id, cond, body);
        let one = all.fold(Work::default(), add);
        return Work { flops: one.flops.saturating_mul(passes), bytes: one.bytes.saturating_mul(passes) };
    }
    let shape = |t| scene.shape(t).ok();
    scene.graph.nodes.get(id).map_or(Work::default(), |node| litegpu_graph::work(scene.graph, node, &shape))
}

/// What a part of these nodes costs.
pub fn estimate(scene: &Scene<'_>, nodes: &[NodeId]) -> Estimate {
    let class = scene.caps.class;
    // (GFLOP/s, GB/s): orders of magnitude. The software adapter is priced as a weak GPU: whoever plans for it wants
    // its kernels to run.
    let (gpu_flops, gpu_bytes, link) = match class {
        AdapterClass::Software => (60.0, 20.0, 4.0),
        AdapterClass::Integrated => (400.0, 30.0, 10.0),
        AdapterClass::Discrete => (3000.0, 200.0, 6.0),
    };
    let (cpu_flops, cpu_bytes) = (20.0, 8.0);
    let (part, dispatch) = overhead(class);
    let mut e = Estimate { crossing_us: part, ..Estimate::default() };
    let made: std::collections::HashSet<TensorId> =
        nodes.iter().filter_map(|&n| scene.graph.nodes.get(n)).flat_map(|n| n.outputs.iter().copied()).collect();
    let inside: std::collections::HashSet<NodeId> = nodes.iter().copied().collect();
    let mut crossing = 0u64;
    let mut seen = std::collections::HashSet::new();
    for &id in nodes {
        let w = work(scene, id);
        let Some(node) = scene.graph.nodes.get(id) else { continue };
        let (count, asks) = steps(scene, id);
        e.cpu_us += 0.5 * count + (w.flops as f64 / cpu_flops).max(w.bytes as f64 / cpu_bytes) / 1e3;
        if node.op.family() != Family::Reshape && !matches!(node.op, Op::ReadVariable | Op::AssignVariable) {
            e.gpu_us +=
                dispatch * count + part * asks + (w.flops as f64 / gpu_flops).max(w.bytes as f64 / gpu_bytes) / 1e3;
        }
        for &t in node.inputs.iter().flatten() {
            let constant = matches!(scene.constant(t), Ok(Some(_)));
            if !made.contains(&t) && !constant && seen.insert(t) {
                crossing = crossing.saturating_add(size(scene, t).1);
            }
        }
    }
    for (id, node) in scene.graph.nodes.iter().enumerate() {
        if !inside.contains(&id) {
            for &t in node.inputs.iter().flatten() {
                if made.contains(&t) && seen.insert(t) {
                    crossing = crossing.saturating_add(size(scene, t).1);
                }
            }
        }
    }
    for &t in &scene.graph.outputs {
        if made.contains(&t) && seen.insert(t) {
            crossing = crossing.saturating_add(size(scene, t).1);
        }
    }
    e.crossing_us += crossing as f64 / link / 1e3;
    e
}
