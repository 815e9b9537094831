//! Addresses that come and go, and the interfaces that hold them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    pin::Pin,
};

use anyhow::{Context, Result};
use futures_util::{Stream, StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo},
    },
    sys::SocketAddr,
};

use tokio::task::JoinSet;

use super::wire::{all_links, is_loopback, link, patiently};

/// An interface, as far as answering for addresses is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The kernel's index for it.
    pub ifindex: u32,
    /// Its MAC address; zero if it has none.
    pub mac: [u8; 6],
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Its addresses in the kernel's order, without unusable ones (tentative, duplicate,
    /// deprecated).
    pub addresses: Vec<IpNet>,
}

/// What this host has at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The interfaces that were asked for, as far as they exist.
    pub interfaces: Vec<Interface>,
    /// The addresses that are the host's own, with their interfaces; not those of the loopback.
    pub own: BTreeMap<IpAddr, String>,
}

/// An address as it stands on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The address.
    pub address: IpNet,
    /// Whether evenkeel has put it there.
    pub is_ours: bool,
    /// Whether the kernel has another address of the same subnet that came first (IPv4).
    pub is_secondary: bool,
}

type Messages = Pin<Box<dyn Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)> + Send>>;

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A link: its index.
    Changed(u32),
    /// An address, and the index of its interface.
    Address(u32, Option<IpAddr>),
    /// A link is gone; another one may have its index by now.
    Gone(u32),
    /// News was lost.
    Lost,
}

/// One socket for requests and one for news. Lives inside a tokio runtime.
pub struct Addresses {
    handle: Handle,
    news: Messages,
    /// The tasks of the two sockets. They end with this value: one that goes on for nobody logs the
    /// first news as lost.
    _sockets: JoinSet<()>,
}

/// EINVAL and EADDRNOTAVAIL (errno.h).
const INVALID: i32 = 22;
const NOT_AVAILABLE: i32 = 99;

impl Addresses {
    pub fn open() -> Result<Addresses> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (requests, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let (news, _, messages) =
            rtnetlink::new_multicast_connection(&groups).context("cannot open a netlink socket for news")?;
        let mut sockets = JoinSet::new();
        sockets.spawn(requests);
        sockets.spawn(news);
        Ok(Addresses { handle, news: Box::pin(messages), _sockets: sockets })
    }

    /// Waits until a link or an address changes. That one of ours lives on is no change. Cancel safe.
    pub async fn changed(&mut self) -> Result<News> {
        loop {
            let (message, _) = self.news.next().await.context("the netlink socket was closed")?;
            match message.payload {
                // Not where a bridge says that a port has left it.
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) if link(&message).is_some() => {
                    return Ok(News::Gone(message.header.index));
                }
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
                ) => {
                    return Ok(News::Changed(link.header.index));
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) if is_renewed(&address) => {}
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
                ) => return Ok(News::Address(address.header.index, address_of(&address).map(|it| it.addr()))),
                NetlinkPayload::Overrun(_) => return Ok(News::Lost),
                _ => {}
            }
        }
    }

    /// The interfaces with these names, and the host's own addresses.
    pub async fn find(&self, names: &BTreeSet<String>) -> Result<Found> {
        let links = all_links(&self.handle).await?;
        let mut found = Found::default();
        for link in links.iter().filter_map(link).filter(|link| names.contains(&link.name)) {
            let (name, ifindex, mac, up) = (link.name, link.ifindex, link.mac, link.up);
            found.interfaces.push(Interface { name, ifindex, mac, up, addresses: Vec::new() });
        }
        let others = links.iter().filter(|message| !is_loopback(message)).filter_map(link);
        let names: BTreeMap<_, _> = others.map(|link| (link.ifindex, link.name)).collect();
        for message in self.all().await? {
            let Some(placed) = placed(&message) else { continue };
            let ifindex = message.header.index;
            let interface = found.interfaces.iter_mut().find(|interface| interface.ifindex == ifindex);
            if let Some(interface) = interface.filter(|_| is_usable(&message)) {
                interface.addresses.push(placed.address);
            }
            if let Some(name) = names.get(&ifindex).filter(|_| !placed.is_ours) {
                found.own.insert(placed.address.addr(), name.clone());
            }
        }
        Ok(found)
    }

    /// Every address of this host, on any interface.
    pub async fn everywhere(&self) -> Result<BTreeSet<IpAddr>> {
        Ok(self.all().await?.iter().filter_map(|message| Some(address_of(message)?.addr())).collect())
    }

    /// The addresses of one interface, in the kernel's order.
    pub async fn on(&self, ifindex: u32) -> Result<Vec<Placed>> {
        let all = self.all().await?;
        Ok(all.iter().filter(|message| message.header.index == ifindex).filter_map(placed).collect())
    }

    async fn all(&self) -> Result<Vec<AddressMessage>> {
        patiently(self.handle.address().get().execute().try_collect()).await?.context("cannot list addresses")
    }

    /// Adds an address to an interface, with our marks: no route, no duplicate address detection. The
    /// kernel removes it after `valid`, in seconds, unless it is added again before; it looks about
    /// once a second.
    pub async fn add(&self, ifindex: u32, address: IpNet, valid: u32) -> Result<()> {
        let mut request = self.handle.address().add(ifindex, address.addr(), address.prefix_len()).replace();
        let message = request.message_mut();
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
        message.attributes.push(AddressAttribute::RoutePriority(METRIC));
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        let mut lifetime = CacheInfo::default();
        lifetime.ifa_valid = valid;
        // Over IPv6, deprecated from the beginning (RFC 4862 section 5.5.4), so that it is no source
        // of new connections.
        lifetime.ifa_preferred = if address.addr().is_ipv4() { valid } else { 0 };
        message.attributes.push(AddressAttribute::CacheInfo(lifetime));
        match code_of(patiently(request.execute()).await?)? {
            Ok(()) => Ok(()),
            Err(error) => {
                Err(std::io::Error::from_raw_os_error(error)).with_context(|| format!("cannot add {address}"))
            }
        }
    }

    /// Removes an address from an interface, if it is there and carries our marks.
    pub async fn remove(&self, ifindex: u32, address: IpNet) -> Result<()> {
        let wanted = |message: &AddressMessage| {
            let is_it = placed(message).is_some_and(|placed| placed.address == address && placed.is_ours);
            is_it && message.header.index == ifindex
        };
        let Some(message) = self.all().await?.into_iter().find(wanted) else { return Ok(()) };
        match code_of(patiently(self.handle.address().del(message).execute()).await?)? {
            Ok(()) | Err(NOT_AVAILABLE) => Ok(()),
            Err(error) => {
                Err(std::io::Error::from_raw_os_error(error)).with_context(|| format!("cannot remove {address}"))
            }
        }
    }
}

