//! Operators that move elements. Each is one or more runs of the `copy` kernel: a region of the output, and for each
//! of its dimensions a stride into the operand's memory.

use super::{WG, acc, is_quantized};
use crate::lower::{Lower, Lowered, Operand, Params, line, no};
use crate::program::{row_quads, rows};
use litegpu_graph::ops::axis;
use litegpu_graph::schema::MirrorPadMode;
use litegpu_graph::{DType, Op, elements};
use litegpu_shaders::{KernelKey, Step};

/// A dimension of a region: its size, its stride in the operand's memory (elements, padding included) and the part
/// of it that the operand has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dim {
    pub n: usize,
    pub stride: i64,
    pub low: usize,
    pub high: usize,
}

impl Dim {
    pub fn whole(n: usize, stride: i64) -> Dim {
        Dim { n, stride, low: 0, high: n }
    }
    fn is_whole(&self) -> bool {
        self.low == 0 && self.high == self.n
    }
}

/// What is outside the operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outside {
    Nothing,
    /// A constant, as f32 or i32 bits.
    Value(u32),
    /// The mirror image without (2) or with (3) the edge.
    Mirror(i32),
}

/// One run of the kernel.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    /// Innermost first.
    pub dims: Vec<Dim>,
    /// Address of the element with all coordinates 0.
    pub base: i64,
    pub outside: Outside,
    /// The region: its rows, elements in a row, and where rows go (see the kernel).
    pub rows: usize,
    pub width: usize,
    pub group: usize,
    pub pitch: usize,
    pub first: usize,
    /// The region's first element in an output row.
    pub start: usize,
    pub steps: Vec<Step>,
}

/// The strides of a tensor's dimensions in memory, outermost first.
pub(super) fn strides(shape: &[usize]) -> Vec<i64> {
    let mut out = vec![1i64; shape.len()];
    let mut next = (row_quads(shape) * 4) as i64;
    for d in (0..shape.len().saturating_sub(1)).rev() {
        if let (Some(s), Some(&n)) = (out.get_mut(d), shape.get(d)) {
            *s = next;
            next *= n as i64;
        }
    }
    out
}

impl Copy {
    /// The whole output.
    pub fn all(y: &Operand<'_>, dims: Vec<Dim>) -> Copy {
        let rows = rows(&y.shape);
        Copy {
            dims,
            base: 0,
            outside: Outside::Nothing,
            rows,
            width: y.inner(),
            group: rows.max(1),
            pitch: 0,
            first: 0,
            start: 0,
            steps: Vec::new(),
        }
    }

    /// The slab `[start, start + n)` of one axis of the output.
    pub fn slab(y: &Operand<'_>, axis: usize, start: usize, n: usize, dims: Vec<Dim>) -> Copy {
        let rank = y.shape.len();
        let mut c = Copy::all(y, dims);
        if axis + 1 >= rank {
            c.width = n;
            c.start = start;
            return c;
        }
        let inner: usize = y.shape.get(axis + 1..rank - 1).unwrap_or_default().iter().product();
        let whole = y.shape.get(axis).copied().unwrap_or(1);
        c.rows = rows(&y.shape) / whole.max(1) * n;
        c.group = (n * inner).max(1);
        c.pitch = whole * inner;
        c.first = start * inner;
        c
    }

