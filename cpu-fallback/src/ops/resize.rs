//! Resampling of images: kernels.

use super::*;
use crate::pool::Pool;
use crate::simd::{Isa, Task, dispatch};
use bytemuck::Pod;
use litegpu_graph::{DType, Op};

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let (x, y) = (site.input(0)?.dtype, site.output(0)?.dtype);
    if x != y {
        return Err(site.unsupported(format!("{x} input and {y} output")));
    }
    match &site.node.op {
        Op::ResizeBilinear(o) => {
            let mode = mode(site, o.align_corners, o.half_pixel_centers)?;
            if mode == Mode::AlignedCentres {
                return Err(Error::invalid("aligned corners and half pixel centres exclude each other"));
            }
            match x {
                DType::F32 => Ok(bilinear_float::<f32>(mode, 0.0)),
                DType::U8 => Ok(bilinear_float::<u8>(mode, 0.5)),
                DType::I8 => Ok(bilinear_int::<i8>(mode)),
                DType::I16 => Ok(bilinear_int::<i16>(mode)),
                _ => no_kernel(site),
            }
        }
        Op::ResizeNearestNeighbor(o) => {
            let mode = mode(site, o.align_corners, o.half_pixel_centers)?;
            match x.bits() {
                bits @ (8 | 16 | 32 | 64) if x != DType::String => Ok(nearest(mode, bits / 8)),
                _ => no_kernel(site),
            }
        }
        _ => no_kernel(site),
    }
}

/// How output positions map to input positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Plain,
    Aligned,
    Centres,
    AlignedCentres,
}

fn mode(_: &Site<'_>, aligned: bool, centres: bool) -> Result<Mode> {
    Ok(match (aligned, centres) {
        (false, false) => Mode::Plain,
        (true, false) => Mode::Aligned,
        (false, true) => Mode::Centres,
        (true, true) => Mode::AlignedCentres,
    })
}

impl Mode {
    fn aligned(self) -> bool {
        matches!(self, Mode::Aligned | Mode::AlignedCentres)
    }
    fn centres(self) -> bool {
        matches!(self, Mode::Centres | Mode::AlignedCentres)
    }

    /// Input distance of neighbouring outputs.
    fn scale(self, input: usize, output: usize) -> f32 {
        if self.aligned() && output > 1 {
            (input as f32 - 1.0) / (output as f32 - 1.0)
        } else {
            input as f32 / output as f32
        }
    }

    /// For each output position: the two input positions and the share of the second.
    fn float_taps(self, input: usize, output: usize) -> Vec<(usize, usize, f32)> {
        let scale = self.scale(input, output);
        (0..output)
            .map(|i| {
                let at = if self.centres() { (i as f32 + 0.5) * scale - 0.5 } else { i as f32 * scale };
                let low = (at.floor() as i32).max(0);
                let high = (at.ceil() as i32).min(input as i32 - 1);
                // Before the first centre the first pixel counts alone; the share is what the reference makes of it.
                (clamp(low, input), clamp(high, input), at - low as f32)
            })
            .collect()
    }

    /// The same in steps of 1/1024.
    fn int_taps(self, input: usize, output: usize) -> Vec<(usize, usize, i64)> {
        let (n, m) = (input as i64, output as i64);
        let scale =
            if self.aligned() && m > 1 { (1024 * (n - 1) + (m - 1) / 2) / (m - 1) } else { (1024 * n + m / 2) / m };
        (0..m)
            .map(|i| {
                let at = if self.centres() { i * scale + scale / 2 - 512 } else { i * scale };
                let low = (at / 1024).max(0);
                let high = ((at + 1023) / 1024).min(n - 1);
                (clamp(low as i32, input), clamp(high as i32, input), at - 1024 * low)
            })
            .collect()
    }

    fn nearest(self, input: usize, output: usize) -> Vec<usize> {
        let scale = self.scale(input, output);
        let offset = if self.centres() { 0.5 } else { 0.0 };
        (0..output)
            .map(|i| {
                let at = (i as f32 + offset) * scale;
                let at = if self.aligned() { at.round() } else { at.floor() };
                clamp((at as i32).min(input as i32 - 1), input)
            })
            .collect()
    }
}

