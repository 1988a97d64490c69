//! Depthwise convolutions.
//!
//! A row of output is computed 16 channels at a time, four neighbouring pixels at once, so that a line of the filter
//! is loaded once for four. Lines of integers are laid out as words with their padding, zero point subtracted, and all
//! pixels are alike; so are lines of floats where many windows hang over an edge. In other images of floats the taps that
//! are left at an edge are listed for that pixel.

use super::*;
use crate::gemm::{Scratch, keep};
use crate::simd::{Strip, Taps, Word, depthwise_f32, unrolled};
use crate::strided::convert;
use std::sync::OnceLock;

/// Pixels computed at once.
const PIXELS: usize = 4;

/// Multiplications from which work is split over threads.
const PARALLEL: usize = 60_000;

/// Rows to a batch, as finishes count them: no fewer than pixels finished at once.
const PIECE: usize = 16;

/// Of so many columns of outputs of floats one or more hang over an edge: lines are laid out with their padding.
const EDGES: usize = 24;

/// Bytes of lines, laid out with their padding, that are worked on together: they should stay in the second cache.
const STRIP_BYTES: usize = 192 * 1024;

/// Taps up to which sums of 16-bit activations and 8-bit weights fit 32 bits.
const NARROW_TAPS: usize = 500;

/// The filter, one line of 16 channels at a time: `[channels / 16][taps + 1][16]`; the line after the last tap is zero.
#[derive(Default)]
struct Lines<T> {
    lines: Vec<[T; NR]>,
    taps: usize,
}

impl<T: Pod> Lines<T> {
    fn pack(&mut self, taps: usize, channels: usize, value: impl Fn(usize) -> T) -> Result<()> {
        self.taps = taps;
        let lines = channels.div_ceil(NR).checked_mul(taps + 1);
        let lines = lines.ok_or_else(|| Error::invalid("the filter is too large"))?;
        refill(&mut self.lines, lines, [T::zeroed(); NR])?;
        for (i, line) in self.lines.iter_mut().enumerate() {
            let (block, tap) = (i / (taps + 1), i % (taps + 1));
            for (j, v) in line.iter_mut().enumerate() {
                let c = block * NR + j;
                if c < channels && tap < taps {
                    *v = value(tap * channels + c);
                }
            }
        }
        Ok(())
    }
    #[inline(always)]
    fn block(&self, b: usize) -> &[[T; NR]] {
        &self.lines[b * (self.taps + 1)..][..self.taps + 1]
    }
}

/// Sizes of a depthwise convolution.
#[derive(Debug, Clone, Copy)]
struct Depthwise {
    input: [usize; 2],
    output: [usize; 2],
    taps: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    before: [usize; 2],
    channels: usize,
    /// Output channels per input channel.
    multiplier: usize,
}

impl Depthwise {
    fn new(spatial: &Spatial, x: &[usize], f: &[usize], out: &[usize]) -> Result<Depthwise> {
        let (&[_, h, w, c], &[_, kh, kw, n], &[_, oh, ow, _]) = (x, f, out) else {
            return Err(Error::invalid(format!("input {x:?}, filter {f:?}, output {out:?}")));
        };
        if c == 0 || n % c != 0 {
            return Err(Error::invalid(format!("a filter of shape {f:?} on an input of shape {x:?}")));
        }
        let [[top, bottom], [left, right]] = spatial.pads;
        let wy = window(spatial.padding, h + top + bottom, kh, spatial.stride[1], spatial.dilation[1])?;
        let wx = window(spatial.padding, w + left + right, kw, spatial.stride[2], spatial.dilation[2])?;
        Ok(Depthwise {
            input: [h, w],
            output: [oh, ow],
            taps: [kh, kw],
            stride: [spatial.stride[1] as usize, spatial.stride[2] as usize],
            dilation: [spatial.dilation[1] as usize, spatial.dilation[2] as usize],
            before: [wy.before + top, wx.before + left],
            channels: c,
            multiplier: n / c,
        })
    }

