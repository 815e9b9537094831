use std::net::SocketAddrV4;

use lab::{
    Plan, arp,
    forger::Forger,
    packet::{ACK, FIN, RST, SYN, Segment},
    topology::{PORT, Topology},
    wait,
};
use serde_json::Value;

use super::{HOOKS, VIP, all_alive, client_of, conns, hold};
use crate::cluster::{Cluster, SOON};

/// A connection of client 1, and client 2 who knows its addresses and ports.
struct Scene {
    cluster: Cluster,
    held: lab::client::hold::Holding,
    forger: Forger,
    client: SocketAddrV4,
    backend: SocketAddrV4,
    snat: SocketAddrV4,
    name: String,
}

impl Scene {
    fn new(hook: &str) -> Scene {
        let cluster = Cluster::of(Plan::new(Topology::Segment).clients(2), hook, |service| service);
        let held = hold(&cluster, 1, hook);
        let row = conns(&cluster).remove(0);
        let address = |field: &str| row[field].as_str().and_then(|text| text.parse().ok()).expect("an address");
        let name = row["backend"].as_str().expect("a backend").to_owned();
        let host = cluster.lab.backends.iter().find(|host| *host.name == name).expect("its host");
        let backend = SocketAddrV4::new(host.address(), PORT);
        let forger = Forger::new(&cluster.lab.clients[1], &cluster.lab.balancer).expect("a forger");
        Scene { client: client_of(&row), backend, snat: address("snat"), name, forger, held, cluster }
    }

    fn trace(&self) -> Value {
        let trace = self.cluster.evenkeel.json(&["trace", &self.client.to_string()]).expect("trace");
        trace["connections"][0].clone()
    }

    /// What strangers must not change, from the kernel's tables.
    fn facts(&self) -> Vec<Value> {
        let trace = self.trace();
        let fields = ["state", "backend", "snat", "bytes_in", "bytes_out", "client_side", "backend_side"];
        fields.map(|field| trace[field].clone()).to_vec()
    }

    /// Waits until both sides have acknowledged everything: a delayed acknowledgement of their own is
    /// no stranger's.
    fn comes_to_rest(&self) {
        let at_rest = || {
            let trace = self.trace();
            let [client, backend] = ["client_side", "backend_side"].map(|side| trace[side].clone());
            let all = client["acknowledged"] == backend["end"] && backend["acknowledged"] == client["end"];
            all.then_some(())
        };
        wait::until("all is acknowledged", SOON, at_rest).expect("a connection at rest");
    }

    /// Sends segments, and waits until the balancer has seen them: behind them comes one of nobody,
    /// which is counted.
    fn send(&self, mut segments: Vec<Segment>) {
        let strays = || self.cluster.evenkeel.counter("unknown_flow").expect("a counter");
        let before = strays();
        segments.push(Segment::new(SocketAddrV4::new(*self.client.ip(), 9), VIP, ACK));
        self.forger.send(&segments).expect("forged segments");
        wait::until("the last one is counted", SOON, || (strays() > before).then_some(())).expect("counted");
    }

    /// Sends the segments in the name of the client and of the backend, each in turn, and checks
    /// that nothing is different.
    fn unmoved_by(&mut self, what: &str, segments: &[Segment]) {
        self.comes_to_rest();
        let before = self.facts();
        let in_names = |segment: &Segment| {
            let of_client = Segment { from: self.client, to: VIP, ..segment.clone() };
            let of_backend = Segment { from: self.backend, to: self.snat, ..segment.clone() };
            [of_client, of_backend]
        };
        let all: Vec<_> = segments.iter().flat_map(in_names).collect();
        self.send(all);
        assert_eq!(self.facts(), before, "{what}");
        let mac = arp::mac(self.cluster.lab.client(), "eth0").expect("a MAC address");
        assert_eq!(self.trace()["client_side"]["mac"], arp::text(mac), "{what}");
        all_alive(&mut self.held, 1, what);
    }
}

/// A segment without ends, which `unmoved_by` fills in.
fn forged(flags: u8, sequence: u32, acknowledgement: u32) -> Segment {
    Segment::new(VIP, VIP, flags).numbers(sequence, acknowledgement)
}

#[test]
fn segments_in_the_name_of_a_client_or_a_backend_without_their_numbers_change_nothing() {
    for hook in HOOKS {
        let mut scene = Scene::new(hook);
        // A quarter of the circle apart: wherever the connection is, one of them is near. No one of
        // them may hit by chance.
        let trace = scene.trace();
        let number = |side: &str| trace[side]["end"].as_u64().expect("a number") as u32;
        let (client, backend) = (number("client_side"), number("backend_side"));
        let off = |base: u32, step: u32| base.wrapping_add(1 << 29).wrapping_add(step << 30);
        let round = |flags| (0..4).map(move |step| forged(flags, off(client, step), off(backend, step)));
        let sweep: Vec<_> = round(ACK).chain(round(RST)).collect();
        scene.unmoved_by(&format!("{hook}: acknowledgements and resets round the circle"), &sweep);
        let sweep: Vec<_> = round(ACK | FIN).chain(round(RST | ACK)).collect();
        scene.unmoved_by(&format!("{hook}: FINs and resets round the circle"), &sweep);
        scene.unmoved_by(&format!("{hook}: one FIN"), &[forged(FIN | ACK, off(client, 1), off(backend, 2))]);
        let strange = [2, 0x66, 0x66, 0x66, 0x66, 0x66];
        let mut elsewhere = forged(ACK, off(client, 0), off(backend, 0));
        elsewhere.from_mac = strange;
        scene.unmoved_by(&format!("{hook}: a frame from another MAC"), &[elsewhere.clone()]);
        elsewhere.to_mac = strange;
        scene.unmoved_by(&format!("{hook}: a frame for another MAC"), &[elsewhere]);
        let data = forged(ACK, off(client, 3), off(backend, 3)).payload(&[9; 1000]);
        scene.unmoved_by(&format!("{hook}: data"), &[data]);
    }
}

#[test]
fn a_syn_in_the_name_of_a_client_closes_no_connection_of_a_drained_or_running_backend() {
    for hook in HOOKS {
        let mut scene = Scene::new(hook);
        let forge = |scene: &mut Scene, what: &str| {
            let before = scene.facts();
            let syn = |number| Segment::new(scene.client, VIP, SYN).numbers(number, 0);
            scene.send([1, 0x4000_0000, 0x8000_0001, 0xc000_0002].map(syn).to_vec());
            let after = scene.facts();
            assert_eq!(after[..5], before[..5], "{hook}, {what}: {}", scene.cluster.evenkeel.log());
            all_alive(&mut scene.held, 1, &format!("{hook}, {what}"));
        };
        forge(&mut scene, "running");
        scene.cluster.evenkeel.done(&["drain", &scene.name]).expect("drain");
        let drained = || (scene.cluster.backend(&scene.name).state == "draining").then_some(());
        wait::until("it is drained", SOON, drained).expect("drained");
        forge(&mut scene, "drained");
    }
}
