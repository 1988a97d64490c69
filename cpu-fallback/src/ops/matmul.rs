//! Matrix products: kernels.

use super::*;
use crate::gemm::{
    Bytes, Converted, Direct, FinishF32, PackedF32, PackedInt, Place, Rows, Sum, product_f32, product_int, refill,
};
use crate::in_order::product_in_order;
use crate::kernel::Call;
use crate::requant::*;
use crate::simd::{self, Isa, MAX_MR, NR, QUADS, Task, clamp, dispatch, quads_here};
use crate::weights::{Source, Weights};
use litegpu_graph::fixed::{float_range, quantized_range, type_range};
use litegpu_graph::schema::{
    ActivationFunctionType, BatchMatMulOptionsT, FullyConnectedOptionsT, FullyConnectedOptionsWeightsFormat, TensorType,
};
use litegpu_graph::{DType, Op, Tensor, elements};

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    match &site.node.op {
        Op::FullyConnected(o) => fully_connected(site, o),
        Op::BatchMatmul(o) => batch_matmul(site, o),
        _ => no_kernel(site),
    }
}

fn per_tensor(t: &Tensor) -> Result<(f32, i32)> {
    let scale = t.per_tensor().filter(|(s, _)| *s > 0.0);
    scale.ok_or_else(|| Error::invalid(format!("tensor '{}' has no per-tensor scale", t.name)))
}

/// Weights and bias of a fully connected layer, packed once when they are constant.
struct Layer<P, F> {
    weights: Source,
    bias: Option<Source>,
    ready: bool,
    pack: P,
    finish: F,
}

impl<P: Default, F: Default> Layer<P, F> {
    fn new(site: &Site<'_>) -> Result<Layer<P, F>> {
        let bias = site.optional(2).map(|_| Source::new(site, 2)).transpose()?;
        Ok(Layer { weights: Source::new(site, 1)?, bias, ready: false, pack: P::default(), finish: F::default() })
    }

    /// Brings everything up to date and returns (units, depth).
    fn update(
        &mut self,
        call: &Call<'_>,
        set: impl FnOnce(&Weights<'_>, Option<&Weights<'_>>, (usize, usize), &mut P, &mut F) -> Result<()>,
    ) -> Result<(usize, usize)> {
        let shape = self.weights.shape(call)?;
        let &[units, depth] = shape else {
            return Err(Error::invalid(format!("weights of shape {shape:?}")));
        };
        if !self.ready {
            let weights = self.weights.get(call)?;
            let bias = self.bias.as_ref().map(|b| b.get(call)).transpose()?;
            set(&weights, bias.as_ref(), (units, depth), &mut self.pack, &mut self.finish)?;
            self.ready = self.weights.constant && self.bias.as_ref().is_none_or(|b| b.constant);
        }
        Ok((units, depth))
    }
}

fn pack_units(w: &[f32], (units, depth): (usize, usize), pack: &mut PackedF32) -> Result<()> {
    if w.len() != units * depth {
        return Err(Error::invalid("the weights' data does not fit their shape"));
    }
    pack.pack(depth, units, |n, row| row.copy_from_slice(&w[n * depth..][..depth]))
}

/// Integer weights of at most 8 bits, or 16, with the zero point of uint8 and of one scale for all subtracted. `bytes`: for
/// products of bytes, where the activations' zero point as unsigned ones is given.
fn pack_int_units(
    w: &Weights<'_>,
    zero: i32,
    (units, depth): (usize, usize),
    bytes: Option<i32>,
    pack: &mut PackedInt,
) -> Result<()> {
    let fits = |n: usize| {
        if n == units * depth { Ok(()) } else { Err(Error::invalid("the weights' data does not fit their shape")) }
    };
    if w.dtype == DType::I16 {
        let values = w.wide()?;
        fits(values.len())?;
        if zero != 0 {
            return Err(Error::invalid("16-bit weights with a zero point"));
        }
        return pack.pack(depth, units, true, |n, row| {
            row.iter_mut().zip(&values[n * depth..]).for_each(|(r, v)| *r = *v as i16);
        });
    }
    let values = w.bytes8()?;
    fits(values.len())?;
    let unsigned = w.dtype == DType::U8;
    if QUADS && let Some(x) = bytes {
        // Unsigned weights as signed ones are 128 less.
        let less = if unsigned { 128 } else { 0 };
        let bytes = Bytes { zeros: [x, zero - less], run: [depth; 2] };
        return pack.pack_quads(depth, units, bytes, |n, row| {
            for (r, &b) in row.iter_mut().zip(&values[n * depth..]) {
                *r = if unsigned { b as u8 as i16 - 128 } else { b as i16 };
            }
        });
    }
    let zero = zero as i16;
    pack.pack(depth, units, unsigned || zero != 0, |n, row| {
        for (r, &b) in row.iter_mut().zip(&values[n * depth..]) {
            *r = if unsigned { b as u8 as i16 } else { b as i16 } - zero;
        }
    })
}

/// Rows of the left operand; `Invalid` when they do not fill it.
fn rows(elements: usize, depth: usize, out: usize, units: usize) -> Result<usize> {
    let rows = out / units.max(1);
    if rows * depth == elements && rows * units == out {
        return Ok(rows);
    }
    Err(Error::invalid(format!("{elements} inputs for {rows} rows of {depth}")))
}

