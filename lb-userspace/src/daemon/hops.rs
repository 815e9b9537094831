//! Next hops towards the backends: from what netlink reports to the word in each pool.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use anyhow::Result;
use lb_common::layout::Hop;
use log::warn;

use super::{interfaces::Wanted, ways::Ways};
use crate::{
    dataplane::{Dataplane, Requested},
    sys::netlink::{Change, Destination, NextHop, Watch},
    tables::{Installed, Tables, rows::pool_backend},
};

/// What is known of the neighbourhood.
pub struct Hops {
    watch: Watch,
    /// By backend; `None` for one whose neighbour is known not to answer.
    hops: HashMap<IpAddr, Option<NextHop>>,
    /// The names of the links of this network namespace by ifindex.
    links: HashMap<u32, String>,
    /// The ways to the clients.
    ways: Ways,
}

impl Hops {
    /// Nothing is known before the first change.
    pub fn new(watch: Watch) -> Hops {
        Hops { watch, hops: HashMap::new(), links: HashMap::new(), ways: Ways::default() }
    }

    /// Asks for the next hops of all backends that have a pool, tombstones included.
    pub fn want(&self, installed: &Installed) {
        let backends: BTreeSet<_> = installed.pools.values().map(|pool| IpAddr::V4(*pool_backend(pool).ip())).collect();
        self.watch.want(backends.into_iter().map(|address| Destination { address, interface: None }).collect());
    }

    /// The word for a pool towards `backend`. `None` before netlink has reported it: what an
    /// earlier run has found out is still better than nothing. An unknown hop while the neighbour
    /// does not answer, or answers on an interface that has no number yet.
    pub fn hop(&self, tables: &Tables, backend: IpAddr) -> Option<Hop> {
        let hop = self.hops.get(&backend)?;
        let numbered = hop.and_then(|hop| Some((hop.mac, tables.interface_number(hop.ifindex)?)));
        Some(numbered.map_or(Hop::default(), |(mac, interface)| Hop::new(mac, interface)))
    }

    /// Takes in a change. An interface through which a backend is reached may not be attached yet;
    /// the backend's answers come in there, so it is attached now. A link whose name is wanted may be
    /// new, or made anew: it gets what the one before had.
    pub fn change(&mut self, change: Change, dataplane: &mut Dataplane, clsact: bool, wanted: &Wanted) -> Result<()> {
        match change {
            Change::NextHop { destination, hop: Some(hop) } => {
                self.hops.insert(destination.address, Some(hop));
                self.attach_for(hop.ifindex, dataplane, clsact);
            }
            Change::NextHop { destination, hop: None } => {
                self.hops.insert(destination.address, None);
            }
            Change::Link { ifindex, name, mac, up: _ } => {
                self.links.insert(ifindex, name.clone());
                if !dataplane.link(ifindex, &name, mac)?
                    && let Some(requested) = wanted.interfaces.get(&name)
                {
                    dataplane.attach_beside(&name, *requested, clsact)?;
                }
                if wanted.guarded.contains(&name) {
                    dataplane.guard(&name, clsact)?;
                }
                if self.hops.values().flatten().any(|hop| hop.ifindex == ifindex) {
                    self.attach_for(ifindex, dataplane, clsact);
                }
                // It may have joined a bond, or left one.
                dataplane.renew_members()?;
            }
            Change::Ways { news } => return self.ways.change(news, dataplane.tables()),
            Change::LinkGone { ifindex } => {
                self.links.remove(&ifindex);
                for hop in self.hops.values_mut() {
                    *hop = hop.filter(|hop| hop.ifindex != ifindex);
                }
                dataplane.link_gone(ifindex)?;
                dataplane.renew_members()?;
            }
        }
        self.ways.renew(dataplane.tables())
    }

    fn attach_for(&self, ifindex: u32, dataplane: &mut Dataplane, clsact: bool) {
        if dataplane.tables().interface_number(ifindex).is_some() {
            return;
        }
        // The name is not known before the link is reported; then this is called again.
        let Some(name) = self.links.get(&ifindex) else { return };
        if let Err(error) = dataplane.attach_beside(name, Requested::Auto, clsact) {
            warn!("backends are reached through {name}, but: {error:#}");
        }
    }

    /// Writes the next hop of every pool; returns the pools, and whether theirs is known.
    pub fn write(&self, tables: &Tables, installed: &Installed) -> Vec<(u16, bool)> {
        let write = |(number, pool): (&u16, &_)| {
            let before = tables.pool(*number).hop;
            let hop = self.hop(tables, IpAddr::V4(*pool_backend(pool).ip())).unwrap_or(before);
            if hop != before {
                tables.set_pool_hop(*number, hop);
            }
            (*number, hop.is_known())
        };
        installed.pools.iter().map(write).collect()
    }
}
