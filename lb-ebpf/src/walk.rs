//! The path of a packet.

use lb_common::{
    address::V4,
    flow::{Key, SlotAt},
    layout::{CLOSING, Hop, Listener, Pool, Slot},
    seq::{advance, within},
    slot::{Ctl, State},
    tcp::{ACK, CONTROL, RST, SYN},
    time::Ticks,
    verdict::Reason,
};

use crate::{
    clock,
    cursor::{Frame, LONGEST_HEADERS, Translation, field},
    flow,
    index::{self, Hashed},
    irregular, klog, lease,
    outcome::Outcome,
    parse::{self, Segment},
    records::{self, Held, OPENING_WORDS},
    reply,
    report::{count, count_number, dropped, impossible, passed},
};

/// Which side sent a segment of ours.
#[derive(Clone, Copy)]
enum Sender {
    /// A client: its key, and the interface that the frame came in by, if that was looked up
    /// already.
    Client(Key, Option<u32>),
    /// A backend.
    Backend,
}

/// The verdict on a frame.
#[inline(always)]
pub fn walk<F: Frame>(frame: F) -> i32 {
    if !parse::is_plain(frame) {
        match irregular::irregular(frame) {
            irregular::PLAIN => {}
            irregular::OTHER => return lease::other::<F>(frame),
            verdict => return verdict,
        }
    }
    // The verifier follows what comes only once: nothing that it knows of a plain frame from above
    // is used below.
    let frame = frame.anew();
    let Some(segment) = parse::segment(frame) else { return irregular::malformed(frame) };
    if let Some((row, listener)) = records::listener_at::<V4>(segment.destination, segment.destination_port) {
        return from_client(frame, segment, row, listener);
    }
    if let Some((row, pool)) = records::pool_of::<V4>(segment.source, segment.source_port, segment.destination) {
        return from_backend(frame, segment, row, pool);
    }
    passed::<F>(Reason::NotOurs)
}

#[inline(always)]
fn from_client<F: Frame>(frame: F, segment: Segment, row: u32, listener: Held<Listener>) -> i32 {
    let hashed = Hashed::new(Key::new(segment.source, segment.source_port, row as u16));
    if segment.flags & SYN != 0 {
        index::fetch_second(hashed);
    }
    let mut link = None;
    let outcome = match index::find(hashed) {
        Some(found) => {
            if is_tracked(segment, found.ctl.state()) {
                let Some(pool) = records::pool(found.at.pool() as u32) else { return impossible::<F>() };
                note_client(frame, segment, found.slot, pool);
                if is_plain(segment, found.ctl) {
                    return to_backend(frame, segment, pool, found.at);
                }
            }
            flow::from_client(found.at, segment.flags, segment.sequence)
        }
        None => {
            link = records::link_of(frame.ingress());
            if let Some(verdict) = turned_away(frame, segment, listener, link) {
                return verdict;
            }
            Outcome::open()
        }
    };
    settle(frame, segment, outcome, Sender::Client(hashed.key, link))
}

/// The verdict on a segment of a client without a flow that opens none.
#[inline(always)]
fn turned_away<F: Frame>(frame: F, segment: Segment, listener: Held<Listener>, link: Option<u32>) -> Option<i32> {
    let Some(interface) = link.and_then(records::interface) else { return Some(passed::<F>(Reason::NotOurs)) };
    if frame.is_flooded(interface) {
        return Some(passed::<F>(Reason::OtherHost));
    }
    if segment.flags & CONTROL != SYN || segment.flags & ACK != 0 || listener.state() == CLOSING {
        let reason = if segment.is_self_test() { Reason::SelfTest } else { Reason::UnknownFlow };
        count(reason);
        klog::reset(segment, reason as u32);
        return Some(reply::reset(frame));
    }
    None
}

#[inline(always)]
fn from_backend<F: Frame>(frame: F, segment: Segment, row: u32, pool: Held<Pool>) -> i32 {
    let slot = u16::from_be(segment.destination_port).wrapping_sub(pool.first_port());
    if slot >= pool.ports() {
        return passed::<F>(Reason::NotOurs);
    }
    let at = SlotAt(row << 16 | slot as u32);
    let Some(slot) = records::slot(at) else { return passed::<F>(Reason::NotOurs) };
    let now = clock::ticks();
    pool.note_heard(now);
    let ctl = slot.ctl();
    if is_tracked(segment, ctl.state()) {
        note_backend(segment, slot, now);
        if is_plain(segment, ctl) {
            return to_client(frame, segment, slot);
        }
    }
    let flags = segment.flags as u32 | if segment.payload != 0 { flow::PAYLOAD } else { 0 };
    let outcome = flow::from_backend(at, flags, segment.sequence, segment.acknowledgement);
    settle(frame, segment, outcome, Sender::Backend)
}

