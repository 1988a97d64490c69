//! Plans without any adapter: what goes where, in which order, with which reasons.

mod common;
use common::{Case, Tolerance, gpu_plan, infer};
use litegpu_delegate::{AdapterClass, Caps, Device, Plan, PlanOptions, Precision, Step};
use litegpu_graph::schema::{Conv2DOptionsT, FakeQuantOptionsT, FullyConnectedOptionsT};
use litegpu_graph::{DType, Model, Op};

/// NEG, an operator that only the CPU has, NEG; and EXP of the input beside them.
fn model() -> Model {
    let mut c = Case::new("sandwich", Tolerance::Exact);
    let x = c.input(DType::F32, &[4, 8], -1.0, 1.0);
    let a = c.op(Op::Neg, &[x], DType::F32, None);
    let fake = FakeQuantOptionsT { min: -1.0, max: 1.0, num_bits: 8, narrow_range: false };
    let b = c.op(Op::FakeQuant(fake), &[a], DType::F32, None);
    c.op(Op::Neg, &[b], DType::F32, None);
    c.op(Op::Exp, &[x], DType::F32, None);
    c.model.subgraphs[0].outputs.remove(0);
    c.model.subgraphs[0].outputs.remove(0);
    c.model
}

fn planned(options: &PlanOptions) -> Plan {
    let mut m = model();
    let shapes = infer(&mut m).unwrap();
    gpu_plan(&m, &shapes, &Caps::baseline(), options).unwrap()
}

