//! The way of a packet.

use lb_common::{
    flow::Key,
    hash::{PROBES, listener_start, mix, pool_start, probe},
    layout::{CLOSING, DELETED, EMPTY, HEARD_STEP, Hop, Interface, LISTENER_BITS, Listener, POOL_BITS, Pool, Slot},
    seq::{advance, within},
    slot::State,
    tcp::{ACK, CONTROL, RST, SYN},
    time::Ticks,
    verdict::Reason,
};

use crate::{
    atomic, clock,
    cursor::{Frame, LONGEST_HEADERS, Translation, field},
    flow::{self, Outcome},
    index, lease, maps,
    parse::{self, Segment},
    reply, report, slots,
};

/// The verdict on a frame.
#[inline(always)]
pub fn walk<F: Frame>(frame: F) -> i32 {
    let segment = match parse::segment(frame) {
        Ok(segment) => segment,
        Err(reason) => return lease::other::<F>(frame, reason),
    };
    if let Some((number, listener)) = listener_of(segment) {
        return from_client(frame, segment, number, listener);
    }
    if let Some((number, pool)) = pool_of(segment) {
        return from_backend(frame, segment, number, pool);
    }
    passed::<F>(Reason::NotOurs)
}

/// The listener a segment is addressed to.
#[inline(always)]
fn listener_of(segment: Segment) -> Option<(u32, *mut Listener)> {
    let start = listener_start(segment.destination, segment.destination_port, LISTENER_BITS);
    for number in probe(start, LISTENER_BITS, PROBES) {
        let listener = maps::LISTENERS.get_ptr_mut(number)?;
        // SAFETY: from a map lookup; both fields are aligned.
        unsafe {
            match (*listener).state {
                EMPTY => return None,
                DELETED => continue,
                _ => {}
            }
            let port: u16 = *(&raw const (*listener).port).cast();
            let address = reply::address(&raw const (*listener).address);
            if port == segment.destination_port && address == segment.destination && (*listener).family == 4 {
                return Some((number, listener));
            }
        }
    }
    None
}

/// The pool in which a segment from a backend has its slot.
#[inline(always)]
fn pool_of(segment: Segment) -> Option<(u32, *mut Pool)> {
    let start = pool_start(segment.source, segment.source_port, segment.destination, POOL_BITS);
    for number in probe(start, POOL_BITS, PROBES) {
        let pool = maps::POOLS.get_ptr_mut(number)?;
        // SAFETY: from a map lookup; the fields are aligned.
        unsafe {
            match (*pool).state {
                EMPTY => return None,
                DELETED => continue,
                _ => {}
            }
            if reply::backend_port(pool) == segment.source_port
                && reply::address(&raw const (*pool).backend) == segment.source
                && reply::address(&raw const (*pool).snat) == segment.destination
                && (*pool).family == 4
            {
                return Some((number, pool));
            }
        }
    }
    None
}

