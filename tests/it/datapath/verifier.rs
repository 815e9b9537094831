use lab::program::{Bench, Hook};

/// The kernel's limit is 1,000,000. Kernels differ in how much they can prune; this leaves them
/// room.
const BOUND: u32 = 100_000;

#[test]
fn the_verifier_needs_few_instructions() {
    let bench = Bench::new(Hook::Tcx);
    for (hook, count) in bench.dataplane.verified_instructions().expect("program info") {
        println!("{hook}: {count} instructions verified, bound {BOUND}");
        assert!((1..BOUND).contains(&count), "{hook}: {count}");
    }
}
