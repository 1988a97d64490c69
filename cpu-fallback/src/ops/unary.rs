//! Element-wise operators of one operand: kernels.

use super::*;
use crate::chain::Step;
use crate::kernel::Call;
use crate::real;
use crate::strided::{InPlace, Line, in_place, line, map};
use crate::tables::{self, Sigmoid, Words, quantization, to_int};
use bytemuck::Pod;
use half::{bf16, f16};
use litegpu_graph::fixed::{self, Multiplier};
use litegpu_graph::{DType, Graph, Node, Op, TensorId};

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let (x, y) = (site.input(0)?, site.output(0)?);
    if x.dtype != y.dtype {
        return Err(Error::invalid(format!("{} in, {} out", x.dtype, y.dtype)));
    }
    if matches!(site.node.op, Op::ZerosLike) {
        return zeros(y);
    }
    match x.dtype {
        DType::F32 | DType::F16 | DType::BF16 => of_reals(site, x.dtype),
        DType::I8 | DType::U8 => bytes(site),
        DType::I16 => words(site),
        _ => integer(site, x.dtype),
    }
}

pub(super) fn step(site: &Site<'_>) -> Option<Step> {
    let (x, y) = (site.input(0).ok()?, site.output(0).ok()?);
    match (x.dtype, y.dtype) {
        (DType::F32, DType::F32) => real_line(site).map(Step::Real),
        (DType::I8, DType::I8) | (DType::U8, DType::U8) => table(site).ok().flatten().map(Step::Bytes),
        _ => None,
    }
}

/// A kernel that applies `f` to every element.
fn each<A: Pod + Send + Sync, B: Pod + Send + Sync>(f: impl Fn(A) -> B + Send + Sync + 'static) -> Result<Kernel> {
    lines(line(f))
}

fn lines<A: Pod + Send + Sync, B: Pod + Send + Sync>(f: Box<Line<A, B>>) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let x = call.input(0)?.as_slice::<A>()?;
        let pool = call.pool;
        map(pool, x, call.output(0)?.as_mut_slice::<B>()?, &*f);
        Ok(())
    }))
}

/// Floats that are copied, then changed in their place.
const BLOCK: usize = 1024;

fn reals(f: Box<InPlace>) -> Result<Kernel> {
    lines(Box::new(move |x: &[f32], out: &mut [f32]| {
        for (x, out) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
            out.copy_from_slice(&x[..out.len()]);
            f(out);
        }
    }))
}

fn halves<T: Pod + Send + Sync>(f: Box<InPlace>, wide: fn(T) -> f32, narrow: fn(f32) -> T) -> Result<Kernel> {
    lines(Box::new(move |x: &[T], out: &mut [T]| {
        let mut a = [0f32; 128];
        for (x, out) in x.chunks(128).zip(out.chunks_mut(128)) {
            a.iter_mut().zip(x).for_each(|(a, &v)| *a = wide(v));
            f(&mut a[..x.len()]);
            out.iter_mut().zip(&a).for_each(|(o, &v)| *o = narrow(v));
        }
    }))
}

/// Whether floats are quantized somewhere in the graph, by QUANTIZE or by an operator with integer weights: only with the
/// reference's last bit do they then all fall on the reference's steps.
fn quantizes(graph: &Graph) -> bool {
    let dtype = |t: TensorId| graph.tensors.get(t).map(|t| t.dtype);
    let on_the_fly = |n: &Node| {
        let weights = |t: &TensorId| {
            let of_few_bits = matches!(dtype(*t), Some(DType::I8 | DType::U8 | DType::I4 | DType::I2));
            of_few_bits && graph.tensors.get(*t).is_some_and(|t| t.is_constant())
        };
        n.op != Op::Dequantize
            && n.outputs.first().copied().and_then(dtype) == Some(DType::F32)
            && n.inputs.iter().flatten().any(weights)
    };
    graph.nodes.iter().any(|n| n.op == Op::Quantize || on_the_fly(n))
}

