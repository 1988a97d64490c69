//! Reductions, scans and segment operators: kernels.

use super::stablehlo::{Fold as How, folding};
use super::*;
use crate::in_order::add_rows;
use crate::kernel::Call;
use crate::moves::{int, ints};
use crate::pool::Pool;
use crate::strided::strides;
use crate::tables::{quantization, to_int};
use bytemuck::Pod;
use half::{bf16, f16};
use litegpu_graph::fixed::{self, Multiplier};
use litegpu_graph::ops as rules;
use litegpu_graph::schema::ReduceWindowFunction as Window;
use litegpu_graph::{DType, Op, elements};
use smallvec::SmallVec;

/// Elements below which a loop stays on one thread.
const PARALLEL: usize = 1 << 16;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let (x, y) = (site.input(0)?, site.output(0)?);
    let same = x.dtype == y.dtype;
    match &site.node.op {
        Op::ArgMax(_) => return arg(site, true),
        Op::ArgMin(_) => return arg(site, false),
        _ if !same => return Err(Error::invalid(format!("{} in, {} out", x.dtype, y.dtype))),
        _ => {}
    }
    match &site.node.op {
        Op::Sum(_) => match x.dtype {
            DType::F32 => sum_f32(false),
            DType::F16 => halves(f16::to_f32, f16::from_f32, 0.0, |a, b| a + b, false),
            DType::BF16 => halves(bf16::to_f32, bf16::from_f32, 0.0, |a, b| a + b, false),
            DType::I32 => fold(0i32, i32::wrapping_add),
            DType::I64 => fold(0i64, i64::wrapping_add),
            DType::U32 => fold(0u32, u32::wrapping_add),
            DType::I8 | DType::U8 | DType::I16 if x.quant.is_some() => quantized_sum(site),
            _ => no_kernel(site),
        },
        Op::Mean(_) => match x.dtype {
            DType::F32 => sum_f32(true),
            DType::F16 => halves(f16::to_f32, f16::from_f32, 0.0, |a, b| a + b, true),
            DType::BF16 => halves(bf16::to_f32, bf16::from_f32, 0.0, |a, b| a + b, true),
            DType::I32 => mean_of_ints(|v: i32| v as i64, |v| v as i32),
            DType::I64 => mean_of_ints(|v: i64| v, |v| v),
            DType::I8 => quantized_mean(site, |v: i8| v as i32, |v| v as i8),
            DType::U8 => quantized_mean(site, |v: u8| v as i32, |v| v as u8),
            DType::I16 => quantized_mean(site, |v: i16| v as i32, |v| v as i16),
            _ => no_kernel(site),
        },
        Op::ReduceProd(_) => match x.dtype {
            DType::F32 => fold(1f32, |a, b| a * b),
            DType::F16 => halves(f16::to_f32, f16::from_f32, 1.0, |a, b| a * b, false),
            DType::BF16 => halves(bf16::to_f32, bf16::from_f32, 1.0, |a, b| a * b, false),
            DType::I32 => fold(1i32, i32::wrapping_mul),
            DType::I64 => fold(1i64, i64::wrapping_mul),
            DType::I8 => quantized_product(site, |v: i8| v as i32, |v| v as i8),
            DType::U8 => quantized_product(site, |v: u8| v as i32, |v| v as u8),
            DType::I16 => quantized_product(site, |v: i16| v as i32, |v| v as i16),
            _ => no_kernel(site),
        },
        Op::ReduceMax(_) => match x.dtype {
            DType::F32 => fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a }),
            DType::F16 => {
                halves(f16::to_f32, f16::from_f32, f32::NEG_INFINITY, |a, b| if b > a { b } else { a }, false)
            }
            DType::BF16 => {
                halves(bf16::to_f32, bf16::from_f32, f32::NEG_INFINITY, |a, b| if b > a { b } else { a }, false)
            }
            DType::I8 => fold(i8::MIN, i8::max),
            DType::U8 => fold(u8::MIN, u8::max),
            DType::I16 => fold(i16::MIN, i16::max),
            DType::I32 => fold(i32::MIN, i32::max),
            DType::I64 => fold(i64::MIN, i64::max),
            _ => no_kernel(site),
        },
        Op::ReduceMin(_) => match x.dtype {
            DType::F32 => fold(f32::INFINITY, |a, b| if b < a { b } else { a }),
            DType::F16 => halves(f16::to_f32, f16::from_f32, f32::INFINITY, |a, b| if b < a { b } else { a }, false),
            DType::BF16 => halves(bf16::to_f32, bf16::from_f32, f32::INFINITY, |a, b| if b < a { b } else { a }, false),
            DType::I8 => fold(i8::MAX, i8::min),
            DType::U8 => fold(u8::MAX, u8::min),
            DType::I16 => fold(i16::MAX, i16::min),
            DType::I32 => fold(i32::MAX, i32::min),
            DType::I64 => fold(i64::MAX, i64::min),
            _ => no_kernel(site),
        },
        Op::ReduceAny(_) if x.dtype == DType::Bool => fold(0u8, |a, b| a | (b != 0) as u8),
        Op::ReduceAll(_) if x.dtype == DType::Bool => fold(1u8, |a, b| a & (b != 0) as u8),
        Op::Cumsum(o) => {
            let (exclusive, reverse) = (o.exclusive, o.reverse);
            match x.dtype {
                DType::F32 => cumsum(exclusive, reverse, 0f32, |a, b| a + b),
                DType::I32 => cumsum(exclusive, reverse, 0i32, i32::wrapping_add),
                DType::I64 => cumsum(exclusive, reverse, 0i64, i64::wrapping_add),
                _ => no_kernel(site),
            }
        }
        Op::SegmentSum => match x.dtype {
            DType::F32 => segments(true, 0f32, |a, b| a + b),
            DType::I32 => segments(true, 0i32, i32::wrapping_add),
            DType::I64 => segments(true, 0i64, i64::wrapping_add),
            _ => no_kernel(site),
        },
        Op::UnsortedSegmentSum => match x.dtype {
            DType::F32 => segments(false, 0f32, |a, b| a + b),
            DType::I32 => segments(false, 0i32, i32::wrapping_add),
            DType::I64 => segments(false, 0i64, i64::wrapping_add),
            _ => no_kernel(site),
        },
        Op::UnsortedSegmentProd => match x.dtype {
            DType::F32 => segments(false, 1f32, |a, b| a * b),
            DType::I32 => segments(false, 1i32, i32::wrapping_mul),
            DType::I64 => segments(false, 1i64, i64::wrapping_mul),
            _ => no_kernel(site),
        },
        Op::UnsortedSegmentMax => match x.dtype {
            DType::F32 => segments(false, f32::MIN, f32::max),
            DType::I32 => segments(false, i32::MIN, i32::max),
            DType::I64 => segments(false, i64::MIN, i64::max),
            _ => no_kernel(site),
        },
        Op::UnsortedSegmentMin => match x.dtype {
            DType::F32 => segments(false, f32::MAX, f32::min),
            DType::I32 => segments(false, i32::MAX, i32::min),
            DType::I64 => segments(false, i64::MAX, i64::min),
            _ => no_kernel(site),
        },
        Op::ReduceWindow(o) => windows(site, o.reduce_function),
        _ => no_kernel(site),
    }
}

