//! SELECT, SELECT_V2 and WHERE: shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    let c = site.shape(0)?;
    match site.op {
        // The number of true elements is known to the kernel alone.
        Op::Where => unknown(),
        Op::SelectV2 => one(broadcast(c, &broadcast(site.shape(1)?, site.shape(2)?)?)?),
        Op::Select => {
            let (x, y) = (site.shape(1)?, site.shape(2)?);
            if x != y {
                return Err(Error::invalid(format!("shapes {x:?} and {y:?} differ")));
            }
            let per_row = c.len() == 1 && x.first() == c.first();
            if c.iter().product::<usize>() == 1 && c.len() <= 1 || c == x || per_row {
                one(x)
            } else {
                one(broadcast(c, x)?)
            }
        }
        _ => no_rule(site),
    }
}
