//! A controller that stands still, as on a paused or starved machine: the other host takes over,
//! and the first one no longer announces the address, whatever its kernel would like to send.

use lab::{Asker, arp};
use nix::sys::signal::Signal;

use super::*;

const FAST: &str = "advert_interval = \"100ms\"";
const KEEPS: &str = "10.0.1.99";

/// VI_1 preempts, VI_2 does not.
fn two_instances(priority: u8) -> String {
    let keeps = instance(priority, &[FAST, "preempt = false"])
        .replace("VI_1", "VI_2")
        .replace("= 51", "= 52")
        .replace(VIP, KEEPS);
    instance(priority, &[FAST]) + "\n" + &keeps
}

fn address(text: &str) -> std::net::Ipv4Addr {
    text.parse().expect("an address")
}

fn transitions(evenkeel: &Evenkeel) -> [u64; 2] {
    ["VI_1", "VI_2"].map(|name| report_of(evenkeel, name).expect("a report")["transitions"].as_u64().expect("a number"))
}

fn states(evenkeel: &Evenkeel) -> [String; 2] {
    ["VI_1", "VI_2"].map(|name| {
        report_of(evenkeel, name)
            .ok()
            .and_then(|report| report["state"].as_str().map(str::to_owned))
            .unwrap_or_default()
    })
}

#[track_caller]
fn both_become(evenkeel: &Evenkeel, wanted: [&str; 2]) {
    let late = wait::until(&format!("{wanted:?}"), SOON, || (states(evenkeel) == wanted).then_some(()));
    late.unwrap_or_else(|late| panic!("{late:#}, but {:?}\n{}", states(evenkeel), evenkeel.log()));
}

#[test]
fn a_master_stopped_for_ten_seconds_is_replaced_never_answers_beside_its_successor_and_comes_back_once_if_it_preempts()
{
    let lab = lab();
    let one = evenkeel(&lab, &lab.balancer, &two_instances(150));
    both_become(&one, ["MASTER", "MASTER"]);
    let two = evenkeel(&lab, second(&lab), &two_instances(100));
    both_become(&two, ["BACKUP", "BACKUP"]);
    let before = (transitions(&one), transitions(&two));
    let asker = Asker::start(lab.client(), &[address(VIP), address(KEEPS)]).expect("an asker");
    let (first, other) = (&*mac(&lab.balancer), &*mac(second(&lab)));
    let answered = |address: std::net::Ipv4Addr, by: &str| {
        let answered = || (asker.answerers(address).last().map(String::as_str) == Some(by)).then_some(());
        wait::until(&format!("{by} answers for {address}"), SOON, answered).expect("answers");
    };
    answered(address(VIP), first);
    answered(address(KEEPS), first);

    one.signal(Signal::SIGSTOP).expect("SIGSTOP");
    let stopped = std::time::Instant::now();
    both_become(&two, ["MASTER", "MASTER"]);
    assert!(stopped.elapsed() < Duration::from_secs(2), "{:?}", stopped.elapsed());
    answered(address(VIP), other);
    answered(address(KEEPS), other);
    let over = || (stopped.elapsed() >= Duration::from_secs(10)).then_some(());
    wait::until("ten seconds", Duration::from_secs(11), over).expect("time");
    assert!(!has_vip(&lab.balancer), "the kernel has taken the address off, which nobody renewed");
    assert_eq!(states(&two), ["MASTER", "MASTER"]);

    one.signal(Signal::SIGCONT).expect("SIGCONT");
    both_become(&one, ["MASTER", "BACKUP"]);
    both_become(&two, ["BACKUP", "MASTER"]);
    answered(address(VIP), first);
    // Ten more intervals: nothing changes any longer.
    let sent = |evenkeel: &Evenkeel| report(evenkeel).expect("a report")["adverts"]["sent"].as_u64();
    let enough = sent(&one).map(|sent| sent + 36);
    wait::until("time goes by", SOON, || (sent(&one) >= enough).then_some(())).expect("adverts");
    let after = (transitions(&one), transitions(&two));
    // One: it stepped down when it woke up, and is MASTER again where it preempts. Two: it took
    // over, and was preempted where that is allowed.
    assert_eq!(after.0, [before.0[0] + 2, before.0[1] + 1], "{}", one.log());
    assert_eq!(after.1, [before.1[0] + 2, before.1[1] + 1], "{}", two.log());
    let answerers = (asker.answerers(address(VIP)), asker.answerers(address(KEEPS)));
    assert_eq!(answerers.0, [first, other, first], "one after the other, never in turn: {:?}", asker.answers());
    assert_eq!(answerers.1, [first, other], "one after the other, never in turn: {:?}", asker.answers());
    let dropped = one.counter("lease_lapsed").expect("a counter");
    assert!(dropped > 500, "most of 1,000 questions were dropped by the first host's program: {dropped}");
    vip_goes(second(&lab), false);
}

