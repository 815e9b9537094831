//! Which virtual addresses and leases this host has, and what has to be done about them when the
//! configuration, a machine or the kernel changes that. Nothing here touches a table or an
//! interface: every decision is a list of [`HoldingOrder`]s for the shell, to be carried out in
//! order.
//!
//! A lease says until when this host answers for an address; its record is in the kernel program's
//! table for as long as the address is VRRP's. An address that the configuration drops is *leaving*
//! until the kernel has taken it off the interface: its lease stays, ended, so that the host does
//! not answer for it in the meantime. After that the address is the operator's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::time::Instant;

use super::group::InstanceId;
use crate::tables::Claims;

/// Something that the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldingOrder {
    /// Set the end of a lease; zero: this host does not answer for the address.
    Renew {
        /// The lease's record.
        lease: u16,
        /// Its new end.
        until: Instant,
    },
    /// Remove the record of a lease: the address is the operator's own.
    Forget {
        /// The lease's record.
        lease: u16,
    },
    /// Put addresses on an interface and keep them there.
    PutOn {
        /// The instance that holds them.
        id: InstanceId,
        /// The interface.
        interface: String,
        /// The addresses.
        addresses: Vec<IpNet>,
    },
    /// Take addresses off an interface, if they are there.
    TakeOff {
        /// The interface.
        interface: String,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
}

use HoldingOrder::{Forget, PutOn, Renew, TakeOff};

/// How long putting addresses on an interface may take. Another process may hold the kernel's lock
/// on network configuration for longer; then the address is better off on another host.
pub const HELD_WITHIN: Duration = Duration::from_secs(3);

/// A lease as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The address.
    pub address: IpAddr,
    /// The number of the record.
    pub number: u16,
    /// The lease's end.
    pub until: Instant,
    /// How often other hosts have claimed the address.
    pub claims: u32,
}

/// Other hosts have claimed an address since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewClaim {
    /// The address.
    pub address: IpAddr,
    /// The MAC address of the host that claimed it last.
    pub by: [u8; 6],
    /// How often.
    pub times: u32,
}

/// Whether an instance continues the mastership of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumption {
    /// There is nothing to continue.
    None,
    /// The leases still hold.
    Holds,
    /// The leases have ended since the instance began.
    Lapsed,
}

/// A change of an instance's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressChange {
    /// What to do about the addresses that the instance no longer has.
    pub orders: Vec<HoldingOrder>,
    /// Whether its addresses differ from those before.
    pub differs: bool,
}

/// The virtual addresses and leases of all instances.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    configured: BTreeSet<IpAddr>,
    /// Those of them that the host has as its own: they have no lease.
    own: BTreeSet<IpAddr>,
    leaving: BTreeSet<IpAddr>,
    instances: BTreeMap<InstanceId, Holding>,
}

/// Those of one instance.
#[derive(Clone, Debug, Default)]
struct Holding {
    interface: String,
    addresses: Vec<IpNet>,
    /// Its leases; their ends are in the table only.
    leases: Vec<LeaseRecord>,
    /// An earlier run was MASTER, and its leases still held when the instance began.
    resumes: bool,
    /// Orders to put addresses on that the kernel has not answered yet.
    asked: u32,
    /// The kernel has put them all on.
    stands: bool,
    /// When the last of them is overdue.
    overdue_at: Option<Instant>,
}

impl Holding {
    fn take_off(&self) -> HoldingOrder {
        TakeOff { interface: self.interface.clone(), addresses: bare(&self.addresses) }
    }

    /// Whether every address has a lease, and all leases hold.
    fn is_held(&self, holds: impl Fn(&LeaseRecord) -> bool) -> bool {
        let is_held = |address: &IpNet| self.leases.iter().any(|lease| lease.address == address.addr() && holds(lease));
        !self.addresses.is_empty() && self.addresses.iter().all(is_held)
    }

    fn renew(&self, until: Instant) -> impl Iterator<Item = HoldingOrder> {
        self.leases.iter().map(move |lease| Renew { lease: lease.number, until })
    }
}

impl Holdings {
    /// The addresses of all instances of the configuration.
    pub fn configured(&self) -> &BTreeSet<IpAddr> {
        &self.configured
    }

