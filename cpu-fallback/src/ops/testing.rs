//! One operator on given values, for the kernels' tests.

use crate::{Executor, Options, Value};
use bytemuck::Pod;
use litegpu_graph::{DType, Graph, Model, Node, Op, Quant, Result, Tensor, TensorId};
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
