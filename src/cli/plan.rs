//! `litegpu plan`

use super::{DeviceArgs, Failed, Failure, Outcome, emit, emit_json, open};
use clap::Args;
use std::path::PathBuf;

/// Show where each operator of a model runs, why, and what crosses each boundary.
///
/// Nothing is run. With --baseline the plan is made for an adapter that has no more than every WebGPU implementation
/// has, so that it can be made on a machine without any.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu plan model.tflite --device gpu
  litegpu plan model.tflite --baseline --json")]
pub(crate) struct Plan {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Plan for the least that an adapter can be
    #[arg(long)]
    baseline: bool,
    /// The signature to plan
    #[arg(long, value_name = "KEY")]
    signature: Option<String>,
    /// Give an input another shape first, e.g. 0=1,128,128,3
    #[arg(long, value_name = "INPUT=DIMS", value_parser = shape)]
    shape: Vec<(String, Vec<usize>)>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn shape(s: &str) -> Result<(String, Vec<usize>), String> {
    let bad = || "an input's number or name, '=' and dimensions, e.g. 0=1,128,128,3".to_string();
    let (key, dims) = s.rsplit_once('=').ok_or_else(bad)?;
    let dims = dims.split(',').map(|d| d.trim().parse().map_err(|_| bad())).collect::<Result<_, _>>()?;
    Ok((key.to_string(), dims))
}

#[cfg(feature = "gpu")]
fn baseline(builder: litegpu::Builder) -> Outcome<litegpu::Report> {
    builder.plan_for(&litegpu::Caps::baseline()).failed()
}

#[cfg(not(feature = "gpu"))]
fn baseline(_: litegpu::Builder) -> Outcome<litegpu::Report> {
    Err(Failure::usage("litegpu was built without its GPU delegate"))
}

impl Plan {
    pub(crate) fn run(self) -> Outcome {
        let model = open(&self.model)?;
        let mut builder = self.device.builder(&model, self.signature.as_deref())?;
        for (key, dims) in &self.shape {
            builder = match key.parse::<usize>() {
                Ok(i) => builder.input_shape(i, dims),
                Err(_) => builder.input_shape(key, dims),
            };
        }
        let report = if self.baseline {
            baseline(builder)?
        } else {
            let mut session = builder.build().failed()?;
            session.prepare().failed()?;
            session.report()
        };
        if report.placements.is_empty() && model.graph().main().is_some_and(|g| !g.nodes.is_empty()) {
            return Err(Failure::failed("no plan could be made"));
        }
        if self.json {
            return emit_json(&report);
        }
        emit(report.to_string());
        Ok(())
    }
}
