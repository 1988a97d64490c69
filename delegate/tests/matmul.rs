//! Matrix products against the CPU.

mod common;
use common::*;
use litegpu_graph::schema::*;
use litegpu_graph::{Blockwise, DType, Op, Quant};

fn tolerance(depth: usize) -> Tolerance {
    Tolerance::Float { abs: 4e-7 * depth as f32 + 1e-6, rel: 4e-6 }
}

fn fully_connected(dtype: DType, wtype: DType, x: &[usize], units: usize, depth: usize, bias: bool) {
    let tolerance = match (dtype, wtype) {
        (DType::I8 | DType::U8, _) => Tolerance::Exact,
        // The CPU quantizes rows of activations to 8 bits; the GPU does not.
        (_, DType::I8 | DType::I4 | DType::I2) => {
            Tolerance::Float { abs: 0.02 * (depth as f32).sqrt() + 0.01, rel: 0.01 }
        }
        _ => tolerance(depth),
    };
    let name = format!("FULLY_CONNECTED {dtype} {wtype} {x:?} to {units} of {depth}, bias {bias}");
    let mut c = Case::new(name, tolerance);
    let scales: Vec<f32> =
        (0..units).map(|i| if i % 4 == 1 { 1.0 / 64.0 } else { 0.003 + 0.0009 * (i % 7) as f32 }).collect();
    let per_channel = Quant { zero_point: vec![0; units], scale: scales, ..Quant::default() };
    let wider = |by: f32| Quant { scale: per_channel.scale.iter().map(|s| s * by).collect(), ..per_channel.clone() };
    let (nibbles, pairs) = (|| wider(16.0), || wider(64.0));
    let (x, w, b, out) = match (dtype, wtype) {
        (DType::I8, DType::I4) => (
            c.int8(x, 0.0625, -5),
            c.nibbles(&[units, depth], nibbles()),
            c.weights(DType::I32, &[units], -2000.0, 2000.0, None),
            Some((0.5, 3)),
        ),
        (_, DType::I4) => (
            c.input(DType::F32, x, -2.0, 2.0),
            c.nibbles(&[units, depth], nibbles()),
            c.weights(DType::F32, &[units], -1.0, 1.0, None),
            None,
        ),
        (DType::I8, DType::I2) => (
            c.int8(x, 0.0625, -5),
            c.bits(DType::I2, &[units, depth], pairs()),
            c.weights(DType::I32, &[units], -200.0, 200.0, None),
            Some((0.5, 3)),
        ),
        (_, DType::I2) => (
            c.input(DType::F32, x, -2.0, 2.0),
            c.bits(DType::I2, &[units, depth], pairs()),
            c.weights(DType::F32, &[units], -1.0, 1.0, None),
            None,
        ),
        (DType::I8, _) => (
            c.int8(x, 0.0625, -5),
            c.weights(DType::I8, &[units, depth], -127.0, 127.0, Some(per_channel)),
            c.weights(DType::I32, &[units], -2000.0, 2000.0, None),
            Some((0.5, 3)),
        ),
        (DType::U8, _) => (
            c.uint8(x, 0.05, 120),
            c.weights(DType::U8, &[units, depth], 0.0, 255.0, Some(Quant::scalar(0.011, 131))),
            c.weights(DType::I32, &[units], -2000.0, 2000.0, None),
            Some((0.5, 100)),
        ),
        (_, DType::I8) => (
            c.input(DType::F32, x, -2.0, 2.0),
            c.weights(DType::I8, &[units, depth], -127.0, 127.0, Some(per_channel)),
            c.weights(DType::F32, &[units], -1.0, 1.0, None),
            None,
        ),
        _ => (
            c.input(DType::F32, x, -2.0, 2.0),
            c.weights(DType::F32, &[units, depth], -1.0, 1.0, None),
            c.weights(DType::F32, &[units], -1.0, 1.0, None),
            None,
        ),
    };
    let operands = if bias { vec![x, w, b] } else { vec![x, w] };
    let keep = c.graph().tensors[x].shape.last() == Some(&depth) && c.graph().tensors[x].shape.len() > 2;
    let o = FullyConnectedOptionsT { keep_num_dims: keep, ..Default::default() };
    c.op(Op::FullyConnected(o), &operands, dtype, out);
    match dtype {
        DType::F32 => c.run(),
        _ => c.run_in(&[Config::F32, Config::NoSubgroups]),
    }
}

