//! The IPv4 header (RFC 791) of an advertisement. A raw socket delivers it, and sends the one that
//! is written here: so the source is the intended one, and the packet is keepalived's byte for
//! byte.

use std::net::Ipv4Addr;

use super::{HOP_LIMIT, PROTOCOL, Packet, TRAFFIC_CLASS};

const LENGTH: usize = 20;
const TOTAL_LENGTH: usize = 2;
const TIME_TO_LIVE: usize = 8;
const SOURCE: usize = 12;
const DESTINATION: usize = 16;

/// Parses a packet. `None`: it is cut short or contradicts itself.
pub fn parse(bytes: &[u8]) -> Option<Packet<'_>> {
    let header = usize::from(bytes.first()? & 0x0f) * 4;
    if bytes[0] >> 4 != 4 || header < LENGTH || bytes.len() < header {
        return None;
    }
    let address = |at: usize| bytes[at..at + 4].try_into().map(<[u8; 4]>::into).ok();
    let total = usize::from(u16::from_be_bytes([bytes[TOTAL_LENGTH], bytes[TOTAL_LENGTH + 1]]));
    Some(Packet {
        source: address(SOURCE)?,
        destination: address(DESTINATION)?,
        hop_limit: bytes[TIME_TO_LIVE],
        payload: bytes.get(header..total)?,
    })
}

/// Prepends the header to an advertisement. The kernel fills in identification and checksum
/// (raw(7)).
pub fn packet(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let total = (LENGTH + payload.len()) as u16;
    let mut packet = vec![0x45, TRAFFIC_CLASS];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0, 0, HOP_LIMIT, PROTOCOL, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}
