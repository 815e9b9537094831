//! The arguments as the user writes them.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use log::LevelFilter;

use crate::{
    api::{ConnsFilter, types::ConnState},
    config::{DEFAULT_PATH, DEFAULT_SOCKET, model::Weight, units},
};

const EXAMPLES: &str = "\
Examples:
  evenkeel check -c /etc/evenkeel/evenkeel.toml    is the file valid?
  evenkeel run -c /etc/evenkeel/evenkeel.toml      the daemon, in the foreground
  evenkeel status                                  services, backends, VRRP, totals
  evenkeel conns --backend cp01 --older 10m        connections older than ten minutes
  evenkeel trace 10.0.3.7:50123                    why does this client have this backend?
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
    /// SIGHUP reloads the configuration. SIGUSR1 reopens the access logs. SIGUSR2 upgrades (see
    /// `evenkeel upgrade`). SIGTERM shuts it down in order: `on_exit` says whether the datapath
    /// stays or goes. Killed with -9 and started again, it resumes where it stopped.
    #[command(after_help = "\
Examples:
  evenkeel run                                  with /etc/evenkeel/evenkeel.toml
  evenkeel run -c lab.toml --mount-bpffs        if no bpffs is mounted at /sys/fs/bpf
  evenkeel run --reset-state                    if this version cannot use the tables of the previous one")]
    Run {
        #[arg(short, long, default_value = DEFAULT_PATH, value_name = "FILE")]
        config: PathBuf,
        /// Mount a bpffs for `bpffs` if none is mounted there (labs and containers)
        #[arg(long)]
        mount_bpffs: bool,
        /// Accept a bpffs that ends with this process (its own mounts: `ip netns exec`, containers)
        ///
        /// Programs and tables then end with it: each restart breaks every connection, and after a
        /// crash this host resets those that still reach it until its addresses of [[vrrp]] are gone,
        /// within their lease in whole seconds, at least 2. Without this option such a start is
        /// refused.
        #[arg(long)]
        private_pins: bool,
        /// Start with new tables: open connections are reset, counters start at 0
        ///
        /// For when this version cannot use the tables of the previous one. The old tables serve
        /// until the new ones are ready.
        #[arg(long)]
        reset_state: bool,
        /// Log what the kernel program does, for developers: debug | trace
        ///
        /// debug: refusals, failed tries and moves to another backend; trace: every change of a
        /// connection's state as well. Each line names the connection; at most 1,000 lines a second
        /// are written, the rest is counted. They appear in the daemon's log with the target
        /// `kernel`. Without this option the kernel drops the logging code when it loads the
        /// program.
        #[arg(long, value_name = "LEVEL", default_value = "off", hide_default_value = true)]
        kernel_log: LevelFilter,
        /// Attach TC programs through clsact, as kernels before 6.6 need it
        #[arg(long, hide = true)]
        clsact: bool,
    },
    /// Stop the daemon
    #[command(after_help = "\
