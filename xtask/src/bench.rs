//! `cargo xtask bench`.

use std::{ffi::OsString, process::Command};

use anyhow::Result;

use crate::{setup, shell};

/// Builds what is measured, and measures it. The options are those of `evenkeel-lab bench`.
pub fn run(options: &[OsString]) -> Result<()> {
    shell::need_root("cargo xtask bench")?;
    setup::run(Some(setup::Task::Bench), setup::Report::Changes)?;
    shell::run(&mut shell::cargo(&shell::BUILD_ALL))?;
    let mut lab = Command::new(shell::target().join("release/evenkeel-lab"));
    lab.current_dir(shell::workspace()).arg("bench").args(options).env("EVENKEEL_TOOLS", shell::tools());
    shell::replace_us(&mut lab)
}
