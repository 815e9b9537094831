//! `cargo xtask kernels`.

use std::{ffi::OsString, process::Command};

use anyhow::Result;

use crate::{setup, shell};

/// Builds evenkeel and the lab, and boots kernels with them. The options are those of `evenkeel-lab
/// kernels`.
pub fn run(options: &[OsString]) -> Result<()> {
    setup::run(Some(setup::Task::Kernels), setup::Report::Changes)?;
    shell::run(&mut shell::cargo(&shell::BUILD_ALL))?;
    shell::replace_us(command().args(options))
}

/// The built lab's command.
pub fn command() -> Command {
    let mut lab = Command::new(shell::target().join("release/evenkeel-lab"));
    lab.current_dir(shell::workspace()).arg("kernels");
    lab
}
