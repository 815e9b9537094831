//! `evenkeel trace` with the shipped binary: an open connection is explained, and what would happen
//! to a SYN, without a trace of the question.

use lab::{Plan, StandIn, daemon::Service, topology::Topology, wait};
use serde_json::Value;

use crate::cluster::{Cluster, SOON, VIP, all_served, both};

/// A port that no connection has.
const STRANGER: &str = "10.0.1.101:7";

/// How often the same question is asked: more often than the lab's own ARP packets arrive in the
/// meantime.
const QUESTIONS: u64 = 20;

fn traced(cluster: &Cluster, about: &str) -> Value {
    cluster.evenkeel.json(&["trace", about]).unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.evenkeel.log()))
}

/// The only forecast for an address without a connection.
fn foretold(cluster: &Cluster, about: &str) -> Value {
    let trace = traced(cluster, about);
    assert_eq!(trace["connections"].as_array().map(Vec::len), Some(0), "{trace}");
    assert_eq!(trace["new"].as_array().map(Vec::len), Some(1), "{trace}");
    trace["new"][0].clone()
}

/// What a question must not change, and the frames that are not for the service: ARP alone moves
/// those.
fn state(cluster: &Cluster) -> ((Value, Value), u64) {
    let backends = cluster.evenkeel.backends().expect("backends");
    let counts = backends.iter().map(|backend| (backend.active, backend.total, backend.connect_failures));
    let mut counters = cluster.evenkeel.json(&["counters"]).expect("counters");
    let not_ours = counters["not_ours"].take().as_u64().expect("not_ours");
    ((serde_json::json!(counts.collect::<Vec<_>>()), counters), not_ours)
}

/// The clients of open connections.
fn clients(cluster: &Cluster) -> Vec<String> {
    let conns = cluster.evenkeel.json(&["conns"]).expect("conns");
    let rows = conns.as_array().expect("rows").iter();
    rows.map(|row| row["client"].as_str().expect("a client").to_owned()).collect()
}

#[test]
fn an_open_connection_is_explained_in_every_field_also_after_a_kill() {
    both(|hook| {
        let mut cluster = Cluster::new(hook, |service| service.line("per_client_connections = 50"));
        let mut held = cluster.hold(&[]);
        all_served(&held.open(3).expect("open"), 3, hook);
        let client = clients(&cluster).remove(0);
        let check = |cluster: &Cluster| {
            let trace = traced(cluster, &client);
            let it = &trace["connections"][0];
            assert_eq!(
                (trace["connections"].as_array().map(Vec::len), &trace["new"]),
                (Some(1), &Value::Array(vec![]))
            );
            assert_eq!((&it["service"], &it["listen"]), (&"kube-apiserver".into(), &VIP.into()), "{trace}");
            assert_eq!((&it["state"], &it["chosen"], &it["tries"]), (&"established".into(), &"up".into(), &1.into()));
            assert_eq!((&it["balance"], &it["counted"]), (&"least_conn".into(), &true.into()), "{trace}");
            let conns = cluster.evenkeel.json(&["conns"]).expect("conns");
            let row =
                conns.as_array().expect("rows").iter().find(|row| row["client"] == client.as_str()).expect("a row");
            for field in ["backend", "snat", "bytes_in", "bytes_out"] {
                assert_eq!(it[field], row[field], "{field}: {trace}");
            }
            for (side, bytes) in [("client_side", "bytes_in"), ("backend_side", "bytes_out")] {
                let number =
                    |field: &str| it[side][field].as_u64().unwrap_or_else(|| panic!("{side} {field}: {trace}"));
                let sent = (number("end") as u32).wrapping_sub(number("isn") as u32).wrapping_sub(1);
                assert_eq!(u64::from(sent), it[bytes].as_u64().expect("bytes"), "{side}: {trace}");
                assert_eq!((&it[side]["interface"], &it[side]["fin"]), (&"eth0".into(), &false.into()), "{trace}");
                assert_eq!(it[side]["mac"].as_str().map(str::len), Some(17), "{trace}");
            }
            let idle = it["idle_s"].as_f64().expect("idle") + it["idle_left_s"].as_f64().expect("what is left");
            assert!((599.0..601.0).contains(&idle), "{trace}");
            assert_eq!(it["connect_left_s"], Value::Null);
        };
        check(&cluster);
        cluster.evenkeel.kill();
        cluster.evenkeel.run().expect("a second start");
        check(&cluster);
        let told = cluster.evenkeel.done(&["trace", &client]).expect("trace");
        assert!(told.contains("established") && told.contains("by least_conn; it is up"), "{told}");
    });
}

#[test]
fn a_stranger_hears_where_its_syn_would_go_and_nothing_moves_by_the_question() {
    both(|hook| {
        let cluster = Cluster::new(hook, |service| service);
        let mut held = cluster.hold(&[]);
        all_served(&held.open(4).expect("open"), 4, hook);
        let (before, not_ours_before) = state(&cluster);
        let first = foretold(&cluster, STRANGER);
        for _ in 0..QUESTIONS {
            assert_eq!(foretold(&cluster, STRANGER), first, "{hook}: the same, however often it is asked");
        }
        let (after, not_ours) = state(&cluster);
        assert_eq!(after, before, "{hook}");
        assert!(not_ours - not_ours_before < QUESTIONS, "{hook}: a question is not counted as somebody else's frame");
        assert_eq!((&first["verdict"], &first["chosen"]), (&"forwarded".into(), &"up".into()), "{first}");
        assert_eq!((&first["reason"], &first["interface"]), (&Value::Null, &"eth0".into()), "{first}");
        let told = cluster.evenkeel.done(&["trace", STRANGER]).expect("trace");
        assert!(told.contains(&format!("goes to {}", first["backend"].as_str().expect("a name"))), "{told}");
        all_served(&held.open(1).expect("open"), 1, hook);
        let conns = cluster.evenkeel.json(&["conns"]).expect("conns");
        let rows = conns.as_array().expect("rows");
        assert!(rows.iter().any(|row| row["snat"] == first["snat"] && row["backend"] == first["backend"]), "{first}");
    });
}

