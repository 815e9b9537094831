//! What the VIP is on: the balancer's cable, a VLAN of it, or a bond of two.

use std::time::Duration;

use anyhow::Result;

use super::super::said::Device;
use crate::{Host, Lab, wait, xdp_pass};

const VLAN: &str = "100";
/// How often a bond looks at its cables, in milliseconds.
const MIIMON: &str = "100";
const SOON: Duration = Duration::from_secs(20);

/// Makes the device and gives it the addresses of eth0.
pub fn prepare(lab: &Lab, device: Device, for_xdp: bool) -> Result<()> {
    match device {
        Device::Cable => Ok(()),
        // Everybody is on the VLAN: the switch passes tagged frames.
        Device::Vlan => lab.clients.iter().chain(&lab.backends).chain([&lab.balancer]).try_for_each(vlan),
        Device::Bond => bond(lab, for_xdp),
    }
}

fn vlan(host: &Host) -> Result<()> {
    let name = Device::Vlan.name();
    host.ip(&["link", "add", "link", "eth0", "name", name, "type", "vlan", "id", VLAN])?;
    host.ip(&["link", "set", name, "up"])?;
    move_addresses(host, name)
}

fn bond(lab: &Lab, for_xdp: bool) -> Result<()> {
    let (host, name) = (&lab.balancer, Device::Bond.name());
    lab.second_cable(host, "eth1")?;
    if for_xdp {
        host.offload("eth1", "tx", false)?;
        xdp_pass::attach(&lab.switch, &port(host, "eth1"))?;
    }
    host.ip(&["link", "add", name, "type", "bond", "mode", "active-backup", "miimon", MIIMON])?;
    move_addresses(host, name)?;
    for cable in ["eth0", "eth1"] {
        // A device that is up cannot join.
        host.link(cable, false)?;
        host.ip(&["link", "set", cable, "master", name])?;
        host.link(cable, true)?;
    }
    host.link(name, true)
}

fn move_addresses(host: &Host, device: &str) -> Result<()> {
    host.ip(&["address", "flush", "dev", "eth0"])?;
    for address in &host.addresses {
        host.ip(&["address", "add", &format!("{address}/24"), "dev", device])?;
    }
    Ok(())
}

/// The port of the switch at the other end of a cable.
fn port(host: &Host, cable: &str) -> String {
    if cable == "eth0" { host.name.to_string() } else { format!("{}-{cable}", host.name) }
}

/// Which of the bond's cables carries the packets.
fn active(host: &Host) -> Result<String> {
    let shown = host.ip(&["-d", "link", "show", "dev", Device::Bond.name()])?;
    let name = shown.split_once("active_slave ").and_then(|(_, rest)| rest.split_whitespace().next());
    Ok(name.unwrap_or("none").to_owned())
}

/// Unplugs the cable that carries the packets at the switch, and waits until the other one does.
pub fn cut_active(lab: &Lab) -> Result<String> {
    let before = active(&lab.balancer)?;
    lab.switch.link(&port(&lab.balancer, &before), false)?;
    let other = || active(&lab.balancer).ok().filter(|now| *now != before && now != "none");
    let now = wait::until("the bond's other cable is in use", SOON, other)?;
    Ok(format!("{before} was cut, {now} goes on"))
}
