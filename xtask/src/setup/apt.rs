//! Debian packages.

use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::{ebpf, shell};

/// Installs packages, without what they recommend and without starting services.
pub fn install(packages: &[&str]) -> Result<()> {
    let wanted = packages.join(" ");
    if ebpf::program("apt-get").is_none() {
        bail!("no apt-get here: install what these packages of Debian contain: {wanted}");
    }
    if !shell::is_root() {
        bail!("only root can install missing packages: apt-get install --no-install-recommends {wanted}");
    }
    println!("installing {wanted} ...");
    refresh()?;
    let before = policy::forbid_services()?;
    let mut command = shell::command("apt-get", &["install", "--yes", "-qq", "--no-install-recommends"]);
    let installed = shell::run_quietly(command.args(packages).env("DEBIAN_FRONTEND", "noninteractive"));
    policy::restore(before)?;
    installed.map(drop)
}

/// Updates the package lists, once per run.
fn refresh() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_none() {
        shell::run_quietly(&mut shell::command("apt-get", &["update", "-qq"])).context("package lists")?;
        _ = DONE.set(());
    }
    Ok(())
}

/// Debian's packages ask `policy-rc.d` before they start a service; exit code 101 forbids it.
mod policy {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use anyhow::{Context, Result};

    const FILE: &str = "/usr/sbin/policy-rc.d";

    /// Forbids services, unless there is a policy already. Returns what [`restore`] has to know:
    /// whether the policy is ours.
    pub fn forbid_services() -> Result<bool> {
        if Path::new(FILE).exists() {
            return Ok(false);
        }
        fs::write(FILE, "#!/bin/sh\nexit 101\n").context(FILE)?;
        fs::set_permissions(FILE, fs::Permissions::from_mode(0o755)).context(FILE)?;
        Ok(true)
    }

    /// Removes the policy if it is ours.
    pub fn restore(ours: bool) -> Result<()> {
        if ours { fs::remove_file(FILE).context(FILE) } else { Ok(()) }
    }
}
