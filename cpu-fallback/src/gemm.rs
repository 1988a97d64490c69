//! Matrix products with a packed right operand: the core of convolutions, fully connected layers and batch matmuls.
//!
//! The right operand (weights, nearly always constant) is packed once into panels of 16 columns. The left operand is
//! read in place where its rows lie as they are, else a block of rows at a time is gathered into scratch (for a
//! convolution that is im2col of a few output pixels). All integer kinds (int8, uint8, int4, 16x8, dynamic range) are
//! products of 16-bit numbers with zero points subtracted and 32-bit sums: sums modulo 2^32 are what the reference has
//! for 8-bit activations; for 16-bit activations [`PackedInt::block`] says how far 32 bits reach. Where the machine
//! multiplies bytes, products of 8 bits by 8 are of unsigned by signed bytes as they are (`simd::Quads`).

use crate::chain::Then;
use crate::pool::Pool;
use crate::requant::lanes;
use crate::simd::{
    Dot, Isa, LineF32, LineI8, LineI16, LineQuad, MAX_MR, MAX_QUADS, NR, Panel, Quads, Strip, Task, dispatch,
};
use bytemuck::Pod;
use litegpu_graph::{Error, Result};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Multiplications below which splitting work over threads costs more than it gains: a microsecond and a half of them,
/// twice what it takes to hand a piece to a thread that has just worked and to hear that it is done.
const PARALLEL: usize = 50_000;

/// Columns up to which a product is thin, and the depth from which that matters.
const THIN: usize = 3;
const THIN_DEPTH: usize = 32;

/// Bytes of left operand that a block of rows may take: it is read once per panel and should stay in the second cache.
const BLOCK_BYTES: usize = 96 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<u64>>> = const { RefCell::new(Vec::new()) };
    static COMPUTED: RefCell<Vec<PackedF32>> = const { RefCell::new(Vec::new()) };
}

/// Scratch memory on loan from its thread. A guard rather than a closure: what uses it must stay inlined in the
/// function that is compiled for the instruction set.
pub(crate) struct Scratch<T> {
    words: Vec<u64>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Scratch<T> {
    /// `len` elements, contents unspecified.
    pub(crate) fn new(len: usize) -> Result<Scratch<T>> {
        let count = len.checked_mul(size_of::<T>()).map(|b| b.div_ceil(8));
        let count = count.ok_or_else(|| Error::invalid(format!("{len} elements of scratch")))?;
        let mut words = SCRATCH.with(|s| s.borrow_mut().pop()).unwrap_or_default();
        if words.len() < count {
            let more = words.try_reserve(count - words.len());
            more.map_err(|_| Error::invalid(format!("cannot allocate {len} elements")))?;
            words.resize(count, 0);
        }
        Ok(Scratch { words, len, of: PhantomData })
    }
    /// The elements.
    #[inline(always)]
    pub(crate) fn get(&mut self) -> &mut [T] {
        bytemuck::try_cast_slice_mut(&mut self.words).ok().and_then(|s| s.get_mut(..self.len)).unwrap_or_default()
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        let words = std::mem::take(&mut self.words);
        // The thread may be ending: then there is nobody to keep it for.
        let _ = SCRATCH.try_with(|s| s.borrow_mut().push(words));
    }
}

/// Makes `v` hold `len` copies of `value`.
pub(crate) fn refill<T: Clone>(v: &mut Vec<T>, len: usize, value: T) -> Result<()> {
    v.clear();
    v.try_reserve(len).map_err(|_| Error::invalid(format!("cannot allocate {len} elements")))?;
    v.resize(len, value);
    Ok(())
}

/// A float right operand.
#[derive(Debug, Default)]
pub(crate) struct PackedF32 {
    lines: Vec<LineF32>,
    /// Column after column, where there are too few of them to fill a panel's vectors.
    thin: Vec<f32>,
    pub depth: usize,
    pub columns: usize,
}

impl PackedF32 {
    /// Room for an operand that every run computes and packs anew, on loan from the thread: nodes that keep their own
    /// hold memory that one at a time needs.
    pub(crate) fn lent() -> PackedF32 {
        COMPUTED.with(|c| c.borrow_mut().pop()).unwrap_or_default()
    }

    /// Returns the loan. Several go back in the reverse of the order that they were taken in, so that each serves the
    /// same operands in the next run and has grown to fit them.
    pub(crate) fn give_back(self) {
        COMPUTED.with(|c| c.borrow_mut().push(self));
    }

    /// Packs; `column` writes one column's values.
    pub(crate) fn pack(&mut self, depth: usize, columns: usize, column: impl Fn(usize, &mut [f32])) -> Result<()> {
        let panels = columns.div_ceil(NR);
        let lines = panels.checked_mul(depth).ok_or_else(|| Error::invalid("weights are too large"))?;
        (self.depth, self.columns) = (depth, columns);
        self.thin.clear();
        refill(&mut self.lines, lines, LineF32([0.0; NR]))?;
        if depth == 0 {
            return Ok(());
        }
        // A panel's columns first, then line by line: both sides are walked in order.
        let mut scratch = Scratch::<f32>::new(depth * NR)?;
        let rows = scratch.get();
        for (p, panel) in self.lines.chunks_exact_mut(depth).enumerate() {
            let n = NR.min(columns - p * NR);
            for (j, row) in rows.chunks_exact_mut(depth).enumerate().take(n) {
                column(p * NR + j, row);
            }
            for (k, line) in panel.iter_mut().enumerate() {
                for (to, row) in line.0.iter_mut().zip(rows.chunks_exact(depth)).take(n) {
                    *to = row[k];
                }
            }
        }
        Ok(())
    }

