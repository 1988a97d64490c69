//! Small operators that become one dispatch: the same results as one by one, whatever they are stored as, and so few
//! dispatches.

mod common;
use common::*;
use litegpu_delegate::{AdapterClass, Caps, PlanOptions, Program};
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Op, Quant, TensorId};

fn program(c: &mut Case, caps: &Caps, force_series: bool) -> Program {
    let shapes = infer(&mut c.model).unwrap();
    let options = PlanOptions { force_gpu: true, force_series, ..PlanOptions::default() };
    let p = gpu_plan(&c.model, &shapes, caps, &options).unwrap();
    assert_eq!(p.programs().count(), 1);
    p.programs().next().unwrap().clone()
}

fn slice(c: &mut Case, x: TensorId, dtype: DType, begin: &[i32], size: &[i32]) -> TensorId {
    let (begin, size) = (c.i32s(begin), c.i32s(size));
    c.op(Op::Slice, &[x, begin, size], dtype, None)
}

fn concat(c: &mut Case, xs: &[TensorId], axis: i32, dtype: DType) -> TensorId {
    let options = ConcatenationOptionsT { axis, ..Default::default() };
    c.op(Op::Concatenation(options), xs, dtype, None)
}

/// Rows of tables by computed indices, scaled where the index is valid, and summed up: stage after stage of a quantizer.
fn codebooks(c: &mut Case, stages: i32) -> TensorId {
    let codes = c.input(DType::I32, &[stages as usize, 1], -1.0, 6.0);
    let zero = c.i32s_of(&[], &[0]);
    let minus = c.i32s_of(&[], &[-1]);
    let valid = c.op(Op::Maximum, &[codes, zero], DType::I32, None);
    let there = c.op(Op::NotEqual, &[codes, minus], DType::Bool, None);
    let there = c.op(Op::Cast(Default::default()), &[there], DType::F32, None);
    let mut sum: Option<TensorId> = None;
    for s in 0..stages {
        let table = c.weights(DType::F32, &[7, 10], -1.0, 1.0, None);
        let code = slice(c, valid, DType::I32, &[s, 0], &[1, 1]);
        let factor = slice(c, there, DType::F32, &[s, 0], &[1, 1]);
        let row = c.op(Op::Gather(Default::default()), &[table, code], DType::F32, None);
        let row = c.op(Op::Mul(Default::default()), &[row, factor], DType::F32, None);
        sum = Some(match sum {
            None => row,
            Some(before) => c.op(Op::Add(Default::default()), &[before, row], DType::F32, None),
        });
    }
    let sum = sum.unwrap();
    c.graph().outputs = vec![sum];
    sum
}

/// Moves that begin and end within quads, in three storage types, and what is computed of them.
fn moves(c: &mut Case) {
    let x = c.input(DType::F32, &[2, 3, 7], -2.0, 2.0);
    let y = c.input(DType::F32, &[2, 3, 5], -2.0, 2.0);
    let joined = concat(c, &[x, y, x], 2, DType::F32);
    let turned = c.i32s(&[2, 0, 1]);
    let t = c.op(Op::Transpose, &[joined, turned], DType::F32, None);
    let pads = c.i32s_of(&[3, 2], &[1, 0, 0, 1, 2, 1]);
    let padded = c.op(Op::Pad, &[t, pads], DType::F32, None);
    let part = slice(c, padded, DType::F32, &[1, 0, 1], &[9, 2, 4]);
    let a = c.op(Op::Tanh, &[part], DType::F32, None);
    let row = c.weights(DType::F32, &[4], -1.0, 1.0, None);
    let b = c.op(Op::Sub(Default::default()), &[row, a], DType::F32, None);
    let columns = c.weights(DType::F32, &[9, 1, 1], 0.5, 1.0, None);
    let d = c.op(Op::Div(Default::default()), &[b, columns], DType::F32, None);
    let more = c.op(Op::Greater, &[d, a], DType::Bool, None);
    let q = c.int8(&[3, 6], 0.5, -3);
    let r = c.int8(&[3, 3], 0.5, -3);
    let options = ConcatenationOptionsT { axis: 1, ..Default::default() };
    let bytes = c.op(Op::Concatenation(options), &[r, q, r], DType::I8, Some((0.5, -3)));
    let (begin, size) = (c.i32s(&[0, 1]), c.i32s(&[3, 9]));
    let some = c.op(Op::Slice, &[bytes, begin, size], DType::I8, Some((0.5, -3)));
    let floats = c.op(Op::Dequantize, &[some], DType::F32, None);
    let half = c.f32s_of(&[1], &[0.3]);
    let scaled = c.op(Op::Mul(Default::default()), &[half, floats], DType::F32, None);
    c.op(Op::Quantize, &[scaled], DType::I8, Some((0.1, 4)));
    let _ = more;
}