/// The operand's dimensions, neighbours merged where both are reduced or both are kept: (size, reduced).
fn groups(shape: &[usize], gone: &[bool]) -> SmallVec<[(usize, bool); 6]> {
    let mut out: SmallVec<[(usize, bool); 6]> = SmallVec::new();
    for (&d, &g) in shape.iter().zip(gone) {
        match out.last_mut() {
            _ if d == 1 => {}
            Some((n, h)) if *h == g => *n *= d,
            _ => out.push((d, g)),
        }
    }
    out
}

/// How a line of neighbours is folded: into one value, or element by element into a line of values.
struct Fold<'f, T, A> {
    row: &'f (dyn Fn(A, &[T]) -> A + Sync),
    each: &'f (dyn Fn(&mut [A], &[T]) + Sync),
}

/// Folds `x` into `acc` (which holds the initial values) in row-major order.
fn reduce<T: Copy + Sync, A: Copy + Send>(
    pool: &Pool,
    x: &[T],
    dims: &[(usize, bool)],
    acc: &mut [A],
    f: Fold<'_, T, A>,
) {
    if let Some(&(n, false)) = dims.first()
        && dims.len() > 1
        && n > 1
        && x.len() >= PARALLEL
        && !acc.is_empty()
    {
        // The outermost kept dimension is split among threads.
        let (slice, piece) = (x.len() / n, acc.len() / n);
        let part: &(dyn Fn(usize, &mut [A]) + Sync) =
            &|i, part| fold_block(x.get(i * slice..(i + 1) * slice).unwrap_or_default(), &dims[1..], part, &f);
        pool.chunks(acc, piece, true, part);
        return;
    }
    fold_block(x, dims, acc, &f);
}

