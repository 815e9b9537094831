use lb_common::{
    event::{ENDED, RECOVERED, TURNED_AWAY},
    time::Instant,
};

use super::*;

fn event(kind: u8, reason: Reason) -> Event {
    Event {
        at: Instant(1),
        started: Instant(1),
        bytes_in: 0xffff_fff0,
        bytes_out: 7,
        client: [0; 16],
        client_port: [1, 2],
        listener: 0,
        service: 0,
        backend: 3,
        pool: 5,
        slot: 9,
        generation: 1,
        connect_us: 0,
        kind,
        reason: reason as u8,
        tries: 1,
        family: 4,
    }
}

#[test]
fn what_stays_at_a_backend_is_reset_by_the_number_that_it_expects() {
    let expected = Some(LeftPort { at: SlotAt::new(5, 9), sequence: 0xffff_fff0, acknowledgement: Some(7) });
    assert_eq!(left_port(&event(PORT_LEFT, Reason::TimeWait)), expected);
    assert_eq!(left_port(&event(GAVE_WAY, Reason::HalfOpenEvicted)), expected);
    for kind in [TRY_FAILED, TOOK_OUT] {
        for reason in [Reason::ConnectTimeout, Reason::MovedOn] {
            assert_eq!(left_port(&event(kind, reason)), expected, "{kind} {reason:?}");
        }
    }
}

#[test]
fn a_backend_that_has_answered_and_a_connection_without_a_port_leave_nothing() {
    assert_eq!(left_port(&event(TRY_FAILED, Reason::Refused)), None);
    assert_eq!(left_port(&event(TOOK_OUT, Reason::Refused)), None);
    for kind in [ENDED, TURNED_AWAY, RECOVERED] {
        assert_eq!(left_port(&event(kind, Reason::ConnectTimeout)), None, "{kind}");
    }
    assert_eq!(left_port(&Event { pool: u16::MAX, ..event(PORT_LEFT, Reason::TimeWait) }), None);
}
