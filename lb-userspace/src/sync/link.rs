//! One peer: which session to believe, what was lost, when to request a copy. Without socket, clock
//! or source of randomness: time and random numbers are arguments.
//!
//! **Which session to believe.** Every datagram is sealed, but an attacker could replay an old one.
//! So a session of the peer is accepted only by a `Hello` that echoes our challenge, and our
//! challenge changes with every acceptance: neither a datagram of an older session nor its `Hello`
//! revives that session. Within a session every number counts once. A direction has its own key, so
//! our own datagrams, sent back to us, are nobody's.
//!
//! **What was lost.** A gap in the numbers that does not close in half a second means that datagrams
//! were lost: a full copy is requested, at most once per second. A request is repeated until the
//! copy begins; then the sender says that it goes on, also while it finds no flow. One of which
//! nothing is heard any more (its end was lost) is requested anew. A copy is
//! complete if as many flows arrived as its end says and nothing was lost since its beginning; flows
//! that we hold and the copy does not are over.

use std::{net::SocketAddr, time::Duration};

use lb_common::time::Instant;

use super::{
    seal::{self, Direction, Opener, Sealer, Session, SharedKey},
    sequence::{InTurn, Sequence},
    wire::{self, Message},
};
use crate::words::SyncState;

/// How often a `Hello` is sent until the peer is believed.
const HELLO_AT_FIRST: Duration = Duration::from_millis(250);
/// How often a `Hello` is sent afterwards.
const HELLO: Duration = Duration::from_secs(1);
/// The time between two requests for a copy.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a copy that has begun may be silent before another one is requested: longer than the
/// longest `batch`, at the end of which the peer says that it goes on.
const STANDSTILL: Duration = Duration::from_secs(3);
/// How long a copy may take: longer than that of the largest tables.
const LONGEST: Duration = Duration::from_secs(300);
/// A peer that was silent for this long is lost.
const SILENCE: Duration = Duration::from_secs(3);

/// Why a datagram was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is no datagram of flow sync, was sealed with another key, or was altered on the way.
    NotAuthentic,
    /// It belongs to a session that is not believed.
    UnknownSession,
    /// It was received before.
    Replayed,
    /// It is authentic, but its messages cannot be understood.
    Malformed,
    /// It was sealed with our key by this version of the program, in the format before, which does
    /// not say for whom it was.
    OlderFormat(String),
}

/// What a datagram contained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The peer, of this version, is believed from now on.
    Accepted(String),
    /// A flow.
    Flow {
        /// The flow's record.
        flow: wire::FlowRecord,
        /// Whether it is part of a copy that we requested.
        in_copy: bool,
    },
    /// A flow has ended.
    Ended(wire::FlowName),
    /// The peer wants a copy.
    CopyWanted(u32),
    /// A copy begins: notes about an earlier one are void.
    CopyBegins {
        /// When it was requested first. What arrives may have waited here, if this host stood
        /// still.
        requested: Instant,
    },
    /// A copy is complete: flows of these listeners that were not in it are over.
    CopyWhole(Vec<SocketAddr>),
    /// An operator's decision.
    Admin(wire::AdminDecision),
    /// A backend's health.
    Health(wire::BackendHealth),
}

/// The most listeners that a copy may cover: as many as there can be.
const MOST_COVERED: usize = 1 << lb_common::layout::LISTENER_BITS;

/// A copy that we requested.
#[derive(Debug)]
struct Copy {
    number: u32,
    requested: Instant,
    begun: bool,
    /// Another one was wanted since it began.
    again: bool,
    flows: u32,
    covered: Vec<SocketAddr>,
    /// When it is requested again, if nothing is heard of it.
    until: Instant,
    /// When it is requested again, whatever is heard of it.
    over: Instant,
}

/// The session of the peer that is believed.
struct Believed {
    opener: Opener,
    /// Its datagrams, opened.
    sequence: Sequence<Vec<Message>>,
}

/// A peer's session, our session with it, and the copy under way.
pub struct Link {
    key: SharedKey,
    /// From us to the peer.
    direction: Direction,
    sealer: Sealer,
    believed: Option<Believed>,
    challenge: Session,
    /// The last challenge heard from the peer.
    heard: Session,
    version: String,
    hello_at: Instant,
    heard_at: Option<Instant>,
    copies: u32,
    copy: Option<Copy>,
    copy_wanted_at: Option<Instant>,
    /// The number of the peer's datagrams that never arrived.
    pub missing: u64,
}

impl Link {
    /// A link that begins with these random numbers as its session and first challenge.
    pub fn new(key: &SharedKey, direction: Direction, session: Session, challenge: Session, version: &str) -> Link {
        Link {
            key: key.clone(),
            direction,
            sealer: Sealer::new(key, session, direction),
            believed: None,
            challenge,
            heard: [0; 16],
            version: version.to_owned(),
            hello_at: Instant::ZERO,
            heard_at: None,
            copies: 0,
            copy: None,
            copy_wanted_at: None,
            missing: 0,
        }
    }

