//! `litegpu evaluate`

use super::calibrate::{keyed, spread};
use super::compare::db;
use super::run::range;
use super::table::Table;
use super::{DeviceArgs, Failed, Failure, Outcome, emit, emit_json, open, progress, read, stem};
use clap::{Args, Subcommand};
use litegpu::quantizer::compare::{Distance, quantize_value};
use litegpu::quantizer::{Inputs, Sample};
use litegpu::samples::{Item, Samples};
use litegpu::{Error, Model, Report, Session, Tensor, npz, picture};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Measure a model on data: how often it is right, or how far it is from another.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu evaluate classify net_int8.tflite --data test_x.npy --labels test_y.npy
  litegpu evaluate classify net.tflite --data photos/ --classes names.txt --device gpu --json
  litegpu evaluate diff net_int8.tflite --against net.tflite --data test_x.npy
  litegpu evaluate diff net.tflite --data test_x.npy --device gpu")]
pub(crate) struct Evaluate {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Classify(Box<Classify>),
    Diff(Box<Diff>),
}

/// Count right answers of a classifier: top-1 and top-5, and its latency.
///
/// Labels are a .npy or .npz of class numbers in the samples' order; a text file with one label a line in that order,
/// or lines of FILE LABEL; or, without --labels, the names of the folders that the pictures lie in. A label is a class's
/// number or its name.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  litegpu evaluate classify net_int8.tflite --data test_x.npy --labels test_y.npy --json")]
struct Classify {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// The right answers
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Names of the classes, one a line [default: those packed with the model]
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Added to every label: 1 where the model's first class is the background, which labels lack
    #[arg(long, default_value_t = 0, value_name = "N", allow_hyphen_values = true)]
    offset: i64,
    /// The output that holds the scores
    #[arg(long, default_value_t = 0, value_name = "N")]
    output: usize,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Compare outputs and latency with those of another model, or of the same on one thread of the CPU.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  litegpu evaluate diff net_int8.tflite --against net.tflite --data test_x.npy")]
struct Diff {
    /// The model
    model: PathBuf,
    /// The reference, which runs on one thread of the CPU [default: the same model]
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The samples.
#[derive(Debug, Clone, Args)]
struct DataArgs {
    /// Samples, as for `litegpu quantize --calibration`
    #[arg(long, required = true, value_name = "[KEY=]PATH")]
    data: String,
    /// Samples to take, spread over the set [default: all]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// What a picture's black and white mean to the model [default: 0,1]
    #[arg(long, value_name = "LOW,HIGH", value_parser = range, allow_hyphen_values = true)]
    range: Option<(f32, f32)>,
}

impl DataArgs {
    fn set(&self, model: &Model) -> Outcome<Samples> {
        let (key, path) = keyed(model, &self.data);
        Ok(Samples::open(model, key, path, self.range)?)
    }
}

/// A model that runs samples: real values are quantized where its inputs are integers, and shapes follow the samples.
pub(crate) struct Runner {
    session: Session,
}

impl Runner {
    /// A session on a device, shaped for a first sample.
    pub(crate) fn new(model: &Model, sample: &Sample, device: &DeviceArgs) -> Outcome<Runner> {
        let mut builder = device.builder(model, sample.signature.as_deref())?;
        for (i, v) in values(sample)?.iter().enumerate() {
            builder = builder.input_shape(i, &v.shape);
        }
        Ok(Runner { session: builder.build().failed()? })
    }

    /// The outputs, and the milliseconds that the run took.
    pub(crate) fn run(&mut self, sample: &Sample) -> Outcome<(Vec<Tensor>, f64)> {
        let mut tensors = Vec::new();
        for (i, v) in values(sample)?.iter().enumerate() {
            let port =
                self.session.inputs().get(i).ok_or_else(|| Failure::usage(format!("the model has no input {i}")))?;
            let v = quantize_value(v, port.dtype, port.quant.as_ref());
            let v = v.map_err(|e| Error::from(e).at(format!("input '{}'", port.name)))?;
            if port.shape != v.shape.to_vec() {
                self.session.resize_input(i, &v.shape)?;
            }
            tensors.push(Tensor::from_bytes(v.dtype, &v.shape, v.bytes())?);
        }
        self.session.reset();
        let start = Instant::now();
        let out = self.session.run(&tensors).failed()?;
        Ok((out, start.elapsed().as_secs_f64() * 1e3))
    }

