//! `evenkeel trace`: what would happen to a SYN now, found out by the program itself, without any
//! side effect.
//!
//! The controller writes into TRACE which SYN it asks about, by key and initial sequence number,
//! and runs the attached program on that SYN (`BPF_PROG_TEST_RUN`). It is an ordinary SYN and takes
//! the ordinary way: it is parsed, looked up, ruled on, and its backend chosen by the functions
//! that choose for every other one. Where those functions would claim something, they only look:
//! nothing is counted, claimed, moved or reported. The answer is in TRACE, and the frame is what
//! would be sent. No other SYN is mistaken for it, because the number is drawn at random for every
//! question.

use lb_common::{
    flow::{Chosen, Key, SlotAt, Tried},
    layout::{ACTIVE, TRACE_ASKED, TRACE_KNOWN, TRACE_OPENS, TRACE_TURNED_AWAY, Trace},
    rules::DENY,
    slot::Ctl,
    verdict::Reason,
};

use crate::{
    access, index,
    outcome::Outcome,
    records,
    select::{self, ASKED, Client, FULL_POOLS},
};

/// Whether the controller asks about this SYN.
#[inline(always)]
pub fn is_asked(key: Key, initial: u32) -> bool {
    records::trace().is_some_and(|trace| trace.question() == TRACE_ASKED | initial as u64 && trace.key() == key)
}

/// The SYN belongs to a flow: which one, if it is open. If not, the SYN is a new connection's.
#[inline(always)]
pub fn known(at: SlotAt, ctl: Ctl) -> Outcome {
    if !ctl.state().is_active() {
        return Outcome::open();
    }
    answer(|trace| {
        (trace.at, trace.generation) = (at, ctl.generation());
        trace.answer = TRACE_KNOWN;
    })
}

/// A SYN of a client that has no flow, as `flow::open` would treat it.
#[inline(always)]
pub fn explain(key: Key) -> Outcome {
    Outcome(explain_global(key.0))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn explain_global(key: u64) -> u64 {
    let key = Key(key);
    let Some(listener) = records::listener(key.listener() as u32) else { return Outcome::impossible().0 };
    let (service, state) = (listener.service() as u32, listener.state());
    let ruled = access::ruled(service, key.address_word());
    if ruled as u8 == DENY {
        return turned_away(Reason::Denied, ruled).0;
    }
    if state != ACTIVE {
        return turned_away(Reason::NoBackend, ruled).0;
    }
    if access::is_over_limit(service, key.address_word()) {
        return turned_away(Reason::ClientLimit, ruled).0;
    }
    let client = Client::of(key);
    let mut failure = Reason::NoBackend;
    let mut tried = Tried::default();
    for _ in 0..FULL_POOLS {
        let Some(chosen) = select::choose(service, tried, client, ASKED) else { break };
        let backend = select::backend_at(service, chosen.position());
        if let Some(at) = backend.and_then(|backend| select::peek_towards(backend, client)) {
            return opens(key, at, chosen, ruled).0;
        }
        tried = tried.with(chosen.position());
        failure = Reason::NoSlot;
    }
    turned_away(failure, ruled).0
}

#[inline(always)]
fn opens(key: Key, at: SlotAt, chosen: Chosen, ruled: u32) -> Outcome {
    if !index::has_room(index::Hashed::new(key)) {
        return turned_away(Reason::IndexFull, ruled);
    }
    answer(|trace| {
        (trace.rule, trace.at, trace.chosen) = (ruled, at, chosen);
        trace.answer = TRACE_OPENS;
    });
    Outcome::forward(at)
}

#[inline(always)]
fn turned_away(reason: Reason, rule: u32) -> Outcome {
    answer(|trace| {
        (trace.rule, trace.reason) = (rule, reason as u32);
        trace.answer = TRACE_TURNED_AWAY;
    })
}

#[inline(always)]
fn answer(write: impl FnOnce(&mut Trace)) -> Outcome {
    if let Some(trace) = records::trace() {
        trace.write(write);
    }
    Outcome::answered()
}