    /// The same for a product that need not have panels: a few long columns are kept as they are.
    pub(crate) fn pack_thin(&mut self, depth: usize, columns: usize, column: impl Fn(usize, &mut [f32])) -> Result<()> {
        if columns > THIN || depth < THIN_DEPTH {
            return self.pack(depth, columns, column);
        }
        (self.depth, self.columns) = (depth, columns);
        self.lines.clear();
        refill(&mut self.thin, columns * depth, 0.0)?;
        self.thin.chunks_exact_mut(depth).enumerate().for_each(|(n, to)| column(n, to));
        Ok(())
    }

    /// Packs a matrix given row by row (depth by columns).
    pub(crate) fn pack_rows(&mut self, depth: usize, columns: usize, data: &[f32]) -> Result<()> {
        let panels = columns.div_ceil(NR);
        let lines = panels.checked_mul(depth).ok_or_else(|| Error::invalid("weights are too large"))?;
        refill(&mut self.lines, lines, LineF32([0.0; NR]))?;
        self.thin.clear();
        (self.depth, self.columns) = (depth, columns);
        if depth == 0 || columns == 0 {
            return Ok(());
        }
        for (p, panel) in self.lines.chunks_exact_mut(depth).enumerate() {
            let n = NR.min(columns - p * NR);
            for (line, row) in panel.iter_mut().zip(data.chunks_exact(columns)) {
                // Of a length that is known: no call.
                match row[p * NR..].first_chunk::<NR>() {
                    Some(row) => line.0 = *row,
                    None => line.0[..n].copy_from_slice(&row[p * NR..][..n]),
                }
            }
        }
        Ok(())
    }

    pub(crate) fn panel(&self, p: usize) -> &[LineF32] {
        &self.lines[p * self.depth..][..self.depth]
    }
}

/// An integer right operand, zero point subtracted.
#[derive(Debug, Default)]
pub(crate) struct PackedInt {
    narrow: Vec<LineI8>,
    wide: Vec<LineI16>,
    is_wide: bool,
    /// Fours of depth steps, for left operands of bytes; of these, what [`Quads`] says.
    is_quads: bool,
    quads: Vec<LineQuad>,
    start: Vec<i32>,
    sums: Vec<i32>,
    run: usize,
    zero: i32,
    /// Pairs of depth steps, or fours.
    pairs: usize,
    pub depth: usize,
    pub columns: usize,
    /// Pairs that can be summed in 32 bits for any 16-bit left operand.
    pub block: usize,
}

/// What a product of bytes has to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes {
    /// The zero points of the left operand as unsigned bytes (0 where each piece of it has its own) and of the right one
    /// as signed ones.
    pub zeros: [i32; 2],
    /// Elements of a run of the depth that count, and how many there are with the zeros behind them.
    pub run: [usize; 2],
}

impl PackedInt {
    /// Packs for left operands of bytes; `column` writes one column's values, which fit signed bytes, zero points and
    /// all, and are 0 behind each run.
    pub(crate) fn pack_quads(
        &mut self,
        depth: usize,
        columns: usize,
        bytes: Bytes,
        column: impl Fn(usize, &mut [i16]),
    ) -> Result<()> {
        let panels = columns.div_ceil(NR);
        self.pairs = depth.div_ceil(4);
        let lines = panels.checked_mul(self.pairs).ok_or_else(|| Error::invalid("weights are too large"))?;
        (self.depth, self.columns, self.block) = (depth, columns, self.pairs.max(1));
        (self.is_quads, self.zero) = (true, bytes.zeros[1]);
        self.run = bytes.run[0].min(depth);
        refill(&mut self.quads, lines, LineQuad([[0; 4]; NR]))?;
        refill(&mut self.start, panels * NR, 0)?;
        refill(&mut self.sums, panels * NR, 0)?;
        let count = depth / bytes.run[1].max(1) * bytes.run[0];
        let fours = self.pairs;
        let mut scratch = Scratch::<i16>::new(4 * fours)?;
        let row = scratch.get();
        row.fill(0);
        for n in 0..columns {
            column(n, &mut row[..depth]);
            let (p, j) = (n / NR, n % NR);
            for (line, x) in self.quads[p * fours..].iter_mut().zip(row.as_chunks::<4>().0) {
                line.0[j] = x.map(|x| x as i8);
            }
            // Of (a - x)(b - y), summed: what does not hang on a.
            let [x, y] = bytes.zeros;
            let sum = row.iter().fold(0i32, |s, w| s.wrapping_add(*w as i32));
            self.sums[n] = sum;
            self.start[n] = (count as i32).wrapping_mul(x).wrapping_mul(y).wrapping_sub(x.wrapping_mul(sum));
        }
        Ok(())
    }

    /// Whether left operands are bytes.
    pub(crate) fn is_quads(&self) -> bool {
        self.is_quads
    }

    /// The lines of a panel of fours.
    pub(crate) fn fours(&self, p: usize) -> &[LineQuad] {
        &self.quads[p * self.pairs..][..self.pairs]
    }

