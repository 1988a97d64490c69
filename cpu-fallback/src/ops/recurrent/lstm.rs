//! The LSTM cell over a sequence, float and dynamic range: all forms of the full kernel (CIFG, peephole, projection,
//! layer normalisation, diagonal recurrence, auxiliary input) in one loop.

use super::linear::{Matrix, QuantizedRows, Sums, Weights, accumulate, vector};
use super::{Layout, activate, states};
use crate::pool::Pool;
use crate::value::{Value, View, fill_to};
use litegpu_graph::schema::ActivationFunctionType as Activation;
use litegpu_graph::{DType, Error, Result};
use std::borrow::Cow;

/// No operand of a node has this number.
pub(super) const ABSENT: usize = usize::MAX;

/// Where the operands of one cell are among the node's. Gates in the order input, forget, cell, output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands {
    pub input: [usize; 4],
    pub aux: [usize; 4],
    pub recurrent: [usize; 4],
    /// Not for the cell gate.
    pub peephole: [usize; 4],
    pub bias: [usize; 4],
    pub norm: [usize; 4],
    pub projection: usize,
    pub projection_bias: usize,
    /// Output state and cell state.
    pub state: [usize; 2],
}

impl Operands {
    /// The full LSTM kernel and the unidirectional sequence.
    pub(super) const FULL: Operands = Operands {
        input: [1, 2, 3, 4],
        aux: [ABSENT; 4],
        recurrent: [5, 6, 7, 8],
        peephole: [9, 10, ABSENT, 11],
        bias: [12, 13, 14, 15],
        norm: [20, 21, 22, 23],
        projection: 16,
        projection_bias: 17,
        state: [18, 19],
    };

    /// Forward half of the bidirectional sequence.
    pub(super) const FORWARD: Operands =
        Operands { aux: [40, 41, 42, 43], norm: [ABSENT; 4], state: [35, 36], ..Operands::FULL };

    /// Backward half.
    pub(super) const BACKWARD: Operands = Operands {
        input: [18, 19, 20, 21],
        aux: [44, 45, 46, 47],
        recurrent: [22, 23, 24, 25],
        peephole: [26, 27, ABSENT, 28],
        bias: [29, 30, 31, 32],
        norm: [ABSENT; 4],
        projection: 33,
        projection_bias: 34,
        state: [37, 38],
    };
}

/// Attributes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Params {
    pub activation: Activation,
    pub cell_clip: f32,
    pub proj_clip: f32,
    pub asymmetric: bool,
}

/// Memory that is kept from run to run.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    sums: Sums,
    gates: [Vec<f32>; 4],
    hidden: Vec<f32>,
    x: QuantizedRows,
    aux: QuantizedRows,
    state: QuantizedRows,
}

impl Scratch {
    pub(super) fn new(constant: Vec<bool>) -> Scratch {
        Scratch { sums: Sums::new(constant), ..Scratch::default() }
    }
}

/// One gate's weights.
struct Gate<'a> {
    input: Matrix<'a>,
    aux: Option<Matrix<'a>>,
    recurrent: Matrix<'a>,
    peephole: Option<Cow<'a, [f32]>>,
    bias: &'a [f32],
    norm: Option<&'a [f32]>,
}

