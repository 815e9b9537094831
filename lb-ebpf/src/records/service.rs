//! The fields of a service and of its backends.

use lb_common::{
    failures::Window,
    layout::{Backend, COOKIES_ON, COOKIES_READY, Failures, NONE, Service, SlowStart},
    time::Instant,
};

use super::{Held, masked, plain, shared, write};
use crate::atomic;

fields! { Backend:
    shared active: u32, add add_active;
    plain current: u32, set set_current;
    plain weight: u32;
    plain max_conns: u32;
    shared admission: u32;
    plain flags: u32;
    shared retry_at: Instant, set set_retry_at;
    plain retry_after: u64;
    plain service: u16;
    plain pool_count: u16;
    write out_reason: u32, set set_out_reason;
    write changed_at: Instant, set set_changed_at;
    count opened: u64, add add_opened;
    count connected: u64, add add_connected;
    count connect_failures: u64, add add_connect_failures;
    count resets: u64, add add_resets;
    count bytes_in: u64, add add_bytes_in;
    count bytes_out: u64, add add_bytes_out;
    count connect_us: u64, add add_connect_us;
}

impl Held<Backend> {
    /// One of its pools. `which` is cut to the length of the list.
    #[inline(always)]
    pub fn pool(self, which: u32) -> u32 {
        // SAFETY: the record is held; 0 to 7 lies in the list of eight.
        unsafe { *(&raw const (*self.0).pools).cast::<u16>().add(masked::<7>(which) as usize) as u32 }
    }

    /// The first of its pools.
    #[inline(always)]
    pub fn first_pool(self) -> u32 {
        // SAFETY: the record is held.
        unsafe { (*self.0).pools[0] as u32 }
    }

    /// Whether it gets no new connections because an operator said so.
    #[inline(always)]
    pub fn is_closed(self) -> bool {
        self.admission() == NONE
    }

    /// Changes what it may be given, if that still is `old`.
    #[inline(always)]
    pub fn swap_admission(self, old: u32, new: u32) -> bool {
        // SAFETY: the record is held: whole and aligned, and so is its field.
        unsafe { atomic::compare_swap(&raw mut (*self.0).admission, old, new) == old }
    }

    /// Moves the time of its next trial, if that still is `old`. The winner has the one trial of
    /// the whole system.
    #[inline(always)]
    pub fn swap_retry_at(self, old: Instant, new: Instant) -> bool {
        // SAFETY: the record is held: whole and aligned, and so is its field.
        unsafe { atomic::compare_swap((&raw mut (*self.0).retry_at).cast::<u64>(), old.0, new.0) == old.0 }
    }

    /// Counts a connection given to it.
    #[inline(always)]
    pub fn count_in(self) {
        self.add_active(1);
        self.add_opened(1);
    }

    /// Takes back what [`count_in`](Self::count_in) has counted: no flow came of it.
    #[inline(always)]
    pub fn count_out(self) {
        self.add_active(u32::MAX);
        self.add_opened(u64::MAX);
    }

    /// Counts the end of a connection.
    #[inline(always)]
    pub fn one_less(self) {
        self.add_active(u32::MAX);
    }
}

fields! { Failures:
    shared window: Window, set set_window;
    plain max_fails: u32;
}

impl Held<Failures> {
    /// Stores a window, if the word still is `old`.
    #[inline(always)]
    pub fn swap_window(self, old: Window, new: Window) -> bool {
        // SAFETY: the record is held: whole and aligned, and so is its field.
        unsafe { atomic::compare_swap((&raw mut (*self.0).window).cast::<u64>(), old.0, new.0) == old.0 }
    }
}

fields! { SlowStart:
    shared until: Instant, set set_until;
    plain ms: u32;
    plain credit: u32, set set_credit;
}

fields! { Service:
    plain connect_timeout: u64;
    plain balance: u32;
    shared backend_count: u32;
    plain tries: u32;
    plain half_open_cells: u32;
    plain flags: u32;
    shared client_limit: u32;
    shared slow_until: Instant, set set_slow_until;
    shared half_open: u32;
    shared oldest: u32;
    shared list: u32;
    shared cookies: u32;
    shared mss_clamp: u32;
    shared turned_away_in: u32, set set_turned_away_in;
    shared turned_away: u32, set set_turned_away, add add_turned_away;
    shared gave_way: u32, set set_gave_way, add add_gave_way;
}

impl Held<Service> {
    /// The backend at a position of its list. The position is cut to the length of the list.
    #[inline(always)]
    pub fn backend_at(self, position: u32) -> u32 {
        // SAFETY: the record is held; 0 to 63 lies in the list of 64.
        unsafe { *(&raw const (*self.0).backends).cast::<u16>().add(masked::<63>(position) as usize) as u32 }
    }

    /// Takes the lock, if it is free.
    #[inline(always)]
    pub fn try_lock(self) -> bool {
        // SAFETY: the record is held: whole and aligned, and so is its field.
        unsafe { atomic::compare_swap(&raw mut (*self.0).lock, 0, 1) == 0 }
    }

    /// Gives the lock back.
    #[inline(always)]
    pub fn unlock(self) {
        // SAFETY: the record is held: whole and aligned, and so is its field.
        unsafe { atomic::store(&raw mut (*self.0).lock, 0) }
    }

    /// The turn of the next half-open flow, counted from the first one on.
    #[inline(always)]
    pub fn next_half_open(self) -> u32 {
        // SAFETY: the record is held: whole and aligned, and so is its field.
        unsafe { atomic::fetch_add(&raw mut (*self.0).half_open, 1) }
    }
}

impl Held<Service> {
    /// Begins to send SYN cookies, if it may and does not do so yet.
    #[inline(always)]
    pub fn begin_cookies(self) {
        if self.cookies() == COOKIES_READY {
            // SAFETY: the record is held: whole and aligned, and so is its field.
            unsafe { atomic::compare_swap(&raw mut (*self.0).cookies, COOKIES_READY, COOKIES_ON) };
        }
    }

    /// Moves on the search for the oldest unconfirmed flow, if it still is at `old`.
    #[inline(always)]
    pub fn swap_oldest(self, old: u32, new: u32) -> bool {
        // SAFETY: the record is held: whole and aligned, and so is its field.
        unsafe { atomic::compare_swap(&raw mut (*self.0).oldest, old, new) == old }
    }
}
