//! Sockets for an IP protocol on one interface: what VRRP sends and receives through. Nothing here
//! blocks.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, Socket, Type};

/// TC_PRIO_CONTROL (linux/pkt_sched.h): ahead of everything else in the interface's queue.
const PRIORITY: u32 = 7;
/// Bytes; room for what arrives while the process is stopped.
const RECEIVE_BUFFER: usize = 256 * 1024;

/// The protocol, and how its packets leave.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The protocol's number.
    pub protocol: u8,
    /// Over IPv4 rather than IPv6.
    pub ipv4: bool,
    /// The hop limit over IPv6. Over IPv4 the caller supplies the whole header.
    pub hop_limit: u8,
    /// The traffic class over IPv6.
    pub traffic_class: u8,
}

/// The socket.
pub struct RawIp {
    socket: Socket,
    ifindex: u32,
    group: Option<IpAddr>,
}

/// A socket's membership in its multicast group.
pub struct Membership {
    socket: Socket,
    ifindex: u32,
    group: IpAddr,
}

impl Membership {
    /// Gives it up. The kernel knows it by the interface's index alone: if the interface is gone,
    /// and another one has its index, a socket that is closed takes away the membership of the
    /// socket that has joined there in its place. So it leaves before that one joins.
    pub fn leave(self) {
        // A membership that went with its interface is none to give up.
        _ = match self.group {
            IpAddr::V4(group) => {
                self.socket.leave_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(self.ifindex))
            }
            IpAddr::V6(group) => self.socket.leave_multicast_v6(&group, self.ifindex),
        };
    }
}

/// A received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// An IPv4 packet of this many bytes, with its header.
    V4(usize),
    /// The payload of an IPv6 packet, and what its header said.
    V6 {
        /// The payload's length in bytes.
        length: usize,
        /// The source address.
        source: Ipv6Addr,
        /// The destination address.
        destination: Ipv6Addr,
        /// The hop limit it arrived with.
        hop_limit: u8,
    },
}

impl RawIp {
    /// Opens the socket on one interface and joins `group` there.
    pub fn open(kind: Kind, interface: &str, ifindex: u32, group: Option<IpAddr>) -> io::Result<RawIp> {
        let domain = if kind.ipv4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(kind.protocol))))?;
        socket.set_nonblocking(true)?;
        // Bound before anything else, so that not even the first packets come from another
        // interface.
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_priority(PRIORITY)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        if kind.ipv4 {
            socket.set_header_included_v4(true)?;
            socket.set_multicast_loop_v4(false)?;
            socket.set_multicast_all_v4(false)?;
        } else {
            socket.set_multicast_loop_v6(false)?;
            socket.set_multicast_all_v6(false)?;
            socket.set_multicast_if_v6(ifindex)?;
            socket.set_multicast_hops_v6(kind.hop_limit.into())?;
            socket.set_unicast_hops_v6(kind.hop_limit.into())?;
            socket.set_tclass_v6(kind.traffic_class.into())?;
            socket.set_recv_hoplimit_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        match group {
            Some(IpAddr::V4(group)) => socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(ifindex))?,
            Some(IpAddr::V6(group)) => socket.join_multicast_v6(&group, ifindex)?,
            None => {}
        }
        Ok(RawIp { socket, ifindex, group })
    }

    /// Its membership in the group; `None` if it has joined none.
    pub fn membership(&self) -> io::Result<Option<Membership>> {
        let of = |group| Ok(Membership { socket: self.socket.try_clone()?, ifindex: self.ifindex, group });
        self.group.map(of).transpose()
    }

    /// Sends a packet; over IPv4 with its header, which names the source.
    pub fn send(&self, packet: &[u8], source: IpAddr, destination: IpAddr) -> io::Result<()> {
        let sent = match (source, destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.send_v6(packet, source, destination)?,
            _ => self.socket.send_to(packet, &SockAddr::from(SocketAddr::new(destination, 0)))?,
        };
        if sent == packet.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn send_v6(&self, payload: &[u8], source: Ipv6Addr, destination: Ipv6Addr) -> io::Result<usize> {
        let address = libc::in6_addr { s6_addr: source.octets() };
        let from = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: self.ifindex };
        let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, self.ifindex));
        let control = [ControlMessage::Ipv6PacketInfo(&from)];
        let payload = [io::IoSlice::new(payload)];
        Ok(sendmsg(self.socket.as_raw_fd(), &payload, &control, MsgFlags::MSG_DONTWAIT, Some(&to))?)
    }

    /// Takes a packet from the socket; `None` if it holds none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = match recvmsg::<SockaddrIn6>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(nix::Error::EAGAIN) => return Ok(None),
            message => message?,
        };
        let length = message.bytes;
        let (mut destination, mut hop_limit) = (None, None);
        for part in message.cmsgs()? {
            match part {
                ControlMessageOwned::Ipv6PacketInfo(info) => destination = Some(info.ipi6_addr.s6_addr.into()),
                ControlMessageOwned::Ipv6HopLimit(hops) => hop_limit = u8::try_from(hops).ok(),
                _ => {}
            }
        }
        Ok(Some(match (message.address.map(|from| from.ip()), destination, hop_limit) {
            (Some(source), Some(destination), Some(hop_limit)) => {
                Received::V6 { length, source, destination, hop_limit }
            }
            _ => Received::V4(length),
        }))
    }
}

impl AsFd for RawIp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
