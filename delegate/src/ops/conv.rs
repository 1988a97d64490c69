//! Convolutions, and what they share with matrix products: the arithmetic's class, packing, the choice of parts.

mod volume;

use super::layout::{Copy, Dim, Outside};
use super::{RARE, activation};
use crate::caps::{AdapterClass, Caps, Matrices};
use crate::lower::{Const, Lower, Lowered, Operand, Params, line, no};
use crate::program::{Form, SlotId, tail};
use half::f16;
use litegpu_graph::fixed::{Multiplier, float_range, quantized_range};
use litegpu_graph::ops::{transpose_bias_options, window};
use litegpu_graph::schema::{ActivationFunctionType, Conv3DOptionsT, Padding};
use litegpu_graph::{DType, Op, Quant, Shape, TensorId, elements};
use litegpu_shaders::{Elem, KernelKey, Step};

/// Output channels, and input elements, that a step of the kernels takes.
pub(super) const OCT: usize = 8;

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    match &cx.node.op {
        Op::Conv2d(o) => {
            let frame = Frame {
                padding: o.padding,
                stride: [o.stride_h, o.stride_w],
                dilation: [o.dilation_h_factor, o.dilation_w_factor],
                activation: o.fused_activation_function,
            };
            dense(cx, frame)
        }
        Op::DepthwiseConv2d(o) => {
            let frame = Frame {
                padding: o.padding,
                stride: [o.stride_h, o.stride_w],
                dilation: [o.dilation_h_factor, o.dilation_w_factor],
                activation: o.fused_activation_function,
            };
            depthwise(cx, frame)
        }
        Op::TransposeConv(o) => {
            let frame = Frame {
                padding: o.padding,
                stride: [o.stride_h, o.stride_w],
                dilation: [1, 1],
                activation: o.fused_activation_function,
            };
            transposed(cx, frame, [2, 1, 3])
        }
        Op::Conv3d(o) => volume::forward(cx, o),
        Op::Conv3dTranspose(o) => volume::transposed(cx, o),
        Op::Custom(c) => {
            let (padding, stride) = transpose_bias_options(&c.options)?;
            let frame = Frame { padding, stride, dilation: [1, 1], activation: ActivationFunctionType::NONE };
            transposed(cx, frame, [0, 1, 2])
        }
        _ => no("no GPU kernel"),
    }
}

/// Attributes, over height and width.
#[derive(Debug, Clone, Copy)]
struct Frame {
    padding: Padding,
    stride: [i32; 2],
    dilation: [i32; 2],
    activation: ActivationFunctionType,
}

/// The classes of arithmetic.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Class {
    /// Floats.
    Float,
    /// Float activations with int8 weights: a scale for each output channel.
    Scaled(Vec<f32>),
    /// 8-bit integers, rounded twice: a multiplier for each output channel.
    Rounded(Vec<Multiplier>),
    /// 8-bit integers, scaled in double precision and rounded once.
    Real(Vec<f64>),
}

/// What every lowering here needs to know: the class, how weights are stored, zero points and limits.
#[derive(Debug, Clone)]
pub(super) struct Arithmetic {
    pub class: Class,
    pub weights: Elem,
    pub x_zero: i32,
    pub w_zero: i32,
    pub out_zero: i32,
    /// Limits as the uniform has them: bits of floats, or integers.
    pub low: i32,
    pub high: i32,
    /// A fused activation that is no clamp.
    pub after: Option<Step>,
    /// Four int8 at a time are multiplied as they are stored: by channel, what the operand's zero point adds to the sum.
    pub dots: Option<Vec<i32>>,
}

/// Scale of each channel, from one or from one each.
fn scales(q: Option<&Quant>, channels: usize) -> Lowered<Vec<f32>> {
    match q.map_or(&[][..], |q| &q.scale) {
        _ if q.is_some_and(|q| q.blockwise.is_some()) => no("weights quantized in blocks"),
        [s] => Ok(vec![*s; channels]),
        s if s.len() == channels => Ok(s.to_vec()),
        s => no(format!("weights with {} scales for {channels} channels", s.len())),
    }
}

fn zero(q: Option<&Quant>) -> Lowered<i32> {
    let z = q.map_or(&[][..], |q| &q.zero_point);
    let first = z.first().copied().unwrap_or(0);
    match i32::try_from(first) {
        Ok(v) if z.iter().all(|&z| z == first) => Ok(v),
        _ => no("weights with different zero points per channel"),
    }
}

/// How integer weights are stored: as in the file.
fn of_bits(w: DType) -> Elem {
    match w {
        DType::I8 => Elem::I8,
        DType::I4 => Elem::I4,
        DType::I2 => Elem::I2,
        _ => Elem::U8,
    }
}

/// The limits of floats as the uniform's bits, and what is left of the activation.
pub(super) fn float_limits(a: ActivationFunctionType) -> Lowered<(i32, i32, Option<Step>)> {
    let bits = |f: f32| f.to_bits() as i32;
    match float_range(a) {
        Ok((low, high)) => Ok((bits(low), bits(high), None)),
        Err(_) => Ok((bits(f32::NEG_INFINITY), bits(f32::INFINITY), activation(a)?)),
    }
}

impl Arithmetic {
    /// From the operands' types; `w` is the weights' type in the graph, `real` says that an int8 product is scaled in
    /// double precision.
    pub(super) fn new(
        x: &Operand<'_>,
        w: DType,
        quant: Option<&Quant>,
        channels: usize,
        y: &Operand<'_>,
        a: ActivationFunctionType,
        half: Elem,
        real: bool,
    ) -> Lowered<Arithmetic> {
        if x.dtype != y.dtype {
            return no(format!("{} operand and {} result", x.dtype, y.dtype));
        }
        let (low, high, after) = match x.dtype {
            DType::F32 => float_limits(a)?,
            DType::I8 | DType::U8 => {
                let (s, z) = y.scale_zero()?;
                let (low, high) = quantized_range(a, y.dtype, s, z)?;
                (low, high, None)
            }
            d => return no(format!("{d} activations")),
        };
        let mut all = Arithmetic {
            class: Class::Float,
            weights: Elem::F32,
            x_zero: 0,
            w_zero: 0,
            out_zero: 0,
            low,
            high,
            after,
            dots: None,
        };
        match (x.dtype, w) {
            (DType::F32, DType::F32) => {}
            (DType::F32, DType::F16) => all.weights = half,
            (DType::F32, DType::I8 | DType::I4 | DType::I2) => {
                all.weights = of_bits(w);
                all.class = Class::Scaled(scales(quant, channels)?);
                if zero(quant)? != 0 {
                    return no(format!("{w} weights with a zero point on floats"));
                }
            }
            (DType::I8, DType::I8 | DType::I4 | DType::I2) | (DType::U8, DType::U8) => {
                let (xs, xz) = x.scale_zero()?;
                let (ys, yz) = y.scale_zero()?;
                let ws = scales(quant, channels)?;
                all.weights = of_bits(w);
                // Scales of channels come without zero points, whatever the file says.
                let each = quant.is_some_and(|q| q.scale.len() > 1);
                (all.x_zero, all.w_zero, all.out_zero) = (xz, if each { 0 } else { zero(quant)? }, yz);
                if !(xs > 0.0 && ys > 0.0) {
                    return no("a scale that is not positive");
                }
                let exact = |w: f32| xs as f64 * w as f64 / ys as f64;
                all.class = if real && w != DType::U8 {
                    Class::Real(ws.iter().map(|&w| exact(w)).collect())
                } else if w == DType::U8 {
                    // The reference rounds the product of scales to single precision for uint8.
                    Class::Rounded(ws.iter().map(|&w| Multiplier::new((xs * w) as f64 / ys as f64)).collect())
                } else {
                    Class::Rounded(ws.iter().map(|&w| Multiplier::new(exact(w))).collect())
                };
                if let Class::Real(s) = &all.class
                    && s.iter().any(|&s| !(s >= 0.0 && s < 1e6))
                {
                    return no("a scale out of range");
                }
                if let Class::Rounded(m) = &all.class
                    && m.iter().any(|m| m.value < 0 || m.shift > 30)
                {
                    return no("a multiplier out of range");
                }
            }
            (x, w) => return no(format!("{x} activations with {w} weights")),
        }
        Ok(all)
    }

