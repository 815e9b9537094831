//! From bytes to a [`Segment`], or to the reason why a frame is passed on.

use lb_common::{
    address::{Family, V4},
    tcp::{FIN, SYN},
    verdict::Reason,
};
use network_types::{eth::EtherType, ip::IpProto};

use crate::{
    cursor::{Bytes, Frame, LONGEST_HEADERS, field},
    maps,
};

/// A TCP segment in an IP packet without options. Addresses and ports as they lie in the packet,
/// numbers in the host's order.
#[derive(Clone, Copy)]
pub struct Segment<V: Family = V4> {
    pub source: V::Address,
    pub destination: V::Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub sequence: u32,
    pub acknowledgement: u32,
    /// Bytes of payload.
    pub payload: u32,
    /// Bytes of the TCP header.
    pub header: u32,
    pub flags: u8,
    pub ttl: u8,
}

impl<V: Family> Segment<V> {
    /// The sequence number behind the segment: SYN and FIN count as one each.
    #[inline(always)]
    pub fn end(&self) -> u32 {
        let control = (self.flags & SYN != 0) as u32 + (self.flags & FIN != 0) as u32;
        self.sequence.wrapping_add(self.payload).wrapping_add(control)
    }

    /// Whether it is the controller's own test packet: from the unspecified address (never on a
    /// wire, RFC 1122 section 3.2.1.3), with a number that only the controller knows.
    #[inline(always)]
    pub fn is_self_test(&self) -> bool {
        V::word(self.source) == 0 && self.sequence == maps::seed() as u32
    }
}

/// Version 4, and a header of five words.
const NO_OPTIONS: u8 = 0x45;
/// More fragments, or an offset.
const FRAGMENTED: u16 = 0x3fff_u16.to_be();

/// Reads the headers. Anything but a whole TCP segment in one IPv4 packet is an error: the reason
/// to pass it on.
#[inline(always)]
pub fn segment<F: Frame>(frame: F) -> Result<Segment, Reason> {
    let mut bytes = frame.bytes();
    if !bytes.has(field::PAYLOAD) {
        frame.pull(LONGEST_HEADERS);
        bytes = frame.bytes();
        if !bytes.has(field::PAYLOAD) {
            return Err(Reason::NotOurs);
        }
    }
    let ethertype: u16 = bytes.read(field::ETHERTYPE);
    if ethertype != EtherType::Ipv4 as u16 {
        let tagged = ethertype == EtherType::Ieee8021q as u16 || ethertype == EtherType::Ieee8021ad as u16;
        return Err(if tagged { Reason::Vlan } else { Reason::NotOurs });
    }
    if bytes.read::<u8>(field::PROTOCOL) != IpProto::Tcp as u8 {
        return Err(Reason::NotOurs);
    }
    if frame.is_tagged() {
        return Err(Reason::Vlan);
    }
    if bytes.read::<u8>(field::IP) != NO_OPTIONS {
        return Err(Reason::IpOptions);
    }
    if bytes.read::<u16>(field::FRAGMENT) & FRAGMENTED != 0 {
        return Err(Reason::Fragment);
    }
    let header = (bytes.read::<u8>(field::DATA_OFFSET) >> 4) as u32 * 4;
    let length = ip_length(frame, bytes);
    if header < 20 || length < V4::HEADER as u32 + header || length > frame.network_length() {
        return Err(Reason::Malformed);
    }
    Ok(Segment {
        source: bytes.read(field::SOURCE),
        destination: bytes.read(field::DESTINATION),
        source_port: bytes.read(field::SOURCE_PORT),
        destination_port: bytes.read(field::DESTINATION_PORT),
        sequence: u32::from_be(bytes.read(field::SEQUENCE)),
        acknowledgement: u32::from_be(bytes.read(field::ACKNOWLEDGEMENT)),
        payload: length - V4::HEADER as u32 - header,
        header,
        flags: bytes.read(field::FLAGS),
        ttl: bytes.read(field::TTL),
    })
}

/// The packet's length. A packet above 64 KiB (BIG TCP) has zero there: then the frame's own
/// length.
#[inline(always)]
fn ip_length<F: Frame>(frame: F, bytes: Bytes) -> u32 {
    let length = u16::from_be(bytes.read(field::TOTAL_LENGTH)) as u32;
    if length == 0 { frame.network_length() } else { length }
}
