use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::slot::State;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

use super::{types::*, *};
use crate::{
    client::{Client, Failure},
    handover::Upgraded,
    notice::{History, Kind, Notice},
    words::{BackendState, CookieReason, Event, Task, TaskState},
};

pub fn backend() -> Backend {
    Backend {
        service: "api".into(),
        name: "cp01".into(),
        address: "10.0.1.10:6443".parse().unwrap(),
        state: BackendState::SlowStart,
        backup: false,
        reason: None,
        weight: 1,
        active: 2,
        half_open: 1,
        total: 3,
        connect_failures: 4,
        resets: 5,
        bytes_in: 6,
        bytes_out: 7,
        connect_time_ms: ConnectTime { p50: Some(0.25), p99: None },
        last_change: jiff::Timestamp::from_second(1_795_475_761).unwrap(),
    }
}

fn conn(number: u32) -> Conn {
    Conn {
        client: (std::net::Ipv4Addr::from(0x0a00_0000 + number), 40_000).into(),
        service: "api".into(),
        backend: if number.is_multiple_of(2) { "cp01".into() } else { "cp02".into() },
        snat: "10.0.1.100:10240".parse().unwrap(),
        state: ConnState::Established,
        age_s: u64::from(number),
        idle_s: 0,
        bytes_in: 1,
        bytes_out: 2,
    }
}

pub fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        pid: 7,
        uptime_s: 1,
        config: ConfigStatus { file: "e.toml".into(), loaded_at: backend().last_change, generation: 1 },
        services: vec![ServiceStatus {
            name: "api".into(),
            listen: vec!["10.0.1.100:6443".parse().unwrap()],
            balance: "least_conn".into(),
            datapath: vec![DatapathStatus {
                interface: "eth0".into(),
                mode: DatapathMode::XdpGeneric,
                reason: "asked for".into(),
                mtu: 1500,
                behind: Vec::new(),
            }],
            connections: Connections { active: 2, half_open: 1, capacity: 22_528, total: 3 },
            syn_cookies: Some(CookieStatus {
                on: true,
                since: backend().last_change,
                reason: Some(CookieReason::HalfOpen),
            }),
            backends: vec![backend()],
        }],
        vrrp: vec![],
        sync: None,
        counters: Counters::from([("refused".into(), 4)]),
    }
}

pub fn report() -> Report {
    let connects = vec![Connects { times: [0; lb_common::layout::CONNECT_TIME_BUCKETS], sum_us: 0 }];
    Report { status: status(), reloaded: true, stranded: vec![], capacity: 1, connects, pools: vec![] }
}

#[test]
fn the_json_has_the_names_and_the_order_of_the_contract() {
    let backend_json = r#"{"service":"api","name":"cp01","address":"10.0.1.10:6443","state":"slow_start","backup":false,"reason":null,"weight":1,"active":2,"half_open":1,"total":3,"connect_failures":4,"resets":5,"bytes_in":6,"bytes_out":7,"connect_time_ms":{"p50":0.25,"p99":null},"last_change":"2026-11-23T23:16:01Z"}"#;
    assert_eq!(serde_json::to_string(&backend()).unwrap(), backend_json);
    let conn_json = r#"{"client":"10.0.0.2:40000","service":"api","backend":"cp01","snat":"10.0.1.100:10240","state":"established","age_s":2,"idle_s":0,"bytes_in":1,"bytes_out":2}"#;
    assert_eq!(serde_json::to_string(&conn(2)).unwrap(), conn_json);
    let status_json = format!(
        r#"{{"version":"0.1.0","pid":7,"uptime_s":1,"config":{{"file":"e.toml","loaded_at":"2026-11-23T23:16:01Z","generation":1}},"services":[{{"name":"api","listen":["10.0.1.100:6443"],"balance":"least_conn","datapath":[{{"interface":"eth0","mode":"xdp-generic","reason":"asked for","mtu":1500}}],"connections":{{"active":2,"half_open":1,"capacity":22528,"total":3}},"syn_cookies":{{"on":true,"since":"2026-11-23T23:16:01Z","reason":"half_open"}},"backends":[{backend_json}]}}],"vrrp":[],"counters":{{"refused":4}}}}"#
    );
    assert_eq!(serde_json::to_string(&status()).unwrap(), status_json);
    assert_eq!(serde_json::from_str::<Status>(&status_json).unwrap(), status());
}

#[test]
fn a_connection_s_state_has_the_same_word_as_the_slot_s() {
    for (slot, conn) in ConnState::ALL {
        assert_eq!(conn.to_string(), slot.name());
    }
    for slot in State::ALL {
        assert_eq!(ConnState::of(slot).is_some(), slot.is_active(), "{slot:?}");
    }
}

