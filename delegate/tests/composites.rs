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

/// Runs the case, and says whether that kernel is in a GPU's plan; `half`: with floats in 16 bits where it is not, too.
fn run_with(mut c: Case, kernel: &str, half: bool) -> bool {
    let shapes = infer(&mut c.model).unwrap();
    let Some(engine) = engine(Config::Gpu) else { return true };
    let plan = gpu_plan(&c.model, &shapes, engine.caps(), &Default::default()).unwrap();
    let found = plan.programs().flat_map(|p| &p.kernels).any(|k| k.kernel == kernel);
    let more = [Config::Gpu, Config::GpuHalf];
    let configs =
        CONFIGS.into_iter().chain(more).filter(|&c| half || !matches!(c, Config::F16Native | Config::F16Packed));
    c.run_in(&configs.filter(|&c| c != Config::GpuHalf || found).collect::<Vec<_>>());
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
    run_with(c, "rms", true)
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
    // Elsewhere scores are kept: 16 bits of them are less than the tolerance allows.
    run_with(c, "attention", false)
}

/// Queries around the four of a workgroup, keys around its block of 32, heads wider than its invocations.
#[test]
fn attention_without_scores() {
    for (sizes, mask) in [
        ([1, 2, 5, 1, 8, 8], None),
        ([1, 4, 32, 2, 5, 7], None),
        ([2, 5, 33, 3, 12, 9], Some([2, 3, 5, 33])),
        ([1, 9, 70, 2, 16, 140], Some([1, 1, 9, 70])),
        ([2, 3, 31, 4, 64, 64], Some([2, 1, 1, 31])),
    ] {
        assert!(attention(sizes, mask, false), "{sizes:?}");
    }
    // A subgraph that does something else, and one whose order of keys and heads only its own operators tell.
    assert!(!attention([1, 4, 8, 2, 8, 8], None, true));
    assert!(attention([1, 4, 4, 4, 8, 8], None, false));
}

/// How a file may spell a normalization out.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Spelled {
    /// (x - mean) * rsqrt(variance), times a factor, and an offset.
    Product,
    /// (x - mean) / sqrt(variance).
    Quotient,
    /// x * s + (offset - mean * s) with s = rsqrt(variance) * factor.
    Shifted,
    /// x * rsqrt(mean of squares).
    Rms,
}

/// Adds the operators; the result.
fn spell(c: &mut Case, how: Spelled, x: TensorId, axes: &[i32], channels: usize, extra: bool) -> TensorId {
    let mul = || Op::Mul(MulOptionsT::default());
    let sub = || Op::Sub(SubOptionsT::default());
    let add = || Op::Add(AddOptionsT::default());
    let axes = c.i32s(axes);
    let epsilon = c.f32s_of(&[], &[1e-3]);
    let mean = |c: &mut Case, x| c.op(Op::Mean(ReducerOptionsT { keep_dims: true }), &[x, axes], DType::F32, None);
    let m = mean(c, x);
    let less = c.op(sub(), &[x, m], DType::F32, None);
    let squares = match how {
        Spelled::Product => c.op(mul(), &[less, less], DType::F32, None),
        Spelled::Quotient => c.op(Op::Square, &[less], DType::F32, None),
        Spelled::Shifted => c.op(Op::SquaredDifference, &[x, m], DType::F32, None),
        Spelled::Rms => c.op(mul(), &[x, x], DType::F32, None),
    };
    let mut v = mean(c, squares);
    if extra {
        v = c.op(Op::Abs, &[v], DType::F32, None);
    }
    let v = c.op(add(), &[v, epsilon], DType::F32, None);
    let factor = c.weights(DType::F32, &[channels], 0.5, 1.5, None);
    let offset = c.weights(DType::F32, &[channels], -1.0, 1.0, None);
    match how {
        Spelled::Product => {
            let r = c.op(Op::Rsqrt, &[v], DType::F32, None);
            let y = c.op(mul(), &[r, less], DType::F32, None);
            let y = c.op(mul(), &[y, factor], DType::F32, None);
            c.op(add(), &[y, offset], DType::F32, None)
        }
        Spelled::Quotient => {
            let r = c.op(Op::Sqrt, &[v], DType::F32, None);
            c.op(Op::Div(DivOptionsT::default()), &[less, r], DType::F32, None)
        }
        Spelled::Shifted => {
            let r = c.op(Op::Rsqrt, &[v], DType::F32, None);
            let s = c.op(mul(), &[r, factor], DType::F32, None);
            let y = c.op(mul(), &[x, s], DType::F32, None);
            let taken = c.op(mul(), &[m, s], DType::F32, None);
            let rest = c.op(sub(), &[offset, taken], DType::F32, None);
            c.op(add(), &[y, rest], DType::F32, None)
        }
        Spelled::Rms => {
            let r = c.op(Op::Rsqrt, &[v], DType::F32, None);
            c.op(mul(), &[x, r], DType::F32, None)
        }
    }
}

