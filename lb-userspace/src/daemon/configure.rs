//! Applies configurations: the first one, and those of reloads.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use log::{Level, error, info, warn};
use sd_notify::NotifyState;

use super::{Daemon, Inputs, apply, flow_sync, interfaces, probes, several, tell_systemd};
use crate::{
    api::types::Reloaded,
    config::{self, model::Config},
    controller::{desired::Desired, plan},
    notice::{Kind, Notice},
    sync::seal::SharedKey,
    sys::clock,
};

/// How long the start waits for the backends' neighbours to answer before it reports ready.
const NEIGHBOURS: Duration = Duration::from_millis(300);

impl Daemon {
    /// Tables first, then the hooks: the first packet finds everything in place.
    pub(super) async fn first_configuration(
        &mut self,
        desired: Desired,
        key: Option<SharedKey>,
        inputs: &mut Inputs,
    ) -> Result<()> {
        let plan = self.controller.plan(&desired).map_err(several)?;
        self.write_cookie_key(key.as_ref())?;
        self.write(&plan)?;
        self.commit(desired, plan);
        let attached =
            interfaces::attach(&mut self.dataplane, &self.wanted, self.process.options.clsact).map_err(several)?;
        attached.into_iter().for_each(|notice| self.tell(notice));
        self.detach_unused();
        self.listen().into_iter().for_each(|warning| warn!("{warning}"));
        self.meet_neighbours(inputs).await;
        // Before VRRP, which waits for the other host's flows.
        self.configure_sync(key)?;
        self.configure_vrrp().await?;
        let adopted = if self.dataplane.adopted() { "took over the tables of an earlier run, " } else { "" };
        let services = self.config.services.len();
        let after = self.process.started.elapsed().as_millis();
        let text =
            format!("evenkeel {} is ready after {after} ms: {adopted}{services} service(s)", env!("CARGO_PKG_VERSION"));
        self.tell(Notice::daemon(Level::Info, Kind::Lifecycle, text));
        if self.dataplane.max_connections() < self.config.daemon.max_connections {
            let stays = self.dataplane.max_connections();
            warn!("max_connections stays {stays} until the tables are created again (`evenkeel run --reset-state`)");
        }
        self.dataplane.settle()
    }

    /// Waits until the next hop of every backend is known, but not for long: one of them may be
    /// down.
    async fn meet_neighbours(&mut self, inputs: &mut Inputs) {
        let patience = tokio::time::sleep(NEIGHBOURS);
        tokio::pin!(patience);
        loop {
            self.write_hops();
            let known = |number| self.controller.is_reachable(number);
            if self.controller.backends().keys().copied().all(known) {
                return;
            }
            tokio::select! {
                Some(change) = inputs.changes.recv() => {
                    self.netlink_change(change);
                }
                () = &mut patience => return,
            }
        }
    }

    /// SIGHUP: a reload that systemd follows.
    pub(super) async fn hang_up(&mut self) {
        let since = NotifyState::monotonic_usec_now();
        tell_systemd(&[NotifyState::Reloading].into_iter().chain(since).collect::<Vec<_>>());
        // The sender of SIGHUP reads the outcome in the log.
        _ = self.reload().await;
        tell_systemd(&[NotifyState::Ready]);
    }

    /// Reads the configuration again and reports the outcome.
    pub(super) async fn reload(&mut self) -> Result<Reloaded, Vec<String>> {
        let reloaded = self.try_reload().await;
        self.load.is_current = reloaded.is_ok();
        self.tell(reload_notice(&reloaded));
        reloaded
    }

