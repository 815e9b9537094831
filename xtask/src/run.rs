//! `cargo xtask run`: evenkeel in the lab, or `evenkeel run` on this host.

use std::{ffi::OsString, process::Command};

use anyhow::Result;

use crate::{setup, shell};

/// Of the workspace's Cargo.toml.
const PROFILE: &str = "look";

/// Builds the lab without what only tests and benchmarks use, quickly rather than well (profile
/// `look`), and runs it.
pub fn lab(once: bool) -> Result<()> {
    shell::need_root("cargo xtask run")?;
    setup::run(Some(setup::Task::Run), setup::Report::Changes)?;
    let build = ["build", "--profile", PROFILE, "--package", "lb-userspace", "--package", "tests"];
    shell::run(shell::cargo(&build).args(["--no-default-features", "--bins"]))?;
    let mut lab = Command::new(shell::target().join(PROFILE).join("evenkeel-lab"));
    lab.arg("run").args(once.then_some("--once")).env("EVENKEEL_TOOLS", shell::tools());
    shell::replace_us(&mut lab)
}

/// Builds evenkeel and runs the daemon with these arguments.
pub fn daemon(arguments: &[OsString]) -> Result<()> {
    shell::need_root("cargo xtask run")?;
    setup::run(Some(setup::Task::Build), setup::Report::Changes)?;
    shell::run(&mut shell::cargo(&["build", "--release", "--package", "lb-userspace", "--bin", "evenkeel"]))?;
    let mut evenkeel = Command::new(shell::target().join("release/evenkeel"));
    evenkeel.arg("run").args(arguments);
    shell::replace_us(&mut evenkeel)
}
