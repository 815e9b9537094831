use lb_common::{slot::State, verdict::Reason};

use super::*;
use crate::controller::{
    plan::tests::service,
    tests::{SECOND, START, World},
};

const MS: Duration = Duration::from_millis(1);

/// A service with a limit of 1,000 half-open connections, as it is seen at one moment.
fn seen(wanted: SynCookies, word: u32, half_open: u32) -> Sight {
    Sight { wanted, word, half_open, limit: 1000 }
}

/// Looks once; the word as it is written then.
fn look(cookies: &mut Cookies, word: &mut u32, half_open: u32, now: Instant) -> Turn {
    let turn = cookies.look(7, seen(SynCookies::Auto, *word, half_open), now);
    *word = turn.write.unwrap_or(*word);
    turn
}

#[test]
fn the_limit_is_half_the_ring_or_two_thousand_connections_for_each_backend() {
    assert_eq!((limit(32_768, 3), limit(32_768, 1), limit(32_768, 64)), (6144, 2048, 16_384));
    assert_eq!((limit(1000, 3), limit(1, 3), limit(32_768, 0)), (500, 0, 2048));
}

#[test]
fn they_go_on_above_the_limit_and_off_after_thirty_seconds_below_half_of_it() {
    let (mut cookies, mut word, mut now) = (Cookies::default(), COOKIES_OFF, START);
    let first = look(&mut cookies, &mut word, 0, now);
    assert_eq!((first.told, word), (None, COOKIES_READY));
    assert_eq!(look(&mut cookies, &mut word, 1000, now).write, None, "the limit itself is no flood");
    now += SECOND;
    let on = Standing { on: true, since: now, reason: Some(CookieReason::HalfOpen) };
    assert_eq!(look(&mut cookies, &mut word, 1001, now), Turn { write: Some(COOKIES_ON), told: Some(on) });
    for half_open in [800, 501, 499, 0, 501] {
        now += 20 * SECOND;
        assert_eq!(look(&mut cookies, &mut word, half_open, now), Turn::default(), "{half_open}");
    }
    let calm = now + SECOND;
    for after in 0..30 {
        assert_eq!(look(&mut cookies, &mut word, 500, calm + after * SECOND), Turn::default(), "{after} s");
    }
    now = calm + 30 * SECOND;
    let off = Standing { on: false, since: now, reason: None };
    assert_eq!(look(&mut cookies, &mut word, 500, now), Turn { write: Some(COOKIES_READY), told: Some(off) });
    assert_eq!(cookies.standing(7), Some(off));
}

#[test]
fn what_clients_leave_unanswered_keeps_them_on() {
    let (mut cookies, mut word, mut now) = (Cookies::default(), COOKIES_READY, START);
    look(&mut cookies, &mut word, 1001, now);
    let mut counts = Counts { sent: 77, answered: 70, unanswered: 0 };
    cookies.count(counts, now);
    // 5,000 a second would be 15,000 half-open connections.
    for _ in 0..120 {
        now += SECOND;
        counts.sent += 5050;
        counts.answered += 50;
        assert_eq!(cookies.count(counts, now), None);
        assert_eq!(look(&mut cookies, &mut word, 0, now), Turn::default());
    }
    // Honest clients answer.
    let mut turned_off = None;
    for _ in 0..60 {
        now += SECOND;
        counts.sent += 400;
        counts.answered += 399;
        cookies.count(counts, now);
        turned_off = turned_off.or(look(&mut cookies, &mut word, 0, now).told.map(|_| now));
    }
    assert_eq!(turned_off.map(|at| at - START), Some(151 * SECOND));
}

#[test]
fn what_the_kernel_program_has_turned_on_is_seen_and_turned_off_again() {
    let (mut cookies, mut word) = (Cookies::default(), COOKIES_READY);
    look(&mut cookies, &mut word, 0, START);
    word = COOKIES_ON;
    let on = Standing { on: true, since: START + SECOND, reason: Some(CookieReason::RingFull) };
    assert_eq!(look(&mut cookies, &mut word, 0, START + SECOND), Turn { write: None, told: Some(on) });
    let off = look(&mut cookies, &mut word, 0, START + 31 * SECOND);
    assert_eq!((off.write, off.told.map(|standing| standing.on)), (Some(COOKIES_READY), Some(false)));
}

#[test]
fn a_new_controller_goes_on_with_what_is_on() {
    let (mut cookies, mut word) = (Cookies::default(), COOKIES_ON);
    let kept = Standing { on: true, since: START, reason: Some(CookieReason::Kept) };
    assert_eq!(look(&mut cookies, &mut word, 900, START), Turn { write: None, told: Some(kept) });
    assert_eq!(look(&mut cookies, &mut word, 900, START + SECOND), Turn::default());
}

