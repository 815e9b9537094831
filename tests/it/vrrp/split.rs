//! Split brain: both hosts are MASTER because neither hears the other, and how that ends.

use lab::capture;

use super::*;

const API: &str = "127.0.0.1:9643";
/// How long neither hears the other.
const SPLIT: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_secs(1);

/// Whether every client takes `mac` for that of the VIP.
fn all_know(lab: &Lab, mac: &str) -> bool {
    let knows =
        |client: &Host| client.ip(&["neighbour", "show", "to", VIP]).expect("ip").contains(&format!("lladdr {mac} "));
    lab.clients.iter().all(knows)
}

fn metric(evenkeel: &Evenkeel, host: &Host, name: &str) -> u64 {
    let text = host.run("curl", &["-s", "-m", "5", &format!("http://{API}/metrics")]).expect("curl");
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
    let value = line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("no metric {name}\n{text}\n{}", evenkeel.log()))
}

#[test]
fn two_masters_see_each_other_s_claims_and_when_they_hear_each_other_again_one_is_left_and_every_client_finds_it() {
    let lab = Lab::build(&Plan::new(Topology::Segment).backends(1).clients(3).pair()).expect("the lab");
    let file = format!("[api]\nlisten = \"{API}\"\n\n{}", service(&lab));
    let (one, two) = master_and_backup(&lab, &file, &[]);
    lab.clients.iter().for_each(|client| assert_eq!(resolve(client, VIP), Some(mac(&lab.balancer))));

    // Advertisements still leave both hosts and pass the client, so its capture is the witness.
    let witness = Capture::start(lab.client(), "eth0", "ip proto 112 and src 10.0.1.2").expect("tcpdump");
    let hosts = [&lab.balancer, second(&lab)];
    hosts.iter().for_each(|host| host.firewall(&["ip protocol 112 drop"], &[]).expect("nft"));
    let blocked = std::time::Instant::now();
    becomes(&two, "MASTER");
    assert_eq!(state(&one), "MASTER");
    // It is noticed by the other host's gratuitous ARP, though no advertisement is heard.
    let claims = |evenkeel: &Evenkeel, host: &Host| metric(evenkeel, host, "evenkeel_vrrp_address_claims_total");
    let seen = || (claims(&one, &lab.balancer) > 0 && claims(&two, second(&lab)) > 0).then_some(());
    wait::until("both have seen the other's claim", SOON, seen).expect("claims");
    for (evenkeel, other) in [(&one, second(&lab)), (&two, &lab.balancer)] {
        is_told(
            evenkeel,
            &format!("holds {VIP}, but {} claims it by ARP or ND: another master that is not heard", mac(other)),
        );
    }
    let over = || (blocked.elapsed() >= SPLIT).then_some(());
    wait::until("the split's end", SPLIT, over).expect("time");
    assert_eq!((state(&one), state(&two)), ("MASTER".into(), "MASTER".into()));

    // The better one hears first; that the lower one may as well is the machine's own test.
    lab.balancer.open_firewall().expect("nft");
    is_told(&one, "is not the only master: 10.0.1.2 advertises priority ");
    second(&lab).open_firewall().expect("nft");
    let heard = capture::now();
    wait::until("one is left", SOON, || (state(&two) == "BACKUP").then_some(())).expect("one master");
    let found =
        wait::until("every client knows the master", SOON, || all_know(&lab, &mac(&lab.balancer)).then(capture::now));
    let found = found.expect("the clients");
    let last = *witness.seen().last().expect("adverts");
    assert!(
        last < heard + INTERVAL + Duration::from_millis(500),
        "the lower one still advertised {:?} after",
        last.saturating_sub(heard)
    );
    println!(
        "last advertisement of the lower one after {:?}, all clients right after {:?}",
        last.saturating_sub(heard),
        found.saturating_sub(heard)
    );
    // The other host's last announcement may come late, so the address is announced once more when
    // it is silent.
    is_told(&one, "is the only master again; the segment was told so");
    assert!(all_know(&lab, &mac(&lab.balancer)));
    assert_eq!((state(&one), state(&two)), ("MASTER".into(), "BACKUP".into()));
    assert!(!has_vip(second(&lab)));
    assert!(metric(&one, &lab.balancer, "evenkeel_vrrp_dual_master_total") > 0);
    let transitions = |evenkeel: &Evenkeel| report(evenkeel).expect("a report")["transitions"].as_u64();
    assert_eq!((transitions(&one), transitions(&two)), (Some(1), Some(2)));
}

#[test]
fn a_host_whose_advertisements_do_not_leave_takes_nothing_from_the_master() {
    let lab = lab();
    let fast = ["advert_interval = \"100ms\""];
    let two = evenkeel(&lab, second(&lab), &instance(100, &fast));
    becomes(&two, "MASTER");
    let changes = || report(&two).expect("a report")["transitions"].as_u64();
    let before = changes();
    lab.balancer.firewall(&[], &["ip protocol 112 drop"]).expect("nft");
    let vip = u32::from(VIP.parse::<std::net::Ipv4Addr>().expect("an address"));
    let filter = format!("arp and ether src {} and arp[14:4] = {vip}", mac(&lab.balancer));
    let announced = Capture::start(lab.client(), "eth0", &filter).expect("tcpdump");
    // It hears the other one, ranks higher, and cannot say so.
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &fast));
    becomes(&one, "FAULT");
    is_told(&one, "cannot advertise");
    let faults = || told(&one).iter().filter(|text| text.contains("is FAULT")).count();
    wait::until("the second try", SOON * 2, || (faults() >= 2).then_some(())).expect("it tries again");
    assert_eq!((announced.seen().len(), changes()), (0, before), "{}", one.log());
    assert_eq!(resolve(lab.client(), VIP), Some(mac(second(&lab))));
    lab.balancer.open_firewall().expect("nft");
    becomes(&one, "MASTER");
    becomes(&two, "BACKUP");
}
