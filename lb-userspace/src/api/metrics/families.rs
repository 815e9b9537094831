//! The metrics there are, and the rows of one answer.

use lb_common::verdict::Group;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, MetricFamily, MetricType};

/// One metric, as Prometheus is told of it.
pub struct Metric {
    /// By convention: a unit in the name, `_total` for what only grows.
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

        /// All of them, in the order of the answer.
        pub const ALL: &[Metric] = &[$($constant,)*];
    };
}

metrics! {
    BUILD_INFO = Gauge "evenkeel_build_info" ["version"] "1, with the version that runs.";
    CONFIG_GENERATION = Gauge "evenkeel_config_generation" [] "1 after the start, one more with each reload that was applied.";
    CONFIG_LOADED = Gauge "evenkeel_config_loaded_timestamp_seconds" [] "When the configuration in use was read.";
    CONFIG_RELOADED = Gauge "evenkeel_config_last_reload_successful" [] "0 if the last reload was refused: the file has errors.";
    CAPACITY = Gauge "evenkeel_connections_capacity" [] "Most connections of all services together (max_connections).";
    DATAPATH_INFO = Gauge "evenkeel_datapath_info" ["service", "interface", "mode"] "1 for each interface of a service with the program on it.";
    SERVICE_CONNECTIONS = Gauge "evenkeel_service_connections" ["service"] "Open connections, half-open ones included.";
    SERVICE_HALF_OPEN = Gauge "evenkeel_service_half_open_connections" ["service"] "Connections whose backend has not answered yet.";
    SERVICE_CAPACITY = Gauge "evenkeel_service_connections_capacity" ["service"] "Most connections the service has room for: backends x SNAT addresses x ports.";
    BACKEND_INFO = Gauge "evenkeel_backend_info" ["service", "backend", "address"] "1, with the backend's address.";
    BACKEND_STATE = Gauge "evenkeel_backend_state" ["service", "backend", "state"] "1 for the state the backend is in, 0 for the others.";
    BACKEND_CHANGED = Gauge "evenkeel_backend_last_change_timestamp_seconds" ["service", "backend"] "When the backend's state changed last.";
    BACKEND_WEIGHT = Gauge "evenkeel_backend_weight" ["service", "backend"] "Share of new connections.";
    BACKEND_ACTIVE = Gauge "evenkeel_backend_connections" ["service", "backend"] "Open connections, half-open ones included.";
    BACKEND_HALF_OPEN = Gauge "evenkeel_backend_half_open_connections" ["service", "backend"] "Connections the backend has not answered yet.";
    BACKEND_TOTAL = Counter "evenkeel_backend_connections_total" ["service", "backend"] "Connections given to the backend.";
    BACKEND_FAILURES = Counter "evenkeel_backend_connect_failures_total" ["service", "backend"] "Connects that the backend refused or did not answer.";
    BACKEND_RESETS = Counter "evenkeel_backend_resets_total" ["service", "backend"] "Connections that ended by a RST of either side or of ours.";
    BACKEND_RECEIVED = Counter "evenkeel_backend_received_bytes_total" ["service", "backend"] "Payload from clients (nginx: bytes_received), without what was sent again.";
    BACKEND_SENT = Counter "evenkeel_backend_sent_bytes_total" ["service", "backend"] "Payload to clients (nginx: bytes_sent), without what was sent again.";
    BACKEND_CONNECT = Histogram "evenkeel_backend_connect_duration_seconds" ["service", "backend"] "From the SYN to the backend's SYN-ACK.";
    SNAT_PORTS = Gauge "evenkeel_snat_ports" ["backend_address", "snat"] "Ports towards a backend address: the most connections to it.";
    SNAT_PORTS_USED = Gauge "evenkeel_snat_ports_in_use" ["backend_address", "snat"] "Those that carry a connection or are held back.";
    VRRP_STATE = Gauge "evenkeel_vrrp_state" ["vrrp_instance", "state"] "1 for the state the instance is in, 0 for the others.";
    VRRP_PRIORITY = Gauge "evenkeel_vrrp_priority" ["vrrp_instance"] "The priority in force, tracking included.";
    VRRP_SINCE = Gauge "evenkeel_vrrp_last_change_timestamp_seconds" ["vrrp_instance"] "When the instance's state changed last.";
    VRRP_TRANSITIONS = Counter "evenkeel_vrrp_transitions_total" ["vrrp_instance"] "Changes of state since the daemon's start.";
    VRRP_SENT = Counter "evenkeel_vrrp_adverts_sent_total" ["vrrp_instance"] "Advertisements sent.";
    VRRP_SEND_FAILURES = Counter "evenkeel_vrrp_adverts_send_failures_total" ["vrrp_instance"] "Advertisements that the interface did not take.";
    VRRP_RECEIVED = Counter "evenkeel_vrrp_adverts_received_total" ["vrrp_instance"] "Advertisements of other routers that counted.";
    VRRP_REFUSED = Counter "evenkeel_vrrp_adverts_refused_total" ["vrrp_instance", "reason"] "Advertisements that did not count, by the check that they failed.";
    VRRP_TWO_MASTERS = Counter "evenkeel_vrrp_dual_master_total" ["vrrp_instance"] "Advertisements of another master while this host was MASTER: should stay where it is.";
    VRRP_CLAIMS = Counter "evenkeel_vrrp_address_claims_total" ["vrrp_instance"] "Claims of other hosts, by ARP or ND, to an address that this host held.";
    SYNC_STATE = Gauge "evenkeel_sync_peer_state" ["peer", "state"] "1 for how it stands with the other host, 0 for the others.";
    SYNC_WAITING = Gauge "evenkeel_sync_queue" ["peer"] "Changes that wait to be sent to it.";
    SYNC_LAG = Gauge "evenkeel_sync_lag_seconds" ["peer"] "For how long the oldest of them has waited.";
    SYNC_SILENT = Gauge "evenkeel_sync_silent_seconds" ["peer"] "Since it was heard.";
    SYNC_LOST = Counter "evenkeel_sync_datagrams_lost_total" ["peer"] "Its datagrams that never came; a full copy makes up for them.";
    SYNC_REFUSED = Counter "evenkeel_sync_datagrams_refused_total" ["peer", "reason"] "Datagrams that were turned away: sealed with another key, sent again, or not understood.";
    SYNC_DROPPED = Counter "evenkeel_sync_dropped_total" ["peer"] "Changes that found the queue full; a full copy makes up for them.";
    SYNC_SENT = Counter "evenkeel_sync_flows_sent_total" ["peer"] "Connections sent to it, again and again.";
    SYNC_RECEIVED = Counter "evenkeel_sync_flows_received_total" ["peer"] "Connections received from it.";
    SYNC_COPIES = Counter "evenkeel_sync_copies_received_total" ["peer"] "Full copies received from it.";
    SYNC_CONFLICTS = Counter "evenkeel_sync_conflicts_total" ["peer"] "Connections of it that met another one in their place: the later one stays.";
    SYNC_UNKNOWN = Counter "evenkeel_sync_unknown_total" ["peer"] "Connections of it that have no place here: the configurations differ.";
    PACKETS = Counter "evenkeel_packets_not_forwarded_total" ["reason"] "Packets that were passed to the host, answered or dropped, or are out of the ordinary.";
    TURNED_AWAY = Counter "evenkeel_connections_turned_away_total" ["reason"] "New connections that were given to no backend.";
    TRIES = Counter "evenkeel_connect_tries_failed_total" ["reason"] "Tries to connect that failed; the next backend was tried.";
    ENDED = Counter "evenkeel_connections_ended_total" ["reason"] "Connections by how they ended.";
    ANOMALIES = Counter "evenkeel_anomalies_total" ["reason"] "Losses of our own book-keeping, and emergencies: should stay where they are.";
    DRIFT = Counter "evenkeel_least_conn_drift_total" [] "Corrections of the counts of open connections, since the daemon's start: must stay 0.";
    CLIENT_DRIFT = Counter "evenkeel_client_count_drift_total" [] "Corrections of the counts of clients' connections (per_client_connections), since the daemon's start: must stay 0.";
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
    /// A row of a counter or a gauge.
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

    /// One row for each of `states`, 1 for the one it is in.
    pub fn set_state(&mut self, metric: &Metric, labels: &[&str], states: &[String], is: &str) {
        for state in states {
            self.set(metric, &[labels, &[state]].concat(), f64::from(u8::from(state == is)));
        }
    }

    /// A row of a histogram: upper bounds and how many lay within each, itself and all below; how many in all; their sum.
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
        let place = self.0.iter().position(|family| family.name() == metric.name);
        let place = place.unwrap_or_else(|| {
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
        self.0[place].mut_metric().push(row);
    }

    /// All of them, in the order of [`ALL`].
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