    fn quads(&self, p: usize) -> Quads<'_> {
        Quads {
            lines: self.fours(p),
            start: lanes(&self.start, p * NR),
            sums: lanes(&self.sums, p * NR),
            run: self.run,
            zero: self.zero,
        }
    }

    /// Packs; `column` writes one column's values. `wide` when values may not fit 8 bits.
    pub(crate) fn pack(
        &mut self,
        depth: usize,
        columns: usize,
        wide: bool,
        column: impl Fn(usize, &mut [i16]),
    ) -> Result<()> {
        let panels = columns.div_ceil(NR);
        self.pairs = depth.div_ceil(2);
        let lines = panels.checked_mul(self.pairs).ok_or_else(|| Error::invalid("weights are too large"))?;
        (self.depth, self.columns, self.is_wide) = (depth, columns, wide);
        refill(&mut self.narrow, if wide { 0 } else { lines }, LineI8([[0; 2]; NR]))?;
        refill(&mut self.wide, if wide { lines } else { 0 }, LineI16([[0; 2]; NR]))?;
        let mut largest = 0i64;
        let pairs = self.pairs;
        let mut scratch = Scratch::<i16>::new(2 * pairs)?;
        let row = scratch.get();
        if let Some(last) = row.last_mut() {
            *last = 0;
        }
        for n in 0..columns {
            column(n, &mut row[..depth]);
            let (p, j) = (n / NR, n % NR);
            largest = largest.max(row.iter().map(|w| w.unsigned_abs() as i64).sum());
            let values = row.as_chunks::<2>().0.iter();
            if wide {
                for (line, x) in self.wide[p * pairs..].iter_mut().zip(values) {
                    line.0[j] = *x;
                }
            } else {
                for (line, x) in self.narrow[p * pairs..].iter_mut().zip(values) {
                    line.0[j] = [x[0] as i8, x[1] as i8];
                }
            }
        }
        // One pair of a 16-bit and an 8-bit number reaches 2^23, of two 16-bit numbers 2^31.
        let fits = largest <= 65_535;
        self.block = if fits {
            pairs.max(1)
        } else if wide {
            1
        } else {
            128
        };
        Ok(())
    }

    pub(crate) fn panel(&self, p: usize) -> Panel<'_> {
        let range = p * self.pairs..(p + 1) * self.pairs;
        if self.is_wide { Panel::Wide(&self.wide[range]) } else { Panel::Narrow(&self.narrow[range]) }
    }
}

/// Where a product's left operand comes from.
pub(crate) trait Rows<T>: Sync {
    /// The rows as they lie in memory and their distance, when they need no gathering.
    fn direct(&self) -> Option<(&[T], usize)> {
        None
    }
    /// Writes `count` rows from row `first` on, `stride` elements apart. `#[inline(always)]`.
    fn fill<S: Isa>(&self, first: usize, count: usize, into: &mut [T], stride: usize);
}

/// Rows that lie in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Direct<'a, T>(pub &'a [T], pub usize);

impl<T: Copy + Sync> Rows<T> for Direct<'_, T> {
    fn direct(&self) -> Option<(&[T], usize)> {
        Some((self.0, self.1))
    }
    #[inline(always)]
    fn fill<S: Isa>(&self, first: usize, count: usize, into: &mut [T], stride: usize) {
        for r in 0..count {
            let row = &self.0[(first + r) * self.1..][..self.1];
            into[r * stride..][..self.1].copy_from_slice(row);
        }
    }
}

/// Rows in memory that a function converts; it is given the row's number too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Converted<'a, X, F>(pub &'a [X], pub usize, pub F);

impl<X: Sync, T, F: Fn(&[X], &mut [T], usize) + Sync> Rows<T> for Converted<'_, X, F> {
    #[inline(always)]
    fn fill<S: Isa>(&self, first: usize, count: usize, into: &mut [T], stride: usize) {
        for r in 0..count {
            let row = &self.0[(first + r) * self.1..][..self.1];
            let room = stride.min(self.1);
            (self.2)(row, &mut into[r * stride..][..room], first + r);
        }
    }
}

/// Keeps the first error of the pieces of a product.
pub(crate) fn keep(failed: &OnceLock<Error>, done: Result<()>) {
    if let Err(e) = done {
        // A second error says nothing new.
        let _ = failed.set(e);
    }
}

/// Rows in memory that a function converts all alike (it is told batch 0): many at once where they are packed alike.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flat<'a, X, F>(pub &'a [X], pub usize, pub F);

impl<X: Sync, T, F: Fn(&[X], &mut [T], usize) + Sync> Rows<T> for Flat<'_, X, F> {
    #[inline(always)]
    fn fill<S: Isa>(&self, first: usize, count: usize, into: &mut [T], stride: usize) {
        let (x, n) = (&self.0[first * self.1..][..count * self.1], self.1);
        if stride == n {
            return (self.2)(x, &mut into[..count * n], 0);
        }
        for r in 0..count {
            (self.2)(&x[r * n..][..n], &mut into[r * stride..][..n], 0);
        }
    }
}

/// Rows that the tiles of every instruction set divide.
const STEP: usize = 20;

/// How output is divided: rows to a piece, and whether to use threads.
fn pieces(pool: &Pool, rows: usize, work: usize) -> (usize, bool) {
    let parallel = pool.threads() > 1 && work >= PARALLEL;
    if !parallel {
        return (rows.max(1), false);
    }
    // Little work is split once for each thread, much of it more finely: threads may be slowed by others.
    let share = if work < 16 * PARALLEL { 1 } else { 3 };
    let per = rows.div_ceil(pool.threads() * share).max(1);
    (per.next_multiple_of(STEP), true)
}

/// Rows to a block, from the bytes of one.
fn block_rows(bytes: usize) -> usize {
    (BLOCK_BYTES / bytes.max(1)).clamp(STEP, 5 * STEP) / STEP * STEP
}

/// Bias (padded to whole panels) and limits of a float product.
#[derive(Debug, Default)]
pub(crate) struct FinishF32 {
    pub bias: Vec<f32>,
    pub range: (f32, f32),
}

