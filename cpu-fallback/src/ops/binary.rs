//! Element-wise operators of two operands (and ADD_N): kernels.

use super::*;
use crate::chain::Step;
use crate::kernel::Call;
use crate::requant;
use crate::simd::{Isa, NR, Requant, Sum, Task, Term, dispatch};
use crate::strided::{Line2, line2, zip};
use crate::strings;
use crate::tables::{exact_log2, quantization};
use bytemuck::Pod;
use half::{bf16, f16};
use litegpu_graph::fixed::{self, Multiplier};
use litegpu_graph::schema::ActivationFunctionType as Activation;
use litegpu_graph::{DType, Op, Tensor};
use std::collections::HashMap;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    if matches!(site.node.op, Op::AddN) {
        return add_n(site);
    }
    let (a, b, y) = (site.input(0)?, site.input(1)?, site.output(0)?);
    if a.dtype != b.dtype && !matches!(site.node.op, Op::Prelu) {
        return Err(Error::invalid(format!("operands of {} and {}", a.dtype, b.dtype)));
    }
    match &site.node.op {
        Op::Equal | Op::NotEqual | Op::Less | Op::LessEqual | Op::Greater | Op::GreaterEqual => {
            return if y.dtype == DType::Bool { compare(site, a, b) } else { no_kernel(site) };
        }
        Op::LogicalOr | Op::LogicalAnd => {
            if (a.dtype, y.dtype) != (DType::Bool, DType::Bool) {
                return no_kernel(site);
            }
            let or = matches!(site.node.op, Op::LogicalOr);
            return pairs(move |x: u8, y: u8| if or { (x | y != 0) as u8 } else { (x != 0 && y != 0) as u8 });
        }
        _ => {}
    }
    if a.dtype != y.dtype && !matches!(site.node.op, Op::Mul(_)) {
        return Err(Error::invalid(format!("{} in, {} out", a.dtype, y.dtype)));
    }
    match a.dtype {
        DType::F32 | DType::F16 | DType::BF16 => real(site, a.dtype),
        DType::I8 | DType::U8 | DType::I16 if y.quant.is_some() || matches!(site.node.op, Op::Prelu) => quantized(site),
        DType::F64 => match site.node.op {
            Op::Atan2 => pairs(f64::atan2),
            _ => no_kernel(site),
        },
        DType::C64 => match site.node.op {
            Op::Mul(_) => pairs(|[a, b]: [f32; 2], [c, d]: [f32; 2]| [a * c - b * d, a * d + b * c]),
            Op::Add(_) => pairs(|[a, b]: [f32; 2], [c, d]: [f32; 2]| [a + c, b + d]),
            Op::Sub(_) => pairs(|[a, b]: [f32; 2], [c, d]: [f32; 2]| [a - c, b - d]),
            _ => no_kernel(site),
        },
        d => integer(site, d),
    }
}

pub(super) fn step(site: &Site<'_>) -> Option<Step> {
    let all = [site.input(0).ok()?, site.input(1).ok()?, site.output(0).ok()?];
    let floats = all.iter().all(|t| t.dtype == DType::F32) && site.node.inputs.len() == 2;
    floats.then(|| real_line(site).ok().flatten().map(Step::Pair)).flatten()
}

/// A kernel that joins elements by `f`, with broadcasting.
fn pairs<A: Pod + Send + Sync, B: Pod + Send + Sync, C: Pod + Send + Sync>(
    f: impl Fn(A, B) -> C + Send + Sync + 'static,
) -> Result<Kernel> {
    lines(line2(f))
}

fn lines<A: Pod + Send + Sync, B: Pod + Send + Sync, C: Pod + Send + Sync>(f: Box<Line2<A, B, C>>) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| join(call, &*f)))
}

fn join<A: Pod + Send + Sync, B: Pod + Send + Sync, C: Pod + Send + Sync>(
    call: &mut Call<'_>,
    f: &Line2<A, B, C>,
) -> Result<()> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let pool = call.pool;
    let out = call.output(0)?;
    let shape = out.shape.clone();
    zip(pool, &shape, (a.shape, a.as_slice()?), (b.shape, b.as_slice()?), out.as_mut_slice()?, f)
}

fn halves<T: Pod + Send + Sync>(
    f: Box<Line2<f32, f32, f32>>,
    wide: fn(T) -> f32,
    narrow: fn(f32) -> T,
) -> Result<Kernel> {
    const N: usize = 128;
    lines(Box::new(move |x: &[T], y: &[T], steps: [usize; 2], out: &mut [T]| {
        let (mut a, mut b, mut c) = ([0f32; N], [0f32; N], [0f32; N]);
        for (i, out) in out.chunks_mut(N).enumerate() {
            let load = |to: &mut [f32; N], from: &[T], step: usize| {
                let from = from.get(i * N * step..).unwrap_or_default();
                to.iter_mut().zip(from).take(out.len()).for_each(|(t, &v)| *t = wide(v));
            };
            load(&mut a, x, steps[0]);
            load(&mut b, y, steps[1]);
            f(&a, &b, steps, &mut c[..out.len()]);
            out.iter_mut().zip(&c).for_each(|(o, &v)| *o = narrow(v));
        }
    }))
}