/// A kernel of a real function: 16-bit floats are widened, computed and rounded.
fn of_reals(site: &Site<'_>, d: DType) -> Result<Kernel> {
    let Some(f) = real_line(site) else { return no_kernel(site) };
    match d {
        DType::F16 => halves(f, f16::to_f32, f16::from_f32),
        DType::BF16 => halves(f, bf16::to_f32, bf16::from_f32),
        _ => reals(f),
    }
}

fn real(f: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Box<InPlace> {
    in_place(f)
}

fn real_line(site: &Site<'_>) -> Option<Box<InPlace>> {
    let exact = || quantizes(site.graph);
    // The comparisons are written so that a NaN stays one.
    Some(match &site.node.op {
        Op::Relu => real(|v| if v < 0.0 { 0.0 } else { v }),
        Op::ReluN1To1 => real(|v| clip(v, -1.0, 1.0)),
        Op::Relu6 => real(|v| clip(v, 0.0, 6.0)),
        Op::Relu0To1 => real(|v| clip(v, 0.0, 1.0)),
        Op::LeakyRelu(o) => {
            let alpha = o.alpha;
            real(move |v| if v > 0.0 { v } else { v * alpha })
        }
        Op::Elu => real(elu),
        Op::HardSwish => real(|v| v * clip(v + 3.0, 0.0, 6.0) / 6.0),
        Op::Gelu(o) if o.approximate && exact() => {
            real(|v| 0.5 * v * (1.0 + real::tanh(GELU_SLOPE * (v + 0.044715 * v * v * v))))
        }
        Op::Gelu(o) if o.approximate => {
            real(|v| 0.5 * v * (1.0 + real::quick_tanh(GELU_SLOPE * (v + 0.044715 * v * v * v))))
        }
        Op::Gelu(_) => real(gelu),
        Op::Logistic => real(real::logistic),
        Op::Tanh if exact() => real(real::tanh),
        Op::Tanh => real(real::quick_tanh),
        Op::Exp => real(real::exp),
        Op::Neg => real(|v| -v),
        Op::Sin => real(f32::sin),
        Op::Cos => real(f32::cos),
        Op::Log => real(f32::ln),
        Op::Sqrt => real(f32::sqrt),
        Op::Rsqrt => real(|v| 1.0 / v.sqrt()),
        Op::Square => real(|v| v * v),
        Op::Abs => real(f32::abs),
        Op::Floor => real(f32::floor),
        Op::Ceil => real(f32::ceil),
        Op::Round => real(f32::round_ties_even),
        Op::Sign => real(|v| {
            if v > 0.0 {
                1.0
            } else if v < 0.0 {
                -1.0
            } else {
                v * 0.0
            }
        }),
        _ => return None,
    })
}

#[inline]
fn clip(v: f32, low: f32, high: f32) -> f32 {
    let v = if v < low { low } else { v };
    if v > high { high } else { v }
}

fn logistic(v: f32) -> f32 {
    1.0 / (1.0 + (-v).exp())
}

fn elu(v: f32) -> f32 {
    if v < 0.0 { v.exp_m1() } else { v }
}

/// 0.5 x (1 + erf(x / sqrt 2)), by erfc: exact for large negative x too.
fn gelu(v: f32) -> f32 {
    0.5 * v * libm::erfcf(-v * std::f32::consts::FRAC_1_SQRT_2)
}

/// sqrt(2 / pi).
const GELU_SLOPE: f32 = (std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2) as f32;

fn gelu_tanh(v: f32) -> f32 {
    0.5 * v * (1.0 + (GELU_SLOPE * (v + 0.044715 * v * v * v)).tanh())
}

fn integer(site: &Site<'_>, d: DType) -> Result<Kernel> {
    match (&site.node.op, d) {
        (Op::LogicalNot, DType::Bool) => each(|v: u8| (v == 0) as u8),
        (Op::Neg, DType::I32) => each(i32::wrapping_neg),
        (Op::Neg, DType::I64) => each(i64::wrapping_neg),
        (Op::Abs, DType::I32) => each(i32::wrapping_abs),
        (Op::Abs, DType::I64) => each(i64::wrapping_abs),
        (Op::Sign, DType::I32) => each(i32::signum),
        (Op::Sign, DType::I64) => each(i64::signum),
        (Op::Sign, DType::F64) => each(|v: f64| {
            if v > 0.0 {
                1.0
            } else if v < 0.0 {
                -1.0
            } else {
                v * 0.0
            }
        }),
        (Op::Square, DType::I32) => each(|v: i32| v.wrapping_mul(v)),
        (Op::Square, DType::I64) => each(|v: i64| v.wrapping_mul(v)),
        (Op::Relu, DType::I32) => each(|v: i32| v.max(0)),
        (Op::Relu, DType::I64) => each(|v: i64| v.max(0)),
        _ => no_kernel(site),
    }
}

fn zeros(y: &litegpu_graph::Tensor) -> Result<Kernel> {
    // Zero as a number: the zero point, where there is one.
    let z = y.per_tensor().map_or(0, |(_, z)| z);
    let dtype = y.dtype;
    Ok(Box::new(move |call: &mut Call<'_>| {
        let out = call.output(0)?;
        match dtype {
            DType::I8 | DType::U8 => out.bytes_mut().fill(z as u8),
            _ => out.bytes_mut().fill(0),
        }
        Ok(())
    }))
}

