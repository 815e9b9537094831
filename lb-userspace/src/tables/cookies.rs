//! SYN cookies: what they are made of, which services send them, and which clients get none.

use std::{collections::BTreeSet, mem::offset_of, sync::atomic::Ordering};

use anyhow::Result;
use lb_common::layout::{CookieKey, Service};

use super::{Tables, WayKey, lock};

impl Tables {
    /// Whether a service sends SYN cookies: `COOKIES_OFF`, `COOKIES_READY` or `COOKIES_ON`.
    pub fn cookies(&self, service: u16) -> u32 {
        self.fixed.services.word32(service.into(), offset_of!(Service, cookies)).load(Ordering::Acquire)
    }

    /// Writes whether a service sends them.
    pub fn set_cookies(&self, service: u16, cookies: u32) {
        self.fixed.services.word32(service.into(), offset_of!(Service, cookies)).store(cookies, Ordering::Release);
    }

    /// Turns them on or off, unless the word has changed by now.
    pub fn swap_cookies(&self, service: u16, from: u32, to: u32) {
        let word = self.fixed.services.word32(service.into(), offset_of!(Service, cookies));
        // Whoever has changed it in between had a reason, which is looked at next.
        _ = word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// What they are made of.
    pub fn cookie_key(&self) -> CookieKey {
        self.fixed.cookie_key.read(0)
    }

    /// Writes what they are made of. The cookies that are on their way may be worth nothing after
    /// it: their clients send their SYNs again.
    pub fn set_cookie_key(&self, key: &CookieKey) {
        self.fixed.cookie_key.publish(0, key, offset_of!(CookieKey, offset));
    }

    /// The clients of a service that get none.
    pub(super) fn exempt(&self, service: u16) -> BTreeSet<WayKey> {
        let exempt = lock(&self.exempt);
        exempt.iter().filter(|(of, _)| *of == service).map(|(_, prefix)| *prefix).collect()
    }

    /// Gives a service other clients that get none.
    pub(super) fn set_exempt(&self, service: u16, wanted: &BTreeSet<WayKey>) -> Result<()> {
        let before = self.exempt(service);
        let mut exempt = lock(&self.exempt);
        for gone in before.difference(wanted) {
            self.maps.set_exempt(service, *gone, false)?;
            exempt.remove(&(service, *gone));
        }
        for new in wanted.difference(&before) {
            self.maps.set_exempt(service, *new, true)?;
            exempt.insert((service, *new));
        }
        Ok(())
    }

    /// Bounds the payload that the segments of a service's new connections may have, see
    /// [`Service::mss_clamp`].
    pub fn set_mss_clamp(&self, service: u16, clamp: u32) {
        self.fixed.services.word32(service.into(), offset_of!(Service, mss_clamp)).store(clamp, Ordering::Release);
    }
}
