//! `litegpu quantize`

use super::calibrate::{CalibrationArgs, read_recipe, spread};
use super::{DeviceArgs, Failure, Outcome, emit, emit_json, open, progress, read, write_safely};
use clap::Args;
use litegpu::quantizer::equalize::equalize;
use litegpu::quantizer::{self, Data, Form, MIN_ELEMENTS, Mode, Options, QuantReport, Ranges, Sample, WeightRange};
use litegpu::samples::Samples;
use litegpu::{DType, Error, ErrorKind, Model, graph};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Make a smaller model of a float one.
///
/// dynamic: weights int8, activations float and quantized on the fly; needs no data. f16: constants float16; needs no
/// data. int8: weights and activations int8; operators without an integer form stay float. int8-only: an operator
/// without an integer form is an error. int16x8, int16x8-only: the same with activations int16. The integer modes need
/// samples (--calibration) or saved ranges (--ranges). The result is read back and run before it gets its name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu quantize net.tflite -o net_dynamic.tflite --mode dynamic
  litegpu quantize net.tflite -o net_int8.tflite --mode int8 --calibration samples.npz
  litegpu quantize net.tflite -o net_u8.tflite --mode int8 --io uint8 --calibration photos/ --range=-1,1
  litegpu quantize net.tflite -o net_16x8.tflite --mode int16x8-only --calibration samples.npz --weights mse --correct-bias
  litegpu quantize codec.tflite -o out.tflite --mode int8 --calibration encode=a.npz --calibration decode=b.npz
  litegpu quantize net.tflite -o mixed.tflite --mode int8 --recipe recipe.json --calibration samples.npz
  litegpu quantize net.tflite -o out/ --all --calibration train.npz --data test_x.npy --labels test_y.npy

