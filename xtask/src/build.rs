//! `cargo xtask build`.

use anyhow::Result;

use crate::{setup, shell};

pub fn run() -> Result<()> {
    setup::run(setup::Tell::Changes)?;
    shell::run(&mut shell::cargo(&["build", "--release", "--package", "lb-userspace", "--bin", "evenkeel"]))?;
    println!("{}", shell::target().join("release/evenkeel").display());
    Ok(())
}
