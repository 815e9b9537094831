//! `cargo xtask run`.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result, bail};

use crate::{setup, shell};

pub fn run(once: bool, daemon: &[OsString]) -> Result<()> {
    if !shell::is_root() {
        bail!("network namespaces and BPF programs need root: run it as root (sudo -E cargo xtask run)");
    }
    setup::run(setup::Tell::Changes)?;
    let parts = ["--package", "lb-userspace", "--package", "tests", "--bins"];
    let parts = if daemon.is_empty() { &parts[..] } else { &["--package", "lb-userspace", "--bin", "evenkeel"] };
    shell::run(shell::cargo(&["build", "--release"]).args(parts))?;
    let built = shell::target().join("release");
    let mut command = if daemon.is_empty() {
        let mut lab = Command::new(built.join("evenkeel-lab"));
        lab.arg("run").args(once.then_some("--once"));
        lab.env("EVENKEEL_TOOLS", shell::tools());
        lab
    } else {
        let mut evenkeel = Command::new(built.join("evenkeel"));
        evenkeel.arg("run").args(daemon);
        evenkeel
    };
    // Takes our place: signals and the exit code are its own.
    Err(command.exec()).with_context(|| format!("cannot start {}", command.get_program().display()))
}
