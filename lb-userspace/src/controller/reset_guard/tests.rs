use super::*;

const SECOND: Duration = Duration::from_secs(1);
const NOW: Instant = Instant(100_000_000_000);
const CAUSES: [Cause; 4] = [Cause::Refused, Cause::Timeout, Cause::Silent, Cause::ProbeTimeout];

/// A service whose backend 0 is out, and so are others; those in `unfit` are up but their last
/// probe failed.
fn service(count: u16, out: &[u16], unfit: &[u16]) -> Vec<Member> {
    let member = |backend| Member {
        backend,
        fit: !out.contains(&backend) && !unfit.contains(&backend),
        vouched: true,
        unanswered: 3,
        heard: Instant::ZERO,
        out: out.contains(&backend).then_some(Cause::ProbeTimeout),
    };
    (0..count).map(member).collect()
}

/// Backend 0 goes out for `cause` at NOW; returns what is decided when that is due.
fn decided(cause: Cause, members: &[Member]) -> Vec<Ruling> {
    let mut reset_guard = ResetGuard::default();
    reset_guard.went_out(0, cause, NOW);
    let due = reset_guard.deadline();
    if due == Instant::NEVER { Vec::new() } else { reset_guard.turn(&|_| members.to_vec(), due) }
}

fn reset(cause: Cause) -> Vec<Ruling> {
    vec![Ruling::Reset(Reset { backend: 0, cause, begun_by: NOW })]
}

#[test]
fn one_of_many_is_reset_at_once_when_it_is_silent_or_leaves_probes_unanswered() {
    for cause in [Cause::Silent, Cause::ProbeTimeout] {
        let mut reset_guard = ResetGuard::default();
        reset_guard.went_out(0, cause, NOW);
        assert_eq!(reset_guard.deadline(), NOW);
        assert_eq!(reset_guard.turn(&|_| service(3, &[0], &[]), NOW), reset(cause));
        assert_eq!(reset_guard.deadline(), Instant::NEVER);
    }
}

#[test]
fn refused_and_unanswered_syns_say_nothing_about_established_connections() {
    for cause in [Cause::Refused, Cause::Timeout] {
        assert_eq!(decided(cause, &service(3, &[0], &[])), []);
    }
}

#[test]
fn one_that_does_not_answer_is_spared_like_a_silent_backend_unless_its_backend_takes_new_ones() {
    for count in 1..=6_u16 {
        for others in 0..count {
            let out: Vec<_> = (0..=others).collect();
            let members = service(count, &out, &[]);
            let as_silent = match &decided(Cause::Silent, &members)[..] {
                [Ruling::Spare(0, why)] => Some(*why),
                _ => None,
            };
            assert_eq!(ResetGuard::default().spares(0, &members), as_silent, "{count} {out:?}");
            let back = service(count, &out[1..], &[]);
            assert_eq!(ResetGuard::default().spares(0, &back), None, "it is back: {count} {out:?}");
        }
    }
}

#[test]
fn every_service_of_up_to_eight_is_spared_exactly_when_half_or_more_fail_together_or_nobody_is_left() {
    for count in 1..=8_u16 {
        // Every subset of the others is not fit: some out, some failing.
        for set in 0..1_u16 << (count - 1) {
            let others: Vec<_> = (1..count).filter(|n| set >> (n - 1) & 1 == 1).collect();
            for out in [true, false] {
                let (mut gone, mut failing) = (vec![0], Vec::new());
                if out {
                    gone.extend(&others)
                } else {
                    failing.extend(&others)
                };
                let members = service(count, &gone, &failing);
                let unfit = 1 + others.len();
                let spared = if unfit > 1 && 2 * unfit >= usize::from(count) {
                    Some(Spared::TooMany)
                } else if unfit == usize::from(count) {
                    Some(Spared::NowhereToGo)
                } else {
                    None
                };
                for cause in [Cause::Silent, Cause::ProbeTimeout] {
                    let expected = spared.map_or_else(|| reset(cause), |why| vec![Ruling::Spare(0, why)]);
                    assert_eq!(decided(cause, &members), expected, "{count} {others:?} {cause:?}");
                }
            }
        }
    }
}

