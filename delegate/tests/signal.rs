//! Fourier transforms and complex numbers.

mod common;
use common::*;
use litegpu_graph::schema::*;
use litegpu_graph::{DType, Op};

/// A transform of `n` points in f32: each of its log2(n) stages rounds by a few parts in 2^24 of a sum that has grown to
/// sqrt(n) times an element of size 1.
fn error(n: usize) -> Tolerance {
    let stages = n.max(2).ilog2() as f32;
    Tolerance::Float { abs: 4.0 * stages * (n as f32).sqrt() / 16_777_216.0, rel: 0.0 }
}

#[test]
fn rfft2d() {
    for (shape, length) in [
        (&[1usize, 512][..], [1i32, 512]),
        (&[3, 1, 16], [1, 16]),
        // Cut, and padded with zeros, in either direction.
        (&[2, 1, 400], [1, 512]),
        (&[1, 37], [1, 8]),
        (&[5, 6], [4, 4]),
        (&[3, 5], [8, 16]),
        (&[2, 2, 8, 4], [8, 4]),
        (&[4, 2], [4, 2]),
        (&[1, 3], [1, 2]),
        (&[1, 4096], [1, 4096]),
        (&[1024, 2], [1024, 2]),
    ] {
        let n = (length[0] * length[1]) as usize;
        let mut c = Case::new(format!("RFFT2D {shape:?} {length:?}"), error(n));
        let x = c.input(DType::F32, shape, -1.0, 1.0);
        let l = c.i32s(&length);
        c.op(Op::Rfft2d, &[x, l], DType::C64, None);
        c.run_in(&CONFIGS[..3]);
    }
}

/// Spectra as audio networks compute them: the middle one is reshaped between.
#[test]
fn parts_of_complex_numbers() {
    for (shape, length) in [(&[4usize, 1, 50][..], [1, 64]), (&[2, 7, 8], [8, 8]), (&[3, 1, 8], [1, 8])] {
        for op in [Op::ComplexAbs, Op::Real, Op::Imag] {
            let mut c = Case::new(format!("{} of {shape:?}", op.name()), error((length[0] * length[1]) as usize));
            let x = c.input(DType::F32, shape, -1.0, 1.0);
            let l = c.i32s(&length);
            let f = c.op(Op::Rfft2d, &[x, l], DType::C64, None);
            let to = c.i32s(&[shape[0] as i32 * length[0], length[1] / 2 + 1]);
            let f = c.op(Op::Reshape(ReshapeOptionsT::default()), &[f, to], DType::C64, None);
            c.op(op, &[f], DType::F32, None);
            c.run_in(&CONFIGS[..3]);
        }
    }
}
