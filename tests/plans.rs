//! Plans of the shipped models for the least adapter, as text. `BLESS=1 cargo test --test plans` writes them anew.
#![cfg(feature = "gpu")]

mod common;

use litegpu::{Caps, Device, Model, Precision, Session, Target};
use std::fmt::Write;

fn text(model: &Model, everything: bool) -> String {
    let report = Session::builder(model)
        .device(Device::Gpu)
        .precision(Precision::F16)
        .everything_on_gpu(everything)
        .threads(1)
        .plan_for(&Caps::baseline())
        .unwrap();
    // Names of kernels change with every tuning; where an operator runs, and why it does not run on the GPU, is what
    // this pins down.
    let mut out = String::new();
    let _ = writeln!(
        out,
        "gpu {} in {}, cpu {} in {}, folded {}",
        report.count(Target::Gpu),
        report.partition_count(Target::Gpu),
        report.count(Target::Cpu),
        report.partition_count(Target::Cpu),
        report.count(Target::Folded)
    );
    for (i, part) in report.partitions.iter().enumerate() {
        let _ = writeln!(out, "\npart {i} {}", part.target);
        for c in &part.inputs {
            let _ = writeln!(out, "  in {c}");
        }
        for &n in &part.nodes {
            let p = report.placements.iter().find(|p| p.node == n).unwrap();
            let reason = if p.target == Target::Gpu { "" } else { &p.reason };
            let _ = writeln!(out, "{}", format!("  {n} {} {} {reason}", p.op, p.output).trim_end());
        }
        for c in &part.outputs {
            let _ = writeln!(out, "  out {c}");
        }
    }
    out
}

#[test]
fn shipped_models() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = Vec::new();
    for path in common::shipped() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let model = Model::open(&path).unwrap();
        let now = format!("# as it pays\n{}\n# all that can\n{}", text(&model, false), text(&model, true));
        let file = common::repo(&format!("tests/plans/{name}.txt"));
        if bless {
            std::fs::write(&file, &now).unwrap();
        } else if std::fs::read_to_string(&file).unwrap_or_default() != now {
            eprintln!("{name}: the plan is now\n{now}");
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "plans have changed: {wrong:?} (BLESS=1 accepts them)");
}

/// Every real network with float16 or float32 weights that the GPU can take whole: one part, and constants that cost
/// there at most a twentieth more than in the file (where each weight has the type that the GPU keeps it in).
#[test]
fn mediapipe_networks_are_one_part() {
    let Some(folder) = common::shared("models") else { return };
    for name in
        ["face_detection_short_range", "selfie_segmentation", "pose_detection", "hand_landmark_lite", "iris_landmark"]
    {
        let model = Model::open(folder.join(format!("mediapipe__{name}.tflite"))).unwrap();
        let graph = model.graph().main().unwrap();
        // Sparse constants count as what they unfold to: the GPU has no sparse form.
        let file: usize = graph
            .tensors
            .iter()
            .filter(|t| t.is_constant() && t.dtype.is_float() && !t.is_variable)
            .filter_map(|t| t.dtype.byte_len(t.shape.iter().product()))
            .sum();
        let report = Session::builder(&model).device(Device::Gpu).threads(1).plan_for(&Caps::baseline()).unwrap();
        assert_eq!((report.partition_count(Target::Gpu), report.partition_count(Target::Cpu)), (1, 0), "{name}");
        assert_eq!(report.count(Target::Cpu), 0, "{name}");
        let ratio = report.memory.gpu_weights as f64 / file as f64;
        assert!(ratio <= 1.05, "{name}: constants are {ratio:.3} of the file's");
    }
}

/// What networks take of the device's memory, beside what no plan can do without.
#[test]
fn plans_are_near_the_least_memory() {
    let Some(folder) = common::shared("models") else { return };
    let mut ratios = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "tflite") {
            continue;
        }
        let model = Model::open(&path).unwrap();
        let report = Session::builder(&model).device(Device::Gpu).threads(1).plan_for(&Caps::baseline()).unwrap();
        let m = report.memory;
        if m.gpu_lower_bound > 0 {
            let ratio = m.gpu_planned as f64 / m.gpu_lower_bound as f64;
            assert!((1.0..1.4).contains(&ratio), "{}: {ratio:.3}", path.display());
            ratios.push(ratio);
        }
    }
    assert!(ratios.len() > 20, "{} networks", ratios.len());
    let above = ratios.iter().filter(|r| **r > 1.1).count();
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    // Those above have residuals beside their largest tensors.
    assert!(mean < 1.1 && above * 5 < ratios.len(), "{mean:.3}, {above} above 1.1");
}
