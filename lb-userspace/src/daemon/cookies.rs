//! What SYN cookies are made of, which the controller's core does not know: the secret, and the time
//! of day.

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use lb_common::layout::CookieKey;

use super::Daemon;
use crate::{
    sync::seal::SharedKey,
    sys::{clock, random},
};

/// What the secret is derived for (the `info` of HKDF).
const PURPOSE: &[u8] = b"evenkeel syn cookies 1";
/// How often the time of day is compared with the clock that the kernel program reads.
pub const COMPARED: Duration = Duration::from_secs(60);

impl Daemon {
    /// Both hosts of a pair have one secret: a client that moves to the other in mid-connect is
    /// known there. Without flow sync it is random, and stays as long as the tables do.
    pub(super) fn write_cookie_key(&self, shared: Option<&SharedKey>) -> Result<()> {
        let tables = self.dataplane.tables();
        let found = tables.cookie_key().key;
        let key = match shared {
            Some(shared) => words(shared.of_purpose(PURPOSE)),
            None if found != [0; 2] => found,
            None => {
                let word = || random::word().context("no random numbers for the key of SYN cookies");
                [word()?, word()?]
            }
        };
        tables.set_cookie_key(&CookieKey { key, offset: offset(), reserved: 0 });
        Ok(())
    }

    /// Numbers the epochs of cookies as every other host does.
    pub(super) fn write_cookie_clock(&self) {
        let tables = self.dataplane.tables();
        tables.set_cookie_key(&CookieKey { offset: offset(), ..tables.cookie_key() });
    }
}

/// The time of day less CLOCK_MONOTONIC.
fn offset() -> u64 {
    (Timestamp::now().as_nanosecond() as u64).wrapping_sub(clock::monotonic().0)
}

fn words(key: [u8; 16]) -> [u64; 2] {
    let (words, _) = key.as_chunks();
    [words[0], words[1]].map(u64::from_le_bytes)
}
