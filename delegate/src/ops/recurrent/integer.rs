//! The LSTM in integers: 8-bit sequences, weights and output state, 16-bit gates and cell state; and SVDF.

use super::{Cell, Gates, Stack, Walk, by_quads, fits, stacked, workers};
use crate::lower::{Lower, Lowered, Operand, Params, line, no};
use crate::ops::WG;
use crate::ops::conv::{Arithmetic, Class, FEW_ROWS, Layout, OCT, few_of, pack};
use crate::ops::matmul::product;
use crate::program::{padded_bytes, rows};
use litegpu_graph::fixed::Multiplier;
use litegpu_graph::schema::ActivationFunctionType;
use litegpu_graph::{DType, Tensor, elements};
use litegpu_shaders::{Elem, KernelKey};

/// The one scale of a tensor.
fn scale(t: &Tensor) -> Lowered<f32> {
    match t.per_tensor() {
        Some((s, _)) if s > 0.0 => Ok(s),
        _ => no(format!("tensor '{}' without one positive scale", t.name)),
    }
}

/// A multiplier that the kernel's arithmetic can hold.
fn multiplier(real: f64) -> Lowered<Multiplier> {
    let m = Multiplier::new(real);
    match m.value >= 0 && (-31..=30).contains(&m.shift) {
        true => Ok(m),
        false => no(format!("a scale of {real}")),
    }
}

/// The elements of a constant, which must be of that type and as many as there is room for.
fn fill(cx: &Lower<'_, '_>, i: usize, dtype: DType, to: Option<&mut [i32]>) -> Lowered {
    let value = cx.constant(i)?.filter(|c| c.dtype == dtype);
    let Some(value) = value.as_ref().and_then(crate::convert::ints) else {
        return no(format!("operand {i} is no {dtype} constant"));
    };
    match to {
        Some(to) if to.len() == value.len() => to.iter_mut().zip(value).for_each(|(t, v)| *t = v as i32),
        _ => return no(format!("operand {i} has another length")),
    }
    Ok(())
}

/// SVDF in integers: 8-bit input and feature weights, 16-bit time weights and state.
pub(super) fn svdf(cx: &mut Lower<'_, '_>, rank: i32, activation: ActivationFunctionType) -> Lowered {
    if activation != ActivationFunctionType::RELU {
        return no(format!("activation {activation:?} on int8"));
    }
    let (x, y) = (cx.operand(0)?, cx.result(0)?);
    let feature = stacked(cx, &[1], x.inner())?;
    let (Some(time), state) = (cx.constant(2)?, cx.tensor(4)?) else { return no("computed weights") };
    let (&[batch, width], &[filters, memory], &[_, units]) =
        (x.shape.as_slice(), time.shape.as_slice(), y.shape.as_slice())
    else {
        return no("an operand whose rank is not 2");
    };
    let rank = usize::try_from(rank).unwrap_or(0);
    if feature.rows() != filters || units.checked_mul(rank) != Some(filters) || memory == 0 {
        return no("weights that do not fit");
    }
    let types = [feature.value.dtype, time.dtype, state.dtype, y.dtype];
    if types != [DType::I8, DType::I16, DType::I16, DType::I8] {
        return no("an integer SVDF with weights or a state of other types");
    }
    let (x_scale, x_zero) = x.scale_zero()?;
    let (state_scale, time_scale) = (scale(state)?, scale(cx.tensor(2)?)?);
    let (y_scale, y_zero) = y.scale_zero()?;
    let first = multiplier((x_scale * feature.scale(0) / state_scale) as f64)?;
    let second = multiplier((state_scale * time_scale / y_scale) as f64)?;
    let fresh = ahead(cx, &x, &feature, x_zero, vec![first; filters], None)?;
    let mut bias = vec![0; units];
    let has_bias = cx.has(3);
    if has_bias {
        fill(cx, 3, DType::I32, Some(&mut bias))?;
    }
    let mut weights = vec![0; (filters * memory).next_multiple_of(4)];
    fill(cx, 2, DType::I16, weights.get_mut(..filters * memory))?;
    let words = |v: &[i32]| -> Vec<u8> { v.iter().flat_map(|v| v.to_le_bytes()).collect() };
    // Few beside the others: a word each.
    let weights = cx.weight(|| Ok(words(&weights)))?;
    let bias = cx.weight(|| Ok(words(&bias)))?;
    let memories = cx.state(4)?;
    if elements(&memories.shape) != batch * filters * memory || memories.inner() != filters * memory {
        return no(format!("a state of shape {:?}", memories.shape.as_slice()));
    }
    debug_assert_eq!(rows(&fresh.shape), batch, "width {width}");
    let key = KernelKey::new("svdf", &[("w", Elem::I32), ("acc", Elem::I32), ("out", y.elem)]).set("INTEGER", 1);
    let params = Params::new()
        .u(y.quads())
        .u(y.row_quads())
        .u(units)
        .u(rank)
        .u(memory)
        .u(fresh.row_quads())
        .u((filters * memory).next_multiple_of(4))
        .u(has_bias as usize)
        .f(1.0)
        .i(second.value)
        .i(second.shift)
        .i(y_zero);
    let groups = line(y.quads().div_ceil(WG));
    cx.dispatch(key, &[fresh.slot, weights, bias], &[y.slot, memories.slot], &[], params, groups)
}

