//! StableHLO operators. Those that are another name for a builtin operator are lowered as that one; others move elements
//! as the `copy` kernel does. They do not broadcast, and their attributes are options, not operands.

use super::binary;
use super::layout::{Copy, Dim, Outside, strides};
use crate::lower::{Lower, Lowered, Operand, no};
use litegpu_graph::ops::axis;
use litegpu_graph::schema::{
    BatchMatMulOptionsT, ConcatenationOptionsT, ReshapeOptionsT, StablehloComparisonDirection as Direction,
    StablehloDotGeneralOptionsT,
};
use litegpu_graph::{DType, Graph, Node, Op, Tensor};

/// The builtin operator that a StableHLO operator is another name for, on the same operands.
pub(crate) fn builtin(graph: &Graph, node: &Node) -> Option<Node> {
    let tensors = node.inputs.iter().flatten().chain(&node.outputs).map(|&t| graph.tensors.get(t));
    // Here arithmetic is on elements as they are, whatever their scale; a builtin operator rescales 8 bits.
    let scaled =
        |t: &Tensor| matches!(t.dtype, DType::I8 | DType::U8) && t.quant.as_ref().is_some_and(|q| !q.scale.is_empty());
    if tensors.into_iter().any(|t| t.is_none_or(scaled)) {
        return None;
    }
    let dtype = graph.operand(node, 0)?.dtype;
    let float = matches!(dtype, DType::F32 | DType::F16);
    let number = float || dtype == DType::I32;
    let op = match &node.op {
        Op::StablehloLogistic if float => Op::Logistic,
        Op::StablehloCosine if float => Op::Cos,
        Op::StablehloExponential if float => Op::Exp,
        Op::StablehloFloor if float => Op::Floor,
        Op::StablehloLog if float => Op::Log,
        Op::StablehloRsqrt if float => Op::Rsqrt,
        Op::StablehloTanh if float => Op::Tanh,
        Op::StablehloAbs if number => Op::Abs,
        Op::StablehloNegate if number => Op::Neg,
        Op::StablehloAdd if number => Op::Add(Default::default()),
        Op::StablehloSubtract if number => Op::Sub(Default::default()),
        Op::StablehloMultiply if number => Op::Mul(Default::default()),
        Op::StablehloDivide if float => Op::Div(Default::default()),
        Op::StablehloPower if float => Op::Pow,
        Op::StablehloMaximum if number => Op::Maximum,
        Op::StablehloMinimum if number => Op::Minimum,
        Op::StablehloAnd if dtype == DType::Bool => Op::LogicalAnd,
        Op::StablehloOr if dtype == DType::Bool => Op::LogicalOr,
        Op::StablehloCompare(o) if number => match o.comparison_direction {
            Direction::STABLEHLO_COMPARISON_DIRECTION_EQ => Op::Equal,
            Direction::STABLEHLO_COMPARISON_DIRECTION_NE => Op::NotEqual,
            Direction::STABLEHLO_COMPARISON_DIRECTION_GE => Op::GreaterEqual,
            Direction::STABLEHLO_COMPARISON_DIRECTION_GT => Op::Greater,
            Direction::STABLEHLO_COMPARISON_DIRECTION_LE => Op::LessEqual,
            Direction::STABLEHLO_COMPARISON_DIRECTION_LT => Op::Less,
            _ => return None,
        },
        Op::StablehloSelect => Op::SelectV2,
        Op::StablehloConvert => Op::Cast(Default::default()),
        Op::StablehloReshape => Op::Reshape(ReshapeOptionsT::default()),
        Op::StablehloConcatenate(o) => {
            Op::Concatenation(ConcatenationOptionsT { axis: i32::try_from(o.dimension).ok()?, ..Default::default() })
        }
        Op::StablehloDotGeneral(o) if float => product(graph, node, o)?,
        _ => return None,
    };
    Some(Node { op, ..node.clone() })
}

