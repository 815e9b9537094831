//! What the screen knows and what keys do. Pure: answers, keys and the time come in, and
//! [`Action`]s come out; [`draw`](super::draw) shows the state.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use jiff::Timestamp;

use super::past::{Past, PastCounters, Totals};
use crate::{
    api::types::{Backend, ServiceStatus, Status},
    words::{BackendState, Event},
};

/// How long a notice is shown.
const NOTICE: Duration = Duration::from_secs(8);

/// The daemon's answers at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    pub status: Status,
    /// The latest events, the newest last.
    pub events: Vec<Event>,
}

/// One reading of both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For rates and time limits.
    pub at: Instant,
    /// For display.
    pub time: Timestamp,
}

/// A backend by name, so that it stays selected when others come and go.
pub type Key = (Arc<str>, Arc<str>);

/// A command for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Drain,
    Maint,
    Ready,
}

/// A command for one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub verb: Verb,
    pub service: Arc<str>,
    pub backend: Arc<str>,
}

impl Order {
    /// `drain cp01 of kube-apiserver`
    pub fn text(&self) -> String {
        let verb = match self.verb {
            Verb::Drain => "drain",
            Verb::Maint => "maint",
            Verb::Ready => "ready",
        };
        format!("{verb} {} of {}", self.backend, self.service)
    }
}

/// What the shell must do after a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Nothing,
    Quit,
    /// Ctrl-Z.
    Suspend,
    /// Ctrl-L: write everything again, over the output of other programs.
    Redraw,
    Ask(Order),
    /// A key of the [`Stage`].
    Stage(char),
}

/// The sort order of backends within their service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// As in the configuration.
    #[default]
    File,
    /// The worst state first.
    State,
    Active,
    New,
    Traffic,
    Connect,
    Failures,
}

impl Sort {
    const ALL: [Sort; 7] =
        [Sort::File, Sort::State, Sort::Active, Sort::New, Sort::Traffic, Sort::Connect, Sort::Failures];

    pub fn name(self) -> &'static str {
        match self {
            Sort::File => "configuration order",
            Sort::State => "state",
            Sort::Active => "connections",
            Sort::New => "new connections",
            Sort::Traffic => "traffic",
            Sort::Connect => "connect time",
            Sort::Failures => "failed connects",
        }
    }
}

/// The content of the lower part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Panel {
    #[default]
    Events,
    Counters,
    Vrrp,
}

impl Panel {
    pub const ALL: [Panel; 3] = [Panel::Events, Panel::Counters, Panel::Vrrp];

    pub fn name(self) -> &'static str {
        match self {
            Panel::Events => "events",
            Panel::Counters => "counters",
            Panel::Vrrp => "vrrp",
        }
    }
}

/// What covers the rest of the screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Popup {
    #[default]
    None,
    Help,
    /// `y` carries the command out; every other key cancels it.
    Confirm(Order),
}

/// Additional content with its own keys: the lab's clients and API servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    pub title: String,
    pub lines: Vec<String>,
    /// They take precedence over the screen's own keys.
    pub keys: Vec<char>,
    /// What the keys do.
    pub hint: String,
}

/// The daemon does not answer: since when, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    pub since: Timestamp,
    pub why: String,
}

/// The screen's state.
#[derive(Clone, Debug)]
pub struct State {
    pub seen: Seen,
    /// When the daemon last answered.
    pub heard: Timestamp,
    pub silence: Option<Silence>,
    pub now: Now,
    pub all: Past,
    pasts: BTreeMap<Key, Past>,
    pub counters: PastCounters,
    selected: Option<Key>,
    pub sort: Sort,
    /// Whether the order is reversed.
    pub reversed: bool,
    pub panel: Panel,
    /// Number of lines the panel is scrolled by.
    pub scroll: usize,
    pub popup: Popup,
    notice: Option<(String, Instant)>,
    pub stage: Option<Stage>,
}

impl State {
    pub fn new(seen: Seen, now: Now) -> State {
        let mut state = State {
            seen: seen.clone(),
            heard: now.time,
            silence: None,
            now,
            all: Past::default(),
            pasts: BTreeMap::new(),
            counters: PastCounters::default(),
            selected: None,
            sort: Sort::File,
            reversed: false,
            panel: Panel::Events,
            scroll: 0,
            popup: Popup::None,
            notice: None,
            stage: None,
        };
        state.answered(seen, now);
        state
    }

    /// Takes an answer of the daemon.
    pub fn answered(&mut self, seen: Seen, now: Now) {
        let newer = |event: &&Event| self.seen.events.last().is_none_or(|last| event.number > last.number);
        // A reader of older events keeps seeing the same ones.
        if self.panel == Panel::Events && self.scroll > 0 {
            self.scroll += seen.events.iter().filter(newer).count();
        }
        self.now = now;
        self.heard = now.time;
        self.silence = None;
        let mut all = Totals::default();
        let before = std::mem::take(&mut self.pasts);
        for backend in backends(&seen.status) {
            let totals = Totals::of(backend);
            all = all.plus(totals);
            let mut past = before.get(&key(backend)).cloned().unwrap_or_default();
            past.add(now.at, totals);
            self.pasts.insert(key(backend), past);
        }
        self.all.add(now.at, all);
        self.counters.add(now.at, &seen.status.counters);
        self.seen = seen;
    }

    /// Notes that the daemon did not answer.
    pub fn unanswered(&mut self, why: String, now: Now) {
        self.now = now;
        let since = self.silence.as_ref().map_or(self.heard, |silence| silence.since);
        self.silence = Some(Silence { since, why });
    }

    /// Advances the time.
    pub fn passed(&mut self, now: Now) {
        self.now = now;
    }

    /// Shows a notice for a while.
    pub fn notify(&mut self, text: String) {
        self.notice = Some((text, self.now.at));
    }