#[test]
fn a_filter_takes_what_fits_all_that_was_given() {
    let all = ConnsFilter::default();
    let backend = |name: &str| ConnsFilter { backend: Some(name.into()), ..Default::default() };
    let client = ConnsFilter { client: Some("10.0.0.4".parse().unwrap()), ..Default::default() };
    let state = ConnsFilter { state: Some(ConnState::HalfOpen), ..Default::default() };
    let older = ConnsFilter { older_s: Some(4), ..Default::default() };
    let both = ConnsFilter { older_s: Some(5), ..client.clone() };
    for (filter, taken) in [
        (all, true),
        (backend("cp01"), true),
        (backend("cp02"), false),
        (client, true),
        (state, false),
        (older, true),
        (both, false),
    ] {
        assert_eq!(filter.takes(&conn(4)), taken, "{filter:?}");
    }
}

/// A server on a separate thread, whose daemon answers with fixed values.
struct Running {
    folder: TempDir,
    history: Arc<History>,
    thread: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Running {
    fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    fn start(conns: u32) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let (ready, bound) = std::sync::mpsc::channel();
        let history = Arc::new(History::default());
        let thread = std::thread::spawn({
            let history = history.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let server = Server::bind(&socket, "evenkeel-no-such-group")?;
                    ready.send(())?;
                    let (requests, asked) = mpsc::channel(QUEUE);
                    let (end, ended) = oneshot::channel();
                    let daemon = tokio::spawn(answer(asked, conns, end));
                    server.serve(Daemon::new(requests, history), async { drop(ended.await) })?.await?;
                    daemon.await?;
                    server.remove()
                })
            }
        });
        bound.recv_timeout(Duration::from_secs(10)).expect("the server starts");
        Running { folder, history, thread: Some(thread) }
    }
}

pub fn upgraded() -> Upgraded {
    Upgraded { version: "0.2.0".into(), pid: 7 }
}

pub async fn answer(mut asked: mpsc::Receiver<Request>, conns: u32, end: oneshot::Sender<()>) {
    let mut end = Some(end);
    while let Some(request) = asked.recv().await {
        match request {
            Request::Ping(reply) => drop(reply.send(())),
            Request::Report(reply) => drop(reply.send(report())),
            Request::Vrrp(reply) => drop(reply.send(status().vrrp)),
            Request::Counters(reply) => drop(reply.send(status().counters)),
            Request::Conns(filter, reply) => {
                let taken: Vec<_> = (0..conns).map(conn).filter(|conn| filter.takes(conn)).collect();
                let total = taken.len() as u64;
                let rows = taken.into_iter().take(filter.limit.unwrap_or(usize::MAX)).collect();
                drop(reply.send(Ok(Conns { rows, total })));
            }
            Request::Trace(query, reply) => drop(reply.send(Err(Refused { errors: vec![format!("{query:?}")] }))),
            Request::InForce(reply) => drop(reply.send(Vec::new())),
            Request::Task(id, reply) => drop(reply.send(Ok(task(id)))),
            Request::Order(order, peer) => carry_out(order, peer),
            Request::Reload(reply) => {
                drop(reply.send(Err(Refused { errors: vec!["e.toml:1:1: no".into(), "two".into()] })))
            }
            Request::Upgrade(reply) => drop(reply.send(Ok(upgraded()))),
            Request::Stop { detach, reply } => {
                assert!(detach);
                drop(reply.send(Ok(())));
                end.take().map(|end| end.send(()));
            }
        }
    }
}

fn task(id: u64) -> Task {
    Task { id, state: TaskState::Running, total: 10, reset: 3, rate: 5 }
}

/// Says what arrived in a refusal, so that a test can see it.
fn carry_out(order: Order, peer: Peer) {
    assert_eq!(peer.uid, Some(nix::unistd::geteuid().as_raw()), "who asks is known from the socket");
    let seen = |asked: &dyn std::fmt::Debug| Refused { errors: vec![format!("{asked:?}")] };
    match order {
        Order::Drain(asked, reply) => drop(reply.send(Err(seen(&asked)))),
        Order::Maint(asked, reply) => drop(reply.send(Err(seen(&asked)))),
        Order::Ready(asked, reply) => drop(reply.send(Err(seen(&asked)))),
        Order::Set(asked, reply) => drop(reply.send(Err(seen(&asked)))),
        Order::Kill(asked, reply) => drop(reply.send(Err(seen(&asked)))),
        Order::Rebalance(asked, reply) => drop(reply.send(Err(seen(&asked)))),
        Order::Failover(asked, reply) => drop(reply.send(Err(seen(&asked)))),
        Order::StopTask(id, reply) => drop(reply.send(Ok(task(id)))),
    }
}