/// int8 and uint8: whatever the operator, one table look-up per element.
fn bytes(site: &Site<'_>) -> Result<Kernel> {
    if let Some(table) = table(site)? {
        return lines(Box::new(move |x, out| tables::look_up(&table, Some(x), out)));
    }
    let (x, y) = (site.input(0)?, site.output(0)?);
    let d = x.dtype;
    if matches!(site.node.op, Op::Neg | Op::Abs | Op::Sign | Op::Square) && x.quant.is_none() && d == DType::I8 {
        return match site.node.op {
            Op::Neg => each(i8::wrapping_neg),
            Op::Abs => each(i8::wrapping_abs),
            Op::Sign => each(i8::signum),
            _ => no_kernel(site),
        };
    }
    let ((sx, zx), (sy, zy)) = (quantization(x)?, quantization(y)?);
    match &site.node.op {
        Op::Sqrt => partial_bytes(d, (sx, zx), move |v| sqrt(v, sx, sy).saturating_add(zy)),
        Op::Rsqrt => {
            let f = rsqrt(sx, sy);
            let high = fixed::type_range(d)?.1;
            partial_bytes(d, (sx, zx), move |v| f(v).map_or(high, |y| y.saturating_add(zy)))
        }
        _ => no_kernel(site),
    }
}

