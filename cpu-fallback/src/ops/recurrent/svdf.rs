//! SVDF: a fully connected layer as a product of rank-one filters, the second of which runs over time. The state holds
//! the last results of the first, oldest first, for each filter.

use super::linear::{Matrix, QuantizedRows, Sums, Weights, accumulate, dot, vector};
use super::*;
use crate::value::fill_to;
use litegpu_graph::fixed::Multiplier;

const STATE: usize = 4;

struct Sizes {
    batch: usize,
    width: usize,
    filters: usize,
    memory: usize,
    units: usize,
    rank: usize,
}

fn sizes(call: &mut Call<'_>, rank: usize) -> Result<Sizes> {
    let (x, w, t) = (call.input(0)?.shape, call.input(1)?.shape, call.input(2)?.shape);
    let (&[batch, width], &[filters, columns], &[f2, memory]) = (x, w, t) else {
        return Err(Error::invalid("input, feature weights and time weights must have two dimensions"));
    };
    if columns != width || f2 != filters || rank == 0 || filters % rank != 0 || memory == 0 {
        return Err(Error::invalid(format!(
            "weights of shapes {w:?} and {t:?} do not fit the input {x:?}, rank {rank}"
        )));
    }
    let state = call.variable(STATE)?.len();
    if state != batch.saturating_mul(filters).saturating_mul(memory) {
        return Err(Error::invalid(format!("a state of {state} elements, {batch} x {filters} x {memory} are needed")));
    }
    Ok(Sizes { batch, width, filters, memory, units: filters / rank, rank })
}

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let Op::Svdf(o) = &site.node.op else { return no_kernel(site) };
    let rank = usize::try_from(o.rank).unwrap_or(0);
    let (x, w, t) = (site.input(0)?.dtype, site.input(1)?.dtype, site.input(2)?.dtype);
    match (x, w, t) {
        (DType::F32, DType::F32, DType::F32) | (DType::F32, DType::I8 | DType::U8, DType::I8 | DType::U8) => {
            Ok(float(site, rank, o.fused_activation_function, o.asymmetric_quantize_inputs))
        }
        (DType::I8, DType::I8, DType::I16) => {
            if o.fused_activation_function != Activation::RELU {
                return Err(site.unsupported(format!("activation {:?} on int8", o.fused_activation_function)));
            }
            integer(site, rank)
        }
        _ => no_kernel(site),
    }
}

/// Forgets the oldest entry of each filter.
fn shift<T: Copy>(state: &mut [T], memory: usize) {
    state.chunks_exact_mut(memory).for_each(|m| m.copy_within(1.., 0));
}

fn float(site: &Site<'_>, rank: usize, activation: Activation, asymmetric: bool) -> Kernel {
    let mut sums = Sums::new(constants(site));
    let time_constant = site.optional(2).is_some_and(|t| t.is_constant());
    let (mut q, mut fresh, mut time) = (QuantizedRows::default(), Vec::new(), Vec::<f32>::new());
    Box::new(move |call: &mut Call<'_>| {
        let s = sizes(call, rank)?;
        let x = call.input(0)?;
        let x = x.as_slice::<f32>()?;
        let m = Matrix::new(call.inputs, 1, s.filters, s.width)?;
        let bias = vector(call.inputs, 3, s.units)?;
        let t = call.input(2)?;
        let weights = match t.dtype {
            DType::F32 => t.as_slice::<f32>()?,
            _ => {
                if time.len() != t.len() || !time_constant {
                    let scale = t.scale_zero()?.0;
                    time = t.bytes.iter().map(|&q| q as i8 as f32 * scale).collect();
                }
                &time
            }
        };
        fill_to(&mut fresh, s.batch * s.filters, 0f32)?;
        sums.prepare(&m);
        let row = |i: usize| &x[i * s.width..][..s.width];
        if matches!(m.weights, Weights::Int { .. }) {
            q.fill(s.batch, s.width, asymmetric, row)?;
        }
        accumulate(&m, &sums, row, &q, &mut fresh, call.pool);
        let state = call.variable(STATE)?.as_mut_slice::<f32>()?;
        shift(state, s.memory);
        for (m, f) in state.chunks_exact_mut(s.memory).zip(&mut fresh) {
            m[s.memory - 1] = *f;
        }
        for (i, (m, f)) in state.chunks_exact(s.memory).zip(&mut fresh).enumerate() {
            *f = dot(m, &weights[i % s.filters * s.memory..][..s.memory]);
        }
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        for (i, (y, f)) in out.iter_mut().zip(fresh.chunks_exact(s.rank)).enumerate() {
            *y = f.iter().sum::<f32>() + bias.map_or(0.0, |b| b[i % s.units]);
        }
        activate(activation, out);
        Ok(())
    })
}

fn integer(site: &Site<'_>, rank: usize) -> Result<Kernel> {
    let q = |t: &litegpu_graph::Tensor| {
        t.per_tensor().ok_or_else(|| Error::invalid(format!("tensor '{}' needs one quantization scale", t.name)))
    };
    let (x, feature, time) = (q(site.input(0)?)?, q(site.input(1)?)?, q(site.input(2)?)?);
    let (state, out) = (site.input(STATE)?, site.output(0)?);
    if state.dtype != DType::I16 || out.dtype != DType::I8 {
        return Err(site.unsupported(format!("a state of type {} and an output of type {}", state.dtype, out.dtype)));
    }
    let (state, out) = (q(state)?, q(out)?);
    let scale_1 = Multiplier::new((x.0 * feature.0 / state.0) as f64);
    let scale_2 = Multiplier::new((state.0 * time.0 / out.0) as f64);
    let (zero, mut sums) = (x.1, Vec::new());
    Ok(Box::new(move |call: &mut Call<'_>| {
        let s = sizes(call, rank)?;
        let input = call.input(0)?.as_slice::<i8>()?;
        let (feature, time) = (call.input(1)?.as_slice::<i8>()?, call.input(2)?.as_slice::<i16>()?);
        let bias = match call.optional(3) {
            Some(b) if b.len() != s.units => return Err(Error::invalid("the bias has another length than the output")),
            Some(b) => Some(b.as_slice::<i32>()?),
            None => None,
        };
        fill_to(&mut sums, s.batch * s.filters, 0)?;
        let state = call.variable(STATE)?.as_mut_slice::<i16>()?;
        shift(state, s.memory);
        for (i, (m, sum)) in state.chunks_exact_mut(s.memory).zip(&mut sums).enumerate() {
            let (b, f) = (i / s.filters, i % s.filters);
            let (row, w) = (&input[b * s.width..][..s.width], &feature[f * s.width..][..s.width]);
            let dot = row.iter().zip(w).fold(0i32, |acc, (&x, &w)| acc.wrapping_add(w as i32 * (x as i32 - zero)));
            m[s.memory - 1] = scale_1.apply(dot).clamp(-32768, 32767) as i16;
            let t = &time[f * s.memory..][..s.memory];
            *sum = m.iter().zip(t).fold(0i32, |acc, (&m, &t)| acc.wrapping_add(m as i32 * t as i32));
        }
        let to = call.output(0)?.as_mut_slice::<i8>()?;
        for (i, (y, f)) in to.iter_mut().zip(sums.chunks_exact(s.rank)).enumerate() {
            let sum = f.iter().fold(0i32, |a, &b| a.wrapping_add(b)).wrapping_add(bias.map_or(0, |b| b[i % s.units]));
            *y = scale_2.apply(sum).saturating_add(out.1).clamp(-128, 127) as i8;
        }
        Ok(())
    }))
}
