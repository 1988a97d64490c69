//! Convolutions against the CPU: integers exactly, floats within what the order of additions and the storage allow.

mod common;
use common::*;
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Op, Quant};

/// One convolution.
#[derive(Debug, Clone, Copy)]
struct Conv {
    x: [usize; 4],
    out: usize,
    k: [usize; 2],
    stride: [i32; 2],
    dilation: [i32; 2],
    same: bool,
    act: ActivationFunctionType,
}

const NONE: ActivationFunctionType = ActivationFunctionType::NONE;
const RELU6: ActivationFunctionType = ActivationFunctionType::RELU6;

fn conv(x: [usize; 4], out: usize, k: [usize; 2], stride: i32, dilation: i32, same: bool) -> Conv {
    Conv { x, out, k, stride: [stride; 2], dilation: [dilation; 2], same, act: NONE }
}

/// The ways in which activations and weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Types {
    F32,
    /// float16 constants, behind the DEQUANTIZE that files have.
    HalfWeights,
    I8,
    U8,
    /// int8 weights on floats.
    Dynamic,
    /// int4 weights on floats, and on int8.
    DynamicI4,
    NibblesI8,
    /// int2 weights on floats, and on int8.
    DynamicI2,
    PairsI8,
    /// A filter and a bias that are no constants.
    Computed,
    /// The same in 8 bits; the bias is a constant.
    ComputedI8,
    ComputedU8,
}

impl Types {
    fn are_integers(self) -> bool {
        use Types::*;
        matches!(self, I8 | U8 | NibblesI8 | PairsI8 | ComputedI8 | ComputedU8)
    }
}

/// Channel scales that differ, with one whose multiplier is exactly a power of two.
fn channel_scales(n: usize) -> Vec<f32> {
    (0..n).map(|i| if i % 5 == 2 { 1.0 / 128.0 } else { 0.004 + 0.0007 * (i % 11) as f32 }).collect()
}

