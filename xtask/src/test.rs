//! `cargo xtask test`: what CI runs.

use std::time::Instant;

use anyhow::Result;

use crate::{kernels, lint, setup, shell};

pub fn run(filter: Option<&str>, full: bool) -> Result<()> {
    shell::need_root("cargo xtask test")?;
    setup::run(Some(setup::Task::Test), setup::Report::Changes)?;
    match filter {
        None => check()?,
        // The tests of upgrades need an evenkeel that was built differently. The unit tests build
        // it too.
        Some(_) => step("debug build", || cargo(&["build", "--package", "lb-userspace", "--bin", "evenkeel"]))?,
    }
    if full && filter.is_none() {
        simulation()?;
    }
    lab(filter, full)?;
    if filter.is_none() { other_kernels() } else { Ok(()) }
}

/// The oldest kernel that people run, in a virtual machine.
fn other_kernels() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        println!("── kernels --quick: skipped, it boots a kernel for x86-64");
        return Ok(());
    }
    step("kernels --quick", || shell::run(kernels::command().arg("--quick")))
}

/// What takes least time comes first.
fn check() -> Result<()> {
    step("format", || cargo(&["fmt", "--all", "--check"]))?;
    step("lints", || {
        cargo(&["clippy", "--workspace", "--exclude", "lb-ebpf", "--all-targets", "--", "--deny", "warnings"])?;
        lint::kernel_programs()
    })?;
    // Those of the default members; the tests of the package tests run with the lab.
    step("unit tests", || cargo(&["test"]))
}

/// The pair of hosts, simulated. The unit tests run a few of these seeds.
fn simulation() -> Result<()> {
    let mut tests = shell::cargo(&["test", "--release", "--package", "lb-userspace", "--lib", "daemon::simulation"]);
    tests.env("EVENKEEL_SEEDS", "10000");
    step("10,000 runs of the simulated pair", || shell::run(&mut tests))
}

/// One test at a time, because they measure and there may be only two cores. At full size they
/// print what they measure.
fn lab(filter: Option<&str>, full: bool) -> Result<()> {
    step("release build", || cargo(&shell::BUILD_ALL))?;
    let built = shell::target().join("release");
    let mut tests = shell::cargo(&["test", "--release", "--package", "tests", "--", "--test-threads=1"]);
    tests
        .args(filter)
        .env("EVENKEEL_BIN", built.join("evenkeel"))
        .env("EVENKEEL_OTHER_BIN", shell::target().join("debug/evenkeel"))
        .env("EVENKEEL_LAB_BIN", built.join("evenkeel-lab"))
        .env("EVENKEEL_TOOLS", shell::tools());
    if full {
        tests.arg("--nocapture").env("EVENKEEL_FULL", "1");
    }
    step("tests in the lab", || shell::run(&mut tests))
}

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    println!("── {name}");
    run()?;
    println!("── {name}: {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    shell::run(&mut shell::cargo(args))
}
