use lb_common::flow::SlotAt;

use super::*;
use crate::{config::model::MssClamp, controller::testbed::Testbed, words::SynCookies};

const SECOND: Duration = Duration::from_secs(1);

fn v4(text: &str) -> SocketAddrV4 {
    text.parse().expect("an address")
}

pub fn backend(host: u8) -> DesiredBackend {
    DesiredBackend {
        name: Arc::from(format!("cp{host:02}")),
        address: SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, host), 6443),
        weight: 1,
        max_conns: 0,
        max_fails: 3,
        fail_timeout: 10 * SECOND,
        slow_start: Duration::ZERO,
        backup: false,
        down: false,
    }
}

pub fn service(name: &str, listen: &str, hosts: &[u8]) -> DesiredService {
    let listen = v4(listen);
    DesiredService {
        name: Arc::from(name),
        listen: vec![listen],
        row: ServiceRow {
            connect_timeout: 2 * SECOND,
            balance: schedule::LEAST_CONN,
            tries: hosts.len() as u32,
            half_open_cells: 64,
            log: true,
            rules: Vec::new(),
            client_limit: 0,
            exempt: BTreeSet::new(),
            backends: Vec::new(),
        },
        syn_cookies: SynCookies::Auto,
        mss_clamp: MssClamp::Off,
        idle_timeout: 600 * SECOND,
        snat: vec![*listen.ip()],
        ports: Ports { first: 10_240, count: 22_528 },
        reset_rate: 5000,
        probe: None,
        backends: hosts.iter().map(|host| backend(*host)).collect(),
    }
}

fn one(hosts: &[u8]) -> Desired {
    Desired { services: vec![service("api", "10.0.1.100:6443", hosts)] }
}

fn apply(tables: &mut Testbed, desired: &Desired) -> Plan {
    let plan = plan(&tables.installed(), desired, &BTreeMap::new()).expect("a plan");
    for write in &plan.writes {
        tables.write(write);
    }
    assert_eq!(tables.installed(), plan.after, "the plan knows what it writes");
    plan
}

fn kinds(plan: &Plan) -> Vec<&'static str> {
    let kind = |write: &Write| match write {
        Write::NewPool { .. } => "new pool",
        Write::SetPorts { .. } => "set ports",
        Write::ReachPort { .. } => "reach port",
        Write::WithholdPort { .. } => "withhold port",
        Write::FlagPool { .. } => "flag pool",
        Write::NewBackend { .. } => "new backend",
        Write::SetBackend { row, .. } if row.closed => "close backend",
        Write::SetBackend { .. } => "set backend",
        Write::SetService { .. } => "set service",
        Write::Maglev { .. } => "maglev",
        Write::SetListener { listener, .. } if listener.state == CLOSING => "close listener",
        Write::SetListener { .. } => "set listener",
        Write::RemoveListener { .. }
        | Write::RemoveBackend { .. }
        | Write::RemoveService { .. }
        | Write::RemovePool { .. } => "remove",
    };
    plan.writes.iter().map(kind).collect()
}

#[test]
fn a_fresh_install_writes_pools_then_backends_then_the_service_then_the_listener() {
    let plan = apply(&mut Testbed::default(), &one(&[10, 11]));
    let order = ["new pool", "new backend", "new pool", "new backend", "set service", "set listener"];
    assert_eq!(kinds(&plan), order);
    assert_eq!(plan.places, [(0, vec![0, 1])]);
}

#[test]
fn the_same_configuration_again_writes_nothing_also_for_a_controller_that_starts_anew() {
    let mut tables = Testbed::default();
    apply(&mut tables, &one(&[10, 11, 12]));
    assert_eq!(apply(&mut tables, &one(&[10, 11, 12])).writes, []);
}

#[test]
fn an_added_backend_is_there_before_its_service_lists_it() {
    let mut tables = Testbed::default();
    apply(&mut tables, &one(&[10]));
    assert_eq!(kinds(&apply(&mut tables, &one(&[10, 11]))), ["new pool", "new backend", "set service"]);
}

#[test]
fn a_removed_backend_leaves_the_list_and_becomes_a_tombstone() {
    let mut tables = Testbed::default();
    apply(&mut tables, &one(&[10, 11]));
    let plan = apply(&mut tables, &one(&[11]));
    assert_eq!(kinds(&plan), ["set service", "close backend"]);
    assert_eq!(tables.service_of(0).backends, [1]);
    assert!(tables.installed().is_tombstone(0) && !tables.installed().is_tombstone(1));
    assert_eq!(tables.admission(0), lb_common::layout::NONE);
}

