//! FRRouting's vrrpd on a host of the lab: a second implementation of VRRP version 3, which speaks
//! both dialects of its checksum over IPv4.

use std::{fs, net::Ipv4Addr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::{Host, Process, binaries, process, wait};

const START: Duration = Duration::from_secs(10);

/// zebra and vrrpd with one virtual router on eth0.
pub struct Frr {
    host: Host,
    folder: PathBuf,
    zebra: Option<Process>,
    vrrpd: Option<Process>,
}

/// The virtual router's settings.
#[derive(Clone, Copy, Debug)]
pub struct Router {
    pub number: u8,
    pub priority: u8,
    pub interval: Duration,
    pub address: Ipv4Addr,
    /// Whether checksums cover the pseudo-header.
    pub pseudo_header: bool,
}

impl Frr {
    /// Makes the device with the virtual MAC address that vrrpd turns on and off, and starts vrrpd.
    pub fn start(host: &Host, router: Router) -> Result<Self> {
        let folder = host.folder().join(format!("frr-{}", host.name));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let Router { number, priority, interval, address, pseudo_header } = router;
        let dialect = if pseudo_header { "" } else { "no " };
        let config = format!(
            "log stdout\ndebug vrrp proto\ninterface eth0\n vrrp {number} version 3\n vrrp {number} priority {priority}\n \
             vrrp {number} advertisement-interval {}\n vrrp {number} ip {address}\n \
             {dialect}vrrp {number} checksum-with-ipv4-pseudoheader\n",
            interval.as_millis()
        );
        fs::write(folder.join("vrrpd.conf"), config)?;
        fs::write(folder.join("zebra.conf"), "log stdout\n")?;
        let device = "vrrp4";
        host.ip(&["link", "add", device, "link", "eth0", "type", "macvlan", "mode", "bridge"])?;
        host.ip(&["link", "set", device, "address", &format!("00:00:5e:00:01:{number:02x}")])?;
        host.ip(&["address", "add", &format!("{address}/24"), "dev", device])?;
        host.ip(&["link", "set", device, "up"])?;
        // eth0 answers only for its own addresses.
        host.sysctl("net.ipv4.conf.all.arp_ignore", "1")?;
        let mut frr = Self { host: host.clone(), folder, zebra: None, vrrpd: None };
        frr.zebra = Some(frr.program("zebra")?);
        let socket = frr.folder.join("zserv.api");
        wait::until("zebra listens", START, || socket.exists().then_some(())).with_context(|| frr.log())?;
        frr.run()?;
        Ok(frr)
    }

    /// Starts vrrpd again.
    pub fn run(&mut self) -> Result<()> {
        self.vrrpd = Some(self.program("vrrpd")?);
        Ok(())
    }

    fn program(&self, name: &str) -> Result<Process> {
        // They drop root's rights and still write there.
        process::output(Command::new("chown").args(["-R", "frr:frr"]).arg(&self.folder))?;
        let file = |end: &str| self.folder.join(format!("{name}.{end}"));
        let (before, program) = binaries::frr(name)?;
        let mut words = before.into_iter().chain([program]);
        let mut command = self.host.command(words.next().context("no program")?);
        command.args(words);
        command.arg("-i").arg(file("pid")).arg("-f").arg(file("conf")).args(["--log", "stdout", "-P", "0"]);
        command.arg("-z").arg(self.folder.join("zserv.api")).arg("--vty_socket").arg(&self.folder);
        self.host.start(name, &mut command)
    }

    /// Stops vrrpd in order, with priority 0.
    pub fn terminate(&mut self) -> Result<()> {
        let mut vrrpd = self.vrrpd.take().context("vrrpd does not run")?;
        vrrpd.signal(Signal::SIGTERM)?;
        vrrpd.wait(START).map(drop)
    }

    /// Kills vrrpd (`kill -9`); its device stays as it is.
    pub fn kill(&mut self) {
        self.vrrpd = None;
    }

    /// The logs of both.
    pub fn log(&self) -> String {
        [&self.zebra, &self.vrrpd].into_iter().flatten().map(Process::log).collect()
    }
}
