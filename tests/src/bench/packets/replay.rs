//! Runs a program on packets that are made for each run, and measures how long it takes.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on one frame without restoring it: from the second time
//! on, a program that rewrites would see its own output. So the benchmark runs `replay_*` of
//! tests/ebpf, which makes the next packet in place and goes on to the measured program. Its own
//! cost is that of the same run through `making_*`, which sends the packet as it is.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, TestRunOptions,
    maps::{Array, MapData, ProgramArray, RingBuf},
    programs::{SchedClassifier, TestRun, Xdp},
};
use aya_obj::programs::XdpAttachType;
use tests_ebpf::{BACKEND, BLOCK, BLOCKS, CLIENT, HEADERS, Plan, SAME};

use crate::{
    bench::statistics::median,
    packet::{Mac, SYN, Segment},
    program::{Bench, CLIENT_MAC, FIRST_PORT, Hook, VIP, backend, backend_mac, backend_of},
};

/// The kernel programs of the benchmark.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LAB_BPF"));

/// What is measured, and what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The attached program.
    Evenkeel,
    /// Sends every frame back.
    Empty,
    /// One lookup in the kernel's hash table.
    Hash,
    /// The rewriting of a full NAT and nothing else.
    Rewrite,
    /// Enters clients in the kernel's hash table (XDP only).
    Enter,
    /// One read from a table of cache lines (XDP only).
    Lines,
    /// The rewriting, to an address found by two dependent reads (XDP only).
    Found,
    /// No program: making the packets.
    Making,
}

/// The packets that are made.
#[derive(Clone, Debug)]
pub enum From {
    /// From clients; source address and port are filled in.
    Clients(Segment),
    /// From backends; source address and destination port are filled in.
    Backends(Segment),
    /// The same frame every time.
    Frame(Vec<u8>),
}

/// A stream of packets.
#[derive(Clone, Debug)]
pub struct Stream {
    pub from: From,
    /// Number of the first flow.
    pub first: u32,
    /// How many flows: a power of two.
    pub flows: u32,
    /// Whether consecutive packets belong to flows far apart, or to one flow after the other.
    pub scattered: bool,
    /// The packet of the stream that comes first.
    pub turn: u32,
}

/// The result of a run.
pub struct Run {
    /// Nanoseconds per packet, including its making: the median of the run's blocks.
    pub ns: f64,
    /// The last verdict.
    pub verdict: u32,
    /// The last frame, as the program left it.
    pub frame: Vec<u8>,
    /// The flow of the last frame.
    pub flow: u32,
}

/// A service with the program attached, and the means to run it.
pub struct Replay {
    pub bench: Bench,
    pub hook: Hook,
    programs: Ebpf,
    plan: Array<MapData, Words>,
    times: Array<MapData, u64>,
    events: RingBuf<MapData>,
    backend_bits: u32,
    slot_mask: u32,
}

/// A [`Plan`] as a type that can be written to a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Words([u64; size_of::<Plan>() / 8]);

// SAFETY: an array of integers.
unsafe impl aya::Pod for Words {}

const _: () = assert!(size_of::<Plan>().is_multiple_of(8));

impl Replay {
    /// The backends and ports of the bench are powers of two.
    pub fn new(bench: Bench, hook: Hook) -> Result<Replay> {
        let (backends, ports) = (u32::from(bench.setup.backends), u32::from(bench.setup.ports));
        ensure!(backends.is_power_of_two() && ports.is_power_of_two(), "{backends} backends of {ports} ports");
        let mut programs = load(&bench, hook)?;
        let plan = programs.take_map("PLAN").context("no map PLAN")?;
        let events = MapData::from_pin(bench.bpffs.join("maps/EVENTS"))?;
        let events = RingBuf::try_from(aya::maps::Map::from_map_data(events)?)?;
        let plan = Array::try_from(plan)?;
        let times = Array::try_from(programs.take_map("TIMES").context("no map TIMES")?)?;
        let (backend_bits, slot_mask) = (backends.trailing_zeros(), ports - 1);
        Ok(Replay { bench, hook, programs, plan, times, events, backend_bits, slot_mask })
    }

    /// Runs `packets` packets of a stream through a subject.
    pub fn run(&mut self, subject: Subject, stream: &Stream, packets: u32) -> Result<Run> {
        let (plan, frame) = self.plan(stream);
        self.plan.set(0, words(&plan), 0)?;
        let hook = hook_name(self.hook);
        let program = match subject {
            Subject::Making => format!("making_{hook}"),
            subject => format!("replay_{hook}_{}", subject as usize),
        };
        let ran = self.test_run(&program, &frame, packets);
        let (verdict, frame) = ran.with_context(|| format!("{subject:?} by {program}"))?;
        let flow = plan.flow(stream.turn.wrapping_add(packets - 1));
        Ok(Run { ns: self.block_time(packets)?, verdict, frame, flow })
    }

