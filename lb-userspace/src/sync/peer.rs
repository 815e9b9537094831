//! What is on its way to one peer: a bounded queue of changes and, in addition, a full copy that
//! goes out in parts, one per turn.

use std::{
    collections::{HashSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use lb_common::{flow::SlotAt, time::Instant};

use super::{
    link::Link,
    mirror::{Clocks, Mirror},
    wire::{self, Message},
};
use crate::words::{SyncCounts, SyncState};

/// The most changes that may wait. Further ones are dropped, and a copy is offered to the peer.
const QUEUE: usize = 65_536;
/// Datagrams per turn, for changes and for a copy each: with a turn every 20 ms, some 40,000 flows
/// per second of either kind.
const DATAGRAMS: usize = 64;
/// Slots that a copy reads in each [`PIECE`] of the time since the last turn, up to a second.
const SLOTS: u32 = 16_384;
const PIECE: Duration = Duration::from_millis(20);

/// A change that waits to be sent.
#[derive(Clone, Copy, Debug)]
pub enum Item {
    /// A flow in its slot, in this generation; its record is read when it is sent.
    Flow(SlotAt, u32),
    /// A flow that has ended.
    Ended(wire::FlowName),
}

/// A copy that is going out.
#[derive(Clone, Copy, Debug)]
struct CopyOut {
    number: u32,
    begun: bool,
    /// Where it goes on.
    next: WalkPos,
    flows: u32,
    /// When it went on last.
    at: Instant,
}

/// A position in the walk over all slots.
#[derive(Clone, Copy, Debug, Default)]
pub struct WalkPos {
    /// The pool, by its position in the directory.
    pub pool: usize,
    /// The next slot.
    pub slot: u32,
}

impl WalkPos {
    /// The position after `slot` was reached in a pool of `slots`.
    pub fn after(self, slot: u32, slots: u32) -> WalkPos {
        if slot >= slots { WalkPos { pool: self.pool + 1, slot: 0 } } else { WalkPos { slot, ..self } }
    }
}

/// One peer and what waits to be sent to it.
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The session with it.
    pub link: Link,
    /// Its program's version; empty before it was heard.
    pub version: String,
    /// The version that was reported as too old; empty: none.
    pub older: String,
    /// Whether it was reported that its key is another one.
    pub other_key: bool,
    /// The state that was reported last.
    pub reported: SyncState,
    /// What was counted.
    pub counts: SyncCounts,
    /// The flows of the incoming copy.
    pub present: HashSet<SlotAt>,
    /// When it was requested, before it began.
    pub present_since: Instant,
    /// When the next one is wanted: what it does not have may have begun too late for it.
    pub again_at: Option<Instant>,
    queue: VecDeque<Item>,
    /// When the queue was empty last; what waits in it is younger.
    empty_at: Instant,
    copy: Option<CopyOut>,
    offer: bool,
}

impl Peer {
    /// A peer that was sent nothing yet.
    pub fn new(address: SocketAddr, link: Link) -> Peer {
        Peer {
            address,
            link,
            version: String::new(),
            older: String::new(),
            other_key: false,
            reported: SyncState::Connecting,
            counts: SyncCounts::default(),
            present: HashSet::new(),
            present_since: Instant::ZERO,
            again_at: None,
            queue: VecDeque::new(),
            empty_at: Instant::ZERO,
            copy: None,
            offer: false,
        }
    }

    /// Queues a change. A peer that is not there gets none: it will request a copy.
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

    /// Offers the peer a copy.
    pub fn offer_copy(&mut self) {
        self.offer = true;
    }

    /// A copy is wanted. The one that is going out goes on: the request may have been repeated before
    /// its beginning arrived.
    pub fn copy_wanted(&mut self, number: u32) {
        if self.copy.is_none_or(|copy| copy.number != number) {
            self.begin_copy(number);
        }
    }

    fn begin_copy(&mut self, number: u32) {
        self.copy = Some(CopyOut { number, begun: false, next: WalkPos::default(), flows: 0, at: Instant::NEVER });
    }

    /// Begins an outgoing copy again, because this host has become or ceased to be master of a
    /// listener: it would hold too much or too little.
    pub fn restart_copy(&mut self) {
        if let Some(copy) = self.copy {
            self.begin_copy(copy.number);
        }
    }

    /// The number of changes that wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// How long the oldest of them has waited, at most.
    pub fn lag(&self, now: Instant) -> Duration {
        if self.queue.is_empty() { Duration::ZERO } else { self.empty_at.age(now) }
    }

    /// The datagrams of this turn.
    pub fn turn(&mut self, mirror: &Mirror, now: Clocks) -> Vec<Vec<u8>> {
        if self.again_at.take_if(|at| *at <= now.monotonic).is_some() {
            self.link.want_copy(now.monotonic);
        }
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

    fn drain_queue(&mut self, mirror: &Mirror, now: Clocks, payloads: &mut Payloads) {
        while payloads.len() < DATAGRAMS {
            let Some(item) = self.queue.pop_front() else { return };
            match item {
                Item::Ended(name) => {
                    self.counts.ends_sent += 1;
                    payloads.add(&Message::Ended(name));
                }
                Item::Flow(place, generation) => {
                    let current = mirror.tables.occupant(place);
                    let current = current.filter(|flow| flow.ctl.generation() == generation);
                    if let Some(flow) = current.and_then(|flow| mirror.record(&flow, now)) {
                        self.counts.flows_sent += 1;
                        payloads.add(&Message::Flow(flow));
                        // The peer counts every flow that arrives during a copy.
                        if let Some(copy) = self.copy.as_mut().filter(|copy| copy.begun) {
                            copy.flows += 1;
                        }
                    }
                }
            }
        }
    }

    fn go_on_with_copy(&mut self, mirror: &Mirror, now: Clocks, payloads: &mut Payloads) {
        let Some(mut copy) = self.copy.take() else { return };
        if !copy.begun {
            payloads.add(&Message::CopyBegin { copy: copy.number });
            mirror.directory.ours().into_iter().for_each(|listener| payloads.add(&Message::Covers(listener)));
            copy.begun = true;
        }
        let most = payloads.len() + DATAGRAMS;
        let pieces = copy.at.age(now.monotonic).as_millis() / PIECE.as_millis();
        let mut slots = SLOTS * pieces.clamp(1, 50) as u32;
        copy.at = now.monotonic;
        while let Some(pool) = mirror.directory.pools.values().nth(copy.next.pool) {
            if payloads.len() >= most || slots == 0 {
                payloads.add(&Message::CopyGoesOn { copy: copy.number });
                self.copy = Some(copy);
                return;
            }
            // As many slots as surely fit even if each holds a flow.
            let to = (copy.next.slot + slots.min(512)).min(pool.slots);
            let heads = mirror.tables.heads(pool.number, copy.next.slot..to);
            for head in
                heads.filter(|head| head.flow.ctl.state().is_active() && mirror.directory.is_ours(head.listener()))
            {
                let flow = mirror.tables.occupant(head.flow.at);
                if let Some(flow) = flow.and_then(|flow| mirror.record(&flow, now)) {
                    copy.flows += 1;
                    self.counts.flows_sent += 1;
                    payloads.add(&Message::Flow(flow));
                }
            }
            slots -= to.saturating_sub(copy.next.slot);
            copy.next = copy.next.after(to, pool.slots);
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

    /// The payloads of all datagrams.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.full.extend(Some(self.open).filter(|open| !open.is_empty()));
        self.full
    }
}
