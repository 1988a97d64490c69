//! Model files mapped into memory: weights are read from the page cache, and only when a kernel wants them.

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io;
use std::sync::Arc;

/// A mapped file.
#[derive(Debug, Clone)]
pub(crate) struct Map(Arc<Mmap>);

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Map {
    /// Gives back the memory that holds the file's pages for this process. What is read again comes from the system's
    /// cache of the file.
    #[allow(unsafe_code)]
    pub(crate) fn release(&self) {
        // SAFETY: the map is of a file, shared and read-only: its pages hold what the file has whenever they are read.
        #[cfg(target_os = "linux")]
        let done = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        // A system that will not merely keeps the pages.
        #[cfg(target_os = "linux")]
        let _ = done;
    }
}

/// The file's bytes, without a copy, and the map that they lie in.
#[allow(unsafe_code)]
pub(crate) fn map(file: &File) -> io::Result<(Bytes, Option<Map>)> {
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if len == 0 {
        return Ok((Bytes::new(), None));
    }
    // SAFETY: the map is private and read-only, and every reader treats the bytes as untrusted data. What no process
    // can rule out is another one that truncates the file meanwhile; `Model::open` documents that for its caller.
    let map = Map(Arc::new(unsafe { MmapOptions::new().len(len).map(file) }?));
    Ok((Bytes::from_owner(map.clone()), Some(map)))
}
