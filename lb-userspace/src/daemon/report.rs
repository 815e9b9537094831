//! The report and the answer to `conns`: what the tables hold, with the names of the configuration.
//!
//! They are built on a separate thread from a snapshot of what the controller knows: reading
//! 100,000 connections takes tens of milliseconds.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use lb_common::{
    layout::{self, ConnectTimes, Pool, connect_time_bound},
    time::Instant,
};

use crate::{
    access_log::{Record, Status as LineStatus, Try},
    api::{
        Connects, Conns, ConnsFilter, PoolUse, Report,
        types::{
            Backend, ConfigStatus, Conn, ConnState, ConnectTime, Connections, CookieStatus, Counters, DatapathMode,
            DatapathStatus, ServiceStatus, Status, SyncStatus,
        },
    },
    controller::{cookies::Standing, record::connection_number},
    dataplane::{Attached, Mode},
    tables::{Flow, Head, Installed, Tables, rows},
    words::{BackendReason, BackendState},
};

pub mod floors;
pub mod flow_sync;
pub mod vrrp;

use floors::{Floors, Totals};

/// What the controller knows at one moment.
pub struct Snapshot {
    pub now: Instant,
    pub wall: Timestamp,
    pub uptime: Duration,
    pub file: PathBuf,
    pub loaded_at: Timestamp,
    pub generation: u64,
    /// Whether the last reload was applied.
    pub reloaded: bool,
    /// What is wrong with the listeners whose address this host cannot have.
    pub stranded: Vec<String>,
    /// The most connections that the flow index has room for.
    pub capacity: u64,
    pub services: Vec<ServiceView>,
    pub names: BTreeMap<u16, (Arc<str>, Arc<str>, SocketAddr)>,
    pub installed: Installed,
    pub counters: Counters,
    /// The VRRP instances.
    pub vrrp: Arc<Vec<crate::vrrp::report::InstanceReport>>,
    /// Flow sync, if it runs.
    pub sync: Option<SyncStatus>,
    /// What earlier reports have said.
    pub floors: Arc<Floors>,
}

/// One service of the configuration.
pub struct ServiceView {
    pub name: Arc<str>,
    pub listen: Vec<SocketAddr>,
    pub balance: &'static str,
    pub capacity: u64,
    pub datapath: Vec<DatapathStatus>,
    pub cookies: Option<Standing>,
    pub backends: Vec<BackendView>,
}

/// One backend of the configuration.
pub struct BackendView {
    pub number: u16,
    pub name: Arc<str>,
    pub address: SocketAddr,
    pub weight: u32,
    pub backup: bool,
    pub state: BackendState,
    pub reason: Option<BackendReason>,
    pub changed_at: Instant,
}

/// The `datapath` of a service: the interfaces that it uses, as they are attached.
pub fn datapath(
    attached: &[Attached],
    behind: impl Fn(u32) -> Vec<String>,
    tables: &Tables,
    of_service: impl Fn(&str) -> bool,
) -> Vec<DatapathStatus> {
    let used = attached.iter().filter(|attached| of_service(&attached.interface));
    used.map(|attached| DatapathStatus {
        interface: attached.interface.clone(),
        mode: match attached.mode {
            Mode::Xdp => DatapathMode::Xdp,
            Mode::XdpGeneric => DatapathMode::XdpGeneric,
            Mode::Tc => DatapathMode::Tc,
        },
        reason: attached.reason.clone(),
        mtu: tables.interface(attached.number).mtu,
        behind: behind(attached.ifindex),
    })
    .collect()
}

/// What the slots say: for each backend what its open flows add to its totals, for each pool how
/// many of its ports are in use.
#[derive(Default)]
struct Live {
    backends: BTreeMap<u16, Open>,
    used: BTreeMap<u16, u64>,
}

#[derive(Clone, Copy, Default)]
struct Open {
    half_open: u64,
    bytes_in: u64,
    bytes_out: u64,
}

fn live(snapshot: &Snapshot, tables: &Tables) -> Live {
    let mut live = Live::default();
    for (pool, record) in &snapshot.installed.pools {
        let (ports, mut used) = (rows::Ports::of(record), 0);
        for head in tables.heads(*pool, 0..tables.slots(*pool)) {
            // Connections may still have ports that new ones no longer get.
            used += u64::from(ports.has_slot(record, head.flow.at.slot()));
            let Some(flow) = open_flow(tables, &head) else { continue };
            let of_backend = live.backends.entry(flow.backend()).or_default();
            of_backend.half_open += u64::from(flow.ctl.state().is_unconfirmed());
            of_backend.bytes_in += flow.bytes_in();
            of_backend.bytes_out += flow.bytes_out();
        }
        live.used.insert(*pool, used);
    }
    live
}

/// Every flow that is open.
pub fn open_flows<'a>(snapshot: &'a Snapshot, tables: &'a Tables) -> impl Iterator<Item = Flow> + 'a {
    let of_pool = |pool: &'a u16| {
        let heads = tables.heads(*pool, 0..tables.slots(*pool));
        heads.filter_map(|head| open_flow(tables, &head))
    };
    snapshot.installed.pools.keys().flat_map(of_pool)
}

