//! Models and operator cases with recorded outputs, through the library.
#![cfg(feature = "cli")]

mod common;

use litegpu::verify::{Options, Outcome, Status, Suite};
use litegpu::{Device, HalfStorage, Precision};
use std::path::PathBuf;

/// Cases whose recording litegpu does not repeat, by the beginning of their names, and why. A case that passes again
/// must be taken off: the test says so. `tests/reference.rs` shows that each recording is what the reference makes of a
/// model that it takes for another one.
const KNOWN: [(&str, &str); 11] = [
    ("quantizer-bmm_constant_input-static_wi8_ai16", "the reference takes a scale per channel for zero"),
    ("identify_dilated_conv-i16x8-57b3dc16", SIXTEEN),
    ("identify_dilated_conv-i16x8-59798863", SIXTEEN),
    ("identify_dilated_conv-i16x8-c30d976f", SIXTEEN),
    ("identify_dilated_conv-i16x8-d14fc6ef", SIXTEEN),
    ("identify_dilated_conv1d-i16x8-61a83164", SIXTEEN),
    ("identify_dilated_conv1d-i16x8-89d57529", SIXTEEN),
    ("identify_dilated_conv1d-i16x8-9f88d64f", SIXTEEN),
    ("identify_dilated_conv1d-i16x8-ad6262bf", SIXTEEN),
    ("identify_dilated_conv1d-i16x8-b9f3db5c", SIXTEEN),
    ("identify_dilated_conv1d-i16x8-e2431df4", SIXTEEN),
];
const SIXTEEN: &str = "the reference takes the bytes of a 16-bit filter for an 8-bit one";

fn check(paths: &[PathBuf], options: &Options) -> Vec<Outcome> {
    let suite = Suite::open(paths, &options.filter).unwrap();
    let results = suite.run(options, |_| {}).unwrap();
    let known = |r: &Outcome| KNOWN.iter().find(|(k, _)| r.case.starts_with(k)).map(|(_, why)| why);
    for r in &results {
        match (known(r), r.status) {
            (Some(why), Status::Failed) => eprintln!("known: {} fails: {why}", r.case),
            (Some(_), Status::Passed) => eprintln!("{} passes: take it off the list of known failures", r.case),
            _ => {}
        }
    }
    let failed: Vec<_> = results.iter().filter(|r| r.status == Status::Failed && known(r).is_none()).collect();
    for r in &failed {
        eprintln!("FAIL {}/{} [{}] {}", r.suite, r.case, r.class, r.message.as_deref().unwrap_or_default());
    }
    assert!(failed.is_empty(), "{} of {} failed", failed.len(), results.len());
    results
}

fn cpu() -> Options {
    Options { device: Device::Cpu, ..Options::default() }
}

#[test]
fn shipped_models_on_the_cpu() {
    let all = check(&[common::repo("models")], &cpu());
    assert!(all.iter().all(|r| r.status == Status::Passed), "nothing is skipped");
    assert_eq!(all.len(), common::shipped().len());
}

#[test]
fn shipped_models_on_the_gpu() {
    if !common::gpu() {
        return;
    }
    let all = [HalfStorage::Auto, HalfStorage::Native, HalfStorage::Packed].map(|half| (Precision::F16, half));
    for (precision, half) in all.into_iter().chain([(Precision::F32, HalfStorage::Auto)]) {
        let mut options = Options { device: Device::Gpu, precision, everything_on_gpu: true, ..Options::default() };
        options.gpu.half = half;
        let all = check(&[common::repo("models")], &options);
        assert!(all.iter().all(|r| r.status == Status::Passed), "nothing is skipped");
    }
}

#[test]
fn real_networks_on_the_cpu() {
    let Some(models) = common::shared("models") else { return };
    check(&[models], &cpu());
}

#[test]
fn real_networks_on_the_gpu() {
    let Some(models) = common::shared("models").filter(|_| common::gpu()) else { return };
    for precision in [Precision::F16, Precision::F32] {
        check(std::slice::from_ref(&models), &Options { device: Device::Gpu, precision, ..Options::default() });
    }
}

#[test]
fn conformance_on_the_gpu() {
    let Some(cases) = common::shared("conformance").filter(|_| common::gpu()) else { return };
    let all = check(&[cases], &Options { device: Device::Gpu, everything_on_gpu: true, ..Options::default() });
    let whole = all.iter().filter(|r| r.gpu_ops > 0 && r.cpu_ops == 0).count();
    eprintln!("{whole} of {} wholly on the GPU", all.len());
    assert!(whole > 2000, "{whole} wholly on the GPU");
}

#[test]
fn conformance_on_the_cpu() {
    let Some(cases) = common::shared("conformance") else { return };
    let all = check(&[cases], &cpu());
    let skipped = all.iter().filter(|r| r.status == Status::Skipped).count();
    eprintln!("{} passed, {skipped} skipped", all.len() - skipped);
}
