//! Flows that come from the other host of a pair: put into their slots here, kept up to date, and
//! ended silently, because the master sends whatever is to be sent.
//!
//! The slot is the SNAT port, so a flow has the same slot on both hosts. It is claimed by
//! compare-and-swap like any other, against the kernel program and against ourselves, but not
//! through the ring of free ports: the port stays in the ring, as the flag `IN_RING` says.

use std::{mem::offset_of, sync::atomic::Ordering};

use lb_common::{
    flow::SlotAt,
    flow::{Attempt, Key},
    layout::{Hop, Opening, Slot},
    seq,
    slot::{CONNECTED, Ctl, FIN_BACKEND, FIN_CLIENT, IN_RING, LOOSE, State},
    syn::Scales,
    time::{Instant, Ticks},
    verdict::Reason,
};

use super::{PortUse, Tables, flow::Flow, index::Entered, lock};

/// A flow of the other host, in the numbers of our own tables and by the clock of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its slot: the pool of its backend and SNAT address, and within it the SNAT port minus the
    /// pool's first.
    pub at: SlotAt,
    /// The backend.
    pub backend: u16,
    /// Client and listener, as in the flow index.
    pub key: Key,
    /// `Established`, `ClosingClient` or `ClosingBackend`.
    pub state: State,
    /// Next hop towards the client; if it is unknown, it is learnt from the client's next packet.
    pub hop: Hop,
    /// Initial sequence numbers of client and backend.
    pub initial: [u32; 2],
    /// Highest sequence ends of client and backend.
    pub ends: [u64; 2],
    /// Last acknowledgement numbers of client and backend.
    pub acks: [u32; 2],
    /// The first sequence numbers that backend and client do not take yet.
    pub edges: [u32; 2],
    /// The window scales.
    pub scales: Scales,
    /// When its first SYN came, by the clock of this host.
    pub started: Instant,
    /// When its last packet was seen, by the clock of this host.
    pub last_seen: Ticks,
    /// How long the backend took to answer, in microseconds.
    pub connect_us: u32,
    /// Backends tried.
    pub tries: u8,
}

impl Foreign {
    fn flags(&self) -> u8 {
        CONNECTED
            | LOOSE
            | match self.state {
                State::ClosingClient => FIN_CLIENT,
                State::ClosingBackend => FIN_BACKEND,
                _ => 0,
            }
    }

    fn record(&self, ctl: Ctl) -> Slot {
        Slot {
            ctl,
            key: self.key,
            end_client: self.ends[0],
            end_backend: self.ends[1],
            ack_client: self.acks[0],
            ack_backend: self.acks[1],
            hop: self.hop,
            last_seen: self.last_seen,
            backend: self.backend,
            attempt: Attempt::default(),
            scales: self.scales,
            edge_client: self.edges[0],
            edge_backend: self.edges[1],
        }
    }

    fn opening(&self) -> Opening {
        Opening {
            isn_client: self.initial[0],
            isn_backend: self.initial[1],
            started: self.started,
            connect_us: self.connect_us,
            tries: self.tries,
            ..Opening::default()
        }
    }
}

/// Why a flow was not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdopted {
    /// Its slot is in use, reserved or changing hands.
    SlotTaken,
    /// The client has another flow.
    ClientTaken,
    /// The flow index has no room.
    IndexFull,
}

impl Tables {
    /// The open flow in a slot.
    pub fn occupant(&self, at: SlotAt) -> Option<Flow> {
        self.flow(at).filter(|flow| flow.ctl.state().is_active())
    }

