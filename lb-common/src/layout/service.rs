//! The records of services, their backends and their clients.

use super::{CONNECT_TIME_BUCKETS, MAX_SERVICE_BACKENDS, MAX_SNAT};
use crate::{
    failures::Window,
    time::{Instant, Ticks},
};

/// MAGLEV[service]: four entries of the table of `balance = "hash"`: positions in
/// [`Service::backends`].
pub type MaglevLine = [u16; 4];
/// Lines of a Maglev table.
pub const MAGLEV_LINES: u32 = crate::schedule::MAGLEV_PLACES.div_ceil(4);

/// CONNECT_TIMES\[backend\]: a histogram of connect times; see [`connect_time_bucket`].
pub type ConnectTimes = [u32; CONNECT_TIME_BUCKETS];

/// BACKENDS: one backend of one service. The first line is what the scheduler needs, the second
/// totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Backend {
    /// Flows open to it, half-open ones included. Changed once when one opens and once when it
    /// ends.
    pub active: u32,
    /// Smooth weighted round-robin's current weight (an i32).
    pub current: u32,
    /// Share of new connections; at least 1.
    pub weight: u32,
    /// Most active connections; 0: unlimited.
    pub max_conns: u32,
    /// `NONE`, `OUT` or `UP`: what it may be given. Written by the controller; the kernel program
    /// swaps `UP` for `OUT` at the failure that is one too many (see [`Failures`]), and `OUT` for
    /// `UP` when a trial connection succeeds.
    pub admission: u32,
    /// `BACKUP`.
    pub flags: u32,
    /// While `OUT`: from when on one connection may try it; [`Instant::NEVER`]: none may, only its
    /// probe brings it back. Moved forward by compare-and-swap.
    pub retry_at: Instant,
    /// fail_timeout in nanoseconds: within how long failures count together, and how long they, or
    /// a failed trial, keep it out.
    pub retry_after: u64,
    /// The service, its number in SERVICES.
    pub service: u16,
    /// How many of `pools` are used.
    pub pool_count: u16,
    /// Its pools, one for each SNAT address of the service.
    pub pools: [u16; MAX_SNAT as usize],
    /// For the controller: why it is out, the number of a [`Reason`](crate::verdict::Reason); 0: it
    /// is not out, or the reason is unknown. Written by the side that takes it out.
    pub out_reason: u32,

    /// Connections given to it.
    pub opened: u64,
    /// Connections that it answered.
    pub connected: u64,
    /// Tries that failed: refused or timed out.
    pub connect_failures: u64,
    /// Connections that ended by a RST, of either side or ours.
    pub resets: u64,
    /// Payload bytes from clients, of connections that have ended.
    pub bytes_in: u64,
    /// Payload bytes to clients, of connections that have ended.
    pub bytes_out: u64,
    /// For the controller: when its state last changed; [`Instant::ZERO`]: unknown. Written by the
    /// side that takes it out.
    pub changed_at: Instant,
    /// The sum of all connect times, for the histogram in CONNECT_TIMES. Microseconds.
    pub connect_us: u64,
}

/// SLOW_STARTS\[backend\]: a backend that has come back gets less than its share for a while,
/// growing from nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlowStart {
    /// When it gets its whole share again. Written by the side that lets it take part again: the
    /// controller, or the kernel program after a trial.
    pub until: Instant,
    /// slow_start in milliseconds; 0: none. Written by the controller.
    pub ms: u32,
    /// What it has saved up of its share, in 2^-32 connections. Written by the kernel program under
    /// the service's lock.
    pub credit: u32,
}

/// FAILURES\[backend\]: the tries to connect that have failed lately. The kernel program counts
/// them and takes the backend out at the one that is one too many, so that it meets no more whether
/// a controller runs or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Failures {
    /// Those that count together. Written by the kernel program, by compare-and-swap; cleared by
    /// the side that takes the backend out or lets it take part again.
    pub window: Window,
    /// max_fails: as many take it out; 0: no number does. Written by the controller.
    pub max_fails: u32,
    /// Zero.
    pub reserved: u32,
}