    pub fn emit(mut self, cx: &mut Lower<'_, '_>, x: &Operand<'_>, y: &Operand<'_>) -> Lowered {
        // Neighbouring dimensions that follow each other in memory are one.
        let mut dims: Vec<Dim> = Vec::new();
        for d in self.dims.drain(..).filter(|d| d.n != 1 || !d.is_whole()) {
            match dims.last_mut() {
                Some(l) if l.is_whole() && d.is_whole() && d.stride == l.stride * l.n as i64 => {
                    *l = Dim::whole(l.n * d.n, l.stride);
                }
                _ => dims.push(d),
            }
        }
        if dims.is_empty() {
            dims.push(Dim::whole(1, 1));
        }
        if dims.len() > 8 {
            return no("more than 8 dimensions to move");
        }
        if dims.iter().all(Dim::is_whole) {
            self.outside = Outside::Nothing;
        }
        // The coordinate of a padded dimension counts from its padding.
        self.base -= dims.iter().map(|d| d.low as i64 * d.stride).sum::<i64>();
        let inner = dims.first().copied().unwrap_or(Dim::whole(1, 1));
        let aligned = dims.iter().skip(1).all(|d| d.stride % 4 == 0) && self.base % 4 == 0;
        // A quad is inside or outside, never both.
        let bounds = match self.outside {
            Outside::Value(_) => inner.n % 4 == 0 && inner.low % 4 == 0 && inner.high % 4 == 0,
            _ => false,
        };
        let vec = inner.stride == 1
            && (inner.is_whole() || bounds)
            && (inner.n == self.width || (self.width % 4 == 0 && inner.n % 4 == 0))
            && aligned
            && self.start % 4 == 0
            // Behind the region's last quad in a row there must be nothing that a whole quad would overwrite.
            && (self.width % 4 == 0 || self.start + self.width == y.inner());
        let (pad, outside) = match self.outside {
            Outside::Nothing => (0, 0),
            Outside::Value(v) => (1, v),
            Outside::Mirror(m) => (m, 0),
        };
        let fits = |v: i64| i32::try_from(v).map_err(|_| crate::lower::Unsupported::new("an address past 2^31"));
        let lane = self.start % 4;
        let row = (lane + self.width).div_ceil(4);
        let quads = self.rows * row;
        let mut params = Params::new()
            .u(quads)
            .u(row)
            .u(self.width)
            .u(dims.len())
            .u(self.group)
            .u(self.pitch)
            .u(self.first)
            .u(y.row_quads())
            .u(self.start / 4)
            .u(lane)
            .i(fits(self.base)?)
            .i(outside as i32);
        for i in 0..8 {
            let d = dims.get(i).copied().unwrap_or(Dim::whole(1, 0));
            params = params.i4([fits(d.n as i64)?, fits(d.stride)?, fits(d.low as i64)?, fits(d.high as i64)?]);
        }
        let mut key = KernelKey::new("copy", &[("in0", x.elem), ("acc", acc(x.elem)), ("out", y.elem)])
            .set("VEC", vec as i32)
            .set("PAD", pad);
        key.epilogue = self.steps;
        cx.dispatch(key, &[x.slot], &[y.slot], &[], params, line(quads.div_ceil(WG)))
    }
}

/// Dimensions of the whole operand, innermost first.
pub(super) fn plain(shape: &[usize]) -> Vec<Dim> {
    shape.iter().zip(strides(shape)).rev().map(|(&n, s)| Dim::whole(n, s)).collect()
}

