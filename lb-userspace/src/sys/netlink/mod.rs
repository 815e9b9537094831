//! Routes, neighbours and links: where frames for a backend go, kept up to date by netlink
//! (rtnetlink(7)).

mod addresses;
mod clsact;
mod hops;
mod on_hooks;
mod watch;
mod ways;
mod wire;

use std::net::IpAddr;

use anyhow::{Context, Result};

pub use addresses::{Addresses, Found, Interface, News, Placed};
pub use clsact::remove_unused_clsact;
pub use hops::{Change, Destination, NextHop};
pub use on_hooks::{Filter, OnHooks, Questions};
pub use watch::Watch;
pub use ways::Way;

use super::netdev;

/// The interfaces by which the host may be asked for an address: all that carry Ethernet frames, but
/// for those that belong to another one, such as a bond.
pub async fn asked_interfaces() -> Result<Vec<String>> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let links = wire::all_links(&handle).await;
    connection.abort();
    let links = links?;
    Ok(links.iter().filter_map(wire::link).filter(|link| link.asked).map(|link| link.name).collect())
}

/// The name of the interface of a listen address: the one that holds the address; if none does
/// (another host may be MASTER for it), the one to which its route leads.
pub async fn interface_of(listen: IpAddr) -> Result<String> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let found = async {
        match wire::holder_of(&handle, listen).await? {
            Some(ifindex) => Ok(Some(ifindex)),
            None => wire::interface_towards(&handle, listen).await,
        }
    };
    let found: Result<Option<u32>> = found.await;
    connection.abort();
    let ifindex = found?.with_context(|| {
        format!("no interface has the address {listen} and no route leads to it: name one with `interface`")
    })?;
    netdev::name_of(ifindex).with_context(|| format!("interface {ifindex} is gone"))
}
