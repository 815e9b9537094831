//! The core as a whole, over virtual time.

use super::*;
use jiff::Timestamp;
use lb_common::{
    event::{ENDED, RECOVERED, TOOK_OUT, TRY_FAILED, TURNED_AWAY},
    layout::{NONE, OUT, UP},
    slot::State as FlowState,
};
use plan::tests::service;
use testbed::Testbed;

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const START: Instant = Instant(1_000_000_000_000);

pub(super) struct World {
    pub controller: Controller,
    pub tables: Testbed,
    pub notes: Vec<String>,
}

impl World {
    pub fn new(hosts: &[u8]) -> World {
        let mut world = World { controller: Controller::default(), tables: Testbed::default(), notes: Vec::new() };
        world.configure(vec![service("api", "10.0.1.100:6443", hosts)], START);
        world
    }

    pub fn configure(&mut self, services: Vec<desired::DesiredService>, now: Instant) {
        let desired = Desired { services };
        let plan = self.controller.plan(&desired).expect("a plan");
        plan.writes.iter().for_each(|write| self.tables.write(write));
        let actions = self.controller.commit(desired, plan, &self.tables, now);
        self.act(&actions);
    }

    /// The process is killed and another one starts with the same file.
    pub fn restart(&mut self, now: Instant) {
        let desired = self.controller.desired().clone();
        self.controller = Controller::new(self.tables.read(), self.controller.admin_states().clone());
        self.configure(desired.services, now);
    }

    pub fn act(&mut self, actions: &[Action]) {
        self.tables.act(actions);
        for action in actions {
            if let Action::Note(notice) = action {
                self.notes.push(notice.to_string());
            }
        }
    }

    pub fn event(&mut self, kind: u8, reason: Reason, backend: u16, at: Instant) -> Vec<Action> {
        let event = Event {
            at,
            started: at,
            bytes_in: 0,
            bytes_out: 0,
            client: lb_common::address::to_mapped([10, 0, 9, 9]),
            client_port: [1, 2],
            listener: 0,
            service: 0,
            backend,
            pool: 0,
            slot: 0,
            generation: 1,
            connect_us: 0,
            kind,
            reason: reason as u8,
            tries: 1,
            family: 4,
        };
        let actions = self.controller.event(&event, Now { monotonic: at, wall: Timestamp::UNIX_EPOCH });
        self.act(&actions);
        actions
    }

    /// Turns whenever one is due.
    pub fn run(&mut self, from: Instant, to: Instant) -> u32 {
        let (mut now, mut turns) = (from, 0);
        while now < to {
            let actions = self.controller.turn(&self.tables, now);
            self.act(&actions);
            now = self.controller.deadline().max(now + Duration::from_nanos(1));
            turns += 1;
        }
        turns
    }
}

#[test]
fn the_third_refusal_takes_a_backend_out_and_an_answered_trial_brings_it_back() {
    let mut world = World::new(&[10, 11, 12]);
    for _ in 0..3 {
        world.event(TRY_FAILED, Reason::Refused, 1, START);
    }
    assert_eq!((world.tables.admission(1), world.tables.backend(1).retry_at), (OUT, START + 10 * SECOND));
    assert_eq!(world.notes, ["backend cp11 of service api is out for 10.0 s: refused (3 failures)"]);
    // The kernel program swaps the word itself, then reports it.
    world.tables.change_backend(1, |record| record.admission = UP);
    world.event(RECOVERED, Reason::NotOurs, 1, START + 11 * SECOND);
    assert_eq!(world.tables.admission(1), UP);
    assert_eq!(world.notes.last().map(String::as_str), Some("backend cp11 of service api is up"));
}

#[test]
fn all_of_them_can_be_out() {
    let mut world = World::new(&[10, 11, 12]);
    for backend in 0..3 {
        for _ in 0..3 {
            world.event(TRY_FAILED, Reason::ConnectTimeout, backend, START);
        }
    }
    assert!((0..3).all(|backend| world.tables.admission(backend) == OUT), "whom to try then is the kernel program's");
}

