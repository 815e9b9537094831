//! Packets that change nothing: of established flows, of unknown flows, and not for us.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};
use lb_common::{tcp::ACK, verdict::Reason};

use super::{
    ROUNDS, RUNS, in_own_network, life,
    replay::{From, Replay, Stream, Subject},
    stage,
};
use crate::{
    bench::results::Results,
    packet::Segment,
    program::{Hook, VIP, put_listener},
};

/// The most flows in tables made for them.
const FLOWS: u32 = 65_536;
/// `max_connections` for them, with room: in a table for exactly as many, a flow may find both its
/// buckets full.
const ROOM: u32 = FLOWS / 2 * 3;
/// More flows than most users ever have.
const MOST_FLOWS: u32 = 1 << 20;
/// `max_connections`: with room, the default, and very large.
const SIZES: [u32; 3] = [ROOM, 262_144, MOST_FLOWS];
/// Packets per run.
const PACKETS: u32 = 65_536;
/// The most packets that warm up the caches.
const WARM_UP: u32 = 65_536;
/// Answers with a RST per run: fewer than the burst that the program allows.
const RSTS: u32 = 512;

/// Something that is timed repeatedly.
struct Case {
    name: String,
    subject: Subject,
    stream: Stream,
    packets: u32,
    runs: u32,
    /// What happens to the packets.
    fate: Fate,
    /// The counter that every packet moves.
    counted: Option<Reason>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Translated,
    Refused,
    Passed,
}

/// Tables for 65,536 flows with all of them open: everything at 1, 1,024 and 65,536 flows, and in
/// between.
pub fn by_flows(hook: Hook, name: &str, results: &mut Results) -> Result<()> {
    let mut replay = stage(hook, 4, (FLOWS / 4) as u16, ROOM)?;
    life::open(&mut replay, 0, FLOWS)?;
    // The table that the product's is compared with gets the same clients.
    if hook == Hook::Xdp {
        // In order, like the slots: in the scattered order their memory would be laid out as it is
        // visited.
        let clients = From::Clients(life::client_data(&replay));
        let stream = Stream { scattered: false, ..stream(clients, FLOWS) };
        replay.run(Subject::Enter, &stream, FLOWS)?;
    }
    let mut cases = Vec::new();
    for flows in [1, 16, 256, 1024, 4096, 16_384, FLOWS] {
        cases.extend(established(&replay, flows));
        if hook == Hook::Xdp {
            let data = From::Clients(life::client_data(&replay));
            cases.push(compared(&format!("hash/{flows}"), Subject::Hash, stream(data.clone(), flows)));
            cases.push(compared(&format!("lines/{flows}"), Subject::Lines, stream(data.clone(), flows)));
            cases.push(compared(&format!("found/{flows}"), Subject::Found, stream(data, flows)));
        }
    }
    let data = From::Clients(life::client_data(&replay));
    cases.push(compared("rewrite", Subject::Rewrite, stream(data.clone(), 1)));
    cases.push(compared("empty", Subject::Empty, stream(data, 1)));
    cases.extend(strangers(&replay));
    measure(&mut replay, name, &cases, results)
}

/// The far end of the curve.
pub fn many_flows(hook: Hook, name: &str, results: &mut Results) -> Result<()> {
    let mut replay = stage(hook, 64, 16_384, 2 * MOST_FLOWS)?;
    life::open(&mut replay, 0, MOST_FLOWS)?;
    let cases: Vec<_> = [262_144, MOST_FLOWS].iter().flat_map(|flows| established(&replay, *flows)).collect();
    measure(&mut replay, name, &cases, results)
}

/// The same number of flows in tables that have room for more.
pub fn by_size(hook: Hook, name: &str, results: &mut Results) -> Result<()> {
    for size in SIZES {
        in_own_network(|| {
            let mut replay = stage(hook, 4, (FLOWS / 4) as u16, size)?;
            life::open(&mut replay, 0, FLOWS)?;
            let mut cases = established(&replay, FLOWS);
            for case in &mut cases {
                case.name = case.name.replace(&format!("/{FLOWS}"), &format!("/max_connections/{size}"));
            }
            measure(&mut replay, name, &cases, results)
        })?;
    }
    Ok(())
}

/// Established flows of one service among many.
pub fn by_services(hook: Hook, name: &str, results: &mut Results) -> Result<()> {
    let mut replay = stage(hook, 4, 1024, 4096)?;
    life::open(&mut replay, 0, 1024)?;
    let mut there = 1;
    for services in [1_u16, 16, 128] {
        for number in there..services {
            let address = SocketAddrV4::new(Ipv4Addr::from(u32::from(*VIP.ip()) + u32::from(number)), VIP.port());
            put_listener(replay.bench.tables(), address, number)?;
        }
        there = services;
        let mut cases = established(&replay, 1024);
        cases.iter_mut().for_each(|case| case.name = case.name.replace("/1024", &format!("/services/{services}")));
        measure(&mut replay, name, &cases, results)?;
    }
    Ok(())
}