/// The dispatches of the plan with everything fused, and whether the case comes out right.
fn dispatches(c: Case, last: TensorId) -> usize {
    dispatches_in(c, last, Config::F32)
}

fn dispatches_in(mut c: Case, last: TensorId, config: Config) -> usize {
    c.graph().outputs = vec![last];
    let shapes = infer(&mut c.model).unwrap();
    let Some(engine) = engine(config) else { return 1 };
    let options = litegpu_delegate::PlanOptions { force_gpu: true, ..Default::default() };
    let plan = gpu_plan(&c.model, &shapes, engine.caps(), &options).unwrap();
    let count = plan.programs().map(|p| p.dispatches.len()).sum();
    // What is kept in 16 bits between operators loses, in the difference to a mean, more than a tolerance can tell.
    match config {
        Config::F32 if count == 1 => c.run(),
        Config::F32 => c.run_in(&[Config::F32, Config::NoSubgroups]),
        other if count == 1 => c.run_in(&[other, Config::GpuHalf]),
        other => c.run_in(&[other]),
    }
    count
}

/// Along the innermost axis, over all of an image, over groups of channels and of every position; and with something
/// between that no kernel knows.
#[test]
fn normalizations_that_are_spelled_out() {
    let tolerance = Tolerance::Float { abs: 2e-6, rel: 4e-5 };
    let all = [Spelled::Product, Spelled::Quotient, Spelled::Shifted, Spelled::Rms];
    for how in all {
        for (shape, axes) in [
            (&[3usize, 7][..], &[1][..]),
            (&[2, 5, 301], &[-1]),
            (&[1, 6, 5, 9], &[1, 2, 3]),
            (&[2, 9, 4, 8], &[1, 3]),
            (&[1, 1, 4099], &[2]),
        ] {
            // Something between that belongs to no normalization: once is enough.
            for extra in [false, true].into_iter().take(1 + usize::from(shape.len() == 2)) {
                let mut c = Case::new(format!("{how:?} {shape:?} {axes:?} {extra}"), tolerance);
                let x = c.input(DType::F32, shape, -2.0, 3.0);
                let y = spell(&mut c, how, x, axes, shape[shape.len() - 1], extra);
                let count = dispatches(c, y);
                assert_eq!(count == 1, !extra, "{how:?} {shape:?} {axes:?}: {count} dispatches");
            }
        }
    }
}

#[test]
fn softmax_that_is_spelled_out() {
    for shape in [&[3usize, 5][..], &[2, 4, 130]] {
        let mut c = Case::new(format!("softmax {shape:?}"), Tolerance::Float { abs: 1e-6, rel: 2e-5 });
        let x = c.input(DType::F32, shape, -4.0, 4.0);
        let axes = c.i32s(&[shape.len() as i32 - 1]);
        let keep = ReducerOptionsT { keep_dims: true };
        let most = c.op(Op::ReduceMax(keep.clone()), &[x, axes], DType::F32, None);
        let less = c.op(Op::Sub(SubOptionsT::default()), &[x, most], DType::F32, None);
        let e = c.op(Op::Exp, &[less], DType::F32, None);
        let sum = c.op(Op::Sum(keep), &[e, axes], DType::F32, None);
        let y = c.op(Op::Div(DivOptionsT::default()), &[e, sum], DType::F32, None);
        assert_eq!(dispatches(c, y), 1);
    }
}

