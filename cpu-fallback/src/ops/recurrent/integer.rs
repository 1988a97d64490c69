//! The integer LSTM: int8 input, output and weights, 16-bit gates (Q3.12 before, Q0.15 after the activation) and a
//! 16-bit cell state whose scale is a power of two.

use super::basic::log2;
use super::fixed16::{logistic, tanh};
use super::linear::dot_i8;
use super::lstm::{Operands, Params};
use super::*;
use crate::pool::Pool;
use crate::value::fill_to;
use litegpu_graph::fixed::{Multiplier, inv_sqrt, rounding_shift};
use litegpu_graph::{Quant, Tensor};

/// Multiplications from which a step is worth the threads.
const PARALLEL: usize = 1 << 16;

/// A product's weights with everything that does not change from run to run.
#[derive(Debug)]
struct Product {
    operand: usize,
    rows: usize,
    cols: usize,
    scale: Multiplier,
    /// The input's zero point, negated.
    offset: i32,
    bias: Option<usize>,
    /// Bias plus zero point times row sum; computed at the first run.
    effective: Vec<i32>,
}

#[derive(Debug)]
struct Gate {
    input: Product,
    recurrent: Product,
    peephole: Option<(usize, Multiplier)>,
    norm: Option<Norm>,
}

#[derive(Debug)]
struct Norm {
    weights: usize,
    bias: usize,
    scale: Multiplier,
    /// Stands in for a variance that rounds to zero.
    guard: i32,
}

/// What one node needs.
#[derive(Debug)]
struct Cell {
    cells: usize,
    outputs: usize,
    width: usize,
    /// Input (absent with CIFG), forget, cell, output.
    gates: [Option<Gate>; 4],
    projection: Option<Product>,
    cell_exponent: i32,
    /// Integer bits of the cell state, where there is a tanh for them.
    tanh_bits: Option<i32>,
    cell_clip: i16,
    proj_clip: i8,
    hidden: Multiplier,
    hidden_zero: i32,
    state_zero: i32,
    constant: bool,
    ready: bool,
    sums: [Vec<i16>; 4],
    scratch: Vec<i16>,
    narrow: Vec<i8>,
}

fn scale_of(t: &Tensor) -> Result<f32> {
    t.quant
        .as_ref()
        .and_then(Quant::per_tensor)
        .map(|q| q.0)
        .ok_or_else(|| Error::invalid(format!("tensor '{}' needs one quantization scale", t.name)))
}

