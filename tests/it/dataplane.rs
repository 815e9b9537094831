//! Loading, pinning, adopting and attaching on the real kernel. Each test has a network and a mount
//! namespace for its own thread, so nothing outlives it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddrV4,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use evenkeel::{
    dataplane::{Dataplane, Mode, Options, Requested, detach_left_behind},
    tables::{ServiceRow, rows::pool_record},
};
use lab::program::{put_listener, put_pool};
use lb_common::{
    layout::{HASH, Hop, OLDEST, Pool},
    schedule::MAGLEV_PLACES,
};
use log::LevelFilter;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// The folder of pins in this thread's namespaces.
const ROOT: &str = "/run/evenkeel-dataplane";

/// Gives this thread its own network with a veth `ek0` (peer `ek1`) and a bpffs.
fn own_namespaces() -> Options {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    std::fs::create_dir_all(ROOT).unwrap();
    mount(Some("bpf"), ROOT, Some("bpf"), MsFlags::empty(), None::<&str>).expect("a bpffs");
    run("ip link set lo up");
    run("ip link add ek0 type veth peer name ek1");
    run("ip link set ek0 up");
    run("ip link set ek1 up");
    Options {
        bpffs: Path::new(ROOT).join("instance"),
        max_connections: 4096,
        reset: false,
        kernel_log: LevelFilter::Off,
    }
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The hooks of an interface with our program, as the kernel reports them.
fn hooks(interface: &str) -> Vec<&'static str> {
    let shown = run(&format!("bpftool net show dev {interface}"));
    let known = ["driver id", "generic id", "clsact/ingress"];
    let lines = shown.lines().filter(|line| line.starts_with(interface));
    let mut hooks: Vec<_> = lines.filter_map(|line| known.into_iter().find(|hook| line.contains(hook))).collect();
    // Debian's bpftool is older than tcx: it shows such a link, but not what it is attached to.
    if tcx_program(interface).is_some() {
        hooks.push("tcx/ingress");
    }
    hooks
}

/// The program behind the pinned tcx link of an interface.
fn tcx_program(interface: &str) -> Option<String> {
    let ifindex = run(&format!("ip -o link show dev {interface}"));
    let ifindex = ifindex.split(':').next().unwrap();
    let pin = Path::new(ROOT).join(format!("instance/links/{ifindex}-tcx"));
    let shown = pin.exists().then(|| run(&format!("bpftool link show pinned {}", pin.display())))?;
    Some(shown.split_whitespace().skip_while(|word| *word != "prog").nth(1).unwrap().to_owned())
}

fn new_pool() -> Pool {
    let hop = Hop::new([2, 0, 0, 0, 0, 9], 0);
    Pool { hop, ..pool_record(v4("10.0.1.10:6443"), [10, 0, 1, 100].into(), 20_000, 1000) }
}