/// Group normalization of images with channels in the last place: x, factors and offsets are operands, and the subgraph
/// reshapes channels into groups. Of a subgraph that computes something else, that is the answer.
fn group_norm(groups: usize, channels: usize, wrong: bool) -> usize {
    let mut c = Case::new(format!("group norm {groups} {channels} {wrong}"), Tolerance::Float { abs: 2e-6, rel: 4e-5 });
    let (h, w, each) = (5, 3, channels / groups);
    let mut body = Body::new(3);
    let into = body.0.i32s(&[2, (h * w) as i32, groups as i32, each as i32]);
    let back = body.0.i32s(&[2, h as i32, w as i32, channels as i32]);
    let axes = body.0.i32s(&[1, 3]);
    let epsilon = body.0.f32s_of(&[], &[1e-3]);
    let reshape = || Op::Reshape(ReshapeOptionsT::default());
    let mean = || Op::Mean(ReducerOptionsT { keep_dims: true });
    let x = body.op(reshape(), &[0, into]);
    let m = body.op(mean(), &[x, axes]);
    let less = body.op(Op::Sub(SubOptionsT::default()), &[if wrong { m } else { x }, m]);
    let square = body.op(Op::Mul(MulOptionsT::default()), &[less, less]);
    let v = body.op(mean(), &[square, axes]);
    let v = body.op(Op::Add(AddOptionsT::default()), &[v, epsilon]);
    let r = body.op(Op::Rsqrt, &[v]);
    let y = body.op(Op::Mul(MulOptionsT::default()), &[if wrong { x } else { less }, r]);
    let y = body.op(reshape(), &[y, back]);
    let y = body.op(Op::Mul(MulOptionsT::default()), &[y, 1]);
    let y = body.op(Op::Add(AddOptionsT::default()), &[y, 2]);
    let body = body.add_to(&mut c, &[y]);
    let x = c.input(DType::F32, &[2, h, w, channels], -2.0, 2.0);
    let factor = c.weights(DType::F32, &[channels], 0.5, 1.5, None);
    let offset = c.weights(DType::F32, &[channels], -1.0, 1.0, None);
    let y = c.op(composite("odml.group_norm", body), &[x, factor, offset], DType::F32, None);
    dispatches(c, y)
}

#[test]
fn group_normalization() {
    for (groups, channels) in [(1, 8), (2, 8), (4, 64), (3, 12)] {
        assert_eq!(group_norm(groups, channels, false), 1, "{groups} of {channels}");
    }
    // Groups that end within a quad, and a subgraph that is none.
    assert!(group_norm(3, 18, false) > 1);
    assert!(group_norm(2, 8, true) > 1);
}

/// GELU by tanh, in elementary operators: a chain of few dispatches.
#[test]
fn gelu_that_is_spelled_out() {
    let mut c = Case::new("gelu", Tolerance::Float { abs: 2e-6, rel: 4e-5 });
    let mul = || Op::Mul(MulOptionsT::default());
    let add = || Op::Add(AddOptionsT::default());
    let x = c.input(DType::F32, &[3, 50], -3.0, 3.0);
    let [a, b, one, half] = [0.044715, 0.797_884_6, 1.0, 0.5].map(|v| c.f32s_of(&[], &[v]));
    let square = c.op(mul(), &[x, x], DType::F32, None);
    let cube = c.op(mul(), &[square, x], DType::F32, None);
    let t = c.op(mul(), &[cube, a], DType::F32, None);
    let t = c.op(add(), &[x, t], DType::F32, None);
    let t = c.op(mul(), &[t, b], DType::F32, None);
    let t = c.op(Op::Tanh, &[t], DType::F32, None);
    let t = c.op(add(), &[t, one], DType::F32, None);
    let h = c.op(mul(), &[x, half], DType::F32, None);
    let y = c.op(mul(), &[h, t], DType::F32, None);
    assert!(dispatches(c, y) <= 3);
}

/// How attention is spelled out.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Heads {
    /// Of operands [image, head, position, element]; the keys are an adjoint.
    Apart,
    /// Of [image, position, head, element], turned; the keys to columns.
    Turned,
    /// Of [image, position, heads and elements], regrouped and turned.
    Packed,
    /// Two heads of queries share keys and values, which broadcast.
    Shared,
    /// The same, with keys and values written out for each.
    Repeated,
    /// Of [position, element], by FULLY_CONNECTED and RESHAPE.
    One,
}

