//! `litegpu inspect`

use super::table::Table;
use super::{DeviceArgs, Outcome, emit, emit_json, html, open, stem, write};
use clap::Args;
use litegpu::graph::{Graph, Model as GraphModel, Quant, Tensor};
use litegpu::{Model, Report};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Show what is in a model: subgraphs, operators, tensors, quantization, signatures, sizes.
///
/// With --html, writes one page without any other file that draws the graph, coloured by where each operator would
/// run: on an adapter of this machine with --device gpu, else on any GPU.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu inspect model.tflite
  litegpu inspect model.tflite --tensors
  litegpu inspect model.tflite --html model.html")]
pub(crate) struct Inspect {
    /// The model
    model: PathBuf,
    /// List every tensor too
    #[arg(long)]
    tensors: bool,
    /// Write a page that draws the graph
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct About {
    model: String,
    bytes: usize,
    schema: u32,
    description: String,
    constants: BTreeMap<String, u64>,
    metadata: BTreeMap<String, usize>,
    files: Vec<String>,
    signatures: Vec<SignatureInfo>,
    subgraphs: Vec<GraphInfo>,
}

#[derive(Debug, Serialize)]
struct SignatureInfo {
    key: String,
    subgraph: usize,
    inputs: Vec<(String, usize)>,
    outputs: Vec<(String, usize)>,
}

#[derive(Debug, Serialize)]
struct GraphInfo {
    name: String,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    operators: Vec<OpInfo>,
    tensors: Vec<TensorRow>,
}

#[derive(Debug, Serialize)]
struct OpInfo {
    op: String,
    version: i32,
    inputs: Vec<Option<usize>>,
    outputs: Vec<usize>,
    options: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct TensorRow {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) signature: Option<Vec<i32>>,
    pub(crate) kind: &'static str,
    pub(crate) bytes: Option<usize>,
    pub(crate) quantization: Option<String>,
    pub(crate) scale: Vec<f32>,
    pub(crate) zero_point: Vec<i64>,
}

impl Inspect {
    pub(crate) fn run(self) -> Outcome {
        let model = open(&self.model)?;
        if let Some(path) = &self.html {
            let (report, note) = self.placement(&model)?;
            write(path, html::page(&stem(&self.model), &model, report.as_ref(), &note))?;
            if !self.json {
                emit(format!("wrote {} ({note})\n", path.display()));
            }
            return Ok(());
        }
        let about = about(&stem(&self.model), &model);
        if self.json {
            return emit_json(&about);
        }
        emit(text(&about, model.graph(), self.tensors));
        Ok(())
    }

