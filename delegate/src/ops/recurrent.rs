//! Recurrent cells. The input's part of all steps is one matrix product; a kernel then walks the sequence. States are
//! variable tensors: they stay in device memory between the part's first and last dispatch.

mod integer;

use super::conv::{Arithmetic, Class, FEW_ROWS, Layout, OCT, few, pack};
use super::layout::{Copy, plain};
use super::matmul::product;
use super::{RARE, WG};
use crate::caps::AdapterClass;
use crate::lower::{Const, Lower, Lowered, Operand, Params, line, no};
use crate::program::{SlotId, rows};
use litegpu_graph::schema::{ActivationFunctionType, LSTMKernelType};
use litegpu_graph::{DType, Op, elements};
use litegpu_shaders::{Elem, KernelKey};

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    match &cx.node.op {
        Op::Lstm(o) if o.kernel_type == LSTMKernelType::BASIC && RARE => basic(cx),
        Op::Lstm(o) if o.kernel_type == LSTMKernelType::BASIC => no("the basic LSTM cell"),
        Op::Lstm(o) => {
            let cell = Cell {
                act: act(o.fused_activation_function)?,
                clip: [o.cell_clip, o.proj_clip],
                asymmetric: o.asymmetric_quantize_inputs,
            };
            one_way(cx, &cell, true)
        }
        Op::UnidirectionalSequenceLstm(o) => {
            let cell = Cell {
                act: act(o.fused_activation_function)?,
                clip: [o.cell_clip, o.proj_clip],
                asymmetric: o.asymmetric_quantize_inputs,
            };
            one_way(cx, &cell, o.time_major)
        }
        Op::BidirectionalSequenceLstm(o) => {
            let cell = Cell {
                act: act(o.fused_activation_function)?,
                clip: [o.cell_clip, o.proj_clip],
                asymmetric: o.asymmetric_quantize_inputs,
            };
            if cx.node.inputs.len() != 48 {
                return no("48 operands are needed");
            }
            both_ways(cx, o.time_major, o.merge_outputs, [8, 25], (39, [41, 45]), |cx, x, aux, y, walk| {
                lstm(cx, &cell, if walk.backward { &Gates::BACKWARD } else { &Gates::FORWARD }, x, aux, y, walk)
            })
        }
        Op::Rnn(o) => {
            let cell = Cell {
                act: act(o.fused_activation_function)?,
                clip: [0.0; 2],
                asymmetric: o.asymmetric_quantize_inputs,
            };
            plain_one_way(cx, &cell, true)
        }
        Op::UnidirectionalSequenceRnn(o) => {
            let cell = Cell {
                act: act(o.fused_activation_function)?,
                clip: [0.0; 2],
                asymmetric: o.asymmetric_quantize_inputs,
            };
            plain_one_way(cx, &cell, o.time_major)
        }
        Op::BidirectionalSequenceRnn(o) => {
            let cell = Cell {
                act: act(o.fused_activation_function)?,
                clip: [0.0; 2],
                asymmetric: o.asymmetric_quantize_inputs,
            };
            // With int8 weights and the time outermost the reference walks the sequence as often as it has steps, each time from
            // the state that the walk before left.
            let again = o.time_major && cx.tensor(1)?.dtype == DType::I8;
            both_ways(cx, o.time_major, o.merge_outputs, [2, 6], (9, [10, 11]), |cx, x, aux, y, walk| {
                let walk = Walk { walks: if again { walk.time } else { 1 }, ..walk };
                rnn(cx, &cell, if walk.backward { 5 } else { 1 }, x, aux, y, walk)
            })
        }
        Op::Svdf(o) if RARE && cx.tensor(0)?.dtype == DType::I8 => {
            integer::svdf(cx, o.rank, o.fused_activation_function)
        }
        Op::Svdf(o) => svdf(cx, o.rank, o.fused_activation_function, o.asymmetric_quantize_inputs),
        _ => no("no GPU kernel"),
    }
}

/// An activation's number in the kernels.
fn act(a: ActivationFunctionType) -> Lowered<i32> {
    Ok(match a {
        ActivationFunctionType::NONE => 0,
        ActivationFunctionType::RELU => 1,
        ActivationFunctionType::RELU6 => 2,
        ActivationFunctionType::RELU_N1_TO_1 => 3,
        ActivationFunctionType::TANH => 4,
        a => return no(format!("activation {a:?}")),
    })
}