#[test]
fn orders_arrive_as_they_were_meant_and_what_is_no_order_is_refused() {
    let running = Running::start(0);
    let client = running.client();
    let refusal = |path: &str, body: serde_json::Value| match client.order(path, &body).map(|answer| answer.body) {
        Err(Failure::Refused(why)) => why,
        other => panic!("{path} {body}: {other:?}"),
    };
    let cases = [
        (
            "drain",
            json!({ "backend": "cp01" }),
            "Drain { backend: \"cp01\", service: None, deadline_ms: None, rate: 50 }",
        ),
        (
            "drain",
            json!({ "backend": "cp01", "service": "api", "deadline_ms": 5000, "rate": 7 }),
            "Drain { backend: \"cp01\", service: Some(\"api\"), deadline_ms: Some(5000), rate: 7 }",
        ),
        ("maint", json!({ "backend": "cp01" }), "Maint { backend: \"cp01\", service: None, reset: false }"),
        ("failover", json!({ "instance": "VI_1" }), "Failover { instance: \"VI_1\" }"),
        ("ready", json!({ "backend": "cp01" }), "Ready { backend: \"cp01\", service: None }"),
        (
            "set",
            json!({ "backend": "cp01", "weight": 3 }),
            "Set { backend: \"cp01\", service: None, weight: Some(3), max_conns: None }",
        ),
        (
            "kill",
            json!({ "connection": "10.0.0.1:5" }),
            "Kill { connection: Some(10.0.0.1:5), client: None, backend: None, service: None }",
        ),
        ("rebalance", json!({}), "Rebalance { service: None, rate: 5, tolerance: 1, dry_run: false }"),
        ("drain", json!({}), "missing field `backend`"),
        ("drain", json!({ "backend": "cp01", "rate": 0 }), "a nonzero u32"),
        ("drain", json!({ "backend": "cp01", "deadline": "5s" }), "unknown field `deadline`"),
        ("drain", json!({ "backend": "cp01", "deadline_ms": -1 }), "invalid value: integer `-1`"),
        ("maint", json!({ "backend": 1 }), "invalid type: integer `1`"),
        ("set", json!({ "backend": "cp01", "max_conns": 4_294_967_296_u64 }), "invalid value"),
        ("kill", json!({ "client": "somewhere" }), "invalid IP address"),
        ("rebalance", json!({ "tolerance": 0 }), "a nonzero u32"),
        ("rebalance", json!([1]), "invalid"),
    ];
    for (path, body, wanted) in cases {
        let why = refusal(&format!("/api/v1/{path}"), body);
        assert!(why.contains(wanted), "{path}: {why}");
    }
    assert_eq!(client.get("/api/v1/tasks/7").unwrap().read::<Task>().unwrap(), task(7));
    assert_eq!(client.post("/api/v1/tasks/8/stop").unwrap().read::<Task>().unwrap(), task(8));
    // Without a body, and not as JSON: a page in a browser could send that.
    let bare = client.post("/api/v1/drain").map(|answer| answer.body);
    assert!(matches!(&bare, Err(Failure::Refused(why)) if why.contains("application/json")), "{bare:?}");
}

#[test]
fn the_client_gets_what_the_daemon_answers_and_stop_ends_it() {
    let mut running = Running::start(10);
    let client = running.client();
    assert_eq!(client.get("/api/v1/status").unwrap().read::<Status>().unwrap(), status());
    assert_eq!(client.get("/api/v1/backends").unwrap().read::<Vec<Backend>>().unwrap(), [backend()]);
    assert_eq!(client.get("/api/v1/counters").unwrap().read::<Counters>().unwrap(), status().counters);
    let answer = client.get("/api/v1/conns?backend=cp01&older_s=4&limit=2").unwrap();
    assert_eq!(answer.total, Some(3));
    assert_eq!(answer.read::<Vec<Conn>>().unwrap(), [conn(4), conn(6)]);
    let limit = Duration::from_secs(10);
    assert_eq!(client.post_within("/api/v1/upgrade", limit).unwrap().read::<Upgraded>().unwrap(), upgraded());
    client.post("/api/v1/stop?detach=true").unwrap();
    assert!(client.wait_until_gone());
    running.thread.take().unwrap().join().unwrap().unwrap();
    assert!(!running.socket().exists());
}

#[test]
fn a_refusal_is_exit_1_and_nobody_there_is_exit_2() {
    let running = Running::start(0);
    let client = running.client();
    let cases = [
        (client.post("/api/v1/reload"), "e.toml:1:1: no\ntwo"),
        (client.get("/api/v1/reload"), "method not allowed for this resource"),
        (client.get("/api/v1/nothing"), "no such resource"),
        (
            client.get("/api/v1/conns?state=asleep"),
            "Failed to deserialize query string: state: unknown variant `asleep`",
        ),
        (
            client.get("/api/v1/conns?backends=x"),
            "Failed to deserialize query string: backends: unknown field `backends`",
        ),
    ];
    for (answer, wanted) in cases {
        match answer.map(|answer| answer.body) {
            Err(Failure::Refused(what)) => assert!(what.starts_with(wanted), "{what}"),
            other => panic!("{wanted}: {other:?}"),
        }
    }
    match Client::new(Path::new("/nonexistent/control.sock")).get("/api/v1/status").map(|answer| answer.body) {
        Err(Failure::Unreachable(what)) => assert!(what.contains("/nonexistent/control.sock: No such file"), "{what}"),
        other => panic!("{other:?}"),
    }
}

