//! Normalization over the innermost axis: shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::L2Normalization(_) | Op::Softmax(_) | Op::LogSoftmax => {
            let x = site.shape(0)?;
            if x.is_empty() {
                return Err(Error::invalid("a scalar has no axis to normalize"));
            }
            one(x)
        }
        Op::LocalResponseNormalization(_) => one(site.shape_of_rank(0, 4)?),
        _ => no_rule(site),
    }
}