/// From this prefix on IPv4 has no broadcast address; others put one on every address.
const HOST_PREFIX_V4: u8 = 31;
/// How the addresses that evenkeel puts on an interface differ from all others: they have no route,
/// but a metric for it. Of the flags, the kernel keeps that of duplicate address detection for IPv6
/// only.
const METRIC: u32 = 25974;

/// The kernel's answer, or an error if there was none.
fn code_of(answer: Result<(), rtnetlink::Error>) -> Result<Result<(), i32>> {
    match answer {
        Ok(()) => Ok(Ok(())),
        Err(rtnetlink::Error::NetlinkError(error)) => Ok(Err(error.to_io().raw_os_error().unwrap_or(INVALID))),
        Err(error) => Err(error).context("the kernel's netlink does not answer"),
    }
}

fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // Over IPv4, `Address` is the peer's on a point-to-point link.
    IpNet::new(find(true).or_else(|| find(false))?, message.header.prefix_len).ok()
}

fn placed(message: &AddressMessage) -> Option<Placed> {
    let (flags, ipv4) = (flags_of(message), message.header.family == AddressFamily::Inet);
    let is_secondary = ipv4 && flags.contains(AddressFlags::Secondary);
    let has = |wanted: fn(&AddressAttribute) -> bool| message.attributes.iter().any(wanted);
    // An older version had no metric.
    let was_ours = if ipv4 {
        // Beside an own address it was a secondary one, and the first one when that had gone.
        let is_part_of_subnet = message.header.prefix_len < HOST_PREFIX_V4;
        let is_no_source = is_secondary || message.header.scope == AddressScope::Host || is_part_of_subnet;
        is_no_source && !has(|it| matches!(it, AddressAttribute::Broadcast(_)))
    } else {
        flags.contains(AddressFlags::Nodad | AddressFlags::Deprecated)
    };
    let is_marked = has(|it| matches!(it, AddressAttribute::RoutePriority(METRIC))) || was_ours;
    let is_ours = flags.contains(AddressFlags::Noprefixroute) && is_marked;
    Some(Placed { address: address_of(message)?, is_ours, is_secondary })
}

fn is_usable(message: &AddressMessage) -> bool {
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    !flags_of(message).intersects(unusable)
}

/// Whether the address is ours and was there before.
pub(super) fn is_renewed(message: &AddressMessage) -> bool {
    let is_later = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::CacheInfo(lifetime) => lifetime.tstamp != lifetime.cstamp,
        _ => false,
    };
    placed(message).is_some_and(|placed| placed.is_ours) && message.attributes.iter().any(is_later)
}

fn flags_of(message: &AddressMessage) -> AddressFlags {
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    flags.unwrap_or(AddressFlags::empty())
}

#[cfg(test)]
mod tests {
    use tokio::{
        runtime::{Builder, Handle},
        task::yield_now,
    };

    use super::*;

    #[test]
    fn nobody_goes_on_listening_for_who_is_gone() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tasks = || Handle::current().metrics().num_alive_tasks();
            let addresses = Addresses::open().unwrap();
            assert!(!addresses.everywhere().await.unwrap().is_empty());
            assert_eq!(tasks(), 2);
            drop(addresses);
            yield_now().await;
            assert_eq!(tasks(), 0);
        });
    }
}
