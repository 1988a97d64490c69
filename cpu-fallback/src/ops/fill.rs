//! Operators that make tensors: kernels.

use super::*;
use crate::kernel::Call;
use crate::moves::{self, Dst, Move, Src, ints, low_bytes};
use crate::strided::strides;
use bytemuck::Pod;
use litegpu_graph::{DType, Op, elements};
use std::hash::{BuildHasher, Hasher};

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    match &site.node.op {
        Op::Fill => Ok(Box::new(|call: &mut Call<'_>| moves::run(call, &[1], &Fill))),
        Op::Range => match site.output(0)?.dtype {
            DType::F32 => range(0f32, |a, b| a + b),
            DType::I32 => range(0i32, i32::wrapping_add),
            DType::I64 => range(0i64, i64::wrapping_add),
            _ => no_kernel(site),
        },
        Op::OneHot(o) => {
            let last = o.axis == -1;
            let axis = o.axis;
            Ok(Box::new(move |call: &mut Call<'_>| {
                let v = call.input(0)?;
                let ids = ints(&v)?;
                let axis = if last { v.shape.len() } else { litegpu_graph::ops::axis(axis as i64, v.shape.len() + 1)? };
                let inner = elements(v.shape.get(axis..).unwrap_or_default());
                moves::run(call, &[2, 3], &OneHot { ids: &ids, inner, axis })
            }))
        }
        Op::SparseToDense(_) => Ok(Box::new(|call: &mut Call<'_>| {
            let v = call.input(0)?;
            let ids = ints(&v)?;
            // A scalar or a vector holds indices of one dimension; a matrix holds one index per row.
            let depth = if v.shape.len() == 2 { v.shape[1] } else { 1 };
            moves::run(call, &[2, 3], &SparseToDense { ids: &ids, depth })
        })),
        // The reference writes plain zeros around a quantized diagonal too.
        Op::MatrixDiag => Ok(Box::new(|call: &mut Call<'_>| moves::run(call, &[0], &Diagonal { zero: Some(0) }))),
        Op::MatrixSetDiag => Ok(Box::new(|call: &mut Call<'_>| moves::run(call, &[0, 1], &Diagonal { zero: None }))),
        Op::BroadcastArgs => Ok(Box::new(|call: &mut Call<'_>| {
            let (a, b) = (ints(&call.input(0)?)?, ints(&call.input(1)?)?);
            let n = a.len().max(b.len());
            let out = call.output(0)?;
            let at = |s: &[i64], i: usize| (i + s.len()).checked_sub(n).map_or(1, |j| s[j]);
            for i in 0..n {
                let d = match (at(&a, i), at(&b, i)) {
                    (x, y) if x == y => x,
                    (1, y) => y,
                    (x, 1) => x,
                    _ => return Err(Error::invalid(format!("shapes {a:?} and {b:?} do not broadcast"))),
                };
                if out.dtype == DType::I64 {
                    out.as_mut_slice::<i64>()?[i] = d;
                } else {
                    out.as_mut_slice::<i32>()?[i] = d as i32;
                }
            }
            Ok(())
        })),
        Op::RandomUniform(o) => {
            let mut generator = Philox::new(o.seed, o.seed2);
            random(site, move |out| {
                for four in out.chunks_mut(4) {
                    four.iter_mut().zip(generator.next()).for_each(|(o, x)| *o = unit_f32(x));
                }
            })
        }
        Op::RandomStandardNormal(o) => {
            let mut generator = Philox::new(o.seed, o.seed2);
            random(site, move |out| {
                for four in out.chunks_mut(4) {
                    let x = generator.next();
                    let (a, b) = (box_muller(x[0], x[1]), box_muller(x[2], x[3]));
                    four.iter_mut().zip([a.0, a.1, b.0, b.1]).for_each(|(o, x)| *o = x);
                }
            })
        }
        Op::Multinomial(o) => {
            let generator = Philox::new(o.seed, o.seed2);
            if site.input(0)?.dtype != DType::F32 {
                return no_kernel(site);
            }
            match site.output(0)?.dtype {
                DType::I32 => multinomial(generator, |i| i as i32),
                DType::I64 => multinomial(generator, |i| i as i64),
                _ => no_kernel(site),
            }
        }
        _ => no_kernel(site),
    }
}

struct Fill;

impl Move for Fill {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        match (src.first().map(|s| s.data), dst.first_mut()) {
            (Some(&[v]), Some(d)) => {
                d.data.fill(v);
                Ok(())
            }
            _ => Err(Error::invalid("the value is no scalar")),
        }
    }
}

fn range<T: Pod + Send + Sync>(zero: T, add: impl Fn(T, T) -> T + Send + 'static) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let first = |i: usize| -> Result<T> { Ok(call.input(i)?.as_slice::<T>()?.first().copied().unwrap_or(zero)) };
        let (mut v, step) = (first(0)?, first(2)?);
        for o in call.output(0)?.as_mut_slice::<T>()? {
            *o = v;
            v = add(v, step);
        }
        Ok(())
    }))
}

