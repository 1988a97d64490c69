//! Whether other threads help with a node's work.
//!
//! To hand work over and to hear that it is done takes about a microsecond, and what one thread has written must come to
//! the other's cache: whether that pays for work of a few microseconds hangs on the machine and on what else it does. It
//! is tried: a node that has given work away is run with and without help in turns and keeps what took less time. The
//! bytes that it computes are the same.

use crate::pool::Pool;
use std::time::Duration;
use web_time::Instant;

/// Runs of a trial, a third of them alone.
const TRIAL: u16 = 6;
/// Runs from one trial to the next.
const LASTS: u16 = 2000;
/// Work that takes this long is worth a thread without trial.
const LONG: Duration = Duration::from_micros(200);

/// What is known of one node.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// Runs left of the trial, then of its verdict; 0 where nothing has been given away.
    left: u16,
    trial: bool,
    alone: bool,
    /// The shortest times with help and alone.
    best: [Option<Duration>; 2],
}

impl Share {
    /// Whether the next run is one without help.
    pub(crate) fn alone(&self, threads: usize) -> bool {
        threads > 1 && if self.trial { self.turn() } else { self.alone }
    }

    /// Two of a trial's runs have help, then one is alone, and so on: a few runs after the first are not to take much
    /// longer than the rest. While nodes work alone the worker falls asleep; in the first run with help it has to be
    /// woken, the second is as it would always be.
    fn turn(&self) -> bool {
        self.left % 3 == 1
    }

    /// Called before the run with the parts that the pool has had.
    pub(crate) fn start(&self, pool: &Pool) -> Watch {
        let tries = self.trial && !cfg!(target_family = "wasm");
        Watch { parts: pool.parts(), since: tries.then(Instant::now) }
    }

    /// Called after it.
    pub(crate) fn stop(&mut self, pool: &Pool, watch: Watch) {
        // There are no other threads.
        if cfg!(target_family = "wasm") {
            return;
        }
        if let Some(since) = watch.since {
            self.tried(self.turn(), since.elapsed());
        } else if self.left > 0 {
            self.left -= 1;
            // A new trial.
            self.trial = self.left == 0;
        } else {
            self.trial = pool.parts() != watch.parts;
        }
        if self.trial && self.left == 0 {
            (self.left, self.best) = (TRIAL, [None; 2]);
        }
    }

    fn tried(&mut self, alone: bool, time: Duration) {
        let best = &mut self.best[alone as usize];
        *best = Some(best.map_or(time, |b| b.min(time)));
        self.left -= 1;
        let [with, without] = self.best;
        let long = with.is_some_and(|t| t >= LONG);
        if self.left == 0 || long {
            // Another thread must be worth more than the noise.
            let same = |t: Duration| t + t / 32;
            self.alone = !long && with.zip(without).is_some_and(|(with, without)| without <= same(with));
            (self.trial, self.left) = (false, LASTS);
        }
    }
}

/// A run that is watched.
#[derive(Debug)]
pub(crate) struct Watch {
    parts: u64,
    since: Option<Instant>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a node until its verdict, with times that hang on whether it had help; says whether it then runs alone.
    fn verdict(with: Duration, without: Duration) -> (bool, usize) {
        let mut share = Share { trial: true, left: TRIAL, ..Share::default() };
        let mut runs = 0;
        while share.trial {
            let alone = share.alone(2);
            share.tried(alone, if alone { without } else { with });
            runs += 1;
        }
        (share.alone(2), runs)
    }

    #[test]
    fn the_shorter_time_wins() {
        let us = Duration::from_micros;
        assert_eq!(verdict(us(9), us(5)), (true, TRIAL as usize));
        assert_eq!(verdict(us(5), us(9)), (false, TRIAL as usize));
        // Nothing won: the other thread may sleep.
        assert_eq!(verdict(us(100), us(101)), (true, TRIAL as usize));
        // What takes long has help from the first.
        assert!(verdict(LONG, us(1)) == (false, 1));
    }

    #[test]
    fn what_gives_nothing_away_is_not_watched() {
        let pool = Pool::new(2);
        let mut share = Share::default();
        for _ in 0..3 {
            let watch = share.start(&pool);
            assert!(watch.since.is_none() && !share.alone(2));
            share.stop(&pool, watch);
        }
        let watch = share.start(&pool);
        pool.chunks(&mut [0u8; 64], 8, true, |i, piece| piece.fill(i as u8));
        share.stop(&pool, watch);
        assert!(share.trial && share.start(&pool).since.is_some());
        // One thread is alone anyway.
        assert!(!share.alone(1));
        for _ in 0..TRIAL {
            let watch = share.start(&pool);
            share.stop(&pool, watch);
        }
        assert!(!share.trial && share.left == LASTS);
        for _ in 0..LASTS {
            let watch = share.start(&pool);
            assert!(watch.since.is_none());
            share.stop(&pool, watch);
        }
        assert!(share.trial && share.left == TRIAL);
    }
}