fn fully_connected(site: &Site<'_>, o: &FullyConnectedOptionsT) -> Result<Kernel> {
    let (x, w, y) = (site.input(0)?.dtype, site.input(1)?, site.output(0)?.dtype);
    if o.weights_format == FullyConnectedOptionsWeightsFormat::SHUFFLED4x16INT8 {
        return shuffled(site, o);
    }
    let narrow = match site.optional(2).map(|t| t.dtype) {
        Some(b) => b == DType::I32,
        None => o.quantized_bias_type == TensorType::INT32,
    };
    match (x, w.dtype, y) {
        (DType::F32, DType::F32 | DType::F16 | DType::BF16, DType::F32) => float(site, o),
        (DType::F32, DType::I4, DType::F32) if w.quant.as_ref().is_some_and(|q| q.blockwise.is_some()) => {
            blockwise(site, o)
        }
        (DType::F32, DType::I8 | DType::U8 | DType::I4 | DType::I2, DType::F32) => hybrid(site, o),
        (DType::I8, DType::I8 | DType::I4 | DType::I2, DType::I8) => real::<i8, i8, i32>(site, o),
        (DType::I16, DType::I8 | DType::I4 | DType::I2, DType::I16) if narrow => real::<i16, i16, i32>(site, o),
        (DType::I16, DType::I8 | DType::I4 | DType::I2, DType::I16) => real::<i16, i16, i64>(site, o),
        (DType::I16, DType::I16, DType::I16) => wide(site, o),
        (DType::U8, DType::U8, DType::U8) => legacy::<u8>(site, o),
        (DType::U8, DType::U8, DType::I16) => legacy::<i16>(site, o),
        (x, w, y) => Err(site.unsupported(format!("{x} input, {w} weights, {y} output"))),
    }
}

fn float(site: &Site<'_>, o: &FullyConnectedOptionsT) -> Result<Kernel> {
    let (after, range) = split_activation(o.fused_activation_function)?;
    let mut layer: Layer<PackedF32, FinishF32> = Layer::new(site)?;
    Ok(Box::new(move |call| {
        if !layer.weights.constant {
            layer.pack = PackedF32::lent();
        }
        let (units, depth) = layer.update(call, |w, bias, size, pack, finish| {
            pack_units(&w.floats()?, size, pack)?;
            finish.range = range;
            finish.set(size.0, bias_floats(bias, size.0)?.as_deref())
        })?;
        let x = call.input(0)?.as_slice::<f32>()?;
        let (pool, then) = (call.pool, call.take_then(layer.weights.constant && after.is_none()));
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        let (rows, place) = (rows(x.len(), depth, out.len(), units)?, Place::whole(units).then(then));
        if layer.weights.constant {
            product_f32(pool, rows, &Direct(x, depth), &layer.pack, &layer.finish, out, place)?;
        } else {
            product_in_order(pool, x, &layer.pack, &layer.finish, out);
            std::mem::take(&mut layer.pack).give_back();
        }
        apply(after, out);
        Ok(())
    }))
}

/// A fused activation as something to apply afterwards and a clamp.
fn split_activation(a: ActivationFunctionType) -> Result<(Option<fn(f32) -> f32>, (f32, f32))> {
    match after(a) {
        Some(f) => Ok((Some(f), (f32::NEG_INFINITY, f32::INFINITY))),
        None => Ok((None, float_range(a)?)),
    }
}

fn apply(f: Option<fn(f32) -> f32>, out: &mut [f32]) {
    if let Some(f) = f {
        out.iter_mut().for_each(|v| *v = f(*v));
    }
}

/// Rows of floats, each quantized when it is multiplied.
struct Quantized8<'a> {
    x: &'a [f32],
    depth: usize,
    asymmetric: bool,
    pieces: &'a Pieces,
    /// The piece of the first row.
    piece: usize,
}

impl Rows<i16> for Quantized8<'_> {
    #[inline(always)]
    fn fill<S: Isa>(&self, first: usize, count: usize, into: &mut [i16], stride: usize) {
        for r in 0..count {
            let row = &self.x[(first + r) * self.depth..][..self.depth];
            let steps = Steps::between(S::extremes(row), self.asymmetric);
            steps.words_in::<S>(row, &mut into[r * stride..][..self.depth]);
            self.pieces.set(self.piece + first + r, &steps);
        }
    }
}

impl Rows<u8> for Quantized8<'_> {
    #[inline(always)]
    fn fill<S: Isa>(&self, first: usize, count: usize, into: &mut [u8], stride: usize) {
        for r in 0..count {
            let row = &self.x[(first + r) * self.depth..][..self.depth];
            let steps = Steps::between(S::extremes(row), self.asymmetric);
            steps.unsigned_in::<S>(row, &mut into[r * stride..][..self.depth]);
            self.pieces.set(self.piece + first + r, &steps);
        }
    }
}

fn hybrid(site: &Site<'_>, o: &FullyConnectedOptionsT) -> Result<Kernel> {
    let (after, range) = split_activation(o.fused_activation_function)?;
    let asymmetric = o.asymmetric_quantize_inputs;
    let mut layer: Layer<PackedInt, Hybrid> = Layer::new(site)?;
    let mut pieces = Pieces::default();
    Ok(Box::new(move |call| {
        let (units, depth) = layer.update(call, |w, bias, size, pack, finish| {
            let w = w.signed();
            // Each row has a zero point of its own.
            pack_int_units(&w, 0, size, quads_here().then_some(0), pack)?;
            finish.range = range;
            finish.set(bias_floats(bias, size.0)?.as_deref(), &w.scales(size.0)?)
        })?;
        let x = call.input(0)?.as_slice::<f32>()?;
        let (pool, then) = (call.pool, call.take_then(after.is_none()));
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        let (rows, place) = (rows(x.len(), depth, out.len(), units)?, Place::whole(units).then(then));
        pieces.resize(rows)?;
        let finish = HybridRows { constants: &layer.finish, pieces: &pieces, first: 0, rows: 1 };
        let a = Quantized8 { x, depth, asymmetric, pieces: &pieces, piece: 0 };
        if QUADS && layer.pack.is_quads() {
            product_int::<u8, i32, f32>(pool, rows, &a, &layer.pack, &finish, out, place)?;
        } else {
            product_int::<i16, i32, f32>(pool, rows, &a, &layer.pack, &finish, out, place)?;
        }
        apply(after, out);
        Ok(())
    }))
}