/// All rows of `x` times `weights`, transposed, as 16-bit numbers of a word each.
fn ahead<'a>(
    cx: &mut Lower<'a, '_>,
    x: &Operand<'a>,
    w: &Stack,
    x_zero: i32,
    scales: Vec<Multiplier>,
    bias: Option<&[i64]>,
) -> Lowered<Operand<'a>> {
    let a = Arithmetic {
        class: Class::Rounded(scales),
        weights: Elem::I8,
        x_zero,
        w_zero: 0,
        out_zero: 0,
        low: i16::MIN.into(),
        high: i16::MAX.into(),
        after: None,
        dots: None,
    };
    let (depth, units, steps) = (x.inner(), w.rows(), x.inner().div_ceil(OCT));
    let packed = cx.weight(|| {
        let l = Layout { rows: units, width: steps * OCT, stride: depth, step: 1, len: depth, runs: vec![(0, 0)] };
        pack(&w.value, Elem::I8, &l, 0)
    })?;
    let n = rows(&x.shape);
    let shape = [n, units];
    let y = Operand {
        slot: cx.temp(&shape, Elem::I32),
        elem: Elem::I32,
        dtype: DType::I32,
        shape: shape.as_slice().into(),
        quant: None,
        constant: false,
        tensor: x.tensor,
    };
    let chans = a.channels_of(cx, bias, None, units, n >= FEW_ROWS)?;
    if n < FEW_ROWS {
        few_of(cx, &a, x, packed, chans, &y, n, depth, units)?;
    } else {
        product(n, depth.div_ceil(4), units, steps).emit(cx, &a, (x.slot, x.elem), packed, chans, &y)?;
    }
    Ok(y)
}

