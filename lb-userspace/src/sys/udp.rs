//! A socket for datagrams, with room for bursts of them.

use std::{io, net::SocketAddr, os::fd::AsFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// Bytes of datagrams that may wait in the kernel, each way; it counts about twice the size of each.
const BUFFER: usize = 4 * 1024 * 1024;

/// Binds one that never waits. Inside a tokio runtime.
pub fn bind(address: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // Beyond net.core.rmem_max with CAP_NET_ADMIN, else up to it.
    if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    if setsockopt(&socket.as_fd(), sockopt::SndBufForce, &BUFFER).is_err() {
        socket.set_send_buffer_size(BUFFER)?;
    }
    socket.bind(&address.into())?;
    tokio::net::UdpSocket::from_std(socket.into())
}
