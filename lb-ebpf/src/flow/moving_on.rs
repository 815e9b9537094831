//! A try that has failed: to the next backend, to another port of the same one, or the client is refused.

use lb_common::{
    event::{TRY_FAILED, TURNED_AWAY},
    flow::{SlotAt, Tried},
    hash::{Entry, mix, tag},
    layout::{Backend, OUT, Opening},
    slot::{COUNTED, Ctl, State},
    time::Instant,
    verdict::Reason,
};

use super::{
    Outcome, at, attempt, backend_of, client_hash, end::count_number, forget, is_closed, opening::unfill, publish,
    uncount, word,
};
use crate::{atomic, clock, index, maps, report, select, slots};

/// A try is over without a connection, and the caller has taken the flow out of `HalfOpen`. Moves it to the next backend, or
/// to another port of the same one; or refuses the client.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn move_on(place: u32, reason: u32) -> u64 {
    let Some(record) = at(place) else { return Outcome::at(Outcome::DROP, 0) };
    count_number(reason);
    // SAFETY: from map lookups.
    unsafe {
        let ctl = word(record);
        let number = (*record).backend;
        let Some(backend) = backend_of(number) else { return Outcome::at(Outcome::DROP, 0) };
        let service = (*backend).service;
        let mut next = -1;
        if reason != Reason::TimeWait as u32 {
            failed(backend, place, reason as u8);
        } else if !is_closed(backend) {
            next = select::claim_towards(number as u32, client_hash((*record).key));
        }
        let fresh_port = next >= 0;
        if !fresh_port {
            atomic::add(&raw mut (*backend).active, u32::MAX);
            next = next_backend(place, service as u32, backend);
        }
        if next < 0 {
            report::flow(TURNED_AWAY, reason as u8, place, record, ctl, service);
            uncount(ctl, service, (*record).key);
            forget((*record).key, place, ctl);
            release_closed(place, ctl);
            return Outcome::at(Outcome::REFUSE, place);
        }
        let moved = hand_over(place, next as u64, ctl.generation(), fresh_port as u32, service as u32);
        release_closed(place, ctl);
        moved
    }
}

/// A refused try leaves nothing at the backend, and of an older connection nobody knows when it ends: the port goes to the
/// end of the ring. One whose backend was silent is held back.
#[inline(always)]
fn release_closed(place: u32, ctl: Ctl) {
    if ctl.state() == State::Closed {
        slots::release(place >> 16, place & 0xffff);
    }
}

/// Counts and tells a failed try. If it was the trial of a backend that is out, the next one is due after fail_timeout. To
/// be left because it is closed is no failure of the backend, but the access log lists the try.
#[inline(always)]
unsafe fn failed(backend: *mut Backend, place: u32, reason: u8) {
    let Some(record) = at(place) else { return };
    // SAFETY: from map lookups.
    unsafe {
        if reason != Reason::MovedOn as u8 {
            atomic::add(&raw mut (*backend).connect_failures, 1);
        }
        if atomic::load(&raw const (*backend).admission) == OUT
            && atomic::load(&raw const (*backend).retry_at) != Instant::NEVER
        {
            atomic::store(&raw mut (*backend).retry_at, Instant(clock::coarse().0 + (*backend).retry_after));
        }
        report::flow(TRY_FAILED, reason, place, record, word(record), (*backend).service);
    }
}

/// The next backend that this flow has not tried: `chosen << 32 | place`, or negative. There is no limit of tries if the
/// backend that it leaves is closed.
#[inline(always)]
unsafe fn next_backend(place: u32, service: u32, left: *const Backend) -> i64 {
    let Some(record) = at(place) else { return -1 };
    let Some(table) = maps::SERVICES.get_ptr_mut(service) else { return -1 };
    // SAFETY: from map lookups.
    unsafe {
        if (*record).tries as u32 >= (*table).tries && !is_closed(left) {
            return -1;
        }
        let tried = Tried::from_halves((*record).ack_client, (*record).ack_backend).0;
        match select::backend(service, tried, client_hash((*record).key)) {
            Ok(choice) => (choice.chosen as i64) << 32 | choice.place as i64,
            Err(_) => -1,
        }
    }
}

/// Copies what a flow began with; its next try begins at `sent_us`. A function of its own, for the stack of the deepest
/// chain of calls is nearly full.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn copy_opening(from: u32, to: u32, sent_us: u32) -> u32 {
    let (Some(old), Some(new)) = (slots::opening(from), slots::opening(to)) else { return 0 };
    // SAFETY: from map lookups; two records of eight words each.
    unsafe {
        for word in 0..size_of::<Opening>() / 8 {
            *new.cast::<u64>().add(word) = *old.cast::<u64>().add(word);
        }
        (*new).connect_us = sent_us;
    }
    0
}

/// Copies a flow into the slot claimed for it and lets the index entry point there.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn hand_over(from: u32, next: u64, generation: u32, fresh_port: u32, service: u32) -> u64 {
    let to = next as u32;
    let position = (next >> 32) as u32 & 63;
    let (Some(old), Some(new)) = (at(from), at(to)) else { return Outcome::at(Outcome::DROP, 0) };
    // SAFETY: from map lookups; the new slot is ours alone, the old one was taken out of `HalfOpen` by the caller.
    unsafe {
        let mut tried = Tried::from_halves((*old).ack_client, (*old).ack_backend);
        if fresh_port == 0 {
            tried = tried.with(position);
        }
        let now = clock::exact();
        (*new).key = (*old).key;
        (*new).end_client = (*old).end_client;
        (*new).end_backend = 0;
        ((*new).ack_client, (*new).ack_backend) = tried.halves();
        (*new).hop = (*old).hop;
        (*new).last_seen = now.ticks();
        (*new).backend = if fresh_port != 0 { (*old).backend } else { select::backend_at(service, position) as u16 };
        (*new).tries = if fresh_port != 0 { (*old).tries } else { (*old).tries + 1 };
        (*new).attempt =
            if fresh_port != 0 { (*old).attempt.from_another_port() } else { attempt((next >> 32) as u32) };
        (*new).started = (*old).started;
        copy_opening(from, to, (now.0 / 1000) as u32);
        (*old).last_seen = now.ticks();
        let ctl = publish(new, word(old).flags() & COUNTED);
        let hash = mix(maps::seed(), (*new).key.0);
        let entry = |place: u32, generation| Entry::new(tag(hash), SlotAt(place), generation);
        if !index::replace(hash, entry(from, generation), entry(to, ctl.generation())) {
            // The client began anew meanwhile: nobody waits for this try any more.
            unfill(to, ctl.0);
            return Outcome::at(Outcome::DROP, 0);
        }
        slots::enter_half_open(service, to, ctl.generation());
        Outcome::at(Outcome::SEND_SYN, to)
    }
}
