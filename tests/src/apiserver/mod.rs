//! A stand-in API server: TLS with HTTP/1.1 and h2, and on the same port a plain TCP protocol with
//! one word per line.
//!
//! It runs as its own process, so that it can be killed, stopped and continued. The first byte
//! shows what a client speaks: 0x16 begins a TLS handshake.
//!
//! A line on its standard input changes what it answers while it runs (see [`commands`]).

mod body;
pub mod commands;
mod http;
pub mod pattern;
mod plain;
mod tls;

pub use tls::config as tls_config;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::transport::Transport;

/// How many connections may wait to be accepted: a reconnect storm brings that many.
const BACKLOG: u32 = 4096;
const TLS_HANDSHAKE: u8 = 0x16;
/// The pause after an accept that failed because no file descriptor was free.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// The name it sends in the header x-served-by and in plain answers
    #[arg(long)]
    pub name: String,
    #[arg(long)]
    pub listen: SocketAddr,
    /// The folder with the lab's certificates
    #[arg(long)]
    pub pki: PathBuf,
    /// Listen with an MPTCP socket, as Go does
    #[arg(long)]
    pub mptcp: bool,
    /// Seconds between the events of a watch
    #[arg(long, default_value_t = 5)]
    pub watch_seconds: u64,
}

/// What every connection needs.
pub struct Server {
    name: String,
    watch: Duration,
    tls: TlsAcceptor,
    mood: commands::Mood,
}

/// Serves until the process is killed.
pub async fn run(options: Options) -> Result<()> {
    let tls = TlsAcceptor::from(Arc::new(tls::config(&options.pki)?));
    let watch = Duration::from_secs(options.watch_seconds);
    let server = Arc::new(Server { name: options.name, watch, tls, mood: commands::Mood::default() });
    let transport = if options.mptcp { Transport::Mptcp } else { Transport::Tcp };
    let listening = transport.bound(options.listen).and_then(|socket| socket.listen(BACKLOG));
    let listener = listening.with_context(|| format!("cannot listen on {}", options.listen))?;
    println!("listening on {}", options.listen);
    tokio::spawn(commands::obey(Arc::clone(&server)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.mood.deaf.notified() => break,
        };
        match accepted {
            Ok((stream, _)) => _ = tokio::spawn(connection(stream, Arc::clone(&server))),
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    std::future::pending().await
}

/// Errors of a connection do not matter here: the client sees and counts them.
async fn connection(stream: TcpStream, server: Arc<Server>) {
    // Answers are small and must not wait for an acknowledgement.
    _ = stream.set_nodelay(true);
    let mut first = [0];
    if server.mood.hangs() {
        // Accepted, and never answered.
        return std::future::pending().await;
    }
    match stream.peek(&mut first).await {
        // Boxed to keep the thousands of plain connections small.
        Ok(1) if first[0] == TLS_HANDSHAKE => Box::pin(speak_tls(stream, server)).await,
        Ok(1) => server.mood.ended(&plain::serve(stream, &server.name).await),
        _ => {}
    }
}

async fn speak_tls(stream: TcpStream, server: Arc<Server>) {
    let Ok(stream) = server.tls.accept(stream).await else { return };
    let service = service_fn(move |request| http::answer(request, Arc::clone(&server)));
    _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}