impl FinishF32 {
    /// Sets the bias of `columns` columns.
    pub(crate) fn set(&mut self, columns: usize, bias: Option<&[f32]>) -> Result<()> {
        refill(&mut self.bias, columns.next_multiple_of(NR), 0.0)?;
        if let Some(b) = bias {
            self.bias[..columns].copy_from_slice(b);
        }
        Ok(())
    }
}

/// A place in a matrix: the distance of its rows and the first column to write. What follows is for whole rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub stride: usize,
    pub column: usize,
    pub then: Then<'a>,
}

impl<'a> Place<'a> {
    /// All of a matrix.
    pub(crate) fn whole(columns: usize) -> Place<'a> {
        Place { stride: columns, column: 0, then: Then::default() }
    }
    /// Does what follows to `count` rows from row `r` of `out` on, which is row `row` of the matrix.
    #[inline(always)]
    fn follow<T: Pod>(&self, row: usize, r: usize, count: usize, out: &mut [T]) {
        if !self.then.is_empty() {
            self.then.apply(row * self.stride, &mut out[r * self.stride..][..count * self.stride]);
        }
    }
    /// The same, and what follows.
    pub(crate) fn then(self, then: Then<'a>) -> Place<'a> {
        Place { then, ..self }
    }
}

/// out = clamp(a b + bias). `out` holds whole rows of `place.stride` elements.
pub(crate) fn product_f32(
    pool: &Pool,
    rows: usize,
    a: &impl Rows<f32>,
    b: &PackedF32,
    finish: &FinishF32,
    out: &mut [f32],
    place: Place<'_>,
) -> Result<()> {
    if rows == 0 || b.columns == 0 {
        return Ok(());
    }
    let failed = OnceLock::new();
    let work = rows.saturating_mul(b.columns).saturating_mul(b.depth);
    if rows == 1 && b.columns == place.stride && pool.threads() > 1 && work >= PARALLEL {
        // One row: split its columns.
        let per = b.columns.div_ceil(pool.threads() * 2).next_multiple_of(NR);
        pool.chunks(out, per, true, |i, piece| {
            let panels = i * per / NR..(i * per + piece.len()).div_ceil(NR);
            let n = piece.len();
            keep(
                &failed,
                dispatch(ProductF32 {
                    a,
                    b,
                    finish,
                    first: 0,
                    rows: 1,
                    panels,
                    columns: n,
                    out: &mut *piece,
                    place: Place::whole(place.stride),
                }),
            );
            place.then.apply(i * per, piece);
        });
        return failed.into_inner().map_or(Ok(()), Err);
    }
    let (per, parallel) = pieces(pool, rows, work);
    pool.chunks(out, per * place.stride, parallel, |i, piece| {
        let count = piece.len() / place.stride;
        let panels = 0..b.columns.div_ceil(NR);
        let n = b.columns;
        let task = ProductF32 { a, b, finish, first: i * per, rows: count, panels, columns: n, out: piece, place };
        keep(&failed, dispatch(task));
    });
    failed.into_inner().map_or(Ok(()), Err)
}

struct ProductF32<'a, A> {
    a: &'a A,
    b: &'a PackedF32,
    finish: &'a FinishF32,
    first: usize,
    rows: usize,
    panels: std::ops::Range<usize>,
    columns: usize,
    out: &'a mut [f32],
    place: Place<'a>,
}

impl<A: Rows<f32>> Task for ProductF32<'_, A> {
    type Output = Result<()>;
    #[inline(always)]
    fn run<S: Isa>(self) -> Result<()> {
        let depth = self.b.depth;
        if let Some((a, lda)) = self.a.direct() {
            let step = block_rows(4 * depth);
            for r in (0..self.rows).step_by(step) {
                let count = step.min(self.rows - r);
                let a = &a[(self.first + r) * lda..];
                block_f32::<S>(
                    a,
                    lda,
                    count,
                    self.b,
                    self.finish,
                    &self.panels,
                    self.columns,
                    &mut self.out[r * self.place.stride..],
                    self.place,
                );
                self.place.follow(self.first + r, r, count, self.out);
            }
            return Ok(());
        }
        let step = block_rows(4 * depth).min(self.rows.next_multiple_of(STEP));
        let mut scratch = Scratch::<f32>::new(step * depth)?;
        let buffer = scratch.get();
        for r in (0..self.rows).step_by(step) {
            let count = step.min(self.rows - r);
            self.a.fill::<S>(self.first + r, count, buffer, depth);
            let out = &mut self.out[r * self.place.stride..];
            block_f32::<S>(buffer, depth, count, self.b, self.finish, &self.panels, self.columns, out, self.place);
            self.place.follow(self.first + r, r, count, self.out);
        }
        Ok(())
    }
}

#[inline(always)]
fn block_f32<S: Isa>(
    a: &[f32],
    lda: usize,
    rows: usize,
    b: &PackedF32,
    finish: &FinishF32,
    panels: &std::ops::Range<usize>,
    columns: usize,
    out: &mut [f32],
    place: Place<'_>,
) {
    for p in panels.clone() {
        let column = (p - panels.start) * NR;
        let n = NR.min(columns - column);
        panel_f32::<S>(a, &[0], lda, rows, b, finish, p, n, &mut out[place.column + column..], place.stride);
    }
}

