//! Text operators: shape rules.

use super::*;
use crate::schema::LSHProjectionType;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::LshProjection(o) => {
            let &[hashes, bits] = site.shape_of_rank(0, 2)? else { return no_rule(site) };
            if o.type_ == LSHProjectionType::DENSE {
                one([hashes.saturating_mul(bits)].as_slice())
            } else {
                one([hashes].as_slice())
            }
        }
        Op::SkipGram(_) => unknown(),
        _ => no_rule(site),
    }
}
