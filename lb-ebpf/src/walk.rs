//! The path of a packet.

use lb_common::{
    address::V4,
    flow::{Key, SlotAt},
    layout::{CLOSING, Hop, Interface, Listener, Pool, Slot},
    seq::{advance, before, is_believable},
    slot::{Ctl, LOOSE, State},
    syn::{OFFERS_TIMESTAMPS, SavedSyn, Scan},
    tcp::{ACK, CONTROL, FIN, RST, SYN, Side},
    time::Ticks,
    verdict::Reason,
};

use crate::{
    clock, cookie,
    cursor::{Frame, LONGEST_HEADERS, Translation, field},
    flow, icmp,
    index::{self, Hashed},
    irregular, klog, lease,
    outcome::Outcome,
    parse::{self, Segment},
    records::{self, Held},
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
            irregular::ICMP => return error(frame),
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

/// Carries out what an ICMP error means.
#[inline(always)]
fn error<F: Frame>(frame: F) -> i32 {
    let mut outcome = Outcome(icmp::read(frame));
    if outcome.kind() == Outcome::MOVE_ON {
        outcome = flow::move_on(outcome.at(), outcome.reason());
    }
    let at = outcome.at();
    match outcome.kind() {
        Outcome::QUOTED_CLIENT => icmp::translate(frame, at, Side::Client),
        Outcome::QUOTED_BACKEND => icmp::translate(frame, at, Side::Backend),
        Outcome::SEND_SYN => reply::saved_syn(frame, at),
        Outcome::REFUSE => reply::refuse(frame, at),
        Outcome::NOT_OURS => passed::<F>(Reason::NotOurs),
        Outcome::AGAIN => dropped::<F>(Reason::LostRace),
        _ => {
            count_number(outcome.reason());
            F::DROP
        }
    }
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
            let Some(pool) = records::pool(found.at.pool() as u32) else { return impossible::<F>() };
            let way = Way::of(pool.hop());
            if is_for_another(frame, segment, way, found.ctl) {
                return passed::<F>(Reason::OtherHost);
            }
            let (ctl, inside) = believed(segment, found.at, found.slot, found.ctl, Side::Client);
            if inside {
                let now = clock::ticks();
                pool.note_sent(now);
                if note(segment, found.slot, Side::Client, now) || !found.slot.hop().is_known() {
                    learn_hop(frame, segment, found.slot, None);
                }
                if is_plain(segment, ctl) {
                    return to_backend(frame, segment, pool, found.at, way);
                }
            }
            flow::from_client(found.at, segment.flags, inside, segment.sequence)
        }
        None => {
            link = records::link_of(frame.ingress());
            if let Some(verdict) = turned_away(frame, segment, listener, (hashed.key, link)) {
                return verdict;
            }
            Outcome::open()
        }
    };
    settle(frame, segment, outcome, Sender::Client(hashed.key, link))
}

/// The verdict on a segment of a client without a flow that opens none.
#[inline(always)]
fn turned_away<F: Frame>(
    frame: F,
    segment: Segment,
    listener: Held<Listener>,
    (key, link): (Key, Option<u32>),
) -> Option<i32> {
    let Some(interface) = link.and_then(records::interface) else { return Some(passed::<F>(Reason::NotOurs)) };
    if frame.is_flooded(|| Some(interface)) {
        return Some(passed::<F>(Reason::OtherHost));
    }
    if segment.flags & CONTROL != SYN || segment.flags & ACK != 0 || listener.state() == CLOSING {
        if cookie::is_answer(segment, listener, key) {
            return Some(dropped::<F>(Reason::CookieAnswered));
        }
        let reason = if segment.is_self_test() { Reason::SelfTest } else { Reason::UnknownFlow };
        count(reason);
        klog::reset(segment, reason as u32);
        return Some(reply::reset(frame, reason as u32));
    }
    None
}

