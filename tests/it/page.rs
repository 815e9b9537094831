//! The status page in a real browser on the client's host, at the widths of a desktop and of a
//! phone.

use std::time::Duration;

use lab::{
    Browser, StandIn,
    browser::{DESKTOP, PHONE},
    daemon::Service,
    picture::API,
    wait,
};
use serde_json::Value;

use crate::cluster::{Cluster, SOON};

/// A page that polls once a second, in a browser that shares two cores with a lab.
const SHOWN: Duration = Duration::from_secs(20);

fn cluster() -> Cluster {
    let cluster = Cluster::new("tc", |service| service);
    let quick = |service: Service, n| service.backend_line(n, "max_fails = 1\nfail_timeout = \"1s\"");
    let services = (0..3).fold(Service::new(&cluster.lab, "tc"), quick).toml();
    cluster.evenkeel.write(&format!("[api]\nlisten = \"{API}\"\n\n{services}")).expect("a configuration");
    cluster.evenkeel.done(&["reload"]).expect("reload");
    cluster
}

fn browser(cluster: &Cluster) -> Browser {
    let mut browser = Browser::start(cluster.lab.client(), "chromium").expect("chromium");
    browser.resize(DESKTOP).expect("a window");
    browser.open(&format!("http://{API}/")).expect("the page");
    browser.wait_for("document.documentElement.dataset.live === 'yes'", SHOWN).expect("it is live");
    browser
}

fn text(browser: &mut Browser, selector: &str) -> String {
    let value = browser.value(&format!("document.querySelector('{selector}').innerText")).expect("it is there");
    value.as_str().expect("a text").to_owned()
}

fn wait_for(browser: &mut Browser, expression: &str) {
    if let Err(error) = browser.wait_for(expression, SHOWN) {
        let page = browser.value("document.body.innerText").unwrap_or_default();
        panic!("{error:#}\n{}", page.as_str().unwrap_or_default());
    }
}

fn wait_state(browser: &mut Browser, backend: &str, state: &str) {
    wait_for(browser, &format!("document.querySelector('[data-backend={backend}]').dataset.state === '{state}'"));
}

#[test]
fn the_page_shows_backends_as_they_are_and_says_so_when_the_daemon_is_gone() {
    let mut cluster = cluster();
    let mut browser = browser(&cluster);
    let mut held = cluster.hold(&[]);
    held.open(30).expect("open");
    wait_for(&mut browser, "document.querySelector('#tile-active .value').innerText === '30'");
    let row = text(&mut browser, "[data-backend=cp02]");
    assert!(row.contains("10.0.1.11:6443") && row.contains("up") && row.contains("\n10\n"), "{row}");
    let rows = browser.value("[...document.querySelectorAll('[data-backend]')].map((row) => row.dataset.backend)");
    assert_eq!(rows.expect("rows"), serde_json::json!(["cp01", "cp02", "cp03"]));
    for absent in ["vrrp", "sync"] {
        let hidden = browser.value(&format!("document.getElementById('{absent}').hidden")).expect("a value");
        assert_eq!(hidden, Value::Bool(true), "{absent}");
    }
    assert!(text(&mut browser, ".service-head .sum").contains("spread 0"));

    cluster.standins[0].kill();
    cluster.storm(&["--connections", "20"]).finish(SOON).expect("a storm");
    wait_state(&mut browser, "cp01", "down");
    assert!(text(&mut browser, "[data-backend=cp01]").contains("refuses connections"));
    wait_for(&mut browser, "document.querySelector('#events li').innerText.includes('cp01 is out')");
    wait_for(
        &mut browser,
        "document.querySelector('#counters [data-reason=refused] .moved').innerText.startsWith('+')",
    );
    assert_eq!(text(&mut browser, "#tile-up .value"), "2 of 3");
    assert!(browser.value("document.title").expect("a title").as_str().is_some_and(|title| title.contains("2/3")));
    cluster.standins[0].revive().expect("cp01");
    wait::until("cp01 is up", SOON, || {
        cluster.storm(&["--connections", "10"]).finish(SOON).expect("a storm");
        (cluster.backend("cp01").state == "up").then_some(())
    })
    .expect("cp01");
    wait_state(&mut browser, "cp01", "up");
    let plotted = browser.value("document.querySelector('#tile-opened .curve').getAttribute('d').length > 20");
    assert_eq!(plotted.expect("a curve"), Value::Bool(true));

    cluster.evenkeel.kill();
    wait_for(&mut browser, "document.getElementById('stale').innerText.startsWith('Stale since')");
    assert_eq!(text(&mut browser, "#live"), "stale");
    cluster.evenkeel.run().expect("a second start");
    wait_for(
        &mut browser,
        "document.getElementById('live').innerText === 'live' && document.getElementById('stale').hidden",
    );
    let began_again =
        "[...document.querySelectorAll('#events li')].filter((li) => li.innerText.includes('is ready')).length";
    wait_for(&mut browser, &format!("{began_again} === 2"));
    cluster.standins.iter_mut().for_each(StandIn::kill);
}

