//! Which hook an interface gets, and putting the program there: for the first time, after a
//! restart, and from one hook to another without a gap.
//!
//! Two hooks of one interface may hold the program at once for a moment: XDP sees a frame first,
//! and TC only what XDP has passed on as not ours; tcx sees it before clsact and has the last word.
//! No frame is forwarded twice.

use std::{collections::BTreeMap, io::ErrorKind, path::Path};

use anyhow::{Context, Result, bail, ensure};
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    xdp::{XdpLink, XdpMode},
};

use super::{
    load::Programs,
    pins::{Hook, Pins, remove_file},
};
use crate::sys::{
    netdev::{self, Device},
    netlink,
};

/// Where our clsact filter is, so that it can be found again: it has no link. Of the filters of a
/// priority the latest comes first.
const HEAD: FilterAt = (1, TcHandle::new(0, 0x4556));
/// Where it is while it moves to the head.
const STAND_IN: FilterAt = (1, TcHandle::new(0, 0x4557));
/// Where it is if somebody has filters of another kind at the head, and where earlier versions had it.
const APART: FilterAt = (0x4556, TcHandle::new(0, 1));

type FilterAt = (u16, TcHandle);

/// In the folder that stands for a filter: the sign that its queueing discipline is ours too.
const QDISC: &str = "qdisc";
/// `datapath` in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requested {
    /// Native XDP on a real card whose driver has it, TC otherwise.
    Auto,
    /// Native XDP or nothing.
    Xdp,
    /// XDP on socket buffers.
    XdpGeneric,
    /// TC.
    Tc,
}

/// What is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// XDP in the driver.
    Xdp,
    /// XDP on socket buffers.
    XdpGeneric,
    /// TC ingress, by tcx or clsact.
    Tc,
}

impl Mode {
    /// The word in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Xdp => "xdp",
            Mode::XdpGeneric => "xdp-generic",
            Mode::Tc => "tc",
        }
    }
}

/// An interface with the program on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub interface: String,
    /// The kernel's number for it.
    pub ifindex: u32,
    /// Its place in INTERFACES.
    pub number: u8,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The hook in use.
    pub mode: Mode,
    /// Why this one, in a sentence.
    pub reason: String,
}

/// Devices that look like cards (they sit on a bus) but are paravirtual, or carry other devices:
/// there offloads matter more than the copy that XDP saves.
const VIRTUAL: [&str; 12] = [
    "virtio_net",
    "veth",
    "bonding",
    "team",
    "bridge",
    "tun",
    "802.1Q VLAN Support",
    "macvlan",
    "dummy",
    "hv_netvsc",
    "vmxnet3",
    "vif",
];

/// The hooks to try in turn, each with the reason for it.
pub(super) fn candidates(requested: Requested, device: &Device) -> Vec<(Mode, String)> {
    let asked = |mode: Mode| vec![(mode, format!("datapath = \"{}\" is configured", mode.name()))];
    let driver = &device.driver;
    match requested {
        Requested::Xdp => asked(Mode::Xdp),
        Requested::XdpGeneric => asked(Mode::XdpGeneric),
        Requested::Tc => asked(Mode::Tc),
        Requested::Auto if driver.bus.is_empty() || VIRTUAL.contains(&driver.name.as_str()) => {
            let kind = if driver.name.is_empty() { "virtual device" } else { &driver.name };
            vec![(Mode::Tc, format!("{kind}: no card of its own, TC keeps its offloads"))]
        }
        Requested::Auto => vec![
            (Mode::Xdp, format!("{} has native XDP", driver.name)),
            (Mode::Tc, format!("{} takes no native XDP program here", driver.name)),
        ],
    }
}

/// The program on the hooks of interfaces.
pub struct Hooks<'a> {
    pub pins: &'a Pins,
    pub programs: &'a mut Programs,
}

