//! Element-wise operators of two or more operands, with broadcasting: shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    no_rule(site)
}
