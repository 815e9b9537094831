//! The arguments as they are written.

use crate::api::ConnsFilter;
use crate::api::types::ConnState;
use crate::config::{DEFAULT_PATH, DEFAULT_SOCKET, units};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  evenkeel check -c /etc/evenkeel/evenkeel.toml    is the file right?
  evenkeel run -c /etc/evenkeel/evenkeel.toml      the daemon, in the foreground
  evenkeel status                                  what it does
  evenkeel conns --backend cp01 --older 10m        which connections are old?

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
    /// SIGHUP reads the configuration anew, SIGUSR1 opens the access logs anew, SIGTERM ends it in order: the datapath
    /// stays or goes as `on_exit` says. Killed with -9 and started again it goes on where it was.
    Run {
        #[arg(short, long, default_value = DEFAULT_PATH, value_name = "FILE")]
        config: PathBuf,
        /// Mount a bpffs where `bpffs` is to be, if there is none (labs and containers)
        #[arg(long)]
        mount_bpffs: bool,
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
    #[command(after_help = "What it prints is a configuration that means the same, drop-ins included.")]
    Dump {
        #[arg(short, long, default_value = DEFAULT_PATH, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// One screen: services, datapath, backends, totals
    Status {
        #[command(flatten)]
        output: Output,
    },
    /// A row a backend: state and reason, connections, failures, connect time, bytes
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
The daemon keeps the last 1000 in memory; they end with it. The journal has them for longer.
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
    /// Have the daemon read its configuration anew
    #[command(after_help = "Exit code 0: applied. 1: refused, the errors are printed, nothing has changed.")]
    Reload,
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
