//! The life of a flow: opened by a SYN, moved to the next backend, connected, closed. Everything here is off the fast path
//! and works on slots alone; what becomes of the frame is the [`Outcome`].
//!
//! Every change of state is one compare-and-swap of the slot's word. Who wins does the consequences, once.

use lb_common::{
    event::{ENDED, RECOVERED, TRY_FAILED, TURNED_AWAY},
    hash::{Entry, mix, tag},
    layout::{
        ACTIVE, Backend, LOG, NEVER, NONE, OPENING_ISN_BACKEND, OPENING_ISN_CLIENT, OUT, Opening, Slot, UP,
        connect_time_bucket, ticks,
    },
    seq::within,
    slot::{CONNECTED, COUNTED, Ctl, FIN_BACKEND, FIN_CLIENT, IN_RING, KILLED, State},
    tcp::{ACK, CONTROL, SYN, Side, Step, step},
    verdict::Reason,
};

use crate::{
    access, atomic, clock,
    index::{self, Inserted},
    maps, report,
    select::{self, Turned},
    slots, trace,
};

/// How often the older connection that a backend still holds on a port may be dodged by a fresh port. Each has a chance of a
/// half or better: a backend in TIME_WAIT lets a SYN in whose timestamp or sequence number is newer than the last ones.
const HEALS: u8 = 7;
/// Compare-and-swaps that may fail before the segment is forwarded as it is.
const SWAPS: u32 = 3;

/// Beside the flags of TCP: the segment carries data.
pub const PAYLOAD: u32 = 1 << 8;

/// What becomes of the frame: `kind << 32 | place`, a number so that global functions can return it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outcome(pub u64);

impl Outcome {
    /// Translate it by the flow at the place.
    pub const FORWARD: u64 = 1;
    /// The same, for a SYN that opened the flow: its options are saved first.
    pub const OPENED: u64 = 2;
    /// Replace it by the saved SYN of the flow, to that flow's backend.
    pub const SEND_SYN: u64 = 3;
    /// Replace it by a RST that refuses the client of the flow.
    pub const REFUSE: u64 = 4;
    /// Answer its sender with a RST.
    pub const RESET: u64 = 5;
    /// End it.
    pub const DROP: u64 = 6;
    /// Its flow was taken out of `HalfOpen`: a try has failed, for the reason in bits 40 to 47. [`move_on`] says what next.
    pub const MOVE_ON: u64 = 7;
    /// A SYN that begins a new connection: [`open`].
    pub const OPEN: u64 = 8;

    #[inline(always)]
    pub const fn at(kind: u64, place: u32) -> u64 {
        kind << 32 | place as u64
    }

    #[inline(always)]
    const fn move_on(reason: Reason, place: u32) -> u64 {
        Self::at(Self::MOVE_ON | (reason as u64) << 8, place)
    }

    #[inline(always)]
    pub const fn kind(self) -> u64 {
        self.0 >> 32 & 0xff
    }

    /// Why a try failed.
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        (self.0 >> 40) as u32 & 0xff
    }

    #[inline(always)]
    pub const fn place(self) -> u32 {
        self.0 as u32
    }
}

/// The record at a place, `pool << 16 | slot`.
#[inline(always)]
pub fn at(place: u32) -> Option<*mut Slot> {
    slots::get(place >> 16, place & 0xffff)
}

#[inline(always)]
unsafe fn word(record: *const Slot) -> Ctl {
    // SAFETY: the caller's pointer is from a map lookup.
    Ctl(unsafe { atomic::load(&raw const (*record).ctl) })
}

#[inline(always)]
unsafe fn change(record: *mut Slot, old: Ctl, new: Ctl) -> bool {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe { atomic::compare_swap(&raw mut (*record).ctl, old.0, new.0) == old.0 }
}

#[inline(always)]
fn backend_of(number: u16) -> Option<*mut Backend> {
    maps::BACKENDS.get_ptr_mut(number as u32)
}

/// Which client it is, for `balance = "hash"`: without the seed, so that both hosts of a pair choose alike.
#[inline(always)]
pub fn client_hash(key: u64) -> u32 {
    (mix(0, key & 0xffff_ffff) >> 32) as u32
}

