//! `litegpu inspect`

use super::table::Table;
use super::{Outcome, emit, open, stem};
use clap::Args;
use litegpu::graph::{Graph, Quant, Tensor};
use std::path::PathBuf;

/// Show what is in a model.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu inspect model.tflite")]
pub(crate) struct Inspect {
    /// The model
    model: PathBuf,
    /// List every tensor too
    #[arg(long)]
    tensors: bool,
}

impl Inspect {
    pub(crate) fn run(self) -> Outcome {
        let model = open(&self.model)?;
        let m = model.graph();
        let mut out = format!("{}: {} bytes, schema {}\n", stem(&self.model), model.file_bytes(), m.version);
        if !m.description.is_empty() {
            out += &format!("{}\n", m.description);
        }
        for (i, g) in m.subgraphs.iter().enumerate() {
            out += &format!("\nsubgraph {i} '{}': {} operators, {} tensors\n", g.name, g.nodes.len(), g.tensors.len());
            for (what, ids) in [("input", &g.inputs), ("output", &g.outputs)] {
                for (k, &t) in ids.iter().enumerate() {
                    if let Some(t) = g.tensors.get(t) {
                        out += &format!("  {what} {k} '{}' {} {}\n", t.name, t.dtype, form(t));
                    }
                }
            }
            out += &operators(g).to_string();
        }
        emit(out);
        Ok(())
    }
}

fn operators(g: &Graph) -> Table {
    let mut table = Table::new(&["#", "operator", "inputs", "outputs"]).right(&[0]);
    for (n, node) in g.nodes.iter().enumerate() {
        let one = |t: Option<usize>| match t.and_then(|t| Some((t, g.tensors.get(t)?))) {
            Some((i, t)) => {
                format!("{i}:{}{:?}{}", t.dtype, t.shape.as_slice(), if t.is_constant() { "*" } else { "" })
            }
            None => "-".to_string(),
        };
        let inputs: Vec<_> = node.inputs.iter().map(|&t| one(t)).collect();
        let outputs: Vec<_> = node.outputs.iter().map(|&t| one(Some(t))).collect();
        table.row(vec![n.to_string(), node.op.name().to_string(), inputs.join(" "), outputs.join(" ")]);
    }
    table
}

fn form(t: &Tensor) -> String {
    let shape = match &t.signature {
        Some(s) => format!("{s:?}"),
        None => format!("{:?}", t.shape.as_slice()),
    };
    format!("{shape}{}", t.quant.as_ref().map(quant).unwrap_or_default())
}

fn quant(q: &Quant) -> String {
    match q.per_tensor() {
        Some((s, z)) => format!(" scale {s} zero {z}"),
        None if q.blockwise.is_some() => " blockwise".to_string(),
        None if q.scale.is_empty() => String::new(),
        None => format!(" {} scales on axis {}", q.scale.len(), q.axis),
    }
}
