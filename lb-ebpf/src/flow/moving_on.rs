//! A try that has failed: the flow goes to the next backend or to another port of the same one, or
//! the client is refused.

use lb_common::{
    event::{TOOK_OUT, TRY_FAILED, TURNED_AWAY},
    failures::Window,
    flow::SlotAt,
    layout::{Backend, Failures, OUT, Slot, UP},
    schedule::{CHOSEN_BACKUP, CHOSEN_TRIAL, CHOSEN_UP},
    slot::{COUNTED, Ctl, IN_RING, SEIZED, State},
    time::Instant,
    verdict::Reason,
};

use super::{
    half_open,
    opening::{ROOMS, unfill},
};
use crate::{
    access, clock,
    index::{self, Hashed},
    klog,
    outcome::{NONE, Outcome},
    records::{self, Held},
    report,
    select::{self, Choice, Client},
    slots,
};

/// A try is over without a connection, and the caller has taken the flow out of `HalfOpen`. Moves
/// it to the next backend, or to another port of the same one; or refuses the client. Each step is
/// called from the walk, as in [`open`](super::open).
#[inline(always)]
pub fn move_on(at: SlotAt, reason: u32) -> Outcome {
    let next = match leave_global(at.0, reason) {
        SAME => same(at),
        NEXT => another(at),
        _ => Choice::NO_BACKEND,
    };
    if next.refusal().is_some() {
        return Outcome(refuse_global(at.0, reason));
    }
    let moved = Outcome(hand_over_global(at.0, next.0));
    klog::moved(at, next.at(), moved);
    half_open::enter(moved);
    moved
}

/// Another backend, and a slot towards it: unconfirmed flows give theirs if there is no other.
#[inline(always)]
fn another(at: SlotAt) -> Choice {
    let mut next = select::next(at);
    for _ in 0..ROOMS {
        if !next.lacks_room() || half_open::make_room_beside_global(at.0) == 0 {
            break;
        }
        next = select::next(at);
    }
    next
}

/// Another slot towards the same backend. If there is none, it is left.
#[inline(always)]
fn same(at: SlotAt) -> Choice {
    match fresh_port_global(at.0) {
        NONE if give_up_global(at.0, 0) == NEXT => another(at),
        NONE => Choice::NO_BACKEND,
        fresh => Choice::same_backend(SlotAt(fresh as u32)),
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn fresh_port_global(at: u32) -> i64 {
    let Some(slot) = records::slot(SlotAt(at)) else { return NONE };
    select::claim_towards(slot.backend() as u32, Client::of(slot.key())).map_or(NONE, |fresh| fresh.0 as i64)
}

/// What [`leave_global`] returns: another backend is to be chosen. `NONE`: there is no try left.
const NEXT: i64 = -2;
/// A fresh port to the same backend is to be taken.
const SAME: i64 = -3;

/// The consequences of a failed try. One that met an older connection gets a fresh port to the same
/// backend.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn leave_global(at: u32, reason: u32) -> i64 {
    let at = SlotAt(at);
    let Some(slot) = records::slot(at) else { return NONE };
    report::count_number(reason);
    let Some(backend) = records::backend(slot.backend() as u32) else { return NONE };
    if reason != Reason::TimeWait as u32 {
        return give_up_global(at.0, failed_global(at.0, reason));
    }
    if backend.is_closed() { give_up_global(at.0, 0) } else { SAME }
}

/// A flow leaves its backend: whether it may try another one.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn give_up_global(at: u32, late: u32) -> i64 {
    let at = SlotAt(at);
    let Some(slot) = records::slot(at) else { return NONE };
    let Some(backend) = records::backend(slot.backend() as u32) else { return NONE };
    backend.one_less();
    let Some(service) = records::service(backend.service() as u32) else { return NONE };
    let Some(opening) = records::opening(at) else { return NONE };
    // A flow that leaves a closed backend may try as many as there are. So may one whose backend was
    // taken out while its SYN was on the way: what has failed then is known to be the backend, and
    // of all that are connecting at once exactly max_fails meet it.
    if opening.tries() as u32 >= service.tries() && !backend.is_closed() && late == 0 { NONE } else { NEXT }
}

/// No try is left: the client is refused.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn refuse_global(at: u32, reason: u32) -> u64 {
    let at = SlotAt(at);
    let Some(slot) = records::slot(at) else { return Outcome::drop(Reason::LostRace).0 };
    let Some(backend) = records::backend(slot.backend() as u32) else { return Outcome::drop(Reason::Damaged).0 };
    // The slot is ours alone: the caller has closed it, and it is not in the ring yet.
    let (ctl, service) = (slot.ctl(), backend.service());
    report::flow(TURNED_AWAY, reason as u8, at, slot, ctl, service);
    klog::refused(at, slot, reason);
    access::uncount_flow(ctl, service, slot.key());
    index::forget(slot.key(), at, ctl);
    release_closed(at, ctl);
    Outcome::refuse(at).0
}

/// A refused try leaves nothing at the backend, and it is not known when an older connection ends:
/// the port goes to the end of the ring, if it belongs there. The port towards a backend that was
/// silent is held back.
#[inline(always)]
fn release_closed(at: SlotAt, ctl: Ctl) {
    if ctl.state() == State::Closed && ctl.flags() & IN_RING == 0 {
        slots::release(at);
    }
}

