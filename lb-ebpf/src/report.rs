//! Counting and reporting: one counter per reason, one event per connection that ends or fails.
//! Nothing per packet of an established flow.

use lb_common::{
    address::{Family, V4},
    event::{ENDED, Event, GAVE_WAY, PORT_LEFT, TOOK_OUT, TRY_FAILED, TURNED_AWAY},
    flow::{Key, SlotAt},
    layout::{GAVE_WAY_EVENTS, LOG, Opening, Service, Slot, TURNED_AWAY_EVENTS, turned_away_stretch},
    seq::payload,
    slot::{CONNECTED, Ctl, FIN_BACKEND, FIN_CLIENT},
    time::Instant,
    verdict::Reason,
};

use crate::{
    clock,
    cursor::Frame,
    maps,
    records::{self, Held},
};

/// Adds one to the counter of `reason`, on this CPU.
#[inline(always)]
pub fn count(reason: Reason) {
    records::count(reason as u32);
}

/// The same for the number of a reason.
#[inline(always)]
pub fn count_number(reason: u32) {
    records::count(reason);
}

/// What is not ours goes on untouched, and is counted.
#[inline(always)]
pub fn passed<F: Frame>(reason: Reason) -> i32 {
    count(reason);
    F::PASS
}

/// What cannot be forwarded ends here, and is counted.
#[inline(always)]
pub fn dropped<F: Frame>(reason: Reason) -> i32 {
    count(reason);
    F::DROP
}

/// For what cannot happen and only the verifier considers possible: a range of the frame that was
/// checked before, or a look-up by a number that is certainly in the table. Nothing leads here, so
/// nothing is counted.
#[inline(always)]
pub const fn impossible<F: Frame>() -> i32 {
    F::DROP
}

/// Payload bytes of a flow: from the client, and to the client.
#[inline(always)]
pub fn bytes(slot: Held<Slot>, opening: Held<Opening>, ctl: Ctl) -> (u64, u64) {
    if ctl.flags() & CONNECTED == 0 {
        return (0, 0);
    }
    (
        payload(opening.isn_client(), slot.end_client(), ctl.flags() & FIN_CLIENT != 0),
        payload(opening.isn_backend(), slot.end_backend(), ctl.flags() & FIN_BACKEND != 0),
    )
}

/// Reports what happened to the flow in a slot; the end of one that its client never confirmed, or
/// that was one too many for it, not
/// more often than [`TURNED_AWAY_EVENTS`], because anybody can cause it.
#[inline(always)]
pub fn flow(kind: u8, reason: u8, at: SlotAt, slot: Held<Slot>, ctl: Ctl, service: u16) {
    let Some(opening) = records::opening(at) else { return };
    let is_confirmed = ctl.flags() & CONNECTED != 0 && reason != Reason::ClientLimit as u8;
    let is_anybodys = kind == TURNED_AWAY || kind == ENDED && !is_confirmed;
    if is_anybodys && !may_tell(service) {
        return;
    }
    let numbers = match kind {
        TRY_FAILED | TOOK_OUT => (slot.end_client(), 0),
        _ => bytes(slot, opening, ctl),
    };
    tell(kind, reason, at, slot, opening, ctl, service, numbers);
}

/// Reports that a backend still holds an older connection on the port of a try: what it expects next
/// there, and what it sends next.
#[inline(always)]
pub fn port_left(at: SlotAt, slot: Held<Slot>, service: u16, expects: u32, sends: u32) {
    let Some(opening) = records::opening(at) else { return };
    let numbers = (expects as u64, sends as u64);
    tell(PORT_LEFT, Reason::TimeWait as u8, at, slot, opening, slot.ctl(), service, numbers);
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "what an event says, written where it is reserved")]
fn tell(
    kind: u8,
    reason: u8,
    at: SlotAt,
    slot: Held<Slot>,
    opening: Held<Opening>,
    ctl: Ctl,
    service: u16,
    (bytes_in, bytes_out): (u64, u64),
) {
    let key = slot.key();
    emit(|| Event {
        at: clock::coarse(),
        started: opening.started(),
        bytes_in,
        bytes_out,
        client: mapped(key.address_word()),
        client_port: key.port().to_ne_bytes(),
        listener: key.listener(),
        service,
        backend: slot.backend(),
        pool: at.pool(),
        slot: at.slot(),
        generation: ctl.generation(),
        connect_us: if kind == ENDED { opening.connect_us() } else { 0 },
        kind,
        reason,
        tries: opening.tries(),
        family: V4::NUMBER,
    });
}

/// Reports that the unconfirmed flow in a slot gave way, but not more often than [`GAVE_WAY_EVENTS`].
/// A backend that gets no RST for it repeats its answer, and gets one then.
#[inline(always)]
pub fn gave_way(at: SlotAt, slot: Held<Slot>, ctl: Ctl, (number, service): (u16, Held<Service>)) {
    renew_stretch(service);
    let Some(opening) = records::opening(at) else { return };
    if service.gave_way() < GAVE_WAY_EVENTS {
        service.add_gave_way(1);
        tell(GAVE_WAY, ctl.reason(), at, slot, opening, ctl, number, (slot.end_client(), slot.end_backend()));
    }
}

/// Reports that a new connection was turned away before it had a slot, but not more often than
/// [`TURNED_AWAY_EVENTS`].
#[inline(always)]
pub fn turned_away(key: Key, service: u16, reason: Reason) {
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
        family: V4::NUMBER,
    });
}

/// Whether one more client that is turned away may be reported. A flood pays for two reads here.
#[inline(always)]
fn may_tell(service: u16) -> bool {
    let Some(service) = records::service(service as u32) else { return false };
    renew_stretch(service);
    if service.turned_away() < TURNED_AWAY_EVENTS {
        service.add_turned_away(1);
        return true;
    }
    if service.flags() & LOG != 0 {
        count(Reason::AccessLogSuppressed);
    }
    false
}

/// Counts from zero in each stretch of time. Two CPUs that begin one at once may both set the counts
/// to zero, and those that count at once may both find them below the limit: then a few more events
/// are reported, and everything is counted all the same.
#[inline(always)]
fn renew_stretch(service: Held<Service>) {
    let now = turned_away_stretch(clock::ticks());
    if service.turned_away_in() != now {
        service.set_turned_away(0);
        service.set_gave_way(0);
        service.set_turned_away_in(now);
    }
}

#[inline(always)]
fn mapped(address: u32) -> [u8; 16] {
    let [a, b, c, d] = address.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Makes the event in the ring buffer itself: on the stack it would take a third of what calls may
/// use.
#[inline(always)]
fn emit(event: impl FnOnce() -> Event) {
    match maps::EVENTS.reserve(0) {
        Some(mut room) => {
            room.write(event());
            room.submit(0);
        }
        None => count(Reason::EventLost),
    }
}
