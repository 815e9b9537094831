//! The command line.

mod args;
mod commands;
mod config_commands;
mod interrupt;
mod last;
mod manual;
mod output;
mod show;
mod sync;
mod table;
#[cfg(test)]
mod tests;
mod trace;

use std::{process::ExitCode, time::Duration};

use clap::{CommandFactory, Parser};
use lb_common::verdict::Reason;
use serde::Serialize;

use crate::{
    api::{
        EventsFilter,
        types::{Counters, Reloaded, Status},
    },
    client::{Answer, Client, Failure, exit},
    daemon::{
        self, RunOptions,
        remains::{self, Remains},
    },
    handover::Upgraded,
    top,
    words::Event,
};
use args::{Cli, Command, Format, VrrpAction};
use table::Style;

/// Every command and option, as clap knows them. A test compares the documentation with it.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Parses the arguments, runs the command and returns the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing fails only if the terminal is gone, and then nobody can read an error
            // either.
            let _ = error.print();
            // --help and --version are not errors. clap's own exit code for wrong usage, 2, means
            // "cannot be reached" here.
            return ExitCode::from(if error.use_stderr() { exit::REFUSED } else { 0 });
        }
    };
    let client = Client::new(&cli.socket);
    let done = match cli.command {
        Command::Run { config, mount_bpffs, private_pins, clsact, reset_state, kernel_log } => {
            return run(RunOptions { config, mount_bpffs, private_pins, clsact, reset_state, kernel_log });
        }
        Command::Upgrade { output } => upgrade(&client, output.format),
        Command::Check { here, listen, config, output } => config_commands::check(&config, here, listen, output.format),
        Command::Dump { config, output } => config_commands::dump(&config, output.format),
        Command::Top { interval } => top::run(&cli.socket, interval, None),
        Command::Stop { detach, output } => stop(&client, detach, output.format),
        Command::Detach { config, output } => config_commands::detach(&config, output.format),
        Command::Reload { output } => reload(&client, output.format),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { command } => manual::man(&command),
        Command::Status { output } => status(&client, output.format),
        Command::Backends { output } => backends(&client, output.format),
        Command::Conns { filter, output } => conns(&client, &filter, output.format),
        Command::Trace { client: about, service, output } => trace::trace(&client, about, service, output.format),
        Command::Drain { which, args, sure, output } => {
            last::ask(&client, &which, sure.force).and_then(|()| commands::drain(&client, which, args, output.format))
        }
        Command::Maint { which, reset, sure, output } => {
            last::ask(&client, &which, sure.force).and_then(|()| commands::maint(&client, which, reset, output.format))
        }
        Command::Ready { which, output } => commands::ready(&client, which, output.format),
        Command::Set { which, settings, output } => commands::set(&client, which, &settings, output.format),
        Command::Kill { args, output } => commands::kill(&client, args, output.format),
        Command::Rebalance { args, output } => commands::rebalance(&client, args, output.format),
        Command::Events { follow, limit, output } => {
            events(&client, EventsFilter { after: 0, limit, follow }, output.format)
        }
        Command::Vrrp { action: None, output } => vrrp(&client, output.format),
        Command::Vrrp { action: Some(VrrpAction::Failover { name, output }), .. } => {
            commands::failover(&client, &name, output.format)
        }
        Command::Counters { list: true, output } => output::print(&show::reasons(output.format, Style::of_stdout())),
        Command::Counters { list: false, output } => counters(&client, output.format),
    };
    done.map_or_else(|failure| failure.report(), |()| ExitCode::SUCCESS)
}

fn run(options: RunOptions) -> ExitCode {
    daemon::run(options).unwrap_or_else(|error| Failure::Refused(format!("{error:#}")).report())
}

fn stop(client: &Client, detach: bool, format: Format) -> Result<(), Failure> {
    let asked = client.post(if detach { "/api/v1/stop?detach=true" } else { "/api/v1/stop" });
    if let (true, Err(Failure::Unreachable(why))) = (detach, &asked) {
        return Err(Failure::Unreachable(without_daemon(client, why)));
    }
    asked?;
    if !client.wait_until_gone() {
        return Err(Failure::Refused("the daemon agreed to stop but still listens after 10 s: see its log".into()));
    }
    let remains = remains::of(client.socket());
    match (format, remains) {
        (Format::Json, remains) => {
            let attached = remains.map_or_else(Vec::new, |remains| remains.interfaces);
            let answer = serde_json::json!({ "stopped": true, "detached": detach, "attached": attached });
            output::print(&format!("{answer}\n"))
        }
        _ if detach => output::print("stopped, datapath detached\n"),
        (_, None) => output::print("stopped\n"),
        (_, Some(Remains { config, interfaces })) => output::print(&format!(
            "stopped; the program on {} goes on balancing. To take it off: evenkeel detach -c {}\n",
            interfaces.join(", "),
            config.display()
        )),
    }
}

/// What `stop --detach` says where no daemon runs.
fn without_daemon(client: &Client, why: &str) -> String {
    match remains::of(client.socket()) {
        Some(Remains { config, interfaces }) => format!(
            "{why}\nits program is still on {}: evenkeel detach -c {} takes it off without a daemon",
            interfaces.join(", "),
            config.display()
        ),
        None => format!("{why}\nwhat an ended daemon has left, `evenkeel detach -c FILE` removes"),
    }
}

