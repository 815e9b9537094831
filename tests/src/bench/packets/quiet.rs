//! Waits until processor and cache are ours alone. On a virtual machine a neighbour on the other thread of the core halves
//! its speed for a while, and one that shares the last cache pushes our tables out of it, which nothing in the machine
//! shows but a loop that takes longer.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use lb_common::hash::mix;

/// What a loop may take against the fastest one so far.
const SLACK: f64 = 1.15;
/// What a walk through the cache may take, likewise.
const CACHE_SLACK: f64 = 1.3;
const PAUSE: Duration = Duration::from_millis(20);
/// How long a part of the benchmark waits and measures again what was disturbed; then it measures as it is.
const PATIENCE: Duration = Duration::from_secs(60);
/// Cache lines that are walked through: 5 MiB, about as many as the tables of 65,536 flows have.
const LINES: u32 = 5 << 14;

type Line = [u32; 16];

/// The watch over it.
pub struct Quiet {
    lines: Vec<Line>,
    best: f64,
    best_walk: f64,
    since: Instant,
}

impl Quiet {
    pub fn new() -> Quiet {
        let mut quiet = Quiet { lines: ring(), best: f64::INFINITY, best_walk: f64::INFINITY, since: Instant::now() };
        for _ in 0..50 {
            quiet.is();
        }
        quiet
    }

    /// Whether both take as long as at the best of times, or there is no patience left.
    pub fn is(&mut self) -> bool {
        if self.since.elapsed() >= PATIENCE {
            return true;
        }
        let (took, walked) = (spin(), walk(&self.lines));
        self.best = self.best.min(took);
        self.best_walk = self.best_walk.min(walked);
        took <= self.best * SLACK && walked <= self.best_walk * CACHE_SLACK
    }

    /// Returns when it is.
    pub fn wait(&mut self) {
        while !self.is() {
            thread::sleep(PAUSE);
        }
    }
}

/// Seconds for a loop that keeps all units of the core busy.
fn spin() -> f64 {
    let began = Instant::now();
    let mut sums = [0_u64; 4];
    for number in 0..200_000_u64 {
        for (lane, sum) in (0..).zip(&mut sums) {
            *sum ^= mix(lane, number);
        }
    }
    black_box(sums);
    began.elapsed().as_secs_f64()
}

/// Lines each of which names the next one, far away, until every one was named: a linear congruential generator of full
/// period (Hull and Dobell: what is added has no factor of `LINES`, what is multiplied by less one has all, and four).
fn ring() -> Vec<Line> {
    let next = |number: u32| ((u64::from(number) * 24_741 + 12_347) % u64::from(LINES)) as u32;
    (0..LINES).map(|number| [next(number); 16]).collect()
}

/// Seconds for one read of every line; the second time round, for the first one brings them back.
fn walk(lines: &[Line]) -> f64 {
    let once = || {
        let began = Instant::now();
        black_box((0..LINES).fold(0, |at, _| lines[at as usize][0]));
        began.elapsed().as_secs_f64()
    };
    once();
    once()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_comes_by_every_line() {
        let lines = ring();
        let mut seen = vec![false; LINES as usize];
        let last = (0..LINES).fold(0, |at, _| {
            seen[at as usize] = true;
            lines[at as usize][0]
        });
        assert!(last == 0 && seen.iter().all(|seen| *seen));
    }
}
