//! A balancer that only rewrites, `bare_tc` of tests/ebpf: the least that any balancer on TC has to
//! do.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf,
    maps::Array,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use evenkeel::sys::netdev;
use tests_ebpf::Wiring;

use crate::{
    Host, Lab,
    arp::mac,
    bench::packets::OBJECT,
    topology::{PORT, VIP},
};

/// A [`Wiring`] as a type that can be written to a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Words(Wiring);

// SAFETY: integers without padding.
unsafe impl aya::Pod for Words {}

/// Attaches it to the balancer's device, until the returned guard is dropped.
pub fn attach(lab: &Lab) -> Result<Ebpf> {
    let mut programs = Ebpf::load(OBJECT).context("cannot load the programs of the benchmark")?;
    let wiring = lab.balancer.inside(|| wiring(lab))?;
    let map = programs.map_mut("WIRING").context("no map WIRING")?;
    Array::try_from(map)?.set(0, Words(wiring), 0)?;
    let program: &mut SchedClassifier = programs.program_mut("bare_tc").context("no program bare_tc")?.try_into()?;
    program.load()?;
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    lab.balancer.inside(|| Ok(program.attach_with_options("eth0", TcAttachType::Ingress, first)?))?;
    Ok(programs)
}

fn wiring(lab: &Lab) -> Result<Wiring> {
    ensure!(
        lab.clients.len() == 1 && lab.backends.len() == 3,
        "the bare balancer is made for one client and three servers"
    );
    let mut servers = [[0; 2]; 3];
    for (entry, host) in servers.iter_mut().zip(&lab.backends) {
        *entry = neighbour(host)?;
    }
    Ok(Wiring {
        ifindex: u64::from(netdev::index_of("eth0")?),
        mac: word(mac(&lab.balancer, "eth0")?),
        vip: in_packet(VIP),
        port: u64::from(PORT.to_be()),
        client: neighbour(lab.client())?,
        servers,
    })
}

fn neighbour(host: &Host) -> Result<[u64; 2]> {
    Ok([in_packet(host.address()), word(mac(host, "eth0")?)])
}

fn in_packet(address: Ipv4Addr) -> u64 {
    u64::from(u32::from_ne_bytes(address.octets()))
}

fn word(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}