/// Rows made of `runs` times the `n` columns of one panel.
#[inline(always)]
fn panel_f32<S: Isa>(
    a: &[f32],
    runs: &[usize],
    lda: usize,
    rows: usize,
    b: &PackedF32,
    finish: &FinishF32,
    p: usize,
    n: usize,
    out: &mut [f32],
    ldc: usize,
) {
    let (bias, range) = (finish.bias[p * NR..].first_chunk().unwrap_or(&[0.0; NR]), finish.range);
    if !b.thin.is_empty() {
        for (j, w) in b.thin.chunks_exact(b.depth).enumerate() {
            S::dots_f32(a, runs, lda, rows, w, Dot { bias: bias[j], range }, &mut out[j..], ldc);
        }
        return;
    }
    S::rows_f32(a, runs, lda, rows, b.panel(p), bias, range, out, ldc, n);
}

/// What a convolution sees of images, as lines of pixels: each output is made of `taps[0]` runs of `taps[1]`
/// neighbouring pixels. Nothing is gathered: a line with its padding is laid out (and converted) once for all the
/// windows that it is in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lines {
    /// Lines and pixels of the input, and elements of a pixel.
    pub input: [usize; 2],
    pub channels: usize,
    pub output: [usize; 2],
    pub taps: [usize; 2],
    pub stride: [usize; 2],
    /// Lines from one run to the next.
    pub dilation: usize,
    /// Where the first window begins.
    pub first: [i64; 2],
}

impl Lines {
    /// Elements of a run.
    pub(crate) fn run(&self) -> usize {
        self.taps[1] * self.channels
    }
    /// Pixels that a line of outputs sees.
    fn width(&self) -> usize {
        (self.output[1].max(1) - 1) * self.stride[1] + self.taps[1]
    }
    /// Whether no window hangs over an edge.
    fn inside(&self) -> bool {
        let reach = (self.output[0].max(1) - 1) * self.stride[0] + (self.taps[0].max(1) - 1) * self.dilation + 1;
        let ends = |first: i64, reach: usize, size: usize| first >= 0 && first as usize + reach <= size;
        ends(self.first[0], reach, self.input[0]) && ends(self.first[1], self.width(), self.input[1])
    }
}

/// Images in memory and how their elements become those of the product.
pub(crate) struct Images<'a, X, T, F> {
    pub lines: Lines,
    pub x: &'a [X],
    pub batch: usize,
    /// The same elements, where they need no conversion.
    pub same: Option<&'a [T]>,
    /// What lies beyond the edges of each batch, or of all.
    pub pads: &'a [T],
    /// Converts elements of a batch.
    pub convert: F,
}

/// What lies beyond the edges of a batch; nothing does where there is none.
#[inline(always)]
pub(crate) fn pad_of<T: Pod>(pads: &[T], batch: usize) -> T {
    pads.get(batch).or(pads.last()).copied().unwrap_or(T::zeroed())
}

/// A product of runs with a packed operand.
trait Panels<T, O>: Sync {
    /// Elements of a row that are read at a time.
    const STEP: usize;
    fn panels(&self) -> usize;
    /// Multiplies `rows` rows by a panel; they are the rows from `row` on. `#[inline(always)]`.
    fn multiply<S: Isa>(&self, p: usize, a: &[T], runs: &[usize], lda: usize, rows: usize, row: usize, out: &mut [O]);
}

struct PanelsF32<'a> {
    b: &'a PackedF32,
    finish: &'a FinishF32,
}

impl Panels<f32, f32> for PanelsF32<'_> {
    const STEP: usize = 1;
    fn panels(&self) -> usize {
        self.b.columns.div_ceil(NR)
    }
    #[inline(always)]
    fn multiply<S: Isa>(
        &self,
        p: usize,
        a: &[f32],
        runs: &[usize],
        lda: usize,
        rows: usize,
        _row: usize,
        out: &mut [f32],
    ) {
        let (n, column) = (self.b.columns, p * NR);
        panel_f32::<S>(a, runs, lda, rows, self.b, self.finish, p, NR.min(n - column), &mut out[column..], n);
    }
}

struct PanelsInt<'a, U, F> {
    b: &'a PackedInt,
    finish: &'a F,
    sum: PhantomData<U>,
}

impl<T: Left, U: Sum, O: Send, F: Finish<U, O>> Panels<T, O> for PanelsInt<'_, U, F> {
    const STEP: usize = T::STEP;
    fn panels(&self) -> usize {
        self.b.columns.div_ceil(NR)
    }
    #[inline(always)]
    fn multiply<S: Isa>(&self, p: usize, a: &[T], runs: &[usize], lda: usize, rows: usize, row: usize, out: &mut [O]) {
        let (b, ldc, column) = (self.b, self.b.columns, p * NR);
        let n = NR.min(ldc - column);
        T::panel::<S, U, O>(a, runs, lda, rows, b, p, n, self.finish, row, &mut out[column..], ldc);
    }
}

/// An element of the left operand of an integer product.
pub(crate) trait Left: Pod + Send + Sync {
    /// Steps of the depth that are multiplied at a time.
    const STEP: usize;
    /// Rows made of `runs` times the `n` columns of one panel, finished. `#[inline(always)]`.
    fn panel<S: Isa, U: Sum, O>(
        a: &[Self],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &PackedInt,
        p: usize,
        n: usize,
        finish: &impl Finish<U, O>,
        row: usize,
        out: &mut [O],
        ldc: usize,
    );
}

impl Left for i16 {
    const STEP: usize = 2;
    #[inline(always)]
    fn panel<S: Isa, U: Sum, O>(
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &PackedInt,
        p: usize,
        n: usize,
        finish: &impl Finish<U, O>,
        row: usize,
        out: &mut [O],
        ldc: usize,
    ) {
        panel_int::<S, U, O>(a, runs, lda, rows, b, p, n, finish, row, out, ldc);
    }
}

