use super::*;

const NOW: Instant = Instant(1_000);
const LATER: Instant = Instant(1_001);
const ADMINS: [Admin; 3] = [Admin::None, Admin::Drain, Admin::Maint];
const CAUSES: [Option<Cause>; 5] =
    [None, Some(Cause::Refused), Some(Cause::Timeout), Some(Cause::Silent), Some(Cause::ProbeTimeout)];

fn healths() -> Vec<State> {
    let out = |cause| [Instant::ZERO, NOW, LATER, Instant::NEVER].map(|retry_at| State::Out { retry_at, cause });
    let two = [State::Up, State::NotReady(Unready::Tls)];
    two.into_iter().chain(CAUSES.into_iter().flat_map(out)).collect()
}

/// Every possible combination.
fn every(mut law: impl FnMut(Facts, Standing)) {
    for health in healths() {
        for admin in ADMINS {
            for bits in 0..16 {
                let bit = |n: u32| bits >> n & 1 == 1;
                let slow_until = if bit(3) { LATER } else { Instant::ZERO };
                let facts = Facts { down: bit(0), admin, health, reachable: bit(1), spared: bit(2), slow_until };
                law(facts, standing(&facts, NOW));
            }
        }
    }
}

#[test]
fn what_the_file_or_an_operator_takes_out_gets_no_connection_whatever_its_health() {
    every(|facts, standing| {
        let closed = facts.down || facts.admin != Admin::None;
        assert_eq!(standing.admission == NONE, closed, "{facts:?}");
    });
}

#[test]
fn the_file_wins_over_the_operator_and_maintenance_over_health() {
    every(|facts, standing| {
        let shown = (standing.state, standing.reason);
        if facts.down {
            assert_eq!(shown, (BackendState::Down, Some(BackendReason::Config)));
        } else if facts.admin == Admin::Maint {
            assert_eq!(shown, (BackendState::Maint, Some(BackendReason::Admin)));
        } else {
            assert!(
                standing.state != BackendState::Maint && standing.reason != Some(BackendReason::Config),
                "{facts:?}"
            );
        }
    });
}

#[test]
fn only_a_healthy_backend_has_a_share_and_the_others_are_there_for_need() {
    every(|facts, standing| {
        if standing.admission != NONE {
            assert_eq!(standing.admission == UP, facts.health == State::Up, "{facts:?}");
            let retry_at = if let State::Out { retry_at, .. } = facts.health { retry_at } else { Instant::NEVER };
            assert_eq!(standing.retry_at, retry_at, "{facts:?}");
        }
    });
}

#[test]
fn a_backend_is_up_only_without_a_reason_against_it() {
    every(|facts, standing| {
        let fine = !facts.down && facts.admin == Admin::None && facts.reachable && facts.health == State::Up;
        let up = matches!(standing.state, BackendState::Up | BackendState::SlowStart);
        assert_eq!(up, fine, "{facts:?}");
        assert!(!up || standing.reason.is_none());
        assert_eq!(standing.state == BackendState::SlowStart, fine && facts.slow_until > NOW);
    });
}

#[test]
fn a_drained_backend_that_dies_is_shown_as_dead_and_one_that_is_spared_as_draining() {
    every(|facts, standing| {
        let State::Out { cause: Some(cause), retry_at } = facts.health else { return };
        if facts.down || facts.admin == Admin::Maint || !facts.reachable {
            return;
        }
        let expected = match () {
            () if facts.spared => (BackendState::Draining, cause.reason()),
            () if NOW < retry_at => (BackendState::Down, cause.reason()),
            () if facts.admin == Admin::Drain => (BackendState::Draining, BackendReason::Admin),
            () => (BackendState::Probing, cause.reason()),
        };
        assert_eq!((standing.state, standing.reason), (expected.0, Some(expected.1)), "{facts:?}");
    });
}
