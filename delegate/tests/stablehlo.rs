//! StableHLO operators: those that are builtin operators by another name, and those that move elements.

mod common;
use common::*;
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Op, TensorId};

/// Declares the shape of a result, which some of these operators take theirs from.
fn declare(c: &mut Case, t: TensorId, shape: &[usize]) {
    c.graph().tensors[t].shape = shape.iter().copied().collect();
}

#[test]
fn one_operand() {
    let all = [
        (Op::StablehloLogistic, -4.0),
        (Op::StablehloAbs, -4.0),
        (Op::StablehloCosine, -3.0),
        (Op::StablehloExponential, -3.0),
        (Op::StablehloFloor, -4.0),
        (Op::StablehloNegate, -4.0),
        (Op::StablehloTanh, -4.0),
        (Op::StablehloLog, 0.5),
        (Op::StablehloRsqrt, 0.5),
    ];
    for (op, low) in all {
        let tolerance = Tolerance::Float { abs: 2e-6, rel: 1e-5 };
        let mut c = Case::new(op.name().to_string(), tolerance);
        let x = c.input(DType::F32, &[2, 3, 5], low, 4.0);
        c.op(op, &[x], DType::F32, None);
        c.run();
    }
    for op in [Op::StablehloAbs, Op::StablehloNegate] {
        let mut c = Case::new(format!("{} of integers", op.name()), Tolerance::Exact);
        let x = c.input(DType::I32, &[3, 6], -100.0, 100.0);
        c.op(op, &[x], DType::I32, None);
        c.run();
    }
}

#[test]
fn two_operands() {
    let all = [
        Op::StablehloAdd,
        Op::StablehloSubtract,
        Op::StablehloMultiply,
        Op::StablehloDivide,
        Op::StablehloMaximum,
        Op::StablehloMinimum,
        Op::StablehloPower,
    ];
    for op in all {
        let mut c = Case::new(op.name().to_string(), Tolerance::Float { abs: 2e-6, rel: 2e-5 });
        let a = c.input(DType::F32, &[4, 7], 0.25, 3.0);
        let b = c.input(DType::F32, &[4, 7], 0.5, 2.0);
        c.op(op.clone(), &[a, b], DType::F32, None);
        c.run();
        if matches!(op, Op::StablehloDivide | Op::StablehloPower) {
            continue;
        }
        let mut c = Case::new(format!("{} of integers", op.name()), Tolerance::Exact);
        let a = c.input(DType::I32, &[9], -1000.0, 1000.0);
        let b = c.input(DType::I32, &[9], -1000.0, 1000.0);
        c.op(op, &[a, b], DType::I32, None);
        c.run();
    }
    for op in [Op::StablehloAnd, Op::StablehloOr] {
        let mut c = Case::new(op.name().to_string(), Tolerance::Exact);
        let a = c.input(DType::Bool, &[4, 7], 0.0, 1.0);
        let b = c.input(DType::Bool, &[4, 7], 0.0, 1.0);
        c.op(op, &[a, b], DType::Bool, None);
        c.run();
    }
}

#[test]
fn comparisons_and_choices() {
    use StablehloComparisonDirection as D;
    let all = [
        D::STABLEHLO_COMPARISON_DIRECTION_EQ,
        D::STABLEHLO_COMPARISON_DIRECTION_NE,
        D::STABLEHLO_COMPARISON_DIRECTION_GE,
        D::STABLEHLO_COMPARISON_DIRECTION_GT,
        D::STABLEHLO_COMPARISON_DIRECTION_LE,
        D::STABLEHLO_COMPARISON_DIRECTION_LT,
    ];
    for direction in all {
        let mut c = Case::new(format!("compare {direction:?}"), Tolerance::Exact);
        let a = c.input(DType::I32, &[3, 21], -3.0, 3.0);
        let b = c.input(DType::I32, &[3, 21], -3.0, 3.0);
        let options = StablehloCompareOptionsT { comparison_direction: direction, ..Default::default() };
        let less = c.op(Op::StablehloCompare(options), &[a, b], DType::Bool, None);
        let chosen = c.op(Op::StablehloSelect, &[less, a, b], DType::I32, None);
        c.op(Op::StablehloConvert, &[chosen], DType::F32, None);
        c.run();
    }
    // A predicate, and bounds, of one element; and of all.
    let mut c = Case::new("select by one", FLOAT);
    let flag = c.input(DType::Bool, &[], 1.0, 1.0);
    let a = c.input(DType::F32, &[2, 5], -1.0, 1.0);
    let b = c.input(DType::F32, &[2, 5], -1.0, 1.0);
    let chosen = c.op(Op::StablehloSelect, &[flag, a, b], DType::F32, None);
    let (low, high) = (c.f32s_of(&[], &[-0.5]), c.f32s_of(&[], &[0.25]));
    c.op(Op::StablehloClamp, &[low, chosen, high], DType::F32, None);
    let low = c.op(Op::StablehloMinimum, &[a, b], DType::F32, None);
    let high = c.op(Op::StablehloMaximum, &[a, b], DType::F32, None);
    c.op(Op::StablehloClamp, &[low, chosen, high], DType::F32, None);
    c.run();
}