    fn name(&self) -> &'static str {
        match self.class {
            Class::Float => "float",
            Class::Scaled(_) => "scaled",
            Class::Rounded(_) => "int",
            Class::Real(_) => "real",
        }
    }

    /// The parts of the class. `each`: the kernel reads constants channel by channel, not in rows of four.
    pub(super) fn parts(&self, cx: &Lower<'_, '_>, mut key: KernelKey, each: bool) -> KernelKey {
        let (chan, one, four) = match self.name() {
            "float" => ("chan_float", "each_float", "quad_float"),
            "scaled" => ("chan_scaled", "each_scaled", "quad_scaled"),
            "int" => ("chan_int", "each_int", "quad_int"),
            _ => ("chan_real", "each_real", "quad_real"),
        };
        key = key.part("", chan).part("", if each { one } else { four });
        if matches!(self.class, Class::Rounded(_)) {
            key = key.part("", if cx.scene.caps.int64 { "mul_u64" } else { "mul_u32" });
        }
        key.epilogue.extend(self.after.clone());
        key
    }

    /// Multiplies four int8 at a time as they are stored, where a GPU has an instruction for that: `w` are the weights, one
    /// row a channel. An adapter that runs shaders on the CPU has none, and is faster by unpacking.
    pub(super) fn pack_dots(&mut self, cx: &Lower<'_, '_>, x: &Operand<'_>, w: &Const, channels: usize) {
        let int8 = x.elem == Elem::I8 && self.weights == Elem::I8 && w.dtype == DType::I8 && self.w_zero == 0;
        let rounded = matches!(self.class, Class::Rounded(_) | Class::Real(_));
        if cx.scene.caps.class == AdapterClass::Software || !int8 || !rounded || channels == 0 {
            return;
        }
        let sum = |row: &[u8]| row.iter().fold(0i32, |s, &w| s.wrapping_add(i32::from(w as i8)));
        self.dots = Some(match cx.dry {
            true => vec![0; channels],
            false => {
                let rows = w.bytes.chunks_exact((w.bytes.len() / channels).max(1));
                rows.map(|row| sum(row).wrapping_mul(self.x_zero)).collect()
            }
        });
    }

    /// The sections that read the operand and the weights, and multiply them.
    fn factors(&self, cx: &Lower<'_, '_>, key: KernelKey, x: Elem, even: bool) -> KernelKey {
        match self.dots {
            Some(_) => {
                let x = if even { "oct_b8_dots" } else { "oct_quads_dots" };
                key.part("x", x).part("w", "oct_b8_dots").part("", "dots_packed")
            }
            None => key.part("x", oct(cx, x, even)).part("w", oct(cx, self.weights, true)).part("", "dots_values"),
        }
    }

    /// The cooperative matrices that multiply so that nothing is rounded which is not without them: operands of 16 bits as
    /// they are, others in f32.
    fn matrices(&self, caps: &Caps, x: Elem) -> Option<&'static str> {
        let half = |e: Elem| matches!(e, Elem::F16 | Elem::F16Packed);
        let float = matches!(self.class, Class::Float) && x.is_float() && self.weights.is_float();
        if !RARE || !float || (caps.max_workgroup_memory as usize) < COOP_BYTES {
            return None;
        }
        match caps.matrices {
            Matrices { f16: Some(side), .. } if half(x) && half(self.weights) => {
                Some(if side == 16 { "coop_f16" } else { "coop_f16_8" })
            }
            Matrices { f32: true, .. } => Some("coop_f32"),
            _ => None,
        }
    }

    /// Zero points and limits, where the uniforms have them.
    pub(super) fn params(&self, p: Params) -> Params {
        let p = p.i(self.x_zero).i(self.w_zero).i(self.out_zero);
        match self.class {
            Class::Float | Class::Scaled(_) => p.limits(self.low, self.high),
            Class::Rounded(_) | Class::Real(_) => p.i(self.low).i(self.high).i(0),
        }
    }

    /// What padding of the weights holds, so that it counts for nothing.
    pub(super) fn pad(&self) -> u8 {
        match self.weights {
            Elem::I4 => (self.w_zero & 15) as u8 * 0x11,
            Elem::I2 => (self.w_zero & 3) as u8 * 0x55,
            _ => self.w_zero as u8,
        }
    }

    /// The constants of the channels, padded to whole steps of eight.
    pub(super) fn channels(
        &self,
        cx: &mut Lower<'_, '_>,
        bias: Option<usize>,
        channels: usize,
        each: bool,
    ) -> Lowered<SlotId> {
        let bias = bias.filter(|&i| cx.has(i));
        let ints = match self.class {
            Class::Rounded(_) | Class::Real(_) => bias.map(|i| cx.ints(i)).transpose()?,
            _ => None,
        };
        let floats = match self.class {
            Class::Float | Class::Scaled(_) => match bias {
                None => None,
                Some(i) => match (cx.floats(i)?, &self.class) {
                    (Some(b), _) => Some(b),
                    // All that a channel has is its bias.
                    (None, Class::Float) => return computed_bias(cx, i, channels),
                    (None, _) => return no("a computed bias"),
                },
            },
            _ => None,
        };
        self.channels_of(cx, ints.as_deref(), floats.as_deref(), channels, each)
    }

    /// The same with the values of the bias, if there is one.
    pub(super) fn channels_of(
        &self,
        cx: &mut Lower<'_, '_>,
        ints: Option<&[i64]>,
        floats: Option<&[f32]>,
        channels: usize,
        each: bool,
    ) -> Lowered<SlotId> {
        if ints.is_some_and(|b| b.len() != channels) || floats.is_some_and(|b| b.len() != channels) {
            return no("a bias of another length");
        }
        // Words of a channel.
        let mut words: Vec<Vec<u32>> = vec![Vec::new(); channels.next_multiple_of(OCT)];
        for (c, w) in words.iter_mut().enumerate() {
            let taken = self.dots.as_ref().and_then(|d| d.get(c)).copied().unwrap_or(0);
            let int = ints.and_then(|b| b.get(c)).map_or(0, |&b| b as i32).wrapping_sub(taken) as u32;
            let float = floats.and_then(|b| b.get(c)).map_or(0, |b| b.to_bits());
            match &self.class {
                Class::Float => w.push(float),
                Class::Scaled(s) => w.extend([float, s.get(c).map_or(0, |s| s.to_bits())]),
                Class::Rounded(m) => {
                    let m = m.get(c).copied().unwrap_or_default();
                    w.extend([int, m.value as u32, m.shift as u32]);
                    if each {
                        w.push(0);
                    }
                }
                Class::Real(s) => {
                    let (high, low, shift) = words_of(s.get(c).copied().unwrap_or(0.0));
                    w.extend([int, high, low, shift]);
                }
            }
        }
        let mut out: Vec<u8> = Vec::new();
        for four in words.chunks(4) {
            if each {
                four.iter().flatten().for_each(|w| out.extend(w.to_le_bytes()));
            } else {
                for row in 0..four.first().map_or(0, Vec::len) {
                    four.iter().filter_map(|w| w.get(row)).for_each(|w| out.extend(w.to_le_bytes()));
                }
            }
        }
        cx.weight(|| Ok(out))
    }
}

