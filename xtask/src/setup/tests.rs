use super::*;

fn needed(task: Task) -> Vec<&'static str> {
    let name = |part: Part| match part {
        Own(name, _) => name,
        Package(_, package) => package,
    };
    parts(Some(task)).map(name).collect()
}

#[test]
fn a_build_needs_the_compiler_and_the_linker() {
    assert_eq!(needed(Build), ["BPF compiler", "bpf-linker"]);
}

#[test]
fn a_first_look_installs_what_the_lab_uses_and_no_browser_or_other_balancer() {
    let lab = ["iproute2", "ethtool", "nftables", "procps", "util-linux"];
    assert_eq!(needed(Run), [&["BPF compiler", "bpf-linker"], &lab[..], &["kubectl"]].concat());
}

#[test]
fn the_tests_need_everything() {
    assert_eq!(needed(Test).len(), PARTS.len());
}
