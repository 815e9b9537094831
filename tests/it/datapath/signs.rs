use std::time::Duration;

use lab::{
    packet::{ACK, RST, SYN},
    program::{Bench, Connection, backend_of},
    wait,
};
use lb_common::layout::HEARD_STEP;

use super::{client, on_every_hook};

const SOON: Duration = Duration::from_secs(5);

/// When something was last sent to a backend, and when it was last heard.
fn signs(bench: &Bench, backend: u16) -> (u32, u32) {
    let pool = bench.tables().backend(backend).pools[0];
    (bench.tables().sent(pool).0, bench.tables().heard(pool).0)
}

/// Lets the backend be heard until enough time has passed that the next packet to it is written
/// down again.
fn until_due(bench: &Bench, flow: &Connection) -> (u32, u32) {
    let ack = bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1001);
    let due = || {
        bench.forward(&ack);
        let (sent, heard) = signs(bench, flow.backend);
        (heard.wrapping_sub(sent).cast_signed() >= HEARD_STEP.cast_signed()).then_some((sent, heard))
    };
    wait::until("time passes", SOON, due).expect("signs of the backend")
}

#[test]
fn what_is_sent_on_to_a_backend_and_what_comes_from_it_are_noted_apart() {
    on_every_hook(|bench| {
        let syn = bench.forward(&bench.from_client(client(0), SYN).numbers(1000, 0));
        let flow = Connection { client: client(0), backend: backend_of(&syn), port: syn.from.port() };
        assert_eq!(signs(bench, flow.backend), (0, 0), "for a SYN that is not answered there is an event");
        bench.forward(&bench.from_backend(flow.backend, flow.port, SYN | ACK).numbers(5000, 1001));
        let (sent, answered) = signs(bench, flow.backend);
        assert!(sent == 0 && answered != 0, "{sent} {answered}");
        let ack = bench.from_client(client(0), ACK).numbers(1001, 5001);
        bench.forward(&ack);
        let (first, heard) = signs(bench, flow.backend);
        assert!(first != 0 && heard == answered, "{first} {heard}");
        bench.forward(&ack);
        let again = signs(bench, flow.backend).0;
        assert!(again == first || again.wrapping_sub(first) >= HEARD_STEP, "not written for every packet");

        let (sent, heard) = until_due(bench, &flow);
        assert_eq!(sent, again, "what the backend sends is not sent on to it");
        bench.forward(&ack.payload(&[1; 10]));
        let (second, unmoved) = signs(bench, flow.backend);
        assert!(second.wrapping_sub(again) >= HEARD_STEP && unmoved == heard, "{again} {second} {heard} {unmoved}");

        until_due(bench, &flow);
        // Outside the window: it ends nothing, and is not a packet that waits for an answer.
        bench.forward(&bench.from_client(client(0), RST).numbers(0, 0));
        assert_eq!(signs(bench, flow.backend).0, second);
    });
}
