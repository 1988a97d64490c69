//! Reductions, normalizations, pooling, resizing, gathering, filling and selecting.

mod common;
use common::*;
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Op, Quant};

/// Sums lose as many digits as they have terms; f16 rounds once.
const SUMS: Tolerance = Tolerance::Float { abs: 2e-5, rel: 2e-5 };

const F32: &[Config] = &[Config::F32];

/// In f32 in every configuration, and in the integer types that hold `q`.
fn types(dtypes: &[DType], mut build: impl FnMut(DType, Option<(f32, i64)>, &[Config])) {
    for &d in dtypes {
        let q = match d {
            DType::I8 => Some((0.043, -11)),
            DType::U8 => Some((0.043, 117)),
            _ => None,
        };
        build(d, q, if d == DType::F32 { &CONFIGS[..3] } else { F32 });
    }
}

fn range(d: DType) -> (f64, f64) {
    match d {
        DType::F32 => (-2.0, 2.0),
        DType::I8 => (-128.0, 127.0),
        DType::U8 => (0.0, 255.0),
        DType::Bool => (0.0, 1.0),
        _ => (-1000.0, 1000.0),
    }
}

const REDUCED: [(&[usize], &[i32]); 15] = [
    (&[7], &[0]),
    (&[2, 5], &[1]),
    (&[2, 5], &[-2]),
    (&[3, 4, 6], &[0, 2]),
    (&[3, 4, 6], &[1]),
    (&[2, 3, 4, 5], &[1, 2]),
    (&[2, 3, 4, 8], &[0, 3]),
    (&[2, 3, 4, 5], &[0, 1, 2, 3]),
    (&[2, 3, 2, 3, 9], &[0, 2, 4]),
    (&[2, 3, 2, 3, 9], &[1, 3]),
    (&[1, 70, 90, 3], &[1, 2]),
    (&[5, 1, 1], &[1]),
    (&[2, 1003], &[1]),
    (&[300, 5], &[0]),
    (&[6000], &[0]),
];

/// Elements that become one.
fn axes_of(shape: &[usize], axes: &[i32]) -> usize {
    axes.iter().map(|&a| shape[a.rem_euclid(shape.len() as i32) as usize]).product()
}

#[test]
fn reduce() {
    let options = |keep_dims| ReducerOptionsT { keep_dims };
    for (shape, axes) in REDUCED {
        for keep in [false, true] {
            let all = [DType::F32, DType::I8, DType::U8, DType::I32];
            for (name, op, dtypes) in [
                ("MEAN", Op::Mean(options(keep)), &[DType::F32, DType::I8, DType::U8][..]),
                ("SUM", Op::Sum(options(keep)), &all),
                ("MAX", Op::ReduceMax(options(keep)), &all),
                ("MIN", Op::ReduceMin(options(keep)), &all),
                ("ANY", Op::ReduceAny(options(keep)), &[DType::Bool]),
                ("ALL", Op::ReduceAll(options(keep)), &[DType::Bool]),
            ] {
                types(dtypes, |d, q, configs| {
                    let mut c = Case::new(format!("{name} {d} {shape:?} {axes:?} {keep}"), SUMS);
                    let (low, high) = range(d);
                    let x = c.quantized(d, shape, low, high, q);
                    let a = c.i32s(axes);
                    let out = match name {
                        "MEAN" => q.map(|(s, z)| (s * 0.7, z + 5)),
                        // As much of the range as sums of both signs leave.
                        "SUM" => q.map(|(s, z)| (s * 0.9 * (axes_of(shape, axes) as f32).sqrt(), z - 3)),
                        _ => q,
                    };
                    c.op(op.clone(), &[x, a], d, out);
                    c.run_in(configs);
                });
            }
        }
    }
}

#[test]
fn products() {
    for (shape, axes) in [(&[2usize, 5][..], &[1i32][..]), (&[4, 3, 7], &[0]), (&[2, 3, 2, 5], &[1, 3])] {
        types(&[DType::F32, DType::I32], |d, q, configs| {
            let mut c = Case::new(format!("PROD {d} {shape:?}"), SUMS);
            let x = c.quantized(d, shape, -3.0, 3.0, q);
            let a = c.i32s(axes);
            c.op(Op::ReduceProd(ReducerOptionsT { keep_dims: false }), &[x, a], d, q);
            c.run_in(configs);
        });
    }
}

