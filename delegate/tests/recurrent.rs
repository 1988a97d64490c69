//! Recurrent cells against the CPU: results, and the states that they leave.

mod common;
use common::*;
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Op, Quant, TensorId};

/// Sums of `depth` products of numbers up to 1, through gates whose slope is at most 1, once a step.
fn tolerance(depth: usize, time: usize) -> Tolerance {
    Tolerance::Float { abs: 2e-7 * (depth * time) as f32 + 2e-6, rel: 1e-5 }
}

/// With int8 weights both sides round what these meet to 8 bits. A value that lies between two of them to within a float's
/// last bits may go either way: by a step of 1/127, times a weight of 0.5.
fn rounded(depth: usize, time: usize) -> Tolerance {
    match tolerance(depth, time) {
        Tolerance::Float { abs, rel } => Tolerance::Float { abs: abs + 0.004, rel },
        other => other,
    }
}

/// int8 weights of up to `most`.
fn int8(c: &mut Case, shape: &[usize], most: f32) -> TensorId {
    c.weights(DType::I8, shape, -127.0, 127.0, Some(Quant::scalar(most / 127.0, 0)))
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
    /// int8 weights, whose operands are rounded asymmetrically or not.
    dynamic: Option<bool>,
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
    dynamic: None,
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
        let float =
            |c: &mut Case, shape: &[usize], wanted: bool| wanted.then(|| c.weights(DType::F32, shape, -0.5, 0.5, None));
        let w = |c: &mut Case, shape: &[usize], wanted: bool| match self.dynamic {
            Some(_) => wanted.then(|| int8(c, shape, 0.5)),
            None => float(c, shape, wanted),
        };
        let mut all = Vec::new();
        for columns in [self.width, outputs] {
            (0..4).for_each(|g| all.push(w(c, &[cells, columns], g > 0 || !self.cifg)));
        }
        (0..3).for_each(|g| all.push(w(c, &[cells], self.peephole && (g > 0 || !self.cifg))));
        (0..4).for_each(|g| all.push(float(c, &[cells], g > 0 || !self.cifg)));
        all.push(w(c, &[outputs, cells], self.projection.is_some()));
        all.push(float(c, &[outputs], self.projection.is_some()));
        all
    }

    fn run(self) {
        let name = format!(
            "LSTM of {} cells, {} outputs, {:?}, cifg {}, peephole {}, norm {}, {:?}, int8 {:?}",
            self.cells,
            self.outputs(),
            self.shape(),
            self.cifg,
            self.peephole,
            self.norm,
            self.act,
            self.dynamic
        );
        let depth = self.width + self.outputs() + self.cells;
        let tolerance = if self.dynamic.is_some() { rounded } else { tolerance };
        let mut c = Case::new(name, tolerance(depth, self.time));
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
            asymmetric_quantize_inputs: self.dynamic == Some(true),
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
fn lstm_int8() {
    for asymmetric in [false, true] {
        let form = Form { dynamic: Some(asymmetric), ..PLAIN };
        form.run();
        Form { batch: 3, time: 3, cells: 20, width: 28, ..form }.run();
        Form { cifg: true, peephole: true, batch: 2, time_major: true, ..form }.run();
        Form { projection: Some(3), batch: 2, ..form }.run();
        Form { norm: true, projection: Some(9), cifg: true, ..form }.run();
    }
}

/// The LSTM in integers, whose cell state has a scale of 2^`exponent`: to the last bit, results and states.
fn integers(f: Form, exponent: i32) {
    let name = format!(
        "integer LSTM of {} cells, {} outputs, {:?}, 2^{exponent}, peephole {}, norm {}, time major {}",
        f.cells,
        f.outputs(),
        f.shape(),
        f.peephole,
        f.norm,
        f.time_major
    );
    let mut c = Case::new(name, Tolerance::Exact);
    let scalar = |s: f32, z: i64| Some(Quant::scalar(s, z));
    let x = c.int8(&f.shape(), 0.0079, 3);
    let mut operands = vec![Some(x)];
    for columns in [f.width, f.outputs()] {
        for g in 0..4 {
            let scale = 0.004 + 0.0007 * (g + columns % 3) as f32;
            let wanted = g > 0 || !f.cifg;
            let w = |c: &mut Case| c.weights(DType::I8, &[f.cells, columns], -127.0, 127.0, scalar(scale, 0));
            operands.push(wanted.then(|| w(&mut c)));
        }
    }
    for g in [0, 1, 3] {
        let wanted = f.peephole && (g > 0 || !f.cifg);
        let scale = scalar(2e-5 * (g + 1) as f32, 0);
        operands.push(wanted.then(|| c.weights(DType::I16, &[f.cells], -32767.0, 32767.0, scale)));
    }
    for g in 0..4 {
        let wanted = g > 0 || !f.cifg;
        operands.push(wanted.then(|| c.weights(DType::I32, &[f.cells], -20000.0, 20000.0, scalar(3e-5, 0))));
    }
    let projected = f.projection.is_some();
    let shape = [f.outputs(), f.cells];
    operands.push(projected.then(|| c.weights(DType::I8, &shape, -127.0, 127.0, scalar(0.0031, 0))));
    operands.push(projected.then(|| c.weights(DType::I32, &[f.outputs()], -900.0, 900.0, scalar(2e-5, 0))));
    let state = scalar(0.0081, -7);
    operands.push(Some(c.state_of(DType::I8, &[f.batch, f.outputs()], -128.0, 127.0, state.clone())));
    let cell = scalar(2f32.powi(exponent), 0);
    operands.push(Some(c.state_of(DType::I16, &[f.batch, f.cells], -32768.0, 32767.0, cell)));
    for g in 0..4 {
        let wanted = f.norm && (g > 0 || !f.cifg);
        let scale = scalar(3e-5 + 1e-5 * g as f32, 0);
        operands.push(wanted.then(|| c.weights(DType::I16, &[f.cells], -32767.0, 32767.0, scale)));
    }
    let mut parts = Vec::new();
    for i in 0..5 {
        let mut t = litegpu_graph::Tensor::new("part", if i < 4 { DType::I16 } else { DType::I8 }, &[]);
        t.quant = if i < 4 { scalar(2f32.powi(-12) * (1 + i) as f32, 0) } else { scalar(0.0077, 5) };
        parts.push(Some(c.add(t)));
    }
    let mut y = litegpu_graph::Tensor::new("out", DType::I8, &[]);
    y.quant = state;
    let y = c.add(y);
    let o = UnidirectionalSequenceLSTMOptionsT {
        fused_activation_function: ActivationFunctionType::TANH,
        cell_clip: f.clip[0],
        proj_clip: f.clip[1],
        time_major: f.time_major,
        ..Default::default()
    };
    let mut node = litegpu_graph::Node::new(Op::UnidirectionalSequenceLstm(o), &[], &[y]);
    (node.inputs, node.intermediates) = (operands, parts);
    let graph = c.graph();
    graph.nodes.push(node);
    if f.batch == 3 {
        // What only a conversion reads is written as floats.
        c.op(Op::Dequantize, &[y], DType::F32, None);
    } else {
        graph.outputs.push(y);
    }
    c.run_in(&[Config::F32, Config::NoSubgroups]);
}

#[test]
fn lstm_in_integers() {
    // Every number of bits before the point that a cell state may have, and some for which there is no tangent.
    for exponent in -18..=-7 {
        integers(Form { time: 3, cells: 9, batch: 2, ..PLAIN }, exponent);
    }
    integers(Form { time: 12, batch: 2, cells: 300, width: 16, time_major: true, ..PLAIN }, -11);
    integers(Form { cifg: true, clip: [3.0, 0.0], batch: 3, ..PLAIN }, -12);
    integers(Form { projection: Some(3), clip: [0.0, 0.6], time: 9, batch: 2, ..PLAIN }, -11);
    integers(Form { projection: Some(9), cifg: true, cells: 5, time: 7, ..PLAIN }, -13);
}

/// With peepholes, of which the reference walks as many as there are outputs, and with layer normalization.
#[test]
fn lstm_in_integers_peephole_and_norm() {
    let few = Form { time: 3, cells: 9, batch: 2, ..PLAIN };
    integers(Form { peephole: true, ..few }, -11);
    integers(Form { peephole: true, cifg: true, time_major: true, ..few }, -12);
    for time_major in [false, true] {
        integers(Form { peephole: true, projection: Some(4), time_major, ..few }, -11);
        integers(Form { peephole: true, projection: Some(13), time_major, ..few }, -13);
    }
    integers(Form { norm: true, ..few }, -11);
    integers(Form { norm: true, cells: 1, ..few }, -11);
    // A cell state without a tangent.
    integers(Form { norm: true, peephole: true, ..few }, -6);
    integers(Form { norm: true, peephole: true, projection: Some(5), clip: [3.0, 0.6], ..few }, -12);
    integers(Form { norm: true, cifg: true, cells: 70, time: 7, ..few }, -10);
    integers(Form { norm: true, peephole: true, cells: 300, width: 16, time_major: true, ..few }, -11);
}

#[test]
fn svdf_in_integers() {
    for (batch, width, units, rank, memory, bias) in [
        (1, 3, 4, 1, 10, true),
        (2, 9, 5, 2, 7, false),
        (3, 40, 70, 1, 8, true),
        (1, 4, 2, 3, 1, true),
        (20, 8, 6, 2, 5, true),
    ] {
        let mut c = Case::new(format!("integer SVDF {batch} {width} {units} {rank} {memory}"), Tolerance::Exact);
        let scalar = |s: f32, z: i64| Some(Quant::scalar(s, z));
        let filters = units * rank;
        let mut operands = vec![
            Some(c.int8(&[batch, width], 0.0079, 3)),
            Some(c.weights(DType::I8, &[filters, width], -127.0, 127.0, scalar(0.004, 0))),
            Some(c.weights(DType::I16, &[filters, memory], -32767.0, 32767.0, scalar(3e-5, 0))),
        ];
        operands.push(bias.then(|| c.weights(DType::I32, &[units], -90000.0, 90000.0, scalar(1e-8, 0))));
        let state = c.state_of(DType::I16, &[batch, filters * memory], -32768.0, 32767.0, scalar(3e-4, 0));
        operands.push(Some(state));
        let mut y = litegpu_graph::Tensor::new("out", DType::I8, &[]);
        y.quant = scalar(0.03, -5);
        let y = c.add(y);
        let o = SVDFOptionsT {
            rank: rank as i32,
            fused_activation_function: ActivationFunctionType::RELU,
            asymmetric_quantize_inputs: false,
        };
        let mut node = litegpu_graph::Node::new(Op::Svdf(o), &[], &[y]);
        node.inputs = operands;
        let graph = c.graph();
        graph.nodes.push(node);
        graph.outputs.push(y);
        c.run_in(&[Config::F32, Config::NoSubgroups]);
    }
}

/// An auxiliary input with weights of its own, which both directions read.
#[test]
fn lstm_with_an_auxiliary_input() {
    for (merged, time_major, cifg, dynamic) in
        [(true, false, false, None), (false, true, true, None), (true, true, false, Some(false))]
    {
        let f = Form { batch: 2, time: 5, cells: 6, time_major, cifg, dynamic, ..PLAIN };
        let limit = if dynamic.is_some() { rounded(24, 5) } else { tolerance(24, 5) };
        let mut c = Case::new(format!("auxiliary, merged {merged}, cifg {cifg}, {dynamic:?}"), limit);
        let mut operands = vec![Some(c.input(DType::F32, &f.shape(), -1.0, 1.0))];
        operands.extend(f.weights(&mut c));
        operands.extend(f.weights(&mut c));
        for _ in 0..4 {
            operands.push(Some(c.state(&[f.batch, f.cells], -0.5, 0.5)));
        }
        let [a, b, _] = f.shape();
        operands.push(Some(c.input(DType::F32, &[a, b, 7], -1.0, 1.0)));
        for g in 0..8 {
            let w = |c: &mut Case| match dynamic {
                Some(_) => int8(c, &[f.cells, 7], 0.5),
                None => c.weights(DType::F32, &[f.cells, 7], -0.5, 0.5, None),
            };
            operands.push((g % 4 > 0 || !cifg).then(|| w(&mut c)));
        }
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

/// The same of a plain cell; and a sequence that is walked as often as it has steps.
#[test]
fn rnn_with_an_auxiliary_input() {
    for (aux, time_major, dynamic) in
        [(true, false, false), (true, true, false), (true, false, true), (false, true, true), (true, true, true)]
    {
        let (batch, time, width, units) = (2, 4, 3, 5);
        // Walked again and again: each walk rounds anew.
        let walks = if dynamic && time_major { time } else { 1 };
        let limit = if dynamic { rounded(width + units, time * walks) } else { tolerance(width + units, time) };
        let mut c = Case::new(format!("RNN, auxiliary {aux}, time major {time_major}, int8 {dynamic}"), limit);
        let shape = |n: usize| if time_major { [time, batch, n] } else { [batch, time, n] };
        let matrix = |c: &mut Case, shape: &[usize]| match dynamic {
            true => int8(c, shape, 0.1),
            false => c.weights(DType::F32, shape, -0.1, 0.1, None),
        };
        let mut operands = vec![Some(c.input(DType::F32, &shape(width), -1.0, 1.0))];
        for _ in 0..2 {
            operands.push(Some(matrix(&mut c, &[units, width])));
            operands.push(Some(matrix(&mut c, &[units, units])));
            operands.push(Some(c.weights(DType::F32, &[units], -0.5, 0.5, None)));
            operands.push(Some(c.state(&[batch, units], -0.5, 0.5)));
        }
        operands.push(aux.then(|| c.input(DType::F32, &shape(7), -1.0, 1.0)));
        for _ in 0..2 {
            operands.push(aux.then(|| matrix(&mut c, &[units, 7])));
        }
        let o = BidirectionalSequenceRNNOptionsT {
            fused_activation_function: ActivationFunctionType::TANH,
            time_major,
            merge_outputs: true,
            ..Default::default()
        };
        c.op_of(Op::BidirectionalSequenceRnn(o), &operands, 1);
        c.run();
    }
}

/// The basic cell, whose last activation and state are operands, or variables.
#[test]
fn basic_lstm() {
    for (batch, width, cells, variable) in [(1, 3, 4, false), (2, 9, 17, true), (3, 16, 70, false)] {
        let mut c = Case::new(format!("basic LSTM {batch} {width} {cells} {variable}"), tolerance(width + cells, 1));
        let last = |c: &mut Case| match variable {
            true => c.state(&[batch, cells], -0.9, 0.9),
            false => c.input(DType::F32, &[batch, cells], -0.9, 0.9),
        };
        let operands = [
            c.input(DType::F32, &[batch, width], -1.0, 1.0),
            last(&mut c),
            c.weights(DType::F32, &[4 * cells, width + cells], -0.5, 0.5, None),
            c.weights(DType::F32, &[4 * cells], -0.5, 0.5, None),
            last(&mut c),
        ];
        let o = LSTMOptionsT {
            fused_activation_function: ActivationFunctionType::TANH,
            kernel_type: LSTMKernelType::BASIC,
            ..Default::default()
        };
        let results = c.ops(Op::Lstm(o), &operands, &[DType::F32; 4], None);
        c.graph().outputs = results[..2].to_vec();
        c.run();
    }
}

#[test]
fn rnn_int8() {
    for (batch, time, width, units, asymmetric) in [(1, 1, 3, 4, false), (2, 6, 9, 17, true), (3, 5, 80, 8, false)] {
        let mut c = Case::new(format!("RNN int8 {batch} {time} {width} {units}"), rounded(width + units, time));
        let operands = [
            c.input(DType::F32, &[batch, time, width], -1.0, 1.0),
            int8(&mut c, &[units, width], 0.3),
            int8(&mut c, &[units, units], 0.1),
            c.weights(DType::F32, &[units], -0.5, 0.5, None),
            c.state(&[batch, units], -0.5, 0.5),
        ];
        let o = SequenceRNNOptionsT {
            fused_activation_function: ActivationFunctionType::TANH,
            asymmetric_quantize_inputs: asymmetric,
            ..Default::default()
        };
        c.op(Op::UnidirectionalSequenceRnn(o), &operands, DType::F32, None);
        c.run();
    }
}

#[test]
fn svdf_int8() {
    for (batch, width, units, rank, memory) in [(1, 3, 4, 1, 10), (2, 9, 5, 2, 7), (3, 40, 70, 1, 8)] {
        let mut c = Case::new(format!("SVDF int8 {batch} {width} {units} {rank}"), rounded(width + memory, 1));
        let operands = [
            c.input(DType::F32, &[batch, width], -1.0, 1.0),
            int8(&mut c, &[units * rank, width], 0.5),
            int8(&mut c, &[units * rank, memory], 0.5),
            c.weights(DType::F32, &[units], -0.5, 0.5, None),
            c.state(&[batch, units * rank * memory], -0.5, 0.5),
        ];
        let o = SVDFOptionsT {
            rank: rank as i32,
            fused_activation_function: ActivationFunctionType::NONE,
            asymmetric_quantize_inputs: batch == 2,
        };
        c.op_of(Op::Svdf(o), &operands.map(Some), 1);
        c.run();
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
