//! Operands in the form that kernels compute with: packed and sparse constants spread out, half floats widened.

use crate::kernel::{Call, Site};
use half::{bf16, f16};
use litegpu_graph::schema::{DimensionMetadataT, DimensionType, SparseIndexVectorT};
use litegpu_graph::{DType, Error, Quant, Result, Tensor, elements};
use std::borrow::Cow;

/// Levels of a sparse tensor beyond which a file is not taken seriously.
const MAX_LEVELS: usize = 16;

/// An operand: a constant (dense by now) or the value of one invocation.
#[derive(Debug, Clone)]
pub(crate) struct Weights<'a> {
    pub dtype: DType,
    pub shape: &'a [usize],
    pub quant: Option<&'a Quant>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Weights<'a> {
    /// The bytes as stored, dense.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        elements(self.shape)
    }

    /// Any float type as float32.
    pub(crate) fn floats(&self) -> Result<Cow<'_, [f32]>> {
        let b = &*self.bytes;
        Ok(match self.dtype {
            DType::F32 => match bytemuck::try_cast_slice(b) {
                Ok(f) => Cow::Borrowed(f),
                Err(_) => Cow::Owned(b.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            },
            DType::F16 => Cow::Owned(b.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            DType::BF16 => Cow::Owned(b.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
            d => return Err(Error::unsupported(format!("weights of type {d} where floats are needed"))),
        })
    }

    /// Signed types of at most 8 bits, one to a byte. Bytes of uint8 are given as they are.
    pub(crate) fn bytes8(&self) -> Result<Cow<'_, [i8]>> {
        match self.dtype {
            DType::I8 | DType::U8 => Ok(Cow::Borrowed(bytemuck::cast_slice(&self.bytes))),
            DType::I4 | DType::I2 | DType::U4 => Ok(Cow::Owned(unpack(self.dtype, &self.bytes, self.len())?)),
            d => Err(Error::unsupported(format!("weights of type {d} where integers are needed"))),
        }
    }

    /// Bytes of uint8 as int8: what they hold in dynamic range files from before int8 existed.
    pub(crate) fn signed(&self) -> Weights<'_> {
        let dtype = if self.dtype == DType::U8 { DType::I8 } else { self.dtype };
        Weights { dtype, shape: self.shape, quant: self.quant, bytes: Cow::Borrowed(&self.bytes) }
    }

    /// Integers of 16, 32 or 64 bits, widened.
    pub(crate) fn wide(&self) -> Result<Vec<i64>> {
        let b = &*self.bytes;
        Ok(match self.dtype {
            DType::I16 => b.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b) as i64).collect(),
            DType::I32 => b.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b) as i64).collect(),
            DType::I64 => b.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            d => return Err(Error::unsupported(format!("type {d} where wide integers are needed"))),
        })
    }

    /// Scale of each of `channels` output channels, from one scale or from one each; `Invalid` when there are others.
    pub(crate) fn scales(&self, channels: usize) -> Result<Vec<f32>> {
        match self.quant.map_or(&[][..], |q| &q.scale) {
            [s] => Ok(vec![*s; channels]),
            s if s.len() == channels && channels > 0 => Ok(s.to_vec()),
            s => Err(Error::invalid(format!("weights with {} scales for {channels} channels", s.len()))),
        }
    }

    /// The zero point, which must be one for all channels.
    pub(crate) fn zero_point(&self) -> Result<i32> {
        let z = self.quant.map_or(&[][..], |q| &q.zero_point);
        let first = z.first().copied().unwrap_or(0);
        if z.iter().any(|&z| z != first) {
            return Err(Error::unsupported("weights with different zero points per channel"));
        }
        i32::try_from(first).map_err(|_| Error::invalid(format!("zero point {first}")))
    }
}

/// Where an operand comes from: a constant is the same in every invocation. A sparse one is spread out whenever it is
/// asked for: kernels pack it, and then need it no more.
#[derive(Debug)]
pub(crate) struct Source {
    at: usize,
    pub constant: bool,
    sparse: Option<Box<Tensor>>,
}

impl Source {
    /// The i-th operand, which must be there.
    pub(crate) fn new(site: &Site<'_>, at: usize) -> Result<Source> {
        let t = site.input(at)?;
        let constant = t.data.is_some() && !t.is_variable;
        let sparse = (constant && t.sparsity.is_some()).then(|| Box::new(t.clone()));
        Ok(Source { at, constant, sparse })
    }
    /// Its shape.
    pub(crate) fn shape<'a>(&self, call: &Call<'a>) -> Result<&'a [usize]> {
        Ok(call.input(self.at)?.shape)
    }
    /// Its value.
    pub(crate) fn get<'a>(&'a self, call: &Call<'a>) -> Result<Weights<'a>> {
        let view = call.input(self.at)?;
        let bytes = match &self.sparse {
            Some(t) => Cow::Owned(densify(t)?),
            None => Cow::Borrowed(view.bytes),
        };
        Ok(Weights { dtype: view.dtype, shape: view.shape, quant: view.quant, bytes })
    }
}

