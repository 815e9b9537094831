//! Waiting for a condition, never for a fixed time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

const PAUSE: Duration = Duration::from_millis(10);

/// Calls `ask` until it returns `Some`. After `limit` the error names `what` was waited for.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if started.elapsed() > limit {
            bail!("waited {:.1} s in vain for: {what}", limit.as_secs_f32());
        }
        thread::sleep(PAUSE);
    }
}
