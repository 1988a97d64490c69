//! Loops and choices: what is carried, captured and handed over, whether the passes are counted or asked for.

mod common;
use common::*;
use litegpu_delegate::{Caps, Device, Flow, Passes, PlanOptions, Program};
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Model, Op, TensorId};

/// Arithmetic that only rounds differently: products of few elements.
const CLOSE: Tolerance = Tolerance::Float { abs: 1e-5, rel: 2e-5 };

/// A subgraph with inputs of these types and shapes.
fn body(inputs: &[(DType, &[usize])]) -> Case {
    let mut c = Case::new("body", FLOAT);
    for (dtype, shape) in inputs {
        c.input(*dtype, shape, 0.0, 1.0);
    }
    c.graph().outputs.clear();
    c
}

/// Makes it a subgraph of `c`, with these outputs; its number.
fn add_to(mut body: Case, c: &mut Case, outputs: &[TensorId]) -> i32 {
    body.graph().outputs = outputs.to_vec();
    c.model.subgraphs.append(&mut body.model.subgraphs);
    c.model.subgraphs.len() as i32 - 1
}

fn repeat(cond: i32, body: i32) -> Op {
    Op::While(WhileOptionsT { cond_subgraph_index: cond, body_subgraph_index: body })
}

fn choose(yes: i32, no: i32) -> Op {
    Op::If(IfOptionsT { then_subgraph_index: yes, else_subgraph_index: no })
}

fn plus() -> Op {
    Op::Add(AddOptionsT::default())
}

fn times() -> Op {
    Op::Mul(MulOptionsT::default())
}

type Port<'a> = (DType, &'a [usize]);
const INT: Port<'static> = (DType::I32, &[]);

