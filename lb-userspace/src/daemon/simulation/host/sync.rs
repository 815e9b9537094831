//! Flow sync of a simulated host, as the daemon and its thread do it.

use super::*;

impl Host {
    pub(super) fn directory(installed: &Installed, config: &Config) -> Directory {
        flow_sync::directory(installed, flow_sync::refresh(config), |_| Some(1))
    }

    pub(super) fn configure_sync(&mut self, now: Instant) {
        let (tables, version) = (self.tables.clone(), env!("CARGO_PKG_VERSION"));
        let (own, sessions) = (self.wish.host as u8, self.sessions);
        let daemon = self.daemon.as_mut().expect("it runs");
        match (&daemon.config.sync, daemon.sync.is_some()) {
            (None, _) => {
                daemon.sync = None;
                daemon.state = HostState::default();
            }
            (Some(_), true) => {}
            (Some(config), false) => {
                self.sessions += 1;
                let mut count = 0_u64;
                let fresh = Box::new(move || {
                    count += 1;
                    let words = [u64::from(own) << 32 | sessions, count].map(u64::to_be_bytes);
                    words.concat().try_into().expect("16 bytes")
                });
                let key = SharedKey::parse(&"7e".repeat(32)).expect("a key");
                daemon.sync = Some(Sync {
                    station: Station::new(&key, config.listen, &config.peers, tables, version, fresh),
                    base: Self::directory(daemon.controller.installed(), &daemon.config),
                    is_new: true,
                    mastership: Mastership::default(),
                    known: BackendKnowledge::default(),
                    knows_more: true,
                    batch: config.batch,
                    turn_at: now,
                });
            }
        }
        self.direct_sync();
        self.tell_peers(now);
        self.set_ownership(now);
        self.judge(now);
    }

    pub(super) fn direct_sync(&mut self) {
        let Some(Daemon { sync: Some(sync), controller, config, .. }) = &mut self.daemon else { return };
        let base = Self::directory(controller.installed(), config);
        sync.is_new |= base != sync.base;
        sync.base = base;
    }

    pub(super) fn tell_peers(&mut self, now: Instant) {
        let at = self.now(now);
        let Some(Daemon { sync: Some(sync), controller, .. }) = &mut self.daemon else { return };
        let health = controller.found_here().into_iter().map(|((service, backend), cause)| BackendHealth {
            service: service.to_string(),
            backend: backend.to_string(),
            reason: cause.map_or(0, |cause| cause.to_reason() as u8),
        });
        let admin = flow_sync::decisions(controller.admin_states(), at);
        let known = BackendKnowledge { admin, health: health.collect() };
        sync.knows_more |= known != sync.known;
        sync.known = known;
    }

    pub(super) fn sync_turn(&mut self, now: Instant) {
        let (clocks, addresses, tables) = (self.clocks(now), self.addresses(), self.tables.clone());
        let Some(sync) = self.daemon.as_mut().and_then(|daemon| daemon.sync.as_mut()) else { return };
        sync.turn_at = now + sync.batch;
        let is_new = std::mem::take(&mut sync.is_new);
        if let Some(directory) = sync.mastership.look(&sync.base, is_new, (&tables, &addresses), now) {
            sync.station.direct(Arc::new(directory), clocks);
        }
        if std::mem::take(&mut sync.knows_more) {
            sync.station.administer(sync.known.admin.clone(), sync.known.health.clone());
        }
        let datagrams = sync.station.turn(clocks);
        self.effects.extend(datagrams.into_iter().map(|(_, datagram)| Effect::Datagram(datagram)));
        let news = sync.station.news();
        let synced = sync.station.status(clocks).iter().all(|peer| peer.state == SyncState::Synced);
        let state = HostState { master_of: sync.mastership.since().clone(), synced };
        news.into_iter().for_each(|news| self.peer_said(news, now));
        let Some(daemon) = &mut self.daemon else { return };
        if daemon.state != state {
            daemon.state = state;
            self.set_ownership(now);
            self.judge(now);
        }
    }

    pub(super) fn datagram(&mut self, bytes: &[u8], now: Instant) {
        let (clocks, peer) = (self.clocks(now), Self::sync_address(1 - self.wish.host));
        let Some(sync) = self.daemon.as_mut().and_then(|daemon| daemon.sync.as_mut()) else { return };
        let answer = sync.station.receive(peer, bytes, clocks);
        self.effects.extend(answer.map(Effect::Datagram));
    }

    pub(super) fn peer_said(&mut self, news: PeerNews, now: Instant) {
        match news {
            PeerNews::State { state, .. } => self.note(format!("flow sync: {state:?}")),
            // What comes back of its own is not sealed for it.
            PeerNews::OlderFormat { .. } | PeerNews::OtherKey { .. } => self.note("hears a stranger"),
            PeerNews::UnknownBackend { listener, backend, snat } => self.bury(listener, backend, snat),
            PeerNews::UnknownPort { backend, snat } => self.reach(backend, snat),
            PeerNews::Admin { peer, admin } => self.heard_decision(peer, &admin, now),
            PeerNews::Health { peer, health } => {
                let name = (health.service.as_str().into(), health.backend.as_str().into());
                let daemon = self.daemon.as_mut().expect("it runs");
                let actions = daemon.controller.found_elsewhere(&name, health.reason, &peer.ip().to_string(), now);
                self.act(actions, now);
            }
        }
    }

    pub(super) fn bury(&mut self, listener: SocketAddr, backend: SocketAddr, snat: IpAddr) {
        let (SocketAddr::V4(listener), SocketAddr::V4(backend), IpAddr::V4(snat)) = (listener, backend, snat) else {
            return;
        };
        let controller = &self.daemon.as_ref().expect("it runs").controller;
        let planned = plan::tombstone(controller.installed(), controller.desired(), listener, backend, snat);
        self.note(format!("is told of {backend}, which it does not know: {}", planned.is_some()));
        self.make_room(planned);
    }

    fn reach(&mut self, backend: SocketAddr, snat: SocketAddr) {
        let (SocketAddr::V4(backend), SocketAddr::V4(snat)) = (backend, snat) else { return };
        let planned = plan::reach(self.daemon.as_ref().expect("it runs").controller.installed(), backend, snat);
        self.note(format!("is told of {snat}, of which it has no slot: {}", planned.is_some()));
        self.make_room(planned);
    }

    fn make_room(&mut self, planned: Option<plan::Plan>) {
        let Some(planned) = planned else { return };
        self.write(&planned);
        self.daemon.as_mut().expect("it runs").controller.reread(planned.after);
        self.direct_sync();
    }

    pub(super) fn heard_decision(&mut self, peer: SocketAddr, admin: &AdminDecision, now: Instant) {
        let heard = flow_sync::heard(peer, admin);
        let (service, backend) = heard.name.clone();
        let at = self.now(now);
        let controller = &self.daemon.as_ref().expect("it runs").controller;
        if controller.find(&backend, Some(&service)).is_err() {
            return;
        }
        if let Some(merged) = controller.admin_states().merge(&heard, at) {
            self.note(format!("hears that {backend} is {:?}", merged.order));
            self.set_admin_states(merged.admin_states, now);
        }
    }

    // ---- VRRP ----
}