#[test]
fn an_older_connection_on_the_port_is_no_failure_of_the_backend() {
    let mut world = World::new(&[10, 11]);
    for _ in 0..100 {
        world.event(TRY_FAILED, Reason::TimeWait, 0, START);
    }
    assert_eq!(world.tables.admission(0), UP);
}

#[test]
fn health_survives_a_reload_and_a_restart() {
    let mut world = World::new(&[10, 11]);
    for _ in 0..3 {
        world.event(TRY_FAILED, Reason::Refused, 0, START);
    }
    world.configure(vec![service("api", "10.0.1.100:6443", &[10, 11, 12])], START + SECOND);
    assert_eq!(world.tables.admission(0), OUT);
    assert_eq!(cause_of(world.controller.health(0).expect("health")), Some(health::Cause::Refused));
    world.restart(START + 2 * SECOND);
    assert_eq!(world.tables.admission(0), OUT);
    let state = world.controller.health(0).expect("health").state();
    let cause = Some(health::Cause::Refused);
    assert_eq!(state, health::State::Out { retry_at: START + 10 * SECOND, cause });
    assert_eq!(world.controller.health(0).expect("health").changed_at(), START);
    world.event(TRY_FAILED, Reason::Refused, 0, START + 12 * SECOND);
    let state = world.controller.health(0).expect("health").state();
    assert_eq!(state, health::State::Out { retry_at: START + 22 * SECOND, cause });
}

#[test]
fn a_backend_set_down_and_up_again_starts_with_a_clean_record() {
    let mut world = World::new(&[10, 11]);
    for _ in 0..3 {
        world.event(TRY_FAILED, Reason::Refused, 0, START);
    }
    let mut down = service("api", "10.0.1.100:6443", &[10, 11]);
    down.backends[0].down = true;
    world.configure(vec![down], START + SECOND);
    assert_eq!(world.tables.admission(0), NONE);
    world.event(TRY_FAILED, Reason::Refused, 0, START + SECOND);
    assert_eq!(world.tables.admission(0), NONE, "a late failure changes nothing");
    world.configure(vec![service("api", "10.0.1.100:6443", &[10, 11])], START + 2 * SECOND);
    assert_eq!(world.tables.admission(0), UP);
}

#[test]
fn a_restart_changes_no_number_and_writes_nothing() {
    let mut world = World::new(&[10, 11, 12]);
    let before = world.tables.installed();
    let desired = world.controller.desired().clone();
    let anew = Controller::new(world.tables.installed(), AdminStates::default());
    assert_eq!(anew.plan(&desired).expect("a plan").writes, []);
    world.restart(START + SECOND);
    assert_eq!(world.tables.installed(), before);
}

/// What the kernel program does at the failure that is one too many.
fn closes(world: &mut World, backend: u16, reason: Reason, at: Instant) {
    world.tables.change_backend(backend, |record| {
        record.admission = OUT;
        record.retry_at = at + 10 * SECOND;
        record.out_reason = reason as u32;
        record.changed_at = at;
    });
}

/// And when a trial is answered.
fn opens(world: &mut World, backend: u16) {
    world.tables.change_backend(backend, |record| record.admission = UP);
}

fn cause(world: &World, backend: u16) -> Option<health::Cause> {
    world.controller.health(backend).and_then(cause_of)
}

#[test]
fn what_the_program_has_taken_out_is_out_for_its_reason_and_nothing_is_written_over_it() {
    for (reason, found) in [(Reason::Refused, health::Cause::Refused), (Reason::ConnectTimeout, health::Cause::Timeout)]
    {
        let mut world = World::new(&[10, 11, 12]);
        world.event(TRY_FAILED, reason, 1, START);
        world.event(TRY_FAILED, reason, 1, START);
        closes(&mut world, 1, reason, START);
        let actions = world.event(TOOK_OUT, reason, 1, START);
        assert!(!actions.iter().any(|action| matches!(action, Action::Admit { .. })), "{actions:?}");
        // Tries that were on their way.
        (0..97).for_each(|_| _ = world.event(TRY_FAILED, reason, 1, START + SECOND / 100));
        world.run(START, START + 5 * SECOND);
        assert_eq!((cause(&world, 1), world.tables.admission(1)), (Some(found), OUT));
        assert_eq!(world.tables.backend(1).retry_at, START + 10 * SECOND);
        assert_eq!(world.controller.health(1).map(Health::changed_at), Some(START));
        assert_eq!(world.notes.len(), 1, "{:?}", world.notes);
    }
}