/// Runs one direction. `x` is the operand that it reads, `aux` the auxiliary input if it has one; results go to
/// columns from `offset` of `out`.
pub(super) fn run<'a>(
    inputs: &[Option<View<'a>>],
    variables: &mut [(usize, Value)],
    ids: &Operands,
    p: &Params,
    x: View<'a>,
    aux: Option<View<'a>>,
    layout: Layout,
    out: &mut Value,
    offset: usize,
    pool: &Pool,
    s: &mut Scratch,
) -> Result<()> {
    let shape = |i: usize| inputs.get(i).copied().flatten().map(|v| v.shape);
    let Layout { batch, time, width, .. } = layout;
    let cells = match shape(ids.input[3]) {
        Some(&[n, _]) => n,
        s => return Err(Error::invalid(format!("input to output weights of shape {s:?}"))),
    };
    let outputs = match shape(ids.recurrent[3]) {
        Some(&[_, n]) | Some(&[n]) => n,
        s => return Err(Error::invalid(format!("recurrent to output weights of shape {s:?}"))),
    };
    if x.dtype != DType::F32 || aux.is_some_and(|a| a.dtype != DType::F32) {
        return Err(Error::unsupported(format!("an LSTM on {} with these weights", x.dtype)));
    }
    let aux_width = aux.and_then(|a| a.shape.last().copied()).unwrap_or(0);
    let (x, aux) = (x.as_slice::<f32>()?, aux.map(|a| a.as_slice::<f32>()).transpose()?);
    let rows = batch.saturating_mul(time);
    if x.len() != rows.saturating_mul(width) || aux.is_some_and(|a| a.len() != rows.saturating_mul(aux_width)) {
        return Err(Error::invalid("the auxiliary input has another length than the input"));
    }
    let cifg = shape(ids.input[0]).is_none();
    let mut gates: [Option<Gate<'a>>; 4] = [const { None }; 4];
    for (g, gate) in gates.iter_mut().enumerate().skip(cifg as usize) {
        let peephole = match inputs.get(ids.peephole[g]).copied().flatten() {
            Some(v) => Some(float_vector(v, cells)?),
            None => None,
        };
        *gate = Some(Gate {
            input: Matrix::new(inputs, ids.input[g], cells, width)?,
            aux: match aux {
                Some(_) => Some(Matrix::new(inputs, ids.aux[g], cells, aux_width)?),
                None => None,
            },
            recurrent: Matrix::new(inputs, ids.recurrent[g], cells, outputs)?,
            peephole,
            bias: vector(inputs, ids.bias[g], cells)?.ok_or_else(|| Error::invalid("a gate's bias is missing"))?,
            norm: vector(inputs, ids.norm[g], cells)?,
        });
    }
    let projection = Matrix::optional(inputs, ids.projection, outputs, cells)?;
    let projection_bias = vector(inputs, ids.projection_bias, outputs)?;
    if projection.is_none() && outputs != cells {
        return Err(Error::invalid(format!("{outputs} outputs of {cells} cells without a projection")));
    }
    let [h, c] = states(variables, ids.state)?;
    let (h, c) = (h.as_mut_slice::<f32>()?, c.as_mut_slice::<f32>()?);
    if h.len() != batch.saturating_mul(outputs) || c.len() != batch.saturating_mul(cells) {
        return Err(Error::invalid(format!(
            "states of {} and {} elements, {batch} times {outputs} and {cells} are needed",
            h.len(),
            c.len()
        )));
    }
    let stride = out.shape.last().copied().unwrap_or(0);
    let out = out.as_mut_slice::<f32>()?;
    if out.len() != rows.saturating_mul(stride) || offset.saturating_add(outputs) > stride {
        return Err(Error::internal("the output has another shape than inferred"));
    }
    if out.is_empty() || batch == 0 {
        return Ok(());
    }
    for g in gates.iter().flatten() {
        for m in [Some(g.input), g.aux, Some(g.recurrent)].iter().flatten() {
            s.sums.prepare(m);
        }
    }
    if let Some(m) = &projection {
        s.sums.prepare(m);
    }
    let int = |m: &Matrix<'_>| matches!(m.weights, Weights::Int { .. });
    // One gate with integer weights is enough: files may mix them.
    let int_x = gates.iter().flatten().any(|g| int(&g.input));
    let int_aux = gates.iter().flatten().filter_map(|g| g.aux.as_ref()).any(int);
    let int_h = gates.iter().flatten().any(|g| int(&g.recurrent));
    fill_to(&mut s.hidden, batch * cells, 0.0)?;

    // The input's part of many steps at once reads the weights fewer times.
    let steps = ((1usize << 18) / (batch * cells).max(1)).clamp(1, time.max(1));
    for start in (0..time).step_by(steps) {
        let steps = steps.min(time - start);
        let count = steps * batch;
        let at = |i: usize| layout.row(start + i / batch, i % batch);
        let x_row = |i: usize| &x[at(i) * width..][..width];
        let aux_row = |i: usize| aux.map_or(&[][..], |a| &a[at(i) * aux_width..][..aux_width]);
        if int_x {
            s.x.fill(count, width, p.asymmetric, x_row)?;
        }
        if int_aux {
            s.aux.fill(count, aux_width, p.asymmetric, aux_row)?;
        }
        for (gate, sum) in gates.iter().zip(&mut s.gates) {
            let Some(gate) = gate else { continue };
            fill_to(sum, count * cells, 0.0)?;
            if gate.norm.is_none() && cells > 0 {
                sum.chunks_exact_mut(cells).for_each(|row| row.copy_from_slice(gate.bias));
            }
            accumulate(&gate.input, &s.sums, x_row, &s.x, sum, pool);
            if let Some(m) = &gate.aux {
                accumulate(m, &s.sums, aux_row, &s.aux, sum, pool);
            }
        }
        for t in 0..steps {
            let part = t * batch * cells..(t + 1) * batch * cells;
            if int_h {
                s.state.fill(batch, outputs, p.asymmetric, |b| &h[b * outputs..][..outputs])?;
            }
            // What a gate's activation is applied to.
            let finish = |gate: &Gate<'_>, sum: &mut [f32], c: &[f32], sums: &Sums, q: &QuantizedRows| {
                accumulate(&gate.recurrent, sums, |b| &h[b * outputs..][..outputs], q, sum, pool);
                for (sum, c) in sum.chunks_exact_mut(cells.max(1)).zip(c.chunks_exact(cells.max(1))) {
                    if let Some(w) = &gate.peephole {
                        sum.iter_mut().zip(w.iter()).zip(c).for_each(|((s, w), c)| *s += w * c);
                    }
                    if let Some(norm) = gate.norm {
                        normalize(sum);
                        sum.iter_mut().zip(norm).zip(gate.bias).for_each(|((s, n), b)| *s = *s * n + b);
                    }
                }
            };
            for (g, gate) in gates.iter().enumerate().take(3) {
                if let Some(gate) = gate {
                    let sum = &mut s.gates[g][part.clone()];
                    finish(gate, sum, c, &s.sums, &s.state);
                    if g == 2 { activate(p.activation, sum) } else { logistic(sum) }
                }
            }
            let [input, forget, cell, _] = &s.gates;
            for (i, c) in c.iter_mut().enumerate() {
                let at = part.start + i;
                let f = forget[at];
                let write = if cifg { 1.0 - f } else { input[at] };
                *c = f * *c + cell[at] * write;
                if p.cell_clip > 0.0 {
                    *c = c.clamp(-p.cell_clip, p.cell_clip);
                }
            }
            if let Some(gate) = &gates[3] {
                let sum = &mut s.gates[3][part.clone()];
                finish(gate, sum, c, &s.sums, &s.state);
                logistic(sum);
            }
            s.hidden.copy_from_slice(c);
            activate(p.activation, &mut s.hidden);
            s.hidden.iter_mut().zip(&s.gates[3][part.clone()]).for_each(|(y, o)| *y *= o);
            match &projection {
                Some(m) => {
                    match projection_bias {
                        Some(b) if outputs > 0 => h.chunks_exact_mut(outputs).for_each(|h| h.copy_from_slice(b)),
                        _ => h.fill(0.0),
                    }
                    if int(m) {
                        s.state.fill(batch, cells, p.asymmetric, |b| &s.hidden[b * cells..][..cells])?;
                    }
                    accumulate(m, &s.sums, |b| &s.hidden[b * cells..][..cells], &s.state, h, pool);
                    if p.proj_clip > 0.0 {
                        h.iter_mut().for_each(|h| *h = h.clamp(-p.proj_clip, p.proj_clip));
                    }
                }
                None => h.copy_from_slice(&s.hidden),
            }
            for (b, h) in h.chunks_exact(outputs.max(1)).enumerate() {
                out[layout.row(start + t, b) * stride + offset..][..outputs].copy_from_slice(h);
            }
        }
    }
    Ok(())
}

fn logistic(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
}

/// To mean 0 and variance 1.
fn normalize(x: &mut [f32]) {
    let n = x.len() as f32;
    let mean = x.iter().sum::<f32>() / n;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
    let scale = 1.0 / (variance + 1e-8).sqrt();
    x.iter_mut().for_each(|x| *x = (*x - mean) * scale);
}

/// A vector of weights as floats, dequantized where it is stored as integers.
fn float_vector(v: View<'_>, n: usize) -> Result<Cow<'_, [f32]>> {
    if v.len() != n {
        return Err(Error::invalid(format!("weights of shape {:?}, {n} elements are needed", v.shape)));
    }
    match v.dtype {
        DType::F32 => Ok(Cow::Borrowed(v.as_slice()?)),
        DType::I8 | DType::U8 => {
            let scale = v.scale_zero()?.0;
            Ok(v.bytes.iter().map(|&q| scale * q as i8 as f32).collect())
        }
        d => Err(Error::unsupported(format!("peephole weights of type {d}"))),
    }
}
