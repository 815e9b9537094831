//! What a host's file says.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use crate::{
    config::{self, model::Config},
    vrrp::simulation::random::Random,
};

/// The backends that no reload removes.
pub const KEPT: u8 = 2;

/// The part of the file that a reload may change, and that which it does not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wish {
    pub host: usize,
    pub priority: u8,
    pub preempt: bool,
    pub interval: Duration,
    pub version: u8,
    pub batch: Duration,
    pub ports: u16,
    /// Whether it has `[sync]`.
    pub sync: bool,
    /// The last bytes of the addresses in `snat`.
    pub snat: Vec<u8>,
    /// The last bytes of the backends' addresses, beside those that are always there.
    pub backends: Vec<u8>,
}

impl Wish {
    /// What both hosts have at first.
    pub fn any(random: &mut Random) -> Wish {
        let version = random.choose(&[2, 3]);
        let milliseconds = if version == 2 { 1000 } else { random.choose(&[100, 200, 500, 1000]) };
        Wish {
            host: 0,
            priority: 100,
            preempt: random.chance(3, 4),
            interval: Duration::from_millis(milliseconds),
            version,
            batch: Duration::from_millis(random.choose(&[50, 100, 200, 500, 1000])),
            // Some have many more ports than connections.
            ports: if random.chance(1, 8) { 30_000 } else { 400 },
            sync: true,
            snat: vec![100],
            backends: vec![12],
        }
    }

    /// Something in the file is changed.
    pub fn change(&mut self, random: &mut Random) {
        match random.below(5) {
            0 => self.sync = !self.sync,
            1 | 2 => self.snat = random.choose(&[&[100][..], &[101], &[100, 101]]).to_vec(),
            _ => {
                self.backends = (12..15).filter(|_| random.chance(1, 2)).collect();
            }
        }
    }

    /// As the daemon reads it.
    pub fn config(&self) -> Arc<Config> {
        static READ: LazyLock<Mutex<BTreeMap<Wish, Arc<Config>>>> = LazyLock::new(Mutex::default);
        let mut read = READ.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        read.entry(self.clone()).or_insert_with(|| Arc::new(loaded(&self.text()))).clone()
    }

    fn text(&self) -> String {
        let (own, other) = (self.host + 1, 2 - self.host);
        let Wish { priority, preempt, version, ports, .. } = self;
        let (interval, batch) = (self.interval.as_millis(), self.batch.as_millis());
        let snat: Vec<_> = self.snat.iter().map(|last| format!("\"10.0.1.{last}\"")).collect();
        let (snat, last) = (snat.join(", "), 10_239 + u32::from(*ports));
        let sync = format!(
            "[sync]\nlisten = \"10.0.9.{own}:9644\"\npeers = [\"10.0.9.{other}:9644\"]\nkey_file = \"/none\"\n\
             batch = \"{batch}ms\"\n"
        );
        let vrrp = format!(
            "[[vrrp]]\nname = \"VI_1\"\ninterface = \"eth0\"\nvirtual_router_id = 51\npriority = {priority}\n\
             preempt = {preempt}\nversion = {version}\nadvert_interval = \"{interval}ms\"\n\
             addresses = [\"10.0.1.100/32\", \"10.0.1.101/32\"]\n"
        );
        let service = format!(
            "[[service]]\nname = \"api\"\nlisten = \"10.0.1.100:6443\"\nidle_timeout = \"20s\"\nsnat = [{snat}]\n\
             snat_ports = \"10240-{last}\"\nmax_half_open = 256\n"
        );
        let backend = |host| format!("[[service.backend]]\nname = \"cp{host}\"\naddress = \"10.0.2.{host}:6443\"\n");
        let backends: String = (10..10 + KEPT).chain(self.backends.iter().copied()).map(backend).collect();
        [if self.sync { &*sync } else { "" }, &vrrp, &service, &backends].concat()
    }
}

fn loaded(text: &str) -> Config {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("evenkeel.toml");
    fs::write(&file, text).expect("a file");
    config::load(&file).unwrap_or_else(|problems| panic!("{problems}\n{text}")).config
}
