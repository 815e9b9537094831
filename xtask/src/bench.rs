//! `cargo xtask bench`.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result, bail};

use crate::{setup, shell};

/// Builds what is measured and measures it; the options are those of `evenkeel-lab bench`.
pub fn run(options: &[OsString]) -> Result<()> {
    if !shell::is_root() {
        bail!("network namespaces and BPF programs need root: run it as root (sudo -E cargo xtask bench)");
    }
    setup::run(setup::Tell::Changes)?;
    let build = ["build", "--release", "--package", "lb-userspace", "--package", "tests", "--bins"];
    shell::run(&mut shell::cargo(&build))?;
    let mut lab = Command::new(shell::target().join("release/evenkeel-lab"));
    lab.current_dir(shell::workspace()).arg("bench").args(options).env("EVENKEEL_TOOLS", shell::tools());
    // Takes our place: signals and the exit code are its own.
    Err(lab.exec()).with_context(|| format!("cannot start {}", lab.get_program().display()))
}
