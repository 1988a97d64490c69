//! How often a loop runs, where that hangs on counters alone: whole numbers that begin with constants and that each pass
//! changes by constants. Such a loop is recorded without asking the device after each pass.

use crate::convert;
use crate::lower::Scene;
use litegpu_graph::schema::ActivationFunctionType;
use litegpu_graph::{DType, Graph, Node, NodeId, Op, TensorId, elements};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Passes that are counted.
const MAX_PASSES: u32 = 16_384;
/// Operators that counters may hang on in a pass.
const MAX_NODES: usize = 64;

/// The passes of the loop `node`, if they can be told before it runs.
pub(crate) fn passes(scene: &Scene<'_>, node: &Node, cond: &Scene<'_>, body: &Scene<'_>) -> Option<u32> {
    let wanted = cond.graph.outputs.first()?;
    let asks = Slice::of(cond, &[*wanted])?;
    // The counters: what the condition reads, and what these are computed from.
    let mut counters: BTreeSet<usize> = asks.inputs.clone();
    let does = loop {
        let outputs: Vec<TensorId> =
            counters.iter().map(|&i| body.graph.outputs.get(i).copied()).collect::<Option<_>>()?;
        let slice = Slice::of(body, &outputs)?;
        let before = counters.len();
        counters.extend(&slice.inputs);
        if counters.len() == before {
            break slice;
        }
    };
    let mut values: HashMap<usize, i32> = HashMap::new();
    for &i in &counters {
        let t = node.input(i)?;
        values.insert(i, constant(scene, t)?);
    }
    for pass in 0..=MAX_PASSES {
        let found = asks.run(cond, &values)?;
        if *found.get(wanted)? == 0 {
            return Some(pass);
        }
        let found = does.run(body, &values)?;
        for &i in &counters {
            values.insert(i, *found.get(body.graph.outputs.get(i)?)?);
        }
    }
    None
}

/// A constant of one whole number or truth.
fn constant(scene: &Scene<'_>, t: TensorId) -> Option<i32> {
    let c = scene.constant(t).ok()??;
    if !matches!(c.dtype, DType::I32 | DType::Bool) || elements(&c.shape) != 1 {
        return None;
    }
    i32::try_from(*convert::ints(&c)?.first()?).ok()
}

/// The operators of a subgraph that some of its tensors are computed by.
struct Slice {
    nodes: Vec<NodeId>,
    /// The inputs that they read, by position.
    inputs: BTreeSet<usize>,
    /// Constants that they read.
    known: HashMap<TensorId, i32>,
}

impl Slice {
    fn of(scene: &Scene<'_>, wanted: &[TensorId]) -> Option<Slice> {
        let graph: &Graph = scene.graph;
        let producers = graph.producers();
        let (mut open, mut seen): (Vec<TensorId>, HashSet<TensorId>) = (wanted.to_vec(), HashSet::new());
        let (mut nodes, mut inputs, mut known) = (BTreeSet::new(), BTreeSet::new(), HashMap::new());
        while let Some(t) = open.pop() {
            if !seen.insert(t) {
                continue;
            }
            if let Some(v) = constant(scene, t) {
                known.insert(t, v);
                continue;
            }
            let tensor = graph.tensors.get(t)?;
            if !matches!(tensor.dtype, DType::I32 | DType::Bool) || elements(&scene.shape(t).ok()?) != 1 {
                return None;
            }
            if let Some(i) = graph.inputs.iter().position(|&i| i == t) {
                inputs.insert(i);
                continue;
            }
            let id = (*producers.get(t)?)?;
            let node = graph.nodes.get(id)?;
            if nodes.len() >= MAX_NODES || node.outputs.len() != 1 || !counts(&node.op) {
                return None;
            }
            nodes.insert(id);
            open.extend(node.inputs.iter().take(operands(&node.op)).copied().collect::<Option<Vec<_>>>()?);
        }
        // Operators lie in the file in the order in which they run.
        Some(Slice { nodes: nodes.into_iter().collect(), inputs, known })
    }

    /// What they compute of the counters' values.
    fn run(&self, scene: &Scene<'_>, counters: &HashMap<usize, i32>) -> Option<HashMap<TensorId, i32>> {
        let graph: &Graph = scene.graph;
        let mut values = self.known.clone();
        for i in &self.inputs {
            values.insert(*graph.inputs.get(*i)?, *counters.get(i)?);
        }
        for id in &self.nodes {
            let node = graph.nodes.get(*id)?;
            let x = |i: usize| values.get(&node.input(i)?).copied();
            let done = compute(&node.op, x(0)?, x(1))?;
            values.insert(*node.outputs.first()?, done);
        }
        Some(values)
    }
}

/// Operands that are numbers: of reshaping operators the second is a shape.
fn operands(op: &Op) -> usize {
    match op {
        Op::Reshape(_) | Op::Squeeze(_) | Op::ExpandDims | Op::LogicalNot | Op::Neg => 1,
        _ => 2,
    }
}

/// Whether [`compute`] has the operator.
fn counts(op: &Op) -> bool {
    compute(op, 1, Some(1)).is_some()
}

fn compute(op: &Op, a: i32, b: Option<i32>) -> Option<i32> {
    let plain = |f: ActivationFunctionType| f == ActivationFunctionType::NONE;
    let truth = |v: bool| Some(i32::from(v));
    match op {
        Op::Reshape(_) | Op::Squeeze(_) | Op::ExpandDims => return Some(a),
        Op::LogicalNot => return truth(a == 0),
        Op::Neg => return Some(a.wrapping_neg()),
        _ => {}
    }
    let b = b?;
    match op {
        Op::Add(o) if plain(o.fused_activation_function) => Some(a.wrapping_add(b)),
        Op::Sub(o) if plain(o.fused_activation_function) => Some(a.wrapping_sub(b)),
        Op::Mul(o) if plain(o.fused_activation_function) => Some(a.wrapping_mul(b)),
        Op::Maximum => Some(a.max(b)),
        Op::Minimum => Some(a.min(b)),
        Op::Less => truth(a < b),
        Op::LessEqual => truth(a <= b),
        Op::Greater => truth(a > b),
        Op::GreaterEqual => truth(a >= b),
        Op::Equal => truth(a == b),
        Op::NotEqual => truth(a != b),
        Op::LogicalAnd => truth(a != 0 && b != 0),
        Op::LogicalOr => truth(a != 0 || b != 0),
        _ => None,
    }
}