impl Hooks<'_> {
    /// Puts the program on an interface and takes it off the hooks it was on before.
    pub fn attach(&mut self, device: &Device, requested: Requested, clsact: bool) -> Result<(Mode, String)> {
        ensure!(device.ethernet, "{} carries no Ethernet frames", device.name);
        let mut refused = String::new();
        for (mode, reason) in candidates(requested, device) {
            match self.switch(device, mode, clsact) {
                Ok(_) if refused.is_empty() => return Ok((mode, reason)),
                Ok(_) => return Ok((mode, format!("{reason} ({refused})"))),
                Err(error) => refused = format!("{error:#}"),
            }
        }
        bail!("cannot attach to {}: {refused}", device.name)
    }

    fn switch(&mut self, device: &Device, mode: Mode, clsact: bool) -> Result<Hook> {
        let before = self.hooks_of(device.ifindex)?;
        let is_xdp = |hook: &Hook| matches!(hook, Hook::Xdp | Hook::Generic);
        let wanted = match mode {
            Mode::Xdp => Hook::Xdp,
            Mode::XdpGeneric => Hook::Generic,
            Mode::Tc => {
                let hook = self.attach_tc(device, clsact, TcAttachType::Ingress)?;
                return self.keep_only(device, hook);
            }
        };
        // A device takes native or generic XDP, not both: TC stands in while one is exchanged for
        // the other.
        if before.iter().any(|hook| is_xdp(hook) && *hook != wanted) {
            self.attach_tc(device, clsact, TcAttachType::Ingress)?;
            let old = if wanted == Hook::Xdp { Hook::Generic } else { Hook::Xdp };
            detach(self.pins, device.ifindex, old)?;
        }
        self.attach_xdp(device, wanted)?;
        self.keep_only(device, wanted)
    }

    fn hooks_of(&self, ifindex: u32) -> Result<Vec<Hook>> {
        Ok(self.pins.all_links()?.into_iter().filter(|(of, _)| *of == ifindex).map(|(_, hook)| hook).collect())
    }

    /// Puts the guard on an interface: what the host sends passes it, however frames come in.
    pub fn guard(&mut self, device: &Device, clsact: bool) -> Result<()> {
        let hook = self.attach_tc(device, clsact, TcAttachType::Egress)?;
        if hook == Hook::TcxOut {
            // A filter whose sign ended with a process that had private pins would go on by tables of
            // long ago.
            detach(self.pins, device.ifindex, Hook::ClsactOut)?;
        }
        self.keep_only(device, hook).map(drop)
    }

    /// Of its direction.
    fn keep_only(&self, device: &Device, wanted: Hook) -> Result<Hook> {
        for hook in self.hooks_of(device.ifindex)? {
            if hook != wanted && hook.is_outgoing() == wanted.is_outgoing() {
                detach(self.pins, device.ifindex, hook)?;
            }
        }
        Ok(wanted)
    }

    fn attach_xdp(&mut self, device: &Device, hook: Hook) -> Result<()> {
        let path = self.pins.link(device.ifindex, hook);
        let xdp = &mut self.programs.xdp;
        if let Some(link) = pinned_link(&path)? {
            let link: XdpLink = link.try_into().with_context(|| format!("{} is no XDP link", path.display()))?;
            if replaced(xdp.attach_to_link(link).and_then(|id| xdp.take_link(id)))?.is_some() {
                return Ok(());
            }
            remove_file(&path)?;
        }
        // Named, never chosen by the kernel: it would silently take generic XDP.
        let mode = if hook == Hook::Xdp { XdpMode::Driver } else { XdpMode::Skb };
        let id = xdp.attach_to_if_index(device.ifindex, mode).map_err(in_short)?;
        let link: Result<FdLink, _> = xdp.take_link(id)?.try_into();
        let Ok(link) = link else {
            bail!(
                "the kernel made no link (before 5.9?): remove the program with `ip link set {} xdp off`",
                device.name
            );
        };
        link.pin(&path).with_context(|| format!("cannot pin the link at {}", path.display()))?;
        Ok(())
    }

    /// By tcx, or by clsact where that is asked for or the kernel has no tcx (before 6.6).
    fn attach_tc(&mut self, device: &Device, clsact: bool, way: TcAttachType) -> Result<Hook> {
        let [tcx, filter] = match way {
            TcAttachType::Egress => [Hook::TcxOut, Hook::ClsactOut],
            _ => [Hook::Tcx, Hook::Clsact],
        };
        if !clsact && self.attach_tcx(device, tcx, way)? {
            return Ok(tcx);
        }
        self.attach_clsact(device, filter, way)?;
        Ok(filter)
    }

    fn tc_program(&mut self, way: TcAttachType) -> &mut SchedClassifier {
        match way {
            TcAttachType::Egress => &mut self.programs.out,
            _ => &mut self.programs.tc,
        }
    }

    /// `false`: this kernel has no tcx.
    fn attach_tcx(&mut self, device: &Device, hook: Hook, way: TcAttachType) -> Result<bool> {
        let path = self.pins.link(device.ifindex, hook);
        let program = self.tc_program(way);
        if let Some(link) = pinned_link(&path)? {
            let link: SchedClassifierLink =
                link.try_into().with_context(|| format!("{} is no tcx link", path.display()))?;
            if replaced(program.attach_to_link(link).and_then(|id| program.take_link(id)))?.is_some() {
                return Ok(true);
            }
            remove_file(&path)?;
        }
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = match program.attach_with_options(&device.name, way, options) {
            Err(error) if os_error(&error) == Some(EINVAL) => return Ok(false),
            id => id.map_err(in_short)?,
        };
        let link: FdLink = program.take_link(id)?.try_into().context("tcx made no link")?;
        link.pin(&path).with_context(|| format!("cannot pin the link at {}", path.display()))?;
        Ok(true)
    }

    fn attach_clsact(&mut self, device: &Device, hook: Hook, way: TcAttachType) -> Result<()> {
        let path = self.pins.link(device.ifindex, hook);
        // The sign comes before the filter: a sign may lack its filter, but no filter lacks its
        // sign.
        make_sign(&path)?;
        let ours = path.join(QDISC);
        let was_ours = make_sign(&ours)?;
        match tc::qdisc_add_clsact(&device.name) {
            Err(error) if !is_already_there(&error) => return Err(error).context("cannot add the clsact qdisc"),
            // It belongs to somebody else, who may want to keep it.
            Err(_) if !was_ours => remove_file(&ours)?,
            _ => {}
        }
        match self.filter(device, way, HEAD) {
            Ok(()) => drop(filter_at(&device.name, way, APART)),
            Err(_) => self.filter(device, way, APART)?,
        }
        Ok(())
    }

    /// Sets a filter, or replaces the program of the one that is there.
    fn filter(&mut self, device: &Device, way: TcAttachType, at: FilterAt) -> Result<()> {
        let program = self.tc_program(way);
        let id = match program.attach_to_link(filter_at(&device.name, way, at)?) {
            Ok(id) => id,
            // No filter yet.
            Err(_) => {
                let options = NlOptions { priority: at.0, handle: at.1, classid: None };
                let options = TcAttachOptions::Netlink(options);
                program.attach_with_options(&device.name, way, options).map_err(in_short)?
            }
        };
        // Dropping it would take the filter away.
        std::mem::forget(program.take_link(id)?);
        Ok(())
    }

    /// Puts the program in front of all others on the hook that it is on. Another filter stands in
    /// meanwhile; behind those that it overtakes it sees what they pass on, as before.
    pub fn move_to_head(&mut self, device: &Device, hook: Hook) -> Result<()> {
        let way = if hook.is_outgoing() { TcAttachType::Egress } else { TcAttachType::Ingress };
        match hook {
            Hook::Tcx | Hook::TcxOut => {
                let clsact = if hook.is_outgoing() { Hook::ClsactOut } else { Hook::Clsact };
                self.attach_clsact(device, clsact, way)?;
                detach(self.pins, device.ifindex, hook)?;
                ensure!(self.attach_tcx(device, hook, way)?, "this kernel has no tcx");
                detach(self.pins, device.ifindex, clsact)
            }
            Hook::Clsact | Hook::ClsactOut => {
                self.filter(device, way, STAND_IN)?;
                drop(filter_at(&device.name, way, HEAD));
                self.attach_clsact(device, hook, way)?;
                drop(filter_at(&device.name, way, STAND_IN));
                Ok(())
            }
            // The kernel takes one program there.
            Hook::Xdp | Hook::Generic => Ok(()),
        }
    }
}

