//! Operators that move elements by position alone: shape rules.

use super::reduce::{axes_mask, size, sizes};
use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::Concatenation(o) => {
            let first = site.shape(0)?;
            let a = axis(o.axis as i64, first.len())?;
            let mut out = Shape::from_slice(first);
            let mut total = 0usize;
            for i in 0..site.inputs.len() {
                let s = site.shape(i)?;
                let fits = s.len() == out.len() && s.iter().zip(&out).enumerate().all(|(d, (x, y))| d == a || x == y);
                if !fits {
                    return Err(Error::invalid(format!("shapes {first:?} and {s:?} cannot be joined on axis {a}")));
                }
                total = total.saturating_add(s.get(a).copied().unwrap_or(0));
            }
            if let Some(d) = out.get_mut(a) {
                *d = total;
            }
            one(out)
        }
        Op::DepthToSpace(o) => {
            let (b, [n, h, w, c]) = (block(o.block_size)?, nhwc(site)?);
            if c % b.saturating_mul(b) != 0 {
                return Err(Error::invalid(format!("{c} channels do not make blocks of {b} by {b}")));
            }
            one([n, h.saturating_mul(b), w.saturating_mul(b), c / b / b].as_slice())
        }
        Op::SpaceToDepth(o) => {
            let (b, [n, h, w, c]) = (block(o.block_size)?, nhwc(site)?);
            if h % b != 0 || w % b != 0 {
                return Err(Error::invalid(format!("{h} by {w} does not split into blocks of {b}")));
            }
            one([n, h / b, w / b, c.saturating_mul(b).saturating_mul(b)].as_slice())
        }
        Op::Pad | Op::Padv2 | Op::MirrorPad(_) => {
            let x = site.shape(0)?;
            let Some(pads) = site.ints(1)? else { return unknown() };
            let pads = paddings(&pads, x.len())?;
            one(x.iter().zip(&pads).map(|(&d, &[a, b])| d.saturating_add(a).saturating_add(b)).collect::<Shape>())
        }
        Op::BatchToSpaceNd | Op::SpaceToBatchNd => {
            let x = site.shape(0)?;
            let (Some(blocks), Some(edges)) = (site.ints(1)?, site.ints(2)?) else { return unknown() };
            let to_batch = matches!(site.op, Op::SpaceToBatchNd);
            one(space_batch(x, &blocks, &edges, to_batch)?.shape)
        }
        Op::Transpose => {
            let x = site.shape(0)?;
            let Some(perm) = site.ints(1)? else { return unknown() };
            one(permutation(&perm, x.len())?.iter().filter_map(|&p| x.get(p).copied()).collect::<Shape>())
        }
        Op::StridedSlice(o) => {
            let (Some(b), Some(e), Some(s)) = (site.ints(1)?, site.ints(2)?, site.ints(3)?) else { return unknown() };
            one(StridedSlice::new(o, site.shape(0)?, &b, &e, &s)?.shape)
        }
        Op::Split(_) => {
            let (x, n) = (site.shape(1)?, site.outputs.len());
            let Some(a) = site.ints(0)? else { return all_unknown(n) };
            let a = axis(scalar(&a)?, x.len())?;
            let d = x.get(a).copied().unwrap_or(0);
            if n == 0 || d % n != 0 {
                return Err(Error::invalid(format!("axis {a} of shape {x:?} does not split into {n}")));
            }
            let mut s = Shape::from_slice(x);
            if let Some(d) = s.get_mut(a) {
                *d /= n;
            }
            Ok(SmallVec::from_elem(Some(s), n))
        }
        Op::SplitV(_) => {
            let (x, n) = (site.shape(0)?, site.outputs.len());
            let (Some(parts), Some(a)) = (site.ints(1)?, site.ints(2)?) else { return all_unknown(n) };
            let a = axis(scalar(&a)?, x.len())?;
            if parts.len() != n {
                return Err(Error::invalid(format!("{} sizes for {n} outputs", parts.len())));
            }
            let parts = split_sizes(&parts, x.get(a).copied().unwrap_or(0))?;
            let shape = |p: usize| {
                let mut s = Shape::from_slice(x);
                if let Some(d) = s.get_mut(a) {
                    *d = p;
                }
                Some(s)
            };
            Ok(parts.into_iter().map(shape).collect())
        }
        Op::Slice => {
            let x = site.shape(0)?;
            let (Some(b), Some(s)) = (site.ints(1)?, site.ints(2)?) else { return unknown() };
            one(slice(x, &b, &s)?.iter().map(|&(_, n)| n).collect::<Shape>())
        }
        Op::Tile => {
            let x = site.shape(0)?;
            let Some(m) = site.ints(1)? else { return unknown() };
            if m.len() != x.len() {
                return Err(Error::invalid(format!("{} multiples for shape {x:?}", m.len())));
            }
            let out: Shape = x.iter().zip(&sizes(&m)?).map(|(d, m)| d.saturating_mul(*m)).collect();
            one(out)
        }
        Op::Pack(o) => {
            let x = site.shape(0)?;
            for i in 1..site.inputs.len() {
                if site.shape(i)? != x {
                    return Err(Error::invalid(format!("shapes {x:?} and {:?} cannot be packed", site.shape(i)?)));
                }
            }
            let mut out = Shape::from_slice(x);
            out.insert(axis(o.axis as i64, x.len() + 1)?, site.inputs.len());
            one(out)
        }
        Op::Unpack(o) => {
            let x = site.shape(0)?;
            let a = axis(o.axis as i64, x.len())?;
            let mut out = Shape::from_slice(x);
            let n = out.remove(a);
            if n != site.outputs.len() {
                return Err(Error::invalid(format!("{} outputs for axis {a} of shape {x:?}", site.outputs.len())));
            }
            Ok(SmallVec::from_elem(Some(out), n))
        }
        Op::ReverseV2 => {
            let x = site.shape(0)?;
            if let Some(axes) = site.ints(1)? {
                axes_mask(&axes, x.len())?;
            }
            one(x)
        }
        Op::ReverseSequence(o) => {
            let x = site.shape(0)?;
            axis(o.seq_dim as i64, x.len())?;
            let b = axis(o.batch_dim as i64, x.len())?;
            if site.shape_of_rank(1, 1)?.first() != x.get(b) {
                return Err(Error::invalid(format!("{:?} lengths for axis {b} of shape {x:?}", site.shape(1)?)));
            }
            one(x)
        }
        Op::BroadcastTo => {
            let x = site.shape(0)?;
            let Some(s) = site.ints(1)? else { return unknown() };
            let s = sizes(&s)?;
            if broadcast(x, &s)? != s {
                return Err(Error::invalid(format!("shape {x:?} does not broadcast to {:?}", s.as_slice())));
            }
            one(s)
        }
        Op::DynamicUpdateSlice => {
            let (x, u) = (site.shape(0)?, site.shape(1)?);
            if u.len() != x.len() || u.iter().zip(x).any(|(u, x)| u > x) {
                return Err(Error::invalid(format!("an update of shape {u:?} for shape {x:?}")));
            }
            one(x)
        }
        Op::Dilate => {
            let x = site.shape(0)?;
            let Some(f) = site.ints(1)? else { return unknown() };
            if f.len() != x.len() || f.iter().any(|&f| f < 1) {
                return Err(Error::invalid(format!("dilations {:?} for shape {x:?}", f.as_slice())));
            }
            let dim = |(&d, &f): (&usize, &i64)| if d == 0 { 0 } else { (d - 1).saturating_mul(f as usize) + 1 };
            one(x.iter().zip(&f).map(dim).collect::<Shape>())
        }
        _ => no_rule(site),
    }
}

