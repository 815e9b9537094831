//! The datapath as the controller sees it: programs, links and maps of the kernel, and typed access
//! to the tables in them. The only place with aya.
//!
//! Everything is pinned on a bpffs and outlives the process: a controller that starts finds the
//! tables, flows and counters as they are, brings its own program to the links, and goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use aya::maps::MapData;
use lb_common::layout::{Meta, Trace};
use log::{LevelFilter, warn};

mod attach;
mod events;
mod inject;
mod inner;
mod kernel_log;
mod load;
mod mend;
mod needs;
mod pins;
mod refusal;
mod rivals;
mod self_test;
mod shapes;
mod standing;
mod strangers;
mod together;
mod trace;

pub use attach::{Attached, Mode, Requested};
pub use events::Events;
pub use inject::Injected;
pub use kernel_log::{KernelLog, TARGET as KERNEL_LOG_TARGET};
pub use mend::Mended;
pub use needs::{Need, missing};
pub use refusal::{Refusal, lacking_rights};
pub use shapes::index_buckets;
pub use standing::{Look, Looker};
pub use strangers::refuse_strangers;
pub use trace::Answer;
// For the lab, which shows what the verifier makes of the programs.
#[doc(hidden)]
pub use load::{OBJECT, loader};

use attach::{Hooks, detach, left_behind};
use inner::Kernel;
use load::{Loaded, Programs, in_use, load, settle_layout};
use pins::Pins;
use rivals::Rivals;

use crate::{
    sys::{
        memory::{Record, Table},
        netdev::{self, Device},
        packet_socket::PacketSocket,
    },
    tables::{Fixed, Index, Tables},
};

/// What the datapath is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A folder on a mounted bpffs, of this instance alone.
    pub bpffs: PathBuf,
    /// Upper limit of flows. It is used when the tables are made; existing tables keep theirs.
    pub max_connections: u32,
    /// Begin with new tables; existing ones are given up when the new ones are in use.
    pub reset: bool,
    /// What the kernel program says to a developer; `Off`: nothing, and it has no code for it.
    pub kernel_log: LevelFilter,
}

/// Programs that are loaded onto the tables and not in use yet. Until they are, an earlier run may
/// go on.
pub struct Prepared {
    pins: Pins,
    loaded: Loaded,
    lock: File,
}

/// The open datapath.
pub struct Dataplane {
    pins: Pins,
    programs: Programs,
    log: Option<KernelLog>,
    meta: Meta,
    adopted: bool,
    tables: Arc<Tables>,
    /// TRACE: the question that `trace` asks the kernel program, and its answer.
    trace: Table<Trace>,
    /// By ifindex, with what was asked for.
    attached: BTreeMap<u32, Attached>,
    asked: BTreeMap<u32, (Requested, bool)>,
    /// Interfaces between which frames go.
    groups: Vec<BTreeSet<String>>,
    /// The interfaces that the guard was put on.
    guarded: BTreeSet<u32>,
    /// The guard is put there as a filter, which needs no pin.
    guards_by_filter: bool,
    /// The number that each name had last.
    numbers: BTreeMap<String, u8>,
    /// How often hooks were changed.
    changes: u64,
    /// The programs of others that see frames first, by interface, and whether on the way out.
    rivals: BTreeMap<(u32, bool), Rivals>,
    /// The maps, so that they can be pinned again.
    held: Vec<(String, MapData)>,
    socket: PacketSocket,
    lock: File,
}

impl Prepared {
    /// The tables and hooks are ours from here on.
    pub fn take(self) -> Result<Dataplane> {
        let Prepared { pins, loaded: Loaded { programs, log, meta, adopted }, lock } = self;
        in_use(&pins)?;
        left_behind(&pins)?;
        let tables = open_tables(&pins)?;
        let held = all_maps(&pins)?;
        tables.retain_interfaces(|ifindex| netdev::name_of(ifindex).is_ok())?;
        Ok(Dataplane {
            tables: Arc::new(tables),
            trace: mapped_table(&pins.maps(), "TRACE")?,
            socket: PacketSocket::open().context("cannot open a packet socket")?,
            pins,
            programs,
            log,
            meta,
            adopted,
            attached: BTreeMap::new(),
            asked: BTreeMap::new(),
            groups: Vec::new(),
            guarded: BTreeSet::new(),
            guards_by_filter: false,
            numbers: BTreeMap::new(),
            changes: 0,
            rivals: BTreeMap::new(),
            held,
            lock,
        })
    }

