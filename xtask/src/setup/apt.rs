//! Debian's packages.

use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::{ebpf, shell};

/// Installs packages without their recommendations and without starting a service.
pub fn install(packages: &[&str]) -> Result<()> {
    let wanted = packages.join(" ");
    if ebpf::program("apt-get").is_none() {
        bail!("this is no Debian or Ubuntu (no apt-get). Install what is in these packages there: {wanted}");
    }
    if !shell::is_root() {
        bail!("missing packages can be installed by root only: apt-get install --no-install-recommends {wanted}");
    }
    println!("installing {wanted} ...");
    refresh()?;
    let before = policy::forbid_services()?;
    let mut command = shell::command("apt-get", &["install", "--yes", "-qq", "--no-install-recommends"]);
    let installed = shell::run_quietly(command.args(packages).env("DEBIAN_FRONTEND", "noninteractive"));
    policy::restore(before)?;
    installed.map(drop)
}

/// The package lists, once a run.
fn refresh() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_none() {
        shell::run_quietly(&mut shell::command("apt-get", &["update", "-qq"])).context("package lists")?;
        _ = DONE.set(());
    }
    Ok(())
}

/// `policy-rc.d` is asked by Debian's packages before they start a service: 101 forbids it.
mod policy {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use anyhow::{Context, Result};

    const FILE: &str = "/usr/sbin/policy-rc.d";

    /// Forbids it, unless there is a policy already; whether we did is what `restore` wants to know.
    pub fn forbid_services() -> Result<bool> {
        if Path::new(FILE).exists() {
            return Ok(false);
        }
        fs::write(FILE, "#!/bin/sh\nexit 101\n").context(FILE)?;
        fs::set_permissions(FILE, fs::Permissions::from_mode(0o755)).context(FILE)?;
        Ok(true)
    }

    pub fn restore(ours: bool) -> Result<()> {
        if ours { fs::remove_file(FILE).context(FILE) } else { Ok(()) }
    }
}
