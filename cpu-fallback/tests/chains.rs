//! Element-wise operators done with the operator that they follow give the bits that they give on their own.

use litegpu_cpu::{Executor, Options};
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Graph, Model, Node, Op, Quant, Tensor, TensorId};
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
    fn floats(&mut self, n: usize) -> Vec<u8> {
        (0..n).flat_map(|_| (self.below(2001) as f32 / 300.0 - 3.3).to_le_bytes()).collect()
    }
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.below(256) as u8).collect()
    }
}

/// Graphs under construction: every computed tensor has the input's shape.
struct Draft {
    graph: Graph,
    shape: [usize; 4],
    dtype: DType,
    computed: Vec<TensorId>,
}

impl Draft {
    fn new(shape: [usize; 4], dtype: DType) -> Draft {
        let mut d = Draft { graph: Graph::default(), shape, dtype, computed: Vec::new() };
        let t = d.value();
        d.graph.inputs.push(t);
        d
    }
    fn add(&mut self, t: Tensor) -> TensorId {
        self.graph.tensors.push(t);
        self.graph.tensors.len() - 1
    }
    fn quantized(&self, t: Tensor) -> Tensor {
        if self.dtype == DType::I8 { Tensor { quant: Some(Quant::scalar(0.05, 3)), ..t } } else { t }
    }
    fn value(&mut self) -> TensorId {
        let t = self.quantized(Tensor::new("value", self.dtype, &self.shape));
        let t = self.add(t);
        self.computed.push(t);
        t
    }
    fn constant(&mut self, r: &mut Random, shape: &[usize]) -> TensorId {
        let n = shape.iter().product();
        let t = match self.dtype {
            DType::I8 => {
                Tensor { quant: Some(Quant::scalar(0.01, 0)), ..Tensor::constant("c", DType::I8, shape, r.bytes(n)) }
            }
            d => Tensor::constant("c", d, shape, r.floats(n)),
        };
        self.add(t)
    }
    fn node(&mut self, op: Op, inputs: &[TensorId]) -> TensorId {
        let y = self.value();
        self.graph.nodes.push(Node::new(op, inputs, &[y]));
        y
    }
    /// Appends an operator that reads `x`.
    fn grow(&mut self, r: &mut Random, x: TensorId) -> TensorId {
        let [_, h, w, c] = self.shape;
        match r.below(10) {
            0 => {
                let (f, k) = (1 + 2 * r.below(2), Conv2DOptionsT { stride_h: 1, stride_w: 1, ..Default::default() });
                let weights = self.constant(r, &[c, f, f, c]);
                let op = Op::Conv2d(Conv2DOptionsT { dilation_h_factor: 1, dilation_w_factor: 1, ..k });
                self.node(op, &[x, weights])
            }
            1 => {
                let weights = self.constant(r, &[1, 3, 3, c]);
                let op =
                    DepthwiseConv2DOptionsT { stride_h: 1, stride_w: 1, depth_multiplier: 1, ..Default::default() };
                let op = DepthwiseConv2DOptionsT { dilation_h_factor: 1, dilation_w_factor: 1, ..op };
                self.node(Op::DepthwiseConv2d(op), &[x, weights])
            }
            2 if self.dtype == DType::F32 => {
                let weights = self.constant(r, &[c, c]);
                let op = FullyConnectedOptionsT { keep_num_dims: true, ..Default::default() };
                self.node(Op::FullyConnected(op), &[x, weights])
            }
            3..=5 => {
                let shapes: [&[usize]; 5] = [&[], &[1], &[c], &[1, 1, w, c], &[1, h, w, 1]];
                let other = match r.below(8) {
                    n @ 0..5 => self.constant(r, shapes[n]),
                    _ => self.computed[r.below(self.computed.len())],
                };
                let op = match (self.dtype, r.below(4)) {
                    (DType::F32, 0) => Op::Prelu,
                    (DType::F32, 1) => Op::Maximum,
                    (_, 2) => Op::Mul(MulOptionsT::default()),
                    _ => Op::Add(AddOptionsT {
                        fused_activation_function: ActivationFunctionType::RELU6,
                        ..Default::default()
                    }),
                };
                let swap = r.below(3) == 0 && op != Op::Prelu;
                self.node(op, &if swap { [other, x] } else { [x, other] })
            }
            _ => {
                let op = match r.below(6) {
                    0 => Op::Relu,
                    1 => Op::Relu6,
                    2 => Op::HardSwish,
                    3 => Op::LeakyRelu(LeakyReluOptionsT { alpha: 0.25 }),
                    4 => Op::Logistic,
                    _ => Op::Tanh,
                };
                self.node(op, &[x])
            }
        }
    }
}