/// What a fused copy needs when operand and result are quantized differently: nothing, or a refusal.
fn same_quant(x: &Operand<'_>, y: &Operand<'_>) -> Lowered {
    if x.dtype != y.dtype {
        return no(format!("{} to {}", x.dtype, y.dtype));
    }
    if is_quantized(x) && is_quantized(y) && x.scale_zero()? != y.scale_zero()? {
        return no("a result quantized differently than its operand");
    }
    Ok(())
}

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    match &cx.node.op {
        Op::Concatenation(o) => {
            if o.fused_activation_function.0 != 0 {
                return no("a fused activation on CONCATENATION");
            }
            let axis = o.axis;
            concat(cx, axis as i64)
        }
        Op::Pack(o) => {
            let axis = o.axis;
            pack(cx, axis as i64)
        }
        Op::Unpack(o) => {
            let at = o.axis;
            let x = cx.operand(0)?;
            let at = axis(at as i64, x.shape.len())?;
            let s = strides(&x.shape);
            for o in 0..cx.node.outputs.len() {
                let y = cx.result(o)?;
                same_quant(&x, &y)?;
                let dims = x.shape.iter().zip(&s).enumerate().rev();
                let dims = dims.filter(|(d, _)| *d != at).map(|(_, (&n, &s))| Dim::whole(n, s)).collect();
                let mut c = Copy::all(&y, dims);
                c.base = o as i64 * s.get(at).copied().unwrap_or(0);
                c.emit(cx, &x, &y)?;
            }
            Ok(())
        }
        Op::Split(_) => split(cx, 1, cx.ints(0)?.first().copied().unwrap_or(0)),
        Op::SplitV(_) => split(cx, 0, cx.ints(2)?.first().copied().unwrap_or(0)),
        Op::Transpose => {
            let x = cx.operand(0)?;
            let order = cx.ints(1)?;
            let y = cx.result(0)?;
            same_quant(&x, &y)?;
            let s = strides(&x.shape);
            let mut dims = Vec::new();
            for &p in order.iter().rev() {
                let a = axis(p, x.shape.len())?;
                dims.push(Dim::whole(x.shape.get(a).copied().unwrap_or(1), s.get(a).copied().unwrap_or(0)));
            }
            Copy::all(&y, dims).emit(cx, &x, &y)
        }
        Op::Slice => {
            let x = cx.operand(0)?;
            let begin = cx.ints(1)?;
            let steps = vec![1i64; x.shape.len()];
            strided(cx, &x, &begin, &steps, None)
        }
        Op::StridedSlice(_) => strided_slice(cx),
        Op::ReverseV2 => {
            let x = cx.operand(0)?;
            let axes = cx.ints(1)?;
            let y = cx.result(0)?;
            same_quant(&x, &y)?;
            let mut s = strides(&x.shape);
            let mut base = 0;
            for a in axes {
                let a = axis(a, x.shape.len())?;
                if let (Some(s), Some(&n)) = (s.get_mut(a), x.shape.get(a))
                    && *s > 0
                {
                    base += *s * (n as i64 - 1);
                    *s = -*s;
                }
            }
            let dims = x.shape.iter().zip(&s).rev().map(|(&n, &s)| Dim::whole(n, s)).collect();
            let mut c = Copy::all(&y, dims);
            c.base = base;
            c.emit(cx, &x, &y)
        }
        Op::Tile => {
            let x = cx.operand(0)?;
            let y = cx.result(0)?;
            same_quant(&x, &y)?;
            let mut dims = Vec::new();
            for ((&n, s), &total) in x.shape.iter().zip(strides(&x.shape)).zip(&y.shape).rev() {
                dims.push(Dim::whole(n, s));
                dims.push(Dim::whole(total / n.max(1), 0));
            }
            Copy::all(&y, dims).emit(cx, &x, &y)
        }
        Op::BroadcastTo => {
            let x = cx.operand(0)?;
            let y = cx.result(0)?;
            same_quant(&x, &y)?;
            spread(cx, &x, &y)
        }
        Op::DynamicUpdateSlice => update(cx),
        Op::ReverseSequence(o) => {
            let (steps, batch) = (o.seq_dim, o.batch_dim);
            reverse(cx, steps as i64, batch as i64)
        }
        Op::Pad | Op::Padv2 | Op::MirrorPad(_) => pad(cx),
        Op::DepthToSpace(o) => {
            let b = o.block_size as usize;
            let (x, y) = (cx.operand(0)?, cx.result(0)?);
            same_quant(&x, &y)?;
            let ([_, h, w, c], true) = (four(&x)?, b >= 1) else { return no("block size 0") };
            let depth = c / (b * b);
            let s = strides(&x.shape);
            let dims = vec![
                Dim::whole(depth, 1),
                Dim::whole(b, depth as i64),
                Dim::whole(w, s[2]),
                Dim::whole(b, (b * depth) as i64),
                Dim::whole(h, s[1]),
                Dim::whole(x.shape[0], s[0]),
            ];
            Copy::all(&y, dims).emit(cx, &x, &y)
        }
        Op::SpaceToDepth(o) => {
            let b = o.block_size as usize;
            let (x, y) = (cx.operand(0)?, cx.result(0)?);
            same_quant(&x, &y)?;
            let ([n, h, w, c], true) = (four(&x)?, b >= 1) else { return no("block size 0") };
            let s = strides(&x.shape);
            let dims = vec![
                Dim::whole(c, 1),
                Dim::whole(b, s[2]),
                Dim::whole(b, s[1]),
                Dim::whole(w / b, s[2] * b as i64),
                Dim::whole(h / b, s[1] * b as i64),
                Dim::whole(n, s[0]),
            ];
            Copy::all(&y, dims).emit(cx, &x, &y)
        }
        Op::BatchToSpaceNd => batch_to_space(cx),
        Op::SpaceToBatchNd => space_to_batch(cx),
        _ => no("no GPU kernel"),
    }
}

