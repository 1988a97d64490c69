//! CALL and composites: the subgraphs that they stand for, in their place.

mod common;
use common::*;
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Node, Op, Tensor, TensorId};

/// A subgraph under construction: inputs, then operators with one float result each.
struct Body(Case);

impl Body {
    fn new(inputs: usize) -> Body {
        let mut c = Case::new("body", FLOAT);
        for _ in 0..inputs {
            let t = c.input(DType::F32, &[], 0.0, 1.0);
            // Of any rank.
            c.graph().tensors[t].has_rank = false;
        }
        Body(c)
    }

    fn op(&mut self, op: Op, inputs: &[TensorId]) -> TensorId {
        self.0.op(op, inputs, DType::F32, None)
    }

    /// Makes it subgraph 1 or later of `c`, with these outputs; its number.
    fn add_to(mut self, c: &mut Case, outputs: &[TensorId]) -> usize {
        self.0.graph().outputs = outputs.to_vec();
        c.model.subgraphs.append(&mut self.0.model.subgraphs);
        c.model.subgraphs.len() - 1
    }
}

fn composite(name: &str, body: usize) -> Op {
    Op::StablehloComposite(StableHLOCompositeOptionsT {
        name: Some(name.into()),
        decomposition_subgraph_index: body as i32,
        ..Default::default()
    })
}

/// x * w + b by a body whose weights are operands; twice, with other weights the second time.
#[test]
fn given_constants_are_not_kept() {
    let mut c = Case::new("two calls", Tolerance::Float { abs: 1e-5, rel: 1e-5 });
    let mut body = Body::new(2);
    let y = body.op(Op::FullyConnected(FullyConnectedOptionsT::default()), &[0, 1]);
    let y = body.op(Op::Relu, &[y]);
    let body = body.add_to(&mut c, &[y]);
    let mut x = c.input(DType::F32, &[3, 10], -1.0, 1.0);
    for _ in 0..2 {
        let w = c.weights(DType::F32, &[10, 10], -1.0, 1.0, None);
        x = c.op(Op::Call(CallOptionsT { subgraph: body as u32 }), &[x, w], DType::F32, None);
    }
    c.run();
}

/// Several results, of which one is an operand as it came; and what follows reads them.
#[test]
fn results() {
    let mut c = Case::new("results", FLOAT);
    let mut body = Body::new(2);
    let sum = body.op(Op::Add(AddOptionsT::default()), &[0, 1]);
    let neg = body.op(Op::Neg, &[sum]);
    let number = body.add_to(&mut c, &[neg, 1, sum]);
    let a = c.input(DType::F32, &[2, 5, 7], -1.0, 1.0);
    let b = c.input(DType::F32, &[2, 5, 7], -1.0, 1.0);
    let out = c.ops(composite("three", number), &[a, b], &[DType::F32; 3], None);
    c.op(Op::Mul(MulOptionsT::default()), &[out[0], out[2]], DType::F32, None);
    c.run();
}

/// A body that stands for another one.
#[test]
fn nested() {
    let mut c = Case::new("nested", Tolerance::Float { abs: 1e-6, rel: 1e-5 });
    let mut inner = Body::new(1);
    let y = inner.op(Op::Softmax(SoftmaxOptionsT { beta: 1.0 }), &[0]);
    let inner = inner.add_to(&mut c, &[y]);
    let mut outer = Body::new(1);
    let y = outer.op(composite("inner", inner), &[0]);
    let y = outer.op(Op::Square, &[y]);
    let outer = outer.add_to(&mut c, &[y]);
    let x = c.input(DType::F32, &[4, 9], -3.0, 3.0);
    c.op(composite("outer", outer), &[x], DType::F32, None);
    c.run();
}

