//! docs/ops.md: which element types of which operators run where, as the code answers. `cargo xtask ops` writes it
//! anew; the test says when it is stale.
#![cfg(feature = "gpu")]

mod common;

use litegpu::cpu::{Site, ops};
use litegpu::graph::schema::LSTMKernelType;
use litegpu::graph::{Family, Graph, Model, Node, Op, Quant, Tensor};
use litegpu::{Caps, DType, Device, Session, Target};
use std::fmt::Write;

const TYPES: [(&str, DType); 11] = [
    ("f32", DType::F32),
    ("f16", DType::F16),
    ("bf16", DType::BF16),
    ("i8", DType::I8),
    ("u8", DType::U8),
    ("i16", DType::I16),
    ("i32", DType::I32),
    ("i64", DType::I64),
    ("bool", DType::Bool),
    ("string", DType::String),
    ("c64", DType::C64),
];

/// A tensor as quantized models have them.
fn tensor(dtype: DType, shape: &[usize], (scale, zero): (f32, i64), constant: bool) -> Tensor {
    let mut t = Tensor::new("", dtype, shape);
    if matches!(dtype, DType::I8 | DType::U8 | DType::I16 | DType::I32) {
        let zero = if matches!(dtype, DType::I8 | DType::U8) { zero } else { 0 };
        t.quant = Some(Quant::scalar(scale, if dtype == DType::U8 { zero + 128 } else { zero }));
    }
    if constant {
        // Ones: sensible as weights, as axes and as sizes.
        let one: &[u8] = match dtype.bits() {
            8 => &[1],
            16 => &[1, 0],
            32 if dtype == DType::F32 => &[0, 0, 0x80, 0x3f],
            32 => &[1, 0, 0, 0],
            64 => &[1, 0, 0, 0, 0, 0, 0, 0],
            _ => return t,
        };
        t.data = Some(one.repeat(t.elements()).into());
    }
    t
}

/// A model of one operator.
fn model(op: &Op, operands: &[Tensor], output: Tensor, outputs: usize) -> Model {
    let mut g = Graph { tensors: operands.to_vec(), ..Graph::default() };
    let ids: Vec<usize> = (0..operands.len()).collect();
    g.outputs = (operands.len()..operands.len() + outputs).collect();
    g.tensors.extend(std::iter::repeat_n(output, outputs));
    g.inputs = ids.iter().copied().filter(|&t| g.tensors[t].data.is_none()).collect();
    g.nodes = vec![Node::new(op.clone(), &ids, &g.outputs)];
    Model { subgraphs: vec![g], ..Model::default() }
}

fn on_cpu(model: &Model) -> bool {
    let graph = &model.subgraphs[0];
    ops::prepare(&Site { model, graph, node: &graph.nodes[0] }).is_ok()
}

fn on_gpu(model: &Model) -> bool {
    let Ok(model) = litegpu::Model::from_graph(model.clone()) else { return false };
    let builder = Session::builder(&model).device(Device::Gpu).everything_on_gpu(true).threads(1);
    builder.plan_for(&Caps::baseline()).is_ok_and(|r| r.count(Target::Gpu) > 0)
}

/// The operator with attributes that make sense: steps of one where the format's default is none.
fn sensible(mut op: Op) -> Op {
    match &mut op {
        Op::Conv2d(o) => {
            (o.stride_h, o.stride_w, o.dilation_h_factor, o.dilation_w_factor) = (1, 1, 1, 1);
        }
        Op::DepthwiseConv2d(o) => {
            (o.stride_h, o.stride_w, o.dilation_h_factor, o.dilation_w_factor) = (1, 1, 1, 1);
            o.depth_multiplier = 1;
        }
        Op::TransposeConv(o) => (o.stride_h, o.stride_w) = (1, 1),
        Op::Conv3d(o) | Op::Conv3dTranspose(o) => {
            (o.stride_d, o.stride_h, o.stride_w) = (1, 1, 1);
            (o.dilation_d_factor, o.dilation_h_factor, o.dilation_w_factor) = (1, 1, 1);
        }
        Op::AveragePool2d(o) | Op::MaxPool2d(o) | Op::L2Pool2d(o) => {
            (o.stride_h, o.stride_w, o.filter_height, o.filter_width) = (1, 1, 1, 1);
        }
        Op::Softmax(o) => o.beta = 1.0,
        Op::BatchMatmul(o) => o.adj_y = true,
        Op::FakeQuant(o) => (o.num_bits, o.min, o.max) = (8, -1.0, 1.0),
        Op::SpaceToDepth(o) => o.block_size = 2,
        Op::DepthToSpace(o) => o.block_size = 2,
        Op::Split(o) => o.num_splits = 1,
        Op::SplitV(o) => o.num_splits = 1,
        Op::OneHot(o) => o.axis = -1,
        Op::ReverseSequence(o) => (o.seq_dim, o.batch_dim) = (1, 0),
        Op::Unpack(o) => o.num = 1,
        Op::Pack(o) => o.values_count = 1,
        _ => {}
    }
    op
}