A recipe is {\"rules\": [{\"match\": REGEX over tensor names, \"operator\": NAME, \"scheme\": S, \"method\": M,
\"weights\": minmax|mse}, ...]}; of several rules that apply, the last wins. S: float, f16, dynamic, dynamic4, weights,
weights4, int8, int16x8. M: as for --method.")]
pub(crate) struct Quantize {
    /// The float model
    model: PathBuf,
    /// The file to write; with --all, the folder
    #[arg(short, long, value_name = "OUT.tflite")]
    output: PathBuf,
    #[command(flatten)]
    mode: ModeArgs,
    /// Make every scheme, measure each and print one table: size, distance from float, accuracy where --labels are
    /// given, latency on the CPU and the GPU
    #[arg(long, conflicts_with_all = ["mode", "io", "bias", "bits", "weight_only"])]
    all: bool,
    #[command(flatten)]
    table: super::all::TableArgs,
    /// How the range of weights is chosen: all of it, or (mse) by the error of what layers compute, each weight rounded up
    /// or down as that wants it, where that brings the outputs nearer to float; mse needs samples in every mode
    #[arg(long, default_value = "minmax", value_name = "minmax|mse")]
    weights: WeightRange,
    /// Take from biases what quantization adds to layers' results on average, layer after layer, where that brings the
    /// outputs nearer to float; needs samples in every mode
    #[arg(long)]
    correct_bias: bool,
    /// First make the channels between layers alike, so that they share a scale at less loss; with samples, RELU6 layers
    /// too
    #[arg(long)]
    equalize: bool,
    /// Rules for single operators
    #[arg(long, value_name = "FILE.json")]
    recipe: Option<PathBuf>,
    /// Keep in float: an operator's name (SOFTMAX) or that of a result; may be repeated
    #[arg(long, value_name = "NAME")]
    keep: Vec<String>,
    /// Keep in float what this file names, one a line
    #[arg(long, value_name = "FILE")]
    keep_file: Option<PathBuf>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Operators left in float to print; --json has them all
    #[arg(long, default_value_t = 20, value_name = "N")]
    show: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The mode and what belongs to one mode alone.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModeArgs {
    /// What to make
    #[arg(long, value_parser = ["dynamic", "int8", "int8-only", "f16", "int16x8", "int16x8-only"])]
    mode: Option<String>,
    /// Type of inputs and outputs: float32, int8 or uint8 (int8 modes), int16 (int16x8 modes)
    /// [default: float32; int8 in int8-only]
    #[arg(long, value_parser = ["float32", "int8", "uint8", "int16"])]
    io: Option<String>,
    /// Type of biases in the int16x8 modes [default: int64]
    #[arg(long, value_parser = ["int64", "int32"])]
    bias: Option<String>,
    /// Bits of the weights in dynamic [default: 8]
    #[arg(long, value_parser = ["8", "4"])]
    bits: Option<String>,
    /// In dynamic: widen weights before use, so that everything computes in float
    #[arg(long)]
    weight_only: bool,
    /// In dynamic: leave constants with fewer elements as they are [default: 1024]
    #[arg(long, value_name = "N")]
    min_elements: Option<usize>,
}

impl ModeArgs {
    /// The mode, its flags checked against it.
    pub(crate) fn mode(&self) -> Outcome<Mode> {
        let mode = self.mode.as_deref().ok_or_else(|| Failure::usage("--mode is missing"))?;
        let (int8, wide) = (mode.starts_with("int8"), mode.starts_with("int16x8"));
        let only = mode.ends_with("-only");
        let dynamic = mode == "dynamic";
        let refuse = |given: bool, flag: &str, modes: &str| match given {
            true => Err(Failure::usage(format!("{flag} is for --mode {modes}, not {mode}"))),
            false => Ok(()),
        };
        refuse(self.io.is_some() && !int8 && !wide, "--io", "int8 and int16x8")?;
        refuse(self.bias.is_some() && !wide, "--bias", "int16x8")?;
        refuse(self.bits.is_some() && !dynamic, "--bits", "dynamic")?;
        refuse(self.weight_only && !dynamic, "--weight-only", "dynamic")?;
        refuse(self.min_elements.is_some() && !dynamic, "--min-elements", "dynamic")?;
        let io = match self.io.as_deref() {
            Some("int8") => DType::I8,
            Some("uint8") => DType::U8,
            Some("int16") => DType::I16,
            None if int8 && only => DType::I8,
            _ => DType::F32,
        };
        refuse(io == DType::I16 && !wide, "--io int16", "int16x8")?;
        refuse(matches!(io, DType::I8 | DType::U8) && wide, "--io int8 or uint8", "int8")?;
        let bias = if self.bias.as_deref() == Some("int32") { DType::I32 } else { DType::I64 };
        Ok(if dynamic {
            Mode::Dynamic {
                bits: if self.bits.as_deref() == Some("4") { 4 } else { 8 },
                weight_only: self.weight_only,
                min_elements: self.min_elements.unwrap_or(MIN_ELEMENTS),
            }
        } else if int8 {
            Mode::Int8 { io, only }
        } else if wide {
            Mode::Int16x8 { io, only, bias }
        } else {
            Mode::Float16
        })
    }
}

impl Quantize {
    pub(crate) fn run(self) -> Outcome {
        let model = open(&self.model)?;
        if self.all {
            return self.run_all(&model);
        }
        let options = self.options(self.mode.mode()?)?;
        let (float, ranges, pairs) = self.prepare(&model, &options)?;
        let sets = self.tuned_on(&float, &options)?;
        let (bytes, mut report) = self.with_data(&sets, |data| make(&float, &options, ranges.as_ref(), data))?;
        report.bytes_before = model.file_bytes();
        if let Some(n) = pairs {
            report.notes.insert(0, format!("{n} pairs of layers were equalized"));
        }
        write_safely(&self.output, &bytes, |path| Model::open(path).map(drop))?;
        let samples = ranges.as_ref().map(|r| r.samples.iter().sum::<usize>());
        if self.json {
            return emit_json(&json(&self, &report, samples));
        }
        emit(self.text(&report, samples));
        Ok(())
    }

    /// The samples that weights and biases are fitted to; none where nothing is fitted.
    fn tuned_on(&self, float: &Model, options: &Options) -> Outcome<Vec<Samples>> {
        if !options.needs_samples(float.graph()) {
            return match self.correct_bias || self.weights == WeightRange::Mse {
                true => {
                    Err(Failure::usage("--weights and --correct-bias are for weights that become integers: none does"))
                }
                false => Ok(Vec::new()),
            };
        }
        let sets = self.calibration.sets(float)?;
        if sets.is_empty() {
            let what = "--weights mse and --correct-bias need --calibration: they look at what layers compute";
            return Err(Failure::usage(what));
        }
        Ok(sets)
    }

    /// Calls `f` with samples, where there are any.
    fn with_data<T>(&self, sets: &[Samples], f: impl FnOnce(Option<&Data<'_>>) -> Outcome<T>) -> Outcome<T> {
        /// Of each set: the layers' statistics settle, and every pass takes as long as these take.
        const MOST: usize = 128;
        if sets.is_empty() {
            return f(None);
        }
        let limit = self.calibration.samples.unwrap_or(MOST).min(MOST);
        let samples = || -> Box<dyn Iterator<Item = graph::Result<Sample>> + '_> {
            Box::new(sets.iter().flat_map(move |set| {
                let take = spread(set.len(), Some(limit));
                let items = set.iter().enumerate().filter(move |(i, _)| take(*i));
                items.map(|(_, item)| item.map(|i| i.sample).map_err(|e| graph::Error::invalid(e.to_string())))
            }))
        };
        let bar = progress(0, "tune");
        let told = |done: usize, of: usize| {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
        };
        let keep_state = self.calibration.keep_state;
        let done = f(Some(&Data { samples: &samples, threads: self.device.threads, keep_state, progress: &told }));
        bar.finish_and_clear();
        done
    }

    /// The model, equalized where that is asked for, and its ranges where the options need them.
    fn prepare(&self, model: &Model, options: &Options) -> Outcome<(Model, Option<Ranges>, Option<usize>)> {
        let recipe = &options.recipe;
        let mut float = model.clone();
        let mut pairs = None;
        if self.equalize {
            let first = match self.calibration.calibration.is_empty() {
                true if !self.calibration.ranges.is_empty() => {
                    return Err(Failure::usage("--equalize moves ranges: give --calibration, not --ranges"));
                }
                true => None,
                false => self.calibration.observe(model, &self.device, recipe, true)?,
            };
            let (equal, n) = equalize(model.graph(), first.map(|f| f.ranges()).as_ref());
            float = Model::from_graph(equal)?;
            pairs = Some(n);
        }
        let needed = options.needs_calibration(float.graph());
        if needed && !self.calibration.any() {
            return Err(Failure::usage("this needs samples: --calibration or --ranges"));
        }
        let seen = match needed {
            true => self.calibration.observe(&float, &self.device, recipe, false)?,
            false => None,
        };
        Ok((float, seen.map(|r| r.ranges()), pairs))
    }

    fn options(&self, mode: Mode) -> Outcome<Options> {
        let mut keep_float = self.keep.clone();
        if let Some(path) = &self.keep_file {
            let text = read(path)?;
            let text = String::from_utf8_lossy(&text);
            keep_float.extend(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_string));
        }
        let recipe = read_recipe(self.recipe.as_deref())?;
        Ok(Options { keep_float, recipe, weights: self.weights, correct_bias: self.correct_bias, ..Options::new(mode) })
    }

    fn run_all(&self, model: &Model) -> Outcome {
        // The mode that needs the most decides what has to be calibrated.
        let options = self.options(Mode::Int8 { io: DType::F32, only: false })?;
        let (float, ranges, _) = self.prepare(model, &options)?;
        let data = match self.table.data.is_empty() {
            true => &self.calibration.calibration,
            false => &self.table.data,
        };
        let sets = CalibrationArgs { calibration: data.clone(), ..self.calibration.clone() }.sets(model)?;
        if sets.is_empty() {
            return Err(Failure::usage("neither --data nor --calibration: nothing to measure on"));
        }
        let job = super::all::Job {
            path: &self.model,
            original: model,
            float: &float,
            folder: &self.output,
            ranges: ranges.as_ref(),
            sets: &sets,
            options: &options,
            device: &self.device,
            json: self.json,
        };
        let tuned = self.tuned_on(&float, &options)?;
        self.with_data(&tuned, |data| job.run(&self.table, data))
    }

    fn text(&self, report: &QuantReport, samples: Option<usize>) -> String {
        let ratio = report.bytes_before as f64 / report.bytes_after.max(1) as f64;
        let mut out = format!(
            "{} -> {}: {} -> {} bytes ({ratio:.2}x smaller)\n",
            self.model.display(),
            self.output.display(),
            report.bytes_before,
            report.bytes_after
        );
        if let Some(n) = samples {
            out += &format!("calibrated on {n} samples\n");
        }
        for (form, kinds) in counts(report) {
            let total: usize = kinds.values().sum();
            let kinds: Vec<_> =
                kinds.iter().map(|(k, n)| if *n > 1 { format!("{n} {k}") } else { k.clone() }).collect();
            out += &format!("{total} operators {form}: {}\n", kinds.join(", "));
        }
        let float = || report.nodes.iter().filter(|n| matches!(n.form, Form::Float(_)));
        for n in float().take(self.show) {
            if let Form::Float(why) = &n.form {
                out += &format!("  float: {} '{}': {why}\n", n.op, n.output);
            }
        }
        if float().count() > self.show {
            out += &format!("  ... and {} more (--show N, --json)\n", float().count() - self.show);
        }
        for n in &report.notes {
            out += &format!("note: {n}\n");
        }
        out + "read back, checked and run\n"
    }
}

/// Quantizes. What an operator's lack of an integer form ends is a failed run; bad options and data are bad usage.
pub(crate) fn make(
    model: &Model,
    options: &Options,
    ranges: Option<&Ranges>,
    data: Option<&Data<'_>>,
) -> Outcome<(Vec<u8>, QuantReport)> {
    let made = match data {
        Some(data) => quantizer::quantize_with(model.graph(), options, ranges, data),
        None => quantizer::quantize_to_bytes(model.graph(), options, ranges),
    };
    match made {
        Ok((_, bytes, report)) => Ok((bytes.to_vec(), report)),
        Err(e) => {
            let e = Error::from(e);
            match e.kind {
                ErrorKind::Invalid | ErrorKind::Io => Err(Failure::usage(e.to_string())),
                _ => Err(Failure::failed(e.to_string())),
            }
        }
    }
}

fn name(form: &Form) -> &'static str {
    match form {
        Form::Integer => "in integers",
        Form::Weights => "with integer weights",
        Form::Half => "with float16 constants",
        Form::Float(_) => "left in float",
        Form::Untouched => "without floats",
    }
}

fn counts(report: &QuantReport) -> BTreeMap<&'static str, BTreeMap<String, usize>> {
    let mut out: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for n in &report.nodes {
        *out.entry(name(&n.form)).or_default().entry(n.op.clone()).or_default() += 1;
    }
    out
}

fn json(q: &Quantize, report: &QuantReport, samples: Option<usize>) -> serde_json::Value {
    let nodes: Vec<_> = report
        .nodes
        .iter()
        .map(|n| {
            let why = if let Form::Float(why) = &n.form { Some(why) } else { None };
            serde_json::json!({
                "subgraph": n.subgraph, "node": n.node, "operator": n.op, "result": n.output,
                "form": name(&n.form), "reason": why,
            })
        })
        .collect();
    serde_json::json!({
        "model": q.model, "output": q.output, "mode": q.mode.mode, "samples": samples,
        "bytes_before": report.bytes_before, "bytes_after": report.bytes_after,
        "operators": nodes, "notes": report.notes,
    })
}
