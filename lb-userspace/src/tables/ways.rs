//! The next hops towards clients: those that this host knows, and those in the flows.

use std::{mem::offset_of, net::IpAddr, sync::atomic::Ordering};

use anyhow::Result;
use ipnet::IpNet;
use lb_common::{
    address::to_mapped,
    layout::{Hop, Slot},
};

use super::Tables;

/// A prefix as a key of WAYS: its length in bits, and its address.
pub type WayKey = (u32, [u8; 16]);

/// The key of a prefix; IPv4 is mapped into IPv6.
pub fn way_key(prefix: IpNet) -> WayKey {
    let mapped = if prefix.addr().is_ipv4() { 96 } else { 0 };
    (u32::from(prefix.prefix_len()) + mapped, to_mapped(prefix.addr()))
}

impl Tables {
    /// Enters the next hop towards a prefix: a known one, or one that is not known. `None`: the
    /// table says nothing of the prefix.
    pub fn set_way(&self, prefix: IpNet, hop: Option<Hop>) -> Result<()> {
        self.maps.set_way(way_key(prefix), hop)
    }

    /// Removes what an earlier run has entered.
    pub fn clear_ways(&self) -> Result<()> {
        self.maps.ways()?.into_iter().try_for_each(|key| self.maps.set_way(key, None))
    }

    /// Gives every open flow the next hop towards its client that `new` names for the client and
    /// the one that it has. Returns how many flows have got another one. A hop that the kernel
    /// program changes at the same moment stays: it is newer.
    pub fn redirect(&self, new: impl Fn(IpAddr, Hop) -> Option<Hop>) -> usize {
        let mut redirected = 0;
        for (pool, _) in self.pools() {
            let Some(slots) = self.slots_of(pool) else { continue };
            for head in slots.clone().heads(0..slots.len()) {
                let Some((table, index)) = slots.table(head.flow.at.slot()) else { continue };
                let word = table.word64(index, offset_of!(Slot, hop));
                let old = word.load(Ordering::Relaxed);
                let client = head.key.client([0; 16]).ip();
                let Some(hop) = new(client, Hop(old)) else { continue };
                let swapped = word.compare_exchange(old, hop.0, Ordering::Relaxed, Ordering::Relaxed);
                redirected += usize::from(swapped.is_ok());
            }
        }
        redirected
    }
}
