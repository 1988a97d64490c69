//! Conversions between element types: kernels.

use super::*;
use crate::pool::Pool;
use crate::real::whole;
use crate::simd::{Isa, Task, dispatch};
use crate::tables::to_int;
use crate::value::{Value, View};
use crate::weights::{Source, pack, unpack};
use bytemuck::Pod;
use half::{bf16, f16};
use litegpu_graph::fixed::{Multiplier, type_range};
use litegpu_graph::schema::FakeQuantOptionsT;
use litegpu_graph::{DType, Op, Quant, Tensor};
use std::borrow::Cow;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    match &site.node.op {
        Op::Quantize => quantize(site),
        Op::Dequantize => dequantize(site),
        Op::Cast(_) => cast(site),
        Op::FakeQuant(o) => fake_quant(site, o),
        Op::Bitcast => Ok(Box::new(|call| {
            let x = call.input(0)?;
            copy(x.bytes, call.output(0)?)
        })),
        Op::Densify => {
            let source = Source::new(site, 0)?;
            if site.input(0)?.dtype != site.output(0)?.dtype {
                return Err(site.unsupported("an output of another type"));
            }
            Ok(Box::new(move |call| {
                let x = source.get(call)?;
                copy(x.raw(), call.output(0)?)
            }))
        }
        _ => no_kernel(site),
    }
}

fn copy(from: &[u8], to: &mut Value) -> Result<()> {
    let to = to.bytes_mut();
    if to.len() != from.len() {
        return Err(Error::invalid(format!("{} bytes for an output of {}", from.len(), to.len())));
    }
    to.copy_from_slice(from);
    Ok(())
}

/// Applies a function to every element, in vectors and threads where that pays. The function holds what it needs
/// itself: loops that write might else write what it refers to, and would not become vector code.
fn map<X: Pod + Sync, Y: Pod + Send>(pool: &Pool, x: &[X], y: &mut [Y], f: impl Fn(X) -> Y + Sync + Copy) {
    struct Piece<'a, X, Y, F>(&'a [X], &'a mut [Y], F);
    impl<X: Copy, Y, F: Fn(X) -> Y> Task for Piece<'_, X, Y, F> {
        type Output = ();
        #[inline(always)]
        fn run<S: Isa>(self) {
            let f = self.2;
            for (y, x) in self.1.iter_mut().zip(self.0) {
                *y = f(*x);
            }
        }
    }
    const CHUNK: usize = 8 * 1024;
    let parallel = x.len() >= 2 * CHUNK;
    let chunk = if parallel { CHUNK } else { x.len() };
    pool.chunks(y, chunk, parallel, |i, y| {
        let x = x.get(i * chunk..).unwrap_or_default();
        dispatch(Piece(x, y, f));
    });
}

/// The extents before, of and behind an axis.
fn around(shape: &[usize], axis: usize) -> Result<(usize, usize)> {
    match shape.get(axis) {
        Some(&n) => Ok((n, shape[axis + 1..].iter().product())),
        None => Err(Error::invalid(format!("quantization axis {axis} of shape {shape:?}"))),
    }
}

/// Scale and zero point of each channel.
fn channels(q: &Quant) -> Vec<(f32, i32)> {
    let zero = |i: usize| q.zero_point.get(i).or(q.zero_point.first()).copied().unwrap_or(0) as i32;
    q.scale.iter().enumerate().map(|(i, &s)| (s, zero(i))).collect()
}

fn quantization(t: &Tensor) -> Result<&Quant> {
    let q = t.quant.as_ref().filter(|q| !q.scale.is_empty());
    q.ok_or_else(|| Error::invalid(format!("tensor '{}' of type {} has no scale", t.name, t.dtype)))
}

