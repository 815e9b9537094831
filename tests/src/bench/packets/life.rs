//! The packets of a connection's life, each kind separately: SYN, SYN-ACK, first ACK, both FINs,
//! last ACK. Every flow is new.

use anyhow::{Result, ensure};
use lb_common::{
    layout::COOKIES_ON,
    tcp::{ACK, FIN, PSH, SYN},
    verdict::Reason,
};

use super::{
    ROUNDS, in_own_network,
    replay::{From, Replay, Stream, Subject},
    stage,
};
use crate::{
    bench::results::Results,
    packet::{LINUX_OPTIONS, Segment},
    program::Hook,
};

/// How many connections live at the same time: fewer than `max_half_open`, and their ends fit into
/// the ring of events.
const BATCH: u32 = 4096;
/// Batches per round.
const BATCHES: u32 = 6;
/// The ports of all backends together.
const PORTS: u32 = 131_072;
/// The kind that opens a connection.
const NEW: &str = "new";

const _: () = assert!(ROUNDS * BATCHES * BATCH <= PORTS, "all rounds are on ports that were not used");

/// One kind of packet in a life.
struct Kind {
    name: &'static str,
    segment: Segment,
    client: bool,
}

/// The six kinds, with matching sequence numbers.
fn kinds(replay: &Replay) -> Vec<Kind> {
    let client = |name, flags, sequence, acknowledgement| Kind {
        name,
        segment: replay.client_segment(flags).numbers(sequence, acknowledgement),
        client: true,
    };
    let backend = |name, flags, sequence, acknowledgement| Kind {
        name,
        segment: replay.backend_segment(flags).numbers(sequence, acknowledgement),
        client: false,
    };
    let mut kinds = vec![
        client(NEW, SYN, 1000, 0),
        backend("answer", SYN | ACK, 5000, 1001),
        client("first_ack", ACK, 1001, 5001),
        client("first_fin", FIN | ACK, 1001, 5001),
        backend("last_fin", FIN | ACK, 5001, 1002),
        client("last_ack", ACK, 1002, 5002),
    ];
    for kind in &mut kinds[..2] {
        kind.segment.options = LINUX_OPTIONS.to_vec();
    }
    kinds
}

impl Kind {
    fn stream(&self, first: u32) -> Stream {
        let from = if self.client { From::Clients } else { From::Backends };
        Stream { from: from(self.segment.clone()), first, flows: BATCH, scattered: false, turn: 0 }
    }

    /// Runs it once for every flow of a batch, and checks verdict, bytes and counters.
    fn run(&self, replay: &mut Replay, first: u32) -> Result<f64> {
        let stream = self.stream(first);
        let run = replay.run(Subject::Evenkeel, &stream, BATCH)?;
        replay.check_translated(&run, &stream.from)?;
        Ok(run.ns)
    }

    /// What making the packets costs.
    fn calibrate(&self, replay: &mut Replay) -> Result<f64> {
        replay.making(&self.stream(0), BATCH)
    }
}

/// Opens flows `first` to `first + flows` and leaves them established.
pub fn open(replay: &mut Replay, first: u32, flows: u32) -> Result<()> {
    let kinds = kinds(replay);
    let batch = flows.min(BATCH);
    for first in (first..first + flows).step_by(batch as usize) {
        for kind in &kinds[..3] {
            let stream = Stream { flows: batch, ..kind.stream(first) };
            let run = replay.run(Subject::Evenkeel, &stream, batch)?;
            replay.check_translated(&run, &stream.from)?;
        }
    }
    let moved = replay.bench.moved();
    ensure!(moved.is_empty(), "flows were not simply opened: {moved:?}");
    Ok(())
}

/// Data from an established client.
pub fn client_data(replay: &Replay) -> Segment {
    replay.client_segment(ACK | PSH).numbers(1001, 5001).payload(&[0x5a; 32])
}

/// Data from a backend.
pub fn backend_data(replay: &Replay) -> Segment {
    replay.backend_segment(ACK | PSH).numbers(5001, 1001).payload(&[0xa5; 32])
}

/// Four backends: first on ports that were never used, then a new connection on used ports, each of
/// which has an entry of the index left to remove.
pub fn whole_lives(hook: Hook, name: &str, results: &mut Results) -> Result<()> {
    let mut lives = Lives::new(stage(hook, 4, (PORTS / 4) as u16, 262_144)?);
    for _ in 0..ROUNDS {
        for (kind, ns) in lives.round()? {
            results.add(&format!("packets/{name}/{kind}"), "ns", ns);
        }
        if hook == Hook::Xdp {
            results.add(&format!("packets/{name}/hash_entry"), "ns", lives.hash_entries()?);
        }
    }
    lives.use_ports()?;
    for _ in 0..ROUNDS {
        for (_, ns) in lives.round()?.into_iter().filter(|(kind, _)| *kind == NEW) {
            results.add(&format!("packets/{name}/{NEW}_on_a_used_port"), "ns", ns);
        }
    }
    Ok(())
}

