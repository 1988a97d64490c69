//! The executor: runs subgraphs node by node, in the file's order.
//!
//! Shapes are inferred when a node first runs and again only when an operand's shape has changed (or when the output
//! shape hangs on values). Storage is handed from a tensor whose last reader has run to the next tensor that needs
//! room, best fit first; the same order in every run makes the assignment stable, so that a steady-state run of a
//! static graph allocates nothing.

use crate::kernel::{Call, Kernel, Site};
use crate::ops;
use crate::pool::Pool;
use crate::resources::Resources;
use crate::value::{Constant, Storage, Value, View};
use litegpu_graph::ops::Fact;
use litegpu_graph::{
    DType, Error, Family, Graph, Model, NodeId, Op, Result, Shape, Tensor, TensorId, elements, validate,
};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;
#[cfg(not(target_family = "wasm"))]
use std::time::Instant;

/// Iterations after which a WHILE is taken to be endless.
const MAX_ITERATIONS: u64 = 10_000_000;

/// How the executor works.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads for kernels; 0 means one per core.
    pub threads: usize,
    /// Keep every tensor's value after the run (for comparisons and calibration) instead of sharing storage.
    pub keep_all: bool,
    /// Record the time of each node.
    pub profile: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { threads: 1, keep_all: false, profile: false }
    }
}

/// Runs a model on the CPU. Holds all tensor values, so that other devices can run some of the nodes.
#[derive(Debug)]
pub struct Executor {
    model: Arc<Model>,
    /// One per subgraph; `None` while it runs, so that a recursive call is found.
    frames: Vec<Option<Frame>>,
    pool: Pool,
    options: Options,
    /// Variables and hash tables.
    pub resources: Resources,
}

/// The values and kernels of one subgraph.
struct Frame {
    slots: Vec<Slot>,
    nodes: Vec<NodeState>,
    /// For each node, the tensors whose last reader it is.
    release: Vec<Vec<TensorId>>,
    free: Vec<Storage>,
    times: Vec<Duration>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame {{ {} tensors, {} nodes }}", self.slots.len(), self.nodes.len())
    }
}

enum Slot {
    Constant(Constant),
    Value { value: Value, ready: bool },
}

#[derive(Default)]
struct NodeState {
    kernel: Option<Kernel>,
    in_shapes: SmallVec<[Shape; 4]>,
    out_shapes: SmallVec<[Option<Shape>; 2]>,
    inferred: bool,
    by_value: bool,
}