#[inline(always)]
fn from_backend<F: Frame>(frame: F, segment: Segment, row: u32, pool: Held<Pool>) -> i32 {
    let slot = u16::from_be(segment.destination_port).wrapping_sub(pool.first_port());
    if !pool.has_slot(slot) {
        return passed::<F>(Reason::NotOurs);
    }
    let at = SlotAt(row << 16 | slot as u32);
    let Some(slot) = records::slot(at) else { return passed::<F>(Reason::NotOurs) };
    let ctl = slot.ctl();
    let way = Way::of(slot.hop());
    if is_for_another(frame, segment, way, ctl) {
        return passed::<F>(Reason::OtherHost);
    }
    let (ctl, inside) = believed(segment, at, slot, ctl, Side::Backend);
    if inside {
        let now = clock::ticks();
        pool.note_heard(now);
        note(segment, slot, Side::Backend, now);
        if is_plain(segment, ctl) {
            return to_client(frame, segment, slot, way);
        }
    }
    let answer = if segment.flags & (SYN | RST) == SYN { answered(frame, segment, at) } else { 0 };
    let outcome = flow::from_backend(at, segment.flags, inside, segment.sequence, segment.acknowledgement, answer);
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
    if matches!((outcome.kind(), sender), (Outcome::SEND_SYN, Sender::Client(..))) {
        learn_hop_again_global(outcome.at().0, segment.source);
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
        Outcome::FORWARD => {}
        Outcome::OPENED | Outcome::SEND_SYN => return reply::saved_syn(frame, at),
        Outcome::REFUSE => return reply::refuse(frame, at),
        Outcome::CHALLENGE => {
            count(Reason::Challenged);
            return reply::challenge(frame, at);
        }
        Outcome::COOKIE => {
            count(Reason::CookieSent);
            return reply::cookie(frame);
        }
        Outcome::RESET => {
            count_number(outcome.reason());
            klog::reset(segment, outcome.reason());
            return reply::reset(frame, outcome.reason());
        }
        Outcome::DROP => {
            count_number(outcome.reason());
            klog::dropped(segment, outcome.reason());
            return F::DROP;
        }
        Outcome::NOT_OURS => return passed::<F>(Reason::NotOurs),
        _ => return F::DROP,
    }
    if client {
        return match records::pool(at.pool() as u32) {
            Some(pool) => to_backend(frame, segment, pool, at, Way::of(pool.hop())),
            None => impossible::<F>(),
        };
    }
    match records::slot(at) {
        Some(slot) => to_client(frame, segment, slot, Way::of(slot.hop())),
        None => ended::<F>(segment, Reason::LostRace),
    }
}

/// A next hop, and the interface that it is by, looked up once.
#[derive(Clone, Copy)]
struct Way {
    hop: Hop,
    interface: Option<Held<Interface>>,
}

impl Way {
    #[inline(always)]
    fn of(hop: Hop) -> Way {
        Way { hop, interface: records::interface(hop.interface() as u32) }
    }
}

/// Whether a frame is for another MAC address than ours: a switch that has forgotten an address
/// sends its frames to every port, and both hosts of a pair know the flow. A live flow whose address
/// this host holds is forwarded all the same. `out` is the way that the segment would take.
#[inline(always)]
fn is_for_another<F: Frame>(frame: F, segment: Segment, out: Way, ctl: Ctl) -> bool {
    if !frame.is_flooded(|| came_in_by(frame, out)) {
        return false;
    }
    !(ctl.state().is_active() && lease::is_held(segment.destination))
}

/// The interface that a frame came in by: mostly the one that it leaves by.
#[inline(always)]
fn came_in_by<F: Frame>(frame: F, out: Way) -> Option<Held<Interface>> {
    let ingress = frame.ingress();
    match out.interface {
        Some(interface) if interface.ifindex() == ingress => Some(interface),
        _ => records::link_of(ingress).and_then(records::interface),
    }
}

/// Whether the numbers of a segment are to be believed, and the flow's word after that: the client's
/// first good acknowledgement confirms a flow that its backend has answered. A SYN's numbers are no
/// part of an open connection, those of a RST are compared more strictly, and a closed flow's slot
/// may have its next owner a moment later.
#[inline(always)]
fn believed(segment: Segment, at: SlotAt, slot: Held<Slot>, ctl: Ctl, side: Side) -> (Ctl, bool) {
    if is_plain(segment, ctl) {
        return (ctl, is_inside(segment, slot, side));
    }
    if segment.flags & (SYN | RST | ACK) != ACK {
        return (ctl, false);
    }
    match ctl.state() {
        State::Established | State::ClosingClient | State::ClosingBackend | State::Suspect => {
            (ctl, is_inside(segment, slot, side) || is_resumed(segment, at, ctl, side))
        }
        State::Answered => confirmed(segment, at, slot, side),
        _ => (ctl, false),
    }
}

/// Whether a segment lies where its receiver takes it, and acknowledges what its sender may have got
/// (RFC 9293 section 3.10.7.4, RFC 5961 section 5.2).
#[inline(always)]
fn is_inside(segment: Segment, slot: Held<Slot>, side: Side) -> bool {
    let other = side.other();
    is_believable(segment.sequence, slot.ack(other), slot.edge(side))
        && is_believable(segment.acknowledgement, slot.ack(side), slot.end(other) as u32)
}