/// A bias that another operator computes, in f32 and padded to whole steps of eight.
fn computed_bias(cx: &mut Lower<'_, '_>, i: usize, channels: usize) -> Lowered<SlotId> {
    let b = cx.operand(i)?;
    if b.dtype != DType::F32 || b.shape.as_slice() != [channels] {
        return no("a bias of another length");
    }
    if b.elem == Elem::F32 && channels.div_ceil(4) % 2 == 0 {
        return Ok(b.slot);
    }
    let wide = Operand { elem: Elem::F32, ..b.clone() };
    let n = channels.next_multiple_of(OCT);
    // The padding of the operand's own memory is zero.
    let held = Dim { n, stride: 1, low: 0, high: channels.next_multiple_of(4) };
    packed_on_gpu(cx, &b, &wide, vec![held], 0, [1, n], 0)
}

/// Copies elements of `x` into rows, stored as `like` is: `dims` (innermost first) and `base` say where they come from,
/// `pad` what lies outside.
fn packed_on_gpu(
    cx: &mut Lower<'_, '_>,
    x: &Operand<'_>,
    like: &Operand<'_>,
    dims: Vec<Dim>,
    base: i64,
    [rows, width]: [usize; 2],
    pad: i32,
) -> Lowered<SlotId> {
    let shape = [rows, width];
    if rows.checked_mul(width).is_none_or(|n| n > (i32::MAX / 4) as usize) {
        return no("weights that are too large");
    }
    let y =
        Operand { slot: cx.temp(&shape, like.elem), shape: shape.as_slice().into(), constant: false, ..like.clone() };
    let mut c = Copy::all(&y, dims);
    c.base = base;
    c.outside = Outside::Value(pad as u32);
    c.emit(cx, x, &y)?;
    Ok(y.slot)
}

/// A filter: a constant, packed while the part is lowered, or what another operator computes, packed on the GPU by each
/// run.
pub(super) enum Filter<'a> {
    Constant(TensorId, Const),
    /// A constant [depth, height, width, input channel, output channel], to be read as [output channel, height, width,
    /// depth * input channels padded to quads].
    Deep {
        tensor: TensorId,
        value: Const,
        channels: usize,
    },
    Computed(Operand<'a>),
}

impl<'a> Filter<'a> {
    fn of(cx: &mut Lower<'a, '_>, i: usize) -> Lowered<Filter<'a>> {
        match (cx.node.input(i), cx.constant(i)?) {
            (Some(t), Some(c)) => Ok(Filter::Constant(t, c)),
            _ => Ok(Filter::Computed(cx.operand(i)?)),
        }
    }

    fn shape(&self) -> Shape {
        match self {
            Filter::Constant(_, c) => c.shape.clone(),
            Filter::Deep { value, channels, .. } => match *value.shape.as_slice() {
                [d, h, w, _, o] => [o, h, w, d * channels.next_multiple_of(4)].as_slice().into(),
                _ => value.shape.clone(),
            },
            Filter::Computed(w) => w.shape.clone(),
        }
    }

    /// The arithmetic with this filter, the node's `i`-th operand.
    fn arithmetic(
        &self,
        cx: &Lower<'_, '_>,
        i: usize,
        x: &Operand<'_>,
        channels: usize,
        y: &Operand<'_>,
        a: ActivationFunctionType,
    ) -> Lowered<Arithmetic> {
        let dtype = match self {
            Filter::Constant(_, c) | Filter::Deep { value: c, .. } => c.dtype,
            Filter::Computed(w) => w.dtype,
        };
        let quant = cx.tensor(i)?.quant.as_ref();
        let mut all = Arithmetic::new(x, dtype, quant, channels, y, a, cx.scene.caps.half(), false)?;
        if let Filter::Computed(w) = self {
            all.weights = w.elem;
        }
        if matches!(dtype, DType::I8 | DType::I4 | DType::I2) {
            // Signed filters have no zero point, whatever the file says.
            all.w_zero = 0;
        }
        Ok(all)
    }
}

/// A factor that is not negative as a whole number of 53 bits in two words and the power of two that it is divided by.
fn words_of(v: f64) -> (u32, u32, u32) {
    let bits = v.to_bits();
    let exponent = (bits >> 52) as i32;
    if exponent == 0 {
        return (0, 0, 96);
    }
    let mantissa = (bits & ((1 << 52) - 1)) | (1 << 52);
    ((mantissa >> 32) as u32, mantissa as u32, (1023 + 52 - exponent).clamp(33, 96) as u32)
}

/// How eight elements are read, for the storage and, where rows have an even number of quads, for a whole pair.
pub(super) fn oct(cx: &Lower<'_, '_>, elem: Elem, even: bool) -> &'static str {
    match (elem, even, cx.scene.caps.int64) {
        (Elem::F32, true, true) => "oct_f32_u64",
        (Elem::F32, false, true) => "oct_f32_u64_odd",
        (Elem::F16Packed, true, true) => "oct_f16_u64",
        (Elem::F16Packed, false, true) => "oct_f16_u64_odd",
        (Elem::F16Packed, true, false) => "oct_f16_u32",
        (Elem::I8 | Elem::U8, true, _) => "oct_b8_u32",
        (Elem::I4, ..) => "oct_b4_u32",
        (Elem::I2, ..) => "oct_b2_u32",
        _ => "oct_quads",
    }
}