/// The fused activation of the operators that have one.
fn activation(op: &Op) -> Activation {
    match op {
        Op::Add(o) => o.fused_activation_function,
        Op::Sub(o) => o.fused_activation_function,
        Op::Mul(o) => o.fused_activation_function,
        Op::Div(o) => o.fused_activation_function,
        _ => Activation::NONE,
    }
}

/// A real function with its fused activation; a NaN passes through the clamp.
fn clamped(
    activation: Activation,
    f: impl Fn(f32, f32) -> f32 + Send + Sync + 'static,
) -> Result<Box<Line2<f32, f32, f32>>> {
    if activation == Activation::NONE {
        return Ok(line2(f));
    }
    let (low, high) = fixed::float_range(activation)?;
    Ok(line2(move |a, b| {
        let v = f(a, b);
        let v = if v < low { low } else { v };
        if v > high { high } else { v }
    }))
}

/// A kernel of a real function: 16-bit floats are widened, computed and rounded.
fn real(site: &Site<'_>, d: DType) -> Result<Kernel> {
    let Some(f) = real_line(site)? else { return no_kernel(site) };
    match d {
        DType::F16 => halves(f, f16::to_f32, f16::from_f32),
        DType::BF16 => halves(f, bf16::to_f32, bf16::from_f32),
        _ => lines(f),
    }
}

fn real_line(site: &Site<'_>) -> Result<Option<Box<Line2<f32, f32, f32>>>> {
    let act = activation(&site.node.op);
    Ok(Some(match &site.node.op {
        Op::Add(_) => clamped(act, |a, b| a + b)?,
        Op::Sub(_) => clamped(act, |a, b| a - b)?,
        Op::Mul(_) => clamped(act, |a, b| a * b)?,
        Op::Div(_) => clamped(act, |a, b| a / b)?,
        Op::Prelu => line2(|x, alpha| if x >= 0.0 { x } else { x * alpha }),
        Op::Maximum => line2(|a, b| if a > b { a } else { b }),
        Op::Minimum => line2(|a, b| if a < b { a } else { b }),
        Op::Pow => powers(),
        Op::SquaredDifference => line2(|a, b| (a - b) * (a - b)),
        Op::Atan2 => line2(f32::atan2),
        Op::FloorDiv => line2(|a: f32, b: f32| (a / b).floor()),
        Op::FloorMod => line2(|a: f32, b: f32| {
            let r = a % b;
            if r != 0.0 && (b < 0.0) != (r < 0.0) { r + b } else { r }
        }),
        _ => return Ok(None),
    }))
}

/// POW. One small exponent for all elements (decomposed GELU and layer norms have them) needs no logarithm.
fn powers() -> Box<Line2<f32, f32, f32>> {
    let any = line2(f32::powf);
    Box::new(move |x, y, steps, out| match (steps, y.first()) {
        ([1, 0], Some(2.0)) => out.iter_mut().zip(x).for_each(|(o, &v)| *o = v * v),
        // As the reference has whole exponents: by squaring, each product rounded.
        ([1, 0], Some(3.0)) => out.iter_mut().zip(x).for_each(|(o, &v)| *o = v * (v * v)),
        ([1, 0], Some(-1.0)) => out.iter_mut().zip(x).for_each(|(o, &v)| *o = 1.0 / v),
        _ => any(x, y, steps, out),
    })
}

/// Integer arithmetic that wraps, as two's complement hardware does.
trait Int: Pod + Send + Sync + Ord {
    fn add(self, o: Self) -> Self;
    fn sub(self, o: Self) -> Self;
    fn mul(self, o: Self) -> Self;
    fn div(self, o: Self) -> Self;
    fn floor_div(self, o: Self) -> Self;
    fn floor_mod(self, o: Self) -> Self;
    fn pow(self, o: Self) -> Self;
    fn xor(self, o: Self) -> Self;
    fn shr(self, o: Self) -> Self;
    fn small(v: i8) -> Self;
}