impl Left for u8 {
    const STEP: usize = 4;
    #[inline(always)]
    fn panel<S: Isa, U: Sum, O>(
        a: &[u8],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &PackedInt,
        p: usize,
        n: usize,
        finish: &impl Finish<U, O>,
        row: usize,
        out: &mut [O],
        ldc: usize,
    ) {
        finish.quads::<S>(a, runs, lda, rows, &b.quads(p), row, p * NR, out, ldc, n);
    }
}

/// Rows made of `runs` times the `n` columns of one panel, finished.
#[inline(always)]
fn panel_int<S: Isa, U: Sum, O>(
    a: &[i16],
    runs: &[usize],
    lda: usize,
    rows: usize,
    b: &PackedInt,
    p: usize,
    n: usize,
    finish: &impl Finish<U, O>,
    row: usize,
    out: &mut [O],
    ldc: usize,
) {
    let panel = b.panel(p);
    if !U::EXACT || b.block >= b.pairs {
        return finish.panel::<S>(a, runs, lda, rows, panel, row, p * NR, out, ldc, n);
    }
    let length = b.pairs / runs.len().max(1);
    for r in (0..rows).step_by(S::MRI) {
        let m = S::MRI.min(rows - r);
        let mut acc = [[0i32; NR]; MAX_MR];
        let mut sums = [[U::ZERO; NR]; MAX_MR];
        for (i, run) in runs.iter().enumerate() {
            for k in (0..length).step_by(b.block) {
                let end = (k + b.block).min(length);
                let part = panel.part(i * length + k..i * length + end);
                S::tile_i16(&a[r * lda + run + 2 * k..], &[0], lda, m, part, n, &mut acc);
                for (s, x) in sums.iter_mut().zip(&acc).take(m) {
                    for j in 0..NR {
                        s[j] = s[j].add(x[j]);
                    }
                }
            }
        }
        for (l, s) in sums.iter().enumerate().take(m) {
            finish.finish::<S>(row + r + l, p * NR, s, &mut out[(r + l) * ldc..][..n]);
        }
    }
}

struct LinesTask<'a, X, T, F, P, O> {
    images: &'a Images<'a, X, T, F>,
    panels: &'a P,
    /// Elements of an output pixel.
    columns: usize,
    first: usize,
    out: &'a mut [O],
    then: Then<'a>,
}

impl<X, T, F, P, O> Task for LinesTask<'_, X, T, F, P, O>
where
    X: Sync,
    T: Pod + Sync,
    F: Fn(&[X], &mut [T], usize) + Sync,
    P: Panels<T, O>,
    O: Pod,
{
    type Output = Result<()>;
    #[inline(always)]
    fn run<S: Isa>(self) -> Result<()> {
        let l = &self.images.lines;
        let (c, [height, width]) = (l.channels, l.input);
        let (image, [oh, ow]) = (height * width * c, l.output);
        let whole = l.width() * c;
        let direct = self.images.same.filter(|_| l.inside());
        // Some elements more: integers are read several at a time.
        let pitch = if direct.is_some() { width * c } else { (whole + P::STEP - 1).next_multiple_of(P::STEP) };
        let runs: SmallVec<[usize; 16]> = (0..l.taps[0]).map(|t| t * l.dilation * pitch).collect();
        let lda = l.stride[1] * c;
        let count = self.out.len() / (ow * self.columns);
        let extra = (l.taps[0].max(1) - 1) * l.dilation + 1;
        let lines_of = |n: usize| (n - 1) * l.stride[0] + extra;
        let fit = BLOCK_BYTES / (pitch * size_of::<T>()).max(1);
        let step = (fit.saturating_sub(extra) / l.stride[0].max(1) + 1).min(count).min(oh);
        let mut scratch = Scratch::<T>::new(if direct.is_some() { 0 } else { lines_of(step) * pitch })?;
        let buffer = scratch.get();
        let mut done = 0;
        while done < count {
            let (batch, y) = ((self.first + done) / oh, (self.first + done) % oh);
            let pad = pad_of(self.images.pads, batch);
            let n = step.min(count - done).min(oh - y);
            let top = (y * l.stride[0]) as i64 + l.first[0];
            let a = match direct {
                Some(x) => &x[batch * image + (top as usize * width + l.first[1] as usize) * c..(batch + 1) * image],
                None => {
                    let x = &self.images.x[batch * image..][..image];
                    let low = (-l.first[1]).clamp(0, l.width() as i64) as usize;
                    let high = (width as i64 - l.first[1]).clamp(low as i64, l.width() as i64) as usize;
                    for (i, line) in buffer.chunks_exact_mut(pitch).enumerate().take(lines_of(n)) {
                        let at = top + i as i64;
                        if at < 0 || at >= height as i64 || low >= high {
                            line.fill(pad);
                            continue;
                        }
                        line[..low * c].fill(pad);
                        let from = (at * width as i64 + l.first[1] + low as i64) as usize * c;
                        (self.images.convert)(&x[from..][..(high - low) * c], &mut line[low * c..high * c], batch);
                        line[high * c..].fill(pad);
                    }
                    &*buffer
                }
            };
            let out = &mut self.out[done * ow * self.columns..][..n * ow * self.columns];
            for p in 0..self.panels.panels() {
                for (i, out) in out.chunks_exact_mut(ow * self.columns).enumerate() {
                    let row = (self.first + done + i) * ow;
                    self.panels.multiply::<S>(p, &a[i * l.stride[0] * pitch..], &runs, lda, ow, row, out);
                }
            }
            self.then.apply((self.first + done) * ow * self.columns, out);
            done += n;
        }
        Ok(())
    }
}

