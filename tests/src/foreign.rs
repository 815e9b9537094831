//! Programs of others on the hooks of an interface: two instructions, which say what becomes of
//! every frame.

use std::path::PathBuf;

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{SchedClassifierLinkId, TcAttachOptions},
    },
};

use crate::{
    Host,
    xdp_pass::{self, XDP_PASS},
};

/// The chain ends, and the frame goes on to the host (`TCX_PASS`, `TC_ACT_OK`).
pub const ENDS: i32 = 0;
/// The next program sees the frame (`TCX_NEXT`, `TC_ACT_UNSPEC`).
pub const GOES_ON: i32 = -1;

/// Writes a program of this name, `r0 = verdict; exit`, to a file in the lab's folder.
pub fn object(host: &Host, section: &str, name: &str, verdict: i32) -> Result<PathBuf> {
    let file = host.folder().join(format!("{section}-{name}.o"));
    xdp_pass::write(&file, section, name, verdict)?;
    Ok(file)
}

/// A program on tcx, until it is dropped.
pub struct Tcx {
    host: Host,
    device: String,
    name: String,
    ebpf: Ebpf,
    link: Option<SchedClassifierLinkId>,
}

impl Tcx {
    /// Puts it in front of all others, on the way in.
    pub fn first(host: &Host, device: &str, name: &str, verdict: i32) -> Result<Self> {
        let mut ebpf = Ebpf::load_file(object(host, "classifier", name, verdict)?)?;
        let program: &mut SchedClassifier = ebpf.program_mut(name).context("no program")?.try_into()?;
        program.load()?;
        let mut tcx = Self { host: host.clone(), device: device.into(), name: name.into(), ebpf, link: None };
        tcx.again()?;
        Ok(tcx)
    }

    /// Puts the same program in front of all others again.
    pub fn again(&mut self) -> Result<()> {
        let program: &mut SchedClassifier = self.ebpf.program_mut(&self.name).context("no program")?.try_into()?;
        if let Some(link) = self.link.take() {
            program.detach(link)?;
        }
        let options = || TcAttachOptions::TcxOrder(LinkOrder::first());
        let device = &self.device;
        self.link =
            Some(self.host.inside(|| Ok(program.attach_with_options(device, TcAttachType::Ingress, options())?))?);
        Ok(())
    }
}

/// Adds a filter to the ingress of a device, with a clsact of its own if there is none.
pub fn filter(host: &Host, device: &str, name: &str, verdict: i32, priority: u16) -> Result<()> {
    // It may be there.
    _ = host.run("tc", &["qdisc", "add", "dev", device, "clsact"]);
    let file = object(host, "classifier", name, verdict)?;
    let file = file.to_str().context("the lab's folder is not UTF-8")?;
    let priority = priority.to_string();
    let pref = ["filter", "add", "dev", device, "ingress", "pref", &priority];
    host.run("tc", &[&pref[..], &["bpf", "direct-action", "obj", file, "sec", "classifier"]].concat()).map(drop)
}

/// Sets the XDP program on socket buffers.
pub fn generic_xdp(host: &Host, device: &str, name: &str) -> Result<()> {
    let file = object(host, "xdp", name, XDP_PASS)?;
    let file = file.to_str().context("the lab's folder is not UTF-8")?;
    host.ip(&["link", "set", "dev", device, "xdpgeneric", "obj", file, "sec", "xdp"]).map(drop)
}
