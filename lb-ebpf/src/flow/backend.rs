//! Segments of backends.

use lb_common::{
    event::RECOVERED,
    flow::SlotAt,
    layout::{OUT, Opening, Slot, UP, connect_time_bucket},
    slot::{CONNECTED, Ctl, KILLED, SEIZED, State},
    syn::{Scales, Scan},
    tcp::{ACK, RST, SYN, Side, Step, step},
    time::Instant,
    verdict::Reason,
};

use super::{
    INSIDE, change,
    end::{close, ends},
    flags_of, met, persist,
};
use crate::{
    clock,
    outcome::Outcome,
    records::{self, Held},
    report, slots,
};

/// How many ports may be left behind because the backend still holds an older connection on them.
/// Each fresh one has a chance of a half or better: a backend in TIME_WAIT accepts a SYN whose
/// timestamp or sequence number is newer than the last ones.
const PORT_RETRIES: u8 = 7;

/// What a SYN-ACK offers, and its window: the window takes the lowest bits of a [`Scan`], which only
/// the scanning needs.
#[derive(Clone, Copy)]
pub struct Answer(pub u64);

impl Answer {
    #[inline(always)]
    pub const fn new(scan: Scan, window: u16) -> Answer {
        Answer(scan.0 & !0xffff | window as u64)
    }

    #[inline(always)]
    const fn window(self) -> u32 {
        self.0 as u32 & 0xffff
    }

    #[inline(always)]
    const fn scan(self) -> Scan {
        Scan(self.0)
    }
}

