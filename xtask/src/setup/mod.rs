//! `cargo xtask setup`: finds or installs what building and testing need, and says in a line each what it took.
//!
//! With nothing to do it only looks at files, so every task can call it.

mod apt;
mod compiler;
mod frr;
mod kubectl;
mod linker;
mod peers;

use anyhow::Result;

/// How much to say.
#[derive(Clone, Copy, PartialEq)]
pub enum Tell {
    Everything,
    /// Only what had to be installed.
    Changes,
}

/// What one part of the set-up did.
pub enum Outcome {
    Found(String),
    Installed(String),
}

pub fn run(tell: Tell) -> Result<()> {
    type Part = (&'static str, fn() -> Result<Outcome>);
    let parts: [Part; 5] = [
        ("BPF compiler", compiler::provide),
        ("bpf-linker", linker::provide),
        ("test programs", peers::provide),
        ("FRR", frr::provide),
        ("kubectl", kubectl::provide),
    ];
    for (name, provide) in parts {
        match provide()? {
            Outcome::Found(what) if tell == Tell::Everything => println!("{name}: {what} (was there)"),
            Outcome::Found(_) => {}
            Outcome::Installed(what) => println!("{name}: {what} (installed now)"),
        }
    }
    Ok(())
}
