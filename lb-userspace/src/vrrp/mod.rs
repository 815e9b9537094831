//! VRRP decides which of several hosts holds the addresses. It interoperates with keepalived as
//! MASTER and as BACKUP: versions 2 and 3, IPv4 and IPv6, multicast and unicast.
//!
//! Decisions are pure: [`wire`] reads and writes packets, [`receive`] judges them, [`machine`] is
//! one virtual router, [`group`] moves several of them together, [`tracking`] says how usable the
//! host is, [`holdings`] which addresses and leases an instance has, and [`placing`] how they stand on
//! an interface. [`shell`] runs them on the real host.

pub mod group;
pub mod holdings;
pub mod machine;
pub mod messages;
pub mod overheard;
pub mod placing;
pub mod receive;
pub mod report;
pub mod setup;
pub mod shell;
#[cfg(test)]
pub(crate) mod simulation;
pub mod tracking;
pub mod wire;
