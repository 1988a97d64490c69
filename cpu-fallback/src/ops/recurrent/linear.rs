//! Rows times weights, float and dynamic range: what every recurrent cell is made of.

use crate::pool::Pool;
use crate::requant::Steps;
use crate::simd::{Isa, NR, Task, dispatch};
use crate::value::{View, fill_to};
use litegpu_graph::{DType, Error, Result};
use std::collections::HashMap;

/// Multiplications from which a product is worth the threads.
const PARALLEL: usize = 1 << 16;

/// Weights of one product.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weights<'a> {
    /// Row by row, one row an output.
    Float(&'a [f32]),
    /// Quantized; real = q * scale.
    Int { q: &'a [i8], scale: f32 },
    /// A diagonal matrix.
    Diagonal(&'a [f32]),
}

/// A weight matrix: `rows` outputs from `cols` inputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub index: usize,
    pub rows: usize,
    pub cols: usize,
    pub weights: Weights<'a>,
}

impl<'a> Matrix<'a> {
    /// Operand `index` as a matrix of that size.
    ///
    /// # Errors
    /// `Invalid` when it has another size, `Unsupported` when it has a type that is no weight type.
    pub(super) fn new(inputs: &[Option<View<'a>>], index: usize, rows: usize, cols: usize) -> Result<Matrix<'a>> {
        Self::optional(inputs, index, rows, cols)?
            .ok_or_else(|| Error::invalid(format!("the weights in operand {index} are missing")))
    }

    pub(super) fn optional(
        inputs: &[Option<View<'a>>],
        index: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Matrix<'a>>> {
        let Some(v) = inputs.get(index).copied().flatten() else { return Ok(None) };
        let weights = match (v.dtype, v.shape) {
            (DType::F32, [n]) if *n == rows && rows == cols => Weights::Diagonal(v.as_slice()?),
            (_, s) if s != [rows, cols] => {
                return Err(Error::invalid(format!(
                    "weights in operand {index} of shape {s:?}, [{rows}, {cols}] is needed"
                )));
            }
            (DType::F32, _) => Weights::Float(v.as_slice()?),
            // Old files mark dynamic range weights as uint8; their bytes are int8.
            (DType::I8 | DType::U8, _) => Weights::Int { q: bytemuck::cast_slice(v.bytes), scale: v.scale_zero()?.0 },
            (d, _) => return Err(Error::unsupported(format!("weights of type {d} in operand {index}"))),
        };
        Ok(Some(Matrix { index, rows, cols, weights }))
    }
}

/// A vector of `n` floats.
///
/// # Errors
/// `Invalid` when the operand has another type or size.
pub(super) fn vector<'a>(inputs: &[Option<View<'a>>], index: usize, n: usize) -> Result<Option<&'a [f32]>> {
    let Some(v) = inputs.get(index).copied().flatten() else { return Ok(None) };
    match v.dtype {
        DType::F32 if v.len() == n => Ok(Some(v.as_slice()?)),
        d => Err(Error::invalid(format!("operand {index} is {d} of shape {:?}, {n} floats are needed", v.shape))),
    }
}

/// Rows quantized for a product with integer weights, each with its own scale.
#[derive(Debug, Default)]
pub(super) struct QuantizedRows {
    q: Vec<i8>,
    scale: Vec<f32>,
    zero: Vec<i32>,
}

impl QuantizedRows {
    pub(super) fn fill<'x>(
        &mut self,
        rows: usize,
        cols: usize,
        asymmetric: bool,
        row: impl Fn(usize) -> &'x [f32],
    ) -> Result<()> {
        fill_to(&mut self.q, rows * cols, 0)?;
        fill_to(&mut self.scale, rows, 1.0)?;
        fill_to(&mut self.zero, rows, 0)?;
        for (i, q) in self.q.chunks_exact_mut(cols.max(1)).enumerate() {
            let steps = Steps::of(row(i), asymmetric);
            steps.bytes(row(i), q);
            (self.scale[i], self.zero[i]) = (steps.scale, steps.zero);
        }
        Ok(())
    }
}

/// Row sums of integer weights by operand, kept for constants.
#[derive(Debug, Default)]
pub(super) struct Sums {
    of: HashMap<usize, Vec<i32>>,
    /// Operands that are constant.
    constant: Vec<bool>,
}

