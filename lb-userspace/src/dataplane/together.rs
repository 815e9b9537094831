//! One hook for all interfaces between which frames go: native XDP sends a frame out only by an
//! interface that takes XDP frames, and drops it without a sign everywhere else.
//!
//! VLAN devices and bridges take none, a veth only while its other end looks for them, some cards only
//! with a program of their own. So it is native XDP on every interface of a group, or TC
//! on every one; TC sends out by any. What was asked for by name is refused if it cannot be had.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

use super::{Attached, Dataplane, Mode, Requested, attach::candidates};
use crate::sys::{netdev, xdp_features};

/// A veth sends even what goes back by the same way through its other end.
const VETH: &str = "veth";

/// An interface of a group, with the hook that it gets by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    name: String,
    driver: String,
    requested: Requested,
    mode: Mode,
    /// Whether it takes XDP frames; `None`: the kernel does not say.
    takes: Option<bool>,
}

impl Dataplane {
    /// Puts the program on the interfaces of a group, see the module. A group that is refused is as it
    /// was before.
    pub fn attach_together(&mut self, group: &BTreeMap<String, Requested>, clsact: bool) -> Result<Vec<Attached>> {
        let why = why_not_native(&self.members(group, false)?)?;
        let before: Vec<_> = self.groups.iter().map(|names| self.as_asked(names)).collect();
        let attached = self.try_together(group, why, clsact);
        if attached.is_err() {
            self.put_back(group, &before, clsact)?;
        }
        attached
    }

    fn try_together(
        &mut self,
        group: &BTreeMap<String, Requested>,
        why_tc: Option<String>,
        clsact: bool,
    ) -> Result<Vec<Attached>> {
        self.enter(group)?;
        if let Some(why) = why_tc {
            return self.attach_tc(group, &why, clsact);
        }
        let one = |(name, requested): (&String, &Requested)| self.attach(name, *requested, clsact);
        let attached = group.iter().map(one).collect::<Result<Vec<_>>>()?;
        match why_not_native(&self.members(group, true)?)? {
            None => Ok(attached),
            Some(why) => self.attach_tc(group, &why, clsact),
        }
    }

    /// A group that is refused must not be served by half: its members are as they were.
    fn put_back(
        &mut self,
        group: &BTreeMap<String, Requested>,
        before: &[BTreeMap<String, Requested>],
        clsact: bool,
    ) -> Result<()> {
        let names: BTreeSet<_> = group.keys().cloned().collect();
        self.groups.retain(|other| other.is_disjoint(&names));
        for name in names.iter().filter(|name| !before.iter().any(|group| group.contains_key(*name))) {
            self.detach(name)?;
        }
        for group in before.iter().filter(|before| before.keys().any(|name| names.contains(name))) {
            let why = why_not_native(&self.members(group, false)?)?;
            self.try_together(group, why, clsact)?;
        }
        Ok(())
    }

    /// An interface that frames of one group, or of any, leave by from now on.
    pub fn attach_beside(&mut self, name: &str, requested: Requested, clsact: bool) -> Result<Vec<Attached>> {
        let own = self.groups.iter().find(|group| group.contains(name)).cloned();
        let names = own.unwrap_or_else(|| self.groups.iter().flatten().cloned().collect());
        let mut group = self.as_asked(&names);
        group.insert(name.to_owned(), requested);
        self.attach_together(&group, clsact)
    }

    /// What was asked for, for each interface that is there.
    fn as_asked(&self, names: &BTreeSet<String>) -> BTreeMap<String, Requested> {
        let asked = |name: &String| {
            let (requested, _) = self.asked.get(&netdev::index_of(name).ok()?)?;
            Some((name.clone(), *requested))
        };
        names.iter().filter_map(asked).collect()
    }

    /// Enters a group. Members that belonged to another one are attached anew.
    fn enter(&mut self, group: &BTreeMap<String, Requested>) -> Result<()> {
        let names: BTreeSet<_> = group.keys().cloned().collect();
        if self.groups.contains(&names) {
            return Ok(());
        }
        self.groups.retain(|other| other.is_disjoint(&names));
        for name in &names {
            let ifindex = netdev::index_of(name).with_context(|| format!("no interface {name}"))?;
            self.asked.remove(&ifindex);
        }
        self.groups.push(names);
        Ok(())
    }

