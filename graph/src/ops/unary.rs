//! Element-wise operators of one operand: shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    no_rule(site)
}