fn open_flow(tables: &Tables, head: &Head) -> Option<Flow> {
    let is_open = head.flow.ctl.state().is_active();
    let flow = is_open.then(|| tables.flow(head.flow.at)).flatten();
    flow.filter(|flow| flow.ctl.state().is_active())
}

/// Everything at one moment.
pub fn report(snapshot: &Snapshot, tables: &Tables) -> Report {
    // Read before the slots: a flow that ends in between must not count twice.
    let records: BTreeMap<_, _> = snapshot.names.keys().map(|number| (*number, tables.backend(*number))).collect();
    let live = live(snapshot, tables);
    let record = |backend: &BackendView| records.get(&backend.number).copied().unwrap_or_default();
    let all = || snapshot.services.iter().flat_map(|service| &service.backends);
    let service = |view: &ServiceView| {
        let of_service = view.backends.iter();
        let backends: Vec<_> =
            of_service.map(|backend| row(snapshot, tables, view, backend, &record(backend), &live)).collect();
        ServiceStatus {
            name: view.name.clone(),
            listen: view.listen.clone(),
            balance: view.balance.into(),
            datapath: view.datapath.clone(),
            connections: Connections {
                active: backends.iter().map(|backend| backend.active).sum(),
                half_open: backends.iter().map(|backend| backend.half_open).sum(),
                capacity: view.capacity,
                total: backends.iter().map(|backend| backend.total).sum(),
            },
            syn_cookies: view.cookies.map(|cookies| CookieStatus {
                on: cookies.on,
                since: ago(snapshot, cookies.since),
                reason: cookies.reason,
            }),
            backends,
        }
    };
    let pool = |(number, pool): (&u16, &Pool)| PoolUse {
        backend: SocketAddr::V4(rows::pool_backend(pool)),
        snat: rows::pool_snat(pool).into(),
        ports: u64::from(rows::Ports::of(pool).count),
        used: live.used.get(number).copied().unwrap_or(0),
    };
    Report {
        stranded: snapshot.stranded.clone(),
        status: Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: snapshot.uptime.as_secs(),
            config: ConfigStatus {
                file: snapshot.file.display().to_string(),
                loaded_at: snapshot.loaded_at,
                generation: snapshot.generation,
            },
            services: snapshot.services.iter().map(service).collect(),
            vrrp: vrrp::instances(snapshot),
            sync: snapshot.sync.clone(),
            counters: snapshot.counters.clone(),
        },
        reloaded: snapshot.reloaded,
        capacity: snapshot.capacity,
        connects: all()
            .map(|backend| Connects { times: tables.connect_times(backend.number), sum_us: record(backend).connect_us })
            .collect(),
        pools: snapshot.installed.pools.iter().map(pool).collect(),
    }
}

fn row(
    snapshot: &Snapshot,
    tables: &Tables,
    service: &ServiceView,
    view: &BackendView,
    record: &layout::Backend,
    live: &Live,
) -> Backend {
    let live = live.backends.get(&view.number).copied().unwrap_or_default();
    let read = Totals {
        opened: record.opened,
        bytes_in: record.bytes_in + live.bytes_in,
        bytes_out: record.bytes_out + live.bytes_out,
    };
    let totals = snapshot.floors.raise(view.number, view.address, read);
    Backend {
        service: service.name.clone(),
        name: view.name.clone(),
        address: view.address,
        state: view.state,
        backup: view.backup,
        reason: view.reason,
        weight: view.weight,
        // If it is read between two changes, it may be one below zero for an instant.
        active: u64::from(record.active.cast_signed().max(0).cast_unsigned()),
        half_open: live.half_open,
        total: record.opened,
        connect_failures: record.connect_failures,
        resets: record.resets,
        bytes_in: totals.bytes_in,
        bytes_out: totals.bytes_out,
        connect_time_ms: connect_time(&tables.connect_times(view.number)),
        last_change: ago(snapshot, view.changed_at),
    }
}

fn ago(snapshot: &Snapshot, then: Instant) -> Timestamp {
    snapshot.wall.checked_sub(then.age(snapshot.now)).unwrap_or(snapshot.wall)
}

fn connect_time(times: &ConnectTimes) -> ConnectTime {
    ConnectTime { p50: quantile(times, 0.50), p99: quantile(times, 0.99) }
}

/// The time in milliseconds that a share `q` of all connects did not exceed, interpolated within
/// its bucket.
fn quantile(times: &ConnectTimes, q: f64) -> Option<f64> {
    let total: u64 = times.iter().map(|count| u64::from(*count)).sum();
    if total == 0 {
        return None;
    }
    let rank = q * total as f64;
    let mut below = 0.0;
    for (bucket, count) in times.iter().enumerate() {
        let count = f64::from(*count);
        if count > 0.0 && below + count >= rank {
            let bucket = bucket as u32;
            let lower = bucket.checked_sub(1).and_then(connect_time_bound).unwrap_or(0);
            let upper = connect_time_bound(bucket).unwrap_or(lower);
            let microseconds = f64::from(lower) + f64::from(upper - lower) * (rank - below) / count;
            return Some((microseconds.round()) / 1000.0);
        }
        below += count;
    }
    None
}

