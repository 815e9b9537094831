use super::*;
use crate::{
    sync::wire::tests::flow,
    tables::tests::{put_listener, put_pool},
};

fn now() -> Clocks {
    let monotonic = Instant::ZERO + Duration::from_secs(5000);
    Clocks { monotonic, coarse: monotonic, wall_ms: 1_795_000_100_123 }
}

/// A host with one service and one backend.
fn host(ours: bool) -> Mirror {
    let tables = Tables::in_memory().unwrap();
    let example = flow(1).name;
    let number = put_pool(&tables, example.backend, example.snat.ip(), 64);
    let listener = put_listener(&tables, example.listener);
    let directory = Directory {
        listeners: [(
            example.listener,
            ListenerAt { number: listener, service: 0, ours, lingers: false, interface: Some(3) },
        )]
        .into(),
        backends: [((0, example.backend), 7)].into(),
        pools: [((example.backend, example.snat.ip()), PoolAt { number, first_port: 10_240, slots: 64 })].into(),
        refresh: Duration::from_secs(30),
    };
    Mirror { tables: Arc::new(tables), directory: Arc::new(directory) }
}

/// The same host after the VIP has moved.
fn moved(host: Mirror, ours: bool) -> Mirror {
    let mut directory = Directory::clone(&host.directory);
    directory.listeners.values_mut().for_each(|at| at.ours = ours);
    Mirror { directory: Arc::new(directory), ..host }
}

fn place(host: &Mirror, slot: u16) -> SlotAt {
    SlotAt::new(host.directory.pools.values().next().unwrap().number, slot)
}

fn active(host: &Mirror) -> u32 {
    host.tables.backend(7).active
}

#[test]
fn a_flow_is_the_same_on_the_other_host_and_back() {
    let host = host(false);
    assert_eq!(host.apply(&flow(5000), now()), Applied::Taken(place(&host, 9)));
    let at = place(&host, 9);
    let taken = host.tables.occupant(at).unwrap();
    assert_eq!((taken.client(), active(&host)), (flow(5000).name.client, 1));
    assert_eq!((taken.record.hop.mac(), taken.record.hop.interface()), (flow(5000).mac, 3));
    assert_eq!(host.record(&taken, now()), None, "a host without the address does not send");
    let host = moved(host, true);
    let sent = host.record(&taken, now()).unwrap();
    // Ticks are about a millisecond.
    assert!(sent.idle_ms.abs_diff(flow(5000).idle_ms) <= 2, "{sent:?}");
    assert_eq!(wire::FlowRecord { idle_ms: flow(5000).idle_ms, ..sent }, flow(5000));
}

#[test]
fn a_flow_that_is_there_is_brought_up_to_date_where_we_are_not_master_and_left_alone_where_we_are() {
    let host = host(false);
    let at = place(&host, 9);
    host.apply(&flow(5000), now());
    let newer = wire::FlowRecord { ends: [(1 << 33) + 500, 9], ..flow(5000) };
    assert_eq!(host.apply(&newer, now()), Applied::Kept(at));
    assert_eq!(host.tables.occupant(SlotAt::new(at.pool(), 9)).unwrap().record.end_client, (1 << 33) + 500);
    let host = moved(host, true);
    assert_eq!(host.apply(&flow(5000), now()), Applied::Ours);
    assert!(!host.ended(&flow(5000).name), "the other host does not end what is ours");
    assert_eq!(active(&host), 1);
}

#[test]
fn of_two_flows_in_one_slot_the_one_that_began_later_stands() {
    for ours in [false, true] {
        let host = moved(host(false), ours);
        let at = place(&host, 9);
        host.apply(&flow(5000), now());
        let earlier = wire::FlowRecord { established_at: flow(1).established_at - 1, ..flow(5001) };
        assert_eq!(host.apply(&earlier, now()), Applied::Conflict);
        let later = wire::FlowRecord { established_at: flow(1).established_at + 1, ..flow(5002) };
        assert_eq!(host.apply(&later, now()), Applied::Replaced(at));
        assert_eq!(host.tables.occupant(SlotAt::new(at.pool(), 9)).unwrap().client(), later.name.client);
        assert_eq!(active(&host), 1);
    }
}

#[test]
fn a_client_that_connects_again_from_the_same_port_has_one_flow() {
    let host = host(false);
    host.apply(&flow(5000), now());
    let mut again = wire::FlowRecord { established_at: flow(1).established_at + 60, initial: [1, 2], ..flow(5000) };
    assert_eq!(host.apply(&again, now()), Applied::Replaced(place(&host, 9)), "in the same slot");
    again.name.snat.set_port(10_250);
    again.established_at += 60;
    assert_eq!(host.apply(&again, now()), Applied::Replaced(place(&host, 10)), "in another slot");
    assert_eq!((active(&host), host.tables.occupant(place(&host, 9))), (1, None));
    assert_eq!(host.apply(&flow(5000), now()), Applied::Conflict, "and the old one does not come back");
}

#[test]
fn what_is_unknown_here_is_named() {
    let host = host(false);
    let with = |change: &dyn Fn(&mut wire::FlowName)| {
        let mut flow = flow(5000);
        change(&mut flow.name);
        host.apply(&flow, now())
    };
    assert_eq!(with(&|name| name.listener.set_port(1)), Applied::UnknownListener);
    assert_eq!(with(&|name| name.client = "[::1]:5".parse().unwrap()), Applied::UnknownListener);
    assert_eq!(with(&|name| name.backend.set_port(1)), Applied::UnknownBackend);
    assert_eq!(with(&|name| name.snat.set_ip("10.0.1.101".parse().unwrap())), Applied::UnknownBackend);
    for port in [0, 10_239, 10_304, u16::MAX] {
        assert_eq!(with(&|name| name.snat.set_port(port)), Applied::UnknownPort, "{port}");
    }
    assert_eq!(active(&host), 0);
}

#[test]
fn after_a_whole_copy_what_was_not_in_it_is_over() {
    let host = host(false);
    let mut present = HashSet::new();
    for slot in 0..20_u16 {
        let mut flow = flow(5000 + slot);
        flow.name.snat.set_port(10_240 + slot);
        let Applied::Taken(place) = host.apply(&flow, now()) else { panic!("not taken") };
        if slot % 2 == 0 {
            present.insert(place);
        }
    }
    let other = "10.0.1.200:6443".parse().unwrap();
    let absent = |host: &Mirror, listener, since| host.end_absent(&[listener], &present, since);
    let none = Absent::default();
    assert_eq!(absent(&host, other, Instant::NEVER), none, "a copy says nothing about listeners it does not cover");
    let vip = flow(1).name.listener;
    let host = moved(host, true);
    assert_eq!(absent(&host, vip, Instant::NEVER), none, "nor about what is ours");
    let host = moved(host, false);
    // As if they had begun here: packets have shown them.
    for slot in 0..20 {
        host.tables.change_slot(place(&host, slot), |slot| slot.ctl = slot.ctl.without_flags(LOOSE));
    }
    let kept = Absent { ended: 0, too_young: 10 };
    assert_eq!(absent(&host, vip, Instant(1)), kept, "nor about what has begun after it");
    assert_eq!((absent(&host, vip, Instant::NEVER), active(&host)), (Absent { ended: 10, too_young: 0 }, 10));
}