/// Makes a folder that stands for something; returns whether it was there already.
fn make_sign(path: &Path) -> Result<bool> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(true),
        Err(error) => Err(error).with_context(|| format!("cannot make {}", path.display())),
    }
}

/// Takes the program off one hook. It is no error if it is not there, or if the interface is gone.
pub fn detach(pins: &Pins, ifindex: u32, hook: Hook) -> Result<()> {
    let path = pins.link(ifindex, hook);
    if matches!(hook, Hook::Clsact | Hook::ClsactOut) {
        let way = if hook.is_outgoing() { TcAttachType::Egress } else { TcAttachType::Ingress };
        let name = netdev::name_of(ifindex).map_err(anyhow::Error::from);
        if let Ok(name) = name {
            [HEAD, STAND_IN, APART].into_iter().for_each(|at| drop(filter_at(&name, way, at)));
        }
        let ours = path.join(QDISC);
        if ours.exists() {
            // What is left behind costs nothing; it goes with its interface.
            match netlink::remove_unused_clsact(ifindex) {
                Ok(true) => {}
                // Our own filter in the other direction: the sign goes to it.
                Ok(false) if pins.link(ifindex, hook.other_way()).exists() => {
                    make_sign(&pins.link(ifindex, hook.other_way()).join(QDISC))?;
                }
                Ok(false) => log::info!("interface {ifindex}: the clsact qdisc stays, others have filters on it"),
                Err(error) => log::debug!("interface {ifindex}: the clsact qdisc stays: {error:#}"),
            }
            remove_file(&ours)?;
        }
        return remove_file(&path);
    }
    // With our descriptor open, the pin is not the last reference: closing ours then detaches
    // before it returns, while a link that loses its pin last is detached some time later.
    let link = pinned_link(&path)?;
    remove_file(&path)?;
    drop(link);
    Ok(())
}

