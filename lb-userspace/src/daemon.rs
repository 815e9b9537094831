//! `evenkeel run`: the shell around the controller. It reads clocks, files, sockets, netlink and
//! the ring buffer, passes what they say to the core, and carries out the actions that come back.
//!
//! One thread, one loop. Every input is taken in as an event, and no event waits long for another:
//! the loop itself waits only
//! - in a reload: for netlink (2 s at most for each answer) and for VRRP to apply the configuration
//!   (1 s at most);
//! - once per second while VRRP runs, in the self-test: for netlink (2 s at most for each interface
//!   with a clsact hook, none with tcx or XDP);
//! - when an operator's decision is saved: for the disk;
//! - in an upgrade, after everything has stopped: for the new daemon to act (15 s at most).
//!
//! VRRP, probes, flow sync, long answers and access logs have their own threads.

mod admin_file;
mod answers;
mod apply;
mod beside;
mod commands;
mod configure;
mod cookies;
mod flow_sync;
mod given_away;
mod hooks;
mod hops;
mod interfaces;
mod journal;
mod listener;
mod logs;
mod payload;
mod probes;
mod pump;
pub mod remains;
mod report;
#[cfg(test)]
mod simulation;
mod start;
mod territory;
mod trace;
mod upgrade;
mod verifier_log;
mod vrrp;
mod ways;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    os::fd::AsFd,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;
use lb_common::{event::Event, layout::NONE, verdict::Reason};
use log::{Level, LevelFilter, warn};
use sd_notify::NotifyState;
use tokio::{
    io::AsyncReadExt,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Interval,
};

use crate::{
    api::{self, Reply, Request, Server, types::Refused},
    config::{self, model::Config, model::OnExit},
    controller::{Action, Controller, Now, sweep::Step},
    dataplane::{Attached, Dataplane, Look},
    handover::Predecessor,
    notice::{History, Kind, Notice},
    probe::Finding,
    sys::{clock, netlink},
};

use admin_file::AdminFile;
use flow_sync::FlowSync;
use given_away::GivenAwayFile;
use hooks::HookWatch;
use hops::Hops;
use interfaces::Wanted;
use listener::ApiListener;
use logs::Logs;
use probes::Probes;
use pump::Pump;
use territory::Territory;
use upgrade::Upgrading;
use vrrp::Vrrp;

/// What the command line gives to the daemon.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// Mount a bpffs if `bpffs` is not on one.
    pub mount_bpffs: bool,
    /// Go on although `bpffs` ends with this process.
    pub private_pins: bool,
    /// Attach TC programs with clsact, as on kernels before 6.6.
    pub clsact: bool,
    /// Begin with new tables. A daemon that takes over from another ignores it: it was meant for
    /// the first one.
    pub reset_state: bool,
    /// What the kernel program says to a developer, in the daemon's own log.
    pub kernel_log: LevelFilter,
}

/// The name of the lock on the pins among the descriptors handed over.
const BPFFS: &str = "bpffs";

/// Runs the daemon until it is asked to end.
pub fn run(options: RunOptions) -> Result<ExitCode> {
    let mut predecessor = Predecessor::inherited()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = runtime.block_on(async { Requests::register() })?;
    let loaded = match config::load(&options.config) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            predecessor.into_iter().for_each(|predecessor| predecessor.refuse(&problems));
            return Ok(ExitCode::FAILURE);
        }
    };
    journal::begin(loaded.config.daemon.log_level, options.kernel_log);
    loaded.warnings.iter().chain(&loaded.here).for_each(|warning| warn!("{warning}"));
    let history = Arc::new(History::default());
    runtime.block_on(async {
        let started = Daemon::start(options, loaded.config, history, signals, predecessor.as_mut()).await;
        match &started {
            Ok(_) => predecessor.into_iter().for_each(Predecessor::acting),
            Err(error) => predecessor.into_iter().for_each(|old| old.refuse(format_args!("{error:#}"))),
        }
        let (mut daemon, mut inputs) = started?;
        match daemon.serve(&mut inputs).await {
            Ok(end) => daemon.end(end, inputs.close()).await,
            // The addresses go to the other host now rather than when the lease has run out.
            Err(error) => daemon.end_vrrp().await.and(Err(error)),
        }
    })?;
    // No requester is left to receive the answers that are still being put together.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// Everything the loop works on.