/// Adds operand, weights and bias of that type; the weights' output channels lie at `axis`. Returns the operands, the
/// result's type and quantization, and the tolerance.
fn operands(
    c: &mut Case,
    types: Types,
    x: &[usize],
    w: &[usize],
    axis: usize,
) -> (Vec<usize>, DType, Option<(f32, i64)>) {
    let channels = w[axis];
    let per_channel = |scale: Vec<f32>| Quant { zero_point: vec![0; scale.len()], scale, axis, ..Quant::default() };
    match types {
        Types::F32 => {
            let x = c.input(DType::F32, x, -2.0, 2.0);
            let w = c.weights(DType::F32, w, -1.0, 1.0, None);
            let b = c.weights(DType::F32, &[channels], -1.0, 1.0, None);
            (vec![x, w, b], DType::F32, None)
        }
        Types::HalfWeights => {
            let x = c.input(DType::F32, x, -2.0, 2.0);
            let mut list = vec![x];
            for shape in [w, &[channels]] {
                let half = c.weights(DType::F16, shape, -1.0, 1.0, None);
                let wide = c.op(Op::Dequantize, &[half], DType::F32, None);
                c.graph().outputs.retain(|&t| t != wide);
                list.push(wide);
            }
            (list, DType::F32, None)
        }
        Types::I8 => {
            let x = c.int8(x, 0.05, -5);
            let w = c.weights(DType::I8, w, -127.0, 127.0, Some(per_channel(channel_scales(channels))));
            let b = c.weights(DType::I32, &[channels], -2000.0, 2000.0, None);
            (vec![x, w, b], DType::I8, Some((0.4, 3)))
        }
        Types::U8 => {
            let x = c.uint8(x, 0.05, 120);
            let w = c.weights(DType::U8, w, 0.0, 255.0, Some(Quant::scalar(0.011, 131)));
            let b = c.weights(DType::I32, &[channels], -2000.0, 2000.0, None);
            (vec![x, w, b], DType::U8, Some((0.5, 100)))
        }
        Types::Dynamic => {
            let x = c.input(DType::F32, x, -2.0, 2.0);
            let w = c.weights(DType::I8, w, -127.0, 127.0, Some(per_channel(channel_scales(channels))));
            let b = c.weights(DType::F32, &[channels], -1.0, 1.0, None);
            (vec![x, w, b], DType::F32, None)
        }
        Types::DynamicI4 => {
            let x = c.input(DType::F32, x, -2.0, 2.0);
            let scale = (0..channels).map(|i| 0.06 + 0.01 * (i % 9) as f32).collect();
            let w = c.nibbles(w, per_channel(scale));
            let b = c.weights(DType::F32, &[channels], -1.0, 1.0, None);
            (vec![x, w, b], DType::F32, None)
        }
        Types::NibblesI8 => {
            let x = c.int8(x, 0.05, -5);
            let w = c.nibbles(w, per_channel(channel_scales(channels)));
            let b = c.weights(DType::I32, &[channels], -2000.0, 2000.0, None);
            (vec![x, w, b], DType::I8, Some((0.04, 3)))
        }
        Types::DynamicI2 => {
            let x = c.input(DType::F32, x, -2.0, 2.0);
            let scale = (0..channels).map(|i| 0.2 + 0.06 * (i % 9) as f32).collect();
            let w = c.bits(DType::I2, w, per_channel(scale));
            let b = c.weights(DType::F32, &[channels], -1.0, 1.0, None);
            (vec![x, w, b], DType::F32, None)
        }
        Types::PairsI8 => {
            let x = c.int8(x, 0.05, -5);
            let w = c.bits(DType::I2, w, per_channel(channel_scales(channels)));
            let b = c.weights(DType::I32, &[channels], -200.0, 200.0, None);
            (vec![x, w, b], DType::I8, Some((0.02, 3)))
        }
        Types::Computed => {
            let x = c.input(DType::F32, x, -2.0, 2.0);
            let w = c.input(DType::F32, w, -1.0, 1.0);
            let b = c.input(DType::F32, &[channels], -1.0, 1.0);
            (vec![x, w, b], DType::F32, None)
        }
        Types::ComputedI8 => {
            let x = c.int8(x, 0.05, -5);
            // Ignored, as the reference does.
            let w = c.int8(w, 0.01, -1);
            let b = c.weights(DType::I32, &[channels], -2000.0, 2000.0, None);
            (vec![x, w, b], DType::I8, Some((0.4, 3)))
        }
        Types::ComputedU8 => {
            let x = c.uint8(x, 0.05, 120);
            let w = c.uint8(w, 0.011, 131);
            let b = c.weights(DType::I32, &[channels], -2000.0, 2000.0, None);
            (vec![x, w, b], DType::U8, Some((0.5, 100)))
        }
    }
}

fn tolerance(types: Types, depth: usize) -> Tolerance {
    match types {
        _ if types.are_integers() => Tolerance::Exact,
        // The CPU quantizes activations to 8 bits as the reference does; the GPU keeps them: half a step (of 4 / 255) of
        // every factor, with weights of up to 1.4.
        Types::Dynamic | Types::DynamicI4 | Types::DynamicI2 => {
            Tolerance::Float { abs: 0.02 * (depth as f32).sqrt() + 0.01, rel: 0.01 }
        }
        // Sums of `depth` products of magnitude 2 in another order; with f16 storage the weights are rounded too, which
        // fill() avoids by choosing halves.
        _ => Tolerance::Float { abs: 4e-7 * depth as f32 + 1e-6, rel: 4e-6 },
    }
}

fn run(case: Case, types: Types) {
    match types.are_integers() {
        true => case.run_in(&[Config::F32, Config::NoSubgroups]),
        false => case.run(),
    }
}

fn padding(same: bool) -> Padding {
    if same { Padding::SAME } else { Padding::VALID }
}

