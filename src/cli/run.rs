//! `litegpu run`

use super::bench::draw;
use super::table::Table;
use super::{DeviceArgs, Failed, Failure, Outcome, arrays, emit, emit_json, open, write};
use clap::Args;
use litegpu::{Tensor, TensorInfo};
use std::path::PathBuf;

/// Run a model once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu run model.tflite --inputs in.npz --outputs out.npz --device cpu")]
pub(crate) struct Run {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Inputs: arrays in0, in1, ... in the model's order, or by name
    #[arg(long, value_name = "in.npz")]
    inputs: Option<PathBuf>,
    /// Write the outputs to this file as arrays out0, out1, ...
    #[arg(long, value_name = "out.npz")]
    outputs: Option<PathBuf>,
    /// The signature to run
    #[arg(long, value_name = "KEY")]
    signature: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Run {
    pub(crate) fn run(self) -> Outcome {
        let model = open(&self.model)?;
        let mut session = self.device.builder(&model, self.signature.as_deref())?.build().failed()?;
        let inputs = match &self.inputs {
            Some(path) => {
                let all = arrays(path)?;
                let find = |(i, info): (usize, &TensorInfo)| {
                    let t = all.get(&format!("in{i}")).or_else(|| all.get(&info.name)).cloned();
                    t.ok_or_else(|| Failure::usage(format!("{}: no array in{i} ('{}')", path.display(), info.name)))
                };
                session.inputs().iter().enumerate().map(find).collect::<Outcome<Vec<_>>>()?
            }
            None => draw(session.inputs()).failed()?,
        };
        for (i, t) in inputs.iter().enumerate() {
            if session.inputs().get(i).is_some_and(|p| p.shape != t.shape()) {
                session.resize_input(i, t.shape())?;
            }
            session.set_input(i, t)?;
        }
        session.invoke().failed()?;
        let outputs: Vec<Tensor> = (0..session.outputs().len())
            .map(|i| {
                let v = session.output(i)?;
                Ok(Tensor::from_bytes(v.dtype, v.shape, v.bytes)?.with_quant(v.quant.cloned()))
            })
            .collect::<litegpu::Result<_>>()
            .failed()?;
        if let Some(path) = &self.outputs {
            let named: Vec<_> = outputs.iter().enumerate().map(|(i, t)| (format!("out{i}"), t.clone())).collect();
            let mut file = std::io::Cursor::new(Vec::new());
            litegpu::npz::write(&mut file, &named)?;
            write(path, file.into_inner())?;
        }
        if self.json {
            return emit_json(&serde_json::json!({ "report": session.report() }));
        }
        let mut table = Table::new(&["output", "name", "type", "shape", "values"]);
        for (i, (info, t)) in session.outputs().iter().zip(&outputs).enumerate() {
            table.row(vec![
                i.to_string(),
                info.name.clone(),
                t.dtype().to_string(),
                format!("{:?}", t.shape()),
                preview(t),
            ]);
        }
        emit(table.to_string());
        Ok(())
    }
}

fn preview(t: &Tensor) -> String {
    const SHOWN: usize = 6;
    let (items, n) = match (t.to_strings(), t.to_f32()) {
        (Ok(s), _) => (s.iter().take(SHOWN).map(|s| format!("{s:?}")).collect::<Vec<_>>(), s.len()),
        (_, Ok(v)) => (v.iter().take(SHOWN).map(|v| format!("{v:.5}")).collect(), v.len()),
        _ => return "?".to_string(),
    };
    format!("{}{}", items.join(" "), if n > SHOWN { " ..." } else { "" })
}
