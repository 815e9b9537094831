//! What `evenkeel run` says where the kernel, or the rights of the process, do not suffice.

use std::{fs, process::Command};

use evenkeel::dataplane::{Dataplane, Need, Options, Refusal, missing};
use lab::{
    binaries,
    program::{Bench, Hook},
};
use log::LevelFilter;
use nix::mount::{MsFlags, mount};

#[test]
fn a_kernel_that_runs_the_programs_lacks_nothing() {
    Bench::new(Hook::Xdp);
    assert_eq!(missing(), []);
    assert!(Need::Helper(9999).is_missing(), "no kernel has that many");
}

/// 64 GiB for the flow index: more than machines that run tests have. The kernel asks first, and takes none of it.
#[test]
fn without_memory_for_the_tables_the_start_is_refused_and_leaves_nothing() {
    let bench = Bench::new(Hook::Tcx);
    let bpffs = bench.bpffs.with_file_name("large");
    let options =
        Options { bpffs: bpffs.clone(), max_connections: u32::MAX, reset: false, kernel_log: LevelFilter::Off };
    let error = Dataplane::open(&options).err().expect("no machine of ours has so much memory");
    let refusal = error.downcast_ref::<Refusal>().unwrap_or_else(|| panic!("{error:#}"));
    assert!(refusal.text.contains("refuses the map INDEX: it has no memory left for it"), "{refusal}");
    assert_eq!(refusal.log, "");
    for folder in ["maps", "programs", "links"] {
        assert_eq!(fs::read_dir(bpffs.join(folder)).unwrap().count(), 0, "{folder}");
    }
}

/// Not every kernel is built with its own types (CONFIG_DEBUG_INFO_BTF).
#[test]
fn a_kernel_that_does_not_show_its_types_is_enough() {
    let bench = Bench::new(Hook::Tcx);
    let (btf, empty) = ("/sys/kernel/btf", bench.bpffs.with_file_name("empty"));
    fs::create_dir(&empty).unwrap();
    mount(Some(&empty), btf, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    assert_eq!(fs::read_dir(btf).unwrap().count(), 0);
    let bpffs = bench.bpffs.with_file_name("second");
    Dataplane::open(&Options { bpffs, max_connections: 64, reset: false, kernel_log: LevelFilter::Off }).unwrap();
}

#[test]
fn without_the_rights_it_says_which_and_exits_with_1() {
    let folder = std::env::temp_dir().join(format!("evenkeel-rights-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let config = folder.join("evenkeel.toml");
    fs::write(&config, format!("[daemon]\nstate_dir = \"{}\"\n", folder.join("run").display())).unwrap();
    let run = |kept: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", kept]).arg(binaries::evenkeel().unwrap()).arg("run").arg("-c").arg(&config);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (kept, lacking) in
        [("-all,+sys_admin,+net_raw", "(CAP_NET_ADMIN)"), ("-all", "(CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN)")]
    {
        let (code, said) = run(kept);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("this process lacks the right to balance {lacking}. Start evenkeel")), "{said}");
    }
    // Refused before anything was made.
    assert!(!folder.join("run").exists());
    fs::remove_dir_all(&folder).unwrap();
}
