use super::*;
use crate::bench::machine::Machine;

fn lab() -> Results {
    let mut lab = Results { machine: Machine::default(), command: "cargo xtask bench".into(), figures: Vec::new() };
    for (system, cpu, slab) in [("direct", 20.0, 4000.0), ("nginx", 40.0, 15_000.0), ("evenkeel-tc", 24.0, 4050.0)] {
        for round in 0..5 {
            let drift = f64::from(round) / 10.0;
            for (what, value) in
                [("rate", 1e6 / cpu), ("p50", cpu * 8.0), ("p99", cpu * 20.0), ("cpu", cpu), ("own", 4.0)]
            {
                lab.add(&format!("lab/kept-tcp/{system}/{what}"), "µs", value + drift);
            }
            lab.add(&format!("lab/idle/{system}/connections"), "", 1000.0);
            lab.add(&format!("lab/idle/{system}/slab"), "bytes", slab + drift);
            lab.add(&format!("lab/idle/{system}/processes"), "bytes", if system == "nginx" { 6000.0 } else { 0.0 });
        }
    }
    lab
}

#[test]
fn the_page_shows_what_is_added_and_whether_the_goals_are_reached() {
    let folder = std::env::temp_dir().join(format!("page-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    lab().write(&folder.join(LAB)).unwrap();
    write(&folder).unwrap();
    let page = fs::read_to_string(folder.join(PAGE)).unwrap();
    let plot = fs::read_to_string(folder.join("added-cpu.svg")).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let line =
        |begin: &str| page.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("{begin}: {page}"));
    assert!(line("| CPU added per kept request, TC, × nginx's").contains("| 0.25 | 0.20 (0.20 to 0.20) | yes |"));
    assert!(line("| evenkeel-tc | 41,667").contains("| 4.00 (4.00 to 4.00) | 0.20 |"), "{page}");
    assert!(line("| evenkeel-tc | 1,000").contains("| 50.0 (50.0 to 50.0) |"), "{page}");
    assert!(line("| reply, XDP, 1 flow").contains("not measured"));
    assert!(plot.contains("evenkeel-tc"));
}

#[test]
fn what_an_idle_connection_adds_is_slab_and_processes() {
    assert_eq!(Summary::of(&idle_added(&lab(), System::Nginx)).unwrap().median, 17_000.0);
}

#[test]
fn prose_is_wrapped_and_tables_are_not() {
    let (prose, row) = ("seven words ".repeat(20), format!("| {} |", "a long row ".repeat(20)));
    let page = wrapped(&format!("{prose}\n\n{row}"));
    let lines: Vec<_> = page.lines().collect();
    assert!(lines[..2].iter().all(|line| (80..=100).contains(&line.len())), "{lines:?}");
    assert_eq!((lines[..3].join(" ").trim_end(), lines[3], lines[4]), (prose.trim_end(), "", row.as_str()));
}