    pub fn notice(&self) -> Option<&str> {
        let stands = |at: &Instant| self.now.at.duration_since(*at) < NOTICE;
        self.notice.as_ref().filter(|(_, at)| stands(at)).map(|(text, _)| text.as_str())
    }

    pub fn past(&self, backend: &Backend) -> Option<&Past> {
        self.pasts.get(&key(backend))
    }

    /// A service's backends in the current order.
    pub fn sorted<'a>(&'a self, service: &'a ServiceStatus) -> Vec<&'a Backend> {
        let mut rows: Vec<_> = service.backends.iter().collect();
        rows.sort_by(|a, b| self.order(a, b));
        if self.reversed {
            rows.reverse();
        }
        rows
    }

    fn order(&self, a: &Backend, b: &Backend) -> Ordering {
        let rates = |backend: &Backend| self.past(backend).and_then(|past| past.rates).unwrap_or_default();
        let most = |of: &dyn Fn(&Backend) -> f64| of(b).total_cmp(&of(a));
        match self.sort {
            Sort::File => Ordering::Equal,
            Sort::State => rank(b.state).cmp(&rank(a.state)),
            Sort::Active => b.active.cmp(&a.active),
            Sort::New => most(&|it| rates(it).opened),
            Sort::Traffic => most(&|it| rates(it).bytes_in + rates(it).bytes_out),
            Sort::Connect => most(&|it| it.connect_time_ms.p50.unwrap_or(0.0)),
            Sort::Failures => b.connect_failures.cmp(&a.connect_failures),
        }
    }

    /// The rows of all services from top to bottom.
    fn rows(&self) -> Vec<&Backend> {
        self.seen.status.services.iter().flat_map(|service| self.sorted(service)).collect()
    }

    /// The backend that keys apply to; `None` only if there are no backends.
    pub fn selected(&self) -> Option<&Backend> {
        let rows = self.rows();
        let chosen = rows.iter().find(|row| Some(key(row)) == self.selected).copied();
        chosen.or_else(|| rows.first().copied())
    }

    fn step(&mut self, by: isize) {
        let rows = self.rows();
        let position = self.selected().map(key).and_then(|selected| rows.iter().position(|row| key(row) == selected));
        let position = position.unwrap_or(0).saturating_add_signed(by).min(rows.len().saturating_sub(1));
        self.selected = rows.get(position).map(|row| key(row));
    }

    /// Handles a key.
    pub fn key(&mut self, event: KeyEvent, now: Now) -> Action {
        self.now = now;
        self.notice = None;
        if event.modifiers.contains(KeyModifiers::CONTROL) {
            return match event.code {
                KeyCode::Char('c') => Action::Quit,
                KeyCode::Char('z') => Action::Suspend,
                KeyCode::Char('l') => Action::Redraw,
                _ => Action::Nothing,
            };
        }
        match std::mem::take(&mut self.popup) {
            // Any key closes the help.
            Popup::Help => Action::Nothing,
            Popup::Confirm(order) => self.confirm(order, event.code),
            Popup::None => self.plain(event.code),
        }
    }

    fn confirm(&mut self, order: Order, code: KeyCode) -> Action {
        match code {
            KeyCode::Char('y' | 'Y') => Action::Ask(order),
            _ => {
                self.notify("cancelled: nothing was changed".into());
                Action::Nothing
            }
        }
    }

    fn plain(&mut self, code: KeyCode) -> Action {
        match code {
            KeyCode::Char(letter) if self.has_key(letter) => return Action::Stage(letter),
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.popup = Popup::Help,
            KeyCode::Char('d') => self.propose(Verb::Drain),
            KeyCode::Char('m') => self.propose(Verb::Maint),
            KeyCode::Char('r') => self.propose(Verb::Ready),
            KeyCode::Char('s') => self.sort_by_next(),
            KeyCode::Char('S') => self.reversed = !self.reversed,
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(Panel::ALL.len() - 1),
            KeyCode::PageDown => self.scroll = self.scroll.saturating_add(5).min(self.seen.events.len()),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(5),
            KeyCode::Home => self.scroll = 0,
            _ => {}
        }
        Action::Nothing
    }

    fn has_key(&self, letter: char) -> bool {
        self.stage.as_ref().is_some_and(|stage| stage.keys.contains(&letter))
    }

    fn propose(&mut self, verb: Verb) {
        if self.silence.is_some() {
            return self.notify("the daemon does not answer: nothing was sent".into());
        }
        let Some(backend) = self.selected() else { return };
        let (service, backend) = key(backend);
        self.popup = Popup::Confirm(Order { verb, service, backend });
    }

    fn sort_by_next(&mut self) {
        let position = Sort::ALL.iter().position(|sort| *sort == self.sort).unwrap_or(0);
        self.sort = Sort::ALL[(position + 1) % Sort::ALL.len()];
        self.notify(format!("sorted by {}; S reverses the order", self.sort.name()));
    }

    fn turn(&mut self, by: usize) {
        let position = Panel::ALL.iter().position(|panel| *panel == self.panel).unwrap_or(0);
        self.panel = Panel::ALL[(position + by) % Panel::ALL.len()];
        self.scroll = 0;
    }
}

fn key(backend: &Backend) -> Key {
    (backend.service.clone(), backend.name.clone())
}

fn backends(status: &Status) -> impl Iterator<Item = &Backend> {
    status.services.iter().flat_map(|service| &service.backends)
}

/// The severity of a state.
fn rank(state: BackendState) -> u8 {
    match state {
        BackendState::Up => 0,
        BackendState::SlowStart => 1,
        BackendState::Draining => 2,
        BackendState::Maint => 3,
        BackendState::Probing => 4,
        BackendState::Down => 5,
    }
}