/// A SYN of a client that has no flow.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn open(key: u64, initial: u32) -> u64 {
    if trace::is_asked(key, initial) {
        return trace::explain(key);
    }
    let Some(listener) = maps::LISTENERS.get_ptr_mut((key >> 48) as u32) else { return Outcome::at(Outcome::DROP, 0) };
    // SAFETY: from a map lookup.
    let (service, state) = unsafe { ((*listener).service, atomic::load(&raw const (*listener).state)) };
    if access::is_denied(service as u32, key as u32) {
        return turned_away(key, service, Reason::Denied);
    }
    let counted = access::count_client(service as u32, key as u32);
    if counted == access::OVER {
        return turned_away(key, service, Reason::ClientLimit);
    }
    let choice =
        if state == ACTIVE { select::backend(service as u32, 0, client_hash(key)) } else { Err(Turned::NoBackend) };
    match choice {
        Ok(choice) => fill(key, initial, choice.place, choice.chosen | counted << 8, service as u32),
        Err(turned) => {
            if counted != 0 {
                access::uncount_client(service as u32, key as u32);
            }
            turned_away(key, service, turned.reason())
        }
    }
}

#[inline(always)]
fn turned_away(key: u64, service: u16, reason: Reason) -> u64 {
    report::turned_away(key, service, reason);
    Outcome::at(Outcome::RESET, 0)
}

/// Fills a claimed slot and enters it in the index and in the ring of half-open flows. `chosen` is that of
/// [`select::Choice`] and, from bit 8 on, flags for the slot's word.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn fill(key: u64, initial: u32, place: u32, chosen: u32, service: u32) -> u64 {
    let (Some(record), Some(opening)) = (at(place), slots::opening(place)) else {
        return Outcome::at(Outcome::DROP, 0);
    };
    let position = chosen & 63;
    let tried = 1_u64 << position;
    let now = clock::exact();
    // SAFETY: from a map lookup, and ours alone while its word says Claiming.
    let ctl = unsafe {
        (*record).key = key;
        (*record).end_client = initial.wrapping_add(1) as u64;
        (*record).end_backend = 0;
        (*record).ack_client = tried as u32;
        (*record).ack_backend = (tried >> 32) as u32;
        (*record).last_seen = ticks(now);
        (*record).backend = select::backend_at(service, position) as u16;
        (*record).tries = 1;
        (*record).heals = how_chosen(chosen);
        (*record).started = now;
        (*opening).client6 = [0; 16];
        (*opening).options_len = 0;
        (*opening).connect_us = (now / 1000) as u32;
        publish(record, (chosen >> 8) as u8)
    };
    let hash = mix(maps::seed(), key);
    let entry = Entry::new(tag(hash), (place >> 16) as u16, place as u16, ctl.generation());
    match index::insert(key, hash, entry) {
        Inserted::Won => {
            slots::enter_half_open(service, place, ctl.generation());
            Outcome::at(Outcome::OPENED, place)
        }
        Inserted::Lost => {
            unfill(place, ctl.0);
            again(key, hash)
        }
        Inserted::Full => {
            unfill(place, ctl.0);
            turned_away(key, service as u16, Reason::IndexFull)
        }
    }
}

/// How a backend was chosen, for [`Slot::heals`].
#[inline(always)]
const fn how_chosen(chosen: u32) -> u8 {
    (chosen as u8 >> 6) << 4
}

#[inline(always)]
unsafe fn heals(record: *const Slot) -> u8 {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe { (*record).heals & 15 }
}

/// Makes a filled slot a half-open flow: nothing before this can be seen after it. Returns its word.
#[inline(always)]
unsafe fn publish(record: *mut Slot, flags: u8) -> Ctl {
    // SAFETY: the caller owns the slot.
    unsafe {
        let ctl = Ctl::new(word(record).generation(), State::HalfOpen).with_flags(flags);
        atomic::swap(&raw mut (*record).ctl, ctl.0);
        ctl
    }
}

