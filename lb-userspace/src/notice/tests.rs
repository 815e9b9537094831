use std::sync::Arc;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use log::Level;

use super::{History, KEPT, Kind, Notice, Subject};
use crate::words::EventLevel;

fn tell(history: &History, text: &str) {
    history.tell(Notice::daemon(Level::Info, Kind::Lifecycle, text), Timestamp::UNIX_EPOCH);
}

fn numbers(history: &History, after: u64) -> Vec<u64> {
    history.after(after).iter().map(|event| event.number).collect()
}

#[test]
fn a_notice_reads_as_a_sentence_in_the_log() {
    let about = |subject| Notice { level: Level::Warn, kind: Kind::Health, subject, text: "is up".into() }.to_string();
    let name: Arc<str> = "x".into();
    assert_eq!(about(Subject::Daemon), "is up");
    assert_eq!(about(Subject::Service(name.clone())), "service x is up");
    assert_eq!(about(Subject::Instance(name.clone())), "VRRP instance x is up");
    assert_eq!(Notice::health(Level::Info, &"s".into(), &name, "is up").to_string(), "backend x of service s is up");
}

#[test]
fn a_reader_gets_what_it_has_not_seen_and_the_oldest_give_way() {
    let history = History::default();
    assert_eq!(numbers(&history, 0), [] as [u64; 0]);
    for number in 0..KEPT + 2 {
        tell(&history, &number.to_string());
    }
    let all = numbers(&history, 0);
    assert_eq!((all.len(), all.first(), all.last()), (KEPT, Some(&3), Some(&(KEPT as u64 + 2))));
    assert_eq!(numbers(&history, KEPT as u64), [KEPT as u64 + 1, KEPT as u64 + 2]);
    assert_eq!(numbers(&history, u64::MAX), [] as [u64; 0]);
}

#[test]
fn an_event_says_whom_it_is_about_and_a_long_text_is_cut_between_characters() {
    let history = History::default();
    history.tell(Notice::health(Level::Warn, &"s".into(), &"cp01".into(), "é".repeat(600)), Timestamp::UNIX_EPOCH);
    let event = &history.after(0)[0];
    assert_eq!(
        (event.service.as_deref(), event.backend.as_deref(), event.instance.as_deref()),
        (Some("s"), Some("cp01"), None)
    );
    assert_eq!((event.level, event.kind, event.text.len()), (EventLevel::Warn, Kind::Health, 1000));
}

#[test]
fn whoever_waits_is_woken_by_the_next_one_and_by_the_end() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let history = History::default();
        tell(&history, "one");
        assert_eq!(history.wait(0).await.map(|events| events.len()), Some(1), "there is one already");
        let mut waiting = std::pin::pin!(history.wait(1));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        tell(&history, "two");
        assert_eq!(waiting.await.map(|events| events[0].text.clone()).as_deref(), Some("two"));
        tell(&history, "three");
        history.close();
        tell(&history, "four");
        assert_eq!(history.wait(2).await.map(|events| events.len()), Some(2), "what was said before the end is read");
        assert_eq!(history.wait(4).await, None);
        history.reopen();
        let mut waiting = std::pin::pin!(history.wait(4));
        assert_eq!(waiting.as_mut().now_or_never(), None, "it goes on after all");
        tell(&history, "five");
        assert_eq!(waiting.await.map(|events| events[0].number), Some(5));
    });
}