fn clamp(i: i32, n: usize) -> usize {
    (i.max(0) as usize).min(n.saturating_sub(1))
}

/// Sizes of one resize.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    input: [usize; 2],
    output: [usize; 2],
    channels: usize,
}

fn sizes(x: &[usize], y: &[usize]) -> Result<Sizes> {
    match (x, y) {
        (&[_, h, w, c], &[_, oh, ow, _]) if h > 0 && w > 0 => {
            Ok(Sizes { input: [h, w], output: [oh, ow], channels: c })
        }
        _ => Err(Error::invalid(format!("input {x:?}, output {y:?}"))),
    }
}

/// Runs `row(image, y, out)` for every output row.
fn rows<T: Sync, O: Send>(
    pool: &Pool,
    s: &Sizes,
    x: &[T],
    unit: usize,
    out: &mut [O],
    row: impl Fn(&[T], usize, &mut [O]) + Sync,
) {
    let width = s.output[1] * s.channels * unit;
    let image = s.input[0] * s.input[1] * s.channels * unit;
    if width == 0 || out.is_empty() {
        return;
    }
    let count = out.len() / width;
    let parallel = pool.threads() > 1 && out.len() > 12_000;
    let per = if parallel { count.div_ceil(pool.threads() * 2).max(1) } else { count };
    pool.chunks(out, per * width, parallel, |i, piece| {
        for (r, out) in piece.chunks_exact_mut(width).enumerate() {
            let r = i * per + r;
            let (batch, y) = (r / s.output[0].max(1), r % s.output[0].max(1));
            row(&x[batch * image..][..image], y, out);
        }
    });
}

/// What is computed once for a pair of sizes.
struct Taps<T> {
    sizes: [usize; 4],
    y: Vec<(usize, usize, T)>,
    x: Vec<(usize, usize, T)>,
}

impl<T> Taps<T> {
    fn new() -> Taps<T> {
        Taps { sizes: [0; 4], y: Vec::new(), x: Vec::new() }
    }
    fn update(&mut self, s: &Sizes, make: impl Fn(usize, usize) -> Vec<(usize, usize, T)>) {
        let sizes = [s.input[0], s.input[1], s.output[0], s.output[1]];
        if self.sizes != sizes {
            self.sizes = sizes;
            self.y = make(s.input[0], s.output[0]);
            self.x = make(s.input[1], s.output[1]);
        }
    }
}

trait Sample: Pod + Send + Sync {
    fn wide(self) -> f32;
    fn narrow(x: f32) -> Self;
}
impl Sample for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
}
impl Sample for u8 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self as f32
    }
    #[inline(always)]
    fn narrow(x: f32) -> u8 {
        x as u8
    }
}

struct FloatRow<'a, T> {
    image: &'a [T],
    s: &'a Sizes,
    y: (usize, usize, f32),
    x: &'a [(usize, usize, f32)],
    offset: f32,
    out: &'a mut [T],
}

impl<T: Sample> Task for FloatRow<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        let (w, c) = (self.s.input[1], self.s.channels);
        let (y0, y1, dy) = self.y;
        for (&(x0, x1, dx), out) in self.x.iter().zip(self.out.chunks_exact_mut(c)) {
            let at = |y: usize, x: usize| &self.image[(y * w + x) * c..][..c];
            let (a, b, e, d) = (at(y0, x0), at(y1, x0), at(y0, x1), at(y1, x1));
            let shares = [1.0 - dy, dy, 1.0 - dx, dx];
            let mut done = 0;
            if cfg!(target_arch = "wasm32") {
                // Four at a time, from arrays to an array: vector code even where the build is for size.
                let fours = out.as_chunks_mut::<4>().0;
                let (a, b, e, d) = (a.as_chunks().0, b.as_chunks().0, e.as_chunks().0, d.as_chunks().0);
                done = 4 * fours.len();
                for (i, out) in fours.iter_mut().enumerate() {
                    if let (Some(a), Some(b), Some(e), Some(d)) = (a.get(i), b.get(i), e.get(i), d.get(i)) {
                        *out = four(a, b, e, d, shares, self.offset);
                    }
                }
            }
            for j in done..c {
                out[j] = join([a[j], b[j], e[j], d[j]], shares, self.offset);
            }
        }
    }
}

