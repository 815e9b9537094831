//! A command that cannot be carried out is refused with a reason, and a daemon that does not run is
//! exit 2.

use lab::daemon::Service;

use super::cluster;

/// Every command that acts, with correct arguments.
const COMMANDS: [&[&str]; 7] = [
    &["drain", "cp01"],
    &["maint", "cp01"],
    &["ready", "cp01"],
    &["set", "cp01", "weight=2"],
    &["kill", "10.0.1.101:5"],
    &["rebalance"],
    &["rebalance", "--dry-run"],
];

#[test]
fn wrong_input_is_exit_1_with_what_would_be_right_and_changes_nothing() {
    let cluster = cluster();
    let cases: [(&[&str], &str); 24] = [
        (&["drain"], "<BACKEND>"),
        (&["drain", "cp1"], "there is no backend cp1: did you mean cp01? There are cp01, cp02, cp03"),
        (&["drain", "cp01", "--service", "api"], "there is no service api"),
        (&["drain", "cp01", "--deadline", "5"], "write a whole number and ms, s, m, h or d"),
        (&["drain", "cp01", "--deadline", "60d"], "longer than 30 days"),
        (&["drain", "cp01", "--rate", "5"], "--deadline"),
        (&["drain", "cp01", "--deadline", "5s", "--rate", "0"], "invalid value '0'"),
        (&["maint", "cp01", "cp02"], "unexpected argument 'cp02'"),
        (&["maint", "nobody"], "there is no backend nobody"),
        (&["ready", "CP01"], "there is no backend CP01"),
        (&["set", "cp01"], "<KEY=VALUE>"),
        (&["set", "cp01", "weight"], "write weight=N or max_conns=N"),
        (&["set", "cp01", "weight=0"], "must be 1 to 65535; to stop new connections, drain the backend"),
        (&["set", "cp01", "weight=65536"], "1 to 65535"),
        (&["set", "cp01", "weight=-1"], "not a whole number"),
        (&["set", "cp01", "height=1"], "unknown setting \"height\": must be weight or max_conns"),
        (&["set", "cp01", "weight=1", "weight=2"], "weight is given twice"),
        (&["kill"], "required"),
        (&["kill", "10.0.1.101"], "the port is missing: 10.0.1.101:50123"),
        (&["kill", "--client", "here"], "invalid IP address"),
        (&["kill", "--client", "10.0.1.101", "--backend", "cp01"], "cannot be used with"),
        (&["kill", "--service", "kube-apiserver"], "required"),
        (&["rebalance", "--tolerance", "0"], "invalid value '0'"),
        (&["rebalance", "--service", "nobody"], "there is no service nobody"),
    ];
    for (args, why) in cases {
        let answer = cluster.command(args);
        assert_eq!((answer.code, answer.out.as_str()), (1, ""), "{args:?}: {}", answer.err);
        assert!(answer.err.contains(why), "{args:?}: {}", answer.err);
    }
    for name in ["cp01", "cp02", "cp03"] {
        cluster.stands(name, "up", None);
        assert_eq!(cluster.backend(name).weight, 1);
    }
}

#[test]
fn a_name_that_two_services_have_needs_the_service() {
    let cluster = cluster();
    let second = Service::new(&cluster.lab, "tc").toml();
    let second = second.replace("kube-apiserver", "other").replace("10.0.1.100:6443", "10.0.1.100:7443");
    let both = Service::new(&cluster.lab, "tc").toml() + &second;
    cluster.evenkeel.write(&both).expect("a configuration");
    cluster.done(&["reload"]);
    for command in [&["drain", "cp01"][..], &["maint", "cp01"], &["ready", "cp01"], &["kill", "--backend", "cp01"]] {
        let answer = cluster.command(command);
        assert_eq!(answer.code, 1);
        let why = "2 services have a backend cp01: choose one with --service kube-apiserver or --service other\n";
        assert_eq!(answer.err, why, "{command:?}");
    }
    cluster.done(&["drain", "cp01", "--service", "other"]);
    let states: Vec<_> = cluster.evenkeel.backends().expect("backends");
    let drained: Vec<_> = states.iter().filter(|b| b.state == "draining").map(|b| (&*b.service, &*b.name)).collect();
    assert_eq!(drained, [("other", "cp01")]);
}

#[test]
fn without_a_daemon_every_one_of_them_is_exit_2() {
    let mut cluster = cluster();
    cluster.evenkeel.terminate().expect("SIGTERM");
    for command in COMMANDS {
        let answer = cluster.command(command);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{command:?}: {}", answer.err);
        assert!(answer.err.contains("the daemon cannot be reached at"), "{command:?}: {}", answer.err);
    }
    // --socket means the same as the environment variable.
    let answer = cluster.command(&["drain", "cp01", "--socket", "/nonexistent/control.sock"]);
    assert_eq!(answer.code, 2);
    assert!(answer.err.contains("/nonexistent/control.sock"), "{}", answer.err);
}

#[test]
fn every_one_of_them_has_help_with_an_example() {
    let cluster = cluster();
    for command in COMMANDS {
        let help = cluster.done(&[command[0], "--help"]);
        assert!(help.contains(&format!("evenkeel {}", command[0])) && help.contains("Example"), "{help}");
    }
}