fn all_unknown(n: usize) -> Result<Inferred> {
    Ok(SmallVec::from_elem(None, n))
}

fn block(b: i32) -> Result<usize> {
    usize::try_from(b).ok().filter(|&b| b > 0).ok_or_else(|| Error::invalid(format!("block size {b}")))
}

fn nhwc(site: &Site<'_>) -> Result<[usize; 4]> {
    let s = site.shape_of_rank(0, 4)?;
    s.try_into().map_err(|_| Error::invalid("rank 4 is needed"))
}

fn scalar(v: &[i64]) -> Result<i64> {
    match v {
        [a] => Ok(*a),
        _ => Err(Error::invalid(format!("{} values given, one is needed", v.len()))),
    }
}

/// Pairs (before, after) of PAD's second operand.
///
/// # Errors
/// `Invalid` when there is not one pair of sizes per dimension.
pub fn paddings(values: &[i64], rank: usize) -> Result<SmallVec<[[usize; 2]; 6]>> {
    let (pairs, rest) = values.as_chunks::<2>();
    if pairs.len() != rank || !rest.is_empty() {
        return Err(Error::invalid(format!("{} paddings for rank {rank}", values.len())));
    }
    pairs.iter().map(|&[a, b]| Ok([size(a)?, size(b)?])).collect()
}

