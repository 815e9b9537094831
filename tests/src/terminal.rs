//! A program in its own terminal: a pseudo-terminal of the kernel, and what its screen would show.

mod html;

use std::{
    fs::File,
    io::{Read, Write},
    num::NonZeroU16,
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{self, Signal},
        termios::{Termios, tcgetattr},
    },
    unistd::Pid,
};

use crate::wait;

/// The terminal and the program. Dropping it kills the program.
pub struct Terminal {
    keys: File,
    /// The program's side. We keep it open, so that its modes can be read after the program has
    /// ended.
    line: OwnedFd,
    screen: Arc<Mutex<vt100::Parser>>,
    written: Arc<AtomicU64>,
    child: Child,
}

impl Terminal {
    /// Starts `command` the way a terminal emulator does: as the leader of a session with this
    /// terminal.
    pub fn start(command: &Command, columns: u16, rows: u16) -> Result<Terminal> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).context("no pseudo-terminal")?;
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        session.env("TERM", "xterm-256color").env("LANG", "C.UTF-8").env_remove("LC_ALL").env_remove("NO_COLOR");
        // Tests look for a panic's message on the screen; a backtrace would push it off.
        session.env_remove("RUST_BACKTRACE");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        let end = || pty.slave.try_clone().map(Stdio::from);
        let child = session.stdin(end()?).stdout(end()?).stderr(end()?).spawn().context("cannot start setsid")?;
        let screen = Arc::new(Mutex::new(vt100::Parser::new(cells(rows)?, cells(columns)?, 0)));
        let (written, keys) = (Arc::new(AtomicU64::new(0)), File::from(pty.master));
        let (from, to, count) = (keys.try_clone()?, Arc::clone(&screen), Arc::clone(&written));
        thread::spawn(move || read(from, &to, &count));
        Ok(Terminal { keys, line: pty.slave, screen, written, child })
    }

    /// What the screen shows.
    pub fn text(&self) -> String {
        self.screen().screen().contents()
    }

    /// What the screen shows, with its colours, as an HTML page.
    pub fn page(&self) -> String {
        html::page(self.screen().screen())
    }

    /// Waits until the screen shows `text`.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<()> {
        let there = || self.text().contains(text).then_some(());
        wait::until(&format!("{text:?} on the screen"), limit, there).map_err(|late| late.context(self.text()))
    }

    /// Presses keys, one after the other.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes()).context("the terminal takes no keys")
    }

    /// Resizes the window; the kernel notifies the program.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.screen().screen_mut().set_size(cells(rows)?, cells(columns)?);
        let mut stty = Command::new("stty");
        stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
        let status = stty.stdin(self.line.try_clone()?).status().context("cannot start stty")?;
        ensure!(status.success(), "stty: {status}");
        Ok(())
    }

    /// How many bytes the program has written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// How the terminal treats keys and output, such as raw mode and echo.
    pub fn modes(&self) -> Result<Termios> {
        tcgetattr(&self.line).context("no modes")
    }

    /// Whether it is back to normal for a shell: the primary screen, and a visible cursor.
    pub fn is_given_back(&self) -> bool {
        let parser = self.screen();
        !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal::kill(Pid::from_raw(i32::try_from(self.id())?), signal).with_context(|| signal.to_string())
    }

    /// Waits until the program ends.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        match wait::until("the end of the program", limit, || self.child.try_wait().transpose()) {
            Ok(ended) => Ok(ended?),
            Err(late) => bail!("{late}\n{}", self.text()),
        }
    }

    fn screen(&self) -> MutexGuard<'_, vt100::Parser> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // By its id. It may have ended.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn cells(count: u16) -> Result<NonZeroU16> {
    NonZeroU16::new(count).context("a terminal without rows or columns")
}

/// Runs until nothing holds the other side.
fn read(mut from: File, screen: &Mutex<vt100::Parser>, written: &AtomicU64) {
    let mut block = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut block) {
        screen.lock().unwrap_or_else(PoisonError::into_inner).process(&block[..count]);
        written.fetch_add(count as u64, Ordering::Relaxed);
    }
}
