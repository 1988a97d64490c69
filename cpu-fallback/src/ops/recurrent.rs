//! LSTM, RNN, SVDF: kernels. State lives in variable tensors.

use super::*;
use crate::kernel::Call;
use crate::real;
use crate::simd::{Isa, Task, dispatch};
use crate::value::{Value, View};
use litegpu_graph::schema::{ActivationFunctionType as Activation, LSTMKernelType};
use litegpu_graph::{DType, Op};

mod basic;
mod fixed16;
mod integer;
mod linear;
mod lstm;
mod rnn;
mod svdf;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let input = site.input(0)?.dtype;
    match &site.node.op {
        Op::Lstm(o) if o.kernel_type == LSTMKernelType::BASIC => basic::prepare(site),
        Op::Lstm(o) => {
            let p = lstm::Params {
                activation: o.fused_activation_function,
                cell_clip: o.cell_clip,
                proj_clip: o.proj_clip,
                asymmetric: o.asymmetric_quantize_inputs,
            };
            if input == DType::I8 { integer::prepare(site, p, true) } else { one_way(site, p, true) }
        }
        Op::UnidirectionalSequenceLstm(o) => {
            let p = lstm::Params {
                activation: o.fused_activation_function,
                cell_clip: o.cell_clip,
                proj_clip: o.proj_clip,
                asymmetric: o.asymmetric_quantize_inputs,
            };
            let time_major = o.time_major;
            if input == DType::I8 { integer::prepare(site, p, time_major) } else { one_way(site, p, time_major) }
        }
        Op::BidirectionalSequenceLstm(o) => {
            let p = lstm::Params {
                activation: o.fused_activation_function,
                cell_clip: o.cell_clip,
                proj_clip: o.proj_clip,
                asymmetric: o.asymmetric_quantize_inputs,
            };
            both_ways(site, p, o.time_major, o.merge_outputs)
        }
        Op::Rnn(_) | Op::UnidirectionalSequenceRnn(_) | Op::BidirectionalSequenceRnn(_) => rnn::prepare(site),
        Op::Svdf(_) => svdf::prepare(site),
        _ => no_kernel(site),
    }
}

/// How a sequence lies in memory and which way it is walked.
#[derive(Debug, Clone, Copy)]
struct Layout {
    batch: usize,
    time: usize,
    width: usize,
    time_major: bool,
    backward: bool,
}

impl Layout {
    fn new(x: &View<'_>, time_major: bool, backward: bool) -> Result<Layout> {
        let (time, batch, width) = match (x.shape, time_major) {
            (&[batch, width], _) => (1, batch, width),
            (&[time, batch, width], true) | (&[batch, time, width], false) => (time, batch, width),
            (s, _) => return Err(Error::invalid(format!("input of shape {s:?}, 2 or 3 dimensions are needed"))),
        };
        Ok(Layout { batch, time, width, time_major: time_major || x.shape.len() == 2, backward })
    }

    /// The row of step `t` of the walk.
    fn row(&self, t: usize, b: usize) -> usize {
        let t = if self.backward { self.time - 1 - t } else { t };
        if self.time_major { t * self.batch + b } else { b * self.time + t }
    }
}

/// Two of a node's variable tensors at once.
fn states(variables: &mut [(usize, Value)], ids: [usize; 2]) -> Result<[&mut Value; 2]> {
    let (mut first, mut second) = (None, None);
    for (at, v) in variables {
        if *at == ids[0] {
            first = Some(v);
        } else if *at == ids[1] {
            second = Some(v);
        }
    }
    match (first, second) {
        (Some(a), Some(b)) => Ok([a, b]),
        _ => Err(Error::invalid(format!("operands {} and {} must be variable tensors", ids[0], ids[1]))),
    }
}

/// The hyperbolic tangent of every number, in place.
struct Tanh<'a>(&'a mut [f32]);

impl Task for Tanh<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        self.0.iter_mut().for_each(|x| *x = real::tanh(*x));
    }
}

fn activate(activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::RELU => x.iter_mut().for_each(|x| *x = x.max(0.0)),
        Activation::RELU6 => x.iter_mut().for_each(|x| *x = x.clamp(0.0, 6.0)),
        Activation::RELU_N1_TO_1 => x.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0)),
        Activation::TANH => dispatch(Tanh(x)),
        Activation::SIGN_BIT => x.iter_mut().for_each(|x| *x = x.is_sign_negative() as u8 as f32),
        _ => {}
    }
}

/// Which operands are constants.
fn constants(site: &Site<'_>) -> Vec<bool> {
    (0..site.node.inputs.len()).map(|i| site.optional(i).is_some_and(|t| t.is_constant())).collect()
}

fn one_way(site: &Site<'_>, p: lstm::Params, time_major: bool) -> Result<Kernel> {
    if !matches!(site.node.inputs.len(), 20 | 24) {
        return Err(Error::invalid(format!("{} operands, 20 or 24 are needed", site.node.inputs.len())));
    }
    let mut scratch = lstm::Scratch::new(constants(site));
    Ok(Box::new(move |call: &mut Call<'_>| {
        let x = call.input(0)?;
        let layout = Layout::new(&x, time_major, false)?;
        let Some(out) = call.outputs.first_mut() else { return Ok(()) };
        let ids = &lstm::Operands::FULL;
        lstm::run(call.inputs, call.variables, ids, &p, x, None, layout, out, 0, call.pool, &mut scratch)
    }))
}

fn both_ways(site: &Site<'_>, p: lstm::Params, time_major: bool, merged: bool) -> Result<Kernel> {
    if site.node.inputs.len() != 48 {
        return Err(Error::invalid(format!("{} operands, 48 are needed", site.node.inputs.len())));
    }
    let mut scratch = lstm::Scratch::new(constants(site));
    Ok(Box::new(move |call: &mut Call<'_>| {
        let x = call.input(0)?;
        let aux = call.optional(39);
        // Without weights of its own the auxiliary input is what the backward direction reads.
        let crossed = call.optional(41).is_some();
        let (backward_x, aux) = if crossed { (x, aux) } else { (aux.unwrap_or(x), None) };
        let mut layout = Layout::new(&x, time_major, false)?;
        let (inputs, pool) = (call.inputs, call.pool);
        let offset = if merged { call.input(8)?.shape.last().copied().unwrap_or(0) } else { 0 };
        let ids = &lstm::Operands::FORWARD;
        let out = call.outputs.first_mut().ok_or_else(|| Error::invalid("no output"))?;
        lstm::run(inputs, call.variables, ids, &p, x, aux, layout, out, 0, pool, &mut scratch)?;
        layout = Layout::new(&backward_x, time_major, true)?;
        let ids = &lstm::Operands::BACKWARD;
        let out = call.outputs.get_mut(!merged as usize).ok_or_else(|| Error::invalid("no backward output"))?;
        lstm::run(inputs, call.variables, ids, &p, backward_x, aux, layout, out, offset, pool, &mut scratch)
    }))
}
