//! Lowering: what an operator's `lower` sees and what it emits.
//!
//! `lower` is the support test too: the planner calls it for every operator, and what it answers instead of dispatches
//! is the reason that is shown. There is no second list of supported operators.

use crate::caps::{AdapterClass, Caps, Precision};
use crate::convert;
use crate::cost;
use crate::counter::passes;
use crate::ops;
use crate::plan::PlanOptions;
use crate::program::*;
use bytes::Bytes;
use litegpu_graph::shapes::{self, Eval, Shapes};
use litegpu_graph::{
    DType, Error, Family, Graph, Model, Node, NodeId, Op, Quant, Shape, Tensor, TensorId, elements, passes,
};
use litegpu_shaders::{Elem, KernelKey};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Why an operator stays on the CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// The reason, without the operator's name.
    pub reason: String,
}

impl Unsupported {
    /// A reason.
    pub fn new(reason: impl Into<String>) -> Unsupported {
        Unsupported { reason: reason.into() }
    }
}

impl From<Error> for Unsupported {
    fn from(e: Error) -> Unsupported {
        Unsupported::new(e.to_string())
    }
}

/// The result of lowering one operator.
pub type Lowered<T = ()> = Result<T, Unsupported>;

/// Shorthand for `Err(Unsupported)`.
pub fn no<T>(reason: impl Into<String>) -> Lowered<T> {
    Err(Unsupported::new(reason))
}

/// A constant as the graph has it: dense and little endian.
#[derive(Debug, Clone)]
pub struct Const {
    /// Element type of the bytes; float16 for a float32 tensor whose DEQUANTIZE is folded away.
    pub dtype: DType,
    /// Shape.
    pub shape: Shape,
    /// Elements.
    pub bytes: Bytes,
}

/// An operand or a result on the GPU.
#[derive(Debug, Clone)]
pub struct Operand<'a> {
    /// The tensor.
    pub tensor: TensorId,
    /// Its memory.
    pub slot: SlotId,
    /// How its elements are stored.
    pub elem: Elem,
    /// Its type in the graph.
    pub dtype: DType,
    /// Its shape.
    pub shape: Shape,
    /// Its quantization.
    pub quant: Option<&'a Quant>,
    /// Whether it is a constant.
    pub constant: bool,
}

impl Operand<'_> {
    /// Quads in memory.
    pub fn quads(&self) -> usize {
        quads(&self.shape)
    }
    /// Quads in a row.
    pub fn row_quads(&self) -> usize {
        row_quads(&self.shape)
    }
    /// The innermost dimension; 1 for a scalar.
    pub fn inner(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
    /// (scale, zero point), which must be per tensor.
    ///
    /// # Errors
    /// The reason, when it is not.
    pub fn scale_zero(&self) -> Lowered<(f32, i32)> {
        match self.quant.and_then(Quant::per_tensor) {
            Some(q) => Ok(q),
            None => no(format!("a {} tensor without per-tensor quantization", self.dtype)),
        }
    }
}

/// The uniform of a dispatch, word by word. Rows are 16 bytes, as WGSL lays out vec4 members.
#[derive(Debug, Clone, Default)]
pub struct Params(Vec<u32>, Option<usize>);

impl Params {
    /// Empty.
    pub fn new() -> Params {
        Params::default()
    }
    /// A u32, from a size that was checked to fit.
    pub fn u(mut self, v: usize) -> Params {
        self.0.push(u32::try_from(v).unwrap_or(u32::MAX));
        self
    }
    /// An i32.
    pub fn i(mut self, v: i32) -> Params {
        self.0.push(v as u32);
        self
    }
    /// An f32.
    pub fn f(mut self, v: f32) -> Params {
        self.0.push(v.to_bits());
        self
    }
    /// Limits of float results, as bits: the least and the greatest, and whether HARD_SWISH stands in their place: it does
    /// not. A clamp or a HARD_SWISH that follows can be merged into them.
    pub fn limits(mut self, low: i32, high: i32) -> Params {
        self.1 = Some(self.0.len());
        self.i(low).i(high).i(0)
    }
    /// Zeros up to the next row.
    pub fn row(mut self) -> Params {
        while self.0.len() % 4 != 0 {
            self.0.push(0);
        }
        self
    }
    /// A row of four i32.
    pub fn i4(self, v: [i32; 4]) -> Params {
        v.into_iter().fold(self.row(), Params::i)
    }
    fn finish(self) -> (Vec<u32>, Option<usize>) {
        let mut p = self.row();
        if p.0.is_empty() {
            p.0.extend([0; 4]);
        }
        (p.0, p.1)
    }
}

/// The workgroups for `count` groups in a line, split into further directions where the limit demands it.
pub fn line(count: usize) -> [u32; 3] {
    const MAX: usize = 65_535;
    let count = count.max(1);
    if count <= MAX {
        return [count as u32, 1, 1];
    }
    let y = count.div_ceil(MAX);
    if y <= MAX {
        return [count.div_ceil(y) as u32, y as u32, 1];
    }
    let z = y.div_ceil(MAX).min(MAX);
    [MAX as u32, y.div_ceil(z).min(MAX) as u32, z as u32]
}

/// What all lowerings of one subgraph share.
pub struct Scene<'a> {
    /// The model.
    pub model: &'a Model,
    /// The subgraph's number.
    pub subgraph: usize,
    /// The subgraph.
    pub graph: &'a Graph,
    /// Shapes, and values known from shapes.
    pub shapes: Cow<'a, Shapes>,
    /// The adapter.
    pub caps: &'a Caps,
    /// How floats are kept.
    pub precision: Precision,
    /// For each tensor that a folded DEQUANTIZE or DENSIFY writes: the constant it reads.
    pub folded: HashMap<TensorId, TensorId>,
    /// Sparse constants, made dense.
    pub dense: HashMap<TensorId, Bytes>,
    /// Floats that are kept in f32 whatever the precision: graph outputs, which f16 could round to zero.
    pub whole: HashSet<TensorId>,
    /// By handle: the resource variable that it names.
    pub handles: HashMap<TensorId, Variable>,
    /// By operator: the subgraph that it stands for.
    pub bodies: HashMap<NodeId, Scene<'a>>,
    /// By operator: the condition and the body of a loop, or the branches of a choice.
    pub flows: HashMap<NodeId, Vec<Scene<'a>>>,
    /// By operator: the builtin operator that it is another name for.
    pub canonical: HashMap<NodeId, Node>,
    /// By tensor: the operator that writes it.
    pub producers: Vec<Option<NodeId>>,
    /// It is such a subgraph.
    nested: bool,
}

