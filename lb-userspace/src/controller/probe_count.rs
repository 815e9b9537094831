//! Probes counted: `rise` that pass in a row bring a backend up, `fall` that fail in a row take it
//! down (HAProxy's counter, check.c).
//!
//! ```text
//! 0 ....................... rise .................... rise + fall - 1
//! down, passes count up     up, failures count down   a pass puts it here
//! ```
//! In which way it is down depends on what it answered last: a status that is not listed, or a TLS
//! handshake that fails for what the server is, means alive but not ready, however many probes it
//! left unanswered before; only `fall` failures in a row without any answer mean dead.

/// The outcome of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered as it should.
    Passed,
    /// Answered, but not as it should.
    NotReady(Unready),
    /// The connection was refused.
    Refused,
    /// No answer in time, or none that makes sense: no TLS was spoken, the connection broke.
    Failed,
}

/// How a living backend is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// It answered with a status that is not listed.
    Status,
    /// It speaks TLS, but its certificate is not accepted, or there is no common protocol.
    Tls,
}

/// How many it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    /// Passes in a row that bring it up; at least 1.
    pub rise: u32,
    /// Failures in a row that take it down; at least 1.
    pub fall: u32,
}

/// What the probes so far mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is up.
    Up,
    /// Not up, and not enough passes to change that.
    NotYet,
    /// Alive, not ready.
    NotReady(Unready),
    /// Not there.
    Dead(Outcome),
}

/// The counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeCount {
    health: u32,
    /// Failures without an answer in a row.
    unanswered: u32,
    last: Option<Outcome>,
    /// How it was not ready when it last answered so.
    unready: Unready,
}

impl ProbeCount {
    /// A backend nothing is known about is up.
    pub fn up(tries: Tries) -> ProbeCount {
        ProbeCount { health: tries.rise + tries.fall - 1, ..ProbeCount::down() }
    }

    /// One that is out for another reason: it takes `rise` passes from now.
    pub fn down() -> ProbeCount {
        ProbeCount { health: 0, unanswered: 0, last: None, unready: Unready::Status }
    }

    /// Failures without an answer in a row.
    pub fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// How it was not ready when it last answered so.
    pub fn unready(&self) -> Unready {
        self.unready
    }

    /// Whether the last probe failed: a backend that may be on its way down.
    pub fn is_failing(&self) -> bool {
        self.last.is_some_and(|outcome| outcome != Outcome::Passed)
    }

    /// Counts a probe.
    pub fn count(&mut self, outcome: Outcome, tries: Tries) -> Verdict {
        self.last = Some(outcome);
        match outcome {
            Outcome::Passed => {
                self.health = (self.health + 1).min(self.highest(tries));
                if self.health >= tries.rise {
                    self.health = self.highest(tries);
                }
            }
            _ => {
                self.health = self.health.min(self.highest(tries)).saturating_sub(1);
                if self.health < tries.rise {
                    self.health = 0;
                }
            }
        }
        if let Outcome::NotReady(unready) = outcome {
            self.unready = unready;
        }
        let silent = matches!(outcome, Outcome::Refused | Outcome::Failed);
        self.unanswered = if silent { self.unanswered.saturating_add(1) } else { 0 };
        match outcome {
            _ if self.health >= tries.rise => Verdict::Up,
            Outcome::NotReady(unready) => Verdict::NotReady(unready),
            Outcome::Refused | Outcome::Failed if self.unanswered >= tries.fall => Verdict::Dead(outcome),
            _ => Verdict::NotYet,
        }
    }

    fn highest(&self, tries: Tries) -> u32 {
        tries.rise + tries.fall - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTCOMES: [Outcome; 4] =
        [Outcome::Passed, Outcome::NotReady(Unready::Tls), Outcome::Refused, Outcome::Failed];

    /// Every sequence of seven probes for every rise and fall up to three, with the verdict after
    /// each.
    fn every(mut law: impl FnMut(Tries, &[Outcome], Verdict)) {
        for (rise, fall) in (1..=3).flat_map(|rise| (1..=3).map(move |fall| (rise, fall))) {
            let tries = Tries { rise, fall };
            for code in 0..4_usize.pow(7) {
                let sequence: Vec<_> = (0..7).map(|at| OUTCOMES[code >> (2 * at) & 3]).collect();
                let mut probe_count = ProbeCount::up(tries);
                for end in 1..=7 {
                    law(tries, &sequence[..end], probe_count.count(sequence[end - 1], tries));
                }
            }
        }
    }

    /// Runs of passes and failures, read backwards: the definition in the manual, not the counter.
    fn is_up(tries: Tries, sequence: &[Outcome]) -> bool {
        let mut up = true;
        let (mut passes, mut failures) = (0, 0);
        for outcome in sequence {
            if *outcome == Outcome::Passed {
                (passes, failures) = (passes + 1, 0);
            } else {
                (passes, failures) = (0, failures + 1);
            }
            up = if up { failures < tries.fall } else { passes >= tries.rise };
        }
        up
    }

    #[test]
    fn rise_in_a_row_bring_it_up_and_fall_in_a_row_take_it_down() {
        every(|tries, sequence, verdict| {
            assert_eq!(verdict == Verdict::Up, is_up(tries, sequence), "{tries:?} {sequence:?}");
        });
    }

    #[test]
    fn dead_is_only_what_did_not_answer_fall_times_in_a_row() {
        every(|tries, sequence, verdict| {
            let unanswered = |outcome: &&Outcome| matches!(outcome, Outcome::Refused | Outcome::Failed);
            let silent = sequence.iter().rev().take_while(unanswered).count();
            let dead = silent >= tries.fall as usize;
            assert_eq!(matches!(verdict, Verdict::Dead(_)), dead && !is_up(tries, sequence), "{tries:?} {sequence:?}");
            if let Verdict::Dead(last) = verdict {
                assert_eq!(sequence.last(), Some(&last));
            }
        });
    }

    #[test]
    fn an_answer_that_is_not_accepted_means_not_ready_once_it_is_not_up() {
        every(|tries, sequence, verdict| {
            let answered = sequence.last() == Some(&Outcome::NotReady(Unready::Tls)) && !is_up(tries, sequence);
            assert_eq!(verdict == Verdict::NotReady(Unready::Tls), answered, "{tries:?} {sequence:?}");
        });
    }

    #[test]
    fn after_another_reason_to_be_out_rise_passes_are_needed() {
        let tries = Tries { rise: 2, fall: 3 };
        let mut probe_count = ProbeCount::down();
        assert!(!probe_count.is_failing());
        assert_eq!(probe_count.count(Outcome::Passed, tries), Verdict::NotYet);
        assert_eq!(probe_count.count(Outcome::Refused, tries), Verdict::NotYet);
        assert!(probe_count.is_failing());
        assert_eq!(probe_count.count(Outcome::Passed, tries), Verdict::NotYet);
        assert_eq!(probe_count.count(Outcome::Passed, tries), Verdict::Up);
    }
}
