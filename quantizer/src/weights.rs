//! Modes that change constants only: dynamic range, weight-only, float16.

use crate::params::{Grouping, Rounding, Weights, floats};
use crate::rules::{Kind, Rule, rule};
use crate::tune::Tuning;
use crate::{Form, QuantReport, Scheme, Task, WeightRange};
use bytes::Bytes;
use litegpu_graph::{DType, Graph, Model, Node, Op, Tensor, TensorId};
use std::collections::HashMap;

/// What the dynamic range form of an operator quantizes.
struct Hybrid {
    /// Operands that are weights.
    operands: &'static [usize],
    grouping: Grouping,
    /// The version whose kernels compute on integer weights; `None` where none does.
    version: Option<i32>,
    /// Whether weights may have 4 bits.
    four: bool,
    /// Whether all weights are quantized or none.
    together: bool,
}

fn hybrid(op: &Op) -> Option<Hybrid> {
    const LSTM: &[usize] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16];
    let (operands, grouping, version, four, together): (&'static [usize], _, _, _, _) = match op {
        Op::Conv2d(_) => (&[1], Grouping::Axis(0), Some(5), true, false),
        Op::DepthwiseConv2d(_) => (&[1], Grouping::Axis(3), Some(6), false, false),
        Op::TransposeConv(_) => (&[1], Grouping::Axis(0), Some(5), false, false),
        Op::FullyConnected(_) => (&[1], Grouping::Axis(0), Some(12), true, false),
        Op::BatchMatmul(_) => (&[1], Grouping::Tensor, Some(4), false, false),
        Op::EmbeddingLookup => (&[1], Grouping::Tensor, Some(3), true, false),
        Op::Gather(_) => (&[0], Grouping::Tensor, None, false, false),
        Op::Lstm(_) | Op::UnidirectionalSequenceLstm(_) => (LSTM, Grouping::Tensor, Some(3), false, true),
        Op::UnidirectionalSequenceRnn(_) | Op::Svdf(_) => (&[1, 2], Grouping::Tensor, Some(3), false, true),
        _ => return None,
    };
    Some(Hybrid { operands, grouping, version, four, together })
}

/// Weights that kernels quantize rows against with a zero point.
fn asymmetric(op: &mut Op) {
    match op {
        Op::FullyConnected(o) => o.asymmetric_quantize_inputs = true,
        Op::BatchMatmul(o) => o.asymmetric_quantize_inputs = true,
        Op::Lstm(o) => o.asymmetric_quantize_inputs = true,
        Op::UnidirectionalSequenceLstm(o) => o.asymmetric_quantize_inputs = true,
        Op::UnidirectionalSequenceRnn(o) => o.asymmetric_quantize_inputs = true,
        Op::Svdf(o) => o.asymmetric_quantize_inputs = true,
        _ => {}
    }
}

/// Carries out the tasks that need no ranges. Returns how many nodes each subgraph got before its first.
pub(crate) fn run(
    m: &mut Model,
    tasks: &mut [Vec<Task>],
    min_elements: usize,
    tuning: &Tuning,
    all_half: bool,
    report: &mut QuantReport,
) -> Vec<usize> {
    let mut clipped = 0;
    let mut inserted = Vec::with_capacity(tasks.len());
    for (s, (g, tasks)) in m.subgraphs.iter_mut().zip(tasks).enumerate() {
        let mut rewrite = Rewrite::default();
        for (n, task) in tasks.iter_mut().enumerate() {
            match task.scheme {
                Scheme::Dynamic { bits, weight_only } => {
                    let wish = Wish { bits, weight_only, min_elements, range: task.weights };
                    task.form = rewrite.integers(g, n, wish, &|slot| tuning.weights(s, n, slot));
                    if let (Form::Weights, Some(add)) = (&task.form, tuning.bias(s, n)) {
                        correct(g, n, add);
                    }
                }
                Scheme::Float16 => {
                    task.form = rewrite.halves(g, n, &mut clipped);
                }
                Scheme::Float | Scheme::Int8 | Scheme::Int16x8 => {}
            }
        }
        inserted.push(rewrite.widening.len());
        rewrite.insert_widening(g);
    }
    if clipped > 0 {
        report.notes.push(format!("{clipped} constants beyond float16's range were clipped to 65504"));
    }
    if all_half {
        // Tells delegates that computing in float16 is what the model's maker wants.
        const KEY: &str = "reduced_precision_support";
        m.metadata.retain(|(k, _)| k != KEY);
        m.metadata.push((KEY.into(), Bytes::from_static(b"fp16accfp32")));
    }
    inserted
}

