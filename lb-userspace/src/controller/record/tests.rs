use super::*;
use lb_common::event::RECOVERED;

const SECOND: u64 = 1_000_000_000;

fn names() -> Names {
    let backend = |host: u8| (Arc::from(format!("cp{host}")), SocketAddr::from(([10, 0, 1, host], 6443)));
    Names {
        services: BTreeMap::from([(0, Arc::from("kube-apiserver"))]),
        backends: BTreeMap::from([(0, backend(10)), (1, backend(11))]),
        listeners: BTreeMap::from([(7, SocketAddr::from(([10, 0, 1, 100], 6443)))]),
        pools: BTreeMap::from([(
            3,
            Pool { snat: lb_common::address::to_mapped([10, 0, 1, 100]), first_port: 10_240, ..Pool::default() },
        )]),
    }
}

fn event(kind: u8, reason: Reason, backend: u16) -> Event {
    Event {
        at: Instant(100 * SECOND),
        started: Instant(40 * SECOND),
        bytes_in: 11,
        bytes_out: 22,
        client: lb_common::address::to_mapped([10, 0, 9, 9]),
        client_port: 50_000_u16.to_be_bytes(),
        listener: 7,
        service: 0,
        backend,
        pool: 3,
        slot: 5,
        generation: 1,
        connect_us: 1500,
        kind,
        reason: reason as u8,
        tries: 1,
        family: 4,
    }
}

fn now() -> Now {
    Now { monotonic: Instant(101 * SECOND), wall: Timestamp::from_second(1_800_000_000).expect("a time") }
}

#[test]
fn a_served_connection_is_one_line_with_all_it_had() {
    let record = Recorder::default().event(&event(ENDED, Reason::Closed, 1), &names(), now()).expect("a record");
    assert_eq!(record.client, SocketAddr::from(([10, 0, 9, 9], 50_000)));
    assert_eq!(record.server, SocketAddr::from(([10, 0, 1, 100], 6443)));
    assert_eq!(record.ended, Timestamp::from_second(1_799_999_999).expect("a time"), "a second before it was read");
    assert_eq!((record.session, record.bytes_received, record.bytes_sent), (Duration::from_secs(60), 11, 22));
    assert_eq!((record.status, record.reason), (Status::Served, Some(Reason::Closed)));
    let tried =
        Try { address: SocketAddr::from(([10, 0, 1, 11], 6443)), connected_in: Some(Duration::from_micros(1500)) };
    assert_eq!(record.tries, [tried]);
    assert_eq!((record.backend.as_deref(), &*record.service), (Some("cp11"), "kube-apiserver"));
    assert_eq!(record.snat, Some(SocketAddr::from(([10, 0, 1, 100], 10_245))));
}

#[test]
fn failed_tries_stand_before_the_one_that_served_as_in_nginx() {
    let mut recorder = Recorder::default();
    assert_eq!(recorder.event(&event(TRY_FAILED, Reason::Refused, 0), &names(), now()), None);
    let record = recorder.event(&event(ENDED, Reason::ClientReset, 1), &names(), now()).expect("a record");
    let connected: Vec<_> = record.tries.iter().map(|tried| tried.connected_in.is_some()).collect();
    assert_eq!((connected, record.status), (vec![false, true], Status::Served));
    assert!(recorder.failed.is_empty(), "forgotten when it ended");
}

#[test]
fn tries_of_another_connection_of_the_same_client_port_are_not_mixed_in() {
    let mut recorder = Recorder::default();
    recorder.event(&event(TRY_FAILED, Reason::Refused, 0), &names(), now());
    let later = Event { started: Instant(41 * SECOND), ..event(ENDED, Reason::Closed, 1) };
    assert_eq!(recorder.event(&later, &names(), now()).expect("a record").tries.len(), 1);
}

#[test]
fn all_tries_failed_is_502_with_every_address() {
    let mut recorder = Recorder::default();
    recorder.event(&event(TRY_FAILED, Reason::Refused, 0), &names(), now());
    recorder.event(&event(TRY_FAILED, Reason::ConnectTimeout, 1), &names(), now());
    let turned = Event { connect_us: 0, ..event(TURNED_AWAY, Reason::ConnectTimeout, 1) };
    let record = recorder.event(&turned, &names(), now()).expect("a record");
    assert_eq!((record.status, record.tries.len()), (Status::NoBackend, 2));
    assert!(record.tries.iter().all(|tried| tried.connected_in.is_none()));
}

#[test]
fn every_reason_to_turn_a_client_away_has_nginx_status() {
    for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::Unconfirmed) {
        let turned =
            Event { backend: u16::MAX, pool: u16::MAX, started: Instant::ZERO, ..event(TURNED_AWAY, *reason, 0) };
        let record = Recorder::default().event(&turned, &names(), now()).expect("a record");
        let expected = match reason {
            Reason::Denied => Status::Denied,
            Reason::NoSlot | Reason::IndexFull | Reason::ClientLimit | Reason::HalfOpenEvicted => Status::OverLimit,
            _ => Status::NoBackend,
        };
        assert_eq!((record.status, record.tries.len(), record.backend, record.snat), (expected, 0, None, None));
        assert_eq!(record.session, Duration::ZERO);
    }
}

#[test]
fn a_syn_from_anybodys_address_makes_no_line() {
    let ended = event(ENDED, Reason::Unconfirmed, 1);
    assert_eq!(Recorder::default().event(&ended, &names(), now()), None);
}

#[test]
fn a_half_open_connection_that_an_operator_kills_was_not_served() {
    let killed = Event { connect_us: 0, ..event(ENDED, Reason::Killed, 1) };
    let record = Recorder::default().event(&killed, &names(), now()).expect("a record");
    assert_eq!((record.status, record.reason), (Status::NoBackend, Some(Reason::Killed)));
    assert_eq!(record.tries, [Try { address: SocketAddr::from(([10, 0, 1, 11], 6443)), connected_in: None }]);
    let connected = Recorder::default().event(&event(ENDED, Reason::Killed, 1), &names(), now()).expect("a record");
    assert_eq!(connected.status, Status::Served);
}

#[test]
fn a_client_that_gives_up_before_the_backend_answers_was_not_served() {
    let gone = event(ENDED, Reason::ClientAborted, 0);
    let record = Recorder::default().event(&gone, &names(), now()).expect("a record");
    assert_eq!((record.status, record.tries[0].connected_in), (Status::NoBackend, None));
}

#[test]
fn a_recovery_is_no_line() {
    assert_eq!(Recorder::default().event(&event(RECOVERED, Reason::NotOurs, 0), &names(), now()), None);
}

#[test]
fn what_is_remembered_of_failed_tries_is_bounded() {
    let mut recorder = Recorder::default();
    for started in 0..3 * REMEMBERED as u64 {
        let failed = Event { started: Instant(started + 1), ..event(TRY_FAILED, Reason::Refused, 0) };
        recorder.event(&failed, &names(), now());
    }
    assert_eq!((recorder.failed.len(), recorder.order.len()), (REMEMBERED, REMEMBERED));
}
