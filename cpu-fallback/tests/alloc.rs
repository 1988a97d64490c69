//! A steady-state run of a static graph allocates nothing.
#![allow(unsafe_code)]

use litegpu_cpu::{Executor, Options, Value};
use litegpu_graph::schema::UnidirectionalSequenceLSTMOptionsT;
use litegpu_graph::{DType, Graph, Model, Node, Op, Tensor};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; the counter is a plain cell of the calling thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|c| c.set(c.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = COUNT.try_with(|c| c.set(c.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the fourth run.
fn allocations(model: Arc<Model>, seed: u8) -> u64 {
    let mut exec = Executor::new(model.clone(), Options::default()).unwrap();
    let graph = model.main().unwrap();
    let mut run = || {
        for &t in &graph.inputs {
            let tensor = &graph.tensors[t];
            let bytes = tensor.dtype.byte_len(tensor.elements()).unwrap();
            // Small positive values, whatever the type.
            exec.write(0, t, &tensor.shape).unwrap().bytes_mut()[..bytes].fill(seed);
        }
        exec.run(0).unwrap();
        graph.outputs.iter().map(|&t| exec.get(0, t).unwrap().bytes.len()).sum::<usize>()
    };
    for _ in 0..3 {
        run();
    }
    let before = COUNT.with(Cell::get);
    run();
    COUNT.with(Cell::get) - before
}

#[test]
fn shipped_networks() {
    for name in ["digits_f32", "digits_int8", "digits_16x8"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../models/{name}.tflite"));
        let model = Model::read(std::fs::read(path).unwrap()).unwrap();
        assert_eq!(allocations(Arc::new(model), 0), 0, "{name}");
    }
}

#[test]
fn spectrum_and_lstm() {
    let floats = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut g = Graph::default();
    let mut add = |t: Tensor| {
        g.tensors.push(t);
        g.tensors.len() - 1
    };
    let x = add(Tensor::new("x", DType::F32, &[5, 1, 16]));
    let length = add(Tensor::constant("length", DType::I32, &[2], [1i32, 16].map(i32::to_le_bytes).concat()));
    let spectrum = add(Tensor::new("spectrum", DType::C64, &[5, 1, 9]));
    let magnitude = add(Tensor::new("magnitude", DType::F32, &[5, 1, 9]));
    let mut operands = vec![Some(magnitude)];
    let weights = floats(&[0.125; 9 * 4]);
    operands.extend((0..4).map(|_| Some(add(Tensor::constant("w", DType::F32, &[4, 9], weights.clone())))));
    operands.extend((0..4).map(|_| Some(add(Tensor::constant("r", DType::F32, &[4, 4], weights[..64].to_vec())))));
    operands.extend([None; 3]);
    operands.extend((0..4).map(|_| Some(add(Tensor::constant("b", DType::F32, &[4], floats(&[0.5; 4]))))));
    operands.extend([None; 2]);
    for _ in 0..2 {
        operands.push(Some(add(Tensor { is_variable: true, ..Tensor::new("state", DType::F32, &[1, 4]) })));
    }
    operands.extend([None; 4]);
    let y = add(Tensor::new("y", DType::F32, &[5, 1, 4]));
    let options = UnidirectionalSequenceLSTMOptionsT { time_major: true, ..Default::default() };
    g.nodes = vec![
        Node::new(Op::Rfft2d, &[x, length], &[spectrum]),
        Node::new(Op::ComplexAbs, &[spectrum], &[magnitude]),
        Node { inputs: operands, ..Node::new(Op::UnidirectionalSequenceLstm(options), &[], &[y]) },
    ];
    (g.inputs, g.outputs) = (vec![x], vec![y]);
    let model = Arc::new(Model { subgraphs: vec![g], ..Model::default() });
    assert_eq!(allocations(model.clone(), 60), 0);

    // The count is of this very thread, so a forgotten hook would pass: prove that it counts.
    let before = COUNT.with(Cell::get);
    drop(Value::zeros(DType::F32, &[100]).unwrap());
    assert_eq!(COUNT.with(Cell::get) - before, 1);
}