fn fold_block<T: Copy, A: Copy>(x: &[T], dims: &[(usize, bool)], acc: &mut [A], f: &Fold<'_, T, A>) {
    let Some((&(n, reduced), outer)) = dims.split_last() else {
        (f.each)(acc, x);
        return;
    };
    if x.is_empty() || n == 0 {
        return;
    }
    // Steps in `acc` of the outer dimensions.
    let mut steps: SmallVec<[usize; 6]> = SmallVec::from_elem(0, outer.len());
    let mut size = if reduced { 1 } else { n };
    for (s, &(d, g)) in steps.iter_mut().zip(outer).rev() {
        if !g {
            *s = size;
            size *= d;
        }
    }
    let mut index: SmallVec<[usize; 6]> = SmallVec::from_elem(0, outer.len());
    let mut at = 0;
    for line in x.chunks(n) {
        if reduced {
            if let Some(a) = acc.get_mut(at) {
                *a = (f.row)(*a, line);
            }
        } else if let Some(part) = acc.get_mut(at..at + n) {
            (f.each)(part, line);
        }
        for ((i, &s), &(d, _)) in index.iter_mut().zip(&steps).zip(outer).rev() {
            *i += 1;
            at += s;
            if *i < d {
                break;
            }
            *i = 0;
            at -= s * d;
        }
    }
}

/// The reduced dimensions of a call, and how many elements fall into each result.
fn plan(call: &Call<'_>) -> Result<(SmallVec<[(usize, bool); 6]>, usize)> {
    let x = call.input(0)?;
    let gone = rules::axes_mask(&ints(&call.input(1)?)?, x.shape.len())?;
    let count = x.shape.iter().zip(&gone).filter(|&(_, &g)| g).map(|(&d, _)| d).product();
    Ok((groups(x.shape, &gone), count))
}

/// A kernel that folds with one function of the element type.
fn fold<T: Pod + Send + Sync>(init: T, f: impl Fn(T, T) -> T + Send + Sync + 'static) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let (dims, _) = plan(call)?;
        let x = call.input(0)?.as_slice::<T>()?;
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<T>()?;
        out.fill(init);
        // Eight folds side by side hide the latency of one.
        let row = |a: T, line: &[T]| {
            let (blocks, rest) = line.as_chunks::<8>();
            let mut lanes = [init; 8];
            for b in blocks {
                for k in 0..8 {
                    lanes[k] = f(lanes[k], b[k]);
                }
            }
            let a = if blocks.is_empty() { a } else { lanes.into_iter().fold(a, &f) };
            rest.iter().fold(a, |a, &v| f(a, v))
        };
        let each = |acc: &mut [T], line: &[T]| acc.iter_mut().zip(line).for_each(|(a, &v)| *a = f(*a, v));
        reduce(pool, x, &dims, out, Fold { row: &row, each: &each });
        Ok(())
    }))
}

/// Elements up to which a row is summed in order.
const IN_ORDER: usize = 1024;

