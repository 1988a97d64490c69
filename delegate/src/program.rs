//! A lowered part of a graph, as plain data: kernels, weights, buffers and dispatches. Nothing here touches a device.

use bytes::Bytes;
use litegpu_graph::{DType, NodeId, Shape, TensorId, elements};
use litegpu_shaders::{Elem, KernelKey};
use std::ops::Range;

/// Index into [`Program::slots`].
pub type SlotId = usize;

/// A piece of GPU memory that a dispatch can bind: an activation in a shared buffer, or a constant.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Bytes, a multiple of 16.
    pub bytes: u64,
    /// Where it lives.
    pub place: Place,
    /// The slot that it is a part of, and from which byte on.
    pub within: Option<(SlotId, u64)>,
}

/// Where a slot lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Not bound by any dispatch.
    Unused,
    /// The activation buffer of that number, from that byte on.
    Buffer(usize, u64),
    /// The constant of that number.
    Weight(usize),
}

/// How a dispatch uses a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    Write,
    /// `var<storage, read_write>` that is only read: what is bound may lie in a buffer that the dispatch writes to, for such
    /// bindings must not overlap, and those declared differently must not share a buffer.
    Beside,
}

/// One binding of a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The number in the shader.
    pub binding: u32,
    /// What is bound.
    pub slot: SlotId,
    /// How it is used.
    pub access: Access,
}

/// Another way to do what a dispatch does, as far as it differs: bindings and results are the same, to the last bit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Form {
    /// Override constants with other values.
    pub constants: Vec<(&'static str, i32)>,
    /// Parts in the place of others.
    pub parts: Vec<(&'static str, &'static str)>,
    /// Words of the uniform with other values.
    pub params: Vec<(usize, u32)>,
    /// Workgroups.
    pub groups: [u32; 3],
}

/// An operator's part of a dispatch that serves several.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// The operator.
    pub node: NodeId,
    /// What it would run as by itself.
    pub label: String,
    /// About how much of the dispatch's time it takes.
    pub share: f32,
}

/// One kernel invocation.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// The (first) operator that it belongs to.
    pub node: NodeId,
    /// Of a series: the dispatches that it stands for, in order.
    pub members: Vec<Member>,
    /// The stretch of the program that it is in. Stretches follow each other by number, but for those of a [`Flow`].
    pub stretch: usize,
    /// Index into [`Program::kernels`].
    pub kernel: usize,
    /// Storage bindings.
    pub bindings: Vec<Binding>,
    /// The kernel's part of the uniform, a multiple of 16 bytes.
    pub params: Vec<u32>,
    /// For each operand of the epilogue, how its rows are found ([`litegpu_shaders::row_sizes`]); zeros where it has no
    /// rows, or too many.
    pub sizes: Vec<[u32; 4]>,
    /// The word of the uniform that holds the f32 that results are at least; the next holds what they are at most, and the
    /// third whether they are HARD_SWISH of what was computed instead.
    pub limits: Option<usize>,
    /// Set by a dispatch that only appends zeros to its operand's rows: (quads of its rows, of the operand's).
    pub appends: Option<(u32, u32)>,
    /// Workgroups.
    pub groups: [u32; 3],
    /// Other ways to do it: which is fastest is measured where that is asked for.
    pub others: Vec<Form>,
}

impl Form {
    /// The dispatch, with its kernel, in this form.
    pub(crate) fn of(&self, d: &Dispatch, key: &KernelKey) -> (KernelKey, Dispatch) {
        let (mut key, mut d) = (key.clone(), d.clone());
        for (name, value) in &self.constants {
            for (_, old) in key.constants.iter_mut().filter(|(n, _)| n == name) {
                *old = *value;
            }
        }
        for (this, that) in &self.parts {
            for (_, old) in key.parts.iter_mut().filter(|(_, p)| p == this) {
                *old = that;
            }
        }
        for &(at, value) in &self.params {
            if let Some(word) = d.params.get_mut(at) {
                *word = value;
            }
        }
        d.groups = self.groups;
        d.others.clear();
        (key, d)
    }
}

