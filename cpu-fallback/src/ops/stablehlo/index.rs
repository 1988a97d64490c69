//! Operators that move elements: the shape rule has checked that attributes and shapes fit together.

use super::*;
use litegpu_graph::schema::{
    StablehloDotGeneralOptionsT, StablehloGatherOptionsT, StablehloPadOptionsT, StablehloReduceWindowOptionsT,
    StablehloScatterOptionsT,
};

type Dims = SmallVec<[usize; 6]>;

/// Visits every index of a shape in memory order, with its number.
pub(super) fn each(shape: &[usize], mut f: impl FnMut(&[usize], usize)) {
    let mut at: Dims = SmallVec::from_elem(0, shape.len());
    for i in 0..elements(shape) {
        f(&at, i);
        for (a, n) in at.iter_mut().zip(shape).rev() {
            *a += 1;
            if *a < *n {
                break;
            }
            *a = 0;
        }
    }
}

/// Row-major strides, in elements.
fn strides(shape: &[usize]) -> Dims {
    let mut out: Dims = SmallVec::from_elem(1, shape.len());
    for d in (1..shape.len()).rev() {
        out[d - 1] = out[d].saturating_mul(shape[d]);
    }
    out
}

fn list(l: &Option<Vec<i64>>) -> &[i64] {
    l.as_deref().unwrap_or_default()
}

/// An element of `size` bytes.
pub(super) fn element(bytes: &[u8], i: usize, size: usize) -> Option<&[u8]> {
    bytes.get(i.checked_mul(size)?..)?.get(..size)
}

/// The same, to be written.
pub(super) fn element_mut(bytes: &mut [u8], i: usize, size: usize) -> Option<&mut [u8]> {
    bytes.get_mut(i.checked_mul(size)?..)?.get_mut(..size)
}

/// out[index] = x[offset + index . steps]
fn affine(x: &[u8], out: &mut [u8], shape: &[usize], steps: &[usize], offset: usize, size: usize) {
    each(shape, |at, i| {
        let from = offset + at.iter().zip(steps).map(|(a, s)| a * s).sum::<usize>();
        if let (Some(y), Some(x)) = (out.get_mut(i * size..(i + 1) * size), x.get(from * size..(from + 1) * size)) {
            y.copy_from_slice(x);
        }
    });
}

/// A scalar or an element of an index tensor.
fn integer(v: &View<'_>, i: usize) -> Result<i64> {
    let none = || Error::invalid("an index is missing");
    match v.dtype {
        DType::I32 => v.as_slice::<i32>()?.get(i).map(|&v| v as i64).ok_or_else(none),
        DType::I64 => v.as_slice::<i64>()?.get(i).copied().ok_or_else(none),
        d => Err(Error::unsupported(format!("indices of type {d}"))),
    }
}

/// Start indices given as one scalar operand each, moved so that the slice fits.
fn starts(call: &Call<'_>, first: usize, shape: &[usize], slice: &[usize]) -> Result<Dims> {
    (0..shape.len())
        .map(|d| {
            let most = shape[d].saturating_sub(slice[d]);
            Ok(integer(&call.input(first + d)?, 0)?.clamp(0, most as i64) as usize)
        })
        .collect()
}

