//! Segments of backends.

use lb_common::{
    event::RECOVERED,
    layout::{OPENING_ISN_BACKEND, OPENING_ISN_CLIENT, OUT, UP, connect_time_bucket},
    seq::within,
    slot::{CONNECTED, Ctl, FIN_BACKEND, KILLED, State},
    tcp::{ACK, SYN, Side, Step, step},
    time::Instant,
    verdict::Reason,
};

use super::{Outcome, SWAPS, at, backend_of, change, close, port_retries, word};
use crate::{atomic, clock, maps, report, slots};

/// How often the older connection that a backend still holds on a port may be dodged by a fresh port. Each has a chance of a
/// half or better: a backend in TIME_WAIT lets a SYN in whose timestamp or sequence number is newer than the last ones.
const HEALS: u8 = 7;

/// A segment from a backend to a port of ours, off the fast path. `flags` has [`PAYLOAD`](super::PAYLOAD) too.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn from_backend(place: u32, flags: u32, sequence: u32, acknowledgement: u32) -> u64 {
    let Some(record) = at(place) else { return Outcome::at(Outcome::DROP, 0) };
    for _ in 0..SWAPS {
        // SAFETY: from a map lookup.
        unsafe {
            let ctl = word(record);
            if ctl.state() == State::Suspect {
                change(record, ctl, ctl.cleared());
                continue;
            }
            let expected = (*record).end_client as u32;
            match step(ctl.state(), Side::Backend, flags as u8) {
                Step::Connected if acknowledgement == expected => {
                    let connected = ctl.with_state(State::Established).with_flags(CONNECTED);
                    if !change(record, ctl, connected) {
                        continue;
                    }
                    connect(place, connected.0, sequence, acknowledgement);
                }
                Step::Refused if flags as u8 & ACK != 0 && acknowledgement == expected => {
                    let refused = ctl.closed(Reason::Refused as u8);
                    if !change(record, ctl, refused) {
                        continue;
                    }
                    return Outcome::move_on(Reason::Refused, place);
                }
                // The client answers it with a RST, which ends the older connection, and sends its SYN again: Linux at once.
                Step::Stale if port_retries(record) >= HEALS && flags == ACK as u32 => report::count(Reason::TimeWait),
                Step::Stale if port_retries(record) >= HEALS => return junk(0),
                Step::Stale => {
                    if !change(record, ctl, ctl.closed(Reason::TimeWait as u8)) {
                        continue;
                    }
                    return Outcome::move_on(Reason::TimeWait, place);
                }
                Step::Connected | Step::Refused => return junk(flags),
                Step::GivenUp => return given_up(flags),
                Step::Forward if ctl.state() == State::Closed && ctl.flags() & CONNECTED == 0 => {
                    return given_up(flags);
                }
                Step::Forward if ctl.state() == State::Closed && ctl.flags() & KILLED != 0 => {
                    report::count(Reason::AfterClose);
                    return Outcome::at(Outcome::RESET, place);
                }
                Step::Closing(state) => {
                    if !change(record, ctl, ctl.with_state(state).with_flags(FIN_BACKEND)) {
                        continue;
                    }
                }
                Step::Close => {
                    if close(place, ctl.with_flags(FIN_BACKEND).0, Reason::Closed as u32) == 0 {
                        continue;
                    }
                }
                Step::Reset => backend_reset(place, ctl.0, sequence),
                Step::Unknown => {
                    report::count(Reason::UnknownFlow);
                    return Outcome::at(Outcome::RESET, 0);
                }
                _ => {}
            }
        }
        break;
    }
    Outcome::at(Outcome::FORWARD, place)
}

/// An answer that does not fit our SYN: one that asks for an answer gets a RST, the rest is dropped.
#[inline(always)]
fn junk(flags: u32) -> u64 {
    report::count(Reason::HalfOpenJunk);
    Outcome::at(if flags as u8 & SYN != 0 { Outcome::RESET } else { Outcome::DROP }, 0)
}

/// A segment of a backend that was given up for this flow.
#[inline(always)]
fn given_up(flags: u32) -> u64 {
    if flags as u8 & (SYN | ACK) != SYN | ACK {
        return junk(0);
    }
    report::count(Reason::LateSynAck);
    Outcome::at(Outcome::RESET, 0)
}

/// A RST of the backend ends the flow if the client can be expecting its sequence number.
#[inline(always)]
unsafe fn backend_reset(place: u32, ctl: u64, sequence: u32) {
    let Some(record) = at(place) else { return };
    // SAFETY: from a map lookup.
    let (expected, end) = unsafe { ((*record).ack_client, (*record).end_backend as u32) };
    if within(expected, sequence, end) {
        close(place, ctl, Reason::BackendReset as u32);
    } else {
        report::count(Reason::RstOutOfWindow);
    }
}

/// The consequences of a SYN-ACK: sequence numbers start, the connect time is counted, a backend on trial is up again.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn connect(place: u32, ctl: u64, sequence: u32, acknowledgement: u32) -> u32 {
    let (Some(record), Some(opening)) = (at(place), slots::opening(place)) else { return 0 };
    // SAFETY: from map lookups; the winner of the swap writes these, the fast path only moves them on.
    unsafe {
        (*record).end_backend = sequence.wrapping_add(1) as u64;
        (*record).ack_client = sequence.wrapping_add(1);
        (*record).ack_backend = acknowledgement;
        (*opening).words[OPENING_ISN_CLIENT] = acknowledgement.wrapping_sub(1);
        (*opening).words[OPENING_ISN_BACKEND] = sequence;
        let took = clock::microseconds().wrapping_sub((*opening).connect_us);
        (*opening).connect_us = took;
        let number = (*record).backend;
        let Some(backend) = backend_of(number) else { return 0 };
        atomic::add(&raw mut (*backend).connected, 1);
        atomic::add(&raw mut (*backend).connect_us, took as u64);
        if let Some(times) = maps::CONNECT_TIMES.get_ptr_mut(number as u32) {
            let mut bucket = connect_time_bucket(took);
            core::arch::asm!("{0} &= 63", inout(reg) bucket);
            atomic::add(times.cast::<u32>().add(bucket as usize), 1);
        }
        readmit(place, ctl, number as u32);
    }
    1
}

/// A backend that is out has answered: it is up again, unless it shall come back by its probe alone.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn readmit(place: u32, ctl: u64, number: u32) -> u32 {
    let (Some(record), Some(backend)) = (at(place), maps::BACKENDS.get_ptr_mut(number)) else { return 0 };
    // SAFETY: from map lookups.
    unsafe {
        if atomic::load(&raw const (*backend).admission) != OUT
            || atomic::load(&raw const (*backend).retry_at) == Instant::NEVER
        {
            return 0;
        }
        let service = (*backend).service;
        if let Some(slow) = maps::SLOW_STARTS.get_ptr_mut(number)
            && (*slow).ms != 0
        {
            // Before it takes part, so that it never has its whole share.
            let until = Instant(clock::coarse().0 + (*slow).ms as u64 * 1_000_000);
            atomic::store(&raw mut (*slow).until, until);
            if let Some(table) = maps::SERVICES.get_ptr_mut(service as u32)
                && (*table).slow_until < until
            {
                atomic::store(&raw mut (*table).slow_until, until);
            }
        }
        if atomic::compare_swap(&raw mut (*backend).admission, OUT, UP) == OUT {
            report::flow(RECOVERED, 0, place, record, Ctl(ctl), service);
        }
    }
    1
}