/// int8 and 16x8: scaled in double precision, rounded once.
fn real<X: Quantized, O: Quantized, U: Sum>(site: &Site<'_>, o: &FullyConnectedOptionsT) -> Result<Kernel>
where
    Real: crate::gemm::Finish<U, O>,
{
    let (input, output) = (per_tensor(site.input(0)?)?, per_tensor(site.output(0)?)?);
    if size_of::<X>() == 2 && (input.1 != 0 || output.1 != 0) {
        return Err(Error::invalid("16-bit activations with a zero point"));
    }
    let dtype = site.output(0)?.dtype;
    let (low, high) = quantized_range(o.fused_activation_function, dtype, output.0, output.1)?;
    let mut layer: Layer<PackedInt, Real> = Layer::new(site)?;
    Ok(Box::new(move |call| {
        let (units, depth) = layer.update(call, |w, bias, size, pack, finish| {
            let scales = w.scales(size.0)?;
            // One scale for all may come with a zero point, for files that predate the rule.
            let one = w.quant.is_some_and(|q| q.scale.len() == 1);
            pack_int_units(w, if one { w.zero_point()? } else { 0 }, size, unsigned_zero::<X>(input.1), pack)?;
            (finish.zero, finish.low, finish.high) = (output.1, low, high);
            let scales = scales.iter().map(|&s| input.0 as f64 * s as f64 / output.0 as f64);
            finish.set(bias_ints(bias, size.0)?.as_deref(), scales)
        })?;
        let x = call.input(0)?.as_slice::<X>()?;
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<O>()?;
        let rows = rows(x.len(), depth, out.len(), units)?;
        int_rows(pool, rows, depth, x, input.1, &layer.pack, &layer.finish, out, units)
    }))
}

/// The zero point of activations as unsigned bytes, where products are of bytes.
fn unsigned_zero<X: Quantized>(zero: i32) -> Option<i32> {
    (size_of::<X>() == 1 && quads_here()).then_some(zero - X::LOW)
}

/// A product whose left operand is quantized activations with one zero point.
fn int_rows<X: Quantized, O: bytemuck::Pod + Send, U: Sum>(
    pool: &crate::pool::Pool,
    rows: usize,
    depth: usize,
    x: &[X],
    zero: i32,
    pack: &PackedInt,
    finish: &impl crate::gemm::Finish<U, O>,
    out: &mut [O],
    units: usize,
) -> Result<()> {
    if size_of::<X>() == 2
        && let Ok(x) = bytemuck::try_cast_slice::<X, i16>(x)
    {
        return product_int::<i16, U, O>(pool, rows, &Direct(x, depth), pack, finish, out, Place::whole(units));
    }
    if QUADS && pack.is_quads() {
        let a = Converted(x, depth, |from: &[X], to: &mut [u8], _: usize| {
            to.iter_mut().zip(from).for_each(|(t, f)| *t = (Into::<i32>::into(*f) - X::LOW) as u8);
        });
        return product_int::<u8, U, O>(pool, rows, &a, pack, finish, out, Place::whole(units));
    }
    let zero = zero as i16;
    let a = Converted(x, depth, |from: &[X], to: &mut [i16], _: usize| {
        // A value of the loop's own: what it writes might else be what the closure refers to.
        let z = zero;
        to.iter_mut().zip(from).for_each(|(t, f)| *t = (Into::<i32>::into(*f) as i16).wrapping_sub(z));
    });
    product_int::<i16, U, O>(pool, rows, &a, pack, finish, out, Place::whole(units))
}

/// 16-bit weights.
fn wide(site: &Site<'_>, o: &FullyConnectedOptionsT) -> Result<Kernel> {
    let (input, output) = (per_tensor(site.input(0)?)?, per_tensor(site.output(0)?)?);
    let (low, high) = quantized_range(o.fused_activation_function, DType::I16, output.0, output.1)?;
    if input.1 != 0 || output.1 != 0 {
        return Err(Error::invalid("16-bit activations with a zero point"));
    }
    let mut layer: Layer<PackedInt, Wide> = Layer::new(site)?;
    Ok(Box::new(move |call| {
        let (units, depth) = layer.update(call, |w, bias, size, pack, finish| {
            let scales = w.scales(size.0)?;
            pack_int_units(w, w.zero_point()?, size, None, pack)?;
            (finish.low, finish.high) = (low, high);
            let one = w.quant.is_some_and(|q| q.scale.len() == 1);
            let m = if one {
                scales.iter().map(|&w| multiplier(input.0, w, output.0)).collect()
            } else {
                multipliers(input.0, &scales, output.0)
            };
            finish.set(bias_ints(bias, size.0)?.as_deref(), &m)
        })?;
        let x = call.input(0)?.as_slice::<i16>()?;
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<i16>()?;
        let rows = rows(x.len(), depth, out.len(), units)?;
        product_int::<i16, i64, i16>(
            pool,
            rows,
            &Direct(x, depth),
            &layer.pack,
            &layer.finish,
            out,
            Place::whole(units),
        )
    }))
}

/// uint8.
fn legacy<O: Quantized>(site: &Site<'_>, o: &FullyConnectedOptionsT) -> Result<Kernel> {
    let (input, output) = (per_tensor(site.input(0)?)?, per_tensor(site.output(0)?)?);
    let weight = per_tensor(site.input(1)?)?;
    let dtype = site.output(0)?.dtype;
    let (low, high) = quantized_range(o.fused_activation_function, dtype, output.0, output.1)?;
    let mut layer: Layer<PackedInt, Rounded> = Layer::new(site)?;
    Ok(Box::new(move |call| {
        let (units, depth) = layer.update(call, |w, bias, size, pack, finish| {
            pack_int_units(w, weight.1, size, unsigned_zero::<u8>(input.1), pack)?;
            (finish.zero, finish.low, finish.high) = (output.1, low, high);
            let m = vec![multiplier(input.0, weight.0, output.0); size.0];
            finish.set(bias_ints(bias, size.0)?.as_deref(), &m)
        })?;
        let x = call.input(0)?.as_slice::<u8>()?;
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<O>()?;
        let rows = rows(x.len(), depth, out.len(), units)?;
        int_rows(pool, rows, depth, x, input.1, &layer.pack, &layer.finish, out, units)
    }))
}

/// uint8 input, weights stored as int8 in blocks of 4 units by 16 inputs, int16 output; the second output is the
/// input with its sign bit flipped.
fn shuffled(site: &Site<'_>, o: &FullyConnectedOptionsT) -> Result<Kernel> {
    let types = (site.input(0)?.dtype, site.input(1)?.dtype, site.output(0)?.dtype);
    if types != (DType::U8, DType::U8, DType::I16) {
        return Err(site.unsupported(format!("shuffled weights on {types:?}")));
    }
    let (input, output) = (per_tensor(site.input(0)?)?, per_tensor(site.output(0)?)?);
    let weight = per_tensor(site.input(1)?)?;
    let (low, high) = quantized_range(o.fused_activation_function, DType::I16, output.0, output.1)?;
    let mut layer: Layer<PackedInt, Rounded> = Layer::new(site)?;
    Ok(Box::new(move |call| {
        let (units, depth) = layer.update(call, |w, bias, (units, depth), pack, finish| {
            let bytes = w.bytes8()?;
            if units % 4 != 0 || depth % 16 != 0 || bytes.len() != units * depth {
                return Err(Error::invalid(format!("shuffled weights of shape {:?}", w.shape)));
            }
            let column = |n: usize, row: &mut [i16]| {
                for (b, part) in row.chunks_exact_mut(16).enumerate() {
                    let from = &bytes[n / 4 * 4 * depth + b * 64 + n % 4 * 16..][..16];
                    part.iter_mut().zip(from).for_each(|(p, f)| *p = *f as i16);
                }
            };
            if QUADS && let Some(x) = unsigned_zero::<u8>(128) {
                pack.pack_quads(depth, units, Bytes { zeros: [x, 0], run: [depth; 2] }, column)?;
            } else {
                pack.pack(depth, units, false, column)?;
            }
            (finish.zero, finish.low, finish.high) = (0, low, high);
            let m = vec![multiplier(input.0, weight.0, output.0); units];
            finish.set(bias_ints(bias, units)?.as_deref(), &m)
        })?;
        let x = call.input(0)?.as_slice::<u8>()?;
        if let Some(copy) = call.outputs.get_mut(1)
            && copy.bytes().len() == x.len()
        {
            copy.bytes_mut().iter_mut().zip(x).for_each(|(c, x)| *c = x ^ 0x80);
        }
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<i16>()?;
        let rows = rows(x.len(), depth, out.len(), units)?;
        int_rows(pool, rows, depth, x, 128, &layer.pack, &layer.finish, out, units)
    }))
}

/// int4 weights with a scale for every block of inputs: the input is quantized asymmetrically by rows and each block's
/// sum is scaled on its own.
fn blockwise(site: &Site<'_>, o: &FullyConnectedOptionsT) -> Result<Kernel> {
    let (after, range) = split_activation(o.fused_activation_function)?;
    let weights = Source::new(site, 1)?;
    let bias = site.optional(2).map(|_| Source::new(site, 2)).transpose()?;
    let params = site.input(1)?.quant.as_ref().and_then(|q| q.blockwise);
    let params = params.ok_or_else(|| Error::invalid("no block scales"))?;
    if params.zero_points.is_some() {
        return Err(site.unsupported("zero points per block"));
    }
    let &[units, depth] = site.input(1)?.shape.as_slice() else {
        return Err(Error::invalid("weights must have two dimensions"));
    };
    let scales = site.graph.tensors.get(params.scales).ok_or_else(|| Error::invalid("no block scales"))?;
    let blocks = depth / params.block_size.max(1);
    let data = scales.data.as_deref().unwrap_or_default();
    let scales: Vec<f32> = match scales.dtype {
        DType::F16 => data.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        DType::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        d => return Err(site.unsupported(format!("block scales of type {d}"))),
    };
    if scales.len() != units * blocks || params.block_size == 0 || blocks * params.block_size != depth {
        return Err(Error::invalid(format!("{} block scales for {units} units of {blocks} blocks", scales.len())));
    }
    let block = params.block_size;
    let mut blocks = Blocks { weights: PackedInt::default(), scales: Vec::new(), sums: Vec::new(), count: blocks };
    // Scales of 16 units side by side, block after block.
    refill(&mut blocks.scales, units.div_ceil(NR) * blocks.count * NR, 0.0)?;
    for (i, s) in scales.iter().enumerate() {
        let (n, b) = (i / blocks.count, i % blocks.count);
        blocks.scales[(n / NR * blocks.count + b) * NR + n % NR] = *s;
    }
    // Depth steps go in pairs, or in fours: blocks of other sizes get some more.
    let quads = quads_here();
    let step = block.next_multiple_of(if quads { 4 } else { 2 });
    let mut offset = FinishF32 { range, ..FinishF32::default() };
    let mut ready = false;
    let (mut pieces, mut words, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    Ok(Box::new(move |call| {
        if !ready {
            let w = weights.get(call)?;
            let halves = w.raw();
            if halves.len() != (units * depth).div_ceil(2) {
                return Err(Error::invalid("the weights' data does not fit their shape"));
            }
            // Straight from half bytes: all of them as bytes would be the most memory that a run needs.
            let nibble = |i: usize| {
                let both = halves[i / 2] as i8;
                i16::from(if i.is_multiple_of(2) { both << 4 >> 4 } else { both >> 4 })
            };
            let column = |n: usize, row: &mut [i16]| {
                for (b, to) in row.chunks_exact_mut(step).enumerate() {
                    to.fill(0);
                    let from = n * depth + b * block;
                    to.iter_mut().take(block).enumerate().for_each(|(k, t)| *t = nibble(from + k));
                }
            };
            if QUADS && quads {
                let of = Bytes { zeros: [0; 2], run: [block, step] };
                blocks.weights.pack_quads(step * blocks.count, units, of, column)?;
                blocks.sum(step / 4)?;
            } else {
                blocks.weights.pack(step * blocks.count, units, false, column)?;
            }
            let bias = bias.as_ref().map(|b| b.get(call)).transpose()?;
            offset.set(units, bias_floats(bias.as_ref(), units)?.as_deref())?;
            ready = weights.constant;
        }
        let x = call.input(0)?.as_slice::<f32>()?;
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        let rows = rows(x.len(), depth, out.len(), units)?;
        refill(&mut pieces, rows, (1.0, 0))?;
        let width = step * blocks.count;
        if QUADS && quads {
            refill(&mut bytes, rows * width, 0u8)?;
            quantize_blocks(x, [depth, block], &mut bytes, [width, step], &mut pieces, Steps::unsigned);
            blocks.product(pool, &bytes, &pieces, &offset, out);
        } else {
            refill(&mut words, rows * width, 0i16)?;
            quantize_blocks(x, [depth, block], &mut words, [width, step], &mut pieces, Steps::words);
            blocks.product(pool, &words, &pieces, &offset, out);
        }
        apply(after, out);
        Ok(())
    }))
}

/// Quantizes rows, whose blocks then lie a step apart; `pieces` receives scales, and zero points as unsigned bytes.
fn quantize_blocks<T>(
    x: &[f32],
    [depth, block]: [usize; 2],
    to: &mut [T],
    [width, step]: [usize; 2],
    pieces: &mut [(f32, i32)],
    quantize: impl Fn(&Steps, &[f32], &mut [T]),
) {
    let rows = to.chunks_exact_mut(width.max(1)).zip(x.chunks_exact(depth.max(1)));
    for ((to, from), piece) in rows.zip(pieces) {
        let steps = Steps::of(from, true);
        if step == block {
            quantize(&steps, from, to);
        } else {
            to.chunks_exact_mut(step).zip(from.chunks_exact(block)).for_each(|(to, from)| quantize(&steps, from, to));
        }
        *piece = (steps.scale, steps.zero + 128);
    }
}

/// Weights with a scale for every block of depth steps.
struct Blocks {
    weights: PackedInt,
    scales: Vec<f32>,
    /// The sums of a block's columns, as the scales lie; for products of bytes.
    sums: Vec<[i32; NR]>,
    count: usize,
}

/// Elements that rows are quantized to.
trait Block: bytemuck::Pod + Sync {
    /// Some rows times the panel of 16 columns, scaled. `#[inline(always)]`.
    fn tile<S: Isa>(of: &Blocks, p: usize, x: &[Self], pieces: &[(f32, i32)], columns: usize) -> [[f32; NR]; MAX_MR];
}

impl Block for i16 {
    #[inline(always)]
    fn tile<S: Isa>(of: &Blocks, p: usize, x: &[i16], pieces: &[(f32, i32)], columns: usize) -> [[f32; NR]; MAX_MR] {
        let depth = of.weights.depth;
        let pairs = depth / 2 / of.count.max(1);
        let panel = of.weights.panel(p);
        let mut sums = [[0f32; NR]; MAX_MR];
        for (b, scale) in of.scales(p).iter().enumerate() {
            let mut acc = [[0i32; NR]; MAX_MR];
            let part = panel.part(b * pairs..(b + 1) * pairs);
            S::tile_i16(&x[2 * b * pairs..], &[0], depth, pieces.len(), part, columns, &mut acc);
            for (l, (piece, _)) in pieces.iter().enumerate() {
                for j in 0..NR {
                    sums[l][j] += acc[l][j] as f32 * (scale[j] * piece);
                }
            }
        }
        sums
    }
}

impl Block for u8 {
    #[inline(always)]
    fn tile<S: Isa>(of: &Blocks, p: usize, x: &[u8], pieces: &[(f32, i32)], _columns: usize) -> [[f32; NR]; MAX_MR] {
        let mut sums = [[0f32; NR]; MAX_MR];
        let of_panel = simd::Blocks {
            lines: of.weights.fours(p),
            sums: &of.sums[p * of.count..][..of.count],
            scales: of.scales(p),
        };
        S::blocks(x, of.weights.depth, pieces, &of_panel, &mut sums);
        sums
    }
}

impl Blocks {
    /// Scales of a panel's columns, block by block.
    #[inline(always)]
    fn scales(&self, p: usize) -> &[[f32; NR]] {
        self.scales[p * self.count * NR..][..self.count * NR].as_chunks::<NR>().0
    }

    /// Sums the columns of each block of `length` lines.
    fn sum(&mut self, length: usize) -> Result<()> {
        let panels = self.weights.columns.div_ceil(NR);
        refill(&mut self.sums, panels * self.count, [0; NR])?;
        for (i, sums) in self.sums.iter_mut().enumerate() {
            let (p, b) = (i / self.count, i % self.count);
            for line in &self.weights.fours(p)[b * length..][..length] {
                sums.iter_mut().zip(line.0).for_each(|(s, w)| *s += w.iter().map(|w| *w as i32).sum::<i32>());
            }
        }
        Ok(())
    }

    /// Each block's sum is scaled on its own; the blocks are added up in order.
    fn product<T: Block>(
        &self,
        pool: &crate::pool::Pool,
        x: &[T],
        pieces: &[(f32, i32)],
        bias: &FinishF32,
        out: &mut [f32],
    ) {
        const PARALLEL: usize = 400_000;
        let (units, depth) = (self.weights.columns, self.weights.depth);
        if units == 0 {
            return;
        }
        let parallel = pool.threads() > 1 && out.len().saturating_mul(depth) >= PARALLEL;
        if pieces.len() == 1 {
            let per = units.div_ceil(2 * pool.threads()).next_multiple_of(NR);
            pool.chunks(out, if parallel { per } else { units }, parallel, |i, out| {
                dispatch(BlocksTask { of: self, x, pieces, bias, first: i * per, columns: out.len(), out });
            });
            return;
        }
        let rows = if parallel { pieces.len().div_ceil(3 * pool.threads()) } else { pieces.len() };
        pool.chunks(out, rows * units, parallel, |i, out| {
            let (x, pieces) = (&x[i * rows * depth..], &pieces[i * rows..]);
            dispatch(BlocksTask { of: self, x, pieces, bias, first: 0, columns: units, out });
        });
    }
}

/// Some columns, from `first` on, of some rows.
struct BlocksTask<'a, T> {
    of: &'a Blocks,
    x: &'a [T],
    /// Scale and zero point of each row.
    pieces: &'a [(f32, i32)],
    bias: &'a FinishF32,
    first: usize,
    columns: usize,
    out: &'a mut [f32],
}

impl<T: Block> Task for BlocksTask<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        let depth = self.of.weights.depth;
        let rows = self.out.len() / self.columns;
        for column in (0..self.columns).step_by(NR) {
            let p = (self.first + column) / NR;
            let n = NR.min(self.columns - column);
            for r in (0..rows).step_by(S::MRI) {
                let m = S::MRI.min(rows - r);
                let sums = T::tile::<S>(self.of, p, &self.x[r * depth..], &self.pieces[r..r + m], n);
                for (l, sums) in sums.iter().enumerate().take(m) {
                    let out = &mut self.out[(r + l) * self.columns + column..][..n];
                    for (j, o) in out.iter_mut().enumerate() {
                        *o = clamp(sums[j] + self.bias.bias[p * NR + j], self.bias.range);
                    }
                }
            }
        }
    }
}