/// In [`Backend::out_reason`], above every reason: it is alive and not ready.
pub const NOT_READY: u32 = 1 << 8;
/// In [`Backend::out_reason`]: it is alive, and its TLS certificate or protocol is not accepted.
pub const UNTRUSTED: u32 = 1 << 9;
/// Gets no connections: `down`, `maint`, draining, or a tombstone.
pub const NONE: u32 = 0;
/// Out by health: it gets a trial connection at `retry_at`, or connections when nothing else is
/// left.
pub const OUT: u32 = 1;
/// Gets its share.
pub const UP: u32 = 2;
/// In [`Backend::flags`]: used only when no other backend is up.
pub const BACKUP: u32 = 1;

/// SERVICES: first line written by the controller, second by the kernel program, then the list of
/// backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Service {
    /// How long a backend has for its SYN-ACK, in nanoseconds.
    pub connect_timeout: u64,
    /// One of `schedule::{LEAST_CONN, ROUND_ROBIN, RANDOM_TWO, HASH}`.
    pub balance: u32,
    /// How many of `backends` are used.
    pub backend_count: u32,
    /// Most backends one connection tries; at least 1.
    pub tries: u32,
    /// Cells of its ring of half-open flows; 0: the service accepts no connections.
    pub half_open_cells: u32,
    /// A set of `LOG`, `EXEMPTS`.
    pub flags: u32,
    /// Most connections of one client, at most `clients::MOST`; 0: unlimited.
    pub client_limit: u32,
    /// The latest [`SlowStart::until`] of its backends: after that, none of them is starting
    /// slowly. Written together with them.
    pub slow_until: Instant,
    /// How often `backends` has changed, modulo 2^32: positions in it are compared only if this has
    /// not moved. Written by the controller, after the list.
    pub list: u32,
    /// `COOKIES_OFF`, `COOKIES_READY` or `COOKIES_ON`. Written by the controller; the kernel
    /// program swaps `COOKIES_READY` for `COOKIES_ON` when its ring of half-open flows has no room
    /// left.
    pub cookies: u32,
    /// No segment that a backend sends a client, or a client a backend, is to have more payload; 0:
    /// as they agree; `CLAMP_TO_WAYS`. Written by the controller.
    pub mss_clamp: u32,
    /// Zero.
    pub reserved: [u32; 3],

    /// Taken while a backend is chosen, so that two CPUs do not give the same share twice.
    pub lock: u32,
    /// Next cell of the ring of half-open flows.
    pub half_open: u32,
    /// The stretch of time that `turned_away` is about, see [`turned_away_stretch`].
    pub turned_away_in: u32,
    /// Clients that were turned away in it and that events reported.
    pub turned_away: u32,
    /// Where the search for the oldest unconfirmed flow goes on in the ring of half-open flows,
    /// when no slot is free.
    pub oldest: u32,
    /// Unconfirmed flows that gave way in that stretch and that events reported.
    pub gave_way: u32,
    /// Zero.
    pub reserved2: [u32; 10],

    /// Its backends, numbers in BACKENDS.
    pub backends: [u16; MAX_SERVICE_BACKENDS as usize],
}

/// Events for clients that were turned away, in one stretch of time and for one service. The rest
/// is only counted: SYNs that are denied must not fill the ring buffer, nor wake the controller for
/// each of them.
pub const TURNED_AWAY_EVENTS: u32 = 100;

/// Events for unconfirmed flows that gave way, likewise: the controller ends as many of those
/// attempts at their backends. They take 160 KiB of the ring buffer before they are read.
pub const GAVE_WAY_EVENTS: u32 = 2048;

/// The stretch of time, about 1.07 s long, that a moment lies in.
#[inline(always)]
pub const fn turned_away_stretch(now: Ticks) -> u32 {
    now.0 >> 10
}

/// In [`Service::flags`]: every connection that ends makes an event, not only those that fail.
pub const LOG: u32 = 1;

/// In [`Service::flags`]: some of its clients are in EXEMPT.
pub const EXEMPTS: u32 = 2;

/// In [`Service::mss_clamp`]: as much as the ways to the client and to the backend both take.
pub const CLAMP_TO_WAYS: u32 = u32::MAX;

/// In [`Service::cookies`]: no SYN is ever answered with a cookie.
pub const COOKIES_OFF: u32 = 0;
/// None is for now.
pub const COOKIES_READY: u32 = 1;
/// Each is, of a client that has not answered one lately and is not exempt.
pub const COOKIES_ON: u32 = 2;

