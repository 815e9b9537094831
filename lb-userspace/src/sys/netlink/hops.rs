//! Which MAC address leads to which destination: what is wanted, what routes and neighbours say,
//! what was reported. Without I/O: the task in `watch` asks the kernel and passes the answers in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{ways::Way, wire::LinkNews};

/// An address to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Its address.
    pub address: IpAddr,
    /// The interface through which it has to be reached; `None`: the one that the routes give.
    pub interface: Option<u32>,
}

/// Where frames for a destination are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The index of the outgoing interface.
    pub ifindex: u32,
    /// The MAC address they are sent to.
    pub mac: [u8; 6],
}

/// A neighbour on a link, by interface index and address: the destination itself, or the router in
/// front of it.
pub type Neighbour = (u32, IpAddr);

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A destination's next hop has changed or is gone: there is no route, or a new route whose
    /// neighbour is not resolved yet. A neighbour that stops answering keeps its MAC address here,
    /// because a lost ARP answer must not cut connections, and so does one whose route is back
    /// after its link was down or made anew; whether a backend is alive is found out elsewhere.
    NextHop {
        /// The destination.
        destination: Destination,
        /// Its next hop; `None`: it has no next hop.
        hop: Option<NextHop>,
    },
    /// A network interface is new or has changed; all of them are reported at the start.
    Link {
        /// The kernel's index for it.
        ifindex: u32,
        /// Its name.
        name: String,
        /// Its MAC address; zero if it has none.
        mac: [u8; 6],
        /// The longest packet that it sends.
        mtu: u32,
        /// Whether it is up and has a carrier.
        up: bool,
        /// Whether the host may be asked for an address by it, see
        /// [`asked_interfaces`](super::asked_interfaces).
        asked: bool,
    },
    /// By which next hops this host reaches others; see [`Way`].
    Ways {
        /// What has changed; `None`: nothing is said of the prefix any longer.
        news: Vec<(IpNet, Option<Way>)>,
    },
    /// A network interface is gone. One that has come back under the same index is reported anew
    /// after this.
    LinkGone {
        /// The index it had.
        ifindex: u32,
    },
}

/// How many neighbours without a route are remembered: more than there are backends.
const REMEMBERED: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    mac: Option<[u8; 6]>,
    /// The kernel considers it reachable, or has no reason to doubt it.
    valid: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    name: String,
    mac: [u8; 6],
    mtu: u32,
    up: bool,
    asked: bool,
}

/// Destinations, routes, neighbours and links as far as they are known.
#[derive(Debug, Default)]
pub struct Hops {
    routes: BTreeMap<Destination, Option<Neighbour>>,
    neighbours: BTreeMap<Neighbour, Known>,
    /// The last MAC address of neighbours that no route leads through any longer, by the name of
    /// the link. When a link was down, or made anew, they hold until the neighbour answers.
    last: BTreeMap<(String, IpAddr), [u8; 6]>,
    reported: BTreeMap<Destination, Option<NextHop>>,
    links: BTreeMap<u32, Link>,
    /// Links whose change is not reported yet. Together with `reported` it bounds what waits for a
    /// slow receiver: the latest state of each, never a queue.
    changed_links: BTreeSet<u32>,
    /// Links that went, perhaps to come back under the same index, and are not reported as gone yet.
    gone_links: BTreeSet<u32>,
}

impl Hops {
    /// Replaces the whole set of destinations. Those that stay keep their route until `route` gives
    /// a new one.
    pub fn want(&mut self, destinations: &[Destination]) {
        let mut routes: BTreeMap<_, _> = destinations.iter().map(|destination| (*destination, None)).collect();
        for (destination, via) in &mut routes {
            *via = self.routes.get(destination).copied().flatten();
        }
        self.routes = routes;
        self.reported.retain(|destination, _| self.routes.contains_key(destination));
        self.forget_unused();
    }

    /// The destinations that are wanted.
    pub fn wanted(&self) -> Vec<Destination> {
        self.routes.keys().copied().collect()
    }

    /// Sets the neighbour through which a destination is reached; `None`: it is unreachable.
    pub fn route(&mut self, destination: Destination, via: Option<Neighbour>) {
        if let Some(route) = self.routes.get_mut(&destination) {
            *route = via;
        }
        if let Some(via) = via
            && !self.neighbours.contains_key(&via)
        {
            let name = self.links.get(&via.0).map(|link| link.name.clone()).unwrap_or_default();
            let mac = self.last.remove(&(name, via.1));
            self.neighbours.insert(via, Known { mac, valid: false });
        }
        self.forget_unused();
    }

