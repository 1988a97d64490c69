//! Kernels, one file per operator family.

mod binary;
mod control;
mod conv;
mod custom;
mod fill;
mod gather;
mod layout;
mod matmul;
mod normalize;
mod pool;
mod quantize;
mod recurrent;
mod reduce;
mod reshape;
mod resize;
mod select;
mod signal;
mod sort;
mod stablehlo;
#[cfg(test)]
mod testing;
mod text;
mod unary;

use crate::chain::Step;
use crate::kernel::{Kernel, Site};
use litegpu_graph::{Error, Family, Result};

/// Prepares the kernel of one node.
///
/// # Errors
/// `Unsupported` when the executor has no kernel for the operator in these types; `Invalid` when the node's operands
/// or attributes do not fit together.
pub fn prepare(site: &Site<'_>) -> Result<Kernel> {
    // Chosen, then called: see litegpu_graph::ops::infer.
    let family: fn(&Site<'_>) -> Result<Kernel> = match site.node.op.family() {
        Family::Conv => conv::prepare,
        Family::Matmul => matmul::prepare,
        Family::Pool => pool::prepare,
        Family::Unary => unary::prepare,
        Family::Binary => binary::prepare,
        Family::Select => select::prepare,
        Family::Quantize => quantize::prepare,
        Family::Normalize => normalize::prepare,
        Family::Reduce => reduce::prepare,
        Family::Reshape => reshape::prepare,
        Family::Layout => layout::prepare,
        Family::Fill => fill::prepare,
        Family::Gather => gather::prepare,
        Family::Resize => resize::prepare,
        Family::Sort => sort::prepare,
        Family::Recurrent => recurrent::prepare,
        Family::Control => control::prepare,
        Family::Signal => signal::prepare,
        Family::Text => text::prepare,
        Family::Stablehlo => stablehlo::prepare,
        Family::Custom => custom::prepare,
    };
    family(site).map_err(|e: Error| e.at(site.node.op.name()))
}

/// The operator as a step of a chain: what it does to elements that another operator has just written.
pub(crate) fn step(site: &Site<'_>) -> Option<Step> {
    match site.node.op.family() {
        Family::Unary => unary::step(site),
        Family::Binary => binary::step(site),
        _ => None,
    }
}

/// The answer for an operator of the family that has no kernel.
pub(crate) fn no_kernel(site: &Site<'_>) -> Result<Kernel> {
    let types: Vec<_> =
        site.node.inputs.iter().flatten().filter_map(|&t| site.graph.tensors.get(t)).map(|t| t.dtype.name()).collect();
    Err(Error::unsupported(format!("no CPU kernel for {} on {}", site.node.op.name(), types.join(", "))))
}
