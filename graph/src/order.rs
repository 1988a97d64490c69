//! Ordering.

use std::cmp::Ordering;

/// Sorts numbers, mostly places in another list, by what they stand for; equals stay in their order. Compiled once: a
/// sort of each list's own would be several kilobytes of the browser's module.
pub fn order(list: &mut [usize], by: &mut dyn FnMut(usize, usize) -> Ordering) {
    list.sort_by(|&a, &b| by(a, b));
}