    fn forget_unused(&mut self) {
        let used: BTreeSet<Neighbour> = self.routes.values().copied().flatten().collect();
        self.forget(|neighbour| !used.contains(neighbour));
    }

    fn forget(&mut self, unused: impl Fn(&Neighbour) -> bool) {
        for ((ifindex, address), known) in self.neighbours.extract_if(.., |neighbour, _| unused(neighbour)) {
            let (Some(link), Some(mac)) = (self.links.get(&ifindex), known.mac) else { continue };
            if self.last.len() == REMEMBERED {
                self.last.clear();
            }
            self.last.insert((link.name.clone(), address), mac);
        }
    }

    /// News of a neighbour. Most of it concerns none of ours and costs one look-up.
    pub fn neighbour(&mut self, neighbour: Neighbour, mac: Option<[u8; 6]>) {
        if let Some(known) = self.neighbours.get_mut(&neighbour) {
            known.valid = mac.is_some();
            known.mac = mac.or(known.mac);
        }
    }

    /// Takes in a list of all neighbours: one that is not in it is not valid.
    pub fn all_neighbours(&mut self, listed: &[(Neighbour, Option<[u8; 6]>)]) {
        self.neighbours.values_mut().for_each(|known| known.valid = false);
        listed.iter().for_each(|(neighbour, mac)| self.neighbour(*neighbour, *mac));
    }

    /// All neighbours in use, which are to be kept alive.
    pub fn neighbours(&self) -> Vec<Neighbour> {
        self.neighbours.keys().copied().collect()
    }

    /// The neighbours that have to be resolved.
    pub fn unresolved(&self) -> Vec<Neighbour> {
        self.neighbours.iter().filter(|(_, known)| !known.valid).map(|(neighbour, _)| *neighbour).collect()
    }

    /// News of a link. `true`: its state has changed.
    pub fn link(&mut self, LinkNews { ifindex, name, mac, mtu, up, asked }: LinkNews) -> bool {
        let link = Link { name, mac, mtu, up, asked };
        if self.links.get(&ifindex) == Some(&link) {
            return false;
        }
        self.links.insert(ifindex, link);
        self.changed_links.insert(ifindex);
        true
    }

    /// A link is gone, and with it what was known by it: another one may get its index.
    pub fn link_gone(&mut self, ifindex: u32) {
        self.forget(|(by, _)| *by == ifindex);
        if self.links.remove(&ifindex).is_none() {
            return;
        }
        self.changed_links.remove(&ifindex);
        self.gone_links.insert(ifindex);
        for via in self.routes.values_mut() {
            *via = via.filter(|(by, _)| *by != ifindex);
        }
        self.reported.retain(|_, hop| hop.is_none_or(|hop| hop.ifindex != ifindex));
    }

    /// The indexes of the known links.
    pub fn links(&self) -> Vec<u32> {
        self.links.keys().copied().collect()
    }

    /// Whether there is something to report.
    pub fn has_change(&self) -> bool {
        !self.gone_links.is_empty() || !self.changed_links.is_empty() || self.next_hop_change().is_some()
    }

    /// Takes one change to report: links first, because a next hop names one.
    pub fn take_change(&mut self) -> Option<Change> {
        if let Some(ifindex) = self.gone_links.pop_first() {
            return Some(Change::LinkGone { ifindex });
        }
        while let Some(ifindex) = self.changed_links.pop_first() {
            if let Some(Link { name, mac, mtu, up, asked }) = self.links.get(&ifindex).cloned() {
                return Some(Change::Link { ifindex, name, mac, mtu, up, asked });
            }
        }
        let (destination, hop) = self.next_hop_change()?;
        self.reported.insert(destination, hop);
        Some(Change::NextHop { destination, hop })
    }

    fn next_hop_change(&self) -> Option<(Destination, Option<NextHop>)> {
        let current = self.routes.iter().map(|(destination, via)| (*destination, self.next_hop(*via)));
        current.into_iter().find(|(destination, hop)| self.reported.get(destination).copied().flatten() != *hop)
    }

