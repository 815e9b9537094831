//! `$bytes_sent` and `$bytes_received` compared with what clients and servers know themselves, over
//! a network that loses and duplicates frames.

use std::{collections::BTreeMap, fs};

use lab::{
    Evenkeel, Host, Lab, Plan,
    daemon::Service,
    topology::{PORT, Topology, VIP},
    wait,
};

use super::{
    log_to,
    traffic::{self, End, Servers, Talk},
};
use crate::cluster::{SOON, both_at_once};

/// Every kind of end with every size: none, less than a segment, some, and more than a window.
fn talks() -> Vec<Talk> {
    let ends = [End::Client, End::Server, End::Half, End::ClientReset, End::ServerReset];
    let sizes = [(0, 0), (1, 1), (1_000, 100_000), (100_000, 1_000), (300_000, 2_000_000), (2_000_000, 300_000)];
    let of =
        |end| sizes.map(|(up, down)| Talk { up, down: if end == End::ClientReset { down.max(1) } else { down }, end });
    let silent = Talk { up: 0, down: 0, end: End::Silent };
    ends.into_iter().flat_map(of).chain([silent; 3]).collect()
}

/// One frame in forty is lost on its way in and on its way out, and one in forty leaves twice. RSTs
/// are never lost, because no host would send them again. The sender's TCP learns of a frame lost
/// on its way out (`EPERM`) and takes it as never sent. So that frame must not have been duplicated
/// first: the sender would refuse its acknowledgement forever.
fn make_lossy(host: &Host) {
    let lose = "tcp flags & rst == 0 numgen random mod 40 0 drop";
    let double = format!("ip protocol tcp numgen random mod 40 1 dup to {VIP} device \"eth0\"");
    let rules = format!(
        "table ip lossy {{
           chain in {{ type filter hook input priority 0; {lose}; }}
           chain out {{ type filter hook postrouting priority 0; {lose}; {double}; }}
         }}"
    );
    host.run("nft", &[&rules]).expect("nft");
}

#[test]
fn bytes_are_those_that_client_and_server_transferred_whatever_is_lost_and_sent_again() {
    both_at_once(|hook| {
        let plan = Plan::new(Topology::Segment);
        let lab = Lab::build(&if hook == "xdp" { plan.for_xdp() } else { plan }).expect("the lab");
        let _servers = Servers::start(&lab.backends);
        let path = lab.folder().join("access.log");
        let format = "$remote_port $bytes_received $bytes_sent $status $reason";
        let service = log_to(Service::new(&lab, hook), &path, format);
        let evenkeel = Evenkeel::start(&lab, &service.toml()).expect("evenkeel");
        lab.backends.iter().chain([lab.client()]).for_each(make_lossy);
        let seen = traffic::all(lab.client(), (VIP, PORT), &talks(), 16);
        let again =
            lab.backends.iter().chain([lab.client()]).map(|host| host.tcp_counter("RetransSegs").expect("snmp"));
        println!("{hook}: {} connections, {} segments sent again", seen.len(), again.sum::<u64>());

        let all = || fs::read_to_string(&path).ok().filter(|text| text.lines().count() == seen.len());
        let text = wait::until("a line of each", SOON, all)
            .unwrap_or_else(|error| panic!("{hook}: {error:#}\n{:?}\n{}", fs::read_to_string(&path), evenkeel.log()));
        let lines: BTreeMap<u16, &str> = text
            .lines()
            .map(|line| line.split_once(' ').expect("a port"))
            .map(|(port, rest)| (port.parse().expect("a port"), rest))
            .collect();
        for (talk, seen) in &seen {
            let reason = match talk.end {
                End::ClientReset => "client_reset",
                End::ServerReset => "backend_reset",
                _ => "closed",
            };
            let wanted = format!("{} {} 200 {reason}", seen.sent, seen.received);
            assert_eq!(lines.get(&seen.port), Some(&&*wanted), "{hook}: {talk:?} {seen:?}");
        }
    });
}
