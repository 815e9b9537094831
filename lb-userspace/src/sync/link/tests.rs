use super::*;
use crate::sync::wire::tests::flow;

const START: Instant = Instant::ZERO;
const SECOND: Duration = Duration::from_secs(1);

fn ms(milliseconds: u64) -> Instant {
    START + Duration::from_millis(milliseconds)
}

fn key() -> SharedKey {
    SharedKey::parse(&"5a".repeat(32)).unwrap()
}

/// Odd seeds are host A's, even ones host B's.
fn link(seed: u8) -> Link {
    let [a, b] = [1, 2].map(|host| SocketAddr::from(([10, 0, 9, host], 9644)));
    let to_b = Direction { from: a, to: b };
    Link::new(&key(), if seed % 2 == 1 { to_b } else { to_b.back() }, [seed; 16], [seed + 100; 16], "0.1.0")
}

/// Random numbers for one test: every call returns another one.
struct Fresh(u8);

impl Fresh {
    fn next(&mut self) -> Session {
        self.0 = self.0.wrapping_add(1);
        [self.0; 16]
    }
}

/// Carries everything that is due, both ways, until both are silent.
fn talk(a: &mut Link, b: &mut Link, fresh: &mut Fresh, now: Instant) -> (Vec<Received>, Vec<Received>) {
    let (mut heard_a, mut heard_b) = (a.in_turn(now), b.in_turn(now));
    let (mut to_a, mut to_b) = (b.due(now), a.due(now));
    while !(to_a.is_empty() && to_b.is_empty()) {
        for datagram in std::mem::take(&mut to_b) {
            let (news, answer) = b.receive(&datagram, fresh.next(), now).unwrap();
            heard_b.extend(news);
            to_a.extend(answer);
        }
        for datagram in std::mem::take(&mut to_a) {
            let (news, answer) = a.receive(&datagram, fresh.next(), now).unwrap();
            heard_a.extend(news);
            to_b.extend(answer);
        }
        to_a.extend(b.due(now));
        to_b.extend(a.due(now));
    }
    (heard_a, heard_b)
}

fn send(from: &mut Link, to: &mut Link, messages: &[Message], now: Instant) -> Result<Vec<Received>, Refused> {
    let datagram = sealed(from, messages);
    to.receive(&datagram, [250; 16], now).map(|(news, _)| news)
}

fn sealed(from: &mut Link, messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    messages.iter().for_each(|message| wire::write(message, &mut bytes));
    from.seal(&bytes)
}

/// Two links that believe each other; both have asked for a copy.
fn pair() -> (Link, Link, Fresh) {
    let (mut a, mut b, mut fresh) = (link(1), link(2), Fresh(150));
    let (heard_a, heard_b) = talk(&mut a, &mut b, &mut fresh, START);
    assert!(heard_a.contains(&Received::CopyWanted(1)) && heard_b.contains(&Received::CopyWanted(1)), "{heard_a:?}");
    assert!(heard_a.contains(&Received::Accepted("0.1.0".into())));
    (a, b, fresh)
}

/// The same after the copies, which were empty.
fn synced() -> (Link, Link, Fresh) {
    let (mut a, mut b, fresh) = pair();
    let copy = [Message::CopyBegin { copy: 1 }, Message::CopyEnd { copy: 1, flows: 0 }];
    let whole = [Received::CopyBegins { requested: START }, Received::CopyWhole(vec![])];
    assert_eq!(send(&mut a, &mut b, &copy, START), Ok(whole.to_vec()));
    assert_eq!(send(&mut b, &mut a, &copy, START), Ok(whole.to_vec()));
    assert_eq!((a.state(START), b.state(START)), (SyncState::Synced, SyncState::Synced));
    (a, b, fresh)
}

#[test]
fn two_hosts_come_to_believe_each_other_and_ask_for_a_copy_without_waiting() {
    let (a, b, _) = pair();
    assert_eq!((a.state(START), b.state(START)), (SyncState::Copying, SyncState::Copying));
}

