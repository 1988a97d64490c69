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

fn observe(m: &Model, method: Method, samples: &[Sample]) -> Observations {
    let mut c = Calibrator::new(m, method, 1).unwrap().channels(true);
    samples.iter().for_each(|s| c.add(s).unwrap());
    c.observations()
}

/// x -> CONV_2D -> DEPTHWISE_CONV_2D -> CONV_2D -> y, with channels of very different sizes and RELU or RELU6 between.
fn layers(activation: ActivationFunctionType) -> Model {
    let mut b = Build::default();
    let uneven = |c: usize| 0.01 * 2.5f32.powi(c as i32);
    let x = b.tensor("x", &[1, 6, 6, 3]);
    let w = b.constant("w", &[8, 1, 1, 3], |i| wave(i) * uneven(i / 3));
    let wb = b.constant("wb", &[8], |i| 0.1 * uneven(i));
    let d = b.constant("d", &[1, 3, 3, 8], |i| wave(i + 5) / uneven(i % 8) * 0.3);
    let db = b.constant("db", &[8], wave);
    let v = b.constant("v", &[4, 1, 1, 8], |i| wave(i + 11));
    let vb = b.constant("vb", &[4], wave);
    let [p, q] = ["p", "q"].map(|n| b.tensor(n, &[1, 6, 6, 8]));
    let y = b.tensor("y", &[1, 6, 6, 4]);
    let conv = |a| {
        Op::Conv2d(Conv2DOptionsT {
            stride_w: 1,
            stride_h: 1,
            fused_activation_function: a,
            ..Conv2DOptionsT::default()
        })
    };
    b.node(conv(activation), &[x, w, wb], p);
    let depthwise = DepthwiseConv2DOptionsT {
        stride_w: 1,
        stride_h: 1,
        depth_multiplier: 1,
        fused_activation_function: activation,
        ..DepthwiseConv2DOptionsT::default()
    };
    b.node(Op::DepthwiseConv2d(depthwise), &[p, d, db], q);
    b.node(conv(ActivationFunctionType::NONE), &[q, v, vb], y);
    b.done(&[("x", x)], &[("y", y)])
}

fn pictures(count: usize) -> Vec<Sample> {
    let of = |k: usize| Sample {
        signature: None,
        inputs: Inputs::Ordered(vec![value(&[1, 6, 6, 3], |i| wave(i * 7 + 31 * k) + 0.4)]),
    };
    (0..count).map(of).collect()
}

fn snr(a: &Model, b: &Model, samples: &[Sample]) -> f64 {
    compare::compare(a, b, samples, false).unwrap().outputs[0].distance.snr()
}

#[test]
fn equalized_layers_compute_the_same_and_quantize_better() {
    for (activation, data, pairs) in [
        (ActivationFunctionType::RELU, false, 2),
        (ActivationFunctionType::RELU, true, 2),
        (ActivationFunctionType::RELU6, true, 2),
        // Without samples nobody knows which channels are clipped.
        (ActivationFunctionType::RELU6, false, 0),
        (ActivationFunctionType::RELU_N1_TO_1, true, 0),
    ] {
        let m = layers(activation);
        let s = pictures(6);
        let seen = data.then(|| observe(&m, Method::MinMax, &s).ranges());
        let (equal, n) = equalize::equalize(&m, seen.as_ref());
        assert_eq!(n, pairs, "{activation:?}");
        // Float32 rounding alone: 24 bits are 144 dB, and a few sums lose some.
        let exact = snr(&m, &equal, &s);
        assert!(exact > 110.0, "{activation:?}: {exact}");
        if n > 0 {
            let plain = quantize(&m, &Options::new(INT8), Some(&calibrate(&m, &s))).unwrap().0;
            let better = quantize(&equal, &Options::new(INT8), Some(&calibrate(&equal, &s))).unwrap().0;
            let (a, b) = (snr(&m, &plain, &s), snr(&m, &better, &s));
            assert!(b > a + 1.0, "{activation:?}, samples {data}: {a} dB, equalized {b} dB");
        }
    }
}

