//! An agent is replaced by another on the same node.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use weir_proto::v1alpha1 as proto;
use weir_tests::agents::{Agent, Settings};
use weir_tests::pods::{Family, KubeProxy, Pod, Topology};

use crate::captured::{Guarded, NODE, service};
use crate::shop::{PORTS, Shop};

const MINUTE_US: u64 = 60_000_000;

/// A breaker that takes the shop's answers for failures: one opens it.
fn touchy() -> proto::Policy {
    proto::Policy {
        circuit_breaker: Some(proto::CircuitBreaker {
            key: "near".to_owned(),
            window: Some(proto::Window {
                r#type: proto::WindowType::Rolling.into(),
                duration_us: 10_000_000,
                requests: 0,
            }),
            minimum_requests: 1,
            consecutive_failures: 1,
            failure_status_codes: vec![proto::StatusRange {
                first: 200,
                last: 299,
            }],
            open_us: MINUTE_US,
            open_max_us: 10 * MINUTE_US,
            probes: 1,
            half_open_timeout_us: MINUTE_US,
            ..proto::CircuitBreaker::default()
        }),
        ..proto::Policy::default()
    }
}

fn near(shop: &Shop) -> Vec<proto::Resource> {
    let endpoint = &shop.near.pod;
    service("near", &shop.services.near, false, &[endpoint], &touchy()).into()
}

/// What a caller in this pod reads, on a connection of its own.
fn answer(pod: &Pod, at: SocketAddr) -> Result<String> {
    let mut connection = pod.inside().connect(at)??;
    connection.set_read_timeout(Some(Duration::from_secs(20)))?;
    connection.write_all(b"GET / HTTP/1.1\r\nhost: near\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Refused by Weir, and not asked of the endpoint.
fn refused(pod: &Pod, at: SocketAddr) -> Result<()> {
    let answer = answer(pod, at)?;
    let is_weirs = answer.starts_with("HTTP/1.1 503 ")
        && answer.contains("proxy-status: weir; ")
        && answer.contains("circuit breaker near open");
    ensure!(is_weirs, "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breaker_stays_open_while_its_agent_is_replaced() -> Result<()> {
    let shared = TempDir::with_prefix("weir-handover-")?;
    weir_tests::agents::open(shared.path(), 0o755)?;
    let handover = shared.path().join("handover");
    let guarded = Guarded::open_with(Topology::Routed, KubeProxy::Nftables, near, |settings| {
        settings.handover = Some(handover.clone());
    })
    .await?;
    let Some(Guarded {
        agent: mut old,
        told,
        shop,
    }) = guarded
    else {
        return Ok(());
    };
    let at = shop.services.near.addresses().port(Family::V4, PORTS[0].0);
    let first = answer(&shop.caller, at)?;
    ensure!(first.starts_with("HTTP/1.1 200 "), "{first}");
    refused(&shop.caller, at)?;

    // As a rolling update with a surge of one does it.
    let mut settings = Settings::new(shop.network.node(0), NODE, &told);
    settings.instance = format!("{NODE}-2");
    settings.handover = Some(handover);
    let new = Agent::start(settings).await?;
    new.captures(2).await;
    refused(&shop.caller, at)?;
    old.proxy.signal(Signal::TERM)?;
    old.capture.signal(Signal::TERM)?;
    refused(&shop.caller, at)?;
    old.proxy.ended(Duration::from_secs(40)).await?;
    old.capture.ended(Duration::from_secs(10)).await?;
    for _ in 0..3 {
        refused(&shop.caller, at)?;
    }
    let refusals = new
        .metric("weir_circuit_breaker_rejected_total", "near")
        .await?;
    ensure!(refusals >= 3, "the new agent refused {refusals}");
    Ok(())
}
