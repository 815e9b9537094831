use super::*;
use crate::controller::{
    admin_state::{AdminEntry, AdminState},
    health::State as HealthState,
    plan::tests::service,
    tests::{SECOND, START, World},
};
use lb_common::{
    event::TRY_FAILED,
    flow::{Key, SlotAt},
    layout::{NONE, OUT},
    slot::State,
};

const DRAIN: AdminState = AdminState::Drain { deadline: None, rate: 50 };

impl World {
    /// Says something about a backend, or takes it back.
    fn say(&mut self, backend: u16, order: Option<AdminState>, now: Instant) {
        let name = self.controller.name_of(backend).expect("a backend");
        let mut admin_states = self.controller.admin_states().clone();
        match order {
            Some(order) => {
                drop(admin_states.say(name, AdminEntry { order, since: now, by: "uid 0".into() }, now.0 / 1_000_000))
            }
            None => drop(admin_states.take_back(&name, now.0 / 1_000_000)),
        }
        let actions = self.controller.set_admin_states(admin_states, &self.tables, now);
        self.act(&actions);
    }

    fn shown(&self, backend: u16) -> (String, Option<String>) {
        let standing = self.controller.standing(backend, Instant::ZERO, START);
        (standing.state.to_string(), standing.reason.map(|reason| reason.to_string()))
    }
}

fn admin(state: &str) -> (String, Option<String>) {
    (state.into(), Some("admin".into()))
}

#[test]
fn drained_and_in_maintenance_are_out_in_the_map_and_ready_brings_them_back() {
    let mut world = World::new(&[10, 11]);
    for (order, state) in [(DRAIN, "draining"), (AdminState::Maint, "maint")] {
        world.say(0, Some(order), START);
        assert_eq!((world.tables.admission(0), world.shown(0)), (NONE, admin(state)));
        assert_eq!(world.tables.admission(1), UP);
    }
    world.say(0, None, START);
    assert_eq!((world.tables.admission(0), world.shown(0)), (UP, ("up".into(), None)));
}

#[test]
fn it_holds_through_reloads_and_restarts_and_goes_with_the_backend() {
    let mut world = World::new(&[10, 11]);
    world.say(0, Some(DRAIN), START);
    let mut other = service("api", "10.0.1.100:6443", &[10, 11, 12]);
    other.backends[0].weight = 7;
    world.configure(vec![other], START + SECOND);
    assert_eq!((world.tables.admission(0), world.tables.row(0).weight), (NONE, 7));
    world.restart(START + 2 * SECOND);
    assert_eq!((world.tables.admission(0), world.shown(0)), (NONE, admin("draining")));
    // In between, the map said so by itself.
    let anew = world.controller.plan(world.controller.desired()).expect("a plan");
    assert_eq!(anew.writes, []);
    world.say(0, None, START + 3 * SECOND);
    assert_eq!(world.tables.admission(0), UP);
}

#[test]
fn ready_does_not_touch_what_health_has_found() {
    let mut world = World::new(&[10, 11]);
    world.say(0, Some(AdminState::Maint), START);
    for _ in 0..3 {
        world.event(TRY_FAILED, Reason::Refused, 0, START);
    }
    assert_eq!((world.tables.admission(0), world.shown(0)), (NONE, admin("maint")));
    world.say(0, None, START);
    assert_eq!(world.tables.admission(0), OUT);
    assert_eq!(world.tables.backend(0).retry_at, START + 10 * SECOND);
    assert!(matches!(world.controller.health(0).expect("health").state(), HealthState::Out { .. }));
}

#[test]
fn down_in_the_file_wins() {
    let mut world = World::new(&[10, 11]);
    let mut down = service("api", "10.0.1.100:6443", &[10, 11]);
    down.backends[0].down = true;
    world.configure(vec![down], START);
    for order in [Some(DRAIN), Some(AdminState::Maint), None] {
        world.say(0, order, START);
        assert_eq!((world.tables.admission(0), world.shown(0)), (NONE, ("down".into(), Some("config".into()))));
    }
}

