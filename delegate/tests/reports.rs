//! What users of other GPU delegates reported as wrong, refused or silent: each report is a case here, named by its
//! tracker (LiteRT unless another is named) and number.

mod common;
use common::*;
use litegpu_delegate::{Device, PlanOptions, Precision};
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Op};

fn reducer(keep: bool) -> ReducerOptionsT {
    ReducerOptionsT { keep_dims: keep }
}

/// 9249: SUM in float16 yields NaN. Partial sums pass 65,504, the largest float16, where the mean does not.
#[test]
fn sums_beyond_float16() {
    for shape in [&[1usize, 96, 96, 8][..], &[1, 40, 40, 30], &[2, 9000]] {
        let axes: Vec<i32> = (1..(shape.len() as i32 - 1).max(2)).collect();
        let n: usize = axes.iter().map(|&a| shape[a as usize]).product();
        for op in [Op::Sum(reducer(true)), Op::Mean(reducer(true))] {
            // Sums of positive numbers lose a rounding per addition; the order of additions differs.
            let scale = if matches!(op, Op::Sum(_)) { n as f32 } else { 1.0 };
            let tolerance = Tolerance::Float { abs: 0.0, rel: 1e-5 };
            let mut c = Case::new(format!("{} of {shape:?}", op.name()), tolerance);
            let x = c.input(DType::F32, shape, 10.0, 100.0);
            let a = c.i32s(&axes);
            let sum = c.op(op, &[x, a], DType::F32, None);
            c.graph().outputs.clear();
            let by = c.f32s_of(&[1], &[1.0 / scale]);
            c.op(Op::Mul(Default::default()), &[sum, by], DType::F32, None);
            c.run();
        }
    }
}

/// 8599: an output that another operator also reads came back as that operator's operand or result. What is read may be
/// overwritten in place by an element-wise operator, fused into a convolution, or reshaped.
#[test]
fn outputs_that_are_read_again() {
    let mut c = Case::new("outputs in a chain", FLOAT);
    let x = c.input(DType::F32, &[1, 5, 6, 8], -2.0, 2.0);
    let w = c.weights(DType::F32, &[8, 1, 1, 8], -0.5, 0.5, None);
    let b = c.weights(DType::F32, &[8], -0.5, 0.5, None);
    let conv = Op::Conv2d(Conv2DOptionsT { stride_w: 1, stride_h: 1, ..Default::default() });
    let y = c.op(conv, &[x, w, b], DType::F32, None);
    let relu = c.op(Op::Relu, &[y], DType::F32, None);
    let sum = c.op(Op::Add(Default::default()), &[relu, x], DType::F32, None);
    let shape = c.i32s(&[1, 30, 8]);
    let flat = c.op(Op::Reshape(Default::default()), &[sum, shape], DType::F32, None);
    c.op(Op::Tanh, &[flat], DType::F32, None);
    // Every one of them is an output; the harness reads each once more.
    assert_eq!(c.graph().outputs.len(), 5);
    c.run();
}

/// 8599, too: an input that is an output, and one result that is an output twice.
#[test]
fn inputs_and_results_that_are_outputs_twice() {
    let mut c = Case::new("output twice", Tolerance::Exact);
    let x = c.input(DType::F32, &[3, 5], -2.0, 2.0);
    let y = c.op(Op::Neg, &[x], DType::F32, None);
    c.graph().outputs.push(y);
    c.run_in(&CONFIGS[..1]);
}

/// 9272: PAD of rank 3 was shifted. Every rank, with padding on either side of every dimension.
#[test]
fn pads_of_every_rank() {
    for rank in 1..=5usize {
        let shape: Vec<usize> = (0..rank).map(|i| 3 + i).collect();
        for front in [0, 1, 2] {
            let mut c = Case::new(format!("PAD of rank {rank}, {front} before"), Tolerance::Exact);
            let x = c.input(DType::F32, &shape, -2.0, 2.0);
            let amounts: Vec<i32> = (0..rank as i32).flat_map(|i| [(front + i) % 3, (2 * i + 1) % 3]).collect();
            let p = c.i32s_of(&[rank, 2], &amounts);
            c.op(Op::Pad, &[x, p], DType::F32, None);
            c.run_in(&CONFIGS[..3]);
        }
    }
}

/// 8980: operands of different ranks were aligned at the front instead of the back.
#[test]
fn operands_of_different_ranks() {
    for (a, b) in [
        (&[2usize, 3, 4, 5][..], &[5usize][..]),
        (&[2, 3, 4, 5], &[4, 5]),
        (&[2, 3, 4, 5], &[4, 1]),
        (&[2, 3, 4, 5], &[3, 1, 1]),
        (&[5], &[4, 3, 5]),
        (&[1, 4, 4], &[2, 1, 4, 1]),
        (&[3, 3], &[3, 3, 3]),
        (&[], &[2, 7]),
    ] {
        for op in [Op::Sub(Default::default()), Op::Div(Default::default())] {
            let mut c = Case::new(format!("{} of {a:?} and {b:?}", op.name()), FLOAT);
            let (x, y) = (c.input(DType::F32, a, 1.0, 2.0), c.input(DType::F32, b, 1.0, 2.0));
            c.op(op, &[x, y], DType::F32, None);
            c.run_in(&CONFIGS[..3]);
        }
    }
}