impl Sums {
    pub(super) fn new(constant: Vec<bool>) -> Sums {
        Sums { constant, ..Sums::default() }
    }

    /// Computes what is missing. Call once a run for each matrix.
    pub(super) fn prepare(&mut self, m: &Matrix<'_>) {
        let Weights::Int { q, .. } = m.weights else { return };
        let fixed = self.constant.get(m.index) == Some(&true);
        if fixed && self.of.contains_key(&m.index) {
            return;
        }
        let sums = q.chunks_exact(m.cols.max(1)).map(|r| r.iter().map(|&w| w as i32).sum()).collect();
        self.of.insert(m.index, sums);
    }
    fn get(&self, m: &Matrix<'_>) -> &[i32] {
        self.of.get(&m.index).map_or(&[], Vec::as_slice)
    }
}

/// out[i] += weights * row(i), for the float rows; `q` holds the same rows quantized where weights are integers.
pub(super) fn accumulate<'x>(
    m: &Matrix<'_>,
    sums: &Sums,
    row: impl Fn(usize) -> &'x [f32] + Sync,
    q: &QuantizedRows,
    out: &mut [f32],
    pool: &Pool,
) {
    if m.rows == 0 || m.cols == 0 {
        return;
    }
    match m.weights {
        Weights::Float(w) => products(m, out, pool, &FloatDots { w, cols: m.cols, row }),
        Weights::Int { q: w, scale } => {
            products(m, out, pool, &IntDots { w, cols: m.cols, scale, sums: sums.get(m), q });
        }
        Weights::Diagonal(w) => {
            for (i, out) in out.chunks_exact_mut(m.rows).enumerate() {
                for ((o, w), x) in out.iter_mut().zip(w).zip(row(i)) {
                    *o += w * x;
                }
            }
        }
    }
}

/// The product of row `i` with the weights of output `r`. `at` is `#[inline(always)]`.
trait Dots: Sync {
    fn at<S: Isa>(&self, i: usize, r: usize) -> f32;
}

struct FloatDots<'a, R> {
    w: &'a [f32],
    cols: usize,
    row: R,
}

impl<'x, R: Fn(usize) -> &'x [f32] + Sync> Dots for FloatDots<'_, R> {
    #[inline(always)]
    fn at<S: Isa>(&self, i: usize, r: usize) -> f32 {
        dot(&self.w[r * self.cols..][..self.cols], (self.row)(i))
    }
}

struct IntDots<'a> {
    w: &'a [i8],
    cols: usize,
    scale: f32,
    sums: &'a [i32],
    q: &'a QuantizedRows,
}

impl Dots for IntDots<'_> {
    #[inline(always)]
    fn at<S: Isa>(&self, i: usize, r: usize) -> f32 {
        let (q, cols) = (self.q, self.cols);
        let sum = dot_i8::<S>(&self.w[r * cols..][..cols], &q.q[i * cols..][..cols]);
        let offset = self.sums.get(r).map_or(0, |s| s.wrapping_mul(q.zero[i]));
        sum.wrapping_sub(offset) as f32 * (self.scale * q.scale[i])
    }
}

/// out[i][r] += f(i, r). Rows go in groups that share a pass over the weights.
fn products(m: &Matrix<'_>, out: &mut [f32], pool: &Pool, f: &impl Dots) {
    const GROUP: usize = 8;
    let rows = out.len() / m.rows;
    let parallel = out.len() * m.cols >= PARALLEL;
    if rows >= GROUP * pool.threads() {
        pool.chunks(out, GROUP * m.rows, parallel, |g, out| {
            dispatch(Group { out, rows: m.rows, first: g * GROUP, f });
        });
        return;
    }
    let chunk = if parallel { out.len().div_ceil(2 * pool.threads()).max(16) } else { out.len() };
    pool.chunks(out, chunk, parallel, |c, out| dispatch(Run { out, rows: m.rows, first: c * chunk, f }));
}

/// All results of some rows, from row `first` on.
struct Group<'a, F> {
    out: &'a mut [f32],
    rows: usize,
    first: usize,
    f: &'a F,
}

