//! The zip archive that some tools append to a model (label files): where it starts.

use bytes::Bytes;
use std::ops::Range;

/// Finds the range of a zip archive at the end of `file`. Offsets inside the archive may count from the start of the
/// file (as the metadata tools write them) or of the archive. Returns `None` when there is none or it is broken: a
/// broken archive must not stop the model from loading.
pub(crate) fn zip_range(file: &Bytes) -> Option<Range<usize>> {
    const END: [u8; 4] = *b"PK\x05\x06";
    let from = file.len().saturating_sub(22 + 65_535);
    let tail = file.get(from..)?;
    let end = from + tail.windows(4).rposition(|w| w == END)?;
    let u32_at = |at: usize| -> Option<usize> {
        let b: [u8; 4] = file.get(at..at.checked_add(4)?)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(b)).ok()
    };
    let u16_at = |at: usize| -> Option<usize> {
        let b: [u8; 2] = file.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(usize::from(u16::from_le_bytes(b)))
    };
    let entries = u16_at(end.checked_add(10)?)?;
    let directory_size = u32_at(end.checked_add(12)?)?;
    let directory_offset = u32_at(end.checked_add(16)?)?;
    let directory = end.checked_sub(directory_size)?;
    let shift = directory.checked_sub(directory_offset)?;
    let mut at = directory;
    let mut start = directory;
    for _ in 0..entries {
        if file.get(at..at.checked_add(4)?)? != b"PK\x01\x02" {
            return None;
        }
        start = start.min(u32_at(at.checked_add(42)?)?.checked_add(shift)?);
        let lengths = u16_at(at.checked_add(28)?)?
            .checked_add(u16_at(at.checked_add(30)?)?)?
            .checked_add(u16_at(at.checked_add(32)?)?)?;
        at = at.checked_add(46)?.checked_add(lengths)?;
    }
    Some(start..file.len())
}
