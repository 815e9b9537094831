//! The processor time that the whole system used. Softirqs belong to no process, so a sum over
//! processes would miss exactly what a balancer in the kernel does.

use std::{fs, time::Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A moment, with the processor time up to it.
pub struct Moment {
    at: Instant,
    processors: f64,
    idle: f64,
    stolen: f64,
}

/// What happened between two moments, in seconds summed over all processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// The seconds on the clock.
    pub seconds: f64,
    /// Seconds of work.
    pub busy: f64,
    /// Seconds that a hypervisor gave to other machines.
    pub stolen: f64,
    /// Work as a share of the available time.
    pub share: f64,
}

impl Moment {
    /// This moment.
    pub fn now() -> Result<Moment> {
        let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let at = Instant::now();
        let (processors, idle, stolen) = parse(&text).context("/proc/stat has an unknown format")?;
        Ok(Moment { at, processors, idle, stolen })
    }

    /// What was spent until `later`. The kernel counts idle time exactly and everything else by
    /// samples, so work is the time that was not idle.
    pub fn until(&self, later: &Moment) -> Spent {
        let seconds = later.at.duration_since(self.at).as_secs_f64();
        let stolen = later.stolen - self.stolen;
        let all = seconds * self.processors;
        let busy = (all - (later.idle - self.idle) - stolen).clamp(0.0, all);
        Spent { seconds, busy, stolen, share: if all > 0.0 { busy / all } else { 0.0 } }
    }
}

/// The number of processors, their idle seconds (including waits for a disk) and their stolen
/// seconds.
fn parse(text: &str) -> Option<(f64, f64, f64)> {
    // USER_HZ, which is 100 on every architecture that we run on.
    const TICK: f64 = 0.01;
    let mut lines = text.lines();
    let all: Vec<f64> = lines.next()?.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let processors = lines.take_while(|line| line.starts_with("cpu")).count();
    Some((processors as f64, (all.get(3)? + all.get(4)?) * TICK, all.get(7)? * TICK))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn processors_idle_and_stolen_time_are_read() {
        let text =
            "cpu  10 0 20 700 50 0 5 30 0 0\ncpu0 5 0 10 350 25 0 2 15 0 0\ncpu1 5 0 10 350 25 0 3 15 0 0\nintr 1\n";
        assert_eq!(parse(text), Some((2.0, 7.5, 0.3)));
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn work_is_what_was_neither_idle_nor_stolen() {
        let at = Instant::now();
        let first = Moment { at, processors: 2.0, idle: 100.0, stolen: 1.0 };
        let later = Moment { at: at + Duration::from_secs(3), processors: 2.0, idle: 102.0, stolen: 1.5 };
        assert_eq!(first.until(&later), Spent { seconds: 3.0, busy: 3.5, stolen: 0.5, share: 3.5 / 6.0 });
    }
}