/// Spreads elements of 2 or 4 bits (low bits first) over bytes, sign-extended where the type is signed.
pub(crate) fn unpack(dtype: DType, bytes: &[u8], n: usize) -> Result<Vec<i8>> {
    let mut out = Vec::new();
    out.try_reserve(n).map_err(|_| Error::invalid(format!("cannot allocate {n} elements")))?;
    match dtype {
        DType::I4 => out.extend(bytes.iter().flat_map(|&b| [(b << 4) as i8 >> 4, b as i8 >> 4]).take(n)),
        DType::U4 => out.extend(bytes.iter().flat_map(|&b| [(b & 15) as i8, (b >> 4) as i8]).take(n)),
        DType::I2 => {
            let spread = |&b: &u8| [(b << 6) as i8 >> 6, (b << 4) as i8 >> 6, (b << 2) as i8 >> 6, b as i8 >> 6];
            out.extend(bytes.iter().flat_map(spread).take(n));
        }
        d => return Err(Error::internal(format!("{d} is not packed"))),
    }
    if out.len() != n {
        return Err(Error::invalid(format!("{} bytes hold fewer than {n} elements of {dtype}", bytes.len())));
    }
    Ok(out)
}

/// Packs elements of 2 or 4 bits, low bits first.
pub(crate) fn pack(dtype: DType, values: impl Iterator<Item = i8>, out: &mut [u8]) {
    let (bits, per) = if dtype == DType::I2 { (2, 4) } else { (4, 2) };
    let mask = (1u8 << bits) - 1;
    out.fill(0);
    for (i, v) in values.enumerate() {
        if let Some(b) = out.get_mut(i / per) {
            *b |= (v as u8 & mask) << (bits * (i % per));
        }
    }
}

/// The dense bytes of a sparse constant.
///
/// # Errors
/// `Invalid` when the sparsity does not describe the data.
pub(crate) fn densify(t: &Tensor) -> Result<Vec<u8>> {
    let (Some(s), Some(data)) = (&t.sparsity, &t.data) else {
        return Err(Error::invalid("no sparse constant"));
    };
    let bits = t.dtype.bits();
    if bits % 8 != 0 || bits == 0 {
        return Err(Error::unsupported(format!("sparse {}", t.dtype)));
    }
    let size = bits / 8;
    let order: Vec<usize> =
        s.traversal_order.iter().flatten().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
    let blocks: Vec<usize> = s.block_map.iter().flatten().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
    let levels = s.dim_metadata.as_deref().unwrap_or_default();
    let rank = t.shape.len();
    if levels.len() != order.len() || order.len() != rank + blocks.len() || levels.len() > MAX_LEVELS {
        return Err(Error::invalid(format!("sparsity of {} levels for rank {rank}", levels.len())));
    }
    // The extent of each expanded dimension: a blocked dimension counts blocks, its block dimension counts within.
    let mut extents: Vec<usize> = t.shape.to_vec();
    for (b, &dim) in blocks.iter().enumerate() {
        let level = order.iter().position(|&d| d == rank + b).and_then(|l| levels.get(l));
        let block = level.and_then(|l| usize::try_from(l.dense_size).ok()).unwrap_or(0);
        match extents.get_mut(dim) {
            Some(e) if block > 0 && *e % block == 0 => *e /= block,
            _ => return Err(Error::invalid(format!("a sparse block of {block} in dimension {dim}"))),
        }
        extents.push(block);
    }
    let n = t.elements().checked_mul(size).ok_or_else(|| Error::invalid("size overflows"))?;
    let mut out = Vec::new();
    out.try_reserve_exact(n).map_err(|_| Error::invalid(format!("cannot allocate {n} bytes")))?;
    out.resize(n, 0);
    if n == 0 {
        return Ok(out);
    }
    let mut strides = vec![1usize; rank];
    for d in (1..rank).rev() {
        strides[d - 1] = strides[d] * t.shape[d];
    }
    // What one step along each level adds to the element's index.
    let mut steps = Vec::with_capacity(levels.len());
    for &d in &order {
        let step = match d.checked_sub(rank) {
            None => {
                let within = blocks.iter().position(|&b| b == d).and_then(|b| extents.get(rank + b));
                strides.get(d).map(|s| s * within.copied().unwrap_or(1))
            }
            Some(b) => blocks.get(b).and_then(|&dim| strides.get(dim)).copied(),
        };
        let extent = extents.get(d).copied();
        steps.push(step.zip(extent).ok_or_else(|| Error::invalid("a sparse level names no dimension"))?);
    }
    let mut walk = Walk { levels, steps: &steps, data: data.chunks_exact(size), out: &mut out, size };
    walk.level(0, 0, 0)?;
    Ok(out)
}

struct Walk<'a> {
    levels: &'a [DimensionMetadataT],
    /// (elements per step, extent) of each level.
    steps: &'a [(usize, usize)],
    data: std::slice::ChunksExact<'a, u8>,
    out: &'a mut [u8],
    size: usize,
}

