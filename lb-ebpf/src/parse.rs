//! From bytes to a [`Segment`].

use lb_common::{
    address::{Family, V4},
    tcp::{FIN, SYN},
};
use network_types::ip::IpProto;

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
    pub window: u16,
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

/// IPv4 on Ethernet, and a header of five words: the EtherType and the first byte of the packet.
const NO_OPTIONS: u32 = u32::from_ne_bytes([0x08, 0x00, 0x45, 0]);
const NO_OPTIONS_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
/// More fragments, or an offset.
const FRAGMENTED: u16 = 0x3fff_u16.to_be();

/// Whether a frame is an untagged, whole IPv4 packet without options with a TCP header, as nearly
/// all are.
#[inline(always)]
pub fn is_plain<F: Frame>(frame: F) -> bool {
    let mut bytes = frame.bytes();
    if !bytes.has(field::PAYLOAD) {
        frame.pull(LONGEST_HEADERS);
        bytes = frame.bytes();
        if !bytes.has(field::PAYLOAD) {
            return false;
        }
    }
    bytes.read::<u32>(field::ETHERTYPE) & NO_OPTIONS_MASK == NO_OPTIONS
        && bytes.read::<u8>(field::PROTOCOL) == IpProto::Tcp as u8
        && bytes.read::<u16>(field::FRAGMENT) & FRAGMENTED == 0
        && !frame.has_tag()
}

/// Reads the headers of a frame that is plain. `None`: they are cut short or contradict themselves.
#[inline(always)]
pub fn segment<F: Frame>(frame: F) -> Option<Segment> {
    let mut bytes = frame.bytes();
    if !bytes.has(field::PAYLOAD) {
        frame.pull(LONGEST_HEADERS);
        bytes = frame.bytes();
        if !bytes.has(field::PAYLOAD) {
            return None;
        }
    }
    let header = (bytes.read::<u8>(field::DATA_OFFSET) >> 4) as u32 * 4;
    let length = ip_length(frame, bytes);
    if header < 20 || length < V4::HEADER as u32 + header || length > frame.network_length() {
        return None;
    }
    Some(Segment {
        source: bytes.read(field::SOURCE),
        destination: bytes.read(field::DESTINATION),
        source_port: bytes.read(field::SOURCE_PORT),
        destination_port: bytes.read(field::DESTINATION_PORT),
        sequence: u32::from_be(bytes.read(field::SEQUENCE)),
        acknowledgement: u32::from_be(bytes.read(field::ACKNOWLEDGEMENT)),
        payload: length - V4::HEADER as u32 - header,
        header,
        window: u16::from_be(bytes.read(field::WINDOW)),
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