/// SUM and MEAN of float32, in the order of the format's kernels; long rows, whose sums in order would be slow and
/// less exact, in sixteen lanes.
fn sum_f32(mean: bool) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let (dims, count) = plan(call)?;
        let x = call.input(0)?.as_slice::<f32>()?;
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        out.fill(0.0);
        let each = |acc: &mut [f32], line: &[f32]| acc.iter_mut().zip(line).for_each(|(a, &v)| *a += v);
        let row = |a: f32, line: &[f32]| {
            if line.len() <= IN_ORDER { line.iter().fold(a, |a, v| a + v) } else { a + sum_line(line) }
        };
        match *dims.as_slice() {
            [(_, false), (n, true)] if (1..=IN_ORDER).contains(&n) && x.len() == out.len() * n => {
                let per = (PARALLEL / n).next_multiple_of(8);
                pool.chunks(out, per, x.len() >= 2 * PARALLEL, |i, out| {
                    add_rows(x.get(i * per * n..).unwrap_or_default(), n, out);
                });
            }
            _ => reduce(pool, x, &dims, out, Fold { row: &row, each: &each }),
        }
        if mean {
            let n = count as f32;
            out.iter_mut().for_each(|v| *v /= n);
        }
        Ok(())
    }))
}

fn sum_line(line: &[f32]) -> f32 {
    let (blocks, rest) = line.as_chunks::<16>();
    let mut lanes = [0f32; 16];
    for b in blocks {
        for k in 0..16 {
            lanes[k] += b[k];
        }
    }
    let mut half = 8;
    while half > 0 {
        for k in 0..half {
            lanes[k] += lanes[k + half];
        }
        half /= 2;
    }
    lanes[0] + rest.iter().sum::<f32>()
}

/// 16-bit floats: accumulated in float32, rounded once.
fn halves<T: Pod + Send + Sync>(
    wide: fn(T) -> f32,
    narrow: fn(f32) -> T,
    init: f32,
    f: impl Fn(f32, f32) -> f32 + Send + Sync + 'static,
    mean: bool,
) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let (dims, count) = plan(call)?;
        let x = call.input(0)?.as_slice::<T>()?;
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<T>()?;
        let mut acc = vec![init; out.len()];
        let row = |a: f32, line: &[T]| line.iter().fold(a, |a, &v| f(a, wide(v)));
        let each = |acc: &mut [f32], line: &[T]| acc.iter_mut().zip(line).for_each(|(a, &v)| *a = f(*a, wide(v)));
        reduce(pool, x, &dims, &mut acc, Fold { row: &row, each: &each });
        let divisor = if mean { count as f32 } else { 1.0 };
        out.iter_mut().zip(acc).for_each(|(o, a)| *o = narrow(a / divisor));
        Ok(())
    }))
}

/// The sum of each result's elements, as wrapping integers.
fn sums<T: Pod + Send + Sync>(call: &Call<'_>, n: usize, wide: impl Fn(T) -> i64 + Sync) -> Result<(Vec<i64>, usize)> {
    let (dims, count) = plan(call)?;
    let x = call.input(0)?.as_slice::<T>()?;
    let mut acc = vec![0i64; n];
    let row = |a: i64, line: &[T]| line.iter().fold(a, |a, &v| a.wrapping_add(wide(v)));
    let each = |acc: &mut [i64], line: &[T]| acc.iter_mut().zip(line).for_each(|(a, &v)| *a = a.wrapping_add(wide(v)));
    reduce(call.pool, x, &dims, &mut acc, Fold { row: &row, each: &each });
    Ok((acc, count))
}

fn mean_of_ints<T: Pod + Send + Sync>(wide: fn(T) -> i64, narrow: fn(i64) -> T) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let n = call.output(0)?.len();
        let (acc, count) = sums(call, n, wide)?;
        let out = call.output(0)?.as_mut_slice::<T>()?;
        out.iter_mut().zip(acc).for_each(|(o, a)| *o = narrow(a.checked_div(count as i64).unwrap_or(0)));
        Ok(())
    }))
}