    /// A new configuration has these addresses. Instances end, change and begin after this.
    pub fn configure(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.configured = addresses.into_iter().collect();
    }

    /// These addresses of the host are its own: VRRP leaves them alone. Returns whether that changes
    /// which of the configured ones have a lease; then [`enter`](Self::enter) the leases again.
    pub fn find_own(&mut self, own: impl Iterator<Item = IpAddr>) -> bool {
        let own = own.filter(|address| self.configured.contains(address)).collect();
        let differs = self.own != own;
        self.own = own;
        differs
    }

    /// Whether an address is the host's own.
    pub fn is_own(&self, address: &IpAddr) -> bool {
        self.own.contains(address)
    }

    /// An instance begins. What an earlier run has left is taken away, unless that run was MASTER
    /// and its leases still hold.
    pub fn begin(
        &mut self,
        id: InstanceId,
        interface: &str,
        addresses: &[IpNet],
        leases: Vec<LeaseRecord>,
        now: Instant,
    ) -> Vec<HoldingOrder> {
        let interface = interface.to_owned();
        let mut holding = Holding { interface, addresses: addresses.to_vec(), leases, ..Holding::default() };
        holding.resumes = holding.is_held(|lease| lease.until > now);
        let resumes = holding.resumes;
        let mut orders = Vec::new();
        if !resumes {
            orders.extend(holding.renew(Instant::ZERO));
            orders.push(holding.take_off());
        }
        self.instances.insert(id, holding);
        orders
    }

    /// An instance gets other addresses on the same interface. [`enter`](Self::enter) their leases
    /// afterwards.
    pub fn change(&mut self, id: InstanceId, addresses: &[IpNet]) -> AddressChange {
        let Some(holding) = self.instances.get_mut(&id) else { return AddressChange::default() };
        let differs = holding.addresses != addresses;
        holding.stands &= !differs;
        holding.addresses = addresses.to_vec();
        let kept: BTreeSet<_> = bare(addresses).into_iter().collect();
        let gone: Vec<_> = holding.leases.iter().filter(|lease| !kept.contains(&lease.address)).collect();
        let mut orders: Vec<_> = gone.iter().map(|lease| Renew { lease: lease.number, until: Instant::ZERO }).collect();
        let gone: Vec<_> = gone.iter().map(|lease| lease.address).collect();
        if !gone.is_empty() {
            orders.push(TakeOff { interface: holding.interface.clone(), addresses: gone.clone() });
        }
        self.leave(gone);
        AddressChange { orders, differs }
    }

    /// The leases of an instance's addresses.
    pub fn enter(&mut self, id: InstanceId, leases: Vec<LeaseRecord>) {
        if let Some(holding) = self.instances.get_mut(&id) {
            holding.leases = leases;
        }
    }

    /// An instance is gone. Its addresses are taken away whether it was MASTER or not.
    pub fn end(&mut self, id: InstanceId) -> Vec<HoldingOrder> {
        let Some(holding) = self.instances.remove(&id) else { return Vec::new() };
        self.leave(bare(&holding.addresses));
        vec![holding.take_off()]
    }

    /// Addresses that another instance has now do not leave.
    fn leave(&mut self, addresses: Vec<IpAddr>) {
        self.leaving.extend(addresses.into_iter().filter(|address| !self.configured.contains(address)));
    }

    /// The kernel has taken addresses off their interface.
    pub fn released(&mut self, addresses: &[IpAddr]) {
        addresses.iter().for_each(|address| _ = self.leaving.remove(address));
    }

    /// Removes the leases of addresses that are the operator's own now: those that have left, those of
    /// an earlier run whose instance is no longer configured, and those that the host has as its own.
    pub fn forget_strangers(&self, leases: impl IntoIterator<Item = (u16, IpAddr)>) -> Vec<HoldingOrder> {
        let is_stranger = |address: &IpAddr| {
            self.is_own(address) || !self.configured.contains(address) && !self.leaving.contains(address)
        };
        let strangers = leases.into_iter().filter(|(_, address)| is_stranger(address));
        strangers.map(|(lease, _)| Forget { lease }).collect()
    }

    /// The leases of an instance, by number.
    pub fn leases(&self, id: InstanceId) -> impl Iterator<Item = u16> {
        self.instances.get(&id).into_iter().flat_map(|holding| &holding.leases).map(|lease| lease.number)
    }

