//! The one list of reasons: the program's verdict, the counter, the metric's label, the word in the
//! CLI and in the log are all one of these. It only grows, and a number keeps its meaning forever,
//! because counters outlive the program.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $meaning:literal;)*) => {
        /// Why a packet or a connection was not simply forwarded, or why a connection ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* #[doc = $meaning] $variant = $number,)*
        }

        impl Reason {
            /// Every reason, in the order of the list.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)*];

            /// The word for it everywhere: counters, metrics, CLI, log.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }

            /// One line for an operator.
            pub const fn meaning(self) -> &'static str {
                match self { $(Reason::$variant => $meaning,)* }
            }

            /// The reason with this number, if there is one.
            pub const fn from_number(number: u8) -> Option<Reason> {
                match number { $($number => Some(Reason::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    // Passed on to the host, untouched.
    NotOurs = 0, "not_ours", "a packet that belongs to no service and no flow: passed to the host";
    Fragment = 1, "fragment", "an IP fragment for a service, or one that may be a part of such a packet: dropped, it cannot be placed";
    IpOptions = 2, "ip_options", "a packet for a service with IP options that say its way or cannot be read: dropped; any others are removed";
    Vlan = 3, "vlan", "a packet with the tag of a VLAN seen on the untagged device: passed to the host";
    Malformed = 4, "malformed", "headers that are cut short or contradict themselves: dropped if they name a service, else passed to the host";
    OtherHost = 5, "other_host", "a frame for another MAC address than ours: passed on";

    // ARP and neighbour discovery for a virtual address that VRRP carries.
    LeaseLapsed = 6, "lease_lapsed", "ARP or ND for a virtual address whose VRRP lease has run out: dropped, so that two hosts never answer";
    VipNotHeld = 7, "vip_not_held", "ARP or ND for a virtual address that another host holds: dropped";
    VipClaimed = 8, "vip_claimed", "another host said by ARP or ND that a virtual address we hold is its own: passed to the host";
    SelfTest = 9, "self_test", "the controller's own test packet, run through the attached program: answered, sent nowhere";

    // A new connection was turned away: it got a RST.
    NoBackend = 10, "no_backend", "new connection refused: no backend may take it";
    NoSlot = 11, "no_slot", "new connection refused: no SNAT port is free towards the backends";
    IndexFull = 12, "index_full", "new connection refused: the flow index has no room (raise max_connections)";
    Denied = 13, "denied", "new connection refused: the client is denied by rules";
    ClientLimit = 14, "client_limit", "new connection refused: over per_client_connections";

    // A packet of ours that could not be forwarded.
    UnknownFlow = 20, "unknown_flow", "a segment of no known connection: answered with a RST";
    LateSynAck = 21, "late_syn_ack", "a SYN-ACK of a backend that was given up already: reset, the client never sees it";
    RstOutOfWindow = 22, "rst_out_of_window", "a RST whose sequence number is not exact: left to its receiver, the connection is kept";
    TtlExpired = 23, "ttl_expired", "a packet whose time to live ran out: dropped, and its sender told (ICMP time exceeded), unless it is an ICMP error itself";
    NoNextHop = 24, "no_next_hop", "the MAC address of the next hop is not known yet: dropped, TCP sends again";
    RstRateLimited = 25, "rst_rate_limited", "a RST or an ICMP error, over the limit of so many a second: not sent";
    AfterClose = 26, "after_close", "a segment of a connection that evenkeel has closed: answered with a RST";
    RewriteFailed = 27, "rewrite_failed", "the kernel refused to resize or rewrite the packet: dropped";
    HalfOpenJunk = 28, "half_open_junk", "a segment that fits no connection attempt: dropped";

    // A try to connect to a backend failed; the next one is tried.
    Refused = 40, "refused", "the backend answered the SYN with a RST";
    ConnectTimeout = 41, "connect_timeout", "the backend did not answer the SYN within connect_timeout";
    Unreachable = 43, "unreachable", "a router or a firewall answered the SYN with an ICMP error";
    TimeWait = 42, "time_wait", "the backend still held an older connection on this port: sent again from another one";

    // How a connection ended.
    Closed = 60, "closed", "both sides closed the connection (FIN)";
    ClientReset = 61, "client_reset", "the client reset the connection";
    BackendReset = 62, "backend_reset", "the backend reset the connection";
    IdleTimeout = 63, "idle_timeout", "no packet for idle_timeout: reset on both sides";
    HalfOpenEvicted = 64, "half_open_evicted", "over max_half_open: the oldest half-open connection gave way";
    Replaced = 65, "replaced", "no longer used: a SYN closes no connection";
    ClientAborted = 66, "client_aborted", "the client gave up before the backend had answered";
    Removed = 67, "removed", "the service or backend was removed";
    Killed = 68, "killed", "reset by an operator";
    BackendSilent = 69, "backend_silent", "its backend went silent: reset on both sides";
    BackendRestarted = 70, "backend_restarted", "its backend refused connections or was out, and twice gave no answer on this one: reset on both sides";
    ProbeTimeout = 71, "probe_timeout", "its backend did not answer probes: reset on both sides";
    Drained = 76, "drained", "its backend was drained: reset at the deadline of the drain";
    Maintenance = 77, "maintenance", "its backend went into maintenance with --reset: reset on both sides";
    Rebalanced = 78, "rebalanced", "reset by a rebalancing, so that its client comes back to a less busy backend";
    Unconfirmed = 72, "unconfirmed", "the client never acknowledged the SYN-ACK: closed after 3 s, its backend reset";
    MovedOn = 79, "moved_on", "the client sent its SYN again while the backend was drained or taken out: it went to the next one";

    // The other host of a pair.
    EndedElsewhere = 90, "ended_elsewhere", "the connection ended on the other host, which told us so";

    // Losses of our own book-keeping.
    EventLost = 80, "event_lost", "the ring buffer was full: an event was lost, the tables are read instead";
    FailOpen = 81, "fail_open", "all backends were out: one that is out was given a connection all the same";
    AccessLogLost = 82, "access_log_lost", "a line of the access log could not be written: its queue was full or its target failed";
    AccessLogSuppressed = 83, "access_log_suppressed", "a connection was turned away without a log line: over 100 such lines a second";
    ClientUncounted = 100, "client_uncounted", "new connection not counted for per_client_connections: the table of clients was full";

    // The API.
    ApiRefused = 84, "api_refused", "a connection to [api] was turned away: too many at once";

    // More packets of ours that could not be forwarded. The list only grows, so they stand here.
    LostRace = 29, "lost_race", "a segment of a connection that another CPU or the controller changed in the same moment: dropped, TCP sends again";
    OutOfWindow = 31, "out_of_window", "a segment outside the window of its connection: forwarded, and nothing noted of it";
    Challenged = 32, "challenged", "a SYN for an open connection: answered with a challenge ACK, the connection is kept";
    CookieSent = 33, "cookie_sent", "a SYN was answered with a SYN cookie: nothing is kept of it until its client answers";
    CookieAnswered = 34, "cookie_answered", "a client answered its SYN cookie with the RST that RFC 9293 demands: its next SYN is served";
    CookieUnanswered = 35, "cookie_unanswered", "a SYN came again a second after its SYN cookie: its client, or a firewall before it, does not answer (syn_cookies_exempt)";
    IcmpTranslated = 36, "icmp_translated", "an ICMP error about a segment of a connection: translated, and sent to the side whose segment it is";
    IcmpRefused = 37, "icmp_refused", "an ICMP error that quotes a service and fits no connection, or no segment of it that is under way: dropped";
    TooLarge = 38, "too_large", "a packet that is larger than its way out takes: dropped, and its sender told (ICMP fragmentation needed)";
    TooLargeNoDf = 39, "too_large_no_df", "a packet without DF that is larger than its way out takes: dropped, since nothing is fragmented here; mss_clamp keeps senders from sending any";
    Damaged = 30, "damaged", "a record contradicts itself or the other tables: the segment is dropped";
}

/// What a reason is counted for: each group is a separate metric, whose sum has a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// A packet that was not simply forwarded.
    Packet,
    /// A new connection that was turned away.
    TurnedAway,
    /// A try to connect that failed.
    Try,
    /// A connection that ended.
    End,
    /// What should not happen: losses of our own book-keeping and emergencies.
    Anomaly,
}

impl Group {
    /// The word for it in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Group::Packet => "packet",
            Group::TurnedAway => "turned_away",
            Group::Try => "try",
            Group::End => "end",
            Group::Anomaly => "anomaly",
        }
    }
}

