//! How long no host holds an address: a master that crashes, loses its cable, or stops in order;
//! compared with keepalived in the same run, for the same settings. At full size (`--full`) it runs
//! twenty rounds of each with the limits of the README; otherwise a few rounds with limits that a
//! busy machine keeps.

use std::thread;

use lab::{Asker, capture};

use super::*;
use crate::cluster::full;

/// Both hosts have the same priority: the MASTER stays.
const PRIORITY: u8 = 100;
const SLACK: Duration = Duration::from_millis(150);

#[derive(Clone, Copy, PartialEq)]
enum End {
    Killed,
    Cut,
    InOrder,
}

const ENDS: [(End, &str); 3] = [(End::Killed, "kill -9"), (End::Cut, "link cut"), (End::InOrder, "SIGTERM")];

/// A router of either make.
enum Router {
    Ours(Evenkeel),
    Theirs(Keepalived),
}

impl Router {
    fn start(lab: &Lab, host: &Host, interval: Duration, is_ours: bool) -> Router {
        if is_ours {
            let keys = [format!("advert_interval = \"{}ms\"", interval.as_millis()), "preempt = false".into()];
            return Router::Ours(evenkeel(lab, host, &instance(PRIORITY, &keys.each_ref().map(String::as_str))));
        }
        let keys = ["version 3", "nopreempt", &format!("advert_int {}", interval.as_secs_f64())];
        Router::Theirs(Keepalived::start(host, &keepalived("BACKUP", PRIORITY, &keys)).expect("keepalived"))
    }

    fn end(&mut self, end: End) {
        match (self, end) {
            (_, End::Cut) => {}
            (Router::Ours(ours), End::Killed) => ours.kill(),
            (Router::Ours(ours), End::InOrder) => ours.terminate().expect("an end in order"),
            (Router::Theirs(theirs), End::Killed) => theirs.kill().expect("kill -9"),
            (Router::Theirs(theirs), End::InOrder) => theirs.terminate().expect("an end in order"),
        }
    }

    fn begin(&mut self) {
        match self {
            Router::Ours(ours) => ours.run().expect("evenkeel"),
            Router::Theirs(theirs) => theirs.run().expect("keepalived"),
        }
    }

    fn log(&self) -> String {
        match self {
            Router::Ours(ours) => ours.log(),
            Router::Theirs(theirs) => theirs.log(),
        }
    }

    /// How often it has become BACKUP, as far as it can be asked.
    fn times_backup(&self) -> usize {
        match self {
            Router::Ours(ours) => usize::from(state(ours) == "BACKUP"),
            Router::Theirs(theirs) => theirs.log().matches("Entering BACKUP STATE").count(),
        }
    }
}

/// Two routers and what a client sees of them.
struct Race {
    routers: [Router; 2],
    adverts: Capture,
    asker: Asker,
    interval: Duration,
    lab: Lab,
}

/// What one round took.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// From the old master's last advertisement to the new one's first.
    silence: Duration,
    /// From what was done to the old master.
    since: Duration,
    /// From the old master's last advertisement until the new one answers ARP.
    answered: Duration,
}

impl Race {
    fn new(interval: Duration, is_ours: bool) -> Race {
        let lab = lab();
        let adverts = Capture::start_with(lab.client(), "eth0", "ip proto 112", &["-x"]).expect("tcpdump");
        let asker = Asker::start(lab.client(), &[VIP.parse().expect("an address")]).expect("an asker");
        let first = Router::start(&lab, &lab.balancer, interval, is_ours);
        vip_goes(&lab.balancer, true);
        let second = Router::start(&lab, self::second(&lab), interval, is_ours);
        let race = Race { routers: [first, second], adverts, asker, interval, lab };
        race.settles(1, 0);
        race
    }

    fn host(&self, number: usize) -> &Host {
        if number == 0 { &self.lab.balancer } else { second(&self.lab) }
    }

    /// Waits until a router is BACKUP once more than before, and has heard the other one.
    fn settles(&self, number: usize, before: usize) {
        let backup = || (self.routers[number].times_backup() > before && !has_vip(self.host(number))).then_some(());
        wait::until("BACKUP", SOON, backup).unwrap_or_else(|late| panic!("{late:#}\n{}", self.routers[number].log()));
        let heard = self.adverts.seen().len() + 2;
        wait::until("it hears the master", SOON, || (self.adverts.seen().len() >= heard).then_some(()))
            .expect("adverts");
    }

    /// When a host sent its advertisements, and their priorities.
    fn adverts_of(&self, number: usize) -> Vec<(Duration, u8)> {
        let octets = self.host(number).address().octets();
        let of = |packet: &[u8]| packet.get(12..16) == Some(&octets);
        let packets = self.adverts.packets().into_iter().filter(|(_, packet)| of(packet));
        packets.filter_map(|(at, packet)| Some((at, *packet.get(22)?))).collect()
    }