    /// The members as they are attached, or as they would be: what a card says before it has a program
    /// says little, but the other end of a veth is there already.
    fn members(&self, group: &BTreeMap<String, Requested>, attached: bool) -> Result<Vec<Member>> {
        let member = |(name, requested): (&String, &Requested)| {
            let device = netdev::by_name(name).with_context(|| format!("no interface {name}"))?;
            let now = self.attached.get(&device.ifindex).filter(|_| attached).map(|attached| attached.mode);
            let mode = now.or_else(|| candidates(*requested, &device).first().map(|(mode, _)| *mode));
            let says = attached || device.driver.name == VETH;
            let takes = if says { xdp_features::takes_frames(device.ifindex)? } else { Some(true) };
            let mode = mode.context("no hook to try")?;
            Ok(Member { name: name.clone(), driver: device.driver.name, requested: *requested, mode, takes })
        };
        group.iter().map(member).collect()
    }

    /// TC on all of them that would have native XDP or TC by themselves. It stays so until something
    /// else is asked for.
    fn attach_tc(&mut self, group: &BTreeMap<String, Requested>, why: &str, clsact: bool) -> Result<Vec<Attached>> {
        let one = |(name, requested): (&String, &Requested)| {
            let ifindex = netdev::index_of(name).with_context(|| format!("no interface {name}"))?;
            let is_on_tc = self.attached.get(&ifindex).is_some_and(|attached| attached.mode == Mode::Tc);
            if let Some((asked, _)) = self.asked.get_mut(&ifindex).filter(|_| is_on_tc) {
                *asked = Requested::Tc;
            }
            if *requested == Requested::XdpGeneric {
                return self.attach(name, *requested, clsact);
            }
            let mut attached = self.attach(name, Requested::Tc, clsact)?;
            self.asked.insert(attached.ifindex, (*requested, clsact));
            attached.reason = format!("TC on all interfaces of the service: {why}");
            self.attached.insert(attached.ifindex, attached.clone());
            Ok(attached)
        };
        group.iter().map(one).collect()
    }

    /// Whether what native XDP sends out leaves by every interface of its group, now. The error is
    /// for an operator.
    pub(super) fn every_way_out_takes_frames(&self) -> Result<(), String> {
        let native: BTreeSet<_> =
            self.attached.values().filter(|it| it.mode == Mode::Xdp).map(|it| &it.interface).collect();
        for group in self.groups.iter().filter(|group| native.iter().any(|name| group.contains(*name))) {
            let members = self.members(&self.as_asked(group), true).map_err(|error| format!("{error:#}"))?;
            if let Some(way) = closed_way(&members) {
                return Err(format!("frames are lost: {way}"));
            }
        }
        Ok(())
    }
}

fn is_native(member: &Member) -> bool {
    member.mode == Mode::Xdp
}

/// Why a group does not get native XDP; `None`: it does, or nobody in it would.
fn why_not_native(group: &[Member]) -> Result<Option<String>> {
    if !group.iter().any(is_native) {
        return Ok(None);
    }
    let Some(way) = closed_way(group).or_else(|| unknown_way(group)) else { return Ok(None) };
    if let Some(asked) = group.iter().find(|member| member.requested == Requested::Xdp) {
        bail!(
            "datapath = \"xdp\" for {} cannot be had, because {way}; frames for it would be lost: \
             set datapath = \"auto\" or \"tc\"",
            asked.name
        );
    }
    Ok(Some(way))
}

/// A way out by which no XDP frame leaves.
fn closed_way(group: &[Member]) -> Option<String> {
    let told = |member: &Member| match (member.mode, member.takes) {
        (Mode::Xdp, Some(false)) if group.len() > 1 || member.driver == VETH => {
            let far = if member.driver == VETH { ": its other end has no XDP program" } else { "" };
            Some(format!("{} ({}) takes no XDP frames{far}", member.name, kind(member)))
        }
        (Mode::Xdp, _) => None,
        (mode, _) => Some(format!("{} ({}) is on {}, and takes no XDP frames", member.name, kind(member), mode.name())),
    };
    group.iter().find_map(told)
}

