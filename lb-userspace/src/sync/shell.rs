//! Flow sync on the real host: a thread of its own with the socket, the clocks and the addresses, so that nothing that the
//! daemon does delays it, and the other way round.
//!
//! A host is master of a listener if it has the listener's address: where VRRP carries it, while the lease holds (it is
//! what lets this host answer for it); else while it stands on an interface.

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
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior},
};

use super::{
    link::Standing,
    mirror::{Directory, Now},
    seal::{Session, SharedKey},
    station::{Notice, PeerStatus, Station},
    wire::{Admin, Health},
};
use crate::{
    sys::{clock, netlink::Addresses, random, udp},
    tables::Tables,
};

/// Batches of ends that may wait for the thread; each has as many as the daemon found in one go.
const ENDS: usize = 64;
/// Notices that may wait for the daemon.
const NOTICES: usize = 256;
/// Datagrams taken in before anything else has its turn.
const DATAGRAMS: usize = 256;
/// The largest datagram of ours, with room for what a newer version may add.
const DATAGRAM: usize = 2048;
/// How long a host that has lost an address goes on telling of what begins and ends on it: until its clients' packets go to
/// the other host. With advertisements a second apart that takes up to 1 s.
const LINGER: u64 = 2_000_000_000;
/// How soon a socket is tried again that could not be bound.
const RETRY: Duration = Duration::from_secs(1);

/// What is configured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where this host hears its peers, and from where it speaks.
    pub listen: SocketAddr,
    /// The peers, each by its `listen`.
    pub peers: Vec<SocketAddr>,
    /// How often changes are sent.
    pub batch: Duration,
    /// What all share.
    pub key: SharedKey,
}

/// A flow that has ended here, by the numbers of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The listener's number.
    pub listener: u16,
    /// The client.
    pub client: SocketAddr,
    /// The pool.
    pub pool: u16,
    /// The slot in its pool.
    pub slot: u16,
}

/// What the daemon waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    /// The numbers of the listeners this host is master of, and since when: CLOCK_MONOTONIC in nanoseconds.
    pub ours: BTreeMap<u16, u64>,
    /// Every peer's flows are known here.
    pub synced: bool,
}

/// What is known of backends here, for the peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// What operators have said.
    pub admin: Vec<Admin>,
    /// How those do whose connections are ours and that are not probed.
    pub health: Vec<Health>,
}

/// How it goes, for whoever asks.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Why the socket cannot be bound, if so.
    pub deaf: Option<String>,
    /// Each peer.
    pub peers: Vec<PeerStatus>,
    /// Datagrams that did not get out.
    pub send_failures: u64,
}

