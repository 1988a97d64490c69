//! Operators that change or read the shape and move no element: shape rules.

use super::*;
use crate::model::elements;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    let x = site.shape(0)?;
    match site.op {
        Op::Reshape(o) => {
            let operand = site.inputs.get(1).copied().flatten();
            let wanted: SmallVec<[i64; 8]> = match (operand, &o.new_shape) {
                // Old files keep the shape in the options and may carry an operand of another rank.
                (Some(f), Some(s)) if f.shape.len() != 1 => s.iter().map(|&d| d as i64).collect(),
                (Some(_), _) => match site.ints(1)? {
                    Some(v) => v,
                    None => return unknown(),
                },
                // [0] is how the first files wrote a scalar.
                (None, Some(s)) if s.as_slice() == [0] && elements(x) == 1 => SmallVec::new(),
                (None, Some(s)) => s.iter().map(|&d| d as i64).collect(),
                (None, None) => SmallVec::new(),
            };
            one(reshaped(x, &wanted)?)
        }
        Op::Squeeze(o) => {
            let dims = o.squeeze_dims.as_deref().unwrap_or_default();
            let mut gone = SmallVec::<[bool; 8]>::from_elem(dims.is_empty(), x.len());
            for &d in dims {
                let a = axis(d as i64, x.len())?;
                match (x.get(a), gone.get_mut(a)) {
                    (Some(1), Some(g)) => *g = true,
                    _ => return Err(Error::invalid(format!("axis {d} of shape {x:?} is not 1"))),
                }
            }
            one(x.iter().zip(gone).filter(|&(&d, g)| !(g && d == 1)).map(|(&d, _)| d).collect::<Shape>())
        }
        Op::ExpandDims => {
            let Some(a) = site.ints(1)? else { return unknown() };
            let a = match a.as_slice() {
                [a] => axis(*a, x.len() + 1)?,
                a => return Err(Error::invalid(format!("{} axes given, one is needed", a.len()))),
            };
            let mut out = Shape::from_slice(x);
            out.insert(a, 1);
            one(out)
        }
        Op::Shape(_) => one([x.len()].as_slice()),
        Op::Rank => one([].as_slice()),
        _ => no_rule(site),
    }
}

/// The shape that RESHAPE gives `x`: `wanted` with at most one -1, which takes what is left.
///
/// # Errors
/// `Invalid` when the number of elements would change.
pub fn reshaped(x: &[usize], wanted: &[i64]) -> Result<Shape> {
    let n = elements(x);
    let bad = || Error::invalid(format!("shape {x:?} cannot become {wanted:?}"));
    let mut rest = None;
    let mut out = Shape::new();
    for (i, &d) in wanted.iter().enumerate() {
        if d == -1 && rest.is_none() {
            rest = Some(i);
            out.push(1);
        } else {
            out.push(usize::try_from(d).map_err(|_| bad())?);
        }
    }
    if let Some(slot) = rest.and_then(|i| out.get_mut(i)) {
        *slot = 1;
        let known = elements(&out);
        // Where a zero leaves the rest open, it is what the other dimensions would give.
        let whole = |s: &[usize]| s.iter().filter(|&&d| d != 0).fold(1usize, |n, &d| n.saturating_mul(d));
        let d = match (known, n) {
            (0, 0) => whole(x) / whole(&out),
            (0, _) => return Err(bad()),
            _ => n / known,
        };
        if let Some(slot) = rest.and_then(|i| out.get_mut(i)) {
            *slot = d;
        }
    }
    if elements(&out) == n { Ok(out) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reshapes() {
        let to = |x: &[usize], wanted: &[i64]| reshaped(x, wanted).map(|s| s.to_vec());
        assert_eq!(to(&[2, 6], &[-1, 4]), Ok(vec![3, 4]));
        assert_eq!(to(&[1], &[]), Ok(vec![]));
        assert_eq!(to(&[1, 4, 0], &[2, 0, -1]), Ok(vec![2, 0, 2]));
        assert_eq!(to(&[0, 4], &[-1, 4]), Ok(vec![0, 4]));
        for bad in [[5, -1], [-1, -1], [0, -1], [-2, 6]] {
            assert!(to(&[2, 6], &bad).is_err(), "{bad:?}");
        }
    }
}