Examples:
  evenkeel stop             `on_exit` says whether the datapath stays or goes
  evenkeel stop --detach    leaves nothing behind: no program, no pin, no file; open connections break")]
    Stop {
        /// Remove the datapath as well: links, programs, maps and pins, and the files in `state_dir`
        #[arg(long)]
        detach: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Remove what a daemon that has ended has left: programs, pins, addresses, files
    ///
    /// For when no daemon runs: after `evenkeel stop`, or after it was killed. Open connections break.
    /// `drain` and `maint` are forgotten. With a daemon running, use `evenkeel stop --detach`.
    #[command(after_help = "\
Example: evenkeel stop && evenkeel detach    the same as evenkeel stop --detach")]
    Detach {
        #[arg(short, long, default_value = DEFAULT_PATH, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Check a configuration, and say how many connections it has room for
    #[command(after_help = "\
Prints \"configuration ok\" and exits with 0, or prints every error with its file, line and column and exits with 1.
What this host lacks (an interface, the key file, the CA file, the folder of a log) is a warning, because the file may
be for another host; with --here it is an error, as it is for `evenkeel run`.
Example: evenkeel check --here -c evenkeel.toml && evenkeel reload")]
    Check {
        /// The file is for this host: what would refuse the start is an error
        #[arg(long)]
        here: bool,
        /// Also listen to the VRRP advertisements on the wire for this long, and compare them with the file
        #[arg(long, value_name = "TIME", value_parser = listening)]
        listen: Option<Duration>,
        #[arg(short, long, default_value = DEFAULT_PATH, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Print the whole configuration as evenkeel understands it, defaults included
    #[command(after_help = "\
The output is one configuration file with the same meaning, drop-ins included.
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
    /// Live screen: rates, connections and their balance, health, VRRP, events; drain and sort by
    /// key
    #[command(after_help = "\
Keys: arrows select a backend, d drains it, m puts it in maint, r makes it ready (each asks first), s sorts, Tab shows
counters or VRRP instead of events, ? lists the rest, q quits. It needs a terminal and respects NO_COLOR. If the daemon is
away, it waits.
Example: evenkeel top --interval 5s    over a slow line")]
    Top {
        /// Time between two updates: 200ms to 60s
        #[arg(short, long, value_parser = interval, default_value = "1s", value_name = "TIME")]
        interval: Duration,
    },
    /// One row per backend: state and reason, connections, failures, connect time, bytes
    #[command(after_help = "\
States: up; probing (out, but one connection at a time tries it); slow_start; draining (an operator drained it, or its
probe says it is not ready); maint (an operator took it out); down.
Examples:
  evenkeel backends
  evenkeel backends -o wide    adds p99, half-open connections and the last change
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
    /// Explain one connection, or predict what would happen to a new one from this address
    #[command(after_help = "\
If there is no such connection, the attached program itself is asked what it would do with a SYN of this client. Asking
changes nothing: no counter, no backend's turn. The exit code is 0 in both cases.
Examples:
  evenkeel trace 10.0.3.7:50123
  evenkeel trace 10.0.3.7:1 --service kube-apiserver    would this client be served, and by which backend?
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
    /// Reasons why packets or connections were not forwarded, and how often
    #[command(after_help = "\
Examples:
  evenkeel counters            reasons that occurred
  evenkeel counters -o wide    all reasons
  evenkeel counters --list     what each reason means; needs no daemon")]
    Counters {
        /// List every reason and its meaning instead
        #[arg(long)]
        list: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Recent events: health, VRRP, reloads, admin commands; newest last
    #[command(after_help = "\
The daemon keeps the last 1000 events in memory. They survive an upgrade but not a restart; the journal keeps them longer.
Examples:
  evenkeel events --limit 20
  evenkeel events -f                  and new ones as they happen, until Ctrl-C
  evenkeel events -f -o json          one line of JSON per event")]
    Events {
        /// Keep printing new events as they happen
        #[arg(short, long)]
        follow: bool,
        /// Show at most this many past events [default: all]
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[command(flatten)]
        output: Output,
    },
    /// Send a backend no new connections; existing ones continue until they end or the deadline
    /// passes
    ///
    /// Once the command returns, no new connection goes there. The drain lasts until `evenkeel
    /// ready`, through reloads and restarts.
    #[command(after_help = "\
Examples:
  evenkeel drain cp01 --wait                             before an upgrade: returns when no connection is left
  evenkeel drain cp01 --deadline 10m --rate 20 --wait    connections still open after ten minutes are reset, 20 per second
  evenkeel ready cp01                                    ends the drain
Ctrl-C while it waits: the drain continues.")]
    Drain {
        #[command(flatten)]
        which: BackendArg,
        #[command(flatten)]
        args: DrainArgs,
        #[command(flatten)]
        sure: Sure,
        #[command(flatten)]
        output: Output,
    },
    /// Take a backend out at once; its connections stay open, unless --reset
    ///
    /// It lasts until `evenkeel ready`, through reloads and restarts.
    #[command(after_help = "\
Examples:
  evenkeel maint cp01
  evenkeel maint cp01 --reset    reset its connections on both sides, reset_rate per second")]
    Maint {
        #[command(flatten)]
        which: BackendArg,
        /// Also reset its connections
        #[arg(long)]
        reset: bool,
        #[command(flatten)]
        sure: Sure,
        #[command(flatten)]
        output: Output,
    },
    /// End a drain or maint
    ///
    /// It does not change what health checks found, and `down = true` in the configuration wins.
    #[command(after_help = "Example: evenkeel ready cp01")]
    Ready {
        #[command(flatten)]
        which: BackendArg,
        #[command(flatten)]
        output: Output,
    },
    /// Change a backend's weight or connection limit until the next reload
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
Exit code 1 if no connection matches.")]
    Kill {
        #[command(flatten)]
        args: KillArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Reset as few connections as possible, idle ones first, to even out the backends
    ///
    /// After an API server restarts, its watches stay on the others for hours. Clients that are
    /// reset reconnect at once and get the least loaded backend. Weights count. Backends that are
    /// out, drained or `backup` take no part.
    #[command(after_help = "\
Examples:
  evenkeel rebalance --dry-run     what would be reset, and how long it would take
  evenkeel rebalance --rate 20     20 per second
  evenkeel rebalance --tolerance 50
Ctrl-C stops it: no further connections are reset.")]
    Rebalance {
        #[command(flatten)]
        args: RebalanceArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Replace the running daemon with the program that is now on disk
    ///
    /// The new program starts beside the old one, from the path and with the arguments of the
    /// running one, and takes over: connections, counters and the control socket carry on. SIGUSR2
    /// does the same.
    #[command(after_help = "\
Exit code 0: the new daemon has taken over, the old one ends. 1: refused, with the reason; the old daemon continues.
Example: install -m755 evenkeel.new /usr/sbin/evenkeel && evenkeel upgrade")]
    Upgrade {
        #[command(flatten)]
        output: Output,
    },
    /// VRRP instances: state and since when, priority and what changed it, the master, routers
    /// heard
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "\
Examples:
  evenkeel vrrp                    their states
  evenkeel vrrp -o wide            adds what was sent, heard and refused
  evenkeel vrrp failover VI_1      before maintenance: give the addresses to the other host"
    )]
    Vrrp {
        #[command(subcommand)]
        action: Option<VrrpAction>,
        #[command(flatten)]
        output: Output,
    },
    /// Make the daemon reload its configuration
    #[command(after_help = "\
Exit code 0: applied. 1: refused; the errors are printed and nothing has changed.
Example: evenkeel check && evenkeel reload")]
    Reload {
        #[command(flatten)]
        output: Output,
    },
    /// Print the shell script that completes commands and options
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
        /// The command to describe [default: evenkeel itself]
        #[arg(value_name = "COMMAND")]
        command: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum VrrpAction {
    /// Hand an instance, and its group, over to another host; returns when that host is master
    ///
    /// This host does not take it back, even with a higher priority, until the other host fails or
    /// hands it over.
    #[command(after_help = "\
Exit code 1: this host was not master, or no other host took over and it is master again.
Example: evenkeel vrrp failover VI_1")]
    Failover {
        /// The instance's name
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Output format
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table with units
    Table,
    /// A table with more columns
    Wide,
    /// JSON for programs: plain bytes, seconds and milliseconds
    Json,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Sure {
    /// Do not ask whether the last backend that is up may be taken out; without a terminal nothing is asked
    #[arg(long)]
    pub force: bool,
}

/// The longest `check --listen`.
const LONGEST_LISTENING: Duration = Duration::from_secs(600);

/// How long `check --listen` listens.
fn listening(text: &str) -> Result<Duration, String> {
    let time = units::parse_duration(text)?;
    if time.is_zero() || time > LONGEST_LISTENING {
        return Err("write 1ms to 10m; three advertisement intervals are enough to hear every master".into());
    }
    Ok(time)
}

#[derive(Clone, Debug, Args)]
pub struct BackendArg {
    /// The backend's name
    pub backend: String,
    /// Its service, if several services have a backend of this name
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    /// When to reset the connections that are still open, such as 60s or 10m [default: never]
    #[arg(long, value_parser = units::parse_duration, value_name = "TIME")]
    pub deadline: Option<Duration>,
    /// Resets per second after the deadline [default: 50]
    #[arg(long, requires = "deadline", value_name = "N")]
    pub rate: Option<NonZeroU32>,
    /// Wait until no connection is left, and show how many remain
    #[arg(long)]
    pub wait: bool,
}

/// One KEY=VALUE of `set`.
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
    /// The backend's service, if several services have a backend of this name
    #[arg(long, value_name = "NAME", requires = "backend")]
    pub service: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct RebalanceArgs {
    /// Only this service [default: all]
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Resets per second in each service [default: 5]
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,
    /// Difference in connections that is acceptable between backends [default: 1]
    #[arg(long, value_name = "N")]
    pub tolerance: Option<NonZeroU32>,
    /// Show what would be done without doing it
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub struct ConnsArgs {
    /// Only connections of this backend
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Only connections of this client
    #[arg(long, value_name = "IP")]
    pub client: Option<IpAddr>,
    /// Only connections in this state
    #[arg(long, value_parser = state, value_name = "STATE")]
    pub state: Option<ConnState>,
    /// Only connections at least this old, such as 10m or 1h30m
    #[arg(long, value_parser = units::parse_duration, value_name = "TIME")]
    pub older: Option<Duration>,
    /// Maximum number of rows; 0: all [default: 1000 in a table, all in JSON]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

impl ConnsArgs {
    /// The query for the daemon.
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
    found.ok_or_else(|| format!("must be one of: {}", all()))
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = units::parse_duration(text)?;
    let ok = (Duration::from_millis(200)..=Duration::from_secs(60)).contains(&time);
    ok.then_some(time).ok_or_else(|| "must be 200ms to 60s".into())
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
    let number = value.parse().map_err(|_| format!("{value:?} is not a whole number up to {}", u32::MAX));
    match key {
        "weight" => match number? {
            weight if Weight::new(weight).is_some() => Ok(Setting::Weight(weight)),
            _ => Err(format!("must be 1 to {}; to stop new connections, drain the backend", Weight::MAX)),
        },
        "max_conns" => number.map(Setting::MaxConns),
        _ => Err(format!("unknown setting {key:?}: must be weight or max_conns")),
    }
}