struct OneHot<'a> {
    ids: &'a [i64],
    inner: usize,
    axis: usize,
}

impl Move for OneHot<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let ([on, off], Some(d)) = (src, dst.first_mut()) else { return Err(Error::invalid("no values")) };
        let (&[on], &[off]) = (on.data, off.data) else { return Err(Error::invalid("the values are no scalars")) };
        d.data.fill(off);
        let depth = d.shape.get(self.axis).copied().unwrap_or(0);
        for (i, &id) in self.ids.iter().enumerate() {
            // An index outside the depth makes a row of off values.
            if let Some(id) = usize::try_from(id).ok().filter(|&id| id < depth)
                && let Some(o) = d.data.get_mut((i / self.inner * depth + id) * self.inner + i % self.inner)
            {
                *o = on;
            }
        }
        Ok(())
    }
}

struct SparseToDense<'a> {
    ids: &'a [i64],
    depth: usize,
}

impl Move for SparseToDense<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let ([values, default], Some(d)) = (src, dst.first_mut()) else { return Err(Error::invalid("no values")) };
        let &[default] = default.data else { return Err(Error::invalid("the default is no scalar")) };
        let shape = d.shape.clone();
        if self.depth != shape.len() {
            return Err(Error::invalid(format!("indices of {} dimensions for shape {shape:?}", self.depth)));
        }
        d.data.fill(default);
        let steps = strides(&shape);
        let rows = self.ids.chunks(self.depth.max(1));
        if !(values.shape.is_empty() || values.data.len() == rows.len()) {
            return Err(Error::invalid(format!("{} values for {} indices", values.data.len(), rows.len())));
        }
        for (i, row) in rows.enumerate() {
            let mut at = 0;
            for ((&id, &n), &s) in row.iter().zip(&shape).zip(&steps) {
                let id = usize::try_from(id).ok().filter(|&id| id < n);
                at += id.ok_or_else(|| Error::invalid(format!("index {row:?} of shape {shape:?}")))? * s;
            }
            let value = if values.shape.is_empty() { values.data.first() } else { values.data.get(i) };
            if let (Some(o), Some(&v)) = (d.data.get_mut(at), value) {
                *o = v;
            }
        }
        Ok(())
    }
}

/// MATRIX_DIAG (`zero` around the diagonal) and MATRIX_SET_DIAG (a copy around it).
struct Diagonal {
    zero: Option<i64>,
}

impl Move for Diagonal {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (Some(x), Some(diagonal), Some(d)) = (src.first(), src.last(), dst.first_mut()) else {
            return Err(Error::invalid("no operand"));
        };
        let &[.., h, w] = d.shape.as_slice() else { return Err(Error::invalid("no matrix")) };
        match self.zero {
            Some(z) => d.data.fill(low_bytes(z)),
            None => d.data.copy_from_slice(x.data),
        }
        if h * w == 0 {
            return Ok(());
        }
        for (matrix, line) in d.data.chunks_mut(h * w).zip(diagonal.data.chunks(h.min(w))) {
            matrix.iter_mut().step_by(w + 1).zip(line).for_each(|(o, &v)| *o = v);
        }
        Ok(())
    }
}

fn random(site: &Site<'_>, mut f: impl FnMut(&mut [f32]) + Send + 'static) -> Result<Kernel> {
    if site.output(0)?.dtype != DType::F32 {
        return no_kernel(site);
    }
    Ok(Box::new(move |call: &mut Call<'_>| {
        f(call.output(0)?.as_mut_slice::<f32>()?);
        Ok(())
    }))
}

/// Philox 4x32 with ten rounds (Salmon et al., 2011): four numbers per step of a 128-bit counter.
#[derive(Debug, Clone)]
struct Philox {
    key: [u32; 2],
    counter: u128,
}

