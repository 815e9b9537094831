use std::{fs, time::Duration};

use tempfile::TempDir;

use super::{
    model::{Balance, Datapath, LogTarget, MssClamp, OnExit, SynCookies},
    *,
};

/// A valid service; tests add what they are about.
const SERVICE: &str = r#"
[[service]]
name = "api"
listen = "10.0.1.100:6443"
"#;

const BACKEND: &str = r#"
[[service.backend]]
name = "cp01"
address = "10.0.1.10:6443"
"#;

/// Files in a separate folder; the first is the main one.
fn load_files(files: &[(&str, &str)]) -> (TempDir, Result<Loaded, Problems>) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let loaded = load(&folder.path().join(files[0].0));
    (folder, loaded)
}

fn load_text(text: &str) -> Result<Loaded, Problems> {
    load_files(&[("e.toml", text)]).1
}

/// The errors as they are shown, without the folder.
fn errors_of(files: &[(&str, &str)]) -> Vec<String> {
    let (folder, loaded) = load_files(files);
    let prefix = format!("{}/", folder.path().display());
    let shown = loaded.expect_err("the configuration is wrong").to_string().replace(&prefix, "");
    shown.lines().map(str::to_owned).collect()
}

fn errors(text: &str) -> Vec<String> {
    errors_of(&[("e.toml", text)])
}

#[test]
fn what_is_left_out_has_the_defaults_of_the_contract() {
    let loaded = load_text(&[SERVICE, BACKEND].concat()).unwrap();
    assert_eq!(loaded.warnings, []);
    let Config { daemon, api, services, vrrp, sync } = loaded.config;
    assert_eq!(daemon.socket(), Path::new("/run/evenkeel/control.sock"));
    assert_eq!(daemon.bpffs, Path::new("/sys/fs/bpf/evenkeel"));
    assert_eq!((daemon.on_exit, daemon.max_connections), (OnExit::Keep, 262_144));
    assert_eq!((daemon.socket_group.as_str(), daemon.log_level), ("evenkeel", log::LevelFilter::Info));
    assert!(api.is_none() && vrrp.is_empty() && sync.is_none());
    let service = &services[0];
    assert_eq!((service.balance, service.datapath), (Balance::LeastConn, Datapath::Auto));
    assert_eq!((service.connect_timeout, service.idle_timeout), (Duration::from_secs(2), Duration::from_secs(600)));
    assert_eq!(
        (service.snat[0].to_string(), service.snat_ports.to_string()),
        ("10.0.1.100".into(), "10240-32767".into())
    );
    assert_eq!((service.reset_rate.get(), service.max_half_open.get(), service.tries()), (5000, 32_768, 1));
    assert_eq!((service.syn_cookies, service.mss_clamp), (SynCookies::Auto, MssClamp::Off));
    assert_eq!(service.syn_cookies_exempt, []);
    assert_eq!(service.capacity(), 22_528);
    let backend = &service.backends[0];
    assert_eq!((backend.weight.get(), backend.max_fails, backend.max_conns), (1, 3, 0));
    assert_eq!(backend.fail_timeout, Duration::from_secs(10));
}

/// The page of the contract, word for word.
const CONTRACT: &str = include_str!("contract.toml");

#[test]
fn the_contract_s_own_example_is_right() {
    let loaded = load_text(CONTRACT).unwrap();
    let service = &loaded.config.services[0];
    assert_eq!(service.rules.len(), 2);
    assert_eq!(service.health.as_ref().unwrap().expect, [200, 401, 403]);
    let log = service.access_log.as_ref().unwrap();
    assert_eq!(log.target, LogTarget::File("/var/log/evenkeel/access.log".into()));
    assert_eq!(log.format, crate::access_log::Format::default());
    assert_eq!(loaded.config.vrrp[0].track_script[0].weight, -20);
    assert_eq!(loaded.config.sync.unwrap().batch, Duration::from_millis(20));
}

#[test]
fn a_dump_loads_again_to_the_same_and_dumps_to_the_same() {
    for text in [CONTRACT.to_owned(), [SERVICE, BACKEND].concat(), String::new()] {
        let config = load_text(&text).unwrap().config;
        let dump = config.to_toml();
        let again = load_text(&dump).unwrap_or_else(|problems| panic!("{problems}\n{dump}")).config;
        assert_eq!(config, again);
        assert_eq!(dump, again.to_toml());
    }
}

