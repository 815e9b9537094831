use jiff::tz::TimeZone;
use ratatui::{Terminal, backend::TestBackend, style::Color};

use super::{Look, draw};
use crate::{
    top::{
        state::{Stage, State},
        tests::{Clock, backend, event, instance, press, seen, sync},
    },
    words::{BackendState, EventLevel},
};

fn look() -> Look {
    Look { colour: true, unicode: true, zone: TimeZone::UTC }
}

fn drawn(state: &State, look: &Look, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state, look)).unwrap();
    terminal
}

fn text_with(state: &State, look: &Look, width: u16, height: u16) -> String {
    let terminal = drawn(state, look, width, height);
    let cells = terminal.backend().buffer().content().chunks(usize::from(width).max(1));
    let line = |row: &[ratatui::buffer::Cell]| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>();
    cells.map(|row| line(row).trim_end().to_owned() + "\n").collect()
}

fn text(state: &State, width: u16, height: u16) -> String {
    text_with(state, &look(), width, height)
}

fn holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

/// After two looks, a second apart: 21 new connections in it.
fn busy(clock: &Clock) -> State {
    let mut state = State::new(seen(), clock.at(0));
    let mut next = seen();
    next.status.vrrp = vec![instance()];
    let first = &mut next.status.services[0].backends[0];
    (first.total, first.bytes_in, first.bytes_out) = (first.total + 21, (1 << 20) + 2048, (1 << 30) + (3 << 20));
    next.status.counters.insert("refused".into(), 12);
    state.answered(next, clock.at(1));
    state
}

#[test]
fn eighty_by_twenty_four_has_everything_that_matters() {
    let clock = Clock::new();
    let state = busy(&clock);
    let shown = text(&state, 80, 24);
    let wanted = "\
evenkeel 0.1.0  up 1d2h  configuration 4 of 2026-11-24 10:00:00    live 12:00:01
open 2004/67584  new 21/s  failed 0/s  in 2.00 KiB/s  out 3.00 MiB/s
  BACKEND STATE                   ACTIVE         NEW/s     IN/s    OUT/s CONNECT
── kube-apiserver 10.0.1.100:6443, 1 of 3 up, least_conn, tc on eth0 ───────────
> cp01    up 2m6s                   1004 ██████     21 2.00 KiB 3.00 MiB  0.25ms
  cp02    down refused 2m6s            0             0      0 B      0 B  0.25ms
  cp03    draining admin 2m6s       1000 ██████      0      0 B      0 B  0.25ms
cp01 10.0.1.11:6443, weight 1, up, since 11:57:55
2025 total, 0 failed, 0 reset, p99 1.50ms, 1.00 MiB in, 1.00 GiB out, 0 half-op…
vrrp VI_1 MASTER for 1h, priority 90 of 150, 10.0.1.100/24: no advert was heard
── [events] counters vrrp ──────────────────────────────────────────────────────
11:57:55 warn cp02 is out for 2.0 s: refused (3 failures)
11:57:55 evenkeel 0.1.0 is ready
";
    assert!(shown.starts_with(wanted), "{shown}");
    assert!(shown.trim_end().ends_with("q quit  ? help  d drain  m maint  r ready  s sort  Tab panel  arrows select"));
}

#[test]
fn forty_by_ten_still_says_who_is_up_and_how_busy() {
    let clock = Clock::new();
    let shown = text(&busy(&clock), 40, 10);
    holds(
        &shown,
        &["live 12:00:01", "> cp01    up 2m6s", "cp02    down refused", "cp03    draining admin", "1004", "q quit"],
    );
    assert!(shown.lines().all(|line| line.chars().count() <= 40), "{shown}");
}

#[test]
fn a_wide_terminal_has_addresses_curves_and_the_counters_beside_the_events() {
    let clock = Clock::new();
    let mut state = busy(&clock);
    let shown = text(&state, 160, 50);
    holds(&shown, &["ADDRESS", "10.0.1.12:6443", "P99", "1.50ms", "FAILS", "RESETS", "TOTAL", "2 MIN", "half-open 2"]);
    holds(
        &shown,
        &["[events] counters vrrp", "── counters ─", "refused", "+5", "██████", "▁█", "cp02 is out for 2.0 s"],
    );
    press(&mut state, clock.at(1), "\t");
    holds(&text(&state, 160, 50), &["events [counters] vrrp", "── events ─"]);
    press(&mut state, clock.at(1), "\t");
    holds(&text(&state, 160, 50), &["priority -60: no backend is up", "heard 10.0.1.2 with priority 100", "3600 sent"]);
}