/// All outputs, of two runs.
fn run(model: &Arc<Model>, input: &[u8], options: Options) -> Vec<Vec<u8>> {
    let mut exec = Executor::new(model.clone(), options).unwrap();
    let graph = &model.subgraphs[0];
    let mut out = Vec::new();
    for turn in 0..2 {
        let to = exec.write(0, 0, &graph.tensors[0].shape).unwrap().bytes_mut();
        to.iter_mut().zip(input).for_each(|(t, v)| *t = if turn == 0 { *v } else { *v ^ 1 });
        exec.run(0).unwrap_or_else(|e| panic!("{e}"));
        out.extend(graph.outputs.iter().map(|&t| exec.get(0, t).unwrap().bytes.to_vec()));
    }
    out
}

#[test]
fn chains_give_the_same_bits() {
    let mut r = Random(88172645463325252);
    for round in 0..150 {
        let dtype = if round % 3 == 2 { DType::I8 } else { DType::F32 };
        // Of one block and of many, with rows shorter and longer than those that are repeated.
        let shape = [[1, 3, 5, 7], [1, 9, 8, 16], [2, 6, 7, 70], [1, 40, 41, 4]][r.below(4)];
        let mut d = Draft::new(shape, dtype);
        let mut x = 0;
        for _ in 0..3 + r.below(10) {
            if r.below(8) == 0 {
                x = d.computed[r.below(d.computed.len())];
            }
            x = d.grow(&mut r, x);
        }
        let seen = d.computed[r.below(d.computed.len())];
        d.graph.outputs = if seen == 0 || seen == x { vec![x] } else { vec![x, seen] };
        let n = shape.iter().product();
        let input = if dtype == DType::F32 { r.floats(n) } else { r.bytes(n) };
        let model = Arc::new(Model { subgraphs: vec![d.graph], ..Model::default() });
        let alone = run(&model, &input, Options { keep_all: true, ..Options::default() });
        for threads in [1, 3] {
            let chained = run(&model, &input, Options { threads, ..Options::default() });
            assert!(chained == alone, "round {round}, {threads} threads: {:?}", model.subgraphs[0].nodes);
        }
    }
}

/// A shape that does not fit any more, an operand that another device keeps: the operators run on their own again.
#[test]
fn chains_break_where_they_must() {
    let mut g = Graph::default();
    let mut add = |t: Tensor| {
        g.tensors.push(t);
        g.tensors.len() - 1
    };
    let x = add(Tensor::new("x", DType::F32, &[2, 3]));
    let a = add(Tensor::new("a", DType::F32, &[2, 3]));
    let b = add(Tensor::new("b", DType::F32, &[2, 3]));
    let row = add(Tensor::new("row", DType::F32, &[3]));
    let y = add(Tensor::new("y", DType::F32, &[2, 3]));
    g.nodes = vec![
        Node::new(Op::Neg, &[x], &[a]),
        Node::new(Op::Relu, &[a], &[b]),
        Node::new(Op::Add(AddOptionsT::default()), &[b, row], &[y]),
    ];
    (g.inputs, g.outputs) = (vec![x, row], vec![y]);
    let model = Arc::new(Model { subgraphs: vec![g], ..Model::default() });
    let mut exec = Executor::new(model, Options::default()).unwrap();
    let go = |exec: &mut Executor, shape: &[usize], v: &[f32], rows: &[usize], w: &[f32]| {
        exec.write(0, x, shape).unwrap().as_mut_slice::<f32>().unwrap().copy_from_slice(v);
        exec.write(0, row, rows).unwrap().as_mut_slice::<f32>().unwrap().copy_from_slice(w);
        exec.run(0).unwrap();
        let out = exec.get(0, y).unwrap();
        (out.shape.to_vec(), out.as_slice::<f32>().unwrap().to_vec())
    };
    let six = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0];
    let once = go(&mut exec, &[2, 3], &six, &[3], &[10.0, 20.0, 30.0]);
    assert_eq!(once, (vec![2, 3], vec![10.0, 22.0, 30.0, 14.0, 20.0, 36.0]));
    assert!(exec.get(0, a).is_err() && exec.get(0, b).is_err());
    // The other operand is the larger one.
    let grown = go(&mut exec, &[1, 3], &six[..3], &[2, 3], &[1.0; 6]);
    assert_eq!(grown, (vec![2, 3], vec![1.0, 3.0, 1.0, 1.0, 3.0, 1.0]));
    assert_eq!(go(&mut exec, &[2, 3], &six, &[3], &[10.0, 20.0, 30.0]), once);
    exec.keep(0, &[b]).unwrap();
    assert_eq!(go(&mut exec, &[2, 3], &six, &[3], &[10.0, 20.0, 30.0]), once);
    assert_eq!(exec.get(0, b).unwrap().as_slice::<f32>().unwrap(), [0.0, 2.0, 0.0, 4.0, 0.0, 6.0]);
    assert!(exec.get(0, a).is_err());
}