    /// Whether an instance waits to continue the mastership of an earlier run.
    pub fn resumes(&self, id: InstanceId) -> bool {
        self.instances.get(&id).is_some_and(|holding| holding.resumes)
    }

    /// Decides, once, whether an instance continues the mastership of an earlier run. `ends` gives
    /// the end of a lease.
    pub fn resume(&mut self, id: InstanceId, ends: impl Fn(u16) -> Instant, now: Instant) -> Resumption {
        let Some(holding) = self.instances.get_mut(&id) else { return Resumption::None };
        if !std::mem::take(&mut holding.resumes) {
            return Resumption::None;
        }
        if holding.is_held(|lease| ends(lease.number) > now) { Resumption::Holds } else { Resumption::Lapsed }
    }

    /// Sets the end of all leases of an instance.
    pub fn renew(&self, id: InstanceId, until: Instant) -> Vec<HoldingOrder> {
        self.instances.get(&id).map_or_else(Vec::new, |holding| holding.renew(until).collect())
    }

    /// Puts an instance's addresses on its interface. Where they stand already, only their
    /// lifetimes change, and that may wait.
    pub fn hold(&mut self, id: InstanceId, now: Instant) -> Vec<HoldingOrder> {
        let Some(holding) = self.instances.get_mut(&id) else { return Vec::new() };
        holding.asked += 1;
        if !holding.stands {
            holding.overdue_at = Some(now + HELD_WITHIN);
        }
        vec![PutOn { id, interface: holding.interface.clone(), addresses: holding.addresses.clone() }]
    }

    /// The kernel has answered an order to put addresses on: they are all there, or not.
    pub fn answered(&mut self, id: InstanceId, all_there: bool) {
        if let Some(holding) = self.instances.get_mut(&id) {
            holding.asked = holding.asked.saturating_sub(1);
            if holding.asked == 0 {
                // Otherwise they may have been taken off after the order.
                let is_awaited = holding.overdue_at.take().is_some();
                holding.stands = all_there && (holding.stands || is_awaited);
            }
        }
    }

    /// When the first answer is overdue.
    pub fn deadline(&self) -> Option<Instant> {
        self.instances.values().filter_map(|holding| holding.overdue_at).min()
    }

    /// The instances whose addresses are not on the interface in time. Each is told once.
    pub fn overdue(&mut self, now: Instant) -> Vec<InstanceId> {
        let is_overdue = |holding: &mut Holding| holding.overdue_at.take_if(|at| *at <= now).is_some();
        self.instances.iter_mut().filter_map(|(id, holding)| is_overdue(holding).then_some(*id)).collect()
    }

    /// Takes an instance's addresses off its interface: first the leases, which count at once.
    pub fn release(&mut self, id: InstanceId) -> Vec<HoldingOrder> {
        let Some(holding) = self.instances.get_mut(&id) else { return Vec::new() };
        holding.overdue_at = None;
        holding.stands = false;
        holding.renew(Instant::ZERO).chain([holding.take_off()]).collect()
    }

    /// The instance that has one of these addresses.
    pub fn holder_of(&self, addresses: &[IpAddr]) -> Option<InstanceId> {
        let has = |holding: &Holding| holding.addresses.iter().any(|it| addresses.contains(&it.addr()));
        self.instances.iter().find(|(_, holding)| has(holding)).map(|(id, _)| *id)
    }

    /// The claims of other hosts since the last call. `claims` gives all claims of a lease's
    /// address.
    pub fn new_claims(&mut self, id: InstanceId, claims: impl Fn(u16) -> Claims) -> Vec<NewClaim> {
        let Some(holding) = self.instances.get_mut(&id) else { return Vec::new() };
        let mut new = Vec::new();
        for lease in &mut holding.leases {
            let Claims { count, by } = claims(lease.number);
            let times = count.wrapping_sub(lease.claims);
            if times > 0 {
                new.push(NewClaim { address: lease.address, by, times });
            }
            lease.claims = count;
        }
        new
    }
}

/// Addresses without their prefix lengths.
fn bare(addresses: &[IpNet]) -> Vec<IpAddr> {
    addresses.iter().map(IpNet::addr).collect()
}

#[cfg(test)]
mod tests;