/// COOKIES: one record, what SYN cookies are made of; see [`cookie`](crate::cookie). Written by the
/// controller. Both hosts of a pair have the same key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CookieKey {
    /// The key, secret.
    pub key: [u64; 2],
    /// The time of day less CLOCK_MONOTONIC, modulo 2^64 nanoseconds: both hosts of a pair number
    /// the same epochs. Where their clocks differ, a client of one that moves to the other sends
    /// its SYN again.
    pub offset: u64,
    /// Zero.
    pub reserved: u64,
}

/// VERIFIED: a word for each of this many hashes, see [`cookie::Mark`]: the clients that have
/// answered a cookie lately, in any of [`cookie::ROWS`] rows. Written by the kernel program. A
/// client sends its SYN again within a second; so long even 8,000 new ones a second are known.
///
/// [`cookie::Mark`]: crate::cookie::Mark
/// [`cookie::ROWS`]: crate::cookie::ROWS
pub const MARKS: u32 = 8192;
/// CHALLENGED: the same of the clients that were sent one. It only has to catch some of those that
/// do not answer.
pub const CHALLENGES: u32 = 2048;

/// EXEMPT: the clients that get no cookie, by service and prefix: the service's number as four
/// bytes of the host, then the address, v4-mapped. Written by the controller.
pub const MAX_EXEMPT: u32 = 4096;
/// Bytes of a key in EXEMPT without its length.
pub type ExemptKey = [u8; 20];

/// CLIENTS[service]: a bucket of words, see `clients::ClientCount`. A service has a table if it
/// has, or has had, a limit. When both buckets of a client are full, it is let in and not counted.
pub type ClientLine = [u64; crate::hash::BUCKET as usize];

/// RULES[service]: eight of its rules in a line, in their order; the list ends with the map or at
/// the first rule without a verdict. A list is written before it is installed and never changed:
/// another one replaces it whole.
pub type RuleLine = [Rule; 8];

/// One of a service's `rules`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// The network's address, v4-mapped; zero behind its prefix.
    pub network: [u8; 16],
    /// How many bits must be equal: at most 32, or 128 for IPv6.
    pub prefix: u8,
    /// 4 or 6; `rules::EVERY_FAMILY`: every client.
    pub family: u8,
    /// `rules::{ALLOW, DENY}`; 0: the list ends here.
    pub verdict: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// The bucket for a connect time: four per octave, from 64 µs (all below) to 4 s and more.
#[inline(always)]
pub const fn connect_time_bucket(microseconds: u32) -> u32 {
    if microseconds < 64 {
        return 0;
    }
    let octave = 31 - microseconds.leading_zeros();
    let quarter = microseconds >> (octave - 2) & 3;
    let bucket = (octave - 6) * 4 + quarter + 1;
    if bucket < CONNECT_TIME_BUCKETS as u32 { bucket } else { CONNECT_TIME_BUCKETS as u32 - 1 }
}

/// The upper bound of a bucket, in microseconds; the last one has none.
pub const fn connect_time_bound(bucket: u32) -> Option<u32> {
    if bucket + 1 >= CONNECT_TIME_BUCKETS as u32 {
        return None;
    }
    let octave = bucket / 4 + 6;
    Some((4 + bucket % 4) << (octave - 2))
}

const _: () = {
    assert!(size_of::<Backend>() == 128);
    assert!(size_of::<SlowStart>() == 16);
    assert!(size_of::<Failures>() == 16);
    assert!(core::mem::offset_of!(Backend, opened) == 64);
    assert!(size_of::<Rule>() == 24);
    assert!(size_of::<Service>() == 256);
    assert!(size_of::<CookieKey>() == 32);
    assert!(core::mem::offset_of!(Service, lock) == 64);
    assert!(core::mem::offset_of!(Service, backends) == 128);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connect_time_lies_below_the_bound_of_its_bucket_and_above_the_one_before() {
        for exponent in 0..32 {
            for step in 0..64_u64 {
                let time = ((1_u64 << exponent) + (step << exponent) / 64).min(u64::from(u32::MAX)) as u32;
                let bucket = connect_time_bucket(time);
                assert!(connect_time_bound(bucket).is_none_or(|bound| time < bound), "{time} in {bucket}");
                let above = bucket.checked_sub(1).and_then(connect_time_bound);
                assert!(above.is_none_or(|bound| time >= bound), "{time} in {bucket}");
            }
        }
    }
}