/// A PAD before a convolution, which then pads itself: the same bits, in every kind of arithmetic.
#[test]
fn convolutions_pad_for_the_pad_before_them() {
    let mut r = Random(0x9E37_79B9_7F4A_7C15);
    let mut folded = 0;
    for round in 0..120 {
        let (dtype, hybrid) = [(DType::F32, false), (DType::I8, false), (DType::F32, true)][round % 3];
        let (h, w, c) = (1 + r.below(9), 1 + r.below(9), [1, 3, 4, 16, 20][r.below(5)]);
        let mut d = Draft::new([1 + r.below(2), h, w, c], dtype);
        let pads = [0, 0, r.below(3), r.below(4), r.below(4), r.below(3), 0, 0];
        let data: Vec<u8> = pads.iter().flat_map(|&p| (p as i32).to_le_bytes()).collect();
        let amounts = d.add(Tensor::constant("pads", DType::I32, &[4, 2], data));
        let padded = d.node(Op::Pad, &[0, amounts]);
        let (k, stride, dilation) = (2 + r.below(2), 1 + r.below(2) as i32, 1 + r.below(2) as i32);
        let wide = r.below(2) == 0;
        let (shape, op) = if wide {
            let o =
                Conv2DOptionsT { stride_h: stride, stride_w: stride, padding: Padding::VALID, ..Default::default() };
            let o = Conv2DOptionsT { dilation_h_factor: dilation, dilation_w_factor: 1, ..o };
            ([5, k, k, c], Op::Conv2d(o))
        } else {
            let o = DepthwiseConv2DOptionsT {
                stride_h: stride,
                stride_w: stride,
                padding: Padding::VALID,
                ..Default::default()
            };
            let o = DepthwiseConv2DOptionsT { dilation_h_factor: dilation, dilation_w_factor: 1, ..o };
            ([1, k, k, c], Op::DepthwiseConv2d(DepthwiseConv2DOptionsT { depth_multiplier: 1, ..o }))
        };
        if h + pads[2] + pads[3] < (k - 1) * dilation as usize + 1 || w + pads[4] + pads[5] < k {
            continue;
        }
        let mut filter = d.constant(&mut r, &shape);
        if hybrid {
            let n = shape.iter().product();
            let t = Tensor::constant("filter", DType::I8, &shape, r.bytes(n));
            filter = d.add(Tensor { quant: Some(Quant::scalar(0.01, 0)), ..t });
        }
        let y = d.node(op, &[padded, filter]);
        let last = d.node(Op::Relu, &[y]);
        d.graph.outputs = vec![last];
        let n = d.graph.tensors[0].elements();
        let input = if dtype == DType::F32 { r.floats(n) } else { r.bytes(n) };
        let model = Arc::new(Model { subgraphs: vec![d.graph], ..Model::default() });
        let alone = run(&model, &input, Options { keep_all: true, ..Options::default() });
        let together = run(&model, &input, Options::default());
        assert!(together == alone, "round {round}: {h}x{w}x{c}, pads {pads:?}, filter {shape:?}");
        // The padded image is never there, unless another device wants it.
        let mut exec = Executor::new(model.clone(), Options::default()).unwrap();
        exec.write(0, 0, &model.subgraphs[0].tensors[0].shape).unwrap().bytes_mut().copy_from_slice(&input);
        exec.run(0).unwrap();
        folded += (exec.bytes() > 0 && exec.get(0, padded).is_err()) as usize;
        exec.keep(0, &[padded]).unwrap();
        exec.run(0).unwrap();
        assert!(exec.get(0, padded).is_ok());
        assert_eq!(exec.get(0, last).unwrap().bytes, &alone[0][..]);
    }
    assert!(folded > 60, "{folded}");
}