#[inline(always)]
fn from_client<F: Frame>(frame: F, segment: Segment, number: u32, listener: *mut Listener) -> i32 {
    let key = Key::new(segment.source, segment.source_port, number as u16);
    let hash = mix(maps::seed(), key.0);
    if segment.flags & SYN != 0 {
        index::fetch_second(hash);
    }
    let mut link = None;
    let outcome = match index::find(key, hash) {
        Some(found) => {
            let place = found.pool << 16 | found.slot;
            if is_tracked(segment, found.ctl.state()) {
                let Some(pool) = maps::POOLS.get_ptr_mut(found.pool) else { return F::DROP };
                // SAFETY: from map lookups.
                unsafe { note_client(frame, segment, found.record, pool) };
                if found.ctl.0 as u8 == State::Established as u8 && segment.flags & CONTROL == 0 {
                    // SAFETY: as above.
                    return unsafe { to_backend(frame, segment, pool, place) };
                }
            }
            flow::from_client(place, segment.flags as u32, segment.sequence)
        }
        None => {
            link = link_of(frame.ingress());
            let Some(interface) = link.and_then(|link| maps::INTERFACES.get_ptr_mut(link)) else {
                return passed::<F>(Reason::NotOurs);
            };
            if frame.is_flooded(interface) {
                return passed::<F>(Reason::OtherHost);
            }
            // SAFETY: from a map lookup.
            let closing = unsafe { atomic::load(&raw const (*listener).state) } == CLOSING;
            if segment.flags & CONTROL != SYN || segment.flags & ACK != 0 || closing {
                report::count(if segment.is_self_test() { Reason::SelfTest } else { Reason::UnknownFlow });
                return reply::reset(frame, segment);
            }
            Outcome::OPEN << 32
        }
    };
    let mut outcome = Outcome(outcome);
    if outcome.kind() == Outcome::OPEN {
        outcome = Outcome(flow::open(key.0, segment.sequence));
    } else if outcome.kind() == Outcome::MOVE_ON {
        outcome = Outcome(flow::move_on(outcome.place(), outcome.reason()));
    }
    if outcome.kind() == Outcome::OPENED {
        save_syn(frame, segment, outcome.place(), link);
    }
    carry_out(frame, segment, outcome, true)
}

#[inline(always)]
fn from_backend<F: Frame>(frame: F, segment: Segment, number: u32, pool: *mut Pool) -> i32 {
    // SAFETY: from a map lookup.
    let (first, ports) = unsafe { ((*pool).first_port, (*pool).ports) };
    let slot = u16::from_be(segment.destination_port).wrapping_sub(first);
    if slot >= ports {
        return passed::<F>(Reason::NotOurs);
    }
    let place = number << 16 | slot as u32;
    let Some(record) = slots::get(number, slot as u32) else { return passed::<F>(Reason::NotOurs) };
    let now = clock::ticks();
    // SAFETY: from a map lookup.
    unsafe { note(&raw mut (*pool).heard, now) };
    // SAFETY: from a map lookup.
    let ctl = unsafe { atomic::load(&raw const (*record).ctl) };
    if is_tracked(segment, ctl.state()) {
        // SAFETY: as above.
        unsafe { note_backend(segment, record, now) };
        if ctl.0 as u8 == State::Established as u8 && segment.flags & CONTROL == 0 {
            // SAFETY: as above.
            return unsafe { to_client(frame, segment, record) };
        }
    }
    let flags = segment.flags as u32 | if segment.payload != 0 { flow::PAYLOAD } else { 0 };
    let mut outcome = Outcome(flow::from_backend(place, flags, segment.sequence, segment.acknowledgement));
    if outcome.kind() == Outcome::MOVE_ON {
        outcome = Outcome(flow::move_on(outcome.place(), outcome.reason()));
    }
    carry_out(frame, segment, outcome, false)
}

/// Does with the frame what the slow path has decided.
#[inline(always)]
fn carry_out<F: Frame>(frame: F, segment: Segment, outcome: Outcome, client: bool) -> i32 {
    let place = outcome.place();
    match outcome.kind() {
        Outcome::OPENED | Outcome::FORWARD => {}
        // The client's own SYN, sent again, goes to the next backend as it is.
        Outcome::SEND_SYN if client => {}
        Outcome::SEND_SYN => return reply::saved_syn(frame, place),
        Outcome::REFUSE => return reply::refuse(frame, place),
        Outcome::RESET => return reply::reset(frame, segment),
        _ => return F::DROP,
    }
    if client {
        return match maps::POOLS.get_ptr_mut(place >> 16) {
            // SAFETY: from a map lookup.
            Some(pool) => unsafe { to_backend(frame, segment, pool, place) },
            None => F::DROP,
        };
    }
    match flow::at(place) {
        // SAFETY: from a map lookup.
        Some(record) => unsafe { to_client(frame, segment, record) },
        None => F::DROP,
    }
}

