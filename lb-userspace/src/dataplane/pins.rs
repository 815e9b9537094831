//! The folder on the bpffs where programs, links and maps outlive the process.
//!
//! ```text
//! BPFFS/maps/NAME               every map
//! BPFFS/maps-next/NAME          new maps that are to replace those, while `--reset-state` makes them
//! BPFFS/programs/NAME           the programs now in use
//! BPFFS/programs/NAME-next      programs of a daemon that is about to take over
//! BPFFS/links/IFINDEX-xdp       a native XDP link      (a folder on a bpffs takes no names with dots: no "eth0.100")
//! BPFFS/links/IFINDEX-generic   a generic XDP link
//! BPFFS/links/IFINDEX-tcx       a tcx link
//! BPFFS/links/IFINDEX-tcx-out   a tcx link on the way out
//! BPFFS/links/IFINDEX-clsact    a folder that stands for a clsact filter, which cannot be pinned; with a folder `qdisc`
//!                               in it if the queueing discipline is ours too
//! BPFFS/links/IFINDEX-clsact-out  the same on the way out
//! ```

use std::{
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::sys::{bpf, lock, mount};

/// The folder of one instance.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    /// The folder of the maps in use: `MAPS`, or `NEXT_MAPS` before they are settled.
    maps: &'static str,
}

const MAPS: &str = "maps";
const NEXT_MAPS: &str = "maps-next";
/// How long an earlier run may take to end.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// How a program hangs on an interface. In the order in which they are removed: the queueing
/// discipline goes with the last of its filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// TC by a link, on the way out.
    TcxOut,
    /// TC by a filter of clsact, on the way out.
    ClsactOut,
    /// XDP in the driver.
    Xdp,
    /// XDP on socket buffers.
    Generic,
    /// TC by a link (6.6 and newer).
    Tcx,
    /// TC by a filter of the clsact queueing discipline.
    Clsact,
}

impl Hook {
    const ALL: [Hook; 6] = [Hook::TcxOut, Hook::ClsactOut, Hook::Xdp, Hook::Generic, Hook::Tcx, Hook::Clsact];

    /// Whether frames pass it on their way out.
    pub const fn is_outgoing(self) -> bool {
        matches!(self, Hook::TcxOut | Hook::ClsactOut)
    }

    /// Of clsact: the hook in the other direction.
    pub const fn other_way(self) -> Hook {
        if self.is_outgoing() { Hook::Clsact } else { Hook::ClsactOut }
    }

    const fn name(self) -> &'static str {
        match self {
            Hook::TcxOut => "tcx-out",
            Hook::ClsactOut => "clsact-out",
            Hook::Xdp => "xdp",
            Hook::Generic => "generic",
            Hook::Tcx => "tcx",
            Hook::Clsact => "clsact",
        }
    }
}

impl Pins {
    /// The folder at `root`, made if it does not exist. It has to be on a mounted bpffs.
    pub fn make(root: &Path) -> Result<Pins> {
        if !mount::is_bpffs(root) {
            bail!(
                "{} is not on a mounted bpffs: mount one (`mount -t bpf bpffs /sys/fs/bpf`), or let evenkeel do it with \
                 `run --mount-bpffs`",
                root.display()
            );
        }
        let pins = Pins { root: root.to_owned(), maps: MAPS };
        [root.to_owned(), pins.maps(), pins.programs(), pins.links()].iter().try_for_each(|folder| make(folder))?;
        Ok(pins)
    }

    /// Makes the folders that are gone. `true`: that of the instance, with its lock.
    pub fn make_again(&self) -> Result<bool> {
        let is_gone = !self.root.exists();
        for folder in [self.root.clone(), self.maps(), self.programs(), self.links()] {
            if !folder.exists() {
                make(&folder)?;
            }
        }
        Ok(is_gone)
    }

    /// The names of the maps.
    pub fn map_names(&self) -> Result<Vec<String>> {
        names(&self.maps())
    }

    /// The IDs of the programs pinned here, those of links included.
    pub fn program_ids(&self) -> Result<Vec<u32>> {
        let pinned = names(&self.programs())?.into_iter().filter_map(|name| {
            // One that cannot be read is none of ours.
            bpf::pinned_program(&self.programs().join(name)).ok()
        });
        let links = self.all_links()?.into_iter();
        let linked = links.filter_map(|(ifindex, hook)| bpf::pinned_link(&self.link(ifindex, hook)).ok());
        Ok(pinned.chain(linked.map(|link| link.program)).collect())
    }

