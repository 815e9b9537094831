//! Flow sync on the real host: a separate thread with the socket, the clocks and the addresses, so
//! that the daemon and flow sync do not delay each other.
//!
//! A host is master of a listener while it holds the listener's address, see
//! [`mastership`](super::mastership).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use lb_common::time::Instant;
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};

use super::{
    mastership::Mastership,
    mirror::{Clocks, Directory},
    seal::{Session, SharedKey},
    station::{PeerNews, PeerStatus, Station},
    wire::{AdminDecision, BackendHealth},
};
use crate::{
    sys::{clock, netlink::Addresses, random, udp},
    tables::Tables,
    words::SyncState,
};

/// The most batches of ends that may wait for the thread; a batch holds what one batch of events
/// holds.
const ENDS: usize = 64;
/// The most news that may wait for the daemon.
const NEWS: usize = 256;
/// The most datagrams received in a row.
const DATAGRAMS: usize = 256;
/// Bytes of a receive buffer: the largest datagram, with room for what a newer version may add.
const DATAGRAM: usize = 2048;
/// The pause before a failed bind is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The configuration of flow sync.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address on which this host receives, and from which it sends.
    pub listen: SocketAddr,
    /// The peers, each by its `listen`.
    pub peers: Vec<SocketAddr>,
    /// How often changes are sent.
    pub batch: Duration,
    /// The key that all hosts share.
    pub key: SharedKey,
}

/// A flow that has ended here, by the numbers of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedFlow {
    /// The listener's row.
    pub listener: u16,
    /// The client's address.
    pub client: SocketAddr,
    /// The pool's row.
    pub pool: u16,
    /// The slot in its pool.
    pub slot: u16,
}

/// The state of this host, which VRRP and the controller depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// The numbers of the listeners that this host is master of, and since when.
    pub master_of: BTreeMap<u16, Instant>,
    /// Whether every peer's flows are known here.
    pub synced: bool,
}

/// What this host knows about backends, to be sent to the peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendKnowledge {
    /// The operators' decisions.
    pub admin: Vec<AdminDecision>,
    /// The health of those that are not probed and whose connections are ours.
    pub health: Vec<BackendHealth>,
}

/// Socket and peers, for `status`.
#[derive(Clone, Debug, Default)]
pub struct SyncReport {
    /// Why the socket cannot be bound; `None`: it is.
    pub deaf: Option<String>,
    /// The peers.
    pub peers: Vec<PeerStatus>,
    /// Datagrams that could not be sent.
    pub send_failures: u64,
}

