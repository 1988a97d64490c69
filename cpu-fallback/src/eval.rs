//! One operator on given values, outside any session: for shapes that are computed as tensors, for tables of 8-bit
//! operators, and for constant folding.

use crate::{Call, Pool, Resources, Site, Value};
use bytes::Bytes;
use litegpu_graph::ops::Fact;
use litegpu_graph::{Graph, Model, Node, Shape};

/// The results of a node whose operands are `facts` (all with values) and whose results have the given shapes; `None`
/// when there is no kernel, or it fails. Shapes need not be the graph's own: quantization is.
pub fn evaluate(
    model: &Model,
    graph: &Graph,
    node: &Node,
    facts: &[Option<Fact<'_>>],
    shapes: &[Shape],
) -> Option<Vec<Bytes>> {
    let mut kernel = crate::ops::prepare(&Site { model, graph, node }).ok()?;
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
        record: None,
        then: Default::default(),
        pads: Default::default(),
    };
    kernel(&mut call).ok()?;
    Some(outputs.iter().map(|v| Bytes::copy_from_slice(v.bytes())).collect())
}
