//! A new connection: a SYN of a client that has no flow.

use lb_common::{
    flow::{Key, SlotAt, Tried},
    hash::{Entry, mix, tag},
    layout::ACTIVE,
    slot::{Ctl, State},
    verdict::Reason,
};

use super::{Outcome, at, attempt, backend_of, change, client_hash, publish, uncount};
use crate::{access, atomic, clock, index, index::Inserted, maps, report, select, select::Turned, slots, trace};

/// A SYN of a client that has no flow.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn open(key: u64, initial: u32) -> u64 {
    let key = Key(key);
    if trace::is_asked(key, initial) {
        return trace::explain(key.0);
    }
    let Some(listener) = maps::LISTENERS.get_ptr_mut(key.listener() as u32) else {
        return Outcome::at(Outcome::DROP, 0);
    };
    // SAFETY: from a map lookup.
    let (service, state) = unsafe { ((*listener).service, atomic::load(&raw const (*listener).state)) };
    if access::is_denied(service as u32, key.address_word()) {
        return turned_away(key, service, Reason::Denied);
    }
    let counted = access::count_client(service as u32, key.address_word());
    if counted == access::OVER {
        return turned_away(key, service, Reason::ClientLimit);
    }
    let choice =
        if state == ACTIVE { select::backend(service as u32, 0, client_hash(key)) } else { Err(Turned::NoBackend) };
    match choice {
        Ok(choice) => fill(key.0, initial, choice.place, choice.chosen | counted << 8, service as u32),
        Err(turned) => {
            if counted != 0 {
                access::uncount_client(service as u32, key.address_word());
            }
            turned_away(key, service, turned.reason())
        }
    }
}

#[inline(always)]
fn turned_away(key: Key, service: u16, reason: Reason) -> u64 {
    report::turned_away(key, service, reason);
    Outcome::at(Outcome::RESET, 0)
}

/// Fills a claimed slot and enters it in the index and in the ring of half-open flows. `chosen` is that of
/// [`select::Choice`] and, from bit 8 on, flags for the slot's word.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn fill(key: u64, initial: u32, place: u32, chosen: u32, service: u32) -> u64 {
    let (Some(record), Some(opening)) = (at(place), slots::opening(place)) else {
        return Outcome::at(Outcome::DROP, 0);
    };
    let position = chosen & 63;
    let tried = Tried::default().with(position);
    let now = clock::exact();
    // SAFETY: from a map lookup, and ours alone while its word says Claiming.
    let ctl = unsafe {
        (*record).key = Key(key);
        (*record).end_client = initial.wrapping_add(1) as u64;
        (*record).end_backend = 0;
        ((*record).ack_client, (*record).ack_backend) = tried.halves();
        (*record).last_seen = now.ticks();
        (*record).backend = select::backend_at(service, position) as u16;
        (*record).tries = 1;
        (*record).attempt = attempt(chosen);
        (*record).started = now;
        (*opening).client6 = [0; 16];
        (*opening).options_len = 0;
        (*opening).connect_us = (now.0 / 1000) as u32;
        publish(record, (chosen >> 8) as u8)
    };
    let hash = mix(maps::seed(), key);
    let entry = Entry::new(tag(hash), SlotAt(place), ctl.generation());
    match index::insert(Key(key), hash, entry) {
        Inserted::Won => {
            slots::enter_half_open(service, place, ctl.generation());
            Outcome::at(Outcome::OPENED, place)
        }
        Inserted::Lost => {
            unfill(place, ctl.0);
            again(key, hash)
        }
        Inserted::Full => {
            unfill(place, ctl.0);
            turned_away(Key(key), service as u16, Reason::IndexFull)
        }
    }
}

/// Gives back a slot that never became a flow, unless a segment of the backend has ended it meanwhile.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn unfill(place: u32, ctl: u64) -> u32 {
    let Some(record) = at(place) else { return 0 };
    // SAFETY: from map lookups.
    unsafe {
        let (number, key) = ((*record).backend, (*record).key);
        let ctl = Ctl(ctl);
        if !change(record, ctl, Ctl::new(ctl.generation(), State::Free)) {
            return 0;
        }
        if let Some(backend) = backend_of(number) {
            atomic::add(&raw mut (*backend).active, u32::MAX);
            atomic::add(&raw mut (*backend).opened, u64::MAX);
            uncount(ctl, (*backend).service, key);
        }
    }
    slots::release(place >> 16, place & 0xffff);
    0
}

/// Another CPU was first with the same SYN: this one is a repetition of it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn again(key: u64, hash: u64) -> u64 {
    match index::find(Key(key), hash) {
        Some(found) => Outcome::at(Outcome::FORWARD, found.pool << 16 | found.slot),
        None => Outcome::at(Outcome::DROP, 0),
    }
}
