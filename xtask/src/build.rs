//! `cargo xtask build`.

use anyhow::Result;

use crate::{setup, shell};

pub fn run() -> Result<()> {
    setup::run(Some(setup::Task::Build), setup::Report::Changes)?;
    shell::run(&mut shell::cargo(&["build", "--release", "--package", "lb-userspace", "--bin", "evenkeel"]))?;
    println!("{}", shell::target().join("release/evenkeel").display());
    Ok(())
}