/// Gives back a slot that never became a flow, unless a segment of the backend has ended it meanwhile.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn unfill(place: u32, ctl: u64) -> u32 {
    let Some(record) = at(place) else { return 0 };
    // SAFETY: from map lookups.
    unsafe {
        let (number, key) = ((*record).backend, (*record).key);
        let ctl = Ctl(ctl);
        if !change(record, ctl, Ctl::new(ctl.generation(), State::Free)) {
            return 0;
        }
        if let Some(backend) = backend_of(number) {
            atomic::add(&raw mut (*backend).active, u32::MAX);
            atomic::add(&raw mut (*backend).opened, u64::MAX);
            uncount(ctl, (*backend).service, key);
        }
    }
    slots::release(place >> 16, place & 0xffff);
    0
}

/// Takes a flow that is over from its client's count, if it is in it.
#[inline(always)]
fn uncount(ctl: Ctl, service: u16, key: u64) {
    if ctl.flags() & COUNTED != 0 {
        access::uncount_client(service as u32, key as u32);
    }
}

/// Another CPU was first with the same SYN: this one is a repetition of it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn again(key: u64, hash: u64) -> u64 {
    match index::find(key, hash) {
        Some(found) => Outcome::at(Outcome::FORWARD, found.pool << 16 | found.slot),
        None => Outcome::at(Outcome::DROP, 0),
    }
}

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

/// Removes the index entry of a flow that is over, so that its client can begin anew.
#[inline(always)]
fn forget(key: u64, place: u32, ctl: Ctl) {
    let hash = mix(maps::seed(), key);
    index::replace(hash, Entry::new(tag(hash), (place >> 16) as u16, place as u16, ctl.generation()), Entry(0));
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

/// Whether a backend gets no new connections, by an operator's will.
#[inline(always)]
unsafe fn is_closed(backend: *const Backend) -> bool {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe { atomic::load(&raw const (*backend).admission) == NONE }
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

/// A segment from a backend to a port of ours, off the fast path. `flags` has [`PAYLOAD`] too.
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
                Step::Stale if heals(record) >= HEALS && flags == ACK as u32 => report::count(Reason::TimeWait),
                Step::Stale if heals(record) >= HEALS => return junk(0),
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
        if atomic::load(&raw const (*backend).admission) != OUT || atomic::load(&raw const (*backend).retry_at) == NEVER
        {
            return 0;
        }
        let service = (*backend).service;
        if let Some(slow) = maps::SLOW_STARTS.get_ptr_mut(number)
            && (*slow).ms != 0
        {
            // Before it takes part, so that it never has its whole share.
            let until = clock::coarse() + (*slow).ms as u64 * 1_000_000;
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
fn count_number(reason: u32) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(reason) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}

/// A try is over without a connection, and the caller has taken the flow out of `HalfOpen`. Moves it to the next backend, or
/// to another port of the same one; or refuses the client.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn move_on(place: u32, reason: u32) -> u64 {
    let Some(record) = at(place) else { return Outcome::at(Outcome::DROP, 0) };
    count_number(reason);
    // SAFETY: from map lookups.
    unsafe {
        let ctl = word(record);
        let number = (*record).backend;
        let Some(backend) = backend_of(number) else { return Outcome::at(Outcome::DROP, 0) };
        let service = (*backend).service;
        let mut next = -1;
        if reason != Reason::TimeWait as u32 {
            failed(backend, place, reason as u8);
        } else if !is_closed(backend) {
            next = select::claim_towards(number as u32, client_hash((*record).key));
        }
        let fresh_port = next >= 0;
        if !fresh_port {
            atomic::add(&raw mut (*backend).active, u32::MAX);
            next = next_backend(place, service as u32, backend);
        }
        if next < 0 {
            report::flow(TURNED_AWAY, reason as u8, place, record, ctl, service);
            uncount(ctl, service, (*record).key);
            forget((*record).key, place, ctl);
            release_closed(place, ctl);
            return Outcome::at(Outcome::REFUSE, place);
        }
        let moved = hand_over(place, next as u64, ctl.generation(), fresh_port as u32, service as u32);
        release_closed(place, ctl);
        moved
    }
}

/// A refused try leaves nothing at the backend, and of an older connection nobody knows when it ends: the port goes to the
/// end of the ring. One whose backend was silent is held back.
#[inline(always)]
fn release_closed(place: u32, ctl: Ctl) {
    if ctl.state() == State::Closed {
        slots::release(place >> 16, place & 0xffff);
    }
}

/// Counts and tells a failed try. If it was the trial of a backend that is out, the next one is due after fail_timeout. To
/// be left because it is closed is no failure of the backend, but the access log lists the try.
#[inline(always)]
unsafe fn failed(backend: *mut Backend, place: u32, reason: u8) {
    let Some(record) = at(place) else { return };
    // SAFETY: from map lookups.
    unsafe {
        if reason != Reason::MovedOn as u8 {
            atomic::add(&raw mut (*backend).connect_failures, 1);
        }
        if atomic::load(&raw const (*backend).admission) == OUT && atomic::load(&raw const (*backend).retry_at) != NEVER
        {
            atomic::store(&raw mut (*backend).retry_at, clock::coarse() + (*backend).retry_after);
        }
        report::flow(TRY_FAILED, reason, place, record, word(record), (*backend).service);
    }
}

/// The next backend that this flow has not tried: `chosen << 32 | place`, or negative. There is no limit of tries if the
/// backend that it leaves is closed.
#[inline(always)]
unsafe fn next_backend(place: u32, service: u32, left: *const Backend) -> i64 {
    let Some(record) = at(place) else { return -1 };
    let Some(table) = maps::SERVICES.get_ptr_mut(service) else { return -1 };
    // SAFETY: from map lookups.
    unsafe {
        if (*record).tries as u32 >= (*table).tries && !is_closed(left) {
            return -1;
        }
        let tried = (*record).ack_client as u64 | ((*record).ack_backend as u64) << 32;
        match select::backend(service, tried, client_hash((*record).key)) {
            Ok(choice) => (choice.chosen as i64) << 32 | choice.place as i64,
            Err(_) => -1,
        }
    }
}

/// Copies what a flow began with; its next try begins at `sent_us`. A function of its own, for the stack of the deepest
/// chain of calls is nearly full.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn copy_opening(from: u32, to: u32, sent_us: u32) -> u32 {
    let (Some(old), Some(new)) = (slots::opening(from), slots::opening(to)) else { return 0 };
    // SAFETY: from map lookups; two records of eight words each.
    unsafe {
        for word in 0..size_of::<Opening>() / 8 {
            *new.cast::<u64>().add(word) = *old.cast::<u64>().add(word);
        }
        (*new).connect_us = sent_us;
    }
    0
}