    fn filters(&self) -> usize {
        self.channels * self.multiplier
    }

    /// How far `n` outputs see along an axis.
    fn reach(&self, axis: usize, n: usize) -> usize {
        let window = (self.taps[axis].max(1) - 1).saturating_mul(self.dilation[axis]);
        (n.max(1) - 1).saturating_mul(self.stride[axis]).saturating_add(window).saturating_add(1)
    }

    /// The taps that lie inside the input along an axis, for an output position: first, end.
    fn inside(&self, axis: usize, at: usize) -> (usize, usize) {
        let origin = at * self.stride[axis];
        let (before, dilation) = (self.before[axis], self.dilation[axis]);
        let first = before.saturating_sub(origin).div_ceil(dilation).min(self.taps[axis]);
        let room = (self.input[axis] + before).saturating_sub(origin);
        (first, room.div_ceil(dilation).min(self.taps[axis]).max(first))
    }

    /// Whether channels lie side by side, and windows reach not so far out that padding would be most of what is laid out.
    fn near(&self) -> bool {
        let near = |axis: usize, n: usize| self.reach(axis, n) <= self.input[axis].saturating_mul(4).saturating_add(64);
        self.multiplier == 1 && near(0, 1) && near(1, self.output[1])
    }

    /// Output columns whose windows lie inside the input from left to right.
    fn interior(&self) -> std::ops::Range<usize> {
        let whole = |x: usize| self.inside(1, x) == (0, self.taps[1]);
        let n = self.output[1];
        let first = self.before[1].div_ceil(self.stride[1]).min(n);
        let reach = (self.taps[1] - 1) * self.dilation[1] + 1;
        let end = (self.input[1] + self.before[1]).checked_sub(reach).map_or(0, |room| room / self.stride[1] + 1);
        let end = end.clamp(first, n);
        debug_assert!((first..end).all(whole));
        first..end
    }

    /// Sets the taps of rows `ky` and columns `kx`, counted from the first of them.
    fn taps(&self, taps: &mut Taps, ky: (usize, usize), kx: (usize, usize)) {
        let pitch = self.channels as isize;
        let line = self.input[1] as isize * pitch;
        taps.set(self.taps[0] * self.taps[1], |tap| {
            for y in ky.0..ky.1 {
                let dy = ((y - ky.0) * self.dilation[0]) as isize * line;
                for x in kx.0..kx.1 {
                    let dx = ((x - kx.0) * self.dilation[1]) as isize * pitch;
                    tap(dy + dx, y * self.taps[1] + x);
                }
            }
        });
    }

    /// The place of the first of the taps inside the image, of rows from `ky` and columns from `kx` on, of output (y, x).
    fn origin(&self, (y, ky): (usize, usize), (x, kx): (usize, usize)) -> isize {
        let at = |axis: usize, p: usize, k: usize| {
            (p * self.stride[axis] + k * self.dilation[axis]) as isize - self.before[axis] as isize
        };
        (at(0, y, ky) * self.input[1] as isize + at(1, x, kx)) * self.channels as isize
    }
}

/// The rows of a depthwise convolution, in any element type.
trait Rows<X, O>: Sync {
    /// Neighbouring pixels of a batch's image, from `at` on, whose windows hold the same taps. `#[inline(always)]`.
    fn pixels<S: Isa>(&self, d: &Depthwise, image: (&[X], usize), taps: &Taps, at: At, out: &mut [O]);
}

/// Where pixels begin, and their distance.
#[derive(Debug, Clone, Copy)]
struct At {
    first: isize,
    step: usize,
}

struct RowTask<'a, X, O, R> {
    d: &'a Depthwise,
    rows: &'a R,
    image: (&'a [X], usize),
    y: usize,
    out: &'a mut [O],
}

