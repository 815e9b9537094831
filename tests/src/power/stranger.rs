//! What strangers send. They choose everything, but they know no number of a connection that is not
//! their own.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{
    dice::Dice,
    honest::{BACKEND, CLIENT, Connection, End, Phase},
    world::{Strangers, World},
};
use crate::{
    icmp::IcmpError,
    packet::{ACK, FIN, LINUX_OPTIONS, PSH, RST, SYN, Segment, seal},
    program::{FIRST_PORT, VIP, backend},
};

/// What a frame of a stranger may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    /// Nothing at all.
    Nothing,
    /// Open a connection of its own, or move or end the one that it has opened from this address.
    OpenFrom(SocketAddrV4),
}

/// A frame of a stranger.
pub struct Attack {
    pub frame: Vec<u8>,
    pub may: May,
    /// What it is, for the history.
    pub what: String,
}

/// A connection that a stranger has opened: it knows its own initial number.
#[derive(Clone, Debug)]
pub struct Opened {
    pub client: SocketAddrV4,
    pub initial: u32,
    /// The backend's, which it does not know.
    pub answered: Option<u32>,
    pub syn: Segment,
}

/// A number that misses what is believed by so much is a miss by any rule.
const NEAR: u32 = 1 << 17;

/// Options that a listener's kernel drops, refuses or takes for something else, and some that no
/// kernel knows: TCP-MD5, TCP-AO, MP_JOIN, MP_CAPABLE, fast open with a cookie and without, an
/// experiment, lengths that lie, and nothing but padding.
const ODD_OPTIONS: [&[u8]; 10] = [
    &[19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0, 0],
    &[29, 16, 1, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
    &[30, 12, 0x10, 1, 0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4],
    &[30, 4, 0x01, 0x81],
    &[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1],
    &[34, 2, 1, 1],
    &[254, 8, 0xf9, 0x89, 1, 2, 3, 4],
    &[2, 40, 5, 180],
    &[3, 0, 1, 1],
    &[1; 40],
];

impl World<'_> {
    /// A random burst of a stranger's frames.
    pub(super) fn burst(&mut self) -> Vec<Attack> {
        let kinds = match self.strangers {
            Strangers::Blind => 0..7,
            Strangers::Unknowing => 7..11,
            Strangers::None | Strangers::Both => 0..11,
        };
        match kinds.start + self.dice.below(kinds.end - kinds.start) {
            0..4 => (0..1 + self.dice.below(4)).filter_map(|_| self.blind()).collect(),
            4 | 5 => self.round_the_circle(),
            6 => (0..1 + self.dice.below(4)).filter_map(|_| self.error()).collect(),
            7 => (0..1 + self.dice.below(4)).map(|_| self.stray()).collect(),
            8 | 9 => (0..1 + self.dice.below(3)).map(|_| self.own()).collect(),
            _ => {
                // No more than the honest connections in the middle of their handshakes can stand:
                // the oldest one gives way.
                let begun = self.connections.iter().any(|it| matches!(it.phase, Phase::Begun(_) | Phase::Answered));
                let count = if begun { 4 } else { 70 };
                (0..1 + self.dice.below(count)).map(|_| self.syn_from_nowhere()).collect()
            }
        }
    }

    /// A segment of somebody who knows the addresses and ports of a connection, if there is one.
    fn blind(&mut self) -> Option<Attack> {
        if self.connections.is_empty() {
            return None;
        }
        let which = self.dice.below(self.connections.len() as u64) as usize;
        let it = self.connections[which].clone();
        let side = self.dice.below(2) as usize;
        let flags = self.flags();
        let numbers = (self.number(), self.number());
        Some(self.aimed(&it, side, flags, numbers))
    }

    /// Segments with numbers at equal distances, so that one of them is near whatever is believed:
    /// acknowledgements first, which widen what a careless balancer believes.
    fn round_the_circle(&mut self) -> Vec<Attack> {
        let Some(it) = self.connections.last().cloned() else { return Vec::new() };
        let steps = self.dice.choose(&[4, 8]);
        let (start, other) = (self.number(), self.number());
        let side = self.dice.below(2) as usize;
        let last = self.dice.choose(&[RST, RST | ACK, FIN | ACK, SYN, SYN | ACK]);
        let distance = (1_u64 << 32) / steps;
        let flags = (0..steps).map(|_| ACK).chain((0..steps).map(|_| last)).collect::<Vec<_>>();
        let number = |from: u32, step: usize| from.wrapping_add((distance * (step as u64 % steps)) as u32);
        let attacks = flags.into_iter().enumerate();
        attacks.map(|(step, flags)| self.aimed(&it, side, flags, (number(start, step), number(other, step)))).collect()
    }

    /// A segment of a connection with these numbers, unless they hit: then with others.
    fn aimed(&mut self, it: &Connection, side: usize, flags: u8, numbers: (u32, u32)) -> Attack {
        let mut numbers = numbers;
        while hits(it, side, flags, numbers) {
            numbers = (self.number(), self.number());
        }
        let mut segment = match side {
            CLIENT => self.bench.from_client(it.client, flags),
            _ => self.bench.from_backend(it.backend, it.port, flags),
        };
        (segment.sequence, segment.acknowledgement) = numbers;
        if side == CLIENT && self.dice.once_in(2) {
            segment.from_mac = it.mac;
        }
        // Whoever knows the ports of a connection that is over may begin it again.
        let over = it.phase == Phase::Over || !self.is_in_its_slot(it);
        let may = if side == CLIENT && over { May::OpenFrom(it.client) } else { May::Nothing };
        // A backend in TIME_WAIT answers a SYN with an acknowledgement whose numbers nobody can
        // check: whatever connection has that port now goes on from another one. What is neither a
        // SYN-ACK nor a RST is taken for that.
        let is_stale = flags & RST == 0 && flags & (SYN | ACK) != SYN | ACK;
        if side == BACKEND && is_stale && self.is_half_open(it.at) {
            segment.flags |= RST;
        }
        self.dressed(segment, may)
    }

    /// An ICMP error about a segment that we are said to have sent to one side of a connection,
    /// with a number that is not under way there.
    fn error(&mut self) -> Option<Attack> {
        if self.connections.is_empty() {
            return None;
        }
        let which = self.dice.below(self.connections.len() as u64) as usize;
        let it = self.connections[which].clone();
        let mut sequence = self.number();
        // Another connection may have its port by now.
        while self.connections.iter().any(|it| [CLIENT, BACKEND].iter().any(|side| is_near(&it.ends[*side], sequence)))
        {
            sequence = self.number();
        }
        let (from, to) = match self.dice.below(2) as usize {
            CLIENT => (VIP, it.client),
            _ => (SocketAddrV4::new(*VIP.ip(), it.port), backend(it.backend)),
        };
        let quoted = Segment::new(from, to, self.flags()).numbers(sequence, self.number());
        let mut quoted = quoted.macs(self.bench.mac, [2, 6, 6, 6, 6, 6]).bytes();
        let (kind, code) = (self.dice.choose(&[3, 3, 3, 11, 12, 5, 8, 0]), self.dice.below(16) as u8);
        let identification = self.dice.bytes(2);
        quoted[18..20].copy_from_slice(&identification);
        seal(&mut quoted[14..34]);
        let bytes = self.dice.choose(&[0, 4, 8, 8, 12, 18, 20]);
        let mut error = IcmpError::about(&quoted, bytes).says(kind, code);
        error.mtu = self.number() as u16;
        error.ttl = self.dice.choose(&[64, 64, 255, 1]);
        let options = self.dice.choose(&[&[][..], &[], &[1; 4], &[148, 4, 0, 0], &[131, 7, 4, 10, 0, 0, 7, 0]]);
        let mut attack = Attack { frame: error.bytes_with(options), may: May::Nothing, what: format!("{error:?}") };
        if self.dice.once_in(4) {
            let at = 34 + self.dice.below(attack.frame.len() as u64 - 34) as usize;
            let byte = self.dice.bytes(1);
            attack.change(&format!("with another byte at {at}"), at, &byte);
        }
        Some(attack)
    }

    /// A segment of somebody who knows nothing: to the VIP, to a port of ours, from anywhere.
    fn stray(&mut self) -> Attack {
        if self.dice.once_in(3) {
            return self.syn_from_nowhere();
        }
        let flags = self.flags();
        let from = self.somebody();
        let port = FIRST_PORT.wrapping_add(self.dice.below(u64::from(super::PORTS) + 2) as u16);
        let snat = SocketAddrV4::new(*VIP.ip(), port);
        let n = self.dice.below(3) as u16;
        let mut segment = match self.dice.below(5) {
            0 | 1 => self.bench.from_client(from, flags),
            2 => Segment { from, ..self.bench.from_backend(n, port, flags) },
            3 => {
                Segment { from: SocketAddrV4::new(*backend(n).ip(), from.port()), to: snat, ..self.to_us(from, flags) }
            }
            _ => Segment { from: VIP, ..self.to_us(from, flags) },
        };
        (segment.sequence, segment.acknowledgement) = (self.number(), self.number());
        let may = if segment.to == VIP { May::OpenFrom(segment.from) } else { May::Nothing };
        self.dressed(segment, may)
    }

    fn to_us(&self, from: SocketAddrV4, flags: u8) -> Segment {
        self.bench.from_client(from, flags)
    }

    /// A SYN of a client that may not exist, or in the name of one that does.
    fn syn_from_nowhere(&mut self) -> Attack {
        let from = self.somebody();
        let more = self.dice.choose(&[0, 0, 0, PSH, 0xc0]);
        let sequence = self.number();
        let syn = self.bench.from_client(from, SYN | more).numbers(sequence, 0);
        self.dressed(syn, May::OpenFrom(from))
    }

    fn somebody(&mut self) -> SocketAddrV4 {
        let honest = Ipv4Addr::new(192, 0, 2, 1 + self.dice.below(5) as u8);
        let address = if self.dice.once_in(4) { honest } else { Ipv4Addr::from(0x0b00_0000 | self.number() >> 8) };
        // Ports that no honest client of the model has.
        SocketAddrV4::new(address, 1 + self.dice.below(9_000) as u16)
    }

    /// What a stranger sends in the connection that it has opened: the numbers of its own side are
    /// right, the backend's initial number is a guess.
    fn own(&mut self) -> Attack {
        if self.opened.is_empty() {
            return self.syn_from_nowhere();
        }
        let which = self.dice.below(self.opened.len() as u64) as usize;
        let it = self.opened[which].clone();
        let next = it.initial.wrapping_add(1);
        if self.dice.once_in(6) {
            return Attack::new(&it.syn, May::OpenFrom(it.client));
        }
        let flags = self.dice.choose(&[ACK, ACK, ACK | PSH, FIN | ACK, FIN, PSH, SYN | ACK, SYN | FIN, RST]);
        let mut guess = self.number();
        while it.answered.is_some_and(|initial| guess.wrapping_sub(initial) < NEAR) {
            guess = self.number();
        }
        let mut segment = self.bench.from_client(it.client, flags).numbers(next, guess);
        if self.dice.once_in(2) {
            segment.payload = self.dice.bytes(20);
        }
        let may = if flags == RST { May::OpenFrom(it.client) } else { May::Nothing };
        Attack::new(&segment, may)
    }

    fn flags(&mut self) -> u8 {
        let usual = [ACK, ACK | PSH, FIN | ACK, FIN, RST, RST | ACK, SYN, SYN | ACK, SYN | FIN, SYN | RST, 0, 0xff];
        if self.dice.once_in(6) { self.number() as u8 } else { self.dice.choose(&usual) }
    }

    /// Chooses what else there is in a frame, and makes it. Nothing opens a connection but a SYN
    /// for our MAC address.
    fn dressed(&mut self, mut segment: Segment, may: May) -> Attack {
        let dice = &mut self.dice;
        segment.window = dice.choose(&[0, 1, 64_240, 65_535]);
        segment.ttl = dice.choose(&[64, 64, 64, 255, 2, 1]);
        segment.tos = dice.choose(&[0, 0, 0x10, 0xff]);
        segment.options = match dice.below(4) {
            0 => LINUX_OPTIONS.to_vec(),
            1 => dice.choose(&ODD_OPTIONS).to_vec(),
            2 => {
                let words = dice.below(11);
                dice.bytes(words * 4)
            }
            _ => Vec::new(),
        };
        let length = dice.choose(&[0, 0, 0, 1, 100, 1400]);
        segment.payload = dice.bytes(length);
        let opens = segment.flags & (SYN | ACK | FIN | RST) == SYN;
        let mut may = if opens { may } else { May::Nothing };
        if dice.once_in(8) {
            segment.to_mac = dice.choose(&[[2, 9, 9, 9, 9, 9], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]]);
            may = May::Nothing;
        }
        if dice.once_in(6) {
            segment.from_mac = [2, 6, 6, 6, 6, 6];
        }
        let mut attack = Attack::new(&segment, may);
        damage(dice, &mut attack);
        attack
    }
}