macro_rules! ints {
    ($($t:ident $signed:literal),*) => { $(
        impl Int for $t {
            fn add(self, o: Self) -> Self { self.wrapping_add(o) }
            fn sub(self, o: Self) -> Self { self.wrapping_sub(o) }
            fn mul(self, o: Self) -> Self { self.wrapping_mul(o) }
            fn div(self, o: Self) -> Self { if o == 0 { 0 } else { self.wrapping_div(o) } }
            fn floor_div(self, o: Self) -> Self {
                if o == 0 {
                    return 0;
                }
                let q = self.wrapping_div(o);
                let r = self.wrapping_rem(o);
                #[allow(unused_comparisons)]
                if r != 0 && (r < 0) != (o < 0) { q.wrapping_sub(1) } else { q }
            }
            fn floor_mod(self, o: Self) -> Self {
                if o == 0 {
                    return 0;
                }
                let r = self.wrapping_rem(o);
                #[allow(unused_comparisons)]
                if r != 0 && (r < 0) != (o < 0) { r.wrapping_add(o) } else { r }
            }
            fn pow(self, o: Self) -> Self { u32::try_from(o).map_or(0, |e| self.wrapping_pow(e)) }
            fn xor(self, o: Self) -> Self { self ^ o }
            fn shr(self, o: Self) -> Self { self >> o.clamp(0, ($t::BITS - 1) as $t) }
            fn small(v: i8) -> Self { if $signed || v >= 0 { v as $t } else { 0 } }
        }
    )* };
}
ints!(i8 true, i16 true, i32 true, i64 true, u8 false, u16 false, u32 false);

fn integer(site: &Site<'_>, d: DType) -> Result<Kernel> {
    match d {
        DType::I8 => ints_of::<i8>(site),
        DType::U8 => ints_of::<u8>(site),
        DType::I16 => ints_of::<i16>(site),
        DType::U16 => ints_of::<u16>(site),
        DType::I32 => ints_of::<i32>(site),
        DType::U32 => ints_of::<u32>(site),
        DType::I64 => ints_of::<i64>(site),
        _ => no_kernel(site),
    }
}

fn ints_of<T: Int>(site: &Site<'_>) -> Result<Kernel> {
    if site.output(0)?.dtype != site.input(0)?.dtype {
        return no_kernel(site);
    }
    // The limits of the fused activation; `None` where it sets none.
    let (low, high) = match activation(&site.node.op) {
        Activation::NONE => (None, None),
        Activation::RELU => (Some(T::small(0)), None),
        Activation::RELU_N1_TO_1 => (Some(T::small(-1)), Some(T::small(1))),
        Activation::RELU6 => (Some(T::small(0)), Some(T::small(6))),
        a => return Err(site.unsupported(format!("fused activation {a:?}"))),
    };
    let clip = move |v: T| {
        let v = low.map_or(v, |l| v.max(l));
        high.map_or(v, |h| v.min(h))
    };
    // What large tensors may meet is compiled for itself; the rest is called through pointers, for the sake of size.
    let rare: fn(T, T) -> T = match &site.node.op {
        Op::Add(_) => return pairs(move |a: T, b| clip(a.add(b))),
        Op::Sub(_) => return pairs(move |a: T, b| clip(a.sub(b))),
        Op::Mul(_) => return pairs(move |a: T, b| clip(a.mul(b))),
        Op::Div(_) => |a, b| a.div(b),
        Op::FloorDiv => T::floor_div,
        Op::FloorMod => T::floor_mod,
        Op::Maximum => |a, b| a.max(b),
        Op::Minimum => |a, b| a.min(b),
        Op::SquaredDifference => |a, b| a.sub(b).mul(a.sub(b)),
        Op::Pow => T::pow,
        Op::BitwiseXor => T::xor,
        Op::RightShift => T::shr,
        _ => return no_kernel(site),
    };
    let divides = matches!(site.node.op, Op::Div(_) | Op::FloorDiv | Op::FloorMod);
    let raises = matches!(site.node.op, Op::Pow);
    let f = line2(move |a: T, b: T| clip(rare(a, b)));
    Ok(Box::new(move |call: &mut Call<'_>| {
        let zero = T::small(0);
        // A zero divisor is an error, as in the reference.
        if divides && call.input(1)?.as_slice::<T>()?.contains(&zero) {
            return Err(Error::invalid("division by zero"));
        }
        if raises && call.input(1)?.as_slice::<T>()?.iter().any(|&e| e < zero) {
            return Err(Error::invalid("a negative exponent of integers"));
        }
        join(call, &*f)
    }))
}

/// An element of a quantized tensor.
trait Quantized: Pod + Send + Sync {
    fn wide(self) -> i32;
    fn narrow(v: i32) -> Self;
    /// 16 values within the type's range.
    fn narrow_all<S: Isa>(x: &[i32; NR], to: &mut [Self; NR]);
    /// Sums of the first elements, as many as go fast: how many.
    fn sum_all<S: Isa>(a: &[Self], b: &[Self], out: &mut [Self], k: &Sum) -> usize;
}

