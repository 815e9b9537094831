use super::*;

const SECOND: Duration = Duration::from_secs(1);
const START: Instant = Instant::ZERO;

fn from() -> IpAddr {
    [10, 0, 1, 2].into()
}

fn text(trouble: Trouble) -> String {
    InstanceEvent { instance: "VI".into(), what: Occurrence::Trouble(trouble) }.notice(51).text
}

fn refused(why: AdvertRefusal, agreement: Agreement) -> Trouble {
    Trouble::Refused { why, from: from(), agreement: Some(agreement), said: "version 3".into() }
}

#[test]
fn a_change_of_state_says_why() {
    let moved = |to, why, faults: &[&str]| {
        let faults = faults.iter().map(|fault| fault.to_string()).collect();
        let what = Occurrence::Moved { from: State::Master, to, why, priority: 150, faults };
        InstanceEvent { instance: "VI".into(), what }.notice(51)
    };
    let backup = moved(State::Backup, Why::Outranked(from()), &[]);
    assert_eq!(
        backup.to_string(),
        "VRRP instance VI is BACKUP with priority 150 (was MASTER): 10.0.1.2 has a higher priority, or the same and a \
         higher address"
    );
    assert_eq!(backup.level, Level::Info);
    let fault = moved(State::Fault, Why::Fault, &["interface eth0 is down"]);
    assert!(fault.text.ends_with("(was MASTER): interface eth0 is down"), "{}", fault.text);
    assert_eq!(fault.level, Level::Warn);
}

#[test]
fn every_refusal_says_what_to_do_or_what_it_is() {
    for why in AdvertRefusal::ALL {
        let text = text(refused(*why, Agreement::Same));
        assert!(text.contains("10.0.1.2"), "{text}");
    }
    let password = refused(AdvertRefusal::Password, Agreement::Same);
    assert!(text(password).contains("the same `auth_pass`"));
}

#[test]
fn a_stranger_with_our_number_is_distinguished_from_a_peer_with_another_configuration() {
    let strange = |why| text(refused(why, Agreement::Strange));
    for why in [
        AdvertRefusal::Password,
        AdvertRefusal::Version,
        AdvertRefusal::Interval,
        AdvertRefusal::AuthenticationType,
        AdvertRefusal::Addresses,
    ] {
        assert!(strange(why).contains("virtual_router_id 51 for other addresses"), "{why:?}");
    }
    assert!(text(Trouble::Disagrees { from: from(), said: "version 3".into() }).contains("other `addresses`"));
}

#[test]
fn the_same_trouble_is_reported_once_a_minute_and_a_flood_of_different_ones_is_bounded() {
    let mut limit = TroubleLimit::default();
    let name: Arc<str> = "VI".into();
    let lower = |last| Trouble::LowerMaster { from: [10, 0, 1, last].into(), priority: 1 };
    assert!(limit.lets_pass(&name, &lower(2), START));
    assert!(!limit.lets_pass(&name, &lower(2), START + 59 * SECOND));
    assert!(limit.lets_pass(&name, &lower(3), START + 59 * SECOND));
    assert!(limit.lets_pass(&"other".into(), &lower(2), START + 59 * SECOND));
    assert!(limit.lets_pass(&name, &lower(2), START + 60 * SECOND));
    let reported = (0..=255).filter(|last| limit.lets_pass(&name, &lower(*last), START + 200 * SECOND)).count();
    assert_eq!(reported, KNOWN);
}
