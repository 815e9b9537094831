//! The JSON of the control socket and of `-o json`: names and order of the fields are a contract with other programs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::{slot::State, verdict::Reason};
use serde::{Deserialize, Serialize};

use crate::words::{AdvertCounts, BackendReason, BackendState, SyncCounts, SyncState, VrrpState, shown_as_in_json};

/// Packets and connections by reason (`lb_common::verdict`), and the controller's own losses.
pub type Counters = BTreeMap<String, u64>;

/// A row of `/api/v1/reasons` and of `counters --list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Meaning {
    pub reason: &'static str,
    /// What it is counted for: packet, turned_away, try, end or anomaly.
    pub group: &'static str,
    pub meaning: &'static str,
}

/// The one list of reasons.
pub fn meanings() -> Vec<Meaning> {
    let meaning =
        |reason: &Reason| Meaning { reason: reason.name(), group: reason.group().name(), meaning: reason.meaning() };
    Reason::ALL.iter().map(meaning).collect()
}

/// `/api/v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// The daemon's process: another one after an upgrade.
    pub pid: u32,
    pub uptime_s: u64,
    pub config: ConfigStatus,
    pub services: Vec<ServiceStatus>,
    pub vrrp: Vec<VrrpStatus>,
    /// Flow sync; nothing without `[sync]`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sync: Option<SyncStatus>,
    pub counters: Counters,
}

/// How it stands with the other hosts of a pair that share their connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    pub listen: SocketAddr,
    /// Why nothing can be heard or sent, if so.
    pub error: Option<String>,
    /// The listen addresses that this host has: it sends their connections, and receives those of all others.
    pub master_of: Vec<SocketAddr>,
    /// Datagrams that did not get out.
    pub send_failures: u64,
    pub peers: Vec<SyncPeer>,
}

/// One of the other hosts. Counts are of this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPeer {
    pub address: SocketAddr,
    pub state: SyncState,
    /// Its program's; empty before it was heard.
    pub version: String,
    /// Since it was heard.
    pub silent_ms: Option<u64>,
    /// Changes that wait to be sent to it, and how long the oldest has waited.
    pub waiting: u64,
    pub lag_ms: u64,
    #[serde(flatten)]
    pub counts: SyncCounts,
}

/// Which configuration is in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    pub file: String,
    pub loaded_at: jiff::Timestamp,
    /// 1 after the start, one more with each reload that was applied.
    pub generation: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: Arc<str>,
    pub listen: Vec<SocketAddr>,
    pub balance: String,
    pub datapath: Vec<DatapathStatus>,
    pub connections: Connections,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    pub interface: String,
    pub mode: DatapathMode,
    /// Why this mode and no other.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatapathMode {
    Xdp,
    XdpGeneric,
    Tc,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Open, half-open ones included.
    pub active: u64,
    pub half_open: u64,
    /// Most that can be open at once.
    pub capacity: u64,
    /// Since the maps were made.
    pub total: u64,
}

/// A backend: a row of `/api/v1/backends`, and part of the status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    pub service: Arc<str>,
    pub name: Arc<str>,
    pub address: SocketAddr,
    pub state: BackendState,
    pub backup: bool,
    /// Why it is not simply up.
    pub reason: Option<BackendReason>,
    pub weight: u32,
    /// Open connections, half-open ones included.
    pub active: u64,
    pub half_open: u64,
    /// Connections given to it so far.
    pub total: u64,
    pub connect_failures: u64,
    pub resets: u64,
    /// Payload that clients sent to it.
    pub bytes_in: u64,
    /// Payload that it sent to clients.
    pub bytes_out: u64,
    pub connect_time_ms: ConnectTime,
    /// When its state changed last.
    pub last_change: jiff::Timestamp,
}

/// How long connects took, in milliseconds; nothing before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectTime {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VrrpStatus {
    pub name: String,
    pub state: VrrpState,
    pub priority: u8,
    pub base_priority: u8,
    pub addresses: Vec<String>,
    pub since: jiff::Timestamp,
    pub transitions: u64,
    /// The address of the host that is MASTER, if one is known.
    pub master: Option<IpAddr>,
    pub interface: String,
    pub virtual_router_id: u8,
    pub version: u8,
    /// What made the state what it is.
    pub reason: String,
    /// What changes the priority, and by how much.
    pub weights: Vec<VrrpWeight>,
    /// What makes it FAULT.
    pub faults: Vec<String>,
    /// The address that this host speaks from.
    pub source: Option<IpAddr>,
    /// While MASTER: how long this host goes on to answer for the addresses if it does not advertise any more.
    pub lease_ms: u64,
    pub peers: Vec<VrrpPeer>,
    pub adverts: VrrpAdverts,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrrpWeight {
    pub what: String,
    pub weight: i16,
}

/// Another router that was heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrrpPeer {
    pub address: IpAddr,
    /// The priority it advertised last; 0: it has resigned.
    pub priority: u8,
    pub last_heard: jiff::Timestamp,
}

/// What an instance has counted since it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrrpAdverts {
    #[serde(flatten)]
    pub counts: AdvertCounts,
    /// Those that did not count, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// The answer to `vrrp failover`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedOver {
    pub instance: Arc<str>,
    /// The host that has taken over; none: it was not heard yet.
    pub master: Option<IpAddr>,
    pub after_ms: u64,
}

/// A row of `/api/v1/conns`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conn {
    pub client: SocketAddr,
    pub service: Arc<str>,
    pub backend: Arc<str>,
    pub snat: SocketAddr,
    pub state: ConnState,
    pub age_s: u64,
    pub idle_s: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// The state of a connection that is open: the words of `lb_common::slot::State`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnState {
    HalfOpen,
    Established,
    ClosingClient,
    ClosingBackend,
    Suspect,
}

impl ConnState {
    /// The states there are and the words for them.
    pub const ALL: [(State, ConnState); 5] = [
        (State::HalfOpen, ConnState::HalfOpen),
        (State::Established, ConnState::Established),
        (State::ClosingClient, ConnState::ClosingClient),
        (State::ClosingBackend, ConnState::ClosingBackend),
        (State::Suspect, ConnState::Suspect),
    ];

    /// The state of a slot; nothing for one that holds no open connection.
    pub fn of(state: State) -> Option<ConnState> {
        Self::ALL.iter().find(|(slot, _)| *slot == state).map(|(_, conn)| *conn)
    }
}

/// The answer to a reload that was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    pub generation: u64,
    /// What is different now, a line each.
    pub changes: Vec<String>,
    pub warnings: Vec<String>,
}

/// The answer to a request that was not carried out: nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub errors: Vec<String>,
}

shown_as_in_json!(ConnState, DatapathMode);