/// A condition: the first of its inputs, a counter, is below `limit`.
fn below(c: &mut Case, inputs: &[Port<'_>], limit: i32) -> i32 {
    let mut cond = body(inputs);
    let limit = cond.i32s_of(&[], &[limit]);
    let less = cond.op(Op::Less, &[0, limit], DType::Bool, None);
    add_to(cond, c, &[less])
}

fn program(c: &mut Case) -> Program {
    let shapes = infer(&mut c.model).unwrap();
    let options = PlanOptions { force_gpu: true, ..PlanOptions::default() };
    let p = gpu_plan(&c.model, &shapes, &Caps::baseline(), &options).unwrap();
    let reasons: Vec<&str> = p.placements.iter().map(|p| p.reason.as_str()).collect();
    p.programs().next().unwrap_or_else(|| panic!("{reasons:?}")).clone()
}

fn passes(c: &mut Case) -> Vec<Passes> {
    let all = program(c).flows;
    let of = |f: Flow| match f {
        Flow::Loop { passes, .. } => Some(passes),
        Flow::Choice { .. } => None,
    };
    all.into_iter().filter_map(of).collect()
}

/// A convolution with captured weights, a captured tensor that is computed outside, a counter, and a sum that grows.
fn convolutions(limit: i32) -> Case {
    let mut c = Case::new(format!("{limit} convolutions"), CLOSE);
    let image: Port<'_> = (DType::F32, &[1, 6, 5, 8]);
    let weights: Port<'_> = (DType::F32, &[8, 3, 3, 8]);
    let ports = [INT, image, weights, image, image];
    let cond = below(&mut c, &ports, limit);
    let mut b = body(&ports);
    let one = b.i32s_of(&[], &[1]);
    let i = b.op(plus(), &[0, one], DType::I32, None);
    let conv = Conv2DOptionsT { stride_w: 1, stride_h: 1, padding: Padding::SAME, ..Default::default() };
    let y = b.op(Op::Conv2d(conv), &[1, 2], DType::F32, None);
    let y = b.op(Op::Tanh, &[y], DType::F32, None);
    let y = b.op(times(), &[y, 3], DType::F32, None);
    let sum = b.op(plus(), &[4, y], DType::F32, None);
    let b = add_to(b, &mut c, &[i, y, 2, 3, sum]);
    let x = c.input(DType::F32, &[1, 6, 5, 8], -1.0, 1.0);
    let scale = c.op(Op::Abs, &[x], DType::F32, None);
    let w = c.weights(DType::F32, &[8, 3, 3, 8], -0.2, 0.2, None);
    let zero = c.i32s_of(&[], &[0]);
    let start = c.weights(DType::F32, &[1, 6, 5, 8], -1.0, 1.0, None);
    let types = [DType::I32, DType::F32, DType::F32, DType::F32, DType::F32];
    let out = c.ops(repeat(cond, b), &[zero, x, w, scale, start], &types, None);
    // Nobody reads the weights again.
    c.graph().outputs.retain(|t| *t != out[2]);
    c.op(times(), &[out[1], out[4]], DType::F32, None);
    c
}

#[test]
fn loops_that_are_counted() {
    for limit in [0, 1, 3] {
        convolutions(limit).run();
        assert_eq!(passes(&mut convolutions(limit)), [Passes::Count(limit as u32)]);
    }
}

/// Two counters with steps, of which one ends the loop; the passes are many and small.
#[test]
fn loops_of_many_passes() {
    let build = || {
        let mut c = Case::new("many passes", Tolerance::Exact);
        let ports = [INT, INT, (DType::I32, &[7][..])];
        let mut cond = body(&ports);
        let (a, b) = (cond.i32s_of(&[], &[9000]), cond.i32s_of(&[], &[-1500]));
        let less = cond.op(Op::Less, &[0, a], DType::Bool, None);
        let more = cond.op(Op::GreaterEqual, &[1, b], DType::Bool, None);
        let both = cond.op(Op::LogicalAnd, &[less, more], DType::Bool, None);
        let cond = add_to(cond, &mut c, &[both]);
        let mut b = body(&ports);
        let (three, two) = (b.i32s_of(&[], &[3]), b.i32s_of(&[], &[2]));
        let i = b.op(plus(), &[0, three], DType::I32, None);
        let j = b.op(Op::Sub(SubOptionsT::default()), &[1, two], DType::I32, None);
        let x = b.op(plus(), &[2, j], DType::I32, None);
        let b = add_to(b, &mut c, &[i, j, x]);
        let x = c.input(DType::I32, &[7], -1000.0, 1000.0);
        let zero = c.i32s_of(&[], &[0]);
        c.ops(repeat(cond, b), &[zero, zero, x], &[DType::I32; 3], None);
        c
    };
    build().run_in(&[Config::F32]);
    assert_eq!(passes(&mut build()), [Passes::Count(751)]);
}

/// Until the largest element is beyond a limit: only the device can tell. Values change places in every pass.
fn until(start: f64) -> Case {
    let mut c = Case::new(format!("until from {start}"), CLOSE);
    let row: Port<'_> = (DType::F32, &[2, 3]);
    let ports = [row, row, INT, row];
    let mut cond = body(&ports);
    let axes = cond.i32s(&[0, 1]);
    let most = cond.op(Op::ReduceMax(ReducerOptionsT { keep_dims: false }), &[0, axes], DType::F32, None);
    let limit = cond.f32s_of(&[], &[100.0]);
    let less = cond.op(Op::Less, &[most, limit], DType::Bool, None);
    let cond = add_to(cond, &mut c, &[less]);
    let mut b = body(&ports);
    let factor = b.f32s_of(&[], &[1.5]);
    let grown = b.op(times(), &[1, factor], DType::F32, None);
    let one = b.i32s_of(&[], &[1]);
    let i = b.op(plus(), &[2, one], DType::I32, None);
    let fixed = b.f32s_of(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    // The first value is the next second, what has grown the next first; the last is a constant from then on.
    let b = add_to(b, &mut c, &[grown, 0, i, fixed]);
    let x = c.input(DType::F32, &[2, 3], start, start + 1.0);
    let y = c.input(DType::F32, &[2, 3], 0.5, 3.0);
    let z = c.input(DType::F32, &[2, 3], 0.5, 3.0);
    let zero = c.i32s_of(&[], &[0]);
    c.ops(repeat(cond, b), &[x, y, zero, z], &[DType::F32, DType::F32, DType::I32, DType::F32], None);
    c
}

#[test]
fn loops_that_only_the_device_can_end() {
    // The second has no pass at all.
    for start in [0.5, 120.0] {
        until(start).run();
        assert!(matches!(passes(&mut until(start))[..], [Passes::While(_)]));
    }
}

/// Three values that take each other's places, with nothing computed from them.
#[test]
fn values_change_places() {
    let mut c = Case::new("places", Tolerance::Exact);
    let row: Port<'_> = (DType::F32, &[5]);
    let ports = [INT, row, row, row];
    let cond = below(&mut c, &ports, 4);
    let mut b = body(&ports);
    let one = b.i32s_of(&[], &[1]);
    let i = b.op(plus(), &[0, one], DType::I32, None);
    let b = add_to(b, &mut c, &[i, 3, 1, 2]);
    let inputs: Vec<TensorId> = (0..3).map(|_| c.input(DType::F32, &[5], -1.0, 1.0)).collect();
    let zero = c.i32s_of(&[], &[0]);
    let types = [DType::I32, DType::F32, DType::F32, DType::F32];
    c.ops(repeat(cond, b), &[zero, inputs[0], inputs[1], inputs[2]], &types, None);
    c.run();
}

/// A choice by an input: two matrix products and a sum on one side, an operand as it came on the other.
fn choice(side: f64, size: usize) -> Case {
    let mut c = Case::new(format!("choice {side} of {size}"), CLOSE);
    let tile = [size, size];
    let port: Port<'_> = (DType::F32, &tile);
    let mut yes = body(&[port, port]);
    let a = yes.op(Op::BatchMatmul(BatchMatMulOptionsT::default()), &[0, 1], DType::F32, None);
    let a = yes.op(Op::Tanh, &[a], DType::F32, None);
    let s = yes.op(plus(), &[a, 0], DType::F32, None);
    let yes = add_to(yes, &mut c, &[s, a]);
    let mut no = body(&[port, port]);
    let n = no.op(Op::Neg, &[1], DType::F32, None);
    let no = add_to(no, &mut c, &[0, n]);
    let flag = c.input(DType::Bool, &[], side, side);
    let x = c.input(DType::F32, &tile, -0.25, 0.25);
    let y = c.input(DType::F32, &tile, -0.25, 0.25);
    let out = c.ops(choose(yes, no), &[flag, x, y], &[DType::F32; 2], None);
    c.op(plus(), &[out[0], out[1]], DType::F32, None);
    c
}

#[test]
fn choices() {
    for side in [0.0, 1.0] {
        choice(side, 6).run();
        choice(side, 66).run();
    }
    // Of little work both sides are computed; of more, one.
    assert_eq!(program(&mut choice(1.0, 6)).flows, []);
    assert!(matches!(program(&mut choice(1.0, 66)).flows[..], [Flow::Choice { .. }]));
}

/// A loop in which a choice is made in each pass.
#[test]
fn choices_in_loops() {
    let mut c = Case::new("collatz", Tolerance::Exact);
    let ports = [INT, (DType::I32, &[1][..])];
    let cond = below(&mut c, &ports, 9);
    let mut odd = body(&[ports[1]]);
    let (three, one) = (odd.i32s_of(&[1], &[3]), odd.i32s_of(&[1], &[1]));
    let y = odd.op(times(), &[0, three], DType::I32, None);
    let y = odd.op(plus(), &[y, one], DType::I32, None);
    let mut even = body(&[ports[1]]);
    let two = even.i32s_of(&[1], &[2]);
    let z = even.op(Op::FloorDiv, &[0, two], DType::I32, None);
    let mut b = body(&ports);
    let (one, two, none) = (b.i32s_of(&[], &[1]), b.i32s_of(&[1], &[2]), b.i32s_of(&[1], &[0]));
    let i = b.op(plus(), &[0, one], DType::I32, None);
    let rest = b.op(Op::FloorMod, &[1, two], DType::I32, None);
    let is_odd = b.op(Op::NotEqual, &[rest, none], DType::Bool, None);
    let odd = add_to(odd, &mut c, &[y]);
    let even = add_to(even, &mut c, &[z]);
    let x = b.op(choose(odd, even), &[is_odd, 1], DType::I32, None);
    let b = add_to(b, &mut c, &[i, x]);
    let x = c.input(DType::I32, &[1], 7.0, 40.0);
    let zero = c.i32s_of(&[], &[0]);
    c.ops(repeat(cond, b), &[zero, x], &[DType::I32; 2], None);
    c.run();
}

/// By number: the last branch stands for all that are out of range.
#[test]
fn cases() {
    for at in [-2.0, 0.0, 1.0, 2.0, 7.0] {
        let mut c = Case::new(format!("case {at}"), FLOAT);
        let port: Port<'_> = (DType::F32, &[3, 5]);
        let arms = [Op::Neg, Op::Square, Op::Abs].map(|op| {
            let mut arm = body(&[port]);
            let y = arm.op(op, &[0], DType::F32, None);
            add_to(arm, &mut c, &[y])
        });
        let number = c.input(DType::I32, &[], at, at);
        let x = c.input(DType::F32, &[3, 5], -2.0, 2.0);
        let options = StablehloCaseOptionsT { branch_subgraph_indices: Some(arms.to_vec()) };
        c.op(Op::StablehloCase(options), &[number, x], DType::F32, None);
        c.run();
    }
}

/// What the condition or the counter hangs on is known: no choice is left.
#[test]
fn a_condition_that_is_known_leaves_one_branch() {
    let mut c = Case::new("known", FLOAT);
    let port: Port<'_> = (DType::F32, &[130, 131]);
    let arms = [Op::Neg, Op::Square].map(|op| {
        let mut arm = body(&[port]);
        let y = arm.op(op, &[0], DType::F32, None);
        add_to(arm, &mut c, &[y])
    });
    let flag = c.weights(DType::Bool, &[], 0.0, 0.0, None);
    let x = c.input(DType::F32, &[130, 131], -2.0, 2.0);
    c.op(choose(arms[0], arms[1]), &[flag, x], DType::F32, None);
    let p = program(&mut c);
    assert_eq!((p.flows.len(), p.dispatches.len()), (0, 1));
    c.run();
}

/// What stays on the CPU, and why.
#[test]
fn loops_that_stay_on_the_cpu() {
    let reason = |model: &mut Model| {
        let shapes = infer(model).unwrap();
        let options = PlanOptions { force_gpu: true, ..PlanOptions::default() };
        let p = gpu_plan(model, &shapes, &Caps::baseline(), &options).unwrap();
        let first = p.placements.into_iter().next().unwrap();
        assert_eq!(first.device, Device::Cpu);
        first.reason
    };
    // A loop in a loop.
    let mut c = Case::new("nested", FLOAT);
    let ports = [INT, (DType::F32, &[4][..])];
    let cond = below(&mut c, &ports, 2);
    let step = |c: &mut Case, inner: Option<Op>| {
        let mut b = body(&ports);
        let one = b.i32s_of(&[], &[1]);
        let i = b.op(plus(), &[0, one], DType::I32, None);
        let x = match inner {
            Some(op) => {
                let zero = b.i32s_of(&[], &[0]);
                b.ops(op, &[zero, 1], &[DType::I32, DType::F32], None)[1]
            }
            None => b.op(Op::Neg, &[1], DType::F32, None),
        };
        add_to(b, c, &[i, x])
    };
    let inner = step(&mut c, None);
    let outer = step(&mut c, Some(repeat(cond, inner)));
    let x = c.input(DType::F32, &[4], -1.0, 1.0);
    let zero = c.i32s_of(&[], &[0]);
    c.ops(repeat(cond, outer), &[zero, x], &[DType::I32, DType::F32], None);
    assert!(reason(&mut c.model).contains("within control flow"));
    // A tensor that grows with each pass.
    let mut c = Case::new("growing", FLOAT);
    let cond = below(&mut c, &ports, 2);
    let mut b = body(&ports);
    let one = b.i32s_of(&[], &[1]);
    let i = b.op(plus(), &[0, one], DType::I32, None);
    let x = b.op(Op::Concatenation(ConcatenationOptionsT::default()), &[1, 1], DType::F32, None);
    let b = add_to(b, &mut c, &[i, x]);
    let x = c.input(DType::F32, &[4], -1.0, 1.0);
    let zero = c.i32s_of(&[], &[0]);
    c.ops(repeat(cond, b), &[zero, x], &[DType::I32, DType::F32], None);
    assert!(reason(&mut c.model).contains("shape"));
}

/// A variable to which each run adds an operand: what the device holds counts while nobody else has changed it.
#[test]
fn states_stay_on_the_device() {
    let mut c = Case::new("states", FLOAT);
    let x = c.input(DType::F32, &[6], 0.0, 1.0);
    let options = VarHandleOptionsT { container: None, shared_name: Some("sum".into()) };
    let handle = c.op(Op::VarHandle(options), &[], DType::Resource, None);
    let old = c.op(Op::ReadVariable, &[handle], DType::F32, None);
    let graph = c.graph();
    graph.tensors[old].shape = [6].into_iter().collect();
    let new = c.op(plus(), &[old, x], DType::F32, None);
    let twice = c.op(plus(), &[new, old], DType::F32, None);
    let graph = c.graph();
    graph.nodes.push(litegpu_graph::Node::new(Op::AssignVariable, &[handle, new], &[]));
    graph.outputs = vec![twice];
    let program = program(&mut c);
    let Some(engine) = engine(Config::F32) else { return };
    let mut loaded = engine.load_blocking(&program).unwrap();
    let bytes = |v: f32| v.to_le_bytes().repeat(6);
    let mut run = |unchanged: bool, host: f32| {
        loaded.keep_states(unchanged);
        let (x, held) = (bytes(1.0), bytes(host));
        let given: Vec<&[u8]> = program.inputs.iter().map(|p| if p.state { &held[..] } else { &x }).collect();
        let mut got = vec![vec![0; 24]; program.outputs.len()];
        let mut room: Vec<&mut [u8]> = got.iter_mut().map(Vec::as_mut_slice).collect();
        loaded.run_blocking(&given, &mut room).unwrap();
        let first = |state: bool| {
            let at = program.outputs.iter().position(|p| p.state == state).unwrap();
            f32::from_le_bytes(got[at][..4].try_into().unwrap())
        };
        (first(true), first(false))
    };
    // There is nothing on the device before the first run.
    let got = [run(true, 10.0), run(true, 100.0), run(false, 20.0), run(true, 0.0)];
    assert_eq!(got, [(11.0, 21.0), (12.0, 23.0), (21.0, 41.0), (22.0, 43.0)]);
}
