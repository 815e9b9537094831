//! What made a state change, and what one process of the daemon hands to the next.

use std::net::IpAddr;

use lb_common::time::Instant;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::State;

/// What made a state change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// The instance begins.
    Started,
    /// An earlier run was MASTER, and its lease still holds.
    Resumed,
    /// No MASTER was heard for three intervals and the skew.
    Silence,
    /// The MASTER resigned.
    Resigned,
    /// The MASTER has a lower priority.
    Preempts(IpAddr),
    /// This router owns the addresses.
    Owner,
    /// Another router has a higher priority, or the same priority and a higher address.
    Outranked(IpAddr),
    /// No advertisement left for three intervals.
    LeaseLapsed,
    /// An operator has given the mastership away.
    GivenAway,
    /// Another member of the group changed its state.
    Group,
    /// The host cannot be a router.
    Fault,
    /// The host can be a router again.
    Recovered,
    /// The instance ends.
    Ended,
}

/// What the next process of the daemon needs in order to go on with a machine; see
/// [`Machine::recall`](super::Machine::recall).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The state.
    #[serde(serialize_with = "to_handover_word", deserialize_with = "from_handover_word")]
    pub state: State,
    /// When it was entered.
    #[serde(serialize_with = "to_nanoseconds", deserialize_with = "from_nanoseconds")]
    pub since: Instant,
    /// Changes between BACKUP, MASTER and FAULT.
    pub transitions: u64,
    /// The mastership was given away, and whichever router has it keeps it.
    pub yields: bool,
}

/// The handover has spelled the states like this from the start; other versions must read it.
fn handover_word(state: State) -> &'static str {
    match state {
        State::Init => "Init",
        State::Backup => "Backup",
        State::Master => "Master",
        State::Fault => "Fault",
    }
}

fn to_handover_word<S: Serializer>(state: &State, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(handover_word(*state))
}

fn from_handover_word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<State, D::Error> {
    let word = String::deserialize(deserializer)?;
    let known = State::ALL.iter().find(|state| handover_word(**state) == word);
    known.copied().ok_or_else(|| D::Error::custom(format!("unknown state {word}")))
}

fn to_nanoseconds<S: Serializer>(at: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(at.0)
}

fn from_nanoseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Instant, D::Error> {
    u64::deserialize(deserializer).map(Instant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_handover_stay_what_they_are() {
        for (state, word) in
            [(State::Init, "Init"), (State::Backup, "Backup"), (State::Master, "Master"), (State::Fault, "Fault")]
        {
            let past = Past { state, since: Instant(77), transitions: 3, yields: false };
            let json = format!(r#"{{"state":"{word}","since":77,"transitions":3,"yields":false}}"#);
            assert_eq!(serde_json::to_string(&past).unwrap(), json);
            assert_eq!(serde_json::from_str::<Past>(&json).unwrap(), past);
        }
        assert!(
            serde_json::from_str::<Past>(r#"{"state":"MASTER","since":7,"transitions":3,"yields":false}"#).is_err()
        );
    }
}
