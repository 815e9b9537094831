use std::time::Duration;

use super::*;

const NOW: Instant = Instant(1000 * 1_000_000_000);
const LAPSED: Instant = Instant::ZERO;

fn ip(last: u8) -> IpAddr {
    [10, 0, 1, last].into()
}

fn ips(last: &[u8]) -> Vec<IpAddr> {
    last.iter().map(|last| ip(*last)).collect()
}

fn nets(last: &[u8]) -> Vec<IpNet> {
    last.iter().map(|last| IpNet::new(ip(*last), 24).unwrap()).collect()
}

/// The leases of addresses; the number of each record is the address's last byte.
fn leases(last: &[u8], until: Instant) -> Vec<LeaseRecord> {
    last.iter().map(|last| LeaseRecord { address: ip(*last), number: (*last).into(), until, claims: 0 }).collect()
}

fn ended(lease: u16) -> HoldingOrder {
    Renew { lease, until: Instant::ZERO }
}

fn take_off(last: &[u8]) -> HoldingOrder {
    TakeOff { interface: "eth0".into(), addresses: ips(last) }
}

/// One instance, number 0, that has begun without a lease of an earlier run.
fn one(last: &[u8]) -> Holdings {
    let mut holdings = Holdings::default();
    holdings.configure(ips(last));
    holdings.begin(0, "eth0", &nets(last), leases(last, LAPSED), NOW);
    holdings
}

#[test]
fn an_address_that_the_host_has_as_its_own_has_no_lease_until_it_is_not() {
    let mut holdings = one(&[100, 101]);
    assert!(holdings.find_own(ips(&[1, 101]).into_iter()));
    assert!(!holdings.find_own(ips(&[7, 101]).into_iter()), "others do not matter");
    assert_eq!(forgotten(&holdings, &[100, 101]), [Forget { lease: 101 }]);
    assert!(holdings.find_own(std::iter::empty()));
    assert_eq!(forgotten(&holdings, &[100, 101]), []);
}

/// The leases that are removed from a table with these addresses.
fn forgotten(holdings: &Holdings, table: &[u8]) -> Vec<HoldingOrder> {
    holdings.forget_strangers(table.iter().map(|last| ((*last).into(), ip(*last))))
}

#[test]
fn what_an_earlier_run_left_is_taken_away_unless_all_its_leases_hold() {
    let held = NOW + Duration::from_secs(1);
    let begin = |leases| {
        let mut holdings = Holdings::default();
        let orders = holdings.begin(0, "eth0", &nets(&[100, 101]), leases, NOW);
        (orders, holdings.resumes(0))
    };
    assert_eq!(begin(leases(&[100, 101], held)), (vec![], true));
    let all = vec![ended(100), ended(101), take_off(&[100, 101])];
    assert_eq!(begin(leases(&[100, 101], LAPSED)), (all.clone(), false));
    assert_eq!(begin(leases(&[100, 101], NOW)), (all.clone(), false), "a lease ends at its end");
    assert_eq!(begin([leases(&[100], held), leases(&[101], LAPSED)].concat()), (all, false), "one of two holds");
    // There was no room in the table for one of them, or for any.
    assert_eq!(begin(leases(&[101], held)), (vec![ended(101), take_off(&[100, 101])], false));
    assert_eq!(begin(vec![]), (vec![take_off(&[100, 101])], false));
}

#[test]
fn an_earlier_mastership_is_continued_once_and_only_while_its_leases_hold() {
    let held = NOW + Duration::from_secs(1);
    let mut holdings = Holdings::default();
    holdings.begin(0, "eth0", &nets(&[100]), leases(&[100], held), NOW);
    holdings.begin(1, "eth0", &nets(&[101]), leases(&[101], held), NOW);
    assert_eq!(holdings.resume(0, |_| held, NOW), Resumption::Holds);
    assert_eq!(holdings.resume(0, |_| held, NOW), Resumption::None);
    assert_eq!(holdings.resume(1, |_| held, held), Resumption::Lapsed);
    assert_eq!(one(&[100]).resume(0, |_| held, NOW), Resumption::None, "nothing held at its begin");
}

#[test]
fn an_instance_that_ends_leaves_its_lease_until_the_address_is_off_the_interface() {
    let mut holdings = one(&[100]);
    holdings.configure([]);
    assert_eq!(holdings.end(0), [take_off(&[100])]);
    assert_eq!(forgotten(&holdings, &[100]), [], "it is still leaving");
    holdings.released(&ips(&[100]));
    assert_eq!(forgotten(&holdings, &[100]), [Forget { lease: 100 }]);
    assert_eq!(holdings.end(0), [], "it has ended already");
}

#[test]
fn an_address_that_moves_to_another_instance_keeps_its_lease() {
    let mut holdings = one(&[100]);
    holdings.configure(ips(&[100]));
    holdings.end(0);
    holdings.begin(1, "eth0", &nets(&[100]), leases(&[100], LAPSED), NOW);
    holdings.released(&ips(&[100]));
    assert_eq!(forgotten(&holdings, &[100]), []);
    assert_eq!(holdings.holder_of(&ips(&[99, 100])), Some(1));
}

