//! A real browser on a host of the lab: headless Chromium, driven by its debugging protocol (CDP)
//! over two pipes.

use std::{
    io::{BufRead, Write},
    path::Path,
    process::{ChildStdin, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{Host, Process, wait};

/// A browser on a busy machine is slow.
const ANSWER: Duration = Duration::from_secs(60);
/// Chromium reads and writes file descriptors 3 and 4; a shell makes them from its standard input
/// and output.
const START: &str = r#"exec chromium "$@" 3<&0 4>&1 0</dev/null 1>/dev/null"#;
/// Chromium must not call home, and for root it has no sandbox.
const OPTIONS: [&str; 13] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
];

/// A browser with one page. Dropping it ends the browser.
pub struct Browser {
    _process: Process,
    to: ChildStdin,
    /// The browser's messages, in order.
    from: Receiver<Value>,
    session: Option<String>,
    sent: u64,
}

/// The size of the window in CSS pixels.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub width: u32,
    pub height: u32,
    /// Whether it has touch input and obeys the page's own viewport.
    pub is_phone: bool,
}

pub const DESKTOP: Window = Window { width: 1320, height: 900, is_phone: false };
pub const PHONE: Window = Window { width: 390, height: 844, is_phone: true };

impl Browser {
    /// Starts it on `host` with an empty profile.
    pub fn start(host: &Host, name: &str) -> Result<Browser> {
        let profile = host.folder().join(name);
        let mut command = host.command("sh");
        command.args(["-c", START, "chromium"]).args(OPTIONS);
        command.arg(format!("--user-data-dir={}", profile.display())).env("HOME", host.folder()).stderr(Stdio::null());
        let (process, talk) = Process::start_talking(name, &mut command, &host.log(name))?;
        let (to, mut pipe) = talk.into_pipes();
        let (said, from) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            // Each message ends with a zero byte. The thread ends with the browser.
            while pipe.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                let text = message.strip_suffix(b"\0").unwrap_or(&message);
                let Ok(value) = serde_json::from_slice(text) else { return };
                if said.send(value).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let mut browser = Browser { _process: process, to, from, session: None, sent: 0 };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", attach)?;
        browser.session = Some(session["sessionId"].as_str().context("no session")?.to_owned());
        browser.ask("Page.enable", json!({}))?;
        Ok(browser)
    }

    pub fn resize(&mut self, window: Window) -> Result<()> {
        let scale = if window.is_phone { 2 } else { 1 };
        let metrics = json!({ "width": window.width, "height": window.height, "deviceScaleFactor": scale, "mobile": window.is_phone });
        self.ask("Emulation.setDeviceMetricsOverride", metrics).map(drop)
    }

    /// Sets the colour scheme that the system prefers: `light` or `dark`.
    pub fn prefer(&mut self, scheme: &str) -> Result<()> {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.ask("Emulation.setEmulatedMedia", features).map(drop)
    }

    pub fn scripts(&mut self, run: bool) -> Result<()> {
        self.ask("Emulation.setScriptExecutionDisabled", json!({ "value": !run })).map(drop)
    }

    pub fn open(&mut self, url: &str) -> Result<()> {
        let opened = self.ask("Page.navigate", json!({ "url": url }))?;
        match opened["errorText"].as_str() {
            Some(error) => bail!("{url}: {error}"),
            None => Ok(()),
        }
    }

    /// Shows a page given as HTML instead of an address.
    pub fn show(&mut self, page: &str) -> Result<()> {
        self.open("about:blank")?;
        self.value(&format!("document.documentElement.innerHTML = {}; 0", json!(page))).map(drop)
    }

    /// The value of a JavaScript expression that runs in the page.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let ask = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.ask("Runtime.evaluate", ask)?;
        if let Some(error) = answer.get("exceptionDetails") {
            bail!("{expression}: {error}");
        }
        Ok(answer["result"]["value"].take())
    }

    /// Waits until an expression is true.
    pub fn wait_for(&mut self, expression: &str, limit: Duration) -> Result<()> {
        let is_true = || self.value(expression).ok().filter(|value| *value == Value::Bool(true));
        wait::until(expression, limit, is_true).map(drop)
    }

    /// Writes a picture of the window, as a PNG.
    pub fn picture(&mut self, file: &Path) -> Result<()> {
        let taken = self.ask("Page.captureScreenshot", json!({ "format": "png" }))?;
        let png = taken["data"].as_str().context("no picture")?;
        std::fs::write(file, BASE64_STANDARD.decode(png)?).with_context(|| file.display().to_string())
    }

    /// Sends a command of the protocol and returns its answer; skips events in between.
    fn ask(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(format!("{message}\0").as_bytes()).context("the browser has ended")?;
        loop {
            let answer = self.from.recv_timeout(ANSWER);
            let mut answer = answer.with_context(|| format!("the browser does not answer {method}"))?;
            if answer["id"] != self.sent {
                continue;
            }
            if let Some(error) = answer.get("error") {
                bail!("{method}: {error}");
            }
            return Ok(answer["result"].take());
        }
    }
}
