//! Matrix products: shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::FullyConnected(o) => {
            let (x, f) = (site.shape(0)?, site.shape_of_rank(1, 2)?);
            let (units, depth) = (f[0], f[1]);
            let total = crate::model::elements(x);
            let shape: Shape = if o.keep_num_dims {
                let Some((last, outer)) = x.split_last() else {
                    return Err(Error::invalid("keep_num_dims on a scalar"));
                };
                if *last != depth {
                    return Err(Error::invalid(format!("weights {f:?} on an input of shape {x:?}")));
                }
                outer.iter().copied().chain([units]).collect()
            } else if depth == 0 {
                let outer = x.split_last().map_or(&[][..], |(_, o)| o);
                Shape::from_slice(&[crate::model::elements(outer), units])
            } else {
                if total % depth != 0 {
                    return Err(Error::invalid(format!("weights {f:?} on an input of shape {x:?}")));
                }
                Shape::from_slice(&[total / depth, units])
            };
            let mut out = one(shape)?;
            // The shuffled format declares its scratch copy of the input as a second output.
            if site.outputs.len() > 1 {
                out.push(Some(Shape::from_slice(x)));
            }
            Ok(out)
        }
        Op::BatchMatmul(o) => {
            let (x, y) = (site.shape(0)?, site.shape(1)?);
            let (Some((xo, [xr, xc])), Some((yo, [yr, yc]))) = (x.split_last_chunk::<2>(), y.split_last_chunk::<2>())
            else {
                return Err(Error::invalid(format!("operands of shapes {x:?} and {y:?}, two dimensions are needed")));
            };
            let (rows, depth) = if o.adj_x { (xc, xr) } else { (xr, xc) };
            let (inner, columns) = if o.adj_y { (yc, yr) } else { (yr, yc) };
            if depth != inner {
                return Err(Error::invalid(format!("matrices of shapes {x:?} and {y:?} do not multiply")));
            }
            let mut out = broadcast(xo, yo)?;
            out.extend([*rows, *columns]);
            one(out)
        }
        _ => no_rule(site),
    }
}
