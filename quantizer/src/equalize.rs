//! Cross-layer equalization: between two layers each channel is divided by a factor in the first and multiplied by it in
//! the second, so that the channels of the tensor between them become alike and share one scale at little cost. The
//! model computes what it did before, but for float rounding.

use crate::calibrate::{Channels, Ranges};
use crate::params::floats;
use bytes::Bytes;
use litegpu_graph::schema::ActivationFunctionType as Activation;
use litegpu_graph::{DType, Graph, Model, NodeId, Op, Tensor, TensorId};

/// Factors beyond this, either way, are cut: a channel that is nearly silent must not become all noise.
const LARGEST: f64 = 256.0;

/// Two layers with a tensor between them that nothing else reads.
struct Pair {
    first: NodeId,
    second: NodeId,
    between: TensorId,
    /// Where the first clips its results.
    clip: Option<f64>,
}

/// Equalizes every pair of layers (CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED) with no activation function or a RELU
/// between them. With ranges whose calibration kept channels, factors follow what the channels held, and pairs with a
/// RELU6 between them are equalized too, but for channels that calibration saw clipped. Without, factors follow the
/// weights.
///
/// Returns the model, which has to be calibrated anew, and the number of pairs.
pub fn equalize(model: &Model, ranges: Option<&Ranges>) -> (Model, usize) {
    let mut m = model.clone();
    let mut done = 0;
    for (s, g) in m.subgraphs.iter_mut().enumerate() {
        for pair in pairs(g) {
            let seen = ranges.and_then(|r| r.channels(s, pair.between));
            if let Some(factors) = factors(g, &pair, seen) {
                done += usize::from(apply(g, &pair, &factors).is_some());
            }
        }
    }
    (m, done)
}

/// What is fused to an operator with a weighted sum.
pub(crate) fn activation(op: &Op) -> Option<Activation> {
    match op {
        Op::Conv2d(o) => Some(o.fused_activation_function),
        Op::DepthwiseConv2d(o) => Some(o.fused_activation_function),
        Op::FullyConnected(o) => Some(o.fused_activation_function),
        _ => None,
    }
}

fn pairs(g: &Graph) -> Vec<Pair> {
    let consumers = g.consumers();
    let mut out = Vec::new();
    for (first, node) in g.nodes.iter().enumerate() {
        let clip = match activation(&node.op) {
            Some(Activation::NONE | Activation::RELU) => None,
            Some(Activation::RELU6) => Some(6.0),
            _ => continue,
        };
        let Some(&between) = node.outputs.first() else { continue };
        let Some([second]) = consumers.get(between).map(Vec::as_slice) else { continue };
        let Some(next) = g.nodes.get(*second).filter(|n| activation(&n.op).is_some()) else { continue };
        if next.input(0) == Some(between) && !g.outputs.contains(&between) {
            out.push(Pair { first, second: *second, between, clip });
        }
    }
    out
}

fn constant(g: &Graph, n: NodeId, i: usize) -> Option<(TensorId, &Tensor, Vec<f32>)> {
    let id = g.nodes.get(n)?.input(i)?;
    let t = g.tensors.get(id).filter(|t| t.dtype == DType::F32 && !t.is_variable)?;
    Some((id, t, floats(t.data.as_ref()?)))
}

/// Of weights with this index, the channel that they make (`made`) or read, out of `channels`.
fn channel(op: &Op, shape: &[usize], made: bool, channels: usize, i: usize) -> usize {
    let last = shape.last().copied().unwrap_or(1).max(1);
    match (op, made) {
        (Op::DepthwiseConv2d(_), true) => i % last,
        (Op::DepthwiseConv2d(_), false) => i % last / (last / channels.max(1)).max(1),
        (_, true) => i / shape.iter().skip(1).product::<usize>().max(1),
        (_, false) => i % last,
    }
}

