//! Segments of clients that have a flow.

use lb_common::{
    flow::SlotAt,
    layout::Slot,
    slot::{CONNECTED, Ctl, KILLED, State},
    tcp::{Side, Step, step},
    verdict::Reason,
};

use super::{
    INSIDE, change,
    end::{close, ends},
    flags_of, met, persist,
};
use crate::{
    clock, index,
    outcome::Outcome,
    records::{self, Held},
    report, trace,
};

/// A segment of a client with a flow, off the fast path; `inside`: its numbers are believed.
#[inline(always)]
pub fn from_client(at: SlotAt, flags: u8, inside: bool, sequence: u32) -> Outcome {
    if matches!(step(State::Closed, Side::Client, flags, false), Step::Syn) {
        return Outcome(from_client_syn_global(at.0, sequence));
    }
    Outcome(from_client_global(at.0, flags_of(flags, inside), sequence))
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
    let (ctl, inside) = (slot.ctl(), flags & INSIDE != 0);
    let Some(state) = met(at, slot, ctl, inside) else { return Outcome::again().0 };
    match step(state, Side::Client, flags as u8, inside) {
        // It was never confirmed, or we have ended it: nobody waits for this behind us.
        Step::Forward if state == State::Closed && is_ours_alone(ctl) => Outcome::reset(Reason::AfterClose).0,
        Step::Odd if state == State::Closed => Outcome::reset(Reason::UnknownFlow).0,
        // What did not confirm an answered flow must not reach its backend, which would answer it.
        Step::Forward if state == State::Answered => Outcome::drop(Reason::HalfOpenJunk).0,
        Step::GivenUp | Step::Odd => Outcome::drop(Reason::HalfOpenJunk).0,
        // One for an older connection that the backend still holds on this port may pass, as long as
        // the backend has not answered this one.
        Step::Reset if !reset(at, slot, ctl, sequence) && state == State::Answered => {
            Outcome::drop(Reason::RstOutOfWindow).0
        }
        Step::Reset => Outcome::forward(at).0,
        step => ends(at, slot, ctl, (Side::Client, step), inside).0,
    }
}

/// Whether a closed flow is over for us and perhaps not for its two sides.
#[inline(always)]
fn is_ours_alone(ctl: Ctl) -> bool {
    ctl.flags() & (KILLED | CONNECTED) != CONNECTED
}

/// A RST of the client ends the flow if its number is exact (RFC 5961 section 3.2): what the
/// backend acknowledged last or, if it has not acknowledged everything yet, the end of it. Any
/// other is for the backend to challenge. Nothing of an established one is forwarded after that:
/// the backend may not have taken the RST, as when its checksum is wrong, and the flow is no longer
/// counted. True: it ends the flow, now or a moment ago.
#[inline(always)]
fn reset(at: SlotAt, slot: Held<Slot>, ctl: Ctl, sequence: u32) -> bool {
    let end = slot.end_client() as u32;
    let (exact, flags, reason) = match ctl.state().is_unconfirmed() {
        true => (sequence == end, 0, Reason::ClientAborted),
        false => (sequence == end || sequence == slot.ack_backend(), KILLED, Reason::ClientReset),
    };
    if exact {
        close(at, ctl.with_flags(flags), reason);
    } else if !ctl.state().is_unconfirmed() {
        report::count(Reason::RstOutOfWindow);
    }
    exact
}

/// A SYN of a client that has a flow: sent again, or the first of a new connection from the same
/// port. It closes nothing by its word alone, which is anybody's. A client that has forgotten its
/// connection answers our challenge with an exact RST and sends its SYN again; Linux does so at
/// once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn from_client_syn_global(at: u32, sequence: u32) -> u64 {
    let at = SlotAt(at);
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else {
        return Outcome::drop(Reason::LostRace).0;
    };
    let ctl = slot.ctl();
    if trace::is_asked(slot.key(), sequence) {
        return trace::known(at, ctl).0;
    }
    let is_same = sequence == opening.isn_client();
    match ctl.state() {
        State::Free | State::Claiming => Outcome::reset(Reason::UnknownFlow).0,
        State::Abandoned => Outcome::drop(Reason::HalfOpenJunk).0,
        State::HalfOpen if is_same => retransmitted_global(at.0, ctl.0),
        // The client answers the SYN-ACK that is due with a RST, if this is a new connection of it.
        State::HalfOpen => Outcome::drop(Reason::HalfOpenJunk).0,
        State::Answered if is_same => Outcome::send_syn(at).0,
        State::Closed => {
            index::forget(slot.key(), at, ctl);
            Outcome::open().0
        }
        _ => Outcome::challenge(at).0,
    }
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
        return Outcome::send_syn(at).0;
    };
    if !change(at, slot, ctl, ctl.with_state(State::Abandoned)) {
        return Outcome::drop(Reason::LostRace).0;
    }
    Outcome::move_on(reason, at).0
}