    /// The tables as the earlier run has them.
    pub fn tables(&self) -> Result<Tables> {
        open_tables(&self.pins)
    }
}

impl Dataplane {
    /// Loads the programs onto the pinned tables, or onto new ones. Tables of another layout are
    /// refused.
    pub fn open(options: &Options) -> Result<Dataplane> {
        Dataplane::prepare(options, None)?.take()
    }

    /// The part of [`open`](Self::open) that may fail and changes nothing. `lock` is the one that
    /// the daemon that hands over has taken.
    pub fn prepare(options: &Options, lock: Option<File>) -> Result<Prepared> {
        let mut pins = Pins::make(&options.bpffs)?;
        let lock = lock.map_or_else(|| pins.lock(), Ok)?;
        if options.reset {
            pins = pins.with_new_maps()?;
        } else {
            pins.remove_new_maps()?;
        }
        let loaded = load(&pins, options.max_connections, options.kernel_log)?;
        Ok(Prepared { pins, loaded, lock })
    }

    /// The lock, for a daemon that takes over.
    pub fn lock(&self) -> std::io::Result<OwnedFd> {
        Ok(self.lock.try_clone()?.into())
    }

    /// Called when everything is in place: tables that were to be replaced are given up.
    pub fn settle(&mut self) -> Result<()> {
        self.pins.settle()?;
        settle_layout(&self.pins, &mut self.meta)
    }

    /// Called when the daemon that was to take over has failed, perhaps half-way: reads the tables
    /// again, and lets [`attach`](Self::attach) put our programs back where the other's may be.
    pub fn reclaim(&mut self) -> Result<()> {
        self.tables = Arc::new(open_tables(&self.pins)?);
        self.trace = mapped_table(&self.pins.maps(), "TRACE")?;
        self.held = all_maps(&self.pins)?;
        self.changes += 1;
        self.asked.clear();
        self.guarded.clear();
        Ok(())
    }

    /// Whether the tables were already there.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// The upper limit of flows in the tables in use.
    pub fn max_connections(&self) -> u32 {
        shapes::index_capacity(self.meta.buckets)
    }

    /// The tables.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// The log of the kernel program; `None` if it was loaded without one, or the log was taken
    /// before.
    pub fn take_kernel_log(&mut self) -> Option<KernelLog> {
        self.log.take()
    }

    /// The reading end of the ring buffer; only one may be in use. Inside a tokio runtime.
    pub fn events(&self) -> Result<Events> {
        Events::open(&self.pins.maps())
    }

    /// Puts the program on an interface, or updates it there: another hook takes over without a
    /// gap. The interface is entered in the tables first.
    pub fn attach(&mut self, interface: &str, requested: Requested, clsact: bool) -> Result<Attached> {
        let device = netdev::by_name(interface).with_context(|| format!("no interface {interface}"))?;
        let number = self.place(&device)?;
        // Before the hook: frames come in by the members from its first moment on. A bond gets
        // native XDP only where that is asked for.
        if requested == Requested::Xdp {
            self.place_members(device.ifindex, number)?;
        }
        if let Some(attached) = self.attached.get_mut(&device.ifindex)
            && self.asked.get(&device.ifindex) == Some(&(requested, clsact))
        {
            attached.mac = device.mac;
            return Ok(attached.clone());
        }
        self.changes += 1;
        let mut hooks = Hooks { pins: &self.pins, programs: &mut self.programs };
        let (mode, reason) = hooks.attach(&device, requested, clsact)?;
        if mode != Mode::Xdp {
            self.tables.set_members(number, &[])?;
        }
        let ifindex = device.ifindex;
        let attached = Attached { interface: device.name.clone(), ifindex, number, mac: device.mac, mode, reason };
        self.attached.insert(ifindex, attached.clone());
        self.asked.insert(ifindex, (requested, clsact));
        Ok(attached)
    }

    fn place(&mut self, device: &Device) -> Result<u8> {
        let number = self.tables.place_interface_again(device.ifindex, device.mac, &self.numbers, &device.name)?;
        self.numbers.insert(device.name.clone(), number);
        match netdev::mtu(&device.name) {
            Ok(mtu) => self.tables.set_mtu(number, mtu),
            Err(error) => warn!("{}: its MTU is not known: {error}", device.name),
        }
        Ok(number)
    }

