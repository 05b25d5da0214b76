//! Helm changes and removes the release while requests pass through the agents.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use weir_tests::kubernetes::weir::{NAMESPACE, Weir};
use weir_tests::{Backend, Reply, call, eventually, eventually_within, netns};

/// Pods are replaced and the garbage collector comes round.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two requests of one caller.
const PAUSE: Duration = Duration::from_millis(10);
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/weir");

/// A caller at each agent, of a service that is always well.
struct Callers {
    served: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Callers {
    fn start(weir: &Weir) -> Callers {
        let (served, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let tasks = weir.agents.values().map(|agent| {
            let (proxy, served, lost) = (agent.proxy(), Arc::clone(&served), Arc::clone(&lost));
            tokio::spawn(async move {
                loop {
                    let asked = async {
                        let mut request = call::request("GET", "/", "")?;
                        request.headers_mut().insert("host", "steady.shop".parse()?);
                        call::send(proxy, request).await
                    };
                    let well = asked.await.is_ok_and(|got| got.status == 200);
                    if well { &served } else { &lost }.fetch_add(1, SeqCst);
                    sleep(PAUSE).await;
                }
            })
        });
        Callers {
            tasks: tasks.collect(),
            served,
            lost,
        }
    }

    /// That requests were served since the last time, and that none was ever lost.
    async fn go_on(&self, meanwhile: &str) -> Result<()> {
        let before = self.served.load(SeqCst);
        let look = async || {
            if self.served.load(SeqCst) > before + 10 {
                Ok(())
            } else {
                Err(before)
            }
        };
        eventually("requests to be served", look).await;
        let lost = self.lost.load(SeqCst);
        println!(
            "{meanwhile}: {} requests served so far, {lost} lost",
            self.served.load(SeqCst)
        );
        ensure!(lost == 0, "{lost} requests were lost: {meanwhile}");
        Ok(())
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The control plane's Pods.
async fn control_plane_pods(weir: &Weir) -> Result<BTreeSet<String>> {
    let selector = "--selector=app.kubernetes.io/component=control-plane";
    let names = weir
        .cluster
        .kubectl(&["-n", NAMESPACE, "get", "pods", selector, "-o", "name"])
        .await?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Runs helm, and replaces the control plane as its Deployment asks for.
async fn rolled_out(weir: &mut Weir, helm: &[&str]) -> Result<()> {
    let old = control_plane_pods(weir).await?;
    weir.cluster.helm(helm).await?;
    eventually_within(
        PATIENCE,
        "all Pods of the control plane to be new",
        || async {
            let now = control_plane_pods(weir)
                .await
                .map_err(|error| error.to_string())?;
            if now.len() == old.len() && now.is_disjoint(&old) {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        },
    )
    .await;
    if let Some(mut old) = weir.control_planes.remove(&1) {
        old.process.stop().await?;
    }
    weir.start_control_plane(1).await
}

/// How many tries a request gets whose destination fails.
async fn tries(weir: &Weir, backend: &Backend, node: &str) -> Result<u64> {
    let before = backend.requests();
    weir.agents[node].get("payments.shop", "/").await?;
    Ok(backend.requests() - before)
}

#[tokio::test]
async fn requests_pass_while_a_release_is_upgraded_rolled_back_and_removed() -> Result<()> {
    let Some(mut weir) = Weir::install(&["node-a", "node-b"]).await? else {
        return Ok(());
    };
    let listen = format!("{}:0", netns::address(9));
    let well = Backend::listen(&listen, |_| async { Reply::status(200) }).await;
    let ill = Backend::listen(&listen, |_| async { Reply::status(503) }).await;
    weir.cluster
        .kubectl(&["create", "namespace", "shop"])
        .await?;
    weir.service("shop", "steady", &well).await?;
    weir.service("shop", "payments", &ill).await?;
    weir.policy(
        "shop",
        "steady",
        "  timeouts: {request: 10s}\n  circuitBreaker: {}",
    )
    .await?;
    weir.policy(
        "shop",
        "payments",
        "  retries: {attempts: 1, backoff: {base: 1ms}}",
    )
    .await?;
    for name in ["steady", "payments"] {
        weir.programmed("shop", name).await?;
    }
    let callers = Callers::start(&weir);

    let other = "controlPlane.podAnnotations.edition=second";
    rolled_out(
        &mut weir,
        &[
            "upgrade",
            "weir",
            CHART,
            "--namespace",
            NAMESPACE,
            "--set",
            other,
        ],
    )
    .await?;
    weir.policy(
        "shop",
        "payments",
        "  retries: {attempts: 2, backoff: {base: 1ms}}",
    )
    .await?;
    weir.programmed("shop", "payments").await?;
    ensure!(tries(&weir, &ill, "node-a").await? == 3);
    callers.go_on("upgraded").await?;

    rolled_out(
        &mut weir,
        &["rollback", "weir", "1", "--namespace", NAMESPACE],
    )
    .await?;
    weir.policy(
        "shop",
        "payments",
        "  retries: {attempts: 3, backoff: {base: 1ms}}",
    )
    .await?;
    weir.programmed("shop", "payments").await?;
    ensure!(tries(&weir, &ill, "node-a").await? == 4);
    callers.go_on("rolled back").await?;

    // Rights, Pods and breakers go; agents that still run go on with what they have, as long as they are left.
    weir.cluster
        .helm(&["uninstall", "weir", "--namespace", NAMESPACE, "--wait"])
        .await?;
    eventually_within(PATIENCE, "the breakers to be gone", || async {
        match weir
            .cluster
            .kubectl(&["get", "cb", "-A", "-o", "name"])
            .await
        {
            Ok(left) if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })
    .await;
    callers.go_on("uninstalled").await?;
    if let Some(mut control_plane) = weir.control_planes.remove(&1) {
        control_plane.process.stop().await?;
    }
    for node in ["node-a", "node-b"] {
        ensure!(tries(&weir, &ill, node).await? == 4, "{node} goes on");
    }
    let policies = weir
        .cluster
        .kubectl(&["-n", "shop", "get", "rp", "-o", "name"])
        .await?;
    ensure!(
        policies.lines().count() == 2,
        "what people wrote stays: {policies}"
    );
    callers.go_on("without a control plane").await?;
    drop(callers);
    weir.shutdown().await
}
