//! Hears who asks for a connection by an interface: the SYNs that come in there for this host
//! (packet(7)). The kernel looks for them; nothing else is copied.

use std::{
    io::{self, Read},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
};

use socket2::{Domain, SockFilter, Socket, Type};

/// A socket that hears the SYNs of one interface.
pub struct SynTap(Socket);

/// One instruction of the filter (linux/filter.h).
const fn step(code: u16, if_true: u8, if_false: u8, k: u32) -> SockFilter {
    SockFilter::new(code, if_true, if_false, k)
}

/// `ldb [k]`, `ldh [k]`, `ldxb 4*([k]&0xf)`, `ldb [x+k]`, `and #k`, `jeq #k`, `jset #k`, `ret #k`.
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_HEADER_LENGTH: u16 = 0xb1;
const LOAD_BYTE_BEHIND: u16 = 0x50;
const AND: u16 = 0x54;
const IS: u16 = 0x15;
const HAS: u16 = 0x45;
const RETURN: u16 = 0x06;
/// Where the filter finds whom a frame was for (SKF_AD_OFF + SKF_AD_PKTTYPE).
const FOR_WHOM: u32 = (-0x1000_i32 + 4) as u32;
/// As much as the headers of a SYN without options.
const LENGTH: u32 = 64;

/// IPv4, for this host, TCP, no fragment but the first, SYN without ACK.
const FILTER: [SockFilter; 12] = [
    step(LOAD_BYTE, 0, 0, FOR_WHOM),
    step(IS, 0, 8, libc::PACKET_HOST as u32),
    step(LOAD_BYTE, 0, 0, 9),
    step(IS, 0, 6, libc::IPPROTO_TCP as u32),
    step(LOAD_HALF, 0, 0, 6),
    step(HAS, 4, 0, 0x1fff),
    step(LOAD_HEADER_LENGTH, 0, 0, 0),
    step(LOAD_BYTE_BEHIND, 0, 0, 13),
    step(AND, 0, 0, 0x12),
    step(IS, 1, 0, 0x02),
    step(RETURN, 0, 0, 0),
    step(RETURN, 0, 0, LENGTH),
];

impl SynTap {
    /// Listens on an interface of the network namespace of this thread.
    pub fn open(ifindex: u32) -> io::Result<SynTap> {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        // Before it hears anything.
        socket.attach_filter(&FILTER)?;
        // SAFETY: plain data for which zeros are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
        address.sll_ifindex = ifindex as i32;
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the pointer and the length describe `address`, which lives through the call.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if bound == 0 { Ok(SynTap(socket)) } else { Err(io::Error::last_os_error()) }
    }

    /// Who has asked, and for what; `None`: nobody more by now.
    pub fn next(&self) -> Option<(SocketAddrV4, SocketAddrV4)> {
        let mut bytes = [0_u8; LENGTH as usize];
        let length = (&self.0).read(&mut bytes).ok()?;
        ends_of(bytes.get(..length)?)
    }
}

/// The source and the destination of a TCP segment over IPv4.
fn ends_of(packet: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let port = |at: usize| Some(u16::from_be_bytes(packet.get(header + at..header + at + 2)?.try_into().ok()?));
    Some((SocketAddrV4::new(address(12)?, port(0)?), SocketAddrV4::new(address(16)?, port(2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_read_behind_options_and_what_is_cut_off_is_nobody() {
        let mut packet = vec![0x46, 0, 0, 44, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 50, 10, 0, 1, 100, 1, 1, 1, 1];
        packet.extend([0xc3, 0x50, 0x19, 0x2b]);
        let ends = ("10.0.2.50:50000".parse().unwrap(), "10.0.1.100:6443".parse().unwrap());
        assert_eq!(ends_of(&packet), Some(ends));
        assert_eq!(ends_of(&packet[..27]), None);
        assert_eq!(ends_of(&[]), None);
    }
}