#[test]
fn the_configuration_has_the_last_word() {
    let mut cookies = Cookies::default();
    let mut look = |wanted, word, half_open, after: u32| {
        let turn = cookies.look(7, seen(wanted, word, half_open), START + after * SECOND);
        (turn.write, turn.told.map(|standing| (standing.on, standing.reason)))
    };
    let config = Some(CookieReason::Config);
    assert_eq!(look(SynCookies::Always, COOKIES_OFF, 0, 0), (Some(COOKIES_ON), Some((true, config))));
    for after in 1..100 {
        assert_eq!(look(SynCookies::Always, COOKIES_ON, 0, after), (None, None));
    }
    // They go on as they are, and nothing is said.
    assert_eq!(look(SynCookies::Auto, COOKIES_ON, 0, 100), (None, None));
    assert_eq!(look(SynCookies::Auto, COOKIES_ON, 0, 130), (Some(COOKIES_READY), Some((false, None))));
    assert_eq!(look(SynCookies::Auto, COOKIES_READY, 1001, 131).0, Some(COOKIES_ON));
    assert_eq!(look(SynCookies::Off, COOKIES_ON, 1001, 132), (Some(COOKIES_OFF), Some((false, config))));
    assert_eq!(look(SynCookies::Off, COOKIES_OFF, 9999, 133), (None, None));
    // The kernel program was faster than the swap.
    assert_eq!(look(SynCookies::Off, COOKIES_ON, 9999, 134).0, Some(COOKIES_OFF));
}

#[test]
fn that_clients_do_not_answer_is_said_once_a_minute() {
    let mut cookies = Cookies::default();
    let mut count =
        |unanswered, after: u32| cookies.count(Counts { unanswered, ..Counts::default() }, START + after * SECOND);
    assert_eq!(count(5, 0), None, "these were before our time");
    assert_eq!((count(5, 1), count(8, 2)), (None, Some(3)));
    assert_eq!((count(9, 3), count(20, 61), count(20, 62)), (None, None, Some(12)));
    assert_eq!((count(20, 300), count(21, 301)), (None, Some(1)));
}

/// A world in which a service has two backends and room for the default number of half-open
/// connections.
fn world() -> World {
    let mut world = World::new(&[1, 2]);
    configure(&mut world, SynCookies::Auto, START);
    world
}

fn configure(world: &mut World, wanted: SynCookies, now: Instant) {
    let mut api = service("api", "10.0.1.100:6443", &[1, 2]);
    api.row.half_open_cells = 32_768;
    api.syn_cookies = wanted;
    world.configure(vec![api], now);
}

/// SYNs that are answered and never confirmed, evenly over a second.
fn flood(world: &mut World, per_second: u32, from: Instant, mut slots: std::ops::Range<u16>) -> Option<Instant> {
    for step in 0..100 {
        let now = from + 10 * step * MS;
        for number in 0..per_second / 100 {
            let Some(slot) = slots.next() else { break };
            world.tables.open((number % 2) as u16, slot, State::Answered, 0, now);
        }
        world.run(now, now + 10 * MS);
        if world.tables.cookies(0) == COOKIES_ON {
            return Some(now + 10 * MS);
        }
    }
    None
}

#[test]
fn a_flood_of_five_thousand_syns_a_second_is_noticed_within_about_a_second() {
    for begins in [0, 1, 130, 260, 390, 510, 640, 770, 900, 990, 999] {
        let mut world = world();
        let start = START + 10 * SECOND + begins * MS;
        world.run(START, start);
        assert_eq!(world.tables.cookies(0), COOKIES_READY);
        let first = flood(&mut world, 5000, start, 0..5000);
        let noticed = first.or_else(|| flood(&mut world, 5000, start + SECOND, 5000..10_000));
        let took = noticed.expect("it is noticed") - start;
        // 4,096 are there after 0.82 s.
        assert!(took <= 1150 * MS, "begun {begins} ms after a look: {took:?}");
        let said = world.notes.iter().find(|note| note.contains("cookies")).expect("an event");
        assert!(said.starts_with("service api sends SYN cookies: ") && said.ends_with(", more than 4096"), "{said}");
    }
}

#[test]
fn a_reload_changes_what_is_wanted_and_leaves_the_kernels_word_alone() {
    let mut world = world();
    world.tables.swap_cookies(0, COOKIES_READY, COOKIES_ON);
    configure(&mut world, SynCookies::Auto, START + SECOND);
    assert_eq!(world.tables.cookies(0), COOKIES_ON, "the kernel program has turned them on");
    configure(&mut world, SynCookies::Off, START + 2 * SECOND);
    assert_eq!(world.tables.cookies(0), COOKIES_OFF);
    configure(&mut world, SynCookies::Always, START + 3 * SECOND);
    assert_eq!(world.tables.cookies(0), COOKIES_ON);
    let end = START + 60 * SECOND;
    world.run(START + 3 * SECOND, end);
    assert_eq!(world.tables.cookies(0), COOKIES_ON);
    // A new process with another file.
    configure(&mut world, SynCookies::Auto, end);
    world.restart(end);
    assert_eq!(world.controller.cookies(0).and_then(|standing| standing.reason), Some(CookieReason::Kept));
    world.run(end, end + 29 * SECOND);
    assert_eq!(world.tables.cookies(0), COOKIES_ON);
    world.run(end + 29 * SECOND, end + 32 * SECOND);
    assert_eq!(world.tables.cookies(0), COOKIES_READY);
}

#[test]
fn that_clients_do_not_answer_names_the_key_that_exempts_them() {
    assert!(unanswered(3).starts_with("3 SYN(s) came again") && unanswered(3).contains("syn_cookies_exempt"));
    assert!(Reason::CookieUnanswered.meaning().contains("syn_cookies_exempt"));
}
