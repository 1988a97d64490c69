//! Operands and attributes that no converter writes, for the operators with the most of them: recurrent cells,
//! StableHLO, custom operators, variables, Fourier transforms. They may be refused; nothing may panic.

use litegpu_cpu::{Executor, Options};
use litegpu_graph::schema::*;
use litegpu_graph::{CustomOp, DType, Graph, Model, Node, Op, Quant, Shape, Tensor};
use std::sync::Arc;

/// A small generator; the same numbers in every run of the test.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Constant,
    Input,
    Variable,
    Absent,
}
use Kind::{Absent, Constant, Input, Variable};

type Operand = (Kind, DType, &'static [usize]);

/// A model of one operator, whose operands are as given and hold small values.
fn single(op: Op, operands: &[Operand], outputs: &[DType]) -> Model {
    let mut g = Graph::default();
    let mut inputs = Vec::new();
    for &(kind, dtype, shape) in operands {
        let mut t = Tensor::new("t", dtype, shape);
        if matches!(dtype, DType::I8 | DType::U8 | DType::I16) {
            t.quant = Some(Quant::scalar(2f32.powi(-11), 0));
        }
        t.is_variable = matches!(kind, Variable);
        if matches!(kind, Constant) {
            fill(&mut t);
        }
        if matches!(kind, Absent) {
            inputs.push(None);
            continue;
        }
        if matches!(kind, Input) {
            g.inputs.push(g.tensors.len());
        }
        inputs.push(Some(g.tensors.len()));
        g.tensors.push(t);
    }
    let first = g.tensors.len();
    for &dtype in outputs {
        let mut t = Tensor::new("out", dtype, &[]);
        t.quant = Some(Quant::scalar(0.25, 0));
        g.tensors.push(t);
    }
    g.outputs = (first..g.tensors.len()).collect();
    g.nodes = vec![Node { inputs, ..Node::new(op, &[], &g.outputs) }];
    Model { subgraphs: vec![g], ..Model::default() }
}

/// Data of the size that type and shape ask for.
fn fill(t: &mut Tensor) {
    let n = t.dtype.byte_len(t.elements()).unwrap_or(0);
    let value: &[u8] = match t.dtype {
        DType::F32 => &[0, 0, 0, 63],
        DType::I32 | DType::U32 => &[2, 0, 0, 0],
        DType::I64 | DType::U64 => &[1, 0, 0, 0, 0, 0, 0, 0],
        _ => &[1],
    };
    t.data = Some(value.iter().copied().cycle().take(n).collect::<Vec<u8>>().into());
}

const TYPES: [DType; 9] =
    [DType::F32, DType::I32, DType::I64, DType::I8, DType::U8, DType::I16, DType::Bool, DType::F16, DType::C64];

/// Changes one thing about one tensor or operand.
fn mutate(model: &mut Model, r: &mut Random) {
    let Some(g) = model.subgraphs.first_mut() else { return };
    let t = r.below(g.tensors.len());
    let tensor = &mut g.tensors[t];
    match r.below(7) {
        0 => tensor.dtype = TYPES[r.below(TYPES.len())],
        1 | 2 if !tensor.shape.is_empty() => {
            let d = r.below(tensor.shape.len());
            tensor.shape[d] = r.below(5);
        }
        3 => tensor.shape = (0..r.below(4)).map(|_| r.below(4)).collect::<Shape>(),
        4 => tensor.quant = None,
        5 => tensor.is_variable ^= tensor.data.is_none(),
        _ => {
            let n = g.nodes[0].inputs.len();
            match r.below(3) {
                0 => g.nodes[0].inputs[r.below(n)] = None,
                1 => g.nodes[0].inputs.truncate(r.below(n) + 1),
                _ => {
                    let (a, b) = (r.below(n), r.below(n));
                    g.nodes[0].inputs.swap(a, b);
                }
            }
        }
    }
    if g.tensors[t].data.is_some() {
        fill(&mut g.tensors[t]);
    }
}

/// Runs a model on its declared shapes, twice, with two threads at times.
fn attempt(model: Model, threads: usize) -> bool {
    if litegpu_graph::validate::model(&model).is_err() {
        return false;
    }
    let model = Arc::new(model);
    let options = Options { memory_limit: 1 << 24, threads, ..Options::default() };
    let Ok(mut exec) = Executor::new(model.clone(), options) else { return false };
    let graph = &model.subgraphs[0];
    (0..2).all(|_| {
        let set = graph.inputs.iter().all(|&t| match exec.write(0, t, &graph.tensors[t].shape) {
            Ok(v) => {
                v.bytes_mut().fill(1);
                true
            }
            Err(_) => false,
        });
        set && exec.run(0).is_ok()
    })
}

fn storm(name: &str, template: &Model, rounds: usize) {
    let mut r = Random(0x2545_F491_4F6C_DD1D);
    assert!(attempt(template.clone(), 1), "{name}: the unchanged model must run");
    for _ in 0..rounds {
        let mut model = template.clone();
        for _ in 0..=r.below(3) {
            mutate(&mut model, &mut r);
        }
        attempt(model, 1 + r.below(2));
    }
}

const F: DType = DType::F32;

/// Input of width 3, 4 cells, 2 outputs through a projection.
fn lstm(weights: DType, peephole: DType) -> Vec<Operand> {
    let mut o: Vec<Operand> = vec![(Input, F, &[2, 5, 3])];
    o.extend([(Constant, weights, [4, 3].as_slice()); 4]);
    o.extend([(Constant, weights, [4, 2].as_slice()); 4]);
    o.extend([(Constant, peephole, [4].as_slice()); 3]);
    o.extend([(Constant, F, [4].as_slice()); 4]);
    o.extend([(Constant, weights, [2, 4].as_slice()), (Constant, F, &[2])]);
    o.extend([(Variable, F, [2, 2].as_slice()), (Variable, F, &[2, 4])]);
    o.extend([(Constant, F, [4].as_slice()); 4]);
    o
}

#[test]
fn recurrent_cells() {
    let tanh = ActivationFunctionType::TANH;
    let op = || {
        Op::UnidirectionalSequenceLstm(UnidirectionalSequenceLSTMOptionsT {
            fused_activation_function: tanh,
            asymmetric_quantize_inputs: true,
            ..Default::default()
        })
    };
    storm("float LSTM", &single(op(), &lstm(F, F), &[F]), 400);
    storm("dynamic range LSTM", &single(op(), &lstm(DType::I8, DType::I8), &[F]), 400);

    let i8_ = DType::I8;
    let mut int: Vec<Operand> = vec![(Input, i8_, &[2, 5, 3])];
    int.extend([(Constant, i8_, [4, 3].as_slice()); 4]);
    int.extend([(Constant, i8_, [4, 2].as_slice()); 4]);
    int.extend([(Constant, DType::I16, [4].as_slice()); 3]);
    int.extend([(Constant, DType::I32, [4].as_slice()); 4]);
    int.extend([(Constant, i8_, [2, 4].as_slice()), (Constant, DType::I32, &[2])]);
    int.extend([(Variable, i8_, [2, 2].as_slice()), (Variable, DType::I16, &[2, 4])]);
    int.extend([(Constant, DType::I16, [4].as_slice()); 4]);
    let mut model = single(op(), &int, &[i8_]);
    let g = &mut model.subgraphs[0];
    for _ in 0..5 {
        let t = Tensor { quant: Some(Quant::scalar(0.001, 0)), ..Tensor::new("between", DType::I16, &[]) };
        g.nodes[0].intermediates.push(Some(g.tensors.len()));
        g.tensors.push(t);
    }
    storm("integer LSTM", &model, 400);

    let mut both: Vec<Operand> = vec![(Input, F, &[2, 5, 3])];
    for _ in 0..2 {
        both.extend([(Constant, F, [4, 3].as_slice()); 4]);
        both.extend([(Constant, F, [4, 4].as_slice()); 4]);
        both.extend([(Absent, F, [].as_slice()); 3]);
        both.extend([(Constant, F, [4].as_slice()); 4]);
        both.extend([(Absent, F, [].as_slice()); 2]);
    }
    both.extend([(Variable, F, [2, 4].as_slice()); 4]);
    both.extend([(Absent, F, [].as_slice()); 9]);
    let merged = BidirectionalSequenceLSTMOptionsT {
        fused_activation_function: tanh,
        merge_outputs: true,
        time_major: false,
        ..Default::default()
    };
    storm("bidirectional LSTM", &single(Op::BidirectionalSequenceLstm(merged), &both, &[F]), 300);

    let cell = |w: DType| -> Vec<Operand> {
        vec![
            (Input, F, &[2, 5, 3]),
            (Constant, w, &[4, 3]),
            (Constant, w, &[4, 4]),
            (Constant, F, &[4]),
            (Variable, F, &[2, 4]),
        ]
    };
    let rnn = || Op::UnidirectionalSequenceRnn(Default::default());
    storm("RNN", &single(rnn(), &cell(F), &[F]), 200);
    storm("dynamic range RNN", &single(rnn(), &cell(DType::I8), &[F]), 200);
    let svdf = || Op::Svdf(SVDFOptionsT { rank: 2, ..Default::default() });
    let filters: [Operand; 5] = [
        (Input, F, &[2, 3]),
        (Constant, F, &[8, 3]),
        (Constant, F, &[8, 5]),
        (Constant, F, &[4]),
        (Variable, F, &[2, 40]),
    ];
    storm("SVDF", &single(svdf(), &filters, &[F]), 200);
    let basic = Op::Lstm(LSTMOptionsT { kernel_type: LSTMKernelType::BASIC, ..Default::default() });
    let operands: [Operand; 5] = [
        (Input, F, &[2, 3]),
        (Variable, F, &[2, 4]),
        (Constant, F, &[16, 7]),
        (Constant, F, &[16]),
        (Variable, F, &[2, 4]),
    ];
    storm("basic LSTM", &single(basic, &operands, &[F; 4]), 200);
}

#[test]
fn spectra_and_custom_operators() {
    let operands: [Operand; 2] = [(Input, F, &[2, 3, 5]), (Constant, DType::I32, &[2])];
    storm("RFFT2D", &single(Op::Rfft2d, &operands, &[DType::C64]), 200);
    // TFLite's pooling parameters: padding, strides, window, activation.
    let words = [1i32, 2, 2, 2, 2, 0, 0, 0, 0, 0].map(i32::to_le_bytes).concat();
    let custom = |name: &str| Op::Custom(CustomOp { name: name.into(), options: words.clone().into() });
    let image: [Operand; 2] = [(Input, F, &[1, 4, 4, 2]), (Input, F, &[1, 4, 4, 2])];
    storm("pooling", &single(custom("MaxPoolingWithArgmax2D"), &image[..1], &[F, F]), 200);
    storm("unpooling", &single(custom("MaxUnpooling2D"), &image, &[F]), 200);
    storm("warping", &single(custom("DenseImageWarp"), &image, &[F]), 200);
    // Options that are no flexbuffer.
    for name in ["TFLite_Detection_PostProcess", "AudioSpectrogram", "Mfcc", "aeq.hadamard_rotation"] {
        let operands: [Operand; 3] = [(Input, F, &[1, 4, 4]), (Input, F, &[1, 4, 3]), (Constant, F, &[4, 4])];
        attempt(single(custom(name), &operands, &[F; 4]), 1);
    }
}

#[test]
fn stablehlo_attributes() {
    let mut r = Random(77);
    let mut ran = 0;
    for _ in 0..3000 {
        let list =
            |r: &mut Random| -> Option<Vec<i64>> { Some((0..r.below(4)).map(|_| r.below(6) as i64 - 1).collect()) };
        let op = match r.below(10) {
            0 => Op::StablehloGather(StablehloGatherOptionsT {
                offset_dims: list(&mut r),
                collapsed_slice_dims: list(&mut r),
                start_index_map: list(&mut r),
                index_vector_dim: r.below(4) as i64,
                slice_sizes: list(&mut r),
                indices_are_sorted: false,
            }),
            1 => Op::StablehloPad(StablehloPadOptionsT {
                edge_padding_low: list(&mut r),
                edge_padding_high: list(&mut r),
                interior_padding: list(&mut r),
            }),
            2 => Op::StablehloSlice(StablehloSliceOptionsT {
                start_indices: list(&mut r),
                limit_indices: list(&mut r),
                strides: list(&mut r),
            }),
            3 => Op::StablehloTranspose(StablehloTransposeOptionsT { permutation: list(&mut r) }),
            4 => Op::StablehloDynamicSlice(StablehloDynamicSliceOptionsT { slice_sizes: list(&mut r) }),
            5 => Op::StablehloDotGeneral(StablehloDotGeneralOptionsT {
                lhs_batching_dimensions: list(&mut r),
                rhs_batching_dimensions: list(&mut r),
                lhs_contracting_dimensions: list(&mut r),
                rhs_contracting_dimensions: list(&mut r),
                precision_config: None,
            }),
            6 => Op::StablehloScatter(StablehloScatterOptionsT {
                update_window_dims: list(&mut r),
                inserted_window_dims: list(&mut r),
                scatter_dims_to_operand_dims: list(&mut r),
                index_vector_dim: r.below(4) as i64,
                update_computation_subgraph_index: 1,
                ..Default::default()
            }),
            7 => Op::StablehloReduceWindow(StablehloReduceWindowOptionsT {
                window_dimensions: list(&mut r),
                window_strides: list(&mut r),
                base_dilations: list(&mut r),
                window_dilations: list(&mut r),
                padding: list(&mut r),
                body_subgraph_index: 2,
            }),
            8 => Op::StablehloReduce(StablehloReduceOptionsT { dimensions: list(&mut r), body_subgraph_index: 2 }),
            _ => Op::StablehloConcatenate(StablehloConcatenateOptionsT { dimension: r.below(4) as i64 - 1 }),
        };
        const SHAPES: [&[usize]; 7] = [&[], &[3], &[2, 3], &[3, 2], &[2, 0], &[1, 2, 3], &[2, 2, 2]];
        let dtype = [F, DType::I32, DType::F16, DType::Bool][r.below(4)];
        let operand = |d: DType, r: &mut Random| -> Operand { (Input, d, SHAPES[r.below(SHAPES.len())]) };
        let indices = if r.below(2) == 0 { DType::I32 } else { dtype };
        let operands = [operand(dtype, &mut r), operand(indices, &mut r), operand(dtype, &mut r)];
        let mut model = single(op, &operands[..1 + r.below(3)], &[dtype]);
        // The regions: take the second value; add.
        let pair = |nodes: Vec<Node>, out: usize| Graph {
            tensors: (0..3).map(|_| Tensor::new("v", dtype, &[])).collect(),
            nodes,
            inputs: vec![0, 1],
            outputs: vec![out],
            ..Graph::default()
        };
        model.subgraphs.push(pair(Vec::new(), 1));
        model.subgraphs.push(pair(vec![Node::new(Op::StablehloAdd, &[0, 1], &[2])], 2));
        ran += attempt(model, 1) as usize;
    }
    assert!(ran > 100, "only {ran} of the attributes made sense");
}
