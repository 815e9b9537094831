use Step::{PutOn, TakeOff};

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn own(text: &str) -> Placed {
    Placed { address: net(text), is_ours: false, is_secondary: false }
}

fn ours(text: &str) -> Placed {
    Placed { is_ours: true, ..own(text) }
}

fn secondary(placed: Placed) -> Placed {
    Placed { is_secondary: true, ..placed }
}

fn hold(placed: &[Placed], address: &str) -> Result<Vec<Step>, IpNet> {
    to_hold(placed, address.parse().unwrap())
}

#[test]
fn an_address_is_a_subnet_of_its_own_whatever_stands_beside_it() {
    for (placed, address, wanted) in [
        (vec![], "10.0.1.100", "10.0.1.100/32"),
        (vec![own("10.0.1.1/24"), ours("10.0.1.99/32")], "10.0.1.100", "10.0.1.100/32"),
        (vec![own("fe80::1/64"), own("fd00::1/64")], "fd00::100", "fd00::100/128"),
    ] {
        assert_eq!(hold(&placed, address), Ok(vec![PutOn(net(wanted))]), "{placed:?}");
    }
    assert_eq!(hold(&[own("10.0.1.1/24"), ours("10.0.1.100/32")], "10.0.1.100"), Ok(vec![]));
    // Over IPv6 the kernel orders them, and a deprecated one is no source.
    assert_eq!(hold(&[ours("fd00::100/128"), own("fd00::1/64")], "fd00::100"), Ok(vec![]));
}

#[test]
fn it_goes_behind_an_own_one_that_was_put_back_but_never_behind_a_secondary_one() {
    let vip = ours("10.0.1.100/32");
    let again = Ok(vec![TakeOff(net("10.0.1.100/32")), PutOn(net("10.0.1.100/32"))]);
    let stays = Ok(vec![]);
    assert_eq!(hold(&[vip, own("10.0.1.1/24")], "10.0.1.100"), again);
    assert_eq!(hold(&[own("192.168.7.1/24"), vip, own("10.0.1.1/24")], "10.0.1.100"), again);
    assert_eq!(hold(&[own("10.0.1.1/24"), vip, secondary(own("10.0.1.5/24"))], "10.0.1.100"), stays);
    assert_eq!(hold(&[own("10.0.1.1/24"), vip, ours("10.0.1.99/32")], "10.0.1.100"), stays);
}

#[test]
fn what_an_older_version_has_put_there_with_a_prefix_is_replaced_and_taken_off() {
    let placed = [own("10.0.1.1/24"), secondary(ours("10.0.1.100/24"))];
    let steps = vec![PutOn(net("10.0.1.100/32")), TakeOff(net("10.0.1.100/24"))];
    assert_eq!(hold(&placed, "10.0.1.100"), Ok(steps), "it is never gone");
    let release = |placed: &[Placed]| to_release(placed, "10.0.1.100".parse().unwrap());
    assert_eq!(release(&placed), [TakeOff(net("10.0.1.100/24"))]);
    let both = [ours("10.0.1.100/32"), own("10.0.1.1/24"), ours("10.0.1.100/24")];
    assert_eq!(release(&both), [TakeOff(net("10.0.1.100/32")), TakeOff(net("10.0.1.100/24"))]);
}

#[test]
fn over_ipv6_it_is_taken_off_first_because_the_kernel_takes_both_for_one() {
    let steps = vec![TakeOff(net("fd00::100/64")), PutOn(net("fd00::100/128"))];
    assert_eq!(hold(&[ours("fd00::100/64"), own("fd00::1/64")], "fd00::100"), Ok(steps));
    let others = [ours("fd00::99/64"), ours("fd00::100/128")];
    assert_eq!(hold(&others, "fd00::100"), Ok(vec![]));
}

#[test]
fn an_address_is_given_up_once_after_two_renewals_that_failed_in_a_row() {
    let mut renewals = Renewals::default();
    let went: Vec<_> = [false, true, false, false, false, true, false, false].map(|well| renewals.went(well)).into();
    assert_eq!(went, [false, false, false, true, false, false, false, true]);
}

#[test]
fn a_renewal_that_failed_is_tried_again_soon() {
    let (mut renewals, ms) = (Renewals::default(), Duration::from_millis);
    assert_eq!((renewals.next_in(2), renewals.next_in(40)), (ms(500), ms(10_000)));
    renewals.went(false);
    assert_eq!((renewals.next_in(2), renewals.next_in(40)), (ms(500), ms(1000)));
    renewals.went(true);
    assert_eq!(renewals.next_in(40), ms(10_000));
}

#[test]
fn it_lives_as_long_as_its_lease_in_whole_seconds() {
    for (lease, seconds) in [(30, 2), (300, 2), (2000, 2), (2001, 3), (3000, 3), (3600, 4), (122_850, 123)] {
        assert_eq!(lifetime(Duration::from_millis(lease)), seconds, "{lease}");
    }
}

#[test]
fn an_address_of_the_host_is_neither_touched_nor_joined() {
    for text in ["10.0.1.100/24", "10.0.1.100/32"] {
        let placed = [own("10.0.1.1/24"), own(text)];
        assert_eq!(hold(&placed, "10.0.1.100"), Err(net(text)));
        assert_eq!(to_release(&placed, "10.0.1.100".parse().unwrap()), []);
    }
    let beside = [own("10.0.1.100/24"), ours("10.0.1.100/32")];
    assert_eq!(to_release(&beside, "10.0.1.100".parse().unwrap()), [TakeOff(net("10.0.1.100/32"))]);
}