/// Attributes of a cell: the activation, the limits of an LSTM's cell state and projection, and how what int8 weights meet
/// is rounded to 8 bits.
struct Cell {
    act: i32,
    clip: [f32; 2],
    asymmetric: bool,
}

/// Where an LSTM's operands are; gates in the order input, forget, cell, output.
struct Gates {
    input: [usize; 4],
    /// Of the auxiliary input.
    aux: [usize; 4],
    recurrent: [usize; 4],
    /// Not for the cell gate.
    peephole: [usize; 3],
    bias: [usize; 4],
    norm: Option<[usize; 4]>,
    projection: usize,
    /// Output state and cell state.
    state: [usize; 2],
}

impl Gates {
    const FULL: Gates = Gates {
        input: [1, 2, 3, 4],
        aux: [40, 41, 42, 43],
        recurrent: [5, 6, 7, 8],
        peephole: [9, 10, 11],
        bias: [12, 13, 14, 15],
        norm: Some([20, 21, 22, 23]),
        projection: 16,
        state: [18, 19],
    };
    const FORWARD: Gates = Gates { norm: None, state: [35, 36], ..Gates::FULL };
    const BACKWARD: Gates = Gates {
        input: [18, 19, 20, 21],
        aux: [44, 45, 46, 47],
        recurrent: [22, 23, 24, 25],
        peephole: [26, 27, 28],
        bias: [29, 30, 31, 32],
        norm: None,
        projection: 33,
        state: [37, 38],
    };
}

/// How a sequence lies in memory and which way it is walked.
#[derive(Debug, Clone, Copy)]
struct Walk {
    batch: usize,
    time: usize,
    width: usize,
    /// Distances in rows: of steps, of the batch.
    step: usize,
    image: usize,
    backward: bool,
    /// How often it is walked, one time after another.
    walks: usize,
}

impl Walk {
    fn new(x: &Operand<'_>, time_major: bool, backward: bool) -> Lowered<Walk> {
        let (time, batch, width, major) = match (x.shape.as_slice(), time_major) {
            (&[batch, width], _) => (1, batch, width, true),
            (&[time, batch, width], true) => (time, batch, width, true),
            (&[batch, time, width], false) => (time, batch, width, false),
            _ => return no("an input whose rank is not 2 or 3"),
        };
        let (step, image) = if major { (batch, 1) } else { (1, time) };
        Ok(Walk { batch, time, width, step, image, backward, walks: 1 })
    }
}

fn one_way(cx: &mut Lower<'_, '_>, cell: &Cell, time_major: bool) -> Lowered {
    if !matches!(cx.node.inputs.len(), 20 | 24) {
        return no("20 or 24 operands are needed");
    }
    if cx.tensor(0)?.dtype == DType::I8 {
        return integer::lstm(cx, cell, time_major);
    }
    let (x, y) = (cx.operand(0)?, cx.result(0)?);
    let walk = Walk::new(&x, time_major, false)?;
    lstm(cx, cell, &Gates::FULL, &x, None, &y, walk)
}

fn plain_one_way(cx: &mut Lower<'_, '_>, cell: &Cell, time_major: bool) -> Lowered {
    let (x, y) = (cx.operand(0)?, cx.result(0)?);
    let walk = Walk::new(&x, time_major, false)?;
    rnn(cx, cell, 1, &x, None, &y, walk)
}

/// An auxiliary input, and the first of its weights.
type Aux<'o, 'a> = Option<(&'o Operand<'a>, usize)>;

