//! A UDP socket with buffers large enough for bursts.

use std::{io, net::SocketAddr, os::fd::AsFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// Bytes that may wait in the kernel, in each direction; the kernel charges each datagram at about
/// twice its size.
const BUFFER: usize = 4 * 1024 * 1024;

/// Binds a non-blocking socket. Call it inside a tokio runtime.
pub fn bind(address: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // With CAP_NET_ADMIN beyond net.core.rmem_max, otherwise up to it.
    if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    if setsockopt(&socket.as_fd(), sockopt::SndBufForce, &BUFFER).is_err() {
        socket.set_send_buffer_size(BUFFER)?;
    }
    socket.bind(&address.into())?;
    tokio::net::UdpSocket::from_std(socket.into())
}