fn quantize(site: &Site<'_>) -> Result<Kernel> {
    let (x, y) = (site.input(0)?, site.output(0)?);
    let to = quantization(y)?;
    match (x.dtype, y.dtype) {
        (DType::F32, DType::I8) => from_float::<i8>(site, to),
        (DType::F32, DType::U8) => from_float::<u8>(site, to),
        (DType::F32, DType::I16) => from_float::<i16>(site, to),
        (DType::F32, DType::I4 | DType::U4) => {
            let dtype = y.dtype;
            let &[(scale, zero)] = channels(to).as_slice() else {
                return Err(site.unsupported("4-bit values per channel"));
            };
            let (low, high) = if dtype == DType::I4 { (-8, 7) } else { (0, 15) };
            Ok(Box::new(move |call| {
                let x = call.input(0)?.as_slice::<f32>()?;
                let q = x.iter().map(|&x| quantize_one(x, scale, zero, low, high) as i8);
                pack(dtype, q, call.output(0)?.bytes_mut());
                Ok(())
            }))
        }
        (DType::I8, DType::I8) => requantize::<i8, i8>(site),
        (DType::I8, DType::U8) => requantize::<i8, u8>(site),
        (DType::I8, DType::I16) => requantize::<i8, i16>(site),
        (DType::U8, DType::I8) => requantize::<u8, i8>(site),
        (DType::U8, DType::U8) => requantize::<u8, u8>(site),
        (DType::U8, DType::I16) => requantize::<u8, i16>(site),
        (DType::I16, DType::I8) => requantize::<i16, i8>(site),
        (DType::I16, DType::I16) => requantize::<i16, i16>(site),
        (DType::I16, DType::I32) => requantize::<i16, i32>(site),
        (DType::I32, DType::I8) => requantize::<i32, i8>(site),
        (DType::I32, DType::I16) => requantize::<i32, i16>(site),
        _ => no_kernel(site),
    }
}

#[inline(always)]
fn quantize_one(x: f32, scale: f32, zero: i32, low: i32, high: i32) -> i32 {
    round(x / scale).wrapping_add(zero).clamp(low, high)
}

/// [`quantize_one`] with the limits before the conversion to an integer, which is vector code; the zero point lies within
/// them.
#[derive(Debug, Clone, Copy)]
struct Limits {
    zero: i32,
    /// Less the zero point.
    least: f32,
    most: f32,
    /// What becomes of numbers that no 32-bit integer holds, NaN among them.
    beyond: f32,
}

impl Limits {
    fn new(zero: i32, low: i32, high: i32) -> Limits {
        let beyond = i32::MIN.wrapping_add(zero).clamp(low, high) - zero;
        Limits { zero, least: (low - zero) as f32, most: (high - zero) as f32, beyond: beyond as f32 }
    }
    #[inline(always)]
    fn quantize(&self, x: f32, scale: f32) -> i32 {
        let q = x / scale;
        let q = q + 0.499_999_97f32.copysign(q);
        let held = q.abs() < -(i32::MIN as f32);
        let q = if q < self.least { self.least } else { q };
        let q = if q > self.most { self.most } else { q };
        let q = if held { q } else { self.beyond };
        // At most 17 bits, whatever the type.
        whole(q.trunc()).wrapping_add(self.zero)
    }
}

/// Half away from zero, without a call into the maths library; [`to_int`] says what becomes of infinities.
#[inline(always)]
fn round(x: f32) -> i32 {
    to_int(x + 0.499_999_97f32.copysign(x))
}

trait Element: Pod + Send + Sync {
    fn wide(self) -> i32;
    fn narrow(x: i32) -> Self;
}
macro_rules! elements {
    ($($t:ty),*) => { $(
        impl Element for $t {
            #[inline(always)]
            fn wide(self) -> i32 {
                self as i32
            }
            #[inline(always)]
            fn narrow(x: i32) -> $t {
                x as $t
            }
        }
    )* };
}
elements!(i8, u8, i16, i32);

