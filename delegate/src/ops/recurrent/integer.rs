//! The LSTM in integers: 8-bit sequences, weights and output state, 16-bit gates and cell state.

use super::{Cell, Gates, Walk, by_quads, fits, stacked, workers};
use crate::lower::{Lower, Lowered, Operand, Params, no};
use crate::ops::conv::{Arithmetic, Class, FEW_ROWS, Layout, OCT, few_of, pack};
use crate::ops::matmul::product;
use crate::program::{padded_bytes, rows};
use litegpu_graph::fixed::Multiplier;
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

pub(super) fn lstm(cx: &mut Lower<'_, '_>, cell: &Cell, time_major: bool) -> Lowered {
    let ids = &Gates::FULL;
    let (x, y) = (cx.operand(0)?, cx.result(0)?);
    let walk = Walk::new(&x, time_major, false)?;
    if cx.node.intermediates.len() != 5 {
        return no(format!("{} intermediate tensors: only the form with 5 has a kernel", cx.node.intermediates.len()));
    }
    if ids.peephole.iter().chain(ids.norm.iter().flatten()).any(|&i| cx.has(i)) {
        return no("an integer LSTM with peepholes or layer normalization");
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
    fits(cx, walk, (hq + cq) * 4)?;

    // Sums are counted in units of 2^-12 from here on.
    let unit = 2f32.powi(-12);
    let mut bias: Vec<i64> = Vec::new();
    let (mut early, mut late) = (Vec::new(), vec![Multiplier::default(); from]);
    for (i, g) in (from..4).enumerate() {
        let Some(&b) = ids.bias.get(g) else { continue };
        let b = cx.ints(b)?;
        if b.len() != cells {
            return no("a bias of another length");
        }
        bias.extend(b);
        let m = multiplier((input.scale(i) * x_scale / unit) as f64)?;
        early.extend(std::iter::repeat_n(m, cells));
        late.push(multiplier((recurrent.scale(i) * state_scale / unit) as f64)?);
    }
    let a = Arithmetic {
        class: Class::Rounded(early),
        weights: Elem::I8,
        x_zero,
        w_zero: 0,
        out_zero: 0,
        low: i16::MIN.into(),
        high: i16::MAX.into(),
        after: None,
    };
    let (depth, units, steps) = (walk.width, input.rows(), walk.width.div_ceil(OCT));
    let packed = cx.weight(|| {
        let l = Layout { rows: units, width: steps * OCT, stride: depth, step: 1, len: depth, runs: vec![(0, 0)] };
        pack(&input.value, Elem::I8, &l, 0)
    })?;
    let n = walk.batch * walk.time;
    let shape = [n, units];
    let ahead = Operand {
        slot: cx.temp(&shape, Elem::I32),
        elem: Elem::I32,
        dtype: DType::I32,
        shape: shape.as_slice().into(),
        quant: None,
        constant: false,
        tensor: x.tensor,
    };
    let chans = a.channels_of(cx, Some(&bias), None, units, n >= FEW_ROWS)?;
    if n < FEW_ROWS {
        few_of(cx, &a, &x, packed, chans, &ahead, n, depth, units)?;
    } else {
        product(n, depth.div_ceil(4), units, steps).emit(cx, &a, (x.slot, x.elem), packed, chans, &ahead)?;
    }

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
    let key =
        KernelKey::new("lstm_fixed", &[("w", Elem::I8), ("state", Elem::I8), ("acc", Elem::I32), ("out", y.elem)])
            .set("WG", workers(cx, cells.max(outputs)) as i32)
            .set("CIFG", cifg as i32)
            .set("PROJECTION", projection.is_some() as i32)
            .set("STATE", hq as i32 * 4)
            .set("HIDDEN", cq as i32 * 4);
    let params = late.iter().fold(Params::new(), |p, m| p.i(m.value));
    let params = late.iter().fold(params, |p, m| p.i(m.shift));
    let params = params
        .i(rescaled.value)
        .i(rescaled.shift)
        .i(projected.value)
        .i(projected.shift)
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