    /// Takes in what the kernel says of an interface with the program on it; `false`: of no such one.
    pub fn link(&mut self, ifindex: u32, name: &str, mac: [u8; 6], mtu: u32) -> Result<bool> {
        let Some(attached) = self.attached.get_mut(&ifindex) else { return Ok(false) };
        attached.mac = mac;
        if attached.interface != name {
            // Another one may get the name it had.
            let before = std::mem::replace(&mut attached.interface, name.to_owned());
            for group in &mut self.groups {
                if group.remove(&before) {
                    group.insert(name.to_owned());
                }
            }
            let number = attached.number;
            self.numbers.retain(|_, had| *had != number);
            self.numbers.insert(name.to_owned(), number);
        }
        let number = self.tables.place_interface(ifindex, mac)?;
        self.tables.set_mtu(number, mtu);
        Ok(true)
    }

    /// An interface is gone, and with it the program and the guard. Another one may have its index
    /// by now.
    pub fn link_gone(&mut self, ifindex: u32) -> Result<()> {
        self.remove(ifindex)
    }

    /// A bond gives its members the native XDP program: frames come in by those.
    fn place_members(&self, ifindex: u32, number: u8) -> Result<()> {
        let members = netdev::members(ifindex)
            .with_context(|| format!("the bond with index {ifindex} does not say which members it has"))?;
        self.tables.set_members(number, &members)
    }

    /// Enters the members that bonds with native XDP have now. The kernel announces the member that
    /// joins or leaves, not its bond.
    pub fn renew_members(&self) -> Result<()> {
        let mut native = self.attached.values().filter(|attached| attached.mode == Mode::Xdp);
        native.try_for_each(|attached| self.place_members(attached.ifindex, attached.number))
    }

    /// From here on the guard goes on when this process and its pins end.
    pub fn guard_without_pins(&mut self) {
        self.guards_by_filter = true;
    }

    /// Puts the guard on an interface, or updates it there: it keeps the host from speaking for an
    /// address whose lease does not hold.
    pub fn guard(&mut self, interface: &str, clsact: bool) -> Result<()> {
        let device = netdev::by_name(interface).with_context(|| format!("no interface {interface}"))?;
        if !self.guarded.contains(&device.ifindex) {
            self.changes += 1;
            let mut hooks = Hooks { pins: &self.pins, programs: &mut self.programs };
            let clsact = clsact || self.guards_by_filter;
            hooks.guard(&device, clsact).with_context(|| format!("cannot attach to the egress of {interface}"))?;
            self.guarded.insert(device.ifindex);
        }
        Ok(())
    }

    /// Removes the guard from all interfaces but these.
    pub fn guard_only(&mut self, interfaces: &BTreeSet<String>) -> Result<()> {
        let kept: BTreeSet<_> = interfaces.iter().filter_map(|name| netdev::index_of(name).ok()).collect();
        for (ifindex, hook) in self.pins.all_links()? {
            if hook.is_outgoing() && !kept.contains(&ifindex) {
                self.changes += 1;
                detach(&self.pins, ifindex, hook)?;
            }
        }
        self.guarded.retain(|ifindex| kept.contains(ifindex));
        Ok(())
    }

    /// The interfaces with the program on them, of this run.
    pub fn attached(&self) -> Vec<Attached> {
        self.attached.values().cloned().collect()
    }

    /// Whether the program is on an interface of this name.
    pub fn is_attached(&self, interface: &str) -> bool {
        self.attached.values().any(|attached| attached.interface == interface)
    }

    /// Whether the guard is on an interface.
    pub fn is_guarded(&self, interface: &str) -> bool {
        netdev::index_of(interface).is_ok_and(|ifindex| self.guarded.contains(&ifindex))
    }