macro_rules! quantized_types {
    ($($t:ident: $sum:expr),*) => { $(
        impl Quantized for $t {
            #[inline(always)]
            fn sum_all<S: Isa>(a: &[$t], b: &[$t], out: &mut [$t], k: &Sum) -> usize {
                let sum: fn(&[$t], &[$t], &mut [$t], &Sum) -> usize = $sum;
                sum(a, b, out, k)
            }
            #[inline(always)]
            fn wide(self) -> i32 { self as i32 }
            #[inline(always)]
            fn narrow(v: i32) -> Self { v as $t }
            #[inline(always)]
            fn narrow_all<S: Isa>(x: &[i32; NR], to: &mut [$t; NR]) {
                <$t as requant::Quantized>::narrow_all::<S>(x, to);
            }
        }
    )* };
}
quantized_types!(i8: S::sum_i8, u8: S::sum_u8, i16: |_, _, _, _| 0);

fn quantized(site: &Site<'_>) -> Result<Kernel> {
    match site.input(0)?.dtype {
        DType::I8 => quantized_of::<i8>(site),
        DType::U8 => quantized_of::<u8>(site),
        _ => quantized_of::<i16>(site),
    }
}

fn quantized_of<T: Quantized + Int>(site: &Site<'_>) -> Result<Kernel> {
    let (a, b, y) = (site.input(0)?, site.input(1)?, site.output(0)?);
    // These work on the numbers as they are stored.
    match &site.node.op {
        Op::Maximum | Op::Minimum | Op::FloorDiv | Op::FloorMod | Op::BitwiseXor | Op::RightShift => {
            return ints_of::<T>(site);
        }
        _ => {}
    }
    let (qa, qb, qy) = (quantization(a)?, quantization(b)?, quantization(y)?);
    let ((sa, za), (sb, zb), (sy, zy)) = (qa, qb, qy);
    let (low, high) = fixed::quantized_range(activation(&site.node.op), y.dtype, sy, zy)?;
    match &site.node.op {
        Op::Add(o) => sum::<T>(site, o.pot_scale_int16, 1, low, high),
        Op::Sub(o) => sum::<T>(site, o.pot_scale_int16, -1, low, high),
        Op::Mul(_) => {
            // A product of int16 may be 8 bits wide; the multiplier is 1 then (the product's high half).
            if a.dtype != y.dtype {
                return product_of_words(site, low, high, zy);
            }
            let m = Multiplier::new((sa * sb / sy) as f64);
            lines(mixed::<T, _>(Product { zeros: [za, zb], scale: Scale::new(m, zy, low, high) }))
        }
        Op::SquaredDifference => {
            let twice = 2.0 * sa.max(sb) as f64;
            let (ma, mb) = (Multiplier::new(sa as f64 / twice), Multiplier::new(sb as f64 / twice));
            let m = Multiplier::new(twice * twice / ((1 << 14) as f32 * sy) as f64);
            pairs(move |v: T, w: T| {
                let d = ma.apply((v.wide() - za) << 7).wrapping_sub(mb.apply((w.wide() - zb) << 7));
                T::narrow(zy.wrapping_add(m.apply(d.wrapping_mul(d))).clamp(low, high))
            })
        }
        Op::Div(_) => {
            let m = Multiplier::new((sa / (sb * sy)) as f64);
            pairs(move |v: T, w: T| {
                let q = quotient(v.wide() - za, w.wide() - zb, m);
                T::narrow(zy.saturating_add(q).clamp(low, high))
            })
        }
        Op::Prelu => {
            let positive = Multiplier::new((sa / sy) as f64);
            let negative = Multiplier::new((sa * sb / sy) as f64);
            let f = move |v: i32, w: i32| {
                let r = if v >= 0 { positive.apply(v) } else { negative.apply(v.wrapping_mul(w)) };
                T::narrow(r.wrapping_add(zy).clamp(low, high))
            };
            match (a.dtype, b.dtype) {
                (DType::I16, DType::I8) => pairs(move |v: T, w: i8| f(v.wide() - za, w.wide() - zb)),
                (d, e) if d == e => pairs(move |v: T, w: T| f(v.wide() - za, w.wide() - zb)),
                _ => no_kernel(site),
            }
        }
        Op::Pow | Op::Atan2 => {
            // No kernel of the reference: the rounded real result.
            let f: fn(f32, f32) -> f32 = if matches!(site.node.op, Op::Pow) { f32::powf } else { f32::atan2 };
            pairs(move |v: T, w: T| {
                let r = f((v.wide() - za) as f32 * sa, (w.wide() - zb) as f32 * sb) / sy;
                T::narrow(zy.saturating_add(r.round() as i32).clamp(low, high))
            })
        }
        _ => no_kernel(site),
    }
}

