use super::*;

const EINVAL: i32 = 22;

fn facts(step: Step, error: i32) -> Facts {
    Facts {
        step,
        error,
        log: String::new(),
        kernel: "6.1.0-57-amd64 x86_64".into(),
        missing: Vec::new(),
        lockdown: "none".into(),
        forbids_every_map: false,
        in_user_namespace: false,
        has_seccomp_filter: false,
    }
}

fn program(error: i32, log: &str) -> Facts {
    Facts { log: log.into(), ..facts(Step::Program("evenkeel_tc".into()), error) }
}

fn map(error: i32) -> Facts {
    facts(Step::Map("EVENTS".into()), error)
}

/// Debian 11.
#[test]
fn an_old_kernel_is_told_what_it_lacks_and_which_distributions_have_it() {
    let missing = vec![Need::Helper(160), Need::AtomicResults, Need::XdpContext];
    let old =
        Facts { kernel: "5.10.0-46-amd64 x86_64".into(), missing, ..program(EINVAL, "BPF_STX uses reserved fields") };
    assert_eq!(
        sentence(&old),
        "the kernel, Linux 5.10.0-46-amd64 x86_64, has no bpf_ktime_get_coarse_ns (since Linux 5.11), no atomic \
         instructions that return a value (since Linux 5.12) and no test runs of XDP programs with a context (since \
         Linux 5.15). evenkeel needs Linux 5.15 or newer, or the kernel of RHEL 9: Debian 12 and 13, Ubuntu 22.04 and \
         24.04, and RHEL, Rocky Linux and AlmaLinux 9 and 10 have one"
    );
}

/// A kernel between releases, or one of a distribution that takes features back.
#[test]
fn one_thing_that_is_missing_is_named_alone() {
    let without = Facts { missing: vec![Need::XdpContext], ..facts(Step::Nothing, 0) };
    let told = sentence(&without);
    assert!(told.starts_with(
        "the kernel, Linux 6.1.0-57-amd64 x86_64, has no test runs of XDP programs with a context (since Linux 5.15). "
    ));
}

#[test]
fn a_kernel_without_bpf_is_told_from_an_old_one() {
    let told = sentence(&map(errno::ENOSYS));
    assert!(told.contains("was built without BPF (CONFIG_BPF_SYSCALL). evenkeel needs Linux 5.15"), "{told}");
}

#[test]
fn memory_that_is_not_there_points_at_what_can_be_made_smaller() {
    let told = sentence(&map(errno::ENOMEM));
    assert!(told.starts_with("the kernel, Linux 6.1.0-57-amd64 x86_64, refuses the map EVENTS: it has no memory left"));
    assert!(told.contains("lower max_connections"), "{told}");
    assert_eq!(sentence(&map(errno::E2BIG)), told);
}

#[test]
fn a_program_without_memory_is_no_fault_of_ours() {
    let told = sentence(&program(errno::ENOMEM, "processed 88328 insns (limit 1000000)"));
    assert!(
        told.contains("refuses the program evenkeel_tc: it has no memory left for it. The host's memory"),
        "{told}"
    );
    assert!(!told.contains("max_connections") && !told.contains("report"), "{told}");
}

#[test]
fn what_passes_or_can_be_raised_is_no_fault_of_ours() {
    let told = sentence(&program(errno::ENOTSUPP, ""));
    assert!(told.contains("could not compile it") && told.contains("unload other BPF programs"), "{told}");
    assert!(!told.contains("report"), "{told}");
    let told = sentence(&program(errno::EAGAIN, ""));
    assert!(told.ends_with("a signal has interrupted its verifier. Start evenkeel again"), "{told}");
}

const FILTER: &str = "a seccomp filter (of a container?) forbids bpf(2)";
const MODULE: &str = "A security module (SELinux, AppArmor) may be the reason";

/// Some filters answer as a kernel without the call would.
#[test]
fn a_filter_that_hides_bpf_is_not_taken_for_a_kernel_without_it() {
    let told = sentence(&Facts { has_seccomp_filter: true, ..map(errno::ENOSYS) });
    assert!(told.contains(FILTER), "{told}");
}

