//! The valid configuration, in types that cannot hold a wrong value. Serialised, it is the file's
//! own TOML with every default filled in (`evenkeel dump`).

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU8, NonZeroU32},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::memory;
use crate::words::serialize_duration;
pub use crate::{
    access_log::{AccessLog, LogTarget},
    words::{SynCookies, VrrpVersion},
};

/// All files together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    pub daemon: Daemon,
    /// `None`: no TCP listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<Api>,
    #[serde(rename = "service", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vrrp: Vec<Vrrp>,
    /// `None`: no flow sync.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync: Option<Sync>,
}

/// `[daemon]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Daemon {
    /// Holds the control socket and what survives a restart of the daemon.
    pub state_dir: PathBuf,
    /// Where programs, links and maps are pinned.
    pub bpffs: PathBuf,
    pub on_exit: OnExit,
    /// The group that may use the control socket, if it exists.
    pub socket_group: String,
    #[serde(serialize_with = "level")]
    pub log_level: log::LevelFilter,
    /// Limit of flows, 1,024 to 16,777,216; it sets the size of the flow index.
    pub max_connections: u32,
}

impl Daemon {
    /// The path of the control socket.
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("control.sock")
    }
}

/// What SIGTERM does to the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExit {
    Keep,
    Detach,
}

/// `[api]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Api {
    pub listen: SocketAddr,
    pub hosts: Vec<String>,
}

/// `[[service]]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Service {
    pub name: Arc<str>,
    /// The addresses clients connect to; at least one.
    pub listen: Vec<SocketAddr>,
    /// Empty: found from the routes.
    #[serde(rename = "interface", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    pub datapath: Datapath,
    pub balance: Balance,
    /// 10 ms to 60 s.
    #[serde(serialize_with = "serialize_duration")]
    pub connect_timeout: Duration,
    /// 1 s to 7 days.
    #[serde(serialize_with = "serialize_duration")]
    pub idle_timeout: Duration,
    pub next_upstream: bool,
    /// 0: as many as there are backends without `down`. See [`Service::tries`].
    pub next_upstream_tries: u32,
    /// The source addresses that backends see: one to eight, each once.
    pub snat: Vec<IpAddr>,
    pub snat_ports: PortRange,
    /// The first match decides; empty: every client is allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Connections reset per second.
    pub reset_rate: NonZeroU32,
    /// At most 65,536.
    pub max_half_open: NonZeroU32,
    /// At most 65,535; 0: no limit.
    pub per_client_connections: u32,
    /// When it sends SYN cookies.
    pub syn_cookies: SynCookies,
    /// Clients that are never sent one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub syn_cookies_exempt: Vec<IpNet>,
    pub mss_clamp: MssClamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// `None`: passive health checks only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// 1 to 64, with unique names and addresses.
    #[serde(rename = "backend")]
    pub backends: Vec<Backend>,
}

impl Service {
    /// Number of backends that one connection may try, at least 1.
    pub fn tries(&self) -> u32 {
        let usable = self.backends.iter().filter(|backend| !backend.down).count().max(1) as u32;
        match (self.next_upstream, self.next_upstream_tries) {
            (false, _) => 1,
            (true, 0) => usable,
            (true, tries) => tries.min(usable),
        }
    }

    /// Every pair of backend and SNAT address of one family: connections run between these.
    pub fn pools(&self) -> impl Iterator<Item = (SocketAddr, IpAddr)> {
        let snat = &self.snat;
        self.backends.iter().flat_map(move |backend| {
            let same_family = |snat: &&IpAddr| snat.is_ipv4() == backend.address.is_ipv4();
            snat.iter().filter(same_family).map(|snat| (backend.address, *snat))
        })
    }

    /// Maximum number of connections: backends × SNAT addresses × ports. `max_connections` limits
    /// it as well.
    pub fn capacity(&self) -> u64 {
        self.pools().count() as u64 * u64::from(self.snat_ports.count())
    }
}

/// The hook that the program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    Auto,
    Xdp,
    XdpGeneric,
    Tc,
}

/// How many bytes of payload clients and backends are told that they may put into a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MssClamp {
    /// As many as they say.
    #[default]
    Off,
    /// As many as the ways to both of them take.
    Auto,
    /// So many, 536 to 8,960.
    #[serde(untagged)]
    Bytes(u32),
}

/// How a backend is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    LeastConn,
    RoundRobin,
    RandomTwo,
    Hash,
}

impl Balance {
    /// The words for them in the file.
    pub const NAMES: &[(&str, Balance)] = &[
        ("least_conn", Balance::LeastConn),
        ("round_robin", Balance::RoundRobin),
        ("random_two", Balance::RandomTwo),
        ("hash", Balance::Hash),
    ];

    /// The word in the file.
    pub fn name(self) -> &'static str {
        Balance::NAMES.iter().find(|(_, balance)| *balance == self).map_or("", |(name, _)| name)
    }
}

