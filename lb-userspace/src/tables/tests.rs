use lb_common::{
    flow::SlotAt,
    layout::{MAX_SERVICE_BACKENDS, OUT, UP},
    time::Instant,
};

use super::*;
use crate::tables::NewPool;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn pool(tables: &Tables, ports: u16, reserved: Vec<u16>) -> u16 {
    let new = NewPool {
        backend: address("10.0.1.10:6443"),
        snat: "10.0.1.100".parse().unwrap(),
        first_port: 10_240,
        ports,
        reserved,
        hop: Hop::new([2, 0, 0, 0, 0, 1], 3),
        upper_first: false,
    };
    tables.create_pool(&new).unwrap()
}

#[test]
fn a_listener_is_found_where_the_kernel_program_looks_for_it() {
    let tables = Tables::in_memory().unwrap();
    let number = tables.place_listener(address("10.0.1.100:6443"), 7).unwrap();
    let record = tables.listener(number);
    assert_eq!((record.service, record.state, record.family), (7, ACTIVE, 4));
    assert_eq!(record.address, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 1, 100]);
    assert_eq!(record.port, [25, 43]);
    let start = hash::listener_start(u32::from_ne_bytes([10, 0, 1, 100]), u16::from_ne_bytes([25, 43]), LISTENER_BITS);
    assert!((u32::from(number) + (1 << LISTENER_BITS) - start) % (1 << LISTENER_BITS) < hash::PROBES);
    assert_eq!(tables.place_listener(address("10.0.1.100:6443"), 8).unwrap(), number, "one place for one address");
    assert_eq!(tables.listener(number).service, 8);
}

#[test]
fn a_deleted_listener_is_passed_over_and_its_place_used_again() {
    let tables = Tables::in_memory().unwrap();
    // Ports of one address that begin their search at the same place.
    let place = |port: u16| {
        let port = u16::from_ne_bytes(port.to_be_bytes());
        hash::listener_start(u32::from_ne_bytes([10, 0, 1, 100]), port, LISTENER_BITS)
    };
    let mut twins = (1..=u16::MAX).filter(|port| place(*port) == place(6443) && *port != 6443);
    let first = tables.place_listener(address("10.0.1.100:6443"), 0).unwrap();
    let second_address = SocketAddr::new("10.0.1.100".parse().unwrap(), twins.next().unwrap());
    let second = tables.place_listener(second_address, 0).unwrap();
    assert_ne!(first, second);
    tables.close_listener(first);
    assert_eq!(tables.listeners().len(), 2);
    tables.delete_listener(first);
    assert_eq!(tables.listeners().len(), 1);
    assert_eq!(tables.place_listener(second_address, 0).unwrap(), second, "found behind the deleted one");
    let third = SocketAddr::new("10.0.1.100".parse().unwrap(), twins.next().unwrap());
    assert_eq!(tables.place_listener(third, 0).unwrap(), first);
}

#[test]
fn more_listeners_at_one_place_than_the_kernel_program_looks_at_are_refused() {
    let tables = Tables::in_memory().unwrap();
    let place = |port: u16| {
        let port = u16::from_ne_bytes(port.to_be_bytes());
        hash::listener_start(u32::from_ne_bytes([10, 0, 1, 100]), port, LISTENER_BITS)
    };
    let twins = (1..=u16::MAX).filter(|port| place(*port) == 17);
    let place = |port| tables.place_listener(SocketAddr::new("10.0.1.100".parse().unwrap(), port), 0).is_ok();
    let placed: Vec<bool> = twins.take(5).map(place).collect();
    assert_eq!(placed, [true, true, true, true, false]);
}

#[test]
fn ipv6_is_refused_with_a_reason_not_misplaced() {
    let tables = Tables::in_memory().unwrap();
    let error = tables.place_listener(address("[2001:db8::1]:6443"), 0).unwrap_err();
    assert!(error.to_string().contains("no IPv6"), "{error}");
}

#[test]
fn a_new_pool_has_all_its_ports_free_but_the_reserved_ones_in_order() {
    let tables = Tables::in_memory().unwrap();
    let number = pool(&tables, 100, vec![10_242, 10_339, 6443]);
    let record = tables.pool(number);
    assert_eq!((record.first_port, record.ports, record.port), (10_240, 100, [25, 43]));
    assert_eq!(record.hop, Hop::new([2, 0, 0, 0, 0, 1], 3));
    assert_eq!(tables.free_slots(number), 98);
    assert_eq!(tables.find_pool(address("10.0.1.10:6443"), "10.0.1.100".parse().unwrap()), Some(number));
    assert_eq!(tables.find_pool(address("10.0.1.10:6444"), "10.0.1.100".parse().unwrap()), None);
    assert_eq!(tables.slots(number), 100);
    let again = NewPool {
        backend: address("10.0.1.10:6443"),
        snat: "10.0.1.100".parse().unwrap(),
        first_port: 1,
        ports: 1,
        reserved: vec![],
        hop: Hop::default(),
        upper_first: false,
    };
    assert!(tables.create_pool(&again).is_err(), "a pool in use is not made anew");
}

