//! Segments of clients that have a flow.

use lb_common::{
    flow::SlotAt,
    layout::{OPENING_ISN_CLIENT, Slot, UP},
    seq::within,
    slot::{CONNECTED, Ctl, KILLED, State},
    tcp::{RST, SYN, Side, Step, step},
    verdict::Reason,
};

use super::{
    change,
    end::{close, ends},
    persist,
};
use crate::{
    clock, index,
    outcome::Outcome,
    records::{self, Held},
    report, trace,
};

/// A segment of a client with a flow, off the fast path.
#[inline(always)]
pub fn from_client(at: SlotAt, flags: u8, sequence: u32) -> Outcome {
    if flags & (SYN | RST) == SYN {
        return Outcome(from_client_syn_global(at.0, sequence));
    }
    Outcome(from_client_global(at.0, flags as u32, sequence))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn from_client_global(at: u32, flags: u32, sequence: u32) -> u64 {
    persist(SlotAt(at), || Outcome(client_step_global(at, flags, sequence))).0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn client_step_global(at: u32, flags: u32, sequence: u32) -> u64 {
    let at = SlotAt(at);
    let Some(slot) = records::slot(at) else { return Outcome::drop(Reason::LostRace).0 };
    let ctl = slot.ctl();
    if ctl.state() == State::Suspect {
        change(at, slot, ctl, ctl.cleared());
        return Outcome::again().0;
    }
    match step(ctl.state(), Side::Client, flags as u8) {
        Step::Forward if ctl.state() == State::Closed && ctl.flags() & KILLED != 0 => {
            Outcome::reset(Reason::AfterClose).0
        }
        Step::GivenUp => Outcome::drop(Reason::HalfOpenJunk).0,
        step => ends(at, slot, ctl, (Side::Client, step), || reset(at, slot, ctl, sequence)).0,
    }
}

/// A RST of the client ends the flow if the backend can be expecting its sequence number (RFC 5961
/// section 3).
#[inline(always)]
fn reset(at: SlotAt, slot: Held<Slot>, ctl: Ctl, sequence: u32) {
    let (expected, end) = (slot.ack_backend(), slot.end_client() as u32);
    // A flow that another CPU has ended in between is over all the same.
    if ctl.state() == State::HalfOpen {
        if sequence == end {
            close(at, ctl, Reason::ClientAborted);
        }
    } else if within(expected, sequence, end) {
        close(at, ctl, Reason::ClientReset);
    } else {
        report::count(Reason::RstOutOfWindow);
    }
}

/// A SYN of a client that has a flow: sent again, or the first of a new connection from the same
/// port.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn from_client_syn_global(at: u32, sequence: u32) -> u64 {
    let at = SlotAt(at);
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else {
        return Outcome::drop(Reason::LostRace).0;
    };
    if trace::is_asked(slot.key(), sequence) {
        return trace::known(at, slot.ctl()).0;
    }
    let mut ctl = slot.ctl();
    if ctl.state() == State::Suspect {
        if !change(at, slot, ctl, ctl.cleared()) {
            return Outcome::drop(Reason::LostRace).0;
        }
        ctl = ctl.cleared();
    }
    match step(ctl.state(), Side::Client, SYN) {
        Step::Syn => {}
        Step::GivenUp => return Outcome::drop(Reason::HalfOpenJunk).0,
        _ => return Outcome::reset(Reason::UnknownFlow).0,
    }
    let (key, end, backend) = (slot.key(), slot.end_client() as u32, slot.backend());
    let initial = opening.word(OPENING_ISN_CLIENT);
    match ctl.state() {
        State::HalfOpen if sequence.wrapping_add(1) == end => return retransmitted_global(at.0, ctl.0),
        State::HalfOpen if !close(at, ctl, Reason::ClientAborted) => return Outcome::drop(Reason::LostRace).0,
        _ if ctl.flags() & CONNECTED != 0 && sequence == initial && ctl.flags() & KILLED == 0 => {
            return Outcome::forward(at).0;
        }
        State::HalfOpen | State::Closed => {}
        // Its backend answers with a challenge ACK (RFC 5961 section 4), and the client, if it has
        // forgotten the connection, with a RST. A backend that is out is the only one that cannot
        // be expected to answer.
        _ if is_up_global(backend as u32) != 0 => return Outcome::forward(at).0,
        // Another CPU or the controller has ended it at this moment: the client sends again.
        _ if !close(at, ctl, Reason::Replaced) => return Outcome::drop(Reason::LostRace).0,
        _ => {}
    }
    index::forget(key, at, ctl);
    Outcome::open().0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_up_global(backend: u32) -> u32 {
    records::backend(backend).is_some_and(|backend| backend.admission() == UP) as u32
}

/// The client's SYN again: to the same backend, until connect_timeout is over or that backend gets
/// no more new connections (drained, in maintenance, removed). Then it goes to the next one.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn retransmitted_global(at: u32, ctl: u64) -> u64 {
    let (at, ctl) = (SlotAt(at), Ctl(ctl));
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else {
        return Outcome::drop(Reason::LostRace).0;
    };
    let Some(backend) = records::backend(slot.backend() as u32) else { return Outcome::drop(Reason::Damaged).0 };
    let Some(service) = records::service(backend.service() as u32) else { return Outcome::drop(Reason::Damaged).0 };
    let waited = clock::microseconds().wrapping_sub(opening.connect_us()) as u64 * 1000;
    let reason = if waited >= service.connect_timeout() {
        Reason::ConnectTimeout
    } else if backend.is_closed() {
        Reason::MovedOn
    } else {
        return Outcome::forward(at).0;
    };
    if !change(at, slot, ctl, ctl.with_state(State::Abandoned)) {
        return Outcome::drop(Reason::LostRace).0;
    }
    Outcome::move_on(reason, at).0
}