pub(super) fn lstm(cx: &mut Lower<'_, '_>, cell: &Cell, time_major: bool) -> Lowered {
    let ids = &Gates::FULL;
    let (x, y) = (cx.operand(0)?, cx.result(0)?);
    let walk = Walk::new(&x, time_major, false)?;
    if cx.node.intermediates.len() != 5 {
        return no(format!("{} intermediate tensors: only the form with 5 has a kernel", cx.node.intermediates.len()));
    }
    let Some(hidden) = cx.node.intermediates.last().copied().flatten() else { return no("no hidden tensor") };
    let hidden = cx.scene.tensor(hidden)?;
    let hidden_zero = hidden.per_tensor().map_or(0, |q| q.1);
    let hidden_scale = scale(hidden)?;
    let (state, cells_of) = (cx.tensor(ids.state[0])?, cx.tensor(ids.state[1])?);
    if y.elem != Elem::I8 || state.dtype != DType::I8 || cells_of.dtype != DType::I16 {
        return no("an integer LSTM with states of other types");
    }
    let (x_scale, x_zero) = (scale(cx.tensor(0)?)?, x.scale_zero()?.1);
    let (state_scale, cell_scale) = (scale(state)?, scale(cells_of)?);
    let state_zero = state.per_tensor().map_or(0, |q| q.1);
    let exponent = cell_scale.log2();
    if (exponent - exponent.round()).abs() >= 1e-3 || !(-30.0..=0.0).contains(&exponent.round()) {
        return no(format!("a cell state of scale {cell_scale}"));
    }
    let exponent = exponent.round() as i32;

    let cell_bits = u32::try_from(15 + exponent).ok().filter(|b| *b <= 6);
    let cifg = !cx.has(ids.input[0]);
    if cifg && cell_bits.is_none() {
        return no(format!("a cell state of scale {cell_scale} and no input gate"));
    }
    let from = usize::from(cifg);
    let (inputs, recurrences) =
        (ids.input.get(from..).unwrap_or_default(), ids.recurrent.get(from..).unwrap_or_default());
    let (input, outputs) = (stacked(cx, inputs, walk.width)?, y.inner());
    let recurrent = stacked(cx, recurrences, outputs)?;
    let cells = input.counts.last().copied().unwrap_or(0);
    if cells == 0
        || input.counts.iter().chain(&recurrent.counts).any(|&n| n != cells)
        || rows(&y.shape) != walk.batch * walk.time
    {
        return no("gates of different sizes");
    }
    let projection = if cx.has(ids.projection) { Some(stacked(cx, &[ids.projection], cells)?) } else { None };
    let weights = [Some(&input), Some(&recurrent), projection.as_ref()];
    if weights.into_iter().flatten().any(|w| w.value.dtype != DType::I8) {
        return no("an integer LSTM with weights of another type");
    }
    if projection.as_ref().is_some_and(|p| p.rows() != outputs) || (projection.is_none() && outputs != cells) {
        return no("a projection that does not fit");
    }
    let (hq, cq) = (outputs.div_ceil(4), cells.div_ceil(4));
    let norm = ids.norm.unwrap_or_default();
    let normal = cx.has(norm[1]);
    let sums = if normal { 4 * cells } else { 1 };
    fits(cx, walk, (hq + cq) * 4 + sums + 12)?;
    // Sums are counted in these units from here on.
    let mut units_of = [2f32.powi(-12); 4];
    for (g, unit) in units_of.iter_mut().enumerate().skip(from).filter(|_| normal) {
        let t = cx.node.intermediates.get(g).copied().flatten();
        let Some(t) = t else { return no(format!("intermediate tensor {g} is missing")) };
        *unit = scale(cx.scene.tensor(t)?)?;
    }
    // By cell, after the projection's bias: three peephole weights, four factors of the normalization and four biases.
    let mut more = vec![0i32; if normal || ids.peephole.iter().any(|&i| cx.has(i)) { 11 * cells } else { 0 }];
    let mut peep = [Multiplier::default(); 4];
    let mut peephole = false;
    for (k, (&i, g)) in ids.peephole.iter().zip([0, 1, 3]).enumerate().skip(from).filter(|(_, (i, _))| cx.has(**i)) {
        peephole = true;
        let real = 2f64.powi(exponent) * scale(cx.tensor(i)?)? as f64 / units_of[g] as f64;
        peep[g] = multiplier(real as f32 as f64)?;
        fill(cx, i, DType::I16, more.get_mut(k * cells..(k + 1) * cells))?;
    }
    let (mut normalized, mut guard) = ([Multiplier::default(); 4], [1i32; 4]);
    for g in (from..4).filter(|_| normal) {
        let factor = scale(cx.tensor(norm[g])?)?;
        let m = Multiplier::new(factor as f64);
        normalized[g] = Multiplier { shift: m.shift + 12, ..m };
        if m.value < 0 || !(-31..=30).contains(&normalized[g].shift) {
            return no(format!("a scale of {factor}"));
        }
        guard[g] = ((10000.0 * factor) as i32).max(1);
        fill(cx, norm[g], DType::I16, more.get_mut((3 + g) * cells..(4 + g) * cells))?;
        // A gate that is normalized has its bias after that.
        fill(cx, ids.bias[g], DType::I32, more.get_mut((7 + g) * cells..(8 + g) * cells))?;
    }

    let mut bias: Vec<i64> = Vec::new();
    let (mut early, mut late) = (Vec::new(), vec![Multiplier::default(); from]);
    for (i, g) in (from..4).enumerate() {
        let Some(&b) = ids.bias.get(g) else { continue };
        let b = cx.ints(b)?;
        if b.len() != cells {
            return no("a bias of another length");
        }
        bias.extend(b.into_iter().map(|b| if normal { 0 } else { b }));
        let unit = units_of.get(g).copied().unwrap_or(1.0);
        let m = multiplier((input.scale(i) * x_scale / unit) as f64)?;
        early.extend(std::iter::repeat_n(m, cells));
        late.push(multiplier((recurrent.scale(i) * state_scale / unit) as f64)?);
    }
    let ahead = ahead(cx, &x, &input, x_zero, early, Some(&bias))?;

    let weights = cx.weight(|| {
        let mut all = by_quads(&recurrent.value, Elem::I8)?;
        if let Some(p) = &projection {
            all.extend(by_quads(&p.value, Elem::I8)?);
        }
        Ok(all)
    })?;
    let mut after = vec![0i32; outputs];
    let mut projected = Multiplier::default();
    if let Some(p) = &projection {
        projected = multiplier((p.scale(0) * hidden_scale / state_scale) as f64)?;
        if cx.has(ids.projection + 1) {
            let b = cx.ints(ids.projection + 1)?;
            if b.len() != outputs {
                return no("a bias of another length");
            }
            after = b.iter().map(|&b| b as i32).collect();
        }
        for (to, row) in after.iter_mut().zip(p.value.bytes.chunks_exact(cells)) {
            let sum: i32 = row.iter().map(|&w| i32::from(w as i8)).sum();
            *to = to.wrapping_add(sum.wrapping_mul(hidden_zero));
        }
    }
    after.extend(more);
    let after = cx.weight(|| Ok(after.iter().flat_map(|v| v.to_le_bytes()).collect()))?;
    let rescaled = multiplier((2f64.powi(-15) / hidden_scale as f64 * 2f64.powi(-15)) as f32 as f64)?;
    let (h, c) = (cx.state(ids.state[0])?, cx.state(ids.state[1])?);
    for (s, n) in [(&h, outputs), (&c, cells)] {
        if elements(&s.shape) != walk.batch * n || s.inner() != n {
            return no(format!("a state of shape {:?}, {} rows of {n} are needed", s.shape.as_slice(), walk.batch));
        }
    }
    debug_assert_eq!(padded_bytes(&c.shape, c.elem), (walk.batch * cq * 16) as u64);
    let [cell_clip, state_clip] = cell.clip;
    let cell_clip = if cell_clip > 0.0 { (cell_clip / cell_scale).clamp(-32768.0, 32767.0) as i32 } else { 0 };
    let y_scale = y.scale_zero()?.0;
    let state_clip = if state_clip > 0.0 { (state_clip / y_scale).clamp(-128.0, 127.0) as i32 } else { 0 };
    let roles = [("w", Elem::I8), ("state", Elem::I8), ("acc", Elem::I32), ("out", y.elem)];
    let key = KernelKey::new(if normal { "lstm_fixed_norm" } else { "lstm_fixed" }, &roles)
        .set("WG", workers(cx, cells.max(outputs)) as i32)
        .set("CIFG", cifg as i32)
        .set("PROJECTION", projection.is_some() as i32)
        .set("PEEPHOLE", peephole as i32)
        .set("NORM", normal as i32)
        .set("STATE", hq as i32 * 4)
        .set("HIDDEN", cq as i32 * 4)
        .set("SUMS", sums as i32);
    let params = late.iter().fold(Params::new(), |p, m| p.i(m.value));
    let params = late.iter().fold(params, |p, m| p.i(m.shift));
    let params = params.i(rescaled.value).i(rescaled.shift).i(projected.value).i(projected.shift);
    let both = |p: Params, m: [Multiplier; 4]| {
        let p = m.iter().fold(p, |p, m| p.i(m.value));
        m.iter().fold(p, |p, m| p.i(m.shift))
    };
    let params = guard.iter().fold(both(both(params, peep), normalized), |p, &g| p.i(g));
    // The reference walks as many peephole weights as there are outputs, where a projection makes these fewer than the cells
    // too; with the time outermost it takes the batch in one row.
    let (image, rows_of) = if time_major || x.shape.len() == 2 { (cells, walk.batch) } else { (0, 1) };
    let params = params
        .u(image)
        .u(rows_of * outputs.min(cells))
        .u(walk.time)
        .u(cells)
        .u(outputs)
        .u(walk.step)
        .u(walk.image)
        .u(ahead.row_quads())
        .u(hq)
        .u(cq)
        .i(30 + exponent)
        .u(cell_bits.unwrap_or(7) as usize)
        .i(cell_clip)
        .i(state_clip)
        .i(state_zero)
        // What a projection reads lacks the zero point: its sums have it.
        .i(if projection.is_some() { hidden_zero.wrapping_neg() } else { hidden_zero });
    let groups = [walk.batch as u32, 1, 1];
    cx.dispatch(key, &[ahead.slot, weights, after], &[y.slot, h.slot, c.slot], &[], params, groups)
}
