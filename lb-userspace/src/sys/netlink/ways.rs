//! By which next hops this host reaches others: its neighbours, and the routes that lead through
//! one. Without I/O: the task in `watch` lists and hears, and passes it in.
//!
//! IPv4 only, as the clients are.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::hops::{Neighbour, NextHop};

/// Neighbours that are taken in; further ones are left out.
pub const MOST_NEIGHBOURS: usize = 12_288;
/// Routes that are taken in. Of more, none is: without the longer ones, the shorter ones would be
/// wrong.
pub const MOST_ROUTES: usize = 4096;

/// The way to all addresses of a prefix of which no longer prefix says anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through this next hop.
    Through(NextHop),
    /// Not known: each address is a neighbour of its own, or the router is not resolved.
    Unknown,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub to: IpNet,
    /// The router, if there is exactly one.
    pub router: Option<Neighbour>,
    /// The lowest one of a destination counts.
    pub metric: u32,
}

/// Neighbours and routes as far as they are known, and what was reported of them.
#[derive(Debug, Default)]
pub struct Ways {
    neighbours: BTreeMap<Neighbour, [u8; 6]>,
    /// The interfaces on which there have been neighbours.
    links: BTreeSet<u32>,
    routes: BTreeMap<IpNet, Route>,
    reported: BTreeMap<IpNet, Way>,
    /// Prefixes of which something may be new.
    changed: BTreeSet<IpNet>,
}

impl Ways {
    /// News of a neighbour; `None`: the kernel would not send to it.
    pub fn neighbour(&mut self, neighbour: Neighbour, mac: Option<[u8; 6]>) {
        let (_, address) = neighbour;
        let is_full = self.neighbours.len() >= MOST_NEIGHBOURS && !self.neighbours.contains_key(&neighbour);
        if address.is_ipv6() && !self.is_router(neighbour) || mac.is_some() && is_full {
            return;
        }
        let before = match mac {
            Some(mac) => self.neighbours.insert(neighbour, mac),
            None => self.neighbours.remove(&neighbour),
        };
        self.links.insert(neighbour.0);
        if before != mac {
            self.changed.extend(address.is_ipv4().then(|| IpNet::from(address)));
            let through = self.routes.values().filter(|route| route.router == Some(neighbour));
            self.changed.extend(through.map(|route| route.to));
        }
    }

    /// Replaces all neighbours.
    pub fn neighbours(&mut self, listed: impl IntoIterator<Item = (Neighbour, Option<[u8; 6]>)>) {
        let mut gone: BTreeSet<_> = self.neighbours.keys().copied().collect();
        for (neighbour, mac) in listed {
            gone.remove(&neighbour);
            self.neighbour(neighbour, mac);
        }
        gone.into_iter().for_each(|neighbour| self.neighbour(neighbour, None));
    }

    /// Replaces all routes.
    pub fn routes(&mut self, listed: impl IntoIterator<Item = Route>) {
        let mut routes: BTreeMap<IpNet, Route> = BTreeMap::new();
        for route in listed {
            let kept = routes.entry(route.to).or_insert(route);
            if route.metric < kept.metric {
                *kept = route;
            }
            if routes.len() > MOST_ROUTES {
                routes.clear();
                break;
            }
        }
        self.changed.extend(self.routes.keys().chain(routes.keys()));
        self.routes = routes;
    }

    /// The routers, which are to be kept resolved.
    pub fn routers(&self) -> BTreeSet<Neighbour> {
        self.routes.values().filter_map(|route| route.router).collect()
    }

    fn is_router(&self, neighbour: Neighbour) -> bool {
        self.routes.values().any(|route| route.router == Some(neighbour))
    }

    /// Whether anything may be new.
    pub fn has_news(&self) -> bool {
        !self.changed.is_empty()
    }

    /// What is new since the last call; `None`: nothing is said of the prefix any longer.
    pub fn news(&mut self) -> Vec<(IpNet, Option<Way>)> {
        let mut news = Vec::new();
        for prefix in std::mem::take(&mut self.changed) {
            let way = self.way(prefix);
            let before = match way {
                Some(way) => self.reported.insert(prefix, way),
                None => self.reported.remove(&prefix),
            };
            if before != way {
                news.push((prefix, way));
            }
        }
        news
    }

    fn way(&self, prefix: IpNet) -> Option<Way> {
        if let Some(route) = self.routes.get(&prefix)
            && route.router.is_some()
        {
            return Some(route.router.and_then(|router| self.through(router)).unwrap_or(Way::Unknown));
        }
        let own = (prefix.prefix_len() == prefix.max_prefix_len()).then(|| prefix.addr());
        let found = own.and_then(|address| {
            let mut all = self.links.iter().map(|link| (*link, address));
            all.find_map(|neighbour| self.through(neighbour))
        });
        found.or(self.routes.get(&prefix).map(|_| Way::Unknown))
    }

