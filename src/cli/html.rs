//! The page of `litegpu inspect --html`: graphs as SVG, drawn in layers, coloured by placement. The page needs no
//! other file and no network.

use super::inspect::{options, row};
use litegpu::graph::Graph;
use litegpu::{Model, Report, Target};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Write;

/// Height of a box, and room between layers and between neighbours.
const HEIGHT: f64 = 38.0;
const LAYER: f64 = 74.0;
const GAP: f64 = 22.0;
/// Corners of long edges beyond which they are drawn straight: a huge graph must not take for ever.
const MAX_CORNERS: usize = 40_000;

/// What the page's script shows of an operator.
#[derive(Debug, Serialize)]
struct Detail {
    op: String,
    version: i32,
    target: String,
    reason: String,
    options: String,
    inputs: Vec<Option<usize>>,
    outputs: Vec<usize>,
}

#[derive(Debug, Serialize)]
struct Sheet {
    operators: Vec<Detail>,
    tensors: Vec<super::inspect::TensorRow>,
}

/// The page.
pub(crate) fn page(name: &str, model: &Model, report: Option<&Report>, note: &str) -> String {
    let graphs = &model.graph().subgraphs;
    let mut tabs = String::new();
    let mut drawings = String::new();
    let mut sheets = Vec::new();
    for (i, g) in graphs.iter().enumerate() {
        // Only the main subgraph is planned; the others run where the operator runs that calls them.
        let placements = report.filter(|_| i == 0).map(|r| r.placements.as_slice()).unwrap_or_default();
        let target = |n: usize| match placements.iter().find(|p| p.node == n) {
            Some(p) => (p.target.to_string(), p.reason.clone()),
            None if i > 0 => (Target::Cpu.to_string(), "in a subgraph that the CPU executor calls".to_string()),
            None => ("unknown".to_string(), String::new()),
        };
        let operators: Vec<Detail> = g
            .nodes
            .iter()
            .enumerate()
            .map(|(n, node)| {
                let (target, reason) = target(n);
                Detail {
                    op: node.op.name().to_string(),
                    version: node.version,
                    target,
                    reason,
                    options: options(node),
                    inputs: node.inputs.clone(),
                    outputs: node.outputs.clone(),
                }
            })
            .collect();
        let label = if g.name.is_empty() { format!("subgraph {i}") } else { g.name.clone() };
        let _ = write!(tabs, "<button data-graph=\"{i}\">{} ({})</button>", escape(&label), g.nodes.len());
        drawings += &draw(i, g, &operators);
        let tensors = g.tensors.iter().enumerate().map(|(i, t)| row(g, i, t)).collect();
        sheets.push(Sheet { operators, tensors });
    }
    // `<` cannot occur in the script's data: no text of a model can end the element.
    let data = serde_json::to_string(&sheets).unwrap_or_default().replace('<', "\\u003c");
    let counts = report.map_or(String::new(), |r| {
        format!(
            "{} operators on the GPU in {} part(s), {} on the CPU, {} folded away; ",
            r.count(Target::Gpu),
            r.partition_count(Target::Gpu),
            r.count(Target::Cpu),
            r.count(Target::Folded)
        )
    });
    include_str!("page.html")
        .replace("@NAME@", &escape(name))
        .replace("@ABOUT@", &escape(&format!("{} bytes; {counts}{note}", model.file_bytes())))
        .replace("@TABS@", &tabs)
        .replace("@DRAWINGS@", &drawings)
        .replace("@DATA@", &data)
}

fn escape(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // Markers of the page are never made by a model's text.
            '@' => out += "&#64;",
            c => out.push(c),
        }
    }
    out
}

/// A box of the drawing, or a corner of a long edge.
#[derive(Debug)]
struct Vertex {
    layer: usize,
    width: f64,
    x: f64,
    up: Vec<usize>,
    down: Vec<usize>,
}

/// An edge: the vertices it passes, and its tensor.
#[derive(Debug)]
struct Edge {
    path: Vec<usize>,
    tensor: usize,
}

