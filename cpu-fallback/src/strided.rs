//! Loops over tensors of any rank: broadcasting, and copies between strided views.
//!
//! Dimensions of size 1 are dropped and neighbours that are contiguous in every operand are merged first, so that the
//! innermost loop is as long as the shapes allow and needs no index arithmetic.

use crate::pool::Pool;
use crate::simd::{Isa, Task, dispatch};
use litegpu_graph::{Error, Result};
use smallvec::SmallVec;
use std::hint::black_box;

/// Elements below which a loop stays on one thread.
pub(crate) const PARALLEL: usize = 1 << 14;
/// Elements of one piece of work.
const CHUNK: usize = 1 << 13;
/// Elements that a short row is repeated to.
const REPEATED: usize = 256;

/// The strides of a dense tensor.
pub(crate) fn strides(shape: &[usize]) -> SmallVec<[usize; 8]> {
    let mut out = SmallVec::from_elem(1, shape.len());
    let mut n = 1usize;
    for (s, &d) in out.iter_mut().zip(shape).rev() {
        *s = n;
        n = n.saturating_mul(d);
    }
    out
}

/// What computes a line of results from a line of operands. Kernels differ in this alone: the loops around it are
/// compiled once per element type.
pub(crate) type Line<A, B> = dyn Fn(&[A], &mut [B]) + Send + Sync;

/// The line of `f`.
pub(crate) fn line<A: Copy, B: Copy>(f: impl Fn(A) -> B + Send + Sync + 'static) -> Box<Line<A, B>> {
    Box::new(move |x, out| dispatch(Each(x, out, &f)))
}

/// Whether loops go a few elements at a time from arrays to an array of their own: nothing can overlap and nothing is left
/// over, so that they become vector code even where the build is for size. Elsewhere, long loops are faster.
const SHORT: bool = cfg!(target_arch = "wasm32");
/// Floats of such a loop: one vector, as no loop is unrolled.
const LANES: usize = 4;
/// Elements of one that changes their size.
const WORDS: usize = 8;

/// A loop for the machine's instruction set.
struct Each<'a, A, B, F>(&'a [A], &'a mut [B], &'a F);

impl<A: Copy, B: Copy, F: Fn(A) -> B> Task for Each<'_, A, B, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        convert(self.0, self.1, self.2);
    }
}

/// `f` of every element, as far as both sides reach; part of a loop for an instruction set.
#[inline(always)]
pub(crate) fn convert<A: Copy, B: Copy>(x: &[A], out: &mut [B], f: &impl Fn(A) -> B) {
    if !SHORT {
        return out.iter_mut().zip(x).for_each(|(o, &v)| *o = f(v));
    }
    let n = x.len().min(out.len());
    let (blocks, rest) = out[..n].as_chunks_mut::<WORDS>();
    let (from, left) = x[..n].as_chunks::<WORDS>();
    for (out, x) in blocks.iter_mut().zip(from) {
        each(x, out, f);
    }
    rest.iter_mut().zip(left).for_each(|(o, &v)| *o = f(v));
}

/// `f` of a block's elements.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators are calls where the build is for size.
fn each<A: Copy, B: Copy>(x: &[A; WORDS], out: &mut [B; WORDS], f: &impl Fn(A) -> B) {
    let (x, mut to) = (*x, *out);
    for i in 0..WORDS {
        to[i] = f(x[i]);
    }
    *out = to;
}

/// `f` of a block's floats.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // As above.
fn places(x: &[f32; LANES], f: &impl Fn(f32) -> f32) -> [f32; LANES] {
    let (x, mut to) = (*x, [0.0; LANES]);
    for i in 0..LANES {
        to[i] = f(x[i]);
    }
    to
}

/// A function of floats that takes each one's place.
pub(crate) type InPlace = dyn Fn(&mut [f32]) + Send + Sync;

