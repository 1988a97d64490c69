//! LSTM, RNN, SVDF: shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    no_rule(site)
}