    /// Ends the master in one way and measures; afterwards it is back as BACKUP.
    fn round(&mut self, master: usize, end: End) -> Round {
        let other = 1 - master;
        let port = self.host(master).name.clone();
        let begun = capture::now();
        if end == End::Cut {
            self.lab.switch.link(&port, false).expect("the switch's port");
        }
        self.routers[master].end(end);
        let mac = mac(self.host(other));
        let taken = || {
            let advert = self.adverts_of(other).into_iter().find(|(at, priority)| *at > begun && *priority > 0)?.0;
            let answer = self.asker.answers().into_iter().find(|answer| answer.at > begun && answer.mac == mac)?.at;
            Some((advert, answer))
        };
        let (advert, answer) = wait::until("a takeover", self.interval * 5 + SOON, taken).expect("a new master");
        let last = self.adverts_of(master).into_iter().rfind(|(at, _)| *at < advert).expect("a last advertisement").0;
        if end == End::Cut {
            wait::until("the cut off host gives up", SOON, || (!has_vip(self.host(master))).then_some(()))
                .expect("FAULT");
        }
        // evenkeel is asked for its state; keepalived's log starts with its process.
        let before = match (&self.routers[master], end) {
            (router @ Router::Theirs(_), End::Cut) => router.times_backup(),
            _ => 0,
        };
        if end == End::Cut {
            self.lab.switch.link(&port, true).expect("the switch's port");
            // As the lab does it: otherwise the port may be dead for a second.
            self.lab.switch.ip(&["link", "show", "dev", &port]).expect("ip");
        } else {
            self.routers[master].begin();
        }
        self.settles(master, before);
        Round { silence: advert - last, since: advert.saturating_sub(begun), answered: answer.saturating_sub(last) }
    }
}

/// What the protocol prescribes after the last advertisement.
fn prescribed(interval: Duration, end: End) -> Duration {
    let skew = interval * (256 - u32::from(PRIORITY)) / 256;
    if end == End::InOrder { skew } else { interval * 3 + skew }
}

type Measured = Vec<(End, Vec<Round>)>;

fn measure(interval: Duration, is_ours: bool, rounds: usize) -> Measured {
    let mut race = Race::new(interval, is_ours);
    let mut master = 0;
    let mut all = Measured::new();
    for (end, _) in ENDS {
        let mut of_end = Vec::new();
        for _ in 0..rounds {
            of_end.push(race.round(master, end));
            master = 1 - master;
        }
        all.push((end, of_end));
    }
    all
}

fn milliseconds(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |place: usize| times.get(place).map_or(0, Duration::as_millis);
    format!("{} / {} / {}", at(0), at(times.len() / 2), at(times.len() - 1))
}

/// The smallest, median and largest of what a client saw.
fn print(name: &str, interval: Duration, measured: &Measured) {
    for (end, rounds) in measured {
        let what = ENDS.iter().find(|(known, _)| known == end).map_or("", |(_, name)| name);
        let (silence, answered) = (|round: &Round| round.silence, |round: &Round| round.answered);
        println!(
            "| {name} | {} ms | {what} | {} | {} | {} | {} |",
            interval.as_millis(),
            prescribed(interval, *end).as_millis(),
            milliseconds(rounds.iter().map(silence).collect()),
            milliseconds(rounds.iter().map(|round| round.since).collect()),
            milliseconds(rounds.iter().map(answered).collect()),
        );
    }
}

/// Our limits.
fn judge(interval: Duration, measured: &Measured) {
    for (end, rounds) in measured {
        let due = prescribed(interval, *end);
        let limit = due + if full() { SLACK } else { Duration::from_secs(1) };
        let in_time = rounds.iter().filter(|round| round.silence <= limit && round.answered <= limit).count();
        assert!(in_time * 20 >= rounds.len() * 19, "{due:?}: {in_time} of {} in time: {rounds:?}", rounds.len());
        // Two masters would be worse than none.
        let early = rounds.iter().filter(|round| round.silence + Duration::from_millis(5) < due).count();
        assert_eq!(early, 0, "{due:?}: {rounds:?}");
        if full() && interval == Duration::from_millis(100) {
            let in_half_a_second = rounds.iter().filter(|round| round.since < Duration::from_millis(500)).count();
            assert!(in_half_a_second * 20 >= rounds.len() * 19, "{rounds:?}");
        }
    }
}

#[test]
fn a_master_that_crashes_is_cut_off_or_ends_is_replaced_when_the_protocol_says_so() {
    println!("| | interval | end | prescribed | silence | since | answers ARP |\n|---|---|---|---|---|---|---|");
    let kinds = if full() { vec![(1000, 20), (100, 20)] } else { vec![(100, 2)] };
    for (interval, rounds) in kinds {
        let interval = Duration::from_millis(interval);
        let (ours, theirs) = thread::scope(|scope| {
            let theirs = scope.spawn(move || measure(interval, false, rounds));
            (measure(interval, true, rounds), theirs.join().expect("keepalived's rounds"))
        });
        print("evenkeel", interval, &ours);
        print("keepalived", interval, &theirs);
        judge(interval, &ours);
    }
}