#[test]
fn more_rules_than_the_kernel_looks_through_are_an_error_at_the_first_that_is_too_many() {
    let rules = |count: u32| {
        let lines: String = (0..count).map(|n| format!("  \"deny 10.0.{}.{}\",\n", n / 256, n % 256)).collect();
        format!("{SERVICE}rules = [\n{lines}]\n{BACKEND}")
    };
    assert_eq!(load_text(&rules(256)).unwrap().config.services[0].rules.len(), 256);
    assert_eq!(errors(&rules(258)), ["e.toml:262:3: rules: 258 rules, the maximum is 256"]);
}

#[test]
fn who_is_exempt_from_syn_cookies_is_a_list_of_prefixes_and_addresses() {
    let exempt = |keys: &str| load_text(&format!("{SERVICE}{keys}\n{BACKEND}")).unwrap();
    let loaded = exempt(
        "syn_cookies = \"always\"\nsyn_cookies_exempt = [\"10.9.0.0/16\", \"10.8.1.7\", \"fd00::/8\", \"10.8.1.7/32\"]",
    );
    let shown: Vec<_> = loaded.config.services[0].syn_cookies_exempt.iter().map(ToString::to_string).collect();
    assert_eq!(
        (loaded.warnings.len(), shown),
        (1, ["10.9.0.0/16", "10.8.1.7/32", "fd00::/8"].map(String::from).into())
    );
    assert!(loaded.warnings[0].what.contains("IPv6 clients have no effect"), "{}", loaded.warnings[0].what);
    let [warning] = &exempt("syn_cookies = \"off\"\nsyn_cookies_exempt = \"10.9.0.0/16\"").warnings[..] else {
        panic!("one warning");
    };
    assert_eq!(warning.what, "syn_cookies_exempt has no effect with syn_cookies = \"off\"");
    let many = |count: u32| {
        let lines: String = (0..count).map(|n| format!("  \"10.0.{}.{}\",\n", n / 256, n % 256)).collect();
        format!("{SERVICE}syn_cookies_exempt = [\n{lines}]\n{BACKEND}")
    };
    assert_eq!(load_text(&many(256)).unwrap().config.services[0].syn_cookies_exempt.len(), 256);
    assert_eq!(errors(&many(257)), ["e.toml:262:3: syn_cookies_exempt: 257 prefixes, the maximum is 256"]);
}

#[test]
fn payload_is_bounded_by_a_number_by_the_interfaces_or_not_at_all() {
    for (text, clamp) in [
        ("\"off\"", MssClamp::Off),
        ("\"auto\"", MssClamp::Auto),
        ("536", MssClamp::Bytes(536)),
        ("8_960", MssClamp::Bytes(8960)),
    ] {
        let config = load_text(&format!("{SERVICE}mss_clamp = {text}\n{BACKEND}")).unwrap().config;
        assert_eq!(config.services[0].mss_clamp, clamp);
        assert_eq!(load_text(&config.to_toml()).unwrap().config, config, "dumped: {}", config.to_toml());
    }
}