pub(super) fn run(call: &mut Call<'_>, op: &Op, size: usize) -> Result<()> {
    // Products of the other dimensions may overflow where one is 0.
    if call.output(0)?.is_empty() {
        return Ok(());
    }
    let x = call.input(0)?;
    let from = strides(x.shape);
    let dot = |a: &[usize], b: &[usize]| a.iter().zip(b).map(|(a, b)| a * b).sum::<usize>();
    match op {
        Op::StablehloConcatenate(o) => {
            let axis = usize::try_from(o.dimension).unwrap_or(0);
            let inner = |s: &[usize]| s.iter().skip(axis).product::<usize>() * size;
            let inputs = call.inputs;
            let out = call.output(0)?;
            let row = inner(&out.shape);
            let mut at = 0;
            for v in inputs.iter().flatten() {
                let n = inner(v.shape);
                if n > 0 {
                    for (y, x) in out.bytes_mut().chunks_exact_mut(row).zip(v.bytes.chunks_exact(n)) {
                        y[at..at + n].copy_from_slice(x);
                    }
                }
                at += n;
            }
        }
        Op::StablehloBroadcastInDim(o) => {
            let out = call.output(0)?;
            let mut steps: Dims = SmallVec::from_elem(0, out.shape.len());
            for (k, &d) in list(&o.broadcast_dimensions).iter().enumerate() {
                if let Some(s) = usize::try_from(d).ok().and_then(|d| steps.get_mut(d))
                    && x.shape[k] != 1
                {
                    *s = from[k];
                }
            }
            let shape = out.shape.clone();
            affine(x.bytes, out.bytes_mut(), &shape, &steps, 0, size);
        }
        Op::StablehloTranspose(o) => {
            let steps: Dims = list(&o.permutation)
                .iter()
                .map(|&d| litegpu_graph::ops::axis(d, x.shape.len()).map(|d| from[d]))
                .collect::<Result<_>>()?;
            let out = call.output(0)?;
            let shape = out.shape.clone();
            affine(x.bytes, out.bytes_mut(), &shape, &steps, 0, size);
        }
        Op::StablehloSlice(o) => {
            let at = |l: &Option<Vec<i64>>, i: usize, d: i64| list(l).get(i).copied().unwrap_or(d) as usize;
            let offset: usize = from.iter().enumerate().map(|(i, s)| s * at(&o.start_indices, i, 0)).sum();
            let steps: Dims = from.iter().enumerate().map(|(i, s)| s.saturating_mul(at(&o.strides, i, 1))).collect();
            let out = call.output(0)?;
            let shape = out.shape.clone();
            affine(x.bytes, out.bytes_mut(), &shape, &steps, offset, size);
        }
        Op::StablehloDynamicSlice(_) => {
            let shape = call.output(0)?.shape.clone();
            let offset = dot(&starts(call, 1, x.shape, &shape)?, &from);
            affine(x.bytes, call.output(0)?.bytes_mut(), &shape, &from, offset, size);
        }
        Op::StablehloDynamicUpdateSlice => {
            let update = call.input(1)?;
            let offset = dot(&starts(call, 2, x.shape, update.shape)?, &from);
            let out = call.output(0)?.bytes_mut();
            out.copy_from_slice(x.bytes);
            each(update.shape, |at, i| {
                let to = offset + dot(at, &from);
                let source = update.bytes.get(i * size..(i + 1) * size);
                if let (Some(y), Some(x)) = (out.get_mut(to * size..(to + 1) * size), source) {
                    y.copy_from_slice(x);
                }
            });
        }
        Op::StablehloPad(o) => pad(call, o, size)?,
        Op::StablehloGather(o) => gather(call, o, size)?,
        op => return Err(Error::internal(format!("{} moves no elements", op.name()))),
    }
    Ok(())
}

fn pad(call: &mut Call<'_>, o: &StablehloPadOptionsT, size: usize) -> Result<()> {
    let (x, value) = (call.input(0)?, call.input(1)?);
    if value.dtype != x.dtype || value.bytes.len() != size {
        return Err(Error::invalid("the padding value must be one element of the operand's type"));
    }
    let out = call.output(0)?;
    let (shape, to) = (out.shape.clone(), strides(&out.shape));
    let out = out.bytes_mut();
    out.chunks_exact_mut(size).for_each(|y| y.copy_from_slice(value.bytes));
    let (low, interior) = (list(&o.edge_padding_low), list(&o.interior_padding));
    each(x.shape, |at, i| {
        let mut place = 0;
        for (d, &a) in at.iter().enumerate() {
            let p = low[d] as i128 + a as i128 * (interior[d] as i128 + 1);
            match usize::try_from(p) {
                Ok(p) if p < shape[d] => place += p * to[d],
                _ => return,
            }
        }
        if let (Some(y), Some(x)) =
            (out.get_mut(place * size..(place + 1) * size), x.bytes.get(i * size..(i + 1) * size))
        {
            y.copy_from_slice(x);
        }
    });
    Ok(())
}

/// Reads index vectors: (position among the batch dimensions, component) to value.
struct IndexVectors<'a> {
    v: View<'a>,
    strides: Dims,
    vector: usize,
}

