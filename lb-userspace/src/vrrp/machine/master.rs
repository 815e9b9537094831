//! MASTER (section 6.4.3): advertise, tell the segment where the addresses are, and know when to
//! give way.

use std::time::Duration;

use lb_common::time::Instant;

use super::{Candidate, Contention, DOWN_INTERVALS, OWNER, Output, RESIGN, Settings};
use crate::vrrp::receive::Heard;

/// The advertisements that the owner with the higher address sends before it checks whether the
/// other owner has given in (keepalived).
const OWNER_ADVERTS: u32 = 2;
/// The shortest time between two answers to lower MASTERs.
const ANSWER_PAUSE: Duration = Duration::from_millis(10);
/// The shortest time between two announcements because of a lower MASTER.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(100);
/// The shortest time between two announcements because another host claims an address.
const CLAIM_PAUSE: Duration = Duration::from_secs(1);

/// The phase MASTER.
#[derive(Clone, Debug)]
pub struct Master {
    since: Instant,
    /// How long the peers wait for the next advertisement.
    pub lease: Instant,
    /// An advertisement has left.
    pub has_spoken: bool,
    /// Adver_Timer.
    pub advertise_at: Instant,
    /// `garp_delay` after the start.
    delayed_at: Option<Instant>,
    /// Every `garp_refresh`.
    refresh_at: Option<Instant>,
    /// When a lower MASTER that has heard our answer is silent.
    again_at: Option<Instant>,
    /// When a lower MASTER counts as gone: as a BACKUP counts.
    healed_at: Option<Instant>,
    pub spoken: Spoken,
    /// Another host has claimed one of our addresses.
    disputed: bool,
    contest: Option<Contest>,
}

/// Limits what is said because of other routers. It outlives the mastership: routers that take the
/// addresses from each other again and again cause no storm either.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spoken {
    /// When the addresses were last announced to the segment.
    announced: Instant,
    /// When a lower MASTER was last answered.
    answered: Instant,
}

/// Two owners: the one with the higher address checks whether the other gives in.
#[derive(Clone, Copy, Debug)]
struct Contest {
    sent: u32,
    over: Instant,
}

/// What an advertisement means for the mastership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Stay,
    /// Its sender ranks higher.
    GiveWay,
    /// Its sender owns the addresses as well, and keeps them.
    GiveIn,
}

impl Master {
    pub fn new(settings: &Settings, spoken: Spoken, now: Instant) -> Master {
        let mut master = Master {
            since: now,
            lease: now + settings.lease(),
            has_spoken: false,
            advertise_at: now,
            delayed_at: None,
            refresh_at: None,
            again_at: None,
            healed_at: None,
            spoken,
            disputed: false,
            contest: None,
        };
        master.configure(settings, now);
        master
    }

    /// Starts the timers of these settings from `now`.
    pub fn configure(&mut self, settings: &Settings, now: Instant) {
        let after = |pause: Duration| (!pause.is_zero()).then(|| now + pause);
        self.advertise_at = now + settings.interval;
        self.delayed_at = after(settings.garp_delay);
        self.refresh_at = after(settings.garp_refresh);
    }

    pub fn deadline(&self) -> Instant {
        let contest = self.contest.map(|contest| contest.over);
        let timers = [self.delayed_at, self.refresh_at, self.again_at, self.healed_at, contest];
        timers.into_iter().flatten().fold(self.lease.min(self.advertise_at), Instant::min)
    }

    /// Section 6.4.3: "If an ADVERTISEMENT is received".
    pub fn heard(&mut self, heard: Heard, candidate: &Candidate, now: Instant, out: &mut Vec<Output>) -> Verdict {
        let ours = candidate.priority();
        if heard.priority == RESIGN {
            // "Send an ADVERTISEMENT", "Reset the Adver_Timer to Advertisement_Interval". Who resigns
            // contends for nothing: it was MASTER until it heard us. The hosts that listened to it
            // must learn where the addresses are, and the operator that a dispute is over.
            self.advertise_at = now + candidate.settings.interval;
            self.speak(candidate, now, out);
            if std::mem::take(&mut self.disputed) {
                self.await_silence(heard, candidate, now);
            }
            return Verdict::Stay;
        }
        let higher_address = candidate.source.is_some_and(|own| heard.source > own);
        if heard.priority == OWNER && ours == OWNER {
            return self.two_owners(heard, higher_address, candidate, now, out);
        }
        // "If the Priority in the ADVERTISEMENT is greater than the local Priority, or [equal] and
        // the primary IPvX address of the sender is greater than the local primary IPvX address"
        if heard.priority > ours || (heard.priority == ours && higher_address) {
            return Verdict::GiveWay;
        }
        self.answer(heard, candidate, now, out);
        Verdict::Stay
    }

