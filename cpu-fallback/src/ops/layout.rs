//! Operators that move elements by position alone: kernels.

use super::*;
use crate::kernel::Call;
use crate::moves::{self, Dst, Move, Src, int, ints, low_bytes};
use crate::strided::{Steps, copy, strides};
use crate::tables::look_up;
use bytemuck::Pod;
use litegpu_graph::fixed::Multiplier;
use litegpu_graph::ops as rules;
use litegpu_graph::schema::{ActivationFunctionType as Activation, MirrorPadMode};
use litegpu_graph::{DType, Op, Shape, elements};
use smallvec::SmallVec;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    match &site.node.op {
        Op::Concatenation(o) => concatenation(site, o.axis, o.fused_activation_function),
        Op::DepthToSpace(o) => {
            let b = o.block_size;
            kernel(move |call| moves::run(call, &[0], &Blocks { block: b.max(1) as usize, to_space: true }))
        }
        Op::SpaceToDepth(o) => {
            let b = o.block_size;
            kernel(move |call| moves::run(call, &[0], &Blocks { block: b.max(1) as usize, to_space: false }))
        }
        Op::Pad | Op::Padv2 => pad(site),
        Op::MirrorPad(o) => {
            let reflect = o.mode == MirrorPadMode::REFLECT;
            kernel(move |call| {
                let pads = rules::paddings(&ints(&call.input(1)?)?, call.input(0)?.shape.len())?;
                moves::run(call, &[0], &Mirror { pads: &pads, reflect })
            })
        }
        Op::BatchToSpaceNd | Op::SpaceToBatchNd => {
            let to_batch = matches!(site.node.op, Op::SpaceToBatchNd);
            let zero = site.output(0)?.per_tensor().map_or(0, |(_, z)| z);
            kernel(move |call| {
                let (blocks, edges) = (ints(&call.input(1)?)?, ints(&call.input(2)?)?);
                let plan = rules::space_batch(call.input(0)?.shape, &blocks, &edges, to_batch)?;
                moves::run(call, &[0], &SpaceBatch { plan, to_batch, zero: zero as i64 })
            })
        }
        Op::Transpose => kernel(|call| {
            let perm = rules::permutation(&ints(&call.input(1)?)?, call.input(0)?.shape.len())?;
            moves::run(call, &[0], &Transpose(&perm))
        }),
        Op::StridedSlice(o) => {
            let o = o.clone();
            part(site, move |call| {
                let (b, e, s) = (ints(&call.input(1)?)?, ints(&call.input(2)?)?, ints(&call.input(3)?)?);
                Ok(rules::StridedSlice::new(&o, call.input(0)?.shape, &b, &e, &s)?.ranges)
            })
        }
        Op::Slice => part(site, |call| {
            let (b, s) = (ints(&call.input(1)?)?, ints(&call.input(2)?)?);
            let ranges = rules::slice(call.input(0)?.shape, &b, &s)?;
            Ok(ranges.into_iter().map(|(b, n)| (b, 1, n)).collect())
        }),
        Op::Split(_) => kernel(|call| {
            let axis = rules::axis(int(&call.input(0)?)?, call.input(1)?.shape.len())?;
            moves::run(call, &[1], &Split(axis))
        }),
        Op::SplitV(_) => kernel(|call| {
            let axis = rules::axis(int(&call.input(2)?)?, call.input(0)?.shape.len())?;
            moves::run(call, &[0], &Split(axis))
        }),
        Op::Tile => kernel(|call| moves::run(call, &[0], &Tile)),
        Op::Pack(o) => {
            let axis = o.axis;
            kernel(move |call| {
                let axis = rules::axis(axis as i64, call.input(0)?.shape.len() + 1)?;
                let all: SmallVec<[usize; 8]> = (0..call.inputs.len()).collect();
                moves::run(call, &all, &Pack(axis))
            })
        }
        Op::Unpack(o) => {
            let axis = o.axis;
            kernel(move |call| {
                let axis = rules::axis(axis as i64, call.input(0)?.shape.len())?;
                moves::run(call, &[0], &Unpack(axis))
            })
        }
        Op::ReverseV2 => kernel(|call| {
            let back = rules::axes_mask(&ints(&call.input(1)?)?, call.input(0)?.shape.len())?;
            moves::run(call, &[0], &Reverse(&back))
        }),
        Op::ReverseSequence(o) => {
            let (seq, batch) = (o.seq_dim, o.batch_dim);
            kernel(move |call| {
                let rank = call.input(0)?.shape.len();
                let (seq, batch) = (rules::axis(seq as i64, rank)?, rules::axis(batch as i64, rank)?);
                let lengths = ints(&call.input(1)?)?;
                moves::run(call, &[0], &ReverseSequence { seq, batch, lengths: &lengths })
            })
        }
        Op::BroadcastTo => kernel(|call| moves::run(call, &[0], &BroadcastTo)),
        Op::DynamicUpdateSlice => kernel(|call| {
            let start = ints(&call.input(2)?)?;
            moves::run(call, &[0, 1], &Update(&start))
        }),
        Op::Dilate => kernel(|call| {
            let factors = ints(&call.input(1)?)?;
            moves::run(call, &[0, 2], &Dilate(&factors))
        }),
        _ => no_kernel(site),
    }
}

