//! GATHER, GATHER_ND, EMBEDDING_LOOKUP, and what scatters: SCATTER_ND, SPARSE_TO_DENSE and segment reductions.

use super::{MAX_LOOP, WG, acc};
use crate::convert;
use crate::lower::{Lower, Lowered, Operand, Params, line, no};
use crate::program::{SlotId, quads, row_quads, tail};
use litegpu_graph::ops::axis;
use litegpu_graph::{DType, Op, Shape, elements};
use litegpu_shaders::{Elem, KernelKey, Step};

/// The kernel's view: which dimensions are gathered, and what lies before and behind them.
struct Gather {
    /// (size, stride in memory) of each gathered dimension.
    dims: Vec<(usize, usize)>,
    /// Elements behind.
    inner: usize,
    /// Tuples of indices in a batch.
    tuples: usize,
    /// Outer elements in a batch, and their distance in memory.
    outer: usize,
    outer_stride: usize,
}

/// The i-th operand as int32 indices in the padded layout, with its shape. Constants of 64 bits are narrowed.
pub(super) fn indices(cx: &mut Lower<'_, '_>, i: usize) -> Lowered<(SlotId, Shape)> {
    let Some(t) = cx.node.input(i) else { return no(format!("operand {i} is missing")) };
    if let Some(c) = cx.constant(i)?
        && c.dtype == DType::I64
    {
        if convert::ints(&c).is_none_or(|v| v.iter().any(|&v| i32::try_from(v).is_err())) {
            return no("indices of more than 32 bits");
        }
        if elements(&c.shape) == 0 {
            return no("an operand without elements");
        }
        let slot = cx.packed(t, Elem::I32, "narrow", || convert::pad(&c, Elem::I32))?;
        return Ok((slot, c.shape));
    }
    let o = cx.operand(i)?;
    if o.dtype != DType::I32 {
        return no(format!("{} indices", o.dtype));
    }
    Ok((o.slot, o.shape))
}

/// Refuses constant index tuples that are out of range: the CPU reports them.
fn check(cx: &Lower<'_, '_>, i: usize, sizes: &[usize]) -> Lowered {
    let Some(v) = cx.constant(i)?.and_then(|c| convert::ints(&c)) else { return Ok(()) };
    let mut pairs = v.chunks(sizes.len().max(1)).flat_map(|tuple| tuple.iter().zip(sizes));
    match pairs.find(|&(&v, &n)| !usize::try_from(v).is_ok_and(|v| v < n)) {
        Some((v, n)) => no(format!("index {v} is out of range for {n} elements")),
        None => Ok(()),
    }
}

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    if cx.node.op == Op::ScatterNd {
        return scatter(cx);
    }
    if cx.node.op == Op::EmbeddingLookup && matches!(cx.tensor(1)?.dtype, DType::I8 | DType::I4) {
        return quantized_table(cx);
    }
    let (values, indices) = match cx.node.op {
        Op::EmbeddingLookup => (1, 0),
        _ => (0, 1),
    };
    let x = cx.operand(values)?;
    let (slot, i) = self::indices(cx, indices)?;
    let s: Vec<usize> = super::layout::strides(&x.shape).into_iter().map(|s| s as usize).collect();
    let rank = x.shape.len();
    let size = |from: usize, to: usize| x.shape.get(from..to).unwrap_or_default().iter().product::<usize>();
    let at = |d: usize| (x.shape.get(d).copied().unwrap_or(1), s.get(d).copied().unwrap_or(1));
    let how = match &cx.node.op {
        Op::EmbeddingLookup => {
            Gather { dims: vec![at(0)], inner: size(1, rank), tuples: elements(&i), outer: 1, outer_stride: 0 }
        }
        Op::Gather(o) => {
            let a = axis(o.axis as i64, rank)?;
            let batch = if o.batch_dims < 0 { o.batch_dims as i64 + i.len() as i64 } else { o.batch_dims as i64 };
            let Some(batch) = usize::try_from(batch).ok().filter(|&b| b <= a && b <= i.len()) else {
                return no("batch dimensions that do not fit");
            };
            let tuples = elements(i.get(batch..).unwrap_or_default());
            Gather {
                dims: vec![at(a)],
                inner: size(a + 1, rank),
                tuples,
                outer: size(batch, a),
                outer_stride: if a > 0 { at(a - 1).1 } else { 0 },
            }
        }
        Op::GatherNd => {
            let Some((&depth, rows)) = i.split_last().filter(|(d, _)| **d <= rank.min(6)) else {
                return no("index tuples that do not fit");
            };
            Gather {
                dims: (0..depth).map(at).collect(),
                inner: size(depth, rank),
                tuples: elements(rows),
                outer: 1,
                outer_stride: 0,
            }
        }
        _ => return no("no GPU kernel"),
    };
    let sizes: Vec<usize> = how.dims.iter().map(|(n, _)| *n).collect();
    check(cx, indices, &sizes)?;
    let y = cx.result(0)?;
    if x.elem.is_float() != y.elem.is_float() || (!x.elem.is_float() && x.elem != y.elem) {
        return no(format!("{} to {}", x.dtype, y.dtype));
    }
    emit(cx, &how, &x, (slot, &i), &y)
}

