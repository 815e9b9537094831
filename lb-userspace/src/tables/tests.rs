use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use lb_common::{
    address::to_mapped,
    clients::ClientCount,
    failures::Window,
    flow::{HalfOpenCell, SlotAt},
    hash,
    layout::{
        BACKUP, CLOSING, COOKIES_OFF, COOKIES_ON, COOKIES_READY, EXEMPTS, LOG, MAX_SERVICE_BACKENDS, OUT, Opening,
        Rule, Slot, UP,
    },
    slot::{Ctl, State},
    time::{Instant, Ticks},
};

use super::{
    rows::{listener_record, pool_record},
    *,
};

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(address) = address else { panic!("IPv4 only") };
    address
}

fn record(backend: SocketAddr, snat: IpAddr, ports: u16) -> Pool {
    pool_record(v4(backend), *v4(SocketAddr::new(snat, 0)).ip(), FIRST, ports)
}

/// The SNAT port of slot 0.
pub(crate) const FIRST: u16 = 10_240;

/// Makes a pool in the row that a plan would choose.
pub(crate) fn put_pool(tables: &Tables, backend: SocketAddr, snat: IpAddr, ports: u16) -> u16 {
    let row = tables.read().free_pool_row(v4(backend), *v4(SocketAddr::new(snat, 0)).ip()).unwrap();
    tables.put_pool(row, &record(backend, snat, ports), &[], false).unwrap();
    row
}

/// Makes a listener of service 0 in the row that a plan would choose.
pub(crate) fn put_listener(tables: &Tables, address: SocketAddr) -> u16 {
    put(tables, address, 0).unwrap()
}

fn put(tables: &Tables, address: SocketAddr, service: u16) -> Option<u16> {
    let installed = tables.read();
    let there = installed.listener(v4(address)).map(|(row, _)| row);
    let row = there.or_else(|| installed.free_listener_row(v4(address)))?;
    tables.put_listener(row, &listener_record(v4(address), service)).unwrap();
    Some(row)
}

fn close(tables: &Tables, row: u16) {
    tables.put_listener(row, &Listener { state: CLOSING, ..tables.listener(row) }).unwrap();
}

fn pool(tables: &Tables, ports: u16, withheld: &[u16]) -> u16 {
    let new = record(address("10.0.1.10:6443"), address("10.0.1.100:0").ip(), ports);
    let row = tables.read().free_pool_row(v4(address("10.0.1.10:6443")), [10, 0, 1, 100].into()).unwrap();
    tables.put_pool(row, &Pool { hop: Hop::new([2, 0, 0, 0, 0, 1], 3), ..new }, withheld, false).unwrap();
    row
}

#[test]
fn a_listener_is_found_where_the_kernel_program_looks_for_it() {
    let tables = Tables::in_memory().unwrap();
    let number = put(&tables, address("10.0.1.100:6443"), 7).unwrap();
    let record = tables.listener(number);
    assert_eq!((record.service, record.state, record.family), (7, ACTIVE, 4));
    assert_eq!(record.address, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 1, 100]);
    assert_eq!(record.port, [25, 43]);
    let start = hash::listener_start(u32::from_ne_bytes([10, 0, 1, 100]), u16::from_ne_bytes([25, 43]), LISTENER_BITS);
    assert!((u32::from(number) + (1 << LISTENER_BITS) - start) % (1 << LISTENER_BITS) < hash::PROBES);
    assert_eq!(put(&tables, address("10.0.1.100:6443"), 8).unwrap(), number, "one row for one address");
    assert_eq!(tables.listener(number).service, 8);
}

