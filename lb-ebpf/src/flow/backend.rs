//! Segments of backends.

use lb_common::{
    event::RECOVERED,
    flow::SlotAt,
    layout::{OPENING_ISN_BACKEND, OPENING_ISN_CLIENT, OUT, Slot, UP, connect_time_bucket},
    seq::within,
    slot::{CONNECTED, Ctl, KILLED, State},
    tcp::{ACK, SYN, Side, Step, step},
    time::Instant,
    verdict::Reason,
};

use super::{
    change,
    end::{close, ends},
    persist,
};
use crate::{
    clock,
    outcome::Outcome,
    records::{self, Held},
    report,
};

/// In addition to the flags of TCP: the segment carries data.
pub const PAYLOAD: u32 = 1 << 8;

/// How many ports may be left behind because the backend still holds an older connection on them.
/// Each fresh one has a chance of a half or better: a backend in TIME_WAIT accepts a SYN whose
/// timestamp or sequence number is newer than the last ones.
const PORT_RETRIES: u8 = 7;

/// A segment from a backend to a port of ours, off the fast path. `flags` has [`PAYLOAD`] too.
#[inline(always)]
pub fn from_backend(at: SlotAt, flags: u32, sequence: u32, acknowledgement: u32) -> Outcome {
    Outcome(from_backend_global(at.0, flags, sequence, acknowledgement))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn from_backend_global(at: u32, flags: u32, sequence: u32, acknowledgement: u32) -> u64 {
    persist(SlotAt(at), || Outcome(backend_step_global(at, flags, sequence, acknowledgement))).0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn backend_step_global(at: u32, flags: u32, sequence: u32, acknowledgement: u32) -> u64 {
    let at = SlotAt(at);
    let Some(slot) = records::slot(at) else { return Outcome::drop(Reason::LostRace).0 };
    let ctl = slot.ctl();
    if ctl.state() == State::Suspect {
        change(at, slot, ctl, ctl.cleared());
        return Outcome::again().0;
    }
    let is_ours = acknowledgement == slot.end_client() as u32;
    match step(ctl.state(), Side::Backend, flags as u8) {
        Step::Connected if is_ours => connected(at, slot, ctl, sequence, acknowledgement).0,
        Step::Refused if flags as u8 & ACK != 0 && is_ours => leave(at, slot, ctl, Reason::Refused).0,
        Step::Stale if slot.attempt().port_retries() < PORT_RETRIES => leave(at, slot, ctl, Reason::TimeWait).0,
        // The client answers it with a RST, which ends the older connection, and sends its SYN
        // again; Linux does so at once.
        Step::Stale if flags == ACK as u32 => {
            report::count(Reason::TimeWait);
            Outcome::forward(at).0
        }
        Step::Stale => junk(0).0,
        Step::Connected | Step::Refused => junk(flags).0,
        Step::GivenUp => given_up(flags).0,
        Step::Forward if ctl.state() == State::Closed && ctl.flags() & CONNECTED == 0 => given_up(flags).0,
        Step::Forward if ctl.state() == State::Closed && ctl.flags() & KILLED != 0 => {
            Outcome::reset(Reason::AfterClose).0
        }
        step => ends(at, slot, ctl, (Side::Backend, step), || reset(at, slot, ctl, sequence)).0,
    }
}

/// The SYN-ACK that answers our SYN.
#[inline(always)]
fn connected(at: SlotAt, slot: Held<Slot>, ctl: Ctl, sequence: u32, acknowledgement: u32) -> Outcome {
    let connected = ctl.with_state(State::Established).with_flags(CONNECTED);
    if !change(at, slot, ctl, connected) {
        return Outcome::again();
    }
    connect_global(at.0, connected.0, sequence, acknowledgement);
    Outcome::forward(at)
}

/// Takes a flow out of `HalfOpen`: this try is over.
#[inline(always)]
fn leave(at: SlotAt, slot: Held<Slot>, ctl: Ctl, reason: Reason) -> Outcome {
    if change(at, slot, ctl, ctl.closed(reason as u8)) { Outcome::move_on(reason, at) } else { Outcome::again() }
}

/// An answer that does not fit our SYN: one that asks for an answer gets a RST, the rest is
/// dropped.
#[inline(always)]
fn junk(flags: u32) -> Outcome {
    if flags as u8 & SYN != 0 { Outcome::reset(Reason::HalfOpenJunk) } else { Outcome::drop(Reason::HalfOpenJunk) }
}

/// A segment of a backend that was given up for this flow.
#[inline(always)]
fn given_up(flags: u32) -> Outcome {
    if flags as u8 & (SYN | ACK) != SYN | ACK {
        return junk(0);
    }
    Outcome::reset(Reason::LateSynAck)
}

/// A RST of the backend ends the flow if the client can be expecting its sequence number.
#[inline(always)]
fn reset(at: SlotAt, slot: Held<Slot>, ctl: Ctl, sequence: u32) {
    let (expected, end) = (slot.ack_client(), slot.end_backend() as u32);
    if within(expected, sequence, end) {
        close(at, ctl, Reason::BackendReset);
    } else {
        report::count(Reason::RstOutOfWindow);
    }
}

/// The consequences of a SYN-ACK: sequence numbers start, the connect time is counted, a backend on
/// trial is up again.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn connect_global(at: u32, ctl: u64, sequence: u32, acknowledgement: u32) -> u32 {
    let (Some(slot), Some(opening)) = (records::slot(SlotAt(at)), records::opening(SlotAt(at))) else { return 0 };
    // The winner of the swap writes these; the fast path only moves them on. A client cannot answer
    // what is not forwarded yet, and a second segment of the backend that overtakes this one on
    // another CPU moves them on from an end of 0, which the assignment puts right.
    slot.set_end_backend(sequence.wrapping_add(1) as u64);
    slot.set_ack_client(sequence.wrapping_add(1));
    slot.set_ack_backend(acknowledgement);
    opening.set_word(OPENING_ISN_CLIENT, acknowledgement.wrapping_sub(1));
    opening.set_word(OPENING_ISN_BACKEND, sequence);
    let took = clock::microseconds().wrapping_sub(opening.connect_us());
    opening.set_connect_us(took);
    let number = slot.backend() as u32;
    let Some(backend) = records::backend(number) else { return 0 };
    backend.add_connected(1);
    backend.add_connect_us(took as u64);
    records::count_connect_time(number, connect_time_bucket(took));
    readmit_global(at, ctl, number);
    1
}

/// A backend that is out has answered: it is up again, unless only its probe may bring it back.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn readmit_global(at: u32, ctl: u64, number: u32) -> u32 {
    let (Some(slot), Some(backend)) = (records::slot(SlotAt(at)), records::backend(number)) else { return 0 };
    if backend.admission() != OUT || backend.retry_at() == Instant::NEVER {
        return 0;
    }
    let service = backend.service();
    if let Some(slow) = records::slow_start(number)
        && slow.ms() != 0
    {
        // Written before it takes part, so that it does not begin with its whole share.
        let until = Instant(clock::coarse().0 + slow.ms() as u64 * 1_000_000);
        slow.set_until(until);
        if let Some(service) = records::service(service as u32)
            && service.slow_until() < until
        {
            // If two backends come back at once on two CPUs, the earlier moment may remain: the
            // later backend then has its whole share sooner, by the time between two packets.
            service.set_slow_until(until);
        }
    }
    if backend.swap_admission(OUT, UP) {
        report::flow(RECOVERED, 0, SlotAt(at), slot, Ctl(ctl), service);
    }
    1
}
