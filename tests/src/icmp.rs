//! ICMP errors over IPv4 as values (RFC 792): encoded as frames, and decoded with all lengths and
//! checksums checked.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use crate::packet::{Mac, checksum, seal};

/// Destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Time to live exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Of UNREACHABLE: the packet is too large and must not be cut.
pub const FRAGMENTATION_NEEDED: u8 = 4;

/// One error in one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IcmpError {
    pub from_mac: Mac,
    pub to_mac: Mac,
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub ttl: u8,
    pub kind: u8,
    pub code: u8,
    /// What the next link takes, of FRAGMENTATION_NEEDED.
    pub mtu: u16,
    /// The packet that it is about, from its IPv4 header on, as far as it is quoted.
    pub quote: Vec<u8>,
}

impl IcmpError {
    /// The error of a router about a frame, to the sender of its packet, with `bytes` of what is
    /// behind its IPv4 header.
    pub fn about(frame: &[u8], bytes: usize) -> IcmpError {
        let header = usize::from(frame[14] & 15) * 4;
        IcmpError {
            from_mac: frame[..6].try_into().expect("a frame"),
            to_mac: frame[6..12].try_into().expect("a frame"),
            from: Ipv4Addr::new(198, 51, 100, 7),
            to: Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29]),
            ttl: 64,
            kind: UNREACHABLE,
            code: 1,
            mtu: 0,
            quote: frame[14..frame.len().min(14 + header + bytes)].to_vec(),
        }
    }

    /// The same of another type and code.
    pub fn says(mut self, kind: u8, code: u8) -> IcmpError {
        (self.kind, self.code) = (kind, code);
        self
    }

    /// The same about a packet that is too large for a link.
    pub fn too_large(mut self, mtu: u16) -> IcmpError {
        (self.kind, self.code, self.mtu) = (UNREACHABLE, FRAGMENTATION_NEEDED, mtu);
        self
    }

    /// The frame, with correct lengths and checksums, and with these options in its IPv4 header.
    pub fn bytes_with(&self, options: &[u8]) -> Vec<u8> {
        let header = 20 + options.len();
        let mut frame = [self.to_mac, self.from_mac].concat();
        frame.extend([0x08, 0x00, 0x40 | (header / 4) as u8, 0xc0]);
        frame.extend(((header + 8 + self.quote.len()) as u16).to_be_bytes());
        frame.extend([0x12, 0x34, 0, 0, self.ttl, 1, 0, 0]);
        frame.extend(self.from.octets());
        frame.extend(self.to.octets());
        frame.extend(options);
        seal(&mut frame[14..]);
        frame.extend([self.kind, self.code, 0, 0, 0, 0]);
        frame.extend(self.mtu.to_be_bytes());
        frame.extend(&self.quote);
        let sum = checksum(&frame[14 + header..], 0);
        frame[14 + header + 2..][..2].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// The frame without options.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_with(&[])
    }

    /// Decodes a frame. Anything but exactly one correct error is refused.
    pub fn parse(frame: &[u8]) -> Result<IcmpError> {
        ensure!(frame.len() >= 42 && frame[12..15] == [8, 0, 0x45] && frame[23] == 1, "not ICMP over IPv4");
        let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        ensure!(frame.len() == 14 + total, "lengths disagree: frame {}, IP {total}", frame.len());
        ensure!(checksum(&frame[14..34], 0) == 0, "wrong IP checksum");
        ensure!(checksum(&frame[34..], 0) == 0, "wrong ICMP checksum");
        let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        Ok(IcmpError {
            from_mac: frame[6..12].try_into()?,
            to_mac: frame[..6].try_into()?,
            from: address(26),
            to: address(30),
            ttl: frame[22],
            kind: frame[34],
            code: frame[35],
            mtu: u16::from_be_bytes([frame[40], frame[41]]),
            quote: frame[42..].to_vec(),
        })
    }
}