    /// Seals messages into a datagram.
    pub fn seal(&mut self, messages: &[u8]) -> Vec<u8> {
        self.sealer.seal(messages)
    }

    /// Whether the peer is believed; only then is it worth sending flows.
    pub fn is_accepted(&self) -> bool {
        self.believed.is_some()
    }

    /// The state to show.
    pub fn state(&self, now: Instant) -> SyncState {
        match (self.is_accepted(), self.heard_at) {
            (true, Some(heard)) if heard.age(now) >= SILENCE => SyncState::Lost,
            (true, _) if self.copy.is_some() || self.copy_wanted_at.is_some() => SyncState::Copying,
            (true, _) => SyncState::Synced,
            (false, _) => SyncState::Connecting,
        }
    }

    /// How long the peer has been silent; `None`: it was never heard.
    pub fn silence(&self, now: Instant) -> Option<Duration> {
        self.heard_at.map(|heard| heard.age(now))
    }

    /// Requests a copy of all the peer's flows: we may be wrong about which of them are open. One
    /// that has begun may have brought what was not understood yet: another one follows it.
    pub fn want_copy(&mut self, now: Instant) {
        match &mut self.copy {
            Some(copy) => copy.again = copy.begun,
            None => _ = self.copy_wanted_at.get_or_insert(now),
        }
    }

    /// The control messages that are due, one per datagram.
    pub fn due(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        if now >= self.hello_at {
            self.hello_at = now + if self.is_accepted() { HELLO } else { HELLO_AT_FIRST };
            datagrams.push(self.hello());
        }
        match self.copy.as_mut().filter(|copy| now >= copy.until) {
            Some(copy) if copy.begun => {
                self.copy = None;
                self.copy_wanted_at = Some(now);
            }
            Some(copy) => {
                copy.until = now + PATIENCE;
                let number = copy.number;
                datagrams.push(self.message(&Message::Request { copy: number }));
            }
            None => {}
        }
        if self.is_accepted() && self.copy_wanted_at.is_some_and(|at| now >= at) {
            self.copies += 1;
            self.copy_wanted_at = None;
            let (until, over) = (now + PATIENCE, Instant::NEVER);
            let (number, requested) = (self.copies, now);
            let (begun, again) = (false, false);
            self.copy = Some(Copy { number, requested, begun, again, flows: 0, covered: Vec::new(), until, over });
            datagrams.push(self.message(&Message::Request { copy: self.copies }));
        }
        datagrams
    }

    fn hello(&mut self) -> Vec<u8> {
        let hello = Message::Hello { challenge: self.challenge, echo: self.heard, version: self.version.clone() };
        self.message(&hello)
    }

    fn message(&mut self, message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        wire::write(message, &mut bytes);
        self.sealer.seal(&bytes)
    }

    /// Takes a datagram from the peer's address. `fresh` is a random number for the next challenge.
    /// The second value is an answer to send at once.
    pub fn receive(
        &mut self,
        datagram: &[u8],
        fresh: Session,
        now: Instant,
    ) -> Result<(Vec<Received>, Option<Vec<u8>>), Refused> {
        let head = seal::head(datagram).ok_or_else(|| self.why_no_head(datagram))?;
        if self.believed.as_ref().is_some_and(|believed| believed.opener.session == head.session) {
            return Ok((self.of_session(datagram, head.number, now)?, None));
        }
        self.of_stranger(datagram, &head, fresh, now)
    }

    fn why_no_head(&self, datagram: &[u8]) -> Refused {
        let messages = seal::open_older(&self.key, datagram).and_then(|bytes| wire::read(&bytes).ok());
        let hello = messages.into_iter().flatten().find_map(|message| match message {
            Message::Hello { version, .. } => Some(version),
            _ => None,
        });
        hello.map_or(Refused::NotAuthentic, Refused::OlderFormat)
    }

    fn of_session(&mut self, datagram: &[u8], number: u64, now: Instant) -> Result<Vec<Received>, Refused> {
        let Believed { opener, sequence } = self.believed.as_mut().ok_or(Refused::UnknownSession)?;
        let bytes = opener.open(datagram).ok_or(Refused::NotAuthentic)?;
        if !sequence.is_new(number) {
            return Err(Refused::Replayed);
        }
        let messages = wire::read(&bytes);
        // The number of one that cannot be understood counts, too.
        sequence.take_in(number, messages.clone().unwrap_or_default(), now);
        self.heard_at = Some(now);
        messages.map_err(|wire::Malformed| Refused::Malformed)?;
        Ok(self.in_turn(now))
    }

