//! A new connection: a SYN of a client that has no flow.

use lb_common::{
    flow::{Key, SlotAt, Tried},
    layout::{ACTIVE, SEEN_NONE},
    slot::{Ctl, State},
    syn::SavedSyn,
    verdict::Reason,
};

use super::{change, half_open};
use crate::{
    access, clock, cookie,
    index::{self, Found, Hashed, Inserted},
    outcome::Outcome,
    records, report,
    select::{self, Choice, Client},
    slots, trace,
};

/// How often the oldest unconfirmed flows give way for one new connection.
pub const ROOMS: u32 = 4;

/// A SYN of a client that has no flow: whether it may open one, which backend gets it, the flow
/// itself. Each step is called from the walk and none calls the next, so that no chain of calls is
/// deeper than one of them.
#[inline(always)]
pub fn open(key: Key, initial: u32) -> Outcome {
    if trace::is_asked(key, initial) {
        return trace::explain(key);
    }
    let admitted = Outcome(admit_global(key.0));
    if admitted.kind() != Outcome::ADMITTED {
        return admitted;
    }
    let service = admitted.at().0;
    let mut choice = select::first(service, Client::of(key));
    // What gave way may have left a backend that is not chosen.
    for _ in 0..ROOMS {
        if !choice.lacks_room() || !half_open::make_room(service) {
            break;
        }
        choice = select::first(service, Client::of(key));
    }
    let opened = Outcome(fill_global(key.0, initial, choice.0, service));
    half_open::enter(opened);
    opened
}

/// Whether a client may open a connection. It is counted when it has confirmed one: before that,
/// its address may be anybody's.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn admit_global(key: u64) -> u64 {
    let key = Key(key);
    let Some(listener) = records::listener(key.listener() as u32) else { return Outcome::impossible().0 };
    let service = listener.service();
    // First, and for every listener: what a flood costs must not depend on more.
    if cookie::is_sent_by(service as u32) && cookie::is_due_global(service as u32, key.0) != 0 {
        return Outcome::cookie().0;
    }
    if access::is_denied(service as u32, key.address_word()) {
        return turned_away(key, service, Reason::Denied).0;
    }
    if listener.state() != ACTIVE {
        return turned_away(key, service, Reason::NoBackend).0;
    }
    if access::is_over_limit(service as u32, key.address_word()) {
        return turned_away(key, service, Reason::ClientLimit).0;
    }
    Outcome::admitted(service).0
}

#[inline(always)]
fn turned_away(key: Key, service: u16, reason: Reason) -> Outcome {
    report::turned_away(key, service, reason);
    Outcome::reset(reason)
}

/// Fills the claimed slot of a `choice` and enters it in the index; or turns the client away,
/// because nothing was chosen.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn fill_global(key: u64, initial: u32, choice: u64, service: u32) -> u64 {
    let (key, choice) = (Key(key), Choice(choice));
    let at = choice.at();
    if let Some(reason) = choice.refusal() {
        return turned_away(key, service as u16, reason).0;
    }
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else {
        return Outcome::drop(Reason::LostRace).0;
    };
    let position = choice.chosen().position();
    let Some(backend) = select::backend_at(service, position) else { return Outcome::impossible().0 };
    let now = clock::exact();
    // The slot is ours alone while its word says Claiming.
    slot.set_key(key);
    slot.set_end_client(initial.wrapping_add(1) as u64);
    slot.set_end_backend(0);
    slot.set_tried(Tried::default().with(position));
    slot.set_last_seen(now.ticks());
    slot.set_backend(backend as u16);
    slot.set_attempt(choice.attempt());
    opening.set_client6([0; 16]);
    opening.set_isn_client(initial);
    opening.set_started(now);
    opening.set_tries(1);
    opening.set_seen(SEEN_NONE);
    opening.set_syn(SavedSyn::default());
    opening.set_connect_us((now.0 / 1000) as u32);
    let ctl = slot.publish(0);
    let hashed = Hashed::new(key);
    match index::insert(hashed, hashed.entry(at, ctl.generation())) {
        Inserted::Won => Outcome::opened(at).0,
        Inserted::Lost => {
            unfill(at, ctl);
            again_global(key.0, initial)
        }
        Inserted::Full => {
            unfill(at, ctl);
            turned_away(key, service as u16, Reason::IndexFull).0
        }
    }
}

/// Gives back a slot that never became a flow, unless a segment of the backend has ended it in
/// between.
#[inline(always)]
pub fn unfill(at: SlotAt, ctl: Ctl) {
    unfill_global(at.0, ctl.0);
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn unfill_global(at: u32, ctl: u64) -> u32 {
    let (at, ctl) = (SlotAt(at), Ctl(ctl));
    let Some(slot) = records::slot(at) else { return 0 };
    let (number, key) = (slot.backend(), slot.key());
    if !change(at, slot, ctl, Ctl::new(ctl.generation(), State::Free)) {
        return 0;
    }
    if let Some(backend) = records::backend(number as u32) {
        backend.count_out();
        access::uncount_flow(ctl, backend.service(), key);
    }
    slots::release(at);
    0
}

/// Another CPU was first with the same SYN: this one repeats it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn again_global(key: u64, initial: u32) -> u64 {
    match index::find(Hashed::new(Key(key))) {
        Some(found) if is_of(found, initial) => Outcome::send_syn(found.at).0,
        _ => Outcome::drop(Reason::LostRace).0,
    }
}

/// Whether a flow began with a SYN of this number, and waits for its end.
#[inline(always)]
fn is_of(found: Found, initial: u32) -> bool {
    found.ctl.state().is_unconfirmed() && records::opening(found.at).is_some_and(|it| it.isn_client() == initial)
}
