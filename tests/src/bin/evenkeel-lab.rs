//! The lab's programs: stand-in API servers and clients, each a process on a host of the lab.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::{Lab, Plan, apiserver, client, reaper, round, show, topology::Topology};

#[derive(Parser)]
#[command(about = "The lab of evenkeel: stand-in API servers and clients in network namespaces")]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// A first look: evenkeel with traffic through it, on a live screen
    Run {
        /// Run one scripted round without a screen
        #[arg(long)]
        once: bool,
        /// Log what the kernel program does: debug | trace
        #[arg(long, value_name = "LEVEL")]
        kernel_log: Option<String>,
    },
    #[cfg(feature = "full")]
    #[command(flatten)]
    Bench(lab::bench::Program),
    /// Show what the kernel's verifier makes of the kernel program: instructions and stack
    #[cfg(feature = "full")]
    Verified(lab::verified::Options),
    #[cfg(feature = "full")]
    #[command(flatten)]
    Kernels(lab::kernels::Program),
    /// Run a stand-in API server
    Apiserver(apiserver::Options),
    /// Hold connections, directed by commands on standard input
    Hold(client::hold::Options),
    /// Open many short connections
    Storm(client::storm::Options),
    /// Transfer much data and compare checksums
    Bulk(client::bulk::Options),
    /// Take the pictures of the status page in docs/
    #[cfg(feature = "full")]
    Picture {
        #[arg(default_value = "docs")]
        folder: PathBuf,
    },
    /// Build a lab and keep it until this process is killed
    HoldLab,
    /// Show the live screen with a key, x, that panics: a test looks at the terminal afterwards
    #[command(hide = true)]
    PanickingScreen {
        #[arg(env = "EVENKEEL_SOCKET")]
        socket: PathBuf,
    },
    /// Remove a lab when standard input ends (each lab starts this itself)
    #[command(hide = true)]
    Reap { process: u32, count: u32 },
}

fn main() -> Result<()> {
    match Arguments::parse().program {
        Program::Run { once, kernel_log } => round::run(once, kernel_log.as_deref()),
        #[cfg(feature = "full")]
        Program::Bench(program) => program.run(),
        #[cfg(feature = "full")]
        Program::Verified(options) => lab::verified::run(&options),
        #[cfg(feature = "full")]
        Program::Kernels(program) => program.run(),
        Program::Apiserver(options) => on_one_thread(apiserver::run(options)),
        Program::Hold(options) => on_one_thread(client::hold::run(options)),
        Program::Storm(options) => on_one_thread(client::storm::run(options)),
        Program::Bulk(options) => on_one_thread(client::bulk::run(options)),
        #[cfg(feature = "full")]
        Program::Picture { folder } => lab::picture::take(&folder),
        Program::HoldLab => hold_lab(),
        Program::PanickingScreen { socket } => show::panic_at_a_key(&socket),
        Program::Reap { process, count } => {
            reaper::reap(&reaper::Name { process, count });
            Ok(())
        }
    }
}

/// One thread per process: a test that needs more threads starts more processes.
fn on_one_thread(program: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(program)
}

/// For a look around, and for the test of what remains after a kill -9.
fn hold_lab() -> Result<()> {
    let lab = Lab::build(&Plan::new(Topology::Segment))?;
    let hosts = lab.clients.iter().chain([&lab.balancer, &lab.switch]).chain(&lab.backends);
    hosts.for_each(|host| println!("{}: nsenter --net=/run/netns/{}", host.name, host.namespace()));
    loop {
        std::thread::park();
    }
}