/// One of which the kernel does not say whether XDP frames leave by it. Who asks for XDP by name
/// may know.
fn unknown_way(group: &[Member]) -> Option<String> {
    let is_unknown = |member: &&Member| member.takes.is_none() && member.requested == Requested::Auto;
    let unknown = group.iter().find(is_unknown).filter(|_| group.len() > 1)?;
    Some(format!("this kernel does not say whether {} ({}) takes XDP frames", unknown.name, kind(unknown)))
}

fn kind(member: &Member) -> &str {
    if member.driver.is_empty() { "a virtual device" } else { &member.driver }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, driver: &str, requested: Requested, mode: Mode, takes: Option<bool>) -> Member {
        Member { name: name.into(), driver: driver.into(), requested, mode, takes }
    }

    fn card(name: &str, requested: Requested) -> Member {
        member(name, "ixgbe", requested, Mode::Xdp, Some(true))
    }

    fn vlan(requested: Requested) -> Member {
        member("eth0.20", "802.1Q VLAN Support", requested, Mode::Tc, Some(false))
    }

    #[test]
    fn cards_among_themselves_get_native_xdp_and_with_another_device_nobody_does() {
        let cards = [card("eth0", Requested::Auto), card("eth1", Requested::Auto)];
        assert_eq!(why_not_native(&cards).unwrap(), None);
        let mixed = [card("eth0", Requested::Auto), vlan(Requested::Auto)];
        let why = "eth0.20 (802.1Q VLAN Support) is on tc, and takes no XDP frames";
        assert_eq!(why_not_native(&mixed).unwrap().as_deref(), Some(why));
        assert_eq!(why_not_native(&[vlan(Requested::Auto)]).unwrap(), None, "there is nobody to prevent it for");
    }

    #[test]
    fn native_xdp_that_is_asked_for_by_name_is_refused_with_a_device_that_takes_none() {
        for requested in [Requested::Auto, Requested::Tc] {
            let error = why_not_native(&[card("eth0", Requested::Xdp), vlan(requested)]).unwrap_err().to_string();
            assert!(error.contains("for eth0") && error.contains("eth0.20"), "{error}");
        }
    }

    #[test]
    fn a_card_that_takes_no_frames_of_others_may_still_send_its_own_back() {
        let own = member("eth0", "nfp", Requested::Auto, Mode::Xdp, Some(false));
        assert_eq!(why_not_native(std::slice::from_ref(&own)).unwrap(), None);
        let two = [own, card("eth1", Requested::Auto)];
        assert_eq!(why_not_native(&two).unwrap().as_deref(), Some("eth0 (nfp) takes no XDP frames"));
    }

    #[test]
    fn a_veth_sends_nothing_by_native_xdp_while_its_other_end_takes_none() {
        let alone = member("eth0", VETH, Requested::Xdp, Mode::Xdp, Some(false));
        let error = why_not_native(std::slice::from_ref(&alone)).unwrap_err().to_string();
        assert!(error.contains("eth0 (veth) takes no XDP frames: its other end has no XDP program"), "{error}");
        assert_eq!(why_not_native(&[Member { takes: Some(true), ..alone }]).unwrap(), None);
    }

    /// Before 6.3.
    #[test]
    fn where_the_kernel_does_not_say_native_xdp_between_interfaces_is_for_who_asks_for_it() {
        let silent = |requested| member("eth0", "ixgbe", requested, Mode::Xdp, None);
        assert_eq!(why_not_native(&[silent(Requested::Auto)]).unwrap(), None, "back by the same way");
        assert!(why_not_native(&[silent(Requested::Auto), silent(Requested::Auto)]).unwrap().is_some());
        assert_eq!(why_not_native(&[silent(Requested::Xdp), silent(Requested::Xdp)]).unwrap(), None);
    }
}
