//! One thread pool for all kernels.

#[cfg(not(target_family = "wasm"))]
use std::sync::Arc;

/// Where kernels run their parallel parts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    #[cfg(not(target_family = "wasm"))]
    threads: Option<Arc<rayon::ThreadPool>>,
}

impl Pool {
    /// A pool of `threads` threads; 0 means one per core. One thread means the caller's own. If threads cannot be
    /// started the pool is the caller's thread: slower, never wrong.
    pub fn new(threads: usize) -> Pool {
        #[cfg(not(target_family = "wasm"))]
        {
            let n = if threads == 0 { std::thread::available_parallelism().map_or(1, |n| n.get()) } else { threads };
            if n > 1 {
                let built = rayon::ThreadPoolBuilder::new().num_threads(n).build();
                return Pool { threads: built.ok().map(Arc::new) };
            }
        }
        let _ = threads;
        Pool::default()
    }

    /// Number of threads that kernels may use.
    pub fn threads(&self) -> usize {
        #[cfg(not(target_family = "wasm"))]
        if let Some(p) = &self.threads {
            return p.current_num_threads();
        }
        1
    }

    /// Runs `f` inside the pool, so that rayon's parallel iterators use it.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        #[cfg(not(target_family = "wasm"))]
        if let Some(p) = &self.threads {
            return p.install(f);
        }
        f()
    }

    /// Splits `out` into pieces of `chunk` elements (the last may be shorter) and calls `f(index, piece)` for each, in
    /// parallel when `parallel` and there is more than one thread. Results do not depend on the number of threads.
    pub fn chunks<T: Send>(&self, out: &mut [T], chunk: usize, parallel: bool, f: impl Fn(usize, &mut [T]) + Sync) {
        let chunk = chunk.max(1);
        if self.threads() > 1 && parallel && out.len() > chunk {
            // The pool's machinery is compiled once per element type, not once per kernel: the call through a pointer
            // is nothing beside a chunk's work.
            self.scatter(out, chunk, &f);
        } else {
            for (i, c) in out.chunks_mut(chunk).enumerate() {
                f(i, c);
            }
        }
    }

    fn scatter<T: Send>(&self, out: &mut [T], chunk: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
        #[cfg(not(target_family = "wasm"))]
        if let Some(p) = &self.threads {
            use rayon::prelude::*;
            p.install(|| out.par_chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c)));
            return;
        }
        for (i, c) in out.chunks_mut(chunk).enumerate() {
            f(i, c);
        }
    }
}
