//! Operators that move elements, and reshapes.

mod common;
use common::*;
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Op};

/// The case in f32, in int8 and in int32: moving is exact in all.
fn every(name: &str, shape: &[usize], build: impl Fn(&mut Case, usize, DType, Option<(f32, i64)>)) {
    for dtype in [DType::F32, DType::I8, DType::I32] {
        let mut c = Case::new(format!("{name} {dtype} {shape:?}"), Tolerance::Exact);
        let q = (dtype == DType::I8).then_some((0.5, -7));
        let x = c.quantized(dtype, shape, -100.0, 100.0, q);
        build(&mut c, x, dtype, q);
        c.run_in(if dtype == DType::F32 { &CONFIGS[..3] } else { &CONFIGS[..1] });
    }
}

#[test]
fn reshape() {
    for (from, to) in [
        (&[2usize, 3, 4][..], &[6i32, 4][..]),
        (&[2, 3, 4], &[24]),
        (&[2, 3, 5], &[5, 6]),
        (&[1, 1, 1, 7], &[7]),
        (&[3, 8], &[2, 12]),
        (&[2, 6], &[3, 2, 2]),
        (&[], &[1, 1]),
        (&[13], &[13, 1]),
    ] {
        every(&format!("RESHAPE to {to:?}"), from, |c, x, d, q| {
            let s = c.i32s(to);
            c.op(Op::Reshape(ReshapeOptionsT { new_shape: Some(to.to_vec()) }), &[x, s], d, q);
        });
    }
}

#[test]
fn transpose() {
    for (shape, order) in [
        (&[3usize, 5][..], &[1i32, 0][..]),
        (&[2, 3, 4], &[0, 2, 1]),
        (&[2, 3, 8], &[1, 0, 2]),
        (&[2, 3, 4, 5], &[3, 1, 0, 2]),
        (&[1, 4, 6, 8], &[0, 3, 1, 2]),
        (&[2, 2, 3, 2, 5], &[4, 2, 0, 3, 1]),
    ] {
        every(&format!("TRANSPOSE {order:?}"), shape, |c, x, d, q| {
            let p = c.i32s(order);
            c.op(Op::Transpose, &[x, p], d, q);
        });
    }
}

#[test]
fn slices() {
    for (shape, begin, size) in [
        (&[5usize, 7][..], &[1i32, 2][..], &[3i32, 4][..]),
        (&[4, 4, 8], &[1, 0, 4], &[2, 4, 4]),
        (&[2, 3, 4, 5], &[0, 1, 2, 1], &[2, -1, 2, 3]),
        (&[9], &[3], &[5]),
    ] {
        every(&format!("SLICE {begin:?} {size:?}"), shape, |c, x, d, q| {
            let (b, s) = (c.i32s(begin), c.i32s(size));
            c.op(Op::Slice, &[x, b, s], d, q);
        });
    }
    let masks = |begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask| StridedSliceOptionsT {
        begin_mask,
        end_mask,
        ellipsis_mask,
        new_axis_mask,
        shrink_axis_mask,
        offset: false,
    };
    let list: Vec<(&[usize], &[i32], &[i32], &[i32], StridedSliceOptionsT)> = vec![
        (&[9], &[1], &[8], &[2], masks(0, 0, 0, 0, 0)),
        (&[9], &[-1], &[0], &[-2], masks(0, 1, 0, 0, 0)),
        (&[5, 7], &[0, 1], &[5, 6], &[2, 3], masks(1, 0, 0, 0, 0)),
        (&[5, 7], &[2, 0], &[3, 7], &[1, 1], masks(0, 0, 0, 0, 1)),
        (&[5, 7], &[0, 3], &[5, 4], &[1, 1], masks(0, 0, 0, 0, 2)),
        (&[5, 7], &[-4, -20], &[20, 20], &[3, 1], masks(0, 0, 0, 0, 0)),
        (&[4, 6, 8], &[0, 2, 0], &[0, 5, 0], &[1, 1, 1], masks(0b101, 0b101, 0, 0, 0)),
        (&[2, 3, 4, 5], &[0, 1, 0], &[0, 3, 0], &[1, 1, 1], masks(0, 0, 1, 4, 0)),
    ];
    for (i, (shape, begin, end, step, o)) in list.into_iter().enumerate() {
        every(&format!("STRIDED_SLICE {i}"), shape, |c, x, d, q| {
            let (b, e, s) = (c.i32s(begin), c.i32s(end), c.i32s(step));
            c.op(Op::StridedSlice(o.clone()), &[x, b, e, s], d, q);
        });
    }
}

