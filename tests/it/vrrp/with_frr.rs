//! One evenkeel and one FRR, in both roles and in both dialects of version 3's checksum over IPv4:
//! with the pseudo-header, which FRR and keepalived send by default, and that of RFC 9568.

use lab::frr::{Frr, Router};

use super::*;

const INTERVAL: Duration = Duration::from_millis(100);
/// The MAC address that FRR uses for the address, on either host's card.
const VIRTUAL_MAC: &str = "00:00:5e:00:01:33";

fn frr(lab: &Lab, pseudo_header: bool) -> Frr {
    let address = VIP.parse().expect("an address");
    Frr::start(second(lab), Router { number: 51, priority: 100, interval: INTERVAL, address, pseudo_header })
        .expect("FRR")
}

fn ours(priority: u8, pseudo_header: bool) -> String {
    let checksum = if pseudo_header { "pseudo-header" } else { "rfc9568" };
    instance(priority, &["advert_interval = \"100ms\"", &format!("checksum = \"{checksum}\"")])
}

#[track_caller]
fn answers(lab: &Lab, mac: &str, frr: &Frr) {
    let answers = || (resolve(lab.client(), VIP).as_deref() == Some(mac)).then_some(());
    wait::until(&format!("{mac} answers"), SOON, answers).unwrap_or_else(|late| panic!("{late:#}\n{}", frr.log()));
}

fn refused(evenkeel: &Evenkeel) -> u64 {
    let report = report(evenkeel).expect("a report");
    let refused = report["adverts"]["refused"].as_object().expect("reasons").values();
    refused.filter_map(Value::as_u64).sum()
}

/// evenkeel takes over from FRR, gives way in order, takes the address back, and survives FRR's
/// crash.
fn both_roles(pseudo_header: bool) {
    let lab = lab();
    let mut frr = frr(&lab, pseudo_header);
    answers(&lab, VIRTUAL_MAC, &frr);
    let mut ours = evenkeel(&lab, &lab.balancer, &self::ours(150, pseudo_header));
    becomes(&ours, "MASTER");
    // FRR hears it and turns its device off.
    answers(&lab, &mac(&lab.balancer), &frr);
    let received = || report(&ours).expect("a report")["adverts"]["received"].as_u64();
    let before = received();
    let sent = || report(&ours).expect("a report")["adverts"]["sent"].as_u64();
    let enough = sent().map(|sent| sent + 10);
    wait::until("time goes by", SOON, || (sent() >= enough).then_some(())).expect("adverts");
    assert_eq!(received(), before, "nothing is heard of a BACKUP\n{}", frr.log());
    assert_eq!(refused(&ours), 0);
    ours.terminate().expect("an end in order");
    answers(&lab, VIRTUAL_MAC, &frr);

    // FRR is the better one now.
    ours.write(&(service(&lab) + "\n" + &self::ours(90, pseudo_header))).expect("a file");
    ours.run().expect("evenkeel");
    becomes(&ours, "BACKUP");
    let heard = || report(&ours).ok().filter(|report| report["master"].as_str() == Some("10.0.1.2")).map(drop);
    wait::until("FRR is heard", SOON, heard).expect("FRR");
    frr.terminate().expect("an end in order");
    becomes(&ours, "MASTER");
    frr.run().expect("FRR");
    becomes(&ours, "BACKUP");
    frr.kill();
    becomes(&ours, "MASTER");
    assert_eq!(refused(&ours), 0);
}

#[test]
fn version_3_with_the_pseudo_header_in_both_roles() {
    both_roles(true);
}

#[test]
fn version_3_without_the_pseudo_header_in_both_roles() {
    both_roles(false);
}

#[test]
fn a_master_of_the_other_dialect_is_heard() {
    for pseudo_header in [true, false] {
        let lab = lab();
        let frr = frr(&lab, pseudo_header);
        answers(&lab, VIRTUAL_MAC, &frr);
        let ours = evenkeel(&lab, &lab.balancer, &self::ours(90, !pseudo_header));
        let heard = || report(&ours).ok().filter(|report| report["adverts"]["received"].as_u64() > Some(10)).map(drop);
        wait::until("FRR is heard", SOON, heard).expect("FRR");
        assert_eq!((state(&ours).as_str(), refused(&ours)), ("BACKUP", 0));
    }
}
