//! Small graphs made here: what is refused, what stays float, what is requantized, and what each mode writes.

use litegpu_cpu::{Executor, Options as CpuOptions, Value};
use litegpu_graph::schema::*;
use litegpu_graph::{DType, ErrorKind, Graph, Model, Node, Op, Signature, Tensor, TensorId, text};
use litegpu_quantizer::*;
use std::sync::Arc;

#[derive(Default)]
struct Build(Graph);

impl Build {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> TensorId {
        self.add(Tensor::new(name, DType::F32, shape))
    }
    fn constant(&mut self, name: &str, shape: &[usize], f: impl Fn(usize) -> f32) -> TensorId {
        let n: usize = shape.iter().product();
        let data: Vec<u8> = (0..n).flat_map(|i| f(i).to_le_bytes()).collect();
        self.add(Tensor::constant(name, DType::F32, shape, data))
    }
    fn add(&mut self, t: Tensor) -> TensorId {
        self.0.tensors.push(t);
        self.0.tensors.len() - 1
    }
    fn node(&mut self, op: Op, inputs: &[TensorId], output: TensorId) -> TensorId {
        self.0.nodes.push(Node::new(op, inputs, &[output]));
        output
    }
    fn done(mut self, inputs: &[(&str, TensorId)], outputs: &[(&str, TensorId)]) -> Model {
        self.0.inputs = inputs.iter().map(|(_, t)| *t).collect();
        self.0.outputs = outputs.iter().map(|(_, t)| *t).collect();
        let names = |l: &[(&str, TensorId)]| l.iter().map(|(n, t)| (n.to_string(), *t)).collect();
        let signature = Signature { key: "main".into(), subgraph: 0, inputs: names(inputs), outputs: names(outputs) };
        Model { version: 3, subgraphs: vec![self.0], signatures: vec![signature], ..Model::default() }
    }
}

fn dense() -> Op {
    Op::FullyConnected(FullyConnectedOptionsT::default())
}

fn wave(i: usize) -> f32 {
    ((i * 37 % 101) as f32 - 50.0) / 70.0
}

/// x -> FULLY_CONNECTED -> SIN -> FULLY_CONNECTED -> y: a float island between integers.
fn island() -> Model {
    let mut b = Build::default();
    let x = b.tensor("x", &[1, 32]);
    let w = b.constant("w", &[64, 32], wave);
    let c = b.constant("c", &[64], wave);
    let v = b.constant("v", &[8, 64], wave);
    let [h, s] = ["h", "s"].map(|n| b.tensor(n, &[1, 64]));
    let y = b.tensor("y", &[1, 8]);
    b.node(dense(), &[x, w, c], h);
    b.node(Op::Sin, &[h], s);
    b.node(dense(), &[s, v], y);
    b.done(&[("x", x)], &[("y", y)])
}

fn value(shape: &[usize], f: impl Fn(usize) -> f32) -> Value {
    let n: usize = shape.iter().product();
    let bytes: Vec<u8> = (0..n).flat_map(|i| f(i).to_le_bytes()).collect();
    Value::from_bytes(DType::F32, shape, &bytes).unwrap()
}

fn some_samples(shape: &[usize]) -> Vec<Sample> {
    let of = |k: usize| Sample { signature: None, inputs: Inputs::Ordered(vec![value(shape, |i| wave(i + 13 * k))]) };
    (0..4).map(of).collect()
}

fn calibrate(m: &Model, samples: &[Sample]) -> Ranges {
    let mut c = Calibrator::new(m, Method::MinMax, 1).unwrap();
    samples.iter().for_each(|s| c.add(s).unwrap());
    c.finish()
}

const INT8: Mode = Mode::Int8 { io: DType::F32, only: false };

fn ops(m: &Model) -> Vec<&str> {
    m.subgraphs[0].nodes.iter().map(|n| n.op.name()).collect()
}

