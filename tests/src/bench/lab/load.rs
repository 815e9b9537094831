//! `evenkeel-lab bench-load`: sends requests from several threads, and reports as JSON what they
//! cost the whole system.
//!
//! With a rate, every request is due at a fixed moment, no matter what happened to those before it,
//! and its time counts from that moment. A system that stalls is charged for the requests that
//! could not be sent during the stall (coordinated omission).

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::sys::{
    prctl::set_timerslack,
    resource::{UsageWho, getrusage},
};
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned, client::Resumption, pki_types::ServerName};

use super::{
    cpu::{Moment, Spent},
    server::HEAD,
};
use crate::{bench::statistics::percentile, client, pki};

/// A request that takes longer counts as failed.
const LIMIT: Duration = Duration::from_secs(10);

/// The connections that requests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Over {
    /// One connection per thread, kept open.
    Kept,
    /// A new connection for each request.
    New,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Addresses to connect to, used in turn
    #[arg(required = true)]
    pub targets: Vec<SocketAddrV4>,
    #[arg(long, value_enum)]
    pub over: Over,
    /// Use TLS with the certificates in this folder
    #[arg(long)]
    pub tls: Option<PathBuf>,
    /// Requests at the same time
    #[arg(long, default_value_t = 16)]
    pub threads: u32,
    /// Requests per second of all threads together [default: each as soon as the one before is
    /// answered]
    #[arg(long)]
    pub rate: Option<f64>,
    /// Bytes of an answer
    #[arg(long, default_value_t = 200)]
    pub bytes: usize,
    #[arg(long, default_value_t = 2.5)]
    pub seconds: f64,
    /// Seconds at the beginning that do not count
    #[arg(long, default_value_t = 0.3)]
    pub warm_up: f64,
}

/// How it went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub done: u64,
    pub failed: u64,
    /// The error of the first request that failed.
    pub failure: Option<String>,
    pub p50_us: f64,
    pub p99_us: f64,
    /// What the whole system spent.
    pub spent: Spent,
    /// Seconds of processor time that the load itself used: they cannot be the balancer's.
    pub own: f64,
}

impl Report {
    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.spent.seconds
    }

    /// Microseconds of the whole system per request.
    pub fn busy_us(&self) -> f64 {
        self.spent.busy * 1e6 / self.done as f64
    }
}

/// What the threads share.
struct Load {
    options: Options,
    tls: Option<Arc<ClientConfig>>,
    request: Vec<u8>,
    ready: Barrier,
    counts: AtomicBool,
    over: AtomicBool,
}

/// What one thread has seen.
#[derive(Default)]
struct Seen {
    nanoseconds: Vec<u64>,
    failed: u64,
    failure: Option<String>,
}

pub fn run(options: Options) -> Result<()> {
    let threads = options.threads.max(1);
    let load = Arc::new(Load {
        tls: options.tls.as_deref().map(tls).transpose()?,
        request: format!("GET /{} HTTP/1.1\r\nhost: {}\r\n\r\n", options.bytes, pki::SERVER_NAME).into_bytes(),
        ready: Barrier::new(threads as usize + 1),
        counts: AtomicBool::new(false),
        over: AtomicBool::new(false),
        options,
    });
    let workers: Vec<_> = (0..threads)
        .map(|number| {
            let load = Arc::clone(&load);
            thread::spawn(move || load.work(number))
        })
        .collect();
    load.ready.wait();
    thread::sleep(Duration::from_secs_f64(load.options.warm_up));
    let (before, own) = (Moment::now()?, own_time()?);
    load.counts.store(true, Ordering::SeqCst);
    thread::sleep(Duration::from_secs_f64(load.options.seconds));
    load.counts.store(false, Ordering::SeqCst);
    let (after, own) = (Moment::now()?, own_time()? - own);
    load.over.store(true, Ordering::SeqCst);
    let seen: Result<Vec<_>, _> = workers.into_iter().map(|worker| worker.join()).collect();
    let Ok(seen) = seen else { bail!("a thread of the load panicked") };
    println!("{}", serde_json::to_string(&report(seen, before.until(&after), own))?);
    Ok(())
}

