//! Clients that are reached otherwise than their frames come.

use lab::Host;

use crate::cluster::{Cluster, all_served, both};

/// Lets every TCP packet of a host leave with another sender than the one that answers ARP.
fn send_as_another(host: &Host) {
    let rules = "add table netdev other; add chain netdev other out \
                 { type filter hook egress device \"eth0\" priority 0; }; \
                 add rule netdev other out ip protocol tcp ether saddr set 02:aa:aa:aa:aa:aa";
    host.run("nft", &[rules]).expect("nft");
}

/// A client with a connection.
fn a_client(cluster: &Cluster) -> String {
    let conns = cluster.evenkeel.json(&["conns"]).expect("conns");
    conns[0]["client"].as_str().expect("a client").to_owned()
}

#[test]
fn a_client_that_sends_from_another_mac_than_it_listens_at_is_served() {
    both(|hook| {
        let cluster = Cluster::new(hook, |service| service);
        send_as_another(cluster.lab.client());
        // The client asks for our address just before, so its first SYN may have to come twice.
        let mut held = cluster.hold(&[]);
        all_served(&held.open(1).expect("open"), 1, hook);
        let opened = held.open(20).expect("open");
        all_served(&opened, 20, hook);
        assert!(opened.slowest_ms < 900.0, "{hook}: none has to be sent twice: {opened:?}");
        assert_eq!(held.ask().expect("ask").answered, 21, "{hook}");
        let trace = cluster.evenkeel.json(&["trace", &a_client(&cluster)]).expect("trace");
        assert_eq!(trace["connections"][0]["client_side"]["way"], "neighbour", "{hook}: {trace}");
    });
}