pub(super) fn prepare(site: &Site<'_>, p: Params, time_major: bool) -> Result<Kernel> {
    let node = site.node;
    if !matches!(node.inputs.len(), 20 | 24) {
        return Err(Error::invalid(format!("{} operands, 20 or 24 are needed", node.inputs.len())));
    }
    if node.intermediates.len() != 5 {
        return Err(
            site.unsupported(format!("{} intermediate tensors (only the form with 5 is)", node.intermediates.len()))
        );
    }
    let ids = Operands::FULL;
    let intermediate = |i: usize| {
        let t = node.intermediates.get(i).copied().flatten().and_then(|t| site.graph.tensors.get(t));
        let t = t.ok_or_else(|| Error::invalid(format!("intermediate tensor {i} is missing")))?;
        Ok::<_, Error>((scale_of(t)?, t.per_tensor().map_or(0, |q| q.1)))
    };
    let x = site.input(0)?;
    let state = site.input(ids.state[0])?;
    let cell_state = site.input(ids.state[1])?;
    let output = site.output(0)?;
    let int8 = |t: &Tensor, name: &str| {
        if t.dtype == DType::I8 { Ok(()) } else { Err(site.unsupported(format!("{name} of type {}", t.dtype))) }
    };
    int8(x, "input")?;
    int8(state, "output state")?;
    int8(output, "output")?;
    if cell_state.dtype != DType::I16 {
        return Err(site.unsupported(format!("a cell state of type {}", cell_state.dtype)));
    }
    let (x_scale, state_scale, cell_scale) = (scale_of(x)?, scale_of(state)?, scale_of(cell_state)?);
    let x_zero = x.per_tensor().map_or(0, |q| q.1);
    let state_zero = state.per_tensor().map_or(0, |q| q.1);
    let cell_exponent = log2(cell_scale)
        .ok_or_else(|| Error::invalid(format!("the cell state's scale {cell_scale} is no power of two")))?;
    let matrix = |i: usize, rows: Option<usize>| -> Result<(usize, usize)> {
        let t = site.input(i)?;
        int8(t, "weights")?;
        match t.shape.as_slice() {
            &[r, c] if rows.is_none_or(|n| n == r) => Ok((r, c)),
            s => Err(Error::invalid(format!("weights in operand {i} of shape {s:?}"))),
        }
    };
    let (cells, width) = matrix(ids.input[3], None)?;
    let (_, outputs) = matrix(ids.recurrent[3], Some(cells))?;
    let sized = |i: usize, dtype: DType, n: usize| -> Result<bool> {
        match site.optional(i) {
            None => Ok(false),
            Some(t) if t.dtype == dtype && t.elements() == n => Ok(true),
            Some(t) => Err(Error::invalid(format!("operand {i} is {} of shape {:?}", t.dtype, t.shape.as_slice()))),
        }
    };
    let cifg = site.optional(ids.input[0]).is_none();
    let tanh_bits = Some(15 + cell_exponent).filter(|b| (0..=6).contains(b));
    if cifg && tanh_bits.is_none() {
        return Err(site.unsupported(format!("a cell state of scale 2^{cell_exponent} and no input gate")));
    }
    let layer_norm = site.optional(ids.norm[1]).is_some();
    let mut gates = [const { None }; 4];
    for (g, gate) in gates.iter_mut().enumerate().skip(cifg as usize) {
        let inner = if layer_norm { intermediate(g)?.0 } else { 2f32.powi(-12) };
        if matrix(ids.input[g], Some(cells))?.1 != width || matrix(ids.recurrent[g], Some(cells))?.1 != outputs {
            return Err(Error::invalid("the gates' weights have different shapes"));
        }
        let bias = sized(ids.bias[g], DType::I32, cells)?.then_some(ids.bias[g]);
        let bias = bias.ok_or_else(|| Error::invalid("a gate's bias is missing"))?;
        let weight_scale = |i: usize| scale_of(site.input(i)?);
        let norm = match sized(ids.norm[g], DType::I16, cells)? {
            true => {
                let scale = weight_scale(ids.norm[g])?;
                let guard = ((10000.0 * scale) as i32).max(1);
                Some(Norm { weights: ids.norm[g], bias, scale: Multiplier::new(scale as f64), guard })
            }
            false if layer_norm => return Err(Error::invalid("a gate's layer normalisation is missing")),
            false => None,
        };
        let peephole = match sized(ids.peephole[g], DType::I16, cells)? {
            true => {
                let s = 2f64.powi(cell_exponent) * weight_scale(ids.peephole[g])? as f64 / inner as f64;
                Some((ids.peephole[g], Multiplier::new(s as f32 as f64)))
            }
            false => None,
        };
        *gate = Some(Gate {
            input: Product {
                operand: ids.input[g],
                rows: cells,
                cols: width,
                scale: Multiplier::new((weight_scale(ids.input[g])? * x_scale / inner) as f64),
                offset: x_zero.wrapping_neg(),
                // A normalised gate adds its bias after the normalisation.
                bias: (!layer_norm).then_some(bias),
                effective: Vec::new(),
            },
            recurrent: Product {
                operand: ids.recurrent[g],
                rows: cells,
                cols: outputs,
                scale: Multiplier::new((weight_scale(ids.recurrent[g])? * state_scale / inner) as f64),
                offset: state_zero.wrapping_neg(),
                bias: None,
                effective: Vec::new(),
            },
            peephole,
            norm,
        });
    }
    let (hidden_scale, hidden_zero) = intermediate(4)?;
    let projection = match site.optional(ids.projection) {
        None if outputs != cells => {
            return Err(Error::invalid(format!("{outputs} outputs of {cells} cells without a projection")));
        }
        None => None,
        Some(t) => {
            if matrix(ids.projection, Some(outputs))?.1 != cells {
                return Err(Error::invalid("projection weights of another shape than the cell's"));
            }
            Some(Product {
                operand: ids.projection,
                rows: outputs,
                cols: cells,
                scale: Multiplier::new((scale_of(t)? * hidden_scale / state_scale) as f64),
                offset: hidden_zero,
                bias: sized(ids.projection_bias, DType::I32, outputs)?.then_some(ids.projection_bias),
                effective: Vec::new(),
            })
        }
    };
    let cell_clip = if p.cell_clip > 0.0 { (p.cell_clip / cell_scale).clamp(-32768.0, 32767.0) as i16 } else { 0 };
    let proj_clip = if p.proj_clip > 0.0 { (p.proj_clip / scale_of(output)?).clamp(-128.0, 127.0) as i8 } else { 0 };
    let hidden = 2f64.powi(-15) / hidden_scale as f64 * 2f64.powi(-15);
    let constant = constants(site);
    let weights = gates.iter().flatten().flat_map(|g: &Gate| [&g.input, &g.recurrent]).chain(&projection);
    let constant = weights.flat_map(|p| [Some(p.operand), p.bias]).flatten().all(|i| constant.get(i) == Some(&true));
    let mut cell = Cell {
        cells,
        outputs,
        width,
        gates,
        projection,
        cell_exponent,
        tanh_bits,
        cell_clip,
        proj_clip,
        hidden: Multiplier::new(hidden as f32 as f64),
        hidden_zero,
        state_zero,
        constant,
        ready: false,
        sums: [const { Vec::new() }; 4],
        scratch: Vec::new(),
        narrow: Vec::new(),
    };
    Ok(Box::new(move |call: &mut Call<'_>| cell.run(call, time_major)))
}

impl Product {
    fn weights<'a>(&self, call: &Call<'a>) -> Result<&'a [i8]> {
        let w = call.input(self.operand)?.as_slice::<i8>()?;
        if w.len() == self.rows * self.cols {
            Ok(w)
        } else {
            Err(Error::invalid(format!("weights in operand {} have changed their shape", self.operand)))
        }
    }

    fn settle(&mut self, call: &Call<'_>) -> Result<()> {
        let w = self.weights(call)?;
        fill_to(&mut self.effective, self.rows, 0)?;
        if let Some(b) = self.bias {
            let bias = call.input(b)?;
            let bias = bias.as_slice::<i32>()?;
            if bias.len() != self.rows {
                return Err(Error::invalid("a bias has changed its shape"));
            }
            self.effective.copy_from_slice(bias);
        }
        for (e, row) in self.effective.iter_mut().zip(w.chunks_exact(self.cols.max(1))) {
            let sum: i32 = row.iter().map(|&w| w as i32).sum();
            *e = e.wrapping_add(sum.wrapping_mul(self.offset));
        }
        Ok(())
    }

    /// The rescaled product with one row of input.
    fn at(&self, w: &[i8], x: &[i8], r: usize) -> i32 {
        let sum = self.effective[r].wrapping_add(dot_i8(&w[r * self.cols..][..self.cols], x));
        self.scale.apply(sum)
    }
}