/// What hides scores: a number that is added, or a condition of that shape.
#[derive(Debug, Clone, Copy)]
enum Hides<'a> {
    Nothing,
    Added(&'a [usize]),
    Where(&'a [usize]),
}

/// Attention in elementary operators: whether it became one dispatch. `extra`: something that no kernel can leave out.
fn spelled_attention(
    heads: Heads,
    [b, t, s, n, h, width]: [usize; 6],
    mask: Hides<'_>,
    extra: bool,
    config: Config,
) -> bool {
    // Scores of up to 25, with what the order of their sums loses, go through an exponential.
    let close = Tolerance::Float { abs: 5e-5, rel: 5e-5 };
    let mut c = Case::new(format!("{heads:?} {b} {t} {s} {n} {h} {width} {mask:?} {extra}"), close);
    let turn = |c: &mut Case, x: TensorId, order: [i32; 4]| {
        let order = c.i32s(&order);
        c.op(Op::Transpose, &[x, order], DType::F32, None)
    };
    let product = |c: &mut Case, a: TensorId, b: TensorId, adj_y: bool| {
        let o = BatchMatMulOptionsT { adj_y, ..Default::default() };
        c.op(Op::BatchMatmul(o), &[a, b], DType::F32, None)
    };
    let shaped = |c: &mut Case, x: TensorId, shape: &[usize]| {
        let shape: Vec<i32> = shape.iter().map(|&n| n as i32).collect();
        let shape = c.i32s(&shape);
        c.op(Op::Reshape(Default::default()), &[x, shape], DType::F32, None)
    };
    let connected = |c: &mut Case, a: TensorId, b: TensorId| {
        c.op_of(Op::FullyConnected(Default::default()), &[Some(a), Some(b), None], 1);
        *c.graph().outputs.last().unwrap()
    };
    let shape = |rows: usize, columns: usize, heads_of: usize| match heads {
        Heads::Apart | Heads::Repeated => vec![b, heads_of, rows, columns],
        Heads::Turned => vec![b, rows, heads_of, columns],
        Heads::Packed => vec![b, rows, heads_of * columns],
        Heads::Shared => vec![b, n / 2, heads_of.div_ceil(n / 2), rows, columns],
        Heads::One => vec![rows, columns],
    };
    let few = if matches!(heads, Heads::Shared | Heads::Repeated) { n / 2 } else { n };
    let q = c.input(DType::F32, &shape(t, h, n), -2.0, 2.0);
    let k = c.input(DType::F32, &shape(s, h, few), -2.0, 2.0);
    let v = c.input(DType::F32, &shape(s, width, few), -2.0, 2.0);
    // Queries stand for keys and values too: [image, head, position, element].
    let apart = |c: &mut Case, x: TensorId, rows: usize, columns: usize| match heads {
        Heads::Turned => turn(c, x, [0, 2, 1, 3]),
        Heads::Packed => {
            let x = shaped(c, x, &[b, rows, n, columns]);
            turn(c, x, [0, 2, 1, 3])
        }
        Heads::Repeated if rows != t => {
            let x = shaped(c, x, &[b, n / 2, 1, rows, columns]);
            let to = c.i32s(&[b, n / 2, 2, rows, columns].map(|n| n as i32));
            let x = c.op(Op::BroadcastTo, &[x, to], DType::F32, None);
            shaped(c, x, &[b, n, rows, columns])
        }
        _ => x,
    };
    let q = apart(&mut c, q, t, h);
    let mut scores = match heads {
        Heads::One => connected(&mut c, q, k),
        Heads::Turned => {
            let k = turn(&mut c, k, [0, 2, 3, 1]);
            product(&mut c, q, k, false)
        }
        _ => {
            let k = apart(&mut c, k, s, h);
            product(&mut c, q, k, true)
        }
    };
    let (op, scale) = match heads {
        Heads::Packed => (Op::Div(Default::default()), 2.5),
        _ => (Op::Mul(Default::default()), 0.4),
    };
    let scale = c.f32s_of(&[], &[scale]);
    scores = c.op(op, &[scores, scale], DType::F32, None);
    match mask {
        Hides::Nothing => {}
        Hides::Added(shape) => {
            let mask = c.input(DType::F32, shape, -3.0, 3.0);
            scores = c.op(Op::Add(Default::default()), &[scores, mask], DType::F32, None);
        }
        Hides::Where(shape) => {
            let mask = c.input(DType::Bool, shape, 0.0, 1.0);
            let least = c.f32s_of(&[], &[-1e9]);
            scores = c.op(Op::SelectV2, &[mask, scores, least], DType::F32, None);
        }
    }
    if extra {
        scores = c.op(Op::Abs, &[scores], DType::F32, None);
    }
    if heads == Heads::One {
        scores = shaped(&mut c, scores, &[1, 1, t, s]);
    }
    let soft = c.op(Op::Softmax(SoftmaxOptionsT { beta: 1.0 }), &[scores], DType::F32, None);
    let last = match heads {
        Heads::One => {
            let order = c.i32s(&[1, 0]);
            let v = c.op(Op::Transpose, &[v, order], DType::F32, None);
            connected(&mut c, soft, v)
        }
        _ => {
            let v = apart(&mut c, v, s, width);
            product(&mut c, soft, v, false)
        }
    };
    let fused = is_one(&mut c, last, config, "attention");
    dispatches_in(c, last, config);
    fused
}

/// Whether the plan is one dispatch of that kernel.
fn is_one(c: &mut Case, last: TensorId, config: Config, kernel: &str) -> bool {
    c.graph().outputs = vec![last];
    let shapes = infer(&mut c.model).unwrap();
    let Some(engine) = engine(config) else { return true };
    let options = litegpu_delegate::PlanOptions { force_gpu: true, ..Default::default() };
    let plan = gpu_plan(&c.model, &shapes, engine.caps(), &options).unwrap();
    let found: Vec<&str> = plan.programs().flat_map(|p| &p.kernels).map(|k| k.kernel).collect();
    found == [kernel] && plan.programs().all(|p| p.dispatches.len() == 1)
}

#[test]
fn attention_that_is_spelled_out() {
    if engine(Config::F32).is_none() {
        return;
    }
    use Hides::*;
    for (heads, sizes, mask) in [
        (Heads::Apart, [2, 5, 7, 3, 6, 9], Nothing),
        (Heads::Apart, [2, 5, 7, 3, 8, 4], Added(&[2, 3, 5, 7])),
        (Heads::Apart, [1, 4, 70, 4, 16, 16], Added(&[1, 1, 1, 70])),
        (Heads::Apart, [2, 9, 33, 2, 5, 130], Added(&[2, 1, 1, 33])),
        (Heads::Apart, [2, 6, 35, 3, 5, 8], Where(&[6, 35])),
        (Heads::Turned, [2, 6, 11, 3, 8, 7], Added(&[6, 11])),
        (Heads::Turned, [1, 5, 6, 2, 9, 12], Where(&[1, 2, 1, 6])),
        (Heads::Packed, [2, 7, 9, 3, 8, 4], Nothing),
        (Heads::Packed, [1, 5, 40, 2, 12, 8], Added(&[40])),
        (Heads::Shared, [2, 5, 9, 6, 8, 6], Added(&[2, 3, 2, 5, 9])),
        (Heads::Repeated, [2, 5, 9, 4, 8, 12], Added(&[2, 1, 5, 9])),
        (Heads::One, [1, 9, 13, 1, 8, 6], Nothing),
    ] {
        assert!(spelled_attention(heads, sizes, mask, false, Config::Gpu), "{heads:?} {sizes:?}");
        assert!(!spelled_attention(heads, sizes, mask, true, Config::Gpu), "{heads:?} {sizes:?}");
    }
    // Elements of heads side by side are no whole quads: they are brought apart first.
    assert!(!spelled_attention(Heads::Packed, [1, 5, 9, 3, 6, 5], Nothing, false, Config::Gpu));
    // One query has no matrix of scores; on a CPU's adapter products are faster.
    assert!(!spelled_attention(Heads::Apart, [1, 1, 70, 4, 16, 16], Nothing, false, Config::Gpu));
    assert!(!spelled_attention(Heads::Apart, [1, 40, 70, 2, 16, 16], Nothing, false, Config::F32));
}