/// How eight elements are written. Wider words for an even number of quads would save little, and cost a kernel more.
pub(super) fn put(cx: &Lower<'_, '_>, elem: Elem, even: bool) -> &'static str {
    match (elem, even, cx.scene.caps.int64) {
        (Elem::F32, _, true) => "put_f32_u64",
        (Elem::F16Packed, _, true) => "put_f16_u64",
        (Elem::F16Packed, true, false) => "put_f16_u32",
        (Elem::I8 | Elem::U8, true, _) => "put_b8_u32",
        _ => "put_quads",
    }
}

/// Where constants go: for each of `rows` rows of `width` elements, runs of `len` elements from `from + row * stride`,
/// `step` apart, to `to`.
pub(super) struct Layout {
    pub rows: usize,
    pub width: usize,
    pub stride: usize,
    pub step: usize,
    pub len: usize,
    /// (to, from)
    pub runs: Vec<(usize, usize)>,
}

/// Lays weights out in rows padded with `pad` (zeros for floats).
pub(super) fn pack(c: &Const, elem: Elem, l: &Layout, pad: u8) -> Lowered<Vec<u8>> {
    match (c.dtype, elem) {
        (DType::I4, Elem::I4) => return pack_bits(c, l, pad, 4),
        (DType::I2, Elem::I2) => return pack_bits(c, l, pad, 2),
        _ => {}
    }
    let from = match c.dtype {
        DType::F32 => 4,
        DType::F16 => 2,
        DType::I8 | DType::U8 => 1,
        d => return no(format!("{d} weights")),
    };
    let to = elem.quad_bytes() / 4;
    let Some(bytes) = l.rows.checked_mul(l.width).and_then(|n| n.checked_mul(to)) else {
        return no("weights that are too large");
    };
    let mut out = vec![if from == 1 { pad } else { 0 }; bytes];
    for row in 0..l.rows {
        for &(at, first) in &l.runs {
            // As they lie: a run at a time.
            if from == to && l.step == 1 {
                let (source, target) = ((first + row * l.stride) * from, (row * l.width + at) * to);
                let (bytes, n) = (l.len * from, c.bytes.get(source..));
                let (Some(s), Some(t)) = (n.and_then(|n| n.get(..bytes)), out.get_mut(target..target + bytes)) else {
                    return no("weights that do not fit their shape");
                };
                t.copy_from_slice(s);
                continue;
            }
            for i in 0..l.len {
                let source = (first + row * l.stride + i * l.step) * from;
                let target = (row * l.width + at + i) * to;
                let (Some(s), Some(t)) = (c.bytes.get(source..source + from), out.get_mut(target..target + to)) else {
                    return no("weights that do not fit their shape");
                };
                match (from, to) {
                    (a, b) if a == b => t.copy_from_slice(s),
                    (4, 2) => {
                        let v = f32::from_le_bytes(s.try_into().unwrap_or_default());
                        t.copy_from_slice(&f16::from_f32(v).to_le_bytes());
                    }
                    (2, 4) => {
                        let v = f16::from_le_bytes(s.try_into().unwrap_or_default());
                        t.copy_from_slice(&v.to_f32().to_le_bytes());
                    }
                    _ => return no(format!("{} weights", c.dtype)),
                }
            }
        }
    }
    Ok(out)
}

/// The same for elements of 4 or 2 bits, of which files store several in a byte, the first one lowest, and kernels read so.
fn pack_bits(c: &Const, l: &Layout, pad: u8, bits: usize) -> Lowered<Vec<u8>> {
    let Some(n) = l.rows.checked_mul(l.width) else { return no("weights that are too large") };
    let (per, mask) = (8 / bits, (1u8 << bits) - 1);
    let mut out = vec![pad; n.div_ceil(per)];
    for row in 0..l.rows {
        for &(at, first) in &l.runs {
            for i in 0..l.len {
                let (from, to) = (first + row * l.stride + i * l.step, row * l.width + at + i);
                let (Some(&s), Some(t)) = (c.bytes.get(from / per), out.get_mut(to / per)) else {
                    return no("weights that do not fit their shape");
                };
                let shift = to % per * bits;
                *t = *t & !(mask << shift) | (s >> (from % per * bits) & mask) << shift;
            }
        }
    }
    Ok(out)
}

/// One dispatch of `conv.wgsl`.
#[derive(Debug, Clone)]
pub(super) struct Product {
    pub batch: usize,
    /// Input rows and columns.
    pub h: usize,
    pub w: usize,
    /// Input quads of a pixel.
    pub cq: usize,
    /// Output rows and columns that this dispatch computes.
    pub oh: usize,
    pub ow: usize,
    pub channels: usize,
    pub stride: [i32; 2],
    pub pad: [i64; 2],
    pub dilation: [i32; 2],
    pub kw: usize,
    /// Quads of a tap in the weights, steps of the filter.
    pub tap: usize,
    pub steps: usize,
    /// First output pixel, and the distance of images, rows and columns.
    pub to: usize,
    pub to_image: usize,
    pub to_row: usize,
    pub to_column: usize,
    /// Matrices of a batched product, with their distances: input quads, steps, output pixels.
    pub matrices: Option<(usize, usize, usize, usize)>,
}

/// The largest quotient that the kernels' division by reciprocals can give.
const MAX_QUOTIENT: usize = 1 << 21;

pub(super) fn reciprocal(n: usize) -> f32 {
    1.0 / n.max(1) as f32
}

impl Product {
    /// Whether it is a product of matrices: one tap, and pixels that lie one behind the other as they are read and written.
    fn is_matrix(&self) -> bool {
        let rows = self.batch == 1 && self.h == 1 && self.oh == 1 && self.w == self.ow;
        let taps = self.kw == 1 && self.steps == self.cq.div_ceil(2) && self.tap == self.steps * 2;
        rows && taps && self.stride == [1, 1] && self.pad == [0, 0] && self.to_column == 1
    }

    /// Whether workgroups compute tiles of it together: on GPUs, where there are tiles enough to keep one busy.
    fn tiled(&self, class: AdapterClass) -> bool {
        let enough = match class {
            AdapterClass::Software => return false,
            AdapterClass::Integrated => 16,
            AdapterClass::Discrete => 128,
        };
        let tiles = (self.batch * self.oh * self.ow).div_ceil(TILE) * self.channels.div_ceil(TILE);
        let matrices = self.matrices.map_or(1, |m| m.0);
        self.channels > TILE / 2 && self.steps >= 2 && tiles * matrices >= enough
    }

