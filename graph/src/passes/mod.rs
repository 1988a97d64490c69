//! Rewrites of a graph before it is planned. Each keeps tensor ids (only [`compact`] renumbers), and leaves a graph that
//! [`crate::validate`] accepts.

pub mod compact;
pub mod constants;
pub mod densify;
pub mod fold_float16;
pub mod pad;

use crate::error::Result;
use crate::model::{Model, Node, TensorId};

/// What every run wants: sparse constants made dense, float16 constants read directly by operands that `accepts`
/// admits, dead operators gone.
///
/// # Errors
/// `Invalid` for sparse constants whose indices are broken, with the subgraph and the tensor.
pub fn simplify(model: &mut Model, accepts: impl Fn(&Node, usize) -> bool) -> Result<()> {
    for i in 0..model.subgraphs.len() {
        let keep = exported(model, i);
        if let Some(g) = model.subgraphs.get_mut(i) {
            densify::run(g).map_err(|e| e.at(format!("subgraph {i}")))?;
            fold_float16::run(g, &accepts);
            constants::remove_dead(g, &keep);
        }
    }
    Ok(())
}

/// Tensors of a subgraph that signatures name as outputs: a caller may read them.
pub fn exported(model: &Model, subgraph: usize) -> Vec<TensorId> {
    let of = model.signatures.iter().filter(|s| s.subgraph == subgraph);
    of.flat_map(|s| s.outputs.iter().map(|(_, t)| *t)).collect()
}
