//! Normalization over the innermost axis: kernels.

use super::*;
use crate::in_order::add_rows;
use crate::pool::Pool;
use crate::real::{exact_exp, exact_exps};
use crate::requant::Quantized;
use crate::simd::{Isa, NR, Task, dispatch};
use bytemuck::Pod;
use half::{bf16, f16};
use litegpu_graph::fixed::{Multiplier, high_mul, inv_sqrt, rounding_shift, saturating_shl};
use litegpu_graph::schema::{ActivationFunctionType, LocalResponseNormalizationOptionsT};
use litegpu_graph::{DType, Op, Tensor};

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let (x, y) = (site.input(0)?, site.output(0)?);
    match &site.node.op {
        Op::Softmax(o) => match (x.dtype, y.dtype) {
            (DType::F32, DType::F32) => Ok(softmax_float(o.beta)),
            (DType::F16, DType::F16) => Ok(softmax_half::<f16>(o.beta, f16::to_f32, f16::from_f32)),
            (DType::BF16, DType::BF16) => Ok(softmax_half::<bf16>(o.beta, bf16::to_f32, bf16::from_f32)),
            (DType::I8, DType::I8) => softmax_fixed::<i8, i8>(x, o.beta, i8::MIN.into()),
            (DType::I8, DType::I16) => softmax_fixed::<i8, i16>(x, o.beta, i16::MIN.into()),
            (DType::U8, DType::U8) => softmax_fixed::<u8, u8>(x, o.beta, 0),
            (DType::U8, DType::I16) => softmax_fixed::<u8, i16>(x, o.beta, i16::MIN.into()),
            (DType::I16, DType::I16) => softmax_words(x, o.beta),
            _ => no_kernel(site),
        },
        Op::LogSoftmax => match (x.dtype, y.dtype) {
            (DType::F32, DType::F32) => Ok(log_softmax_float()),
            (DType::I8, DType::I8) => log_softmax_fixed::<i8>(x, -128),
            (DType::U8, DType::U8) => log_softmax_fixed::<u8>(x, 0),
            _ => no_kernel(site),
        },
        Op::L2Normalization(o) => {
            if o.fused_activation_function != ActivationFunctionType::NONE {
                return Err(site.unsupported(format!("fused activation {:?}", o.fused_activation_function)));
            }
            match (x.dtype, y.dtype) {
                (DType::F32, DType::F32) => Ok(l2_float()),
                (DType::I8, DType::I8) => l2_fixed::<i8>(x),
                (DType::U8, DType::U8) => l2_fixed::<u8>(x),
                _ => no_kernel(site),
            }
        }
        Op::LocalResponseNormalization(o) => match (x.dtype, y.dtype) {
            (DType::F32, DType::F32) => local_response(o),
            _ => no_kernel(site),
        },
        _ => no_kernel(site),
    }
}

/// Runs `row(x, y)` over the innermost axis.
fn rows<X: Pod + Sync, Y: Pod + Send>(
    pool: &Pool,
    depth: usize,
    x: &[X],
    y: &mut [Y],
    cost: usize,
    row: impl Fn(&[X], &mut [Y]) + Sync,
) {
    several_rows(pool, depth, x, y, cost, |x, y| {
        x.chunks_exact(depth).zip(y.chunks_exact_mut(depth)).for_each(|(x, y)| row(x, y));
    });
}

/// Runs `piece(x, y)` over pieces of whole rows of the innermost axis, of which there is at least one.
fn several_rows<X: Pod + Sync, Y: Pod + Send>(
    pool: &Pool,
    depth: usize,
    x: &[X],
    y: &mut [Y],
    cost: usize,
    piece: impl Fn(&[X], &mut [Y]) + Sync,
) {
    if depth == 0 || x.len() != y.len() {
        return;
    }
    let parallel = pool.threads() > 1 && x.len() > depth && x.len().saturating_mul(cost) > 30_000;
    let per = if parallel { (x.len() / depth).div_ceil(pool.threads() * 2).max(1) * depth } else { y.len() };
    pool.chunks(y, per, parallel, |i, out| {
        let from = x.get(i * per..).unwrap_or_default();
        piece(&from[..out.len().min(from.len())], out);
    });
}

/// A kernel that works row by row.
fn by_row<X: Pod + Sync, Y: Pod + Send>(cost: usize, row: impl Fn(&[X], &mut [Y]) + Send + Sync + 'static) -> Kernel {
    Box::new(move |call| {
        let x = call.input(0)?;
        let depth = x.shape.last().copied().unwrap_or(1);
        let (x, pool) = (x.as_slice::<X>()?, call.pool);
        rows(pool, depth, x, call.output(0)?.as_mut_slice::<Y>()?, cost, &row);
        Ok(())
    })
}

