//! Honest traffic: what clients, backends, the controller and the clock do, and where it must leave
//! a connection.

use std::net::SocketAddrV4;

use lb_common::{
    flow::{Key, SlotAt},
    layout::{NONE, OUT, UP},
    slot::SEIZED,
    time::Instant,
    verdict::Reason,
};

use super::world::{Fault, World};
use crate::{
    packet::{ACK, FIN, LINUX_OPTIONS, Mac, PSH, RST, SYN, Segment},
    program::{FIRST_PORT, VIP, backend, backend_mac, backend_of},
};

/// One end of a connection, as its own kernel sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct End {
    pub initial: u32,
    /// Behind the last byte that it has sent.
    pub next: u32,
    /// What the other end has acknowledged.
    pub acknowledged: u32,
    /// How far the other end lets it send.
    pub edge: u32,
    /// What it lets the other end send, as in its headers and by how many bits that is scaled.
    window: u16,
    scale: u8,
    finished: bool,
}

impl End {
    fn new(initial: u32, window: u16) -> End {
        let next = initial.wrapping_add(1);
        End { initial, next, acknowledged: initial, edge: next, window, scale: 0, finished: false }
    }

    /// Payload bytes that it has sent.
    fn bytes(&self) -> u64 {
        u64::from(self.next.wrapping_sub(self.initial).wrapping_sub(1 + u32::from(self.finished)))
    }

    /// How many bytes it may send at once.
    fn room(&self) -> u64 {
        u64::from(self.edge.wrapping_sub(self.next).min(1 << 30)).min(1400)
    }
}

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The SYN went to a backend, so long ago (milliseconds of the model's clock).
    Begun(u64),
    /// The backend's SYN-ACK went to the client.
    Answered,
    /// The client has acknowledged it.
    Open,
    Over,
}

/// A connection of an honest client.
#[derive(Clone, Debug)]
pub struct Connection {
    pub client: SocketAddrV4,
    pub mac: Mac,
    pub phase: Phase,
    /// The client's end and the backend's.
    pub ends: [End; 2],
    pub backend: u16,
    pub port: u16,
    pub at: SlotAt,
    pub key: Key,
    /// The options of its SYN, and of the SYN-ACK.
    options: Vec<u8>,
    answered: Vec<u8>,
    tried: Vec<u16>,
    suspected: bool,
}

/// The client's end, and the backend's.
pub const CLIENT: usize = 0;
pub const BACKEND: usize = 1;

/// What honest connections have added to the backends' records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub failures: u64,
    pub resets: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// What a connection may offer in its SYN.
const OFFERS: [&[u8]; 5] =
    [&LINUX_OPTIONS, &[], &[2, 4, 5, 180], &[2, 4, 5, 180, 1, 3, 3, 2], &[2, 4, 2, 24, 4, 2, 1, 3, 3, 7, 0, 0]];

/// The options in a TCP header: kind and value of each.
pub fn options_in(header: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    let mut rest = header;
    while let [kind, tail @ ..] = rest {
        match tail {
            _ if *kind == 0 => break,
            _ if *kind == 1 => rest = tail,
            [length, ..] if (2..=rest.len()).contains(&usize::from(*length)) => {
                let (option, behind) = rest.split_at(usize::from(*length));
                found.push((*kind, &option[2..]));
                rest = behind;
            }
            _ => break,
        }
    }
    found
}

/// What a SYN offers: MSS, scale of the window, SACK permitted, timestamps. Without an MSS it is 536
/// (RFC 9293 section 3.7.1).
fn offered(header: &[u8]) -> [Option<&[u8]>; 4] {
    let options = options_in(header);
    let value = |kind: u8| options.iter().find(|(other, _)| *other == kind).map(|(_, value)| *value);
    [value(2).or(Some(&[2, 24])), value(3), value(4), value(8)]
}

/// Milliseconds after which a backend without an answer is left.
const CONNECT_TIMEOUT: u64 = 2000;
/// Backends that one connection tries.
const TRIES: usize = 3;
/// Open connections of honest clients at once.
const MOST: usize = 6;