/// ADD (sign 1) and SUB (sign -1): both operands are brought to half of the larger scale with spare bits, added,
/// and rescaled.
fn sum<T: Quantized>(site: &Site<'_>, pot: bool, sign: i32, low: i32, high: i32) -> Result<Kernel> {
    let (a, b, y) = (site.input(0)?, site.input(1)?, site.output(0)?);
    let ((sa, za), (sb, zb), (sy, zy)) = (quantization(a)?, quantization(b)?, quantization(y)?);
    let wide = y.dtype == DType::I16;
    if wide && (za, zb, zy) != (0, 0, 0) {
        return Err(Error::invalid("int16 zero points must be 0"));
    }
    if wide
        && pot
        && let (Some(la), Some(lb), Some(ly)) = (exact_log2(sa), exact_log2(sb), exact_log2(sy))
    {
        // Powers of two: one operand has the output's scale, the other is shifted to it.
        let (ra, rb) = (ly - la, ly - lb);
        if (ra != 0 && rb != 0) || ra < 0 || rb < 0 {
            return Err(Error::invalid(format!("scales {sa}, {sb} and {sy} of a power-of-two sum")));
        }
        return pairs(move |v: T, w: T| {
            let v = fixed::rounding_shift(v.wide(), ra);
            let w = fixed::rounding_shift(w.wide(), rb);
            T::narrow((v + sign * w).clamp(-32768, 32767).clamp(low, high))
        });
    }
    let left: u32 = if wide { 15 } else { 20 };
    let twice = (2.0 * sa.max(sb)) as f64;
    let (ma, mb) = (Multiplier::new(sa as f64 / twice), Multiplier::new(sb as f64 / twice));
    let m = Multiplier::new(twice / ((1 << left) as f32 * sy) as f64);
    let terms = [Term { zero: za, left, scale: ma }, Term { zero: zb, left, scale: mb }];
    lines(mixed::<T, _>(Sum { terms, negative: sign < 0, scale: m, zero: zy, low, high }))
}

/// Rows of 16 numbers that are worked on together.
const ROWS: usize = 4;
type Block = [[i32; NR]; ROWS];

/// A multiplier for each of 16 numbers, and what follows it.
struct Scale {
    value: [i32; NR],
    shift: [i32; NR],
    zero: i32,
    low: i32,
    high: i32,
}

impl Scale {
    fn new(m: Multiplier, zero: i32, low: i32, high: i32) -> Scale {
        Scale { value: [m.value; NR], shift: [m.shift; NR], zero, low, high }
    }
    #[inline(always)]
    fn apply<S: Isa>(&self, x: &mut Block) {
        let (bias, value, shift) = (&[0; NR], &self.value, &self.shift);
        let (zero, low, high) = (self.zero, self.low, self.high);
        S::requantize(x, &Requant { bias, value, shift, zero, low, high, columns: NR, once: None });
    }
}

/// Joins two blocks of numbers as stored into one of results, left in `x`.
trait Mix: Send + Sync {
    /// `#[inline(always)]`.
    fn mix<S: Isa>(&self, x: &mut Block, y: &mut Block);
    /// Whole rows of elements at once, as many as go fast: how many elements.
    #[inline(always)]
    fn whole<S: Isa, T: Quantized>(&self, _: &[T], _: &[T], _: &mut [T]) -> usize {
        0
    }
}

/// The line of a mix.
fn mixed<T: Quantized, M: Mix + 'static>(mix: M) -> Box<Line2<T, T, T>> {
    Box::new(move |a, b, steps, out| dispatch(Mixed { mix: &mix, a, b, steps, out }))
}

struct Mixed<'a, T, M> {
    mix: &'a M,
    a: &'a [T],
    b: &'a [T],
    steps: [usize; 2],
    out: &'a mut [T],
}

/// A block of elements from place `at` on, or the same one everywhere.
#[inline(always)]
fn load<T: Quantized>(from: &[T], step: usize, at: usize) -> Block {
    let mut to = [[0; NR]; ROWS];
    if step == 0 {
        return [[from.first().map_or(0, |v| v.wide()); NR]; ROWS];
    }
    let from = from.get(at..).unwrap_or_default();
    match from.first_chunk::<{ NR * ROWS }>() {
        Some(from) => {
            for r in 0..ROWS {
                for j in 0..NR {
                    to[r][j] = from[r * NR + j].wide();
                }
            }
        }
        None => to.as_flattened_mut().iter_mut().zip(from).for_each(|(t, v)| *t = v.wide()),
    }
    to
}