fn kernel(f: impl Fn(&mut Call<'_>) -> Result<()> + Send + 'static) -> Result<Kernel> {
    Ok(Box::new(f))
}

fn wrong_shape() -> Error {
    Error::internal("operands and outputs of a move do not fit")
}

/// The only operand and the only output.
fn single<'s, 'd, 't, 'u, T>(
    src: &'s [Src<'t, T>],
    dst: &'d mut [Dst<'u, T>],
) -> Result<(&'s Src<'t, T>, &'d mut Dst<'u, T>)> {
    match (src.first(), dst.first_mut()) {
        (Some(s), Some(d)) => Ok((s, d)),
        _ => Err(wrong_shape()),
    }
}

/// Copies a block of rows: `rows` times `n` elements, with the given distances between rows.
fn rows<T: Copy>(
    src: &[T],
    from: usize,
    step: usize,
    dst: &mut [T],
    to: usize,
    stride: usize,
    n: usize,
    rows: usize,
) -> Result<()> {
    if rows == 1
        && let (Some(src), Some(dst)) = (src.get(from..), dst.get_mut(to..))
        && let (Some(src), Some(dst)) = (src.get(..n), dst.get_mut(..n))
    {
        dst.copy_from_slice(src);
        return Ok(());
    }
    let from = Steps { at: from, steps: [step as isize, 1].into_iter().collect() };
    let to = Steps { at: to, steps: [stride as isize, 1].into_iter().collect() };
    copy(&[rows, n], src, &from, dst, &to)
}

/// (product of the dimensions before `axis`, the dimension, product of those after).
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    let before = shape.get(..axis).map_or(1, elements);
    let after = shape.get(axis + 1..).map_or(1, elements);
    (before, shape.get(axis).copied().unwrap_or(1), after)
}

struct Concat(usize);

impl Move for Concat {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let out = dst.first_mut().ok_or_else(wrong_shape)?;
        let (outer, d, inner) = around(&out.shape, self.0);
        let mut at = 0;
        for s in src {
            let n = around(s.shape, self.0).1 * inner;
            rows(s.data, 0, n, out.data, at, d * inner, n, outer)?;
            at += n;
        }
        Ok(())
    }
}

fn concatenation(site: &Site<'_>, axis: i32, activation: Activation) -> Result<Kernel> {
    if activation != Activation::NONE {
        return Err(site.unsupported(format!("fused activation {activation:?}")));
    }
    let y = site.output(0)?;
    // Operands of other quantizations than the output's are requantized as they are copied: int8 and uint8 by table.
    let mut tables: SmallVec<[Option<Box<[u8; 256]>>; 4]> = SmallVec::new();
    for i in 0..site.node.inputs.len() {
        let x = site.input(i)?;
        let other = x.per_tensor().is_some() && y.per_tensor().is_some() && x.per_tensor() != y.per_tensor();
        tables.push(match y.dtype {
            DType::I8 | DType::U8 if other && x.dtype == y.dtype => {
                let ((sx, zx), (sy, zy)) = (crate::tables::quantization(x)?, crate::tables::quantization(y)?);
                Some(if y.dtype == DType::U8 {
                    // The reference scales in float32 with a bias.
                    let (scale, inverse) = (sx * (1.0 / sy), -(zx as f32) * (sx * (1.0 / sy)));
                    crate::tables::bytes(y.dtype, |v| ((v as f32 * scale + inverse).round() as i32).saturating_add(zy))
                } else {
                    let m = Multiplier::new(sx as f64 / sy as f64);
                    crate::tables::bytes(y.dtype, |v| m.apply(v - zx).saturating_add(zy))
                })
            }
            _ => None,
        });
    }
    let some = tables.iter().any(Option::is_some);
    kernel(move |call| {
        let axis = rules::axis(axis as i64, call.input(0)?.shape.len())?;
        let all: SmallVec<[usize; 8]> = (0..call.inputs.len()).collect();
        if some {
            call.record = None;
        }
        moves::run(call, &all, &Concat(axis))?;
        if !some {
            return Ok(());
        }
        let inputs = call.inputs;
        let out = call.output(0)?;
        let (outer, d, inner) = around(&out.shape, axis);
        let data = out.as_mut_slice::<u8>()?;
        let mut at = 0;
        for (v, table) in inputs.iter().zip(&tables) {
            let n = v.map_or(0, |v| around(v.shape, axis).1 * inner);
            if let Some(table) = table {
                for row in 0..outer {
                    let from = row * d * inner + at;
                    look_up(table, None, data.get_mut(from..from + n).ok_or_else(wrong_shape)?);
                }
            }
            at += n;
        }
        Ok(())
    })
}

