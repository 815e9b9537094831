//! Reads the few values that matter from rtnetlink's messages, and puts the questions to the
//! kernel.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::AddressAttribute,
        link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia},
    },
};

use super::{
    hops::{Destination, Neighbour},
    ways::Route,
};

/// The kernel answers at once; a socket that lost the answer must not stall the task forever.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a message says of a link.
pub struct LinkNews {
    pub ifindex: u32,
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    pub up: bool,
    /// It carries Ethernet frames of its own: it belongs to no bond and no bridge.
    pub asked: bool,
}

/// `None` if the message is not about the link itself (a bridge sends others about its ports).
pub fn link(message: &LinkMessage) -> Option<LinkNews> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let up = message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    let asked = is_ethernet(message) && !is_port(message);
    let mut news = LinkNews { ifindex: message.header.index, name: String::new(), mac: [0; 6], mtu: 0, up, asked };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => news.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => news.mtu = *mtu,
            LinkAttribute::Address(bytes) => news.mac = bytes.as_slice().try_into().unwrap_or_default(),
            _ => {}
        }
    }
    Some(news)
}

/// Whether the link carries Ethernet frames.
fn is_ethernet(message: &LinkMessage) -> bool {
    message.header.link_layer_type == LinkLayerType::Ether
}

/// Whether the link belongs to another one: a bond, a bridge.
fn is_port(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Controller(_)))
}

/// Whether the link is the host's loopback.
pub fn is_loopback(message: &LinkMessage) -> bool {
    message.header.flags.contains(LinkFlags::Loopback)
}

/// A neighbour and its MAC address; `None` if the kernel has no address that it would send to.
pub fn neighbour(message: &NeighbourMessage) -> Option<(Neighbour, Option<[u8; 6]>)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let good = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    Some(((message.header.ifindex, address?), mac.filter(|_| good)))
}

/// Where a route leads: the outgoing interface and the gateway.
struct Way {
    ifindex: u32,
    gateway: Option<IpAddr>,
}

fn way(message: &RouteMessage) -> Option<Way> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut ifindex, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(IpAddr::V4(*ip)),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(IpAddr::V6(*ip)),
            // An IPv4 route through an IPv6 router (RFC 8950).
            RouteAttribute::Via(RouteVia::Inet6(ip)) => gateway = Some(IpAddr::V6(*ip)),
            _ => {}
        }
    }
    Some(Way { ifindex: ifindex?, gateway })
}

/// The neighbour through which a destination is currently reached; `None` if there is no route, or
/// it is this host itself.
pub async fn look_up(handle: &Handle, destination: Destination) -> Result<Option<Neighbour>> {
    let Some(way) = route_to(handle, destination).await? else { return Ok(None) };
    Ok(Some((way.ifindex, way.gateway.unwrap_or(destination.address))))
}

async fn route_to(handle: &Handle, destination: Destination) -> Result<Option<Way>> {
    let length = if destination.address.is_ipv4() { 32 } else { 128 };
    let mut question = RouteMessageBuilder::<IpAddr>::new().destination_prefix(destination.address, length)?;
    if let Some(ifindex) = destination.interface {
        question = question.output_interface(ifindex);
    }
    let mut answers = std::pin::pin!(handle.route().get(question.build()).execute());
    match patiently(answers.try_next()).await? {
        Ok(answer) => Ok(answer.as_ref().and_then(way)),
        // "Network is unreachable" and the like.
        Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
        Err(error) => Err(error).context("cannot ask for a route"),
    }
}

/// Every IPv4 route of the main table that leads anywhere.
pub async fn all_routes(handle: &Handle) -> Result<Vec<Route>> {
    let question = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes: Vec<RouteMessage> =
        patiently(handle.route().get(question).execute().try_collect()).await?.context("cannot list routes")?;
    Ok(routes.iter().filter_map(route).collect())
}

/// A route of the main table. One that leads to several routers, or to none, has no router here.
fn route(message: &RouteMessage) -> Option<Route> {
    if message.header.table != RouteHeader::RT_TABLE_MAIN || message.header.address_family != AddressFamily::Inet {
        return None;
    }
    let (mut to, mut metric) = (Ipv4Addr::UNSPECIFIED, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = *address,
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let to = Ipv4Net::new(to, message.header.destination_prefix_length).ok()?;
    let router = way(message).and_then(|way| Some((way.ifindex, way.gateway?)));
    Some(Route { to: to.into(), router, metric })
}

/// Every neighbour that the kernel knows.
pub async fn all_neighbours(handle: &Handle) -> Result<Vec<NeighbourMessage>> {
    patiently(handle.neighbours().get().execute().try_collect()).await?.context("cannot list neighbours")
}

/// Every link of the host.
pub async fn all_links(handle: &Handle) -> Result<Vec<LinkMessage>> {
    patiently(handle.link().get().execute().try_collect()).await?.context("cannot list links")
}

/// Notifies the kernel that a neighbour is in use, so that it resolves it if necessary and keeps it
/// fresh. A refusal (the link is down) is no error: the caller asks again later.
pub async fn resolve(handle: &Handle, (ifindex, address): Neighbour) -> Result<()> {
    let request = handle.neighbours().add(ifindex, address).replace();
    let request = request.state(NeighbourState::None).flags(NeighbourFlags::Use);
    match patiently(request.execute()).await? {
        Ok(()) | Err(rtnetlink::Error::NetlinkError(_)) => Ok(()),
        Err(error) => Err(error).context("cannot ask for a neighbour"),
    }
}

/// The interface that holds an address.
pub async fn holder_of(handle: &Handle, address: IpAddr) -> Result<Option<u32>> {
    let mut answers = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = patiently(answers.try_next()).await?.context("cannot list addresses")? {
        let has = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Address(found) | AddressAttribute::Local(found) => *found == address,
            _ => false,
        };
        if message.attributes.iter().any(has) {
            return Ok(Some(message.header.index));
        }
    }
    Ok(None)
}

/// The interface to which the route to an address leads.
pub async fn interface_towards(handle: &Handle, address: IpAddr) -> Result<Option<u32>> {
    let way = route_to(handle, Destination { address, interface: None }).await?;
    Ok(way.map(|way| way.ifindex))
}

pub async fn patiently<T>(answer: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, answer).await.context("the kernel's netlink does not answer")
}
