//! All metrics, and the rows of one answer.

use lb_common::verdict::Group;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, MetricFamily, MetricType};

/// One metric, as Prometheus sees it.
pub struct Metric {
    /// By convention it contains the unit, and ends in `_total` if the value only grows.
    pub name: &'static str,
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// One line for an operator.
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub const $constant: Metric =
            Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*

        /// All metrics, in the order of the answer.
        pub const ALL: &[Metric] = &[$($constant,)*];
    };
}

metrics! {
    BUILD_INFO = Gauge "evenkeel_build_info" ["version"] "Always 1, labelled with the running version.";
    CONFIG_GENERATION = Gauge "evenkeel_config_generation" [] "Generation of the configuration: 1 after the start, incremented by each applied reload.";
    CONFIG_LOADED = Gauge "evenkeel_config_loaded_timestamp_seconds" [] "Time when the configuration in use was loaded.";
    CONFIG_RELOADED = Gauge "evenkeel_config_last_reload_successful" [] "1 if the last reload was applied, 0 if it was refused because of errors.";
    CAPACITY = Gauge "evenkeel_connections_capacity" [] "Maximum number of connections of all services together (max_connections).";
    DATAPATH_INFO = Gauge "evenkeel_datapath_info" ["service", "interface", "mode"] "Always 1, for each interface of a service that the program is attached to.";
    SERVICE_CONNECTIONS = Gauge "evenkeel_service_connections" ["service"] "Open connections, half-open ones included.";
    SERVICE_HALF_OPEN = Gauge "evenkeel_service_half_open_connections" ["service"] "Connections that their clients have not confirmed.";
    SERVICE_COOKIES = Gauge "evenkeel_service_syn_cookies" ["service"] "1 while new clients are sent SYN cookies (syn_cookies), 0 otherwise.";
    SERVICE_CAPACITY = Gauge "evenkeel_service_connections_capacity" ["service"] "Number of connections the service has room for: backends x SNAT addresses x ports.";
    BACKEND_INFO = Gauge "evenkeel_backend_info" ["service", "backend", "address"] "Always 1, labelled with the backend's address.";
    BACKEND_STATE = Gauge "evenkeel_backend_state" ["service", "backend", "state"] "1 for the state the backend is in, 0 for the others.";
    BACKEND_CHANGED = Gauge "evenkeel_backend_last_change_timestamp_seconds" ["service", "backend"] "Time of the backend's last change of state.";
    BACKEND_WEIGHT = Gauge "evenkeel_backend_weight" ["service", "backend"] "Weight of the backend: its share of new connections.";
    BACKEND_ACTIVE = Gauge "evenkeel_backend_connections" ["service", "backend"] "Open connections, half-open ones included.";
    BACKEND_HALF_OPEN = Gauge "evenkeel_backend_half_open_connections" ["service", "backend"] "Connections that their clients have not confirmed.";
    BACKEND_TOTAL = Counter "evenkeel_backend_connections_total" ["service", "backend"] "Connections given to the backend.";
    BACKEND_FAILURES = Counter "evenkeel_backend_connect_failures_total" ["service", "backend"] "Connection attempts that the backend refused or did not answer.";
    BACKEND_RESETS = Counter "evenkeel_backend_resets_total" ["service", "backend"] "Connections ended by a RST, from either side or from evenkeel.";
    BACKEND_RECEIVED = Counter "evenkeel_backend_received_bytes_total" ["service", "backend"] "Payload from clients (nginx: bytes_received), without retransmissions.";
    BACKEND_SENT = Counter "evenkeel_backend_sent_bytes_total" ["service", "backend"] "Payload to clients (nginx: bytes_sent), without retransmissions.";
    BACKEND_CONNECT = Histogram "evenkeel_backend_connect_duration_seconds" ["service", "backend"] "Time from the SYN to the backend's SYN-ACK.";
    SNAT_PORTS = Gauge "evenkeel_snat_ports" ["backend_address", "snat"] "SNAT ports towards a backend address, which limit the connections to it.";
    SNAT_PORTS_USED = Gauge "evenkeel_snat_ports_in_use" ["backend_address", "snat"] "Ports of snat_ports that carry a connection or are held back.";
    VRRP_STATE = Gauge "evenkeel_vrrp_state" ["vrrp_instance", "state"] "1 for the state the instance is in, 0 for the others.";
    VRRP_PRIORITY = Gauge "evenkeel_vrrp_priority" ["vrrp_instance"] "The priority in force, tracking included.";
    VRRP_SINCE = Gauge "evenkeel_vrrp_last_change_timestamp_seconds" ["vrrp_instance"] "Time of the instance's last change of state.";
    VRRP_TRANSITIONS = Counter "evenkeel_vrrp_transitions_total" ["vrrp_instance"] "Changes of state since the daemon started.";
    VRRP_SENT = Counter "evenkeel_vrrp_adverts_sent_total" ["vrrp_instance"] "Advertisements sent.";
    VRRP_SEND_FAILURES = Counter "evenkeel_vrrp_adverts_send_failures_total" ["vrrp_instance"] "Advertisements that could not be sent.";
    VRRP_RECEIVED = Counter "evenkeel_vrrp_adverts_received_total" ["vrrp_instance"] "Valid advertisements received from other routers.";
    VRRP_REFUSED = Counter "evenkeel_vrrp_adverts_refused_total" ["vrrp_instance", "reason"] "Advertisements refused, by the check they failed.";
    VRRP_TWO_MASTERS = Counter "evenkeel_vrrp_dual_master_total" ["vrrp_instance"] "Advertisements of another master while this host was MASTER; should not grow.";
    VRRP_CLAIMS = Counter "evenkeel_vrrp_address_claims_total" ["vrrp_instance"] "Claims by other hosts, via ARP or ND, to an address that this host held.";
    SYNC_STATE = Gauge "evenkeel_sync_peer_state" ["peer", "state"] "1 for the state of sync with the peer, 0 for the others.";
    SYNC_WAITING = Gauge "evenkeel_sync_queue" ["peer"] "Changes waiting to be sent to the peer.";
    SYNC_LAG = Gauge "evenkeel_sync_lag_seconds" ["peer"] "How long the oldest waiting change has waited.";
    SYNC_SILENT = Gauge "evenkeel_sync_silent_seconds" ["peer"] "Time since the peer was last heard.";
    SYNC_LOST = Counter "evenkeel_sync_datagrams_lost_total" ["peer"] "Datagrams of the peer that never arrived; a full copy makes up for them.";
    SYNC_REFUSED = Counter "evenkeel_sync_datagrams_refused_total" ["peer", "reason"] "Datagrams refused: sealed with another key, in an older format, replayed or malformed.";
    SYNC_DROPPED = Counter "evenkeel_sync_dropped_total" ["peer"] "Changes dropped because the queue was full; a full copy makes up for them.";
    SYNC_SENT = Counter "evenkeel_sync_flows_sent_total" ["peer"] "Connections sent to the peer, repetitions included.";
    SYNC_RECEIVED = Counter "evenkeel_sync_flows_received_total" ["peer"] "Connections received from the peer.";
    SYNC_COPIES = Counter "evenkeel_sync_copies_received_total" ["peer"] "Full copies received from the peer.";
    SYNC_CONFLICTS = Counter "evenkeel_sync_conflicts_total" ["peer"] "Connections of the peer whose slot held another connection; the later one stays.";
    SYNC_UNKNOWN = Counter "evenkeel_sync_unknown_total" ["peer"] "Connections of the peer that this host cannot hold because the configurations differ.";
    PACKETS = Counter "evenkeel_packets_not_forwarded_total" ["reason"] "Packets passed to the host, answered, dropped, or otherwise out of the ordinary.";
    TURNED_AWAY = Counter "evenkeel_connections_turned_away_total" ["reason"] "New connections that were not given to any backend.";
    TRIES = Counter "evenkeel_connect_tries_failed_total" ["reason"] "Failed connection attempts; the next backend was tried.";
    ENDED = Counter "evenkeel_connections_ended_total" ["reason"] "Connections ended, by reason.";
    ANOMALIES = Counter "evenkeel_anomalies_total" ["reason"] "Losses in evenkeel's own accounting, and emergencies; should not grow.";
    DRIFT = Counter "evenkeel_least_conn_drift_total" [] "Corrections of the number of open connections since the daemon started; must stay 0.";
    CLIENT_DRIFT = Counter "evenkeel_client_count_drift_total" [] "Corrections of the connections per client (per_client_connections) since the daemon started; must stay 0.";
}