fn v4(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn new_service() -> ServiceRow {
    ServiceRow {
        connect_timeout: Duration::from_secs(2),
        balance: 0,
        tries: 3,
        half_open_cells: 128,
        log: false,
        rules: Vec::new(),
        client_limit: 0,
        exempt: Default::default(),
        backends: vec![3],
    }
}

#[test]
fn a_veth_gets_tc_by_itself_and_what_is_asked_for_by_name() {
    let mut dataplane = Dataplane::open(&own_namespaces()).unwrap();
    let attached = dataplane.attach("ek0", Requested::Auto, false).unwrap();
    assert_eq!((attached.mode, attached.interface.as_str()), (Mode::Tc, "ek0"));
    assert!(attached.reason.contains("veth"), "{}", attached.reason);
    assert_eq!(hooks("ek0"), ["tcx/ingress"]);
    assert_eq!(dataplane.attach("ek1", Requested::Xdp, false).unwrap().mode, Mode::Xdp);
    assert_eq!(hooks("ek1"), ["driver id"]);
    assert!(dataplane.attach("lo", Requested::Auto, false).is_err(), "no Ethernet");
    assert!(dataplane.attach("none", Requested::Auto, false).is_err());
    dataplane.detach("ek1").unwrap();
    assert_eq!(hooks("ek1"), [] as [&str; 0]);
    assert_eq!(dataplane.attached().len(), 1);
    dataplane.detach_all().unwrap();
}

fn group(members: &[(&str, Requested)]) -> BTreeMap<String, Requested> {
    members.iter().map(|(name, requested)| ((*name).to_owned(), *requested)).collect()
}

#[test]
fn native_xdp_is_refused_where_a_frame_would_not_leave_and_what_was_there_stays() {
    use Requested::{Auto, Tc, Xdp};
    let mut dataplane = Dataplane::open(&own_namespaces()).unwrap();
    run("ip link add name br0 type bridge");
    run("ip link set br0 up");
    let mut refused = |members: &[(&str, Requested)]| {
        let error = dataplane.attach_together(&group(members), false).unwrap_err();
        (format!("{error:#}"), [hooks("ek0"), hooks("ek1"), hooks("br0")])
    };
    let nowhere: [Vec<&str>; 3] = [vec![], vec![], vec![]];
    for other in [Auto, Tc, Xdp] {
        let (error, hooks) = refused(&[("ek0", Xdp), ("br0", other)]);
        assert!(error.contains("br0"), "{other:?}: {error}");
        assert_eq!(hooks, nowhere, "{other:?}: {error}");
    }
    // The other end runs no XDP program: the kernel would drop every frame that leaves.
    let (error, hooks_then) = refused(&[("ek0", Xdp)]);
    assert!(error.contains("ek0 (veth) takes no XDP frames: its other end has no XDP program"), "{error}");
    assert_eq!(hooks_then, nowhere, "{error}");

    let attached = dataplane.attach_together(&group(&[("ek0", Auto)]), false).unwrap();
    assert_eq!((attached[0].mode, hooks("ek0")), (Mode::Tc, vec!["tcx/ingress"]));
    dataplane.attach_together(&group(&[("ek0", Xdp), ("br0", Auto)]), false).unwrap_err();
    assert_eq!((hooks("ek0"), hooks("br0")), (vec!["tcx/ingress"], vec![]));
    dataplane.self_test().unwrap();

    // Each is the other's other end.
    dataplane.attach("ek0", Xdp, false).unwrap();
    dataplane.attach("ek1", Xdp, false).unwrap();
    let both = dataplane.attach_together(&group(&[("ek0", Xdp), ("ek1", Xdp)]), false).unwrap();
    assert_eq!(both.iter().map(|attached| attached.mode).collect::<Vec<_>>(), [Mode::Xdp, Mode::Xdp]);
    dataplane.self_test().unwrap();
    // A route now leads to backends by the bridge.
    let error = dataplane.attach_beside("br0", Auto, false).unwrap_err();
    assert!(format!("{error:#}").contains("br0 (bridge) is on tc"), "{error:#}");
    assert_eq!((hooks("ek0"), hooks("ek1"), hooks("br0")), (vec!["driver id"], vec!["driver id"], vec![]));
    // What is left has no way out.
    dataplane.detach("ek1").unwrap();
    let error = dataplane.self_test().unwrap_err();
    assert!(error.contains("frames are lost: ek0 (veth) takes no XDP frames"), "{error}");
    dataplane.detach_all().unwrap();
}

#[test]
fn every_hook_gives_way_to_every_other() {
    let mut dataplane = Dataplane::open(&own_namespaces()).unwrap();
    let modes = [
        (Requested::Xdp, false, "driver id"),
        (Requested::XdpGeneric, false, "generic id"),
        (Requested::Tc, false, "tcx/ingress"),
        (Requested::Tc, true, "clsact/ingress"),
    ];
    for (from, from_clsact, _) in modes {
        for (to, to_clsact, hook) in modes {
            dataplane.attach("ek0", from, from_clsact).unwrap();
            dataplane.attach("ek0", to, to_clsact).unwrap();
            assert_eq!(hooks("ek0"), [hook], "{from:?} to {to:?}");
        }
    }
}

#[test]
fn a_new_process_finds_tables_and_links_and_goes_on() {
    let options = own_namespaces();
    let mut first = Dataplane::open(&options).unwrap();
    assert!(!first.adopted());
    let number = first.attach("ek0", Requested::Tc, false).unwrap().number;
    first.attach("ek1", Requested::Tc, true).unwrap();
    let tables = first.tables();
    let listener = put_listener(tables, v4("10.0.1.100:6443"), 5).unwrap();
    let pool = put_pool(tables, &new_pool(), &[20_500]).unwrap();
    tables.configure_service(5, &new_service()).unwrap();
    tables.set_maglev(5, &[0; MAGLEV_PLACES as usize]).unwrap();
    let program = tcx_program("ek0").unwrap();
    drop(first);
    assert_eq!((hooks("ek0"), hooks("ek1")), (vec!["tcx/ingress"], vec!["clsact/ingress"]));

    let other_size = Options { max_connections: 100_000, ..options.clone() };
    let mut second = Dataplane::open(&other_size).unwrap();
    assert!(second.adopted());
    assert_eq!(second.max_connections(), 4096, "the tables that are there keep their size");
    assert_eq!(second.tables().listener(listener).service, 5);
    assert_eq!(second.tables().find_pool(v4("10.0.1.10:6443"), [10, 0, 1, 100].into()), Some(pool));
    assert_eq!((second.tables().slots(pool), second.tables().free_slots(pool)), (1000, 999));
    assert_eq!(second.tables().service(5).half_open_cells, 128);
    assert_eq!(second.left_attached().unwrap(), ["ek0", "ek1"]);
    assert_eq!(second.attach("ek0", Requested::Tc, false).unwrap().number, number, "interfaces keep their numbers");
    assert_eq!(second.left_attached().unwrap(), ["ek1"]);
    assert_ne!(tcx_program("ek0").unwrap(), program, "the new program is in place");
    second.attach("ek1", Requested::Tc, true).unwrap();
    assert_eq!((hooks("ek0"), hooks("ek1")), (vec!["tcx/ingress"], vec!["clsact/ingress"]));
    second.tables().remove_pool(pool).unwrap();
    second.tables().disable_service(5).unwrap();
    drop(second);

    let third = Dataplane::open(&options).unwrap();
    assert_eq!(third.tables().pools().len(), 0);
    assert_eq!(put_pool(third.tables(), &new_pool(), &[20_500]).unwrap(), pool);
}

#[test]
fn stop_with_detach_leaves_nothing() {
    let options = own_namespaces();
    let mut dataplane = Dataplane::open(&options).unwrap();
    dataplane.attach("ek0", Requested::Xdp, false).unwrap();
    dataplane.attach("ek1", Requested::Tc, true).unwrap();
    dataplane.detach_all().unwrap();
    assert!(!options.bpffs.exists());
    assert_eq!((hooks("ek0"), hooks("ek1")), (vec![], vec![]));

    let mut dataplane = Dataplane::open(&options).unwrap();
    dataplane.attach("ek0", Requested::Tc, false).unwrap();
    drop(dataplane);
    detach_left_behind(&options.bpffs).unwrap();
    assert!(!options.bpffs.exists());
    assert_eq!(hooks("ek0"), [] as [&str; 0]);
    detach_left_behind(&options.bpffs).expect("nothing to do is fine");
}

fn map(name: &str) -> PathBuf {
    Path::new(ROOT).join("instance/maps").join(name)
}

fn refusal(options: &Options) -> String {
    format!("{:#}", Dataplane::open(options).err().expect("refused"))
}

#[test]
fn tables_of_another_layout_are_refused_with_what_to_do() {
    let options = own_namespaces();
    let mut dataplane = Dataplane::open(&options).unwrap();
    dataplane.attach("ek0", Requested::Tc, false).unwrap();
    drop(dataplane);
    let meta = map("META").display().to_string();
    run(&format!("bpftool map update pinned {meta} key 0 0 0 0 value {}", "7 ".repeat(24)));
    let error = refusal(&options);
    assert!(error.contains("layout 0x707070707070707") && error.contains("--reset-state"), "{error}");
    assert_eq!(hooks("ek0"), ["tcx/ingress"], "what runs is left alone");

    run(&format!("bpftool map update pinned {meta} key 0 0 0 0 value {}", "0 ".repeat(24)));
    let error = refusal(&options);
    assert!(error.contains("incomplete"), "{error}");
}

#[test]
fn a_pinned_map_of_another_size_is_refused_before_anything_is_loaded() {
    let options = own_namespaces();
    drop(Dataplane::open(&options).unwrap());
    let links = map("LINKS");
    std::fs::remove_file(&links).unwrap();
    run(&format!("bpftool map create {} type hash key 4 value 4 entries 65 name LINKS", links.display()));
    let error = refusal(&options);
    assert!(error.contains("LINKS is Hash of 65 entries") && error.contains("--reset-state"), "{error}");
    std::fs::remove_file(&links).unwrap();
    assert!(refusal(&options).contains("LINKS"), "a missing one is not created beside the others");
}

#[test]
fn tables_of_a_layout_that_only_lacks_something_are_taken_over_and_then_have_our_layout() {
    let options = own_namespaces();
    let first = Dataplane::open(&options).unwrap();
    let listener = put_listener(first.tables(), v4("10.0.1.100:6443"), 5).unwrap();
    drop(first);
    let meta = map("META").display().to_string();
    let shown = || run(&format!("bpftool --json map dump pinned {meta}"));
    let ours = shown();
    let set_layout = |layout: u64| {
        // What follows the layout stays: seed and buckets.
        let bytes: Vec<_> = layout.to_ne_bytes().iter().map(|byte| format!("{byte:#04x}")).collect();
        let rest = raw_value(&ours)[8..].join(" ");
        run(&format!("bpftool map update pinned {meta} key 0 0 0 0 value {} {rest}", bytes.join(" ")));
    };
    // There may be no such version: then only the refusal below is seen.
    let oldest = OLDEST;
    for layout in oldest..HASH {
        set_layout(layout);
        assert_ne!(shown(), ours);
        // An older version did not have these.
        for young in ["RST_TOKENS", "CONNECT_TIMES"] {
            std::fs::remove_file(map(young)).unwrap();
        }
        let mut taken = Dataplane::open(&options).unwrap();
        assert!(taken.adopted());
        assert_eq!(taken.tables().listener(listener).service, 5);
        assert_ne!(shown(), ours, "a version that goes on after all finds what it knows");
        taken.settle().unwrap();
        assert_eq!(shown(), ours);
    }
    set_layout(OLDEST - 1);
    assert!(refusal(&options).contains("--reset-state"), "one that has other records is not");
}

/// The bytes of the first value that bpftool shows, each as `0x..`.
fn raw_value(shown: &str) -> Vec<String> {
    let json: serde_json::Value = serde_json::from_str(shown).expect("bpftool's JSON");
    let bytes = json[0]["value"].as_array().expect("a value").iter();
    bytes.map(|byte| byte.as_str().expect("a byte").to_owned()).collect()
}

#[test]
fn new_tables_take_the_place_of_old_ones_when_they_are_ready() {
    let options = own_namespaces();
    let mut first = Dataplane::open(&options).unwrap();
    first.attach("ek0", Requested::Tc, false).unwrap();
    put_listener(first.tables(), v4("10.0.1.100:6443"), 5).unwrap();
    drop(first);
    let old = tcx_program("ek0").unwrap();
    let reset = Options { reset: true, max_connections: 8192, ..options.clone() };
    // An attempt that ended early leaves nothing that matters.
    drop(Dataplane::open(&reset).unwrap());
    let mut second = Dataplane::open(&reset).unwrap();
    assert_eq!((second.adopted(), second.max_connections()), (false, 8192));
    assert_eq!((tcx_program("ek0").unwrap(), second.tables().listeners().len()), (old.clone(), 0));
    put_listener(second.tables(), v4("10.0.1.101:6443"), 6).unwrap();
    second.attach("ek0", Requested::Tc, false).unwrap();
    assert_ne!(tcx_program("ek0").unwrap(), old);
    second.settle().unwrap();
    assert!(!Path::new(ROOT).join("instance/maps-next").exists());
    drop(second);

    let third = Dataplane::open(&options).unwrap();
    assert_eq!((third.adopted(), third.max_connections()), (true, 8192));
    let services: Vec<_> = third.tables().listeners().iter().map(|(_, listener)| listener.service).collect();
    assert_eq!(services, [6]);
    third.detach_all().unwrap();
    assert!(!options.bpffs.exists());
}

#[test]
fn the_clsact_qdisc_goes_with_us_if_it_came_with_us_and_nobody_else_uses_it() {
    let options = own_namespaces();
    let qdisc = || run("tc qdisc show dev ek0").contains("clsact");
    let attached = || {
        let mut dataplane = Dataplane::open(&options).unwrap();
        dataplane.attach("ek0", Requested::Tc, true).unwrap();
        dataplane
    };
    drop(attached());
    attached().detach_all().unwrap();
    assert!(!qdisc() && !options.bpffs.exists(), "it was ours, through a restart");

    let dataplane = attached();
    // Any program can stand for someone else's.
    let program = options.bpffs.join("programs/evenkeel_tc").display().to_string();
    run(&format!("tc filter add dev ek0 egress bpf direct-action pinned {program}"));
    dataplane.detach_all().unwrap();
    assert!(qdisc(), "another filter needs it");
    assert!(run("tc filter show dev ek0 egress").contains("bpf"));

    run("tc filter del dev ek0 egress");
    attached().detach_all().unwrap();
    assert!(qdisc(), "it was there before us");
}

#[test]
fn the_guard_of_the_egress_stands_through_a_restart_on_the_interfaces_it_is_asked_for_and_goes_with_us() {
    for clsact in [false, true] {
        let options = own_namespaces();
        let device = evenkeel::sys::netdev::index_of("ek0").unwrap();
        let pin = options.bpffs.join(format!("links/{device}-tcx-out"));
        let by_link = || evenkeel::sys::bpf::pinned_link(&pin).is_ok_and(|link| link.ifindex == device);
        let by_filter =
            || run("tc filter show dev ek0 egress").lines().filter(|line| line.contains("evenkeel_out")).count();
        let guard = || if clsact { by_filter() } else { usize::from(by_link()) };
        let guarded = || {
            let mut dataplane = Dataplane::open(&options).unwrap();
            dataplane.attach("ek0", Requested::Tc, clsact).unwrap();
            dataplane.guard("ek0", clsact).unwrap();
            dataplane
        };
        drop(guarded());
        assert_eq!(guard(), 1);
        let mut dataplane = guarded();
        dataplane.guard_only(&["ek0".to_owned()].into()).unwrap();
        assert_eq!(guard(), 1);
        dataplane.guard_only(&BTreeSet::new()).unwrap();
        assert_eq!((guard(), dataplane.self_test()), (0, Ok(())), "the program itself stays");
        dataplane.guard("ek0", clsact).unwrap();
        // Frames arrive through another hook; nothing changes on the way out.
        dataplane.attach("ek0", Requested::Xdp, clsact).unwrap();
        assert_eq!((guard(), dataplane.self_test()), (1, Ok(())));
        dataplane.attach("ek0", Requested::Tc, clsact).unwrap();
        dataplane.detach_all().unwrap();
        assert_eq!(guard(), 0);
        assert!(!run("tc qdisc show dev ek0").contains("clsact") && !options.bpffs.exists());
    }
}

#[test]
fn a_folder_of_pins_belongs_to_one_daemon() {
    let options = own_namespaces();
    let first = Dataplane::open(&options).unwrap();
    assert!(refusal(&options).contains("another evenkeel has its programs and maps in"));
    drop(first);
    Dataplane::open(&options).unwrap();
}

#[test]
fn tables_that_were_left_half_made_are_made_again() {
    let options = own_namespaces();
    drop(Dataplane::open(&options).unwrap());
    std::fs::remove_file(map("META")).unwrap();
    assert!(!Dataplane::open(&options).unwrap().adopted());
}

#[test]
fn an_interface_that_went_and_came_back_gets_the_program_again() {
    let options = own_namespaces();
    let mut dataplane = Dataplane::open(&options).unwrap();
    let before = dataplane.attach("ek0", Requested::Tc, false).unwrap();
    dataplane.attach("ek1", Requested::Tc, true).unwrap();
    run("ip link del ek0");
    run("ip link add ek0 type veth peer name ek1");
    run("ip link set ek0 up");
    let after = dataplane.attach("ek0", Requested::Tc, false).unwrap();
    assert_ne!(before.ifindex, after.ifindex);
    assert_eq!(hooks("ek0"), ["tcx/ingress"]);
    drop(dataplane);

    // Under its old number, with the pin of a dead link.
    run("ip link del ek0");
    run(&format!("ip link add ek0 index {} type veth peer name ek1", after.ifindex));
    let mut dataplane = Dataplane::open(&options).unwrap();
    assert_eq!(dataplane.attach("ek0", Requested::Tc, false).unwrap().ifindex, after.ifindex);
    assert_eq!(hooks("ek0"), ["tcx/ingress"]);
}

#[test]
fn a_folder_that_is_on_no_bpffs_is_refused_with_what_to_do() {
    let options = Options {
        bpffs: "/tmp/evenkeel-no-bpffs".into(),
        max_connections: 1,
        reset: false,
        kernel_log: LevelFilter::Off,
    };
    let error = refusal(&options);
    assert!(error.contains("--mount-bpffs"), "{error}");
    assert!(!options.bpffs.exists());
}

#[test]
fn a_foreign_packet_goes_through_every_hook_unchanged() {
    let mut dataplane = Dataplane::open(&own_namespaces()).unwrap();
    let mut frame = [0_u8; 60];
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    let modes = [(Requested::Xdp, 2), (Requested::XdpGeneric, 2), (Requested::Tc, u32::MAX)];
    for (requested, pass) in modes {
        let attached = dataplane.attach("ek0", requested, false).unwrap();
        let out = dataplane.inject(attached.ifindex, &frame).unwrap();
        assert_eq!((out.verdict, out.sent), (pass, false), "{requested:?}");
        assert_eq!(out.frame, frame);
    }
    assert!(dataplane.inject(1, &frame).is_err(), "no program there");
}

#[test]
fn a_hundred_pools_appear_in_little_time() {
    let dataplane = Dataplane::open(&own_namespaces()).unwrap();
    let begin = std::time::Instant::now();
    for backend in 1..=100_u8 {
        let backend = SocketAddrV4::new([10, 0, 2, backend].into(), 6443);
        let new = pool_record(backend, [10, 0, 1, 100].into(), 10_240, 22_528);
        put_pool(dataplane.tables(), &new, &[20_500]).unwrap();
    }
    assert_eq!(dataplane.tables().pools().len(), 100);
    assert!(begin.elapsed().as_secs() < 10, "{:?}", begin.elapsed());
}