/// Whether a flow that was taken over goes on here, further ahead than was reported of it.
#[inline(always)]
fn is_resumed(segment: Segment, at: SlotAt, ctl: Ctl, side: Side) -> bool {
    ctl.flags() & LOOSE != 0 && flow::resume(at, side, segment.sequence, segment.acknowledgement)
}

/// Confirms a flow by what only somebody can send who has got the SYN-ACK: its acknowledgement by
/// the client, or what a backend sends after that.
#[inline(always)]
fn confirmed(segment: Segment, at: SlotAt, slot: Held<Slot>, side: Side) -> (Ctl, bool) {
    // An empty segment of the backend may only repeat what it expects.
    let says_enough = matches!(side, Side::Client) || segment.payload != 0 || segment.flags & FIN != 0;
    let confirmed = says_enough && flow::confirm(at, side, segment.sequence, segment.acknowledgement);
    (slot.ctl(), confirmed)
}

/// Whether a segment is data or acknowledgement of an established flow and changes nothing else.
#[inline(always)]
fn is_plain(segment: Segment, ctl: Ctl) -> bool {
    const STATE_AND_LOOSE: u64 = 0xff | (LOOSE as u64) << 16;
    ctl.0 & STATE_AND_LOOSE == State::Established as u64 && segment.flags & (CONTROL | ACK) == ACK
}

