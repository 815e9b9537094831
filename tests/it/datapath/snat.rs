//! Which SNAT address a connection gets if its service has several.

use std::net::{Ipv4Addr, SocketAddrV4};

use evenkeel::{
    dataplane::Answer,
    tables::{
        BackendRow,
        rows::{pool_record, pool_snat},
    },
};
use lab::{
    packet::{ACK, RST, SYN, Segment},
    program::{Bench, CLIENT_MAC, FIRST_PORT, Setup, VIP, backend, backend_mac, backend_of, put_listener, put_pool},
};
use lb_common::{
    layout::{Hop, LISTENED, Pool},
    verdict::Reason,
};

use super::{client, with_setup};

/// A second address that clients connect to.
const SECOND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 200), 6443);
/// SNAT addresses that nobody connects to.
const SPARE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
/// Ports of each SNAT address.
const PORTS: u16 = 16;

/// Two backends without a port at the bench's own SNAT address.
fn setup() -> Setup {
    Setup { backends: 2, ports: PORTS, ..Setup::default() }
}

/// Gives both backends pools at these addresses, in this order, and lets the service listen at
/// `SECOND` too.
fn give(bench: &Bench, addresses: &[Ipv4Addr]) {
    let tables = bench.tables();
    let listened = [VIP, SECOND].map(|listen| *listen.ip());
    let interface = tables.interface_number(bench.ifindex).expect("the bench's interface");
    for n in 0..bench.setup.backends {
        let pool = |snat: &Ipv4Addr| {
            let flags = if listened.contains(snat) { LISTENED } else { 0 };
            let hop = Hop::new(backend_mac(n), interface);
            let pool = Pool { hop, flags, ..pool_record(backend(n), *snat, FIRST_PORT, PORTS) };
            tables.find_pool(backend(n), *snat).map_or_else(
                || put_pool(tables, &pool, &[]),
                |number| {
                    tables.set_pool_flags(number, flags);
                    Ok(number)
                },
            )
        };
        let pools = addresses.iter().map(pool).collect::<Result<_, _>>().expect("rows for all pools");
        tables.configure_backend(n, &BackendRow { weight: 1, pools, ..BackendRow::default() });
    }
    put_listener(tables, SECOND, 0).expect("a row for the listener");
}

fn syn(bench: &Bench, n: u16, to: SocketAddrV4) -> Segment {
    Segment::new(client(n), to, SYN).macs(CLIENT_MAC, bench.mac).numbers(1000, 0)
}

/// The SNAT address that the SYN of client `n` to `to` gets, as it was foretold; or the refusal.
fn snat_of(bench: &mut Bench, n: u16, to: SocketAddrV4) -> Result<Ipv4Addr, Reason> {
    let listener =
        bench.tables().listeners().into_iter().find(|(_, listener)| listener.address[12..] == to.ip().octets());
    let (listener, _) = listener.expect("a listener");
    let foretold = match bench.dataplane.foretell(bench.ifindex, client(n).into(), listener).expect("an answer") {
        Answer::Opens { at, .. } => Ok(pool_snat(&bench.tables().pool(at.pool()))),
        Answer::TurnedAway { reason, .. } => Err(reason),
        other => panic!("{other:?}"),
    };
    let out = bench.forward(&syn(bench, n, to));
    let got = if out.flags & RST != 0 { Err(Reason::NoSlot) } else { Ok(*out.from.ip()) };
    assert_eq!(foretold, got, "client {n} of {to}");
    if let Ok(snat) = got {
        let answer = Segment::new(out.to, out.from, SYN | ACK).macs(backend_mac(backend_of(&out)), bench.mac);
        let back = bench.forward(&answer.numbers(5000, 1001));
        assert_eq!((back.from, back.to), (to, client(n)), "by {snat}");
        // An unconfirmed one would give way.
        let last = Segment::new(client(n), to, ACK).macs(CLIENT_MAC, bench.mac).numbers(1001, 5001);
        assert_eq!(*bench.forward(&last).from.ip(), snat);
    }
    got
}

