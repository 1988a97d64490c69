//! A readable form of models: for `inspect`, and for the fixtures that show what a pass does.
//!
//! One line per constant and per operator, in execution order; attributes as the format names them. Small constants are
//! shown, large ones by size and a checksum.

use crate::dtype::DType;
use crate::model::*;
use crate::op::Op;
use std::fmt::Write;

/// Elements of a constant that are shown.
const SHOWN: usize = 8;

/// The whole model.
pub fn model(m: &Model) -> String {
    let mut s = format!("model version {} {:?}\n", m.version, m.description);
    for (name, data) in &m.metadata {
        let _ = writeln!(s, "metadata {name:?} {} bytes", data.len());
    }
    if !m.appended.is_empty() {
        let _ = writeln!(s, "appended {} bytes", m.appended.len());
    }
    for sig in &m.signatures {
        let list =
            |l: &[(String, TensorId)]| l.iter().map(|(n, t)| format!("{n:?} %{t}")).collect::<Vec<_>>().join(", ");
        let (inputs, outputs) = (list(&sig.inputs), list(&sig.outputs));
        let _ = writeln!(s, "signature {:?} graph {} ({inputs}) -> ({outputs})", sig.key, sig.subgraph);
    }
    for (i, g) in m.subgraphs.iter().enumerate() {
        let _ = write!(s, "graph {i} ");
        s.push_str(&graph(g));
    }
    s
}

/// One subgraph.
pub fn graph(g: &Graph) -> String {
    let mut s = format!("{:?} {{\n", g.name);
    let mut used = vec![false; g.tensors.len()];
    let mark = |used: &mut Vec<bool>, t: TensorId| {
        if let Some(u) = used.get_mut(t) {
            *u = true;
        }
    };
    for n in &g.nodes {
        n.inputs.iter().chain(&n.intermediates).flatten().chain(&n.outputs).for_each(|&t| mark(&mut used, t));
    }
    g.outputs.iter().for_each(|&t| mark(&mut used, t));
    for q in g.tensors.iter().filter_map(|t| t.quant.as_ref()?.blockwise) {
        std::iter::once(q.scales).chain(q.zero_points).for_each(|t| mark(&mut used, t));
    }
    for &t in &g.inputs {
        let _ = writeln!(s, "  in    {}", declare(g, t));
        mark(&mut used, t);
    }
    for (i, t) in g.tensors.iter().enumerate().filter(|(i, _)| used.get(*i) == Some(&true)) {
        if t.is_variable {
            let _ = writeln!(s, "  var   {}", declare(g, i));
        } else if let Some(data) = &t.data {
            let _ = writeln!(s, "  const {} = {}", declare(g, i), constant(t, data));
        }
    }
    let names = |l: &[Option<TensorId>]| {
        l.iter().map(|t| t.map_or_else(|| "-".to_string(), |t| format!("%{t}"))).collect::<Vec<_>>().join(", ")
    };
    for (i, n) in g.nodes.iter().enumerate() {
        let outputs = n.outputs.iter().map(|&t| declare(g, t)).collect::<Vec<_>>().join(", ");
        let _ = write!(s, "  #{i:<4} {outputs} = {} v{} ({})", n.op.name(), n.version, names(&n.inputs));
        let attributes = attributes(&n.op);
        if !attributes.is_empty() {
            let _ = write!(s, " {{ {attributes} }}");
        }
        if !n.intermediates.is_empty() {
            let _ = write!(s, " via ({})", names(&n.intermediates));
        }
        s.push('\n');
    }
    let outputs = g.outputs.iter().map(|&t| Some(t)).collect::<Vec<_>>();
    let _ = writeln!(s, "  out   {}\n}}", names(&outputs));
    s
}

/// The operator's attributes, `name: value` with commas; empty when it has none.
pub fn attributes(op: &Op) -> String {
    if let Op::Custom(c) = op {
        return if c.options.is_empty() {
            String::new()
        } else {
            format!("{} bytes {}", c.options.len(), sum(&c.options))
        };
    }
    let all = format!("{op:?}");
    let inner = all.split_once('{').and_then(|(_, r)| r.rsplit_once('}'));
    inner.map(|(i, _)| i.trim().to_string()).unwrap_or_default()
}

/// `%3 "name": int8[1x?x4] scale 0.5 zero -3`.
fn declare(g: &Graph, id: TensorId) -> String {
    let Some(t) = g.tensors.get(id) else { return format!("%{id} (missing)") };
    let mut s = format!("%{id} {:?}: {}[", t.name, t.dtype);
    for (i, d) in t.shape.iter().enumerate() {
        let open = t.signature.as_ref().and_then(|s| s.get(i)) == Some(&-1);
        let sep = if i == 0 { "" } else { "x" };
        let _ = if open { write!(s, "{sep}?") } else { write!(s, "{sep}{d}") };
    }
    s.push(']');
    if let Some(q) = &t.quant {
        match (q.per_tensor(), &q.blockwise, &q.custom) {
            (Some((scale, zero)), ..) => {
                let _ = write!(s, " scale {scale} zero {zero}");
            }
            (_, Some(b), _) => {
                let _ = write!(s, " scales %{} per {} of the last axis", b.scales, b.block_size);
            }
            (_, _, Some(c)) => {
                let _ = write!(s, " custom quantization of {} bytes", c.len());
            }
            _ if q.scale.is_empty() => {}
            _ => {
                let _ = write!(s, " {} scales on axis {}", q.scale.len(), q.axis);
            }
        }
    }
    if t.sparsity.is_some() {
        s.push_str(" sparse");
    }
    s
}

fn constant(t: &Tensor, data: &[u8]) -> String {
    let show = |v: Vec<String>| format!("[{}]", v.join(", "));
    if t.elements() <= SHOWN || t.sparsity.is_some() && data.len() <= 4 * SHOWN {
        match t.dtype {
            DType::F32 => {
                return show(data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).to_string()).collect());
            }
            DType::F16 => {
                let halves = data.as_chunks::<2>().0.iter();
                return show(halves.map(|b| half::f16::from_le_bytes(*b).to_string()).collect());
            }
            DType::I32 => {
                return show(data.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b).to_string()).collect());
            }
            DType::I64 => {
                return show(data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b).to_string()).collect());
            }
            DType::I16 => {
                return show(data.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b).to_string()).collect());
            }
            DType::I8 => return show(data.iter().map(|&b| (b as i8).to_string()).collect()),
            DType::U8 | DType::Bool => return show(data.iter().map(u8::to_string).collect()),
            _ => {}
        }
    }
    format!("{} bytes {}", data.len(), sum(data))
}

/// FNV-1a: tells two constants apart in a diff.
fn sum(data: &[u8]) -> String {
    let h = data.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("#{:08x}", (h >> 32) ^ (h & 0xffff_ffff))
}
