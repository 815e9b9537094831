//! The datapath, packet by packet: a frame in, the verdict, the frame out byte for byte, and every
//! counter that moved. Each case runs on every hook.

mod bytes;
mod client_limit;
mod closing;
mod cookies;
mod draining;
mod failures;
mod giving_way;
mod icmp;
mod leases;
mod opening;
mod parsing;
mod payload;
mod power;
mod races;
mod reloading;
mod rules;
mod schedulers;
mod signs;
mod slow_starts;
mod snat;
mod too_large;
mod trace;
mod trust;
mod trying;
mod verifier;
mod ways;

use std::net::{Ipv4Addr, SocketAddrV4};

use evenkeel::{sys::clock, tables::Foreign};
use lab::program::{Bench, CLIENT_MAC, FIRST_PORT, HOOKS, Setup};
use lb_common::{
    flow::{Key, SlotAt},
    layout::Hop,
    slot::State,
    syn::Scales,
};

/// Runs a case on every hook, each with its own tables.
fn on_every_hook(case: impl Fn(&mut Bench) + Copy + Send) {
    with_setup(Setup::default(), case);
}

/// The same with another setup.
fn with_setup(setup: Setup, case: impl Fn(&mut Bench) + Copy + Send) {
    std::thread::scope(|scope| {
        for hook in HOOKS {
            let setup = setup.clone();
            // A bench moves its thread into its own namespaces.
            let case = scope.spawn(move || case(&mut Bench::with(hook, setup))).join();
            assert!(case.is_ok(), "failed on {hook:?}");
        }
    });
}

/// The `n`th client.
fn client(n: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1 + (n / 200) as u8), 40_000 + n)
}

/// A flow of the other host of a pair that is now found here, towards backend `n` from a SNAT port.
fn taken_over(bench: &Bench, client: SocketAddrV4, n: u16, port: u16) -> Foreign {
    Foreign {
        at: SlotAt::new(bench.pools[usize::from(n)], port - FIRST_PORT),
        backend: n,
        key: Key::of(client, bench.tables().listeners()[0].0),
        state: State::Established,
        hop: Hop::new(CLIENT_MAC, 0),
        initial: [8000, 9000],
        ends: [8001, 9001],
        acks: [9001, 8001],
        edges: [8001 + 65_535, 9001 + 65_535],
        scales: Scales::default(),
        started: clock::monotonic(),
        last_seen: clock::coarse().ticks(),
        connect_us: 40,
        tries: 1,
    }
}
