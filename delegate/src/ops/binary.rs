//! Element-wise operators with two operands, broadcast.

use super::{RARE, WG, acc, activation, is_quantized};
use crate::lower::{Lower, Lowered, Operand, Params, Unsupported, line, no};
use crate::program::{row_quads, tail};
use litegpu_graph::fixed::{Multiplier, quantized_range};
use litegpu_graph::ops::Fact;
use litegpu_graph::schema::ActivationFunctionType;
use litegpu_graph::{DType, Op, Shape};
use litegpu_shaders::{Elem, KernelKey, Lit, Step};

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    if let Op::AddN = cx.node.op {
        return add_n(cx);
    }
    if super::normalize::spelled_out(cx)? {
        return Ok(());
    }
    let (a, b) = (cx.operand(0)?, cx.operand(1)?);
    let fused = match &cx.node.op {
        Op::Add(o) => o.fused_activation_function,
        Op::Sub(o) => o.fused_activation_function,
        Op::Mul(o) => o.fused_activation_function,
        Op::Div(o) => o.fused_activation_function,
        _ => ActivationFunctionType::NONE,
    };
    let raw = matches!(cx.node.op, Op::Maximum | Op::Minimum);
    if is_quantized(&a) && is_quantized(&b) && !raw {
        return quantized(cx, &a, &b, fused);
    }
    if a.elem.is_float() != b.elem.is_float() {
        return no(format!("operands of types {} and {}", a.dtype, b.dtype));
    }
    let float = a.elem.is_float();
    if float && let Some(done) = special(cx, &a, &b)? {
        return Ok(done);
    }
    let divides = matches!(cx.node.op, Op::Div(_) | Op::FloorDiv | Op::FloorMod);
    if !float && divides && cx.constant(1)?.is_none_or(|c| crate::convert::ints(&c).is_none_or(|v| v.contains(&0))) {
        return no("an integer divisor that may be zero");
    }
    let f = match (&cx.node.op, float) {
        (Op::Add(_), true) => "f_add",
        (Op::Sub(_), true) => "f_sub",
        (Op::Mul(_), true) => "f_mul",
        (Op::Div(_), true) => "f_div",
        (Op::Maximum, true) => "f_max",
        (Op::Minimum, true) => "f_min",
        (Op::SquaredDifference, true) => "f_sqdiff",
        (Op::Prelu, true) => "f_prelu",
        (Op::Pow, true) => "f_pow",
        (Op::FloorDiv, true) => "f_floor_div",
        (Op::FloorMod, true) => "f_floor_mod",
        (Op::Atan2, true) => "f_atan2",
        (Op::Equal, true) => "bf_equal",
        (Op::NotEqual, true) => "bf_not_equal",
        (Op::Less, true) => "bf_less",
        (Op::LessEqual, true) => "bf_less_equal",
        (Op::Greater, true) => "bf_greater",
        (Op::GreaterEqual, true) => "bf_greater_equal",
        (Op::Add(_), false) => "i_add",
        (Op::Sub(_), false) => "i_sub",
        (Op::Mul(_), false) => "i_mul",
        (Op::Div(_), false) => "i_div",
        (Op::FloorDiv, false) => "i_floor_div",
        (Op::FloorMod, false) => "i_floor_mod",
        (Op::Maximum, false) => "i_max",
        (Op::Minimum, false) => "i_min",
        (Op::SquaredDifference, false) => "i_sqdiff",
        (Op::LogicalAnd, false) => "i_and",
        (Op::LogicalOr, false) => "i_or",
        (Op::BitwiseXor, false) => "i_xor",
        (Op::Equal, false) => "bi_equal",
        (Op::NotEqual, false) => "bi_not_equal",
        (Op::Less, false) => "bi_less",
        (Op::LessEqual, false) => "bi_less_equal",
        (Op::Greater, false) => "bi_greater",
        (Op::GreaterEqual, false) => "bi_greater_equal",
        _ => return no(format!("{} elements", a.dtype)),
    };
    if !float && a.dtype != DType::I32 && !f.starts_with('b') && !raw && a.dtype != DType::Bool {
        return no(format!("{} elements without quantization", a.dtype));
    }
    let y = cx.result(0)?;
    let mut steps = Vec::new();
    if float {
        steps.extend(activation(fused)?);
    } else {
        match fused {
            ActivationFunctionType::NONE => {}
            ActivationFunctionType::RELU => steps.push(Step::call("i_relu", &[])),
            ActivationFunctionType::RELU6 => steps.push(Step::call("i_clamp", &[Lit::I(0), Lit::I(6)])),
            f => return no(format!("fused activation {f:?} on integers")),
        }
    }
    emit(cx, &a, &b, &y, f, steps)
}

/// POW with a constant exponent that has a name.
fn special(cx: &mut Lower<'_, '_>, a: &Operand<'_>, b: &Operand<'_>) -> Lowered<Option<()>> {
    let (Op::Pow, Some(e)) = (&cx.node.op, cx.floats(1)?) else { return Ok(None) };
    let [e] = e.as_slice() else { return Ok(None) };
    let f = match *e {
        2.0 => "f_square",
        0.5 => "f_sqrt",
        1.0 => "f_id",
        _ => return Ok(None),
    };
    if b.shape.len() > a.shape.len() {
        return Ok(None);
    }
    let y = cx.result(0)?;
    super::unary::emit(cx, a, &y, vec![Step::call(f, &[])]).map(Some)
}

