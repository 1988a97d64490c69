//! Operators that look elements up or scatter them: kernels.

use super::*;
use crate::kernel::Call;
use crate::moves::{self, Dst, Move, Src, ints, unpack};
use crate::strided::strides;
use bytemuck::Pod;
use half::f16;
use litegpu_graph::ops as rules;
use litegpu_graph::schema::CombinerType;
use litegpu_graph::{DType, Op, elements};

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    match &site.node.op {
        Op::Gather(o) => {
            let (axis, batch) = (o.axis, o.batch_dims);
            Ok(Box::new(move |call: &mut Call<'_>| {
                let (x, ids) = (call.input(0)?, call.input(1)?);
                let (axis, batch) = rules::gather_axes(axis, batch, x.shape, ids.shape)?;
                moves::run(call, &[0], &Gather { axis, batch, ids: &ints(&ids)? })
            }))
        }
        Op::GatherNd => Ok(Box::new(|call: &mut Call<'_>| {
            let ids = call.input(1)?;
            let depth = ids.shape.last().copied().unwrap_or(0);
            moves::run(call, &[0], &GatherNd { depth, ids: &ints(&ids)? })
        })),
        Op::ScatterNd => match site.output(0)?.dtype {
            DType::F32 => scatter(|a: f32, b| a + b),
            DType::F16 => scatter(|a: f16, b: f16| f16::from_f32(a.to_f32() + b.to_f32())),
            DType::I8 => scatter(i8::wrapping_add),
            DType::U8 => scatter(u8::wrapping_add),
            DType::I16 => scatter(i16::wrapping_add),
            DType::I32 => scatter(i32::wrapping_add),
            DType::U32 => scatter(u32::wrapping_add),
            DType::I64 => scatter(i64::wrapping_add),
            DType::Bool => scatter(|a: u8, b: u8| (a | b != 0) as u8),
            _ => no_kernel(site),
        },
        Op::EmbeddingLookup => embedding(site),
        Op::EmbeddingLookupSparse(o) => sparse_embedding(site, o.combiner),
        Op::HashtableLookup => Ok(Box::new(hashtable)),
        _ => no_kernel(site),
    }
}

struct Gather<'a> {
    axis: usize,
    batch: usize,
    ids: &'a [i64],
}

impl Move for Gather<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (Some(s), Some(d)) = (src.first(), dst.first_mut()) else { return Err(Error::invalid("no operand")) };
        let batches = elements(&s.shape[..self.batch]);
        let outer = elements(&s.shape[self.batch..self.axis]);
        let (n, inner) = (s.shape[self.axis], elements(&s.shape[self.axis + 1..]));
        if let Some(&bad) = self.ids.iter().find(|&&i| i < 0 || i as u64 >= n as u64) {
            return Err(Error::invalid(format!("index {bad} of a dimension of {n}")));
        }
        if d.data.is_empty() || batches == 0 {
            return Ok(());
        }
        let per_batch = self.ids.len() / batches;
        let rows = d.data.chunks_mut(inner);
        let from = (0..batches).flat_map(|b| {
            (0..outer).flat_map(move |o| {
                let ids = &self.ids[b * per_batch..(b + 1) * per_batch];
                ids.iter().map(move |&i| ((b * outer + o) * n + i as usize) * inner)
            })
        });
        for (row, at) in rows.zip(from) {
            row.copy_from_slice(&s.data[at..at + inner]);
        }
        Ok(())
    }
}

/// The offset that each row of indices names, in elements of the indexed tensor.
fn offsets<'a>(
    ids: &'a [i64],
    depth: usize,
    shape: &'a [usize],
    rows: usize,
) -> impl Iterator<Item = Result<usize>> + 'a {
    let steps = strides(shape);
    (0..rows).map(move |r| {
        let row = ids.get(r * depth..(r + 1) * depth).unwrap_or_default();
        let mut at = 0;
        for ((&i, &n), &s) in row.iter().zip(shape).zip(&steps) {
            let i = usize::try_from(i).ok().filter(|&i| i < n);
            at += i.ok_or_else(|| Error::invalid(format!("index {row:?} of shape {shape:?}")))? * s;
        }
        Ok(at)
    })
}

struct GatherNd<'a> {
    depth: usize,
    ids: &'a [i64],
}