fn dense(types: Types, v: Conv) {
    grouped(types, v, 1);
}

fn convolution(types: Types, v: Conv, groups: usize) -> Case {
    let seen = v.x[3] / groups;
    let depth = v.k[0] * v.k[1] * seen;
    let mut c = Case::new(format!("CONV_2D {types:?} {v:?} in {groups} groups"), tolerance(types, depth));
    let (operands, dtype, quant) = operands(&mut c, types, &v.x, &[v.out, v.k[0], v.k[1], seen], 0);
    let o = Conv2DOptionsT {
        padding: padding(v.same),
        stride_h: v.stride[0],
        stride_w: v.stride[1],
        dilation_h_factor: v.dilation[0],
        dilation_w_factor: v.dilation[1],
        fused_activation_function: v.act,
        ..Default::default()
    };
    c.op(Op::Conv2d(o), &operands, dtype, quant);
    c
}

fn grouped(types: Types, v: Conv, groups: usize) {
    run(convolution(types, v, groups), types);
}

fn depthwise(types: Types, v: Conv) {
    let depth = v.k[0] * v.k[1];
    let mut c = Case::new(format!("DEPTHWISE_CONV_2D {types:?} {v:?}"), tolerance(types, depth));
    let (operands, dtype, quant) = operands(&mut c, types, &v.x, &[1, v.k[0], v.k[1], v.out], 3);
    let o = DepthwiseConv2DOptionsT {
        padding: padding(v.same),
        stride_h: v.stride[0],
        stride_w: v.stride[1],
        dilation_h_factor: v.dilation[0],
        dilation_w_factor: v.dilation[1],
        depth_multiplier: (v.out / v.x[3]) as i32,
        fused_activation_function: v.act,
    };
    c.op(Op::DepthwiseConv2d(o), &operands, dtype, quant);
    run(c, types);
}

fn transposed(types: Types, v: Conv, out: [usize; 2]) {
    let depth = v.k[0] * v.k[1] * v.x[3];
    let mut c = Case::new(format!("TRANSPOSE_CONV {types:?} {v:?} {out:?}"), tolerance(types, depth));
    let shape = c.i32s(&[v.x[0] as i32, out[0] as i32, out[1] as i32, v.out as i32]);
    let (operands, dtype, quant) = operands(&mut c, types, &v.x, &[v.out, v.k[0], v.k[1], v.x[3]], 0);
    let o = TransposeConvOptionsT {
        padding: padding(v.same),
        stride_h: v.stride[0],
        stride_w: v.stride[1],
        fused_activation_function: v.act,
        ..Default::default()
    };
    c.op(Op::TransposeConv(o), &[shape, operands[1], operands[0], operands[2]], dtype, quant);
    run(c, types);
}

/// Sizes around the tile of 16 pixels by 8 channels and the step of 8 inputs; odd numbers of quads; batches.
fn shapes() -> Vec<Conv> {
    vec![
        conv([1, 1, 1, 1], 1, [1, 1], 1, 1, true),
        conv([1, 3, 5, 7], 7, [1, 1], 1, 1, true),
        conv([1, 4, 4, 8], 8, [1, 1], 1, 1, true),
        conv([1, 1, 17, 9], 9, [1, 1], 1, 1, true),
        conv([2, 4, 4, 16], 20, [1, 1], 1, 1, true),
        conv([2, 5, 5, 3], 5, [3, 3], 2, 1, true),
        conv([1, 9, 8, 12], 20, [3, 3], 1, 1, true),
        conv([1, 9, 8, 12], 8, [3, 3], 1, 2, true),
        conv([3, 11, 4, 28], 36, [2, 3], 2, 1, false),
        conv([1, 16, 17, 1], 9, [5, 5], 2, 1, true),
        conv([1, 17, 16, 5], 1, [5, 4], 1, 1, true),
        conv([1, 7, 7, 8], 16, [7, 7], 1, 1, false),
        Conv { stride: [2, 1], dilation: [1, 3], ..conv([1, 9, 12, 6], 10, [3, 3], 1, 1, true) },
        Conv { act: RELU6, ..conv([1, 6, 6, 16], 24, [3, 3], 1, 1, true) },
    ]
}

