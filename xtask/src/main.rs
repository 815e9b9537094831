//! Development tasks: `cargo xtask setup | build | run | test | bench | kernels`.

mod bench;
mod build;
#[expect(dead_code, reason = "build scripts include this file too, and only they build")]
mod ebpf;
mod kernels;
mod lint;
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
    /// Find or install what the other commands need: BPF compiler, bpf-linker, the programs of lab
    /// and tests
    Setup {
        /// Only what this command needs
        #[arg(long = "for", value_name = "COMMAND")]
        task: Option<setup::Task>,
    },
    /// Build target/release/evenkeel, with the kernel program inside
    Build,
    /// A first look: run evenkeel in a lab of network namespaces, on a live screen (as root)
    Run {
        /// Run one scripted round without a screen; exit 0 if all of it worked
        #[arg(long)]
        once: bool,
        /// Log what the kernel program does, in evenkeel's own log: debug | trace. The screen names
        /// the file, --once prints the last lines
        #[arg(long, value_name = "LEVEL", num_args = 0..=1, default_missing_value = "debug")]
        kernel_log: Option<String>,
        /// Build evenkeel and run the daemon on this host instead, with these arguments: `-- -c
        /// FILE`
        #[arg(last = true, conflicts_with = "once")]
        daemon: Vec<OsString>,
    },
    /// Check format and lints, run the unit tests and the tests in the lab (as root)
    Test {
        /// Run only the lab tests whose names contain this; no format, lints or unit tests
        filter: Option<String>,
        /// Run the heavy tests at full size and print what they measure: some ten minutes more
        #[arg(long)]
        full: bool,
    },
    /// Boot other kernels in qemu and look at what evenkeel does on each; see `kernels --help`
    #[command(disable_help_flag = true)]
    Kernels {
        /// Options of `evenkeel-lab kernels`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Measure how fast evenkeel is, compared with what people use today (as root); see `bench
    /// --help`
    #[command(disable_help_flag = true)]
    Bench {
        /// Options of `evenkeel-lab bench`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup { task } => setup::run(task, setup::Report::Everything),
        Task::Build => build::run(),
        Task::Run { once, kernel_log, daemon } if daemon.is_empty() => run::lab(once, kernel_log.as_deref()),
        Task::Run { kernel_log, daemon, .. } => run::daemon(kernel_log.as_deref(), &daemon),
        Task::Test { filter, full } => test::run(filter.as_deref(), full),
        Task::Kernels { options } => kernels::run(&options),
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