#[test]
fn float_islands() {
    let m = island();
    let r = calibrate(&m, &some_samples(&[1, 32]));
    let (q, report) = quantize(&m, &Options::new(INT8), Some(&r)).unwrap();
    let want = ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE", "SIN", "QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"];
    assert_eq!(ops(&q), want, "{}", text::model(&q));
    assert_eq!(report.nodes[1].form, Form::Float("has no integer form".into()));
    assert!(report.to_string().contains("SIN"));
    let c = compare::compare(&m, &q, &some_samples(&[1, 32]), true).unwrap();
    assert!(c.outputs[0].distance.snr() > 30.0, "{:?}", c.outputs);
    assert!(c.layers.iter().any(|l| l.name == "h" && l.scale > 0.0 && l.steps() < 1.0), "{:?}", c.layers);
    for io in [DType::I8, DType::U8] {
        let (q, _) = quantize(&m, &Options::new(Mode::Int8 { io, only: false }), Some(&r)).unwrap();
        let g = &q.subgraphs[0];
        assert_eq!((g.tensors[g.inputs[0]].dtype, g.tensors[g.outputs[0]].dtype), (io, io));
        assert_eq!((g.tensors[g.inputs[0]].name.as_str(), g.tensors[g.outputs[0]].name.as_str()), ("x", "y"));
        assert_eq!(q.signatures[0].outputs, [("y".to_string(), g.outputs[0])]);
        let c = compare::compare(&m, &q, &some_samples(&[1, 32]), false).unwrap();
        assert!(c.outputs[0].distance.snr() > 30.0, "{io} {:?}", c.outputs);
    }
}

#[test]
fn only_integers_names_the_operator() {
    let m = island();
    let r = calibrate(&m, &some_samples(&[1, 32]));
    for mode in
        [Mode::Int8 { io: DType::I8, only: true }, Mode::Int16x8 { io: DType::F32, only: true, bias: DType::I64 }]
    {
        let e = quantize(&m, &Options::new(mode), Some(&r)).unwrap_err();
        assert!(e.kind == ErrorKind::Unsupported && e.message.contains("SIN 's'"), "{e}");
    }
}

#[test]
fn kept_on_request() {
    let m = island();
    let r = calibrate(&m, &some_samples(&[1, 32]));
    for keep in ["FULLY_CONNECTED", "h"] {
        let options = Options { keep_float: vec![keep.into()], ..Options::new(INT8) };
        let (q, report) = quantize(&m, &options, Some(&r)).unwrap();
        assert_eq!(report.nodes[0].form, Form::Float("kept on request".into()));
        assert_eq!(ops(&q)[0], "FULLY_CONNECTED");
    }
}