#[test]
fn names_are_found_and_what_is_wrong_with_them_is_said() {
    let mut world = World::new(&[10, 11]);
    let api = service("api", "10.0.1.100:6443", &[10, 11]);
    let etcd = service("etcd", "10.0.1.100:2379", &[11, 12]);
    world.configure(vec![api.clone(), etcd.clone()], START);
    let find = |backend: &str, service: Option<&str>| world.controller.find(backend, service);
    assert_eq!(find("cp10", None), Ok(0));
    assert_eq!(find("cp11", Some("api")), Ok(1));
    let other = find("cp11", Some("etcd")).expect("the other one");
    assert_eq!(&*world.controller.backends()[&other].service, "etcd");
    let wrong = |backend: &str, service: Option<&str>| find(backend, service).expect_err("wrong");
    assert_eq!(wrong("cp11", None), "2 services have a backend cp11: choose one with --service api or --service etcd");
    assert_eq!(wrong("cp1", None), "there is no backend cp1: did you mean cp12? There are cp10, cp11, cp12");
    assert_eq!(wrong("db", None), "there is no backend db. There are cp10, cp11, cp12");
    assert_eq!(wrong("cp12", Some("api")), "there is no backend cp12: did you mean cp11? There are cp10, cp11");
    assert_eq!(wrong("cp10", Some("etc")), "there is no service etc: did you mean etcd? There are api, etcd");
    world.configure(vec![api], START);
    assert_eq!(world.controller.find("cp11", None), Ok(1), "a removed one is nobody's any more");
}

#[test]
fn other_settings_last_until_the_next_reload_and_leave_a_drain_alone() {
    let mut world = World::new(&[10, 11]);
    world.say(0, Some(DRAIN), START);
    let actions = world.controller.adjust(0, Some(5), Some(300));
    world.act(&actions);
    let row = &world.tables.row(0);
    assert_eq!((row.weight, row.max_conns, world.tables.admission(0)), (5, 300, NONE));
    let actions = world.controller.adjust(0, None, Some(0));
    world.act(&actions);
    assert_eq!((world.tables.row(0).weight, world.tables.row(0).max_conns), (5, 0));
    world.configure(vec![service("api", "10.0.1.100:6443", &[10, 11])], START + SECOND);
    assert_eq!(world.tables.row(0).weight, 1);
}

#[test]
fn a_weight_counts_in_the_table_of_a_service_that_hashes() {
    let mut world = World::new(&[10, 11]);
    let mut hash = service("api", "10.0.1.100:6443", &[10, 11]);
    hash.row.balance = schedule::HASH;
    world.configure(vec![hash], START);
    let actions = world.controller.adjust(1, Some(9), None);
    let weights = actions.iter().find_map(|action| match action {
        Action::Write(Write::Maglev { backends, .. }) => Some(backends.iter().map(|(_, w)| *w).collect::<Vec<_>>()),
        _ => None,
    });
    assert_eq!(weights, Some(vec![1, 9]));
}

#[test]
fn a_kill_takes_what_it_names_and_nothing_else() {
    let client = |last: u8, port: u16| SocketAddr::from(([10, 0, 9, last], port));
    let world = || {
        let mut world = World::new(&[10, 11]);
        for (slot, (backend, client)) in
            [(0, client(1, 1)), (1, client(1, 2)), (0, client(2, 1)), (1, client(3, 1))].into_iter().enumerate()
        {
            let flow = world.tables.open(backend, slot as u16, State::Established, 0, START);
            let SocketAddr::V4(address) = client else { unreachable!() };
            world.tables.change_slot(flow.at, |slot| slot.key = Key::of(address, 0));
        }
        world
    };
    let cases = [
        (Whose::Connection(client(1, 2)), vec![1]),
        (Whose::Connection(client(1, 3)), vec![]),
        (Whose::Client(client(1, 0).ip()), vec![0, 1]),
        (Whose::Client(client(9, 0).ip()), vec![]),
        (Whose::Backend(0), vec![0, 2]),
    ];
    for (whose, expected) in cases {
        let mut world = world();
        let task = world.controller.kill(whose, (Only::Open, Reason::Killed), &world.tables, START);
        assert_eq!(task.as_ref().map_or(0, |task| task.total), expected.len() as u64, "{whose:?}");
        world.run(START, START + SECOND);
        let slot_at = |slot: u16| SlotAt::new(world.tables.row(slot % 2).pools[0], slot);
        let is_closed = |slot: &u16| world.tables.ctl(slot_at(*slot)).state() == State::Closed;
        let closed: Vec<_> = (0..4).filter(is_closed).collect();
        let mut sorted = closed.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected, "{whose:?}");
        if let Some(task) = task {
            let over = world.controller.task(task.id).expect("a task");
            assert_eq!((over.reset, over.state), (expected.len() as u64, TaskState::Done));
        }
    }
}