fn from_float<Y: Element>(site: &Site<'_>, to: &Quant) -> Result<Kernel> {
    let (low, high) = type_range(site.output(0)?.dtype)?;
    let (channels, axis) = (channels(to), to.axis);
    if channels.iter().any(|c| c.0 <= 0.0) {
        return Err(Error::invalid("a scale that is not positive"));
    }
    if let &[(scale, zero)] = channels.as_slice() {
        return Ok(Box::new(move |call| {
            let (x, pool) = (call.input(0)?.as_slice::<f32>()?, call.pool);
            let y = call.output(0)?.as_mut_slice::<Y>()?;
            if (low..=high).contains(&zero) {
                let limits = Limits::new(zero, low, high);
                map(pool, x, y, move |x| Y::narrow(limits.quantize(x, scale)));
                return Ok(());
            }
            map(pool, x, y, move |x| Y::narrow(quantize_one(x, scale, zero, low, high)));
            Ok(())
        }));
    }
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let (n, inner) = around(x.shape, axis)?;
        if n != channels.len() {
            return Err(Error::invalid(format!("{} scales for {n} channels", channels.len())));
        }
        let y = call.output(0)?.as_mut_slice::<Y>()?;
        let x = x.as_slice::<f32>()?;
        for (i, (x, y)) in x.chunks_exact(inner.max(1)).zip(y.chunks_exact_mut(inner.max(1))).enumerate() {
            let (scale, zero) = channels[i % n];
            y.iter_mut().zip(x).for_each(|(y, x)| *y = Y::narrow(quantize_one(*x, scale, zero, low, high)));
        }
        Ok(())
    }))
}

/// What becomes of a tensor that has one scale.
fn of_tensors(x: &Tensor, y: &Tensor) -> Result<Change> {
    let per_tensor = |t: &Tensor| {
        t.per_tensor().ok_or_else(|| Error::invalid(format!("tensor '{}' has no per-tensor scale", t.name)))
    };
    let (from, to) = (per_tensor(x)?, per_tensor(y)?);
    // Converters give a constant of zeros a scale of zero.
    if !(from.0 >= 0.0 && to.0 > 0.0) {
        return Err(Error::invalid(format!("a scale of {} to a scale of {}", from.0, to.0)));
    }
    Ok((Multiplier::new(from.0 as f64 / to.0 as f64), from.1, to.1))
}

fn requantize<X: Element, Y: Element>(site: &Site<'_>) -> Result<Kernel> {
    let (x, y) = (site.input(0)?, site.output(0)?);
    let (low, high) = type_range(y.dtype)?;
    if quantization(x)?.scale.len() > 1 || quantization(y)?.scale.len() > 1 {
        let (axis, constants) = by_channel(quantization(x)?, quantization(y)?)?;
        return requantize_channels::<X, Y>(axis, constants, (low, high));
    }
    let (m, from, to) = of_tensors(x, y)?;
    let one = move |x: i32| m.apply(x.wrapping_sub(from)).wrapping_add(to).clamp(low, high);
    if size_of::<X>() == 1 {
        // 256 values: a table, indexed by the byte.
        let signed = x.dtype == DType::I8;
        let table: Vec<Y> =
            (0..=255u8).map(|b| Y::narrow(one(if signed { b as i8 as i32 } else { b as i32 }))).collect();
        return Ok(Box::new(move |call| {
            let x = call.input(0)?.bytes;
            let y = call.output(0)?.as_mut_slice::<Y>()?;
            for (y, x) in y.iter_mut().zip(x) {
                *y = table[*x as usize];
            }
            Ok(())
        }));
    }
    Ok(Box::new(move |call| {
        let (x, pool) = (call.input(0)?.as_slice::<X>()?, call.pool);
        map(pool, x, call.output(0)?.as_mut_slice::<Y>()?, move |x| Y::narrow(one(x.wide())));
        Ok(())
    }))
}

/// The multiplier and the zero points of a channel.
type Change = (Multiplier, i32, i32);

