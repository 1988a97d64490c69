//! A lowered part of a graph, as plain data: kernels, weights, buffers and dispatches. Nothing here touches a device.

use bytes::Bytes;
use litegpu_graph::{DType, NodeId, Shape, TensorId, elements};
use litegpu_shaders::{Elem, KernelKey};

/// Index into [`Program::slots`].
pub type SlotId = usize;

/// A piece of GPU memory that a dispatch can bind: an activation in a shared buffer, or a constant.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Bytes, a multiple of 16.
    pub bytes: u64,
    /// Where it lives.
    pub place: Place,
}

/// Where a slot lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Not bound by any dispatch.
    Unused,
    /// The activation buffer of that number, from its start.
    Buffer(usize),
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

/// One kernel invocation.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// The (first) operator that it belongs to.
    pub node: NodeId,
    /// Index into [`Program::kernels`].
    pub kernel: usize,
    /// Storage bindings.
    pub bindings: Vec<Binding>,
    /// The uniform, a multiple of 16 bytes.
    pub params: Vec<u32>,
    /// The word of the uniform that holds the f32 that results are at least; the next holds what they are at most.
    pub limits: Option<usize>,
    /// Set by a dispatch that only appends zeros to its operand's rows: (quads of its rows, of the operand's).
    pub appends: Option<(u32, u32)>,
    /// Workgroups.
    pub groups: [u32; 3],
}

/// A tensor that crosses the part's boundary.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// The tensor.
    pub tensor: TensorId,
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
        padded_bytes(&self.shape, self.elem)
    }
}

/// A part of a graph that runs on the GPU in one submit.
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
    /// Tensors that the host provides.
    pub inputs: Vec<Port>,
    /// Tensors that the host receives.
    pub outputs: Vec<Port>,
    /// Bytes of activation buffers.
    pub planned_bytes: u64,
    /// The largest sum of activation bytes that are live at one time: no plan can need less.
    pub lower_bound: u64,
}

impl Program {
    /// Bytes of constants.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.iter().map(|w| w.len() as u64).sum()
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

/// Assigns activation slots to shared buffers by liveness, largest first, each to the free buffer that grows least.
pub(crate) fn plan_memory(program: &mut Program) {
    let n = program.slots.len();
    let end = program.dispatches.len();
    let mut live: Vec<Option<(usize, usize)>> = vec![None; n];
    fn touch(slot: &mut Option<(usize, usize)>, at: usize) {
        *slot = Some(slot.map_or((at, at), |(a, b)| (a.min(at), b.max(at))));
    }
    for p in &program.inputs {
        if let Some(s) = live.get_mut(p.slot) {
            touch(s, 0);
        }
    }
    for (i, d) in program.dispatches.iter().enumerate() {
        for b in &d.bindings {
            if let Some(s) = live.get_mut(b.slot) {
                touch(s, i);
            }
        }
    }
    for p in &program.outputs {
        if let Some(s) = live.get_mut(p.slot) {
            touch(s, end);
        }
    }
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
    order.sort_by_key(|&(id, bytes, _, _)| (std::cmp::Reverse(bytes), id));
    let mut buffers: Vec<(u64, Vec<(usize, usize)>)> = Vec::new();
    for (id, bytes, a, b) in order {
        let free = buffers
            .iter()
            .enumerate()
            .filter(|(_, (_, uses))| uses.iter().all(|&(x, y)| b < x || y < a))
            .min_by_key(|(_, (size, _))| (bytes.saturating_sub(*size), size.saturating_sub(bytes)))
            .map(|(i, _)| i);
        let at = free.unwrap_or_else(|| {
            buffers.push((0, Vec::new()));
            buffers.len() - 1
        });
        if let Some((size, uses)) = buffers.get_mut(at) {
            *size = (*size).max(bytes);
            uses.push((a, b));
        }
        if let Some(slot) = program.slots.get_mut(id) {
            slot.place = Place::Buffer(at);
        }
    }
    program.buffers = buffers.into_iter().map(|(size, _)| size).collect();
    program.planned_bytes = program.buffers.iter().sum();
    program.lower_bound = bound;
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
            slots: slots.iter().map(|&bytes| Slot { bytes, place: Place::Unused }).collect(),
            dispatches: dispatches
                .iter()
                .map(|(r, w)| Dispatch {
                    node: 0,
                    kernel: 0,
                    bindings: bind(r, w),
                    params: vec![0; 4],
                    limits: None,
                    appends: None,
                    groups: [1; 3],
                })
                .collect(),
            ..Program::default()
        }
    }

    #[test]
    fn a_chain_needs_two_buffers() {
        let mut p = program(&[64; 6], &[(&[0], &[1]), (&[1], &[2]), (&[2], &[3]), (&[3], &[4]), (&[4], &[5])]);
        plan_memory(&mut p);
        assert_eq!((p.planned_bytes, p.lower_bound), (128, 128));
    }

    #[test]
    fn what_lives_together_lies_apart() {
        let mut seed = 1u32;
        let mut random = |n: u32| {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            (seed >> 8) % n
        };
        for _ in 0..50 {
            let n = 40;
            let sizes: Vec<u64> = (0..n).map(|_| 16 * (1 + random(100)) as u64).collect();
            let edges: Vec<(Vec<usize>, Vec<usize>)> =
                (1..n as usize).map(|i| (vec![i - 1, random(i as u32) as usize], vec![i])).collect();
            let list: Vec<(&[usize], &[usize])> = edges.iter().map(|(a, b)| (a.as_slice(), b.as_slice())).collect();
            let mut p = program(&sizes, &list);
            plan_memory(&mut p);
            assert!(p.planned_bytes >= p.lower_bound);
            let mut life = vec![(usize::MAX, 0); n as usize];
            for (i, d) in p.dispatches.iter().enumerate() {
                for b in &d.bindings {
                    life[b.slot] = (life[b.slot].0.min(i), life[b.slot].1.max(i));
                }
            }
            for a in 0..n as usize {
                for b in 0..a {
                    if p.slots[a].place == p.slots[b].place {
                        assert!(life[a].1 < life[b].0 || life[b].1 < life[a].0, "{a} {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn padded_sizes() {
        assert_eq!((quads(&[]), row_quads(&[]), tail(&[])), (1, 1, 1));
        assert_eq!((quads(&[2, 5]), tail(&[2, 5]), tail(&[8])), (4, 1, 4));
        assert_eq!(padded_bytes(&[3, 3], Elem::I8), 16);
    }
}