    pub(super) fn emit(
        &self,
        cx: &mut Lower<'_, '_>,
        a: &Arithmetic,
        (x, x_elem): (SlotId, Elem),
        w: SlotId,
        chans: SlotId,
        y: &Operand<'_>,
    ) -> Lowered {
        let nq = self.channels.div_ceil(4);
        let pixels = self.batch * self.oh * self.ow;
        if self.batch > MAX_QUOTIENT || self.oh > MAX_QUOTIENT {
            return no("an operand with too many rows");
        }
        let caps = cx.scene.caps;
        let teams = caps.subgroups == Some((OCT as u32, OCT as u32));
        let software = caps.class == AdapterClass::Software;
        let fours = software && caps.subgroups == Some((4, 4));
        let tiled = self.tiled(caps.class);
        let wg: usize = match (teams || software, fours) {
            (_, true) => 16,
            (true, _) if !tiled => 8,
            _ => 64,
        };
        // Pixels of an invocation, or of a workgroup; channels of either.
        let matrices = if tiled { a.matrices(caps, x_elem).zip(teams_of(caps)) } else { None };
        let (kernel, of, octets) = match (fours, tiled) {
            (true, _) => ("conv_four", wg * 4, OCT),
            (_, true) if matrices.is_some() => ("conv_coop", TILE, TILE),
            (_, true) => ("conv_tile", TILE, TILE),
            _ => ("conv", wg * 2, OCT),
        };
        let key = KernelKey::new(kernel, &[("x", x_elem), ("w", a.weights), ("out", y.elem)]);
        let key = a.factors(cx, key, x_elem, self.cq % 2 == 0).part("out", put(cx, y.elem, nq % 2 == 0));
        let key = if tiled { key } else { key.set("WG", wg as i32) };
        let key = match matrices {
            Some((matrices, teams)) => key.part("", matrices).part("", teams),
            None => key,
        };
        let key = match self.is_matrix() {
            true => key.set("POINT", if self.cq % 2 == 0 { 2 } else { 1 }),
            false => key,
        };
        let key = match (fours || tiled, teams) {
            (true, _) => key,
            (_, true) => key.part("", "share_subgroup"),
            (_, false) => key.part("", "share_none"),
        };
        let key = a.parts(cx, key, true);
        let tiles = pixels.div_ceil(of);
        let across = self.channels.div_ceil(octets);
        let max = caps.max_groups as usize;
        let (gx, gz, batch) = match self.matrices {
            None => (tiles.min(max), tiles.div_ceil(max), (0, 0, 0)),
            Some((n, x, w, to)) => (tiles, n, (x, w, to)),
        };
        if gx > max || gz > max || across > max {
            return no("more workgroups than the adapter takes");
        }
        let params = Params::new()
            .u(pixels)
            .u(self.oh * self.ow)
            .u(self.ow)
            .f(reciprocal(self.oh * self.ow))
            .f(reciprocal(self.ow))
            .u(self.h)
            .u(self.w)
            .u(self.cq)
            .i(self.stride[0])
            .i(self.stride[1])
            .i(self.pad[0] as i32)
            .i(self.pad[1] as i32)
            .i(self.dilation[0])
            .i(self.dilation[1])
            .u(self.kw)
            .u(self.tap)
            .u(self.steps)
            .u(nq)
            .u(tail(&[self.channels]))
            .u(self.to)
            .u(self.to_image)
            .u(self.to_row)
            .u(self.to_column)
            .u(if self.matrices.is_some() { 0 } else { gx })
            .u(batch.0)
            .u(batch.1)
            .u(batch.2);
        let groups = [gx as u32, across as u32, gz as u32];
        cx.dispatch(key, &[x, w, chans], &[y.slot], &[], a.params(params), groups)?;
        if !fours && !tiled {
            let matrices = self.matrices.is_some();
            let form = |wg: usize| {
                let tiles = pixels.div_ceil(wg * 2);
                let gx = if matrices { tiles } else { tiles.min(max) };
                let gz = if matrices { gz } else { tiles.div_ceil(max) };
                Form {
                    constants: vec![("WG", wg as i32)],
                    // Where subgroups are vectors of a CPU a larger workgroup is several of them, in order; a GPU promises
                    // no order.
                    parts: if software { Vec::new() } else { vec![("share_subgroup", "share_none")] },
                    params: vec![(MORE_TILES, if matrices { 0 } else { gx as u32 })],
                    groups: [gx as u32, across as u32, gz as u32],
                }
            };
            cx.or(workgroups(caps, wg).map(form).filter(|f| f.groups.iter().all(|&g| g as usize <= max)));
        }
        Ok(())
    }
}

/// Pixels and channels of a workgroup of conv_tile.wgsl and conv_coop.wgsl.
const TILE: usize = 64;

/// Workgroup memory of conv_coop.wgsl at the most.
const COOP_BYTES: usize = 2 * 4 * TILE * 24 + 4 * TILE * TILE;

/// How the subgroups of 64 invocations share a tile; `None` where their size is not known.
fn teams_of(caps: &Caps) -> Option<&'static str> {
    match caps.subgroups? {
        (64, 64) => Some("teams_1"),
        (32, 32) => Some("teams_2"),
        (16, 16) => Some("teams_4"),
        (8, 8) => Some("teams_8"),
        _ => None,
    }
}

/// The place of `more_tiles` in the uniform of conv.wgsl.
const MORE_TILES: usize = 23;

/// Other sizes of workgroups worth a try, beside `wg`.
fn workgroups(caps: &Caps, wg: usize) -> impl Iterator<Item = usize> {
    let sizes: &[usize] = if caps.class == AdapterClass::Software { &[8, 16, 32] } else { &[32, 64, 128, 256] };
    let most = caps.max_invocations as usize;
    sizes.iter().copied().filter(move |&s| s != wg && s <= most)
}

/// Invocations that share a sum of `steps` steps where there are `sums` of them: as many as leave each a few steps, while a
/// GPU has more places than that. At most `wg`; a power of two.
fn split(sums: usize, steps: usize, wg: usize) -> usize {
    /// Invocations that keep a GPU busy, and the fewest steps that are worth a sum in workgroup memory.
    const PLACES: usize = 1 << 14;
    const STEPS: usize = 4;
    let most = (PLACES / sums.max(1)).min(steps / STEPS).min(wg / 2);
    1 << most.max(1).ilog2()
}

/// Rows of a product so few that an invocation for every four channels of every row is better.
pub(super) const FEW_ROWS: usize = 8;

/// A product of few rows of `depth` elements with packed weights.
pub(super) fn few(
    cx: &mut Lower<'_, '_>,
    a: &Arithmetic,
    x: &Operand<'_>,
    w: SlotId,
    bias: Option<usize>,
    y: &Operand<'_>,
    rows: usize,
    depth: usize,
    channels: usize,
) -> Lowered {
    let chans = a.channels(cx, bias, channels, false)?;
    few_of(cx, a, x, w, chans, y, rows, depth, channels)
}

