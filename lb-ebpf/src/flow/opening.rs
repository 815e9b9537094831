//! A new connection: a SYN of a client that has no flow.

use lb_common::{
    flow::{Attempt, Chosen, Key, SlotAt, Tried},
    hash,
    layout::ACTIVE,
    slot::{Ctl, State},
    verdict::Reason,
};

use super::{change, half_open};
use crate::{
    access, clock,
    index::{self, Hashed, Inserted},
    outcome::Outcome,
    records, report,
    select::{self, Choice},
    slots, trace,
};

/// A SYN of a client that has no flow.
#[inline(always)]
pub fn open(key: Key, initial: u32) -> Outcome {
    Outcome(open_global(key.0, initial))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn open_global(key: u64, initial: u32) -> u64 {
    let key = Key(key);
    if trace::is_asked(key, initial) {
        return trace::explain(key).0;
    }
    let Some(listener) = records::listener(key.listener() as u32) else { return Outcome::impossible().0 };
    let (service, state) = (listener.service(), listener.state());
    if access::is_denied(service as u32, key.address_word()) {
        return turned_away(key, service, Reason::Denied).0;
    }
    let counted = access::count_client(service as u32, key.address_word());
    if counted == access::OVER {
        return turned_away(key, service, Reason::ClientLimit).0;
    }
    let choice = if state == ACTIVE {
        select::backend(service as u32, Tried::default(), hash::client(key))
    } else {
        Choice::NO_BACKEND
    };
    let Some(reason) = choice.refusal() else {
        return fill_global(
            key.0,
            initial,
            choice.at().0,
            Start::new(choice.chosen(), counted as u8).0,
            service as u32,
        );
    };
    if counted != 0 {
        access::uncount_client(service as u32, key.address_word());
    }
    turned_away(key, service, reason).0
}

#[inline(always)]
fn turned_away(key: Key, service: u16, reason: Reason) -> Outcome {
    report::turned_away(key, service, reason);
    Outcome::reset(reason)
}

/// What a flow starts with, as one number so that a global function can take it: its backend, and
/// flags for its slot's word from bit 8 on.
#[derive(Clone, Copy)]
struct Start(u32);

impl Start {
    #[inline(always)]
    const fn new(chosen: Chosen, flags: u8) -> Start {
        Start(chosen.0 as u32 | (flags as u32) << 8)
    }

    #[inline(always)]
    const fn chosen(self) -> Chosen {
        Chosen(self.0 as u8)
    }

    #[inline(always)]
    const fn flags(self) -> u8 {
        (self.0 >> 8) as u8
    }
}

/// Fills a claimed slot and enters it in the index and in the ring of half-open flows. `start` is a
/// [`Start`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn fill_global(key: u64, initial: u32, at: u32, start: u32, service: u32) -> u64 {
    let (key, at, start) = (Key(key), SlotAt(at), Start(start));
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else {
        return Outcome::drop(Reason::LostRace).0;
    };
    let position = start.chosen().position();
    let Some(backend) = select::backend_at(service, position) else { return Outcome::impossible().0 };
    let now = clock::exact();
    // The slot is ours alone while its word says Claiming.
    slot.set_key(key);
    slot.set_end_client(initial.wrapping_add(1) as u64);
    slot.set_end_backend(0);
    slot.set_tried(Tried::default().with(position));
    slot.set_last_seen(now.ticks());
    slot.set_backend(backend as u16);
    slot.set_tries(1);
    slot.set_attempt(Attempt::new(start.chosen().how()));
    slot.set_started(now);
    opening.set_client6([0; 16]);
    opening.set_options_len(0);
    opening.set_connect_us((now.0 / 1000) as u32);
    let ctl = slot.publish(start.flags());
    let hashed = Hashed::new(key);
    match index::insert(hashed, hashed.entry(at, ctl.generation())) {
        Inserted::Won => {
            half_open::enter(service, at, ctl.generation());
            Outcome::opened(at).0
        }
        Inserted::Lost => {
            unfill(at, ctl);
            again_global(key.0)
        }
        Inserted::Full => {
            unfill(at, ctl);
            turned_away(key, service as u16, Reason::IndexFull).0
        }
    }
}

/// Gives back a slot that never became a flow, unless a segment of the backend has ended it in
/// between.
#[inline(always)]
pub fn unfill(at: SlotAt, ctl: Ctl) {
    unfill_global(at.0, ctl.0);
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn unfill_global(at: u32, ctl: u64) -> u32 {
    let (at, ctl) = (SlotAt(at), Ctl(ctl));
    let Some(slot) = records::slot(at) else { return 0 };
    let (number, key) = (slot.backend(), slot.key());
    if !change(at, slot, ctl, Ctl::new(ctl.generation(), State::Free)) {
        return 0;
    }
    if let Some(backend) = records::backend(number as u32) {
        backend.count_out();
        access::uncount_flow(ctl, backend.service(), key);
    }
    slots::release(at);
    0
}

/// Another CPU was first with the same SYN: this one repeats it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn again_global(key: u64) -> u64 {
    match index::find(Hashed::new(Key(key))) {
        Some(found) => Outcome::forward(found.at).0,
        None => Outcome::drop(Reason::LostRace).0,
    }
}