/// What becomes of each byte; `None` where that is not all there is to it.
fn table(site: &Site<'_>) -> Result<Option<Box<[u8; 256]>>> {
    let (x, y) = (site.input(0)?, site.output(0)?);
    let d = x.dtype;
    if matches!(site.node.op, Op::Neg | Op::Abs | Op::Sign | Op::Square) && x.quant.is_none() && d == DType::I8 {
        return Ok(None);
    }
    let (qx, qy) = (quantization(x)?, quantization(y)?);
    let ((sx, zx), (sy, zy)) = (qx, qy);
    let lut = |f: &dyn Fn(f32) -> f32| Ok(tables::real_bytes(d, qx, qy, f));
    // A function of the value less its zero point.
    let fixed = |f: &dyn Fn(i32) -> i32| Ok(tables::bytes(d, |v| f(v - zx)));
    let table = match &site.node.op {
        Op::Relu => relu(d, qx, qy, 0.0, f32::INFINITY),
        Op::ReluN1To1 => relu(d, qx, qy, -1.0, 1.0),
        Op::Relu6 => relu(d, qx, qy, 0.0, 6.0),
        Op::Relu0To1 => relu(d, qx, qy, 0.0, 1.0),
        Op::LeakyRelu(o) => {
            let f = leaky(sx, sy, o.alpha);
            fixed(&|v| f(v).saturating_add(zy))
        }
        Op::HardSwish => {
            let f = hard_swish(qx, qy)?;
            fixed(&f)
        }
        Op::Elu => lut(&elu),
        Op::Gelu(o) => lut(if o.approximate { &gelu_tanh } else { &gelu }),
        Op::Logistic => lut(&logistic),
        Op::Tanh => lut(&f32::tanh),
        Op::Exp => lut(&f32::exp),
        Op::Log => {
            let lowest = (fixed::type_range(d)?.0 - zy) as f32 * sy;
            lut(&move |v| if v <= 0.0 { lowest } else { v.ln() })
        }
        Op::Abs => {
            let m = (sx != sy).then(|| Multiplier::new((sx / sy) as f64));
            fixed(&|v| m.map_or(v.abs(), |m| m.apply(v.abs())).saturating_add(zy))
        }
        Op::Sqrt | Op::Rsqrt => return Ok(None),
        // The remaining operators have no quantized kernel in the reference; rounding the real result is the meaning.
        Op::Neg => lut(&|v| -v),
        Op::Sin => lut(&f32::sin),
        Op::Cos => lut(&f32::cos),
        Op::Square => lut(&|v| v * v),
        Op::Floor => lut(&f32::floor),
        Op::Ceil => lut(&f32::ceil),
        Op::Round => lut(&f32::round_ties_even),
        Op::Sign => lut(&|v| {
            if v > 0.0 {
                1.0
            } else if v < 0.0 {
                -1.0
            } else {
                0.0
            }
        }),
        _ => return Ok(None),
    };
    table.map(Some)
}

/// A table kernel of a function that has no value for negative operands: those are an error, as in the reference.
fn partial_bytes(d: DType, (_, zx): (f32, i32), f: impl Fn(i32) -> i32 + Send + Sync + 'static) -> Result<Kernel> {
    let table = tables::bytes(d, |v| if v - zx < 0 { 0 } else { f(v - zx) });
    let look_up = move |x: &[u8], out: &mut [u8]| tables::look_up(&table, Some(x), out);
    Ok(Box::new(move |call: &mut Call<'_>| {
        let x = call.input(0)?.as_slice::<u8>()?;
        let value = |v: u8| if d == DType::U8 { v as i32 } else { v as i8 as i32 };
        if let Some(&v) = x.iter().find(|&&v| value(v) - zx < 0) {
            return Err(Error::invalid(format!("no value for the negative element {}", value(v) - zx)));
        }
        let pool = call.pool;
        map(pool, x, call.output(0)?.as_mut_slice::<u8>()?, &look_up);
        Ok(())
    }))
}

/// The clamping activations: rescale, then clamp. The limits are quantized without the fused activations' checks.
fn relu_limits(d: DType, (sy, zy): (f32, i32), low: f32, high: f32) -> Result<(i32, i32)> {
    let (min, max) = fixed::type_range(d)?;
    let q = |v: f32| zy.saturating_add(to_int((v / sy).round()));
    let high = if high.is_finite() { max.min(q(high)) } else { max };
    Ok((min.max(q(low)).min(high), high))
}

fn relu(d: DType, (sx, zx): (f32, i32), qy: (f32, i32), low: f32, high: f32) -> Result<Box<[u8; 256]>> {
    let m = Multiplier::new((sx / qy.0) as f64);
    let (low, high) = relu_limits(d, qy, low, high)?;
    Ok(tables::bytes(d, |v| qy.1.saturating_add(m.apply(v - zx)).clamp(low, high)))
}

