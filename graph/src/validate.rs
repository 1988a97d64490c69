//! The meaning of a model, checked once after reading (and after a model was built by hand): what the rest of the
//! system takes for granted.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::*;
use crate::op::Op;

/// Checks every subgraph.
///
/// # Errors
/// `Invalid`, naming the subgraph and the tensor or operator.
pub fn model(model: &Model) -> Result<()> {
    for (i, g) in model.subgraphs.iter().enumerate() {
        graph(model, g).map_err(|e| e.at(format!("subgraph {i}")))?;
    }
    Ok(())
}

fn graph(model: &Model, g: &Graph) -> Result<()> {
    for (i, t) in g.tensors.iter().enumerate() {
        tensor(g, t).map_err(|e| e.at(format!("tensor {i} '{}'", t.name)))?;
    }
    let mut written = vec![false; g.tensors.len()];
    for (t, w) in g.tensors.iter().zip(&mut written) {
        *w = t.is_constant() || t.is_variable;
    }
    let mark = |written: &mut Vec<bool>, t: TensorId| {
        written.get_mut(t).map(|w| std::mem::replace(w, true)).ok_or_else(|| Error::invalid(format!("no tensor {t}")))
    };
    for &t in &g.inputs {
        mark(&mut written, t)?;
    }
    for (i, n) in g.nodes.iter().enumerate() {
        let place = |e: Error| e.at(format!("operator {i} {}", n.op.name()));
        for &t in n.inputs.iter().flatten() {
            let known = written.get(t).copied().ok_or_else(|| place(Error::invalid(format!("no tensor {t}"))))?;
            let empty = g.tensors.get(t).is_some_and(|t| t.elements() == 0);
            if !known && !empty {
                return Err(place(Error::invalid(format!("reads tensor {t} before anything wrote it"))));
            }
        }
        for &t in &n.outputs {
            if g.tensors.get(t).is_some_and(Tensor::is_constant) {
                return Err(place(Error::invalid(format!("writes the constant tensor {t}"))));
            }
            mark(&mut written, t).map_err(place)?;
        }
        for sub in called(&n.op) {
            if usize::try_from(sub).ok().is_none_or(|s| s >= model.subgraphs.len()) {
                return Err(place(Error::invalid(format!("calls subgraph {sub}, which does not exist"))));
            }
        }
    }
    for &t in &g.outputs {
        let empty = g.tensors.get(t).is_some_and(|t| t.elements() == 0);
        if !empty && written.get(t) != Some(&true) {
            return Err(Error::invalid(format!("output tensor {t} is never written")));
        }
    }
    Ok(())
}

/// Subgraphs that an operator runs.
pub fn called(op: &Op) -> Vec<i32> {
    match op {
        Op::If(o) => vec![o.then_subgraph_index, o.else_subgraph_index],
        Op::While(o) => vec![o.cond_subgraph_index, o.body_subgraph_index],
        Op::CallOnce(o) => vec![o.init_subgraph_index],
        Op::Call(o) => vec![o.subgraph as i32],
        Op::StablehloComposite(o) => vec![o.decomposition_subgraph_index],
        Op::StablehloWhile(o) => vec![o.cond_subgraph_index, o.body_subgraph_index],
        Op::StablehloCase(o) => o.branch_subgraph_indices.clone().unwrap_or_default(),
        Op::StablehloReduce(o) => vec![o.body_subgraph_index],
        Op::StablehloReduceWindow(o) => vec![o.body_subgraph_index],
        Op::StablehloSort(o) => vec![o.comparator_subgraph_index],
        Op::StablehloScatter(o) => vec![o.update_computation_subgraph_index],
        _ => Vec::new(),
    }
}

fn tensor(g: &Graph, t: &Tensor) -> Result<()> {
    if let Some(data) = &t.data
        && t.sparsity.is_none()
        && !matches!(t.dtype, DType::String | DType::Variant | DType::Resource)
    {
        let want = t.dtype.byte_len(t.elements()).ok_or_else(|| Error::invalid("size overflows"))?;
        if data.len() != want {
            return Err(Error::invalid(format!(
                "{} of shape {:?} needs {want} bytes, the file has {}",
                t.dtype,
                t.shape.as_slice(),
                data.len()
            )));
        }
    }
    if let Some(s) = &t.sparsity {
        sparsity(t, s)?;
    }
    if let Some(q) = &t.quant {
        quant(g, t, q)?;
    }
    Ok(())
}

fn sparsity(t: &Tensor, s: &crate::schema::SparsityParametersT) -> Result<()> {
    let dims = s.dim_metadata.as_ref().map_or(0, Vec::len);
    let order = s.traversal_order.as_deref().unwrap_or_default();
    let blocks = s.block_map.as_deref().unwrap_or_default();
    if dims != t.shape.len().saturating_add(blocks.len()) || order.len() != dims {
        return Err(Error::invalid("sparsity does not fit the tensor's rank"));
    }
    let mut seen = vec![false; dims];
    for &o in order {
        match usize::try_from(o).ok().and_then(|o| seen.get_mut(o)) {
            Some(s) if !*s => *s = true,
            _ => return Err(Error::invalid(format!("sparsity traversal_order {order:?} is no permutation"))),
        }
    }
    if blocks.iter().any(|&b| usize::try_from(b).ok().is_none_or(|b| b >= t.shape.len())) {
        return Err(Error::invalid(format!("sparsity block_map {blocks:?} names a dimension that does not exist")));
    }
    Ok(())
}

fn quant(g: &Graph, t: &Tensor, q: &Quant) -> Result<()> {
    if let Some(bad) = q.scale.iter().find(|s| s.is_infinite() || **s < 0.0) {
        return Err(Error::invalid(format!("quantization scale {bad}")));
    }
    if q.scale.len() > 1 {
        let channels = t.shape.get(q.axis).copied();
        if channels != Some(q.scale.len()) {
            return Err(Error::invalid(format!(
                "{} quantization scales for axis {} of shape {:?}",
                q.scale.len(),
                q.axis,
                t.shape.as_slice()
            )));
        }
    }
    if q.zero_point.len() > 1 && q.zero_point.len() != q.scale.len() {
        return Err(Error::invalid(format!("{} zero points for {} scales", q.zero_point.len(), q.scale.len())));
    }
    let range = match t.dtype {
        DType::I4 => -8..=7,
        DType::I8 => -128..=127,
        DType::U8 => 0..=255,
        DType::I16 => -32768..=32767,
        _ => i32::MIN as i64..=i32::MAX as i64,
    };
    if let Some(bad) = q.zero_point.iter().find(|z| !range.contains(z)) {
        return Err(Error::invalid(format!("zero point {bad} is outside {}", t.dtype)));
    }
    if let Some(b) = &q.blockwise {
        for id in std::iter::once(b.scales).chain(b.zero_points) {
            if g.tensors.get(id).is_none_or(|t| t.data.is_none()) {
                return Err(Error::invalid(format!("blockwise parameters in tensor {id}, which is no constant")));
            }
        }
        if t.shape.last().is_none_or(|&n| n.checked_rem(b.block_size) != Some(0)) {
            return Err(Error::invalid(format!("block size {} does not divide the innermost axis", b.block_size)));
        }
    }
    Ok(())
}
