//! `evenkeel run`: the daemon.

use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line gives to the daemon.
#[derive(Clone, Debug)]
pub struct RunOptions {
    pub config: PathBuf,
    /// Mount a bpffs where `bpffs` lies on none.
    pub mount_bpffs: bool,
}

/// Runs until it is told to end.
pub fn run(options: RunOptions) -> Result<ExitCode> {
    anyhow::bail!("{}: the daemon is not part of this build", options.config.display())
}
