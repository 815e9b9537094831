//! A backend's host in these tests is a function: what its kernel answers on a connection.

use lb_common::slot::State;

use super::*;
use crate::{
    controller::{Action, sweep::Step, testbed::Testbed},
    tables::BackendRow,
};
use lb_common::verdict::Reason;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
const START: Instant = Instant(1_000_000_000_000);
const PORTS: u16 = 22_528;

/// What comes back when a connection is asked for the `n`th time (from 1 on).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Ack,
    Rst,
    Nothing,
}

struct World {
    tables: Testbed,
    inquiry: Inquiry,
    rate: u32,
    spared: Option<Spared>,
    times: BTreeMap<SlotAt, u32>,
    asked: Vec<(Instant, FlowAt)>,
    dead: Vec<FlowAt>,
    told: Vec<(u16, Spared)>,
    over: Vec<(u16, u64)>,
}

impl World {
    fn new(backends: u16) -> World {
        let mut tables = Testbed::default();
        (0..backends).for_each(|number| tables.add_backend(number, PORTS, BackendRow::default()));
        World {
            tables,
            inquiry: Inquiry::default(),
            rate: 5000,
            spared: None,
            times: BTreeMap::new(),
            asked: Vec::new(),
            dead: Vec::new(),
            told: Vec::new(),
            over: Vec::new(),
        }
    }

    fn open(&mut self, backend: u16, count: u16) -> Vec<FlowAt> {
        (0..count).map(|n| self.tables.open(backend, n, State::Established, 0, START)).collect()
    }

    /// Turns whenever one is due; `answer` is what the host says.
    fn run(&mut self, from: Instant, to: Instant, answer: impl Fn(FlowAt, u32) -> Answer) {
        let mut now = from;
        while self.inquiry.deadline() < to {
            now = self.inquiry.deadline().max(now);
            let (rate, spared) = (self.rate, self.spared);
            let around = Surroundings {
                installed: &self.tables.installed(),
                rate: &|_| rate,
                spared: &|_| spared,
                ours: &self.tables.ours(),
            };
            let turn = self.inquiry.turn(&around, now);
            for flow in turn.ask {
                self.asked.push((now, flow));
                let times = self.times.entry(flow.at).or_default();
                *times += 1;
                match answer(flow, *times) {
                    Answer::Ack => self.tables.change_slot(flow.at, |slot| slot.last_seen = (now + MILLI * 2).ticks()),
                    Answer::Rst => self.tables.end(flow),
                    Answer::Nothing => {}
                }
            }
            let close = |(flow, _): &(FlowAt, u16)| Action::Step(Step::Close(*flow, Reason::BackendRestarted));
            self.tables.act(&turn.dead.iter().map(close).collect::<Vec<_>>());
            self.dead.extend(turn.dead.iter().map(|(flow, _)| *flow));
            self.told.extend(turn.spared);
            self.over.extend(turn.over);
            now += Duration::from_nanos(1);
        }
    }

    fn open_now(&self, flows: &[FlowAt]) -> usize {
        flows.iter().filter(|flow| self.tables.state(**flow) == State::Established).count()
    }
}

#[test]
fn a_server_that_only_closed_its_listener_loses_nobody_and_each_is_asked_once() {
    let mut world = World::new(2);
    let flows = world.open(1, 500);
    world.open(0, 500);
    world.inquiry.begin(1, START + SECOND);
    world.run(START + SECOND, START + 60 * SECOND, |_, _| Answer::Ack);
    assert_eq!((world.asked.len(), world.open_now(&flows)), (500, 500));
    assert!(world.asked.iter().all(|(_, flow)| flow.at.pool() == 1));
    assert_eq!((&world.over[..], world.inquiry.deadline()), (&[(1, 0)][..], Instant::NEVER));
}

#[test]
fn a_host_that_was_started_anew_ends_them_itself_and_nothing_is_reset() {
    let mut world = World::new(1);
    let flows = world.open(0, 500);
    world.inquiry.begin(0, START + SECOND);
    world.run(START + SECOND, START + 60 * SECOND, |_, _| Answer::Rst);
    assert_eq!((world.asked.len(), world.open_now(&flows), world.dead.len()), (500, 0, 0));
}

#[test]
fn those_that_give_no_answer_twice_are_reset_two_seconds_after_they_were_asked_and_no_others() {
    let mut world = World::new(1);
    let flows = world.open(0, 300);
    world.inquiry.begin(0, START + SECOND);
    // A third each: alive, alive but one packet is lost, dead.
    let answer = |flow: FlowAt, time| match (flow.at.slot() % 3, time) {
        (0, _) | (1, 2..) => Answer::Ack,
        _ => Answer::Nothing,
    };
    world.run(START + SECOND, START + 3 * SECOND + 300 * MILLI, answer);
    assert_eq!(world.dead.len(), 100);
    assert!(world.dead.iter().all(|flow| flow.at.slot() % 3 == 2));
    world.run(START + 3 * SECOND, START + 60 * SECOND, answer);
    assert_eq!((world.dead.len(), world.open_now(&flows)), (100, 200));
    assert_eq!(world.over, [(0, 100)]);
    assert_eq!(world.asked.len(), 300 + 200 + 200, "all that were left once more");
}