#[test]
fn conv_2d_f32() {
    shapes().into_iter().for_each(|v| dense(Types::F32, v));
}

#[test]
fn conv_2d_half_weights() {
    shapes().into_iter().step_by(2).for_each(|v| dense(Types::HalfWeights, v));
}

#[test]
fn conv_2d_i8() {
    shapes().into_iter().for_each(|v| dense(Types::I8, v));
}

#[test]
fn conv_2d_u8() {
    shapes().into_iter().for_each(|v| dense(Types::U8, v));
}

#[test]
fn conv_2d_dynamic() {
    shapes().into_iter().skip(1).step_by(3).for_each(|v| dense(Types::Dynamic, v));
}

#[test]
fn conv_2d_few_bits() {
    for types in [Types::DynamicI4, Types::NibblesI8, Types::DynamicI2, Types::PairsI8] {
        shapes().into_iter().for_each(|v| dense(types, v));
    }
}

/// Groups of whole quads and of odd numbers of channels, as many as there are channels, and outputs that share none.
#[test]
fn conv_2d_in_groups() {
    use Types::*;
    for types in [F32, HalfWeights, I8, U8, Dynamic, NibblesI8, PairsI8, Computed, ComputedI8, ComputedU8] {
        for (v, groups) in [
            (conv([1, 5, 6, 16], 8, [3, 3], 1, 1, true), 4),
            (conv([2, 7, 5, 6], 9, [2, 3], 2, 1, false), 3),
            (conv([1, 4, 4, 10], 10, [1, 1], 1, 1, true), 2),
            (conv([1, 9, 9, 5], 15, [3, 3], 1, 2, true), 5),
            (Conv { act: RELU6, ..conv([1, 20, 1, 64], 64, [1, 1], 1, 1, true) }, 2),
        ] {
            grouped(types, v, groups);
        }
    }
}

#[test]
fn conv_2d_computed_filter() {
    for types in [Types::Computed, Types::ComputedI8, Types::ComputedU8] {
        shapes().into_iter().for_each(|v| dense(types, v));
    }
}

/// More pixel tiles than a direction of a dispatch may have.
#[test]
fn conv_2d_many_groups() {
    dense(Types::I8, conv([1, 1100, 1000, 1], 1, [1, 1], 1, 1, true));
}

fn depthwise_shapes() -> Vec<Conv> {
    let of =
        |x: [usize; 4], k: usize, stride: i32, dilation: i32, same: bool| conv(x, x[3], [k, k], stride, dilation, same);
    vec![
        of([1, 1, 1, 1], 3, 1, 1, true),
        of([1, 7, 9, 8], 3, 1, 1, true),
        of([2, 8, 17, 12], 3, 2, 1, true),
        of([1, 20, 20, 5], 5, 1, 1, true),
        of([1, 20, 19, 20], 5, 2, 1, true),
        of([1, 20, 30, 3], 3, 1, 4, true),
        of([1, 12, 12, 8], 3, 3, 1, false),
        of([2, 9, 33, 8], 7, 2, 1, false),
        of([1, 6, 6, 72], 3, 1, 1, true),
        Conv { k: [3, 5], ..of([1, 9, 9, 8], 3, 1, 1, true) },
        Conv { stride: [1, 2], ..of([1, 9, 9, 16], 3, 1, 1, true) },
        Conv { act: RELU6, ..of([1, 9, 9, 16], 3, 1, 1, true) },
        Conv { out: 8, ..of([1, 9, 9, 1], 3, 1, 1, true) },
        Conv { out: 15, ..of([1, 6, 7, 5], 3, 2, 1, true) },
        Conv { out: 12, ..of([2, 6, 7, 6], 2, 1, 1, false) },
    ]
}

