//! TCP segments over IPv4 and Ethernet as values: encoded as frames, and decoded with all lengths
//! and checksums checked.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, bail, ensure};
pub use lb_common::tcp::{ACK, FIN, PSH, RST, SYN};

/// A MAC address.
pub type Mac = [u8; 6];

/// One segment in one frame. Two are equal if all fields of all headers and the payloads are equal.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment {
    pub from_mac: Mac,
    pub to_mac: Mac,
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    pub tos: u8,
    pub ttl: u8,
    /// The TCP options: a multiple of four bytes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flags: String = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (PSH, 'P'), (ACK, '.')]
            .iter()
            .filter(|(flag, _)| self.flags & flag != 0)
            .map(|(_, letter)| *letter)
            .collect();
        let mac = |mac: &Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
        write!(f, "{} > {} [{flags}] seq {} ack {}", self.from, self.to, self.sequence, self.acknowledgement)?;
        write!(f, " win {} tos {} ttl {}", self.window, self.tos, self.ttl)?;
        write!(f, " options {:02x?} payload {} bytes", self.options, self.payload.len())?;
        write!(f, " ({} > {})", mac(&self.from_mac), mac(&self.to_mac))
    }
}

/// The options of a Linux SYN: MSS 1460, SACK permitted, timestamps, window scale 7.
pub const LINUX_OPTIONS: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0, 1, 3, 3, 7];

impl Segment {
    /// An ordinary segment.
    pub fn new(from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Segment {
        Segment {
            from_mac: [0; 6],
            to_mac: [0; 6],
            from,
            to,
            sequence: 0,
            acknowledgement: 0,
            flags,
            window: 64_240,
            tos: 0,
            ttl: 64,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// The same with these sequence and acknowledgement numbers.
    pub fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Segment {
        (self.sequence, self.acknowledgement) = (sequence, acknowledgement);
        self
    }

    /// The same with these MAC addresses.
    pub fn macs(mut self, from: Mac, to: Mac) -> Segment {
        (self.from_mac, self.to_mac) = (from, to);
        self
    }

    /// The same with these TCP options.
    pub fn options(mut self, options: &[u8]) -> Segment {
        self.options = options.to_vec();
        self
    }

    /// The same with a payload.
    pub fn payload(mut self, payload: &[u8]) -> Segment {
        self.payload = payload.to_vec();
        self
    }

    /// The frame, with correct lengths and checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = (20 + header + self.payload.len()) as u16;
        let mut frame = Vec::with_capacity(14 + usize::from(total));
        frame.extend(self.to_mac);
        frame.extend(self.from_mac);
        frame.extend([0x08, 0x00, 0x45, self.tos]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, self.ttl, 6, 0, 0]);
        frame.extend(self.from.ip().octets());
        frame.extend(self.to.ip().octets());
        let sum = checksum(&frame[14..34], 0);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(self.from.port().to_be_bytes());
        frame.extend(self.to.port().to_be_bytes());
        frame.extend(self.sequence.to_be_bytes());
        frame.extend(self.acknowledgement.to_be_bytes());
        frame.extend([(header << 2) as u8, self.flags]);
        frame.extend(self.window.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(&self.options);
        frame.extend(&self.payload);
        let sum = checksum(&frame[34..], pseudo_header(&frame));
        frame[50..52].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// Decodes a frame. Anything but exactly one correct segment is an error.
    pub fn parse(frame: &[u8]) -> Result<Segment> {
        let segment = Segment::fields(frame)?;
        ensure!(checksum(&frame[14..34], 0) == 0, "wrong IP checksum");
        ensure!(Segment::is_intact(frame), "wrong TCP checksum");
        Ok(segment)
    }

    /// Whether the TCP checksum of a frame that [`fields`](Self::fields) decodes is right.
    pub fn is_intact(frame: &[u8]) -> bool {
        let frame = &frame[..14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))];
        checksum(&frame[34..], pseudo_header(frame)) == 0
    }

    /// The same as [`parse`](Self::parse), whatever the checksums are.
    pub fn fields(frame: &[u8]) -> Result<Segment> {
        ensure!(frame.len() >= 54, "a frame of {} bytes has no room for the headers", frame.len());
        ensure!(frame[12..15] == [8, 0, 0x45] && frame[23] == 6, "not TCP over IPv4 without options");
        let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let header = usize::from(frame[46] >> 4) * 4;
        if frame.len() < 14 + total || total < 20 + header || header < 20 {
            bail!("lengths disagree: frame {}, IP {total}, TCP header {header}", frame.len());
        }
        let frame = &frame[..14 + total];
        let address = |at: usize, port: usize| {
            let ip = Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
            SocketAddrV4::new(ip, u16::from_be_bytes([frame[port], frame[port + 1]]))
        };
        let number = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        Ok(Segment {
            from_mac: frame[6..12].try_into()?,
            to_mac: frame[..6].try_into()?,
            from: address(26, 34),
            to: address(30, 36),
            sequence: number(38),
            acknowledgement: number(42),
            flags: frame[47],
            window: u16::from_be_bytes([frame[48], frame[49]]),
            tos: frame[15],
            ttl: frame[22],
            options: frame[54..34 + header].to_vec(),
            payload: frame[34 + header..].to_vec(),
        })
    }
}

/// Writes the checksum of an IPv4 header, options and all.
pub fn seal(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = checksum(header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The sum over the addresses, the protocol and the length of the TCP segment.
fn pseudo_header(frame: &[u8]) -> u32 {
    let words = frame[26..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    words.sum::<u32>() + 6 + (frame.len() - 34) as u32
}

/// RFC 1071 over big-endian words, written as in the standard and not as in lb-common, which it
/// checks.
pub fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
