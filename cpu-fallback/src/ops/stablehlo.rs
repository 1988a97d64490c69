//! StableHLO operators: kernels.

use super::*;
use crate::kernel::Call;
use crate::value::View;
use bytemuck::Pod;
use half::f16;
use litegpu_graph::schema::StablehloComparisonDirection as Direction;
use litegpu_graph::{DType, Node, Op, elements};
use smallvec::SmallVec;

mod index;
mod number;
mod random;

use number::{Bool, Number, combine};
pub(super) use number::{Combine, Fold};

/// Runs `$body` with `$t` as the Rust type of the elements; `$none` for types that have no arithmetic here.
macro_rules! typed {
    ($dtype:expr, $t:ident => $body:expr, $none:expr) => {
        match $dtype {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F64 => {
                type $t = f64;
                $body
            }
            DType::F16 => {
                type $t = f16;
                $body
            }
            DType::I8 => {
                type $t = i8;
                $body
            }
            DType::I16 => {
                type $t = i16;
                $body
            }
            DType::I32 => {
                type $t = i32;
                $body
            }
            DType::I64 => {
                type $t = i64;
                $body
            }
            DType::U8 => {
                type $t = u8;
                $body
            }
            DType::U16 => {
                type $t = u16;
                $body
            }
            DType::U32 => {
                type $t = u32;
                $body
            }
            DType::U64 => {
                type $t = u64;
                $body
            }
            DType::Bool => {
                type $t = Bool;
                $body
            }
            _ => $none,
        }
    };
}

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let first = site.optional(0).map(|t| t.dtype);
    let size = |t: Option<DType>| t.map(DType::bits).filter(|&b| b > 0 && b % 8 == 0).map(|b| b / 8);
    match &site.node.op {
        Op::StablehloAdd => binary(site, Fold::Add),
        Op::StablehloSubtract => binary(site, Fold::Sub),
        Op::StablehloMultiply => binary(site, Fold::Mul),
        Op::StablehloDivide => binary(site, Fold::Div),
        Op::StablehloMaximum => binary(site, Fold::Max),
        Op::StablehloMinimum => binary(site, Fold::Min),
        Op::StablehloPower => binary(site, Fold::Pow),
        Op::StablehloRemainder => binary(site, Fold::Rem),
        Op::StablehloAnd => binary(site, Fold::And),
        Op::StablehloOr => binary(site, Fold::Or),
        Op::StablehloShiftLeft => binary(site, Fold::Shl),
        Op::StablehloLogistic => unary(site, |x| 1.0 / (1.0 + (-x).exp()), |x| 1.0 / (1.0 + (-x).exp())),
        Op::StablehloCosine => unary(site, f32::cos, f64::cos),
        Op::StablehloExponential => unary(site, f32::exp, f64::exp),
        Op::StablehloFloor => unary(site, f32::floor, f64::floor),
        Op::StablehloLog => unary(site, f32::ln, f64::ln),
        Op::StablehloRsqrt => unary(site, |x| 1.0 / x.sqrt(), |x| 1.0 / x.sqrt()),
        Op::StablehloTanh => unary(site, f32::tanh, f64::tanh),
        Op::StablehloCbrt => unary(site, f32::cbrt, f64::cbrt),
        Op::StablehloAbs => {
            typed!(site.input(0)?.dtype, T => Ok(map(<T as Number>::abs as fn(T) -> T)), no_kernel(site))
        }
        Op::StablehloNegate => {
            typed!(site.input(0)?.dtype, T => Ok(map(<T as Number>::negate as fn(T) -> T)), no_kernel(site))
        }
        Op::StablehloCompare(o) => {
            let direction = o.comparison_direction;
            if site.input(1)?.dtype != site.input(0)?.dtype || site.output(0)?.dtype != DType::Bool {
                return no_kernel(site);
            }
            typed!(site.input(0)?.dtype, T => compare::<T>(direction), no_kernel(site))
        }
        Op::StablehloClamp => {
            if site.input(1)?.dtype != site.input(0)?.dtype || site.input(2)?.dtype != site.input(0)?.dtype {
                return no_kernel(site);
            }
            let dtype = site.input(0)?.dtype;
            match (folding(dtype, Fold::Max), folding(dtype, Fold::Min)) {
                (Some((size, max)), Some((_, min))) => Ok(clamp(size, max, min)),
                _ => no_kernel(site),
            }
        }
        Op::StablehloSelect => match size(site.optional(1).map(|t| t.dtype)) {
            Some(size) if site.input(2)?.dtype == site.input(1)?.dtype => Ok(select(size)),
            _ => no_kernel(site),
        },
        Op::StablehloConvert => {
            // The same conversion as CAST.
            let cast = Op::Cast(Default::default());
            let node = Node { op: cast, ..site.node.clone() };
            super::prepare(&Site { node: &node, ..*site })
        }
        Op::StablehloReshape => Ok(Box::new(|call| {
            let x = call.input(0)?;
            let out = call.output(0)?.bytes_mut();
            if out.len() != x.bytes.len() {
                return Err(Error::invalid("the result has another size than the operand"));
            }
            out.copy_from_slice(x.bytes);
            Ok(())
        })),
        Op::StablehloIota(o) => {
            let axis = usize::try_from(o.iota_dimension).unwrap_or(0);
            typed!(site.output(0)?.dtype, T => Ok(iota::<T>(axis)), no_kernel(site))
        }
        Op::StablehloReduce(o) => reduce(site, o.dimensions.clone().unwrap_or_default(), o.body_subgraph_index),
        Op::StablehloReduceWindow(o) => reduce_window(site, o),
        Op::StablehloScatter(o) => {
            let fold = body(site, o.update_computation_subgraph_index)?;
            let o = o.clone();
            let dtype = site.input(0)?.dtype;
            let same = site.input(2)?.dtype == dtype && site.output(0)?.dtype == dtype;
            match folding(dtype, fold) {
                Some((size, f)) if same => Ok(Box::new(move |call: &mut Call<'_>| index::scatter(call, &o, size, &*f))),
                _ => no_kernel(site),
            }
        }
        Op::StablehloDotGeneral(o) => {
            let o = o.clone();
            if site.input(1)?.dtype != site.input(0)?.dtype || site.output(0)?.dtype != site.input(0)?.dtype {
                return no_kernel(site);
            }
            let dtype = site.input(0)?.dtype;
            match (folding(dtype, Fold::Mul), folding(dtype, Fold::Add)) {
                (Some((size, mul)), Some((_, add))) => {
                    Ok(Box::new(move |call: &mut Call<'_>| index::dot_general(call, &o, size, &*mul, &*add)))
                }
                _ => no_kernel(site),
            }
        }
        Op::StablehloRngBitGenerator(o) => random::prepare(site, o.algorithm),
        op @ (Op::StablehloConcatenate(_)
        | Op::StablehloBroadcastInDim(_)
        | Op::StablehloSlice(_)
        | Op::StablehloDynamicSlice(_)
        | Op::StablehloDynamicUpdateSlice
        | Op::StablehloTranspose(_)
        | Op::StablehloPad(_)
        | Op::StablehloGather(_)) => match size(first) {
            Some(size) if first == Some(site.output(0)?.dtype) => {
                let op = op.clone();
                Ok(Box::new(move |call| index::run(call, &op, size)))
            }
            _ => no_kernel(site),
        },
        _ => no_kernel(site),
    }
}

/// The size of an element and the function of `fold`, where the type has it.
pub(super) fn folding(dtype: DType, fold: Fold) -> Option<(usize, Box<Combine>)> {
    typed!(dtype, T => Some((size_of::<T>(), combine::<T>(fold)?)), None)
}

/// The function of a region that combines two values: the subgraph of one operator, or of none, which takes the
/// second value.
fn body(site: &Site<'_>, subgraph: i32) -> Result<Fold> {
    let graph = usize::try_from(subgraph).ok().and_then(|s| site.model.subgraphs.get(s));
    let graph = graph.ok_or_else(|| Error::invalid(format!("no subgraph {subgraph}")))?;
    let [node] = graph.nodes.as_slice() else {
        return match graph.nodes.len() {
            0 => Ok(Fold::Second),
            n => Err(site.unsupported(format!("a region of {n} operators"))),
        };
    };
    match &node.op {
        Op::Add(_) | Op::StablehloAdd => Ok(Fold::Add),
        Op::Mul(_) | Op::StablehloMultiply => Ok(Fold::Mul),
        Op::Maximum | Op::StablehloMaximum => Ok(Fold::Max),
        Op::Minimum | Op::StablehloMinimum => Ok(Fold::Min),
        Op::LogicalAnd | Op::StablehloAnd => Ok(Fold::And),
        Op::LogicalOr | Op::StablehloOr => Ok(Fold::Or),
        op => Err(site.unsupported(format!("{} in its region", op.name()))),
    }
}

fn map<T: Pod>(f: impl Fn(T) -> T + Send + 'static) -> Kernel {
    Box::new(move |call| {
        let x = call.input(0)?;
        for (y, &x) in call.output(0)?.as_mut_slice::<T>()?.iter_mut().zip(x.as_slice::<T>()?) {
            *y = f(x);
        }
        Ok(())
    })
}

fn unary(site: &Site<'_>, f: fn(f32) -> f32, g: fn(f64) -> f64) -> Result<Kernel> {
    match site.input(0)?.dtype {
        DType::F32 => Ok(map(f)),
        DType::F64 => Ok(map(g)),
        DType::F16 => Ok(map(move |x: f16| f16::from_f32(f(x.to_f32())))),
        _ => no_kernel(site),
    }
}

fn binary(site: &Site<'_>, fold: Fold) -> Result<Kernel> {
    let dtype = site.input(0)?.dtype;
    if site.input(1)?.dtype != dtype || site.output(0)?.dtype != dtype {
        return no_kernel(site);
    }
    typed!(dtype, T => match T::fold(fold) {
        Some(f) => Ok(Box::new(move |call: &mut Call<'_>| {
            let (a, b) = (call.input(0)?, call.input(1)?);
            let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
            for ((y, &a), &b) in call.output(0)?.as_mut_slice::<T>()?.iter_mut().zip(a).zip(b) {
                *y = f(a, b);
            }
            Ok(())
        })),
        None => no_kernel(site),
    }, no_kernel(site))
}

fn compare<T: Number>(direction: Direction) -> Result<Kernel> {
    let f: fn(&T, &T) -> bool = match direction {
        Direction::STABLEHLO_COMPARISON_DIRECTION_EQ => |a, b| a == b,
        Direction::STABLEHLO_COMPARISON_DIRECTION_NE => |a, b| a != b,
        Direction::STABLEHLO_COMPARISON_DIRECTION_GE => |a, b| a >= b,
        Direction::STABLEHLO_COMPARISON_DIRECTION_GT => |a, b| a > b,
        Direction::STABLEHLO_COMPARISON_DIRECTION_LE => |a, b| a <= b,
        Direction::STABLEHLO_COMPARISON_DIRECTION_LT => |a, b| a < b,
        d => return Err(Error::invalid(format!("comparison direction {d:?}"))),
    };
    Ok(Box::new(move |call| {
        let (a, b) = (call.input(0)?, call.input(1)?);
        let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
        for ((y, a), b) in call.output(0)?.bytes_mut().iter_mut().zip(a).zip(b) {
            *y = f(a, b) as u8;
        }
        Ok(())
    }))
}

fn clamp(size: usize, max: Box<Combine>, min: Box<Combine>) -> Kernel {
    Box::new(move |call| {
        let (low, x, high) = (call.input(0)?, call.input(1)?, call.input(2)?);
        let at = |v: &View<'_>, i: usize| if v.bytes.len() == size { 0 } else { i };
        let out = call.output(0)?.bytes_mut();
        for (i, (y, x)) in out.chunks_exact_mut(size).zip(x.bytes.chunks_exact(size)).enumerate() {
            y.copy_from_slice(x);
            if let Some(low) = index::element(low.bytes, at(&low, i), size) {
                max(y, low);
            }
            if let Some(high) = index::element(high.bytes, at(&high, i), size) {
                min(y, high);
            }
        }
        Ok(())
    })
}

fn select(size: usize) -> Kernel {
    Box::new(move |call| {
        let (which, yes, no) = (call.input(0)?, call.input(1)?, call.input(2)?);
        let one = which.bytes.len() == 1;
        let values = yes.bytes.chunks_exact(size).zip(no.bytes.chunks_exact(size));
        for (i, (y, (a, b))) in call.output(0)?.bytes_mut().chunks_exact_mut(size).zip(values).enumerate() {
            let w = which.bytes.get(if one { 0 } else { i }).is_some_and(|&w| w != 0);
            y.copy_from_slice(if w { a } else { b });
        }
        Ok(())
    })
}

fn iota<T: Number>(axis: usize) -> Kernel {
    Box::new(move |call| {
        let out = call.output(0)?;
        if out.is_empty() {
            return Ok(());
        }
        let inner: usize = out.shape.iter().skip(axis + 1).product();
        let n = out.shape.get(axis).copied().unwrap_or(1);
        for (i, y) in out.as_mut_slice::<T>()?.iter_mut().enumerate() {
            *y = T::from_index(i / inner.max(1) % n.max(1));
        }
        Ok(())
    })
}

fn reduce(site: &Site<'_>, dims: Vec<i64>, subgraph: i32) -> Result<Kernel> {
    let fold = body(site, subgraph)?;
    let dtype = site.input(0)?.dtype;
    if site.input(1)?.dtype != dtype || site.output(0)?.dtype != dtype || fold == Fold::Second {
        return no_kernel(site);
    }
    match folding(dtype, fold) {
        Some((size, f)) => Ok(Box::new(move |call: &mut Call<'_>| {
            let (x, start) = (call.input(0)?, call.input(1)?);
            let start = index::element(start.bytes, 0, size).ok_or_else(|| Error::invalid("no initial value"))?;
            let out = call.output(0)?.bytes_mut();
            if out.is_empty() {
                return Ok(());
            }
            out.chunks_exact_mut(size).for_each(|y| y.copy_from_slice(start));
            // Strides of the result by dimensions of the operand; 0 along the reduced ones.
            let mut strides: SmallVec<[usize; 6]> = SmallVec::from_elem(0, x.shape.len());
            let mut step = 1;
            for (d, s) in strides.iter_mut().enumerate().rev() {
                if !dims.contains(&(d as i64)) {
                    *s = step;
                    step = step.saturating_mul(x.shape[d]);
                }
            }
            index::each(x.shape, |at, i| {
                let to: usize = at.iter().zip(&strides).map(|(a, s)| a * s).sum();
                if let (Some(y), Some(x)) = (index::element_mut(out, to, size), index::element(x.bytes, i, size)) {
                    f(y, x);
                }
            });
            Ok(())
        })),
        None => no_kernel(site),
    }
}

fn reduce_window(site: &Site<'_>, o: &litegpu_graph::schema::StablehloReduceWindowOptionsT) -> Result<Kernel> {
    let fold = body(site, o.body_subgraph_index)?;
    let dtype = site.input(0)?.dtype;
    if site.input(1)?.dtype != dtype || site.output(0)?.dtype != dtype || fold == Fold::Second {
        return no_kernel(site);
    }
    let o = o.clone();
    match folding(dtype, fold) {
        Some((size, f)) => Ok(Box::new(move |call: &mut Call<'_>| index::reduce_window(call, &o, size, &*f))),
        None => no_kernel(site),
    }
}