#[test]
fn depthwise_f32() {
    depthwise_shapes().into_iter().for_each(|v| depthwise(Types::F32, v));
}

#[test]
fn depthwise_half_weights() {
    depthwise_shapes().into_iter().step_by(2).for_each(|v| depthwise(Types::HalfWeights, v));
}

#[test]
fn depthwise_i8() {
    depthwise_shapes().into_iter().for_each(|v| depthwise(Types::I8, v));
}

#[test]
fn depthwise_u8() {
    depthwise_shapes().into_iter().for_each(|v| depthwise(Types::U8, v));
}

#[test]
fn depthwise_dynamic() {
    depthwise_shapes().into_iter().skip(1).step_by(3).for_each(|v| depthwise(Types::Dynamic, v));
}

#[test]
fn depthwise_few_bits() {
    for types in [Types::DynamicI4, Types::NibblesI8, Types::DynamicI2, Types::PairsI8] {
        depthwise_shapes().into_iter().for_each(|v| depthwise(types, v));
    }
}

#[test]
fn depthwise_computed_filter() {
    for types in [Types::Computed, Types::ComputedI8, Types::ComputedU8] {
        depthwise_shapes().into_iter().for_each(|v| depthwise(types, v));
    }
}

/// (convolution, rows and columns of its result)
fn transposed_shapes() -> Vec<(Conv, [usize; 2])> {
    vec![
        (conv([1, 4, 5, 8], 8, [3, 3], 2, 1, true), [8, 10]),
        (conv([1, 4, 5, 8], 8, [3, 3], 2, 1, true), [7, 9]),
        (conv([2, 3, 3, 5], 3, [2, 2], 2, 1, false), [6, 6]),
        (conv([1, 3, 4, 12], 6, [4, 4], 2, 1, true), [6, 8]),
        (conv([1, 3, 3, 4], 9, [3, 2], 3, 1, false), [9, 8]),
        (conv([1, 5, 4, 8], 4, [3, 3], 1, 1, true), [5, 4]),
        (conv([1, 2, 2, 3], 2, [1, 1], 2, 1, true), [4, 4]),
        (Conv { act: RELU6, ..conv([1, 4, 4, 16], 16, [2, 2], 2, 1, false) }, [8, 8]),
    ]
}

#[test]
fn transpose_conv() {
    for (v, out) in transposed_shapes() {
        for types in [Types::F32, Types::I8, Types::U8, Types::HalfWeights, Types::NibblesI8] {
            transposed(types, v, out);
        }
    }
}

#[test]
fn transpose_conv_computed_filter() {
    for (v, out) in transposed_shapes() {
        for types in [Types::Computed, Types::ComputedI8, Types::ComputedU8] {
            transposed(types, v, out);
        }
    }
}

/// Element-wise operators behind a convolution become part of it.
#[test]
fn fused() {
    // In f16 a sum of magnitude 4 that is stored between two dispatches is off by 2^-10, and HARD_SWISH has a slope of at
    // most 1.5; the comparison widens `abs` eightfold there.
    let half = Tolerance::Float { abs: 2e-4, rel: 4e-6 };
    let full: &[Config] = &[Config::F32, Config::NoSubgroups];
    let f16: &[Config] = &[Config::F16Native, Config::F16Packed];
    for (channels, configs, tolerance) in
        [(8, full, tolerance(Types::F32, 64)), (12, full, tolerance(Types::F32, 64)), (8, f16, half), (12, f16, half)]
    {
        let mut c = Case::new(format!("CONV_2D, ADD, HARD_SWISH of {channels}"), tolerance);
        let (operands, ..) = operands(&mut c, Types::F32, &[1, 5, 7, 8], &[channels, 1, 1, 8], 0);
        let rest = c.input(DType::F32, &[1, 5, 7, channels], -1.0, 1.0);
        let o = Conv2DOptionsT { padding: Padding::SAME, stride_h: 1, stride_w: 1, ..Default::default() };
        let o = Conv2DOptionsT { dilation_h_factor: 1, dilation_w_factor: 1, ..o };
        let y = c.op(Op::Conv2d(o), &operands, DType::F32, None);
        let z = c.op(Op::Add(AddOptionsT::default()), &[y, rest], DType::F32, None);
        c.op(Op::HardSwish, &[z], DType::F32, None);
        c.graph().outputs.retain(|&t| t != y && t != z);
        c.run_in(configs);
    }
}