#[test]
fn a_door_whose_event_was_lost_or_is_late_is_found_shut_and_not_opened() {
    let mut world = World::new(&[10, 11]);
    closes(&mut world, 1, Reason::ConnectTimeout, START);
    // Before the event: what writes admissions anew, at a reload and for an operator.
    world.configure(vec![service("api", "10.0.1.100:6443", &[10, 11, 12])], START + SECOND / 10);
    assert_eq!((world.tables.admission(1), cause(&world, 1)), (OUT, Some(health::Cause::Timeout)));
    let mut lost = World::new(&[10, 11]);
    closes(&mut lost, 1, Reason::Refused, START + SECOND / 2);
    lost.run(START + SECOND, START + 3 * SECOND);
    assert_eq!((lost.tables.admission(1), cause(&lost, 1)), (OUT, Some(health::Cause::Refused)));
    assert_eq!(lost.controller.health(1).map(Health::changed_at), Some(START + SECOND / 2));
    for (mut world, at) in [(world, START), (lost, START + SECOND / 2)] {
        world.event(TOOK_OUT, Reason::Refused, 1, at);
        world.run(START + 3 * SECOND, START + 5 * SECOND);
        assert_eq!((world.tables.admission(1), world.tables.backend(1).retry_at), (OUT, at + 10 * SECOND));
        assert_eq!(world.notes.iter().filter(|note| note.contains("is out")).count(), 1, "{:?}", world.notes);
    }
}

#[test]
fn a_controller_that_was_stopped_believes_the_map_and_not_events_that_are_old() {
    let mut world = World::new(&[10, 11]);
    // Taken out, back, and taken out again; the events of all that come a minute later.
    closes(&mut world, 1, Reason::Refused, START + 40 * SECOND);
    let old = [(TOOK_OUT, 0), (RECOVERED, 12), (TOOK_OUT, 40)];
    for (kind, second) in old {
        world.event(kind, Reason::Refused, 1, START + second * SECOND);
        assert_eq!(world.tables.admission(1), OUT, "whatever an event says of the past");
        assert_eq!(world.tables.backend(1).retry_at, START + 50 * SECOND);
    }
    opens(&mut world, 1);
    world.event(TOOK_OUT, Reason::Refused, 1, START + 40 * SECOND);
    assert_eq!(world.tables.admission(1), UP);
    world.event(RECOVERED, Reason::NotOurs, 1, START + 51 * SECOND);
    assert_eq!((world.tables.admission(1), cause(&world, 1)), (UP, None));
}

#[test]
fn of_a_backend_with_a_probe_the_trial_is_taken_away_when_the_program_has_taken_it_out() {
    for told in [true, false] {
        let mut world = World::new(&[10, 11]);
        let mut probed = service("api", "10.0.1.100:6443", &[10, 11]);
        probed.probe = Some(probe_count::Tries { rise: 2, fall: 3 });
        world.configure(vec![probed], START);
        closes(&mut world, 1, Reason::Refused, START);
        if told {
            world.event(TOOK_OUT, Reason::Refused, 1, START);
        } else {
            world.run(START, START + 2 * SECOND);
        }
        assert_eq!((world.tables.admission(1), world.tables.backend(1).retry_at), (OUT, Instant::NEVER));
        assert_eq!(cause(&world, 1), Some(health::Cause::Refused));
    }
}

#[test]
fn an_operators_word_is_not_undone_by_a_door_that_shuts_meanwhile() {
    let mut world = World::new(&[10, 11]);
    world.tables.change_backend(1, |record| record.admission = NONE);
    world.event(TOOK_OUT, Reason::Refused, 1, START);
    assert_eq!(world.tables.admission(1), NONE);
}

#[test]
fn a_lost_recovery_is_noticed_within_a_second() {
    let mut world = World::new(&[10, 11]);
    for _ in 0..3 {
        world.event(TRY_FAILED, Reason::Refused, 0, START);
    }
    world.tables.change_backend(0, |record| record.admission = UP);
    world.run(START, START + 2 * SECOND);
    assert_eq!(world.controller.health(0).expect("health").state(), health::State::Up);
}

