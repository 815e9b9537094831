//! `cargo xtask setup`: finds or installs what the commands of xtask need, and says in one line
//! each where it comes from.
//!
//! When nothing is missing it only looks at files, so every command calls it first.

mod apt;
mod compiler;
mod frr;
mod kubectl;
mod linker;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Result, bail};

use crate::ebpf;

/// A command that needs things installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Task {
    Build,
    Run,
    Test,
    Bench,
    Kernels,
}

use Task::{Bench, Build, Kernels, Run, Test};

/// Something that has to be installed.
#[derive(Clone, Copy)]
enum Part {
    /// What is found or installed in its own way.
    Own(&'static str, Provide),
    /// A program in PATH, or a file, and the Debian package that contains it.
    Package(&'static str, &'static str),
}

type Provide = fn() -> Result<Outcome>;

use Part::{Own, Package};

const LAB: &[Task] = &[Run, Test, Bench, Kernels];
/// A machine that boots other kernels. The tests boot one too.
const VIRTUAL: &[Task] = &[Test, Kernels];

/// Everything that is ever needed, and the commands that need it.
const PARTS: [(Part, &[Task]); 29] = [
    (Own("BPF compiler", compiler::provide), &[Build, Run, Test, Bench, Kernels]),
    (Own("bpf-linker", linker::provide), &[Build, Run, Test, Bench, Kernels]),
    // The lab itself: hosts, cables, firewalls.
    (Package("ip", "iproute2"), LAB),
    (Package("ethtool", "ethtool"), LAB),
    (Package("nft", "nftables"), LAB),
    (Package("sysctl", "procps"), LAB),
    (Package("nsenter", "util-linux"), LAB),
    (Own("kubectl", kubectl::provide), &[Run, Test]),
    // What evenkeel is compared with, and interoperates with.
    (Package("nginx", "nginx-light"), &[Test, Bench]),
    (Package("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"), &[Test, Bench]),
    (Package("haproxy", "haproxy"), &[Test, Bench]),
    (Package("keepalived", "keepalived"), &[Test]),
    (Package("/usr/lib/frr/vrrpd", "frr"), &[Test]),
    (Own("FRR", frr::provide), &[Test]),
    // What looks at evenkeel from outside.
    (Package("bpftool", "bpftool"), &[Test, Bench, Kernels]),
    (Package("curl", "curl"), &[Test]),
    (Package("tcpdump", "tcpdump"), &[Test]),
    (Package("promtool", "prometheus"), &[Test]),
    (Package("chromium", "chromium"), &[Test]),
    (Package("systemd-analyze", "systemd"), &[Test]),
    (Package("groff", "groff-base"), &[Test]),
    // Other kernels.
    (Package("qemu-system-x86_64", "qemu-system-x86"), VIRTUAL),
    (Package("/usr/share/seabios/bios-256k.bin", "seabios"), VIRTUAL),
    (Package("cpio", "cpio"), VIRTUAL),
    (Package("depmod", "kmod"), VIRTUAL),
    (Package("xz", "xz-utils"), VIRTUAL),
    (Package("zstd", "zstd"), VIRTUAL),
    (Package("strip", "binutils"), VIRTUAL),
    (Package("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"), VIRTUAL),
];

/// How much to print.
#[derive(Clone, Copy, PartialEq)]
pub enum Report {
    Everything,
    /// Only what had to be installed.
    Changes,
}

/// Where a part comes from.
pub enum Outcome {
    Found(String),
    Installed(String),
}

/// Provides what `task` needs; `None`: what every command needs.
pub fn run(task: Option<Task>, report: Report) -> Result<()> {
    let parts: Vec<_> = parts(task).collect();
    // Packages first: whether FRR has to be unpacked depends on the one that Debian installs.
    let packages: Vec<_> = parts.iter().filter_map(Part::package).collect();
    if !packages.is_empty() {
        print("Debian packages", &provide_packages(&packages)?, report);
    }
    parts.iter().filter_map(Part::own).try_for_each(|(name, provide)| {
        print(name, &provide()?, report);
        Ok(())
    })
}

fn parts(task: Option<Task>) -> impl Iterator<Item = Part> {
    let is_needed = move |tasks: &[Task]| task.is_none_or(|task| tasks.contains(&task));
    PARTS.into_iter().filter(move |(_, tasks)| is_needed(tasks)).map(|(part, _)| part)
}

fn print(name: &str, outcome: &Outcome, report: Report) {
    match outcome {
        Outcome::Found(what) if report == Report::Everything => println!("{name}: {what} (already installed)"),
        Outcome::Found(_) => {}
        Outcome::Installed(what) => println!("{name}: {what} (installed now)"),
    }
}

impl Part {
    fn own(&self) -> Option<(&'static str, Provide)> {
        if let Own(name, provide) = *self { Some((name, provide)) } else { None }
    }

    fn package(&self) -> Option<(&'static str, &'static str)> {
        if let Package(what, package) = *self { Some((what, package)) } else { None }
    }
}

/// Installs the packages whose program or file is missing, all at once.
fn provide_packages(packages: &[(&'static str, &'static str)]) -> Result<Outcome> {
    let missing = || packages.iter().filter(|(what, _)| !is_there(what));
    let names: Vec<_> = missing().map(|(_, package)| *package).collect();
    if names.is_empty() {
        let all: Vec<_> = packages.iter().map(|(what, _)| what.rsplit('/').next().unwrap_or(what)).collect();
        return Ok(Outcome::Found(all.join(", ")));
    }
    apt::install(&names)?;
    if let Some((what, package)) = missing().next() {
        bail!("{package} was installed, but {what} cannot be found");
    }
    Ok(Outcome::Installed(names.join(", ")))
}

fn is_there(what: &str) -> bool {
    if what.starts_with('/') { Path::new(what).exists() } else { ebpf::program(what).is_some() }
}