struct Daemon {
    process: Process,
    config: Config,
    load: Load,
    wanted: Wanted,
    dataplane: Dataplane,
    controller: Controller,
    admin_file: AdminFile,
    hops: Hops,
    hooks: HookWatch,
    logs: Logs,
    history: Arc<History>,
    doors: Doors,
    vrrp: Vrrp,
    given_away: GivenAwayFile,
    probes: Probes,
    sync: FlowSync,
    territory: Territory,
    /// SNAT ports to be withheld that are still in use: (pool, port).
    waiting: Vec<(u16, u16)>,
    /// Events lost so far.
    lost: u64,
    /// When what no event announces is looked at again: the time of day.
    compare_at: lb_common::time::Instant,
    floors: Arc<report::floors::Floors>,
    /// The listeners whose address this host cannot have.
    stranded: BTreeSet<SocketAddr>,
    upgrading: Option<Upgrading>,
}

/// This process.
struct Process {
    options: RunOptions,
    /// The file it was started from.
    binary: PathBuf,
    started: Instant,
}

/// The configuration in force, and whether the last attempt to replace it succeeded.
struct Load {
    at: Timestamp,
    /// The same moment on CLOCK_MONOTONIC.
    monotonic: lb_common::time::Instant,
    generation: u64,
    /// Whether the last reload was applied.
    is_current: bool,
}

/// Where requests come in: the control socket and the listener of `[api]`.
struct Doors {
    api: api::Daemon,
    server: Server,
    serving: Serving,
    listener: ApiListener,
}

/// The control socket's task. It ends when `shutdown` is dropped.
struct Serving {
    task: JoinHandle<Result<()>>,
    shutdown: Option<oneshot::Sender<()>>,
}

/// Where the loop's events come from.
struct Inputs {
    requests: mpsc::Receiver<Request>,
    events: Pump,
    changes: mpsc::Receiver<netlink::Change>,
    looks: mpsc::Receiver<Look>,
    findings: mpsc::Receiver<Finding>,
    signals: Signals,
}

impl Inputs {
    /// Nothing more comes in: whoever waits for an answer hears so at once, and asks the next daemon.
    fn close(self) -> Ends {
        self.signals.ends
    }
}

struct Signals {
    requests: Requests,
    ends: Ends,
}

/// The signals that ask for something. Unregistered they would end the process, whoever sends one
/// at the wrong moment (logrotate); so they wait from the first moment until the loop runs.
struct Requests {
    hangup: Signal,
    reopen: Signal,
    upgrade: Signal,
}