impl Dispatch {
    /// The words of the uniform that kernel `key` reads.
    pub fn uniform(&self, key: &KernelKey) -> Vec<u32> {
        let sizes = self.sizes.iter().filter(|_| key.is_sized()).flatten();
        sizes.chain(&self.params).copied().collect()
    }
}

/// Names a resource variable.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Variable {
    /// Where it lives.
    pub container: String,
    /// Its name there.
    pub name: String,
}

/// A tensor that crosses the part's boundary.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// The tensor; for what a resource variable holds, the variable's handle.
    pub tensor: TensorId,
    /// The resource variable, if it is one, whose value crosses.
    pub variable: Option<Variable>,
    /// It is state, a resource variable or a variable tensor: as this part left it, unless somebody else has changed it.
    pub state: bool,
    /// Its type on the host.
    pub dtype: DType,
    /// Its shape.
    pub shape: Shape,
    /// How the GPU stores it.
    pub elem: Elem,
    /// Where.
    pub slot: SlotId,
}

impl Port {
    /// Bytes on the host.
    pub fn host_bytes(&self) -> usize {
        self.dtype.byte_len(elements(&self.shape)).unwrap_or(0)
    }
    /// Bytes on the GPU.
    pub fn gpu_bytes(&self) -> u64 {
        padded_bytes(&self.stored().1, self.elem)
    }
    /// Type and shape of what lies in memory: that of the tensor, but of complex numbers that of their floats.
    pub fn stored(&self) -> (DType, Shape) {
        match self.dtype {
            DType::C64 => (DType::F32, floats_of(&self.shape)),
            d => (d, self.shape.clone()),
        }
    }
}

/// A copy from one slot to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// What is copied.
    pub from: SlotId,
    /// Where to.
    pub to: SlotId,
    /// How much.
    pub bytes: u64,
}

/// How often a loop runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passes {
    /// So often, whatever the operands: nothing is read back.
    Count(u32),
    /// As long as the byte there, which the condition's stretch writes, is not zero.
    While(SlotId),
}

/// Stretches of a program that do not simply follow each other.
#[derive(Debug, Clone, PartialEq)]
pub enum Flow {
    /// A loop. What it carries from pass to pass lies in the same slots in every pass.
    Loop {
        /// Gives the carried slots their first values.
        first: Vec<Move>,
        /// The stretch of the condition.
        cond: usize,
        /// How often.
        passes: Passes,
        /// The stretch of the body, the one after the condition's.
        body: usize,
        /// Gives the carried slots the values for the next pass.
        next: Vec<Move>,
    },
    /// A choice of one of several stretches.
    Choice {
        /// What decides.
        flag: SlotId,
        /// It is an int32, the stretch's number, where the last stands for all that are out of range; else one byte: the
        /// first stretch unless it is zero.
        number: bool,
        /// The stretches, by number one after the other, and where their results go.
        arms: Vec<(usize, Vec<Move>)>,
    },
}

impl Flow {
    /// The first and the last of its stretches.
    pub fn stretches(&self) -> (usize, usize) {
        match self {
            Flow::Loop { cond, body, .. } => (*cond, *body),
            Flow::Choice { arms, .. } => (arms.first().map_or(0, |a| a.0), arms.last().map_or(0, |a| a.0)),
        }
    }
    /// Its copies.
    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        let (a, b, arms) = match self {
            Flow::Loop { first, next, .. } => (first.as_slice(), next.as_slice(), &[][..]),
            Flow::Choice { arms, .. } => (&[][..], &[][..], arms.as_slice()),
        };
        a.iter().chain(b).chain(arms.iter().flat_map(|(_, m)| m))
    }
    /// What is read back to decide.
    pub fn flag(&self) -> Option<SlotId> {
        match self {
            Flow::Loop { passes: Passes::While(slot), .. } | Flow::Choice { flag: slot, .. } => Some(*slot),
            Flow::Loop { .. } => None,
        }
    }
}