impl<X, O, R: Rows<X, O>> Task for RowTask<'_, X, O, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        let (d, y) = (self.d, self.y);
        let (n, interior) = (d.filters(), d.interior());
        let ky = d.inside(0, y);
        let step = d.stride[1] * d.channels;
        let mut taps = Taps::default();
        d.taps(&mut taps, ky, (0, d.taps[1]));
        // The interior, then both edges, whose windows hold other taps: in one loop, which is compiled once.
        let edges = (interior.end..d.output[1]).chain(0..interior.start).map(|x| x..x + 1);
        for x in std::iter::once(interior.clone()).chain(edges).filter(|x| !x.is_empty()) {
            let mut kx = (0, d.taps[1]);
            if !interior.contains(&x.start) {
                kx = d.inside(1, x.start);
                d.taps(&mut taps, ky, kx);
            }
            let at = At { first: d.origin((y, ky.0), (x.start, kx.0)), step };
            self.rows.pixels::<S>(d, self.image, &taps, at, &mut self.out[x.start * n..x.end * n]);
        }
    }
}

struct FloatRows<'a> {
    lines: &'a Lines<f32>,
    finish: &'a FinishF32,
}

impl Rows<f32, f32> for FloatRows<'_> {
    #[inline(always)]
    fn pixels<S: Isa>(&self, d: &Depthwise, image: (&[f32], usize), taps: &Taps, at: At, out: &mut [f32]) {
        let (n, mut first) = (d.filters(), at.first);
        let pixels = out.len() / n;
        let wide = n.next_multiple_of(NR);
        if S::LONG && d.multiplier == 1 && taps.readable(image.0.len(), at.first, at.step, pixels, wide) {
            for block in 0..n.div_ceil(NR) {
                let column = block * NR;
                let (lines, bias) = (self.lines.block(block), lanes(&self.finish.bias, column));
                let first = at.first as usize + column;
                let strip = Strip { image: image.0, first, step: at.step, pixels, line: 0, rows: 1, taps, lines };
                S::strip_f32(&strip, bias, self.finish.range, &mut out[column..], n, NR.min(n - column));
            }
            return;
        }
        let mut done = 0;
        if d.multiplier == 1 {
            let Lines { lines, taps: all } = self.lines;
            let (bias, range) = (&self.finish.bias, self.finish.range);
            done = S::depthwise_pixels(image.0, first, at.step, taps, lines, all + 1, bias, range, out, n);
        }
        if done == n {
            return;
        }
        let mut groups = out.chunks_exact_mut(PIXELS * n);
        for out in &mut groups {
            self.group::<S, PIXELS>(d, image, taps, At { first, ..at }, done, out);
            first += (PIXELS * at.step) as isize;
        }
        for out in groups.into_remainder().chunks_exact_mut(n) {
            self.group::<S, 1>(d, image, taps, At { first, ..at }, done, out);
            first += at.step as isize;
        }
    }
}

impl FloatRows<'_> {
    /// Whether lines are to be laid out: each once, and as many as there are stay in the second cache.
    fn in_strips(&self, d: &Depthwise) -> bool {
        let edges = d.output[1] - d.interior().len();
        let all = d.reach(0, d.output[0]).saturating_mul(d.reach(1, d.output[1])).saturating_mul(4 * d.channels);
        edges * EDGES > d.output[1] && all <= STRIP_BYTES && d.near()
    }

    /// P pixels, from channel `column` on.
    #[inline(always)]
    fn group<S: Isa, const P: usize>(
        &self,
        d: &Depthwise,
        (image, _): (&[f32], usize),
        taps: &Taps,
        At { first, step }: At,
        mut column: usize,
        out: &mut [f32],
    ) {
        let (n, range) = (d.filters(), self.finish.range);
        while column < n {
            let (lines, lane) = (self.lines.block(column / NR), column % NR);
            let bias = lanes(&self.finish.bias, column - lane);
            let at = first + column as isize;
            if S::HALVES == 2 && d.multiplier == 1 && n - column >= NR && taps.readable(image.len(), at, step, P, NR) {
                let acc = depthwise_f32::<S, P, 2>(image, at, step, taps, lines, bias, lane);
                unrolled!(p < P, {
                    if let [a, b, ..] = out[p * n + column..].as_chunks_mut::<8>().0 {
                        S::store(S::clamp8(acc[p][0], range), a);
                        S::store(S::clamp8(acc[p][1], range), b);
                    }
                }, 0 1 2 3);
                column += NR;
            } else if d.multiplier == 1 && n - column >= 8 && taps.readable(image.len(), at, step, P, 8) {
                let acc = depthwise_f32::<S, P, 1>(image, at, step, taps, lines, bias, lane);
                unrolled!(p < P, {
                    if let Some(to) = out[p * n + column..].first_chunk_mut::<8>() {
                        S::store(S::clamp8(acc[p][0], range), to);
                    }
                }, 0 1 2 3);
                column += 8;
            } else {
                let from = first + (column / d.multiplier) as isize;
                for p in 0..P {
                    let mut sum = bias[lane];
                    for (offset, line) in taps.iter() {
                        let x = image[(from + offset) as usize + p * step];
                        sum = S::fma(x, lines[line][lane], sum);
                    }
                    out[p * n + column] = clamp(sum, range);
                }
                column += 1;
            }
        }
    }
}

