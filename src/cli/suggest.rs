//! `litegpu suggest`

use super::calibrate::CalibrationArgs;
use super::compare::{db, measure};
use super::quantize::{ModeArgs, make};
use super::table::Table;
use super::{DeviceArgs, Failure, Outcome, emit, emit_json, open, progress};
use clap::Args;
use litegpu::quantizer::compare::Comparison;
use litegpu::quantizer::{Form, Options, Ranges};
use litegpu::samples::Samples;
use litegpu::{Model, graph};
use std::collections::HashSet;
use std::path::PathBuf;

/// Find the operators to keep in float so that a quantized model reaches a signal-to-noise ratio.
///
/// The model is quantized; then, for the operators whose results are the most harmful, once more with each kept in float;
/// then with those that gain most, until the ratio is reached. It is that of the worst output.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu suggest net.tflite --mode int8 --calibration samples.npz --snr 35
  litegpu suggest net.tflite --mode int8 --ranges net.ranges.json --data test.npz --snr 40 --keep-file keep.txt
  litegpu quantize net.tflite -o out.tflite --mode int8 --ranges net.ranges.json --keep-file keep.txt")]
pub(crate) struct Suggest {
    /// The float model
    model: PathBuf,
    #[command(flatten)]
    mode: ModeArgs,
    /// The ratio to reach, in dB
    #[arg(long, value_name = "DB")]
    snr: f64,
    /// Samples to measure on, as for --calibration [default: those of --calibration]
    #[arg(long, value_name = "[KEY=]PATH")]
    data: Vec<String>,
    /// Samples of each set to measure on, spread over it
    #[arg(long, default_value_t = 16, value_name = "N")]
    measure: usize,
    /// Operators to try
    #[arg(long, default_value_t = 24, value_name = "N")]
    candidates: usize,
    /// Write the names to this file, for `litegpu quantize --keep-file`
    #[arg(long, value_name = "FILE")]
    keep_file: Option<PathBuf>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What trials share.
struct Trial<'a> {
    model: &'a Model,
    options: Options,
    ranges: Option<Ranges>,
    sets: Vec<Samples>,
    limit: usize,
    threads: usize,
}

impl Trial<'_> {
    fn run(&self, keep: &[String], layers: bool) -> Outcome<(Comparison, Vec<String>, usize)> {
        let mut options = self.options.clone();
        options.keep_float.extend_from_slice(keep);
        let (bytes, report) = make(self.model, &options, self.ranges.as_ref(), None)?;
        let quantized = Model::from_bytes(bytes)?;
        let c = measure(self.model, &quantized, &self.sets, Some(self.limit), layers, self.threads)?;
        let done = report.nodes.iter().filter(|n| matches!(n.form, Form::Integer | Form::Weights));
        Ok((c, done.map(|n| n.output.clone()).collect(), report.bytes_after))
    }
}

fn worst(c: &Comparison) -> f64 {
    c.outputs.iter().map(|l| l.distance.snr()).fold(f64::INFINITY, f64::min)
}

impl Suggest {
    pub(crate) fn run(self) -> Outcome {
        let model = open(&self.model)?;
        let options = Options::new(self.mode.mode()?);
        let needed = options.needs_calibration(model.graph());
        if needed && !self.calibration.any() {
            return Err(Failure::usage("this mode needs --calibration or --ranges"));
        }
        let found = match needed {
            true => self.calibration.observe(&model, &self.device, &options.recipe, false)?,
            false => None,
        };
        let data = if self.data.is_empty() { &self.calibration.calibration } else { &self.data };
        let sets = CalibrationArgs { calibration: data.clone(), ..self.calibration.clone() }.sets(&model)?;
        if sets.is_empty() {
            return Err(Failure::usage("neither --data nor --calibration: nothing to measure on"));
        }
        let threads = self.device.threads;
        let ranges = found.map(|f| f.ranges());
        let trial = Trial { model: &model, options, ranges, sets, limit: self.measure, threads };
        let (base, quantized, bytes) = trial.run(&[], true)?;
        let start = worst(&base);
        let mut keep: Vec<String> = Vec::new();
        let mut steps: Vec<(String, String, f64, f64, usize)> = Vec::new();
        let (mut now, mut size) = (start, bytes);
        if start < self.snr {
            // Every operator that was quantized, the most harmful results first.
            let all: HashSet<&str> = quantized.iter().map(String::as_str).collect();
            let mut names: Vec<String> =
                base.by_harm().into_iter().map(|l| l.name.clone()).filter(|n| all.contains(n.as_str())).collect();
            let listed: HashSet<String> = names.iter().cloned().collect();
            names.extend(quantized.iter().filter(|n| !listed.contains(*n)).cloned());
            names.truncate(self.candidates);
            let mut gains = Vec::new();
            let bar = progress(names.len() as u64, "try");
            for n in names {
                let (c, ..) = trial.run(std::slice::from_ref(&n), false)?;
                gains.push((worst(&c) - start, n));
                bar.inc(1);
            }
            bar.finish_and_clear();
            gains.sort_by(|a, b| b.0.total_cmp(&a.0));
            for (gain, name) in gains {
                if now >= self.snr {
                    break;
                }
                keep.push(name.clone());
                let (c, _, b) = trial.run(&keep, false)?;
                // An operator that does not help beside the others goes back to integers.
                if worst(&c) <= now {
                    keep.pop();
                    continue;
                }
                (now, size) = (worst(&c), b);
                steps.push((operator(model.graph(), &name), name, gain, now, size));
            }
        }
        if let Some(path) = &self.keep_file {
            super::write(path, keep.iter().map(|k| format!("{k}\n")).collect::<String>())?;
        }
        let reached = now >= self.snr;
        if self.json {
            let steps: Vec<_> = steps
                .iter()
                .map(|(op, name, alone, snr, bytes)| {
                    serde_json::json!({
                        "operator": op, "keep": name, "gain_alone_db": alone, "snr_db": snr, "bytes": bytes,
                    })
                })
                .collect();
            emit_json(&serde_json::json!({
                "model": self.model, "snr_db": start, "bytes": bytes, "wanted_db": self.snr, "reached": reached,
                "reached_db": now, "steps": steps,
            }))?;
        } else {
            let mut out = format!("everything quantized: {} dB, {bytes} bytes\n", db(start));
            if !steps.is_empty() {
                let head = ["keep in float", "operator", "alone, dB", "so far, dB", "bytes"];
                let mut table = Table::new(&head).right(&[2, 3, 4]);
                for (op, name, alone, snr, bytes) in &steps {
                    let alone = format!("{alone:+.1}");
                    table.row(vec![name.clone(), op.clone(), alone, db(*snr), bytes.to_string()]);
                }
                out += &table.to_string();
                let flags: Vec<_> = keep.iter().map(|k| format!("--keep '{k}'")).collect();
                out += &format!("{} dB, {size} bytes with {}\n", db(now), flags.join(" "));
            }
            if !reached {
                out += &format!("{} dB are not reached; more --candidates, int16x8 or f16 may\n", self.snr);
            }
            emit(out);
        }
        if reached { Ok(()) } else { Err(Failure::failed("")) }
    }
}

fn operator(m: &graph::Model, output: &str) -> String {
    let of = |g: &graph::Graph| {
        let makes = |n: &&graph::Node| n.outputs.iter().any(|&t| g.tensors.get(t).is_some_and(|t| t.name == output));
        g.nodes.iter().find(makes).map(|n| n.op.name().to_string())
    };
    m.subgraphs.iter().find_map(of).unwrap_or_default()
}