/// Words, their mean, two layers and probabilities, in three ways.
fn classifier(c: &mut Case) {
    let words = c.input(DType::F32, &[1, 24], 0.0, 9.9);
    let words = c.op(Op::Cast(Default::default()), &[words], DType::I32, None);
    let table = c.weights(DType::F32, &[10, 6], -1.0, 1.0, None);
    let x = c.op(Op::Gather(Default::default()), &[table, words], DType::F32, None);
    let axis = c.i32s(&[1]);
    let keep = ReducerOptionsT { keep_dims: false };
    let mean = c.op(Op::Mean(keep.clone()), &[x, axis], DType::F32, None);
    let inner = c.i32s(&[2]);
    c.op(Op::ReduceMax(keep.clone()), &[x, inner], DType::F32, None);
    c.op(Op::Sum(keep), &[x, inner], DType::F32, None);
    let (w, b) = (c.weights(DType::F32, &[11, 6], -1.0, 1.0, None), c.weights(DType::F32, &[11], -1.0, 1.0, None));
    let relu = ActivationFunctionType::RELU;
    let layer = FullyConnectedOptionsT { fused_activation_function: relu, ..Default::default() };
    let x = c.op(Op::FullyConnected(layer), &[mean, w, b], DType::F32, None);
    let w = c.weights(DType::F32, &[5, 11], -1.0, 1.0, None);
    let x = c.op(Op::FullyConnected(FullyConnectedOptionsT::default()), &[x, w], DType::F32, None);
    c.op(Op::Softmax(SoftmaxOptionsT { beta: 0.7 }), &[x], DType::F32, None);
    c.op(Op::LogSoftmax, &[x], DType::F32, None);
    // Long sums are divided.
    let long = c.input(DType::F32, &[1, 72], -1.0, 1.0);
    let w = c.weights(DType::F32, &[11, 72], -1.0, 1.0, None);
    c.op(Op::FullyConnected(FullyConnectedOptionsT::default()), &[long, w], DType::F32, None);
    c.op(Op::L2Normalization(Default::default()), &[x], DType::F32, None);
}

/// The mean of words' rows, and the greatest of each column.
fn bag(c: &mut Case) {
    let keep = ReducerOptionsT { keep_dims: false };
    let axis = c.i32s(&[1]);
    for (words, width, op) in
        [(70, 8, Op::Mean(keep.clone())), (5, 4, Op::Sum(keep.clone())), (24, 12, Op::ReduceMax(keep))]
    {
        let words = c.input(DType::F32, &[1, words], 0.0, 9.9);
        let words = c.op(Op::Cast(Default::default()), &[words], DType::I32, None);
        let table = c.weights(DType::F32, &[10, width], -1.0, 1.0, None);
        let rows = c.op(Op::Gather(Default::default()), &[table, words], DType::F32, None);
        c.op(op, &[rows, axis], DType::F32, None);
        c.model.subgraphs[0].outputs.retain(|t| *t != rows);
    }
}

