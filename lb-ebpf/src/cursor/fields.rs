//! Where the fields of the headers are.

/// Offsets in a frame with an Ethernet header, an IPv4 header without options and a TCP header.
pub mod field {
    use core::mem::offset_of;

    use network_types::{eth::EthHdr, ip::Ipv4Hdr, tcp::TcpHdr};

    pub const ETHERNET_SOURCE: usize = offset_of!(EthHdr, src_addr);
    pub const ETHERTYPE: usize = offset_of!(EthHdr, ether_type);
    pub const IP: usize = EthHdr::LEN;
    pub const TOS: usize = IP + offset_of!(Ipv4Hdr, tos);
    pub const TOTAL_LENGTH: usize = IP + offset_of!(Ipv4Hdr, tot_len);
    pub const FRAGMENT: usize = IP + offset_of!(Ipv4Hdr, frags);
    pub const TTL: usize = IP + offset_of!(Ipv4Hdr, ttl);
    pub const PROTOCOL: usize = IP + offset_of!(Ipv4Hdr, proto);
    pub const IP_CHECKSUM: usize = IP + offset_of!(Ipv4Hdr, check);
    pub const SOURCE: usize = IP + offset_of!(Ipv4Hdr, src_addr);
    pub const DESTINATION: usize = IP + offset_of!(Ipv4Hdr, dst_addr);
    pub const TCP: usize = IP + Ipv4Hdr::LEN;
    pub const SOURCE_PORT: usize = TCP + offset_of!(TcpHdr, source);
    pub const DESTINATION_PORT: usize = TCP + offset_of!(TcpHdr, dest);
    pub const SEQUENCE: usize = TCP + offset_of!(TcpHdr, seq);
    pub const ACKNOWLEDGEMENT: usize = TCP + offset_of!(TcpHdr, ack_seq);
    pub const DATA_OFFSET: usize = TCP + offset_of!(TcpHdr, _bitfield_1);
    pub const FLAGS: usize = DATA_OFFSET + 1;
    pub const WINDOW: usize = TCP + offset_of!(TcpHdr, window);
    pub const TCP_CHECKSUM: usize = TCP + offset_of!(TcpHdr, check);
    /// End of the TCP header without options.
    pub const PAYLOAD: usize = TCP + TcpHdr::LEN;
}

/// Offsets in a frame with an ARP packet about IPv4 addresses on Ethernet (RFC 826).
pub mod arp {
    use core::mem::offset_of;

    use network_types::{arp::ArpHdr, eth::EthHdr};

    /// The kind of network address, then the lengths of both kinds.
    pub const KIND: usize = EthHdr::LEN + offset_of!(ArpHdr, ptype);
    pub const OPERATION: usize = EthHdr::LEN + offset_of!(ArpHdr, oper);
    pub const SENDER_MAC: usize = EthHdr::LEN + offset_of!(ArpHdr, sha);
    pub const SENDER: usize = EthHdr::LEN + offset_of!(ArpHdr, spa);
    pub const TARGET: usize = EthHdr::LEN + offset_of!(ArpHdr, tpa);
    pub const END: usize = EthHdr::LEN + ArpHdr::LEN;
}

/// Offsets in a frame with a neighbour solicitation or advertisement. IPv6 extension headers are
/// not permitted in one (RFC 4861 section 6.1, RFC 6980 for fragments).
pub mod nd {
    use core::mem::offset_of;

    use network_types::{eth::EthHdr, icmp::Icmpv6Hdr, ip::Ipv6Hdr};

    pub const NEXT_HEADER: usize = EthHdr::LEN + offset_of!(Ipv6Hdr, next_hdr);
    pub const SOURCE: usize = EthHdr::LEN + offset_of!(Ipv6Hdr, src_addr);
    pub const TYPE: usize = EthHdr::LEN + Ipv6Hdr::LEN + offset_of!(Icmpv6Hdr, type_);
    pub const TARGET: usize = EthHdr::LEN + Ipv6Hdr::LEN + size_of::<Icmpv6Hdr>();
    pub const END: usize = TARGET + 16;
}

/// Offsets in a frame with an IPv4 header without options and an ICMP error (RFC 792).
pub mod icmp {
    use core::mem::offset_of;

    use network_types::icmp::Icmpv4Hdr;

    use super::field;

    pub const TYPE: usize = field::TCP + offset_of!(Icmpv4Hdr, type_);
    pub const CODE: usize = field::TCP + offset_of!(Icmpv4Hdr, code);
    pub const CHECKSUM: usize = field::TCP + offset_of!(Icmpv4Hdr, check);
    /// Of the link that the packet was too large for (RFC 1191 section 4).
    pub const MTU: usize = field::TCP + offset_of!(Icmpv4Hdr, data) + 2;
    pub const END: usize = field::TCP + Icmpv4Hdr::LEN;
}

/// Offsets of the IPv4 header that it quotes.
pub mod quote {
    use core::mem::offset_of;

    use network_types::ip::Ipv4Hdr;

    use super::icmp;

    pub const VERSION: usize = icmp::END;
    pub const IDENTIFICATION: usize = icmp::END + offset_of!(Ipv4Hdr, id);
    pub const FRAGMENT: usize = icmp::END + offset_of!(Ipv4Hdr, frags);
    pub const PROTOCOL: usize = icmp::END + offset_of!(Ipv4Hdr, proto);
    pub const CHECKSUM: usize = icmp::END + offset_of!(Ipv4Hdr, check);
    pub const SOURCE: usize = icmp::END + offset_of!(Ipv4Hdr, src_addr);
    pub const DESTINATION: usize = icmp::END + offset_of!(Ipv4Hdr, dst_addr);
    /// Without its options.
    pub const END: usize = icmp::END + Ipv4Hdr::LEN;
}

/// Bytes of the longest quote that is read and changed: an ICMP error behind an IPv4 header without
/// options, and in it an IPv4 header with 40 bytes of options and a TCP header without.
pub const LONGEST_QUOTE: u32 = icmp::END as u32 + 60 + 20;

/// What an ICMP error of ours quotes: the headers of IPv4 and TCP without options.
pub const QUOTED: usize = field::PAYLOAD - field::IP;

/// Bytes of the longest headers that are read: Ethernet, IPv4 without options, TCP with 40 bytes of
/// options.
pub const LONGEST_HEADERS: u32 = 94;
