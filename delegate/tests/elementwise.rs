//! Element-wise operators: unary, binary, select, conversions.

mod common;
use common::*;
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Op};

const SHAPES: &[&[usize]] = &[&[], &[1], &[5], &[2, 3], &[1, 3, 5, 8], &[2, 1, 3, 2, 7]];

#[test]
fn unary_floats() {
    let list: Vec<(Op, f64, f64)> = vec![
        (Op::Relu, -3.0, 3.0),
        (Op::Relu6, -8.0, 8.0),
        (Op::ReluN1To1, -3.0, 3.0),
        (Op::LeakyRelu(LeakyReluOptionsT { alpha: 0.25 }), -3.0, 3.0),
        (Op::Logistic, -20.0, 20.0),
        (Op::Tanh, -20.0, 20.0),
        (Op::HardSwish, -8.0, 8.0),
        (Op::Elu, -5.0, 5.0),
        (Op::Gelu(GeluOptionsT { approximate: false }), -5.0, 5.0),
        (Op::Gelu(GeluOptionsT { approximate: true }), -5.0, 5.0),
        (Op::Exp, -8.0, 8.0),
        (Op::Log, 0.0625, 9.0),
        (Op::Sqrt, 0.0, 9.0),
        (Op::Rsqrt, 0.125, 9.0),
        (Op::Sin, -3.0, 3.0),
        (Op::Cos, -3.0, 3.0),
        (Op::Floor, -9.0, 9.0),
        (Op::Ceil, -9.0, 9.0),
        (Op::Round, -9.0, 9.0),
        (Op::Neg, -9.0, 9.0),
        (Op::Abs, -9.0, 9.0),
        (Op::Square, -9.0, 9.0),
    ];
    for (op, low, high) in list {
        for shape in SHAPES {
            let tolerance = Tolerance::Float { abs: 2e-6, rel: 1e-5 };
            let mut c = Case::new(format!("{} {shape:?}", op.name()), tolerance);
            let x = c.input(DType::F32, shape, low, high);
            c.op(op.clone(), &[x], DType::F32, None);
            c.run();
        }
    }
}

#[test]
fn unary_tables() {
    let fixed = |op: &Op| match op {
        Op::Logistic => (1.0 / 256.0, -128),
        Op::Tanh => (1.0 / 128.0, 0),
        _ => (0.05, 3),
    };
    let list = [Op::Logistic, Op::Tanh, Op::HardSwish, Op::Relu, Op::Relu6, Op::Abs, Op::Exp];
    for op in list {
        for shape in [&[3usize, 5][..], &[1, 4, 4, 8], &[257]] {
            let mut c = Case::new(format!("int8 {} {shape:?}", op.name()), Tolerance::Exact);
            let x = c.int8(shape, 0.05, 3);
            let q = fixed(&op);
            c.op(op.clone(), &[x], DType::I8, Some(q));
            c.run_in(&[Config::F32]);
        }
    }
}

const PAIRS: &[(&[usize], &[usize])] = &[
    (&[], &[]),
    (&[5], &[]),
    (&[], &[2, 3]),
    (&[2, 3, 5], &[2, 3, 5]),
    (&[1, 4, 4, 8], &[8]),
    (&[1, 4, 4, 6], &[1, 1, 1, 6]),
    (&[2, 4, 3, 5], &[2, 1, 3, 1]),
    (&[4, 1, 5], &[3, 1]),
    (&[1, 4, 4, 1], &[1, 1, 1, 9]),
    (&[2, 1, 3, 1, 2], &[4, 1, 5, 1]),
    (&[3, 7], &[7]),
];

#[test]
fn binary_floats() {
    let list: Vec<(Op, f64, f64)> = vec![
        (Op::Add(AddOptionsT::default()), -3.0, 3.0),
        (
            Op::Add(AddOptionsT { fused_activation_function: ActivationFunctionType::RELU6, ..Default::default() }),
            -8.0,
            8.0,
        ),
        (Op::Sub(SubOptionsT::default()), -3.0, 3.0),
        (Op::Mul(MulOptionsT::default()), -3.0, 3.0),
        (Op::Div(DivOptionsT::default()), 0.5, 3.0),
        (Op::Maximum, -3.0, 3.0),
        (Op::Minimum, -3.0, 3.0),
        (Op::SquaredDifference, -3.0, 3.0),
        (Op::Pow, 0.25, 3.0),
        (Op::FloorDiv, 0.5, 9.0),
        (Op::FloorMod, 0.5, 9.0),
    ];
    for (op, low, high) in list {
        for (a, b) in PAIRS {
            let mut c = Case::new(format!("{} {a:?} {b:?}", op.name()), Tolerance::Float { abs: 2e-6, rel: 2e-5 });
            let x = c.input(DType::F32, a, low, high);
            let y = c.input(DType::F32, b, low, high);
            c.op(op.clone(), &[x, y], DType::F32, None);
            c.run();
        }
    }
    // A constant on either side.
    for (a, b) in PAIRS {
        let mut c = Case::new(format!("SUB constant {a:?} {b:?}"), FLOAT);
        let x = c.weights(DType::F32, a, -3.0, 3.0, None);
        let y = c.input(DType::F32, b, -3.0, 3.0);
        c.op(Op::Sub(SubOptionsT::default()), &[x, y], DType::F32, None);
        c.run();
    }
}