/// The daemon's handle to the thread, which ends when this is dropped.
pub struct SyncThread {
    directory: watch::Sender<Arc<Directory>>,
    backends: watch::Sender<Arc<BackendKnowledge>>,
    ends: mpsc::Sender<Vec<EndedFlow>>,
    missed: Arc<AtomicBool>,
    peer_news: mpsc::Receiver<PeerNews>,
    state: watch::Receiver<HostState>,
    report: watch::Receiver<Arc<SyncReport>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SyncThread {
    /// Starts the thread. If the socket cannot be bound, it tries again and again, and the report
    /// says why.
    pub fn start(
        settings: Settings,
        tables: Arc<Tables>,
        directory: Directory,
        backends: BackendKnowledge,
        version: &str,
    ) -> Result<SyncThread> {
        // Checked once, before anything depends on it.
        random::word().context("no random numbers")?;
        let station =
            Station::new(&settings.key, settings.listen, &settings.peers, tables.clone(), version, Box::new(fresh));
        let (directory, base) = watch::channel(Arc::new(directory));
        let (backends, known) = watch::channel(Arc::new(backends));
        let (ends, ended) = mpsc::channel(ENDS);
        let (tell, peer_news) = mpsc::channel(NEWS);
        let (state_to, state) = watch::channel(HostState::default());
        let (report_to, report) = watch::channel(Arc::default());
        let (stop, stopped) = mpsc::channel(1);
        let missed = Arc::new(AtomicBool::new(false));
        let shell = Shell {
            listen: settings.listen,
            batch: settings.batch,
            tables,
            station,
            socket: None,
            retry_at: Instant::ZERO,
            report: SyncReport::default(),
            base,
            known,
            addresses: BTreeSet::new(),
            mastership: Mastership::default(),
            begun: false,
            missed: missed.clone(),
            tell,
            states: state_to,
            reports: report_to,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("sync".into());
        let thread = thread.spawn(move || {
            if let Err(error) = runtime.block_on(shell.run(ended, stopped)) {
                log::error!("flow sync has ended: {error:#}");
            }
        });
        Ok(SyncThread {
            directory,
            backends,
            ends,
            missed,
            peer_news,
            state,
            report,
            stop: Some(stop),
            thread: Some(thread.context("cannot start the thread sync")?),
        })
    }

    /// Sets what addresses mean here; the thread finds out by itself which listeners are ours.
    pub fn direct(&self, directory: Directory) {
        self.directory.send_if_modified(|known| {
            let changed = **known != directory;
            if changed {
                *known = Arc::new(directory);
            }
            changed
        });
    }

    /// Sets what this host knows about backends.
    pub fn administer(&self, backends: BackendKnowledge) {
        self.backends.send_if_modified(|known| {
            let changed = **known != backends;
            if changed {
                *known = Arc::new(backends);
            }
            changed
        });
    }

    /// Flows have ended here. Never waits: if there is no room, a full copy makes up for it.
    pub fn ended(&self, ends: Vec<EndedFlow>) {
        if !ends.is_empty() && self.ends.try_send(ends).is_err() {
            self.ends_missed();
        }
    }

    /// Ends may have been missed.
    pub fn ends_missed(&self) {
        self.missed.store(true, Ordering::Release);
    }

    /// Waits for something that the daemon should hear. Cancel safe. An error: the thread has ended
    /// by itself.
    pub async fn news(&mut self) -> Result<SyncNews> {
        tokio::select! {
            news = self.peer_news.recv() => Ok(SyncNews::Peer(news.context("the thread of flow sync has ended")?)),
            changed = self.state.changed() => {
                changed.context("the thread of flow sync has ended")?;
                Ok(SyncNews::Host(self.state.borrow_and_update().clone()))
            }
        }
    }

    /// The latest report.
    pub fn report(&self) -> Arc<SyncReport> {
        self.report.borrow().clone()
    }

    /// Ends the thread and waits for it, at most for one turn.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been logged already.
            _ = thread.join();
        }
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What the thread reports to the daemon.
#[derive(Clone, Debug)]
pub enum SyncNews {
    /// Something about a peer, or from it.
    Peer(PeerNews),
    /// This host's state has changed.
    Host(HostState),
}

/// A number that cannot be guessed, for sessions and challenges.
fn fresh() -> Session {
    /// Used only if the kernel fails to give a random number, which it does not once it has given
    /// one.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let word = || random::word().unwrap_or_else(|_| clock::monotonic().0 ^ COUNT.fetch_add(1, Ordering::Relaxed) << 48);
    let mut session = [0; 16];
    session[..8].copy_from_slice(&word().to_ne_bytes());
    session[8..].copy_from_slice(&word().to_ne_bytes());
    session
}

/// The thread's state.
struct Shell {
    listen: SocketAddr,
    batch: Duration,
    tables: Arc<Tables>,
    station: Station,
    socket: Option<UdpSocket>,
    retry_at: Instant,
    report: SyncReport,
    base: watch::Receiver<Arc<Directory>>,
    known: watch::Receiver<Arc<BackendKnowledge>>,
    /// The addresses on this host's interfaces.
    addresses: BTreeSet<IpAddr>,
    mastership: Mastership,
    /// Whether the station has a directory.
    begun: bool,
    missed: Arc<AtomicBool>,
    tell: mpsc::Sender<PeerNews>,
    states: watch::Sender<HostState>,
    reports: watch::Sender<Arc<SyncReport>>,
}

impl Shell {
    async fn run(mut self, mut ended: mpsc::Receiver<Vec<EndedFlow>>, mut stopped: mpsc::Receiver<()>) -> Result<()> {
        let mut addresses = Addresses::open()?;
        self.addresses = addresses.everywhere().await?;
        let mut timer = tokio::time::interval(self.batch);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; DATAGRAM];
        loop {
            tokio::select! {
                biased;
                _ = stopped.recv() => {
                    // Sends what is still due.
                    self.turn().await;
                    return Ok(());
                }
                _ = timer.tick() => self.turn().await,
                Some(ends) = ended.recv() => self.ended(&ends),
                changed = addresses.changed() => {
                    changed?;
                    match addresses.everywhere().await {
                        Ok(found) => self.addresses = found,
                        // A busy kernel; what was known applies until the next change.
                        Err(error) => log::warn!("flow sync: {error:#}"),
                    }
                }
                () = readable(self.socket.as_ref()) => self.receive(&mut buffer),
            }
        }
    }

    async fn turn(&mut self) {
        let now = now();
        self.listen(now.monotonic);
        self.direct(now);
        if self.known.has_changed().unwrap_or(false) || !self.begun {
            let known = self.known.borrow_and_update().clone();
            self.station.administer(known.admin.clone(), known.health.clone());
        }
        self.begun = true;
        if self.missed.swap(false, Ordering::AcqRel) {
            self.station.ends_missed();
        }
        let datagrams = self.station.turn(now);
        if let Some(socket) = &self.socket {
            for (peer, datagram) in datagrams {
                // Never waits long: at most for the interface's queue.
                self.report.send_failures += u64::from(socket.send_to(&datagram, peer).await.is_err());
            }
        }
        self.publish(now);
    }

    fn listen(&mut self, now: Instant) {
        if self.socket.is_some() || now < self.retry_at {
            return;
        }
        match udp::bind(self.listen) {
            Ok(socket) => {
                self.report.deaf = None;
                self.socket = Some(socket);
            }
            Err(error) => {
                self.report.deaf = Some(format!("cannot listen on {}: {error}", self.listen));
                self.retry_at = now + RETRY;
            }
        }
    }

    /// Passes the directory to the station if it has changed, or which listeners are ours.
    fn direct(&mut self, now: Clocks) {
        let is_new = self.base.has_changed().unwrap_or(false) || !self.begun;
        let base = self.base.borrow_and_update().clone();
        let held = (&*self.tables, &self.addresses);
        if let Some(directory) = self.mastership.look(&base, is_new, held, now.monotonic) {
            self.station.direct(Arc::new(directory), now);
        }
    }

    fn ended(&mut self, ends: &[EndedFlow]) {
        for end in ends {
            self.station.ended(end.listener, end.client, end.pool, end.slot);
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) {
        let Some(socket) = &self.socket else { return };
        let now = now();
        for _ in 0..DATAGRAMS {
            let (length, from) = match socket.try_recv_from(buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The error is about a datagram sent earlier.
                Err(_) => continue,
            };
            let answer = self.station.receive(from, buffer.get(..length).unwrap_or_default(), now);
            if let Some(answer) = answer {
                self.report.send_failures += u64::from(socket.try_send_to(&answer, from).is_err());
            }
        }
    }

    fn publish(&mut self, now: Clocks) {
        for news in self.station.news() {
            // A daemon that falls this far behind has other troubles. Decisions and health are sent
            // again, and the report holds the peers' states.
            _ = self.tell.try_send(news);
        }
        self.report.peers = self.station.status(now);
        let synced = self.report.peers.iter().all(|peer| peer.state == SyncState::Synced);
        let state = HostState { master_of: self.mastership.since().clone(), synced };
        self.states.send_if_modified(|known| {
            let changed = *known != state;
            *known = state;
            changed
        });
        self.reports.send_replace(Arc::new(self.report.clone()));
    }
}

/// Waits for a datagram; without a socket, forever.
async fn readable(socket: Option<&UdpSocket>) {
    match socket {
        // An error is found by the next read.
        Some(socket) => _ = socket.readable().await,
        None => std::future::pending().await,
    }
}

fn now() -> Clocks {
    let wall = jiff::Timestamp::now().as_millisecond();
    Clocks { monotonic: clock::monotonic(), coarse: clock::coarse(), wall_ms: u64::try_from(wall).unwrap_or(0) }
}
