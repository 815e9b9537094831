//! The commands that act: `drain`, `maint`, `ready`, `set`, `kill`, `rebalance`, `vrrp failover`.
//!
//! The daemon does the work on its own; a command that waits only watches. Ctrl-C ends the
//! watching, except for a rebalancing: that one stops, because no one else may want it completed.

use std::{
    io::IsTerminal,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use super::{
    args::{BackendArg, DrainArgs, Format, KillArgs, RebalanceArgs, Setting},
    interrupt::Interrupt,
    last, output, raw, show,
    table::Style,
};
use crate::{
    api::{
        admin::{Changed, Drain, Failover, InForce, Kill, Maint, Ready, Rebalance, Rebalanced, RebalancedService, Set},
        types::FailedOver,
    },
    client::{Client, Failure, standing, units},
    words::{BackendState, Task, TaskState},
};

/// Time between two queries while a command waits.
const LOOK: Duration = Duration::from_millis(200);
/// Time between two lines of progress when the output is not a terminal.
const LINE: Duration = Duration::from_secs(1);
/// How long a command that waits for a drain tolerates a daemon that is being restarted.
const RESTART: Duration = Duration::from_secs(30);

pub fn drain(client: &Client, which: BackendArg, args: DrainArgs, format: Format) -> Result<(), Failure> {
    let asked = Drain {
        backend: which.backend,
        service: which.service,
        deadline_ms: args.deadline.map(|deadline| deadline.as_millis() as u64),
        rate: args.rate.unwrap_or(Drain::RATE),
    };
    // From here on Ctrl-C is handled, so that a drain that has begun is always reported.
    let interrupt = Interrupt::new()?;
    let answer = client.order("/api/v1/drain", &asked)?;
    let changed: Changed = answer.read()?;
    match format {
        Format::Json => raw(&answer)?,
        _ => output::print(&drained(&changed, asked.rate))?,
    }
    last::warn(&changed);
    if args.wait { wait_until_empty(client, &changed, interrupt, format) } else { Ok(()) }
}

fn drained(changed: &Changed, rate: NonZeroU32) -> String {
    let rest = match changed.deadline {
        Some(deadline) => format!("connections still open at {} are reset at {rate}/s", clock(deadline)),
        None => "they stay until they end".into(),
    };
    format!("{}: no new connections, {} active; {rest}\n", standing(changed), changed.active)
}

/// Local time, to the second.
fn clock(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%F %T").to_string()
}

/// Shows how many connections are left until there are none.
fn wait_until_empty(
    client: &Client,
    changed: &Changed,
    mut interrupt: Interrupt,
    format: Format,
) -> Result<(), Failure> {
    let mut progress = Progress::new(format);
    let mut heard = Instant::now();
    let who = format!("{} of {}", changed.backend, changed.service);
    loop {
        let ours = |row: &InForce| row.service == changed.service && row.backend == changed.backend;
        match client.get("/api/v1/admin").and_then(|answer| answer.read::<Vec<InForce>>()) {
            Ok(rows) => {
                heard = Instant::now();
                let Some(row) = rows.into_iter().find(ours) else {
                    progress.end()?;
                    return Err(Failure::Refused(format!("{who} is no longer drained: somebody ended the drain")));
                };
                progress.show(&format!("{} active", row.active), &row)?;
                if row.active == 0 {
                    progress.end()?;
                    return if format == Format::Json { Ok(()) } else { output::print(&format!("{who} is empty\n")) };
                }
            }
            // The daemon restarts, or a new version takes over: the drain continues.
            Err(Failure::Unreachable(_)) if heard.elapsed() < RESTART => {}
            Err(failure) => return Err(failure),
        }
        if interrupt.within(LOOK) {
            progress.end()?;
            let back = format!("evenkeel ready {} ends it", changed.backend);
            return Err(Failure::Refused(format!("stopped waiting; the drain continues ({back})")));
        }
    }
}

pub fn maint(client: &Client, which: BackendArg, reset: bool, format: Format) -> Result<(), Failure> {
    let asked = Maint { backend: which.backend, service: which.service, reset };
    let interrupt = Interrupt::new()?;
    let answer = client.order("/api/v1/maint", &asked)?;
    let changed: Changed = answer.read()?;
    if format != Format::Json {
        let rest = match &changed.task {
            Some(task) => format!("resetting {} at {}/s", task.total, task.rate),
            None => format!("{} active connections stay open", changed.active),
        };
        output::print(&format!("{}: no new connections, {rest}\n", standing(&changed)))?;
    }
    last::warn(&changed);
    let Some(task) = changed.task.clone() else {
        return if format == Format::Json { raw(&answer) } else { Ok(()) };
    };
    let over = follow(client, vec![task], interrupt, OnInterrupt::GoOn, format)?.pop();
    match format {
        Format::Json => json(&Changed { task: over, ..changed }),
        _ => output::print(&reset_lines(over.as_slice())),
    }
}

pub fn ready(client: &Client, which: BackendArg, format: Format) -> Result<(), Failure> {
    let answer = client.order("/api/v1/ready", &Ready { backend: which.backend, service: which.service })?;
    if format == Format::Json {
        return raw(&answer);
    }
    let changed: Changed = answer.read()?;
    let hint = match changed.state {
        BackendState::Up | BackendState::SlowStart => "",
        _ => ": its health decides this, and ready does not change that",
    };
    output::print(&format!("{}{hint}\n", standing(&changed)))
}

pub fn set(client: &Client, which: BackendArg, settings: &[Setting], format: Format) -> Result<(), Failure> {
    let mut asked = Set { backend: which.backend, service: which.service, weight: None, max_conns: None };
    for setting in settings {
        let (key, asked, value) = match setting {
            Setting::Weight(weight) => ("weight", &mut asked.weight, *weight),
            Setting::MaxConns(max_conns) => ("max_conns", &mut asked.max_conns, *max_conns),
        };
        if asked.replace(value).is_some() {
            return Err(Failure::Refused(format!("{key} is given twice")));
        }
    }
    let answer = client.order("/api/v1/set", &asked)?;
    if format == Format::Json {
        return raw(&answer);
    }
    let Changed { service, backend, weight, max_conns, .. } = answer.read()?;
    let text = format!("{backend} of {service}: weight {weight}, max_conns {max_conns} until the next reload\n");
    output::print(&text)
}

pub fn kill(client: &Client, args: KillArgs, format: Format) -> Result<(), Failure> {
    let KillArgs { connection, backend, client: address, service } = args;
    let interrupt = Interrupt::new()?;
    let task: Task = client.order("/api/v1/kill", &Kill { connection, client: address, backend, service })?.read()?;
    let over = follow(client, vec![task], interrupt, OnInterrupt::GoOn, format)?;
    match (format, over.first()) {
        (Format::Json, Some(task)) => json(task),
        _ => output::print(&reset_lines(&over)),
    }
}

pub fn rebalance(client: &Client, args: RebalanceArgs, format: Format) -> Result<(), Failure> {
    let asked = Rebalance {
        service: args.service,
        rate: args.rate.unwrap_or(Rebalance::RATE),
        tolerance: args.tolerance.unwrap_or(Rebalance::TOLERANCE),
        dry_run: args.dry_run,
    };
    let interrupt = Interrupt::new()?;
    let answer = client.order("/api/v1/rebalance", &asked)?;
    let found: Rebalanced = answer.read()?;
    let skipped =
        |service: &RebalancedService| service.skipped.as_ref().map(|why| format!("{}: {why}", service.service));
    let skipped: Vec<_> = found.services.iter().filter_map(skipped).collect();
    if found.resets == 0 && !found.services.is_empty() && skipped.len() == found.services.len() {
        return Err(Failure::Refused(format!("cannot rebalance: {}", skipped.join("; "))));
    }
    if format != Format::Json {
        output::print(&show::rebalanced(&found, format, Style::of_stdout()))?;
        output::print(&forecast(&found, &asked))?;
    }
    if found.tasks.is_empty() {
        return if format == Format::Json { raw(&answer) } else { Ok(()) };
    }
    let tasks = follow(client, found.tasks.clone(), interrupt, OnInterrupt::Stop, format)?;
    let is_stopped = tasks.iter().any(|task| task.state == TaskState::Stopped);
    match format {
        Format::Json => json(&Rebalanced { tasks, ..found })?,
        _ => output::print(&reset_lines(&tasks))?,
    }
    if is_stopped { Err(Failure::Refused("stopped before the backends were even".into())) } else { Ok(()) }
}

fn forecast(found: &Rebalanced, asked: &Rebalance) -> String {
    if found.resets == 0 {
        return format!("already even within {}: nothing to do\n", asked.tolerance);
    }
    let verb = if asked.dry_run { "would be" } else { "are" };
    let takes = units::seconds(found.seconds.ceil() as u64);
    format!("{} {verb} reset at {}/s, in {takes}\n", connections(found.resets), asked.rate)
}

/// What Ctrl-C does to resets under way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnInterrupt {
    /// They continue unwatched.
    GoOn,
    /// They stop; connections that were reset stay reset.
    Stop,
}