#[test]
fn connections_of_another_host_are_counted_apart_and_not_reset() {
    let mut world = World::new(&[10, 11]);
    for slot in 0..7 {
        world.tables.open(slot % 2, slot, State::Established, 0, START);
    }
    let count = |world: &World, whose| world.controller.count(whose, Only::Open, &world.tables);
    assert_eq!(count(&world, Whose::Backend(0)), (4, 0));
    world.controller.set_ownership(Ownership::beside_another([].into(), SECOND), START);
    assert_eq!(count(&world, Whose::Backend(0)), (0, 4));
    let how = (Only::Open, Reason::Killed);
    assert!(world.controller.kill(Whose::Backend(0), how, &world.tables, START).is_none());
}

#[test]
fn a_rebalancing_makes_even_what_is_up_and_is_told_of_once() {
    let mut world = World::new(&[10, 11, 12, 13]);
    for slot in 0..90 {
        world.tables.open(slot % 3, slot, State::Established, 0, START - SECOND);
    }
    world.say(2, Some(DRAIN), START);
    let uneven = world.controller.uneven(None, 1, &world.tables, START).expect("services").remove(0);
    let resets: Vec<_> = uneven.shares.iter().map(|share| (share.load.backend, share.resets)).collect();
    assert_eq!(resets, [(0, 10), (1, 10), (3, 0)], "the drained one takes no part");
    world.notes.clear();
    let task = world.controller.rebalance(&uneven, 10, START).expect("something to do");
    let again = world.controller.uneven(None, 1, &world.tables, START).expect("services").remove(0);
    assert_eq!(again.skipped, Some("a rebalancing is already running"));
    world.run(START, START + 10 * SECOND);
    let over = world.controller.task(task.id).expect("a task");
    assert_eq!((over.reset, over.total, over.state), (20, 20, TaskState::Done));
    assert_eq!(world.notes, ["service api is rebalanced: 20 connection(s) were reset"]);
    assert_eq!([0, 1, 2].map(|backend| world.tables.backend(backend).active), [20, 20, 30]);
}

#[test]
fn a_stopped_rebalancing_resets_no_more() {
    let mut world = World::new(&[10, 11]);
    for slot in 0..100 {
        world.tables.open(0, slot, State::Established, 0, START - SECOND);
    }
    let uneven = world.controller.uneven(Some("api"), 1, &world.tables, START).expect("a service").remove(0);
    let task = world.controller.rebalance(&uneven, 10, START).expect("something to do");
    world.run(START, START + 2 * SECOND);
    let stopped = world.controller.stop_task(task.id).expect("a task");
    assert_eq!((stopped.state, stopped.reset), (TaskState::Stopped, 20));
    world.run(START + 2 * SECOND, START + 20 * SECOND);
    assert_eq!(world.tables.backend(0).active, 80);
    assert!(world.controller.deadline() - (START + 20 * SECOND) < SECOND);
}

#[test]
fn services_whose_clients_do_not_come_back_to_the_least_busy_one_are_left_alone() {
    let mut world = World::new(&[10, 11]);
    for balance in [schedule::HASH, schedule::ROUND_ROBIN] {
        let mut other = service("api", "10.0.1.100:6443", &[10, 11]);
        other.row.balance = balance;
        world.configure(vec![other], START);
        world.tables.open(0, balance as u16, State::Established, 0, START);
        world.tables.open(0, 10 + balance as u16, State::Established, 0, START);
        let uneven = world.controller.uneven(None, 1, &world.tables, START).expect("services").remove(0);
        assert!(uneven.skipped.is_some() && uneven.shares.iter().all(|share| share.resets == 0));
    }
    let wrong = world.controller.uneven(Some("ap"), 1, &world.tables, START).expect_err("no such service");
    assert_eq!(wrong, "there is no service ap: did you mean api? There are api");
}
