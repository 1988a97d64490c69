//! One thread pool for all kernels.
//!
//! The caller's thread does its share of the work, and workers that have just worked look for more for a while before
//! they sleep: the parallel parts of a network are short and follow one another closely, and to wake a thread takes
//! longer than many of them. A worker gets work only once it has answered that it is there: where other processes keep
//! it from running, the caller does everything itself instead of waiting for it.

#[cfg(not(target_family = "wasm"))]
use smallvec::SmallVec;
#[cfg(not(target_family = "wasm"))]
use std::cell::Cell;
#[cfg(not(target_family = "wasm"))]
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
};
#[cfg(not(target_family = "wasm"))]
use std::time::{Duration, Instant};

/// How long an idle worker looks for work before it sleeps.
#[cfg(not(target_family = "wasm"))]
const LINGER: Duration = Duration::from_micros(500);

/// Turns that the caller waits for workers before it sleeps.
#[cfg(not(target_family = "wasm"))]
const TURNS: usize = 20_000;

/// Turns that the caller waits for answers before it begins to work: a microsecond or two.
#[cfg(not(target_family = "wasm"))]
const GREETING: usize = 48;

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
    /// What each worker and its caller say.
    words: Arc<[AtomicU8]>,
}

/// The worker sleeps.
#[cfg(not(target_family = "wasm"))]
const ASLEEP: u8 = 0;
/// The worker looks for requests, or will when it wakes.
#[cfg(not(target_family = "wasm"))]
const LINGERING: u8 = 1;
/// A caller has work.
#[cfg(not(target_family = "wasm"))]
const ASKED: u8 = 2;
/// The worker has seen that, and takes the next work that the pool has.
#[cfg(not(target_family = "wasm"))]
const READY: u8 = 3;

impl Pool {
    /// A pool of `threads` threads, the caller's among them; 0 means one per core. If threads cannot be started the
    /// pool is the caller's thread: slower, never wrong.
    pub fn new(threads: usize) -> Pool {
        #[cfg(not(target_family = "wasm"))]
        {
            let n = if threads == 0 { std::thread::available_parallelism().map_or(1, |n| n.get()) } else { threads };
            if n > 1 {
                let built = rayon::ThreadPoolBuilder::new().num_threads(n - 1).build();
                let words = (1..n).map(|_| AtomicU8::new(ASLEEP)).collect();
                let workers = built.ok().map(|threads| Workers { threads, parts: Arc::default(), words });
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

    /// How often work was given to several threads.
    pub(crate) fn parts(&self) -> u64 {
        #[cfg(not(target_family = "wasm"))]
        if let Some(w) = &self.workers {
            return w.parts.load(Ordering::Relaxed);
        }
        0
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
                // A panic elsewhere leaves the queue whole.
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                next.map(|(i, c)| f(i, c)).is_some()
            });
            return;
        }
        for (i, c) in out.chunks_mut(chunk).enumerate() {
            f(i, c);
        }
    }
}

/// Workers that were asked and got no work yet; those that never answer are not waited for.
#[cfg(not(target_family = "wasm"))]
struct Asked<'a>(SmallVec<[&'a AtomicU8; 16]>);

#[cfg(not(target_family = "wasm"))]
impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|word| word.store(LINGERING, Ordering::Release));
    }
}

/// Lets a worker look for requests again, however its work ends.
#[cfg(not(target_family = "wasm"))]
struct Working<'a>(&'a AtomicU8, &'a AtomicUsize);

#[cfg(not(target_family = "wasm"))]
impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.store(LINGERING, Ordering::Release);
        self.1.fetch_add(1, Ordering::Release);
    }
}

#[cfg(not(target_family = "wasm"))]
impl Workers {
    /// Calls `step` on the caller's thread and on up to `most` workers until it says that nothing is left.
    fn share(&self, most: usize, step: &(dyn Fn() -> bool + Sync)) {
        self.parts.fetch_add(1, Ordering::Relaxed);
        let (mut asked, mut awake, mut asleep) = (Asked(SmallVec::new()), false, false);
        for word in self.words.iter().take(most) {
            // Another caller may have asked first.
            if word.compare_exchange(LINGERING, ASKED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                awake = true;
                asked.0.push(word);
            } else if word.compare_exchange(ASLEEP, ASKED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                asleep = true;
                asked.0.push(word);
            }
        }
        if asleep {
            let (words, parts) = (self.words.clone(), self.parts.clone());
            self.threads.spawn_broadcast(move |worker| {
                if let Some(word) = words.get(worker.index()) {
                    linger(word, &parts);
                }
            });
        }
        let (done, mut sent) = (AtomicUsize::new(0), 0);
        self.threads.in_place_scope(|s| {
            let mut send = || {
                asked.0.retain(|word| {
                    if word.load(Ordering::Acquire) != READY {
                        return true;
                    }
                    let working = Working(word, &done);
                    s.spawn(move |_| {
                        let _working = working;
                        while step() {}
                    });
                    sent += 1;
                    false
                });
                asked.0.is_empty()
            };
            for _ in 0..if awake { GREETING } else { 0 } {
                if send() {
                    break;
                }
                std::hint::spin_loop();
            }
            while step() {
                send();
            }
            drop(asked);
            // The scope would put this thread to sleep at once.
            let mut turns = 0;
            while done.load(Ordering::Acquire) < sent && turns < TURNS {
                std::hint::spin_loop();
                turns += 1;
            }
        });
    }
}

#[cfg(not(target_family = "wasm"))]
thread_local! {
    static LINGERS: Cell<bool> = const { Cell::new(false) };
}

/// Answers requests as long as there are new parts from time to time; at once nothing, where nobody asked or the worker
/// does so already (and has come upon this while it looked for work).
#[cfg(not(target_family = "wasm"))]
fn linger(word: &AtomicU8, parts: &AtomicU64) {
    if word.load(Ordering::Acquire) == ASLEEP || LINGERS.replace(true) {
        return;
    }
    let mut seen = parts.load(Ordering::Relaxed);
    let mut since = Instant::now();
    loop {
        for _ in 0..64 {
            if word.load(Ordering::Relaxed) != ASKED {
                std::hint::spin_loop();
            } else if word.compare_exchange(ASKED, READY, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                // Until the work is done or the request taken back.
                while word.load(Ordering::Acquire) == READY {
                    if rayon::yield_now() == Some(rayon::Yield::Idle) {
                        std::hint::spin_loop();
                    }
                }
            }
        }
        let now = parts.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > LINGER
            && word.compare_exchange(LINGERING, ASLEEP, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            LINGERS.set(false);
            return;
        }
    }
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
            #[cfg(not(target_family = "wasm"))]
            std::thread::sleep(LINGER * 20);
        }
    }

    #[test]
    fn callers_share_a_pool() {
        let pool = Pool::new(3);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for round in 0..300 {
                        let mut out = vec![0usize; 64];
                        pool.chunks(&mut out, 4, true, |i, piece| piece.fill(i + round));
                        assert!(out.iter().enumerate().all(|(k, v)| *v == k / 4 + round));
                    }
                });
            }
        });
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