/// Shows the progress of tasks until they are over; returns how they ended.
fn follow(
    client: &Client,
    mut tasks: Vec<Task>,
    mut interrupt: Interrupt,
    on_interrupt: OnInterrupt,
    format: Format,
) -> Result<Vec<Task>, Failure> {
    // In JSON there is one answer, at the end.
    let mut progress = (format != Format::Json).then(|| Progress::of_what_may_be_quick(format));
    let mut pause = Duration::from_millis(20);
    loop {
        for task in tasks.iter_mut().filter(|task| task.state == TaskState::Running) {
            *task = client.get(&format!("/api/v1/tasks/{}", task.id))?.read()?;
        }
        let (reset, total) = sums(&tasks);
        let is_over = tasks.iter().all(|task| task.state != TaskState::Running);
        if let Some(progress) = &mut progress {
            if is_over {
                progress.end()?;
            } else {
                progress.show(&format!("{reset} of {total} reset"), &())?;
            }
        }
        if is_over {
            return Ok(tasks);
        }
        if interrupt.within(pause) {
            progress.as_mut().map_or(Ok(()), Progress::end)?;
            if on_interrupt == OnInterrupt::GoOn {
                let text = format!("stopped waiting: {reset} of {total} are reset, the rest will follow");
                return Err(Failure::Refused(text));
            }
            for task in tasks.iter_mut().filter(|task| task.state == TaskState::Running) {
                *task = client.post(&format!("/api/v1/tasks/{}/stop", task.id))?.read()?;
            }
            return Ok(tasks);
        }
        pause = LOOK;
    }
}

