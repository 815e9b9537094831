//! `evenkeel run`: the shell around the controller. It reads clocks, files, sockets, netlink and the ring buffer, hands
//! what they say to the core, and does what comes back. One thread, one loop; nothing in it waits for anything but an
//! event. Long answers and the access log have threads of their own.

mod admin_file;
mod answers;
mod apply;
mod configure;
mod hops;
mod interfaces;
mod journal;
mod listener;
mod logs;
mod orders;
mod report;
mod view;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;
use lb_common::{event::Event, layout::NONE, verdict::Reason};
use log::{Level, warn};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};

use crate::{
    api::{self, Reply, Request, Server, types::Refused},
    config::{self, model::Config, model::OnExit},
    controller::{Action, Controller, Now, desired::Desired, orders::Orders},
    dataplane::{Dataplane, Options},
    notice::{History, Kind, Notice},
    sys::{clock, mount, netlink},
};

use admin_file::AdminFile;
use hops::Hops;
use interfaces::Wanted;
use logs::Logs;

/// What the command line gives to the daemon.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The configuration.
    pub config: PathBuf,
    /// Mount a bpffs where `bpffs` lies on none.
    pub mount_bpffs: bool,
    /// Attach TC programs as on kernels before 6.6.
    pub clsact: bool,
}

/// How long the start waits for the backends' neighbours to answer before it says that it is ready.
const NEIGHBOURS: Duration = Duration::from_millis(300);
/// Batches of events that may wait for the loop; each has at most 4,096.
const BATCHES: usize = 2;

/// Runs until it is told to end.
pub fn run(options: RunOptions) -> Result<ExitCode> {
    let loaded = match config::load(&options.config) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return Ok(ExitCode::FAILURE);
        }
    };
    journal::begin(loaded.config.daemon.log_level);
    loaded.warnings.iter().for_each(|warning| warn!("{warning}"));
    let history = Arc::new(History::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut daemon = Daemon::start(options, loaded.config, history).await?;
        let detach = daemon.serve().await?;
        daemon.end(detach).await
    })?;
    // Nobody waits any more for an answer that is still being put together.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// Everything the loop works on.
struct Daemon {
    options: RunOptions,
    config: Config,
    started: Instant,
    loaded: (Timestamp, u64),
    generation: u64,
    /// Whether the last reload was applied.
    reloaded: bool,
    dataplane: Dataplane,
    controller: Controller,
    /// Where operators' orders are kept.
    admin_file: AdminFile,
    hops: Hops,
    logs: Logs,
    history: Arc<History>,
    api: api::Daemon,
    listener: listener::ApiListener,
    wanted: Wanted,
    /// SNAT ports that are to be withheld and are in use: (pool, port).
    waiting: Vec<(u16, u16)>,
    /// Events lost so far.
    lost: u64,
    inputs: Option<Inputs>,
    server: (tokio::task::JoinHandle<Result<()>>, Option<oneshot::Sender<()>>),
}

/// Where the loop's events come from.
struct Inputs {
    requests: mpsc::Receiver<Request>,
    events: mpsc::Receiver<Vec<Event>>,
    changes: mpsc::Receiver<netlink::Change>,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    reopen: Signal,
}

/// What ends the loop: whether the datapath is to be detached, and who waits to hear that it is.
type End = (bool, Option<Reply<Result<(), Refused>>>);

