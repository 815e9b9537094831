//! `cargo xtask run`: evenkeel in the lab, or `evenkeel run` on this host.

use std::{ffi::OsString, process::Command};

use anyhow::Result;

use crate::{setup, shell};

/// The profile of this name is in the workspace's Cargo.toml.
const PROFILE: &str = "look";

/// Builds the lab without what only tests and benchmarks use, quickly rather than well (profile
/// `look`), and runs it.
pub fn lab(once: bool, kernel_log: Option<&str>) -> Result<()> {
    shell::need_root("cargo xtask run")?;
    setup::run(Some(setup::Task::Run), setup::Report::Changes)?;
    let build = ["build", "--profile", PROFILE, "--package", "lb-userspace", "--package", "tests"];
    shell::run(shell::cargo(&build).args(["--no-default-features", "--bins"]))?;
    let mut lab = Command::new(shell::target().join(PROFILE).join("evenkeel-lab"));
    lab.arg("run")
        .args(once.then_some("--once"))
        .args(kernel_log_option(kernel_log))
        .env("EVENKEEL_TOOLS", shell::tools());
    shell::replace_us(&mut lab)
}

/// Builds evenkeel and runs the daemon with these arguments.
pub fn daemon(kernel_log: Option<&str>, arguments: &[OsString]) -> Result<()> {
    shell::need_root("cargo xtask run")?;
    setup::run(Some(setup::Task::Build), setup::Report::Changes)?;
    shell::run(&mut shell::cargo(&["build", "--release", "--package", "lb-userspace", "--bin", "evenkeel"]))?;
    let mut evenkeel = Command::new(shell::target().join("release/evenkeel"));
    evenkeel.arg("run").args(kernel_log_option(kernel_log)).args(arguments);
    shell::replace_us(&mut evenkeel)
}

fn kernel_log_option(level: Option<&str>) -> Option<String> {
    level.map(|level| format!("--kernel-log={level}"))
}
