use super::*;

fn at(milliseconds: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(milliseconds)
}

/// Everything whose turn has come: (missing before it, number).
fn popped(sequence: &mut Sequence<u64>, now: Instant) -> Vec<(u64, u64)> {
    std::iter::from_fn(|| sequence.pop(now)).map(|in_turn| (in_turn.missing, in_turn.item)).collect()
}

fn take_in(sequence: &mut Sequence<u64>, number: u64, now: Instant) -> bool {
    let is_new = sequence.is_new(number);
    sequence.take_in(number, number, now);
    is_new
}

#[test]
fn in_whatever_order_they_come_they_go_on_in_theirs_and_each_once() {
    // Every order of six.
    let mut orders: Vec<Vec<u64>> = vec![vec![]];
    for _ in 0..6 {
        let longer = |order: &Vec<u64>| {
            let rest = (1..=6).filter(|number| !order.contains(number)).collect::<Vec<_>>();
            rest.into_iter().map(|number| [&order[..], &[number]].concat()).collect::<Vec<_>>()
        };
        orders = orders.iter().flat_map(longer).collect();
    }
    assert_eq!(orders.len(), 720);
    for order in orders {
        let (mut sequence, mut all) = (Sequence::after(0), Vec::new());
        for number in &order {
            assert!(take_in(&mut sequence, *number, at(0)), "{order:?}");
            assert!(!take_in(&mut sequence, *number, at(0)), "{order:?}: {number} again");
            all.extend(popped(&mut sequence, at(0)));
            assert!(!take_in(&mut sequence, *number, at(0)), "{order:?}: {number} again, later");
        }
        assert_eq!(all, (1..=6).map(|number| (0, number)).collect::<Vec<_>>(), "{order:?}");
    }
}

#[test]
fn what_does_not_come_in_half_a_second_is_lost_and_nothing_before_that() {
    let mut sequence = Sequence::after(7);
    assert!(!take_in(&mut sequence, 7, at(0)) && !take_in(&mut sequence, 0, at(0)));
    take_in(&mut sequence, 10, at(100));
    take_in(&mut sequence, 11, at(300));
    take_in(&mut sequence, 14, at(400));
    assert_eq!(popped(&mut sequence, at(599)), []);
    assert_eq!(popped(&mut sequence, at(600)), [(2, 10), (0, 11)]);
    assert!(!take_in(&mut sequence, 9, at(601)), "too late");
    assert_eq!(popped(&mut sequence, at(899)), []);
    assert_eq!(popped(&mut sequence, at(900)), [(2, 14)]);
}

#[test]
fn no_more_wait_than_there_is_room_for() {
    let mut sequence = Sequence::after(0);
    let mut all = Vec::new();
    for number in 2..5000 {
        take_in(&mut sequence, number, at(0));
        all.extend(popped(&mut sequence, at(0)));
        assert!(sequence.waiting.len() < WAITING);
    }
    assert_eq!((all.len(), all[0]), (4998, (1, 2)));
    sequence.take_in(u64::MAX, 0, at(0));
    assert_eq!(popped(&mut sequence, at(500)), [(u64::MAX - 5000, 0)], "and the number has an end");
    assert!(!sequence.is_new(u64::MAX - 1) && sequence.pop_first().is_none());
}
