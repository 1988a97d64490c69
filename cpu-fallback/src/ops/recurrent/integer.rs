//! The integer LSTM: int8 input, output and weights, 16-bit gates (Q3.12 before, Q0.15 after the activation) and a
//! 16-bit cell state whose scale is a power of two.

use super::basic::log2;
use super::fixed16::{logistic_all, tanh_all};
use super::lstm::{Operands, Params};
use super::*;
use crate::gemm::{Converted, PackedInt, Place, product_int};
use crate::pool::Pool;
use crate::requant::{Onto, Rounded, Saturated};
use crate::simd::{Isa, Task, dispatch};
use crate::value::fill_to;
use litegpu_graph::fixed::{Multiplier, inv_sqrt, rounding_shift};
use litegpu_graph::{Quant, Tensor};

/// Sums of the inputs' part that are made at once.
const AT_ONCE: usize = 1 << 18;

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
    /// All gates' weights side by side, gate by gate.
    from_input: Packed,
    from_state: Packed,
    to_state: Packed,
    /// The inputs' part of many steps, and one step's sums with all gates side by side.
    ahead: Vec<i16>,
    step: Vec<i16>,
    sums: [Vec<i16>; 4],
    scratch: Vec<i16>,
    narrow: Vec<i8>,
}

/// Weights of several products of the same rows, and what follows the sums.
#[derive(Debug, Default)]
struct Packed {
    weights: PackedInt,
    finish: Rounded,
}

impl Packed {
    fn set(&mut self, products: &[(&Product, &[i8])], cols: usize, (zero, low, high): (i32, i32, i32)) -> Result<()> {
        let rows = products.first().map_or(0, |(p, _)| p.rows);
        self.weights.pack(cols, rows * products.len(), false, |n, to| {
            let w = &products[n / rows.max(1)].1[n % rows.max(1) * cols..][..cols];
            to.iter_mut().zip(w).for_each(|(t, w)| *t = *w as i16);
        })?;
        let bias: Vec<i64> = products.iter().flat_map(|(p, _)| &p.effective).map(|&e| e as i64).collect();
        let scales: Vec<_> = products.iter().flat_map(|(p, _)| std::iter::repeat_n(p.scale, rows)).collect();
        (self.finish.zero, self.finish.low, self.finish.high) = (zero, low, high);
        self.finish.set(Some(&bias), &scales)
    }
}

/// Rows of int8 as the left operand of a product.
fn rows(x: &[i8], cols: usize) -> Converted<'_, i8, impl Fn(&[i8], &mut [i16], usize) + Sync> {
    Converted(x, cols, |from: &[i8], to: &mut [i16], _: usize| {
        to.iter_mut().zip(from).for_each(|(t, f)| *t = *f as i16);
    })
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
        from_input: Packed::default(),
        from_state: Packed::default(),
        to_state: Packed::default(),
        ahead: Vec::new(),
        step: Vec::new(),
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
}

fn clamp16(x: i32) -> i16 {
    x.clamp(i16::MIN as i32, i16::MAX as i32) as i16
}

impl Cell {
    /// Packs the weights.
    fn settle(&mut self, call: &Call<'_>) -> Result<()> {
        for g in self.gates.iter_mut().flatten() {
            g.input.settle(call)?;
            g.recurrent.settle(call)?;
        }
        let mut parts: [Vec<(&Product, &[i8])>; 2] = Default::default();
        for g in self.gates.iter().flatten() {
            parts[0].push((&g.input, g.input.weights(call)?));
            parts[1].push((&g.recurrent, g.recurrent.weights(call)?));
        }
        self.from_input.set(&parts[0], self.width, (0, i16::MIN as i32, i16::MAX as i32))?;
        self.from_state.set(&parts[1], self.outputs, (0, i32::MIN, i32::MAX))?;
        if let Some(p) = &mut self.projection {
            p.settle(call)?;
            // Zero point and limits come after a sum that saturates.
            self.to_state.set(&[(&*p, p.weights(call)?)], self.cells, (0, i32::MIN, i32::MAX))?;
        }
        Ok(())
    }

