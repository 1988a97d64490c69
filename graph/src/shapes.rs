//! Shapes (and small values) of every tensor of a subgraph, for given input shapes.
//!
//! Models with a dynamic batch compute shapes as tensors: SHAPE, STRIDED_SLICE, PACK, then RESHAPE. Once the input
//! shapes are fixed those values are constants; propagation follows them, so that such a graph is as static as any.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::*;
use crate::op::{Family, Op};
use crate::ops::{self, Fact};
use bytes::Bytes;
use smallvec::SmallVec;

/// Elements up to which a computed value is followed: enough for shapes, axes and index lists.
const MAX_VALUE: usize = 4096;

/// What propagation found.
#[derive(Debug, Clone, Default)]
pub struct Shapes {
    /// By tensor; `None` where only a run can tell.
    pub shapes: Vec<Option<Shape>>,
    /// By tensor: the value of a computed tensor that depends on constants and shapes alone.
    pub values: Vec<Option<Bytes>>,
}

impl Shapes {
    /// The tensor's shape, if known.
    pub fn get(&self, t: TensorId) -> Option<&Shape> {
        self.shapes.get(t).and_then(Option::as_ref)
    }
    /// Whether a node's outputs are all known values, so that nothing need run.
    pub fn is_known(&self, node: &Node) -> bool {
        !node.outputs.is_empty() && node.outputs.iter().all(|&t| self.values.get(t).is_some_and(Option::is_some))
    }
}

/// The graph inputs of whole numbers whose values shapes hang on that are not known yet.
pub fn shape_inputs(graph: &Graph, shapes: &Shapes) -> Vec<TensorId> {
    let open = |t: &TensorId| {
        let number = |t: &Tensor| matches!(t.dtype, DType::I32 | DType::I64 | DType::Bool) && !t.is_constant();
        shapes.values.get(*t).is_some_and(Option::is_none) && graph.tensors.get(*t).is_some_and(number)
    };
    let small = |t: &TensorId| shapes.get(*t).is_some_and(|s| elements(s) <= MAX_VALUE);
    let mut wanted = vec![false; graph.tensors.len()];
    for node in graph.nodes.iter().rev() {
        let known = |t: &TensorId| shapes.get(*t).is_some();
        // Where operands have shapes and results have none, an operand's value is what is missing.
        let first = node.inputs.iter().flatten().all(known) && !node.outputs.iter().all(known);
        if !first && !node.outputs.iter().any(|&t| wanted.get(t) == Some(&true)) {
            continue;
        }
        for t in node.inputs.iter().flatten().filter(|t| open(t) && small(t)) {
            if let Some(slot) = wanted.get_mut(*t) {
                *slot = true;
            }
        }
    }
    graph.inputs.iter().copied().filter(|&t| wanted.get(t) == Some(&true)).collect()
}

/// Evaluates a node whose operands are all known: (node, operand facts with values, output shapes) to the bytes of
/// each output, or `None` when it cannot.
pub type Eval<'e> = dyn FnMut(&Node, &[Option<Fact<'_>>], &[Shape]) -> Option<Vec<Bytes>> + 'e;

/// Propagates shapes through `graph` in execution order. `inputs` overrides declared shapes of graph inputs.
///
/// # Errors
/// `Invalid` when an override does not fit the declared rank or fixed dimensions, or when an operator's operands do
/// not fit together (naming it). A missing shape rule is no error: its outputs are unknown.
pub fn propagate(graph: &Graph, inputs: &[(TensorId, Shape)], eval: Option<&mut Eval<'_>>) -> Result<Shapes> {
    propagate_with(graph, inputs, &[], eval)
}

/// [`propagate`] where the values of some graph inputs are known: what they say of shapes then holds for these values
/// only.
///
/// # Errors
/// As [`propagate`].
pub fn propagate_with(
    graph: &Graph,
    inputs: &[(TensorId, Shape)],
    values: &[(TensorId, Bytes)],
    eval: Option<&mut Eval<'_>>,
) -> Result<Shapes> {
    propagate_trusting(None, graph, inputs, values, eval)
}