/// Counts and reports a failed try. 1: its backend was up when it was chosen, and no longer is.
/// A backend that is left because it is closed has not failed, but the access log lists the try.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn failed_global(at: u32, reason: u32) -> u32 {
    let at = SlotAt(at);
    let Some(slot) = records::slot(at) else { return 0 };
    let Some(backend) = records::backend(slot.backend() as u32) else { return 0 };
    let mut verdict = WITHIN;
    // It may have been silent because of the attempt before this one.
    let reason = if slot.ctl().flags() & SEIZED != 0 { Reason::MovedOn as u32 } else { reason };
    if reason != Reason::MovedOn as u32 {
        backend.add_connect_failures(1);
        verdict = count_failure_global(slot.backend() as u32, reason);
        renew_trial(backend, slot, reason);
    }
    let kind = if verdict == TAKEN_OUT { TOOK_OUT } else { TRY_FAILED };
    report::flow(kind, reason as u8, at, slot, slot.ctl(), backend.service());
    klog::try_failed(at, slot, reason);
    (verdict == TOO_LATE && matches!(slot.attempt().how(), CHOSEN_UP | CHOSEN_BACKUP)) as u32
}

/// A trial that was refused, by the backend or by a router, is over sooner than was allowed for
/// when it began: the next one is due after fail_timeout, also where that is shorter than
/// connect_timeout.
#[inline(always)]
fn renew_trial(backend: Held<Backend>, slot: Held<Slot>, reason: u32) {
    let is_early = reason == Reason::Refused as u32 || reason == Reason::Unreachable as u32;
    let was_trial = slot.attempt().how() == CHOSEN_TRIAL && is_early;
    if was_trial && backend.admission() == OUT && backend.retry_at() != Instant::NEVER {
        // If the controller admits the backend in between, the word is not read.
        backend.set_retry_at(Instant(clock::coarse().0 + backend.retry_after()));
    }
}

/// What [`count_failure_global`] returns. It was counted, if failures count, and the backend stays.
const WITHIN: u32 = 0;
/// It was one too many, and this call has taken the backend out.
const TAKEN_OUT: u32 = 1;
/// The backend is not up any more.
const TOO_LATE: u32 = 2;

/// How often a CPU tries to count a failure while others count theirs.
const COUNTS: u32 = 8;

/// Counts a failure of a backend that is up, and takes it out if that was one too many.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_failure_global(number: u32, reason: u32) -> u32 {
    let (Some(backend), Some(failures)) = (records::backend(number), records::failures(number)) else {
        return WITHIN;
    };
    if backend.admission() != UP {
        return TOO_LATE;
    }
    let most = failures.max_fails();
    let now = clock::coarse();
    if most == 0 || count_in_window(failures, now, backend.retry_after()) < most {
        return WITHIN;
    }
    // Before the swap, so that nobody finds it out with a trial that seems due. Two CPUs that do
    // this at once write the same moment but for a tick. If the backend is probed, the controller
    // takes the trial away; without a controller there is one, because there are no probes.
    backend.set_retry_at(Instant(now.0 + backend.retry_after()));
    if !backend.swap_admission(UP, OUT) {
        return TOO_LATE;
    }
    failures.set_window(Window::default());
    backend.set_out_reason(reason);
    backend.set_changed_at(now);
    TAKEN_OUT
}

/// The failures in the window with this one. A CPU that loses to eight others in a row, each of which
/// has counted its own, gives up: this one is then not counted.
#[inline(always)]
fn count_in_window(failures: Held<Failures>, now: Instant, length: u64) -> u32 {
    for _ in 0..COUNTS {
        let before = failures.window();
        let after = before.counted(now, length);
        if failures.swap_window(before, after) {
            return after.count();
        }
    }
    0
}

/// Copies what a flow began with; its next try begins at `sent_us`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn copy_opening_global(from: u32, to: u32, sent_us: u32, more_tries: u32) -> u32 {
    let (Some(old), Some(new)) = (records::opening(SlotAt(from)), records::opening(SlotAt(to))) else { return 0 };
    new.copy_from(old);
    new.set_connect_us(sent_us);
    new.set_tries(old.tries().wrapping_add(more_tries as u8));
    0
}

/// Copies a flow into the slot claimed for it, lets the index entry point there, and gives the old
/// slot back.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn hand_over_global(from: u32, next: u64) -> u64 {
    let (from, next) = (SlotAt(from), Choice(next));
    let at = next.at();
    let (Some(old), Some(new)) = (records::slot(from), records::slot(at)) else {
        return Outcome::drop(Reason::LostRace).0;
    };
    let is_same = next.is_same_backend();
    let number = if is_same { old.backend() as u32 } else { next.backend() };
    let now = clock::exact();
    // The new slot is ours alone; the old one was taken out of `HalfOpen` by the caller.
    let key = old.key();
    new.set_key(key);
    new.set_end_client(old.end_client());
    new.set_end_backend(0);
    new.set_tried(if is_same { old.tried() } else { next.tried(old) });
    new.set_hop(old.hop());
    new.set_last_seen(now.ticks());
    new.set_backend(number as u16);
    new.set_attempt(if is_same { old.attempt().from_another_port() } else { next.attempt() });
    copy_opening_global(from.0, at.0, (now.0 / 1000) as u32, !is_same as u32);
    old.set_last_seen(now.ticks());
    let before = old.ctl();
    let ctl = new.publish(before.flags() & COUNTED);
    let hashed = Hashed::new(key);
    let moved = index::replace(hashed, hashed.entry(from, before.generation()), hashed.entry(at, ctl.generation()));
    if !moved {
        // The client has begun again in between: nothing waits for this try any longer.
        unfill(at, ctl);
    }
    release_closed(from, before);
    if moved { Outcome::send_syn(at).0 } else { Outcome::drop(Reason::LostRace).0 }
}
