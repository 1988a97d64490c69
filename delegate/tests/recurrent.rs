//! Recurrent cells against the CPU: results, and the states that they leave.

mod common;
use common::*;
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Op, TensorId};

/// Sums of `depth` products of numbers up to 1, through gates whose slope is at most 1, once a step.
fn tolerance(depth: usize, time: usize) -> Tolerance {
    Tolerance::Float { abs: 2e-7 * (depth * time) as f32 + 2e-6, rel: 1e-5 }
}

#[derive(Clone, Copy)]
struct Form {
    batch: usize,
    time: usize,
    width: usize,
    cells: usize,
    projection: Option<usize>,
    cifg: bool,
    peephole: bool,
    norm: bool,
    time_major: bool,
    act: ActivationFunctionType,
    clip: [f32; 2],
}

const PLAIN: Form = Form {
    batch: 1,
    time: 4,
    width: 5,
    cells: 6,
    projection: None,
    cifg: false,
    peephole: false,
    norm: false,
    time_major: false,
    act: ActivationFunctionType::TANH,
    clip: [0.0; 2],
};

impl Form {
    fn outputs(&self) -> usize {
        self.projection.unwrap_or(self.cells)
    }

    fn shape(&self) -> [usize; 3] {
        match self.time_major {
            true => [self.time, self.batch, self.width],
            false => [self.batch, self.time, self.width],
        }
    }

    /// Weights of one direction: input (4), recurrent (4), peephole (3), bias (4), projection and its bias.
    fn weights(&self, c: &mut Case) -> Vec<Option<TensorId>> {
        let (cells, outputs) = (self.cells, self.outputs());
        let mut w = |shape: &[usize], wanted: bool| wanted.then(|| c.weights(DType::F32, shape, -0.5, 0.5, None));
        let mut all = Vec::new();
        for columns in [self.width, outputs] {
            (0..4).for_each(|g| all.push(w(&[cells, columns], g > 0 || !self.cifg)));
        }
        (0..3).for_each(|g| all.push(w(&[cells], self.peephole && (g > 0 || !self.cifg))));
        (0..4).for_each(|g| all.push(w(&[cells], g > 0 || !self.cifg)));
        all.push(w(&[outputs, cells], self.projection.is_some()));
        all.push(w(&[outputs], self.projection.is_some()));
        all
    }

    fn run(self) {
        let name = format!(
            "LSTM of {} cells, {} outputs, {:?}, cifg {}, peephole {}, norm {}, {:?}",
            self.cells,
            self.outputs(),
            self.shape(),
            self.cifg,
            self.peephole,
            self.norm,
            self.act
        );
        let mut c = Case::new(name, tolerance(self.width + self.outputs() + self.cells, self.time));
        let x = c.input(DType::F32, &self.shape(), -1.0, 1.0);
        let mut operands = vec![Some(x)];
        operands.extend(self.weights(&mut c));
        operands.push(Some(c.state(&[self.batch, self.outputs()], -0.5, 0.5)));
        operands.push(Some(c.state(&[self.batch, self.cells], -0.5, 0.5)));
        for g in 0..4 {
            let wanted = self.norm && (g > 0 || !self.cifg);
            operands.push(wanted.then(|| c.weights(DType::F32, &[self.cells], 0.1, 0.6, None)));
        }
        let o = UnidirectionalSequenceLSTMOptionsT {
            fused_activation_function: self.act,
            cell_clip: self.clip[0],
            proj_clip: self.clip[1],
            time_major: self.time_major,
            ..Default::default()
        };
        c.op_of(Op::UnidirectionalSequenceLstm(o), &operands, 1);
        c.run();
    }
}

#[test]
fn lstm() {
    PLAIN.run();
    Form { batch: 3, time: 1, cells: 20, width: 28, ..PLAIN }.run();
    Form { batch: 2, time: 9, cells: 33, width: 8, time_major: true, ..PLAIN }.run();
    // More cells than invocations, more rows than the small product takes.
    Form { time: 12, cells: 300, width: 16, ..PLAIN }.run();
}

#[test]
fn lstm_forms() {
    Form { cifg: true, ..PLAIN }.run();
    Form { peephole: true, clip: [0.2, 0.0], ..PLAIN }.run();
    Form { projection: Some(3), clip: [0.0, 0.1], batch: 2, ..PLAIN }.run();
    Form { projection: Some(9), cifg: true, peephole: true, ..PLAIN }.run();
    Form { norm: true, batch: 2, ..PLAIN }.run();
    Form { norm: true, peephole: true, projection: Some(4), cells: 70, ..PLAIN }.run();
    Form { norm: true, cifg: true, peephole: true, ..PLAIN }.run();
    for act in [ActivationFunctionType::NONE, ActivationFunctionType::RELU, ActivationFunctionType::RELU6] {
        Form { act, ..PLAIN }.run();
    }
}

