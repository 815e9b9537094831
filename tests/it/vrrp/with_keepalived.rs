//! One evenkeel and one keepalived, in both roles, as on the day on which the first of two nodes is
//! replaced.

use super::*;

/// How both are configured.
struct Kind {
    name: &'static str,
    ours: &'static [&'static str],
    /// For evenkeel at 10.0.1.1 and at 10.0.1.2.
    ours_at: [&'static [&'static str]; 2],
    theirs: &'static [&'static str],
    theirs_at: [&'static [&'static str]; 2],
}

const FAST: &str = "advert_interval = \"100ms\"";

/// All dialects that they can use with each other over IPv4.
const KINDS: [Kind; 4] = [
    Kind {
        name: "version 2",
        ours: &["version = 2"],
        ours_at: [&[], &[]],
        theirs: &["version 2", "advert_int 1"],
        theirs_at: [&[], &[]],
    },
    Kind {
        name: "version 2 with a password",
        ours: &["version = 2", "auth_pass = \"kubernetes\""],
        ours_at: [&[], &[]],
        theirs: &["version 2", "advert_int 1", "authentication {\n    auth_type PASS\n    auth_pass kubernetes\n  }"],
        theirs_at: [&[], &[]],
    },
    Kind {
        name: "version 3",
        ours: &[FAST],
        ours_at: [&[], &[]],
        theirs: &["version 3", "advert_int 0.1"],
        theirs_at: [&[], &[]],
    },
    Kind {
        name: "version 3, unicast",
        ours: &[FAST],
        ours_at: [
            &["unicast_source = \"10.0.1.1\"", "unicast_peers = [\"10.0.1.2\"]"],
            &["unicast_source = \"10.0.1.2\"", "unicast_peers = [\"10.0.1.1\"]"],
        ],
        theirs: &["version 3", "advert_int 0.1"],
        theirs_at: [
            &["unicast_src_ip 10.0.1.1", "unicast_peer {\n    10.0.1.2\n  }"],
            &["unicast_src_ip 10.0.1.2", "unicast_peer {\n    10.0.1.1\n  }"],
        ],
    },
];

impl Kind {
    fn ours(&self, at: usize, priority: u8) -> String {
        instance(priority, &[self.ours, self.ours_at[at]].concat())
    }

    fn theirs(&self, at: usize, priority: u8) -> String {
        keepalived("BACKUP", priority, &[self.theirs, self.theirs_at[at]].concat())
    }
}

/// evenkeel is MASTER before keepalived, gives way in order, takes the address back by preemption,
/// and survives a crash of keepalived; then with the priorities swapped.
fn both_roles(kind: &Kind) {
    let lab = lab();
    let mut keepalived = Keepalived::start(second(&lab), &kind.theirs(1, 100)).expect("keepalived");
    vip_goes(second(&lab), true);
    let mut ours = evenkeel(&lab, &lab.balancer, &kind.ours(0, 150));
    becomes(&ours, "MASTER");
    vip_goes(second(&lab), false);
    ours.terminate().expect("an end in order");
    vip_goes(second(&lab), true);

    // keepalived is the better one now.
    ours.write(&(service(&lab) + "\n" + &kind.ours(0, 90))).expect("a file");
    ours.run().expect("evenkeel");
    becomes(&ours, "BACKUP");
    let heard = || report(&ours).ok().filter(|report| report["master"].as_str() == Some("10.0.1.2")).map(drop);
    wait::until("keepalived is heard", SOON, heard).expect(kind.name);
    keepalived.terminate().expect("an end in order");
    becomes(&ours, "MASTER");
    keepalived.run().expect("keepalived");
    vip_goes(second(&lab), true);
    becomes(&ours, "BACKUP");
    keepalived.kill().expect("kill -9");
    becomes(&ours, "MASTER");
    let refused = report(&ours).expect("a report")["adverts"]["refused"].clone();
    let none = refused.as_object().expect("reasons").values().all(|count| count == 0);
    assert!(none, "{}: {refused}", kind.name);
}

#[test]
fn version_2_without_a_password_in_both_roles() {
    both_roles(&KINDS[0]);
}

#[test]
fn version_2_with_a_password_in_both_roles() {
    both_roles(&KINDS[1]);
}

#[test]
fn version_3_in_both_roles() {
    both_roles(&KINDS[2]);
}

#[test]
fn version_3_by_unicast_in_both_roles() {
    both_roles(&KINDS[3]);
}

/// Two advertisements of a master at 10.0.1.1, a regular one and the resignation, without the IP
/// identification and the header checksum, which the kernel fills in.
fn advertisements(lab: &Lab, run: impl FnOnce()) -> Vec<Vec<u8>> {
    let seen = Capture::start_with(second(lab), "eth0", "proto 112 and src 10.0.1.1", &["-x"]).expect("tcpdump");
    run();
    let whole = || {
        let packets: Vec<_> = seen.packets().into_iter().map(|(_, bytes)| bytes).collect();
        packets.iter().any(|packet| packet.get(22) == Some(&0)).then_some(packets)
    };
    let packets = wait::until("a resignation", SOON, whole).expect("packets");
    let mut kinds: Vec<Vec<u8>> = Vec::new();
    for mut packet in packets {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
        if !kinds.contains(&packet) {
            kinds.push(packet);
        }
    }
    kinds
}

#[test]
fn advertisements_are_keepalived_s_byte_for_byte() {
    for kind in &KINDS {
        let lab = lab();
        let theirs = advertisements(&lab, || {
            let mut keepalived = Keepalived::start(&lab.balancer, &kind.theirs(0, 150)).expect("keepalived");
            vip_goes(&lab.balancer, true);
            keepalived.terminate().expect("an end in order");
        });
        let ours = advertisements(&lab, || {
            let mut ours = evenkeel(&lab, &lab.balancer, &kind.ours(0, 150));
            becomes(&ours, "MASTER");
            ours.terminate().expect("an end in order");
        });
        assert_eq!(ours.len(), 2, "{}: one of life and the resignation: {ours:02x?}", kind.name);
        assert_eq!(ours, theirs, "{}", kind.name);
    }
}

#[test]
fn over_ipv6_in_both_roles() {
    let lab = lab();
    for host in [&lab.balancer, second(&lab)] {
        host.sysctl("net.ipv6.conf.eth0.accept_dad", "0").expect("sysctl");
        host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "0").expect("sysctl");
    }
    let six = |text: String| text.replace("10.0.1.100/24", "fd00:1::100/64");
    let has = |host: &Host| host.ip(&["-6", "address", "show", "dev", "eth0"]).expect("ip").contains("fd00:1::100/");
    let goes = |host: &Host, there: bool| {
        wait::until("the VIP", SOON, || (has(host) == there).then_some(())).expect("the address");
    };
    let kind = &KINDS[2];
    let mut keepalived = Keepalived::start(second(&lab), &six(kind.theirs(1, 100))).expect("keepalived");
    goes(second(&lab), true);
    let mut ours = evenkeel(&lab, &lab.balancer, &six(kind.ours(0, 150)));
    becomes(&ours, "MASTER");
    goes(second(&lab), false);
    goes(&lab.balancer, true);
    ours.terminate().expect("an end in order");
    goes(second(&lab), true);
    ours.write(&(service(&lab) + "\n" + &six(kind.ours(0, 90)))).expect("a file");
    ours.run().expect("evenkeel");
    becomes(&ours, "BACKUP");
    keepalived.terminate().expect("an end in order");
    becomes(&ours, "MASTER");
    goes(&lab.balancer, true);
}