/// The largest number; what is no number does not count.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let (blocks, rest) = x.as_chunks::<NR>();
    // By lanes first: vector code, where a fold over all waits for each comparison.
    let mut lanes = [f32::MIN; NR];
    for b in blocks {
        for j in 0..NR {
            lanes[j] = if lanes[j] < b[j] { b[j] } else { lanes[j] };
        }
    }
    lanes.iter().chain(rest).fold(f32::MIN, |m, &v| if m < v { v } else { m })
}

fn softmax_float(beta: f32) -> Kernel {
    Box::new(move |call| {
        let x = call.input(0)?;
        let depth = x.shape.last().copied().unwrap_or(1);
        let (x, pool) = (x.as_slice::<f32>()?, call.pool);
        let y = call.output(0)?.as_mut_slice::<f32>()?;
        several_rows(pool, depth, x, y, 8, |x, y| dispatch(SoftmaxRows { x, y, depth, beta }));
        Ok(())
    })
}

/// Softmax of several rows of `depth` numbers.
struct SoftmaxRows<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    depth: usize,
    beta: f32,
}

impl Task for SoftmaxRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        let SoftmaxRows { x, y, depth, beta } = self;
        // Sums of so many rows are added side by side, each in order, as the reference adds.
        const ROWS: usize = 8;
        for (x, y) in x.chunks(ROWS * depth).zip(y.chunks_mut(ROWS * depth)) {
            for (x, y) in x.chunks_exact(depth).zip(y.chunks_exact_mut(depth)) {
                let max = largest(x);
                let e = |x: &[f32; NR]| {
                    let mut e = x.map(|x| (x - max) * beta);
                    exact_exps(&mut e);
                    e
                };
                let (blocks, rest) = x.as_chunks();
                let (out, left) = y.as_chunks_mut();
                blocks.iter().zip(out).for_each(|(x, y)| *y = e(x));
                if !rest.is_empty() {
                    let mut last = [max; NR];
                    last[..rest.len()].copy_from_slice(rest);
                    left.copy_from_slice(&e(&last)[..left.len()]);
                }
            }
            let mut sums = [0.0; ROWS];
            let rows = y.len() / depth;
            add_rows(y, depth, &mut sums[..rows]);
            for (y, sum) in y.chunks_exact_mut(depth).zip(sums) {
                y.iter_mut().for_each(|y| *y /= sum);
            }
        }
    }
}

fn softmax_half<T: Pod + Send + Sync>(beta: f32, wide: fn(T) -> f32, narrow: fn(f32) -> T) -> Kernel {
    by_row(8, move |x: &[T], y: &mut [T]| {
        let max = x.iter().fold(f32::MIN, |m, &v| m.max(wide(v)));
        let mut sum = 0.0;
        for (y, x) in y.iter_mut().zip(x) {
            let e = exact_exp((wide(*x) - max) * beta);
            *y = narrow(e);
            sum += e;
        }
        y.iter_mut().for_each(|y| *y = narrow(wide(*y) / sum));
    })
}

/// exp(x) for x <= 0 with 5 integer bits, as a fraction of 2^31.
fn exp_negative(x: i32) -> i32 {
    if x == 0 {
        return i32::MAX;
    }
    let quarter = 1 << 24;
    let part = (x & (quarter - 1)) - quarter;
    // e^part for part in [-1/4, 0), around -1/8.
    let a = saturating_shl(part, 5).wrapping_add(1 << 28);
    let a2 = high_mul(a, a);
    let a3 = high_mul(a2, a);
    let a4 = rounding_shift(high_mul(a2, a2), 2);
    let tail = rounding_shift(high_mul(a4.wrapping_add(a3), 715_827_883).wrapping_add(a2), 1);
    let centre = 1_895_147_668;
    let mut result = centre + high_mul(centre, a.wrapping_add(tail));
    let rest = part.wrapping_sub(x);
    // e^-(2^i) for i from -2 on.
    const POWERS: [i32; 7] = [1_672_461_947, 1_302_514_674, 790_015_084, 290_630_308, 39_332_535, 720_401, 242];
    for (i, power) in POWERS.into_iter().enumerate() {
        if rest & (1 << (24 + i)) != 0 {
            result = high_mul(result, power);
        }
    }
    result
}

