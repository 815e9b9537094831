//! `evenkeel-lab storm`: opens short connections and reports how they went as JSON.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time,
};
use tokio_rustls::TlsConnector;

use super::{
    Target,
    connection::{Connection, End, Failure},
    hold::pick,
};

/// Which side ends a connection, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Close {
    ClientFin,
    ClientRst,
    ServerFin,
    /// Plain protocol only.
    ServerRst,
    /// The client sends its FIN before the answer arrives. Plain protocol only.
    Half,
    /// The client vanishes from one moment to the next without a word. Plain protocol only.
    Vanish,
    /// Every way except vanishing, in turn.
    Mixed,
    /// Every way, at random. Plain protocol only.
    Random,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    pub target: Target,
    /// How many connections [default: until the time is over]
    #[arg(long)]
    pub connections: Option<u64>,
    /// For how many seconds [default: until all connections are done]; SIGTERM ends it early, with
    /// its report
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Connections begun per second [default: as many as possible]
    #[arg(long)]
    pub rate: Option<f64>,
    /// Connections open at the same time
    #[arg(long, default_value_t = 64)]
    pub parallel: u64,
    #[arg(long, value_enum, default_value_t = Close::ClientFin)]
    pub close: Close,
    /// Connections that were served later than this count as slow
    #[arg(long, default_value_t = 500.0)]
    pub slow_ms: f64,
    /// Print a line of JSON with the counts so far every so many seconds
    #[arg(long)]
    pub every: Option<f64>,
}

/// How it went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Connections that were served and ended as intended.
    pub done: u64,
    pub failed: BTreeMap<String, u64>,
    /// How many each server served.
    pub by: BTreeMap<String, u64>,
    pub slow: u64,
    /// Times from the connect to the answer.
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    pub seconds: f64,
}

impl Report {
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Adds what another process saw. Among the times, only the slowest is right for both.
    pub fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.slow += other.slow;
        other.failed.iter().for_each(|(why, count)| *self.failed.entry(why.clone()).or_default() += count);
        other.by.iter().for_each(|(who, count)| *self.by.entry(who.clone()).or_default() += count);
        self.p50_ms = self.p50_ms.max(other.p50_ms);
        self.p99_ms = self.p99_ms.max(other.p99_ms);
        self.max_ms = self.max_ms.max(other.max_ms);
        self.seconds = self.seconds.max(other.seconds);
    }
}

struct Storm {
    options: Options,
    tls: Option<TlsConnector>,
    started: Instant,
    begun: AtomicU64,
    /// No more connections begin.
    over: AtomicBool,
    seen: std::sync::Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    report: Report,
    /// Times to the answer, in microseconds.
    times: Vec<u32>,
}

