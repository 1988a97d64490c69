//! What each pass does, shown as text. `BLESS=1 cargo test -p litegpu-graph --test passes` rewrites the fixtures.

mod common;

use litegpu_graph::schema::*;
use litegpu_graph::{DType, Graph, Model, Node, Op, Quant, Shape, Tensor, TensorId, passes, text, validate};

/// Compares with `tests/fixtures/<name>.txt`, or rewrites it.
fn fixture(name: &str, got: &str) {
    let path = format!("{}/tests/fixtures/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some_and(|b| b == "1") {
        std::fs::write(&path, got).unwrap();
        return;
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(got == want, "{path} differs (BLESS=1 rewrites it). Now:\n{got}");
}

/// The graph before and after a pass; both must be valid.
fn before_and_after(name: &str, mut g: Graph, pass: impl FnOnce(&mut Graph) -> String) -> Graph {
    let before = text::graph(&g);
    let said = pass(&mut g);
    let m = Model { version: 3, subgraphs: vec![g], ..Model::default() };
    validate::model(&m).unwrap();
    assert_eq!(Model::read(m.write().unwrap()).unwrap(), m);
    let g = m.subgraphs.into_iter().next().unwrap();
    fixture(name, &format!("before {before}\nafter {said}\n{}", text::graph(&g)));
    g
}

#[derive(Default)]
struct Build(Graph);

impl Build {
    fn tensor(&mut self, name: &str, dtype: DType, shape: &[usize]) -> TensorId {
        self.add(Tensor::new(name, dtype, shape))
    }
    fn add(&mut self, t: Tensor) -> TensorId {
        self.0.tensors.push(t);
        self.0.tensors.len() - 1
    }
    fn node(&mut self, op: Op, inputs: &[TensorId], output: TensorId) {
        self.0.nodes.push(Node::new(op, inputs, &[output]));
    }
    fn done(mut self, inputs: &[TensorId], outputs: &[TensorId]) -> Graph {
        (self.0.inputs, self.0.outputs) = (inputs.to_vec(), outputs.to_vec());
        self.0
    }
}

fn halves(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| half::f16::from_f32(i as f32 * 0.5).to_le_bytes()).collect()
}

fn conv(padding: Padding) -> Op {
    Op::Conv2d(Conv2DOptionsT { padding, stride_w: 1, stride_h: 1, ..Conv2DOptionsT::default() })
}

#[test]
fn fold_float16() {
    let mut b = Build::default();
    let x = b.tensor("x", DType::F32, &[1, 4, 4, 2]);
    let w = b.add(Tensor::constant("w16", DType::F16, &[2, 1, 1, 2], halves(4)));
    let c = b.add(Tensor::constant("b16", DType::F16, &[2], halves(2)));
    let k = b.add(Tensor::constant("k16", DType::F16, &[2], halves(2)));
    let [w32, c32, k32] =
        [("w", vec![2, 1, 1, 2]), ("b", vec![2]), ("k", vec![2])].map(|(n, s)| b.tensor(n, DType::F32, &s));
    for (from, to) in [(w, w32), (c, c32), (k, k32)] {
        b.node(Op::Dequantize, &[from], to);
    }
    let y = b.tensor("y", DType::F32, &[1, 4, 4, 2]);
    let z = b.tensor("z", DType::F32, &[1, 4, 4, 2]);
    let e = b.tensor("e", DType::F32, &[2]);
    b.node(conv(Padding::SAME), &[x, w32, c32], y);
    b.node(Op::Add(AddOptionsT::default()), &[y, k32], z);
    // EXP reads no float16 constant: its DEQUANTIZE stays.
    b.node(Op::Exp, &[k32], e);
    let g = before_and_after("fold_float16", b.done(&[x], &[z, e]), |g| {
        format!("{} dropped", passes::fold_float16::run(g, passes::fold_float16::accepts))
    });
    assert_eq!(g.nodes.iter().filter(|n| n.op == Op::Dequantize).count(), 1);
}

