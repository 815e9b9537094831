//! What is on its way to one peer: a bounded queue of changes, and a full copy that goes out beside it, a part each turn.

use std::{
    collections::{HashSet, VecDeque},
    net::SocketAddr,
};

use super::{
    link::Link,
    mirror::{Mirror, Now},
    wire::{self, Message},
};
use crate::{controller::view::Place, words::SyncCounts};

/// Changes that may wait. More are dropped, and the peer is told to ask for a copy.
const QUEUE: usize = 65_536;
/// Datagrams in one turn, of changes and of a copy each: at 20 ms a turn some 40,000 flows a second of both.
const DATAGRAMS: usize = 64;
/// Slots that a copy looks at in one turn.
const SLOTS: u32 = 16_384;

/// A change that waits to be sent.
#[derive(Clone, Copy, Debug)]
pub enum Item {
    /// A flow in its slot, in this generation; what there is to say of it is read when it is sent.
    Flow(Place, u32),
    /// A flow that has ended.
    Ended(wire::Name),
}

/// Datagrams that were turned away, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusedCounts {
    /// The sender does not have the key, or the datagram was changed on the way.
    pub not_authentic: u64,
    /// It was received before, or belongs to an old session.
    pub replayed: u64,
    /// It cannot be understood.
    pub malformed: u64,
}

/// A copy that is going out.
#[derive(Clone, Copy, Debug)]
struct CopyOut {
    number: u32,
    begun: bool,
    /// Which pool, by its rank in the directory, and which slot is next.
    next: (usize, u32),
    flows: u32,
}

/// One peer and what it is to be told.
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Whom it may believe and who believes it.
    pub link: Link,
    /// What was counted.
    pub counts: SyncCounts,
    /// Its datagrams that were turned away.
    pub refused: RefusedCounts,
    /// The flows of the copy that is coming in.
    pub present: HashSet<Place>,
    queue: VecDeque<Item>,
    /// When the queue was empty last; what waits in it came after that.
    empty_at: u64,
    copy: Option<CopyOut>,
    offer: bool,
}

impl Peer {
    /// A peer to whom nothing was said yet.
    pub fn new(address: SocketAddr, link: Link) -> Peer {
        let (queue, counts) = (VecDeque::new(), SyncCounts::default());
        Peer {
            address,
            link,
            counts,
            refused: RefusedCounts::default(),
            present: HashSet::new(),
            queue,
            empty_at: 0,
            copy: None,
            offer: false,
        }
    }

    /// Puts a change in the queue. To a peer that is not there nothing is said: it will ask for a copy.
    pub fn push(&mut self, item: Item) {
        if !self.link.is_accepted() {
            return;
        }
        if self.queue.len() < QUEUE {
            self.queue.push_back(item);
        } else {
            self.counts.dropped += 1;
            self.offer = true;
        }
    }

    /// Tells the peer that it had better ask for a copy.
    pub fn offer_copy(&mut self) {
        self.offer = true;
    }

    /// Begins a copy, or begins it anew.
    pub fn begin_copy(&mut self, number: u32) {
        self.copy = Some(CopyOut { number, begun: false, next: (0, 0), flows: 0 });
    }

    /// Who is master of what has changed: a copy that is going out says too much or too little of it.
    pub fn restart_copy(&mut self) {
        if let Some(copy) = self.copy {
            self.begin_copy(copy.number);
        }
    }

    /// How many changes wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// For how long the oldest of them has waited, at most; in nanoseconds.
    pub fn lag(&self, now: u64) -> u64 {
        if self.queue.is_empty() { 0 } else { now.saturating_sub(self.empty_at) }
    }

    /// The datagrams of this turn.
    pub fn turn(&mut self, mirror: &Mirror, now: Now) -> Vec<Vec<u8>> {
        let mut datagrams = self.link.due(now.monotonic);
        if self.link.is_accepted() {
            let mut payloads = Payloads::default();
            if std::mem::take(&mut self.offer) {
                payloads.add(&Message::CopyOffered);
            }
            self.drain_queue(mirror, now, &mut payloads);
            if self.queue.is_empty() {
                self.empty_at = now.monotonic;
            }
            self.go_on_with_copy(mirror, now, &mut payloads);
            datagrams.extend(payloads.finish().iter().map(|payload| self.link.seal(payload)));
        }
        self.counts.datagrams_sent += datagrams.len() as u64;
        datagrams
    }

    fn drain_queue(&mut self, mirror: &Mirror, now: Now, payloads: &mut Payloads) {
        while payloads.len() < DATAGRAMS {
            let Some(item) = self.queue.pop_front() else { return };
            match item {
                Item::Ended(name) => {
                    self.counts.ends_sent += 1;
                    payloads.add(&Message::Ended(name));
                }
                Item::Flow(place, generation) => {
                    let current = mirror.tables.occupant(place.pool, place.slot);
                    let current = current.filter(|flow| flow.ctl.generation() == generation);
                    if let Some(flow) = current.and_then(|flow| mirror.record(&flow, now)) {
                        self.counts.flows_sent += 1;
                        payloads.add(&Message::Flow(flow));
                        // The peer counts every flow that comes while a copy does.
                        if let Some(copy) = self.copy.as_mut().filter(|copy| copy.begun) {
                            copy.flows += 1;
                        }
                    }
                }
            }
        }
    }

    fn go_on_with_copy(&mut self, mirror: &Mirror, now: Now, payloads: &mut Payloads) {
        let Some(mut copy) = self.copy.take() else { return };
        if !copy.begun {
            payloads.add(&Message::CopyBegin { copy: copy.number });
            mirror.directory.ours().into_iter().for_each(|listener| payloads.add(&Message::Covers(listener)));
            copy.begun = true;
        }
        let most = payloads.len() + DATAGRAMS;
        let mut slots = SLOTS;
        while let Some(pool) = mirror.directory.pools.values().nth(copy.next.0) {
            if payloads.len() >= most || slots == 0 {
                self.copy = Some(copy);
                return;
            }
            // As many slots as surely fit, should each of them hold a flow.
            let to = (copy.next.1 + slots.min(512)).min(u32::from(pool.ports));
            let heads = mirror.tables.heads(pool.number, copy.next.1..to);
            for head in heads.filter(|head| head.ctl.state().is_active() && mirror.directory.is_ours(head.listener())) {
                let flow = mirror.tables.occupant(pool.number, head.slot);
                if let Some(flow) = flow.and_then(|flow| mirror.record(&flow, now)) {
                    copy.flows += 1;
                    self.counts.flows_sent += 1;
                    payloads.add(&Message::Flow(flow));
                }
            }
            slots -= to - copy.next.1;
            copy.next = if to >= u32::from(pool.ports) { (copy.next.0 + 1, 0) } else { (copy.next.0, to) };
        }
        payloads.add(&Message::CopyEnd { copy: copy.number, flows: copy.flows });
        self.counts.copies_sent += 1;
    }
}

/// Messages, packed into as few datagrams as possible.
#[derive(Default)]
pub struct Payloads {
    full: Vec<Vec<u8>>,
    open: Vec<u8>,
}

impl Payloads {
    /// Adds a message.
    pub fn add(&mut self, message: &Message) {
        let before = self.open.len();
        wire::write(message, &mut self.open);
        if self.open.len() > wire::MOST {
            let next = self.open.split_off(before);
            self.full.push(std::mem::replace(&mut self.open, next));
        }
    }

    fn len(&self) -> usize {
        self.full.len()
    }

    /// All of them.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.full.extend(Some(self.open).filter(|open| !open.is_empty()));
        self.full
    }
}