fn quantized_mean<T: Pod + Send + Sync>(site: &Site<'_>, wide: fn(T) -> i32, narrow: fn(i32) -> T) -> Result<Kernel> {
    let ((sx, zx), (sy, zy)) = (quantization(site.input(0)?)?, quantization(site.output(0)?)?);
    let (low, high) = fixed::type_range(site.output(0)?.dtype)?;
    let m = Multiplier::new(sx as f64 / sy as f64);
    Ok(Box::new(move |call: &mut Call<'_>| {
        let n = call.output(0)?.len();
        let (acc, count) = sums(call, n, |v| wide(v) as i64)?;
        let out = call.output(0)?.as_mut_slice::<T>()?;
        if count == 0 {
            out.iter_mut().for_each(|o| *o = narrow(0));
            return Ok(());
        }
        // The multiplier absorbs the division by the count.
        let shift = (63 - (count as u64).leading_zeros() as i32).min(32).min(31 + m.shift);
        let m =
            Multiplier { value: (((m.value as i64) << shift.max(0)) / count as i64) as i32, shift: m.shift - shift };
        for (o, a) in out.iter_mut().zip(acc) {
            let s = (a as i32 as i64).wrapping_sub(zx as i64 * count as i64) as i32;
            *o = narrow(m.apply(s).saturating_add(zy).clamp(low, high));
        }
        Ok(())
    }))
}

/// Quantized SUM. The reference's own kernel is broken for it; this is the formula of its optimized one.
fn quantized_sum(site: &Site<'_>) -> Result<Kernel> {
    let ((sx, zx), (sy, zy)) = (quantization(site.input(0)?)?, quantization(site.output(0)?)?);
    let dtype = site.output(0)?.dtype;
    let (low, high) = fixed::type_range(dtype)?;
    let scale = sx / sy;
    Ok(Box::new(move |call: &mut Call<'_>| {
        let n = call.output(0)?.len();
        let (acc, count) = match dtype {
            DType::I8 => sums(call, n, |v: i8| v as i64),
            DType::U8 => sums(call, n, |v: u8| v as i64),
            _ => sums(call, n, |v: i16| v as i64),
        }?;
        let bias = -zx as f32 * scale * count as f32;
        let value = |a: i64| to_int((a as i32 as f32 * scale + bias).round()).saturating_add(zy).clamp(low, high);
        let out = call.output(0)?;
        match dtype {
            DType::I8 => out.as_mut_slice::<i8>()?.iter_mut().zip(acc).for_each(|(o, a)| *o = value(a) as i8),
            DType::U8 => out.as_mut_slice::<u8>()?.iter_mut().zip(acc).for_each(|(o, a)| *o = value(a) as u8),
            _ => out.as_mut_slice::<i16>()?.iter_mut().zip(acc).for_each(|(o, a)| *o = value(a) as i16),
        }
        Ok(())
    }))
}

/// Quantized product: each factor is scaled by the input scale over the n-th root of the output scale, so that the
/// accumulator does not overflow.
fn quantized_product<T: Pod + Send + Sync>(
    site: &Site<'_>,
    wide: fn(T) -> i32,
    narrow: fn(i32) -> T,
) -> Result<Kernel> {
    let ((sx, zx), (sy, zy)) = (quantization(site.input(0)?)?, quantization(site.output(0)?)?);
    let (low, high) = fixed::type_range(site.output(0)?.dtype)?;
    Ok(Box::new(move |call: &mut Call<'_>| {
        let (dims, count) = plan(call)?;
        let m = Multiplier::new(sx as f64 / (sy as f64).powf(1.0 / count.max(1) as f64));
        let x = call.input(0)?.as_slice::<T>()?;
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<T>()?;
        let mut acc: Vec<Option<i32>> = vec![None; out.len()];
        let one = |a: Option<i32>, v: T| {
            let v = wide(v) - zx;
            Some(a.map_or(v, |a| m.apply_wide(a as i64 * v as i64)))
        };
        let each = |acc: &mut [Option<i32>], line: &[T]| acc.iter_mut().zip(line).for_each(|(a, &v)| *a = one(*a, v));
        let row = |a, line: &[T]| line.iter().fold(a, |a, &v| one(a, v));
        reduce(pool, x, &dims, &mut acc, Fold { row: &row, each: &each });
        for (o, a) in out.iter_mut().zip(acc) {
            let v = a.map_or(0, |a| m.apply_wide(a as i64));
            *o = narrow(v.saturating_add(zy).clamp(low, high));
        }
        Ok(())
    }))
}

