//! The executor's own promises: control flow, memory, recursion, storage reuse, threads, custom operators.

use litegpu_cpu::{Call, CustomOperator, CustomOperators, Executor, Kernel, Options, Site, Value};
use litegpu_graph::ops::{Inferred, Site as ShapeSite};
use litegpu_graph::schema::{
    CallOptionsT, ConcatenationOptionsT, IfOptionsT, PackOptionsT, ReshapeOptionsT, SplitOptionsT,
    StridedSliceOptionsT, UnidirectionalSequenceLSTMOptionsT, VarHandleOptionsT, WhileOptionsT,
};
use litegpu_graph::{CustomOp, DType, ErrorKind, Graph, Model, Node, Op, Result, Shape, Tensor};
use std::path::Path;
use std::sync::Arc;

/// An operator made of two closures.
struct Made<I, K>(I, K);

impl<I, K> CustomOperator for Made<I, K>
where
    I: Fn(&ShapeSite<'_>) -> Result<Inferred> + Send + Sync,
    K: Fn(&mut Call<'_>) -> Result<()> + Send + Sync + Clone + 'static,
{
    fn infer(&self, site: &ShapeSite<'_>) -> Result<Inferred> {
        (self.0)(site)
    }
    fn prepare(&self, _: &Site<'_>) -> Result<Kernel> {
        let f = self.1.clone();
        Ok(Box::new(move |call| f(call)))
    }
}

fn custom(name: &str) -> Op {
    Op::Custom(CustomOp { name: name.into(), ..CustomOp::default() })
}

fn shape(s: &[usize]) -> Result<Inferred> {
    Ok([Some(Shape::from_slice(s))].into_iter().collect())
}

/// `Increment` adds one to every element, `Below5` says whether the first is below 5, `Grow` appends a 7, `Huge` wants
/// a terabyte.
fn operators() -> CustomOperators {
    CustomOperators::new()
        .with(
            "Increment",
            Made(
                |s: &ShapeSite<'_>| shape(s.shape(0)?),
                |c: &mut Call<'_>| {
                    let x = c.input(0)?;
                    for (y, x) in c.output(0)?.as_mut_slice::<f32>()?.iter_mut().zip(x.as_slice::<f32>()?) {
                        *y = x + 1.0;
                    }
                    Ok(())
                },
            ),
        )
        .with(
            "Below5",
            Made(
                |_: &ShapeSite<'_>| shape(&[]),
                |c: &mut Call<'_>| {
                    let first = c.input(0)?.as_slice::<f32>()?[0];
                    c.output(0)?.bytes_mut()[0] = (first < 5.0) as u8;
                    Ok(())
                },
            ),
        )
        .with(
            "Grow",
            Made(
                |_: &ShapeSite<'_>| Ok([None].into_iter().collect()),
                |c: &mut Call<'_>| {
                    let x = c.input(0)?;
                    let out = c.output(0)?;
                    out.reshape(&[x.len() + 1])?;
                    let out = out.as_mut_slice::<f32>()?;
                    out[..x.len()].copy_from_slice(x.as_slice()?);
                    out[x.len()] = 7.0;
                    Ok(())
                },
            ),
        )
        .with("Huge", Made(|_: &ShapeSite<'_>| shape(&[1 << 38]), |_: &mut Call<'_>| Ok(())))
}

fn options() -> Options {
    Options { custom: operators(), ..Options::default() }
}

/// A graph of float vectors: tensor 0 is the input, node i makes tensor i + 1 from tensor i.
fn chain(ops: &[&str], n: usize) -> Graph {
    let tensors = (0..=ops.len()).map(|i| Tensor::new(format!("t{i}"), DType::F32, &[n])).collect();
    let nodes = ops.iter().enumerate().map(|(i, op)| Node::new(custom(op), &[i], &[i + 1])).collect();
    Graph { tensors, nodes, inputs: vec![0], outputs: vec![ops.len()], ..Graph::default() }
}

fn executor(subgraphs: Vec<Graph>, options: Options) -> Executor {
    Executor::new(Arc::new(Model { subgraphs, ..Model::default() }), options).unwrap()
}