/// DEPTH_TO_SPACE and SPACE_TO_DEPTH: one is the other backwards.
struct Blocks {
    block: usize,
    to_space: bool,
}

impl Move for Blocks {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (s, d) = single(src, dst)?;
        let deep: &[usize] = if self.to_space { s.shape } else { &d.shape };
        let &[n, h, w, c] = deep else { return Err(wrong_shape()) };
        let b = self.block;
        let c = c / b / b;
        // As seen from the space side: [n, h, b, w, b, c].
        let sizes = [n, h, b, w, b, c];
        let space = Steps::dense(&sizes);
        let row = w * b * b * c;
        let deep = [h * row, row, b * c, b * b * c, c, 1];
        let deep = Steps { at: 0, steps: deep.iter().map(|&s| s as isize).collect() };
        if self.to_space {
            copy(&sizes, s.data, &deep, d.data, &space)
        } else {
            copy(&sizes, s.data, &space, d.data, &deep)
        }
    }
}

fn pad(site: &Site<'_>) -> Result<Kernel> {
    let x = site.input(0)?;
    let zero = site.output(0)?.per_tensor().map_or(0, |(_, z)| z) as i64;
    let value = match site.optional(2) {
        Some(v) if v.dtype != x.dtype => {
            return Err(Error::invalid(format!("a padding value of {} for {}", v.dtype, x.dtype)));
        }
        v => v.is_some(),
    };
    kernel(move |call| {
        let pads = rules::paddings(&ints(&call.input(1)?)?, call.input(0)?.shape.len())?;
        let m = Pad { pads: &pads, zero };
        if value && call.optional(2).is_some() { moves::run(call, &[0, 2], &m) } else { moves::run(call, &[0], &m) }
    })
}

struct Pad<'a> {
    pads: &'a [[usize; 2]],
    zero: i64,
}

impl Move for Pad<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let value = src.get(1).and_then(|s| s.data.first().copied()).unwrap_or(low_bytes(self.zero));
        let (s, d) = single(src, dst)?;
        if let (Some(([before, _], outer)), Some(&from), Some(&to)) =
            (self.pads.split_last(), s.shape.last(), d.shape.last())
            && outer.iter().all(|p| *p == [0; 2])
            && before.checked_add(from).is_some_and(|end| end <= to)
            && from > 0
        {
            // Lines one after another: nothing is written twice.
            for (s, d) in s.data.chunks_exact(from).zip(d.data.chunks_exact_mut(to)) {
                let (front, rest) = d.split_at_mut(*before);
                let (middle, back) = rest.split_at_mut(from);
                front.fill(value);
                middle.copy_from_slice(s);
                back.fill(value);
            }
            return Ok(());
        }
        let steps = strides(&d.shape);
        let at: usize = self.pads.iter().zip(&steps).map(|([before, _], s)| before * s).sum();
        if s.data.len() < d.data.len() {
            d.data.fill(value);
        }
        let to = Steps { at, steps: steps.iter().map(|&s| s as isize).collect() };
        copy(s.shape, s.data, &Steps::dense(s.shape), d.data, &to)
    }
}

struct Mirror<'a> {
    pads: &'a [[usize; 2]],
    reflect: bool,
}

impl Move for Mirror<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (s, d) = single(src, dst)?;
        let skip = self.reflect as usize;
        // For each dimension, where each output index comes from.
        let mut from: SmallVec<[Vec<usize>; 6]> = SmallVec::new();
        for (&n, &[before, after]) in s.shape.iter().zip(self.pads) {
            if before.max(after) > n.saturating_sub(skip) && before.max(after) > 0 {
                return Err(Error::invalid(format!("a mirror of {} in a dimension of {n}", before.max(after))));
            }
            let mut line: Vec<usize> = (0..before).map(|i| before - 1 - i + skip).collect();
            line.extend(0..n);
            line.extend((0..after).map(|i| n - 1 - skip - i));
            from.push(line);
        }
        gather_lines(s, d, &from)
    }
}