#[test]
fn a_backend_that_comes_back_takes_over_its_tombstone() {
    let mut tables = Testbed::default();
    apply(&mut tables, &one(&[10, 11]));
    tables.change_backend(0, |record| record.opened = 77);
    apply(&mut tables, &one(&[11]));
    let plan = apply(&mut tables, &one(&[10, 11]));
    assert_eq!(kinds(&plan), ["set backend", "set service"]);
    let admission = tables.admission(0);
    assert_eq!((tables.backend(0).opened, admission), (77, lb_common::layout::NONE), "that is for the core to say");
    assert_eq!(plan.places, [(0, vec![0, 1])]);
}

#[test]
fn a_backend_that_only_the_other_host_has_becomes_a_tombstone_which_its_flows_find() {
    let (mut tables, desired) = (Testbed::default(), one(&[10, 11]));
    apply(&mut tables, &desired);
    let (listener, snat) = (v4("10.0.1.100:6443"), Ipv4Addr::new(10, 0, 1, 100));
    let planned = |listener, backend, snat| tombstone(&tables.installed(), &desired, listener, backend, snat);
    assert!(planned(listener, v4("10.0.1.11:6443"), snat).is_none(), "a backend of ours");
    assert!(planned(v4("10.0.1.100:1"), v4("10.0.1.12:6443"), snat).is_none(), "no service of ours");
    assert!(planned(listener, v4("10.0.1.12:6443"), Ipv4Addr::new(10, 0, 1, 99)).is_none(), "nor that SNAT address");
    let plan = planned(listener, v4("10.0.1.12:6443"), snat).expect("a plan");
    assert_eq!(kinds(&plan), ["new pool", "new backend"]);
    plan.writes.iter().for_each(|write| tables.write(write));
    let installed = tables.installed();
    let number = installed.backend(plan.after.listener(listener).expect("a listener").1.service, v4("10.0.1.12:6443"));
    let number = number.expect("the tombstone");
    assert!(installed.is_tombstone(number) && installed.backends[&number].closed);
    assert_eq!(tables.admission(number), lb_common::layout::NONE);
    // Of one that is known, the slots for another SNAT address of the service may be missing.
    let other = Ipv4Addr::new(10, 0, 1, 101);
    let mut both = desired.clone();
    both.services[0].snat.push(other);
    for known in ["10.0.1.11:6443", "10.0.1.12:6443"] {
        let plan = tombstone(&installed, &both, listener, v4(known), other).expect("a plan");
        assert_eq!((kinds(&plan), &plan.after.backends), (vec!["new pool"], &installed.backends), "{known}");
        assert!(plan.after.pool(v4(known), other).is_some());
        assert!(tombstone(&plan.after, &both, listener, v4(known), other).is_none(), "it is there");
    }
}

#[test]
fn weights_and_limits_change_in_place() {
    let mut tables = Testbed::default();
    apply(&mut tables, &one(&[10, 11]));
    let mut heavier = one(&[10, 11]);
    heavier.services[0].backends[1].weight = 5;
    heavier.services[0].backends[1].max_conns = 100;
    assert_eq!(kinds(&apply(&mut tables, &heavier)), ["set backend"]);
    heavier.services[0].row.connect_timeout = SECOND;
    assert_eq!(kinds(&apply(&mut tables, &heavier)), ["set service"]);
}

#[test]
fn a_listener_that_goes_is_closed_before_anything_else_and_opens_again_in_its_place() {
    let mut tables = Testbed::default();
    let mut two = one(&[10]);
    two.services[0].listen.push(v4("10.0.1.101:6443"));
    apply(&mut tables, &two);
    assert_eq!(kinds(&apply(&mut tables, &one(&[10]))), ["close listener"]);
    assert_eq!(tables.installed().listeners.len(), 2, "it translates what it has");
    assert_eq!(kinds(&apply(&mut tables, &two)), ["set listener"]);
    assert_eq!(tables.installed().listeners.len(), 2);
}

#[test]
fn a_service_that_goes_lists_nobody_and_keeps_translating() {
    let mut tables = Testbed::default();
    let mut both = one(&[10]);
    both.services.push(service("other", "10.0.1.100:7443", &[20]));
    apply(&mut tables, &both);
    assert_eq!(kinds(&apply(&mut tables, &one(&[10]))), ["close listener", "set service", "close backend"]);
    assert!(tables.service_of(1).backends.is_empty());
}

#[test]
fn a_service_is_known_again_by_its_listener_whatever_its_name() {
    let mut tables = Testbed::default();
    apply(&mut tables, &one(&[10]));
    let renamed = Desired { services: vec![service("kube-apiserver", "10.0.1.100:6443", &[10])] };
    assert_eq!(apply(&mut tables, &renamed).writes, []);
}

