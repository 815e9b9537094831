//! Strangers on the segment: floods, SYNs that a listener does not like, and segments in the name of
//! others; beside honest clients, against backends with real kernels.

mod cookies;
mod floods;
mod forged;
mod odd_syns;

use std::net::{Ipv4Addr, SocketAddrV4};

use lab::{
    client::hold::Holding,
    topology::{PORT, VIP as ADDRESS},
};
use serde_json::Value;

use crate::cluster::{Cluster, all_served};

/// What clients connect to.
const VIP: SocketAddrV4 = SocketAddrV4::new(ADDRESS, PORT);
/// The hooks that the lab has.
const HOOKS: [&str; 3] = ["tc", "clsact", "xdp"];

/// A client that holds TLS connections.
fn hold(cluster: &Cluster, count: u64, what: &str) -> Holding {
    let folder = cluster.lab.folder().display().to_string();
    let mut held = cluster.hold(&["--tls", &folder, "--timeout-ms", "10000"]);
    all_served(&held.open(count).expect("open"), count, what);
    held
}

/// Checks that none of the connections has ended, and that all answer.
fn all_alive(held: &mut Holding, count: u64, what: &str) {
    let status = held.status().expect("status");
    assert_eq!((status.open, status.ended.len()), (count, 0), "{what}: {status:?}");
    assert_eq!(held.ask().expect("ask").answered, count, "{what}");
}

/// The rows of `evenkeel conns`.
fn conns(cluster: &Cluster) -> Vec<Value> {
    let conns = cluster.evenkeel.json(&["conns", "--limit", "100000"]).expect("conns");
    conns.as_array().expect("a list").clone()
}

fn client_of(row: &Value) -> SocketAddrV4 {
    row["client"].as_str().and_then(|client| client.parse().ok()).expect("a client")
}

/// An address that no host has, and no route leads to.
fn nowhere(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0b00_0000 | number & 0x00ff_ffff)
}
