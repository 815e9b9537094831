//! The tables of the packet benchmark.

use crate::bench::{
    results::Results,
    statistics::Summary,
    tables::{middle, number, spread, table},
};

/// All tables that were measured.
pub fn report(results: &Results) -> String {
    let empty = |hook: &str| middle(results.summary(&format!("packets/{hook}/empty")));
    let mut text = format!(
        "## Nanoseconds per packet\n\n`BPF_PROG_TEST_RUN` runs the attached program with its real tables on packets that are \
         made for each run; verdict, bytes and counters of what is timed are checked. What it costs to make the packets and \
         to repeat is measured in the same round and subtracted. Measured in the same way, a program that only sends the \
         frame back takes {} ns on XDP and {} ns on TC. A round is the quickest of several runs, because another load on \
         the machine makes runs slower, never quicker; packets that are answered with RSTs, which are limited, run once.\
         \n\n![Packets](packets.svg)\n\n",
        empty("xdp"),
        empty("tc")
    );
    text += &by_flows(results);
    let sizes = by(results, &["forward/max_connections", "reply/max_connections"]);
    text += &part(results, "65,536 flows, by the size of the tables", &sizes);
    let lives = ["new", "new_on_a_used_port", "answer", "first_ack", "first_fin", "last_fin", "last_ack"];
    text += &part(results, "A connection's life, every flow new", &lives.map(str::to_owned));
    let backends = by(results, &["new/backends", "last_fin/backends"]);
    text += &part(results, "By the number of backends (least_conn, on used ports)", &backends);
    let services = by(results, &["forward/services", "reply/services"]);
    text += &part(results, "By the number of services, at 1,024 flows", &services);
    let strangers = ["unknown", "cookie", "other_port", "udp", "arp"].map(str::to_owned);
    text += &part(
        results,
        "No known flow (answered with a RST, or a SYN with a cookie), and packets that are not ours",
        &strangers,
    );
    let compared = ["rewrite", "hash_entry"].map(str::to_owned);
    text += &part(
        results,
        "For comparison: a full NAT rewrite and nothing else; a new client entered in a kernel HASH and nothing else",
        &compared,
    );
    text
}

/// The names of figures that continue with a number, in the order in which they were measured.
fn by(results: &Results, prefixes: &[&str]) -> Vec<String> {
    let of = |prefix: &&str| {
        let begin = format!("packets/xdp/{prefix}/");
        let names = results.figures.iter().filter(move |figure| figure.name.starts_with(&begin));
        names.map(|figure| figure.name["packets/xdp/".len()..].to_owned()).collect::<Vec<_>>()
    };
    prefixes.iter().flat_map(of).collect()
}

fn by_flows(results: &Results) -> String {
    let flows: Vec<_> =
        by(results, &["forward"]).iter().filter_map(|name| name["forward/".len()..].parse().ok()).collect();
    if flows.is_empty() {
        return String::new();
    }
    let hash = "kernel HASH, one lookup";
    let (one, two) = ("one read from a table of cache lines", "two dependent reads and a bare rewrite");
    let head = ["flows", "XDP forward", "XDP reply", "TC forward", "TC reply", hash, one, two];
    let row = |flows: &u32| {
        let of = |name: &str| spread(results.summary(&format!("packets/{name}/{flows}")));
        let names = ["xdp/forward", "xdp/reply", "tc/forward", "tc/reply", "xdp/hash", "xdp/lines", "xdp/found"];
        let flows = number(f64::from(*flows)).trim_end_matches(".00").trim_end_matches(".0").to_owned();
        std::iter::once(flows).chain(names.map(of)).collect::<Vec<_>>()
    };
    format!("### Established flows\n\n{}\n", table(&head, &flows.iter().map(row).collect::<Vec<_>>()))
}

fn part(results: &Results, title: &str, names: &[String]) -> String {
    let of = |hook: &str, name: &str| -> Option<Summary> { results.summary(&format!("packets/{hook}/{name}")) };
    let measured = names.iter().filter(|name| of("xdp", name).is_some());
    let rows: Vec<_> =
        measured.map(|name| vec![name.replace('_', " "), spread(of("xdp", name)), spread(of("tc", name))]).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("### {title}\n\n{}\n", table(&["packet", "XDP", "TC"], &rows))
}