/// Broadcasts `x` to the shape of `y`.
pub(super) fn spread(cx: &mut Lower<'_, '_>, x: &Operand<'_>, y: &Operand<'_>) -> Lowered {
    let lead = y.shape.len().saturating_sub(x.shape.len());
    let s = strides(&x.shape);
    let mut dims = Vec::new();
    for (d, &n) in y.shape.iter().enumerate().rev() {
        let from = d.checked_sub(lead).and_then(|d| Some((x.shape.get(d)?, s.get(d)?)));
        dims.push(match from {
            Some((&m, &s)) if m == n => Dim::whole(n, s),
            _ => Dim::whole(n, 0),
        });
    }
    Copy::all(y, dims).emit(cx, x, y)
}

/// DYNAMIC_UPDATE_SLICE.
fn update(cx: &mut Lower<'_, '_>) -> Lowered {
    let (x, u) = (cx.operand(0)?, cx.operand(1)?);
    let (first, n) = super::gather::indices(cx, 2)?;
    let y = cx.result(0)?;
    same_quant(&x, &y)?;
    same_quant(&u, &y)?;
    let rank = y.shape.len();
    let fits = u.shape.len() == rank && u.shape.iter().zip(&y.shape).all(|(u, n)| u <= n);
    if x.shape != y.shape || !fits || n.as_slice() != [rank] {
        return no("an update that does not fit");
    }
    if rank > 6 {
        return no("more than 6 dimensions");
    }
    let vec = rank > 1 && u.inner() == y.inner();
    let key = KernelKey::new("update", &[("in0", x.elem), ("in1", u.elem), ("acc", acc(x.elem)), ("out", y.elem)])
        .set("VEC", vec as i32);
    let mut params = Params::new().u(y.quads()).u(y.row_quads()).u(y.inner()).u(rank);
    let s = strides(&u.shape);
    for d in (0..rank).rev() {
        let size = |shape: &[usize]| shape.get(d).copied().unwrap_or(1);
        let stride = s.get(d).copied().unwrap_or(0) as usize;
        params = params.u(size(&y.shape)).u(size(&u.shape)).u(stride).u(d);
    }
    for _ in rank..6 {
        params = params.u(1).u(1).u(0).u(0);
    }
    cx.dispatch(key, &[first, x.slot, u.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}

/// REVERSE_SEQUENCE along dimension `steps`, with a length for each index of dimension `batch`.
fn reverse(cx: &mut Lower<'_, '_>, steps: i64, batch: i64) -> Lowered {
    let x = cx.operand(0)?;
    let (lengths, n) = super::gather::indices(cx, 1)?;
    let y = cx.result(0)?;
    same_quant(&x, &y)?;
    let rank = x.shape.len();
    let (steps, batch) = (axis(steps, rank)?, axis(batch, rank)?);
    let size = |d: usize| x.shape.get(d).copied().unwrap_or(1);
    let behind = |d: usize| elements(x.shape.get(d + 1..).unwrap_or_default());
    if steps == batch || n.as_slice() != [size(batch)] {
        return no("lengths that do not fit");
    }
    if let Some(v) = cx.constant(1)?.and_then(|c| crate::convert::ints(&c))
        && v.iter().any(|&v| v < 0 || v > size(steps) as i64)
    {
        return no(format!("a sequence longer than {}, or negative", size(steps)));
    }
    let vec = steps + 1 != rank && batch + 1 != rank;
    let key =
        KernelKey::new("reverse", &[("in0", x.elem), ("acc", acc(x.elem)), ("out", y.elem)]).set("VEC", vec as i32);
    let params = Params::new()
        .u(y.quads())
        .u(y.row_quads())
        .u(y.inner())
        .u(size(steps))
        .u(behind(steps))
        .u(size(batch))
        .u(behind(batch));
    cx.dispatch(key, &[lengths, x.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}

/// A uint8 operand of CONCATENATION in the result's quantization: by a table, in the reference's f32 arithmetic.
fn rescaled<'a>(cx: &mut Lower<'a, '_>, x: Operand<'a>, y: &Operand<'_>) -> Lowered<Operand<'a>> {
    if x.dtype != DType::U8 || !is_quantized(&x) || !is_quantized(y) || x.scale_zero()? == y.scale_zero()? {
        same_quant(&x, y)?;
        return Ok(x);
    }
    let ((sx, zx), (sy, zy)) = (x.scale_zero()?, y.scale_zero()?);
    let scale = sx * (1.0 / sy);
    let bias = -(zx as f32) * scale;
    let entry = |v: u8| ((v as f32 * scale + bias).round() as i32).saturating_add(zy).clamp(0, 255) as u8;
    let to = Operand { slot: cx.temp(&x.shape, x.elem), constant: false, ..x.clone() };
    super::unary::look_up(cx, &x, &to, (0..=255).map(entry).collect())?;
    Ok(to)
}

/// A tensor of rank 4.
fn four(x: &Operand<'_>) -> Lowered<[usize; 4]> {
    match x.shape.as_slice() {
        &[a, b, c, d] => Ok([a, b, c, d]),
        s => no(format!("rank {}", s.len())),
    }
}

fn concat(cx: &mut Lower<'_, '_>, at: i64) -> Lowered {
    let y = cx.result(0)?;
    let at = axis(at, y.shape.len())?;
    let mut start = 0;
    for i in 0..cx.node.inputs.len() {
        // An operand without elements contributes nothing.
        if let Some(t) = cx.node.input(i)
            && elements(&cx.scene.shape(t)?) == 0
        {
            continue;
        }
        let x = cx.operand(i)?;
        let x = rescaled(cx, x, &y)?;
        let n = x.shape.get(at).copied().unwrap_or(1);
        Copy::slab(&y, at, start, n, plain(&x.shape)).emit(cx, &x, &y)?;
        start += n;
    }
    Ok(())
}

fn pack(cx: &mut Lower<'_, '_>, at: i64) -> Lowered {
    let y = cx.result(0)?;
    let at = axis(at, y.shape.len())?;
    for i in 0..cx.node.inputs.len() {
        let x = cx.operand(i)?;
        same_quant(&x, &y)?;
        Copy::slab(&y, at, i, 1, plain(&x.shape)).emit(cx, &x, &y)?;
    }
    Ok(())
}

fn split(cx: &mut Lower<'_, '_>, operand: usize, at: i64) -> Lowered {
    let x = cx.operand(operand)?;
    let at = axis(at, x.shape.len())?;
    let s = strides(&x.shape);
    let mut start = 0;
    for o in 0..cx.node.outputs.len() {
        let y = cx.result(o)?;
        same_quant(&x, &y)?;
        let dims = y.shape.iter().zip(&s).rev().map(|(&n, &s)| Dim::whole(n, s)).collect();
        let mut c = Copy::all(&y, dims);
        c.base = start * s.get(at).copied().unwrap_or(0);
        start += y.shape.get(at).copied().unwrap_or(1) as i64;
        c.emit(cx, &x, &y)?;
    }
    Ok(())
}

/// A slice whose output dimension d is operand dimension `from[d]` (all in order when absent).
fn strided(
    cx: &mut Lower<'_, '_>,
    x: &Operand<'_>,
    begin: &[i64],
    step: &[i64],
    from: Option<&[Option<usize>]>,
) -> Lowered {
    let y = cx.result(0)?;
    same_quant(x, &y)?;
    let s = strides(&x.shape);
    let mut dims = Vec::new();
    for (d, &n) in y.shape.iter().enumerate().rev() {
        let source = match from {
            Some(f) => f.get(d).copied().flatten(),
            None => Some(d),
        };
        let stride = source.map_or(0, |a| s.get(a).copied().unwrap_or(0) * step.get(a).copied().unwrap_or(1));
        dims.push(Dim::whole(n, stride));
    }
    let mut c = Copy::all(&y, dims);
    for (a, &s) in s.iter().enumerate() {
        let b = begin.get(a).copied().unwrap_or(0);
        if b < 0 || b >= x.shape.get(a).copied().unwrap_or(1) as i64 {
            return no("a slice that begins outside");
        }
        c.base += b * s;
    }
    c.emit(cx, x, &y)
}

fn strided_slice(cx: &mut Lower<'_, '_>) -> Lowered {
    let Op::StridedSlice(o) = &cx.node.op else { return no("not STRIDED_SLICE") };
    let o = o.clone();
    let x = cx.operand(0)?;
    let (begin, end, step) = (cx.ints(1)?, cx.ints(2)?, cx.ints(3)?);
    let _ = end;
    let rank = x.shape.len();
    let has = |mask: i32, i: usize| i < 32 && mask >> i & 1 == 1;
    let spec = begin.len();
    let added = (0..spec).filter(|&i| has(o.new_axis_mask, i)).count();
    let ellipsis = (0..spec).find(|&i| has(o.ellipsis_mask, i));
    // The dimensions that the ellipsis stands for.
    let named = spec - added - usize::from(ellipsis.is_some());
    let Some(spread) = rank.checked_sub(named) else { return no("more indices than dimensions") };
    let (mut starts, mut steps) = (vec![0i64; rank], vec![1i64; rank]);
    let mut from: Vec<Option<usize>> = Vec::new();
    let mut d = 0;
    for i in 0..spec {
        if Some(i) == ellipsis {
            for _ in 0..spread {
                from.push(Some(d));
                d += 1;
            }
            continue;
        }
        if has(o.new_axis_mask, i) {
            from.push(None);
            continue;
        }
        let n = x.shape.get(d).copied().unwrap_or(1) as i64;
        let step = step.get(i).copied().unwrap_or(1);
        let shrink = has(o.shrink_axis_mask, i);
        let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
        let mut b = begin.get(i).copied().unwrap_or(0);
        if has(o.begin_mask, i) && !shrink {
            b = if step > 0 { 0 } else { n - 1 };
        } else {
            if b < 0 {
                b += n;
            }
            if !shrink {
                b = b.clamp(low, high);
            }
        }
        if let (Some(s), Some(t)) = (starts.get_mut(d), steps.get_mut(d)) {
            (*s, *t) = (b, step);
        }
        if !shrink {
            from.push(Some(d));
        }
        d += 1;
    }
    while d < rank {
        from.push(Some(d));
        d += 1;
    }
    strided(cx, &x, &starts, &steps, Some(&from))
}

fn pad(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    let amounts = cx.ints(1)?;
    let y = cx.result(0)?;
    same_quant(&x, &y)?;
    let s = strides(&x.shape);
    let mut dims = Vec::new();
    for (d, &n) in y.shape.iter().enumerate().rev() {
        let low = usize::try_from(amounts.get(d * 2).copied().unwrap_or(0)).unwrap_or(usize::MAX);
        let size = x.shape.get(d).copied().unwrap_or(1);
        if low.checked_add(size).is_none_or(|h| h > n) {
            return no("negative paddings");
        }
        dims.push(Dim { n, stride: s.get(d).copied().unwrap_or(0), low, high: low + size });
    }
    let mut c = Copy::all(&y, dims);
    c.outside = match &cx.node.op {
        Op::MirrorPad(o) => {
            let edge = (o.mode == MirrorPadMode::SYMMETRIC) as usize;
            for d in &c.dims {
                let most = (d.high - d.low + edge).saturating_sub(1);
                if d.low > most || d.n - d.high > most {
                    return no("a mirror smaller than its padding");
                }
            }
            Outside::Mirror(2 + edge as i32)
        }
        Op::Padv2 => match (cx.constant(2)?, x.elem.is_float()) {
            (Some(_), true) => match cx.floats(2)?.as_deref() {
                Some([v]) => Outside::Value(v.to_bits()),
                _ => return no("a pad value that is no scalar"),
            },
            (Some(_), false) => match cx.ints(2)?.as_slice() {
                [v] => Outside::Value(*v as i32 as u32),
                _ => return no("a pad value that is no scalar"),
            },
            (None, _) => return no("a computed pad value"),
        },
        _ => match is_quantized(&x) {
            true => Outside::Value(y.scale_zero()?.1 as u32),
            false => Outside::Value(0),
        },
    };
    // Whole quads of zeros behind each row: who adds such a tensor to another can do without it.
    let inner = c.dims.first().is_some_and(|d| d.low == 0 && d.high % 4 == 0 && !d.is_whole());
    let zeros = matches!(c.outside, Outside::Value(0)) && x.elem.is_float();
    let appends = inner && zeros && c.dims.iter().skip(1).all(Dim::is_whole);
    c.emit(cx, &x, &y)?;
    if appends {
        cx.appends(y.row_quads(), x.row_quads());
    }
    Ok(())
}

fn batch_to_space(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    let (block, crops) = (cx.ints(1)?, cx.ints(2)?);
    let y = cx.result(0)?;
    same_quant(&x, &y)?;
    let k = block.len();
    if x.shape.len() <= k || y.shape.len() != x.shape.len() || block.iter().any(|&b| b < 1) {
        return no("a block that does not fit");
    }
    let s = strides(&x.shape);
    let batch = s.first().copied().unwrap_or(0) * y.shape.first().copied().unwrap_or(1) as i64;
    if crops.iter().all(|&c| c == 0) {
        // Each spatial dimension of the output is (position, block); blocks lie in the operand's batches.
        let mut dims = Vec::new();
        for d in (1..x.shape.len()).rev() {
            let (n, stride) = (x.shape.get(d).copied().unwrap_or(1), s.get(d).copied().unwrap_or(0));
            if d <= k {
                let inner: i64 = block.get(d..).unwrap_or_default().iter().product();
                dims.push(Dim::whole(block.get(d - 1).copied().unwrap_or(1) as usize, inner * batch));
            }
            dims.push(Dim::whole(n, stride));
        }
        dims.push(Dim::whole(y.shape.first().copied().unwrap_or(1), s.first().copied().unwrap_or(0)));
        return Copy::all(&y, dims).emit(cx, &x, &y);
    }
    // With crops: the whole first, then its middle.
    let mut full = y.shape.clone();
    for (d, (n, b)) in full.iter_mut().skip(1).zip(&block).enumerate() {
        *n = x.shape.get(d + 1).copied().unwrap_or(1) * *b as usize;
    }
    let slot = cx.temp(&full, y.elem);
    let whole = Operand { slot, shape: full, ..y.clone() };
    let mut dims = Vec::new();
    for d in (1..x.shape.len()).rev() {
        let (n, stride) = (x.shape.get(d).copied().unwrap_or(1), s.get(d).copied().unwrap_or(0));
        if d <= k {
            let inner: i64 = block.get(d..).unwrap_or_default().iter().product();
            dims.push(Dim::whole(block.get(d - 1).copied().unwrap_or(1) as usize, inner * batch));
        }
        dims.push(Dim::whole(n, stride));
    }
    dims.push(Dim::whole(y.shape.first().copied().unwrap_or(1), s.first().copied().unwrap_or(0)));
    Copy::all(&whole, dims).emit(cx, &x, &whole)?;
    let t = strides(&whole.shape);
    let dims = y.shape.iter().zip(&t).rev().map(|(&n, &s)| Dim::whole(n, s)).collect();
    let mut c = Copy::all(&y, dims);
    for (i, pair) in crops.chunks(2).enumerate() {
        c.base += pair.first().copied().unwrap_or(0).max(0) * t.get(i + 1).copied().unwrap_or(0);
    }
    c.emit(cx, &whole, &y)
}

fn space_to_batch(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    let (block, pads) = (cx.ints(1)?, cx.ints(2)?);
    let y = cx.result(0)?;
    same_quant(&x, &y)?;
    let k = block.len();
    if x.shape.len() <= k || y.shape.len() != x.shape.len() || block.iter().any(|&b| b < 1) {
        return no("a block that does not fit");
    }
    let mut from = x.clone();
    if pads.iter().any(|&p| p != 0) {
        let mut shape = x.shape.clone();
        let s = strides(&x.shape);
        let mut dims = Vec::new();
        for d in (0..shape.len()).rev() {
            let i = d.wrapping_sub(1);
            let pair = if d >= 1 && d <= k { pads.get(i * 2..i * 2 + 2).unwrap_or_default() } else { &[] };
            let low = usize::try_from(pair.first().copied().unwrap_or(0)).unwrap_or(0);
            let high = usize::try_from(pair.get(1).copied().unwrap_or(0)).unwrap_or(0);
            let size = x.shape.get(d).copied().unwrap_or(1);
            let n = low.saturating_add(size).saturating_add(high);
            if let Some(slot) = shape.get_mut(d) {
                *slot = n;
            }
            dims.push(Dim { n, stride: s.get(d).copied().unwrap_or(0), low, high: low + size });
        }
        if elements(&shape) > (i32::MAX / 4) as usize {
            return no("a tensor that is too large");
        }
        let slot = cx.temp(&shape, x.elem);
        let padded = Operand { slot, shape, constant: false, ..x.clone() };
        let mut c = Copy::all(&padded, dims);
        c.outside = Outside::Value(if is_quantized(&x) { x.scale_zero()?.1 as u32 } else { 0 });
        c.emit(cx, &x, &padded)?;
        from = padded;
    }
    let s = strides(&from.shape);
    let mut dims = Vec::new();
    for d in (1..from.shape.len()).rev() {
        let b = if d <= k { block.get(d - 1).copied().unwrap_or(1) } else { 1 };
        dims.push(Dim::whole(y.shape.get(d).copied().unwrap_or(1), s.get(d).copied().unwrap_or(0) * b));
    }
    dims.push(Dim::whole(x.shape.first().copied().unwrap_or(1), s.first().copied().unwrap_or(0)));
    for d in (1..=k).rev() {
        let b = block.get(d - 1).copied().unwrap_or(1) as usize;
        dims.push(Dim::whole(b, s.get(d).copied().unwrap_or(0)));
    }
    // The output's batch is (block positions, batch): the operand's batch varies fastest.
    Copy::all(&y, dims).emit(cx, &from, &y)
}