/// The sum of the squares alone is beyond f16; the mean is not.
#[test]
fn f16_sums_do_not_overflow() {
    let mut c = Case::new("large sums", Tolerance::Float { abs: 0.0, rel: 1e-5 });
    let x = c.input(DType::F32, &[3, 4000], 900.0, 1000.0);
    let a = c.i32s(&[1]);
    c.op(Op::Mean(ReducerOptionsT { keep_dims: false }), &[x, a], DType::F32, None);
    c.run();
}

#[test]
fn arg_max() {
    for (shape, axis) in [
        (&[9usize][..], 0i32),
        (&[3, 5], 1),
        (&[3, 5], 0),
        (&[2, 5, 4, 21], -1),
        (&[2, 5, 4, 6], 2),
        (&[2, 1001], 1),
        (&[1, 3, 300], 2),
        (&[2, 2, 3, 2, 5], 1),
    ] {
        for to in [DType::I32, DType::I64] {
            for least in [false, true] {
                types(&[DType::F32, DType::I8, DType::U8, DType::I32], |d, q, configs| {
                    // Few values, so that there are ties.
                    let mut c = Case::new(format!("ARG {least} {d} {shape:?} {axis} {to}"), Tolerance::Exact);
                    let x = match d {
                        DType::F32 => c.input(d, shape, -1.0, 1.0),
                        _ => c.quantized(d, shape, 3.0, 9.0, q),
                    };
                    let a = c.i32s_of(&[], &[axis]);
                    let code = to.code();
                    let op = match least {
                        true => Op::ArgMin(ArgMinOptionsT { output_type: code }),
                        false => Op::ArgMax(ArgMaxOptionsT { output_type: code }),
                    };
                    c.op(op, &[x, a], to, None);
                    c.run_in(configs);
                });
            }
        }
    }
}

#[test]
fn cumulative_sums() {
    for (shape, axis) in [(&[9usize][..], 0i32), (&[3, 5], 0), (&[3, 6], -1), (&[2, 5, 4, 6], 1), (&[2, 3, 4], 2)] {
        for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
            types(&[DType::F32, DType::I32], |d, q, configs| {
                let name = format!("CUMSUM {d} {shape:?} {axis} {exclusive} {reverse}");
                let mut c = Case::new(name, SUMS);
                let (low, high) = range(d);
                let x = c.quantized(d, shape, low, high, q);
                let a = c.i32s_of(&[], &[axis]);
                c.op(Op::Cumsum(CumsumOptionsT { exclusive, reverse }), &[x, a], d, q);
                c.run_in(configs);
            });
        }
    }
}

const ROWS: [&[usize]; 8] = [&[7], &[3, 1], &[3, 8], &[2, 3, 9], &[1, 2, 3, 10], &[2, 301], &[70, 17], &[1, 4099]];

#[test]
fn softmax() {
    for shape in ROWS {
        for beta in [1.0, 0.3] {
            let mut c = Case::new(format!("SOFTMAX {shape:?} {beta}"), Tolerance::Float { abs: 2e-6, rel: 1e-5 });
            let x = c.input(DType::F32, shape, -9.0, 9.0);
            c.op(Op::Softmax(SoftmaxOptionsT { beta }), &[x], DType::F32, None);
            c.run();
            for scale in [0.02f32, 0.1, 0.7] {
                for (d, zero) in [(DType::I8, -128), (DType::U8, 0)] {
                    let mut c = Case::new(format!("SOFTMAX {d} {shape:?} {beta} {scale}"), Tolerance::Exact);
                    let (low, high) = range(d);
                    let x = c.quantized(d, shape, low, high, Some((scale, 3)));
                    c.op(Op::Softmax(SoftmaxOptionsT { beta }), &[x], d, Some((1.0 / 256.0, zero)));
                    c.run_in(F32);
                }
            }
        }
    }
}

#[test]
fn log_softmax() {
    for shape in ROWS {
        let mut c = Case::new(format!("LOG_SOFTMAX {shape:?}"), Tolerance::Float { abs: 5e-6, rel: 1e-5 });
        let x = c.input(DType::F32, shape, -9.0, 9.0);
        c.op(Op::LogSoftmax, &[x], DType::F32, None);
        c.run();
        for scale in [0.02f32, 0.1, 0.7] {
            for (d, zero) in [(DType::I8, 127), (DType::U8, 255)] {
                let mut c = Case::new(format!("LOG_SOFTMAX {d} {shape:?} {scale}"), Tolerance::Exact);
                let (low, high) = range(d);
                let x = c.quantized(d, shape, low, high, Some((scale, 3)));
                c.op(Op::LogSoftmax, &[x], d, Some((16.0 / 256.0, zero)));
                c.run_in(F32);
            }
        }
    }
}

