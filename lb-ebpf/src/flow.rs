//! The life of a flow: opened by a SYN, moved to the next backend, connected, closed. Everything here is off the fast path
//! and works on slots alone; what becomes of the frame is the [`Outcome`].
//!
//! Every change of state is one compare-and-swap of the slot's word. Who wins does the consequences, once.

mod backend;
mod client;
mod end;
mod moving_on;
mod opening;

use lb_common::{
    flow::{Attempt, Chosen, Key, SlotAt},
    hash::{Entry, mix, tag},
    layout::{Backend, NONE, Slot},
    slot::{COUNTED, Ctl, State},
    verdict::Reason,
};

use crate::{access, atomic, index, maps, slots};

pub use backend::from_backend;
pub use client::from_client;
pub use end::close;
pub use moving_on::move_on;
pub use opening::open;

/// Compare-and-swaps that may fail before the segment is forwarded as it is.
const SWAPS: u32 = 3;

/// Beside the flags of TCP: the segment carries data.
pub const PAYLOAD: u32 = 1 << 8;

/// What becomes of the frame: `kind << 32 | place`, a number so that global functions can return it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outcome(pub u64);

impl Outcome {
    /// Translate it by the flow at the place.
    pub const FORWARD: u64 = 1;
    /// The same, for a SYN that opened the flow: its options are saved first.
    pub const OPENED: u64 = 2;
    /// Replace it by the saved SYN of the flow, to that flow's backend.
    pub const SEND_SYN: u64 = 3;
    /// Replace it by a RST that refuses the client of the flow.
    pub const REFUSE: u64 = 4;
    /// Answer its sender with a RST.
    pub const RESET: u64 = 5;
    /// End it.
    pub const DROP: u64 = 6;
    /// Its flow was taken out of `HalfOpen`: a try has failed, for the reason in bits 40 to 47. [`move_on`] says what next.
    pub const MOVE_ON: u64 = 7;
    /// A SYN that begins a new connection: [`open`].
    pub const OPEN: u64 = 8;

    #[inline(always)]
    pub const fn at(kind: u64, place: u32) -> u64 {
        kind << 32 | place as u64
    }

    #[inline(always)]
    const fn move_on(reason: Reason, place: u32) -> u64 {
        Self::at(Self::MOVE_ON | (reason as u64) << 8, place)
    }

    #[inline(always)]
    pub const fn kind(self) -> u64 {
        self.0 >> 32 & 0xff
    }

    /// Why a try failed.
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        (self.0 >> 40) as u32 & 0xff
    }

    #[inline(always)]
    pub const fn place(self) -> u32 {
        self.0 as u32
    }
}

/// The record at a place, `pool << 16 | slot`.
#[inline(always)]
pub fn at(place: u32) -> Option<*mut Slot> {
    slots::get(place >> 16, place & 0xffff)
}

#[inline(always)]
unsafe fn word(record: *const Slot) -> Ctl {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe { atomic::load(&raw const (*record).ctl) }
}

#[inline(always)]
unsafe fn change(record: *mut Slot, old: Ctl, new: Ctl) -> bool {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe { atomic::compare_swap((&raw mut (*record).ctl).cast::<u64>(), old.0, new.0) == old.0 }
}

#[inline(always)]
fn backend_of(number: u16) -> Option<*mut Backend> {
    maps::BACKENDS.get_ptr_mut(number as u32)
}

/// Which client it is, for `balance = "hash"`: without the seed, so that both hosts of a pair choose alike.
#[inline(always)]
pub fn client_hash(key: Key) -> u32 {
    (mix(0, key.address_word() as u64) >> 32) as u32
}

/// The first attempt with a backend that was chosen.
#[inline(always)]
const fn attempt(chosen: u32) -> Attempt {
    Attempt::new(Chosen(chosen as u8).how())
}

#[inline(always)]
unsafe fn port_retries(record: *const Slot) -> u8 {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe { (*record).attempt.port_retries() }
}

/// Makes a filled slot a half-open flow: nothing before this can be seen after it. Returns its word.
#[inline(always)]
unsafe fn publish(record: *mut Slot, flags: u8) -> Ctl {
    // SAFETY: the caller owns the slot.
    unsafe {
        let ctl = Ctl::new(word(record).generation(), State::HalfOpen).with_flags(flags);
        atomic::swap((&raw mut (*record).ctl).cast::<u64>(), ctl.0);
        ctl
    }
}

/// Takes a flow that is over from its client's count, if it is in it.
#[inline(always)]
fn uncount(ctl: Ctl, service: u16, key: Key) {
    if ctl.flags() & COUNTED != 0 {
        access::uncount_client(service as u32, key.address_word());
    }
}

/// Removes the index entry of a flow that is over, so that its client can begin anew.
#[inline(always)]
fn forget(key: Key, place: u32, ctl: Ctl) {
    let hash = mix(maps::seed(), key.0);
    index::replace(hash, Entry::new(tag(hash), SlotAt(place), ctl.generation()), Entry(0));
}

/// Whether a backend gets no new connections, by an operator's will.
#[inline(always)]
unsafe fn is_closed(backend: *const Backend) -> bool {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe { atomic::load(&raw const (*backend).admission) == NONE }
}
