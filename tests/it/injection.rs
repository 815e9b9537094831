//! Frames that answer no packet, as they appear on the wire; and events as they come out of the
//! ring buffer.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    net::SocketAddrV4,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use lab::{
    packet::{ACK, LINUX_OPTIONS, RST, SYN, Segment},
    program::{Bench, CLIENT_MAC, HOOKS, Setup, VIP, backend, backend_mac, backend_of},
};
use lb_common::{
    event::{TRY_FAILED, TURNED_AWAY},
    slot::State,
    verdict::Reason,
};

const CLIENT: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 0, 2, 7), 50_123);

/// What arrives at the far end of the bench's veth.
struct Capture(Child);

impl Capture {
    fn start(frames: usize) -> Capture {
        let mut child = Command::new("tcpdump")
            .args(["-i", "ek1", "-Q", "in", "-U", "-w", "-", "-c", &frames.to_string(), "tcp"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump");
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains("listening on")));
        // It writes to its standard error until the end.
        std::thread::spawn(move || said.for_each(drop));
        Capture(child)
    }

    /// The frames in the order of their arrival (pcap-savefile(5)).
    fn segments(mut self) -> Vec<Segment> {
        let mut file = Vec::new();
        self.0.stdout.take().unwrap().read_to_end(&mut file).unwrap();
        self.0.wait().unwrap();
        let mut rest = &file[24..];
        let mut segments = Vec::new();
        while let Some((header, data)) = rest.split_at_checked(16) {
            let length = u32::from_ne_bytes(header[8..12].try_into().unwrap()) as usize;
            segments.push(Segment::parse(&data[..length]).expect("a segment with right checksums"));
            rest = &data[length..];
        }
        segments
    }
}

/// A bench whose backends have a millisecond to answer.
fn impatient(hook: lab::program::Hook) -> Bench {
    let mut setup = Setup { backends: 2, ..Setup::default() };
    setup.service.connect_timeout = std::time::Duration::from_millis(1);
    Bench::with(hook, setup)
}

/// Waits until the coarse clock has passed connect_timeout since the last SYN.
fn wait_for_connect_timeout() {
    std::thread::sleep(Duration::from_millis(25));
}

fn half_open(bench: &Bench) -> evenkeel::tables::Flow {
    let flows = bench.tables().find(CLIENT.into());
    let mut open = flows.into_iter().filter(|flow| flow.ctl.state() == State::HalfOpen);
    let flow = open.next().expect("a half-open flow");
    assert_eq!(open.next(), None);
    flow
}

#[test]
fn a_silent_backend_is_left_without_waiting_for_the_client() {
    for hook in HOOKS {
        let mut bench = impatient(hook);
        let syn = bench.from_client(CLIENT, SYN).numbers(0x1234_5678, 0).options(&LINUX_OPTIONS);
        let first = bench.forward(&syn);
        assert_eq!(bench.tables().half_open(0).len(), 1);
        wait_for_connect_timeout();
        bench.moved();
        let capture = Capture::start(1);
        assert!(bench.dataplane.resend_syn(&half_open(&bench)).unwrap(), "{hook:?}");
        let second = capture.segments().remove(0);
        let other = 1 - backend_of(&first);
        assert_eq!((second.to, second.to_mac, second.from_mac), (backend(other), backend_mac(other), bench.mac));
        assert_eq!((second.sequence, second.flags, second.window), (0x1234_5678, SYN, syn.window));
        assert_eq!(second.options, LINUX_OPTIONS);
        let mut moved = bench.moved();
        // The hosts' own IPv6 packets in the meantime.
        moved.retain(|(reason, _)| *reason != Reason::NotOurs);
        assert_eq!(moved, [(Reason::ConnectTimeout, 1)]);
        let answer = bench.from_backend(other, second.from.port(), SYN | ACK).numbers(9, 0x1234_5679);
        assert_eq!(bench.forward(&answer).to, CLIENT, "and the connection is made");
    }
}

#[test]
fn with_the_last_backend_silent_too_the_client_is_refused() {
    for hook in HOOKS {
        let bench = impatient(hook);
        let syn = bench.from_client(CLIENT, SYN).numbers(77, 0);
        bench.forward(&syn);
        for last in [false, true] {
            wait_for_connect_timeout();
            let capture = Capture::start(1);
            assert!(bench.dataplane.resend_syn(&half_open(&bench)).unwrap());
            let sent = capture.segments().remove(0);
            assert_eq!(sent.flags, if last { RST | ACK } else { SYN }, "{hook:?}");
            if last {
                assert_eq!((sent.from, sent.to, sent.to_mac, sent.acknowledgement), (VIP, CLIENT, CLIENT_MAC, 78));
            }
        }
        assert_eq!(bench.active(), [0, 0]);
    }
}