impl std::fmt::Debug for Scene<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scene(subgraph {})", self.subgraph)
    }
}

impl<'a> Scene<'a> {
    /// Prepares the lowering of a subgraph.
    pub fn new(
        model: &'a Model,
        subgraph: usize,
        shapes: &'a Shapes,
        caps: &'a Caps,
        precision: Precision,
    ) -> Result<Scene<'a>, Error> {
        let precision = match converts(model, subgraph) {
            true => Precision::F32,
            false => precision,
        };
        Scene::build(model, subgraph, Cow::Borrowed(shapes), caps, precision, 0, &mut MAX_SCENES.clone())
    }

    fn build(
        model: &'a Model,
        subgraph: usize,
        shapes: Cow<'a, Shapes>,
        caps: &'a Caps,
        precision: Precision,
        depth: usize,
        left: &mut usize,
    ) -> Result<Scene<'a>, Error> {
        let graph = model.subgraphs.get(subgraph).ok_or_else(|| Error::invalid(format!("no subgraph {subgraph}")))?;
        let mut folded: HashMap<TensorId, TensorId> = HashMap::new();
        let mut dense = HashMap::new();
        for node in &graph.nodes {
            if let (Op::Densify, Some(from), [to]) = (&node.op, node.input(0), node.outputs.as_slice())
                && let Some(a) = graph.tensors.get(from)
                && a.is_constant()
                && !a.is_variable
                && !graph.tensors.get(*to).is_some_and(|t| t.is_variable)
            {
                dense.insert(from, Bytes::from(passes::densify::dense(a)?));
                folded.insert(*to, from);
            }
            if let (Op::Dequantize, Some(from), [to]) = (&node.op, node.input(0), node.outputs.as_slice())
                && let (Some(a), Some(b)) = (graph.tensors.get(from), graph.tensors.get(*to))
                && a.dtype == DType::F16
                && b.dtype == DType::F32
                && !a.is_variable
                // What a variable holds at first is written once, by the CPU.
                && !b.is_variable
                && (folded.contains_key(&from) || (a.is_constant() && a.sparsity.is_none()))
            {
                let origin = folded.get(&from).copied().unwrap_or(from);
                folded.insert(*to, origin);
            }
        }
        let mut whole: HashSet<TensorId> = match depth {
            0 => graph.outputs.iter().copied().collect(),
            // Those of a body are copied to where the operator's are.
            _ => HashSet::new(),
        };
        for node in graph.nodes.iter().rev() {
            if let (Family::Reshape, Some(from)) = (node.op.family(), node.input(0))
                && node.outputs.iter().any(|t| whole.contains(t))
            {
                whole.insert(from);
            }
        }
        // Variables are kept as they are, run after run: each rounding would add to the last.
        for node in &graph.nodes {
            match node.op {
                Op::ReadVariable => whole.extend(node.outputs.first()),
                Op::AssignVariable => whole.extend(node.input(1)),
                // What loops carry, too.
                ref op if shapes::loop_of(op).is_some() || shapes::arms_of(op).is_some() => whole.extend(&node.outputs),
                _ => {}
            }
        }
        let nested = depth > 0;
        let mut scene = Scene {
            model,
            subgraph,
            graph,
            shapes,
            caps,
            precision,
            folded,
            dense,
            whole,
            handles: variables(graph),
            producers: graph.producers(),
            canonical: graph
                .nodes
                .iter()
                .enumerate()
                .filter(|(_, n)| n.op.family() == Family::Stablehlo)
                .filter_map(|(i, n)| Some((i, ops::builtin(graph, n)?)))
                .collect(),
            bodies: HashMap::new(),
            flows: HashMap::new(),
            nested,
        };
        for (id, node) in graph.nodes.iter().enumerate() {
            if depth >= MAX_BODIES || *left == 0 {
                break;
            }
            if let Some((number, mut inner)) = shapes::body(model, graph, node, &scene.shapes) {
                *left -= 1;
                scene.give(&node.inputs, number, &mut inner, |_| true);
                let body = Scene::build(model, number, Cow::Owned(inner), caps, precision, depth + 1, left)?;
                scene.bodies.insert(id, body);
            }
            let mut parts: Vec<(usize, Shapes)> = Vec::new();
            let mut operands = node.inputs.as_slice();
            let mut stays: Option<&Graph> = None;
            if let Some([cond, body]) = shapes::looped(model, graph, node, &scene.shapes) {
                stays = model.subgraphs.get(body.0);
                parts = vec![cond, body];
            } else if let Some(arms) = shapes::arms(model, graph, node, &scene.shapes) {
                operands = operands.get(1..).unwrap_or_default();
                parts = arms;
            }
            let mut scenes = Vec::with_capacity(parts.len());
            for (number, mut inner) in parts {
                *left = left.saturating_sub(1);
                scene.give(operands, number, &mut inner, |i| stays.is_none_or(|body| shapes::hands_on(body, i)));
                let inner = Cow::Owned(inner);
                // Floats are whole: what a pass rounds, the next one is given.
                scenes.push(Scene::build(model, number, inner, caps, Precision::F32, depth + 1, left)?);
            }
            if !scenes.is_empty() {
                scene.flows.insert(id, scenes);
            }
        }
        Ok(scene)
    }

    /// Makes constant operands of a node, where they are what a body is given whenever it runs, values of its inputs.
    fn give(&self, operands: &[Option<TensorId>], body: usize, shapes: &mut Shapes, stays: impl Fn(usize) -> bool) {
        let Some(graph) = self.model.subgraphs.get(body) else { return };
        for (i, (&to, from)) in graph.inputs.iter().zip(operands).enumerate() {
            if let (Some(from), Some(tensor)) = (from.filter(|_| stays(i)), graph.tensors.get(to))
                && let Ok(Some(c)) = self.constant(from)
                && c.dtype == tensor.dtype
                && let Some(slot) = shapes.values.get_mut(to)
            {
                *slot = Some(c.bytes);
            }
        }
    }

    /// The tensor.
    pub fn tensor(&self, t: TensorId) -> Lowered<&'a Tensor> {
        self.graph.tensors.get(t).ok_or_else(|| Unsupported::new(format!("no tensor {t}")))
    }

    /// The operator that writes the tensor.
    pub fn producer(&self, t: TensorId) -> Option<&'a Node> {
        self.graph.nodes.get((*self.producers.get(t)?)?)
    }

    /// The tensor's shape in this plan. Of complex numbers, that of the floats that they are made of: twice as long
    /// innermost.
    pub fn shape(&self, t: TensorId) -> Lowered<Shape> {
        if let Some(c) = self.folded.get(&t) {
            return Ok(self.tensor(*c)?.shape.clone());
        }
        match self.shapes.get(t) {
            Some(s) if self.tensor(t)?.dtype == DType::C64 => Ok(floats_of(s)),
            Some(s) => Ok(s.clone()),
            None => no(format!("the shape of tensor {t} is known only when the graph runs")),
        }
    }

    /// The tensor's value, if it is constant or follows from shapes.
    pub fn constant(&self, t: TensorId) -> Lowered<Option<Const>> {
        let t = self.folded.get(&t).copied().unwrap_or(t);
        let tensor = self.tensor(t)?;
        if let Some(bytes) = self.dense.get(&t) {
            return Ok(Some(Const { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes: bytes.clone() }));
        }
        if let (Some(data), false) = (&tensor.data, tensor.is_variable) {
            if tensor.sparsity.is_some() {
                return no("a sparse constant");
            }
            return Ok(Some(Const { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes: data.clone() }));
        }
        if let (Some(Some(v)), Some(shape)) = (self.shapes.values.get(t), self.shapes.get(t)) {
            return Ok(Some(Const { dtype: tensor.dtype, shape: shape.clone(), bytes: v.clone() }));
        }
        Ok(None)
    }

    /// How a tensor's elements are stored on the GPU.
    pub fn elem(&self, t: TensorId) -> Lowered<Elem> {
        let tensor = self.tensor(t)?;
        Ok(match tensor.dtype {
            DType::F32 if tensor.is_constant() || tensor.is_variable => Elem::F32,
            DType::F32 if self.whole.contains(&t) && !self.graph.inputs.contains(&t) => Elem::F32,
            DType::F32 => self.caps.float(self.precision, elements(&self.shape(t)?)),
            DType::F16 => self.caps.half(),
            DType::I8 => Elem::I8,
            DType::U8 => Elem::U8,
            DType::Bool => Elem::Bool,
            DType::I32 => Elem::I32,
            DType::C64 if !tensor.is_variable && !tensor.is_constant() => Elem::F32,
            // The cell state of an integer LSTM.
            DType::I16 if tensor.is_variable => Elem::I32,
            DType::I16 if tensor.quant.is_some() => return no("16x8 runs on the CPU by design"),
            d => return no(format!("{d} tensors stay on the CPU")),
        })
    }
}

