//! The executor: runs subgraphs node by node, in the file's order.
//!
//! Shapes are inferred when a node first runs and again only when an operand's shape has changed (or when the output
//! shape hangs on values). Storage is handed from a tensor whose last reader has run to the next tensor that needs
//! room, best fit first; the same order in every run makes the assignment stable, so that a steady-state run of a
//! static graph allocates nothing.

use crate::arena::{self, Home};
use crate::chain::{Applied, Chains, LONGEST, Link, Then, repeat, repeats};
use crate::custom::{CustomOperator, CustomOperators};
use crate::fixed::{self, Fixed, Padded};
use crate::kernel::{Call, Kernel, Site};
use crate::moves::{self, Piece};
use crate::ops;
use crate::pool::Pool;
use crate::resources::Resources;
use crate::share::Share;
use crate::value::{Budget, Constant, Storage, Value, View};
use litegpu_graph::ops::Fact;
use litegpu_graph::{DType, Error, Family, Graph, Model, NodeId, Op, Result, Shape, Tensor, TensorId, elements};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;
use web_time::Instant;

/// Iterations after which a WHILE is taken to be endless.
const MAX_ITERATIONS: u64 = 10_000_000;

/// Subgraphs that may be running inside one another: a chain of calls must not exhaust the stack.
const MAX_DEPTH: usize = 64;

/// Bytes up to which a tensor's storage stays its own when its last reader has run.
const SMALL: usize = 4096;

/// Free pieces of storage from which none is added for a planned place: values have come from elsewhere.
const MOST_FREE: usize = 64;

/// Bytes of constants that may have been packed before [`Options::packed`] is told: the file's pages and what was made
/// of them are not to add up, and telling costs a microsecond.
const PACKED_BYTES: usize = 1 << 15;

/// Bytes of tensors that a run may hold unless the caller says otherwise: 16 GiB, where addresses are long enough.
const DEFAULT_MEMORY_LIMIT: usize = if usize::BITS < 64 { 1 << 31 } else { 1 << 34 };

/// How the executor works.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads for kernels; 0 means one per core.
    pub threads: usize,
    /// Keep every tensor's value after the run (for comparisons and calibration) instead of sharing storage.
    pub keep_all: bool,
    /// Record the time of each node.
    pub profile: bool,
    /// Custom operators that the application brings.
    pub custom: CustomOperators,
    /// Bytes of tensors that a run may hold at a time, over all subgraphs and resource variables.
    pub memory_limit: usize,
    /// What to do when kernels have packed constants.
    pub packed: Packed,
}

/// Told, now and then, that kernels have packed constants and will not soon read them again: who maps the model's file
/// into memory can give its pages back, so that a run holds weights once.
#[derive(Clone, Default)]
pub struct Packed(Option<Arc<dyn Fn() + Send + Sync>>);

impl Packed {
    /// Calls `f`, on the thread that runs the executor.
    pub fn new(f: impl Fn() + Send + Sync + 'static) -> Packed {
        Packed(Some(Arc::new(f)))
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Packed(..)" } else { "Packed" })
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            threads: 1,
            keep_all: false,
            profile: false,
            custom: CustomOperators::new(),
            memory_limit: DEFAULT_MEMORY_LIMIT,
            packed: Packed::default(),
        }
    }
}

/// Runs a model on the CPU. Holds all tensor values, so that other devices can run some of the nodes.
#[derive(Debug)]
pub struct Executor {
    model: Arc<Model>,
    /// One per subgraph; `None` while it runs, so that a recursive call is found.
    frames: Vec<Option<Frame>>,
    pool: Pool,
    /// The caller's thread, for what is done sooner without others.
    alone: Pool,
    options: Options,
    memory: Memory,
    /// Subgraphs that are running now.
    depth: usize,
    /// Bytes of constants that nodes have read for the first time since [`Options::packed`] was told.
    packed: usize,
    /// Variables and hash tables.
    pub resources: Resources,
}

/// Storage for tensors' values, which all subgraphs share: what moves from one to another comes back.
#[derive(Debug)]
struct Memory {
    budget: Arc<Budget>,
    free: Vec<Storage>,
}

impl Memory {
    /// Gives a value free storage, or a planned place, for `want` bytes where it has less. What it then still lacks
    /// is the value's own to ask for.
    fn room(&mut self, value: &mut Value, want: usize, home: Option<Home>) {
        if value.capacity() >= want {
            return;
        }
        match home {
            Some(Home::Own) => {}
            Some(Home::Any) if want <= SMALL => {}
            Some(Home::Place(place, bytes)) => {
                let free = self.free.iter().position(|s| s.place() == place);
                let storage = match free {
                    Some(i) => self.free.swap_remove(i),
                    None if self.free.len() < MOST_FREE => value.new_storage(place),
                    None => return take_best(&mut self.free, value, want),
                };
                let old = value.put_storage(storage);
                if old.capacity() > 0 {
                    self.free.push(old);
                }
                // As large as the place will be at once, where that can be had.
                if value.capacity() < want && want <= bytes {
                    let _ = value.reserve(bytes);
                }
            }
            Some(Home::Any) | None => take_best(&mut self.free, value, want),
        }
    }

    /// Gives a value a shape and storage for it.
    fn shape(&mut self, value: &mut Value, shape: &[usize], home: Option<Home>) -> Result<()> {
        let want = value.dtype.byte_len(elements(shape)).unwrap_or(0);
        if value.shape.as_slice() == shape && value.bytes().len() == want && value.dtype.bits() != 0 {
            return Ok(());
        }
        self.room(value, want, home);
        value.reshape(shape)
    }
}

/// The values and kernels of one subgraph.
struct Frame {
    slots: Vec<Slot>,
    /// None where a node runs now or has not been prepared.
    nodes: Vec<Option<Box<NodeState>>>,
    /// For each node, the tensors whose last reader it is.
    release: Vec<Vec<TensorId>>,
    times: Vec<Duration>,
    fixed: Fixed,
    chains: Chains,
    /// Where each tensor's storage comes from; empty where nothing is planned.
    homes: Vec<Home>,
    /// Goes up when the shape of a tensor changes: nodes that have seen this number need not look at shapes again.
    epoch: u64,
    /// Tensors that callers write.
    written: Vec<TensorId>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame {{ {} tensors, {} nodes }}", self.slots.len(), self.nodes.len())
    }
}

enum Slot {
    Constant(Constant),
    Value {
        value: Value,
        ready: bool,
        /// The shape that was last written: where it changes, the frame's `epoch` goes up.
        seen: Shape,
    },
}

