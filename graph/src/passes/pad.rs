//! PAD before a convolution. The format's convolutions pad by rule (SAME, VALID), not by numbers, so the graph cannot
//! say "convolution with this padding"; kernels can. The finder names the pairs and the numbers, for the delegate.

use crate::dtype::DType;
use crate::model::*;
use crate::op::Op;
use crate::schema::Padding;

/// A PAD whose only reader is a convolution without padding of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PadConv {
    /// The PAD or PADV2 node.
    pub pad: NodeId,
    /// The CONV_2D or DEPTHWISE_CONV_2D node, which then reads the PAD's operand.
    pub conv: NodeId,
    /// Rows and columns of zeros (zero points) before the image.
    pub before: [usize; 2],
    /// Rows and columns behind it.
    pub after: [usize; 2],
}

/// Every such pair. Shapes play no role: the padding is constant.
pub fn opportunities(g: &Graph) -> Vec<PadConv> {
    let consumers = g.consumers();
    let mut out = Vec::new();
    for (i, n) in g.nodes.iter().enumerate() {
        let [padded] = n.outputs.as_slice() else { continue };
        let Some([conv]) = consumers.get(*padded).map(Vec::as_slice) else { continue };
        let Some(reader) = g.nodes.get(*conv) else { continue };
        let valid = match &reader.op {
            Op::Conv2d(o) => o.padding == Padding::VALID,
            Op::DepthwiseConv2d(o) => o.padding == Padding::VALID,
            _ => false,
        };
        let only_image =
            reader.input(0) == Some(*padded) && reader.inputs.iter().filter(|t| **t == Some(*padded)).count() == 1;
        if !valid || !only_image || g.outputs.contains(padded) || !pads_with_zero(g, n) {
            continue;
        }
        let Some([[0, 0], rows, columns, [0, 0]]) = amounts(g, n) else { continue };
        out.push(PadConv { pad: i, conv: *conv, before: [rows[0], columns[0]], after: [rows[1], columns[1]] });
    }
    out
}

/// (before, after) of each of four dimensions.
fn amounts(g: &Graph, n: &Node) -> Option<[[usize; 2]; 4]> {
    let t = g.operand(n, 1)?;
    let data = t.data.as_ref()?;
    let flat: Vec<usize> = match t.dtype {
        DType::I32 => data.as_chunks::<4>().0.iter().map(|b| usize::try_from(i32::from_le_bytes(*b)).ok()).collect(),
        DType::I64 => data.as_chunks::<8>().0.iter().map(|b| usize::try_from(i64::from_le_bytes(*b)).ok()).collect(),
        _ => None,
    }?;
    flat.as_chunks::<2>().0.try_into().ok()
}

/// The padding value is zero as a real number, and the padded tensor is quantized as its source is.
fn pads_with_zero(g: &Graph, n: &Node) -> bool {
    let (Some(from), Some(to)) = (g.operand(n, 0), n.outputs.first().and_then(|&t| g.tensors.get(t))) else {
        return false;
    };
    let same = from.dtype == to.dtype && from.per_tensor() == to.per_tensor();
    let zero = from.per_tensor().map_or(0, |(_, z)| z);
    match &n.op {
        Op::Pad => same,
        Op::Padv2 => {
            let value = g.operand(n, 2).and_then(|t| Some((t.dtype, t.data.as_ref()?)));
            same && match value {
                Some((DType::F32, d)) => d.as_ref().try_into().is_ok_and(|b| f32::from_le_bytes(b) == 0.0),
                Some((DType::I8, d)) => d.first().map(|&b| i32::from(b as i8)) == Some(zero),
                Some((DType::U8, d)) => d.first().map(|&b| i32::from(b)) == Some(zero),
                Some((DType::I16, d)) => zero == 0 && d.iter().all(|&b| b == 0),
                _ => false,
            }
        }
        _ => false,
    }
}
