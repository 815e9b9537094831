use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use jiff::Timestamp;

use super::{
    past::{Past, PastCounters, Totals},
    state::{Action, Now, Order, Panel, Popup, Seen, Stage, State, Verb},
};
use crate::{
    api::types::{
        Backend, ConfigStatus, ConnectTime, Connections, Counters, DatapathMode, DatapathStatus, ServiceStatus, Status,
        SyncPeer, SyncStatus, VrrpAdverts, VrrpPeer, VrrpStatus, VrrpWeight,
    },
    words::{
        AdvertCounts, BackendReason, BackendState, Event, EventKind, EventLevel, RefusedDatagrams, SyncCounts,
        SyncState, VrrpState,
    },
};

pub fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Seconds after a start whose wall-clock time is always the same.
pub struct Clock(Instant);

impl Clock {
    pub fn new() -> Clock {
        Clock(Instant::now())
    }

    pub fn at(&self, seconds: u64) -> Now {
        let time = time("2026-11-25T12:00:00Z") + Duration::from_secs(seconds);
        Now { at: self.0 + Duration::from_secs(seconds), time }
    }
}

pub fn backend(name: &str, active: u64) -> Backend {
    Backend {
        service: "kube-apiserver".into(),
        name: name.into(),
        address: format!("10.0.1.1{}:6443", &name[name.len() - 1..]).parse().unwrap(),
        state: BackendState::Up,
        backup: false,
        reason: None,
        weight: 1,
        active,
        half_open: 0,
        total: 1000 + active,
        connect_failures: 0,
        resets: 0,
        bytes_in: 1 << 20,
        bytes_out: 1 << 30,
        connect_time_ms: ConnectTime { p50: Some(0.25), p99: Some(1.5) },
        last_change: time("2026-11-25T11:57:55Z"),
    }
}

/// Three backends of which one is down and one drains.
pub fn status() -> Status {
    let down = Backend {
        state: BackendState::Down,
        reason: Some(BackendReason::Refused),
        connect_failures: 7,
        ..backend("cp02", 0)
    };
    let draining =
        Backend { state: BackendState::Draining, reason: Some(BackendReason::Admin), ..backend("cp03", 1000) };
    Status {
        version: "0.1.0".into(),
        pid: 1,
        uptime_s: 93_784,
        config: ConfigStatus {
            file: "/etc/evenkeel/evenkeel.toml".into(),
            loaded_at: time("2026-11-24T10:00:00Z"),
            generation: 4,
        },
        services: vec![ServiceStatus {
            name: "kube-apiserver".into(),
            listen: vec!["10.0.1.100:6443".parse().unwrap()],
            balance: "least_conn".into(),
            datapath: vec![DatapathStatus {
                interface: "eth0".into(),
                mode: DatapathMode::Tc,
                reason: "veth".into(),
                mtu: 1500,
                behind: Vec::new(),
            }],
            connections: Connections { active: 2004, half_open: 2, capacity: 67_584, total: 12_345 },
            syn_cookies: None,
            backends: vec![backend("cp01", 1004), down, draining],
        }],
        vrrp: Vec::new(),
        sync: None,
        counters: Counters::from([("refused".into(), 7), ("acl_denied".into(), 0), ("client_fin".into(), 300)]),
    }
}

pub fn instance() -> VrrpStatus {
    VrrpStatus {
        name: "VI_1".into(),
        state: VrrpState::Master,
        priority: 90,
        base_priority: 150,
        addresses: vec!["10.0.1.100/24".into()],
        since: time("2026-11-25T11:00:00Z"),
        transitions: 3,
        master: None,
        interface: "eth0".into(),
        virtual_router_id: 251,
        version: 3,
        reason: "no advert was heard".into(),
        weights: vec![VrrpWeight { what: "no backend is up".into(), weight: -60 }],
        faults: Vec::new(),
        source: None,
        lease_ms: 3000,
        waits_for_flow_sync: false,
        peers: vec![VrrpPeer {
            address: "10.0.1.2".parse().unwrap(),
            priority: 100,
            last_heard: time("2026-11-25T10:59:00Z"),
        }],
        adverts: VrrpAdverts {
            counts: AdvertCounts { sent: 3600, ..AdvertCounts::default() },
            refused: BTreeMap::new(),
        },
    }
}