/// The thread, from the daemon's side.
pub struct Sync {
    directory: watch::Sender<Arc<Directory>>,
    backends: watch::Sender<Arc<Backends>>,
    ends: mpsc::Sender<Vec<Ended>>,
    missed: Arc<AtomicBool>,
    notices: mpsc::Receiver<Notice>,
    standings: watch::Receiver<Standings>,
    report: watch::Receiver<Arc<Report>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sync {
    /// Starts it. A socket that cannot be bound is tried again and again; the report says why.
    pub fn start(
        settings: Settings,
        tables: Arc<Tables>,
        directory: Directory,
        backends: Backends,
        version: &str,
    ) -> Result<Sync> {
        // Tried once before anybody depends on it.
        random::word().context("no random numbers")?;
        let station = Station::new(&settings.key, &settings.peers, tables.clone(), version, Box::new(fresh));
        let (directory, base) = watch::channel(Arc::new(directory));
        let (backends, known) = watch::channel(Arc::new(backends));
        let (ends, ended) = mpsc::channel(ENDS);
        let (tell, notices) = mpsc::channel(NOTICES);
        let (standings_to, standings) = watch::channel(Standings::default());
        let (report_to, report) = watch::channel(Arc::default());
        let (stop, stopped) = mpsc::channel(1);
        let missed = Arc::new(AtomicBool::new(false));
        let shell = Shell {
            listen: settings.listen,
            batch: settings.batch,
            tables,
            station,
            socket: None,
            retry_at: Instant::now(),
            report: Report::default(),
            base,
            known,
            addresses: BTreeSet::new(),
            ours: BTreeMap::new(),
            lingering: BTreeMap::new(),
            begun: false,
            missed: missed.clone(),
            tell,
            standings: standings_to,
            reports: report_to,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("sync".into());
        let thread = thread.spawn(move || {
            if let Err(error) = runtime.block_on(shell.run(ended, stopped)) {
                log::error!("flow sync has ended: {error:#}");
            }
        });
        Ok(Sync {
            directory,
            backends,
            ends,
            missed,
            notices,
            standings,
            report,
            stop: Some(stop),
            thread: Some(thread.context("cannot start the thread sync")?),
        })
    }

    /// What addresses mean here from now on; who is master of what is found out by the thread.
    pub fn direct(&self, directory: Directory) {
        self.directory.send_if_modified(|known| {
            let changed = **known != directory;
            if changed {
                *known = Arc::new(directory);
            }
            changed
        });
    }

    /// What is known of backends here now.
    pub fn administer(&self, backends: Backends) {
        self.backends.send_if_modified(|known| {
            let changed = **known != backends;
            if changed {
                *known = Arc::new(backends);
            }
            changed
        });
    }

    /// Flows have ended here. Never waits: what finds no room is healed by a full copy.
    pub fn ended(&self, ends: Vec<Ended>) {
        if !ends.is_empty() && self.ends.try_send(ends).is_err() {
            self.ends_missed();
        }
    }

    /// Ends may have been missed.
    pub fn ends_missed(&self) {
        self.missed.store(true, Ordering::Release);
    }

    /// Waits for something that the daemon should hear. May be dropped while it waits. An error: the thread has ended by
    /// itself.
    pub async fn news(&mut self) -> Result<News> {
        tokio::select! {
            notice = self.notices.recv() => Ok(News::Notice(notice.context("the thread of flow sync has ended")?)),
            changed = self.standings.changed() => {
                changed.context("the thread of flow sync has ended")?;
                Ok(News::Standings(self.standings.borrow_and_update().clone()))
            }
        }
    }

    /// How it goes.
    pub fn report(&self) -> Arc<Report> {
        self.report.borrow().clone()
    }

    /// Ends it and waits for that: a turn at most.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // One that has panicked has said so.
            _ = thread.join();
        }
    }
}

impl Drop for Sync {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What the thread tells the daemon.
#[derive(Clone, Debug)]
pub enum News {
    /// Something has happened.
    Notice(Notice),
    /// It stands otherwise now.
    Standings(Standings),
}

/// A number that nobody can guess: sessions and challenges.
fn fresh() -> Session {
    /// Only where the kernel should ever fail to give a random number, which it does not once it has given one.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let word =
        || random::word().unwrap_or_else(|_| clock::monotonic_ns() ^ COUNT.fetch_add(1, Ordering::Relaxed) << 48);
    let mut session = [0; 16];
    session[..8].copy_from_slice(&word().to_ne_bytes());
    session[8..].copy_from_slice(&word().to_ne_bytes());
    session
}

/// The thread's own.
struct Shell {
    listen: SocketAddr,
    batch: Duration,
    tables: Arc<Tables>,
    station: Station,
    socket: Option<UdpSocket>,
    retry_at: Instant,
    report: Report,
    base: watch::Receiver<Arc<Directory>>,
    known: watch::Receiver<Arc<Backends>>,
    /// Of this host.
    addresses: BTreeSet<IpAddr>,
    /// The listeners we are master of, and since when.
    ours: BTreeMap<u16, u64>,
    /// Those of which we were master a moment ago, and until when that counts.
    lingering: BTreeMap<u16, u64>,
    /// The station knows a directory.
    begun: bool,
    missed: Arc<AtomicBool>,
    tell: mpsc::Sender<Notice>,
    standings: watch::Sender<Standings>,
    reports: watch::Sender<Arc<Report>>,
}

impl Shell {
    async fn run(mut self, mut ended: mpsc::Receiver<Vec<Ended>>, mut stopped: mpsc::Receiver<()>) -> Result<()> {
        let mut addresses = Addresses::open()?;
        self.addresses = addresses.everywhere().await?;
        let mut timer = tokio::time::interval(self.batch);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; DATAGRAM];
        loop {
            tokio::select! {
                biased;
                _ = stopped.recv() => {
                    // The last word.
                    self.turn().await;
                    return Ok(());
                }
                _ = timer.tick() => self.turn().await,
                Some(ends) = ended.recv() => self.ended(&ends),
                changed = addresses.changed() => {
                    changed?;
                    match addresses.everywhere().await {
                        Ok(found) => self.addresses = found,
                        // A kernel that is busy; what was known counts until the next change.
                        Err(error) => log::warn!("flow sync: {error:#}"),
                    }
                }
                () = readable(self.socket.as_ref()) => self.receive(&mut buffer),
            }
        }
    }

