//! Measured tuning: what it chooses changes no bit of a result, is kept, and is believed only where it belongs.

mod common;

use common::*;
use litegpu_delegate::*;
use litegpu_graph::schema::*;
use litegpu_graph::shapes::Shapes;
use litegpu_graph::{DType, Model, Op, Quant};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// A folder of its own for each test.
fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("litegpu-tune-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn open(tune: Tune, folder: &Path, tune_time: Duration) -> Option<Engine> {
    if std::env::var("NO_GPU").is_ok_and(|v| v == "1") {
        eprintln!("skipped: NO_GPU=1");
        return None;
    }
    let adapter = std::env::var("LITEGPU_ADAPTER").ok();
    let tuned = Some(folder.to_path_buf());
    let options = EngineOptions { adapter, tune, tune_time, tuned, ..EngineOptions::default() };
    Some(Engine::open_blocking(options).expect("no adapter; set NO_GPU=1 to run without"))
}

/// A convolution and a depthwise one, in int8 or in float32.
fn network(dtype: DType) -> (Model, Shapes) {
    let int = dtype == DType::I8;
    let mut c = Case::new("tuned", Tolerance::Exact);
    let x = if int { c.int8(&[1, 40, 11, 12], 0.05, 3) } else { c.input(dtype, &[1, 40, 11, 12], -1.0, 1.0) };
    let each = |axis: usize| {
        let scale: Vec<f32> = (0..20).map(|i| 0.004 + i as f32 * 1e-4).collect();
        int.then(|| Quant { zero_point: vec![0; scale.len()], scale, axis, ..Quant::default() })
    };
    let (low, high) = if int { (-127.0, 127.0) } else { (-1.0, 1.0) };
    let bias = |c: &mut Case| match int {
        true => c.weights(DType::I32, &[20], -500.0, 500.0, None),
        false => c.weights(DType::F32, &[20], -1.0, 1.0, None),
    };
    let operands = [x, c.weights(dtype, &[20, 3, 3, 12], low, high, each(0)), bias(&mut c)];
    let conv = Conv2DOptionsT { stride_w: 1, stride_h: 1, ..Default::default() };
    let a = c.op(Op::Conv2d(conv), &operands, dtype, int.then_some((0.2, -4)));
    let operands = [a, c.weights(dtype, &[1, 3, 3, 20], low, high, each(3)), bias(&mut c)];
    let depthwise = DepthwiseConv2DOptionsT { stride_w: 1, stride_h: 1, depth_multiplier: 1, ..Default::default() };
    c.op(Op::DepthwiseConv2d(depthwise), &operands, dtype, int.then_some((0.3, 7)));
    let shapes = infer(&mut c.model).expect("a sound network");
    (c.model, shapes)
}

fn program(engine: &Engine, model: &Model, shapes: &Shapes) -> Program {
    let options = PlanOptions { precision: Precision::F32, force_gpu: true, ..PlanOptions::default() };
    let plan = gpu_plan(model, shapes, engine.caps(), &options).expect("a plan");
    plan.programs().next().expect("a part on the GPU").clone()
}

fn inputs(program: &Program) -> Vec<Vec<u8>> {
    let mut random = Random::new(9);
    let mut input = |p: &Port| fill(&mut random, p.dtype, p.host_bytes() / (p.dtype.bits() / 8).max(1), -100.0, 100.0);
    program.inputs.iter().map(&mut input).collect()
}

fn results(engine: &Engine, program: &Program) -> Vec<Vec<u8>> {
    results_of(engine, program, &inputs(program))
}

fn results_of(engine: &Engine, program: &Program, inputs: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let given: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let mut got: Vec<Vec<u8>> = program.outputs.iter().map(|p| vec![0; p.host_bytes()]).collect();
    let mut room: Vec<&mut [u8]> = got.iter_mut().map(Vec::as_mut_slice).collect();
    engine.load_blocking(program).and_then(|mut l| l.run_blocking(&given, &mut room)).expect("a run");
    got
}

/// The programs that result when each dispatch is put in each of its other forms by hand, as choices would.
#[test]
fn every_form_gives_the_same_bits() {
    for dtype in [DType::I8, DType::F32] {
        let none = folder("forms");
        let Some(engine) = open(Tune::Never, &none, LONG) else { return };
        let (model, shapes) = network(dtype);
        let usual = program(&engine, &model, &shapes);
        let want = results(&engine, &usual);
        let mut forms = 0;
        for at in 0..usual.dispatches.len() {
            for form in usual.dispatches[at].others.clone() {
                let mut other = usual.clone();
                other.choose(at, &form);
                assert_ne!(other.dispatches[at], usual.dispatches[at]);
                assert_eq!(results(&engine, &other), want, "{dtype} dispatch {at} as {form:?}");
                forms += 1;
            }
        }
        assert!(forms >= 2, "{forms} forms");
        assert!(!none.exists(), "nothing was measured, and something was kept");
    }
}

