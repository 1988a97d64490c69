//! A coarse price for operators: enough to tell a part that pays from one that does not.

use crate::caps::AdapterClass;
use crate::lower::Scene;
use crate::plan::overhead;
use litegpu_graph::{Family, NodeId, TensorId, Work, elements};

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

/// The work in a node, with the shapes of the plan.
pub fn work(scene: &Scene<'_>, id: NodeId) -> Work {
    if let Some(body) = scene.bodies.get(&id) {
        return (0..body.graph.nodes.len()).map(|i| work(body, i)).fold(Work::default(), |a, b| Work {
            flops: a.flops.saturating_add(b.flops),
            bytes: a.bytes.saturating_add(b.bytes),
        });
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
        e.cpu_us += 0.5 + (w.flops as f64 / cpu_flops).max(w.bytes as f64 / cpu_bytes) / 1e3;
        if node.op.family() != Family::Reshape {
            e.gpu_us += dispatch + (w.flops as f64 / gpu_flops).max(w.bytes as f64 / gpu_bytes) / 1e3;
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
