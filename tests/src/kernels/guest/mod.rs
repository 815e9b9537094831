//! Process 1 of a kernel that `evenkeel-lab kernels` has booted: it prepares the system, carries
//! out its orders and switches the machine off. What it prints goes to the serial console.

mod devices;
mod kernel_messages;
mod round;
mod stage;
mod verifier;

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};

use super::said::{Hook, KERNEL, MODULES, ORDERS, Orders, Outcome, Said};

/// What a system has before its process 1 starts others.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// Runs the orders. It returns only if this is not process 1.
pub fn run() -> Result<()> {
    ensure!(std::process::id() == 1, "this is for the kernels that `evenkeel-lab kernels` boots");
    let done = carry_out();
    if let Err(error) = done {
        check("the guest", Instant::now(), Err(error));
    }
    Said::Over.say();
    match reboot(RebootMode::RB_POWER_OFF)? {}
}

fn carry_out() -> Result<()> {
    prepare()?;
    let orders = fs::read(ORDERS).context(ORDERS)?;
    let orders: Orders = serde_json::from_slice(&orders)?;
    Said::Kernel { release: release()? }.say();
    if !orders.jit {
        fs::write("/proc/sys/net/core/bpf_jit_enable", "0").context("bpf_jit_enable")?;
    }
    orders.modules.iter().try_for_each(|module| load(module))?;
    if orders.by_function {
        let started = Instant::now();
        let measured = verifier::measure();
        if let Ok(programs) = &measured {
            Said::Verifier { programs: programs.clone() }.say();
        }
        check("budget", started, measured.and_then(|programs| verifier::within_budget(&programs)));
    }
    for row in &orders.rows {
        // Without tcx the row before was clsact too.
        if orders.has_tcx || row.hook != Hook::Clsact {
            round::run(*row, &orders);
        }
    }
    Said::Row { name: KERNEL.into() }.say();
    check("no warning in its log", Instant::now(), kernel_messages::no_warnings());
    Ok(())
}

fn prepare() -> Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| place.to_owned())?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>).with_context(|| place.to_owned())?;
    }
    Ok(())
}

fn load(module: &str) -> Result<()> {
    let file = fs::File::open(Path::new(MODULES).join(module)).with_context(|| module.to_owned())?;
    finit_module(&file, c"", ModuleInitFlags::empty()).with_context(|| format!("module {module}"))
}

fn release() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned())
}

/// Says how a check ended that began at `started`.
fn check(name: &str, started: Instant, done: Result<String>) {
    let outcome = done.map_or_else(|error| Outcome::Failed(format!("{error:#}")), Outcome::Ok);
    Said::Check { name: name.to_owned(), outcome, seconds: since(started) }.say();
}

fn since(started: Instant) -> f64 {
    (started.elapsed().as_secs_f64() * 10.0).round() / 10.0
}
