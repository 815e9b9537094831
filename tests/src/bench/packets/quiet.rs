//! Waits until the processor is ours alone. On a virtual machine a neighbour on the other thread of the core halves its
//! speed for a while, which nothing in the machine shows but a loop that takes longer.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use lb_common::hash::mix;

/// What a loop may take against the fastest one so far.
const SLACK: f64 = 1.15;
const PAUSE: Duration = Duration::from_millis(20);
/// Most of the time that one part of the benchmark may wait; then it measures as it is.
const PATIENCE: Duration = Duration::from_secs(60);

/// The watch over it.
pub struct Quiet {
    best: f64,
    waited: Duration,
}

impl Quiet {
    pub fn new() -> Quiet {
        let best = (0..50).map(|_| spin()).fold(f64::INFINITY, f64::min);
        Quiet { best, waited: Duration::ZERO }
    }

    /// Whether a loop takes as long as at the best of times, or there is no patience left.
    pub fn is(&mut self) -> bool {
        let took = spin();
        self.best = self.best.min(took);
        took <= self.best * SLACK || self.waited >= PATIENCE
    }

    /// Returns when it is.
    pub fn wait(&mut self) {
        while !self.is() {
            thread::sleep(PAUSE);
            self.waited += PAUSE;
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