/// The axis of channels where either side has a scale for each, and what becomes of each channel.
fn by_channel(from: &Quant, to: &Quant) -> Result<(usize, Vec<Change>)> {
    let axis = if from.scale.len() > 1 { from.axis } else { to.axis };
    let (from, to, other) = (channels(from), channels(to), to.axis);
    let n = from.len().max(to.len());
    if from.iter().chain(&to).any(|c| !(c.0 > 0.0)) {
        return Err(Error::invalid("a scale that is not positive"));
    }
    let fits = |list: &[(f32, i32)]| list.len() == 1 || list.len() == n;
    if !fits(&from) || !fits(&to) || (to.len() > 1 && other != axis) {
        return Err(Error::invalid(format!("{} scales to {} scales", from.len(), to.len())));
    }
    let at = |list: &[(f32, i32)], i: usize| if list.len() == 1 { list[0] } else { list[i] };
    let constant = |i| {
        let ((s, z), (t, y)) = (at(&from, i), at(&to, i));
        (Multiplier::new(s as f64 / t as f64), z, y)
    };
    Ok((axis, (0..n).map(constant).collect()))
}

/// The elements of a channel: they must be as many as there are constants.
fn channel_of(shape: &[usize], axis: usize, constants: &[Change]) -> Result<usize> {
    let (n, inner) = around(shape, axis)?;
    if n != constants.len() {
        return Err(Error::invalid(format!("{} scales for {n} channels", constants.len())));
    }
    Ok(inner.max(1))
}

/// [`requantize`] with a scale for each channel. The reference takes such a scale for zero, whatever the values; here they
/// keep their meaning. It is generic in no more than its loop.
fn requantize_channels<X: Element, Y: Element>(
    axis: usize,
    constants: Vec<Change>,
    range: (i32, i32),
) -> Result<Kernel> {
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let inner = channel_of(x.shape, axis, &constants)?;
        let (x, y) = (x.as_slice::<X>()?, call.output(0)?.as_mut_slice::<Y>()?);
        let rows = x.chunks_exact(inner).zip(y.chunks_exact_mut(inner));
        for ((x, y), &(m, zx, zy)) in rows.zip(constants.iter().cycle()) {
            for (y, x) in y.iter_mut().zip(x) {
                let v = m.apply(x.wide().wrapping_sub(zx)).wrapping_add(zy);
                *y = Y::narrow(v.clamp(range.0, range.1));
            }
        }
        Ok(())
    }))
}

