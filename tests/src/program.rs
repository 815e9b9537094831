//! The real programs, loaded and attached, run on one frame at a time by `BPF_PROG_TEST_RUN`.
//!
//! A [`Bench`] has its thread in its own network and mount namespaces: a test that ends leaves
//! nothing behind.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    TestRunOptions,
    programs::{SchedClassifier, TestRun},
};
use evenkeel::{
    dataplane::{Dataplane, Options, Requested},
    tables::{
        BackendRow, ServiceRow, Tables,
        rows::{listener_record, pool_backend, pool_record, pool_snat},
    },
};
use lb_common::{
    layout::{Hop, Pool, UP},
    schedule::LEAST_CONN,
    time::Instant,
    verdict::Reason,
};
use log::LevelFilter;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::packet::{Mac, Segment};

/// The hook that a bench attaches to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Native XDP.
    Xdp,
    /// tcx, on kernels from 6.6 on.
    Tcx,
    /// clsact, as on kernels before 6.6.
    Clsact,
}

/// Every hook, for tests that must hold on all of them.
pub const HOOKS: [Hook; 3] = [Hook::Xdp, Hook::Tcx, Hook::Clsact];

/// What happened to a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Left to the host, unchanged.
    Passed,
    /// Dropped.
    Dropped,
    /// Sent, as this segment.
    Sent(Segment),
}

/// The address clients connect to.
pub const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 100), 6443);
/// The MAC address of the clients' next hop.
pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 0, 1];
/// The first SNAT port of the bench's pools.
pub const FIRST_PORT: u16 = 20_000;

/// Address of the `n`th backend.
pub fn backend(n: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 10 + n as u8), 6443)
}

/// MAC address of the `n`th backend.
pub fn backend_mac(n: u16) -> Mac {
    [2, 0, 0, 0, 1, n as u8]
}

/// How a bench is set up.
#[derive(Clone)]
pub struct Setup {
    pub backends: u16,
    /// SNAT ports per backend.
    pub ports: u16,
    pub weights: Vec<u32>,
    pub service: ServiceRow,
    pub max_connections: u32,
}

impl Default for Setup {
    fn default() -> Setup {
        let service = ServiceRow {
            connect_timeout: Duration::from_secs(2),
            balance: LEAST_CONN,
            tries: 3,
            half_open_cells: 64,
            log: true,
            rules: Vec::new(),
            client_limit: 0,
            exempt: Default::default(),
            backends: Vec::new(),
        };
        Setup { backends: 3, ports: 64, weights: vec![1; 64], service, max_connections: 1024 }
    }
}

/// A service with its backends on a veth, and the program attached to it.
pub struct Bench {
    pub dataplane: Dataplane,
    /// The folder in which its programs and maps are pinned.
    pub bpffs: std::path::PathBuf,
    pub ifindex: u32,
    pub mac: Mac,
    pub setup: Setup,
    pub pools: Vec<u16>,
    counted: BTreeMap<Reason, u64>,
}

impl Bench {
    /// Service 0 with the default setup: three backends, least_conn.
    pub fn new(hook: Hook) -> Bench {
        Bench::with(hook, Setup::default())
    }

    /// Service 0 with this setup; backend `n` of the service is backend `n` of the tables.
    pub fn with(hook: Hook, setup: Setup) -> Bench {
        Bench::try_with(hook, setup)
            .unwrap_or_else(|error| panic!("the bench needs root and a kernel with BPF: {error:#}"))
    }

    fn try_with(hook: Hook, mut setup: Setup) -> Result<Bench> {
        let bpffs = own_namespaces()?;
        let mut dataplane = Dataplane::open(&Options {
            bpffs: bpffs.clone(),
            max_connections: setup.max_connections,
            reset: false,
            kernel_log: LevelFilter::Off,
        })?;
        let requested = if hook == Hook::Xdp { Requested::Xdp } else { Requested::Tc };
        let attached = dataplane.attach("ek0", requested, hook == Hook::Clsact)?;
        let tables = dataplane.tables().clone();
        let mut pools = Vec::new();
        for n in 0..setup.backends {
            let hop = Hop::new(backend_mac(n), attached.number);
            let pool = Pool { hop, ..pool_record(backend(n), *VIP.ip(), FIRST_PORT, setup.ports) };
            pools.push(put_pool(&tables, &pool, &[])?);
            tables.reset_backend(n);
            configure(&tables, n, setup.weights[usize::from(n)], false, 0, pools[usize::from(n)]);
            tables.admit(n, UP, Instant::ZERO);
        }
        setup.service.backends = (0..setup.backends).collect();
        tables.configure_service(0, &setup.service)?;
        put_listener(&tables, VIP, 0)?;
        let (ifindex, mac) = (attached.ifindex, attached.mac);
        let mut bench = Bench { dataplane, bpffs, ifindex, mac, setup, pools, counted: BTreeMap::new() };
        bench.moved();
        Ok(bench)
    }