fn set(exec: &mut Executor, t: usize, x: &[f32]) {
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let v = Value::from_bytes(DType::F32, &[x.len()], &bytes).unwrap();
    exec.set(0, t, v.view()).unwrap();
}

fn get(exec: &Executor, t: usize) -> Vec<f32> {
    exec.get(0, t).unwrap().as_slice().unwrap().to_vec()
}

#[test]
fn a_chain_reuses_storage_and_keeps_what_it_is_told() {
    let ops = ["Increment"; 6];
    let mut exec = executor(vec![chain(&ops, 2000)], options());
    exec.keep(0, &[3]).unwrap();
    set(&mut exec, 0, &[1.0; 2000]);
    for _ in 0..2 {
        exec.run(0).unwrap();
        assert_eq!(get(&exec, 6), vec![7.0; 2000]);
        assert_eq!(get(&exec, 3), vec![4.0; 2000]);
        assert!(exec.get(0, 2).is_err(), "an intermediate's storage is free after the run");
    }
    // Input, kept, output, and two that alternate.
    assert_eq!(exec.bytes(), 5 * 8000);
    let mut exec = executor(vec![chain(&ops, 2000)], Options { keep_all: true, ..options() });
    set(&mut exec, 0, &[1.0; 2000]);
    exec.run(0).unwrap();
    assert!((0..=6).all(|t| get(&exec, t) == vec![1.0 + t as f32; 2000]));
}

#[test]
fn shapes_may_change_from_run_to_run() {
    let mut exec = executor(vec![chain(&["Increment", "Grow", "Increment"], 2)], options());
    for n in [2, 5, 1, 0, 3] {
        set(&mut exec, 0, &vec![1.0; n]);
        exec.run(0).unwrap();
        let mut want = vec![3.0; n];
        want.push(8.0);
        assert_eq!(get(&exec, 3), want);
    }
}

/// WHILE over (counter, carried), whose body is given.
/// Concatenated, transposed, sliced, split, packed, flattened, and kept in a variable from which it is read.
fn moving() -> Graph {
    let mut g = Graph::default();
    let mut add = |t: Tensor| {
        g.tensors.push(t);
        g.tensors.len() - 1
    };
    let ints = |v: &[i32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let x = add(Tensor::new("x", DType::F32, &[3, 4]));
    let [double, turned, part, first, second, both, flat, read] =
        ["double", "turned", "part", "first", "second", "both", "flat", "read"]
            .map(|name| add(Tensor::new(name, DType::F32, &[])));
    let handle = add(Tensor::new("handle", DType::Resource, &[1]));
    let [order, begin, end, step] = [("order", [1, 0]), ("begin", [1, 0]), ("end", [3, 9]), ("step", [1, 2])]
        .map(|(name, v)| add(Tensor::constant(name, DType::I32, &[2], ints(&v))));
    let axis = add(Tensor::constant("axis", DType::I32, &[], ints(&[0])));
    let all = add(Tensor::constant("all", DType::I32, &[1], ints(&[-1])));
    let concat = ConcatenationOptionsT { axis: 0, ..Default::default() };
    let slice = StridedSliceOptionsT { end_mask: 2, ..Default::default() };
    g.nodes = vec![
        Node::new(Op::VarHandle(VarHandleOptionsT::default()), &[], &[handle]),
        Node::new(Op::Concatenation(concat), &[x, x], &[double]),
        Node::new(Op::Transpose, &[double, order], &[turned]),
        Node::new(Op::StridedSlice(slice), &[turned, begin, end, step], &[part]),
        Node::new(Op::Split(SplitOptionsT { num_splits: 2 }), &[axis, part], &[first, second]),
        Node::new(Op::Pack(PackOptionsT { values_count: 2, axis: 1 }), &[second, first], &[both]),
        Node::new(Op::Reshape(ReshapeOptionsT::default()), &[both, all], &[flat]),
        Node::new(Op::AssignVariable, &[handle, flat], &[]),
        Node::new(Op::ReadVariable, &[handle], &[read]),
    ];
    (g.inputs, g.outputs) = (vec![x], vec![read, turned]);
    g
}

/// What small moves copy is found out in a first run and done again in later ones. Other shapes are other copies, of
/// the same number of elements too, and more elements than are recorded.
#[test]
fn moves_follow_the_shapes() {
    let mut exec = executor(vec![moving()], Options::default());
    let shapes = [[3, 4], [3, 4], [3, 4], [2, 6], [2, 6], [2, 6], [5, 4], [3, 4], [3, 4], [6000, 4], [6000, 4], [2, 6]];
    for (run, shape) in shapes.into_iter().enumerate() {
        let x: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i * 7 + run * 1000) as f32).collect();
        let v = Value::from_bytes(DType::F32, &shape, bytemuck::cast_slice(&x)).unwrap();
        exec.set(0, 0, v.view()).unwrap();
        exec.run(0).unwrap();
        let [rows, columns] = shape;
        let turned: Vec<f32> = (0..columns)
            .flat_map(|c| (0..2 * rows).map(move |r| (r % rows, c)))
            .map(|(r, c)| x[r * columns + c])
            .collect();
        let part = |c: usize| turned[c * 2 * rows..][..2 * rows].iter().step_by(2).copied();
        assert_eq!(get(&exec, 2), turned, "run {run}, {shape:?}");
        assert_eq!(get(&exec, 8), part(2).chain(part(1)).collect::<Vec<_>>(), "run {run}, {shape:?}");
        assert_eq!(exec.get(0, 2).unwrap().shape, [columns, 2 * rows]);
    }
}