    /// What it costs to make the packets of a stream and to repeat.
    pub fn making(&mut self, stream: &Stream, packets: u32) -> Result<f64> {
        let run = self.run(Subject::Making, stream, packets)?;
        ensure!(self.has_sent(&run), "packets cannot be made: verdict {}", run.verdict);
        Ok(run.ns)
    }

    /// Whether the last frame was sent.
    pub fn has_sent(&self, run: &Run) -> bool {
        let sent: &[u32] = if self.hook == Hook::Xdp { &[3, 4] } else { &[7] };
        sent.contains(&run.verdict)
    }

    /// Nanoseconds per packet of the median block: interruptions of single blocks do not count.
    fn block_time(&self, packets: u32) -> Result<f64> {
        let blocks = packets / BLOCK;
        ensure!(blocks as usize <= BLOCKS, "{packets} packets are too many for one run");
        let times: Vec<u64> = (0..blocks).map(|block| self.times.get(&block, 0)).collect::<Result<_, _>>()?;
        let blocks: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / f64::from(BLOCK)).collect();
        median(&blocks).context("a run of less than two blocks")
    }

    /// Returns the last verdict and the last frame.
    fn test_run(&mut self, name: &str, frame: &[u8], packets: u32) -> Result<(u32, Vec<u8>)> {
        let mut out = vec![0; 2048];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.repeat = packets;
        let program = self.programs.program(name).with_context(|| format!("no program {name}"))?;
        let ifindex = self.bench.ifindex;
        let result = if self.hook == Hook::Xdp {
            let context = context([0, frame.len() as u32, 0, ifindex, 0, 0]);
            options.ctx_in = Some(&context);
            let program: &Xdp = program.try_into()?;
            program.test_run(options)?
        } else {
            let context = context([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ifindex]);
            options.ctx_in = Some(&context);
            let program: &SchedClassifier = program.try_into()?;
            program.test_run(options)?
        };
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// The plan of a stream, and its first frame.
    fn plan(&self, stream: &Stream) -> (Plan, Vec<u8>) {
        let (side, frame) = match &stream.from {
            From::Clients(segment) => (CLIENT, blank(segment).bytes()),
            From::Backends(segment) => (BACKEND, blank(segment).bytes()),
            From::Frame(frame) => (SAME, frame.clone()),
        };
        let mut headers = frame[..HEADERS].to_vec();
        headers[24..26].fill(0);
        headers[50..52].fill(0);
        headers.resize(56, 0);
        let mut words = [0; 7];
        for (word, bytes) in words.iter_mut().zip(headers.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().expect("chunks of eight"));
        }
        let length = (frame.len() - 34) as u16;
        let tcp_sum = sum(&headers[26..54]) + sum(&frame[54..]) + u32::from(6_u16.to_be()) + u32::from(length.to_be());
        let half = if stream.scattered { (stream.flows.trailing_zeros() / 2).max(1) } else { 0 };
        let plan = Plan {
            frame: words,
            start: stream.turn,
            turn: stream.turn,
            first: stream.first,
            mask: stream.flows - 1,
            half,
            side,
            backend_bits: self.backend_bits,
            slot_mask: self.slot_mask,
            first_port: FIRST_PORT.into(),
            ip_sum: sum(&headers[14..34]),
            tcp_sum,
            reserved: 0,
        };
        (plan, frame)
    }

    /// The client of a flow.
    pub fn client(flow: u32) -> SocketAddrV4 {
        SocketAddrV4::new(
            Ipv4Addr::from(tests_ebpf::CLIENTS + (flow >> 4)),
            tests_ebpf::CLIENT_PORT + (flow & 15) as u16,
        )
    }

    /// A client's segment as it has to leave for backend `n` in this flow.
    fn forwarded(&self, segment: &Segment, flow: u32, n: u16) -> Segment {
        let port = FIRST_PORT + (flow >> self.backend_bits & self.slot_mask) as u16;
        let from = SocketAddrV4::new(*VIP.ip(), port);
        // A SYN is written anew.
        let ttl = if segment.flags & SYN != 0 { 64 } else { segment.ttl - 1 };
        Segment { from, to: backend(n), ttl, ..segment.clone() }.macs(self.bench.mac, backend_mac(n))
    }

    /// A backend's segment as it has to leave for the client of this flow.
    fn returned(&self, segment: &Segment, flow: u32) -> Segment {
        let (from, to) = (VIP, Self::client(flow));
        Segment { from, to, ttl: segment.ttl - 1, ..segment.clone() }.macs(self.bench.mac, CLIENT_MAC)
    }

    /// A segment of any client.
    pub fn client_segment(&self, flags: u8) -> Segment {
        Segment::new(Self::client(0), VIP, flags).macs(CLIENT_MAC, self.bench.mac)
    }

    /// A segment of any backend.
    pub fn backend_segment(&self, flags: u8) -> Segment {
        let mac: Mac = backend_mac(0);
        Segment::new(backend(0), SocketAddrV4::new(*VIP.ip(), FIRST_PORT), flags).macs(mac, self.bench.mac)
    }

    /// Consumes all events in the ring buffer, as the controller does; returns how many there were.
    pub fn drain_events(&mut self) -> u32 {
        let mut count = 0;
        while self.events.next().is_some() {
            count += 1;
        }
        count
    }

    /// Checks that the last segment of a run was translated correctly.
    pub fn check_translated(&self, run: &Run, from: &From) -> Result<()> {
        let found = self.sent(run)?;
        let is_near = |flow: u32| flow >> self.backend_bits == run.flow >> self.backend_bits;
        let wanted = match from {
            From::Clients(segment) => self.forwarded(segment, run.flow, backend_of(&found)),
            // Each group of as many consecutive flows as there are backends shares one SNAT port;
            // the scheduler decides about the order in it.
            From::Backends(segment) => match Self::flow_of(found.to).filter(|flow| is_near(*flow)) {
                Some(flow) => self.returned(segment, flow),
                None => self.returned(segment, run.flow),
            },
            From::Frame(_) => bail!("frames like this are not translated"),
        };
        equal(&found, &wanted)
    }

    /// Checks that a run sent `wanted` at the end.
    pub fn check(&self, run: &Run, wanted: &Segment) -> Result<()> {
        equal(&self.sent(run)?, wanted)
    }

    fn sent(&self, run: &Run) -> Result<Segment> {
        ensure!(self.has_sent(run), "verdict {} instead of sent, flow {}", run.verdict, run.flow);
        Segment::parse(&run.frame).context("the frame that came out")
    }

    /// The flow of a client.
    fn flow_of(client: SocketAddrV4) -> Option<u32> {
        let address = u32::from(*client.ip()).checked_sub(tests_ebpf::CLIENTS)?;
        Some(address << 4 | u32::from(client.port().checked_sub(tests_ebpf::CLIENT_PORT)?))
    }
}