/// `f` in place.
pub(crate) fn in_place(f: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Box<InPlace> {
    Box::new(move |x| dispatch(EachInPlace(x, &f)))
}

struct EachInPlace<'a, F>(&'a mut [f32], &'a F);

impl<F: Fn(f32) -> f32> Task for EachInPlace<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        if !SHORT {
            // From a copy that the compiler does not know for one: where `f` leaves values as they are, it would store
            // under a mask instead, which takes many times as long.
            let (blocks, rest) = self.0.as_chunks_mut::<64>();
            for b in blocks {
                let from = *b;
                b.iter_mut().zip(black_box(&from)).for_each(|(v, x)| *v = (self.1)(*x));
            }
            let mut from = [0.0; 64];
            let from = &mut from[..rest.len()];
            from.copy_from_slice(rest);
            return rest.iter_mut().zip(black_box(&*from)).for_each(|(v, x)| *v = (self.1)(*x));
        }
        let (blocks, rest) = self.0.as_chunks_mut::<LANES>();
        for b in blocks {
            *b = places(b, self.1);
        }
        if !rest.is_empty() {
            let mut from = [0.0; LANES];
            from[..rest.len()].copy_from_slice(rest);
            rest.copy_from_slice(&places(&from, self.1)[..rest.len()]);
        }
    }
}

/// Applies `f` to `x` piece by piece.
pub(crate) fn map<A: Copy + Sync, B: Send>(pool: &Pool, x: &[A], out: &mut [B], f: &Line<A, B>) {
    let parallel = out.len() >= PARALLEL;
    let piece: &(dyn Fn(usize, &mut [B]) + Sync) = &|i, part| f(x.get(i * CHUNK..).unwrap_or_default(), part);
    pool.chunks(out, CHUNK, parallel, piece);
}

/// The loops of an operator that broadcasts N operands to one output.
#[derive(Debug)]
struct Loops<const N: usize> {
    /// (size, stride of each operand), outermost first; never empty.
    dims: SmallVec<[(usize, [usize; N]); 6]>,
}

impl<const N: usize> Loops<N> {
    fn new(out: &[usize], shapes: [&[usize]; N]) -> Result<Loops<N>> {
        let mut next = [1usize; N];
        let mut dims: SmallVec<[(usize, [usize; N]); 6]> = SmallVec::new();
        for s in &shapes {
            if s.len() > out.len() {
                return Err(Error::invalid(format!("shape {s:?} does not broadcast to {out:?}")));
            }
        }
        // From the innermost dimension outwards; `dims` is reversed at the end.
        for back in 1..=out.len() {
            let d = out[out.len() - back];
            let mut strides = [0usize; N];
            for (k, s) in shapes.iter().enumerate() {
                let own = s.len().checked_sub(back).map_or(1, |i| s[i]);
                if own == d {
                    strides[k] = if d == 1 { 0 } else { next[k] };
                } else if own != 1 {
                    return Err(Error::invalid(format!("shape {s:?} does not broadcast to {out:?}")));
                }
                next[k] *= own;
            }
            if d == 1 {
                continue;
            }
            match dims.last_mut() {
                Some((n, inner)) if (0..N).all(|k| strides[k] == inner[k] * *n) => *n *= d,
                _ => dims.push((d, strides)),
            }
        }
        if dims.is_empty() {
            dims.push((1, [0; N]));
        }
        dims.reverse();
        Ok(Loops { dims })
    }