#[test]
fn nothing_is_believed_of_a_session_that_has_not_echoed_our_challenge() {
    let (mut a, mut b) = (link(1), link(2));
    assert_eq!(send(&mut a, &mut b, &[Message::Flow(flow(1))], START), Err(Refused::UnknownSession));
    let other_key = SharedKey::parse(&"00".repeat(16)).unwrap();
    let mut other = Link::new(&other_key, a.direction, [9; 16], [8; 16], "0.1.0");
    assert_eq!(b.receive(&other.due(START)[0], [0; 16], START), Err(Refused::NotAuthentic));
    assert_eq!(b.receive(b"hello", [0; 16], START), Err(Refused::NotAuthentic));
    assert_eq!(b.state(START), SyncState::Connecting);
}

#[test]
fn what_was_recorded_of_an_older_session_does_not_bring_it_back() {
    let (mut b, mut fresh) = (link(2), Fresh(150));
    let mut recorded = Vec::new();
    let mut old = link(1);
    // The old session's whole conversation is recorded on the way to b.
    for now in [START, START + HELLO_AT_FIRST, START + 2 * HELLO_AT_FIRST] {
        for datagram in old.due(now).into_iter().chain([sealed(&mut old, &[Message::Flow(flow(7))])]) {
            recorded.push(datagram.clone());
            if let Ok((_, Some(answer))) = b.receive(&datagram, fresh.next(), now) {
                _ = old.receive(&answer, fresh.next(), now);
            }
        }
        for datagram in b.due(now) {
            if let Ok((_, Some(answer))) = old.receive(&datagram, fresh.next(), now) {
                recorded.push(answer.clone());
                _ = b.receive(&answer, fresh.next(), now);
            }
        }
    }
    assert!(b.is_accepted());
    let mut new = link(3);
    talk(&mut new, &mut b, &mut fresh, START + SECOND);
    assert_eq!(
        send(&mut new, &mut b, &[Message::Request { copy: 5 }], START + SECOND),
        Ok(vec![Received::CopyWanted(5)])
    );
    for datagram in recorded {
        let told = b.receive(&datagram, fresh.next(), START + SECOND).map(|(news, _)| news).unwrap_or_default();
        assert_eq!(told, vec![], "an old datagram was believed");
    }
    assert_eq!(
        send(&mut new, &mut b, &[Message::Request { copy: 6 }], START + SECOND),
        Ok(vec![Received::CopyWanted(6)])
    );
}

#[test]
fn what_a_host_says_is_nobody_s_when_it_comes_back() {
    let mut a = link(1);
    let mut back = a.due(START);
    for turn in 1..20 {
        let now = START + turn * HELLO_AT_FIRST;
        for datagram in std::mem::take(&mut back) {
            assert_eq!(a.receive(&datagram, [turn as u8 + 200; 16], now), Err(Refused::NotAuthentic));
        }
        back.extend(a.due(now));
    }
    assert_eq!((a.state(START + 5 * SECOND), a.is_accepted()), (SyncState::Connecting, false));
    // Nor does it move a session that is believed.
    let (mut a, mut b, _) = synced();
    let own = sealed(&mut a, &[Message::Ended(flow(1).name)]);
    assert_eq!(a.receive(&own, [0; 16], START), Err(Refused::NotAuthentic));
    assert_eq!(send(&mut b, &mut a, &[Message::Request { copy: 3 }], START), Ok(vec![Received::CopyWanted(3)]));
}

#[test]
fn what_is_said_to_one_peer_is_not_believed_by_another() {
    let [a, b, c] = [1, 2, 3].map(|host| SocketAddr::from(([10, 0, 9, host], 9644)));
    let link = |from, to, seed| Link::new(&key(), Direction { from, to }, [seed; 16], [seed + 100; 16], "0.1.0");
    // Somebody between them gives A, as if from B, what B says to C, and C, as if from B, what A
    // answers.
    let (mut a, mut b_to_c) = (link(a, b, 1), link(b, c, 2));
    for datagram in b_to_c.due(START) {
        assert_eq!(a.receive(&datagram, [9; 16], START), Err(Refused::NotAuthentic));
    }
    assert!(!a.is_accepted());
}