/// Integers: `F` finishes sums of type `U`, whose row is the batch.
struct IntRows<'a, F, U> {
    lines: &'a Lines<i16>,
    /// The zero point of each batch; the last one serves the rest.
    zeros: &'a [i16],
    finish: &'a F,
    sum: PhantomData<U>,
}

impl<X: Word, O, U: Sum, F: Finish<U, O>> Rows<X, O> for IntRows<'_, F, U> {
    #[inline(always)]
    fn pixels<S: Isa>(
        &self,
        d: &Depthwise,
        (image, batch): (&[X], usize),
        taps: &Taps,
        At { first, step }: At,
        out: &mut [O],
    ) {
        let n = d.filters();
        let zero = self.zero(batch) as i32;
        for (p, out) in out.chunks_exact_mut(n).enumerate() {
            for (block, out) in out.chunks_mut(NR).enumerate() {
                let (column, lines) = (block * NR, self.lines.block(block));
                let mut sums = [U::ZERO; NR];
                for (j, sum) in sums.iter_mut().enumerate().take(out.len()) {
                    let from = first + (p * step) as isize + ((column + j) / d.multiplier) as isize;
                    for (offset, line) in taps.iter() {
                        let x = image[(from + offset) as usize].word() as i32;
                        *sum = sum.add((x - zero).wrapping_mul(lines[line][j] as i32));
                    }
                }
                self.finish.finish::<S>(batch * PIECE, column, &sums, out);
            }
        }
    }
}

impl<F, U: Sum> IntRows<'_, F, U> {
    fn zero(&self, batch: usize) -> i16 {
        self.zeros.get(batch).or(self.zeros.last()).copied().unwrap_or(0)
    }
    /// Whether lines are to be laid out: sums fit 32 bits.
    fn in_strips(&self, d: &Depthwise) -> bool {
        (!U::EXACT || self.lines.taps <= NARROW_TAPS) && d.near()
    }
}

/// Finishes strips of elements of type `T`, whose row is the batch.
trait Strips<T, O>: Sync {
    fn lines(&self, block: usize) -> &[[T; NR]];
    /// `#[inline(always)]`.
    fn strip<S: Isa>(&self, strip: &Strip<'_, T>, row: usize, column: usize, out: &mut [O], stride: usize, n: usize);
}

impl<O, U: Sum, F: Finish<U, O>> Strips<i16, O> for IntRows<'_, F, U> {
    fn lines(&self, block: usize) -> &[[i16; NR]] {
        self.lines.block(block)
    }
    #[inline(always)]
    fn strip<S: Isa>(&self, strip: &Strip<'_, i16>, row: usize, column: usize, out: &mut [O], stride: usize, n: usize) {
        self.finish.strip::<S>(strip, row, column, out, stride, n);
    }
}

