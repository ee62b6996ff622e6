//! The page for people, in a real browser, in every state; pictures of it are in `target/operator-page`.

use std::path::PathBuf;

use serde_json::json;

use crate::browser::Browser;
use crate::persister::{Persister, metric, nothing, produce, topics};

fn pictures() -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("operator-page");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// What a person must be able to tell apart: contrast of each text with what is behind it, at least 4.5.
const CONTRAST: &str = r#"(() => {
  const rgb = text => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = node => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  let worst = 21, who = "";
  for (const node of document.querySelectorAll("body *")) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()) || !node.offsetParent || ["SCRIPT", "STYLE"].includes(node.tagName) || node.classList.contains("skip")) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < worst) { worst = ratio; who = node.tagName + " " + node.className + " " + node.textContent.slice(0, 40); }
  }
  return [worst, who];
})()"#;

fn check_looks(browser: &mut Browser, state: &str) {
    for (name, width, height, dark) in [("wide", 1280, 900, false), ("phone-dark", 390, 844, true)]
    {
        browser.looks(width, height, dark);
        let wide = browser.value("document.documentElement.scrollWidth <= window.innerWidth");
        assert_eq!(wide, true, "{state}, {name}: the page is wider than the screen");
        let contrast = browser.value(CONTRAST);
        assert!(contrast[0].as_f64().unwrap() >= 4.5, "{state}, {name}: {contrast}");
        browser.picture(&pictures().join(format!("{state}-{name}.png")));
    }
}

#[test]
fn the_page_shows_every_state_and_says_when_it_has_lost_contact() {
    topics("page", 3);
    let dir = tempfile::tempdir().unwrap();
    let persister = Persister::start(dir.path(), "page", &[]);
    let (port, url) =
        (persister.address.rsplit_once(':').unwrap().1.parse().unwrap(), persister.url.clone());
    let mut browser = Browser::start(dir.path());
    browser.looks(1280, 900, false);
    browser.open(&url);
    browser.wait(
        "live",
        "document.body.dataset.contact === 'live' && document.body.dataset.state === 'ok'",
    );
    browser.wait("assigned", "(document.getElementById('pipelines').innerText.match(/nothing taken yet/g) || []).length === 4");
    // For who does not see: everything that is drawn has words, every part a name, and the keyboard reaches it.
    for (what, expression) in [
        (
            "pictures have words",
            "[...document.querySelectorAll('[role=img],[role=meter]')].every(e => e.getAttribute('aria-label'))",
        ),
        (
            "sections have names",
            "[...document.querySelectorAll('section')].every(e => e.getAttribute('aria-label') || e.getAttribute('aria-labelledby'))",
        ),
        (
            "the state is announced",
            "document.getElementById('state').getAttribute('aria-live') === 'polite'",
        ),
        ("there is a way past the head", "document.querySelector('a.skip').hash === '#main'"),
        ("the language is told", "document.documentElement.lang === 'en'"),
        (
            "nothing comes from elsewhere",
            "performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin) || e.name.startsWith('data:'))",
        ),
    ] {
        assert_eq!(browser.value(expression), true, "{what}");
    }
    check_looks(&mut browser, "start");

    // The log fills while nothing is delivered, and empties.
    persister.order("/api/v1/control/pause", &json!({"stage": "delivery"}));
    produce("metrics-page", (0..5000).map(|value| metric("t", "cpu", value)));
    browser.wait(
        "a backlog",
        "document.getElementById('pipelines').innerText.includes('5,000 records')",
    );
    browser.wait("the reason", "document.body.dataset.state === 'degraded' && document.getElementById('reasons').innerText.includes('PAUSED_BY_ORDER')");
    check_looks(&mut browser, "backlog");
    persister.order("/api/v1/control/drain", &nothing());
    browser.wait("drained", "document.querySelector('#pipelines section dd').innerText.startsWith('0 records') && document.getElementById('pipelines').innerText.includes('5,000 rows written')");
    check_looks(&mut browser, "drain");
    persister.order("/api/v1/control/resume", &nothing());
    // What a message says is text, whatever it looks like.
    produce(
        "metrics-page",
        [
            "<img src=x onerror=document.title='hacked'>".to_owned(),
            metric("<b>t</b>", "x", 1).replace("\"value\":1", "\"value\":\"<script>\""),
        ],
    );
    browser.wait("letters", "document.querySelectorAll('#letters tbody tr').length === 2");
    assert_eq!(browser.value("document.querySelectorAll('#letters img, #letters b').length"), 0);
    check_looks(&mut browser, "dead-letter");

    persister.stop();
    browser.wait(
        "lost",
        "document.body.dataset.contact === 'lost' && !document.getElementById('lost').hidden",
    );
    check_looks(&mut browser, "contact-lost");
    // It comes back by itself, and knows how the program ended. Then the store is away.
    let settings =
        [("STORE__KIND", "cassandra"), ("STORE__CASSANDRA__CONTACT_POINTS", "127.0.0.1:1")];
    let persister = Persister::start_at(dir.path(), "page", port, &settings);
    produce("metrics-page", (0..300).map(|value| metric("t", "cpu", value)));
    browser.wait("back", "document.body.dataset.contact !== 'lost' && document.getElementById('shutdown').innerText.includes('yes')");
    browser.wait("the outage", "document.getElementById('reasons').innerText.includes('STORE_UNAVAILABLE') && document.getElementById('pipelines').innerText.includes('300 records')");
    check_looks(&mut browser, "outage");
    browser.open(&format!("{url}/?poll"));
    browser.wait(
        "asking",
        "document.body.dataset.contact === 'polling' && document.body.dataset.state === 'degraded'",
    );
    persister.stop();
}