impl Daemon {
    /// From nothing, or from what an earlier daemon has left, to a datapath that balances.
    async fn start(options: RunOptions, config: Config, history: Arc<History>) -> Result<Daemon> {
        let started = Instant::now();
        // First of all: it makes sure that there is no other daemon.
        let server = Server::bind(&config.daemon.socket(), &config.daemon.socket_group)?;
        let signals = (
            signal(SignalKind::hangup())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::user_defined1())?,
        );
        let desired = Desired::new(&config).map_err(several)?;
        let mut logs = Logs::default();
        let prepared = logs.prepare(&config)?;
        logs.commit(&config, prepared);
        mount_bpffs(&options, &config)?;
        let dataplane = Dataplane::open(&Options {
            bpffs: config.daemon.bpffs.clone(),
            max_connections: config.daemon.max_connections,
        })?;
        let (watch, changes) = netlink::Watch::start()?;
        let wanted = interfaces::wanted(&config).await.map_err(several)?;
        wanted.warnings.iter().for_each(|warning| warn!("{warning}"));
        let admin_file = AdminFile::new(&config.daemon.state_dir);
        let orders = admin_file.load(now()).unwrap_or_else(|error| {
            history.tell(Notice::daemon(Level::Warn, Kind::Admin, format!("{error:#}")), Timestamp::now());
            Orders::default()
        });
        let controller = Controller::new(view::installed(dataplane.tables()), orders);
        let (ask, requests) = mpsc::channel(api::QUEUE);
        let (shutdown, stopped) = oneshot::channel();
        let api = api::Daemon::new(ask, history.clone());
        let serving = tokio::spawn(server.serve(api.clone(), async { _ = stopped.await }));
        let (hangup, terminate, interrupt, reopen) = signals;
        let events = pump(dataplane.events()?);
        let inputs = Inputs { requests, events, changes, hangup, terminate, interrupt, reopen };
        let mut daemon = Daemon {
            options,
            config,
            started,
            loaded: (Timestamp::now(), clock::monotonic_ns()),
            generation: 1,
            reloaded: true,
            dataplane,
            controller,
            admin_file,
            hops: Hops::new(watch),
            logs,
            history,
            api,
            listener: listener::ApiListener::default(),
            wanted,
            waiting: Vec::new(),
            lost: 0,
            inputs: Some(inputs),
            server: (serving, Some(shutdown)),
        };
        daemon.first_configuration(desired).await?;
        Ok(daemon)
    }

    /// Waits until every backend's next hop is known, but not for long: one of them may be dead.
    async fn meet_neighbours(&mut self) {
        let Some(mut inputs) = self.inputs.take() else { return };
        let patience = tokio::time::sleep(NEIGHBOURS);
        tokio::pin!(patience);
        loop {
            self.write_hops();
            let known = |number| self.controller.is_reachable(number);
            if self.controller.backends().keys().copied().all(known) {
                break;
            }
            tokio::select! {
                Some(change) = inputs.changes.recv() => self.netlink_change(change),
                () = &mut patience => break,
            }
        }
        self.inputs = Some(inputs);
    }

    /// The loop.
    async fn serve(&mut self) -> Result<End> {
        let mut inputs = self.inputs.take().context("the daemon serves once")?;
        loop {
            let deadline = Duration::from_nanos(self.controller.deadline().saturating_sub(clock::monotonic_ns()));
            tokio::select! {
                Some(change) = inputs.changes.recv() => {
                    self.netlink_change(change);
                    self.write_hops();
                }
                batch = inputs.events.recv() => {
                    self.events(&batch.context("the ring buffer of events cannot be read any more")?);
                }
                Some(request) = inputs.requests.recv() => {
                    if let Some(end) = self.request(request).await {
                        return Ok(end);
                    }
                }
                _ = inputs.hangup.recv() => self.hang_up().await,
                _ = inputs.reopen.recv() => self.logs.reopen(),
                _ = inputs.terminate.recv() => return Ok((self.config.daemon.on_exit == OnExit::Detach, None)),
                _ = inputs.interrupt.recv() => return Ok((self.config.daemon.on_exit == OnExit::Detach, None)),
                () = tokio::time::sleep(deadline) => self.turn(),
            }
        }
    }

    /// In order: the datapath as it shall stay, then the answer, then the socket.
    async fn end(self, (detach, reply): End) -> Result<()> {
        tell_systemd(&[NotifyState::Stopping]);
        let datapath = if detach { "is detached" } else { "stays and goes on balancing" };
        self.tell(Notice::daemon(Level::Info, Kind::Lifecycle, format!("ending; the datapath {datapath}")));
        self.history.close();
        let detached = if detach { self.dataplane.detach_all() } else { Ok(()) };
        if let Some(reply) = reply {
            let answer = detached.as_ref().map_err(|error| Refused { errors: vec![format!("{error:#}")] });
            // Who asked may be gone.
            _ = reply.send(answer.map(|_| ()));
        }
        let (serving, shutdown) = self.server;
        drop(shutdown);
        serving.await??;
        detached
    }

    // ---- what comes in ----

    fn netlink_change(&mut self, change: netlink::Change) {
        let Daemon { hops, dataplane, wanted, .. } = self;
        if let Err(error) =
            hops.change(change, dataplane, self.options.clsact, |name| wanted.interfaces.get(name).copied())
        {
            warn!("{error:#}");
        }
    }

    fn write_hops(&mut self) {
        let known = self.hops.write(self.dataplane.tables(), self.controller.installed());
        let now = clock::monotonic_ns();
        let actions: Vec<_> =
            known.into_iter().flat_map(|(pool, known)| self.controller.next_hop(pool, known, now)).collect();
        self.act(actions);
    }

    fn events(&mut self, batch: &[Event]) {
        let now = now();
        for event in batch {
            let actions = self.controller.event(event, now);
            self.act(actions);
        }
    }

    fn turn(&mut self) {
        let tables = self.dataplane.tables().clone();
        let lost = tables.counter(Reason::EventLost).unwrap_or(self.lost);
        self.lost = lost;
        let actions = self.controller.turn(&*tables, lost, clock::monotonic_ns());
        let pools_changed = actions.iter().any(|action| matches!(action, Action::Write(_)));
        self.act(actions);
        if pools_changed {
            self.hops.want(self.controller.installed());
            self.detach_unused();
        }
        self.waiting.retain(|(pool, port)| !tables.reserve_port(*pool, *port));
        for service in self.logs.due(Instant::now()) {
            for record in report::open_records(&self.snapshot(), &tables, &service) {
                self.logs.write(record, Instant::now());
            }
        }
    }

    // ---- what goes out ----

    /// The door for what the operator should hear of.
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
                    if let Err(error) = apply::write(self.dataplane.tables(), &self.hops, &write, &mut self.waiting) {
                        warn!("{error:#}");
                        self.controller.reread(view::installed(self.dataplane.tables()));
                    }
                }
                // Whatever the kernel program has made of it in this moment.
                Action::Admit { backend, to: NONE, retry_at, .. } => {
                    self.dataplane.tables().admit(backend, NONE, retry_at);
                }
                Action::Admit { backend, from, to, retry_at } => {
                    self.dataplane.tables().swap_admission(backend, from, to, retry_at);
                }
                Action::Remember { backend, reason, changed_at } => {
                    self.dataplane.tables().remember_standing(backend, reason, changed_at);
                }
                Action::Step(step) => {
                    if let Some(event) = apply::step(&self.dataplane, &step) {
                        let actions = self.controller.event(&event, now());
                        self.act(actions);
                    }
                }
                Action::Retry(flow) => apply::retry(&self.dataplane, &flow),
                Action::Client(step) => apply::client(self.dataplane.tables(), step),
                Action::Correct(drift) => self.dataplane.tables().correct_active(drift.backend, -drift.by),
                Action::Record { record, .. } => self.logs.write(*record, Instant::now()),
                Action::Note(notice) => self.tell(notice),
            }
        }
    }
}

fn mount_bpffs(options: &RunOptions, config: &Config) -> Result<()> {
    let path = &config.daemon.bpffs;
    if mount::is_bpffs(path) || !options.mount_bpffs {
        return Ok(());
    }
    mount::mount_bpffs(path)
}

/// Reads the ring buffer in a task of its own: in the loop, a wake-up for anything else would begin its wait anew.
fn pump(mut events: crate::dataplane::Events) -> mpsc::Receiver<Vec<Event>> {
    let (sender, receiver) = mpsc::channel(BATCHES);
    tokio::spawn(async move {
        let mut batch = Vec::new();
        loop {
            if let Err(error) = events.next_batch(&mut batch).await {
                log::error!("events: {error:#}");
                return;
            }
            if !batch.is_empty() && sender.send(std::mem::take(&mut batch)).await.is_err() {
                return;
            }
        }
    });
    receiver
}

fn now() -> Now {
    Now { monotonic: clock::monotonic_ns(), wall: Timestamp::now() }
}

/// Without systemd there is nobody to tell, and that is fine.
fn tell_systemd(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("systemd cannot be told: {error}");
    }
}

fn several(errors: Vec<String>) -> anyhow::Error {
    anyhow!(errors.join("\n"))
}
