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
    /// Merges a decision from another host. The later decision prevails; of two of one time, made
    /// by operators on two hosts that had not heard of each other, the one that keeps the backend
    /// further out. `None`: the one that is here prevails.
    pub fn merge(&self, heard: &Heard, now: Now) -> Option<Merged> {
        let Heard { name, state, decided_at, by } = heard;
        // Nothing could be later than a time that no clock can show.
        let at = timestamp(*decided_at)?;
        let (known, here) = (self.decided_at(name), self.get(name).map(|said| said.order));
        if *decided_at < known || *decided_at == known && state.rank() <= rank(here) {
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
                let since = now.monotonic_at(at).min(now.monotonic);
                admin_states.by_name.insert(name.clone(), AdminEntry { order, since, by: by.clone() });
            }
            None => _ = admin_states.by_name.remove(name),
        }
        admin_states.decided.insert(name.clone(), *decided_at);
        Some(Merged { admin_states, order, is_news })
    }
}

impl HeardState {
    fn rank(self) -> u8 {
        match self {
            HeardState::Ready => 0,
            HeardState::Drain { .. } => 1,
            HeardState::Maint => 2,
        }
    }
}

/// As [`HeardState::rank`].
fn rank(order: Option<AdminState>) -> u8 {
    match order {
        None => 0,
        Some(AdminState::Drain { .. }) => 1,
        Some(AdminState::Maint) => 2,
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
            for (decided_at, is_later) in [(WALL - 1, false), (WALL + 1, true)] {
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
        let both = |first, second| {
            [[WALL - 2, WALL - 1], [WALL - 1, WALL - 1]].map(|[one, two]| [heard(first, one), heard(second, two)])
        };
        let decisions = STATES.map(|first| STATES.map(|second| both(first, second)));
        for [first, second] in decisions.into_iter().flatten().flatten() {
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
    fn a_word_is_later_than_all_that_were_known_when_it_was_said_whatever_the_clocks_show() {
        // This host's clock is a year behind the one on which the backend was drained.
        let year = 31_536_000_000;
        let mut here = here(Some(drain(None)), WALL + year);
        let there = here.clone();
        here.take_back(&name(), WALL);
        let ready = heard(HeardState::Ready, here.decided_at(&name()));
        let merged = there.merge(&ready, now()).expect("it is the later one");
        assert_eq!((merged.order, merged.admin_states.get(&name())), (None, None));
        assert_eq!(here.merge(&heard(drain(None), WALL + year), now()), None, "what was there before is repeated");
        // And so on, with every word of either host.
        let mut there = merged.admin_states;
        for turn in 0..10 {
            let entry = AdminEntry { order: AdminState::Maint, since: Instant(1), by: "uid 0".into() };
            there.say(name(), entry, WALL + turn);
            let maint = heard(HeardState::Maint, there.decided_at(&name()));
            here = here.merge(&maint, now()).expect("later").admin_states;
            here.take_back(&name(), WALL);
            there = there.merge(&heard(HeardState::Ready, here.decided_at(&name())), now()).unwrap().admin_states;
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
        let ahead = heard(HeardState::Maint, WALL + 3_600_000);
        let merged = AdminStates::default().merge(&ahead, now()).unwrap();
        assert_eq!(merged.admin_states.get(&name()).unwrap().since, now().monotonic, "never in the future");
        assert_eq!(
            AdminStates::default().merge(&heard(HeardState::Maint, u64::MAX), now()),
            None,
            "the last word ever"
        );
        let long_ago = AdminStates::default().merge(&heard(HeardState::Maint, 1), now()).unwrap();
        assert_eq!(long_ago.admin_states.get(&name()).unwrap().since, Instant::ZERO, "before this host booted");
        let never = heard(HeardState::Drain { deadline: Some(u64::MAX), rate: 0 }, WALL);
        let merged = AdminStates::default().merge(&never, now()).unwrap();
        assert_eq!(merged.order, Some(AdminState::Drain { deadline: None, rate: 1 }), "a rate of 0 would never end");
    }
}
