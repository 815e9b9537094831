use lab::bench::{packets, results::Results};

#[test]
fn the_packet_benchmark_checks_what_it_times_and_finds_a_cost_for_everything() {
    let mut results = Results::new("test");
    // Fails if a verdict, a byte of a packet or a counter is not as it has to be.
    packets::run(Some("life"), &mut results).expect("the benchmark");
    for hook in ["xdp", "tc"] {
        for kind in ["new", "answer", "first_ack", "first_fin", "last_fin", "last_ack"] {
            let ns = results.summary(&format!("packets/{hook}/{kind}")).expect(kind).median;
            println!("{hook} {kind}: {ns:.0} ns");
            assert!(ns > 5.0, "{hook} {kind} cannot take {ns} ns");
        }
    }
}
