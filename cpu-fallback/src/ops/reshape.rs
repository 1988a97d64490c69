//! Operators that change or read the shape and move no element: kernels.

use super::*;
use crate::kernel::Call;
use crate::moves::{self, Piece};
use litegpu_graph::{DType, Op};

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    match &site.node.op {
        Op::Reshape(_) | Op::Squeeze(_) | Op::ExpandDims => {
            if site.input(0)?.dtype != site.output(0)?.dtype {
                return Err(Error::invalid(format!("{} in, {} out", site.input(0)?.dtype, site.output(0)?.dtype)));
            }
            Ok(Box::new(|call: &mut Call<'_>| {
                let x = call.input(0)?;
                let out = call.output(0)?;
                if x.dtype.bits() == 0 {
                    return out.set_raw(x.bytes);
                }
                if x.bytes.len() != out.bytes().len() {
                    return Err(Error::internal("a reshape that changes the number of bytes"));
                }
                out.bytes_mut().copy_from_slice(x.bytes);
                if moves::RECORDED
                    && let Some(record) = &mut call.record
                {
                    let (bytes, steps) = (x.bytes.len(), [0; 2]);
                    **record = Some(vec![Piece { operand: 0, from: 0, output: 0, to: 0, bytes, count: 1, steps }]);
                }
                Ok(())
            }))
        }
        Op::Shape(_) | Op::Rank => {
            let rank = matches!(site.node.op, Op::Rank);
            match site.output(0)?.dtype {
                DType::I32 | DType::I64 => {}
                _ => return no_kernel(site),
            }
            Ok(Box::new(move |call: &mut Call<'_>| {
                let shape = call.input(0)?.shape;
                let of_rank = [shape.len()];
                let dims = if rank { of_rank.as_slice() } else { shape };
                let out = call.output(0)?;
                let too_large = |d: usize| Error::invalid(format!("a dimension of {d} does not fit"));
                if out.dtype == DType::I64 {
                    for (o, &d) in out.as_mut_slice::<i64>()?.iter_mut().zip(dims) {
                        *o = i64::try_from(d).map_err(|_| too_large(d))?;
                    }
                } else {
                    for (o, &d) in out.as_mut_slice::<i32>()?.iter_mut().zip(dims) {
                        *o = i32::try_from(d).map_err(|_| too_large(d))?;
                    }
                }
                Ok(())
            }))
        }
        _ => no_kernel(site),
    }
}
