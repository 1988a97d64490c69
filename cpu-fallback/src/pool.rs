//! One thread pool for all kernels.
//!
//! The caller's thread does its share of the work, and workers that have just worked look for more for a while before
//! they sleep: the parallel parts of a network are short and follow one another closely, and to wake a thread takes
//! longer than many of them.

#[cfg(not(target_family = "wasm"))]
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};
#[cfg(not(target_family = "wasm"))]
use std::time::{Duration, Instant};

/// How long an idle worker looks for work before it sleeps.
#[cfg(not(target_family = "wasm"))]
const LINGER: Duration = Duration::from_micros(200);

/// Turns that the caller waits for workers before it sleeps.
#[cfg(not(target_family = "wasm"))]
const TURNS: usize = 20_000;

/// Where kernels run their parallel parts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    #[cfg(not(target_family = "wasm"))]
    workers: Option<Arc<Workers>>,
}

/// All threads but the caller's.
#[cfg(not(target_family = "wasm"))]
#[derive(Debug)]
struct Workers {
    threads: rayon::ThreadPool,
    /// Parallel parts so far: what tells a lingering worker that there is still work coming.
    parts: Arc<AtomicU64>,
    /// For each worker, whether it lingers.
    lingering: Vec<Arc<AtomicBool>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's among them; 0 means one per core. If threads cannot be started the
    /// pool is the caller's thread: slower, never wrong.
    pub fn new(threads: usize) -> Pool {
        #[cfg(not(target_family = "wasm"))]
        {
            let n = if threads == 0 { std::thread::available_parallelism().map_or(1, |n| n.get()) } else { threads };
            if n > 1 {
                let built = rayon::ThreadPoolBuilder::new().num_threads(n - 1).build();
                let lingering = (1..n).map(|_| Arc::default()).collect();
                let workers = built.ok().map(|threads| Workers { threads, parts: Arc::default(), lingering });
                return Pool { workers: workers.map(Arc::new) };
            }
        }
        let _ = threads;
        Pool::default()
    }

    /// Number of threads that kernels may use.
    pub fn threads(&self) -> usize {
        #[cfg(not(target_family = "wasm"))]
        if let Some(w) = &self.workers {
            return w.threads.current_num_threads() + 1;
        }
        1
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
        if let Some(w) = &self.workers {
            let pieces = out.len().div_ceil(chunk);
            let queue = Mutex::new(out.chunks_mut(chunk).enumerate());
            w.share(pieces - 1, &|| {
                loop {
                    // A panic elsewhere leaves the queue whole.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    match next {
                        Some((i, c)) => f(i, c),
                        None => return,
                    }
                }
            });
            return;
        }
        for (i, c) in out.chunks_mut(chunk).enumerate() {
            f(i, c);
        }
    }
}

#[cfg(not(target_family = "wasm"))]
impl Workers {
    /// Runs `work` on the caller's thread and on up to `most` workers at once.
    fn share(&self, most: usize, work: &(dyn Fn() + Sync)) {
        self.parts.fetch_add(1, Ordering::Relaxed);
        let helpers = self.lingering.len().min(most);
        for lingering in self.lingering.iter().take(helpers) {
            if !lingering.swap(true, Ordering::Relaxed) {
                let (lingering, parts) = (lingering.clone(), self.parts.clone());
                self.threads.spawn(move || linger(&lingering, &parts));
            }
        }
        let done = AtomicUsize::new(0);
        self.threads.in_place_scope(|s| {
            for _ in 0..helpers {
                s.spawn(|_| {
                    work();
                    done.fetch_add(1, Ordering::Release);
                });
            }
            work();
            // The scope would put this thread to sleep at once.
            let mut turns = 0;
            while done.load(Ordering::Acquire) < helpers && turns < TURNS {
                std::hint::spin_loop();
                turns += 1;
            }
        });
    }
}

/// Takes on work as long as there are new parts from time to time.
#[cfg(not(target_family = "wasm"))]
fn linger(lingering: &AtomicBool, parts: &AtomicU64) {
    let mut seen = parts.load(Ordering::Relaxed);
    let mut since = Instant::now();
    loop {
        for _ in 0..32 {
            if rayon::yield_now() == Some(rayon::Yield::Idle) {
                std::hint::spin_loop();
            }
        }
        let now = parts.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > LINGER {
            break;
        }
    }
    lingering.store(false, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for round in 0..200 {
                let mut out = vec![0usize; 1000];
                pool.chunks(&mut out, 7, true, |i, piece| piece.iter_mut().for_each(|v| *v += i + round));
                assert!(out.iter().enumerate().all(|(k, v)| *v == k / 7 + round), "{threads} threads");
            }
            // Workers that have gone to sleep wake again.
            std::thread::sleep(LINGER * 20);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let pool = Pool::new(3);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.chunks(&mut [0; 64], 1, true, |i, _| assert!(i != 40, "piece {i}"));
        }));
        assert!(caught.is_err());
        let mut out = [0; 64];
        pool.chunks(&mut out, 1, true, |_, p| p[0] = 1);
        assert_eq!(out, [1; 64]);
    }
}