impl<T: Quantized, M: Mix> Task for Mixed<'_, T, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        let done = match self.steps {
            [1, 1] => self.mix.whole::<S, T>(self.a, self.b, self.out),
            _ => 0,
        };
        for (i, out) in self.out[done..].chunks_mut(NR * ROWS).enumerate() {
            let at = done + i * NR * ROWS;
            let (mut x, mut y) = (load(self.a, self.steps[0], at), load(self.b, self.steps[1], at));
            self.mix.mix::<S>(&mut x, &mut y);
            let (whole, rest) = out.as_chunks_mut::<NR>();
            for (to, x) in whole.iter_mut().zip(&x) {
                T::narrow_all::<S>(x, to);
            }
            let done = whole.len();
            rest.iter_mut().zip(x.as_flattened().iter().skip(done * NR)).for_each(|(o, &v)| *o = T::narrow(v));
        }
    }
}

impl Mix for Sum {
    #[inline(always)]
    fn mix<S: Isa>(&self, x: &mut Block, y: &mut Block) {
        S::sum(x, y, self);
    }
    #[inline(always)]
    fn whole<S: Isa, T: Quantized>(&self, a: &[T], b: &[T], out: &mut [T]) -> usize {
        T::sum_all::<S>(a, b, out, self)
    }
}

struct Product {
    zeros: [i32; 2],
    scale: Scale,
}

impl Mix for Product {
    #[inline(always)]
    fn mix<S: Isa>(&self, x: &mut Block, y: &mut Block) {
        for (x, y) in x.iter_mut().zip(y.iter()) {
            for j in 0..NR {
                x[j] = x[j].wrapping_sub(self.zeros[0]).wrapping_mul(y[j].wrapping_sub(self.zeros[1]));
            }
        }
        self.scale.apply::<S>(x);
    }
}

/// A quotient of quantized values: the divisor's reciprocal in fixed point.
fn quotient(v: i32, w: i32, m: Multiplier) -> i32 {
    let (v, w) = if w < 0 { (-v, -w) } else { (v, w) };
    let (inverse, shift) = fixed::reciprocal(w, 31);
    let headroom = (v ^ (v >> 31)).leading_zeros() as i32 - 1;
    let q = fixed::high_mul(v.wrapping_shl(headroom as u32), inverse);
    let (x, right) = (fixed::high_mul(q, m.value), shift + headroom - m.shift);
    // Shifts leave the range of int32 for small numerators and for a zero divisor. The reference's rounding then gives
    // what its shift instructions make of such counts, e.g. 1 for 0/x.
    let mask = 1i64.wrapping_shl(right as u32).wrapping_sub(1) as i32;
    let threshold = (mask >> 1) + (x < 0) as i32;
    x.wrapping_shr(right as u32) + ((x & mask) > threshold) as i32
}

/// MUL of int16 with an 8-bit result: the product of two fractions, rounded to its high byte.
fn product_of_words(site: &Site<'_>, low: i32, high: i32, zy: i32) -> Result<Kernel> {
    let f = move |a: i16, b: i16| {
        let p = fixed::high_mul16(a, b) as i32;
        fixed::rounding_shift(p, 8).saturating_add(zy).clamp(low, high)
    };
    match site.output(0)?.dtype {
        DType::I8 => pairs(move |a: i16, b: i16| f(a, b) as i8),
        DType::U8 => pairs(move |a: i16, b: i16| f(a, b) as u8),
        _ => no_kernel(site),
    }
}

fn compare(site: &Site<'_>, a: &Tensor, b: &Tensor) -> Result<Kernel> {
    match a.dtype {
        DType::F32 => ordered::<f32, _>(site, |v| v),
        DType::F16 => ordered(site, f16::to_f32),
        DType::BF16 => ordered(site, bf16::to_f32),
        DType::F64 => ordered::<f64, _>(site, |v| v),
        DType::I32 => ordered::<i32, _>(site, |v| v),
        DType::U32 => ordered::<u32, _>(site, |v| v),
        DType::I64 => ordered::<i64, _>(site, |v| v),
        DType::U64 => ordered::<u64, _>(site, |v| v),
        DType::U16 => ordered::<u16, _>(site, |v| v),
        DType::Bool => ordered(site, |v: u8| v != 0),
        DType::I8 => rescaled::<i8>(site, a, b),
        DType::U8 => rescaled::<u8>(site, a, b),
        DType::I16 => rescaled::<i16>(site, a, b),
        DType::String => match site.node.op {
            Op::Equal => texts(true),
            Op::NotEqual => texts(false),
            _ => no_kernel(site),
        },
        _ => no_kernel(site),
    }
}

/// A comparison of what `of` makes of the elements; NaN compares as IEEE says.
fn ordered<T: Pod + Send + Sync, K: PartialOrd>(
    site: &Site<'_>,
    of: impl Fn(T) -> K + Copy + Send + Sync + 'static,
) -> Result<Kernel> {
    by_order(site, of, of)
}