/// Sessions of several threads run on one device; each waits for its own inputs to be mapped, whoever maps them.
#[test]
fn threads_share_a_device() {
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for i in 0..100 {
                    let mut c = Case::new(format!("thread {thread}, run {i}"), FLOAT);
                    let x = c.input(DType::F32, &[1, 3, 3, 5 + thread], -3.0, 3.0);
                    c.op(Op::Abs, &[x], DType::F32, None);
                    c.run_in(&[Config::F16Native]);
                }
            });
        }
    });
}

#[test]
fn prelu() {
    for (x, slope) in [(&[1usize, 3, 3, 6][..], &[1usize, 1, 6][..]), (&[1, 3, 3, 8], &[1, 1, 8]), (&[2, 5], &[5])] {
        let mut c = Case::new(format!("PRELU {x:?}"), FLOAT);
        let a = c.input(DType::F32, x, -3.0, 3.0);
        let b = c.weights(DType::F32, slope, -1.0, 1.0, None);
        c.op(Op::Prelu, &[a, b], DType::F32, None);
        c.run();
    }
}

#[test]
fn comparisons_and_logic() {
    let list = [Op::Less, Op::LessEqual, Op::Greater, Op::GreaterEqual, Op::Equal, Op::NotEqual];
    for op in list {
        for (a, b) in PAIRS {
            for dtype in [DType::F32, DType::I32] {
                let mut c = Case::new(format!("{} {dtype} {a:?} {b:?}", op.name()), Tolerance::Exact);
                let x = c.input(dtype, a, -2.0, 2.0);
                let y = c.input(dtype, b, -2.0, 2.0);
                c.op(op.clone(), &[x, y], DType::Bool, None);
                c.run();
            }
        }
    }
    for op in [Op::LogicalAnd, Op::LogicalOr] {
        let mut c = Case::new(op.name(), Tolerance::Exact);
        let x = c.input(DType::Bool, &[3, 5], 0.0, 1.0);
        let y = c.input(DType::Bool, &[5], 0.0, 1.0);
        c.op(op.clone(), &[x, y], DType::Bool, None);
        c.run_in(&[Config::F32]);
    }
    let mut c = Case::new("LOGICAL_NOT", Tolerance::Exact);
    let x = c.input(DType::Bool, &[3, 5], 0.0, 1.0);
    c.op(Op::LogicalNot, &[x], DType::Bool, None);
    c.run_in(&[Config::F32]);
}

#[test]
fn binary_int32() {
    let list = [
        Op::Add(AddOptionsT::default()),
        Op::Sub(SubOptionsT::default()),
        Op::Mul(MulOptionsT::default()),
        Op::Maximum,
        Op::Minimum,
    ];
    for op in list {
        for (a, b) in PAIRS {
            let mut c = Case::new(format!("int32 {} {a:?} {b:?}", op.name()), Tolerance::Exact);
            let x = c.input(DType::I32, a, -30000.0, 30000.0);
            let y = c.input(DType::I32, b, -30000.0, 30000.0);
            c.op(op.clone(), &[x, y], DType::I32, None);
            c.run_in(&[Config::F32]);
        }
    }
    for op in [Op::FloorDiv, Op::FloorMod, Op::Div(DivOptionsT::default())] {
        let mut c = Case::new(format!("int32 {}", op.name()), Tolerance::Exact);
        let x = c.input(DType::I32, &[2, 9], -50.0, 50.0);
        let y = c.i32s(&[1, -1, 2, 3, -3, 7, 100, -7, 5]);
        c.op(op.clone(), &[x, y], DType::I32, None);
        c.run_in(&[Config::F32]);
    }
}

