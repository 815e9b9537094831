//! VRRP on real hosts: with another evenkeel, with keepalived in both roles, and alone when
//! something goes wrong.

mod host_network;
mod leaves_nothing;
mod links;
mod pair;
mod split;
mod stopped;
mod takeover;
mod tracked;
mod with_frr;
mod with_keepalived;
mod without_program;
mod wrong;

use std::{fmt::Write as _, time::Duration};

use anyhow::Context;
use lab::{
    Capture, Host, Keepalived, Lab, Plan,
    daemon::{Evenkeel, Service},
    topology::Topology,
    wait,
};
use serde_json::Value;

/// Far longer than anything takes that is not measured.
const SOON: Duration = Duration::from_secs(10);
const VIP: &str = "10.0.1.100";

/// An instance as in the configuration file, with every key except `keys` at its default.
pub fn instance(priority: u8, keys: &[&str]) -> String {
    let mut text = format!(
        "[[vrrp]]\nname = \"VI_1\"\ninterface = \"eth0\"\nvirtual_router_id = 51\npriority = {priority}\n\
         addresses = [\"{VIP}/24\"]\n"
    );
    keys.iter().for_each(|key| _ = writeln!(text, "{key}"));
    text
}

/// The same for keepalived.
fn keepalived(state: &str, priority: u8, keys: &[&str]) -> String {
    format!(
        "vrrp_instance VI_1 {{\n  state {state}\n  interface eth0\n  virtual_router_id 51\n  priority {priority}\n  {}\n  \
         virtual_ipaddress {{\n    {VIP}/24\n  }}\n}}\n",
        keys.join("\n  ")
    )
}

/// A segment with a client, a backend and two balancers.
fn lab() -> Lab {
    Lab::build(&Plan::new(Topology::Segment).backends(1).pair()).expect("the lab")
}

pub fn second(lab: &Lab) -> &Host {
    lab.second.as_ref().expect("a pair has a second balancer")
}

fn service(lab: &Lab) -> String {
    Service::new(lab, "tc").toml()
}

/// evenkeel on a host, with the lab's service and this instance.
fn evenkeel(lab: &Lab, host: &Host, instance: &str) -> Evenkeel {
    let mut evenkeel = Evenkeel::on(lab, host, &(service(lab) + "\n" + instance)).expect("files");
    evenkeel.run().expect("evenkeel");
    evenkeel
}

/// evenkeel on both hosts, with `file` and the instance: the first is MASTER, the second BACKUP.
#[track_caller]
fn master_and_backup(lab: &Lab, file: &str, keys: &[&str]) -> (Evenkeel, Evenkeel) {
    let start = |host: &Host, priority, state| {
        let file = format!("{file}\n{}", instance(priority, keys));
        let mut evenkeel = Evenkeel::on(lab, host, &file).expect("files");
        evenkeel.run().expect("evenkeel");
        becomes(&evenkeel, state);
        evenkeel
    };
    (start(&lab.balancer, 150, "MASTER"), start(second(lab), 100, "BACKUP"))
}

/// The instance's entry in `evenkeel vrrp`.
pub fn report(evenkeel: &Evenkeel) -> anyhow::Result<Value> {
    report_of(evenkeel, "VI_1")
}

fn report_of(evenkeel: &Evenkeel, name: &str) -> anyhow::Result<Value> {
    let all = evenkeel.json(&["vrrp"])?;
    let instances = all.as_array().context("no list")?;
    instances.iter().find(|instance| instance["name"] == name).cloned().context("no instance")
}

/// What `evenkeel events` reports about VRRP.
fn told(evenkeel: &Evenkeel) -> Vec<String> {
    told_of(evenkeel, "vrrp")
}

/// The same of another kind.
pub fn told_of(evenkeel: &Evenkeel, kind: &str) -> Vec<String> {
    let events = evenkeel.json(&["events"]).expect("events");
    let of_kind = events.as_array().expect("a list").iter().filter(|event| event["kind"] == kind);
    of_kind.filter_map(|event| event["text"].as_str().map(str::to_owned)).collect()
}

/// Waits until an event contains this text.
#[track_caller]
fn is_told(evenkeel: &Evenkeel, what: &str) {
    is_told_of(evenkeel, "vrrp", what);
}

/// The same of another kind.
#[track_caller]
pub fn is_told_of(evenkeel: &Evenkeel, kind: &str, what: &str) {
    let told = || told_of(evenkeel, kind).iter().any(|text| text.contains(what)).then_some(());
    wait::until(what, SOON, told).unwrap_or_else(|late| panic!("{late:#}\n{}", evenkeel.log()));
}

pub fn state(evenkeel: &Evenkeel) -> String {
    report(evenkeel).ok().and_then(|report| report["state"].as_str().map(str::to_owned)).unwrap_or_default()
}

/// Waits until the instance is in a state.
#[track_caller]
pub fn becomes(evenkeel: &Evenkeel, wanted: &str) {
    let late = wait::until(wanted, SOON, || (state(evenkeel) == wanted).then_some(()));
    if let Err(late) = late {
        panic!("{late:#}, but {:?}\n{}", report(evenkeel), evenkeel.log());
    }
}

/// Whether a host has the VIP.
pub fn has_vip(host: &Host) -> bool {
    host.ip(&["address", "show", "dev", "eth0"]).expect("ip").contains(&format!(" {VIP}/"))
}

#[track_caller]
fn vip_goes(host: &Host, there: bool) {
    let what = format!("{} {} the VIP", host.name, if there { "gets" } else { "loses" });
    wait::until(&what, SOON, || (has_vip(host) == there).then_some(())).expect("the address");
}

/// The MAC address of a host's eth0.
pub fn mac(host: &Host) -> String {
    lab::arp::text(lab::arp::mac(host, "eth0").expect("a MAC address"))
}

/// Forgets an address and asks the segment for it: the MAC address of the host that answers, if
/// any.
pub fn resolve(host: &Host, address: &str) -> Option<String> {
    host.sysctl("net.ipv4.neigh.eth0.retrans_time_ms", "100").expect("sysctl");
    // It may not have been known.
    _ = host.ip(&["neighbour", "del", address, "dev", "eth0"]);
    host.run("bash", &["-c", &format!("echo > /dev/udp/{address}/9")]).expect("a datagram");
    let known = || {
        let text = host.ip(&["neighbour", "show", "to", address]).expect("ip");
        let word = text.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).map(str::to_owned);
        if word.is_some() { Some(word) } else { text.contains("FAILED").then_some(None) }
    };
    wait::until(&format!("ARP for {address}"), SOON, known).expect("an answer or none")
}
