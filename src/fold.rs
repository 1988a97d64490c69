//! Evaluates small operators on the CPU while shapes are propagated, so that a graph which computes shapes as tensors
//! is as static as any other.

use bytes::Bytes;
use litegpu_cpu::evaluate;
use litegpu_graph::ops::Fact;
use litegpu_graph::shapes::{self, Shapes};
use litegpu_graph::{Graph, Model, Node, Result, Shape, TensorId};

/// The shapes of every tensor of a subgraph for the given input shapes and values, with computed shapes followed.
pub(crate) fn propagate(
    model: &Model,
    graph: &Graph,
    inputs: &[(TensorId, Shape)],
    values: &[(TensorId, Bytes)],
) -> Result<Shapes> {
    shapes::propagate_in(model, graph, inputs, values, Some(&mut evaluator(model, graph)))
}

/// Evaluates nodes of a subgraph on known operands.
pub(crate) fn evaluator<'a>(
    model: &'a Model,
    graph: &'a Graph,
) -> impl FnMut(&Node, &[Option<Fact<'_>>], &[Shape]) -> Option<Vec<Bytes>> + 'a {
    move |node, facts, shapes| evaluate(model, graph, node, facts, shapes)
}
