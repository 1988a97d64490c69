//! Matrix products.

use super::WG;
use super::conv::{Arithmetic, Class, FEW_ROWS, Layout, OCT, Product, few, float_limits, oct, pack};
use super::layout::{Copy, Dim, spread};
use crate::caps::AdapterClass;
use crate::lower::{Const, Lower, Lowered, Operand, Params, line, no};
use crate::program::{SlotId, quads, row_quads, tail};
use litegpu_graph::fixed::{Multiplier, type_range};
use litegpu_graph::schema::{ActivationFunctionType, FullyConnectedOptionsWeightsFormat};
use litegpu_graph::{Blockwise, DType, Op, elements};
use litegpu_shaders::{Elem, KernelKey};

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    if super::attention::spelled_out(cx)? {
        return Ok(());
    }
    match &cx.node.op {
        Op::FullyConnected(o) => {
            if o.weights_format != FullyConnectedOptionsWeightsFormat::DEFAULT {
                return no("shuffled weights");
            }
            fully_connected(cx, o.fused_activation_function)
        }
        Op::BatchMatmul(o) => batch(cx, o.adj_x, o.adj_y),
        _ => no("no GPU kernel"),
    }
}

/// The uniform product of a row-major left operand.
pub(super) fn product(rows: usize, depth_quads: usize, channels: usize, steps: usize) -> Product {
    Product {
        batch: 1,
        h: 1,
        w: rows,
        cq: depth_quads,
        oh: 1,
        ow: rows,
        channels,
        stride: [1, 1],
        pad: [0, 0],
        dilation: [1, 1],
        kw: 1,
        tap: depth_quads.next_multiple_of(2),
        steps,
        to: 0,
        to_image: rows,
        to_row: rows,
        to_column: 1,
        matrices: None,
    }
}

/// The operand as rows of `depth` elements, where its own padding lies elsewhere.
fn flat<'a>(cx: &mut Lower<'a, '_>, x: &Operand<'a>, rows: usize, depth: usize) -> Lowered<Operand<'a>> {
    let shape = [rows, depth];
    let y = Operand { slot: cx.temp(&shape, x.elem), shape: shape.as_slice().into(), constant: false, ..x.clone() };
    let inner = x.inner();
    let dims = vec![
        Dim { n: inner, stride: 1, low: 0, high: inner },
        Dim::whole(elements(&x.shape) / inner.max(1), (row_quads(&x.shape) * 4) as i64),
    ];
    Copy::all(&y, dims).emit(cx, x, &y)?;
    Ok(y)
}

fn fully_connected(cx: &mut Lower<'_, '_>, f: ActivationFunctionType) -> Lowered {
    let Some(w) = cx.constant(1)? else { return computed(cx, f) };
    let mut x = cx.operand(0)?;
    let y = cx.result(0)?;
    let &[units, depth] = w.shape.as_slice() else { return no("weights whose rank is not 2") };
    if depth == 0 || elements(&x.shape) % depth != 0 || y.inner() != units {
        return no("weights that do not fit");
    }
    let rows = elements(&x.shape) / depth;
    if x.inner() != depth && (x.inner() % 4 != 0 || depth % 4 != 0) {
        x = flat(cx, &x, rows, depth)?;
    }
    let quant = cx.tensor(1)?.quant.as_ref();
    if let Some(b) = quant.and_then(|q| q.blockwise) {
        return blocks(cx, &x, &w, b, &y, f, [rows, depth, units]);
    }
    let mut a = Arithmetic::new(&x, w.dtype, quant, units, &y, f, cx.scene.caps.half(), true)?;
    a.pack_dots(cx, &x, &w, units);
    let (pad, elem) = (a.pad(), a.weights);
    let Some(t) = cx.node.input(1) else { return no("no weights") };
    let steps = depth.div_ceil(OCT);
    let packed = cx.packed(t, elem, "matmul", || {
        let l = Layout { rows: units, width: steps * OCT, stride: depth, step: 1, len: depth, runs: vec![(0, 0)] };
        pack(&w, elem, &l, pad)
    })?;
    if rows < FEW_ROWS {
        return few(cx, &a, &x, packed, Some(2), &y, rows, depth, units);
    }
    let chans = a.channels(cx, Some(2), units, true)?;
    product(rows, depth.div_ceil(4), units, steps).emit(cx, &a, (x.slot, x.elem), packed, chans, &y)
}