/// How the batches of a product lie: for each output batch, the batch of either operand.
struct Batches {
    pairs: Vec<(usize, usize)>,
    left: usize,
    right: usize,
    rows: usize,
    depth: usize,
    columns: usize,
}

fn batches(x: &[usize], y: &[usize], o: &BatchMatMulOptionsT) -> Result<Batches> {
    let bad = || Error::invalid(format!("operands of shapes {x:?} and {y:?}"));
    let (xo, &[xr, xc]) = x.split_last_chunk::<2>().ok_or_else(bad)?;
    let (yo, &[yr, yc]) = y.split_last_chunk::<2>().ok_or_else(bad)?;
    let outer = litegpu_graph::ops::broadcast(xo, yo)?;
    let n = elements(&outer);
    let mut pairs = Vec::new();
    pairs.try_reserve(n).map_err(|_| bad())?;
    for i in 0..n {
        let (mut rest, mut at) = (i, [0, 0]);
        let mut step = [1, 1];
        for d in (0..outer.len()).rev() {
            let position = rest % outer[d].max(1);
            rest /= outer[d].max(1);
            for (side, shape) in [xo, yo].into_iter().enumerate() {
                let Some(j) = (d + shape.len()).checked_sub(outer.len()) else { continue };
                if shape[j] != 1 {
                    at[side] += position * step[side];
                }
                step[side] *= shape[j];
            }
        }
        pairs.push((at[0], at[1]));
    }
    let (rows, depth) = if o.adj_x { (xc, xr) } else { (xr, xc) };
    let (inner, columns) = if o.adj_y { (yc, yr) } else { (yr, yc) };
    if depth != inner {
        return Err(bad());
    }
    Ok(Batches { pairs, left: elements(xo), right: elements(yo), rows, depth, columns })
}

