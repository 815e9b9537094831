//! What the core reads of the maps while it works: memory, shared with the kernel program. The seam between the core and
//! the mapped tables, so that tests can be their own tables.

use std::net::SocketAddr;

use lb_common::{
    clients::ClientCount,
    flow::Key,
    layout::{Backend, Opening, Slot},
    slot::Ctl,
    time::{Instant, Ticks},
};

/// A slot as a half-open ring names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The pool.
    pub pool: u16,
    /// The slot in it.
    pub slot: u16,
}

/// A flow at one moment: whoever acts on it swaps `ctl` first, and does nothing if that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowAt {
    /// Where it is.
    pub place: Place,
    /// Its word as it was read.
    pub ctl: Ctl,
}

/// The hot line of a slot, as far as a sweep needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Where and what it is.
    pub flow: FlowAt,
    /// The client and its listener, as in the flow index.
    pub key: Key,
    /// When the last packet was seen.
    pub last_seen: Ticks,
    /// Its backend.
    pub backend: u16,
}

/// The mapped tables.
pub trait View {
    /// A record of BACKENDS.
    fn backend(&self, number: u16) -> Backend;
    /// Until when a backend gets less than its share; if that is past it does not.
    fn slow_until(&self, backend: u16) -> Instant;
    /// When anything came from a pool's backend last; up to `layout::HEARD_STEP` behind.
    fn heard(&self, pool: u16) -> Ticks;
    /// When a client's segment was sent on to a pool's backend last, likewise.
    fn sent(&self, pool: u16) -> Ticks;
    /// How many half-open flows a service has had so far, modulo 2^32.
    fn half_open_head(&self, service: u16) -> u32;
    /// The cells of a service's ring of half-open flows: place and the low 31 bits of the generation. Most are stale.
    fn half_open(&self, service: u16, each: &mut dyn FnMut(Place, u32));
    /// The words of a service's clients; none if it never had a limit.
    fn clients(&self, service: u16, each: &mut dyn FnMut(ClientCount));
    /// How many slots a pool has; 0 if there is no such pool.
    fn slots(&self, pool: u16) -> u32;
    /// Those of the slots `from..to` of a pool that hold a flow or are held back.
    fn heads(&self, pool: u16, from: u32, to: u32, each: &mut dyn FnMut(Head));
    /// A slot's record; nothing while it changes hands.
    fn slot(&self, place: Place) -> Option<(Ctl, Slot)>;
    /// The rest of a slot, likewise.
    fn opening(&self, place: Place) -> Option<(Ctl, Opening)>;
    /// The client of the flow in a slot.
    fn client(&self, place: Place) -> Option<SocketAddr>;
}

/// How many connections are open to a backend.
pub fn active(view: &impl View, backend: u16) -> u32 {
    // Read between two changes it may be one below zero for an instant.
    view.backend(backend).active.cast_signed().max(0).cast_unsigned()
}
