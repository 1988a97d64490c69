//! Element-wise operators of one operand: shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    one(site.shape(0)?)
}
