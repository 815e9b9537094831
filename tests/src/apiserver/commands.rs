//! Commands for a running stand-in, one per line; it answers each with one line:
//!
//! | command | |
//! |---|---|
//! | `readyz STATUS` | `/readyz` answers with this status from then on |
//! | `hang on` / `hang off` | new connections are accepted, but never answered; open ones are not affected |
//! | `listen off` | the listener is closed; connections go on, as while a server shuts down gracefully |
//! | `ended` | counts how plain connections have ended, as JSON: `fin`, `reset`, or another error's kind |

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::Notify,
};

use super::Server;

/// What it does at the moment.
pub struct Mood {
    readyz: AtomicU16,
    hangs: AtomicBool,
    /// Wakes whoever accepts connections: it is to end.
    pub deaf: Notify,
    ended: Mutex<BTreeMap<String, u64>>,
}

impl Default for Mood {
    fn default() -> Self {
        Self {
            readyz: AtomicU16::new(200),
            hangs: AtomicBool::new(false),
            deaf: Notify::new(),
            ended: Mutex::default(),
        }
    }
}

impl Mood {
    pub fn readyz(&self) -> u16 {
        self.readyz.load(Ordering::Relaxed)
    }

    pub fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Relaxed)
    }

    /// Counts the end of a plain connection.
    pub fn ended(&self, how: &io::Result<()>) {
        let how = match how {
            Ok(()) => "fin".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => "reset".to_owned(),
            Err(error) => error.kind().to_string(),
        };
        *self.ended.lock().expect("nobody panics while holding it").entry(how).or_default() += 1;
    }

    fn obey(&self, line: &str) -> String {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["readyz", status] => match status.parse() {
                Ok(status) => self.readyz.store(status, Ordering::Relaxed),
                Err(error) => return format!("{status}: {error}"),
            },
            ["hang", how @ ("on" | "off")] => self.hangs.store(how == "on", Ordering::Relaxed),
            ["listen", "off"] => self.deaf.notify_one(),
            ["ended"] => {
                let ended = self.ended.lock().expect("nobody panics while holding it");
                return serde_json::to_string(&*ended).unwrap_or_else(|error| error.to_string());
            }
            _ => return format!("unknown command: {line}"),
        }
        "done".to_owned()
    }
}

/// Reads until standard input ends. The server goes on without it.
pub async fn obey(server: Arc<Server>) {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        println!("{}", server.mood.obey(&line));
    }
}