fn sizes(dtype: DType, wtype: DType) {
    for (x, units, depth, bias) in [
        (&[1usize, 1][..], 1, 1, true),
        (&[1, 9], 7, 9, true),
        (&[3, 64], 10, 64, false),
        (&[7, 33], 33, 33, true),
        (&[8, 8], 8, 8, true),
        (&[17, 20], 9, 20, true),
        (&[2, 5, 12], 16, 12, true),
        (&[1, 4, 4, 8], 24, 128, true),
        (&[2, 3, 3, 5], 6, 45, true),
    ] {
        fully_connected(dtype, wtype, x, units, depth, bias);
    }
}

#[test]
fn fully_connected_f32() {
    sizes(DType::F32, DType::F32);
}

#[test]
fn fully_connected_i8() {
    sizes(DType::I8, DType::I8);
}

#[test]
fn fully_connected_u8() {
    sizes(DType::U8, DType::U8);
}

#[test]
fn fully_connected_dynamic() {
    sizes(DType::F32, DType::I8);
}

#[test]
fn fully_connected_few_bits() {
    for few in [DType::I4, DType::I2] {
        sizes(DType::F32, few);
        sizes(DType::I8, few);
    }
}

/// int4 weights with a scale of its own for every few inputs.
#[test]
fn fully_connected_blocks() {
    for (rows, units, depth, block_size) in
        [(1usize, 3usize, 32usize, 32usize), (1, 8, 64, 32), (5, 17, 96, 32), (19, 6, 48, 16), (2, 9, 32, 8)]
    {
        // As above: half a step of the CPU's quantized rows in every factor, which is up to 1.3 here.
        let tolerance = Tolerance::Float { abs: 0.02 * (depth as f32).sqrt() + 0.01, rel: 0.01 };
        let mut c = Case::new(format!("FULLY_CONNECTED {rows} {units} {depth} in blocks of {block_size}"), tolerance);
        let x = c.input(DType::F32, &[rows, depth], -2.0, 2.0);
        let scales = c.weights(DType::F16, &[units, depth / block_size], 0.01, 0.16, None);
        let blockwise = Some(Blockwise { scales, zero_points: None, block_size });
        let w = c.nibbles(&[units, depth], Quant { blockwise, ..Quant::default() });
        let b = c.weights(DType::F32, &[units], -1.0, 1.0, None);
        c.op(Op::FullyConnected(FullyConnectedOptionsT::default()), &[x, w, b], DType::F32, None);
        c.run();
    }
}

/// Scales that make exact halves and large results, through every length of shift.
#[test]
fn fully_connected_i8_rounding() {
    for (i, scale) in [1.0f32, 0.5, 0.25, 3.0, 1e-3, 1e-6, 0.1, 7e-4, 100.0].into_iter().enumerate() {
        let mut c = Case::new(format!("FULLY_CONNECTED rounding at {scale}"), Tolerance::Exact);
        let x = c.int8(&[24, 8], 0.5, 0);
        let q = Quant::scalar(scale, 0);
        let w = c.weights(DType::I8, &[16, 8], -127.0, 127.0, Some(q));
        let o = FullyConnectedOptionsT::default();
        c.op(Op::FullyConnected(o), &[x, w], DType::I8, Some((if i % 2 == 0 { 1.0 } else { 32.0 }, 0)));
        c.run_in(&[Config::F32, Config::NoSubgroups]);
    }
}