/// Both directions by `cell`. `recurrent`: operands whose columns are each direction's outputs. `aux`: the operand with
/// the auxiliary input, and of each direction a weight of it that is never left out alone.
fn both_ways<'a, 'e>(
    cx: &mut Lower<'a, 'e>,
    time_major: bool,
    merged: bool,
    recurrent: [usize; 2],
    aux: (usize, [usize; 2]),
    cell: impl Fn(&mut Lower<'a, 'e>, &Operand<'a>, Aux<'_, 'a>, &Operand<'a>, Walk) -> Lowered,
) -> Lowered {
    let x = cx.operand(0)?;
    let other = if cx.has(aux.0) { Some(cx.operand(aux.0)?) } else { None };
    // Without weights of its own the auxiliary input is what the backward direction reads.
    let (back, other) = match cx.has(aux.1[0]) {
        true => (x.clone(), other),
        false => (other.unwrap_or_else(|| x.clone()), None),
    };
    let y = cx.result(0)?;
    let mut start = 0;
    for (i, x) in [x, back].into_iter().enumerate() {
        let walk = Walk::new(&x, time_major, i == 1)?;
        let other = other.as_ref().zip(aux.1.get(i).copied());
        if !merged {
            let y = if i == 0 { y.clone() } else { cx.result(1)? };
            cell(cx, &x, other, &y, walk)?;
            continue;
        }
        let Some(&outputs) = recurrent.get(i).map(|&o| cx.tensor(o)).transpose()?.and_then(|t| t.shape.last()) else {
            return no("recurrent weights of another rank");
        };
        let mut shape = y.shape.clone();
        if let Some(n) = shape.last_mut() {
            *n = outputs;
        }
        let part = Operand { slot: cx.temp(&shape, y.elem), shape, ..y.clone() };
        cell(cx, &x, other, &part, walk)?;
        let last = y.shape.len() - 1;
        Copy::slab(&y, last, start, outputs, plain(&part.shape)).emit(cx, &part, &y)?;
        start += outputs;
    }
    Ok(())
}

/// Constant matrices of one type below one another.
struct Stack {
    /// All rows.
    value: Const,
    /// The rows of each matrix.
    counts: Vec<usize>,
    /// The scale of each matrix; 1 for floats.
    scales: Vec<f32>,
}

impl Stack {
    fn rows(&self) -> usize {
        self.counts.iter().sum()
    }

    /// How the weights are stored: never wider than in the file.
    fn elem(&self, cx: &Lower<'_, '_>) -> Elem {
        match self.value.dtype {
            DType::F16 => cx.scene.caps.half(),
            DType::I8 => Elem::I8,
            _ => Elem::F32,
        }
    }

    /// The scale of the i-th matrix.
    fn scale(&self, i: usize) -> f32 {
        self.scales.get(i).copied().unwrap_or(1.0)
    }

    fn is_scaled(&self) -> bool {
        self.value.dtype == DType::I8
    }

    /// How the kernels round what these weights meet.
    fn round(&self, asymmetric: bool) -> i32 {
        match (self.is_scaled(), asymmetric) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        }
    }
}

/// Constant matrices of `columns` columns below one another.
fn stacked(cx: &Lower<'_, '_>, operands: &[usize], columns: usize) -> Lowered<Stack> {
    let (mut parts, mut scales) = (Vec::new(), Vec::new());
    for &i in operands {
        let Some(c) = cx.constant(i)? else { return no("computed weights") };
        scales.push(match c.dtype {
            DType::F32 | DType::F16 => 1.0,
            DType::I8 => scale(cx, i)?,
            d => return no(format!("a recurrent cell with {d} weights")),
        });
        parts.push(c);
    }
    let Some(dtype) = parts.first().map(|c| c.dtype) else { return no("no weights") };
    let mut counts = Vec::new();
    for c in &parts {
        match c.shape.as_slice() {
            &[n, w] if w == columns && c.dtype == dtype => counts.push(n),
            s => return no(format!("{} weights of shape {s:?}, {dtype} of {columns} columns are needed", c.dtype)),
        }
    }
    let all: usize = counts.iter().sum();
    let bytes: Vec<u8> = parts.iter().flat_map(|c| c.bytes.iter().copied()).collect();
    let value = Const { dtype, shape: [all, columns].as_slice().into(), bytes: bytes.into() };
    Ok(Stack { value, counts, scales })
}

/// The scale of int8 weights.
fn scale(cx: &Lower<'_, '_>, i: usize) -> Lowered<f32> {
    match cx.tensor(i)?.quant.as_ref().and_then(|q| q.per_tensor()) {
        Some((s, 0)) => Ok(s),
        _ => no("a recurrent cell whose int8 weights have a zero point, or several scales"),
    }
}

