extern crate std;

use std::{collections::HashSet, vec::Vec};

use super::*;

fn plan(mask: u32, half: u32) -> Plan {
    Plan {
        frame: [0; 7],
        start: 0,
        turn: 0,
        first: 100,
        mask,
        half,
        side: CLIENT,
        backend_bits: 2,
        slot_mask: 0x7fff,
        first_port: 20_000,
        ip_sum: 0,
        tcp_sum: 0,
        reserved: 0,
    }
}

#[test]
fn the_scattered_order_visits_every_flow_once_and_neighbours_are_far_apart() {
    for bits in [10, 16, 20] {
        let mask = (1 << bits) - 1;
        let plan = plan(mask, bits / 2);
        let visited: Vec<u32> = (0..=mask).map(|turn| plan.flow(turn)).collect();
        assert_eq!(visited.iter().collect::<HashSet<_>>().len(), 1 << bits);
        assert!(visited.iter().all(|flow| (100..=100 + mask).contains(flow)));
        let steps: HashSet<_> = visited.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        assert!(steps.len() > 1 << (bits / 2), "{} different steps", steps.len());
        let near = visited.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 4).count();
        assert!(near < (1 << bits) / 100 + 2, "{near} of {} steps are short", 1 << bits);
    }
}

#[test]
fn in_order_is_one_after_the_other_and_one_flow_stays_one() {
    assert_eq!((0..4).map(|turn| plan(3, 0).flow(turn)).collect::<Vec<_>>(), [100, 101, 102, 103]);
    assert_eq!(plan(0, 0).flow(77), 100);
}

#[test]
fn flows_are_given_to_the_backends_in_turn() {
    let plan = plan(0xffff, 0);
    assert_eq!([4, 5, 6, 7, 8].map(|flow| plan.place(flow)), [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2)]);
    assert_eq!(plan.place(4 * 0x8000), (0, 0), "ports are used again in their order");
}
