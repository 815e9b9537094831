//! Development tasks: `cargo xtask setup | build | run | test | bench`.

mod bench;
mod build;
#[expect(dead_code, reason = "building is for lb-userspace/build.rs; the set-up only looks for the tools")]
mod ebpf;
mod run;
mod setup;
mod shell;
mod test;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of evenkeel")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what is missing: the BPF compiler, bpf-linker, the programs that tests use
    Setup,
    /// Build target/release/evenkeel, with the kernel program inside
    Build,
    /// The first look: evenkeel in a lab of network namespaces, on a live screen
    Run {
        /// One scripted round without a terminal; exit 0, or says what failed
        #[arg(long)]
        once: bool,
        /// Not the lab: build, and run `evenkeel run` with these arguments, e.g. `-- -c FILE`
        #[arg(last = true, conflicts_with = "once")]
        daemon: Vec<OsString>,
    },
    /// Format, lints, unit tests, and the tests in the lab (as root)
    Test {
        /// Only lab tests whose names contain this; format, lints and unit tests are left out
        filter: Option<String>,
        /// The heavy ones at their full size, which takes some ten minutes more, and with what they measured
        #[arg(long)]
        full: bool,
    },
    /// How fast it is, beside what people use today (as root); `cargo xtask bench --help` shows the options
    #[command(disable_help_flag = true)]
    Bench {
        /// Options of `evenkeel-lab bench`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup => setup::run(setup::Tell::Everything),
        Task::Build => build::run(),
        Task::Run { once, daemon } => run::run(once, &daemon),
        Task::Test { filter, full } => test::run(filter.as_deref(), full),
        Task::Bench { options } => bench::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