/// A constant vector of `n` elements as floats, or none where the operand is missing.
fn floats(cx: &Lower<'_, '_>, i: usize, n: usize) -> Lowered<Option<Vec<f32>>> {
    if !cx.has(i) {
        return Ok(None);
    }
    let value = match cx.constant(i)? {
        Some(c) if c.dtype == DType::I8 => {
            let s = scale(cx, i)?;
            Some(c.bytes.iter().map(|&b| b as i8 as f32 * s).collect())
        }
        _ => cx.floats(i)?,
    };
    match value {
        Some(v) if v.len() == n => Ok(Some(v)),
        Some(v) => no(format!("operand {i} has {} elements, {n} are needed", v.len())),
        None => no(format!("operand {i} is computed, a constant is needed")),
    }
}

/// The rows of `x` rounded to 8 bits, each over its own range: what a cell with int8 weights reads of them. A sequence
/// feeds such errors back into itself: without them results would be further from the reference than its own roundings.
fn rounded<'a>(cx: &mut Lower<'a, '_>, x: &Operand<'a>, asymmetric: bool) -> Lowered<Operand<'a>> {
    let y = Operand { slot: cx.temp(&x.shape, Elem::F32), elem: Elem::F32, constant: false, ..x.clone() };
    let wg = x.row_quads().next_power_of_two().clamp(1, 32);
    let key = KernelKey::new("dynamic", &[("in0", x.elem), ("out", y.elem)])
        .set("WG", wg as i32)
        .set("ASYMMETRIC", asymmetric as i32);
    let n = rows(&x.shape);
    cx.dispatch(key, &[x.slot], &[y.slot], &[], Params::new().u(n).u(x.row_quads()), line(n))?;
    Ok(y)
}

/// All rows of `x` times `weights`, transposed, in f32; plus the operand `bias`.
fn sums_of<'a>(
    cx: &mut Lower<'a, '_>,
    x: &Operand<'a>,
    w: &Stack,
    bias: Option<usize>,
    asymmetric: bool,
) -> Lowered<Operand<'a>> {
    let &[units, depth] = w.value.shape.as_slice() else { return no("weights whose rank is not 2") };
    if x.dtype != DType::F32 || x.inner() != depth || depth == 0 {
        return no(format!("a {} input of width {} for weights of width {depth}", x.dtype, x.inner()));
    }
    let x = &if w.is_scaled() { rounded(cx, x, asymmetric)? } else { x.clone() };
    let elem = w.elem(cx);
    let bits = |v: f32| v.to_bits() as i32;
    let each = w.counts.iter().zip(&w.scales).flat_map(|(&n, &s)| std::iter::repeat_n(s, n));
    let a = Arithmetic {
        class: if w.is_scaled() { Class::Scaled(each.collect()) } else { Class::Float },
        weights: elem,
        x_zero: 0,
        w_zero: 0,
        out_zero: 0,
        low: bits(f32::NEG_INFINITY),
        high: bits(f32::INFINITY),
        after: None,
        dots: None,
    };
    let steps = depth.div_ceil(OCT);
    let packed = cx.weight(|| {
        let l = Layout { rows: units, width: steps * OCT, stride: depth, step: 1, len: depth, runs: vec![(0, 0)] };
        pack(&w.value, elem, &l, 0)
    })?;
    let n = rows(&x.shape);
    let shape = [n, units];
    let y = Operand {
        slot: cx.temp(&shape, Elem::F32),
        elem: Elem::F32,
        dtype: DType::F32,
        shape: shape.as_slice().into(),
        quant: None,
        constant: false,
        tensor: x.tensor,
    };
    if n < FEW_ROWS {
        few(cx, &a, x, packed, bias, &y, n, depth, units)?;
    } else {
        let chans = a.channels(cx, bias, units, true)?;
        product(n, depth.div_ceil(4), units, steps).emit(cx, &a, (x.slot, x.elem), packed, chans, &y)?;
    }
    Ok(y)
}

