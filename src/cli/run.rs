//! `litegpu run`

use super::bench::draw;
use super::table::Table;
use super::{DeviceArgs, Failed, Failure, Outcome, arrays, emit, emit_json, open, progress, read, write};
use clap::Args;
use litegpu::picture::{self, Layout};
use litegpu::{Model, Report, Session, Target, Tensor, TensorInfo};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Run a model once: on arrays, or on a picture.
///
/// A picture is scaled to the model's input. Its pixels become 0 to 1 (or --range); an 8-bit input takes them as they
/// are unless --range says what they mean, and real values are quantized by the input's parameters. Without inputs,
/// numbers from a fixed generator are used.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu run models/sr_x2_f32.tflite --image photo.png --tile 16 --picture out.png
  litegpu run models/digits_int8.tflite --image models/samples/digit_7.png
  litegpu run segment.tflite --image photo.jpg --range=-1,1 --picture mask.png
  litegpu run model.tflite --inputs in.npz --outputs out.npz --device cpu --json")]
pub(crate) struct Run {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Inputs: arrays in0, in1, ... in the model's order, or by name
    #[arg(long, value_name = "in.npz")]
    inputs: Option<PathBuf>,
    /// A PNG or JPEG for the first input that can hold a picture
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// What a picture's black and white mean to the model
    #[arg(long, value_name = "LOW,HIGH", value_parser = range, allow_hyphen_values = true)]
    range: Option<(f32, f32)>,
    /// Run over the whole picture in tiles of the input's size that overlap by N pixels; for models from picture to
    /// picture
    #[arg(long, value_name = "N", requires_all = ["image", "picture"])]
    tile: Option<usize>,
    /// Write the outputs to this file as arrays out0, out1, ...
    #[arg(long, value_name = "out.npz")]
    outputs: Option<PathBuf>,
    /// Draw the first image-shaped output (a picture, a mask, or scores per pixel) to this PNG or JPEG
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Draw this output instead
    #[arg(long, value_name = "N", requires = "picture")]
    picture_output: Option<usize>,
    /// What the output's black and white are [default: as for the input]
    #[arg(long, value_name = "LOW,HIGH", value_parser = range, allow_hyphen_values = true)]
    output_range: Option<(f32, f32)>,
    /// Names of the classes, one a line [default: those packed with the model, or NAME_labels.txt beside it]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Classes to print
    #[arg(long, default_value_t = 5, value_name = "N")]
    top: usize,
    /// The signature to run
    #[arg(long, value_name = "KEY")]
    signature: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn range(s: &str) -> Result<(f32, f32), String> {
    let parts = s.split_once(',').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    parts.filter(|(a, b): &(f32, f32)| a < b).ok_or_else(|| "two numbers, the smaller first, e.g. -1,1".to_string())
}

#[derive(Debug, Serialize)]
struct Class {
    class: usize,
    label: Option<String>,
    score: f32,
}

#[derive(Debug, Serialize)]
struct Output {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top: Vec<Class>,
    #[serde(skip)]
    preview: String,
}

impl Run {
    pub(crate) fn run(self) -> Outcome {
        let model = open(&self.model)?;
        let photo = self.image.as_deref().map(picture::open).transpose()?;
        let mut builder = self.device.builder(&model, self.signature.as_deref())?;
        let given = self.inputs.as_deref().map(arrays).transpose()?;
        // Shapes first, so that the model is planned once.
        let ports = Session::inputs_of(&model, self.signature.as_deref())?;
        let seen = match photo {
            Some(_) => Some(
                ports
                    .iter()
                    .position(|i| Layout::of(i).is_some())
                    .ok_or_else(|| Failure::usage(format!("{}: no input can hold a picture", self.model.display())))?,
            ),
            None => None,
        };
        let find = |i: usize, info: &TensorInfo| {
            let all = given.as_ref()?;
            all.get(&format!("in{i}")).or_else(|| all.get(&info.name)).or_else(|| all.get(&info.tensor_name))
        };
        let mut inputs: Vec<Tensor> = Vec::with_capacity(ports.len());
        for (i, info) in ports.iter().enumerate() {
            let t = match (&photo, seen, find(i, info)) {
                (Some(p), Some(at), _) if at == i => picture::to_tensor(p, info, self.range)?,
                (.., Some(t)) => t.clone(),
                (.., None) if given.is_some() => {
                    return Err(Failure::usage(format!("no array in{i} for input '{}'", info.name)));
                }
                _ => draw(std::slice::from_ref(info)).failed()?.remove(0),
            };
            if info.shape != t.shape() {
                builder = builder.input_shape(i, t.shape());
            }
            inputs.push(t);
        }
        let mut session = builder.build().failed()?;
        if let (Some(overlap), Some(photo), Some(at), Some(to)) = (self.tile, &photo, seen, &self.picture) {
            return self.tiled(&mut session, photo, &inputs, at, overlap, to);
        }
        for (i, t) in inputs.iter().enumerate() {
            session.set_input(i, t)?;
        }
        session.invoke().failed()?;
        let outputs = outputs(&session).failed()?;
        if let Some(path) = &self.outputs {
            let named: Vec<_> = outputs.iter().enumerate().map(|(i, t)| (format!("out{i}"), t.clone())).collect();
            let mut file = std::io::Cursor::new(Vec::new());
            litegpu::npz::write(&mut file, &named)?;
            write(path, file.into_inner())?;
        }
        let mut drawn = None;
        if let Some(path) = &self.picture {
            let at = self.picture_output.or_else(|| outputs.iter().position(|t| picture::shows(t.shape()).is_some()));
            let at = at.ok_or_else(|| Failure::usage("no output is a picture"))?;
            let t = outputs.get(at).ok_or_else(|| Failure::usage(format!("no output {at}")))?;
            let p = picture::to_picture(t, self.output_range.or(self.range))?;
            picture::save(&p, path)?;
            drawn = Some((at, p.width(), p.height()));
        }
        let labels = self.labels(&model)?;
        let rows: Vec<Output> =
            session.outputs().iter().zip(&outputs).map(|(info, t)| self.describe(info, t, labels.as_deref())).collect();
        let report = session.report();
        if self.json {
            return emit_json(&serde_json::json!({
                "model": self.model, "outputs": rows, "picture": self.picture, "report": report,
            }));
        }
        let mut table =
            Table::new(&["output", "name", "type", "shape", "min", "max", "mean", "first"]).right(&[4, 5, 6]);
        for (i, r) in rows.iter().enumerate() {
            let n = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.5}"));
            table.row(vec![
                i.to_string(),
                r.name.clone(),
                r.dtype.clone(),
                format!("{:?}", r.shape),
                n(r.min.map(f64::from)),
                n(r.max.map(f64::from)),
                n(r.mean),
                r.preview.clone(),
            ]);
        }
        let mut out = table.to_string();
        for (i, r) in rows.iter().enumerate().filter(|(_, r)| !r.top.is_empty()) {
            out += &format!("\noutput {i}, best classes\n");
            for c in &r.top {
                let label = c.label.as_deref().unwrap_or_default();
                out += &format!("{:>9.4}  {:<5} {label}\n", c.score, c.class);
            }
        }
        if let (Some((at, w, h)), Some(path)) = (drawn, &self.picture) {
            out += &format!("\noutput {at} drawn as {} ({w}x{h})\n", path.display());
        }
        if given.is_none() && photo.is_none() {
            out += "\nno --inputs and no --image: the inputs were made up\n";
        }
        out += &format!("\n{}", placed(&report));
        out += &format!("one run took {:.1} ms\n", report.timings.last_run_ms);
        emit(out);
        Ok(())
    }