fn lines<X, T, F, O>(
    pool: &Pool,
    images: &Images<'_, X, T, F>,
    columns: usize,
    depth: usize,
    panels: &impl Panels<T, O>,
    out: &mut [O],
    then: Then<'_>,
) -> Result<()>
where
    X: Sync,
    T: Pod + Sync,
    F: Fn(&[X], &mut [T], usize) + Sync,
    O: Pod + Send,
{
    let [oh, ow] = images.lines.output;
    let (count, width) = (images.batch * oh, ow * columns);
    if count == 0 || width == 0 {
        return Ok(());
    }
    let work = out.len().saturating_mul(depth);
    let parallel = pool.threads() > 1 && work >= PARALLEL;
    let share = if work < 16 * PARALLEL { 1 } else { 3 };
    let per = if parallel { count.div_ceil(pool.threads() * share).max(1) } else { count };
    let failed = OnceLock::new();
    pool.chunks(out, per * width, parallel, |i, out| {
        keep(&failed, dispatch(LinesTask { images, panels, columns, first: i * per, out, then }));
    });
    failed.into_inner().map_or(Ok(()), Err)
}

/// out = clamp(windows b + bias).
pub(crate) fn lines_f32<F: Fn(&[f32], &mut [f32], usize) + Sync>(
    pool: &Pool,
    images: &Images<'_, f32, f32, F>,
    b: &PackedF32,
    finish: &FinishF32,
    out: &mut [f32],
    then: Then<'_>,
) -> Result<()> {
    lines(pool, images, b.columns, b.depth, &PanelsF32 { b, finish }, out, then)
}

/// out = finish(windows b). Each run is packed as a multiple of [`Left::STEP`].
pub(crate) fn lines_int<T: Left, U: Sum, X: Sync, O: Pod + Send, F: Fn(&[X], &mut [T], usize) + Sync>(
    pool: &Pool,
    images: &Images<'_, X, T, F>,
    b: &PackedInt,
    finish: &impl Finish<U, O>,
    out: &mut [O],
    then: Then<'_>,
) -> Result<()> {
    lines(pool, images, b.columns, b.depth, &PanelsInt { b, finish, sum: PhantomData::<U> }, out, then)
}

/// What becomes of the sums of an integer product.
pub(crate) trait Finish<U, Out>: Sync {
    /// Turns the sums of row `row`, columns `column` to `column + out.len()`, into outputs. `#[inline(always)]`.
    fn finish<S: Isa>(&self, row: usize, column: usize, sums: &[U; NR], out: &mut [Out]);

    /// The same for several rows whose sums fit 32 bits; their outputs are `stride` apart, `n` columns each. `acc` is
    /// scratch afterwards. `#[inline(always)]`.
    #[inline(always)]
    fn tile<S: Isa>(&self, row: usize, column: usize, acc: &mut [[i32; NR]], out: &mut [Out], stride: usize, n: usize)
    where
        U: Sum,
    {
        for (l, acc) in acc.iter().enumerate() {
            let mut sums = [U::ZERO; NR];
            for j in 0..NR {
                sums[j] = sums[j].add(acc[j]);
            }
            self.finish::<S>(row + l, column, &sums, &mut out[l * stride..][..n]);
        }
    }

    /// Any number of rows made of `runs` times a panel, whose sums fit 32 bits, finished as by [`Finish::tile`].
    /// `#[inline(always)]`.
    #[inline(always)]
    fn panel<S: Isa>(
        &self,
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        row: usize,
        column: usize,
        out: &mut [Out],
        ldc: usize,
        n: usize,
    ) where
        U: Sum,
    {
        self.in_tiles::<S>(a, runs, lda, rows, b, row, column, out, ldc, n);
    }

    /// The same by [`Isa::tile_i16`]. `#[inline(always)]`.
    #[inline(always)]
    fn in_tiles<S: Isa>(
        &self,
        a: &[i16],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: Panel<'_>,
        row: usize,
        column: usize,
        out: &mut [Out],
        ldc: usize,
        n: usize,
    ) where
        U: Sum,
    {
        // No closure: where there are two calls of it, the compiler would not make it part of a function for the
        // instruction set.
        for r in (0..rows).step_by(S::MRI) {
            let m = S::MRI.min(rows - r);
            let mut acc = [[0i32; NR]; MAX_MR];
            S::tile_i16(&a[r * lda..], runs, lda, m, b, n, &mut acc);
            self.tile::<S>(row + r, column, &mut acc[..m], &mut out[r * ldc..], ldc, n);
        }
    }

    /// The same of rows of bytes; sums are modulo 2^32. `#[inline(always)]`.
    #[inline(always)]
    fn quads<S: Isa>(
        &self,
        a: &[u8],
        runs: &[usize],
        lda: usize,
        rows: usize,
        b: &Quads<'_>,
        row: usize,
        column: usize,
        out: &mut [Out],
        ldc: usize,
        n: usize,
    ) where
        U: Sum,
    {
        for r in (0..rows).step_by(MAX_QUADS) {
            let m = MAX_QUADS.min(rows - r);
            let mut acc = [[0i32; NR]; MAX_QUADS];
            S::tile_quads(&a[r * lda..], runs, lda, m, b, &mut acc);
            self.tile::<S>(row + r, column, &mut acc[..m], &mut out[r * ldc..], ldc, n);
        }
    }

