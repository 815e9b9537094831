//! The thread `vrrp-net`: addresses, links and sockets. Each of these calls may wait for the kernel's lock on network
//! configuration, which others hold for as long as they like.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    os::fd::AsFd,
    sync::{Arc, mpsc},
};

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::{Fact, Shared};
use crate::{
    sys::{
        netlink::{Addresses, Interface},
        raw_ip::{Kind, RawIp},
        readiness::Readiness,
    },
    vrrp::wire,
};

/// What this thread is told to do.
pub enum Order {
    /// These interfaces matter, and these sockets are to be open on them.
    Watch(Wanted),
    /// Put an instance's addresses on its interface, and keep them there.
    Hold {
        /// The instance.
        instance: Arc<str>,
        /// Where.
        interface: String,
        /// What.
        addresses: Vec<IpNet>,
    },
    /// Take addresses away, if they are there.
    Release {
        /// Where.
        interface: String,
        /// What.
        addresses: Vec<IpAddr>,
    },
    /// Close a socket that is not used any more.
    Close(RawIp),
    /// The end.
    End,
}

/// What matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Interfaces by name.
    pub interfaces: BTreeSet<String>,
    /// Sockets: interface, whether IPv4, whether in the multicast group.
    pub sockets: BTreeSet<(String, bool, bool)>,
}

/// Starts the thread. The receiver hears when it has done everything and ended.
pub fn start(shared: Arc<Shared>) -> Result<mpsc::Receiver<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (done, ended) = mpsc::channel();
    let run = move || {
        runtime.block_on(async {
            if let Err(error) = run(&shared).await {
                log::error!("VRRP cannot see or change addresses any more: {error:#}");
            }
        });
        // Nobody waits if the other thread has ended first.
        _ = done.send(());
    };
    std::thread::Builder::new().name("vrrp-net".into()).spawn(run)?;
    Ok(ended)
}

async fn run(shared: &Shared) -> Result<()> {
    let mut work = Work {
        shared,
        addresses: Addresses::open()?,
        wanted: Wanted::default(),
        known: Vec::new(),
        open: BTreeMap::new(),
        held: BTreeMap::new(),
        told: String::new(),
    };
    let orders = Readiness::of(shared.network.as_fd())?;
    loop {
        tokio::select! {
            ready = orders.readable() => {
                ready?.clear_ready();
                for order in shared.network.take() {
                    if !work.order(order).await {
                        return Ok(());
                    }
                }
            }
            changed = work.addresses.changed() => {
                let changed = changed?;
                if work.concerns(changed) {
                    work.look().await;
                }
            }
        }
    }
}

struct Work<'a> {
    shared: &'a Shared,
    addresses: Addresses,
    wanted: Wanted,
    known: Vec<Interface>,
    /// Sockets that were opened: on which number of the interface, and whether in the group.
    open: BTreeMap<(String, bool), (u32, bool)>,
    /// Addresses that are to stay, by interface.
    held: BTreeMap<(String, IpAddr), IpNet>,
    /// The last thing that went wrong, so that it is told once.
    told: String,
}

