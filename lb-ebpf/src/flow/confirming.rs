//! What only somebody can send who has got the answer: it makes a stranger's SYN a connection, and
//! says where a connection is that another host has carried on.

use lb_common::{
    flow::SlotAt,
    layout::{SEEN_BACKEND, SEEN_CLIENT, SEEN_NONE, Slot},
    seq::{agree, is_believable, largest_window, resumed, within},
    slot::{CONNECTED, KILLED, LOOSE, State},
    tcp::Side,
    verdict::Reason,
};

use super::{change, end::close};
use crate::{
    access, clock,
    records::{self, Held},
};

/// A segment of a flow that its backend has answered: true, if the flow is confirmed by it. A client
/// that has too many connections by now is turned away instead.
#[inline(always)]
pub fn confirm(at: SlotAt, side: Side, sequence: u32, acknowledgement: u32) -> bool {
    confirm_global(at.0, side as u32, sequence, acknowledgement) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn confirm_global(at: u32, side: u32, sequence: u32, acknowledgement: u32) -> u32 {
    let at = SlotAt(at);
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else { return 0 };
    let ctl = slot.ctl();
    if ctl.state() != State::Answered {
        return 0;
    }
    let (client, backend) = (opening.isn_client().wrapping_add(1), opening.isn_backend().wrapping_add(1));
    let exact = if side == Side::Client as u32 {
        within(client, sequence, slot.edge_client()) && within(backend, acknowledgement, slot.end_backend() as u32)
    } else {
        within(backend, sequence, slot.edge_backend()) && within(client, acknowledgement, slot.end_client() as u32)
    };
    if !exact {
        return 0;
    }
    let open = ctl.with_state(State::Established).with_flags(CONNECTED);
    if !change(at, slot, ctl, open) {
        return 0;
    }
    let Some(service) = records::backend(slot.backend() as u32).map(|backend| backend.service()) else { return 1 };
    let client = slot.key().address_word();
    match access::count_client(service as u32, client) {
        0 => 1,
        access::OVER => {
            close(at, open.with_flags(KILLED), Reason::ClientLimit);
            0
        }
        // Another CPU has changed it in between: the controller counts it at its next look.
        counted if !slot.swap(open, open.with_flags(counted as u8)) => {
            access::uncount_client(service as u32, client);
            1
        }
        _ => 1,
    }
}

/// A segment of a flow that was taken over and whose numbers lie outside of what was reported of it.
/// True: a segment of the other side has just said the same, so this is where the flow is. One
/// segment alone may be anybody's; if one of its numbers fits, it is a sign of life and no more.
#[inline(always)]
pub fn resume(at: SlotAt, side: Side, sequence: u32, acknowledgement: u32) -> bool {
    resume_global(at.0, side as u32, sequence, acknowledgement) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn resume_global(at: u32, side: u32, sequence: u32, acknowledgement: u32) -> u32 {
    let at = SlotAt(at);
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else { return 0 };
    note_life(at, slot, side, sequence, acknowledgement);
    let is_client = side == Side::Client as u32;
    let (client, backend) = if is_client { (sequence, acknowledgement) } else { (acknowledgement, sequence) };
    let (other, own) = if is_client { (SEEN_BACKEND, SEEN_CLIENT) } else { (SEEN_CLIENT, SEEN_BACKEND) };
    let (seen, seen_client, seen_backend) = (opening.seen(), opening.seen_client(), opening.seen_backend());
    opening.set_seen_client(client);
    opening.set_seen_backend(backend);
    opening.set_seen(own);
    let scales = slot.scales();
    let (of_client, of_backend) = (scales.of(Side::Client), scales.of(Side::Backend));
    let same = seen == other && agree(seen_client, client, of_backend) && agree(seen_backend, backend, of_client);
    let ctl = slot.ctl();
    if !same || !change(at, slot, ctl, ctl.without_flags(LOOSE)) {
        return 0;
    }
    opening.set_seen(SEEN_NONE);
    // What the client's segment acknowledges of the backend, and the other way round.
    let (ack_client, ack_backend) = if is_client { (backend, seen_client) } else { (seen_backend, client) };
    slot.set_end_client(resumed(resumed(slot.end_client(), seen_client), client));
    slot.set_end_backend(resumed(resumed(slot.end_backend(), seen_backend), backend));
    slot.set_ack_client(ack_client);
    slot.set_ack_backend(ack_backend);
    slot.set_edge_client(ack_backend.wrapping_add(largest_window(of_backend)));
    slot.set_edge_backend(ack_client.wrapping_add(largest_window(of_client)));
    1
}

/// A side of which only one number has moved on unreported is alive: the answer to a question of the
/// controller looks like this, too.
#[inline(always)]
fn note_life(at: SlotAt, slot: Held<Slot>, side: u32, sequence: u32, acknowledgement: u32) {
    let side = if side == Side::Client as u32 { Side::Client } else { Side::Backend };
    let other = side.other();
    if !is_believable(sequence, slot.ack(other), slot.edge(side))
        && !is_believable(acknowledgement, slot.ack(side), slot.end(other) as u32)
    {
        return;
    }
    let now = clock::ticks();
    slot.touch(now);
    if let (Side::Backend, Some(pool)) = (side, records::pool(at.pool() as u32)) {
        pool.note_heard(now);
    }
}