    /// A strip of a depthwise convolution whose sums fit 32 bits, finished as by [`Finish::tile`]: row `row` for each
    /// pixel. `#[inline(always)]`.
    #[inline(always)]
    fn strip<S: Isa>(&self, strip: &Strip<'_>, row: usize, column: usize, out: &mut [Out], stride: usize, n: usize)
    where
        U: Sum,
    {
        self.by_pixels::<S>(strip, row, column, out, stride, n);
    }

    /// The same by [`Strip::pixels`]. `#[inline(always)]`.
    #[inline(always)]
    fn by_pixels<S: Isa>(&self, strip: &Strip<'_>, row: usize, column: usize, out: &mut [Out], stride: usize, n: usize)
    where
        U: Sum,
    {
        for r in 0..strip.rows {
            let mut p = 0;
            while p < strip.pixels {
                let mut acc = [[0i32; NR]; 4];
                let m = strip.pixels::<S>(r, p, &mut acc);
                let out = &mut out[(r * strip.pixels + p) * stride..];
                self.tile::<S>(row, column, &mut acc[..m], out, stride, n);
                p += m;
            }
        }
    }
}

/// Sums of an integer product: 32 bits, wrapping, or 64 bits, exact for 16-bit left operands.
pub(crate) trait Sum: Copy + Send + Sync + 'static {
    const EXACT: bool;
    const ZERO: Self;
    fn add(self, x: i32) -> Self;
}
impl Sum for i32 {
    const EXACT: bool = false;
    const ZERO: i32 = 0;
    #[inline(always)]
    fn add(self, x: i32) -> i32 {
        self.wrapping_add(x)
    }
}
impl Sum for i64 {
    const EXACT: bool = true;
    const ZERO: i64 = 0;
    #[inline(always)]
    fn add(self, x: i32) -> i64 {
        self + x as i64
    }
}

/// out = finish(a b) for integers. `out` holds whole rows of `place.stride` elements.
pub(crate) fn product_int<T: Left, U: Sum, O: Pod + Send>(
    pool: &Pool,
    rows: usize,
    a: &impl Rows<T>,
    b: &PackedInt,
    finish: &impl Finish<U, O>,
    out: &mut [O],
    place: Place<'_>,
) -> Result<()> {
    if rows == 0 || b.columns == 0 {
        return Ok(());
    }
    let failed = OnceLock::new();
    let work = rows.saturating_mul(b.columns).saturating_mul(b.depth) / 2;
    if rows == 1 && b.columns == place.stride && pool.threads() > 1 && work >= PARALLEL {
        let per = b.columns.div_ceil(pool.threads() * 2).next_multiple_of(NR);
        pool.chunks(out, per, true, |i, piece| {
            let panels = i * per / NR..(i * per + piece.len()).div_ceil(NR);
            let n = piece.len();
            let task = ProductInt {
                a,
                b,
                finish,
                first: 0,
                rows: 1,
                panels,
                columns: n,
                out: &mut *piece,
                place: Place::whole(place.stride),
                of: PhantomData::<(T, U)>,
            };
            keep(&failed, dispatch(task));
            place.then.apply(i * per, piece);
        });
        return failed.into_inner().map_or(Ok(()), Err);
    }
    let (per, parallel) = pieces(pool, rows, work);
    pool.chunks(out, per * place.stride, parallel, |i, piece| {
        let count = piece.len() / place.stride;
        let (panels, columns) = (0..b.columns.div_ceil(NR), b.columns);
        let task = ProductInt {
            a,
            b,
            finish,
            first: i * per,
            rows: count,
            panels,
            columns,
            out: piece,
            place,
            of: PhantomData::<(T, U)>,
        };
        keep(&failed, dispatch(task));
    });
    failed.into_inner().map_or(Ok(()), Err)
}

struct ProductInt<'a, T, U, O, A, F> {
    a: &'a A,
    b: &'a PackedInt,
    finish: &'a F,
    first: usize,
    rows: usize,
    panels: std::ops::Range<usize>,
    columns: usize,
    out: &'a mut [O],
    place: Place<'a>,
    of: PhantomData<(T, U)>,
}

impl<T: Left, U: Sum, O: Pod, A: Rows<T>, F: Finish<U, O>> Task for ProductInt<'_, T, U, O, A, F> {
    type Output = Result<()>;
    #[inline(always)]
    fn run<S: Isa>(self) -> Result<()> {
        let (b, place) = (self.b, self.place);
        let stride = T::STEP * b.pairs;
        // In place only when no step crosses from one row into the next.
        let direct = self.a.direct().filter(|(_, lda)| *lda == stride);
        let step = block_rows(size_of::<T>() * stride).min(self.rows.next_multiple_of(STEP));
        let mut scratch = Scratch::<T>::new(if direct.is_some() { 0 } else { step * stride })?;
        let buffer = scratch.get();
        // Such a depth leaves the last elements of each row unwritten.
        if b.depth < stride {
            buffer.fill(T::zeroed());
        }
        for r in (0..self.rows).step_by(step) {
            let count = step.min(self.rows - r);
            let a = match direct {
                Some((a, _)) => &a[(self.first + r) * stride..],
                None => {
                    self.a.fill::<S>(self.first + r, count, buffer, stride);
                    &*buffer
                }
            };
            for p in self.panels.clone() {
                let column = (p - self.panels.start) * NR;
                let n = NR.min(self.columns - column);
                let out = &mut self.out[r * place.stride + place.column + column..];
                let row = self.first + r;
                T::panel::<S, U, O>(a, &[0], stride, count, b, p, n, self.finish, row, out, place.stride);
            }
            place.follow(self.first + r, r, count, self.out);
        }
        Ok(())
    }
}