/// Swaps rows and columns of each matrix.
fn transpose<T: bytemuck::Pod>(from: &[T], rows: usize, columns: usize, to: &mut Vec<T>) -> Result<()> {
    refill(to, from.len(), T::zeroed())?;
    let size = rows * columns;
    if size == 0 {
        return Ok(());
    }
    for (from, to) in from.chunks_exact(size).zip(to.chunks_exact_mut(size)) {
        for (r, row) in from.chunks_exact(columns).enumerate() {
            for (c, v) in row.iter().enumerate() {
                to[c * rows + r] = *v;
            }
        }
    }
    Ok(())
}

fn batch_matmul(site: &Site<'_>, o: &BatchMatMulOptionsT) -> Result<Kernel> {
    let (x, y, z) = (site.input(0)?, site.input(1)?, site.output(0)?);
    match (x.dtype, y.dtype, z.dtype) {
        (DType::F32, DType::F32 | DType::F16 | DType::BF16, DType::F32) => batch_float(site, o),
        (DType::F32, DType::I8 | DType::I4 | DType::I2, DType::F32) => batch_hybrid(site, o),
        (DType::I8, DType::I8, DType::I32) => batch_sums(site, o),
        (DType::I8, DType::I8 | DType::I4 | DType::I2, DType::I8) => {
            let scales = BatchScales::new(site, o)?;
            let (low, high) = type_range(DType::I8)?;
            let zero = per_tensor(z)?.1;
            batch_int::<i8, i8, i32, Rounded>(site, o, scales.zero, move |f, n| {
                (f.zero, f.low, f.high) = (zero, low, high);
                f.set(None, &scales.multipliers(n)?)
            })
        }
        (DType::I16, DType::I16 | DType::I8 | DType::I4 | DType::I2, DType::I16) => {
            let scales = BatchScales::new(site, o)?;
            let (low, high) = type_range(DType::I16)?;
            batch_int::<i16, i16, i64, Wide>(site, o, scales.zero, move |f, n| {
                (f.low, f.high) = (low, high);
                f.set(None, &scales.multipliers(n)?)
            })
        }
        (x, y, z) => Err(site.unsupported(format!("{x} by {y} giving {z}"))),
    }
}