fn stream(from: From, flows: u32) -> Stream {
    Stream { from, first: 0, flows, scattered: flows > 1, turn: 0 }
}

fn established(replay: &Replay, flows: u32) -> Vec<Case> {
    let case = |name: &str, from| Case {
        name: format!("{name}/{flows}"),
        subject: Subject::Evenkeel,
        stream: stream(from, flows),
        packets: PACKETS,
        runs: RUNS,
        fate: Fate::Translated,
        counted: None,
    };
    vec![
        case("forward", From::Clients(life::client_data(replay))),
        case("reply", From::Backends(life::backend_data(replay))),
    ]
}

fn compared(name: &str, subject: Subject, stream: Stream) -> Case {
    Case { name: name.into(), subject, packets: PACKETS, runs: RUNS, stream, fate: Fate::Translated, counted: None }
}

/// Packets that belong to no known flow.
fn strangers(replay: &Replay) -> Vec<Case> {
    let case = |name: &str, from, packets, fate, counted| Case {
        name: name.into(),
        subject: Subject::Evenkeel,
        stream: Stream { from, first: 1 << 20, flows: 128, scattered: true, turn: 0 },
        packets,
        // More RSTs would not be answered so soon.
        runs: if packets == RSTS { 1 } else { RUNS },
        fate,
        counted: Some(counted),
    };
    let unknown = replay.client_segment(ACK).numbers(1001, 5001);
    let elsewhere = SocketAddrV4::new(*VIP.ip(), 22);
    let other_port = Segment { to: elsewhere, ..replay.client_segment(ACK) };
    let mut udp = replay.client_segment(ACK).payload(&[0; 32]).bytes();
    udp[23] = 17;
    let mut arp = vec![0; 60];
    arp[..14].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6]);
    vec![
        case("unknown", From::Clients(unknown), RSTS, Fate::Refused, Reason::UnknownFlow),
        case("other_port", From::Frame(other_port.bytes()), PACKETS, Fate::Passed, Reason::NotOurs),
        case("udp", From::Frame(udp), PACKETS, Fate::Passed, Reason::NotOurs),
        case("arp", From::Frame(arp), PACKETS, Fate::Passed, Reason::NotOurs),
    ]
}

/// The RST that answers a segment of an unknown flow.
fn refused(replay: &Replay, segment: &Segment, flow: u32) -> Segment {
    let client = Replay::client(flow);
    let rst = Segment::new(VIP, client, lb_common::tcp::RST).numbers(segment.acknowledgement, 0);
    Segment { window: 0, ..rst }.macs(replay.bench.mac, segment.from_mac)
}

/// Measures all cases in each round, each together with the making of its packets.
fn measure(replay: &mut Replay, name: &str, cases: &[Case], results: &mut Results) -> Result<()> {
    for round in 0..ROUNDS {
        for case in cases {
            results.add(&format!("packets/{name}/{}", case.name), "ns", case.round(replay, round)?);
        }
    }
    Ok(())
}

impl Case {
    /// The quickest run, minus the making of its packets.
    fn round(&self, replay: &mut Replay, round: u32) -> Result<f64> {
        // The caches are full of what the previous case needed.
        replay.run(self.subject, &self.stream, self.stream.flows.clamp(2 * tests_ebpf::BLOCK, WARM_UP))?;
        replay.bench.moved();
        // Each continues where the previous one ended.
        let stream = Stream { turn: round.wrapping_mul(self.packets), ..self.stream.clone() };
        let (mut cost, mut made) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..self.runs {
            cost = cost.min(self.run(replay, &stream)?);
            made = made.min(replay.making(&stream, self.packets)?);
        }
        Ok(cost - made)
    }

    fn run(&self, replay: &mut Replay, stream: &Stream) -> Result<f64> {
        let run = replay.run(self.subject, stream, self.packets)?;
        if self.subject != Subject::Evenkeel {
            ensure!(replay.has_sent(&run), "{}: verdict {}", self.name, run.verdict);
            return Ok(run.ns);
        }
        match (self.fate, &self.stream.from) {
            (Fate::Translated, from) => replay.check_translated(&run, from)?,
            (Fate::Refused, From::Clients(segment)) => replay.check(&run, &refused(replay, segment, run.flow))?,
            _ => {
                let passed = if replay.hook == Hook::Xdp { 2 } else { u32::MAX };
                ensure!(run.verdict == passed, "{}: verdict {} instead of passed on", self.name, run.verdict);
            }
        }
        let moved = replay.bench.moved();
        let wanted: Vec<_> = self.counted.iter().map(|reason| (*reason, u64::from(self.packets))).collect();
        ensure!(moved == wanted, "{}: counters moved: {moved:?}", self.name);
        Ok(run.ns)
    }
}