/// 1 / (1 + x) for a fraction x of 2^31 in [0, 1), as such a fraction.
fn one_over_one_plus(x: i32) -> i32 {
    let half = ((x as i64 + i32::MAX as i64 + 1) / 2) as i32;
    // Three Newton steps with 2 integer bits, from 48/17 - 32/17 h.
    let mut y = 1_515_870_810i32.wrapping_add(high_mul(half, -1_010_580_540));
    for _ in 0..3 {
        let rest = (1i32 << 29).wrapping_sub(high_mul(half, y));
        y = y.wrapping_add(saturating_shl(high_mul(y, rest), 2));
    }
    saturating_shl(y, 1)
}

/// 1 / x for x with `integer` integer bits: a fraction of 2^31 and the number of bits that x has above one.
fn reciprocal(x: i32, integer: i32) -> (i32, i32) {
    let headroom = (x as u32).leading_zeros();
    let shifted = (x as u32).checked_shl(headroom).unwrap_or(0).wrapping_sub(1 << 31) as i32;
    (one_over_one_plus(shifted), integer - headroom as i32)
}

fn input_scale(t: &Tensor) -> Result<f32> {
    let scale = t.per_tensor().filter(|(s, _)| *s > 0.0);
    scale.map(|s| s.0).ok_or_else(|| Error::invalid(format!("tensor '{}' has no per-tensor scale", t.name)))
}

/// The multiplier that brings differences to 5 integer bits, and the least difference that it can take.
fn differences(beta: f64, scale: f32) -> Result<(Multiplier, i32)> {
    let real = (beta * scale as f64 * (1i64 << 26) as f64).min(((1i64 << 31) - 1) as f64);
    if !(real > 1.0) {
        return Err(Error::invalid(format!("softmax of scale {scale} with beta {beta}")));
    }
    let m = Multiplier::new(real);
    let radius = (31.0 * (1i64 << 26) as f64 / (1i64 << m.shift.clamp(0, 62)) as f64).floor();
    Ok((m, -(radius as i32)))
}

#[inline]
fn scale_difference(d: i32, m: Multiplier) -> i32 {
    high_mul(d.wrapping_shl(m.shift as u32), m.value)
}

fn softmax_fixed<X: Quantized, Y: Quantized>(x: &Tensor, beta: f32, low: i32) -> Result<Kernel> {
    let (m, least) = differences(beta as f64, input_scale(x)?)?;
    let bits = 8 * size_of::<Y>() as i32;
    let high = low + ((1i64 << bits) - 1) as i32;
    // Differences of 8-bit numbers are few: a table of their exponentials.
    let table: Vec<i32> =
        (0..256).map(|d| if -d >= least { exp_negative(scale_difference(-d, m)) } else { -1 }).collect();
    Ok(by_row(4, move |x: &[X], y: &mut [Y]| {
        let max: i32 = x.iter().map(|&v| v.into()).max().unwrap_or(0);
        let exp = |v: X| table.get((max - Into::<i32>::into(v)) as usize).copied().filter(|e| *e >= 0);
        let sum = x.iter().filter_map(|&v| exp(v)).fold(0i32, |s, e| s.wrapping_add(rounding_shift(e, 12)));
        let (scale, over) = reciprocal(sum, 12);
        for (y, &x) in y.iter_mut().zip(x) {
            let q = match exp(x) {
                Some(e) => rounding_shift(high_mul(scale, e), over + 31 - bits).wrapping_add(low).clamp(low, high),
                None => low,
            };
            *y = Y::narrow(q);
        }
    }))
}

/// A table of 513 samples of a function, each moved to halve the error of interpolation at its interval's middle.
fn word_table(scale: f64, zero: i32, f: impl Fn(f64) -> f64) -> Vec<i16> {
    let (low, high) = (scale * (-32768 - zero) as f64, scale * (32767 - zero) as f64);
    let out = 2.0 / 65535.0;
    let (out_low, out_high) = (out * -32768.0, out * 32767.0);
    let step = (high - low) / 512.0;
    let inverse = 65536.0 / (out_high - out_low);
    let keep = |v: f64| v.clamp(-32768.0, 32767.0) as i16;
    let mut table: Vec<i16> = (0..512)
        .map(|i| {
            let at = low + i as f64 * step;
            let (here, middle, next) = (f(at), f(at + step / 2.0), f(low + (i + 1) as f64 * step));
            let sample = (here * inverse).round();
            let interpolated = ((next * inverse + sample) / 2.0).round();
            let error = interpolated - (middle * inverse).round();
            keep(sample - (error / 2.0).round())
        })
        .collect();
    table.push(keep((f(high) * inverse).round()));
    table
}