/// A part of a graph that runs on the GPU in one submit; with loops and choices, in as many as there are decisions that
/// hang on what it computes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Program {
    /// The subgraph.
    pub subgraph: usize,
    /// The operators, in execution order.
    pub nodes: Vec<NodeId>,
    /// Distinct pipelines.
    pub kernels: Vec<KernelKey>,
    /// Constants, packed as their kernels want them.
    pub weights: Vec<Bytes>,
    /// Memory that dispatches bind.
    pub slots: Vec<Slot>,
    /// Sizes of the shared activation buffers.
    pub buffers: Vec<u64>,
    /// In execution order.
    pub dispatches: Vec<Dispatch>,
    /// Loops and choices, by their stretches.
    pub flows: Vec<Flow>,
    /// Tensors that the host provides.
    pub inputs: Vec<Port>,
    /// Tensors that the host receives.
    pub outputs: Vec<Port>,
    /// Bytes of activation buffers.
    pub planned_bytes: u64,
    /// What no plan can need less than: the largest sum of activation bytes that are live at one time.
    pub lower_bound: u64,
}

impl Program {
    /// The copies after which the next run finds its states where this one has found them; `None` where copies cannot do
    /// that.
    pub(crate) fn renewed(&self) -> Option<Vec<Move>> {
        let mut moves = Vec::new();
        for i in self.inputs.iter().filter(|i| i.state) {
            let next = |o: &&Port| o.state && o.tensor == i.tensor && o.variable == i.variable;
            let Some(o) = self.outputs.iter().find(next) else { continue };
            if o.elem != i.elem || o.shape != i.shape {
                return None;
            }
            if o.slot != i.slot {
                // The value before the run may be wanted as well.
                if self.outputs.iter().any(|o| o.slot == i.slot) {
                    return None;
                }
                moves.push(Move { from: o.slot, to: i.slot, bytes: i.gpu_bytes() });
            }
        }
        Some(moves)
    }

    /// Puts the dispatch of that number in another form.
    pub fn choose(&mut self, dispatch: usize, form: &Form) {
        let Some(d) = self.dispatches.get_mut(dispatch) else { return };
        let Some(key) = self.kernels.get(d.kernel) else { return };
        let (key, mut other) = form.of(d, key);
        other.kernel = match self.kernels.iter().position(|k| *k == key) {
            Some(k) => k,
            None => {
                self.kernels.push(key);
                self.kernels.len() - 1
            }
        };
        *d = other;
    }

    /// Bytes of constants.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.iter().map(|w| w.len() as u64).sum()
    }
    /// The dispatches of a stretch.
    pub fn stretch(&self, number: usize) -> Range<usize> {
        let before = |n: usize| self.dispatches.partition_point(|d| d.stretch < n);
        before(number)..before(number + 1)
    }
    /// Bytes that cross the boundary in a run.
    pub fn boundary_bytes(&self) -> u64 {
        self.inputs.iter().chain(&self.outputs).map(|p| p.host_bytes() as u64).sum()
    }
}

/// Quads in the innermost dimension.
pub fn row_quads(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1).div_ceil(4)
}

/// Rows: the product of all dimensions but the innermost.
pub fn rows(shape: &[usize]) -> usize {
    elements(shape.get(..shape.len().saturating_sub(1)).unwrap_or_default())
}

/// Quads of a padded tensor.
pub fn quads(shape: &[usize]) -> usize {
    rows(shape).saturating_mul(row_quads(shape))
}

/// Bytes of a padded tensor, a multiple of 16.
pub fn padded_bytes(shape: &[usize], elem: Elem) -> u64 {
    (quads(shape) as u64).saturating_mul(elem.quad_bytes() as u64).next_multiple_of(16).max(16)
}

