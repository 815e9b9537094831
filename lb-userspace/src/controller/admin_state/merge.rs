//! Both hosts of a pair hold what operators have decided on either: which decision prevails.

use std::sync::Arc;

use jiff::Timestamp;

use super::{AdminEntry, AdminState, AdminStates, Name};
use crate::controller::Now;

/// A decision that another host has sent. Its times are milliseconds since 1970, because the wall
/// clock is the only one that two hosts share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The backend.
    pub name: Name,
    /// The state that was decided.
    pub state: HeardState,
    /// When it was decided.
    pub decided_at: u64,
    /// The host that has sent it, as the log names it.
    pub by: Arc<str>,
}

/// A state that another host has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeardState {
    /// In service.
    Ready,
    /// No new connections.
    Drain {
        /// When the remaining ones are reset; `None`: never.
        deadline: Option<u64>,
        /// Resets per second from then on.
        rate: u32,
    },
    /// Out of service at once.
    Maint,
}

/// The outcome of a decision that prevails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// All states, this one included.
    pub admin_states: AdminStates,
    /// The backend's state; `None`: in service.
    pub order: Option<AdminState>,
    /// Whether the backend was in another state before. If not, only details such as the deadline
    /// may have changed, and the operator need not hear of it.
    pub is_news: bool,
}

impl AdminStates {
    /// Merges a decision from another host. The later decision prevails; of two made in the same
    /// millisecond, the one that is already here. `None`: the one that is here prevails.
    pub fn merge(&self, heard: &Heard, now: Now) -> Option<Merged> {
        let Heard { name, state, decided_at, by } = heard;
        if *decided_at <= self.decided_at(name) {
            return None;
        }
        let order = match *state {
            HeardState::Ready => None,
            HeardState::Drain { deadline, rate } => {
                let deadline = deadline.and_then(timestamp).map(|at| now.monotonic_at(at));
                Some(AdminState::Drain { deadline, rate: rate.max(1) })
            }
            HeardState::Maint => Some(AdminState::Maint),
        };
        let before = self.get(name).map(|said| said.order.admin());
        let is_news = before != order.map(AdminState::admin);
        let mut admin_states = self.clone();
        match order {
            Some(order) => {
                // The other host's clock may be ahead of ours.
                let since = timestamp(*decided_at).map_or(now.monotonic, |at| now.monotonic_at(at));
                let said = AdminEntry { order, since: since.min(now.monotonic), by: by.clone() };
                admin_states.say(name.clone(), said, *decided_at);
            }
            None => _ = admin_states.take_back(name, *decided_at),
        }
        Some(Merged { admin_states, order, is_news })
    }
}