/// The resource variables of a graph, by their handles.
pub(crate) fn variables(graph: &Graph) -> HashMap<TensorId, Variable> {
    let named = |node: &Node| match (&node.op, node.outputs.as_slice()) {
        (Op::VarHandle(o), &[t]) => {
            let (container, name) =
                (o.container.clone().unwrap_or_default(), o.shared_name.clone().unwrap_or_default());
            Some((t, Variable { container, name }))
        }
        _ => None,
    };
    graph.nodes.iter().filter_map(named).collect()
}

/// A copy of an operand.
fn moved(x: &Operand<'_>, to: SlotId) -> Move {
    Move { from: x.slot, to, bytes: padded_bytes(&x.shape, x.elem) }
}

/// Dispatches and copies of a loop that are recorded in a run.
const MAX_RECORDED: usize = 1 << 18;
/// Floating-point operations and bytes of all branches together, up to which to run them all costs less than to ask which.
const SMALL_WORK: u64 = 1 << 18;
/// Bodies within bodies that are lowered.
const MAX_BODIES: usize = 4;
/// Bodies that are lowered in all: a file may have few that run each other often.
const MAX_SCENES: usize = 4096;

/// Whether a graph, or a subgraph that one of its operators stands for, converts between floats and 8 bits: it keeps its
/// floats whole, as f16 would round before the conversion does, and integers would differ from the CPU's.
fn converts(model: &Model, subgraph: usize) -> bool {
    let (mut open, mut seen) = (vec![subgraph], HashSet::new());
    while let Some(graph) = open.pop().filter(|s| seen.insert(*s)).and_then(|s| model.subgraphs.get(s)) {
        let byte = |t: Option<TensorId>| {
            t.and_then(|t| graph.tensors.get(t)).is_some_and(|t| matches!(t.dtype, DType::I8 | DType::U8))
        };
        for node in &graph.nodes {
            let found = match node.op {
                Op::Quantize => byte(node.outputs.first().copied()),
                Op::Dequantize => byte(node.input(0)),
                _ => false,
            };
            if found {
                return true;
            }
            open.extend(shapes::stands_for(&node.op).filter(|s| !seen.contains(s)));
        }
    }
    false
}

/// Collects what the operators of one part emit.
pub struct Lower<'a, 'e> {
    /// The subgraph.
    pub scene: &'a Scene<'a>,
    /// The operator being lowered.
    pub node: &'a Node,
    /// Its number, or that of the operator of the whole graph that it is a part of.
    pub id: NodeId,
    /// Its number in its own graph.
    local: NodeId,
    /// Evaluates small constant operators on the CPU; see [`crate::PlanOptions::eval`].
    pub(crate) eval: Option<&'e mut Eval<'e>>,
    /// Only ask whether the operators can be lowered: constants are not packed.
    pub(crate) dry: bool,
    pub(crate) program: Program,
    kernels: HashMap<KernelKey, usize>,
    tensors: HashMap<TensorId, SlotId>,
    /// By subgraph, tensor, storage and layout.
    constants: HashMap<(usize, TensorId, Elem, &'static str), SlotId>,
    inputs: Vec<TensorId>,
    states: Vec<TensorId>,
    held: Vec<Held>,
    /// The stretch that dispatches belong to.
    stretch: usize,
    /// Whether that is one of a loop or a choice.
    inside: bool,
}

/// What a resource variable holds at this point of the part.
struct Held {
    variable: Variable,
    handle: TensorId,
    dtype: DType,
    shape: Shape,
    elem: Elem,
    /// Where it is now.
    slot: SlotId,
    /// Where it was when the part began, if an operator reads that.
    read: Option<SlotId>,
    written: bool,
}

impl std::fmt::Debug for Lower<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lower(operator {} {})", self.id, self.node.op.name())
    }
}

