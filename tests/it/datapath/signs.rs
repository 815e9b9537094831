use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{
    packet::{ACK, RST, SYN},
    program::{Bench, backend_of},
};
use lb_common::layout::HEARD_STEP;

use super::{client, on_every_hook};

/// Longer than `HEARD_STEP` and a timer tick.
const STEP: Duration = Duration::from_millis(HEARD_STEP as u64 + 20);

/// When something was sent on to a backend last, and when it was heard.
fn signs(bench: &Bench, backend: u16) -> (u32, u32) {
    let pool = bench.tables().backend(backend).pools[0];
    (bench.tables().sent(pool), bench.tables().heard(pool))
}

#[test]
fn what_is_sent_on_to_a_backend_and_what_comes_from_it_are_noted_apart() {
    on_every_hook(|bench| {
        let syn = bench.forward(&bench.from_client(client(0), SYN).numbers(1000, 0));
        let (number, port) = (backend_of(&syn), syn.from.port());
        assert_eq!(signs(bench, number), (0, 0), "for a SYN that is not answered there is an event");
        bench.forward(&bench.from_backend(number, port, SYN | ACK).numbers(5000, 1001));
        let (sent, answered) = signs(bench, number);
        assert!(sent == 0 && answered != 0, "{sent} {answered}");
        let began = Instant::now();
        let ack = bench.from_client(client(0), ACK).numbers(1001, 5001);
        bench.forward(&ack);
        let (first, heard) = signs(bench, number);
        assert!(first != 0 && heard == answered, "{first} {heard}");
        bench.forward(&ack);
        let again = signs(bench, number).0;
        assert!(again == first || began.elapsed() > STEP / 2, "not written for every packet");
        thread::sleep(STEP);
        bench.forward(&ack.clone().payload(&[1; 10]));
        let (second, heard) = signs(bench, number);
        assert!(second.wrapping_sub(again) >= HEARD_STEP && heard == answered, "{first} {second} {heard}");
        thread::sleep(STEP);
        // Outside the window: it ends nothing, and nobody waits for an answer to it.
        bench.forward(&bench.from_client(client(0), RST).numbers(0, 0));
        assert_eq!(signs(bench, number).0, second);
        bench.forward(&bench.from_backend(number, port, ACK).numbers(5001, 1011));
        let (sent, heard) = signs(bench, number);
        assert!(sent == second && heard.wrapping_sub(answered) >= 2 * HEARD_STEP, "{sent} {heard}");
    });
}