    /// The tables.
    pub fn tables(&self) -> &Tables {
        self.dataplane.tables()
    }

    /// Changes the weight and limits of a backend.
    pub fn configure(&self, n: u16, weight: u32, backup: bool, max_conns: u32) {
        configure(self.tables(), n, weight, backup, max_conns, self.pools[usize::from(n)]);
    }

    /// Lets a backend's record name a service that does not exist.
    pub fn damage(&self, n: u16) {
        let pools = vec![self.pools[usize::from(n)]];
        self.tables().configure_backend(n, &BackendRow { service: u16::MAX, pools, ..backend_row() });
    }

    /// Sets how long a backend that comes back starts slowly.
    pub fn starts_slowly(&self, n: u16, ms: u32) {
        let pools = vec![self.pools[usize::from(n)]];
        let weight = self.setup.weights[usize::from(n)];
        let row = BackendRow { weight, slow_start_ms: ms, pools, ..backend_row() };
        self.tables().configure_backend(n, &row);
    }

    /// Sets how many failed tries within how long take a backend out, and for how long.
    pub fn allows_failures(&self, n: u16, max_fails: u32, fail_timeout: Duration) {
        let pools = vec![self.pools[usize::from(n)]];
        let weight = self.setup.weights[usize::from(n)];
        let row = BackendRow { weight, max_fails, retry_after: fail_timeout, pools, ..backend_row() };
        self.tables().configure_backend(n, &row);
    }

    /// Gives the service another list of backends, as a reload does.
    pub fn lists(&self, backends: &[u16]) {
        let row = ServiceRow { backends: backends.to_vec(), ..self.setup.service.clone() };
        self.tables().configure_service(0, &row).expect("a list");
    }

    /// Runs the program on raw bytes.
    pub fn run(&self, frame: &[u8]) -> Verdict {
        let out = self.dataplane.inject(self.ifindex, frame).expect("BPF_PROG_TEST_RUN");
        if out.sent {
            return Verdict::Sent(Segment::parse(&out.frame).expect("what is sent is a correct segment"));
        }
        // XDP_PASS and TC_ACT_UNSPEC.
        if out.verdict == 2 && self.is_xdp() || out.verdict as i32 == -1 {
            assert_eq!(out.frame, frame, "a frame that is passed on is unchanged");
            return Verdict::Passed;
        }
        Verdict::Dropped
    }

    /// Runs the egress guard on a frame that the host would send.
    pub fn send_out(&self, frame: &[u8]) -> Verdict {
        let program = SchedClassifier::from_pin(self.bpffs.join("programs/evenkeel_out")).expect("the program");
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        match program.test_run(options).expect("BPF_PROG_TEST_RUN").return_value as i32 {
            -1 => Verdict::Passed,
            2 => Verdict::Dropped,
            other => panic!("verdict {other} on {frame:02x?}"),
        }
    }

    fn is_xdp(&self) -> bool {
        self.dataplane.attached().iter().any(|attached| attached.mode.name() == "xdp")
    }

    /// Runs the program on a segment that arrives from outside.
    pub fn send(&self, segment: &Segment) -> Verdict {
        self.run(&segment.bytes())
    }

    /// The same; returns the segment that was sent.
    pub fn forward(&self, segment: &Segment) -> Segment {
        match self.send(segment) {
            Verdict::Sent(out) => out,
            other => panic!("{segment:?} was not forwarded but {other:?}; counters {:?}", self.counters()),
        }
    }

    /// A segment from a client to the VIP.
    pub fn from_client(&self, client: SocketAddrV4, flags: u8) -> Segment {
        Segment::new(client, VIP, flags).macs(CLIENT_MAC, self.mac)
    }

