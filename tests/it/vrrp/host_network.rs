//! The host keeps its network while it has the address: whoever manages its own addresses takes them
//! away and puts them back, and an address that is the host's own is left alone.

use super::*;

const FAST: &str = "advert_interval = \"100ms\"";

/// `ip -batch`: the steps follow each other within microseconds, as a network manager's do.
fn batch(host: &Host, steps: &[&str]) -> anyhow::Result<String> {
    let text = steps.join("\n");
    host.run("sh", &["-c", &format!("printf '%s\\n' '{text}' | ip -batch -")])
}

/// The address that the host sends from to a backend.
fn source(lab: &Lab) -> String {
    let route = lab.balancer.ip(&["route", "get", &lab.backends[0].address().to_string()]).unwrap_or_default();
    route.split_whitespace().skip_while(|word| *word != "src").nth(1).unwrap_or("none").to_owned()
}

/// The IPv4 addresses of eth0 in the kernel's order.
fn listed(host: &Host) -> Vec<String> {
    let text = host.ip(&["-4", "-oneline", "address", "show", "dev", "eth0"]).expect("ip");
    text.lines().filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned)).collect()
}

#[test]
fn the_host_s_own_address_can_be_taken_away_and_put_back_again_and_again_beside_the_address() {
    let lab = lab();
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST]));
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    let churns: [&[&str]; 3] = [
        &["addr del 10.0.1.1/24 dev eth0", "addr add 10.0.1.1/24 dev eth0"],
        &["addr flush dev eth0", "addr add 10.0.1.1/24 brd + dev eth0"],
        &["link set eth0 down", "addr flush dev eth0", "link set eth0 up", "addr add 10.0.1.1/24 dev eth0"],
    ];
    for (promote, steps) in ["0", "1"].iter().flat_map(|promote| churns.map(|steps| (promote, steps))) {
        lab.balancer.sysctl("net.ipv4.conf.eth0.promote_secondaries", promote).expect("sysctl");
        for round in 0..20 {
            batch(&lab.balancer, steps).unwrap_or_else(|error| panic!("{promote} {steps:?} {round}: {error:#}"));
            if round % 5 == 4 {
                let what = format!("{steps:?} with promote_secondaries {promote}, round {round}");
                let is_well = || {
                    let listed = listed(&lab.balancer);
                    (listed == ["10.0.1.1/24", "10.0.1.100/32"] && source(&lab) == "10.0.1.1").then_some(())
                };
                wait::until(&what, Duration::from_secs(2), is_well)
                    .unwrap_or_else(|late| panic!("{late:#}: {:?}, from {}", listed(&lab.balancer), source(&lab)));
                assert_eq!(resolve(lab.client(), VIP), Some(mac(&lab.balancer)), "{what}");
            }
        }
    }
    becomes(&one, "MASTER");
    drop(one);
}

#[test]
fn an_address_that_is_the_host_s_own_is_refused_and_told_and_the_host_keeps_it_and_answers_for_it() {
    let lab = lab();
    let before = lab.balancer.ip(&["address", "show", "dev", "eth0"]).expect("ip");
    let owner = instance(255, &[FAST]).replace(VIP, "10.0.1.1");
    let mut one = evenkeel(&lab, &lab.balancer, &owner);
    becomes(&one, "FAULT");
    let why = "10.0.1.1 of `addresses` is this host's own on eth0";
    is_told(&one, why);
    assert!(report(&one).expect("a report")["faults"].to_string().contains(why));
    assert_eq!(lab.balancer.ip(&["address", "show", "dev", "eth0"]).expect("ip"), before);
    assert_eq!(source(&lab), "10.0.1.1");
    assert_eq!(resolve(lab.client(), "10.0.1.1"), Some(mac(&lab.balancer)), "its own questions are answered");

    // Somebody adds by hand what moves: the instance gives way to that, and comes back.
    one.write(&(service(&lab) + "\n" + &instance(150, &[FAST]))).expect("the file");
    one.done(&["reload"]).expect("a reload");
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    lab.balancer.ip(&["address", "add", &format!("{VIP}/24"), "dev", "eth0"]).expect("ip");
    becomes(&one, "FAULT");
    let stands = || (listed(&lab.balancer) == ["10.0.1.1/24", "10.0.1.100/24"]).then_some(());
    wait::until("only theirs is left", SOON, stands).expect("the addresses");
    assert_eq!(resolve(lab.client(), VIP), Some(mac(&lab.balancer)));
    one.terminate().expect("an end in order");
    assert!(has_vip(&lab.balancer), "it is theirs");
    one.run().expect("evenkeel");
    becomes(&one, "FAULT");
    lab.balancer.ip(&["address", "del", &format!("{VIP}/24"), "dev", "eth0"]).expect("ip");
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
}

#[test]
fn what_an_older_version_has_left_with_a_prefix_is_taken_off() {
    let lab = lab();
    let mut one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST]));
    becomes(&one, "MASTER");
    one.terminate().expect("an end in order");
    let older = format!("address add {VIP}/24 dev eth0 noprefixroute");
    lab.balancer.ip(&older.split(' ').collect::<Vec<_>>()).expect("ip");
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    let stands = || (listed(&lab.balancer) == ["10.0.1.1/24", "10.0.1.100/32"]).then_some(());
    wait::until("one address, as it should be", SOON, stands).expect("the addresses");
    one.terminate().expect("an end in order");
    assert_eq!(listed(&lab.balancer), ["10.0.1.1/24"]);
}