/// Somebody keeps an address on the interface that its daemon no longer renews.
fn keep(host: &Host, address: &str) {
    host.ip(&["address", "replace", address, "dev", "eth0", "noprefixroute", "metric", "25974"]).expect("ip");
}

/// What the host's own kernel would send: it is made to speak from the VIP to a neighbour that it
/// does not know.
fn speak_from(host: &Host, source: &str, neighbour: &str) {
    // Whether any host answers or refuses does not matter: only the question counts.
    let url =
        if neighbour.contains(':') { format!("http://[{neighbour}]:9/") } else { format!("http://{neighbour}:9/") };
    _ = host.run("curl", &["-s", "-m", "1", "--interface", source, &url]);
}

#[test]
fn once_a_lease_has_run_out_neither_another_interface_nor_the_host_s_own_questions_reveal_the_address() {
    const NOBODY: &str = "10.0.1.250";
    let lab = lab();
    lab.second_cable(&lab.balancer, "eth1").expect("a cable");
    lab.balancer.ip(&["address", "add", "10.0.1.3/24", "dev", "eth1"]).expect("an address");
    let file = service(&lab).replace("datapath =", "interface = \"eth0\"\ndatapath =") + "\n" + &instance(150, &[FAST]);
    let mut one = Evenkeel::on(&lab, &lab.balancer, &file).expect("files");
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    let own =
        [arp::mac(&lab.balancer, "eth0"), arp::mac(&lab.balancer, "eth1")].map(|mac| arp::text(mac.expect("a MAC")));
    let asker = Asker::start(lab.client(), &[address(VIP)]).expect("an asker");
    let questions = Capture::start_with(
        lab.client(),
        "eth0",
        &format!("arp[6:2] = 1 and arp[14:4] = {}", u32::from(address(VIP))),
        &["-e"],
    );
    let questions = questions.expect("tcpdump");
    wait::until("answers", SOON, || (asker.answers().len() > 20).then_some(())).expect("answers");
    assert_eq!(asker.answerers(address(VIP)), [&*own[0]], "the VIP's own interface answers and no other");

    // What it has to ask on another interface goes out without the address.
    const BEYOND: &str = "10.0.1.251";
    let beyond = u32::from(address(BEYOND));
    let asked =
        Capture::start(lab.client(), "eth0", &format!("arp[6:2] = 1 and arp[14:4] = 0 and arp[24:4] = {beyond}"))
            .expect("tcpdump");
    lab.balancer.ip(&["route", "add", BEYOND, "dev", "eth1"]).expect("ip");
    let told = questions.lines().len();
    speak_from(&lab.balancer, VIP, BEYOND);
    wait::until("a question without a sender", SOON, || (!asked.seen().is_empty()).then_some(())).expect("it");
    assert_eq!(questions.lines().len(), told, "in the VIP's name: {:?}", questions.lines());

    one.signal(Signal::SIGSTOP).expect("SIGSTOP");
    let lapsed = || is_silent(&asker);
    wait::until("nobody answers", SOON, lapsed).expect("silence");
    keep(&lab.balancer, &format!("{VIP}/32"));
    let told = questions.lines().len();
    speak_from(&lab.balancer, VIP, NOBODY);
    assert!(has_vip(&lab.balancer));
    assert_eq!(asker.answerers(address(VIP)), [&*own[0]]);
    assert_eq!(questions.lines().len(), told, "it asks for others in the VIP's name: {:?}", questions.lines());

    // The trap is real: without the guard the other interface answers.
    let index = lab.balancer.inside(|| Ok(nix::net::if_::if_nametoindex("eth1")?)).expect("an index");
    std::fs::remove_file(one.bpffs().join(format!("links/{index}-tcx-out"))).expect("the guard's pin");
    let other = || (asker.answerers(address(VIP)).last() == Some(&own[1])).then_some(());
    wait::until("the other interface answers", SOON, other).expect("the trap");
    one.signal(Signal::SIGCONT).expect("SIGCONT");
    becomes(&one, "MASTER");
}