impl<F: Dots> Task for Group<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        for r in 0..self.rows {
            for (i, o) in self.out.iter_mut().skip(r).step_by(self.rows).enumerate() {
                *o += self.f.at::<S>(self.first + i, r);
            }
        }
    }
}

/// Neighbouring results, from the first on.
struct Run<'a, F> {
    out: &'a mut [f32],
    rows: usize,
    first: usize,
    f: &'a F,
}

impl<F: Dots> Task for Run<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        let (mut i, mut r) = (self.first / self.rows, self.first % self.rows);
        for o in self.out {
            *o += self.f.at::<S>(i, r);
            r += 1;
            if r == self.rows {
                (i, r) = (i + 1, 0);
            }
        }
    }
}

/// The sum of products; the order of additions depends on the length only.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a8, a_rest) = a.as_chunks::<16>();
    let (b8, b_rest) = b.as_chunks::<16>();
    let mut acc = [0f32; 16];
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..16 {
            acc[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    acc.iter().sum::<f32>() + rest
}

/// `sum` plus 16 products, two to a lane.
#[inline(always)]
fn dot16<S: Isa>(sum: S::I, a: &[i8; NR], b: &[i8; NR]) -> S::I {
    let (mut x, mut y) = ([0; NR], [0; NR]);
    for j in 0..NR {
        (x[j], y[j]) = (a[j] as i16, b[j] as i16);
    }
    S::dot(sum, S::load_words(&x), S::load_words(&y))
}

/// The sum of products modulo 2^32.
#[inline(always)]
fn dot_i8<S: Isa>(a: &[i8], b: &[i8]) -> i32 {
    let ((a16, a_rest), (b16, b_rest)) = (a.as_chunks::<NR>(), b.as_chunks::<NR>());
    let mut acc = S::load_sums(&[0; NR]);
    let ((a32, a16), (b32, b16)) = (a16.as_chunks::<2>(), b16.as_chunks::<2>());
    for ([a0, a1], [b0, b1]) in a32.iter().zip(b32) {
        acc = [dot16::<S>(acc[0], a0, b0), dot16::<S>(acc[1], a1, b1)];
    }
    for (a, b) in a16.iter().zip(b16) {
        acc[0] = dot16::<S>(acc[0], a, b);
    }
    let rest = a_rest.iter().zip(b_rest).fold(0i32, |s, (&a, &b)| s.wrapping_add(i32::from(a) * i32::from(b)));
    S::sums(acc).iter().fold(rest, |s, v| s.wrapping_add(*v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    struct Dot<'a>(&'a [i8], &'a [i8]);
    impl Task for Dot<'_> {
        type Output = i32;
        #[inline(always)]
        fn run<S: Isa>(self) -> i32 {
            dot_i8::<S>(self.0, self.1)
        }
    }

    #[test]
    fn integer_dots_are_equal() {
        let all =
            |seed: usize| -> Vec<i8> { (0..200usize).map(|i| ((i + seed) * (i + 7) % 256) as u8 as i8).collect() };
        let (mut a, mut b) = (all(3), all(50));
        // The largest products.
        a[..40].fill(-128);
        b[..40].fill(-128);
        for n in 0..200 {
            let (a, b) = (&a[..n], &b[..n]);
            let sum: i32 = a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
            assert_eq!((dispatch(Dot(a, b)), Dot(a, b).run::<Portable>()), (sum, sum), "{n}");
        }
    }

    #[test]
    fn groups_and_threads_agree() {
        let (rows, cols) = (70, 33);
        let w: Vec<f32> = (0..rows * cols).map(|i| (i % 17) as f32 - 8.0).collect();
        let x: Vec<f32> = (0..40 * cols).map(|i| (i % 11) as f32 * 0.1).collect();
        let m = Matrix { index: 0, rows, cols, weights: Weights::Float(&w) };
        let run = |threads| {
            let mut out = vec![1f32; 40 * rows];
            let pool = Pool::new(threads);
            accumulate(&m, &Sums::default(), |i| &x[i * cols..][..cols], &QuantizedRows::default(), &mut out, &pool);
            out
        };
        assert_eq!(run(1), run(3));
        assert_eq!(run(1), run(8));
        assert_eq!(run(1)[5 * rows + 3], 1.0 + dot(&w[3 * cols..][..cols], &x[5 * cols..][..cols]));
    }
}
