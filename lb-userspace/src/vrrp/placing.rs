//! How a virtual address stands on an interface, so that the host's own network stays as it is: as
//! /32 or /128 whatever the configuration says, which makes it a subnet of its own. Otherwise the
//! kernel would take it for the first address of the host's subnet once the host's own is taken away
//! and put back (`netplan apply`, `ip addr flush`), and refuse that one, or give it no route.
//!
//! It stands there on time: the kernel takes it off when its lease has run out and nobody renews it,
//! whatever has become of the process and of the kernel program that keeps the host from answering.
//!
//! Over IPv4 it stands behind the host's own: the first address is what the host shows as its own and
//! what it sends from where no route says otherwise.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use crate::sys::netlink::Placed;

/// For how many seconds an address stands on its interface when nobody renews it. The kernel counts in
/// seconds, and a busy host may be late; the lease itself may be shorter.
pub fn lifetime(lease: Duration) -> u32 {
    let seconds = lease.as_secs() + u64::from(lease.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX).max(SHORTEST)
}

const SHORTEST: u32 = 2;

/// Renewals of an address that have failed in a row. One may find the kernel busy; after the second
/// the address may go at any time, and the other host has to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewals {
    failed: u32,
}

impl Renewals {
    /// Takes in how a renewal went. `true`: it is time to give the address up.
    pub fn went(&mut self, well: bool) -> bool {
        self.failed = if well { 0 } else { self.failed + 1 };
        self.failed == 2
    }

    /// When to renew an address of this lifetime next.
    pub fn next_in(self, valid: u32) -> Duration {
        let usual = Duration::from_secs(valid.into()) / RENEWALS;
        if self.failed == 0 { usual } else { usual.min(AGAIN) }
    }
}

/// How often it is renewed within its lifetime.
const RENEWALS: u32 = 4;
/// How soon a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Something to do on the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Put the address there.
    PutOn(IpNet),
    /// Take an address of ours off.
    TakeOff(IpNet),
}

/// What puts an address on an interface that has these, in the kernel's order. If the host has it as
/// its own, that one is the error.
pub fn to_hold(placed: &[Placed], address: IpAddr) -> Result<Vec<Step>, IpNet> {
    if let Some(own) = placed.iter().find(|it| it.address.addr() == address && !it.is_ours) {
        return Err(own.address);
    }
    let wanted = IpNet::from(address);
    // By an older version, with the configuration's prefix.
    let others = placed.iter().map(|it| it.address).filter(|it| it.addr() == address && *it != wanted);
    let others: Vec<_> = others.map(Step::TakeOff).collect();
    if address.is_ipv6() && !others.is_empty() {
        // The kernel takes it for the same address, whatever its prefix: for a moment it is gone.
        return Ok(others.into_iter().chain([Step::PutOn(wanted)]).collect());
    }
    let mut steps = match placed.iter().position(|it| it.address == wanted) {
        None => vec![Step::PutOn(wanted)],
        Some(position) if is_before_own(&placed[position..], address) => {
            vec![Step::TakeOff(wanted), Step::PutOn(wanted)]
        }
        Some(_) => Vec::new(),
    };
    steps.extend(others);
    Ok(steps)
}

/// What takes an address off: nothing that is the host's own.
pub fn to_release(placed: &[Placed], address: IpAddr) -> Vec<Step> {
    let ours = placed.iter().filter(|it| it.address.addr() == address && it.is_ours);
    ours.map(|it| Step::TakeOff(it.address)).collect()
}

/// Whether one of the host's own addresses follows. A secondary one always does; it is no source.
fn is_before_own(placed: &[Placed], address: IpAddr) -> bool {
    let is_own = |it: &Placed| !it.is_ours && !it.is_secondary && it.address.addr().is_ipv4();
    address.is_ipv4() && placed.iter().any(is_own)
}

#[cfg(test)]
mod tests;
