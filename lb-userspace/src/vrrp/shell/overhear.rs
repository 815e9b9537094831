//! Listens to the advertisements on the wire for a while, and says how they agree with a
//! configuration. Sends nothing.

use std::{
    collections::BTreeSet,
    io,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    config::model::Vrrp,
    sys::{
        netdev,
        raw_ip::{Kind, RawIp},
        wake,
    },
    vrrp::{
        overheard::{Overheard, compare},
        setup::Setup,
        shell::packet_of,
        wire,
    },
};

/// Bytes of the longest packet that is read.
const PACKET: usize = 2048;
/// The most different things that are told of one instance.
const MOST: usize = 64;

/// Everything different that was heard by each instance within `time`.
pub fn overhear(instances: &[Vrrp], time: Duration) -> Result<Vec<(Arc<str>, BTreeSet<Overheard>)>> {
    let mut ears = instances.iter().map(Ear::open).collect::<Result<Vec<_>>>()?;
    let until = Instant::now() + time;
    let mut buffer = vec![0; PACKET];
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        let sockets: Vec<_> = ears.iter().map(|ear| ear.socket.as_fd()).collect();
        wake::wait(&sockets, Some(left)).context("cannot wait for advertisements")?;
        for ear in &mut ears {
            ear.listen(&mut buffer).with_context(|| format!("interface {}", ear.setup.interface))?;
        }
    }
    Ok(ears.into_iter().map(|ear| (ear.setup.name, ear.heard)).collect())
}

struct Ear {
    setup: Setup,
    socket: RawIp,
    heard: BTreeSet<Overheard>,
}

impl Ear {
    fn open(instance: &Vrrp) -> Result<Ear> {
        let setup = Setup::of(instance);
        let name = &setup.interface;
        let ifindex = netdev::index_of(name).with_context(|| format!("there is no interface {name}"))?;
        let group = if setup.ipv4 { wire::GROUP_V4.into() } else { wire::GROUP_V6.into() };
        let kind = Kind {
            protocol: wire::PROTOCOL,
            ipv4: setup.ipv4,
            hop_limit: wire::HOP_LIMIT,
            traffic_class: wire::TRAFFIC_CLASS,
        };
        let socket = RawIp::open(kind, name, ifindex, Some(group))
            .with_context(|| format!("cannot listen on {name}: this takes CAP_NET_RAW, as root has it"))?;
        Ok(Ear { setup, socket, heard: BTreeSet::new() })
    }

    /// Takes everything that has arrived.
    fn listen(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        while let Some(received) = self.socket.receive(buffer)? {
            if let Some(packet) = packet_of(received, buffer)
                && self.heard.len() < MOST
            {
                self.heard.insert(compare(&self.setup, &packet));
            }
        }
        Ok(())
    }
}
