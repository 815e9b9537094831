//! A segment with routers on it. Packets are real ones: encoded by the sender, judged by the
//! receiver.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    fmt,
    net::IpAddr,
    time::Duration,
};

use lb_common::time::Instant;

use super::random::Random;
use crate::{
    config::model::VrrpVersion,
    vrrp::{
        group::Machines,
        machine::{Input, Output, Settings, State},
        receive::{Expectation, Voice},
        wire::{ipv4, v3::Dialect},
    },
};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// How the network treats packets, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conduct {
    pub loss: u64,
    pub duplicates: u64,
}

/// One host with one instance, or a group of two.
pub struct Host {
    settings: Settings,
    machines: Option<Machines>,
    paused: bool,
    usable: bool,
    weight: i32,
    given_away: bool,
    /// Packets that arrived while it was paused.
    socket: Vec<(usize, IpAddr, Vec<u8>)>,
    /// As in the kernel program's map: until when the host answers for the address. It outlives the
    /// process.
    leases: [Instant; 2],
    transitions: u64,
}

impl Host {
    pub fn state(&self) -> State {
        self.machines.as_ref().and_then(|machines| machines.machine(0)).map_or(State::Init, |machine| machine.state())
    }
}

struct InFlight {
    to: usize,
    instance: usize,
    from: IpAddr,
    bytes: Vec<u8>,
}