/// Carries out what the slow path has decided, on both sides. A new connection is opened and a
/// failed try moved on from here and not from below: a chain of calls has 512 bytes of stack, and
/// this is where it is shortest.
#[inline(always)]
fn settle<F: Frame>(frame: F, segment: Segment, outcome: Outcome, sender: Sender) -> i32 {
    let outcome = match (outcome.kind(), sender) {
        (Outcome::OPEN, Sender::Client(key, _)) => flow::open(key, segment.sequence),
        (Outcome::MOVE_ON, _) => flow::move_on(outcome.at(), outcome.reason()),
        _ => outcome,
    };
    // Read again rather than kept: what is kept during the calls above is on the stack below them.
    let Some(segment) = parse::segment(frame) else { return impossible::<F>() };
    if let (Outcome::OPENED, Sender::Client(_, link)) = (outcome.kind(), sender) {
        save_syn(frame, segment, outcome.at(), link);
    }
    if matches!((outcome.kind(), sender), (Outcome::FORWARD, Sender::Client(..))) && segment.flags & SYN != 0 {
        learn_hop_again(frame, segment, outcome.at());
    }
    carry_out(frame, segment, outcome, matches!(sender, Sender::Client(..)))
}

/// What cannot be forwarded ends here, and is counted.
#[inline(always)]
fn ended<F: Frame>(segment: Segment, reason: Reason) -> i32 {
    klog::dropped(segment, reason as u32);
    dropped::<F>(reason)
}

/// Carries out the decision about the frame. Whatever ends it is counted.
#[inline(always)]
fn carry_out<F: Frame>(frame: F, segment: Segment, outcome: Outcome, client: bool) -> i32 {
    let at = outcome.at();
    match outcome.kind() {
        Outcome::OPENED | Outcome::FORWARD => {}
        // The client's own SYN, sent again, goes to the next backend as it is.
        Outcome::SEND_SYN if client => {}
        Outcome::SEND_SYN => return reply::saved_syn(frame, at),
        Outcome::REFUSE => return reply::refuse(frame, at),
        Outcome::RESET => {
            count_number(outcome.reason());
            klog::reset(segment, outcome.reason());
            return reply::reset(frame);
        }
        Outcome::DROP => {
            count_number(outcome.reason());
            klog::dropped(segment, outcome.reason());
            return F::DROP;
        }
        _ => return F::DROP,
    }
    if client {
        return match records::pool(at.pool() as u32) {
            Some(pool) => to_backend(frame, segment, pool, at),
            None => impossible::<F>(),
        };
    }
    match records::slot(at) {
        Some(slot) => to_client(frame, segment, slot),
        None => ended::<F>(segment, Reason::LostRace),
    }
}

/// Whether a segment's numbers are to be believed before anything else is known about it. Those of
/// a RST are checked first; a SYN's are no part of an open connection; a closed flow's slot may
/// have its next owner a moment later.
#[inline(always)]
fn is_tracked(segment: Segment, state: State) -> bool {
    let open = matches!(state, State::Established | State::ClosingClient | State::ClosingBackend | State::Suspect);
    open && segment.flags & (SYN | RST) == 0
}

/// Whether a segment is data or acknowledgement of an established flow and changes nothing else.
#[inline(always)]
fn is_plain(segment: Segment, ctl: Ctl) -> bool {
    ctl.0 as u8 == State::Established as u8 && segment.flags & CONTROL == 0
}

/// Notes sequence end, acknowledgement, time and next hop of a segment from the client.
///
/// These are plain reads and writes: an atomic operation would cost every packet more than all of
/// them. A card hands one direction of a connection to one CPU (RSS), so two CPUs write one field
/// at once only when the direction moves to another queue, or on a veth. Then the older end or
/// acknowledgement may be stored last. The next segment that goes further stores one that is right
/// again, and for the sum of bytes only the last end counts; until then a RST of ours may carry a
/// number that is too low by the segments that overtook each other, which its receiver answers with
/// a challenge ACK (RFC 5961 section 3.2), and a RST of the peer at the newest number may be
/// forwarded without ending the flow, which idle_timeout ends.
#[inline(always)]
fn note_client<F: Frame>(frame: F, segment: Segment, slot: Held<Slot>, pool: Held<Pool>) {
    let now = clock::ticks();
    pool.note_sent(now);
    learn_hop(frame, segment, slot, None);
    let known_end = slot.end_client();
    let end = advance(known_end, segment.end());
    if end != known_end {
        slot.set_end_client(end);
    }
    if segment.flags & ACK != 0 && acknowledges(segment, slot.ack_client(), || slot.end_backend()) {
        slot.set_ack_client(segment.acknowledgement);
    }
    slot.touch(now);
}

/// Notes sequence end, acknowledgement and time of a segment from the backend. What
/// [`note_client`] says of two CPUs at once holds here too.
#[inline(always)]
fn note_backend(segment: Segment, slot: Held<Slot>, now: Ticks) {
    let known_end = slot.end_backend();
    let end = advance(known_end, segment.end());
    if end != known_end {
        slot.set_end_backend(end);
    }
    if segment.flags & ACK != 0 && acknowledges(segment, slot.ack_backend(), || slot.end_client()) {
        slot.set_ack_backend(segment.acknowledgement);
    }
    slot.touch(now);
}

