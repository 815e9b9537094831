//! What an operator is told when the kernel does not take the programs: one or two sentences that
//! say what is missing, where it is, and what to do.

use std::fmt;

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use super::needs::{Need, missing};
use crate::sys::{bpf, host};

/// The least release of Linux.
pub const LEAST: (u32, u32) = (5, 15);

/// What was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A map.
    Map(String),
    /// A program.
    Program(String),
    /// Nothing yet: something is known to be missing.
    Nothing,
}

/// What is known of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub step: Step,
    /// The kernel's error number.
    pub error: i32,
    /// What the verifier said, to the end.
    pub log: String,
    /// `uname -rm`.
    pub kernel: String,
    pub missing: Vec<Need>,
    /// See [`host::lockdown`].
    pub lockdown: String,
    /// Even a map of one entry: so it is bpf(2) that is forbidden, and not this map or program.
    pub forbids_every_map: bool,
    pub in_user_namespace: bool,
    pub has_seccomp_filter: bool,
}

/// The kernel does not take the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What an operator is told.
    pub text: String,
    /// What the verifier said; empty if it was not asked.
    pub log: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {}

impl Facts {
    /// Asks the kernel why it may have refused.
    fn collect(step: Step, error: i32, log: String) -> Facts {
        Facts {
            step,
            error,
            log,
            kernel: host::kernel(),
            missing: missing(),
            lockdown: host::lockdown(),
            forbids_every_map: bpf::create_array("probe", 8, 1, 0)
                .is_err_and(|error| matches!(error.raw_os_error(), Some(errno::EPERM | errno::EACCES))),
            in_user_namespace: host::in_user_namespace(),
            has_seccomp_filter: host::has_seccomp_filter(),
        }
    }
}

impl Refusal {
    fn of(facts: Facts) -> Refusal {
        Refusal { text: sentence(&facts), log: facts.log }
    }

    /// Of the loader. An error that is not the kernel's stays as it is.
    pub fn of_maps(error: EbpfError) -> anyhow::Error {
        match &error {
            EbpfError::MapError(MapError::CreateError { name, io_error }) => {
                let step = Step::Map(name.clone());
                Refusal::of(Facts::collect(step, io_error.raw_os_error().unwrap_or(0), String::new())).into()
            }
            _ => anyhow::Error::from(error).context("the program's maps cannot be made"),
        }
    }

    /// Of a program.
    pub fn of_program(name: &str, error: ProgramError) -> anyhow::Error {
        match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                let step = Step::Program(name.into());
                let error = io_error.raw_os_error().unwrap_or(0);
                Refusal::of(Facts::collect(step, error, verifier_log.to_string())).into()
            }
            error => anyhow::Error::from(error).context(format!("the program {name} cannot be loaded")),
        }
    }

    /// If something is missing that loading does not show.
    pub fn before_loading() -> Option<Refusal> {
        let is_missing = Need::XdpContext.is_missing();
        is_missing.then(|| Refusal::of(Facts::collect(Step::Nothing, 0, String::new())))
    }
}

/// Error numbers (errno-base.h, errno.h; ENOTSUPP is the kernel's own, include/linux/errno.h).
mod errno {
    pub const EPERM: i32 = 1;
    pub const E2BIG: i32 = 7;
    pub const EAGAIN: i32 = 11;
    pub const ENOMEM: i32 = 12;
    pub const EACCES: i32 = 13;
    pub const ENOSYS: i32 = 38;
    pub const ENOTSUPP: i32 = 524;
}

/// What an operator is told.
pub fn sentence(facts: &Facts) -> String {
    let kernel = format!("the kernel, Linux {},", facts.kernel);
    let refuses = match &facts.step {
        Step::Map(name) => format!("{kernel} refuses the map {name}"),
        Step::Program(name) => format!("{kernel} refuses the program {name}"),
        Step::Nothing => format!("{kernel} does not suffice"),
    };
    if !facts.missing.is_empty() {
        return format!("{kernel} has no {}. {}", listed(&facts.missing), least());
    }
    match facts.error {
        // A kernel without BPF has no bpffs either, and is refused before.
        errno::ENOSYS if facts.has_seccomp_filter => format!("{refuses}: {FILTERED}"),
        errno::ENOSYS => format!("{kernel} was built without BPF (CONFIG_BPF_SYSCALL). {}", least()),
        errno::ENOMEM | errno::E2BIG if matches!(facts.step, Step::Map(_)) => format!(
            "{refuses}: it has no memory left for it. `evenkeel check` says how much the tables take; lower \
             max_connections, or the memory limit of the unit or container is too low"
        ),
        errno::ENOMEM => format!(
            "{refuses}: it has no memory left for it. The host's memory, or the memory limit of the unit or container, \
             is too low"
        ),
        errno::ENOTSUPP => format!(
            "{refuses}: it could not compile it, and runs nothing that is not compiled. Its memory for machine code may \
             be used up: unload other BPF programs, or restart the host"
        ),
        errno::EAGAIN => format!("{refuses}: a signal has interrupted its verifier. Start evenkeel again"),
        errno::EPERM | errno::EACCES if facts.log.trim().is_empty() => format!("{refuses}: {}", forbidden(facts)),
        error => format!("{refuses}: {}. {REPORT}", verdict(&facts.log, error)),
    }
}