fn arg(site: &Site<'_>, max: bool) -> Result<Kernel> {
    if !matches!(site.output(0)?.dtype, DType::I32 | DType::I64) {
        return no_kernel(site);
    }
    match site.input(0)?.dtype {
        DType::F32 => arg_of(max, |v: f32| v),
        DType::F16 => arg_of(max, f16::to_f32),
        DType::BF16 => arg_of(max, bf16::to_f32),
        DType::I8 => arg_of(max, |v: i8| v),
        DType::U8 | DType::Bool => arg_of(max, |v: u8| v),
        DType::I16 => arg_of(max, |v: i16| v),
        DType::I32 => arg_of(max, |v: i32| v),
        DType::I64 => arg_of(max, |v: i64| v),
        _ => no_kernel(site),
    }
}

/// The first index of the extreme value. A NaN is never greater or less, so that it only wins at index 0.
fn arg_of<T: Pod + Send + Sync, K: PartialOrd>(
    max: bool,
    key: impl Fn(T) -> K + Send + Sync + 'static,
) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let v = call.input(0)?;
        let axis = rules::axis(int(&call.input(1)?)?, v.shape.len())?;
        let x = v.as_slice::<T>()?;
        let (n, inner) = (v.shape[axis], elements(&v.shape[axis + 1..]));
        let out = call.output(0)?;
        if n == 0 && !out.is_empty() {
            return Err(Error::invalid("the extreme of no elements"));
        }
        let find = |i: usize| {
            let first = i / inner * n * inner + i % inner;
            let mut best = 0;
            for j in 1..n {
                let (a, b) = (key(x[first + j * inner]), key(x[first + best * inner]));
                if if max { a > b } else { a < b } {
                    best = j;
                }
            }
            best
        };
        if out.dtype == DType::I64 {
            out.as_mut_slice::<i64>()?.iter_mut().enumerate().for_each(|(i, o)| *o = find(i) as i64);
        } else {
            out.as_mut_slice::<i32>()?.iter_mut().enumerate().for_each(|(i, o)| *o = find(i) as i32);
        }
        Ok(())
    }))
}

fn cumsum<T: Pod + Send + Sync>(
    exclusive: bool,
    reverse: bool,
    zero: T,
    add: impl Fn(T, T) -> T + Send + 'static,
) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let v = call.input(0)?;
        let axis = rules::axis(int(&call.input(1)?)?, v.shape.len())?;
        let (n, inner) = (v.shape[axis], elements(&v.shape[axis + 1..]));
        let x = v.as_slice::<T>()?;
        let out = call.output(0)?.as_mut_slice::<T>()?;
        if x.is_empty() {
            return Ok(());
        }
        for (x, out) in x.chunks(n * inner).zip(out.chunks_mut(n * inner)) {
            for i in 0..inner {
                let mut sum = zero;
                for j in 0..n {
                    let at = (if reverse { n - 1 - j } else { j }) * inner + i;
                    if exclusive {
                        out[at] = sum;
                        sum = add(sum, x[at]);
                    } else {
                        sum = add(sum, x[at]);
                        out[at] = sum;
                    }
                }
            }
        }
        Ok(())
    }))
}

/// Rows of the data joined by segment number. Unsorted segments skip negative numbers.
fn segments<T: Pod + Send + Sync>(sorted: bool, init: T, f: fn(T, T) -> T) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let (v, ids) = (call.input(0)?, call.input(1)?);
        let row = elements(v.shape.get(ids.shape.len()..).unwrap_or_default());
        let ids = ints(&ids)?;
        let x = v.as_slice::<T>()?;
        let out = call.output(0)?;
        let rows = out.shape.first().copied().unwrap_or(0);
        let out = out.as_mut_slice::<T>()?;
        out.fill(init);
        if x.len() != ids.len() * row {
            return Err(Error::invalid(format!("{} segment numbers for {} rows", ids.len(), x.len() / row.max(1))));
        }
        let mut last = 0;
        for (i, &id) in ids.iter().enumerate() {
            if id < 0 && !sorted {
                continue;
            }
            let to = usize::try_from(id).ok().filter(|&r| r < rows && (!sorted || r >= last));
            let to = to.ok_or_else(|| Error::invalid(format!("segment number {id} of {rows}")))?;
            last = to;
            let (from, to) = (i * row, to * row);
            out[to..to + row].iter_mut().zip(&x[from..from + row]).for_each(|(o, &v)| *o = f(*o, v));
        }
        Ok(())
    }))
}