#[test]
fn a_flow_that_is_not_due_is_left_where_it_is() {
    for hook in HOOKS {
        let bench = Bench::new(hook);
        let first = bench.forward(&bench.from_client(CLIENT, SYN).numbers(77, 0));
        let capture = Capture::start(1);
        bench.dataplane.resend_syn(&half_open(&bench)).unwrap();
        assert_eq!(capture.segments()[0], first, "the SYN again to the same backend, as the client's own would be");
    }
}

#[test]
fn a_flow_that_we_close_is_reset_on_both_sides() {
    for hook in HOOKS {
        let bench = Bench::new(hook);
        let connection = bench.connect(CLIENT);
        // Data that the client has not acknowledged.
        let data = bench.from_backend(connection.backend, connection.port, ACK).numbers(5001, 1001).payload(&[7; 100]);
        bench.forward(&data);
        let flow = bench.tables().find(CLIENT.into()).remove(0);
        let capture = Capture::start(3);
        let closed = bench.tables().close(flow.seen(), Reason::Killed).expect("we won");
        bench.dataplane.reset(&closed, true).unwrap();
        let found: Vec<_> = capture
            .segments()
            .iter()
            .map(|s| (s.to, s.to_mac, s.from, s.sequence, s.acknowledgement, s.flags))
            .collect();
        let snat = SocketAddrV4::new(*VIP.ip(), connection.port);
        let expected = [
            (CLIENT, CLIENT_MAC, VIP, 5001, 1001, RST | ACK),
            (CLIENT, CLIENT_MAC, VIP, 5101, 1001, RST | ACK),
            (backend(connection.backend), backend_mac(connection.backend), snat, 1001, 5101, RST | ACK),
        ];
        assert_eq!(found, expected, "{hook:?}");
        assert_eq!((bench.active(), closed.bytes_out()), (vec![0; 3], 100));
    }
}

#[test]
fn events_come_out_of_the_ring_buffer_in_batches_and_none_is_lost_silently() {
    const SYNS: u16 = 10_000;
    let mut bench = Bench::with(lab::program::Hook::Tcx, Setup { backends: 1, ..Setup::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut events = bench.dataplane.events().unwrap();
        let mut batch = Vec::new();
        // A connection with every kind of event.
        let syn = bench.forward(&bench.from_client(CLIENT, SYN).numbers(1, 0));
        let refusal = bench.from_backend(0, syn.from.port(), RST | ACK).numbers(0, 2);
        assert_eq!(bench.forward(&refusal).to, CLIENT);
        let begin = Instant::now();
        events.next_batch(&mut batch).await.unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(10), "events gather before they are read");
        let kinds: Vec<_> = batch.iter().map(|event| (event.kind, event.reason)).collect();
        let refused = Reason::Refused as u8;
        assert_eq!(kinds, [(TRY_FAILED, refused), (TURNED_AWAY, refused)]);
        assert_eq!((batch[0].client_port, batch[0].backend, batch[0].service), (CLIENT.port().to_be_bytes(), 0, 0));
        assert!(tokio::time::timeout(Duration::from_millis(50), events.next_batch(&mut batch)).await.is_err());

        // Events of failed tries are not limited; those of clients that are turned away are.
        bench.moved();
        for port in 1..=SYNS {
            let syn = bench.forward(&bench.from_client(SocketAddrV4::new(*CLIENT.ip(), port), SYN).numbers(1, 0));
            bench.forward(&bench.from_backend(0, syn.from.port(), RST | ACK).numbers(0, 2));
        }
        let moved: BTreeMap<_, _> = bench.moved().into_iter().collect();
        let (lost, suppressed) = (moved[&Reason::EventLost], moved[&Reason::AccessLogSuppressed]);
        let all = 2 * u64::from(SYNS) - suppressed;
        assert!(lost > 0, "the ring is smaller than that");
        let mut found = 0;
        while found + lost < all {
            events.next_batch(&mut batch).await.unwrap();
            assert!((1..=4096).contains(&batch.len()));
            found += batch.iter().filter(|event| event.reason == refused).count() as u64;
        }
        assert_eq!((found + lost, events.malformed()), (all, 0));
    });
}