fn draw(index: usize, g: &Graph, operators: &[Detail]) -> String {
    let form = |t: usize| g.tensors.get(t).map(|t| format!("{}{:?}", t.dtype, t.shape.as_slice())).unwrap_or_default();
    // Boxes: inputs, operators, outputs.
    let mut titles: Vec<(String, String, String)> = Vec::new();
    for (k, &t) in g.inputs.iter().enumerate() {
        titles.push((format!("input {k}"), form(t), "port".into()));
    }
    for (n, d) in operators.iter().enumerate() {
        let out = g.nodes.get(n).and_then(|n| n.outputs.first()).map(|&t| form(t)).unwrap_or_default();
        titles.push((d.op.clone(), out, d.target.clone()));
    }
    for (k, &t) in g.outputs.iter().enumerate() {
        titles.push((format!("output {k}"), form(t), "port".into()));
    }
    let op_at = |n: usize| g.inputs.len() + n;
    let mut vertices: Vec<Vertex> = titles
        .iter()
        .map(|(a, b, _)| {
            let width = (a.chars().count().max(b.chars().count()) as f64 * 6.6 + 20.0).max(80.0);
            Vertex { layer: 0, width, x: 0.0, up: Vec::new(), down: Vec::new() }
        })
        .collect();
    // Who makes a tensor; layers by the longest way from the inputs.
    let mut maker: HashMap<usize, usize> = g.inputs.iter().enumerate().map(|(k, &t)| (t, k)).collect();
    let mut links: Vec<(usize, usize, usize)> = Vec::new();
    for (n, node) in g.nodes.iter().enumerate() {
        let to = op_at(n);
        for &t in node.inputs.iter().flatten() {
            if let Some(&from) = maker.get(&t)
                && from != to
            {
                links.push((from, to, t));
                let below = vertices.get(from).map_or(0, |v| v.layer + 1);
                if let Some(v) = vertices.get_mut(to) {
                    v.layer = v.layer.max(below);
                }
            }
        }
        for &t in &node.outputs {
            maker.insert(t, to);
        }
    }
    for (k, &t) in g.outputs.iter().enumerate() {
        let to = op_at(g.nodes.len()) + k;
        if let Some(&from) = maker.get(&t) {
            links.push((from, to, t));
            let below = vertices.get(from).map_or(0, |v| v.layer + 1);
            if let Some(v) = vertices.get_mut(to) {
                v.layer = below;
            }
        }
    }
    // What hangs on constants alone (a DEQUANTIZE of weights) belongs beside its reader, not at the top.
    let mut first_reader: HashMap<usize, usize> = HashMap::new();
    for &(from, to, _) in &links {
        let layer = vertices.get(to).map_or(0, |v| v.layer);
        first_reader.entry(from).and_modify(|l| *l = layer.min(*l)).or_insert(layer);
    }
    let fed: std::collections::HashSet<usize> = links.iter().map(|&(_, to, _)| to).collect();
    for n in (0..g.nodes.len()).map(op_at).filter(|v| !fed.contains(v)) {
        if let (Some(v), Some(&reader)) = (vertices.get_mut(n), first_reader.get(&n)) {
            v.layer = reader.saturating_sub(1);
        }
    }
    let edges = route(&mut vertices, &links);
    let layers = arrange(&mut vertices);
    let (mut left, mut right) = (f64::MAX, f64::MIN);
    for v in &vertices {
        left = left.min(v.x - v.width / 2.0);
        right = right.max(v.x + v.width / 2.0);
    }
    if vertices.is_empty() {
        (left, right) = (0.0, 100.0);
    }
    let (w, h) = (right - left + 40.0, layers as f64 * LAYER + 20.0);
    let mut svg = format!(
        "<svg class=\"graph\" data-graph=\"{index}\" data-width=\"{w:.0}\" data-height=\"{h:.0}\" \
         viewBox=\"{:.0} -10 {w:.0} {h:.0}\" xmlns=\"http://www.w3.org/2000/svg\">\n<g>",
        left - 20.0
    );
    let at = |v: usize| vertices.get(v).map_or((0.0, 0.0), |v| (v.x, v.layer as f64 * LAYER));
    for e in &edges {
        let mut d = String::new();
        for (i, pair) in e.path.windows(2).enumerate() {
            let (&[a, b], false) = (pair.first_chunk::<2>().unwrap_or(&[0, 0]), pair.len() < 2) else { continue };
            let ((x0, y0), (x1, y1)) = (at(a), at(b));
            let (y0, y1) = (y0 + if i == 0 { HEIGHT } else { HEIGHT / 2.0 }, y1);
            let y1 = if i + 2 == e.path.len() { y1 } else { y1 + HEIGHT / 2.0 };
            if i == 0 {
                let _ = write!(d, "M{x0:.1} {y0:.1}");
            }
            let m = (y1 - y0) / 2.0;
            let _ = write!(d, "C{x0:.1} {:.1} {x1:.1} {:.1} {x1:.1} {y1:.1}", y0 + m, y1 - m);
        }
        let name = g.tensors.get(e.tensor).map(|t| t.name.as_str()).unwrap_or_default();
        let _ = write!(
            svg,
            "<path class=\"edge\" data-tensor=\"{}\" d=\"{d}\"><title>tensor {} {}\n{}</title></path>",
            e.tensor,
            e.tensor,
            escape(name),
            escape(&form(e.tensor))
        );
    }
    for (i, (title, sub, class)) in titles.iter().enumerate() {
        let Some(v) = vertices.get(i) else { continue };
        let (x, y) = (v.x - v.width / 2.0, v.layer as f64 * LAYER);
        let (data, hover) = match i.checked_sub(g.inputs.len()).filter(|&n| n < operators.len()) {
            Some(n) => {
                let reason = operators.get(n).map(|d| d.reason.as_str()).unwrap_or_default();
                (format!("data-op=\"{n}\""), format!("{n} {title}: {class}\n{reason}"))
            }
            None => {
                let k = i.checked_sub(op_at(operators.len()));
                let t = k.map_or(g.inputs.get(i), |k| g.outputs.get(k)).copied().unwrap_or_default();
                (format!("data-tensor=\"{t}\""), title.clone())
            }
        };
        let _ = write!(
            svg,
            "<g class=\"box {class}\" {data} tabindex=\"0\"><title>{}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" \
             width=\"{:.1}\" height=\"{HEIGHT}\" rx=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>\
             <text class=\"sub\" x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            escape(&hover),
            v.width,
            if class == "port" { 19 } else { 5 },
            v.x,
            y + 16.0,
            escape(title),
            v.x,
            y + 30.0,
            escape(sub)
        );
    }
    svg += "</g></svg>\n";
    svg
}