#[test]
fn a_service_whose_address_changes_keeps_its_place_by_its_name() {
    let mut tables = Testbed::default();
    apply(&mut tables, &one(&[10]));
    let mut moved = one(&[10]);
    moved.services[0].listen = vec![v4("10.0.1.99:6443")];
    let known = BTreeMap::from([(Arc::from("api"), 0)]);
    let plan = plan(&tables.installed(), &moved, &known).expect("a plan");
    assert_eq!(kinds(&plan), ["close listener", "flag pool", "set listener"]);
}

#[test]
fn two_services_share_the_slots_of_one_backend_and_snat_address() {
    let mut tables = Testbed::default();
    let mut both = one(&[10]);
    both.services.push(service("other", "10.0.1.100:7443", &[10]));
    apply(&mut tables, &both);
    assert_eq!((tables.installed().pools.len(), tables.installed().backends.len()), (1, 2));
}

#[test]
fn a_listen_port_within_the_snat_ports_of_its_address_is_withheld() {
    let mut tables = Testbed::default();
    let inside = Desired { services: vec![service("api", "10.0.1.100:16443", &[10])] };
    apply(&mut tables, &inside);
    let withheld = |tables: &Testbed| tables.withheld.values().next().expect("a pool").clone();
    assert_eq!(withheld(&tables), BTreeSet::from([16_443]));
    let mut more = inside.clone();
    more.services[0].listen.push(v4("10.0.1.100:16444"));
    more.services[0].listen.push(v4("10.0.1.101:16445"));
    assert_eq!(kinds(&apply(&mut tables, &more)), ["withhold port", "set listener", "set listener"]);
    assert_eq!(withheld(&tables), BTreeSet::from([16_443, 16_444]));
}

#[test]
fn other_snat_ports_are_given_to_the_slots_that_exist() {
    let mut tables = Testbed::default();
    apply(&mut tables, &one(&[10, 11]));
    let before = tables.installed();
    // Wider on both sides, moved, narrower, and back.
    for (first, count) in [(1024, 64_512), (40_000, 1000), (1024, 10), (10_240, 22_528)] {
        let mut other = one(&[10, 11]);
        other.services[0].ports = Ports { first, count };
        assert_eq!(kinds(&apply(&mut tables, &other)), ["set ports", "set ports"], "{first} {count}");
        assert_eq!(kinds(&apply(&mut tables, &other)), Vec::<&str>::new(), "and that is all");
        for (number, pool) in tables.installed().pools {
            assert_eq!(pool.first_port, before.pools[&number].first_port, "slots stay what they are");
            // 6443 is the listener's.
            let free = u32::from(count) - u32::from((first..=first + (count - 1)).contains(&6443));
            assert_eq!(tables.tables.free_slots(number), free, "{first} {count}");
        }
    }
}

#[test]
fn the_slot_of_a_port_that_only_the_other_host_uses_can_be_had() {
    let mut tables = Testbed::default();
    let desired = one(&[10]);
    apply(&mut tables, &desired);
    let (backend, snat) = (v4("10.0.1.10:6443"), Ipv4Addr::new(10, 0, 1, 100));
    for port in [50_000, 1024, 10_239] {
        let plan = reach(&tables.installed(), backend, SocketAddrV4::new(snat, port)).expect("a plan");
        assert_eq!(kinds(&plan), ["reach port"]);
        plan.writes.iter().for_each(|write| tables.write(write));
        assert_eq!(tables.installed(), plan.after);
        let (number, pool) = plan.after.pool(backend, snat).expect("the pool");
        let slot = port.wrapping_sub(pool.first_port);
        // That host may have more of them.
        assert!([slot, slot ^ 1].iter().all(|slot| tables.tables.has_slot(SlotAt::new(number, *slot))), "{port}");
        assert_eq!(tables.tables.free_slots(number), 22_528, "new connections do not get it");
    }
    assert_eq!(apply(&mut tables, &desired).writes, [], "nor is it in the file");
    assert!(reach(&tables.installed(), v4("10.0.1.12:6443"), SocketAddrV4::new(snat, 50_000)).is_none());
}

#[test]
fn hash_fills_its_table_by_weight_and_leaves_out_who_is_down() {
    let mut desired = one(&[10, 11, 12]);
    desired.services[0].row.balance = schedule::HASH;
    desired.services[0].backends[1].down = true;
    desired.services[0].backends[2].weight = 65_535;
    let plan = apply(&mut Testbed::default(), &desired);
    let table = plan.writes.iter().find_map(|write| match write {
        Write::Maglev { backends, .. } => Some(backends.iter().map(|(_, weight)| *weight).collect::<Vec<_>>()),
        _ => None,
    });
    assert_eq!(table, Some(vec![1, 0, 1637]));
}