#[test]
fn elements_that_move() {
    for dtype in [DType::F32, DType::I8, DType::I32] {
        let list = |v: &[i64]| Some(v.to_vec());
        let mut c = Case::new(format!("moves of {dtype}"), Tolerance::Exact);
        let x = c.input(dtype, &[3, 4, 6], -9.0, 9.0);
        let turned = StablehloTransposeOptionsT { permutation: list(&[2, 0, 1]) };
        let turned = c.op(Op::StablehloTranspose(turned), &[x], dtype, None);
        let cut = StablehloSliceOptionsT {
            start_indices: list(&[1, 0, 2]),
            limit_indices: list(&[6, 3, 4]),
            strides: list(&[2, 1, 1]),
        };
        c.op(Op::StablehloSlice(cut), &[turned], dtype, None);
        let row = c.input(dtype, &[1, 5], -9.0, 9.0);
        let wide = StablehloBroadcastInDimOptionsT { broadcast_dimensions: list(&[0, 2]) };
        let wide = c.op(Op::StablehloBroadcastInDim(wide), &[row], dtype, None);
        declare(&mut c, wide, &[3, 2, 5]);
        let joined = StablehloConcatenateOptionsT { dimension: 1 };
        let again = c.op(
            Op::StablehloBroadcastInDim(StablehloBroadcastInDimOptionsT { broadcast_dimensions: list(&[1, 2]) }),
            &[row],
            dtype,
            None,
        );
        declare(&mut c, again, &[3, 4, 5]);
        c.op(Op::StablehloConcatenate(joined), &[wide, again], dtype, None);
        let flat = c.op(Op::StablehloReshape, &[x], dtype, None);
        declare(&mut c, flat, &[8, 9]);
        let value = match dtype {
            DType::F32 => c.f32s_of(&[], &[2.5]),
            DType::I32 => c.i32s_of(&[], &[-7]),
            _ => c.weights(dtype, &[], 3.0, 3.0, None),
        };
        let around = StablehloPadOptionsT {
            edge_padding_low: list(&[1, 3]),
            edge_padding_high: list(&[0, 2]),
            interior_padding: list(&[0, 0]),
        };
        c.op(Op::StablehloPad(around), &[flat, value], dtype, None);
        c.run();
    }
}

/// Operands in each order of rows and columns, with and without batches.
#[test]
fn products() {
    for batches in [&[][..], &[2], &[2, 3]] {
        for (a, b) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let mut c = Case::new(format!("dot {batches:?} {a} {b}"), Tolerance::Float { abs: 2e-5, rel: 2e-5 });
            let of = |last: [usize; 2]| -> Vec<usize> { batches.iter().copied().chain(last).collect() };
            let x = c.input(DType::F32, &of(if a == 1 { [9, 5] } else { [5, 9] }), -1.0, 1.0);
            let y = c.input(DType::F32, &of(if b == 1 { [7, 9] } else { [9, 7] }), -1.0, 1.0);
            let n = batches.len() as i64;
            let first: Vec<i64> = (0..n).collect();
            let options = StablehloDotGeneralOptionsT {
                lhs_batching_dimensions: Some(first.clone()),
                rhs_batching_dimensions: Some(first),
                lhs_contracting_dimensions: Some(vec![n + 1 - a]),
                rhs_contracting_dimensions: Some(vec![n + b]),
                ..Default::default()
            };
            c.op(Op::StablehloDotGeneral(options), &[x, y], DType::F32, None);
            c.run();
        }
    }
}