/// Ports from `first` to `last`, both included; never empty and never below 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Lower ports belong to the host's own services.
    pub const LOWEST: u16 = 1024;

    /// `None` if it would be empty or reach below [`PortRange::LOWEST`].
    pub const fn new(first: u16, last: u16) -> Option<PortRange> {
        if first < Self::LOWEST || first > last { None } else { Some(PortRange { first, last }) }
    }

    pub fn first(self) -> u16 {
        self.first
    }

    pub fn last(self) -> u16 {
        self.last
    }

    /// Number of ports, 1 to 64,512.
    pub fn count(self) -> u16 {
        self.last - self.first + 1
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One of `rules`: `allow 10.0.0.0/8`, `deny all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    /// `None`: all clients.
    pub clients: Option<IpNet>,
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let verb = if self.allow { "allow" } else { "deny" };
        match self.clients {
            Some(clients) => write!(f, "{verb} {clients}"),
            None => write!(f, "{verb} all"),
        }
    }
}

/// `[[service.backend]]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backend {
    pub name: Arc<str>,
    pub address: SocketAddr,
    pub weight: Weight,
    /// Connect failures within `fail_timeout` that take the backend out; 0: it is never taken out.
    pub max_fails: u32,
    /// 100 ms to 1 h.
    #[serde(serialize_with = "serialize_duration")]
    pub fail_timeout: Duration,
    /// 0: no limit.
    pub max_conns: u32,
    pub backup: bool,
    pub down: bool,
    /// Up to 1 h; 0: the full share at once.
    #[serde(serialize_with = "serialize_duration")]
    pub slow_start: Duration,
}

/// A backend's share: 1 to 65,535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Weight(u32);

impl Weight {
    pub const MAX: u32 = 65_535;

    pub const fn new(weight: u32) -> Option<Weight> {
        if weight >= 1 && weight <= Self::MAX { Some(Weight(weight)) } else { None }
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

/// `[service.health]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    pub probe: Probe,
    /// Begins with `/`.
    pub path: String,
    /// 100 ms to 1 h.
    #[serde(serialize_with = "serialize_duration")]
    pub interval: Duration,
    /// 10 ms up to `interval`.
    #[serde(serialize_with = "serialize_duration")]
    pub timeout: Duration,
    pub rise: NonZeroU32,
    pub fall: NonZeroU32,
    /// `None`: the certificate is not verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Statuses that mean "ready"; at least one, each 100 to 599.
    pub expect: Vec<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    Tcp,
    Https,
}

/// `[[vrrp]]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Vrrp {
    pub name: Arc<str>,
    pub interface: String,
    /// Unique per interface.
    pub virtual_router_id: NonZeroU8,
    /// 255 marks the owner of the addresses.
    pub priority: NonZeroU8,
    pub version: VrrpVersion,
    /// Version 2: whole seconds to 255 s; version 3: 10 ms to 40.95 s in steps of 10 ms.
    #[serde(serialize_with = "serialize_duration")]
    pub advert_interval: Duration,
    pub preempt: bool,
    /// Up to 1,000 s.
    #[serde(serialize_with = "serialize_duration")]
    pub preempt_delay: Duration,
    /// Version 2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_pass: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unicast_source: Option<IpAddr>,
    /// Empty: multicast.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unicast_peers: Vec<IpAddr>,
    /// The least time to live of a unicast advertisement that is believed.
    pub min_ttl: u8,
    /// At least one, all of one family.
    pub addresses: Vec<IpNet>,
    pub garp_repeat: u32,
    #[serde(serialize_with = "serialize_duration")]
    pub garp_delay: Duration,
    /// 0: not repeated.
    #[serde(serialize_with = "serialize_duration")]
    pub garp_refresh: Duration,
    pub checksum: VrrpChecksum,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// -253 to 253; 0: no effect.
    pub track_backends: i16,
    pub track_datapath: TrackDatapath,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub track_interface: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub track_script: Vec<TrackScript>,
}

/// The checksum of IPv4 advertisements in version 3; both kinds are accepted on receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum VrrpChecksum {
    /// As keepalived sends it.
    #[serde(rename = "pseudo-header")]
    PseudoHeader,
    #[serde(rename = "rfc9568")]
    Rfc9568,
}

/// The effect of a detached or failing datapath on an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackDatapath {
    Fault,
    /// Added to the priority, -253 to 253.
    Weight(i16),
}

impl Serialize for TrackDatapath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            TrackDatapath::Fault => serializer.serialize_str("fault"),
            TrackDatapath::Weight(weight) => serializer.serialize_i16(*weight),
        }
    }
}

/// One of `track_script`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrackScript {
    pub command: PathBuf,
    #[serde(serialize_with = "serialize_duration")]
    pub interval: Duration,
    /// Up to `interval`.
    #[serde(serialize_with = "serialize_duration")]
    pub timeout: Duration,
    /// -253 to 253; 0: a failure means FAULT, as in keepalived.
    pub weight: i16,
    pub rise: NonZeroU32,
    pub fall: NonZeroU32,
}

/// `[sync]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sync {
    /// 1 ms to 1 s.
    #[serde(serialize_with = "serialize_duration")]
    pub batch: Duration,
    pub listen: SocketAddr,
    /// At least one.
    pub peers: Vec<SocketAddr>,
    pub key_file: PathBuf,
}

/// The capacity that `check` and `status` show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Slots of all pools; pools that services share count once.
    pub slots: u64,
    /// Maximum number of connections: `slots`, limited by `max_connections`.
    pub connections: u64,
    /// Memory of all tables, as the kernel counts it.
    pub memory_bytes: u64,
}

impl Config {
    /// The room for connections and the memory it takes.
    pub fn capacity(&self) -> Capacity {
        let slots = self.pools().iter().map(|(_, ports)| u64::from(*ports)).sum();
        let connections = u64::from(self.daemon.max_connections).min(slots);
        Capacity { slots, connections, memory_bytes: memory::bytes(self) }
    }

    /// Every pair of backend and SNAT address of all services, each once, with its number of ports.
    pub(super) fn pools(&self) -> BTreeSet<((SocketAddr, IpAddr), u16)> {
        let of = |service: &'_ Service| -> Vec<_> {
            service.pools().map(|pool| (pool, service.snat_ports.count())).collect()
        };
        self.services.iter().flat_map(of).collect()
    }

    /// The whole configuration as TOML with all defaults. Loading it gives the same configuration.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every value of the model has a form in TOML")
    }
}

fn level<S: Serializer>(level: &log::LevelFilter, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&level.as_str().to_ascii_lowercase())
}