/// A subgraph that calls itself has no shapes, and takes no time.
#[test]
fn endless() {
    let mut c = Case::new("endless", FLOAT);
    let x = c.input(DType::F32, &[4], -1.0, 1.0);
    let mut body = Body::new(1);
    let y = body.op(composite("itself", 1), &[0]);
    let z = body.op(composite("itself", 1), &[y]);
    let body = body.add_to(&mut c, &[z]);
    let out = c.op(composite("itself", body), &[x], DType::F32, None);
    let shapes = infer(&mut c.model).unwrap();
    assert_eq!(shapes.get(out), None);
    let Some(engine) = engine(Config::F32) else { return };
    let plan = gpu_plan(&c.model, &shapes, engine.caps(), &Default::default()).unwrap();
    assert_eq!(plan.counts().0, 0);
}

/// A body with an operator that has no GPU kernel stays on the CPU as a whole, and its reason names the operator.
#[test]
fn reasons() {
    let mut c = Case::new("reasons", FLOAT);
    let mut body = Body::new(1);
    let y = body.op(Op::Relu, &[0]);
    let number = body.0.graph().tensors.len();
    body.0.graph().tensors.push(Tensor::new("counts", DType::I32, &[]));
    body.0.graph().tensors.push(Tensor::new("values", DType::F32, &[]));
    body.0.graph().nodes.push(Node::new(Op::Unique(UniqueOptionsT::default()), &[y], &[number + 1, number]));
    let body = body.add_to(&mut c, &[y]);
    let x = c.input(DType::F32, &[6], -1.0, 1.0);
    c.op(composite("unique", body), &[x], DType::F32, None);
    let shapes = infer(&mut c.model).unwrap();
    let Some(engine) = engine(Config::F32) else { return };
    let plan = gpu_plan(&c.model, &shapes, engine.caps(), &Default::default()).unwrap();
    let reason = &plan.placements[0].reason;
    assert!(reason.contains("UNIQUE in subgraph 1"), "{reason}");
}

/// A flexbuffer with one float under a key.
fn attributes(key: &str, value: f32) -> Vec<u8> {
    let mut b: Vec<u8> = key.bytes().chain([0, 1]).collect();
    // The vector of keys: its one element is the way back to the key.
    let keys = b.len();
    b.push(keys as u8);
    b.resize(b.len().next_multiple_of(4), 0);
    b.extend((b.len() as u32 - keys as u32).to_le_bytes());
    b.extend([1u32, 1].iter().flat_map(|v| v.to_le_bytes()));
    let map = b.len();
    b.extend(value.to_le_bytes());
    b.push(3 << 2 | 2);
    let root = b.len();
    b.extend([(root - map) as u8, 9 << 2 | 2, 1]);
    b
}

fn with(op: Op, bytes: Vec<u8>) -> Op {
    match op {
        Op::StablehloComposite(o) => {
            Op::StablehloComposite(StableHLOCompositeOptionsT { composite_attributes: Some(bytes), ..o })
        }
        op => op,
    }
}

/// Runs the case, and says whether that kernel is in its plan.
fn run_with(mut c: Case, kernel: &str) -> bool {
    let shapes = infer(&mut c.model).unwrap();
    let Some(engine) = engine(Config::F32) else { return true };
    let plan = gpu_plan(&c.model, &shapes, engine.caps(), &Default::default()).unwrap();
    let found = plan.programs().flat_map(|p| &p.kernels).any(|k| k.kernel == kernel);
    c.run();
    found
}

/// A normalization whose subgraph adds `stated`, with the attribute 1e-3.
fn rms(shape: &[usize], stated: f32, scaled: bool) -> bool {
    let mut c = Case::new(format!("rms {shape:?} {stated}"), Tolerance::Float { abs: 1e-6, rel: 2e-5 });
    let mut body = Body::new(if scaled { 2 } else { 1 });
    let axis = body.0.i32s(&[shape.len() as i32 - 1]);
    let epsilon = body.0.f32s_of(&[], &[stated]);
    let square = body.op(Op::Mul(MulOptionsT::default()), &[0, 0]);
    let mean = body.op(Op::Mean(ReducerOptionsT { keep_dims: true }), &[square, axis]);
    let sum = body.op(Op::Add(AddOptionsT::default()), &[mean, epsilon]);
    let root = body.op(Op::Rsqrt, &[sum]);
    let mut y = body.op(Op::Mul(MulOptionsT::default()), &[0, root]);
    if scaled {
        y = body.op(Op::Mul(MulOptionsT::default()), &[y, 1]);
    }
    let body = body.add_to(&mut c, &[y]);
    let x = c.input(DType::F32, shape, -2.0, 2.0);
    let w = c.weights(DType::F32, &shape[shape.len() - 1..], -1.0, 1.0, None);
    let operands = if scaled { vec![x, w] } else { vec![x] };
    c.op(with(composite("odml.rms_norm", body), attributes("epsilon", 1e-3)), &operands, DType::F32, None);
    run_with(c, "rms")
}

