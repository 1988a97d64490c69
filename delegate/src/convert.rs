//! Host bytes to and from the padded layout, and readings of constants.

use crate::lower::{Const, Lowered, no};
use crate::program::{Port, row_quads, rows};
use half::f16;
use litegpu_graph::{DType, elements};
use litegpu_shaders::Elem;

/// A constant's integers; `None` for other types.
pub(crate) fn ints(c: &Const) -> Option<Vec<i64>> {
    Some(match c.dtype {
        DType::I32 => c.bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b) as i64).collect(),
        DType::U32 => c.bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as i64).collect(),
        DType::I64 => c.bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        DType::I16 => c.bytes.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b) as i64).collect(),
        DType::I8 => c.bytes.iter().map(|&b| b as i8 as i64).collect(),
        DType::U8 | DType::Bool => c.bytes.iter().map(|&b| b as i64).collect(),
        _ => return None,
    })
}

/// A constant's floats; `None` for other types.
pub(crate) fn floats(c: &Const) -> Option<Vec<f32>> {
    Some(match c.dtype {
        DType::F32 => c.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::F16 => c.bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => return None,
    })
}

/// The constant in the padded layout.
pub(crate) fn pad(c: &Const, elem: Elem) -> Lowered<Vec<u8>> {
    if c.dtype.byte_len(elements(&c.shape)) != Some(c.bytes.len()) {
        return no("a constant whose bytes do not fit its shape");
    }
    let mut out = vec![0; rows(&c.shape) * row_quads(&c.shape) * elem.quad_bytes()];
    match upload(c.dtype, &c.shape, elem, &c.bytes, &mut out) {
        true => Ok(out),
        false => no(format!("a {} constant", c.dtype)),
    }
}

/// Bytes of one element on the GPU.
fn width(elem: Elem) -> usize {
    elem.quad_bytes() / 4
}

/// Writes host elements into the padded layout. False when a type does not convert or a value does not fit.
pub(crate) fn upload(dtype: DType, shape: &[usize], elem: Elem, from: &[u8], to: &mut [u8]) -> bool {
    let inner = shape.last().copied().unwrap_or(1);
    let from_width = dtype.bits() / 8;
    let (from_row, to_row) = (inner * from_width, row_quads(shape) * elem.quad_bytes());
    if from_row == 0 || to_row == 0 {
        return true;
    }
    let mut fits = true;
    for (src, dst) in from.chunks_exact(from_row).zip(to.chunks_exact_mut(to_row)) {
        let (used, rest) = dst.split_at_mut(inner * width(elem));
        match (dtype, elem) {
            (DType::F32, Elem::F16 | Elem::F16Packed) => {
                for (s, d) in src.as_chunks::<4>().0.iter().zip(used.as_chunks_mut::<2>().0) {
                    *d = f16::from_f32(f32::from_le_bytes(*s)).to_le_bytes();
                }
            }
            (DType::F16, Elem::F32) => {
                for (s, d) in src.as_chunks::<2>().0.iter().zip(used.as_chunks_mut::<4>().0) {
                    *d = f16::from_le_bytes(*s).to_f32().to_le_bytes();
                }
            }
            (DType::I16, Elem::I32) => {
                for (s, d) in src.as_chunks::<2>().0.iter().zip(used.as_chunks_mut::<4>().0) {
                    *d = i32::from(i16::from_le_bytes(*s)).to_le_bytes();
                }
            }
            (DType::I64, Elem::I32) => {
                for (s, d) in src.as_chunks::<8>().0.iter().zip(used.as_chunks_mut::<4>().0) {
                    let v = i32::try_from(i64::from_le_bytes(*s));
                    fits &= v.is_ok();
                    *d = v.unwrap_or(0).to_le_bytes();
                }
            }
            _ if from_width == width(elem) => used.copy_from_slice(src),
            _ => return false,
        }
        rest.fill(0);
    }
    fits
}

/// Reads host elements out of the padded layout.
pub(crate) fn download(port: &Port, from: &[u8], to: &mut [u8]) {
    let ((dtype, shape), elem) = (port.stored(), port.elem);
    let inner = shape.last().copied().unwrap_or(1);
    let (from_row, to_row) = (row_quads(&shape) * elem.quad_bytes(), inner * dtype.bits() / 8);
    if from_row == 0 || to_row == 0 {
        return;
    }
    for (src, dst) in from.chunks_exact(from_row).zip(to.chunks_exact_mut(to_row)) {
        match (dtype, elem) {
            (DType::F32, Elem::F16 | Elem::F16Packed) => {
                for (s, d) in src.as_chunks::<2>().0.iter().zip(dst.as_chunks_mut::<4>().0) {
                    *d = f16::from_le_bytes(*s).to_f32().to_le_bytes();
                }
            }
            (DType::F16, Elem::F32) => {
                for (s, d) in src.as_chunks::<4>().0.iter().zip(dst.as_chunks_mut::<2>().0) {
                    *d = f16::from_f32(f32::from_le_bytes(*s)).to_le_bytes();
                }
            }
            (DType::I16, Elem::I32) => {
                for (s, d) in src.as_chunks::<4>().0.iter().zip(dst.as_chunks_mut::<2>().0) {
                    *d = (i32::from_le_bytes(*s) as i16).to_le_bytes();
                }
            }
            (DType::I64, Elem::I32) => {
                for (s, d) in src.as_chunks::<4>().0.iter().zip(dst.as_chunks_mut::<8>().0) {
                    *d = (i32::from_le_bytes(*s) as i64).to_le_bytes();
                }
            }
            _ => {
                if let Some(s) = src.get(..dst.len()) {
                    dst.copy_from_slice(s);
                }
            }
        }
    }
}
