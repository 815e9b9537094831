//! The thread `vrrp-net`: addresses, links and sockets. Each of these calls may wait for the
//! kernel's lock on network configuration, which other processes can hold for any length of time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    os::fd::AsFd,
    sync::{Arc, mpsc},
};

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::{Fact, Shared, ThreadOrder};
use crate::{
    sys::{
        netlink::{Addresses, Interface, News},
        raw_ip::{Kind, RawIp},
        readiness::Readiness,
    },
    vrrp::{group::InstanceId, wire},
};

/// What this thread has to do.
pub enum NetworkOrder {
    /// Watch these interfaces, and open these sockets on them.
    Watch(Wanted),
    /// Put an instance's addresses on its interface, and keep them there.
    Hold {
        /// The instance.
        id: InstanceId,
        /// The interface.
        interface: String,
        /// The addresses.
        addresses: Vec<IpNet>,
    },
    /// Take addresses off an interface, if they are there.
    Release {
        /// The interface.
        interface: String,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// Close a socket that is no longer used.
    Close(RawIp),
    /// End, after all orders before.
    End,
}

/// What the instances need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The names of interfaces.
    pub interfaces: BTreeSet<String>,
    /// Sockets: interface, whether for IPv4, whether in the multicast group.
    pub sockets: BTreeSet<(String, bool, bool)>,
}

/// Starts the thread. The receiver hears when the thread has carried out all orders and ended.
pub fn start(shared: Arc<Shared>) -> Result<mpsc::Receiver<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (done, ended) = mpsc::channel();
    let run = move || {
        runtime.block_on(async {
            if let Err(error) = run(&shared).await {
                log::error!("VRRP can no longer read or change addresses: {error:#}");
            }
        });
        // The other thread may have ended first. It must know if this one has ended by itself.
        _ = done.send(());
        shared.orders.ring();
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
        logged: String::new(),
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
                let news = changed?;
                if work.concerns(news) {
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
    /// The open sockets: the interface's number, and whether in the multicast group.
    open: BTreeMap<(String, bool), (u32, bool)>,
    /// The addresses to keep on each interface.
    held: BTreeMap<(String, IpAddr), IpNet>,
    /// The last trouble, so that it is logged once.
    logged: String,
}

impl Work<'_> {
    fn post(&self, fact: Fact) {
        self.shared.orders.post(ThreadOrder::Fact(fact));
    }

    /// Carries out an order. Returns `false` after the last one.
    async fn order(&mut self, order: NetworkOrder) -> bool {
        match order {
            NetworkOrder::Watch(wanted) => {
                self.wanted = wanted;
                self.look().await;
            }
            NetworkOrder::Hold { id, interface, addresses } => {
                for address in &addresses {
                    self.held.insert((interface.clone(), address.addr()), *address);
                }
                let result = self.add(&interface, &addresses).await;
                self.post(Fact::Held { id, result: result.map_err(|error| format!("{error:#}")) });
            }
            NetworkOrder::Release { interface, addresses } => {
                for address in &addresses {
                    self.held.remove(&(interface.clone(), *address));
                }
                let result = self.remove(&interface, &addresses).await;
                self.post(Fact::Released { addresses, result: result.map_err(|error| format!("{error:#}")) });
            }
            NetworkOrder::Close(socket) => drop(socket),
            NetworkOrder::End => return false,
        }
        true
    }

    /// Whether the news matters here. With its interface a socket's membership in the multicast
    /// group is gone, also if the interface comes back under its index.
    fn concerns(&mut self, news: News) -> bool {
        match news {
            News::Lost => self.open.clear(),
            News::Gone(gone) => self.open.retain(|_, (ifindex, _)| *ifindex != gone),
            News::Changed(_) => {}
        }
        let (News::Changed(ifindex) | News::Gone(ifindex)) = news else { return true };
        let is_known = self.known.iter().any(|interface| interface.ifindex == ifindex);
        // An interface that is new, or has a new name.
        is_known || crate::sys::netdev::name_of(ifindex).is_ok_and(|name| self.wanted.interfaces.contains(&name))
    }

    /// Reads the interfaces, opens the sockets that are missing, and reports.
    async fn look(&mut self) {
        match self.addresses.interfaces(&self.wanted.interfaces).await {
            Ok(known) => self.known = known,
            // What is known stays until the next change.
            Err(error) => return self.trouble(format!("{error:#}")),
        }
        self.open_sockets();
        self.put_back().await;
        let forwards = |name: &str| sysctl(&format!("ipv6/conf/{name}/forwarding")).is_some_and(|value| value > 0);
        let interfaces = self.known.iter().map(|interface| (interface.clone(), forwards(&interface.name)));
        self.post(Fact::Interfaces(interfaces.collect()));
    }

    fn trouble(&mut self, what: String) {
        if self.logged != what {
            log::warn!("VRRP: {what}");
            self.logged = what;
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
            self.post(Fact::Socket { interface: name.clone(), ipv4: *ipv4, socket });
        }
    }

    /// Puts back the addresses that somebody else has taken off.
    async fn put_back(&mut self) {
        let is_there = |name: &str, address: &IpAddr| {
            let interface = self.known.iter().find(|interface| interface.name == name);
            // Our IPv6 addresses are deprecated, and deprecated ones are not listed: adding one
            // again shows whether it is there.
            address.is_ipv4() && interface.is_some_and(|it| it.addresses.iter().any(|found| found.addr() == *address))
        };
        let missing: Vec<_> = self
            .held
            .iter()
            .filter(|((name, address), _)| !is_there(name, address))
            .map(|((name, _), address)| (name.clone(), *address))
            .collect();
        for (name, address) in missing {
            // If the interface is gone or down, the instance learns of that by itself.
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
        // If the interface is gone, so are its addresses.
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

/// Makes every interface answer only for its own addresses (`arp_ignore`), and makes the host's ARP
/// requests carry only an address of the sending interface (`arp_announce`). Otherwise another
/// interface would answer for an address whose lease has run out, and the host would keep telling
/// the segment that the address is here. Applies to all interfaces, later ones included;
/// kube-proxy's `strictARP` sets the same.
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