/// A segment from a backend to a port of ours, off the fast path; `inside`: its numbers are
/// believed. `answer` is an [`Answer`], if it is a SYN-ACK.
#[inline(always)]
pub fn from_backend(at: SlotAt, flags: u8, inside: bool, sequence: u32, acknowledgement: u32, answer: u64) -> Outcome {
    Outcome(from_backend_global(at.0, flags_of(flags, inside), sequence, acknowledgement, answer))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn from_backend_global(at: u32, flags: u32, sequence: u32, acknowledgement: u32, answer: u64) -> u64 {
    persist(SlotAt(at), || Outcome(backend_step_global(at, flags, sequence, acknowledgement, answer))).0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn backend_step_global(at: u32, flags: u32, sequence: u32, acknowledgement: u32, answer: u64) -> u64 {
    let at = SlotAt(at);
    let Some(slot) = records::slot(at) else { return Outcome::drop(Reason::LostRace).0 };
    let (ctl, inside) = (slot.ctl(), flags & INSIDE != 0);
    let Some(state) = met(at, slot, ctl, inside) else { return Outcome::again().0 };
    let is_ours = acknowledgement == slot.end_client() as u32;
    let is_syn_ack = flags as u8 & (SYN | ACK | RST) == SYN | ACK;
    match step(state, Side::Backend, flags as u8, inside) {
        Step::Connected if is_ours => connected(at, slot, ctl, sequence, answer).0,
        // A SYN inside the window of the one before it ends that attempt, with a RST for this one.
        Step::Refused if flags as u8 & ACK != 0 && is_ours && ctl.flags() & SEIZED != 0 => {
            if change(at, slot, ctl, ctl.without_flags(SEIZED)) { Outcome::send_syn(at).0 } else { Outcome::again().0 }
        }
        Step::Refused if flags as u8 & ACK != 0 && is_ours => leave(at, slot, ctl, Reason::Refused).0,
        Step::Stale if may_leave_port(at, slot, ctl) => {
            let left = leave(at, slot, ctl, Reason::TimeWait);
            if left.kind() == Outcome::MOVE_ON {
                tell_port_left_global(at.0, acknowledgement, sequence);
            }
            left.0
        }
        // No other port is left. The client answers it with a RST, which ends the older connection, and sends its SYN
        // again; Linux does so at once.
        Step::Stale if flags == ACK as u32 => {
            report::count(Reason::TimeWait);
            Outcome::forward(at).0
        }
        Step::Stale => junk(0).0,
        Step::Connected | Step::Refused => junk(flags).0,
        // A backend that answers with SYN cookies may choose another number for a repeated SYN.
        Step::Forward if state == State::Answered && is_syn_ack => {
            if is_ours {
                answered_global(at.0, sequence, answer)
            } else {
                junk(flags).0
            }
        }
        Step::GivenUp => given_up(flags).0,
        Step::Forward if state == State::Closed && (ctl.flags() & CONNECTED == 0 || is_syn_ack) => given_up(flags).0,
        Step::Forward if state == State::Closed && ctl.flags() & KILLED != 0 => Outcome::reset(Reason::AfterClose).0,
        Step::Reset => {
            reset(at, slot, ctl, sequence);
            Outcome::forward(at).0
        }
        step => ends(at, slot, ctl, (Side::Backend, step), inside).0,
    }
}

/// The SYN-ACK that answers our SYN.
#[inline(always)]
fn connected(at: SlotAt, slot: Held<Slot>, ctl: Ctl, sequence: u32, answer: u64) -> Outcome {
    if !change(at, slot, ctl, ctl.with_state(State::Answered).without_flags(SEIZED)) {
        return Outcome::again();
    }
    // From now on the client has its time to confirm, however often the answer is repeated.
    slot.set_last_seen(clock::ticks());
    count_answer_global(at.0);
    Outcome(answered_global(at.0, sequence, answer))
}

/// Whether a flow whose backend holds an older connection on its port may take another one. Where
/// ports are seized, those that are free are no better, and the controller is about to end the older
/// attempt.
#[inline(always)]
fn may_leave_port(at: SlotAt, slot: Held<Slot>, ctl: Ctl) -> bool {
    ctl.flags() & SEIZED == 0 && slot.attempt().port_retries() < PORT_RETRIES && slots::has_free(at.pool())
}

/// Takes a flow out of `HalfOpen`: this try is over.
#[inline(always)]
pub fn leave(at: SlotAt, slot: Held<Slot>, ctl: Ctl, reason: Reason) -> Outcome {
    if change(at, slot, ctl, ctl.closed(reason as u8)) { Outcome::move_on(reason, at) } else { Outcome::again() }
}

/// The controller is told which older connection the backend holds, so that it ends it: a firewall
/// there may have taken our SYN for the next one on this port, and would judge the one that follows
/// by this one's numbers.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn tell_port_left_global(at: u32, expects: u32, sends: u32) -> u32 {
    let Some(slot) = records::slot(SlotAt(at)) else { return 0 };
    let Some(backend) = records::backend(slot.backend() as u32) else { return 0 };
    report::port_left(SlotAt(at), slot, backend.service(), expects, sends);
    1
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

/// A RST of the backend ends the flow if its number is exact: what the client acknowledged last or,
/// if it has not acknowledged everything yet, the end of it. As with a client's, nothing is
/// forwarded after that.
#[inline(always)]
fn reset(at: SlotAt, slot: Held<Slot>, ctl: Ctl, sequence: u32) {
    if sequence == slot.ack_client() || sequence == slot.end_backend() as u32 {
        close(at, ctl.with_flags(KILLED), Reason::BackendReset);
    } else {
        report::count(Reason::RstOutOfWindow);
    }
}

/// Sequence numbers and windows start with the SYN-ACK, which is forwarded.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn answered_global(at: u32, sequence: u32, answer: u64) -> u64 {
    let at = SlotAt(at);
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else {
        return Outcome::drop(Reason::LostRace).0;
    };
    if let Some(pool) = records::pool(at.pool() as u32) {
        pool.note_heard(clock::ticks());
    }
    start(slot, opening, sequence, Answer(answer));
    Outcome::forward(at).0
}

/// The winner of the swap writes these; the fast path only moves them on, once the client has
/// confirmed the flow. It cannot acknowledge what is not forwarded yet.
#[inline(always)]
fn start(slot: Held<Slot>, opening: Held<Opening>, sequence: u32, answer: Answer) {
    let (client, backend) = (opening.isn_client().wrapping_add(1), sequence.wrapping_add(1));
    let syn = opening.syn();
    opening.set_isn_backend(sequence);
    slot.set_end_backend(backend as u64);
    slot.set_ack_client(backend);
    slot.set_ack_backend(client);
    slot.set_edge_client(client.wrapping_add(answer.window()));
    slot.set_edge_backend(backend.wrapping_add(u16::from_be_bytes(syn.window) as u32));
    slot.set_scales(Scales::agreed(syn.scan(), answer.scan()));
}

/// The consequences of a first SYN-ACK: the connect time is counted, a backend on trial is up again.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_answer_global(at: u32) -> u32 {
    let (Some(slot), Some(opening)) = (records::slot(SlotAt(at)), records::opening(SlotAt(at))) else { return 0 };
    let took = clock::microseconds().wrapping_sub(opening.connect_us());
    opening.set_connect_us(took);
    let number = slot.backend() as u32;
    let Some(backend) = records::backend(number) else { return 0 };
    backend.add_connected(1);
    backend.add_connect_us(took as u64);
    records::count_connect_time(number, connect_time_bucket(took));
    readmit_global(at, slot.ctl().0, number);
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
