//! Float arithmetic in the reference's own order: sums from the first element on, products rounded before they are
//! added. Such results are the same on every machine, and the same as the reference's.
//!
//! Products of two computed operands (attention) and sums of short rows are made so, because networks with integer
//! layers quantize them: where a last bit decides between two integers, layers further down turn it into a difference
//! of percents. Products with constant weights, where the time goes, use fused arithmetic in any order.

use crate::gemm::{FinishF32, PackedF32};
use crate::pool::Pool;
use crate::requant::lanes;
use crate::simd::{Isa, NR, Task, dispatch};

/// Multiplications below which threads do not pay.
const PARALLEL: usize = 60_000;
/// Rows of a tile.
const MR: usize = 4;

/// out = clamp(a b + bias), for whole rows: `a` holds rows of `b.depth` elements, `out` rows of `b.columns`.
pub(crate) fn product_in_order(pool: &Pool, a: &[f32], b: &PackedF32, finish: &FinishF32, out: &mut [f32]) {
    let (depth, columns) = (b.depth, b.columns);
    if columns == 0 {
        return;
    }
    let rows = out.len() / columns;
    let parallel = pool.threads() > 1 && out.len().saturating_mul(depth) >= PARALLEL;
    let per = if parallel { rows.div_ceil(pool.threads()).next_multiple_of(MR) } else { rows.max(1) };
    pool.chunks(out, per * columns, parallel, |i, out| {
        let a = a.get(i * per * depth..).unwrap_or_default();
        dispatch(Product { a, b, finish, out });
    });
}

struct Product<'a> {
    a: &'a [f32],
    b: &'a PackedF32,
    finish: &'a FinishF32,
    out: &'a mut [f32],
}

impl Task for Product<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(mut self) {
        let columns = self.b.columns;
        let rows = self.out.len() / columns;
        for p in 0..columns.div_ceil(NR) {
            let mut r = 0;
            while r + MR <= rows {
                self.tile::<S, MR>(p, r);
                r += MR;
            }
            // Together: a row by itself waits for each addition.
            match rows - r {
                3 => self.tile::<S, 3>(p, r),
                2 => self.tile::<S, 2>(p, r),
                1 => self.tile::<S, 1>(p, r),
                _ => {}
            }
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn tile<S: Isa, const R: usize>(&mut self, panel: usize, row: usize) {
        let (depth, columns) = (self.b.depth, self.b.columns);
        let rows: [&[f32]; R] = std::array::from_fn(|r| &self.a[(row + r) * depth..][..depth]);
        let mut acc = [[S::load(&[0.0; 8]); 2]; R];
        for (k, line) in self.b.panel(panel).iter().enumerate().take(depth) {
            let halves = line.0.as_chunks::<8>().0;
            let w = [S::load(&halves[0]), S::load(&halves[1])];
            for r in 0..R {
                let x = S::load(&[rows[r][k]; 8]);
                acc[r][0] = S::mul_add8(x, w[0], acc[r][0]);
                acc[r][1] = S::mul_add8(x, w[1], acc[r][1]);
            }
        }
        let first = panel * NR;
        let n = NR.min(columns - first);
        let bias = lanes(&self.finish.bias, first).as_chunks::<8>().0;
        let one = S::load(&[1.0; 8]);
        for r in 0..R {
            let mut sums = [0.0; NR];
            for (h, out) in sums.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let sum = S::mul_add8(acc[r][h], one, S::load(&bias[h]));
                S::store(S::clamp8(sum, self.finish.range), out);
            }
            let out = &mut self.out[(row + r) * columns + first..][..n];
            // Of a length that is known: no call.
            match out.first_chunk_mut::<NR>() {
                Some(out) => *out = sums,
                None => out.copy_from_slice(&sums[..n]),
            }
        }
    }
}

/// Adds up rows of `n` elements, eight side by side so that their additions overlap; `out` holds what they are added to.
pub(crate) fn add_rows(x: &[f32], n: usize, out: &mut [f32]) {
    let (blocks, rest) = out.as_chunks_mut::<8>();
    let done = blocks.len() * 8 * n;
    for (b, acc) in blocks.iter_mut().enumerate() {
        let rows: [&[f32]; 8] = std::array::from_fn(|r| &x[(8 * b + r) * n..][..n]);
        for k in 0..n {
            for r in 0..8 {
                acc[r] += rows[r][k];
            }
        }
    }
    for (acc, row) in rest.iter_mut().zip(x[done..].chunks_exact(n.max(1))) {
        row.iter().for_each(|v| *acc += v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    #[test]
    fn products_equal_the_definition() {
        let (rows, depth) = (11, 37);
        for columns in [1, 7, 16, 17, 40] {
            let a: Vec<f32> = (0..rows * depth).map(|i| ((i * 37 % 101) as f32 - 50.0) / 13.0).collect();
            let w: Vec<f32> = (0..columns * depth).map(|i| ((i * 53 % 97) as f32 - 48.0) / 7.0).collect();
            let mut pack = PackedF32::default();
            pack.pack(depth, columns, |n, row| row.copy_from_slice(&w[n * depth..][..depth])).unwrap();
            let mut finish = FinishF32 { range: (-30.0, 60.0), ..FinishF32::default() };
            let bias: Vec<f32> = (0..columns).map(|i| i as f32 * 0.3).collect();
            finish.set(columns, Some(&bias)).unwrap();
            let mut want = vec![0f32; rows * columns];
            for (i, o) in want.iter_mut().enumerate() {
                let (r, c) = (i / columns, i % columns);
                let mut sum = 0f32;
                for k in 0..depth {
                    sum += a[r * depth + k] * w[c * depth + k];
                }
                *o = (sum + bias[c]).clamp(-30.0, 60.0);
            }
            let mut portable = vec![0f32; rows * columns];
            Product { a: &a, b: &pack, finish: &finish, out: &mut portable }.run::<Portable>();
            assert_eq!(portable, want);
            for threads in [1, 2, 8] {
                let mut out = vec![0f32; rows * columns];
                product_in_order(&Pool::new(threads), &a, &pack, &finish, &mut out);
                assert_eq!(out, want, "{columns} columns, {threads} threads");
            }
        }
    }

    #[test]
    fn sums_of_rows_are_in_order() {
        let n = 19;
        let x: Vec<f32> = (0..n * 21).map(|i| 1.0 / (i + 1) as f32).collect();
        let mut out = vec![0f32; 21];
        add_rows(&x, n, &mut out);
        for (row, sum) in x.chunks_exact(n).zip(out) {
            assert_eq!(sum, row.iter().fold(0.0, |a, v| a + v));
        }
    }
}
