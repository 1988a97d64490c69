//! Operators that make tensors: shape rules.

use super::reduce::{size, sizes};
use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::Fill | Op::RandomUniform(_) | Op::RandomStandardNormal(_) => match site.ints(0)? {
            Some(s) => one(sizes(&s)?),
            None => unknown(),
        },
        Op::Range => match (site.input(0)?.value, site.input(1)?.value, site.input(2)?.value) {
            (Some(a), Some(b), Some(s)) => one([range_count(site.input(0)?.dtype, a, b, s)?].as_slice()),
            _ => unknown(),
        },
        Op::OneHot(o) => {
            let x = site.shape(0)?;
            let a = if o.axis == -1 { x.len() } else { axis(o.axis as i64, x.len() + 1)? };
            let Some(d) = site.ints(1)? else { return unknown() };
            let [d] = d.as_slice() else { return Err(Error::invalid("depth is no scalar")) };
            let mut out = Shape::from_slice(x);
            out.insert(a, size(*d)?);
            one(out)
        }
        Op::SparseToDense(_) => match site.ints(1)? {
            Some(s) => one(sizes(&s)?),
            None => unknown(),
        },
        Op::MatrixDiag => {
            let mut out = Shape::from_slice(site.shape(0)?);
            out.push(*out.last().ok_or_else(|| Error::invalid("a scalar has no diagonal"))?);
            one(out)
        }
        Op::MatrixSetDiag => {
            let x = site.shape(0)?;
            let d = site.shape(1)?;
            let [batch @ .., h, w] = x else { return Err(Error::invalid(format!("shape {x:?} is no matrix"))) };
            if d.split_last() != Some((h.min(w), batch)) {
                return Err(Error::invalid(format!("a diagonal of shape {d:?} for shape {x:?}")));
            }
            one(x)
        }
        Op::BroadcastArgs => {
            let (a, b) = (site.shape_of_rank(0, 1)?, site.shape_of_rank(1, 1)?);
            one([a.iter().chain(b).copied().max().unwrap_or(0)].as_slice())
        }
        Op::Multinomial(_) => {
            let x = site.shape_of_rank(0, 2)?;
            let Some(n) = site.ints(1)? else { return unknown() };
            let [n] = n.as_slice() else { return Err(Error::invalid("the number of samples is no scalar")) };
            one([x.first().copied().unwrap_or(0), size(*n)?].as_slice())
        }
        _ => no_rule(site),
    }
}

/// How many elements RANGE makes, from the little-endian bytes of start, limit and step.
///
/// # Errors
/// `Invalid` for a step of zero or of the wrong sign, `Unsupported` for other types.
pub fn range_count(dtype: DType, start: &[u8], limit: &[u8], step: &[u8]) -> Result<usize> {
    let bad = |what: &str| Error::invalid(format!("{what} in RANGE"));
    let no_value = || bad("no value");
    match dtype {
        DType::I32 | DType::I64 => {
            let int = |b: &[u8]| {
                if dtype == DType::I32 {
                    b.first_chunk().map(|b| i32::from_le_bytes(*b) as i128)
                } else {
                    b.first_chunk().map(|b| i64::from_le_bytes(*b) as i128)
                }
                .ok_or_else(no_value)
            };
            let (a, b, s) = (int(start)?, int(limit)?, int(step)?);
            if s == 0 || (b - a).signum() * s.signum() < 0 {
                return Err(bad("a step that does not lead to the limit"));
            }
            usize::try_from(((b - a).unsigned_abs()).div_ceil(s.unsigned_abs())).map_err(|_| bad("too many elements"))
        }
        DType::F32 => {
            let real = |b: &[u8]| b.first_chunk().map(|b| f32::from_le_bytes(*b)).ok_or_else(no_value);
            let (a, b, s) = (real(start)?, real(limit)?, real(step)?);
            if !(a.is_finite() && b.is_finite() && s.is_finite())
                || s == 0.0
                || (b > a && s < 0.0)
                || (b < a && s > 0.0)
            {
                return Err(bad("a step that does not lead to the limit"));
            }
            let n = ((b - a) / s).abs().ceil() as f64;
            if n < 1e15 { Ok(n as usize) } else { Err(bad("too many elements")) }
        }
        d => Err(Error::unsupported(format!("RANGE of {d}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let int =
            |a: i32, b: i32, s: i32| range_count(DType::I32, &a.to_le_bytes(), &b.to_le_bytes(), &s.to_le_bytes());
        assert_eq!(int(0, 7, 2), Ok(4));
        assert_eq!(int(5, -5, -5), Ok(2));
        assert_eq!(int(3, 3, -1), Ok(0));
        assert_eq!(int(i32::MIN, i32::MAX, 1), Ok(u32::MAX as usize));
        assert!(int(0, 7, 0).is_err() && int(0, 7, -1).is_err());
        let real =
            |a: f32, b: f32, s: f32| range_count(DType::F32, &a.to_le_bytes(), &b.to_le_bytes(), &s.to_le_bytes());
        assert_eq!(real(0.0, 1.0, 0.3), Ok(4));
        assert!(real(0.0, f32::INFINITY, 1.0).is_err() && real(0.0, 1.0, f32::NAN).is_err());
        assert!(real(0.0, 3e38, 1e-38).is_err());
    }
}
