//! A try that has failed: the flow goes to the next backend or to another port of the same one, or
//! the client is refused.

use lb_common::{
    event::{TRY_FAILED, TURNED_AWAY},
    flow::{Attempt, Chosen, SlotAt},
    hash,
    layout::{Backend, OUT, Slot},
    slot::{COUNTED, Ctl, State},
    time::Instant,
    verdict::Reason,
};

use super::{half_open, opening::unfill};
use crate::{
    access, clock,
    index::{self, Hashed},
    klog,
    outcome::Outcome,
    records::{self, Held},
    report,
    select::{self, Choice},
    slots,
};

/// A try is over without a connection, and the caller has taken the flow out of `HalfOpen`. Moves
/// it to the next backend, or to another port of the same one; or refuses the client.
#[inline(always)]
pub fn move_on(at: SlotAt, reason: u32) -> Outcome {
    Outcome(move_on_global(at.0, reason))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn move_on_global(at: u32, reason: u32) -> u64 {
    let at = SlotAt(at);
    let Some(slot) = records::slot(at) else { return Outcome::drop(Reason::LostRace).0 };
    report::count_number(reason);
    let ctl = slot.ctl();
    let number = slot.backend() as u32;
    let Some(backend) = records::backend(number) else { return Outcome::drop(Reason::Damaged).0 };
    let service = backend.service();
    if reason != Reason::TimeWait as u32 {
        failed(backend, at, reason as u8);
    } else if !backend.is_closed()
        && let Some(to) = select::claim_towards(number, hash::client(slot.key()))
    {
        return hand_over(at, Choice::new(Chosen(0), to), ctl, SAME_BACKEND, service as u32).0;
    }
    backend.one_less();
    let next = next_backend(slot, service as u32, backend);
    if next.refusal().is_some() {
        report::flow(TURNED_AWAY, reason as u8, at, slot, ctl, service);
        klog::refused(at, slot, reason);
        access::uncount_flow(ctl, service, slot.key());
        index::forget(slot.key(), at, ctl);
        release_closed(at, ctl);
        return Outcome::refuse(at).0;
    }
    hand_over(at, next, ctl, NEXT_BACKEND, service as u32).0
}

/// A refused try leaves nothing at the backend, and it is not known when an older connection ends:
/// the port goes to the end of the ring. The port towards a backend that was silent is held back.
#[inline(always)]
fn release_closed(at: SlotAt, ctl: Ctl) {
    if ctl.state() == State::Closed {
        slots::release(at);
    }
}

/// Counts and reports a failed try. If it was the trial of a backend that is out, the next one is
/// due after fail_timeout. A backend that is left because it is closed has not failed, but the
/// access log lists the try.
#[inline(always)]
fn failed(backend: Held<Backend>, at: SlotAt, reason: u8) {
    let Some(slot) = records::slot(at) else { return };
    if reason != Reason::MovedOn as u8 {
        backend.add_connect_failures(1);
    }
    if backend.admission() == OUT && backend.retry_at() != Instant::NEVER {
        // Two tries that fail at once each write their own moment; the two differ by less than a
        // tick. If the controller admits the backend in between, the word is not read.
        backend.set_retry_at(Instant(clock::coarse().0 + backend.retry_after()));
    }
    report::flow(TRY_FAILED, reason, at, slot, slot.ctl(), backend.service());
    klog::try_failed(at, slot, reason as u32);
}

/// The next backend that this flow has not tried. A flow that leaves a closed backend may try as
/// many as there are.
#[inline(always)]
fn next_backend(slot: Held<Slot>, service: u32, left: Held<Backend>) -> Choice {
    let Some(record) = records::service(service) else { return Choice::NO_BACKEND };
    if slot.tries() as u32 >= record.tries() && !left.is_closed() {
        return Choice::NO_BACKEND;
    }
    select::backend(service, slot.tried(), hash::client(slot.key()))
}

/// Copies what a flow began with; its next try begins at `sent_us`. A separate function, because
/// the stack of the deepest chain of calls is nearly full.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn copy_opening_global(from: u32, to: u32, sent_us: u32) -> u32 {
    let (Some(old), Some(new)) = (records::opening(SlotAt(from)), records::opening(SlotAt(to))) else { return 0 };
    new.copy_from(old);
    new.set_connect_us(sent_us);
    0
}

/// Where a flow goes: to another backend, or to another port of the same one.
const NEXT_BACKEND: u32 = 0;
const SAME_BACKEND: u32 = 1;

/// Copies a flow into the slot claimed for it, lets the index entry point there, and gives the old
/// slot back.
#[inline(always)]
fn hand_over(from: SlotAt, next: Choice, ctl: Ctl, to: u32, service: u32) -> Outcome {
    let moved = Outcome(hand_over_global(from.0, next.0, ctl.generation(), to, service));
    klog::moved(from, next.at(), moved);
    release_closed(from, ctl);
    moved
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn hand_over_global(from: u32, next: u64, generation: u32, to: u32, service: u32) -> u64 {
    let (from, next, is_same) = (SlotAt(from), Choice(next), to == SAME_BACKEND);
    let at = next.at();
    let (Some(old), Some(new)) = (records::slot(from), records::slot(at)) else {
        return Outcome::drop(Reason::LostRace).0;
    };
    let position = next.chosen().position();
    // The port that is left and the fresh one lead to the same backend, whatever its service lists.
    let number = if is_same { Some(old.backend() as u32) } else { select::backend_at(service, position) };
    let Some(number) = number else { return Outcome::impossible().0 };
    let now = clock::exact();
    // The new slot is ours alone; the old one was taken out of `HalfOpen` by the caller.
    let key = old.key();
    new.set_key(key);
    new.set_end_client(old.end_client());
    new.set_end_backend(0);
    new.set_tried(if is_same { old.tried() } else { old.tried().with(position) });
    new.set_hop(old.hop());
    new.set_last_seen(now.ticks());
    new.set_backend(number as u16);
    new.set_tries(if is_same { old.tries() } else { old.tries() + 1 });
    new.set_attempt(if is_same { old.attempt().from_another_port() } else { Attempt::new(next.chosen().how()) });
    new.set_started(old.started());
    copy_opening_global(from.0, at.0, (now.0 / 1000) as u32);
    old.set_last_seen(now.ticks());
    let ctl = new.publish(old.ctl().flags() & COUNTED);
    let hashed = Hashed::new(key);
    if !index::replace(hashed, hashed.entry(from, generation), hashed.entry(at, ctl.generation())) {
        // The client has begun again in between: nothing waits for this try any longer.
        unfill(at, ctl);
        return Outcome::drop(Reason::LostRace).0;
    }
    half_open::enter(service, at, ctl.generation());
    Outcome::send_syn(at).0
}