impl Reason {
    /// By the blocks in which the numbers are given out.
    pub const fn group(self) -> Group {
        match self as u8 {
            0..=9 | 20..=39 => Group::Packet,
            10..=19 => Group::TurnedAway,
            40..=59 => Group::Try,
            60..=79 => Group::End,
            _ => Group::Anomaly,
        }
    }
}

/// Size of the counter map: numbers of reasons stay below it.
pub const REASON_LIMIT: u32 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_unique_and_fit_the_counter_map() {
        let names: std::collections::HashSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert!((*reason as u32) < REASON_LIMIT);
            assert_eq!(Reason::from_number(*reason as u8), Some(*reason));
            assert!(!reason.meaning().is_empty());
        }
        assert_eq!(Reason::from_number(127), None);
    }

    #[test]
    fn a_reason_is_in_the_group_that_its_meaning_speaks_of() {
        for (reason, group) in [
            (Reason::NotOurs, Group::Packet),
            (Reason::UnknownFlow, Group::Packet),
            (Reason::HalfOpenJunk, Group::Packet),
            (Reason::NoBackend, Group::TurnedAway),
            (Reason::ClientLimit, Group::TurnedAway),
            (Reason::Refused, Group::Try),
            (Reason::TimeWait, Group::Try),
            (Reason::Closed, Group::End),
            (Reason::Killed, Group::End),
            (Reason::EventLost, Group::Anomaly),
            (Reason::AccessLogSuppressed, Group::Anomaly),
        ] {
            assert_eq!(reason.group(), group, "{reason:?}");
        }
    }
}