fn batch(dtype: DType, x: &[usize], y: &[usize], adj_x: bool, adj_y: bool, constant: bool) {
    let depth = if adj_x { x[x.len() - 2] } else { x[x.len() - 1] };
    let tolerance = if dtype == DType::I8 { Tolerance::Exact } else { tolerance(depth) };
    let name = format!("BATCH_MATMUL {dtype} {x:?} {adj_x} by {y:?} {adj_y}, constant {constant}");
    let mut c = Case::new(name, tolerance);
    let (x, y, out) = if dtype == DType::I8 {
        let x = c.int8(x, 0.05, -5);
        let q = (0.02, 7);
        let y = if constant {
            c.weights(DType::I8, y, -128.0, 127.0, Some(Quant::scalar(q.0, q.1)))
        } else {
            c.int8(y, q.0, q.1)
        };
        (x, y, Some((0.3, -4)))
    } else {
        let x = c.input(DType::F32, x, -2.0, 2.0);
        let y = if constant { c.weights(dtype, y, -1.0, 1.0, None) } else { c.input(dtype, y, -1.0, 1.0) };
        (x, y, None)
    };
    let o = BatchMatMulOptionsT { adj_x, adj_y, ..Default::default() };
    c.op(Op::BatchMatmul(o), &[x, y], dtype, out);
    if dtype == DType::F32 { c.run() } else { c.run_in(&[Config::F32, Config::NoSubgroups]) }
}

#[test]
fn batch_matmul() {
    for dtype in [DType::F32, DType::I8] {
        batch(dtype, &[3, 5], &[5, 7], false, false, false);
        batch(dtype, &[16, 8], &[8, 8], false, false, false);
        batch(dtype, &[2, 17, 9], &[2, 9, 10], false, false, false);
        batch(dtype, &[2, 17, 12], &[2, 11, 12], false, true, false);
        batch(dtype, &[3, 6, 4], &[3, 6, 5], true, false, false);
        batch(dtype, &[3, 6, 4], &[3, 5, 6], true, true, false);
        batch(dtype, &[2, 3, 4, 20], &[20, 6], false, false, true);
        batch(dtype, &[1, 4, 6], &[5, 6, 3], false, false, false);
        batch(dtype, &[2, 1, 4, 6], &[3, 6, 5], false, false, false);
        batch(dtype, &[1, 3, 4, 6], &[2, 3, 5, 6], false, true, false);
        batch(dtype, &[2, 1, 9, 5], &[2, 3, 9, 5], true, false, true);
    }
}

/// Floats by constant int8: a scale for all, or one for each column of the result.
#[test]
fn batch_matmul_dynamic() {
    for (x, y, adj_y) in [
        (&[1usize, 4, 16][..], &[1usize, 16, 6][..], false),
        (&[2, 3, 8], &[2, 5, 8], true),
        (&[3, 17, 9], &[9, 10], false),
    ] {
        for each in [false, true] {
            let depth = x[x.len() - 1];
            let tolerance = Tolerance::Float { abs: 0.02 * (depth as f32).sqrt() + 0.01, rel: 0.01 };
            let mut c = Case::new(format!("BATCH_MATMUL {x:?} by int8 {y:?} {adj_y} {each}"), tolerance);
            let axis = y.len() - if adj_y { 2 } else { 1 };
            let scale = (0..if each { y[axis] } else { 1 }).map(|i| 0.004 + 0.001 * (i % 5) as f32).collect();
            let x = c.input(DType::F32, x, -2.0, 2.0);
            let y = c.weights(DType::I8, y, -127.0, 127.0, Some(Quant { scale, axis, ..Quant::default() }));
            let o = BatchMatMulOptionsT { adj_x: false, adj_y, asymmetric_quantize_inputs: true };
            c.op(Op::BatchMatmul(o), &[x, y], DType::F32, None);
            c.run();
        }
    }
}