    /// Takes a flow over into its free slot.
    pub fn adopt(&self, foreign: &Foreign) -> Result<(), NotAdopted> {
        let slots = self.slots_of(foreign.at.pool()).filter(|slots| slots.has(foreign.at.slot()));
        let slots = slots.ok_or(NotAdopted::SlotTaken)?;
        let old = slots.ctl(foreign.at.slot());
        let port_use = self.port_uses(foreign.at.pool())(foreign.at.slot());
        // Neither a slot that is held back is in the ring, nor one that is out of circulation: that
        // one is not to get into it.
        let in_ring = match old.state() {
            State::Free | State::Closed => IN_RING,
            State::Abandoned if port_use == PortUse::Outside => IN_RING,
            State::Abandoned => 0,
            State::Claiming if old.is_retired() && port_use == PortUse::Outside => IN_RING,
            _ => return Err(NotAdopted::SlotTaken),
        };
        let claimed = old.claimed();
        let old_key = slots.key(foreign.at.slot());
        if !slots.swap(foreign.at.slot(), old, claimed) {
            return Err(NotAdopted::SlotTaken);
        }
        if old.state() != State::Free {
            self.leave(old_key, foreign.at, old.generation());
        }
        let ctl = claimed.with_state(foreign.state).with_flags(foreign.flags() | in_ring);
        self.correct_active(foreign.backend, 1);
        slots.publish(foreign.at.slot(), &foreign.record(ctl), &foreign.opening());
        let refusal = match self.enter(foreign.key, foreign.at, ctl.generation()) {
            Entered::Won => return Ok(()),
            Entered::Lost => NotAdopted::ClientTaken,
            Entered::Full => NotAdopted::IndexFull,
        };
        self.withdraw(foreign.at, |flow| flow.ctl.generation() == ctl.generation());
        Err(refusal)
    }

    /// Removes the ports of adopted flows from a pool's ring of free ports. The kernel program
    /// skips a few of them per claim, but gives up on a long run.
    pub fn weed(&self, pool: u16) {
        let _circulation = lock(&self.circulation);
        if let Some(slots) = self.slots_of(pool) {
            slots.weed(&self.fixed.rings, self.insides(pool));
        }
    }

    /// Brings a flow up to date with what the other host has seen of it. No value goes back: what
    /// was seen here in the meantime counts.
    pub fn refresh(&self, current: &Flow, foreign: &Foreign) {
        let Some(slots) = self.slots_of(foreign.at.pool()) else { return };
        let Some((table, index)) = slots.table(foreign.at.slot()) else { return };
        let ahead = |offset: usize, current: u64, new: u64| {
            if new > current {
                table.word64(index, offset).store(new, Ordering::Relaxed);
            }
        };
        ahead(offset_of!(Slot, end_client), current.record.end_client, foreign.ends[0]);
        ahead(offset_of!(Slot, end_backend), current.record.end_backend, foreign.ends[1]);
        let later = |offset: usize, current: u32, new: u32| {
            if seq::before(current, new) {
                table.word32(index, offset).store(new, Ordering::Relaxed);
            }
        };
        later(offset_of!(Slot, ack_client), current.record.ack_client, foreign.acks[0]);
        later(offset_of!(Slot, ack_backend), current.record.ack_backend, foreign.acks[1]);
        later(offset_of!(Slot, edge_client), current.record.edge_client, foreign.edges[0]);
        later(offset_of!(Slot, edge_backend), current.record.edge_backend, foreign.edges[1]);
        later(offset_of!(Slot, last_seen), current.record.last_seen.0, foreign.last_seen.0);
        if foreign.hop.is_known() {
            table.word64(index, offset_of!(Slot, hop)).store(foreign.hop.0, Ordering::Relaxed);
        }
        let mut changed = current.ctl.with_flags(LOOSE);
        if foreign.state != State::Established && current.ctl.state() == State::Established {
            changed = changed.with_state(foreign.state).with_flags(foreign.flags());
        }
        if changed != current.ctl {
            // If it was changed in the meantime, that change is newer.
            _ = slots.swap(foreign.at.slot(), current.ctl, changed);
        }
    }

    /// Ends a flow that has ended on the other host: no RST, no event, no counter but
    /// the open connections of its backend and its client, and the bytes of its backend, which never
    /// go back. Late segments are still translated, as after any end that both sides know of.
    pub fn end_quietly(&self, at: SlotAt, is_meant: impl Fn(&Flow) -> bool) -> bool {
        let ended = self.withdraw(at, is_meant);
        ended.inspect(|flow| self.add_bytes(flow)).is_some()
    }

    /// Takes a flow out of its slot, as if it had never been there.
    fn withdraw(&self, at: SlotAt, is_meant: impl Fn(&Flow) -> bool) -> Option<Flow> {
        let slots = self.slots_of(at.pool())?;
        for _ in 0..4 {
            let flow = self.occupant(at).filter(&is_meant)?;
            if slots.swap(at.slot(), flow.ctl, flow.ctl.closed(Reason::EndedElsewhere as u8)) {
                self.correct_active(flow.record.backend, -1);
                self.uncount_flow(&flow);
                if flow.ctl.flags() & IN_RING == 0 {
                    slots.push(&self.fixed.rings, at.slot());
                }
                return Some(flow);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