/// A convolution over depth too: sizes and attributes in the order depth, height, width.
#[derive(Debug, Clone, Copy)]
struct Volume {
    x: [usize; 5],
    out: usize,
    k: [usize; 3],
    stride: [i32; 3],
    dilation: [i32; 3],
    same: bool,
}

impl Volume {
    fn options(&self) -> Conv3DOptionsT {
        Conv3DOptionsT {
            padding: padding(self.same),
            stride_d: self.stride[0],
            stride_h: self.stride[1],
            stride_w: self.stride[2],
            dilation_d_factor: self.dilation[0],
            dilation_h_factor: self.dilation[1],
            dilation_w_factor: self.dilation[2],
            fused_activation_function: RELU6,
        }
    }
    fn tolerance(&self) -> Tolerance {
        tolerance(Types::F32, self.k.iter().product::<usize>() * self.x[4])
    }
}

fn volumes() -> Vec<Volume> {
    let of = |x, out, k, stride: i32, dilation: i32, same| Volume {
        x,
        out,
        k,
        stride: [stride; 3],
        dilation: [dilation; 3],
        same,
    };
    vec![
        of([1, 1, 1, 1, 1], 1, [1, 1, 1], 1, 1, true),
        of([2, 5, 6, 8, 3], 2, [2, 2, 2], 1, 1, true),
        of([1, 4, 5, 3, 8], 9, [3, 3, 3], 2, 1, true),
        of([2, 6, 4, 5, 5], 4, [3, 1, 2], 1, 2, false),
        of([1, 3, 4, 4, 12], 8, [1, 3, 3], 1, 1, true),
        Volume { stride: [2, 1, 3], ..of([1, 7, 5, 6, 4], 5, [2, 3, 2], 1, 1, false) },
    ]
}

#[test]
fn conv_3d() {
    for v in volumes() {
        for computed in [false, true] {
            let mut c = Case::new(format!("CONV_3D {v:?} {computed}"), v.tolerance());
            let x = c.input(DType::F32, &v.x, -2.0, 2.0);
            let shape = [v.k[0], v.k[1], v.k[2], v.x[4], v.out];
            let w = match computed {
                true => c.input(DType::F32, &shape, -1.0, 1.0),
                false => c.weights(DType::F32, &shape, -1.0, 1.0, None),
            };
            let b = c.weights(DType::F32, &[v.out], -1.0, 1.0, None);
            let operands = if computed { vec![x, w] } else { vec![x, w, b] };
            c.op(Op::Conv3d(v.options()), &operands, DType::F32, None);
            c.run();
        }
    }
}

#[test]
fn conv_3d_transpose() {
    for v in volumes().into_iter().filter(|v| v.dilation == [1; 3]) {
        for computed in [false, true] {
            let mut c = Case::new(format!("CONV_3D_TRANSPOSE {v:?} {computed}"), v.tolerance());
            let size = |d: usize| {
                let n = (v.x[d + 1] as i32) * v.stride[d];
                if v.same { n } else { n + (v.k[d] as i32 - v.stride[d]).max(0) }
            };
            let out = c.i32s(&[v.x[0] as i32, size(0), size(1), size(2), v.out as i32]);
            let shape = [v.k[0], v.k[1], v.k[2], v.out, v.x[4]];
            let w = match computed {
                true => c.input(DType::F32, &shape, -1.0, 1.0),
                false => c.weights(DType::F32, &shape, -1.0, 1.0, None),
            };
            let x = c.input(DType::F32, &v.x, -2.0, 2.0);
            let b = c.weights(DType::F32, &[v.out], -1.0, 1.0, None);
            let operands = if computed { vec![out, w, x] } else { vec![out, w, x, b] };
            c.op(Op::Conv3dTranspose(v.options()), &operands, DType::F32, None);
            c.run();
        }
    }
}

