//! Where and when a run took place.

use std::{fs, process::Command, time::SystemTime};

use serde::{Deserialize, Serialize};

/// What the figures depend on, so that the reader knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// The number of processors.
    pub processors: usize,
    /// `Linux 6.18.44 x86_64`.
    pub kernel: String,
    /// GiB of memory.
    pub memory_gib: f64,
    /// Whether it identifies itself as a virtual machine.
    pub is_virtual: bool,
    /// The day, UTC.
    pub date: String,
    /// The commit of the sources, with a `+` if they were changed.
    pub commit: String,
    /// The load average over the minute before.
    pub load: f64,
}

impl Machine {
    /// This machine at this moment. What cannot be determined stays empty.
    pub fn this() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split(':').nth(1)).unwrap_or_default().trim().to_owned()
        };
        let kib: f64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
        let uname = |what: &str| said("uname", &[what]);
        Machine {
            processor: field(&cpuinfo, "model name"),
            processors: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: format!("{} {} {}", uname("-s"), uname("-r"), uname("-m")),
            memory_gib: (kib / 1024.0 / 1024.0 * 10.0).round() / 10.0,
            is_virtual: field(&cpuinfo, "flags").split(' ').any(|flag| flag == "hypervisor"),
            date: date(),
            commit: commit(),
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
        }
    }

    /// One line, for the caption of a table.
    pub fn line(&self) -> String {
        let kind = if self.is_virtual { "virtual machine, " } else { "" };
        let Machine { processor, processors, kernel, memory_gib, date, commit, load, .. } = self;
        format!(
            "{kind}{processors} × {processor}, {memory_gib} GiB, {kernel}; {date}, commit {commit}, load before {load}"
        )
    }
}

/// YYYY-MM-DD, UTC.
fn date() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    said("date", &["-u", "-d", &format!("@{}", now.as_secs()), "+%Y-%m-%d"])
}

fn commit() -> String {
    let commit = said("git", &["rev-parse", "--short=10", "HEAD"]);
    if said("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty() { commit } else { commit + "+" }
}

/// What a program prints; empty if it fails.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}