/// LEAKY_RELU on a value less its zero point, before the output's zero point.
fn leaky(sx: f32, sy: f32, alpha: f32) -> impl Fn(i32) -> i32 + Send + Sync + 'static {
    let identity = Multiplier::new((sx / sy) as f64);
    let slope = Multiplier::new((sx * alpha / sy) as f64);
    // A negative slope is its magnitude, negated: the multiplication rounds positive multipliers only.
    let negative = slope.value < 0;
    let slope = Multiplier { value: slope.value.saturating_abs(), ..slope };
    move |v| {
        if v >= 0 {
            identity.apply(v)
        } else if negative {
            slope.apply(v).wrapping_neg()
        } else {
            slope.apply(v)
        }
    }
}

fn sqrt(v: i32, sx: f32, sy: f32) -> i32 {
    to_int((sx * v as f32).sqrt() / sy)
}

/// RSQRT of a value less its zero point; `None` (the largest output) for zero.
fn rsqrt(sx: f32, sy: f32) -> impl Fn(i32) -> Option<i32> + Send + Sync + 'static {
    const SHIFT: i32 = 20;
    let m = Multiplier::new((1.0 / (sx.sqrt() * sy)) as f64);
    let m = Multiplier { shift: m.shift - SHIFT, ..m };
    move |v| {
        if v == 0 {
            return None;
        }
        let inverse = fixed::inv_sqrt(v, -1);
        let inverse = Multiplier { shift: inverse.shift + SHIFT, ..inverse };
        Some(m.apply(inverse.apply(1)))
    }
}

/// HARD_SWISH in 16-bit fixed point, on a value less its zero point.
fn hard_swish((sx, _): (f32, i32), (sy, zy): (f32, i32)) -> Result<impl Fn(i32) -> i32 + Send + Sync + 'static> {
    // The input gains 7 bits; x * relu6(x + 3) / 6 is then a product of two 16-bit fractions.
    let fine = (1.0 / 128.0) * sx;
    let narrow = |m: Multiplier| {
        let v = if m.value >= i32::MAX - (1 << 15) { i16::MAX } else { ((m.value + (1 << 15)) >> 16) as i16 };
        (v, m.shift)
    };
    let (out, out_shift) = narrow(Multiplier::new((fine / sy) as f64));
    let (gate, gate_shift) = narrow(Multiplier::new((fine / (3.0f32 / 32768.0)) as f64));
    if out_shift > 0 {
        return Err(Error::unsupported("HARD_SWISH whose output scale is finer than 1/128 of its input's"));
    }
    let left = |v: i16, n: i32| ((v as i64) << n.clamp(0, 40)).clamp(i16::MIN as i64, i16::MAX as i64) as i16;
    Ok(move |v: i32| {
        let fine = (v * 128) as i16;
        let scaled = fixed::high_mul16(fine, out);
        let mut g = fine;
        if gate_shift > 0 {
            g = left(g, gate_shift - 1);
        }
        g = fixed::high_mul16(g, gate);
        if gate_shift > 0 {
            g = left(g, 1);
        }
        if gate_shift < 0 {
            g = fixed::rounding_shift(g as i32, -gate_shift) as i16;
        }
        let g = ((g as i32 + (1 << 15)) >> 1) as i16;
        // Truncated, not rounded: the two biases cancel.
        let product =
            if g == i16::MIN && scaled == i16::MIN { i16::MAX } else { (g as i32 * scaled as i32 / (1 << 15)) as i16 };
        fixed::rounding_shift(product as i32, -out_shift) + zy
    })
}