    /// Where the operators ran.
    pub(crate) fn report(&self) -> Report {
        self.session.report()
    }
}

fn values(sample: &Sample) -> Outcome<&[litegpu::cpu::Value]> {
    match &sample.inputs {
        Inputs::Ordered(values) => Ok(values),
        Inputs::Named(_) => Err(Failure::usage("inputs by name")),
    }
}

/// Latencies, sorted.
#[derive(Debug, Default)]
struct Times(Vec<f64>);

impl Times {
    fn at(&self, share: f64) -> f64 {
        let i = ((self.0.len() as f64 - 1.0) * share).round().max(0.0) as usize;
        self.0.get(i).copied().unwrap_or_default()
    }
    fn sorted(mut self) -> Times {
        self.0.sort_by(f64::total_cmp);
        self
    }
    fn text(&self) -> String {
        let mean = self.0.iter().sum::<f64>() / self.0.len().max(1) as f64;
        format!("median {:.3} ms, mean {mean:.3} ms, 90 % below {:.3} ms", self.at(0.5), self.at(0.9))
    }
}

/// The right answers.
pub(crate) struct Labels {
    names: HashMap<String, usize>,
    by_position: Vec<String>,
    by_file: HashMap<String, String>,
    offset: i64,
}

impl Labels {
    /// Reads labels; without a file they are the names of folders.
    pub(crate) fn read(model: &Model, file: Option<&Path>, classes: Option<&Path>, offset: i64) -> Outcome<Labels> {
        let lines = |path: &Path| -> Outcome<Vec<String>> {
            Ok(String::from_utf8_lossy(&read(path)?).lines().map(|l| l.trim().to_string()).collect())
        };
        let names = match classes {
            Some(path) => lines(path)?,
            None => model.labels().unwrap_or_default(),
        };
        let names = names.into_iter().enumerate().map(|(i, n)| (n, i)).collect();
        let mut labels = Labels { names, by_position: Vec::new(), by_file: HashMap::new(), offset };
        let Some(file) = file else { return Ok(labels) };
        let array = match file.extension().and_then(|e| e.to_str()) {
            Some("npy") => Some(npz::read_npy(&mut &read(file)?[..]).map_err(|e| e.at(file.display()))?),
            Some("npz") => {
                let mut arrays = super::arrays(file)?.into_values();
                match (arrays.next(), arrays.next()) {
                    (Some(one), None) => Some(one),
                    _ => return Err(Failure::usage(format!("{}: one array expected", file.display()))),
                }
            }
            _ => None,
        };
        if let Some(array) = array {
            if array.dtype().is_float() {
                return Err(Failure::usage(format!("{}: labels are integers, not {}", file.display(), array.dtype())));
            }
            labels.by_position = array.to_f32()?.iter().map(|v| format!("{v}")).collect();
            return Ok(labels);
        }
        for line in lines(file)?.into_iter().filter(|l| !l.is_empty()) {
            match line.rsplit_once([',', '\t', ' ']) {
                // A class's name may hold spaces; a picture's file name ends in a known way.
                Some((name, label)) if picture_name(name.trim()) => {
                    let name = Path::new(name.trim()).file_name().unwrap_or_default().to_string_lossy().into_owned();
                    labels.by_file.insert(name, label.trim().to_string());
                }
                _ => labels.by_position.push(line),
            }
        }
        Ok(labels)
    }

