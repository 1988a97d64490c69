//! Reductions, scans and segment operators: shape rules.

use super::*;
use crate::model::elements;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    let x = site.shape(0)?;
    match site.op {
        Op::Mean(o)
        | Op::Sum(o)
        | Op::ReduceProd(o)
        | Op::ReduceMax(o)
        | Op::ReduceMin(o)
        | Op::ReduceAny(o)
        | Op::ReduceAll(o) => {
            let Some(axes) = site.ints(1)? else { return unknown() };
            let gone = axes_mask(&axes, x.len())?;
            let kept = x.iter().zip(gone).filter(|&(_, g)| o.keep_dims || !g);
            one(kept.map(|(&d, g)| if g { 1 } else { d }).collect::<Shape>())
        }
        Op::ArgMax(_) | Op::ArgMin(_) => {
            let Some(a) = site.ints(1)? else { return unknown() };
            let [a] = a.as_slice() else {
                return Err(Error::invalid(format!("{} axes given, one is needed", a.len())));
            };
            let mut out = Shape::from_slice(x);
            out.remove(axis(*a, x.len())?);
            one(out)
        }
        Op::Cumsum(_) => one(x),
        Op::SegmentSum => {
            let Some(ids) = site.ints(1)? else { return unknown() };
            let rows = ids.last().map_or(Ok(0), |&l| usize::try_from(l).map(|l| l.saturating_add(1)));
            let rows = rows.map_err(|_| Error::invalid("negative segment number"))?;
            let rest = x.get(1..).ok_or_else(|| Error::invalid("data is a scalar"))?;
            one(std::iter::once(rows).chain(rest.iter().copied()).collect::<Shape>())
        }
        Op::UnsortedSegmentProd | Op::UnsortedSegmentMax | Op::UnsortedSegmentSum | Op::UnsortedSegmentMin => {
            let ids = site.shape(1)?;
            let rest = x
                .get(ids.len()..)
                .filter(|_| x.starts_with(ids))
                .ok_or_else(|| Error::invalid(format!("segment numbers of shape {ids:?} for data of shape {x:?}")))?;
            let Some(n) = site.ints(2)? else { return unknown() };
            let [n] = n.as_slice() else { return Err(Error::invalid("the number of segments is no scalar")) };
            one(std::iter::once(size(*n)?).chain(rest.iter().copied()).collect::<Shape>())
        }
        Op::ReduceWindow(_) => {
            let (Some(window), Some(strides), Some(dilations)) = (site.ints(2)?, site.ints(3)?, site.ints(4)?) else {
                return unknown();
            };
            if window.len() != x.len() || strides.len() != x.len() || dilations.len() != x.len() {
                return Err(Error::invalid(format!("window of rank {} on shape {x:?}", window.len())));
            }
            let dims = x.iter().zip(&window).zip(strides.iter().zip(&dilations));
            let out = dims.map(|((&d, &w), (&s, &l))| {
                let (w, s, l) = (size(w)?, size(s)?, size(l)?);
                if w == 0 || s == 0 || l == 0 {
                    return Err(Error::invalid("window, stride or dilation is 0"));
                }
                let reach = (w - 1).saturating_mul(l).saturating_add(1);
                Ok(if d < reach { 0 } else { (d - reach) / s + 1 })
            });
            one(out.collect::<Result<Shape>>()?)
        }
        _ => no_rule(site),
    }
}

/// For each of `rank` dimensions, whether `axes` (negative counts from the end, repeats allowed) names it.
///
/// # Errors
/// `Invalid` for an axis that is out of range.
pub fn axes_mask(axes: &[i64], rank: usize) -> Result<SmallVec<[bool; 8]>> {
    let mut gone = SmallVec::from_elem(false, rank);
    for &a in axes {
        // A scalar has no axis; the reference accepts 0 and -1 for it.
        if rank == 0 && (a == 0 || a == -1) {
            continue;
        }
        let a = axis(a, rank)?;
        if let Some(g) = gone.get_mut(a) {
            *g = true;
        }
    }
    Ok(gone)
}

/// A size from a value: not negative.
pub(super) fn size(v: i64) -> Result<usize> {
    usize::try_from(v).map_err(|_| Error::invalid(format!("size {v} is negative")))
}

/// A shape from values: none negative, and the product representable.
pub(super) fn sizes(v: &[i64]) -> Result<Shape> {
    let s = v.iter().map(|&d| size(d)).collect::<Result<Shape>>()?;
    if elements(&s) > isize::MAX as usize {
        return Err(Error::invalid(format!("shape {v:?} is too large")));
    }
    Ok(s)
}