impl<'a, 'e> Lower<'a, 'e> {
    pub(crate) fn new(scene: &'a Scene<'a>, eval: Option<&'e mut Eval<'e>>, dry: bool) -> Option<Lower<'a, 'e>> {
        Some(Lower {
            scene,
            node: scene.graph.nodes.first()?,
            id: 0,
            local: 0,
            eval,
            dry,
            program: Program { subgraph: scene.subgraph, ..Program::default() },
            kernels: HashMap::new(),
            tensors: HashMap::new(),
            constants: HashMap::new(),
            inputs: Vec::new(),
            states: Vec::new(),
            held: Vec::new(),
            stretch: 0,
            inside: false,
        })
    }

    /// Lowers one node, or takes back what it had emitted.
    pub(crate) fn node(&mut self, id: NodeId) -> Lowered {
        let scene = self.scene;
        let node = scene.graph.nodes.get(id).ok_or_else(|| Unsupported::new(format!("no operator {id}")))?;
        self.node = scene.canonical.get(&id).unwrap_or(node);
        (self.id, self.local) = (id, id);
        self.check_results()?;
        let (dispatches, flows, stretch) = (self.program.dispatches.len(), self.program.flows.len(), self.stretch);
        let done = ops::lower(self);
        if done.is_err() {
            self.program.dispatches.truncate(dispatches);
            self.program.flows.truncate(flows);
            (self.stretch, self.inside) = (stretch, false);
        } else {
            self.program.nodes.push(id);
        }
        done
    }

    /// Refuses a node with results that no kernel could write.
    fn check_results(&self) -> Lowered {
        for &t in &self.node.outputs {
            let n = elements(&self.scene.shape(t)?);
            if n == 0 {
                return no("a result without elements");
            }
            if n > (i32::MAX / 4) as usize {
                return no("a tensor that is too large");
            }
        }
        Ok(())
    }

    /// The body of the node, if it has one whose shapes are known.
    pub fn body(&self) -> Option<&'a Scene<'a>> {
        self.scene.bodies.get(&self.local)
    }

    /// How many dispatches there are.
    pub(crate) fn dispatches(&self) -> usize {
        self.program.dispatches.len()
    }

    /// Takes back all dispatches but the first `count`.
    pub(crate) fn take_back(&mut self, count: usize) {
        self.program.dispatches.truncate(count);
    }

    /// Lowers the subgraph that the node stands for in its place.
    pub fn inline(&mut self) -> Lowered {
        let Some(body) = self.body() else { return no("shapes in its subgraph that are not known") };
        let mut given = HashMap::new();
        for (i, &t) in body.graph.inputs.iter().enumerate() {
            if matches!(body.constant(t), Ok(Some(_))) {
                continue;
            }
            let elem = body.elem(t)?;
            let x = self.operand(i)?;
            let x = self.stored(x, elem)?;
            if x.elem != elem {
                return no(format!("{} for {}", x.dtype, body.tensor(t)?.dtype));
            }
            given.insert(t, x.slot);
        }
        let results = (0..self.node.outputs.len()).map(|o| self.result(o)).collect::<Lowered<Vec<_>>>()?;
        let made = self.within(body, given, results.len())?;
        self.hand_over(made, results)
    }

    /// Makes what a body has computed the results of the operator.
    fn hand_over(&mut self, made: Vec<Operand<'a>>, results: Vec<Operand<'a>>) -> Lowered {
        for (made, result) in made.into_iter().zip(results) {
            if made.shape != result.shape || made.dtype != result.dtype {
                return no("a subgraph whose results are not the operator's");
            }
            if made.elem == result.elem && !made.constant {
                self.tensors.insert(result.tensor, made.slot);
            } else {
                ops::convert(self, &made, &result)?;
            }
        }
        Ok(())
    }