impl<'a> IndexVectors<'a> {
    fn new(v: View<'a>, vector: i64) -> Result<IndexVectors<'a>> {
        let vector = usize::try_from(vector).ok().filter(|&d| d <= v.shape.len());
        let vector = vector.ok_or_else(|| Error::invalid("index_vector_dim"))?;
        Ok(IndexVectors { strides: strides(v.shape), v, vector })
    }
    fn get(&self, batch: impl Iterator<Item = usize>, component: usize) -> Result<i64> {
        let dims = self.strides.iter().enumerate().filter(|(d, _)| *d != self.vector).map(|(_, s)| *s);
        let at: usize = dims.zip(batch).map(|(s, b)| s * b).sum();
        integer(&self.v, at + component * self.strides.get(self.vector).copied().unwrap_or(0))
    }
}

fn gather(call: &mut Call<'_>, o: &StablehloGatherOptionsT, size: usize) -> Result<()> {
    let x = call.input(0)?;
    let indices = IndexVectors::new(call.input(1)?, o.index_vector_dim)?;
    let (offset, collapsed) = (list(&o.offset_dims), list(&o.collapsed_slice_dims));
    let (map, sizes) = (list(&o.start_index_map), list(&o.slice_sizes));
    let from = strides(x.shape);
    let kept: Dims = (0..x.shape.len()).filter(|d| !collapsed.contains(&(*d as i64))).collect();
    let out = call.output(0)?;
    let shape = out.shape.clone();
    let out = out.bytes_mut();
    let is_offset: SmallVec<[bool; 6]> = (0..shape.len()).map(|d| offset.contains(&(d as i64))).collect();
    let mut failed = Ok(());
    each(&shape, |at, i| {
        let batch = || at.iter().zip(&is_offset).filter(|(_, o)| !**o).map(|(a, _)| *a);
        let mut place = 0;
        for (k, &d) in map.iter().enumerate() {
            match (indices.get(batch(), k), usize::try_from(d).ok().filter(|&d| d < x.shape.len())) {
                (Ok(v), Some(d)) => {
                    let most = (x.shape[d] as i64).saturating_sub(sizes[d]);
                    place += v.clamp(0, most.max(0)) as usize * from[d];
                }
                (Err(e), _) => failed = Err(e),
                (_, None) => failed = Err(Error::invalid(format!("start_index_map names dimension {d}"))),
            }
        }
        let inner = at.iter().zip(&is_offset).filter(|(_, o)| **o).map(|(a, _)| *a);
        place += inner.zip(&kept).map(|(a, &d)| a * from[d]).sum::<usize>();
        if let (Some(y), Some(x)) =
            (out.get_mut(i * size..(i + 1) * size), x.bytes.get(place * size..(place + 1) * size))
        {
            y.copy_from_slice(x);
        }
    });
    failed
}

pub(super) fn scatter(call: &mut Call<'_>, o: &StablehloScatterOptionsT, size: usize, f: &Combine) -> Result<()> {
    let (x, updates) = (call.input(0)?, call.input(2)?);
    let indices = IndexVectors::new(call.input(1)?, o.index_vector_dim)?;
    let (window, inserted) = (list(&o.update_window_dims), list(&o.inserted_window_dims));
    let map = list(&o.scatter_dims_to_operand_dims);
    let to = strides(x.shape);
    let kept: Dims = (0..x.shape.len()).filter(|d| !inserted.contains(&(*d as i64))).collect();
    let is_window: SmallVec<[bool; 6]> = (0..updates.shape.len()).map(|d| window.contains(&(d as i64))).collect();
    let out = call.output(0)?.bytes_mut();
    if out.len() != x.bytes.len() {
        return Err(Error::internal("the result has another size than the operand"));
    }
    out.copy_from_slice(x.bytes);
    let mut failed = Ok(());
    let mut place: SmallVec<[i64; 6]> = SmallVec::new();
    each(updates.shape, |at, i| {
        place.clear();
        place.resize(x.shape.len(), 0);
        let batch = || at.iter().zip(&is_window).filter(|(_, w)| !**w).map(|(a, _)| *a);
        for (k, &d) in map.iter().enumerate() {
            match (indices.get(batch(), k), usize::try_from(d).ok().and_then(|d| place.get_mut(d))) {
                (Ok(v), Some(p)) => *p = p.saturating_add(v),
                (Err(e), _) => failed = Err(e),
                (_, None) => failed = Err(Error::invalid(format!("scatter_dims_to_operand_dims names {d}"))),
            }
        }
        let inner = at.iter().zip(&is_window).filter(|(_, w)| **w).map(|(a, _)| *a);
        for (a, &d) in inner.zip(&kept) {
            place[d] = place[d].saturating_add(a as i64);
        }
        // Updates outside the operand are dropped.
        if place.iter().zip(x.shape).any(|(&p, &n)| p < 0 || p >= n as i64) {
            return;
        }
        let flat: usize = place.iter().zip(&to).map(|(&p, s)| p as usize * s).sum();
        if let (Some(y), Some(v)) = (element_mut(out, flat, size), element(updates.bytes, i, size)) {
            f(y, v);
        }
    });
    failed
}

pub(super) fn reduce_window(
    call: &mut Call<'_>,
    o: &StablehloReduceWindowOptionsT,
    size: usize,
    f: &Combine,
) -> Result<()> {
    let (x, start) = (call.input(0)?, call.input(1)?);
    let start = element(start.bytes, 0, size).ok_or_else(|| Error::invalid("no initial value"))?;
    let from = strides(x.shape);
    let at = |l: &Option<Vec<i64>>, i: usize| list(l).get(i).copied().unwrap_or(1);
    let low = |i: usize| list(&o.padding).get(2 * i).copied().unwrap_or(0);
    let window: Dims = (0..x.shape.len()).map(|i| at(&o.window_dimensions, i) as usize).collect();
    if elements(&window) > 1 << 31 {
        return Err(Error::unsupported(format!("windows of shape {window:?}")));
    }
    let out = call.output(0)?;
    if out.is_empty() {
        return Ok(());
    }
    let shape = out.shape.clone();
    let out = out.bytes_mut();
    each(&shape, |to, i| {
        let Some(sum) = element_mut(out, i, size) else { return };
        sum.copy_from_slice(start);
        // The padding and the gaps of a dilated operand hold the initial value.
        each(&window, |w, _| {
            let mut flat = 0;
            for d in 0..to.len() {
                let p = to[d] as i64 * at(&o.window_strides, d) + w[d] as i64 * at(&o.window_dilations, d);
                let p = p.saturating_sub(low(d));
                let base = at(&o.base_dilations, d);
                if p < 0 || p % base != 0 || p / base >= x.shape[d] as i64 {
                    f(sum, start);
                    return;
                }
                flat += (p / base) as usize * from[d];
            }
            if let Some(v) = element(x.bytes, flat, size) {
                f(sum, v);
            }
        });
    });
    Ok(())
}

pub(super) fn dot_general(
    call: &mut Call<'_>,
    o: &StablehloDotGeneralOptionsT,
    size: usize,
    mul: &Combine,
    add: &Combine,
) -> Result<()> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (sa, sb) = (strides(a.shape), strides(b.shape));
    let dims = |l: &Option<Vec<i64>>, rank: usize| -> Result<Dims> {
        list(l).iter().map(|&d| litegpu_graph::ops::axis(d, rank)).collect()
    };
    let batch = (dims(&o.lhs_batching_dimensions, a.shape.len())?, dims(&o.rhs_batching_dimensions, b.shape.len())?);
    let inner =
        (dims(&o.lhs_contracting_dimensions, a.shape.len())?, dims(&o.rhs_contracting_dimensions, b.shape.len())?);
    let free = |rank: usize, batch: &Dims, inner: &Dims| -> Dims {
        (0..rank).filter(|d| !batch.contains(d) && !inner.contains(d)).collect()
    };
    let free = (free(a.shape.len(), &batch.0, &inner.0), free(b.shape.len(), &batch.1, &inner.1));
    // Steps of both operands for each dimension of the result, and for each contracted one.
    let mut steps: SmallVec<[(usize, usize); 6]> =
        batch.0.iter().zip(&batch.1).map(|(&x, &y)| (sa[x], sb[y])).collect();
    steps.extend(free.0.iter().map(|&d| (sa[d], 0)));
    steps.extend(free.1.iter().map(|&d| (0, sb[d])));
    let contracted: Dims = inner.0.iter().map(|&d| a.shape[d]).collect();
    let out = call.output(0)?;
    let shape = out.shape.clone();
    let out = out.bytes_mut();
    let mut product: SmallVec<[u8; 8]> = SmallVec::from_elem(0, size);
    each(&shape, |at, i| {
        let (p, q) = at.iter().zip(&steps).fold((0, 0), |(p, q), (a, s)| (p + a * s.0, q + a * s.1));
        let Some(sum) = element_mut(out, i, size) else { return };
        // Zero of every type.
        sum.fill(0);
        each(&contracted, |k, _| {
            let p = p + k.iter().zip(&inner.0).map(|(k, &d)| k * sa[d]).sum::<usize>();
            let q = q + k.iter().zip(&inner.1).map(|(k, &d)| k * sb[d]).sum::<usize>();
            if let (Some(x), Some(y)) = (element(a.bytes, p, size), element(b.bytes, q, size)) {
                product.copy_from_slice(x);
                mul(&mut product, y);
                add(sum, &product);
            }
        });
    });
    Ok(())
}