#[test]
fn rms_norm() {
    for shape in [&[1usize, 7][..], &[3, 5, 8], &[2, 301], &[70, 17], &[1, 1, 4099]] {
        assert!(rms(shape, 1e-3, true), "{shape:?}");
        assert!(rms(shape, 1e-3, false), "{shape:?}");
    }
    // The subgraph is what counts.
    assert!(!rms(&[3, 8], 0.5, true));
}

/// Attention whose subgraph multiplies queries by 0.3, of `t` queries and `s` keys.
fn attention([b, t, s, n, h, width]: [usize; 6], mask: Option<[usize; 4]>, extra: bool) -> bool {
    let name = format!("attention {b} {t} {s} {n} {h} {width} {mask:?} {extra}");
    let mut c = Case::new(name, Tolerance::Float { abs: 1e-5, rel: 2e-5 });
    let mut body = Body::new(if mask.is_some() { 4 } else { 3 });
    let (scale, order) = (body.0.f32s_of(&[], &[0.3]), body.0.i32s(&[0, 2, 1, 3]));
    let q = body.op(Op::Mul(MulOptionsT::default()), &[0, scale]);
    let turned = [q, 1, 2].map(|x| body.op(Op::Transpose, &[x, order]));
    let by = |adj_y| Op::BatchMatmul(BatchMatMulOptionsT { adj_y, ..Default::default() });
    let mut x = body.op(by(true), &turned[..2]);
    if mask.is_some() {
        x = body.op(Op::Add(AddOptionsT::default()), &[x, 3]);
    }
    if extra {
        x = body.op(Op::Tanh, &[x]);
    }
    let x = body.op(Op::Softmax(SoftmaxOptionsT { beta: 1.0 }), &[x]);
    let x = body.op(by(false), &[x, turned[2]]);
    let y = body.op(Op::Transpose, &[x, order]);
    let body = body.add_to(&mut c, &[y]);
    let mut operands = vec![
        c.input(DType::F32, &[b, t, n, h], -1.0, 1.0),
        c.input(DType::F32, &[b, s, n, h], -1.0, 1.0),
        c.input(DType::F32, &[b, s, n, width], -1.0, 1.0),
    ];
    operands.extend(mask.map(|m| c.input(DType::F32, &m, -9.0, 0.0)));
    c.op(composite("odml.scaled_dot_product_attention", body), &operands, DType::F32, None);
    run_with(c, "attention")
}

/// Queries around the four of a workgroup, keys around its block of 32, heads wider than its invocations.
#[test]
fn attention_without_scores() {
    for (sizes, mask) in [
        ([1, 1, 5, 1, 8, 8], None),
        ([1, 4, 32, 2, 5, 7], None),
        ([2, 5, 33, 3, 12, 9], Some([2, 3, 5, 33])),
        ([1, 9, 70, 2, 16, 140], Some([1, 1, 9, 70])),
        ([2, 3, 31, 4, 64, 64], Some([2, 1, 1, 31])),
    ] {
        assert!(attention(sizes, mask, false), "{sizes:?}");
    }
    // A subgraph that does something else, and one whose order of keys and heads cannot be told.
    assert!(!attention([1, 4, 8, 2, 8, 8], None, true));
    assert!(!attention([1, 3, 3, 3, 8, 8], None, false));
}
