//! When a service sends SYN cookies: the answer to a flood of SYNs that nothing in the tables is
//! needed for (`lb_common::cookie`).
//!
//! The word in the service's record is the truth. This machine turns it on above a number of
//! half-open connections, and off when there has been no flood for a while. The kernel program turns
//! it on too, when its ring of half-open flows is full, so that a flood is withstood without a
//! controller; it never turns it off.
//!
//! While cookies are on a flood makes no connection, so it is seen in what the clients leave
//! unanswered: without cookies that would be half-open. These are counted for all services together,
//! so that a flood at one may keep the cookies of another on, if they are.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{
    layout::{COOKIES_OFF, COOKIES_ON, COOKIES_READY},
    time::Instant,
};
use log::Level;

use super::half_open::UNCONFIRMED;
use crate::words::{CookieReason, SynCookies};

/// Half-open connections of one backend that are still no flood: half of what its kernel takes by
/// default (`net.core.somaxconn`, 4,096).
const PER_BACKEND: u32 = 2048;
/// How long there must be no sign of a flood before they are turned off.
const CALM: Duration = Duration::from_secs(30);
/// The shortest time between two notices that clients do not answer.
const NOTICE: Duration = Duration::from_secs(60);

/// Above how many half-open connections a service sends cookies.
pub fn limit(cells: u32, backends: usize) -> u32 {
    (cells / 2).min(PER_BACKEND * backends.max(1) as u32)
}

/// What is seen of a service.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// What the configuration asks for.
    pub wanted: SynCookies,
    /// The word in its record.
    pub word: u32,
    /// Its half-open connections.
    pub half_open: u32,
    /// See [`limit`].
    pub limit: u32,
}

/// What is known of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether it sends cookies.
    pub on: bool,
    /// Since when; no earlier than the daemon's start.
    pub since: Instant,
    /// Why; `None`: there is no flood.
    pub reason: Option<CookieReason>,
}

/// What a look at a service leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The word to write in place of the one that was seen.
    pub write: Option<u32>,
    /// It has been turned on or off, for the operator.
    pub told: Option<Standing>,
}

/// How many cookies were sent, answered, and met by the same SYN again, as the counters say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub sent: u64,
    pub answered: u64,
    pub unanswered: u64,
}

#[derive(Debug)]
struct Service {
    standing: Standing,
    /// Since when there has been no sign of a flood, while they are on.
    calm: Option<Instant>,
}

/// The machine; one for all services.
#[derive(Debug, Default)]
pub struct Cookies {
    services: BTreeMap<u16, Service>,
    /// The counters, and when they were read.
    counted: Option<(Counts, Instant)>,
    /// Connections that would be half-open without cookies.
    kept_out: u32,
    /// When it was last said that clients do not answer, and what the counter said then.
    notice: Option<(u64, Instant)>,
}

impl Cookies {
    /// Looks at a service.
    pub fn look(&mut self, number: u16, sight: Sight, now: Instant) -> Turn {
        let is_on = sight.word == COOKIES_ON;
        let known = self.services.get(&number).map(|service| service.standing);
        let before = known.unwrap_or(Standing { on: false, since: now, reason: None });
        let (on, reason) = match sight.wanted {
            SynCookies::Always => (true, Some(CookieReason::Config)),
            SynCookies::Off => (false, Some(CookieReason::Config)),
            SynCookies::Auto if is_on && self.is_over(number, &sight, now) => (false, None),
            SynCookies::Auto if is_on => (true, Some(why(before, known.is_some()))),
            SynCookies::Auto if sight.half_open > sight.limit => (true, Some(CookieReason::HalfOpen)),
            SynCookies::Auto => (false, None),
        };
        let since = if on == before.on { before.since } else { now };
        let standing = Standing { on, since, reason };
        let calm = self.services.get(&number).and_then(|service| service.calm).filter(|_| on);
        self.services.insert(number, Service { standing, calm });
        let word = match (sight.wanted, on) {
            (_, true) => COOKIES_ON,
            (SynCookies::Auto, false) => COOKIES_READY,
            (_, false) => COOKIES_OFF,
        };
        Turn { write: (word != sight.word).then_some(word), told: (on != before.on).then_some(standing) }
    }

    /// Whether there has been no sign of a flood for long enough.
    fn is_over(&mut self, number: u16, sight: &Sight, now: Instant) -> bool {
        let load = sight.half_open.saturating_add(self.kept_out);
        let Some(service) = self.services.get_mut(&number) else { return false };
        if load > sight.limit / 2 {
            service.calm = None;
            return false;
        }
        service.calm.get_or_insert(now).age(now) >= CALM
    }

    /// Takes in the counters, once a second. Returns how many SYNs have come again whose clients do
    /// not answer their cookies, if that is to be said now.
    pub fn count(&mut self, counts: Counts, now: Instant) -> Option<u64> {
        let (before, at) = self.counted.replace((counts, now)).unwrap_or((counts, now));
        let ms = at.age(now).as_millis() as u64;
        let unanswered = (counts.sent - before.sent.min(counts.sent))
            .saturating_sub(counts.answered - before.answered.min(counts.answered));
        self.kept_out = u32::try_from(unanswered * UNCONFIRMED.as_millis() as u64 / ms.max(1)).unwrap_or(u32::MAX);
        let Some((told, at)) = self.notice else {
            self.notice = Some((counts.unanswered, Instant::ZERO));
            return None;
        };
        if counts.unanswered <= told || at != Instant::ZERO && at.age(now) < NOTICE {
            return None;
        }
        self.notice = Some((counts.unanswered, now));
        Some(counts.unanswered - told)
    }

    /// What is known of a service.
    pub fn standing(&self, number: u16) -> Option<Standing> {
        self.services.get(&number).map(|service| service.standing)
    }

    /// Forgets services that are gone.
    pub fn retain(&mut self, is_there: impl Fn(u16) -> bool) {
        self.services.retain(|number, _| is_there(*number));
    }
}

/// What is said of a service that has been turned on or off.
pub fn text(standing: Standing, sight: &Sight) -> (Level, String) {
    let (half_open, limit) = (sight.half_open, sight.limit);
    match (standing.on, standing.reason) {
        (true, Some(CookieReason::Config)) => {
            (Level::Info, "sends a SYN cookie to every new client: syn_cookies = \"always\"".into())
        }
        (true, Some(CookieReason::HalfOpen)) => {
            (Level::Warn, format!("sends SYN cookies: {half_open} half-open connections, more than {limit}"))
        }
        (true, Some(CookieReason::Kept)) => {
            (Level::Warn, "goes on sending SYN cookies, as before the daemon started".into())
        }
        (true, _) => (Level::Warn, "sends SYN cookies: there was no room for more half-open connections".into()),
        (false, Some(_)) => (Level::Info, "sends no SYN cookies any more: syn_cookies = \"off\"".into()),
        (false, None) => (Level::Info, format!("sends no SYN cookies any more: no flood for {} s", CALM.as_secs())),
    }
}

/// What is said of clients that do not answer.
pub fn unanswered(count: u64) -> String {
    format!(
        "{count} SYN(s) came again a second after their SYN cookies: their clients, or a firewall before them, do not \
         answer; clients that cannot are listed in syn_cookies_exempt"
    )
}

/// Why the word says that they are on.
fn why(before: Standing, known: bool) -> CookieReason {
    match before.reason {
        Some(reason) if before.on && reason != CookieReason::Config => reason,
        _ if before.on || !known => CookieReason::Kept,
        _ => CookieReason::RingFull,
    }
}

#[cfg(test)]
mod tests;
