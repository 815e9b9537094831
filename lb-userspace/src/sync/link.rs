//! One peer: whom to believe, what was lost, when to ask for a copy. No socket, no clock, no chance: time and random
//! numbers come in as arguments.
//!
//! **Whom to believe.** Every datagram is sealed, but an old one could be sent again. So a session of the peer is accepted
//! only by a `Hello` that echoes our challenge, and our challenge changes with every acceptance: neither a datagram of an
//! older session nor its `Hello` brings it back. Within a session the replay window sorts out what comes twice.
//!
//! **What was lost.** Numbers that are missing mean that something was lost: a full copy is asked for, at most once a
//! second. A copy is whole if as many flows came as its end says and nothing was lost since its beginning; whatever we
//! have beyond it is over then.

use std::net::SocketAddr;

use super::{
    seal::{self, Opener, Sealer, Session, SharedKey},
    wire::{self, Message},
};

const SECOND: u64 = 1_000_000_000;
/// How often a `Hello` goes out while the peer is not accepted, and afterwards.
const HELLO: (u64, u64) = (SECOND / 4, SECOND);
/// How long a request for a copy is waited upon, and how long a copy may be without a word.
const PATIENCE: u64 = SECOND;
/// A peer that was silent for so long is lost.
const SILENCE: u64 = 3 * SECOND;

/// A datagram that was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No datagram of ours, or sealed with another key, or changed on the way.
    NotAuthentic,
    /// Of a session that is not believed.
    UnknownSession,
    /// It came before.
    Replayed,
    /// Sealed rightly, but it says nothing that can be understood.
    Malformed,
}

/// How it stands with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing that is to be believed was heard yet.
    Connecting,
    /// A copy was asked for and is not whole yet.
    Copying,
    /// Everything the peer has told is known here.
    Synced,
    /// Nothing was heard for three seconds.
    Lost,
}

impl Standing {
    /// The word in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Standing::Connecting => "connecting",
            Standing::Copying => "copying",
            Standing::Synced => "synced",
            Standing::Lost => "lost",
        }
    }
}

/// What a datagram has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The peer is believed from now on: with this version.
    Accepted(String),
    /// A flow; `in_copy`: it is part of a copy we asked for.
    Flow {
        /// The flow.
        flow: wire::Flow,
        /// Whether a copy is coming in.
        in_copy: bool,
    },
    /// A flow has ended.
    Ended(wire::Name),
    /// The peer wants a copy.
    CopyWanted(u32),
    /// A copy begins: whatever was noted of one before is void.
    CopyBegins,
    /// A copy is whole: flows of these listeners that were not in it are over.
    CopyWhole(Vec<SocketAddr>),
    /// An operator's decision.
    Admin(wire::Admin),
    /// How a backend does.
    Health(wire::Health),
}

/// Most listeners that a copy may cover: as many as there can be.
const MOST_COVERED: usize = 1 << lb_common::layout::LISTENER_BITS;

/// A copy we asked for.
#[derive(Debug)]
struct Copy {
    number: u32,
    begun: bool,
    flows: u32,
    covered: Vec<SocketAddr>,
    /// When it is asked for anew.
    until: u64,
}

/// The machine.
pub struct Link {
    key: SharedKey,
    sealer: Sealer,
    opener: Option<Opener>,
    challenge: Session,
    /// The last challenge heard from the peer.
    heard: Session,
    version: String,
    hello_at: u64,
    heard_at: Option<u64>,
    copies: u32,
    copy: Option<Copy>,
    copy_wanted_at: Option<u64>,
    /// Datagrams of the peer that never came.
    pub missing: u64,
}

