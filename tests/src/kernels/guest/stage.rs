//! The lab, the backends and evenkeel for one row.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    super::said::{Hook, Row},
    devices,
};
use crate::{
    Evenkeel, Lab, Plan, StandIn,
    client::{
        hold::Holding,
        storm::{self, Report},
    },
    daemon::Service,
    topology::{PORT, Topology, VIP},
    wait,
};

/// The port of the service that lets nobody in.
pub const DENIED: u16 = 6444;
/// How long the daemon may take to load or to end: programs are verified by an emulated CPU.
const PATIENCE: Duration = Duration::from_secs(200);
/// How long anything else may take that happens at once.
pub const SOON: Duration = Duration::from_secs(40);
/// Room for what a round opens. Large tables would take long to make.
const LIMITS: &str = "max_connections = 16384\n";
const PORTS: &str = "snat_ports = \"10240-11263\"";

pub struct Stage {
    pub row: Row,
    /// The kind of hook that the program has to hang on.
    pub kind: &'static str,
    pub evenkeel: Evenkeel,
    pub standins: Vec<StandIn>,
    /// A client that holds connections through the whole round.
    pub held: Option<Holding>,
    pub lab: Lab,
}

impl Stage {
    /// Builds everything; evenkeel is not started.
    pub fn new(row: Row, has_tcx: bool) -> Result<Stage> {
        let plan = Plan::new(Topology::Segment);
        let lab = Lab::build(&if row.hook.is_xdp() { plan.for_xdp() } else { plan })?;
        // VRRP puts it there.
        lab.balancer.ip(&["address", "delete", &format!("{VIP}/32"), "dev", "eth0"])?;
        devices::prepare(&lab, row.device, row.hook.is_xdp())?;
        let standins = lab.backends.iter().map(StandIn::start).collect::<Result<Vec<_>>>()?;
        let mut evenkeel = Evenkeel::stopped(&lab, &config(&lab, row))?;
        evenkeel.be_patient(PATIENCE);
        let kind = match row.hook {
            Hook::Tc if has_tcx => "tcx",
            Hook::Tc | Hook::Clsact => "clsact",
            Hook::Xdp => "xdp",
            Hook::XdpGeneric => "generic",
        };
        if row.hook == Hook::Clsact {
            evenkeel.run_option("--clsact");
        }
        Ok(Stage { row, kind, evenkeel, standins, held: None, lab })
    }

    /// The kinds of hooks on which the program gets frames: the folder of pins names them.
    pub fn hooks(&self) -> Result<Vec<(String, PathBuf)>> {
        let links = self.evenkeel.bpffs().join("links");
        let links = fs::read_dir(&links).with_context(|| links.display().to_string())?.flatten();
        let kind = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.split_once('-')?.1.to_owned();
            (!name.ends_with("-out")).then_some((name, path))
        };
        Ok(links.filter_map(|link| kind(link.path())).collect())
    }

    /// What `evenkeel vrrp` shows of the only instance.
    pub fn instance(&self) -> Result<Value> {
        let all = self.evenkeel.json(&["vrrp"])?;
        all.get(0).cloned().context("no VRRP instance")
    }

    pub fn becomes(&self, state: &str) -> Result<()> {
        let is = || self.instance().is_ok_and(|instance| instance["state"] == state).then_some(());
        wait::until(&format!("VRRP is {state}"), SOON, is).with_context(|| format!("{:?}", self.instance()))
    }

    /// Whether the balancer has the VIP.
    pub fn has_vip(&self) -> Result<bool> {
        let shown = self.lab.balancer.ip(&["address", "show", "dev", self.row.device.name()])?;
        Ok(shown.contains(&format!(" {VIP}/")))
    }

    pub fn storm(&self, options: &[&str]) -> Result<storm::Running> {
        storm::start(self.lab.client(), &[&[format!("{VIP}:{PORT}").as_str(), "--parallel", "4"], options].concat())
    }

    /// This many short connections, none of which may fail.
    pub fn connections(&self, count: u64) -> Result<Report> {
        let report = self.storm(&["--connections", &count.to_string()])?.finish(SOON)?;
        served(&report, count)?;
        Ok(report)
    }

    /// A new client for this port of the VIP.
    pub fn hold(&self, port: u16) -> Result<Holding> {
        Holding::start(self.lab.client(), &[&format!("{VIP}:{port}")])
    }

    /// The connections that are held still answer.
    pub fn held_answer(&mut self, count: u64) -> Result<()> {
        let asked = self.held.as_mut().context("no connection is held")?.ask()?;
        ensure!(asked.answered == count && asked.failed.is_empty(), "of {count} held connections: {asked:?}");
        Ok(())
    }
}

/// All of them were served.
pub fn served(report: &Report, count: u64) -> Result<()> {
    ensure!(report.done == count && report.failures() == 0, "of {count} connections: {report:?}");
    Ok(())
}

/// The verified instructions of evenkeel's programs, from the kernel.
pub fn verified() -> Result<BTreeMap<String, u32>> {
    let mut verified = BTreeMap::new();
    for program in aya::programs::loaded_programs() {
        let program = program?;
        let name = program.name_as_str().unwrap_or_default();
        if let Some(short) = name.strip_prefix("evenkeel_") {
            verified.insert(short.to_owned(), program.verified_instruction_count().unwrap_or(0));
        }
    }
    Ok(verified)
}

/// The service, another one that lets nobody in, and the VIP by VRRP.
fn config(lab: &Lab, row: Row) -> String {
    let (datapath, device) = (row.hook.datapath(), row.device.name());
    let interface = format!("interface = \"{device}\"");
    let service = Service::new(lab, datapath)
        .line(&interface)
        .line(PORTS)
        .line("connect_timeout = \"500ms\"")
        .backend_line(0, "max_fails = 0")
        .backend_line(1, "max_fails = 0");
    let denied = Service::new(lab, datapath).line(&interface).line(PORTS).line("rules = [\"deny all\"]").toml();
    let denied = denied
        .replace("\"kube-apiserver\"", "\"denied\"")
        .replace(&format!("{VIP}:{PORT}"), &format!("{VIP}:{DENIED}"));
    let vrrp = format!(
        "[[vrrp]]\nname = \"VI_1\"\ninterface = \"{device}\"\nvirtual_router_id = 51\npriority = 150\n\
         addresses = [\"{VIP}/24\"]\ntrack_datapath = \"fault\"\n"
    );
    format!("{LIMITS}{}\n{denied}\n{vrrp}", service.toml())
}
