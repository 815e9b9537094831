//! What an operator should hear of, in words: what happened, and what to do.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use log::Level;

use super::{
    machine::{State, Why},
    receive::{Agreement, Refusal},
};
use crate::notice::{Kind, Notice, Subject};

/// Something that happened to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The instance's name.
    pub instance: Arc<str>,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Its state changed.
    Moved {
        /// What it was.
        from: State,
        /// What it is.
        to: State,
        /// What made it so.
        why: Why,
        /// The priority it has now.
        priority: u8,
        /// What makes it FAULT, if that is it.
        faults: Vec<String>,
    },
    /// Another thing.
    Trouble(Trouble),
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Two masters: another one was heard.
    LowerMaster {
        /// Who.
        from: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// That one is not heard any more.
    SplitHealed,
    /// Another host says that an address is its own.
    Claimed {
        /// The address.
        address: IpAddr,
        /// The other host's MAC address.
        mac: [u8; 6],
    },
    /// Two hosts have priority 255.
    TwoOwners(IpAddr),
    /// An advertisement did not count.
    Refused {
        /// Why.
        why: Refusal,
        /// Who sent it.
        from: IpAddr,
        /// How its addresses agree with ours.
        agreement: Option<Agreement>,
    },
    /// An advertisement counts, but carries other addresses.
    Disagrees {
        /// Who sent it.
        from: IpAddr,
        /// Whether any of them is ours.
        agreement: Agreement,
    },
    /// Nothing can be sent.
    CannotSend(String),
    /// The addresses cannot be put on the interface, or taken from it.
    Addresses(String),
    /// A script does not do what it should.
    Script(String),
    /// The thread cannot have what it should have.
    Unprotected(String),
}

impl Event {
    /// For the log and `evenkeel events`.
    pub fn notice(&self, router: u8) -> Notice {
        let (level, text) = match &self.what {
            What::Moved { from, to, why, priority, faults } => moved(*from, *to, *why, *priority, faults),
            What::Trouble(trouble) => trouble.words(router),
        };
        let subject = match &self.what {
            What::Trouble(Trouble::Unprotected(_)) => Subject::Daemon,
            _ => Subject::Instance(self.instance.clone()),
        };
        Notice { level, kind: Kind::Vrrp, subject, text }
    }
}

fn moved(from: State, to: State, why: Why, priority: u8, faults: &[String]) -> (Level, String) {
    let level = if to == State::Fault || why == Why::LeaseLapsed { Level::Warn } else { Level::Info };
    let why = if to == State::Fault && !faults.is_empty() { faults.join(", ") } else { words(why) };
    (level, format!("is {} with priority {priority} (was {}): {why}", name(to), name(from)))
}

/// keepalived's word.
pub fn name(state: State) -> &'static str {
    match state {
        State::Init => "INIT",
        State::Backup => "BACKUP",
        State::Master => "MASTER",
        State::Fault => "FAULT",
    }
}

/// Why a state changed, in words.
pub fn words(why: Why) -> String {
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
        Why::Group => "its group".into(),
        Why::Fault => "the host cannot be a router now".into(),
        Why::Recovered => "the host can be a router again".into(),
        Why::Ended => "ended".into(),
    }
}

impl Trouble {
    fn words(&self, router: u8) -> (Level, String) {
        let text = match self {
            Trouble::LowerMaster { from, priority } => format!(
                "is not the only master: {from} advertises priority {priority}. If it goes on, that host does not hear this \
                 one: let IP protocol 112 through its firewall, check IGMP snooping, or use unicast_peers"
            ),
            Trouble::SplitHealed => return (Level::Info, "is the only master again; the segment was told so".into()),
            Trouble::Claimed { address, mac } => format!(
                "holds {address}, but {} claims it by ARP or ND: another master that is not heard (see above), or a host \
                 that has the address as its own (ip addr del it there)",
                hardware(mac)
            ),
            Trouble::TwoOwners(other) => format!(
                "has priority 255 and so has {other}: only the host that has the addresses as its own may: write a lower one"
            ),
            Trouble::Refused { why, from, agreement } => refused(*why, *from, *agreement, router),
            Trouble::Disagrees { from, agreement: Agreement::Strange } => stranger(*from, router),
            Trouble::Disagrees { from, .. } => format!(
                "hears {from} with other `addresses`: write the same on both hosts, or some stay where they are at a takeover"
            ),
            Trouble::CannotSend(error) => format!("cannot advertise: {error}"),
            Trouble::Addresses(error) => error.clone(),
            Trouble::Script(what) | Trouble::Unprotected(what) => what.clone(),
        };
        (Level::Warn, text)
    }
}

