//! The thread `vrrp-net`: addresses, links and sockets. Each of these calls may wait for the
//! kernel's lock on network configuration, which other processes can hold for any length of time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    os::fd::AsFd,
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use super::{Fact, Shared, ThreadOrder};
use crate::{
    sys::{
        netlink::{Addresses, Found, Interface, News},
        raw_ip::{Kind, Membership, RawIp},
        readiness::Readiness,
    },
    vrrp::{
        group::InstanceId,
        placing::{self, Renewals, Step},
        wire,
    },
};

/// How long it takes until a look at the interfaces that has failed is repeated.
const AGAIN: Duration = Duration::from_secs(1);

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
        addresses: Vec<IpAddr>,
        /// How long this host may hold them after its last advertisement.
        lease: Duration,
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
        own: BTreeMap::new(),
        open: BTreeMap::new(),
        held: BTreeMap::new(),
        renew_at: Instant::now(),
        look_at: None,
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
            () = tokio::time::sleep_until(work.renew_at), if !work.held.is_empty() => work.renew().await,
            () = tokio::time::sleep_until(work.look_at.unwrap_or_else(Instant::now)), if work.look_at.is_some() => {
                work.look().await;
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

/// How an address was found.
enum Standing {
    /// As it should be, on the interface with this index.
    Stood(u32),
    /// It has just been put there.
    New,
}

struct Work<'a> {
    shared: &'a Shared,
    addresses: Addresses,
    wanted: Wanted,
    known: Vec<Interface>,
    /// The host's own addresses.
    own: BTreeMap<IpAddr, String>,
    /// The open sockets, by interface and whether for IPv4.
    open: BTreeMap<(String, bool), Open>,
    /// The addresses to keep on each interface.
    held: BTreeMap<(String, IpAddr), Kept>,
    renew_at: Instant,
    /// When a look at the interfaces that has failed is repeated.
    look_at: Option<Instant>,
    /// The last trouble, so that it is logged once.
    logged: String,
}

/// An address to keep on an interface.
#[derive(Clone, Copy)]
struct Kept {
    /// The instance.
    id: InstanceId,
    /// Its lifetime in seconds.
    valid: u32,
    renewals: Renewals,
}

/// An open socket.
struct Open {
    /// The interface's number.
    ifindex: u32,
    /// Whether it is in the multicast group.
    multicast: bool,
    membership: Option<Membership>,
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
            NetworkOrder::Hold { id, interface, addresses, lease } => {
                let valid = placing::lifetime(lease);
                let mut result = Ok(Standing::New);
                for address in addresses {
                    let renewals = Renewals::default();
                    self.held.insert((interface.clone(), address), Kept { id, valid, renewals });
                    result = result.and(self.put_on(&interface, address, valid).await);
                }
                self.renew_at = self.renew_at.min(Instant::now() + Renewals::default().next_in(valid));
                self.post(Fact::Held { id, result: result.map(drop).map_err(|error| format!("{error:#}")) });
            }
            NetworkOrder::Release { interface, addresses } => {
                for address in &addresses {
                    self.held.remove(&(interface.clone(), *address));
                }
                let result = self.take_off(&interface, &addresses).await;
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
        let is_gone = |ifindex: u32| match news {
            News::Lost => true,
            News::Gone(gone) => ifindex == gone,
            News::Changed(_) | News::Address(..) => false,
        };
        let gone = self.open.extract_if(.., |_, open| is_gone(open.ifindex));
        gone.filter_map(|(_, open)| open.membership).for_each(Membership::leave);
        if let News::Gone(ifindex) = news
            && self.let_go(ifindex)
        {
            return true;
        }
        let ifindex = match news {
            News::Lost => return true,
            // Anywhere it may be one of ours, or have been. Every new link gets a link-local one.
            News::Address(_, Some(address)) if !is_link_local(address) => return true,
            News::Changed(ifindex) | News::Gone(ifindex) | News::Address(ifindex, _) => ifindex,
        };
        let is_known = self.known.iter().any(|interface| interface.ifindex == ifindex);
        // An interface that is new, or has a new name.
        is_known || crate::sys::netdev::name_of(ifindex).is_ok_and(|name| self.wanted.interfaces.contains(&name))
    }

    /// With an interface the program on it is gone. Addresses that came back before it would have
    /// the host's own kernel answer for them: the instance is in FAULT, and begins anew, also if
    /// the interface is there again by now.
    fn let_go(&mut self, ifindex: u32) -> bool {
        let Some(position) = self.known.iter().position(|interface| interface.ifindex == ifindex) else { return false };
        let gone = self.known.remove(position);
        self.held.retain(|(interface, _), _| *interface != gone.name);
        self.report();
        true
    }

    /// Reads the interfaces, opens the sockets that are missing, and reports.
    async fn look(&mut self) {
        let found = match self.addresses.find(&self.wanted.interfaces).await {
            Ok(found) => found,
            // What is known stays meanwhile.
            Err(error) => {
                self.look_at = Some(Instant::now() + AGAIN);
                return self.trouble(format!("{error:#}"));
            }
        };
        self.look_at = None;
        let gone = self.known.iter().map(|interface| interface.ifindex);
        let gone: Vec<_> = gone.filter(|ifindex| found.interfaces.iter().all(|it| it.ifindex != *ifindex)).collect();
        // The news of it was lost.
        gone.into_iter().for_each(|ifindex| _ = self.let_go(ifindex));
        self.known = found.interfaces;
        self.own = found.own;
        self.open_sockets();
        self.put_back().await;
        self.report();
    }