    fn through(&self, neighbour: Neighbour) -> Option<Way> {
        let mac = *self.neighbours.get(&neighbour)?;
        Some(Way::Through(NextHop { ifindex: neighbour.0, mac }))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn at(ifindex: u32, text: &str) -> Neighbour {
        (ifindex, text.parse().unwrap())
    }

    fn route(to: &str, router: Option<Neighbour>) -> Route {
        Route { to: net(to), router, metric: 0 }
    }

    fn through(ifindex: u32, mac: u8) -> Option<Way> {
        Some(Way::Through(NextHop { ifindex, mac: [mac; 6] }))
    }

    /// One segment with a router, which leads everywhere.
    fn segment() -> Ways {
        let mut ways = Ways::default();
        ways.routes([route("10.0.1.0/24", None), route("0.0.0.0/0", Some(at(2, "10.0.1.254")))]);
        ways
    }

    #[test]
    fn whoever_is_on_the_link_and_unknown_is_not_reached_through_the_router() {
        let mut ways = segment();
        ways.neighbour(at(2, "10.0.1.254"), Some([9; 6]));
        let all = [
            (net("0.0.0.0/0"), through(2, 9)),
            (net("10.0.1.0/24"), Some(Way::Unknown)),
            (net("10.0.1.254/32"), through(2, 9)),
        ];
        assert_eq!(ways.news(), all);
        ways.neighbour(at(2, "10.0.1.7"), Some([7; 6]));
        assert_eq!(ways.news(), [(net("10.0.1.7/32"), through(2, 7))]);
        ways.neighbour(at(2, "10.0.1.7"), None);
        assert_eq!(ways.news(), [(net("10.0.1.7/32"), None)]);
        assert!(!ways.has_news());
    }

    #[test]
    fn a_router_that_changes_its_mac_takes_its_routes_along_and_one_that_is_lost_leaves_them_unknown() {
        let mut ways = segment();
        ways.neighbour(at(2, "10.0.1.254"), Some([9; 6]));
        ways.news();
        ways.neighbour(at(2, "10.0.1.254"), Some([8; 6]));
        assert_eq!(ways.news(), [(net("0.0.0.0/0"), through(2, 8)), (net("10.0.1.254/32"), through(2, 8))]);
        ways.neighbour(at(2, "10.0.1.254"), Some([8; 6]));
        assert!(!ways.has_news());
        ways.neighbour(at(2, "10.0.1.254"), None);
        assert_eq!(ways.news(), [(net("0.0.0.0/0"), Some(Way::Unknown)), (net("10.0.1.254/32"), None)]);
    }

    #[test]
    fn a_route_that_goes_or_changes_is_reported_and_of_two_the_lower_metric_counts() {
        let mut ways = segment();
        ways.neighbour(at(2, "10.0.1.254"), Some([9; 6]));
        ways.neighbour(at(3, "10.0.3.1"), Some([3; 6]));
        ways.news();
        let worse = Route { metric: 100, ..route("10.9.0.0/16", Some(at(2, "10.0.1.254"))) };
        ways.routes([worse, route("10.9.0.0/16", Some(at(3, "10.0.3.1"))), route("10.0.1.0/24", None)]);
        assert_eq!(ways.news(), [(net("0.0.0.0/0"), None), (net("10.9.0.0/16"), through(3, 3))]);
        assert_eq!(ways.routers(), [at(3, "10.0.3.1")].into());
    }

    #[test]
    fn a_list_of_neighbours_takes_away_those_that_it_does_not_name() {
        let mut ways = segment();
        ways.neighbour(at(2, "10.0.1.7"), Some([7; 6]));
        ways.news();
        ways.neighbours([(at(2, "10.0.1.8"), Some([8; 6]))]);
        assert_eq!(ways.news(), [(net("10.0.1.7/32"), None), (net("10.0.1.8/32"), through(2, 8))]);
    }

    #[test]
    fn no_more_is_taken_in_than_there_is_room_for() {
        let mut ways = segment();
        for n in 0..2 * MOST_NEIGHBOURS as u32 {
            ways.neighbour((2, IpAddr::V4((0x0a07_0000 + n).into())), Some([1; 6]));
        }
        assert_eq!(ways.news().len(), MOST_NEIGHBOURS + 2);
        let many = (0..=MOST_ROUTES as u32).map(|n| route(&format!("10.{}.{}.0/24", n >> 8, n & 255), None));
        ways.routes(many);
        assert_eq!(ways.news(), [(net("0.0.0.0/0"), None), (net("10.0.1.0/24"), None)], "a part of them would mislead");
    }
}
