//! The story of an outage, as kubectl tells it.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use weir_tests::kubernetes::weir::{Agent, Weir};
use weir_tests::{Backend, Reply, netns};

/// A destination that answers what a test tells it to, at an address that the API server takes.
pub(crate) async fn destination() -> (Backend, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let answers = Arc::clone(&status);
    let address = format!("{}:0", netns::address(9));
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
) -> Result<(tokio::process::Child, mpsc::Receiver<(Instant, String)>)> {
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
            if said.send((Instant::now(), line)).await.is_err() {
                return;
            }
        }
    });
    Ok((child, heard))
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

#[tokio::test]
async fn kubectl_shows_an_outage_from_closed_to_closed_within_a_second_of_each_step() -> Result<()>
{
    let Some(weir) = Weir::install(&["node-a", "node-b"]).await? else {
        return Ok(());
    };
    let (backend, status) = destination().await;
    weir.cluster
        .kubectl(&["create", "namespace", "shop"])
        .await?;
    weir.service("shop", "payments", &backend).await?;
    weir.policy("shop", "payments", "  circuitBreaker: {minimumRequests: 5, open: {duration: 2s, jitterPercent: 0}, halfOpen: {rampUp: 0s}}")
        .await?;
    weir.programmed("shop", "payments").await?;
    weir.breaker_is("shop", "payments", "Closed").await;

    let mut watch = weir.cluster.kubectl_command();
    watch.args(["-n", "shop", "get", "circuitbreakers", "-w"]);
    let (_child, mut shown) = lines(watch)?;
    let mut next = async |state: &str| -> Result<(Instant, String)> {
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
    let opened = Instant::now();
    let (at, line) = next("Open").await?;
    println!("Open shown {:?} after it opened", at - opened);
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
    let closed = Instant::now();
    let (at, line) = next("Closed").await?;
    println!(
        "HalfOpen shown {:?} before Closed; Closed {:?} after the last probe",
        at - half_open,
        at.saturating_duration_since(closed)
    );
    assert!(line.contains("Recovered") && line.contains("0/2"), "{line}");

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
