//! What the benchmarks' programs and their loader agree on: the packet that is made next, and the
//! wiring of the lab.
//!
//! A flow is a number that determines its client, backend and SNAT port. So 1,048,576 flows need no
//! table, which would take cache away from what is measured.

#![no_std]

use lb_common::checksum::finish;

/// Bytes of a frame that are restored before every run: Ethernet, IPv4 and TCP without options.
pub const HEADERS: usize = 54;
/// The first address of the clients, 10.64.0.0. Sixteen flows share an address.
pub const CLIENTS: u32 = 0x0a40_0000;
/// The first port of the clients.
pub const CLIENT_PORT: u16 = 40_000;
/// The address of backend 0, 10.0.1.10.
pub const BACKENDS: u32 = 0x0a00_010a;
/// Entries of the kernel's hash table that our tables are compared with: the default
/// `max_connections`.
pub const HASH_ENTRIES: usize = 262_144;

/// Lines of the table of lines that our tables are compared with: one per flow of the largest
/// measurement with it.
pub const LINES: usize = 65_536;
/// Lines of an index with room for half as many flows again, at four entries per line.
pub const INDEX_LINES: usize = LINES / 4 * 3 / 2;

/// The clock is read once per this many packets.
pub const BLOCK: u32 = 64;
/// The most blocks in a run.
pub const BLOCKS: usize = 2048;

/// Packets from clients: the source varies.
pub const CLIENT: u32 = 0;
/// Packets from backends: the source address and the destination port vary.
pub const BACKEND: u32 = 1;
/// The same packet every time.
pub const SAME: u32 = 2;

/// Which packets are made. The loader writes it, and the program advances `turn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Plan {
    /// The headers, with zeros in the varying fields and in the checksums. The last two bytes are
    /// not sent.
    pub frame: [u64; 7],
    /// The first packet of the run.
    pub start: u32,
    /// The next packet.
    pub turn: u32,
    /// The number of the first flow.
    pub first: u32,
    /// The flows are `first` to `first + mask`; `mask` is a power of two, minus one.
    pub mask: u32,
    /// Half the bits of `mask`, for the scattered order; 0: one flow after the other.
    pub half: u32,
    /// `CLIENT`, `BACKEND` or `SAME`.
    pub side: u32,
    /// There are `1 << backend_bits` backends, and flows are assigned to them in turn.
    pub backend_bits: u32,
    /// SNAT ports per backend: a power of two, minus one.
    pub slot_mask: u32,
    /// The first SNAT port.
    pub first_port: u32,
    /// The sum of the words of the IPv4 header, without what varies.
    pub ip_sum: u32,
    /// The sum of the words of TCP pseudo-header, header and payload, without what varies.
    pub tcp_sum: u32,
    /// Always zero.
    pub reserved: u32,
}

/// What is filled into a packet: words in memory order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turned {
    /// The source address.
    pub source: u32,
    /// The source port, of packets from clients.
    pub source_port: u16,
    /// The destination port, of packets from backends.
    pub destination_port: u16,
    /// The checksum of the IPv4 header.
    pub ip_check: u16,
    /// The TCP checksum.
    pub tcp_check: u16,
}

impl Plan {
    /// The flow of packet number `turn`.
    #[inline(always)]
    pub fn flow(&self, turn: u32) -> u32 {
        let number = turn & self.mask;
        if self.half == 0 {
            return self.first + number;
        }
        // A permutation of `0..=mask` that puts neighbours far apart at no fixed distance.
        let number = (number ^ number >> (self.half & 31)).wrapping_mul(0x9E37_79B1) & self.mask;
        let number = (number ^ number >> (self.half & 31)).wrapping_mul(0x85EB_CA77) & self.mask;
        self.first + (number ^ number >> (self.half & 31))
    }

    /// The backend and the slot of a flow, if flows are assigned to backends in turn and slots are
    /// used in order.
    #[inline(always)]
    pub fn place(&self, flow: u32) -> (u32, u32) {
        let backend = flow & ((1 << (self.backend_bits & 31)) - 1);
        (backend, flow >> (self.backend_bits & 31) & self.slot_mask)
    }

    /// What the packet of a flow differs in.
    #[inline(always)]
    pub fn turned(&self, flow: u32) -> Turned {
        let (source, source_port, destination_port) = match self.side {
            CLIENT => ((CLIENTS + (flow >> 4)).to_be(), client_port(flow), 0),
            BACKEND => {
                let (backend, slot) = self.place(flow);
                ((BACKENDS + backend).to_be(), 0, ((self.first_port + slot) as u16).to_be())
            }
            _ => (0, 0, 0),
        };
        let addresses = source as u64;
        let ports = source_port as u64 + destination_port as u64;
        Turned {
            source,
            source_port,
            destination_port,
            ip_check: finish(self.ip_sum as u64 + addresses),
            tcp_check: finish(self.tcp_sum as u64 + addresses + ports),
        }
    }
}

/// The port of a flow's client.
#[inline(always)]
fn client_port(flow: u32) -> u16 {
    (CLIENT_PORT + (flow & 15) as u16).to_be()
}

/// What a balancer that only rewrites has to know about the lab, see `bare_tc`. Addresses and ports
/// are in network order, MAC addresses in the lower six bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Wiring {
    /// The device that packets arrive at and leave through.
    pub ifindex: u64,
    /// The MAC address of the device.
    pub mac: u64,
    /// The address that clients connect to.
    pub vip: u64,
    /// The port of the servers and of the balancer.
    pub port: u64,
    /// The only client and its MAC address.
    pub client: [u64; 2],
    /// The three servers and their MAC addresses.
    pub servers: [[u64; 2]; 3],
}

#[cfg(test)]
mod tests;