/// FULLY_CONNECTED with a scale for every block of inputs.
fn blocks<'a>(
    cx: &mut Lower<'a, '_>,
    x: &Operand<'a>,
    w: &Const,
    b: Blockwise,
    y: &Operand<'a>,
    f: ActivationFunctionType,
    [rows, depth, units]: [usize; 3],
) -> Lowered {
    let elem = match (x.dtype, w.dtype) {
        (DType::F32, DType::I4) => Elem::I4,
        (DType::F32, DType::I8) => Elem::I8,
        (x, w) => return no(format!("{x} activations with {w} weights in blocks")),
    };
    if b.zero_points.is_some() {
        return no("zero points of blocks");
    }
    // A block is a whole number of steps.
    if b.block_size == 0 || b.block_size % OCT != 0 || depth % b.block_size != 0 {
        return no(format!("blocks of {}", b.block_size));
    }
    let (count, steps) = (depth / b.block_size, depth / OCT);
    let Some(scales) = cx.scene.constant(b.scales)? else { return no("computed scales of blocks") };
    if elements(&scales.shape) != units * count {
        return no("scales of blocks that do not fit");
    }
    let half = scales.dtype == DType::F16;
    let scale_elem = if half { cx.scene.caps.half() } else { Elem::F32 };
    if !half && scales.dtype != DType::F32 {
        return no(format!("{} scales of blocks", scales.dtype));
    }
    let (low, high, after) = float_limits(f)?;
    // The channels' own scale is 1: their sums are scaled already.
    let class = Class::Scaled(vec![1.0; units]);
    let a = Arithmetic { class, weights: elem, x_zero: 0, w_zero: 0, out_zero: 0, low, high, after, dots: None };
    let Some(t) = cx.node.input(1) else { return no("no weights") };
    let packed = cx.packed(t, elem, "matmul", || {
        let l = Layout { rows: units, width: depth, stride: depth, step: 1, len: depth, runs: vec![(0, 0)] };
        pack(w, elem, &l, 0)
    })?;
    let scales = cx.weight(|| {
        // Four units side by side, block after block.
        let width = scale_elem.quad_bytes() / 4;
        let mut out = vec![0; units.div_ceil(4) * count * 4 * width];
        for (i, s) in scales.bytes.chunks_exact(width).enumerate() {
            let (n, b) = (i / count.max(1), i % count.max(1));
            let at = ((n / 4 * count + b) * 4 + n % 4) * width;
            if let Some(to) = out.get_mut(at..at + width) {
                to.copy_from_slice(s);
            }
        }
        Ok(out)
    })?;
    let chans = a.channels(cx, Some(2), units, false)?;
    let (cq, nq) = (depth.div_ceil(4), units.div_ceil(4));
    let wg = if cx.scene.caps.class == AdapterClass::Software { 8 } else { 64 };
    if rows.max(nq.div_ceil(wg)) > cx.scene.caps.max_groups as usize {
        return no("more workgroups than the adapter takes");
    }
    let roles = [("x", x.elem), ("w", elem), ("scales", scale_elem), ("out", y.elem)];
    let key = KernelKey::new("blocks", &roles).part("x", oct(cx, x.elem, true)).part("w", oct(cx, elem, true));
    let key = a.parts(cx, key.set("WG", wg as i32), false);
    let params = Params::new().u(rows).u(cq).u(steps).u(nq).u(tail(&[units])).u(b.block_size / OCT);
    let groups = [nq.div_ceil(wg) as u32, rows as u32, 1];
    cx.dispatch(key, &[x.slot, packed, chans, scales], &[y.slot], &[], a.params(params), groups)
}

