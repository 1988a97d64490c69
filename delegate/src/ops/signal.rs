//! Fourier transforms and complex numbers. A complex tensor's innermost dimension is twice as long on the GPU: real and
//! imaginary parts lie side by side as floats.

use super::{WG, acc};
use crate::lower::{Lower, Lowered, Operand, Params, line, no};
use crate::program::{quads, row_quads};
use litegpu_graph::{DType, Op, elements};
use litegpu_shaders::{Elem, KernelKey};
use std::f64::consts::PI;

/// Points of a row and of a column that the 16 KiB of memory that every adapter gives a workgroup hold.
const ROW: usize = 4096;
const COLUMN: usize = 1024;

pub(super) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    match cx.node.op {
        Op::Rfft2d => rfft2d(cx),
        Op::ComplexAbs => part(cx, 0),
        Op::Real => part(cx, 1),
        Op::Imag => part(cx, 2),
        _ => no("no GPU kernel"),
    }
}

/// exp(-2 pi i k / n) for k below n / 2, computed in double precision.
fn twiddles(cx: &mut Lower<'_, '_>, n: usize) -> Lowered<usize> {
    cx.weight(|| {
        let one = |k: usize| {
            let (sin, cos) = (2.0 * PI * k as f64 / n as f64).sin_cos();
            [(cos as f32).to_le_bytes(), (-sin as f32).to_le_bytes()]
        };
        Ok((0..n / 2).flat_map(one).flatten().collect())
    })
}

fn rfft2d(cx: &mut Lower<'_, '_>) -> Lowered {
    let x = cx.operand(0)?;
    let &[height, width] = cx.ints(1)?.as_slice() else { return no("an fft_length that is not two numbers") };
    let size = |n: i64| usize::try_from(n).ok().filter(|n| n.is_power_of_two());
    let (Some(height), Some(width)) = (size(height), size(width)) else {
        return no("a length that is no power of two");
    };
    if width < 2 || width > ROW || height > COLUMN {
        return no(format!("a transform of {height} x {width} points"));
    }
    if !x.elem.is_float() || x.constant {
        return no(format!("{} elements", x.dtype));
    }
    let &[.., in_height, _] = x.shape.as_slice() else { return no("an operand of less than two dimensions") };
    let y = cx.result(0)?;
    let rows = elements(&y.shape) / y.inner().max(1);
    let half = width / 2;
    let to = if height > 1 { cx.temp(&y.shape, Elem::F32) } else { y.slot };
    let table = twiddles(cx, width)?;
    let key = KernelKey::new("rfft", &[("in0", x.elem), ("out", Elem::F32)])
        .set("WG", half.div_ceil(2).clamp(1, 64) as i32)
        .set("HALF", half as i32);
    let params = Params::new().u(rows).u(height).u(in_height).u(x.row_quads()).u(y.row_quads()).u(y.inner());
    cx.dispatch(key, &[x.slot, table], &[to], &[], params, line(rows))?;
    if height == 1 {
        return Ok(());
    }
    let table = twiddles(cx, height)?;
    let key = KernelKey::new("fft", &[("in0", Elem::F32), ("out", Elem::F32)])
        .set("WG", (height / 2).clamp(1, 64) as i32)
        .set("POINTS", height as i32);
    let pairs = quads(&y.shape) / height;
    cx.dispatch(key, &[to, table], &[y.slot], &[], Params::new().u(pairs).u(y.row_quads()), line(pairs))
}

/// One number of each complex one.
fn part(cx: &mut Lower<'_, '_>, part: i32) -> Lowered {
    let x: Operand<'_> = cx.operand(0)?;
    if x.dtype != DType::C64 || x.constant {
        return no(format!("{} elements", x.dtype));
    }
    let y = cx.result(0)?;
    if elements(&x.shape) != 2 * elements(&y.shape) {
        return no("a result of another shape");
    }
    let key =
        KernelKey::new("complex", &[("in0", Elem::F32), ("acc", acc(Elem::F32)), ("out", y.elem)]).set("PART", part);
    let params = Params::new().u(y.quads()).u(y.row_quads()).u(y.inner()).u(row_quads(&x.shape));
    cx.dispatch(key, &[x.slot], &[y.slot], &[], params, line(y.quads().div_ceil(WG)))
}
