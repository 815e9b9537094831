//! VRRP: which of several hosts has the addresses. One that lives with keepalived in both roles: versions 2 and 3, IPv4
//! and IPv6, multicast and unicast.
//!
//! Decisions are pure: [`wire`] reads and writes packets, [`receive`] says which of them count, [`machine`] is one virtual
//! router, [`group`] those that move together.

pub mod group;
pub mod machine;
pub mod receive;
pub mod report;
pub mod setup;
pub mod shell;
#[cfg(test)]
mod simulation;
pub mod tell;
pub mod tracking;
pub mod wire;