fn refused(why: Refusal, from: IpAddr, agreement: Option<Agreement>, router: u8) -> String {
    let differs = matches!(why, Refusal::Version | Refusal::AuthenticationType | Refusal::Password | Refusal::Interval);
    if differs && agreement == Some(Agreement::Strange) {
        return stranger(from, router);
    }
    let Some(what) = advice(why) else { return format!("ignores {from}: {}", why.meaning()) };
    let both = if differs { "; until then both are master" } else { "" };
    format!("ignores {from}, which sends {what}{both}")
}

/// What an advertisement that does not count has, and what to do about it; nothing where that depends.
pub fn advice(why: Refusal) -> Option<&'static str> {
    Some(match why {
        Refusal::Version => "another version: write the same `version` on both hosts",
        Refusal::AuthenticationType => {
            "a password where none is expected, or none: write the same `auth_pass` on both hosts"
        }
        Refusal::Password => "another password: write the same `auth_pass` (its first 8 bytes count) on both hosts",
        Refusal::Interval => {
            "another interval, which version 2 does not permit: write the same `advert_interval` on both hosts"
        }
        Refusal::Destination => {
            "multicast where this host has unicast_peers, or the other way round: write it alike on both hosts"
        }
        Refusal::Peer => "unicast, but is none of unicast_peers: add it, or look who that is",
        Refusal::OwnAddress => {
            "this host's own address as its source: another host has the same address, or the network loops"
        }
        Refusal::HopLimit => {
            "a time to live that says that it was not sent on this link: somebody may be trying to interfere"
        }
        _ => return None,
    })
}

fn stranger(from: IpAddr, router: u8) -> String {
    format!(
        "hears {from}, which uses virtual_router_id {router} for other addresses: somebody else's virtual router. Choose \
         another number for one of the two"
    )
}

fn hardware(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// How often the same trouble of the same peer is told.
const AGAIN: u64 = 60 * 1_000_000_000;
/// Different troubles that are told apart; more of them at a time are somebody's play.
const KNOWN: usize = 64;

/// Tells the same only once a minute. What is not told is counted elsewhere.
#[derive(Debug, Default)]
pub struct Limit {
    told: BTreeMap<(Arc<str>, &'static str, Option<IpAddr>), u64>,
}

impl Limit {
    /// Whether an instance's trouble is to be told now.
    pub fn lets_pass(&mut self, instance: &Arc<str>, trouble: &Trouble, now: u64) -> bool {
        self.told.retain(|_, at| now < *at + AGAIN);
        let (kind, from) = trouble.kind();
        let key = (instance.clone(), kind, from);
        if self.told.contains_key(&key) || self.told.len() >= KNOWN {
            return false;
        }
        self.told.insert(key, now);
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
            Trouble::Disagrees { from, agreement: Agreement::Strange } => ("stranger", Some(*from)),
            Trouble::Disagrees { from, .. } => ("disagrees", Some(*from)),
            Trouble::CannotSend(_) => ("cannot_send", None),
            Trouble::Addresses(_) => ("addresses", None),
            Trouble::Script(_) => ("script", None),
            Trouble::Unprotected(_) => ("unprotected", None),
        }
    }
}

#[cfg(test)]
mod tests;