fn looped(body: Graph, condition: &str) -> Vec<Graph> {
    let mut cond = chain(&[condition], 1);
    cond.tensors[1].dtype = DType::Bool;
    cond.tensors.push(Tensor::new("carried", DType::F32, &[1]));
    cond.inputs = vec![0, 2];
    let op = Op::While(WhileOptionsT { cond_subgraph_index: 1, body_subgraph_index: 2 });
    let main = Graph {
        tensors: (0..4).map(|i| Tensor::new(format!("m{i}"), DType::F32, &[1])).collect(),
        nodes: vec![Node::new(op, &[0, 1], &[2, 3])],
        inputs: vec![0, 1],
        outputs: vec![2, 3],
        ..Graph::default()
    };
    vec![main, cond, body]
}

#[test]
fn loops_carry_their_state() {
    // The second value grows by one element each time.
    let mut body = chain(&["Increment"], 1);
    body.tensors.extend(["carried", "grown"].map(|n| Tensor::new(n, DType::F32, &[1])));
    body.nodes.push(Node::new(custom("Grow"), &[2], &[3]));
    (body.inputs, body.outputs) = (vec![0, 2], vec![1, 3]);
    let mut exec = executor(looped(body.clone(), "Below5"), options());
    for _ in 0..3 {
        set(&mut exec, 0, &[1.0]);
        set(&mut exec, 1, &[9.0]);
        exec.run(0).unwrap();
        assert_eq!(get(&exec, 2), [5.0]);
        assert_eq!(get(&exec, 3), [9.0, 7.0, 7.0, 7.0, 7.0]);
        // The operands are graph inputs: the loop must not have taken them.
        assert_eq!(get(&exec, 0), [1.0]);
    }
    // A value that the body passes through, and no iteration at all.
    body.nodes.pop();
    body.outputs = vec![1, 2];
    let mut exec = executor(looped(body.clone(), "Below5"), options());
    for start in [0.0, 8.0] {
        set(&mut exec, 0, &[start]);
        set(&mut exec, 1, &[9.0]);
        exec.run(0).unwrap();
        assert_eq!((get(&exec, 2), get(&exec, 3)), (vec![start.max(5.0)], vec![9.0]));
    }
    // One tensor as both outputs.
    body.outputs = vec![1, 1];
    let mut exec = executor(looped(body, "Below5"), options());
    set(&mut exec, 0, &[0.0]);
    set(&mut exec, 1, &[9.0]);
    exec.run(0).unwrap();
    assert_eq!((get(&exec, 2), get(&exec, 3)), (vec![5.0], vec![5.0]));
}