impl Executor {
    /// An executor for `model`. Kernels are prepared (weights packed) when a node first runs, or by
    /// [`Executor::prepare`].
    ///
    /// # Errors
    /// `Invalid` when memory for misaligned constants cannot be had.
    pub fn new(model: Arc<Model>, options: Options) -> Result<Executor> {
        let frames = model.subgraphs.iter().map(|g| Frame::new(g, &options).map(Some)).collect::<Result<_>>()?;
        let pool = Pool::new(options.threads);
        Ok(Executor { model, frames, pool, options, resources: Resources::default() })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The thread pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Prepares the kernels of some nodes now.
    ///
    /// # Errors
    /// The first node's error that has no kernel, with its number and name.
    pub fn prepare(&mut self, subgraph: usize, nodes: impl IntoIterator<Item = NodeId>) -> Result<()> {
        let model = self.model.clone();
        let graph = model.subgraphs.get(subgraph).ok_or_else(|| no_subgraph(subgraph))?;
        for n in nodes {
            let frame = self.frame(subgraph)?;
            let Some(node) = graph.nodes.get(n) else { return Err(Error::invalid(format!("no operator {n}"))) };
            if is_control(&node.op) {
                continue;
            }
            if let Some(state) = frame.nodes.get_mut(n)
                && state.kernel.is_none()
            {
                state.kernel =
                    Some(ops::prepare(&Site { model: &model, graph, node }).map_err(|e| place(graph, n, e))?);
            }
        }
        Ok(())
    }

    /// Never reuse the storage of these tensors: another device reads them.
    ///
    /// # Errors
    /// `Invalid` when there is no such subgraph.
    pub fn keep(&mut self, subgraph: usize, tensors: &[TensorId]) -> Result<()> {
        for list in &mut self.frame(subgraph)?.release {
            list.retain(|t| !tensors.contains(t));
        }
        Ok(())
    }

    /// Makes room for a tensor and returns its value, to write; the tensor counts as written.
    ///
    /// # Errors
    /// `Invalid` for a constant, a tensor that does not exist, or a size that cannot be had.
    pub fn write(&mut self, subgraph: usize, tensor: TensorId, shape: &[usize]) -> Result<&mut Value> {
        match self.frame(subgraph)?.slots.get_mut(tensor) {
            Some(Slot::Value { value, ready }) => {
                value.reshape(shape)?;
                *ready = true;
                Ok(value)
            }
            Some(Slot::Constant(_)) => Err(Error::invalid(format!("tensor {tensor} is a constant"))),
            None => Err(Error::invalid(format!("no tensor {tensor}"))),
        }
    }

    /// Writes a tensor (a graph input, usually).
    ///
    /// # Errors
    /// `Invalid` when type or size do not fit.
    pub fn set(&mut self, subgraph: usize, tensor: TensorId, from: View<'_>) -> Result<()> {
        let value = self.write(subgraph, tensor, from.shape)?;
        if value.dtype != from.dtype {
            return Err(Error::invalid(format!("type {} given, {} expected", from.dtype, value.dtype)));
        }
        if value.dtype.bits() == 0 {
            return value.set_raw(from.bytes);
        }
        if value.bytes().len() != from.bytes.len() {
            return Err(Error::invalid(format!(
                "{} bytes given, {} of shape {:?} needs {}",
                from.bytes.len(),
                value.dtype,
                from.shape,
                value.bytes().len()
            )));
        }
        value.bytes_mut().copy_from_slice(from.bytes);
        Ok(())
    }

    /// A tensor's current value: a constant, an input, an output, or any tensor with `keep_all`.
    ///
    /// # Errors
    /// `Invalid` when nothing has written it, or its storage has been reused.
    pub fn get(&self, subgraph: usize, tensor: TensorId) -> Result<View<'_>> {
        let graph = self.model.subgraphs.get(subgraph).ok_or_else(|| no_subgraph(subgraph))?;
        let frame = self.frames.get(subgraph).and_then(Option::as_ref).ok_or_else(|| no_subgraph(subgraph))?;
        view(graph, &frame.slots, tensor)
    }

    /// Runs a whole subgraph.
    ///
    /// # Errors
    /// The failing node's, with its number and name.
    pub fn run(&mut self, subgraph: usize) -> Result<()> {
        let n = self.model.subgraphs.get(subgraph).ok_or_else(|| no_subgraph(subgraph))?.nodes.len();
        self.run_nodes(subgraph, 0..n)
    }

    /// Runs some nodes of a subgraph, in the given order.
    ///
    /// # Errors
    /// The failing node's, with its number and name.
    pub fn run_nodes(&mut self, subgraph: usize, nodes: impl IntoIterator<Item = NodeId>) -> Result<()> {
        let slot = self.frames.get_mut(subgraph).ok_or_else(|| no_subgraph(subgraph))?;
        let Some(mut frame) = slot.take() else {
            return Err(Error::unsupported(format!("subgraph {subgraph} calls itself")));
        };
        let model = self.model.clone();
        let mut result = Ok(());
        if let Some(graph) = model.subgraphs.get(subgraph) {
            for n in nodes {
                result = self.run_node(&model, graph, &mut frame, n).map_err(|e| place(graph, n, e));
                if result.is_err() {
                    break;
                }
            }
        }
        if let Some(slot) = self.frames.get_mut(subgraph) {
            *slot = Some(frame);
        }
        result
    }

