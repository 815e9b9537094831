//! BACKUP (section 6.4.2): watch the MASTER, and take over when it is gone or ranks lower.

use std::{net::IpAddr, time::Duration};

use lb_common::time::Instant;

use super::{Candidate, DOWN_INTERVALS, OWNER, RESIGN, Why};
use crate::{vrrp::receive::Heard, words::VrrpVersion};

/// The longest that a BACKUP waits for the connections of a lower MASTER: copying 100,000 takes two
/// or three seconds.
const FLOWS_WITHIN: Duration = Duration::from_secs(10);

/// The MASTER that is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeardMaster {
    /// Its own address.
    pub address: IpAddr,
    /// Its priority.
    pub priority: u8,
    /// When it was last heard.
    pub heard: Instant,
}

/// The phase BACKUP.
#[derive(Clone, Debug)]
pub struct Backup {
    pub master: Option<HeardMaster>,
    /// When this process entered BACKUP.
    entered: Instant,
    /// Active_Adver_Interval: the MASTER's interval, as learnt from it (version 3).
    interval: Duration,
    takeover: Takeover,
    /// When `preempt_delay` ends, once a lower MASTER was heard.
    preempts_at: Option<Instant>,
}

/// What stands between a BACKUP and the mastership, and why it would become MASTER.
#[derive(Clone, Copy, Debug)]
enum Takeover {
    /// The Active_Down_Timer.
    At(Instant, Why),
    /// The timer has fired; the rest of the group is not ready.
    WithGroup(Why),
}

impl Backup {
    /// Gives the MASTER, if there is one, the whole Active_Down_Interval.
    pub fn new(candidate: &Candidate, now: Instant) -> Backup {
        let interval = candidate.settings.interval;
        Backup {
            master: None,
            entered: now,
            interval,
            takeover: Takeover::At(now + master_down_interval(candidate, interval), Why::Silence),
            preempts_at: None,
        }
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.takeover, Takeover::WithGroup(_))
    }

    /// Why this router would become MASTER.
    pub fn why(&self) -> Why {
        match self.takeover {
            Takeover::At(_, why) | Takeover::WithGroup(why) => why,
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.takeover {
            Takeover::At(at, _) => Some(at),
            Takeover::WithGroup(_) => None,
        }
    }

    /// Whether the Active_Down_Timer has fired, and why the MASTER counts as gone.
    pub fn expired(&self, now: Instant) -> Option<Why> {
        match self.takeover {
            Takeover::At(at, why) => (at <= now).then_some(why),
            Takeover::WithGroup(_) => None,
        }
    }

    pub fn wait_for_group(&mut self, why: Why) {
        self.takeover = Takeover::WithGroup(why);
    }

    /// With new settings the MASTER has the whole time again, counted by its own interval while it
    /// is heard.
    pub fn configure(&mut self, candidate: &Candidate, now: Instant) {
        if self.master.is_none() {
            self.interval = candidate.settings.interval;
        }
        self.wait(candidate, now);
    }

    /// Section 6.4.2: "If an ADVERTISEMENT is received".
    pub fn heard(&mut self, heard: Heard, candidate: &Candidate, now: Instant) {
        let ours = candidate.priority();
        if heard.priority == RESIGN {
            // "Set the Active_Down_Timer to Skew_Time"
            self.master = None;
            self.takeover = match self.takeover {
                Takeover::At(..) => Takeover::At(now + skew(candidate, self.interval), Why::Resigned),
                Takeover::WithGroup(_) => Takeover::WithGroup(Why::Resigned),
            };
            return;
        }
        self.master = Some(HeardMaster { address: heard.source, priority: heard.priority, heard: now });
        if outranks(heard.priority, candidate) && !self.is_held(candidate, now) {
            // "Discard the ADVERTISEMENT": the timer runs on, and at its end the lower MASTER is
            // preempted.
            let why = Why::Preempts(heard.source);
            self.takeover = match self.takeover {
                Takeover::At(at, _) => Takeover::At(at, why),
                Takeover::WithGroup(_) => Takeover::WithGroup(why),
            };
            return;
        }
        // "Set Active_Adver_Interval to Max Advertise Interval contained in the ADVERTISEMENT",
        // "Reset the Active_Down_Timer to Active_Down_Interval"
        if heard.priority >= ours {
            self.preempts_at = None;
        }
        if candidate.settings.version == VrrpVersion::V3 {
            self.interval = heard.interval;
        }
        self.wait(candidate, now);
    }

    /// Whether a lower MASTER is left in peace for now: for `preempt_delay`, and until its
    /// connections are known here.
    fn is_held(&mut self, candidate: &Candidate, now: Instant) -> bool {
        let delay = candidate.settings.preempt_delay;
        let delayed = !delay.is_zero() && now < *self.preempts_at.get_or_insert(now + delay);
        delayed || candidate.lacks_flows && now < self.entered + FLOWS_WITHIN
    }

    /// Whether a lower MASTER is left in peace because its connections are not known here.
    pub fn waits_for_flows(&self, candidate: &Candidate, now: Instant) -> bool {
        let is_lower = self.master.is_some_and(|master| outranks(master.priority, candidate));
        is_lower && candidate.lacks_flows && now < self.entered + FLOWS_WITHIN
    }

    /// What was heard until now does not count: whoever is MASTER has the whole time to be heard.
    pub fn wait_anew(&mut self, candidate: &Candidate, now: Instant) {
        if matches!(self.takeover, Takeover::At(..)) {
            self.wait(candidate, now);
        }
    }

    /// The MASTER has the whole Active_Down_Interval from now on.
    fn wait(&mut self, candidate: &Candidate, now: Instant) {
        self.takeover = Takeover::At(now + master_down_interval(candidate, self.interval), Why::Silence);
    }
}

/// Whether this router takes the mastership from a MASTER of this priority.
fn outranks(priority: u8, candidate: &Candidate) -> bool {
    let ours = candidate.priority();
    (candidate.settings.preempt || ours == OWNER) && !candidate.yields && priority < ours
}

/// Active_Down_Interval (section 6.1). Version 2 does not learn (RFC 3768 section 6.1).
fn master_down_interval(candidate: &Candidate, learnt: Duration) -> Duration {
    let interval = match candidate.settings.version {
        VrrpVersion::V2 => candidate.settings.interval,
        VrrpVersion::V3 => learnt,
    };
    DOWN_INTERVALS * interval + skew(candidate, learnt)
}

/// Skew_Time (section 6.1): the lower the priority, the longer the wait, so that the best of the
/// others comes first.
fn skew(candidate: &Candidate, learnt: Duration) -> Duration {
    let unit = match candidate.settings.version {
        VrrpVersion::V2 => Duration::from_secs(1),
        VrrpVersion::V3 => learnt,
    };
    unit * (256 - u32::from(candidate.priority())) / 256
}
