//! Ordering.

use std::cmp::Ordering;

/// Sorts numbers, mostly places in another list, by what they stand for; equals stay in their order. Compiled once: a
/// sort of each list's own would be several kilobytes of the browser's module.
pub fn order(list: &mut [usize], by: &mut dyn FnMut(usize, usize) -> Ordering) {
    list.sort_by(|&a, &b| by(a, b));
}

/// The list sorted, equals in their order; for what is not a number, as [`order`].
pub fn ordered<T>(list: Vec<T>, by: &mut dyn FnMut(&T, &T) -> Ordering) -> Vec<T> {
    let mut places: Vec<usize> = (0..list.len()).collect();
    order(&mut places, &mut |a, b| match (list.get(a), list.get(b)) {
        (Some(a), Some(b)) => by(a, b),
        _ => Ordering::Equal,
    });
    let mut list: Vec<Option<T>> = list.into_iter().map(Some).collect();
    places.into_iter().filter_map(|p| list.get_mut(p)?.take()).collect()
}