/// A product of matrices, batch by batch: batches come first in both operands, in order.
fn product(graph: &Graph, node: &Node, o: &StablehloDotGeneralOptionsT) -> Option<Op> {
    let (a, b) = (graph.operand(node, 0)?, graph.operand(node, 1)?);
    let list = |l: &Option<Vec<i64>>| l.clone().unwrap_or_default();
    let (a_batch, b_batch) = (list(&o.lhs_batching_dimensions), list(&o.rhs_batching_dimensions));
    let first: Vec<i64> = (0..a_batch.len() as i64).collect();
    if a_batch != first || b_batch != first || a.dtype != b.dtype {
        return None;
    }
    let rank = first.len() as i64 + 2;
    if a.shape.len() as i64 != rank || b.shape.len() as i64 != rank {
        return None;
    }
    let at = |l: Vec<i64>| if let [d] = l.as_slice() { Some(*d) } else { None };
    let adj_x = at(list(&o.lhs_contracting_dimensions))? == rank - 2;
    let adj_y = at(list(&o.rhs_contracting_dimensions))? == rank - 1;
    Some(Op::BatchMatmul(BatchMatMulOptionsT { adj_x, adj_y, ..Default::default() }))
}

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    match &cx.node.op {
        Op::StablehloTranspose(o) => {
            let (x, y) = moved(cx)?;
            let s = strides(&x.shape);
            let mut dims = Vec::new();
            for &p in o.permutation.iter().flatten().rev() {
                let a = axis(p, x.shape.len())?;
                dims.push(Dim::whole(x.shape.get(a).copied().unwrap_or(1), s.get(a).copied().unwrap_or(0)));
            }
            Copy::all(&y, dims).emit(cx, &x, &y)
        }
        Op::StablehloBroadcastInDim(o) => {
            let (x, y) = moved(cx)?;
            let s = strides(&x.shape);
            let places = o.broadcast_dimensions.clone().unwrap_or_default();
            let from = |d: usize| places.iter().position(|&p| p == d as i64);
            let dims = y.shape.iter().enumerate().rev().map(|(d, &n)| {
                let source = from(d).and_then(|i| Some((*x.shape.get(i)?, *s.get(i)?)));
                Dim::whole(n, source.filter(|(m, _)| *m == n).map_or(0, |(_, s)| s))
            });
            Copy::all(&y, dims.collect()).emit(cx, &x, &y)
        }
        Op::StablehloSlice(o) => {
            let (x, y) = moved(cx)?;
            let (start, steps) = (o.start_indices.clone().unwrap_or_default(), o.strides.clone().unwrap_or_default());
            let (mut dims, mut base) = (Vec::new(), 0);
            for (d, (&n, s)) in y.shape.iter().zip(strides(&x.shape)).enumerate() {
                base += start.get(d).copied().unwrap_or(0) * s;
                dims.insert(0, Dim::whole(n, s * steps.get(d).copied().unwrap_or(1)));
            }
            let mut copy = Copy::all(&y, dims);
            copy.base = base;
            copy.emit(cx, &x, &y)
        }
        Op::StablehloPad(o) => {
            let low = o.edge_padding_low.clone().unwrap_or_default();
            if o.interior_padding.iter().flatten().any(|&p| p != 0) {
                return no("padding between elements");
            }
            let (x, y) = moved(cx)?;
            let value = match x.elem.is_float() {
                true => cx.floats(1)?.and_then(|v| if let [v] = v.as_slice() { Some(v.to_bits()) } else { None }),
                false => cx.ints(1)?.first().map(|v| *v as i32 as u32),
            };
            let Some(value) = value else { return no("a computed pad value") };
            let mut dims = Vec::new();
            for ((d, &n), s) in y.shape.iter().enumerate().zip(strides(&x.shape)) {
                let before = usize::try_from(low.get(d).copied().unwrap_or(0)).ok();
                let size = x.shape.get(d).copied().unwrap_or(1);
                let Some(before) = before.filter(|b| b.checked_add(size).is_some_and(|h| h <= n)) else {
                    return no("negative paddings");
                };
                dims.insert(0, Dim { n, stride: s, low: before, high: before + size });
            }
            let mut copy = Copy::all(&y, dims);
            copy.outside = Outside::Value(value);
            copy.emit(cx, &x, &y)
        }
        Op::StablehloClamp => {
            let (low, x, high) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
            let y = cx.result(0)?;
            let plain = |o: &Operand<'_>| o.elem.is_float() || o.dtype == DType::I32;
            if ![&low, &x, &high, &y].into_iter().all(|o| plain(o) && o.dtype == y.dtype) {
                return no(format!("{} elements", x.dtype));
            }
            let (max, min) = if x.elem.is_float() { ("f_max", "f_min") } else { ("i_max", "i_min") };
            let between = Operand { slot: cx.temp(&y.shape, y.elem), ..y.clone() };
            binary::emit(cx, &x, &low, &between, max, Vec::new())?;
            binary::emit(cx, &between, &high, &y, min, Vec::new())
        }
        _ => no("no GPU kernel for this StableHLO operator"),
    }
}

/// Operand and result of an operator that moves elements.
fn moved<'a>(cx: &mut Lower<'a, '_>) -> Lowered<(Operand<'a>, Operand<'a>)> {
    let (x, y) = (cx.operand(0)?, cx.result(0)?);
    match x.dtype == y.dtype {
        true => Ok((x, y)),
        false => no(format!("{} to {}", x.dtype, y.dtype)),
    }
}