#[test]
fn the_snat_address_is_the_one_that_the_client_came_by() {
    for order in [[*VIP.ip(), *SECOND.ip(), SPARE[0]], [SPARE[0], *SECOND.ip(), *VIP.ip()]] {
        with_setup(setup(), move |bench| {
            give(bench, &order);
            for n in 0..24 {
                let to = if n % 2 == 0 { VIP } else { SECOND };
                assert_eq!(snat_of(bench, n, to), Ok(*to.ip()), "client {n}");
            }
        });
    }
}

#[test]
fn when_its_ports_are_used_up_an_address_of_no_listener_serves_and_never_that_of_another_one() {
    with_setup(setup(), |bench| {
        give(bench, &[*SECOND.ip(), *VIP.ip(), SPARE[0], SPARE[1]]);
        let mut given = std::collections::BTreeMap::new();
        for n in 0..6 * PORTS {
            *given.entry(snat_of(bench, n, VIP).expect("a port")).or_insert(0) += 1;
        }
        let own_first = [*VIP.ip(), SPARE[0], SPARE[1]].map(|snat| (snat, 2 * PORTS));
        assert_eq!(given, own_first.into());
        assert_eq!(snat_of(bench, 6 * PORTS, VIP), Err(Reason::NoSlot));
        assert_eq!(snat_of(bench, 6 * PORTS + 1, SECOND), Ok(*SECOND.ip()), "its clients lose nothing by that");
    });
}

#[test]
fn a_listener_whose_address_is_none_of_them_uses_those_of_no_listener_or_else_all() {
    with_setup(setup(), |bench| {
        give(bench, &[*SECOND.ip(), SPARE[0], SPARE[1]]);
        for n in 0..4 * PORTS {
            let snat = snat_of(bench, n, VIP).expect("a port");
            assert!(SPARE.contains(&snat), "client {n}: {snat}");
        }
        assert_eq!(snat_of(bench, 4 * PORTS, VIP), Err(Reason::NoSlot));
    });
    with_setup(setup(), |bench| {
        give(bench, &[*SECOND.ip()]);
        assert_eq!(snat_of(bench, 0, VIP), Ok(*SECOND.ip()), "the operator has named no other");
    });
}

#[test]
fn a_reload_that_makes_a_snat_address_a_listen_address_takes_it_from_the_clients_of_others() {
    with_setup(setup(), |bench| {
        give(bench, &[*VIP.ip(), *SECOND.ip()]);
        let pools: Vec<_> =
            bench.tables().pools().into_iter().filter(|(_, pool)| pool_snat(pool) == *SECOND.ip()).collect();
        pools.iter().for_each(|(number, _)| bench.tables().set_pool_flags(*number, 0));
        for n in 0..2 * PORTS {
            assert_eq!(snat_of(bench, n, VIP), Ok(*VIP.ip()));
        }
        assert_eq!(snat_of(bench, 2 * PORTS, VIP), Ok(*SECOND.ip()), "an address of no listener yet");
        pools.iter().for_each(|(number, _)| bench.tables().set_pool_flags(*number, LISTENED));
        assert_eq!(snat_of(bench, 2 * PORTS + 1, VIP), Err(Reason::NoSlot));
        let data = Segment::new(client(2 * PORTS), VIP, ACK).macs(CLIENT_MAC, bench.mac).numbers(1001, 5001);
        assert_eq!(*bench.forward(&data).from.ip(), *SECOND.ip(), "what is open stays as it is");
    });
}

#[test]
fn the_next_backend_sees_the_same_address() {
    with_setup(setup(), |bench| {
        give(bench, &[SPARE[0], *SECOND.ip(), *VIP.ip()]);
        for n in 0..6 {
            let to = if n % 2 == 0 { VIP } else { SECOND };
            let first = bench.forward(&syn(bench, n, to));
            let refusal =
                Segment::new(first.to, first.from, RST | ACK).macs(backend_mac(backend_of(&first)), bench.mac);
            let second = bench.forward(&refusal.numbers(0, 1001));
            assert_eq!((second.flags, *second.from.ip()), (SYN, *to.ip()), "client {n}");
            assert_ne!(second.to, first.to);
        }
    });
}
