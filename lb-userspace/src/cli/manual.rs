//! `completions` and `man`, generated from clap's definition of the arguments, so that they cannot
//! drift from it.

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{args::Cli, output};
use crate::client::Failure;

const NAME: &str = "evenkeel";

pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    output::print_bytes(&[&script])
}

pub fn man(command: &[String]) -> Result<(), Failure> {
    output::print_bytes(&[&page(command)?])
}

/// The page, in roff.
pub fn page(command: &[String]) -> Result<Vec<u8>, Failure> {
    let mut all = Cli::command();
    // Fills in full command names and global options.
    all.build();
    let found =
        command.iter().try_fold(&all, |within, name| within.find_subcommand(name).ok_or_else(|| unknown(name, within)));
    let mut page = Vec::new();
    let man = Man::new(found?.clone()).manual("evenkeel").source(format!("{NAME} {}", env!("CARGO_PKG_VERSION")));
    man.render(&mut page).map_err(|error| Failure::Refused(format!("cannot write the page: {error}")))?;
    Ok(page)
}

fn unknown(name: &str, within: &Command) -> Failure {
    let names: Vec<_> = within.get_subcommands().map(Command::get_name).collect();
    let there_are = if names.is_empty() { "it has none".into() } else { format!("it has {}", names.join(", ")) };
    Failure::Refused(format!("{} has no command {name:?}: {there_are}", within.get_bin_name().unwrap_or(NAME)))
}
