//! Sockets of TCP, or of MPTCP, which Go listens with by default.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpSocket;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Mptcp,
}

impl Transport {
    /// A socket of IPv4.
    pub fn socket(self) -> io::Result<TcpSocket> {
        if self == Transport::Tcp {
            return TcpSocket::new_v4();
        }
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), Some(Protocol::MPTCP))?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }

    /// A socket that is bound to an address that was in use a moment ago.
    pub fn bound(self, address: SocketAddr) -> io::Result<TcpSocket> {
        let socket = self.socket()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    }
}