    /// A segment from backend `n` to a SNAT port.
    pub fn from_backend(&self, n: u16, port: u16, flags: u8) -> Segment {
        Segment::new(backend(n), SocketAddrV4::new(*VIP.ip(), port), flags).macs(backend_mac(n), self.mac)
    }

    /// Opens a connection by SYN, SYN-ACK and ACK. Returns both ends of the flow.
    pub fn connect(&self, client: SocketAddrV4) -> Connection {
        let syn = self.forward(&self.from_client(client, SYN).numbers(1000, 0));
        let n = backend_of(&syn);
        let answer = self.from_backend(n, syn.from.port(), SYN | ACK).numbers(5000, 1001);
        assert_eq!(self.forward(&answer).to, client);
        self.forward(&self.from_client(client, ACK).numbers(1001, 5001));
        Connection { client, backend: n, port: syn.from.port() }
    }

    /// Closes a connection by FINs of both sides, the client's first.
    pub fn close(&self, connection: &Connection) {
        let Connection { client, backend, port } = *connection;
        self.forward(&self.from_client(client, FIN | ACK).numbers(1001, 5001));
        self.forward(&self.from_backend(backend, port, FIN | ACK).numbers(5001, 1002));
        self.forward(&self.from_client(client, ACK).numbers(1002, 5002));
    }

    /// `active` of every backend.
    pub fn active(&self) -> Vec<u32> {
        (0..self.setup.backends).map(|n| self.tables().backend(n).active).collect()
    }

    fn counters(&self) -> BTreeMap<Reason, u64> {
        self.tables().counters().expect("counters").into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Every counter that has moved since the last call, and by how much.
    pub fn moved(&mut self) -> Vec<(Reason, u64)> {
        let now = self.counters();
        let moved = now
            .iter()
            .map(|(reason, count)| (*reason, count - self.counted.get(reason).unwrap_or(&0)))
            .filter(|(_, by)| *by > 0)
            .collect();
        self.counted = now;
        moved
    }
}

use lb_common::tcp::{ACK, FIN, SYN};

/// Both ends of an open flow.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    pub client: SocketAddrV4,
    pub backend: u16,
    pub port: u16,
}

/// The backend that a segment goes to.
pub fn backend_of(segment: &Segment) -> u16 {
    u16::from(segment.to.ip().octets()[3]) - 10
}

fn configure(tables: &Tables, n: u16, weight: u32, backup: bool, max_conns: u32, pool: u16) {
    let row = BackendRow { weight, max_conns, backup, pools: vec![pool], ..backend_row() };
    tables.configure_backend(n, &row);
}

fn backend_row() -> BackendRow {
    BackendRow { weight: 1, retry_after: Duration::from_secs(10), ..BackendRow::default() }
}

/// Puts a pool into the row that the planner would choose.
pub fn put_pool(tables: &Tables, pool: &Pool, withheld: &[u16]) -> Result<u16> {
    let row = tables.read().free_pool_row(pool_backend(pool), pool_snat(pool)).context("no row for the pool")?;
    tables.put_pool(row, pool, withheld, false)?;
    Ok(row)
}

/// Puts a listener into the row that the planner would choose.
pub fn put_listener(tables: &Tables, address: SocketAddrV4, service: u16) -> Result<u16> {
    let installed = tables.read();
    let row = installed.listener(address).map(|(row, _)| row).or_else(|| installed.free_listener_row(address));
    let row = row.context("no row for the listener")?;
    tables.put_listener(row, &listener_record(address, service))?;
    Ok(row)
}

/// Gives this thread a network namespace with a veth `ek0`, and a mount namespace with a bpffs.
/// Both end with the thread.
fn own_namespaces() -> Result<std::path::PathBuf> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare: are you root?")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let folder = Path::new("/run/evenkeel-bench");
    std::fs::create_dir_all(folder)?;
    mount(Some("bpf"), folder, Some("bpf"), MsFlags::empty(), None::<&str>).context("mount a bpffs")?;
    // Its neighbour discovery would be counted as packets that are not ours.
    for which in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").context("switch IPv6 off")?;
    }
    ip("link set lo up")?;
    ip("link add ek0 type veth peer name ek1")?;
    ip("link set ek0 up")?;
    ip("link set ek1 up")?;
    Ok(folder.join("evenkeel"))
}

fn ip(arguments: &str) -> Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status().context("run ip")?;
    ensure!(status.success(), "ip {arguments}: {status}");
    Ok(())
}