/// FULLY_CONNECTED whose weights another operator computes: they are packed on the GPU first.
fn computed(cx: &mut Lower<'_, '_>, f: ActivationFunctionType) -> Lowered {
    let (mut x, w, y) = (cx.operand(0)?, cx.operand(1)?, cx.result(0)?);
    if [x.dtype, w.dtype, y.dtype] != [DType::F32; 3] {
        return no(format!("computed {} weights", w.dtype));
    }
    let &[units, depth] = w.shape.as_slice() else { return no("weights whose rank is not 2") };
    if depth == 0 || elements(&x.shape) % depth != 0 || y.inner() != units {
        return no("weights that do not fit");
    }
    let rows = elements(&x.shape) / depth;
    if x.inner() != depth && (x.inner() % 4 != 0 || depth % 4 != 0) {
        x = flat(cx, &x, rows, depth)?;
    }
    let (low, high, after) = float_limits(f)?;
    let a = Arithmetic {
        class: Class::Float,
        weights: w.elem,
        x_zero: 0,
        w_zero: 0,
        out_zero: 0,
        low,
        high,
        after,
        dots: None,
    };
    let steps = depth.div_ceil(OCT);
    let height = units.next_multiple_of(OCT);
    let packed = gather(cx, &w, 1, (units, depth), (height, steps * 2), false, 0)?;
    let chans = a.channels(cx, Some(2), units, true)?;
    product(rows, depth.div_ceil(4), units, steps).emit(cx, &a, (x.slot, x.elem), packed, chans, &y)
}

/// Brings each of `count` matrices into rows: `rows` of `width` elements that come from the operand's rows, or from its
/// columns; every row padded to `row` quads, every matrix to `height` rows.
fn gather(
    cx: &mut Lower<'_, '_>,
    x: &Operand<'_>,
    count: usize,
    (rows, width): (usize, usize),
    (height, row): (usize, usize),
    turn: bool,
    pad: i32,
) -> Lowered<SlotId> {
    let shape = [count, height, row * 4];
    let out = cx.temp(&shape, x.elem);
    let (from_rows, from_width) = if turn { (width, rows) } else { (rows, width) };
    let key = KernelKey::new("matrix", &[("in0", x.elem), ("out", x.elem)]).set("TURN", turn as i32);
    let params = Params::new()
        .u(quads(&shape))
        .u(row)
        .u(height)
        .u(width)
        .u(rows)
        .u(from_width.div_ceil(4))
        .u(from_rows * from_width.div_ceil(4))
        .i(pad);
    cx.dispatch(key, &[x.slot], &[out], &[], params, line(quads(&shape).div_ceil(WG)))?;
    Ok(out)
}

/// How many matrices of `outer` batches are read: one for all of `n`, or one for each.
fn whole(outer: &[usize], n: usize) -> usize {
    if elements(outer) == 1 { 1 } else { n }
}

/// The operand's matrices, one for each of the `outer` batches.
fn repeated<'a>(cx: &mut Lower<'a, '_>, x: &Operand<'a>, outer: &[usize]) -> Lowered<Operand<'a>> {
    let matrix = x.shape.get(x.shape.len().saturating_sub(2)..).unwrap_or_default();
    let shape: litegpu_graph::Shape = outer.iter().chain(matrix).copied().collect();
    if elements(&shape) > (i32::MAX / 4) as usize {
        return no("a tensor that is too large");
    }
    let y = Operand { slot: cx.temp(&shape, x.elem), shape, constant: false, ..x.clone() };
    spread(cx, x, &y)?;
    Ok(y)
}

/// The right operand's scale for each column of the result, and its zero point.
fn column_scales(w: &Operand<'_>, columns: usize, adj: bool) -> Lowered<(Vec<f32>, i32)> {
    match w.quant.filter(|q| q.scale.len() > 1) {
        None => w.scale_zero().map(|(s, z)| (vec![s; columns], z)),
        Some(q) => {
            let axis = w.shape.len().checked_sub(if adj { 2 } else { 1 });
            if axis != Some(q.axis) || q.scale.len() != columns || q.zero_point.iter().any(|&z| z != 0) {
                return no(format!("scales along axis {} of the right operand", q.axis));
            }
            Ok((q.scale.to_vec(), 0))
        }
    }
}