    /// Calls `f(offsets, strides, piece of out)` so that every element of `out` is covered once.
    fn run<C: Send>(&self, pool: &Pool, out: &mut [C], f: &(dyn Fn([usize; N], [usize; N], &mut [C]) + Sync)) {
        let parallel = out.len() >= PARALLEL;
        let Some((&(n, inner), outer)) = self.dims.split_last() else { return };
        if n == 0 {
            return;
        }
        if outer.is_empty() {
            let piece: &(dyn Fn(usize, &mut [C]) + Sync) = &|i, part| {
                let mut at = [0; N];
                for k in 0..N {
                    at[k] = i * CHUNK * inner[k];
                }
                f(at, inner, part);
            };
            pool.chunks(out, CHUNK, parallel, piece);
            return;
        }
        let rows = (CHUNK / n).max(1);
        let piece: &(dyn Fn(usize, &mut [C]) + Sync) = &|i, part| {
            // Position of the first row, then an odometer.
            let mut index: SmallVec<[usize; 6]> = SmallVec::from_elem(0, outer.len());
            let mut at = [0; N];
            let mut row = i * rows;
            for (slot, &(d, strides)) in index.iter_mut().zip(outer).rev() {
                *slot = row % d;
                row /= d;
                for k in 0..N {
                    at[k] += *slot * strides[k];
                }
            }
            for piece in part.chunks_mut(n) {
                f(at, inner, piece);
                for (slot, &(d, strides)) in index.iter_mut().zip(outer).rev() {
                    *slot += 1;
                    for k in 0..N {
                        at[k] += strides[k];
                    }
                    if *slot < d {
                        break;
                    }
                    *slot = 0;
                    for k in 0..N {
                        at[k] -= d * strides[k];
                    }
                }
            }
        };
        pool.chunks(out, rows * n, parallel, piece);
    }
}

/// What computes a line of results from two lines of operands, whose steps are 1, or 0 for a value that repeats.
pub(crate) type Line2<A, B, C> = dyn Fn(&[A], &[B], [usize; 2], &mut [C]) + Send + Sync;

/// The line of `f`.
pub(crate) fn line2<A: Copy, B: Copy, C: Copy>(f: impl Fn(A, B) -> C + Send + Sync + 'static) -> Box<Line2<A, B, C>> {
    Box::new(move |a, b, steps, out| dispatch(EachPair { a, b, steps, out, f: &f }))
}

struct EachPair<'a, A, B, C, F> {
    a: &'a [A],
    b: &'a [B],
    steps: [usize; 2],
    out: &'a mut [C],
    f: &'a F,
}

impl<A: Copy, B: Copy, C: Copy, F: Fn(A, B) -> C> Task for EachPair<'_, A, B, C, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        let EachPair { a, b, steps, out, f } = self;
        let (Some(&x), Some(&y)) = (a.first(), b.first()) else { return };
        // Both repeat only where there is one result.
        let repeats = if out.len() > 1 { steps.map(|s| s == 0) } else { [false; 2] };
        // A value that repeats is laid out once: one loop does for all cases, and is compiled once.
        if !SHORT {
            const N: usize = 64;
            let xs = if repeats[0] { Some([x; N]) } else { None };
            let ys = if repeats[1] { Some([y; N]) } else { None };
            let chunk = if repeats == [false; 2] { out.len().max(1) } else { N };
            for (i, out) in out.chunks_mut(chunk).enumerate() {
                let a = xs.as_ref().map_or(a.get(i * chunk..).unwrap_or_default(), |x| x);
                let b = ys.as_ref().map_or(b.get(i * chunk..).unwrap_or_default(), |y| y);
                out.iter_mut().zip(a).zip(b).for_each(|((o, &x), &y)| *o = f(x, y));
            }
            return;
        }
        let (xs, ys) = ([[x; LANES]], [[y; LANES]]);
        let x = if repeats[0] { &xs } else { a.as_chunks().0 };
        let y = if repeats[1] { &ys } else { b.as_chunks().0 };
        let (sx, sy) = (usize::from(!repeats[0]), usize::from(!repeats[1]));
        let (blocks, rest) = out.as_chunks_mut::<LANES>();
        let done = blocks.len();
        for (i, out) in blocks.iter_mut().enumerate() {
            if let (Some(x), Some(y)) = (x.get(i * sx), y.get(i * sy)) {
                pairs(x, y, out, f);
            }
        }
        let a = if repeats[0] { &xs[0] } else { a.get(done * LANES..).unwrap_or_default() };
        let b = if repeats[1] { &ys[0] } else { b.get(done * LANES..).unwrap_or_default() };
        rest.iter_mut().zip(a).zip(b).for_each(|((o, &x), &y)| *o = f(x, y));
    }
}

