//! The arguments as they are written.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    api::{ConnsFilter, types::ConnState},
    config::{DEFAULT_PATH, DEFAULT_SOCKET, model::Weight, units},
};

const EXAMPLES: &str = "\
Examples:
  evenkeel check -c /etc/evenkeel/evenkeel.toml    is the file right?
  evenkeel run -c /etc/evenkeel/evenkeel.toml      the daemon, in the foreground
  evenkeel status                                  what it does
  evenkeel conns --backend cp01 --older 10m        which connections are old?
  evenkeel trace 10.0.3.7:50123                    why is this one where it is?
  evenkeel drain cp01 --deadline 10m --wait        empty a backend before an upgrade

Exit codes: 0 done, 1 refused or wrong input, 2 the daemon cannot be reached.";

/// TCP load balancing for kube-apiserver, in the kernel
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// The daemon's control socket: control.sock in its state_dir
    #[arg(long, global = true, env = "EVENKEEL_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon, in the foreground
    ///
    /// SIGHUP reads the configuration anew, SIGUSR1 opens the access logs anew, SIGUSR2 upgrades (see `evenkeel upgrade`),
    /// SIGTERM ends it in order: the datapath stays or goes as `on_exit` says. Killed with -9 and started again it goes on where it was.
    #[command(after_help = "\
Examples:
  evenkeel run                                  with /etc/evenkeel/evenkeel.toml
  evenkeel run -c lab.toml --mount-bpffs        where nobody has mounted a bpffs at /sys/fs/bpf
  evenkeel run --reset-state                    after a version whose tables this one cannot take over")]
    Run {
        #[arg(short, long, default_value = DEFAULT_PATH, value_name = "FILE")]
        config: PathBuf,
        /// Mount a bpffs where `bpffs` is to be, if there is none (labs and containers)
        #[arg(long)]
        mount_bpffs: bool,
        /// Begin with new tables: open connections are reset, counters begin at 0
        ///
        /// For tables that this version cannot take over. The old ones balance until the new ones are ready.
        #[arg(long)]
        reset_state: bool,
        /// Attach TC programs by clsact, as on kernels before 6.6
        #[arg(long, hide = true)]
        clsact: bool,
    },
    /// End the daemon
    #[command(after_help = "\
