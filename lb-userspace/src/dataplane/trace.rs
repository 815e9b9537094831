//! Asking the attached program what it would do with a SYN, without leaving a trace of it
//! (`lb-ebpf/src/trace.rs`).
//!
//! The question is written to TRACE, the SYN goes through the program that is attached to the
//! interface, in a test run, and the program answers in TRACE instead of opening a connection. Only
//! the daemon's loop asks questions, one at a time.

use std::{mem::offset_of, net::SocketAddr, sync::atomic::Ordering};

use anyhow::{Context, Result, bail};
use lb_common::{
    flow::{Key, SlotAt},
    layout::{TRACE_ASKED, TRACE_KNOWN, TRACE_OPENS, TRACE_TURNED_AWAY, Trace},
    verdict::Reason,
};

use super::Dataplane;
use crate::{sys::random, tables::frames};

/// What the program would do with a SYN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It belongs to this open flow.
    Known {
        /// Its slot.
        at: SlotAt,
        /// The slot's generation.
        generation: u32,
    },
    /// It would open a connection.
    Opens {
        /// The slot, and so the SNAT port.
        at: SlotAt,
        /// Position of the backend in the service's list.
        position: u32,
        /// One of `schedule::{CHOSEN_UP, CHOSEN_BACKUP, CHOSEN_FAIL_OPEN, CHOSEN_TRIAL}`.
        how: u32,
        /// The rule that lets it in, by its position in the list; `None` if no rule matches this
        /// client.
        rule: Option<usize>,
        /// The frame that would be sent to the backend.
        frame: Vec<u8>,
    },
    /// It would be left to this host.
    NotOurs,
    /// It would be answered with a RST.
    TurnedAway {
        /// Why.
        reason: Reason,
        /// The rule that decides, as above.
        rule: Option<usize>,
    },
}

impl Dataplane {
    /// Asks about a SYN of `client` to a listener, as if it came in by an interface with the
    /// program on it.
    pub fn foretell(&self, ifindex: u32, client: SocketAddr, listener: u16) -> Result<Answer> {
        let record = self.tables.listener(listener);
        let attached = self.attached.get(&ifindex).with_context(|| format!("no program on interface {ifindex}"))?;
        let initial = random::word().context("no random number")? as u32;
        let frame = frames::first_syn(client, &record, attached.mac, initial)
            .with_context(|| format!("{client}: the datapath has no IPv6 yet"))?;
        let SocketAddr::V4(of) = client else { bail!("{client}: the datapath has no IPv6 yet") };
        let key = Key::of(of, listener);
        let question = Trace { key, question: TRACE_ASKED | u64::from(initial), ..Trace::default() };
        self.trace.publish(0, &question, offset_of!(Trace, question));
        let run = self.inject(ifindex, &frame);
        let answer = self.trace.read(0);
        self.trace.word64(0, offset_of!(Trace, question)).store(0, Ordering::Release);
        understood(&answer, run?.frame)
    }
}

fn understood(answer: &Trace, frame: Vec<u8>) -> Result<Answer> {
    let at = answer.at;
    let rule = (answer.rule != 0).then_some((answer.rule >> 8) as usize);
    Ok(match answer.answer {
        TRACE_KNOWN => Answer::Known { at, generation: answer.generation },
        TRACE_OPENS => Answer::Opens { at, position: answer.chosen.position(), how: answer.chosen.how(), rule, frame },
        TRACE_TURNED_AWAY => match u8::try_from(answer.reason).ok().and_then(Reason::from_number) {
            Some(reason) => Answer::TurnedAway { reason, rule },
            None => bail!("the program answers with an unknown reason, {}", answer.reason),
        },
        0 => Answer::NotOurs,
        other => bail!("the program answers with an unknown number, {other}"),
    })
}

#[cfg(test)]
mod tests {
    use lb_common::flow::{Chosen, SlotAt};

    use super::*;

    #[test]
    fn every_answer_is_understood_and_none_is_no_answer() {
        let answer = Trace {
            at: SlotAt::new(3, 7),
            generation: 9,
            rule: 2 << 8 | 1,
            chosen: Chosen::new(5, 3),
            ..Trace::default()
        };
        let of = |kind, reason| understood(&Trace { answer: kind, reason, ..answer }, vec![1]);
        assert_eq!(of(TRACE_KNOWN, 0).unwrap(), Answer::Known { at: SlotAt::new(3, 7), generation: 9 });
        let opens = Answer::Opens { at: SlotAt::new(3, 7), position: 5, how: 3, rule: Some(2), frame: vec![1] };
        assert_eq!(of(TRACE_OPENS, 0).unwrap(), opens);
        let denied = Answer::TurnedAway { reason: Reason::Denied, rule: Some(2) };
        assert_eq!(of(TRACE_TURNED_AWAY, Reason::Denied as u32).unwrap(), denied);
        assert_eq!(of(0, 0).unwrap(), Answer::NotOurs);
        assert!(of(TRACE_TURNED_AWAY, 127).is_err() && of(TRACE_TURNED_AWAY, 300).is_err() && of(9, 0).is_err());
    }

    #[test]
    fn the_first_rule_is_told_from_none() {
        let of = |rule| understood(&Trace { answer: TRACE_TURNED_AWAY, reason: 10, rule, ..Trace::default() }, vec![]);
        let no_backend = |rule| Answer::TurnedAway { reason: Reason::NoBackend, rule };
        assert_eq!((of(1).unwrap(), of(0).unwrap()), (no_backend(Some(0)), no_backend(None)));
    }
}