/// A mistake in a service or backend and the one error it causes.
#[test]
fn every_mistake_is_reported_with_its_position_and_the_fix() {
    // (keys of the service, from line 5; keys of the backend, from line 9; the error)
    let cases = [
        ("balence = \"hash\"", "", "5:1: unknown key `balence` in [[service]]: did you mean `balance`?"),
        ("zzz = 1", "", "5:1: unknown key `zzz` in [[service]]: known keys are name, listen,"),
        ("balance = \"leastconn\"", "", "5:11: balance: unknown word \"leastconn\": did you mean \"least_conn\"?"),
        ("balance = 1", "", "5:11: balance: found the number 1, expected one of: least_conn, round_robin,"),
        (
            "connect_timeout = 2",
            "",
            "5:19: connect_timeout: found the number 2, expected a time with its unit, such as \"2s\"",
        ),
        (
            "connect_timeout = \"2\"",
            "",
            "5:19: connect_timeout: \"2\" is not a time: write a whole number and ms, s, m, h or d",
        ),
        ("connect_timeout = \"2h\"", "", "5:19: connect_timeout: \"2h\" is out of range: must be \"10ms\" to \"1m\""),
        ("idle_timeout = \"0s\"", "", "5:16: idle_timeout: \"0s\" is out of range: must be \"1s\" to \"7d\""),
        ("snat = \"fd00::1\"", "", "5:8: snat: fd00::1 is IPv6, but no backend of this service is"),
        ("snat = \"10.0.1.10\"", "", "5:8: snat: 10.0.1.10 is a backend's own address"),
        (
            "snat_ports = \"80-90\"",
            "",
            "5:14: snat_ports: \"80-90\" is not a port range: write \"first-last\" within \"1024-65535\"",
        ),
        ("snat_ports = \"3000-2000\"", "", "5:14: snat_ports: \"3000-2000\" is not a port range"),
        ("rules = [\"allow 10.0.0.0/8\", \"permit all\"]", "", "5:30: rules: \"permit all\" is not a rule: write"),
        (
            "rules = \"deny 10.0.1.1/8\"",
            "",
            "5:9: rules: \"deny 10.0.1.1/8\": 10.0.1.1/8 has host bits set: write \"deny 10.0.0.0/8\"",
        ),
        (
            "interface = \"much-too-long-a-name\"",
            "",
            "5:13: interface: \"much-too-long-a-name\" is not a valid interface name",
        ),
        ("interface = [\"eth0\", \"eth0\"]", "", "5:22: interface eth0 appears twice"),
        ("max_half_open = 0x1_0001", "", "5:17: max_half_open: 65537 is out of range: must be 1 to 65536"),
        (
            "per_client_connections = 65536",
            "",
            "5:26: per_client_connections: 65536 is out of range: must be 0 to 65535",
        ),
        (
            "max_half_open = 1.5",
            "",
            "5:17: max_half_open: found the number 1.5, expected a whole number from 1 to 65536",
        ),
        ("syn_cookie = \"off\"", "", "5:1: unknown key `syn_cookie` in [[service]]: did you mean `syn_cookies`?"),
        ("syn_cookies = \"allways\"", "", "5:15: syn_cookies: unknown word \"allways\": did you mean \"always\"?"),
        ("syn_cookies = true", "", "5:15: syn_cookies: found the boolean true, expected one of: auto, always, off"),
        (
            "syn_cookies_exempt = [\"10.9.0.0/16\", \"10.9.1.0/16\"]",
            "",
            "5:38: syn_cookies_exempt: \"10.9.1.0/16\" has host bits set: write \"10.9.0.0/16\"",
        ),
        (
            "syn_cookies_exempt = \"proxy\"",
            "",
            "5:22: syn_cookies_exempt: \"proxy\" is not a prefix or an address: write \"10.9.0.0/16\" or",
        ),
        ("mss_clamp = 535", "", "5:13: mss_clamp: 535 is out of range: must be 536 to 8960"),
        ("mss_clamp = 8961", "", "5:13: mss_clamp: 8961 is out of range: must be 536 to 8960"),
        ("mss_clamp = \"atuo\"", "", "5:13: mss_clamp: unknown word \"atuo\": did you mean \"auto\"?"),
        (
            "mss_clamp = false",
            "",
            "5:13: mss_clamp: found the boolean false, expected \"off\", \"auto\" or 536 to 8960 bytes of payload",
        ),
        ("health = { expect = [] }", "", "5:10: [service.health]: `expect` is empty"),
        ("reset_rate = 0", "", "5:14: reset_rate: 0 is out of range: must be 1 to 1000000"),
        (
            "access_log = { path = \"log\" }",
            "",
            "5:23: path: \"log\" is not a valid target: write an absolute path, \"stdout\"",
        ),
        (
            "access_log = { path = \"/l\", format = 'a $bites_sent' }",
            "",
            "5:41: format: unknown variable `$bites_sent`: did you mean `$bytes_sent`?",
        ),
        (
            "health = { interval = \"1s\", timeout = \"2s\" }",
            "",
            "5:39: timeout: \"2s\" is above the interval of \"1s\"",
        ),
        ("health = { expect = [200, 99] }", "", "5:27: expect: 99 is out of range: must be 100 to 599"),
        ("", "weight = 0", "9:10: weight: must be 1 to 65535; to send a backend no connections, set down = true"),
        ("", "weight = 70000", "9:10: weight: 70000 is out of range: must be 0 to 65535"),
        ("", "weigth = 1", "9:1: unknown key `weigth` in [[service.backend]]: did you mean `weight`?"),
        (
            "balance = \"hash\"",
            "backup = true",
            "9:10: backup: balance = \"hash\" spreads clients over all backends and has no backups",
        ),
        ("", "down = \"yes\"", "9:8: down: found the string \"yes\", expected true or false"),
        ("", "max_fails = -1", "9:13: max_fails: -1 is out of range: must be 0 to 1000"),
    ];
    for (service, backend, wanted) in cases {
        let text = format!(
            "{SERVICE}{service}\n[[service.backend]]\nname = \"cp01\"\naddress = \"10.0.1.10:6443\"\n{backend}\n"
        );
        let shown = errors(&text);
        assert_eq!(shown.len(), 1, "{service}{backend}: {shown:#?}");
        assert!(shown[0].starts_with(&format!("e.toml:{wanted}")), "{}\nis not {wanted}", shown[0]);
    }
}

