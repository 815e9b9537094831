//! The terminal: taken over, and always restored.

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

/// Buffer size, so that a frame is written in one piece; most are far smaller.
const FRAME: usize = 32 << 10;

/// The terminal while the screen owns it.
pub struct Screen {
    /// Never dropped: its own drop panics if the terminal has hung up, and [`give_back`] restores
    /// the cursor anyway.
    terminal: ManuallyDrop<Terminal<CrosstermBackend<BufWriter<Stdout>>>>,
}

/// Whether there is a terminal for a screen and keys.
pub fn is_there() -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|kind| kind == "dumb");
    io::stdin().is_terminal() && io::stdout().is_terminal() && !dumb
}

impl Screen {
    pub fn enter() -> io::Result<Screen> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            // A panic message must be readable, so the terminal is restored first.
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

    /// Writes what has changed since the last frame.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// Writes everything with the next frame, because other programs have written to the terminal.
    pub fn forget(&mut self) -> io::Result<()> {
        // Not `clear`, which asks the terminal for the cursor position and waits for the answer.
        let size = size()?;
        self.terminal.resize(if size.is_empty() { UNKNOWN } else { size })
    }

    /// Restores the terminal and stops, like other programs on Ctrl-Z; returns when the shell
    /// continues it.
    pub fn suspend(&mut self) -> io::Result<()> {
        give_back();
        raise(Signal::SIGTSTP)?;
        self.resume()
    }

    /// Takes the terminal over in its current state.
    pub fn resume(&mut self) -> io::Result<()> {
        // Enabling raw mode twice would have no effect, but the shell may have changed the mode.
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

/// The assumed size of a terminal that does not report one, such as a serial console.
const UNKNOWN: Rect = Rect::new(0, 0, 80, 24);

fn size() -> io::Result<Rect> {
    let (width, height) = crossterm::terminal::size()?;
    Ok(Rect::new(0, 0, width, height))
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen).inspect_err(|_| give_back())
}

/// Restores the terminal. Calling it twice is harmless. If the terminal is gone, errors do not
/// matter.
fn give_back() {
    _ = disable_raw_mode();
    let mut out = io::stdout();
    _ = execute!(out, LeaveAlternateScreen, Show);
    _ = out.flush();
}