#[test]
fn a_closed_listener_is_opened_again_for_another_service_and_a_damaged_one_can_be_closed() {
    let tables = Tables::in_memory().unwrap();
    let row = put(&tables, address("10.0.1.100:6443"), 0).unwrap();
    close(&tables, row);
    assert_eq!(put(&tables, address("10.0.1.100:6443"), 7), Some(row), "in the row where it stood");
    assert_eq!((tables.listener(row).service, tables.listener(row).state), (7, ACTIVE));
    assert_eq!(tables.listeners().len(), 1);

    let damaged = Listener { service: u16::MAX, ..tables.listener(row) };
    tables.fixed.listeners.publish(row.into(), &damaged, std::mem::offset_of!(Listener, state));
    close(&tables, row);
    assert_eq!(tables.listener(row).state, CLOSING);
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
    let first = put(&tables, address("10.0.1.100:6443"), 0).unwrap();
    let second_address = SocketAddr::new("10.0.1.100".parse().unwrap(), twins.next().unwrap());
    let second = put(&tables, second_address, 0).unwrap();
    assert_ne!(first, second);
    close(&tables, first);
    assert_eq!(tables.listeners().len(), 2);
    tables.delete_listener(first).unwrap();
    assert_eq!(tables.listeners().len(), 1);
    assert_eq!(put(&tables, second_address, 0).unwrap(), second, "found behind the deleted one");
    let third = SocketAddr::new("10.0.1.100".parse().unwrap(), twins.next().unwrap());
    assert_eq!(put(&tables, third, 0).unwrap(), first);
}

#[test]
fn more_listeners_at_one_place_than_the_kernel_program_looks_at_are_refused() {
    let tables = Tables::in_memory().unwrap();
    let place = |port: u16| {
        let port = u16::from_ne_bytes(port.to_be_bytes());
        hash::listener_start(u32::from_ne_bytes([10, 0, 1, 100]), port, LISTENER_BITS)
    };
    let twins = (1..=u16::MAX).filter(|port| place(*port) == 17);
    let place = |port| put(&tables, SocketAddr::new("10.0.1.100".parse().unwrap(), port), 0).is_some();
    let placed: Vec<bool> = twins.take(5).map(place).collect();
    assert_eq!(placed, [true, true, true, true, false]);
}

#[test]
fn ipv6_is_refused_with_a_reason_not_misplaced() {
    let tables = Tables::in_memory().unwrap();
    let six = Listener {
        address: to_mapped(address("[2001:db8::1]:6443").ip()),
        family: 6,
        state: ACTIVE,
        ..Listener::default()
    };
    let error = tables.put_listener(0, &six).unwrap_err();
    assert!(error.to_string().contains("no IPv6"), "{error}");
}

#[test]
fn a_new_pool_has_all_its_ports_free_but_the_reserved_ones_in_order() {
    let tables = Tables::in_memory().unwrap();
    let number = pool(&tables, 100, &[10_242, 10_339, 6443]);
    let record = tables.pool(number);
    assert_eq!((record.first_port, record.ports, record.port), (10_240, 100, [25, 43]));
    assert_eq!(record.hop, Hop::new([2, 0, 0, 0, 0, 1], 3));
    assert_eq!(tables.free_slots(number), 98);
    assert_eq!(tables.find_pool(v4(address("10.0.1.10:6443")), [10, 0, 1, 100].into()), Some(number));
    assert_eq!(tables.find_pool(v4(address("10.0.1.10:6444")), [10, 0, 1, 100].into()), None);
    assert_eq!(tables.slots(number), 100);
    let again = Pool { first_port: 1, ports: 1, ..record };
    assert!(tables.put_pool(number, &again, &[], false).is_err(), "a pool in use is not made again");
}

#[test]
fn a_pool_is_removed_with_its_slots_and_can_be_made_again() {
    let tables = Tables::in_memory().unwrap();
    let number = pool(&tables, 16, &[]);
    tables.remove_pool(number).unwrap();
    assert_eq!((tables.pools().len(), tables.slots(number)), (0, 0));
    assert_eq!(pool(&tables, 64, &[]), number);
    assert_eq!(tables.free_slots(number), 64);
}

