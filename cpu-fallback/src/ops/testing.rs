//! One operator on given values, for the kernels' tests.

use crate::{Executor, Options, Value};
use bytemuck::Pod;
use litegpu_graph::{DType, Family, Graph, Model, Node, Op, Quant, Result, Tensor, TensorId};
use std::sync::Arc;

/// An operand with its elements.
pub(crate) fn x<T: Pod>(dtype: DType, shape: &[usize], data: &[T]) -> Tensor {
    Tensor::constant("", dtype, shape, bytemuck::cast_slice::<T, u8>(data).to_vec())
}

/// float32.
pub(crate) fn f(shape: &[usize], data: &[f32]) -> Tensor {
    x(DType::F32, shape, data)
}

/// int32.
pub(crate) fn i(shape: &[usize], data: &[i32]) -> Tensor {
    x(DType::I32, shape, data)
}

/// An output of a type; its shape is inferred.
pub(crate) fn out(dtype: DType) -> Tensor {
    Tensor::new("", dtype, &[])
}

/// The same tensor, quantized.
pub(crate) fn q(mut t: Tensor, scale: f32, zero: i64) -> Tensor {
    t.quant = Some(Quant::scalar(scale, zero));
    t
}

/// Runs `op` twice: on constants, and on graph inputs whose values (axes, shapes) are only known while it runs. Both
/// must agree.
pub(crate) fn run(op: Op, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Vec<Value>> {
    let constant = once(&op, inputs, outputs, false);
    let dynamic = once(&op, inputs, outputs, true);
    match (&constant, &dynamic) {
        (Ok(a), Ok(b)) => {
            for (a, b) in a.iter().zip(b) {
                assert_eq!((&a.shape, a.bytes()), (&b.shape, b.bytes()), "{} depends on constness", op.name());
            }
        }
        (Err(_), Err(_)) => {}
        _ => panic!("{}: {constant:?} on constants, {dynamic:?} on inputs", op.name()),
    }
    constant
}

fn once(op: &Op, inputs: &[Tensor], outputs: &[Tensor], dynamic: bool) -> Result<Vec<Value>> {
    let mut graph = Graph { tensors: inputs.iter().chain(outputs).cloned().collect(), ..Graph::default() };
    let ids: Vec<TensorId> = (0..inputs.len()).collect();
    graph.outputs = (inputs.len()..inputs.len() + outputs.len()).collect();
    graph.nodes.push(Node::new(op.clone(), &ids, &graph.outputs));
    if dynamic {
        graph.inputs = ids.clone();
        graph.tensors[..inputs.len()].iter_mut().for_each(|t| t.data = None);
    }
    let model = Arc::new(Model { subgraphs: vec![graph], ..Model::default() });
    let mut exec = Executor::new(model.clone(), Options::default())?;
    if dynamic {
        for (id, t) in inputs.iter().enumerate() {
            let v = Value::from_bytes(t.dtype, &t.shape, t.data.as_deref().unwrap_or_default())?;
            exec.set(0, id, v.view())?;
        }
    }
    exec.run(0)?;
    model.subgraphs[0]
        .outputs
        .iter()
        .map(|&t| exec.get(0, t).and_then(|v| Value::from_bytes(v.dtype, v.shape, v.bytes)))
        .collect()
}

/// The elements of the only output.
pub(crate) fn one<T: Pod>(op: Op, inputs: &[Tensor], dtype: DType) -> (Vec<usize>, Vec<T>) {
    let v = run(op, inputs, &[out(dtype)]).unwrap_or_else(|e| panic!("{e}"));
    (v[0].shape.to_vec(), v[0].as_slice::<T>().unwrap_or_else(|e| panic!("{e}")).to_vec())
}

/// Operands that no converter would write: any types, ranks, values and counts. Kernels and shape rules may refuse
/// them, but not panic.
#[test]
fn odd_operands_are_refused() {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut below = move |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % n
    };
    const TYPES: [DType; 11] = [
        DType::F32,
        DType::I32,
        DType::I64,
        DType::I8,
        DType::U8,
        DType::I16,
        DType::Bool,
        DType::F16,
        DType::I4,
        DType::String,
        DType::C64,
    ];
    let families = [
        Family::Unary,
        Family::Binary,
        Family::Select,
        Family::Reduce,
        Family::Reshape,
        Family::Layout,
        Family::Fill,
        Family::Gather,
        Family::Sort,
        Family::Text,
    ];
    let mut worked = 0;
    for &code in Op::CODES {
        let Some(op) = Op::with_defaults(code).filter(|op| families.contains(&op.family())) else { continue };
        for round in 0..300 {
            let common = TYPES[below(TYPES.len())];
            let mut tensors = Vec::new();
            for _ in 0..below(6) + 1 {
                // Mostly one type and int32 operands, so that some of it makes sense.
                let dtype = match below(4) {
                    0 => DType::I32,
                    1 => TYPES[below(TYPES.len())],
                    _ => common,
                };
                let shape: Vec<usize> = (0..below(5)).map(|_| below(4)).collect();
                let n: usize = shape.iter().product();
                let bytes: Vec<u8> = if dtype == DType::String {
                    crate::strings::encode(&vec!["ab c"; n]).unwrap()
                } else {
                    let size = dtype.byte_len(n).unwrap();
                    let wide = (dtype.bits() / 8).max(1);
                    let mut bytes = vec![0u8; size];
                    for e in bytes.chunks_mut(wide) {
                        let v = below(7) as i64 - 2;
                        let v = if dtype == DType::F32 { (v as f32).to_bits() as i64 } else { v };
                        e.iter_mut().zip(v.to_le_bytes()).for_each(|(b, v)| *b = v);
                    }
                    bytes
                };
                let t = Tensor::constant("", dtype, &shape, bytes);
                tensors.push(if below(2) == 0 { q(t, 0.5, 0) } else { t });
            }
            let outputs: Vec<Tensor> = (0..below(3) + 1)
                .map(|_| {
                    let t = out(if below(3) == 0 { TYPES[below(TYPES.len())] } else { common });
                    if below(2) == 0 { q(t, 0.25, 0) } else { t }
                })
                .collect();
            worked += once(&op, &tensors, &outputs, round % 2 == 0).is_ok() as usize;
        }
    }
    assert!(worked > 400, "only {worked} of the operands made sense");
}
