//! Next hops and links through netlink, with a neighbour in another network namespace. Each test
//! has a network and a mount namespace for its own thread.

use std::{
    io::Write,
    net::IpAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use evenkeel::sys::netlink::{Change, Destination, NextHop, Watch, interface_of};
use nix::sched::{CloneFlags, unshare};
use tokio::{sync::mpsc::Receiver, time::timeout};

/// Far longer than anything here takes when it works.
const PATIENCE: Duration = Duration::from_secs(10);

/// Another host: a process that only holds a network namespace with the far end of our `ek0`.
struct Neighbour(Child);

impl Neighbour {
    /// Gives this thread its own network, 10.0.1.1/24 on `ek0`, and a neighbour that has
    /// `addresses`.
    fn new(addresses: &[&str]) -> Neighbour {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // When it can print, it has its namespace.
        let mut word = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut word).unwrap();
        let far = Neighbour(child);
        run(&format!(
            "ip link add ek0 address 02:00:00:00:00:01 type veth peer name ek1 address 02:00:00:00:00:99 netns {}",
            far.0.id()
        ));
        far.run("ip link set ek1 up");
        run("ip link set ek0 up");
        run("ip addr add 10.0.1.1/24 dev ek0");
        for address in addresses {
            far.run(&format!("ip addr add {address}/24 dev ek1"));
        }
        far
    }

    fn run(&self, command: &str) -> String {
        run(&format!("nsenter -t {} -n {command}", self.0.id()))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn in_tokio(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn destination(address: &str) -> Destination {
    Destination { address: address.parse().unwrap(), interface: None }
}

/// The next change of a next hop.
async fn next_hop(changes: &mut Receiver<Change>) -> (IpAddr, Option<NextHop>) {
    loop {
        let change = timeout(PATIENCE, changes.recv()).await.expect("a change").expect("the task lives");
        if let Change::NextHop { destination, hop } = change {
            return (destination.address, hop);
        }
    }
}

fn ifindex(interface: &str) -> u32 {
    evenkeel::sys::netdev::index_of(interface).unwrap()
}

const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

#[test]
fn twenty_backends_on_the_link_are_resolved_within_three_hundred_milliseconds() {
    let addresses: Vec<String> = (10..30).map(|host| format!("10.0.1.{host}")).collect();
    let _far = Neighbour::new(&addresses.iter().map(String::as_str).collect::<Vec<_>>());
    in_tokio(async {
        let (watch, mut changes) = Watch::start().unwrap();
        let begin = Instant::now();
        watch.want(addresses.iter().map(|address| destination(address)).collect());
        let mut found = Vec::new();
        for _ in &addresses {
            let (address, hop) = next_hop(&mut changes).await;
            assert_eq!(hop, Some(NextHop { ifindex: ifindex("ek0"), mac: FAR_MAC }));
            found.push(address.to_string());
        }
        assert!(begin.elapsed() < Duration::from_millis(300), "{:?}", begin.elapsed());
        found.sort();
        assert_eq!(found, addresses);
    });
}

#[test]
fn a_neighbour_is_kept_fresh_and_a_new_mac_is_reported() {
    let _far = Neighbour::new(&["10.0.1.10"]);
    in_tokio(async {
        let (watch, mut changes) = Watch::start().unwrap();
        watch.want(vec![destination("10.0.1.10")]);
        next_hop(&mut changes).await;
        run("ip neigh replace 10.0.1.10 lladdr 02:00:00:00:00:55 nud reachable dev ek0");
        let hop = next_hop(&mut changes).await.1.unwrap();
        assert_eq!(hop.mac, [2, 0, 0, 0, 0, 0x55]);
        // A doubted entry is only probed if somebody uses it: the wrong address is noticed without
        // that.
        run("ip neigh replace 10.0.1.10 lladdr 02:00:00:00:00:55 nud stale dev ek0");
        run("ip neigh change 10.0.1.10 nud probe dev ek0");
        let hop = next_hop(&mut changes).await.1.unwrap();
        assert_eq!(hop.mac, FAR_MAC);
    });
}

#[test]
fn backends_behind_a_router_have_its_mac_and_follow_their_route() {
    let far = Neighbour::new(&["10.0.1.254", "10.0.1.253"]);
    run("ip route add 10.9.0.0/24 via 10.0.1.254");
    in_tokio(async {
        let (watch, mut changes) = Watch::start().unwrap();
        watch.want(vec![destination("10.9.0.7")]);
        let expected = NextHop { ifindex: ifindex("ek0"), mac: FAR_MAC };
        assert_eq!(next_hop(&mut changes).await.1, Some(expected));
        run("ip route del 10.9.0.0/24");
        assert_eq!(next_hop(&mut changes).await.1, None, "no way there");
        run("ip route add 10.9.0.0/24 via 10.0.1.253");
        assert_eq!(next_hop(&mut changes).await.1, Some(expected));
        // Another link leads there now.
        run("ip link add ek2 type veth peer name ek3");
        run("ip link set ek2 up");
        run("ip addr add 10.9.0.1/25 dev ek2");
        assert_eq!(next_hop(&mut changes).await.1, None, "nobody answers on that link");
        run("ip link del ek2");
        assert_eq!(next_hop(&mut changes).await.1, Some(expected));
    });
    drop(far);
}

/// Clients that come before it has answered again are served rather than refused.
#[test]
fn a_neighbour_keeps_its_mac_while_the_link_is_down_or_made_anew() {
    let far = Neighbour::new(&["10.0.1.10"]);
    in_tokio(async {
        let (watch, mut changes) = Watch::start().unwrap();
        watch.want(vec![destination("10.0.1.10")]);
        next_hop(&mut changes).await;
        far.run("ip link set ek1 arp off");
        let begin = Instant::now();
        run("ip link set ek0 down");
        assert_eq!(next_hop(&mut changes).await.1, None);
        run("ip link set ek0 up");
        assert_eq!(next_hop(&mut changes).await.1, Some(NextHop { ifindex: ifindex("ek0"), mac: FAR_MAC }));
        assert!(begin.elapsed() < Duration::from_millis(600), "{:?}", begin.elapsed());
        run("ip link del ek0");
        run("ip link add ek0 type veth peer name ek1");
        run("ip link set ek0 up");
        run("ip addr add 10.0.1.1/24 dev ek0");
        assert_eq!(next_hop(&mut changes).await.1, Some(NextHop { ifindex: ifindex("ek0"), mac: FAR_MAC }));
    });
}

#[test]
fn a_destination_can_be_bound_to_an_interface() {
    let _far = Neighbour::new(&["10.0.1.10"]);
    run("ip link add ek2 type veth peer name ek3");
    run("ip link set ek2 up");
    run("ip link set ek3 up");
    run("ip addr add 10.0.1.2/24 dev ek2");
    in_tokio(async {
        let (watch, mut changes) = Watch::start().unwrap();
        let address = "10.0.1.10".parse().unwrap();
        let bound = |name| Destination { address, interface: Some(ifindex(name)) };
        watch.want(vec![bound("ek2"), bound("ek0")]);
        let hop = next_hop(&mut changes).await.1.unwrap();
        assert_eq!(hop, NextHop { ifindex: ifindex("ek0"), mac: FAR_MAC });
        let more = timeout(Duration::from_millis(300), next_hop(&mut changes)).await;
        assert!(more.is_err(), "nobody is on the other link");
    });
}

#[test]
fn a_backend_that_appears_later_is_found_within_a_second_or_two() {
    let far = Neighbour::new(&[]);
    in_tokio(async {
        let (watch, mut changes) = Watch::start().unwrap();
        watch.want(vec![destination("10.0.1.10")]);
        // It has failed by now: three probes, a second apart.
        let failed = async {
            while !run("ip neigh show dev ek0").contains("FAILED") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, failed).await.unwrap();
        far.run("ip addr add 10.0.1.10/24 dev ek1");
        let begin = Instant::now();
        assert!(next_hop(&mut changes).await.1.is_some());
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    });
}

#[test]
fn a_burst_of_a_thousand_foreign_messages_delays_nothing() {
    let _far = Neighbour::new(&["10.0.1.10", "10.0.1.11"]);
    in_tokio(async {
        let (watch, mut changes) = Watch::start().unwrap();
        watch.want(vec![destination("10.0.1.10")]);
        next_hop(&mut changes).await;
        let mut batch = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = batch.stdin.take().unwrap();
        for host in 0..1000 {
            let (high, low) = (host / 250, host % 250 + 1);
            writeln!(input, "neigh replace 10.7.{high}.{low} lladdr 02:11:00:00:{high:02x}:{low:02x} dev ek0").unwrap();
        }
        drop(input);
        assert!(batch.wait().unwrap().success());
        let begin = Instant::now();
        watch.want(vec![destination("10.0.1.10"), destination("10.0.1.11")]);
        assert_eq!(next_hop(&mut changes).await.0, "10.0.1.11".parse::<IpAddr>().unwrap());
        assert!(begin.elapsed() < Duration::from_millis(300), "{:?}", begin.elapsed());
    });
}

#[test]
fn links_are_reported_as_they_come_change_and_go() {
    let _far = Neighbour::new(&[]);
    in_tokio(async {
        let (_watch, mut changes) = Watch::start().unwrap();
        let found = async |changes: &mut Receiver<Change>, wanted: &dyn Fn(&Change) -> bool| {
            loop {
                let change = timeout(PATIENCE, changes.recv()).await.expect("a change").unwrap();
                if wanted(&change) {
                    return;
                }
            }
        };
        let number = ifindex("ek0");
        let ours = |mac, mtu, up| Change::Link { ifindex: number, name: "ek0".into(), mac, mtu, up, asked: true };
        found(&mut changes, &|change| *change == ours([2, 0, 0, 0, 0, 1], 1500, true)).await;
        run("ip link set ek0 address 02:00:00:00:00:02");
        found(&mut changes, &|change| *change == ours([2, 0, 0, 0, 0, 2], 1500, true)).await;
        run("ip link set ek0 mtu 1400");
        found(&mut changes, &|change| *change == ours([2, 0, 0, 0, 0, 2], 1400, true)).await;
        run("ip link set ek0 down");
        found(&mut changes, &|change| *change == ours([2, 0, 0, 0, 0, 2], 1400, false)).await;
        run("ip link del ek0");
        found(&mut changes, &|change| *change == Change::LinkGone { ifindex: number }).await;
    });
}

#[test]
fn the_interface_of_a_listen_address_is_its_holders_or_the_routes() {
    let _far = Neighbour::new(&[]);
    run("ip link add ek2 type veth peer name ek3");
    run("ip link set ek2 up");
    run("ip addr add 10.0.1.100/32 dev ek2");
    in_tokio(async {
        let interface = async |address: &str| interface_of(address.parse().unwrap()).await;
        assert_eq!(interface("10.0.1.100").await.unwrap(), "ek2", "the one that has it");
        assert_eq!(interface("10.0.1.101").await.unwrap(), "ek0", "another host may have it now");
        let error = format!("{:#}", interface("192.0.2.1").await.unwrap_err());
        assert!(error.contains("192.0.2.1") && error.contains("`interface`"), "{error}");
    });
}
