//! What host and guest say to each other: orders go in with the initramfs, results come out as
//! lines on the serial console.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// Begins each line that is for the host; the kernel and the programs write to the console too.
const MARK: &str = "@evenkeel ";

/// The file in the guest with its [`Orders`].
pub const ORDERS: &str = "/orders.json";
/// The folder in the guest with the kernel's modules.
pub const MODULES: &str = "/modules";

/// The name of the row for what is about the whole boot.
pub const KERNEL: &str = "the kernel";

/// What a guest does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    /// Files in [`MODULES`], each after those that it needs.
    pub modules: Vec<String>,
    pub rows: Vec<Row>,
    /// `false`: BPF programs are interpreted, and every stack frame is rounded up to 32 bytes.
    pub jit: bool,
    /// Whether to show what the verifier makes of each function.
    pub by_function: bool,
    /// Whether evenkeel has to refuse this kernel.
    pub is_too_old: bool,
    /// Whether TC has to be tcx; older kernels only have clsact.
    pub has_tcx: bool,
}

/// A way of putting the program on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    /// `datapath = "tc"`: tcx, or clsact where the kernel has no tcx.
    Tc,
    /// `evenkeel run --clsact`.
    Clsact,
    Xdp,
    XdpGeneric,
}

/// What the VIP is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    Cable,
    Vlan,
    /// Two cables, of which one is in use (active-backup).
    Bond,
}

/// A round of checks: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub hook: Hook,
    pub device: Device,
}

impl Hook {
    pub const ALL: [Hook; 4] = [Hook::Tc, Hook::Clsact, Hook::Xdp, Hook::XdpGeneric];

    /// The word in the configuration file.
    pub const fn datapath(self) -> &'static str {
        match self {
            Hook::Tc | Hook::Clsact => "tc",
            Hook::Xdp => "xdp",
            Hook::XdpGeneric => "xdp-generic",
        }
    }

    pub const fn is_xdp(self) -> bool {
        matches!(self, Hook::Xdp | Hook::XdpGeneric)
    }
}

impl Device {
    /// Its name on the balancer.
    pub const fn name(self) -> &'static str {
        match self {
            Device::Cable => "eth0",
            Device::Vlan => "eth0.100",
            Device::Bond => "bond0",
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self.hook {
            Hook::Tc => "tcx",
            Hook::Clsact => "clsact",
            Hook::Xdp => "xdp",
            Hook::XdpGeneric => "xdp-generic",
        })?;
        match self.device {
            Device::Cable => Ok(()),
            Device::Vlan => f.write_str(", VLAN"),
            Device::Bond => f.write_str(", bond"),
        }
    }
}

/// A result, or how far the guest is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The kernel has booted.
    Kernel {
        release: String,
    },
    /// What this kernel's verifier makes of the programs.
    Verifier {
        programs: Vec<Measured>,
    },
    /// What follows is about this row.
    Row {
        name: String,
    },
    /// evenkeel answers: the seconds from its start until then, and the verified instructions of
    /// each program.
    Loaded {
        seconds: f64,
        verified: BTreeMap<String, u32>,
    },
    Check {
        name: String,
        outcome: Outcome,
        seconds: f64,
    },
    /// All orders are carried out.
    Over,
}

/// What the verifier makes of one program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub name: String,
    pub instructions: u32,
    /// The functions that it checks by themselves, and the instructions of each; the costliest
    /// first.
    pub functions: Vec<(String, u32)>,
    /// Bytes of the deepest chain of calls: with frames rounded up to 32, and to 16.
    pub stack: [u32; 2],
}

/// How a check ended, and what was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok(String),
    Failed(String),
    /// This kernel does not have what would be checked.
    Absent(String),
}

impl Said {
    /// Prints it for the host.
    pub fn say(&self) {
        let text = serde_json::to_string(self).expect("it has no maps with other keys than strings");
        // In a line of its own, whatever was printed before.
        println!("\n{MARK}{text}");
    }

    /// Finds it in a line of the console. The error: it was meant for the host, and something else
    /// was printed into it.
    pub fn hear(line: &str) -> Result<Option<Said>, serde_json::Error> {
        let Some((_, text)) = line.split_once(MARK) else { return Ok(None) };
        serde_json::from_str(text.trim_end()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_heard_behind_whatever_the_kernel_has_printed_in_its_line() {
        let said =
            Said::Check { name: "traffic".into(), outcome: Outcome::Failed("2 of 20\nlost".into()), seconds: 0.5 };
        let text = format!("[    3.14] noise {MARK}{}\r\n", serde_json::to_string(&said).unwrap());
        assert_eq!(Said::hear(&text).unwrap(), Some(said));
        assert_eq!(Said::hear("[    3.14] noise").unwrap(), None);
        assert!(Said::hear(&format!("{MARK}{{\"row\":")).is_err(), "cut off");
    }
}
