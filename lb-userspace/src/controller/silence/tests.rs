//! A backend in these tests is a function of time: what is heard from it, and whether it answers
//! when asked.

use super::*;
use crate::{
    controller::{Action, testbed::Testbed},
    tables::BackendRow,
};
use lb_common::{layout::HEARD_STEP, slot::State};

const SECOND: Duration = Duration::from_secs(1);
const START: Instant = Instant(1_000_000_000_000);
const MILLI: Duration = Duration::from_millis(1);
const PORTS: u16 = 22_528;

struct World {
    tables: Testbed,
    silence: Silence,
    subjects: Vec<Subject>,
    /// The backends that answer.
    alive: BTreeSet<u16>,
    asked: Vec<(Instant, FlowAt)>,
    turns: u64,
}

impl World {
    fn new(backends: u16, connect_timeout: Duration) -> World {
        let mut tables = Testbed::default();
        for number in 0..backends {
            tables.add_backend(number, PORTS, BackendRow::default());
            tables.heard_at(number, START.ticks());
        }
        let subject = |backend| Subject { backend, pools: vec![backend], connect_timeout };
        let subjects = (0..backends).map(subject).collect();
        let alive = (0..backends).collect();
        World { tables, silence: Silence::default(), subjects, alive, asked: Vec::new(), turns: 0 }
    }

    fn open(&mut self, backend: u16, count: u16) -> Vec<FlowAt> {
        (0..count).map(|n| self.tables.open(backend, n * 20, State::Established, 0, START)).collect()
    }

    /// A client of the flow sends something; a live backend answers.
    fn client_speaks(&mut self, flow: FlowAt, now: Instant) {
        self.tables.speak(flow, now);
        if self.alive.contains(&flow.at.pool()) {
            self.answer(flow.at.pool(), now);
        }
    }

    fn answer(&mut self, pool: u16, now: Instant) {
        if self.tables.heard(pool).age_in_ticks(now.ticks()) >= HEARD_STEP {
            self.tables.set_heard(pool, now.ticks());
        }
    }

    /// Turns whenever one is due, with `each` called every 10 ms; returns when a backend was found
    /// silent, and which.
    fn run(&mut self, from: Instant, to: Instant, mut each: impl FnMut(&mut World, Instant)) -> Option<(Instant, u16)> {
        self.turns = 0;
        for now in (from.0..to.0).step_by(10_000_000).map(Instant) {
            each(self, now);
            if now < self.silence.deadline() {
                continue;
            }
            self.turns += 1;
            let look = self.silence.turn(&self.subjects, &self.tables.ours(), now);
            self.tables.act(&look.ask.iter().map(|flow| Action::Ask(*flow)).collect::<Vec<_>>());
            for flow in look.ask {
                self.asked.push((now, flow));
                if self.alive.contains(&flow.at.pool()) {
                    self.answer(flow.at.pool(), now + MILLI);
                }
            }
            if let Some(backend) = look.silent.first() {
                return Some((now, *backend));
            }
        }
        let most = ((to - from).as_nanos() / SOON.as_nanos()) as u64;
        assert!(self.turns <= most, "{} turns", self.turns);
        None
    }
}

#[test]
fn a_dead_backend_is_found_with_one_client_that_speaks_within_twice_connect_timeout() {
    for connect_timeout in [200 * MILLI, SECOND, 2 * SECOND, 10 * SECOND] {
        let mut world = World::new(3, connect_timeout);
        let flows = world.open(1, 1000);
        world.open(0, 1000);
        world.alive.remove(&1);
        let speaks = |world: &mut World, now: Instant| {
            if now >= START + 500 * MILLI {
                world.client_speaks(flows[700], now);
            }
        };
        let (at, backend) = world.run(START, START + 30 * SECOND, speaks).expect("it is found");
        assert_eq!(backend, 1);
        let took = (at - START).saturating_sub(500 * MILLI);
        assert!(took <= 2 * connect_timeout + SECOND, "{connect_timeout:?}: {took:?}");
        assert!(took >= connect_timeout.min(2 * SECOND), "{connect_timeout:?}: {took:?} is hasty");
        let asked: BTreeSet<_> = world.asked.iter().map(|(_, flow)| flow.at).collect();
        assert_eq!(asked.len(), ROUNDS as usize * ASKED, "several connections, others each time");
    }
}

#[test]
fn a_syn_that_is_not_answered_is_enough_to_ask() {
    let mut world = World::new(1, 2 * SECOND);
    world.open(0, 10);
    world.alive.clear();
    assert_eq!(world.run(START, START + 60 * SECOND, |_, _| ()), None, "nobody speaks: it may be idle");
    assert_eq!(world.asked, []);
    let later = START + 60 * SECOND;
    world.silence.point_at(0);
    let (at, _) = world.run(later, later + 10 * SECOND, |_, _| ()).expect("it is found");
    assert!((2 * SECOND..=2200 * MILLI).contains(&(at - later)), "{:?}", at - later);
}

#[test]
fn an_idle_backend_is_never_asked_and_one_that_answers_never_called_silent() {
    let mut world = World::new(3, 2 * SECOND);
    let flows = world.open(0, 1000);
    world.open(1, 1000);
    // Ten minutes of one keepalive every 20 s to backend 0, which answers; backend 1 is quiet all
    // the time.
    for minute in 0..10 {
        let from = START + minute * 60 * SECOND;
        let speaks = |world: &mut World, now: Instant| {
            if now.0.is_multiple_of(20_000_000_000) {
                world.client_speaks(flows[minute as usize], now);
            }
        };
        assert_eq!(world.run(from, from + 60 * SECOND, speaks), None);
    }
    assert_eq!(world.asked, []);
}