/// `f` of a block's pairs.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // As above.
fn pairs<A: Copy, B: Copy, C: Copy>(x: &[A; LANES], y: &[B; LANES], out: &mut [C; LANES], f: &impl Fn(A, B) -> C) {
    let (x, y, mut to) = (*x, *y, *out);
    for i in 0..LANES {
        to[i] = f(x[i], y[i]);
    }
    *out = to;
}

/// Joins `a` and `b` by `f` with NumPy broadcasting.
///
/// # Errors
/// `Invalid` when the shapes do not broadcast to the output's, `Internal` when a slice is shorter than its shape.
pub(crate) fn zip<A: Copy + Sync, B: Copy + Sync, C: Send>(
    pool: &Pool,
    out_shape: &[usize],
    a: (&[usize], &[A]),
    b: (&[usize], &[B]),
    out: &mut [C],
    f: &Line2<A, B, C>,
) -> Result<()> {
    if out.len() <= CHUNK && a.0 == out_shape && a.1.len() == out.len() {
        // The common small cases need no loops.
        if b.0 == out_shape && b.1.len() == out.len() {
            f(a.1, b.1, [1, 1], out);
            return Ok(());
        }
        if b.1.len() == 1 && b.0.len() <= out_shape.len() && out.len() > 1 {
            f(a.1, b.1, [1, 0], out);
            return Ok(());
        }
    }
    let loops = Loops::new(out_shape, [a.0, b.0])?;
    check(a.0, a.1.len())?;
    check(b.0, b.1.len())?;
    check(out_shape, out.len())?;
    let (a, b) = (a.1, b.1);
    // A short row that every row of the other operand meets: repeated, it makes rows long enough to be worth a call.
    if let [(_, [wide, 0]), (n, [1, 1])] = loops.dims[..]
        && wide == n
        && (1..=REPEATED / 4).contains(&n)
    {
        let row: SmallVec<[B; REPEATED]> = b.iter().take(n).copied().cycle().take(REPEATED / n * n).collect();
        let chunk = CHUNK.div_ceil(row.len()) * row.len();
        let piece: &(dyn Fn(usize, &mut [C]) + Sync) = &|i, part| {
            for (k, part) in part.chunks_mut(row.len()).enumerate() {
                f(&a[i * chunk + k * row.len()..], &row, [1, 1], part);
            }
        };
        let parallel = out.len() >= PARALLEL;
        pool.chunks(out, chunk, parallel, piece);
        return Ok(());
    }
    loops.run(pool, out, &|[i, j], steps, part| f(&a[i..], &b[j..], steps, part));
    Ok(())
}

/// `out[i] = f(c[i], a[i], b[i])` with NumPy broadcasting.
///
/// # Errors
/// As [`zip`].
pub(crate) fn zip3<D: Copy + Sync, A: Copy + Sync, C: Send>(
    pool: &Pool,
    out_shape: &[usize],
    c: (&[usize], &[D]),
    a: (&[usize], &[A]),
    b: (&[usize], &[A]),
    out: &mut [C],
    f: impl Fn(D, A, A) -> C + Sync,
) -> Result<()> {
    let loops = Loops::new(out_shape, [c.0, a.0, b.0])?;
    check(c.0, c.1.len())?;
    check(a.0, a.1.len())?;
    check(b.0, b.1.len())?;
    check(out_shape, out.len())?;
    let (c, a, b) = (c.1, a.1, b.1);
    loops.run(pool, out, &|[i, j, k], strides, part| {
        let (c, a, b) = (&c[i..], &a[j..], &b[k..]);
        if strides == [1, 1, 1] {
            part.iter_mut().zip(c).zip(a.iter().zip(b)).for_each(|((o, &c), (&x, &y))| *o = f(c, x, y));
        } else {
            let [s, t, u] = strides;
            part.iter_mut().enumerate().for_each(|(n, o)| *o = f(c[n * s], a[n * t], b[n * u]));
        }
    });
    Ok(())
}

fn check(shape: &[usize], len: usize) -> Result<()> {
    if litegpu_graph::elements(shape) == len {
        Ok(())
    } else {
        Err(Error::internal(format!("{len} elements for shape {shape:?}")))
    }
}

