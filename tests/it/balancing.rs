//! Real connections through the real program in the kernel to stand-in API servers, with the
//! shipped binary.

use lab::{StandIn, client::bulk, daemon::kubectl};

use crate::cluster::{Cluster, SOON, VIP, both};

#[test]
fn thirty_held_connections_spread_evenly_and_ten_that_end_are_replaced_however_they_ended() {
    both(|datapath| {
        let cluster = Cluster::new(datapath, |service| service);
        let mut held = cluster.hold(&[]);
        let opened = held.open(30).expect("open");
        assert_eq!((opened.opened, opened.failed.len()), (30, 0), "{datapath}: {opened:?}");
        cluster.active([10, 10, 10]);
        for how in ["fin", "rst"] {
            held.close(10, "cp02", how).expect("close");
            cluster.active([10, 0, 10]);
            let again = held.open(10).expect("open");
            assert_eq!(again.by, [("cp02".to_owned(), 10)].into(), "{datapath}, {how}");
        }
    });
}

#[test]
fn weights_share_out_as_nginx_does() {
    let cluster = Cluster::new("tc", |service| service.backend_line(0, "weight = 3"));
    cluster.hold(&[]).open(50).map(|opened| assert_eq!(opened.by.get("cp01"), Some(&30), "{opened:?}")).expect("open");
}

#[test]
fn idle_connections_are_reset_on_both_sides_after_idle_timeout() {
    let cluster = Cluster::new("tc", |service| service.line("idle_timeout = \"2s\""));
    let mut held = cluster.hold(&[]);
    held.open(9).expect("open");
    cluster.active([3, 3, 3]);
    cluster.active([0, 0, 0]);
    let ended = lab::wait::until("clients saw the RSTs", SOON, || held.status().ok().filter(|status| status.open == 0));
    assert_eq!(ended.expect("ended").ended.get("reset"), Some(&9));
}

#[test]
fn with_two_of_three_refusing_no_client_fails() {
    both(|datapath| {
        let mut cluster = Cluster::new(datapath, |service| service);
        // A closed port, and a firewall that rejects with a RST.
        cluster.standins[0].kill();
        cluster.lab.backends[1].reject_syns(6443).expect("nft");
        let opened = cluster.hold(&[]).open(30).expect("open");
        assert_eq!((opened.opened, opened.failed.len()), (30, 0), "{datapath}: {opened:?}");
        assert_eq!(opened.by, [("cp03".to_owned(), 30)].into());
    });
}

#[test]
fn with_one_silent_no_client_fails_and_none_waits_longer_than_connect_timeout() {
    both(|datapath| {
        let cluster = Cluster::new(datapath, |service| service.line("connect_timeout = \"1s\""));
        cluster.lab.backends[1].drop_syns(6443).expect("nft");
        let opened = cluster.hold(&["--timeout-ms", "5000"]).open(30).expect("open");
        assert_eq!((opened.opened, opened.failed.len()), (30, 0), "{datapath}: {opened:?}");
        assert!(opened.slowest_ms < 1300.0, "{datapath}: {opened:?}");
    });
}

#[test]
fn with_all_refusing_the_client_is_refused_at_once() {
    let mut cluster = Cluster::new("tc", |service| service);
    cluster.standins.iter_mut().for_each(StandIn::kill);
    let opened = cluster.hold(&[]).open(1).expect("open");
    assert_eq!(opened.failed, [("refused".to_owned(), 1)].into(), "{opened:?}");
}

#[test]
fn kubectl_and_bulk_transfers_over_tls_pass_unharmed_through_both_hooks() {
    both(|datapath| {
        let cluster = Cluster::new(datapath, |service| service);
        let server = format!("--server=https://{VIP}");
        let told = kubectl(cluster.lab.client(), &[&server, "get", "--raw", "/version"]).expect("kubectl");
        assert!(told.contains("v1.33.0"), "{told}");
        for direction in ["download", "upload"] {
            bulk::transfer(cluster.lab.client(), VIP, direction, 1 << 30)
                .unwrap_or_else(|error| panic!("{datapath}, {direction}: {error:#}"));
        }
    });
}

#[test]
fn stop_detach_leaves_nothing_behind() {
    let mut cluster = Cluster::new("tc", |service| service);
    let folder = cluster.evenkeel.bpffs().to_owned();
    assert!(folder.exists());
    cluster.evenkeel.stop_detach().expect("stop --detach");
    assert!(!folder.exists(), "pins are left");
}