/// The metric that counts a group of reasons.
pub fn of_group(group: Group) -> &'static Metric {
    match group {
        Group::Packet => &PACKETS,
        Group::TurnedAway => &TURNED_AWAY,
        Group::Try => &TRIES,
        Group::End => &ENDED,
        Group::Anomaly => &ANOMALIES,
    }
}

/// The rows of an answer.
#[derive(Default)]
pub struct Families(Vec<MetricFamily>);

impl Families {
    /// Adds a row of a counter or a gauge.
    pub fn set(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        let mut row = prometheus::proto::Metric::from_label(pairs(metric, labels));
        match metric.kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                row.set_counter(counter);
            }
            Kind::Gauge | Kind::Histogram => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                row.set_gauge(gauge);
            }
        }
        self.push(metric, row);
    }

    /// Adds one row per state: 1 for the current one, 0 for the others.
    pub fn set_state(&mut self, metric: &Metric, labels: &[&str], states: &[String], is: &str) {
        for state in states {
            self.set(metric, &[labels, &[state]].concat(), f64::from(u8::from(state == is)));
        }
    }

    /// Adds a row of a histogram: cumulative counts by upper bound, the total count and the sum.
    pub fn observe(&mut self, metric: &Metric, labels: &[&str], cumulative: &[(f64, u64)], count: u64, sum: f64) {
        let bucket = |(bound, count): &(f64, u64)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(*count);
            bucket
        };
        let mut histogram = Histogram::default();
        histogram.set_bucket(cumulative.iter().map(bucket).collect());
        histogram.set_sample_count(count);
        histogram.set_sample_sum(sum);
        let mut row = prometheus::proto::Metric::from_label(pairs(metric, labels));
        row.set_histogram(histogram);
        self.push(metric, row);
    }

    fn push(&mut self, metric: &Metric, row: prometheus::proto::Metric) {
        let index = self.0.iter().position(|family| family.name() == metric.name);
        let index = index.unwrap_or_else(|| {
            let mut family = MetricFamily::default();
            family.set_name(metric.name.into());
            family.set_help(metric.help.into());
            family.set_field_type(match metric.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
                Kind::Histogram => MetricType::HISTOGRAM,
            });
            self.0.push(family);
            self.0.len() - 1
        });
        self.0[index].mut_metric().push(row);
    }

    /// All families, in the order of [`ALL`].
    pub fn finish(mut self) -> Vec<MetricFamily> {
        self.0.sort_by_key(|family| ALL.iter().position(|metric| metric.name == family.name()));
        self.0
    }
}

fn pairs(metric: &Metric, values: &[&str]) -> Vec<LabelPair> {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
    let pair = |(name, value): (&&str, &&str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).into());
        pair.set_value((*value).into());
        pair
    };
    metric.labels.iter().zip(values).map(pair).collect()
}
