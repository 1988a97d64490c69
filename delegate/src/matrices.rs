//! Cooperative matrices are used where they have been seen to multiply right: drivers have them since recently, and wgpu
//! calls them experimental.

use crate::caps::{AdapterClass, Caps, Matrices, Precision};
use crate::engine::{Engine, GpuError, GpuErrorKind};
use crate::plan::{PlanOptions, Step, plan};
use half::f16;
use litegpu_graph::schema::FullyConnectedOptionsT;
use litegpu_graph::shapes::propagate_in;
use litegpu_graph::{DType, Graph, Model, Node, Op, Tensor};

/// Rows that make tiles enough for a GPU and, times [`DEPTH`], elements enough to be kept in 16 bits.
const ROWS: usize = 8192;
/// More than a step of the kernel, and not a whole number of steps.
const DEPTH: usize = 28;
const COLUMNS: usize = 70;

/// Factors are small whole numbers that no short period repeats: sums are exact, and an element in the wrong place shows.
fn factor(i: usize, of: usize) -> i32 {
    (i.wrapping_mul(of) >> 7) as i32 % 9 - 4
}

const LEFT: usize = 2_654_435_761;
const RIGHT: usize = 2_246_822_519;

impl Engine {
    /// Which of the adapter's cooperative matrices give the right products.
    pub(crate) async fn proven(&self) -> Matrices {
        let all = self.caps().matrices;
        let half = Matrices { f32: false, ..all };
        let single = Matrices { f16: None, ..all };
        Matrices {
            f16: if all.f16.is_some() && self.multiplies(half).await.is_ok() { all.f16 } else { None },
            f32: all.f32 && self.multiplies(single).await.is_ok(),
        }
    }

    /// A product by these matrices.
    ///
    /// # Errors
    /// When it cannot be made, or is wrong.
    async fn multiplies(&self, matrices: Matrices) -> Result<(), GpuError> {
        let wrong = |what: String| GpuError::new(GpuErrorKind::Internal, what);
        let half = matrices.f16.is_some();
        let left: Vec<i32> = (0..ROWS * DEPTH).map(|i| factor(i, LEFT)).collect();
        let right: Vec<i32> = (0..COLUMNS * DEPTH).map(|i| factor(i, RIGHT)).collect();
        let model = product(&right, half);
        let Some(graph) = model.subgraphs.first() else { return Err(wrong("no graph".into())) };
        let shapes = propagate_in(&model, graph, &[], &[], None).map_err(|e| wrong(e.to_string()))?;
        // As on a GPU, whatever the adapter is.
        let caps = Caps { matrices, class: AdapterClass::Discrete, ..self.caps().clone() };
        let precision = if half { Precision::F16 } else { Precision::F32 };
        let options = PlanOptions { precision, force_gpu: true, ..PlanOptions::default() };
        let plan = plan(&model, 0, &shapes, &caps, &options, None).map_err(|e| wrong(e.to_string()))?;
        let [Step::Gpu(program)] = plan.steps.as_slice() else { return Err(wrong("no program".into())) };
        if !program.kernels.iter().any(|k| k.needs_matrices()) {
            return Err(wrong("a program without matrices".into()));
        }
        let mut loaded = self.load_as_is(program).await?;
        let x: Vec<f32> = left.iter().map(|&v| v as f32).collect();
        let mut y = vec![0f32; ROWS * COLUMNS];
        loaded.run(&[bytemuck::cast_slice(&x)], &mut [bytemuck::cast_slice_mut(&mut y)]).await?;
        // Every row of the first tiles, and some of each other.
        let rows = (0..ROWS).filter(|r| *r < 128 || r % 13 == 5);
        for (r, y) in rows.map(|r| (r, &y[r * COLUMNS..][..COLUMNS])) {
            for (y, w) in y.iter().zip(right.chunks_exact(DEPTH)) {
                let want: i32 = left[r * DEPTH..][..DEPTH].iter().zip(w).map(|(a, b)| a * b).sum();
                if *y != want as f32 {
                    return Err(wrong(format!("a cooperative matrix product of {want} came out as {y}")));
                }
            }
        }
        Ok(())
    }
}

/// A product of an input with constant weights, in 16 bits as files have them, or in 32.
fn product(right: &[i32], half: bool) -> Model {
    let shape = [COLUMNS, DEPTH];
    let mut tensors = vec![Tensor::new("x", DType::F32, &[ROWS, DEPTH])];
    let mut nodes = Vec::new();
    let weights = if half {
        let bytes: Vec<u8> = right.iter().flat_map(|&v| f16::from_f32(v as f32).to_le_bytes()).collect();
        tensors.push(Tensor::constant("halves", DType::F16, &shape, bytes));
        tensors.push(Tensor::new("weights", DType::F32, &shape));
        nodes.push(Node::new(Op::Dequantize, &[1], &[2]));
        2
    } else {
        let bytes: Vec<u8> = right.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect();
        tensors.push(Tensor::constant("weights", DType::F32, &shape, bytes));
        1
    };
    let y = tensors.len();
    tensors.push(Tensor::new("y", DType::F32, &[ROWS, COLUMNS]));
    nodes.push(Node::new(Op::FullyConnected(FullyConnectedOptionsT::default()), &[0, weights], &[y]));
    let graph = Graph { tensors, nodes, inputs: vec![0], outputs: vec![y], ..Graph::default() };
    Model { version: 3, subgraphs: vec![graph], ..Model::default() }
}
