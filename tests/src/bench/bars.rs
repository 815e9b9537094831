//! The goals, and whether a run reaches them.

use super::{
    lab::systems::System,
    page::idle_added,
    results::Results,
    statistics::{Summary, differences, ratios},
    tables::{number, spread, table},
};

/// One goal: a figure that must not exceed a limit.
pub struct Bar {
    pub what: String,
    pub limit: f64,
    pub measured: Option<Summary>,
    /// The same figure of a balancer that only rewrites, which no balancer can beat.
    pub bare: Option<Summary>,
}

impl Bar {
    /// The goal for a figure itself.
    pub fn of(results: &Results, what: &str, figure: &str, limit: f64) -> Bar {
        Bar { what: what.to_owned(), limit, measured: results.summary(figure), bare: None }
    }

    /// The goal for what one system adds to its base, as a share of what another adds to its own,
    /// computed within each round.
    pub fn added(results: &Results, what: &str, ours: (&str, &str), theirs: (&str, &str), limit: f64) -> Bar {
        let added = |(of, base): (&str, &str)| differences(results.rounds(of), results.rounds(base));
        Bar { what: what.to_owned(), limit, measured: Summary::of(&ratios(&added(ours), &added(theirs))), bare: None }
    }

    /// `yes`, `no`, or `not measured`.
    pub fn verdict(&self) -> &'static str {
        match self.measured {
            Some(measured) if measured.median <= self.limit => "yes",
            Some(_) => "**no**",
            None => "not measured",
        }
    }
}

/// All goals, with the figures of a run in the lab and of a run of the packets.
pub fn all(lab: Option<&Results>, packets: Option<&Results>) -> Vec<Bar> {
    let none = Results::none();
    let (lab, packets) = (lab.unwrap_or(&none), packets.unwrap_or(&none));
    let mut all = of_packets(packets);
    all.extend(of_works(lab));
    all.extend(of_idle(lab));
    all
}

fn of_packets(packets: &Results) -> Vec<Bar> {
    let limits = [("forward", 1, 45.0), ("forward", 1024, 55.0), ("forward", 65_536, 150.0)];
    let limits = limits.into_iter().chain([("reply", 1, 40.0), ("reply", 1024, 45.0), ("reply", 65_536, 110.0)]);
    let flows = |(way, flows, limit): (&str, u32, f64)| {
        let plural = if flows == 1 { "flow" } else { "flows" };
        let what = format!("{way}, XDP, {} {plural}, ns", number(f64::from(flows)).trim_end_matches(".00"));
        Bar::of(packets, &what, &format!("packets/xdp/{way}/{flows}"), limit)
    };
    let mut all: Vec<_> = limits.map(flows).collect();
    all.push(Bar::of(packets, "new connection, XDP, all included, ns", "packets/xdp/new", 600.0));
    all
}

fn of_works(lab: &Results) -> Vec<Bar> {
    use System::{Bare, Nft, Nginx, Tc, Xdp};
    let bar = |what: &str, work: &str, figure: &str, ours: System, theirs: System, limit: f64| {
        let name = |system: System| format!("lab/{work}/{}/{figure}", system.name());
        let pair = |system: System| (name(system), name(system.base()));
        let what = format!("{what}, × {}'s", theirs.name());
        let (others, others_base) = pair(theirs);
        let compared = |system: System| {
            let (own, base) = pair(system);
            Bar::added(lab, &what, (&own, &base), (&others, &others_base), limit)
        };
        let bare = if ours == Tc { compared(Bare).measured } else { None };
        Bar { bare, ..compared(ours) }
    };
    vec![
        bar("CPU added per kept request, TC", "kept-tcp", "cpu", Tc, Nginx, 0.25),
        bar("CPU added per kept request, TC", "kept-tcp", "cpu", Tc, Nft, 0.75),
        bar("CPU added per new connection, TC", "new-tcp", "cpu", Tc, Nginx, 0.33),
        bar("CPU added per new connection, TC", "new-tcp", "cpu", Tc, Nft, 0.85),
        bar("the same at a fixed rate", "new-tcp-fixed", "cpu", Tc, Nginx, 0.22),
        bar("median latency added there", "new-tcp-fixed", "p50", Tc, Nginx, 0.20),
        bar("median latency added, one unloaded kept connection", "one", "p50", Tc, Nginx, 0.20),
        bar("CPU added per GB, super-packets, TC", "bulk", "cpu", Tc, Nginx, 0.08),
        bar("CPU added per GB, MTU-sized frames, TC", "bulk-mtu", "cpu", Tc, Nginx, 0.33),
        bar("CPU added per GB, MTU-sized frames, TC", "bulk-mtu", "cpu", Tc, Nft, 0.65),
        bar("CPU added per kept request, native XDP on veth", "kept-tcp", "cpu", Xdp, Nginx, 0.40),
    ]
}

fn of_idle(lab: &Results) -> Vec<Bar> {
    let daemon = |what: &str, figure: &str, limit: f64| Bar::of(lab, what, &format!("lab/daemon/{figure}"), limit);
    let added = Summary::of(&idle_added(lab, System::Tc));
    vec![
        Bar { what: "memory added by an idle connection, bytes".to_owned(), limit: 64.0, measured: added, bare: None },
        Bar::of(lab, "all tables, bytes per slot", "lab/idle/evenkeel-tc/per slot", 192.0),
        daemon("the daemon's own memory with 100,000 idle connections, MiB", "RssAnon, 100000 idle", 24.0),
        daemon("its CPU then, % of a core", "cpu, 100000 idle", 0.5),
        daemon("start to first forwarded connection, ms", "first connection", 400.0),
        daemon("reload of 64 changed backends, ms", "reload, 64 backends changed", 50.0),
    ]
}

/// A table of the goals.
pub fn report(bars: &[Bar]) -> String {
    let bare = |bar: &Bar| bar.bare.map_or_else(String::new, |bare| spread(Some(bare)));
    let row = |bar: &Bar| {
        vec![bar.what.clone(), number(bar.limit), spread(bar.measured), bar.verdict().to_owned(), bare(bar)]
    };
    table(&["figure", "at most", "measured", "reached", "a bare rewrite"], &bars.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;

    fn results() -> Results {
        let mut results = Results { machine: Machine::default(), command: String::new(), figures: Vec::new() };
        for (name, rounds) in
            [("direct", [10.0, 20.0, 30.0]), ("nginx", [20.0, 30.0, 40.0]), ("ours", [12.0, 22.5, 33.0])]
        {
            rounds.iter().for_each(|value| results.add(name, "µs", *value));
        }
        results
    }

    #[test]
    fn what_is_added_is_compared_within_each_round() {
        let bar = Bar::added(&results(), "x", ("ours", "direct"), ("nginx", "direct"), 0.25);
        assert_eq!(bar.measured, Summary::of(&[0.2, 0.25, 0.3]));
        assert_eq!(bar.verdict(), "yes");
        assert_eq!(Bar { limit: 0.2, ..bar }.verdict(), "**no**");
    }

    #[test]
    fn what_was_not_measured_is_neither_reached_nor_missed() {
        assert_eq!(Bar::of(&results(), "x", "nothing", 1.0).verdict(), "not measured");
        assert_eq!(Bar::added(&results(), "x", ("nothing", "direct"), ("nginx", "direct"), 1.0).measured, None);
    }
}
