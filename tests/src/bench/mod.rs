//! `evenkeel-lab bench`: how fast it is, beside what people use today.

pub mod machine;
pub mod packets;
pub mod results;
pub mod statistics;

use anyhow::Result;

use results::Results;

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Nanoseconds a packet of the attached program
    #[arg(long)]
    pub packets: bool,
    /// Only this part of it
    #[arg(long)]
    pub only: Option<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let mut results = Results::new("cargo xtask bench --packets");
    packets::run(options.only.as_deref(), &mut results)?;
    print!("{}", packets::report(&results));
    Ok(())
}