/// [`propagate_with`] for a graph of `model`: what CALL and composites make of their operands is followed into the
/// subgraphs that they stand for.
///
/// # Errors
/// As [`propagate`].
pub fn propagate_in(
    model: &Model,
    graph: &Graph,
    inputs: &[(TensorId, Shape)],
    values: &[(TensorId, Bytes)],
    eval: Option<&mut Eval<'_>>,
) -> Result<Shapes> {
    propagate_trusting(Some(model), graph, inputs, values, eval)
}

/// What a variable holds has the shape that the file declares for what is read from it, unless other shapes contradict:
/// then it is not known.
fn propagate_trusting(
    model: Option<&Model>,
    graph: &Graph,
    inputs: &[(TensorId, Shape)],
    values: &[(TensorId, Bytes)],
    mut eval: Option<&mut Eval<'_>>,
) -> Result<Shapes> {
    let bodies = |trust| model.map(|model| Bodies { model, depth: 0, left: MAX_WORK, trust });
    let reads = graph.nodes.iter().any(|n| n.op == Op::ReadVariable);
    let found = walk(bodies(reads).as_mut(), reads, graph, inputs, values, eval.as_deref_mut());
    match reads {
        true => found.or_else(|_| walk(bodies(false).as_mut(), false, graph, inputs, values, eval)),
        false => found,
    }
}

/// The subgraph that an operator stands for: that of CALL, and the decomposition of a composite.
pub fn stands_for(op: &Op) -> Option<usize> {
    match op {
        Op::Call(o) => Some(o.subgraph as usize),
        Op::StablehloComposite(o) => usize::try_from(o.decomposition_subgraph_index).ok(),
        _ => None,
    }
}

/// The subgraph that a node of `graph` stands for, and its shapes for the node's operands; `None` where there is none, or
/// where these do not fit or are not known.
pub fn body(model: &Model, graph: &Graph, node: &Node, shapes: &Shapes) -> Option<(usize, Shapes)> {
    Bodies { model, depth: 0, left: MAX_WORK, trust: true }.of(graph, node, shapes)
}

/// The condition and the body of a loop.
pub fn loop_of(op: &Op) -> Option<(usize, usize)> {
    let (cond, body) = match op {
        Op::While(o) => (o.cond_subgraph_index, o.body_subgraph_index),
        Op::StablehloWhile(o) => (o.cond_subgraph_index, o.body_subgraph_index),
        _ => return None,
    };
    Some((usize::try_from(cond).ok()?, usize::try_from(body).ok()?))
}

/// The subgraphs of which an operator runs one, chosen by its first operand: the branch for true comes first.
pub fn arms_of(op: &Op) -> Option<Vec<usize>> {
    let of = |list: &[i32]| list.iter().map(|&s| usize::try_from(s).ok()).collect();
    match op {
        Op::If(o) => of(&[o.then_subgraph_index, o.else_subgraph_index]),
        Op::StablehloCase(o) => of(o.branch_subgraph_indices.as_deref()?),
        _ => None,
    }
}

/// Whether a pass of a loop hands on its i-th value as it came.
pub fn hands_on(body: &Graph, i: usize) -> bool {
    body.inputs.get(i).is_some_and(|t| body.outputs.get(i) == Some(t))
}

/// The condition and the body of a loop with their shapes, if these are known and stay the same from pass to pass.
pub fn looped(model: &Model, graph: &Graph, node: &Node, shapes: &Shapes) -> Option<[(usize, Shapes); 2]> {
    Bodies { model, depth: 0, left: MAX_WORK, trust: true }.looped(graph, node, shapes)
}

/// The branches of an operator with their shapes, if these are known.
pub fn arms(model: &Model, graph: &Graph, node: &Node, shapes: &Shapes) -> Option<Vec<(usize, Shapes)>> {
    Bodies { model, depth: 0, left: MAX_WORK, trust: true }.arms(graph, node, shapes)
}