#[test]
fn choices_are_kept_and_change_nothing() {
    let kept = folder("kept");
    let (model, shapes) = network(DType::I8);
    let Some(plain) = open(Tune::Never, &kept, LONG) else { return };
    let want = results(&plain, &program(&plain, &model, &shapes));
    let Some(first) = open(Tune::Always, &kept, LONG) else { return };
    let p = program(&first, &model, &shapes);
    assert_eq!(results(&first, &p), want);
    let chosen = Tuned::from_bytes(first.caps(), &first.tuned());
    let problems = p.dispatches.iter().filter(|d| !d.others.is_empty()).count();
    assert_eq!(chosen.len(), problems);
    // Another engine finds them, has nothing left to measure and adds nothing, though it may take no time at all.
    let Some(second) = open(Tune::Always, &kept, Duration::ZERO) else { return };
    assert_eq!(second.tuned(), first.tuned());
    assert_eq!(results(&second, &p), want);
    assert_eq!(second.tuned(), first.tuned());
    // What is damaged is as if it were not there, and is written anew.
    let file = std::fs::read_dir(&kept).expect("the folder").next().expect("a file").expect("a file").path();
    std::fs::write(&file, b"nonsense").expect("the file");
    let Some(third) = open(Tune::Always, &kept, LONG) else { return };
    assert!(Tuned::from_bytes(third.caps(), &third.tuned()).is_empty());
    assert_eq!(results(&third, &p), want);
    let bytes = std::fs::read(&file).expect("the file");
    assert_eq!(Tuned::from_bytes(third.caps(), &bytes).len(), problems);
    // Bytes of another adapter are not believed; one's own are.
    let Some(fourth) = open(Tune::Always, &folder("empty"), Duration::ZERO) else { return };
    let strange = Tuned::new(&Caps { name: "another".into(), ..fourth.caps().clone() });
    fourth.set_tuned(&strange.to_bytes());
    assert!(Tuned::from_bytes(fourth.caps(), &fourth.tuned()).is_empty());
    fourth.set_tuned(&bytes);
    assert_eq!(fourth.tuned(), bytes);
    let _ = std::fs::remove_dir_all(&kept);
}

/// A choice that names no form (of an earlier set of forms, say) is none.
#[test]
fn choices_out_of_range_are_the_usual_form() {
    let none = folder("range");
    let Some(engine) = open(Tune::Always, &none, LONG) else { return };
    let (model, shapes) = network(DType::F32);
    let p = program(&engine, &model, &shapes);
    let want = results(&engine, &p);
    let text = String::from_utf8(engine.tuned()).expect("text");
    let mut wrong = Tuned::new(engine.caps());
    for line in text.lines().filter_map(|l| l.split_once(' ')).filter(|(h, _)| h.len() == 16) {
        wrong.choose(u64::from_str_radix(line.0, 16).expect("a number"), 250);
    }
    assert!(!wrong.is_empty());
    let Some(other) = open(Tune::Always, &folder("range2"), Duration::ZERO) else { return };
    other.set_tuned(&wrong.to_bytes());
    assert_eq!(results(&other, &p), want);
    let _ = std::fs::remove_dir_all(&none);
}

/// Sums that a GPU's kernels share out among invocations, against those of one invocation each: of integers, and of floats
/// that are whole numbers, so that the order of a sum makes no difference.
#[test]
fn shared_sums_are_the_same() {
    let none = folder("shared");
    let Some(engine) = open(Tune::Never, &none, LONG) else { return };
    let options = EngineOptions { tune: Tune::Never, hide_software: true, ..EngineOptions::default() };
    let options = EngineOptions { adapter: std::env::var("LITEGPU_ADAPTER").ok(), ..options };
    let as_gpu = Engine::open_blocking(options).expect("an adapter");
    // Rows, depth, units: one row by several invocations, with remainders everywhere; tiles of 64 by 64.
    for (rows, depth, units) in [(1, 1003, 10), (3, 264, 37), (1100, 40, 517)] {
        for dtype in [DType::I8, DType::F32] {
            let int = dtype == DType::I8;
            let mut c = Case::new("shared", Tolerance::Exact);
            let x = if int { c.int8(&[rows, depth], 0.05, 3) } else { c.input(dtype, &[rows, depth], -9.0, 9.0) };
            let quant = Quant { scale: vec![0.25], zero_point: vec![0], ..Quant::default() };
            let w = c.weights(DType::I8, &[units, depth], -127.0, 127.0, Some(quant));
            c.op(Op::FullyConnected(Default::default()), &[x, w], dtype, int.then_some((3.0, -4)));
            let shapes = infer(&mut c.model).expect("a sound network");
            let usual = program(&engine, &c.model, &shapes);
            let other = program(&as_gpu, &c.model, &shapes);
            assert_ne!(usual.kernels, other.kernels);
            let mut given = inputs(&usual);
            if dtype == DType::F32 {
                for value in given[0].as_chunks_mut::<4>().0 {
                    *value = f32::from_le_bytes(*value).round().to_le_bytes();
                }
            }
            let [a, b] = [(&engine, &usual), (&as_gpu, &other)].map(|(e, p)| results_of(e, p, &given));
            assert_eq!(a, b, "{dtype} {rows} {depth} {units}");
        }
    }
}
