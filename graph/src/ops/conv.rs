//! Convolutions: shape rules.

use super::*;
use crate::schema::Padding;

/// One spatial axis of a sliding window: how many positions it has and how far it hangs over the edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Positions, i.e. the output's extent.
    pub out: usize,
    /// Elements of padding before the first input element.
    pub before: usize,
    /// Elements of padding after the last input element.
    pub after: usize,
}

/// Places a window of `filter` taps, `dilation` apart, on an axis of `input` elements: SAME becomes numbers here and
/// nowhere else.
///
/// # Errors
/// `Invalid` for a stride, dilation or filter that is not positive, and for sizes that overflow.
pub fn window(padding: Padding, input: usize, filter: usize, stride: i32, dilation: i32) -> Result<Window> {
    if stride <= 0 || dilation <= 0 || filter == 0 {
        return Err(Error::invalid(format!(
            "filter {filter}, stride {stride}, dilation {dilation}: all must be positive"
        )));
    }
    let small = |n: usize| i64::try_from(n).ok().filter(|&n| n < 1 << 31);
    let (Some(input), Some(filter)) = (small(input), small(filter)) else {
        return Err(Error::invalid(format!("a window of {filter} on {input} elements is too large")));
    };
    let (stride, reach) = (stride as i64, (filter - 1) * dilation as i64 + 1);
    let out = match padding {
        Padding::SAME => (input + stride - 1) / stride,
        Padding::VALID => ((input + stride - reach) / stride).max(0),
        p => return Err(Error::invalid(format!("padding {p:?}"))),
    };
    let total = ((out - 1) * stride + reach - input).max(0);
    let narrow = |n: i64| usize::try_from(n).unwrap_or(0);
    Ok(Window { out: narrow(out), before: narrow(total / 2), after: narrow(total - total / 2) })
}

/// The extents of an output whose shape an operand gives (transposed convolutions): `None` until it is known.
fn given(site: &Site<'_>, rank: usize) -> Result<Option<Shape>> {
    let Some(v) = site.ints(0)? else { return Ok(None) };
    if v.len() != rank {
        return Err(Error::invalid(format!("an output shape of {} dimensions, {rank} are needed", v.len())));
    }
    v.iter()
        .map(|&d| {
            let fits = usize::try_from(d).ok().filter(|&d| d < 1 << 31);
            fits.ok_or_else(|| Error::invalid(format!("output dimension {d}")))
        })
        .collect::<Result<Shape>>()
        .map(Some)
}

/// Checks a transposed convolution's axis: the forward convolution of the output must give the input.
fn inverse(padding: Padding, out: usize, filter: usize, stride: i32, dilation: i32, input: usize) -> Result<()> {
    let w = window(padding, out, filter, stride, dilation)?;
    if w.out == input {
        return Ok(());
    }
    Err(Error::invalid(format!("an output of {out} needs an input of {}, {input} given", w.out)))
}

/// The extent of a transposed convolution's output when nothing else says it: what `stride` spreads, plus, with VALID
/// padding, the part of the filter that hangs over.
pub fn transposed(padding: Padding, input: usize, filter: usize, stride: i32) -> Result<usize> {
    let stride = usize::try_from(stride).ok().filter(|&s| s > 0);
    let stride = stride.ok_or_else(|| Error::invalid("a stride must be positive"))?;
    let out = match padding {
        Padding::SAME => input.checked_mul(stride),
        _ => input.saturating_sub(1).checked_mul(stride).and_then(|n| n.checked_add(filter)),
    };
    out.filter(|&n| n < 1 << 31).ok_or_else(|| Error::invalid("the output is too large"))
}