#[test]
fn addresses_have_to_be_complete_and_reachable() {
    let cases = [
        ("10.0.1.10", "\"10.0.1.10\" lacks the port: \"10.0.1.10:6443\""),
        ("fd00::10", "\"fd00::10\" lacks the port: \"[fd00::10]:6443\""),
        ("cp01:6443", "\"cp01:6443\" is not an address (names are not resolved"),
        ("10.0.1.10:0", "\"10.0.1.10:0\": port 0 is not allowed"),
        ("0.0.0.0:6443", "0.0.0.0 is not the address of one host"),
        ("10.0.1.100:6443", "10.0.1.100:6443 is a listen address, so connections would loop"),
    ];
    for (address, wanted) in cases {
        let text = format!("{SERVICE}[[service.backend]]\nname = \"cp01\"\naddress = \"{address}\"\n");
        let shown = errors(&text);
        assert!(shown[0].starts_with(&format!("e.toml:7:11: address: {wanted}")), "{shown:#?}");
    }
}

#[test]
fn a_service_needs_a_listen_address_and_a_backend() {
    let shown = errors("[[service]]\nname = \"api\"\nlisten = []\n");
    let wanted = ["e.toml:1:1: [[service]] has no backend: add", "e.toml:1:1: [[service]] lacks `listen`: listen = ["];
    assert_eq!(shown.len(), 2, "{shown:#?}");
    assert!(shown.iter().zip(wanted).all(|(line, start)| line.starts_with(start)), "{shown:#?}");
}

#[test]
fn numbers_may_be_written_in_all_forms_of_toml() {
    for (text, number) in [("262_144", 262_144), ("0x40000", 262_144), ("+2000", 2000), ("0b1_0000_0000_0000", 4096)] {
        let config = load_text(&format!("[daemon]\nmax_connections = {text}\n")).unwrap().config;
        assert_eq!(config.daemon.max_connections, number, "{text}");
    }
}

#[test]
fn all_mistakes_are_shown_in_the_order_of_the_lines() {
    let text = "[daemon]\non_exit = \"stay\"\nmax_conections = 1\n[[service]]\nname = \"a b\"\nlisten = [\"10.0.0.1\"]\n\
                [[service.backend]]\nname = \"x\"\nweight = 0\n[[servise]]\n";
    let shown = errors(text);
    let positions: Vec<_> = shown.iter().map(|line| line.split(": ").next().unwrap()).collect();
    let wanted = ["e.toml:2:11", "e.toml:3:1", "e.toml:5:8", "e.toml:6:11", "e.toml:7:1", "e.toml:9:10", "e.toml:10:3"];
    assert_eq!(positions, wanted, "{shown:#?}");
    assert!(shown[4].ends_with("[[service.backend]] lacks `address`: address = \"10.0.1.10:6443\""), "{}", shown[4]);
}

#[test]
fn mistakes_of_the_syntax_do_not_hide_the_others() {
    let shown = errors(&format!("{SERVICE}connect_timeout = \nidle_timeout = \"1x\"\n{BACKEND}"));
    assert!(shown.iter().any(|line| line.starts_with("e.toml:5:19: ")), "{shown:#?}");
    assert!(shown.iter().any(|line| line.starts_with("e.toml:6:16: idle_timeout")), "{shown:#?}");
}