impl Attack {
    fn new(segment: &Segment, may: May) -> Attack {
        Attack { frame: segment.bytes(), may, what: format!("{segment:?}") }
    }

    fn change(&mut self, what: &str, at: usize, bytes: &[u8]) {
        self.frame[at..at + bytes.len()].copy_from_slice(bytes);
        self.what += &format!(", {what}");
    }
}

/// Sometimes a frame is not quite a TCP segment over IPv4.
fn damage(dice: &mut Dice, attack: &mut Attack) {
    match dice.below(30) {
        0..3 => {
            let sum = dice.bytes(2);
            attack.change("wrong TCP checksum", 50, &sum);
        }
        3 => {
            let fragment = dice.choose(&[[0x20, 0], [0, 1], [0x20, 0x40]]);
            attack.change("a fragment", 20, &fragment);
        }
        4 => {
            attack.frame.splice(34..34, [1, 1, 1, 1]);
            attack.change("IP options", 14, &[0x46]);
            let total = (attack.frame.len() as u16 - 14).to_be_bytes();
            attack.change("", 16, &total);
            seal(&mut attack.frame[14..38]);
        }
        5 => attack.change("UDP", 23, &[17]),
        6 => attack.change("a short TCP header", 46, &[0x40]),
        7 => {
            let length = 34 + dice.below(attack.frame.len() as u64 - 34) as usize;
            attack.frame.truncate(length);
            attack.what += &format!(", cut to {length} bytes");
        }
        8 => {
            attack.frame.splice(12..12, [0x81, 0, 0, dice.choose(&[0, 5])]);
            attack.what += ", with a VLAN tag";
        }
        _ => {}
    }
}

/// Whether numbers are those that a segment of this side must have: then it is the connection's.
fn hits(it: &Connection, side: usize, flags: u8, (sequence, acknowledgement): (u32, u32)) -> bool {
    let (own, other) = (&it.ends[side], &it.ends[1 - side]);
    match it.phase {
        Phase::Over => false,
        Phase::Begun(_) if side == BACKEND => acknowledgement == other.next,
        Phase::Begun(_) => sequence.wrapping_sub(own.initial) < 2,
        _ => {
            let fits = is_near(own, sequence) && (flags & (ACK | RST) != ACK || is_near(other, acknowledgement));
            fits || flags & SYN != 0 && sequence == own.initial
        }
    }
}

fn is_near(end: &End, number: u32) -> bool {
    let first = end.acknowledged.wrapping_sub(NEAR);
    number.wrapping_sub(first) <= end.edge.wrapping_sub(first).wrapping_add(NEAR)
}