fn words(site: &Site<'_>) -> Result<Kernel> {
    let (x, y) = (site.input(0)?, site.output(0)?);
    if x.quant.is_none() {
        return match site.node.op {
            Op::Abs => each(i16::wrapping_abs),
            Op::Neg => each(i16::wrapping_neg),
            Op::Sign => each(i16::signum),
            _ => no_kernel(site),
        };
    }
    let (qx, qy) = (quantization(x)?, quantization(y)?);
    let ((sx, zx), (sy, zy)) = (qx, qy);
    if zx != 0 || zy != 0 {
        return Err(Error::invalid(format!("int16 zero points {zx} and {zy}; they must be 0")));
    }
    let clamp = |v: i32| v.clamp(i16::MIN as i32, i16::MAX as i32) as i16;
    let table = |f: &dyn Fn(f32) -> f32| {
        let t = Words::new(qx, qy, f);
        each(move |v: i16| t.at(v))
    };
    let limits = |low: f32, high: f32| -> Result<Kernel> {
        let m = Multiplier::new((sx / sy) as f64);
        let (low, high) = relu_limits(DType::I16, qy, low, high)?;
        each(move |v: i16| m.apply(v as i32).clamp(low, high) as i16)
    };
    match &site.node.op {
        Op::Relu => limits(0.0, f32::INFINITY),
        Op::ReluN1To1 => limits(-1.0, 1.0),
        Op::Relu6 => limits(0.0, 6.0),
        Op::Relu0To1 => limits(0.0, 1.0),
        Op::LeakyRelu(o) => {
            let f = leaky(sx, sy, o.alpha);
            each(move |v: i16| clamp(f(v as i32)))
        }
        Op::Logistic => {
            let s = Sigmoid::new(sx, 0);
            each(move |v: i16| s.logistic(v))
        }
        Op::Tanh => {
            let s = Sigmoid::new(sx, 1);
            each(move |v: i16| s.tanh(v))
        }
        Op::Exp => table(&f32::exp),
        Op::Gelu(o) => table(if o.approximate { &gelu_tanh } else { &gelu }),
        Op::Elu => table(&elu),
        Op::Log => {
            let lowest = -32768.0 * sy;
            table(&move |v| if v <= 0.0 { lowest } else { v.ln() })
        }
        Op::Rsqrt => {
            let highest = 32767.0 * sy;
            table(&move |v| if v <= 0.0 { highest } else { 1.0 / v.sqrt() })
        }
        Op::Sqrt => {
            let f = line(move |v: i16| clamp(sqrt(v as i32, sx, sy)));
            Ok(Box::new(move |call: &mut Call<'_>| {
                let x = call.input(0)?.as_slice::<i16>()?;
                if let Some(v) = x.iter().find(|v| **v < 0) {
                    return Err(Error::invalid(format!("no value for the negative element {v}")));
                }
                let pool = call.pool;
                map(pool, x, call.output(0)?.as_mut_slice::<i16>()?, &*f);
                Ok(())
            }))
        }
        Op::Abs => {
            let m = (sx != sy).then(|| Multiplier::new((sx / sy) as f64));
            each(move |v: i16| {
                let v = (v as i32).abs();
                clamp(m.map_or(v, |m| m.apply(v)))
            })
        }
        // As for 8 bits: the rounded real result where the reference has no kernel.
        Op::Neg | Op::Square | Op::HardSwish | Op::Sin | Op::Cos | Op::Floor | Op::Ceil | Op::Round | Op::Sign => {
            let f: fn(f32) -> f32 = match &site.node.op {
                Op::Neg => |v| -v,
                Op::Square => |v| v * v,
                Op::HardSwish => |v| v * clip(v + 3.0, 0.0, 6.0) / 6.0,
                Op::Sin => f32::sin,
                Op::Cos => f32::cos,
                Op::Floor => f32::floor,
                Op::Ceil => f32::ceil,
                Op::Round => f32::round_ties_even,
                _ => |v| {
                    if v > 0.0 {
                        1.0
                    } else if v < 0.0 {
                        -1.0
                    } else {
                        0.0
                    }
                },
            };
            each(move |v: i16| clamp((f(v as f32 * sx) / sy).round() as i32))
        }
        _ => no_kernel(site),
    }
}