#[test]
fn configuring_a_backend_leaves_its_counters_and_its_admission_alone() {
    let tables = Tables::in_memory().unwrap();
    tables.fixed.backends.word32(5, offset_of!(Backend, active)).store(9, Ordering::Relaxed);
    tables.fixed.backends.word64(5, offset_of!(Backend, bytes_out)).store(1 << 40, Ordering::Relaxed);
    tables.admit(5, OUT, Instant(77));
    let window = || Window(tables.fixed.failures.word64(5, offset_of!(Failures, window)).load(Ordering::Relaxed));
    let fail = |count| tables.fixed.failures.word64(5, offset_of!(Failures, window)).store(count, Ordering::Relaxed);
    fail(2);
    let setup = BackendRow {
        service: 3,
        weight: 0,
        max_conns: 100,
        backup: true,
        max_fails: 3,
        retry_after: Duration::from_secs(10),
        slow_start_ms: 30_000,
        pools: vec![11, 12, 13],
        closed: false,
    };
    tables.configure_backend(5, &setup);
    let record = tables.backend(5);
    assert_eq!((record.active, record.bytes_out, record.admission, record.retry_at), (9, 1 << 40, OUT, Instant(77)));
    assert_eq!((record.service, record.weight, record.max_conns, record.flags), (3, 1, 100, BACKUP));
    assert_eq!((record.pool_count, &record.pools[..4]), (3, &[11, 12, 13, 0][..]));
    assert_eq!((record.retry_after, tables.slow_start(5).ms, record.out_reason), (10_000_000_000, 30_000, 0));
    assert_eq!((tables.backend_row(5).map(|row| row.max_fails), window().count()), (Some(3), 2));
    assert!(!tables.swap_admission(5, (UP, OUT), Instant(1), Instant::ZERO), "not what it was thought to be");
    assert!(tables.swap_admission(5, (OUT, OUT), Instant(77), Instant::ZERO));
    assert_eq!(window().count(), 2);
    assert!(tables.swap_admission(5, (OUT, UP), Instant::ZERO, Instant(77)));
    assert_eq!((tables.slow_start(5).until, tables.service(3).slow_until), (Instant(77), Instant(77)));
    assert_eq!(window(), Window::default(), "who comes back has a clean record");
    tables.correct_active(5, -9);
    assert_eq!((tables.backend(5).admission, tables.backend(5).active), (UP, 0));
    tables.reset_backend(5);
    assert_eq!(tables.backend(5), Backend::default());
}