/// What weights are to become.
#[derive(Clone, Copy)]
struct Wish {
    bits: u32,
    weight_only: bool,
    min_elements: usize,
    range: WeightRange,
}

/// Constants made on the way, and the nodes that widen them.
#[derive(Default)]
struct Rewrite {
    small: HashMap<(TensorId, usize, DType, WeightRange), TensorId>,
    wide: HashMap<TensorId, TensorId>,
    widening: Vec<Node>,
}

impl Rewrite {
    fn integers<'a>(
        &mut self,
        g: &mut Graph,
        n: usize,
        wish: Wish,
        tuned: &dyn Fn(usize) -> Option<&'a Weights>,
    ) -> Form {
        let Some(node) = g.nodes.get(n) else { return Form::Untouched };
        let float = |t: &TensorId| g.tensors.get(*t).is_some_and(|t| t.dtype == DType::F32);
        if !node.inputs.iter().flatten().chain(&node.outputs).any(float) {
            return Form::Untouched;
        }
        let Some(h) = hybrid(&node.op) else { return Form::Float("has no weights".into()) };
        let candidates: Vec<(usize, TensorId)> = h
            .operands
            .iter()
            .filter_map(|&i| Some((i, node.input(i)?)))
            .filter(|(_, t)| {
                let t = g.tensors.get(*t);
                t.is_some_and(|t| t.dtype == DType::F32 && t.is_constant() && !t.is_variable && t.quant.is_none())
            })
            .collect();
        if candidates.is_empty() {
            return Form::Float("its weights are not constant".into());
        }
        let min = wish.min_elements;
        let small = |t: TensorId| g.tensors.get(t).is_some_and(|t| t.elements() < min);
        let few = candidates.iter().any(|(_, t)| small(*t));
        if candidates.iter().all(|(_, t)| small(*t)) || h.together && few {
            return Form::Float(format!("weights with fewer than {min} elements"));
        }
        let dtype = if wish.bits == 4 && h.four { DType::I4 } else { DType::I8 };
        let widen = wish.weight_only || h.version.is_none();
        for (i, t) in candidates {
            let axis = if let Grouping::Axis(a) = h.grouping { a } else { usize::MAX };
            let key = (t, axis, dtype, wish.range);
            let q = match tuned(i) {
                Some(w) => store(g, t, w, dtype),
                None => *self.small.entry(key).or_insert_with(|| quantize(g, t, h.grouping, dtype, wish.range)),
            };
            let new = if widen { self.widened(g, q, t) } else { q };
            if let Some(slot) = g.nodes.get_mut(n).and_then(|n| n.inputs.get_mut(i)) {
                *slot = Some(new);
            }
        }
        if let (false, Some(version), Some(node)) = (widen, h.version, g.nodes.get_mut(n)) {
            node.version = node.version.max(version);
            asymmetric(&mut node.op);
        }
        Form::Weights
    }

    fn halves(&mut self, g: &mut Graph, n: usize, clipped: &mut usize) -> Form {
        // A DEQUANTIZE of what is float16 already is what others get here.
        let Some(node) = g.nodes.get(n).filter(|n| n.op != Op::Dequantize) else { return Form::Untouched };
        let operands: Vec<(usize, TensorId)> =
            node.inputs.iter().enumerate().filter_map(|(i, t)| Some((i, (*t)?))).collect();
        let mut form = Form::Untouched;
        for (i, t) in operands {
            let Some((from, data)) = g.tensors.get(t).and_then(|t| Some((t, t.data.as_ref()?))) else { continue };
            let sparse = from.sparsity.is_some();
            if from.dtype != DType::F32 || from.is_variable || from.quant.is_some() || sparse {
                continue;
            }
            let key = (t, usize::MAX, DType::F16, WeightRange::MinMax);
            let half = if let Some(&half) = self.small.get(&key) {
                half
            } else {
                let values = floats(data);
                *clipped += values.iter().filter(|v| v.abs() > 65504.0).count();
                let halves: Bytes =
                    values.iter().flat_map(|v| half::f16::from_f32(v.clamp(-65504.0, 65504.0)).to_le_bytes()).collect();
                let new = Tensor { dtype: DType::F16, data: Some(halves), ..from.clone() };
                g.tensors.push(new);
                self.small.insert(key, g.tensors.len() - 1);
                g.tensors.len() - 1
            };
            let wide = self.widened(g, half, t);
            if let Some(slot) = g.nodes.get_mut(n).and_then(|n| n.inputs.get_mut(i)) {
                *slot = Some(wide);
            }
            form = Form::Half;
        }
        let float = |t: &TensorId| g.tensors.get(*t).is_some_and(|t| t.dtype == DType::F32);
        if form == Form::Untouched
            && g.nodes.get(n).is_some_and(|n| n.inputs.iter().flatten().chain(&n.outputs).any(float))
        {
            form = Form::Float("has no constants".into());
        }
        form
    }

    /// The float32 copy that a DEQUANTIZE makes of constant `q`.
    fn widened(&mut self, g: &mut Graph, q: TensorId, original: TensorId) -> TensorId {
        if let Some(&t) = self.wide.get(&q) {
            return t;
        }
        let Some(t) = g.tensors.get(original) else { return q };
        let wide = Tensor { quant: None, data: None, ..t.clone() };
        let id = g.tensors.len();
        g.tensors.push(Tensor { name: format!("{}_float", wide.name), ..wide });
        let four = g.tensors.get(q).is_some_and(|t| t.dtype == DType::I4);
        let version = if four { 6 } else { 3 };
        self.widening.push(Node { version, ..Node::new(Op::Dequantize, &[q], &[id]) });
        self.wide.insert(q, id);
        id
    }

    fn insert_widening(self, g: &mut Graph) {
        g.nodes.splice(0..0, self.widening);
    }
}