/// Rows of weights as the cells read them: for each quad of columns, the four of every row.
fn by_quads(w: &Const, elem: Elem) -> Lowered<Vec<u8>> {
    let &[n, columns] = w.shape.as_slice() else { return no("weights whose rank is not 2") };
    let width = columns.next_multiple_of(4);
    let l = Layout { rows: n, width, stride: columns, step: 1, len: columns, runs: vec![(0, 0)] };
    let padded = pack(w, elem, &l, 0)?;
    let quad = elem.quad_bytes();
    let mut out = Vec::with_capacity(padded.len());
    for q in 0..width / 4 {
        for row in padded.chunks_exact((width / 4 * quad).max(1)) {
            out.extend(row.get(q * quad..(q + 1) * quad).unwrap_or_default());
        }
    }
    Ok(out)
}

/// The state of a cell with `n` elements a row.
fn state(cx: &mut Lower<'_, '_>, i: usize, batch: usize, n: usize) -> Lowered<SlotId> {
    let s = cx.state(i)?;
    if elements(&s.shape) != batch * n || s.inner() != n || s.elem != Elem::F32 {
        return no(format!("a state of shape {:?}, {batch} rows of {n} are needed", s.shape.as_slice()));
    }
    Ok(s.slot)
}

/// Invocations that share a row of `n` cells.
fn workers(cx: &Lower<'_, '_>, n: usize) -> usize {
    let least = if cx.scene.caps.class == AdapterClass::Software { 8 } else { 32 };
    n.next_power_of_two().clamp(least, (cx.scene.caps.max_invocations as usize).clamp(least, 256))
}

fn fits(cx: &Lower<'_, '_>, walk: Walk, elements: usize) -> Lowered {
    if elements.saturating_mul(4) > cx.scene.caps.max_workgroup_memory as usize {
        return no("states that are larger than the adapter's workgroup memory");
    }
    if walk.batch > cx.scene.caps.max_groups as usize {
        return no("a batch that is too large");
    }
    Ok(())
}

/// What a whole sequence and its auxiliary one add to the sums of every step.
fn both<'a>(cx: &mut Lower<'a, '_>, a: Operand<'a>, b: Operand<'a>) -> Lowered<Operand<'a>> {
    let y = Operand { slot: cx.temp(&a.shape, a.elem), ..a.clone() };
    super::binary::emit(cx, &a, &b, &y, "f_add", Vec::new())?;
    Ok(y)
}