#[test]
fn more_backends_than_there_are_places_is_an_error_and_no_plan() {
    let services = (0..17).map(|turn| {
        let mut service = service(&format!("s{turn}"), &format!("10.0.1.100:{}", 1000 + turn), &[]);
        service.backends = (0..64)
            .map(|host| DesiredBackend {
                address: SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, host), 6443 + turn),
                ..backend(host)
            })
            .collect();
        service
    });
    let errors = plan(&Installed::default(), &Desired { services: services.collect() }, &BTreeMap::new());
    assert!(errors.expect_err("too many").iter().any(|error| error.contains("service s16")));
}

#[test]
fn every_way_to_a_configuration_ends_where_a_fresh_install_does() {
    // A small generator, so that a failure can be repeated.
    let mut state = 0x5eed_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..200 {
        let mut tables = Testbed::default();
        let mut last = Desired::default();
        for _ in 0..12 {
            last = Desired::default();
            // Few, so that 2,400 configurations are made in a short time.
            let ports = [(10_240, 64), (10_240, 200), (10_200, 100), (10_250, 20), (30_000, 64)][draw(5) as usize];
            let ports = Ports { first: ports.0, count: ports.1 };
            for number in 0..=draw(3) {
                let hosts: Vec<u8> = (10..18).filter(|_| draw(2) == 0).collect();
                if hosts.is_empty() {
                    continue;
                }
                let mut service = service(&format!("s{number}"), &format!("10.0.1.100:{}", 7000 + number), &hosts);
                if draw(3) == 0 {
                    service.listen.push(v4(&format!("10.0.1.101:{}", 7000 + number)));
                }
                service.ports = ports;
                for backend in &mut service.backends {
                    backend.weight = 1 + draw(3) as u32;
                    backend.down = draw(6) == 0;
                }
                last.services.push(service);
            }
            apply(&mut tables, &last);
        }
        let mut fresh = Testbed::default();
        apply(&mut fresh, &last);
        assert_eq!(meaning(&tables), meaning(&fresh), "{last:#?}");
    }
}

/// What a client and a backend see of the tables, without numbers and without what is only there
/// for old flows.
fn meaning(tables: &Testbed) -> BTreeMap<SocketAddrV4, Vec<String>> {
    let installed = tables.installed();
    let backend = |number: &u16| {
        let row = &installed.backends[number];
        let address = installed.backend_address(row).expect("an address");
        let ports = row.pools.iter().map(|pool| (Ports::of(&installed.pools[pool]), tables.tables.free_slots(*pool)));
        format!("{address} weight {} closed {} ports {:?}", row.weight, row.closed, ports.collect::<Vec<_>>())
    };
    let active = installed.listeners.values().filter(|listener| listener.state == ACTIVE);
    let lists = active.map(|listener| {
        let service = &installed.services[&listener.service];
        (listener_address(listener), service.backends.iter().map(backend).collect())
    });
    lists.collect()
}

#[test]
fn the_pools_of_every_snat_address_know_whether_it_is_a_listen_address_also_after_a_reload() {
    let mut tables = Testbed::default();
    let own = Ipv4Addr::new(10, 0, 1, 1);
    let second = v4("10.0.1.101:6443");
    let mut desired = one(&[10]);
    desired.services[0].snat.extend([*second.ip(), own]);
    apply(&mut tables, &desired);
    let flags = |tables: &Testbed| {
        let installed = tables.installed();
        let of = |snat| installed.pool(v4("10.0.1.10:6443"), snat).map(|(_, pool)| pool.flags);
        [Ipv4Addr::new(10, 0, 1, 100), *second.ip(), own].map(|snat| of(snat).expect("a pool"))
    };
    assert_eq!(flags(&tables), [LISTENED, 0, 0]);
    desired.services[0].listen.push(second);
    assert_eq!(kinds(&apply(&mut tables, &desired)), ["flag pool", "set listener"], "known before a client comes");
    assert_eq!(flags(&tables), [LISTENED, LISTENED, 0]);
    // Another service's listener counts as much.
    desired.services[0].listen.pop();
    desired.services.push(service("other", "10.0.1.101:7443", &[10]));
    apply(&mut tables, &desired);
    assert_eq!(flags(&tables), [LISTENED, LISTENED, 0]);
    desired.services.pop();
    apply(&mut tables, &desired);
    assert_eq!(flags(&tables), [LISTENED, 0, 0]);
}