/// Whether a segment's numbers are to be believed before anything else is known of it. Those of a RST are checked first;
/// a SYN's are no part of an open connection; a closed flow's slot may be somebody else's in the next moment.
#[inline(always)]
fn is_tracked(segment: Segment, state: State) -> bool {
    let open = matches!(state, State::Established | State::ClosingClient | State::ClosingBackend | State::Suspect);
    open && segment.flags & (SYN | RST) == 0
}

/// Sequence end, acknowledgement, time and next hop of a segment from the client.
#[inline(always)]
unsafe fn note_client<F: Frame>(frame: F, segment: Segment, record: *mut Slot, pool: *mut Pool) {
    let now = clock::ticks();
    // SAFETY: the caller's pointers are from map lookups.
    unsafe {
        note(&raw mut (*pool).sent, now);
        learn_hop(frame, record, None);
        let end = advance((*record).end_client, segment.end());
        if end != (*record).end_client {
            (*record).end_client = end;
        }
        let known = (*record).ack_client;
        if segment.flags & ACK != 0 && acknowledges(segment, known, (*record).end_backend) {
            (*record).ack_client = segment.acknowledgement;
        }
        touch(record, now);
    }
}

/// Sequence end, acknowledgement and time of a segment from the backend.
#[inline(always)]
unsafe fn note_backend(segment: Segment, record: *mut Slot, now: Ticks) {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe {
        let end = advance((*record).end_backend, segment.end());
        if end != (*record).end_backend {
            (*record).end_backend = end;
        }
        let known = (*record).ack_backend;
        if segment.flags & ACK != 0 && acknowledges(segment, known, (*record).end_client) {
            (*record).ack_backend = segment.acknowledgement;
        }
        touch(record, now);
    }
}

/// Notes the time in a pool. Written seldom: every CPU reads this line for every packet.
#[inline(always)]
unsafe fn note(time: *mut Ticks, now: Ticks) {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe {
        if now.0.wrapping_sub((*time).0) >= HEARD_STEP {
            *time = now;
        }
    }
}

/// Whether a segment acknowledges something new, and nothing that was never sent.
#[inline(always)]
fn acknowledges(segment: Segment, known: u32, sent: u64) -> bool {
    segment.acknowledgement != known && within(known, segment.acknowledgement, sent as u32)
}

#[inline(always)]
unsafe fn touch(record: *mut Slot, now: Ticks) {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe {
        if (*record).last_seen != now {
            (*record).last_seen = now;
        }
    }
}

const MAC: u64 = 0xffff_ffff_ffff;

/// The way back to the client is the way its packets come: its next hop is where the last one came from, by the `link` if
/// somebody has looked it up already.
#[inline(always)]
unsafe fn learn_hop<F: Frame>(frame: F, record: *mut Slot, link: Option<u32>) {
    let bytes = frame.bytes();
    if !bytes.has(field::PAYLOAD) {
        return;
    }
    let low: u16 = bytes.read(field::ETHERNET_SOURCE);
    let high: u32 = bytes.read(field::ETHERNET_SOURCE + 2);
    let mac = low as u64 | (high as u64) << 16;
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe {
        if (*record).hop.0 & MAC == mac {
            return;
        }
        if let Some(link) = link.or_else(|| link_of(frame.ingress())) {
            atomic::store(&raw mut (*record).hop, Hop(mac | (link as u64 & 0xff) << 48 | 1 << 56));
        }
    }
}