#[test]
fn a_host_that_answers_no_arp_is_told_once_and_tried_at_once_when_it_is_back() {
    let mut world = World::new(&[10, 11]);
    let pool = world.tables.row(0).pools[0];
    for _ in 0..3 {
        world.event(TRY_FAILED, Reason::ConnectTimeout, 0, START);
    }
    world.controller.next_hop(pool, true, START);
    world.controller.next_hop(pool, false, START);
    assert!(!world.controller.is_reachable(0) && world.controller.is_reachable(1));
    world.notes.clear();
    world.run(START, START + 8 * SECOND);
    let text = "backend cp10 of service api gets no connections: its next hop does not answer ARP";
    assert_eq!(world.notes, [text]);
    let actions = world.controller.next_hop(pool, true, START + 8 * SECOND);
    world.act(&actions);
    assert_eq!(world.tables.backend(0).retry_at, START + 8 * SECOND);
}

#[test]
fn an_idle_controller_wakes_once_a_second() {
    let mut world = World::new(&[10, 11, 12]);
    let turns = world.run(START, START + 60 * SECOND);
    assert!(turns <= 61, "{turns} turns in a minute");
}

#[test]
fn every_end_is_a_record_for_its_service() {
    let mut world = World::new(&[10]);
    for kind in [ENDED, TURNED_AWAY] {
        let actions = world.event(kind, Reason::NoBackend, 0, START);
        assert!(matches!(&actions[..], [Action::Record { service: 0, .. }]), "{actions:?}");
    }
}

#[test]
fn a_hundred_reloads_keep_a_held_connection_and_leave_nothing_behind() {
    let mut world = World::new(&[10, 11, 12]);
    let held = world.tables.open(1, 77, FlowState::Established, 0, START);
    let mut now = START;
    for turn in 0..100_u8 {
        let hosts: Vec<u8> = (10..16).filter(|host| (host * 7 + turn) % 3 != 0).collect();
        let mut service = service("api", "10.0.1.100:6443", &hosts);
        for backend in &mut service.backends {
            backend.weight = u32::from(1 + turn % 4);
        }
        world.configure(vec![service], now);
        world.run(now, now + SECOND / 2);
        now += SECOND / 2;
        assert_eq!(world.tables.state(held), FlowState::Established);
    }
    world.configure(vec![service("api", "10.0.1.100:6443", &[20])], now);
    world.run(now, now + 30 * SECOND);
    assert_eq!(world.tables.installed().backends.len(), 2, "the new one, and the tombstone of the held connection");
    world.tables.end(held);
    world.run(now + 30 * SECOND, now + 60 * SECOND);
    assert_eq!((world.tables.installed().backends.len(), world.tables.installed().pools.len()), (1, 1));
}

/// Thirty connections of each of three backends, and then another SNAT address by reload.
fn with_another_snat() -> (World, Vec<crate::tables::FlowAt>) {
    let mut world = World::new(&[10, 11, 12]);
    let mut flows = Vec::new();
    for backend in 0..3 {
        flows.extend((0..30).map(|slot| world.tables.open(backend, slot, FlowState::Established, 0, START)));
    }
    let mut moved = service("api", "10.0.1.100:6443", &[10, 11, 12]);
    moved.snat = vec![[10, 0, 1, 101].into()];
    world.configure(vec![moved], START + SECOND);
    let row = world.tables.row(0);
    assert!(row.pools.iter().all(|pool| *pool != flows[0].at.pool()), "{row:?}");
    (world, flows)
}

fn open_of(world: &World, flows: &[crate::tables::FlowAt]) -> Vec<usize> {
    let is_open = |flow: &&crate::tables::FlowAt| world.tables.state(**flow) == FlowState::Established;
    flows.chunks(30).map(|of_backend| of_backend.iter().filter(is_open).count()).collect()
}