    /// Interfaces on which an earlier run has left its program and on which this one has not been
    /// asked to attach yet.
    pub fn left_attached(&self) -> Result<Vec<String>> {
        let mut found = left_behind(&self.pins)?;
        found.retain(|ifindex, _| !self.attached.contains_key(ifindex));
        let mut names: Vec<String> = found.into_values().collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Removes the program from an interface.
    pub fn detach(&mut self, interface: &str) -> Result<()> {
        let by_name = self.attached.values().find(|attached| attached.interface == interface);
        let ifindex = match by_name {
            Some(attached) => attached.ifindex,
            None => netdev::index_of(interface).with_context(|| format!("no interface {interface}"))?,
        };
        self.remove(ifindex)
    }

    fn remove(&mut self, ifindex: u32) -> Result<()> {
        self.changes += 1;
        self.rivals.retain(|(of, _), _| *of != ifindex);
        for (of, hook) in self.pins.all_links()? {
            if of == ifindex {
                detach(&self.pins, ifindex, hook)?;
            }
        }
        self.attached.remove(&ifindex);
        self.asked.remove(&ifindex);
        self.guarded.remove(&ifindex);
        self.tables.remove_interface(ifindex)
    }

    /// Puts back what somebody has taken off the folder: the programs and maps go on without their
    /// pins, but end with the last of us.
    fn pin_again(&mut self) -> Result<()> {
        if self.pins.make_again()? {
            self.lock = self.pins.lock()?;
        }
        self.programs.pin_again(&self.pins)?;
        let maps = self.pins.maps();
        for (name, map) in self.held.iter().filter(|(name, _)| !maps.join(name).exists()) {
            map.pin(maps.join(name)).with_context(|| format!("map {name}"))?;
        }
        Ok(())
    }

    /// Removes everything: links, programs, tables and the folder. All connections through us end.
    pub fn detach_all(self) -> Result<()> {
        let Dataplane { pins, lock, .. } = self;
        // An open folder keeps its bpffs from being unmounted.
        drop(lock);
        remove_all(pins)
    }
}

/// [`Dataplane::detach_all`] for what an earlier run has left in a folder.
pub fn detach_left_behind(bpffs: &Path) -> Result<()> {
    let Some(pins) = Pins::existing(bpffs) else { return Ok(()) };
    // Released before the folder goes; whoever runs has it.
    drop(pins.lock()?);
    remove_all(pins)
}

/// The interfaces with a program that is pinned in a folder.
pub fn left_in(bpffs: &Path) -> Result<Vec<String>> {
    let Some(pins) = Pins::existing(bpffs) else { return Ok(Vec::new()) };
    let names = pins.all_links()?.into_iter().filter_map(|(ifindex, _)| netdev::name_of(ifindex).ok());
    let names: BTreeSet<_> = names.collect();
    Ok(names.into_iter().collect())
}

/// Removes the filters of a daemon whose pins have ended with it.
pub fn detach_filters(interface: &str) {
    attach::drop_filters(interface);
}

fn remove_all(pins: Pins) -> Result<()> {
    for (ifindex, hook) in pins.all_links()? {
        detach(&pins, ifindex, hook)?;
    }
    pins.remove()
}

/// The tables of a daemon that is running, for another process to look into.
pub fn tables_beside(bpffs: &Path) -> Result<Tables> {
    let pins = Pins::existing(bpffs).with_context(|| format!("nothing is pinned in {}", bpffs.display()))?;
    open_tables(&pins)
}

/// Maps all tables pinned in a folder.
fn open_tables(pins: &Pins) -> Result<Tables> {
    let maps = pins.maps();
    let fixed = Fixed {
        listeners: mapped_table(&maps, "LISTENERS")?,
        pools: mapped_table(&maps, "POOLS")?,
        rings: mapped_table(&maps, "RINGS")?,
        backends: mapped_table(&maps, "BACKENDS")?,
        services: mapped_table(&maps, "SERVICES")?,
        interfaces: mapped_table(&maps, "INTERFACES")?,
        leases: mapped_table(&maps, "LEASES")?,
        connect_times: mapped_table(&maps, "CONNECT_TIMES")?,
        index: Index { table: mapped_table(&maps, "INDEX")?, meta: load::read_meta(pins)? },
        slow_starts: mapped_table(&maps, "SLOW_STARTS")?,
        failures: mapped_table(&maps, "FAILURES")?,
        counted: mapped_table(&maps, "COUNTED")?,
        cookie_key: mapped_table(&maps, "COOKIES")?,
    };
    Tables::open(fixed, Box::new(Kernel::open(&maps)?))
}

fn all_maps(pins: &Pins) -> Result<Vec<(String, MapData)>> {
    let open = |name: String| {
        let map = MapData::from_pin(pins.maps().join(&name)).with_context(|| format!("cannot open map {name}"))?;
        Ok((name, map))
    };
    pins.map_names()?.into_iter().map(open).collect()
}

fn mapped_table<T: Record>(maps: &Path, name: &str) -> Result<Table<T>> {
    let map = MapData::from_pin(maps.join(name)).with_context(|| format!("cannot open map {name}"))?;
    // Type, value size and entries were compared before the program was loaded.
    let entries = map.info()?.max_entries() as usize;
    Table::map(map.fd().as_fd(), entries).with_context(|| format!("cannot map {name}"))
}
