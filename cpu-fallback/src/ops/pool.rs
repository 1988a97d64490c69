//! Pooling: kernels.

use super::*;
use crate::pool::Pool;
use crate::requant::Quantized;
use crate::simd::{Isa, Task, clamp, dispatch};
use bytemuck::Pod;
use litegpu_graph::fixed::{float_range, quantized_range};
use litegpu_graph::ops::window;
use litegpu_graph::schema::Pool2DOptionsT;
use litegpu_graph::{DType, Op};

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let (x, y) = (site.input(0)?, site.output(0)?);
    if x.dtype != y.dtype {
        return Err(site.unsupported(format!("{} input and {} output", x.dtype, y.dtype)));
    }
    match (&site.node.op, x.dtype) {
        (Op::AveragePool2d(o), DType::F32) => float(o, |sum: f32, x: f32| sum + x, 0.0, |sum, n| sum / n as f32),
        (Op::L2Pool2d(o), DType::F32) => {
            float(o, |sum: f32, x: f32| x * x + sum, 0.0, |sum, n| (sum / n as f32).sqrt())
        }
        (Op::MaxPool2d(o), DType::F32) => {
            float(o, |max: f32, x: f32| if max < x { x } else { max }, f32::MIN, |max, _| max)
        }
        (Op::AveragePool2d(o), DType::I8) => average::<i8>(site, o),
        (Op::AveragePool2d(o), DType::U8) => average::<u8>(site, o),
        (Op::AveragePool2d(o), DType::I16) => average::<i16>(site, o),
        (Op::MaxPool2d(o), DType::I8) => largest::<i8>(site, o, i8::MIN),
        (Op::MaxPool2d(o), DType::U8) => largest::<u8>(site, o, u8::MIN),
        (Op::MaxPool2d(o), DType::I16) => largest::<i16>(site, o, i16::MIN),
        _ => no_kernel(site),
    }
}

/// Limits of the fused activation, in quantized values.
fn limits(site: &Site<'_>, o: &Pool2DOptionsT) -> Result<(i32, i32)> {
    let y = site.output(0)?;
    // Without an activation the scale does not matter, and some files have none.
    let (scale, zero) = y.per_tensor().unwrap_or((1.0, 0));
    quantized_range(o.fused_activation_function, y.dtype, scale, zero)
}

fn float<C, D>(o: &Pool2DOptionsT, combine: C, start: f32, done: D) -> Result<Kernel>
where
    C: Fn(f32, f32) -> f32 + Copy + Send + Sync + 'static,
    D: Fn(f32, usize) -> f32 + Copy + Send + Sync + 'static,
{
    let (o, range) = (o.clone(), float_range(o.fused_activation_function)?);
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let pool = call.pool;
        let y = call.output(0)?;
        let w = Windows::new(&o, x.shape, &y.shape)?;
        run(pool, &w, x.as_slice::<f32>()?, y.as_mut_slice::<f32>()?, start, combine, |a, n| clamp(done(a, n), range))
    }))
}

fn average<T: Quantized>(site: &Site<'_>, o: &Pool2DOptionsT) -> Result<Kernel> {
    let (o, (low, high)) = (o.clone(), limits(site, o)?);
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let pool = call.pool;
        let y = call.output(0)?;
        let w = Windows::new(&o, x.shape, &y.shape)?;
        let combine = |sum: i32, x: T| sum.wrapping_add(x.into());
        run(pool, &w, x.as_slice::<T>()?, y.as_mut_slice::<T>()?, 0, combine, |sum, n| {
            // Half away from zero.
            let n = n as i64;
            let half = if sum > 0 { n / 2 } else { -(n / 2) };
            T::narrow(((sum as i64 + half) / n).clamp(low as i64, high as i64) as i32)
        })
    }))
}

fn largest<T: Quantized + Ord>(site: &Site<'_>, o: &Pool2DOptionsT, start: T) -> Result<Kernel> {
    let (o, (low, high)) = (o.clone(), limits(site, o)?);
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let pool = call.pool;
        let y = call.output(0)?;
        let w = Windows::new(&o, x.shape, &y.shape)?;
        run(
            pool,
            &w,
            x.as_slice::<T>()?,
            y.as_mut_slice::<T>()?,
            start,
            |a: T, x: T| a.max(x),
            |a, _| T::narrow(a.into().max(low).min(high)),
        )
    }))
}

/// Where windows lie.
#[derive(Debug, Clone, Copy)]
struct Windows {
    input: [usize; 2],
    output: [usize; 2],
    taps: [usize; 2],
    stride: [usize; 2],
    before: [usize; 2],
    channels: usize,
}

