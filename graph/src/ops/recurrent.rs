//! LSTM, RNN, SVDF: shape rules.

use super::*;
use crate::schema::LSTMKernelType;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::Lstm(o) if o.kernel_type == LSTMKernelType::BASIC => {
            let x = site.shape_of_rank(0, 2)?;
            let activation = site.shape_of_rank(1, 2)?;
            let state = site.shape_of_rank(4, 2)?;
            let (batch, total) = (x[0], x[1].saturating_add(activation[1]));
            let internal = activation[1].saturating_mul(4);
            Ok([activation, state, &[batch, total], &[batch, internal]]
                .map(|s| Some(Shape::from_slice(s)))
                .into_iter()
                .collect())
        }
        Op::Lstm(_) => {
            let x = site.shape(0)?;
            if x.len() != 2 && x.len() != 3 {
                return Err(Error::invalid(format!("input of shape {x:?}, 2 or 3 dimensions are needed")));
            }
            one(with_last(x, outputs_of(site.shape(8)?)?))
        }
        Op::UnidirectionalSequenceLstm(_) => one(with_last(site.shape_of_rank(0, 3)?, outputs_of(site.shape(8)?)?)),
        Op::BidirectionalSequenceLstm(o) => {
            let x = site.shape_of_rank(0, 3)?;
            let (fw, bw) = (outputs_of(site.shape_of_rank(8, 2)?)?, outputs_of(site.shape_of_rank(25, 2)?)?);
            Ok(both(x, fw, bw, o.merge_outputs))
        }
        Op::Rnn(_) => {
            let x = site.shape_of_rank(0, 2)?;
            one(Shape::from_slice(&[x[0], site.shape_of_rank(1, 2)?[0]]))
        }
        Op::UnidirectionalSequenceRnn(_) => one(with_last(site.shape_of_rank(0, 3)?, site.shape_of_rank(1, 2)?[0])),
        Op::BidirectionalSequenceRnn(o) => {
            let x = site.shape_of_rank(0, 3)?;
            Ok(both(x, site.shape_of_rank(1, 2)?[0], site.shape_of_rank(5, 2)?[0], o.merge_outputs))
        }
        Op::Svdf(o) => {
            let x = site.shape_of_rank(0, 2)?;
            let filters = site.shape_of_rank(1, 2)?[0];
            let rank = usize::try_from(o.rank).ok().filter(|&r| r > 0 && filters % r == 0);
            let rank = rank.ok_or_else(|| Error::invalid(format!("rank {} with {filters} filters", o.rank)))?;
            one(Shape::from_slice(&[x[0], filters / rank]))
        }
        _ => no_rule(site),
    }
}

/// The width of an LSTM's output, from its recurrent weights: a matrix, or a vector where it is diagonal.
fn outputs_of(weights: &[usize]) -> Result<usize> {
    match weights {
        [n] | [_, n] => Ok(*n),
        w => Err(Error::invalid(format!("recurrent weights of shape {w:?}"))),
    }
}

fn with_last(x: &[usize], last: usize) -> Shape {
    let mut out = Shape::from_slice(x);
    if let Some(n) = out.last_mut() {
        *n = last;
    }
    out
}

fn both(x: &[usize], fw: usize, bw: usize, merged: bool) -> Inferred {
    if merged {
        return SmallVec::from_elem(Some(with_last(x, fw.saturating_add(bw))), 1);
    }
    [with_last(x, fw), with_last(x, bw)].map(Some).into_iter().collect()
}