/// `a (since Linux 5.11), no b (since Linux 5.12) and no c (since Linux 5.15)`.
fn listed(needs: &[Need]) -> String {
    let mut said = String::new();
    for (position, need) in needs.iter().enumerate() {
        let (major, minor) = need.since();
        said += match position {
            0 => "",
            _ if position + 1 == needs.len() => " and no ",
            _ => ", no ",
        };
        said += &format!("{} (since Linux {major}.{minor})", need.name());
    }
    said
}

fn least() -> String {
    let (major, minor) = LEAST;
    format!(
        "evenkeel needs Linux {major}.{minor} or newer, or the kernel of RHEL 9: Debian 12 and 13, Ubuntu 22.04 and \
         24.04, and RHEL, Rocky Linux and AlmaLinux 9 and 10 have one"
    )
}

const REPORT: &str = "It has everything that evenkeel asks for, so this is a fault of evenkeel: please report it";

const FILTERED: &str = "a seccomp filter (of a container?) forbids bpf(2). Permit that call, or start the container with \
                        `--privileged`";

const DENIED: &str = "it forbids that although this process has the capabilities for it. A security module (SELinux, \
                      AppArmor) may be the reason: see `dmesg` and `ausearch -m avc`";

/// Why the kernel may forbid what it could do. The capabilities were looked at before. Of what can
/// forbid it only a security module says EACCES; the verifier says it too, but with a log.
fn forbidden(facts: &Facts) -> String {
    if facts.error == errno::EACCES {
        return DENIED.into();
    }
    if facts.in_user_namespace {
        return "this process has its capabilities in a user namespace only (a rootless container?), and programs and \
                maps are for root of the host. Start evenkeel on the host, or in a container without a user namespace"
            .into();
    }
    // systemd's restrictions of a unit are such filters too, but permit bpf(2).
    if facts.forbids_every_map && facts.has_seccomp_filter {
        return FILTERED.into();
    }
    if facts.lockdown != "none" {
        return format!(
            "it is locked down ({}). Boot with `lockdown=none`, or without Secure Boot where that turns it on",
            facts.lockdown
        );
    }
    DENIED.into()
}

/// What the verifier found, from the end of its log.
fn verdict(log: &str, error: i32) -> String {
    let lines = || log.lines().rev().map(str::trim);
    if let Some(line) = lines().find(|line| line.starts_with("combined stack size of")) {
        return format!("its verifier counts more than the 512 bytes of stack that are allowed ({line})");
    }
    if error == errno::E2BIG || lines().any(|line| line.starts_with("BPF program is too large")) {
        return "its verifier gives up after 1,000,000 instructions".into();
    }
    // The last lines are a summary of its work.
    let summary = ["processed ", "verification time ", "stack depth ", "peak_states ", "mark_read "];
    match lines().find(|line| !line.is_empty() && !summary.iter().any(|start| line.starts_with(start))) {
        Some(line) => format!("its verifier says \"{line}\""),
        None => std::io::Error::from_raw_os_error(error).to_string(),
    }
}

/// The capabilities without which nothing works, by their numbers (linux/capability.h): the maps
/// inside maps are opened by ID, programs attached, frames sent.
const CAPABILITIES: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")];

/// Which rights this process lacks, and where to get them; `None`: it has them all.
pub fn lacking_rights(capabilities: u64) -> Option<String> {
    let lacking: Vec<_> =
        CAPABILITIES.iter().filter(|(bit, _)| capabilities >> bit & 1 == 0).map(|(_, name)| *name).collect();
    let all = CAPABILITIES.map(|(_, name)| name).join(" ");
    (!lacking.is_empty()).then(|| {
        format!(
            "this process lacks the right to balance ({}). Start evenkeel as root, or give its unit or container the \
             capabilities {all}",
            lacking.join(", ")
        )
    })
}

#[cfg(test)]
mod tests;