impl Walk<'_> {
    /// Visits what lies below position `parent` of the level above.
    fn level(&mut self, l: usize, parent: usize, offset: usize) -> Result<()> {
        let Some((meta, &(step, extent))) = self.levels.get(l).zip(self.steps.get(l)) else {
            let value = self.data.next().ok_or_else(|| Error::invalid("fewer values than the sparsity says"))?;
            let at = offset * self.size;
            let place = self.out.get_mut(at..at + self.size);
            place.ok_or_else(|| Error::invalid("a sparse value lies outside the tensor"))?.copy_from_slice(value);
            return Ok(());
        };
        if meta.format == DimensionType::DENSE {
            if usize::try_from(meta.dense_size).ok() != Some(extent) {
                return Err(Error::invalid(format!("a dense level of {} where {extent} are", meta.dense_size)));
            }
            for i in 0..extent {
                self.level(l + 1, parent * extent + i, offset + i * step)?;
            }
            return Ok(());
        }
        let bad = || Error::invalid("sparse segments or indices are out of range");
        let (from, to) = (index(&meta.array_segments, parent), index(&meta.array_segments, parent + 1));
        let (Some(from), Some(to)) = (from, to) else { return Err(bad()) };
        for p in from..to {
            let i = index(&meta.array_indices, p).filter(|&i| i < extent).ok_or_else(bad)?;
            self.level(l + 1, p, offset + i * step)?;
        }
        Ok(())
    }
}

fn index(v: &SparseIndexVectorT, i: usize) -> Option<usize> {
    match v {
        SparseIndexVectorT::Int32Vector(v) => usize::try_from(*v.values.as_ref()?.get(i)?).ok(),
        SparseIndexVectorT::Uint16Vector(v) => v.values.as_ref()?.get(i).map(|&x| x as usize),
        SparseIndexVectorT::Uint8Vector(v) => v.values.as_ref()?.get(i).map(|&x| x as usize),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use litegpu_graph::schema::{Int32VectorT, SparsityParametersT};

    #[test]
    fn packed_elements_come_apart_and_together() {
        assert_eq!(unpack(DType::I4, &[0x8F, 0x07], 3).unwrap(), [-1, -8, 7]);
        assert_eq!(unpack(DType::U4, &[0x8F], 2).unwrap(), [15, 8]);
        assert_eq!(unpack(DType::I2, &[0b10_01_11_00], 4).unwrap(), [0, -1, 1, -2]);
        assert!(unpack(DType::I4, &[0], 3).is_err());
        let mut out = [0xAA; 2];
        pack(DType::I4, [-1, -8, 7].into_iter(), &mut out);
        assert_eq!(out, [0x8F, 0x07]);
        pack(DType::I2, [0, -1, 1, -2].into_iter(), &mut out[..1]);
        assert_eq!(out[0], 0b10_01_11_00);
    }

    fn level(size: i32, sparse: Option<(&[i32], &[i32])>) -> DimensionMetadataT {
        let list = |v: &[i32]| SparseIndexVectorT::Int32Vector(Box::new(Int32VectorT { values: Some(v.to_vec()) }));
        match sparse {
            None => DimensionMetadataT { format: DimensionType::DENSE, dense_size: size, ..Default::default() },
            Some((s, i)) => DimensionMetadataT {
                format: DimensionType::SPARSE_CSR,
                dense_size: size,
                array_segments: list(s),
                array_indices: list(i),
            },
        }
    }

    #[test]
    fn sparse_constants() {
        // Compressed rows: row 0 holds column 2, row 1 columns 0 and 3.
        let mut t = Tensor::constant("w", DType::I8, &[2, 4], vec![7u8, 8, 9]);
        t.sparsity = Some(Box::new(SparsityParametersT {
            traversal_order: Some(vec![0, 1]),
            block_map: None,
            dim_metadata: Some(vec![level(2, None), level(4, Some((&[0, 1, 3], &[2, 0, 3])))]),
        }));
        assert_eq!(densify(&t).unwrap(), [0, 0, 7, 0, 8, 0, 0, 9]);
        // Blocks of 1 by 2: row 0 holds block 1, row 1 block 0.
        t.data = Some(vec![1u8, 2, 3, 4].into());
        t.sparsity = Some(Box::new(SparsityParametersT {
            traversal_order: Some(vec![0, 1, 2]),
            block_map: Some(vec![1]),
            dim_metadata: Some(vec![level(2, None), level(2, Some((&[0, 1, 2], &[1, 0]))), level(2, None)]),
        }));
        assert_eq!(densify(&t).unwrap(), [0, 0, 1, 2, 3, 4, 0, 0]);
        t.data = Some(vec![1u8].into());
        assert!(densify(&t).is_err());
        t.sparsity.as_mut().unwrap().dim_metadata.as_mut().unwrap()[1] = level(2, Some((&[0, 1, i32::MAX], &[1, 9])));
        assert!(densify(&t).is_err());
    }
}
