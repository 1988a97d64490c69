//! Evaluates small operators on the CPU while shapes are propagated, so that a graph which computes shapes as tensors
//! is as static as any other.

use bytes::Bytes;
use litegpu_cpu::{Call, Pool, Resources, Site, Value};
use litegpu_graph::ops::Fact;
use litegpu_graph::shapes::{self, Shapes};
use litegpu_graph::{Graph, Model, Node, Result, Shape, TensorId};

/// The shapes of every tensor of a subgraph for the given input shapes, with computed shapes followed.
pub(crate) fn propagate(model: &Model, graph: &Graph, inputs: &[(TensorId, Shape)]) -> Result<Shapes> {
    let mut eval =
        |node: &Node, facts: &[Option<Fact<'_>>], shapes: &[Shape]| evaluate(model, graph, node, facts, shapes);
    shapes::propagate(graph, inputs, Some(&mut eval))
}

fn evaluate(
    model: &Model,
    graph: &Graph,
    node: &Node,
    facts: &[Option<Fact<'_>>],
    shapes: &[Shape],
) -> Option<Vec<Bytes>> {
    let mut kernel = litegpu_cpu::ops::prepare(&Site { model, graph, node }).ok()?;
    let mut operands = Vec::with_capacity(facts.len());
    for (fact, t) in facts.iter().zip(&node.inputs) {
        operands.push(match (fact, t) {
            (Some(f), Some(t)) => {
                let mut v = Value::from_bytes(f.dtype, f.shape, f.value?).ok()?;
                v.quant = graph.tensors.get(*t)?.quant.clone().map(Into::into);
                Some(v)
            }
            _ => None,
        });
    }
    let mut outputs = Vec::with_capacity(shapes.len());
    for (t, shape) in node.outputs.iter().zip(shapes) {
        let t = graph.tensors.get(*t)?;
        let mut v = Value::empty(t.dtype, t.quant.clone().map(Into::into));
        v.reshape(shape).ok()?;
        outputs.push(v);
    }
    let views: Vec<_> = operands.iter().map(|v| v.as_ref().map(Value::view)).collect();
    let mut call = Call {
        inputs: &views,
        outputs: &mut outputs,
        variables: &mut [],
        pool: &Pool::default(),
        resources: &mut Resources::default(),
    };
    kernel(&mut call).ok()?;
    Some(outputs.iter().map(|v| Bytes::copy_from_slice(v.bytes())).collect())
}