#[test]
fn over_ipv6_the_host_s_own_questions_do_not_reveal_an_address_whose_lease_has_run_out() {
    const VIP6: &str = "fd00:1::100";
    const NOBODY: &str = "fd00:1::250";
    for clsact in [false, true] {
        let lab = lab();
        for host in [&lab.balancer, lab.client()] {
            host.sysctl("net.ipv6.conf.eth0.accept_dad", "0").expect("sysctl");
            host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "0").expect("sysctl");
        }
        lab.balancer.ip(&["address", "add", "fd00:1::1/64", "dev", "eth0"]).expect("an address");
        let six = instance(150, &[FAST]).replace("10.0.1.100/24", &format!("{VIP6}/64"));
        let mut one = Evenkeel::on(&lab, &lab.balancer, &(service(&lab) + "\n" + &six)).expect("files");
        if clsact {
            one.run_option("--clsact");
        }
        one.run().expect("evenkeel");
        becomes(&one, "MASTER");
        let has =
            || lab.balancer.ip(&["-6", "address", "show", "dev", "eth0"]).expect("ip").contains(VIP6).then_some(());
        wait::until("the VIP", SOON, has).expect("the address");
        let mac = mac(&lab.balancer);
        // Solicitations from the VIP: every host that receives one learns its location.
        let filter = format!("icmp6 and ip6[40] = 135 and ip6 src {VIP6} and ether src {mac}");
        let questions = Capture::start(lab.client(), "eth0", &filter).expect("tcpdump");
        let of_nobody = || questions.lines().len();
        speak_from(&lab.balancer, VIP6, NOBODY);
        wait::until("a master asks in the VIP's name", SOON, || (of_nobody() > 0).then_some(())).expect("the trap");

        one.signal(Signal::SIGSTOP).expect("SIGSTOP");
        keep(&lab.balancer, &format!("{VIP6}/128"));
        let before = lease_lapsed(&one);
        wait::until("the lease lapses", SOON, || {
            speak_from(&lab.balancer, VIP6, NOBODY);
            (lease_lapsed(&one) > before).then_some(())
        })
        .expect("a question that is dropped");
        has().expect("the kernel keeps it");
        let told = of_nobody();
        speak_from(&lab.balancer, VIP6, NOBODY);
        assert_eq!(of_nobody(), told, "clsact {clsact}: {:?}", questions.lines());
        one.signal(Signal::SIGCONT).expect("SIGCONT");
        becomes(&one, "MASTER");
    }
}

/// The counter in the kernel: a stopped controller answers no request.
fn lease_lapsed(evenkeel: &Evenkeel) -> u64 {
    let tables = evenkeel::dataplane::tables_beside(evenkeel.bpffs()).expect("the tables");
    let counters = tables.counters().expect("counters");
    counters.into_iter().find(|(reason, _)| *reason == lb_common::verdict::Reason::LeaseLapsed).map_or(0, |(_, n)| n)
}

/// Whether the last answer is 300 ms old: fifteen questions.
fn is_silent(asker: &Asker) -> Option<()> {
    let last = asker.answers().last()?.at;
    (lab::capture::now() > last + Duration::from_millis(300)).then_some(())
}