/// A SYN of a flood that is answered with a SYN cookie: every one of another client.
pub fn cookies(hook: Hook, name: &str, results: &mut Results) -> Result<()> {
    let mut replay = stage(hook, 4, (PORTS / 4) as u16, 262_144)?;
    replay.bench.tables().set_cookies(0, COOKIES_ON);
    let mut syn = kinds(&replay).swap_remove(0);
    // As most senders of floods write it.
    syn.segment.options.clear();
    for round in 0..ROUNDS {
        let (mut cost, mut made) = (f64::INFINITY, f64::INFINITY);
        for batch in 0..BATCHES {
            let run = replay.run(Subject::Evenkeel, &syn.stream((round * BATCHES + batch) * BATCH), BATCH)?;
            ensure!(replay.has_sent(&run), "a SYN was not answered: verdict {}", run.verdict);
            let moved = replay.bench.moved();
            ensure!(moved == [(Reason::CookieSent, u64::from(BATCH))], "not only cookies were sent: {moved:?}");
            cost = cost.min(run.ns);
            made = made.min(syn.calibrate(&mut replay)?);
        }
        results.add(&format!("packets/{name}/cookie"), "ns", cost - made);
    }
    Ok(())
}

/// A new connection on a used port, and its end, by the number of backends, in tables of the same
/// size.
pub fn by_backends(hook: Hook, name: &str, results: &mut Results) -> Result<()> {
    for backends in [1_u16, 2, 4, 8, 16, 32, 64] {
        let ports = (PORTS / u32::from(backends)).min(PORTS / 4) as u16;
        let rounds = in_own_network(|| {
            let mut lives = Lives::new(stage(hook, backends, ports, 262_144)?);
            lives.use_ports()?;
            (0..ROUNDS).map(|_| lives.round()).collect::<Result<Vec<_>>>()
        })?;
        let wanted = |(kind, _): &(&str, f64)| matches!(*kind, NEW | "last_fin");
        for (kind, ns) in rounds.into_iter().flatten().filter(wanted) {
            results.add(&format!("packets/{name}/{kind}/backends/{backends}"), "ns", ns);
        }
    }
    Ok(())
}

/// Connections that begin and end, batch after batch.
struct Lives {
    replay: Replay,
    kinds: Vec<Kind>,
    /// The number of the next flow.
    first: u32,
}

impl Lives {
    fn new(replay: Replay) -> Lives {
        Lives { kinds: kinds(&replay), replay, first: 0 }
    }

    /// Continues until every port was used once.
    fn use_ports(&mut self) -> Result<()> {
        while self.first < PORTS {
            self.batch()?;
        }
        Ok(())
    }

    /// Runs several batches; returns the quickest run of each kind, without the making of the
    /// packets.
    fn round(&mut self) -> Result<Vec<(&'static str, f64)>> {
        let mut best = vec![(f64::INFINITY, f64::INFINITY); self.kinds.len()];
        for _ in 0..BATCHES {
            for (best, (cost, made)) in best.iter_mut().zip(self.batch()?) {
                *best = (best.0.min(cost), best.1.min(made));
            }
        }
        Ok(self.kinds.iter().zip(best).map(|(kind, (cost, made))| (kind.name, cost - made)).collect())
    }

    /// What it costs to enter a new client in the kernel's hash table and do nothing else; the
    /// quickest of as many batches.
    fn hash_entries(&mut self) -> Result<f64> {
        let (mut cost, mut made) = (f64::INFINITY, f64::INFINITY);
        for batch in 1..=BATCHES {
            // Remove the clients of the round before.
            let stream = self.kinds[0].stream(self.first - batch * BATCH);
            let run = self.replay.run(Subject::Enter, &stream, BATCH)?;
            ensure!(self.replay.has_sent(&run), "a client was not entered: verdict {}", run.verdict);
            cost = cost.min(run.ns);
            made = made.min(self.replay.making(&stream, BATCH)?);
        }
        Ok(cost - made)
    }

    /// Runs every kind once for every flow; returns what they cost, and what making them costs.
    fn batch(&mut self) -> Result<Vec<(f64, f64)>> {
        let (replay, first) = (&mut self.replay, self.first);
        let once = |kind: &Kind| Ok((kind.run(replay, first)?, kind.calibrate(replay)?));
        let costs = self.kinds.iter().map(once).collect::<Result<_>>()?;
        ended(&mut self.replay)?;
        self.first += BATCH;
        Ok(costs)
    }
}

/// Checks that all flows of a batch ended as they should, with an event each.
fn ended(replay: &mut Replay) -> Result<()> {
    let told = replay.drain_events();
    let moved = replay.bench.moved();
    ensure!(told == BATCH, "{told} of {BATCH} ends were reported; counters {moved:?}");
    ensure!(moved == [(Reason::Closed, u64::from(BATCH))], "the connections did not simply end: {moved:?}");
    ensure!(replay.bench.active().iter().all(|active| *active == 0), "connections were left");
    Ok(())
}