/// A comparison, by whether it holds of less, equal and greater operands: one loop for all of them.
fn by_order<T: Pod + Send + Sync, K: PartialOrd>(
    site: &Site<'_>,
    fa: impl Fn(T) -> K + Send + Sync + 'static,
    fb: impl Fn(T) -> K + Send + Sync + 'static,
) -> Result<Kernel> {
    let (less, equal, greater) = match site.node.op {
        Op::Equal => (false, true, false),
        // All but equal, which what is not comparable is not either.
        Op::NotEqual => return pairs(move |a, b| (fa(a) != fb(b)) as u8),
        Op::Less => (true, false, false),
        Op::LessEqual => (true, true, false),
        Op::Greater => (false, false, true),
        _ => (false, true, true),
    };
    pairs(move |a, b| {
        let (a, b) = (fa(a), fb(b));
        (((a < b) & less) | ((a == b) & equal) | ((a > b) & greater)) as u8
    })
}

/// A comparison of quantized tensors: of the stored numbers when the quantizations agree, else of their scaled forms.
fn rescaled<T: Quantized + PartialOrd>(site: &Site<'_>, a: &Tensor, b: &Tensor) -> Result<Kernel> {
    if a.per_tensor() == b.per_tensor() || a.quant.is_none() || b.quant.is_none() {
        return ordered::<T, _>(site, |v| v);
    }
    let ((sa, za), (sb, zb)) = (quantization(a)?, quantization(b)?);
    let (ma, mb) = (Multiplier::new(sa as f64), Multiplier::new(sb as f64));
    let scale = |m: Multiplier, z: i32| move |v: T| m.apply((v.wide() - z).wrapping_shl(8));
    by_order(site, scale(ma, za), scale(mb, zb))
}

/// Equality of strings (or its opposite). Strings are found by number, so that broadcasting is the common loop's.
fn texts(equal: bool) -> Result<Kernel> {
    let f = line2(move |x: u32, y: u32| ((x == y) == equal) as u8);
    Ok(Box::new(move |call: &mut Call<'_>| {
        let (a, b) = (call.input(0)?, call.input(1)?);
        let (va, vb) = (strings::decode(a.bytes)?, strings::decode(b.bytes)?);
        let pool = call.pool;
        let out = call.output(0)?;
        let shape = out.shape.clone();
        let mut numbers: HashMap<&[u8], u32> = HashMap::new();
        for s in va.iter().chain(&vb) {
            let next = numbers.len() as u32;
            numbers.entry(s).or_insert(next);
        }
        let number = |list: &[&[u8]]| -> Vec<u32> { list.iter().filter_map(|s| numbers.get(s).copied()).collect() };
        let (va, vb) = (number(&va), number(&vb));
        zip(pool, &shape, (a.shape, &va), (b.shape, &vb), out.as_mut_slice::<u8>()?, &*f)
    }))
}

fn add_n(site: &Site<'_>) -> Result<Kernel> {
    match site.output(0)?.dtype {
        DType::F32 => sums::<f32>(|a, b| a + b),
        DType::I32 => sums::<i32>(i32::wrapping_add),
        DType::I64 => sums::<i64>(i64::wrapping_add),
        _ => no_kernel(site),
    }
}