impl Strips<f32, f32> for FloatRows<'_> {
    fn lines(&self, block: usize) -> &[[f32; NR]] {
        self.lines.block(block)
    }
    #[inline(always)]
    fn strip<S: Isa>(
        &self,
        strip: &Strip<'_, f32>,
        _row: usize,
        column: usize,
        out: &mut [f32],
        stride: usize,
        n: usize,
    ) {
        S::strip_f32(strip, lanes(&self.finish.bias, column), self.finish.range, out, stride, n);
    }
}

/// Rows from row `first` of all batches on, a block of them at a time, laid out as elements of type `T`.
struct StripTask<'a, X, T, O, R, C> {
    d: &'a Depthwise,
    rows: &'a R,
    x: &'a [X],
    /// Turns elements of a batch into what is multiplied: of integers, words less the zero point.
    lay: &'a C,
    of: PhantomData<T>,
    first: usize,
    out: &'a mut [O],
    then: Then<'a>,
}

impl<X, T, O, R, C> Task for StripTask<'_, X, T, O, R, C>
where
    T: Pod,
    O: Pod,
    R: Strips<T, O>,
    C: Fn(&[X], &mut [T], usize),
{
    type Output = Result<()>;
    #[inline(always)]
    fn run<S: Isa>(self) -> Result<()> {
        let (d, c) = (self.d, self.d.channels);
        let ([height, width], [oh, ow]) = (d.input, d.output);
        let image = height * width * c;
        // What a line of outputs sees of a line.
        let seen = d.reach(1, ow);
        let large = || Error::invalid("a padded line is too large");
        let pitch = seen.checked_mul(c).ok_or_else(large)?;
        let low = d.before[1].min(seen);
        let high = (width + d.before[1]).clamp(low, seen);
        let count = self.out.len() / (ow * c).max(1);
        let fit = STRIP_BYTES / pitch.saturating_mul(size_of::<T>()).max(1);
        let step = (fit.saturating_sub(d.reach(0, 1)) / d.stride[0].max(1) + 1).min(count).min(oh).max(1);
        // The last channels of the last pixel are read 16 at a time; what lies there does not matter.
        let room = d.reach(0, step).checked_mul(pitch).and_then(|n| n.checked_add(NR));
        let mut scratch = Scratch::<T>::new(room.ok_or_else(large)?)?;
        let buffer = scratch.get();
        let mut taps = Taps::default();
        taps.set(d.taps[0] * d.taps[1], |tap| {
            for y in 0..d.taps[0] {
                let line = y * d.dilation[0] * pitch;
                for x in 0..d.taps[1] {
                    tap((line + x * d.dilation[1] * c) as isize, y * d.taps[1] + x);
                }
            }
        });
        let mut done = 0;
        while done < count {
            let (batch, y) = ((self.first + done) / oh, (self.first + done) % oh);
            let n = step.min(count - done).min(oh - y);
            let x = &self.x[batch * image..][..image];
            let top = (y * d.stride[0]) as i64 - d.before[0] as i64;
            for (i, line) in buffer.chunks_exact_mut(pitch).enumerate().take(d.reach(0, n)) {
                let at = top + i as i64;
                if at < 0 || at >= height as i64 {
                    line.fill(T::zeroed());
                    continue;
                }
                line[..low * c].fill(T::zeroed());
                let from = (at as usize * width + low - d.before[1].min(low)) * c;
                let pixels = &x[from..][..(high - low) * c];
                (self.lay)(pixels, &mut line[low * c..high * c], batch);
                line[high * c..].fill(T::zeroed());
            }
            let out = &mut self.out[done * ow * c..][..n * ow * c];
            for block in 0..c.div_ceil(NR) {
                let column = block * NR;
                let strip = Strip {
                    image: buffer,
                    first: column,
                    step: d.stride[1] * c,
                    pixels: ow,
                    line: d.stride[0] * pitch,
                    rows: n,
                    taps: &taps,
                    lines: self.rows.lines(block),
                };
                let width = NR.min(c - column);
                self.rows.strip::<S>(&strip, batch * PIECE, column, &mut out[column..], c, width);
            }
            self.then.apply((self.first + done) * ow * c, out);
            done += n;
        }
        Ok(())
    }
}

