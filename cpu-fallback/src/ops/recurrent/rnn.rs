//! The plain recurrent cell, y = activation(W x + R y + b), one step or a sequence, one way or both.

use super::linear::{Matrix, QuantizedRows, Sums, Weights, accumulate, vector};
use super::lstm::ABSENT;
use super::*;
use crate::pool::Pool;
use crate::value::fill_to;

/// Where one direction's operands are.
struct Operands {
    weights: usize,
    recurrent: usize,
    bias: usize,
    state: usize,
    aux: usize,
}

const FORWARD: Operands = Operands { weights: 1, recurrent: 2, bias: 3, state: 4, aux: ABSENT };
const BOTH: [Operands; 2] =
    [Operands { aux: 10, ..FORWARD }, Operands { weights: 5, recurrent: 6, bias: 7, state: 8, aux: 11 }];

#[derive(Default)]
struct Scratch {
    sums: Sums,
    y: Vec<f32>,
    x: QuantizedRows,
    aux: QuantizedRows,
    state: QuantizedRows,
}

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let mut s = Scratch { sums: Sums::new(constants(site)), ..Scratch::default() };
    match &site.node.op {
        Op::Rnn(o) => {
            let (act, asymmetric) = (o.fused_activation_function, o.asymmetric_quantize_inputs);
            Ok(Box::new(move |call: &mut Call<'_>| one_way(call, act, asymmetric, true, &mut s)))
        }
        Op::UnidirectionalSequenceRnn(o) => {
            let (act, asymmetric, time_major) =
                (o.fused_activation_function, o.asymmetric_quantize_inputs, o.time_major);
            Ok(Box::new(move |call: &mut Call<'_>| one_way(call, act, asymmetric, time_major, &mut s)))
        }
        Op::BidirectionalSequenceRnn(o) => {
            let o = o.clone();
            Ok(Box::new(move |call: &mut Call<'_>| {
                let x = call.input(0)?;
                let aux = call.optional(9);
                let (backward_x, aux) = if call.optional(10).is_some() { (x, aux) } else { (aux.unwrap_or(x), None) };
                let (act, asymmetric) = (o.fused_activation_function, o.asymmetric_quantize_inputs);
                let units = call.input(1)?.shape.first().copied().unwrap_or(0);
                let [forward, backward] = BOTH;
                let there = Layout::new(&x, o.time_major, false)?;
                let back = Layout::new(&backward_x, o.time_major, true)?;
                let (out, offset) = if o.merge_outputs { (0, units) } else { (1, 0) };
                // With integer weights and the time outermost the reference walks the sequence as often as it has
                // steps, each time from the state that the walk before left.
                let walks = if o.time_major && call.input(1)?.dtype != DType::F32 { there.time } else { 1 };
                for _ in 0..walks {
                    run(call, &forward, act, asymmetric, x, aux, there, 0, 0, &mut s)?;
                    run(call, &backward, act, asymmetric, backward_x, aux, back, out, offset, &mut s)?;
                }
                Ok(())
            }))
        }
        _ => no_kernel(site),
    }
}

fn one_way(call: &mut Call<'_>, act: Activation, asymmetric: bool, time_major: bool, s: &mut Scratch) -> Result<()> {
    let x = call.input(0)?;
    let layout = Layout::new(&x, time_major, false)?;
    run(call, &FORWARD, act, asymmetric, x, None, layout, 0, 0, s)
}

fn run(
    call: &mut Call<'_>,
    ids: &Operands,
    act: Activation,
    asymmetric: bool,
    x: View<'_>,
    aux: Option<View<'_>>,
    layout: Layout,
    output: usize,
    offset: usize,
    s: &mut Scratch,
) -> Result<()> {
    let Layout { batch, time, width, .. } = layout;
    let units = call.input(ids.weights)?.shape.first().copied().unwrap_or(0);
    let inputs = call.inputs;
    let weights = Matrix::new(inputs, ids.weights, units, width)?;
    let recurrent = Matrix::new(inputs, ids.recurrent, units, units)?;
    let bias = vector(inputs, ids.bias, units)?.ok_or_else(|| Error::invalid("the bias is missing"))?;
    if x.dtype != DType::F32 || aux.is_some_and(|a| a.dtype != DType::F32) {
        return Err(Error::unsupported(format!("a recurrent cell on {}", x.dtype)));
    }
    let aux_width = aux.and_then(|a| a.shape.last().copied()).unwrap_or(0);
    let aux_weights = match aux {
        Some(_) => Some(Matrix::new(inputs, ids.aux, units, aux_width)?),
        None => None,
    };
    let (x, aux) = (x.as_slice::<f32>()?, aux.map(|a| a.as_slice::<f32>()).transpose()?);
    if aux.is_some_and(|a| a.len() != batch.saturating_mul(time).saturating_mul(aux_width)) {
        return Err(Error::invalid("the auxiliary input has another length than the input"));
    }
    let pool: &Pool = call.pool;
    let out = call.outputs.get_mut(output).ok_or_else(|| Error::invalid(format!("output {output} is missing")))?;
    let stride = out.shape.last().copied().unwrap_or(0);
    let out = out.as_mut_slice::<f32>()?;
    let state = call.variables.iter_mut().find(|(at, _)| *at == ids.state).map(|(_, v)| v);
    let state = state.ok_or_else(|| Error::invalid(format!("operand {} must be a variable tensor", ids.state)))?;
    let h = state.as_mut_slice::<f32>()?;
    if h.len() != batch.saturating_mul(units) {
        return Err(Error::invalid(format!("a state of {} elements, {batch} x {units} are needed", h.len())));
    }
    if out.len() != batch.saturating_mul(time).saturating_mul(stride) || offset.saturating_add(units) > stride {
        return Err(Error::internal("the output has another shape than inferred"));
    }
    if h.is_empty() {
        return Ok(());
    }
    for m in [Some(&weights), Some(&recurrent), aux_weights.as_ref()].into_iter().flatten() {
        s.sums.prepare(m);
    }
    let int = |m: &Matrix<'_>| matches!(m.weights, Weights::Int { .. });
    fill_to(&mut s.y, h.len(), 0.0)?;
    for t in 0..time {
        let x_row = |b: usize| &x[layout.row(t, b) * width..][..width];
        let aux_row = |b: usize| aux.map_or(&[][..], |a| &a[layout.row(t, b) * aux_width..][..aux_width]);
        s.y.chunks_exact_mut(units).for_each(|y| y.copy_from_slice(bias));
        if int(&weights) {
            s.x.fill(batch, width, asymmetric, x_row)?;
        }
        accumulate(&weights, &s.sums, x_row, &s.x, &mut s.y, pool);
        if let Some(m) = &aux_weights {
            if int(m) {
                s.aux.fill(batch, aux_width, asymmetric, aux_row)?;
            }
            accumulate(m, &s.sums, aux_row, &s.aux, &mut s.y, pool);
        }
        if int(&recurrent) {
            s.state.fill(batch, units, asymmetric, |b| &h[b * units..][..units])?;
        }
        accumulate(&recurrent, &s.sums, |b| &h[b * units..][..units], &s.state, &mut s.y, pool);
        activate(act, &mut s.y);
        h.copy_from_slice(&s.y);
        for (b, y) in s.y.chunks_exact(units).enumerate() {
            out[layout.row(t, b) * stride + offset..][..units].copy_from_slice(y);
        }
    }
    Ok(())
}
