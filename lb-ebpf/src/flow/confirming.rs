//! What only somebody can send who has got the answer: it makes a stranger's SYN a connection.

use core::time::Duration;

use lb_common::{
    flow::SlotAt,
    seq::{before, is_ahead, within},
    slot::{CONNECTED, KILLED, LOOSE, State},
    tcp::Side,
    time::Ticks,
    verdict::Reason,
};

use super::{change, end::close};
use crate::{access, clock, records};

/// For how long after its last packet on the other host a flow may go on out of its window.
const RECENT: u32 = Ticks::of(Duration::from_secs(10));

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
    let Some(service) = records::backend(slot.backend() as u32).map(|backend| backend.service()) else { return 0 };
    let client = slot.key().address_word();
    let counted = access::count_client(service as u32, client);
    if counted == access::OVER {
        close(at, ctl.with_flags(KILLED), Reason::ClientLimit);
        return 0;
    }
    if change(at, slot, ctl, ctl.with_state(State::Established).with_flags(CONNECTED | counted as u8)) {
        return 1;
    }
    if counted != 0 {
        access::uncount_client(service as u32, client);
    }
    0
}

/// The first segment that this host sees of a flow it has taken over: true, if it may be ahead of
/// what was reported of it. It widens the window, once.
#[inline(always)]
pub fn recover(at: SlotAt, side: Side, sequence: u32, acknowledgement: u32) -> bool {
    recover_global(at.0, side as u32, sequence, acknowledgement) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn recover_global(at: u32, side: u32, sequence: u32, acknowledgement: u32) -> u32 {
    let at = SlotAt(at);
    let Some(slot) = records::slot(at) else { return 0 };
    let ctl = slot.ctl();
    let side = if side == Side::Client as u32 { Side::Client } else { Side::Backend };
    let is_recent = clock::ticks().0.wrapping_sub(slot.last_seen_once().0) <= RECENT;
    let ahead = is_ahead(sequence, slot.ack(side.other())) && is_ahead(acknowledgement, slot.ack(side));
    if !is_recent || !ahead || !change(at, slot, ctl, ctl.without_flags(LOOSE)) {
        return 0;
    }
    if before(slot.edge(side), sequence) {
        slot.set_edge(side, sequence);
    }
    if before(slot.edge(side.other()), acknowledgement) {
        slot.set_edge(side.other(), acknowledgement);
    }
    1
}