fn clamp16(x: i32) -> i16 {
    x.clamp(i16::MIN as i32, i16::MAX as i32) as i16
}

impl Cell {
    fn run(&mut self, call: &mut Call<'_>, time_major: bool) -> Result<()> {
        if !self.ready {
            for g in self.gates.iter_mut().flatten() {
                g.input.settle(call)?;
                g.recurrent.settle(call)?;
            }
            if let Some(p) = &mut self.projection {
                p.settle(call)?;
            }
            self.ready = self.constant;
        }
        let x = call.input(0)?;
        let layout = Layout::new(&x, time_major, false)?;
        let (batch, cells, outputs, width) = (layout.batch, self.cells, self.outputs, self.width);
        let x = x.as_slice::<i8>()?;
        if layout.width != width {
            return Err(Error::invalid(format!("input of width {}, the weights have {width}", layout.width)));
        }
        let mut weights = [const { None }; 4];
        for (w, gate) in weights.iter_mut().zip(&self.gates) {
            if let Some(g) = gate {
                *w = Some(GateData::new(call, g, cells)?);
            }
        }
        let projection = match &self.projection {
            Some(p) => Some((p, p.weights(call)?)),
            None => None,
        };
        let pool = call.pool;
        let out = call.outputs.first_mut().ok_or_else(|| Error::invalid("no output"))?;
        let out = out.as_mut_slice::<i8>()?;
        let [h, c] = states(call.variables, Operands::FULL.state)?;
        let (h, c) = (h.as_mut_slice::<i8>()?, c.as_mut_slice::<i16>()?);
        if h.len() != batch.saturating_mul(outputs) || c.len() != batch.saturating_mul(cells) {
            return Err(Error::invalid(format!(
                "states of {} and {} elements do not fit a batch of {batch}",
                h.len(),
                c.len()
            )));
        }
        if out.is_empty() || cells == 0 || outputs == 0 {
            return Ok(());
        }
        for s in &mut self.sums {
            fill_to(s, c.len(), 0)?;
        }
        fill_to(&mut self.scratch, c.len(), 0)?;
        fill_to(&mut self.narrow, c.len(), 0)?;
        // The reference's peephole walks as many elements as there are outputs, also where a projection makes them
        // fewer than the cells; in the batch-major layout it takes one batch entry at a time.
        let spans = if layout.time_major { (1, batch) } else { (batch, 1) };
        for t in 0..layout.time {
            let row = |b: usize| &x[layout.row(t, b) * width..][..width];
            for g in 0..4 {
                if g == 3 {
                    self.update(c);
                }
                let (Some(gate), Some(data)) = (&self.gates[g], &weights[g]) else { continue };
                let sum = &mut self.sums[g];
                gate.products(data, row, h, sum, cells, outputs, pool);
                if let (Some((_, scale)), Some(w)) = (&gate.peephole, data.peephole) {
                    for s in 0..spans.0 {
                        let from = s * cells;
                        for k in 0..(spans.1 * outputs).min(spans.1 * cells) {
                            let add = scale.apply(w[k % outputs % cells] as i32 * c[from + k] as i32);
                            sum[from + k] = clamp16(add + sum[from + k] as i32);
                        }
                    }
                }
                if let (Some(norm), Some((w, bias))) = (&gate.norm, data.norm) {
                    sum.chunks_exact_mut(cells).for_each(|row| norm.apply(w, bias, row));
                }
                if g == 2 {
                    sum.iter_mut().for_each(|s| *s = tanh(*s, 3));
                } else {
                    sum.iter_mut().for_each(|s| *s = logistic(*s, 3));
                }
            }
            match self.tanh_bits {
                Some(bits) => self.scratch.iter_mut().zip(&*c).for_each(|(y, c)| *y = tanh(*c, bits)),
                // The reference has no such tanh and multiplies by what its working memory holds: the input gate.
                None => self.scratch.copy_from_slice(&self.sums[0]),
            }
            let zero = if projection.is_some() { self.hidden_zero.wrapping_neg() } else { self.hidden_zero };
            let hidden = self.sums[3].iter().zip(&self.scratch).map(|(&o, &y)| {
                let v = self.hidden.apply(o as i32 * y as i32);
                v.wrapping_add(zero).clamp(-128, 127) as i8
            });
            match projection {
                None => h.iter_mut().zip(hidden).for_each(|(h, v)| *h = v),
                Some((p, w)) => {
                    self.narrow.iter_mut().zip(hidden).for_each(|(n, v)| *n = v);
                    for (h, n) in h.chunks_exact_mut(outputs).zip(self.narrow.chunks_exact(cells)) {
                        for (r, h) in h.iter_mut().enumerate() {
                            *h = p.at(w, n, r).saturating_add(self.state_zero).clamp(-128, 127) as i8;
                        }
                    }
                    if self.proj_clip > 0 {
                        h.iter_mut().for_each(|h| *h = (*h).clamp(-self.proj_clip, self.proj_clip));
                    }
                }
            }
            for (b, h) in h.chunks_exact(outputs).enumerate() {
                out[layout.row(t, b) * outputs..][..outputs].copy_from_slice(h);
            }
        }
        Ok(())
    }

