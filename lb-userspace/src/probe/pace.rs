//! The time until the next probe: the interval while nothing changes, less while something does
//! (HAProxy's `fastinter`). So a backend that stops answering is detected within two intervals and
//! the timeouts of its probes, however high `fall` is.

use std::time::Duration;

/// The shortest time between two probes.
const LEAST: Duration = Duration::from_millis(50);

/// The pace of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    interval: Duration,
    rise: u32,
    fall: u32,
    /// The kind of the last outcomes, of which there were `run` in a row.
    passed: bool,
    run: u32,
}

impl Pace {
    /// Nothing is known yet: the first probes follow quickly.
    pub fn new(interval: Duration, rise: u32, fall: u32) -> Pace {
        Pace { interval, rise, fall, passed: true, run: 0 }
    }

    /// A probe passed or failed. Returns the time from its start to the start of the next one.
    pub fn after(&mut self, passed: bool) -> Duration {
        self.run = if passed == self.passed { self.run.saturating_add(1) } else { 1 };
        self.passed = passed;
        if self.run >= self.needed() { self.interval } else { self.quick() }
    }

    /// Clients experienced something else than the probes: what the probes found is in doubt again.
    pub fn hurry(&mut self) -> Duration {
        self.run = 0;
        self.quick()
    }

    fn needed(&self) -> u32 {
        if self.passed { self.rise } else { self.fall }
    }

    /// The pace at which all probes that are needed fit into one interval.
    fn quick(&self) -> Duration {
        (self.interval / self.rise.max(self.fall).max(2)).max(LEAST).min(self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    /// The times of probes with these outcomes, from the first one.
    fn times(pace: &mut Pace, outcomes: &[bool]) -> Vec<Duration> {
        let mut at = Duration::ZERO;
        outcomes
            .iter()
            .map(|passed| {
                let now = at;
                at += pace.after(*passed);
                now
            })
            .collect()
    }

    #[test]
    fn what_is_settled_is_asked_at_the_interval_and_what_changes_quickly() {
        let mut pace = Pace::new(INTERVAL, 2, 4);
        let ms = |times: Vec<Duration>| times.iter().map(Duration::as_millis).collect::<Vec<_>>();
        let outcomes = [true, true, true, false, false, false, false, false, true, true, true];
        let expected = [0, 500, 2500, 4500, 5000, 5500, 6000, 8000, 10_000, 10_500, 12_500];
        assert_eq!(ms(times(&mut pace, &outcomes)), expected);
        assert_eq!(pace.hurry(), Duration::from_millis(500));
        assert_eq!((pace.after(true), pace.after(true)), (Duration::from_millis(500), INTERVAL));
    }

    #[test]
    fn a_change_is_settled_within_one_interval_after_it_was_first_seen() {
        for interval in [100, 1000, 60_000].map(Duration::from_millis) {
            for (rise, fall) in (1..=10).flat_map(|rise| (1..=10).map(move |fall| (rise, fall))) {
                for passed in [true, false] {
                    let mut pace = Pace::new(interval, rise, fall);
                    times(&mut pace, &[!passed; 20]);
                    let needed = if passed { rise } else { fall };
                    let times = times(&mut pace, &vec![passed; needed as usize]);
                    let took = *times.last().expect("a probe");
                    assert!(took <= interval.max(LEAST * needed), "{interval:?} {rise} {fall} {passed}: {took:?}");
                }
            }
        }
    }
}