/// TRANSPOSE's second operand as a permutation.
///
/// # Errors
/// `Invalid` when it is none of this rank.
pub fn permutation(values: &[i64], rank: usize) -> Result<SmallVec<[usize; 6]>> {
    let mut seen = SmallVec::<[bool; 8]>::from_elem(false, rank);
    let bad = || Error::invalid(format!("{values:?} is no permutation of {rank} dimensions"));
    if values.len() != rank {
        return Err(bad());
    }
    let mut out = SmallVec::new();
    for &v in values {
        let a = axis(v, rank)?;
        match seen.get_mut(a) {
            Some(s) if !*s => *s = true,
            _ => return Err(bad()),
        }
        out.push(a);
    }
    Ok(out)
}

/// SPLIT_V's sizes, with the one -1 resolved.
///
/// # Errors
/// `Invalid` when they do not add up to the dimension.
pub fn split_sizes(parts: &[i64], dim: usize) -> Result<SmallVec<[usize; 8]>> {
    let bad = || Error::invalid(format!("sizes {parts:?} for a dimension of {dim}"));
    let mut sum = 0usize;
    let mut rest = None;
    let mut out = SmallVec::new();
    for (i, &p) in parts.iter().enumerate() {
        if p == -1 && rest.is_none() {
            rest = Some(i);
            out.push(0);
        } else {
            let p = usize::try_from(p).map_err(|_| bad())?;
            sum = sum.checked_add(p).ok_or_else(bad)?;
            out.push(p);
        }
    }
    match rest.and_then(|i| out.get_mut(i)) {
        Some(slot) => *slot = dim.checked_sub(sum).ok_or_else(bad)?,
        None if sum != dim => return Err(bad()),
        None => {}
    }
    Ok(out)
}

/// SLICE as (begin, size) of each dimension.
///
/// # Errors
/// `Invalid` when the slice leaves the tensor.
pub fn slice(x: &[usize], begin: &[i64], sizes: &[i64]) -> Result<SmallVec<[(usize, usize); 6]>> {
    if begin.len() != x.len() || sizes.len() != x.len() {
        return Err(Error::invalid(format!("slice of rank {} of shape {x:?}", begin.len())));
    }
    x.iter()
        .zip(begin.iter().zip(sizes))
        .map(|(&d, (&b, &s))| {
            let bad = || Error::invalid(format!("slice at {b} of size {s} leaves a dimension of {d}"));
            let b = usize::try_from(b).ok().filter(|&b| b <= d).ok_or_else(bad)?;
            let n = if s == -1 { d - b } else { usize::try_from(s).map_err(|_| bad())? };
            if n > d - b { Err(bad()) } else { Ok((b, n)) }
        })
        .collect()
}

/// SPACE_TO_BATCH_ND or BATCH_TO_SPACE_ND, resolved.
#[derive(Debug, Clone)]
pub struct SpaceBatch {
    /// Block size of each spatial dimension.
    pub blocks: SmallVec<[usize; 4]>,
    /// Padding or crop (before, after) of each spatial dimension.
    pub edges: SmallVec<[[usize; 2]; 6]>,
    /// The output's shape.
    pub shape: Shape,
}