/// How operands are read for each output quad: the stride of each along the output's rows, with neighbouring
/// dimensions joined where all operands allow it; and the bits of those that are spread in the innermost dimension.
pub(super) struct Broadcast {
    pub dims: Vec<[usize; 4]>,
    pub splat: i32,
    pub same: bool,
}

pub(super) fn broadcast(operands: &[&Operand<'_>], y: &Operand<'_>) -> Lowered<Broadcast> {
    let rank = y.shape.len();
    let mut splat = 0;
    let mut strides: Vec<Vec<usize>> = Vec::new();
    for (i, x) in operands.iter().enumerate() {
        if x.shape.len() > rank {
            return no("an operand of higher rank than the result");
        }
        let lead = rank - x.shape.len();
        let at = |d: usize| if d < lead { 1 } else { x.shape.get(d - lead).copied().unwrap_or(1) };
        if rank > 0 && at(rank - 1) == 1 && y.inner() != 1 {
            splat |= 1 << i;
        }
        let mut stride = vec![0; rank];
        let mut next = row_quads(&x.shape);
        for d in (0..rank.saturating_sub(1)).rev() {
            let n = at(d);
            let want = y.shape.get(d).copied().unwrap_or(1);
            if n != want && n != 1 {
                return no("operands that do not broadcast");
            }
            if let Some(s) = stride.get_mut(d) {
                *s = if n == 1 { 0 } else { next };
            }
            next *= n;
        }
        if rank > 0 && at(rank - 1) != y.inner() && at(rank - 1) != 1 {
            return no("operands that do not broadcast");
        }
        strides.push(stride);
    }
    let mut dims: Vec<[usize; 4]> = Vec::new();
    for d in (0..rank.saturating_sub(1)).rev() {
        let n = y.shape.get(d).copied().unwrap_or(1);
        if n == 1 {
            continue;
        }
        let mut dim = [n, 0, 0, 0];
        for (i, s) in strides.iter().enumerate() {
            if let (Some(slot), Some(&s)) = (dim.get_mut(i + 1), s.get(d)) {
                *slot = s;
            }
        }
        match dims.last_mut() {
            Some(last) if (1..4).all(|i| dim[i] == last[i] * last[0]) => last[0] *= n,
            _ => dims.push(dim),
        }
    }
    if dims.len() > 6 {
        return no("more than 6 broadcast dimensions");
    }
    let same = operands.iter().all(|x| x.shape == y.shape);
    Ok(Broadcast { dims, splat, same })
}

impl Broadcast {
    pub(super) fn params(&self, y: &Operand<'_>) -> Params {
        let p = Params::new().u(y.quads()).u(y.row_quads()).u(tail(&y.shape)).u(self.dims.len());
        (0..6).fold(p, |p, i| {
            let d = self.dims.get(i).copied().unwrap_or([1, 0, 0, 0]);
            d.into_iter().fold(p, Params::u)
        })
    }
}

pub(super) fn emit(
    cx: &mut Lower<'_, '_>,
    a: &Operand<'_>,
    b: &Operand<'_>,
    y: &Operand<'_>,
    f: &'static str,
    steps: Vec<Step>,
) -> Lowered {
    let how = broadcast(&[a, b], y)?;
    let start = if f.starts_with('b') { Elem::I32 } else { acc(a.elem) };
    let mut key = KernelKey::new("binary", &[("in0", a.elem), ("in1", b.elem), ("acc", start), ("out", y.elem)])
        .with("OP", f)
        .set("SAME", how.same as i32)
        .set("SPLAT", how.splat);
    key.epilogue = steps;
    let groups = line(y.quads().div_ceil(WG));
    cx.dispatch(key, &[a.slot, b.slot], &[y.slot], &[], how.params(y), groups)
}

/// The sum of any number of operands: pairs.
fn add_n(cx: &mut Lower<'_, '_>) -> Lowered {
    let first = cx.operand(0)?;
    if is_quantized(&first) {
        return no("quantized ADD_N");
    }
    let f = if first.elem.is_float() { "f_add" } else { "i_add" };
    let count = cx.node.inputs.len();
    let y = cx.result(0)?;
    if count == 1 {
        return super::unary::emit(cx, &first, &y, Vec::new());
    }
    let mut sum = first;
    for i in 1..count {
        let x = cx.operand(i)?;
        if x.shape != y.shape || x.elem.is_float() != y.elem.is_float() {
            return no("operands of different shapes");
        }
        let to = if i + 1 == count { y.clone() } else { Operand { slot: cx.temp(&y.shape, y.elem), ..y.clone() } };
        emit(cx, &sum, &x, &to, f, Vec::new())?;
        sum = to;
    }
    Ok(())
}

/// 8-bit operands in the reference's fixed-point arithmetic.
fn quantized(cx: &mut Lower<'_, '_>, a: &Operand<'_>, b: &Operand<'_>, fused: ActivationFunctionType) -> Lowered {
    let op = &cx.node.op;
    let y = cx.result(0)?;
    let ((s0, z0), (s1, z1)) = (a.scale_zero()?, b.scale_zero()?);
    let (s0, s1) = (s0 as f64, s1 as f64);
    let row = |offset: i32, m: Multiplier, left: i32| [offset, m.value, m.shift, left];
    let nothing = Multiplier::default();
    let compare = match op {
        Op::Equal => Some(4),
        Op::NotEqual => Some(5),
        Op::Greater => Some(6),
        Op::GreaterEqual => Some(7),
        Op::Less => Some(8),
        Op::LessEqual => Some(9),
        _ => None,
    };
    let (kind, q0, q1, qo, limits) = if let Some(kind) = compare {
        // Operands are scaled by 2^8 times their scale, the first rounding included.
        let (m0, m1) = (Multiplier::new(s0), Multiplier::new(s1));
        (kind, row(-z0, m0, 8), row(-z1, m1, 8), [0; 4], [0, 1, 1, 0])
    } else {
        let (so, zo) = y.scale_zero()?;
        let (low, high) = quantized_range(fused, y.dtype, so, zo)?;
        let so = so as f64;
        match op {
            Op::Add(_) | Op::Sub(_) => {
                let twice = 2.0 * s0.max(s1);
                let (m0, m1) = (Multiplier::new(s0 / twice), Multiplier::new(s1 / twice));
                let mo = Multiplier::new(twice / ((1 << 20) as f64 * so));
                let sign = if matches!(op, Op::Sub(_)) { -1 } else { 1 };
                (0, row(-z0, m0, 20), row(-z1, m1, 20), row(zo, mo, 0), [low, high, sign, 0])
            }
            Op::Mul(_) => {
                let mo = Multiplier::new(s0 * s1 / so);
                (1, row(-z0, nothing, 0), row(-z1, nothing, 0), row(zo, mo, 0), [low, high, 1, 0])
            }
            Op::SquaredDifference => {
                let twice = 2.0 * s0.max(s1);
                let (m0, m1) = (Multiplier::new(s0 / twice), Multiplier::new(s1 / twice));
                let mo = Multiplier::new(twice * twice / ((1 << 14) as f64 * so));
                (2, row(-z0, m0, 7), row(-z1, m1, 7), row(zo, mo, 0), [low, high, 1, 0])
            }
            Op::Prelu => {
                let (m0, m1) = (Multiplier::new(s0 / so), Multiplier::new(s0 * s1 / so));
                (3, row(-z0, m0, 0), row(-z1, m1, 0), row(zo, nothing, 0), [low, high, 1, 0])
            }
            Op::Div(_) | Op::Pow | Op::Atan2 if RARE => return pairs(cx, a, b, &y),
            _ => return no("8-bit operands"),
        }
    };
    let how = broadcast(&[a, b], &y)?;
    let key = KernelKey::new("qbinary", &[("in0", a.elem), ("in1", b.elem), ("out", y.elem)])
        .set("KIND", kind)
        .set("SAME", how.same as i32)
        .set("SPLAT", how.splat);
    let params = how.params(&y).i4(q0).i4(q1).i4(qo).i4(limits);
    cx.dispatch(key, &[a.slot, b.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}

/// 8-bit operands whose results come from a table of the CPU kernel's for every two bytes.
fn pairs(cx: &mut Lower<'_, '_>, a: &Operand<'_>, b: &Operand<'_>, y: &Operand<'_>) -> Lowered {
    if !is_quantized(y) {
        return no("an 8-bit operator with a result that is not");
    }
    let how = broadcast(&[a, b], y)?;
    const ALL: usize = 1 << 16;
    let bytes = if cx.dry {
        if cx.eval.is_none() {
            return no("its table comes from the CPU kernels, which are not here");
        }
        vec![0; ALL]
    } else {
        let shape = Shape::from_slice(&[ALL]);
        let (first, second): (Vec<u8>, Vec<u8>) = (0..ALL).map(|i| ((i >> 8) as u8, i as u8)).unzip();
        let fact = |x: &Operand<'_>, value| Some(Fact { dtype: x.dtype, shape: &shape, value: Some(value) });
        let facts = [fact(a, &first), fact(b, &second)];
        let node = cx.node;
        let done = cx.eval.as_mut().and_then(|eval| eval(node, &facts, std::slice::from_ref(&shape)));
        let table = done.and_then(|mut v| v.pop()).filter(|t| t.len() == ALL);
        table.ok_or_else(|| Unsupported::new("the CPU kernel gave no table"))?.to_vec()
    };
    let table = cx.weight(|| Ok(bytes))?;
    let key = KernelKey::new("pairs", &[]).set("SAME", how.same as i32).set("SPLAT", how.splat);
    let groups = line(y.quads().div_ceil(WG));
    cx.dispatch(key, &[a.slot, b.slot, table], &[y.slot], &[], how.params(y), groups)
}