/// Whether a segment acknowledges something new, and nothing that was never sent.
#[inline(always)]
fn acknowledges(segment: Segment, known: u32, sent: impl FnOnce() -> u64) -> bool {
    segment.acknowledgement != known && within(known, segment.acknowledgement, sent() as u32)
}

const MAC: u64 = 0xffff_ffff_ffff;

/// The way back to the client follows the sender of its frames, which came in by the interface
/// `link` if that was looked up already.
#[inline(always)]
fn learn_hop<F: Frame>(frame: F, segment: Segment, slot: Held<Slot>, link: Option<u32>) {
    let bytes = frame.bytes();
    if !bytes.has(field::PAYLOAD) {
        return;
    }
    let low: u16 = bytes.read(field::ETHERNET_SOURCE);
    let high: u32 = bytes.read(field::ETHERNET_SOURCE + 2);
    let mac = low as u64 | (high as u64) << 16;
    let known = slot.hop();
    if known.0 & MAC == mac {
        return;
    }
    let Some(link) = link.or_else(|| records::link_of(frame.ingress())) else { return };
    // A neighbour that is known to be reached otherwise than its frames come stays so.
    if !known.is_of_neighbour() || known.interface() as u32 != link {
        slot.set_hop(Hop(way_back_global(mac, link, segment.source)));
    }
}

/// The next hop towards a client whose frame was sent by `mac` and came in by `link`: the one by
/// which this host itself reaches the client by the same interface, or else the sender. A client
/// may send from another MAC address than the one that it listens at, and of two routers that share
/// an address each sends from its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn way_back_global(mac: u64, link: u32, client: u32) -> u64 {
    let way = records::way_to::<V4>(client);
    if way.is_known() && way.interface() as u32 == link {
        return way.of_neighbour().0;
    }
    mac | (link as u64 & 0xff) << 48 | 1 << 56
}

/// A SYN that is sent again may mean that the answer went the wrong way: its client may have become
/// our neighbour only by asking for our address just before.
#[inline(always)]
fn learn_hop_again<F: Frame>(frame: F, segment: Segment, at: SlotAt) {
    let Some(slot) = records::slot(at) else { return };
    if slot.ctl().state() == State::HalfOpen && !slot.hop().is_of_neighbour() {
        slot.set_hop(Hop(0));
        learn_hop(frame, segment, slot, None);
    }
}

/// Keeps what another backend must see of the client's SYN.
#[inline(always)]
fn save_syn<F: Frame>(frame: F, segment: Segment, at: SlotAt, link: Option<u32>) {
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else { return };
    let mut bytes = frame.bytes();
    if !bytes.has(field::TCP + segment.header as usize) {
        frame.pull(LONGEST_HEADERS);
        bytes = frame.bytes();
    }
    if !bytes.has(field::PAYLOAD) {
        return;
    }
    opening.set_window(bytes.read(field::WINDOW));
    opening.set_tos(bytes.read(field::TOS));
    let mut saved = 0;
    for i in 0..OPENING_WORDS {
        let offset = field::PAYLOAD + i * 4;
        if 20 + i as u32 * 4 >= segment.header || !bytes.has(offset + 4) {
            break;
        }
        opening.set_word(i, bytes.read(offset));
        saved += 4;
    }
    opening.set_options_len(saved);
    slot.set_hop(Hop(0));
    learn_hop(frame, segment, slot, link);
}

/// Sends a segment of the client on to its backend.
#[inline(always)]
fn to_backend<F: Frame>(frame: F, segment: Segment, pool: Held<Pool>, at: SlotAt) -> i32 {
    let from = (pool.snat::<V4>(), pool.snat_port(at));
    send(frame, segment, pool.hop(), from, (pool.backend::<V4>(), pool.backend_port()))
}

/// Sends a segment of the backend on to the client. If the slot changes hands at this moment, the
/// segment goes to the next client, which drops it because of its sequence number.
#[inline(always)]
fn to_client<F: Frame>(frame: F, segment: Segment, slot: Held<Slot>) -> i32 {
    let (key, hop) = (slot.key(), slot.hop());
    let Some(listener) = records::listener(key.listener() as u32) else { return ended::<F>(segment, Reason::Damaged) };
    let from = (listener.address::<V4>(), listener.port());
    send(frame, segment, hop, from, (key.address_word(), key.port()))
}

#[inline(always)]
fn send<F: Frame>(frame: F, segment: Segment, hop: Hop, from: (u32, u16), to: (u32, u16)) -> i32 {
    if segment.ttl <= 1 {
        return ended::<F>(segment, Reason::TtlExpired);
    }
    if !hop.is_known() {
        return ended::<F>(segment, Reason::NoNextHop);
    }
    let Some(interface) = records::interface(hop.interface() as u32) else {
        return ended::<F>(segment, Reason::NoNextHop);
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
        return ended::<F>(segment, Reason::RewriteFailed);
    }
    frame.send(interface.ifindex())
}