/// Runs all rows of integers, in parallel where it pays.
fn run_ints<X: Word, O: Pod + Send, U: Sum, F: Finish<U, O>>(
    pool: &Pool,
    d: &Depthwise,
    x: &[X],
    out: &mut [O],
    then: Then<'_>,
    rows: &IntRows<'_, F, U>,
) -> Result<()> {
    if !rows.in_strips(d) {
        run(pool, d, x, out, then, rows);
        return Ok(());
    }
    run_strips(pool, d, x, out, then, rows, &|from, to, batch| {
        let zero = rows.zero(batch);
        convert(from, to, &|x: X| x.word().wrapping_sub(zero));
    })
}

/// The same in strips, of what `lay` makes of the elements.
fn run_strips<X: Sync, T: Pod + Sync, O: Pod + Send>(
    pool: &Pool,
    d: &Depthwise,
    x: &[X],
    out: &mut [O],
    then: Then<'_>,
    rows: &impl Strips<T, O>,
    lay: &(impl Fn(&[X], &mut [T], usize) + Sync),
) -> Result<()> {
    let width = d.output[1] * d.channels;
    if width == 0 || d.input[0] * d.input[1] * d.channels == 0 || out.is_empty() {
        return Ok(());
    }
    let (per, parallel) = pieces(pool, d, out.len());
    let failed = OnceLock::new();
    pool.chunks(out, per * width, parallel, |i, out| {
        keep(&failed, dispatch(StripTask { d, rows, x, lay, of: PhantomData, first: i * per, out, then }));
    });
    failed.into_inner().map_or(Ok(()), Err)
}

/// Rows to a piece, and whether to use threads.
fn pieces(pool: &Pool, d: &Depthwise, outputs: usize) -> (usize, bool) {
    let count = outputs / (d.output[1] * d.filters()).max(1);
    let work = outputs.saturating_mul(d.taps[0] * d.taps[1]);
    let parallel = pool.threads() > 1 && work > PARALLEL;
    // Pieces share lines of their input: little work is split once for each thread.
    let share = if work < 16 * PARALLEL { 1 } else { 3 };
    (if parallel { count.div_ceil(pool.threads() * share).max(1) } else { count }, parallel)
}

/// Runs all rows, in parallel where it pays.
fn run<X: Sync, O: Pod + Send>(
    pool: &Pool,
    d: &Depthwise,
    x: &[X],
    out: &mut [O],
    then: Then<'_>,
    rows: &impl Rows<X, O>,
) {
    let width = d.output[1] * d.filters();
    let image = d.input[0] * d.input[1] * d.channels;
    if width == 0 || image == 0 || out.is_empty() {
        return;
    }
    let (per, parallel) = pieces(pool, d, out.len());
    pool.chunks(out, per * width, parallel, |i, piece| {
        for (r, out) in piece.chunks_exact_mut(width).enumerate() {
            let r = i * per + r;
            let (batch, y) = (r / d.output[0], r % d.output[0]);
            let image = (&x[batch * image..][..image], batch);
            dispatch(RowTask { d, rows, image, y, out: &mut *out });
            then.apply(r * width, out);
        }
    });
}

struct State<T, F> {
    operands: Operands,
    ready: bool,
    lines: Lines<T>,
    finish: F,
}