impl Move for GatherNd<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (Some(s), Some(d)) = (src.first(), dst.first_mut()) else { return Err(Error::invalid("no operand")) };
        let inner = elements(s.shape.get(self.depth..).unwrap_or_default());
        if d.data.is_empty() {
            return Ok(());
        }
        let rows = d.data.len() / inner;
        for (row, at) in d.data.chunks_mut(inner).zip(offsets(self.ids, self.depth, s.shape, rows)) {
            let at = at?;
            row.copy_from_slice(s.data.get(at..at + inner).ok_or_else(|| Error::invalid("index out of range"))?);
        }
        Ok(())
    }
}

/// SCATTER_ND: updates of the same place add up.
fn scatter<T: Pod + Send + Sync>(add: impl Fn(T, T) -> T + Send + 'static) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let (v, updates) = (call.input(0)?, call.input(1)?);
        let depth = v.shape.last().copied().unwrap_or(0);
        let ids = ints(&v)?;
        let updates = updates.as_slice::<T>()?;
        let out = call.output(0)?;
        let shape = out.shape.clone();
        let inner = elements(shape.get(depth..).unwrap_or_default());
        let out = out.as_mut_slice::<T>()?;
        out.fill(T::zeroed());
        if updates.is_empty() {
            return Ok(());
        }
        for (row, at) in updates.chunks(inner).zip(offsets(&ids, depth, &shape, updates.len() / inner)) {
            let at = at?;
            let to = out.get_mut(at..at + inner).ok_or_else(|| Error::invalid("index out of range"))?;
            to.iter_mut().zip(row).for_each(|(o, &v)| *o = add(*o, v));
        }
        Ok(())
    }))
}

/// EMBEDDING_LOOKUP: rows of a table, dequantized where the output is real and the table is not.
fn embedding(site: &Site<'_>) -> Result<Kernel> {
    let (table, y) = (site.input(1)?, site.output(0)?);
    if table.dtype == y.dtype {
        return Ok(Box::new(|call: &mut Call<'_>| {
            let ids = ints(&call.input(0)?)?;
            moves::run(call, &[1], &Gather { axis: 0, batch: 0, ids: &ids })
        }));
    }
    if !matches!(table.dtype, DType::I8 | DType::U8 | DType::I4 | DType::I2)
        || !matches!(y.dtype, DType::F32 | DType::F16)
    {
        return no_kernel(site);
    }
    let q = table.quant.clone().ok_or_else(|| Error::invalid("the table is not quantized"))?;
    if q.scale.len() > 1 && q.axis != 0 {
        return Err(site.unsupported(format!("scales along axis {}", q.axis)));
    }
    if q.zero_point.iter().any(|&z| z != 0) {
        return Err(site.unsupported("a table whose zero point is not 0"));
    }
    // Blockwise scales: float16, one per block of a row.
    let blocks: Option<(Vec<f32>, usize)> = match q.blockwise {
        None => None,
        Some(b) => {
            let t = site.graph.tensors.get(b.scales).ok_or_else(|| Error::invalid("no tensor of scales"))?;
            let data = t.data.as_deref().unwrap_or_default();
            if t.dtype != DType::F16 || b.block_size == 0 {
                return Err(site.unsupported(format!("block scales of {}", t.dtype)));
            }
            Some((data.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(), b.block_size))
        }
    };
    let signed = table.dtype != DType::U8;
    Ok(Box::new(move |call: &mut Call<'_>| {
        let (ids, table) = (ints(&call.input(0)?)?, call.input(1)?);
        let rows = table.shape.first().copied().unwrap_or(0);
        let n = elements(table.shape.get(1..).unwrap_or_default());
        let bits = table.dtype.bits();
        // Four-bit rows of odd length start in the middle of a byte: the whole table is unpacked then.
        let aligned = n * bits % 8 == 0;
        let all = if aligned { Vec::new() } else { unpack(table.bytes, bits, rows * n) };
        let mut line = vec![0f32; n];
        let out = call.output(0)?;
        for (i, &id) in ids.iter().enumerate() {
            let row = usize::try_from(id).ok().filter(|&r| r < rows);
            let row = row.ok_or_else(|| Error::invalid(format!("index {id} of {rows} rows")))?;
            let raw = if aligned {
                let bytes = table.bytes.get(row * n * bits / 8..(row + 1) * n * bits / 8).unwrap_or_default();
                if bits == 8 { bytes.to_vec() } else { unpack(bytes, bits, n) }
            } else {
                all.get(row * n..(row + 1) * n).unwrap_or_default().to_vec()
            };
            let shift = 8 - bits as u32;
            let value = |b: u8| if signed { ((b << shift) as i8 >> shift) as f32 } else { b as f32 };
            match &blocks {
                Some((scales, size)) => {
                    let first = row * n.div_ceil(*size);
                    for (j, (o, &b)) in line.iter_mut().zip(&raw).enumerate() {
                        *o = value(b) * scales.get(first + j / size).copied().unwrap_or(0.0);
                    }
                }
                None => {
                    let scale = q.scale.get(if q.scale.len() > 1 { row } else { 0 }).copied().unwrap_or(0.0);
                    line.iter_mut().zip(&raw).for_each(|(o, &b)| *o = value(b) * scale);
                }
            }
            if out.dtype == DType::F16 {
                let to = out.as_mut_slice::<f16>()?.get_mut(i * n..(i + 1) * n).unwrap_or_default();
                to.iter_mut().zip(&line).for_each(|(o, &v)| *o = f16::from_f32(v));
            } else {
                let to = out.as_mut_slice::<f32>()?.get_mut(i * n..(i + 1) * n).unwrap_or_default();
                to.copy_from_slice(&line);
            }
        }
        Ok(())
    }))
}

