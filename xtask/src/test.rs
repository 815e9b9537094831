//! `cargo xtask test`: what CI runs.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{setup, shell};

pub fn run(filter: Option<&str>) -> Result<()> {
    if !shell::is_root() {
        bail!("the tests in the lab need root: run it as root (sudo -E cargo xtask test)");
    }
    setup::run(setup::Tell::Changes)?;
    if filter.is_none() {
        check()?;
    }
    lab(filter)
}

/// The quick ones first.
fn check() -> Result<()> {
    step("format", &["fmt", "--all", "--check"], &[])?;
    let lints = ["clippy", "--workspace", "--exclude", "lb-ebpf", "--all-targets", "--", "--deny", "warnings"];
    step("lints", &lints, &[])?;
    // These three are the default members; the lab's own tests come last.
    step("unit tests", &["test"], &[])
}

/// One at a time: they measure, and two cores are few.
fn lab(filter: Option<&str>) -> Result<()> {
    step("release build", &["build", "--release", "--package", "lb-userspace", "--package", "lab", "--bins"], &[])?;
    let mut args = vec!["test", "--release", "--package", "lab", "--"];
    args.push("--test-threads=1");
    args.extend(filter);
    let built = shell::target().join("release");
    let paths = [
        ("EVENKEEL_BIN", built.join("evenkeel")),
        ("EVENKEEL_LAB_BIN", built.join("evenkeel-lab")),
        ("EVENKEEL_TOOLS", shell::tools()),
    ];
    step("tests in the lab", &args, &paths)
}

fn step(name: &str, args: &[&str], environment: &[(&str, std::path::PathBuf)]) -> Result<()> {
    let started = Instant::now();
    println!("── {name}");
    shell::run(shell::cargo(args).envs(environment.iter().map(|(name, value)| (name, value))))?;
    println!("── {name}: {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}
