//! SYN cookies, with clients and backends that are real kernels.

use std::time::{Duration, Instant};

use evenkeel::dataplane::tables_beside;
use lab::{client::hold::Opened, power::Dice, wait};
use lb_common::layout::COOKIES_ON;
use serde_json::Value;

use super::{
    HOOKS, VIP, all_alive,
    floods::{Flood, WITH_COOKIES, beside, is_served, random_syn},
    hold,
};
use crate::cluster::{Cluster, all_served, both};

/// How long after the end of a flood cookies are off at the latest: half-open connections end after
/// 3 s, and it must have been calm for 30.
const OFF: Duration = Duration::from_secs(60);

fn cookies(cluster: &Cluster) -> Value {
    cluster.evenkeel.status().expect("status")["services"][0]["syn_cookies"].clone()
}

fn events(cluster: &Cluster) -> String {
    cluster.evenkeel.done(&["events"]).expect("events")
}

fn counter(cluster: &Cluster, reason: &str) -> u64 {
    cluster.evenkeel.counter(reason).expect("a counter")
}

/// Connections of an ordinary client, which waits for each no longer than this.
fn open(cluster: &Cluster, count: u64, timeout: &str) -> Opened {
    cluster.hold(&["--timeout-ms", timeout]).open(count).expect("open")
}

#[test]
fn a_flood_turns_them_on_honest_clients_are_served_and_they_go_off_again() {
    both(|hook| {
        // The limit is 2,000 half-open connections.
        let cluster = Cluster::new(hook, |service| service.line("max_half_open = 4000"));
        assert_eq!((&cookies(&cluster)["on"], &cookies(&cluster)["reason"]), (&Value::Bool(false), &Value::Null));
        let mut held = hold(&cluster, 60, hook);
        let mut dice = Dice::new(4);
        let mut seen = None;
        let flood = Flood { rate: Some(5_000), time: Duration::from_secs(12) };
        let report = beside(
            &cluster,
            VIP,
            flood,
            move |_| random_syn(&mut dice, VIP),
            || seen = seen.take().or_else(|| Some(cookies(&cluster)).filter(|it| it["on"] == true)),
        );
        let over = Instant::now();
        let seen = seen.unwrap_or_else(|| panic!("{hook}: they never went on\n{}", cluster.evenkeel.log()));
        assert!(["half_open", "ring_full"].contains(&seen["reason"].as_str().unwrap()), "{hook}: {seen}");
        is_served(&report, WITH_COOKIES, hook);
        all_alive(&mut held, 60, hook);
        assert!(counter(&cluster, "cookie_sent") > 5_000 && counter(&cluster, "cookie_answered") > 50, "{hook}");
        let shown = cluster.evenkeel.done(&["status"]).expect("status");
        assert!(shown.contains("SYN cookies on since "), "{hook}: {shown}");
        assert!(events(&cluster).contains("sends SYN cookies: "), "{hook}: {}", events(&cluster));
        wait::until("they are off again", OFF, || (cookies(&cluster)["on"] == false).then_some(()))
            .unwrap_or_else(|late| panic!("{hook}: {late:#}: {}\n{}", cookies(&cluster), cluster.evenkeel.log()));
        assert!(over.elapsed() > Duration::from_secs(25), "{hook}: after {:?}", over.elapsed());
        assert!(events(&cluster).contains("sends no SYN cookies any more: no flood for 30 s"), "{hook}");
        let sent = counter(&cluster, "cookie_sent");
        all_served(&open(&cluster, 10, "5000"), 10, hook);
        assert_eq!(counter(&cluster, "cookie_sent"), sent, "{hook}");
    });
}