#[test]
fn probes_alone_reset_one_backend_at_a_time_and_the_next_when_the_first_is_back() {
    let mut reset_guard = ResetGuard::default();
    reset_guard.went_out(0, Cause::ProbeTimeout, NOW);
    let mut members = service(8, &[0], &[]);
    assert_eq!(reset_guard.turn(&|_| members.clone(), NOW).len(), 1);
    members = service(8, &[0, 1], &[]);
    reset_guard.went_out(1, Cause::ProbeTimeout, NOW + SECOND);
    assert_eq!(reset_guard.turn(&|_| members.clone(), NOW + SECOND), [Ruling::Spare(1, Spared::OneAtATime)]);
    assert!(reset_guard.is_spared(1) && !reset_guard.is_spared(0));
    assert_eq!(reset_guard.turn(&|_| members.clone(), NOW + 2 * SECOND), [], "told once");
    reset_guard.came_back(0);
    members = service(8, &[1], &[]);
    let reset = Reset { backend: 1, cause: Cause::ProbeTimeout, begun_by: NOW + SECOND };
    // All of its last three probes may have begun before the trouble was over.
    for (unanswered, seconds) in [(3, 3), (4, 4), (0, 5), (1, 6)] {
        members[1].unanswered = unanswered;
        assert_eq!(reset_guard.turn(&|_| members.clone(), NOW + seconds * SECOND), [], "{unanswered} in a row");
    }
    members[1].unanswered = 2;
    assert_eq!(reset_guard.turn(&|_| members.clone(), NOW + 7 * SECOND), [Ruling::Reset(reset)]);
    assert!(!reset_guard.is_spared(1));
}

#[test]
fn the_flows_may_say_what_probes_alone_may_not() {
    let mut reset_guard = ResetGuard::default();
    reset_guard.went_out(0, Cause::ProbeTimeout, NOW);
    let members = service(8, &[0, 1], &[]);
    reset_guard.turn(&|_| members.clone(), NOW);
    reset_guard.went_out(1, Cause::ProbeTimeout, NOW);
    reset_guard.turn(&|_| members.clone(), NOW);
    reset_guard.went_out(1, Cause::Silent, NOW + SECOND);
    let reset = Reset { backend: 1, cause: Cause::Silent, begun_by: NOW + SECOND };
    assert_eq!(reset_guard.turn(&|_| members.clone(), NOW + SECOND), [Ruling::Reset(reset)]);
}

#[test]
fn a_backend_that_was_spared_is_reset_when_the_others_are_well_again_and_it_is_not() {
    let mut reset_guard = ResetGuard::default();
    reset_guard.went_out(0, Cause::Silent, NOW);
    assert_eq!(reset_guard.turn(&|_| service(3, &[0, 1], &[]), NOW), [Ruling::Spare(0, Spared::TooMany)]);
    assert_eq!(reset_guard.deadline(), NOW + SECOND);
    let mut members = service(3, &[0], &[]);
    members[0].heard = NOW + 3 * SECOND;
    assert_eq!(reset_guard.turn(&|_| members.clone(), NOW + 4 * SECOND), [], "something came from it since");
    assert_eq!(reset_guard.turn(&|_| service(3, &[0], &[]), NOW + 5 * SECOND), reset(Cause::Silent));
}

#[test]
fn what_came_back_in_time_keeps_its_connections() {
    for cause in CAUSES {
        let mut reset_guard = ResetGuard::default();
        reset_guard.went_out(0, cause, NOW);
        reset_guard.came_back(0);
        let members = service(3, &[], &[]);
        assert_eq!(reset_guard.turn(&|_| members.clone(), NOW + 2 * SECOND), [], "{cause:?}");
    }
}

#[test]
fn one_that_was_silent_and_now_refuses_is_no_longer_dead() {
    let mut reset_guard = ResetGuard::default();
    reset_guard.went_out(0, Cause::Silent, NOW);
    assert_eq!(reset_guard.turn(&|_| service(2, &[0, 1], &[]), NOW), [Ruling::Spare(0, Spared::TooMany)]);
    reset_guard.went_out(0, Cause::Refused, NOW + SECOND);
    assert_eq!((reset_guard.is_spared(0), reset_guard.deadline()), (false, Instant::NEVER));
}

#[test]
fn a_backend_that_is_gone_is_forgotten() {
    let mut reset_guard = ResetGuard::default();
    reset_guard.went_out(0, Cause::Silent, NOW);
    reset_guard.retain(|backend| backend != 0);
    assert_eq!(reset_guard.deadline(), Instant::NEVER);
}
