//! By which next hops clients are reached: from what netlink reports to the table that the kernel
//! program asks, and to the flows that are open.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::Result;
use ipnet::IpNet;
use lb_common::layout::{Hop, MAX_WAYS};
use log::info;

use crate::{
    sys::netlink::{NextHop, Way},
    tables::Tables,
};

/// What is known of the ways.
#[derive(Debug, Default)]
pub struct Ways {
    /// As netlink reported them.
    known: BTreeMap<IpNet, Way>,
    /// As they were written.
    written: Written,
    /// The last known next hop of each prefix: flows keep it while none is known.
    last: BTreeMap<IpNet, Hop>,
}

/// The table of ways, as the kernel program reads it.
#[derive(Debug, Default)]
struct Written {
    hops: BTreeMap<IpNet, Hop>,
    lengths: BTreeSet<u8>,
}

impl Written {
    /// The longest prefix that an address is in, and its next hop.
    fn way_to(&self, address: IpAddr) -> Option<(IpNet, Hop)> {
        self.lengths.iter().rev().find_map(|length| {
            let prefix = IpNet::new(address, *length).ok()?.trunc();
            self.hops.get(&prefix).map(|hop| (prefix, *hop))
        })
    }

    /// The next hop that a flow gets in place of `current`, because those in `left` are no longer
    /// what they were. A flow stays on its interface, unless the very route that led through its
    /// next hop leads by another one now; one whose neighbour is no longer known stays with it
    /// until its client's frames come from another sender.
    fn instead(&self, client: IpAddr, current: Hop, left: &Left) -> Option<Hop> {
        let old = current.bare();
        if !left.hops.contains(&old.0) {
            return None;
        }
        let leads_there = |(prefix, way): &(IpNet, Hop)| {
            way.is_known() && (way.interface() == old.interface() || left.routes.contains(&(*prefix, old.0)))
        };
        let way = self.way_to(client).filter(leads_there);
        let new = way.map_or(old, |(_, way)| way.of_neighbour());
        (new != current).then_some(new)
    }
}

/// What has changed.
#[derive(Debug, Default)]
struct Left {
    /// Next hops that lead no longer where they led.
    hops: BTreeSet<u64>,
    /// Of routes: each with its next hop before.
    routes: BTreeSet<(IpNet, u64)>,
}

impl Left {
    fn changed(&mut self, prefix: IpNet, before: Hop) {
        self.hops.insert(before.0);
        // A single address is a neighbour, which the kernel may know on two interfaces.
        if prefix.prefix_len() < prefix.max_prefix_len() {
            self.routes.insert((prefix, before.0));
        }
    }
}

impl Ways {
    /// Takes in news, writes them, and redirects the flows that they concern.
    pub fn change(&mut self, news: Vec<(IpNet, Option<Way>)>, tables: &Tables) -> Result<()> {
        let ours = news.into_iter().filter(|(prefix, _)| prefix.addr().is_ipv4());
        let mut prefixes = Vec::new();
        for (prefix, way) in ours {
            match way {
                Some(way) => _ = self.known.insert(prefix, way),
                None => _ = self.known.remove(&prefix),
            }
            prefixes.push(prefix);
        }
        self.write(prefixes, tables)
    }

    /// Writes everything again: an interface may have got a number, or lost it.
    pub fn renew(&mut self, tables: &Tables) -> Result<()> {
        self.write(self.known.keys().copied().collect(), tables)
    }

    fn write(&mut self, prefixes: Vec<IpNet>, tables: &Tables) -> Result<()> {
        let mut left = Left::default();
        for prefix in prefixes {
            let hop = self.known.get(&prefix).map(|way| numbered(way, tables));
            let before = self.written.hops.get(&prefix).copied();
            if hop == before {
                continue;
            }
            tables.set_way(prefix, hop)?;
            let now = hop.unwrap_or_default();
            let last = if now.is_known() { self.last.insert(prefix, now) } else { None };
            let earlier = [before.filter(|hop| hop.is_known()), last.filter(|hop| *hop != now)];
            earlier.into_iter().flatten().for_each(|hop| left.changed(prefix, hop));
            match hop {
                Some(hop) => _ = self.written.hops.insert(prefix, hop),
                None => _ = self.written.hops.remove(&prefix),
            }
            self.written.lengths.insert(prefix.prefix_len());
        }
        if self.last.len() > 2 * MAX_WAYS as usize {
            self.last.retain(|prefix, _| self.known.contains_key(prefix));
        }
        if !left.hops.is_empty() {
            let redirected = tables.redirect(|client, hop| self.written.instead(client, hop, &left));
            if redirected > 0 {
                info!("{redirected} connections: the next hop towards their clients has changed");
            }
        }
        Ok(())
    }
}

/// The word for a way; unknown if it leads by an interface without a number: the program is not
/// attached there.
fn numbered(way: &Way, tables: &Tables) -> Hop {
    match way {
        Way::Through(NextHop { ifindex, mac }) => {
            tables.interface_number(*ifindex).map_or(Hop::default(), |number| Hop::new(*mac, number))
        }
        Way::Unknown => Hop::default(),
    }
}

#[cfg(test)]
mod tests;
