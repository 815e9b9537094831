//! Removes what labs leave behind, no matter how their process ended.
//!
//! A lab starts a reaper: a process that waits for the end of its standard input, which the kernel
//! closes when the lab's process dies of a panic, a Ctrl-C or a kill -9. A new lab also removes the
//! remains of labs whose process is dead.

use std::{
    fs,
    io::{self, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{binaries, host, process};

/// The folders of labs: `/run/evenkeel-lab-PID-N`.
const FOLDER: &str = "/run/evenkeel-lab-";
/// The namespaces of labs: `ek-PID-N-HOST`.
const NAMESPACE: &str = "ek-";

/// What a lab is named after: its process, and its number among the labs of that process.
#[derive(Clone, Debug, PartialEq)]
pub struct Name {
    pub process: u32,
    pub count: u32,
}

impl Name {
    pub fn folder(&self) -> PathBuf {
        format!("{FOLDER}{}-{}", self.process, self.count).into()
    }

    pub fn namespace(&self, host: &str) -> String {
        format!("{NAMESPACE}{}-{}-{host}", self.process, self.count)
    }

    /// Parses the part of a name after its prefix: `PID-N`, or `PID-N-HOST`.
    fn read(rest: &str) -> Option<Self> {
        let mut parts = rest.splitn(3, '-');
        Some(Self { process: parts.next()?.parse().ok()?, count: parts.next()?.parse().ok()? })
    }
}

/// Kills what runs in a lab's namespaces, and removes them with the lab's bpffs and folder. Can be
/// called again.
pub fn remove(name: &Name) {
    let namespaces: Vec<_> = namespaces().filter(|(of, _)| of == name).map(|(_, namespace)| namespace).collect();
    namespaces.iter().for_each(|namespace| end_processes(namespace));
    let folder = name.folder();
    if folder.exists() {
        unmount(&folder.join("bpffs"));
        _ = fs::remove_dir_all(&folder);
    }
    for namespace in namespaces {
        _ = process::output(Command::new("ip").args(["netns", "delete", &namespace]));
    }
}

/// Removes the labs whose process is dead.
pub fn remove_abandoned() {
    let folders = fs::read_dir("/run").into_iter().flatten().flatten();
    let folders = folders.filter_map(|entry| Name::read(entry.path().to_str()?.strip_prefix(FOLDER)?));
    let mut dead: Vec<_> = namespaces().map(|(name, _)| name).chain(folders).collect();
    dead.retain(|name| !Path::new("/proc").join(name.process.to_string()).exists());
    dead.dedup();
    dead.iter().for_each(remove);
}

/// Starts the process that removes the lab when our process is gone.
pub fn watch(name: &Name) -> Result<Child> {
    let mut command = Command::new(binaries::lab()?);
    command.args(["reap", &name.process.to_string(), &name.count.to_string()]);
    // In its own process group, which a Ctrl-C at the terminal does not reach.
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().context("cannot start the lab's reaper")
}

/// The work of that process.
pub fn reap(name: &Name) {
    // Nothing is ever written, so this returns when the other end is closed.
    _ = io::stdin().read_to_end(&mut Vec::new());
    remove(name);
}

fn namespaces() -> impl Iterator<Item = (Name, String)> {
    let entries = fs::read_dir(host::NETNS).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let namespace = entry.file_name().into_string().ok()?;
        Some((Name::read(namespace.strip_prefix(NAMESPACE)?)?, namespace))
    })
}

/// By process id, from the kernel's list of the namespace's processes.
fn end_processes(namespace: &str) {
    let Ok(pids) = process::output(Command::new("ip").args(["netns", "pids", namespace])) else { return };
    for pid in pids.lines().filter_map(|line| line.trim().parse().ok()) {
        _ = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Pins keep programs and maps alive; unmounting the last bpffs releases them.
fn unmount(folder: &Path) {
    let is_mounted =
        || fs::read_to_string("/proc/mounts").is_ok_and(|mounts| mounts.contains(&format!(" {} ", folder.display())));
    if is_mounted() {
        _ = process::output(Command::new("umount").arg("--lazy").arg(folder));
    }
}
