//! Custom operators: kernels.

use super::*;
use litegpu_graph::Op;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    match &site.node.op {
        Op::Custom(c) if c.name == "Convolution2DTransposeBias" => conv::transpose_bias(site, &c.options),
        _ => no_kernel(site),
    }
}