/// Operands, and a result, for operators to which alike operands make no sense. The type is the first operand's, or that
/// of the values where the first are sizes, indices or conditions.
fn recipe(op: &Op, dtype: DType) -> Option<(Vec<Tensor>, Tensor, usize)> {
    let of = |shape: &[usize]| tensor(dtype, shape, (1.0 / 128.0, 0), false);
    let ones = |shape: &[usize]| tensor(dtype, shape, (1.0 / 128.0, 0), true);
    let plain = |dtype, shape: &[usize]| Tensor::new("", dtype, shape);
    let ints = |shape: &[usize], v: &[i32]| {
        let bytes: Vec<u8> = v.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::constant("", DType::I32, shape, bytes)
    };
    let x = || of(&[1, 2, 2, 4]);
    let one = |operands: Vec<Tensor>, result: &[usize]| Some((operands, of(result), 1));
    match op {
        Op::Conv3d(_) => one(vec![of(&[1, 2, 2, 2, 4]), ones(&[1, 1, 1, 4, 4])], &[1, 2, 2, 2, 4]),
        Op::Conv3dTranspose(_) => {
            one(vec![ints(&[5], &[1, 2, 2, 2, 4]), ones(&[1, 1, 1, 4, 4]), of(&[1, 2, 2, 2, 4])], &[1, 2, 2, 2, 4])
        }
        Op::Reshape(_) => one(vec![x(), ints(&[2], &[4, 4])], &[4, 4]),
        Op::Pad => one(vec![x(), ints(&[4, 2], &[0, 0, 1, 1, 0, 0, 0, 0])], &[1, 4, 2, 4]),
        Op::Padv2 => one(vec![x(), ints(&[4, 2], &[0, 0, 1, 1, 0, 0, 0, 0]), ones(&[1])], &[1, 4, 2, 4]),
        Op::MirrorPad(_) => one(vec![x(), ints(&[4, 2], &[0, 0, 1, 1, 0, 0, 0, 0])], &[1, 4, 2, 4]),
        Op::Transpose => one(vec![x(), ints(&[4], &[0, 2, 1, 3])], &[1, 2, 2, 4]),
        Op::StridedSlice(_) => {
            let list = [[0, 0, 0, 0], [1, 2, 2, 4], [1, 1, 1, 1]].map(|v| ints(&[4], &v));
            one([vec![x()], list.to_vec()].concat(), &[1, 2, 2, 4])
        }
        Op::Slice => one(vec![x(), ints(&[4], &[0, 0, 0, 0]), ints(&[4], &[1, 1, 2, 4])], &[1, 1, 2, 4]),
        Op::Split(_) => one(vec![ints(&[], &[3]), x()], &[1, 2, 2, 4]),
        Op::SplitV(_) => one(vec![x(), ints(&[1], &[4]), ints(&[], &[3])], &[1, 2, 2, 4]),
        Op::Tile => one(vec![x(), ints(&[4], &[1, 2, 1, 1])], &[1, 4, 2, 4]),
        Op::BroadcastTo => one(vec![of(&[1, 4]), ints(&[2], &[3, 4])], &[3, 4]),
        Op::ReverseSequence(_) => one(vec![of(&[2, 4]), ints(&[2], &[1, 2])], &[2, 4]),
        Op::DynamicUpdateSlice => one(vec![of(&[4, 4]), of(&[2, 4]), plain(DType::I32, &[2])], &[4, 4]),
        Op::SparseToDense(_) => one(vec![plain(DType::I32, &[2]), ints(&[1], &[4]), of(&[2]), ones(&[])], &[4]),
        Op::OneHot(_) => one(vec![plain(DType::I32, &[3]), ints(&[], &[4]), ones(&[]), ones(&[])], &[3, 4]),
        Op::Fill => one(vec![ints(&[2], &[2, 4]), of(&[])], &[2, 4]),
        Op::MatrixSetDiag => one(vec![of(&[4, 4]), of(&[4])], &[4, 4]),
        Op::Select | Op::SelectV2 => one(vec![plain(DType::Bool, &[4]), of(&[4]), of(&[4])], &[4]),
        Op::EmbeddingLookup => one(vec![plain(DType::I32, &[2]), ones(&[4, 4])], &[2, 4]),
        Op::ScatterNd => one(vec![plain(DType::I32, &[2, 1]), of(&[2, 4]), ints(&[2], &[4, 4])], &[4, 4]),
        Op::ResizeBilinear(_) | Op::ResizeNearestNeighbor(_) => one(vec![x(), ints(&[2], &[4, 4])], &[1, 4, 4, 4]),
        Op::SpaceToBatchNd => one(vec![x(), ints(&[2], &[2, 2]), ints(&[2, 2], &[0, 0, 0, 0])], &[4, 1, 1, 4]),
        Op::BatchToSpaceNd => {
            one(vec![of(&[4, 1, 1, 4]), ints(&[2], &[2, 2]), ints(&[2, 2], &[0, 0, 0, 0])], &[1, 2, 2, 4])
        }
        Op::UnsortedSegmentSum | Op::UnsortedSegmentProd | Op::UnsortedSegmentMax | Op::UnsortedSegmentMin => {
            one(vec![of(&[3, 4]), ints(&[3], &[0, 1, 0]), ints(&[], &[2])], &[2, 4])
        }
        Op::TopkV2 => Some((vec![of(&[2, 4]), ints(&[], &[2])], of(&[2, 2]), 2)),
        _ => None,
    }
}