/// Elements in the last quad of a row: 1 to 4.
pub fn tail(shape: &[usize]) -> usize {
    match shape.last().copied().unwrap_or(1) % 4 {
        0 => 4,
        n => n,
    }
}

/// The shape of the floats that complex numbers of a shape are made of: twice as long innermost.
pub(crate) fn floats_of(shape: &[usize]) -> Shape {
    let mut s = Shape::from_slice(shape);
    match s.last_mut() {
        Some(n) => *n = n.saturating_mul(2),
        None => s.push(2),
    }
    s
}

/// The least that a binding has: kernels that load four 64-bit words at once need that much.
pub(crate) const LEAST_BINDING: u64 = 32;

/// The slot that has the memory: itself, or the one that it is a part of.
fn root(program: &Program, slot: SlotId) -> SlotId {
    program.slots.get(slot).and_then(|s| s.within).map_or(slot, |(s, _)| s)
}

/// What one dispatch declares as read and what as written must not lie in one buffer, wherever in it: the interface forbids
/// it. Those of `open` kernels declare all as written.
fn conflicts(program: &Program, open: &[usize]) -> Vec<Vec<SlotId>> {
    let mut all: Vec<Vec<SlotId>> = vec![Vec::new(); program.slots.len()];
    for d in &program.dispatches {
        let read = |b: &Binding| b.access == Access::Read && !open.contains(&d.kernel);
        for a in &d.bindings {
            for b in d.bindings.iter().filter(|b| read(b) != read(a)) {
                if let Some(list) = all.get_mut(root(program, a.slot)) {
                    list.push(root(program, b.slot));
                }
            }
        }
    }
    // Nor may a copy.
    for m in program.flows.iter().flat_map(Flow::moves).copied().chain(program.renewed().into_iter().flatten()) {
        let (a, b) = (root(program, m.from), root(program, m.to));
        for (a, b) in [(a, b), (b, a)] {
            if let Some(list) = all.get_mut(a) {
                list.push(b);
            }
        }
    }
    all
}

/// The bindings of each kernel that read activations, if all its dispatches can declare them as written: nothing is bound
/// twice then, and constants stay as they are.
fn openable(program: &Program) -> Vec<(usize, Vec<u32>)> {
    let is_constant = |b: &Binding| program.slots.get(b.slot).is_some_and(|s| matches!(s.place, Place::Weight(_)));
    let of = |kernel: usize| {
        let own = || program.dispatches.iter().filter(move |d| d.kernel == kernel);
        let reads = |d: &Dispatch| -> Vec<u32> {
            let reads = d.bindings.iter().filter(|b| b.access == Access::Read && !is_constant(b));
            reads.map(|b| b.binding).collect()
        };
        let bindings = reads(own().next()?);
        let once = |d: &Dispatch| {
            let mut bound: Vec<SlotId> = Vec::new();
            d.bindings.iter().filter(|b| !is_constant(b)).all(|b| {
                let whole = root(program, b.slot);
                let small = whole != b.slot && program.slots.get(b.slot).is_none_or(|s| s.bytes < LEAST_BINDING);
                let new = !bound.contains(&whole) && !small;
                bound.push(whole);
                new
            })
        };
        (!bindings.is_empty() && own().all(|d| reads(d) == bindings && once(d))).then_some((kernel, bindings))
    };
    // Those that move the most come first.
    let moved = |kernel: usize| -> u64 {
        let own = program.dispatches.iter().filter(|d| d.kernel == kernel).flat_map(|d| &d.bindings);
        own.filter_map(|b| program.slots.get(b.slot)).map(|s| s.bytes).sum()
    };
    let all: Vec<(usize, Vec<u32>)> = (0..program.kernels.len()).filter_map(of).collect();
    litegpu_graph::ordered(all, &mut |a, b| moved(b.0).cmp(&moved(a.0)))
}