/// The same with the channels' constants.
pub(super) fn few_of(
    cx: &mut Lower<'_, '_>,
    a: &Arithmetic,
    x: &Operand<'_>,
    w: SlotId,
    chans: SlotId,
    y: &Operand<'_>,
    rows: usize,
    depth: usize,
    channels: usize,
) -> Lowered {
    let (cq, nq) = (depth.div_ceil(4), channels.div_ceil(4));
    let software = cx.scene.caps.class == AdapterClass::Software;
    let wg = if software { 8 } else { 64 };
    let split = if software { 1 } else { split(rows * nq, depth.div_ceil(OCT), wg) };
    let key = KernelKey::new("matvec", &[("x", x.elem), ("w", a.weights), ("out", y.elem)]);
    let key = a.factors(cx, key, x.elem, cq % 2 == 0).set("WG", wg as i32);
    let key = a.parts(cx, key, false);
    let key = match split {
        1 => key.part("", "split_none"),
        n => key.part("", "split_sum").set("SPLIT", n as i32),
    };
    let params = Params::new().u(rows).u(cq).u(depth.div_ceil(OCT)).u(nq).u(tail(&[channels]));
    let groups = |wg: usize| [nq.div_ceil(wg / split) as u32, rows as u32, 1];
    cx.dispatch(key, &[x.slot, w, chans], &[y.slot], &[], a.params(params), groups(wg))?;
    let form = |wg: usize| Form { constants: vec![("WG", wg as i32)], groups: groups(wg), ..Form::default() };
    cx.or(workgroups(cx.scene.caps, wg).map(form));
    Ok(())
}

fn dense(cx: &mut Lower<'_, '_>, f: Frame) -> Lowered {
    let x = cx.operand(0)?;
    let w = Filter::of(cx, 1)?;
    let y = cx.result(0)?;
    let &[_, oh, ow, _] = y.shape.as_slice() else { return no("an operand whose rank is not 4") };
    convolve(cx, f, &x, &w, &y, [oh, ow])
}

/// The convolution with operand 1 as filter and operand 2 as bias, of images of `oh` by `ow`.
fn convolve<'a>(
    cx: &mut Lower<'a, '_>,
    f: Frame,
    x: &Operand<'a>,
    w: &Filter<'a>,
    y: &Operand<'a>,
    [oh, ow]: [usize; 2],
) -> Lowered {
    let (&[n, h, width, c], &[o, kh, kw, i]) = (x.shape.as_slice(), w.shape().as_slice()) else {
        return no("an operand whose rank is not 4");
    };
    let mut a = w.arithmetic(cx, 1, x, o, y, f.activation)?;
    let top = window(f.padding, h, kh, f.stride[0], f.dilation[0])?.before;
    let left = window(f.padding, width, kw, f.stride[1], f.dilation[1])?.before;
    if i != c {
        return grouped(cx, f, &a, x, w, y);
    }
    if let Filter::Constant(_, w) = w {
        a.pack_dots(cx, x, w, o);
    }
    let cq = c.div_ceil(4);
    // Steps may run over the boundary between taps only where taps lie side by side.
    let mut merged = cq % 2 == 1 && kw > 1 && f.dilation[1] == 1;
    if matches!(w, Filter::Computed(_)) && a.w_zero != 0 {
        // Padding between taps holds zeros, and must hold the zero point.
        merged = false;
    }
    let tap = if merged { cq } else { cq.next_multiple_of(2) };
    let row = (tap * kw).div_ceil(2);
    let pad = a.pad();
    let elem = a.weights;
    let packed = match w {
        Filter::Constant(t, w) => cx.packed(*t, elem, if merged { "conv merged" } else { "conv" }, || {
            let mut runs = Vec::new();
            for y in 0..kh {
                for x in 0..kw {
                    runs.push((y * row * OCT + x * tap * 4, (y * kw + x) * c));
                }
            }
            let l = Layout { rows: o, width: kh * row * OCT, stride: kh * kw * c, step: 1, len: c, runs };
            pack(w, elem, &l, pad)
        })?,
        Filter::Deep { tensor, value, channels } => cx.packed(*tensor, elem, "conv deep", || {
            // Of each tap: the filter's depths side by side, each padded to whole quads.
            let pitch = channels.next_multiple_of(4);
            let mut runs = Vec::new();
            for y in 0..kh {
                for x in 0..kw {
                    for z in 0..c / pitch.max(1) {
                        let at = y * row * OCT + x * tap * 4 + z * pitch;
                        runs.push((at, ((z * kh + y) * kw + x) * channels * o));
                    }
                }
            }
            let l = Layout { rows: o, width: kh * row * OCT, stride: 1, step: o, len: *channels, runs };
            pack(value, elem, &l, pad)
        })?,
        Filter::Computed(w) => {
            let pitch = cq * 4;
            let lines = Dim::whole(o * kh, (kw * pitch) as i64);
            let dims = if merged {
                vec![Dim { n: row * OCT, stride: 1, low: 0, high: kw * pitch }, lines]
            } else {
                let high = if a.w_zero == 0 { pitch } else { c };
                vec![Dim { n: tap * 4, stride: 1, low: 0, high }, Dim::whole(kw, pitch as i64), lines]
            };
            packed_on_gpu(cx, w, w, dims, 0, [o, kh * row * OCT], a.w_zero)?
        }
    };
    let point = kh == 1 && kw == 1 && f.stride == [1, 1] && top == 0 && left == 0;
    if point && n * h * width < FEW_ROWS {
        return few(cx, &a, x, packed, Some(2), y, n * h * width, c, o);
    }
    let chans = a.channels(cx, Some(2), o, true)?;
    let mut p = Product {
        batch: n,
        h,
        w: width,
        cq,
        oh,
        ow,
        channels: o,
        stride: f.stride,
        pad: [top as i64, left as i64],
        dilation: f.dilation,
        kw,
        tap,
        steps: kh * row,
        to: 0,
        to_image: oh * ow,
        to_row: ow,
        to_column: 1,
        matrices: None,
    };
    if point {
        // One long row: no pixel needs to know where it is.
        (p.batch, p.h, p.w, p.oh, p.ow) = (1, 1, n * h * width, 1, n * h * width);
    }
    p.emit(cx, &a, (x.slot, x.elem), packed, chans, y)
}

/// A convolution each of whose output channels sees the input channels of its group alone.
fn grouped<'a>(
    cx: &mut Lower<'a, '_>,
    f: Frame,
    a: &Arithmetic,
    x: &Operand<'a>,
    w: &Filter<'a>,
    y: &Operand<'a>,
) -> Lowered {
    let (&[.., c], &[o, kh, kw, depth]) = (x.shape.as_slice(), w.shape().as_slice()) else {
        return no("an operand whose rank is not 4");
    };
    if depth == 0 || c % depth != 0 || o % (c / depth) != 0 {
        return no("groups that do not fit");
    }
    let (rows, width, pad, elem) = (kh * kw * depth, o.next_multiple_of(OCT), a.pad(), a.weights);
    // As for a depthwise convolution: a row for each factor of a sum, a column for each output channel.
    let packed = match w {
        Filter::Deep { .. } => return no("a filter with depth"),
        Filter::Constant(t, w) => cx.packed(*t, elem, "grouped", || {
            pack(w, elem, &Layout { rows, width, stride: 1, step: rows, len: o, runs: vec![(0, 0)] }, pad)
        })?,
        Filter::Computed(w) => {
            let pitch = depth.next_multiple_of(4);
            let columns = Dim { n: width, stride: (kh * kw * pitch) as i64, low: 0, high: o };
            let dims = vec![columns, Dim::whole(depth, 1), Dim::whole(kh * kw, pitch as i64)];
            packed_on_gpu(cx, w, w, dims, 0, [rows, width], 0)?
        }
    };
    in_groups(cx, f, a, x, packed, y, [kh, kw], depth)
}

