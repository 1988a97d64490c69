//! What the rounding of weights adds to each result on average, found by running it: beside every layer whose weights
//! will be rounded, one with the rounding errors in place of the weights computes exactly that, edges and strides included.

use crate::params::{Grouping, Rounding, Weights, floats};
use crate::recipe::Scheme;
use crate::rules::{Kind, Rule, rule};
use crate::{Options, WeightRange, weights};
use litegpu_graph::schema::ActivationFunctionType as Activation;
use litegpu_graph::{DType, Graph, Model, Node, NodeId, Op, Tensor, TensorId};

/// Per subgraph: results, and the tensors in which their drift appears.
pub(crate) type Probes = Vec<Vec<(TensorId, TensorId)>>;

/// Adds the layers of errors behind the model's own, and their tensors behind its own.
pub(crate) fn probe(m: &mut Model, options: &Options) -> Probes {
    let one = |g: &mut Graph| {
        let found: Vec<_> = (0..g.nodes.len()).filter_map(|n| errors(g, n, options)).collect();
        let mut list = Vec::new();
        for (mut node, result, errors, slot) in found {
            let Some(like) = g.tensors.get(result) else { continue };
            let probe = Tensor { name: format!("{}_drift", like.name), ..like.clone() };
            g.tensors.extend([errors, probe]);
            let id = g.tensors.len() - 1;
            if let Some(w) = node.inputs.get_mut(slot) {
                *w = Some(id - 1);
            }
            node.outputs = [id].into_iter().collect();
            g.nodes.push(node);
            list.push((result, id));
        }
        list
    };
    m.subgraphs.iter_mut().map(one).collect()
}

/// A layer without bias and activation, the result of the layer that it stands beside, the constant of errors, and the
/// operand that it is to become.
fn errors(g: &Graph, n: NodeId, options: &Options) -> Option<(Node, TensorId, Tensor, usize)> {
    let node = g.nodes.get(n)?;
    let Rule { kind: Kind::Weighted { weights: slot, bias, axis, .. }, .. } = rule(&node.op)? else { return None };
    g.operand(node, bias)?;
    let w = g.operand(node, slot).filter(|w| w.dtype == DType::F32 && !w.is_variable && w.sparsity.is_none())?;
    let values = floats(w.data.as_ref()?);
    let (bits, rounding) = match options.scheme(g, n) {
        Scheme::Int8 => (8, Rounding::Inverse),
        Scheme::Int16x8 => (8, Rounding::Single),
        Scheme::Dynamic { bits, .. } => (if weights::has_four(&node.op) { bits } else { 8 }, Rounding::Double),
        Scheme::Float | Scheme::Float16 => return None,
    };
    let mut q = Weights::symmetric(&values, &w.shape, Grouping::Axis(axis), bits, rounding);
    if options.weight_range(g, n) == WeightRange::Mse {
        q.fit_squares(&values, bits);
    }
    let real = q.real();
    let data: Vec<u8> = real.iter().zip(&values).flat_map(|(r, v)| (r - v).to_le_bytes()).collect();
    let errors = Tensor { name: format!("{}_errors", w.name), data: Some(data.into()), ..w.clone() };
    let mut beside = node.clone();
    let none = Activation::NONE;
    match &mut beside.op {
        Op::Conv2d(o) => o.fused_activation_function = none,
        Op::DepthwiseConv2d(o) => o.fused_activation_function = none,
        Op::FullyConnected(o) => o.fused_activation_function = none,
        Op::TransposeConv(o) => o.fused_activation_function = none,
        _ => return None,
    }
    *beside.inputs.get_mut(bias)? = None;
    Some((beside, *node.outputs.first()?, errors, slot))
}