impl Work<'_> {
    fn tell(&self, fact: Fact) {
        self.shared.orders.post(super::Order::Fact(fact));
    }

    /// `false`: it was the last one.
    async fn order(&mut self, order: Order) -> bool {
        match order {
            Order::Watch(wanted) => {
                self.wanted = wanted;
                self.look().await;
            }
            Order::Hold { instance, interface, addresses } => {
                for address in &addresses {
                    self.held.insert((interface.clone(), address.addr()), *address);
                }
                let result = self.add(&interface, &addresses).await;
                self.tell(Fact::Held { instance, result: result.map_err(|error| format!("{error:#}")) });
            }
            Order::Release { interface, addresses } => {
                for address in &addresses {
                    self.held.remove(&(interface.clone(), *address));
                }
                let result = self.remove(&interface, &addresses).await;
                self.tell(Fact::Released { addresses, result: result.map_err(|error| format!("{error:#}")) });
            }
            Order::Close(socket) => drop(socket),
            Order::End => return false,
        }
        true
    }

    /// Whether news are about something that matters.
    fn concerns(&self, ifindex: Option<u32>) -> bool {
        let Some(ifindex) = ifindex else { return true };
        let is_known = self.known.iter().any(|interface| interface.ifindex == ifindex);
        // One that is new, or has got another name.
        is_known || crate::sys::netdev::name_of(ifindex).is_ok_and(|name| self.wanted.interfaces.contains(&name))
    }

    /// Reads what there is, opens what is missing, and tells.
    async fn look(&mut self) {
        match self.addresses.interfaces(&self.wanted.interfaces).await {
            Ok(known) => self.known = known,
            // What is known stays, until the next news.
            Err(error) => return self.trouble(format!("{error:#}")),
        }
        self.open_sockets();
        self.put_back().await;
        let forwards = |name: &str| sysctl(&format!("ipv6/conf/{name}/forwarding")).is_some_and(|value| value > 0);
        let interfaces = self.known.iter().map(|interface| (interface.clone(), forwards(&interface.name)));
        self.tell(Fact::Interfaces(interfaces.collect()));
    }

    fn trouble(&mut self, what: String) {
        if self.told != what {
            log::warn!("VRRP: {what}");
            self.told = what;
        }
    }

    fn open_sockets(&mut self) {
        self.open.retain(|(interface, ipv4), (_, multicast)| {
            self.wanted.sockets.contains(&(interface.clone(), *ipv4, *multicast))
        });
        for (name, ipv4, multicast) in &self.wanted.sockets {
            let Some(interface) = self.known.iter().find(|interface| interface.name == *name) else { continue };
            let key = (name.clone(), *ipv4);
            if self.open.get(&key) == Some(&(interface.ifindex, *multicast)) {
                continue;
            }
            let group: IpAddr = if *ipv4 { wire::GROUP_V4.into() } else { wire::GROUP_V6.into() };
            let kind = Kind {
                protocol: wire::PROTOCOL,
                ipv4: *ipv4,
                hop_limit: wire::HOP_LIMIT,
                traffic_class: wire::TRAFFIC_CLASS,
            };
            let socket = RawIp::open(kind, name, interface.ifindex, multicast.then_some(group));
            if socket.is_ok() {
                self.open.insert(key, (interface.ifindex, *multicast));
            }
            let socket = socket.map_err(|error| format!("cannot open a socket on {name}: {error}"));
            self.tell(Fact::Socket { interface: name.clone(), ipv4: *ipv4, socket });
        }
    }

    /// Addresses that somebody else has taken away.
    async fn put_back(&mut self) {
        let is_there = |name: &str, address: &IpAddr| {
            let interface = self.known.iter().find(|interface| interface.name == name);
            // IPv6 addresses of ours are deprecated, which is not listed: ask the kernel, which says if it is there.
            address.is_ipv4() && interface.is_some_and(|it| it.addresses.iter().any(|found| found.addr() == *address))
        };
        let missing: Vec<_> = self
            .held
            .iter()
            .filter(|((name, address), _)| !is_there(name, address))
            .map(|((name, _), address)| (name.clone(), *address))
            .collect();
        for (name, address) in missing {
            // Where the interface is gone or down the instance learns of that by itself.
            if let Err(error) = self.add(&name, &[address]).await {
                log::debug!("{error:#}");
            }
        }
    }

    async fn add(&mut self, interface: &str, addresses: &[IpNet]) -> Result<()> {
        let ifindex = self.ifindex(interface)?;
        if addresses.iter().any(|address| address.addr().is_ipv4())
            && let Err(error) = restrain_arp()
        {
            self.trouble(format!("{error:#}"));
        }
        for address in addresses {
            self.addresses.add(ifindex, *address).await.with_context(|| format!("interface {interface}"))?;
        }
        Ok(())
    }

    async fn remove(&self, interface: &str, addresses: &[IpAddr]) -> Result<()> {
        // With the interface its addresses are gone.
        let Ok(ifindex) = self.ifindex(interface) else { return Ok(()) };
        for address in addresses {
            self.addresses.remove(ifindex, *address).await.with_context(|| format!("interface {interface}"))?;
        }
        Ok(())
    }

    fn ifindex(&self, name: &str) -> Result<u32> {
        crate::sys::netdev::index_of(name).with_context(|| format!("there is no interface {name}"))
    }
}

/// An interface answers only for addresses of its own, and the host's own ARP requests carry an address that nobody asked
/// it to lend: else another interface would answer for an address whose lease has run out, and the host would go on to
/// tell the segment that it is here. For all interfaces (kube-proxy's `strictARP` sets the same), those to come too.
fn restrain_arp() -> Result<()> {
    for (name, least) in [("ipv4/conf/all/arp_ignore", 1), ("ipv4/conf/all/arp_announce", 2)] {
        if sysctl(name).is_none_or(|value| value < least) {
            let path = format!("/proc/sys/net/{name}");
            fs::write(&path, least.to_string()).with_context(|| {
                format!(
                    "cannot set net.{} = {least}, without which two hosts may answer for an address",
                    name.replace('/', ".")
                )
            })?;
            log::info!("set net.{} = {least}", name.replace('/', "."));
        }
    }
    Ok(())
}

fn sysctl(name: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?.trim().parse().ok()
}
