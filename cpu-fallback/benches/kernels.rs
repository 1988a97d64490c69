//! Kernels, one family after another: models of one operator on the shapes of common networks, with one thread.
//! `cargo bench -p litegpu-cpu -- depthwise` times those whose names have that word.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use litegpu_cpu::{Executor, Options};
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Graph, Model, Node, Op, Quant, Tensor};
use std::sync::Arc;

/// An operand: constant or not.
fn operand(dtype: DType, shape: &[usize], constant: bool) -> Tensor {
    let mut t = Tensor::new("", dtype, shape);
    t.quant = match dtype {
        DType::I8 | DType::I16 => Some(Quant::scalar(1.0 / 128.0, 0)),
        DType::I32 | DType::I64 => Some(Quant::scalar(1.0 / 16384.0, 0)),
        _ => None,
    };
    if constant {
        t.data = Some(bytes(dtype, t.elements()).into());
    }
    t
}

/// Small numbers of either sign.
fn bytes(dtype: DType, n: usize) -> Vec<u8> {
    let value = |i: usize| (i * 37 % 101) as i32 - 50;
    match dtype {
        DType::F32 => (0..n).flat_map(|i| (value(i) as f32 / 50.0).to_le_bytes()).collect(),
        DType::I16 => (0..n).flat_map(|i| (value(i) as i16 * 300).to_le_bytes()).collect(),
        DType::I32 => (0..n).flat_map(|i| value(i).to_le_bytes()).collect(),
        DType::I64 => (0..n).flat_map(|i| (value(i) as i64).to_le_bytes()).collect(),
        _ => (0..n).map(|i| value(i) as u8).collect(),
    }
}