/// `dst[i, j, ...] = src[from[0][i], from[1][j], ...]`.
fn gather_lines<T: Copy>(s: &Src<'_, T>, d: &mut Dst<'_, T>, from: &[Vec<usize>]) -> Result<()> {
    let steps = strides(s.shape);
    let Some((last, outer)) = from.split_last() else {
        return match (s.data.first(), d.data.first_mut()) {
            (Some(&v), Some(o)) => {
                *o = v;
                Ok(())
            }
            _ => Err(wrong_shape()),
        };
    };
    if last.is_empty() {
        return Ok(());
    }
    let mut index: SmallVec<[usize; 6]> = SmallVec::from_elem(0, outer.len());
    for row in d.data.chunks_mut(last.len()) {
        let base: usize = index.iter().zip(outer).zip(&steps).map(|((&i, line), &s)| line[i] * s).sum();
        let line = s.data.get(base..).ok_or_else(wrong_shape)?;
        for (o, &i) in row.iter_mut().zip(last) {
            *o = *line.get(i).ok_or_else(wrong_shape)?;
        }
        for (i, line) in index.iter_mut().zip(outer).rev() {
            *i += 1;
            if *i < line.len() {
                break;
            }
            *i = 0;
        }
    }
    Ok(())
}

struct SpaceBatch {
    plan: rules::SpaceBatch,
    to_batch: bool,
    zero: i64,
}

impl Move for SpaceBatch {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (s, d) = single(src, dst)?;
        // Without elements the blocks may be of any size.
        if d.data.is_empty() {
            return Ok(());
        }
        let (space, packed): (&[usize], &[usize]) =
            if self.to_batch { (s.shape, &d.shape) } else { (&d.shape, s.shape) };
        let m = self.plan.blocks.len();
        let batch = space.first().copied().unwrap_or(0);
        let (space_steps, packed_steps) = (strides(space), strides(packed));
        if self.to_batch && packed.iter().product::<usize>() != s.data.len() {
            d.data.fill(low_bytes(self.zero));
        }
        // One strided copy per position inside a block.
        for position in 0..elements(&self.plan.blocks) {
            let mut rest = position;
            let mut sizes: SmallVec<[usize; 8]> = SmallVec::from_slice(packed);
            let mut near = Steps { at: 0, steps: space_steps.iter().map(|&s| s as isize).collect() };
            let mut far = Steps { at: 0, steps: packed_steps.iter().map(|&s| s as isize).collect() };
            if let (Some(n), Some(&step)) = (sizes.first_mut(), packed_steps.first()) {
                *n = batch;
                far.at = position * batch * step;
            }
            for i in (0..m).rev() {
                let b = self.plan.blocks[i];
                let inside = rest % b;
                rest /= b;
                // Index j of the packed side is index j * b + inside - before of the space side.
                let before = self.plan.edges[i][0];
                let size = space.get(i + 1).copied().ok_or_else(wrong_shape)?;
                let count = packed.get(i + 1).copied().ok_or_else(wrong_shape)?;
                let first = before.saturating_sub(inside).div_ceil(b);
                let end = (size + before).saturating_sub(inside).div_ceil(b).min(count);
                sizes[i + 1] = end.saturating_sub(first);
                near.steps[i + 1] *= b as isize;
                if first < end {
                    near.at += (first * b + inside - before) * space_steps[i + 1];
                    far.at += first * packed_steps[i + 1];
                }
            }
            if self.to_batch {
                copy(&sizes, s.data, &near, d.data, &far)?;
            } else {
                copy(&sizes, s.data, &far, d.data, &near)?;
            }
        }
        Ok(())
    }
}

struct Transpose<'a>(&'a [usize]);

impl Move for Transpose<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (s, d) = single(src, dst)?;
        let steps = strides(s.shape);
        let from = Steps { at: 0, steps: self.0.iter().map(|&p| steps[p] as isize).collect() };
        copy(&d.shape, s.data, &from, d.data, &Steps::dense(&d.shape))
    }
}

/// (first index, step, count) of each dimension.
type Part = SmallVec<[(usize, isize, usize); 6]>;