fn nonzero(what: &str, shape: &[usize]) -> Result<()> {
    if shape.contains(&0) { Err(Error::invalid(format!("{what} of shape {shape:?}"))) } else { Ok(()) }
}

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::Conv2d(o) => {
            let (x, f) = (site.shape_of_rank(0, 4)?, site.shape_of_rank(1, 4)?);
            nonzero("a filter", f)?;
            if x[3] == 0 || x[3] % f[3] != 0 || f[0] % (x[3] / f[3]) != 0 {
                return Err(Error::invalid(format!("a filter of shape {f:?} on an input of shape {x:?}")));
            }
            let h = window(o.padding, x[1], f[1], o.stride_h, o.dilation_h_factor)?;
            let w = window(o.padding, x[2], f[2], o.stride_w, o.dilation_w_factor)?;
            one([x[0], h.out, w.out, f[0]].as_slice())
        }
        Op::DepthwiseConv2d(o) => {
            let (x, f) = (site.shape_of_rank(0, 4)?, site.shape_of_rank(1, 4)?);
            nonzero("a filter", f)?;
            if f[0] != 1 || x[3] == 0 || f[3] % x[3] != 0 {
                return Err(Error::invalid(format!("a filter of shape {f:?} on an input of shape {x:?}")));
            }
            let h = window(o.padding, x[1], f[1], o.stride_h, o.dilation_h_factor)?;
            let w = window(o.padding, x[2], f[2], o.stride_w, o.dilation_w_factor)?;
            one([x[0], h.out, w.out, f[3]].as_slice())
        }
        Op::TransposeConv(o) => {
            let (f, x) = (site.shape_of_rank(1, 4)?, site.shape_of_rank(2, 4)?);
            nonzero("a filter", f)?;
            let Some(out) = given(site, 4)? else { return unknown() };
            if out[0] != x[0] || out[3] != f[0] || x[3] != f[3] {
                return Err(Error::invalid(format!("input {x:?}, filter {f:?} and output {out:?} do not fit")));
            }
            inverse(o.padding, out[1], f[1], o.stride_h, 1, x[1])?;
            inverse(o.padding, out[2], f[2], o.stride_w, 1, x[2])?;
            one(out)
        }
        Op::Conv3d(o) => {
            let (x, f) = (site.shape_of_rank(0, 5)?, site.shape_of_rank(1, 5)?);
            nonzero("a filter", f)?;
            if x[4] != f[3] {
                return Err(Error::invalid(format!("a filter of shape {f:?} on an input of shape {x:?}")));
            }
            let d = window(o.padding, x[1], f[0], o.stride_d, o.dilation_d_factor)?;
            let h = window(o.padding, x[2], f[1], o.stride_h, o.dilation_h_factor)?;
            let w = window(o.padding, x[3], f[2], o.stride_w, o.dilation_w_factor)?;
            one([x[0], d.out, h.out, w.out, f[4]].as_slice())
        }
        Op::Conv3dTranspose(o) => {
            let (f, x) = (site.shape_of_rank(1, 5)?, site.shape_of_rank(2, 5)?);
            nonzero("a filter", f)?;
            let Some(out) = given(site, 5)? else { return unknown() };
            if out[0] != x[0] || out[4] != f[3] || x[4] != f[4] {
                return Err(Error::invalid(format!("input {x:?}, filter {f:?} and output {out:?} do not fit")));
            }
            inverse(o.padding, out[1], f[0], o.stride_d, o.dilation_d_factor, x[1])?;
            inverse(o.padding, out[2], f[1], o.stride_h, o.dilation_h_factor, x[2])?;
            inverse(o.padding, out[3], f[2], o.stride_w, o.dilation_w_factor, x[3])?;
            one(out)
        }
        _ => no_rule(site),
    }
}

/// Attributes of MediaPipe's custom `Convolution2DTransposeBias`, which stores three little-endian integers: padding
/// (1 SAME, 2 VALID) and the strides across and down.
///
/// # Errors
/// `Invalid` when the options are too short or out of range.
pub fn transpose_bias_options(options: &[u8]) -> Result<(Padding, [i32; 2])> {
    let int = |i: usize| options.as_chunks::<4>().0.get(i).map(|b| i32::from_le_bytes(*b));
    let (Some(padding), Some(w), Some(h)) = (int(0), int(1), int(2)) else {
        return Err(Error::invalid(format!("options of {} bytes", options.len())));
    };
    let padding = match padding {
        1 => Padding::SAME,
        2 => Padding::VALID,
        p => return Err(Error::invalid(format!("padding {p}"))),
    };
    if w <= 0 || h <= 0 {
        return Err(Error::invalid(format!("strides {h}, {w}")));
    }
    Ok((padding, [h, w]))
}

/// `Convolution2DTransposeBias`: input, filter (OHWI), bias.
pub(super) fn transpose_bias(site: &Site<'_>, options: &[u8]) -> Result<Inferred> {
    let (padding, [sh, sw]) = transpose_bias_options(options)?;
    let (x, f) = (site.shape_of_rank(0, 4)?, site.shape_of_rank(1, 4)?);
    nonzero("a filter", f)?;
    if x[3] != f[3] {
        return Err(Error::invalid(format!("a filter of shape {f:?} on an input of shape {x:?}")));
    }
    let h = transposed(padding, x[1], f[1], sh)?;
    let w = transposed(padding, x[2], f[2], sw)?;
    one([x[0], h, w, f[0]].as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows() {
        let w = |p, i, f, s, d| window(p, i, f, s, d).unwrap();
        assert_eq!(w(Padding::SAME, 224, 3, 2, 1), Window { out: 112, before: 0, after: 1 });
        assert_eq!(w(Padding::SAME, 7, 3, 1, 2), Window { out: 7, before: 2, after: 2 });
        assert_eq!(w(Padding::VALID, 7, 3, 2, 1), Window { out: 3, before: 0, after: 0 });
        assert_eq!(w(Padding::VALID, 2, 3, 1, 1), Window { out: 0, before: 0, after: 0 });
        assert!(window(Padding::SAME, 7, 3, 0, 1).is_err());
        assert!(window(Padding::SAME, usize::MAX, 3, 1, 1).is_err());
        assert!(window(Padding::SAME, 1, usize::MAX, 1, i32::MAX).is_err());
    }
}
