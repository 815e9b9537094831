//! The end of a flow, and its consequences.

use lb_common::{
    event::ENDED,
    flow::SlotAt,
    layout::{LOG, Slot},
    slot::{CONNECTED, Ctl, FIN_BACKEND, FIN_CLIENT, IN_RING, State},
    tcp::{Side, Step},
    verdict::Reason,
};

use super::change;
use crate::{
    access,
    outcome::Outcome,
    records::{self, Held},
    report, slots,
};

/// The steps that both sides have in common: a FIN of one side, the second FIN, a segment of no
/// flow, data and acknowledgements.
#[inline(always)]
pub fn ends(at: SlotAt, slot: Held<Slot>, ctl: Ctl, (side, step): (Side, Step), inside: bool) -> Outcome {
    let fin = if matches!(side, Side::Client) { FIN_CLIENT } else { FIN_BACKEND };
    let done = match step {
        Step::Closing(state) => change(at, slot, ctl, ctl.with_state(state).with_flags(fin)),
        Step::Close => close(at, ctl.with_flags(fin), Reason::Closed),
        Step::Unknown if ctl.is_retired() => return Outcome::not_ours(),
        Step::Unknown => return Outcome::reset(Reason::UnknownFlow),
        _ => {
            if !inside && ctl.state() != State::Closed {
                report::count(Reason::OutOfWindow);
            }
            true
        }
    };
    if done { Outcome::forward(at) } else { Outcome::again() }
}

/// Ends a flow, if its word still is `ctl` (except for flags that are to be set with the end).
/// Returns true if this call has ended it.
#[inline(always)]
pub fn close(at: SlotAt, ctl: Ctl, reason: Reason) -> bool {
    close_global(at.0, ctl.0, reason as u32) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn close_global(at: u32, ctl: u64, reason: u32) -> u32 {
    let Some(slot) = records::slot(SlotAt(at)) else { return 0 };
    let now = slot.ctl();
    // Flags are only ever added: those that the caller knows, and those that were added in between.
    // Only IN_RING is taken away.
    let ended = now.with_flags(Ctl(ctl).without_flags(IN_RING).flags()).closed(reason as u8);
    let same = now.state() == Ctl(ctl).state() && now.generation() == Ctl(ctl).generation();
    if !same || !change(SlotAt(at), slot, now, ended) {
        return 0;
    }
    finish(SlotAt(at), ended);
    1
}

/// The consequences of an end: the backend's counts, the event, the port.
#[inline(always)]
fn finish(at: SlotAt, ctl: Ctl) {
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else { return };
    if let Some(backend) = records::backend(slot.backend() as u32) {
        backend.one_less();
        access::uncount_flow(ctl, backend.service(), slot.key());
        let (bytes_in, bytes_out) = report::bytes(slot, opening, ctl);
        backend.add_bytes_in(bytes_in);
        backend.add_bytes_out(bytes_out);
        if ctl.flags() & CONNECTED != 0 && ctl.reason() != Reason::Closed as u8 {
            backend.add_resets(1);
        }
        tell_global(at.0, ctl.0, backend.service() as u32);
        if ctl.reason() == Reason::HalfOpenEvicted as u8 {
            gave_way_global(at.0, ctl.0, backend.service() as u32);
        }
    }
    report::count_number(ctl.reason() as u32);
    if ctl.flags() & IN_RING == 0 {
        slots::release(at);
    }
}

/// Reports an end, if the service has a log.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn tell_global(at: u32, ctl: u64, service: u32) -> u32 {
    let (Some(slot), Some(record)) = (records::slot(SlotAt(at)), records::service(service)) else { return 0 };
    if record.flags() & LOG != 0 {
        report::flow(ENDED, Ctl(ctl).reason(), SlotAt(at), slot, Ctl(ctl), service as u16);
    }
    1
}

/// Reports that an unconfirmed flow gave way: its backend is to get a RST.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn gave_way_global(at: u32, ctl: u64, service: u32) -> u32 {
    let (at, ctl) = (SlotAt(at), Ctl(ctl));
    let (Some(slot), Some(record)) = (records::slot(at), records::service(service)) else { return 0 };
    report::gave_way(at, slot, ctl, (service as u16, record));
    1
}
