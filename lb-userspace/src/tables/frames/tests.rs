use lb_common::{
    address::to_mapped,
    flow::{Key, SlotAt},
    layout::ACTIVE,
    slot::{CONNECTED, Ctl, State},
    syn::{OFFERS_SACK, OFFERS_SCALE, SavedSyn},
    time::Ticks,
};

use super::*;

const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x0c, 0x01];
const BACKEND_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x0b, 0x01];
const OUR_MACS: [[u8; 6]; 2] = [[0x02, 0, 0, 0, 0, 0xaa], [0x02, 0, 0, 0, 0, 0xbb]];

fn listener() -> Listener {
    let address = to_mapped([10, 0, 1, 100]);
    Listener { address, port: [0x19, 0x2b], service: 0, family: 4, state: ACTIVE, reserved: [0; 10] }
}

fn pool() -> Pool {
    Pool {
        backend: to_mapped([10, 0, 1, 10]),
        snat: to_mapped([10, 0, 1, 100]),
        port: [0x19, 0x2b],
        first_port: 10_240,
        ports: 22_528,
        family: 4,
        state: ACTIVE,
        hop: Hop::new(BACKEND_MAC, 1),
        heard: Ticks::default(),
        sent: Ticks::default(),
        flags: 0,
        range: 0,
    }
}

/// A flow of 10.0.2.7:50123 (0xc3cb) on slot 9, SNAT port 10249 (0x2809).
fn flow(ctl: Ctl) -> Flow {
    let (key, hop) = (Key::of("10.0.2.7:50123".parse().unwrap(), 0), Hop::new(CLIENT_MAC, 0));
    let record = lb_common::layout::Slot { ctl, key, hop, ..Default::default() };
    Flow { at: SlotAt::new(0, 9), ctl, record, opening: Default::default() }
}

fn mac(interface: u8) -> [u8; 6] {
    OUR_MACS[usize::from(interface)]
}

/// RFC 1071: over header and checksum the sum is all ones.
fn assert_checksums(frame: &[u8]) {
    let (ip, tcp) = (&frame[14..34], &frame[34..]);
    assert_eq!(checksum::fold(sum(ip)), 0xffff, "IPv4");
    let length = (tcp.len() as u16).to_be_bytes();
    let pseudo = [&frame[26..34], &[0, 6], &length].concat();
    assert_eq!(checksum::fold(sum(tcp) + sum(&pseudo)), 0xffff, "TCP");
}

#[test]
fn the_clients_syn_is_built_again_byte_by_byte() {
    let mut flow = flow(Ctl::new(1, State::HalfOpen));
    flow.record.end_client = 0x0000_0001_0000_0000 | 0x1234_5679;
    let offers = OFFERS_SACK | OFFERS_SCALE;
    flow.opening.syn = SavedSyn { mss: 1460, window: [0xfa, 0xf0], scale: 7, offers, tos: 0x48, ..SavedSyn::default() };
    let frame = client_syn(&flow, &listener(), OUR_MACS[0]).unwrap();
    #[rustfmt::skip]
    let expected = [
        // Ethernet: to us, from the client's next hop, IPv4
        0x02, 0, 0, 0, 0, 0xaa,  0x02, 0, 0, 0, 0x0c, 0x01,  0x08, 0x00,
        // IPv4: 52 bytes, DF, TTL 64, TCP
        0x45, 0x48, 0x00, 0x34,  0x00, 0x00, 0x40, 0x00,  0x40, 0x06, 0x23, 0x12,
        10, 0, 2, 7,  10, 0, 1, 100,
        // TCP: 50123 to 6443, SYN, header of 8 words
        0xc3, 0xcb, 0x19, 0x2b,  0x12, 0x34, 0x56, 0x78,  0, 0, 0, 0,  0x80, 0x02, 0xfa, 0xf0,
        0x17, 0x13, 0, 0,
        2, 4, 0x05, 0xb4,  1, 1, 4, 2,  1, 3, 3, 7,
    ];
    assert_checksums(&frame);
    assert_eq!(frame, expected);
    assert_eq!(endpoints(&frame), Some(("10.0.2.7:50123".parse().unwrap(), "10.0.1.100:6443".parse().unwrap())));
}

#[test]
fn an_idle_flow_gets_one_reset_a_side_at_the_numbers_last_acknowledged() {
    let mut flow = flow(Ctl::new(1, State::Established).with_flags(CONNECTED));
    (flow.record.end_client, flow.record.ack_backend) = (0x1000_0100, 0x1000_0100);
    (flow.record.end_backend, flow.record.ack_client) = (0x1_2000_0200, 0x2000_0200);
    let frames = resets(&flow, &listener(), &pool(), mac);
    #[rustfmt::skip]
    let to_client = [
        0x02, 0, 0, 0, 0x0c, 0x01,  0x02, 0, 0, 0, 0, 0xaa,  0x08, 0x00,
        0x45, 0x00, 0x00, 0x28,  0x00, 0x00, 0x40, 0x00,  0x40, 0x06, 0x23, 0x66,
        10, 0, 1, 100,  10, 0, 2, 7,
        0x19, 0x2b, 0xc3, 0xcb,  0x20, 0x00, 0x02, 0x00,  0x10, 0x00, 0x01, 0x00,  0x50, 0x14, 0x00, 0x00,
        0x88, 0x6f, 0, 0,
    ];
    #[rustfmt::skip]
    let to_backend = [
        0x02, 0, 0, 0, 0x0b, 0x01,  0x02, 0, 0, 0, 0, 0xbb,  0x08, 0x00,
        0x45, 0x00, 0x00, 0x28,  0x00, 0x00, 0x40, 0x00,  0x40, 0x06, 0x24, 0x63,
        10, 0, 1, 100,  10, 0, 1, 10,
        0x28, 0x09, 0x19, 0x2b,  0x10, 0x00, 0x01, 0x00,  0x20, 0x00, 0x02, 0x00,  0x50, 0x14, 0x00, 0x00,
        0x25, 0x2f, 0, 0,
    ];
    for out in &frames {
        assert_checksums(&out.frame);
    }
    let expected =
        [Outgoing { interface: 0, frame: to_client.to_vec() }, Outgoing { interface: 1, frame: to_backend.to_vec() }];
    assert_eq!(frames, expected);
}

