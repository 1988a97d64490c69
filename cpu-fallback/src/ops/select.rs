//! SELECT, SELECT_V2 and WHERE: kernels.

use super::*;
use crate::kernel::Call;
use crate::moves::{self, Dst, Move, Src};
use crate::pool::Pool;
use crate::strided::{strides, zip3};
use bytemuck::Pod;
use litegpu_graph::{DType, Op, elements};

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let c = site.input(0)?;
    match &site.node.op {
        Op::Select | Op::SelectV2 => {
            if c.dtype != DType::Bool {
                return Err(Error::invalid(format!("a condition of {}", c.dtype)));
            }
            let v2 = matches!(site.node.op, Op::SelectV2);
            Ok(Box::new(move |call: &mut Call<'_>| {
                let c = call.input(0)?;
                let pool = call.pool;
                // SELECT takes a vector to choose whole rows.
                let per_row = !v2 && c.shape.len() == 1 && call.input(1)?.shape.len() > 1;
                moves::run(call, &[1, 2], &Choose { shape: c.shape, data: c.as_slice()?, per_row, pool })
            }))
        }
        Op::Where => {
            let y = site.output(0)?;
            if y.dtype != DType::I64 {
                return Err(Error::invalid(format!("indices of {}", y.dtype)));
            }
            match c.dtype {
                DType::Bool | DType::I8 | DType::U8 => positions(|v: u8| v != 0),
                DType::F32 => positions(|v: f32| v != 0.0),
                DType::I32 | DType::U32 => positions(|v: u32| v != 0),
                DType::I64 => positions(|v: u64| v != 0),
                DType::I16 => positions(|v: u16| v != 0),
                _ => no_kernel(site),
            }
        }
        _ => no_kernel(site),
    }
}

struct Choose<'a> {
    shape: &'a [usize],
    data: &'a [u8],
    per_row: bool,
    pool: &'a Pool,
}

impl Move for Choose<'_> {
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
        let ([x, y], Some(d)) = (src, dst.first_mut()) else { return Err(Error::internal("SELECT without operands")) };
        if self.per_row && self.shape.first() == x.shape.first() {
            let row = elements(x.shape.get(1..).unwrap_or_default());
            for (i, &c) in self.data.iter().enumerate() {
                let range = i * row..(i + 1) * row;
                d.data[range.clone()].copy_from_slice(if c != 0 { &x.data[range] } else { &y.data[range] });
            }
            return Ok(());
        }
        let shape = d.shape.clone();
        let (x, y) = ((x.shape, x.data), (y.shape, y.data));
        zip3(self.pool, &shape, (self.shape, self.data), x, y, d.data, |c, x, y| if c != 0 { x } else { y })
    }
}

/// The coordinates of the elements that `f` accepts, one row each.
fn positions<T: Pod + Send + Sync>(f: impl Fn(T) -> bool + Send + 'static) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let v = call.input(0)?;
        let x = v.as_slice::<T>()?;
        let steps = strides(v.shape);
        let count = x.iter().filter(|&&v| f(v)).count();
        let out = call.output(0)?;
        out.reshape(&[count, v.shape.len()])?;
        let out = out.as_mut_slice::<i64>()?;
        if v.shape.is_empty() {
            return Ok(());
        }
        let found = x.iter().enumerate().filter(|&(_, &v)| f(v));
        for (row, (mut i, _)) in out.chunks_mut(v.shape.len()).zip(found) {
            for (o, &s) in row.iter_mut().zip(&steps) {
                *o = (i / s) as i64;
                i %= s;
            }
        }
        Ok(())
    }))
}