#[test]
fn l2_normalization() {
    let op = Op::L2Normalization(L2NormOptionsT::default());
    for shape in ROWS {
        let mut c = Case::new(format!("L2_NORMALIZATION {shape:?}"), SUMS);
        let x = c.input(DType::F32, shape, -3.0, 3.0);
        c.op(op.clone(), &[x], DType::F32, None);
        c.run();
        for (d, zero) in [(DType::I8, 0), (DType::U8, 128)] {
            for (low, high) in [range(d), (1.0, 3.0)] {
                let mut c = Case::new(format!("L2_NORMALIZATION {d} {shape:?} {high}"), Tolerance::Exact);
                let x = c.quantized(d, shape, low, high, Some((0.05, 2)));
                c.op(op.clone(), &[x], d, Some((1.0 / 128.0, zero)));
                c.run_in(F32);
            }
        }
    }
}

#[test]
fn local_response_normalization() {
    for (shape, radius) in [(&[1usize, 2, 3, 7][..], 2), (&[1, 2, 2, 16], 5), (&[1, 1, 2, 5], 9)] {
        for beta in [0.75, 0.5] {
            let mut c = Case::new(format!("LRN {shape:?} {radius} {beta}"), Tolerance::Float { abs: 1e-5, rel: 1e-4 });
            let x = c.input(DType::F32, shape, -3.0, 3.0);
            let o = LocalResponseNormalizationOptionsT { radius, bias: 1.5, alpha: 0.4, beta };
            c.op(Op::LocalResponseNormalization(o), &[x], DType::F32, None);
            c.run();
        }
    }
}

#[test]
fn pooling() {
    for (shape, filter, stride, padding) in [
        (&[1usize, 6, 6, 8][..], (2, 2), (2, 2), Padding::VALID),
        (&[2, 7, 5, 3], (3, 2), (2, 1), Padding::SAME),
        (&[1, 5, 5, 6], (5, 5), (1, 1), Padding::SAME),
        (&[1, 9, 4, 5], (3, 4), (3, 1), Padding::VALID),
        (&[1, 33, 31, 17], (33, 31), (1, 1), Padding::VALID),
    ] {
        let options = |a| Pool2DOptionsT {
            padding,
            stride_w: stride.1,
            stride_h: stride.0,
            filter_width: filter.1,
            filter_height: filter.0,
            fused_activation_function: a,
        };
        for a in [ActivationFunctionType::NONE, ActivationFunctionType::RELU, ActivationFunctionType::RELU6] {
            let o = options(a);
            for (name, op) in [("AVERAGE", Op::AveragePool2d(o.clone())), ("MAX", Op::MaxPool2d(o.clone()))] {
                types(&[DType::F32, DType::I8, DType::U8], |d, q, configs| {
                    let mut c = Case::new(format!("{name} {d} {shape:?} {filter:?} {a:?}"), SUMS);
                    let (low, high) = range(d);
                    let x = c.quantized(d, shape, low, high, q);
                    c.op(op.clone(), &[x], d, q);
                    c.run_in(configs);
                });
            }
            let mut c = Case::new(format!("L2_POOL {shape:?} {filter:?} {a:?}"), SUMS);
            let x = c.input(DType::F32, shape, -3.0, 3.0);
            c.op(Op::L2Pool2d(o), &[x], DType::F32, None);
            c.run();
        }
    }
}

