use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64},
    time::{Duration, Instant},
};

use lb_common::{
    flow::{Key, SlotAt},
    layout::{Backend, Ends, Ring, WIDE_BITS},
    slot::{CONNECTED, FIN_CLIENT, IN_RING},
};

use super::*;
use crate::tables::{
    Tables,
    pools::UNUSED,
    rows::Ports,
    tests::{FIRST, address, put_listener, put_pool},
};

/// Tables in plain memory with one pool of `ports` slots, and what the kernel program does with it.
struct Program {
    tables: Tables,
    pool: u16,
}

impl Program {
    fn new(ports: u16) -> Program {
        let tables = Tables::in_memory().unwrap();
        let pool = put_pool(&tables, address("10.0.1.10:6443"), address("10.0.1.100:0").ip(), ports);
        Program { tables, pool }
    }

    fn at(&self, slot: u16) -> SlotAt {
        SlotAt::new(self.pool, slot)
    }

    fn seen(&self, slot: u16, ctl: Ctl) -> FlowAt {
        FlowAt { at: self.at(slot), ctl }
    }

    fn slots(&self) -> Arc<Slots> {
        self.tables.slots_of(self.pool).unwrap()
    }

    /// Takes the slot that was released longest ago, as ring.rs and the kernel program do it.
    fn pop(&self) -> Option<u16> {
        let (slots, index) = (self.slots(), usize::from(self.pool));
        loop {
            let ring = self.tables.fixed.rings.read(index);
            let is_wide = ring.wide.bits != 0 && ring.first.head == ring.first.tail;
            let (ends, offset) =
                if is_wide { (ring.wide, offset_of!(Ring, wide)) } else { (ring.first, offset_of!(Ring, first)) };
            let cells = if is_wide { slots.wide.as_ref().unwrap() } else { &slots.free };
            let head = self.tables.fixed.rings.word32(index, offset + offset_of!(Ends, head));
            let position = head.load(Ordering::Acquire);
            let place = position as usize & ((1 << ends.bits) - 1);
            let cell = cells.word32(place >> 4, (place & 15) * 4).load(Ordering::Acquire);
            let slot = ring::slot_at(position, cell, ends.bits)?;
            let next = position.wrapping_add(1);
            if head.compare_exchange(position, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Some(slot as u16);
            }
        }
    }

    fn set_ports(&self, first: u16, count: u16) {
        self.tables.set_ports(self.pool, Ports { first, count }, &[], false).unwrap();
    }

    /// The port of a slot.
    fn port(&self, slot: u16) -> u16 {
        FIRST.wrapping_add(slot)
    }

    /// Claims a slot for a client and establishes its flow.
    fn open(&self, client: SocketAddr) -> Option<(u16, Ctl)> {
        let SocketAddr::V4(client) = client else { panic!("IPv4 only") };
        let slots = self.slots();
        let slot = self.pop()?;
        let free = slots.ctl(slot);
        assert!(matches!(free.state(), State::Free | State::Closed), "popped a slot in use: {:?}", free.state());
        assert!(slots.swap(slot, free, free.claimed()), "popped twice");
        // All words hold the generation, so a copy that mixes two is noticed.
        let generation = free.claimed().generation();
        let record = Slot {
            ctl: free.claimed(),
            key: Key::of(client, 5),
            end_backend: generation.into(),
            edge_client: generation,
            ..Slot::default()
        };
        let open = free.claimed().with_state(State::Established).with_flags(CONNECTED);
        self.tables.fixed.backends.word32(0, offset_of!(Backend, active)).fetch_add(1, Ordering::AcqRel);
        let (table, index) = slots.table(slot).expect("a slot");
        table.publish(index, &record, offset_of!(Slot, ctl));
        table.word64(index, 0).store(open.0, Ordering::Release);
        Some((slot, open))
    }

    /// Both FINs were seen.
    fn finish(&self, slot: u16, ctl: Ctl) -> bool {
        let slots = self.slots();
        let won = slots.swap(slot, ctl, ctl.closed(Reason::Closed as u8));
        if won {
            self.tables.fixed.backends.word32(0, offset_of!(Backend, active)).fetch_sub(1, Ordering::AcqRel);
            if ctl.flags() & IN_RING == 0 {
                slots.push(&self.tables.fixed.rings, slot);
            }
        }
        won
    }

