//! `evenkeel trace`: what would become of a SYN now, found out by the program itself and without a trace of its own.
//!
//! The controller writes into TRACE which SYN it asks about, by key and initial sequence number, and runs the attached
//! program on that SYN (`BPF_PROG_TEST_RUN`). It is an ordinary SYN and goes the ordinary way: parsed, looked up, ruled on,
//! its backend chosen by the functions that choose for everybody. Where those would take, they only look: nothing is counted,
//! claimed, moved on or told. The answer stands in TRACE, and the frame is what would be sent. Nobody else's SYN is taken
//! for it: the number is drawn at random for every question.

use lb_common::{
    flow::{Chosen, Key, SlotAt},
    layout::{ACTIVE, MAX_SNAT, TRACE_ASKED, TRACE_KNOWN, TRACE_OPENS, TRACE_TURNED_AWAY, Trace},
    rules::DENY,
    slot::Ctl,
    verdict::Reason,
};

use crate::{
    access, atomic,
    flow::{self, Outcome},
    index, maps,
    select::{self, ASKED, FULL_POOLS},
    slots,
};

/// Whether the controller asks about this SYN.
#[inline(always)]
pub fn is_asked(key: Key, initial: u32) -> bool {
    let Some(trace) = maps::TRACE.get_ptr_mut(0) else { return false };
    // SAFETY: from a map lookup.
    unsafe { atomic::load(&raw const (*trace).question) == TRACE_ASKED | initial as u64 && (*trace).key == key }
}

/// The SYN belongs to a flow: which one, if it is open; else it is a new connection's.
#[inline(always)]
pub fn known(place: u32, ctl: Ctl) -> u64 {
    if !ctl.state().is_active() {
        return Outcome::at(Outcome::OPEN, 0);
    }
    answer(|trace| {
        (trace.at, trace.generation) = (SlotAt(place), ctl.generation());
        trace.answer = TRACE_KNOWN;
    })
}

/// A SYN of a client that has no flow, as [`flow::open`] would have it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn explain(key: u64) -> u64 {
    let Some(listener) = maps::LISTENERS.get_ptr_mut(Key(key).listener() as u32) else {
        return Outcome::at(Outcome::DROP, 0);
    };
    // SAFETY: from a map lookup.
    let (service, state) = unsafe { ((*listener).service as u32, atomic::load(&raw const (*listener).state)) };
    let ruled = access::ruled(service, Key(key).address_word());
    if ruled as u8 == DENY {
        return turned_away(Reason::Denied, ruled);
    }
    if access::is_over_limit(service, Key(key).address_word()) {
        return turned_away(Reason::ClientLimit, ruled);
    }
    let mut failure = Reason::NoBackend;
    let mut tried = 0_u64;
    for _ in 0..FULL_POOLS {
        let chosen =
            if state == ACTIVE { select::choose(service, tried, flow::client_hash(Key(key)), ASKED) } else { -1 };
        if chosen < 0 {
            break;
        }
        let backend = select::backend_at(service, chosen as u32);
        let place = peek_towards(backend as u32, flow::client_hash(Key(key)));
        if place >= 0 {
            return opens(Key(key), place as u32, chosen as u32, ruled);
        }
        tried |= 1 << (chosen & 63);
        failure = Reason::NoSlot;
    }
    turned_away(failure, ruled)
}

/// The place that [`select::claim_towards`] would take, or -1.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn peek_towards(backend: u32, client: u32) -> i64 {
    let Some(record) = maps::BACKENDS.get_ptr_mut(backend) else { return -1 };
    // SAFETY: from a map lookup.
    let count = unsafe { (*record).pool_count } as u32;
    for i in 0..MAX_SNAT {
        if i >= count {
            break;
        }
        // SAFETY: as above.
        let pool = unsafe { select::pool_at(record, i, client, count) };
        let slot = slots::peek(pool);
        if slot >= 0 {
            return (pool << 16) as i64 | slot;
        }
    }
    -1
}

#[inline(always)]
fn opens(key: Key, place: u32, chosen: u32, ruled: u32) -> u64 {
    if !index::has_room(key) {
        return turned_away(Reason::IndexFull, ruled);
    }
    answer(|trace| {
        (trace.rule, trace.at, trace.chosen) = (ruled, SlotAt(place), Chosen(chosen as u8));
        trace.answer = TRACE_OPENS;
    });
    Outcome::at(Outcome::FORWARD, place)
}

#[inline(always)]
fn turned_away(reason: Reason, rule: u32) -> u64 {
    answer(|trace| {
        (trace.rule, trace.reason) = (rule, reason as u32);
        trace.answer = TRACE_TURNED_AWAY;
    })
}

#[inline(always)]
fn answer(write: impl FnOnce(&mut Trace)) -> u64 {
    if let Some(trace) = maps::TRACE.get_ptr_mut(0) {
        // SAFETY: from a map lookup; the controller reads it after the run.
        write(unsafe { &mut *trace });
    }
    Outcome::at(Outcome::DROP, 0)
}