pub fn sync() -> SyncStatus {
    SyncStatus {
        listen: "10.0.1.1:9644".parse().unwrap(),
        error: None,
        master_of: vec!["10.0.1.100:6443".parse().unwrap()],
        send_failures: 0,
        peers: vec![SyncPeer {
            address: "10.0.1.2:9644".parse().unwrap(),
            state: SyncState::Synced,
            version: "0.1.0".into(),
            silent_ms: Some(12),
            waiting: 3,
            lag_ms: 20,
            counts: SyncCounts {
                datagrams_sent: 5000,
                flows_sent: 3000,
                ends_sent: 100,
                copies_sent: 2,
                flows_received: 7,
                copies_received: 1,
                unknown: 2,
                refused: RefusedDatagrams { not_authentic: 4, ..RefusedDatagrams::default() },
                ..SyncCounts::default()
            },
        }],
    }
}

pub fn event(number: u64, level: EventLevel, text: &str) -> Event {
    Event {
        number,
        time: time("2026-11-25T11:57:55Z"),
        level,
        kind: EventKind::Health,
        service: Some("kube-apiserver".into()),
        backend: Some("cp02".into()),
        instance: None,
        text: text.into(),
    }
}

pub fn seen() -> Seen {
    let ready = event(1, EventLevel::Info, "evenkeel 0.1.0 is ready");
    let events = vec![
        Event { service: None, backend: None, ..ready },
        event(2, EventLevel::Warn, "is out for 2.0 s: refused (3 failures)"),
    ];
    Seen { status: status(), events }
}

pub fn press(state: &mut State, now: Now, keys: &str) -> Vec<Action> {
    let key = |letter: char| match letter {
        '↓' => KeyCode::Down,
        '↑' => KeyCode::Up,
        '\t' => KeyCode::Tab,
        '⇟' => KeyCode::PageDown,
        letter => KeyCode::Char(letter),
    };
    keys.chars().map(|letter| state.key(KeyEvent::new(key(letter), KeyModifiers::NONE), now)).collect()
}

fn drain(backend: &str) -> Order {
    Order { verb: Verb::Drain, service: "kube-apiserver".into(), backend: backend.into() }
}

#[test]
fn an_order_is_given_only_after_a_yes() {
    let clock = Clock::new();
    let mut state = State::new(seen(), clock.at(0));
    assert_eq!(press(&mut state, clock.at(1), "d"), [Action::Nothing]);
    assert_eq!(state.popup, Popup::Confirm(drain("cp01")));
    for no in ["n", "q", "d", " "] {
        press(&mut state, clock.at(1), "d");
        assert_eq!((press(&mut state, clock.at(1), no), &state.popup), (vec![Action::Nothing], &Popup::None), "{no:?}");
    }
    assert_eq!(press(&mut state, clock.at(1), "dy"), [Action::Nothing, Action::Ask(drain("cp01"))]);
    for (key, verb) in [("my", Verb::Maint), ("ry", Verb::Ready)] {
        let asked = press(&mut state, clock.at(1), key).pop();
        assert_eq!(asked, Some(Action::Ask(Order { verb, ..drain("cp01") })));
    }
    // Ctrl-C ends the screen from anywhere, and is no yes.
    press(&mut state, clock.at(1), "d");
    assert_eq!(state.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), clock.at(1)), Action::Quit);
}

