//! Partitioning: which operators run where, in which order, and why.

use crate::caps::{AdapterClass, Caps, Precision};
use crate::cost;
use crate::lower::{Lower, Scene, variables};
use crate::program::{Program, Variable};
use litegpu_graph::shapes::{Eval, Shapes};
use litegpu_graph::{DType, Error, Family, Graph, Model, Node, NodeId, Op, TensorId};
use std::collections::HashSet;

/// What may be asked of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOptions {
    /// How floats are kept.
    pub precision: Precision,
    /// Take everything that can be lowered, whatever it costs: for tests.
    pub force_gpu: bool,
    /// Keep everything on the CPU.
    pub force_cpu: bool,
    /// Keep the largest part on the GPU even where the estimate favours the CPU. Off, a plan may be all CPU.
    pub prefer_gpu: bool,
    /// Fuse element-wise operators into their producers.
    pub fuse: bool,
    /// Make one dispatch of small neighbours even where its pipeline takes longer to compile than that saves: for tests.
    pub force_series: bool,
    /// Bytes of GPU memory that the plan may use for constants and activations; `None` for no limit.
    pub memory_budget: Option<u64>,
}

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions {
            precision: Precision::F16,
            force_gpu: false,
            force_cpu: false,
            prefer_gpu: true,
            fuse: true,
            force_series: false,
            memory_budget: None,
        }
    }
}

/// Where an operator ended up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// On the GPU.
    Gpu,
    /// On the CPU.
    Cpu,
    /// Nowhere: its result is a constant, or is read through another operator.
    Folded,
}

/// One operator's place, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The operator.
    pub node: NodeId,
    /// Where it runs.
    pub device: Device,
    /// Why: empty for an operator that runs on the GPU.
    pub reason: String,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a plan has few steps")]
pub enum Step {
    /// A part that runs on the GPU in one submit.
    Gpu(Program),
    /// Operators that run on the CPU, in this order.
    Cpu(Vec<NodeId>),
}

/// How a subgraph is run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// In execution order.
    pub steps: Vec<Step>,
    /// By node.
    pub placements: Vec<Placement>,
    /// Tensors that cross between CPU and GPU inside the graph (graph inputs and outputs not counted).
    pub crossings: usize,
}

impl Plan {
    /// Operators on (GPU, CPU, neither).
    pub fn counts(&self) -> (usize, usize, usize) {
        let of = |d: Device| self.placements.iter().filter(|p| p.device == d).count();
        (of(Device::Gpu), of(Device::Cpu), of(Device::Folded))
    }
    /// The GPU parts.
    pub fn programs(&self) -> impl Iterator<Item = &Program> {
        self.steps.iter().filter_map(|s| match s {
            Step::Gpu(p) => Some(p),
            Step::Cpu(_) => None,
        })
    }
    /// Activation bytes planned, and the lower bound, over all GPU parts.
    pub fn memory(&self) -> (u64, u64) {
        self.programs().fold((0, 0), |(a, b), p| (a + p.planned_bytes, b + p.lower_bound))
    }
}

