//! CALL and composites. Some composites have a kernel; of the others, the subgraph that they stand for is lowered in their
//! place.

use super::{WG, team};
use crate::convert;
use crate::lower::{Lower, Lowered, Params, Scene, line, no};
use crate::program::rows;
use litegpu_graph::flexbuffer::Flex;
use litegpu_graph::schema::{CustomOptionsFormat, StableHLOCompositeOptionsT};
use litegpu_graph::{Node, Op};
use litegpu_shaders::{Elem, KernelKey};

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    match &cx.node.op {
        Op::Call(_) => cx.inline(),
        Op::While(_) | Op::StablehloWhile(_) => cx.repeat(),
        Op::If(_) | Op::StablehloCase(_) => cx.choose(),
        Op::ReadVariable => cx.read_variable(),
        Op::AssignVariable => cx.assign_variable(),
        Op::CallOnce(_) => no("it runs once, on the CPU"),
        Op::StablehloComposite(o) => {
            let before = cx.dispatches();
            // A kernel stands for what the composite's subgraph computes, and only for that: where the subgraph does
            // something else than the name says, it is what counts.
            match fused(cx, o) {
                Ok(()) => Ok(()),
                Err(_) => {
                    cx.take_back(before);
                    cx.inline()
                }
            }
        }
        _ => no("tables are the CPU's"),
    }
}

fn fused(cx: &mut Lower<'_, '_>, o: &StableHLOCompositeOptionsT) -> Lowered {
    let Some(body) = cx.body() else { return no("shapes in its subgraph that are not known") };
    if o.composite_attributes_format != CustomOptionsFormat::FLEXBUFFERS {
        return no("attributes in another format");
    }
    let attributes = Flex::root(o.composite_attributes.as_deref().unwrap_or_default());
    match o.name.as_deref() {
        Some("odml.rms_norm") => rms(cx, body, attributes),
        _ => no("a composite without a kernel"),
    }
}

/// The product of the scalars that a body multiplies and divides by, if all its operators are such, or `known` ones.
fn factors(body: &Scene<'_>, known: impl Fn(&Node) -> bool) -> Lowered<f64> {
    let scalar = |t: Option<usize>| -> Lowered<Option<f64>> {
        let Some(c) = t.map(|t| body.constant(t)).transpose()?.flatten() else { return Ok(None) };
        Ok(convert::floats(&c).and_then(|v| if let [v] = v.as_slice() { Some(*v as f64) } else { None }))
    };
    let mut product = 1.0;
    for node in &body.graph.nodes {
        match node.op {
            Op::Mul(_) => match (scalar(node.input(0))?, scalar(node.input(1))?) {
                (Some(v), None) | (None, Some(v)) => product *= v,
                _ if known(node) => {}
                _ => return no("a product with a tensor"),
            },
            Op::Div(_) => match scalar(node.input(1))? {
                Some(v) => product /= v,
                None => return no("a quotient of tensors"),
            },
            Op::Reshape(_) | Op::Dequantize | Op::BroadcastTo | Op::ExpandDims | Op::Squeeze(_) => {}
            _ if known(node) => {}
            _ => return no(format!("{} in its subgraph", node.op.name())),
        }
    }
    Ok(product)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-3 * b.abs()
}

/// odml.rms_norm: x / sqrt(mean of squares in a row + epsilon), times a factor for each element.
fn rms(cx: &mut Lower<'_, '_>, body: &Scene<'_>, attributes: Flex<'_>) -> Lowered {
    let x = cx.operand(0)?;
    let width = x.inner();
    let Some(epsilon) = attributes.get("epsilon").as_f64() else { return no("no epsilon") };
    // The subgraph: squares, one sum or mean over the last axis, one epsilon, one root.
    let count = |f: &dyn Fn(&Op) -> bool| body.graph.nodes.iter().filter(|n| f(&n.op)).count();
    let last = |node: &Node| {
        let axes = node.input(1).and_then(|t| body.constant(t).ok().flatten()).and_then(|c| convert::ints(&c));
        let rank = x.shape.len() as i64;
        matches!(axes.as_deref(), Some(&[a]) if a == -1 || a == rank - 1)
    };
    let adds = |node: &Node| {
        let given = node.inputs.iter().flatten().filter_map(|&t| body.constant(t).ok().flatten());
        given.filter_map(|c| convert::floats(&c)).any(|v| matches!(v.as_slice(), [v] if close(*v as f64, epsilon)))
    };
    let known = |node: &Node| match node.op {
        Op::Mul(_) | Op::Square | Op::Rsqrt => true,
        Op::Sum(_) | Op::Mean(_) => last(node),
        Op::Add(_) => adds(node),
        _ => false,
    };
    let mean = count(&|op| matches!(op, Op::Mean(_)));
    let want = if mean == 1 { 1.0 } else { 1.0 / width as f64 };
    let single = mean + count(&|op| matches!(op, Op::Sum(_))) == 1
        && count(&|op| matches!(op, Op::Rsqrt)) == 1
        && count(&|op| matches!(op, Op::Add(_))) == 1;
    if !close(factors(body, known)?, want) || !single {
        return no("a subgraph that is no such normalization");
    }
    // x times x, x times the root, and that times the factors.
    let scaled = cx.has(1);
    let squares = count(&|op| matches!(op, Op::Square));
    let products = body
        .graph
        .nodes
        .iter()
        .filter(|n| matches!(n.op, Op::Mul(_)))
        .filter(|n| n.inputs.iter().flatten().all(|&t| body.shape(t).is_ok_and(|s| !s.is_empty())))
        .count();
    if products + squares != 2 + usize::from(scaled) {
        return no("a subgraph that is no such normalization");
    }
    let w = if scaled { cx.operand(1)? } else { x.clone() };
    let y = cx.result(0)?;
    if !x.elem.is_float() || !w.elem.is_float() || (scaled && w.shape.as_slice() != [width]) || y.shape != x.shape {
        return no("operands that do not fit");
    }
    let n = rows(&x.shape);
    let coop = team(cx, n, x.row_quads());
    let roles = [("in0", x.elem), ("in1", w.elem), ("acc", Elem::F32), ("out", y.elem)];
    let key = KernelKey::new("rms", &roles)
        .set("SCALE", scaled as i32)
        .set("COOP", coop.is_some() as i32)
        .set("WG", coop.unwrap_or(WG) as i32);
    let params = Params::new().u(n).u(x.row_quads()).u(width).f(epsilon as f32);
    let groups = if coop.is_some() { line(n) } else { line(n.div_ceil(WG)) };
    cx.dispatch(key, &[x.slot, w.slot], &[y.slot], &[], params, groups)
}