#[test]
fn connections_from_before_a_change_of_snat_are_counted_and_their_pool_stays_until_they_end() {
    let (mut world, flows) = with_another_snat();
    world.run(START + SECOND, START + 60 * SECOND);
    assert_eq!((world.controller.drift(), world.tables.active(0)), (0, 30));
    flows.iter().for_each(|flow| world.tables.end(*flow));
    world.run(START + 60 * SECOND, START + 100 * SECOND);
    assert_eq!((world.controller.drift(), world.tables.active(0)), (0, 0));
    assert!(!world.tables.installed().pools.contains_key(&flows[0].at.pool()));
}

#[test]
fn connections_from_before_a_change_of_snat_are_killed_and_drained_with_their_backend() {
    let (mut world, flows) = with_another_snat();
    let whose = (resets::Only::Open, Reason::Killed);
    let task = world.controller.kill(commands::Whose::Backend(0), whose, &world.tables, START + SECOND);
    assert_eq!(task.map(|task| task.total), Some(30));
    world.run(START + SECOND, START + 2 * SECOND);
    assert_eq!(open_of(&world, &flows), [0, 30, 30]);
    let drain = admin_state::AdminState::Drain { deadline: Some(START + 3 * SECOND), rate: 50 };
    let mut drained = world.controller.admin_states().clone();
    let entry = admin_state::AdminEntry { order: drain, since: START + 2 * SECOND, by: "test".into() };
    drained.say(("api".into(), "cp11".into()), entry, 7);
    let actions = world.controller.set_admin_states(drained, &world.tables, START + 2 * SECOND);
    world.act(&actions);
    world.run(START + 2 * SECOND, START + 6 * SECOND);
    assert_eq!(open_of(&world, &flows), [0, 0, 30]);
}

#[test]
fn connections_from_before_a_change_of_snat_are_reset_with_a_silent_backend() {
    let (mut world, flows) = with_another_snat();
    // Its clients speak, and nothing comes from it.
    for pool in world.tables.installed().pools_of(2) {
        world.tables.heard_at(pool, START.ticks());
    }
    for second in 2..10 {
        flows[60..].iter().for_each(|flow| world.tables.speak(*flow, START + second * SECOND));
        world.run(START + second * SECOND, START + (second + 1) * SECOND);
    }
    assert_eq!(open_of(&world, &flows), [30, 30, 0]);
}

#[test]
fn connections_from_before_a_change_of_snat_are_moved_by_a_rebalancing() {
    let (world, flows) = with_another_snat();
    let installed = world.tables.installed();
    let ours = world.tables.ours();
    let load = |backend, active| rebalance::Load { backend, weight: 1, active, max_conns: 0 };
    let shares = [rebalance::Share { load: load(1, 30), after: 20, resets: 10 }];
    let batch = rebalancing::Rebalancing::new(0, &shares, 100, START).batch(&installed, &ours, START + SECOND);
    assert_eq!(batch.len(), 10);
    assert!(batch.iter().all(|flow| flows[30..60].contains(flow)));
}

#[test]
fn what_a_turn_decides_is_not_undone_by_what_the_tables_still_say_in_the_same_turn() {
    let mut world = World { controller: Controller::default(), tables: Testbed::default(), notes: Vec::new() };
    // All slots are looked at in one turn, so that it is found silent in the turn of a second.
    let mut small = service("api", "10.0.1.100:6443", &[10, 11, 12]);
    small.ports.count = 400;
    world.configure(vec![small], START);
    let flows: Vec<_> = (0..6).map(|slot| world.tables.open(2, slot, FlowState::Established, 0, START)).collect();
    world.tables.heard_at(world.tables.row(2).pools[0], (START + SECOND / 10 * 4).ticks());
    for step in 0..160 {
        let now = START + SECOND / 20 * step;
        flows.iter().for_each(|flow| world.tables.speak(*flow, now));
        while world.controller.deadline() <= now {
            let actions = world.controller.turn(&world.tables, now);
            world.act(&actions);
        }
    }
    assert_eq!((world.tables.admission(2), cause(&world, 2)), (OUT, Some(health::Cause::Silent)));
    let out = "backend cp12 of service api is out for 10.0 s: silent (no packet from it on any connection)";
    let reset = "backend cp12 of service api has had 6 connection(s) reset: backend_silent";
    assert_eq!(world.notes, [out, reset]);
}
