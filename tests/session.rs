//! The library's sessions, on models built in memory.

mod common;

use litegpu::graph::{self, CustomOp, DType, Graph, Node, Op, Signature, ops};
use litegpu::{CustomOperator, CustomOperators, Device, ErrorKind, Model, Session, Target, Tensor, cpu};

fn tensor(name: &str, shape: &[usize]) -> graph::Tensor {
    graph::Tensor::new(name, DType::F32, shape)
}

fn model(main: Graph) -> graph::Model {
    graph::Model { version: 3, subgraphs: vec![main], ..graph::Model::default() }
}

/// `sum = a + b`, with an open first dimension and a signature.
fn add() -> Model {
    let open = |name| graph::Tensor { signature: Some(vec![-1, 2]), ..tensor(name, &[1, 2]) };
    let main = Graph {
        tensors: vec![open("a"), open("b"), open("c")],
        nodes: vec![Node::new(Op::Add(Default::default()), &[0, 1], &[2])],
        inputs: vec![0, 1],
        outputs: vec![2],
        ..Graph::default()
    };
    let mut m = model(main);
    m.signatures.push(Signature {
        key: "sum".into(),
        subgraph: 0,
        inputs: vec![("left".into(), 0), ("right".into(), 1)],
        outputs: vec![("total".into(), 2)],
    });
    Model::from_graph(m).unwrap()
}

fn cpu_session(m: &Model) -> Session {
    Session::builder(m).device(Device::Cpu).threads(1).build().unwrap()
}

fn t(shape: &[usize], v: &[f32]) -> Tensor {
    Tensor::new(shape, v).unwrap()
}

#[test]
fn inputs_go_by_position_or_name() {
    let m = add();
    let mut s = Session::builder(&m).device(Device::Cpu).signature("sum").build().unwrap();
    let names: Vec<_> = s.inputs().iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["left", "right"]);
    let (a, b) = (t(&[1, 2], &[1.0, 2.0]), t(&[1, 2], &[10.0, 20.0]));
    assert_eq!(s.run(&[a.clone(), b.clone()]).unwrap()[0].view::<f32>().unwrap(), [11.0, 22.0]);
    let named = s.run_named(&[("right", &a), ("left", &b)]).unwrap();
    assert_eq!(named[0].0, "total");
    // The tensors' own names serve too.
    s.set_input("a", &t(&[1, 2], &[5.0, 5.0])).unwrap();
    s.invoke().unwrap();
    assert_eq!(s.output("total").unwrap().as_slice::<f32>().unwrap(), [6.0, 7.0]);
    assert_eq!(s.output("c").unwrap().as_slice::<f32>().unwrap(), [6.0, 7.0]);
    let e = s.set_input("middle", &a).unwrap_err();
    assert!(e.to_string().contains("'middle'") && e.to_string().contains("'left'"), "{e}");
    assert!(Session::builder(&m).signature("product").build().unwrap_err().to_string().contains("'sum'"));
}

#[test]
fn open_dimensions_follow_the_inputs() {
    let mut s = cpu_session(&add());
    let out = s.run(&[t(&[3, 2], &[1.0; 6]), t(&[3, 2], &[2.0; 6])]).unwrap();
    assert_eq!((out[0].shape(), out[0].view::<f32>().unwrap()), (&[3, 2][..], &[3.0; 6][..]));
    assert_eq!(s.inputs()[0].shape, [3, 2]);
    assert_eq!(s.report().placements[0].output, "float32[3, 2]");
    // Back to one, and to a shape that does not fit.
    assert_eq!(s.run(&[t(&[1, 2], &[1.0; 2]), t(&[1, 2], &[2.0; 2])]).unwrap()[0].shape(), [1, 2]);
    let e = s.set_input(0, &t(&[1, 3], &[0.0; 3])).unwrap_err();
    assert!(e.kind == ErrorKind::Invalid && e.to_string().contains("left"), "{e}");
    assert!(s.resize_input(0, &[1, 3]).is_err());
    assert!(s.resize_input(0, &[usize::MAX, 2]).is_err());
    s.resize_input(0, &[4, 2]).unwrap();
    let e = s.invoke().unwrap_err();
    assert!(e.to_string().contains("has not been set") || e.to_string().contains("ADD"), "{e}");
}

#[test]
fn wrong_inputs_are_named() {
    let mut s = cpu_session(&add());
    let e = s.invoke().unwrap_err();
    assert!(e.to_string().contains("'left' has not been set"), "{e}");
    let e = s.set_input(1, &Tensor::new(&[1, 2], &[1i32, 2]).unwrap()).unwrap_err();
    assert!(e.to_string().contains("'right' is float32, int32 given"), "{e}");
    assert!(s.run(&[t(&[1, 2], &[0.0; 2])]).unwrap_err().to_string().contains("1 inputs given"));
    assert!(s.output(1).is_err());
}

#[test]
fn state_lasts_until_reset() {
    let m = common::counter();
    let mut s = cpu_session(&m);
    let x = [t(&[1, 1], &[0.0])];
    let mut next = || s.run(&x).unwrap()[0].view::<f32>().unwrap()[0];
    assert_eq!([next(), next(), next()], [1.0, 2.0, 3.0]);
    s.reset();
    assert_eq!(s.run(&x).unwrap()[0].view::<f32>().unwrap(), [1.0]);
    // Sessions of one model do not share state.
    assert_eq!(cpu_session(&m).run(&x).unwrap()[0].view::<f32>().unwrap(), [1.0]);
}

