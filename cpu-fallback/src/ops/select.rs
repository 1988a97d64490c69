//! SELECT, SELECT_V2, WHERE: kernels.

use super::*;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    no_kernel(site)
}
