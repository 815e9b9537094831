use lb_common::{
    flow::{Key, SlotAt},
    slot::State,
    syn::Scales,
    time::{Instant, Ticks},
};

use super::*;
use crate::tables::{
    Foreign,
    tests::{address, put_pool},
};

const OURS: u32 = 2;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn through(ifindex: u32, mac: u8) -> Option<Way> {
    Some(Way::Through(NextHop { ifindex, mac: [mac; 6] }))
}

/// Tables with one interface of ours, and what netlink says of a segment with a router.
fn segment() -> (Ways, Tables) {
    let tables = Tables::in_memory().unwrap();
    tables.place_interface(OURS, [1; 6]).unwrap();
    let mut ways = Ways::default();
    let news = vec![
        (net("0.0.0.0/0"), through(OURS, 9)),
        (net("10.0.1.0/24"), Some(Way::Unknown)),
        (net("10.0.1.7/32"), through(OURS, 7)),
        (net("10.5.0.0/16"), through(77, 5)),
    ];
    ways.change(news, &tables).unwrap();
    (ways, tables)
}

/// Opens a flow of a client with this next hop; returns where it is.
fn flow(tables: &Tables, pool: u16, slot: u16, client: &str, hop: Hop) -> SlotAt {
    let at = SlotAt::new(pool, slot);
    let foreign = Foreign {
        at,
        backend: 0,
        key: Key::of(format!("{client}:5000").parse().unwrap(), 0),
        state: State::Established,
        hop,
        initial: [0; 2],
        ends: [1; 2],
        acks: [1; 2],
        edges: [1; 2],
        scales: Scales::default(),
        started: Instant(1),
        last_seen: Ticks(1),
        connect_us: 1,
        tries: 1,
    };
    tables.adopt(&foreign).unwrap();
    at
}

#[test]
fn the_longest_prefix_says_the_way_and_an_interface_that_is_not_ours_none() {
    let (ways, _) = segment();
    let way = |address: &str| ways.written.way_to(address.parse().unwrap()).map_or(Hop::default(), |(_, hop)| hop);
    assert_eq!(way("192.0.2.1"), Hop::new([9; 6], 0));
    assert_eq!(way("10.0.1.7"), Hop::new([7; 6], 0));
    assert_eq!(way("10.0.1.8"), Hop::default(), "on the link, not behind the router");
    assert_eq!(way("10.5.1.1"), Hop::default());
}

#[test]
fn an_interface_that_becomes_ours_makes_its_ways_known() {
    let (mut ways, tables) = segment();
    tables.place_interface(77, [2; 6]).unwrap();
    ways.renew(&tables).unwrap();
    let way = ways.written.way_to("10.5.1.1".parse().unwrap());
    assert_eq!(way, Some((net("10.5.0.0/16"), Hop::new([5; 6], 1))));
}

#[test]
fn when_a_router_changes_its_mac_the_flows_through_it_follow_and_no_others() {
    let (mut ways, tables) = segment();
    let pool = put_pool(&tables, address("10.0.1.10:6443"), address("10.0.1.100:0").ip(), 64);
    let router = Hop::new([9; 6], 0);
    let neighbour = Hop::new([7; 6], 0).of_neighbour();
    let flows = [
        flow(&tables, pool, 0, "192.0.2.1", router.of_neighbour()),
        flow(&tables, pool, 1, "192.0.2.2", router),
        flow(&tables, pool, 2, "192.0.2.3", Hop::new([8; 6], 0)),
        flow(&tables, pool, 3, "10.0.1.7", neighbour),
        flow(&tables, pool, 4, "192.0.2.4", Hop::new([9; 6], 1)),
    ];
    let hops = |tables: &Tables| flows.map(|at| tables.flow(at).unwrap().record.hop);
    let before = hops(&tables);
    ways.change(vec![(net("0.0.0.0/0"), through(OURS, 4))], &tables).unwrap();
    let new = Hop::new([4; 6], 0).of_neighbour();
    assert_eq!(hops(&tables), [new, new, before[2], before[3], before[4]]);
    ways.change(vec![(net("0.0.0.0/0"), Some(Way::Unknown)), (net("10.0.1.7/32"), None)], &tables).unwrap();
    let last = [new.bare(), new.bare(), before[2], neighbour.bare(), before[4]];
    assert_eq!(hops(&tables), last, "the last one known, until their frames say otherwise");
    ways.change(vec![(net("0.0.0.0/0"), through(OURS, 3)), (net("10.0.1.7/32"), through(OURS, 6))], &tables).unwrap();
    let (router, neighbour) = (Hop::new([3; 6], 0).of_neighbour(), Hop::new([6; 6], 0).of_neighbour());
    assert_eq!(hops(&tables), [router, router, before[2], neighbour, before[4]], "found again, somewhere else");
}

#[test]
fn a_route_that_moves_to_another_interface_takes_its_flows_along_and_another_route_does_not() {
    const OTHER: u32 = 3;
    let (mut ways, tables) = segment();
    tables.place_interface(OTHER, [2; 6]).unwrap();
    let pool = put_pool(&tables, address("10.0.1.10:6443"), address("10.0.1.100:0").ip(), 64);
    ways.change(vec![(net("10.9.0.0/16"), through(OURS, 5))], &tables).unwrap();
    let flows = [
        flow(&tables, pool, 0, "10.9.0.1", Hop::new([5; 6], 0).of_neighbour()),
        flow(&tables, pool, 1, "10.9.0.2", Hop::new([8; 6], 0)),
        flow(&tables, pool, 2, "10.0.1.7", Hop::new([7; 6], 0).of_neighbour()),
        flow(&tables, pool, 3, "10.8.0.1", Hop::new([5; 6], 0)),
    ];
    // Its frames come by the router of the other route.
    ways.change(vec![(net("10.8.0.0/16"), through(OTHER, 6))], &tables).unwrap();
    let hops = |tables: &Tables| flows.map(|at| tables.flow(at).unwrap().record.hop);
    let before = hops(&tables);
    let moved = Hop::new([6; 6], 1).of_neighbour();
    // Its new router is not known at first.
    ways.change(vec![(net("10.9.0.0/16"), Some(Way::Unknown))], &tables).unwrap();
    ways.change(vec![(net("10.9.0.0/16"), through(OTHER, 6))], &tables).unwrap();
    let stay = [moved, before[1], before[2], before[3]];
    assert_eq!(hops(&tables), stay, "one comes by another router, one is a neighbour, one has another route");
    // The address of the interface is flushed: what is left is a way elsewhere, for a moment.
    let flushed = vec![(net("10.9.0.0/16"), None), (net("0.0.0.0/0"), through(OURS, 4)), (net("10.0.1.7/32"), None)];
    ways.change(flushed, &tables).unwrap();
    assert_eq!(hops(&tables), [moved.bare(), before[1], Hop::new([7; 6], 0), before[3]]);
    // A neighbour that is known on the other interface too.
    ways.change(vec![(net("10.0.1.7/32"), through(OTHER, 7))], &tables).unwrap();
    assert_eq!(hops(&tables)[2], Hop::new([7; 6], 0));
}
