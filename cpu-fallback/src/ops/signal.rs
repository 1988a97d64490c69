//! Fourier transforms and complex numbers: kernels. Transforms are computed in double precision, as the reference
//! does.

use super::*;
use crate::value::fill_to;
use litegpu_graph::{DType, Op};
use std::f64::consts::PI;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let (from, to) = (site.input(0)?.dtype, site.output(0)?.dtype);
    match (&site.node.op, from, to) {
        (Op::Rfft2d, DType::F32, DType::C64) => Ok(rfft2d()),
        (Op::Real, DType::C64, DType::F32) => Ok(parts::<f32>(|c| c[0])),
        (Op::Imag, DType::C64, DType::F32) => Ok(parts::<f32>(|c| c[1])),
        (Op::ComplexAbs, DType::C64, DType::F32) => Ok(parts::<f32>(|c| c[0].hypot(c[1]))),
        (Op::Real, DType::C128, DType::F64) => Ok(parts::<f64>(|c| c[0])),
        (Op::Imag, DType::C128, DType::F64) => Ok(parts::<f64>(|c| c[1])),
        (Op::ComplexAbs, DType::C128, DType::F64) => Ok(parts::<f64>(|c| c[0].hypot(c[1]))),
        _ => no_kernel(site),
    }
}

fn parts<T: bytemuck::Pod>(f: impl Fn([T; 2]) -> T + Send + 'static) -> Kernel
where
    [T; 2]: bytemuck::Pod,
{
    Box::new(move |call| {
        let x = call.input(0)?;
        let x = x.as_slice::<[T; 2]>()?;
        for (y, &x) in call.output(0)?.as_mut_slice::<T>()?.iter_mut().zip(x) {
            *y = f(x);
        }
        Ok(())
    })
}

pub(super) type Complex = [f64; 2];

fn mul(a: Complex, b: Complex) -> Complex {
    [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]]
}

/// exp(-2 pi i k / n) for k below n / 2.
fn twiddles(n: usize) -> Vec<Complex> {
    (0..n / 2)
        .map(|k| {
            let (sin, cos) = (2.0 * PI * k as f64 / n as f64).sin_cos();
            [cos, -sin]
        })
        .collect()
}

/// The forward transform, in place; the length is a power of two, `w` its twiddles.
fn fft(x: &mut [Complex], w: &[Complex]) {
    let n = x.len();
    let mut j = 0;
    for i in 1..n {
        let mut bit = n >> 1;
        while j & bit != 0 {
            j ^= bit;
            bit >>= 1;
        }
        j |= bit;
        if i < j {
            x.swap(i, j);
        }
    }
    let mut half = 1;
    while half < n {
        let step = n / (2 * half);
        for block in x.chunks_exact_mut(2 * half) {
            let (low, high) = block.split_at_mut(half);
            for ((a, b), t) in low.iter_mut().zip(high).zip(w.iter().step_by(step)) {
                let c = mul(*b, *t);
                *b = [a[0] - c[0], a[1] - c[1]];
                *a = [a[0] + c[0], a[1] + c[1]];
            }
        }
        half *= 2;
    }
}

/// What the transforms of one size share.
#[derive(Default)]
pub(super) struct Plan {
    height: usize,
    width: usize,
    rows: Vec<Complex>,
    half_rows: Vec<Complex>,
    columns: Vec<Complex>,
}

/// Working memory of one slice.
#[derive(Default)]
struct Scratch {
    row: Vec<Complex>,
    column: Vec<Complex>,
    spectrum: Vec<Complex>,
}

impl Plan {
    pub(super) fn new(height: usize, width: usize) -> Plan {
        Plan { height, width, rows: twiddles(width), half_rows: twiddles(width / 2), columns: twiddles(height) }
    }

    fn scratch(&self, s: &mut Scratch) -> Result<()> {
        fill_to(&mut s.row, self.width / 2, [0.0; 2])?;
        fill_to(&mut s.column, self.height, [0.0; 2])?;
        fill_to(&mut s.spectrum, self.height * (self.width / 2 + 1), [0.0; 2])
    }

    /// Transforms one slice of `in_height` x `in_width` reals, cut or padded with zeros to the plan's size.
    fn run(&self, x: &[f32], in_width: usize, out: &mut [[f32; 2]], s: &mut Scratch) {
        let bins = self.width / 2 + 1;
        s.spectrum.fill([0.0; 2]);
        for (row, out) in x.chunks_exact(in_width.max(1)).zip(s.spectrum.chunks_exact_mut(bins)) {
            self.row(|i| row.get(i).copied().unwrap_or(0.0) as f64, out, &mut s.row);
        }
        if self.height > 1 {
            for k in 0..bins {
                for (c, row) in s.column.iter_mut().zip(s.spectrum.chunks_exact(bins)) {
                    *c = row[k];
                }
                fft(&mut s.column, &self.columns);
                for (c, row) in s.column.iter().zip(s.spectrum.chunks_exact_mut(bins)) {
                    row[k] = *c;
                }
            }
        }
        for (o, c) in out.iter_mut().zip(&s.spectrum) {
            *o = [c[0] as f32, c[1] as f32];
        }
    }