/// 9191 and 5197: one BROADCAST_TO or GATHER_ND in the middle, and the whole model was refused. Here they are part of the
/// one GPU part.
#[test]
fn broadcast_to_and_gather_nd_between_others() {
    let mut c = Case::new("BROADCAST_TO, GATHER_ND", Tolerance::Exact);
    let x = c.input(DType::F32, &[1, 1, 8], -2.0, 2.0);
    let y = c.op(Op::Neg, &[x], DType::F32, None);
    let shape = c.i32s(&[4, 3, 8]);
    let wide = c.op(Op::BroadcastTo, &[y, shape], DType::F32, None);
    let at = c.i32s_of(&[3, 2], &[3, 0, 0, 2, 1, 1]);
    let some = c.op(Op::GatherNd, &[wide, at], DType::F32, None);
    c.op(Op::Relu, &[some], DType::F32, None);
    c.run();
}

/// 2540: tensors of five dimensions and more sent the operator, and with it the model, to the CPU.
#[test]
fn five_and_six_dimensions() {
    let shape = [2, 3, 2, 2, 3, 4];
    for rank in [5, 6] {
        let mut c = Case::new(format!("rank {rank}"), FLOAT);
        let x = c.input(DType::F32, &shape[..rank], -2.0, 2.0);
        let y = c.input(DType::F32, &shape[1..rank], 1.0, 2.0);
        let s = c.op(Op::Mul(Default::default()), &[x, y], DType::F32, None);
        let order: Vec<i32> = (0..rank as i32).rev().collect();
        let p = c.i32s(&order);
        let t = c.op(Op::Transpose, &[s, p], DType::F32, None);
        let axes = c.i32s(&[1, 3]);
        c.op(Op::Mean(reducer(false)), &[t, axes], DType::F32, None);
        c.run();
    }
}

/// TensorFlow 48523, 48671, 52794, 67216: NaN from float16 where float32 has numbers. What a normalization divides by, what
/// SOFTMAX takes the exponential of, and squares of what float16 still holds.
#[test]
fn numbers_at_the_ends_of_float16() {
    let mut c = Case::new("SOFTMAX of large logits", Tolerance::Float { abs: 1e-6, rel: 1e-5 });
    let x = c.input(DType::F32, &[4, 33], -60000.0, 60000.0);
    c.op(Op::Softmax(SoftmaxOptionsT { beta: 1.0 }), &[x], DType::F32, None);
    c.run();
    // A variance of 1e-10, which float16 rounds to nothing, and an epsilon of 1e-12 beside it.
    let mut c = Case::new("layer norm of nearly equal values", Tolerance::Float { abs: 1e-3, rel: 1e-3 });
    let x = c.input(DType::F32, &[3, 64], 0.0, 1.0);
    let tiny = c.f32s_of(&[1], &[2e-5]);
    let small = c.op(Op::Mul(Default::default()), &[x, tiny], DType::F32, None);
    let axis = c.i32s(&[1]);
    let mean = c.op(Op::Mean(reducer(true)), &[small, axis], DType::F32, None);
    let off = c.op(Op::Sub(Default::default()), &[small, mean], DType::F32, None);
    let square = c.op(Op::Square, &[off], DType::F32, None);
    let variance = c.op(Op::Mean(reducer(true)), &[square, axis], DType::F32, None);
    let epsilon = c.f32s_of(&[1], &[1e-12]);
    let safe = c.op(Op::Add(Default::default()), &[variance, epsilon], DType::F32, None);
    let by = c.op(Op::Rsqrt, &[safe], DType::F32, None);
    c.graph().outputs.clear();
    c.op(Op::Mul(Default::default()), &[off, by], DType::F32, None);
    c.run_in(&[Config::F32, Config::NoSubgroups]);
    let mut c = Case::new("norm of a large vector", Tolerance::Float { abs: 1e-6, rel: 1e-5 });
    let x = c.input(DType::F32, &[2, 100], 1000.0, 2000.0);
    c.op(Op::L2Normalization(Default::default()), &[x], DType::F32, None);
    c.run();
}

/// TensorFlow 49835 and 31377: int8 ran as floats that stood for it, or not at all. The bytes are the CPU's, at a
/// scale at which half of the results are ties.
#[test]
fn integers_stay_integers() {
    let mut c = Case::new("int8 ADD, ties", Tolerance::Exact);
    let (x, y) = (c.int8(&[1, 9, 9, 5], 0.5, 3), c.int8(&[1, 9, 9, 5], 0.25, -4));
    c.op(Op::Add(Default::default()), &[x, y], DType::I8, Some((1.0, 1)));
    c.run_in(&CONFIGS[..1]);
}

/// 9246 and 7858: an operator fell back without a word. Here each placement has a reason; and 16-bit activations, which
/// a delegate that allows int16 would add as plain integers, are the CPU's.
#[test]
fn what_is_left_to_the_cpu_says_why() {
    let mut c = Case::new("16x8", Tolerance::Exact);
    let x = c.quantized(DType::I16, &[1, 8], -100.0, 100.0, Some((0.5, 0)));
    let y = c.quantized(DType::I16, &[1, 8], -100.0, 100.0, Some((0.25, 0)));
    c.op(Op::Add(Default::default()), &[x, y], DType::I16, Some((1.0, 0)));
    let shapes = infer(&mut c.model).unwrap();
    let Some(engine) = engine(Config::F32) else { return };
    let options = PlanOptions { precision: Precision::F32, force_gpu: true, ..PlanOptions::default() };
    let plan = gpu_plan(&c.model, &shapes, engine.caps(), &options).unwrap();
    let p = &plan.placements[0];
    assert!(p.device == Device::Cpu && p.reason.to_string().contains("16"), "{:?} {}", p.device, p.reason);
}