    /// Pops the whole ring: every slot has to be there exactly once.
    fn assert_all_free(&self) {
        assert_eq!(self.all_free(), (FIRST..FIRST + self.slots().len() as u16).collect::<Vec<_>>());
        assert_eq!(self.tables.backend(0).active, 0);
    }

    /// Pops the whole ring: the ports that were in it.
    fn all_free(&self) -> Vec<u16> {
        let mut found: Vec<u16> = std::iter::from_fn(|| self.pop()).map(|slot| self.port(slot)).collect();
        found.sort_unstable();
        found
    }
}

fn client(port: u16) -> SocketAddr {
    SocketAddr::new("10.0.2.7".parse().unwrap(), port)
}

#[test]
fn a_flow_that_we_close_is_accounted_and_its_slot_free_again_once() {
    let program = Program::new(20);
    let (slot, ctl) = program.open(client(50_000)).unwrap();
    let slots = program.slots();
    let mut record = program.tables.flow(program.at(slot)).unwrap().record;
    let (extent, index) = slots.extent(slot).expect("a slot");
    let mut opening = extent.openings.read(index);
    (opening.isn_client, opening.isn_backend) = (99, 199);
    extent.openings.publish(index, &opening, 0);
    (record.end_client, record.end_backend) = (100 + 1000 + 1, 200 + (5 << 32));
    let ctl = ctl.with_flags(FIN_CLIENT).with_state(State::ClosingClient);
    record.ctl = ctl;
    extent.slots.publish(index, &record, 0);
    let flow = program.tables.close(program.seen(slot, ctl), Reason::IdleTimeout).unwrap();
    assert_eq!((flow.ctl, flow.bytes_in(), flow.bytes_out()), (ctl, 1000, 5 << 32));
    assert_eq!(program.tables.close(program.seen(slot, ctl), Reason::IdleTimeout), None, "only once");
    let closed = slots.ctl(slot);
    assert_eq!((closed.state(), closed.reason()), (State::Closed, Reason::IdleTimeout as u8));
    assert_eq!(closed.flags(), CONNECTED | FIN_CLIENT | KILLED);
    let backend = program.tables.backend(0);
    assert_eq!((backend.active, backend.resets, backend.bytes_in, backend.bytes_out), (0, 1, 1000, 5 << 32));
    program.assert_all_free();
}

#[test]
fn a_flow_that_changed_meanwhile_is_not_closed() {
    let program = Program::new(20);
    let (slot, ctl) = program.open(client(50_000)).unwrap();
    let slots = program.slots();
    assert!(program.tables.suspect(program.seen(slot, ctl)));
    assert_eq!(program.tables.close(program.seen(slot, ctl), Reason::IdleTimeout), None, "it is under suspicion now");
    assert!(!program.tables.suspect(program.seen(slot, ctl.suspected())), "suspected once is enough");
    assert!(slots.swap(slot, ctl.suspected(), ctl.suspected().cleared()), "a packet came");
    assert_eq!(program.tables.close(program.seen(slot, ctl.suspected()), Reason::IdleTimeout), None);
    assert_eq!((slots.ctl(slot), program.tables.backend(0).active), (ctl, 1));
    assert!(program.finish(slot, ctl));
    assert_eq!(program.tables.close(program.seen(slot, slots.ctl(slot)), Reason::Killed), None, "over already");
    program.assert_all_free();
}

#[test]
fn a_slot_held_back_goes_to_the_ring_once() {
    let program = Program::new(20);
    let (slot, ctl) = program.open(client(50_000)).unwrap();
    let abandoned = ctl.with_state(State::Abandoned);
    assert!(!program.tables.release_abandoned(program.seen(slot, ctl)), "an open flow is not released");
    assert!(program.slots().swap(slot, ctl, abandoned));
    program.tables.correct_active(0, -1);
    let heads: Vec<Head> = program.tables.heads(program.pool, 0..20).collect();
    assert_eq!(
        heads,
        [Head { flow: program.seen(slot, abandoned), key: heads[0].key, last_seen: Ticks(0), backend: 0 }]
    );
    assert!(program.tables.release_abandoned(program.seen(slot, abandoned)));
    assert!(!program.tables.release_abandoned(program.seen(slot, abandoned)));
    program.assert_all_free();
}