#[test]
fn what_stands_twice_points_at_where_it_stood_first() {
    let shown = errors(&format!("{SERVICE}{BACKEND}{BACKEND}"));
    assert_eq!(shown.len(), 2, "{shown:#?}");
    assert!(shown[0].starts_with("e.toml:11:8: backend cp01 appears twice: first at "), "{shown:#?}");
    assert!(shown[0].ends_with("e.toml:7:8"), "{shown:#?}");
    assert!(shown[1].starts_with("e.toml:12:11: backend address 10.0.1.10:6443 appears twice"), "{shown:#?}");

    let instance = |id: u8| {
        format!(
            "[[vrrp]]\nname = \"V{id}\"\ninterface = \"eth0\"\nvirtual_router_id = 7\naddresses = \"10.0.1.9/24\"\n"
        )
    };
    let shown = errors(&format!("{}{}", instance(1), instance(2)));
    assert!(
        shown[0].starts_with("e.toml:9:21: virtual_router_id 7 on interface eth0 (IPv4) appears twice"),
        "{shown:#?}"
    );
    assert!(shown[1].starts_with("e.toml:10:13: virtual address 10.0.1.9 appears twice"), "{shown:#?}");
}

/// A valid instance, from line 1; keys are added from line 6.
fn instance(keys: &str) -> String {
    format!(
        "[[vrrp]]\nname = \"VI\"\ninterface = \"eth0\"\nvirtual_router_id = 51\naddresses = \"10.0.1.100/24\"\n{keys}\n"
    )
}

#[test]
fn mistakes_in_an_instance_are_told() {
    let cases = [
        ("advert_interval = \"100ms\"\nversion = 2", "6:19: advert_interval: \"100ms\" is not possible in version 2"),
        ("advert_interval = \"105ms\"", "6:19: advert_interval: \"105ms\" is not possible in version 3"),
        ("advert_interval = \"41s\"", "6:19: advert_interval: \"41s\" is not possible in version 3"),
        ("priority = 0", "6:12: priority: 0 is out of range: must be 1 to 255"),
        ("unicast_peers = \"fd00::2\"", "6:17: fd00::2 is not IPv4, unlike `addresses`"),
        (
            "unicast_source = \"10.0.1.1\"\nunicast_peers = \"10.0.1.1\"",
            "7:17: unicast_peers: 10.0.1.1 is this host's own unicast_source",
        ),
        ("unicast_peers = \"10.0.1.100\"", "6:17: 10.0.1.100 is one of `addresses`, which move"),
        ("track_datapath = \"maybe\"", "6:18: track_datapath: write \"fault\" or a weight from -253 to 253"),
        (
            "track_script = [{ command = \"/bin/true\", timeout = \"3s\" }]",
            "6:52: timeout: \"3s\" is above the interval of \"2s\"",
        ),
    ];
    for (keys, wanted) in cases {
        let shown = errors(&instance(keys));
        assert!(shown[0].starts_with(&format!("e.toml:{wanted}")), "{keys}: {shown:#?}");
    }
    for (addresses, wanted) in [
        ("\"10.0.1.100\"", "is not an address with a prefix"),
        ("\"10.0.1.0/24\"", "is a network or broadcast address"),
        ("\"10.0.1.255/24\"", "is a network or broadcast address"),
        ("\"224.0.0.18/32\"", "is not the address of one host"),
        ("[\"10.0.1.100/24\", \"fd00::1/64\"]", "is not IPv4 like the first address"),
        ("[\"10.0.1.100/24\", \"10.0.1.100/32\"]", "virtual address 10.0.1.100 appears twice"),
    ] {
        let shown = errors(&instance("").replace("\"10.0.1.100/24\"", addresses));
        assert!(shown[0].contains(wanted), "{addresses}: {shown:#?}");
    }
    let vip_is_backend = instance("").replace("10.0.1.100", "10.0.1.10") + SERVICE + BACKEND;
    assert!(errors(&vip_is_backend)[0].contains("10.0.1.10 is a backend's own address"));
}