#[test]
fn questions_come_at_the_rate() {
    let mut world = World::new(1);
    world.open(0, 2000);
    world.rate = 500;
    world.inquiry.begin(0, START);
    world.run(START, START + 60 * SECOND, |_, _| Answer::Ack);
    for (index, (at, _)) in world.asked.iter().enumerate() {
        let ideal = START + index as u32 * SECOND / 500;
        assert!(*at >= ideal && *at <= ideal + 2 * PERIOD, "question {index} came {:?} late", *at - ideal);
    }
    assert_eq!(world.asked.len(), 2000);
}

#[test]
fn a_client_that_speaks_is_no_answer_if_its_data_waits_for_one() {
    let mut world = World::new(1);
    let flows = world.open(0, 2);
    world.tables.change_slot(flows[0].at, |slot| (slot.end_client, slot.ack_backend) = (1000, 900));
    world.inquiry.begin(0, START);
    let mut now = START;
    while now < START + 10 * SECOND {
        world.run(now, now + 100 * MILLI, |flow, _| if flow.at.slot() == 1 { Answer::Ack } else { Answer::Nothing });
        now += 100 * MILLI;
        if world.open_now(&flows[..1]) == 1 {
            world.tables.speak(flows[0], now);
        }
    }
    assert_eq!((world.open_now(&flows[..1]), world.open_now(&flows[1..])), (0, 1));
}

#[test]
fn a_client_that_pings_just_then_is_found_out_at_the_next_round() {
    let mut world = World::new(1);
    let flows = world.open(0, 10);
    world.inquiry.begin(0, START);
    world.run(START, START + 500 * MILLI, |_, _| Answer::Nothing);
    world.tables.speak(flows[4], START + 500 * MILLI);
    world.run(START + 500 * MILLI, START + 10 * SECOND, |_, _| Answer::Nothing);
    assert_eq!(world.open_now(&flows), 0);
    assert_eq!(world.over, [(0, 10)]);
}

#[test]
fn while_the_guard_forbids_it_nobody_is_reset_and_they_are_asked_anew_when_it_does_no_longer() {
    let mut world = World::new(2);
    let flows = world.open(1, 50);
    world.spared = Some(Spared::TooMany);
    world.inquiry.begin(1, START);
    world.run(START, START + 20 * SECOND, |_, _| Answer::Nothing);
    assert_eq!((world.open_now(&flows), &world.told[..]), (50, &[(1, Spared::TooMany)][..]));
    assert!(world.inquiry.is_spared(1) && !world.inquiry.is_spared(0));
    assert!(world.asked.len() <= 100, "{} questions while nothing can follow", world.asked.len());
    world.spared = None;
    let before = world.asked.len();
    world.run(START + 20 * SECOND, START + 40 * SECOND, |flow, _| {
        if flow.at.slot() < 20 { Answer::Nothing } else { Answer::Ack }
    });
    assert_eq!(world.open_now(&flows), 30, "the others are alive by now");
    assert!(world.asked.len() >= before + 50 && !world.inquiry.is_spared(1));
    assert_eq!(world.over, [(1, 20)]);
}

#[test]
fn flows_that_begin_later_or_are_not_connected_are_not_asked() {
    let mut world = World::new(1);
    let half_open = world.tables.open(0, 7, State::Established, 0, START);
    world.tables.change_slot(half_open.at, |slot| slot.ctl = half_open.ctl.with_state(State::HalfOpen));
    let suspect = world.tables.open(0, 8, State::Established, 0, START);
    world.tables.change_slot(suspect.at, |slot| slot.ctl = suspect.ctl.suspected());
    let later = world.tables.open(0, 9, State::Established, 0, START + SECOND);
    world.inquiry.begin(0, START);
    world.run(START, START + 10 * SECOND, |_, _| Answer::Nothing);
    assert_eq!((world.tables.state(half_open), world.tables.state(later)), (State::HalfOpen, State::Established));
    assert_eq!(world.tables.state(suspect), State::Closed);
    assert!(world.asked.iter().all(|(_, flow)| flow.at == suspect.at));
}

#[test]
fn a_second_begin_asks_all_again_and_one_that_is_gone_is_forgotten() {
    let mut world = World::new(1);
    world.open(0, 100);
    world.inquiry.begin(0, START);
    world.run(START, START + 50 * MILLI, |_, _| Answer::Ack);
    world.inquiry.begin(0, START + 50 * MILLI);
    world.run(START + 50 * MILLI, START + 5 * SECOND, |_, _| Answer::Ack);
    assert_eq!(world.asked.len(), 200);
    world.inquiry.begin(0, START + 6 * SECOND);
    world.inquiry.retain(|_| false);
    assert_eq!(world.inquiry.deadline(), Instant::NEVER);
}

#[test]
fn one_that_ends_at_the_same_moment_is_not_counted_as_reset() {
    let mut world = World::new(1);
    let flows = world.open(0, 3);
    world.inquiry.begin(0, START);
    world.run(START, START + 1900 * MILLI, |_, _| Answer::Nothing);
    let around = Surroundings {
        installed: &world.tables.installed(),
        rate: &|_| 5000,
        spared: &|_| None,
        ours: &world.tables.ours(),
    };
    let turn = world.inquiry.turn(&around, START + 2100 * MILLI);
    assert_eq!(turn.dead.len(), 3);
    world.inquiry.not_closed(flows[1].at);
    flows.iter().for_each(|flow| world.tables.end(*flow));
    world.run(START + 2100 * MILLI, START + 20 * SECOND, |_, _| Answer::Nothing);
    assert_eq!(world.over, [(0, 2)]);
}