/// Quantizes as `options` say, looking at the samples.
fn tuned(m: &Model, options: &Options, s: &[Sample]) -> litegpu_graph::Result<(Model, QuantReport)> {
    let begin =
        || -> Box<dyn Iterator<Item = litegpu_graph::Result<Sample>> + '_> { Box::new(s.iter().cloned().map(Ok)) };
    let last = std::cell::Cell::new((0, 0));
    let progress = |done: usize, of: usize| {
        assert!(done == last.get().0 + 1 && done <= of, "{done} of {of} after {:?}", last.get());
        last.set((done, of));
    };
    let data = Data { samples: &begin, threads: 1, keep_state: false, progress: &progress };
    let r = options.needs_calibration(m).then(|| calibrate(m, s));
    let (q, _, report) = quantize_with(m, options, r.as_ref(), &data)?;
    assert_eq!(last.get().0, last.get().1, "the last pass is told");
    Ok((q, report))
}

/// Quantization moves results by some mean; the correction takes that from the biases. Fitted weights move results less
/// in the first place. Both are chosen on some samples and hold on others.
#[test]
fn tuned_layers() {
    let four = Mode::Dynamic { bits: 4, weight_only: true, min_elements: 0 };
    let (seen, held) = (pictures(24), pictures(60).split_off(24));
    for activation in [ActivationFunctionType::RELU, ActivationFunctionType::NONE] {
        let m = layers(activation);
        for mode in [INT8, four, Mode::Int16x8 { io: DType::F32, only: true, bias: DType::I64 }] {
            let snr = |weights, correct_bias| {
                let options = Options { weights, correct_bias, ..Options::new(mode) };
                let (q, report) = tuned(&m, &options, &seen).unwrap();
                let said = report.notes.iter().any(|n| n.contains("dB on the samples before"));
                assert_eq!(said, options.needs_samples(&m), "{report}");
                snr(&m, &q, &held)
            };
            let plain = snr(WeightRange::MinMax, false);
            let found = [snr(WeightRange::Mse, false), snr(WeightRange::MinMax, true), snr(WeightRange::Mse, true)];
            // Rounding of activations to 8 bits is what is left in INT8, and nothing here changes that.
            assert!(found.iter().all(|f| *f >= plain - 0.1), "{activation:?} {mode:?}: {plain} dB, tuned {found:?}");
            assert!(mode == INT8 || found[2] > plain + 1.0, "{activation:?} {mode:?}: {plain} dB, tuned {found:?}");
        }
    }
}