/// Plans a subgraph for an adapter.
///
/// `eval` evaluates constant operators on the CPU: the tables of 8-bit unary operators come from it, so that GPU and
/// CPU agree to the byte. Without it such operators stay on the CPU.
///
/// # Errors
/// `Invalid` when there is no such subgraph. What cannot run on the GPU is no error: it is placed on the CPU.
pub fn plan<'e>(
    model: &Model,
    subgraph: usize,
    shapes: &Shapes,
    caps: &Caps,
    options: &PlanOptions,
    mut eval: Option<&'e mut Eval<'e>>,
) -> Result<Plan, Error> {
    let scene = Scene::new(model, subgraph, shapes, caps, options.precision)?;
    let graph = scene.graph;
    let n = graph.nodes.len();
    let mut reasons: Vec<Option<String>> = vec![None; n];
    let folded: Vec<bool> = graph
        .nodes
        .iter()
        .map(|node| {
            // An operator without results has an effect instead: it is never folded.
            let all = !node.outputs.is_empty() && node.outputs.iter().all(|t| scene.folded.contains_key(t));
            let lasting = node.outputs.iter().any(|&t| graph.tensors.get(t).is_some_and(|t| t.is_variable));
            (shapes.is_known(node) || all || matches!(node.op, Op::VarHandle(_))) && !lasting
        })
        .map(|f| f && !options.force_cpu)
        .collect();
    if options.force_cpu {
        reasons.fill(Some("the CPU was asked for".into()));
    } else if let Some(mut dry) = Lower::new(&scene, eval.take(), true) {
        let fine = become_wide(graph);
        for id in 0..n {
            if folded[id] {
                continue;
            }
            reasons[id] = match fine[id] {
                true => Some("its result becomes a 16-bit integer, which the CPU gets exactly".into()),
                false => dry.node(id).err().map(|e| e.reason),
            };
        }
        eval = dry.eval.take();
    }
    let mut tries = 0;
    loop {
        keep_together(&scene, &mut reasons);
        let on_gpu: Vec<bool> = (0..n).map(|i| !folded[i] && reasons[i].is_none()).collect();
        let groups = schedule(graph, &on_gpu, &folded);
        if let Some((nodes, reason)) = too_small(&scene, &groups, options) {
            for id in nodes {
                reasons[id] = Some(reason.clone());
            }
            continue;
        }
        match build(&scene, &groups, options, &mut eval) {
            Ok(steps) => {
                let over = options.memory_budget.is_some_and(|budget| {
                    let used = |s: &Step| match s {
                        Step::Gpu(p) => p.planned_bytes + p.weight_bytes(),
                        Step::Cpu(_) => 0,
                    };
                    steps.iter().map(used).sum::<u64>() > budget
                });
                if !over {
                    return Ok(finish(&scene, steps, &groups, reasons, &folded));
                }
                // Give back the part that needs most, until the rest fits.
                let largest = steps
                    .iter()
                    .filter_map(|s| match s {
                        Step::Gpu(p) => Some((p.planned_bytes + p.weight_bytes(), p.nodes.clone())),
                        Step::Cpu(_) => None,
                    })
                    .max_by_key(|(b, _)| *b);
                for id in largest.map(|(_, n)| n).unwrap_or_default() {
                    reasons[id] = Some("its part would exceed the memory budget".into());
                }
            }
            Err((id, reason)) => match reasons.get_mut(id) {
                Some(slot) => *slot = Some(reason),
                None => return Err(Error::internal(reason)),
            },
        }
        tries += 1;
        if tries > n + 2 {
            return Err(Error::internal("the plan does not settle"));
        }
    }
}

/// The operators whose float results are quantized to 16 bits in the end. A step of 16 bits is little more than what
/// the order of a sum changes in a float: on the GPU some would come out one off.
fn become_wide(graph: &Graph) -> Vec<bool> {
    let dtype = |t: TensorId| graph.tensors.get(t).map(|t| t.dtype);
    let mut wanted = vec![false; graph.tensors.len()];
    let mut nodes = vec![false; graph.nodes.len()];
    for (id, node) in graph.nodes.iter().enumerate().rev() {
        let wide = node.op == Op::Quantize && node.outputs.first().copied().and_then(dtype) == Some(DType::I16);
        let feeds = node.outputs.iter().any(|&t| wanted.get(t) == Some(&true));
        if let Some(slot) = nodes.get_mut(id) {
            *slot = feeds;
        }
        for t in node.inputs.iter().flatten().copied().filter(|&t| (wide || feeds) && dtype(t) == Some(DType::F32)) {
            if let Some(slot) = wanted.get_mut(t) {
                *slot = true;
            }
        }
    }
    nodes
}

/// A variable that one operator needs on the CPU is there for all of them.
fn keep_together(scene: &Scene<'_>, reasons: &mut [Option<String>]) {
    let graph = scene.graph;
    let touched = |node: &Node| match node.op {
        Op::ReadVariable | Op::AssignVariable => node.input(0).and_then(|t| scene.handles.get(&t)),
        _ => None,
    };
    // What a subgraph touches counts; an initialiser has run before.
    let mut there: HashSet<Variable> = HashSet::new();
    for (node, reason) in graph.nodes.iter().zip(&*reasons) {
        if reason.is_some() {
            there.extend(touched(node).cloned());
            if !matches!(node.op, Op::CallOnce(_)) {
                there.extend(within(scene.model, node));
            }
        }
    }
    for (node, reason) in graph.nodes.iter().zip(reasons) {
        if reason.is_none() && touched(node).is_some_and(|v| there.contains(v)) {
            *reason = Some("another operator needs its variable on the CPU".into());
        }
    }
}

