//! Max pooling that reports positions, its inverse, and image warping.

use super::*;
use crate::value::View;
use litegpu_graph::ops::PoolOptions;
use litegpu_graph::{CustomOp, DType};

fn dims(v: &View<'_>) -> Result<[usize; 4]> {
    <[usize; 4]>::try_from(v.shape).map_err(|_| Error::invalid(format!("shape {:?}, 4 dimensions are needed", v.shape)))
}

/// The two forms differ in what a position is: an index into the image of one batch entry (int32), or an index into
/// the window as a float.
pub(super) fn pool(site: &Site<'_>, c: &CustomOp) -> Result<Kernel> {
    let p = PoolOptions::read(c)?;
    let in_window = match (site.input(0)?.dtype, site.output(0)?.dtype, site.output(1)?.dtype) {
        (DType::F32, DType::F32, DType::I32) => false,
        (DType::F32, DType::F32, DType::F32) => true,
        _ => return no_kernel(site),
    };
    let (low, high) = match p.activation {
        0 => (f32::NEG_INFINITY, f32::INFINITY),
        1 => (0.0, f32::INFINITY),
        2 => (-1.0, 1.0),
        3 => (0.0, 6.0),
        a => return Err(site.unsupported(format!("fused activation {a}"))),
    };
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let [_, height, width, depth] = dims(&x)?;
        let x = x.as_slice::<f32>()?;
        let ((rows, top), (columns, left)) = (p.pooled(height, 0)?, p.pooled(width, 1)?);
        let [out, positions] = &mut *call.outputs else { return Err(Error::invalid("two outputs are needed")) };
        let out = out.as_mut_slice::<f32>()?;
        let positions = positions.as_mut_slice::<[u8; 4]>()?;
        for (i, (y, at)) in out.iter_mut().zip(positions).enumerate() {
            let (channel, rest) = (i % depth, i / depth);
            let (column, rest) = (rest % columns, rest / columns);
            let (row, batch) = (rest % rows, rest / rows);
            let span = |out: usize, stride: usize, pad: usize, filter: usize, size: usize| {
                let start = out * stride;
                start.saturating_sub(pad)..(start + filter).saturating_sub(pad).min(size)
            };
            let (mut best, mut best_y, mut best_x) = (f32::MIN, 0, 0);
            let mut found = false;
            for iy in span(row, p.stride[0], top, p.filter[0], height) {
                for ix in span(column, p.stride[1], left, p.filter[1], width) {
                    let v = x[((batch * height + iy) * width + ix) * depth + channel];
                    if v > best {
                        (best, best_y, best_x, found) = (v, iy, ix, true);
                    }
                }
            }
            *y = best.clamp(low, high);
            *at = if in_window {
                let (fy, fx) = (
                    (best_y + top).wrapping_sub(row * p.stride[0]),
                    (best_x + left).wrapping_sub(column * p.stride[1]),
                );
                let index = if found { fy * p.filter[1] + fx } else { 0 };
                (index as f32 + 0.1).to_le_bytes()
            } else {
                (((best_y * width + best_x) * depth + channel) as i32).to_le_bytes()
            };
        }
        Ok(())
    }))
}

pub(super) fn unpool(site: &Site<'_>, c: &CustomOp) -> Result<Kernel> {
    let p = PoolOptions::read(c)?;
    let in_window = match (site.input(0)?.dtype, site.input(1)?.dtype, site.output(0)?.dtype) {
        (DType::F32, DType::I32, DType::F32) => false,
        (DType::F32, DType::F32, DType::F32) => true,
        _ => return no_kernel(site),
    };
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let [_, height, width, depth] = dims(&x)?;
        let x = x.as_slice::<f32>()?;
        let indices = call.input(1)?;
        let out = call.output(0)?;
        let [_, rows, columns, _] = dims(&out.view())?;
        if out.is_empty() {
            return Ok(());
        }
        let image = rows * columns * depth;
        let out = out.as_mut_slice::<f32>()?;
        out.fill(0.0);
        // A position outside the image says nothing: it is skipped.
        if !in_window {
            let per_batch = height * width * depth;
            for (i, (&v, &at)) in x.iter().zip(indices.as_slice::<i32>()?).enumerate() {
                let batch = i / per_batch.max(1) * image;
                if let Some(o) = usize::try_from(at).ok().filter(|&a| a < image).and_then(|a| out.get_mut(batch + a)) {
                    *o = v;
                }
            }
            return Ok(());
        }
        let pad = |n: usize, axis: usize| {
            let covered = n.saturating_sub(1).saturating_mul(p.stride[axis]).saturating_add(p.filter[axis]);
            covered.saturating_sub(n.saturating_mul(p.filter[axis])) / 2
        };
        let (top, left) = (pad(height, 0), pad(width, 1));
        for (i, (&v, &at)) in x.iter().zip(indices.as_slice::<f32>()?).enumerate() {
            let (channel, rest) = (i % depth, i / depth);
            let (column, rest) = (rest % width, rest / width);
            let (row, batch) = (rest % height, rest / height);
            let at = at as usize;
            let y = (row * p.stride[0]).saturating_add(at / p.filter[1]).checked_sub(top);
            let x = (column * p.stride[1] + at % p.filter[1]).checked_sub(left);
            if let (Some(y), Some(x)) = (y, x)
                && y < rows
                && x < columns
                && let Some(o) = out.get_mut(((batch * rows + y) * columns + x) * depth + channel)
            {
                *o = v;
            }
        }
        Ok(())
    }))
}

pub(super) fn warp(site: &Site<'_>) -> Result<Kernel> {
    if [site.input(0)?.dtype, site.input(1)?.dtype, site.output(0)?.dtype] != [DType::F32; 3] {
        return no_kernel(site);
    }
    Ok(Box::new(|call| {
        let (x, flow) = (call.input(0)?, call.input(1)?);
        let [_, height, width, depth] = dims(&x)?;
        let (x, flow) = (x.as_slice::<f32>()?, flow.as_slice::<[f32; 2]>()?);
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        if depth == 0 {
            return Ok(());
        }
        for (i, (out, by)) in out.chunks_exact_mut(depth).zip(flow).enumerate() {
            let (column, row, batch) = (i % width, i / width % height, i / width / height);
            let place = |at: usize, by: f32, size: usize| {
                let query = at as f32 - by;
                let floor = (query.floor().max(0.0) as usize).min(size - 2);
                (floor, (query - floor as f32).clamp(0.0, 1.0))
            };
            let ((y, dy), (x0, dx)) = (place(row, by[0], height), place(column, by[1], width));
            let at = |y: usize, c: usize| ((batch * height + y) * width + x0) * depth + c;
            for (c, o) in out.iter_mut().enumerate() {
                let across = |y: usize| {
                    let (a, b) = (x[at(y, c)], x[at(y, c) + depth]);
                    dx * (b - a) + a
                };
                let (top, bottom) = (across(y), across(y + 1));
                *o = dy * (bottom - top) + top;
            }
        }
        Ok(())
    }))
}
