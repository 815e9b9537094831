//! A socket for frames that answer no packet; they bypass the queueing discipline (packet(7)).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// A socket that sends whole frames and receives none.
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens the socket in the network namespace of this thread.
    pub fn open() -> io::Result<PacketSocket> {
        // Protocol 0: nothing is received.
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just opened, owned by nothing else.
        let socket = PacketSocket(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.bypass_queueing()?;
        Ok(socket)
    }

    fn bypass_queueing(&self) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the pointer and the length describe `on`, which lives through the call.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends one Ethernet frame, header included, through an interface. A full transmit queue is an
    /// error (`WouldBlock` or ENOBUFS), never a wait.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        // SAFETY: plain data for which zeros are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = ifindex as i32;
        // The protocol does not affect delivery, but it is what a capture shows.
        address.sll_protocol = frame.get(12..14).map_or(0, |kind| u16::from_ne_bytes([kind[0], kind[1]]));
        // SAFETY: pointers and lengths describe `frame` and `address`, which live through the call.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if sent == frame.len() as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