    async fn turn(&mut self) {
        self.listen();
        let now = now();
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
                // Never long: it is the interface's queue that is waited for.
                self.report.send_failures += u64::from(socket.send_to(&datagram, peer).await.is_err());
            }
        }
        self.publish(now);
    }

    fn listen(&mut self) {
        if self.socket.is_some() || Instant::now() < self.retry_at {
            return;
        }
        match udp::bind(self.listen) {
            Ok(socket) => {
                self.report.deaf = None;
                self.socket = Some(socket);
            }
            Err(error) => {
                self.report.deaf = Some(format!("cannot listen on {}: {error}", self.listen));
                self.retry_at = Instant::now() + RETRY;
            }
        }
    }

    /// Tells the station what addresses mean and which of them are ours, if that has changed.
    fn direct(&mut self, now: Now) {
        let leases: BTreeMap<_, _> =
            self.tables.leases().into_iter().map(|(number, address)| (address, number)).collect();
        let is_ours = |address: IpAddr| match leases.get(&address) {
            Some(lease) => self.tables.lease_until(*lease) > now.monotonic,
            None => self.addresses.contains(&address),
        };
        let is_new = self.base.has_changed().unwrap_or(false) || !self.begun;
        let base = self.base.borrow_and_update().clone();
        let ours = base.listeners.iter().filter(|(address, _)| is_ours(address.ip())).map(|(_, at)| at.number);
        let ours: BTreeMap<_, _> =
            ours.map(|number| (number, self.ours.get(&number).copied().unwrap_or(now.monotonic))).collect();
        let mut lingering = self.lingering.clone();
        let lost = self.ours.keys().filter(|number| !ours.contains_key(number));
        lingering.extend(lost.map(|number| (*number, now.monotonic + LINGER)));
        lingering.retain(|number, until| *until > now.monotonic && !ours.contains_key(number));
        if ours == self.ours && lingering == self.lingering && !is_new {
            return;
        }
        let mut directory = Directory::clone(&base);
        for at in directory.listeners.values_mut() {
            (at.ours, at.lingers) = (ours.contains_key(&at.number), lingering.contains_key(&at.number));
        }
        (self.ours, self.lingering) = (ours, lingering);
        self.station.direct(Arc::new(directory), now);
    }

    fn ended(&mut self, ends: &[Ended]) {
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
                // What it says is about a datagram that was sent.
                Err(_) => continue,
            };
            let answer = self.station.receive(from, buffer.get(..length).unwrap_or_default(), now);
            if let Some(answer) = answer {
                self.report.send_failures += u64::from(socket.try_send_to(&answer, from).is_err());
            }
        }
    }

    fn publish(&mut self, now: Now) {
        for notice in self.station.notices() {
            // A daemon that takes none for so long has other troubles; they are told again, or in the report.
            _ = self.tell.try_send(notice);
        }
        self.report.peers = self.station.status(now);
        let synced = self.report.peers.iter().all(|peer| peer.standing == Standing::Synced);
        let standings = Standings { ours: self.ours.clone(), synced };
        self.standings.send_if_modified(|known| {
            let changed = *known != standings;
            *known = standings;
            changed
        });
        self.reports.send_replace(Arc::new(self.report.clone()));
    }
}

/// Waits for a datagram; for ever without a socket.
async fn readable(socket: Option<&UdpSocket>) {
    match socket {
        // Whatever it says: the next read finds out.
        Some(socket) => _ = socket.readable().await,
        None => std::future::pending().await,
    }
}

fn now() -> Now {
    let wall = jiff::Timestamp::now().as_millisecond();
    Now { monotonic: clock::monotonic_ns(), coarse: clock::coarse_ns(), wall_ms: u64::try_from(wall).unwrap_or(0) }
}
