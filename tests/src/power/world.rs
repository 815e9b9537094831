//! One history: random steps from a seed, and what must hold after each of them.

use std::{collections::BTreeSet, mem::offset_of, net::SocketAddrV4, time::Duration};

use lb_common::{
    flow::SlotAt,
    layout::{Backend, Opening, POOL_EXTENTS, Pool, Slot},
    slot::{Ctl, State},
    time::Ticks,
    verdict::Reason,
};

use super::{
    PORTS,
    dice::Dice,
    honest::{Connection, Phase, Tally, options_in},
    stranger::{Attack, May, Opened},
    words::{Change, Kept, Words},
};
use crate::{
    packet::{ACK, RST, SYN, Segment},
    program::{Bench, backend_of},
};

/// What went wrong, and the history up to there.
#[derive(Debug)]
pub struct Fault {
    /// The kind, for counting.
    pub kind: String,
    pub what: String,
    pub history: Vec<String>,
}

/// Who sends between honest connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strangers {
    /// Nobody: the model must be right by itself.
    None,
    /// Those who know the addresses and ports of connections.
    Blind,
    /// Those who know nothing, and open connections of their own.
    Unknowing,
    /// Both.
    Both,
}

/// A history under way.
pub struct World<'a> {
    pub(super) bench: &'a Bench,
    words: &'a Words,
    pub(super) strangers: Strangers,
    /// The words before the next frame of a stranger.
    before: Kept,
    /// Whether somebody else has written since.
    is_stale: bool,
    pub(super) dice: Dice,
    pub(super) connections: Vec<Connection>,
    pub(super) opened: Vec<Opened>,
    pub(super) tally: Tally,
    history: Vec<String>,
    clients: u16,
    /// Hostile frames sent.
    frames: u64,
}

/// Steps of one history.
const STEPS: u64 = 40;

impl<'a> World<'a> {
    /// Maps the tables of a bench; with the words as they are now every history begins.
    pub fn tables(bench: &Bench) -> (Words, Kept) {
        let words = Words::open(&bench.bpffs.join("maps"), PORTS.into()).expect("the tables");
        let start = words.keep();
        (words, start)
    }

    /// Runs the history of a seed. Returns how many frames strangers have sent.
    pub fn run(
        bench: &'a Bench,
        (words, start): (&'a Words, &'a Kept),
        strangers: Strangers,
        seed: u64,
    ) -> Result<u64, Fault> {
        words.restore(start);
        let mut world = World {
            bench,
            words,
            strangers,
            before: words.keep(),
            is_stale: false,
            dice: Dice::new(seed),
            connections: Vec::new(),
            opened: Vec::new(),
            tally: Tally::default(),
            history: Vec::new(),
            clients: 0,
            frames: 0,
        };
        for _ in 0..1 + world.dice.below(STEPS) {
            let hostile = strangers != Strangers::None && world.dice.once_in(3);
            if hostile {
                world.hostile()?
            } else {
                world.honest()?
            }
            world.check_all()?;
        }
        world.end_all()?;
        world.check_end()?;
        Ok(world.frames)
    }

    pub(super) fn say(&mut self, what: String) {
        self.history.push(what);
    }

    pub(super) fn fault(&self, kind: &str, what: String) -> Fault {
        Fault { kind: kind.to_owned(), what, history: self.history.clone() }
    }

    /// A sequence number.
    pub(super) fn number(&mut self) -> u32 {
        self.dice.number()
    }

    pub(super) fn next_client(&mut self) -> u16 {
        self.clients += 1;
        self.clients
    }

    pub(super) fn admission(&self, n: u16) -> u32 {
        self.bench.tables().backend(n).admission
    }

    /// An honest segment, and what it becomes.
    pub(super) fn sent(&self, segment: &Segment) -> Result<Segment, Fault> {
        let out = self.bench.dataplane.inject(self.bench.ifindex, &segment.bytes()).expect("BPF_PROG_TEST_RUN");
        match Segment::parse(&out.frame) {
            Ok(parsed) if out.sent => Ok(parsed),
            _ => Err(self.fault("honest", format!("{segment:?} was not sent on: verdict {}", out.verdict))),
        }
    }