/// SLICE and STRIDED_SLICE. Constant bounds that take one piece of the operand as it lies in memory are resolved once:
/// small slices are common, and to find out what to copy takes longer than to copy it.
fn part(site: &Site<'_>, ranges: impl Fn(&Call<'_>) -> Result<Part> + Send + 'static) -> Result<Kernel> {
    let constant = |i: usize| site.optional(i).is_none_or(|t| t.is_constant() && !t.is_variable);
    let bits = site.input(0)?.dtype.bits();
    let fixed = (1..4).all(constant) && bits >= 8 && bits.is_multiple_of(8);
    let mut known: Option<(Shape, usize, usize)> = None;
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        if let Some((shape, at, n)) = &known
            && x.shape == shape.as_slice()
            && let Some(from) = x.bytes.get(*at..*at + *n)
            && call.output(0)?.bytes().len() == *n
        {
            call.output(0)?.bytes_mut().copy_from_slice(from);
            return Ok(());
        }
        let ranges = ranges(call)?;
        known = if fixed { piece(x.shape, &ranges, bits / 8) } else { None };
        moves::run(call, &[0], &Ranges(&ranges))
    }))
}

/// Where the ranges begin and how many bytes they are, when they are one piece.
fn piece(shape: &[usize], ranges: &[(usize, isize, usize)], width: usize) -> Option<(Shape, usize, usize)> {
    if ranges.len() != shape.len() {
        return None;
    }
    let steps = strides(shape);
    let whole = |(r, &d): (&(usize, isize, usize), &usize)| *r == (0, 1, d);
    // One index of each dimension before the one that is cut, all of each behind it.
    let cut = ranges.iter().position(|r| r.2 != 1).unwrap_or(ranges.len());
    let tail = ranges.iter().zip(shape).skip(cut + 1).all(whole);
    if !tail || ranges.get(cut).is_some_and(|r| r.1 != 1) {
        return None;
    }
    let at: usize = ranges.iter().zip(&steps).map(|(r, s)| r.0 * s).sum();
    let n: usize = ranges.iter().map(|r| r.2).product();
    Some((Shape::from_slice(shape), at * width, n * width))
}

struct Ranges<'a>(&'a [(usize, isize, usize)]);

impl Move for Ranges<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (s, d) = single(src, dst)?;
        let steps = strides(s.shape);
        let sizes: SmallVec<[usize; 8]> = self.0.iter().map(|r| r.2).collect();
        if elements(&sizes) != d.data.len() {
            return Err(wrong_shape());
        }
        if d.data.is_empty() {
            return Ok(());
        }
        let from = Steps {
            at: self.0.iter().zip(&steps).map(|(r, &s)| r.0 * s).sum(),
            steps: self.0.iter().zip(&steps).map(|(r, &s)| r.1.saturating_mul(s as isize)).collect(),
        };
        copy(&sizes, s.data, &from, d.data, &Steps::dense(&sizes))
    }
}

struct Split(usize);

impl Move for Split {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let s = src.first().ok_or_else(wrong_shape)?;
        let (outer, d, inner) = around(s.shape, self.0);
        let mut at = 0;
        for out in dst {
            let n = around(&out.shape, self.0).1 * inner;
            rows(s.data, at, d * inner, out.data, 0, n, n, outer)?;
            at += n;
        }
        Ok(())
    }
}

struct Pack(usize);

impl Move for Pack {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let out = dst.first_mut().ok_or_else(wrong_shape)?;
        let (outer, d, inner) = around(&out.shape, self.0);
        for (i, s) in src.iter().enumerate() {
            rows(s.data, 0, inner, out.data, i * inner, d * inner, inner, outer)?;
        }
        Ok(())
    }
}

struct Unpack(usize);

impl Move for Unpack {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let s = src.first().ok_or_else(wrong_shape)?;
        let (outer, d, inner) = around(s.shape, self.0);
        for (i, out) in dst.iter_mut().enumerate() {
            rows(s.data, i * inner, d * inner, out.data, 0, inner, inner, outer)?;
        }
        Ok(())
    }
}

struct Tile;

impl Move for Tile {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (s, d) = single(src, dst)?;
        if d.data.is_empty() {
            return Ok(());
        }
        // Each dimension as (copies, size): the copies have step 0 in the source.
        let steps = strides(s.shape);
        let mut sizes: SmallVec<[usize; 16]> = SmallVec::new();
        let mut from = Steps { at: 0, steps: SmallVec::new() };
        for ((&n, &m), &step) in s.shape.iter().zip(&d.shape).zip(&steps) {
            sizes.extend([m / n.max(1), n]);
            from.steps.extend([0, step as isize]);
        }
        copy(&sizes, s.data, &from, d.data, &Steps::dense(&sizes))
    }
}

struct Reverse<'a>(&'a [bool]);

impl Move for Reverse<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (s, d) = single(src, dst)?;
        if d.data.is_empty() {
            return Ok(());
        }
        let mut from = Steps::dense(s.shape);
        for ((step, &back), &n) in from.steps.iter_mut().zip(self.0).zip(s.shape) {
            if back {
                from.at += (n - 1) * *step as usize;
                *step = -*step;
            }
        }
        copy(s.shape, s.data, &from, d.data, &Steps::dense(s.shape))
    }
}