/// GPUs multiply four int8 at a time as they are stored, adapters that run shaders on the CPU one by one.
#[test]
fn int8_by_fours() {
    for (rows, packed, config) in [(1, true, Config::Gpu), (9, true, Config::Gpu), (9, false, Config::F32)] {
        let mut c = Case::new(format!("packed dots of {rows} rows, {config:?}"), Tolerance::Exact);
        let x = c.int8(&[1, rows, 3, 13], 0.02, -128);
        let w = c.weights(DType::I8, &[7, 1, 3, 13], -127.0, 127.0, Some(Quant::scalar(0.01, 0)));
        let bias = c.weights(DType::I32, &[7], -9000.0, 9000.0, Some(Quant::scalar(2e-4, 0)));
        let o = Conv2DOptionsT { padding: Padding::VALID, stride_w: 1, stride_h: 1, ..Default::default() };
        let o = Conv2DOptionsT { dilation_w_factor: 1, dilation_h_factor: 1, ..o };
        c.op(Op::Conv2d(o), &[x, w, bias], DType::I8, Some((0.1, 3)));
        let shapes = infer(&mut c.model).unwrap();
        let Some(engine) = engine(config) else { return };
        let options = litegpu_delegate::PlanOptions { force_gpu: true, ..Default::default() };
        let plan = gpu_plan(&c.model, &shapes, engine.caps(), &options).unwrap();
        let keys: Vec<_> = plan.programs().flat_map(|p| &p.kernels).collect();
        assert_eq!(keys.iter().any(|k| k.parts.iter().any(|p| p.1 == "dots_packed")), packed, "{rows} {config:?}");
        c.run_in(&[config]);
    }
}

/// Products large enough for tiles, by cooperative matrices where the adapter has them: of 8 by 8 floats, and of 16 by 16
/// halves where operands and weights are such.
#[test]
fn large_products() {
    let windows = Conv { stride: [2, 1], ..conv([1, 95, 45, 7], 250, [3, 2], 1, 1, true) };
    for v in [conv([1, 45, 47, 20], 200, [1, 1], 1, 1, true), conv([3, 40, 40, 27], 130, [2, 3], 1, 2, false), windows]
    {
        for types in [Types::F32, Types::HalfWeights] {
            for config in [Config::Gpu, Config::GpuNative] {
                let mut c = convolution(types, v, 1);
                let shapes = infer(&mut c.model).unwrap();
                let Some(engine) = engine(config) else { return };
                let options = litegpu_delegate::PlanOptions {
                    precision: config.precision(),
                    force_gpu: true,
                    ..Default::default()
                };
                let plan = gpu_plan(&c.model, &shapes, engine.caps(), &options).unwrap();
                let matrices = engine.caps().matrices;
                let halves = matrices.f16.is_some() && config == Config::GpuNative && types == Types::HalfWeights;
                let want = if matrices.f32 || halves { "conv_coop" } else { "conv_tile" };
                if matrices == litegpu_delegate::Matrices::default() {
                    eprintln!("without cooperative matrices: {} has none", engine.caps().name);
                }
                let keys: Vec<_> = plan.programs().flat_map(|p| &p.kernels).collect();
                assert!(keys.iter().any(|k| k.kernel == want), "{v:?} {types:?} {config:?}: {keys:?}");
                c.run_in(&[config]);
            }
        }
    }
}
