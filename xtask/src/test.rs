//! `cargo xtask test`: what CI runs.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{setup, shell};

pub fn run(filter: Option<&str>, full: bool) -> Result<()> {
    if !shell::is_root() {
        bail!("the tests in the lab need root: run it as root (sudo -E cargo xtask test)");
    }
    setup::run(setup::Tell::Changes)?;
    if filter.is_none() {
        check()?;
    }
    lab(filter, full)
}

/// The quick ones first.
fn check() -> Result<()> {
    step("format", &["fmt", "--all", "--check"], &[])?;
    let lints = ["clippy", "--workspace", "--exclude", "lb-ebpf", "--all-targets", "--", "--deny", "warnings"];
    step("lints", &lints, &[])?;
    // These three are the default members; the lab's own tests come last.
    step("unit tests", &["test"], &[])
}

/// One at a time: they measure, and two cores are few. At full size they show what they measured.
fn lab(filter: Option<&str>, full: bool) -> Result<()> {
    step("release build", &["build", "--release", "--package", "lb-userspace", "--package", "tests", "--bins"], &[])?;
    // Upgrades need a program that was built in another way.
    step("another build", &["build", "--package", "lb-userspace", "--bin", "evenkeel"], &[])?;
    let mut args = vec!["test", "--release", "--package", "tests", "--"];
    args.push("--test-threads=1");
    args.extend(filter);
    args.extend(full.then_some("--nocapture"));
    let built = shell::target().join("release");
    let mut environment = vec![
        ("EVENKEEL_BIN", built.join("evenkeel")),
        ("EVENKEEL_OTHER_BIN", shell::target().join("debug/evenkeel")),
        ("EVENKEEL_LAB_BIN", built.join("evenkeel-lab")),
        ("EVENKEEL_TOOLS", shell::tools()),
    ];
    environment.extend(full.then(|| ("EVENKEEL_FULL", "1".into())));
    step("tests in the lab", &args, &environment)
}

fn step(name: &str, args: &[&str], environment: &[(&str, std::path::PathBuf)]) -> Result<()> {
    let started = Instant::now();
    println!("── {name}");
    shell::run(shell::cargo(args).envs(environment.iter().map(|(name, value)| (name, value))))?;
    println!("── {name}: {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}