#[test]
fn what_would_change_no_election_is_warned_of() {
    let warnings = |text: &str| -> Vec<String> {
        let loaded = load_text(text).unwrap_or_else(|problems| panic!("{problems}"));
        let mut texts: Vec<_> = loaded.warnings.into_iter().map(|warning| warning.what).collect();
        texts.retain(|text| !text.starts_with("no [[service]]"));
        texts
    };
    for quiet in ["priority = 150", "priority = 100", "track_datapath = -60", "priority = 150\ntrack_datapath = -51"] {
        assert_eq!(warnings(&instance(quiet)), Vec::<String>::new(), "{quiet}");
    }
    for (keys, wanted) in [
        ("priority = 150\ntrack_backends = -50", "track_backends: a weight of -50 lowers the priority 150 to 100"),
        ("priority = 100\ntrack_datapath = -5", "it takes more than 10"),
        ("priority = 90\ntrack_backends = -10", "against a priority of 80 it takes more than 10"),
        ("priority = 255", "priority 255 owns the addresses"),
        ("preempt = false\npreempt_delay = \"5s\"", "preempt_delay has no effect with preempt = false"),
        ("version = 2\nauth_pass = \"kubernetes\"", "only the first 8 bytes are used"),
        ("auth_pass = \"k8s\"", "version 3 has no authentication"),
        ("group = \"G\"", "group G has only one instance, VI"),
        ("notify = \"/no/such/program\"", "notify: no program /no/such/program on this host"),
    ] {
        let shown = warnings(&instance(keys));
        assert!(shown.iter().any(|warning| warning.contains(wanted)), "{keys}: {shown:#?}");
    }
    let six = instance("").replace("10.0.1.100/24", "fd00::100/64");
    assert!(warnings(&six)[0].contains("requires a link-local IPv6 address"));
    let second = six.replace("\"VI\"", "\"V6\"").replace("51", "52") + "group = \"G\"\npriority = 90\n";
    let shown = warnings(&(instance("group = \"G\"") + &second));
    assert!(shown.iter().any(|warning| warning.contains("V6 differs from VI in priority")), "{shown:#?}");
}

#[test]
fn drop_ins_are_one_list_with_the_main_file() {
    let second = SERVICE.replace("\"api\"", "\"two\"").replace(":6443", ":7443") + BACKEND;
    let third = SERVICE.replace("\"api\"", "\"three\"").replace(":6443", ":8443") + BACKEND;
    let main = format!("include = [\"conf.d/*.toml\"]\n{SERVICE}{BACKEND}");
    let (_folder, loaded) = load_files(&[("e.toml", &main), ("conf.d/b.toml", &third), ("conf.d/a.toml", &second)]);
    let loaded = loaded.unwrap();
    let names: Vec<_> = loaded.config.services.iter().map(|service| &*service.name).collect();
    assert_eq!(names, ["api", "two", "three"]);
    assert_eq!(loaded.files.len(), 3);
    // Three services share one backend and one SNAT address, so they share its slots.
    assert_eq!(loaded.config.capacity().slots, 22_528);
}

#[test]
fn mistakes_between_files_are_told() {
    let main = format!("include = [\"conf.d/*.toml\", \"gone.toml\"]\n[daemon]\n{SERVICE}{BACKEND}");
    let drop_in = format!("include = \"x\"\n[daemon]\n{SERVICE}snat_ports = \"2000-3000\"\n{BACKEND}");
    let shown = errors_of(&[("e.toml", &main), ("conf.d/a.toml", &drop_in)]);
    let wanted = [
        "conf.d/a.toml:1:11: include: only the main file may include other files",
        "conf.d/a.toml:2:1: [daemon] appears in two files: first at ",
        "conf.d/a.toml:5:8: service api appears twice: first at ",
        "conf.d/a.toml:6:10: listen address 10.0.1.100:6443 appears twice",
        "conf.d/a.toml:7:14: snat_ports: 2000-3000 differs from 10240-32767",
        "e.toml:1:29: include: there is no file ",
    ];
    assert_eq!(shown.len(), wanted.len(), "{shown:#?}");
    for (line, start) in shown.iter().zip(wanted) {
        assert!(line.starts_with(start), "{line}\nis not {start}");
    }
}

#[test]
fn no_more_than_64_backends_fit_in_a_service() {
    let backend =
        |number: u32| format!("[[service.backend]]\nname = \"b{number}\"\naddress = \"10.0.2.{number}:6443\"\n");
    let with = |count: u32| SERVICE.to_owned() + &(1..=count).map(backend).collect::<String>();
    assert_eq!(load_text(&with(64)).unwrap().config.services[0].backends.len(), 64);
    let shown = errors(&with(65));
    assert_eq!(shown, ["e.toml:197:1: 65 backends in one service, the maximum is 64"]);
}

#[test]
fn a_folder_of_pins_is_named_after_another_state_dir() {
    for (state_dir, bpffs) in [
        ("/run/evenkeel", "/sys/fs/bpf/evenkeel"),
        ("/run/evenkeel-b", "/sys/fs/bpf/evenkeel-b"),
        ("/srv/lab.a/state/", "/sys/fs/bpf/srv-lab_a-state"),
    ] {
        let config = load_text(&format!("[daemon]\nstate_dir = \"{state_dir}\"\n")).unwrap().config;
        assert_eq!(config.daemon.bpffs, Path::new(bpffs));
    }
}

