//! SYN cookies: which services send them, and what they are made of.

use std::{mem::offset_of, sync::atomic::Ordering};

use lb_common::layout::{CookieKey, Service};

use super::Tables;

impl Tables {
    /// Whether a service sends SYN cookies: `COOKIES_OFF`, `COOKIES_READY` or `COOKIES_ON`.
    pub fn cookies(&self, service: u16) -> u32 {
        self.fixed.services.word32(service.into(), offset_of!(Service, cookies)).load(Ordering::Acquire)
    }

    /// Writes whether a service sends them.
    pub fn set_cookies(&self, service: u16, cookies: u32) {
        self.fixed.services.word32(service.into(), offset_of!(Service, cookies)).store(cookies, Ordering::Release);
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
}
