//! Lowering: what an operator's `lower` sees and what it emits.
//!
//! `lower` is the support test too: the planner calls it for every operator, and what it answers instead of dispatches
//! is the reason that is shown. There is no second list of supported operators.

use crate::caps::{AdapterClass, Caps, Precision};
use crate::convert;
use crate::ops;
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
    /// By operator: the subgraph that it stands for.
    pub bodies: HashMap<NodeId, Scene<'a>>,
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
        Scene::build(model, subgraph, Cow::Borrowed(shapes), caps, precision, 0)
    }

    fn build(
        model: &'a Model,
        subgraph: usize,
        shapes: Cow<'a, Shapes>,
        caps: &'a Caps,
        precision: Precision,
        depth: usize,
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
            bodies: HashMap::new(),
            nested,
        };
        for (id, node) in graph.nodes.iter().enumerate() {
            if depth < MAX_BODIES
                && let Some((number, mut inner)) = shapes::body(model, graph, node, &scene.shapes)
            {
                scene.give(node, number, &mut inner);
                let body = Scene::build(model, number, Cow::Owned(inner), caps, precision, depth + 1)?;
                scene.bodies.insert(id, body);
            }
        }
        Ok(scene)
    }

    /// Makes constant operands of a node values of its body's inputs.
    fn give(&self, node: &Node, body: usize, shapes: &mut Shapes) {
        let Some(graph) = self.model.subgraphs.get(body) else { return };
        for (&to, from) in graph.inputs.iter().zip(&node.inputs) {
            if let (Some(from), Some(tensor)) = (from, graph.tensors.get(to))
                && let Ok(Some(c)) = self.constant(*from)
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
            DType::I16 if tensor.quant.is_some() => return no("16x8 runs on the CPU by design"),
            d => return no(format!("{d} tensors stay on the CPU")),
        })
    }
}

/// Bodies within bodies that are lowered.
const MAX_BODIES: usize = 4;

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
        })
    }

    /// Lowers one node, or takes back what it had emitted.
    pub(crate) fn node(&mut self, id: NodeId) -> Lowered {
        let node = self.scene.graph.nodes.get(id).ok_or_else(|| Unsupported::new(format!("no operator {id}")))?;
        self.node = node;
        (self.id, self.local) = (id, id);
        self.check_results()?;
        let before = self.program.dispatches.len();
        let done = ops::lower(self);
        if done.is_err() {
            self.program.dispatches.truncate(before);
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
        let (scene, node, local) = (self.scene, self.node, self.local);
        let tensors = std::mem::replace(&mut self.tensors, given);
        // Tables of 8-bit operators are made for operators of the graph itself.
        let eval = self.eval.take();
        let (inputs, states) = (self.inputs.len(), self.states.len());
        self.scene = body;
        let done = self.nodes_of(body, results.len());
        (self.scene, self.node, self.local, self.tensors, self.eval) = (scene, node, local, tensors, eval);
        let outside = self.inputs.len() > inputs || self.states.len() > states;
        self.inputs.truncate(inputs);
        self.states.truncate(states);
        let made = done?;
        if outside {
            return no("a subgraph that reads what it does not compute");
        }
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

    /// Lowers all nodes of a body; its first results.
    fn nodes_of(&mut self, body: &'a Scene<'a>, results: usize) -> Lowered<Vec<Operand<'a>>> {
        for (i, node) in body.graph.nodes.iter().enumerate() {
            let folded = !node.outputs.is_empty() && node.outputs.iter().all(|t| body.folded.contains_key(t));
            if folded || body.shapes.is_known(node) {
                continue;
            }
            (self.node, self.local) = (node, i);
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
        self.program.slots.push(Slot { bytes, place: Place::Unused });
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
    pub(crate) fn finish(mut self, outputs: &[TensorId], fuse: bool) -> Lowered<Program> {
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
        if fuse {
            let pinned: Vec<SlotId> = self.program.outputs.iter().map(|p| p.slot).collect();
            let caps = self.scene.caps;
            let slow = caps.class == AdapterClass::Software;
            crate::fuse::fuse(&mut self.program, &pinned, caps.max_storage_buffers, slow);
        }
        let caps = self.scene.caps;
        plan_memory(&mut self.program, u64::from(caps.storage_align).max(16), caps.max_buffer);
        Ok(self.program)
    }
}

fn port(scene: &Scene<'_>, t: TensorId, slot: Option<SlotId>, elem: Elem) -> Lowered<Port> {
    let Some(slot) = slot else { return no(format!("tensor {t} is not computed here")) };
    let Some(shape) = scene.shapes.get(t).cloned() else { return no(format!("the shape of tensor {t} is not known")) };
    Ok(Port { tensor: t, dtype: scene.tensor(t)?.dtype, shape, elem, slot })
}
