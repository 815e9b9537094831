//! Which hosts answer for an address: a host sends ARP requests at a quick pace and captures the
//! answers.

use std::{
    fs::File,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use evenkeel::{
    sys::{netdev, packet_socket::PacketSocket},
    vrrp::wire::arp,
};
use nix::sched::{CloneFlags, setns};

use crate::{Capture, Host, host::NETNS};

/// The pause between two requests for an address.
const BEAT: Duration = Duration::from_millis(20);
/// Where a request has the requested address.
const TARGET: std::ops::Range<usize> = 38..42;

/// A host that asks its segment for addresses, again and again, until it is dropped.
pub struct Asker {
    answers: Capture,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The time since the epoch.
    pub at: Duration,
    /// The address that was asked for.
    pub address: Ipv4Addr,
    /// The MAC address in the answer.
    pub mac: String,
}

impl Asker {
    /// Starts asking for these addresses on eth0.
    pub fn start(host: &Host, addresses: &[Ipv4Addr]) -> Result<Self> {
        let mac = mac(host, "eth0")?;
        // Answers are sent to the host that asked; broadcasts are not answers.
        let filter = format!("arp[6:2] = 2 and ether dst {}", text(mac));
        let answers = Capture::start_with(host, "eth0", &filter, &["-e"])?;
        let path = format!("{NETNS}/{}", host.namespace());
        let namespace = File::open(&path).context(path)?;
        let (own, addresses) = (host.address(), addresses.to_vec());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("setns");
            let socket = PacketSocket::open().expect("a packet socket");
            let device = netdev::index_of("eth0").expect("eth0");
            let mut question = arp::request(mac, own);
            while !stopped.load(Ordering::Relaxed) {
                for address in &addresses {
                    question[TARGET].copy_from_slice(&address.octets());
                    socket.send(device, &question).expect("a question");
                }
                thread::sleep(BEAT);
            }
        });
        Ok(Self { answers, stop, thread: Some(thread) })
    }

    /// The answers so far, in order.
    pub fn answers(&self) -> Vec<Answer> {
        self.answers.lines().iter().filter_map(|line| parse(line)).collect()
    }

    /// The MAC addresses that have answered for an address, without immediate repetitions: two
    /// hosts that answer in turn make a long list.
    pub fn answerers(&self, address: Ipv4Addr) -> Vec<String> {
        let mut macs: Vec<_> =
            self.answers().into_iter().filter(|answer| answer.address == address).map(|answer| answer.mac).collect();
        macs.dedup();
        macs
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that panicked has printed why.
        _ = self.thread.take().map(JoinHandle::join);
    }
}

/// `1764057600.1 02:… > 02:…, ethertype ARP (0x0806), length 42: Reply 10.0.1.100 is-at 02:…,
/// length 28`
fn parse(line: &str) -> Option<Answer> {
    let at = line.split(' ').next()?.parse().ok()?;
    let (_, answer) = line.split_once(": Reply ")?;
    let (address, mac) = answer.split_once(" is-at ")?;
    let mac = mac.split([',', ' ']).next()?.to_owned();
    Some(Answer { at: Duration::from_secs_f64(at), address: address.parse().ok()?, mac })
}

/// The MAC address of a device.
pub fn mac(host: &Host, device: &str) -> Result<[u8; 6]> {
    let shown = host.ip(&["-o", "link", "show", "dev", device])?;
    let word =
        shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("there is no MAC address")?;
    let bytes: Vec<_> = word.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.try_into().ok().with_context(|| format!("{word} is not a MAC address"))
}

/// The notation of `ip` and tcpdump.
pub fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