    /// From picture to picture, tile by tile.
    fn tiled(
        &self,
        session: &mut Session,
        photo: &image::DynamicImage,
        inputs: &[Tensor],
        at: usize,
        overlap: usize,
        to: &Path,
    ) -> Outcome {
        for (i, t) in inputs.iter().enumerate() {
            session.set_input(i, t)?;
        }
        let info = session.inputs().get(at).cloned().ok_or_else(|| Failure::failed("no input"))?;
        let which = self.picture_output;
        let range = self.output_range.or(self.range);
        let bar = progress(0, "tiles");
        let start = std::time::Instant::now();
        let result = picture::tiled(photo, &info, overlap, self.range, |tile| {
            session.set_input(at, tile)?;
            session.invoke()?;
            bar.inc_length(1);
            bar.inc(1);
            let out = outputs(session)?;
            let i = which.or_else(|| out.iter().position(|t| picture::shows(t.shape()).is_some()));
            let t = i.and_then(|i| out.get(i)).ok_or_else(|| litegpu::Error::invalid("no output is a picture"))?;
            picture::to_picture(t, range)
        });
        bar.finish_and_clear();
        let result = result.failed()?;
        picture::save(&result, to)?;
        let report = session.report();
        let ms = start.elapsed().as_secs_f64() * 1e3;
        if self.json {
            return emit_json(&serde_json::json!({
                "model": self.model, "picture": to, "width": result.width(), "height": result.height(),
                "tiles": report.timings.runs, "ms": ms, "report": report,
            }));
        }
        emit(format!(
            "{}x{} became {} ({}x{}) in {} tile(s), {ms:.0} ms\n\n{}",
            photo.width(),
            photo.height(),
            to.display(),
            result.width(),
            result.height(),
            report.timings.runs,
            placed(&report)
        ));
        Ok(())
    }