/// Whether the operator can have weights of 4 bits.
pub(crate) fn has_four(op: &Op) -> bool {
    hybrid(op).is_some_and(|h| h.four)
}

/// How dynamic range groups an operator's weights under scales.
pub(crate) fn grouping(op: &Op) -> Option<Grouping> {
    hybrid(op).map(|h| h.grouping)
}

/// Adds to the bias of a node.
fn correct(g: &mut Graph, n: usize, add: &[f32]) {
    let corrected = || -> Option<(usize, Tensor)> {
        let node = g.nodes.get(n)?;
        let Some(Rule { kind: Kind::Weighted { bias, .. }, .. }) = rule(&node.op) else { return None };
        let b = g.operand(node, bias).filter(|b| b.dtype == DType::F32)?;
        let values = floats(b.data.as_ref()?).into_iter().zip(add);
        let data: Bytes = values.flat_map(|(b, d)| (b + d).to_le_bytes()).collect();
        (data.len() == b.data.as_ref()?.len()).then(|| (bias, Tensor { data: Some(data), ..b.clone() }))
    };
    if let Some((slot, t)) = corrected() {
        g.tensors.push(t);
        let id = g.tensors.len() - 1;
        if let Some(slot) = g.nodes.get_mut(n).and_then(|n| n.inputs.get_mut(slot)) {
            *slot = Some(id);
        }
    }
}

fn quantize(g: &mut Graph, t: TensorId, grouping: Grouping, dtype: DType, range: WeightRange) -> TensorId {
    let Some((from, data)) = g.tensors.get(t).and_then(|t| Some((t, t.data.as_ref()?))) else { return t };
    let bits = if dtype == DType::I4 { 4 } else { 8 };
    let values = floats(data);
    let mut w = Weights::symmetric(&values, &from.shape, grouping, bits, Rounding::Double);
    if range == WeightRange::Mse {
        w.fit_squares(&values, bits);
    }
    store(g, t, &w, dtype)
}

/// A new constant: the integer form of tensor `t`.
fn store(g: &mut Graph, t: TensorId, w: &Weights, dtype: DType) -> TensorId {
    let Some(from) = g.tensors.get(t) else { return t };
    let new = Tensor { dtype, data: Some(w.bytes(dtype)), quant: Some(w.quant()), ..from.clone() };
    g.tensors.push(new);
    g.tensors.len() - 1
}
