//! The graph in memory: what a `.tflite` file says, with constants as byte ranges of the file (no copy).

use crate::dtype::DType;
use crate::op::Op;
use crate::schema::{SparsityParametersT, VariantSubTypeT};
use bytes::Bytes;
use smallvec::SmallVec;

/// Dimensions, outermost first. Rank 0 is a scalar.
pub type Shape = SmallVec<[usize; 6]>;

/// Index of a tensor in its subgraph.
pub type TensorId = usize;

/// Index of a node (operator instance) in its subgraph, in execution order.
pub type NodeId = usize;

/// A model: subgraphs, the first of which is the main one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Model {
    /// Schema version; 3 for every file of the format `TFL3`.
    pub version: u32,
    /// Free text.
    pub description: String,
    /// Never empty after reading.
    pub subgraphs: Vec<Graph>,
    /// Entry points by name.
    pub signatures: Vec<Signature>,
    /// Named blobs, e.g. `min_runtime_version`, `TFLITE_METADATA`.
    pub metadata: Vec<(String, Bytes)>,
    /// A zip archive that follows the flatbuffer (label files and the like); empty when there is none.
    pub appended: Bytes,
}

/// One subgraph. Nodes are in execution order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Graph {
    /// Name; often empty or `main`.
    pub name: String,
    /// Tensors by id.
    pub tensors: Vec<Tensor>,
    /// Operators in execution order.
    pub nodes: Vec<Node>,
    /// Inputs, in the order of the file.
    pub inputs: Vec<TensorId>,
    /// Outputs, in the order of the file.
    pub outputs: Vec<TensorId>,
}

/// A tensor: constant (with data), variable (state between runs) or computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Name; unique by custom only.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// The shape in the file; dimensions that `signature` marks as -1 hold a placeholder, usually 1.
    pub shape: Shape,
    /// The shape with -1 for dimensions that the caller may set; `None` when all are fixed.
    pub signature: Option<Vec<i32>>,
    /// False with an empty `shape` means that the rank is unknown.
    pub has_rank: bool,
    /// Quantization; `None` when the tensor is not quantized.
    pub quant: Option<Quant>,
    /// The constant's bytes, little endian, dense unless `sparsity` is set.
    pub data: Option<Bytes>,
    /// A variable tensor: zero at first, keeps its value between runs.
    pub is_variable: bool,
    /// How `data` is laid out when it is sparse.
    pub sparsity: Option<Box<SparsityParametersT>>,
    /// What a variant tensor holds.
    pub variant: Vec<VariantSubTypeT>,
}

/// Affine quantization: real = (q - zero_point) * scale.
#[derive(Debug, Clone, Default)]
pub struct Quant {
    /// One (per tensor) or one per index of `axis` (per channel); empty for blockwise quantization. Never negative or
    /// infinite, but converters write NaN for a tensor whose calibration gave NaN, and the field runs such models.
    pub scale: Vec<f32>,
    /// As many as scales, or one for all, or none (zero).
    pub zero_point: Vec<i64>,
    /// The axis of per-channel scales (`quantized_dimension`).
    pub axis: usize,
    /// Calibrated minimum, informative.
    pub min: Vec<f32>,
    /// Calibrated maximum, informative.
    pub max: Vec<f32>,
    /// Scales per block of `axis`, kept in a tensor of their own.
    pub blockwise: Option<Blockwise>,
    /// Opaque custom quantization.
    pub custom: Option<Bytes>,
}

impl PartialEq for Quant {
    /// Floats compare by their bits: a NaN that survived a rewrite is no difference.
    fn eq(&self, other: &Quant) -> bool {
        let same = |a: &[f32], b: &[f32]| a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()));
        same(&self.scale, &other.scale)
            && same(&self.min, &other.min)
            && same(&self.max, &other.max)
            && self.zero_point == other.zero_point
            && self.axis == other.axis
            && self.blockwise == other.blockwise
            && self.custom == other.custom
    }
}

/// Blockwise quantization of a weight tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blockwise {
    /// Tensor of scales (float16), shape = weight shape with `axis` divided by `block_size`.
    pub scales: TensorId,
    /// Tensor of zero points; `None` means zero.
    pub zero_points: Option<TensorId>,
    /// Elements of the innermost axis that share a scale.
    pub block_size: usize,
}

