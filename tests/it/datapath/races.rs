use std::{
    fs::File,
    sync::atomic::{AtomicU32, Ordering},
};

use lab::{
    packet::{ACK, RST, SYN},
    program::{Bench, Setup, Verdict, backend_of},
};
use lb_common::{layout::OUT, slot::State, time::Instant, verdict::Reason};
use nix::sched::{CloneFlags, setns};

use super::{client, with_setup};

/// Runs `work` in two threads in the bench's network namespace, turn by turn at the same time.
pub(super) fn race(bench: &Bench, turns: u32, work: impl Fn(u32) + Sync) {
    let namespace = File::open("/proc/thread-self/ns/net").expect("own namespace");
    let meeting = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).expect("root");
                for turn in 0..turns {
                    meeting.fetch_add(1, Ordering::AcqRel);
                    while meeting.load(Ordering::Acquire) < 2 * (turn + 1) {
                        std::hint::spin_loop();
                    }
                    work(turn);
                }
            });
        }
    });
    let _ = bench;
}

pub(super) fn many_ports() -> Setup {
    let mut setup = Setup { ports: 2000, max_connections: 8192, ..Setup::default() };
    setup.service.half_open_cells = 4096;
    setup
}

#[test]
fn the_same_syn_on_two_cpus_opens_one_connection() {
    with_setup(many_ports(), |bench| {
        const TURNS: u32 = 1500;
        bench.moved();
        let dropped = AtomicU32::new(0);
        race(bench, TURNS, |turn| {
            let syn = bench.from_client(client(turn as u16), SYN).numbers(turn, 0);
            match bench.send(&syn) {
                Verdict::Sent(out) => assert_eq!(out.flags, SYN),
                Verdict::Dropped => _ = dropped.fetch_add(1, Ordering::AcqRel),
                Verdict::Passed => panic!("passed on"),
            }
        });
        let flows = every_flow(bench);
        assert_eq!(flows, TURNS, "no twin, nothing lost");
        assert_eq!(bench.active().iter().sum::<u32>(), TURNS);
        let free: u32 = bench.pools.iter().map(|pool| bench.tables().free_slots(*pool)).sum();
        assert_eq!(free + flows, 6000, "no port leaked");
        let dropped = u64::from(dropped.into_inner());
        let lost = if dropped == 0 { vec![] } else { vec![(Reason::LostRace, dropped)] };
        let mut moved = bench.moved();
        // The namespace's own multicast.
        moved.retain(|(reason, _)| *reason != Reason::NotOurs);
        assert_eq!(moved, lost, "every drop is counted");
    });
}

fn every_flow(bench: &Bench) -> u32 {
    let mut flows = 0;
    for pool in &bench.pools {
        flows += bench.tables().heads(*pool, 0..2000).filter(|head| head.flow.ctl.state().is_active()).count() as u32;
    }
    flows
}

#[test]
fn a_connection_closed_on_two_cpus_is_counted_once() {
    with_setup(many_ports(), |bench| {
        let flows: Vec<_> = (0..1000).map(|n| bench.connect(client(n))).collect();
        race(bench, 1000, |turn| {
            let flow = flows[turn as usize];
            bench.send(&bench.from_client(flow.client, RST | ACK).numbers(1001, 5001));
        });
        assert_eq!(bench.active(), [0, 0, 0]);
        let free: u32 = bench.pools.iter().map(|pool| bench.tables().free_slots(*pool)).sum();
        assert_eq!(free, 6000);
    });
}

#[test]
fn a_refusal_and_the_same_syn_again_at_once_leave_one_try() {
    with_setup(many_ports(), |bench| {
        let syns: Vec<_> = (0..1000_u16).map(|n| bench.from_client(client(n), SYN).numbers(77, 0)).collect();
        let outs: Vec<_> = syns.iter().map(|syn| bench.forward(syn)).collect();
        let side = AtomicU32::new(0);
        race(bench, 1000, |turn| {
            let turn = turn as usize;
            if side.fetch_add(1, Ordering::AcqRel).is_multiple_of(2) {
                bench.send(&syns[turn]);
            } else {
                let refusal = bench.from_backend(backend_of(&outs[turn]), outs[turn].from.port(), RST | ACK);
                bench.send(&refusal.numbers(0, 78));
            }
        });
        for n in 0..1000 {
            let open = bench.tables().find(client(n).into());
            let open = open.iter().filter(|flow| flow.ctl.state() == State::HalfOpen).count();
            assert_eq!(open, 1, "client {n}");
        }
        assert_eq!(bench.active().iter().sum::<u32>(), 1000);
    });
}

#[test]
fn a_backend_that_is_out_gets_nothing_while_the_loads_of_the_others_change() {
    with_setup(many_ports(), |bench| {
        const OPEN: u16 = 100;
        bench.tables().admit(2, OUT, Instant::NEVER);
        (0..OPEN).for_each(|n| drop(bench.forward(&bench.from_client(client(n), SYN).numbers(1000, 0))));
        let side = AtomicU32::new(0);
        race(bench, 3000, |turn| {
            let n = turn as u16;
            // One connection ends at the moment when a backend is chosen for another one.
            if side.fetch_add(1, Ordering::AcqRel).is_multiple_of(2) {
                bench.forward(&bench.from_client(client(n + OPEN), SYN).numbers(1000, 0));
            } else {
                bench.forward(&bench.from_client(client(n), RST).numbers(1001, 0));
            }
        });
        assert_eq!(bench.tables().backend(2).opened, 0);
        assert_eq!(bench.active().iter().sum::<u32>(), u32::from(OPEN));
        let moved = bench.moved();
        assert!(moved.iter().all(|(reason, _)| *reason != Reason::FailOpen), "{moved:?}");
    });
}
