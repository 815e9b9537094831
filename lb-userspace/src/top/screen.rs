//! The terminal: taken, and given back as it was, whatever happens.

use std::{
    io::{self, BufWriter, IsTerminal, Stdout, Write},
    mem::ManuallyDrop,
    panic,
    sync::Once,
};

use crossterm::{
    cursor::Show,
    execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use nix::sys::signal::{Signal, raise};
use ratatui::{Frame, Terminal, TerminalOptions, Viewport, backend::CrosstermBackend, layout::Rect};

/// A frame goes out in one piece: most are far smaller.
const FRAME: usize = 32 << 10;

/// The terminal while it is ours.
pub struct Screen {
    /// Never dropped: its own way of giving the cursor back panics where the terminal has hung up, and [`give_back`] does
    /// that.
    terminal: ManuallyDrop<Terminal<CrosstermBackend<BufWriter<Stdout>>>>,
}

/// Whether there is a terminal that a screen can be drawn on and keys come from.
pub fn is_there() -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|kind| kind == "dumb");
    io::stdin().is_terminal() && io::stdout().is_terminal() && !dumb
}

impl Screen {
    pub fn enter() -> io::Result<Screen> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            // What a panic says is to be read: on the terminal as it was.
            panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        let viewport = if size()?.is_empty() { Viewport::Fixed(UNKNOWN) } else { Viewport::Fullscreen };
        take()?;
        let backend = CrosstermBackend::new(BufWriter::with_capacity(FRAME, io::stdout()));
        let terminal = Terminal::with_options(backend, TerminalOptions { viewport });
        let terminal = terminal.map(ManuallyDrop::new).inspect_err(|_| give_back())?;
        Ok(Screen { terminal })
    }

    /// Writes what has changed since the last time.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// The next time everything is written: others have written there.
    pub fn forget(&mut self) -> io::Result<()> {
        // Not `clear`, which asks the terminal where its cursor is and waits for the answer.
        let size = size()?;
        self.terminal.resize(if size.is_empty() { UNKNOWN } else { size })
    }

    /// Gives the terminal back and stops, as Ctrl-Z does with other programs; returns when the shell says to go on.
    pub fn suspend(&mut self) -> io::Result<()> {
        give_back();
        raise(Signal::SIGTSTP)?;
        self.resume()
    }

    /// Takes the terminal as it is now.
    pub fn resume(&mut self) -> io::Result<()> {
        // Raw mode that is on already would be left as it is, and the shell may have changed it.
        give_back();
        take()?;
        self.forget()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// What a terminal is taken for that does not say how large it is, as serial consoles do not.
const UNKNOWN: Rect = Rect::new(0, 0, 80, 24);

fn size() -> io::Result<Rect> {
    let (width, height) = crossterm::terminal::size()?;
    Ok(Rect::new(0, 0, width, height))
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen).inspect_err(|_| give_back())
}

/// Does no harm twice. Where the terminal is gone nobody is left to be told.
fn give_back() {
    _ = disable_raw_mode();
    let mut out = io::stdout();
    _ = execute!(out, LeaveAlternateScreen, Show);
    _ = out.flush();
}