/// The first and last moment at which each slot holds something that is wanted. Dispatch `i` is at 2 i + 1; what happens
/// before it is at 2 i.
fn lives(program: &Program) -> Vec<Option<(usize, usize)>> {
    let touch = |live: &mut [Option<(usize, usize)>], slot: SlotId, at: usize| {
        if let Some(s) = live.get_mut(root(program, slot)) {
            *s = Some(s.map_or((at, at), |(a, b)| (a.min(at), b.max(at))));
        }
    };
    let mut live = vec![None; program.slots.len()];
    let steady = program.renewed().is_some();
    for p in &program.inputs {
        touch(&mut live, p.slot, 0);
        // State stays where it is between runs.
        if p.state && steady {
            touch(&mut live, p.slot, 2 * program.dispatches.len());
        }
    }
    for (i, d) in program.dispatches.iter().enumerate() {
        for b in &d.bindings {
            touch(&mut live, b.slot, 2 * i + 1);
        }
    }
    for p in &program.outputs {
        touch(&mut live, p.slot, 2 * program.dispatches.len());
    }
    let move_at = |live: &mut [Option<(usize, usize)>], moves: &[Move], at: usize| {
        for m in moves {
            touch(live, m.from, at);
            touch(live, m.to, at);
        }
    };
    for f in &program.flows {
        match f {
            Flow::Loop { first, cond, passes, body, next } => {
                move_at(&mut live, first, 2 * program.stretch(*cond).start);
                move_at(&mut live, next, 2 * program.stretch(*body).end);
                if let Passes::While(flag) = passes {
                    touch(&mut live, *flag, 2 * program.stretch(*cond).end);
                }
            }
            Flow::Choice { flag, arms, .. } => {
                let start = arms.first().map_or(0, |a| program.stretch(a.0).start);
                touch(&mut live, *flag, 2 * start);
                for (stretch, results) in arms {
                    move_at(&mut live, results, 2 * program.stretch(*stretch).end);
                }
            }
        }
    }
    // What a loop finds when it begins, and reads, it reads in every pass.
    for f in &program.flows {
        if let Flow::Loop { cond, body, .. } = f {
            let (start, end) = (2 * program.stretch(*cond).start, 2 * program.stretch(*body).end);
            for (a, b) in live.iter_mut().flatten() {
                if *a <= start && *b > start {
                    *b = (*b).max(end);
                }
            }
        }
    }
    live
}

/// The share of the lower bound by which a plan may exceed it, before kernels are declared otherwise.
const ENOUGH: u64 = 12;