/// Notes sequence end, acknowledgement, window and time of a segment whose numbers are believed.
/// True: it goes further than those before it.
///
/// These are plain reads and writes: an atomic operation would cost every packet more than all of
/// them. A card hands one direction of a connection to one CPU (RSS), so two CPUs write one field
/// at once only when the direction moves to another queue, or on a veth. Then the older end or
/// acknowledgement may be stored last. The next segment that goes further stores one that is right
/// again, and so does the other side's acknowledgement of what was not noted; until then a RST of
/// ours may carry a number that is too low by the segments that overtook each other, which its
/// receiver answers with a challenge ACK (RFC 5961 section 3.2), and a RST of the peer at the newest
/// number may be forwarded without ending the flow, which idle_timeout ends.
#[inline(always)]
fn note(segment: Segment, slot: Held<Slot>, side: Side, now: Ticks) -> bool {
    let other = side.other();
    let known_end = slot.end(side);
    let end = advance(known_end, segment.end());
    let mut goes_on = end != known_end;
    if goes_on {
        slot.set_end(side, end);
    }
    let ack = segment.acknowledgement;
    if before(slot.ack(side), ack) {
        slot.set_ack(side, ack);
        goes_on = true;
        let sent = slot.end(other);
        if before(sent as u32, ack) {
            slot.set_end(other, advance(sent, ack));
        }
    }
    let edge = ack.wrapping_add((segment.window as u32) << slot.scales().of(side));
    if before(slot.edge(other), edge) {
        slot.set_edge(other, edge);
    }
    slot.touch(now);
    goes_on
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
    if known.0 & MAC == mac && is_by(known, frame.ingress()) {
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
/// our neighbour only by asking for our address just before. Whoever sent it, the next hop stays,
/// or becomes the one by which this host itself reaches the client by the same interface.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn learn_hop_again_global(at: u32, client: u32) -> u32 {
    let Some(slot) = records::slot(SlotAt(at)) else { return 0 };
    let hop = slot.hop();
    if hop.is_known() && !hop.is_of_neighbour() {
        slot.set_hop(Hop(way_back_global(hop.0 & MAC, hop.interface() as u32, client)));
    }
    0
}

/// Whether a known next hop is by the interface that the kernel calls `ifindex`.
#[inline(always)]
fn is_by(hop: Hop, ifindex: u32) -> bool {
    hop.is_known() && records::interface(hop.interface() as u32).is_some_and(|own| own.ifindex() == ifindex)
}

/// What a backend's SYN-ACK offers, and its window, as one number: see `flow::Answer`. The client is
/// told of no more payload than the service lets through.
#[inline(always)]
fn answered<F: Frame>(frame: F, segment: Segment, at: SlotAt) -> u64 {
    let scan = scan_options(frame, segment.header);
    let most = reply::most_payload(at);
    if scan.mss() > most {
        frame.put(field::PAYLOAD + scan.mss_at() as usize + 2, scan.mss().to_be(), most.to_be());
    }
    flow::Answer::new(scan, segment.window).0
}

/// Bytes of a TCP header with the usual options.
const USUAL_HEADER: u32 = 40;

/// Reads the options of a segment with a TCP header of `header` bytes, into OPTIONS and as far as
/// they matter.
#[inline(never)]
fn scan_options<F: Frame>(frame: F, header: u32) -> Scan {
    let Some(options) = records::options() else { return Scan::BEGIN };
    let mut bytes = frame.bytes();
    if !bytes.has(field::TCP + header as usize) {
        frame.pull(LONGEST_HEADERS);
        bytes = frame.bytes();
    }
    if header == USUAL_HEADER && bytes.has(field::TCP + USUAL_HEADER as usize) {
        let words = [0, 1, 2, 3, 4].map(|i| bytes.read(field::PAYLOAD + i * 4));
        if let Some(scan) = Scan::usual(words) {
            options.set_word(2, words[2]);
            return scan;
        }
    }
    let mut length = 0;
    for i in 0..10 {
        let offset = field::PAYLOAD + i * 4;
        if 20 + i as u32 * 4 >= header || !bytes.has(offset + 4) {
            break;
        }
        options.set_word(i, bytes.read(offset));
        length += 4;
    }
    Scan(options_global(length))
}

/// What the bytes in OPTIONS say.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn options_global(length: u32) -> u64 {
    let mut scan = Scan::BEGIN;
    for _ in 0..lb_common::syn::OPTIONS {
        scan = Scan(option_global(scan.0, length));
        if scan.is_done() {
            break;
        }
    }
    scan.0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn option_global(scan: u64, length: u32) -> u64 {
    let Some(options) = records::options() else { return Scan(scan).ended().0 };
    Scan(scan).next(length, |at| options.byte(at)).0
}

/// Keeps what a backend is to see of the client's SYN, and where the client is.
#[inline(always)]
fn save_syn<F: Frame>(frame: F, segment: Segment, at: SlotAt, link: Option<u32>) {
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else { return };
    let scan = scan_options(frame, segment.header);
    let bytes = frame.bytes();
    if !bytes.has(field::PAYLOAD) {
        return;
    }
    opening.set_syn(SavedSyn {
        mss: scan.mss(),
        window: bytes.read(field::WINDOW),
        scale: scan.scale(),
        offers: scan.offers(),
        tos: bytes.read(field::TOS),
        saved: 1,
        timestamp: if scan.offers() & OFFERS_TIMESTAMPS != 0 { timestamp(scan.timestamps() + 2) } else { 0 },
    });
    slot.set_hop(Hop(0));
    learn_hop(frame, segment, slot, link);
}

/// The four bytes of OPTIONS at a position, as they lie in memory.
#[inline(always)]
fn timestamp(at: u32) -> u32 {
    let Some(options) = records::options() else { return 0 };
    u32::from_ne_bytes([options.byte(at), options.byte(at + 1), options.byte(at + 2), options.byte(at + 3)])
}

/// Sends a segment of the client on to its backend.
#[inline(always)]
fn to_backend<F: Frame>(frame: F, segment: Segment, pool: Held<Pool>, at: SlotAt, way: Way) -> i32 {
    let from = (pool.snat::<V4>(), pool.snat_port(at));
    send(frame, segment, way, from, (pool.backend::<V4>(), pool.backend_port()))
}

/// Sends a segment of the backend on to the client. If the slot changes hands at this moment, the
/// segment goes to the next client, which drops it because of its sequence number.
#[inline(always)]
fn to_client<F: Frame>(frame: F, segment: Segment, slot: Held<Slot>, way: Way) -> i32 {
    let key = slot.key();
    let Some(listener) = records::listener(key.listener() as u32) else { return ended::<F>(segment, Reason::Damaged) };
    let from = (listener.address::<V4>(), listener.port());
    send(frame, segment, way, from, (key.address_word(), key.port()))
}

#[inline(always)]
fn send<F: Frame>(frame: F, segment: Segment, way: Way, from: (u32, u16), to: (u32, u16)) -> i32 {
    if segment.ttl <= 1 {
        return reply::time_exceeded(frame);
    }
    let (hop, Some(interface)) = (way.hop, way.interface) else {
        return ended::<F>(segment, Reason::NoNextHop);
    };
    if !hop.is_known() {
        return ended::<F>(segment, Reason::NoNextHop);
    }
    if frame.exceeds(interface.mtu(), segment.header) {
        return reply::too_large(frame, interface.mtu());
    }
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