/// Subgraphs within subgraphs that are followed.
const MAX_DEPTH: usize = 4;
/// Operators and tensors of bodies that are followed in all: a file may have few of them that call each other often.
const MAX_WORK: usize = 1 << 20;

/// What following operators into their subgraphs takes.
struct Bodies<'m> {
    model: &'m Model,
    depth: usize,
    left: usize,
    /// Variables have the shapes that are declared.
    trust: bool,
}

impl Bodies<'_> {
    fn of(&mut self, graph: &Graph, node: &Node, shapes: &Shapes) -> Option<(usize, Shapes)> {
        let number = stands_for(&node.op)?;
        if self.model.subgraphs.get(number)?.outputs.len() < node.outputs.len() {
            return None;
        }
        Some((number, self.enter(number, graph, &node.inputs, shapes, |_| true)?))
    }

    fn looped(&mut self, graph: &Graph, node: &Node, shapes: &Shapes) -> Option<[(usize, Shapes); 2]> {
        let (cond, number) = loop_of(&node.op)?;
        let body = self.model.subgraphs.get(number)?;
        if body.outputs.len() != node.inputs.len() || node.outputs.len() > body.outputs.len() {
            return None;
        }
        let stays = |i| hands_on(body, i);
        let asks = self.enter(cond, graph, &node.inputs, shapes, stays)?;
        let does = self.enter(number, graph, &node.inputs, shapes, stays)?;
        let same = |(&made, given): (&TensorId, &Option<TensorId>)| {
            let given = given.and_then(|t| shapes.get(t));
            given.is_some() && does.get(made) == given
        };
        let settled = body.outputs.iter().zip(&node.inputs).all(same);
        settled.then_some([(cond, asks), (number, does)])
    }

    fn arms(&mut self, graph: &Graph, node: &Node, shapes: &Shapes) -> Option<Vec<(usize, Shapes)>> {
        let operands = node.inputs.get(1..)?;
        let mut out = Vec::new();
        for number in arms_of(&node.op)? {
            if self.model.subgraphs.get(number)?.outputs.len() < node.outputs.len() {
                return None;
            }
            out.push((number, self.enter(number, graph, operands, shapes, |_| true)?));
        }
        Some(out).filter(|o| !o.is_empty())
    }

    /// The shapes of what a loop or a choice yields.
    fn flow(&mut self, graph: &Graph, node: &Node, shapes: &Shapes) -> Option<Vec<Option<Shape>>> {
        if loop_of(&node.op).is_some() {
            self.looped(graph, node, shapes)?;
            return Some(node.inputs.iter().map(|t| shapes.get((*t)?).cloned()).collect());
        }
        let arms = self.arms(graph, node, shapes)?;
        let of = |o: usize| {
            let mut all = arms.iter().map(|(number, shapes)| {
                let t = self.model.subgraphs.get(*number)?.outputs.get(o)?;
                shapes.get(*t)
            });
            let first = all.next()??;
            all.all(|s| s == Some(first)).then(|| first.clone())
        };
        Some((0..node.outputs.len()).map(of).collect())
    }

    /// The shapes of a subgraph for operands; those for which `known` says so have the same value whenever it runs.
    fn enter(
        &mut self,
        number: usize,
        graph: &Graph,
        operands: &[Option<TensorId>],
        shapes: &Shapes,
        known: impl Fn(usize) -> bool,
    ) -> Option<Shapes> {
        let body = self.model.subgraphs.get(number)?;
        if self.depth >= MAX_DEPTH || body.inputs.len() != operands.len() {
            return None;
        }
        self.left = self.left.checked_sub(body.nodes.len().saturating_add(body.tensors.len()))?;
        let (mut inputs, mut values) = (Vec::new(), Vec::new());
        for (i, (&to, from)) in body.inputs.iter().zip(operands).enumerate() {
            let (from, tensor) = ((*from)?, graph.tensors.get((*from)?)?);
            if body.tensors.get(to)?.dtype != tensor.dtype {
                return None;
            }
            inputs.push((to, shapes.get(from)?.clone()));
            let own = tensor.data.as_ref().filter(|_| !tensor.is_variable && tensor.sparsity.is_none());
            if let Some(v) = shapes.values.get(from).and_then(Option::as_ref).or(own).filter(|_| known(i)) {
                values.push((to, v.clone()));
            }
        }
        self.depth = self.depth.saturating_add(1);
        let trust = self.trust;
        let done = walk(Some(self), trust, body, &inputs, &values, None);
        self.depth = self.depth.saturating_sub(1);
        done.ok()
    }
}