fn windows(site: &Site<'_>, function: Window) -> Result<Kernel> {
    let dtype = site.input(0)?.dtype;
    let fold = match (function, dtype) {
        (Window::ALL, DType::Bool) => How::And,
        (Window::ANY, DType::Bool) => How::Or,
        (_, DType::Bool | DType::F16) => return no_kernel(site),
        (Window::ADD, _) => How::Add,
        (Window::MUL, _) => How::Mul,
        (Window::MINIMUM, _) => How::Min,
        (Window::MAXIMUM, _) => How::Max,
        _ => return no_kernel(site),
    };
    let Some((size, f)) = folding(dtype, fold) else { return no_kernel(site) };
    Ok(Box::new(move |call: &mut Call<'_>| {
        let (v, init) = (call.input(0)?, call.input(1)?);
        let out = call.output(0)?;
        if init.dtype != dtype || out.dtype != dtype {
            return Err(Error::invalid(format!("{dtype} in, {} out, initial value {}", out.dtype, init.dtype)));
        }
        let init = init.bytes.get(..size).ok_or_else(|| Error::invalid("no initial value"))?;
        let shape = out.shape.clone();
        let (sizes, steps, dilations) = (ints(&call.input(2)?)?, ints(&call.input(3)?)?, ints(&call.input(4)?)?);
        let own = strides(v.shape);
        let out = call.output(0)?.bytes_mut();
        if out.is_empty() {
            return Ok(());
        }
        // Distances from a window's first element to each of its elements.
        let mut inside: Vec<usize> = vec![0];
        for ((&n, &d), &s) in sizes.iter().zip(&dilations).zip(&own) {
            inside =
                inside.iter().flat_map(|&at| (0..n.max(0) as usize).map(move |i| at + i * d as usize * s)).collect();
        }
        let mut index: SmallVec<[usize; 6]> = SmallVec::from_elem(0, shape.len());
        for o in out.chunks_exact_mut(size) {
            let first: usize = index.iter().zip(&steps).zip(&own).map(|((&i, &t), &s)| i * t as usize * s).sum();
            o.copy_from_slice(init);
            for &d in &inside {
                let x = v.bytes.get((first + d) * size..).and_then(|x| x.get(..size));
                f(o, x.ok_or_else(|| Error::internal("a window leaves its operand"))?);
            }
            for (i, &n) in index.iter_mut().zip(&shape).rev() {
                *i += 1;
                if *i < n {
                    break;
                }
                *i = 0;
            }
        }
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use litegpu_graph::schema::*;

    fn keep(keep_dims: bool) -> ReducerOptionsT {
        ReducerOptionsT { keep_dims }
    }

    #[test]
    fn every_choice_of_axes_of_rank_five() {
        let shape = [2, 3, 1, 4, 2];
        let data: Vec<i32> = (0..48).map(|v| v * 7 % 31 - 9).collect();
        let own = strides(&shape);
        for mask in 0..32u32 {
            let axes: Vec<i32> = (0..5).filter(|a| mask >> a & 1 == 1).collect();
            let mut want = [0i32; 48];
            for (at, &v) in data.iter().enumerate() {
                let to: usize = (0..5).filter(|a| mask >> a & 1 == 0).map(|d| at / own[d] % shape[d] * own[d]).sum();
                want[to] += v;
            }
            // Positions of reduced dimensions are zero: what remains is in order.
            let zero = |at: &usize| (0..5).all(|d| mask >> d & 1 == 0 || at / own[d] % shape[d] == 0);
            let want: Vec<i32> = (0..48).filter(zero).map(|at| want[at]).collect();
            let args = [i(&shape, &data), i(&[axes.len()], &axes)];
            let (s, v) = one::<i32>(Op::Sum(keep(true)), &args, DType::I32);
            assert_eq!((s.len(), v), (5, want.clone()), "{axes:?}");
            let real: Vec<f32> = data.iter().map(|&v| v as f32).collect();
            let (_, v) = one::<f32>(Op::Sum(keep(false)), &[f(&shape, &real), i(&[axes.len()], &axes)], DType::F32);
            assert_eq!(v.iter().map(|&v| v as i32).collect::<Vec<_>>(), want, "{axes:?}");
        }
    }

    #[test]
    fn nothing_to_reduce() {
        let none = [f(&[0, 2], &[]), i(&[1], &[0])];
        assert_eq!(one::<f32>(Op::Sum(keep(false)), &none, DType::F32).1, [0.0, 0.0]);
        assert_eq!(one::<f32>(Op::ReduceProd(keep(false)), &none, DType::F32).1, [1.0, 1.0]);
        assert!(one::<f32>(Op::Mean(keep(false)), &none, DType::F32).1[0].is_nan());
        let scalar = [f(&[], &[3.0]), i(&[1], &[-1])];
        assert_eq!(one::<f32>(Op::ReduceMax(keep(false)), &scalar, DType::F32), (vec![], vec![3.0]));
        assert!(run(Op::Sum(keep(false)), &[f(&[2], &[1.0; 2]), i(&[1], &[1])], &[out(DType::F32)]).is_err());
        assert!(run(Op::Sum(keep(false)), &[f(&[2], &[1.0; 2]), i(&[1], &[-2])], &[out(DType::F32)]).is_err());
        let empty = [f(&[0], &[]), i(&[], &[0])];
        assert!(run(Op::ArgMax(ArgMaxOptionsT::default()), &empty, &[out(DType::I32)]).is_err());
    }

    #[test]
    fn extremes_come_first() {
        let args = [f(&[2, 3], &[1.0, 5.0, 5.0, -2.0, -2.0, 0.0]), i(&[], &[-1])];
        assert_eq!(one::<i64>(Op::ArgMax(ArgMaxOptionsT::default()), &args, DType::I64).1, [1, 2]);
        let args = [args[0].clone(), i(&[], &[0])];
        assert_eq!(one::<i32>(Op::ArgMin(ArgMinOptionsT::default()), &args, DType::I32).1, [1, 1, 1]);
    }

    #[test]
    fn scans_and_segments() {
        let o = CumsumOptionsT { exclusive: true, reverse: true };
        let (_, v) = one::<i32>(Op::Cumsum(o), &[i(&[2, 3], &[1, 2, 3, 4, 5, 6]), i(&[], &[1])], DType::I32);
        assert_eq!(v, [5, 3, 0, 11, 6, 0]);
        let data = i(&[3, 2], &[1, 2, 3, 4, 5, 6]);
        let (s, v) = one::<i32>(Op::SegmentSum, &[data.clone(), i(&[3], &[0, 0, 2])], DType::I32);
        assert_eq!((s, v), (vec![3, 2], vec![4, 6, 0, 0, 5, 6]));
        assert!(run(Op::SegmentSum, &[data.clone(), i(&[3], &[1, 0, 2])], &[out(DType::I32)]).is_err());
        let (_, v) =
            one::<i32>(Op::UnsortedSegmentMax, &[data.clone(), i(&[3], &[1, -1, 1]), i(&[], &[2])], DType::I32);
        assert_eq!(v, [i32::MIN, i32::MIN, 5, 6]);
        assert!(run(Op::UnsortedSegmentSum, &[data, i(&[3], &[0, 2, 1]), i(&[], &[2])], &[out(DType::I32)]).is_err());
    }

    #[test]
    fn windows_of_any_rank() {
        let o = ReduceWindowOptionsT { reduce_function: Window::MAXIMUM };
        let l = |v: &[i64]| x(DType::I64, &[v.len()], v);
        let args = [i(&[2, 5], &[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]), i(&[], &[0]), l(&[1, 2]), l(&[1, 2]), l(&[1, 2])];
        assert_eq!(one::<i32>(Op::ReduceWindow(o.clone()), &args, DType::I32), (vec![2, 2], vec![4, 5, 9, 6]));
        let args = [args[0].clone(), i(&[], &[0]), l(&[1, 0]), l(&[1, 1]), l(&[1, 1])];
        assert!(run(Op::ReduceWindow(o), &args, &[out(DType::I32)]).is_err());
    }
}