/// `/api/v1/conns`
pub fn conns(snapshot: &Snapshot, tables: &Tables, filter: &ConnsFilter) -> Conns {
    let mut conns = Conns::default();
    for flow in open_flows(snapshot, tables) {
        let Some(conn) = conn(snapshot, &flow) else { continue };
        if !filter.takes(&conn) {
            continue;
        }
        conns.total += 1;
        if filter.limit.is_none_or(|limit| conns.rows.len() < limit) {
            conns.rows.push(conn);
        }
    }
    conns
}

fn conn(snapshot: &Snapshot, flow: &Flow) -> Option<Conn> {
    let state = ConnState::of(flow.ctl.state())?;
    let (service, backend, _) = snapshot.names.get(&flow.backend())?;
    Some(Conn {
        client: flow.client(),
        service: service.clone(),
        backend: backend.clone(),
        snat: snat(snapshot, flow)?,
        state,
        age_s: Instant(flow.started_ns()).age(snapshot.now).as_secs(),
        idle_s: flow.idle_ms(snapshot.now.0) / 1000,
        bytes_in: flow.bytes_in(),
        bytes_out: flow.bytes_out(),
    })
}

fn snat(snapshot: &Snapshot, flow: &Flow) -> Option<SocketAddr> {
    let pool = snapshot.installed.pools.get(&flow.at.pool())?;
    Some(SocketAddr::new(rows::pool_snat(pool).into(), pool.first_port.wrapping_add(flow.at.slot())))
}

/// Lines for a service's connections that are still open (`interval` of its access log), read
/// lazily: there may be hundreds of thousands.
pub fn open_records(snapshot: Snapshot, tables: Arc<Tables>, service: Arc<str>) -> impl Iterator<Item = Record> + Send {
    let slots = |(number, pool): (&u16, &Pool)| {
        let number = *number;
        (0..rows::pool_slots(pool)).step_by(usize::from(PORTION)).map(move |first| (number, first))
    };
    let portions: Vec<_> = snapshot.installed.pools.iter().flat_map(slots).collect();
    portions.into_iter().flat_map(move |(pool, first)| {
        let heads = tables.heads(pool, first..first + u32::from(PORTION));
        let flows = heads.filter_map(|head| open_flow(&tables, &head)).filter(Flow::is_connected);
        flows.filter_map(|flow| open_record(&snapshot, &service, &flow)).collect::<Vec<_>>()
    })
}

/// How many slots are read at once.
const PORTION: u16 = 256;

fn open_record(snapshot: &Snapshot, service: &str, flow: &Flow) -> Option<Record> {
    let (of_service, backend, address) = snapshot.names.get(&flow.backend())?;
    let listener = snapshot.installed.listeners.get(&flow.listener())?;
    if &**of_service != service {
        return None;
    }
    let took = Duration::from_micros(u64::from(flow.connect_us()));
    Some(Record {
        client: flow.client(),
        server: SocketAddr::V4(rows::listener_address(listener)),
        ended: snapshot.wall,
        session: Instant(flow.started_ns()).age(snapshot.now),
        bytes_received: flow.bytes_in(),
        bytes_sent: flow.bytes_out(),
        status: LineStatus::Open,
        tries: vec![Try { address: *address, connected_in: Some(took) }],
        service: of_service.clone(),
        backend: Some(backend.clone()),
        reason: None,
        snat: snat(snapshot, flow),
        connection: connection_number(flow.at.pool(), flow.at.slot(), flow.ctl.generation()),
    })
}

#[cfg(test)]
mod tests {
    use lb_common::layout::{CONNECT_TIME_BUCKETS, connect_time_bucket};

    use super::*;

    #[test]
    fn quantiles_lie_in_the_bucket_of_the_connect_they_stand_for() {
        let mut times = [0; CONNECT_TIME_BUCKETS];
        assert_eq!(quantile(&times, 0.5), None, "nothing was connected yet");
        times[connect_time_bucket(300) as usize] = 98;
        times[connect_time_bucket(2_000_000) as usize] = 2;
        let p50 = quantile(&times, 0.50).expect("a median");
        let p99 = quantile(&times, 0.99).expect("a quantile");
        assert!((0.25..0.32).contains(&p50), "{p50}");
        assert!((1_700.0..2_200.0).contains(&p99), "{p99}");
    }

    #[test]
    fn connects_longer_than_the_histogram_count_as_its_end() {
        let mut times = [0; CONNECT_TIME_BUCKETS];
        times[CONNECT_TIME_BUCKETS - 1] = 5;
        let end = connect_time_bound(CONNECT_TIME_BUCKETS as u32 - 2).expect("a bound");
        assert_eq!(quantile(&times, 0.99), Some(f64::from(end).round() / 1000.0));
    }
}