/// EMBEDDING_LOOKUP_SPARSE: weighted sums (or means) of the rows that fall into each bucket.
fn sparse_embedding(site: &Site<'_>, combiner: CombinerType) -> Result<Kernel> {
    if site.input(4)?.dtype != DType::F32 || site.output(0)?.dtype != DType::F32 {
        return no_kernel(site);
    }
    Ok(Box::new(move |call: &mut Call<'_>| {
        let (ids, indices, dense) = (ints(&call.input(0)?)?, call.input(1)?, ints(&call.input(2)?)?);
        let (weights, table) = (call.input(3)?.as_slice::<f32>()?, call.input(4)?);
        let rank = indices.shape.get(1).copied().unwrap_or(0);
        let indices = ints(&indices)?;
        let rows = table.shape.first().copied().unwrap_or(0);
        let n = elements(table.shape.get(1..).unwrap_or_default());
        let values = table.as_slice::<f32>()?;
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        out.fill(0.0);
        if rank == 0 || dense.len() != rank || indices.len() != ids.len() * rank || weights.len() != ids.len() {
            return Err(Error::invalid("ids, indices, shape and weights do not fit together"));
        }
        let finish = |line: Option<&mut [f32]>, count: usize, total: f32, squares: f32| {
            let by = match combiner {
                CombinerType::MEAN => total,
                CombinerType::SQRTN => squares.sqrt(),
                _ => return,
            };
            if let (Some(line), true) = (line, count > 0) {
                line.iter_mut().for_each(|v| *v /= by);
            }
        };
        let (mut bucket, mut count, mut total, mut squares) = (0usize, 0usize, 0f32, 0f32);
        for (i, &id) in ids.iter().enumerate() {
            let row = usize::try_from(id).ok().filter(|&r| r < rows);
            let row = row.ok_or_else(|| Error::invalid(format!("index {id} of {rows} rows")))?;
            let mut to = 0usize;
            for k in 0..rank - 1 {
                let (index, d) = (indices[i * rank + k], dense[k]);
                let index = usize::try_from(index).ok().filter(|&v| (v as i64) < d);
                let index = index.ok_or_else(|| Error::invalid(format!("an index outside shape {dense:?}")))?;
                to = to.wrapping_mul(d as usize).wrapping_add(index);
            }
            if to != bucket {
                finish(out.get_mut(bucket * n..(bucket + 1) * n), count, total, squares);
                (bucket, count, total, squares) = (to, 0, 0.0, 0.0);
            }
            let w = weights[i];
            count += 1;
            total += w;
            squares += w * w;
            let line = out.get_mut(to * n..(to + 1) * n).ok_or_else(|| Error::invalid("a bucket out of range"))?;
            line.iter_mut().zip(&values[row * n..(row + 1) * n]).for_each(|(o, &v)| *o += v * w);
        }
        finish(out.get_mut(bucket * n..(bucket + 1) * n), count, total, squares);
        Ok(())
    }))
}