/// The host got another address while the older one stood beside its first: the kernel made that the
/// first of the subnet.
#[test]
fn what_an_older_version_has_left_is_taken_off_also_if_it_became_the_first_of_its_subnet() {
    let lab = lab();
    let ip = |command: String| lab.balancer.ip(&command.split(' ').collect::<Vec<_>>()).expect("ip");
    let promote = "net.ipv4.conf.eth0.promote_secondaries=1";
    let set = lab.balancer.command("sysctl").args(["-qw", promote]).status().expect("sysctl");
    assert!(set.success());
    ip(format!("address add {VIP}/24 dev eth0 noprefixroute"));
    ip("address del 10.0.1.1/24 dev eth0".into());
    ip("address add 10.0.1.1/24 dev eth0".into());
    assert_eq!(listed(&lab.balancer), ["10.0.1.100/24", "10.0.1.1/24"]);
    ip("route replace 10.0.1.0/24 dev eth0 src 10.0.1.1".into());
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST]));
    becomes(&one, "MASTER");
    let stands = || (listed(&lab.balancer) == ["10.0.1.1/24", "10.0.1.100/32"]).then_some(());
    wait::until("one address, as it should be", SOON, stands)
        .unwrap_or_else(|late| panic!("{late:#}: {:?}\n{}", listed(&lab.balancer), one.log()));
}

/// Every connect of a client, one each 50 ms: when it was done, and whether it went well.
fn connects(lab: &Lab, length: Duration) -> Vec<(std::time::Instant, bool)> {
    let client = lab.client().clone();
    let begun = std::time::Instant::now();
    let mut all = Vec::new();
    while begun.elapsed() < length {
        let connected = client.inside(|| {
            let address = format!("{VIP}:6443").parse()?;
            Ok(std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok())
        });
        all.push((std::time::Instant::now(), connected.expect("the namespace")));
        std::thread::sleep(Duration::from_millis(50));
    }
    all
}

#[test]
fn another_mac_address_of_the_interface_is_announced_at_once() {
    let lab = lab();
    let _standin = lab::StandIn::start(&lab.backends[0]).expect("a stand-in");
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST]));
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    for new in ["02:11:22:33:44:55", "02:11:22:33:44:66"] {
        let served = || connects(&lab, Duration::from_millis(300)).iter().all(|(_, done)| *done).then_some(());
        wait::until("everybody is served", SOON, served).unwrap_or_else(|late| panic!("{late:#}\n{}", one.log()));
        lab.balancer.ip(&["link", "set", "eth0", "address", new]).expect("ip");
        let changed = std::time::Instant::now();
        let all = connects(&lab, Duration::from_secs(2));
        let last_failed = all.iter().rev().find(|(_, done)| !done).map(|(at, _)| *at - changed);
        assert!(last_failed.is_none_or(|after| after < Duration::from_millis(800)), "{last_failed:?}\n{}", one.log());
        assert_eq!(resolve(lab.client(), VIP).as_deref(), Some(new));
    }
    assert_eq!(state(&one), "MASTER");
}

#[test]
fn an_administrator_s_arp_settings_do_not_make_the_address_silent() {
    let lab = lab();
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST]));
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    for ignore in ["0", "1", "2", "3"] {
        lab.balancer.sysctl("net.ipv4.conf.all.arp_ignore", ignore).expect("sysctl");
        assert_eq!(resolve(lab.client(), VIP), Some(mac(&lab.balancer)), "arp_ignore = {ignore}");
    }
}

#[test]
fn a_client_that_comes_by_an_interface_without_the_program_is_told_and_served_once_it_has_one() {
    let lab = lab();
    let _standin = lab::StandIn::start(&lab.backends[0]).expect("a stand-in");
    lab.second_cable(&lab.balancer, "eth1").expect("a cable");
    lab.balancer.ip(&["address", "add", "10.0.7.1/24", "dev", "eth1"]).expect("ip");
    let client = lab.client();
    client.ip(&["address", "add", "10.0.7.50/24", "dev", "eth0"]).expect("ip");
    let file = |interfaces: &str| {
        let service = service(&lab).replace("datapath =", &format!("interface = {interfaces}\ndatapath ="));
        service + "\n" + &instance(150, &[FAST])
    };
    let mut one = Evenkeel::on(&lab, &lab.balancer, &file("\"eth0\"")).expect("files");
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    client.ip(&["route", "add", VIP, "via", "10.0.7.1", "src", "10.0.7.50"]).expect("ip");
    let connect = || {
        client.inside(|| {
            let address = format!("{VIP}:6443").parse()?;
            Ok(std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok())
        })
    };
    let told = || {
        let is_served = connect().expect("the namespace");
        assert!(!is_served, "it is served after all");
        let events = one.json(&["events"]).expect("events").to_string();
        events.contains("10.0.7.50 asks for 10.0.1.100:6443 by eth1, where the program does not stand").then_some(())
    };
    wait::until("an event", SOON, told).unwrap_or_else(|late| panic!("{late:#}\n{}", one.log()));
    one.write(&file("[\"eth0\", \"eth1\"]")).expect("the file");
    one.done(&["reload"]).expect("a reload");
    wait::until("a connection", SOON, || connect().expect("the namespace").then_some(())).expect("service");
}