fn dequantize(site: &Site<'_>) -> Result<Kernel> {
    let (x, y) = (site.input(0)?, site.output(0)?);
    if y.dtype != DType::F32 {
        return no_kernel(site);
    }
    let source = Source::new(site, 0)?;
    let dtype = x.dtype;
    match dtype {
        DType::F16 => {
            return Ok(Box::new(move |call| {
                let (x, pool) = (source.get(call)?, call.pool);
                let halves: &[f16] = bytemuck::try_cast_slice(x.raw()).unwrap_or_default();
                let y = call.output(0)?.as_mut_slice::<f32>()?;
                if halves.len() == y.len() {
                    map(pool, halves, y, f16::to_f32);
                    return Ok(());
                }
                for (y, b) in y.iter_mut().zip(x.raw().as_chunks::<2>().0) {
                    *y = f16::from_le_bytes(*b).to_f32();
                }
                Ok(())
            }));
        }
        DType::F8E4M3 | DType::F8E5M2 => {
            let table = float8_table(dtype);
            return Ok(Box::new(move |call| {
                let x = source.get(call)?;
                let y = call.output(0)?.as_mut_slice::<f32>()?;
                y.iter_mut().zip(x.raw()).for_each(|(y, b)| *y = table[*b as usize]);
                Ok(())
            }));
        }
        DType::I8 | DType::U8 | DType::I16 | DType::I4 | DType::U4 | DType::I2 | DType::I32 => {}
        _ => return no_kernel(site),
    }
    let q = quantization(x)?;
    let (channels, axis) = (channels(q), q.axis);
    Ok(Box::new(move |call| {
        let (x, pool) = (source.get(call)?, call.pool);
        let n = x.len();
        let y = call.output(0)?.as_mut_slice::<f32>()?;
        let unpacked;
        let bytes = match dtype {
            DType::I4 | DType::U4 | DType::I2 => {
                unpacked = unpack(dtype, x.raw(), n)?;
                bytemuck::cast_slice(&unpacked)
            }
            _ => x.raw(),
        };
        let (inner, count) = if channels.len() == 1 {
            (n, 1)
        } else {
            let (count, inner) = around(x.shape, axis)?;
            (inner, count)
        };
        if count != channels.len() {
            return Err(Error::invalid(format!("{} scales for {count} channels", channels.len())));
        }
        match dtype {
            DType::U8 | DType::U4 => spread(pool, bytes, y, inner, &channels, |b| b as i16),
            DType::I16 => spread(pool, words(bytes)?.as_ref(), y, inner, &channels, |b: i16| b),
            DType::I32 => {
                let x: Vec<i32> = bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
                for (i, (x, y)) in x.chunks(inner.max(1)).zip(y.chunks_mut(inner.max(1))).enumerate() {
                    let (scale, zero) = channels[i % channels.len()];
                    map(pool, x, y, move |x: i32| (scale as f64 * x.wrapping_sub(zero) as f64) as f32);
                }
            }
            _ => spread(pool, bytes, y, inner, &channels, |b| b as i8 as i16),
        }
        Ok(())
    }))
}

fn words(bytes: &[u8]) -> Result<Cow<'_, [i16]>> {
    Ok(match bytemuck::try_cast_slice(bytes) {
        Ok(w) => Cow::Borrowed(w),
        Err(_) => Cow::Owned(bytes.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b)).collect()),
    })
}

/// Runs of `inner` elements, each with the scale and zero point of its channel.
fn spread<X: Pod + Sync>(
    pool: &Pool,
    x: &[X],
    y: &mut [f32],
    inner: usize,
    channels: &[(f32, i32)],
    wide: impl Fn(X) -> i16 + Sync + Copy,
) {
    for (i, (x, y)) in x.chunks(inner.max(1)).zip(y.chunks_mut(inner.max(1))).enumerate() {
        let (scale, zero) = channels[i % channels.len()];
        // Up to 24 bits the difference is exact in single precision, and the product is rounded once.
        if zero.unsigned_abs() < 1 << 23 {
            map(pool, x, y, move |x| scale * (wide(x) as i32 - zero) as f32);
        } else {
            let far = |x: X| (scale as f64 * (wide(x) as i32).wrapping_sub(zero) as f64) as f32;
            y.iter_mut().zip(x).for_each(|(y, x)| *y = far(*x));
        }
    }
}

/// All values of an 8-bit float type.
fn float8_table(dtype: DType) -> Vec<f32> {
    let (mantissa, bias) = if dtype == DType::F8E4M3 { (3, 7) } else { (2, 15) };
    let value = |b: u8| {
        let exponent = ((b & 0x7f) >> mantissa) as i32;
        let fraction = (b & ((1 << mantissa) - 1)) as f32 / (1 << mantissa) as f32;
        let top = 0x7f >> mantissa;
        let x = match dtype {
            // No infinities: only the very last pattern is not a number.
            DType::F8E4M3 if b & 0x7f == 0x7f => f32::NAN,
            DType::F8E5M2 if exponent == top => {
                if fraction == 0.0 {
                    f32::INFINITY
                } else {
                    f32::NAN
                }
            }
            _ if exponent == 0 => fraction * 2f32.powi(1 - bias),
            _ => (1.0 + fraction) * 2f32.powi(exponent - bias),
        };
        if b & 0x80 != 0 { -x } else { x }
    };
    (0..=255).map(value).collect()
}

