//! Variables and hash tables; IF, WHILE, CALL and composites are the executor's own: kernels.

use super::*;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    no_kernel(site)
}