/// Resolves SPACE_TO_BATCH_ND (`to_batch`) or BATCH_TO_SPACE_ND.
///
/// # Errors
/// `Invalid` when blocks and edges do not fit the shape.
pub fn space_batch(x: &[usize], blocks: &[i64], edges: &[i64], to_batch: bool) -> Result<SpaceBatch> {
    let bad = || Error::invalid(format!("blocks {blocks:?} and edges {edges:?} do not fit shape {x:?}"));
    let edges_of = paddings(edges, blocks.len())?;
    let Some((&batch, spatial)) = x.split_first() else { return Err(bad()) };
    if spatial.len() < blocks.len() {
        return Err(bad());
    }
    let blocks_of = blocks
        .iter()
        .map(|&b| usize::try_from(b).ok().filter(|&b| b > 0).ok_or_else(bad))
        .collect::<Result<SmallVec<[usize; 4]>>>()?;
    let volume = crate::model::elements(&blocks_of);
    let mut shape = Shape::new();
    shape.push(if to_batch {
        batch.saturating_mul(volume)
    } else if batch % volume == 0 {
        batch / volume
    } else {
        return Err(bad());
    });
    for (i, &d) in spatial.iter().enumerate() {
        shape.push(match (blocks_of.get(i), edges_of.get(i)) {
            (Some(&b), Some(&[before, after])) if to_batch => {
                let padded = d.saturating_add(before).saturating_add(after);
                if padded % b != 0 {
                    return Err(bad());
                }
                padded / b
            }
            (Some(&b), Some(&[before, after])) => {
                let cropped = d.saturating_mul(b).checked_sub(before).and_then(|d| d.checked_sub(after));
                cropped.ok_or_else(bad)?
            }
            _ => d,
        });
    }
    Ok(SpaceBatch { blocks: blocks_of, edges: edges_of, shape })
}

/// STRIDED_SLICE with its masks resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StridedSlice {
    /// (first index, step, count) of each dimension of the operand.
    pub ranges: SmallVec<[(usize, isize, usize); 6]>,
    /// The output's shape: dimensions dropped by the shrink mask, added by the new-axis mask.
    pub shape: Shape,
}

