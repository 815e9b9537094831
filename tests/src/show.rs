//! The screen of `evenkeel-lab run`: that of `evenkeel top` with what the clients see below it, and
//! keys that break API servers. Without a terminal the same is printed as text, and commands are
//! read from standard input, one per line.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, Write as _},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use evenkeel::top::{self, Companion};

use crate::{
    client::{hold::Holding, storm},
    round::Stage,
};

/// How many watches the clients hold, and how often they are checked.
const WATCHES: u64 = 30;
const LOOK: Duration = Duration::from_millis(500);
/// What can be done to an API server, and its key.
const ACTIONS: [(char, &str); 4] = [('k', "kill"), ('p', "pause"), ('c', "cut off"), ('b', "bring back")];
const HINT: &str = "k1 kill cp01, p1 pause, c1 cut off, b1 bring back";

/// Shows the lab until `q` or Ctrl-C.
pub fn run(stage: &mut Stage) -> Result<()> {
    let folder = stage.lab.folder().display().to_string();
    let held = stage.hold(&["--tls", &folder, "--watch"])?;
    let options = ["--seconds", "86400", "--rate", "20", "--every", "1"];
    let traffic = storm::start(stage.lab.client(), &[&[stage.vip.as_str()], &options[..]].concat())?;
    let mut show = Show { watches: Watches::hold(held)?, traffic, stage, action: None };
    if top::is_there() {
        let socket = show.stage.evenkeel.socket();
        return Ok(top::run(&socket, top::PERIOD, Some(&mut show))?);
    }
    show.as_text()
}

struct Show<'a> {
    stage: &'a mut Stage,
    watches: Watches,
    traffic: storm::Running,
    /// An action that still needs the number of an API server.
    action: Option<char>,
}

impl Companion for Show<'_> {
    fn stage(&mut self) -> top::state::Stage {
        let backends = ('1'..).take(self.stage.standins.len());
        top::state::Stage {
            title: "clients of the lab".into(),
            lines: self.lines(),
            keys: ACTIONS.iter().map(|(key, _)| *key).chain(backends).collect(),
            hint: HINT.into(),
        }
    }

    fn key(&mut self, key: char) -> String {
        match (self.action.take(), ACTIONS.iter().find(|(action, _)| *action == key)) {
            (_, Some((_, what))) => {
                self.action = Some(key);
                format!("{what} which API server? 1, 2 or 3")
            }
            (Some(action), None) => self.obey(action, key),
            (None, None) => format!("choose what to do first: {HINT}"),
        }
    }
}

