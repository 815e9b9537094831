//! The operator's programs: `track_script`, one thread each, and `notify`, one thread for all. A
//! program may hang or fork: only its own thread waits for it, and not forever.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use super::{Fact, Shared, ThreadOrder};
use crate::{
    config::model::TrackScript,
    sys::{
        program::{self, Outcome},
        wake::{self, Bell},
    },
    vrrp::{
        messages::{InstanceEvent, Occurrence, Trouble},
        setup::Setup,
    },
};

/// The scripts that run, by instance and position in its list.
#[derive(Default)]
pub struct Scripts(BTreeMap<(Arc<str>, usize), Running>);

struct Running {
    script: TrackScript,
    stop: Arc<Bell>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.ring();
    }
}

impl Scripts {
    /// Starts the scripts that are new and stops those that are gone.
    pub fn run(&mut self, setups: &[Setup], shared: &Arc<Shared>) {
        let mut running = std::mem::take(&mut self.0);
        for setup in setups {
            for (number, script) in setup.tracked.scripts.iter().enumerate() {
                let key = (setup.name.clone(), number);
                let kept = running.remove(&key).filter(|running| running.script == *script);
                let started = kept.map_or_else(|| start(key.clone(), script.clone(), shared.clone()), Ok);
                match started {
                    Ok(running) => drop(self.0.insert(key, running)),
                    Err(error) => log::error!("{} cannot be run: {error}", script.command.display()),
                }
            }
        }
    }

    /// Stops all scripts.
    pub fn stop(&mut self) {
        self.0.clear();
    }
}

fn start(key: (Arc<str>, usize), script: TrackScript, shared: Arc<Shared>) -> io::Result<Running> {
    let stop = Arc::new(Bell::new()?);
    let running = Running { script: script.clone(), stop: stop.clone() };
    let run = move || repeat(key, &script, &shared, &stop);
    std::thread::Builder::new().name("vrrp-script".into()).spawn(run)?;
    Ok(running)
}

fn repeat((instance, number): (Arc<str>, usize), script: &TrackScript, shared: &Shared, stop: &Bell) {
    let mut reported = String::new();
    loop {
        let began = Instant::now();
        let outcome = program::run(&mut Command::new(&script.command), script.timeout, stop);
        if matches!(outcome, Outcome::Stopped) {
            return;
        }
        let passed = matches!(outcome, Outcome::Succeeded);
        shared.orders.post(ThreadOrder::Fact(Fact::Script { instance: instance.clone(), number, passed }));
        let trouble = trouble(script, &outcome);
        if !trouble.is_empty() && trouble != reported {
            let what = Occurrence::Trouble(Trouble::Script(trouble.clone()));
            shared.events.post(InstanceEvent { instance: instance.clone(), what });
        }
        reported = trouble;
        let rest = script.interval.saturating_sub(began.elapsed());
        if wake::wait(&[stop.as_fd()], Some(rest)).is_ok_and(|ready| ready[0]) {
            return;
        }
    }
}

/// What is wrong with a script that neither passed nor failed; empty: nothing is wrong.
fn trouble(script: &TrackScript, outcome: &Outcome) -> String {
    let name = script.command.display();
    match outcome {
        Outcome::TimedOut => {
            format!("track_script {name} did not end within {:?} and was killed: it fails", script.timeout)
        }
        Outcome::NotStarted(error) => format!("track_script {name} cannot be started: {error}: it fails"),
        Outcome::Succeeded | Outcome::Failed | Outcome::Stopped => String::new(),
    }
}

/// The most calls that wait.
const CALLS: usize = 64;
/// How long a call may take.
const CALL: Duration = Duration::from_secs(10);

struct Call {
    program: PathBuf,
    arguments: [String; 3],
}

/// The thread that calls `notify`, in the order of the changes of state.
pub struct Notify {
    calls: SyncSender<Call>,
    stop: Arc<Bell>,
    ended: Receiver<()>,
}

impl Notify {
    pub fn start() -> io::Result<Notify> {
        let (calls, called) = sync_channel(CALLS);
        let (end, ended) = sync_channel(1);
        let stop = Arc::new(Bell::new()?);
        let stopped = stop.clone();
        let run = move || {
            serve(&called, &stopped);
            // The receiver may be gone.
            _ = end.send(());
        };
        std::thread::Builder::new().name("vrrp-notify".into()).spawn(run)?;
        Ok(Notify { calls, stop, ended })
    }

    /// Queues the calls for changes of state.
    pub fn call(&self, programs: &BTreeMap<Arc<str>, PathBuf>, events: &[InstanceEvent]) {
        for event in events {
            let (Occurrence::Moved { to, priority, .. }, Some(program)) = (&event.what, programs.get(&event.instance))
            else {
                continue;
            };
            let arguments = [event.instance.to_string(), to.to_string(), priority.to_string()];
            if self.calls.try_send(Call { program: program.clone(), arguments }).is_err() {
                log::warn!("notify {} is not called: {CALLS} calls are waiting", program.display());
            }
        }
    }

    /// Makes the calls that are queued, within `time`.
    pub fn finish(self, time: Duration) {
        drop(self.calls);
        // In time or not, the bell ends a program that still runs.
        _ = self.ended.recv_timeout(time);
        self.stop.ring();
    }
}

fn serve(calls: &Receiver<Call>, stop: &Bell) {
    while let Ok(call) = calls.recv() {
        match program::run(Command::new(&call.program).args(&call.arguments), CALL, stop) {
            Outcome::Stopped => return,
            Outcome::Succeeded => {}
            Outcome::Failed => log::warn!("notify {} failed", call.program.display()),
            Outcome::TimedOut => log::warn!("notify {} was killed after {CALL:?}", call.program.display()),
            Outcome::NotStarted(error) => log::warn!("notify {} cannot be started: {error}", call.program.display()),
        }
    }
}