    /// Time spent in each node of a subgraph in its last run; empty unless `profile` is set.
    pub fn times(&self, subgraph: usize) -> &[Duration] {
        self.frames.get(subgraph).and_then(Option::as_ref).map_or(&[], |f| &f.times)
    }

    /// Bytes of storage that tensors hold, used or free.
    pub fn bytes(&self) -> usize {
        let frames = self.frames.iter().flatten();
        frames
            .map(|f| {
                let used = f.slots.iter().map(|s| if let Slot::Value { value, .. } = s { value.capacity() } else { 0 });
                used.sum::<usize>() + f.free.iter().map(Storage::capacity).sum::<usize>()
            })
            .sum()
    }

    /// Sets variable tensors to zero and forgets resources: the next run starts as the first did.
    pub fn reset(&mut self) {
        self.resources.reset();
        for (graph, frame) in self.model.clone().subgraphs.iter().zip(self.frames.iter_mut().flatten()) {
            for (t, slot) in graph.tensors.iter().zip(&mut frame.slots) {
                if let (true, Slot::Value { value, .. }) = (t.is_variable, slot) {
                    zero(t, value);
                }
            }
        }
    }

    fn frame(&mut self, subgraph: usize) -> Result<&mut Frame> {
        self.frames.get_mut(subgraph).and_then(Option::as_mut).ok_or_else(|| no_subgraph(subgraph))
    }

    fn run_node(&mut self, model: &Arc<Model>, graph: &Graph, frame: &mut Frame, n: NodeId) -> Result<()> {
        #[cfg(not(target_family = "wasm"))]
        let start = self.options.profile.then(Instant::now);
        let node = graph.nodes.get(n).ok_or_else(|| Error::invalid(format!("no operator {n}")))?;
        if is_control(&node.op) {
            self.control(graph, frame, n)?;
        } else {
            let mut state = frame.nodes.get_mut(n).map(std::mem::take).unwrap_or_default();
            let done = self.kernel(model, graph, frame, n, &mut state);
            if let Some(slot) = frame.nodes.get_mut(n) {
                *slot = state;
            }
            done?;
        }
        if let Some(list) = frame.release.get(n) {
            for &t in list {
                if let Some(Slot::Value { value, ready }) = frame.slots.get_mut(t) {
                    *ready = false;
                    let storage = value.take_storage();
                    if storage.capacity() > 0 {
                        frame.free.push(storage);
                    }
                }
            }
        }
        #[cfg(not(target_family = "wasm"))]
        if let (Some(start), Some(slot)) = (start, frame.times.get_mut(n)) {
            *slot = start.elapsed();
        }
        Ok(())
    }