#[test]
fn denied_over_the_limit_and_no_backend_are_foretold_with_their_reasons() {
    let plan = Plan::new(Topology::Segment).addresses(2);
    let cluster = Cluster::of(plan, "tc", |service| {
        service.line("rules = [\"allow 10.0.1.101\", \"deny all\"]").line("per_client_connections = 2")
    });
    let mut held = cluster.hold(&["--from", "10.0.1.101"]);
    all_served(&held.open(1).expect("open"), 1, "one");
    let let_in = foretold(&cluster, STRANGER);
    assert_eq!(let_in["rule"], serde_json::json!({ "number": 1, "text": "allow 10.0.1.101/32" }), "{let_in}");
    assert_eq!(let_in["client_limit"], serde_json::json!({ "limit": 2, "open": 1 }), "{let_in}");
    let denied = foretold(&cluster, "10.0.1.102:7");
    assert_eq!((&denied["verdict"], &denied["reason"]), (&"refused".into(), &"denied".into()), "{denied}");
    assert_eq!(denied["rule"], serde_json::json!({ "number": 2, "text": "deny all" }), "{denied}");
    all_served(&held.open(1).expect("open"), 1, "two");
    let over = foretold(&cluster, STRANGER);
    assert_eq!((&over["verdict"], &over["reason"]), (&"refused".into(), &"client_limit".into()), "{over}");
    for reason in ["denied", "client_limit", "access_log_suppressed"] {
        assert_eq!(cluster.evenkeel.counter(reason).expect("counters"), 0, "{reason}");
    }

    let down = (0..3).fold(Service::new(&cluster.lab, "tc"), |service, n| service.backend_line(n, "down = true"));
    cluster.evenkeel.write(&down.toml()).expect("a configuration");
    cluster.evenkeel.done(&["reload"]).expect("reload");
    let nobody = foretold(&cluster, STRANGER);
    assert_eq!((&nobody["verdict"], &nobody["reason"]), (&"refused".into(), &"no_backend".into()), "{nobody}");
    assert_eq!(cluster.evenkeel.counter("no_backend").expect("counters"), 0);
    let states = |foretold: &Value| -> Vec<(Value, Value)> {
        let backends = foretold["backends"].as_array().expect("backends").iter();
        backends.map(|backend| (backend["state"].clone(), backend["reason"].clone())).collect()
    };
    assert_eq!(states(&nobody), vec![("down".into(), "config".into()); 3], "{nobody}");

    cluster.reload(&Service::new(&cluster.lab, "tc"));
    for name in ["cp01", "cp02", "cp03"] {
        cluster.evenkeel.done(&["drain", name]).expect("drain");
    }
    let drained = foretold(&cluster, STRANGER);
    assert_eq!((&drained["verdict"], &drained["reason"]), (&"refused".into(), &"no_backend".into()), "{drained}");
    assert_eq!(states(&drained), vec![("draining".into(), "admin".into()); 3], "{drained}");
    cluster.evenkeel.done(&["ready", "cp02"]).expect("ready");
    assert_eq!(foretold(&cluster, STRANGER)["backend"], "cp02");
    assert_eq!(held.ask().expect("ask").answered, 2);
}

#[test]
fn a_syn_cookie_that_comes_first_is_foretold_unless_the_client_is_exempt() {
    let plan = Plan::new(Topology::Segment).addresses(2);
    let cluster = Cluster::of(plan, "tc", |service| {
        service.line("syn_cookies = \"always\"").line("syn_cookies_exempt = [\"10.0.1.102\"]")
    });
    let first = |about: &str| foretold(&cluster, about)["syn_cookie"].clone();
    assert_eq!((first(STRANGER), first("10.0.1.102:7")), (true.into(), false.into()));
}

#[test]
fn failed_tries_are_named_and_what_cannot_be_asked_is_refused() {
    let mut cluster = Cluster::new("tc", |service| service);
    cluster.standins[..2].iter_mut().for_each(StandIn::kill);
    let mut held = cluster.hold(&["--parallel", "1"]);
    all_served(&held.open(3).expect("open"), 3, "one serves");
    let with_failures = || {
        let traces = clients(&cluster).into_iter().map(|client| traced(&cluster, &client)["connections"][0].clone());
        traces.into_iter().find(|it| it["tries"].as_u64() > Some(1) && it["failed"][0].is_string())
    };
    let it = wait::until("a connection that tried twice", SOON, with_failures).expect("a trace");
    assert_eq!(it["failed"].as_array().map(Vec::len), it["tries"].as_u64().map(|tries| tries as usize - 1), "{it}");
    assert_eq!(it["backend"], "cp03", "{it}");

    for (arguments, code) in [
        (&["trace", "10.0.1.101:7", "--service", "nobody"][..], 1),
        (&["trace", "[fd00::1]:7"], 1),
        (&["trace", "10.0.1.101"], 1),
        (&["trace"], 1),
        (&["trace", "10.0.1.101:7", "--service", "kube-apiserver"], 0),
    ] {
        let answer = cluster.evenkeel.command(arguments).expect("trace");
        assert_eq!(answer.code, code, "{arguments:?}: {}{}", answer.out, answer.err);
    }
    cluster.evenkeel.kill();
    assert_eq!(cluster.evenkeel.command(&["trace", STRANGER]).expect("trace").code, 2);
}