fn sums<T: Pod + Send + Sync>(f: impl Fn(T, T) -> T + Send + Sync + 'static) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let inputs = call.inputs;
        let out = call.output(0)?;
        let dtype = out.dtype;
        let out = out.as_mut_slice::<T>()?;
        for (i, v) in inputs.iter().enumerate() {
            let v =
                v.filter(|v| v.dtype == dtype).ok_or_else(|| Error::invalid(format!("operand {i} is not {dtype}")))?;
            let v = v.as_slice::<T>()?;
            if v.len() != out.len() {
                return Err(Error::invalid(format!("operand {i} has another shape")));
            }
            if i == 0 {
                out.copy_from_slice(v);
            } else {
                out.iter_mut().zip(v).for_each(|(o, &v)| *o = f(*o, v));
            }
        }
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use litegpu_graph::Tensor;
    use litegpu_graph::schema::*;

    #[test]
    fn rank_six_empty_and_scalar() {
        let add = Op::Add(AddOptionsT::default());
        let a: Vec<f32> = (0..8).map(|v| v as f32).collect();
        let args = [f(&[2, 1, 2, 1, 2, 1], &a), f(&[1, 2, 1, 2, 1, 1], &[0.0, 10.0, 20.0, 30.0])];
        let (s, v) = one::<f32>(add.clone(), &args, DType::F32);
        assert_eq!(s, [2, 2, 2, 2, 2, 1]);
        assert_eq!(v[..8], [0.0, 1.0, 10.0, 11.0, 2.0, 3.0, 12.0, 13.0]);
        assert_eq!(one::<f32>(add.clone(), &[f(&[], &[1.0]), f(&[], &[2.0])], DType::F32), (vec![], vec![3.0]));
        assert_eq!(one::<f32>(add.clone(), &[f(&[0, 3], &[]), f(&[1, 1], &[2.0])], DType::F32), (vec![0, 3], vec![]));
        assert!(run(add, &[f(&[2], &[1.0; 2]), f(&[3], &[1.0; 3])], &[out(DType::F32)]).is_err());
    }

    #[test]
    fn fused_activations() {
        let act = |a| Op::Sub(SubOptionsT { fused_activation_function: a, ..Default::default() });
        let args = [f(&[3], &[9.0, -9.0, f32::NAN]), f(&[1], &[1.0])];
        let (_, v) = one::<f32>(act(ActivationFunctionType::RELU6), &args, DType::F32);
        assert!(v[0] == 6.0 && v[1] == 0.0 && v[2].is_nan());
        let (_, v) =
            one::<i32>(act(ActivationFunctionType::RELU_N1_TO_1), &[i(&[2], &[9, -9]), i(&[], &[1])], DType::I32);
        assert_eq!(v, [1, -1]);
        assert!(run(act(ActivationFunctionType::TANH), &args, &[out(DType::F32)]).is_err());
    }

    #[test]
    fn divisions() {
        let (_, v) = one::<i32>(Op::FloorDiv, &[i(&[4], &[7, -7, 7, i32::MIN]), i(&[4], &[2, 2, -2, -1])], DType::I32);
        assert_eq!(v, [3, -4, -4, i32::MIN]);
        let (_, v) = one::<i32>(Op::FloorMod, &[i(&[4], &[7, -7, 7, i32::MIN]), i(&[4], &[3, 3, -3, -1])], DType::I32);
        assert_eq!(v, [1, 2, -2, 0]);
        for op in [Op::FloorDiv, Op::FloorMod, Op::Div(DivOptionsT::default())] {
            assert!(run(op, &[i(&[1], &[1]), i(&[1], &[0])], &[out(DType::I32)]).is_err());
        }
        assert!(run(Op::Pow, &[i(&[1], &[2]), i(&[1], &[-1])], &[out(DType::I32)]).is_err());
        let shift = [i(&[3], &[-8, -8, 8]), i(&[3], &[1, 99, -1])];
        assert_eq!(one::<i32>(Op::RightShift, &shift, DType::I32).1, [-4, -1, 8]);
    }

    #[test]
    fn quantized_sums_and_products() {
        let a = q(x(DType::I8, &[2], &[10i8, -128]), 0.5, 0);
        let b = q(x(DType::I8, &[1], &[20i8]), 0.25, 4);
        // 5 + 4 = 9 and -64 + 4 = -60.
        let v = run(Op::Add(AddOptionsT::default()), &[a.clone(), b.clone()], &[q(out(DType::I8), 0.5, -10)]).unwrap();
        assert_eq!(v[0].as_slice::<i8>().unwrap(), [8, -128]);
        let v = run(Op::Mul(MulOptionsT::default()), &[a.clone(), b], &[q(out(DType::I8), 1.0, 0)]).unwrap();
        assert_eq!(v[0].as_slice::<i8>().unwrap(), [20, -128]);
        assert!(
            run(Op::Mul(MulOptionsT::default()), &[a, x(DType::I8, &[1], &[1i8])], &[q(out(DType::I8), 1.0, 0)])
                .is_err()
        );
    }

    #[test]
    fn comparisons() {
        let nan = [f(&[3], &[1.0, f32::NAN, 3.0]), f(&[], &[1.0])];
        assert_eq!(one::<u8>(Op::GreaterEqual, &nan, DType::Bool).1, [1, 0, 1]);
        assert_eq!(one::<u8>(Op::NotEqual, &nan, DType::Bool).1, [0, 1, 1]);
        let text = |s: &[&str]| Tensor::constant("", DType::String, &[s.len()], strings::encode(s).unwrap());
        assert_eq!(one::<u8>(Op::Equal, &[text(&["a", "b", ""]), text(&["b"])], DType::Bool).1, [0, 1, 0]);
        // The same numbers in other scales.
        let a = q(x(DType::U8, &[2], &[130u8, 140]), 0.5, 128);
        let b = q(x(DType::U8, &[2], &[4u8, 4]), 0.25, 0);
        assert_eq!(one::<u8>(Op::Equal, &[a, b], DType::Bool).1, [1, 0]);
    }

    #[test]
    fn half_precision() {
        let h = |v: &[f32]| v.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>();
        let long: Vec<f32> = (0..300).map(|v| v as f32).collect();
        let args = [x(DType::F16, &[300], &h(&long)), x(DType::F16, &[], &h(&[0.5]))];
        let (_, v) = one::<f16>(Op::Mul(MulOptionsT::default()), &args, DType::F16);
        assert!(v.iter().enumerate().all(|(i, v)| v.to_f32() == i as f32 * 0.5));
    }
}