#[test]
fn fold_float16_keeps_outputs_and_computed() {
    let mut b = Build::default();
    let x = b.tensor("x", DType::F16, &[2]);
    let c = b.add(Tensor::constant("c16", DType::F16, &[2], halves(2)));
    let [x32, c32, y] = ["x32", "c", "y"].map(|n| b.tensor(n, DType::F32, &[2]));
    b.node(Op::Dequantize, &[x], x32);
    b.node(Op::Dequantize, &[c], c32);
    b.node(Op::Add(AddOptionsT::default()), &[x32, c32], y);
    let mut g = b.done(&[x], &[y, c32]);
    assert_eq!(passes::fold_float16::run(&mut g, passes::fold_float16::accepts), 0);
    assert_eq!(g.nodes[2].inputs, [Some(x32), Some(c)]);
}

/// Rows 0 and 2 of a 4x4 matrix, in blocks of 1x2, the block's inside being stored last.
fn block_sparse(dtype: DType, data: Vec<u8>) -> Tensor {
    let dense = |n: i32| DimensionMetadataT { dense_size: n, ..DimensionMetadataT::default() };
    let sparse = DimensionMetadataT {
        format: DimensionType::SPARSE_CSR,
        array_segments: SparseIndexVectorT::Int32Vector(Box::new(Int32VectorT { values: Some(vec![0, 1, 1, 3, 3]) })),
        array_indices: SparseIndexVectorT::Uint8Vector(Box::new(Uint8VectorT { values: Some(vec![1, 0, 1]) })),
        ..DimensionMetadataT::default()
    };
    let sparsity = SparsityParametersT {
        traversal_order: Some(vec![0, 1, 2]),
        block_map: Some(vec![1]),
        dim_metadata: Some(vec![dense(4), sparse, dense(2)]),
    };
    Tensor { sparsity: Some(Box::new(sparsity)), ..Tensor::constant("sparse", dtype, &[4, 4], data) }
}