/// Interpolates in such a table.
#[inline]
fn look_up(table: &[i16; 513], x: i16) -> i16 {
    let i = (256 + (x >> 7)) as usize;
    let (base, next) = (table[i.min(511)], table[i.min(511) + 1]);
    let slope = next.wrapping_sub(base) as i32;
    (base as i32 + ((slope * (x & 0x7f) as i32 + 64) >> 7)) as i16
}

fn softmax_words(x: &Tensor, beta: f32) -> Result<Kernel> {
    let array = |t: Vec<i16>| <[i16; 513]>::try_from(t).map_err(|_| Error::internal("table size"));
    // The same table as f64::exp gives (tests), whatever C library there is.
    let exp = array(word_table(10.0 / 65535.0, 32767, |v| exact_exp(v as f32).into()))?;
    let inverse = array(word_table(1.0 / 65535.0, -32768, |v| 1.0 / (1.0 + v)))?;
    // The product is rounded to single precision first, as the reference's types have it.
    let m = Multiplier::new((input_scale(x)? * beta) as f64 / (10.0 / 65535.0));
    Ok(by_row(6, move |x: &[i16], y: &mut [i16]| {
        let max = x.iter().copied().max().unwrap_or(0) as i32;
        let mut sum = 0i32;
        for (y, &x) in y.iter_mut().zip(x) {
            let d = m.apply(x as i32 - max).saturating_add(32767).clamp(-32768, 32767);
            *y = look_up(&exp, d as i16);
            sum = sum.wrapping_add(*y as i32);
        }
        let headroom = (sum as u32).leading_zeros() as i32;
        let shifted = ((((sum as i64) << (headroom - 1).max(0)) + (1 << 13)) >> 14) as i32;
        let at = shifted.wrapping_sub((1 << 15) + (1 << 16)).clamp(-32768, 32767);
        let scale = look_up(&inverse, at as i16) as i64;
        let shift = (31 - headroom).clamp(1, 31);
        for y in y {
            *y = ((*y as i64 * scale + (1i64 << (shift - 1))) >> shift).clamp(0, 32767) as i16;
        }
    }))
}

fn log_softmax_float() -> Kernel {
    by_row(8, |x: &[f32], y: &mut [f32]| {
        let max = largest(x);
        let sum: f32 = x.iter().map(|x| exact_exp(x - max)).sum();
        let log = sum.ln();
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x - max - log);
    })
}

/// ln(x) for x >= 1 with 12 integer bits, with 5 integer bits.
fn log(x: i32) -> i32 {
    let sqrt_half = 1_518_500_250;
    let fourth_root_half = 1_805_811_301;
    let (alpha_n, alpha_d, alpha_i, alpha_f): (i32, i32, i32, i32) =
        (117_049_297, 127_690_142, 1_057_819_769, 638_450_708);
    // The logarithm's integer part has 6 integer bits, one more than the result.
    let quarter = rounding_shift(536_870_912, 6);
    let clz = |v: i32| (v as u32).leading_zeros() as i32;
    let headroom_a = clz(x);
    let a = saturating_shl(x, (headroom_a - 1).max(0) as u32);
    let ra = saturating_shl(high_mul(a, sqrt_half), 1);
    let pa = saturating_shl(12 - headroom_a, 25).saturating_add(quarter);
    let b = high_mul(x, sqrt_half);
    let headroom_b = clz(b) - 1;
    let rb = saturating_shl(x, headroom_b.max(0) as u32);
    let pb = saturating_shl(12 - headroom_b, 25).saturating_sub(quarter);
    let r = ra.min(rb);
    let power = pa.max(pb);
    let half_sum = {
        let s = r as i64 + fourth_root_half as i64;
        ((s + if s >= 0 { 1 } else { -1 }) / 2) as i32
    };
    let q = r.wrapping_sub(fourth_root_half);
    let q = q.wrapping_add(q);
    let q2 = high_mul(q, q);
    let numerator = high_mul(q, r).wrapping_add(high_mul(high_mul(q, q2), alpha_n));
    let inner = alpha_i.wrapping_add(q).wrapping_add(high_mul(alpha_d, q2));
    let denominator = high_mul(half_sum, inner).wrapping_add(high_mul(alpha_f, q));
    let inverse = one_over_one_plus(denominator);
    let sum = high_mul(power, 1_488_522_236).wrapping_add(high_mul(rounding_shift(numerator, 6), inverse));
    saturating_shl(sum, 1)
}