/// Scales of an integer product of two operands, and the right operand's zero point.
struct BatchScales {
    left: f32,
    /// One, or one for each column. The reference takes the latter for zero; here it means what it says.
    right: Vec<f32>,
    output: f32,
    zero: i32,
}

impl BatchScales {
    fn new(site: &Site<'_>, o: &BatchMatMulOptionsT) -> Result<BatchScales> {
        let (left, output) = (per_tensor(site.input(0)?)?.0, per_tensor(site.output(0)?)?.0);
        let y = site.input(1)?;
        let columns = y.quant.as_ref().filter(|q| q.scale.len() > 1);
        let Some(q) = columns else {
            let (scale, zero) = per_tensor(y)?;
            return Ok(BatchScales { left, right: vec![scale], output, zero });
        };
        let axis = y.shape.len().checked_sub(if o.adj_y { 2 } else { 1 });
        if axis != Some(q.axis) || q.zero_point.iter().any(|&z| z != 0) || q.scale.iter().any(|s| !(*s > 0.0)) {
            return Err(site.unsupported(format!("scales along axis {} of the right operand", q.axis)));
        }
        Ok(BatchScales { left, right: q.scale.clone(), output, zero: 0 })
    }

    fn multipliers(&self, columns: usize) -> Result<Vec<litegpu_graph::fixed::Multiplier>> {
        let one = |s: f32| multiplier(self.left, s, self.output);
        match self.right.as_slice() {
            [s] => Ok(vec![one(*s); columns]),
            s if s.len() == columns => Ok(s.iter().map(|&s| one(s)).collect()),
            s => Err(Error::invalid(format!("{} scales for {columns} columns", s.len()))),
        }
    }
}