#[test]
fn resizing() {
    for (shape, size) in [
        (&[1usize, 4, 4, 3][..], [8i32, 8]),
        (&[2, 5, 7, 4], [3, 9]),
        (&[1, 3, 1, 5], [7, 4]),
        (&[1, 8, 6, 6], [1, 1]),
        (&[1, 17, 13, 2], [17, 40]),
    ] {
        for (align_corners, half_pixel_centers) in [(false, false), (true, false), (false, true)] {
            let name = format!("{shape:?} to {size:?} {align_corners} {half_pixel_centers}");
            types(&[DType::F32, DType::I8, DType::U8], |d, q, configs| {
                let (low, high) = range(d);
                let mut c = Case::new(format!("NEAREST {d} {name}"), Tolerance::Exact);
                let x = c.quantized(d, shape, low, high, q);
                let s = c.i32s(&size);
                let o = ResizeNearestNeighborOptionsT { align_corners, half_pixel_centers };
                c.op(Op::ResizeNearestNeighbor(o), &[x, s], d, q);
                c.run_in(configs);
            });
            types(&[DType::F32, DType::I8], |d, q, configs| {
                let (low, high) = range(d);
                let mut c = Case::new(format!("BILINEAR {d} {name}"), Tolerance::Float { abs: 2e-6, rel: 1e-5 });
                let x = c.quantized(d, shape, low, high, q);
                let s = c.i32s(&size);
                let o = ResizeBilinearOptionsT { align_corners, half_pixel_centers };
                c.op(Op::ResizeBilinear(o), &[x, s], d, q);
                c.run_in(configs);
            });
        }
    }
    // uint8 where every weight is a short binary fraction: from (5, 4).
    for (size, align_corners, half_pixel_centers) in
        [([10i32, 16], false, false), ([9, 13], true, false), ([20, 2], false, true), ([5, 4], false, true)]
    {
        let mut c = Case::new(format!("BILINEAR uint8 {size:?}"), Tolerance::Exact);
        let x = c.uint8(&[2, 5, 4, 3], 0.1, 7);
        let s = c.i32s(&size);
        let o = ResizeBilinearOptionsT { align_corners, half_pixel_centers };
        c.op(Op::ResizeBilinear(o), &[x, s], DType::U8, Some((0.1, 7)));
        c.run_in(F32);
    }
}

#[test]
fn gather() {
    for (shape, ids, axis, batch_dims, n) in [
        (&[5usize, 3][..], &[4usize][..], 0i32, 0i32, 5.0),
        (&[5, 3], &[2, 2], 1, 0, 3.0),
        (&[7], &[9], 0, 0, 7.0),
        (&[7], &[], 0, 0, 7.0),
        (&[4, 5, 6], &[], 1, 0, 5.0),
        (&[4, 5, 6], &[], 2, 0, 6.0),
        (&[2, 5, 6], &[3], -2, 0, 5.0),
        (&[2, 5, 6], &[2, 3], 1, 1, 5.0),
        (&[2, 5, 7], &[2, 5, 3], 2, 2, 7.0),
        (&[2, 3, 5, 4], &[2, 3], 3, 1, 4.0),
        (&[2, 3, 2, 5, 4], &[3], 2, 0, 2.0),
        (&[9, 1], &[5], 0, 0, 9.0),
    ] {
        for constant in [false, true] {
            types(&[DType::F32, DType::I8, DType::I32, DType::Bool], |d, q, configs| {
                let mut c =
                    Case::new(format!("GATHER {d} {shape:?} {ids:?} {axis} {batch_dims} {constant}"), Tolerance::Exact);
                let (low, high) = range(d);
                let x = c.quantized(d, shape, low, high, q);
                let i = match constant {
                    true => c.weights(DType::I32, ids, 0.0, n - 1.0, None),
                    false => c.input(DType::I32, ids, 0.0, n - 1.0),
                };
                c.op(Op::Gather(GatherOptionsT { axis, batch_dims }), &[x, i], d, q);
                c.run_in(configs);
            });
        }
    }
}

#[test]
fn gather_nd() {
    for (shape, ids, n) in [
        (&[5usize, 3][..], &[4usize, 1][..], 5.0),
        (&[3, 3], &[4, 2], 3.0),
        (&[4, 5, 6], &[2, 3, 2], 4.0),
        (&[3, 4, 5], &[7, 3], 3.0),
        (&[2, 2, 2, 2, 9], &[3, 4], 2.0),
        (&[6, 7], &[1], 6.0),
    ] {
        types(&[DType::F32, DType::I8, DType::I32], |d, q, configs| {
            let mut c = Case::new(format!("GATHER_ND {d} {shape:?} {ids:?}"), Tolerance::Exact);
            let (low, high) = range(d);
            let x = c.quantized(d, shape, low, high, q);
            let i = c.input(DType::I32, ids, 0.0, n - 1.0);
            c.op(Op::GatherNd, &[x, i], d, q);
            c.run_in(configs);
        });
    }
}

#[test]
fn scatter_nd() {
    for (shape, ids, updates, n) in [
        (&[8i32][..], &[3usize, 1][..], &[3usize][..], 8.0),
        (&[5, 7], &[4, 2], &[4], 5.0),
        (&[5, 7], &[6, 1], &[6, 7], 5.0),
        (&[3, 4, 6], &[2, 3, 2], &[2, 3, 6], 3.0),
        (&[3, 2, 2, 5], &[9, 1], &[9, 2, 2, 5], 3.0),
    ] {
        types(&[DType::F32, DType::I8, DType::I32], |d, q, configs| {
            let mut c = Case::new(format!("SCATTER_ND {d} {shape:?} {ids:?}"), SUMS);
            let (low, high) = range(d);
            let i = c.input(DType::I32, ids, 0.0, n - 1.0);
            let u = c.quantized(d, updates, low, high, q);
            let s = c.i32s(shape);
            c.op(Op::ScatterNd, &[i, u, s], d, q);
            c.run_in(configs);
        });
    }
}