#[test]
fn a_key_of_sync_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let text =
        format!("[sync]\nlisten = \"10.0.1.1:9644\"\npeers = [\"10.0.1.2:9644\"]\nkey_file = \"{}\"\n", key.display());
    fs::write(&key, "00112233445566778899aabbccddeeff\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(
        errors(&text)[0].contains("e.toml:4:12: key_file: ")
            && errors(&text)[0].contains("mode 0644, so other users can read it")
    );
    // Some machines run tests without the right to give files away.
    if std::os::unix::fs::chown(&key, Some(12_345), Some(23_456)).is_ok() {
        for (mode, owner, words) in
            [(0o600, 12_345, "its owner, user 12345"), (0o640, 0, "its group 23456"), (0o660, 0, "its group 23456")]
        {
            std::os::unix::fs::chown(&key, Some(owner), None).unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
            assert!(errors(&text)[0].contains(words), "{mode:o}: {:?}", errors(&text));
        }
        std::os::unix::fs::chown(&key, Some(0), Some(0)).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        load_text(&text).unwrap();
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    load_text(&text).unwrap();
    fs::write(&key, "0011\n").unwrap();
    assert!(errors(&text)[0].contains("hexadecimal digits, at least 32"));
    fs::write(&key, "00112233445566778899aabbccddeeff0\n").unwrap();
    assert!(errors(&text)[0].contains("an even number"));
}

#[test]
fn what_this_host_lacks_is_told_apart_from_mistakes() {
    let text = SERVICE.to_owned()
        + "interface = \"nowhere0\"\n[service.health]\nca = \"/nonexistent/ca.crt\"\n[service.access_log]\n\
           path = \"/nonexistent/access.log\"\n"
        + BACKEND
        + "[sync]\nlisten = \"10.0.1.1:9644\"\npeers = [\"10.0.1.2:9644\"]\nkey_file = \"/nonexistent/key\"\n\
           [[vrrp]]\nname = \"VI\"\ninterface = \"nowhere1\"\nvirtual_router_id = 51\npriority = 100\n\
           addresses = [\"10.0.1.100/24\"]\n";
    let loaded = load_text(&text).unwrap();
    let here: Vec<_> = loaded.here.iter().map(|problem| problem.what.as_str()).collect();
    for (what, start) in [
        ("nowhere0", "interface: this host has no interface"),
        ("ca.crt", "ca: "),
        ("/nonexistent:", "path: there is no folder"),
        ("/nonexistent/key", "key_file: "),
        ("nowhere1", "interface: this host has no interface"),
    ] {
        assert!(here.iter().any(|text| text.starts_with(start) && text.contains(what)), "{what}: {here:?}");
    }
    assert_eq!((here.len(), loaded.warnings.len()), (5, 0), "{here:?} {:?}", loaded.warnings);
}

#[test]
fn a_script_that_others_than_root_may_change_is_told() {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::fs::{PermissionsExt, chown};
    // Only root makes a folder that is safe to begin with, and not everywhere.
    let is_safe = |folder: &&str| {
        let above = Path::new(folder).ancestors();
        above.map(fs::metadata).all(|it| it.is_ok_and(|it| it.uid() == 0 && it.mode() & 0o022 == 0))
    };
    let Some(parent) = ["/usr/local/bin", "/usr/bin", "/root"].into_iter().find(|folder| is_safe(folder)) else {
        return;
    };
    let Ok(folder) = tempfile::Builder::new().prefix("scripts").tempdir_in(parent) else { return };
    let script = folder.path().join("check");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    let text = format!(
        "[[vrrp]]\nname = \"VI\"\ninterface = \"lo\"\nvirtual_router_id = 51\npriority = 100\n\
         addresses = [\"10.0.1.100/24\"]\nnotify = \"{}\"\n[daemon]\n",
        script.display()
    );
    let told = |folder_mode: u32, mode: u32, user: u32| {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(folder_mode)).unwrap();
        chown(&script, Some(user), None).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(mode)).unwrap();
        let warnings = load_text(&text).unwrap().warnings;
        warnings.iter().any(|warning| warning.what.contains("decide what runs as root"))
    };
    assert_eq!(
        [told(0o755, 0o755, 0), told(0o755, 0o775, 0), told(0o777, 0o755, 0), told(0o755, 0o755, 12_345)],
        [false, true, true, true]
    );
}