#[test]
fn a_reserved_port_is_never_given_out_again() {
    let program = Program::new(20);
    let (slot, ctl) = program.open(client(50_000)).unwrap();
    let port = 10_240 + slot;
    assert!(!program.tables.withhold_port(program.pool, port), "in use");
    program.finish(slot, ctl);
    assert!(program.tables.withhold_port(program.pool, port));
    assert!(program.tables.withhold_port(program.pool, port), "asked for again");
    assert!(program.tables.withhold_port(program.pool, 6443), "outside the range anyway");
    assert!(!matches!(program.slots().ctl(slot).state(), State::Free | State::Closed), "whoever pops it skips it");
    assert_eq!(program.tables.flow(program.at(slot)), None);
}

#[test]
fn a_client_is_found_by_its_address_and_port() {
    let program = Program::new(2000);
    for port in 1..=1000 {
        program.open(client(port)).unwrap();
    }
    let found = program.tables.find(client(700));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].client(), found[0].listener()), (client(700), 5));
    assert_eq!(program.tables.find(client(1001)), []);
}

#[test]
fn the_ring_starts_full_and_an_empty_one_gives_nothing() {
    for ports in [1, 15, 16, 17, 1000, 55_296] {
        let program = Program::new(ports);
        let popped: Vec<u16> = std::iter::from_fn(|| program.pop()).collect();
        assert_eq!(popped, (0..ports).collect::<Vec<_>>());
        program.slots().push(&program.tables.fixed.rings, 0);
        assert_eq!((program.pop(), program.pop()), (Some(0), None));
    }
}

#[test]
fn a_hundred_thousand_flows_are_read_in_well_under_a_tenth_of_a_second() {
    let programs: Vec<Program> = (0..2).map(|_| Program::new(50_000)).collect();
    for program in &programs {
        for port in 0..50_000 {
            program.open(client(port)).unwrap();
        }
    }
    let count = || -> usize {
        let flows = |program: &Program| {
            let slots = program.slots();
            slots.clone().heads(0..slots.len()).filter_map(|head| slots.flow(head.flow.at.slot())).count()
        };
        programs.iter().map(flows).sum()
    };
    let begin = Instant::now();
    assert_eq!(count(), 100_000);
    let took = begin.elapsed();
    // Without optimisation the same takes some ten times as long.
    let limit = if cfg!(debug_assertions) { 2000 } else { 100 };
    assert!(took.as_millis() < limit, "{took:?}");
}

