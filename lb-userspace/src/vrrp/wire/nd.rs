//! The unsolicited neighbour advertisement: a host tells its segment where an IPv6 address is
//! (RFC 4861 section 7.2.6).

use std::net::{IpAddr, Ipv6Addr};

use super::{HOP_LIMIT, pseudo_header, sum};
use lb_common::checksum;

/// All nodes on the link, and their MAC address.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ETHERTYPE: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ROUTER: u8 = 0x80;
/// The advertisement replaces what neighbours have cached.
const OVERRIDE: u8 = 0x20;
/// Option "target link-layer address", one unit of 8 bytes long.
const TARGET_MAC: [u8; 2] = [2, 1];
/// The length of the ICMPv6 message: header 8, target 16, option 8.
const LENGTH: usize = 32;

/// Tells all nodes on the link that `address` is at `mac`. `is_router`: whether the host forwards;
/// if it does and this denied it, neighbours would drop it from their routers.
pub fn advertisement(mac: [u8; 6], address: Ipv6Addr, is_router: bool) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE | if is_router { ROUTER } else { 0 }, 0, 0, 0];
    message.extend(address.octets());
    message.extend(TARGET_MAC);
    message.extend(mac);
    let beside = pseudo_header(IpAddr::V6(address), IpAddr::V6(ALL_NODES), ICMPV6, LENGTH);
    let check = checksum::finish(sum(&message) + beside);
    message[2..4].copy_from_slice(&check.to_ne_bytes());

    let mut frame = Vec::with_capacity(14 + 40 + LENGTH);
    frame.extend(ALL_NODES_MAC);
    frame.extend(mac);
    frame.extend(ETHERTYPE);
    frame.extend([0x60, 0, 0, 0, 0, LENGTH as u8, ICMPV6, HOP_LIMIT]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}
