//! The story of an outage, as kubectl tells it.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;
use weir_tests::kubernetes::weir::{Agent, Weir};
use weir_tests::{Backend, Reply, call, netns};

/// A destination that answers what a test tells it to, at an address that the API server takes.
pub(crate) async fn destination() -> (Backend, Arc<AtomicU16>) {
    destination_at(0).await
}

/// The same at a port of its own.
async fn destination_at(port: u16) -> (Backend, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let answers = Arc::clone(&status);
    let address = format!("{}:{port}", netns::address(9));
    let backend = Backend::listen(&address, move |_| {
        let status = answers.load(SeqCst);
        async move { Reply::status(status) }
    })
    .await;
    (backend, status)
}

/// The lines of a program's output, each with when it came.
pub(crate) fn lines(
    mut command: tokio::process::Command,
) -> Result<(tokio::process::Child, mpsc::Receiver<(i64, String)>)> {
    let mut child = command
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let out = child.stdout.take().context("it was piped")?;
    let (said, heard) = mpsc::channel(1_000);
    tokio::spawn(async move {
        let mut lines = BufReader::new(out).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if said.send((now(), line)).await.is_err() {
                return;
            }
        }
    });
    Ok((child, heard))
}

fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// Each node's transitions: into which state, and when by the agent's clock.
async fn transitions(weir: &Weir) -> Result<Vec<(String, i64)>> {
    let page = call::get(weir.control_planes[&1].admin(), "/events")
        .await?
        .text();
    let page: Value = serde_json::from_str(&page)?;
    let items = page["items"].as_array().into_iter().flatten();
    let read = |item: &Value| Some((item["to"].as_str()?.to_owned(), item["atUnixMs"].as_i64()?));
    Ok(items.filter_map(read).collect())
}

/// Asks until the agent itself answers, or no longer does.
async fn until_refused(agent: &Agent, refused: bool) -> Result<()> {
    weir_tests::eventually(&format!("{} to refuse: {refused}", agent.node), || async {
        let got = agent
            .get("payments.shop", "/")
            .await
            .map_err(|error| error.to_string())?;
        let is = got.header("proxy-status").contains("circuit breaker");
        if is == refused {
            Ok(())
        } else {
            Err(format!("{} {}", got.status, got.header("proxy-status")))
        }
    })
    .await;
    Ok(())
}

/// A pod of the service in the examples.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: payments-0, namespace: shop, labels: {app: payments, address: "9"}}
spec: {containers: [{name: payments, image: "payments:1"}]}
"#;

#[tokio::test]
async fn kubectl_shows_an_outage_from_closed_to_closed_within_a_second_of_each_step() -> Result<()>
{
    let Some(weir) = Weir::install(&["node-a", "node-b"]).await? else {
        return Ok(());
    };
    let (_backend, status) = destination_at(8080).await;
    // What the README says to do; the pod is the application's own.
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/kubernetes");
    println!(
        "{}",
        weir.cluster.kubectl(&["apply", "-f", examples]).await?
    );
    weir.cluster.kubectl_in(&["apply", "-f", "-"], POD).await?;
    weir.programmed("shop", "payments").await?;
    weir.breaker_is("shop", "payments", "Closed").await;

    let mut watch = weir.cluster.kubectl_command();
    watch.args(["-n", "shop", "get", "circuitbreakers", "-w"]);
    let (_child, mut shown) = lines(watch)?;
    let mut next = async |state: &str| -> Result<(i64, String)> {
        loop {
            let line = timeout(Duration::from_secs(20), shown.recv()).await;
            let (at, line) = line
                .with_context(|| format!("no line says {state}"))?
                .context("the watch ended")?;
            println!("{line}");
            if line.split_whitespace().any(|word| word == state) {
                return Ok((at, line));
            }
        }
    };
    next("Closed").await?;

    let (a, b) = (&weir.agents["node-a"], &weir.agents["node-b"]);
    status.store(503, SeqCst);
    until_refused(a, true).await?;
    let (open, line) = next("Open").await?;
    assert!(
        line.contains("FailureRate") && line.contains("1/2"),
        "{line}"
    );
    until_refused(b, true).await?;
    status.store(200, SeqCst);
    until_refused(a, false).await?;
    until_refused(b, false).await?;
    let (half_open, _) = next("HalfOpen").await?;
    for agent in [a, b] {
        for _ in 0..3 {
            agent.get("payments.shop", "/").await?;
        }
    }
    let (closed, line) = next("Closed").await?;
    assert!(line.contains("Recovered") && line.contains("0/2"), "{line}");

    // The line is about all nodes: it is Open with the first, and no longer with the last.
    let transitions = transitions(&weir).await?;
    for (state, shown) in [("Open", open), ("HalfOpen", half_open), ("Closed", closed)] {
        let of = transitions.iter().filter(|(to, _)| to == state);
        let at = of.map(|(_, at)| *at);
        let at = if state == "Open" { at.min() } else { at.max() };
        let at = at.with_context(|| format!("no node was {state}"))?;
        println!(
            "{state}: shown by kubectl {} ms after the transition",
            shown - at
        );
    }

    let events = weir
        .cluster
        .kubectl(&["-n", "shop", "get", "events"])
        .await?;
    println!("{events}");
    for reason in ["CircuitOpened", "CircuitHalfOpen", "CircuitClosed"] {
        for object in ["resiliencepolicy/payments", "service/payments"] {
            assert!(
                events
                    .lines()
                    .any(|line| line.contains(reason) && line.contains(object)),
                "{reason} on {object}"
            );
        }
    }
    let both = weir.cluster.kubectl(&["-n", "shop", "get", "weir"]).await?;
    println!("{both}");
    assert!(
        both.contains("resiliencepolicy.weir.dev/payments")
            && both.contains("circuitbreaker.weir.dev/payments")
    );
    weir.shutdown().await
}
