//! Pooling: shape rules.

use super::conv::window;
use super::*;
use crate::schema::Pool2DOptionsT;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::AveragePool2d(o) | Op::MaxPool2d(o) | Op::L2Pool2d(o) => pool(site, o),
        _ => no_rule(site),
    }
}

fn pool(site: &Site<'_>, o: &Pool2DOptionsT) -> Result<Inferred> {
    let x = site.shape_of_rank(0, 4)?;
    let size = |n: i32| usize::try_from(n).map_err(|_| Error::invalid(format!("a window of {n}")));
    let h = window(o.padding, x[1], size(o.filter_height)?, o.stride_h, 1)?;
    let w = window(o.padding, x[2], size(o.filter_width)?, o.stride_w, 1)?;
    one([x[0], h.out, w.out, x[3]].as_slice())
}