impl Requests {
    fn register() -> Result<Requests> {
        Ok(Requests {
            hangup: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }
}

/// The signals that end the daemon.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn register() -> Result<Ends> {
        Ok(Ends { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// How the loop ends.
enum End {
    /// The daemon was asked to end.
    Stop {
        /// Whether the datapath is detached as well.
        detach: bool,
        /// The requester to notify when the datapath is in its final state.
        reply: Option<Reply<Result<(), Refused>>>,
    },
    /// Another daemon has taken over: this process.
    HandedOver(u32),
}

impl Daemon {
    /// Serves until the end. What was read from the ring by then is taken in.
    async fn serve(&mut self, inputs: &mut Inputs) -> Result<End> {
        let end = self.until_the_end(inputs).await?;
        self.take_in_the_rest(inputs).await;
        Ok(end)
    }

    async fn until_the_end(&mut self, inputs: &mut Inputs) -> Result<End> {
        let mut test = tokio::time::interval(vrrp::TEST);
        test.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watchdog = Watchdog::of_systemd();
        loop {
            let stop = End::Stop { detach: self.config.daemon.on_exit == OnExit::Detach, reply: None };
            let deadline = self.controller.deadline().left(clock::monotonic());
            tokio::select! {
                change = inputs.changes.recv() => {
                    let change = change.context("routes, neighbours and links can no longer be watched")?;
                    if self.netlink_change(change) {
                        self.look_at_hooks();
                        self.check_dependencies();
                    }
                    self.write_hops();
                }
                batch = inputs.events.next() => {
                    self.events(&batch.context("the ring buffer of events can no longer be read")?);
                }
                finding = inputs.findings.recv() => {
                    self.probed(&finding.context("the thread of the probes has ended")?);
                }
                Some(request) = inputs.requests.recv() => {
                    if let Some(end) = self.request(request).await {
                        return Ok(end);
                    }
                }
                _ = inputs.signals.requests.hangup.recv() => self.hang_up().await,
                _ = inputs.signals.requests.reopen.recv() => self.logs.reopen(),
                _ = inputs.signals.requests.upgrade.recv() => self.upgrade(None),
                () = inputs.signals.ends.recv() => return Ok(stop),
                readiness = Upgrading::outcome(&mut self.upgrading) => {
                    if let Some(end) = self.hand_over(inputs, readiness).await {
                        return Ok(end);
                    }
                }
                events = self.vrrp.events() => {
                    self.vrrp_events(&events?);
                    self.set_ownership();
                }
                () = self.territory.changed() => self.set_ownership(),
                news = self.sync.news() => self.sync_said(news),
                look = inputs.looks.recv() => self.looked(&look.context("the thread of the hooks has ended")?),
                _ = test.tick() => {
                    if self.hops.forget(clock::monotonic()) {
                        self.write_hops();
                    }
                    self.attach_missing();
                    self.look_at_hooks();
                    if self.vrrp.is_running() {
                        self.keep_given_away();
                        self.check_dependencies();
                    }
                }
                () = watchdog.due() => tell_systemd(&[NotifyState::Watchdog]),
                () = tokio::time::sleep(deadline) => self.turn(),
            }
        }
    }

    async fn end(self, end: End, ends: Ends) -> Result<()> {
        match end {
            End::Stop { detach, reply } => self.stop(detach, reply).await,
            End::HandedOver(successor) => self.leave(successor, ends).await,
        }
    }

    /// In this order: the addresses are given up, the datapath is brought into its final state, the
    /// answer is sent, the socket is removed.
    async fn stop(mut self, detach: bool, reply: Option<Reply<Result<(), Refused>>>) -> Result<()> {
        if let Some(upgrading) = self.upgrading.take() {
            upgrading.give_up().await;
        }
        tell_systemd(&[NotifyState::Stopping]);
        self.keep_given_away();
        // Comes first: with the program gone and the address still there, the host itself would
        // reset every connection.
        if let Some(calls) = self.end_vrrp().await? {
            tokio::task::spawn_blocking(|| calls.finish()).await?;
        }
        self.sync.end();
        let datapath = if detach { "is detached" } else { "stays and goes on balancing" };
        self.tell(Notice::daemon(Level::Info, Kind::Lifecycle, format!("ending; the datapath {datapath}")));
        self.history.close();
        let detached = if detach { self.dataplane.detach_all() } else { Ok(()) };
        if let Some(reply) = reply {
            let answer = detached.as_ref().map_err(|error| Refused { errors: vec![format!("{error:#}")] });
            // The requester may have hung up.
            _ = reply.send(answer.map(|_| ()));
        }
        drop(self.doors.serving.shutdown);
        self.doors.serving.task.await??;
        self.doors.server.remove()?;
        if detach {
            remains::remove_files(&self.config.daemon.state_dir)?;
        }
        detached
    }

    // ---- what comes in ----

    /// Returns whether the program is on other interfaces than before.
    fn netlink_change(&mut self, change: netlink::Change) -> bool {
        let Daemon { hops, dataplane, wanted, .. } = self;
        let before = dataplane.attached();
        if let Err(error) = hops.change(change, dataplane, self.process.options.clsact, wanted) {
            warn!("{error:#}");
        }
        self.compare_interfaces(&before)
    }

    /// Tells what has become of the program on its interfaces. Returns whether it is on others.
    fn compare_interfaces(&mut self, before: &[Attached]) -> bool {
        let now = self.dataplane.attached();
        interfaces::moved(before, &now).into_iter().for_each(|notice| self.tell(notice));
        self.direct_sync();
        before.iter().map(|it| it.ifindex).ne(now.iter().map(|it| it.ifindex))
    }

    fn write_hops(&mut self) {
        let known = self.hops.write(self.dataplane.tables(), self.controller.installed());
        let now = clock::monotonic();
        let actions: Vec<_> =
            known.into_iter().flat_map(|(pool, known)| self.controller.next_hop(pool, known, now)).collect();
        self.act(actions);
    }

    fn events(&mut self, batch: &[Event]) {
        let now = now();
        self.sync.ended(batch);
        for event in batch {
            let actions = self.controller.event(event, now);
            self.act(actions);
        }
    }

    fn turn(&mut self) {
        let tables = self.dataplane.tables().clone();
        let lost = tables.counter(Reason::EventLost).unwrap_or(self.lost);
        if std::mem::replace(&mut self.lost, lost) != lost {
            self.sync.ends_missed();
        }
        self.look_at_sync();
        self.tell_peers_of_backends();
        // A lease ends without an event.
        self.set_ownership();
        let actions = self.controller.turn(&tables, clock::monotonic());
        let pools_changed = actions.iter().any(|action| matches!(action, Action::Write(_)));
        self.act(actions);
        if pools_changed {
            self.hops.want(self.controller.installed());
            self.detach_unused();
            self.direct_sync();
        }
        if clock::monotonic() >= self.compare_at {
            self.write_cookie_clock();
            let changed = self.controller.installed().pools.iter().filter(|(_, pool)| pool.range != 0);
            changed.for_each(|(number, _)| tables.retire_outside(*number, clock::coarse().ticks()));
            self.compare_at = clock::monotonic() + cookies::COMPARED;
        }
        self.waiting.retain(|(pool, port)| !tables.withhold_port(*pool, *port));
        for service in self.logs.due(Instant::now()) {
            let records = report::open_records(self.snapshot(), tables.clone(), service.clone());
            self.logs.list(&service, records, Instant::now());
        }
    }

    // ---- what goes out ----

    /// Reports something to the operator.
    fn tell(&self, notice: Notice) {
        self.history.tell(notice, Timestamp::now());
    }

    fn detach_unused(&mut self) {
        let notices = interfaces::detach_unused(&mut self.dataplane, &self.wanted, self.controller.installed());
        notices.into_iter().for_each(|notice| self.tell(notice));
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Write(write) => {
                    if let Err(error) = self.write_one(&write) {
                        warn!("{error:#}");
                        self.controller.reread(self.dataplane.tables().read());
                    }
                }
                // Whatever the kernel program has just made of the admission.
                Action::Admit { backend, to: NONE, retry_at, .. } => {
                    self.dataplane.tables().admit(backend, NONE, retry_at);
                }
                Action::Admit { backend, from, to, retry_at, slow_until } => {
                    self.dataplane.tables().swap_admission(backend, (from, to), retry_at, slow_until);
                }
                Action::Remember { backend, out_reason, changed_at } => {
                    self.dataplane.tables().remember_standing(backend, out_reason, changed_at);
                }
                Action::Cookies { service, from, to } => {
                    // Epochs that began while cookies were off are numbered by this.
                    self.write_cookie_clock();
                    self.dataplane.tables().swap_cookies(service, from, to);
                }
                Action::Hurry(backend) => self.probes.hurry(backend),
                Action::Ask(flow) => apply::ask(&self.dataplane, &flow),
                Action::ResetPort(port) => apply::reset_port(&self.dataplane, &port),
                Action::Step(step) => match (apply::step(&self.dataplane, &step), step) {
                    (Some(event), _) => {
                        self.sync.ended(&[event]);
                        let actions = self.controller.event(&event, now());
                        self.act(actions);
                    }
                    (None, Step::Close(flow, _)) => self.controller.not_closed(flow),
                    (None, Step::Suspect(_) | Step::Release(_) | Step::Forget(_)) => {}
                },
                Action::Retry(flow) => apply::retry(&self.dataplane, &flow),
                Action::Client(step) => apply::client(self.dataplane.tables(), step),
                Action::Correct(drift) => self.dataplane.tables().correct_active(drift.backend, -drift.by),
                Action::Record { record, .. } => self.logs.write(*record, Instant::now()),
                Action::Note(notice) => self.tell(notice),
            }
        }
    }
}

fn now() -> Now {
    Now { monotonic: clock::monotonic(), wall: Timestamp::now() }
}

/// Without systemd this does nothing.
fn tell_systemd(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("cannot notify systemd: {error}");
    }
}

/// systemd's watchdog (`WatchdogSec=`), which ends and restarts a daemon whose loop hangs.
struct Watchdog(Option<Interval>);

impl Watchdog {
    /// systemd names the process that it has started; in an upgrade its successor goes on, so the
    /// number (`WATCHDOG_PID`) does not matter here.
    fn of_systemd() -> Watchdog {
        let time = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok()).filter(|time| *time > 0);
        Watchdog(time.map(|time| tokio::time::interval(Duration::from_micros(time).max(Duration::from_millis(30)) / 3)))
    }

    /// Waits until systemd is to hear again. Cancel safe.
    async fn due(&mut self) {
        match &mut self.0 {
            Some(interval) => _ = interval.tick().await,
            None => std::future::pending().await,
        }
    }
}

/// How long systemd may take to take in what it was told.
const SYSTEMD: Duration = Duration::from_secs(5);

/// Waits until systemd has taken in what it was told so far (sd_notify_barrier(3): it closes the
/// descriptor then).
async fn until_systemd_has_heard() {
    let wait = async {
        let (sender, mut receiver) = tokio::net::unix::pipe::pipe()?;
        let sender = sender.into_blocking_fd()?;
        sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[sender.as_fd()])?;
        drop(sender);
        receiver.read(&mut [0]).await
    };
    if let Ok(Err(error)) = tokio::time::timeout(SYSTEMD, wait).await {
        warn!("cannot notify systemd: {error}");
    }
}

fn several(errors: Vec<String>) -> anyhow::Error {
    anyhow!(errors.join("\n"))
}