impl<T: Pod, F: Default> State<T, F> {
    fn new(site: &Site<'_>) -> Result<State<T, F>> {
        let lines = Lines { lines: Vec::new(), taps: 0 };
        Ok(State { operands: Operands::new(site, [0, 1, 2])?, ready: false, lines, finish: F::default() })
    }
    /// Brings everything up to date; `set` packs the filter and makes the finish.
    fn update(
        &mut self,
        call: &Call<'_>,
        spatial: &Spatial,
        x: &[usize],
        out: &[usize],
        set: impl FnOnce(&Weights<'_>, Option<&Weights<'_>>, &Depthwise, &mut Lines<T>, &mut F) -> Result<()>,
    ) -> Result<Depthwise> {
        let d = Depthwise::new(spatial, x, self.operands.weights.shape(call)?, out)?;
        if !self.ready {
            let (weights, bias) = self.operands.get(call)?;
            set(&weights, bias.as_ref(), &d, &mut self.lines, &mut self.finish)?;
            self.ready = self.operands.constant();
        }
        Ok(d)
    }
}

fn pack_ints(w: &Weights<'_>, d: &Depthwise, lines: &mut Lines<i16>) -> Result<()> {
    let bytes = w.bytes8()?;
    let unsigned = w.dtype == DType::U8;
    let zero = if unsigned { w.zero_point()? as i16 } else { 0 };
    let value = |b: i8| if unsigned { b as u8 as i16 } else { b as i16 } - zero;
    lines.pack(d.taps[0] * d.taps[1], d.filters(), |i| bytes.get(i).map_or(0, |b| value(*b)))?;
    Ok(())
}

pub(super) fn prepare(site: &Site<'_>, spatial: Spatial) -> Result<Kernel> {
    match kind(site, [0, 1, 2], spatial.bias_type)? {
        Kind::Float => float(site, spatial),
        Kind::Hybrid => hybrid(site, spatial),
        // 16-bit activations have 64-bit sums here, whatever the bias.
        Kind::Wide => wide(site, spatial),
        Kind::Int => match site.input(0)?.dtype {
            DType::I8 => int::<i8>(site, spatial),
            DType::U8 => int::<u8>(site, spatial),
            _ => wide(site, spatial),
        },
    }
}

fn float(site: &Site<'_>, spatial: Spatial) -> Result<Kernel> {
    let range = float_range(spatial.activation)?;
    let mut state: State<f32, FinishF32> = State::new(site)?;
    Ok(Box::new(move |call| {
        let (x, spatial) = (call.input(0)?, Spatial { pads: call.pads, ..spatial });
        let shape = call.output(0)?.shape.clone();
        let d = state.update(call, &spatial, x.shape, &shape, |w, bias, d, lines, finish| {
            let values = w.floats()?;
            lines.pack(d.taps[0] * d.taps[1], d.filters(), |i| values.get(i).copied().unwrap_or(0.0))?;
            finish.range = range;
            finish.set(d.filters(), bias_floats(bias, d.filters())?.as_deref())
        })?;
        let rows = FloatRows { lines: &state.lines, finish: &state.finish };
        let (pool, then) = (call.pool, call.take_then(true));
        let (x, out) = (x.as_slice::<f32>()?, call.output(0)?.as_mut_slice::<f32>()?);
        // The browser's kernel takes pixels with all their channels, where they lie.
        if !cfg!(target_arch = "wasm32") && rows.in_strips(&d) {
            return run_strips(pool, &d, x, out, then, &rows, &|from: &[f32], to: &mut [f32], _| {
                to.copy_from_slice(from)
            });
        }
        run(pool, &d, x, out, then, &rows);
        Ok(())
    }))
}

fn int<X: Quantized + Word>(site: &Site<'_>, spatial: Spatial) -> Result<Kernel> {
    let scales = scales(site, 0)?;
    let (low, high) = quantized_range(spatial.activation, scales.dtype, scales.output.0, scales.output.1)?;
    let mut state: State<i16, Rounded> = State::new(site)?;
    Ok(Box::new(move |call| {
        let (x, spatial) = (call.input(0)?, Spatial { pads: call.pads, ..spatial });
        let shape = call.output(0)?.shape.clone();
        let d = state.update(call, &spatial, x.shape, &shape, |w, bias, d, lines, finish| {
            pack_ints(w, d, lines)?;
            (finish.zero, finish.low, finish.high) = (scales.output.1, low, high);
            let multipliers = scales.multipliers(w, d.filters())?;
            finish.set(bias_ints(bias, d.filters())?.as_deref(), &multipliers)
        })?;
        let zeros = [scales.input.1 as i16];
        let rows = IntRows::<_, i32> { lines: &state.lines, zeros: &zeros, finish: &state.finish, sum: PhantomData };
        let (pool, then) = (call.pool, call.take_then(true));
        run_ints(pool, &d, x.as_slice::<X>()?, call.output(0)?.as_mut_slice::<X>()?, then, &rows)
    }))
}