#[test]
fn tuning_needs_samples() {
    let m = layers(ActivationFunctionType::RELU);
    let s = pictures(3);
    let options = Options { correct_bias: true, ..Options::new(INT8) };
    let e = quantize(&m, &options, Some(&calibrate(&m, &s))).unwrap_err();
    assert!(e.message.contains("quantize_with"), "{e}");
    let e = tuned(&m, &options, &[]).unwrap_err();
    assert!(e.message.contains("no samples"), "{e}");
    let dynamic =
        Options { correct_bias: true, ..Options::new(Mode::Dynamic { bits: 8, weight_only: false, min_elements: 0 }) };
    let e = tuned(&m, &dynamic, &[]).unwrap_err();
    assert!(e.message.contains("no samples"), "{e}");
    // What becomes float16 has no integers to choose.
    let half = Options { correct_bias: true, weights: WeightRange::Mse, ..Options::new(Mode::Float16) };
    assert!(!half.needs_samples(&m) && quantize(&m, &half, None).is_ok());
    // A rule for one layer: that one alone is fitted.
    let recipe = Recipe::from_json(r#"{"rules": [{"match": "^q$", "weights": "mse"}]}"#).unwrap();
    let (_, report) = tuned(&m, &Options { recipe, ..Options::new(INT8) }, &pictures(12)).unwrap();
    assert!(report.notes.iter().any(|n| n.contains("of 1 layers were fitted")), "{report}");
    // A sample that fails is named.
    let mut odd = pictures(3);
    odd[2].inputs = Inputs::Ordered(vec![]);
    let begin =
        || -> Box<dyn Iterator<Item = litegpu_graph::Result<Sample>> + '_> { Box::new(odd.iter().cloned().map(Ok)) };
    let data = Data { samples: &begin, threads: 1, keep_state: false, progress: &|_, _| {} };
    let e = quantize_with(&m, &options, Some(&calibrate(&m, &s)), &data).unwrap_err();
    assert!(e.message.contains("sample 2"), "{e}");
}

/// One outlier among small weights: its range costs all the others their steps, so clipping it is less harm in all.
#[test]
fn weights_by_squared_error() {
    let values: Vec<f32> = (0..512).map(|i| if i == 77 { 1.0 } else { wave(i) * 0.1 }).collect();
    for bits in [8, 4] {
        let w =
            params::Weights::symmetric(&values, &[1, 512], params::Grouping::Axis(0), bits, params::Rounding::Inverse);
        let mut fit = w.clone();
        fit.fit_squares(&values, bits);
        let error = |w: &params::Weights| -> f64 {
            w.q.iter().zip(&values).map(|(q, v)| (f64::from(*q) * f64::from(w.scale[0]) - f64::from(*v)).powi(2)).sum()
        };
        assert!(error(&fit) <= error(&w), "{bits}");
        assert!(
            bits == 8 || fit.scale[0] < w.scale[0] && error(&fit) < 0.9 * error(&w),
            "{} {}",
            error(&fit),
            error(&w)
        );
    }
    let m = island();
    let s = some_samples(&[1, 32]);
    let options = Options {
        weights: WeightRange::Mse,
        ..Options::new(Mode::Dynamic { bits: 4, weight_only: true, min_elements: 0 })
    };
    let (q, _) = quantize(&m, &options, None).unwrap();
    let (plain, _) = quantize(&m, &Options { weights: WeightRange::MinMax, ..options.clone() }, None).unwrap();
    assert!(snr(&m, &q, &s) > snr(&m, &plain, &s) - 0.5);
}

#[test]
fn recipes_mix_schemes() {
    let m = layers(ActivationFunctionType::RELU);
    let s = pictures(6);
    let r = calibrate(&m, &s);
    let recipe = |text: &str| Recipe::from_json(text).unwrap();
    let made = |text: &str, mode| {
        let options = Options { recipe: recipe(text), ..Options::new(mode) };
        quantize(&m, &options, Some(&r)).unwrap()
    };
    // 16 bits in the middle of 8: requantized on the way in and out.
    let (q, report) = made(r#"{"rules": [{"operator": "DEPTHWISE_CONV_2D", "scheme": "int16x8"}]}"#, INT8);
    assert_eq!(
        ops(&q),
        ["QUANTIZE", "CONV_2D", "QUANTIZE", "DEPTHWISE_CONV_2D", "QUANTIZE", "CONV_2D", "DEQUANTIZE"],
        "{report}"
    );
    assert!(report.nodes.iter().all(|n| n.form == Form::Integer));
    assert!(snr(&m, &q, &s) > 20.0);
    // The last rule that applies wins; results are matched by name.
    let text = r#"{"rules": [{"scheme": "f16"}, {"match": "^[py]$", "scheme": "int8"}, {"match": "^y", "scheme": "weights4"}]}"#;
    let (q, report) = made(text, Mode::Dynamic { bits: 8, weight_only: false, min_elements: 0 });
    let forms: Vec<_> = report.nodes.iter().map(|n| n.form.clone()).collect();
    assert_eq!(forms, [Form::Integer, Form::Half, Form::Weights]);
    assert!(snr(&m, &q, &s) > 10.0, "{}", text::model(&q));
    assert_eq!(q.subgraphs[0].tensors.iter().filter(|t| t.dtype == DType::F16).count(), 2);
    // Constants' names count too, and idle rules are told.
    let (_, report) =
        made(r#"{"rules": [{"match": "^vb$", "scheme": "float"}, {"match": "zzz", "scheme": "f16"}]}"#, INT8);
    assert_eq!(report.nodes[2].form, Form::Float("kept on request".into()));
    assert!(report.notes.iter().any(|n| n.contains("rule 1")), "{report}");
    // A mode without data whose recipe needs some.
    let options = Options { recipe: recipe(r#"{"rules": [{"scheme": "int8"}]}"#), ..Options::new(Mode::DYNAMIC) };
    assert!(quantize(&m, &options, None).unwrap_err().message.contains("calibration"));
    for (bad, word) in [
        ("", "no recipe"),
        ("{}", "rules"),
        (r#"{"rules": [{"scheme": "int7"}]}"#, "rule 0"),
        (r#"{"rules": [{"operator": "ADD"}]}"#, "neither"),
        (r#"{"rules": [{"scheme": "int8"}, {"match": "(", "scheme": "int8"}]}"#, "rule 1"),
        (r#"{"rules": [{"match": "((a{999}){999}){999}", "scheme": "int8"}]}"#, "rule 0"),
        (r#"{"rules": [{"scheme": "int8", "colour": 1}]}"#, "colour"),
        (r#"{"rules": [{"scheme": "int8", "method": "best"}]}"#, "best"),
    ] {
        let e = Recipe::from_json(bad).unwrap_err();
        assert!(e.message.contains(word), "{bad}: {e}");
    }
}

#[test]
fn methods_by_recipe() {
    let m = island();
    let recipe = Recipe::from_json(r#"{"rules": [{"match": "^h$", "method": "average:0.5"}]}"#).unwrap();
    let s = some_samples(&[1, 32]);
    let of = |recipe: &Recipe| {
        let c = Calibrator::new(&m, Method::MinMax, 1).unwrap();
        let mut c = c.methods(|s, t| recipe.method(&m, s, t)).unwrap();
        s.iter().for_each(|s| c.add(s).unwrap());
        c.finish()
    };
    let (plain, mixed) = (of(&Recipe::default()), of(&recipe));
    for (t, tensor) in m.subgraphs[0].tensors.iter().enumerate() {
        let (a, b) = (plain.get(0, t), mixed.get(0, t));
        match tensor.name.as_str() {
            "h" => assert!(b.unwrap().max < a.unwrap().max),
            _ => assert_eq!(a, b, "{}", tensor.name),
        }
    }
}

#[test]
fn ranges_are_saved_merged_and_resumed() {
    let m = layers(ActivationFunctionType::RELU);
    let s = pictures(6);
    for method in [Method::MinMax, Method::MovingAverage(0.9), Method::Percentile(0.99), Method::Mse, Method::Entropy] {
        let whole = observe(&m, method, &s);
        let back = Observations::from_json(&whole.to_json().unwrap()).unwrap();
        assert_eq!(back, whole, "{method}");
        // Resumed.
        let first = observe(&m, method, &s[..2]);
        let mut c = Calibrator::new(&m, method, 1).unwrap().channels(true).resume(first.clone()).unwrap();
        s[2..].iter().for_each(|s| c.add(s).unwrap());
        assert_eq!(c.observations(), whole, "{method}");
        // Merged; an average depends on the order, and sums on where they are cut.
        let mut merged = first;
        merged.merge(&observe(&m, method, &s[2..])).unwrap();
        assert_eq!(merged.samples(), 6);
        if !matches!(method, Method::MovingAverage(_)) {
            assert_eq!(merged.ranges().tensors, whole.ranges().tensors, "{method}");
        }
    }
    let mut a = observe(&m, Method::MinMax, &s);
    assert!(a.merge(&observe(&m, Method::Mse, &s)).unwrap_err().message.contains("mse"));
    let mut other = observe(&island(), Method::MinMax, &some_samples(&[1, 32]));
    assert!(a.merge(&other).unwrap_err().message.contains("another model"));
    assert!(other.merge(&a).is_err());
    let text = a.to_json().unwrap();
    for (from, to) in [
        ("litegpu-calibration-1", "litegpu-calibration-9"),
        ("\"minmax\"", "\"best\""),
        ("\"range\":[", "\"range\":[9e9,"),
        ("\"count\":", "\"count\":-"),
        ("\"samples\":6", "\"samples\":1.5"),
    ] {
        assert!(text.contains(from), "{from}: {text}");
        assert!(Observations::from_json(&text.replacen(from, to, 1)).is_err(), "{to}");
    }
    for cut in [0, 1, text.len() / 2, text.len() - 1] {
        assert!(Observations::from_json(&text[..cut]).is_err());
    }
}

/// What another runtime computed counts like what ours computes, and is checked alike.
#[test]
fn values_from_elsewhere() {
    let m = island();
    let mut c = Calibrator::new(&m, Method::MinMax, 1).unwrap();
    let bytes: Vec<u8> = [1.0f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let shape = [1usize, 2];
    c.observe(0, |t| (t == 0).then_some((&bytes[..], &shape[..]))).unwrap();
    let bad: Vec<u8> = [1.0f32, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
    let e = c.observe(0, |t| (t == 0).then_some((&bad[..], &shape[..]))).unwrap_err();
    assert!(e.message.contains("sample 1") && e.message.contains("'x'") && e.message.contains("NaN"), "{e}");
    assert_eq!(c.finish().get(0, 0), Some(Range { min: -2.0, max: 1.0 }));
}

#[test]
fn comparisons_tell_clipping_and_distribution() {
    let m = island();
    let s = some_samples(&[1, 32]);
    // Calibrated on a quarter of the values' size, most of them are clipped.
    let small: Vec<Sample> = (0..4)
        .map(|k| Sample { signature: None, inputs: Inputs::Ordered(vec![value(&[1, 32], |i| wave(i + 13 * k) / 4.0)]) })
        .collect();
    let clipping = |samples: &[Sample]| {
        let (q, _) = quantize(&m, &Options::new(INT8), Some(&calibrate(&m, samples))).unwrap();
        let c = compare::compare(&m, &q, &s, true).unwrap();
        let worst = c.by_harm()[0].steps();
        assert!(c.by_harm().windows(2).all(|w| w[0].scale == 0.0 || w[1].scale == 0.0 || w[0].steps() >= w[1].steps()));
        let x = c.layers.iter().find(|l| l.name == "x").unwrap();
        let (range, counts) = x.histogram(16).unwrap();
        assert_eq!(counts.iter().sum::<f64>(), 128.0);
        assert!(range.max > 0.5);
        (x.clipping(), worst)
    };
    let (healthy, clipped) = (clipping(&s), clipping(&small));
    assert!(healthy.0 == 0.0 && clipped.0 > 0.5, "{healthy:?} {clipped:?}");
    assert!(healthy.1 < 2.0 && clipped.1 > 10.0, "{healthy:?} {clipped:?}");
}

/// A difference that is always zero takes an operand's scale, not one of a billionth.
#[test]
fn results_that_are_always_zero() {
    let mut b = Build::default();
    let x = b.tensor("x", &[1, 4]);
    let k = b.constant("k", &[1, 4], |_| 0.0);
    let (d, y) = (b.tensor("d", &[1, 4]), b.tensor("y", &[1, 4]));
    b.node(Op::Mul(MulOptionsT::default()), &[x, k], d);
    b.node(Op::Add(AddOptionsT::default()), &[d, x], y);
    let m = b.done(&[("x", x)], &[("y", y)]);
    let s = some_samples(&[1, 4]);
    for mode in [INT8, Mode::Int16x8 { io: DType::F32, only: true, bias: DType::I64 }] {
        let (q, _) = quantize(&m, &Options::new(mode), Some(&calibrate(&m, &s))).unwrap();
        let g = &q.subgraphs[0];
        let mul = g.nodes.iter().find(|n| matches!(n.op, Op::Mul(_))).unwrap();
        assert_eq!(g.tensors[mul.outputs[0]].per_tensor(), g.tensors[mul.inputs[0].unwrap()].per_tensor());
        assert!(snr(&m, &q, &s) > 30.0);
    }
}

/// x -> UNIDIRECTIONAL_SEQUENCE_RNN -> y, whose state lives from one run to the next unless it is reset.
fn recurrent() -> Model {
    let mut b = Build::default();
    let x = b.tensor("x", &[1, 3, 2]);
    let w = b.constant("w", &[4, 2], |_| 0.5);
    let r = b.constant("r", &[4, 4], |i| if i % 5 == 0 { 1.0 } else { 0.0 });
    let c = b.constant("c", &[4], |_| 0.0);
    let h = b.add(Tensor { is_variable: true, ..Tensor::new("h", DType::F32, &[1, 4]) });
    let y = b.tensor("y", &[1, 3, 4]);
    b.node(Op::UnidirectionalSequenceRnn(SequenceRNNOptionsT::default()), &[x, w, r, c, h], y);
    b.done(&[("x", x)], &[("y", y)])
}

/// Without an activation the state sums what it was given: three steps of 1 give 3, and 6 where the state stays.
#[test]
fn states_start_from_zero_in_each_sample() {
    let m = recurrent();
    let sample = Sample { signature: None, inputs: Inputs::Ordered(vec![value(&[1, 3, 2], |_| 1.0)]) };
    let largest = |keep: bool| {
        let mut c = Calibrator::new(&m, Method::MinMax, 1).unwrap().keep_state(keep);
        (0..2).for_each(|_| c.add(&sample).unwrap());
        c.finish().get(0, 5).unwrap().max
    };
    assert_eq!((largest(false), largest(true)), (3.0, 6.0));
}

/// Two entry points, calibrated in one go; one that no sample ran is named where everything must become integers.
#[test]
fn several_signatures() {
    let (a, b) = (island(), layers(ActivationFunctionType::RELU));
    let mut m = a.clone();
    m.subgraphs.extend(b.subgraphs);
    m.signatures[0].key = "first".into();
    m.signatures.push(Signature { key: "second".into(), subgraph: 1, ..b.signatures[0].clone() });
    let keyed =
        |key: &str, v: Value| Sample { signature: Some(key.into()), inputs: Inputs::Named(vec![("x".into(), v)]) };
    let first = |k: usize| keyed("first", value(&[1, 32], |i| wave(i + 13 * k)));
    let second = |k: usize| keyed("second", value(&[1, 6, 6, 3], |i| wave(i * 7 + 31 * k)));
    let both: Vec<Sample> = (0..4).flat_map(|k| [first(k), second(k)]).collect();
    let r = calibrate(&m, &both);
    assert_eq!(r.samples, [4, 4]);
    let (q, _) = quantize(&m, &Options::new(INT8), Some(&r)).unwrap();
    let c = compare::compare(&m, &q, &both, false).unwrap();
    assert!(c.outputs.len() == 2 && c.outputs.iter().all(|o| o.distance.snr() > 25.0), "{:?}", c.outputs);
    let only = Options::new(Mode::Int8 { io: DType::I8, only: true });
    let e = quantize(&m, &only, Some(&calibrate(&m, &[second(0)]))).unwrap_err();
    assert!(e.message.contains("no calibration sample ran") && e.message.contains("first"), "{e}");
    // The inputs of one are not those of the other.
    let mut c = Calibrator::new(&m, Method::MinMax, 1).unwrap();
    let e = c.add(&keyed("second", value(&[1, 32], wave))).unwrap_err();
    assert!(e.message.contains("sample 0") && e.message.contains("'x'"), "{e}");
}

/// A value that no sample holds, but a tensor inside: it is named.
#[test]
fn infinite_ranges() {
    let m = island();
    let mut c = Calibrator::new(&m, Method::MinMax, 1).unwrap();
    let s = Sample { signature: None, inputs: Inputs::Ordered(vec![value(&[1, 32], |i| wave(i) * 1e38 * 4.0)]) };
    let e = c.add(&s).unwrap_err();
    assert!(e.message.contains("sample 0") && e.message.contains("'h'"), "{e}");
    assert_eq!(c.finish().samples, [0]);
}

/// A result that cannot run is no result.
#[test]
fn what_is_written_has_been_run() {
    let mut m = island();
    let g = &mut m.subgraphs[0];
    let unknown = litegpu_graph::CustomOp { name: "Unheard".into(), ..Default::default() };
    g.nodes[1].op = Op::Custom(unknown);
    let e = quantize(&m, &Options::new(Mode::DYNAMIC), None).unwrap_err();
    assert!(e.message.contains("running the quantized model") && e.message.contains("Unheard"), "{e}");
    // One that reads more than there is fails too, when it is run or before.
    let mut m = island();
    m.subgraphs[0].nodes[2].inputs[0] = Some(0);
    assert!(quantize(&m, &Options::new(Mode::Float16), None).is_err());
}

/// What lies far below a row's largest value comes out of SOFTMAX as nothing: fitted ranges end there, in 8 bits, and a
/// comparison does not count what they cut.
#[test]
fn ranges_before_softmax() {
    let mut b = Build::default();
    let x = b.tensor("x", &[1, 8]);
    // One class far below the others, always.
    let w = b.constant("w", &[4, 8], |i| wave(i) * 2.0);
    let c = b.constant("c", &[4], |i| [5.0, 5.5, 6.0, -60.0][i]);
    let (z, y) = (b.tensor("z", &[1, 4]), b.tensor("y", &[1, 4]));
    b.node(dense(), &[x, w, c], z);
    b.node(Op::Softmax(SoftmaxOptionsT { beta: 1.0 }), &[z], y);
    let m = b.done(&[("x", x)], &[("y", y)]);
    let of = |k: usize| Sample { signature: None, inputs: Inputs::Ordered(vec![value(&[1, 8], |i| wave(i + 13 * k))]) };
    let (seen, held): (Vec<Sample>, Vec<Sample>) = ((0..24).map(of).collect(), (24..48).map(of).collect());
    let layer = |q: &Model| {
        let c = compare::compare(&m, q, &held, true).unwrap();
        let z = c.layers.iter().find(|l| l.name == "z").unwrap();
        (z.scale, z.steps(), z.clipping(), c.outputs[0].distance.snr())
    };
    let plain = layer(&quantize(&m, &Options::new(INT8), Some(&calibrate(&m, &seen))).unwrap().0);
    let options = Options { weights: WeightRange::Mse, ..Options::new(INT8) };
    let (q, report) = tuned(&m, &options, &seen).unwrap();
    let cut = layer(&q);
    assert!(report.notes.iter().any(|n| n.contains("before SOFTMAX")), "{report}");
    // A range of 70 becomes one of 15: four and a half times finer steps, 13 dB.
    assert!(cut.0 < plain.0 / 3.0 && cut.3 > plain.3 + 6.0, "{plain:?} {cut:?}");
    assert!(cut.1 < 1.0 && cut.2 == 0.0, "{cut:?}");
    // 16 bits are fine enough, and a fixed range is what the original has.
    let wide = Mode::Int16x8 { io: DType::F32, only: true, bias: DType::I64 };
    let (_, report) = tuned(&m, &Options { weights: WeightRange::Mse, ..Options::new(wide) }, &seen).unwrap();
    assert!(report.notes.iter().all(|n| !n.contains("before SOFTMAX")), "{report}");
}

/// Outputs behind functions that saturate are measured before them, where the quantized model has such a place: an input
/// that stays float has none.
#[test]
fn outputs_behind_saturating_functions() {
    let mut b = Build::default();
    let x = b.tensor("x", &[1, 8]);
    let w = b.constant("w", &[4, 8], wave);
    let c = b.constant("c", &[4], wave);
    let [z, y, s] = ["z", "y", "s"].map(|n| b.tensor(n, &[1, 4]));
    let (p, r) = (b.tensor("p", &[1, 8]), b.tensor("r", &[2, 2]));
    b.node(dense(), &[x, w, c], z);
    b.node(Op::Softmax(SoftmaxOptionsT { beta: 1.0 }), &[z], y);
    b.node(Op::Logistic, &[z], s);
    b.node(Op::Softmax(SoftmaxOptionsT { beta: 1.0 }), &[x], p);
    let shape = ReshapeOptionsT { new_shape: Some(vec![2, 2]) };
    b.node(Op::Reshape(shape), &[s], r);
    let m = b.done(&[("x", x)], &[("y", y), ("p", p), ("r", r), ("z", z)]);
    let of = |k: usize| Sample { signature: None, inputs: Inputs::Ordered(vec![value(&[1, 8], |i| wave(i + 13 * k))]) };
    let seen: Vec<Sample> = (0..12).map(of).collect();
    let dynamic = Mode::Dynamic { bits: 8, weight_only: false, min_elements: 0 };
    let int8 = |io, only| Mode::Int8 { io, only };
    for mode in [dynamic, INT8, int8(DType::I8, true), int8(DType::U8, false)] {
        let options = Options { weights: WeightRange::Mse, correct_bias: true, ..Options::new(mode) };
        let (q, report) = tuned(&m, &options, &seen).unwrap_or_else(|e| panic!("{mode:?}: {e}"));
        assert!(report.notes.iter().any(|n| n.contains("after")), "{mode:?} {report}");
        assert!(snr(&m, &q, &seen) > 30.0, "{mode:?}");
    }
}