    /// A real row through a complex transform of half its length: even samples as real, odd ones as imaginary parts.
    /// `out` has width / 2 + 1 elements, `z` width / 2.
    pub(super) fn row(&self, at: impl Fn(usize) -> f64, out: &mut [Complex], z: &mut [Complex]) {
        if self.width == 1 {
            out[0] = [at(0), 0.0];
            return;
        }
        let half = self.width / 2;
        z.iter_mut().enumerate().for_each(|(i, z)| *z = [at(2 * i), at(2 * i + 1)]);
        fft(z, &self.half_rows);
        for (k, out) in out.iter_mut().enumerate() {
            let (a, b) = (z[k % half], z[(half - k) % half]);
            let even = [(a[0] + b[0]) / 2.0, (a[1] - b[1]) / 2.0];
            let odd = [(a[1] + b[1]) / 2.0, (b[0] - a[0]) / 2.0];
            let t = if k == half { [-1.0, 0.0] } else { self.rows[k] };
            let c = mul(odd, t);
            *out = [even[0] + c[0], even[1] + c[1]];
        }
    }
}

fn rfft2d() -> Kernel {
    let mut plan = Plan::default();
    let mut scratch = Scratch::default();
    Box::new(move |call| {
        let x = call.input(0)?;
        let length = call.input(1)?;
        let &[height, width] = length.as_slice::<i32>()? else {
            return Err(Error::invalid("fft_length must have two elements"));
        };
        let (height, width) = (height.max(1) as usize, width.max(1) as usize);
        let &[.., in_height, in_width] = x.shape else { return Err(Error::invalid("rank below 2")) };
        let x = x.as_slice::<f32>()?;
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<[f32; 2]>()?;
        if out.is_empty() {
            return Ok(());
        }
        if (plan.height, plan.width) != (height, width) {
            plan = Plan::new(height, width);
        }
        let (plan, size, slice) = (&plan, height * (width / 2 + 1), in_height * in_width);
        let input = |i: usize| {
            let start = i.saturating_mul(slice).min(x.len());
            &x[start..(start + in_height.min(height) * in_width).min(x.len())]
        };
        if pool.threads() == 1 || out.len() < 1 << 14 {
            plan.scratch(&mut scratch)?;
            for (i, o) in out.chunks_mut(size).enumerate() {
                plan.run(input(i), in_width, o, &mut scratch);
            }
            return Ok(());
        }
        // Several slices a piece: one working memory serves them.
        let group = out.len().div_ceil(size).div_ceil(4 * pool.threads()).max(1);
        let failed = std::sync::Mutex::new(None);
        pool.chunks(out, group * size, true, |g, piece| {
            let mut scratch = Scratch::default();
            if let Err(e) = plan.scratch(&mut scratch) {
                *failed.lock().unwrap_or_else(|p| p.into_inner()) = Some(e);
                return;
            }
            for (i, o) in piece.chunks_mut(size).enumerate() {
                plan.run(input(g * group + i), in_width, o, &mut scratch);
            }
        });
        failed.into_inner().unwrap_or_else(|p| p.into_inner()).map_or(Ok(()), Err)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transform_equals_its_definition() {
        for (h, w, ih, iw) in [(1, 1, 1, 1), (1, 2, 1, 2), (2, 1, 2, 1), (4, 8, 3, 9), (8, 16, 8, 16), (4, 4, 5, 2)] {
            let x: Vec<f32> = (0..ih * iw).map(|i| ((i * 37 + 11) % 23) as f32 - 9.0).collect();
            let bins = w / 2 + 1;
            let mut out = vec![[0f32; 2]; h * bins];
            let (plan, mut scratch) = (Plan::new(h, w), Scratch::default());
            plan.scratch(&mut scratch).unwrap();
            plan.run(&x[..ih.min(h) * iw], iw, &mut out, &mut scratch);
            for u in 0..h {
                for v in 0..bins {
                    let mut sum = [0.0; 2];
                    for i in 0..ih.min(h) {
                        for j in 0..iw.min(w) {
                            let a = -2.0 * PI * ((u * i) as f64 / h as f64 + (v * j) as f64 / w as f64);
                            sum[0] += x[i * iw + j] as f64 * a.cos();
                            sum[1] += x[i * iw + j] as f64 * a.sin();
                        }
                    }
                    let got = out[u * bins + v];
                    assert!(
                        (got[0] as f64 - sum[0]).abs() < 1e-4 && (got[1] as f64 - sum[1]).abs() < 1e-4,
                        "{h}x{w} {u},{v}"
                    );
                }
            }
        }
    }
}