    /// A lower MASTER must hear of us at once: "Send an ADVERTISEMENT immediately to assert the
    /// Active state". The hosts that listened to it must learn where the addresses are: now, and
    /// again when it has fallen silent. In our first interval it is the MASTER before us, and gives
    /// way: that is no news for the operator.
    fn answer(&mut self, heard: Heard, candidate: &Candidate, now: Instant, out: &mut Vec<Output>) {
        self.speak(candidate, now, out);
        let told = self.healed_at.is_some();
        self.await_silence(heard, candidate, now);
        if now < self.since + candidate.settings.interval {
            self.healed_at.take_if(|_| !told);
            return;
        }
        out.push(Output::Contention(Contention::LowerMaster { from: heard.source, priority: heard.priority }));
    }

    fn await_silence(&mut self, heard: Heard, candidate: &Candidate, now: Instant) {
        let interval = candidate.settings.interval;
        self.again_at = Some(now + interval.clamp(Duration::from_millis(100), Duration::from_millis(500)));
        self.healed_at = Some(now + DOWN_INTERVALS * interval.max(heard.interval));
    }

    /// Tells the other router and the segment at once. A storm is not answered with a storm.
    fn speak(&mut self, candidate: &Candidate, now: Instant, out: &mut Vec<Output>) {
        if now >= self.spoken.answered + ANSWER_PAUSE {
            self.spoken.answered = now;
            out.push(Output::Advertise(candidate.priority()));
        }
        if now >= self.spoken.announced + ANNOUNCE_PAUSE {
            self.announce(now, out);
        }
    }

    /// Section 6.4.3 does not foresee two owners. keepalived's rule: the one with the lower address
    /// stays; the other sends two more advertisements and, if it still hears the first, which then
    /// does not know the rule, gives in.
    fn two_owners(
        &mut self,
        heard: Heard,
        higher_address: bool,
        candidate: &Candidate,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Verdict {
        out.push(Output::Contention(Contention::TwoOwners(heard.source)));
        if higher_address {
            return Verdict::Stay;
        }
        let longer = candidate.settings.interval.max(heard.interval);
        match self.contest {
            None => self.contest = Some(Contest { sent: 0, over: now + 3 * longer + longer / 5 }),
            Some(contest) if contest.sent >= OWNER_ADVERTS => return Verdict::GiveIn,
            Some(_) => {}
        }
        Verdict::Stay
    }

    /// Another host has claimed one of our addresses.
    pub fn claimed(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.disputed = true;
        out.push(Output::Contention(Contention::Claimed));
        if now >= self.spoken.announced + CLAIM_PAUSE {
            self.announce(now, out);
        }
    }

    /// Does what is due.
    pub fn timer(&mut self, candidate: &Candidate, now: Instant, out: &mut Vec<Output>) {
        if self.advertise_at <= now {
            // Section 6.4.3: "If the Adver_Timer fires"
            out.push(Output::Advertise(candidate.priority()));
            self.advertise_at = next_advert(self.advertise_at, candidate.settings.interval, now);
            if let Some(contest) = &mut self.contest {
                contest.sent += 1;
            }
        }
        if take_due(&mut self.again_at, now) {
            self.announce(now, out);
        }
        if take_due(&mut self.healed_at, now) {
            self.disputed = false;
            out.push(Output::Contention(Contention::SplitHealed));
        }
        if take_due(&mut self.delayed_at, now) {
            self.announce(now, out);
        }
        if take_due(&mut self.refresh_at, now) {
            self.announce(now, out);
            self.refresh_at = Some(now + candidate.settings.garp_refresh);
        }
        self.contest.take_if(|contest| contest.over <= now);
    }

    /// Has the addresses announced to the segment.
    pub fn announce(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.spoken.announced = now;
        out.push(Output::Announce);
    }
}

/// Advertisements keep their beat, unless one was late by a whole interval.
fn next_advert(due: Instant, interval: Duration, now: Instant) -> Instant {
    let beat = due + interval;
    if beat > now { beat } else { now + interval }
}

/// Whether a timer has fired; it is then cleared.
fn take_due(at: &mut Option<Instant>, now: Instant) -> bool {
    at.take_if(|at| *at <= now).is_some()
}