    /// The class of a sample.
    pub(crate) fn of(&self, position: usize, item: &Item) -> Outcome<usize> {
        let by_file = item.file.as_ref().and_then(|f| self.by_file.get(f));
        let label = by_file.or(self.by_position.get(position));
        let folder = item.folder.as_ref().filter(|_| self.by_file.is_empty() && self.by_position.is_empty());
        let Some(label) = label.or(folder) else {
            return Err(Failure::usage(format!("{}: no label", item.origin)));
        };
        let class = match label.parse::<i64>() {
            Ok(n) => Some(n),
            Err(_) => self.names.get(label).map(|&n| n as i64),
        };
        class
            .and_then(|n| usize::try_from(n.checked_add(self.offset)?).ok())
            .ok_or_else(|| Failure::usage(format!("{}: label '{label}' is no class (see --classes)", item.origin)))
    }
}

fn picture_name(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase());
    ending.is_some_and(|e| ["png", "jpg", "jpeg"].contains(&e.as_str()))
}

/// What a classifier got right.
#[derive(Debug, Default, Clone)]
pub(crate) struct Accuracy {
    pub(crate) samples: usize,
    pub(crate) top1: usize,
    pub(crate) top5: usize,
}

impl Accuracy {
    /// Share of right answers.
    pub(crate) fn share(&self, right: usize) -> f64 {
        right as f64 / self.samples.max(1) as f64
    }
}

/// Runs a classifier over samples.
pub(crate) fn classify(
    model: &Model,
    set: &Samples,
    limit: Option<usize>,
    labels: &Labels,
    output: usize,
    device: &DeviceArgs,
) -> Outcome<(Accuracy, Vec<f64>, Option<Report>)> {
    let mut runner: Option<Runner> = None;
    let mut found = Accuracy::default();
    let mut times = Vec::new();
    let take = spread(set.len(), limit);
    let bar = progress(limit.unwrap_or(usize::MAX).min(set.len()) as u64, "classify");
    for (i, item) in set.iter().enumerate().filter(|(i, _)| take(*i)) {
        let item = item?;
        let truth = labels.of(i, &item)?;
        let place = |f: Failure| Failure { message: format!("{}: {}", item.origin, f.message), ..f };
        let runner = match &mut runner {
            Some(r) => r,
            None => {
                let mut r = Runner::new(model, &item.sample, device)?;
                // The first run is slower: buffers are made.
                r.run(&item.sample).map_err(place)?;
                runner.insert(r)
            }
        };
        let (outputs, ms) = runner.run(&item.sample).map_err(place)?;
        times.push(ms);
        let scores = outputs.get(output).ok_or_else(|| Failure::usage(format!("the model has no output {output}")))?;
        let best = picture::top(scores, 5).ok_or_else(|| {
            Failure::usage(format!("output {output} of shape {:?} holds no scores of classes", scores.shape()))
        })?;
        if truth >= scores.len() {
            let what = format!("{}: class {truth}, but the model has {} classes", item.origin, scores.len());
            return Err(Failure::usage(what));
        }
        found.samples += 1;
        found.top1 += usize::from(best.first().is_some_and(|(c, _)| *c == truth));
        found.top5 += usize::from(best.iter().any(|(c, _)| *c == truth));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((found, times, runner.map(|r| r.report())))
}

impl Evaluate {
    pub(crate) fn run(self) -> Outcome {
        match self.task {
            Task::Classify(c) => c.run(),
            Task::Diff(d) => d.run(),
        }
    }
}

impl Classify {
    fn run(self) -> Outcome {
        let model = open(&self.model)?;
        let labels = Labels::read(&model, self.labels.as_deref(), self.classes.as_deref(), self.offset)?;
        let set = self.data.set(&model)?;
        let (found, times, report) = classify(&model, &set, self.data.samples, &labels, self.output, &self.device)?;
        let times = Times(times).sorted();
        let adapter = report.and_then(|r| r.adapter);
        if self.json {
            return emit_json(&serde_json::json!({
                "model": self.model, "samples": found.samples, "top1": found.share(found.top1),
                "top5": found.share(found.top5), "median_ms": times.at(0.5), "p90_ms": times.at(0.9),
                "device": self.device.device()?.to_string(), "adapter": adapter,
            }));
        }
        let line =
            |what: &str, n: usize| format!("{what}    {n} of {} ({:.2} %)\n", found.samples, found.share(n) * 100.0);
        let mut out = line("top-1", found.top1) + &line("top-5", found.top5);
        out += &format!("latency  {}", times.text());
        out += &adapter.map_or(String::new(), |a| format!(" ({a})"));
        emit(out + "\n");
        Ok(())
    }
}

impl Diff {
    fn run(self) -> Outcome {
        let model = open(&self.model)?;
        let reference = match &self.against {
            Some(path) => open(path)?,
            None => model.clone(),
        };
        let set = self.data.set(&reference)?;
        let cpu = DeviceArgs { device: "cpu".into(), threads: 1, require_gpu: false, ..self.device.clone() };
        let mut runners: Option<[Runner; 2]> = None;
        let mut found: Vec<Distance> = Vec::new();
        let mut times = [Times::default(), Times::default()];
        let take = spread(set.len(), self.data.samples);
        let bar = progress(self.data.samples.unwrap_or(usize::MAX).min(set.len()) as u64, "compare");
        let mut names = Vec::new();
        let mut samples = 0;
        for (_, item) in set.iter().enumerate().filter(|(i, _)| take(*i)) {
            let item = item?;
            let [a, b] = match &mut runners {
                Some(r) => r,
                None => {
                    let mut pair = [
                        Runner::new(&reference, &item.sample, &cpu)?,
                        Runner::new(&model, &item.sample, &self.device)?,
                    ];
                    for r in &mut pair {
                        r.run(&item.sample)?;
                    }
                    names = pair[0].session.outputs().iter().map(|o| o.name.clone()).collect();
                    runners.insert(pair)
                }
            };
            let ((want, t0), (got, t1)) = (a.run(&item.sample)?, b.run(&item.sample)?);
            times[0].0.push(t0);
            times[1].0.push(t1);
            if want.len() != got.len() {
                return Err(Failure::usage(format!("{} outputs and {}", want.len(), got.len())));
            }
            found.resize(want.len(), Distance::default());
            for ((w, g), d) in want.iter().zip(&got).zip(&mut found) {
                if w.len() != g.len() {
                    return Err(Failure::usage(format!("outputs of shape {:?} and {:?}", w.shape(), g.shape())));
                }
                d.add(&w.to_f32()?, &g.to_f32()?);
            }
            samples += 1;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let times = times.map(Times::sorted);
        let report = runners.map(|[_, b]| b.report());
        let adapter = report.and_then(|r| r.adapter);
        if self.json {
            let outputs: Vec<_> = found
                .iter()
                .zip(&names)
                .map(|(d, name)| {
                    serde_json::json!({
                        "name": name, "mean_error": d.mean_abs(), "std_dev": d.deviation(), "max_error": d.max,
                        "snr_db": Some(d.snr()).filter(|v| v.is_finite()), "cosine": d.cosine(),
                    })
                })
                .collect();
            return emit_json(&serde_json::json!({
                "model": self.model, "against": self.against.as_ref().unwrap_or(&self.model), "samples": samples,
                "outputs": outputs, "median_ms": times[1].at(0.5), "reference_median_ms": times[0].at(0.5),
                "device": self.device.device()?.to_string(), "adapter": adapter,
            }));
        }
        let head = ["output", "mean error", "std dev", "max error", "SNR dB"];
        let mut table = Table::new(&head).right(&[1, 2, 3, 4]);
        for (d, name) in found.iter().zip(&names) {
            table.row(vec![
                name.clone(),
                format!("{:.3e}", d.mean_abs()),
                format!("{:.3e}", d.deviation()),
                format!("{:.3e}", d.max),
                db(d.snr()),
            ]);
        }
        let mut out = format!("{samples} samples\n{table}");
        out += &format!(
            "{}: {}{}\n",
            stem(&self.model),
            times[1].text(),
            adapter.map_or(String::new(), |a| format!(" ({a})"))
        );
        let other = self.against.as_ref().unwrap_or(&self.model);
        out += &format!("{} on one thread of the CPU: {}\n", stem(other), times[0].text());
        emit(out);
        Ok(())
    }
}
