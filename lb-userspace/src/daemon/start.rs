//! The start: from nothing, or from what an earlier daemon has left, to a datapath that balances.
//! Everything that can fail and changes nothing comes first; then the daemon takes over, and
//! begins.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use jiff::Timestamp;
use log::{Level, info, warn};
use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot};

use super::{
    BPFFS, Daemon, Doors, Ends, Inputs, Load, Process, Requests, RunOptions, Serving, Signals,
    admin_file::AdminFile,
    beside,
    flow_sync::{self, FlowSync},
    given_away::GivenAwayFile,
    hooks::HookWatch,
    hops::Hops,
    interfaces::{self, Wanted},
    listener::ApiListener,
    logs::Logs,
    now,
    probes::{self, Probes},
    pump::Pump,
    remains, several, tell_systemd,
    territory::Territory,
    verifier_log,
    vrrp::Vrrp,
};
use crate::{
    api::{self, Server},
    config::model::Config,
    controller::{Controller, admin_state::AdminStates, desired::Desired},
    dataplane::{self, Dataplane, Look, Options, Prepared},
    handover::{self, Predecessor},
    notice::{History, Kind, Notice},
    probe::Finding,
    sync::seal::SharedKey,
    sys::{
        clock, host,
        mount::{self, Lifetime},
        netlink,
    },
    vrrp::report::Remembered,
};

/// A step of the kernel program takes microseconds; it may be interrupted for a few milliseconds.
const LONGER_THAN_A_STEP: Duration = Duration::from_millis(50);

/// What is open and ready before anything acts.
struct Opened {
    server: Server,
    ends: Ends,
    desired: Desired,
    probes: Probes,
    findings: mpsc::Receiver<Finding>,
    key: Option<SharedKey>,
    logs: Logs,
    prepared: Prepared,
    private_pins: bool,
    watch: netlink::Watch,
    changes: mpsc::Receiver<netlink::Change>,
    hooks: HookWatch,
    looks: mpsc::Receiver<Look>,
    territory: Territory,
    wanted: Wanted,
}

impl Opened {
    async fn open(
        options: &RunOptions,
        config: &Config,
        history: &Arc<History>,
        mut predecessor: Option<&mut Predecessor>,
    ) -> Result<Opened> {
        if let Some(lacking) = dataplane::lacking_rights(host::capabilities()) {
            bail!("{lacking}");
        }
        // Comes next: it makes sure that no other daemon runs, or that the other one hands over.
        let server = match &mut predecessor {
            Some(predecessor) => Server::inherit(&config.daemon.socket(), predecessor)?,
            None => Server::bind(&config.daemon.socket(), &config.daemon.socket_group)?,
        };
        let ends = Ends::register()?;
        let desired = Desired::new(config).map_err(several)?;
        let (probes, findings) = Probes::start(config)?;
        let key = flow_sync::key(config)?;
        let mut logs = Logs::new(history.clone());
        let opened = logs.prepare(config)?;
        logs.commit(config, opened);
        if options.mount_bpffs && !mount::is_bpffs(&config.daemon.bpffs) {
            let mount = if options.private_pins { mount::mount_private_bpffs } else { mount::mount_bpffs };
            mount(&config.daemon.bpffs)?;
        }
        let private_pins = ends_with_this_process(&config.daemon.bpffs, options.private_pins)?;
        let wanted = interfaces::wanted(config).await.map_err(several)?;
        wanted.warnings.iter().for_each(|warning| warn!("{warning}"));
        dataplane::refuse_strangers(&config.daemon.bpffs, wanted.interfaces.keys()).await?;
        let lock = predecessor.as_mut().map(|predecessor| predecessor.take_file(BPFFS, &config.daemon.bpffs));
        let tables = Options {
            bpffs: config.daemon.bpffs.clone(),
            max_connections: config.daemon.max_connections,
            reset: options.reset_state && predecessor.is_none(),
            kernel_log: options.kernel_log,
        };
        let prepared = Dataplane::prepare(&tables, lock.transpose()?)
            .map_err(|error| verifier_log::kept(error, &config.daemon.state_dir))?;
        let (watch, changes) = netlink::Watch::start()?;
        let territory = Territory::watch().await?;
        let (hooks, looks) = HookWatch::start()?;
        Ok(Opened {
            server,
            ends,
            desired,
            probes,
            findings,
            key,
            logs,
            prepared,
            private_pins,
            watch,
            changes,
            hooks,
            looks,
            territory,
            wanted,
        })
    }

    /// Tells the old daemon that this one is ready, and waits until that one has stopped acting.
    fn take_over(&self, predecessor: &mut Predecessor, history: &History) -> Result<Vec<Remembered>> {
        // The time to find out that the tables have no room for our configuration is now.
        let installed = self.prepared.tables()?.read();
        Controller::new(installed, AdminStates::default()).plan(&self.desired).map_err(several)?;
        let memory = predecessor.ready(env!("CARGO_PKG_VERSION"))?;
        history.go_on(memory.events);
        // Until now the other daemon was told that a file is a new one.
        self.logs.reopen();
        Ok(memory.vrrp)
    }

