//! GATHER, GATHER_ND, EMBEDDING_LOOKUP.

use super::{WG, acc};
use crate::lower::{Lower, Lowered, Operand, Params, line, no};
use crate::program::row_quads;
use litegpu_graph::ops::axis;
use litegpu_graph::{DType, Op};
use litegpu_shaders::KernelKey;

/// The kernel's view: which dimensions are gathered, and what lies before and behind them.
struct Gather {
    /// (size, stride in memory) of each gathered dimension.
    dims: Vec<(usize, usize)>,
    /// Elements behind.
    inner: usize,
    /// Tuples of indices in a batch.
    tuples: usize,
    /// Outer elements in a batch, and their distance in memory.
    outer: usize,
    outer_stride: usize,
}

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    let (values, indices) = match cx.node.op {
        Op::EmbeddingLookup => (1, 0),
        _ => (0, 1),
    };
    let (x, i) = (cx.operand(values)?, cx.operand(indices)?);
    if i.dtype != DType::I32 {
        return no(format!("{} indices", i.dtype));
    }
    let s: Vec<usize> = super::layout::strides(&x.shape).into_iter().map(|s| s as usize).collect();
    let rank = x.shape.len();
    let size = |from: usize, to: usize| x.shape.get(from..to).unwrap_or_default().iter().product::<usize>();
    let at = |d: usize| (x.shape.get(d).copied().unwrap_or(1), s.get(d).copied().unwrap_or(1));
    let how = match &cx.node.op {
        Op::EmbeddingLookup => {
            if x.elem.is_float() != cx.scene.tensor(cx.node.outputs.first().copied().unwrap_or(0))?.dtype.is_float() {
                return no("a quantized table");
            }
            Gather {
                dims: vec![at(0)],
                inner: size(1, rank),
                tuples: i.shape.iter().product(),
                outer: 1,
                outer_stride: 0,
            }
        }
        Op::Gather(o) => {
            let a = axis(o.axis as i64, rank)?;
            let batch = usize::try_from(o.batch_dims).unwrap_or(usize::MAX);
            if batch > a || batch > i.shape.len() {
                return no("batch dimensions that do not fit");
            }
            let tuples = i.shape.get(batch..).unwrap_or_default().iter().product();
            Gather {
                dims: vec![at(a)],
                inner: size(a + 1, rank),
                tuples,
                outer: size(batch, a),
                outer_stride: if a > 0 { at(a - 1).1 } else { 0 },
            }
        }
        Op::GatherNd => {
            let depth = i.inner();
            if depth > rank || depth > 6 || i.shape.is_empty() {
                return no("index tuples that do not fit");
            }
            Gather {
                dims: (0..depth).map(at).collect(),
                inner: size(depth, rank),
                tuples: i.shape.get(..i.shape.len() - 1).unwrap_or_default().iter().product(),
                outer: 1,
                outer_stride: 0,
            }
        }
        _ => return no("no GPU kernel"),
    };
    let y = cx.result(0)?;
    if x.elem.is_float() != y.elem.is_float() || (!x.elem.is_float() && x.elem != y.elem) {
        return no(format!("{} to {}", x.dtype, y.dtype));
    }
    emit(cx, &how, &x, &i, &y)
}

fn emit(cx: &mut Lower<'_, '_>, g: &Gather, x: &Operand<'_>, i: &Operand<'_>, y: &Operand<'_>) -> Lowered {
    // Where the innermost dimension is not gathered, an output row is a piece of an operand row.
    let kept = g.inner % x.inner() == 0 && g.dims.iter().all(|(_, s)| s % 4 == 0) && y.inner() == x.inner();
    let vec = kept && (g.inner > 1 || x.inner() > 1 || x.shape.len() > g.dims.len());
    let key =
        KernelKey::new("gather", &[("in0", x.elem), ("acc", acc(x.elem)), ("out", y.elem)]).set("VEC", vec as i32);
    // Gathered down to single elements, the operand has no row of its own to step through.
    let (width, pitch) = if g.inner == 1 { (1, 1) } else { (x.inner(), row_quads(&x.shape) * 4) };
    let mut params = Params::new()
        .u(y.quads())
        .u(y.row_quads())
        .u(y.inner())
        .u(g.dims.len())
        .u(g.inner)
        .u(g.tuples)
        .u(g.outer)
        .u(width)
        .u(pitch)
        .u(g.outer_stride)
        .u(i.inner())
        .u(row_quads(&i.shape) * 4);
    for k in 0..6 {
        let (n, s) = g.dims.get(k).copied().unwrap_or((1, 0));
        params = params.u(n).u(s).u(0).u(0);
    }
    cx.dispatch(key, &[x.slot, i.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}
