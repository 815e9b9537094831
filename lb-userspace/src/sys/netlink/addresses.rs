//! Addresses that come and go, and the interfaces that hold them.

use std::{collections::BTreeSet, net::IpAddr, pin::Pin};

use anyhow::{Context, Result};
use futures_util::{Stream, StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo},
    },
    sys::SocketAddr,
};

use super::wire::{all_links, link, patiently};

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

type Messages = Pin<Box<dyn Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)> + Send>>;

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A link, or an address on it: the interface's index.
    Changed(u32),
    /// A link is gone; another one may have its index by now.
    Gone(u32),
    /// News was lost.
    Lost,
}

/// One socket for requests and one for news. Lives inside a tokio runtime.
pub struct Addresses {
    handle: Handle,
    news: Messages,
}

/// EINVAL, EADDRNOTAVAIL, EEXIST (errno.h).
const INVALID: i32 = 22;
const NOT_AVAILABLE: i32 = 99;
const EXISTS: i32 = 17;

impl Addresses {
    pub fn open() -> Result<Addresses> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (requests, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let (news, _, messages) =
            rtnetlink::new_multicast_connection(&groups).context("cannot open a netlink socket for news")?;
        tokio::spawn(requests);
        tokio::spawn(news);
        Ok(Addresses { handle, news: Box::pin(messages) })
    }

    /// Waits until a link or an address changes. Cancel safe.
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
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
                ) => return Ok(News::Changed(address.header.index)),
                NetlinkPayload::Overrun(_) => return Ok(News::Lost),
                _ => {}
            }
        }
    }

    /// The interfaces with these names, as far as they exist.
    pub async fn interfaces(&self, names: &BTreeSet<String>) -> Result<Vec<Interface>> {
        let links = all_links(&self.handle).await?;
        let mut found: Vec<_> = links
            .iter()
            .filter_map(link)
            .filter(|link| names.contains(&link.name))
            .map(|link| {
                let (name, ifindex, mac, up) = (link.name, link.ifindex, link.mac, link.up);
                Interface { name, ifindex, mac, up, addresses: Vec::new() }
            })
            .collect();
        for message in self.all().await? {
            let interface = found.iter_mut().find(|interface| interface.ifindex == message.header.index);
            if let (Some(interface), Some(address)) = (interface, address_of(&message).filter(|_| is_usable(&message)))
            {
                interface.addresses.push(address);
            }
        }
        Ok(found)
    }

    /// Every address of this host, on any interface.
    pub async fn everywhere(&self) -> Result<BTreeSet<IpAddr>> {
        Ok(self.all().await?.iter().filter_map(|message| Some(address_of(message)?.addr())).collect())
    }

    async fn all(&self) -> Result<Vec<AddressMessage>> {
        patiently(self.handle.address().get().execute().try_collect()).await?.context("cannot list addresses")
    }

    /// Adds an address to an interface so that the host answers for it but never chooses it as a
    /// source by itself: no route, no duplicate address detection. Succeeds if the address is
    /// already there.
    pub async fn add(&self, ifindex: u32, address: IpNet) -> Result<()> {
        // An address of scope host is never chosen as a source (inet_select_addr). If there is an
        // address of the same subnet, the kernel insists on that one's scope, but then ours is a
        // secondary address, which is not chosen either.
        let added = match self.add_with(ifindex, address, AddressScope::Host).await? {
            Err(INVALID) if address.addr().is_ipv4() => self.add_with(ifindex, address, AddressScope::Universe).await?,
            added => added,
        };
        match added {
            Ok(()) | Err(EXISTS) => Ok(()),
            Err(error) => {
                Err(std::io::Error::from_raw_os_error(error)).with_context(|| format!("cannot add {address}"))
            }
        }
    }

    async fn add_with(&self, ifindex: u32, address: IpNet, scope: AddressScope) -> Result<Result<(), i32>> {
        let mut request = self.handle.address().add(ifindex, address.addr(), address.prefix_len());
        let message = request.message_mut();
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
        if address.addr().is_ipv4() {
            message.header.scope = scope;
            message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        } else {
            // Deprecated from the beginning (RFC 4862 section 5.5.4), which IPv4 does not know.
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_valid = u32::MAX;
            message.attributes.push(AddressAttribute::CacheInfo(lifetime));
        }
        code_of(patiently(request.execute()).await?)
    }

    /// Removes an address from an interface, whatever its prefix length. Succeeds if it is not
    /// there; returns whether it was.
    pub async fn remove(&self, ifindex: u32, address: IpAddr) -> Result<bool> {
        let mut removed = false;
        for message in self.all().await? {
            let is_it = address_of(&message).is_some_and(|found| found.addr() == address);
            if message.header.index != ifindex || !is_it {
                continue;
            }
            match code_of(patiently(self.handle.address().del(message).execute()).await?)? {
                Ok(()) => removed = true,
                Err(NOT_AVAILABLE) => {}
                Err(error) => {
                    let error = std::io::Error::from_raw_os_error(error);
                    return Err(error).with_context(|| format!("cannot remove {address}"));
                }
            }
        }
        Ok(removed)
    }
}

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

fn is_usable(message: &AddressMessage) -> bool {
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    !message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, AddressAttribute::Flags(flags) if flags.intersects(unusable)))
}