/// The largest magnitude of the weights of each channel. `None` where weights and channels do not correspond.
fn magnitudes(g: &Graph, n: NodeId, made: bool, channels: usize) -> Option<Vec<f64>> {
    let (_, t, values) = constant(g, n, 1)?;
    let op = &g.nodes.get(n)?.op;
    let last = *t.shape.last()?;
    let fits = match (op, made) {
        (Op::DepthwiseConv2d(_), true) => last == channels,
        (Op::DepthwiseConv2d(_), false) => channels > 0 && last.is_multiple_of(channels),
        (_, true) => *t.shape.first()? == channels,
        // Grouped convolutions and flattened operands read channels elsewhere.
        (_, false) => last == channels,
    };
    if !fits || channels == 0 {
        return None;
    }
    let mut out = vec![0f64; channels];
    for (i, v) in values.iter().enumerate() {
        let m = out.get_mut(channel(op, &t.shape, made, channels, i))?;
        *m = m.max(f64::from(v.abs()));
    }
    Some(out)
}

fn factors(g: &Graph, pair: &Pair, seen: Option<&Channels>) -> Option<Vec<f64>> {
    let channels = *g.tensors.get(pair.between)?.shape.last()?;
    let made = magnitudes(g, pair.first, true, channels)?;
    let read = magnitudes(g, pair.second, false, channels)?;
    let seen = seen.filter(|c| c.magnitude.len() == channels);
    if pair.clip.is_some() && seen.is_none() {
        return None;
    }
    let depthwise = matches!(g.nodes.get(pair.second)?.op, Op::DepthwiseConv2d(_));
    let mut out: Vec<f64> = (0..channels)
        .map(|c| {
            let held = match seen {
                Some(s) => f64::from(s.magnitude[c]),
                None => made[c],
            };
            match (held > 0.0 && read[c] > 0.0, seen.is_some() && depthwise) {
                (false, _) => f64::NAN,
                // A depthwise layer has a scale for each channel's weights: only what the tensor holds matters.
                (true, true) => held,
                (true, false) => (held / read[c]).sqrt(),
            }
        })
        .collect();
    // One factor for all changes nothing: the geometric mean is set to 1.
    let known = out.iter().filter(|f| !f.is_nan());
    let mean = (known.clone().map(|f| f.ln()).sum::<f64>() / known.count().max(1) as f64).exp();
    let largest = seen.map_or(0.0, |s| s.magnitude.iter().copied().fold(0.0, f32::max));
    for (c, f) in out.iter_mut().enumerate() {
        *f = if f.is_nan() { 1.0 } else { (*f / mean).clamp(1.0 / LARGEST, LARGEST) };
        if let (Some(clip), Some(s)) = (pair.clip, seen) {
            // Multiplied or divided, a channel must meet the clip neither more nor less than before.
            let held = f64::from(s.magnitude[c]);
            let ceiling = f64::from(largest).min(clip);
            *f = if held >= clip * 0.999 || held == 0.0 { 1.0 } else { f.max(held / ceiling) };
        }
    }
    Some(out)
}

/// Divides the first layer's weights and bias, multiplies the second's weights.
fn apply(g: &mut Graph, pair: &Pair, factors: &[f64]) -> Option<()> {
    let scaled = |n: NodeId, i: usize, made: bool| -> Option<Tensor> {
        let (_, t, values) = constant(g, n, i)?;
        let op = &g.nodes.get(n)?.op;
        let of = |k: usize| {
            let c = if i == 2 { k } else { channel(op, &t.shape, made, factors.len(), k) };
            let f = *factors.get(c)?;
            Some(if made { 1.0 / f } else { f })
        };
        let data: Option<Vec<[u8; 4]>> =
            values.iter().enumerate().map(|(k, v)| Some(((f64::from(*v) * of(k)?) as f32).to_le_bytes())).collect();
        Some(Tensor { data: Some(Bytes::from(data?.concat())), ..t.clone() })
    };
    let has_bias = g.nodes.get(pair.first)?.input(2).is_some();
    let bias = if has_bias { Some(scaled(pair.first, 2, true)?) } else { None };
    let (first, second) = (scaled(pair.first, 1, true)?, scaled(pair.second, 1, false)?);
    // New constants: others may read the old ones.
    for (n, i, t) in [(pair.first, 1, Some(first)), (pair.first, 2, bias), (pair.second, 1, Some(second))] {
        let Some(t) = t else { continue };
        g.tensors.push(t);
        let id = g.tensors.len() - 1;
        *g.nodes.get_mut(n)?.inputs.get_mut(i)? = Some(id);
    }
    Some(())
}