/// One operator instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Operator and attributes.
    pub op: Op,
    /// Operator version in the file; 1 when unknown.
    pub version: i32,
    /// Operands; `None` where an optional one is absent (-1 in the file).
    pub inputs: Vec<Option<TensorId>>,
    /// Results.
    pub outputs: Vec<TensorId>,
    /// Scratch tensors that carry quantization (LSTM); `None` where absent.
    pub intermediates: Vec<Option<TensorId>>,
    /// Flags of inputs that the operator mutates; empty when none does.
    pub mutating_inputs: Vec<bool>,
}

/// An entry point by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// E.g. `serving_default`.
    pub key: String,
    /// The subgraph it runs.
    pub subgraph: usize,
    /// (name, tensor) of each input.
    pub inputs: Vec<(String, TensorId)>,
    /// (name, tensor) of each output.
    pub outputs: Vec<(String, TensorId)>,
}

impl Tensor {
    /// A computed tensor without quantization.
    pub fn new(name: impl Into<String>, dtype: DType, shape: &[usize]) -> Tensor {
        Tensor {
            name: name.into(),
            dtype,
            shape: Shape::from_slice(shape),
            signature: None,
            has_rank: true,
            quant: None,
            data: None,
            is_variable: false,
            sparsity: None,
            variant: Vec::new(),
        }
    }

    /// A constant; `data` is little endian.
    pub fn constant(name: impl Into<String>, dtype: DType, shape: &[usize], data: impl Into<Bytes>) -> Tensor {
        Tensor { data: Some(data.into()), ..Tensor::new(name, dtype, shape) }
    }

    /// Number of elements of the declared shape; saturates instead of overflowing.
    pub fn elements(&self) -> usize {
        elements(&self.shape)
    }

    /// Whether the tensor's data is in the file.
    pub fn is_constant(&self) -> bool {
        self.data.is_some()
    }

    /// (scale, zero point) when quantized per tensor.
    pub fn per_tensor(&self) -> Option<(f32, i32)> {
        self.quant.as_ref().and_then(Quant::per_tensor)
    }
}

/// Product of dimensions; saturates instead of overflowing.
pub fn elements(shape: &[usize]) -> usize {
    shape.iter().fold(1usize, |n, &d| n.saturating_mul(d))
}

impl Quant {
    /// Per-tensor quantization.
    pub fn scalar(scale: f32, zero_point: i64) -> Quant {
        Quant { scale: vec![scale], zero_point: vec![zero_point], ..Quant::default() }
    }

    /// (scale, zero point) when there is exactly one scale.
    pub fn per_tensor(&self) -> Option<(f32, i32)> {
        match self.scale.as_slice() {
            [s] => Some((*s, self.zero_point.first().copied().unwrap_or(0) as i32)),
            _ => None,
        }
    }
}

impl Node {
    /// A node of version 1 without optional parts.
    pub fn new(op: Op, inputs: &[TensorId], outputs: &[TensorId]) -> Node {
        Node {
            op,
            version: 1,
            inputs: inputs.iter().map(|&t| Some(t)).collect(),
            outputs: outputs.to_vec(),
            intermediates: Vec::new(),
            mutating_inputs: Vec::new(),
        }
    }

    /// The i-th operand, if there is one.
    pub fn input(&self, i: usize) -> Option<TensorId> {
        self.inputs.get(i).copied().flatten()
    }
}

impl Graph {
    /// The tensor behind a node's i-th operand.
    pub fn operand(&self, node: &Node, i: usize) -> Option<&Tensor> {
        self.tensors.get(node.input(i)?)
    }

    /// For each tensor, the node that writes it.
    pub fn producers(&self) -> Vec<Option<NodeId>> {
        let mut by = vec![None; self.tensors.len()];
        for (n, node) in self.nodes.iter().enumerate() {
            for &t in &node.outputs {
                if let Some(slot) = by.get_mut(t) {
                    *slot = Some(n);
                }
            }
        }
        by
    }

    /// For each tensor, the nodes that read it, in order; a node that reads it twice is listed once.
    pub fn consumers(&self) -> Vec<Vec<NodeId>> {
        let mut by: Vec<Vec<NodeId>> = vec![Vec::new(); self.tensors.len()];
        for (n, node) in self.nodes.iter().enumerate() {
            for &t in node.inputs.iter().flatten() {
                if let Some(list) = by.get_mut(t)
                    && list.last() != Some(&n)
                {
                    list.push(n);
                }
            }
        }
        by
    }
}

impl Model {
    /// The first subgraph, which a run without a signature executes. Empty only for a model built by hand.
    pub fn main(&self) -> Option<&Graph> {
        self.subgraphs.first()
    }
}