#[test]
fn addresses_that_a_reload_drops_are_taken_off_and_the_others_keep_their_leases() {
    let mut holdings = one(&[100, 101, 102]);
    holdings.configure(ips(&[101, 103]));
    let change = holdings.change(0, &nets(&[101, 103]));
    assert_eq!(change.orders, [ended(100), ended(102), take_off(&[100, 102])]);
    assert!(change.differs);
    holdings.enter(0, leases(&[101, 103], LAPSED));
    let until = NOW + Duration::from_secs(3);
    let renewed = [Renew { lease: 101, until }, Renew { lease: 103, until }];
    assert_eq!(holdings.renew(0, until), renewed);
    assert_eq!(forgotten(&holdings, &[100, 101, 102, 103]), []);
    holdings.released(&ips(&[100, 102]));
    assert_eq!(forgotten(&holdings, &[100, 101, 102, 103]), [Forget { lease: 100 }, Forget { lease: 102 }]);
}

#[test]
fn a_reload_that_changes_no_address_orders_nothing() {
    let mut holdings = one(&[100, 101]);
    assert_eq!(holdings.change(0, &nets(&[100, 101])), AddressChange::default());
    let other_order = holdings.change(0, &nets(&[101, 100]));
    assert_eq!(other_order, AddressChange { orders: vec![], differs: true });
}

#[test]
fn the_lease_of_an_instance_that_an_earlier_run_had_is_removed_at_the_start() {
    assert_eq!(forgotten(&one(&[100]), &[99, 100]), [Forget { lease: 99 }]);
}

#[test]
fn a_master_puts_its_addresses_on_and_releases_the_lease_before_the_address() {
    let mut holdings = one(&[100, 101]);
    let addresses = nets(&[100, 101]);
    assert_eq!(holdings.hold(0, NOW), [PutOn { id: 0, interface: "eth0".into(), addresses }]);
    assert_eq!(holdings.release(0), [ended(100), ended(101), take_off(&[100, 101])]);
    assert_eq!((holdings.hold(1, NOW), holdings.release(1), holdings.renew(1, NOW)), (vec![], vec![], vec![]));
}

#[test]
fn each_claim_of_another_host_is_reported_once_with_its_address() {
    let mut holdings = one(&[100, 101]);
    let (nobody, other) = ([0; 6], [2, 0, 0, 0, 0, 7]);
    let once = |lease| if lease == 101 { Claims { count: 2, by: other } } else { Claims { count: 0, by: nobody } };
    assert_eq!(holdings.new_claims(0, once), [NewClaim { address: ip(101), by: other, times: 2 }]);
    assert_eq!(holdings.new_claims(0, once), []);
    assert_eq!(holdings.new_claims(1, once), []);
}

#[test]
fn addresses_that_the_kernel_does_not_put_on_are_overdue_once_until_it_has_answered_every_order() {
    let at = |millis| NOW + Duration::from_millis(millis);
    let mut holdings = one(&[100]);
    assert_eq!(holdings.deadline(), None);
    holdings.hold(0, at(0));
    assert_eq!((holdings.overdue(at(2999)), holdings.deadline()), (vec![], Some(at(3000))));
    assert_eq!((holdings.overdue(at(3000)), holdings.overdue(at(9000)), holdings.deadline()), (vec![0], vec![], None));
    // It is tried again, and only now the first order is answered: that says nothing of the second.
    holdings.hold(0, at(8000));
    holdings.answered(0, false);
    assert_eq!(holdings.deadline(), Some(at(11_000)));
    holdings.answered(0, false);
    assert_eq!((holdings.deadline(), holdings.overdue(at(20_000))), (None, vec![]));
    // Addresses that are taken off again are not waited for.
    holdings.hold(0, at(0));
    holdings.release(0);
    assert_eq!(holdings.deadline(), None);
}

/// A reload that changes the lease gives them other lifetimes.
#[test]
fn addresses_that_stand_already_are_never_overdue() {
    let mut holdings = one(&[100]);
    holdings.hold(0, NOW);
    holdings.answered(0, true);
    holdings.hold(0, NOW);
    assert_eq!(holdings.deadline(), None);
    // Whatever takes them off, or adds one, ends that.
    holdings.configure(ips(&[100, 101]));
    holdings.change(0, &nets(&[100, 101]));
    holdings.hold(0, NOW);
    assert!(holdings.deadline().is_some());
    holdings.answered(0, true);
    holdings.answered(0, true);
    holdings.release(0);
    holdings.hold(0, NOW);
    assert!(holdings.deadline().is_some());
    // An order that was answered while they were taken off says nothing of now.
    let mut holdings = one(&[100]);
    holdings.hold(0, NOW);
    holdings.release(0);
    holdings.answered(0, true);
    holdings.hold(0, NOW);
    assert!(holdings.deadline().is_some());
}
