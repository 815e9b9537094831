//! Everything that needs root and the kernel. One crate, so that it links once.

mod access;
mod admin;
mod balancing;
mod bench;
mod beside_peers;
mod cluster;
mod datapath;
mod dataplane;
mod dead_backends;
mod endurance;
mod failover;
mod injection;
mod lab_itself;
mod logs;
mod many;
mod nexthops;
mod observe;
mod page;
mod reloads;
mod top;
mod topologies;
mod trace;
mod trials;
mod upgrade;
mod vrrp;
mod without_controller;