#[test]
fn options_and_calibration_are_checked() {
    let m = island();
    let r = calibrate(&m, &some_samples(&[1, 32]));
    let fails = |mode, ranges: Option<&Ranges>, word: &str| {
        let e = quantize(&m, &Options::new(mode), ranges).unwrap_err();
        assert!(e.message.contains(word), "{e}");
    };
    fails(INT8, None, "calibration");
    fails(INT8, Some(&Ranges::default()), "another model");
    fails(Mode::Int8 { io: DType::I16, only: false }, Some(&r), "int16");
    fails(Mode::Int16x8 { io: DType::I8, only: false, bias: DType::I64 }, Some(&r), "int8");
    fails(Mode::Int16x8 { io: DType::I16, only: false, bias: DType::I8 }, Some(&r), "int8");
    fails(Mode::Dynamic { bits: 3, weight_only: false, min_elements: 0 }, None, "3 bits");
    let mut broken = m.clone();
    let w = broken.subgraphs[0].tensors.iter_mut().find(|t| t.name == "w").unwrap();
    let mut data = w.data.as_ref().unwrap().to_vec();
    data[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    w.data = Some(data.into());
    let e = quantize(&broken, &Options::new(Mode::DYNAMIC), None).unwrap_err();
    assert!(e.message.contains("'w'") && e.message.contains("NaN"), "{e}");
    assert!(Calibrator::new(&m, Method::Percentile(1.5), 1).is_err());
}

#[test]
fn samples_are_checked() {
    let m = island();
    let mut c = Calibrator::new(&m, Method::MinMax, 1).unwrap();
    c.add(&some_samples(&[1, 32])[0]).unwrap();
    let named = |name: &str, v: Value| Sample { signature: None, inputs: Inputs::Named(vec![(name.into(), v)]) };
    c.add(&named("x", value(&[1, 32], wave))).unwrap();
    let mut fails = |s: Sample, words: &[&str]| {
        let e = c.add(&s).unwrap_err();
        assert!(words.iter().all(|w| e.message.contains(w)), "{e}");
    };
    fails(named("z", value(&[1, 32], wave)), &["sample 2", "'x' is missing"]);
    fails(named("x", value(&[32], wave)), &["sample 2", "'x'", "shape"]);
    fails(named("x", value(&[1, 32], |i| if i == 3 { f32::NAN } else { 0.0 })), &["sample 2", "'x'", "NaN"]);
    fails(named("x", value(&[1, 32], |_| f32::INFINITY)), &["sample 2", "'x'", "inf"]);
    fails(named("x", Value::zeros(DType::I8, &[1, 32]).unwrap()), &["'x'", "int8"]);
    fails(Sample { signature: None, inputs: Inputs::Ordered(vec![]) }, &["0 inputs given, 1 expected"]);
    fails(
        Sample { signature: Some("other".into()), inputs: Inputs::Ordered(vec![]) },
        &["no signature 'other'", "main"],
    );
    let two = Inputs::Named(vec![("x".into(), value(&[1, 32], wave)), ("q".into(), value(&[1], wave))]);
    fails(Sample { signature: None, inputs: two }, &["no input 'q'"]);
    assert_eq!(c.finish().samples, [2]);
}

/// Two convolved branches and the input itself are joined: the branches take the join's scale, the input is requantized.
#[test]
fn joins() {
    let mut b = Build::default();
    let x = b.tensor("x", &[1, 8]);
    let w = b.constant("w", &[4, 8], wave);
    let v = b.constant("v", &[4, 8], |i| wave(i) * 3.0);
    let [p, q] = ["p", "q"].map(|n| b.tensor(n, &[1, 4]));
    let k = b.constant("k", &[1, 2], |i| i as f32);
    let y = b.tensor("y", &[1, 18]);
    b.node(dense(), &[x, w], p);
    b.node(dense(), &[x, v], q);
    let axis = ConcatenationOptionsT { axis: 1, ..ConcatenationOptionsT::default() };
    b.node(Op::Concatenation(axis), &[p, q, k, x], y);
    let m = b.done(&[("x", x)], &[("y", y)]);
    let s = some_samples(&[1, 8]);
    let r = calibrate(&m, &s);
    let (q8, _) = quantize(&m, &Options::new(INT8), Some(&r)).unwrap();
    assert_eq!(ops(&q8), ["QUANTIZE", "FULLY_CONNECTED", "FULLY_CONNECTED", "QUANTIZE", "CONCATENATION", "DEQUANTIZE"]);
    let g = &q8.subgraphs[0];
    let join = &g.nodes[4];
    let scales: Vec<_> = join.inputs.iter().map(|t| g.tensors[t.unwrap()].per_tensor().unwrap()).collect();
    assert!(scales.iter().all(|s| *s == g.tensors[join.outputs[0]].per_tensor().unwrap()), "{scales:?}");
    let mode = Mode::Int16x8 { io: DType::I16, only: true, bias: DType::I64 };
    let (q16, _) = quantize(&m, &Options::new(mode), Some(&r)).unwrap();
    assert_eq!(ops(&q16).iter().filter(|o| **o == "QUANTIZE").count(), 2, "{}", text::model(&q16));
    for q in [&q8, &q16] {
        let d = compare::compare(&m, q, &s, false).unwrap().outputs[0].distance;
        assert!(d.snr() > 30.0, "{}", d.snr());
    }
}

#[test]
fn weights_of_four_and_eight_bits() {
    let m = island();
    for (bits, dtype, least) in [(8, DType::I8, 35.0), (4, DType::I4, 10.0)] {
        for weight_only in [false, true] {
            let mode = Mode::Dynamic { bits, weight_only, min_elements: 100 };
            let (q, report) = quantize(&m, &Options::new(mode), None).unwrap();
            let g = &q.subgraphs[0];
            let small = g.tensors.iter().filter(|t| t.dtype == dtype).count();
            assert_eq!(small, 2);
            let widening = g.nodes.iter().filter(|n| n.op == Op::Dequantize).count();
            assert_eq!(widening, if weight_only { 2 } else { 0 });
            assert_eq!(report.nodes.iter().filter(|n| n.form == Form::Weights).count(), 2);
            let d = compare::compare(&m, &q, &some_samples(&[1, 32]), false).unwrap().outputs[0].distance;
            assert!(d.snr() > least, "{mode:?} {}", d.snr());
        }
    }
    // Too small.
    let (q, _) =
        quantize(&m, &Options::new(Mode::Dynamic { bits: 8, weight_only: false, min_elements: 100_000 }), None)
            .unwrap();
    assert!(q.subgraphs[0].tensors.iter().all(|t| t.dtype == DType::F32));
}

#[test]
fn float16_and_back() {
    let m = island();
    let (half, report) = quantize(&m, &Options::new(Mode::Float16), None).unwrap();
    assert_eq!(half.subgraphs[0].nodes.iter().filter(|n| n.op == Op::Dequantize).count(), 3);
    assert!(half.metadata.iter().any(|(k, v)| k == "reduced_precision_support" && v.as_ref() == b"fp16accfp32"));
    assert!(report.bytes_after < report.bytes_before * 3 / 4);
    // A float16 model quantizes like the float model that it stands for.
    let r = calibrate(&half, &some_samples(&[1, 32]));
    let (q, _) = quantize(&half, &Options::new(INT8), Some(&r)).unwrap();
    assert_eq!(ops(&q).iter().filter(|o| **o == "DEQUANTIZE").count(), 2);
    assert!(compare::compare(&m, &q, &some_samples(&[1, 32]), false).unwrap().outputs[0].distance.snr() > 30.0);
}

/// A bias too large for the scale of its products raises the weights' scale; weights of zeros keep their bias.
#[test]
fn large_biases() {
    let mut b = Build::default();
    let x = b.tensor("x", &[1, 4]);
    let w = b.constant("w", &[3, 4], |i| {
        if i < 4 {
            1e-7
        } else if i < 8 {
            0.0
        } else {
            0.5
        }
    });
    let c = b.constant("c", &[3], |i| [900.0, 3.0, 1.0][i]);
    let y = b.tensor("y", &[1, 3]);
    b.node(dense(), &[x, w, c], y);
    let m = b.done(&[("x", x)], &[("y", y)]);
    let s = some_samples(&[1, 4]);
    let (q, report) = quantize(&m, &Options::new(INT8), Some(&calibrate(&m, &s))).unwrap();
    assert_eq!(report.notes.len(), 1, "{report}");
    let mut exec = Executor::new(Arc::new(q.clone()), CpuOptions::default()).unwrap();
    exec.set(0, q.subgraphs[0].inputs[0], value(&[1, 4], wave).view()).unwrap();
    exec.run(0).unwrap();
    let out = params::floats(exec.get(0, q.subgraphs[0].outputs[0]).unwrap().bytes);
    assert!((out[0] - 900.0).abs() < 4.0 && (out[1] - 3.0).abs() < 4.0, "{out:?}");
}