#[test]
fn flow_sync_has_a_line_a_peer_and_its_counts_beside_vrrp() {
    let clock = Clock::new();
    let mut state = busy(&clock);
    state.seen.status.sync = Some(sync());
    let shown = text(&state, 80, 24);
    holds(
        &shown,
        &["vrrp VI_1 MASTER", "sync 10.0.1.2:9644 synced, heard 12ms ago, 20 ms behind, 3 waiting, 0 lost, 2"],
    );
    press(&mut state, clock.at(1), "\t\t");
    holds(&text(&state, 160, 50), &["connections: 3000 sent, 7 received; full copies: 2 sent", "4 datagrams refused"]);
    state.seen.status.vrrp.clear();
    state.seen.status.sync.as_mut().unwrap().error = Some("10.0.1.1:9644 cannot be bound".into());
    holds(&text(&state, 80, 24), &["sync: 10.0.1.1:9644 cannot be bound", "full copies"]);
    state.seen.status.sync = None;
    holds(&text(&state, 80, 24), &["neither [[vrrp]] nor [sync]"]);
}

#[test]
fn a_daemon_that_is_silent_is_told_with_what_was_known_last() {
    let clock = Clock::new();
    let mut state = busy(&clock);
    state.unanswered("the daemon cannot be reached at /run/x: refused\nIs it running?".into(), clock.at(20));
    let shown = text(&state, 80, 24);
    holds(
        &shown,
        &["no answer since 12:00:01 (19s)", "cannot be reached at /run/x: refused; retrying", "> cp01", "1004"],
    );
    assert!(!shown.contains("live"), "{shown}");
    holds(&text(&state, 40, 10), &["no answer since 12:00:01", "cp03"]);
}

#[test]
fn the_question_says_what_it_is_about() {
    let clock = Clock::new();
    let mut state = busy(&clock);
    for (key, told) in
        [("d", "Drain cp01 of kube-apiserver?"), ("m", "Maintenance for cp01"), ("r", "Make ready: cp01")]
    {
        press(&mut state, clock.at(1), key);
        for (width, height) in [(80, 24), (40, 10), (160, 50)] {
            holds(&text(&state, width, height), &[told, "1004 open", "y: yes"]);
        }
        press(&mut state, clock.at(1), "n");
    }
    holds(&text(&state, 80, 24), &["cancelled: nothing was changed"]);
    press(&mut state, clock.at(1), "?");
    holds(&text(&state, 80, 24), &["select a backend", "Ctrl-Z: suspend", "last two minutes."]);
}

#[test]
fn without_colour_nothing_is_coloured_and_without_unicode_all_is_ascii() {
    let clock = Clock::new();
    let mut state = busy(&clock);
    let plain = Look { colour: false, unicode: false, zone: TimeZone::UTC };
    for keys in ["", "?", "nd"] {
        press(&mut state, clock.at(1), keys);
        let terminal = drawn(&state, &plain, 160, 50);
        let cells = terminal.backend().buffer().content();
        assert!(cells.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
        assert!(cells.iter().all(|cell| cell.symbol().is_ascii()), "{}", text_with(&state, &plain, 160, 50));
    }
    // And what colour says is also there in words.
    holds(&text_with(&state, &plain, 160, 50), &["down refused", "MASTER", "warn", "live"]);
    let coloured = drawn(&state, &look(), 160, 50);
    assert!(coloured.backend().buffer().content().iter().any(|cell| cell.fg == Color::Red));
}

#[test]
fn the_selected_backend_is_in_sight_however_many_there_are() {
    let clock = Clock::new();
    let mut many = seen();
    many.status.services[0].backends = (0..200).map(|n| backend(&format!("cp{n:03}"), n)).collect();
    let mut state = State::new(many, clock.at(0));
    for (steps, name) in [(0, "> cp000"), (120, "> cp120"), (200, "> cp199")] {
        press(&mut state, clock.at(0), &"↓".repeat(steps));
        for (width, height) in [(80, 24), (40, 10), (160, 50)] {
            holds(&text(&state, width, height), &[name, "BACKEND", "q quit"]);
        }
        holds(&text(&state, 80, 24), &["[events]", "evenkeel 0.1.0 is ready"]);
    }
}

#[test]
fn every_size_can_be_drawn_whatever_is_on_the_screen() {
    let clock = Clock::new();
    let mut state = busy(&clock);
    state.stage = Some(stage());
    state.unanswered("gone".into(), clock.at(2));
    state.seen.status.services[0].backends[1].state = BackendState::SlowStart;
    state.seen.events.push(event(9, EventLevel::Error, "一行の長い文字列\u{1b}[31m\nof two lines"));
    for keys in ["", "?", "\t", "\t", "s"] {
        press(&mut state, clock.at(2), keys);
        for width in [0, 1, 2, 29, 30, 31, 40, 59, 60, 80, 119, 120, 150, 300] {
            for height in (0..26).chain([100]) {
                let shown = text(&state, width, height);
                assert!(!shown.contains('\u{1b}'), "{width}x{height}");
            }
        }
    }
}

fn stage() -> Stage {
    Stage {
        title: "clients".into(),
        lines: vec!["30 watches held".into()],
        keys: vec!['k'],
        hint: "k1 kill cp01".into(),
    }
}

#[test]
fn a_companion_has_its_lines_and_its_keys() {
    let clock = Clock::new();
    let mut state = busy(&clock);
    state.stage = Some(stage());
    let shown = text(&state, 80, 24);
    holds(&shown, &["── clients ──", "30 watches held", "q quit  ? help  k1 kill cp01  d drain"]);
}