/// Longer than the daemon's own limits, so that its own error is shown, not a timeout.
const UPGRADE_WITHIN: Duration = Duration::from_secs(65);

fn upgrade(client: &Client, format: Format) -> Result<(), Failure> {
    let answer = client.post_within("/api/v1/upgrade", UPGRADE_WITHIN)?;
    if format == Format::Json {
        return raw(&answer);
    }
    let upgraded: Upgraded = answer.read()?;
    output::print(&format!("evenkeel {} (process {}) has taken over\n", upgraded.version, upgraded.pid))
}

fn reload(client: &Client, format: Format) -> Result<(), Failure> {
    let answer = client.post("/api/v1/reload")?;
    if format == Format::Json {
        return raw(&answer);
    }
    let reloaded: Reloaded = answer.read()?;
    for warning in &reloaded.warnings {
        eprintln!("warning: {warning}");
    }
    let changes = reloaded.changes.iter().map(|change| format!("  {change}\n")).collect::<String>();
    output::print(&format!("configuration applied, generation {}\n{changes}", reloaded.generation))
}

/// The answer unchanged, for `-o json`.
fn raw(answer: &Answer) -> Result<(), Failure> {
    output::print_bytes(&[&answer.body, b"\n".as_slice()])
}

fn status(client: &Client, format: Format) -> Result<(), Failure> {
    let answer = client.get("/api/v1/status")?;
    match format {
        Format::Json => raw(&answer),
        _ => output::print(&show::status(&answer.read::<Status>()?, format, Style::of_stdout())),
    }
}

fn backends(client: &Client, format: Format) -> Result<(), Failure> {
    let answer = client.get("/api/v1/backends")?;
    match format {
        Format::Json => raw(&answer),
        _ => output::print(&show::backends(&answer.read::<Vec<_>>()?, format, Style::of_stdout())),
    }
}

/// Default of `--limit` for tables. JSON is for programs, which want all rows.
const TABLE_ROWS: usize = 1000;

fn conns(client: &Client, filter: &args::ConnsArgs, format: Format) -> Result<(), Failure> {
    let limit = filter.limit.or((format != Format::Json).then_some(TABLE_ROWS)).filter(|limit| *limit > 0);
    let answer = client.get(&format!("/api/v1/conns?{}", query(&filter.to_filter(limit))?))?;
    if format == Format::Json {
        return raw(&answer);
    }
    let rows: Vec<_> = answer.read()?;
    output::print(&show::conns(&rows, format, Style::of_stdout()))?;
    let hidden = answer.total.unwrap_or(0).saturating_sub(rows.len() as u64);
    if hidden > 0 {
        eprintln!("{hidden} more connections are not shown: --limit 0 shows all");
    }
    Ok(())
}

fn vrrp(client: &Client, format: Format) -> Result<(), Failure> {
    let answer = client.get("/api/v1/vrrp")?;
    match format {
        Format::Json => raw(&answer),
        _ => match answer.read::<Vec<_>>()? {
            none if none.is_empty() => output::print("no VRRP instances: the configuration has no [[vrrp]]\n"),
            instances => output::print(&show::instances(&instances, format, Style::of_stdout())),
        },
    }
}

fn counters(client: &Client, format: Format) -> Result<(), Failure> {
    let answer = client.get("/api/v1/counters")?;
    match format {
        Format::Json => raw(&answer),
        _ => output::print(&show::counters(&answer.read::<Counters>()?, format, Style::of_stdout())),
    }
}

fn events(client: &Client, mut filter: EventsFilter, format: Format) -> Result<(), Failure> {
    let path = |filter: &EventsFilter| Ok(format!("/api/v1/events?{}", query(filter)?));
    if !filter.follow {
        let answer = client.get(&path(&filter)?)?;
        return match format {
            Format::Json => raw(&answer),
            _ => output::print(&show::events(&answer.read::<Vec<Event>>()?, format)),
        };
    }
    if format != Format::Json {
        output::print(&show::events(&[], format))?;
    }
    loop {
        let followed = client.follow(&path(&filter)?, |event: Event| {
            filter.after = event.number;
            let line = match format {
                Format::Json => serde_json::to_string(&event).unwrap_or_default() + "\n",
                _ => show::event(&event, format),
            };
            output::print_on(&[line.as_bytes()])
        });
        // After an upgrade another daemon answers, and its history continues.
        match followed {
            Err(Failure::Unreachable(_)) if client.get("/api/v1/events?limit=0").is_ok() => filter.limit = None,
            followed => return followed,
        }
    }
}

fn query(filter: &impl Serialize) -> Result<String, Failure> {
    serde_urlencoded::to_string(filter).map_err(|error| Failure::Refused(format!("cannot be sent as a query: {error}")))
}

/// What a reason means; empty for one that only a newer daemon knows.
fn meaning(name: &str) -> &'static str {
    Reason::ALL.iter().find(|reason| reason.name() == name).map_or("", |reason| reason.meaning())
}