/// A strided view: first element, and a step per dimension that may be negative.
#[derive(Debug, Clone)]
pub(crate) struct Steps {
    pub at: usize,
    pub steps: SmallVec<[isize; 8]>,
}

impl Steps {
    /// The whole of a dense tensor.
    pub fn dense(shape: &[usize]) -> Steps {
        Steps { at: 0, steps: strides(shape).iter().map(|&s| s as isize).collect() }
    }
}

/// `dst[...] = src[...]` for every index of `sizes`.
///
/// # Errors
/// `Internal` when a view leaves its slice.
pub(crate) fn copy<T: Copy>(sizes: &[usize], src: &[T], from: &Steps, dst: &mut [T], to: &Steps) -> Result<()> {
    if sizes.contains(&0) {
        return Ok(());
    }
    if from.steps.len() != sizes.len() || to.steps.len() != sizes.len() {
        return Err(Error::internal("a copy's views have different ranks"));
    }
    inside(sizes, from, src.len())?;
    inside(sizes, to, dst.len())?;
    // (size, step in src, step in dst), merged where both sides are contiguous.
    let mut dims: SmallVec<[(usize, isize, isize); 8]> = SmallVec::new();
    for (&n, (&s, &d)) in sizes.iter().zip(from.steps.iter().zip(&to.steps)) {
        if n == 1 {
            continue;
        }
        match dims.last_mut() {
            Some((m, ms, md)) if *ms == s * n as isize && *md == d * n as isize => (*m, *ms, *md) = (*m * n, s, d),
            _ => dims.push((n, s, d)),
        }
    }
    // The innermost two loops are written out; the rest is an odometer.
    let inner = dims.pop().unwrap_or((1, 1, 1));
    let middle = dims.pop().unwrap_or((1, 0, 0));
    let (mut i, mut j) = (from.at as isize, to.at as isize);
    let mut index: SmallVec<[usize; 8]> = SmallVec::from_elem(0, dims.len());
    loop {
        plane(src, i, dst, j, middle, inner);
        let mut k = dims.len();
        loop {
            if k == 0 {
                return Ok(());
            }
            k -= 1;
            let (n, s, d) = dims[k];
            index[k] += 1;
            i += s;
            j += d;
            if index[k] < n {
                break;
            }
            index[k] = 0;
            i -= s * n as isize;
            j -= d * n as isize;
        }
    }
}

/// Tile edge of a transposing copy: two tiles of 8-byte elements fit the first-level cache.
const TILE: usize = 16;

fn plane<T: Copy>(
    src: &[T],
    i: isize,
    dst: &mut [T],
    j: isize,
    (m, ms, md): (usize, isize, isize),
    (n, s, d): (usize, isize, isize),
) {
    if (s, d) == (1, 1) {
        for r in 0..m as isize {
            let (a, b) = ((i + r * ms) as usize, (j + r * md) as usize);
            dst[b..b + n].copy_from_slice(&src[a..a + n]);
        }
    } else if d == 1 && s == 0 {
        for r in 0..m as isize {
            let b = (j + r * md) as usize;
            dst[b..b + n].fill(src[(i + r * ms) as usize]);
        }
    } else if d == 1 && ms == 1 && m > 1 {
        // Source rows run along the middle loop: go through square tiles, so that both sides stay in the cache.
        for r0 in (0..m).step_by(TILE) {
            for c0 in (0..n).step_by(TILE) {
                let (r1, c1) = ((r0 + TILE).min(m), (c0 + TILE).min(n));
                for r in r0..r1 {
                    let b = j + r as isize * md;
                    let out = &mut dst[(b + c0 as isize) as usize..(b + c1 as isize) as usize];
                    let mut a = i + r as isize + c0 as isize * s;
                    for o in out {
                        *o = src[a as usize];
                        a += s;
                    }
                }
            }
        }
    } else {
        for r in 0..m as isize {
            let (mut a, mut b) = (i + r * ms, j + r * md);
            for _ in 0..n {
                dst[b as usize] = src[a as usize];
                a += s;
                b += d;
            }
        }
    }
}

