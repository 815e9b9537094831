//! One probe, from the SYN to the end of its connection.
//!
//! `tcp` ends in the middle of the handshake, with a RST instead of the last acknowledgement, so
//! that the API server never notices it (it logs every connection that ends before TLS begins).
//! `https` sends a complete request and closes the connection in order, from this side, so that
//! TIME_WAIT stays on this host.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{ACCEPT, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, pki_types::ServerName},
};

use super::{source::Source, tls};
use crate::{
    config::model,
    controller::probe_count::{Outcome, Unready},
};

/// Bytes read of an answer's body at most; the verbose answer of `/readyz` has about 2,000.
const BODY: usize = 64 * 1024;

/// What one probe does.
#[derive(Debug)]
pub enum Check {
    /// Connects: the kernel must answer the SYN.
    Tcp,
    /// Sends a request: the server must answer it.
    Https(Https),
}

/// The request and the expected answers.
#[derive(Debug)]
pub struct Https {
    path: String,
    expect: Vec<u16>,
    tls: Arc<ClientConfig>,
}

/// Why a probe has no answer.
enum Fault {
    Refused,
    /// The backend did not answer properly, for this reason.
    Failed(String),
    /// It speaks TLS, and the handshake failed for what it is, for this reason.
    Untrusted(String),
    /// This host lacks something; that says nothing about the backend.
    Ours(io::Error),
}

impl Check {
    /// Reads the CA file, if one is configured.
    pub fn new(settings: &model::Health) -> Result<Check> {
        Ok(match settings.probe {
            model::Probe::Tcp => Check::Tcp,
            model::Probe::Https => Check::Https(Https {
                path: settings.path.clone(),
                expect: settings.expect.clone(),
                tls: tls::config(settings.ca.as_deref())?,
            }),
        })
    }

    /// Probes once, within `timeout` in total. Returns the outcome and a text for the log; an error
    /// concerns this host.
    pub async fn run(&self, address: SocketAddr, timeout: Duration, source: &Source) -> Result<(Outcome, String)> {
        let by = Deadline { at: Instant::now() + timeout, timeout };
        let found = match self {
            Check::Tcp => connect(address, true, source, &by).await.and_then(|stream| {
                // The RST removes the connection before anything has accepted it.
                stream.set_zero_linger().map_err(Fault::Ours)?;
                Ok((Outcome::Passed, "connected".to_owned()))
            }),
            Check::Https(https) => https.ask(address, source, &by).await.map(|status| https.judge(status)),
        };
        match found {
            Ok(answer) => Ok(answer),
            Err(Fault::Refused) => Ok((Outcome::Refused, "connection refused".to_owned())),
            Err(Fault::Untrusted(why)) => Ok((Outcome::NotReady(Unready::Tls), why)),
            Err(Fault::Failed(why)) => Ok((Outcome::Failed, why)),
            Err(Fault::Ours(error)) => Err(error).context("on this host"),
        }
    }
}

/// When a check must be over.
struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    async fn keep<T>(&self, what: &str, work: impl Future<Output = T>) -> Result<T, Fault> {
        let late = |_| Fault::Failed(format!("{what}: no answer within {} ms", self.timeout.as_millis()));
        timeout_at(self.at, work).await.map_err(late)
    }
}

/// Connects. `half` leaves out the last acknowledgement of the handshake.
async fn connect(address: SocketAddr, half: bool, source: &Source, by: &Deadline) -> Result<TcpStream, Fault> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(Fault::Ours)?;
    source.bind(&socket, address).map_err(Fault::Ours)?;
    if half {
        // The acknowledgement of the SYN-ACK waits for data to be sent with it (tcp(7),
        // TCP_QUICKACK).
        SockRef::from(&socket).set_tcp_quickack(false).map_err(Fault::Ours)?;
    }
    by.keep("connect", socket.connect(address)).await?.map_err(|error| match error.kind() {
        ErrorKind::ConnectionRefused => Fault::Refused,
        _ if is_ours(&error) => Fault::Ours(error),
        _ => Fault::Failed(format!("connect: {error}")),
    })
}

/// Whether this host lacks something: ports, files, memory or permission.
fn is_ours(error: &io::Error) -> bool {
    let kinds =
        [ErrorKind::AddrNotAvailable, ErrorKind::AddrInUse, ErrorKind::PermissionDenied, ErrorKind::OutOfMemory];
    let number = error.raw_os_error().map(Errno::from_raw);
    kinds.contains(&error.kind()) || matches!(number, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS))
}

/// Why a TLS handshake failed. A certificate that does not verify (renewed by another authority,
/// not valid yet by this host's clock), an alert or a protocol that is not shared come from a
/// living server, whose connections go on.
fn no_handshake(error: io::Error) -> Fault {
    let why = format!("TLS handshake: {error}");
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(
            rustls::Error::InvalidCertificate(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::UnsupportedNameType
            | rustls::Error::AlertReceived(_)
            | rustls::Error::PeerIncompatible(_),
        ) => Fault::Untrusted(why),
        _ => Fault::Failed(why),
    }
}

impl Https {
    fn judge(&self, status: StatusCode) -> (Outcome, String) {
        let listed = self.expect.contains(&status.as_u16());
        (
            if listed { Outcome::Passed } else { Outcome::NotReady(Unready::Status) },
            format!("status {}", status.as_u16()),
        )
    }

    async fn ask(&self, address: SocketAddr, source: &Source, by: &Deadline) -> Result<StatusCode, Fault> {
        let stream = connect(address, false, source, by).await?;
        stream.set_nodelay(true).map_err(Fault::Ours)?;
        // An address is not sent as SNI, and the certificate need not contain it.
        let connecting = TlsConnector::from(self.tls.clone()).connect(ServerName::from(address.ip()), stream);
        let stream = by.keep("TLS handshake", connecting).await?;
        let stream = stream.map_err(no_handshake)?;
        let failed = |error: hyper::Error| Fault::Failed(format!("HTTP: {error}"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // Ends with this function, whatever happens to the connection.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let answer = by.keep("HTTP", sender.send_request(self.request(address)?)).await?.map_err(failed)?;
        let status = answer.status();
        _ = by.keep("body", Limited::new(answer.into_body(), BODY).collect()).await;
        // Without a sender the connection closes in order; the answer counts even if that takes too
        // long.
        drop(sender);
        _ = by.keep("close", driver.join_next()).await;
        Ok(status)
    }

    fn request(&self, address: SocketAddr) -> Result<Request<Empty<Bytes>>, Fault> {
        let agent = concat!("evenkeel/", env!("CARGO_PKG_VERSION"));
        let request = Request::get(&self.path).header(HOST, address.to_string());
        let request = request.header(USER_AGENT, agent).header(ACCEPT, "*/*").body(Empty::new());
        request.map_err(|error| Fault::Failed(format!("cannot build the request: {error}")))
    }
}
