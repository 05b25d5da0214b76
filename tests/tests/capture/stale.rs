//! When what Weir knows is older than the world: endpoints that changed while
//! the control plane was away, and connections from before a policy.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::chown;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use weir_proto::v1alpha1 as proto;
use weir_tests::agents::PROXY_USER;
use weir_tests::eventually;
use weir_tests::pods::{Family, KubeProxy, Pod, Topology};

use crate::captured::{Guarded, NODE, retries, service};
use crate::shop::{PORTS, Shop, ask};

/// The Service with two endpoints, as the control plane knows it.
fn both(shop: &Shop, endpoints: &[&Pod]) -> Vec<proto::Resource> {
    service("both", &shop.services.both, false, endpoints, &retries()).to_vec()
}

/// Waits until a call to the Service that has two endpoints is answered by this
/// one, by way of the proxy.
async fn answers(guarded: &Guarded, endpoint: &str) -> Result<()> {
    let Guarded { agent, shop, .. } = guarded;
    let at = shop.services.both.addresses();
    let at = at.port(Family::V4, PORTS[0].0);
    let captured = || agent.metric("weir_responses_total", "class=\"2xx\"");
    eventually("an answer of the right endpoint", || async {
        let before = captured().await.map_err(|error| error.to_string())?;
        match ask(&shop.caller, at) {
            Ok(answer) if answer.starts_with(endpoint) => {}
            other => return Err(format!("{other:?}")),
        }
        let after = captured().await.map_err(|error| error.to_string())?;
        if after > before {
            Ok(())
        } else {
            Err("it was not captured".to_owned())
        }
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_control_plane_calls_find_endpoints_that_came_meanwhile_and_so_after_a_restart()
-> Result<()> {
    let state = TempDir::with_prefix("weir-state-")?;
    chown(state.path(), Some(PROXY_USER), Some(PROXY_USER))?;
    let state_dir = state.path().to_str().context("a temporary directory")?;
    let words = ["--stale-after", "500ms", "--state-dir", state_dir];
    let known = |shop: &Shop| both(shop, &[&shop.near.pod]);
    let guarded = Guarded::with(&words, Topology::Ptp, KubeProxy::Nftables, known).await?;
    let Some(mut guarded) = guarded else {
        return Ok(());
    };
    answers(&guarded, "near").await?;

    guarded.told.go_away().await;
    let (port, target) = PORTS[0];
    let shop = &guarded.shop;
    let now = shop.services.both.clone();
    let now = now.port(port, &[&shop.far.pod], target);
    shop.network.serve(&now)?;
    answers(&guarded, "far").await?;

    guarded.agent.proxy.kill()?;
    guarded.agent.restart_proxy()?;
    guarded.agent.ready().await;
    answers(&guarded, "far").await?;

    guarded.told.come_back().await?;
    answers(&guarded, "near").await?;
    for resource in both(&guarded.shop, &[&guarded.shop.far.pod]) {
        guarded.told.set(resource);
    }
    guarded.told.enforced(NODE).await;
    answers(&guarded, "far").await
}

/// A connection to an endpoint's server that answers one request after the
/// other.
struct Kept(TcpStream);

impl Kept {
    fn call(&mut self) -> Result<()> {
        self.0
            .write_all(b"GET / HTTP/1.1\r\nhost: weir.test\r\n\r\n")?;
        let mut answer = [0; 4096];
        let length = self.0.read(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer[..length]);
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        Ok(())
    }
}

/// A shop where somebody has called a Service before it has a policy, and keeps
/// the connection.
async fn before(words: &[&str]) -> Result<Option<(Guarded, Kept)>> {
    let nothing = |_: &Shop| Vec::new();
    let guarded = Guarded::with(words, Topology::Ptp, KubeProxy::Nftables, nothing).await?;
    let Some(guarded) = guarded else {
        return Ok(None);
    };
    let shop = &guarded.shop;
    let at = shop.services.both.addresses().port(Family::V4, PORTS[0].0);
    let mut kept = Kept(shop.caller.inside().connect(at)??);
    kept.call()?;
    for resource in both(shop, &[&shop.near.pod, &shop.far.pod]) {
        guarded.told.set(resource);
    }
    guarded.told.enforced(NODE).await;
    answers(&guarded, "").await?;
    Ok(Some((guarded, kept)))
}

/// How many open connections to the Service the agent says it does not protect.
fn unprotected(guarded: &Guarded) -> u32 {
    let coverage = guarded.told.coverage(NODE).unwrap_or_default();
    let of_service = coverage.connections.iter();
    of_service.map(|open| open.connections).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_from_before_a_policy_lives_on_and_is_said_to_be_unprotected() -> Result<()> {
    let Some((guarded, mut kept)) = before(&[]).await? else {
        return Ok(());
    };
    eventually("a connection that is said to be unprotected", || async {
        match unprotected(&guarded) {
            1 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    kept.call()?;
    drop(kept);
    eventually("no connection that is unprotected", || async {
        match unprotected(&guarded) {
            0 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_from_before_a_policy_is_ended_where_that_is_asked_for() -> Result<()> {
    let reset = before(&["--existing-connections", "Reset"]).await?;
    let Some((guarded, mut kept)) = reset else {
        return Ok(());
    };
    eventually("a connection that was ended", || {
        let ended = kept.call().is_err();
        async move { if ended { Ok(()) } else { Err("it answers") } }
    })
    .await;
    answers(&guarded, "").await
}