fn walk(
    mut bodies: Option<&mut Bodies<'_>>,
    trust: bool,
    graph: &Graph,
    inputs: &[(TensorId, Shape)],
    values: &[(TensorId, Bytes)],
    mut eval: Option<&mut Eval<'_>>,
) -> Result<Shapes> {
    let n = graph.tensors.len();
    let mut out = Shapes { shapes: vec![None; n], values: vec![None; n] };
    for (slot, t) in out.shapes.iter_mut().zip(&graph.tensors) {
        if t.is_constant() || t.is_variable || t.elements() == 0 {
            *slot = Some(t.shape.clone());
        }
    }
    for &t in &graph.inputs {
        let tensor = graph.tensors.get(t).ok_or_else(|| Error::invalid(format!("no tensor {t}")))?;
        let given = inputs.iter().find(|(id, _)| *id == t).map(|(_, s)| s);
        if let Some(s) = given {
            check_resize(tensor, s)?;
        }
        if let Some(slot) = out.shapes.get_mut(t) {
            *slot = Some(given.unwrap_or(&tensor.shape).clone());
        }
    }
    for (t, value) in values {
        let fits = out.get(*t).is_some_and(|s| {
            let whole = graph.tensors.get(*t).and_then(|t| t.dtype.byte_len(elements(s)));
            elements(s) <= MAX_VALUE && whole == Some(value.len())
        });
        if let (true, true, Some(slot)) = (fits, graph.inputs.contains(t), out.values.get_mut(*t)) {
            *slot = Some(value.clone());
        }
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Some(bodies) = bodies.as_deref_mut()
            && let Some((number, inner)) = bodies.of(graph, node, &out)
        {
            let results = bodies.model.subgraphs.get(number).map_or(&[][..], |g| &g.outputs);
            for (&t, &r) in node.outputs.iter().zip(results) {
                if let Some(slot) = out.shapes.get_mut(t) {
                    *slot = inner.get(r).cloned();
                }
            }
            continue;
        }
        if let Some(bodies) = bodies.as_deref_mut()
            && let Some(results) = bodies.flow(graph, node, &out)
        {
            for (&t, shape) in node.outputs.iter().zip(results) {
                if let Some(slot) = out.shapes.get_mut(t) {
                    *slot = shape;
                }
            }
            continue;
        }
        let done = step(graph, node, &mut out, &mut eval).map_err(|e| e.at(format!("operator {i}")));
        match done {
            Err(e) if e.kind == crate::ErrorKind::Unsupported => {}
            other => other?,
        }
        if let (true, Op::ReadVariable, &[t]) = (trust, &node.op, node.outputs.as_slice())
            && let Some(tensor) = graph.tensors.get(t)
            && (tensor.has_rank || !tensor.shape.is_empty())
            && tensor.signature.as_ref().is_none_or(|s| s.iter().all(|&d| d >= 0))
            && let Some(slot) = out.shapes.get_mut(t)
        {
            *slot = Some(tensor.shape.clone());
        }
    }
    Ok(out)
}