/// Whether every index of `sizes` stays inside a slice of `len` elements.
fn inside(sizes: &[usize], view: &Steps, len: usize) -> Result<()> {
    let (mut low, mut high) = (view.at as i128, view.at as i128);
    for (&n, &s) in sizes.iter().zip(&view.steps) {
        let reach = (n as i128 - 1) * s as i128;
        if reach < 0 {
            low += reach;
        } else {
            high += reach;
        }
    }
    if low >= 0 && high < len as i128 {
        Ok(())
    } else {
        Err(Error::internal(format!("a view reaches from {low} to {high} in {len} elements")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasts() {
        let pool = Pool::new(1);
        let a: Vec<i32> = (0..6).collect();
        let b = [10, 20];
        let mut out = vec![0; 12];
        // [2,1,3] with [2,1] to [2,2,3].
        zip(&pool, &[2, 2, 3], (&[2, 1, 3], &a), (&[2, 1], &b), &mut out, &*line2(|x, y| x + y)).unwrap();
        assert_eq!(out, [10, 11, 12, 20, 21, 22, 13, 14, 15, 23, 24, 25]);
        let mut one = [0];
        zip(&pool, &[], (&[], &[3]), (&[], &[4]), &mut one, &*line2(|x: i32, y: i32| x * y)).unwrap();
        assert_eq!(one, [12]);
        let mut none: [i32; 0] = [];
        zip(&pool, &[0, 3], (&[0, 3], &[]), (&[3], &[1, 2, 3]), &mut none, &*line2(|x: i32, y: i32| x + y)).unwrap();
        assert!(
            zip(&pool, &[2], (&[3], &[1, 2, 3]), (&[1], &[1]), &mut [0, 0], &*line2(|x: i32, y: i32| x + y)).is_err()
        );
        let mut six = vec![0; 64];
        let c: Vec<i32> = (0..8).collect();
        zip(&pool, &[2; 6], (&[2, 1, 2, 1, 2, 1], &c), (&[1, 2, 1, 2, 1, 2], &c), &mut six, &*line2(|x, y| x * 8 + y))
            .unwrap();
        for (i, v) in six.iter().enumerate() {
            let bit = |k: usize| (i >> (5 - k) & 1) as i32;
            let x = bit(0) * 4 + bit(2) * 2 + bit(4);
            let y = bit(1) * 4 + bit(3) * 2 + bit(5);
            assert_eq!(*v, x * 8 + y);
        }
    }

    #[test]
    fn threads_agree() {
        let a: Vec<i32> = (0..200 * 500).collect();
        let b: Vec<i32> = (0..500).collect();
        let run = |pool: &Pool| {
            let mut out = vec![0; a.len()];
            zip(pool, &[200, 500], (&[200, 500], &a), (&[500], &b), &mut out, &*line2(|x, y| x - y)).unwrap();
            out
        };
        let one = run(&Pool::new(1));
        assert_eq!(one, run(&Pool::new(3)));
        assert_eq!((one[0], one[501]), (0, 500));
    }

    #[test]
    fn copies() {
        let src: Vec<u16> = (0..6 * 35).collect();
        let mut dst = vec![0; src.len()];
        // Transpose [6,35] to [35,6].
        let from = Steps { at: 0, steps: [1, 35].into_iter().collect() };
        copy(&[35, 6], &src, &from, &mut dst, &Steps::dense(&[35, 6])).unwrap();
        assert!((0..35).all(|c| (0..6).all(|r| dst[c * 6 + r] == src[r * 35 + c])));
        let back = Steps { at: 3, steps: [-1].into_iter().collect() };
        let mut rev = [0u16; 4];
        copy(&[4], &src, &back, &mut rev, &Steps::dense(&[4])).unwrap();
        assert_eq!(rev, [3, 2, 1, 0]);
        assert!(copy(&[5], &src, &back, &mut [0u16; 5], &Steps::dense(&[5])).is_err());
        copy(&[], &src[7..8], &Steps::dense(&[]), &mut rev[..1], &Steps::dense(&[])).unwrap();
        assert_eq!(rev[0], 7);
    }
}