/// Copies a flow into the slot claimed for it and lets the index entry point there.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn hand_over(from: u32, next: u64, generation: u32, fresh_port: u32, service: u32) -> u64 {
    let to = next as u32;
    let position = (next >> 32) as u32 & 63;
    let (Some(old), Some(new)) = (at(from), at(to)) else { return Outcome::at(Outcome::DROP, 0) };
    // SAFETY: from map lookups; the new slot is ours alone, the old one was taken out of `HalfOpen` by the caller.
    unsafe {
        let mut tried = (*old).ack_client as u64 | ((*old).ack_backend as u64) << 32;
        if fresh_port == 0 {
            tried |= 1 << position;
        }
        let now = clock::exact();
        (*new).key = (*old).key;
        (*new).end_client = (*old).end_client;
        (*new).end_backend = 0;
        (*new).ack_client = tried as u32;
        (*new).ack_backend = (tried >> 32) as u32;
        (*new).hop = (*old).hop;
        (*new).last_seen = ticks(now);
        (*new).backend = if fresh_port != 0 { (*old).backend } else { select::backend_at(service, position) as u16 };
        (*new).tries = if fresh_port != 0 { (*old).tries } else { (*old).tries + 1 };
        (*new).heals = if fresh_port != 0 { (*old).heals + 1 } else { how_chosen((next >> 32) as u32) };
        (*new).started = (*old).started;
        copy_opening(from, to, (now / 1000) as u32);
        (*old).last_seen = ticks(now);
        let ctl = publish(new, word(old).flags() & COUNTED);
        let hash = mix(maps::seed(), (*new).key);
        let entry = |place: u32, generation| Entry::new(tag(hash), (place >> 16) as u16, place as u16, generation);
        if !index::replace(hash, entry(from, generation), entry(to, ctl.generation())) {
            // The client began anew meanwhile: nobody waits for this try any more.
            unfill(to, ctl.0);
            return Outcome::at(Outcome::DROP, 0);
        }
        slots::enter_half_open(service, to, ctl.generation());
        Outcome::at(Outcome::SEND_SYN, to)
    }
}
