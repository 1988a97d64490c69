//! Operators that order or pick by value: shape rules.

use super::reduce::size;
use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    let x = site.shape(0)?;
    match site.op {
        Op::TopkV2 => {
            let Some(k) = site.ints(1)? else { return Ok(SmallVec::from_elem(None, 2)) };
            let [k] = k.as_slice() else { return Err(Error::invalid("k is no scalar")) };
            let k = size(*k)?;
            let mut out = Shape::from_slice(x);
            match out.last_mut() {
                Some(d) if *d >= k => *d = k,
                _ => return Err(Error::invalid(format!("the {k} largest of shape {x:?}"))),
            }
            Ok(SmallVec::from_elem(Some(out), 2))
        }
        Op::Unique(_) => {
            let n = site.shape_of_rank(0, 1)?;
            Ok([None, Some(Shape::from_slice(n))].into_iter().collect())
        }
        Op::NonMaxSuppressionV4 | Op::NonMaxSuppressionV5 => {
            let v5 = matches!(site.op, Op::NonMaxSuppressionV5);
            let n = site.ints(2)?;
            let n = match n.as_deref() {
                None => None,
                Some([n]) => Some(Shape::from_slice(&[size(*n)?])),
                Some(_) => return Err(Error::invalid("the number of boxes is no scalar")),
            };
            let scalar = Some(Shape::new());
            Ok(if v5 { [n.clone(), n, scalar].into_iter().collect() } else { [n, scalar].into_iter().collect() })
        }
        Op::Bucketize(_) => one(x),
        _ => no_rule(site),
    }
}
