//! `litegpu bisect`

use super::bench::draw;
use super::table::Table;
use super::{DeviceArgs, Failed, Failure, Outcome, arrays, emit, emit_json, open, progress, stem, write_safely};
use clap::Args;
use litegpu::bisect::{Bisection, Cause, Departure, Options, bisect};
use litegpu::{Error, Model, Session, npz};
use serde::Serialize;
use std::path::PathBuf;

/// Find the first operator whose GPU result departs from the CPU's.
///
/// The model runs on both with the same inputs, as it is and with every operator's result read back; operators that
/// depart run by themselves on the CPU's operands, which tells an error from what it leads to. What shows the first
/// departure is written as a small model beside an array file with the CPU's results, for `litegpu verify`. Integers have
/// to be equal; floats depart above --limit, the norm of the difference over the norm of the CPU's result. Variables
/// begin at zero. Exit code 1 where something departs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu bisect model.tflite
  litegpu bisect model.tflite --precision f32 --limit 1e-5 -o wrong.tflite
  litegpu verify wrong.tflite wrong.npz --device gpu")]
pub(crate) struct Bisect {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Inputs: arrays in0, in1, ... [default: the same random numbers every time]
    #[arg(long, value_name = "in.npz")]
    inputs: Option<PathBuf>,
    /// The signature to run
    #[arg(long, value_name = "KEY")]
    signature: Option<String>,
    /// Relative norm above which floats depart [default: 1e-2 in f16 precision, 1e-4 in f32]
    #[arg(long, value_name = "NORM")]
    limit: Option<f64>,
    /// The model to write, and FILE.npz beside it [default: MODEL.bisect.tflite in the present folder]
    #[arg(short, long, value_name = "FILE.tflite")]
    output: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    node: usize,
    op: &'a str,
    output: &'a str,
    norm: f64,
    what: &'a str,
}

fn row(d: &Departure) -> Row<'_> {
    Row { node: d.node, op: &d.op, output: &d.output, norm: d.norm, what: &d.what }
}

fn cause(c: &Cause, op: &str) -> String {
    match c {
        Cause::Operator => format!("{op} by itself, on the CPU's operands, departs"),
        Cause::Fused(n) => format!("{n} operators that end with {op} depart together; each by itself is right"),
        Cause::Accumulated => {
            "each operator by itself is right within the limit: what they are off by adds up".to_string()
        }
    }
}

impl Bisect {
    pub(crate) fn run(self) -> Outcome {
        let model = open(&self.model)?;
        let limit = self.limit.unwrap_or(match self.device.precision()? {
            litegpu::Precision::F16 => 1e-2,
            litegpu::Precision::F32 => 1e-4,
        });
        if !(limit >= 0.0) {
            return Err(Failure::usage(format!("--limit {limit} is no norm")));
        }
        let infos = Session::inputs_of(&model, self.signature.as_deref())?;
        let inputs = match &self.inputs {
            Some(path) => {
                let mut all = arrays(path)?;
                let take = |i| all.remove(&format!("in{i}")).ok_or_else(|| Failure::usage(format!("no array in{i}")));
                (0..infos.len()).map(take).collect::<Outcome<Vec<_>>>()?
            }
            None => draw(&infos).failed()?,
        };
        let bar = progress(0, "bisect");
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        let builder = |m: &Model| self.device.builder(m, None).map_err(|f| Error::invalid(f.message));
        let done = bisect(
            &model,
            &inputs,
            &Options {
                limit,
                signature: self.signature.as_deref(),
                builder: &builder,
                progress: &|what| bar.set_message(what.to_string()),
            },
        );
        bar.finish_and_clear();
        let done = done.failed()?;
        let written = match &done.found {
            Some(f) => {
                let path = self.output.clone().unwrap_or_else(|| format!("{}.bisect.tflite", stem(&self.model)).into());
                let bytes = f.model.graph().write().map_err(|e| Failure::failed(e.to_string()))?;
                write_safely(&path, &bytes, |p| Model::open(p).map(|_| ()))?;
                let mut all = Vec::new();
                for (kind, list) in [("in", &f.inputs), ("out", &f.outputs)] {
                    all.extend(list.iter().enumerate().map(|(i, t)| (format!("{kind}{i}"), t.clone())));
                }
                let mut file = std::io::Cursor::new(Vec::new());
                npz::write(&mut file, &all).failed()?;
                let beside = path.with_extension("npz");
                write_safely(&beside, file.get_ref(), |_| Ok(()))?;
                Some((path, beside))
            }
            None => None,
        };
        self.tell(&done, limit, written)
    }

    fn tell(&self, done: &Bisection, limit: f64, written: Option<(PathBuf, PathBuf)>) -> Outcome {
        let found = done.found.as_ref();
        let verdict = if found.is_some() { Err(Failure::failed("")) } else { Ok(()) };
        if self.json {
            emit_json(&serde_json::json!({
                "model": stem(&self.model),
                "adapter": done.adapter,
                "limit": limit,
                "operators_on_gpu": done.on_gpu,
                "outputs": done.outputs.iter().map(row).collect::<Vec<_>>(),
                "departures": done.departures.iter().map(row).collect::<Vec<_>>(),
                "first": found.map(|f| row(&f.departure)),
                "cause": found.map(|f| cause(&f.cause, &f.departure.op)),
                "written": written.as_ref().map(|w| [&w.0, &w.1]),
            }))?;
            return verdict;
        }
        let mut out = format!(
            "{}: {} operators on {}\n",
            stem(&self.model),
            done.on_gpu,
            done.adapter.as_deref().unwrap_or("no adapter")
        );
        if !done.departures.is_empty() {
            let mut table = Table::new(&["#", "operator", "relative norm", "result"]).right(&[0, 2]);
            for d in done.departures.iter().take(20) {
                table.row(vec![d.node.to_string(), d.op.clone(), format!("{:.2e}", d.norm), d.output.clone()]);
            }
            out += &table.to_string();
            if done.departures.len() > 20 {
                out += &format!("... and {} more\n", done.departures.len() - 20);
            }
        }
        match (found, written) {
            (Some(f), Some((path, beside))) => {
                let d = &f.departure;
                out += &format!("First to depart: operator {} {}, '{}': {}\n", d.node, d.op, d.output, d.what);
                out += &format!("{}.\n", cause(&f.cause, &d.op));
                out += &format!("Written: {} and {}\n", path.display(), beside.display());
            }
            _ => {
                out += &format!("Nothing departs: integers are equal, floats within a relative norm of {limit:.0e}.\n")
            }
        }
        emit(out);
        verdict
    }
}
