//! `litegpu verify`

use super::table::Table;
use super::{DeviceArgs, Failed, Failure, Outcome, emit, emit_json, progress, write};
use clap::Args;
use litegpu::Device;
use litegpu::verify::{Options, Outcome as Case, Status, Suite, Tolerance};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Check models against recorded outputs.
///
/// A PATH is a folder or a zip with a manifest.json, a folder of such zips, or a model followed by its array file
/// (arrays in0, in1, ... and out0, out1, ...; further runs as run1_in0, ...). Integer outputs must be equal; floats
/// within the manifest's tolerance; on a GPU in f16 arithmetic the relative norm of a float output's error must be at
/// most 1e-2, with no NaN where none is recorded. Operators that litegpu does not have are skipped, and listed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu verify models --device cpu
  litegpu verify conformance --device gpu --filter conv,pool --report out.json
  litegpu verify net.tflite net.npz --precision f32")]
pub(crate) struct Verify {
    /// Folders, zips, or MODEL.tflite ARRAYS.npz
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Only cases whose name, class or operators contain one of these words (comma separated)
    #[arg(long, value_name = "WORDS", value_delimiter = ',')]
    filter: Vec<String>,
    /// Write every case's result to this file as JSON
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Cases that run at the same time; 0 means one per core on the CPU and one on a GPU
    #[arg(long, default_value_t = 0, value_name = "N")]
    jobs: usize,
    /// Absolute tolerance of float outputs where no manifest gives one
    #[arg(long, default_value_t = 1e-5)]
    atol: f64,
    /// Relative tolerance of float outputs where no manifest gives one
    #[arg(long, default_value_t = 1e-4)]
    rtol: f64,
    /// Count skipped cases as failures
    #[arg(long)]
    strict: bool,
    /// Failures and skips to print; the report has them all
    #[arg(long, default_value_t = 50, value_name = "N")]
    show: usize,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, Serialize)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Cases with every operator on the GPU.
    on_gpu: usize,
    /// Cases with operators on both.
    mixed: usize,
}

#[derive(Debug, Serialize)]
struct Summary<'a> {
    device: String,
    precision: String,
    seconds: f64,
    total: &'a Count,
    classes: &'a BTreeMap<String, Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cases: Option<&'a [Case]>,
    #[serde(skip_serializing_if = "<[&Case]>::is_empty")]
    failures: Vec<&'a Case>,
}

impl Verify {
    pub(crate) fn run(self) -> Outcome {
        let start = std::time::Instant::now();
        let options = Options {
            device: self.device.device()?,
            precision: self.device.precision()?,
            #[cfg(feature = "gpu")]
            gpu: self.device.gpu_options()?,
            everything_on_gpu: self.device.everything_on_gpu,
            // Cases run side by side: a pool of threads for each would only be in the way.
            threads: if self.device.threads == 0 { 1 } else { self.device.threads },
            jobs: self.jobs,
            filter: self.filter.clone(),
            tolerance: Tolerance { atol: self.atol, rtol: self.rtol },
        };
        let suite = Suite::open(&self.paths, &self.filter)?;
        if suite.cases.is_empty() {
            return Err(Failure::usage(match suite.filtered {
                0 => "no cases found".to_string(),
                n => format!("the filter leaves none of {n} cases"),
            }));
        }
        let bar = progress(suite.cases.len() as u64, "verify");
        let results = suite.run(&options, |o| {
            if o.status == Status::Failed {
                bar.set_message(format!("{} failed", o.case));
            }
            bar.inc(1);
        });
        let results = results.failed()?;
        bar.finish_and_clear();
        let mut classes: BTreeMap<String, Count> = BTreeMap::new();
        let mut total = Count::default();
        for r in &results {
            for c in [classes.entry(r.class.clone()).or_default(), &mut total] {
                match r.status {
                    Status::Passed => c.passed += 1,
                    Status::Failed => c.failed += 1,
                    Status::Skipped => c.skipped += 1,
                }
                match (r.gpu_ops, r.cpu_ops) {
                    (0, _) => {}
                    (_, 0) => c.on_gpu += 1,
                    _ => c.mixed += 1,
                }
            }
        }
        let mut summary = Summary {
            device: options.device.to_string(),
            precision: options.precision.to_string(),
            seconds: start.elapsed().as_secs_f64(),
            total: &total,
            classes: &classes,
            cases: Some(&results),
            failures: Vec::new(),
        };
        if let Some(path) = &self.report {
            let text = serde_json::to_string_pretty(&summary).map_err(|e| Failure::failed(e.to_string()))?;
            write(path, text + "\n")?;
        }
        let bad = results.iter().filter(|r| r.status == Status::Failed);
        if self.json {
            summary.cases = None;
            summary.failures = bad.collect();
            emit_json(&summary)?;
        } else {
            emit(self.text(&results, &classes, &total, options.device, suite.filtered, summary.seconds));
        }
        match total.failed > 0 || (self.strict && total.skipped > 0) {
            true => Err(Failure::failed("")),
            false => Ok(()),
        }
    }

    fn text(
        &self,
        results: &[Case],
        classes: &BTreeMap<String, Count>,
        total: &Count,
        device: Device,
        filtered: usize,
        seconds: f64,
    ) -> String {
        let mut out = String::new();
        for (status, word) in [(Status::Skipped, "SKIP"), (Status::Failed, "FAIL")] {
            let all: Vec<_> = results.iter().filter(|r| r.status == status).collect();
            for r in all.iter().take(self.show) {
                let class = if r.class.is_empty() { String::new() } else { format!(" [{}]", r.class) };
                out += &format!("{word} {}/{}{class} {}\n", r.suite, r.case, r.message.as_deref().unwrap_or_default());
            }
            if all.len() > self.show {
                out += &format!("{word} ... and {} more (--show, --report)\n", all.len() - self.show);
            }
        }
        if !out.is_empty() {
            out.push('\n');
        }
        let gpu = device != Device::Cpu;
        let mut head = vec!["class", "passed", "failed", "skipped"];
        if gpu {
            head.extend(["all on gpu", "part on gpu"]);
        }
        let mut table = Table::new(&head).right(&[1, 2, 3, 4, 5]);
        let sum = ("all".to_string(), total);
        for (class, c) in classes.iter().map(|(k, c)| (k.clone(), c)).chain([sum]) {
            let class = if class.is_empty() { "-".to_string() } else { class };
            let mut row = vec![class, c.passed.to_string(), c.failed.to_string(), c.skipped.to_string()];
            if gpu {
                row.extend([c.on_gpu.to_string(), c.mixed.to_string()]);
            }
            table.row(row);
        }
        out += &table.to_string();
        let kept = if filtered > 0 { format!(" ({filtered} filtered out)") } else { String::new() };
        out += &format!("\n{} cases{kept} on {device} in {seconds:.1} s\n", results.len());
        out
    }
}