    /// Lowers a body for operands in the given slots; its first results.
    fn within(
        &mut self,
        body: &'a Scene<'a>,
        given: HashMap<TensorId, SlotId>,
        results: usize,
    ) -> Lowered<Vec<Operand<'a>>> {
        let (scene, node, local) = (self.scene, self.node, self.local);
        let tensors = std::mem::replace(&mut self.tensors, given);
        // Tables of 8-bit operators are made for operators of the graph itself.
        let eval = self.eval.take();
        let (inputs, states) = (self.inputs.len(), self.states.len());
        self.scene = body;
        let done = self.nodes_of(body, results);
        (self.scene, self.node, self.local, self.tensors, self.eval) = (scene, node, local, tensors, eval);
        let outside = self.inputs.len() > inputs || self.states.len() > states;
        self.inputs.truncate(inputs);
        self.states.truncate(states);
        let made = done?;
        if outside {
            return no("a subgraph that reads what it does not compute");
        }
        Ok(made)
    }

    /// The i-th operand, stored as a body's input is.
    fn operand_for(&mut self, i: usize, body: &Scene<'a>, input: TensorId) -> Lowered<Operand<'a>> {
        let elem = body.elem(input)?;
        let x = self.operand(i)?;
        let x = self.stored(x, elem)?;
        match x.elem == elem && body.shape(input)? == x.shape {
            true => Ok(x),
            false => no(format!("{} for {}", x.dtype, body.tensor(input)?.dtype)),
        }
    }

    /// The dispatches of `what` in a stretch of their own.
    fn apart<T>(&mut self, what: impl FnOnce(&mut Self) -> Lowered<T>) -> Lowered<T> {
        self.stretch += 1;
        self.inside = true;
        let done = what(self);
        self.inside = false;
        done
    }

    /// Whether a tensor of the graph is read by an operator or by the caller.
    fn is_read(&self, t: TensorId) -> bool {
        let graph = self.scene.graph;
        graph.outputs.contains(&t) || graph.nodes.iter().any(|n| n.inputs.contains(&Some(t)))
    }

    /// A loop: its condition and its body are stretches of their own; what changes from pass to pass has slots that each
    /// pass finds it in.
    pub(crate) fn repeat(&mut self) -> Lowered {
        let scene: &'a Scene<'a> = self.scene;
        let Some([cond, body]) = scene.flows.get(&self.local).map(Vec::as_slice) else {
            return no("a loop whose shapes are not known, or change from pass to pass");
        };
        if self.inside {
            return no("a loop within control flow");
        }
        let passes = passes(scene, self.node, cond, body);
        let (mut first, mut next) = (Vec::new(), Vec::new());
        let (mut to_cond, mut to_body) = (HashMap::new(), HashMap::new());
        let mut carried: Vec<Option<SlotId>> = Vec::new();
        for (i, (&asks, &does)) in cond.graph.inputs.iter().zip(&body.graph.inputs).enumerate() {
            let result = self.node.outputs.get(i).copied();
            let stays = shapes::hands_on(body.graph, i);
            if stays && matches!((cond.constant(asks), body.constant(does)), (Ok(Some(_)), Ok(Some(_)))) {
                if result.is_some_and(|t| self.is_read(t)) {
                    let (x, y) = (self.operand(i)?, self.result(i)?);
                    let x = self.stored(x, y.elem)?;
                    if x.elem != y.elem || x.shape != y.shape {
                        return no("a constant of another type than its result");
                    }
                    first.push(moved(&x, y.slot));
                }
                carried.push(None);
                continue;
            }
            let x = self.operand_for(i, body, does)?;
            if cond.elem(asks)? != x.elem || cond.shape(asks)? != x.shape {
                return no("a condition with other types than the body");
            }
            let slot = if stays && !x.constant {
                self.tensors.extend(result.map(|t| (t, x.slot)));
                x.slot
            } else {
                let slot = match result {
                    Some(_) => {
                        let y = self.result(i)?;
                        if y.elem != x.elem || y.shape != x.shape {
                            return no("a result with another type than the operand");
                        }
                        y.slot
                    }
                    None => self.temp(&x.shape, x.elem),
                };
                first.push(moved(&x, slot));
                slot
            };
            carried.push((!stays).then_some(slot));
            if to_cond.insert(asks, slot).is_some() | to_body.insert(does, slot).is_some() {
                return no("a subgraph that takes a tensor twice");
            }
        }
        let asked = self.stretch + 1;
        let passes = match passes {
            Some(n) => {
                self.apart(|_| Ok(()))?;
                Passes::Count(n)
            }
            None => {
                let made = self.apart(|cx| cx.within(cond, to_cond, 1))?;
                match made.first() {
                    Some(x) if x.elem == Elem::Bool && elements(&x.shape) == 1 => Passes::While(x.slot),
                    _ => return no("a condition that is no bool"),
                }
            }
        };
        let before = self.program.dispatches.len();
        let made = self.apart(|cx| {
            let made = cx.within(body, to_body, body.graph.outputs.len())?;
            let stored = |(i, x): (usize, Operand<'a>)| match body.graph.inputs.get(i) {
                Some(&t) if carried.get(i).is_some_and(Option::is_some) => cx.stored(x, body.elem(t)?),
                _ => Ok(x),
            };
            made.into_iter().enumerate().map(stored).collect::<Lowered<Vec<_>>>()
        })?;
        if let Passes::Count(n) = passes
            && (self.program.dispatches.len() - before + made.len()).saturating_mul(n as usize) > MAX_RECORDED
        {
            return no(format!("a loop of {n} passes, which take longer to record than the CPU to run"));
        }
        let mut late = Vec::new();
        for (i, x) in made.iter().enumerate() {
            let Some(to) = carried.get(i).copied().flatten() else { continue };
            let fits =
                body.graph.inputs.get(i).is_some_and(|&t| {
                    body.elem(t).is_ok_and(|e| e == x.elem) && body.shape(t).is_ok_and(|s| s == x.shape)
                });
            if !fits {
                return no("a pass that hands on another type than it takes");
            }
            if x.slot == to {
                continue;
            }
            // A slot that is given another value in the same breath is read first.
            if carried.contains(&Some(x.slot)) {
                let between = self.temp(&x.shape, x.elem);
                next.push(moved(x, between));
                late.push(Move { from: between, ..moved(x, to) });
            } else {
                late.push(moved(x, to));
            }
        }
        next.extend(late);
        self.program.flows.push(Flow::Loop { first, cond: asked, passes, body: asked + 1, next });
        self.stretch += 1;
        Ok(())
    }

    /// IF and CASE. The branch is read back; where all together are little work they all run, and the results of one are
    /// selected.
    pub(crate) fn choose(&mut self) -> Lowered {
        let scene: &'a Scene<'a> = self.scene;
        let Some(arms) = scene.flows.get(&self.local) else {
            return no("branches whose shapes are not known");
        };
        let number = matches!(self.node.op, Op::StablehloCase(_));
        let known = self.constant(0)?.and_then(|c| convert::ints(&c)).and_then(|v| v.first().copied());
        let chosen = known.map(|v| match number {
            true => usize::try_from(v).ok().filter(|i| *i < arms.len()).unwrap_or(arms.len() - 1),
            false => usize::from(v == 0),
        });
        let mut given: Vec<HashMap<TensorId, SlotId>> = Vec::with_capacity(arms.len());
        for (a, arm) in arms.iter().enumerate() {
            let mut slots = HashMap::new();
            for (i, &t) in arm.graph.inputs.iter().enumerate() {
                if chosen.is_none_or(|c| c == a) && !matches!(arm.constant(t), Ok(Some(_))) {
                    slots.insert(t, self.operand_for(i + 1, arm, t)?.slot);
                }
            }
            given.push(slots);
        }
        let results = (0..self.node.outputs.len()).map(|o| self.result(o)).collect::<Lowered<Vec<_>>>()?;
        if let Some(c) = chosen {
            let (Some(arm), Some(given)) = (arms.get(c), given.into_iter().nth(c)) else { return no("no branch") };
            let made = self.within(arm, given, results.len())?;
            return self.hand_over(made, results);
        }
        let flag = self.operand(0)?;
        if elements(&flag.shape) != 1 || flag.elem != (if number { Elem::I32 } else { Elem::Bool }) {
            return no("a condition that is no bool");
        }
        let work: u64 = arms.iter().map(|a| cost::whole(a).bytes.saturating_add(cost::whole(a).flops)).sum();
        if !number && (work <= SMALL_WORK || self.inside) {
            let mut made = Vec::with_capacity(2);
            for (arm, given) in arms.iter().zip(given) {
                made.push(self.within(arm, given, results.len())?);
            }
            let [yes, no_] = made.as_slice() else { return no("no two branches") };
            for (y, (a, b)) in results.iter().zip(yes.iter().zip(no_)) {
                if a.dtype != y.dtype || b.dtype != y.dtype || a.shape != y.shape || b.shape != y.shape {
                    return no("branches with results of other types than the operator's");
                }
                ops::pick(self, &flag, a, b, y)?;
            }
            return Ok(());
        }
        if self.inside {
            return no("a choice within control flow");
        }
        let mut flows = Vec::with_capacity(arms.len());
        for (arm, given) in arms.iter().zip(given) {
            let made = self.apart(|cx| {
                let made = cx.within(arm, given, results.len())?;
                let stored = |(x, y): (Operand<'a>, &Operand<'a>)| cx.stored(x, y.elem);
                made.into_iter().zip(&results).map(stored).collect::<Lowered<Vec<_>>>()
            })?;
            let mut moves = Vec::with_capacity(made.len());
            for (x, y) in made.iter().zip(&results) {
                if x.dtype != y.dtype || x.elem != y.elem || x.shape != y.shape {
                    return no("branches with results of other types than the operator's");
                }
                moves.push(moved(x, y.slot));
            }
            flows.push((self.stretch, moves));
        }
        self.program.flows.push(Flow::Choice { flag: flag.slot, number, arms: flows });
        self.stretch += 1;
        Ok(())
    }

    /// Lowers all nodes of a body; its first results.
    fn nodes_of(&mut self, body: &'a Scene<'a>, results: usize) -> Lowered<Vec<Operand<'a>>> {
        for (i, node) in body.graph.nodes.iter().enumerate() {
            let folded = !node.outputs.is_empty() && node.outputs.iter().all(|t| body.folded.contains_key(t));
            if folded || body.shapes.is_known(node) {
                continue;
            }
            (self.node, self.local) = (body.canonical.get(&i).unwrap_or(node), i);
            let done = self.check_results().and_then(|()| ops::lower(self));
            if let Err(e) = done {
                return no(format!("{} in subgraph {}: {}", node.op.name(), body.subgraph, e.reason));
            }
        }
        body.graph.outputs.iter().take(results).map(|&t| self.tensor_operand(t)).collect()
    }

    /// The i-th operand's tensor.
    pub fn tensor(&self, i: usize) -> Lowered<&'a Tensor> {
        match self.node.input(i) {
            Some(t) => self.scene.tensor(t),
            None => no(format!("operand {i} is missing")),
        }
    }

    /// Whether there is an i-th operand.
    pub fn has(&self, i: usize) -> bool {
        self.node.input(i).is_some()
    }

    /// The i-th operand's value, if it is constant or follows from shapes.
    pub fn constant(&self, i: usize) -> Lowered<Option<Const>> {
        match self.node.input(i) {
            Some(t) => self.scene.constant(t),
            None => Ok(None),
        }
    }

    /// The i-th operand as constant integers: axes, paddings, sizes.
    pub fn ints(&self, i: usize) -> Lowered<Vec<i64>> {
        match self.constant(i)? {
            Some(c) => convert::ints(&c).ok_or_else(|| Unsupported::new(format!("operand {i} has type {}", c.dtype))),
            None => no(format!("operand {i} is computed, a constant is needed")),
        }
    }

    /// The i-th operand as constant floats (float32 or float16).
    pub fn floats(&self, i: usize) -> Lowered<Option<Vec<f32>>> {
        match self.constant(i)? {
            Some(c) => convert::floats(&c)
                .map(Some)
                .ok_or_else(|| Unsupported::new(format!("operand {i} has type {}", c.dtype))),
            None => Ok(None),
        }
    }

    /// The i-th operand, uploaded in the padded layout if it is constant.
    pub fn operand(&mut self, i: usize) -> Lowered<Operand<'a>> {
        match self.node.input(i) {
            Some(t) => self.tensor_operand(t),
            None => no(format!("operand {i} is missing")),
        }
    }

    /// A tensor of the graph that an operator before this one reads.
    pub(crate) fn operand_of(&mut self, t: TensorId) -> Lowered<Operand<'a>> {
        self.tensor_operand(t)
    }

    fn tensor_operand(&mut self, t: TensorId) -> Lowered<Operand<'a>> {
        let tensor = self.scene.tensor(t)?;
        let shape = self.scene.shape(t)?;
        if tensor.is_variable {
            return no("a variable tensor");
        }
        if elements(&shape) == 0 {
            return no("an operand without elements");
        }
        let mut elem = self.scene.elem(t)?;
        let quant = tensor.quant.as_ref();
        // A tensor that this part computes is never a constant, even if its value is known.
        if !self.tensors.contains_key(&t)
            && let Some(c) = self.scene.constant(t)?
        {
            if c.dtype == DType::F16 {
                elem = self.scene.caps.half();
            }
            let slot = self.packed(t, elem, "", || convert::pad(&c, elem))?;
            return Ok(Operand { tensor: t, slot, elem, dtype: tensor.dtype, shape: c.shape, quant, constant: true });
        }
        let slot = match self.tensors.get(&t) {
            Some(&s) => s,
            None => {
                let s = self.slot(padded_bytes(&shape, elem));
                self.tensors.insert(t, s);
                self.inputs.push(t);
                s
            }
        };
        Ok(Operand { tensor: t, slot, elem, dtype: tensor.dtype, shape, quant, constant: false })
    }

    /// The i-th operand, which must be a variable tensor: read and written in place, and brought in and out with the
    /// part's operands and results.
    pub fn state(&mut self, i: usize) -> Lowered<Operand<'a>> {
        let Some(t) = self.node.input(i) else { return no(format!("operand {i} is missing")) };
        let tensor = self.scene.tensor(t)?;
        if !tensor.is_variable {
            return no(format!("operand {i} is no variable tensor"));
        }
        let (shape, elem) = (self.scene.shape(t)?, self.scene.elem(t)?);
        if elements(&shape) == 0 {
            return no("a state without elements");
        }
        let slot = match self.tensors.get(&t) {
            Some(&s) => s,
            None => {
                let s = self.slot(padded_bytes(&shape, elem));
                self.tensors.insert(t, s);
                self.inputs.push(t);
                self.states.push(t);
                s
            }
        };
        Ok(Operand { tensor: t, slot, elem, dtype: tensor.dtype, shape, quant: tensor.quant.as_ref(), constant: false })
    }

    /// The resource variable that the first operand names.
    fn variable(&self) -> Lowered<(TensorId, Variable)> {
        if self.scene.nested {
            return no("a variable in a subgraph");
        }
        let Some(handle) = self.node.input(0) else { return no("no variable") };
        match self.scene.handles.get(&handle) {
            Some(v) => Ok((handle, v.clone())),
            None => no("a variable whose name is not known"),
        }
    }

    /// READ_VARIABLE: the result is the variable's memory, which nothing writes to. What the part assigns goes elsewhere.
    pub(crate) fn read_variable(&mut self) -> Lowered {
        let (handle, variable) = self.variable()?;
        let Some(&t) = self.node.outputs.first() else { return no("no result") };
        let (dtype, shape, elem) = (self.scene.tensor(t)?.dtype, self.scene.shape(t)?, self.scene.elem(t)?);
        let slot = match self.held.iter().find(|h| h.variable == variable) {
            Some(h) if h.dtype != dtype || h.shape != shape || h.elem != elem => {
                return no(format!("a variable of type {} and shape {:?}", h.dtype, h.shape.as_slice()));
            }
            Some(h) => h.slot,
            None => {
                let slot = self.slot(padded_bytes(&shape, elem));
                self.held.push(Held { variable, handle, dtype, shape, elem, slot, read: Some(slot), written: false });
                slot
            }
        };
        self.tensors.insert(t, slot);
        Ok(())
    }

    /// ASSIGN_VARIABLE: the value's memory is the variable's from here on.
    pub(crate) fn assign_variable(&mut self) -> Lowered {
        let (handle, variable) = self.variable()?;
        let mut x = self.operand(1)?;
        if x.constant {
            let elem = if x.elem.is_float() && x.dtype == DType::F32 { Elem::F32 } else { x.elem };
            let copy = Operand { slot: self.temp(&x.shape, elem), elem, constant: false, ..x.clone() };
            ops::convert(self, &x, &copy)?;
            x = copy;
        }
        let (dtype, shape, elem, slot) = (x.dtype, x.shape, x.elem, x.slot);
        match self.held.iter_mut().find(|h| h.variable == variable) {
            // The host holds it with one type and shape.
            Some(h) if h.read.is_some() && (h.dtype != dtype || h.shape != shape) => {
                return no("a value of another type or shape than the variable's");
            }
            Some(h) => {
                (h.dtype, h.shape, h.elem, h.slot, h.written) = (dtype, shape, elem, slot, true);
            }
            None => {
                self.held.push(Held { variable, handle, dtype, shape, elem, slot, read: None, written: true });
            }
        }
        Ok(())
    }

    /// The o-th result, with memory of its own.
    pub fn result(&mut self, o: usize) -> Lowered<Operand<'a>> {
        let Some(&t) = self.node.outputs.get(o) else { return no(format!("result {o} is missing")) };
        let tensor = self.scene.tensor(t)?;
        if tensor.is_variable {
            return no("a variable tensor");
        }
        let shape = self.scene.shape(t)?;
        let elem = match tensor.dtype {
            // Indices fit into 32 bits; the boundary widens them.
            DType::I64 if matches!(self.node.op, Op::ArgMax(_) | Op::ArgMin(_)) => Elem::I32,
            _ => self.scene.elem(t)?,
        };
        let slot = self.slot(padded_bytes(&shape, elem));
        self.tensors.insert(t, slot);
        Ok(Operand { tensor: t, slot, elem, dtype: tensor.dtype, shape, quant: tensor.quant.as_ref(), constant: false })
    }

    /// Lets the o-th result be the operand's own memory: no dispatch. The elements must lie in the same places.
    pub fn alias(&mut self, o: usize, from: &Operand<'_>) -> Lowered {
        let Some(&t) = self.node.outputs.get(o) else { return no(format!("result {o} is missing")) };
        if from.constant {
            return no("a reshaped constant");
        }
        self.tensors.insert(t, from.slot);
        Ok(())
    }

    /// The operand stored as `elem`: itself, or a copy that one more dispatch makes.
    pub fn stored(&mut self, x: Operand<'a>, elem: Elem) -> Lowered<Operand<'a>> {
        if x.elem == elem || !(x.elem.is_float() && elem.is_float()) {
            return Ok(x);
        }
        let copy = Operand { slot: self.temp(&x.shape, elem), elem, constant: false, ..x.clone() };
        ops::convert(self, &x, &copy)?;
        Ok(copy)
    }

    /// Scratch memory.
    pub fn temp(&mut self, shape: &[usize], elem: Elem) -> SlotId {
        self.slot(padded_bytes(shape, elem))
    }

    fn slot(&mut self, bytes: u64) -> SlotId {
        self.program.slots.push(Slot { bytes, place: Place::Unused, within: None });
        self.program.slots.len() - 1
    }

    /// A constant derived from the tensor's value by `pack`, which runs once per (tensor, storage, `how`) and not at
    /// all while support is only being tested.
    pub fn packed(
        &mut self,
        t: TensorId,
        elem: Elem,
        how: &'static str,
        pack: impl FnOnce() -> Lowered<Vec<u8>>,
    ) -> Lowered<SlotId> {
        let key = (self.scene.subgraph, t, elem, how);
        if let Some(&s) = self.constants.get(&key) {
            return Ok(s);
        }
        let s = self.weight(pack)?;
        // What a body is given may be something else the next time.
        if !(self.scene.nested && self.scene.graph.inputs.contains(&t)) {
            self.constants.insert(key, s);
        }
        Ok(s)
    }

    /// A constant that belongs to this operator alone.
    pub fn weight(&mut self, pack: impl FnOnce() -> Lowered<Vec<u8>>) -> Lowered<SlotId> {
        let mut bytes = if self.dry { Vec::new() } else { pack()? };
        bytes.resize(bytes.len().next_multiple_of(16).max(16), 0);
        if bytes.len() as u64 > self.scene.caps.max_binding {
            return no(format!("a constant of {} bytes, more than the adapter can bind", bytes.len()));
        }
        let slot = self.slot(bytes.len() as u64);
        if let Some(s) = self.program.slots.get_mut(slot) {
            s.place = Place::Weight(self.program.weights.len());
        }
        self.program.weights.push(bytes.into());
        Ok(slot)
    }

    /// Emits a dispatch: reads bind from 1 up, then writes; `extra` are the epilogue's operands.
    pub fn dispatch(
        &mut self,
        key: KernelKey,
        reads: &[SlotId],
        writes: &[SlotId],
        extra: &[SlotId],
        params: Params,
        groups: [u32; 3],
    ) -> Lowered {
        let count = reads.len() + writes.len() + extra.len();
        if count as u32 > self.scene.caps.max_storage_buffers {
            return no(format!("{count} storage bindings, more than the adapter has"));
        }
        let mut bindings = Vec::with_capacity(count);
        let mut number = 1;
        for (list, access) in [(reads, Access::Read), (writes, Access::Write)] {
            for &slot in list {
                bindings.push(Binding { binding: number, slot, access });
                number += 1;
            }
        }
        for (i, &slot) in extra.iter().enumerate() {
            bindings.push(Binding {
                binding: litegpu_shaders::EPILOGUE_BINDING + i as u32,
                slot,
                access: Access::Read,
            });
        }
        for b in &bindings {
            let bytes = self.program.slots.get(b.slot).map_or(0, |s| s.bytes);
            if bytes > self.scene.caps.max_binding {
                return no(format!("a tensor of {bytes} bytes, more than the adapter can bind"));
            }
        }
        let kernel = match self.kernels.get(&key) {
            Some(&k) => k,
            None => {
                let k = self.program.kernels.len();
                self.program.kernels.push(key.clone());
                self.kernels.insert(key, k);
                k
            }
        };
        let (params, limits) = params.finish();
        self.program.dispatches.push(Dispatch {
            node: self.id,
            members: Vec::new(),
            stretch: self.stretch,
            kernel,
            bindings,
            params,
            // Operands that lowerings themselves give an epilogue are read as the output is, or are one element.
            sizes: vec![[0; 4]; extra.len()],
            limits,
            appends: None,
            groups,
            others: Vec::new(),
        });
        Ok(())
    }

    /// Names other ways to do the last dispatch.
    pub(crate) fn or(&mut self, forms: impl IntoIterator<Item = Form>) {
        if let Some(d) = self.program.dispatches.last_mut() {
            d.others.extend(forms);
        }
    }

    /// Says that the last dispatch only appends zeros to its operand's rows.
    pub(crate) fn appends(&mut self, rows: usize, of: usize) {
        if let (Some(d), Ok(rows), Ok(of)) =
            (self.program.dispatches.last_mut(), u32::try_from(rows), u32::try_from(of))
        {
            d.appends = Some((rows, of));
        }
    }

    /// Finishes the part: ports for `outputs`, and memory.
    pub(crate) fn finish(mut self, outputs: &[TensorId], options: &PlanOptions) -> Lowered<Program> {
        for &t in &self.inputs {
            let port = port(self.scene, t, self.tensors.get(&t).copied(), self.scene.elem(t)?)?;
            self.program.inputs.push(port);
        }
        for &t in outputs.iter().chain(&self.states) {
            let elem = match self.scene.tensor(t)?.dtype {
                DType::I64 => Elem::I32,
                _ => self.scene.elem(t)?,
            };
            let port = port(self.scene, t, self.tensors.get(&t).copied(), elem)?;
            self.program.outputs.push(port);
        }
        for h in std::mem::take(&mut self.held) {
            let port = |slot| Port {
                tensor: h.handle,
                variable: Some(h.variable.clone()),
                state: true,
                dtype: h.dtype,
                shape: h.shape.clone(),
                elem: h.elem,
                slot,
            };
            self.program.inputs.extend(h.read.map(port));
            self.program.outputs.extend(h.written.then(|| port(h.slot)));
        }
        if options.fuse {
            let flows = self.program.flows.iter();
            let kept = flows.flat_map(|f| f.moves().flat_map(|m| [m.from, m.to]).chain(f.flag()));
            let pinned: Vec<SlotId> = self.program.outputs.iter().map(|p| p.slot).chain(kept).collect();
            let caps = self.scene.caps;
            let slow = caps.class == AdapterClass::Software;
            crate::fuse::fuse(&mut self.program, &pinned, caps.max_storage_buffers, slow);
            crate::series::gather(&mut self.program, &pinned, caps, options.force_series);
        }
        let caps = self.scene.caps;
        plan_memory(&mut self.program, u64::from(caps.storage_align).max(16), caps.max_buffer);
        Ok(self.program)
    }
}

fn port(scene: &Scene<'_>, t: TensorId, slot: Option<SlotId>, elem: Elem) -> Lowered<Port> {
    let Some(slot) = slot else { return no(format!("tensor {t} is not computed here")) };
    let Some(shape) = scene.shapes.get(t).cloned() else { return no(format!("the shape of tensor {t} is not known")) };
    let tensor = scene.tensor(t)?;
    let state = tensor.is_variable && !scene.graph.inputs.contains(&t);
    Ok(Port { tensor: t, variable: None, state, dtype: tensor.dtype, shape, elem, slot })
}