fn equal(found: &Segment, wanted: &Segment) -> Result<()> {
    ensure!(found == wanted, "what came out is wrong:\n{found:?}\ninstead of\n{wanted:?}");
    Ok(())
}

/// Loads the programs and puts the measured ones where `replay_*` looks for them, in the order of
/// [`Subject`].
fn load(bench: &Bench, hook: Hook) -> Result<Ebpf> {
    let mut programs = Ebpf::load(OBJECT).context("cannot load the programs of the benchmark")?;
    let suffix = hook_name(hook);
    let names: Vec<String> = programs.programs().map(|(name, _)| name.to_owned()).collect();
    for name in names.iter().filter(|name| name.contains(suffix)) {
        let program = programs.program_mut(name).context("a program no longer exists")?;
        if hook == Hook::Xdp {
            let program: &mut Xdp = program.try_into()?;
            program.load()?;
        } else {
            let program: &mut SchedClassifier = program.try_into()?;
            program.load()?;
        }
    }
    let pinned = bench.bpffs.join("programs").join(format!("evenkeel_{suffix}"));
    let evenkeel = match hook {
        Hook::Xdp => Xdp::from_pin(pinned, XdpAttachType::Interface)?.fd()?.try_clone()?,
        _ => SchedClassifier::from_pin(pinned)?.fd()?.try_clone()?,
    };
    let mut targets = vec![evenkeel];
    for name in ["empty", "hash", "rewrite", "enter", "lines", "found"] {
        if let Some(program) = programs.program(&format!("{name}_{suffix}")) {
            targets.push(program.fd()?.try_clone()?);
        }
    }
    let next = programs.map_mut(&format!("NEXT_{}", suffix.to_uppercase())).context("no map of the next program")?;
    let mut next = ProgramArray::try_from(next)?;
    for (place, target) in (0..).zip(&targets) {
        next.set(place, target, 0)?;
    }
    Ok(programs)
}

fn hook_name(hook: Hook) -> &'static str {
    if hook == Hook::Xdp { "xdp" } else { "tc" }
}

/// The segment with zeros in what the program fills in, in both directions.
fn blank(segment: &Segment) -> Segment {
    let zero = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    if segment.to == VIP {
        Segment { from: zero, ..segment.clone() }
    } else {
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, segment.from.port());
        Segment { from, to: SocketAddrV4::new(*segment.to.ip(), 0), ..segment.clone() }
    }
}

/// The sum of the 16-bit words in memory order.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum()
}

fn words(plan: &Plan) -> Words {
    let mut words = [0; size_of::<Plan>() / 8];
    words[..7].copy_from_slice(&plan.frame);
    let rest = [
        plan.start,
        plan.turn,
        plan.first,
        plan.mask,
        plan.half,
        plan.side,
        plan.backend_bits,
        plan.slot_mask,
        plan.first_port,
        plan.ip_sum,
        plan.tcp_sum,
        plan.reserved,
    ];
    for (word, pair) in words[7..].iter_mut().zip(rest.chunks_exact(2)) {
        let [low, high] = [pair[0].to_ne_bytes(), pair[1].to_ne_bytes()];
        *word = u64::from_ne_bytes([low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]);
    }
    Words(words)
}

fn context<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