pub async fn run(options: Options) -> Result<()> {
    let tls = options.target.connector()?;
    let storm = Arc::new(Storm {
        options,
        tls,
        started: Instant::now(),
        begun: AtomicU64::new(0),
        over: AtomicBool::new(false),
        seen: Default::default(),
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let told = Arc::clone(&storm);
    tokio::spawn(async move {
        terminate.recv().await;
        told.over.store(true, Ordering::Relaxed);
    });
    if let Some(every) = storm.options.every {
        tokio::spawn(report_every(Arc::clone(&storm), Duration::from_secs_f64(every)));
    }
    let mut workers = JoinSet::new();
    for _ in 0..storm.options.parallel {
        workers.spawn(work(Arc::clone(&storm)));
    }
    while workers.join_next().await.is_some() {}
    println!("{}", serde_json::to_string(&storm.report())?);
    Ok(())
}

async fn report_every(storm: Arc<Storm>, every: Duration) {
    let mut interval = time::interval(every);
    loop {
        interval.tick().await;
        if let Ok(line) = serde_json::to_string(&storm.report()) {
            println!("{line}");
        }
    }
}

/// Runs one connection after the other.
async fn work(storm: Arc<Storm>) {
    while let Some(number) = storm.next().await {
        let started = Instant::now();
        let mut answered = None;
        let ended = one(&storm, number, &mut answered).await;
        storm.note(ended, answered.map(|(by, at)| (by, at.duration_since(started))));
    }
}

impl Storm {
    /// The number of the next connection, once its time has come.
    async fn next(&self) -> Option<u64> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        if self.options.connections.is_some_and(|connections| number >= connections) {
            return None;
        }
        if let Some(rate) = self.options.rate {
            time::sleep_until((self.started + Duration::from_secs_f64(number as f64 / rate)).into()).await;
        }
        let is_over = |seconds| self.started.elapsed().as_secs_f64() >= seconds;
        let is_over = self.over.load(Ordering::Relaxed) || self.options.seconds.is_some_and(is_over);
        (!is_over).then_some(number)
    }

    fn note(&self, ended: Result<(), Failure>, answered: Option<(String, Duration)>) {
        let mut seen = self.seen.lock().expect("nobody panics while holding it");
        if let Some((by, took)) = answered {
            *seen.report.by.entry(by).or_default() += 1;
            seen.times.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
        match ended {
            Ok(()) => seen.report.done += 1,
            Err(failure) => *seen.report.failed.entry(failure.to_string()).or_default() += 1,
        }
    }

    fn report(&self) -> Report {
        let mut seen = self.seen.lock().expect("nobody panics while holding it");
        seen.times.sort_unstable();
        let at = |share: f64| {
            let place = (seen.times.len() as f64 * share) as usize;
            seen.times.get(place.min(seen.times.len().saturating_sub(1))).map_or(0.0, |us| f64::from(*us) / 1e3)
        };
        let slow_us = self.options.slow_ms * 1e3;
        let slow = seen.times.iter().rev().take_while(|us| f64::from(**us) > slow_us).count() as u64;
        let (p50_ms, p99_ms, max_ms) = (at(0.5), at(0.99), at(1.0));
        Report { slow, p50_ms, p99_ms, max_ms, seconds: self.started.elapsed().as_secs_f64(), ..seen.report.clone() }
    }
}

/// One connection from the connect to its end; `answered` is by which server and when.
async fn one(storm: &Storm, number: u64, answered: &mut Option<(String, Instant)>) -> Result<(), Failure> {
    let target = &storm.options.target;
    let whole = async {
        let from = pick(&target.from, number);
        let mut connection =
            Connection::open(target.transport().socket(), target.address, from, storm.tls.as_ref()).await?;
        let close = storm.close(number);
        let by = ask(&mut connection, close).await?;
        *answered = Some((by, Instant::now()));
        end(connection, close, target.timeout()).await
    };
    time::timeout(target.timeout(), whole).await.unwrap_or(Err(Failure::Timeout))
}

impl Storm {
    fn close(&self, number: u64) -> Close {
        const PLAIN: [Close; 5] = [Close::ClientFin, Close::ClientRst, Close::ServerFin, Close::ServerRst, Close::Half];
        const TLS: [Close; 3] = [Close::ClientFin, Close::ClientRst, Close::ServerFin];
        let all = if self.tls.is_some() { &TLS[..] } else { &PLAIN[..] };
        match self.options.close {
            Close::Mixed => pick(all, number).unwrap_or(Close::ClientFin),
            Close::Random => pick(&[&PLAIN[..], &[Close::Vanish]].concat(), scattered(number)).unwrap_or(Close::Vanish),
            close => close,
        }
    }
}

/// The finalizer of splitmix64: turns consecutive numbers into random ones, the same in every run.
fn scattered(number: u64) -> u64 {
    let mixed = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

async fn ask(connection: &mut Connection, close: Close) -> Result<String, Failure> {
    match close {
        Close::ClientFin | Close::ClientRst | Close::Vanish | Close::Mixed | Close::Random => {
            connection.ask("name", "/version").await
        }
        Close::ServerFin => connection.ask("fin", "/version?close").await,
        Close::ServerRst => connection.ask("rst", "/version?close").await,
        Close::Half => {
            connection.write_all(b"late\n").await?;
            connection.half_close().await?;
            connection.line().await
        }
    }
}

async fn end(mut connection: Connection, close: Close, limit: Duration) -> Result<(), Failure> {
    match close {
        Close::ClientFin | Close::Mixed | Close::Random => connection.end(End::Fin, limit).await,
        Close::ClientRst => connection.end(End::Rst, limit).await,
        Close::Vanish => connection.end(End::Vanish, limit).await,
        Close::ServerFin | Close::Half => {
            connection.drain().await?;
            connection.end(End::Fin, limit).await
        }
        Close::ServerRst => match connection.drain().await {
            Err(error) if Failure::from(error.kind()) == Failure::Reset => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) => Err(Failure::Closed),
        },
    }
}

impl From<std::io::ErrorKind> for Failure {
    fn from(kind: std::io::ErrorKind) -> Self {
        std::io::Error::from(kind).into()
    }
}

/// Starts a storm on `host` with these options of `evenkeel-lab storm`; `Running::finish` waits for
/// its report.
pub fn start(host: &crate::Host, options: &[&str]) -> Result<Running> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!("storm{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let mut command = host.command(crate::binaries::lab()?);
    command.arg("storm").args(options);
    Ok(Running { process: host.start(&name, &mut command)? })
}

/// More bytes than a report has.
const LINE: u64 = 16 << 10;

/// A storm in progress.
pub struct Running {
    process: crate::Process,
}

impl Running {
    pub fn finish(mut self, limit: Duration) -> Result<Report> {
        self.process.succeed(limit)?;
        self.latest()
    }

    /// Begins no more connections and reports.
    pub fn stop(self, limit: Duration) -> Result<Report> {
        self.process.signal(Signal::SIGTERM)?;
        self.finish(limit)
    }

    /// The last line it printed: with `--every` the counts so far.
    pub fn latest(&self) -> Result<Report> {
        let log = self.process.log_end(LINE);
        // A line without its end is still being written.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let line = whole.lines().next_back().context("no report yet")?;
        serde_json::from_str(line).with_context(|| log.clone())
    }

    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }
}