#[test]
fn the_nearest_reason_for_a_prohibition_is_named() {
    let every = Facts { forbids_every_map: true, has_seccomp_filter: true, ..map(errno::EPERM) };
    assert!(sentence(&every).contains(FILTER));
    // A small map is taken: the filter permits the call.
    assert!(sentence(&Facts { forbids_every_map: false, ..every.clone() }).contains(MODULE));
    for namespace in [every, map(errno::EPERM), program(errno::EPERM, "")] {
        let told = sentence(&Facts { in_user_namespace: true, ..namespace });
        assert!(told.contains("in a user namespace only"), "{told}");
    }
    let program = |lockdown: &str| Facts { lockdown: lockdown.into(), ..program(errno::EPERM, "") };
    let locked = Facts { has_seccomp_filter: true, ..program("integrity") };
    assert!(sentence(&locked).contains("it is locked down (integrity). Boot with `lockdown=none`"));
    assert!(sentence(&program("none")).contains(MODULE));
}

/// The verifier has the same number, and a log.
#[test]
fn a_security_module_that_denies_is_told_from_the_verifier() {
    for denied in [map(errno::EACCES), program(errno::EACCES, ""), program(errno::EACCES, "\n")] {
        // Whatever else there is: it would say EPERM.
        let denied = Facts {
            forbids_every_map: true,
            in_user_namespace: true,
            has_seccomp_filter: true,
            lockdown: "integrity".into(),
            ..denied
        };
        assert!(sentence(&denied).contains(MODULE), "{}", sentence(&denied));
    }
    for error in [errno::EPERM, errno::EACCES] {
        let told = sentence(&program(error, "combined stack size of 8 calls is 544. Too large"));
        assert!(told.contains("more than the 512 bytes of stack") && told.ends_with("please report it"), "{told}");
    }
}

#[test]
fn too_much_stack_and_too_many_instructions_are_told_as_ours() {
    let stack =
        "func#41 @3107\ncombined stack size of 8 calls is 544. Too large\nprocessed 88328 insns (limit 1000000)";
    let told = sentence(&program(13, stack));
    assert_eq!(
        told,
        "the kernel, Linux 6.1.0-57-amd64 x86_64, refuses the program evenkeel_tc: its verifier counts more than the 512 \
         bytes of stack that are allowed (combined stack size of 8 calls is 544. Too large). It has everything that \
         evenkeel asks for, so this is a fault of evenkeel: please report it"
    );
    let long = "BPF program is too large. Processed 1000001 insn\nprocessed 1000001 insns (limit 1000000)\n";
    for refused in [program(errno::E2BIG, long), program(errno::E2BIG, ""), program(EINVAL, long)] {
        let told = sentence(&refused);
        assert!(told.contains("gives up after 1,000,000 instructions. It has everything"), "{told}");
    }
}

#[test]
fn of_any_other_refusal_the_verifiers_last_word_is_given() {
    let log = "12: (bf) r1 = r10\n13: (85) call bpf_map_lookup_elem#1\nR2 !read_ok\n\nverification time 21 usec\nstack depth 8\n\
               processed 13 insns (limit 1000000) max_states_per_insn 0\n";
    assert!(sentence(&program(13, log)).contains("evenkeel_tc: its verifier says \"R2 !read_ok\". It has everything"));
    let told = sentence(&program(EINVAL, "processed 0 insns"));
    assert!(told.contains("evenkeel_tc: Invalid argument (os error 22). It has everything"), "{told}");
}

#[test]
fn rights_that_are_missing_are_named_and_all_that_are_needed() {
    assert_eq!(lacking_rights(u64::MAX), None);
    assert_eq!(lacking_rights(1 << 12 | 1 << 13 | 1 << 21), None);
    assert_eq!(
        lacking_rights(1 << 21).unwrap(),
        "this process lacks the right to balance (CAP_NET_ADMIN, CAP_NET_RAW). Start evenkeel as root, or give its unit \
         or container the capabilities CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN"
    );
    assert!(lacking_rights(0).unwrap().contains("(CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN)"));
}

#[test]
fn the_verifiers_log_is_kept_apart_from_what_is_told() {
    let io_error = std::io::Error::from_raw_os_error(EINVAL);
    let verifier_log = aya_obj::VerifierLog::new("0: (95) exit\nR0 !read_ok".into());
    let error = Refusal::of_program("evenkeel_xdp", ProgramError::LoadError { io_error, verifier_log });
    let refusal = error.downcast_ref::<Refusal>().unwrap();
    assert_eq!(refusal.log, "0: (95) exit\nR0 !read_ok");
    assert!(!error.to_string().contains("(95) exit"), "{error}");
    let other = Refusal::of_program("evenkeel_xdp", ProgramError::NotLoaded);
    assert!(format!("{other:#}").starts_with("the program evenkeel_xdp cannot be loaded: "), "{other:#}");
}