fn emit(
    cx: &mut Lower<'_, '_>,
    g: &Gather,
    x: &Operand<'_>,
    (slot, i): (SlotId, &[usize]),
    y: &Operand<'_>,
) -> Lowered {
    // Where the innermost dimension is not gathered, an output row is a piece of an operand row.
    let kept =
        g.inner.is_multiple_of(x.inner()) && g.dims.iter().all(|(_, s)| s.is_multiple_of(4)) && y.inner() == x.inner();
    let vec = kept && (g.inner > 1 || x.inner() > 1 || x.shape.len() > g.dims.len());
    let key =
        KernelKey::new("gather", &[("in0", x.elem), ("acc", acc(x.elem)), ("out", y.elem)]).set("VEC", vec as i32);
    // Gathered down to single elements, the operand has no row of its own to step through.
    let (width, pitch) = if g.inner == 1 { (1, 1) } else { (x.inner(), row_quads(&x.shape) * 4) };
    let mut params = Params::new()
        .u(y.quads())
        .u(y.row_quads())
        .u(y.inner())
        .u(g.dims.len())
        .u(g.inner)
        .u(g.tuples)
        .u(g.outer)
        .u(width)
        .u(pitch)
        .u(g.outer_stride)
        .u(i.last().copied().unwrap_or(1))
        .u(row_quads(i) * 4);
    for k in 0..6 {
        let (n, s) = g.dims.get(k).copied().unwrap_or((1, 0));
        params = params.u(n).u(s).u(0).u(0);
    }
    cx.dispatch(key, &[x.slot, slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}

/// Comparisons of output quads with updates up to which the kernel, which makes all of them, is worth it.
const MAX_STEPS: usize = 1 << 26;

/// Updates that go to places of the result.
struct Scatter<'a> {
    /// How updates of one place are combined, from what value on (f32 or i32 bits).
    combine: &'static str,
    start: u32,
    /// Indices, the size of their innermost dimension, and of it in memory.
    index: SlotId,
    index_width: usize,
    index_pitch: usize,
    tuples: usize,
    /// (size, stride in elements) of each dimension of the result that is indexed.
    dims: Vec<(usize, usize)>,
    /// Elements of an update.
    inner: usize,
    updates: Operand<'a>,
    /// Every update is the first one.
    same: bool,
    step: Option<Step>,
}

impl Scatter<'_> {
    fn emit(self, cx: &mut Lower<'_, '_>, y: &Operand<'_>) -> Lowered {
        let u = &self.updates;
        if u.elem.is_float() != y.elem.is_float() || (!u.elem.is_float() && u.elem != y.elem) {
            return no(format!("{} to {}", u.dtype, y.dtype));
        }
        if self.tuples > MAX_LOOP || self.tuples.saturating_mul(y.quads()) > MAX_STEPS {
            return no(format!("{} updates of {} elements are too many", self.tuples, elements(&y.shape)));
        }
        if self.dims.len() > 6 {
            return no("more than 6 indices in a tuple");
        }
        // Updates are whole rows.
        let vec = self.inner > 1 && u.inner() == y.inner() && self.inner.is_multiple_of(y.inner());
        let mut key = KernelKey::new("scatter", &[("in0", u.elem), ("acc", acc(u.elem)), ("out", y.elem)])
            .with("COMBINE", self.combine)
            .set("VEC", vec as i32);
        key.epilogue.extend(self.step);
        let (width, pitch) = if self.same { (1, 0) } else { (u.inner(), u.row_quads() * 4) };
        let mut params = Params::new()
            .u(y.quads())
            .u(y.row_quads())
            .u(y.inner())
            .u(self.tuples)
            .u(self.dims.len())
            .u(self.inner)
            .u(self.index_width.max(1))
            .u(self.index_pitch)
            .u(width)
            .u(pitch)
            .i(self.start as i32)
            .row();
        for k in 0..6 {
            let (n, s) = self.dims.get(k).copied().unwrap_or((1, 1));
            params = params.u(n).u(s).u(0).u(0);
        }
        cx.dispatch(key, &[self.index, u.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
    }
}

/// (size, stride in elements) of a tensor's first `depth` dimensions.
fn places(shape: &[usize], depth: usize) -> Vec<(usize, usize)> {
    let dims = shape.iter().take(depth).enumerate();
    dims.map(|(k, &n)| (n, elements(shape.get(k + 1..).unwrap_or_default()))).collect()
}

fn scatter(cx: &mut Lower<'_, '_>) -> Lowered {
    let (index, i) = indices(cx, 0)?;
    let (u, y) = (cx.operand(1)?, cx.result(0)?);
    let rank = y.shape.len();
    let Some((&depth, tuples)) = i.split_last().filter(|(d, _)| **d <= rank) else {
        return no("index tuples that do not fit");
    };
    if u.dtype == DType::Bool {
        return no(format!("{} to {}", u.dtype, y.dtype));
    }
    check(cx, 0, y.shape.get(..depth).unwrap_or_default())?;
    let how = Scatter {
        combine: if u.elem.is_float() { "f_add" } else { "i_add" },
        start: 0,
        index,
        index_width: depth,
        index_pitch: row_quads(&i) * 4,
        tuples: elements(tuples),
        dims: places(&y.shape, depth),
        inner: elements(y.shape.get(depth..).unwrap_or_default()),
        updates: u,
        same: false,
        // 8-bit sums wrap, as the reference's do.
        step: match y.elem {
            Elem::I8 => Some(Step::call("to_byte", &[])),
            Elem::U8 => Some(Step::call("to_ubyte", &[])),
            _ => None,
        },
    };
    how.emit(cx, &y)
}

/// SPARSE_TO_DENSE: a later value for the same place replaces an earlier one.
pub(super) fn sparse(cx: &mut Lower<'_, '_>) -> Lowered {
    let (index, i) = indices(cx, 0)?;
    let (values, y) = (cx.operand(2)?, cx.result(0)?);
    let start = match values.elem.is_float() {
        true => cx.floats(3)?.and_then(|v| v.first().map(|v| v.to_bits())),
        false => cx.constant(3)?.and_then(|c| Some(*convert::ints(&c)?.first()? as i32 as u32)),
    };
    let Some(start) = start else { return no("a computed default value") };
    // A scalar or a vector holds indices of one dimension, a matrix one tuple per row.
    let depth = if i.len() == 2 { i.last().copied().unwrap_or(1) } else { 1 };
    if depth != y.shape.len() {
        return no("index tuples that do not fit");
    }
    check(cx, 0, &y.shape)?;
    let tuples = elements(&i) / depth.max(1);
    let same = values.shape.is_empty();
    if !same && elements(&values.shape) != tuples {
        return no(format!("{} values for {tuples} indices", elements(&values.shape)));
    }
    let how = Scatter {
        combine: if values.elem.is_float() { "later_f" } else { "later_i" },
        start,
        index,
        index_width: i.last().copied().unwrap_or(1),
        index_pitch: row_quads(&i) * 4,
        tuples,
        dims: places(&y.shape, depth),
        inner: 1,
        updates: values,
        same,
        step: None,
    };
    how.emit(cx, &y)
}

/// SEGMENT_SUM and UNSORTED_SEGMENT_...: rows of the operand are combined in the rows of the result that a segment number
/// each names.
pub(super) fn segments(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    let float = match x.dtype {
        DType::F32 => true,
        DType::I32 => false,
        d => return no(format!("no GPU kernel for {} of {d}", cx.node.op.name())),
    };
    let pick =
        |f: (&'static str, f32), i: (&'static str, i32)| if float { (f.0, f.1.to_bits()) } else { (i.0, i.1 as u32) };
    let (combine, start) = match cx.node.op {
        Op::SegmentSum | Op::UnsortedSegmentSum => pick(("f_add", 0.0), ("i_add", 0)),
        Op::UnsortedSegmentProd => pick(("f_mul", 1.0), ("i_mul", 1)),
        Op::UnsortedSegmentMax => pick(("f_max", f32::MIN), ("i_max", i32::MIN)),
        Op::UnsortedSegmentMin => pick(("f_min", f32::MAX), ("i_min", i32::MAX)),
        _ => return no("no GPU kernel"),
    };
    let (index, i) = indices(cx, 1)?;
    let y = cx.result(0)?;
    let Some((&segments, behind)) = y.shape.split_first() else { return no("a scalar result") };
    let inner = elements(behind);
    if x.shape.get(..i.len()) != Some(i.as_slice()) || x.shape.get(i.len()..) != Some(behind) {
        return no("segment numbers that do not fit");
    }
    let sorted = cx.node.op == Op::SegmentSum;
    if let Some(ids) = cx.constant(1)?.and_then(|c| convert::ints(&c)) {
        // The CPU reports what is wrong. Negative numbers leave a row out, where numbers need not be sorted.
        let past = ids.iter().any(|&v| v >= segments as i64);
        if past || (sorted && (!ids.is_sorted() || ids.iter().any(|&v| v < 0))) {
            return no("segment numbers that are out of range or out of order");
        }
    } else if sorted {
        return no("computed segment numbers that must be sorted");
    }
    let how = Scatter {
        combine,
        start,
        index,
        index_width: i.last().copied().unwrap_or(1),
        index_pitch: row_quads(&i) * 4,
        tuples: elements(&i),
        dims: vec![(segments, inner)],
        inner,
        updates: x,
        same: false,
        step: None,
    };
    how.emit(cx, &y)
}

/// EMBEDDING_LOOKUP in a constant table of int8 or int4, which stays that small.
fn quantized_table(cx: &mut Lower<'_, '_>) -> Lowered {
    let (Some(t), Some(c)) = (cx.node.input(1), cx.constant(1)?) else { return no("a computed quantized table") };
    let Some((&rows, rest)) = c.shape.split_first().filter(|(_, rest)| !rest.is_empty()) else {
        return no("a table without rows");
    };
    let y = cx.result(0)?;
    let quant = cx.tensor(1)?.quant.as_ref();
    let scale = quant.map(|q| q.scale.clone()).unwrap_or_default();
    if !y.elem.is_float() {
        return no(format!("{} to {}", c.dtype, y.dtype));
    }
    if scale.is_empty() || !(scale.len() == 1 || scale.len() == rows) {
        return no("a quantized table that has neither one scale nor one a row");
    }
    if quant.is_some_and(|q| q.zero_point.iter().any(|&z| z != 0) || (scale.len() > 1 && q.axis != 0)) {
        return no("a quantized table with zero points, or with scales that are not a row's");
    }
    let block = quads(rest);
    let (bits, words) = if c.dtype == DType::I4 { (4, block.div_ceil(2)) } else { (8, block) };
    check(cx, 0, &[rows])?;
    let (slot, _) = indices(cx, 0)?;
    let table = cx.packed(t, Elem::I8, if bits == 4 { "int4 rows" } else { "" }, || match bits {
        4 => Ok(nibbles(&c.bytes, rows, rest, words)),
        _ => convert::pad(&c, Elem::I8),
    })?;
    let scales = cx.weight(|| Ok(scale.iter().flat_map(|s| s.to_le_bytes()).collect()))?;
    let key = KernelKey::new("embedding", &[("acc", Elem::F32), ("out", y.elem)]).set("BITS", bits);
    let params = Params::new()
        .u(y.quads())
        .u(y.row_quads())
        .u(tail(&y.shape))
        .u(block)
        .u(words)
        .u(rows)
        .u(usize::from(scale.len() > 1));
    cx.dispatch(key, &[slot, table, scales], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}

/// A table of int4 (dense, low nibble first) with every row from a new word on, its innermost dimension padded to
/// quads.
fn nibbles(bytes: &[u8], rows: usize, rest: &[usize], words: usize) -> Vec<u8> {
    let (inner, pitch) = (rest.last().copied().unwrap_or(1).max(1), row_quads(rest) * 4);
    let count = elements(rest).max(1);
    let mut out = vec![0u8; rows * words * 4];
    for e in 0..rows * count {
        let (row, at) = (e / count, e % count);
        let at = (at / inner) * pitch + at % inner;
        let nibble = (bytes.get(e / 2).copied().unwrap_or(0) >> (e % 2 * 4)) & 15;
        if let Some(b) = out.get_mut(row * words * 4 + at / 2) {
            *b |= nibble << (at % 2 * 4);
        }
    }
    out
}
