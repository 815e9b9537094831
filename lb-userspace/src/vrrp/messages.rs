//! What the operator should know, in words: what happened, and what to do about it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use lb_common::time::Instant;
use log::Level;

use super::{
    machine::{State, Why},
    receive::Agreement,
};
use crate::{
    notice::{Kind, Notice, Subject},
    words::AdvertRefusal,
};

/// Something that happened to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceEvent {
    /// The instance's name.
    pub instance: Arc<str>,
    /// What happened.
    pub what: Occurrence,
}

/// What happened to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occurrence {
    /// Its state changed.
    Moved {
        /// The state before.
        from: State,
        /// The state now.
        to: State,
        /// What made it change.
        why: Why,
        /// The priority now.
        priority: u8,
        /// What makes it FAULT, if it is.
        faults: Vec<String>,
    },
    /// Something is wrong, or no longer is.
    Trouble(Trouble),
}

/// Something that is wrong, or no longer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// This host is MASTER and heard another MASTER.
    LowerMaster {
        /// The other MASTER.
        from: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// The other MASTER has fallen silent.
    SplitHealed,
    /// Another host claims one of the addresses.
    Claimed {
        /// The address.
        address: IpAddr,
        /// The other host's MAC address.
        mac: [u8; 6],
    },
    /// Two hosts have priority 255.
    TwoOwners(IpAddr),
    /// An advertisement was refused.
    Refused {
        /// The check that it failed.
        why: AdvertRefusal,
        /// Its sender.
        from: IpAddr,
        /// How its addresses agree with the configured ones.
        agreement: Option<Agreement>,
        /// What it says.
        said: String,
    },
    /// An advertisement was accepted, though only some of its addresses are ours.
    Disagrees {
        /// Its sender.
        from: IpAddr,
        /// What it says.
        said: String,
    },
    /// Another virtual router's advertisement has an address of ours.
    OtherNumber {
        /// Its sender.
        from: IpAddr,
        /// The address.
        address: IpAddr,
        /// What it says.
        said: String,
    },
    /// Advertisements cannot be sent.
    CannotSend(String),
    /// Addresses cannot be put on the interface or taken off it.
    Addresses(String),
    /// A script hangs or cannot be started.
    Script(String),
    /// The thread runs without real-time priority or locked memory.
    Unprotected(String),
}

impl InstanceEvent {
    /// For the log and `evenkeel events`.
    pub fn notice(&self, router: u8) -> Notice {
        let (level, text) = match &self.what {
            Occurrence::Moved { from, to, why, priority, faults } => moved(*from, *to, *why, *priority, faults),
            Occurrence::Trouble(trouble) => trouble.words(router),
        };
        let subject = match &self.what {
            Occurrence::Trouble(Trouble::Unprotected(_)) => Subject::Daemon,
            _ => Subject::Instance(self.instance.clone()),
        };
        Notice { level, kind: Kind::Vrrp, subject, text }
    }
}

fn moved(from: State, to: State, why: Why, priority: u8, faults: &[String]) -> (Level, String) {
    let level = if to == State::Fault || why == Why::LeaseLapsed { Level::Warn } else { Level::Info };
    let why = if to == State::Fault && !faults.is_empty() { faults.join(", ") } else { reason(why) };
    (level, format!("is {} with priority {priority} (was {}): {why}", to, from))
}

/// Why a state changed, in words.
pub fn reason(why: Why) -> String {
    match why {
        Why::Started => "started".into(),
        Why::Resumed => "an earlier run was MASTER and its lease still holds".into(),
        Why::Silence => "no master was heard".into(),
        Why::Resigned => "the master resigned".into(),
        Why::Preempts(other) => format!("master {other} has a lower priority"),
        Why::Owner => "priority 255 owns the addresses".into(),
        Why::Outranked(other) => format!("{other} has a higher priority, or the same and a higher address"),
        Why::LeaseLapsed => {
            "no advertisement got out for three intervals (stopped, starved, or the interface takes nothing)".into()
        }
        Why::GivenAway => "given away by an operator".into(),
        Why::Group => "another instance of its group changed".into(),
        Why::Fault => "the host cannot be a router now".into(),
        Why::Recovered => "the host can be a router again".into(),
        Why::Ended => "ended".into(),
    }
}

