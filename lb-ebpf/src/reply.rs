//! Frames that are written anew in the place of one that came: a RST to its sender, a RST to the client, the saved SYN to
//! the next backend.

use lb_common::{
    layout::{Hop, Interface, Listener, Pool, SYN_OPTIONS},
    tcp::{ACK, RST, SYN},
    verdict::Reason,
};

use crate::{
    clock,
    cursor::{Frame, Headers, field},
    flow, maps,
    parse::Segment,
    report, slots,
};

/// RSTs that one CPU answers in a burst, and in a second.
const RST_BURST: u64 = 10_000;
const RST_PER_TICK: u64 = 10;

/// Answers the sender of a segment with a RST that it accepts (RFC 9293 section 3.10.7.1). A RST is never answered.
#[inline(never)]
pub fn reset<F: Frame>(frame: F, segment: Segment) -> i32 {
    if segment.flags & RST != 0 || !(segment.is_self_test() || allowed()) {
        return F::DROP;
    }
    let (sequence, acknowledgement, flags) =
        if segment.flags & ACK != 0 { (segment.acknowledgement, 0, RST) } else { (0, segment.end(), RST | ACK) };
    let bytes = frame.bytes();
    if !bytes.has(field::PAYLOAD) {
        return F::DROP;
    }
    let mut headers = empty();
    let macs: [u16; 6] = [bytes.read(6), bytes.read(8), bytes.read(10), bytes.read(0), bytes.read(2), bytes.read(4)];
    // SAFETY: 12 of 14 bytes; the place is even.
    unsafe { *(&raw mut headers.ethernet).cast::<[u16; 6]>() = macs };
    headers.ip[3] = segment.destination;
    headers.ip[4] = segment.source;
    headers.tcp[0] = segment.destination_port as u32 | (segment.source_port as u32) << 16;
    headers.tcp[1] = sequence.to_be();
    headers.tcp[2] = acknowledgement.to_be();
    headers.tcp[3] = tcp_word(20, flags, [0; 2]);
    finish(frame, &mut headers, 20, 0, frame.ingress())
}

/// Refuses the client of the half-open flow at `place`: the RST that answers its SYN.
#[inline(never)]
pub fn refuse<F: Frame>(frame: F, place: u32) -> i32 {
    let Some(slot) = flow::at(place) else { return F::DROP };
    // SAFETY: from map lookups.
    unsafe {
        let key = (*slot).key;
        let Some(listener) = maps::LISTENERS.get_ptr_mut(key.listener() as u32) else { return F::DROP };
        let mut headers = empty();
        let Some(interface) = ethernet(&mut headers, (*slot).hop) else { return F::DROP };
        headers.ip[3] = address(&raw const (*listener).address);
        headers.ip[4] = key.address_word();
        headers.tcp[0] = port(listener) as u32 | (key.port() as u32) << 16;
        headers.tcp[2] = ((*slot).end_client as u32).to_be();
        headers.tcp[3] = tcp_word(20, RST | ACK, [0; 2]);
        finish(frame, &mut headers, 20, 0, (*interface).ifindex)
    }
}

/// Turns the frame into the client's SYN, from the flow at `place` to that flow's backend.
#[inline(never)]
pub fn saved_syn<F: Frame>(frame: F, place: u32) -> i32 {
    let (Some(slot), Some(opening)) = (flow::at(place), slots::opening(place)) else { return F::DROP };
    let Some(pool) = maps::POOLS.get_ptr_mut(place >> 16) else { return F::DROP };
    // SAFETY: from map lookups.
    unsafe {
        let mut headers = empty();
        let Some(interface) = ethernet(&mut headers, (*pool).hop) else { return no_next_hop::<F>() };
        let length = 20 + ((*opening).options_len as u32 & 0x3c);
        if length > 60 {
            return F::DROP;
        }
        headers.ip[3] = address(&raw const (*pool).snat);
        headers.ip[4] = address(&raw const (*pool).backend);
        headers.tcp[0] = snat_port(pool, place) as u32 | (backend_port(pool) as u32) << 16;
        headers.tcp[1] = ((*slot).end_client as u32).wrapping_sub(1).to_be();
        headers.tcp[3] = tcp_word(length, SYN, (*opening).window);
        for i in 0..SYN_OPTIONS / 4 {
            if (i as u32) * 4 + 20 < length {
                headers.tcp[5 + i] = (*opening).words[i];
            }
        }
        finish(frame, &mut headers, length, (*opening).tos, (*interface).ifindex)
    }
}

