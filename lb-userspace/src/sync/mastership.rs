//! Which listeners this host is master of, and since when. Without I/O: leases and addresses are
//! arguments.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_common::time::Instant;

use super::mirror::Directory;
use crate::tables::Tables;

/// How long a host that has lost an address still sends what begins and ends on it: until its
/// clients' packets reach the other host. With advertisements a second apart that takes up to 1 s.
const LINGER: Duration = Duration::from_secs(2);

/// The addresses that this host answers for: one that VRRP carries, while its lease holds; any
/// other, while an interface holds it.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    /// By address that VRRP carries: when its lease ends.
    pub leases: &'a BTreeMap<IpAddr, Instant>,
    /// The addresses on this host's interfaces.
    pub addresses: &'a BTreeSet<IpAddr>,
}

impl Held<'_> {
    /// Whether this host answers for an address.
    pub fn holds(&self, address: IpAddr, now: Instant) -> bool {
        match self.leases.get(&address) {
            Some(until) => *until > now,
            None => self.addresses.contains(&address),
        }
    }

    /// The listeners that are held, with the time since when: what was known, or `new`.
    pub fn since(
        &self,
        listeners: impl Iterator<Item = (u16, IpAddr)>,
        known: &BTreeMap<u16, Instant>,
        new: Instant,
        now: Instant,
    ) -> BTreeMap<u16, Instant> {
        let held = listeners.filter(|(_, address)| self.holds(*address, now));
        held.map(|(number, _)| (number, known.get(&number).copied().unwrap_or(new))).collect()
    }
}

/// The listeners that are ours, and those that were until a moment ago.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mastership {
    /// The numbers of our listeners, and since when they are ours.
    since: BTreeMap<u16, Instant>,
    /// The numbers of listeners that were ours, and until when that matters.
    lingering: BTreeMap<u16, Instant>,
}

impl Mastership {
    /// The numbers of our listeners, and since when they are ours.
    pub fn since(&self) -> &BTreeMap<u16, Instant> {
        &self.since
    }

    /// The mastership that follows from the addresses held now.
    pub fn next(&self, directory: &Directory, held: Held<'_>, now: Instant) -> Mastership {
        let listeners = directory.listeners.iter().map(|(address, at)| (at.number, address.ip()));
        let since = held.since(listeners, &self.since, now, now);
        let mut lingering = self.lingering.clone();
        let lost = self.since.keys().filter(|number| !since.contains_key(number));
        lingering.extend(lost.map(|number| (*number, now + LINGER)));
        lingering.retain(|number, until| *until > now && !since.contains_key(number));
        Mastership { since, lingering }
    }

    /// The directory to go by from now on, if the mastership or `base` has changed. `tables` have the
    /// leases.
    pub fn look(
        &mut self,
        base: &Directory,
        is_new: bool,
        (tables, addresses): (&Tables, &BTreeSet<IpAddr>),
        now: Instant,
    ) -> Option<Directory> {
        let leases = tables.leases().into_iter();
        let leases = leases.map(|(number, address)| (address, Instant(tables.lease_until(number)))).collect();
        let next = self.next(base, Held { leases: &leases, addresses }, now);
        if next == *self && !is_new {
            return None;
        }
        *self = next;
        let mut directory = base.clone();
        self.mark(&mut directory);
        Some(directory)
    }

    /// Marks each listener of a directory as ours, lingering or neither.
    pub fn mark(&self, directory: &mut Directory) {
        for at in directory.listeners.values_mut() {
            (at.ours, at.lingers) = (self.since.contains_key(&at.number), self.lingering.contains_key(&at.number));
        }
    }
}

#[cfg(test)]
mod tests;