#[test]
fn a_backend_that_is_slow_but_alive_answers_when_asked_and_that_is_the_end_of_it() {
    let mut world = World::new(1, SECOND);
    let flows = world.open(0, 100);
    // The server hangs: its clients' packets are acknowledged late, by chance always after the look
    // at them.
    let speaks = |world: &mut World, now: Instant| {
        world.tables.speak(flows[5], now);
        if now.0.is_multiple_of(700_000_000) {
            world.answer(0, now);
        }
    };
    assert_eq!(world.run(START, START + 60 * SECOND, speaks), None);
    assert!(!world.asked.is_empty());
    let asked_at: Vec<_> = world.asked.iter().map(|(at, _)| *at).collect();
    let close = asked_at.chunk_by(|a, b| *b - *a < 100 * MILLI).count();
    assert!(close <= 90, "{close} times in a minute");
}

#[test]
fn a_single_answer_in_the_last_round_is_enough() {
    for answered in 1..=ROUNDS as usize * ASKED {
        let mut world = World::new(1, SECOND);
        world.open(0, 100);
        world.alive.clear();
        world.silence.point_at(0);
        // The tick of HEARD_STEP has to have passed since it was heard.
        let begin = START + SECOND;
        let mut done = false;
        let answers = |world: &mut World, now: Instant| {
            if world.asked.len() >= answered && !done {
                done = true;
                world.answer(0, now);
            }
        };
        assert_eq!(world.run(begin, begin + 2 * SECOND, answers), None, "answered after {answered} questions");
    }
}

#[test]
fn a_backend_without_connections_is_not_asked_and_one_with_half_open_ones_neither() {
    let mut world = World::new(2, SECOND);
    world.alive.clear();
    for slot in 0..50 {
        let flow = world.tables.open(1, slot, State::Established, 0, START);
        world.tables.change_slot(flow.at, |slot| slot.ctl = flow.ctl.with_state(State::HalfOpen));
    }
    world.silence.point_at(0);
    world.silence.point_at(1);
    assert_eq!(world.run(START + SECOND, START + 10 * SECOND, |_, _| ()), None);
    assert_eq!(world.asked, []);
    assert!(!world.silence.is_in_doubt(1));
}

#[test]
fn while_it_is_asked_it_is_in_doubt() {
    let mut world = World::new(1, 2 * SECOND);
    world.open(0, 10);
    world.alive.clear();
    world.silence.point_at(0);
    world.run(START + SECOND, START + 2 * SECOND, |_, _| ());
    assert!(world.silence.is_in_doubt(0));
    world.answer(0, START + 2 * SECOND);
    world.run(START + 2 * SECOND, START + 3 * SECOND, |_, _| ());
    assert!(!world.silence.is_in_doubt(0));
}

#[test]
fn connections_that_are_all_idle_are_not_walked_over() {
    let mut world = World::new(3, 2 * SECOND);
    (0..3).for_each(|backend| drop(world.open(backend, 1000)));
    assert_eq!(world.run(START + SECOND, START + 61 * SECOND, |_, _| ()), None);
    assert!(world.turns <= 122, "{} turns", world.turns);
}

#[test]
fn when_nobody_waits_any_more_it_is_found_out_once() {
    let mut world = World::new(1, 2 * SECOND);
    let flows = world.open(0, 100);
    world.alive.clear();
    world.client_speaks(flows[7], START + SECOND);
    world.tables.end(flows[7]);
    assert_eq!(world.run(START + SECOND, START + 61 * SECOND, |_, _| ()), None);
    assert_eq!(world.asked, []);
    assert!(world.turns <= 126, "{} turns", world.turns);
}

#[test]
fn who_waits_is_found_though_the_time_of_what_was_sent_is_not_written_for_every_packet() {
    let mut world = World::new(1, 2 * SECOND);
    let flows = world.open(0, 100);
    world.alive.clear();
    let first = START + SECOND;
    world.client_speaks(flows[7], first);
    world.tables.end(flows[7]);
    world.tables.sent_at(0, first.ticks());
    // A walk has seen its slot before.
    let speaks = |world: &mut World, now: Instant| {
        if now == first + 30 * MILLI {
            world.client_speaks(flows[3], now);
        }
    };
    assert!(world.run(first, first + 10 * SECOND, speaks).is_some());
}

#[test]
fn a_backend_that_was_not_heard_for_a_month_is_found_dead_like_any_other() {
    let mut world = World::new(1, SECOND);
    let flows = world.open(0, 100);
    world.alive.clear();
    let later = START + 30 * 86_400 * SECOND;
    let speaks = |world: &mut World, now: Instant| world.client_speaks(flows[3], now);
    assert!(world.run(later, later + 10 * SECOND, speaks).is_some());
}

#[test]
fn with_no_connection_it_wakes_once_a_second() {
    let mut world = World::new(3, 2 * SECOND);
    world.silence.turn(&world.subjects, &world.tables.ours(), START);
    assert_eq!(world.silence.deadline(), START + SECOND);
}