#[test]
fn ordinary_clients_are_served_when_each_is_sent_one_and_exempt_ones_are_sent_none() {
    for hook in HOOKS {
        let cluster = Cluster::new(hook, |service| service.line("syn_cookies = \"always\""));
        assert_eq!(cookies(&cluster)["reason"], "config", "{hook}");
        let opened = open(&cluster, 200, "5000");
        all_served(&opened, 200, hook);
        assert!(opened.slowest_ms < 900.0, "{hook}: no client has waited to send its SYN again: {opened:?}");
        let (sent, answered) = (counter(&cluster, "cookie_sent"), counter(&cluster, "cookie_answered"));
        assert!(answered >= 200 && sent >= answered, "{hook}: {sent} sent, {answered} answered");
        assert_eq!(counter(&cluster, "cookie_unanswered"), 0, "{hook}");

        let own = cluster.lab.client().addresses[0];
        let exempt = |list: &str| cluster.service.clone().line(&format!("syn_cookies_exempt = [{list}]"));
        cluster.reload(&exempt(&format!("\"192.0.2.0/24\", \"{own}\"")));
        all_served(&open(&cluster, 50, "5000"), 50, hook);
        assert_eq!(counter(&cluster, "cookie_sent"), sent, "{hook}");
        cluster.reload(&exempt("\"192.0.2.0/24\""));
        all_served(&open(&cluster, 20, "5000"), 20, hook);
        assert!(counter(&cluster, "cookie_sent") >= sent + 20, "{hook}: it is not exempt any longer");
        cluster.reload(&cluster.service.clone().line("syn_cookies_exempt = []"));
        assert_eq!(cookies(&cluster)["on"], true, "{hook}: a reload leaves them on");
    }
}

#[test]
fn clients_that_cannot_answer_are_told_of_and_are_served_when_they_are_exempt() {
    let cluster = Cluster::new("tc", |service| service.line("syn_cookies = \"always\""));
    // A firewall that takes the RST for invalid.
    cluster.lab.client().firewall(&[], &["tcp flags & (rst|ack) == rst drop"]).expect("nft");
    let opened = open(&cluster, 3, "2500");
    assert_eq!(opened.opened, 0, "{opened:?}");
    assert!(counter(&cluster, "cookie_unanswered") > 0);
    let told = || {
        Some(events(&cluster)).filter(|events| events.contains("clients that cannot are listed in syn_cookies_exempt"))
    };
    wait::until("the event", Duration::from_secs(5), told)
        .unwrap_or_else(|late| panic!("{late:#}: {}", events(&cluster)));
    let own = cluster.lab.client().addresses[0];
    cluster.reload(&cluster.service.clone().line(&format!("syn_cookies_exempt = \"{own}/32\"")));
    all_served(&open(&cluster, 10, "5000"), 10, "exempt");
}

#[test]
fn without_a_controller_the_kernel_program_turns_them_on_and_the_next_one_turns_them_off() {
    both(|hook| {
        let mut cluster = Cluster::new(hook, |service| service.line("max_half_open = 2000"));
        let mut held = hold(&cluster, 60, hook);
        let tables = tables_beside(cluster.evenkeel.bpffs()).expect("the tables");
        let key = tables.cookie_key().key;
        assert_ne!(key, [0; 2], "{hook}");
        cluster.evenkeel.kill();
        let mut dice = Dice::new(5);
        let flood = Flood { rate: Some(5_000), time: Duration::from_secs(8) };
        let report = beside(&cluster, VIP, flood, move |_| random_syn(&mut dice, VIP), || {});
        assert_eq!(tables.cookies(0), COOKIES_ON, "{hook}");
        is_served(&report, WITH_COOKIES, hook);
        assert_eq!(held.ask().expect("ask").answered, 60, "{hook}");
        cluster.evenkeel.run().expect("a second start");
        assert_eq!(
            (&cookies(&cluster)["on"], &cookies(&cluster)["reason"]),
            (&Value::Bool(true), &"kept".into()),
            "{hook}"
        );
        assert!(events(&cluster).contains("goes on sending SYN cookies"), "{hook}: {}", events(&cluster));
        assert_eq!(tables.cookie_key().key, key, "{hook}: cookies on their way are good");
        wait::until("they are off again", OFF, || (cookies(&cluster)["on"] == false).then_some(()))
            .unwrap_or_else(|late| panic!("{hook}: {late:#}\n{}", cluster.evenkeel.log()));
        all_alive(&mut held, 60, hook);
        all_served(&open(&cluster, 10, "5000"), 10, hook);
    });
}