/// Assigns activation slots to ranges of few shared buffers by liveness, largest first, each to the range that makes
/// its buffer grow least and leaves least of a gap. Ranges start at multiples of `align`; no buffer exceeds `limit`.
pub(crate) fn plan_memory(program: &mut Program, align: u64, limit: u64) {
    let n = program.slots.len();
    let end = 2 * program.dispatches.len();
    let live = lives(program);
    let mut order: Vec<(SlotId, u64, usize, usize)> = Vec::new();
    for (id, slot) in program.slots.iter().enumerate() {
        if let (Some((a, b)), false) = (live.get(id).copied().flatten(), matches!(slot.place, Place::Weight(_))) {
            order.push((id, slot.bytes, a, b));
        }
    }
    let mut bound = 0;
    for i in 0..=end {
        bound = bound.max(order.iter().filter(|(_, _, a, b)| *a <= i && i <= *b).map(|o| o.1).sum());
    }
    let order = litegpu_graph::ordered(order, &mut |a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let plan = |open: &[usize], most: usize| -> Arrangement {
        let (mut order, conflicts) = (order.clone(), conflicts(program, open));
        let mut best = arrange(n, &order, &conflicts, align, limit);
        // What made a buffer grow last was placed too late: it goes first in the next try.
        for _ in 0..(4_000_000 / (order.len() * order.len()).max(1)).clamp(4, 64).min(most) {
            let Some(late) = best.late.filter(|_| best.total() > bound) else { break };
            let Some(at) = order.iter().position(|o| o.0 == late).filter(|&at| at > 0) else { break };
            let moved = order.remove(at);
            order.insert(0, moved);
            let next = arrange(n, &order, &conflicts, align, limit);
            let late = next.late;
            if next.total() < best.total() {
                best = next;
            } else {
                best.late = late;
            }
        }
        best
    };
    let mut best = plan(&[], usize::MAX);
    let enough = |a: &Arrangement| a.total() <= bound + bound / ENOUGH;
    if !enough(&best) {
        // As few kernels as will do declare what they read as written.
        let mut openable = openable(program);
        let all: Vec<usize> = openable.iter().map(|o| o.0).collect();
        let opened = plan(&all, usize::MAX);
        if opened.total() < best.total() {
            best = opened;
            let mut k = 0;
            while k < openable.len() {
                let without: Vec<usize> = openable.iter().map(|o| o.0).filter(|o| *o != openable[k].0).collect();
                let other = plan(&without, 8);
                if other.total() <= best.total() || enough(&other) {
                    best = other;
                    openable.remove(k);
                } else {
                    k += 1;
                }
            }
            for (kernel, bindings) in openable {
                for d in program.dispatches.iter_mut().filter(|d| d.kernel == kernel) {
                    d.bindings
                        .iter_mut()
                        .filter(|b| bindings.contains(&b.binding))
                        .for_each(|b| b.access = Access::Beside);
                }
                if let Some(key) = program.kernels.get_mut(kernel) {
                    key.beside = bindings;
                }
            }
        }
    }
    for (slot, place) in program.slots.iter_mut().zip(&best.places) {
        if let Some((buffer, at)) = *place {
            slot.place = Place::Buffer(buffer, at);
        }
    }
    for id in 0..program.slots.len() {
        let part = program.slots.get(id).and_then(|s| s.within);
        if let Some((whole, more)) = part
            && let Some(&Place::Buffer(buffer, at)) = program.slots.get(whole).map(|s| &s.place)
            && let Some(slot) = program.slots.get_mut(id)
        {
            slot.place = Place::Buffer(buffer, at + more);
        }
    }
    program.buffers = best.buffers;
    program.planned_bytes = program.buffers.iter().sum();
    program.lower_bound = bound;
}

/// Arranges slots, each with its bytes and the first and the last moment at which it is wanted, in one range: its size, and
/// the places.
pub(crate) fn arranged(slots: usize, order: &[(SlotId, u64, usize, usize)], align: u64) -> (u64, Vec<Option<u64>>) {
    let order = litegpu_graph::ordered(order.to_vec(), &mut |a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let made = arrange(slots, &order, &[], align, u64::MAX);
    // One buffer behind the other.
    let (mut end, mut starts) = (0u64, Vec::new());
    for size in &made.buffers {
        starts.push(end);
        end = (end + size).next_multiple_of(align);
    }
    let place = |p: (usize, u64)| Some(starts.get(p.0)? + p.1);
    (end, made.places.into_iter().map(|p| p.and_then(place)).collect())
}

/// Where each slot goes.
struct Arrangement {
    buffers: Vec<u64>,
    places: Vec<Option<(usize, u64)>>,
    /// The last slot that made a buffer grow.
    late: Option<SlotId>,
}

impl Arrangement {
    fn total(&self) -> u64 {
        self.buffers.iter().sum()
    }
}

/// Places slots (with their bytes, first and last dispatch) in the given order.
fn arrange(
    slots: usize,
    order: &[(SlotId, u64, usize, usize)],
    conflicts: &[Vec<SlotId>],
    align: u64,
    limit: u64,
) -> Arrangement {
    /// A range of a buffer, with the first and last dispatch that need it.
    struct Range {
        at: u64,
        end: u64,
        from: usize,
        to: usize,
    }
    let mut buffers: Vec<(u64, Vec<Range>)> = Vec::new();
    let mut places: Vec<Option<(usize, u64)>> = vec![None; slots];
    let mut late = None;
    for &(id, bytes, a, b) in order {
        let bytes = bytes.max(LEAST_BINDING);
        let mut best: Option<(u64, u64, usize, u64)> = None;
        for (number, (size, ranges)) in buffers.iter().enumerate() {
            let taken = |s: &SlotId| places.get(*s).copied().flatten().is_some_and(|(b, _)| b == number);
            if conflicts.get(id).is_some_and(|c| c.iter().any(taken)) {
                continue;
            }
            let busy = ranges.iter().filter(|r| r.from <= b && a <= r.to).map(|r| (r.at, r.end));
            let mut at = 0;
            for (start, stop) in busy.chain([(u64::MAX, u64::MAX)]) {
                if at + bytes <= start && at + bytes <= limit {
                    let growth = (at + bytes).saturating_sub(*size);
                    let gap = start.min((*size).max(at + bytes)) - (at + bytes);
                    if best.is_none_or(|b| (growth, gap) < (b.0, b.1)) {
                        best = Some((growth, gap, number, at));
                    }
                }
                if stop != u64::MAX {
                    at = at.max(stop.next_multiple_of(align));
                }
            }
        }
        let (number, at) = match best {
            Some((growth, _, number, at)) if growth < bytes => (number, at),
            _ => {
                buffers.push((0, Vec::new()));
                (buffers.len() - 1, 0)
            }
        };
        if let Some((size, ranges)) = buffers.get_mut(number) {
            if at + bytes > *size {
                *size = at + bytes;
                late = Some(id);
            }
            let end = at + bytes;
            let behind = ranges.partition_point(|r| (r.at, r.end) <= (at, end));
            ranges.insert(behind, Range { at, end, from: a, to: b });
        }
        if let Some(p) = places.get_mut(id) {
            *p = Some((number, at));
        }
    }
    Arrangement { buffers: buffers.into_iter().map(|(size, _)| size).collect(), places, late }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program whose dispatches read and write the given slots.
    fn program(slots: &[u64], dispatches: &[(&[SlotId], &[SlotId])]) -> Program {
        let bind = |reads: &[SlotId], writes: &[SlotId]| {
            let all = reads.iter().map(|&s| (s, Access::Read)).chain(writes.iter().map(|&s| (s, Access::Write)));
            all.enumerate().map(|(i, (slot, access))| Binding { binding: i as u32 + 1, slot, access }).collect()
        };
        Program {
            slots: slots.iter().map(|&bytes| Slot { bytes, place: Place::Unused, within: None }).collect(),
            dispatches: dispatches
                .iter()
                .map(|(r, w)| Dispatch {
                    node: 0,
                    members: Vec::new(),
                    stretch: 0,
                    kernel: 0,
                    bindings: bind(r, w),
                    params: vec![0; 4],
                    sizes: Vec::new(),
                    limits: None,
                    appends: None,
                    groups: [1; 3],
                    others: Vec::new(),
                })
                .collect(),
            ..Program::default()
        }
    }

    #[test]
    fn a_chain_needs_two_buffers() {
        let mut p = program(&[64; 6], &[(&[0], &[1]), (&[1], &[2]), (&[2], &[3]), (&[3], &[4]), (&[4], &[5])]);
        plan_memory(&mut p, 64, 1 << 30);
        assert_eq!((p.planned_bytes, p.lower_bound), (128, 128));
    }

    #[test]
    fn what_is_read_may_lie_beside_what_is_written() {
        // In different buffers: 64 and 128 or 128 and 64 in two, or two of 64 beside one of 128 for both ends.
        let mut p = program(&[128, 64, 64, 128], &[(&[0], &[1]), (&[1], &[2]), (&[2], &[3])]);
        plan_memory(&mut p, 64, 1 << 30);
        assert_eq!((p.planned_bytes, p.lower_bound), (256, 192));
        // With kernels that can be declared otherwise.
        p.kernels = vec![KernelKey::new("copy", &[])];
        plan_memory(&mut p, 64, 1 << 30);
        assert_eq!((p.planned_bytes, p.lower_bound), (192, 192));
        assert_eq!(p.kernels[0].beside, [1]);
        assert!(p.dispatches.iter().all(|d| d.bindings[0].access == Access::Beside));
        // As it is declared now it is planned again.
        plan_memory(&mut p, 64, 1 << 30);
        assert_eq!((p.planned_bytes, p.lower_bound), (192, 192));
    }

    #[test]
    fn large_and_small_in_turns() {
        // Sizes as a network of depthwise and pointwise layers has them.
        let mut p = program(
            &[150, 401, 400, 802, 200, 402, 400, 402].map(|s| s * 64),
            &[(&[0], &[1]), (&[1], &[2]), (&[2], &[3]), (&[3], &[4]), (&[4], &[5]), (&[5], &[6]), (&[6], &[7])],
        );
        plan_memory(&mut p, 64, 1 << 30);
        assert!(p.planned_bytes * 10 <= p.lower_bound * 11, "{} of {}", p.planned_bytes, p.lower_bound);
    }

    #[test]
    fn what_lives_together_lies_apart() {
        let mut seed = 1u32;
        let mut random = |n: u32| {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            (seed >> 8) % n
        };
        let mut opened = 0;
        for _ in 0..50 {
            let n = 40;
            let sizes: Vec<u64> = (0..n).map(|_| 16 * (1 + random(100)) as u64).collect();
            let edges: Vec<(Vec<usize>, Vec<usize>)> =
                (1..n as usize).map(|i| (vec![i - 1, random(i as u32) as usize], vec![i])).collect();
            let list: Vec<(&[usize], &[usize])> = edges.iter().map(|(a, b)| (a.as_slice(), b.as_slice())).collect();
            let mut p = program(&sizes, &list);
            p.kernels = (0..n).map(|i| KernelKey::new("copy", &[]).set("N", i)).collect();
            p.dispatches.iter_mut().enumerate().for_each(|(i, d)| d.kernel = i);
            plan_memory(&mut p, 64, 1 << 30);
            assert!(p.planned_bytes >= p.lower_bound);
            opened += p.kernels.iter().filter(|k| !k.beside.is_empty()).count();
            let place = |s: SlotId| match p.slots[s].place {
                Place::Buffer(b, _) => b,
                other => panic!("{other:?}"),
            };
            for d in &p.dispatches {
                let of = |access| d.bindings.iter().filter(move |b| b.access == access).map(|b| place(b.slot));
                assert!(of(Access::Read).all(|r| of(Access::Write).chain(of(Access::Beside)).all(|w| r != w)));
                // Nothing is declared as written twice.
                assert!(of(Access::Beside).count() == 0 || d.bindings[0].slot != d.bindings[1].slot);
            }
            let mut life = vec![(usize::MAX, 0); n as usize];
            for (i, d) in p.dispatches.iter().enumerate() {
                for b in &d.bindings {
                    life[b.slot] = (life[b.slot].0.min(i), life[b.slot].1.max(i));
                }
            }
            for a in 0..n as usize {
                for b in 0..a {
                    let (Place::Buffer(x, from), Place::Buffer(y, at)) = (p.slots[a].place, p.slots[b].place) else {
                        continue;
                    };
                    let apart = from + p.slots[a].bytes <= at || at + p.slots[b].bytes <= from;
                    if x == y && !apart {
                        assert!(life[a].1 < life[b].0 || life[b].1 < life[a].0, "{a} {b}");
                    }
                    assert!(from % 64 == 0 && from + p.slots[a].bytes <= p.buffers[x]);
                }
            }
        }
        assert!(opened > 0);
    }

    #[test]
    fn padded_sizes() {
        assert_eq!((quads(&[]), row_quads(&[]), tail(&[])), (1, 1, 1));
        assert_eq!((quads(&[2, 5]), tail(&[2, 5]), tail(&[8])), (4, 1, 4));
        assert_eq!(padded_bytes(&[3, 3], Elem::I8), 16);
    }
}
