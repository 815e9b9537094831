//! Addresses: as the records hold them, as they lie in a packet, and what the two families differ
//! in.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address as the records hold it: IPv4 mapped into IPv6 (`::ffff:a.b.c.d`, RFC 4291 section
/// 2.5.5.2).
pub fn to_mapped(address: impl Into<IpAddr>) -> [u8; 16] {
    match address.into() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The address that a record holds.
pub const fn from_mapped(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from_octets(octets).to_canonical()
}

/// The address and port that a record holds.
pub const fn socket_address(octets: [u8; 16], port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(from_mapped(octets), u16::from_be_bytes(port))
}

/// An IPv4 address as a word, in the byte order in which it lies in a packet.
#[inline(always)]
pub const fn word(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// A port as it lies in a packet.
#[inline(always)]
pub const fn port_word(port: u16) -> u16 {
    port.to_be()
}

/// What the kernel program must know about an address family. The engine is generic over it: IPv6
/// is one more implementation, and what IPv4 does not need is compiled away.
pub trait Family: Copy {
    /// An address as it lies in a packet.
    type Address: Copy + Eq;
    /// The family in a record: 4 or 6.
    const NUMBER: u8;
    /// Bytes of the IP header without options or extension headers.
    const HEADER: usize;
    /// The first byte of the address in a record's sixteen.
    const IN_RECORD: usize;
    /// Whether a key's address word is the whole address. If not, code that finds a flow by its key
    /// compares [`Opening::client6`](crate::layout::Opening::client6) as well.
    const WORD_IS_ADDRESS: bool;

    /// The address word of a key.
    fn word(address: Self::Address) -> u32;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

impl Family for V4 {
    type Address = u32;
    const NUMBER: u8 = 4;
    const HEADER: usize = 20;
    const IN_RECORD: usize = 12;
    const WORD_IS_ADDRESS: bool = true;

    #[inline(always)]
    fn word(address: u32) -> u32 {
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_from_their_mapped_form() {
        for address in ["10.0.1.100", "2001:db8::7", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(from_mapped(to_mapped(address)), address);
        }
        let mapped = to_mapped(Ipv4Addr::new(10, 0, 1, 100));
        assert_eq!(socket_address(mapped, [0x19, 0x2b]), "10.0.1.100:6443".parse().unwrap());
    }

    #[test]
    fn words_lie_as_the_bytes_of_a_packet_do() {
        let address = Ipv4Addr::new(10, 0, 1, 100);
        assert_eq!(word(address).to_ne_bytes(), address.octets());
        assert_eq!(port_word(6443).to_ne_bytes(), [0x19, 0x2b]);
        assert_eq!(to_mapped(address)[V4::IN_RECORD..], address.octets());
    }
}