/// Every connection does the full handshake, like that of a kubectl that has just started.
fn tls(folder: &Path) -> Result<Arc<ClientConfig>> {
    let mut config = client::tls_config(folder)?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Seconds of processor time of this process.
fn own_time() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("getrusage")?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn report(seen: Vec<Seen>, spent: Spent, own: f64) -> Report {
    let mut report = Report { spent, own, ..Report::default() };
    let mut micros = Vec::new();
    for seen in seen {
        report.failed += seen.failed;
        report.failure = report.failure.or(seen.failure);
        micros.extend(seen.nanoseconds.iter().map(|ns| *ns as f64 / 1e3));
    }
    micros.sort_unstable_by(f64::total_cmp);
    report.done = micros.len() as u64;
    report.p50_us = percentile(&micros, 0.5).unwrap_or_default();
    report.p99_us = percentile(&micros, 0.99).unwrap_or_default();
    report
}

/// When a thread's request number `turn` is due: the threads take turns at equal distances.
fn due(turn: u64, thread: u32, threads: u32, rate: f64) -> Duration {
    Duration::from_secs_f64((turn as f64 * f64::from(threads) + f64::from(thread)) / rate)
}

impl Load {
    fn work(&self, number: u32) -> Seen {
        // The default of 50 µs would dominate the measurement. If it stays, it is the same for
        // every system.
        _ = set_timerslack(1);
        let mut seen = Seen::default();
        let mut kept = None;
        let mut answer = vec![0; 64 << 10];
        self.ready.wait();
        let began = Instant::now();
        for turn in 0.. {
            let started = match self.options.rate {
                Some(rate) => began + due(turn, number, self.options.threads, rate),
                None => Instant::now(),
            };
            // Already late: it is sent at once, and the delay counts.
            thread::sleep(started.saturating_duration_since(Instant::now()));
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let result = self.one(number, &mut kept, &mut answer);
            if !self.counts.load(Ordering::Relaxed) {
                continue;
            }
            match result {
                Ok(answered) => seen.nanoseconds.push(answered.duration_since(started).as_nanos() as u64),
                Err(error) => {
                    seen.failed += 1;
                    seen.failure.get_or_insert_with(|| error.to_string());
                }
            }
        }
        seen
    }

    /// Sends one request; returns when its answer was complete.
    fn one(&self, number: u32, kept: &mut Option<Connection>, answer: &mut [u8]) -> io::Result<Instant> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.connect(number)?,
        };
        connection.ask(&self.request, HEAD + self.options.bytes, answer)?;
        let answered = Instant::now();
        match self.options.over {
            Over::Kept => *kept = Some(connection),
            Over::New => connection.close()?,
        }
        Ok(answered)
    }

    fn connect(&self, number: u32) -> io::Result<Connection> {
        let target = self.options.targets[number as usize % self.options.targets.len()];
        let stream = TcpStream::connect_timeout(&target.into(), LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let Some(tls) = &self.tls else { return Ok(Connection::Plain(stream)) };
        let name = ServerName::try_from(pki::SERVER_NAME).map_err(io::Error::other)?;
        let connection = ClientConnection::new(Arc::clone(tls), name).map_err(io::Error::other)?;
        Ok(Connection::Tls(Box::new(StreamOwned::new(connection, stream))))
    }
}

enum Connection {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Connection {
    fn ask(&mut self, request: &[u8], length: usize, answer: &mut [u8]) -> io::Result<()> {
        match self {
            Connection::Plain(stream) => ask(stream, request, length, answer),
            Connection::Tls(stream) => ask(stream.as_mut(), request, length, answer),
        }
    }

    /// Closes with a FIN. The client closes first, so that it keeps the TIME_WAIT.
    fn close(self) -> io::Result<()> {
        match self {
            Connection::Plain(stream) => stream.shutdown(Shutdown::Write),
            Connection::Tls(stream) => stream.sock.shutdown(Shutdown::Write),
        }
    }
}

fn ask(stream: &mut (impl Read + Write), request: &[u8], length: usize, answer: &mut [u8]) -> io::Result<()> {
    stream.write_all(request)?;
    let mut left = length;
    while left > 0 {
        match stream.read(answer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => left = left.checked_sub(read).ok_or(io::ErrorKind::InvalidData)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_turns_at_even_distances() {
        let all: Vec<_> = (0..2).flat_map(|turn| (0..4).map(move |thread| due(turn, thread, 4, 1000.0))).collect();
        assert_eq!(all, (0..8).map(Duration::from_millis).collect::<Vec<_>>());
    }

    #[test]
    fn a_report_counts_what_all_threads_saw() {
        let seen = |times: &[u64], failed| Seen { nanoseconds: times.to_vec(), failed, failure: None };
        let spent = Spent { seconds: 2.0, busy: 0.001, ..Spent::default() };
        let report = report(vec![seen(&[1000, 3000], 0), seen(&[2000, 9000], 3)], spent, 0.5);
        assert_eq!((report.done, report.failed, report.p50_us, report.p99_us), (4, 3, 2.0, 9.0));
        assert_eq!((report.rate(), report.busy_us()), (2.0, 250.0));
    }
}