/// The dispatch of `depthwise_multi.wgsl` for groups of `depth` input channels.
fn in_groups<'a>(
    cx: &mut Lower<'a, '_>,
    f: Frame,
    a: &Arithmetic,
    x: &Operand<'a>,
    packed: SlotId,
    y: &Operand<'a>,
    [kh, kw]: [usize; 2],
    depth: usize,
) -> Lowered {
    let (&[n, h, width, c], &[_, oh, ow, o]) = (x.shape.as_slice(), y.shape.as_slice()) else {
        return no("an operand whose rank is not 4");
    };
    if n > MAX_QUOTIENT || oh > MAX_QUOTIENT {
        return no("an operand with too many rows");
    }
    let chans = a.channels(cx, Some(2), o, false)?;
    let top = window(f.padding, h, kh, f.stride[0], f.dilation[0])?.before;
    let left = window(f.padding, width, kw, f.stride[1], f.dilation[1])?.before;
    let (pixels, nq) = (n * oh * ow, o.div_ceil(4));
    let wg = if cx.scene.caps.class == AdapterClass::Software { 8 } else { 64 };
    let key = KernelKey::new("depthwise_multi", &[("x", x.elem), ("w", a.weights), ("out", y.elem)])
        .part("w", oct(cx, a.weights, true))
        .set("WG", wg as i32);
    let key = a.parts(cx, key, false);
    let params = Params::new()
        .u(pixels)
        .u(oh * ow)
        .u(ow)
        .f(reciprocal(oh * ow))
        .f(reciprocal(ow))
        .u(h)
        .u(width)
        .u(nq)
        .u(tail(&[o]))
        .u(nq.div_ceil(2))
        .u(c.div_ceil(4))
        .u(o / (c / depth))
        .u(depth)
        .i(f.stride[0])
        .i(f.stride[1])
        .u(top)
        .u(left)
        .i(f.dilation[0])
        .i(f.dilation[1])
        .u(kh)
        .u(kw);
    let groups = line((pixels * nq).div_ceil(wg));
    cx.dispatch(key, &[x.slot, packed, chans], &[y.slot], &[], a.params(params), groups)
}

fn depthwise(cx: &mut Lower<'_, '_>, f: Frame) -> Lowered {
    let x = cx.operand(0)?;
    let w = Filter::of(cx, 1)?;
    let y = cx.result(0)?;
    let (&[n, h, width, c], &[_, kh, kw, o], &[_, oh, ow, _]) =
        (x.shape.as_slice(), w.shape().as_slice(), y.shape.as_slice())
    else {
        return no("an operand whose rank is not 4");
    };
    let a = w.arithmetic(cx, 1, &x, o, &y, f.activation)?;
    let top = window(f.padding, h, kh, f.stride[0], f.dilation[0])?.before;
    let left = window(f.padding, width, kw, f.stride[1], f.dilation[1])?.before;
    let nq = o.div_ceil(4);
    let octs = nq.div_ceil(2);
    let (pad, elem) = (a.pad(), a.weights);
    // Rows of the layout are taps here.
    let packed = match &w {
        Filter::Deep { .. } => return no("a filter with depth"),
        Filter::Constant(t, w) => cx.packed(*t, elem, "depthwise", || {
            let l = Layout { rows: kh * kw, width: octs * OCT, stride: o, step: 1, len: o, runs: vec![(0, 0)] };
            pack(w, elem, &l, pad)
        })?,
        // As it lies.
        Filter::Computed(w) if nq % 2 == 0 => w.slot,
        // What lies behind the last channel is masked in the result.
        Filter::Computed(w) => {
            let taps = Dim::whole(kh * kw, (nq * 4) as i64);
            let dims = vec![Dim { n: octs * OCT, stride: 1, low: 0, high: nq * 4 }, taps];
            packed_on_gpu(cx, w, w, dims, 0, [kh * kw, octs * OCT], 0)?
        }
    };
    if o != c {
        return in_groups(cx, f, &a, &x, packed, &y, [kh, kw], 1);
    }
    let chans = a.channels(cx, Some(2), o, false)?;
    let pixels = n * oh * ow;
    if n > MAX_QUOTIENT || oh > MAX_QUOTIENT {
        return no("an operand with too many rows");
    }
    let software = cx.scene.caps.class == AdapterClass::Software;
    let wg = if software { 8 } else { 64 };
    let key = |kernel| KernelKey::new(kernel, &[("x", x.elem), ("w", a.weights), ("out", y.elem)]);
    let reads = [x.slot, packed, chans];
    let key = |kernel| {
        key(kernel)
            .part("x", oct(cx, x.elem, nq % 2 == 0))
            .part("w", oct(cx, a.weights, true))
            .part("out", put(cx, y.elem, nq % 2 == 0))
            .set("WG", wg as i32)
    };
    if software && cx.scene.caps.subgroups == Some((4, 4)) && !matches!(a.weights, Elem::I4 | Elem::I2) {
        let key = KernelKey::new("depthwise_four", &[("x", x.elem), ("w", a.weights), ("out", y.elem)])
            .set("WG", 16)
            .set("SLIDE", (f.stride[1] == 1 && f.dilation[1] == 1).into());
        let key = a.parts(cx, key, false);
        let across = ow.div_ceil(4);
        let items = n * oh * across * nq;
        let params = Params::new()
            .u(items)
            .u(nq)
            .u(across)
            .u(tail(&[o]))
            .u(oh)
            .u(ow)
            .u(h)
            .u(width)
            .i(f.stride[0])
            .i(f.stride[1])
            .u(top)
            .u(left)
            .i(f.dilation[0])
            .i(f.dilation[1])
            .u(kh)
            .u(kw)
            .u(2 * octs);
        return cx.dispatch(key, &reads, &[y.slot], &[], a.params(params), line(items.div_ceil(16)));
    }
    if kh == kw && (kw == 3 || kw == 5) && f.dilation == [1, 1] {
        let key = a.parts(cx, key("depthwise_rows").part("", if kw == 3 { "taps_3" } else { "taps_5" }), false);
        // Long strips read less; there must be enough of them to go round.
        let enough = if software { 256 } else { 16_384 };
        let items = |rows: usize, span: usize| n * oh.div_ceil(rows) * ow.div_ceil(span) * octs;
        let strips = |enough: usize| {
            let (mut rows, mut span) = (oh, ow);
            while items(rows, span) < enough && rows > 1 {
                rows = rows.div_ceil(2);
            }
            while items(rows, span) < enough && span > 8 {
                span = span.div_ceil(2);
            }
            (rows, span)
        };
        let (rows, span) = strips(enough);
        let across = ow.div_ceil(span);
        let count = items(rows, span);
        let params = Params::new()
            .u(count)
            .u(octs)
            .u(oh.div_ceil(rows) * across)
            .u(across)
            .u(span)
            .u(rows)
            .u(oh)
            .u(ow)
            .u(h)
            .u(width)
            .u(nq)
            .u(tail(&[o]))
            .i(f.stride[0])
            .i(f.stride[1])
            .u(top)
            .u(left)
            .u(kh * kw)
            .u(2 * match a.class {
                Class::Float => 1,
                Class::Scaled(_) => 2,
                _ => 3,
            });
        cx.dispatch(key, &reads, &[y.slot], &[], a.params(params), line(count.div_ceil(wg)))?;
        let mut forms: Vec<Form> = Vec::new();
        for enough in [enough / 8, enough / 2, enough * 4] {
            let (r, s) = strips(enough);
            let (count, across) = (items(r, s), ow.div_ceil(s));
            let words = [(0, count), (2, oh.div_ceil(r) * across), (3, across), (4, s), (5, r)];
            let form = Form {
                params: words.map(|(at, v)| (at, v as u32)).to_vec(),
                groups: line(count.div_ceil(wg)),
                ..Form::default()
            };
            if (r, s) != (rows, span) && !forms.contains(&form) {
                forms.push(form);
            }
        }
        cx.or(forms);
        return Ok(());
    }
    let key = a.parts(cx, key("depthwise"), false);
    let params = Params::new()
        .u(pixels)
        .u(oh * ow)
        .u(ow)
        .f(reciprocal(oh * ow))
        .f(reciprocal(ow))
        .u(h)
        .u(width)
        .u(nq)
        .u(tail(&[o]))
        .u(octs)
        .i(f.stride[0])
        .i(f.stride[1])
        .u(top)
        .u(left)
        .i(f.dilation[0])
        .i(f.dilation[1])
        .u(kh)
        .u(kw);
    cx.dispatch(key, &reads, &[y.slot], &[], a.params(params), line((pixels * octs).div_ceil(wg)))
}