/// Few places, so that some are hit twice: the later value stays.
#[test]
fn sparse_to_dense() {
    for (shape, ids, values, n) in [
        (&[9i32][..], &[6usize][..], &[6usize][..], 9.0),
        (&[7], &[], &[], 7.0),
        (&[7], &[3], &[], 7.0),
        (&[3, 5], &[8, 2], &[8], 3.0),
        (&[4, 3, 8], &[5, 3], &[5], 3.0),
        (&[2, 2, 2, 6], &[4, 4], &[], 2.0),
    ] {
        for constant in [false, true] {
            types(&[DType::F32, DType::I8, DType::I32, DType::Bool], |d, q, configs| {
                let name = format!("SPARSE_TO_DENSE {d} {shape:?} {ids:?} {values:?} {constant}");
                let mut c = Case::new(name, Tolerance::Exact);
                let (low, high) = range(d);
                let i = match constant {
                    true => c.weights(DType::I64, ids, 0.0, n - 1.0, None),
                    false => c.input(DType::I32, ids, 0.0, n - 1.0),
                };
                let s = c.i32s(shape);
                let v = c.quantized(d, values, low, high, q);
                let default = c.weights(d, &[], high, high, q.map(|(s, z)| Quant::scalar(s, z)));
                let o = SparseToDenseOptionsT { validate_indices: true };
                c.op(Op::SparseToDense(o), &[i, s, v, default], d, q);
                c.run_in(configs);
            });
        }
    }
}

#[test]
fn segments() {
    for (shape, ids, n) in [
        (&[9usize][..], &[9usize][..], 4),
        (&[7, 5], &[7], 3),
        (&[7, 5], &[7, 5], 6),
        (&[4, 3, 8], &[4], 7),
        (&[2, 3, 2, 6], &[2, 3], 4),
    ] {
        for (name, op) in [
            ("SUM", Op::UnsortedSegmentSum),
            ("PROD", Op::UnsortedSegmentProd),
            ("MAX", Op::UnsortedSegmentMax),
            ("MIN", Op::UnsortedSegmentMin),
        ] {
            types(&[DType::F32, DType::I32], |d, _, configs| {
                // Empty segments hold the greatest float, which f16 has not.
                let configs = if matches!(name, "MAX" | "MIN") && d == DType::F32 { F32 } else { configs };
                let mut c = Case::new(format!("UNSORTED_SEGMENT_{name} {d} {shape:?} {ids:?}"), SUMS);
                let x = c.input(d, shape, -3.0, 3.0);
                // A negative number leaves a row out.
                let i = c.input(DType::I32, ids, -1.0, n as f64 - 1.0);
                let n = c.i32s_of(&[], &[n]);
                c.op(op.clone(), &[x, i, n], d, None);
                c.run_in(configs);
            });
        }
    }
    for (shape, ids) in [(&[5usize][..], &[0i32, 0, 2, 2, 3][..]), (&[4, 6], &[1, 1, 1, 2]), (&[3, 2, 5], &[0, 1, 4])] {
        types(&[DType::F32, DType::I32], |d, _, configs| {
            let mut c = Case::new(format!("SEGMENT_SUM {d} {shape:?} {ids:?}"), SUMS);
            let x = c.input(d, shape, -3.0, 3.0);
            let i = c.i32s(ids);
            c.op(Op::SegmentSum, &[x, i], d, None);
            c.run_in(configs);
        });
    }
}

#[test]
fn diagonals() {
    for (shape, rows, columns) in
        [(&[][..], 5usize, 5usize), (&[2], 3, 7), (&[3], 7, 3), (&[2, 2], 8, 8), (&[2], 1, 4), (&[], 6, 9)]
    {
        types(&[DType::F32, DType::I8, DType::I32], |d, q, configs| {
            let (low, high) = range(d);
            let line: Vec<usize> = shape.iter().copied().chain([rows.min(columns)]).collect();
            let mut c = Case::new(format!("MATRIX_DIAG {d} {line:?}"), Tolerance::Exact);
            let x = c.quantized(d, &line, low, high, q);
            c.op(Op::MatrixDiag, &[x], d, q);
            c.run_in(configs);
            let matrix: Vec<usize> = shape.iter().copied().chain([rows, columns]).collect();
            let mut c = Case::new(format!("MATRIX_SET_DIAG {d} {matrix:?}"), Tolerance::Exact);
            let x = c.quantized(d, &matrix, low, high, q);
            let line = c.quantized(d, &line, low, high, q);
            c.op(Op::MatrixSetDiag, &[x, line], d, q);
            c.run_in(configs);
        });
    }
}

