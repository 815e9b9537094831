//! The lab's programs: stand-in API servers and clients, each a process on a host of the lab.

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::{Lab, Plan, apiserver, bench, client, reaper, topology::Topology};

#[derive(Parser)]
#[command(about = "The lab of evenkeel: stand-in API servers and clients")]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// A first look: evenkeel with traffic through it; `--once`: a scripted round
    Run {
        #[arg(long)]
        once: bool,
    },
    /// How fast it is
    Bench(bench::Options),
    /// The benchmark's server
    #[command(hide = true)]
    BenchServer(bench::lab::server::Options),
    /// The benchmark's load
    #[command(hide = true)]
    BenchLoad(bench::lab::load::Options),
    /// The benchmark's idle connections
    #[command(hide = true)]
    BenchHold(bench::lab::idle::Options),
    /// The benchmark's first connection
    #[command(hide = true)]
    BenchFirst(bench::lab::idle::FirstOptions),
    /// A stand-in API server
    Apiserver(apiserver::Options),
    /// Hold connections; commands on standard input
    Hold(client::hold::Options),
    /// Short connections
    Storm(client::storm::Options),
    /// A big transfer with checksums
    Bulk(client::bulk::Options),
    /// Take the pictures of the status page in docs/
    Picture {
        #[arg(default_value = "docs")]
        folder: std::path::PathBuf,
    },
    /// Build a lab and hold it until killed
    HoldLab,
    /// The live screen with a key, x, that panics: what becomes of the terminal?
    #[command(hide = true)]
    PanickingScreen {
        #[arg(env = "EVENKEEL_SOCKET")]
        socket: std::path::PathBuf,
    },
    /// Remove a lab when standard input ends (the lab starts this itself)
    #[command(hide = true)]
    Reap { process: u32, count: u32 },
}

fn main() -> Result<()> {
    let program = Arguments::parse().program;
    match program {
        Program::Reap { process, count } => {
            reaper::reap(&reaper::Name { process, count });
            return Ok(());
        }
        Program::HoldLab => return hold_lab(),
        Program::Picture { folder } => return lab::picture::take(&folder),
        Program::Run { once } => return lab::round::run(once),
        Program::Bench(options) => return bench::run(&options),
        Program::BenchServer(options) => return bench::lab::server::run(&options),
        Program::BenchLoad(options) => return bench::lab::load::run(options),
        Program::BenchHold(options) => return bench::lab::idle::hold(&options),
        Program::BenchFirst(options) => return bench::lab::idle::first(&options),
        Program::PanickingScreen { socket } => return lab::show::panic_at_a_key(&socket),
        _ => {}
    }
    // One thread a process: tests that need more start more of them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match program {
        Program::Apiserver(options) => runtime.block_on(apiserver::run(options)),
        Program::Hold(options) => runtime.block_on(client::hold::run(options)),
        Program::Storm(options) => runtime.block_on(client::storm::run(options)),
        Program::Bulk(options) => runtime.block_on(client::bulk::run(options)),
        // Those above.
        _ => Ok(()),
    }
}

/// For a look around, and for the test of what is left after a kill -9.
fn hold_lab() -> Result<()> {
    let lab = Lab::build(&Plan::new(Topology::Segment))?;
    let hosts = lab.clients.iter().chain([&lab.balancer, &lab.switch]).chain(&lab.backends);
    hosts.for_each(|host| println!("{}: nsenter --net=/run/netns/{}", host.name, host.namespace()));
    loop {
        std::thread::park();
    }
}
