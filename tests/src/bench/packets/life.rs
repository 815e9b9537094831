//! The packets of a connection's life, each kind by itself: SYN, SYN-ACK, first ACK, both FINs, last ACK. Every flow is new.

use anyhow::{Result, ensure};
use lb_common::{
    tcp::{ACK, FIN, PSH, SYN},
    verdict::Reason,
};

use super::{
    ROUNDS, in_own_network,
    quiet::Quiet,
    replay::{From, Replay, Stream, Subject},
    stage,
};
use crate::{
    bench::{results::Results, statistics::median},
    packet::{LINUX_OPTIONS, Segment},
    program::Hook,
};

/// Connections that live at the same time: below `max_half_open`, and their ends fit into the ring of events.
const BATCH: u32 = 4096;
/// Batches of a round; its figure is their median.
const PASSES: usize = 3;

/// One kind of packet in a life.
struct Kind {
    name: &'static str,
    segment: Segment,
    client: bool,
}

/// The six kinds, with sequence numbers that fit.
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
        client("new", SYN, 1000, 0),
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

    /// Runs it once for every flow of a batch; checks verdict, bytes and counters.
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

/// Data of an established client.
pub fn client_data(replay: &Replay) -> Segment {
    replay.client_segment(ACK | PSH).numbers(1001, 5001).payload(&[0x5a; 32])
}

/// Data of a backend.
pub fn backend_data(replay: &Replay) -> Segment {
    replay.backend_segment(ACK | PSH).numbers(5001, 1001).payload(&[0xa5; 32])
}

/// Four backends; every batch on ports and index places that were not used lately.
pub fn whole_lives(hook: Hook, name: &str, quiet: &mut Quiet, results: &mut Results) -> Result<()> {
    let mut replay = stage(hook, 4, 32_768, 262_144)?;
    let mut first = 0;
    for _ in 0..ROUNDS {
        let round = one_round(&mut replay, &mut first, quiet)?;
        for (kind, ns) in round {
            results.add(&format!("packets/{name}/{kind}"), "ns", ns);
        }
    }
    Ok(())
}

/// A new connection and its end against the number of backends, in tables of the same size.
pub fn by_backends(hook: Hook, name: &str, quiet: &mut Quiet, results: &mut Results) -> Result<()> {
    for backends in [1_u16, 2, 4, 8, 16, 32, 64] {
        let ports = (131_072 / u32::from(backends)).min(32_768) as u16;
        let rounds = in_own_network(|| {
            let mut replay = stage(hook, backends, ports, 262_144)?;
            let mut first = 0;
            (0..ROUNDS).map(|_| one_round(&mut replay, &mut first, quiet)).collect::<Result<Vec<_>>>()
        })?;
        let wanted = |(kind, _): &(&str, f64)| matches!(*kind, "new" | "last_fin");
        for (kind, ns) in rounds.into_iter().flatten().filter(wanted) {
            results.add(&format!("packets/{name}/{kind}/backends/{backends}"), "ns", ns);
        }
    }
    Ok(())
}

/// Several batches of whole lives; the medians of each kind, without the making of the packets.
fn one_round(replay: &mut Replay, first: &mut u32, quiet: &mut Quiet) -> Result<Vec<(&'static str, f64)>> {
    let kinds = kinds(replay);
    let mut seen = vec![(Vec::new(), Vec::new()); kinds.len()];
    for _ in 0..PASSES {
        for (kind, (made, cost)) in kinds.iter().zip(&mut seen) {
            quiet.wait();
            made.push(kind.calibrate(replay)?);
            cost.push(kind.run(replay, *first)?);
        }
        ended(replay)?;
        *first += BATCH;
    }
    let cost =
        |(made, cost): &(Vec<f64>, Vec<f64>)| median(cost).unwrap_or_default() - median(made).unwrap_or_default();
    Ok(kinds.iter().map(|kind| kind.name).zip(seen.iter().map(cost)).collect())
}

/// That all flows of a batch ended as they should, and were told.
fn ended(replay: &mut Replay) -> Result<()> {
    let told = replay.drain_events();
    let moved = replay.bench.moved();
    ensure!(told == BATCH, "{told} of {BATCH} ends were told; counters {moved:?}");
    ensure!(moved == [(Reason::Closed, u64::from(BATCH))], "the connections did not simply end: {moved:?}");
    ensure!(replay.bench.active().iter().all(|active| *active == 0), "connections were left");
    Ok(())
}