#[test]
fn ports_that_the_host_uses_itself_are_told_unless_vrrp_carries_the_address() {
    let vrrp = "[[vrrp]]\nname = \"VI\"\ninterface = \"lo\"\nvirtual_router_id = 51\npriority = 100\n\
                addresses = [\"10.0.1.100/24\"]\n";
    let service = |ports: &str| format!("{SERVICE}snat_ports = \"{ports}\"\n{BACKEND}");
    let warnings = |text: &str| load_text(text).unwrap().warnings.iter().map(ToString::to_string).collect::<Vec<_>>();
    let told = warnings(&service("1024-65535"));
    assert!(told.len() == 1 && told[0].contains("ip_local_reserved_ports=1024-65535"), "{told:?}");
    assert_eq!(warnings(&(service("1024-65535") + vrrp)), Vec::<String>::new());
    let other = vrrp.replace(".100/", ".101/");
    assert!(warnings(&(service("1024-65535") + &other)).iter().any(|text| text.contains("snat_ports: ")));
}

#[test]
fn a_host_is_not_its_own_peer_and_has_each_peer_once() {
    let text = |listen: &str, peers: &str| {
        format!("[sync]\nlisten = \"{listen}\"\npeers = [{peers}]\nkey_file = \"/nonexistent/key\"\n")
    };
    let own = "\"10.0.1.2:9644\", \"10.0.1.1:9644\"";
    let told = errors(&text("10.0.1.1:9644", own));
    assert!(told.len() == 1 && told[0].contains("e.toml:3:27: peers: 10.0.1.1:9644 is `listen`"), "{told:?}");
    let told = errors(&text("10.0.1.1:9644", "\"10.0.1.2:9644\", \"10.0.1.2:9644\""));
    assert!(told.len() == 1 && told[0].contains("peer 10.0.1.2:9644 appears twice"), "{told:?}");
    load_text(&text("10.0.1.1:9644", "\"10.0.1.1:9645\", \"10.0.1.2:9644\"")).unwrap();
}

#[test]
fn a_file_that_is_not_there_is_told_without_a_line() {
    let problems = load(Path::new("/nonexistent/e.toml")).unwrap_err();
    assert_eq!(problems.to_string(), "/nonexistent/e.toml: cannot be read: No such file or directory (os error 2)");
}

#[test]
fn durations_are_read_as_they_are_written() {
    for (text, millis) in
        [("0s", 0), ("1ms", 1), ("2s", 2000), ("1m30s", 90_000), ("1d2h", 93_600_000), ("40s950ms", 40_950)]
    {
        assert_eq!(units::parse_duration(text), Ok(Duration::from_millis(millis)));
        assert_eq!(units::write_duration(Duration::from_millis(millis)), text);
    }
    for wrong in
        ["", "s", "2", "2 s", "-2s", "2x", "1.5s", "99999999999999999999s", "9999999999999999999d", "2s ", "2ß"]
    {
        assert!(units::parse_duration(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn tries_are_bounded_by_the_backends_that_are_not_down() {
    let backend = |number: u32, more: &str| {
        format!("[[service.backend]]\nname = \"b{number}\"\naddress = \"10.0.2.{number}:6443\"\n{more}\n")
    };
    let backends = backend(1, "") + &backend(2, "backup = true") + &backend(3, "down = true");
    for (keys, tries) in
        [("", 2), ("next_upstream = false", 1), ("next_upstream_tries = 1", 1), ("next_upstream_tries = 9", 2)]
    {
        let config = load_text(&format!("{SERVICE}{keys}\n{backends}")).unwrap().config;
        assert_eq!(config.services[0].tries(), tries, "{keys}");
    }
}

/// Measured: `bytes_memlock` of all maps of a running daemon with this configuration (docs/bench,
/// "Memory of idle connections"), on two processors.
#[test]
fn the_memory_that_check_names_is_what_the_kernel_counted() {
    let others = [
        BACKEND.replace("cp01", "cp02").replace(".10:", ".11:"),
        BACKEND.replace("cp01", "cp03").replace(".10:", ".12:"),
    ];
    let text = ["[daemon]\nmax_connections = 67584\n", SERVICE, BACKEND, &others[0], &others[1]].concat();
    let said = load_text(&text).unwrap().config.capacity().memory_bytes;
    let counted = 12_854_376;
    assert!(said <= counted && counted - said < 24 * 1024, "{said} bytes, but the kernel counted {counted}");
}
