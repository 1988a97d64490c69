//! LSTM, RNN, SVDF: kernels.

use super::*;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    no_kernel(site)
}