/// HASHTABLE_LOOKUP: rows by sorted key; a key that is absent gives zeros (or an empty string) and no hit.
fn hashtable(call: &mut Call<'_>) -> Result<()> {
    let (ids, keys, values) = (ints(&call.input(0)?)?, ints(&call.input(1)?)?, call.input(2)?);
    let found: Vec<Option<usize>> = ids.iter().map(|k| keys.binary_search(k).ok()).collect();
    let rows = values.shape.first().copied().unwrap_or(0);
    if keys.len() > rows {
        return Err(Error::invalid(format!("{} keys for {rows} values", keys.len())));
    }
    let [out, hits] = call.outputs else { return Err(Error::invalid("two outputs are needed")) };
    hits.bytes_mut().iter_mut().zip(&found).for_each(|(h, f)| *h = f.is_some() as u8);
    if out.dtype != values.dtype {
        return Err(Error::invalid(format!("{} in, {} out", values.dtype, out.dtype)));
    }
    if values.dtype == DType::String {
        let all = crate::strings::decode(values.bytes)?;
        let list: Vec<&[u8]> = found.iter().map(|f| f.and_then(|i| all.get(i)).copied().unwrap_or_default()).collect();
        return out.set_raw(&crate::strings::encode(&list)?);
    }
    let row = values.bytes.len() / rows.max(1);
    if row == 0 || values.dtype.bits() < 8 {
        return Err(Error::unsupported(format!("rows of {}", values.dtype)));
    }
    for (to, f) in out.bytes_mut().chunks_mut(row).zip(found) {
        match f.and_then(|i| values.bytes.get(i * row..(i + 1) * row)) {
            Some(from) => to.copy_from_slice(from),
            None => to.fill(0),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use litegpu_graph::schema::*;

    #[test]
    fn gathers_with_batches() {
        let o = |axis, batch_dims| Op::Gather(GatherOptionsT { axis, batch_dims });
        let data = i(&[2, 3, 2], &(0..12).collect::<Vec<_>>());
        let (s, v) = one::<i32>(o(-1, 0), &[data.clone(), i(&[1], &[1])], DType::I32);
        assert_eq!((s, v), (vec![2, 3, 1], vec![1, 3, 5, 7, 9, 11]));
        let (s, v) = one::<i32>(o(1, 1), &[data.clone(), i(&[2, 2], &[0, 2, 1, 1])], DType::I32);
        assert_eq!((s, v), (vec![2, 2, 2], vec![0, 1, 4, 5, 8, 9, 8, 9]));
        for bad in [3, -1, i32::MIN] {
            assert!(run(o(1, 0), &[data.clone(), i(&[1], &[bad])], &[out(DType::I32)]).is_err());
        }
        assert_eq!(one::<i32>(o(0, 0), &[data, i(&[0], &[])], DType::I32).0, [0, 3, 2]);
    }

    #[test]
    fn gathers_and_scatters_by_coordinates() {
        let data = i(&[2, 2], &[1, 2, 3, 4]);
        assert_eq!(one::<i32>(Op::GatherNd, &[data.clone(), i(&[2, 2], &[1, 1, 0, 1])], DType::I32).1, [4, 2]);
        assert_eq!(one::<i32>(Op::GatherNd, &[data.clone(), i(&[1, 0], &[])], DType::I32).0, [1, 2, 2]);
        assert!(run(Op::GatherNd, &[data, i(&[1, 1], &[2])], &[out(DType::I32)]).is_err());
        let args = |at: i32| [i(&[2, 1], &[1, at]), i(&[2, 2], &[1, 2, 3, 4]), i(&[2], &[3, 2])];
        assert_eq!(one::<i32>(Op::ScatterNd, &args(1), DType::I32).1, [0, 0, 4, 6, 0, 0]);
        assert!(run(Op::ScatterNd, &args(3), &[out(DType::I32)]).is_err());
    }

    #[test]
    fn tables() {
        let keys = [i(&[3], &[5, 9, 1]), i(&[2], &[1, 5]), i(&[2, 2], &[10, 11, 50, 51])];
        let v = run(Op::HashtableLookup, &keys, &[out(DType::I32), out(DType::U8)]).unwrap();
        assert_eq!(v[0].as_slice::<i32>().unwrap(), [50, 51, 0, 0, 10, 11]);
        assert_eq!(v[1].bytes(), [1, 0, 1]);
        let table = q(x(DType::I4, &[2, 3], &[0xF1u8, 0x72, 0x8E]), 0.5, 0);
        let (_, v) = one::<f32>(Op::EmbeddingLookup, &[i(&[1], &[1]), table.clone()], DType::F32);
        assert_eq!(v, [3.5, -1.0, -4.0]);
        assert!(run(Op::EmbeddingLookup, &[i(&[1], &[2]), table], &[out(DType::F32)]).is_err());
    }
}
