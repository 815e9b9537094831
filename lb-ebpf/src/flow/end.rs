//! The end of a flow, and its consequences.

use lb_common::{
    event::ENDED,
    layout::{LOG, Slot},
    slot::{CONNECTED, Ctl, IN_RING},
    verdict::Reason,
};

use super::{at, backend_of, change, uncount, word};
use crate::{atomic, maps, report, slots};

/// Ends a flow, if its word still is `ctl` (but for flags that are to be set with the end). 1 for who ended it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn close(place: u32, ctl: u64, reason: u32) -> u32 {
    let Some(record) = at(place) else { return 0 };
    // SAFETY: from a map lookup.
    unsafe {
        let now = word(record);
        // Flags are only ever added: those that the caller knows, and what was added meanwhile. Only IN_RING is taken away.
        let ended = now.with_flags(Ctl(ctl).without_flags(IN_RING).flags()).closed(reason as u8);
        let same = now.state() == Ctl(ctl).state() && now.generation() == Ctl(ctl).generation();
        if !same || !change(record, now, ended) {
            return 0;
        }
        finish(place, ended.0)
    }
}

/// The consequences of an end: the backend's counts, the event, the port.
#[inline(always)]
fn finish(place: u32, ctl: u64) -> u32 {
    let (Some(record), Some(opening)) = (at(place), slots::opening(place)) else { return 1 };
    let ctl = Ctl(ctl);
    // SAFETY: from map lookups.
    unsafe {
        if let Some(backend) = backend_of((*record).backend) {
            let (bytes_in, bytes_out) = report::bytes(record, opening, ctl);
            atomic::add(&raw mut (*backend).active, u32::MAX);
            uncount(ctl, (*backend).service, (*record).key);
            atomic::add(&raw mut (*backend).bytes_in, bytes_in);
            atomic::add(&raw mut (*backend).bytes_out, bytes_out);
            if ctl.flags() & CONNECTED != 0 && ctl.reason() != Reason::Closed as u8 {
                atomic::add(&raw mut (*backend).resets, 1);
            }
            tell_end(place, record, ctl, (*backend).service);
        }
    }
    count_number(ctl.reason() as u32);
    if ctl.flags() & IN_RING == 0 {
        slots::release(place >> 16, place & 0xffff);
    }
    1
}

#[inline(always)]
unsafe fn tell_end(place: u32, record: *mut Slot, ctl: Ctl, service: u16) {
    let Some(table) = maps::SERVICES.get_ptr_mut(service as u32) else { return };
    // SAFETY: from map lookups.
    unsafe {
        if (*table).flags & LOG != 0 {
            report::flow(ENDED, ctl.reason(), place, record, ctl, service);
        }
    }
}

#[inline(always)]
pub(super) fn count_number(reason: u32) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(reason) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}
