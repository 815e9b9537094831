//! Segments of clients that have a flow.

use lb_common::{
    layout::{OPENING_ISN_CLIENT, UP},
    seq::within,
    slot::{CONNECTED, Ctl, FIN_CLIENT, KILLED, State},
    tcp::{CONTROL, SYN, Side, Step, step},
    verdict::Reason,
};

use super::{Outcome, SWAPS, at, backend_of, change, close, forget, is_closed, word};
use crate::{atomic, clock, maps, report, slots, trace};

/// A segment of a client with a flow, off the fast path.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn from_client(place: u32, flags: u32, sequence: u32) -> u64 {
    let Some(record) = at(place) else { return Outcome::at(Outcome::DROP, 0) };
    // SAFETY: from a map lookup.
    unsafe {
        if flags as u8 & CONTROL == SYN && trace::is_asked((*record).key, sequence) {
            return trace::known(place, word(record));
        }
    }
    for _ in 0..SWAPS {
        // SAFETY: from a map lookup.
        unsafe {
            let ctl = word(record);
            if ctl.state() == State::Suspect {
                change(record, ctl, ctl.cleared());
                continue;
            }
            match step(ctl.state(), Side::Client, flags as u8) {
                Step::Syn => return from_client_syn(place, ctl.0, sequence),
                Step::Forward if ctl.state() == State::Closed && ctl.flags() & KILLED != 0 => {
                    report::count(Reason::AfterClose);
                    return Outcome::at(Outcome::RESET, place);
                }
                Step::Closing(state) => {
                    if !change(record, ctl, ctl.with_state(state).with_flags(FIN_CLIENT)) {
                        continue;
                    }
                }
                Step::Close => {
                    if close(place, ctl.with_flags(FIN_CLIENT).0, Reason::Closed as u32) == 0 {
                        continue;
                    }
                }
                Step::Reset => client_reset(place, ctl.0, sequence),
                Step::GivenUp => return Outcome::at(Outcome::DROP, 0),
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

/// A RST of the client ends the flow if the backend can be expecting its sequence number (RFC 5961 section 3).
#[inline(always)]
unsafe fn client_reset(place: u32, ctl: u64, sequence: u32) {
    let Some(record) = at(place) else { return };
    // SAFETY: from a map lookup.
    let (expected, end) = unsafe { ((*record).ack_backend, (*record).end_client as u32) };
    if Ctl(ctl).state() == State::HalfOpen {
        if sequence == end {
            close(place, ctl, Reason::ClientAborted as u32);
        }
    } else if within(expected, sequence, end) {
        close(place, ctl, Reason::ClientReset as u32);
    } else {
        report::count(Reason::RstOutOfWindow);
    }
}

/// A SYN of a client that has a flow: sent again, or the first of a new connection from the same port.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn from_client_syn(place: u32, ctl: u64, sequence: u32) -> u64 {
    let (Some(record), Some(opening)) = (at(place), slots::opening(place)) else {
        return Outcome::at(Outcome::DROP, 0);
    };
    let ctl = Ctl(ctl);
    // SAFETY: from map lookups.
    let (key, end, backend, initial) = unsafe {
        ((*record).key, (*record).end_client as u32, (*record).backend, (*opening).words[OPENING_ISN_CLIENT])
    };
    match ctl.state() {
        State::HalfOpen if sequence.wrapping_add(1) == end => return retransmitted(place, ctl.0),
        State::HalfOpen if close(place, ctl.0, Reason::ClientAborted as u32) == 0 => {
            return Outcome::at(Outcome::DROP, 0);
        }
        _ if ctl.flags() & CONNECTED != 0 && sequence == initial && ctl.flags() & KILLED == 0 => {
            return Outcome::at(Outcome::FORWARD, place);
        }
        State::HalfOpen | State::Closed => {}
        // Its backend answers with a challenge ACK (RFC 5961 section 4) and the client, if it has forgotten the
        // connection, with a RST. Only from a backend that is out no answer can be expected.
        _ if is_up(backend as u32) != 0 => return Outcome::at(Outcome::FORWARD, place),
        // Whoever else ended it in this moment: the client sends again.
        _ if close(place, ctl.0, Reason::Replaced as u32) == 0 => return Outcome::at(Outcome::DROP, 0),
        _ => {}
    }
    forget(key, place, ctl);
    Outcome::at(Outcome::OPEN, 0)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_up(backend: u32) -> u32 {
    match backend_of(backend as u16) {
        // SAFETY: from a map lookup.
        Some(record) => unsafe { (atomic::load(&raw const (*record).admission) == UP) as u32 },
        None => 0,
    }
}

/// The client's SYN again: to the same backend, until connect_timeout is over or that backend gets no new connections any
/// more (drained, in maintenance, removed); then to the next one.
#[inline(always)]
fn retransmitted(place: u32, ctl: u64) -> u64 {
    let (Some(record), Some(opening)) = (at(place), slots::opening(place)) else {
        return Outcome::at(Outcome::DROP, 0);
    };
    let ctl = Ctl(ctl);
    // SAFETY: from map lookups.
    unsafe {
        let Some(backend) = backend_of((*record).backend) else { return Outcome::at(Outcome::DROP, 0) };
        let Some(service) = maps::SERVICES.get_ptr_mut((*backend).service as u32) else {
            return Outcome::at(Outcome::DROP, 0);
        };
        let waited = clock::microseconds().wrapping_sub((*opening).connect_us) as u64 * 1000;
        let reason = if waited >= (*service).connect_timeout {
            Reason::ConnectTimeout
        } else if is_closed(backend) {
            Reason::MovedOn
        } else {
            return Outcome::at(Outcome::FORWARD, place);
        };
        let given_up = ctl.with_state(State::Abandoned);
        if !change(record, ctl, given_up) {
            return Outcome::at(Outcome::DROP, 0);
        }
        Outcome::move_on(reason, place)
    }
}
