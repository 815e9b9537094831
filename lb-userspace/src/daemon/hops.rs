//! Next hops towards the backends: from what netlink reports to the word in each pool.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use anyhow::Result;
use lb_common::{layout::Hop, time::Instant};
use log::warn;

use super::{interfaces::Wanted, ways::Ways};
use crate::{
    dataplane::{Dataplane, Requested},
    sys::{
        clock, netdev,
        netlink::{Change, Destination, NextHop, Watch},
    },
    tables::{Installed, Tables, rows::pool_backend},
};

/// For how long backends keep a next hop that is gone: interfaces blink, lose their addresses for a
/// moment, and are made anew. A client that comes meanwhile sends its SYN again; without any next
/// hop it would be refused.
const KEPT: Duration = Duration::from_secs(1);

/// The backends whose next hop is gone, and until when they keep it all the same.
#[derive(Debug, Default)]
struct Gone(HashMap<IpAddr, Instant>);

impl Gone {
    fn went(&mut self, backend: IpAddr, now: Instant) {
        self.0.insert(backend, now + KEPT);
    }

    fn came(&mut self, backend: &IpAddr) {
        self.0.remove(backend);
    }

    fn keeps(&self, backend: &IpAddr) -> bool {
        self.0.contains_key(backend)
    }

    fn forget(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|_, until| *until > now);
        self.0.len() != before
    }
}

/// What is known of the neighbourhood.
pub struct Hops {
    watch: Watch,
    /// By backend; `None` for one whose neighbour is known not to answer.
    hops: HashMap<IpAddr, Option<NextHop>>,
    gone: Gone,
    /// The names of the links of this network namespace by ifindex.
    links: HashMap<u32, String>,
    /// The ways to the clients.
    ways: Ways,
}

impl Hops {
    /// Nothing is known before the first change.
    pub fn new(watch: Watch) -> Hops {
        Hops { watch, hops: HashMap::new(), gone: Gone::default(), links: HashMap::new(), ways: Ways::default() }
    }

    /// Asks for the next hops of all backends that have a pool, tombstones included.
    pub fn want(&self, installed: &Installed) {
        let backends: BTreeSet<_> = installed.pools.values().map(|pool| IpAddr::V4(*pool_backend(pool).ip())).collect();
        self.watch.want(backends.into_iter().map(|address| Destination { address, interface: None }).collect());
    }

    /// The word for a pool towards `backend`. `None` before netlink has reported it, and for a
    /// moment after it is gone: what was found out before is still better than nothing. An unknown
    /// hop while the neighbour does not answer, or answers on an interface that has no number yet.
    pub fn hop(&self, tables: &Tables, backend: IpAddr) -> Option<Hop> {
        let hop = self.hops.get(&backend)?;
        if self.gone.keeps(&backend) {
            return None;
        }
        let numbered = hop.and_then(|hop| Some((hop.mac, tables.interface_number(hop.ifindex)?)));
        Some(numbered.map_or(Hop::default(), |(mac, interface)| Hop::new(mac, interface)))
    }

    /// Takes in a change. An interface through which a backend is reached may not be attached yet;
    /// the backend's answers come in there, so it is attached now. A link whose name is wanted may be
    /// new, or made anew: it gets what the one before had.
    pub fn change(
        &mut self,
        change: Change,
        dataplane: &mut Dataplane,
        clsact: bool,
        wanted: &mut Wanted,
    ) -> Result<()> {
        match change {
            Change::NextHop { destination, hop: Some(hop) } => {
                self.hops.insert(destination.address, Some(hop));
                self.gone.came(&destination.address);
                self.attach_for(hop.ifindex, dataplane, clsact, wanted);
            }
            Change::NextHop { destination, hop: None } => {
                if self.hops.insert(destination.address, None).flatten().is_some() {
                    self.gone.went(destination.address, clock::monotonic());
                }
            }
            Change::Link { ifindex, name, mac, mtu, up: _, asked } => {
                self.links.insert(ifindex, name.clone());
                if !dataplane.link(ifindex, &name, mac, mtu)?
                    && let Some(requested) = wanted.interfaces.get(&name)
                {
                    dataplane.attach_beside(&name, *requested, clsact)?;
                }
                if wanted.guards(&name, asked) {
                    // Those of containers come and go.
                    dataplane.guard(&name, clsact).or_else(|error| if_there(&name, error))?;
                } else if wanted.guards_no_more(&name, asked) {
                    dataplane.guard_only(&wanted.guarded)?;
                }
                if self.hops.values().flatten().any(|hop| hop.ifindex == ifindex) {
                    self.attach_for(ifindex, dataplane, clsact, wanted);
                }
                // It may have joined a bond, or left one.
                dataplane.renew_members()?;
            }
            Change::Ways { news } => return self.ways.change(news, dataplane.tables()),
            Change::LinkGone { ifindex } => {
                if let Some(name) = self.links.remove(&ifindex) {
                    _ = wanted.is_gone(&name);
                }
                for (backend, hop) in &mut self.hops {
                    if hop.take_if(|hop| hop.ifindex == ifindex).is_some() {
                        self.gone.went(*backend, clock::monotonic());
                    }
                }
                dataplane.link_gone(ifindex)?;
                dataplane.renew_members()?;
            }
        }
        self.renew(dataplane.tables())
    }

    /// An interface may have got a number, or lost it.
    pub fn renew(&mut self, tables: &Tables) -> Result<()> {
        self.ways.renew(tables)
    }

    fn attach_for(&self, ifindex: u32, dataplane: &mut Dataplane, clsact: bool, wanted: &Wanted) {
        if dataplane.tables().interface_number(ifindex).is_some() {
            return;
        }
        // The name is not known before the link is reported; then this is called again.
        let Some(name) = self.links.get(&ifindex) else { return };
        let requested = wanted.interfaces.get(name).copied().unwrap_or(Requested::Auto);
        if let Err(error) = dataplane.attach_beside(name, requested, clsact) {
            warn!("backends are reached through {name}, but: {error:#}");
        }
    }

    /// Forgets what has been gone for long enough. Returns whether there is something to
    /// [`write`](Self::write).
    pub fn forget(&mut self, now: Instant) -> bool {
        self.gone.forget(now)
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

/// An error about an interface that is gone by now is none.
fn if_there(name: &str, error: anyhow::Error) -> Result<()> {
    if netdev::index_of(name).is_ok() { Err(error) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_hop_that_is_gone_is_kept_for_a_moment_and_one_that_is_back_is_not_gone() {
        let (mut gone, now) = (Gone::default(), Instant(7_000_000_000));
        let [one, two] = [IpAddr::from([10, 0, 1, 10]), IpAddr::from([10, 0, 1, 11])];
        gone.went(one, now);
        gone.went(two, now + KEPT / 2);
        assert_eq!((gone.forget(now + KEPT / 2), gone.keeps(&one)), (false, true));
        assert_eq!((gone.forget(now + KEPT), gone.keeps(&one), gone.keeps(&two)), (true, false, true));
        gone.came(&two);
        assert_eq!((gone.keeps(&two), gone.forget(now + 2 * KEPT)), (false, false));
    }
}