Examples:
  evenkeel stop             the datapath stays or goes as `on_exit` says
  evenkeel stop --detach    nothing is left: no program, no pin; open connections break")]
    Stop {
        /// Take the datapath away as well: links, programs, maps and pins
        #[arg(long)]
        detach: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Say whether a configuration is right, and what it has room for
    #[command(after_help = "\
Prints \"configuration ok\" and exits with 0, or every error with its file, line and column, and exits with 1.
Example: evenkeel check -c evenkeel.toml && evenkeel reload")]
    Check {
        #[arg(short, long, default_value = DEFAULT_PATH, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Print the whole configuration as understood, defaults filled in
    #[command(after_help = "\
What it prints is a configuration that means the same, drop-ins included.
Examples:
  evenkeel dump -c evenkeel.toml
  evenkeel dump -o json | jq .service[].balance")]
    Dump {
        #[arg(short, long, default_value = DEFAULT_PATH, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// One screen: services, datapath, backends, totals
    #[command(after_help = "\
Examples:
  evenkeel status
  evenkeel status -o wide                                 more columns
  evenkeel status -o json | jq .services[].connections")]
    Status {
        #[command(flatten)]
        output: Output,
    },
    /// The live screen: rates, connections, how even they are, health, VRRP, events; keys drain and sort
    #[command(after_help = "\
On it: arrows select a backend, d drains it, m and r are maint and ready (each asks first), s sorts, Tab shows counters or
VRRP instead of events, ? has the rest, q quits. It needs a terminal; NO_COLOR is respected. A daemon that is away is waited for.
Example: evenkeel top --interval 5s    over a slow line")]
    Top {
        /// Between two looks at the daemon: 200ms to 60s
        #[arg(short, long, value_parser = interval, default_value = "1s", value_name = "TIME")]
        interval: Duration,
    },
    /// A row a backend: state and reason, connections, failures, connect time, bytes
    #[command(after_help = "\
States: up; probing (out, one connection at a time tries it); slow_start; draining and maint (by an operator, or its probe
says that it is not ready); down.
Examples:
  evenkeel backends
  evenkeel backends -o wide    with p99, half-open connections and the last change
  evenkeel backends -o json | jq -r '.[] | select(.state != \"up\") | .name'")]
    Backends {
        #[command(flatten)]
        output: Output,
    },
    /// Live connections
    #[command(after_help = "\
Examples:
  evenkeel conns --client 10.0.3.7
  evenkeel conns --backend cp01 --state half_open
  evenkeel conns --older 10m --limit 20 -o wide
  evenkeel conns -o json | jq length")]
    Conns {
        #[command(flatten)]
        filter: ConnsArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Explain one connection, or say what a new one from this address would meet
    #[command(after_help = "\
Exit code 0 also without such a connection: then the attached program itself is asked what it would do with a SYN of this
client, and nothing changes by that, no counter and no backend's turn.
Examples:
  evenkeel trace 10.0.3.7:50123
  evenkeel trace 10.0.3.7:1 --service kube-apiserver    would this client be let in, and where to?
  evenkeel trace 10.0.3.7:50123 -o json")]
    Trace {
        /// The client's address and port
        #[arg(value_name = "CLIENT:PORT", value_parser = endpoint)]
        client: SocketAddr,
        /// Only this service
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Every reason why a packet or a connection was not forwarded, and how often
    #[command(after_help = "\
Examples:
  evenkeel counters            those that happened
  evenkeel counters -o wide    all of them
  evenkeel counters --list     what each means; needs no daemon")]
    Counters {
        /// Print every reason and its meaning instead
        #[arg(long)]
        list: bool,
        #[command(flatten)]
        output: Output,
    },
    /// What happened: health, VRRP, reloads, admin commands; the newest last
    #[command(after_help = "\
The daemon keeps the last 1000 in memory; they end with it, and go on through an upgrade. The journal has them for longer.
Examples:
  evenkeel events --limit 20
  evenkeel events -f                  and those to come, until Ctrl-C
  evenkeel events -f -o json          a line of JSON each")]
    Events {
        /// Go on with those to come
        #[arg(short, long)]
        follow: bool,
        /// Most of those that have happened [default: all]
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[command(flatten)]
        output: Output,
    },
    /// Give a backend no new connections; those it has go on until they end, or until the deadline
    ///
    /// When this has answered, no SYN that arrives goes there any more. It holds until `evenkeel ready`, through reloads
    /// and restarts.
    #[command(after_help = "\
Examples:
  evenkeel drain cp01 --wait                             before an upgrade: returns when nobody is connected
  evenkeel drain cp01 --deadline 10m --rate 20 --wait    those that do not leave in ten minutes are reset, 20/s
  evenkeel ready cp01                                    takes it back
Ctrl-C while it waits: the drain goes on.")]
    Drain {
        #[command(flatten)]
        which: BackendArg,
        #[command(flatten)]
        args: DrainArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Take a backend out at once; its connections stay, unless --reset
    ///
    /// It holds until `evenkeel ready`, through reloads and restarts.
    #[command(after_help = "\
Examples:
  evenkeel maint cp01
  evenkeel maint cp01 --reset    its connections are reset on both sides, reset_rate a second")]
    Maint {
        #[command(flatten)]
        which: BackendArg,
        /// Reset its connections as well
        #[arg(long)]
        reset: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Take a drain or a maint back
    ///
    /// What its health has found stays as it is, and `down = true` in the file wins.
    #[command(after_help = "Example: evenkeel ready cp01")]
    Ready {
        #[command(flatten)]
        which: BackendArg,
        #[command(flatten)]
        output: Output,
    },
    /// Give a backend another weight or limit, until the next reload
    #[command(after_help = "\
Examples:
  evenkeel set cp01 weight=3
  evenkeel set cp01 weight=1 max_conns=500    max_conns=0: no limit")]
    Set {
        #[command(flatten)]
        which: BackendArg,
        /// weight=N (1 to 65535), max_conns=N
        #[arg(required = true, value_parser = setting, value_name = "KEY=VALUE")]
        settings: Vec<Setting>,
        #[command(flatten)]
        output: Output,
    },
    /// Reset connections on both sides
    #[command(after_help = "\
Examples:
  evenkeel kill 10.0.3.7:50312
  evenkeel kill --client 10.0.3.7
  evenkeel kill --backend cp01
Exit code 1 if there is no such connection.")]
    Kill {
        #[command(flatten)]
        args: KillArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Reset the fewest connections, idle ones first, so that backends get even
    ///
    /// After an API server has restarted, its watches sit on the others for hours. Clients that are reset come back at
    /// once and are given to the least busy backend. Weights count; backends that are out, drained or `backup` take no part.
    #[command(after_help = "\
Examples:
  evenkeel rebalance --dry-run     what would be reset, and how long it would take
  evenkeel rebalance --rate 20     20 a second
  evenkeel rebalance --tolerance 50
Ctrl-C stops it: what was reset stays so, the rest is left alone.")]
    Rebalance {
        #[command(flatten)]
        args: RebalanceArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Give the daemon's place to the program that is now on disk
    ///
    /// It is started beside the old one with the same arguments, by the path that was given at the start, and takes over:
    /// connections, counters and the control socket go on. SIGUSR2 does the same.
    #[command(after_help = "\
Exit code 0: the new one acts, the old one ends. 1: refused, with the reason; the old one goes on.
Example: install -m755 evenkeel.new /usr/sbin/evenkeel && evenkeel upgrade")]
    Upgrade {
        #[command(flatten)]
        output: Output,
    },
    /// VRRP instances: state, since when, priority and what changed it, who is master, who was heard
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "\
Examples:
  evenkeel vrrp                    how they stand
  evenkeel vrrp -o wide            what was sent, heard and not counted, too
  evenkeel vrrp failover VI_1      give it to the other host, before work on this one"
    )]
    Vrrp {
        #[command(subcommand)]
        action: Option<VrrpAction>,
        #[command(flatten)]
        output: Output,
    },
    /// Have the daemon read its configuration anew
    #[command(after_help = "\
Exit code 0: applied. 1: refused, the errors are printed, nothing has changed.
Example: evenkeel check && evenkeel reload")]
    Reload {
        #[command(flatten)]
        output: Output,
    },
    /// Print what a shell needs to complete commands and options
    #[command(after_help = "\
Examples:
  evenkeel completions bash > /usr/share/bash-completion/completions/evenkeel
  evenkeel completions zsh > /usr/share/zsh/site-functions/_evenkeel
  evenkeel completions fish > /usr/share/fish/vendor_completions.d/evenkeel.fish")]
    Completions { shell: Shell },
    /// Print the manual page of evenkeel, or of one command
    #[command(after_help = "\
Examples:
  evenkeel man | man -l -
  evenkeel man drain | man -l -
  evenkeel man vrrp failover > evenkeel-vrrp-failover.1")]
    Man {
        /// The command
        #[arg(value_name = "COMMAND")]
        command: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum VrrpAction {
    /// Give an instance's mastership away, and its group's; returns when another host has it
    ///
    /// This host does not take it back, even with a higher priority, until the other one is gone or gives it away itself.
    #[command(after_help = "\
Exit code 1: it was not master, or nobody has taken it and this host is master again.
Example: evenkeel vrrp failover VI_1")]
    Failover {
        /// The instance
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// How to show it
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Units for people
    Table,
    /// More columns
    Wide,
    /// For programs: raw bytes, seconds and milliseconds
    Json,
}

#[derive(Clone, Debug, Args)]
pub struct BackendArg {
    /// The backend's name
    pub backend: String,
    /// Its service, where several have a backend of this name
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    /// When to reset what is left then, as 60s or 10m [default: never]
    #[arg(long, value_parser = units::parse_duration, value_name = "TIME")]
    pub deadline: Option<Duration>,
    /// Resets a second, from the deadline on [default: 50]
    #[arg(long, requires = "deadline", value_name = "N")]
    pub rate: Option<NonZeroU32>,
    /// Return when no connection is left, and show how many there are until then
    #[arg(long)]
    pub wait: bool,
}

/// One of `set`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Weight(u32),
    MaxConns(u32),
}

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = true)]
pub struct KillArgs {
    /// The client's address and port
    #[arg(value_name = "CLIENT:PORT", value_parser = endpoint, conflicts_with_all = ["backend", "client"])]
    pub connection: Option<SocketAddr>,
    /// All connections of this backend
    #[arg(long, value_name = "NAME", conflicts_with = "client")]
    pub backend: Option<String>,
    /// All connections of this client
    #[arg(long, value_name = "IP")]
    pub client: Option<IpAddr>,
    /// The backend's service, where several have a backend of this name
    #[arg(long, value_name = "NAME", requires = "backend")]
    pub service: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct RebalanceArgs {
    /// Only this service [default: all]
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Resets a second, in each service [default: 5]
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,
    /// By how many connections backends may differ [default: 1]
    #[arg(long, value_name = "N")]
    pub tolerance: Option<NonZeroU32>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub struct ConnsArgs {
    /// Only those of this backend
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Only those of this client
    #[arg(long, value_name = "IP")]
    pub client: Option<IpAddr>,
    /// Only those in this state
    #[arg(long, value_parser = state, value_name = "STATE")]
    pub state: Option<ConnState>,
    /// Only those that are at least so old, as 10m or 1h30m
    #[arg(long, value_parser = units::parse_duration, value_name = "TIME")]
    pub older: Option<Duration>,
    /// Most rows; 0: all [default: 1000 in a table, all in JSON]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

impl ConnsArgs {
    /// What the daemon is asked for.
    pub fn to_filter(&self, limit: Option<usize>) -> ConnsFilter {
        ConnsFilter {
            backend: self.backend.clone(),
            client: self.client,
            state: self.state,
            older_s: self.older.map(|older| older.as_secs() + u64::from(older.subsec_nanos() > 0)),
            limit,
        }
    }
}

fn state(text: &str) -> Result<ConnState, String> {
    let states = ConnState::ALL.iter();
    let all = || ConnState::ALL.iter().map(|(state, _)| state.name()).collect::<Vec<_>>().join(", ");
    let found = states.clone().find(|(state, _)| state.name() == text).map(|(_, state)| *state);
    found.ok_or_else(|| format!("there are {}", all()))
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = units::parse_duration(text)?;
    let ok = (Duration::from_millis(200)..=Duration::from_secs(60)).contains(&time);
    ok.then_some(time).ok_or_else(|| "200ms to 60s".into())
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let wrong = || match text.parse() {
        Ok(IpAddr::V4(address)) => format!("the port is missing: {address}:50123, as `evenkeel conns` shows it"),
        Ok(IpAddr::V6(address)) => format!("the port is missing: [{address}]:50123"),
        Err(_) => "write an address and a port: 10.0.3.7:50123".into(),
    };
    text.parse().map_err(|_| wrong())
}

fn setting(text: &str) -> Result<Setting, String> {
    let Some((key, value)) = text.split_once('=') else { return Err("write weight=N or max_conns=N".into()) };
    let number = value.parse().map_err(|_| format!("{value:?} is no whole number up to {}", u32::MAX));
    match key {
        "weight" => match number? {
            weight if Weight::new(weight).is_some() => Ok(Setting::Weight(weight)),
            _ => Err(format!("1 to {}; a backend that shall get no connections is drained", Weight::MAX)),
        },
        "max_conns" => number.map(Setting::MaxConns),
        _ => Err(format!("there is no {key:?}: weight, max_conns")),
    }
}