    /// The new cell state.
    fn update(&self, c: &mut [i16]) {
        let [input, forget, cell, _] = &self.sums;
        let cifg = self.gates[0].is_none();
        for (i, c) in c.iter_mut().enumerate() {
            let kept = rounding_shift(forget[i] as i32 * *c as i32, 15) as i16;
            let write = if cifg { i16::MAX - forget[i] } else { input[i] };
            let fresh = rounding_shift(write as i32 * cell[i] as i32, 30 + self.cell_exponent) as i16;
            *c = kept.saturating_add(fresh);
            if self.cell_clip > 0 {
                *c = (*c).clamp(-self.cell_clip, self.cell_clip);
            }
        }
    }
}

/// A gate's operands in one run.
struct GateData<'a> {
    input: &'a [i8],
    recurrent: &'a [i8],
    peephole: Option<&'a [i16]>,
    norm: Option<(&'a [i16], &'a [i32])>,
}

impl<'a> GateData<'a> {
    fn new(call: &Call<'a>, g: &Gate, cells: usize) -> Result<GateData<'a>> {
        let sized = |ok: bool| if ok { Ok(()) } else { Err(Error::invalid("weights have changed their shape")) };
        let peephole = match g.peephole {
            Some((i, _)) => Some(call.input(i)?.as_slice::<i16>()?),
            None => None,
        };
        let norm = match &g.norm {
            Some(n) => Some((call.input(n.weights)?.as_slice::<i16>()?, call.input(n.bias)?.as_slice::<i32>()?)),
            None => None,
        };
        sized(peephole.is_none_or(|p| p.len() == cells))?;
        sized(norm.is_none_or(|(w, b)| w.len() == cells && b.len() == cells))?;
        Ok(GateData { input: g.input.weights(call)?, recurrent: g.recurrent.weights(call)?, peephole, norm })
    }
}

impl Gate {
    fn products<'x>(
        &self,
        data: &GateData<'_>,
        row: impl Fn(usize) -> &'x [i8] + Sync,
        h: &[i8],
        sum: &mut [i16],
        cells: usize,
        outputs: usize,
        pool: &Pool,
    ) {
        let parallel = sum.len() * (self.input.cols + self.recurrent.cols) >= PARALLEL;
        let chunk = if parallel { sum.len().div_ceil(2 * pool.threads()).max(16) } else { sum.len() };
        pool.chunks(sum, chunk, parallel, |k, sum| {
            for (j, s) in sum.iter_mut().enumerate() {
                let (b, r) = ((k * chunk + j) / cells, (k * chunk + j) % cells);
                let x = clamp16(self.input.at(data.input, row(b), r));
                let y = self.recurrent.at(data.recurrent, &h[b * outputs..][..outputs], r);
                *s = clamp16(y.saturating_add(x as i32));
            }
        });
    }
}

impl Norm {
    /// Layer normalisation in integers: mean with 10, variance with 20 fractional bits.
    fn apply(&self, weights: &[i16], bias: &[i32], row: &mut [i16]) {
        let n = row.len() as i64;
        let sum: i64 = row.iter().map(|&v| v as i64).sum();
        let squares: i64 = row.iter().map(|&v| v as i64 * v as i64).sum();
        let mean = (sum * 1024 / n) as i32;
        let variance = squares.wrapping_mul((1 << 20) / n).wrapping_sub(mean as i64 * mean as i64);
        let mut variance = (variance / (1 << 20)) as i32;
        if variance < 1 {
            variance = self.guard;
        }
        let inverse = inv_sqrt(variance, -1);
        let scale = Multiplier { shift: self.scale.shift + 12, ..self.scale };
        for ((v, w), b) in row.iter_mut().zip(weights).zip(bias) {
            let centred = 1024i32.wrapping_mul(*v as i32).wrapping_sub(mean);
            let scaled = inverse.apply(centred).wrapping_mul(*w as i32).wrapping_add(*b) as i64;
            let rounded = (if scaled > 0 { scaled + 512 } else { scaled - 512 }) / 1024;
            *v = clamp16(scale.apply(rounded as i32));
        }
    }
}