    /// Lets time pass: every stamp in the tables becomes that much older.
    pub(super) fn pass(&mut self, ms: u64) {
        self.say(format!("{ms} ms pass"));
        let ticks = Ticks::of(Duration::from_millis(ms));
        let older = |_: u64, stamp: u32| stamp.wrapping_sub(ticks);
        let of_flow = |ctl: u64, stamp: u32| if Ctl(ctl).state() == State::Free { stamp } else { older(ctl, stamp) };
        self.words.change("SLOTS", offset_of!(Slot, last_seen), of_flow);
        for stamp in [offset_of!(Pool, heard), offset_of!(Pool, sent)] {
            self.words.change("POOLS", stamp, older);
        }
        let us = (ms * 1000) as u32;
        for pool in &self.bench.pools {
            for slot in (0..PORTS).filter(|slot| self.is_half_open(SlotAt::new(*pool, *slot))) {
                let stamp = offset_of!(Opening, connect_us);
                let position = u32::from(*pool) * POOL_EXTENTS;
                self.words.change_one("OPENINGS", position, slot, stamp, |sent| sent.wrapping_sub(us));
            }
        }
        for it in &mut self.connections {
            if let Phase::Begun(waited) = &mut it.phase {
                *waited += ms;
            }
        }
    }

    /// A random burst of strangers.
    fn hostile(&mut self) -> Result<(), Fault> {
        // So that whatever is stamped shows.
        self.pass(40);
        self.is_stale = true;
        for attack in self.burst() {
            self.attack(&attack)?;
        }
        Ok(())
    }

    fn attack(&mut self, attack: &Attack) -> Result<(), Fault> {
        self.frames += 1;
        self.say(format!("STRANGER: {} ({:?})", attack.what, attack.may));
        if std::mem::replace(&mut self.is_stale, attack.may != May::Nothing) {
            self.words.keep_in(&mut self.before);
        }
        let out = self.bench.dataplane.inject(self.bench.ifindex, &attack.frame).expect("BPF_PROG_TEST_RUN");
        if out.sent && is_icmp(&attack.frame) {
            return Err(self.fault("an error sent on", format!("{:02x?}", out.frame)));
        }
        let mut changes = self.words.changes(&self.before);
        if let May::OpenFrom(_) = attack.may {
            changes.retain(|change| !self.is_of_opening(change));
        }
        if !changes.is_empty() {
            let tables: BTreeSet<_> = changes.iter().map(|change| &change.table[..]).collect();
            let tables = tables.into_iter().collect::<Vec<_>>().join(" ");
            let kind = if attack.may == May::Nothing { "changed" } else { "changed by opening" };
            return Err(self.fault(&format!("{kind} {tables}"), format!("{changes:#?}")));
        }
        match attack.may {
            May::OpenFrom(client) if out.sent => self.opened_from(client, &out.frame),
            _ => Ok(()),
        }
    }

    /// Whether a word is one of those that the connection of a stranger needs: its slot, its port,
    /// its entry in the index and its place in the ring, and the choice of its backend. Those of
    /// honest connections are not.
    fn is_of_opening(&self, change: &Change) -> bool {
        match &change.table[..] {
            "SLOTS" | "OPENINGS" => {
                let at = SlotAt::new((change.position / POOL_EXTENTS) as u16, change.record as u16);
                !self.connections.iter().any(|it| it.phase != Phase::Over && it.at == at)
            }
            // What is in the index is looked up after each step.
            "RINGS" | "FREE" | "WIDE" | "HALF_OPEN" | "INDEX" => true,
            "BACKENDS" => [0, offset_of!(Backend, opened)].contains(&change.offset),
            // The line that the program writes.
            "SERVICES" => (64..128).contains(&change.offset),
            _ => false,
        }
    }

    pub(super) fn is_half_open(&self, at: SlotAt) -> bool {
        self.bench.tables().flow(at).is_some_and(|flow| flow.ctl.state() == State::HalfOpen)
    }

    pub(super) fn is_in_its_slot(&self, it: &Connection) -> bool {
        self.bench.tables().flow(it.at).is_some_and(|flow| flow.client() == it.client.into())
    }

    /// A stranger's SYN has come to a backend, whose kernel treats it as Linux does.
    fn opened_from(&mut self, client: SocketAddrV4, frame: &[u8]) -> Result<(), Fault> {
        let Ok(syn) = Segment::fields(frame) else { return Ok(()) };
        if syn.flags & (SYN | ACK | RST) != SYN || syn.from.port() < crate::program::FIRST_PORT {
            return Ok(());
        }
        let n = backend_of(&syn);
        let (flags, acknowledgement) = match verdict_of_linux(frame, &syn) {
            Listener::Accepts => (SYN | ACK, syn.sequence.wrapping_add(1)),
            Listener::Refuses => (RST | ACK, syn.sequence.wrapping_add(1)),
            Listener::Drops => return self.unanswered(client, &syn),
        };
        let initial = self.number();
        let answer = self.bench.from_backend(n, syn.from.port(), flags).numbers(initial, acknowledgement);
        self.say(format!("backend {n} answers {client}: {answer:?}"));
        self.bench.dataplane.inject(self.bench.ifindex, &answer.bytes()).expect("BPF_PROG_TEST_RUN");
        let refused = flags & RST != 0;
        self.note(client, &syn, (!refused).then_some(initial));
        self.check_charges(if refused { "a refused SYN" } else { "a SYN" })
    }