#[test]
fn embedding() {
    for shape in [&[9usize, 6][..], &[5, 3, 7], &[20, 8]] {
        let mut c = Case::new(format!("EMBEDDING_LOOKUP {shape:?}"), Tolerance::Exact);
        let i = c.input(DType::I32, &[7], 0.0, shape[0] as f64 - 1.0);
        let t = c.weights(DType::F32, shape, -2.0, 2.0, None);
        c.op(Op::EmbeddingLookup, &[i, t], DType::F32, None);
        c.run();
    }
}

#[test]
fn quantized_embedding() {
    for shape in [&[9usize, 6][..], &[5, 3, 7], &[20, 8]] {
        for per_row in [false, true] {
            for d in [DType::I8, DType::I4] {
                let mut c = Case::new(format!("EMBEDDING_LOOKUP {d} {shape:?} {per_row}"), Tolerance::Exact);
                let i = c.input(DType::I32, &[7], 0.0, shape[0] as f64 - 1.0);
                let scales = if per_row { shape[0] } else { 1 };
                let scale = (0..scales).map(|i| 0.01 + i as f32 * 0.003).collect();
                let q = Quant { scale, zero_point: vec![0; scales], ..Quant::default() };
                let t = match d {
                    DType::I8 => c.weights(d, shape, -127.0, 127.0, Some(q)),
                    _ => c.nibbles(shape, q),
                };
                c.op(Op::EmbeddingLookup, &[i, t], DType::F32, None);
                c.run();
            }
        }
    }
}

#[test]
fn fill() {
    for shape in [&[3i32, 5][..], &[2, 4], &[7], &[2, 1, 3, 1, 2]] {
        types(&[DType::F32, DType::I32, DType::I8], |d, q, configs| {
            let mut c = Case::new(format!("FILL {d} {shape:?}"), Tolerance::Exact);
            let s = c.i32s(shape);
            let (low, high) = range(d);
            let v = c.quantized(d, &[], low, high, q);
            c.op(Op::Fill, &[s, v], d, q);
            c.run_in(configs);
        });
    }
}

#[test]
fn one_hot() {
    for (shape, depth, axis) in [(&[5usize][..], 4, -1), (&[5], 7, 0), (&[2, 3], 5, 1), (&[2, 3], 8, -1), (&[], 6, -1)]
    {
        types(&[DType::F32, DType::I32, DType::I8], |d, q, configs| {
            let mut c = Case::new(format!("ONE_HOT {d} {shape:?} {depth} {axis}"), Tolerance::Exact);
            // Indices on either side of the range are no error: nothing is hot.
            let x = c.input(DType::I32, shape, -1.0, depth as f64);
            let n = c.i32s_of(&[], &[depth]);
            let on = c.weights(d, &[], 5.0, 5.0, q.map(|(s, z)| Quant::scalar(s, z)));
            let off = c.weights(d, &[], -3.0, -3.0, q.map(|(s, z)| Quant::scalar(s, z)));
            c.op(Op::OneHot(OneHotOptionsT { axis }), &[x, n, on, off], d, q);
            c.run_in(configs);
        });
    }
}

#[test]
fn greatest() {
    for (shape, k) in [(&[9usize][..], 3), (&[3, 5], 5), (&[2, 301], 7), (&[2, 3, 40], 4), (&[1, 1000], 1)] {
        types(&[DType::F32, DType::I8, DType::U8, DType::I32], |d, q, configs| {
            let mut c = Case::new(format!("TOPK_V2 {d} {shape:?} {k}"), Tolerance::Exact);
            let (low, high) = range(d);
            let x = c.quantized(d, shape, low, high, q);
            let n = c.i32s_of(&[], &[k]);
            c.ops(Op::TopkV2, &[x, n], &[d, DType::I32], q);
            // In f16 a graph's outputs stay f32, which this kernel does not convert to: such a node is on the CPU.
            let configs = &configs[..1];
            c.run_in(configs);
        });
    }
}