/// The variables of the subgraphs that an operator runs, and of those that these run.
fn within(model: &Model, node: &Node) -> HashSet<Variable> {
    let (mut open, mut seen, mut found) = (subgraphs(&node.op), HashSet::new(), HashSet::new());
    while let Some(s) = open.pop() {
        let Some(graph) = model.subgraphs.get(s).filter(|_| seen.insert(s)) else { continue };
        found.extend(variables(graph).into_values());
        open.extend(graph.nodes.iter().flat_map(|n| subgraphs(&n.op)));
    }
    found
}

/// The subgraphs that an operator may run.
fn subgraphs(op: &Op) -> Vec<usize> {
    litegpu_graph::validate::called(op).into_iter().filter_map(|s| usize::try_from(s).ok()).collect()
}

/// A run of nodes on one device.
#[derive(Debug)]
struct Group {
    gpu: bool,
    nodes: Vec<NodeId>,
}

/// Orders the nodes so that devices change as seldom as the data flow allows: what is ready on the current device
/// runs before the device changes. Operators with effects (variables, tables) keep their order.
fn schedule(graph: &Graph, on_gpu: &[bool], folded: &[bool]) -> Vec<Group> {
    let n = graph.nodes.len();
    let producers = graph.producers();
    // A folded operator runs (on the CPU) only for those that read its result there.
    let mut needed: Vec<bool> = folded.iter().map(|f| !f).collect();
    for id in (0..n).rev() {
        let outputs = graph.nodes[id].outputs.iter();
        if folded[id] && outputs.clone().any(|t| graph.outputs.contains(t)) {
            needed[id] = true;
        }
        if needed[id] && !on_gpu[id] {
            for &t in graph.nodes[id].inputs.iter().flatten() {
                if let Some(p) = producers.get(t).copied().flatten()
                    && p < id
                {
                    needed[p] = true;
                }
            }
        }
    }
    let mut waits = vec![0usize; n];
    let mut next: Vec<Vec<NodeId>> = vec![Vec::new(); n];
    let mut last_effect: Option<NodeId> = None;
    for (id, node) in graph.nodes.iter().enumerate() {
        if !needed[id] {
            continue;
        }
        let mut after: Vec<NodeId> = node
            .inputs
            .iter()
            .flatten()
            .filter_map(|&t| producers.get(t).copied().flatten())
            .filter(|&p| p < id && needed[p])
            // A value known from shapes is a constant to a GPU part.
            .filter(|&p| !(on_gpu[id] && folded[p]))
            .collect();
        let touches = |t: &TensorId| graph.tensors.get(*t).is_some_and(|t| t.is_variable);
        let effects = matches!(node.op.family(), Family::Control)
            || node.inputs.iter().flatten().any(touches)
            || matches!(node.op, Op::RandomUniform(_) | Op::RandomStandardNormal(_) | Op::Multinomial(_));
        if effects {
            after.extend(last_effect);
            last_effect = Some(id);
        }
        litegpu_graph::order(&mut after, &mut |a, b| a.cmp(&b));
        after.dedup();
        waits[id] = after.len();
        for p in after {
            next[p].push(id);
        }
    }
    let mut ready: [std::collections::BTreeSet<NodeId>; 2] = Default::default();
    for id in 0..n {
        if needed[id] && waits[id] == 0 {
            ready[usize::from(on_gpu[id])].insert(id);
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    // Start on the device whose first ready node comes first in the file, the CPU on a tie of chances.
    let mut device = match (ready[0].first(), ready[1].first()) {
        (Some(_), _) => 0,
        (None, _) => 1,
    };
    while ready.iter().any(|r| !r.is_empty()) {
        if ready[device].is_empty() {
            device = 1 - device;
        }
        let mut nodes = Vec::new();
        while let Some(id) = ready[device].pop_first() {
            nodes.push(id);
            for &m in &next[id] {
                waits[m] -= 1;
                if waits[m] == 0 {
                    ready[usize::from(on_gpu[m])].insert(m);
                }
            }
        }
        groups.push(Group { gpu: device == 1, nodes });
    }
    groups
}

/// The part, if any, that does not pay: its operators, and the reason.
fn too_small(scene: &Scene<'_>, groups: &[Group], options: &PlanOptions) -> Option<(Vec<NodeId>, String)> {
    if options.force_gpu {
        return None;
    }
    let largest = groups
        .iter()
        .enumerate()
        .filter(|(_, g)| g.gpu)
        .max_by_key(|(_, g)| g.nodes.iter().map(|&n| cost::work(scene, n).flops).sum::<u64>())
        .map(|(i, _)| i);
    let mut worst: Option<(f64, usize, String)> = None;
    for (i, g) in groups.iter().enumerate() {
        if !g.gpu || (options.prefer_gpu && Some(i) == largest) {
            continue;
        }
        let estimate = cost::estimate(scene, &g.nodes);
        // Between two CPU parts both crossings fall away; at an end one does.
        let gain = estimate.cpu_us - estimate.gpu_us - estimate.crossing_us;
        if gain < 0.0 && worst.as_ref().is_none_or(|w| gain < w.0) {
            let reason = format!(
                "too small a part for the GPU ({} operators: about {:.0} us on the CPU, {:.0} us with its transfers on the GPU)",
                g.nodes.len(),
                estimate.cpu_us,
                estimate.gpu_us + estimate.crossing_us
            );
            worst = Some((gain, i, reason));
        }
    }
    worst.and_then(|(_, i, reason)| Some((groups.get(i)?.nodes.clone(), reason)))
}

/// Lowers each GPU group to a program. On failure: the node to blame and the reason.
fn build<'e>(
    scene: &Scene<'_>,
    groups: &[Group],
    options: &PlanOptions,
    eval: &mut Option<&'e mut Eval<'e>>,
) -> Result<Vec<Step>, (NodeId, String)> {
    let graph = scene.graph;
    let mut steps = Vec::new();
    for (g, group) in groups.iter().enumerate() {
        if !group.gpu {
            steps.push(Step::Cpu(group.nodes.clone()));
            continue;
        }
        let Some(mut lower) = Lower::new(scene, eval.take(), false) else { continue };
        let mut failed = None;
        for &id in &group.nodes {
            if let Err(e) = lower.node(id) {
                failed = Some((id, e.reason));
                break;
            }
        }
        *eval = lower.eval.take();
        if let Some(f) = failed {
            return Err(f);
        }
        let mut outputs: Vec<TensorId> = Vec::new();
        for &id in &group.nodes {
            for &t in &graph.nodes[id].outputs {
                let read_later = groups
                    .iter()
                    .enumerate()
                    .any(|(o, other)| o != g && other.nodes.iter().any(|&m| graph.nodes[m].inputs.contains(&Some(t))));
                if (graph.outputs.contains(&t) || read_later) && !outputs.contains(&t) {
                    outputs.push(t);
                }
            }
        }
        let program = lower
            .finish(&outputs, options)
            .map_err(|e| (group.nodes.first().copied().unwrap_or(usize::MAX), e.reason))?;
        steps.push(Step::Gpu(program));
    }
    Ok(steps)
}

fn finish(
    scene: &Scene<'_>,
    steps: Vec<Step>,
    groups: &[Group],
    reasons: Vec<Option<String>>,
    folded: &[bool],
) -> Plan {
    let graph = scene.graph;
    let mut placements = Vec::with_capacity(folded.len());
    for (node, (reason, &folded)) in reasons.into_iter().zip(folded).enumerate() {
        let run = groups.iter().any(|g| !g.gpu && g.nodes.contains(&node));
        placements.push(match (folded, reason) {
            (true, _) if run => Placement {
                node,
                device: Device::Cpu,
                reason: "a constant that a CPU operator or the caller reads".into(),
            },
            (true, _) => Placement { node, device: Device::Folded, reason: "its result is a constant".into() },
            (false, Some(reason)) => Placement { node, device: Device::Cpu, reason },
            (false, None) => Placement { node, device: Device::Gpu, reason: String::new() },
        });
    }
    let variable = |t: TensorId| graph.tensors.get(t).is_some_and(|t| t.is_variable);
    let crosses = |t: TensorId| !graph.inputs.contains(&t) && !graph.outputs.contains(&t) && !variable(t);
    let mut crossings = 0;
    for s in &steps {
        if let Step::Gpu(p) = s {
            crossings +=
                p.inputs.iter().chain(&p.outputs).filter(|p| p.variable.is_none() && crosses(p.tensor)).count();
        }
    }
    Plan { steps, placements, crossings }
}

/// Microseconds that a part costs beside its kernels, by adapter class: submit and read-back, and each dispatch.
pub(crate) fn overhead(class: AdapterClass) -> (f64, f64) {
    match class {
        AdapterClass::Software => (100.0, 14.0),
        AdapterClass::Integrated => (150.0, 4.0),
        AdapterClass::Discrete => (150.0, 3.0),
    }
}
