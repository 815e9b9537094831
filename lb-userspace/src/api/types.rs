//! The JSON of the control socket and of `-o json`: names and order of the fields are a contract
//! with other programs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::{slot::State, verdict::Reason};
use serde::{Deserialize, Serialize};

use crate::words::{
    AdvertCounts, BackendReason, BackendState, CookieReason, SyncCounts, SyncState, VrrpState, shown_as_in_json,
};

/// Packets and connections by reason (`lb_common::verdict`), and losses of the controller itself.
pub type Counters = BTreeMap<String, u64>;

/// A row of `/api/v1/reasons` and of `counters --list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Meaning {
    pub reason: &'static str,
    /// What is counted: packet, turned_away, try, end or anomaly.
    pub group: &'static str,
    pub meaning: &'static str,
}

/// The list of all reasons.
pub fn meanings() -> Vec<Meaning> {
    let meaning =
        |reason: &Reason| Meaning { reason: reason.name(), group: reason.group().name(), meaning: reason.meaning() };
    Reason::ALL.iter().map(meaning).collect()
}

/// `/api/v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// The daemon's process, which changes with an upgrade.
    pub pid: u32,
    pub uptime_s: u64,
    pub config: ConfigStatus,
    pub services: Vec<ServiceStatus>,
    pub vrrp: Vec<VrrpStatus>,
    /// Flow sync; `None` without `[sync]`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sync: Option<SyncStatus>,
    pub counters: Counters,
}

/// The state of flow sync with the other hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    pub listen: SocketAddr,
    /// Why nothing can be received or sent, if that is so.
    pub error: Option<String>,
    /// The listen addresses that this host holds: it sends their connections and receives those of
    /// all others.
    pub master_of: Vec<SocketAddr>,
    /// Datagrams that could not be sent.
    pub send_failures: u64,
    pub peers: Vec<SyncPeer>,
}

/// One of the other hosts. Counters start with this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPeer {
    pub address: SocketAddr,
    pub state: SyncState,
    /// The version of its program; empty until it is heard.
    pub version: String,
    /// Time since it was last heard.
    pub silent_ms: Option<u64>,
    /// Changes that wait to be sent to it.
    pub waiting: u64,
    /// How long the oldest of them has waited.
    pub lag_ms: u64,
    #[serde(flatten)]
    pub counts: SyncCounts,
}

/// The configuration in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    pub file: String,
    pub loaded_at: jiff::Timestamp,
    /// 1 after the start, incremented by each applied reload.
    pub generation: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: Arc<str>,
    pub listen: Vec<SocketAddr>,
    pub balance: String,
    pub datapath: Vec<DatapathStatus>,
    pub connections: Connections,
    /// `None` if an older daemon answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub syn_cookies: Option<CookieStatus>,
    pub backends: Vec<Backend>,
}

/// Whether a service sends SYN cookies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CookieStatus {
    pub on: bool,
    /// The last change that the daemon has seen, or its start.
    pub since: jiff::Timestamp,
    /// `None`: they are off, because there is no flood.
    pub reason: Option<CookieReason>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    pub interface: String,
    pub mode: DatapathMode,
    /// Why this mode was chosen.
    pub reason: String,
    /// The longest packet that the interface sends; 0: not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u16,
    /// The programs of others that see a frame first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
const fn is_zero(number: &u16) -> bool {
    *number == 0
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
    /// Maximum number of open connections.
    pub capacity: u64,
    /// Since the maps were created.
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
    /// Connections it was given so far.
    pub total: u64,
    pub connect_failures: u64,
    pub resets: u64,
    /// Payload that clients sent to it.
    pub bytes_in: u64,
    /// Payload that it sent to clients.
    pub bytes_out: u64,
    pub connect_time_ms: ConnectTime,
    /// When its state last changed.
    pub last_change: jiff::Timestamp,
}

/// Connect times in milliseconds; `None` before the first connection.
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
    /// Why the instance is in this state.
    pub reason: String,
    /// What changes the priority, and by how much.
    pub weights: Vec<VrrpWeight>,
    /// What makes it FAULT.
    pub faults: Vec<String>,
    /// The source address of this host's advertisements.
    pub source: Option<IpAddr>,
    /// While MASTER: how long this host would answer for the addresses without sending another
    /// advertisement.
    pub lease_ms: u64,
    /// It leaves a lower MASTER in peace until flow sync knows all of its connections.
    pub waits_for_flow_sync: bool,
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
    /// The priority it last advertised; 0: it resigned.
    pub priority: u8,
    pub last_heard: jiff::Timestamp,
}

/// What an instance has counted since it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrrpAdverts {
    #[serde(flatten)]
    pub counts: AdvertCounts,
    /// Refused advertisements by reason.
    pub refused: BTreeMap<String, u64>,
}

/// The answer to `vrrp failover`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedOver {
    pub instance: Arc<str>,
    /// The host that took over; `None` if it has not been heard yet.
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

/// The state of an open connection, in the words of `lb_common::slot::State`.
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
    /// Every state of a slot that has an open connection, and its word.
    pub const ALL: [(State, ConnState); 6] = [
        (State::HalfOpen, ConnState::HalfOpen),
        (State::Answered, ConnState::HalfOpen),
        (State::Established, ConnState::Established),
        (State::ClosingClient, ConnState::ClosingClient),
        (State::ClosingBackend, ConnState::ClosingBackend),
        (State::Suspect, ConnState::Suspect),
    ];

    /// The word for a slot's state; `None` if the slot has no open connection.
    pub fn of(state: State) -> Option<ConnState> {
        Self::ALL.iter().find(|(slot, _)| *slot == state).map(|(_, conn)| *conn)
    }
}

/// The answer to an applied reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    pub generation: u64,
    /// What has changed, one line per change.
    pub changes: Vec<String>,
    pub warnings: Vec<String>,
}

/// The answer to a refused request: nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub errors: Vec<String>,
}

shown_as_in_json!(ConnState, DatapathMode);