impl Trouble {
    /// What to tell of it.
    pub fn words(&self, router: u8) -> (Level, String) {
        let text = match self {
            Trouble::LowerMaster { from, priority } => format!(
                "is not the only master: {from} advertises priority {priority}. If this persists, that host does not hear \
                 this one: let IP protocol 112 through its firewall, check IGMP snooping, or use unicast_peers"
            ),
            Trouble::SplitHealed => return (Level::Info, "is the only master again; the segment was told so".into()),
            Trouble::Claimed { address, mac } => format!(
                "holds {address}, but {} claims it by ARP or ND: another master that is not heard (see above), or a host \
                 with the address configured by hand (ip addr del it there)",
                hardware(mac)
            ),
            Trouble::TwoOwners(other) => format!(
                "has priority 255, and so has {other}: only the one host that owns the addresses may; lower the other's"
            ),
            Trouble::Refused { why, from, agreement, said } => {
                format!("{}; it says: {said}", refused(*why, *from, *agreement, router))
            }
            Trouble::Disagrees { from, said } => format!(
                "hears {from} with other `addresses`: write the same on both hosts, or a takeover leaves some of them \
                 behind; it says: {said}"
            ),
            Trouble::OtherNumber { from, address, said } => format!(
                "has virtual_router_id {router}, but {from} advertises {address} under another one: write the same \
                 virtual_router_id on both hosts; until then both are master; it says: {said}"
            ),
            Trouble::CannotSend(error) => format!("cannot advertise: {error}"),
            Trouble::Addresses(error) => error.clone(),
            Trouble::Script(what) | Trouble::Unprotected(what) => what.clone(),
        };
        (Level::Warn, text)
    }
}

fn refused(why: AdvertRefusal, from: IpAddr, agreement: Option<Agreement>, router: u8) -> String {
    let differs = matches!(
        why,
        AdvertRefusal::Version | AdvertRefusal::AuthenticationType | AdvertRefusal::Password | AdvertRefusal::Interval
    );
    if why == AdvertRefusal::Addresses || differs && agreement == Some(Agreement::Strange) {
        return stranger(from, router);
    }
    let Some(what) = why.advice() else { return format!("ignores {from}: {}", why.meaning()) };
    let both = if differs { "; until then both are master" } else { "" };
    format!("ignores {from}, which sends {what}{both}")
}

fn stranger(from: IpAddr, router: u8) -> String {
    format!(
        "ignores {from}, which uses virtual_router_id {router} for other addresses: somebody else's virtual router. Choose \
         another number for one of the two"
    )
}

fn hardware(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// How often the same trouble with the same peer is reported.
const AGAIN: Duration = Duration::from_secs(60);
/// Different troubles within that time; more than these are somebody's attack.
const KNOWN: usize = 64;

/// Lets the same trouble be reported only once a minute. Counters have what is held back.
#[derive(Debug, Default)]
pub struct TroubleLimit {
    reported: BTreeMap<(Arc<str>, &'static str, Option<IpAddr>), Instant>,
}

impl TroubleLimit {
    /// Whether an instance's trouble may be reported now.
    pub fn lets_pass(&mut self, instance: &Arc<str>, trouble: &Trouble, now: Instant) -> bool {
        self.reported.retain(|_, at| now < *at + AGAIN);
        let (kind, from) = trouble.kind();
        let key = (instance.clone(), kind, from);
        if self.reported.contains_key(&key) || self.reported.len() >= KNOWN {
            return false;
        }
        self.reported.insert(key, now);
        true
    }
}

impl Trouble {
    fn kind(&self) -> (&'static str, Option<IpAddr>) {
        match self {
            Trouble::LowerMaster { from, .. } => ("lower_master", Some(*from)),
            Trouble::SplitHealed => ("split_healed", None),
            Trouble::Claimed { address, .. } => ("claimed", Some(*address)),
            Trouble::TwoOwners(from) => ("two_owners", Some(*from)),
            Trouble::Refused { why, from, .. } => (why.name(), Some(*from)),
            Trouble::Disagrees { from, .. } => ("disagrees", Some(*from)),
            Trouble::OtherNumber { from, .. } => ("other_number", Some(*from)),
            Trouble::CannotSend(_) => ("cannot_send", None),
            Trouble::Addresses(_) => ("addresses", None),
            Trouble::Script(_) => ("script", None),
            Trouble::Unprotected(_) => ("unprotected", None),
        }
    }
}

#[cfg(test)]
mod tests;