#[test]
fn a_pool_is_removed_with_its_slots_and_can_be_made_again() {
    let tables = Tables::in_memory().unwrap();
    let number = pool(&tables, 16, vec![]);
    tables.remove_pool(number).unwrap();
    assert_eq!((tables.pools().len(), tables.slots(number)), (0, 0));
    assert_eq!(pool(&tables, 64, vec![]), number);
    assert_eq!(tables.free_slots(number), 64);
}

#[test]
fn configuring_a_backend_leaves_its_counters_and_its_admission_alone() {
    let tables = Tables::in_memory().unwrap();
    tables.fixed.backends.word32(5, offset_of!(Backend, active)).store(9, Ordering::Relaxed);
    tables.fixed.backends.word64(5, offset_of!(Backend, bytes_out)).store(1 << 40, Ordering::Relaxed);
    tables.admit(5, OUT, 77);
    let setup = BackendSetup {
        service: 3,
        weight: 0,
        max_conns: 100,
        backup: true,
        retry_after_ns: 10_000_000_000,
        slow_start_ms: 30_000,
        pools: vec![11, 12, 13],
    };
    tables.configure_backend(5, &setup);
    let record = tables.backend(5);
    assert_eq!((record.active, record.bytes_out, record.admission, record.retry_at), (9, 1 << 40, OUT, Instant(77)));
    assert_eq!((record.service, record.weight, record.max_conns, record.flags), (3, 1, 100, BACKUP));
    assert_eq!((record.pool_count, &record.pools[..4]), (3, &[11, 12, 13, 0][..]));
    assert_eq!((record.retry_after, tables.slow_start(5).ms, record.out_reason), (10_000_000_000, 30_000, 0));
    assert!(!tables.swap_admission(5, (UP, OUT), 1, 0), "not what it was thought to be");
    assert!(tables.swap_admission(5, (OUT, UP), 0, 77));
    assert_eq!((tables.slow_start(5).until, tables.service(3).slow_until), (Instant(77), Instant(77)));
    tables.correct_active(5, -9);
    assert_eq!((tables.backend(5).admission, tables.backend(5).active), (UP, 0));
    tables.reset_backend(5);
    assert_eq!(tables.backend(5), Backend::default());
}

#[test]
fn a_service_is_configured_and_its_half_open_flows_survive_a_larger_ring() {
    let tables = Tables::in_memory().unwrap();
    let mut setup = ServiceSetup {
        connect_timeout_ns: 2_000_000_000,
        balance: 1,
        tries: 3,
        half_open_cells: 8,
        log: true,
        rules: Vec::new(),
        client_limit: 0,
        backends: vec![4, 5, 6],
    };
    tables.configure_service(9, &setup).unwrap();
    let record = tables.service(9);
    assert_eq!((record.connect_timeout, record.balance, record.tries), (2_000_000_000, 1, 3));
    assert_eq!((record.half_open_cells, record.flags, record.backend_count), (8, LOG, 3));
    assert_eq!(record.backends[..3], [4, 5, 6]);
    let ring = tables.half_open.of(9).unwrap();
    ring.word64(6, 0).store(HalfOpenCell::new(SlotAt::new(11, 22), 33).0, Ordering::Relaxed);
    setup.half_open_cells = 16;
    setup.backends = vec![6];
    tables.configure_service(9, &setup).unwrap();
    assert_eq!(tables.half_open(9), [HalfOpen { pool: 11, slot: 22, generation: 33 }]);
    assert_eq!((tables.service(9).half_open_cells, tables.service(9).backend_count), (16, 1));
    tables.disable_service(9).unwrap();
    assert_eq!((tables.service(9).half_open_cells, tables.half_open(9)), (0, vec![]));
    setup.backends = vec![0; MAX_SERVICE_BACKENDS as usize + 1];
    assert!(tables.configure_service(9, &setup).is_err());
}

#[test]
fn interfaces_keep_their_numbers() {
    let tables = Tables::in_memory().unwrap();
    assert_eq!(tables.place_interface(7, [1; 6]).unwrap(), 0);
    assert_eq!(tables.place_interface(9, [2; 6]).unwrap(), 1);
    assert_eq!(tables.place_interface(7, [3; 6]).unwrap(), 0);
    assert_eq!(tables.interface(0).mac, [3; 6]);
    tables.remove_interface(7).unwrap();
    assert_eq!((tables.interface_number(7), tables.interface_number(9)), (None, Some(1)));
    assert_eq!(tables.place_interface(11, [4; 6]).unwrap(), 0);
    assert_eq!(tables.interface(255).ifindex, 0, "a byte that is no number finds nothing");
}