#[test]
fn a_service_is_configured_and_its_half_open_flows_survive_a_larger_ring() {
    let tables = Tables::in_memory().unwrap();
    let mut setup = ServiceRow {
        connect_timeout: Duration::from_secs(2),
        balance: 1,
        tries: 3,
        half_open_cells: 8,
        log: true,
        rules: Vec::new(),
        client_limit: 0,
        exempt: BTreeSet::new(),
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
    assert_eq!(tables.half_open(9), [HalfOpenCell::new(SlotAt::new(11, 22), 33)]);
    assert_eq!((tables.service(9).half_open_cells, tables.service(9).backend_count), (16, 1));
    tables.disable_service(9).unwrap();
    assert_eq!((tables.service(9).half_open_cells, tables.half_open(9)), (0, vec![]));
    setup.backends = vec![0; MAX_SERVICE_BACKENDS as usize + 1];
    assert!(tables.configure_service(9, &setup).is_err());
}

#[test]
fn who_is_exempt_from_cookies_is_written_for_each_service_and_read_again() {
    let tables = Tables::in_memory().unwrap();
    let set = |prefixes: &[&str]| prefixes.iter().map(|text| way_key(text.parse().unwrap())).collect::<BTreeSet<_>>();
    let row =
        |prefixes: &[&str]| ServiceRow { half_open_cells: 8, tries: 1, exempt: set(prefixes), ..ServiceRow::default() };
    let flags = || tables.service(9).flags;
    tables.configure_service(8, &row(&["10.9.0.0/16"])).unwrap();
    tables.configure_service(9, &row(&["10.9.0.0/16", "10.8.1.7/32", "fd00::/8"])).unwrap();
    assert_eq!(
        tables.exempt(9),
        [(112, v4_mapped([10, 9, 0, 0])), (128, v4_mapped([10, 8, 1, 7])), (8, fd00())].into()
    );
    assert_eq!((flags(), tables.service_row(9)), (EXEMPTS, row(&["fd00::/8", "10.8.1.7/32", "10.9.0.0/16"])));
    tables.set_cookies(9, COOKIES_ON);
    tables.set_mss_clamp(9, 1360);
    tables.configure_service(9, &ServiceRow { log: true, ..row(&["10.9.0.0/16"]) }).unwrap();
    assert_eq!((flags(), tables.exempt(9)), (EXEMPTS | LOG, set(&["10.9.0.0/16"])));
    let record = tables.service(9);
    assert_eq!((record.cookies, record.mss_clamp), (COOKIES_ON, 1360), "no plan writes these");
    tables.configure_service(9, &row(&[])).unwrap();
    assert_eq!((flags(), tables.exempt(9)), (0, set(&[])));
    tables.configure_service(9, &row(&["10.9.0.0/16"])).unwrap();
    tables.disable_service(9).unwrap();
    let record = tables.service(9);
    assert_eq!((record.cookies, record.mss_clamp, tables.exempt(9)), (COOKIES_OFF, 0, set(&[])));
    assert_eq!(tables.exempt(8), set(&["10.9.0.0/16"]), "another service keeps its own");
}

fn v4_mapped(octets: [u8; 4]) -> [u8; 16] {
    lb_common::address::to_mapped(octets)
}

fn fd00() -> [u8; 16] {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets
}

#[test]
fn a_swap_of_the_word_of_cookies_does_not_overwrite_another_one() {
    let tables = Tables::in_memory().unwrap();
    let word = || tables.cookies(9);
    tables.swap_cookies(9, COOKIES_OFF, COOKIES_READY);
    assert_eq!(word(), COOKIES_READY);
    tables.swap_cookies(9, COOKIES_OFF, COOKIES_ON);
    assert_eq!(word(), COOKIES_READY);
    let key = CookieKey { key: [7, 8], offset: 9, reserved: 0 };
    tables.set_cookie_key(&key);
    assert_eq!(tables.cookie_key(), key);
}

#[test]
fn interfaces_keep_their_numbers() {
    let tables = Tables::in_memory().unwrap();
    assert_eq!(tables.place_interface(7, [1; 6]).unwrap(), 0);
    assert_eq!(tables.place_interface(9, [2; 6]).unwrap(), 1);
    assert_eq!(tables.place_interface(7, [3; 6]).unwrap(), 0);
    tables.set_mtu(0, 9000);
    assert_eq!(tables.place_interface(7, [4; 6]).unwrap(), 0);
    assert_eq!((tables.interface(0).mac, tables.interface(0).mtu), ([4; 6], 9000));
    tables.set_mtu(0, 65_536);
    tables.set_mtu(5, 1500);
    assert_eq!((tables.interface(0).mtu, tables.interface(5).mtu), (65_535, 0));
    tables.remove_interface(7).unwrap();
    assert_eq!((tables.interface_number(7), tables.interface_number(9)), (None, Some(1)));
    assert_eq!(tables.place_interface(11, [4; 6]).unwrap(), 0);
    assert_eq!(tables.interface(0).mtu, 0, "of another interface");
    assert_eq!(tables.interface(255).ifindex, 0, "a byte that is no number finds nothing");
}

#[test]
fn an_interface_made_anew_gets_the_number_that_its_name_had_and_no_other_name_does() {
    let tables = Tables::in_memory().unwrap();
    for ifindex in [7, 9] {
        tables.place_interface(ifindex, [1; 6]).unwrap();
    }
    let had = [("eth0", 0), ("eth1", 1)].map(|(name, number)| (name.to_owned(), number)).into();
    assert_eq!(tables.retain_interfaces(|_| false).unwrap(), 2);
    let again = |ifindex, name| tables.place_interface_again(ifindex, [2; 6], &had, name).unwrap();
    assert_eq!((again(11, "eth1"), again(12, "br0"), again(13, "eth0"), again(14, "br1")), (1, 2, 0, 3));
    assert_eq!(again(13, "br2"), 0, "one that has a number keeps it");
    // Where nothing else is free, a number is better than none.
    tables.retain_interfaces(|ifindex| ifindex != 13).unwrap();
    (100..160).for_each(|ifindex| _ = again(ifindex, "other"));
    assert_eq!(again(160, "other"), 0);
    assert!(tables.place_interface_again(161, [2; 6], &had, "eth1").is_err());
}

#[test]
fn a_bond_has_the_members_that_were_set_last_and_takes_them_with_it() {
    let tables = Tables::in_memory().unwrap();
    let [bond, card] = [(7, [1; 6]), (9, [2; 6])].map(|(ifindex, mac)| tables.place_interface(ifindex, mac).unwrap());
    let [bond, card] = [bond, card].map(u32::from);
    let links = || tables.maps.links().unwrap();
    tables.set_members(0, &[20, 21, 9]).unwrap();
    assert_eq!(links(), [(7, bond), (9, card), (20, bond), (21, bond)], "9 is an interface of its own");
    tables.set_members(1, &[30]).unwrap();
    tables.set_members(0, &[21, 22]).unwrap();
    assert_eq!(links(), [(7, bond), (9, card), (21, bond), (22, bond), (30, card)], "20 has left, 22 has joined");
    tables.remove_interface(7).unwrap();
    assert_eq!(links(), [(9, card), (30, card)]);
    tables.set_members(1, &[]).unwrap();
    assert_eq!(links(), [(9, card)]);
}

#[test]
fn a_row_that_is_not_free_or_that_the_kernel_program_would_not_reach_is_an_error() {
    let tables = Tables::in_memory().unwrap();
    let listen = v4(address("10.0.1.100:6443"));
    let rows: Vec<u16> = rows::listener_rows(listen).collect();
    let refused = |row, listener: &Listener| tables.put_listener(row, listener).unwrap_err().to_string();
    let new = listener_record(listen, 0);
    assert!(refused(rows[1], &new).contains("ends at row"), "its first row was never used");
    assert!(refused(rows[3].wrapping_add(1), &new).contains("ends at row"));
    tables.put_listener(rows[0], &new).unwrap();
    assert!(refused(rows[1], &new).contains("it stands in row"));
    let other = listener_record(v4(address("10.0.1.100:7443")), 0);
    assert!(refused(rows[0], &other).contains("another listener"));
    assert_eq!(tables.listener(rows[0]), new, "and nothing was written");

    let (backend, snat) = (address("10.0.1.10:6443"), address("10.0.1.100:0").ip());
    let row = put_pool(&tables, backend, snat, 16);
    let next = rows::pool_rows(v4(backend), [10, 0, 1, 100].into()).nth(1).unwrap();
    let refused = |row, pool: &Pool| tables.put_pool(row, pool, &[], false).unwrap_err().to_string();
    assert!(refused(next, &record(backend, snat, 16)).contains("exists already"));
    assert!(refused(row, &record(address("10.0.1.11:6443"), snat, 16)).contains("another pool"));
    let far = record(address("10.0.1.11:6443"), snat, 16);
    assert!(refused(row.wrapping_add(500) % (1 << POOL_BITS), &far).contains("ends at row"));
}

#[test]
fn what_is_written_is_read_back() {
    // A small generator, so that a failure can be repeated.
    let mut state = 0x5eed_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let tables = Tables::in_memory().unwrap();
    let write = |write: Write| assert!(tables.write(&write, false).unwrap());
    let mut installed = Installed::default();
    for host in 0..40 {
        let (backend, snat) = (SocketAddrV4::new([10, 0, 2, host].into(), 6443), [10, 0, 1, 100].into());
        let number = installed.free_pool_row(backend, snat).unwrap();
        let pool = pool_record(backend, snat, 10_240, 16);
        installed.pools.insert(number, pool);
        write(Write::NewPool { number, pool, withheld: vec![10_241] });
    }
    let pools: Vec<u16> = installed.pools.keys().copied().collect();
    for turn in 0..500 {
        let (number, service) = (draw(60) as u16, draw(8) as u16);
        let backend = BackendRow {
            service,
            pools: pools[..1 + draw(8) as usize].to_vec(),
            weight: 1 + draw(65_535) as u32,
            max_conns: draw(3) as u32 * 1000,
            backup: draw(2) == 0,
            max_fails: draw(1001) as u32,
            retry_after: Duration::from_nanos(draw(1 << 31) * 1000),
            slow_start_ms: draw(100_000) as u32,
            closed: draw(3) == 0,
        };
        write(Write::NewBackend { number, row: backend.clone() });
        installed.backends.insert(number, backend);
        let rule = |prefix| Rule::v4(lb_common::rules::DENY, to_mapped(Ipv4Addr::new(10, 9, 0, 0)), prefix);
        let row = ServiceRow {
            connect_timeout: Duration::from_nanos(1 + draw(1 << 31) * 7),
            balance: draw(4) as u32,
            tries: 1 + draw(8) as u32,
            half_open_cells: 1 + draw(64) as u32,
            log: draw(2) == 0,
            rules: (0..draw(20) as u8).map(rule).collect(),
            client_limit: draw(3) as u32,
            exempt: (0..draw(4) as u32).map(|bits| (112 + bits, to_mapped(Ipv4Addr::new(10, 9, 0, 0)))).collect(),
            backends: (0..draw(65) as u16).collect(),
        };
        write(Write::SetService { number: service, row: row.clone() });
        installed.services.insert(service, row);
        let listen = SocketAddrV4::new([10, 0, 1, 100].into(), 7000 + draw(40) as u16);
        let there = installed.listener(listen).map(|(row, _)| row);
        if let Some(number) = there.or_else(|| installed.free_listener_row(listen)) {
            let state = if draw(3) == 0 { CLOSING } else { ACTIVE };
            let listener = Listener { state, ..listener_record(listen, service) };
            write(Write::SetListener { number, listener });
            installed.listeners.insert(number, listener);
        }
        if let Some(number) = installed.listeners.keys().nth(draw(60) as usize).copied() {
            installed.listeners.remove(&number);
            write(Write::RemoveListener { number });
        }
        if let Some(number) = installed.backends.keys().nth(draw(120) as usize).copied() {
            installed.backends.remove(&number);
            write(Write::RemoveBackend { number });
        }
        // A service that a backend or a listener names is in use, even before it is written.
        let mut read = tables.read();
        read.services.retain(|number, _| installed.services.contains_key(number));
        assert_eq!(read, installed, "turn {turn}");
    }
    for number in pools {
        write(Write::RemovePool { number });
    }
    assert!(tables.read().pools.is_empty());
}

/// What only the kernel program does, for simulations.
impl Tables {
    /// Puts a flow into a slot, in the slot's next generation.
    pub(crate) fn put_flow(&self, at: SlotAt, state: State, record: &Slot, opening: &Opening) -> FlowAt {
        let slots = self.slots_of(at.pool()).expect("a pool");
        let ctl = Ctl::new(slots.ctl(at.slot()).generation() + 1, state);
        slots.publish(at.slot(), &Slot { ctl, ..*record }, opening);
        FlowAt { at, ctl }
    }

    /// Opens a flow, half-open, in the slot whose turn it is; `None`: there is none.
    pub(crate) fn claim(&self, pool: u16, record: &Slot, opening: &Opening) -> Option<FlowAt> {
        let slots = self.slots_of(pool)?;
        let slot = loop {
            let slot = slots.pop(&self.fixed.rings)?;
            let word = slots.ctl(slot);
            match word.state() {
                State::Free | State::Closed => break slot,
                // A flow of the other host: its end gives the port back.
                _ => assert!(slots.swap(slot, word, word.without_flags(IN_RING)), "nothing else runs"),
            }
        };
        let at = SlotAt::new(pool, slot);
        self.leave(slots.key(slot), at, slots.ctl(slot).generation());
        let flow = self.put_flow(at, State::HalfOpen, record, opening);
        self.change_backend(record.backend, |record| {
            record.opened += 1;
            record.active += 1;
        });
        if self.enter(record.key, at, flow.ctl.generation()) != super::index::Entered::Won {
            self.end_quietly(at, |found| found.ctl == flow.ctl);
            return None;
        }
        let service = self.backend(record.backend).service;
        let ring = self.half_open.of(service).expect("a ring");
        let head = self.fixed.services.word32(service.into(), offset_of!(Service, half_open));
        let cell = head.fetch_add(1, Ordering::Relaxed) as usize % ring.len();
        ring.word64(cell, 0).store(HalfOpenCell::new(at, flow.ctl.generation()).0, Ordering::Relaxed);
        Some(flow)
    }

    /// Another host claims the address of a lease.
    pub(crate) fn claim_address(&self, lease: u16) {
        self.fixed.leases.word32(lease.into(), offset_of!(Lease, claims)).fetch_add(1, Ordering::Relaxed);
    }

    /// A slot's word.
    pub(crate) fn ctl(&self, at: SlotAt) -> Ctl {
        self.slots_of(at.pool()).expect("a pool").ctl(at.slot())
    }

    /// Changes a slot's record.
    pub(crate) fn change_slot(&self, at: SlotAt, change: impl FnOnce(&mut Slot)) {
        let slots = self.slots_of(at.pool()).expect("a pool");
        let (table, index) = slots.table(at.slot()).expect("a slot");
        let mut record = table.read(index);
        change(&mut record);
        table.publish(index, &record, offset_of!(Slot, ctl));
    }

    /// Changes a backend's record.
    pub(crate) fn change_backend(&self, number: u16, change: impl FnOnce(&mut Backend)) {
        let mut record = self.backend(number);
        change(&mut record);
        self.fixed.backends.publish(number.into(), &record, offset_of!(Backend, admission));
    }

    /// Sets the stamp of what a pool's backend sent last.
    pub(crate) fn set_heard(&self, pool: u16, stamp: Ticks) {
        self.fixed.pools.word32(pool.into(), offset_of!(Pool, heard)).store(stamp.0, Ordering::Relaxed);
    }

    /// Sets the stamp of what was sent to a pool's backend last.
    pub(crate) fn set_sent(&self, pool: u16, stamp: Ticks) {
        self.fixed.pools.word32(pool.into(), offset_of!(Pool, sent)).store(stamp.0, Ordering::Relaxed);
    }

    /// Enters a flow in the first cell of its service's ring that was never used.
    pub(crate) fn enter_half_open(&self, service: u16, cell: HalfOpenCell) {
        let ring = self.half_open.of(service).expect("a ring");
        let free = (0..ring.len()).find(|index| ring.read(*index) == 0).expect("room in the ring");
        ring.word64(free, 0).store(cell.0, Ordering::Relaxed);
        self.fixed.services.word32(service.into(), offset_of!(Service, half_open)).fetch_add(1, Ordering::Relaxed);
    }

    /// Replaces the words of a service's clients.
    pub(crate) fn set_clients(&self, service: u16, words: &[ClientCount]) {
        self.make_clients(service).expect("memory");
        let table = self.clients.of(service).expect("a table");
        let word = |index: usize| words.get(index).map_or(0, |word| word.0);
        for index in 0..table.len() * 8 {
            table.word64(index / 8, index % 8 * 8).store(word(index), Ordering::Relaxed);
        }
    }
}
