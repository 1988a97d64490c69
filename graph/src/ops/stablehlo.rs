//! StableHLO operators: shape rules. Unlike TFLite's own they do not broadcast, and their attributes are options, not
//! operands.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::StablehloAdd
        | Op::StablehloSubtract
        | Op::StablehloMultiply
        | Op::StablehloDivide
        | Op::StablehloMaximum
        | Op::StablehloMinimum
        | Op::StablehloPower
        | Op::StablehloRemainder
        | Op::StablehloAnd
        | Op::StablehloOr
        | Op::StablehloShiftLeft
        | Op::StablehloCompare(_) => one(same(site, &[0, 1])?),
        Op::StablehloLogistic
        | Op::StablehloAbs
        | Op::StablehloCosine
        | Op::StablehloExponential
        | Op::StablehloFloor
        | Op::StablehloLog
        | Op::StablehloNegate
        | Op::StablehloRsqrt
        | Op::StablehloTanh
        | Op::StablehloCbrt
        | Op::StablehloConvert => one(site.shape(0)?),
        Op::StablehloSelect => {
            let predicate = site.shape(0)?;
            let shape = same(site, &[1, 2])?;
            if !predicate.is_empty() && predicate != shape.as_slice() {
                return Err(Error::invalid(format!("a predicate of shape {predicate:?} for values of {shape:?}")));
            }
            one(shape)
        }
        Op::StablehloClamp => {
            let x = site.shape(1)?;
            for i in [0, 2] {
                let s = site.shape(i)?;
                if !s.is_empty() && s != x {
                    return Err(Error::invalid(format!("a bound of shape {s:?} for values of {x:?}")));
                }
            }
            one(x)
        }
        Op::StablehloReshape => {
            let (from, to) = (site.shape(0)?, declared(site)?);
            if crate::model::elements(from) != crate::model::elements(&to) {
                return Err(Error::invalid(format!("shape {from:?} does not fit {to:?}")));
            }
            one(to)
        }
        Op::StablehloConcatenate(o) => {
            let mut out = Shape::from_slice(site.shape(0)?);
            let at = axis(o.dimension, out.len())?;
            for i in 1..site.inputs.len() {
                let s = site.shape(i)?;
                if s.len() != out.len() || s.iter().zip(&out).enumerate().any(|(d, (a, b))| d != at && a != b) {
                    return Err(Error::invalid(format!("shapes {:?} and {s:?} do not concatenate", out.as_slice())));
                }
                out[at] = out[at].saturating_add(s[at]);
            }
            one(out)
        }
        Op::StablehloBroadcastInDim(o) => {
            let (from, to) = (site.shape(0)?, declared(site)?);
            let dims = list(&o.broadcast_dimensions);
            let fits = dims.len() == from.len()
                && dims
                    .iter()
                    .zip(from)
                    .all(|(&d, &n)| usize::try_from(d).ok().and_then(|d| to.get(d)).is_some_and(|&t| n == 1 || n == t));
            if !fits {
                return Err(Error::invalid(format!("shape {from:?} along {dims:?} does not broadcast to {to:?}")));
            }
            one(to)
        }
        Op::StablehloSlice(o) => {
            let x = site.shape(0)?;
            let (start, limit, stride) = (list(&o.start_indices), list(&o.limit_indices), list(&o.strides));
            let mut out = Shape::new();
            for (i, &n) in x.iter().enumerate() {
                let at = |l: &[i64], d: i64| l.get(i).copied().unwrap_or(d);
                let (a, b, s) = (at(start, 0), at(limit, n as i64), at(stride, 1));
                if a < 0 || b < a || b > n as i64 || s < 1 {
                    return Err(Error::invalid(format!("slice {a}..{b} by {s} of a dimension of {n}")));
                }
                out.push((b - a) as u64 as usize / s as usize + ((b - a) % s != 0) as usize);
            }
            one(out)
        }
        Op::StablehloDynamicSlice(o) => {
            let x = site.shape(0)?;
            let sizes = sizes(list(&o.slice_sizes))?;
            if sizes.len() != x.len() || sizes.iter().zip(x).any(|(s, n)| s > n) {
                return Err(Error::invalid(format!("slices of {:?} from shape {x:?}", sizes.as_slice())));
            }
            one(sizes)
        }
        Op::StablehloDynamicUpdateSlice => {
            let (x, update) = (site.shape(0)?, site.shape(1)?);
            if x.len() != update.len() || update.iter().zip(x).any(|(s, n)| s > n) {
                return Err(Error::invalid(format!("an update of shape {update:?} in shape {x:?}")));
            }
            one(x)
        }
        Op::StablehloTranspose(o) => {
            let x = site.shape(0)?;
            one(permute(x, list(&o.permutation))?)
        }
        Op::StablehloIota(o) => {
            let to = declared(site)?;
            axis(o.iota_dimension, to.len())?;
            one(to)
        }
        Op::StablehloPad(o) => {
            let x = site.shape(0)?;
            let (low, high) = (list(&o.edge_padding_low), list(&o.edge_padding_high));
            let interior = list(&o.interior_padding);
            if [low.len(), high.len(), interior.len()] != [x.len(); 3] {
                return Err(Error::invalid(format!("padding of another rank than {x:?}")));
            }
            let mut out = Shape::new();
            for (i, &n) in x.iter().enumerate() {
                out.push(padded(n, low[i], high[i], interior[i])?);
            }
            one(out)
        }
        Op::StablehloGather(o) => {
            let (x, indices) = (site.shape(0)?, site.shape(1)?);
            let (offset, collapsed) = (list(&o.offset_dims), list(&o.collapsed_slice_dims));
            let sizes = sizes(list(&o.slice_sizes))?;
            let vector = usize::try_from(o.index_vector_dim).ok().filter(|&d| d <= indices.len());
            let vector = vector.ok_or_else(|| Error::invalid(format!("index_vector_dim {}", o.index_vector_dim)))?;
            if sizes.len() != x.len() || sizes.iter().zip(x).any(|(s, n)| s > n) {
                return Err(Error::invalid(format!("slices of {:?} from shape {x:?}", sizes.as_slice())));
            }
            let mut window =
                sizes.iter().enumerate().filter(|(d, _)| !collapsed.contains(&(*d as i64))).map(|(_, &s)| s);
            let mut batch = indices.iter().enumerate().filter(|(d, _)| *d != vector).map(|(_, &n)| n);
            let rank = offset.len() + indices.len() - (vector < indices.len()) as usize;
            let mut out = Shape::new();
            for d in 0..rank {
                let n = if offset.contains(&(d as i64)) { window.next() } else { batch.next() };
                out.push(n.ok_or_else(|| Error::invalid("offset dimensions and slices do not fit together"))?);
            }
            if window.next().is_some() || batch.next().is_some() {
                return Err(Error::invalid("offset dimensions and slices do not fit together"));
            }
            one(out)
        }
        Op::StablehloScatter(_) => {
            if site.outputs.len() != 1 {
                return Err(Error::unsupported("scattering into several tensors at once"));
            }
            one(site.shape(0)?)
        }
        Op::StablehloReduce(o) => {
            let x = site.shape(0)?;
            if site.outputs.len() != 1 {
                return Err(Error::unsupported("reducing several tensors at once"));
            }
            let dims = list(&o.dimensions);
            one(x.iter().enumerate().filter(|(d, _)| !dims.contains(&(*d as i64))).map(|(_, &n)| n).collect::<Shape>())
        }
        Op::StablehloReduceWindow(o) => {
            let x = site.shape(0)?;
            let mut out = Shape::new();
            let lists = [&o.window_dimensions, &o.window_strides, &o.base_dilations, &o.window_dilations].map(list);
            let padding = list(&o.padding);
            for (i, &n) in x.iter().enumerate() {
                let at = |k: usize| lists[k].get(i).copied().unwrap_or(1);
                let pad = |k: usize| padding.get(2 * i + k).copied().unwrap_or(0);
                let (window, stride, base, dilation) = (at(0), at(1), at(2), at(3));
                if window < 1 || stride < 1 || base < 1 || dilation < 1 {
                    return Err(Error::invalid("windows, strides and dilations must be positive"));
                }
                let n = padded(n, pad(0), pad(1), base - 1)? as i64;
                let span = (window - 1).saturating_mul(dilation).saturating_add(1);
                out.push(if n < span { 0 } else { ((n - span) / stride + 1) as usize });
            }
            one(out)
        }
        Op::StablehloDotGeneral(o) => {
            let (a, b) = (site.shape(0)?, site.shape(1)?);
            let batch = (list(&o.lhs_batching_dimensions), list(&o.rhs_batching_dimensions));
            let contract = (list(&o.lhs_contracting_dimensions), list(&o.rhs_contracting_dimensions));
            let at = |s: &[usize], d: i64| axis(d, s.len()).map(|d| s[d]);
            let mut out = Shape::new();
            for (pairs, keep) in [(batch, true), (contract, false)] {
                if pairs.0.len() != pairs.1.len() {
                    return Err(Error::invalid("dimensions of the operands do not pair"));
                }
                for (&x, &y) in pairs.0.iter().zip(pairs.1) {
                    let (x, y) = (at(a, x)?, at(b, y)?);
                    if x != y {
                        return Err(Error::invalid(format!("shapes {a:?} and {b:?} do not multiply")));
                    }
                    if keep {
                        out.push(x);
                    }
                }
            }
            for (s, batch, contract) in [(a, batch.0, contract.0), (b, batch.1, contract.1)] {
                let free = |d: &usize| !batch.contains(&(*d as i64)) && !contract.contains(&(*d as i64));
                out.extend((0..s.len()).filter(free).map(|d| s[d]));
            }
            one(out)
        }
        Op::StablehloRngBitGenerator(_) => {
            let key = site.shape_of_rank(0, 1)?;
            let shape = site.outputs.get(1).map(|t| t.shape.clone());
            let shape = shape.ok_or_else(|| Error::invalid("two outputs are needed"))?;
            Ok([Some(Shape::from_slice(key)), Some(shape)].into_iter().collect())
        }
        _ => no_rule(site),
    }
}

