//! Variables and control flow: what the GPU does of them, and that the CPU's answers come out.
#![cfg(feature = "gpu")]

mod common;

use litegpu::graph::schema::{ActivationFunctionType, AddOptionsT, CallOnceOptionsT, VarHandleOptionsT};
use litegpu::graph::{self, DType, Graph, Node, Op, Quant, TensorId};
use litegpu::{Device, Gpu, GpuOptions, Model, Session, Target, Tensor};

/// A graph under construction.
#[derive(Default)]
struct Made(Graph);

impl Made {
    fn tensor(&mut self, dtype: DType, shape: &[usize]) -> TensorId {
        let name = format!("t{}", self.0.tensors.len());
        self.0.tensors.push(graph::Tensor::new(name, dtype, shape));
        self.0.tensors.len() - 1
    }
    fn input(&mut self, dtype: DType, shape: &[usize]) -> TensorId {
        let t = self.tensor(dtype, shape);
        self.0.inputs.push(t);
        t
    }
    fn constant(&mut self, dtype: DType, shape: &[usize], bytes: Vec<u8>) -> TensorId {
        self.0.tensors.push(graph::Tensor::constant("c", dtype, shape, bytes));
        self.0.tensors.len() - 1
    }
    fn floats(&mut self, shape: &[usize], values: &[f32]) -> TensorId {
        self.constant(DType::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
    fn op(&mut self, op: Op, inputs: &[TensorId], dtype: DType, shape: &[usize]) -> TensorId {
        let t = self.tensor(dtype, shape);
        self.0.nodes.push(Node::new(op, inputs, &[t]));
        t
    }
    fn does(&mut self, op: Op, inputs: &[TensorId]) {
        self.0.nodes.push(Node::new(op, inputs, &[]));
    }
    fn variable(&mut self, name: &str) -> TensorId {
        let options = VarHandleOptionsT { container: None, shared_name: Some(name.into()) };
        self.op(Op::VarHandle(options), &[], DType::Resource, &[])
    }
    fn output(&mut self, t: TensorId) {
        self.0.outputs.push(t);
    }
}

fn model(graphs: Vec<Made>) -> Model {
    let subgraphs = graphs.into_iter().map(|g| g.0).collect();
    Model::from_graph(graph::Model { version: 3, subgraphs, ..graph::Model::default() }).unwrap()
}

fn add() -> Op {
    Op::Add(AddOptionsT { fused_activation_function: ActivationFunctionType::NONE, ..Default::default() })
}

/// An initialiser that gives each variable its first value.
fn initialiser(first: &[(&str, DType, &[usize], Vec<u8>)]) -> Made {
    let mut g = Made::default();
    for (name, dtype, shape, bytes) in first {
        let v = g.variable(name);
        let c = g.constant(*dtype, shape, bytes.clone());
        g.does(Op::AssignVariable, &[v, c]);
    }
    g
}

fn once() -> Op {
    Op::CallOnce(CallOnceOptionsT { init_subgraph_index: 1 })
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn session(m: &Model, device: Device, gpu: Option<&Gpu>) -> Session {
    let b = Session::builder(m).device(device).everything_on_gpu(true);
    gpu.map_or_else(|| b.clone(), |g| b.clone().gpu(g)).build().unwrap()
}

/// A sum of all inputs so far, and the input of the run before; `also`: a subgraph reads the sum, on the CPU.
fn history(also: bool) -> Model {
    let mut g = Made::default();
    g.does(once(), &[]);
    let x = g.input(DType::F32, &[1, 5]);
    let (sum, last) = (g.variable("sum"), g.variable("last"));
    let before = g.op(Op::ReadVariable, &[sum], DType::F32, &[1, 5]);
    let now = g.op(add(), &[before, x], DType::F32, &[1, 5]);
    g.does(Op::AssignVariable, &[sum, now]);
    let again = g.op(Op::ReadVariable, &[sum], DType::F32, &[1, 5]);
    let past = g.op(Op::ReadVariable, &[last], DType::F32, &[1, 5]);
    g.does(Op::AssignVariable, &[last, x]);
    let y = g.op(Op::Neg, &[again], DType::F32, &[1, 5]);
    let both = g.op(add(), &[y, past], DType::F32, &[1, 5]);
    g.output(both);
    g.output(before);
    let mut more = Vec::new();
    if also {
        let call = graph::schema::CallOptionsT { subgraph: 2 };
        let called = g.op(Op::Call(call), &[x], DType::F32, &[1, 5]);
        g.output(called);
        let mut body = Made::default();
        let x = body.input(DType::F32, &[1, 5]);
        let v = body.variable("sum");
        let read = body.op(Op::ReadVariable, &[v], DType::F32, &[1, 5]);
        let y = body.op(add(), &[read, x], DType::F32, &[1, 5]);
        body.output(y);
        more.push(body);
    }
    let first: [(&str, DType, &[usize], Vec<u8>); 2] = [
        ("sum", DType::F32, &[1, 5], bytes(&[1.0, 2.0, 3.0, 4.0, 5.0])),
        ("last", DType::F32, &[1, 5], bytes(&[0.5; 5])),
    ];
    let all = [g, initialiser(&first)].into_iter().chain(more);
    model(all.collect())
}

fn step(s: &mut Session, v: f32) -> Vec<Vec<u8>> {
    let x = Tensor::new(&[1, 5], &[v, -v, 0.25, 1.0, 2.0 * v]).unwrap();
    s.run(&[x]).unwrap().iter().map(|t| t.bytes().to_vec()).collect()
}

#[test]
fn variables_live_on_the_gpu_from_run_to_run() {
    if !common::gpu() {
        return;
    }
    let m = history(false);
    let (mut cpu, mut gpu) = (session(&m, Device::Cpu, None), session(&m, Device::Gpu, None));
    for v in [1.0, 3.0, -2.5] {
        assert_eq!(step(&mut gpu, v), step(&mut cpu, v));
    }
    let report = gpu.report();
    let on = |op: &str| report.placements.iter().filter(|p| p.op == op).map(|p| p.target).collect::<Vec<_>>();
    assert_eq!(on("READ_VARIABLE"), [Target::Gpu; 3], "{report}");
    assert_eq!(on("ASSIGN_VARIABLE"), [Target::Gpu; 2]);
    assert_eq!(on("VAR_HANDLE"), [Target::Folded; 2]);
    assert_eq!(on("CALL_ONCE"), [Target::Cpu]);
    cpu.reset();
    gpu.reset();
    for v in [7.0, 0.5] {
        assert_eq!(step(&mut gpu, v), step(&mut cpu, v));
    }
}

#[test]
fn variables_outlive_the_device() {
    if !common::gpu() {
        return;
    }
    let m = history(false);
    let device = Gpu::open(GpuOptions::default()).unwrap();
    let (mut cpu, mut gpu) = (session(&m, Device::Cpu, None), session(&m, Device::Gpu, Some(&device)));
    for v in [1.0, 3.0] {
        assert_eq!(step(&mut gpu, v), step(&mut cpu, v));
    }
    device.close();
    for v in [2.0, 4.0] {
        assert_eq!(step(&mut gpu, v), step(&mut cpu, v));
    }
    assert_eq!(gpu.report().count(Target::Gpu), 0);
}

#[test]
fn a_variable_that_the_cpu_needs_is_there() {
    if !common::gpu() {
        return;
    }
    let m = history(true);
    let (mut cpu, mut gpu) = (session(&m, Device::Cpu, None), session(&m, Device::Gpu, None));
    for v in [1.0, 3.0, -2.5] {
        assert_eq!(step(&mut gpu, v), step(&mut cpu, v));
    }
    let report = gpu.report();
    let of = |op: &str, t: Target| report.placements.iter().filter(|p| p.op == op && p.target == t).count();
    // "sum" is read twice and assigned once on the CPU, "last" is on the GPU.
    assert_eq!((of("READ_VARIABLE", Target::Cpu), of("READ_VARIABLE", Target::Gpu)), (2, 1), "{report}");
    assert_eq!((of("ASSIGN_VARIABLE", Target::Cpu), of("ASSIGN_VARIABLE", Target::Gpu)), (1, 1));
    assert!(report.placements.iter().any(|p| p.reason.contains("variable on the CPU")), "{report}");
}

/// A quantized history of four columns: what streaming networks keep.
#[test]
fn integer_variables() {
    if !common::gpu() {
        return;
    }
    let quant = Some(Quant::scalar(0.1, -3));
    let mut g = Made::default();
    g.does(once(), &[]);
    let x = g.input(DType::I8, &[1, 1, 3]);
    let v = g.variable("ring");
    let old = g.op(Op::ReadVariable, &[v], DType::I8, &[1, 4, 3]);
    let concat = graph::schema::ConcatenationOptionsT { axis: 1, ..Default::default() };
    let all = g.op(Op::Concatenation(concat), &[old, x], DType::I8, &[1, 5, 3]);
    let ints = |v: &[i32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let begin = g.constant(DType::I32, &[3], ints(&[0, 1, 0]));
    let size = g.constant(DType::I32, &[3], ints(&[1, 4, 3]));
    let rest = g.op(Op::Slice, &[all, begin, size], DType::I8, &[1, 4, 3]);
    g.does(Op::AssignVariable, &[v, rest]);
    g.output(all);
    for t in [x, old, all, rest] {
        g.0.tensors[t].quant = quant.clone();
    }
    let m = model(vec![g, initialiser(&[("ring", DType::I8, &[1, 4, 3], (0..12).collect())])]);
    let (mut cpu, mut gpu) = (session(&m, Device::Cpu, None), session(&m, Device::Gpu, None));
    for i in 0..6i8 {
        let x = [Tensor::new(&[1, 1, 3], &[i, -i, 100 + i]).unwrap()];
        assert_eq!(gpu.run(&x).unwrap()[0].bytes(), cpu.run(&x).unwrap()[0].bytes());
    }
    assert_eq!(gpu.report().count(Target::Cpu), 1, "{}", gpu.report());
}

/// The file declares another shape than the initialiser gives: what the CPU makes of it counts.
#[test]
fn a_declared_shape_that_is_wrong_is_not_trusted() {
    if !common::gpu() {
        return;
    }
    let mut g = Made::default();
    g.does(once(), &[]);
    let x = g.input(DType::F32, &[1]);
    let v = g.variable("v");
    let old = g.op(Op::ReadVariable, &[v], DType::F32, &[4]);
    let y = g.op(add(), &[old, x], DType::F32, &[4]);
    g.output(y);
    let m = model(vec![g, initialiser(&[("v", DType::F32, &[6], bytes(&[1.0; 6]))])]);
    let x = [Tensor::new(&[1], &[2f32]).unwrap()];
    let mut gpu = session(&m, Device::Gpu, None);
    let out = gpu.run(&x).unwrap();
    assert_eq!((out[0].shape(), out[0].view::<f32>().unwrap()), (&[6][..], &[3.0; 6][..]));
    assert!(gpu.report().note.is_some_and(|n| n.contains("declares")));
}

/// Reading what was never assigned is the file's error, wherever it runs.
#[test]
fn a_variable_without_a_value_is_an_error() {
    if !common::gpu() {
        return;
    }
    let mut g = Made::default();
    let x = g.input(DType::F32, &[4]);
    let v = g.variable("v");
    let old = g.op(Op::ReadVariable, &[v], DType::F32, &[4]);
    let y = g.op(add(), &[old, x], DType::F32, &[4]);
    g.output(y);
    let m = model(vec![g]);
    for device in [Device::Cpu, Device::Gpu] {
        let e = session(&m, device, None).run(&[Tensor::new(&[4], &[0f32; 4]).unwrap()]).unwrap_err();
        assert!(e.to_string().contains("no value yet"), "{e}");
    }
}

/// Variables that change places, and one that is read before it is written: what each run finds is what the last one left,
/// on the device as on the host.
#[test]
fn variables_that_trade_values() {
    if !common::gpu() {
        return;
    }
    let mut g = Made::default();
    g.does(once(), &[]);
    let x = g.input(DType::F32, &[1, 5]);
    let (a, b) = (g.variable("a"), g.variable("b"));
    let (was, other) =
        (g.op(Op::ReadVariable, &[a], DType::F32, &[1, 5]), g.op(Op::ReadVariable, &[b], DType::F32, &[1, 5]));
    let y = g.op(add(), &[was, x], DType::F32, &[1, 5]);
    g.does(Op::AssignVariable, &[a, other]);
    g.does(Op::AssignVariable, &[b, was]);
    g.output(y);
    let first: [(&str, DType, &[usize], Vec<u8>); 2] =
        [("a", DType::F32, &[1, 5], bytes(&[1.0; 5])), ("b", DType::F32, &[1, 5], bytes(&[20.0; 5]))];
    let m = model(vec![g, initialiser(&first)]);
    let (mut cpu, mut gpu) = (session(&m, Device::Cpu, None), session(&m, Device::Gpu, None));
    for v in [1.0, 2.0, 3.0, 4.0] {
        assert_eq!(step(&mut gpu, v), step(&mut cpu, v));
    }
    assert!(gpu.report().count(Target::Gpu) >= 5, "{}", gpu.report());
}

/// A constant is assigned: the state starts anew with each run.
#[test]
fn constants_are_assigned() {
    if !common::gpu() {
        return;
    }
    let mut g = Made::default();
    let x = g.input(DType::F32, &[3]);
    let v = g.variable("v");
    let c = g.floats(&[3], &[4.0, 5.0, 6.0]);
    g.does(Op::AssignVariable, &[v, c]);
    let now = g.op(Op::ReadVariable, &[v], DType::F32, &[3]);
    let y = g.op(add(), &[now, x], DType::F32, &[3]);
    g.does(Op::AssignVariable, &[v, y]);
    let then = g.op(Op::ReadVariable, &[v], DType::F32, &[3]);
    let y = g.op(Op::Neg, &[then], DType::F32, &[3]);
    g.output(y);
    let m = model(vec![g]);
    let mut gpu = session(&m, Device::Gpu, None);
    for v in [1.0, 2.0] {
        let out = gpu.run(&[Tensor::new(&[3], &[v; 3]).unwrap()]).unwrap();
        assert_eq!(out[0].view::<f32>().unwrap(), [-4.0 - v, -5.0 - v, -6.0 - v]);
    }
    assert_eq!(gpu.report().count(Target::Cpu), 0, "{}", gpu.report());
}

/// A loop whose condition is always true.
fn endless() -> Model {
    let mut main = Made::default();
    let x = main.input(DType::F32, &[4]);
    let options = graph::schema::WhileOptionsT { cond_subgraph_index: 1, body_subgraph_index: 2 };
    let y = main.op(Op::While(options), &[x], DType::F32, &[4]);
    main.output(y);
    let mut cond = Made::default();
    cond.input(DType::F32, &[4]);
    let yes = cond.constant(DType::Bool, &[], vec![1]);
    cond.output(yes);
    let mut body = Made::default();
    let x = body.input(DType::F32, &[4]);
    let y = body.op(Op::Neg, &[x], DType::F32, &[4]);
    body.output(y);
    model(vec![main, cond, body])
}

#[test]
fn a_loop_that_does_not_end_ends_with_the_time() {
    if !common::gpu() {
        return;
    }
    let options = GpuOptions { timeout: std::time::Duration::from_millis(300), ..GpuOptions::default() };
    let b = Session::builder(&endless()).device(Device::Gpu).everything_on_gpu(true).gpu_options(options);
    let mut session = b.require_gpu(true).build().unwrap();
    assert_eq!(session.report().count(Target::Cpu), 0, "{}", session.report());
    let start = std::time::Instant::now();
    let e = session.run(&[Tensor::new(&[4], &[1f32; 4]).unwrap()]).unwrap_err();
    assert!(e.to_string().contains("has not ended"), "{e}");
    assert!(start.elapsed() < std::time::Duration::from_secs(60));
}