#[test]
fn the_format_before_is_recognized_by_its_key_and_not_believed() {
    let mut b = link(2);
    let hello = Message::Hello { challenge: [5; 16], echo: b.challenge, version: "0.0.9".into() };
    let mut bytes = Vec::new();
    wire::write(&hello, &mut bytes);
    let datagram = seal::tests::sealed_as_before(&key(), [4; 16], &bytes);
    let told = Err(Refused::OlderFormat("0.0.9".into()));
    assert_eq!(b.receive(&datagram, [0; 16], START), told);
    let other = SharedKey::parse(&"00".repeat(16)).unwrap();
    let stranger = seal::tests::sealed_as_before(&other, [4; 16], &bytes);
    assert_eq!(b.receive(&stranger, [0; 16], START), Err(Refused::NotAuthentic));
    assert!(!b.is_accepted());
}

#[test]
fn a_datagram_counts_once() {
    let (mut a, mut b, _) = synced();
    let datagram = sealed(&mut a, &[Message::Ended(flow(1).name)]);
    assert!(b.receive(&datagram, [0; 16], START).is_ok());
    assert_eq!(b.receive(&datagram, [0; 16], START), Err(Refused::Replayed));
}

#[test]
fn a_lost_datagram_leads_to_a_request_for_a_copy_and_no_more_than_one_a_second() {
    let (mut a, mut b, mut fresh) = synced();
    for _ in 0..20 {
        sealed(&mut a, &[Message::Flow(flow(1))]);
        send(&mut a, &mut b, &[Message::Flow(flow(2))], ms(10)).unwrap();
    }
    assert_eq!((b.missing, b.state(ms(10))), (0, SyncState::Synced), "they may be late");
    let (heard_a, heard_b) = talk(&mut a, &mut b, &mut fresh, ms(510));
    assert!(!heard_a.iter().any(|news| matches!(news, Received::CopyWanted(_))));
    assert_eq!(heard_b.iter().filter(|news| matches!(news, Received::Flow { .. })).count(), 20);
    assert_eq!((b.missing, b.state(ms(510))), (20, SyncState::Copying));
    let (heard_a, _) = talk(&mut a, &mut b, &mut fresh, ms(1500));
    assert!(!heard_a.iter().any(|news| matches!(news, Received::CopyWanted(_))));
    let (heard_a, _) = talk(&mut a, &mut b, &mut fresh, ms(1600));
    assert_eq!(heard_a.iter().filter(|news| matches!(news, Received::CopyWanted(2))).count(), 1);
}

#[test]
fn a_copy_of_which_something_was_lost_is_not_whole_and_is_asked_for_again() {
    let (mut a, mut b, mut fresh) = pair();
    let now = ms(20);
    send(&mut a, &mut b, &[Message::CopyBegin { copy: 1 }, Message::Flow(flow(1))], now).unwrap();
    sealed(&mut a, &[Message::Flow(flow(2))]);
    let end = [Message::Flow(flow(3)), Message::CopyEnd { copy: 1, flows: 3 }];
    assert_eq!(send(&mut a, &mut b, &end, now), Ok(vec![]), "out of turn");
    let now = now + SECOND / 2;
    let (_, news) = talk(&mut a, &mut b, &mut fresh, now);
    assert!(!news.iter().any(|news| matches!(news, Received::CopyWhole(_))), "{news:?}");
    let (heard_a, _) = talk(&mut a, &mut b, &mut fresh, now + PATIENCE);
    assert!(heard_a.contains(&Received::CopyWanted(2)), "{heard_a:?}");
    let vip = flow(1).name.listener;
    let (begin, end) = (Message::CopyBegin { copy: 2 }, Message::CopyEnd { copy: 2, flows: 1 });
    let copy = [begin, Message::Covers(vip), Message::Flow(flow(1)), end];
    let news = send(&mut a, &mut b, &copy, now + PATIENCE).unwrap();
    assert!(news.contains(&Received::CopyWhole(vec![vip])), "{news:?}");
    assert_eq!(b.state(now + PATIENCE), SyncState::Synced);
}

