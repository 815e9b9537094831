//! The address goes when nobody renews it, whatever has become of the daemon and of the kernel program
//! that keeps the host from answering; and never while somebody does.

use std::{fs, net::Ipv4Addr, path::Path, time::Instant};

use lab::Asker;

use super::*;

const FAST: &str = "advert_interval = \"100ms\"";
/// The shortest lifetime, the second in which the kernel looks, and a busy machine.
const GONE: Duration = Duration::from_millis(4500);

/// A MASTER that answers, and somebody who asks for the address.
fn master(lab: &Lab, begin: impl Fn(&mut Evenkeel)) -> (Evenkeel, Asker) {
    let file = service(lab) + "\n" + &instance(150, &[FAST]);
    let mut one = Evenkeel::on(lab, &lab.balancer, &file).expect("files");
    begin(&mut one);
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    let asker = Asker::start(lab.client(), &[VIP.parse::<Ipv4Addr>().expect("it")]).expect("an asker");
    wait::until("answers", SOON, || (asker.answers().len() > 10).then_some(())).expect("answers");
    (one, asker)
}

/// After its end the address goes by itself, and then nobody answers for it.
#[track_caller]
fn goes_by_itself(lab: &Lab, asker: &Asker, ended: Instant) {
    wait::until("the address goes", GONE, || (!has_vip(&lab.balancer)).then_some(())).expect("no address");
    let (after, answers) = (ended.elapsed(), asker.answers().len());
    assert!(after < GONE, "{after:?}");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(asker.answers().len(), answers, "nobody answers");
}

#[test]
fn with_and_without_pins_an_address_does_not_outlive_a_daemon_that_was_killed() {
    let lab = lab();
    let (mut one, asker) = master(&lab, |_| {});
    one.kill();
    goes_by_itself(&lab, &asker, Instant::now());
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    one.stop_detach().expect("its end");
    drop(asker);

    let (mut one, asker) = master(&lab, |one| {
        one.run_with_private_mounts(&lab);
        one.run_option("--private-pins");
    });
    one.kill();
    let ended = Instant::now();
    // The guard is a filter, which stays: 300 ms after the last advertisement nobody answers.
    std::thread::sleep(Duration::from_millis(700));
    let answers = asker.answers().len();
    goes_by_itself(&lab, &asker, ended);
    assert_eq!(asker.answers().len(), answers, "the guard goes on by the lease");
    // The next start has other tables, by which its guard goes.
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    wait::until("answers", SOON, || (asker.answers().len() > answers + 10).then_some(())).expect("answers");
    one.kill();
    // And one with lasting pins has no guard of long ago before it.
    drop(one);
    let mut one = Evenkeel::on(&lab, &lab.balancer, &(service(&lab) + "\n" + &instance(150, &[FAST]))).expect("files");
    let answers = asker.answers().len();
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    wait::until("answers", SOON, || (asker.answers().len() > answers + 10).then_some(())).expect("answers");
}

#[test]
fn an_address_does_not_outlive_a_daemon_and_its_program_that_both_were_taken_away() {
    for tidy in ["bpftool", "rm"] {
        let lab = lab();
        let (mut one, asker) = master(&lab, |_| {});
        one.kill();
        let ended = Instant::now();
        let links = fs::read_dir(one.bpffs().join("links")).expect("links").flatten().map(|entry| entry.path());
        let links: Vec<_> = links.collect();
        assert!(links.len() >= 2, "a program and a guard: {links:?}");
        let detach = |link: &Path| {
            let link = link.to_str().expect("a path");
            let mut command = std::process::Command::new(tidy);
            if tidy == "bpftool" {
                command.args(["link", "detach", "pinned", link])
            } else {
                command.arg(link)
            };
            lab::process::output(&mut command).expect("the end of a link");
        };
        links.iter().for_each(|link| detach(link));
        goes_by_itself(&lab, &asker, ended);
    }
}

#[test]
fn while_it_is_renewed_an_address_is_never_gone_not_even_in_an_upgrade() {
    let lab = lab();
    let (mut one, asker) = master(&lab, |_| {});
    let mut monitor = lab.balancer.command("ip");
    let monitor = lab.balancer.start("monitor", monitor.args(["-4", "monitor", "address"])).expect("ip monitor");
    // A lifetime has four of them.
    let renewed = |count: usize| {
        let lines = || monitor.log().lines().filter(|line| line.contains(VIP)).count();
        wait::until("it is renewed", SOON, || (lines() >= count).then(lines))
            .unwrap_or_else(|late| panic!("{late:#}\n{}", monitor.log()))
    };
    renewed(6);
    one.upgrade().expect("an upgrade");
    becomes(&one, "MASTER");
    renewed(renewed(0) + 6);
    let said = monitor.log();
    assert!(!said.contains("Deleted"), "{said}");
    assert!(has_vip(&lab.balancer));
    drop(asker);
}

#[test]
fn pins_that_would_end_with_the_process_are_refused() {
    let lab = lab();
    let file = service(&lab) + "\n" + &instance(150, &[FAST]);
    let mut one = Evenkeel::on(&lab, &lab.balancer, &file).expect("files");
    one.run_with_private_mounts(&lab);
    let refused = one.run().expect_err("a refusal").to_string();
    assert!(refused.contains("is on a bpffs that ends with this process"), "{refused}");
    assert!(refused.contains("--private-pins"), "{refused}");
    assert!(!has_vip(&lab.balancer));
    one.run_option("--private-pins");
    one.run().expect("evenkeel");
    assert!(one.log().contains("each restart breaks every connection (--private-pins)"), "{}", one.log());
}