/// Whether the operator on its [`recipe`] has a kernel on the CPU, and one on the GPU.
fn by_recipe(op: &Op, dtype: DType) -> Option<(bool, bool)> {
    let (operands, result, outputs) = recipe(op, dtype)?;
    let mut m = model(op, &operands, result, outputs);
    if let (Op::TopkV2, Some(t)) = (op, m.subgraphs[0].tensors.last_mut()) {
        *t = Tensor::new("", DType::I32, &t.shape.clone());
    }
    let cpu = on_cpu(&m);
    Some((cpu, cpu && on_gpu(&m)))
}

/// Plans to make for one operator and type before the GPU is taken to have no kernel.
const PLANS: usize = 24;

/// Whether some model of one operator on operands of the type has a kernel on the CPU, and one on the GPU. Other
/// operands have the same type or one that weights, indices or conditions have.
fn answers(op: &Op, dtype: DType) -> (bool, bool) {
    let known = by_recipe(op, dtype).unwrap_or_default();
    let (cpu, gpu) = if known.1 { known } else { by_trial(op, dtype) };
    (cpu || known.0, gpu)
}

fn by_trial(op: &Op, dtype: DType) -> (bool, bool) {
    let (mut cpu, mut gpu, mut plans) = (false, false, 0);
    // Their first operand is the size of the result.
    let sized = matches!(op, Op::TransposeConv(_) | Op::Conv3dTranspose(_));
    let mut others = vec![dtype, DType::I32, DType::F32, DType::I8, DType::I64, DType::Bool];
    others.dedup();
    let mut results = vec![dtype, DType::F32, DType::I32, DType::I64, DType::Bool, DType::I8, DType::I16, DType::C64];
    results.dedup();
    let flat: &[usize] =
        if matches!(op, Op::Conv3d(_) | Op::Conv3dTranspose(_)) { &[1, 1, 2, 2, 4] } else { &[1, 2, 2, 4] };
    let shape = if matches!(op, Op::FullyConnected(_)) { &[4, 4] } else { flat };
    let list: Vec<u8> = [1i32, 2, 2, 1].iter().flat_map(|v| v.to_le_bytes()).collect();
    let size = Tensor::constant("", DType::I32, &[4], list);
    let quants: &[(f32, i64)] = match dtype {
        DType::I8 | DType::U8 | DType::I16 => &[(1.0 / 128.0, 0), (1.0 / 256.0, -128), (1.0 / 32768.0, 0)],
        _ => &[(1.0 / 128.0, 0)],
    };
    let counts: &[usize] = match op.family() {
        Family::Unary | Family::Normalize => &[1, 2],
        _ => &[1, 2, 3, 4, 5],
    };
    for &n in counts {
        let pairs: Vec<(DType, DType)> = match n {
            1 => vec![(dtype, dtype)],
            2 => others.iter().map(|&a| (a, dtype)).collect(),
            _ => others.iter().flat_map(|&a| others.iter().map(move |&b| (a, b))).collect(),
        };
        for (second, third) in pairs {
            for &result in &results {
                for &quant in quants {
                    for constant in [true, false] {
                        let list: Vec<Tensor> = (0..n)
                            .map(|i| match i {
                                0 if sized => size.clone(),
                                2 if sized => tensor(dtype, shape, (1.0 / 128.0, 0), false),
                                0 => tensor(dtype, shape, (1.0 / 128.0, 0), false),
                                // Weights and data have the first operand's rank, indices and biases are lists.
                                1 if matches!(second, DType::I32 | DType::I64) && second != dtype => {
                                    tensor(second, &[1], (1.0, 0), constant)
                                }
                                1 => tensor(second, shape, (1.0 / 128.0, 0), constant),
                                _ if constant => tensor(third, &[1], (1.0 / 16384.0, 0), true),
                                _ => tensor(third, shape, (1.0 / 128.0, 0), false),
                            })
                            .collect();
                        let m = model(op, &list, tensor(result, shape, quant, false), 1);
                        if !on_cpu(&m) {
                            continue;
                        }
                        // What the GPU has the CPU has as well.
                        (cpu, gpu, plans) = (true, on_gpu(&m), plans + 1);
                        if gpu || plans == PLANS {
                            return (cpu, gpu);
                        }
                    }
                }
            }
        }
    }
    (cpu, gpu)
}