#[test]
fn a_branch_is_taken_by_its_condition() {
    let op = Op::If(IfOptionsT { then_subgraph_index: 1, else_subgraph_index: 2 });
    let mut main = chain(&["Below5"], 1);
    main.tensors[1].dtype = DType::Bool;
    main.tensors.push(Tensor::new("y", DType::F32, &[1]));
    main.nodes.push(Node::new(op, &[1, 0], &[2]));
    main.outputs = vec![2];
    let mut exec = executor(vec![main, chain(&["Increment"], 1), chain(&["Grow"], 1)], options());
    set(&mut exec, 0, &[1.0]);
    exec.run(0).unwrap();
    assert_eq!(get(&exec, 2), [2.0]);
    set(&mut exec, 0, &[6.0]);
    exec.run(0).unwrap();
    assert_eq!(get(&exec, 2), [6.0, 7.0]);
}

#[test]
fn recursion_ends_with_an_error() {
    let call = |s: u32| {
        let op = Op::Call(CallOptionsT { subgraph: s });
        Graph { nodes: vec![Node::new(op, &[0], &[1])], ..chain(&["Increment"], 1) }
    };
    let run = |graphs: Vec<Graph>| {
        let mut exec = executor(graphs, options());
        set(&mut exec, 0, &[1.0]);
        exec.run(0).map(|()| get(&exec, 1))
    };
    assert_eq!(run(vec![call(0)]).unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(run(vec![call(1), call(0)]).unwrap_err().kind, ErrorKind::Unsupported);
    // A long chain of calls is no recursion, but must not exhaust the stack either.
    let mut long: Vec<Graph> = (1..5000).map(call).collect();
    long.push(chain(&["Increment"], 1));
    assert_eq!(run(long).unwrap_err().kind, ErrorKind::Unsupported);
    let mut short: Vec<Graph> = (1..20).map(call).collect();
    short.push(chain(&["Increment"], 1));
    assert_eq!(run(short).unwrap(), [2.0]);
}

#[test]
fn memory_beyond_the_limit_is_an_error() {
    let mut exec = executor(vec![chain(&["Huge"], 1)], options());
    set(&mut exec, 0, &[1.0]);
    let e = exec.run(0).unwrap_err().to_string();
    assert!(e.contains("Huge") && e.contains("memory limit"), "{e}");
    // A loop that grows forever.
    let mut body = chain(&["Grow"], 1);
    body.tensors.push(Tensor::new("counter", DType::F32, &[1]));
    (body.inputs, body.outputs) = (vec![2, 0], vec![2, 1]);
    let mut exec = executor(looped(body, "Below5"), Options { memory_limit: 1 << 16, ..options() });
    set(&mut exec, 0, &[1.0]);
    set(&mut exec, 1, &[1.0]);
    let e = exec.run(0).unwrap_err().to_string();
    assert!(e.contains("memory limit"), "{e}");
    assert!(exec.bytes() <= 1 << 16);
    // Too large an input.
    let v = Value::zeros(DType::F32, &[1 << 15]).unwrap();
    assert!(exec.set(0, 0, v.view()).is_err());
}

/// Results whose size is seen only when they are there, and more results than operands: what holds them in one run must
/// do for the next.
#[test]
fn memory_is_the_same_after_many_runs() {
    let n = 5000;
    let mut body = chain(&["Increment", "Increment", "Increment"], n);
    body.outputs = vec![1, 2, 3];
    let mut main = chain(&["Grow", "Increment"], n);
    main.tensors.extend((0..3).map(|i| Tensor::new(format!("r{i}"), DType::F32, &[n])));
    main.tensors.push(Tensor::new("sum", DType::F32, &[n]));
    main.nodes.push(Node::new(Op::Call(CallOptionsT { subgraph: 1 }), &[2], &[3, 4, 5]));
    main.nodes.push(Node::new(Op::AddN, &[3, 4, 5], &[6]));
    main.outputs = vec![6];
    let mut exec = executor(vec![main, body], options());
    let mut bytes = 0;
    for turn in 0..50 {
        set(&mut exec, 0, &vec![1.0; n]);
        exec.run(0).unwrap();
        assert_eq!(get(&exec, 6)[..2], [12.0, 12.0]);
        if turn == 3 {
            bytes = exec.bytes();
        }
    }
    assert_eq!(exec.bytes(), bytes);
}

#[test]
fn wrong_values_are_refused() {
    let mut exec = executor(vec![chain(&["Increment"], 1)], options());
    assert!(exec.run(0).is_err(), "no input was set");
    let v = Value::zeros(DType::I32, &[1]).unwrap();
    assert!(exec.set(0, 0, v.view()).is_err());
    assert!(exec.set(7, 0, v.view()).is_err() && exec.set(0, 7, v.view()).is_err());
    assert!(exec.run_nodes(0, [3]).is_err() && exec.run(3).is_err() && exec.get(3, 0).is_err());
}

#[test]
fn unknown_custom_operators_say_what_to_do() {
    for name in ["Unheard", "FlexErf"] {
        let mut exec = executor(vec![chain(&[name], 1)], Options::default());
        set(&mut exec, 0, &[1.0]);
        let e = exec.run(0).unwrap_err();
        assert_eq!(e.kind, ErrorKind::Unsupported);
        assert!(e.message.contains(name) && e.message.contains("Options::custom"), "{e}");
    }
}

/// Inputs from a small generator; the bytes of all outputs.
fn outputs(model: &Arc<Model>, threads: usize) -> Vec<Vec<u8>> {
    let mut exec = Executor::new(model.clone(), Options { threads, ..Options::default() }).unwrap();
    let graph = model.main().unwrap();
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    for &t in &graph.inputs {
        let shape = graph.tensors[t].shape.clone();
        let v = exec.write(0, t, &shape).unwrap();
        match v.dtype {
            DType::F32 => v.as_mut_slice::<f32>().unwrap().iter_mut().for_each(|x| *x = next()),
            _ => v.bytes_mut().iter_mut().for_each(|x| *x = (next() * 256.0) as u8),
        }
    }
    exec.run(0).unwrap();
    graph.outputs.iter().map(|&t| exec.get(0, t).unwrap().bytes.to_vec()).collect()
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    for name in ["digits_f32", "digits_f16", "digits_int8", "digits_16x8", "sr_x2_16x8"] {
        let bytes = std::fs::read(models.join(format!("{name}.tflite"))).unwrap();
        let model = Arc::new(Model::read(bytes).unwrap());
        let one = outputs(&model, 1);
        assert_eq!(one, outputs(&model, 2), "{name}");
        assert_eq!(one, outputs(&model, 8), "{name}");
    }
    let model = Arc::new(large_lstm());
    let one = outputs(&model, 1);
    assert_eq!(one, outputs(&model, 2));
    assert_eq!(one, outputs(&model, 8));
}

/// Large enough that its products are split over threads.
fn large_lstm() -> Model {
    let (units, width) = (96, 64);
    let mut g = Graph::default();
    let mut add = |t: Tensor| {
        g.tensors.push(t);
        g.tensors.len() - 1
    };
    let matrix = |rows: usize, cols: usize, seed: usize| {
        let value = |i: usize| (((i * 7919 + seed * 104_729) % 1000) as f32 / 1000.0 - 0.5) * 0.3;
        let data: Vec<u8> = (0..rows * cols).flat_map(|i| value(i).to_le_bytes()).collect();
        Tensor::constant("w", DType::F32, &[rows, cols], data)
    };
    let x = add(Tensor::new("x", DType::F32, &[7, 3, width]));
    let mut operands = vec![Some(x)];
    operands.extend((0..4).map(|i| Some(add(matrix(units, width, i)))));
    operands.extend((4..8).map(|i| Some(add(matrix(units, units, i)))));
    operands.extend([None; 3]);
    operands.extend((8..12).map(|i| {
        let t = matrix(units, 1, i);
        Some(add(Tensor { shape: Shape::from_slice(&[units]), ..t }))
    }));
    operands.extend([None; 2]);
    for _ in 0..2 {
        operands.push(Some(add(Tensor { is_variable: true, ..Tensor::new("state", DType::F32, &[3, units]) })));
    }
    operands.extend([None; 4]);
    let y = add(Tensor::new("y", DType::F32, &[7, 3, units]));
    let options = UnidirectionalSequenceLSTMOptionsT { time_major: true, ..Default::default() };
    g.nodes = vec![Node { inputs: operands, ..Node::new(Op::UnidirectionalSequenceLstm(options), &[], &[y]) }];
    (g.inputs, g.outputs) = (vec![x], vec![y]);
    Model { subgraphs: vec![g], ..Model::default() }
}
