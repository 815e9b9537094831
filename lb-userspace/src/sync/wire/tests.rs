use super::*;

/// A flow of client port `port`.
pub fn flow(port: u16) -> FlowRecord {
    FlowRecord {
        name: FlowName {
            listener: "10.0.1.100:6443".parse().unwrap(),
            client: SocketAddr::new("10.0.1.7".parse().unwrap(), port),
            backend: "10.0.1.10:6443".parse().unwrap(),
            snat: "10.0.1.100:10249".parse().unwrap(),
        },
        phase: Phase::Established,
        tries: 2,
        mac: [2, 0, 0, 0, 0, 9],
        initial: [0xffff_fff0, 7],
        ends: [1 << 33, 9],
        acks: [9, 0],
        established_at: 1_795_000_000_123,
        idle_ms: 17,
        connect_us: 340,
        windows: Some(Windows { edges: [0xffff_0000, 70_000], scales: [7, 14] }),
    }
}

fn all() -> Vec<Message> {
    let six = FlowName { client: "[2001:db8::7]:5000".parse().unwrap(), ..flow(1).name };
    let admin =
        |decision| AdminDecision { service: "kube-apiserver".into(), backend: "cp01".into(), decision, decided_at: 5 };
    vec![
        Message::Hello { challenge: [1; 16], echo: [2; 16], version: "0.1.0".into() },
        Message::Flow(flow(5000)),
        Message::Flow(FlowRecord { windows: None, ..flow(5002) }),
        Message::Flow(FlowRecord { phase: Phase::ClosingBackend, name: six, ..flow(5001) }),
        Message::Ended(flow(5000).name),
        Message::Request { copy: 7 },
        Message::CopyBegin { copy: 7 },
        Message::Covers("10.0.1.100:6443".parse().unwrap()),
        Message::CopyGoesOn { copy: 7 },
        Message::CopyEnd { copy: 7, flows: 2 },
        Message::CopyOffered,
        Message::Admin(admin(Decision::Drain { deadline: Some(77), rate: 50 })),
        Message::Admin(admin(Decision::Drain { deadline: None, rate: 1 })),
        Message::Admin(admin(Decision::Maint)),
        Message::Admin(admin(Decision::Ready)),
        Message::Health(BackendHealth { service: "kube-apiserver".into(), backend: "cp01".into(), reason: 60 }),
    ]
}

fn bytes(messages: &[Message]) -> Vec<u8> {
    let mut out = Vec::new();
    messages.iter().for_each(|message| write(message, &mut out));
    out
}

#[test]
fn messages_come_back_as_they_were_written() {
    assert_eq!(read(&bytes(&all())), Ok(all()));
    assert_eq!(read(&[]), Ok(vec![]));
}

#[test]
fn whatever_is_cut_off_is_refused_and_nothing_panics() {
    let whole = bytes(&all());
    let ends: Vec<usize> = (0..=all().len()).map(|count| bytes(&all()[..count]).len()).collect();
    for length in 0..whole.len() {
        assert_eq!(read(&whole[..length]).is_ok(), ends.contains(&length), "{length}");
    }
}

#[test]
fn any_byte_may_be_anything_without_a_panic() {
    let whole = bytes(&all());
    for place in 0..whole.len() {
        for value in [0, 1, 4, 6, 127, 255] {
            let mut changed = whole.clone();
            changed[place] = value;
            _ = read(&changed);
        }
    }
}

#[test]
fn kinds_and_endings_of_a_newer_version_are_passed_over() {
    let mut newer = vec![99, 0, 2, 1, 2];
    let mut longer = bytes(&[Message::Request { copy: 3 }]);
    longer.extend_from_slice(&[8, 8]);
    longer[2] += 2;
    newer.extend(longer);
    assert_eq!(read(&newer), Ok(vec![Message::Request { copy: 3 }]));
}

#[test]
fn a_decision_of_a_newer_version_is_passed_over() {
    let admin = AdminDecision {
        service: "s".into(),
        backend: "b".into(),
        decision: Decision::Drain { deadline: Some(7), rate: 9 },
        decided_at: 5,
    };
    let known = bytes(&[Message::Admin(admin)]);
    // Kind, length, two texts of one character each, then the state.
    let state = 3 + 2 + 2;
    assert_eq!(known[state], 1);
    for unknown in 3..=u8::MAX {
        let mut newer = known.clone();
        newer[state] = unknown;
        newer.extend(bytes(&[Message::CopyOffered]));
        assert_eq!(read(&newer), Ok(vec![Message::CopyOffered]), "state {unknown}");
    }
}

#[test]
fn many_flows_fit_into_a_datagram() {
    let one = bytes(&[Message::Flow(flow(1))]).len();
    assert!(one <= 100 && MOST / one >= 13, "{one} bytes");
}

#[test]
fn a_text_is_cut_at_a_character() {
    let (service, backend, decision) = ("ä".repeat(200), String::new(), Decision::Ready);
    let long = AdminDecision { service, backend, decision, decided_at: 0 };
    let Ok([Message::Admin(read)]) =
        read(&bytes(&[Message::Admin(long)])).as_deref().map(|m| <[_; 1]>::try_from(m.to_vec()).unwrap())
    else {
        panic!("not read back")
    };
    assert_eq!(read.service, "ä".repeat(127));
}