impl Show<'_> {
    /// What the clients have seen.
    fn lines(&self) -> Vec<String> {
        let seen = self.watches.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let watches = format!(
            "{} of {WATCHES} watches held ({}); ended: {}; failed: {}",
            seen.held,
            counts(&seen.by),
            counts(&seen.ended),
            counts(&seen.failed),
        );
        let traffic = match self.traffic.latest() {
            Ok(report) => format!(
                "short connections: {} done, failed: {}; 99 % within {:.1} ms, longest {:.1} ms",
                report.done,
                counts(&report.failed),
                report.p99_ms,
                report.max_ms
            ),
            Err(_) => "short connections: no results yet".into(),
        };
        let socket = self.stage.evenkeel.socket();
        // To be copied into a second terminal, so short enough for 80 columns.
        let mut lines = vec![watches, traffic, format!("export EVENKEEL_SOCKET={}", socket.display())];
        if self.stage.has_kernel_log {
            lines.push(format!("tail -f {}", self.stage.evenkeel.log_file().display()));
        }
        lines
    }

    /// Does `action` to the API server with this number and returns what it did.
    fn obey(&mut self, action: char, number: char) -> String {
        let index = number.to_digit(10).and_then(|number| (number as usize).checked_sub(1));
        let Some(index) = index.filter(|index| *index < self.stage.standins.len()) else {
            return format!("unknown command {action}{number}; try {HINT}");
        };
        match self.act(action, index) {
            Ok(what) => what,
            Err(error) => format!("{action}{number}: {error:#}"),
        }
    }

    fn act(&mut self, action: char, index: usize) -> Result<String> {
        let (standin, switch) = (&mut self.stage.standins[index], &self.stage.lab.switch);
        let name = standin.host.name.to_string();
        Ok(match action {
            'k' => {
                standin.kill();
                format!("killed {name}: its kernel refuses connections")
            }
            'p' => {
                standin.pause()?;
                format!("paused {name}: its kernel still answers SYNs")
            }
            'c' => {
                switch.link(&name, false)?;
                format!("cut {name} off: its cable is unplugged")
            }
            'b' => {
                switch.link(&name, true)?;
                standin.revive()?;
                format!("brought {name} back")
            }
            _ => format!("unknown action: {action}"),
        })
    }

    /// Prints the status every second, without a terminal.
    fn as_text(&mut self) -> Result<()> {
        let (send, commands) = mpsc::channel();
        thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let mut answer = String::new();
        loop {
            let status = self.stage.evenkeel.done(&["status"])?;
            let events = self.stage.evenkeel.done(&["events", "--limit", "6"])?;
            println!(
                "{status}\n{events}\n{}\n{HINT}, then Enter; q or Ctrl-C to quit   {answer}\n",
                self.lines().join("\n")
            );
            std::io::stdout().flush()?;
            match commands.recv_timeout(Duration::from_secs(1)) {
                Ok(command) if command.trim() == "q" => return Ok(()),
                Ok(command) => {
                    let mut keys = command.trim().chars();
                    answer = self.obey(keys.next().unwrap_or(' '), keys.next().unwrap_or(' '));
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Standard input has ended: go on until Ctrl-C.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_secs(1)),
            }
        }
    }
}

/// `cp01 10, cp02 20`; `0` if there are none.
pub fn counts(counts: &BTreeMap<String, u64>) -> String {
    let parts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if parts.is_empty() { "0".into() } else { parts.join(", ") }
}

/// Holds watches as clients do, and reopens those that end; in a thread, because opening takes
/// time.
struct Watches {
    seen: Arc<Mutex<Seen>>,
    /// Dropping it ends the thread.
    _until: Sender<()>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    held: u64,
    by: BTreeMap<String, u64>,
    ended: BTreeMap<String, u64>,
    failed: BTreeMap<String, u64>,
}

impl Watches {
    fn hold(mut held: Holding) -> Result<Watches> {
        let (seen, (until, over)) = (Arc::<Mutex<Seen>>::default(), channel::<()>());
        held.open(WATCHES)?;
        let shown = Arc::clone(&seen);
        thread::Builder::new()
            .name("watches".into())
            .spawn(move || {
                // The client no longer answers: it has ended with the lab.
                while look(&mut held, &shown).is_ok() && over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {}
            })
            .context("cannot start a thread")?;
        Ok(Watches { seen, _until: until })
    }
}

fn look(held: &mut Holding, seen: &Mutex<Seen>) -> Result<()> {
    let missing = WATCHES.saturating_sub(held.status()?.open);
    let opened = if missing > 0 { held.open(missing)? } else { Default::default() };
    let status = held.status()?;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    (seen.held, seen.by, seen.ended) = (status.open, status.by, status.ended);
    opened.failed.into_iter().for_each(|(why, count)| *seen.failed.entry(why).or_default() += count);
    Ok(())
}

/// Shows the screen with a key, `x`, that panics.
pub fn panic_at_a_key(socket: &Path) -> Result<()> {
    struct Panics;
    impl Companion for Panics {
        fn stage(&mut self) -> top::state::Stage {
            top::state::Stage { title: "x panics".into(), keys: vec!['x'], ..top::state::Stage::default() }
        }

        fn key(&mut self, _: char) -> String {
            panic!("the companion has panicked")
        }
    }
    Ok(top::run(socket, top::PERIOD, Some(&mut Panics))?)
}
