//! VRRP of a simulated host, as its thread does it.

use super::*;

impl Host {
    pub(super) fn source(&self) -> Option<IpAddr> {
        self.carrier.then(|| Self::address(self.wish.host))
    }

    pub(super) fn begin_vrrp(&mut self, now: Instant) {
        let Daemon { machines, holdings, setup, .. } = self.daemon.as_mut().expect("it runs");
        setup.expectation.own = Some(Self::address(self.wish.host));
        holdings.configure(setup.addresses.iter().map(ipnet::IpNet::addr));
        machines.add(0, setup.settings.clone(), None);
        let leases = setup.addresses.iter().map(|address| {
            let number = self.tables.place_lease(address.addr()).expect("room");
            let (until, claims) = (Instant(self.tables.lease_until(number)), self.tables.claims(number).count);
            LeaseRecord { address: address.addr(), number, until, claims }
        });
        let leases: Vec<_> = leases.collect();
        self.lease = leases.iter().find(|lease| lease.address == IpAddr::from(VIP)).map(|lease| lease.number);
        let orders = holdings.begin(0, &setup.interface, &setup.addresses, leases, now);
        if self.given_away {
            machines.recall(0, Past { state: State::Init, since: Instant::ZERO, transitions: 0, yields: true });
        }
        self.carry_out(orders);
        self.judge(now);
        self.vrrp(Input::Usable(self.source()), now);
        let tables = self.tables.clone();
        let daemon = self.daemon.as_mut().expect("it runs");
        match daemon.holdings.resume(0, |lease| Instant(tables.lease_until(lease)), now) {
            Resumption::None => return,
            Resumption::Holds => self.vrrp(Input::Resume, now),
            Resumption::Lapsed => {}
        }
        if !self.is_master() {
            self.act_vrrp(vec![(0, Output::Release)], now);
        }
    }

    /// What the machine needs to know of the host.
    pub(super) fn judge(&mut self, now: Instant) {
        let Some(daemon) = &self.daemon else { return };
        let lacks = daemon.sync.is_some() && !daemon.state.synced;
        self.vrrp(Input::LacksFlows(lacks), now);
    }

    pub(super) fn vrrp(&mut self, input: Input, now: Instant) {
        let Some(daemon) = &mut self.daemon else { return };
        let outputs = daemon.machines.handle(0, input, now);
        self.act_vrrp(outputs, now);
    }

    pub(super) fn advert(&mut self, bytes: &[u8], now: Instant) {
        let Some(packet) = ipv4::parse(bytes) else { return };
        let Some(daemon) = self.daemon.as_ref().filter(|_| self.carrier) else { return };
        if let Ok(heard) = daemon.setup.expectation.judge(&packet) {
            self.vrrp(Input::Heard(heard), now);
        }
    }

    pub(super) fn act_vrrp(&mut self, outputs: Outputs, now: Instant) {
        for (_, output) in outputs {
            let Some(daemon) = &mut self.daemon else { return };
            match output {
                Output::Advertise(priority) => self.advertise(priority, now),
                Output::Concede { priority, interval } => self.send_advert(priority, interval),
                Output::Hold if daemon.machines.is_master(0) => {
                    // Claims from before do not matter now.
                    let tables = self.tables.clone();
                    daemon.holdings.new_claims(0, |lease| tables.claims(lease));
                    let orders = daemon.holdings.hold(0, now);
                    self.carry_out(orders);
                }
                Output::Release => {
                    let orders = daemon.holdings.release(0);
                    self.carry_out(orders);
                }
                Output::Announce if daemon.machines.machine(0).is_some_and(|it| it.has_spoken()) => {
                    self.effects.push(Effect::Announce);
                }
                Output::Moved { from, to, why } => {
                    self.note(format!("{from:?} -> {to:?}, {why:?}"));
                    self.set_ownership(now);
                }
                Output::Hold | Output::Announce | Output::Contention(_) => {}
            }
        }
    }

    pub(super) fn advertise(&mut self, priority: u8, now: Instant) {
        let Some(daemon) = &mut self.daemon else { return };
        let Some(machine) = daemon.machines.machine(0) else { return };
        if priority != RESIGN && machine.lease() <= now || !self.carrier {
            return;
        }
        let interval = daemon.setup.voice.interval;
        self.send_advert(priority, interval);
        let Some(daemon) = &mut self.daemon else { return };
        if priority != RESIGN {
            let until = daemon.machines.sent(0, now);
            let orders = daemon.holdings.renew(0, until);
            self.carry_out(orders);
        }
        let (tables, Some(daemon)) = (self.tables.clone(), &mut self.daemon) else { return };
        let claims = daemon.holdings.new_claims(0, |lease| tables.claims(lease));
        claims.iter().for_each(|_| self.vrrp(Input::Claimed, now));
    }

    fn send_advert(&mut self, priority: u8, interval: Duration) {
        let Some(daemon) = self.daemon.as_ref().filter(|_| self.carrier) else { return };
        let (voice, source) = (Voice { interval, ..daemon.setup.voice.clone() }, Self::address(self.wish.host));
        self.effects.push(Effect::Advert(voice.advertisement(priority, source, voice.destinations(source)[0])));
    }

    /// The other host says on the segment that the address is its own.
    pub fn hear_claim(&mut self, now: Instant) {
        if let Some(lease) = self.lease.filter(|_| self.lease() > now) {
            self.tables.claim_address(lease);
        }
    }

    pub(super) fn carry_out(&mut self, orders: Vec<HoldingOrder>) {
        for order in orders {
            match order {
                HoldingOrder::Renew { lease, until } => self.tables.renew_lease(lease, until.0),
                HoldingOrder::Forget { lease } => self.tables.remove_lease(lease),
                HoldingOrder::PutOn { id, .. } => {
                    if let Some(daemon) = &mut self.daemon {
                        daemon.holdings.answered(id, true);
                    }
                }
                HoldingOrder::TakeOff { .. } => {}
            }
        }
    }

    pub(super) fn keep_given_away(&mut self) {
        if let Some(machine) = self.daemon.as_ref().and_then(|daemon| daemon.machines.machine(0)) {
            self.given_away = machine.past().yields;
        }
    }
}
