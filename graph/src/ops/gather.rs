//! Operators that look elements up or scatter them: shape rules.

use super::reduce::sizes;
use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::Gather(o) => {
            let (x, ids) = (site.shape(0)?, site.shape(1)?);
            let (a, b) = gather_axes(o.axis, o.batch_dims, x, ids)?;
            let parts = [x.get(..a), ids.get(b..), x.get(a + 1..)];
            one(parts.into_iter().flatten().flatten().copied().collect::<Shape>())
        }
        Op::GatherNd => {
            let (x, ids) = (site.shape(0)?, site.shape(1)?);
            let (&depth, rows) = ids.split_last().ok_or_else(|| Error::invalid("the indices are a scalar"))?;
            let rest =
                x.get(depth..).ok_or_else(|| Error::invalid(format!("indices of depth {depth} for shape {x:?}")))?;
            one(rows.iter().chain(rest).copied().collect::<Shape>())
        }
        Op::ScatterNd => {
            let ids = site.shape(0)?;
            let updates = site.shape(1)?;
            let Some(s) = site.ints(2)? else { return unknown() };
            let s = sizes(&s)?;
            let (&depth, rows) = ids.split_last().ok_or_else(|| Error::invalid("the indices are a scalar"))?;
            let want = s.get(depth..).map(|rest| rows.iter().chain(rest).copied().collect::<Shape>());
            if want.as_deref() != Some(updates) {
                return Err(Error::invalid(format!(
                    "indices of shape {ids:?} and updates of shape {updates:?} for shape {:?}",
                    s.as_slice()
                )));
            }
            one(s)
        }
        Op::EmbeddingLookup => {
            let (ids, table) = (site.shape_of_rank(0, 1)?, site.shape(1)?);
            let rest = table.get(1..).filter(|r| !r.is_empty());
            let rest = rest.ok_or_else(|| Error::invalid(format!("a table of shape {table:?}")))?;
            one(ids.iter().chain(rest).copied().collect::<Shape>())
        }
        Op::EmbeddingLookupSparse(_) => {
            let table = site.shape(4)?;
            let depth = site.shape_of_rank(1, 2)?.get(1).copied().unwrap_or(0);
            let Some(dense) = site.ints(2)? else { return unknown() };
            let lead = depth.checked_sub(1).and_then(|n| dense.get(..n));
            let (Some(lead), Some(rest)) = (lead, table.get(1..)) else {
                return Err(Error::invalid(format!(
                    "indices of depth {depth} for a dense shape {:?}",
                    dense.as_slice()
                )));
            };
            one(sizes(lead)?.iter().chain(rest).copied().collect::<Shape>())
        }
        Op::HashtableLookup => {
            let (ids, values) = (site.shape_of_rank(0, 1)?, site.shape(2)?);
            let rest = values.get(1..).ok_or_else(|| Error::invalid("the values are a scalar"))?;
            let found = ids.iter().chain(rest).copied().collect::<Shape>();
            Ok([Some(found), Some(Shape::from_slice(ids))].into_iter().collect())
        }
        _ => no_rule(site),
    }
}

/// GATHER's axis and number of batch dimensions, made positive and checked.
///
/// # Errors
/// `Invalid` when they do not fit the shapes.
pub fn gather_axes(axis_: i32, batch: i32, x: &[usize], ids: &[usize]) -> Result<(usize, usize)> {
    let a = axis(axis_ as i64, x.len())?;
    let b = if batch < 0 { batch as i64 + ids.len() as i64 } else { batch as i64 };
    let b = usize::try_from(b).ok().filter(|&b| b <= a && x.get(..b).is_some() && x.get(..b) == ids.get(..b));
    b.map(|b| (a, b)).ok_or_else(|| {
        Error::invalid(format!("{batch} batch dimensions and axis {axis_} for shapes {x:?} and {ids:?}"))
    })
}
