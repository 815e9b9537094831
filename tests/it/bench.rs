use lab::bench::{
    self,
    lab::{Extent, Idle, systems::System},
    packets,
    results::Results,
};

#[test]
fn the_packet_benchmark_checks_what_it_times_and_finds_a_cost_for_everything() {
    let mut results = Results::new("test");
    // Fails if a verdict, a byte of a packet or a counter is wrong.
    packets::run(Some("life"), &mut results).expect("the benchmark");
    for hook in ["xdp", "tc"] {
        for kind in ["new", "answer", "first_ack", "first_fin", "last_fin", "last_ack"] {
            let ns = results.summary(&format!("packets/{hook}/{kind}")).expect(kind).median;
            println!("{hook} {kind}: {ns:.0} ns");
            assert!(ns > 5.0, "{hook} {kind} cannot take {ns} ns");
        }
    }
}

/// Does not judge speed: a machine that is busy with other things would fail.
#[test]
fn the_comparison_runs_and_its_figures_are_possible() {
    const EXTENT: Extent = Extent {
        systems: &[System::Direct, System::Nginx, System::Tc],
        works: Some(&["kept-tcp", "new-tls", "kept-tcp-fixed", "bulk-mtu"]),
        rounds: 1,
        seconds: 0.3,
        idle: Some(Idle { compared: 500, own: 1000, seconds: 0.5 }),
    };
    let mut results = Results::new("test");
    // Fails if nothing is served, a connection is refused, or an idle one ends.
    bench::lab::run(EXTENT, None, &mut results).expect("the benchmark");
    let value = |name: &str| results.summary(name).unwrap_or_else(|| panic!("no {name} in {results:?}")).median;
    for system in ["direct", "nginx", "evenkeel-tc"] {
        for work in ["kept-tcp", "new-tls", "kept-tcp-fixed", "bulk-mtu"] {
            let of = |what: &str| value(&format!("lab/{work}/{system}/{what}"));
            assert_eq!(of("failed"), 0.0, "{work} through {system}");
            assert!(of("rate") > 1.0 && of("cpu") > 0.0 && of("p50") > 1.0, "{work} through {system}: {results:?}");
            assert!(of("p50") <= of("p99"), "{work} through {system}");
        }
        // At least a socket of a client and one of a server.
        assert!(value(&format!("lab/idle/{system}/slab")) > 1000.0, "{system}: {results:?}");
    }
    let per_slot = value("lab/idle/evenkeel-tc/per slot");
    assert!((128.0..192.0).contains(&per_slot), "a slot has two lines and its share of the index: {per_slot}");
    let memory = value("lab/daemon/RssAnon, 1000 idle");
    assert!(memory > 0.1 && memory < 24.0, "{memory} MiB");
    let first = value("lab/daemon/first connection");
    assert!(first > 1.0, "{first} ms");
    assert!(value("lab/daemon/reload, 64 backends changed") > 0.1);
}
