//! Resampling of images: shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::ResizeBilinear(_) | Op::ResizeNearestNeighbor(_) => {
            let x = site.shape_of_rank(0, 4)?;
            let Some(size) = site.ints(1)? else { return unknown() };
            let positive = |d: i64| usize::try_from(d).ok().filter(|&d| d > 0 && d < 1 << 31);
            let &[h, w] = size.as_slice() else {
                return Err(Error::invalid(format!("a size of {} numbers, two are needed", size.len())));
            };
            let (Some(h), Some(w)) = (positive(h), positive(w)) else {
                return Err(Error::invalid(format!("a size of {h} by {w}")));
            };
            if x[1] == 0 || x[2] == 0 {
                return Err(Error::invalid(format!("an image of shape {x:?}")));
            }
            one([x[0], h, w, x[3]].as_slice())
        }
        _ => no_rule(site),
    }
}