fn ints(values: &[i32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::constant("", DType::I32, &[values.len()], data)
}

/// Times one operator. `work` is how many multiplications or elements a run has.
fn bench(c: &mut Criterion, name: &str, op: Op, operands: Vec<Tensor>, output: Tensor, work: usize) {
    let mut g = Graph { tensors: operands, ..Graph::default() };
    let ids: Vec<usize> = (0..g.tensors.len()).collect();
    g.inputs = ids.iter().copied().filter(|&t| g.tensors[t].data.is_none() && !g.tensors[t].is_variable).collect();
    g.outputs = vec![g.tensors.len()];
    g.tensors.push(output);
    g.nodes = vec![Node::new(op, &ids, &g.outputs)];
    let model = Arc::new(Model { subgraphs: vec![g], ..Model::default() });
    let mut exec = Executor::new(model.clone(), Options::default()).expect("an executor");
    let graph = &model.subgraphs[0];
    for &t in &graph.inputs {
        let tensor = &graph.tensors[t];
        let to = exec.write(0, t, &tensor.shape).expect("an input");
        to.bytes_mut().copy_from_slice(&bytes(tensor.dtype, tensor.elements()));
    }
    exec.run(0).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut group = c.benchmark_group("kernels");
    group.throughput(Throughput::Elements(work as u64));
    group.bench_function(name, |b| b.iter(|| exec.run(0)));
    group.finish();
}

/// (name, activations, weights, bias, output)
const KINDS: [(&str, DType, DType, DType); 4] = [
    ("f32", DType::F32, DType::F32, DType::F32),
    ("qs8", DType::I8, DType::I8, DType::I32),
    ("qs16", DType::I16, DType::I8, DType::I64),
    ("qd8", DType::F32, DType::I8, DType::F32),
];

fn products(c: &mut Criterion) {
    for (kind, x, w, b) in KINDS {
        let conv = |k: usize, i: usize, o: usize, size: usize| {
            let op = Conv2DOptionsT {
                stride_h: 1,
                stride_w: 1,
                dilation_h_factor: 1,
                dilation_w_factor: 1,
                ..Default::default()
            };
            let operands =
                vec![operand(x, &[1, size, size, i], false), operand(w, &[o, k, k, i], true), operand(b, &[o], true)];
            (Op::Conv2d(op), operands, operand(x, &[], false), k * k * i * o * size * size)
        };
        let (op, operands, out, work) = conv(1, 96, 24, 56);
        bench(c, &format!("conv_1x1_{kind}"), op, operands, out, work);
        let (op, operands, out, work) = conv(3, 32, 32, 28);
        bench(c, &format!("conv_3x3_{kind}"), op, operands, out, work);
        let op = DepthwiseConv2DOptionsT {
            stride_h: 1,
            stride_w: 1,
            dilation_h_factor: 1,
            dilation_w_factor: 1,
            depth_multiplier: 1,
            ..Default::default()
        };
        let operands =
            vec![operand(x, &[1, 28, 28, 192], false), operand(w, &[1, 3, 3, 192], true), operand(b, &[192], true)];
        let work = 9 * 28 * 28 * 192;
        bench(c, &format!("depthwise_3x3_{kind}"), Op::DepthwiseConv2d(op), operands, operand(x, &[], false), work);
        for rows in [1, 64] {
            let operands =
                vec![operand(x, &[rows, 512], false), operand(w, &[512, 512], true), operand(b, &[512], true)];
            let op = Op::FullyConnected(FullyConnectedOptionsT::default());
            let name = format!("fully_connected_{rows}_{kind}");
            bench(c, &name, op, operands, operand(x, &[], false), rows * 512 * 512);
        }
    }
    let operands = vec![operand(DType::F32, &[4, 128, 64], false), operand(DType::F32, &[4, 64, 128], false)];
    let op = Op::BatchMatmul(BatchMatMulOptionsT::default());
    bench(c, "batch_matmul_f32", op, operands, operand(DType::F32, &[], false), 4 * 128 * 64 * 128);
}

fn element_wise(c: &mut Criterion) {
    let n = 1 << 16;
    for (kind, d) in [("f32", DType::F32), ("qs8", DType::I8), ("qs16", DType::I16)] {
        let x = || operand(d, &[1, n / 64, 64], false);
        let out = |scale: f32| Tensor {
            quant: (d != DType::F32).then(|| Quant::scalar(scale, if d == DType::I8 { -128 } else { 0 })),
            ..operand(d, &[], false)
        };
        let unit = if d == DType::I16 { 1.0 / 32768.0 } else { 1.0 / 256.0 };
        bench(c, &format!("add_{kind}"), Op::Add(Default::default()), vec![x(), x()], operand(d, &[], false), n);
        bench(c, &format!("mul_{kind}"), Op::Mul(Default::default()), vec![x(), x()], operand(d, &[], false), n);
        bench(c, &format!("logistic_{kind}"), Op::Logistic, vec![x()], out(unit), n);
        let softmax = Op::Softmax(SoftmaxOptionsT { beta: 1.0 });
        bench(c, &format!("softmax_{kind}"), softmax, vec![x()], out(unit), n);
        let mean = Op::Mean(ReducerOptionsT { keep_dims: true });
        bench(c, &format!("mean_rows_{kind}"), mean, vec![x(), ints(&[2])], operand(d, &[], false), n);
        let swap = vec![x(), ints(&[0, 2, 1])];
        bench(c, &format!("transpose_{kind}"), Op::Transpose, swap, operand(d, &[], false), n);
    }
    let x = || operand(DType::F32, &[1, n / 64, 64], false);
    bench(c, "tanh_f32", Op::Tanh, vec![x()], operand(DType::F32, &[], false), n);
    bench(c, "exp_f32", Op::Exp, vec![x()], operand(DType::F32, &[], false), n);
    bench(c, "quantize_qs8", Op::Quantize, vec![x()], operand(DType::I8, &[], false), n);
    let x = operand(DType::I8, &[1, n / 64, 64], false);
    bench(c, "dequantize_qs8", Op::Dequantize, vec![x], operand(DType::F32, &[], false), n);
    let image = operand(DType::F32, &[1, 64, 64, 16], false);
    let resize = Op::ResizeBilinear(ResizeBilinearOptionsT::default());
    bench(c, "resize_bilinear_f32", resize, vec![image, ints(&[128, 128])], operand(DType::F32, &[], false), n);
}

fn recurrent(c: &mut Criterion) {
    let (time, width, cells) = (28, 28, 64);
    for (kind, w) in [("f32", DType::F32), ("qd8", DType::I8)] {
        let f = DType::F32;
        let mut operands = vec![operand(f, &[1, time, width], false)];
        operands.extend((0..4).map(|_| operand(w, &[cells, width], true)));
        operands.extend((0..4).map(|_| operand(w, &[cells, cells], true)));
        let bias = operands.len();
        operands.extend((0..4).map(|_| operand(f, &[cells], true)));
        let state = operands.len();
        operands.extend((0..2).map(|_| Tensor { is_variable: true, ..operand(f, &[1, cells], false) }));
        let mut g = Graph { tensors: operands, ..Graph::default() };
        let list = (0..bias).map(Some).chain([None; 3]).chain((bias..state).map(Some)).chain([None; 2]);
        let inputs: Vec<Option<usize>> = list.chain((state..state + 2).map(Some)).chain([None; 4]).collect();
        g.inputs = vec![0];
        g.outputs = vec![g.tensors.len()];
        g.tensors.push(operand(f, &[], false));
        let op = UnidirectionalSequenceLSTMOptionsT {
            fused_activation_function: ActivationFunctionType::TANH,
            ..Default::default()
        };
        g.nodes = vec![Node { inputs, ..Node::new(Op::UnidirectionalSequenceLstm(op), &[], &g.outputs) }];
        let model = Arc::new(Model { subgraphs: vec![g], ..Model::default() });
        let mut exec = Executor::new(model, Options::default()).expect("an executor");
        let x = exec.write(0, 0, &[1, time, width]).expect("an input");
        x.bytes_mut().copy_from_slice(&bytes(f, time * width));
        exec.run(0).expect("an LSTM");
        c.bench_function(&format!("kernels/lstm_{kind}"), |b| b.iter(|| exec.run(0)));
    }
}

criterion_group!(benches, products, element_wise, recurrent);
criterion_main!(benches);
