use super::*;
use crate::sync::mirror::ListenerAt;

const VIP: &str = "10.0.1.100";
const FIXED: &str = "10.0.1.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(milliseconds: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(milliseconds)
}

/// Listener 1 on the VIP, listener 2 on an address that VRRP does not carry.
fn directory() -> Directory {
    let listener = |number| ListenerAt { number, service: 0, ours: false, lingers: false, interface: None };
    let listeners = [(VIP, 1), (FIXED, 2)].map(|(address, number)| ((ip(address), 6443).into(), listener(number)));
    Directory { listeners: listeners.into(), ..Directory::default() }
}

/// The numbers of the listeners that are ours, and of those that linger.
fn marked(mastership: &Mastership) -> (Vec<u16>, Vec<u16>) {
    let mut directory = directory();
    mastership.mark(&mut directory);
    let numbers = |is: fn(&ListenerAt) -> bool| {
        let mut numbers: Vec<_> = directory.listeners.values().filter(|at| is(at)).map(|at| at.number).collect();
        numbers.sort_unstable();
        numbers
    };
    (numbers(|at| at.ours), numbers(|at| at.lingers))
}

#[test]
fn a_carried_address_is_held_while_its_lease_holds_and_any_other_while_an_interface_has_it() {
    for (lease, on_interface, holds) in [
        (None, false, false),
        (None, true, true),
        (Some(at(5)), false, true),
        (Some(at(5)), true, true),
        (Some(at(4)), true, false),
        (Some(Instant::ZERO), true, false),
    ] {
        let leases = lease.map(|until| (ip(VIP), until)).into_iter().collect();
        let addresses = on_interface.then(|| ip(VIP)).into_iter().collect();
        let held = Held { leases: &leases, addresses: &addresses };
        assert_eq!(held.holds(ip(VIP), at(4)), holds, "lease until {lease:?}, on an interface: {on_interface}");
    }
}

#[test]
fn a_listener_that_is_lost_lingers_for_two_seconds_and_one_that_returns_is_ours_from_then_on() {
    let addresses = [ip(FIXED)].into();
    let next = |before: &Mastership, lease, now| {
        let leases = [(ip(VIP), lease)].into();
        before.next(&directory(), Held { leases: &leases, addresses: &addresses }, now)
    };
    let backup = next(&Mastership::default(), Instant::ZERO, at(10));
    assert_eq!(marked(&backup), (vec![2], vec![]));
    let master = next(&backup, at(3000), at(20));
    assert_eq!(marked(&master), (vec![1, 2], vec![]));
    assert_eq!(*master.since(), [(1, at(20)), (2, at(10))].into());
    let same = next(&master, at(4000), at(1000));
    assert_eq!(same, master, "a lease that is extended changes nothing");
    let lost = next(&master, at(3000), at(3000));
    assert_eq!(marked(&lost), (vec![2], vec![1]));
    assert_eq!(marked(&next(&lost, Instant::ZERO, at(4999))), (vec![2], vec![1]));
    assert_eq!(marked(&next(&lost, Instant::ZERO, at(5000))), (vec![2], vec![]));
    let again = next(&lost, at(9000), at(4000));
    assert_eq!(marked(&again), (vec![1, 2], vec![]), "it lingers no longer: it is ours");
    assert_eq!(again.since()[&1], at(4000));
}

#[test]
fn a_listener_that_leaves_the_configuration_is_not_ours() {
    let (leases, addresses) = (BTreeMap::new(), [ip(FIXED)].into());
    let held = Held { leases: &leases, addresses: &addresses };
    let before = Mastership::default().next(&directory(), held, at(1));
    let after = before.next(&Directory::default(), held, at(2));
    assert_eq!((after.since().len(), marked(&after)), (0, (vec![], vec![2])));
}
