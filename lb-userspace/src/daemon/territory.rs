//! Which listeners this host has while flow sync does not run, and since when: those whose lease
//! holds, or whose address is on an interface if VRRP does not carry it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use lb_common::{layout::Listener, time::Instant};
use log::warn;
use tokio::sync::watch;

use crate::{
    controller::ownership::Ownership,
    sync::mastership::Held,
    sys::netlink::Addresses,
    tables::{Tables, rows::listener_address},
};

/// The pause before the addresses are watched again.
const AGAIN: Duration = Duration::from_secs(1);

/// The addresses on this host's interfaces, and the listeners that it has.
pub struct Territory {
    addresses: watch::Receiver<BTreeSet<IpAddr>>,
    /// By number, with the time since when; `None`: nobody has looked yet.
    ours: Option<BTreeMap<u16, Instant>>,
}

impl Territory {
    /// Begins to watch the addresses, on a thread of its own: a busy kernel makes netlink wait. They
    /// are known when it returns.
    pub async fn watch() -> Result<Territory> {
        let (tell, addresses) = watch::channel(Addresses::open()?.everywhere().await?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("addresses".into());
        thread.spawn(move || runtime.block_on(follow(tell))).context("cannot start the thread addresses")?;
        Ok(Territory::new(addresses))
    }

    /// Nobody has looked yet.
    pub fn new(addresses: watch::Receiver<BTreeSet<IpAddr>>) -> Territory {
        Territory { addresses, ours: None }
    }

    /// Waits until the addresses have changed. Cancel safe.
    pub async fn changed(&mut self) {
        if self.addresses.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Of these addresses those that nobody on this host has: VRRP carries others, and no interface
    /// has them.
    pub fn stranded<'a>(
        &self,
        listens: impl Iterator<Item = &'a SocketAddr>,
        carried: &BTreeMap<IpAddr, String>,
    ) -> BTreeSet<SocketAddr> {
        let addresses = self.addresses.borrow();
        let is_nowhere =
            |listen: &&SocketAddr| !carried.contains_key(&listen.ip()) && !addresses.contains(&listen.ip());
        if carried.is_empty() { BTreeSet::new() } else { listens.filter(is_nowhere).copied().collect() }
    }

    /// Which flows are ours: of the listeners that flow sync has found out, while it runs, and that
    /// this host still has: after a standstill it may not have looked yet. Without it, those that
    /// this host has now. VRRP carries the addresses `carried`.
    pub fn ownership(
        &mut self,
        synced: Option<Synced>,
        listeners: &BTreeMap<u16, Listener>,
        carried: &BTreeMap<IpAddr, String>,
        tables: &Tables,
        now: Instant,
    ) -> Ownership {
        let Some(Synced { master_of, lag }) = synced else { return self.look(listeners, carried, tables, now) };
        let (leases, addresses) = (leases(tables), self.addresses.borrow());
        let held = Held { leases: &leases, addresses: &addresses };
        let found_out = addresses_of(listeners).filter(|(number, _)| master_of.contains_key(number));
        let ours = held.since(found_out, master_of, now, now);
        self.ours = Some(ours.clone());
        Ownership::beside_another(ours, lag)
    }

    /// The listeners that this host has now; VRRP carries the addresses `carried`. What it has at the
    /// first look it has ever had: while no daemon ran, the kernel program noted every packet.
    pub fn look(
        &mut self,
        listeners: &BTreeMap<u16, Listener>,
        carried: &BTreeMap<IpAddr, String>,
        tables: &Tables,
        now: Instant,
    ) -> Ownership {
        let (leases, addresses) = (leases(tables), self.addresses.borrow());
        let held = Held { leases: &leases, addresses: &addresses };
        let listeners: Vec<_> = addresses_of(listeners).collect();
        let is_nowhere = |address: &IpAddr| !carried.contains_key(address) && !addresses.contains(address);
        let routed = listeners.iter().filter(|(_, address)| is_nowhere(address)).map(|(number, _)| *number).collect();
        let new = if self.ours.is_none() { Instant::ZERO } else { now };
        let ours = held.since(listeners.into_iter(), self.ours.as_ref().unwrap_or(&BTreeMap::new()), new, now);
        self.ours = Some(ours.clone());
        Ownership::alone(ours, routed)
    }
}

/// When each lease ends, by address.
fn leases(tables: &Tables) -> BTreeMap<IpAddr, Instant> {
    tables.leases().into_iter().map(|(number, address)| (address, Instant(tables.lease_until(number)))).collect()
}

fn addresses_of(listeners: &BTreeMap<u16, Listener>) -> impl Iterator<Item = (u16, IpAddr)> {
    listeners.iter().map(|(number, listener)| (*number, IpAddr::V4(*listener_address(listener).ip())))
}

/// What flow sync knows while it runs.
#[derive(Clone, Copy)]
pub struct Synced<'a> {
    /// The numbers of the listeners that are ours, and since when.
    pub master_of: &'a BTreeMap<u16, Instant>,
    /// How old the other host's news of an idle flow may be.
    pub lag: Duration,
}