/// Whether an input may take `shape`: the rank is fixed, and so are dimensions that the signature does not mark -1.
/// Without a signature every dimension may change, as in the reference's resize.
pub fn check_resize(tensor: &Tensor, shape: &[usize]) -> Result<()> {
    let fixed = |want: &[i32]| shape.iter().zip(want).all(|(&d, &w)| w < 0 || d == w as usize);
    match &tensor.signature {
        Some(s) if s.len() != shape.len() || !fixed(s) => {
            Err(Error::invalid(format!("input '{}' cannot take shape {shape:?}: it is declared {s:?}", tensor.name)))
        }
        None if tensor.shape.len() != shape.len() && (tensor.has_rank || !tensor.shape.is_empty()) => {
            Err(Error::invalid(format!(
                "input '{}' cannot take shape {shape:?}: it has rank {}",
                tensor.name,
                tensor.shape.len()
            )))
        }
        _ => Ok(()),
    }
}

fn step(graph: &Graph, node: &Node, out: &mut Shapes, eval: &mut Option<&mut Eval<'_>>) -> Result<()> {
    let declared: SmallVec<[&Tensor; 2]> = node.outputs.iter().filter_map(|&t| graph.tensors.get(t)).collect();
    let mut facts: SmallVec<[Option<Fact<'_>>; 8]> = SmallVec::new();
    let mut all_known = true;
    for t in &node.inputs {
        let Some(t) = *t else {
            facts.push(None);
            continue;
        };
        let tensor = graph.tensors.get(t).ok_or_else(|| Error::invalid(format!("no tensor {t}")))?;
        let Some(shape) = out.get(t) else { return Ok(()) };
        let folded = out.values.get(t).and_then(Option::as_ref);
        let value = folded.map(|b| b.as_ref()).or(tensor.data.as_deref().filter(|_| !tensor.is_variable));
        all_known &= value.is_some();
        facts.push(Some(Fact { dtype: tensor.dtype, shape, value }));
    }
    let inferred = ops::infer(&ops::Site { op: &node.op, inputs: &facts, outputs: &declared })?;
    let mut values: Option<Vec<Bytes>> = shape_of(node, &facts, &declared);
    let stateless = !matches!(node.op.family(), Family::Control | Family::Recurrent | Family::Custom | Family::Text)
        && !matches!(node.op, Op::RandomUniform(_) | Op::RandomStandardNormal(_) | Op::Multinomial(_));
    let known: Option<Vec<Shape>> = inferred.iter().take(declared.len()).cloned().collect();
    if let (None, true, true, Some(shapes), Some(eval)) = (&values, all_known, stateless, &known, eval.as_mut())
        && shapes.iter().all(|s| elements(s) <= MAX_VALUE)
    {
        values = eval(node, &facts, shapes);
    }
    drop(facts);
    for (o, (&t, shape)) in node.outputs.iter().zip(inferred).enumerate() {
        if let Some(slot) = out.shapes.get_mut(t) {
            *slot = shape;
        }
        if let (Some(slot), Some(v)) = (out.values.get_mut(t), values.as_ref().and_then(|v| v.get(o))) {
            *slot = Some(v.clone());
        }
    }
    Ok(())
}

/// The value of SHAPE and RANK, which needs no kernel.
fn shape_of(node: &Node, facts: &[Option<Fact<'_>>], declared: &[&Tensor]) -> Option<Vec<Bytes>> {
    let shape = facts.first().copied().flatten()?.shape;
    let dims: SmallVec<[usize; 6]> = match node.op {
        Op::Shape(_) => SmallVec::from_slice(shape),
        Op::Rank => SmallVec::from_slice(&[shape.len()]),
        _ => return None,
    };
    let wide = declared.first()?.dtype == DType::I64;
    let mut bytes = Vec::new();
    for d in dims {
        if wide {
            bytes.extend_from_slice(&(d as i64).to_le_bytes());
        } else {
            bytes.extend_from_slice(&i32::try_from(d).ok()?.to_le_bytes());
        }
    }
    Some(vec![bytes.into()])
}