    fn report(&self) {
        let forwards = |name: &str| sysctl(&format!("ipv6/conf/{name}/forwarding")).is_some_and(|value| value > 0);
        let routers = self.known.iter().map(|interface| interface.name.clone()).filter(|name| forwards(name));
        let found = Found { interfaces: self.known.clone(), own: self.own.clone() };
        self.post(Fact::Interfaces { routers: routers.collect(), found });
    }

    fn trouble(&mut self, what: String) {
        if self.logged != what {
            log::warn!("VRRP: {what}");
            self.logged = what;
        }
    }

    fn open_sockets(&mut self) {
        self.open.retain(|(interface, ipv4), open| {
            self.wanted.sockets.contains(&(interface.clone(), *ipv4, open.multicast))
        });
        for (name, ipv4, multicast) in &self.wanted.sockets {
            let Some(interface) = self.known.iter().find(|interface| interface.name == *name) else { continue };
            let key = (name.clone(), *ipv4);
            let stays = |open: &Open| (open.ifindex, open.multicast) == (interface.ifindex, *multicast);
            if self.open.get(&key).is_some_and(stays) {
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
            let opened = socket.and_then(|socket| Ok((socket.membership()?, socket)));
            let socket = opened.map(|(membership, socket)| {
                self.open.insert(key, Open { ifindex: interface.ifindex, multicast: *multicast, membership });
                socket
            });
            let socket = socket.map_err(|error| format!("cannot open a socket on {name}: {error}"));
            self.post(Fact::Socket { interface: name.clone(), ipv4: *ipv4, socket });
        }
    }

    /// Puts back the addresses that somebody else has taken off or moved to the front.
    async fn put_back(&mut self) {
        for ((name, address), Kept { valid, .. }) in self.held.clone() {
            // If the interface is gone or down, or the address is the host's own now, the instance
            // learns of that by itself.
            if let Err(error) = self.put_on(&name, address, valid).await {
                log::debug!("{error:#}");
            }
        }
    }

    /// Lets the addresses live on.
    async fn renew(&mut self) {
        for (key, mut kept) in self.held.clone() {
            let renewed = self.renew_one(&key.0, key.1, kept.valid).await;
            if kept.renewals.went(renewed.is_ok())
                && let Err(error) = &renewed
            {
                let error = format!("{} cannot be renewed, and would go by itself: {error:#}", key.1);
                self.post(Fact::NotRenewed { id: kept.id, error });
            }
            if let Err(error) = renewed {
                self.trouble(format!("an address cannot be renewed: {error:#}"));
            }
            self.held.insert(key, kept);
        }
        if let Some(next) = self.held.values().map(|kept| kept.renewals.next_in(kept.valid)).min() {
            self.renew_at = Instant::now() + next;
        }
    }

    async fn renew_one(&mut self, interface: &str, address: IpAddr, valid: u32) -> Result<()> {
        // If it is gone, the instance learns of that by itself.
        if self.ifindex(interface).is_err() {
            return Ok(());
        }
        match self.put_on(interface, address, valid).await? {
            Standing::Stood(ifindex) => self.addresses.add(ifindex, address.into(), valid).await,
            Standing::New => Ok(()),
        }
    }

    async fn put_on(&mut self, interface: &str, address: IpAddr, valid: u32) -> Result<Standing> {
        let ifindex = self.ifindex(interface)?;
        let placed = self.addresses.on(ifindex).await?;
        match placing::to_hold(&placed, address) {
            Ok(steps) if steps.is_empty() => Ok(Standing::Stood(ifindex)),
            Ok(steps) => {
                self.take(ifindex, &steps, valid).await.with_context(|| format!("interface {interface}"))?;
                Ok(Standing::New)
            }
            Err(own) => bail!("{own} is the host's own on {interface}"),
        }
    }

    async fn take_off(&self, interface: &str, addresses: &[IpAddr]) -> Result<()> {
        // If the interface is gone, so are its addresses.
        let Ok(ifindex) = self.ifindex(interface) else { return Ok(()) };
        let placed = self.addresses.on(ifindex).await?;
        for address in addresses {
            let steps = placing::to_release(&placed, *address);
            self.take(ifindex, &steps, 0).await.with_context(|| format!("interface {interface}"))?;
        }
        Ok(())
    }

    async fn take(&self, ifindex: u32, steps: &[Step], valid: u32) -> Result<()> {
        for step in steps {
            match *step {
                Step::PutOn(address) => self.addresses.add(ifindex, address, valid).await?,
                Step::TakeOff(address) => self.addresses.remove(ifindex, address).await?,
            }
        }
        Ok(())
    }

    fn ifindex(&self, name: &str) -> Result<u32> {
        crate::sys::netdev::index_of(name).with_context(|| format!("there is no interface {name}"))
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn sysctl(name: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?.trim().parse().ok()
}