/// Two threads open flows and close them as the kernel program does, two close, suspect and release
/// them as the controller does, one copies them.
#[test]
fn races_of_claim_close_push_and_pop_lose_no_slot_and_double_none() {
    const FLOWS: u64 = 60_000;
    let program = Program::new(40);
    let stop = AtomicBool::new(false);
    let (opened, closed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 1..=2_u64 {
            let (program, opened, closed) = (&program, &opened, &closed);
            scope.spawn(move || {
                let mut random = seed;
                while opened.load(Ordering::Relaxed) < FLOWS {
                    let Some((slot, ctl)) = program.open(client(seed as u16)) else {
                        std::thread::yield_now();
                        continue;
                    };
                    opened.fetch_add(1, Ordering::Relaxed);
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    match random >> 62 {
                        0 => {}
                        1 => {
                            let abandoned = ctl.with_state(State::Abandoned);
                            if program.slots().swap(slot, ctl, abandoned) {
                                program.tables.correct_active(0, -1);
                                closed.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        _ => _ = closed.fetch_add(program.finish(slot, ctl).into(), Ordering::Relaxed),
                    }
                }
            });
        }
        for _ in 0..2 {
            let (program, stop, closed) = (&program, &stop, &closed);
            scope.spawn(move || {
                // One last round after the others have ended closes what is left.
                let mut last = false;
                while !last {
                    last = stop.load(Ordering::Acquire);
                    for head in program.tables.heads(program.pool, 0..40) {
                        sweep(program, head, closed);
                    }
                    std::thread::yield_now();
                }
            });
        }
        let (program, stop, opened) = (&program, &stop, &opened);
        scope.spawn(move || {
            while opened.load(Ordering::Relaxed) < FLOWS {
                for flow in (0..40).filter_map(|slot| program.tables.flow(program.at(slot))) {
                    let generation = flow.ctl.generation();
                    let copied = (flow.record.edge_client, flow.record.end_backend);
                    assert_eq!(copied, (generation, generation.into()), "a mixed copy");
                }
            }
            // The openers check the same count and end too; what they opened last is swept
            // afterwards.
            stop.store(true, Ordering::Release);
        });
    });
    // Flows opened after the sweepers' last look.
    for _ in 0..2 {
        program.tables.heads(program.pool, 0..40).for_each(|head| sweep(&program, head, &closed));
    }
    assert_eq!(opened.load(Ordering::Relaxed), closed.load(Ordering::Relaxed));
    program.assert_all_free();
}

#[test]
fn new_connections_get_the_new_ports_and_those_that_are_open_keep_theirs_until_they_end() {
    let program = Program::new(20);
    let open: Vec<_> = (0..20).map(|port| program.open(client(port)).expect("a port")).collect();
    assert_eq!(program.open(client(99)), None, "all are taken");
    let is_open = |(slot, ctl): &(u16, Ctl)| {
        program.tables.flow(program.at(*slot)).is_some_and(|flow| flow.ctl.generation() == ctl.generation())
    };
    // On both sides, beyond the cells of the ring; the ports below are the slots at the end.
    program.set_ports(FIRST - 100, 1000);
    let more: Vec<_> = (100..1080).map(|port| program.open(client(port)).expect("a port")).collect();
    assert_eq!(program.open(client(99)), None, "all are taken");
    let mut ports: Vec<_> = open.iter().chain(&more).map(|(slot, _)| program.port(*slot)).collect();
    ports.sort_unstable();
    assert_eq!(ports, (FIRST - 100..FIRST + 900).collect::<Vec<_>>());
    // Elsewhere: nothing is lost, and what ends does not come back.
    program.set_ports(40_000, 30);
    assert!(open.iter().chain(&more).all(is_open));
    for (slot, _) in open.iter().chain(&more).take(500) {
        assert!(program.finish(*slot, program.slots().ctl(*slot)));
    }
    let moved: Vec<_> = std::iter::from_fn(|| program.open(client(7))).collect();
    let mut ports: Vec<_> = moved.iter().map(|(slot, _)| program.port(*slot)).collect();
    ports.sort_unstable();
    assert_eq!(ports, (40_000..40_030).collect::<Vec<_>>());
    // Back: the ports that ended are there at once, the others when they end.
    program.set_ports(FIRST - 100, 1000);
    assert_eq!(program.tables.free_slots(program.pool), 500);
    for (slot, _) in open.iter().chain(&more).skip(500).chain(&moved) {
        assert!(program.finish(*slot, program.slots().ctl(*slot)));
    }
    assert_eq!(program.all_free(), (FIRST - 100..FIRST + 900).collect::<Vec<_>>());
    assert_eq!(program.tables.backend(0).active, 0);
}

#[test]
fn a_port_that_is_no_longer_used_is_the_host_s_after_a_minute_and_not_before() {
    let program = Program::new(20);
    let (slot, ctl) = program.open(client(1)).unwrap();
    let (held, _) = program.open(client(2)).unwrap();
    let (left, ctl_left) = program.open(client(3)).unwrap();
    assert!(program.slots().swap(left, ctl_left, ctl_left.with_state(State::Abandoned)));
    program.set_ports(40_000, 30);
    // The kernel program takes one that is held back, of any port, when the rings are empty.
    assert_eq!(program.slots().ctl(left).state(), State::Closed);
    assert!(program.finish(slot, program.slots().ctl(slot)));
    let now = program.tables.flow(program.at(slot)).unwrap().record.last_seen;
    let later = Ticks(now.0 + Ticks::of(UNUSED - Duration::from_secs(1)));
    program.tables.retire_outside(program.pool, later);
    assert_eq!(program.slots().ctl(slot).state(), State::Closed, "a last FIN may come again");
    program.tables.retire_outside(program.pool, Ticks(now.0 + Ticks::of(UNUSED + Duration::from_secs(1))));
    assert!(program.slots().ctl(slot).is_retired());
    assert_eq!(program.slots().ctl(slot).generation(), ctl.generation() + 1);
    assert!(program.slots().ctl(held).state().is_active(), "a connection goes on");
    assert!(
        program
            .slots()
            .all()
            .all(|slot| program.slots().ctl(slot).state() != State::Free || program.port(slot) >= 40_000)
    );
    program.set_ports(FIRST, 20);
    assert_eq!(program.tables.free_slots(program.pool), 19);
}

/// Two threads open and close flows as the kernel program does, one closes them as the controller
/// does, and one changes the ports all the time.
#[test]
fn while_ports_are_changed_no_slot_is_lost_none_is_there_twice_and_none_outside_is_claimed() {
    const RANGES: [(u16, u16); 6] =
        [(FIRST, 100), (FIRST - 40, 60), (20_000, 50), (FIRST + 10, 9), (FIRST, 40), (19_990, 20)];
    let program = Program::new(40);
    let stop = AtomicBool::new(false);
    let (closed, turns) = (AtomicU64::new(0), [AtomicU64::new(0), AtomicU64::new(0)]);
    std::thread::scope(|scope| {
        // The others end too if this one fails.
        let at_the_end = StopsWhenDropped(&stop);
        for (seed, turns) in (1..).zip(&turns) {
            let (program, stop) = (&program, &stop);
            scope.spawn(move || {
                let mut turn = 0_u16;
                while !stop.load(Ordering::Acquire) {
                    turns.fetch_add(1, Ordering::Release);
                    let Some((slot, ctl)) = program.open(client(seed)) else {
                        std::thread::yield_now();
                        continue;
                    };
                    turn = turn.wrapping_add(1);
                    if !turn.is_multiple_of(4) {
                        program.finish(slot, ctl);
                    }
                }
            });
        }
        let (reader, stop_reading, count) = (&program, &stop, &closed);
        scope.spawn(move || {
            while !stop_reading.load(Ordering::Acquire) {
                let slots = reader.slots();
                slots.clone().heads(0..slots.len()).for_each(|head| sweep(reader, head, count));
                std::thread::yield_now();
            }
        });
        for turn in 0..60 {
            let (first, number) = RANGES[turn % RANGES.len()];
            program.set_ports(first, number);
            // What was begun before the change may still become a flow after it.
            let begun: Vec<_> = turns.iter().map(|turns| turns.load(Ordering::Acquire)).collect();
            while turns.iter().zip(&begun).any(|(turns, begun)| turns.load(Ordering::Acquire) == *begun) {
                std::thread::yield_now();
            }
            let is_outside = |slot: &u16| program.port(*slot).wrapping_sub(first) >= number;
            let outside = || -> Vec<_> {
                let slots = program.slots();
                let heads = slots.clone().heads(0..slots.len()).map(|head| head.flow.at.slot());
                heads.filter(is_outside).map(|slot| (slot, slots.ctl(slot).generation())).collect()
            };
            let before = outside();
            std::thread::sleep(Duration::from_millis(2));
            let new: Vec<_> = outside().into_iter().filter(|flow| !before.contains(flow)).collect();
            assert_eq!(new, [], "a port outside {first}+{number} was claimed");
        }
        drop(at_the_end);
    });
    let slots = program.slots();
    for _ in 0..3 {
        slots.clone().heads(0..slots.len()).for_each(|head| sweep(&program, head, &closed));
    }
    let (first, number) = RANGES[59 % RANGES.len()];
    assert_eq!(program.all_free(), (first..first + number).collect::<Vec<_>>());
}

/// Says that the threads of a test may end.
struct StopsWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopsWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn sweep(program: &Program, head: Head, closed: &AtomicU64) {
    let FlowAt { at, ctl } = head.flow;
    let slot = at.slot();
    match ctl.state() {
        State::Established => _ = program.tables.suspect(program.seen(slot, ctl)),
        State::Abandoned => _ = program.tables.release_abandoned(program.seen(slot, ctl)),
        _ => {
            if program.tables.close(program.seen(slot, ctl), Reason::IdleTimeout).is_some() {
                closed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[test]
fn ports_that_a_killed_controller_lost_are_back_and_each_is_in_the_ring_once() {
    // Killed at every step of an end: before the push, in the push, and in the middle of a claim.
    for kills in [vec!["swap"], vec!["tail"], vec!["claim"], vec!["tail", "swap", "tail", "claim", "swap", "tail"]] {
        for popped_before in [0, 13, 39] {
            let program = Program::new(20);
            for turn in 0..popped_before {
                let (slot, ctl) = program.open(client(40_000 + turn)).unwrap();
                assert!(program.finish(slot, ctl));
            }
            let (slots, rings) = (program.slots(), &program.tables.fixed.rings);
            for (number, kill) in kills.iter().enumerate() {
                let (slot, ctl) = program.open(client(50_000 + number as u16)).unwrap();
                program.tables.correct_active(0, -1);
                let ended = if *kill == "claim" { ctl.claimed() } else { ctl.closed(Reason::Killed as u8) };
                assert!(slots.swap(slot, ctl, ended));
                if *kill == "tail" {
                    rings.word32(program.pool.into(), offset_of!(Ring, first.tail)).fetch_add(1, Ordering::AcqRel);
                }
            }
            // One that is in use all the time, one that a listener has, and one whose way into the
            // ring was cut short when ports were added.
            let (held, _) = program.open(client(60_000)).unwrap();
            let [retired, cut_short] = [program.pop().unwrap(), program.pop().unwrap()];
            put_listener(&program.tables, SocketAddr::new(address("10.0.1.100:0").ip(), FIRST + retired));
            assert!(slots.retire(retired) && slots.retire(cut_short));
            assert_eq!(program.tables.heal_rings(|| ()), kills.len() as u32 + 1, "{kills:?}");
            assert_eq!(program.tables.heal_rings(|| panic!("all is well")), 0, "{kills:?}");
            let mut found: Vec<u16> = std::iter::from_fn(|| program.pop()).collect();
            found.sort_unstable();
            let all = (0..20).filter(|slot| ![held, retired].contains(slot));
            assert_eq!(found, all.collect::<Vec<_>>(), "{kills:?}");
        }
    }
}

#[test]
fn a_wide_ring_that_a_killed_controller_did_not_begin_is_begun() {
    let program = Program::new(20);
    program.set_ports(FIRST, 1000);
    program.set_ports(FIRST, 20);
    let ring = program.pool.into();
    program.tables.fixed.rings.word32(ring, offset_of!(Ring, wide.bits)).store(0, Ordering::Release);
    program.tables.heal_rings(|| ());
    assert_eq!(program.tables.fixed.rings.read(ring).wide.bits, WIDE_BITS);
    program.set_ports(FIRST, 1000);
    assert_eq!(program.all_free().len(), 1000);
}

#[test]
fn what_the_program_is_about_to_give_back_is_not_given_back_twice() {
    let program = Program::new(20);
    let (slot, ctl) = program.open(client(50_000)).unwrap();
    let (other, other_ctl) = program.open(client(50_001)).unwrap();
    let slots = program.slots();
    assert!(slots.swap(slot, ctl, ctl.closed(Reason::Closed as u8)));
    let healed = program.tables.heal_rings(|| {
        slots.push(&program.tables.fixed.rings, slot);
        program.tables.correct_active(0, -1);
        assert!(program.finish(other, other_ctl));
    });
    assert_eq!(healed, 0);
    program.assert_all_free();
}

#[test]
fn a_cell_that_was_never_filled_does_not_keep_claims_from_the_ports_behind_it() {
    let program = Program::new(20);
    let (held, _) = program.open(client(50_000)).unwrap();
    let rings = &program.tables.fixed.rings;
    // Nothing is lost but the cell itself.
    while program.pop().is_some() {}
    rings.word32(program.pool.into(), offset_of!(Ring, first.tail)).fetch_add(1, Ordering::AcqRel);
    let slots = program.slots();
    slots.push(rings, 7);
    assert_eq!(program.pop(), None, "nobody gets past it");
    program.tables.heal_rings(|| ());
    let found: Vec<_> = std::iter::from_fn(|| program.pop()).collect();
    assert!(found.contains(&7) && found.iter().filter(|slot| **slot == held).count() <= 1, "{found:?}");
}