fn numbers(frame: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    (word(38), word(42))
}

#[test]
fn data_that_was_not_acknowledged_gets_a_second_reset_behind_it() {
    let mut flow = flow(Ctl::new(1, State::Established).with_flags(CONNECTED));
    // The wrap lies between what was acknowledged and what was sent.
    (flow.record.end_client, flow.record.ack_backend) = (0x1_0000_0010, 0xffff_fff0);
    (flow.record.end_backend, flow.record.ack_client) = (700, 700);
    let frames = resets(&flow, &listener(), &pool(), mac);
    let found: Vec<_> = frames.iter().map(|out| (out.interface, numbers(&out.frame))).collect();
    assert_eq!(found, [(0, (700, 0x10)), (1, (0xffff_fff0, 700)), (1, (0x10, 700))]);
}

#[test]
fn a_half_open_flow_is_reset_as_one_whose_syn_was_never_answered() {
    let mut flow = flow(Ctl::new(1, State::HalfOpen));
    flow.record.end_client = 0x1234_5679;
    // While half-open these are the mask of backends tried, not acknowledgements.
    (flow.record.ack_client, flow.record.ack_backend) = (0b101, 0);
    let frames = resets(&flow, &listener(), &pool(), mac);
    let found: Vec<_> = frames.iter().map(|out| (out.interface, numbers(&out.frame))).collect();
    assert_eq!(found, [(0, (0, 0x1234_5679)), (1, (0x1234_5679, 0))]);
    // In SYN-SENT a reset needs its acknowledgement; in SYN-RECEIVED a wrong one voids it.
    assert_eq!(frames.iter().map(|out| out.frame[47]).collect::<Vec<_>>(), [RST | ACK, RST]);
}

#[test]
fn a_backend_that_waits_for_the_handshakes_end_gets_a_reset_that_it_accepts() {
    let mut flow = flow(Ctl::new(1, State::Answered));
    // Linux looks at the acknowledgement first (tcp_check_req).
    (flow.record.end_client, flow.record.ack_backend) = (0x1234_5679, 0x1234_5679);
    (flow.record.end_backend, flow.record.ack_client) = (0x9000_0001, 0x9000_0001);
    let frames = resets(&flow, &listener(), &pool(), mac);
    let found: Vec<_> = frames.iter().map(|out| (out.interface, numbers(&out.frame))).collect();
    assert_eq!(found, [(0, (0x9000_0001, 0x1234_5679)), (1, (0x1234_5679, 0x9000_0001))]);
}

#[test]
fn nothing_is_sent_to_a_next_hop_that_is_not_known() {
    let mut flow = flow(Ctl::new(1, State::Established).with_flags(CONNECTED));
    let mut unresolved = pool();
    unresolved.hop = Hop::default();
    let frames = resets(&flow, &listener(), &unresolved, mac);
    assert_eq!(frames.iter().map(|out| out.interface).collect::<Vec<_>>(), [0]);
    flow.record.hop = Hop::default();
    assert_eq!(resets(&flow, &listener(), &unresolved, mac), []);
}

#[test]
fn a_port_is_reset_with_both_numbers_whatever_connection_is_on_it() {
    let frame = port_reset(&pool(), 9, (0xffff_fff0, Some(7)), OUR_MACS[1]).unwrap();
    let blind = port_reset(&pool(), 9, (1, None), OUR_MACS[1]).unwrap();
    assert_eq!((numbers(&blind), blind[47]), ((1, 0), RST));
    assert_checksums(&blind);
    assert_checksums(&frame);
    assert_eq!((numbers(&frame), frame[47]), ((0xffff_fff0, 7), RST | ACK));
    assert_eq!((&frame[..6], &frame[6..12]), (&BACKEND_MAC[..], &OUR_MACS[1][..]));
    let ends = ("10.0.1.100:10249".parse().unwrap(), "10.0.1.10:6443".parse().unwrap());
    assert_eq!(endpoints(&frame), Some(ends));
    let unresolved = Pool { hop: Hop::default(), ..pool() };
    assert_eq!(port_reset(&unresolved, 9, (1, Some(2)), OUR_MACS[1]), None);
}

#[test]
fn endpoints_are_read_from_plain_frames_only() {
    for len in 0..60 {
        assert_eq!(endpoints(&vec![0; len]), None);
    }
    let frame = client_syn(&flow(Ctl::new(1, State::HalfOpen)), &listener(), OUR_MACS[0]).unwrap();
    for cut in 0..38 {
        assert_eq!(endpoints(&frame[..cut]), None, "{cut}");
    }
    let mut udp = frame.clone();
    udp[23] = 17;
    assert_eq!(endpoints(&udp), None);
}