#[test]
fn lstm_both_ways() {
    for (merged, time_major, cells, apart) in
        [(true, false, 8, false), (true, true, 5, false), (false, false, 5, false), (false, true, 6, true)]
    {
        let f = Form { batch: 2, time: 5, cells, time_major, ..PLAIN };
        let mut c = Case::new(format!("both ways, merged {merged}, {cells} cells, {apart}"), tolerance(16, 5));
        let x = c.input(DType::F32, &f.shape(), -1.0, 1.0);
        let mut operands = vec![Some(x)];
        operands.extend(f.weights(&mut c));
        operands.extend(f.weights(&mut c));
        for _ in 0..4 {
            operands.push(Some(c.state(&[f.batch, cells], -0.5, 0.5)));
        }
        // The backward direction may read an input of its own.
        operands.push(apart.then(|| c.input(DType::F32, &f.shape(), -1.0, 1.0)));
        operands.extend([None; 8]);
        let o = BidirectionalSequenceLSTMOptionsT {
            fused_activation_function: ActivationFunctionType::TANH,
            merge_outputs: merged,
            time_major,
            ..Default::default()
        };
        c.op_of(Op::BidirectionalSequenceLstm(o), &operands, if merged { 1 } else { 2 });
        c.run();
    }
}

#[test]
fn rnn() {
    for (batch, time, width, units, time_major) in
        [(1, 1, 3, 4, false), (2, 6, 9, 17, false), (3, 5, 8, 8, true), (1, 10, 12, 270, false)]
    {
        let mut c = Case::new(format!("RNN {batch} {time} {width} {units}"), tolerance(width + units, time));
        let shape = if time_major { [time, batch, width] } else { [batch, time, width] };
        let operands = [
            c.input(DType::F32, &shape, -1.0, 1.0),
            c.weights(DType::F32, &[units, width], -0.3, 0.3, None),
            c.weights(DType::F32, &[units, units], -0.1, 0.1, None),
            c.weights(DType::F32, &[units], -0.5, 0.5, None),
            c.state(&[batch, units], -0.5, 0.5),
        ];
        let o = SequenceRNNOptionsT {
            fused_activation_function: ActivationFunctionType::TANH,
            time_major,
            ..Default::default()
        };
        c.op(Op::UnidirectionalSequenceRnn(o), &operands, DType::F32, None);
        c.run();
    }
}

#[test]
fn rnn_both_ways() {
    for merged in [true, false] {
        let (batch, time, width, units) = (2, 4, 3, 5);
        let mut c = Case::new(format!("RNN both ways, merged {merged}"), tolerance(width + units, time));
        let mut operands = vec![Some(c.input(DType::F32, &[batch, time, width], -1.0, 1.0))];
        for _ in 0..2 {
            operands.push(Some(c.weights(DType::F32, &[units, width], -0.5, 0.5, None)));
            operands.push(Some(c.weights(DType::F32, &[units, units], -0.5, 0.5, None)));
            operands.push(Some(c.weights(DType::F32, &[units], -0.5, 0.5, None)));
            operands.push(Some(c.state(&[batch, units], -0.5, 0.5)));
        }
        operands.extend([None; 3]);
        let o = BidirectionalSequenceRNNOptionsT {
            fused_activation_function: ActivationFunctionType::RELU,
            merge_outputs: merged,
            ..Default::default()
        };
        c.op_of(Op::BidirectionalSequenceRnn(o), &operands, if merged { 1 } else { 2 });
        c.run();
    }
}

#[test]
fn svdf() {
    for (batch, width, units, rank, memory, bias) in
        [(1, 3, 4, 1, 10, true), (2, 9, 5, 2, 7, false), (3, 40, 70, 1, 8, true), (1, 4, 2, 3, 1, true)]
    {
        let mut c = Case::new(format!("SVDF {batch} {width} {units} {rank} {memory}"), tolerance(width + memory, 1));
        let mut operands = vec![
            Some(c.input(DType::F32, &[batch, width], -1.0, 1.0)),
            Some(c.weights(DType::F32, &[units * rank, width], -0.5, 0.5, None)),
            Some(c.weights(DType::F32, &[units * rank, memory], -0.5, 0.5, None)),
        ];
        operands.push(bias.then(|| c.weights(DType::F32, &[units], -0.5, 0.5, None)));
        operands.push(Some(c.state(&[batch, units * rank * memory], -0.5, 0.5)));
        let o = SVDFOptionsT {
            rank: rank as i32,
            fused_activation_function: ActivationFunctionType::RELU,
            ..Default::default()
        };
        c.op_of(Op::Svdf(o), &operands, 1);
        c.run();
    }
}