/// Packs the right operand's matrices.
fn pack_matrices(w: &[f32], b: &Batches, adj_y: bool, packs: &mut Vec<PackedF32>) -> Result<()> {
    packs.resize_with(b.right, PackedF32::lent);
    let size = b.depth * b.columns;
    for (i, pack) in packs.iter_mut().enumerate() {
        let w = w.get(i * size..(i + 1) * size).ok_or_else(|| Error::invalid("the right operand is too short"))?;
        if adj_y {
            pack_units(w, (b.columns, b.depth), pack)?;
        } else {
            pack.pack_rows(b.depth, b.columns, w)?;
        }
    }
    Ok(())
}

fn batch_float(site: &Site<'_>, o: &BatchMatMulOptionsT) -> Result<Kernel> {
    let (o, right) = (o.clone(), Source::new(site, 1)?);
    let mut packs: Vec<PackedF32> = Vec::new();
    let mut finish = FinishF32 { range: (f32::NEG_INFINITY, f32::INFINITY), ..FinishF32::default() };
    let (mut ready, mut turned) = (false, Vec::new());
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let w = right.get(call)?;
        let b = batches(x.shape, w.shape, &o)?;
        if !ready {
            pack_matrices(&w.floats()?, &b, o.adj_y, &mut packs)?;
            finish.set(b.columns, None)?;
            ready = right.constant;
        }
        let mut left = x.as_slice::<f32>()?;
        if o.adj_x {
            transpose(left, b.depth, b.rows, &mut turned)?;
            left = &turned;
        }
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        let size = b.rows * b.columns;
        if size == 0 {
            return Ok(());
        }
        // Neighbouring batches that share the right operand are one tall product.
        let mut i = 0;
        while i < b.pairs.len() {
            let (l, r) = b.pairs[i];
            let n = b.pairs[i..].iter().enumerate().take_while(|(k, p)| **p == (l + k, r)).count();
            let a = &left[l * b.rows * b.depth..][..n * b.rows * b.depth];
            let out = &mut out[i * size..][..n * size];
            if right.constant {
                product_f32(pool, n * b.rows, &Direct(a, b.depth), &packs[r], &finish, out, Place::whole(b.columns))?;
            } else {
                product_in_order(pool, a, &packs[r], &finish, out);
            }
            i += n;
        }
        if !right.constant {
            packs.drain(..).rev().for_each(PackedF32::give_back);
        }
        Ok(())
    }))
}