fn kinds(p: &Plan) -> String {
    let one = |s: &Step| match s {
        Step::Gpu(p) => format!("gpu{:?}", p.nodes),
        Step::Cpu(n) => format!("cpu{n:?}"),
    };
    p.steps.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn forced_to_the_gpu() {
    let p = planned(&PlanOptions { force_gpu: true, ..PlanOptions::default() });
    assert_eq!(kinds(&p), "gpu[0, 3] cpu[1] gpu[2]");
    assert_eq!(p.crossings, 2);
    assert_eq!(p.placements[1].reason, "no GPU kernel");
    assert!(p.placements[0].reason.is_empty());
}

#[test]
fn small_parts_go_back() {
    let p = planned(&PlanOptions { prefer_gpu: false, ..PlanOptions::default() });
    assert_eq!(kinds(&p), "cpu[0, 1, 2, 3]");
    assert!(p.placements[0].reason.starts_with("too small a part"), "{}", p.placements[0].reason);
    let p = planned(&PlanOptions::default());
    assert_eq!(p.programs().count(), 1, "{}", kinds(&p));
}

#[test]
fn budget_and_cpu() {
    let p = planned(&PlanOptions { force_gpu: true, memory_budget: Some(100), ..PlanOptions::default() });
    assert_eq!(kinds(&p), "cpu[0, 1, 2, 3]");
    assert!(p.placements[0].reason.contains("budget"));
    let p = planned(&PlanOptions { force_cpu: true, ..PlanOptions::default() });
    assert!(p.placements.iter().all(|p| p.device == Device::Cpu));
}

/// A clamp after a product becomes the product's own limits: no other pipeline than the product's without it.
#[test]
fn clamps_join_the_limits_of_products() {
    let plan = |tail: Option<Op>| {
        let mut c = Case::new("clamped", Tolerance::Exact);
        let x = c.input(DType::F32, &[16, 8], -1.0, 1.0);
        let w = c.weights(DType::F32, &[12, 8], -1.0, 1.0, None);
        let y = c.op(Op::FullyConnected(Default::default()), &[x, w], DType::F32, None);
        if let Some(op) = tail {
            c.op(op, &[y], DType::F32, None);
            c.model.subgraphs[0].outputs.remove(0);
        }
        let shapes = infer(&mut c.model).unwrap();
        let options = PlanOptions { force_gpu: true, ..PlanOptions::default() };
        let p = gpu_plan(&c.model, &shapes, &Caps::baseline(), &options).unwrap();
        p.programs().next().unwrap().clone()
    };
    let plain = plan(None);
    for (op, high) in [(Op::Relu, f32::INFINITY), (Op::Relu6, 6.0)] {
        let p = plan(Some(op));
        assert_eq!(p.kernels, plain.kernels);
        let d = &p.dispatches[0];
        let at = d.limits.unwrap();
        assert_eq!(d.params[at..at + 2], [0.0f32.to_bits(), high.to_bits()]);
    }
    assert_ne!(plan(Some(Op::Tanh)).kernels, plain.kernels);
}

/// The residual of a block that widens: channels padded with zeros, added to the block's result. No copy is made.
#[test]
fn appended_zeros_are_not_copied() {
    let mut c = residual();
    let shapes = infer(&mut c.model).unwrap();
    let options = PlanOptions { force_gpu: true, ..PlanOptions::default() };
    let p = gpu_plan(&c.model, &shapes, &Caps::baseline(), &options).unwrap();
    let program = p.programs().next().unwrap();
    assert_eq!(program.dispatches.len(), 1, "{:?}", program.kernels);
}

fn residual() -> Case {
    let mut c = Case::new("residual", Tolerance::Float { abs: 1e-5, rel: 1e-5 });
    let x = c.input(DType::F32, &[1, 5, 3, 8], -1.0, 1.0);
    let pads = c.i32s_of(&[4, 2], &[0, 0, 0, 0, 0, 0, 0, 5]);
    let wide = c.op(Op::Pad, &[x, pads], DType::F32, None);
    let w = c.weights(DType::F32, &[13, 1, 1, 8], -1.0, 1.0, None);
    let one_by_one = Conv2DOptionsT { stride_w: 1, stride_h: 1, ..Default::default() };
    let y = c.op(Op::Conv2d(one_by_one), &[x, w], DType::F32, None);
    let sum = c.op(Op::Add(Default::default()), &[y, wide], DType::F32, None);
    c.op(Op::Relu, &[sum], DType::F32, None);
    c.model.subgraphs[0].outputs.drain(..3);
    c
}

#[test]
fn appended_zeros_are_not_copied_and_count() {
    residual().run();
}

#[test]
fn element_wise_chains_are_one_dispatch() {
    let mut c = Case::new("chain", Tolerance::Exact);
    let x = c.input(DType::F32, &[4, 6], -1.0, 1.0);
    let a = c.op(Op::Neg, &[x], DType::F32, None);
    let b = c.op(Op::Exp, &[a], DType::F32, None);
    let k = c.weights(DType::F32, &[6], -1.0, 1.0, None);
    let s = c.op(Op::Mul(Default::default()), &[b, k], DType::F32, None);
    c.op(Op::Add(Default::default()), &[s, x], DType::F32, None);
    c.model.subgraphs[0].outputs.drain(..3);
    let shapes = infer(&mut c.model).unwrap();
    let options = PlanOptions { force_gpu: true, ..PlanOptions::default() };
    let p = gpu_plan(&c.model, &shapes, &Caps::baseline(), &options).unwrap();
    let program = p.programs().next().unwrap();
    assert_eq!(program.dispatches.len(), 1, "{:?}", program.kernels);
}

/// The kernels of a network's only part, on an adapter of that class.
fn kernels(c: Case, class: AdapterClass) -> Vec<String> {
    let mut m = c.model;
    let shapes = infer(&mut m).unwrap();
    let caps = Caps { class, ..Caps::baseline() };
    let options = PlanOptions { force_gpu: true, precision: Precision::F32, ..PlanOptions::default() };
    let plan = gpu_plan(&m, &shapes, &caps, &options).unwrap();
    let mut labels: Vec<String> = plan.programs().flat_map(|p| p.kernels.iter().map(|k| k.label())).collect();
    labels.sort();
    labels
}

#[test]
fn hard_swish_is_no_other_kernel() {
    let mut c = Case::new("swish", Tolerance::Exact);
    let mut x = c.input(DType::F32, &[1, 8, 8, 8], -1.0, 1.0);
    for activation in [None, Some(Op::HardSwish), Some(Op::Relu6), Some(Op::Tanh)] {
        let w = c.weights(DType::F32, &[8, 3, 3, 8], -1.0, 1.0, None);
        let b = c.weights(DType::F32, &[8], -1.0, 1.0, None);
        let o = Conv2DOptionsT { stride_w: 1, stride_h: 1, ..Default::default() };
        x = c.op(Op::Conv2d(o), &[x, w, b], DType::F32, None);
        if let Some(op) = activation {
            x = c.op(op, &[x], DType::F32, None);
        }
    }
    c.graph().outputs = vec![x];
    assert_eq!(kernels(c, AdapterClass::Discrete), ["conv_f32_f32_f32", "conv_f32_f32_f32+f_tanh"]);
}

/// A product with and one without LOGISTIC, and a LOGISTIC of its own: where compiling is slow, two kernels do for all.
#[test]
fn slow_compilers_get_fewer_kernels() {
    let network = |rows: usize, width: usize| {
        let mut c = Case::new("fewer", Tolerance::Exact);
        let x = c.input(DType::F32, &[rows, width], -1.0, 1.0);
        c.op(Op::Logistic, &[x], DType::F32, None);
        let product = |c: &mut Case, x: usize| {
            let w = c.weights(DType::F32, &[width, width], -1.0, 1.0, None);
            let b = c.weights(DType::F32, &[width], -1.0, 1.0, None);
            let y = c.op(Op::FullyConnected(FullyConnectedOptionsT::default()), &[x, w, b], DType::F32, None);
            c.graph().outputs.retain(|&t| t != y);
            y
        };
        let y = product(&mut c, x);
        let y = c.op(Op::Logistic, &[y], DType::F32, None);
        let y = product(&mut c, y);
        c.graph().outputs.push(y);
        c
    };
    // Products that are too much work for a series.
    let unary = "unary_f32_f32_f32+f_logistic";
    let matvec = ["matvec_f32_f32_f32", "matvec_f32_f32_f32+f_logistic", unary];
    assert_eq!(kernels(network(1, 512), AdapterClass::Discrete), matvec);
    assert_eq!(kernels(network(1, 512), AdapterClass::Software), ["matvec_f32_f32_f32", unary]);
    // Where the separate pass is long, it is not worth it.
    let many = kernels(network(1 << 16, 16), AdapterClass::Software);
    assert!(many.contains(&"conv_f32_f32_f32+f_logistic".to_string()), "{many:?}");
}

/// Layers whose pixels have odd and even numbers of quads: where compiling is slow they share a kernel.
#[test]
fn slow_compilers_get_the_general_kernel() {
    let network = |size: usize| {
        let mut c = Case::new("general", Tolerance::Exact);
        let mut x = c.input(DType::F32, &[1, size, size, 4], -1.0, 1.0);
        for (from, to, k) in [(4, 8, 3), (8, 16, 1), (16, 4, 1), (4, 8, 1)] {
            let w = c.weights(DType::F32, &[to, k, k, from], -1.0, 1.0, None);
            let b = c.weights(DType::F32, &[to], -1.0, 1.0, None);
            let o = Conv2DOptionsT { stride_w: 1, stride_h: 1, ..Default::default() };
            x = c.op(Op::Conv2d(o), &[x, w, b], DType::F32, None);
        }
        c.graph().outputs = vec![x];
        c
    };
    assert_eq!(kernels(network(8), AdapterClass::Discrete).len(), 3);
    assert_eq!(kernels(network(8), AdapterClass::Software).len(), 1);
    // Much work is worth a kernel; that for odd numbers of quads does even ones by the same loads here.
    assert_eq!(kernels(network(1400), AdapterClass::Software).len(), 2);
}
