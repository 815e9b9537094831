//! The leases of virtual addresses: while a lease holds, this host answers for its address.
//! Renewing one is a store to mapped memory and never waits.

use std::{mem::offset_of, net::IpAddr, sync::atomic::Ordering};

use anyhow::{Context, Result};
use lb_common::{
    address::{from_mapped, to_mapped},
    hash::{LEASE_PROBES, lease_start, probe},
    layout::{ACTIVE, DELETED, LEASE_BITS, Lease},
};

use super::{Tables, find_row, numbered};

/// Another host's claim to an address that we hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The number of claims since the record was made.
    pub count: u32,
    /// The MAC address of the last claim.
    pub by: [u8; 6],
}

impl Tables {
    /// The row of an address's lease, which is made if there is none: from then on the host answers
    /// for the address only while the lease holds.
    pub fn place_lease(&self, address: IpAddr) -> Result<u16> {
        let octets = to_mapped(address);
        let (first, second) = halves(octets);
        let start = lease_start(first, second, LEASE_BITS);
        let rows = || probe(start, LEASE_BITS, LEASE_PROBES).map(|row| row as u16);
        let record = |row: u16| self.fixed.leases.read(row.into());
        if let Some(row) = find_row(rows(), |row| record(row).state, |row| record(row).address == octets) {
            return Ok(row);
        }
        let row = rows()
            .find(|row| record(*row).state != ACTIVE)
            .with_context(|| format!("no room for the lease of {address}: the rows it may stand in are taken"))?;
        let lease = Lease { address: octets, state: ACTIVE, ..Lease::default() };
        self.fixed.leases.publish(row.into(), &lease, offset_of!(Lease, state));
        Ok(row)
    }

    /// Until when this host answers for an address; CLOCK_MONOTONIC in nanoseconds, 0: not.
    pub fn renew_lease(&self, number: u16, until: u64) {
        self.fixed.leases.word64(number.into(), offset_of!(Lease, until)).store(until, Ordering::Release);
    }

    /// Only this interface may announce the address of a lease; `None`: it is not known which.
    pub fn set_lease_link(&self, number: u16, interface: Option<u8>) {
        let word = u32::from_ne_bytes([ACTIVE, interface.map_or(0, |number| number + 1), 0, 0]);
        self.fixed.leases.word32(number.into(), offset_of!(Lease, state)).store(word, Ordering::Release);
    }

    /// The end of a lease.
    pub fn lease_until(&self, number: u16) -> u64 {
        self.fixed.leases.word64(number.into(), offset_of!(Lease, until)).load(Ordering::Acquire)
    }

    /// The host that has claimed an address while we held it.
    pub fn claims(&self, number: u16) -> Claims {
        let lease = self.fixed.leases.read(number.into());
        Claims { count: lease.claims, by: lease.claimed_by }
    }

    /// Removes a lease: VRRP no longer carries the address, and any host that holds it answers for
    /// it.
    pub fn remove_lease(&self, number: u16) {
        let lease = Lease { state: DELETED, ..Lease::default() };
        self.fixed.leases.publish(number.into(), &lease, offset_of!(Lease, state));
    }

    /// All leases, whether they hold or not.
    pub fn leases(&self) -> Vec<(u16, IpAddr)> {
        let active = numbered(&self.fixed.leases).filter(|(_, lease)| lease.state == ACTIVE);
        active.map(|(number, lease)| (number, from_mapped(lease.address))).collect()
    }
}

fn halves(octets: [u8; 16]) -> (u64, u64) {
    let half = |at: usize| octets[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
    (half(0), half(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_lease_is_found_again_and_keeps_its_end() {
        let tables = Tables::in_memory().unwrap();
        let (four, six) = (ip("10.0.1.100"), ip("fd00::100"));
        let number = tables.place_lease(four).unwrap();
        tables.renew_lease(number, 77);
        assert_eq!(tables.place_lease(four).unwrap(), number);
        assert_eq!(tables.lease_until(number), 77);
        let other = tables.place_lease(six).unwrap();
        assert_ne!(other, number);
        assert_eq!(tables.leases().len(), 2);
        tables.remove_lease(number);
        assert_eq!(tables.leases(), [(other, six)]);
        let again = tables.place_lease(four).unwrap();
        assert_eq!(tables.lease_until(again), 0, "a lease that is made again does not hold");
    }

    #[test]
    fn as_many_addresses_as_may_be_configured_find_their_places() {
        let six = |rest: u128| IpAddr::from(((0xfd00 << 112) + rest).to_be_bytes());
        for pattern in 0..4_u32 {
            let tables = Tables::in_memory().unwrap();
            for number in 0..1_u32 << LEASE_BITS >> 1 {
                let address = match pattern {
                    0 => IpAddr::from((0x0a00_0100 + number).to_be_bytes()),
                    1 => IpAddr::from((0x0a00_0001 + (number << 8)).to_be_bytes()),
                    2 => six(u128::from(number)),
                    _ => six((u128::from(number) << 64) + 1),
                };
                tables.place_lease(address).unwrap_or_else(|error| panic!("pattern {pattern}: {error:#}"));
            }
        }
    }
}
