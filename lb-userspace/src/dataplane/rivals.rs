//! Programs of others that were found in front of ours on an interface, in one direction. Each is
//! overtaken once; whoever comes back to the first place keeps it, because two that overtake each
//! other for ever help nobody. What an agent loads anew is the same as before, whatever number the
//! kernel gives it: by its hook, its name and its place.

use super::{pins::Hook, standing::Found};

/// How many that were met are remembered on each hook.
const REMEMBERED: usize = 64;

/// What is known of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rivals {
    /// In front of ours at the last look.
    before: Vec<Found>,
    /// Those that were overtaken, or could have been.
    overtaken: Vec<Found>,
    /// Those that were told to stay in front.
    told: Vec<Found>,
}

/// What to do about those that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// To be overtaken, and told.
    pub new: Vec<Found>,
    /// To be told that they stay in front.
    pub staying: Vec<Found>,
}

impl Rivals {
    /// Takes in who is in front of ours, which is on this hook. Nobody can overtake what is on an
    /// earlier one.
    pub fn meet(&mut self, hook: Hook, before: &[Found]) -> Met {
        let is_new = |found: &&Found| found.hook == hook && !has(&self.overtaken, found);
        let new: Vec<_> = before.iter().filter(is_new).cloned().collect();
        let stays = |found: &&Found| !has(&new, found) && !has(&self.told, found);
        let staying: Vec<_> = before.iter().filter(stays).cloned().collect();
        remember(&mut self.overtaken, &new);
        remember(&mut self.told, &staying);
        self.before = before.to_vec();
        Met { new, staying }
    }

    /// Ours is in front of these now.
    pub fn overtook(&mut self, new: &[Found]) {
        self.before.retain(|found| !has(new, found));
    }

    /// Those in front of ours, as they were last seen.
    pub fn before(&self) -> impl Iterator<Item = &Found> {
        self.before.iter()
    }
}

fn has(all: &[Found], one: &Found) -> bool {
    all.iter().any(|found| found.is_same(one))
}

/// The oldest give way.
fn remember(all: &mut Vec<Found>, new: &[Found]) {
    all.extend_from_slice(new);
    all.drain(..all.len().saturating_sub(REMEMBERED));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcx(name: &str, program: u32) -> Found {
        Found { hook: Hook::Tcx, program: Some(program), name: name.into(), place: None }
    }

    fn filter(priority: u16, program: u32) -> Found {
        Found { hook: Hook::Clsact, program: Some(program), name: "agent".into(), place: Some((priority, 1)) }
    }

    fn met(new: &[Found], staying: &[Found]) -> Met {
        Met { new: new.to_vec(), staying: staying.to_vec() }
    }

    #[test]
    fn each_is_overtaken_once_and_told_once_when_it_comes_back() {
        let mut rivals = Rivals::default();
        assert_eq!(rivals.meet(Hook::Tcx, &[tcx("agent", 7)]), met(&[tcx("agent", 7)], &[]));
        rivals.overtook(&[tcx("agent", 7)]);
        assert_eq!(rivals.before().count(), 0);
        assert_eq!(rivals.meet(Hook::Tcx, &[]), Met::default());
        assert_eq!(rivals.meet(Hook::Tcx, &[tcx("agent", 8)]), met(&[], &[tcx("agent", 8)]), "loaded anew");
        assert_eq!(rivals.before().count(), 1);
        // An agent that comes with another program each time.
        for program in 9..200 {
            assert_eq!(rivals.meet(Hook::Tcx, &[tcx("agent", program)]), Met::default());
            assert_eq!(rivals.meet(Hook::Tcx, &[]), Met::default());
        }
        assert_eq!(rivals.meet(Hook::Tcx, &[tcx("other", 7)]), met(&[tcx("other", 7)], &[]), "another one");
    }

    #[test]
    fn what_is_on_an_earlier_hook_is_told_and_a_filter_is_known_by_its_place() {
        let mut rivals = Rivals::default();
        let both = [tcx("agent", 7), filter(1, 8)];
        assert_eq!(rivals.meet(Hook::Clsact, &both), met(&both[1..], &both[..1]));
        rivals.overtook(&both[1..]);
        assert_eq!(rivals.before().collect::<Vec<_>>(), [&both[0]]);
        assert_eq!(rivals.meet(Hook::Clsact, &[tcx("agent", 9), filter(2, 8)]), met(&[filter(2, 8)], &[]));
    }

    #[test]
    fn no_more_are_remembered_than_fit() {
        let mut rivals = Rivals::default();
        for number in 0..1000 {
            rivals.meet(Hook::Tcx, &[tcx(&format!("p{number}"), number)]);
        }
        assert_eq!(rivals.overtaken.len(), REMEMBERED);
    }
}