fn wide(site: &Site<'_>, spatial: Spatial) -> Result<Kernel> {
    let scales = scales(site, 0)?;
    let (low, high) = quantized_range(spatial.activation, scales.dtype, scales.output.0, scales.output.1)?;
    let mut state: State<i16, Wide> = State::new(site)?;
    Ok(Box::new(move |call| {
        let (x, spatial) = (call.input(0)?, Spatial { pads: call.pads, ..spatial });
        let shape = call.output(0)?.shape.clone();
        let d = state.update(call, &spatial, x.shape, &shape, |w, bias, d, lines, finish| {
            pack_ints(w, d, lines)?;
            (finish.low, finish.high) = (low, high);
            let multipliers = scales.multipliers(w, d.filters())?;
            finish.set(bias_ints(bias, d.filters())?.as_deref(), &multipliers)
        })?;
        let rows = IntRows::<_, i64> { lines: &state.lines, zeros: &[], finish: &state.finish, sum: PhantomData };
        let (pool, then) = (call.pool, call.take_then(true));
        run_ints(pool, &d, x.as_slice::<i16>()?, call.output(0)?.as_mut_slice::<i16>()?, then, &rows)
    }))
}

fn hybrid(site: &Site<'_>, spatial: Spatial) -> Result<Kernel> {
    let range = float_range(spatial.activation)?;
    let mut state: State<i16, Hybrid> = State::new(site)?;
    let (mut q, mut steps, mut zeros, mut pieces) = (Vec::new(), Vec::new(), Vec::new(), Pieces::default());
    Ok(Box::new(move |call| {
        let (x, spatial) = (call.input(0)?, Spatial { pads: call.pads, ..spatial });
        let shape = call.output(0)?.shape.clone();
        let d = state.update(call, &spatial, x.shape, &shape, |w, bias, d, lines, finish| {
            let w = w.signed();
            pack_ints(&w, d, lines)?;
            finish.range = range;
            finish.set(bias_floats(bias, d.filters())?.as_deref(), &w.scales(d.filters())?)
        })?;
        let batch = x.shape.first().copied().unwrap_or(0);
        let x = x.as_slice::<f32>()?;
        batch_steps(x, batch, false, &mut steps, &mut pieces)?;
        zeros.clear();
        zeros.extend(steps.iter().map(|s| s.zero as i16));
        let finish = HybridRows { constants: &state.finish, pieces: &pieces, first: 0, rows: PIECE };
        let rows = IntRows::<_, i32> { lines: &state.lines, zeros: &zeros, finish: &finish, sum: PhantomData };
        let (pool, then) = (call.pool, call.take_then(true));
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        if rows.in_strips(&d) {
            // Lines are quantized as they are laid out.
            let steps = &steps;
            return run_strips(
                pool,
                &d,
                x,
                out,
                then,
                &rows,
                &|from: &[f32], to: &mut [i16], batch: usize| match steps.get(batch) {
                    Some(s) => s.words(from, to),
                    None => to.fill(0),
                },
            );
        }
        refill(&mut q, x.len(), 0)?;
        let per = (x.len() / batch.max(1)).max(1);
        for ((q, x), s) in q.chunks_exact_mut(per).zip(x.chunks_exact(per)).zip(&steps) {
            s.bytes(x, q);
        }
        run(pool, &d, &q, out, then, &rows);
        Ok(())
    }))
}