#[inline(always)]
fn empty() -> Headers {
    Headers { align: [0; 2], ethernet: [0; 14], ip: [0; 5], tcp: [0; 15] }
}

/// Data offset, flags and window as they lie in memory.
#[inline(always)]
fn tcp_word(length: u32, flags: u8, window: [u8; 2]) -> u32 {
    u32::from_ne_bytes([(length << 2) as u8, flags, window[0], window[1]])
}

/// Writes the fixed fields, replaces the frame and sends it.
#[inline(always)]
fn finish<F: Frame>(frame: F, headers: &mut Headers, length: u32, tos: u8, ifindex: u32) -> i32 {
    headers.ethernet[12] = 0x08;
    let total = ((20 + length) as u16).to_be_bytes();
    headers.ip[0] = u32::from_ne_bytes([0x45, tos, total[0], total[1]]);
    headers.ip[1] = u32::from_ne_bytes([0, 0, 0x40, 0]);
    headers.ip[2] = u32::from_ne_bytes([64, 6, 0, 0]);
    if !frame.replace(headers, length) {
        report::count(Reason::RewriteFailed);
        return F::DROP;
    }
    frame.send(ifindex)
}

/// Writes both MAC addresses; the interface to send through.
#[inline(always)]
unsafe fn ethernet(headers: &mut Headers, hop: Hop) -> Option<*const Interface> {
    if !hop.is_known() {
        return None;
    }
    let interface = maps::INTERFACES.get_ptr_mut(hop.interface() as u32)?;
    // SAFETY: from a map lookup; six and six bytes of the fourteen.
    unsafe {
        let to = (&raw mut headers.ethernet).cast::<u16>();
        *to = hop.0 as u16;
        *to.add(1) = (hop.0 >> 16) as u16;
        *to.add(2) = (hop.0 >> 32) as u16;
        let own = (&raw const (*interface).mac).cast::<u16>();
        *to.add(3) = *own;
        *to.add(4) = *own.add(1);
        *to.add(5) = *own.add(2);
    }
    Some(interface)
}

/// The IPv4 address in a v4-mapped one.
#[inline(always)]
pub unsafe fn address(mapped: *const [u8; 16]) -> u32 {
    // SAFETY: bytes 12 to 15, on a word boundary in every record.
    unsafe { *mapped.cast::<u32>().add(3) }
}

#[inline(always)]
unsafe fn port(listener: *const Listener) -> u16 {
    // SAFETY: from a map lookup; on an even place.
    unsafe { *(&raw const (*listener).port).cast() }
}

/// The port of a pool's backend, as in the packet.
#[inline(always)]
pub unsafe fn backend_port(pool: *const Pool) -> u16 {
    // SAFETY: from a map lookup; on an even place.
    unsafe { *(&raw const (*pool).port).cast() }
}

/// The SNAT port of a slot, as in the packet.
#[inline(always)]
pub unsafe fn snat_port(pool: *const Pool, place: u32) -> u16 {
    // SAFETY: from a map lookup.
    unsafe { (*pool).first_port.wrapping_add(place as u16).to_be() }
}

#[inline(always)]
fn no_next_hop<F: Frame>() -> i32 {
    report::count(Reason::NoNextHop);
    F::DROP
}

/// Whether another RST may be sent on this CPU.
#[inline(always)]
fn allowed() -> bool {
    let Some(bucket) = maps::RST_TOKENS.get_ptr_mut(0) else { return false };
    let now = clock::ticks().0 as u64;
    // SAFETY: this CPU's own element.
    unsafe {
        let refill = (now - (*bucket).refilled) * RST_PER_TICK;
        let tokens = if refill > RST_BURST { RST_BURST } else { (*bucket).tokens + refill };
        (*bucket).refilled = now;
        if tokens == 0 {
            (*bucket).tokens = 0;
            report::count(Reason::RstRateLimited);
            return false;
        }
        (*bucket).tokens = if tokens > RST_BURST { RST_BURST } else { tokens } - 1;
    }
    true
}