#[test]
fn pads() {
    for (shape, amounts) in [
        (&[5usize][..], &[2i32, 1][..]),
        (&[3, 5], &[1, 0, 2, 2]),
        (&[2, 3, 4], &[0, 0, 1, 1, 0, 0]),
        (&[1, 3, 3, 8], &[0, 0, 1, 2, 1, 2, 0, 0]),
        (&[1, 3, 3, 6], &[0, 0, 0, 1, 0, 0, 1, 3]),
        (&[1, 2, 3, 2, 3], &[0, 0, 1, 1, 0, 0, 1, 0, 1, 1]),
    ] {
        let rows = [amounts.len() / 2, 2];
        every(&format!("PAD {amounts:?}"), shape, |c, x, d, q| {
            let p = c.i32s_of(&rows, amounts);
            c.op(Op::Pad, &[x, p], d, q);
        });
    }
    for mode in [MirrorPadMode::REFLECT, MirrorPadMode::SYMMETRIC] {
        for (shape, amounts) in
            [(&[5usize][..], &[2i32, 1][..]), (&[3, 5], &[1, 0, 2, 2]), (&[3, 3, 8], &[2, 1, 0, 1, 0, 0])]
        {
            let rows = [amounts.len() / 2, 2];
            every(&format!("MIRROR_PAD {mode:?} {amounts:?}"), shape, |c, x, d, q| {
                let p = c.i32s_of(&rows, amounts);
                c.op(Op::MirrorPad(MirrorPadOptionsT { mode }), &[x, p], d, q);
            });
        }
    }
}

#[test]
fn joins() {
    for (axis, shapes) in [
        (3i32, &[&[1usize, 2, 3, 4][..], &[1, 2, 3, 8]][..]),
        (-1, &[&[1, 2, 3, 3], &[1, 2, 3, 2], &[1, 2, 3, 6]]),
        (1, &[&[2, 3, 5], &[2, 1, 5]]),
        (0, &[&[3], &[5], &[2], &[1]]),
        (2, &[&[2, 2, 5, 3], &[2, 2, 1, 3]]),
    ] {
        for dtype in [DType::F32, DType::I8, DType::I32] {
            let mut c = Case::new(format!("CONCATENATION {dtype} {axis} {shapes:?}"), Tolerance::Exact);
            let q = (dtype == DType::I8).then_some((0.5, -7));
            let xs: Vec<usize> = shapes.iter().map(|s| c.quantized(dtype, s, -100.0, 100.0, q)).collect();
            c.op(Op::Concatenation(ConcatenationOptionsT { axis, ..Default::default() }), &xs, dtype, q);
            c.run_in(if dtype == DType::F32 { &CONFIGS[..3] } else { &CONFIGS[..1] });
        }
    }
    for (axis, shape) in [(0i32, &[3usize, 5][..]), (1, &[3, 5]), (-1, &[3, 5]), (0, &[]), (2, &[2, 3, 8])] {
        every(&format!("PACK {axis}"), shape, |c, x, d, q| {
            let y = c.quantized(d, shape, -9.0, 9.0, q);
            let z = c.quantized(d, shape, -9.0, 9.0, q);
            c.op(Op::Pack(PackOptionsT { axis, values_count: 3 }), &[x, y, z], d, q);
        });
    }
}

#[test]
fn splits() {
    for (axis, shape, n) in
        [(1i32, &[3usize, 6][..], 3i32), (-1, &[2, 2, 9], 3), (0, &[4, 5], 2), (1, &[2, 4, 3, 8], 2)]
    {
        every(&format!("SPLIT {axis} {n}"), shape, |c, x, d, q| {
            let a = c.i32s_of(&[], &[axis]);
            c.ops(Op::Split(SplitOptionsT { num_splits: n }), &[a, x], &vec![d; n as usize], q);
        });
    }
    every("SPLIT_V", &[2, 9], |c, x, d, q| {
        let (s, a) = (c.i32s(&[2, 3, 4]), c.i32s_of(&[], &[1]));
        c.ops(Op::SplitV(SplitVOptionsT { num_splits: 3 }), &[x, s, a], &[d; 3], q);
    });
    for (axis, shape) in [(0i32, &[3usize, 5][..]), (1, &[3, 3]), (-1, &[2, 5, 3])] {
        every(&format!("UNPACK {axis}"), shape, |c, x, d, q| {
            c.ops(Op::Unpack(UnpackOptionsT { num: 3, axis }), &[x], &[d; 3], q);
        });
    }
}

#[test]
fn repeats() {
    for (shape, times) in [(&[3usize][..], &[4i32][..]), (&[2, 3], &[2, 3]), (&[2, 1, 8], &[1, 3, 2])] {
        every(&format!("TILE {times:?}"), shape, |c, x, d, q| {
            let t = c.i32s(times);
            c.op(Op::Tile, &[x, t], d, q);
        });
    }
    for (shape, to) in
        [(&[3usize, 1][..], &[3i32, 5][..]), (&[5], &[2, 3, 5]), (&[2, 1, 8], &[2, 3, 8]), (&[], &[3, 3])]
    {
        every(&format!("BROADCAST_TO {to:?}"), shape, |c, x, d, q| {
            let t = c.i32s(to);
            c.op(Op::BroadcastTo, &[x, t], d, q);
        });
    }
    for (shape, axes) in [(&[5usize][..], &[0i32][..]), (&[3, 5], &[1]), (&[2, 3, 8], &[1]), (&[2, 3, 4], &[0, 2])] {
        every(&format!("REVERSE_V2 {axes:?}"), shape, |c, x, d, q| {
            let t = c.i32s(axes);
            c.op(Op::ReverseV2, &[x, t], d, q);
        });
    }
}

