//! The listener of `[api]`, on a separate thread: whatever arrives there, the daemon's loop sees
//! only one question at a time.
//!
//! Everything is limited: the number of connections, the size and duration of a request's head, the
//! lifetime of a connection. A connection over the limit gets 503 and is counted; what is not HTTP
//! gets 400.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use log::Level;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot},
};

use super::{
    hosts::Hosts,
    routes::{self, Daemon},
};
use crate::notice::{History, Kind, Notice};

/// The limits of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// How long the head of a request may take to arrive, and how long a connection may be idle
    /// before the next request.
    pub head: Duration,
    /// How long a connection may live. After that the current answer has [`FAREWELL`] to be read.
    pub life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections: 64, head: Duration::from_secs(10), life: Duration::from_secs(120) }
    }
}

/// How long the current answer may still take when a connection's time is over.
const FAREWELL: Duration = Duration::from_secs(5);
/// Largest head of a request, in bytes.
const HEAD: usize = 16 * 1024;
/// Most header lines of a request.
const HEADERS: usize = 64;
/// Time between two attempts to listen on an address that is not available.
const AGAIN: Duration = Duration::from_secs(1);
/// The answer to a connection over the limit.
const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 21\r\n\r\ntoo many connections\n";

/// A listener. Dropping it closes it and its connections.
pub struct Listener {
    address: SocketAddr,
    refused: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens with the default limits. If the address is not available, this returns a warning and
    /// retries every second: it may be the VIP while another host holds it, or still belong to a
    /// daemon that is stopping.
    pub fn start(address: SocketAddr, hosts: Hosts, daemon: Daemon) -> (Listener, Option<String>) {
        Listener::with_limits(address, hosts, daemon, Limits::default())
    }

    /// The same with other limits.
    pub fn with_limits(
        address: SocketAddr,
        hosts: Hosts,
        daemon: Daemon,
        limits: Limits,
    ) -> (Listener, Option<String>) {
        let refused = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = oneshot::channel();
        let mut listener = Listener { address, refused: refused.clone(), stop: Some(stop), thread: None };
        let bound = bind(address);
        let mut warning = bound
            .as_ref()
            .err()
            .map(|error| format!("[api] cannot listen on {address}: {error}; retrying every second"));
        let history = daemon.history.clone();
        let desk = Desk { router: routes::reading(daemon, hosts), limits, refused };
        let thread = std::thread::Builder::new().name("api".into()).spawn(move || {
            if let Err(error) = desk.run(address, bound.ok(), stopped, &history) {
                tell(&history, Level::Error, format!("[api] has stopped: {error}"));
            }
        });
        match thread {
            Ok(thread) => listener.thread = Some(thread),
            Err(error) => warning = Some(format!("[api] cannot start its thread: {error}")),
        }
        (listener, warning)
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Number of connections turned away.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The thread ends soon, and after that the address is free.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Listens with SO_REUSEADDR, so that connections of an earlier daemon in TIME_WAIT do not matter.
fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn tell(history: &History, level: Level, text: String) {
    history.tell(Notice::daemon(level, Kind::Lifecycle, text), jiff::Timestamp::now());
}

/// The state of the thread.
struct Desk {
    router: Router,
    limits: Limits,
    refused: Arc<AtomicU64>,
}

impl Desk {
    fn run(
        self,
        address: SocketAddr,
        bound: Option<std::net::TcpListener>,
        stopped: oneshot::Receiver<()>,
        history: &History,
    ) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ended = runtime.block_on(async {
            tokio::select! {
                // Stopped, or the sender was dropped, which means the same.
                _ = stopped => Ok(()),
                failed = self.serve(address, bound, history) => failed,
            }
        });
        // Answers that are still being prepared are given up.
        runtime.shutdown_background();
        ended
    }

    async fn serve(
        self,
        address: SocketAddr,
        mut bound: Option<std::net::TcpListener>,
        history: &History,
    ) -> io::Result<()> {
        while bound.is_none() {
            tokio::time::sleep(AGAIN).await;
            bound = bind(address).ok();
        }
        let Some(listener) = bound else { return Ok(()) };
        let listener = TcpListener::from_std(listener)?;
        tell(history, Level::Info, format!("[api] listens on http://{address}"));
        let seats = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                // No file descriptor is left, or the client is gone: both are temporary.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let Ok(seat) = seats.clone().try_acquire_owned() else {
                self.refused.fetch_add(1, Ordering::Relaxed);
                // If the answer does not fit into the socket's buffer, it is not worth waiting for.
                _ = stream.try_write(BUSY);
                continue;
            };
            let serving = connection(stream, self.router.clone(), self.limits);
            tokio::spawn(async move {
                serving.await;
                drop(seat);
            });
        }
    }
}

/// One connection, from its first request to its end.
async fn connection(stream: TcpStream, router: Router, limits: Limits) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(HEAD).max_headers(HEADERS);
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    // How the connection ended does not matter here.
    if tokio::time::timeout(limits.life, &mut serving).await.is_err() {
        serving.as_mut().graceful_shutdown();
        _ = tokio::time::timeout(FAREWELL, serving).await;
    }
}

#[cfg(test)]
mod tests;