impl Link {
    /// A link whose own session and first challenge are these random numbers.
    pub fn new(key: &SharedKey, session: Session, challenge: Session, version: &str) -> Link {
        Link {
            key: key.clone(),
            sealer: Sealer::new(key, session),
            opener: None,
            challenge,
            heard: [0; 16],
            version: version.to_owned(),
            hello_at: 0,
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

    /// Whether the peer is believed: only then flows are worth sending.
    pub fn is_accepted(&self) -> bool {
        self.opener.is_some()
    }

    /// How it stands.
    pub fn standing(&self, now: u64) -> Standing {
        match (self.opener.is_some(), self.heard_at) {
            (true, Some(heard)) if now.saturating_sub(heard) >= SILENCE => Standing::Lost,
            (true, _) if self.copy.is_some() || self.copy_wanted_at.is_some() => Standing::Copying,
            (true, _) => Standing::Synced,
            (false, _) => Standing::Connecting,
        }
    }

    /// Milliseconds since the peer was heard.
    pub fn silent_ms(&self, now: u64) -> Option<u64> {
        self.heard_at.map(|heard| now.saturating_sub(heard) / 1_000_000)
    }

    /// Everything the peer has is to be told anew: we may have taken something of its for over, or over for open.
    pub fn want_copy(&mut self, now: u64) {
        if self.copy_wanted_at.is_none() && self.copy.is_none() {
            self.copy_wanted_at = Some(now);
        }
    }

    /// The control messages that are due, a datagram each.
    pub fn due(&mut self, now: u64) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        if now >= self.hello_at {
            self.hello_at = now + if self.is_accepted() { HELLO.1 } else { HELLO.0 };
            datagrams.push(self.hello());
        }
        if self.copy.as_ref().is_some_and(|copy| now >= copy.until) {
            self.copy = None;
            self.copy_wanted_at = Some(now);
        }
        if self.is_accepted() && self.copy_wanted_at.is_some_and(|at| now >= at) {
            self.copies += 1;
            self.copy_wanted_at = None;
            let until = now + PATIENCE;
            self.copy = Some(Copy { number: self.copies, begun: false, flows: 0, covered: Vec::new(), until });
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

    /// A datagram from the peer's address. `fresh` is a random number for the next challenge. The second value is an
    /// answer to be sent at once.
    pub fn receive(
        &mut self,
        datagram: &[u8],
        fresh: Session,
        now: u64,
    ) -> Result<(Vec<News>, Option<Vec<u8>>), Refused> {
        let head = seal::head(datagram).ok_or(Refused::NotAuthentic)?;
        if self.opener.as_ref().is_some_and(|opener| opener.session == head.session) {
            return Ok((self.of_session(datagram, head.number, now)?, None));
        }
        self.of_stranger(datagram, &head, fresh, now)
    }

    fn of_session(&mut self, datagram: &[u8], number: u64, now: u64) -> Result<Vec<News>, Refused> {
        let opener = self.opener.as_mut().ok_or(Refused::UnknownSession)?;
        let bytes = opener.open(datagram).ok_or(Refused::NotAuthentic)?;
        let missing = opener.note(number).ok_or(Refused::Replayed)?;
        let messages = wire::read(&bytes).map_err(|wire::Malformed| Refused::Malformed)?;
        self.heard_at = Some(now);
        if missing > 0 {
            self.missing += missing;
            self.lost_something(now);
        }
        Ok(messages.into_iter().filter_map(|message| self.news(message, now)).collect())
    }

    /// A session that is not believed yet: its `Hello` says which challenge to echo, and whether it echoes ours.
    fn of_stranger(
        &mut self,
        datagram: &[u8],
        head: &seal::Head,
        fresh: Session,
        now: u64,
    ) -> Result<(Vec<News>, Option<Vec<u8>>), Refused> {
        let mut opener = Opener::new(&self.key, head.session);
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
        opener.note(head.number);
        self.opener = Some(opener);
        self.challenge = fresh;
        self.heard_at = Some(now);
        self.copy = None;
        self.copy_wanted_at = Some(now);
        Ok((vec![News::Accepted(version)], answer))
    }

    fn lost_something(&mut self, now: u64) {
        match &mut self.copy {
            // What is coming in is not whole: asked for anew when this one's time is over.
            Some(copy) => copy.flows = u32::MAX,
            None => self.copy_wanted_at = Some(self.copy_wanted_at.unwrap_or(now + PATIENCE)),
        }
    }

    fn news(&mut self, message: Message, now: u64) -> Option<News> {
        Some(match message {
            Message::Hello { challenge, .. } => {
                self.heard = challenge;
                return None;
            }
            Message::Flow(flow) => {
                let in_copy = self.copy.as_mut().is_some_and(|copy| {
                    copy.flows = copy.flows.saturating_add(u32::from(copy.begun));
                    copy.until = now + PATIENCE;
                    copy.begun
                });
                News::Flow { flow, in_copy }
            }
            Message::Ended(name) => News::Ended(name),
            Message::Request { copy } => News::CopyWanted(copy),
            Message::CopyBegin { copy: number } => {
                let copy = self.copy.as_mut().filter(|copy| copy.number == number)?;
                *copy = Copy { number, begun: true, flows: 0, covered: Vec::new(), until: now + PATIENCE };
                News::CopyBegins
            }
            Message::CopyEnd { copy: number, flows } => {
                let copy = self.copy.take_if(|copy| copy.number == number && copy.begun)?;
                if copy.flows != flows {
                    self.copy_wanted_at = Some(now + PATIENCE);
                    return None;
                }
                News::CopyWhole(copy.covered)
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
            Message::Admin(admin) => News::Admin(admin),
            Message::Health(health) => News::Health(health),
        })
    }
}

#[cfg(test)]
mod tests;