#[test]
fn space_and_depth() {
    for (shape, block) in [(&[1usize, 2, 3, 8][..], 2i32), (&[2, 2, 2, 12], 2), (&[1, 1, 2, 9], 3)] {
        every(&format!("DEPTH_TO_SPACE {block}"), shape, |c, x, d, q| {
            c.op(Op::DepthToSpace(DepthToSpaceOptionsT { block_size: block }), &[x], d, q);
        });
    }
    for (shape, block) in [(&[1usize, 4, 6, 2][..], 2i32), (&[2, 2, 4, 3], 2), (&[1, 4, 4, 4], 2)] {
        every(&format!("SPACE_TO_DEPTH {block}"), shape, |c, x, d, q| {
            c.op(Op::SpaceToDepth(SpaceToDepthOptionsT { block_size: block }), &[x], d, q);
        });
    }
    for (shape, block, pads) in
        [(&[1usize, 4, 6, 3][..], &[2i32, 3][..], &[0i32, 0, 0, 0][..]), (&[2, 3, 5, 8], &[2, 2], &[1, 0, 0, 1])]
    {
        every(&format!("SPACE_TO_BATCH_ND {block:?} {pads:?}"), shape, |c, x, d, q| {
            let (b, p) = (c.i32s(block), c.i32s_of(&[block.len(), 2], pads));
            c.op(Op::SpaceToBatchNd, &[x, b, p], d, q);
        });
    }
    for (shape, block, crops) in
        [(&[8usize, 2, 3, 3][..], &[2i32, 2][..], &[0i32, 0, 0, 0][..]), (&[4, 3, 2, 8], &[2, 2], &[1, 0, 0, 1])]
    {
        every(&format!("BATCH_TO_SPACE_ND {block:?} {crops:?}"), shape, |c, x, d, q| {
            let (b, p) = (c.i32s(block), c.i32s_of(&[block.len(), 2], crops));
            c.op(Op::BatchToSpaceNd, &[x, b, p], d, q);
        });
    }
}

#[test]
fn past_65535_workgroups() {
    let mut c = Case::new("RELU, more than 65,535 workgroups", Tolerance::Exact);
    let x = c.input(DType::I32, &[4_200_003, 4], -9.0, 9.0);
    c.op(Op::Neg, &[x], DType::I32, None);
    c.run_in(&[Config::F32]);
}

/// Starts before and behind what fits, constant and computed.
#[test]
fn updates() {
    for (shape, size, low, high) in [
        (&[9usize][..], &[4usize][..], -2, 9),
        (&[5, 7], &[2, 3], -1, 6),
        (&[5, 7], &[1, 7], 0, 4),
        (&[4, 3, 8], &[2, 3, 8], -3, 3),
        (&[2, 6, 3, 5], &[2, 1, 3, 5], 0, 5),
        (&[2, 3, 2, 3, 4], &[1, 2, 2, 2, 4], 0, 1),
    ] {
        for constant in [false, true] {
            every(&format!("DYNAMIC_UPDATE_SLICE {size:?} {constant}"), shape, |c, x, d, q| {
                let u = c.quantized(d, size, -100.0, 100.0, q);
                let rank = shape.len();
                let at = match constant {
                    true => c.weights(DType::I64, &[rank], low as f64, high as f64, None),
                    false => c.input(DType::I32, &[rank], low as f64, high as f64),
                };
                c.op(Op::DynamicUpdateSlice, &[x, u, at], d, q);
            });
        }
    }
}

#[test]
fn reversed_sequences() {
    for (shape, seq_dim, batch_dim) in [
        (&[5usize, 7][..], 1, 0),
        (&[5, 7], 0, 1),
        (&[3, 4, 6], 1, 0),
        (&[3, 4, 6], 2, 0),
        (&[3, 4, 6], 0, 2),
        (&[2, 3, 4, 8], 0, 1),
        (&[2, 3, 2, 4, 3], 3, 1),
    ] {
        for constant in [false, true] {
            every(&format!("REVERSE_SEQUENCE {seq_dim} {batch_dim} {constant}"), shape, |c, x, d, q| {
                let (n, most) = (shape[batch_dim as usize], shape[seq_dim as usize] as f64);
                let lengths = match constant {
                    true => c.weights(DType::I64, &[n], 0.0, most, None),
                    false => c.input(DType::I32, &[n], 0.0, most),
                };
                c.op(Op::ReverseSequence(ReverseSequenceOptionsT { seq_dim, batch_dim }), &[x, lengths], d, q);
            });
        }
    }
}
