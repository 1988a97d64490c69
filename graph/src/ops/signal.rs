//! Fourier transforms and complex numbers: shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::Rfft2d => {
            let x = site.shape(0)?;
            if x.len() < 2 {
                return Err(Error::invalid(format!("input of shape {x:?}, at least 2 dimensions are needed")));
            }
            let Some(length) = site.ints(1)? else { return unknown() };
            let &[height, width] = length.as_slice() else {
                return Err(Error::invalid(format!("fft_length has {} elements, 2 are needed", length.len())));
            };
            let size = |n: i64| match usize::try_from(n) {
                Ok(n) if n.is_power_of_two() => Ok(n),
                _ => Err(Error::invalid(format!("fft_length {n} is no power of two"))),
            };
            let mut out = Shape::from_slice(x);
            if let [.., h, w] = out.as_mut_slice() {
                *h = size(height)?;
                *w = size(width)? / 2 + 1;
            }
            one(out)
        }
        Op::Imag | Op::Real | Op::ComplexAbs => one(site.shape(0)?),
        _ => no_rule(site),
    }
}
