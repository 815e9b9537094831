//! One connection of a client, over TLS or plain.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time,
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls::pki_types::ServerName};

use crate::pki;

/// The longest head of an answer.
const HEAD: usize = 4096;

/// Why a connection failed or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    Refused,
    Reset,
    /// The other side closed before it answered.
    Closed,
    Timeout,
    Tls,
    /// No free port or file descriptor on this side.
    Local,
    Other,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Local => "local",
            Self::Other => "other",
        })
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => Self::Refused,
            Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => Self::Reset,
            Kind::UnexpectedEof => Self::Closed,
            Kind::TimedOut => Self::Timeout,
            Kind::InvalidData => Self::Tls,
            Kind::AddrInUse | Kind::AddrNotAvailable => Self::Local,
            _ => Self::Other,
        }
    }
}

/// How we end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fin,
    Rst,
    /// Without a word, like a host that loses power.
    Vanish,
}

pub enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The answer to a request.
pub struct Reply {
    pub status: u16,
    pub served_by: String,
    /// How many bytes of the body are in `rest` or still to come; `None`: all until the end.
    pub length: Option<u64>,
    /// What was read behind the head.
    pub rest: Vec<u8>,
}

impl Connection {
    /// Opens one with a socket that may be bound to an address.
    pub async fn open(
        socket: io::Result<TcpSocket>,
        to: SocketAddrV4,
        from: Option<Ipv4Addr>,
        tls: Option<&TlsConnector>,
    ) -> Result<Self, Failure> {
        let socket = socket?;
        if let Some(from) = from {
            // As without a bind, the kernel picks the port when it knows the destination too.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).map_err(io::Error::from)?;
            socket.bind((from, 0).into())?;
        }
        let stream = socket.connect(to.into()).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = tls else { return Ok(Self::Plain(stream)) };
        let name = ServerName::try_from(pki::SERVER_NAME).map_err(|_| Failure::Tls)?;
        Ok(Self::Tls(Box::new(tls.connect(name, stream).await?)))
    }

    /// Sends a line of the plain protocol or requests a path over HTTP, and returns the server's
    /// name.
    pub async fn ask(&mut self, line: &str, path: &str) -> Result<String, Failure> {
        match self {
            Self::Plain(stream) => {
                stream.write_all(format!("{line}\n").as_bytes()).await?;
                self.line().await
            }
            Self::Tls(_) => {
                self.request("GET", path, 0).await?;
                let mut reply = self.reply().await?;
                let body = reply.length.unwrap_or(0) - reply.rest.len() as u64;
                reply.rest.resize(usize::try_from(body).map_err(|_| Failure::Other)?, 0);
                self.read_exact(&mut reply.rest).await?;
                if reply.status == 200 { Ok(reply.served_by) } else { Err(Failure::Other) }
            }
        }
    }

    /// Sends a line of the plain protocol.
    pub async fn line(&mut self) -> Result<String, Failure> {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.len() < HEAD {
            self.read_exact(&mut byte).await?;
            if byte[0] == b'\n' {
                return String::from_utf8(line).map_err(|_| Failure::Other);
            }
            line.push(byte[0]);
        }
        Err(Failure::Other)
    }

    /// Sends the head of a request; the caller writes a body of `length` bytes.
    pub async fn request(&mut self, method: &str, path: &str, length: u64) -> Result<(), Failure> {
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\n\r\n", pki::SERVER_NAME);
        self.write_all(head.as_bytes()).await?;
        Ok(())
    }

    /// Reads the head of the answer.
    pub async fn reply(&mut self) -> Result<Reply, Failure> {
        let mut read = Vec::new();
        let mut block = [0; 1024];
        while read.len() < HEAD {
            let length = self.read(&mut block).await?;
            if length == 0 {
                return Err(Failure::Closed);
            }
            read.extend_from_slice(&block[..length]);
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = read.split_off(end + 4);
                return parse(&read, rest).ok_or(Failure::Other);
            }
        }
        Err(Failure::Other)
    }

    pub async fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(into).await,
            Self::Tls(stream) => stream.read(into).await,
        }
    }

    async fn read_exact(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_exact(into).await,
            Self::Tls(stream) => stream.read_exact(into).await,
        }
    }

    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// Sends a FIN, after a close_notify over TLS. The other direction stays open.
    pub async fn half_close(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.shutdown().await,
            Self::Tls(stream) => stream.shutdown().await,
        }
    }

    /// Reads until the other side ends the connection.
    pub async fn drain(&mut self) -> io::Result<()> {
        let mut ignored = [0; 2048];
        while self.read(&mut ignored).await? > 0 {}
        Ok(())
    }

    /// Ends the connection from our side.
    pub async fn end(mut self, how: End, limit: Duration) -> Result<(), Failure> {
        match how {
            End::Rst => self.socket().set_zero_linger()?,
            // A socket under repair (CRIU) closes silently.
            End::Vanish => setsockopt(self.socket(), sockopt::TcpRepair, &1).map_err(io::Error::from)?,
            End::Fin => {
                self.half_close().await?;
                match time::timeout(limit, self.drain()).await {
                    // TLS reports that the peer left without a close_notify, which it had already
                    // received from us.
                    Ok(Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error.into()),
                    Ok(_) => {}
                    Err(_) => return Err(Failure::Timeout),
                }
            }
        }
        Ok(())
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

fn parse(head: &[u8], rest: Vec<u8>) -> Option<Reply> {
    let head = std::str::from_utf8(head).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let field = |name: &str| {
        let line =
            head.lines().find(|line| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))?;
        Some(line[name.len()..].trim().to_owned())
    };
    let length = field("content-length:").and_then(|value| value.parse().ok());
    Some(Reply { status, served_by: field("x-served-by:").unwrap_or_default(), length, rest })
}