/// Packs the right operand's matrices of integers.
/// `bytes`: see [`pack_int_units`].
fn pack_int_matrices(
    w: &Weights<'_>,
    zero: i32,
    b: &Batches,
    adj_y: bool,
    bytes: Option<i32>,
    packs: &mut Vec<PackedInt>,
) -> Result<()> {
    let size = b.depth * b.columns;
    packs.resize_with(b.right, PackedInt::default);
    let (narrow, words);
    let less = if bytes.is_some() { 0 } else { zero as i16 };
    let value: &dyn Fn(usize) -> i16 = if w.dtype == DType::I16 {
        words = w.wide()?;
        &|i| words[i] as i16
    } else {
        narrow = w.bytes8()?;
        &|i| narrow[i] as i16 - less
    };
    if w.len() != size * b.right {
        return Err(Error::invalid("the right operand's data does not fit its shape"));
    }
    for (i, pack) in packs.iter_mut().enumerate() {
        let (first, step) = if adj_y { (b.depth, 1) } else { (1, b.columns) };
        let column = |n: usize, row: &mut [i16]| {
            for (k, r) in row.iter_mut().enumerate() {
                *r = value(i * size + n * first + k * step);
            }
        };
        if QUADS && let Some(x) = bytes {
            let bytes = Bytes { zeros: [x, zero], run: [b.depth; 2] };
            pack.pack_quads(b.depth, b.columns, bytes, column)?;
        } else {
            pack.pack(b.depth, b.columns, w.dtype == DType::I16 || zero != 0, column)?;
        }
    }
    Ok(())
}

fn batch_int<X: Quantized, O: Quantized, U: Sum, F>(
    site: &Site<'_>,
    o: &BatchMatMulOptionsT,
    right_zero: i32,
    set: impl Fn(&mut F, usize) -> Result<()> + Send + 'static,
) -> Result<Kernel>
where
    F: crate::gemm::Finish<U, O> + Default + Send + 'static,
{
    let zeros = (per_tensor(site.input(0)?)?.1, right_zero);
    let (o, right) = (o.clone(), Source::new(site, 1)?);
    if size_of::<X>() == 2 && zeros != (0, 0) {
        return Err(Error::invalid("16-bit operands with a zero point"));
    }
    let mut packs: Vec<PackedInt> = Vec::new();
    let mut finish = F::default();
    let (mut ready, mut turned) = (false, Vec::new());
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let w = right.get(call)?;
        let b = batches(x.shape, w.shape, &o)?;
        if !ready {
            pack_int_matrices(&w, zeros.1, &b, o.adj_y, unsigned_zero::<X>(zeros.0), &mut packs)?;
            set(&mut finish, b.columns)?;
            ready = right.constant;
        }
        let mut left = x.as_slice::<X>()?;
        if o.adj_x {
            transpose(left, b.depth, b.rows, &mut turned)?;
            left = &turned;
        }
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<O>()?;
        let size = b.rows * b.columns;
        if size == 0 {
            return Ok(());
        }
        for (&(l, r), out) in b.pairs.iter().zip(out.chunks_exact_mut(size)) {
            let a = &left[l * b.rows * b.depth..][..b.rows * b.depth];
            int_rows(pool, b.rows, b.depth, a, zeros.0, &packs[r], &finish, out, b.columns)?;
        }
        Ok(())
    }))
}

/// int8 operands, plain int32 sums, no zero points.
fn batch_sums(site: &Site<'_>, o: &BatchMatMulOptionsT) -> Result<Kernel> {
    let (o, right) = (o.clone(), Source::new(site, 1)?);
    let mut packs: Vec<PackedInt> = Vec::new();
    let (mut ready, mut turned) = (false, Vec::new());
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let w = right.get(call)?;
        let b = batches(x.shape, w.shape, &o)?;
        if !ready {
            pack_int_matrices(&w, 0, &b, o.adj_y, unsigned_zero::<i8>(0), &mut packs)?;
            ready = right.constant;
        }
        let mut left = x.as_slice::<i8>()?;
        if o.adj_x {
            transpose(left, b.depth, b.rows, &mut turned)?;
            left = &turned;
        }
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<i32>()?;
        let size = b.rows * b.columns;
        if size == 0 {
            return Ok(());
        }
        for (&(l, r), out) in b.pairs.iter().zip(out.chunks_exact_mut(size)) {
            let a = &left[l * b.rows * b.depth..][..b.rows * b.depth];
            int_rows::<i8, i32, i32>(pool, b.rows, b.depth, a, 0, &packs[r], &Sums, out, b.columns)?;
        }
        Ok(())
    }))
}

fn batch_hybrid(site: &Site<'_>, o: &BatchMatMulOptionsT) -> Result<Kernel> {
    let (o, right) = (o.clone(), Source::new(site, 1)?);
    let mut packs: Vec<PackedInt> = Vec::new();
    let mut finish = Hybrid::linear();
    let (mut ready, mut turned) = (false, Vec::new());
    let mut pieces = Pieces::default();
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let w = right.get(call)?;
        let b = batches(x.shape, w.shape, &o)?;
        if !ready {
            pack_int_matrices(&w, 0, &b, o.adj_y, quads_here().then_some(0), &mut packs)?;
            finish.set(None, &w.scales(b.columns)?)?;
            ready = right.constant;
        }
        let mut left = x.as_slice::<f32>()?;
        if o.adj_x {
            transpose(left, b.depth, b.rows, &mut turned)?;
            left = &turned;
        }
        pieces.resize(b.left * b.rows)?;
        let pool = call.pool;
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        let size = b.rows * b.columns;
        if size == 0 || b.depth == 0 {
            out.fill(0.0);
            return Ok(());
        }
        for (&(l, r), out) in b.pairs.iter().zip(out.chunks_exact_mut(size)) {
            let (piece, x) = (l * b.rows, &left[l * b.rows * b.depth..]);
            let asymmetric = o.asymmetric_quantize_inputs;
            let a = Quantized8 { x, depth: b.depth, asymmetric, pieces: &pieces, piece };
            let finish = HybridRows { constants: &finish, pieces: &pieces, first: piece, rows: 1 };
            let place = Place::whole(b.columns);
            if QUADS && packs[r].is_quads() {
                product_int::<u8, i32, f32>(pool, b.rows, &a, &packs[r], &finish, out, place)?;
            } else {
                product_int::<i16, i32, f32>(pool, b.rows, &a, &packs[r], &finish, out, place)?;
            }
        }
        Ok(())
    }))
}
