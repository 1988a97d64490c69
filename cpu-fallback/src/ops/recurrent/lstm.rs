//! The LSTM cell over a sequence, float and dynamic range: all forms of the full kernel (CIFG, peephole, projection,
//! layer normalisation, diagonal recurrence, auxiliary input) in one loop.

use super::linear::{Matrix, QuantizedRows, Sums, Weights, accumulate, vector};
use super::{Layout, activate, states};
use crate::gemm::{Direct, FinishF32, PackedF32, Place, Rows, product_f32};
use crate::pool::Pool;
use crate::real;
use crate::simd::{Isa, Task, dispatch};
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
    /// Operands that are constant.
    constant: Vec<bool>,
    /// Constant float weights of each direction, by their first operand.
    packed: Vec<(usize, Packed)>,
    ahead: Vec<f32>,
    step: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(constant: Vec<bool>) -> Scratch {
        Scratch { sums: Sums::new(constant.clone()), constant, ..Scratch::default() }
    }
}

/// Float weights of all gates side by side, gate by gate.
#[derive(Debug)]
struct Packed {
    input: PackedF32,
    recurrent: PackedF32,
    /// The gates' biases, where they come before the activation.
    bias: FinishF32,
    none: FinishF32,
}

impl Packed {
    /// `None` when some weights are no float matrices that stay as they are.
    fn new(gates: &[Option<Gate<'_>>; 4], constant: &[bool], ids: &Operands) -> Result<Option<Packed>> {
        let mut parts: [Vec<&[f32]>; 2] = Default::default();
        for (g, gate) in gates.iter().enumerate() {
            let Some(gate) = gate else { continue };
            let fixed = |i: usize| constant.get(i) == Some(&true);
            let (Weights::Float(x), Weights::Float(h)) = (gate.input.weights, gate.recurrent.weights) else {
                return Ok(None);
            };
            if gate.aux.is_some() || ![ids.input[g], ids.recurrent[g], ids.bias[g]].into_iter().all(fixed) {
                return Ok(None);
            }
            parts[0].push(x);
            parts[1].push(h);
        }
        let Some(first) = gates.iter().flatten().next() else { return Ok(None) };
        let cells = first.input.rows;
        let columns = cells * parts[0].len();
        let pack = |cols: usize, parts: &[&[f32]]| {
            let mut pack = PackedF32::default();
            pack.pack(cols, columns, |n, row| row.copy_from_slice(&parts[n / cells][n % cells * cols..][..cols]))?;
            Ok::<_, Error>(pack)
        };
        let all = (f32::NEG_INFINITY, f32::INFINITY);
        let [mut bias, mut none] = [(); 2].map(|()| FinishF32 { range: all, ..FinishF32::default() });
        none.set(columns, None)?;
        let offset: Vec<f32> = gates.iter().flatten().flat_map(|g| g.bias).copied().collect();
        bias.set(columns, first.norm.is_none().then_some(offset.as_slice()))?;
        let (input, recurrent) = (pack(first.input.cols, &parts[0])?, pack(first.recurrent.cols, &parts[1])?);
        Ok(Some(Packed { input, recurrent, bias, none }))
    }
}

/// Rows of the input in the order of the walk.
struct Steps<'a> {
    x: &'a [f32],
    layout: Layout,
    start: usize,
}

impl Rows<f32> for Steps<'_> {
    #[inline(always)]
    fn fill<S: Isa>(&self, first: usize, count: usize, into: &mut [f32], stride: usize) {
        let Layout { batch, width, .. } = self.layout;
        for r in 0..count {
            let at = self.layout.row(self.start + (first + r) / batch, (first + r) % batch);
            into[r * stride..][..width].copy_from_slice(&self.x[at * width..][..width]);
        }
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
    // A normalised gate adds its bias later: either all gates do or none.
    let alike = gates.iter().flatten().all(|g| g.norm.is_some()) || gates.iter().flatten().all(|g| g.norm.is_none());
    if alike
        && cells > 0
        && !s.packed.iter().any(|(id, _)| *id == ids.input[3])
        && let Some(packed) = Packed::new(&gates, &s.constant, ids)?
    {
        s.packed.push((ids.input[3], packed));
    }
    let packed = s.packed.iter().find(|(id, _)| *id == ids.input[3]).map(|(_, p)| p);
    let columns = packed.map_or(0, |p| p.input.columns);
    let whole = Place::whole(columns);
    fill_to(&mut s.step, batch * columns, 0.0)?;

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
        if let Some(p) = packed {
            fill_to(&mut s.ahead, count * columns, 0.0)?;
            let rows = Steps { x, layout, start };
            product_f32(pool, count, &rows, &p.input, &p.bias, &mut s.ahead, whole)?;
        }
        for (gate, sum) in gates.iter().zip(&mut s.gates) {
            let Some(gate) = gate else { continue };
            fill_to(sum, count * cells, 0.0)?;
            if packed.is_some() {
                continue;
            }
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
            if let Some(p) = packed {
                product_f32(pool, batch, &Direct(&*h, outputs), &p.recurrent, &p.none, &mut s.step, whole)?;
                let ahead = &s.ahead[t * batch * columns..][..batch * columns];
                let mut first = 0;
                for (sum, _) in s.gates.iter_mut().zip(&gates).filter(|(_, g)| g.is_some()) {
                    for (b, sum) in sum[part.clone()].chunks_exact_mut(cells).enumerate() {
                        let at = b * columns + first;
                        let both = s.step[at..].iter().zip(&ahead[at..]);
                        sum.iter_mut().zip(both).for_each(|(s, (h, x))| *s = h + x);
                    }
                    first += cells;
                }
            }
            // What a gate's activation is applied to.
            let finish = |gate: &Gate<'_>, sum: &mut [f32], c: &[f32], sums: &Sums, q: &QuantizedRows| {
                if packed.is_none() {
                    accumulate(&gate.recurrent, sums, |b| &h[b * outputs..][..outputs], q, sum, pool);
                }
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
    struct Logistic<'a>(&'a mut [f32]);
    impl Task for Logistic<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Isa>(self) {
            self.0.iter_mut().for_each(|x| *x = real::logistic(*x));
        }
    }
    dispatch(Logistic(x));
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
