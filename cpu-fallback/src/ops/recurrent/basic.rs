//! The basic LSTM cell: one weight matrix over input and previous activation, one step a run. The previous activation
//! and state are operands; where they are variable tensors, the new ones are stored there.

use super::fixed16::{logistic, tanh};
use super::linear::dot;
use super::*;
use litegpu_graph::fixed::{Multiplier, high_mul16, rounding_shift};

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let types = [0, 1, 2, 3, 4].map(|i| site.optional(i).map(|t| t.dtype));
    const FLOAT: [Option<DType>; 5] = [Some(DType::F32); 5];
    const INT: [Option<DType>; 5] =
        [Some(DType::U8), Some(DType::U8), Some(DType::U8), Some(DType::I32), Some(DType::I16)];
    let outputs = (site.output(0)?.dtype, site.output(1)?.dtype);
    match (types, outputs) {
        (FLOAT, (DType::F32, DType::F32)) => Ok(Box::new(|call: &mut Call<'_>| step(call, float))),
        (INT, (DType::U8, DType::I16)) => {
            let scale = site.output(1)?.per_tensor().map_or(0.0, |q| q.0);
            if log2(scale) != Some(-11) {
                return Err(site.unsupported(format!("a cell state of scale {scale} (only 2^-11 is)")));
            }
            let bias = site.input(3)?.per_tensor().ok_or_else(|| Error::invalid("the bias has no scale"))?.0;
            let weight_zero = site.input(2)?.per_tensor().map_or(0, |q| q.1);
            let scale = Multiplier::new((4096.0 * bias) as f64);
            Ok(Box::new(move |call: &mut Call<'_>| step(call, |v, o| quantized(v, o, weight_zero, scale))))
        }
        _ => no_kernel(site),
    }
}

/// The exponent of a power of two; `None` for other numbers.
pub(super) fn log2(x: f32) -> Option<i32> {
    let l = x.log2();
    ((l - l.round()).abs() < 1e-3).then(|| l.round() as i32)
}

/// Sizes that fit together.
struct Views<'a> {
    x: View<'a>,
    activation: View<'a>,
    weights: View<'a>,
    bias: View<'a>,
    state: View<'a>,
    batch: usize,
    input: usize,
    depth: usize,
}

fn step(call: &mut Call<'_>, f: impl Fn(&Views<'_>, [&mut Value; 4]) -> Result<()>) -> Result<()> {
    let stored = |i: usize| call.variables.iter().find(|(at, _)| *at == i).map(|(_, v)| v.view());
    let missing = || Error::invalid("previous activation or state is missing");
    let activation = stored(1).or(call.optional(1)).ok_or_else(missing)?;
    let state = stored(4).or(call.optional(4)).ok_or_else(missing)?;
    let (x, weights, bias) = (call.input(0)?, call.input(2)?, call.input(3)?);
    let (&[batch, input], &[b1, depth]) = (x.shape, activation.shape) else {
        return Err(Error::invalid("input and activation must have two dimensions"));
    };
    let total = input.saturating_add(depth);
    let fits = b1 == batch
        && state.shape == [batch, depth]
        && weights.shape == [depth.saturating_mul(4), total]
        && bias.shape == [depth.saturating_mul(4)];
    if !fits {
        return Err(Error::invalid(format!(
            "weights of shape {:?} and bias of shape {:?} do not fit the input {:?} and activation {:?}",
            weights.shape, bias.shape, x.shape, activation.shape
        )));
    }
    let v = Views { x, activation, weights, bias, state, batch, input, depth };
    let [a, s, concat, inner] = &mut *call.outputs else { return Err(Error::invalid("four outputs are needed")) };
    if concat.dtype != x.dtype || inner.dtype != state.dtype {
        return Err(Error::invalid(format!("scratch outputs of types {} and {}", concat.dtype, inner.dtype)));
    }
    f(&v, [&mut *a, &mut *s, concat, inner])?;
    for (at, v) in call.variables.iter_mut() {
        let new = match at {
            1 => a.bytes(),
            4 => s.bytes(),
            _ => continue,
        };
        v.bytes_mut().copy_from_slice(new);
    }
    Ok(())
}

/// Writes input and activation side by side.
fn join<T: bytemuck::Pod>(v: &Views<'_>, out: &mut [T]) -> Result<()> {
    let (x, a) = (v.x.as_slice::<T>()?, v.activation.as_slice::<T>()?);
    for (b, row) in out.chunks_exact_mut((v.input + v.depth).max(1)).enumerate() {
        row[..v.input].copy_from_slice(&x[b * v.input..][..v.input]);
        row[v.input..].copy_from_slice(&a[b * v.depth..][..v.depth]);
    }
    Ok(())
}

fn float(v: &Views<'_>, [activation, state, concat, inner]: [&mut Value; 4]) -> Result<()> {
    let total = v.input + v.depth;
    let concat = concat.as_mut_slice::<f32>()?;
    join(v, concat)?;
    let (w, bias) = (v.weights.as_slice::<f32>()?, v.bias.as_slice::<f32>()?);
    let inner = inner.as_mut_slice::<f32>()?;
    for (row, x) in inner.chunks_exact_mut((4 * v.depth).max(1)).zip(concat.chunks_exact(total.max(1))) {
        for (r, y) in row.iter_mut().enumerate() {
            *y = bias[r] + dot(&w[r * total..][..total], x);
        }
    }
    let previous = v.state.as_slice::<f32>()?;
    let (activation, state) = (activation.as_mut_slice::<f32>()?, state.as_mut_slice::<f32>()?);
    let logistic = |x: f32| 1.0 / (1.0 + (-x).exp());
    for i in 0..v.batch * v.depth {
        let at = |gate: usize| inner[i / v.depth * 4 * v.depth + gate * v.depth + i % v.depth];
        state[i] = logistic(at(0)) * at(1).tanh() + logistic(at(2)) * previous[i];
        activation[i] = logistic(at(3)) * state[i].tanh();
    }
    Ok(())
}

/// All in 16-bit fixed point: gates with 3 integer bits, the state with 4.
fn quantized(
    v: &Views<'_>,
    [activation, state, concat, inner]: [&mut Value; 4],
    weight_zero: i32,
    scale: Multiplier,
) -> Result<()> {
    let total = v.input + v.depth;
    let concat = concat.as_mut_slice::<u8>()?;
    join(v, concat)?;
    let (w, bias) = (v.weights.as_slice::<u8>()?, v.bias.as_slice::<i32>()?);
    let inner = inner.as_mut_slice::<i16>()?;
    for (row, x) in inner.chunks_exact_mut((4 * v.depth).max(1)).zip(concat.chunks_exact(total.max(1))) {
        for (r, y) in row.iter_mut().enumerate() {
            let sum = w[r * total..][..total]
                .iter()
                .zip(x)
                .fold(bias[r], |s, (&w, &x)| s.wrapping_add((x as i32 - 128).wrapping_mul(w as i32 - weight_zero)));
            *y = scale.apply(sum).clamp(-32768, 32767) as i16;
        }
    }
    let previous = v.state.as_slice::<i16>()?;
    let (activation, state) = (activation.as_mut_slice::<u8>()?, state.as_mut_slice::<i16>()?);
    for i in 0..v.batch * v.depth {
        let at = |gate: usize| inner[i / v.depth * 4 * v.depth + gate * v.depth + i % v.depth];
        let fresh = high_mul16(logistic(at(0), 3), tanh(at(1), 3));
        let kept = high_mul16(logistic(at(2), 3), previous[i]);
        let new = (rounding_shift(fresh as i32, 4) as i16).saturating_add(kept);
        state[i] = new;
        let narrow = new.saturating_mul(2);
        let y = high_mul16(logistic(at(3), 3), tanh(narrow, 3));
        activation[i] = (128 + rounding_shift(y as i32, 8).clamp(-128, 127)) as u8;
    }
    Ok(())
}