    fn note(&mut self, client: SocketAddrV4, syn: &Segment, answered: Option<u32>) {
        self.opened.retain(|it| it.client != client);
        let again = self.bench.from_client(client, SYN).numbers(syn.sequence, 0).options(&syn.options);
        self.opened.push(Opened { client, initial: syn.sequence, answered, syn: again });
    }

    /// The backend has dropped a stranger's SYN: the controller or the stranger repeats it after
    /// connect_timeout.
    fn unanswered(&mut self, client: SocketAddrV4, syn: &Segment) -> Result<(), Fault> {
        self.note(client, syn, None);
        self.say(format!("the backend drops the SYN of {client}: {syn:?}"));
        if !self.connections.iter().any(|it| matches!(it.phase, Phase::Begun(_))) {
            self.pass(3000);
            let again = self.bench.from_client(client, SYN).numbers(syn.sequence, 0).bytes();
            self.bench.dataplane.inject(self.bench.ifindex, &again).expect("BPF_PROG_TEST_RUN");
        }
        self.check_charges("a dropped SYN")
    }

    /// What must hold after every step.
    fn check_all(&self) -> Result<(), Fault> {
        for it in &self.connections {
            self.check(it)?;
        }
        self.check_charges("a segment")?;
        for flow in self.of_strangers() {
            let state = flow.ctl.state().name();
            if !["half_open", "answered"].contains(&state) {
                return Err(self.fault("confirmed", format!("{} is {state} and never knew a number", flow.client())));
            }
        }
        Ok(())
    }

    /// Only honest connections charge a backend.
    fn check_charges(&self, by: &str) -> Result<(), Fault> {
        let charged = self.sum(|backend| backend.connect_failures);
        if charged == self.tally.failures {
            return Ok(());
        }
        Err(self.fault(
            &format!("charged by {by}"),
            format!("{charged} failed tries, {} of honest clients", self.tally.failures),
        ))
    }

    fn sum(&self, of: impl Fn(&Backend) -> u64) -> u64 {
        (0..self.bench.setup.backends).map(|n| of(&self.bench.tables().backend(n))).sum()
    }

    /// The open connections that no honest client has.
    fn of_strangers(&self) -> Vec<evenkeel::tables::Flow> {
        let honest: BTreeSet<_> =
            self.connections.iter().filter(|it| it.phase != Phase::Over).map(|it| it.at.0).collect();
        let tables = self.bench.tables();
        let slots = self.bench.pools.iter().flat_map(|pool| (0..PORTS).map(|slot| SlotAt::new(*pool, slot)));
        let flows = slots.filter(|at| !honest.contains(&at.0)).filter_map(|at| tables.flow(at));
        flows.filter(|flow| flow.ctl.state().is_active()).collect()
    }

    /// What is left when the honest connections have ended, and those of strangers run out.
    fn check_end(&self) -> Result<(), Fault> {
        self.check_all()?;
        let tables = self.bench.tables();
        for flow in self.of_strangers() {
            tables.close(flow.seen(), Reason::ConnectTimeout);
        }
        let found = Tally {
            failures: self.sum(|backend| backend.connect_failures),
            resets: self.sum(|backend| backend.resets),
            bytes_in: self.sum(|backend| backend.bytes_in),
            bytes_out: self.sum(|backend| backend.bytes_out),
        };
        let active = self.sum(|backend| backend.active.into());
        if (found, active) != (self.tally, 0) {
            return Err(self.fault("totals", format!("{found:?} and {active} active, not {:?}", self.tally)));
        }
        for pool in &self.bench.pools {
            let held_back = tables.heads(*pool, 0..PORTS.into()).count() as u32;
            let free = tables.free_slots(*pool);
            if free + held_back != u32::from(PORTS) {
                return Err(self.fault("ports", format!("of {PORTS} ports {free} are free, {held_back} held back")));
            }
        }
        Ok(())
    }
}

/// Whether a frame is of ICMP over IPv4.
fn is_icmp(frame: &[u8]) -> bool {
    frame[12..15].starts_with(&[8, 0]) && frame[14] >> 4 == 4 && frame[23] == 1
}

/// What the kernel of a listener does with a SYN.
enum Listener {
    Accepts,
    Refuses,
    Drops,
}

/// Linux, with TCP-MD5 and TCP-AO compiled in and an MPTCP listener.
fn verdict_of_linux(frame: &[u8], syn: &Segment) -> Listener {
    let has = |kind: u8| options_in(&syn.options).iter().any(|(other, _)| *other == kind);
    if !Segment::is_intact(frame) || has(19) || has(29) {
        Listener::Drops
    } else if has(30) {
        Listener::Refuses
    } else {
        Listener::Accepts
    }
}
