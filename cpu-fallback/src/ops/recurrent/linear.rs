//! Rows times weights, float and dynamic range: what every recurrent cell is made of.

use crate::pool::Pool;
use crate::requant::Steps;
use crate::simd::{Isa, Task, dispatch};
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
        Weights::Float(w) => {
            products(m, out, pool, |i, r| dot(&w[r * m.cols..][..m.cols], row(i)));
        }
        Weights::Int { q: w, scale } => {
            let sums = sums.get(m);
            products(m, out, pool, |i, r| {
                let sum = dot_i8(&w[r * m.cols..][..m.cols], &q.q[i * m.cols..][..m.cols]);
                let offset = sums.get(r).map_or(0, |s| s.wrapping_mul(q.zero[i]));
                sum.wrapping_sub(offset) as f32 * (scale * q.scale[i])
            });
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

/// out[i][r] += f(i, r). Rows go in groups that share a pass over the weights.
fn products(m: &Matrix<'_>, out: &mut [f32], pool: &Pool, f: impl Fn(usize, usize) -> f32 + Sync) {
    const GROUP: usize = 8;
    let rows = out.len() / m.rows;
    let parallel = out.len() * m.cols >= PARALLEL;
    if rows >= GROUP * pool.threads() {
        pool.chunks(out, GROUP * m.rows, parallel, |g, out| {
            dispatch(Group { out, rows: m.rows, first: g * GROUP, f: &f });
        });
        return;
    }
    let chunk = if parallel { out.len().div_ceil(2 * pool.threads()).max(16) } else { out.len() };
    pool.chunks(out, chunk, parallel, |c, out| dispatch(Run { out, rows: m.rows, first: c * chunk, f: &f }));
}

/// All results of some rows, from row `first` on.
struct Group<'a, F> {
    out: &'a mut [f32],
    rows: usize,
    first: usize,
    f: &'a F,
}

impl<F: Fn(usize, usize) -> f32> Task for Group<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        for r in 0..self.rows {
            for (i, o) in self.out.iter_mut().skip(r).step_by(self.rows).enumerate() {
                *o += (self.f)(self.first + i, r);
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

impl<F: Fn(usize, usize) -> f32> Task for Run<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        let (mut i, mut r) = (self.first / self.rows, self.first % self.rows);
        for o in self.out {
            *o += (self.f)(i, r);
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

/// The sum of products modulo 2^32.
#[inline(always)]
fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).fold(0i32, |s, (&a, &b)| s.wrapping_add(a as i16 as i32 * b as i16 as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

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