fn lstm<'a>(
    cx: &mut Lower<'a, '_>,
    cell: &Cell,
    ids: &Gates,
    x: &Operand<'a>,
    aux: Aux<'_, 'a>,
    y: &Operand<'a>,
    walk: Walk,
) -> Lowered {
    let cifg = !cx.has(ids.input[0]);
    let from = usize::from(cifg);
    let input = stacked(cx, ids.input.get(from..).unwrap_or_default(), walk.width)?;
    let cells = input.counts.last().copied().unwrap_or(0);
    let outputs = y.inner();
    let recurrent = stacked(cx, ids.recurrent.get(from..).unwrap_or_default(), outputs)?;
    if cells == 0
        || input.counts.iter().chain(&recurrent.counts).any(|&n| n != cells)
        || rows(&y.shape) != walk.batch * walk.time
    {
        return no("gates of different sizes");
    }
    let elem = recurrent.elem(cx);
    let projected = cx.has(ids.projection);
    let projection = if projected { Some(stacked(cx, &[ids.projection], cells)?) } else { None };
    if projection.as_ref().is_some_and(|p| p.rows() != outputs || p.value.dtype != recurrent.value.dtype) {
        return no("a projection that does not fit");
    }
    if !projected && outputs != cells {
        return no("more cells than outputs, and no projection");
    }
    let mut constants: Vec<f32> = Vec::new();
    let mut add = |v: Option<Vec<f32>>, n: usize| constants.extend(v.unwrap_or_else(|| vec![0.0; n]));
    for (g, &i) in ids.bias.iter().enumerate() {
        let b = if g < from { None } else { floats(cx, i, cells)? };
        if b.is_none() && g >= from {
            return no("a gate without bias");
        }
        add(b, cells);
    }
    let mut peephole = false;
    for (g, &i) in ids.peephole.iter().enumerate() {
        let w = if g < from { None } else { floats(cx, i, cells)? };
        peephole |= w.is_some();
        add(w, cells);
    }
    let mut normal = 0;
    for g in 0..4 {
        let w = match ids.norm.as_ref().and_then(|n| n.get(g)) {
            Some(&i) if g >= from => floats(cx, i, cells)?,
            _ => None,
        };
        normal += usize::from(w.is_some());
        add(w, cells);
    }
    if normal != 0 && normal != 4 - from {
        return no("some gates are normalized and some are not");
    }
    add(if projected { floats(cx, ids.projection + 1, outputs)? } else { None }, outputs);
    let (hq, cq) = (outputs.div_ceil(4), cells.div_ceil(4));
    let sums = if normal != 0 { 4 * cells } else { 1 };
    fits(cx, walk, (hq + cq) * 4 + sums)?;
    let mut ahead = sums_of(cx, x, &input, None, cell.asymmetric)?;
    if let Some((x, _)) = aux {
        let more = stacked(cx, ids.aux.get(from..).unwrap_or_default(), x.inner())?;
        if more.counts != input.counts || rows(&x.shape) != walk.batch * walk.time {
            return no("an auxiliary input that does not fit");
        }
        let more = sums_of(cx, x, &more, None, cell.asymmetric)?;
        ahead = both(cx, ahead, more)?;
    }
    let weights = cx.weight(|| {
        let mut all = by_quads(&recurrent.value, elem)?;
        if let Some(p) = &projection {
            all.extend(by_quads(&p.value, elem)?);
        }
        Ok(all)
    })?;
    let constants = cx.weight(|| Ok(constants.iter().flat_map(|v| v.to_le_bytes()).collect()))?;
    let h = state(cx, ids.state[0], walk.batch, outputs)?;
    let c = state(cx, ids.state[1], walk.batch, cells)?;
    let key = KernelKey::new("lstm", &[("w", elem), ("acc", Elem::F32), ("out", y.elem)])
        .set("WG", workers(cx, cells.max(outputs)) as i32)
        .set("CIFG", cifg as i32)
        .set("PEEPHOLE", peephole as i32)
        .set("NORM", (normal != 0) as i32)
        .set("PROJECTION", projected as i32)
        .set("ROUND", recurrent.round(cell.asymmetric))
        .set("ACT", cell.act)
        .set("STATE", hq as i32 * 4)
        .set("HIDDEN", cq as i32 * 4)
        .set("SUMS", sums as i32);
    let params = Params::new()
        .u(walk.time)
        .u(cells)
        .u(outputs)
        .u(walk.backward as usize)
        .u(walk.step)
        .u(walk.image)
        .u(ahead.row_quads())
        .u(hq)
        .u(hq)
        .u(cq)
        .f(cell.clip[0])
        .f(cell.clip[1])
        .row();
    // In the order of all four gates: the first is missing where the second takes its part.
    let params = (0..4).fold(params, |p, gate: usize| p.f(gate.checked_sub(from).map_or(1.0, |i| recurrent.scale(i))));
    let params = params.f(projection.as_ref().map_or(1.0, |p| p.scale(0)));
    cx.dispatch(key, &[ahead.slot, weights, constants], &[y.slot, h, c], &[], params, [walk.batch as u32, 1, 1])
}