/// What has arrived of it may not have been understood yet.
#[test]
fn a_copy_that_is_wanted_while_one_goes_on_follows_it_and_only_once() {
    let (mut a, mut b, _) = pair();
    b.due(START);
    b.want_copy(START);
    send(&mut a, &mut b, &[Message::CopyBegin { copy: 1 }], START).unwrap();
    (0..3).for_each(|_| b.want_copy(START));
    let requests = |b: &mut Link| {
        let datagrams = b.due(START).len();
        (datagrams, b.copies)
    };
    assert_eq!(requests(&mut b), (0, 1), "the one under way goes on");
    send(&mut a, &mut b, &[Message::CopyEnd { copy: 1, flows: 0 }], START).unwrap();
    assert_eq!(requests(&mut b), (1, 2));
    let copy = [Message::CopyBegin { copy: 2 }, Message::CopyEnd { copy: 2, flows: 0 }];
    send(&mut a, &mut b, &copy, START).unwrap();
    assert_eq!(requests(&mut b), (0, 2));
}

#[test]
fn a_request_that_nobody_answers_is_made_again() {
    let (mut a, mut b, mut fresh) = pair();
    for second in 1..5 {
        let (heard_a, _) = talk(&mut a, &mut b, &mut fresh, START + second * SECOND);
        assert!(heard_a.contains(&Received::CopyWanted(1)), "{second}: {heard_a:?}");
    }
    // However late it is read here, the copy is of a time after the first request.
    let begins = send(&mut a, &mut b, &[Message::CopyBegin { copy: 1 }], START + 5 * SECOND);
    assert_eq!(begins, Ok(vec![Received::CopyBegins { requested: START }]));
}

#[test]
fn a_copy_goes_on_as_long_as_the_sender_says_so_though_it_finds_no_flow() {
    let (mut a, mut b, mut fresh) = pair();
    send(&mut a, &mut b, &[Message::CopyBegin { copy: 1 }], START).unwrap();
    // The longest batch.
    for second in 1..20 {
        let now = START + second * SECOND;
        let (heard_a, _) = talk(&mut a, &mut b, &mut fresh, now);
        assert!(!heard_a.iter().any(|news| matches!(news, Received::CopyWanted(_))), "{second}: {heard_a:?}");
        send(&mut a, &mut b, &[Message::CopyGoesOn { copy: 1 }], now).unwrap();
    }
    // Another copy, and other flows, say nothing about this one.
    for second in 20..=22 {
        let other = [Message::CopyGoesOn { copy: 7 }, Message::Ended(flow(1).name)];
        send(&mut a, &mut b, &other, START + second * SECOND).unwrap();
    }
    let (heard_a, _) = talk(&mut a, &mut b, &mut fresh, START + 22 * SECOND);
    assert!(heard_a.contains(&Received::CopyWanted(2)), "{heard_a:?}");
    let copy = [Message::CopyBegin { copy: 2 }, Message::CopyEnd { copy: 2, flows: 0 }];
    send(&mut a, &mut b, &copy, START + 22 * SECOND).unwrap();
    assert_eq!(b.state(START + 22 * SECOND), SyncState::Synced);
}

#[test]
fn a_copy_whose_end_was_lost_is_requested_again_though_open_flows_keep_coming() {
    let (mut a, mut b, mut fresh) = pair();
    send(&mut a, &mut b, &[Message::CopyBegin { copy: 1 }, Message::Flow(flow(1))], START).unwrap();
    sealed(&mut a, &[Message::CopyEnd { copy: 1, flows: 1 }]);
    let mut requested = None;
    for tenth in 1..60 {
        let now = ms(tenth * 100);
        send(&mut a, &mut b, &[Message::Flow(flow(1 + tenth as u16 % 9))], now).unwrap();
        let (heard_a, _) = talk(&mut a, &mut b, &mut fresh, now);
        if heard_a.contains(&Received::CopyWanted(2)) {
            requested = requested.or(Some(tenth));
        }
    }
    assert_eq!(requested, Some(30), "tenths of a second");
}