    /// The folder at `root` as it is; `None` if it does not exist.
    pub fn existing(root: &Path) -> Option<Pins> {
        root.is_dir().then(|| Pins { root: root.to_owned(), maps: MAPS })
    }

    /// Takes the folder for this process: two daemons with the same pins would undo each other's
    /// work.
    pub fn lock(&self) -> Result<File> {
        let folder = self.root.display();
        let file = File::open(&self.root).with_context(|| format!("cannot open {folder}"))?;
        let is_ours = lock::exclusive(&file, PREDECESSOR, || false).with_context(|| format!("cannot lock {folder}"))?;
        ensure!(is_ours, "another evenkeel has its programs and maps in {folder}: give this one a bpffs of its own");
        Ok(file)
    }

    /// The same folder with new maps, to be made next to the old ones.
    pub fn with_new_maps(self) -> Result<Pins> {
        self.remove_new_maps()?;
        let pins = Pins { maps: NEXT_MAPS, ..self };
        make(&pins.maps())?;
        Ok(pins)
    }

    /// Whether the maps are made next to others that are in use.
    pub fn are_new(&self) -> bool {
        self.maps == NEXT_MAPS
    }

    /// Removes what was left by a run that ended before its new maps were in use everywhere.
    pub fn remove_new_maps(&self) -> Result<()> {
        let folder = self.root.join(NEXT_MAPS);
        remove_files(&folder)?;
        missing_is_fine(fs::remove_dir(&folder)).with_context(|| format!("cannot remove {}", folder.display()))
    }

    /// The new maps are in use: they take the place of the old ones.
    pub fn settle(&mut self) -> Result<()> {
        let (new, old) = (self.maps(), self.root.join(MAPS));
        if new != old {
            remove_files(&old)?;
            fs::rename(&new, &old).with_context(|| format!("cannot rename {} to {}", new.display(), old.display()))?;
            self.maps = MAPS;
        }
        Ok(())
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join(self.maps)
    }

    pub fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Where the link of an interface is pinned.
    pub fn link(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.links().join(format!("{ifindex}-{}", hook.name()))
    }

    /// Every link of this run and of those before.
    pub fn all_links(&self) -> Result<Vec<(u32, Hook)>> {
        let parse = |name: &str| -> Option<(u32, Hook)> {
            let (ifindex, hook) = name.split_once('-')?;
            Some((ifindex.parse().ok()?, Hook::ALL.into_iter().find(|known| known.name() == hook)?))
        };
        let mut links: Vec<_> = names(&self.links())?.iter().filter_map(|name| parse(name)).collect();
        links.sort_unstable();
        Ok(links)
    }

    /// Whether there is a pinned map of this name.
    pub fn has_map(&self, name: &str) -> bool {
        self.maps().join(name).exists()
    }

    /// Removes all pinned maps; they are gone once no program and no process holds them.
    pub fn remove_maps(&self) -> Result<()> {
        remove_files(&self.maps())
    }

    /// Removes the whole folder. The links come first: once the last one is gone, nothing that
    /// needs the maps is running.
    pub fn remove(self) -> Result<()> {
        remove_files(&self.links())?;
        remove_files(&self.programs())?;
        self.remove_new_maps()?;
        remove_files(&self.maps())?;
        for folder in [self.links(), self.programs(), self.maps()] {
            missing_is_fine(fs::remove_dir(&folder)).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        match fs::remove_dir(&self.root) {
            // The bpffs is mounted at this very folder, for this instance alone.
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                mount::unmount_bpffs(&self.root)?;
                missing_is_fine(fs::remove_dir(&self.root)).context("cannot remove the mount point")
            }
            removed => missing_is_fine(removed).with_context(|| format!("cannot remove {}", self.root.display())),
        }
    }
}

fn make(folder: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Unpins or removes a path; no error if it does not exist.
pub fn remove_file(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
    missing_is_fine(removed).with_context(|| format!("cannot remove {}", path.display()))
}

fn remove_files(folder: &Path) -> Result<()> {
    names(folder)?.iter().try_for_each(|name| remove_file(&folder.join(name)))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
