//! `litegpu calibrate`, and the calibration that `quantize` shares with it.

use super::run::range;
use super::table::Table;
use super::{DeviceArgs, Failure, Outcome, emit, emit_json, open, progress, read, write_safely};
use clap::Args;
use litegpu::graph::{self, DType, TensorId};
use litegpu::quantizer::{Calibrator, Inputs, Method, Observations, Recipe, Sample};
use litegpu::samples::Samples;
use litegpu::{Device, Error, Model, Precision, Session, Tensor};
use std::path::{Path, PathBuf};

/// Find the ranges of a float model's tensors over samples, and save them for `litegpu quantize --ranges`.
///
/// Ranges that were saved can be merged and added to: give them with --ranges. The CPU computes, unless --device gpu says
/// otherwise; then floats are 32-bit all the same.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu calibrate net.tflite --calibration samples.npz -o net.ranges.json
  litegpu calibrate net.tflite --calibration photos/ --range=-1,1 --method percentile:0.9999 -o net.ranges.json
  litegpu calibrate net.tflite --ranges a.json --ranges b.json --calibration more/ -o all.json
  litegpu calibrate codec.tflite --calibration encode=pictures/ --calibration decode=codes.npz -o codec.json")]
pub(crate) struct Calibrate {
    /// The float model
    model: PathBuf,
    /// Where to save the ranges
    #[arg(short, long, value_name = "FILE.json")]
    output: PathBuf,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Take the methods of calibration from this recipe's rules
    #[arg(long, value_name = "FILE.json")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Where ranges come from.
#[derive(Debug, Clone, Args)]
pub(crate) struct CalibrationArgs {
    /// Representative samples: an .npz (an array per input, samples along the first dimension), a .npy, a folder of
    /// such, or a folder of pictures; once per signature, as KEY=PATH
    #[arg(long, value_name = "[KEY=]PATH")]
    pub(crate) calibration: Vec<String>,
    /// Ranges that `litegpu calibrate` saved; several are merged, and samples are added to them
    #[arg(long, value_name = "FILE.json")]
    pub(crate) ranges: Vec<PathBuf>,
    /// How values become a range: minmax, average[:SHARE KEPT], percentile[:SHARE], mse, entropy
    #[arg(long, default_value = "minmax", value_name = "METHOD")]
    pub(crate) method: Method,
    /// Samples to take of each set, spread over it [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) samples: Option<usize>,
    /// What a picture's black and white mean to the model [default: 0,1]
    #[arg(long, value_name = "LOW,HIGH", value_parser = range, allow_hyphen_values = true)]
    pub(crate) range: Option<(f32, f32)>,
    /// Samples are pieces of one stream: variables keep their values from one to the next
    #[arg(long)]
    pub(crate) keep_state: bool,
}

impl Calibrate {
    pub(crate) fn run(self) -> Outcome {
        let model = open(&self.model)?;
        let recipe = read_recipe(self.recipe.as_deref())?;
        let found = self.calibration.observe(&model, &self.device, &recipe, false)?;
        let found = found.ok_or_else(|| Failure::usage("neither --calibration nor --ranges"))?;
        write_safely(&self.output, found.to_json().map_err(Error::from)?.as_bytes(), |_| Ok(()))?;
        let ranges = found.ranges();
        let rows = model.graph().subgraphs.iter().enumerate().flat_map(|(s, g)| {
            let ranges = &ranges;
            g.tensors.iter().enumerate().filter_map(move |(t, x)| Some((s, x.name.clone(), ranges.get(s, t)?)))
        });
        if self.json {
            let rows: Vec<_> = rows
                .map(|(s, name, r)| serde_json::json!({"subgraph": s, "name": name, "min": r.min, "max": r.max}))
                .collect();
            return emit_json(&serde_json::json!({
                "model": self.model, "ranges": self.output, "samples": found.samples(), "tensors": rows,
            }));
        }
        let mut table = Table::new(&["subgraph", "min", "max", "tensor"]).right(&[0, 1, 2]);
        let mut n = 0;
        for (s, name, r) in rows {
            table.row(vec![s.to_string(), format!("{:.6}", r.min), format!("{:.6}", r.max), name]);
            n += 1;
        }
        emit(format!("{table}{n} ranges from {} samples, saved as {}\n", found.samples(), self.output.display()));
        Ok(())
    }
}

/// Reads a recipe, or gives the empty one.
pub(crate) fn read_recipe(path: Option<&Path>) -> Outcome<Recipe> {
    let Some(path) = path else { return Ok(Recipe::default()) };
    let text = read(path)?;
    let recipe = Recipe::from_json(&String::from_utf8_lossy(&text));
    Ok(recipe.map_err(|e| Error::from(e).at(path.display()))?)
}

/// Splits `KEY=PATH` where KEY is a signature of the model.
pub(crate) fn keyed<'a>(model: &Model, text: &'a str) -> (Option<&'a str>, &'a Path) {
    match text.split_once('=') {
        Some((key, path)) if model.signatures().any(|s| s == key) => (Some(key), Path::new(path)),
        _ => (None, Path::new(text)),
    }
}

/// Every n-th sample, so that `limit` are left.
pub(crate) fn spread(count: usize, limit: Option<usize>) -> impl Fn(usize) -> bool {
    let take = limit.unwrap_or(count).min(count).max(1);
    // Sample i is taken where i * take / count reaches a new whole number.
    move |i| i == 0 || (i * take) / count != ((i - 1) * take) / count
}