fn log_softmax_fixed<T: Quantized>(x: &Tensor, low: i32) -> Result<Kernel> {
    let (m, least) = differences(1.0, input_scale(x)?)?;
    let back = Multiplier::new((1i64 << (31 - m.shift).clamp(0, 62)) as f64 / m.value as f64);
    let top = low + 255;
    Ok(by_row(8, move |x: &[T], y: &mut [T]| {
        let max: i32 = x.iter().map(|&v| v.into()).max().unwrap_or(0);
        let sum = x
            .iter()
            .map(|&v| Into::<i32>::into(v) - max)
            .filter(|&d| d >= least)
            .fold(0i32, |s, d| s.wrapping_add(rounding_shift(exp_negative(scale_difference(d, m)), 12)));
        let log = log(sum);
        let limit = (least - 1).max(back.apply(log.wrapping_add(i32::MIN)));
        for (y, &x) in y.iter_mut().zip(x) {
            let d = Into::<i32>::into(x) - max;
            let q = if d > limit {
                let v = scale_difference(d, m).wrapping_sub(log);
                rounding_shift(v, 22).wrapping_add(top).clamp(low, top)
            } else {
                low
            };
            *y = T::narrow(q);
        }
    }))
}

fn l2_float() -> Kernel {
    by_row(2, |x: &[f32], y: &mut [f32]| {
        let sum: f32 = x.iter().map(|v| v * v).sum();
        let norm = sum.sqrt().max(1e-6);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x / norm);
    })
}

fn l2_fixed<T: Quantized>(x: &Tensor) -> Result<Kernel> {
    let zero = x.per_tensor().map(|s| s.1).ok_or_else(|| Error::invalid("no per-tensor scale"))?;
    // The output has scale 1/128 and its zero in the middle of the range.
    let (middle, low, high) = if T::narrow(-1).into() < 0 { (0, -128, 127) } else { (128, 0, 255) };
    let unsigned = middle != 0;
    Ok(by_row(2, move |x: &[T], y: &mut [T]| {
        let difference = |v: T| Into::<i32>::into(v).wrapping_sub(zero);
        let sum = x.iter().fold(0i32, |s, &v| s.wrapping_add(difference(v).wrapping_mul(difference(v))));
        let m = inv_sqrt(sum.max(0), -1);
        for (y, &x) in y.iter_mut().zip(x) {
            let d = difference(x);
            let v = if unsigned {
                m.apply_small(d.wrapping_mul(128))
            } else {
                Multiplier { value: m.value, shift: m.shift + 7 }.apply(d)
            };
            *y = T::narrow(v.wrapping_add(middle).clamp(low, high));
        }
    }))
}

fn local_response(o: &LocalResponseNormalizationOptionsT) -> Result<Kernel> {
    let radius = usize::try_from(o.radius).map_err(|_| Error::invalid(format!("radius {}", o.radius)))?;
    let (bias, alpha, beta) = (o.bias, o.alpha, o.beta);
    Ok(by_row(16, move |x: &[f32], y: &mut [f32]| {
        for (c, out) in y.iter_mut().enumerate() {
            let window = &x[c.saturating_sub(radius)..x.len().min(c.saturating_add(radius).saturating_add(1))];
            let sum: f32 = window.iter().map(|v| v * v).sum();
            *out = x[c] * (bias + alpha * sum).powf(-beta);
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of e^x that 16-bit SOFTMAX looks up is made with the executor's own function; the reference's with the
    /// C library's in double precision.
    #[test]
    fn the_table_of_exponentials_is_the_c_librarys() {
        let table = |f: fn(f64) -> f64| word_table(10.0 / 65535.0, 32767, f);
        assert_eq!(table(|v| exact_exp(v as f32).into()), table(f64::exp));
    }

    #[test]
    fn fixed_point_functions_are_near_the_real_ones() {
        for i in 1..200 {
            let x = -(i as f64) / 8.0;
            let got = exp_negative((x * (1i64 << 26) as f64) as i32) as f64 / (1i64 << 31) as f64;
            assert!((got - x.exp()).abs() < 1e-6, "exp {x}: {got}");
            let f = i as f64 / 201.0;
            let got = one_over_one_plus((f * (1i64 << 31) as f64) as i32) as f64 / (1i64 << 31) as f64;
            assert!((got - 1.0 / (1.0 + f)).abs() < 1e-6, "1/(1+{f}): {got}");
            let v = 1.0 + i as f64 * 7.3;
            let got = log((v * (1i64 << 19) as f64) as i32) as f64 / (1i64 << 26) as f64;
            assert!((got - v.ln()).abs() < 1e-3, "ln {v}: {got}");
        }
    }
}
