//! Custom operators: shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::Custom(c) if c.name == "Convolution2DTransposeBias" => conv::transpose_bias(site, &c.options),
        _ => no_rule(site),
    }
}