fn fake_quant(site: &Site<'_>, o: &FakeQuantOptionsT) -> Result<Kernel> {
    if o.narrow_range {
        return Err(site.unsupported("a narrow range"));
    }
    if site.input(0)?.dtype != DType::F32 || site.output(0)?.dtype != DType::F32 {
        return no_kernel(site);
    }
    if !(1..=16).contains(&o.num_bits) || o.min.partial_cmp(&o.max) != Some(std::cmp::Ordering::Less) {
        return Err(Error::invalid(format!("{} bits from {} to {}", o.num_bits, o.min, o.max)));
    }
    // The range is moved so that zero falls on a step.
    let top = ((1u32 << o.num_bits) - 1) as f32;
    let scale = (o.max - o.min) / top;
    let zero = (-o.min / scale).clamp(0.0, top).round();
    let (low, high) = (-zero * scale, (top - zero) * scale);
    let inverse = 1.0 / scale;
    Ok(Box::new(move |call| {
        let (x, pool) = (call.input(0)?.as_slice::<f32>()?, call.pool);
        map(pool, x, call.output(0)?.as_mut_slice::<f32>()?, |x: f32| {
            let x = if x < low { low } else { x };
            let x = if x > high { high } else { x };
            ((x - low) * inverse).round() * scale + low
        });
        Ok(())
    }))
}

/// A number on its way from one type to another.
#[derive(Debug, Clone, Copy)]
enum Number {
    Int(i64),
    /// uint64 alone goes past int64.
    Large(u64),
    Float(f64),
    Complex(f64, f64),
}

fn cast(site: &Site<'_>) -> Result<Kernel> {
    let (from, to) = (site.input(0)?.dtype, site.output(0)?.dtype);
    if !castable(from) || !castable(to) {
        return no_kernel(site);
    }
    match (from, to) {
        (f, t) if f == t && f.bits() % 8 == 0 => {
            return Ok(Box::new(|call| {
                let x = call.input(0)?;
                copy(x.bytes, call.output(0)?)
            }));
        }
        (DType::I32, DType::F32) => return Ok(direct(|x: i32| x as f32)),
        (DType::I64, DType::F32) => return Ok(direct(|x: i64| x as f32)),
        (DType::I8, DType::F32) => return Ok(direct(|x: i8| x as f32)),
        (DType::U8, DType::F32) => return Ok(direct(|x: u8| x as f32)),
        (DType::Bool, DType::F32) => return Ok(direct(|x: u8| if x != 0 { 1.0f32 } else { 0.0 })),
        (DType::F32, DType::I32) => return Ok(direct(|x: f32| if x.is_nan() { i32::MAX } else { x as i32 })),
        (DType::F32, DType::F16) => return Ok(direct(f16::from_f32)),
        (DType::F16, DType::F32) => return Ok(direct(f16::to_f32)),
        _ => {}
    }
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let n = x.len();
        let y = call.output(0)?;
        if y.len() != n {
            return Err(Error::invalid(format!("{n} elements for an output of {}", y.len())));
        }
        if to.bits() < 8 {
            let (low, high) = match to {
                DType::I4 => (-8.0, 7.0),
                DType::U4 => (0.0, 15.0),
                _ => (-2.0, 1.0),
            };
            let values = (0..n).map(|i| match read(&x, i) {
                Number::Float(f) => f.clamp(low, high) as i8,
                Number::Int(v) => v.clamp(low as i64, high as i64) as i8,
                Number::Large(v) => v.min(high as u64) as i8,
                Number::Complex(f, _) => f.clamp(low, high) as i8,
            });
            pack(to, values, y.bytes_mut());
            return Ok(());
        }
        let size = to.bits() / 8;
        for (i, out) in y.bytes_mut().chunks_exact_mut(size).enumerate().take(n) {
            write(to, read(&x, i), out);
        }
        Ok(())
    }))
}