fn sums(tasks: &[Task]) -> (u64, u64) {
    tasks.iter().fold((0, 0), |(reset, total), task| (reset + task.reset, total + task.total))
}

fn reset_lines(tasks: &[Task]) -> String {
    let (reset, total) = sums(tasks);
    let ended = total.saturating_sub(reset);
    let stopped = tasks.iter().any(|task| task.state == TaskState::Stopped);
    let rest = match ended {
        0 => String::new(),
        _ if stopped => format!("; {ended} left open"),
        _ => format!("; {ended} ended on their own"),
    };
    format!("{} reset{rest}\n", connections(reset))
}

fn connections(count: u64) -> String {
    if count == 1 { "1 connection".into() } else { format!("{count} connections") }
}

fn json(answer: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(answer)
        .map_err(|error| Failure::Refused(format!("cannot be written as JSON: {error}")))?;
    output::print(&format!("{text}\n"))
}

/// Lines of progress. On a terminal one line is overwritten; otherwise a new line appears when
/// something changed, at most one per second; in JSON every line is a value.
struct Progress {
    format: Format,
    in_place: bool,
    shown: Option<(String, Instant)>,
}

impl Progress {
    fn new(format: Format) -> Progress {
        let in_place = format != Format::Json && std::io::stdout().is_terminal();
        Progress { format, in_place, shown: None }
    }

    /// Shows nothing for a task that is over within a second.
    fn of_what_may_be_quick(format: Format) -> Progress {
        Progress { shown: Some((String::new(), Instant::now())), ..Progress::new(format) }
    }

    fn show(&mut self, text: &str, value: &impl Serialize) -> Result<(), Failure> {
        let same = self.shown.as_ref().is_some_and(|(shown, _)| shown == text);
        let soon = self.shown.as_ref().is_some_and(|(_, at)| at.elapsed() < LINE);
        if same || soon && !self.in_place {
            return Ok(());
        }
        self.shown = Some((text.into(), Instant::now()));
        match self.format {
            Format::Json => json(value),
            // Carriage return, erase to the end of the line (ECMA-48).
            _ if self.in_place => output::print(&format!("\r{text}\x1b[K")),
            _ => output::print(&format!("{text}\n")),
        }
    }

    /// Clears the line for other output.
    fn end(&mut self) -> Result<(), Failure> {
        if self.in_place && self.shown.take().is_some_and(|(text, _)| !text.is_empty()) {
            output::print("\r\x1b[K")
        } else {
            Ok(())
        }
    }
}

pub fn failover(client: &Client, name: &str, format: Format) -> Result<(), Failure> {
    let answer = client.order("/api/v1/failover", &Failover { instance: name.into() })?;
    let done: FailedOver = answer.read()?;
    match (format, done.master) {
        (Format::Json, _) => raw(&answer),
        (_, Some(master)) => output::print(&format!("{name}: {master} is master, after {} ms\n", done.after_ms)),
        (_, None) => output::print(&format!("{name}: handed over; the next master has not been heard yet\n")),
    }
}