/// The basic cell: one step, one matrix for the input and the last activation, which are operands as the last state is. Where
/// these are variable tensors, the new ones are stored there.
fn basic<'a>(cx: &mut Lower<'a, '_>) -> Lowered {
    // What the reference's kernel needs to work in, and files have as results.
    let graph = cx.scene.graph;
    let scratch = cx.node.outputs.get(2..).unwrap_or_default();
    if scratch.iter().any(|t| graph.outputs.contains(t) || graph.nodes.iter().any(|n| n.inputs.contains(&Some(*t)))) {
        return no("scratch results that are read");
    }
    let (x, y, after) = (cx.operand(0)?, cx.result(0)?, cx.result(1)?);
    let (Some(w), Some(bias)) = (cx.constant(2)?, floats_or_none(cx, 3)?) else { return no("computed weights") };
    let (&[batch, width], &[rows, columns]) = (x.shape.as_slice(), w.shape.as_slice()) else {
        return no("operands whose rank is not 2");
    };
    let cells = y.inner();
    let types = [x.dtype, w.dtype, y.dtype, after.dtype];
    if types != [DType::F32; 4] || rows != 4 * cells || columns != width + cells || bias.len() != rows {
        return no(format!("{} weights of shape {:?}", w.dtype, w.shape.as_slice()));
    }
    // Its gates are input, cell, forget, output.
    let part = |from: usize, to: usize| -> Lowered<Stack> {
        let row = |r: usize| w.bytes.get((r * columns + from) * 4..(r * columns + to) * 4).unwrap_or_default();
        let bytes: Vec<u8> =
            [0, 2, 1, 3].iter().flat_map(|g| (g * cells..(g + 1) * cells).flat_map(row)).copied().collect();
        let value = Const { dtype: DType::F32, shape: [rows, to - from].as_slice().into(), bytes: bytes.into() };
        Ok(Stack { value, counts: vec![cells; 4], scales: vec![1.0; 4] })
    };
    let (input, recurrent) = (part(0, width)?, part(width, columns)?);
    let mut constants: Vec<f32> = Vec::with_capacity(12 * cells);
    [0, 2, 1, 3].iter().for_each(|g| constants.extend(bias.get(g * cells..(g + 1) * cells).unwrap_or_default()));
    constants.resize(12 * cells, 0.0);
    let walk = Walk::new(&x, true, false)?;
    let (q, wg) = (cells.div_ceil(4), workers(cx, cells));
    fits(cx, walk, 8 * q + 1)?;
    let ahead = sums_of(cx, &x, &input, None, false)?;
    let weights = cx.weight(|| by_quads(&recurrent.value, Elem::F32))?;
    let constants = cx.weight(|| Ok(constants.iter().flat_map(|v| v.to_le_bytes()).collect()))?;
    let h = last(cx, 1, batch, cells)?;
    let c = last(cx, 4, batch, cells)?;
    let key = KernelKey::new("lstm", &[("w", Elem::F32), ("acc", Elem::F32), ("out", y.elem)])
        .set("WG", wg as i32)
        .set("CIFG", 0)
        .set("PEEPHOLE", 0)
        .set("NORM", 0)
        .set("PROJECTION", 0)
        .set("ROUND", 0)
        .set("ACT", 4)
        .set("STATE", q as i32 * 4)
        .set("HIDDEN", q as i32 * 4)
        .set("SUMS", 1);
    let params = Params::new().u(1).u(cells).u(cells).u(0).u(walk.step).u(walk.image).u(ahead.row_quads());
    let params = params.u(q).u(q).u(q).f(0.0).f(0.0).row();
    let params = (0..5).fold(params, |p, _| p.f(1.0));
    let writes = [y.slot, h.slot, c.slot];
    cx.dispatch(key, &[ahead.slot, weights, constants], &writes, &[], params, [batch as u32, 1, 1])?;
    super::convert(cx, &c, &after)
}

fn floats_or_none(cx: &Lower<'_, '_>, i: usize) -> Lowered<Option<Vec<f32>>> {
    if cx.has(i) { cx.floats(i) } else { Ok(None) }
}

/// What a cell had after the last step: a variable tensor itself, or a copy of an operand that may be written to.
fn last<'a>(cx: &mut Lower<'a, '_>, i: usize, batch: usize, n: usize) -> Lowered<Operand<'a>> {
    if cx.tensor(i)?.is_variable {
        let slot = state(cx, i, batch, n)?;
        let s = cx.state(i)?;
        return Ok(Operand { slot, ..s });
    }
    let x = cx.operand(i)?;
    if x.shape.as_slice() != [batch, n] || !x.elem.is_float() {
        return no(format!("a state of shape {:?}, {batch} rows of {n} are needed", x.shape.as_slice()));
    }
    let copy = Operand { slot: cx.temp(&x.shape, Elem::F32), elem: Elem::F32, constant: false, ..x.clone() };
    super::convert(cx, &x, &copy)?;
    Ok(copy)
}