#[test]
fn a_backend_stays_selected_when_rows_move_and_come_and_go() {
    let clock = Clock::new();
    let mut state = State::new(seen(), clock.at(0));
    let selected = |state: &State| state.selected().map(|it| it.name.to_string());
    press(&mut state, clock.at(0), "↓");
    assert_eq!(selected(&state).as_deref(), Some("cp02"));
    press(&mut state, clock.at(0), "s");
    let order = |state: &State| {
        state.sorted(&state.seen.status.services[0]).iter().map(|it| it.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        (order(&state), selected(&state).as_deref()),
        (vec!["cp02".into(), "cp03".into(), "cp01".into()], Some("cp02"))
    );
    press(&mut state, clock.at(0), "s");
    assert_eq!(order(&state), ["cp01", "cp03", "cp02"], "by connections");
    press(&mut state, clock.at(0), "S");
    assert_eq!(order(&state), ["cp02", "cp03", "cp01"]);
    press(&mut state, clock.at(0), "↓↓↓↓");
    assert_eq!(selected(&state).as_deref(), Some("cp01"), "the last");
    let mut fewer = seen();
    fewer.status.services[0].backends.remove(0);
    state.answered(fewer, clock.at(1));
    assert_eq!(selected(&state).as_deref(), Some("cp02"), "the first, while it is away");
    state.answered(seen(), clock.at(2));
    assert_eq!(selected(&state).as_deref(), Some("cp01"));
    let mut nothing = seen();
    nothing.status.services.clear();
    state.answered(nothing, clock.at(3));
    press(&mut state, clock.at(3), "↓↑dmr");
    assert_eq!((selected(&state), &state.popup), (None, &Popup::None));
}

#[test]
fn silence_counts_from_the_last_answer_and_nothing_is_asked_meanwhile() {
    let clock = Clock::new();
    let mut state = State::new(seen(), clock.at(0));
    state.answered(seen(), clock.at(10));
    state.unanswered("refused".into(), clock.at(12));
    state.unanswered("no such file".into(), clock.at(15));
    let silence = state.silence.clone().expect("silence");
    assert_eq!((silence.since, silence.why.as_str()), (clock.at(10).time, "no such file"));
    press(&mut state, clock.at(15), "d");
    assert_eq!(state.popup, Popup::None);
    assert!(state.notice().is_some_and(|notice| notice.contains("does not answer")));
    state.answered(seen(), clock.at(16));
    assert_eq!(state.silence, None);
}

#[test]
fn a_notice_goes_with_the_next_key_or_after_a_while() {
    let clock = Clock::new();
    let mut state = State::new(seen(), clock.at(0));
    state.notify("done".into());
    state.passed(clock.at(7));
    assert_eq!(state.notice(), Some("done"));
    state.passed(clock.at(8));
    assert_eq!(state.notice(), None);
    state.notify("done".into());
    press(&mut state, clock.at(8), "↓");
    assert_eq!(state.notice(), None);
}

#[test]
fn keys_of_a_companion_come_first_and_never_through_a_question() {
    let clock = Clock::new();
    let mut state = State::new(seen(), clock.at(0));
    state.stage = Some(Stage { keys: vec!['k', '1'], ..Stage::default() });
    assert_eq!(press(&mut state, clock.at(0), "k1"), [Action::Stage('k'), Action::Stage('1')]);
    assert_eq!(press(&mut state, clock.at(0), "dk"), [Action::Nothing, Action::Nothing]);
    assert_eq!(press(&mut state, clock.at(0), "q"), [Action::Quit]);
}

#[test]
fn who_reads_older_events_goes_on_reading_them() {
    let clock = Clock::new();
    let mut state = State::new(seen(), clock.at(0));
    let mut more = seen();
    more.events.push(event(3, EventLevel::Info, "third"));
    state.answered(more.clone(), clock.at(1));
    assert_eq!(state.scroll, 0, "the newest");
    press(&mut state, clock.at(1), "⇟");
    let scroll = state.scroll;
    more.events.push(event(4, EventLevel::Info, "fourth"));
    state.answered(more, clock.at(2));
    assert_eq!(state.scroll, scroll + 1);
    press(&mut state, clock.at(2), "\t");
    assert_eq!((state.panel, state.scroll), (Panel::Counters, 0));
}

#[test]
fn rates_are_those_of_the_last_seconds_and_never_negative() {
    let clock = Clock::new();
    let mut past = Past::default();
    let totals = |opened| Totals { opened, ..Totals::default() };
    past.add(clock.at(0).at, totals(100));
    assert_eq!(past.rates, None, "one look says nothing");
    for (second, opened, rate) in [(1, 110, 10.0), (2, 120, 10.0), (3, 130, 10.0), (4, 190, 80.0 / 3.0)] {
        past.add(clock.at(second).at, totals(opened));
        let seen = past.rates.expect("a rate").opened;
        assert!((seen - rate).abs() < 1e-9, "second {second}: {seen}, not {rate}");
    }
    past.add(clock.at(5).at, totals(3));
    assert_eq!(past.rates.map(|rates| rates.opened), Some(0.0), "the tables were made again");
    past.add(clock.at(5).at + Duration::ZERO, totals(3));
    assert!(past.rates.is_some_and(|rates| rates.opened.is_finite()));
}

#[test]
fn counters_are_compared_with_two_minutes_ago() {
    let clock = Clock::new();
    let mut past = PastCounters::default();
    let counters = |count: u64| Counters::from([("refused".to_string(), count), ("never".to_string(), 0)]);
    for second in 0..=300 {
        past.add(clock.at(second).at, &counters(second));
    }
    let now = counters(300);
    let moved = past.moved(&now);
    assert_eq!((moved.len(), moved[0].reason, moved[0].all), (1, "refused", 300));
    assert!((110..=130).contains(&moved[0].lately), "{}", moved[0].lately);
}

#[test]
fn names_of_other_services_are_other_backends() {
    let clock = Clock::new();
    let mut two = seen();
    let mut other = two.status.services[0].clone();
    other.name = "konnectivity".into();
    for backend in &mut other.backends {
        backend.service = Arc::from("konnectivity");
    }
    two.status.services.push(other);
    let mut state = State::new(two, clock.at(0));
    press(&mut state, clock.at(0), "↓↓↓");
    let asked = press(&mut state, clock.at(0), "dy").pop();
    assert_eq!(asked, Some(Action::Ask(Order { service: "konnectivity".into(), ..drain("cp01") })));
}