#[test]
fn densify_values() {
    let want = [0, 0, 1, 2, 0, 0, 0, 0, 3, 4, 5, 6, 0, 0, 0, 0];
    let t = block_sparse(DType::I8, vec![1, 2, 3, 4, 5, 6]);
    assert_eq!(passes::densify::dense(&t).unwrap(), want);
    for (dtype, width) in [(DType::F16, 2), (DType::F32, 4)] {
        let wide = |v: &[u8]| v.iter().flat_map(|&b| std::iter::repeat_n(b, width)).collect::<Vec<u8>>();
        let t = block_sparse(dtype, wide(&[1, 2, 3, 4, 5, 6]));
        assert_eq!(passes::densify::dense(&t).unwrap(), wide(&want));
    }
    // Column-major storage.
    let mut t = block_sparse(DType::I8, vec![7, 8, 9]);
    let s = t.sparsity.as_mut().unwrap();
    (s.traversal_order, s.block_map) = (Some(vec![1, 0]), None);
    s.dim_metadata.as_mut().unwrap().truncate(2);
    assert_eq!(passes::densify::dense(&t).unwrap(), [0, 0, 8, 0, 7, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn densify_hostile() {
    let t = block_sparse(DType::I8, vec![1, 2, 3, 4, 5, 6]);
    let wrong = |change: &dyn Fn(&mut Tensor)| {
        let mut t = t.clone();
        change(&mut t);
        passes::densify::dense(&t).unwrap_err();
    };
    let dim = |t: &mut Tensor, i: usize, f: &dyn Fn(&mut DimensionMetadataT)| {
        f(&mut t.sparsity.as_mut().unwrap().dim_metadata.as_mut().unwrap()[i])
    };
    let ints = |v: &[i32]| SparseIndexVectorT::Int32Vector(Box::new(Int32VectorT { values: Some(v.to_vec()) }));
    wrong(&|t| t.data = Some(vec![1u8, 2, 3, 4, 5].into()));
    wrong(&|t| t.data = Some(vec![1u8; 8].into()));
    wrong(&|t| dim(t, 0, &|d| d.dense_size = 1_000_000_000));
    wrong(&|t| dim(t, 2, &|d| d.dense_size = 3));
    wrong(&|t| dim(t, 2, &|d| d.dense_size = 0));
    wrong(&|t| dim(t, 1, &|d| d.array_indices = ints(&[0, -1, 1])));
    wrong(&|t| dim(t, 1, &|d| d.array_indices = ints(&[0, 2, 1])));
    wrong(&|t| dim(t, 1, &|d| d.array_segments = ints(&[0, 3, 1, 3, 3])));
    wrong(&|t| dim(t, 1, &|d| d.array_segments = ints(&[0, 3])));
    wrong(&|t| dim(t, 1, &|d| d.array_segments = SparseIndexVectorT::NONE));
    wrong(&|t| t.shape = Shape::from_slice(&[1 << 20, 1 << 19]));
    wrong(&|t| t.dtype = DType::I4);
}

#[test]
fn densify() {
    let mut b = Build::default();
    let x = b.tensor("x", DType::I8, &[4, 4]);
    let s = b.add(block_sparse(DType::I8, vec![1, 2, 3, 4, 5, 6]));
    let d = b.tensor("dense", DType::I8, &[4, 4]);
    let y = b.tensor("y", DType::I8, &[4, 4]);
    for t in [x, s, d, y] {
        b.0.tensors[t].quant = Some(Quant::scalar(0.5, 0));
    }
    b.node(Op::Densify, &[s], d);
    b.node(Op::FullyConnected(FullyConnectedOptionsT::default()), &[x, d], y);
    before_and_after("densify", b.done(&[x], &[y]), |g| format!("{} dropped", passes::densify::run(g).unwrap()));
}

#[test]
fn dead_code_and_folding() {
    let mut b = Build::default();
    let x = b.tensor("x", DType::F32, &[2]);
    let c = b.add(Tensor::constant("c", DType::F32, &[2], [1f32.to_le_bytes(), 4f32.to_le_bytes()].concat()));
    let state = b.add(Tensor { is_variable: true, ..Tensor::new("state", DType::F32, &[2]) });
    let [root, sum, y, unused] = ["root", "sum", "y", "unused"].map(|n| b.tensor(n, DType::F32, &[2]));
    let stateful = b.tensor("stateful", DType::F32, &[2]);
    let add = || Op::Add(AddOptionsT::default());
    b.node(Op::Sqrt, &[c], root);
    b.node(add(), &[root, root], sum);
    b.node(add(), &[x, sum], y);
    b.node(Op::Exp, &[y], unused);
    // Reads a variable: may change it.
    b.node(Op::Svdf(SVDFOptionsT::default()), &[x, state], stateful);
    let g = before_and_after("constants", b.done(&[x], &[y]), |g| {
        let folded = passes::constants::fold(g, |g, n| {
            let n = &g.nodes[n];
            let read = |i: usize| {
                let d = g.operand(n, i).unwrap().data.as_ref().unwrap();
                d.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>()
            };
            let v: Vec<f32> = match n.op {
                Op::Sqrt => read(0).into_iter().map(f32::sqrt).collect(),
                _ => read(0).into_iter().zip(read(1)).map(|(a, b)| a + b).collect(),
            };
            let bytes = v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
            Some(vec![(Shape::from_slice(&[2]), bytes.into())])
        });
        format!("{folded} folded, {} dead", passes::constants::remove_dead(g, &[]))
    });
    assert_eq!(g.nodes.len(), 2);
}

#[test]
fn folding_refuses_wrong_answers() {
    let mut b = Build::default();
    let c = b.add(Tensor::constant("c", DType::F32, &[2], vec![0u8; 8]));
    let y = b.tensor("y", DType::F32, &[2]);
    b.node(Op::Sqrt, &[c], y);
    let mut g = b.done(&[], &[y]);
    for answer in [None, Some(vec![]), Some(vec![(Shape::from_slice(&[3]), vec![0u8; 8].into())])] {
        assert_eq!(passes::constants::fold(&mut g, |_, _| answer.clone()), 0);
    }
}

#[test]
fn pad_and_convolution() {
    let mut b = Build::default();
    let x = b.tensor("x", DType::F32, &[1, 4, 4, 2]);
    let ints = |v: &[i32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let pads = b.add(Tensor::constant("pads", DType::I32, &[4, 2], ints(&[0, 0, 0, 1, 2, 3, 0, 0])));
    let deep = b.add(Tensor::constant("deep", DType::I32, &[4, 2], ints(&[0, 0, 0, 1, 2, 3, 0, 1])));
    let w = b.add(Tensor::constant("w", DType::F32, &[2, 2, 2, 2], vec![0u8; 64]));
    let one = b.add(Tensor::constant("one", DType::F32, &[], 1f32.to_le_bytes().to_vec()));
    let zero = b.add(Tensor::constant("zero", DType::F32, &[], vec![0u8; 4]));
    let mut outputs = Vec::new();
    let cases: [(Op, &[TensorId], Padding); 5] = [
        (Op::Pad, &[pads], Padding::VALID),
        (Op::Pad, &[pads], Padding::SAME),
        (Op::Pad, &[deep], Padding::VALID),
        (Op::Padv2, &[pads, one], Padding::VALID),
        (Op::Padv2, &[pads, zero], Padding::VALID),
    ];
    for (i, (op, operands, padding)) in cases.into_iter().enumerate() {
        let p = b.tensor(&format!("padded {i}"), DType::F32, &[1, 5, 9, 2]);
        let y = b.tensor(&format!("y {i}"), DType::F32, &[1, 4, 8, 2]);
        b.node(op, &[&[x], operands].concat(), p);
        b.node(conv(padding), &[p, w], y);
        outputs.push(y);
    }
    let g = b.done(&[x], &outputs);
    let pair = |pad| passes::pad::PadConv { pad, conv: pad + 1, before: [0, 2], after: [1, 3] };
    assert_eq!(passes::pad::opportunities(&g), [pair(0), pair(8)]);
}

#[test]
fn simplify_and_compact() {
    let mut m = common::everything();
    m.subgraphs[0].tensors.insert(3, Tensor::new("nobody", DType::F32, &[1]));
    // Everything behind the insertion has moved by one.
    let up = |t: &mut TensorId| *t += usize::from(*t >= 3);
    let g = &mut m.subgraphs[0];
    for n in &mut g.nodes {
        n.inputs.iter_mut().chain(&mut n.intermediates).flatten().chain(&mut n.outputs).for_each(up);
    }
    g.inputs.iter_mut().chain(&mut g.outputs).for_each(up);
    for t in &mut g.tensors {
        if let Some(b) = t.quant.as_mut().and_then(|q| q.blockwise.as_mut()) {
            up(&mut b.scales);
        }
    }
    for s in m.signatures.iter_mut().filter(|s| s.subgraph == 0) {
        s.inputs.iter_mut().chain(&mut s.outputs).for_each(|(_, t)| up(t));
    }
    m.write().unwrap();
    assert_eq!(passes::compact::run(&mut m), 1);
    assert_eq!(m, common::everything());
    passes::simplify(&mut m, passes::fold_float16::accepts).unwrap();
    passes::compact::run(&mut m);
    m.metadata.clear();
    m.appended = bytes::Bytes::new();
    assert_eq!(Model::read(m.write().unwrap()).unwrap(), m);
    fixture("everything", &format!("{}\nsimplified {}", text::model(&common::everything()), text::model(&m)));
}

/// Every real model survives all passes, and float16 models lose every DEQUANTIZE before a convolution.
#[test]
fn shared_files() {
    common::each_file(|name, bytes| {
        let mut m = Model::read(bytes).unwrap();
        assert!(!text::model(&m).is_empty());
        passes::simplify(&mut m, passes::fold_float16::accepts).unwrap_or_else(|e| panic!("{name}: {e}"));
        passes::compact::run(&mut m);
        validate::model(&m).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(Model::read(m.write().unwrap()).unwrap() == m, "{name}");
        if name.starts_with("ptq/") && name.contains("fp16") && !name.contains("lstm") {
            assert!(m.subgraphs.iter().all(|g| g.nodes.iter().all(|n| n.op != Op::Dequantize)), "{name}");
        }
        for g in &m.subgraphs {
            for p in passes::pad::opportunities(g) {
                assert!(p.pad < p.conv, "{name}");
            }
        }
    });
}