    /// What has arrived and whose turn has come: because its predecessors have arrived, or have been
    /// waited for long enough.
    pub fn in_turn(&mut self, now: Instant) -> Vec<Received> {
        self.take_out(now, |sequence| sequence.pop(now))
    }

    /// Everything that has arrived, whatever is missing: from now on it is too late.
    pub fn at_once(&mut self, now: Instant) -> Vec<Received> {
        self.take_out(now, Sequence::pop_first)
    }

    fn take_out(
        &mut self,
        now: Instant,
        mut next: impl FnMut(&mut Sequence<Vec<Message>>) -> Option<InTurn<Vec<Message>>>,
    ) -> Vec<Received> {
        let mut all = Vec::new();
        while let Some(InTurn { missing, item }) = self.believed.as_mut().and_then(|it| next(&mut it.sequence)) {
            if missing > 0 {
                self.missing += missing;
                self.lost_something(now);
            }
            all.extend(item.into_iter().filter_map(|message| self.received(message, now)));
        }
        all
    }

    /// A datagram of a session that is not believed yet: its `Hello` holds the challenge to echo,
    /// and perhaps echoes ours.
    fn of_stranger(
        &mut self,
        datagram: &[u8],
        head: &seal::Head,
        fresh: Session,
        now: Instant,
    ) -> Result<(Vec<Received>, Option<Vec<u8>>), Refused> {
        let opener = Opener::new(&self.key, head.session, self.direction.back());
        let bytes = opener.open(datagram).ok_or(Refused::NotAuthentic)?;
        let messages = wire::read(&bytes).map_err(|wire::Malformed| Refused::Malformed)?;
        let hello = messages.into_iter().find_map(|message| match message {
            Message::Hello { challenge, echo, version } => Some((challenge, echo, version)),
            _ => None,
        });
        let (challenge, echo, version) = hello.ok_or(Refused::UnknownSession)?;
        let answer = (self.heard != challenge).then(|| {
            self.heard = challenge;
            self.hello()
        });
        if echo != self.challenge {
            return Ok((Vec::new(), answer));
        }
        self.believed = Some(Believed { opener, sequence: Sequence::after(head.number) });
        self.challenge = fresh;
        self.heard_at = Some(now);
        self.copy = None;
        self.copy_wanted_at = Some(now);
        Ok((vec![Received::Accepted(version)], answer))
    }

    fn lost_something(&mut self, now: Instant) {
        match &mut self.copy {
            // The incoming copy is incomplete: another one is requested when it has ended.
            Some(copy) => copy.flows = u32::MAX,
            None => self.copy_wanted_at = Some(self.copy_wanted_at.unwrap_or(now + PATIENCE)),
        }
    }

    fn received(&mut self, message: Message, now: Instant) -> Option<Received> {
        Some(match message {
            Message::Hello { challenge, .. } => {
                self.heard = challenge;
                return None;
            }
            Message::Flow(flow) => {
                let copy = self.copy.as_mut().filter(|copy| copy.begun);
                let in_copy = copy.is_some();
                // It does not show that the copy goes on: open flows are sent in their turn, too.
                if let Some(copy) = copy {
                    copy.flows = copy.flows.saturating_add(1);
                }
                Received::Flow { flow, in_copy }
            }
            Message::Ended(name) => Received::Ended(name),
            Message::Request { copy } => Received::CopyWanted(copy),
            Message::CopyBegin { copy: number } => {
                let copy = self.copy.as_mut().filter(|copy| copy.number == number)?;
                let (until, over) = (now + STANDSTILL, now + LONGEST);
                let (requested, begun, again) = (copy.requested, true, false);
                *copy = Copy { number, requested, begun, again, flows: 0, covered: Vec::new(), until, over };
                Received::CopyBegins { requested }
            }
            Message::CopyGoesOn { copy: number } => {
                let copy = self.copy.as_mut().filter(|copy| copy.number == number && copy.begun)?;
                copy.until = (now + STANDSTILL).min(copy.over);
                return None;
            }
            Message::CopyEnd { copy: number, flows } => {
                let copy = self.copy.take_if(|copy| copy.number == number)?;
                if !copy.begun || copy.flows != flows {
                    self.copy_wanted_at = Some(now + PATIENCE);
                    return None;
                }
                if copy.again {
                    self.copy_wanted_at = Some(now);
                }
                Received::CopyWhole(copy.covered)
            }
            Message::Covers(listener) => {
                let copy = self.copy.as_mut().filter(|copy| copy.covered.len() < MOST_COVERED)?;
                copy.covered.push(listener);
                return None;
            }
            Message::CopyOffered => {
                self.want_copy(now);
                return None;
            }
            Message::Admin(admin) => Received::Admin(admin),
            Message::Health(health) => Received::Health(health),
        })
    }
}

#[cfg(test)]
mod tests;