struct ReverseSequence<'a> {
    seq: usize,
    batch: usize,
    lengths: &'a [i64],
}

impl Move for ReverseSequence<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (s, d) = single(src, dst)?;
        let n = s.shape.get(self.seq).copied().ok_or_else(wrong_shape)?;
        let dense = Steps::dense(s.shape);
        let (seq_step, batch_step) = (dense.steps[self.seq], dense.steps[self.batch]);
        d.data.copy_from_slice(s.data);
        for (b, &length) in self.lengths.iter().enumerate() {
            let length = usize::try_from(length).ok().filter(|&l| l <= n);
            let length = length.ok_or_else(|| Error::invalid(format!("a sequence longer than {n}, or negative")))?;
            if length == 0 || self.seq == self.batch {
                continue;
            }
            let mut sizes: SmallVec<[usize; 8]> = SmallVec::from_slice(s.shape);
            sizes[self.batch] = 1;
            sizes[self.seq] = length;
            let to = Steps { at: b * batch_step as usize, steps: dense.steps.clone() };
            let mut from = to.clone();
            from.at += (length - 1) * seq_step as usize;
            from.steps[self.seq] = -seq_step;
            copy(&sizes, s.data, &from, d.data, &to)?;
        }
        Ok(())
    }
}

struct BroadcastTo;

impl Move for BroadcastTo {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let (s, d) = single(src, dst)?;
        let lead = d.shape.len().checked_sub(s.shape.len()).ok_or_else(wrong_shape)?;
        let own = strides(s.shape);
        let step = |i: usize| match i.checked_sub(lead).and_then(|j| Some((s.shape.get(j)?, own.get(j)?))) {
            Some((&n, &step)) if n != 1 => step as isize,
            _ => 0,
        };
        let from = Steps { at: 0, steps: (0..d.shape.len()).map(step).collect() };
        copy(&d.shape, s.data, &from, d.data, &Steps::dense(&d.shape))
    }
}

/// DYNAMIC_UPDATE_SLICE: the start is moved so that the update fits.
struct Update<'a>(&'a [i64]);

impl Move for Update<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let ([x, update], Some(d)) = (src, dst.first_mut()) else { return Err(wrong_shape()) };
        if self.0.len() != x.shape.len() || update.shape.len() != x.shape.len() {
            return Err(Error::invalid(format!("{} start indices for shape {:?}", self.0.len(), x.shape)));
        }
        d.data.copy_from_slice(x.data);
        let mut to = Steps::dense(x.shape);
        for (((&at, &n), &u), &step) in self.0.iter().zip(x.shape).zip(update.shape).zip(&strides(x.shape)) {
            let room = n.checked_sub(u).ok_or_else(wrong_shape)?;
            to.at += usize::try_from(at.max(0)).unwrap_or(room).min(room) * step;
        }
        copy(update.shape, update.data, &Steps::dense(update.shape), d.data, &to)
    }
}

struct Dilate<'a>(&'a [i64]);

