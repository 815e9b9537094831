//! Counting and telling: one counter a reason, one event a connection that ends or fails. Nothing per packet of an
//! established flow.

use lb_common::{
    event::{ENDED, Event, TURNED_AWAY},
    flow::Key,
    layout::{LOG, OPENING_ISN_BACKEND, OPENING_ISN_CLIENT, Opening, Slot, TURNED_AWAY_EVENTS, turned_away_stretch},
    seq::payload,
    slot::{CONNECTED, Ctl, FIN_BACKEND, FIN_CLIENT},
    time::Instant,
    verdict::Reason,
};

use crate::{atomic, clock, maps, slots};

/// Adds one to the counter of `reason`, on this CPU.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}

/// Payload bytes of a flow: from the client, and to the client.
#[inline(always)]
pub unsafe fn bytes(slot: *const Slot, opening: *const Opening, ctl: Ctl) -> (u64, u64) {
    if ctl.flags() & CONNECTED == 0 {
        return (0, 0);
    }
    // SAFETY: the caller's pointers are from map lookups.
    unsafe {
        let words = &(*opening).words;
        (
            payload(words[OPENING_ISN_CLIENT], (*slot).end_client, ctl.flags() & FIN_CLIENT != 0),
            payload(words[OPENING_ISN_BACKEND], (*slot).end_backend, ctl.flags() & FIN_BACKEND != 0),
        )
    }
}

/// Tells what happened to the flow in a slot.
#[inline(always)]
pub unsafe fn flow(kind: u8, reason: u8, place: u32, slot: *const Slot, ctl: Ctl, service: u16) {
    let Some(opening) = slots::opening(place) else { return };
    // SAFETY: the pointers are from map lookups.
    unsafe {
        let key = (*slot).key;
        let (bytes_in, bytes_out) = bytes(slot, opening, ctl);
        emit(|| Event {
            at: clock::coarse(),
            started: (*slot).started,
            bytes_in,
            bytes_out,
            client: mapped(key.address_word()),
            client_port: key.port().to_ne_bytes(),
            listener: key.listener(),
            service,
            backend: (*slot).backend,
            pool: (place >> 16) as u16,
            slot: place as u16,
            generation: ctl.generation(),
            connect_us: if kind == ENDED { (*opening).connect_us } else { 0 },
            kind,
            reason,
            tries: (*slot).tries,
            family: 4,
        });
    }
}

/// Counts that a new connection was turned away before it had a slot, and tells it, but not more often than
/// [`TURNED_AWAY_EVENTS`].
#[inline(always)]
pub fn turned_away(key: Key, service: u16, reason: Reason) {
    count(reason);
    if !may_tell(service) {
        return;
    }
    emit(|| Event {
        at: clock::coarse(),
        started: Instant::ZERO,
        bytes_in: 0,
        bytes_out: 0,
        client: mapped(key.address_word()),
        client_port: key.port().to_ne_bytes(),
        listener: key.listener(),
        service,
        backend: u16::MAX,
        pool: u16::MAX,
        slot: 0,
        generation: 0,
        connect_us: 0,
        kind: TURNED_AWAY,
        reason: reason as u8,
        tries: 0,
        family: 4,
    });
}

/// Whether one more client that is turned away may be told of. A flood pays for two reads here.
#[inline(always)]
fn may_tell(service: u16) -> bool {
    let Some(record) = maps::SERVICES.get_ptr_mut(service as u32) else { return false };
    let now = turned_away_stretch(clock::ticks());
    // SAFETY: from a map lookup. Two CPUs that begin a stretch together may tell of a few more.
    unsafe {
        if atomic::load(&raw const (*record).turned_away_in) != now {
            atomic::store(&raw mut (*record).turned_away, 0);
            atomic::store(&raw mut (*record).turned_away_in, now);
        }
        if atomic::load(&raw const (*record).turned_away) < TURNED_AWAY_EVENTS {
            atomic::add(&raw mut (*record).turned_away, 1);
            return true;
        }
        if (*record).flags & LOG != 0 {
            count(Reason::AccessLogSuppressed);
        }
    }
    false
}

#[inline(always)]
fn mapped(address: u32) -> [u8; 16] {
    let [a, b, c, d] = address.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Makes the event in the ring itself: it would take a third of the stack that calls may use.
#[inline(always)]
fn emit(event: impl FnOnce() -> Event) {
    match maps::EVENTS.reserve(0) {
        Some(mut place) => {
            place.write(event());
            place.submit(0);
        }
        None => count(Reason::EventLost),
    }
}