/// Layers of a network that hears one step at a time: the last steps before the new one, convolutions of both kinds
/// without padding, and a table.
fn listener(c: &mut Case) {
    let q = (0.05, -4);
    let x = c.int8(&[1, 1, 1, 10], q.0, q.1);
    let past = c.int8(&[1, 4, 1, 10], q.0, q.1);
    let options = ConcatenationOptionsT { axis: 1, ..Default::default() };
    let x = c.op(Op::Concatenation(options), &[past, x], DType::I8, Some(q));
    let (begin, size) = (c.i32s(&[0, 1, 0, 0]), c.i32s(&[1, 4, 1, 10]));
    c.op(Op::Slice, &[x, begin, size], DType::I8, Some(q));
    let scales = |n: usize, axis| Quant {
        scale: (0..n).map(|i| 0.01 + 0.002 * i as f32).collect(),
        zero_point: vec![0; n],
        axis,
        ..Quant::default()
    };
    let w = c.weights(DType::I8, &[1, 5, 1, 10], -127.0, 127.0, Some(scales(10, 3)));
    let b = c.weights(DType::I32, &[10], -3000.0, 3000.0, None);
    let deep = DepthwiseConv2DOptionsT {
        padding: Padding::VALID,
        stride_w: 1,
        stride_h: 1,
        depth_multiplier: 1,
        ..Default::default()
    };
    let y = c.op(Op::DepthwiseConv2d(deep), &[x, w, b], DType::I8, Some((0.3, 7)));
    let w = c.weights(DType::I8, &[9, 1, 1, 10], -127.0, 127.0, Some(scales(9, 0)));
    let b = c.weights(DType::I32, &[9], -3000.0, 3000.0, None);
    let flat = Conv2DOptionsT { padding: Padding::VALID, stride_w: 1, stride_h: 1, ..Default::default() };
    let relu = ActivationFunctionType::RELU;
    let flat = Conv2DOptionsT { fused_activation_function: relu, ..flat };
    let y = c.op(Op::Conv2d(flat.clone()), &[y, w, b], DType::I8, Some((0.2, -100)));
    let w = c.weights(DType::I8, &[7, 3, 1, 10], -127.0, 127.0, Some(scales(7, 0)));
    let b = c.weights(DType::I32, &[7], -3000.0, 3000.0, None);
    let z = c.op(Op::Conv2d(flat), &[x, w, b], DType::I8, Some((0.2, -100)));
    c.op(Op::Logistic, &[y], DType::I8, Some((1.0 / 256.0, -128)));
    c.op(Op::Tanh, &[z], DType::I8, Some((1.0 / 128.0, 0)));
    let pool = |filter_height, stride_h| Pool2DOptionsT {
        padding: Padding::VALID,
        stride_w: 1,
        stride_h,
        filter_width: 1,
        filter_height,
        ..Default::default()
    };
    c.op(Op::AveragePool2d(pool(5, 1)), &[x], DType::I8, Some(q));
    c.op(Op::MaxPool2d(pool(2, 2)), &[x], DType::I8, Some(q));
    let w = c.weights(DType::I8, &[6, 9], -127.0, 127.0, Some(Quant::scalar(0.013, 0)));
    let b = c.weights(DType::I32, &[6], -3000.0, 3000.0, None);
    c.op(Op::FullyConnected(Default::default()), &[y, w, b], DType::I8, Some((0.4, 3)));
    let long = c.int8(&[1, 72], 0.05, -9);
    let w = c.weights(DType::I8, &[6, 72], -127.0, 127.0, Some(Quant::scalar(0.013, 0)));
    c.op(Op::FullyConnected(Default::default()), &[long, w], DType::I8, Some((0.4, 3)));
    let f = c.input(DType::F32, &[1, 4, 3, 6], -1.0, 1.0);
    c.op(Op::AveragePool2d(pool(4, 1)), &[f], DType::F32, None);
    c.op(Op::MaxPool2d(pool(3, 1)), &[f], DType::F32, None);
}

#[test]
fn layers_are_the_same() {
    // Sums of 72 products or less, in another order: 72 roundings of 2^-24 each of what adds up to less than 8.
    let mut c = Case::new("classifier", Tolerance::Float { abs: 3.5e-5, rel: 1e-5 });
    classifier(&mut c);
    c.series = true;
    c.run_in(&[Config::F32, Config::NoSubgroups]);
    let mut c = Case::new("bag", Tolerance::Float { abs: 3.5e-5, rel: 1e-5 });
    bag(&mut c);
    c.series = true;
    c.run_in(&[Config::F32, Config::NoSubgroups]);
    let mut c = Case::new("listener", Tolerance::Exact);
    listener(&mut c);
    c.series = true;
    c.run_in(&[Config::F32, Config::NoSubgroups]);
}