/// Keeps of the client's SYN what another backend must see of it.
#[inline(always)]
fn save_syn<F: Frame>(frame: F, segment: Segment, place: u32, link: Option<u32>) {
    let (Some(record), Some(opening)) = (flow::at(place), slots::opening(place)) else { return };
    let mut bytes = frame.bytes();
    if !bytes.has(field::TCP + segment.header as usize) {
        frame.pull(LONGEST_HEADERS);
        bytes = frame.bytes();
    }
    if !bytes.has(field::PAYLOAD) {
        return;
    }
    // SAFETY: from a map lookup; reads are checked against the end.
    unsafe {
        (*opening).window = bytes.read(field::WINDOW);
        (*opening).tos = bytes.read(field::TOS);
        let mut saved = 0;
        for i in 0..(*opening).words.len() {
            let offset = field::PAYLOAD + i * 4;
            if 20 + i as u32 * 4 >= segment.header || !bytes.has(offset + 4) {
                break;
            }
            (*opening).words[i] = bytes.read(offset);
            saved += 4;
        }
        (*opening).options_len = saved;
        (*record).hop = Hop(0);
        learn_hop(frame, record, link);
    }
}

/// Sends a segment of the client on to its backend.
#[inline(always)]
unsafe fn to_backend<F: Frame>(frame: F, segment: Segment, pool: *mut Pool, place: u32) -> i32 {
    // SAFETY: the caller's pointer is from a map lookup.
    let (hop, source, destination, source_port, destination_port) = unsafe {
        (
            atomic::load(&raw const (*pool).hop),
            reply::address(&raw const (*pool).snat),
            reply::address(&raw const (*pool).backend),
            reply::snat_port(pool, place),
            reply::backend_port(pool),
        )
    };
    send(frame, segment, hop, (source, source_port), (destination, destination_port))
}

/// Sends a segment of the backend on to the client. If the slot changes hands in this moment, the segment goes to its
/// next client, who drops it by its sequence number.
#[inline(always)]
unsafe fn to_client<F: Frame>(frame: F, segment: Segment, record: *mut Slot) -> i32 {
    // SAFETY: the caller's pointer is from a map lookup, and so is the listener.
    unsafe {
        let key = atomic::load(&raw const (*record).key);
        let hop = atomic::load(&raw const (*record).hop);
        let Some(listener) = maps::LISTENERS.get_ptr_mut(key.listener() as u32) else { return F::DROP };
        let port: u16 = *(&raw const (*listener).port).cast();
        let source = reply::address(&raw const (*listener).address);
        send(frame, segment, hop, (source, port), (key.address_word(), key.port()))
    }
}

#[inline(always)]
fn send<F: Frame>(frame: F, segment: Segment, hop: Hop, from: (u32, u16), to: (u32, u16)) -> i32 {
    if segment.ttl <= 1 {
        return dropped::<F>(Reason::TtlExpired);
    }
    if !hop.is_known() {
        return dropped::<F>(Reason::NoNextHop);
    }
    let Some(interface) = maps::INTERFACES.get_ptr_mut(hop.interface() as u32) else {
        return dropped::<F>(Reason::NoNextHop);
    };
    let old = Translation {
        source: segment.source,
        destination: segment.destination,
        source_port: segment.source_port,
        destination_port: segment.destination_port,
        hop,
        interface,
    };
    let new =
        Translation { source: from.0, destination: to.0, source_port: from.1, destination_port: to.1, hop, interface };
    if !frame.translate(&old, &new) {
        return dropped::<F>(Reason::RewriteFailed);
    }
    // SAFETY: from a map lookup.
    frame.send(unsafe { (*interface).ifindex })
}

/// What is not ours goes on untouched, and is counted.
#[inline(always)]
pub fn passed<F: Frame>(reason: Reason) -> i32 {
    report::count(reason);
    F::PASS
}

#[inline(always)]
pub fn dropped<F: Frame>(reason: Reason) -> i32 {
    report::count(reason);
    F::DROP
}

/// The interface a frame came in on: its place in INTERFACES.
#[inline(always)]
fn link_of(ifindex: u32) -> Option<u32> {
    // SAFETY: from a map lookup.
    maps::LINKS.get_ptr_mut(&ifindex).map(|number| unsafe { *number })
}

/// The record of the interface a frame came in on.
#[inline(always)]
pub fn interface_of(ifindex: u32) -> Option<*mut Interface> {
    maps::INTERFACES.get_ptr_mut(link_of(ifindex)?)
}
