//! The zip archive that some tools append to a model (label files): where it starts, and how it moves.
//!
//! Offsets in such an archive count from the start of the whole file (as the metadata tools write them) or from the
//! archive's own first byte. In memory they count from the archive, so that [`crate::Model::appended`] is a zip file
//! by itself; in a written file they count from the start of the file, which every zip reader understands.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use bytes::Bytes;
use std::ops::Range;

/// Signature and fixed size of the end record, of a directory entry, and the limit of a comment behind the end record.
const END: &[u8] = b"PK\x05\x06";
const END_SIZE: usize = 22;
const ENTRY: &[u8] = b"PK\x01\x02";
const ENTRY_SIZE: usize = 46;
const MAX_COMMENT: usize = 65_535;

/// What is found of an archive.
struct Archive {
    range: Range<usize>,
    /// Bytes that lie before the archive's offset zero.
    shift: usize,
    /// Where the archive keeps offsets, from the start of the file: one per entry, then the directory's.
    fields: Vec<usize>,
}

/// Finds a zip archive at the end of `file`. `None` when there is none or it is broken: a broken archive must not stop
/// the model from loading.
fn find(file: &[u8]) -> Option<Archive> {
    let from = file.len().saturating_sub(END_SIZE + MAX_COMMENT);
    let tail = file.get(from..)?;
    let end = from.checked_add(tail.windows(4).rposition(|w| w == END)?)?;
    // Anything else behind the end record means that this is data of the model that happens to look like one.
    let comment = u16_at(file, end.checked_add(20)?)?;
    if end.checked_add(END_SIZE)?.checked_add(comment)? != file.len() {
        return None;
    }
    let entries = u16_at(file, end.checked_add(10)?)?;
    let directory_size = u32_at(file, end.checked_add(12)?)?;
    let directory_offset = u32_at(file, end.checked_add(16)?)?;
    let directory = end.checked_sub(directory_size)?;
    let shift = directory.checked_sub(directory_offset)?;
    let mut at = directory;
    let mut start = directory;
    let mut fields = Vec::new();
    for _ in 0..entries {
        if file.get(at..at.checked_add(4)?)? != ENTRY {
            return None;
        }
        let field = at.checked_add(42)?;
        let local = u32_at(file, field)?.checked_add(shift)?;
        if local >= directory {
            return None;
        }
        start = start.min(local);
        fields.push(field);
        let lengths = [28, 30, 32].iter().try_fold(0usize, |n, &f| n.checked_add(u16_at(file, at.checked_add(f)?)?));
        at = at.checked_add(ENTRY_SIZE)?.checked_add(lengths?)?;
    }
    fields.push(end.checked_add(16)?);
    Some(Archive { range: start..file.len(), shift, fields })
}

/// The archive at the end of `file`, as a zip file by itself; empty when there is none.
pub(crate) fn of(file: &Bytes) -> Bytes {
    let Some(a) = find(file) else { return Bytes::new() };
    let zip = file.slice(a.range.clone());
    if a.shift == a.range.start {
        return zip;
    }
    // Offsets count from elsewhere: a copy that counts from the archive's start. It cannot overflow, because every
    // offset names a byte at or behind that start.
    let mut out = zip.to_vec();
    match a.range.start.checked_sub(a.shift).map(|by| relocate(&mut out, &a, a.range.start, |v| v.checked_sub(by))) {
        Some(Some(())) => out.into(),
        _ => Bytes::new(),
    }
}

/// The archive `zip` (offsets counting from itself) for a place `at` bytes into a file. Without change where the
/// offsets do not fit 32 bits, or where `zip` is no archive: readers then look for the archive from its end.
pub(crate) fn moved_to(zip: &Bytes, at: usize) -> Bytes {
    let Some(a) = find(zip) else { return zip.clone() };
    let mut out = zip.to_vec();
    match relocate(&mut out, &a, 0, |v| v.checked_add(at)) {
        Some(()) => out.into(),
        None => zip.clone(),
    }
}

/// Rewrites the offsets of an archive that starts at `base` of the file in which it was found.
fn relocate(zip: &mut [u8], a: &Archive, base: usize, map: impl Fn(usize) -> Option<usize>) -> Option<()> {
    for &field in &a.fields {
        let at = field.checked_sub(base)?;
        let new = u32::try_from(map(u32_at(zip, at)?)?).ok()?;
        zip.get_mut(at..at.checked_add(4)?)?.copy_from_slice(&new.to_le_bytes());
    }
    Some(())
}

fn u32_at(file: &[u8], at: usize) -> Option<usize> {
    let b: [u8; 4] = file.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(b)).ok()
}

fn u16_at(file: &[u8], at: usize) -> Option<usize> {
    let b: [u8; 2] = file.get(at..at.checked_add(2)?)?.try_into().ok()?;
    Some(usize::from(u16::from_le_bytes(b)))
}
