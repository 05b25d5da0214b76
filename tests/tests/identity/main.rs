//! Who is let in to the control plane, and how both sides prove who they are,
//! on a real API server that reviews real tokens.

mod authority;
mod knock;
mod tokens;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::json;
use weir_agent::{Agent, ControlPlaneAddress};
use weir_control_plane::{Config, ControlPlane, Kubernetes, Lifetimes, Source};
use weir_tests::kubernetes::{Cluster, Options};
use weir_tests::{call, eventually_within};

/// Weir's own namespace.
const NAMESPACE: &str = "weir-system";
/// For whom agents' tokens are.
const AUDIENCE: &str = "weir-control-plane";
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster with the definitions, and what the chart brings along.
async fn cluster() -> Result<Option<Cluster>> {
    let options = Options {
        controller_manager: false,
        ..Options::default()
    };
    let Some(cluster) = Cluster::start_with(options).await? else {
        return Ok(None);
    };
    let charts = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts");
    for chart in ["weir-crds", "weir"] {
        let path = format!("{charts}/{chart}");
        let install = ["install", chart, &path, "--namespace", NAMESPACE];
        cluster
            .helm(&[&install[..], &["--create-namespace"]].concat())
            .await?;
    }
    Ok(Some(cluster))
}

/// The agent's Pod on a node, as the DaemonSet would make it.
async fn agent_pod(cluster: &Cluster, node: &str) -> Result<String> {
    cluster.node(node).await?;
    let name = format!("weir-agent-{node}");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeName": node,
            "serviceAccountName": "weir-agent",
            "automountServiceAccountToken": false,
            "containers": [{"name": "agent", "image": "weir.test/weir:1"}],
        },
    });
    cluster
        .kubectl_in(&["apply", "-f", "-"], &pod.to_string())
        .await?;
    Ok(name)
}

/// A token as the kubelet would project it into that Pod.
async fn agent_token(cluster: &Cluster, pod: &str) -> Result<String> {
    cluster
        .token(NAMESPACE, "weir-agent", Some(AUDIENCE), Some(pod), 3600)
        .await
}

/// A control plane as the chart's ServiceAccount.
async fn control_plane(
    cluster: &Cluster,
    instance: &str,
    lifetimes: Lifetimes,
) -> Result<ControlPlane> {
    let kubeconfig = cluster
        .kubeconfig_of(NAMESPACE, "weir-control-plane", None)
        .await?;
    start(kubeconfig, instance, lifetimes).await
}

async fn start(kubeconfig: PathBuf, instance: &str, lifetimes: Lifetimes) -> Result<ControlPlane> {
    let source = Source::Kubernetes(Kubernetes {
        kubeconfig: Some(kubeconfig),
        namespace: NAMESPACE.to_owned(),
        instance: instance.to_owned(),
        agent_service_account: "weir-agent".to_owned(),
        lifetimes,
    });
    let config = Config {
        source,
        ..Config::default()
    };
    Ok(ControlPlane::start(config).await?)
}

/// The roots that agents are to trust, once they are published.
async fn roots(cluster: &Cluster) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client().await?, NAMESPACE);
    Ok(
        eventually_within(PATIENCE, "the ConfigMap weir-ca to be filled", async || {
            let map = maps.get_opt("weir-ca").await.map_err(|e| e.to_string())?;
            let roots = map.and_then(|map| map.data?.get("ca.crt").cloned());
            roots.ok_or_else(|| "no ca.crt".to_owned())
        })
        .await,
    )
}

/// An agent in this process, which finds roots and token in `directory`.
async fn agent(node: &str, control_plane: SocketAddr, directory: &Path) -> Result<Agent> {
    let url = format!("https://localhost:{}", control_plane.port());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = weir_agent::Config {
        node: node.to_owned(),
        control_plane: ControlPlaneAddress::new(
            &url,
            Some(directory.join("ca.crt")),
            Some(directory.join("token")),
        )?,
        proxy: None,
        admin: Some(any),
        state_dir: None,
        caller_namespace: None,
        workers: NonZeroUsize::MIN,
        drain_timeout: Duration::from_secs(1),
        handover: None,
        capture: None,
        stale_after: weir_agent::STALE_AFTER,
        kernel: weir_agent::Kernel::default(),
    };
    Ok(Agent::start(config).await?)
}

/// A figure of an admin address' metrics; `labels` as the page has them.
async fn figure(admin: Option<SocketAddr>, name: &str, labels: &str) -> Result<f64> {
    let page = call::get(admin.context("there is an admin address")?, "/metrics").await?;
    let sample = format!("{name}{labels} ");
    let page = page.text();
    let value = page.lines().find_map(|line| line.strip_prefix(&sample));
    Ok(value
        .with_context(|| format!("no {sample} in {page}"))?
        .parse()?)
}