impl CalibrationArgs {
    /// Whether anything is given.
    pub(crate) fn any(&self) -> bool {
        !self.calibration.is_empty() || !self.ranges.is_empty()
    }

    /// The samples' sets.
    pub(crate) fn sets(&self, model: &Model) -> Outcome<Vec<Samples>> {
        let open = |text: &String| {
            let (key, path) = keyed(model, text);
            Ok(Samples::open(model, key, path, self.range)?)
        };
        self.calibration.iter().map(open).collect()
    }

    /// Runs everything that is given; `None` when nothing is. `channels`: extremes per channel too.
    pub(crate) fn observe(
        &self,
        model: &Model,
        device: &DeviceArgs,
        recipe: &Recipe,
        channels: bool,
    ) -> Outcome<Option<Observations>> {
        let mut before: Option<Observations> = None;
        for path in &self.ranges {
            let place = |e: graph::Error| Error::from(e).at(path.display());
            let text = read(path)?;
            let new = Observations::from_json(&String::from_utf8_lossy(&text)).map_err(place)?;
            match &mut before {
                Some(b) => b.merge(&new).map_err(place)?,
                None => before = Some(new),
            }
        }
        if self.calibration.is_empty() {
            return Ok(before);
        }
        let graphs = model.graph();
        let new = Calibrator::new(graphs, self.method, device.threads).and_then(|c| {
            let c = c.keep_state(self.keep_state).channels(channels);
            let c = c.methods(|s, t| recipe.method(graphs, s, t))?;
            if let Some(before) = before { c.resume(before) } else { Ok(c) }
        });
        let mut calibrator = new.map_err(Error::from)?;
        let sets = self.sets(model)?;
        let total: usize = sets.iter().map(|s| self.samples.unwrap_or(usize::MAX).min(s.len())).sum();
        let bar = progress(total as u64, "calibrate");
        for set in &sets {
            let take = spread(set.len(), self.samples);
            let mut gpu = None;
            for (_, item) in set.iter().enumerate().filter(|(i, _)| take(*i)) {
                let item = item?;
                let done = match device.device()? {
                    Device::Gpu => {
                        let exposed = match &mut gpu {
                            Some(e) => e,
                            None => gpu.insert(Exposed::new(model, &item.sample, device)?),
                        };
                        exposed.run(&item.sample, &mut calibrator, self.keep_state)
                    }
                    _ => calibrator.add(&item.sample).map_err(Error::from),
                };
                done.map_err(|e| e.at(&item.origin))?;
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(Some(calibrator.observations()))
    }
}

/// A model all of whose float tensors are outputs, so that a session on the GPU shows them.
struct Exposed {
    session: Session,
    subgraph: usize,
    /// Tensors in the order of the session's outputs, then those of its inputs.
    outputs: Vec<TensorId>,
    inputs: Vec<TensorId>,
}

impl Exposed {
    fn new(model: &Model, sample: &Sample, device: &DeviceArgs) -> Outcome<Exposed> {
        let key = sample.signature.as_deref();
        let mut m: graph::Model = model.graph().as_ref().clone();
        let subgraph = key.and_then(|k| m.signatures.iter().find(|s| s.key == k)).map_or(0, |s| s.subgraph);
        let g = m.subgraphs.get_mut(subgraph).ok_or_else(|| Failure::usage("the model has no subgraph"))?;
        if g.tensors.iter().any(|t| t.is_variable || t.dtype == DType::Resource)
            || model.graph().subgraphs.len() > 1 && key.is_none()
        {
            let what = "a model with variables or control flow is calibrated on the CPU: leave out --device gpu";
            return Err(Failure::usage(what));
        }
        let float = |t: &TensorId| g.tensors.get(*t).is_some_and(|t| t.dtype == DType::F32 && !t.is_constant());
        let outputs: Vec<TensorId> = g.nodes.iter().flat_map(|n| n.outputs.iter().copied()).filter(float).collect();
        let inputs = g.inputs.clone();
        g.outputs = outputs.clone();
        // Outputs of signatures would have to be graph outputs.
        for s in m.signatures.iter_mut().filter(|s| s.subgraph == subgraph) {
            s.outputs.retain(|(_, t)| outputs.contains(t));
        }
        let exposed = Model::from_graph(m)?;
        let mut builder = device.builder(&exposed, key)?.precision(Precision::F32).everything_on_gpu(true);
        let Inputs::Ordered(values) = &sample.inputs else { return Err(Failure::usage("inputs by name")) };
        for (i, v) in values.iter().enumerate() {
            builder = builder.input_shape(i, &v.shape);
        }
        Ok(Exposed { session: builder.build()?, subgraph, outputs, inputs })
    }

    fn run(&mut self, sample: &Sample, calibrator: &mut Calibrator, keep_state: bool) -> litegpu::Result<()> {
        let Inputs::Ordered(values) = &sample.inputs else { return Err(Error::invalid("inputs by name")) };
        let values: Vec<Tensor> =
            values.iter().map(|v| Tensor::from_bytes(v.dtype, &v.shape, v.bytes())).collect::<litegpu::Result<_>>()?;
        if !keep_state {
            self.session.reset();
        }
        let results = self.session.run(&values)?;
        let value = |t: TensorId| {
            let of = |list: &[TensorId]| list.iter().position(|&x| x == t);
            let t = match of(&self.outputs) {
                Some(i) => results.get(i)?,
                None => values.get(of(&self.inputs)?)?,
            };
            (t.dtype() == DType::F32).then(|| (t.bytes(), t.shape()))
        };
        Ok(calibrator.observe(self.subgraph, value)?)
    }
}
