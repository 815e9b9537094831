//! A host of the lab: a network namespace and its names.

use std::{
    ffi::OsStr,
    io::Write,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::process::{self, Process};

/// The folder in which `ip netns` keeps the names.
pub const NETNS: &str = "/run/netns";

/// A namespace with its interfaces. A clone names the same host; the `Lab` removes it.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) namespace: Arc<str>,
    /// The name inside the lab: `client1`, `lb`, `cp02`.
    pub name: Arc<str>,
    /// Its own addresses on eth0, the main one first.
    pub addresses: Vec<Ipv4Addr>,
    pub(crate) folder: Arc<PathBuf>,
}

impl Host {
    pub fn address(&self) -> Ipv4Addr {
        self.addresses.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// The name of the namespace, for `ip -n` or `nsenter --net=/run/netns/NAME`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The lab's folder, which contains the logs of this host's programs.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// A command for a program on this host. It starts through nsenter, which keeps the mounts: `ip
    /// netns exec` would hide the lab's bpffs.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={NETNS}/{}", self.namespace)).arg("--").arg(program);
        command
    }

    /// Runs a program to the end and returns what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        process::output(self.command(program).args(args))
    }

    /// Runs `what` on a thread inside the namespace.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = format!("{NETNS}/{}", self.namespace);
        let entered = || {
            let namespace = std::fs::File::open(&file).with_context(|| file.clone())?;
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            what()
        };
        std::thread::scope(|scope| scope.spawn(entered).join()).unwrap_or_else(|_| bail!("it panicked"))
    }

    /// Starts a program that runs until the guard is dropped.
    pub fn start(&self, name: &str, command: &mut Command) -> Result<Process> {
        Process::start(&format!("{name} on {}", self.name), command, &self.log(name))
    }

    /// The file that takes a program's output.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}-{name}.log", self.name))
    }

    /// `ip` inside the namespace.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        process::output(Command::new("ip").args(["-n", &self.namespace]).args(args))
    }

    /// `ethtool -K DEVICE FEATURE on|off`.
    pub fn offload(&self, device: &str, feature: &str, on: bool) -> Result<()> {
        self.run("ethtool", &["-K", device, feature, if on { "on" } else { "off" }]).map(drop)
    }

    /// A counter of its TCP from `/proc/net/snmp`, such as `RetransSegs` or `OutRsts`.
    pub fn tcp_counter(&self, name: &str) -> Result<u64> {
        let snmp = self.run("cat", &["/proc/net/snmp"])?;
        let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp:")).map(str::split_whitespace);
        let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
        let found = names.zip(values).find(|(found, _)| *found == name);
        found.and_then(|(_, value)| value.parse().ok()).with_context(|| format!("no counter {name} in\n{snmp}"))
    }

    /// Makes one CPU process all packets of a flow that arrive through a device (RPS), which keeps
    /// them in order: the backlogs of several CPUs overtake each other. Through `ip netns exec`,
    /// which shows the namespace's own /sys.
    pub fn keep_order(&self, device: &str) -> Result<()> {
        let file = format!("/sys/class/net/{device}/queues/rx-0/rps_cpus");
        // All CPUs. The kernel refuses a mask with more bits than there are CPUs.
        let cpus = std::thread::available_parallelism()?.get().min(32);
        let mask = format!("{:x}", (1_u64 << cpus) - 1);
        let write = format!("echo {mask} > {file}");
        process::output(Command::new("ip").args(["netns", "exec", &self.namespace, "sh", "-c", &write])).map(drop)
    }

    /// Sets a sysctl of the namespace's network, such as `net.ipv4.tcp_tw_reuse`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run("sysctl", &["-qw", &format!("{name}={value}")]).map(drop)
    }

    /// Unplugs the cable, or plugs it in again.
    pub fn link(&self, device: &str, up: bool) -> Result<()> {
        self.ip(&["link", "set", device, if up { "up" } else { "down" }]).map(drop)
    }

    /// Replaces the firewall's rules. `input` and `output` are lines of nftables, such as `tcp
    /// dport 6443 tcp flags syn drop`.
    pub fn firewall(&self, input: &[&str], output: &[&str]) -> Result<()> {
        let chain = |hook: &str, rules: &[&str]| {
            format!("chain {hook} {{ type filter hook {hook} priority 0;\n{}\n}}\n", rules.join("\n"))
        };
        let rules = format!(
            "table inet lab\ndelete table inet lab\ntable inet lab {{\n{}{}}}\n",
            chain("input", input),
            chain("output", output)
        );
        let mut nft = self.command("nft");
        let mut child = nft.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no pipe to nft")?.write_all(rules.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("nft on {}: {}\n{rules}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Drops SYNs to `port`, as a hung host or a firewall does.
    pub fn drop_syns(&self, port: u16) -> Result<()> {
        self.firewall(&[&format!("tcp dport {port} tcp flags & (syn|ack) == syn drop")], &[])
    }

    /// Makes the firewall reject SYNs to `port`, which sends another packet than a closed port.
    pub fn reject_syns(&self, port: u16) -> Result<()> {
        self.firewall(&[&format!("tcp dport {port} tcp flags & (syn|ack) == syn reject with tcp reset")], &[])
    }

    /// Removes the rules of `firewall`, `drop_syns` and `reject_syns`.
    pub fn open_firewall(&self) -> Result<()> {
        self.firewall(&[], &[])
    }
}