/// Detaches everything that is pinned for interfaces that no longer exist, and returns the others.
pub fn left_behind(pins: &Pins) -> Result<BTreeMap<u32, String>> {
    let mut found = BTreeMap::new();
    for (ifindex, hook) in pins.all_links()? {
        match netdev::name_of(ifindex) {
            Ok(name) => _ = found.insert(ifindex, name),
            Err(_) => detach(pins, ifindex, hook)?,
        }
    }
    Ok(found)
}

/// Our filter at a place, if it is there. Dropping it takes the filter away.
fn filter_at(interface: &str, way: TcAttachType, (priority, handle): FilterAt) -> Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, way, priority, handle, None)
        .with_context(|| format!("no interface {interface}"))
}

/// Whether only we put a filter there.
pub fn is_our_place(place: Option<(u16, u32)>) -> bool {
    place.is_some_and(|(priority, handle)| {
        [HEAD, STAND_IN, APART].iter().any(|at| at.0 == priority && u32::from(at.1) == handle)
    })
}

/// Removes our filters from an interface, if they are there.
pub fn drop_filters(interface: &str) {
    for way in [TcAttachType::Ingress, TcAttachType::Egress] {
        [HEAD, STAND_IN, APART].into_iter().for_each(|at| drop(filter_at(interface, way, at)));
    }
}

/// The link that an earlier run has pinned.
fn pinned_link(path: &Path) -> Result<Option<FdLink>> {
    if !path.exists() {
        return Ok(None);
    }
    let link = PinnedLink::from_pin(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Some(link.into()))
}

/// A link whose interface is gone (and perhaps came back under the same number) cannot be replaced.
fn replaced<T>(result: Result<T, ProgramError>) -> Result<Option<T>> {
    match result {
        Ok(link) => Ok(Some(link)),
        Err(error) if os_error(&error) == Some(ENOLINK) => Ok(None),
        Err(error) => Err(error).context("cannot replace the program of a pinned link"),
    }
}

const EINVAL: i32 = 22;
const ENOLINK: i32 = 67;

fn os_error(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

/// aya's messages name its own calls; the operator needs the kernel's answer.
fn in_short(error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::SyscallError(error) => anyhow::Error::from(error.io_error),
        error => error.into(),
    }
}

fn is_already_there(error: &tc::TcError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::AlreadyExists) {
            return true;
        }
        source = error.source();
    }
    matches!(error, tc::TcError::AlreadyAttached) || error.to_string().contains("File exists")
}

#[cfg(test)]
mod tests {
    use netdev::Driver;

    use super::*;

    fn device(driver: &str, bus: &str) -> Device {
        let driver = Driver { name: driver.into(), bus: bus.into() };
        Device { name: "eth0".into(), ifindex: 2, mac: [2; 6], ethernet: true, driver }
    }

    fn modes(requested: Requested, device: &Device) -> Vec<Mode> {
        candidates(requested, device).into_iter().map(|(mode, _)| mode).collect()
    }

    #[test]
    fn auto_takes_native_xdp_on_cards_and_tc_where_offloads_matter() {
        for (driver, bus) in [("ixgbe", "0000:03:00.0"), ("mlx5_core", "0000:17:00.1"), ("ena", "0000:00:05.0")] {
            assert_eq!(modes(Requested::Auto, &device(driver, bus)), [Mode::Xdp, Mode::Tc], "{driver}");
        }
        let virtual_ones = [
            ("veth", ""),
            ("virtio_net", "0000:00:03.0"),
            ("bonding", ""),
            ("802.1Q VLAN Support", ""),
            ("bridge", "N/A"),
            ("tun", "tap"),
            ("", ""),
        ];
        for (driver, bus) in virtual_ones {
            assert_eq!(modes(Requested::Auto, &device(driver, bus)), [Mode::Tc], "{driver}");
        }
    }

    #[test]
    fn what_is_asked_for_by_name_is_taken_or_refused_never_replaced() {
        let card = device("ixgbe", "0000:03:00.0");
        assert_eq!(modes(Requested::Xdp, &card), [Mode::Xdp]);
        assert_eq!(modes(Requested::XdpGeneric, &card), [Mode::XdpGeneric]);
        assert_eq!(modes(Requested::Tc, &card), [Mode::Tc]);
    }
}