/// Gives edges over several layers a corner in each, so that boxes make room for them.
fn route(vertices: &mut Vec<Vertex>, links: &[(usize, usize, usize)]) -> Vec<Edge> {
    let mut edges = Vec::with_capacity(links.len());
    let mut corners = 0;
    for &(from, to, tensor) in links {
        let (Some(a), Some(b)) = (vertices.get(from).map(|v| v.layer), vertices.get(to).map(|v| v.layer)) else {
            continue;
        };
        let mut path = vec![from];
        if corners + b.saturating_sub(a) <= MAX_CORNERS {
            for layer in a + 1..b {
                vertices.push(Vertex { layer, width: 8.0, x: 0.0, up: Vec::new(), down: Vec::new() });
                path.push(vertices.len() - 1);
                corners += 1;
            }
        }
        path.push(to);
        for pair in path.windows(2) {
            if let [p, q] = *pair {
                if let Some(v) = vertices.get_mut(p) {
                    v.down.push(q);
                }
                if let Some(v) = vertices.get_mut(q) {
                    v.up.push(p);
                }
            }
        }
        edges.push(Edge { path, tensor });
    }
    edges
}

/// Orders each layer so that edges cross little, and places boxes near their neighbours. Returns the number of layers.
fn arrange(vertices: &mut [Vertex]) -> usize {
    let count = vertices.iter().map(|v| v.layer + 1).max().unwrap_or(0);
    let mut layers: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (i, v) in vertices.iter().enumerate() {
        if let Some(l) = layers.get_mut(v.layer) {
            l.push(i);
        }
    }
    for layer in &layers {
        settle(vertices, layer, |_| None);
    }
    for round in 0..6 {
        let down = round % 2 == 0;
        let mut order: Vec<usize> = (0..count).collect();
        if !down {
            order.reverse();
        }
        for l in order {
            let Some(layer) = layers.get_mut(l) else { continue };
            let wish = |v: &Vertex| {
                let near = if down { &v.up } else { &v.down };
                let xs: Vec<f64> = near.iter().filter_map(|&n| vertices.get(n)).map(|n| n.x).collect();
                (!xs.is_empty()).then(|| xs.iter().sum::<f64>() / xs.len() as f64)
            };
            let wishes: HashMap<usize, f64> =
                layer.iter().map(|&i| (i, vertices.get(i).map_or(0.0, |v| wish(v).unwrap_or(v.x)))).collect();
            let get = |i: &usize| wishes.get(i).copied().unwrap_or(0.0);
            layer.sort_by(|a, b| get(a).total_cmp(&get(b)));
            settle(vertices, layer, |i| wishes.get(&i).copied());
        }
    }
    count
}

/// Places a layer's vertices in order: as near to where they wish to be as their widths allow.
fn settle(vertices: &mut [Vertex], layer: &[usize], wish: impl Fn(usize) -> Option<f64>) {
    let mut edge = f64::NEG_INFINITY;
    let (mut shift, mut n) = (0.0, 0.0);
    for &i in layer {
        let Some(v) = vertices.get_mut(i) else { continue };
        let want = wish(i).unwrap_or(v.x);
        v.x = want.max(edge + v.width / 2.0);
        edge = v.x + v.width / 2.0 + GAP;
        shift += want - v.x;
        n += 1.0;
    }
    let shift = if n > 0.0 { shift / n } else { 0.0 };
    for &i in layer {
        if let Some(v) = vertices.get_mut(i) {
            v.x += shift;
        }
    }
}