#[test]
fn a_copy_that_never_ends_is_requested_again() {
    let (mut a, mut b, mut fresh) = pair();
    send(&mut a, &mut b, &[Message::CopyBegin { copy: 1 }], START).unwrap();
    let mut second = 0;
    loop {
        second += 1;
        send(&mut a, &mut b, &[Message::CopyGoesOn { copy: 1 }], START + second * SECOND).unwrap();
        if talk(&mut a, &mut b, &mut fresh, START + second * SECOND).0.contains(&Received::CopyWanted(2)) {
            break;
        }
    }
    assert_eq!(second, 300);
}

#[test]
fn a_copy_whose_beginning_was_lost_is_requested_again_when_it_has_ended() {
    let (mut a, mut b, mut fresh) = pair();
    sealed(&mut a, &[Message::CopyBegin { copy: 1 }]);
    send(&mut a, &mut b, &[Message::CopyEnd { copy: 1, flows: 0 }], START).unwrap();
    talk(&mut a, &mut b, &mut fresh, START + SECOND / 2);
    let (heard_a, _) = talk(&mut a, &mut b, &mut fresh, START + SECOND / 2 + PATIENCE);
    assert!(heard_a.contains(&Received::CopyWanted(2)), "{heard_a:?}");
}

#[test]
fn what_arrives_in_another_order_is_not_lost_and_goes_on_in_its_own() {
    let (mut a, mut b, _) = synced();
    let sent = |number| Received::Flow { flow: flow(number), in_copy: false };
    let datagrams: Vec<_> = (1..=5).map(|number| sealed(&mut a, &[Message::Flow(flow(number))])).collect();
    let mut news = Vec::new();
    for (wait, place) in [4, 2, 3, 0, 1].into_iter().enumerate() {
        news.extend(b.receive(&datagrams[place], [0; 16], ms(wait as u64 * 100)).unwrap().0);
        assert_eq!(b.receive(&datagrams[place], [0; 16], ms(wait as u64 * 100)), Err(Refused::Replayed));
    }
    assert_eq!(news, (1..=5).map(sent).collect::<Vec<_>>());
    assert_eq!((b.missing, b.state(ms(5000))), (0, SyncState::Lost));
    assert_eq!(b.copy_wanted_at, None);
}

#[test]
fn what_waits_for_its_turn_can_be_had_at_once() {
    let (mut a, mut b, _) = synced();
    sealed(&mut a, &[Message::Flow(flow(1))]);
    assert_eq!(send(&mut a, &mut b, &[Message::Flow(flow(2))], START), Ok(vec![]));
    assert_eq!(b.at_once(START), [Received::Flow { flow: flow(2), in_copy: false }]);
    assert_eq!((b.missing, b.at_once(START)), (1, vec![]));
}

#[test]
fn a_peer_that_is_silent_is_lost_and_comes_back_with_the_same_session() {
    let (mut a, mut b, mut fresh) = synced();
    assert_eq!(b.state(START + 4 * SECOND), SyncState::Lost);
    talk(&mut a, &mut b, &mut fresh, START + 4 * SECOND);
    assert_eq!(b.state(START + 4 * SECOND), SyncState::Synced);
}

#[test]
fn a_restarted_peer_is_believed_after_one_round() {
    let (_, mut b, mut fresh) = synced();
    let mut new = link(41);
    let (heard_new, heard_b) = talk(&mut new, &mut b, &mut fresh, START + SECOND);
    assert!(heard_b.contains(&Received::Accepted("0.1.0".into())), "{heard_b:?}");
    assert!(heard_new.contains(&Received::Accepted("0.1.0".into())));
}

#[test]
fn a_newer_program_with_other_messages_is_understood_as_far_as_it_goes() {
    let (mut a, mut b, _) = synced();
    let mut bytes = vec![77, 0, 1, 9];
    wire::write(&Message::Ended(flow(1).name), &mut bytes);
    let datagram = a.seal(&bytes);
    assert_eq!(b.receive(&datagram, [0; 16], START).unwrap().0, vec![Received::Ended(flow(1).name)]);
    let nonsense = a.seal(&[2, 0, 1, 9]);
    assert_eq!(b.receive(&nonsense, [0; 16], START), Err(Refused::Malformed));
}
