//! The formats on the wire, one file each: an advertisement of [version 2](v2) or [version 3](v3),
//! the IPv4 header that a raw socket delivers ([`ipv4`]), and the frames by which a segment learns
//! which host holds an address ([`arp`], [`nd`]). No other part of VRRP knows an offset.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::checksum;

pub mod arp;
pub mod ipv4;
pub mod nd;
#[cfg(test)]
mod tests;
pub mod v2;
pub mod v3;

/// VRRP's number among the IP protocols (RFC 9568 section 5.1.1.4).
pub const PROTOCOL: u8 = 112;
/// The time to live of every advertisement. A multicast one with another value was not sent on this
/// link (section 5.1.1.3).
pub const HOP_LIMIT: u8 = 255;
/// Internetwork control (RFC 1349), as keepalived sends it.
pub const TRAFFIC_CLASS: u8 = 0xc0;
/// The only type of VRRP message.
pub const ADVERTISEMENT: u8 = 1;
/// The group of all VRRP routers (sections 5.1.1.2 and 5.1.2.2).
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// The same group for IPv6.
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);

/// Offsets that versions 2 and 3 have in common.
mod field {
    pub const VERSION_AND_TYPE: usize = 0;
    pub const ROUTER: usize = 1;
    pub const PRIORITY: usize = 2;
    pub const COUNT: usize = 3;
    /// Version 2: type of authentication, then seconds. Version 3: hundredths of a second in 12
    /// bits.
    pub const TIMING: usize = 4;
    pub const CHECKSUM: usize = 6;
    pub const ADDRESSES: usize = 8;
}

/// A received IP packet that should hold an advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The sender's address.
    pub source: IpAddr,
    /// The group, or this host's address.
    pub destination: IpAddr,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// What the IP packet carries, without the frame's padding.
    pub payload: &'a [u8],
}

/// A view of an advertisement of either version. Its header is complete, its content unchecked.
#[derive(Clone, Copy, Debug)]
pub struct View<'a>(&'a [u8]);

impl<'a> View<'a> {
    /// `None`: the header is cut short.
    pub fn new(payload: &'a [u8]) -> Option<View<'a>> {
        (payload.len() >= field::ADDRESSES).then_some(View(payload))
    }

    /// The version: 2 or 3 in a valid advertisement.
    pub fn version(self) -> u8 {
        self.0[field::VERSION_AND_TYPE] >> 4
    }

    /// The type: [`ADVERTISEMENT`] in a valid one.
    pub fn kind(self) -> u8 {
        self.0[field::VERSION_AND_TYPE] & 0x0f
    }

    /// The virtual router's number.
    pub fn router(self) -> u8 {
        self.0[field::ROUTER]
    }

    /// The priority. 0: the sender resigns; 255: it owns the addresses.
    pub fn priority(self) -> u8 {
        self.0[field::PRIORITY]
    }

    /// The number of addresses.
    pub fn count(self) -> u8 {
        self.0[field::COUNT]
    }

    /// The offset at which the addresses end.
    fn end(self, ipv4: bool) -> usize {
        field::ADDRESSES + usize::from(self.count()) * if ipv4 { 4 } else { 16 }
    }

    /// The addresses; `None`: they are cut short.
    pub fn addresses(self, ipv4: bool) -> Option<Vec<IpAddr>> {
        let bytes = self.0.get(field::ADDRESSES..self.end(ipv4))?;
        Some(if ipv4 {
            bytes.as_chunks::<4>().0.iter().map(|octets| IpAddr::from(*octets)).collect()
        } else {
            bytes.as_chunks::<16>().0.iter().map(|octets| IpAddr::from(*octets)).collect()
        })
    }
}

/// The header that both versions share, with a zero checksum, and the addresses.
fn begin(version: u8, router: u8, priority: u8, timing: [u8; 2], addresses: &[IpAddr]) -> Vec<u8> {
    let mut message =
        vec![version << 4 | ADVERTISEMENT, router, priority, addresses.len() as u8, timing[0], timing[1], 0, 0];
    for address in addresses {
        match address {
            IpAddr::V4(address) => message.extend(address.octets()),
            IpAddr::V6(address) => message.extend(address.octets()),
        }
    }
    message
}

/// Puts the checksum into a message. `beside` is the sum of what is covered in addition to the
/// message.
fn seal(message: &mut [u8], beside: u64) {
    let sum = checksum::finish(sum(message) + beside);
    message[field::CHECKSUM..field::CHECKSUM + 2].copy_from_slice(&sum.to_ne_bytes());
}

/// Whether the checksum of a message is right.
fn adds_up(message: &[u8], beside: u64) -> bool {
    checksum::fold(sum(message) + beside) == 0xffff
}

/// The sum of the 16-bit words in memory order; an odd byte is the first half of the last word.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

/// The sum of the pseudo-header: addresses, protocol and length (RFC 8200 section 8.1; for IPv4
/// RFC 9293 section 3.1).
fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let octets = |address| match address {
        IpAddr::V4(address) => sum(&Ipv4Addr::octets(&address)),
        IpAddr::V6(address) => sum(&Ipv6Addr::octets(&address)),
    };
    octets(source) + octets(destination) + sum(&[0, protocol]) + sum(&(length as u16).to_be_bytes())
}