fn tell(history: &History, text: &str) {
    history.tell(Notice::daemon(log::Level::Info, Kind::Reload, text), jiff::Timestamp::from_second(5).unwrap());
}

#[test]
fn events_are_listed_newest_last_and_followed_until_the_daemon_ends() {
    let running = Running::start(0);
    let (client, history) = (running.client(), &running.history);
    ["one", "two", "three"].into_iter().for_each(|text| tell(history, text));
    let answer = client.get("/api/v1/events?limit=2").unwrap();
    let wanted = r#"[{"number":2,"time":"1970-01-01T00:00:05Z","level":"info","kind":"reload","service":null,"backend":null,"instance":null,"text":"two"},"#;
    assert!(answer.body.starts_with(wanted.as_bytes()), "{:?}", answer.body);
    let numbers = |events: Vec<Event>| events.into_iter().map(|event| event.number).collect::<Vec<_>>();
    assert_eq!(numbers(client.get("/api/v1/events?after=2").unwrap().read().unwrap()), [3]);

    let mut seen = Vec::new();
    let ended = client.follow("/api/v1/events?follow=true&limit=1", |event: Event| {
        seen.push(event.number);
        // What is reported now comes as well; the end of the history ends the answer.
        if event.number < 5 {
            tell(history, "more")
        } else {
            history.close()
        }
        Ok(ControlFlow::Continue(()))
    });
    assert!(matches!(ended, Err(Failure::Unreachable(_))), "{ended:?}");
    assert_eq!(seen, [3, 4, 5]);
    assert!(matches!(client.follow("/api/v1/events?after=x", |_: Event| panic!()), Err(Failure::Refused(_))));
}

#[test]
fn a_hundred_thousand_connections_are_answered_within_a_second() {
    let running = Running::start(100_000);
    let began = Instant::now();
    let answer = running.client().get("/api/v1/conns").unwrap();
    let took = began.elapsed();
    let rows: Vec<Conn> = answer.read().unwrap();
    assert_eq!((rows.len(), answer.total), (100_000, Some(100_000)));
    let backends: BTreeSet<Arc<str>> = rows.into_iter().map(|row| row.backend).collect();
    assert_eq!(backends.len(), 2);
    println!("100,000 rows, {} bytes: {took:?}", answer.body.len());
    // Unoptimised builds get more.
    assert!(took < Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 1 }), "{took:?}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn the_socket_of_a_live_daemon_is_not_taken_and_that_of_a_dead_one_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let runtime = runtime();
    let _guard = runtime.enter();
    let first = Server::bind(&socket, "evenkeel-no-such-group").unwrap();
    let mode = std::fs::metadata(&socket).unwrap();
    assert!(mode.file_type().is_socket());
    assert_eq!(mode.permissions().mode() & 0o7777, 0o660);
    let refused = Server::bind(&socket, "").err().expect("there is a daemon").to_string();
    assert!(refused.starts_with("another evenkeel runs with state_dir "), "{refused}");
    UnixStream::connect(&socket).expect("the first one still listens");

    drop(first); // as if killed: the socket stays
    assert!(socket.exists() && UnixStream::connect(&socket).is_err());
    let _second = Server::bind(&socket, "").unwrap();
    UnixStream::connect(&socket).expect("the second one listens");
}

#[test]
fn a_daemon_that_does_not_answer_is_told_from_one_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let runtime = runtime();
    let guard = runtime.enter();
    let server = Server::bind(&socket, "").unwrap();
    // Nothing takes requests: the queue's other end is gone.
    let (requests, asked) = mpsc::channel(1);
    drop(asked);
    drop(guard);
    let (end, ended) = oneshot::channel::<()>();
    let history = Arc::default();
    let thread = std::thread::spawn(move || {
        runtime.block_on(async { server.serve(Daemon::new(requests, history), async { drop(ended.await) })?.await })
    });
    match Client::new(&socket).get("/api/v1/status").map(|answer| answer.body) {
        Err(Failure::Unreachable(what)) => assert_eq!(what, "the daemon is busy or stopping: try again"),
        other => panic!("{other:?}"),
    }
    // A client that says nothing does not keep the server from ending.
    let _silent = UnixStream::connect(&socket).unwrap();
    end.send(()).unwrap();
    thread.join().unwrap().unwrap();
}
