//! The limit on lines of connections that were turned away: a flood of connections must not flood
//! the disk.

use std::time::{Duration, Instant};

/// Lines a second, each second counted from the first line in it.
const LINES_A_SECOND: u32 = 100;

/// Counts the lines of the current second.
#[derive(Default)]
pub struct Limit {
    second_began: Option<Instant>,
    lines: u32,
}

impl Limit {
    /// Whether one more line may be written now.
    pub fn allows(&mut self, now: Instant) -> bool {
        let over = self.second_began.is_none_or(|began| now.saturating_duration_since(began) >= Duration::from_secs(1));
        if over {
            self.second_began = Some(now);
            self.lines = 0;
        }
        self.lines += 1;
        self.lines <= LINES_A_SECOND
    }
}