/// Operands from `first` on: weights, recurrent weights, bias, state.
fn rnn<'a>(
    cx: &mut Lower<'a, '_>,
    cell: &Cell,
    first: usize,
    x: &Operand<'a>,
    aux: Aux<'_, 'a>,
    y: &Operand<'a>,
    walk: Walk,
) -> Lowered {
    let input = stacked(cx, &[first], walk.width)?;
    let units = y.inner();
    let recurrent = stacked(cx, &[first + 1], units)?;
    if input.rows() != units || recurrent.rows() != units || rows(&y.shape) != walk.batch * walk.time {
        return no("weights that do not fit");
    }
    let elem = recurrent.elem(cx);
    let row = units.div_ceil(4);
    fits(cx, walk, row * 8)?;
    let mut ahead = sums_of(cx, x, &input, Some(first + 2), cell.asymmetric)?;
    if let Some((x, weights)) = aux {
        let more = stacked(cx, &[weights], x.inner())?;
        if more.rows() != units || rows(&x.shape) != walk.batch * walk.time {
            return no("an auxiliary input that does not fit");
        }
        let more = sums_of(cx, x, &more, None, cell.asymmetric)?;
        ahead = both(cx, ahead, more)?;
    }
    let weights = cx.weight(|| by_quads(&recurrent.value, elem))?;
    let h = state(cx, first + 3, walk.batch, units)?;
    let key = KernelKey::new("rnn", &[("w", elem), ("acc", Elem::F32), ("out", y.elem)])
        .set("WG", workers(cx, units) as i32)
        .set("ACT", cell.act)
        .set("ROUND", recurrent.round(cell.asymmetric))
        .set("STATE", row as i32 * 4);
    let params = Params::new().u(walk.time).u(units).u(walk.backward as usize).u(walk.step).u(walk.image).u(row);
    let params = params.f(recurrent.scale(0)).u(walk.walks);
    cx.dispatch(key, &[ahead.slot, weights], &[y.slot, h], &[], params, [walk.batch as u32, 1, 1])
}

fn svdf(cx: &mut Lower<'_, '_>, rank: i32, activation: ActivationFunctionType, asymmetric: bool) -> Lowered {
    let (x, y) = (cx.operand(0)?, cx.result(0)?);
    let feature = stacked(cx, &[1], x.inner())?;
    let Some(memory) = cx.tensor(2)?.shape.last().copied() else { return no("a scalar for weights") };
    let time = stacked(cx, &[2], memory)?;
    let (&[batch, _], &[filters, memory], &[_, units]) =
        (x.shape.as_slice(), time.value.shape.as_slice(), y.shape.as_slice())
    else {
        return no("an operand whose rank is not 2");
    };
    let rank = usize::try_from(rank).unwrap_or(0);
    if feature.rows() != filters || units.checked_mul(rank) != Some(filters) || memory == 0 {
        return no("weights that do not fit");
    }
    let bias = floats(cx, 3, units)?;
    let fresh = sums_of(cx, &x, &feature, None, asymmetric)?;
    let elem = time.elem(cx);
    let weights = cx.weight(|| {
        // One long row.
        let n = filters * memory;
        let width = n.next_multiple_of(4);
        pack(&time.value, elem, &Layout { rows: 1, width, stride: n, step: 1, len: n, runs: vec![(0, 0)] }, 0)
    })?;
    let has_bias = bias.is_some();
    let bias = cx.weight(|| Ok(bias.unwrap_or_default().iter().flat_map(|v| v.to_le_bytes()).collect()))?;
    let memories = state(cx, 4, batch, filters * memory)?;
    let mut key = KernelKey::new("svdf", &[("w", elem), ("acc", Elem::F32), ("out", y.elem)]);
    key.epilogue.extend(super::activation(activation)?);
    let params = Params::new()
        .u(y.quads())
        .u(y.row_quads())
        .u(units)
        .u(rank)
        .u(memory)
        .u(fresh.row_quads())
        .u((filters * memory).next_multiple_of(4))
        .u(has_bias as usize)
        .f(time.scale(0))
        .i(0)
        .i(0)
        .i(0);
    let groups = line(y.quads().div_ceil(WG));
    cx.dispatch(key, &[fresh.slot, weights, bias], &[y.slot, memories], &[], params, groups)
}