    /// Everything that can be checked is checked before the first write; a write that fails all the
    /// same (no memory for the slots of a new backend) is undone.
    async fn try_reload(&mut self) -> Result<Reloaded, Vec<String>> {
        if self.upgrading.is_some() {
            return Err(vec!["an upgrade is under way: try again when it is done".into()]);
        }
        let loaded = config::load(&self.process.options.config)
            .map_err(|problems| problems.0.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let desired = Desired::new(&loaded.config)?;
        let plan = self.controller.plan(&desired)?;
        let wanted = interfaces::wanted(&loaded.config).await?;
        let key = flow_sync::key(&loaded.config).map_err(one)?;
        let prepared = self.logs.prepare(&loaded.config).map_err(one)?;
        let probes = probes::prepare(&loaded.config, self.controller.installed()).map_err(one)?;
        let attached = interfaces::attach(&mut self.dataplane, &wanted, self.process.options.clsact);
        let attached = attached.map_err(|errors| self.back_to_the_interfaces_in_use(errors))?;
        attached.into_iter().for_each(|notice| self.tell(notice));
        if let Err(error) = self.write(&plan).and_then(|()| self.write_cookie_key(key.as_ref())) {
            let errors = self.back_to_the_configuration_in_force(error);
            return Err(self.back_to_the_interfaces_in_use(errors));
        }

        let mut warnings: Vec<String> = loaded.warnings.iter().chain(&loaded.here).map(ToString::to_string).collect();
        warnings.extend(wanted.warnings.iter().cloned());
        warnings.extend(needs_restart(&self.config, &loaded.config));
        let changes = plan::changes(self.controller.desired(), &desired);
        self.config = loaded.config;
        self.wanted = wanted;
        self.load.at = Timestamp::now();
        self.load.monotonic = clock::monotonic();
        self.load.generation += 1;
        self.logs.commit(&self.config, prepared);
        self.probes.replace(probes);
        warnings.extend(self.listen());
        self.commit(desired, plan);
        self.write_hops();
        // From here on the configuration is in force, and what cannot be done is told beside it.
        let flow_sync = self.configure_sync(key).map_err(|error| not_started("flow sync", &error));
        let vrrp = self.configure_vrrp().await.map_err(|error| not_started("VRRP", &error));
        for failed in [flow_sync, vrrp].into_iter().filter_map(Result::err) {
            self.tell(Notice::daemon(Level::Error, Kind::Reload, failed.clone()));
            warnings.push(failed);
        }
        self.detach_unused();
        Ok(Reloaded { generation: self.load.generation, changes, warnings })
    }

    /// The program could not be attached everywhere, and perhaps is attached in another way than
    /// before on some interfaces.
    fn back_to_the_interfaces_in_use(&mut self, mut errors: Vec<String>) -> Vec<String> {
        match interfaces::attach(&mut self.dataplane, &self.wanted, self.process.options.clsact) {
            Ok(attached) => attached.into_iter().for_each(|notice| self.tell(notice)),
            Err(again) => {
                errors.extend(again.into_iter().map(|error| format!("{error}, also as it was before: reload again")));
            }
        }
        self.detach_unused();
        errors
    }

    /// Some writes of a plan succeeded and one failed, with `error`. The configuration in force
    /// needs nothing new, so it can be written again.
    fn back_to_the_configuration_in_force(&mut self, error: anyhow::Error) -> Vec<String> {
        let before = self.controller.desired().clone();
        let planned = self.controller.plan(&before).map_err(several);
        match planned.and_then(|plan| self.write(&plan).map(|()| plan)) {
            Ok(plan) => {
                self.commit(before, plan);
                self.write_hops();
                self.detach_unused();
                one(error)
            }
            Err(again) => {
                [one(error), one(again.context("and the changes could not be undone: reload again"))].concat()
            }
        }
    }

    /// Brings the listener of `[api]` in line with the configuration. Returns a warning if the
    /// address is not available yet and is tried again.
    pub(super) fn listen(&mut self) -> Option<String> {
        self.doors.listener.set(self.config.api.as_ref(), &self.doors.api)
    }

    pub(super) fn write(&mut self, plan: &plan::Plan) -> Result<()> {
        for write in &plan.writes {
            if let Err(error) = self.write_one(write) {
                // The core goes on from what the tables hold now.
                self.controller.reread(self.dataplane.tables().read());
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn write_one(&mut self, write: &plan::Write) -> Result<()> {
        let upper_first = flow_sync::begins_with_upper_half(&self.config);
        apply::write(self.dataplane.tables(), &self.hops, write, &mut self.waiting, upper_first)
    }

    pub(super) fn commit(&mut self, desired: Desired, plan: plan::Plan) {
        let tables = self.dataplane.tables().clone();
        let actions = self.controller.commit(desired, plan, &tables, clock::monotonic());
        self.act(actions);
        self.keep_orders();
        self.probes.watch(&self.controller);
        self.hops.want(self.controller.installed());
        self.clamp_payload();
    }
}

/// Warnings for the keys that a reload cannot change.
fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    let (old, new) = (&old.daemon, &new.daemon);
    let changed = [
        ("state_dir", old.state_dir != new.state_dir),
        ("bpffs", old.bpffs != new.bpffs),
        ("socket_group", old.socket_group != new.socket_group),
        ("log_level", old.log_level != new.log_level),
        ("max_connections", old.max_connections != new.max_connections),
    ];
    let changed = changed.iter().filter(|(_, changed)| *changed);
    changed.map(|(key, _)| format!("[daemon] {key}: takes effect when the daemon is restarted")).collect()
}

/// The event of a reload. The lines that it counts go to the log only.
fn reload_notice(reloaded: &Result<Reloaded, Vec<String>>) -> Notice {
    match reloaded {
        Ok(reloaded) => {
            reloaded.warnings.iter().for_each(|warning| warn!("{warning}"));
            reloaded.changes.iter().for_each(|change| info!("{change}"));
            let (generation, changes) = (reloaded.generation, reloaded.changes.len());
            let text = format!("configuration applied, generation {generation}: {changes} change(s)");
            Notice::daemon(Level::Info, Kind::Reload, text)
        }
        Err(errors) => {
            errors.iter().for_each(|problem| error!("{problem}"));
            let first = errors.first().map_or("", String::as_str);
            let count = errors.len();
            let text = format!("the configuration was not reloaded, nothing has changed: {count} error(s): {first}");
            Notice::daemon(Level::Error, Kind::Reload, text)
        }
    }
}

fn not_started(what: &str, error: &anyhow::Error) -> String {
    format!("the configuration is in force, but {what} does not run: {error:#}; reload again")
}

fn one(error: anyhow::Error) -> Vec<String> {
    vec![format!("{error:#}")]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A configuration with these lines under `[daemon]`, and other lines for what they leave out.
    fn config(changed: &[(&str, &str)]) -> Config {
        let usual = [
            ("state_dir", "\"/run/one\""),
            ("bpffs", "\"/sys/fs/bpf/one\""),
            ("socket_group", "\"one\""),
            ("log_level", "\"info\""),
            ("max_connections", "4096"),
            ("on_exit", "\"keep\""),
        ];
        let value = |(key, usual)| changed.iter().find(|(other, _)| *other == key).map_or(usual, |(_, value)| *value);
        let lines: String = usual.iter().map(|line| format!("{} = {}\n", line.0, value(*line))).collect();
        let service = "[[service]]\nname = \"api\"\nlisten = \"10.0.1.100:6443\"\n";
        let backend = "[[service.backend]]\nname = \"cp01\"\naddress = \"10.0.1.10:6443\"\n";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("evenkeel.toml");
        fs::write(&file, format!("[daemon]\n{lines}{service}{backend}")).unwrap();
        config::load(&file).unwrap_or_else(|problems| panic!("{problems}")).config
    }

    #[test]
    fn a_reload_names_exactly_the_changed_keys_that_need_a_restart() {
        let old = config(&[]);
        assert_eq!(needs_restart(&old, &config(&[])), Vec::<String>::new());
        assert_eq!(needs_restart(&old, &config(&[("on_exit", "\"detach\"")])), Vec::<String>::new());
        let changed = [
            ("state_dir", "\"/run/two\""),
            ("bpffs", "\"/sys/fs/bpf/two\""),
            ("socket_group", "\"two\""),
            ("log_level", "\"debug\""),
            ("max_connections", "8192"),
        ];
        let warning = |key: &str| format!("[daemon] {key}: takes effect when the daemon is restarted");
        for (key, value) in changed {
            assert_eq!(needs_restart(&old, &config(&[(key, value)])), [warning(key)]);
        }
        assert_eq!(needs_restart(&old, &config(&changed)), changed.map(|(key, _)| warning(key)));
    }
}
