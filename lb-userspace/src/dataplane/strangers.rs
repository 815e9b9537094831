//! Programs of another evenkeel, with pins elsewhere: in front of ours they would go on serving by
//! tables that nobody looks after.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use super::{
    attach::is_our_place,
    pins::{Hook, Pins},
    standing::{Found, standing},
};
use crate::sys::{bpf, netdev, netlink::Questions};

/// What the names of our programs begin with.
const OURS: &str = "evenkeel_";
/// Where bpffs are usually mounted.
const USUAL: &str = "/sys/fs/bpf";
/// How deep folders of pins are looked for.
const DEPTH: u32 = 3;

/// Refuses to begin, with the pins in `own`, beside another evenkeel on one of these interfaces.
/// Inside a tokio runtime.
pub async fn refuse_strangers(own: &Path, interfaces: impl Iterator<Item = &String>) -> Result<()> {
    let questions = Questions::open()?;
    let ours = Pins::existing(own).map_or_else(|| Ok(Vec::new()), |pins| pins.program_ids())?;
    for name in interfaces {
        // One that does not exist may come later.
        let Ok(ifindex) = netdev::index_of(name) else { continue };
        let Some(standing) = standing(&questions, ifindex).await? else { continue };
        let all = standing.inward.iter().chain(&standing.outward);
        let strangers: Vec<_> = all.filter(|found| is_stranger(found, &ours)).collect();
        let Some(first) = strangers.first() else { continue };
        let owner = first.program.and_then(|program| owner(own, program));
        // Without an owner it is what an earlier run of ours has left, and is replaced.
        if owner.is_none() && strangers.iter().all(|found| is_our_place(found.place)) {
            continue;
        }
        bail!("{}", refusal(name, &strangers, owner.as_deref(), own));
    }
    Ok(())
}

fn is_stranger(found: &Found, ours: &[u32]) -> bool {
    found.name.starts_with(OURS) && found.program.is_some_and(|program| !ours.contains(&program))
}

fn refusal(interface: &str, strangers: &[&Found], owner: Option<&Path>, own: &Path) -> String {
    let names: Vec<_> = strangers.iter().map(|found| found.told()).collect();
    let filters: BTreeSet<_> = strangers.iter().filter_map(|found| filter_removal(interface, found)).collect();
    let removals: Vec<_> =
        owner.map(|folder| format!("`rm -r {}`", folder.display())).into_iter().chain(filters).collect();
    let by_hand = removals.join(", ");
    let advice = match (owner, removals.is_empty()) {
        (Some(folder), _) => {
            let folder = folder.display();
            format!(
                "its pins are in {folder}. Go on with it by `bpffs = \"{folder}\"`, or take it away, which ends its \
                 connections: stop it, and run `evenkeel detach -c FILE` with its own configuration file, which takes \
                 its addresses off too. Only if that file is gone: {by_hand}, and take off its addresses"
            )
        }
        (None, false) => format!(
            "its pins are not in sight. Take it away, which ends its connections: stop it, and run `evenkeel detach -c \
             FILE` with its own configuration file where its pins are, which takes its addresses off too. Only if they \
             are gone: {by_hand}, and take off its addresses"
        ),
        (None, true) => {
            "its pins are not in sight: they are in a container or in another mount namespace, and go with it".into()
        }
    };
    format!(
        "interface {interface} has the program of another evenkeel, which has nothing in {}: {}; {advice}",
        own.display(),
        names.join(", ")
    )
}

/// Filters do not go with their pins.
fn filter_removal(interface: &str, found: &Found) -> Option<String> {
    let (priority, handle) = found.place?;
    let side = if found.hook == Hook::ClsactOut { "egress" } else { "ingress" };
    Some(format!("`tc filter del dev {interface} {side} pref {priority} handle {handle:#x} bpf`"))
}

/// The folder of pins that a program is in.
fn owner(own: &Path, program: u32) -> Option<PathBuf> {
    let beside = own.parent().map(Path::to_owned);
    let places: BTreeSet<_> = [Some(PathBuf::from(USUAL)), beside].into_iter().flatten().collect();
    places.iter().find_map(|place| search(place, program, DEPTH))
}

fn search(folder: &Path, program: u32, depth: u32) -> Option<PathBuf> {
    let entries: Vec<_> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    let has = |path: &PathBuf| {
        let name = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(OURS));
        name && bpf::pinned_program(path).is_ok_and(|id| id == program)
    };
    if entries.iter().any(has) {
        // The programs are in a folder of the instance's.
        return folder.parent().map(Path::to_owned);
    }
    let mut folders = entries.iter().filter(|path| depth > 0 && path.is_dir());
    folders.find_map(|path| search(path, program, depth - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(hook: Hook, name: &str, program: u32, place: Option<(u16, u32)>) -> Found {
        Found { hook, program: Some(program), name: name.into(), place }
    }

    #[test]
    fn strangers_are_programs_of_our_name_that_are_not_pinned_here() {
        assert!(is_stranger(&found(Hook::Tcx, "evenkeel_tc", 7, None), &[8]));
        assert!(!is_stranger(&found(Hook::Tcx, "evenkeel_tc", 7, None), &[7, 8]));
        assert!(!is_stranger(&found(Hook::Tcx, "cil_from_netdev", 7, None), &[8]));
    }

    #[test]
    fn the_refusal_says_what_to_run() {
        let link = found(Hook::Tcx, "evenkeel_tc", 7, None);
        let own = Path::new("/sys/fs/bpf/new");
        let told = refusal("eth0", &[&link], Some(Path::new("/sys/fs/bpf/old")), own);
        assert_eq!(
            told,
            "interface eth0 has the program of another evenkeel, which has nothing in /sys/fs/bpf/new: evenkeel_tc (tcx, \
             id 7); its pins are in /sys/fs/bpf/old. Go on with it by `bpffs = \"/sys/fs/bpf/old\"`, or take it away, \
             which ends its connections: stop it, and run `evenkeel detach -c FILE` with its own configuration file, \
             which takes its addresses off too. Only if that file is gone: `rm -r /sys/fs/bpf/old`, and take off its \
             addresses"
        );
        let filter = found(Hook::Clsact, "evenkeel_tc", 7, Some((1, 0x4556)));
        let told = refusal("eth0", &[&filter], Some(Path::new("/sys/fs/bpf/old")), own);
        assert!(
            told.ends_with(
                "Only if that file is gone: `rm -r /sys/fs/bpf/old`, `tc filter del dev eth0 ingress pref 1 handle \
                 0x4556 bpf`, and take off its addresses"
            ),
            "{told}"
        );
        assert!(refusal("eth0", &[&link], None, own).ends_with("and go with it"));
    }
}