#[test]
fn binary_quantized() {
    let list = [
        Op::Add(AddOptionsT::default()),
        Op::Sub(SubOptionsT::default()),
        Op::Mul(MulOptionsT::default()),
        Op::Add(AddOptionsT { fused_activation_function: ActivationFunctionType::RELU, ..Default::default() }),
        Op::SquaredDifference,
        Op::Div(DivOptionsT::default()),
        Op::Div(DivOptionsT { fused_activation_function: ActivationFunctionType::RELU }),
        Op::Pow,
        Op::Atan2,
    ];
    for op in list {
        for (a, b) in PAIRS {
            for (n, scales) in [(0.03, 0.07, 0.11), (0.5, 0.001, 0.3), (0.02, 0.02, 0.02)].into_iter().enumerate() {
                let name = format!("int8 {} {a:?} {b:?} {n}", op.name());
                let mut c = Case::new(name, Tolerance::Exact);
                let x = c.int8(a, scales.0, 5);
                let y = c.int8(b, scales.1, -7);
                c.op(op.clone(), &[x, y], DType::I8, Some((scales.2, 3)));
                c.run_in(&[Config::F32]);
            }
        }
    }
    for op in [Op::Add(AddOptionsT::default()), Op::Mul(MulOptionsT::default()), Op::Div(DivOptionsT::default())] {
        let mut c = Case::new(format!("uint8 {}", op.name()), Tolerance::Exact);
        let x = c.uint8(&[3, 64], 0.04, 128);
        let y = c.uint8(&[3, 64], 0.07, 100);
        c.op(op.clone(), &[x, y], DType::U8, Some((0.09, 120)));
        c.run_in(&[Config::F32]);
    }
    let mut c = Case::new("int8 PRELU", Tolerance::Exact);
    let x = c.int8(&[1, 4, 4, 9], 0.04, 10);
    let y = c.int8(&[1, 1, 9], 0.01, -3);
    c.op(Op::Prelu, &[x, y], DType::I8, Some((0.03, 5)));
    c.run_in(&[Config::F32]);
    for op in [Op::Less, Op::Equal, Op::GreaterEqual] {
        let mut c = Case::new(format!("int8 {}", op.name()), Tolerance::Exact);
        let x = c.int8(&[9, 100], 0.04, 10);
        let y = c.int8(&[9, 100], 0.05, -3);
        c.op(op.clone(), &[x, y], DType::Bool, None);
        c.run_in(&[Config::F32]);
    }
}

#[test]
fn select() {
    for (c0, a, b) in [
        (&[3usize, 5][..], &[3usize, 5][..], &[3usize, 5][..]),
        (&[3, 1], &[3, 5], &[5]),
        (&[1], &[1, 3, 5], &[1, 3, 5]),
        (&[2, 3, 8], &[8], &[1, 3, 1]),
    ] {
        for dtype in [DType::F32, DType::I32, DType::I8] {
            let mut c = Case::new(format!("SELECT_V2 {dtype} {c0:?} {a:?} {b:?}"), Tolerance::Exact);
            let cond = c.input(DType::Bool, c0, 0.0, 1.0);
            let q = (dtype == DType::I8).then_some((0.5, 0));
            let x = c.quantized(dtype, a, -9.0, 9.0, q);
            let y = c.quantized(dtype, b, -9.0, 9.0, q);
            c.op(Op::SelectV2, &[cond, x, y], dtype, q);
            c.run();
        }
    }
}

#[test]
fn conversions() {
    let mut c = Case::new("DEQUANTIZE int8", FLOAT);
    let x = c.int8(&[3, 50], 0.037, 11);
    c.op(Op::Dequantize, &[x], DType::F32, None);
    c.run_in(&[Config::F32]);
    for (dtype, zero) in [(DType::I8, -3), (DType::U8, 120)] {
        let mut c = Case::new(format!("QUANTIZE {dtype}"), Tolerance::Exact);
        let x = c.input(DType::F32, &[3, 333], -9.0, 9.0);
        c.op(Op::Quantize, &[x], dtype, Some((0.0625, zero)));
        c.run_in(&[Config::F32]);
    }
    let mut c = Case::new("QUANTIZE int8 to uint8", Tolerance::Exact);
    let x = c.int8(&[3, 50], 0.037, 11);
    c.op(Op::Quantize, &[x], DType::U8, Some((0.041, 90)));
    c.run_in(&[Config::F32]);
    for (from, to) in [
        (DType::F32, DType::I32),
        (DType::I32, DType::F32),
        (DType::F32, DType::Bool),
        (DType::Bool, DType::F32),
        (DType::I32, DType::Bool),
        (DType::I32, DType::I8),
        (DType::I32, DType::U8),
    ] {
        let mut c = Case::new(format!("CAST {from} to {to}"), FLOAT);
        let (low, high) = if from == DType::Bool { (0.0, 1.0) } else { (-500.0, 500.0) };
        let x = c.input(from, &[3, 7], low, high);
        c.op(Op::Cast(CastOptionsT::default()), &[x], to, None);
        c.run_in(&[Config::F32, Config::F16Packed]);
    }
}

/// A negative power of zero is infinite, whatever the adapter's own function makes of it.
#[test]
fn powers_of_zero() {
    let mut c = Case::new("powers of zero", Tolerance::Float { abs: 1e-5, rel: 1e-4 });
    let base = c.f32s_of(&[6], &[0.0, 2.0, 0.0, 0.5, 0.0, 1.0]);
    let exponent = c.input(DType::F32, &[5, 6], -3.0, -1.0);
    c.op(Op::Pow, &[base, exponent], DType::F32, None);
    c.run_in(&[Config::F32, Config::NoSubgroups]);
}