/// One axis of one phase of a transposed convolution: a forward convolution that gives every `stride`-th output.
struct Phase {
    /// Taps of the filter in the order of the inputs that they read.
    taps: Vec<usize>,
    /// How far the first tap reaches before the first input.
    pad: i64,
    first: usize,
    count: usize,
}

fn phases(padding: Padding, out: usize, filter: usize, stride: i32) -> Lowered<Vec<Phase>> {
    let before = window(padding, out, filter, stride, 1)?.before as i64;
    let stride = stride as i64;
    let mut all = Vec::new();
    for phase in 0..stride.min(out as i64) {
        let offset = |k: usize| phase + before - k as i64;
        let taps: Vec<usize> = (0..filter).rev().filter(|&k| offset(k).rem_euclid(stride) == 0).collect();
        let pad = taps.first().map_or(0, |&k| -offset(k).div_euclid(stride));
        all.push(Phase { taps, pad, first: phase as usize, count: (out - phase as usize).div_ceil(stride as usize) });
    }
    Ok(all)
}

/// `at` are the places of the operand, the filter and the bias: MediaPipe's custom form has no output shape before them.
fn transposed(cx: &mut Lower<'_, '_>, f: Frame, at: [usize; 3]) -> Lowered {
    let x = cx.operand(at[0])?;
    let w = Filter::of(cx, at[1])?;
    let y = cx.result(0)?;
    let (&[n, h, width, c], &[o, kh, kw, i], &[_, oh, ow, _]) =
        (x.shape.as_slice(), w.shape().as_slice(), y.shape.as_slice())
    else {
        return no("an operand whose rank is not 4");
    };
    if i != c {
        return no("a filter with other channels");
    }
    let a = w.arithmetic(cx, at[1], &x, o, &y, f.activation)?;
    let (ys, xs) = (phases(f.padding, oh, kh, f.stride[0])?, phases(f.padding, ow, kw, f.stride[1])?);
    if ys.len() * xs.len() > 64 {
        return no("a stride with more than 64 phases");
    }
    let chans = a.channels(cx, Some(at[2]), o, true)?;
    let cq = c.div_ceil(4);
    let (pad, elem) = (a.pad(), a.weights);
    for py in &ys {
        for px in &xs {
            let tap = cq.next_multiple_of(2);
            let row = tap * px.taps.len() / 2;
            let steps = py.taps.len() * row;
            let packed = match &w {
                Filter::Constant(_, w) => cx.weight(|| {
                    let mut runs = Vec::new();
                    for (j, ky) in py.taps.iter().enumerate() {
                        for (k, kx) in px.taps.iter().enumerate() {
                            runs.push((j * row * OCT + k * tap * 4, (ky * kw + kx) * c));
                        }
                    }
                    let l = Layout { rows: o, width: steps * OCT, stride: kh * kw * c, step: 1, len: c, runs };
                    pack(w, elem, &l, pad)
                })?,
                Filter::Deep { .. } => return no("a filter with depth"),
                // A phase that no tap reaches.
                Filter::Computed(_) if steps == 0 => cx.weight(|| Ok(Vec::new()))?,
                Filter::Computed(w) => {
                    // Every stride-th tap, the last one first.
                    let pitch = (cq * 4) as i64;
                    let first = |taps: &[usize]| taps.first().copied().unwrap_or(0) as i64;
                    let base = (first(&py.taps) * kw as i64 + first(&px.taps)) * pitch;
                    let high = if a.w_zero == 0 { cq * 4 } else { c };
                    let dims = vec![
                        Dim { n: tap * 4, stride: 1, low: 0, high },
                        Dim::whole(px.taps.len(), -pitch * f.stride[1] as i64),
                        Dim::whole(py.taps.len(), -pitch * kw as i64 * f.stride[0] as i64),
                        Dim::whole(o, pitch * (kh * kw) as i64),
                    ];
                    packed_on_gpu(cx, w, w, dims, base, [o, steps * OCT], a.w_zero)?
                }
            };
            let p = Product {
                batch: n,
                h,
                w: width,
                cq,
                oh: py.count,
                ow: px.count,
                channels: o,
                stride: [1, 1],
                pad: [py.pad, px.pad],
                dilation: [1, 1],
                kw: px.taps.len(),
                tap,
                steps,
                to: py.first * ow + px.first,
                to_image: oh * ow,
                to_row: ow * f.stride[0] as usize,
                to_column: f.stride[1] as usize,
                matrices: None,
            };
            p.emit(cx, &a, (x.slot, x.elem), packed, chans, &y)?;
        }
    }
    Ok(())
}