fn list(l: &Option<Vec<i64>>) -> &[i64] {
    l.as_deref().unwrap_or_default()
}

fn sizes(l: &[i64]) -> Result<Shape> {
    l.iter().map(|&n| usize::try_from(n).map_err(|_| Error::invalid(format!("a size of {n}")))).collect()
}

fn declared(site: &Site<'_>) -> Result<Shape> {
    site.outputs.first().map(|t| t.shape.clone()).ok_or_else(|| Error::invalid("no output"))
}

fn same(site: &Site<'_>, operands: &[usize]) -> Result<Shape> {
    let first = site.shape(operands[0])?;
    for &i in operands {
        if site.shape(i)? != first {
            return Err(Error::invalid(format!("operands of shapes {first:?} and {:?}", site.shape(i)?)));
        }
    }
    Ok(Shape::from_slice(first))
}

fn permute(x: &[usize], permutation: &[i64]) -> Result<Shape> {
    let mut seen = vec![false; x.len()];
    let mut out = Shape::new();
    for &d in permutation {
        let d = axis(d, x.len())?;
        if std::mem::replace(&mut seen[d], true) {
            return Err(Error::invalid(format!("permutation {permutation:?} names an axis twice")));
        }
        out.push(x[d]);
    }
    if out.len() == x.len() { Ok(out) } else { Err(Error::invalid(format!("permutation {permutation:?} of {x:?}"))) }
}

/// The size of a dimension with padding at the ends and between elements; negative padding cuts.
fn padded(n: usize, low: i64, high: i64, interior: i64) -> Result<usize> {
    if interior < 0 {
        return Err(Error::invalid(format!("interior padding of {interior}")));
    }
    let inner = (n as i128) + (n as i128 - 1).max(0) * interior as i128;
    let total = (inner + low as i128 + high as i128).max(0);
    usize::try_from(total).map_err(|_| Error::invalid("the padded size overflows"))
}