impl Philox {
    /// Two zero seeds ask for numbers that differ from session to session.
    fn new(seed: i64, seed2: i64) -> Philox {
        let (a, b) = if seed == 0 && seed2 == 0 {
            let entropy = || std::collections::hash_map::RandomState::new().build_hasher().finish();
            (entropy(), entropy())
        } else {
            (seed as u64, seed2 as u64)
        };
        Philox { key: [a as u32, (a >> 32) as u32], counter: (b as u128) << 64 }
    }

    fn next(&mut self) -> [u32; 4] {
        let n = self.counter;
        self.counter = n.wrapping_add(1);
        let mut c = [n as u32, (n >> 32) as u32, (n >> 64) as u32, (n >> 96) as u32];
        let mut key = self.key;
        for _ in 0..10 {
            let p = 0xD251_1F53u64 * c[0] as u64;
            let q = 0xCD9E_8D57u64 * c[2] as u64;
            c = [(q >> 32) as u32 ^ c[1] ^ key[0], q as u32, (p >> 32) as u32 ^ c[3] ^ key[1], p as u32];
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        c
    }
}

/// [0, 1) from the low 23 bits.
fn unit_f32(x: u32) -> f32 {
    f32::from_bits(127 << 23 | (x & 0x7f_ffff)) - 1.0
}

/// [0, 1) from 52 bits.
fn unit_f64(x: u32, y: u32) -> f64 {
    f64::from_bits(1023 << 52 | ((x & 0xf_ffff) as u64) << 32 | y as u64) - 1.0
}

/// Two normal numbers from two uniform ones.
fn box_muller(x: u32, y: u32) -> (f32, f32) {
    let u = unit_f32(x).max(1e-7);
    let angle = (2.0 * std::f64::consts::PI * unit_f32(y) as f64) as f32;
    let radius = (-2.0 * u.ln()).sqrt();
    (angle.sin() * radius, angle.cos() * radius)
}

fn multinomial<T: Pod + Send + Sync>(mut generator: Philox, of: fn(usize) -> T) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let v = call.input(0)?;
        let classes = v.shape.get(1).copied().filter(|&n| n > 0).ok_or_else(|| Error::invalid("no classes"))?;
        let logits = v.as_slice::<f32>()?;
        let out = call.output(0)?;
        let samples = out.shape.get(1).copied().unwrap_or(0);
        let batch = out.shape.first().copied().unwrap_or(0);
        let out = out.as_mut_slice::<T>()?;
        let mut local = generator.clone();
        // The reserve that TensorFlow takes, so that the next run continues where its generator would.
        let skip = (batch as u128).wrapping_mul(samples.next_multiple_of(4) as u128).wrapping_mul(512);
        generator.counter = generator.counter.wrapping_add(skip);
        let mut left: Vec<u32> = Vec::new();
        if samples == 0 {
            return Ok(());
        }
        for (row, out) in logits.chunks(classes).zip(out.chunks_mut(samples)) {
            let max = row.iter().copied().filter(|v| v.is_finite()).fold(f32::MIN, f32::max) as f64;
            let mut total = 0f64;
            let sums: Vec<f64> = row
                .iter()
                .map(|&v| {
                    if v.is_finite() {
                        total += (v as f64 - max).exp();
                    }
                    total
                })
                .collect();
            for o in out {
                if left.is_empty() {
                    let x = local.next();
                    left = vec![x[3], x[2], x[1], x[0]];
                }
                let (a, b) = (left.pop().unwrap_or(0), left.pop().unwrap_or(0));
                let at = unit_f64(a, b) * total;
                *o = of(sums.partition_point(|&s| s <= at));
            }
        }
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // The published test vectors of Random123 (kat_vectors, philox4x32 10).
        let mut zero = Philox { key: [0, 0], counter: 0 };
        assert_eq!(zero.next(), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        let mut ones = Philox { key: [u32::MAX; 2], counter: u128::MAX };
        assert_eq!(ones.next(), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(ones.counter, 0);
        let c = u128::from(0x243f6a88u32)
            | u128::from(0x85a308d3u32) << 32
            | u128::from(0x13198a2eu32) << 64
            | u128::from(0x03707344u32) << 96;
        let mut pi = Philox { key: [0xa4093822, 0x299f31d0], counter: c };
        assert_eq!(pi.next(), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn unit_ranges() {
        assert_eq!((unit_f32(0), unit_f64(0, 0)), (0.0, 0.0));
        assert!(unit_f32(u32::MAX) < 1.0 && unit_f64(u32::MAX, u32::MAX) < 1.0);
        assert!(box_muller(0, 0).1.is_finite());
    }
}