/// The mean of four pixels: above, below, and to the right of both.
#[inline(always)]
fn join<T: Sample>([a, b, e, d]: [T; 4], [up, down, left, right]: [f32; 4], offset: f32) -> T {
    let v = a.wide() * up * left + b.wide() * down * left + e.wide() * up * right + d.wide() * down * right;
    T::narrow(v + offset)
}

/// The same of four channels.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators are calls where the build is for size.
fn four<T: Sample>(a: &[T; 4], b: &[T; 4], e: &[T; 4], d: &[T; 4], shares: [f32; 4], offset: f32) -> [T; 4] {
    let (a, b, e, d, mut out) = (*a, *b, *e, *d, [T::zeroed(); 4]);
    for i in 0..4 {
        out[i] = join([a[i], b[i], e[i], d[i]], shares, offset);
    }
    out
}

fn bilinear_float<T: Sample>(mode: Mode, offset: f32) -> Kernel {
    let mut taps = Taps::new();
    Box::new(move |call| {
        let x = call.input(0)?;
        let pool = call.pool;
        let y = call.output(0)?;
        let s = sizes(x.shape, &y.shape)?;
        taps.update(&s, |i, o| mode.float_taps(i, o));
        let taps = &taps;
        rows(pool, &s, x.as_slice::<T>()?, 1, y.as_mut_slice::<T>()?, |image, y, out| {
            dispatch(FloatRow { image, s: &s, y: taps.y[y], x: &taps.x, offset, out });
        });
        Ok(())
    })
}

fn bilinear_int<T: crate::requant::Quantized>(mode: Mode) -> Kernel {
    let mut taps = Taps::new();
    Box::new(move |call| {
        let x = call.input(0)?;
        let pool = call.pool;
        let y = call.output(0)?;
        let s = sizes(x.shape, &y.shape)?;
        taps.update(&s, |i, o| mode.int_taps(i, o));
        let taps = &taps;
        let c = s.channels;
        rows(pool, &s, x.as_slice::<T>()?, 1, y.as_mut_slice::<T>()?, |image, y, out| {
            let (y0, y1, dy) = taps.y[y];
            for (&(x0, x1, dx), out) in taps.x.iter().zip(out.chunks_exact_mut(c)) {
                let at = |y: usize, x: usize| &image[(y * s.input[1] + x) * c..][..c];
                let (a, b, e, d) = (at(y0, x0), at(y1, x0), at(y0, x1), at(y1, x1));
                let share = [(1024 - dy) * (1024 - dx), dy * (1024 - dx), (1024 - dy) * dx, dy * dx];
                for j in 0..c {
                    let four = [a[j], b[j], e[j], d[j]];
                    let v: i64 = four.into_iter().zip(share).map(|(v, s)| Into::<i32>::into(v) as i64 * s).sum();
                    let half = if v > 0 { 1 << 19 } else { -(1 << 19) };
                    out[j] = T::narrow(((v + half) / (1 << 20)) as i32);
                }
            }
        });
        Ok(())
    })
}

fn nearest(mode: Mode, size: usize) -> Kernel {
    let mut known = [0; 4];
    let (mut ys, mut xs) = (Vec::new(), Vec::new());
    Box::new(move |call| {
        let x = call.input(0)?;
        let pool = call.pool;
        let y = call.output(0)?;
        let s = sizes(x.shape, &y.shape)?;
        let now = [s.input[0], s.input[1], s.output[0], s.output[1]];
        if known != now {
            known = now;
            ys = mode.nearest(s.input[0], s.output[0]);
            xs = mode.nearest(s.input[1], s.output[1]);
        }
        let (ys, xs) = (&ys, &xs);
        let pixel = s.channels * size;
        rows(pool, &s, x.bytes, size, y.bytes_mut(), |image, y, out| {
            let line = &image[ys[y] * s.input[1] * pixel..][..s.input[1] * pixel];
            for (&x, out) in xs.iter().zip(out.chunks_exact_mut(pixel)) {
                out.copy_from_slice(&line[x * pixel..][..pixel]);
            }
        });
        Ok(())
    })
}