    fn next_hop(&self, via: Option<Neighbour>) -> Option<NextHop> {
        let via = via?;
        let mac = self.neighbours.get(&via)?.mac?;
        Some(NextHop { ifindex: via.0, mac })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn destination(text: &str) -> Destination {
        Destination { address: ip(text), interface: None }
    }

    fn news(ifindex: u32, name: impl Into<String>, mac: [u8; 6], up: bool) -> LinkNews {
        LinkNews { ifindex, name: name.into(), mac, mtu: 1500, up, asked: true }
    }

    fn changes(hops: &mut Hops) -> Vec<Change> {
        std::iter::from_fn(|| hops.take_change()).collect()
    }

    fn next_hop(text: &str, hop: Option<(u32, u8)>) -> Change {
        let hop = hop.map(|(ifindex, mac)| NextHop { ifindex, mac: [mac; 6] });
        Change::NextHop { destination: destination(text), hop }
    }

    /// Two backends behind one router, one on the link.
    fn routed() -> Hops {
        let mut hops = Hops::default();
        hops.want(&[destination("10.0.1.10"), destination("10.9.0.1"), destination("10.9.0.2")]);
        hops.route(destination("10.0.1.10"), Some((2, ip("10.0.1.10"))));
        hops.route(destination("10.9.0.1"), Some((3, ip("10.0.3.1"))));
        hops.route(destination("10.9.0.2"), Some((3, ip("10.0.3.1"))));
        hops
    }

    #[test]
    fn a_destination_is_reported_when_its_route_and_neighbour_are_known_and_only_once() {
        let mut hops = routed();
        assert_eq!(changes(&mut hops), [], "not known yet is what the receiver starts with");
        assert_eq!(hops.unresolved(), [(2, ip("10.0.1.10")), (3, ip("10.0.3.1"))]);
        hops.neighbour((3, ip("10.0.3.1")), Some([7; 6]));
        assert_eq!(changes(&mut hops), [next_hop("10.9.0.1", Some((3, 7))), next_hop("10.9.0.2", Some((3, 7)))]);
        hops.neighbour((3, ip("10.0.3.1")), Some([7; 6]));
        assert_eq!((hops.has_change(), hops.unresolved()), (false, vec![(2, ip("10.0.1.10"))]));
    }

    #[test]
    fn a_neighbour_that_does_not_answer_is_asked_again_but_keeps_its_mac() {
        let mut hops = routed();
        hops.neighbour((2, ip("10.0.1.10")), Some([1; 6]));
        changes(&mut hops);
        hops.neighbour((2, ip("10.0.1.10")), None);
        assert_eq!(changes(&mut hops), []);
        assert!(hops.unresolved().contains(&(2, ip("10.0.1.10"))));
        hops.neighbour((2, ip("10.0.1.10")), Some([9; 6]));
        assert_eq!(changes(&mut hops), [next_hop("10.0.1.10", Some((2, 9)))], "another machine has the address now");
    }

    #[test]
    fn a_neighbour_that_is_not_in_the_kernel_s_list_any_more_is_asked_again_and_keeps_its_mac() {
        let mut hops = routed();
        let listed = [((2, ip("10.0.1.10")), Some([1; 6])), ((3, ip("10.0.3.1")), Some([7; 6]))];
        hops.all_neighbours(&listed);
        changes(&mut hops);
        assert_eq!(hops.unresolved(), []);
        hops.all_neighbours(&listed[1..]);
        assert_eq!((changes(&mut hops), hops.unresolved()), (vec![], vec![(2, ip("10.0.1.10"))]));
    }

    #[test]
    fn a_route_that_changes_takes_its_next_hop_along_and_one_that_goes_takes_it_away() {
        let mut hops = routed();
        hops.neighbour((3, ip("10.0.3.1")), Some([7; 6]));
        changes(&mut hops);
        hops.route(destination("10.9.0.1"), Some((2, ip("10.0.1.254"))));
        assert_eq!(changes(&mut hops), [next_hop("10.9.0.1", None)]);
        hops.neighbour((2, ip("10.0.1.254")), Some([8; 6]));
        assert_eq!(changes(&mut hops), [next_hop("10.9.0.1", Some((2, 8)))]);
        hops.route(destination("10.9.0.2"), None);
        assert_eq!(changes(&mut hops), [next_hop("10.9.0.2", None)]);
        assert!(!hops.neighbours().contains(&(3, ip("10.0.3.1"))), "nobody's router is not kept alive");
    }

    #[test]
    fn a_destination_still_wanted_keeps_its_next_hop_and_one_that_returns_is_reported_again() {
        let mut hops = routed();
        hops.neighbour((3, ip("10.0.3.1")), Some([7; 6]));
        changes(&mut hops);
        hops.want(&[destination("10.9.0.1"), destination("10.0.1.11")]);
        assert_eq!(changes(&mut hops), []);
        hops.want(&[destination("10.9.0.1"), destination("10.9.0.2")]);
        hops.route(destination("10.9.0.2"), Some((3, ip("10.0.3.1"))));
        assert_eq!(changes(&mut hops), [next_hop("10.9.0.2", Some((3, 7)))]);
    }

    #[test]
    fn links_are_reported_when_they_change_the_latest_state_only() {
        let mut hops = Hops::default();
        assert!(hops.link(news(2, "eth0", [1; 6], false)));
        assert!(hops.link(news(2, "eth0", [1; 6], true)));
        assert!(!hops.link(news(2, "eth0", [1; 6], true)));
        assert!(hops.link(LinkNews { mtu: 9000, ..news(2, "eth0", [1; 6], true) }));
        let link = Change::Link { ifindex: 2, name: "eth0".into(), mac: [1; 6], mtu: 9000, up: true, asked: true };
        assert_eq!(changes(&mut hops), [link]);
        hops.link_gone(2);
        hops.link_gone(5);
        assert_eq!(changes(&mut hops), [Change::LinkGone { ifindex: 2 }]);
    }

    #[test]
    fn a_link_that_comes_back_under_its_index_is_another_one() {
        let mut hops = routed();
        hops.link(news(3, "eth1", [1; 6], true));
        hops.neighbour((3, ip("10.0.3.1")), Some([7; 6]));
        changes(&mut hops);
        hops.link_gone(3);
        hops.link(news(3, "eth1", [1; 6], true));
        let link = Change::Link { ifindex: 3, name: "eth1".into(), mac: [1; 6], mtu: 1500, up: true, asked: true };
        assert_eq!(changes(&mut hops), [Change::LinkGone { ifindex: 3 }, link.clone()]);
        hops.route(destination("10.9.0.1"), Some((3, ip("10.0.3.1"))));
        hops.neighbour((3, ip("10.0.3.1")), Some([7; 6]));
        let again = next_hop("10.9.0.1", Some((3, 7)));
        assert_eq!(changes(&mut hops), [again], "the receiver has forgotten it with the link");
        // New and gone before it was reported.
        hops.link_gone(3);
        hops.link(news(3, "eth1", [1; 6], true));
        hops.link_gone(3);
        assert_eq!(changes(&mut hops), [Change::LinkGone { ifindex: 3 }]);
    }

    /// Clients that come before the neighbour has answered again are served rather than refused.
    #[test]
    fn a_neighbour_keeps_its_mac_while_its_link_is_down_or_made_anew_and_is_asked_again() {
        let mut hops = routed();
        let (backend, name) = (destination("10.0.1.10"), "eth0".to_owned());
        hops.link(news(2, name.clone(), [1; 6], true));
        hops.neighbour((2, backend.address), Some([7; 6]));
        changes(&mut hops);
        hops.route(backend, None);
        assert_eq!(changes(&mut hops), [next_hop("10.0.1.10", None)]);
        hops.route(backend, Some((2, backend.address)));
        assert_eq!(changes(&mut hops), [next_hop("10.0.1.10", Some((2, 7)))]);
        assert!(hops.unresolved().contains(&(2, backend.address)));
        hops.link_gone(2);
        hops.link(news(9, name, [1; 6], true));
        changes(&mut hops);
        hops.route(backend, Some((9, backend.address)));
        assert_eq!(changes(&mut hops), [next_hop("10.0.1.10", Some((9, 7)))]);
        hops.neighbour((9, backend.address), Some([8; 6]));
        assert_eq!(changes(&mut hops), [next_hop("10.0.1.10", Some((9, 8)))]);
        // Another link is another segment.
        hops.link(news(4, "eth1", [2; 6], true));
        changes(&mut hops);
        hops.route(backend, Some((4, backend.address)));
        assert_eq!(changes(&mut hops), [next_hop("10.0.1.10", None)]);
    }

    #[test]
    fn a_thousand_messages_about_others_leave_nothing_behind() {
        let mut hops = routed();
        for host in 0..1000_u16 {
            let [high, low] = host.to_be_bytes();
            hops.neighbour((2, IpAddr::from([10, 7, high, low])), Some([low; 6]));
        }
        assert_eq!((hops.neighbours().len(), hops.has_change()), (2, false));
    }
}