fn direct<X: Pod + Sync, Y: Pod + Send>(f: impl Fn(X) -> Y + Send + Sync + 'static) -> Kernel {
    Box::new(move |call| {
        let (x, pool) = (call.input(0)?.as_slice::<X>()?, call.pool);
        map(pool, x, call.output(0)?.as_mut_slice::<Y>()?, &f);
        Ok(())
    })
}

fn castable(d: DType) -> bool {
    !matches!(d, DType::String | DType::Resource | DType::Variant)
}

/// Element `i`; zero where there is none.
fn read(x: &View<'_>, i: usize) -> Number {
    fn at<const N: usize>(b: &[u8], i: usize) -> [u8; N] {
        b.as_chunks::<N>().0.get(i).copied().unwrap_or([0; N])
    }
    let b = x.bytes;
    let bits = |width: usize| {
        let per = 8 / width;
        b.get(i / per).map_or(0, |b| b >> (width * (i % per)))
    };
    match x.dtype {
        DType::F32 => Number::Float(f32::from_le_bytes(at(b, i)) as f64),
        DType::F64 => Number::Float(f64::from_le_bytes(at(b, i))),
        DType::F16 => Number::Float(f16::from_le_bytes(at(b, i)).to_f64()),
        DType::BF16 => Number::Float(bf16::from_le_bytes(at(b, i)).to_f64()),
        DType::F8E4M3 | DType::F8E5M2 => Number::Float(float8(x.dtype, at::<1>(b, i)[0])),
        DType::I8 => Number::Int(at::<1>(b, i)[0] as i8 as i64),
        DType::U8 => Number::Int(at::<1>(b, i)[0] as i64),
        DType::Bool => Number::Int((at::<1>(b, i)[0] != 0) as i64),
        DType::I16 => Number::Int(i16::from_le_bytes(at(b, i)) as i64),
        DType::U16 => Number::Int(u16::from_le_bytes(at(b, i)) as i64),
        DType::I32 => Number::Int(i32::from_le_bytes(at(b, i)) as i64),
        DType::U32 => Number::Int(u32::from_le_bytes(at(b, i)) as i64),
        DType::I64 => Number::Int(i64::from_le_bytes(at(b, i))),
        DType::U64 => Number::Large(u64::from_le_bytes(at(b, i))),
        DType::I4 => Number::Int(((bits(4) << 4) as i8 >> 4) as i64),
        DType::U4 => Number::Int((bits(4) & 15) as i64),
        DType::I2 => Number::Int(((bits(2) << 6) as i8 >> 6) as i64),
        DType::C64 => {
            let pair: [u8; 8] = at(b, i);
            let part = |k: usize| f32::from_le_bytes(at(&pair, k)) as f64;
            Number::Complex(part(0), part(1))
        }
        DType::C128 => {
            let pair: [u8; 16] = at(b, i);
            let part = |k: usize| f64::from_le_bytes(at(&pair, k));
            Number::Complex(part(0), part(1))
        }
        DType::String | DType::Resource | DType::Variant => Number::Int(0),
    }
}

fn float8(dtype: DType, b: u8) -> f64 {
    float8_table(dtype)[b as usize] as f64
}