    /// From here on it is this daemon that acts.
    fn begin(
        self,
        process: Process,
        config: Config,
        history: Arc<History>,
        remembered: Vec<Remembered>,
        requests: Requests,
    ) -> Result<(Daemon, Inputs, Desired, Option<SharedKey>)> {
        let mut dataplane = self.prepared.take()?;
        if self.private_pins {
            dataplane.guard_without_pins();
        }
        if let Some(log) = dataplane.take_kernel_log() {
            tokio::spawn(log.run());
        }
        let back = dataplane.tables().heal_rings(|| std::thread::sleep(LONGER_THAN_A_STEP));
        if back > 0 {
            let text = format!("{back} SNAT port(s) that an earlier daemon had lost can be used again");
            history.tell(Notice::daemon(Level::Warn, Kind::Datapath, text), Timestamp::now());
        }
        beside::watch(dataplane.tables(), &history)?;
        let admin_file = AdminFile::new(&config.daemon.state_dir);
        let admin_states = admin_file.load(now()).unwrap_or_else(|error| {
            history.tell(Notice::daemon(Level::Warn, Kind::Admin, format!("{error:#}")), Timestamp::now());
            AdminStates::default()
        });
        remains::note(&config.daemon.state_dir, &process.options.config)?;
        let (given_away, given, loaded) = GivenAwayFile::load(&config.daemon.state_dir);
        if let Err(error) = loaded {
            history.tell(Notice::daemon(Level::Warn, Kind::Vrrp, format!("{error:#}")), Timestamp::now());
        }
        // What the daemon before has said itself is newer.
        let remembered = if remembered.is_empty() { given } else { remembered };
        // Netlink reports all of them at the start.
        dataplane.tables().clear_ways()?;
        let controller = Controller::new(dataplane.tables().read(), admin_states);
        let (ask, asked) = mpsc::channel(api::QUEUE);
        let api = api::Daemon::new(ask, history.clone());
        let (events, serving) = begin_inputs(&self.server, &dataplane, &api)?;
        let Opened { findings, ends, changes, looks, territory, server, logs, mut probes, .. } = self;
        // What cannot be read a second time does not end a daemon that acts.
        match probes::prepare(&config, controller.installed()) {
            Ok(again) => probes.replace(again),
            Err(error) => warn!("probes may be sent from ports that connections have: {error:#}"),
        }
        let daemon = Daemon {
            process,
            config,
            load: Load { at: Timestamp::now(), monotonic: clock::monotonic(), generation: 1, is_current: true },
            wanted: self.wanted,
            dataplane,
            controller,
            admin_file,
            hops: Hops::new(self.watch),
            hooks: self.hooks,
            logs,
            history,
            doors: Doors { api, server, serving, listener: ApiListener::default() },
            vrrp: Vrrp::after(remembered),
            given_away,
            probes,
            sync: FlowSync::default(),
            territory,
            waiting: Vec::new(),
            lost: 0,
            compare_at: lb_common::time::Instant::ZERO,
            floors: Arc::default(),
            stranded: BTreeSet::new(),
            upgrading: None,
        };
        let signals = Signals { requests, ends };
        Ok((daemon, Inputs { requests: asked, events, changes, looks, findings, signals }, self.desired, self.key))
    }
}

/// Whether the pins end with this process; refused unless `accepted`. On no bpffs, nothing is pinned.
fn ends_with_this_process(bpffs: &Path, accepted: bool) -> Result<bool> {
    if !mount::is_bpffs(bpffs) {
        return Ok(false);
    }
    let place = bpffs.display();
    match mount::lifetime(bpffs)? {
        Lifetime::Host => Ok(false),
        Lifetime::Unknown(why) => {
            info!("whether {place} outlives this process cannot be told ({why}): it has to be on a bpffs of the host");
            Ok(false)
        }
        Lifetime::Process if accepted => {
            warn!(
                "{place} ends with this process, and so do programs and tables: each restart breaks every connection \
                 (--private-pins)"
            );
            Ok(true)
        }
        Lifetime::Process => bail!(
            "{place} is on a bpffs that ends with this process, which has mounts of its own (`ip netns exec`, a container, \
             PrivateMounts=): programs and tables would end with it, and every connection. Start it with the host's mounts \
             (`nsenter --net=/run/netns/NAME` in place of `ip netns exec NAME`; in a container, mount the host's \
             /sys/fs/bpf), or accept that with --private-pins"
        ),
    }
}

impl Daemon {
    /// Starts, with the configuration applied.
    pub(super) async fn start(
        options: RunOptions,
        config: Config,
        history: Arc<History>,
        signals: Requests,
        mut predecessor: Option<&mut Predecessor>,
    ) -> Result<(Daemon, Inputs)> {
        let process = Process { options, started: Instant::now(), binary: handover::own_path()? };
        let opened = Opened::open(&process.options, &config, &history, predecessor.as_deref_mut()).await?;
        let is_upgrade = predecessor.is_some();
        let remembered = match predecessor {
            Some(predecessor) => opened.take_over(predecessor, &history)?,
            None => Vec::new(),
        };
        let (mut daemon, mut inputs, desired, key) = opened.begin(process, config, history, remembered, signals)?;
        daemon.first_configuration(desired, key, &mut inputs).await?;
        if !is_upgrade {
            // In an upgrade the service stays ready throughout, and the old daemon names its
            // successor as the main process.
            tell_systemd(&[NotifyState::Ready]);
        }
        Ok((daemon, inputs))
    }
}

/// Begins to read events and to serve the control socket.
pub(super) fn begin_inputs(server: &Server, dataplane: &Dataplane, api: &api::Daemon) -> Result<(Pump, Serving)> {
    let (shutdown, stopped) = oneshot::channel();
    let serving = server.serve(api.clone(), async { _ = stopped.await })?;
    let pump = Pump::start(dataplane.events()?);
    Ok((pump, Serving { task: tokio::spawn(serving), shutdown: Some(shutdown) }))
}