impl StridedSlice {
    /// Resolves masks, negative indices and omitted dimensions as NumPy does.
    ///
    /// # Errors
    /// `Invalid` for a stride of 0, more indices than dimensions, or a shrunk dimension's index out of range.
    pub fn new(
        o: &crate::schema::StridedSliceOptionsT,
        x: &[usize],
        begin: &[i64],
        end: &[i64],
        stride: &[i64],
    ) -> Result<StridedSlice> {
        if begin.len() != end.len() || begin.len() != stride.len() || begin.len() > 32 {
            return Err(Error::invalid(format!(
                "{} begins, {} ends, {} strides",
                begin.len(),
                end.len(),
                stride.len()
            )));
        }
        let bit = |mask: i32, i: usize| mask as u32 >> i & 1 == 1;
        let ellipsis = (0..begin.len()).find(|&i| bit(o.ellipsis_mask, i));
        let new_axes = (0..begin.len()).filter(|&i| bit(o.new_axis_mask, i) && Some(i) != ellipsis).count();
        let named = begin.len() - new_axes - ellipsis.is_some() as usize;
        let rest =
            x.len().checked_sub(named).ok_or_else(|| Error::invalid(format!("{named} indices for shape {x:?}")))?;
        let mut out = StridedSlice { ranges: SmallVec::new(), shape: Shape::new() };
        let mut dims = x.iter().copied();
        let whole = |out: &mut StridedSlice, d: usize| {
            out.ranges.push((0, 1, d));
            out.shape.push(d);
        };
        for (i, ((&b, &e), &s)) in begin.iter().zip(end).zip(stride).enumerate() {
            if Some(i) == ellipsis {
                dims.by_ref().take(rest).for_each(|d| whole(&mut out, d));
                continue;
            }
            if bit(o.new_axis_mask, i) {
                out.shape.push(1);
                continue;
            }
            let Some(d) = dims.next() else { break };
            let n = i64::try_from(d).map_err(|_| Error::invalid(format!("shape {x:?} is too large")))?;
            if s == 0 {
                return Err(Error::invalid("a stride is 0"));
            }
            let shrink = bit(o.shrink_axis_mask, i);
            let (low, high) = if s > 0 { (0, n) } else { (-1, n - 1) };
            let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
            let first = if bit(o.begin_mask, i) { if s > 0 { 0 } else { n - 1 } } else { wrap(b) };
            if shrink {
                let at = usize::try_from(first).ok().filter(|&f| f < d);
                let at =
                    at.ok_or_else(|| Error::invalid(format!("index {b} is out of range for a dimension of {d}")))?;
                out.ranges.push((at, 1, 1));
                continue;
            }
            let first = first.clamp(low, high.max(low));
            let last = if bit(o.end_mask, i) {
                if s > 0 { n } else { -1 }
            } else if o.offset {
                first.saturating_add(e)
            } else {
                wrap(e)
            };
            let last = last.clamp(low, high.max(low));
            let span = if s > 0 { last.saturating_sub(first) } else { first.saturating_sub(last) };
            let count = if span <= 0 { 0 } else { (span as u64).div_ceil(s.unsigned_abs()) as usize };
            let first = if count == 0 { 0 } else { usize::try_from(first).unwrap_or(0) };
            let step = isize::try_from(s).unwrap_or(if s > 0 { isize::MAX } else { isize::MIN });
            out.ranges.push((first, if count <= 1 { 1 } else { step }, count));
            out.shape.push(count);
        }
        dims.for_each(|d| whole(&mut out, d));
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::StridedSliceOptionsT;

    fn strided(o: StridedSliceOptionsT, x: &[usize], b: &[i64], e: &[i64], s: &[i64]) -> Result<StridedSlice> {
        StridedSlice::new(&o, x, b, e, s)
    }

    #[test]
    fn strided_slice_masks() {
        let o = StridedSliceOptionsT::default();
        let r = strided(o.clone(), &[10], &[-3], &[100], &[2]).unwrap();
        assert_eq!((r.ranges[0], r.shape.as_slice()), ((7, 2, 2), [2].as_slice()));
        let r = strided(o.clone(), &[10], &[8], &[-100], &[-3]).unwrap();
        assert_eq!(r.ranges[0], (8, -3, 3));
        assert_eq!(strided(o.clone(), &[10], &[5], &[2], &[1]).unwrap().shape.as_slice(), [0]);
        assert!(strided(o.clone(), &[10], &[5], &[2], &[0]).is_err());
        assert!(strided(o, &[10], &[0, 0], &[1, 1], &[1, 1]).is_err());
        let o = StridedSliceOptionsT { shrink_axis_mask: 1, ..Default::default() };
        assert_eq!(strided(o.clone(), &[4, 2], &[-1], &[0], &[1]).unwrap().shape.as_slice(), [2]);
        assert!(strided(o, &[4], &[4], &[5], &[1]).is_err());
        let o = StridedSliceOptionsT { ellipsis_mask: 1, new_axis_mask: 2, ..Default::default() };
        let r = strided(o, &[2, 3, 4], &[0, 0, 1], &[0, 0, 3], &[1, 1, 1]).unwrap();
        assert_eq!(r.shape.as_slice(), [2, 3, 1, 2]);
        let o = StridedSliceOptionsT { offset: true, ..Default::default() };
        assert_eq!(strided(o, &[9], &[2], &[3], &[1]).unwrap().ranges[0], (2, 1, 3));
        let o = StridedSliceOptionsT { begin_mask: 1, end_mask: 1, ..Default::default() };
        assert_eq!(strided(o, &[3], &[i64::MIN], &[i64::MAX], &[i64::MIN]).unwrap().shape.as_slice(), [1]);
    }

    #[test]
    fn splits() {
        assert_eq!(split_sizes(&[2, -1, 3], 9).unwrap().as_slice(), [2, 4, 3]);
        assert!(split_sizes(&[2, -1, -1], 9).is_err());
        assert!(split_sizes(&[5, 5], 9).is_err());
        assert!(split_sizes(&[10, -1], 9).is_err());
    }

    #[test]
    fn spaces_and_batches() {
        let s = space_batch(&[1, 4, 4, 3], &[2, 2], &[0, 0, 2, 0], true).unwrap();
        assert_eq!(s.shape.as_slice(), [4, 2, 3, 3]);
        assert!(space_batch(&[1, 4], &[0], &[0, 0], true).is_err());
        assert!(space_batch(&[3, 4], &[2], &[0, 0], false).is_err());
        assert!(space_batch(&[2, 4], &[2], &[5, 4], false).is_err());
    }
}