    fn run(&mut self, call: &mut Call<'_>, time_major: bool) -> Result<()> {
        if !self.ready {
            self.settle(call)?;
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
        // Columns of all gates.
        let columns = self.from_input.weights.columns;
        let whole = Place::whole(columns);
        fill_to(&mut self.step, batch * columns, 0)?;
        let at_once = (AT_ONCE / (batch * columns).max(1)).clamp(1, layout.time);
        fill_to(&mut self.ahead, at_once * batch * columns, 0)?;
        // The reference's peephole walks as many elements as there are outputs, also where a projection makes them
        // fewer than the cells; in the batch-major layout it takes one batch entry at a time.
        let spans = if layout.time_major { (1, batch) } else { (batch, 1) };
        for t in 0..layout.time {
            let step = t % at_once;
            if step == 0 {
                // The inputs' part of the coming steps: in one product, or one for each batch entry's steps.
                let steps = at_once.min(layout.time - t);
                let (products, count) = if layout.time_major { (1, batch * steps) } else { (batch, steps) };
                for b in 0..products {
                    let x = &x[layout.row(t, b) * width..][..count * width];
                    let ahead = &mut self.ahead[b * at_once * columns..][..count * columns];
                    let Packed { weights, finish } = &self.from_input;
                    product_int::<i16, i32, i16>(pool, count, &rows(x, width), weights, finish, ahead, whole)?;
                }
            }
            let (from, stride) = if layout.time_major { (step * batch, columns) } else { (step, at_once * columns) };
            let onto = Onto { constants: &self.from_state.finish, values: &self.ahead[from * columns..], stride };
            let sums = &mut self.step;
            product_int::<i16, i32, i16>(pool, batch, &rows(h, outputs), &self.from_state.weights, &onto, sums, whole)?;
            let mut first = 0;
            for (sum, _) in self.sums.iter_mut().zip(&self.gates).filter(|(_, g)| g.is_some()) {
                for (to, from) in sum.chunks_exact_mut(cells).zip(self.step.chunks_exact(columns)) {
                    to.copy_from_slice(&from[first..first + cells]);
                }
                first += cells;
            }
            for g in 0..4 {
                if g == 3 {
                    self.update(c);
                }
                let (Some(gate), Some(data)) = (&self.gates[g], &weights[g]) else { continue };
                let sum = &mut self.sums[g];
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
                if g == 2 { tanh_all(sum, 3) } else { logistic_all(sum, 3) }
            }
            match self.tanh_bits {
                Some(bits) => {
                    self.scratch.copy_from_slice(c);
                    tanh_all(&mut self.scratch, bits);
                }
                // The reference has no such tanh and multiplies by what its working memory holds: the input gate.
                None => self.scratch.copy_from_slice(&self.sums[0]),
            }
            let projected = self.projection.is_some();
            dispatch(Hidden {
                gate: &self.sums[3],
                cell: &self.scratch,
                scale: self.hidden,
                zero: if projected { self.hidden_zero.wrapping_neg() } else { self.hidden_zero },
                out: if projected { &mut self.narrow } else { &mut *h },
            });
            if projected {
                self.project(pool, batch, h)?;
            }
            for (b, h) in h.chunks_exact(outputs).enumerate() {
                out[layout.row(t, b) * outputs..][..outputs].copy_from_slice(h);
            }
        }
        Ok(())
    }

    /// The output state from the hidden values.
    fn project(&mut self, pool: &Pool, batch: usize, h: &mut [i8]) -> Result<()> {
        let Packed { weights, finish } = &self.to_state;
        let finish = Saturated { constants: finish, zero: self.state_zero };
        let place = Place::whole(self.outputs);
        product_int::<i16, i32, i8>(pool, batch, &rows(&self.narrow, self.cells), weights, &finish, h, place)?;
        if self.proj_clip > 0 {
            h.iter_mut().for_each(|h| *h = (*h).clamp(-self.proj_clip, self.proj_clip));
        }
        Ok(())
    }

    /// The new cell state.
    fn update(&self, c: &mut [i16]) {
        let [input, forget, cell, _] = &self.sums;
        let write = if self.gates[0].is_none() { None } else { Some(input.as_slice()) };
        dispatch(Update { write, forget, cell, shift: 30 + self.cell_exponent, clip: self.cell_clip, c });
    }
}

/// The new cell state, from the gates; without an input gate what is forgotten is written.
struct Update<'a> {
    write: Option<&'a [i16]>,
    forget: &'a [i16],
    cell: &'a [i16],
    shift: i32,
    clip: i16,
    c: &'a mut [i16],
}

impl Update<'_> {
    #[inline(always)]
    fn one(&self, write: i16, forget: i16, cell: i16, c: i16) -> i16 {
        let kept = rounding_shift(forget as i32 * c as i32, 15) as i16;
        let fresh = rounding_shift(write as i32 * cell as i32, self.shift) as i16;
        let c = kept.saturating_add(fresh);
        if self.clip > 0 { c.clamp(-self.clip, self.clip) } else { c }
    }
}

impl Task for Update<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        for i in 0..self.c.len() {
            let (forget, cell) = (self.forget[i], self.cell[i]);
            let write = self.write.map_or(i16::MAX - forget, |w| w[i]);
            self.c[i] = self.one(write, forget, cell, self.c[i]);
        }
    }
}

/// The output gate times the cell's hyperbolic tangent, rescaled.
struct Hidden<'a> {
    gate: &'a [i16],
    cell: &'a [i16],
    scale: Multiplier,
    zero: i32,
    out: &'a mut [i8],
}

impl Task for Hidden<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        for ((h, &o), &y) in self.out.iter_mut().zip(self.gate).zip(self.cell) {
            let v = self.scale.apply(o as i32 * y as i32);
            *h = v.wrapping_add(self.zero).clamp(-128, 127) as i8;
        }
    }
}

/// A gate's operands in one run, beside the weights.
struct GateData<'a> {
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
        Ok(GateData { peephole, norm })
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