    fn kernel(
        &mut self,
        model: &Arc<Model>,
        graph: &Graph,
        frame: &mut Frame,
        n: NodeId,
        state: &mut NodeState,
    ) -> Result<()> {
        let Some(node) = graph.nodes.get(n) else { return Ok(()) };
        if state.kernel.is_none() {
            state.kernel = Some(ops::prepare(&Site { model, graph, node })?);
        }
        infer(graph, frame, n, state)?;
        let mutates = node.op.family() == Family::Recurrent;
        let mut variables: SmallVec<[(usize, Value); 4]> = SmallVec::new();
        let mut outputs: SmallVec<[Value; 2]> = SmallVec::new();
        for (o, &t) in node.outputs.iter().enumerate() {
            let Some(Slot::Value { value, .. }) = frame.slots.get_mut(t) else {
                return Err(Error::invalid(format!("output tensor {t} cannot be written")));
            };
            let mut value = std::mem::replace(value, Value::empty(DType::U8, None));
            let shape = state.out_shapes.get(o).and_then(Option::as_ref);
            let done = match shape {
                Some(shape) => {
                    let want = value.dtype.byte_len(elements(shape)).unwrap_or(0);
                    if value.capacity() < want {
                        take_best(&mut frame.free, &mut value, want);
                    }
                    value.reshape(shape)
                }
                None => Ok(()),
            };
            outputs.push(value);
            if done.is_err() {
                restore(frame, node, &mut outputs, &mut variables, false);
                return done;
            }
        }
        if mutates {
            for (i, t) in node.inputs.iter().enumerate() {
                if let Some(t) = *t
                    && graph.tensors.get(t).is_some_and(|t| t.is_variable)
                    && let Some(Slot::Value { value, .. }) = frame.slots.get_mut(t)
                {
                    variables.push((i, std::mem::replace(value, Value::empty(DType::U8, None))));
                }
            }
        }
        let run = (|| {
            let mut inputs: SmallVec<[Option<View<'_>>; 8]> = SmallVec::new();
            for (i, t) in node.inputs.iter().enumerate() {
                let taken = variables.iter().any(|(at, _)| *at == i);
                inputs.push(match t {
                    Some(t) if !taken => Some(view(graph, &frame.slots, *t)?),
                    _ => None,
                });
            }
            let mut call = Call {
                inputs: &inputs,
                outputs: &mut outputs,
                variables: &mut variables,
                pool: &self.pool,
                resources: &mut self.resources,
            };
            match state.kernel.as_mut() {
                Some(k) => k(&mut call),
                None => Err(Error::internal("kernel not prepared")),
            }
        })();
        restore(frame, node, &mut outputs, &mut variables, run.is_ok());
        run
    }

    /// IF, WHILE, CALL, CALL_ONCE and composites.
    fn control(&mut self, graph: &Graph, frame: &mut Frame, n: NodeId) -> Result<()> {
        let Some(node) = graph.nodes.get(n) else { return Ok(()) };
        let operands = |frame: &Frame, skip: usize| -> Result<Vec<Value>> {
            let ids = node.inputs.iter().skip(skip).flatten();
            ids.map(|&t| view(graph, &frame.slots, t).and_then(|v| owned(&v))).collect()
        };
        let results = match &node.op {
            Op::If(o) => {
                let cond = node.input(0).ok_or_else(|| Error::invalid("no condition"))?;
                let cond = view(graph, &frame.slots, cond)?.bytes.first() == Some(&1);
                let body = if cond { o.then_subgraph_index } else { o.else_subgraph_index };
                self.call(body, operands(frame, 1)?)?
            }
            Op::While(o) => self.repeat(o.cond_subgraph_index, o.body_subgraph_index, operands(frame, 0)?)?,
            Op::StablehloWhile(o) => self.repeat(o.cond_subgraph_index, o.body_subgraph_index, operands(frame, 0)?)?,
            Op::Call(o) => self.call(o.subgraph as i32, operands(frame, 0)?)?,
            Op::StablehloComposite(o) => self.call(o.decomposition_subgraph_index, operands(frame, 0)?)?,
            Op::CallOnce(o) => {
                let init = usize::try_from(o.init_subgraph_index).map_err(|_| Error::invalid("negative subgraph"))?;
                if !self.resources.initialised.contains(&init) {
                    self.call(o.init_subgraph_index, Vec::new())?;
                    self.resources.initialised.push(init);
                }
                Vec::new()
            }
            op => return Err(Error::internal(format!("{} is no control flow", op.name()))),
        };
        if results.len() < node.outputs.len() {
            return Err(Error::invalid(format!("the body has {} outputs", results.len())));
        }
        for (&t, v) in node.outputs.iter().zip(results) {
            if let Some(Slot::Value { value, ready }) = frame.slots.get_mut(t) {
                if value.dtype != v.dtype {
                    return Err(Error::invalid(format!("the body yields {}, {} is declared", v.dtype, value.dtype)));
                }
                let quant = value.quant.take();
                *value = v;
                value.quant = quant;
                *ready = true;
            }
        }
        Ok(())
    }

    fn repeat(&mut self, cond: i32, body: i32, mut state: Vec<Value>) -> Result<Vec<Value>> {
        for _ in 0..MAX_ITERATIONS {
            let go = self.call(cond, state.clone())?;
            if go.first().and_then(|v| v.bytes().first()) != Some(&1) {
                return Ok(state);
            }
            state = self.call(body, state)?;
        }
        Err(Error::invalid(format!("the loop did not end after {MAX_ITERATIONS} iterations")))
    }

    /// Runs a subgraph on values and returns its outputs.
    fn call(&mut self, subgraph: i32, operands: Vec<Value>) -> Result<Vec<Value>> {
        let s = usize::try_from(subgraph).map_err(|_| Error::invalid(format!("no subgraph {subgraph}")))?;
        let model = self.model.clone();
        let graph = model.subgraphs.get(s).ok_or_else(|| no_subgraph(s))?;
        if operands.len() < graph.inputs.len() {
            return Err(Error::invalid(format!(
                "subgraph {s} takes {} inputs, {} given",
                graph.inputs.len(),
                operands.len()
            )));
        }
        for (&t, v) in graph.inputs.iter().zip(&operands) {
            self.set(s, t, v.view()).map_err(|e| e.at(format!("input of subgraph {s}")))?;
        }
        self.run(s).map_err(|e| e.at(format!("subgraph {s}")))?;
        graph.outputs.iter().map(|&t| owned(&self.get(s, t)?)).collect()
    }
}

impl Frame {
    fn new(graph: &Graph, options: &Options) -> Result<Frame> {
        let mut slots = Vec::with_capacity(graph.tensors.len());
        for t in &graph.tensors {
            slots.push(match &t.data {
                Some(data) if !t.is_variable => Slot::Constant(Constant::new(t.dtype, data)?),
                data => {
                    let mut value = Value::empty(t.dtype, t.quant.clone().map(Arc::new));
                    if t.is_variable {
                        value.reshape(&t.shape)?;
                        zero(t, &mut value);
                        if let Some(d) = data {
                            value.bytes_mut().copy_from_slice(d);
                        }
                    }
                    Slot::Value { value, ready: t.is_variable }
                }
            });
        }
        let mut release = vec![Vec::new(); graph.nodes.len()];
        if !options.keep_all {
            let mut last: Vec<Option<NodeId>> = vec![None; graph.tensors.len()];
            for (n, node) in graph.nodes.iter().enumerate() {
                // An output that nobody reads dies with its producer.
                for &t in node.inputs.iter().flatten().chain(&node.outputs) {
                    if let Some(slot) = last.get_mut(t) {
                        *slot = Some(n);
                    }
                }
            }
            for (t, n) in last.into_iter().enumerate() {
                let fixed = graph.inputs.contains(&t) || graph.outputs.contains(&t);
                let variable = graph.tensors.get(t).is_some_and(|t| t.is_variable || t.is_constant());
                if let (false, false, Some(list)) = (fixed, variable, n.and_then(|n| release.get_mut(n))) {
                    list.push(t);
                }
            }
        }
        let nodes = graph.nodes.iter().map(|_| NodeState::default()).collect();
        let times = if options.profile { vec![Duration::ZERO; graph.nodes.len()] } else { Vec::new() };
        Ok(Frame { slots, nodes, release, free: Vec::new(), times })
    }
}

/// Brings the output shapes of a node up to date.
fn infer(graph: &Graph, frame: &Frame, n: NodeId, state: &mut NodeState) -> Result<()> {
    let Some(node) = graph.nodes.get(n) else { return Ok(()) };
    let mut views: SmallVec<[Option<View<'_>>; 8]> = SmallVec::new();
    for t in &node.inputs {
        views.push(match t {
            Some(t) => Some(view(graph, &frame.slots, *t)?),
            None => None,
        });
    }
    let same = state.inferred
        && !state.by_value
        && views.iter().flatten().zip(&state.in_shapes).all(|(v, s)| v.shape == s.as_slice());
    if same {
        return Ok(());
    }
    let outputs: SmallVec<[&Tensor; 2]> = node.outputs.iter().filter_map(|&t| graph.tensors.get(t)).collect();
    let ask = |known: bool| {
        let facts: SmallVec<[Option<Fact<'_>>; 8]> = node
            .inputs
            .iter()
            .zip(&views)
            .map(|(t, v)| {
                let v = (*v)?;
                let constant = matches!(t.and_then(|t| frame.slots.get(t)), Some(Slot::Constant(_)));
                Some(Fact { dtype: v.dtype, shape: v.shape, value: (known || constant).then_some(v.bytes) })
            })
            .collect();
        litegpu_graph::ops::infer(&litegpu_graph::ops::Site { op: &node.op, inputs: &facts, outputs: &outputs })
    };
    let fixed = ask(false)?;
    state.by_value = fixed.iter().any(Option::is_none);
    state.out_shapes = if state.by_value { ask(true)? } else { fixed };
    state.in_shapes = views.iter().flatten().map(|v| Shape::from_slice(v.shape)).collect();
    state.inferred = true;
    Ok(())
}

fn restore(
    frame: &mut Frame,
    node: &litegpu_graph::Node,
    outputs: &mut SmallVec<[Value; 2]>,
    variables: &mut SmallVec<[(usize, Value); 4]>,
    ok: bool,
) {
    for (&t, v) in node.outputs.iter().zip(outputs.drain(..)) {
        if let Some(Slot::Value { value, ready }) = frame.slots.get_mut(t) {
            *value = v;
            *ready = ok;
        }
    }
    for (i, v) in variables.drain(..) {
        if let Some(Slot::Value { value, .. }) = node.input(i).and_then(|t| frame.slots.get_mut(t)) {
            *value = v;
        }
    }
}

/// Moves the free storage that fits best into `value`: the smallest that is large enough, else the largest.
fn take_best(free: &mut Vec<Storage>, value: &mut Value, want: usize) {
    let best = free.iter().enumerate().min_by_key(|(_, s)| {
        let c = s.capacity();
        if c >= want { (0, c - want) } else { (1, want - c) }
    });
    if let Some((i, _)) = best {
        let old = value.put_storage(free.swap_remove(i));
        if old.capacity() > 0 {
            free.push(old);
        }
    }
}

fn view<'a>(graph: &'a Graph, slots: &'a [Slot], tensor: TensorId) -> Result<View<'a>> {
    let t = graph.tensors.get(tensor).ok_or_else(|| Error::invalid(format!("no tensor {tensor}")))?;
    match slots.get(tensor) {
        Some(Slot::Constant(c)) => {
            Ok(View { dtype: t.dtype, shape: &t.shape, quant: t.quant.as_ref(), bytes: c.bytes() })
        }
        Some(Slot::Value { value, ready: true }) => Ok(value.view()),
        // A tensor without elements needs no writer.
        Some(_) if t.elements() == 0 => {
            Ok(View { dtype: t.dtype, shape: &t.shape, quant: t.quant.as_ref(), bytes: &[] })
        }
        _ => Err(Error::invalid(format!("tensor {tensor} '{}' has no value", t.name))),
    }
}

fn owned(v: &View<'_>) -> Result<Value> {
    Value::from_bytes(v.dtype, v.shape, v.bytes)
}

/// Zero as a real number: the zero point of a quantized variable.
fn zero(t: &Tensor, value: &mut Value) {
    let z = t.per_tensor().map_or(0, |(_, z)| z);
    match t.dtype {
        DType::I8 | DType::U8 => value.bytes_mut().fill(z as u8),
        _ => value.bytes_mut().fill(0),
    }
}

fn is_control(op: &Op) -> bool {
    op.family() == Family::Control && !validate::called(op).is_empty()
}

fn place(graph: &Graph, n: NodeId, e: Error) -> Error {
    match graph.nodes.get(n) {
        Some(node) if e.message.starts_with(node.op.name()) => {
            Error { message: format!("operator {n} {}", e.message), ..e }
        }
        Some(node) => e.at(format!("operator {n} {}", node.op.name())),
        None => e,
    }
}

fn no_subgraph(s: usize) -> Error {
    Error::invalid(format!("no subgraph {s}"))
}