/// What adapters of either kind make of networks of such layers.
#[test]
fn whole_networks_are_one_dispatch() {
    let software = Caps { class: AdapterClass::Software, subgroups: Some((8, 8)), ..Caps::baseline() };
    for (name, build) in [("classifier", classifier as fn(&mut Case)), ("listener", listener), ("moves", moves)] {
        let mut c = Case::new(name, FLOAT);
        build(&mut c);
        let p = program(&mut c, &software, true);
        let labels: Vec<String> = p.dispatches.iter().map(|d| p.kernels[d.kernel].label()).collect();
        assert_eq!(p.dispatches.len(), 1, "{name}: {labels:?}");
    }
}

/// Rows that are only summed up are not gathered first.
#[test]
fn rows_are_summed_up_where_they_lie() {
    let software = Caps { class: AdapterClass::Software, subgroups: Some((8, 8)), ..Caps::baseline() };
    let mut c = Case::new("bag", FLOAT);
    bag(&mut c);
    let p = program(&mut c, &software, true);
    let members = || p.dispatches.iter().flat_map(|d| &d.members);
    assert_eq!(members().filter(|m| m.label.starts_with("gather")).map(|m| m.share).collect::<Vec<_>>(), [0.0; 3]);
    assert!(members().filter(|m| !m.label.starts_with("gather")).all(|m| m.share > 0.0));
}

#[test]
fn results_are_the_same() {
    let mut c = Case::new("codebooks", Tolerance::Exact);
    codebooks(&mut c, 5);
    c.series = true;
    c.run_in(&[Config::F32, Config::NoSubgroups]);
    let mut c = Case::new("moves", FLOAT);
    moves(&mut c);
    c.series = true;
    c.run_in(&[Config::F32, Config::NoSubgroups]);
}

#[test]
fn one_dispatch_of_many() {
    let caps = Caps::baseline();
    let count = |stages: i32| {
        let mut c = Case::new("codebooks", Tolerance::Exact);
        codebooks(&mut c, stages);
        let p = program(&mut c, &caps, false);
        // All operators but those that were fused into others have a part of it.
        let members: usize = p.dispatches.iter().map(|d| d.members.len()).sum();
        assert_eq!(members, 2 + 3 * stages as usize);
        for d in &p.dispatches {
            let shares: f32 = d.members.iter().map(|m| m.share).sum();
            assert!((shares - 1.0).abs() < 1e-3, "{shares}");
            assert!(d.members.iter().all(|m| m.label.ends_with(" in a series")));
        }
        // Tables lie in the series' own constants, and nowhere else.
        let tables = stages as u64 * 7 * 12 * 4;
        assert!(p.weight_bytes() <= tables + 64, "{} of {tables}", p.weight_bytes());
        p.dispatches.len()
    };
    assert_eq!(count(5), 1);
    assert_eq!(count(40), 1);
    // More than the uniform holds.
    assert_eq!(count(100), 2);
}

/// On an adapter that compiles slowly a pipeline has to pay.
#[test]
fn few_are_left_alone_where_compiling_takes_long() {
    let caps = Caps { class: AdapterClass::Software, subgroups: Some((8, 8)), ..Caps::baseline() };
    let count = |build: &dyn Fn(&mut Case), force: bool| {
        let mut c = Case::new("few", Tolerance::Exact);
        build(&mut c);
        program(&mut c, &caps, force).dispatches.len()
    };
    let turned = |c: &mut Case| {
        let (x, axes) = (c.input(DType::F32, &[6, 5], -1.0, 1.0), c.i32s(&[1, 0]));
        let y = c.op(Op::Transpose, &[x, axes], DType::F32, None);
        c.op(Op::Transpose, &[y, axes], DType::F32, None);
    };
    assert_eq!((count(&turned, false), count(&turned, true)), (2, 1));
    let many = |c: &mut Case| {
        codebooks(c, 46);
    };
    assert_eq!(count(&many, false), 1);
}
