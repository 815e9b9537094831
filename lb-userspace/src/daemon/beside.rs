//! Clients that come in by an interface without the program: this host's own stack gets their SYNs,
//! and refuses them. They are heard there, and told. On a thread of its own: a busy kernel makes
//! netlink wait.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddrV4,
    sync::{Arc, Weak},
    time::Duration,
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use lb_common::time::Instant;
use log::{Level, debug};

use crate::{
    notice::{History, Kind, Notice},
    sys::{clock, netdev, netlink, syn_tap::SynTap},
    tables::{Tables, rows::listener_address},
};

/// How often what was heard is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Looks after which the interfaces are listed again.
const LIST: u64 = 10;
/// How often the same interface is told.
const AGAIN: Duration = Duration::from_secs(60);
/// SYNs of one interface that are read in one look.
const SYNS: usize = 64;

/// Begins to listen, until the tables are gone.
pub fn watch(tables: &Arc<Tables>, history: &Arc<History>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tables, history) = (Arc::downgrade(tables), history.clone());
    let thread = std::thread::Builder::new().name("beside".into());
    thread.spawn(move || runtime.block_on(listen(&tables, &history))).context("cannot start the thread beside")?;
    Ok(())
}

async fn listen(tables: &Weak<Tables>, history: &History) {
    let mut taps = BTreeMap::new();
    let mut told: BTreeMap<u32, Instant> = BTreeMap::new();
    for turn in 0_u64.. {
        tokio::time::sleep(LOOK).await;
        let Some(tables) = tables.upgrade() else { return };
        if turn % LIST == 0 {
            list(&mut taps, &tables).await;
        }
        let now = clock::monotonic();
        for (ifindex, tap) in &taps {
            let Some((client, listen)) = heard(tap, &tables) else { continue };
            // It may have got the program since it was listed.
            let is_news = told.get(ifindex).is_none_or(|at| now >= *at + AGAIN);
            if is_news && tables.interface_number(*ifindex).is_none() {
                told.insert(*ifindex, now);
                history.tell(notice(*ifindex, client, listen), Timestamp::now());
            }
        }
    }
}

/// Listens on the interfaces that are without the program now.
async fn list(taps: &mut BTreeMap<u32, SynTap>, tables: &Tables) {
    let names = match netlink::asked_interfaces().await {
        Ok(names) => names,
        Err(error) => return debug!("{error:#}"),
    };
    let all = names.iter().filter_map(|name| netdev::index_of(name).ok());
    let without: BTreeSet<_> = all.filter(|ifindex| tables.interface_number(*ifindex).is_none()).collect();
    taps.retain(|ifindex, _| without.contains(ifindex));
    for ifindex in without {
        if let Entry::Vacant(place) = taps.entry(ifindex) {
            match SynTap::open(ifindex) {
                Ok(tap) => _ = place.insert(tap),
                Err(error) => debug!("interface {ifindex}: {error}"),
            }
        }
    }
}

/// The latest client that has asked for a listener.
fn heard(tap: &SynTap, tables: &Tables) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let syns: Vec<_> = std::iter::from_fn(|| tap.next()).take(SYNS).collect();
    if syns.is_empty() {
        return None;
    }
    let listeners: BTreeSet<_> =
        tables.listeners().into_iter().map(|(_, listener)| listener_address(&listener)).collect();
    syns.into_iter().rfind(|(_, listen)| listeners.contains(listen))
}

fn notice(ifindex: u32, client: SocketAddrV4, listen: SocketAddrV4) -> Notice {
    let name = netdev::name_of(ifindex).unwrap_or_else(|_| format!("interface {ifindex}"));
    let text = format!(
        "{} asks for {listen} by {name}, where the program does not stand: this host itself gets its SYN, and refuses it. \
         Add {name} to `interface` of the service",
        client.ip()
    );
    Notice::daemon(Level::Warn, Kind::Datapath, text)
}