/// Writes a number, as the reference converts it: floats to integers saturate, with NaN as the largest; integers to
/// integers wrap; the real part of a complex number counts.
fn write(to: DType, x: Number, out: &mut [u8]) {
    let float = match x {
        Number::Int(v) => v as f64,
        Number::Large(v) => v as f64,
        Number::Float(f) | Number::Complex(f, _) => f,
    };
    // Integers become float32 in one rounding, not through float64.
    let single = match x {
        Number::Int(v) => v as f32,
        Number::Large(v) => v as f32,
        Number::Float(f) | Number::Complex(f, _) => f as f32,
    };
    macro_rules! int {
        ($t:ty) => {{
            let v: $t = match x {
                Number::Int(v) => v as $t,
                Number::Large(v) => v as $t,
                Number::Float(f) | Number::Complex(f, _) => {
                    if f.is_nan() {
                        <$t>::MAX
                    } else {
                        f as $t
                    }
                }
            };
            out.copy_from_slice(&v.to_le_bytes());
        }};
    }
    match to {
        DType::F32 => out.copy_from_slice(&single.to_le_bytes()),
        DType::F64 => out.copy_from_slice(&float.to_le_bytes()),
        DType::F16 => out.copy_from_slice(&f16::from_f32(single).to_le_bytes()),
        DType::BF16 => out.copy_from_slice(&bf16::from_f32(single).to_le_bytes()),
        DType::F8E4M3 | DType::F8E5M2 => out.copy_from_slice(&[nearest8(to, single)]),
        DType::I8 => int!(i8),
        DType::U8 => int!(u8),
        DType::I16 => int!(i16),
        DType::U16 => int!(u16),
        DType::I32 => int!(i32),
        DType::U32 => int!(u32),
        DType::I64 => int!(i64),
        DType::U64 => int!(u64),
        DType::Bool => {
            let yes = match x {
                Number::Int(v) => v != 0,
                Number::Large(v) => v != 0,
                Number::Float(f) | Number::Complex(f, _) => f != 0.0,
            };
            out.copy_from_slice(&[yes as u8]);
        }
        DType::C64 => {
            let imaginary = if let Number::Complex(_, i) = x { i as f32 } else { 0.0 };
            out[..4].copy_from_slice(&single.to_le_bytes());
            out[4..].copy_from_slice(&imaginary.to_le_bytes());
        }
        DType::C128 => {
            let imaginary = if let Number::Complex(_, i) = x { i } else { 0.0 };
            out[..8].copy_from_slice(&float.to_le_bytes());
            out[8..].copy_from_slice(&imaginary.to_le_bytes());
        }
        DType::I4 | DType::U4 | DType::I2 | DType::String | DType::Resource | DType::Variant => {}
    }
}

/// The nearest 8-bit float, ties to even; too large a number becomes infinity, or NaN where there is no infinity.
fn nearest8(dtype: DType, x: f32) -> u8 {
    let table = float8_table(dtype);
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let (mantissa, largest, beyond) = if dtype == DType::F8E4M3 { (3, 0x7eu8, 0x7fu8) } else { (2, 0x7bu8, 0x7cu8) };
    let a = x.abs();
    if a.is_nan() {
        return sign | if dtype == DType::F8E4M3 { 0x7f } else { 0x7e };
    }
    let top = table[largest as usize];
    // Half a step past the largest still rounds down to it, unless that is the odd neighbour.
    let step = top - table[largest as usize - 1];
    if a > top + step / 2.0 || (a == top + step / 2.0 && largest & 1 == 1) {
        return sign | beyond;
    }
    let _ = mantissa;
    let mut best = 0u8;
    for b in 0..=largest {
        let (d, e) = ((table[b as usize] - a).abs(), (table[best as usize] - a).abs());
        if d < e || (d == e && b & 1 == 0) {
            best = b;
        }
    }
    sign | best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_before_the_conversion_change_nothing() {
        let tiny = f32::from_bits(1);
        let special = [0.0, 0.4999, 0.5, -0.5, 1.5, 127.49, -128.5, 3e4, -4e4, 2.1e9, 2.2e9, 1e30, tiny];
        let special = special.into_iter().chain([f32::NAN, f32::INFINITY]).flat_map(|x| [x, -x]);
        for (zero, low, high) in [(0, -32768, 32767), (0, -128, 127), (-128, -128, 127), (5, -128, 127), (200, 0, 255)]
        {
            let limits = Limits::new(zero, low, high);
            for x in special.clone() {
                for scale in [1.0, 0.013, 1e-20] {
                    let want = quantize_one(x, scale, zero, low, high);
                    assert_eq!(limits.quantize(x, scale), want, "{x} by {scale}, {zero}");
                }
            }
        }
    }
}