impl Move for Dilate<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let value = src.get(1).and_then(|s| s.data.first().copied()).ok_or_else(wrong_shape)?;
        let (s, d) = single(src, dst)?;
        d.data.fill(value);
        let mut to = Steps::dense(&d.shape);
        for (step, &f) in to.steps.iter_mut().zip(self.0) {
            *step = step.saturating_mul(isize::try_from(f).unwrap_or(isize::MAX));
        }
        copy(s.shape, s.data, &Steps::dense(s.shape), d.data, &to)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use litegpu_graph::schema::*;

    fn ramp(shape: &[usize]) -> litegpu_graph::Tensor {
        i(shape, &(0..elements(shape) as i32).collect::<Vec<_>>())
    }

    #[test]
    fn transposes_of_rank_six_and_zero() {
        let shape = [2, 3, 1, 2, 3, 2];
        let perm = [5, 0, 3, 1, 4, 2];
        let (s, v) = one::<i32>(Op::Transpose, &[ramp(&shape), i(&[6], &perm)], DType::I32);
        let want: Vec<usize> = perm.iter().map(|&p| shape[p as usize]).collect();
        assert_eq!(s, want);
        let (own, new) = (strides(&shape), strides(&want));
        for (at, &x) in v.iter().enumerate() {
            let from: usize = (0..6).map(|d| at / new[d] % want[d] * own[perm[d] as usize]).sum();
            assert_eq!(x as usize, from);
        }
        assert_eq!(one::<i32>(Op::Transpose, &[ramp(&[]), i(&[0], &[])], DType::I32), (vec![], vec![0]));
        assert!(run(Op::Transpose, &[ramp(&[2, 2]), i(&[2], &[0, 0])], &[out(DType::I32)]).is_err());
        // Four bits per element: packed before and after.
        let x4 = x(DType::I4, &[2, 3], &[0x21u8, 0x43, 0x65]);
        let (_, v) = one::<u8>(Op::Transpose, &[x4, i(&[2], &[-1, 0])], DType::I4);
        assert_eq!(v, [0x41, 0x52, 0x63]);
    }

    #[test]
    fn slices_with_nothing_in_them() {
        let (s, v) = one::<i32>(Op::Slice, &[ramp(&[3, 4]), i(&[2], &[3, 0]), i(&[2], &[0, -1])], DType::I32);
        assert_eq!((s, v.len()), (vec![0, 4], 0));
        assert!(run(Op::Slice, &[ramp(&[3]), i(&[1], &[2]), i(&[1], &[2])], &[out(DType::I32)]).is_err());
        let o = StridedSliceOptionsT { begin_mask: 3, end_mask: 3, ..Default::default() };
        let args = [ramp(&[2, 3]), i(&[2], &[0, 0]), i(&[2], &[0, 0]), i(&[2], &[-1, -2])];
        assert_eq!(one::<i32>(Op::StridedSlice(o), &args, DType::I32), (vec![2, 2], vec![5, 3, 2, 0]));
    }

    #[test]
    fn strings_move_as_a_whole() {
        let text = crate::strings::encode(&["a", "bb", "", "dddd"]).unwrap();
        let t = litegpu_graph::Tensor::constant("", DType::String, &[2, 2], text);
        let v = run(Op::Transpose, &[t, i(&[2], &[1, 0])], &[out(DType::String)]).unwrap();
        assert_eq!(crate::strings::decode(v[0].bytes()).unwrap(), [b"a".as_slice(), b"", b"bb", b"dddd"]);
    }

    #[test]
    fn pads() {
        let (s, v) = one::<i32>(Op::Pad, &[ramp(&[2]), i(&[1, 2], &[1, 2])], DType::I32);
        assert_eq!((s, v), (vec![5], vec![0, 0, 1, 0, 0]));
        let value = i(&[], &[7]);
        let (_, v) = one::<i32>(Op::Padv2, &[ramp(&[0]), i(&[1, 2], &[1, 1]), value.clone()], DType::I32);
        assert_eq!(v, [7, 7]);
        let (_, v) = one::<i32>(Op::Padv2, &[ramp(&[2, 2]), i(&[2, 2], &[0, 0, 1, 2]), value.clone()], DType::I32);
        assert_eq!(v, [7, 0, 1, 7, 7, 7, 2, 3, 7, 7]);
        let (_, v) = one::<i32>(Op::Padv2, &[ramp(&[1, 2]), i(&[2, 2], &[1, 0, 1, 0]), value], DType::I32);
        assert_eq!(v, [7, 7, 7, 7, 0, 1]);
        let mode = |mode| Op::MirrorPad(MirrorPadOptionsT { mode });
        let (_, v) = one::<i32>(mode(MirrorPadMode::REFLECT), &[ramp(&[3]), i(&[1, 2], &[2, 1])], DType::I32);
        assert_eq!(v, [2, 1, 0, 1, 2, 1]);
        let (_, v) = one::<i32>(mode(MirrorPadMode::SYMMETRIC), &[ramp(&[3]), i(&[1, 2], &[2, 1])], DType::I32);
        assert_eq!(v, [1, 0, 0, 1, 2, 2]);
        let far = [ramp(&[3]), i(&[1, 2], &[3, 0])];
        assert!(run(mode(MirrorPadMode::REFLECT), &far, &[out(DType::I32)]).is_err());
        assert!(run(Op::Pad, &[ramp(&[2]), i(&[1, 2], &[-1, 0])], &[out(DType::I32)]).is_err());
    }

    #[test]
    fn space_and_batch_are_inverse() {
        let (blocks, edges) = (i(&[2], &[3, 2]), i(&[2, 2], &[1, 1, 0, 1]));
        let x = ramp(&[2, 4, 5, 2]);
        let (s, v) = one::<i32>(Op::SpaceToBatchNd, &[x.clone(), blocks.clone(), edges.clone()], DType::I32);
        assert_eq!(s, [12, 2, 3, 2]);
        let (s, v) = one::<i32>(Op::BatchToSpaceNd, &[i(&s, &v), blocks, edges], DType::I32);
        assert_eq!((s, v), (vec![2, 4, 5, 2], (0..80).collect()));
        let o = |block_size| DepthToSpaceOptionsT { block_size };
        let (s, v) = one::<i32>(Op::DepthToSpace(o(2)), &[ramp(&[1, 1, 2, 8])], DType::I32);
        assert_eq!((s.as_slice(), &v[..4]), ([1, 2, 4, 2].as_slice(), [0, 1, 2, 3].as_slice()));
        let back = Op::SpaceToDepth(SpaceToDepthOptionsT { block_size: 2 });
        assert_eq!(one::<i32>(back, &[i(&s, &v)], DType::I32).1, (0..16).collect::<Vec<_>>());
        assert!(run(Op::DepthToSpace(o(0)), &[ramp(&[1, 1, 2, 8])], &[out(DType::I32)]).is_err());
    }

    #[test]
    fn joins_and_splits() {
        let o = |axis| Op::Concatenation(ConcatenationOptionsT { axis, ..Default::default() });
        let (s, v) = one::<i32>(o(-1), &[ramp(&[2, 1]), ramp(&[2, 0]), ramp(&[2, 2])], DType::I32);
        assert_eq!((s, v), (vec![2, 3], vec![0, 0, 1, 1, 2, 3]));
        assert!(run(o(2), &[ramp(&[2, 1])], &[out(DType::I32)]).is_err());
        let a = q(x(DType::I8, &[2], &[10i8, -10]), 0.5, 0);
        let b = q(x(DType::I8, &[1], &[10i8]), 1.0, 5);
        let joined = run(o(0), &[a, b], &[q(out(DType::I8), 0.5, 0)]).unwrap();
        assert_eq!(joined[0].bytes(), [10, 246, 10]);
        let outs = [out(DType::I32), out(DType::I32)];
        let v = run(Op::SplitV(Default::default()), &[ramp(&[2, 3]), i(&[2], &[-1, 1]), i(&[], &[1])], &outs).unwrap();
        assert_eq!(v[0].as_slice::<i32>().unwrap(), [0, 1, 3, 4]);
        assert_eq!(v[1].as_slice::<i32>().unwrap(), [2, 5]);
        assert!(run(Op::Split(Default::default()), &[i(&[], &[0]), ramp(&[3])], &outs).is_err());
        let (s, v) =
            one::<i32>(Op::Pack(PackOptionsT { values_count: 2, axis: -1 }), &[ramp(&[2]), ramp(&[2])], DType::I32);
        assert_eq!((s, v), (vec![2, 2], vec![0, 0, 1, 1]));
        let v = run(Op::Unpack(UnpackOptionsT { num: 2, axis: 1 }), &[ramp(&[2, 2])], &outs).unwrap();
        assert_eq!(v[1].as_slice::<i32>().unwrap(), [1, 3]);
    }

    #[test]
    fn repeats_and_reversals() {
        let (s, v) = one::<i32>(Op::Tile, &[ramp(&[2, 2]), i(&[2], &[1, 2])], DType::I32);
        assert_eq!((s, v), (vec![2, 4], vec![0, 1, 0, 1, 2, 3, 2, 3]));
        assert_eq!(one::<i32>(Op::Tile, &[ramp(&[2]), i(&[1], &[0])], DType::I32).0, [0]);
        let (_, v) = one::<i32>(Op::BroadcastTo, &[ramp(&[2, 1]), i(&[3], &[2, 2, 3])], DType::I32);
        assert_eq!(v, [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]);
        assert!(run(Op::BroadcastTo, &[ramp(&[2]), i(&[1], &[3])], &[out(DType::I32)]).is_err());
        let (_, v) = one::<i32>(Op::ReverseV2, &[ramp(&[2, 3]), i(&[2], &[0, -1])], DType::I32);
        assert_eq!(v, [5, 4, 3, 2, 1, 0]);
        let o = ReverseSequenceOptionsT { seq_dim: 1, batch_dim: 0 };
        let (_, v) = one::<i32>(Op::ReverseSequence(o.clone()), &[ramp(&[2, 3]), i(&[2], &[2, 3])], DType::I32);
        assert_eq!(v, [1, 0, 2, 5, 4, 3]);
        assert!(run(Op::ReverseSequence(o), &[ramp(&[2, 3]), i(&[2], &[4, 3])], &[out(DType::I32)]).is_err());
    }

    #[test]
    fn updates_are_moved_inside() {
        let args = |at: i32| [ramp(&[4]), i(&[2], &[-1, -2]), i(&[1], &[at])];
        assert_eq!(one::<i32>(Op::DynamicUpdateSlice, &args(99), DType::I32).1, [0, 1, -1, -2]);
        assert_eq!(one::<i32>(Op::DynamicUpdateSlice, &args(-5), DType::I32).1, [-1, -2, 2, 3]);
    }
}