    /// Where the operators would run. A model that cannot be planned is drawn all the same.
    fn placement(&self, model: &Model) -> Outcome<(Option<Report>, String)> {
        let builder = self.device.builder(model, None)?;
        let plan = |builder: litegpu::Builder| -> litegpu::Result<(Report, String)> {
            #[cfg(feature = "gpu")]
            if self.device.device == "auto" {
                let report = builder.plan_for(&litegpu::Caps::baseline())?;
                return Ok((report, "placed for any GPU".into()));
            }
            let mut session = builder.build()?;
            session.prepare()?;
            let report = session.report();
            let on = report.adapter.clone().unwrap_or_else(|| "the CPU".into());
            Ok((report, format!("placed for {on}")))
        };
        Ok(match plan(builder) {
            Ok((report, note)) => (Some(report), note),
            Err(e) => (None, format!("no plan: {e}")),
        })
    }
}

fn about(name: &str, model: &Model) -> About {
    let m = model.graph();
    let mut constants: BTreeMap<String, u64> = BTreeMap::new();
    for t in m.subgraphs.iter().flat_map(|g| &g.tensors) {
        if let Some(d) = &t.data {
            *constants.entry(t.dtype.to_string()).or_default() += d.len() as u64;
        }
    }
    let zip = zip::ZipArchive::new(std::io::Cursor::new(&m.appended[..])).ok();
    About {
        model: name.to_string(),
        bytes: model.file_bytes(),
        schema: m.version,
        description: m.description.clone(),
        constants,
        metadata: m.metadata.iter().map(|(k, v)| (k.clone(), v.len())).collect(),
        files: zip.map(|z| z.file_names().map(str::to_string).collect()).unwrap_or_default(),
        signatures: m
            .signatures
            .iter()
            .map(|s| SignatureInfo {
                key: s.key.clone(),
                subgraph: s.subgraph,
                inputs: s.inputs.clone(),
                outputs: s.outputs.clone(),
            })
            .collect(),
        subgraphs: m
            .subgraphs
            .iter()
            .map(|g| GraphInfo {
                name: g.name.clone(),
                inputs: g.inputs.clone(),
                outputs: g.outputs.clone(),
                operators: g
                    .nodes
                    .iter()
                    .map(|n| OpInfo {
                        op: n.op.name().to_string(),
                        version: n.version,
                        inputs: n.inputs.clone(),
                        outputs: n.outputs.clone(),
                        options: options(n),
                    })
                    .collect(),
                tensors: g.tensors.iter().enumerate().map(|(i, t)| row(g, i, t)).collect(),
            })
            .collect(),
    }
}

/// A tensor for a table.
pub(crate) fn row(g: &Graph, i: usize, t: &Tensor) -> TensorRow {
    let kind = match t {
        t if t.is_variable => "variable",
        t if t.sparsity.is_some() => "sparse constant",
        t if t.is_constant() => "constant",
        _ if g.inputs.contains(&i) => "input",
        _ if g.outputs.contains(&i) => "output",
        _ => "computed",
    };
    TensorRow {
        name: t.name.clone(),
        dtype: t.dtype.to_string(),
        shape: t.shape.to_vec(),
        signature: t.signature.clone(),
        kind,
        bytes: t.data.as_ref().map(|d| d.len()).or_else(|| t.dtype.byte_len(t.elements())),
        quantization: t.quant.as_ref().map(quant).filter(|q| !q.is_empty()),
        scale: t.quant.as_ref().map(|q| q.scale.clone()).unwrap_or_default(),
        zero_point: t.quant.as_ref().map(|q| q.zero_point.clone()).unwrap_or_default(),
    }
}

/// An operator's attributes, as text.
pub(crate) fn options(node: &litegpu::graph::Node) -> String {
    use litegpu::graph::Op;
    if let Op::Custom(c) = &node.op {
        return format!("{} bytes of options", c.options.len());
    }
    // The derived form: `Conv2d(Conv2DOptionsT { padding: SAME, ... })`.
    let text = format!("{:?}", node.op);
    match (text.find('{'), text.rfind('}')) {
        (Some(a), Some(b)) if a < b => text.get(a + 1..b).unwrap_or_default().trim().to_string(),
        _ => String::new(),
    }
}

/// Quantization, in short.
pub(crate) fn quant(q: &Quant) -> String {
    let mut out = match q.per_tensor() {
        Some((s, z)) => format!("scale {s}, zero point {z}"),
        None if q.scale.is_empty() => String::new(),
        None => format!("{} scales on axis {}", q.scale.len(), q.axis),
    };
    if let Some(b) = &q.blockwise {
        out = format!("blocks of {}, scales in tensor {}", b.block_size, b.scales);
    }
    out
}

fn text(a: &About, m: &GraphModel, all_tensors: bool) -> String {
    let mut out = format!("{}: {} bytes, schema {}\n", a.model, a.bytes, a.schema);
    if !a.description.is_empty() {
        out += &format!("description  {}\n", a.description);
    }
    let list: Vec<_> = a.constants.iter().map(|(t, b)| format!("{b} bytes of {t}")).collect();
    out += &format!("constants    {}\n", if list.is_empty() { "none".to_string() } else { list.join(", ") });
    for (k, v) in &a.metadata {
        out += &format!("metadata     {k} ({v} bytes)\n");
    }
    if !a.files.is_empty() {
        out += &format!("packed files {}\n", a.files.join(", "));
    }
    for s in &a.signatures {
        let names = |list: &[(String, usize)]| list.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", ");
        out += &format!(
            "signature    {} (subgraph {}): {} -> {}\n",
            s.key,
            s.subgraph,
            names(&s.inputs),
            names(&s.outputs)
        );
    }
    for (i, (g, info)) in m.subgraphs.iter().zip(&a.subgraphs).enumerate() {
        let name = if g.name.is_empty() { String::new() } else { format!(" '{}'", g.name) };
        out += &format!("\nsubgraph {i}{name}: {} operators, {} tensors\n", g.nodes.len(), g.tensors.len());
        for (what, ids) in [("input", &g.inputs), ("output", &g.outputs)] {
            for (k, &t) in ids.iter().enumerate() {
                if let Some(r) = info.tensors.get(t) {
                    let shape = r.signature.as_ref().map_or(format!("{:?}", r.shape), |s| format!("{s:?}"));
                    let q = r.quantization.as_ref().map(|q| format!(", {q}")).unwrap_or_default();
                    out += &format!("  {what:<6} {k}  tensor {t} '{}' {}{shape}{q}\n", r.name, r.dtype);
                }
            }
        }
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for n in &g.nodes {
            *kinds.entry(n.op.name()).or_default() += 1;
        }
        let kinds: Vec<_> = kinds.into_iter().map(|(k, n)| format!("{n} {k}")).collect();
        if g.nodes.len() > 1 {
            out += &format!("  {}\n", kinds.join(", "));
        }
        out.push('\n');
        out += &operators(g).to_string();
        if all_tensors {
            out.push('\n');
            out += &tensors(info).to_string();
        }
    }
    out
}

fn operators(g: &Graph) -> Table {
    let mut table = Table::new(&["#", "operator", "version", "inputs (* constant)", "outputs"]).right(&[0, 2]);
    for (n, node) in g.nodes.iter().enumerate() {
        let one = |t: Option<usize>| match t.and_then(|t| Some((t, g.tensors.get(t)?))) {
            Some((i, t)) => {
                format!("{i}:{}{:?}{}", t.dtype, t.shape.as_slice(), if t.is_constant() { "*" } else { "" })
            }
            None => "-".to_string(),
        };
        let inputs: Vec<_> = node.inputs.iter().map(|&t| one(t)).collect();
        let outputs: Vec<_> = node.outputs.iter().map(|&t| one(Some(t))).collect();
        table.row(vec![
            n.to_string(),
            node.op.name().to_string(),
            node.version.to_string(),
            inputs.join(" "),
            outputs.join(" "),
        ]);
    }
    table
}

fn tensors(info: &GraphInfo) -> Table {
    let mut table = Table::new(&["tensor", "type", "shape", "kind", "bytes", "quantization", "name"]).right(&[0, 4]);
    for (i, r) in info.tensors.iter().enumerate() {
        table.row(vec![
            i.to_string(),
            r.dtype.clone(),
            r.signature.as_ref().map_or(format!("{:?}", r.shape), |s| format!("{s:?}")),
            r.kind.to_string(),
            r.bytes.map_or("-".to_string(), |b| b.to_string()),
            r.quantization.clone().unwrap_or_default(),
            r.name.clone(),
        ]);
    }
    table
}