/// What the GPU runs of subgraphs.
const BODIES: &str = "shapes that are known, operators with a GPU kernel";

/// What these operators need is other subgraphs, resources or two dozen operands: their tests answer for them. On the
/// CPU and on the GPU.
fn special(op: &Op) -> Option<(&'static str, &'static str)> {
    Some(match op {
        Op::CallOnce(_) => ("control flow, any type", ""),
        Op::If(_) | Op::While(_) | Op::Call(_) | Op::StablehloCase(_) => ("control flow, any type", BODIES),
        Op::StablehloWhile(_) | Op::StablehloComposite(_) => ("control flow, any type", BODIES),
        Op::VarHandle(_) => ("any type", "names memory"),
        Op::ReadVariable | Op::AssignVariable => ("any type", "f32, f16, i8, u8, i32, bool"),
        Op::UnidirectionalSequenceLstm(_) => ("f32, i8; dynamic range", "f32, i8; dynamic range"),
        Op::Lstm(o) if o.kernel_type != LSTMKernelType::BASIC => {
            ("f32, i8, u8 (basic); dynamic range", "f32, i8; dynamic range")
        }
        Op::BidirectionalSequenceLstm(_) | Op::BidirectionalSequenceRnn(_) => {
            ("f32; dynamic range", "f32; dynamic range")
        }
        Op::UnidirectionalSequenceRnn(_) | Op::Rnn(_) => ("f32; dynamic range", "f32; dynamic range"),
        Op::Svdf(_) => ("f32, i8; dynamic range", "f32, i8; dynamic range"),
        Op::ReduceWindow(_) | Op::StablehloReduceWindow(_) | Op::StablehloReduce(_) | Op::StablehloScatter(_) => {
            ("numbers of any type", "")
        }
        Op::StablehloRngBitGenerator(_) => ("integers", ""),
        Op::Hashtable(_) => ("i64 to string, string to i64", ""),
        _ => return None,
    })
}

#[test]
fn the_table_of_operators_is_fresh() {
    let mut text = String::from(
        "# Operators\n\nEvery builtin operator of the format, and the element types of its first operand for which litegpu has a\n\
         kernel. The table is generated from the code's own answers (`cargo xtask ops`); attributes and the types of\n\
         other operands can still make a difference, and `litegpu plan MODEL` says what happens to each operator of a\n\
         model and why. An operator without a GPU kernel runs on the CPU.\n\n\
         | operator | CPU | GPU |\n|---|---|---|\n",
    );
    let mut without = Vec::new();
    // Builtin operators with a GPU kernel, beside those that StableHLO names once more.
    let mut on_gpu = 0;
    for &code in Op::CODES {
        let Some(op) = Op::with_defaults(code).map(sensible) else { continue };
        let counts = |gpu: bool| usize::from(gpu && !op.name().starts_with("STABLEHLO"));
        if let Some((cpu, gpu)) = special(&op) {
            on_gpu += counts(!gpu.is_empty());
            let _ = writeln!(text, "| {} | {cpu} | {gpu} |", op.name());
            continue;
        }
        let (mut cpu, mut gpu) = (Vec::new(), Vec::new());
        for (name, dtype) in TYPES {
            let (c, g) = answers(&op, dtype);
            cpu.extend(c.then_some(name));
            gpu.extend(g.then_some(name));
        }
        if cpu.is_empty() {
            without.push(op.name().to_string());
            continue;
        }
        on_gpu += counts(!gpu.is_empty());
        let _ = writeln!(text, "| {} | {} | {} |", op.name(), cpu.join(", "), gpu.join(", "));
    }
    assert!(on_gpu >= 120, "{on_gpu} builtin operators have a GPU kernel");
    let _ = writeln!(text, "\nWithout a kernel: {}.", without.join(", "));
    let file = common::repo("docs/ops.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == text, "docs/ops.md is stale: run `cargo xtask ops`");
}