#[test]
fn reports_say_where_and_why() {
    let mut s = cpu_session(&add());
    s.prepare().unwrap();
    let r = s.report();
    assert_eq!((r.count(Target::Cpu), r.count(Target::Gpu)), (1, 0));
    assert_eq!(r.placements[0].op, "ADD");
    assert!(r.placements[0].reason.contains("CPU was asked for"));
    assert_eq!(r.timings.runs, 0);
    s.run(&[t(&[1, 2], &[0.0; 2]), t(&[1, 2], &[0.0; 2])]).unwrap();
    let r = s.report();
    assert_eq!(r.timings.runs, 1);
    assert!(r.memory.cpu_tensors > 0);
    assert!(r.to_string().contains("ADD"), "{r}");
    let mut s = Session::builder(&add()).device(Device::Cpu).profile(true).build().unwrap();
    s.run(&[t(&[1, 2], &[0.0; 2]), t(&[1, 2], &[0.0; 2])]).unwrap();
    assert_eq!(s.times().len(), 1);
}

/// Doubles its operand.
struct Twice;

impl CustomOperator for Twice {
    fn infer(&self, site: &ops::Site<'_>) -> graph::Result<ops::Inferred> {
        Ok([Some(site.shape(0)?.into())].into_iter().collect())
    }
    fn prepare(&self, _: &cpu::Site<'_>) -> graph::Result<cpu::Kernel> {
        Ok(Box::new(|call| {
            let x = call.input(0)?.as_slice::<f32>()?;
            for (o, x) in call.output(0)?.as_mut_slice::<f32>()?.iter_mut().zip(x) {
                *o = x * 2.0;
            }
            Ok(())
        }))
    }
}

#[test]
fn applications_bring_operators() {
    let main = Graph {
        tensors: vec![tensor("x", &[2]), tensor("y", &[2])],
        nodes: vec![Node::new(Op::Custom(CustomOp { name: "Twice".into(), ..Default::default() }), &[0], &[1])],
        inputs: vec![0],
        outputs: vec![1],
        ..Graph::default()
    };
    let m = Model::from_graph(model(main)).unwrap();
    let e = Session::builder(&m).device(Device::Cpu).build().unwrap_err();
    assert!(e.kind == ErrorKind::Unsupported && e.to_string().contains("Twice"), "{e}");
    let with = CustomOperators::new().with("Twice", Twice);
    let mut s = Session::builder(&m).device(Device::Cpu).custom(with).build().unwrap();
    assert_eq!(s.run(&[t(&[2], &[1.0, -3.0])]).unwrap()[0].view::<f32>().unwrap(), [2.0, -6.0]);
}

#[test]
fn memory_has_a_limit() {
    let s = Session::builder(&add()).device(Device::Cpu).memory_limit(1 << 16).build();
    let mut s = s.unwrap();
    let big = t(&[100_000, 2], &vec![0.0; 200_000]);
    let e = s.run(&[big.clone(), big]).unwrap_err();
    assert!(e.kind == ErrorKind::Invalid, "{e}");
}

#[test]
fn models_are_checked_when_opened() {
    let e = Model::from_bytes(vec![0u8; 100]).unwrap_err();
    assert!(e.kind == ErrorKind::Invalid && e.to_string().contains("TFL3"), "{e}");
    let e = Model::open("no such file").unwrap_err();
    assert!(e.kind == ErrorKind::Io && e.to_string().contains("no such file"), "{e}");
    let bad = Graph { inputs: vec![7], ..Graph::default() };
    assert!(Model::from_graph(model(bad)).is_err());
}

/// An error that a future across threads would meet at compile time.
#[test]
fn sessions_can_move_to_another_thread() {
    fn send<T: Send>(_: &T) {}
    let s = cpu_session(&add());
    send(&s);
    send(&Session::builder(&add()).build_async());
}

/// The padding is an input: shapes hang on its value.
#[cfg(feature = "gpu")]
#[test]
fn shapes_that_hang_on_values_are_planned_for_the_values() {
    if !common::gpu() {
        return;
    }
    let main = Graph {
        tensors: vec![
            tensor("x", &[2, 3]),
            graph::Tensor::new("paddings", DType::I32, &[2, 2]),
            tensor("padded", &[]),
            tensor("y", &[]),
        ],
        nodes: vec![Node::new(Op::Pad, &[0, 1], &[2]), Node::new(Op::Neg, &[2], &[3])],
        inputs: vec![0, 1],
        outputs: vec![3],
        ..Graph::default()
    };
    let model = Model::from_graph(model(main)).unwrap();
    let session = |d| Session::builder(&model).device(d).everything_on_gpu(true).build().unwrap();
    let (mut cpu, mut gpu) = (session(Device::Cpu), session(Device::Gpu));
    let x = t(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let mut run = |paddings: [i32; 4]| {
        let paddings = Tensor::new(&[2, 2], &paddings).unwrap();
        let inputs = [x.clone(), paddings];
        let (want, got) = (cpu.run(&inputs).unwrap(), gpu.run(&inputs).unwrap());
        assert_eq!(want[0].shape(), got[0].shape());
        assert_eq!(want[0].bytes(), got[0].bytes());
        gpu.report().count(Target::Gpu)
    };
    // PAD and NEG; the second run keeps the plan.
    assert_eq!([run([0, 1, 2, 0]), run([0, 1, 2, 0]), run([1, 1, 0, 0])], [2; 3]);
    // A value that never stays is no shape: in the end the CPU runs what hangs on it.
    let counts: Vec<usize> = (0..12).map(|i| run([i % 5, 0, 0, i % 3])).collect();
    assert_eq!(counts.last(), Some(&0));
}