/// Passes on every change until nobody listens any more.
async fn follow(tell: watch::Sender<BTreeSet<IpAddr>>) {
    while !tell.is_closed() {
        if let Err(error) = follow_one(&tell).await {
            warn!("addresses: {error:#}; watching them again");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn follow_one(tell: &watch::Sender<BTreeSet<IpAddr>>) -> Result<()> {
    let mut watched = Addresses::open()?;
    loop {
        let found = watched.everywhere().await?;
        tell.send_if_modified(|known| {
            let changed = *known != found;
            *known = found;
            changed
        });
        tokio::select! {
            changed = watched.changed() => { changed?; }
            () = tell.closed() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use super::*;
    use crate::tables::rows::listener_record;

    const VIP: [u8; 4] = [10, 0, 1, 100];
    const OWN: [u8; 4] = [10, 0, 1, 1];

    #[test]
    fn a_listener_that_neither_vrrp_nor_an_interface_has_is_stranded_if_there_is_vrrp() {
        let (_tell, addresses) = watch::channel(BTreeSet::from([IpAddr::from(OWN)]));
        let territory = Territory { addresses, ours: None };
        let listens = [VIP, OWN, [10, 0, 1, 200]].map(|address| SocketAddr::from((address, 6443)));
        let stranded = |carried: &[[u8; 4]]| {
            let carried = carried.iter().map(|address| (IpAddr::from(*address), "eth0".to_owned())).collect();
            territory.stranded(listens.iter(), &carried).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(stranded(&[]), [], "without VRRP addresses may be routed here");
        assert_eq!(stranded(&[VIP, [10, 0, 1, 200]]), []);
        assert_eq!(stranded(&[VIP]), [listens[2]]);
        assert_eq!(stranded(&[[10, 0, 1, 101]]), [listens[0], listens[2]], "a digit is wrong");
    }

    #[test]
    fn a_listener_is_ours_by_its_lease_or_its_address_from_the_moment_it_came_or_ever_since() {
        let tables = Tables::in_memory().unwrap();
        let (tell, addresses) = watch::channel(BTreeSet::from([IpAddr::from(OWN), IpAddr::from(VIP)]));
        let at = |address: [u8; 4]| listener_record(SocketAddrV4::new(address.into(), 6443), 0);
        let listeners = [(1, at(VIP)), (2, at(OWN))].into();
        let carried = [(VIP.into(), "eth0".to_owned())].into();
        let mut territory = Territory { addresses, ours: None };
        let lease = tables.place_lease(VIP.into()).unwrap();
        let look = |territory: &mut Territory, now| {
            let ownership = territory.look(&listeners, &carried, &tables, Instant(now));
            let held = territory.ours.clone().unwrap();
            assert!(held.keys().all(|number| ownership.holds(*number)));
            let routed = [1, 2].into_iter().filter(|number| ownership.holds(*number) && !held.contains_key(number));
            let routed: Vec<_> = routed.collect();
            (held, routed)
        };
        assert_eq!(look(&mut territory, 10), ([(2, Instant::ZERO)].into(), vec![]), "a lease that does not hold");
        tables.renew_lease(lease, 100);
        assert_eq!(look(&mut territory, 20), ([(1, Instant(20)), (2, Instant::ZERO)].into(), vec![]));
        assert_eq!(look(&mut territory, 99), ([(1, Instant(20)), (2, Instant::ZERO)].into(), vec![]));
        assert_eq!(look(&mut territory, 100), ([(2, Instant::ZERO)].into(), vec![]));
        tell.send_replace(BTreeSet::new());
        assert_eq!(look(&mut territory, 101), ([].into(), vec![2]), "on no interface: it may be routed here");
        // What flow sync knew goes on.
        let master_of = [(1, Instant(70))].into();
        let synced = Synced { master_of: &master_of, lag: Duration::ZERO };
        let mut ownership = |now| territory.ownership(Some(synced), &listeners, &carried, &tables, Instant(now));
        tables.renew_lease(lease, 300);
        let ours = ownership(200);
        assert!(ours.holds(1) && !ours.holds(2));
        assert!(!ownership(300).holds(1), "the lease is over, and flow sync has not looked yet");
        tables.renew_lease(lease, 400);
        ownership(301);
        assert_eq!(look(&mut territory, 302), ([(1, Instant(70))].into(), vec![2]));
    }
}
