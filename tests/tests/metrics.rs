//! The metrics that operators alert on: what they say, and that the list in
//! `docs/metrics.md` is the list that is served.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result};
use weir_tests::{Backend, House, Machine, Manifests, call, eventually};

const EVERY_SECTION: &str = "  timeouts: {request: 20s}\n  retries: {}\n  circuitBreaker: {minimumRequests: 3, failurePercent: 60, open: {duration: 1s, jitterPercent: 0}, halfOpen: {rampUp: 0s}}\n  bulkheads: [{name: a, at: Caller, maxConcurrent: 100}]\n  loadShedding: {concurrency: {max: 100}, cpu: {}, pressure: {somePercent: 90}}";

/// One family as its page tells of it.
struct Family {
    name: String,
    kind: String,
    labels: BTreeSet<String>,
    help: String,
}

fn families(page: &str) -> Vec<Family> {
    let mut all: Vec<Family> = Vec::new();
    for line in page.lines() {
        if let Some((name, help)) = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '))
        {
            let (name, help) = (name.to_owned(), help.to_owned());
            all.push(Family {
                name,
                kind: String::new(),
                labels: BTreeSet::new(),
                help,
            });
        } else if let (Some(last), Some((_, kind))) = (
            all.last_mut(),
            line.strip_prefix("# TYPE ")
                .and_then(|rest| rest.split_once(' ')),
        ) {
            last.kind = kind.to_owned();
        } else if let (Some(last), Some((_, rest))) = (all.last_mut(), line.split_once('{')) {
            let labels = rest.rsplit_once('}').map_or("", |(labels, _)| labels);
            for label in labels.split("\",").filter_map(|l| l.split_once('=')) {
                last.labels.insert(label.0.to_owned());
            }
        }
    }
    all
}

fn table(page: &str) -> String {
    let mut text =
        String::from("| metric | kind | labels | what it says |\n| --- | --- | --- | --- |\n");
    for Family {
        name,
        kind,
        labels,
        help,
    } in families(page)
    {
        let labels: Vec<_> = labels.iter().map(|l| format!("`{l}`")).collect();
        let _ = writeln!(
            text,
            "| `{name}` | {kind} | {} | {help} |",
            labels.join(", ")
        );
    }
    text
}

#[tokio::test]
async fn the_documented_metrics_are_the_served_ones() -> Result<()> {
    let backend = Backend::always(200).await;
    let manifests = Manifests::new()?;
    manifests.service("payments", &[backend.address()])?;
    manifests.policy("payments", EVERY_SECTION)?;
    let machine = Machine::idle()?;
    let house = House::start_on(manifests, &machine).await?;
    call::get(house.listener("payments").await, "/").await?;
    house.breaker_is("payments", "Closed").await;
    eventually("the machine's load to be known", || async {
        let text = house.metrics().await.unwrap_or_default();
        let known = text.contains("figure=\"cpu_pressure\"");
        known.then_some(()).ok_or("no figure")
    })
    .await;
    let admin = house
        .control_plane()
        .admin_addr()
        .context("there is an admin address")?;
    let (agent, control_plane) = (
        house.metrics().await?,
        call::get(admin, "/metrics").await?.text(),
    );
    house.shutdown().await;

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let documented = std::fs::read_to_string(path)?;
    let mut expected = String::new();
    let mut rest = documented.as_str();
    for (marker, page) in [("agent", &agent), ("control-plane", &control_plane)] {
        let (begin, end) = (
            format!("<!-- {marker} -->\n"),
            format!("<!-- /{marker} -->"),
        );
        let (before, after) = rest
            .split_once(&begin)
            .with_context(|| format!("{path} has {begin}"))?;
        let (_, after) = after
            .split_once(&end)
            .with_context(|| format!("{path} has {end}"))?;
        let _ = write!(expected, "{before}{begin}{}{end}", table(page));
        rest = after;
    }
    expected.push_str(rest);
    if std::env::var_os("WEIR_UPDATE_DOCS").is_some() {
        std::fs::write(path, &expected)?;
    }
    assert!(
        documented == expected,
        "docs/metrics.md is stale: run this test with WEIR_UPDATE_DOCS=1"
    );
    Ok(())
}

#[tokio::test]
async fn state_is_one_hot_and_an_opening_shorter_than_a_scrape_is_counted() -> Result<()> {
    let backend = Backend::always(500).await;
    let house = House::payments(
        &[backend.address()],
        &EVERY_SECTION.replace("retries: {}", "retries: {attempts: 0}"),
    )
    .await?;
    let payments = house.listener("payments").await;
    for _ in 0..3 {
        call::get(payments, "/").await?;
    }
    call::get(payments, "/").await?;
    house.breaker_is("payments", "HalfOpen").await;
    backend.now_always(200);
    for _ in 0..2 {
        call::get(payments, "/").await?;
    }
    house.breaker_is("payments", "Closed").await;
    for (state, on) in [
        ("\"Closed\"", 1.0),
        ("\"Open\"", 0.0),
        ("\"HalfOpen\"", 0.0),
    ] {
        assert_eq!(
            house.metric("weir_circuit_breaker_state", &[state]).await?,
            on,
            "{state}"
        );
    }
    for (to, times) in [
        ("\"Open\"", 1.0),
        ("\"HalfOpen\"", 1.0),
        ("\"Closed\"", 1.0),
    ] {
        assert_eq!(
            house
                .metric("weir_circuit_breaker_transitions_total", &[to])
                .await?,
            times,
            "{to}"
        );
    }
    assert_eq!(
        house
            .metric("weir_circuit_breaker_rejected_total", &[])
            .await?,
        1.0
    );
    assert_eq!(
        house
            .metric("weir_answers_total", &["breaker_open"])
            .await?,
        1.0
    );
    let admin = house
        .control_plane()
        .admin_addr()
        .context("there is an admin address")?;
    let page = call::get(admin, "/metrics").await?.text();
    for to in ["Open", "HalfOpen", "Closed"] {
        let line = format!("weir_control_plane_circuit_breaker_transitions_total{{to=\"{to}\"}} 1");
        assert!(page.lines().any(|l| l == line), "{line} in {page}");
    }
    house.shutdown().await;
    Ok(())
}