impl Windows {
    fn new(o: &Pool2DOptionsT, x: &[usize], y: &[usize]) -> Result<Windows> {
        let (&[_, h, w, c], &[_, oh, ow, _]) = (x, y) else {
            return Err(Error::invalid(format!("input {x:?}, output {y:?}")));
        };
        let taps = [o.filter_height, o.filter_width].map(|n| usize::try_from(n).unwrap_or(0));
        let wy = window(o.padding, h, taps[0], o.stride_h, 1)?;
        let wx = window(o.padding, w, taps[1], o.stride_w, 1)?;
        Ok(Windows {
            input: [h, w],
            output: [oh, ow],
            taps,
            stride: [o.stride_h as usize, o.stride_w as usize],
            before: [wy.before, wx.before],
            channels: c,
        })
    }

    /// The input positions that output position `at` sees along an axis.
    fn span(&self, axis: usize, at: usize) -> std::ops::Range<usize> {
        let origin = at * self.stride[axis];
        let first = origin.saturating_sub(self.before[axis]);
        let end = (origin + self.taps[axis]).saturating_sub(self.before[axis]).min(self.input[axis]);
        first.min(end)..end
    }
}

/// Channels that are combined side by side.
const LANES: usize = 32;

struct Row<'a, T, A, C, D> {
    w: &'a Windows,
    image: &'a [T],
    y: usize,
    out: &'a mut [T],
    start: A,
    combine: C,
    done: D,
}

impl<T: Copy, A: Copy, C: Fn(A, T) -> A, D: Fn(A, usize) -> T> Row<'_, T, A, C, D> {
    /// N channels of one window, from channel `at` on; returns N.
    #[inline(always)]
    fn block<const N: usize>(
        &self,
        at: usize,
        ys: &std::ops::Range<usize>,
        xs: &std::ops::Range<usize>,
        count: usize,
        out: &mut [T],
    ) -> usize {
        let w = self.w;
        let mut acc = [self.start; N];
        for iy in ys.clone() {
            for ix in xs.clone() {
                let pixel = &self.image[(iy * w.input[1] + ix) * w.channels + at..][..N];
                for j in 0..N {
                    acc[j] = (self.combine)(acc[j], pixel[j]);
                }
            }
        }
        for (o, a) in out.iter_mut().zip(acc) {
            *o = (self.done)(a, count);
        }
        N
    }
}

impl<T: Copy, A: Copy, C: Fn(A, T) -> A, D: Fn(A, usize) -> T> Task for Row<'_, T, A, C, D> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Isa>(mut self) -> bool {
        let (w, c) = (self.w, self.w.channels);
        let ys = w.span(0, self.y);
        for (ox, out) in std::mem::take(&mut self.out).chunks_exact_mut(c).enumerate() {
            let xs = w.span(1, ox);
            let count = ys.len() * xs.len();
            if count == 0 {
                return false;
            }
            let mut at = 0;
            while at < c {
                // As many channels side by side as there are, in lengths that are vectors.
                at += match c - at {
                    LANES.. => self.block::<LANES>(at, &ys, &xs, count, &mut out[at..]),
                    16.. => self.block::<16>(at, &ys, &xs, count, &mut out[at..]),
                    8.. => self.block::<8>(at, &ys, &xs, count, &mut out[at..]),
                    _ => self.block::<1>(at, &ys, &xs, count, &mut out[at..]),
                };
            }
        }
        true
    }
}

fn run<T: Pod + Send + Sync, A: Copy + Send + Sync>(
    pool: &Pool,
    w: &Windows,
    x: &[T],
    out: &mut [T],
    start: A,
    combine: impl Fn(A, T) -> A + Sync + Copy,
    done: impl Fn(A, usize) -> T + Sync + Copy,
) -> Result<()> {
    let width = w.output[1] * w.channels;
    let image = w.input[0] * w.input[1] * w.channels;
    if width == 0 || out.is_empty() {
        return Ok(());
    }
    let empty = std::sync::atomic::AtomicBool::new(false);
    let rows = out.len() / width;
    let parallel = pool.threads() > 1 && out.len().saturating_mul(w.taps[0] * w.taps[1]) > 50_000;
    let per = if parallel { rows.div_ceil(pool.threads() * 2).max(1) } else { rows };
    pool.chunks(out, per * width, parallel, |i, piece| {
        for (r, out) in piece.chunks_exact_mut(width).enumerate() {
            let r = i * per + r;
            let (batch, y) = (r / w.output[0], r % w.output[0]);
            let image = &x[batch * image..][..image];
            if !dispatch(Row { w, image, y, out, start, combine, done }) {
                empty.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    if empty.into_inner() { Err(Error::invalid("a window sees nothing of the input")) } else { Ok(()) }
}