fn batch(cx: &mut Lower<'_, '_>, adj_x: bool, adj_y: bool) -> Lowered {
    let (x, w, out) = (cx.operand(0)?, cx.operand(1)?, cx.result(0)?);
    let (Some((xo, &[xr, xc])), Some((wo, &[wr, wc]))) = (x.shape.split_last_chunk::<2>(), w.shape.split_last_chunk())
    else {
        return no("an operand whose rank is below 2");
    };
    let (rows, depth) = if adj_x { (xc, xr) } else { (xr, xc) };
    let columns = if adj_y { wr } else { wc };
    let outer = out.shape.get(..out.shape.len().saturating_sub(2)).unwrap_or_default();
    let n = elements(outer);
    // Batches that broadcast in part are written out; a single one is read again and again.
    let (nx, nw) = (whole(xo, n), whole(wo, n));
    let x = if nx == elements(xo) { x.clone() } else { repeated(cx, &x, outer)? };
    let w = if nw == elements(wo) { w.clone() } else { repeated(cx, &w, outer)? };
    let mut a = Arithmetic {
        class: Class::Float,
        weights: w.elem,
        x_zero: 0,
        w_zero: 0,
        out_zero: 0,
        low: 0,
        high: 0,
        after: None,
        dots: None,
    };
    match (x.dtype, w.dtype, out.dtype) {
        (DType::F32, DType::F32, DType::F32) => {
            (a.low, a.high, a.after) = float_limits(ActivationFunctionType::NONE)?;
        }
        (DType::I8, DType::I8, DType::I8) => {
            let (xs, xz) = x.scale_zero()?;
            let (ws, wz) = column_scales(&w, columns, adj_y)?;
            let (ys, yz) = out.scale_zero()?;
            let m: Vec<Multiplier> = ws.iter().map(|w| Multiplier::new((xs * w) as f64 / ys as f64)).collect();
            if m.iter().any(|m| m.value < 0 || m.shift > 30) {
                return no("a multiplier out of range");
            }
            (a.low, a.high) = type_range(DType::I8)?;
            (a.x_zero, a.w_zero, a.out_zero) = (xz, wz, yz);
            a.class = Class::Rounded(m);
        }
        // The CPU quantizes the left operand as it comes; here it stays as it is.
        (DType::F32, DType::I8, DType::F32) => {
            let (scales, zero) = column_scales(&w, columns, adj_y)?;
            if zero != 0 {
                return no("int8 weights with a zero point on floats");
            }
            (a.low, a.high, a.after) = float_limits(ActivationFunctionType::NONE)?;
            a.class = Class::Scaled(scales);
        }
        (x, y, z) => return no(format!("{x} by {y} giving {z}")),
    }
    if !matches!(x.elem, Elem::F32 | Elem::F16 | Elem::F16Packed | Elem::I8) {
        return no(format!("{} elements", x.dtype));
    }
    let cq = depth.div_ceil(4);
    let steps = depth.div_ceil(OCT);
    let height = columns.next_multiple_of(OCT);
    let packed = gather(cx, &w, nw, (columns, depth), (height, steps * 2), !adj_y, a.w_zero)?;
    let left = if adj_x { gather(cx, &x, nx, (rows, depth), (rows, cq), true, a.x_zero)? } else { x.slot };
    let chans = a.channels(cx, None, columns, true)?;
    let mut p = product(rows, cq, columns, steps);
    if nw == 1 && nx == n {
        p = product(n * rows, cq, columns, steps);
    } else {
        let distance = |n: usize, d: usize| if n == 1 { 0 } else { d };
        p.matrices = Some((n, distance(nx, rows * cq), distance(nw, height * steps), rows));
    }
    p.emit(cx, &a, (left, x.elem), packed, chans, &out)
}