pub struct Network {
    pub hosts: Vec<Host>,
    pub conduct: Conduct,
    version: VrrpVersion,
    members: usize,
    now: Instant,
    random: Random,
    /// The part of the segment that each host is in.
    part: Vec<u8>,
    flights: Vec<Option<InFlight>>,
    arrivals: BinaryHeap<Reverse<(Instant, usize)>>,
    overlap_since: Option<Instant>,
    longest_overlap: Duration,
    history: Vec<String>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for host in &self.hosts {
            writeln!(f, "{:?}", host.settings)?;
        }
        let skip = self.history.len().saturating_sub(60);
        self.history[skip..].iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Network {
    fn new(version: VrrpVersion, members: usize, settings: Vec<Settings>, random: &mut Random) -> Network {
        let count = settings.len();
        let host = |settings| Host {
            settings,
            machines: None,
            paused: false,
            usable: true,
            weight: 0,
            given_away: false,
            socket: Vec::new(),
            leases: [Instant::ZERO; 2],
            transitions: 0,
        };
        let mut network = Network {
            hosts: settings.into_iter().map(host).collect(),
            conduct: Conduct::default(),
            version,
            members,
            now: Instant::ZERO + 1000 * SECOND,
            random: Random::new(random.below(u64::MAX)),
            part: vec![0; count],
            flights: Vec::new(),
            arrivals: BinaryHeap::new(),
            overlap_since: None,
            longest_overlap: Duration::ZERO,
            history: Vec::new(),
        };
        (0..count).for_each(|host| network.start(host));
        network
    }

    /// Two to five routers in any configuration that can work.
    pub fn any(random: &mut Random) -> Network {
        let version = random.choose(&[VrrpVersion::V2, VrrpVersion::V3]);
        let interval = match version {
            VrrpVersion::V2 => random.choose(&[1, 2]) * SECOND,
            VrrpVersion::V3 => random.choose(&[10, 100, 1000]) * MILLISECOND,
        };
        let preempt = random.chance(2, 3);
        let delay = if random.chance(1, 4) { random.time_below(5 * interval) } else { Duration::ZERO };
        let owner = random.chance(1, 6);
        let equal = random.chance(1, 5);
        // Routers of version 3 may have different intervals: a BACKUP learns the MASTER's.
        let mixed = version == VrrpVersion::V3 && random.chance(1, 5);
        let settings = (0..random.within(2, 5)).map(|number| Settings {
            version,
            priority: match number {
                0 if owner => 255,
                _ if equal => 100,
                _ => random.within(1, 254) as u8,
            },
            interval: if mixed { interval * random.choose(&[1, 2, 5]) } else { interval },
            preempt,
            preempt_delay: delay,
            garp_delay: Duration::ZERO,
            garp_refresh: Duration::ZERO,
        });
        let settings = settings.collect();
        let members = if random.chance(1, 3) { 2 } else { 1 };
        Network::new(version, members, settings, random)
    }

    /// The same, but no router takes the address from one that is alive.
    pub fn without_preemption(random: &mut Random) -> Network {
        let mut network = Network::any(random);
        for host in 0..network.hosts.len() {
            network.crash(host);
            let settings = &mut network.hosts[host].settings;
            (settings.preempt, settings.priority) = (false, settings.priority.min(254));
            network.start(host);
        }
        network
    }

    /// A master of priority 150 and a backup of 100.
    pub fn pair(preempt: bool, random: &mut Random) -> Network {
        let version = random.choose(&[VrrpVersion::V2, VrrpVersion::V3]);
        let settings = [150, 100].map(|priority| Settings {
            version,
            priority,
            interval: SECOND,
            preempt,
            preempt_delay: Duration::ZERO,
            garp_delay: Duration::ZERO,
            garp_refresh: Duration::ZERO,
        });
        Network::new(version, 1, settings.into(), random)
    }

    // ---- what can be asked ----

    pub fn interval(&self) -> Duration {
        self.hosts.iter().map(|host| host.settings.interval).max().unwrap_or(SECOND)
    }

    /// A packet travels for less than a quarter of the shortest interval.
    pub fn longest_delay(&self) -> Duration {
        let shortest = self.hosts.iter().map(|host| host.settings.interval).min().unwrap_or(SECOND);
        (shortest / 4).min(5 * MILLISECOND)
    }

    pub fn longest_wait(&self) -> Duration {
        let delay = self.hosts.iter().map(|host| host.settings.preempt_delay).max().unwrap_or_default();
        20 * self.interval() + 2 * delay
    }

    pub fn preempts(&self) -> bool {
        self.hosts.iter().all(|host| host.settings.preempt)
    }

    /// The hosts by part of the network.
    pub fn parts(&self) -> Vec<Vec<usize>> {
        let of = |part| (0..self.hosts.len()).filter(|host| self.part[*host] == part).collect();
        self.part.iter().collect::<BTreeSet<_>>().into_iter().map(|part| of(*part)).collect()
    }

    /// The masters among these hosts. The members of a group have to agree.
    pub fn masters(&self, hosts: &[usize]) -> Vec<usize> {
        let is_master = |host: &usize| {
            let machines = self.hosts[*host].machines.as_ref().expect("it runs");
            let states: BTreeSet<_> = (0..self.members)
                .map(|member| machines.machine(member).expect("a machine").state() == State::Master)
                .collect();
            assert_eq!(states.len(), 1, "the members of a group disagree: {self:#?}");
            states.contains(&true)
        };
        hosts.iter().copied().filter(is_master).collect()
    }

    /// The host with the highest priority. Among equals it is the master, or else the one with the
    /// highest address: ties are broken among masters only.
    pub fn best(&self, hosts: &[usize]) -> usize {
        let masters = self.masters(hosts);
        let rank = |host: &usize| (self.hosts[*host].settings.priority, masters.contains(host), *host);
        hosts.iter().copied().max_by_key(rank).expect("a part has hosts")
    }

    pub fn was_given_away(&self, host: usize) -> bool {
        self.hosts[host].given_away
    }

    /// The hosts that answer for the address now.
    pub fn leases(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].leases[0] > self.now).collect()
    }

    pub fn longest_overlap(&self) -> Duration {
        self.longest_overlap
    }

    pub fn transitions(&self) -> u64 {
        self.hosts.iter().map(|host| host.transitions).sum()
    }

    pub fn forget_transitions(&mut self) {
        self.hosts.iter_mut().for_each(|host| host.transitions = 0);
    }

    // ---- what can happen ----

    pub fn pause(&mut self, host: usize) {
        self.note(host, "paused");
        self.hosts[host].paused = true;
    }

    /// The host wakes up; it reads its socket before its timers, as the shell does.
    pub fn resume(&mut self, host: usize) {
        if !std::mem::take(&mut self.hosts[host].paused) {
            return;
        }
        self.note(host, "goes on");
        for (instance, from, bytes) in std::mem::take(&mut self.hosts[host].socket) {
            self.deliver(host, instance, from, &bytes);
        }
    }

    /// The process is killed; what it has put into the map stays.
    pub fn crash(&mut self, host: usize) {
        self.note(host, "killed");
        self.hosts[host].machines = None;
        self.hosts[host].paused = false;
        self.hosts[host].socket.clear();
    }

    /// The process ends in order.
    pub fn stop(&mut self, host: usize) {
        for member in 0..self.members {
            self.input(host, member, Input::End);
        }
        self.crash(host);
    }

    /// The process starts, unless it runs. Where the leases still hold it continues the mastership.
    pub fn start(&mut self, host: usize) {
        if self.hosts[host].machines.is_some() {
            return;
        }
        self.note(host, "starts");
        let mut machines = Machines::default();
        for member in 0..self.members {
            machines.add(member, self.hosts[host].settings.clone(), (self.members > 1).then_some("G"));
        }
        self.hosts[host].machines = Some(machines);
        self.hosts[host].given_away = false;
        let holds = self.hosts[host].leases[..self.members].iter().all(|until| *until > self.now);
        for member in 0..self.members {
            self.input(host, member, Input::Weight(self.hosts[host].weight));
            self.input(host, member, Input::Usable(self.source(host, member)));
        }
        if holds {
            (0..self.members).for_each(|member| self.input(host, member, Input::Resume));
        } else {
            self.hosts[host].leases = [Instant::ZERO; 2];
        }
    }

    pub fn set_usable(&mut self, host: usize, usable: bool) {
        self.hosts[host].usable = usable;
        for member in 0..self.members {
            self.input(host, member, Input::Usable(self.source(host, member)));
        }
    }

    pub fn weigh(&mut self, host: usize, weight: i32) {
        self.hosts[host].weight = weight;
        for member in 0..self.members {
            self.input(host, member, Input::Weight(weight));
        }
    }

    pub fn give_away(&mut self, host: usize) {
        self.hosts[host].given_away = true;
        self.input(host, 0, Input::GiveAway);
    }

    pub fn split(&mut self, random: &mut Random) {
        self.part.iter_mut().for_each(|part| *part = random.below(3) as u8);
        self.history.push(format!("{} parts {:?}", self.milliseconds(), self.part));
    }

    pub fn heal(&mut self) {
        self.part.fill(0);
        self.history.push(format!("{} healed", self.milliseconds()));
    }

    /// Lets time go by.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let deadline = |host: &Host| host.machines.as_ref().filter(|_| !host.paused)?.deadline();
            let timer =
                self.hosts.iter().enumerate().filter_map(|(number, host)| Some((deadline(host)?, number))).min();
            let arrival = self.arrivals.peek().map(|Reverse((at, flight))| (*at, *flight));
            let next = [timer, arrival].into_iter().flatten().map(|(at, _)| at).min();
            let Some(at) = next.filter(|at| *at <= end) else { break };
            self.advance(at.max(self.now));
            match (arrival, timer) {
                (Some((due, flight)), _) if due == at => {
                    self.arrivals.pop();
                    self.arrive(flight);
                }
                (_, Some((_, host))) => {
                    let outputs = self.hosts[host].machines.as_mut().expect("it has a deadline").timer(self.now);
                    self.act(host, outputs);
                }
                _ => unreachable!("one of them was the next"),
            }
        }
        self.advance(end);
    }

    // ---- how it works ----

    fn milliseconds(&self) -> u128 {
        Instant::ZERO.age(self.now).as_millis()
    }

    fn note(&mut self, host: usize, what: &str) {
        self.history.push(format!("{} host {host} {what}", self.milliseconds()));
    }

    fn advance(&mut self, to: Instant) {
        // A lease may run out on the way, which ends an overlap at that moment.
        while let Some(ends) =
            self.hosts.iter().map(|host| host.leases[0]).filter(|at| *at > self.now && *at <= to).min()
        {
            self.now = ends;
            self.look_at_leases();
        }
        self.now = to;
    }

    fn look_at_leases(&mut self) {
        let together = self.leases().len() > 1;
        match (together, self.overlap_since) {
            (true, None) => self.overlap_since = Some(self.now),
            (false, Some(since)) => {
                self.longest_overlap = self.longest_overlap.max(since.age(self.now));
                self.overlap_since = None;
            }
            _ => {}
        }
    }

    /// A host's own address in the network of an instance.
    fn address(host: usize, member: usize) -> IpAddr {
        [10, 0, member as u8, 1 + host as u8].into()
    }

    fn source(&self, host: usize, member: usize) -> Option<IpAddr> {
        self.hosts[host].usable.then(|| Self::address(host, member))
    }

    fn input(&mut self, host: usize, member: usize, input: Input) {
        let now = self.now;
        let Host { machines: Some(machines), paused: false, .. } = &mut self.hosts[host] else { return };
        let outputs = machines.handle(member, input, now);
        self.act(host, outputs);
    }

    fn act(&mut self, host: usize, outputs: Vec<(usize, Output)>) {
        for (member, output) in outputs {
            match output {
                Output::Advertise(priority) if self.hosts[host].usable => {
                    self.send(host, member, priority, self.hosts[host].settings.interval);
                }
                Output::Concede { priority, interval } => self.send(host, member, priority, interval),
                Output::Release => self.hosts[host].leases[member] = Instant::ZERO,
                Output::Moved { from, to, why } => {
                    self.hosts[host].transitions += 1;
                    self.note(host, &format!("instance {member}: {from:?} -> {to:?}, {why:?}"));
                }
                Output::Advertise(_) | Output::Hold | Output::Announce | Output::Contention(_) => {}
            }
            self.look_at_leases();
        }
    }

    fn send(&mut self, host: usize, member: usize, priority: u8, interval: Duration) {
        let now = self.now;
        let lease = self.hosts[host].machines.as_mut().map_or(Instant::ZERO, |machines| machines.sent(member, now));
        if priority > 0 {
            self.hosts[host].leases[member] = lease;
        }
        let source = Self::address(host, member);
        let voice = Voice { interval, ..self.voice(host, member) };
        let bytes = voice.advertisement(priority, source, voice.destinations(source)[0]);
        for to in (0..self.hosts.len()).filter(|to| *to != host && self.part[*to] == self.part[host]) {
            if self.random.chance(self.conduct.loss, 100) {
                continue;
            }
            let copies = 1 + u64::from(self.random.chance(self.conduct.duplicates, 100));
            for _ in 0..copies {
                let at = self.now + self.random.time_below(self.longest_delay());
                self.arrivals.push(Reverse((at, self.flights.len())));
                self.flights.push(Some(InFlight { to, instance: member, from: source, bytes: bytes.clone() }));
            }
        }
    }

    fn arrive(&mut self, flight: usize) {
        let Some(InFlight { to, instance, from, bytes }) = self.flights[flight].take() else { return };
        let host = &mut self.hosts[to];
        if host.machines.is_none() || !host.usable {
            return;
        }
        if host.paused {
            host.socket.push((instance, from, bytes));
            return;
        }
        self.deliver(to, instance, from, &bytes);
    }

    fn deliver(&mut self, host: usize, member: usize, from: IpAddr, bytes: &[u8]) {
        let voice = self.voice(host, member);
        let expectation = Expectation {
            version: self.version,
            ipv4: true,
            password: voice.password,
            interval: voice.interval,
            peers: BTreeSet::new(),
            min_ttl: 0,
            addresses: voice.addresses.iter().copied().collect(),
            own: Some(Self::address(host, member)),
        };
        let packet = ipv4::parse(bytes).expect("a whole packet");
        assert_eq!(packet.source, from);
        let heard = expectation.judge(&packet).expect("an advertisement that counts");
        self.input(host, member, Input::Heard(heard));
    }

    fn voice(&self, host: usize, member: usize) -> Voice {
        Voice {
            version: self.version,
            router: 51,
            interval: self.hosts[host].settings.interval,
            password: None,
            dialect: Dialect::PseudoHeader,
            addresses: vec![[10, 0, member as u8, 100].into()],
            peers: Vec::new(),
        }
    }
}
