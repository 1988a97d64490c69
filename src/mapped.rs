//! Model files mapped into memory: weights are read from the page cache, and only when a kernel wants them.

use bytes::Bytes;
use std::fs::File;
use std::io;

/// The file's bytes, without a copy.
#[allow(unsafe_code)]
pub(crate) fn map(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is private and read-only, and every reader treats the bytes as untrusted data. What no process
    // can rule out is another one that truncates the file meanwhile; `Model::open` documents that for its caller.
    let map = unsafe { memmap2::Mmap::map(file) }?;
    Ok(Bytes::from_owner(map))
}