/// The page as if the daemon had answered something else: a MASTER, and a backend whose name would
/// be markup.
const OTHER_ANSWERS: &str = r#"
    const honest = window.fetch;
    window.fetch = async (path, options) => {
        const answer = await honest(path, options);
        if (path !== "/api/v1/status") return answer;
        const status = await answer.json();
        status.services[0].backends[0].name = "<img src=x onerror=document.title='owned'>";
        status.vrrp = [{ name: "VI_1", state: "MASTER", priority: 90, base_priority: 150, addresses: ["10.0.1.100/24"],
                         since: "2026-01-02T03:04:05Z", transitions: 3, master: null, reason: "no advert was heard", faults: [],
                         weights: [{ what: "no backend is up", weight: -60 }],
                         peers: [{ address: "10.0.1.2", priority: 100, last_heard: "2026-01-02T03:04:04Z" }] }];
        status.sync = { listen: "10.0.1.1:9644", error: null, master_of: ["10.0.1.100:6443"], send_failures: 0,
                        peers: [{ address: "10.0.1.2:9644", state: "synced", version: "0.1.0", silent_ms: 12, waiting: 3,
                                  lag_ms: 20, lost: 1, flows_sent: 3000, flows_received: 7, unknown: 2, conflicts: 0, refused: { key: 4 } }] };
        return new Response(JSON.stringify(status));
    };
    0"#;

#[test]
fn the_page_fits_a_phone_takes_text_as_text_and_needs_nothing_from_outside() {
    let cluster = cluster();
    let mut browser = browser(&cluster);
    wait_for(&mut browser, "document.querySelectorAll('[data-backend]').length === 3");
    for window in [PHONE, DESKTOP] {
        browser.resize(window).expect("a window");
        let (width, fits) = ("document.documentElement.scrollWidth", "window.innerWidth");
        let [width, fits] =
            [width, fits].map(|asked| browser.value(asked).expect("a width").as_u64().expect("a number"));
        assert!(width <= fits && fits == u64::from(window.width), "{window:?}: {width} of {fits} pixels");
    }
    browser.value(OTHER_ANSWERS).expect("a script");
    wait_for(&mut browser, "document.querySelector('#vrrp .state')?.innerText === 'MASTER'");
    let vrrp = text(&mut browser, "#vrrp");
    assert!(vrrp.contains("VI_1") && vrrp.contains("90 (base 150)") && vrrp.contains("this host"), "{vrrp}");
    assert!(vrrp.contains("no advert was heard") && vrrp.contains("heard 10.0.1.2 (100)"), "{vrrp}");
    let sync = text(&mut browser, "#sync");
    for part in ["10.0.1.2:9644", "synced", "20 ms", "3,000", "the connections of 10.0.1.100:6443", "\t5"] {
        assert!(sync.contains(part), "{part}: {sync}");
    }
    for window in [PHONE, DESKTOP] {
        browser.resize(window).expect("a window");
        let width = browser.value("document.documentElement.scrollWidth - window.innerWidth").expect("a width");
        assert!(width.as_i64().is_some_and(|over| over <= 0), "{window:?}: {width}");
    }
    assert!(text(&mut browser, "tr[data-backend] .who").contains("<img src=x"), "the name as it is");
    assert_eq!(browser.value("document.querySelectorAll('img').length").expect("a number"), 0);

    // By keyboard, and in the system's colour scheme.
    let theme = |browser: &mut Browser| browser.value("document.documentElement.dataset.theme").expect("a theme");
    browser.prefer("dark").expect("a preference");
    wait_for(&mut browser, "document.documentElement.dataset.theme === 'dark'");
    browser.value("document.getElementById('theme').focus(), document.activeElement.click()").expect("a click");
    assert_eq!(theme(&mut browser), "light");

    let resources =
        browser.value("performance.getEntriesByType('resource').map((entry) => entry.name)").expect("names");
    let resources = resources.as_array().expect("a list").clone();
    let ours = |name: &Value| name.as_str().is_some_and(|name| name.starts_with(&format!("http://{API}/api/v1/")));
    assert!(!resources.is_empty() && resources.iter().all(ours), "{resources:?}");

    browser.scripts(false).expect("no scripts");
    browser.open(&format!("http://{API}/")).expect("the page");
    let told = wait::until("a page without a script", SHOWN, || {
        let told = browser.value("document.body.innerText").ok()?.as_str()?.to_owned();
        told.contains("needs JavaScript").then_some(told)
    });
    assert!(told.is_ok_and(|told| told.contains("evenkeel status")));
}