#[derive(Default)]
struct NodeState {
    kernel: Option<Kernel>,
    in_shapes: SmallVec<[Shape; 4]>,
    out_shapes: SmallVec<[Option<Shape>; 2]>,
    inferred: bool,
    by_value: bool,
    /// The frame's when the shapes of the operands were last looked at.
    epoch: u64,
    /// What a node of moves copies, once it is known, and whether anybody has tried to find out.
    pieces: Option<Vec<Piece>>,
    tried: bool,
    /// Whether threads help.
    share: Share,
    /// Bytes of the outputs after the last run, where shapes cannot be foreseen.
    rooms: SmallVec<[usize; 2]>,
    /// It has run and need not run again before a reset.
    settled: bool,
    /// A node that runs once has run.
    done: bool,
}

impl Executor {
    /// An executor for `model`. Kernels are prepared (weights packed) when a node first runs, or by
    /// [`Executor::prepare`].
    ///
    /// # Errors
    /// `Invalid` when memory for misaligned constants cannot be had.
    pub fn new(model: Arc<Model>, options: Options) -> Result<Executor> {
        let budget = Budget::new(options.memory_limit);
        // Whoever wants to see every tensor of every run gets it.
        let (model, fixed) = if options.keep_all {
            let none = model.subgraphs.iter().map(Fixed::none).collect();
            (model, none)
        } else {
            fixed::analyse(model)
        };
        // Values that bodies and callers pass to one another do not stay where they were planned.
        let planned = !options.keep_all && !model.subgraphs.iter().flat_map(|g| &g.nodes).any(|n| is_control(&n.op));
        let frames = (0..).zip(fixed).zip(&model.subgraphs).map(|((s, fixed), g)| {
            let chains = if options.keep_all { Chains::none(g) } else { Chains::new(&model, s, g, &fixed) };
            Frame::new(g, &options, &budget, fixed, chains, planned).map(Some)
        });
        let frames = frames.collect::<Result<_>>()?;
        let pool = Pool::new(options.threads);
        let resources = Resources::new(budget.clone());
        let memory = Memory { budget, free: Vec::new() };
        let alone = Pool::default();
        Ok(Executor { model, frames, pool, alone, options, memory, depth: 0, packed: 0, resources })
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
            let Some(node) = graph.nodes.get(n) else { return Err(Error::invalid(format!("no operator {n}"))) };
            let missing =
                self.frame(subgraph)?.nodes.get(n).is_some_and(|s| s.as_ref().is_none_or(|s| s.kernel.is_none()));
            if is_control(&node.op) || !missing {
                continue;
            }
            let kernel = self.make(&Site { model: &model, graph, node }).map_err(|e| place(graph, n, e))?;
            if let Some(state) = self.frame(subgraph)?.nodes.get_mut(n) {
                state.get_or_insert_default().kernel = Some(kernel);
            }
        }
        Ok(())
    }

    /// Never reuse the storage of these tensors: another device reads them.
    ///
    /// # Errors
    /// `Invalid` when there is no such subgraph.
    pub fn keep(&mut self, subgraph: usize, tensors: &[TensorId]) -> Result<()> {
        let model = self.model.clone();
        let frame = self.frame(subgraph)?;
        for list in &mut frame.release {
            list.retain(|t| !tensors.contains(t));
        }
        for &t in tensors {
            if let Some(h) = frame.homes.get_mut(t) {
                *h = Home::Own;
            }
        }
        if let Some(graph) = model.subgraphs.get(subgraph) {
            frame.chains.keep(graph, tensors);
        }
        // A conversion that no kernel here needs may be what the other device reads.
        let nodes = model.subgraphs.get(subgraph).map(|g| &g.nodes[..]).unwrap_or_default();
        let mut skipped = nodes.iter().zip(&frame.fixed.skip).filter(|(_, skip)| **skip);
        if skipped.any(|(node, _)| node.outputs.iter().any(|t| tensors.contains(t))) {
            frame.fixed.skip.fill(false);
            frame.fixed.pads.clear();
        }
        Ok(())
    }

    /// Makes room for a tensor and returns its value, to write; the tensor counts as written.
    ///
    /// # Errors
    /// `Invalid` for a constant, a tensor that does not exist, or a size that cannot be had.
    pub fn write(&mut self, subgraph: usize, tensor: TensorId, shape: &[usize]) -> Result<&mut Value> {
        let Frame { slots, written, .. } = self.frame(subgraph)?;
        match slots.get_mut(tensor) {
            Some(Slot::Value { value, ready, .. }) => {
                value.reshape(shape)?;
                *ready = true;
                // Who has the value may change its shape: the next run looks.
                if !written.contains(&tensor) {
                    written.push(tensor);
                }
                Ok(value)
            }
            Some(Slot::Constant(_)) => Err(Error::invalid(format!("tensor {tensor} is a constant"))),
            None => Err(Error::invalid(format!("no tensor {tensor}"))),
        }
    }

    /// Exchanges a tensor's value with `value`, which another device has computed: no bytes are copied, and the
    /// storage that comes back can take the next result. The tensor counts as written.
    ///
    /// # Errors
    /// `Invalid` for a constant, a tensor that does not exist, or another type.
    pub fn exchange(&mut self, subgraph: usize, tensor: TensorId, value: &mut Value) -> Result<()> {
        let frame = self.frame(subgraph)?;
        match frame.slots.get_mut(tensor) {
            Some(Slot::Value { value: held, ready, .. }) if held.dtype == value.dtype => {
                std::mem::swap(held, value);
                *ready = true;
                frame.look_at(tensor);
                Ok(())
            }
            Some(_) => Err(Error::invalid(format!("tensor {tensor} cannot take a {} value", value.dtype))),
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
        if self.depth >= MAX_DEPTH {
            return Err(Error::unsupported(format!("more than {MAX_DEPTH} subgraphs that call one another")));
        }
        let Some(mut frame) = slot.take() else {
            return Err(Error::unsupported(format!("subgraph {subgraph} calls itself")));
        };
        self.depth += 1;
        let model = self.model.clone();
        let mut result = Ok(());
        let written = std::mem::take(&mut frame.written);
        written.iter().for_each(|&t| frame.look_at(t));
        frame.written = written;
        if let Some(graph) = model.subgraphs.get(subgraph) {
            for n in nodes {
                result = self.run_node(&model, graph, &mut frame, n).map_err(|e| place(graph, n, e));
                if result.is_err() {
                    break;
                }
            }
        }
        self.depth -= 1;
        if self.depth == 0 && self.packed > 0 {
            self.tell();
        }
        if let Some(slot) = self.frames.get_mut(subgraph) {
            *slot = Some(frame);
        }
        result
    }

    /// Says that constants have been packed.
    fn tell(&mut self) {
        self.packed = 0;
        if let Packed(Some(f)) = &self.options.packed {
            f();
        }
    }

    /// Time spent in each node of a subgraph in its last run; empty unless `profile` is set.
    pub fn times(&self, subgraph: usize) -> &[Duration] {
        self.frames.get(subgraph).and_then(Option::as_ref).map_or(&[], |f| &f.times)
    }

    /// Whether the time of each node is recorded from now on.
    pub fn set_profile(&mut self, profile: bool) {
        self.options.profile = profile;
        for (graph, frame) in self.model.subgraphs.iter().zip(self.frames.iter_mut().flatten()) {
            frame.times = if profile { vec![Duration::ZERO; graph.nodes.len()] } else { Vec::new() };
        }
    }

    /// Bytes of storage that tensors and resource variables hold, used or free.
    pub fn bytes(&self) -> usize {
        self.memory.budget.used()
    }

    /// Sets variable tensors to their first values and forgets resources: the next run starts as the first did.
    pub fn reset(&mut self) {
        self.resources.reset();
        for (graph, frame) in self.model.clone().subgraphs.iter().zip(self.frames.iter_mut().flatten()) {
            for (t, slot) in graph.tensors.iter().zip(&mut frame.slots) {
                if let (true, Slot::Value { value, .. }) = (t.is_variable, slot) {
                    initialise(t, value);
                }
            }
            frame.nodes.iter_mut().flatten().for_each(|n| n.settled = false);
        }
    }

    fn frame(&mut self, subgraph: usize) -> Result<&mut Frame> {
        self.frames.get_mut(subgraph).and_then(Option::as_mut).ok_or_else(|| no_subgraph(subgraph))
    }

    fn run_node(&mut self, model: &Arc<Model>, graph: &Graph, frame: &mut Frame, n: NodeId) -> Result<()> {
        let done = frame.fixed.once.get(n) == Some(&true)
            && frame.nodes.get(n).and_then(Option::as_ref).is_some_and(|s| s.done);
        if done || frame.fixed.skip.get(n) == Some(&true) {
            if let Some(slot) = frame.times.get_mut(n) {
                *slot = Duration::ZERO;
            }
            return Ok(());
        }
        let chained = frame.chains.done.get_mut(n).is_some_and(std::mem::take);
        let start = self.options.profile.then(Instant::now);
        let node = graph.nodes.get(n).ok_or_else(|| Error::invalid(format!("no operator {n}")))?;
        if chained {
            // The operator that this one follows has done it.
        } else if is_control(&node.op) {
            self.control(graph, frame, n)?;
        } else {
            let mut state = frame.nodes.get_mut(n).and_then(Option::take).unwrap_or_default();
            let first = !state.done;
            let done = self.kernel(model, graph, frame, n, &mut state);
            state.done = done.is_ok();
            if first {
                let constants = node.inputs.iter().flatten().filter_map(|&t| graph.tensors.get(t)?.data.as_ref());
                self.packed = constants.fold(self.packed, |sum, d| sum.saturating_add(d.len()));
                if self.packed >= PACKED_BYTES {
                    self.tell();
                }
            }
            if let Some(slot) = frame.nodes.get_mut(n) {
                *slot = Some(state);
            }
            done?;
        }
        if let Some(list) = frame.release.get(n) {
            for &t in list {
                if let Some(Slot::Value { value, ready, .. }) = frame.slots.get_mut(t) {
                    *ready = false;
                    // A small tensor keeps its room: to look for some anew would take longer than most small operators.
                    if value.capacity() <= SMALL {
                        continue;
                    }
                    let storage = value.take_storage();
                    if storage.capacity() > 0 {
                        self.memory.free.push(storage);
                    }
                }
            }
        }
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
        if state.settled || variable(&mut self.memory, &self.resources, graph, frame, n) {
            return Ok(());
        }
        if matches!(node.op, Op::AssignVariable) && assign(&mut self.resources, graph, frame, n) {
            return Ok(());
        }
        if state.kernel.is_none() {
            state.kernel = Some(self.make(&Site { model, graph, node })?);
        }
        if state.by_value || state.epoch != frame.epoch || !state.inferred {
            infer(graph, frame, n, state, self.custom(&node.op))?;
            state.epoch = frame.epoch;
        }
        if replay(&mut self.memory, graph, frame, n, state) {
            return Ok(());
        }
        if moves(graph, frame, n, state) {
            node.outputs.iter().for_each(|&t| frame.look_at(t));
            return Ok(());
        }
        let links = follow(graph, frame, n, state);
        // The whole chain's result is written at once, by this node.
        let last = links.checked_sub(1).and_then(|l| frame.chains.links.get(n)?.get(l)).map(|l| l.node);
        let last = last.and_then(|l| graph.nodes.get(l)).unwrap_or(node);
        let mutates = node.op.family() == Family::Recurrent;
        let mut variables: SmallVec<[(usize, Value); 4]> = SmallVec::new();
        let mut outputs: SmallVec<[Value; 2]> = SmallVec::new();
        for (o, &t) in last.outputs.iter().enumerate() {
            let Some(Slot::Value { value, .. }) = frame.slots.get_mut(t) else {
                return Err(Error::invalid(format!("output tensor {t} cannot be written")));
            };
            let mut value = std::mem::replace(value, Value::empty(DType::U8, None));
            let shape = state.out_shapes.get(o).and_then(Option::as_ref);
            let done = match shape {
                Some(shape) => self.memory.shape(&mut value, shape, frame.homes.get(t).copied()),
                // What it was is the best guess.
                None => {
                    let want = state.rooms.get(o).copied().unwrap_or(0);
                    if value.capacity() < want {
                        take_best(&mut self.memory.free, &mut value, want);
                    }
                    Ok(())
                }
            };
            outputs.push(value);
            if done.is_err() {
                restore(frame, node, last, &mut outputs, &mut variables, false);
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
        if links > 0 {
            swap_quant(frame, node, &mut outputs);
        }
        let records = links == 0 && !state.tried && !state.by_value && moves::records(&node.op);
        let mut pieces = None;
        let alone = state.share.alone(self.pool.threads());
        let pool = if alone { &self.alone } else { &self.pool };
        let watch = state.share.start(pool);
        let run = (|| {
            let mut inputs: SmallVec<[Option<View<'_>>; 24]> = SmallVec::new();
            for (i, t) in node.inputs.iter().enumerate() {
                let taken = variables.iter().any(|(at, _)| *at == i);
                inputs.push(match t {
                    Some(t) if !taken => Some(view(graph, &frame.slots, frame.source(n, i, *t))?),
                    _ => None,
                });
            }
            let mut steps: SmallVec<[Applied<'_>; LONGEST]> = SmallVec::new();
            let mut from = None;
            if links > 0 {
                // An element-wise operator that begins a chain is its first step.
                if let (Some(shape), [out]) = (state.out_shapes.first().and_then(Option::as_ref), outputs.as_slice())
                    && let Some((first, source)) = begins(frame, n, &inputs, shape, out.bytes().len())
                {
                    steps.push(first);
                    from = Some(source);
                }
                for l in frame.chains.links.get(n).into_iter().flatten().take(links) {
                    let other = match l.other {
                        Some((o, second)) => Some((view(graph, &frame.slots, o)?.as_slice::<f32>()?, second)),
                        None => None,
                    };
                    steps.extend(applied(frame, l.node, other));
                }
            }
            let then = Then { steps: &steps };
            if let (Some(from), Some(out)) = (from, outputs.first_mut()) {
                then.whole(pool, Some(from), out.bytes_mut());
                return Ok(());
            }
            let mut call = Call {
                inputs: &inputs,
                outputs: &mut outputs,
                variables: &mut variables,
                pool,
                resources: &mut self.resources,
                record: records.then_some(&mut pieces),
                then,
                pads: frame.padded(n).map_or([[0; 2]; 2], |p| p.amounts),
            };
            match state.kernel.as_mut() {
                Some(k) => k(&mut call)?,
                None => return Err(Error::internal("kernel not prepared")),
            }
            let left = call.then;
            if let (false, Some(out)) = (left.is_empty(), call.outputs.first_mut()) {
                left.whole(pool, None, out.bytes_mut());
            }
            Ok(())
        })();
        state.share.stop(pool, watch);
        state.tried |= records;
        // What is moved must hang on constants alone.
        let constant = |t: TensorId| matches!(frame.slots.get(t), Some(Slot::Constant(_)));
        let moved = |i: usize, p: &[Piece]| p.iter().any(|p| p.operand == i);
        state.pieces = match pieces {
            None => state.pieces.take(),
            Some(p) => {
                let mut others = node.inputs.iter().enumerate().filter_map(|(i, t)| Some((i, (*t)?)));
                let known = others.all(|(i, t)| moved(i, &p) || constant(t));
                (known && run.is_ok()).then_some(p)
            }
        };
        if links > 0 {
            swap_quant(frame, node, &mut outputs);
        }
        if state.out_shapes.iter().any(Option::is_none) {
            state.rooms.clear();
            state.rooms.extend(outputs.iter().map(|v| v.bytes().len()));
        }
        restore(frame, node, last, &mut outputs, &mut variables, run.is_ok());
        if run.is_ok() {
            let Chains { links: all, done, .. } = &mut frame.chains;
            for l in all.get(n).into_iter().flatten().take(links) {
                if let Some(d) = done.get_mut(l.node) {
                    *d = true;
                }
            }
        }
        state.settled = run.is_ok() && gives_first_value(graph, node);
        run
    }

    /// The application's operator, when the node is one.
    fn custom(&self, op: &Op) -> Option<&dyn CustomOperator> {
        match op {
            Op::Custom(c) => self.options.custom.get(&c.name).map(|o| &**o),
            _ => None,
        }
    }

    fn make(&self, site: &Site<'_>) -> Result<Kernel> {
        // A sparse constant's bytes are fewer than its shape says: only kernels that know of it may see them.
        let knows = matches!(site.node.op.family(), Family::Conv | Family::Matmul | Family::Quantize);
        let sparse = |t: &&Tensor| t.sparsity.is_some();
        if !knows && let Some(t) = (0..site.node.inputs.len()).filter_map(|i| site.optional(i)).find(sparse) {
            return Err(site.unsupported(format!("the sparse constant '{}'", t.name)));
        }
        match self.custom(&site.node.op) {
            Some(o) => o.prepare(site),
            None => ops::prepare(site),
        }
    }

    /// IF, CASE, WHILE, CALL, CALL_ONCE and composites. Values move in and out of bodies; they are copied only where
    /// somebody else still needs them.
    fn control(&mut self, graph: &Graph, frame: &mut Frame, n: NodeId) -> Result<()> {
        let Some(node) = graph.nodes.get(n) else { return Ok(()) };
        let results = match &node.op {
            Op::If(o) => {
                let cond = node.input(0).ok_or_else(|| Error::invalid("no condition"))?;
                let cond = truth(view(graph, &frame.slots, cond)?)?;
                let body = if cond { o.then_subgraph_index } else { o.else_subgraph_index };
                self.enter(body, graph, frame, n, 1)?
            }
            Op::StablehloCase(o) => {
                let index = node.input(0).ok_or_else(|| Error::invalid("no index"))?;
                let index = view(graph, &frame.slots, index)?;
                let index = match (index.dtype, index.bytes.first_chunk::<4>()) {
                    (DType::I32, Some(b)) => i32::from_le_bytes(*b),
                    _ => return Err(Error::invalid("the index must be one int32")),
                };
                // An index outside the range takes the last branch, as StableHLO has it.
                let branches = o.branch_subgraph_indices.as_deref().unwrap_or_default();
                let branch = usize::try_from(index).ok().and_then(|i| branches.get(i)).or(branches.last());
                let &branch = branch.ok_or_else(|| Error::invalid("no branches"))?;
                self.enter(branch, graph, frame, n, 1)?
            }
            Op::While(o) => {
                let state = operands(graph, frame, n, 0, &mut self.memory)?;
                self.repeat(o.cond_subgraph_index, o.body_subgraph_index, state)?
            }
            Op::StablehloWhile(o) => {
                let state = operands(graph, frame, n, 0, &mut self.memory)?;
                self.repeat(o.cond_subgraph_index, o.body_subgraph_index, state)?
            }
            Op::Call(o) => self.enter(o.subgraph as i32, graph, frame, n, 0)?,
            Op::StablehloComposite(o) => self.enter(o.decomposition_subgraph_index, graph, frame, n, 0)?,
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
            put(frame, &mut self.memory, t, v).map_err(|e| e.at(format!("output tensor {t}")))?;
        }
        Ok(())
    }

    fn repeat(&mut self, cond: i32, body: i32, mut state: Vec<Value>) -> Result<Vec<Value>> {
        for _ in 0..MAX_ITERATIONS {
            let go = self.ask(cond, &mut state)?;
            if !go {
                return Ok(state);
            }
            let want = state.len();
            state = self.call(body, state)?;
            if state.len() < want {
                return Err(Error::invalid(format!(
                    "the loop carries {want} values, its body returns {}",
                    state.len()
                )));
            }
            state.truncate(want);
        }
        Err(Error::invalid(format!("the loop did not end after {MAX_ITERATIONS} iterations")))
    }

    /// Runs a loop's condition. It borrows the state.
    fn ask(&mut self, subgraph: i32, state: &mut [Value]) -> Result<bool> {
        let (s, model) = (self.index(subgraph)?, self.model.clone());
        let graph = model.subgraphs.get(s).ok_or_else(|| no_subgraph(s))?;
        let frame = self.frames.get_mut(s).and_then(Option::as_mut).ok_or_else(|| no_subgraph(s))?;
        if graph.inputs.len() > state.len() {
            return Err(takes(s, graph.inputs.len(), state.len()));
        }
        for (&t, v) in graph.inputs.iter().zip(&mut *state) {
            let empty = Value::empty(v.dtype, None);
            put(frame, &mut self.memory, t, std::mem::replace(v, empty))
                .map_err(|e| e.at(format!("input of subgraph {s}")))?;
        }
        self.run(s).map_err(|e| e.at(format!("subgraph {s}")))?;
        let &t = graph.outputs.first().ok_or_else(|| Error::invalid("the condition has no output"))?;
        let go = truth(self.get(s, t)?)?;
        let (frame, keep) = (self.frames.get_mut(s).and_then(Option::as_mut), self.options.keep_all);
        let frame = frame.ok_or_else(|| no_subgraph(s))?;
        for (&t, v) in graph.inputs.iter().zip(state) {
            *v = take(graph, frame, t, keep, &mut self.memory)?;
        }
        Ok(go)
    }

    /// Runs a subgraph on a node's operands from the given one on.
    fn enter(&mut self, subgraph: i32, graph: &Graph, frame: &mut Frame, n: NodeId, skip: usize) -> Result<Vec<Value>> {
        let operands = operands(graph, frame, n, skip, &mut self.memory)?;
        self.call(subgraph, operands)
    }

    /// Runs a subgraph on values and returns its outputs.
    fn call(&mut self, subgraph: i32, operands: Vec<Value>) -> Result<Vec<Value>> {
        let (s, model) = (self.index(subgraph)?, self.model.clone());
        let graph = model.subgraphs.get(s).ok_or_else(|| no_subgraph(s))?;
        let frame = self.frames.get_mut(s).and_then(Option::as_mut).ok_or_else(|| no_subgraph(s))?;
        if operands.len() < graph.inputs.len() {
            return Err(takes(s, graph.inputs.len(), operands.len()));
        }
        for (&t, v) in graph.inputs.iter().zip(operands) {
            put(frame, &mut self.memory, t, v).map_err(|e| e.at(format!("input of subgraph {s}")))?;
        }
        self.run(s).map_err(|e| e.at(format!("subgraph {s}")))?;
        let frame = self.frames.get_mut(s).and_then(Option::as_mut).ok_or_else(|| no_subgraph(s))?;
        let mut out = Vec::with_capacity(graph.outputs.len());
        for (i, &t) in graph.outputs.iter().enumerate() {
            // A tensor that is an output twice moves the second time.
            let keep = self.options.keep_all || graph.outputs.iter().skip(i + 1).any(|&o| o == t);
            out.push(take(graph, frame, t, keep, &mut self.memory)?);
        }
        Ok(out)
    }

    /// A subgraph that is not running, by the number in the file.
    fn index(&self, subgraph: i32) -> Result<usize> {
        let s = usize::try_from(subgraph).map_err(|_| Error::invalid(format!("no subgraph {subgraph}")))?;
        match self.frames.get(s) {
            Some(None) => Err(Error::unsupported(format!("subgraph {s} calls itself"))),
            Some(Some(_)) => Ok(s),
            None => Err(no_subgraph(s)),
        }
    }
}

/// The truth of a bool scalar.
fn truth(v: View<'_>) -> Result<bool> {
    match (v.dtype, v.bytes.first()) {
        (DType::Bool, Some(&b)) => Ok(b != 0),
        (d, _) => Err(Error::invalid(format!("a condition of type {d} and shape {:?}", v.shape))),
    }
}

fn takes(s: usize, takes: usize, given: usize) -> Error {
    Error::invalid(format!("subgraph {s} takes {takes} inputs, {given} given"))
}

/// The operands of a control flow node from the given one on: moved where this node is the last reader.
fn operands(graph: &Graph, frame: &mut Frame, n: NodeId, skip: usize, memory: &mut Memory) -> Result<Vec<Value>> {
    let Some(node) = graph.nodes.get(n) else { return Ok(Vec::new()) };
    let mut out = Vec::with_capacity(node.inputs.len());
    for (i, t) in node.inputs.iter().enumerate().skip(skip) {
        let t = t.ok_or_else(|| Error::invalid(format!("operand {i} is missing")))?;
        let last = frame.release.get(n).is_some_and(|r| r.contains(&t));
        let again = node.inputs.iter().skip(i + 1).any(|&o| o == Some(t));
        out.push(take(graph, frame, t, !last || again, memory)?);
    }
    Ok(out)
}

/// Moves a value into a tensor's slot; the storage that was there becomes free.
fn put(frame: &mut Frame, memory: &mut Memory, t: TensorId, v: Value) -> Result<()> {
    match frame.slots.get_mut(t) {
        Some(Slot::Value { value, ready, .. }) => {
            if value.dtype != v.dtype {
                return Err(Error::invalid(format!("type {} given, {} expected", v.dtype, value.dtype)));
            }
            let quant = value.quant.take();
            let mut old = std::mem::replace(value, v);
            value.quant = quant;
            *ready = true;
            let old = old.take_storage();
            if old.capacity() > 0 {
                memory.free.push(old);
            }
            frame.look_at(t);
            Ok(())
        }
        Some(Slot::Constant(_)) => Err(Error::invalid(format!("tensor {t} is a constant"))),
        None => Err(Error::invalid(format!("no tensor {t}"))),
    }
}

/// Moves a value out of a tensor's slot, or copies it where it must stay.
fn take(graph: &Graph, frame: &mut Frame, t: TensorId, keep: bool, memory: &mut Memory) -> Result<Value> {
    let stays = keep || graph.tensors.get(t).is_some_and(|t| t.is_variable);
    if !stays
        && let Some(Slot::Value { value, ready, .. }) = frame.slots.get_mut(t)
        && *ready
    {
        let empty = Value::empty(value.dtype, value.quant.clone()).budgeted(&memory.budget);
        *ready = false;
        return Ok(std::mem::replace(value, empty));
    }
    let v = view(graph, &frame.slots, t)?;
    let mut copy = Value::empty(v.dtype, None).budgeted(&memory.budget);
    if copy.dtype.bits() == 0 {
        copy.reshape(v.shape)?;
        copy.set_raw(v.bytes)?;
        return Ok(copy);
    }
    let want = v.bytes.len();
    if let Some(i) = best(&memory.free, want) {
        copy.put_storage(memory.free.swap_remove(i));
    }
    let v = view(graph, &frame.slots, t)?;
    copy.reshape(v.shape)?;
    copy.bytes_mut().copy_from_slice(v.bytes);
    Ok(copy)
}

impl Frame {
    fn new(
        graph: &Graph,
        options: &Options,
        budget: &Arc<Budget>,
        fixed: Fixed,
        chains: Chains,
        planned: bool,
    ) -> Result<Frame> {
        let mut slots = Vec::with_capacity(graph.tensors.len());
        for t in &graph.tensors {
            slots.push(match &t.data {
                Some(data) if !t.is_variable => Slot::Constant(Constant::new(t.dtype, data)?),
                _ => {
                    let mut value = Value::empty(t.dtype, t.quant.clone().map(Arc::new)).budgeted(budget);
                    if t.is_variable {
                        value.reshape(&t.shape)?;
                        initialise(t, &mut value);
                    }
                    let seen = value.shape.clone();
                    Slot::Value { value, ready: t.is_variable, seen }
                }
            });
        }
        let mut release = vec![Vec::new(); graph.nodes.len()];
        if !options.keep_all {
            let kept = &fixed.kept;
            let mut last: Vec<Option<NodeId>> = vec![None; graph.tensors.len()];
            for (n, node) in graph.nodes.iter().enumerate() {
                // An output that nobody reads dies with its producer.
                let padded = fixed.pads.iter().find(|p| p.conv == n).map(|p| p.from);
                for &t in node.inputs.iter().flatten().chain(&node.outputs).chain(&padded) {
                    if let Some(slot) = last.get_mut(t) {
                        *slot = Some(n);
                    }
                }
            }
            for (t, n) in last.into_iter().enumerate() {
                let port = graph.inputs.contains(&t) || graph.outputs.contains(&t);
                let variable = graph.tensors.get(t).is_some_and(|t| t.is_variable || t.is_constant());
                let stays = port || kept.get(t) == Some(&true);
                if let (false, false, Some(list)) = (stays, variable, n.and_then(|n| release.get_mut(n))) {
                    list.push(t);
                }
            }
        }
        let nodes = graph.nodes.iter().map(|_| None).collect();
        let times = if options.profile { vec![Duration::ZERO; graph.nodes.len()] } else { Vec::new() };
        let homes = if planned { arena::plan(graph, &release, &fixed, &chains, SMALL) } else { Vec::new() };
        Ok(Frame { slots, nodes, release, times, fixed, chains, homes, epoch: 1, written: Vec::new() })
    }

    /// Looks at the shape of a tensor that has been written.
    fn look_at(&mut self, tensor: TensorId) {
        if let Some(Slot::Value { value, seen, .. }) = self.slots.get_mut(tensor)
            && value.shape != *seen
        {
            seen.clone_from(&value.shape);
            self.epoch += 1;
        }
    }

    /// What a convolution pads itself, if it is one that does.
    fn padded(&self, n: NodeId) -> Option<&Padded> {
        self.fixed.pads.iter().find(|p| p.conv == n)
    }
    /// The tensor that the i-th operand is read from.
    fn source(&self, n: NodeId, i: usize, t: TensorId) -> TensorId {
        if i == 0 { self.padded(n).map_or(t, |p| p.from) } else { t }
    }
}

/// Brings the output shapes of a node up to date.
fn infer(
    graph: &Graph,
    frame: &Frame,
    n: NodeId,
    state: &mut NodeState,
    custom: Option<&dyn CustomOperator>,
) -> Result<()> {
    let Some(node) = graph.nodes.get(n) else { return Ok(()) };
    let operands = || {
        let given = node.inputs.iter().enumerate().filter_map(|(i, t)| Some((i, (*t)?)));
        given.map(|(i, t)| view(graph, &frame.slots, frame.source(n, i, t)))
    };
    if state.inferred && !state.by_value {
        let mut same = true;
        for (v, s) in operands().zip(&state.in_shapes) {
            same &= v?.shape == s.as_slice();
        }
        if same {
            return Ok(());
        }
    }
    (state.pieces, state.tried) = (None, false);
    state.share = Share::default();
    let mut views: SmallVec<[Option<View<'_>>; 8]> = SmallVec::new();
    for (i, t) in node.inputs.iter().enumerate() {
        views.push(match t {
            Some(t) => Some(view(graph, &frame.slots, frame.source(n, i, *t))?),
            None => None,
        });
    }
    // The rule for the output's shape is told of the padded image.
    let padded: Option<Shape> = frame.padded(n).and_then(|p| {
        let mut shape = Shape::from_slice(views.first()?.as_ref()?.shape);
        for (d, amount) in shape.iter_mut().skip(1).zip(p.amounts) {
            *d = d.saturating_add(amount[0]).saturating_add(amount[1]);
        }
        Some(shape)
    });
    let outputs: SmallVec<[&Tensor; 2]> = node.outputs.iter().filter_map(|&t| graph.tensors.get(t)).collect();
    let ask = |known: bool| {
        let facts: SmallVec<[Option<Fact<'_>>; 8]> = node
            .inputs
            .iter()
            .zip(&views)
            .enumerate()
            .map(|(i, (t, v))| {
                let v = (*v)?;
                let constant = matches!(t.and_then(|t| frame.slots.get(t)), Some(Slot::Constant(_)));
                let shape = padded.as_deref().filter(|_| i == 0).unwrap_or(v.shape);
                Some(Fact { dtype: v.dtype, shape, value: (known || constant).then_some(v.bytes) })
            })
            .collect();
        let site = litegpu_graph::ops::Site { op: &node.op, inputs: &facts, outputs: &outputs };
        match custom {
            None => litegpu_graph::ops::infer(&site),
            Some(c) => {
                let shapes = c.infer(&site)?;
                if shapes.len() < outputs.len() {
                    return Err(Error::invalid(format!(
                        "{} shapes inferred for {} outputs",
                        shapes.len(),
                        outputs.len()
                    )));
                }
                Ok(shapes)
            }
        }
    };
    let fixed = ask(false)?;
    state.by_value = fixed.iter().any(Option::is_none);
    state.out_shapes = if state.by_value { ask(true)? } else { fixed };
    state.in_shapes = views.iter().flatten().map(|v| Shape::from_slice(v.shape)).collect();
    state.inferred = true;
    Ok(())
}

/// Gives the operand's storage to the result where nothing but the shape changes and nobody reads the operand again.
fn moves(graph: &Graph, frame: &mut Frame, n: NodeId, state: &NodeState) -> bool {
    let Some(node) = graph.nodes.get(n) else { return false };
    let (Some(from), [to], [Some(shape)]) = (node.input(0), node.outputs.as_slice(), state.out_shapes.as_slice())
    else {
        return false;
    };
    let last = frame.release.get(n).is_some_and(|r| r.contains(&from));
    if !matches!(node.op, Op::Reshape(_) | Op::Squeeze(_) | Op::ExpandDims) || !last || from == *to {
        return false;
    }
    let Ok([Slot::Value { value: x, ready: true, .. }, Slot::Value { value: y, ready, .. }]) =
        frame.slots.get_disjoint_mut([from, *to])
    else {
        return false;
    };
    let same = x.dtype == y.dtype && x.dtype.bits() != 0 && x.dtype.byte_len(elements(shape)) == Some(x.bytes().len());
    // Small tensors keep their storage: a copy is sooner done.
    if !same || x.bytes().len() <= SMALL {
        return false;
    }
    let storage = x.take_storage();
    let room = y.put_storage(storage);
    x.put_storage(room);
    // The bytes are there: only the shape is set.
    *ready = y.reshape(shape).is_ok();
    *ready
}

/// Does again what a node of moves was seen to do. Where that cannot be, the node must run: false.
fn replay(memory: &mut Memory, graph: &Graph, frame: &mut Frame, n: NodeId, state: &NodeState) -> bool {
    let (true, Some(pieces), Some(node)) = (moves::RECORDED, &state.pieces, graph.nodes.get(n)) else { return false };
    for (o, &t) in node.outputs.iter().enumerate() {
        let Some(Some(shape)) = state.out_shapes.get(o) else { return false };
        let Some(Slot::Value { value, ready, seen }) = frame.slots.get_mut(t) else { return false };
        if *seen != *shape || memory.shape(value, shape, frame.homes.get(t).copied()).is_err() {
            return false;
        }
        *ready = true;
    }
    let mut pieces = pieces.as_slice();
    while let Some(first) = pieces.first() {
        let same = pieces.iter().take_while(|p| (p.operand, p.output) == (first.operand, first.output)).count();
        let (group, rest) = pieces.split_at(same);
        pieces = rest;
        let (Some(from), Some(&to)) = (node.input(first.operand), node.outputs.get(first.output)) else { return false };
        let Ok([from, Slot::Value { value: to, .. }]) = frame.slots.get_disjoint_mut([from, to]) else { return false };
        let from = match from {
            Slot::Constant(c) => c.bytes(),
            Slot::Value { value, ready: true, .. } => value.bytes(),
            Slot::Value { .. } => return false,
        };
        let to = to.bytes_mut();
        if !group.iter().all(|p| p.copy(from, to)) {
            return false;
        }
    }
    true
}

/// The number of the resource that a node names by its first operand.
fn resource(graph: &Graph, frame: &Frame, node: &litegpu_graph::Node) -> Option<i32> {
    let handle = view(graph, &frame.slots, node.input(0)?).ok()?;
    Some(i32::from_le_bytes(*handle.bytes.first_chunk::<4>()?))
}

/// READ_VARIABLE of a value whose shape is that of the run before.
fn variable(memory: &mut Memory, resources: &Resources, graph: &Graph, frame: &mut Frame, n: NodeId) -> bool {
    let Some(node) = graph.nodes.get(n).filter(|n| matches!(n.op, Op::ReadVariable)) else { return false };
    let Some(from) = resource(graph, frame, node).and_then(|n| resources.variables.get(n)) else { return false };
    let Some(&t) = node.outputs.first() else { return false };
    let Some(Slot::Value { value, ready, seen }) = frame.slots.get_mut(t) else { return false };
    let same = *seen == from.shape && value.dtype == from.dtype && value.dtype.bits() != 0;
    if !same || memory.shape(value, &from.shape, frame.homes.get(t).copied()).is_err() {
        return false;
    }
    value.bytes_mut().copy_from_slice(from.bytes());
    *ready = true;
    true
}

/// ASSIGN_VARIABLE of a value whose type and shape the variable has already.
fn assign(resources: &mut Resources, graph: &Graph, frame: &Frame, n: NodeId) -> bool {
    let Some(node) = graph.nodes.get(n) else { return false };
    let Some(Ok(from)) = node.input(1).map(|t| view(graph, &frame.slots, t)) else { return false };
    let Some(held) = resource(graph, frame, node).and_then(|n| resources.variables.get_mut(n)) else { return false };
    let same = held.dtype == from.dtype && held.shape.as_slice() == from.shape && held.dtype.bits() != 0;
    if same {
        held.bytes_mut().copy_from_slice(from.bytes);
    }
    same
}

/// How many of the operators that follow a node can be done with it in this run.
fn follow(graph: &Graph, frame: &mut Frame, n: NodeId, state: &NodeState) -> usize {
    let Frame { chains, slots, .. } = frame;
    let Chains { links, rows, done, .. } = chains;
    let Some(links) = links.get(n).filter(|l| !l.is_empty()) else { return 0 };
    for l in links {
        if let Some(d) = done.get_mut(l.node) {
            *d = false;
        }
    }
    let [Some(shape)] = state.out_shapes.as_slice() else { return 0 };
    let fits = |l: &&Link| {
        let Some((other, _)) = l.other else { return true };
        let constant = matches!(slots.get(other), Some(Slot::Constant(_)));
        let Ok(other) = view(graph, slots, other) else { return false };
        let (true, Ok(values)) = (repeats(other.shape, shape), other.as_slice::<f32>()) else { return false };
        // A constant's row stays what it is.
        if let Some(row) = rows.get_mut(l.node).filter(|r| !constant || r.is_empty()) {
            repeat(values, row);
        }
        true
    };
    links.iter().take_while(fits).count()
}

/// A node's own step.
fn applied<'a>(frame: &'a Frame, n: NodeId, other: Option<(&'a [f32], bool)>) -> Option<Applied<'a>> {
    let step = frame.chains.steps.get(n)?.as_ref()?;
    let (other, second) = other.unwrap_or((&[], true));
    let row = frame.chains.rows.get(n).filter(|r| !r.is_empty() && other.len() > 1);
    Some(Applied { step, other: row.map_or(other, |r| r), second })
}

/// The step of a node that is element-wise itself, and what it reads.
fn begins<'a>(
    frame: &'a Frame,
    n: NodeId,
    inputs: &[Option<View<'a>>],
    shape: &[usize],
    bytes: usize,
) -> Option<(Applied<'a>, &'a [u8])> {
    match inputs {
        [Some(x)] if x.shape == shape && x.bytes.len() == bytes => Some((applied(frame, n, None)?, x.bytes)),
        [Some(a), Some(b)] => {
            let second = a.shape == shape && repeats(b.shape, shape);
            let (from, other) = if second { (a, b) } else { (b, a) };
            if from.shape != shape || from.bytes.len() != bytes || !repeats(other.shape, shape) {
                return None;
            }
            Some((applied(frame, n, Some((other.as_slice::<f32>().ok()?, second)))?, from.bytes))
        }
        _ => None,
    }
}

/// Lets a kernel see its own output's quantization on the value that takes the chain's result, and back.
fn swap_quant(frame: &mut Frame, node: &litegpu_graph::Node, outputs: &mut [Value]) {
    if let (Some(&t), Some(v)) = (node.outputs.first(), outputs.first_mut())
        && let Some(Slot::Value { value, .. }) = frame.slots.get_mut(t)
    {
        std::mem::swap(&mut value.quant, &mut v.quant);
    }
}

fn restore(
    frame: &mut Frame,
    node: &litegpu_graph::Node,
    last: &litegpu_graph::Node,
    outputs: &mut SmallVec<[Value; 2]>,
    variables: &mut SmallVec<[(usize, Value); 4]>,
    ok: bool,
) {
    for (&t, v) in last.outputs.iter().zip(outputs.drain(..)) {
        if let Some(Slot::Value { value, ready, .. }) = frame.slots.get_mut(t) {
            *value = v;
            *ready = ok;
        }
        if ok {
            frame.look_at(t);
        }
    }
    for (i, v) in variables.drain(..) {
        if let Some(Slot::Value { value, .. }) = node.input(i).and_then(|t| frame.slots.get_mut(t)) {
            *value = v;
        }
    }
}

/// The free storage that fits best: the smallest that is large enough, else the largest.
fn best(free: &[Storage], want: usize) -> Option<usize> {
    let fit = |s: &Storage| {
        let c = s.capacity();
        if c >= want { (0, c - want) } else { (1, want - c) }
    };
    free.iter().enumerate().min_by_key(|(_, s)| fit(s)).map(|(i, _)| i)
}

/// Moves the free storage that fits best into `value`.
fn take_best(free: &mut Vec<Storage>, value: &mut Value, want: usize) {
    if let Some(i) = best(free, want) {
        let old = value.put_storage(free.swap_remove(i));
        if old.capacity() > 0 {
            free.push(old);
        }
    }
}

#[inline]
fn view<'a>(graph: &'a Graph, slots: &'a [Slot], tensor: TensorId) -> Result<View<'a>> {
    match slots.get(tensor) {
        Some(Slot::Value { value, ready: true, .. }) => Ok(value.view()),
        _ => view_rarely(graph, slots, tensor),
    }
}

/// A constant, or a tensor that cannot be read.
#[inline(never)]
fn view_rarely<'a>(graph: &'a Graph, slots: &'a [Slot], tensor: TensorId) -> Result<View<'a>> {
    let t = graph.tensors.get(tensor).ok_or_else(|| Error::invalid(format!("no tensor {tensor}")))?;
    match slots.get(tensor) {
        Some(Slot::Constant(c)) => {
            Ok(View { dtype: t.dtype, shape: &t.shape, quant: t.quant.as_ref(), bytes: c.bytes() })
        }
        // A tensor without elements needs no writer.
        Some(_) if t.elements() == 0 => {
            Ok(View { dtype: t.dtype, shape: &t.shape, quant: t.quant.as_ref(), bytes: &[] })
        }
        _ => Err(Error::invalid(format!("tensor {tensor} '{}' has no value", t.name))),
    }
}

/// Whether a node computes what a variable tensor holds at first: a DEQUANTIZE of a constant, in networks whose
/// constants were made float16. It runs once; the state that operators leave in the tensor must survive later runs.
fn gives_first_value(graph: &Graph, node: &litegpu_graph::Node) -> bool {
    let tensor = |t: Option<TensorId>| t.and_then(|t| graph.tensors.get(t));
    node.op == Op::Dequantize
        && tensor(node.input(0)).is_some_and(Tensor::is_constant)
        && tensor(node.outputs.first().copied()).is_some_and(|t| t.is_variable)
}

/// What a variable holds before the first run: its data, else zero as a real number, which is the zero point of a
/// quantized one.
fn initialise(t: &Tensor, value: &mut Value) {
    if let Some(d) = &t.data
        && value.bytes().len() == d.len()
    {
        value.bytes_mut().copy_from_slice(d);
        return;
    }
    let z = t.per_tensor().map_or(0, |(_, z)| z);
    match t.dtype {
        DType::I8 | DType::U8 => value.bytes_mut().fill(z as u8),
        _ => value.bytes_mut().fill(0),
    }
}

fn is_control(op: &Op) -> bool {
    matches!(
        op,
        Op::If(_)
            | Op::While(_)
            | Op::Call(_)
            | Op::CallOnce(_)
            | Op::StablehloCase(_)
            | Op::StablehloWhile(_)
            | Op::StablehloComposite(_)
    )
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