    fn labels(&self, model: &Model) -> Outcome<Option<Vec<String>>> {
        let lines = |text: Vec<u8>| String::from_utf8_lossy(&text).lines().map(str::to_string).collect();
        if let Some(path) = &self.labels {
            return read(path).map(|t| Some(lines(t)));
        }
        if let Some(packed) = model.labels() {
            return Ok(Some(packed));
        }
        // mobilenet_int8.tflite: mobilenet_int8_labels.txt, then mobilenet_labels.txt.
        let mut stem = super::stem(&self.model);
        loop {
            if let Ok(text) = std::fs::read(self.model.with_file_name(format!("{stem}_labels.txt"))) {
                return Ok(Some(lines(text)));
            }
            match stem.rfind('_') {
                Some(at) => stem.truncate(at),
                None => return Ok(None),
            }
        }
    }

    fn describe(&self, info: &TensorInfo, t: &Tensor, labels: Option<&[String]>) -> Output {
        let values = t.to_f32().ok().filter(|v| !v.is_empty());
        let fold = |f: fn(f32, f32) -> f32| values.as_ref().and_then(|v| v.iter().copied().reduce(f));
        let mean = values.as_ref().map(|v| v.iter().map(|&v| f64::from(v)).sum::<f64>() / v.len() as f64);
        // Labels may lack the background class, or have it where the model does not.
        let classes = t.shape().last().copied().unwrap_or(0);
        let fits = labels.filter(|l| classes >= 2 && classes.abs_diff(l.len()) <= 1);
        let top = fits.and_then(|l| Some((l, picture::top(t, self.top)?))).map(|(l, top)| {
            let shift = l.len() as isize - classes as isize;
            top.into_iter()
                .map(|(class, score)| Class {
                    class,
                    label: usize::try_from(class as isize + shift).ok().and_then(|i| l.get(i)).cloned(),
                    score,
                })
                .collect()
        });
        Output {
            name: info.name.clone(),
            dtype: t.dtype().to_string(),
            shape: t.shape().to_vec(),
            min: fold(f32::min),
            max: fold(f32::max),
            mean,
            top: top.unwrap_or_default(),
            preview: preview(t),
        }
    }
}

/// Where the operators ran, by kind.
fn placed(report: &Report) -> String {
    let mut out = String::new();
    for target in [Target::Gpu, Target::Cpu, Target::Folded] {
        let mut kinds: Vec<(&str, usize)> = Vec::new();
        for p in report.placements.iter().filter(|p| p.target == target) {
            match kinds.iter_mut().find(|(k, _)| *k == p.op) {
                Some((_, n)) => *n += 1,
                None => kinds.push((&p.op, 1)),
            }
        }
        if kinds.is_empty() {
            continue;
        }
        let place = match (target, &report.adapter) {
            (Target::Gpu, Some(a)) => format!("on the GPU, {a}"),
            (Target::Gpu, None) => "on the GPU".to_string(),
            (Target::Cpu, _) => format!("on the CPU, {} thread(s)", report.threads),
            (Target::Folded, _) => "folded away".to_string(),
        };
        let list: Vec<_> = kinds.iter().map(|(k, n)| if *n > 1 { format!("{n} {k}") } else { k.to_string() }).collect();
        out += &format!("{} operators {place}: {}\n", report.count(target), list.join(", "));
    }
    if let Some(n) = &report.note {
        out += &format!("note: {n}\n");
    }
    out
}

fn outputs(session: &Session) -> litegpu::Result<Vec<Tensor>> {
    (0..session.outputs().len())
        .map(|i| {
            let v = session.output(i)?;
            Ok(Tensor::from_bytes(v.dtype, v.shape, v.bytes)?.with_quant(v.quant.cloned()))
        })
        .collect()
}

fn preview(t: &Tensor) -> String {
    const SHOWN: usize = 4;
    let (items, n) = match (t.to_strings(), t.to_f32()) {
        (Ok(s), _) => (s.iter().take(SHOWN).map(|s| format!("{s:?}")).collect::<Vec<_>>(), s.len()),
        (_, Ok(v)) => (v.iter().take(SHOWN).map(|v| format!("{v:.5}")).collect(), v.len()),
        _ => return "?".to_string(),
    };
    format!("{}{}", items.join(" "), if n > SHOWN { " ..." } else { "" })
}
