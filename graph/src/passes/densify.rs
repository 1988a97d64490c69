//! Sparse constants made dense: those behind DENSIFY, and those that an operator reads directly.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use crate::error::{Error, Result};
use crate::model::*;
use crate::op::Op;
use crate::schema::{DimensionMetadataT, DimensionType, SparseIndexVectorT};

/// A dense constant may be this many times its sparse form, or this many bytes, whichever is more: sparse networks keep
/// a tenth of their weights, hostile files none.
const MAX_GROWTH: usize = 4096;
const MAX_SMALL: usize = 1 << 26;

/// Makes sparse constants dense and drops DENSIFY nodes. Returns how many nodes were dropped.
///
/// # Errors
/// `Invalid` when the indices of a sparse constant are broken; the graph may then be half done.
pub fn run(g: &mut Graph) -> Result<usize> {
    for (i, t) in g.tensors.iter_mut().enumerate() {
        if t.sparsity.is_some() && t.data.is_some() {
            let data = dense(t).map_err(|e| e.at(format!("tensor {i} '{}'", t.name)))?;
            t.data = Some(data.into());
            t.sparsity = None;
        }
    }
    let before = g.nodes.len();
    let mut done = Vec::new();
    for (i, n) in g.nodes.iter().enumerate().filter(|(_, n)| n.op == Op::Densify) {
        if let (Some(from), [to]) = (n.input(0), n.outputs.as_slice())
            && let Some(data) = g.tensors.get(from).filter(|t| !t.is_variable).and_then(|t| t.data.clone())
            && let Some(from) = g.tensors.get(from).map(|t| (t.dtype, t.shape.clone(), t.quant.clone()))
            && let Some(to) = g.tensors.get_mut(*to).filter(|to| to.dtype == from.0 && to.shape == from.1)
        {
            to.data = Some(data);
            to.signature = None;
            to.quant = to.quant.take().or(from.2);
            done.push(i);
        }
    }
    let mut i = 0usize;
    g.nodes.retain(|_| {
        let keep = done.binary_search(&i).is_err();
        i = i.saturating_add(1);
        keep
    });
    Ok(before.saturating_sub(g.nodes.len()))
}

/// One dimension in the order of storage.
enum Level {
    Dense(usize),
    Sparse { segments: Vec<usize>, indices: Vec<usize>, size: usize },
}

struct Scatter<'a> {
    levels: Vec<Level>,
    /// Elements of the dense tensor that one step of each level moves.
    strides: Vec<usize>,
    width: usize,
    from: std::slice::ChunksExact<'a, u8>,
    to: Vec<u8>,
}