impl World<'_> {
    /// One random step of somebody honest.
    pub(super) fn honest(&mut self) -> Result<(), Fault> {
        match self.dice.below(20) {
            0..5 if self.open_connections().len() < MOST => self.begin(),
            0..15 => match self.open_connections() {
                none if none.is_empty() => self.begin(),
                some => {
                    let which = self.dice.choose(&some);
                    self.go_on(which)
                }
            },
            15 => self.judge(),
            16 => self.reload(),
            17 => self.suspect(),
            _ => {
                let time = self.dice.choose(&[20, 40, 40, 40, 600_000]);
                // Half-open flows would end in so long a time.
                let pending = self.connections.iter().any(|it| matches!(it.phase, Phase::Begun(_) | Phase::Answered));
                self.pass(if pending { 40 } else { time });
                Ok(())
            }
        }
    }

    fn open_connections(&self) -> Vec<usize> {
        (0..self.connections.len()).filter(|which| self.connections[*which].phase != Phase::Over).collect()
    }

    /// A client begins a connection.
    pub(super) fn begin(&mut self) -> Result<(), Fault> {
        let number = self.next_client();
        let client = SocketAddrV4::new([192, 0, 2, 1 + (number % 5) as u8].into(), 10_000 + number);
        let mac = [2, 0, 0, 0, 3, self.dice.below(4) as u8];
        let window = self.dice.choose(&[1, 512, 8192, 29_200, 64_240, 65_535]);
        let end = End::new(self.number(), window);
        let mut it = Connection {
            client,
            mac,
            phase: Phase::Begun(0),
            ends: [end, End::default()],
            backend: 0,
            port: 0,
            at: SlotAt(0),
            key: Key(0),
            options: self.dice.choose(&OFFERS).to_vec(),
            answered: Vec::new(),
            tried: Vec::new(),
            suspected: false,
        };
        self.say(format!("{client} begins a connection"));
        let out = self.sent(&self.syn_of(&it))?;
        self.tries(&mut it, &out)?;
        self.connections.push(it);
        Ok(())
    }

    fn syn_of(&self, it: &Connection) -> Segment {
        let mut syn = self.bench.from_client(it.client, SYN).numbers(it.ends[CLIENT].initial, 0).options(&it.options);
        (syn.from_mac, syn.window) = (it.mac, it.ends[CLIENT].window);
        syn
    }

    /// The SYN of a connection has come to a backend: to one that may be given it, for the first
    /// time, and with what the client offers.
    fn tries(&self, it: &mut Connection, out: &Segment) -> Result<(), Fault> {
        let n = backend_of(out);
        let same = (out.flags, out.sequence, out.to) == (SYN, it.ends[CLIENT].initial, backend(n))
            && (out.to_mac, *out.from.ip(), offered(&out.options)) == (backend_mac(n), *VIP.ip(), offered(&it.options));
        if !same || it.tried.contains(&n) || self.admission(n) == NONE {
            return Err(self.fault("honest", format!("the SYN of {it:?} became {out:?}")));
        }
        it.tried.push(n);
        (it.backend, it.port, it.phase) = (n, out.from.port(), Phase::Begun(0));
        it.at = SlotAt::new(self.bench.pools[usize::from(n)], it.port - FIRST_PORT);
        it.key = self.bench.tables().flow(it.at).map(|flow| flow.record.key).unwrap_or_default();
        Ok(())
    }

    /// A connection goes on by one random step.
    fn go_on(&mut self, which: usize) -> Result<(), Fault> {
        let mut it = self.connections[which].clone();
        let done = match it.phase {
            Phase::Begun(waited) => self.go_on_begun(&mut it, waited),
            Phase::Answered => self.go_on_answered(&mut it),
            Phase::Open => self.go_on_open(&mut it),
            Phase::Over => Ok(()),
        };
        self.connections[which] = it.clone();
        done?;
        self.check(&it)
    }

    fn go_on_begun(&mut self, it: &mut Connection, waited: u64) -> Result<(), Fault> {
        match self.dice.below(10) {
            0..5 => self.accept(it),
            5 | 6 => {
                self.say(format!("backend {} refuses {}", it.backend, it.client));
                let acknowledged = it.ends[CLIENT].next;
                let refusal = self.bench.from_backend(it.backend, it.port, RST | ACK).numbers(0, acknowledged);
                let seized = self.is_seized(it);
                let out = self.sent(&refusal)?;
                if seized {
                    return self.goes_again(it, &out);
                }
                self.tally.failures += 1;
                self.next_try(it, &out)
            }
            7 => {
                self.say(format!("{} gives up", it.client));
                let mut rst = self.bench.from_client(it.client, RST).numbers(it.ends[CLIENT].next, 0);
                rst.from_mac = it.mac;
                self.to_backend(it, &rst)?;
                it.phase = Phase::Over;
                Ok(())
            }
            8 if waited < CONNECT_TIMEOUT / 2 => self.repeat_syn(it, waited),
            _ => {
                self.pass(3000);
                self.repeat_syn(it, waited + 3000)
            }
        }
    }

    /// A client that has heard nothing sends its SYN again: to the same backend, or to the next one
    /// if that was silent for too long or takes no connections any more.
    fn repeat_syn(&mut self, it: &mut Connection, waited: u64) -> Result<(), Fault> {
        if waited < CONNECT_TIMEOUT && self.admission(it.backend) != NONE {
            return self.repeat_to_same(it);
        }
        self.say(format!("{} repeats its SYN", it.client));
        let seized = self.is_seized(it);
        let out = self.sent(&self.syn_of(it))?;
        // A backend that is left because it takes no connections has not failed.
        self.tally.failures += u64::from(waited >= CONNECT_TIMEOUT && !seized);
        self.next_try(it, &out)
    }

    /// Whether its port was taken from a stranger, whose attempt the backend may still mean.
    fn is_seized(&self, it: &Connection) -> bool {
        self.bench.tables().flow(it.at).is_some_and(|flow| flow.ctl.flags() & SEIZED != 0)
    }

    /// The first RST on a seized port refuses nothing: the SYN goes to the same backend once more.
    fn goes_again(&self, it: &Connection, out: &Segment) -> Result<(), Fault> {
        let expected = (it.port, it.backend, SYN, it.ends[CLIENT].next.wrapping_sub(1));
        if (out.from.port(), backend_of(out), out.flags, out.sequence) == expected && !self.is_seized(it) {
            return Ok(());
        }
        Err(self.fault("honest", format!("{it:?} on a port of a stranger before it: a RST led to {out:?}")))
    }

    /// The SYN goes to its backend again: as it came or written anew.
    fn repeat_to_same(&mut self, it: &Connection) -> Result<(), Fault> {
        self.say(format!("{} repeats its SYN, for the same backend", it.client));
        self.to_backend_as(it, &self.syn_of(it), |out, expected| {
            (out.from, out.to, out.sequence, offered(&out.options))
                == (expected.from, expected.to, expected.sequence, offered(&expected.options))
        })
    }

    /// A try has failed: the SYN goes to the next backend, or the client is refused because there is
    /// none.
    fn next_try(&mut self, it: &mut Connection, out: &Segment) -> Result<(), Fault> {
        if out.flags & RST == 0 {
            return self.tries(it, out);
        }
        // A backend whose ports strangers have used up is passed over.
        let has_port = |n: u16| self.bench.tables().free_slots(self.bench.pools[usize::from(n)]) > 0;
        let left = (0..3).any(|n| !it.tried.contains(&n) && self.admission(n) != NONE && has_port(n));
        let expected = (VIP, it.client, RST | ACK, 0, it.ends[CLIENT].next, it.mac);
        let refused = (out.from, out.to, out.flags, out.sequence, out.acknowledgement, out.to_mac);
        if left && it.tried.len() < TRIES || refused != expected {
            return Err(self.fault("honest", format!("{it:?} was refused with {out:?}")));
        }
        it.phase = Phase::Over;
        Ok(())
    }

    /// The backend's SYN-ACK.
    fn accept(&mut self, it: &mut Connection) -> Result<(), Fault> {
        let scaled = offered(&it.options)[1].map(|scale| scale[0]);
        let mut options = vec![2, 4, 5, 180];
        if let Some(scale) = scaled {
            let own = self.dice.choose(&[0, 7]);
            options.extend([1, 3, 3, own]);
            (it.ends[CLIENT].scale, it.ends[BACKEND].scale) = (scale, own);
        }
        let window = self.dice.choose(&[512, 28_960, 65_535]);
        it.ends[BACKEND] = End { scale: it.ends[BACKEND].scale, ..End::new(self.number(), window) };
        self.say(format!("backend {} accepts {}", it.backend, it.client));
        let answer = self.syn_ack(it, &options);
        self.to_client(it, &answer)?;
        let [client, server] = &mut it.ends;
        (client.acknowledged, client.edge) = (client.next, client.next.wrapping_add(u32::from(window)));
        server.edge = server.next;
        (it.phase, it.answered) = (Phase::Answered, options);
        Ok(())
    }

    fn syn_ack(&self, it: &Connection, options: &[u8]) -> Segment {
        let [client, server] = &it.ends;
        let mut answer = self.bench.from_backend(it.backend, it.port, SYN | ACK).options(options);
        (answer.sequence, answer.acknowledgement, answer.window) = (server.initial, client.next, server.window);
        answer
    }

    fn go_on_answered(&mut self, it: &mut Connection) -> Result<(), Fault> {
        match self.dice.below(6) {
            0 => {
                self.say(format!("backend {} repeats its SYN-ACK to {}", it.backend, it.client));
                let answer = self.syn_ack(it, &it.answered);
                self.to_client(it, &answer)
            }
            1 => self.repeat_to_same(it),
            _ => self.confirm(it),
        }
    }

    /// The client's first acknowledgement, perhaps with data.
    fn confirm(&mut self, it: &mut Connection) -> Result<(), Fault> {
        it.phase = Phase::Open;
        let count = if self.dice.once_in(2) { 0 } else { self.dice.below(1 + it.ends[CLIENT].room()) };
        self.transmit(it, CLIENT, ACK, count)
    }

    /// Sends `count` bytes and what `flags` say, and moves both ends.
    fn transmit(&mut self, it: &mut Connection, from: usize, flags: u8, count: u64) -> Result<(), Fault> {
        let segment = self.segment(it, from, flags).payload(&self.dice.bytes(count));
        let sent = count as u32 + u32::from(flags & FIN != 0);
        it.ends[from].next = it.ends[from].next.wrapping_add(sent);
        it.ends[from].finished |= flags & FIN != 0;
        self.deliver(it, from, &segment)
    }

    /// A segment with the numbers of one end.
    fn segment(&self, it: &Connection, from: usize, flags: u8) -> Segment {
        let (own, other) = (&it.ends[from], &it.ends[1 - from]);
        let mut segment = match from {
            CLIENT => Segment { from_mac: it.mac, ..self.bench.from_client(it.client, flags) },
            _ => self.bench.from_backend(it.backend, it.port, flags),
        };
        (segment.sequence, segment.acknowledgement, segment.window) = (own.next, other.next, own.window);
        segment
    }

    /// Sends a segment of one end, which acknowledges all that the other one has sent.
    fn deliver(&mut self, it: &mut Connection, from: usize, segment: &Segment) -> Result<(), Fault> {
        let name = ["the client", "the backend"][from];
        self.say(format!("{name} of {} sends {segment:?}", it.client));
        it.suspected = false;
        if from == CLIENT {
            self.to_backend(it, segment)?
        } else {
            self.to_client(it, segment)?
        }
        let window = u32::from(it.ends[from].window) << it.ends[from].scale;
        let other = &mut it.ends[1 - from];
        other.acknowledged = other.next;
        other.edge = other.next.wrapping_add(window);
        Ok(())
    }

    fn go_on_open(&mut self, it: &mut Connection) -> Result<(), Fault> {
        let from = self.dice.below(2) as usize;
        let end = it.ends[from];
        match self.dice.below(24) {
            0..9 if !end.finished => {
                let count = self.dice.below(1 + end.room());
                self.transmit(it, from, ACK | PSH, count)
            }
            // A keepalive, what was sent before, and segments that overtake each other.
            9 => {
                let keepalive = self.segment(it, from, ACK);
                let sequence = keepalive.sequence.wrapping_sub(1);
                self.deliver(it, from, &Segment { sequence, ..keepalive })
            }
            10 | 11 if end.bytes() > 0 && !end.finished => {
                let count = 1 + self.dice.below(end.bytes().min(1400));
                let again = self.segment(it, from, ACK).payload(&self.dice.bytes(count));
                let sequence = again.sequence.wrapping_sub(count as u32);
                self.deliver(it, from, &Segment { sequence, ..again })
            }
            12 | 13 if !end.finished && end.room() > 1 => self.overtaken(it, from),
            14 => {
                it.ends[from].window = end.window.saturating_mul(2);
                self.transmit(it, from, ACK, 0)
            }
            // Another router has taken over. Only what is new says so.
            15 if from == CLIENT && !end.finished && end.room() > 0 => {
                it.mac[5] ^= 0x80;
                let count = 1 + self.dice.below(end.room());
                self.transmit(it, CLIENT, ACK | PSH, count)
            }
            16..19 if !end.finished => {
                let count = self.dice.below(1 + end.room());
                self.transmit(it, from, ACK | FIN, count)?;
                if it.ends[1 - from].finished { self.finish(it, from) } else { Ok(()) }
            }
            19 if self.dice.once_in(3) => {
                let flags = self.dice.choose(&[RST, RST | ACK]);
                let rst = self.segment(it, from, flags);
                self.deliver(it, from, &rst)?;
                self.over(it, true);
                Ok(())
            }
            20 if self.dice.once_in(3) => self.kill(it),
            _ => self.transmit(it, from, ACK, 0),
        }
    }

    /// Two segments of which the second comes first.
    fn overtaken(&mut self, it: &mut Connection, from: usize) -> Result<(), Fault> {
        let count = 1 + self.dice.below(it.ends[from].room() - 1) as u32;
        let first = 1 + self.dice.below(u64::from(count)) as u32;
        let (first, late) = (first, self.segment(it, from, ACK).payload(&vec![1; first as usize]));
        let rest = self.segment(it, from, ACK).payload(&vec![2; (count - first) as usize]);
        let sequence = rest.sequence.wrapping_add(first);
        it.ends[from].next = it.ends[from].next.wrapping_add(count);
        self.deliver(it, from, &Segment { sequence, ..rest })?;
        self.deliver(it, from, &late)
    }

    /// The last acknowledgement, after both FINs: it still finds its way.
    fn finish(&mut self, it: &mut Connection, last: usize) -> Result<(), Fault> {
        self.over(it, false);
        let acknowledgement = self.segment(it, 1 - last, ACK);
        self.deliver(it, 1 - last, &acknowledgement)
    }

    /// The end of a connection that was open.
    fn over(&mut self, it: &mut Connection, by_rst: bool) {
        it.phase = Phase::Over;
        self.tally.resets += u64::from(by_rst);
        self.tally.bytes_in += it.ends[CLIENT].bytes();
        self.tally.bytes_out += it.ends[BACKEND].bytes();
    }

    /// The controller ends a connection.
    fn kill(&mut self, it: &mut Connection) -> Result<(), Fault> {
        self.say(format!("the controller ends {}", it.client));
        let tables = self.bench.tables();
        let closed = tables.flow(it.at).and_then(|flow| tables.close(flow.seen(), Reason::Killed));
        if closed.is_none() {
            return Err(self.fault("honest", format!("{it:?} could not be ended")));
        }
        self.over(it, true);
        Ok(())
    }

    /// The controller suspects a connection to be dead: any segment of it that is believed clears
    /// it.
    fn suspect(&mut self) -> Result<(), Fault> {
        let open: Vec<_> = (0..self.connections.len()).filter(|n| self.connections[*n].phase == Phase::Open).collect();
        if open.is_empty() {
            return Ok(());
        }
        let which = self.dice.choose(&open);
        self.say(format!("the controller suspects {}", self.connections[which].client));
        let tables = self.bench.tables();
        let it = &mut self.connections[which];
        it.suspected |= tables.flow(it.at).is_some_and(|flow| tables.suspect(flow.seen()));
        Ok(())
    }

    /// Health: a backend goes out, is drained or comes back; one of three is always up.
    fn judge(&mut self) -> Result<(), Fault> {
        let n = 1 + self.dice.below(2) as u16;
        let admission = self.dice.choose(&[NONE, OUT, UP, UP]);
        self.say(format!("backend {n} is admitted as {admission}"));
        self.bench.tables().admit(n, admission, Instant::NEVER);
        Ok(())
    }

    /// A reload gives a backend another weight, and the service another order while no connection
    /// is between backends.
    fn reload(&mut self) -> Result<(), Fault> {
        let (n, weight) = (self.dice.below(3) as u16, 1 + self.dice.below(3) as u32);
        self.say(format!("a reload gives backend {n} the weight {weight}"));
        self.bench.configure(n, weight, false, 0);
        if !self.connections.iter().any(|it| matches!(it.phase, Phase::Begun(_))) {
            let mut service = self.bench.setup.service.clone();
            service.backends.rotate_left(self.dice.below(3) as usize);
            self.bench
                .tables()
                .configure_service(0, &service)
                .map_err(|error| self.fault("bench", error.to_string()))?;
        }
        Ok(())
    }

    /// Lets every connection come to its end.
    pub(super) fn end_all(&mut self) -> Result<(), Fault> {
        for which in self.open_connections() {
            let mut it = self.connections[which].clone();
            if matches!(it.phase, Phase::Begun(_)) {
                self.accept(&mut it)?;
            }
            if it.phase == Phase::Answered {
                self.confirm(&mut it)?;
            }
            self.connections[which] = it.clone();
            self.check(&it)?;
            let order = if self.dice.once_in(2) { [CLIENT, BACKEND] } else { [BACKEND, CLIENT] };
            for from in order.into_iter().filter(|from| !it.ends[*from].finished).collect::<Vec<_>>() {
                self.transmit(&mut it, from, ACK | FIN, 0)?;
                if it.ends[1 - from].finished {
                    self.finish(&mut it, from)?;
                }
            }
            self.connections[which] = it;
        }
        Ok(())
    }

    /// A segment of the client comes to its backend, translated and otherwise as it is.
    fn to_backend(&self, it: &Connection, segment: &Segment) -> Result<(), Fault> {
        self.to_backend_as(it, segment, |out, expected| out == expected)
    }

    fn to_backend_as(
        &self,
        it: &Connection,
        segment: &Segment,
        same: impl Fn(&Segment, &Segment) -> bool,
    ) -> Result<(), Fault> {
        let expected = Segment {
            from_mac: self.bench.mac,
            to_mac: backend_mac(it.backend),
            from: SocketAddrV4::new(*VIP.ip(), it.port),
            to: backend(it.backend),
            ttl: segment.ttl - 1,
            ..segment.clone()
        };
        let out = self.sent(segment)?;
        if same(&out, &expected) {
            return Ok(());
        }
        Err(self.fault("honest", format!("{segment:?} became {out:?}, not {expected:?}")))
    }

    /// A segment of the backend comes to its client.
    fn to_client(&self, it: &Connection, segment: &Segment) -> Result<(), Fault> {
        let expected = Segment {
            from_mac: self.bench.mac,
            to_mac: it.mac,
            from: VIP,
            to: it.client,
            ttl: segment.ttl - 1,
            ..segment.clone()
        };
        let out = self.sent(segment)?;
        if out == expected {
            return Ok(());
        }
        Err(self.fault("honest", format!("{segment:?} became {out:?}, not {expected:?}")))
    }

    /// A connection is in its slot what the model has.
    pub(super) fn check(&self, it: &Connection) -> Result<(), Fault> {
        let expected = match (it.phase, it.suspected, it.ends[CLIENT].finished, it.ends[BACKEND].finished) {
            (Phase::Over, ..) => return Ok(()),
            (Phase::Begun(_), ..) => "half_open",
            // Nobody but its client can tell it from an established one yet.
            (Phase::Answered, ..) => "",
            (Phase::Open, true, ..) => "suspect",
            (Phase::Open, _, false, false) => "established",
            (Phase::Open, _, true, _) => "closing_client",
            (Phase::Open, _, _, true) => "closing_backend",
        };
        let found = self.bench.tables().flow(it.at).filter(|flow| flow.client() == it.client.into());
        let Some(flow) = found else { return Err(self.fault("honest", format!("{it:?} is not in its slot"))) };
        let state = flow.ctl.state().name();
        let bytes = if it.phase == Phase::Open { [it.ends[CLIENT].bytes(), it.ends[BACKEND].bytes()] } else { [0; 2] };
        if (!expected.is_empty() && state != expected) || [flow.bytes_in(), flow.bytes_out()] != bytes {
            return Err(self.fault("honest", format!("{it:?} is {state}, with {flow:?}")));
        }
        if self.bench.tables().find_key(it.key).is_none_or(|found| found.at != it.at) {
            return Err(self.fault("honest", format!("{it:?} is not found by its client")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_whatever_stands_between_them_and_lengths_that_lie_end_the_list() {
        assert_eq!(offered(&LINUX_OPTIONS)[0], Some(&[5, 180][..]));
        assert_eq!(offered(&LINUX_OPTIONS).map(|option| option.is_some()), [true; 4]);
        assert_eq!(options_in(&[1, 1, 19, 3, 7, 0, 2, 4, 5, 180]), [(19, &[7][..])]);
        for lie in [&[2, 40, 5, 180][..], &[3, 0, 1, 1], &[3, 1, 3, 3], &[8]] {
            assert!(options_in(lie).is_empty(), "{lie:?}");
        }
    }

    #[test]
    fn an_end_counts_its_payload_without_syn_and_fin() {
        let mut end = End::new(u32::MAX, 512);
        assert_eq!((end.next, end.bytes(), end.room()), (0, 0, 0));
        (end.next, end.edge) = (100, 150);
        assert_eq!((end.bytes(), end.room()), (100, 50));
        (end.next, end.finished) = (101, true);
        assert_eq!(end.bytes(), 100);
    }
}