/// `None` for a time beyond what the wall clock can show.
fn timestamp(milliseconds: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(milliseconds).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use lb_common::time::Instant;

    use super::*;

    const WALL: u64 = 1_800_000_000_000;
    const SECOND: u64 = 1_000_000_000;
    const UPTIME: u64 = 5_000;

    fn now() -> Now {
        let wall = Timestamp::from_millisecond(i64::try_from(WALL).unwrap()).unwrap();
        Now { monotonic: Instant(UPTIME * SECOND), wall }
    }

    fn name() -> Name {
        ("api".into(), "cp01".into())
    }

    fn heard(state: HeardState, decided_at: u64) -> Heard {
        Heard { name: name(), state, decided_at, by: "peer 10.0.1.2".into() }
    }

    fn drain(deadline: Option<u64>) -> HeardState {
        HeardState::Drain { deadline, rate: 50 }
    }

    /// What is here after `state` was decided at `decided_at`, if anything was.
    fn here(state: Option<HeardState>, decided_at: u64) -> AdminStates {
        let merged = state.and_then(|state| AdminStates::default().merge(&heard(state, decided_at), now()));
        merged.map_or_else(AdminStates::default, |merged| merged.admin_states)
    }

    const STATES: [HeardState; 3] =
        [HeardState::Ready, HeardState::Drain { deadline: None, rate: 50 }, HeardState::Maint];

    #[test]
    fn the_later_decision_prevails_whatever_the_two_are() {
        let known = [None].into_iter().chain(STATES.map(Some));
        for (before, state) in known.flat_map(|before| STATES.map(|state| (before, state))) {
            let admin_states = here(before, WALL);
            for (decided_at, is_later) in [(WALL - 1, false), (WALL, false), (WALL + 1, true)] {
                let merged = admin_states.merge(&heard(state, decided_at), now());
                assert_eq!(merged.is_some(), is_later || before.is_none(), "{before:?} {state:?} {decided_at}");
                let Some(merged) = merged else { continue };
                assert_eq!(merged.admin_states.decided_at(&name()), decided_at, "a revocation is remembered, too");
                assert_eq!(merged.admin_states.get(&name()).map(|said| said.order), merged.order);
                let was = before.unwrap_or(HeardState::Ready);
                assert_eq!(merged.is_news, was != state, "{before:?} {state:?}");
            }
        }
    }

    #[test]
    fn two_hosts_that_exchange_their_decisions_agree_in_whatever_order_they_hear_them() {
        let decisions = STATES.map(|first| STATES.map(|second| [heard(first, WALL - 2), heard(second, WALL - 1)]));
        for [first, second] in decisions.into_iter().flatten() {
            let all = |order: [&Heard; 2]| {
                let merge = |admin_states: AdminStates, heard: &&Heard| match admin_states.merge(heard, now()) {
                    Some(merged) => merged.admin_states,
                    None => admin_states,
                };
                order.iter().fold(AdminStates::default(), merge)
            };
            assert_eq!(all([&first, &second]), all([&second, &first]), "{first:?} {second:?}");
        }
    }

    #[test]
    fn a_deadline_and_the_time_of_the_decision_are_put_on_this_hosts_clock() {
        let merged = AdminStates::default().merge(&heard(drain(Some(WALL + 60_000)), WALL - 10_000), now()).unwrap();
        let deadline = Some(Instant((UPTIME + 60) * SECOND));
        assert_eq!(merged.order, Some(AdminState::Drain { deadline, rate: 50 }));
        let said = merged.admin_states.get(&name()).unwrap();
        assert_eq!((said.since, &*said.by), (Instant((UPTIME - 10) * SECOND), "peer 10.0.1.2"));
    }

    #[test]
    fn another_deadline_is_taken_over_and_is_no_news() {
        let admin_states = here(Some(drain(None)), WALL);
        let merged = admin_states.merge(&heard(drain(Some(WALL + 1_000)), WALL + 1), now()).unwrap();
        let deadline = Some(Instant((UPTIME + 1) * SECOND));
        assert_eq!((merged.order, merged.is_news), (Some(AdminState::Drain { deadline, rate: 50 }), false));
    }

    #[test]
    fn a_peer_whose_clock_is_ahead_or_wrong_does_no_harm() {
        for decided_at in [WALL + 3_600_000, u64::MAX] {
            let merged = AdminStates::default().merge(&heard(HeardState::Maint, decided_at), now()).unwrap();
            assert_eq!(merged.admin_states.get(&name()).unwrap().since, now().monotonic, "never in the future");
        }
        let long_ago = AdminStates::default().merge(&heard(HeardState::Maint, 1), now()).unwrap();
        assert_eq!(long_ago.admin_states.get(&name()).unwrap().since, Instant::ZERO, "before this host booted");
        let never = heard(HeardState::Drain { deadline: Some(u64::MAX), rate: 0 }, WALL);
        let merged = AdminStates::default().merge(&never, now()).unwrap();
        assert_eq!(merged.order, Some(AdminState::Drain { deadline: None, rate: 1 }), "a rate of 0 would never end");
    }
}