/// The dense bytes of a sparse constant.
///
/// # Errors
/// `Invalid` when the sparsity does not fit the shape or the data; `Unsupported` for elements smaller than a byte.
pub fn dense(t: &Tensor) -> Result<Vec<u8>> {
    let (Some(data), Some(s)) = (&t.data, &t.sparsity) else {
        return Err(Error::invalid("no sparse constant"));
    };
    let width = t.dtype.bits() / 8;
    if width == 0 || !t.dtype.bits().is_multiple_of(8) {
        return Err(Error::unsupported(format!("sparse {}", t.dtype)));
    }
    let rank = t.shape.len();
    let blocks = s.block_map.as_deref().unwrap_or_default();
    let order = s.traversal_order.as_deref().unwrap_or_default();
    let metadata = s.dim_metadata.as_deref().unwrap_or_default();
    let broken = |what: &str| Error::invalid(format!("sparse constant: {what}"));
    if metadata.len() != rank.saturating_add(blocks.len()) || order.len() != metadata.len() {
        return Err(broken("dimensions do not fit the shape"));
    }
    // Dimension `rank + k` is the inside of block k of dimension block_map[k].
    let mut size: Vec<usize> = t.shape.to_vec();
    let mut stride: Vec<usize> = vec![1; rank];
    for d in (0..rank).rev().skip(1) {
        let next = d.saturating_add(1);
        let below = stride.get(next).zip(t.shape.get(next)).map_or(1, |(&s, &n)| s.saturating_mul(n));
        if let Some(s) = stride.get_mut(d) {
            *s = below;
        }
    }
    for (k, &dim) in blocks.iter().enumerate() {
        let own = rank.saturating_add(k);
        let level = order.iter().position(|&o| usize::try_from(o) == Ok(own)).and_then(|l| metadata.get(l));
        let block = level.and_then(|m| usize::try_from(m.dense_size).ok()).filter(|&b| b > 0);
        let block = block.ok_or_else(|| broken("a block has no size"))?;
        let dim = usize::try_from(dim).ok().filter(|&d| d < rank).ok_or_else(|| broken("a block has no dimension"))?;
        let (Some(n), Some(step)) = (size.get_mut(dim), stride.get_mut(dim)) else {
            return Err(broken("a block has no dimension"));
        };
        if n.checked_rem(block) != Some(0) {
            return Err(broken("a block does not divide its dimension"));
        }
        *n = n.checked_div(block).unwrap_or(0);
        let inner = *step;
        *step = step.saturating_mul(block);
        size.push(block);
        stride.push(inner);
    }
    let bytes = t.dtype.byte_len(t.elements()).ok_or_else(|| broken("size overflows"))?;
    if bytes > data.len().saturating_mul(MAX_GROWTH).max(MAX_SMALL) {
        return Err(Error::unsupported(format!("sparse constant of {} bytes is {bytes} bytes when dense", data.len())));
    }
    let mut to = Vec::new();
    to.try_reserve_exact(bytes).map_err(|_| Error::invalid(format!("cannot allocate {bytes} bytes for a constant")))?;
    to.resize(bytes, 0);
    if bytes == 0 {
        return Ok(to);
    }
    let (mut levels, mut strides) = (Vec::new(), Vec::new());
    for (&o, m) in order.iter().zip(metadata) {
        let at = usize::try_from(o).ok();
        let (Some(&n), Some(&step)) = (at.and_then(|o| size.get(o)), at.and_then(|o| stride.get(o))) else {
            return Err(broken("the order names a dimension that does not exist"));
        };
        levels.push(level(m, n).ok_or_else(|| broken("segments or indices are out of range"))?);
        strides.push(step);
    }
    let mut s = Scatter { levels, strides, width, from: data.chunks_exact(width), to };
    s.fill(0, 0, 0).ok_or_else(|| broken("segments, indices and values do not fit together"))?;
    if s.from.next().is_some() {
        return Err(broken("values are left over"));
    }
    Ok(s.to)
}

fn level(m: &DimensionMetadataT, size: usize) -> Option<Level> {
    if m.format == DimensionType::DENSE {
        return (usize::try_from(m.dense_size) == Ok(size)).then_some(Level::Dense(size));
    }
    let (segments, indices) = (numbers(&m.array_segments)?, numbers(&m.array_indices)?);
    let rising = segments.first() == Some(&0) && segments.is_sorted() && segments.last() == Some(&indices.len());
    rising.then_some(Level::Sparse { segments, indices, size })
}

fn numbers(v: &SparseIndexVectorT) -> Option<Vec<usize>> {
    match v {
        SparseIndexVectorT::Int32Vector(v) => v.values.iter().flatten().map(|&i| usize::try_from(i).ok()).collect(),
        SparseIndexVectorT::Uint16Vector(v) => Some(v.values.iter().flatten().map(|&i| usize::from(i)).collect()),
        SparseIndexVectorT::Uint8Vector(v) => Some(v.values.iter().flatten().map(|&i| usize::from(i)).collect()),
        SparseIndexVectorT::NONE => None,
    }
}

impl Scatter<'_> {
    /// Places the values of one subtree: `index` is its position among its level's subtrees, `at` its first element.
    /// `None` when values, segments or indices run out. Depth is the rank; the work is bounded by the lengths of
    /// segments and values, because a dense level without either fails at its first step.
    fn fill(&mut self, depth: usize, index: usize, at: usize) -> Option<()> {
        let Some(level) = self.levels.get(depth) else {
            let value = self.from.next()?;
            let start = at.checked_mul(self.width)?;
            self.to.get_mut(start..start.checked_add(self.width)?)?.copy_from_slice(value);
            return Some(());
        };
        let step = *self.strides.get(depth)?;
        let below = depth.checked_add(1)?;
        let go = |i: usize| at.checked_add(i.checked_mul(step)?);
        match level {
            Level::Dense(n) => {
                let n = *n;
                for i in 0..n {
                    self.fill(below, index.checked_mul(n)?.checked_add(i)?, go(i)?)?;
                }
            }
            Level::Sparse { segments, size, .. } => {
                let (size, range) = (*size, *segments.get(index)?..*segments.get(index.checked_add(1)?)?);
                for child in range {
                    let Some(Level::Sparse { indices, .. }) = self.levels.get(depth) else { return None };
                    let i = indices.get(child).copied().filter(|&i| i < size)?;
                    self.fill(below, child, go(i)?)?;
                }
            }
        }
        Some(())
    }
}
