//! The certificate authority: made once, and changed under connected agents.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinHandle;
use weir_control_plane::Lifetimes;
use weir_tests::eventually_within;
use weir_tests::kubernetes::Cluster;

use super::knock::{Told, discover};
use super::{
    NAMESPACE, PATIENCE, agent, agent_pod, agent_token, cluster, control_plane, figure, roots,
    start,
};

/// The certificates of a bundle.
fn certificates(bundle: &str) -> BTreeSet<String> {
    bundle
        .split_inclusive("-----END CERTIFICATE-----")
        .map(|pem| pem.trim().to_owned())
        .filter(|pem| !pem.is_empty())
        .collect()
}

/// Two replicas that begin together make one authority, and an agent that
/// trusts it speaks with both.
async fn share_one(cluster: &Cluster, chart: bool) -> Result<()> {
    let token = agent_token(cluster, "weir-agent-a").await?;
    let kubeconfig = if chart {
        cluster
            .kubeconfig_of(NAMESPACE, "weir-control-plane", None)
            .await?
    } else {
        cluster.kubeconfig().to_owned()
    };
    let (one, two) = tokio::join!(
        start(kubeconfig.clone(), "one", Lifetimes::default()),
        start(kubeconfig, "two", Lifetimes::default()),
    );
    let (one, two) = (one?, two?);
    let roots = roots(cluster).await?;
    assert_eq!(certificates(&roots).len(), 1);
    let mut told = Vec::new();
    for replica in [&one, &two] {
        told.push(discover(replica.grpc_addr(), &roots, Some(&token), "a").await?);
    }
    // The one that leads lets it in; the other, whose certificate is as good, sends it on.
    let is_sent_on =
        |told: &Told| matches!(told, Told::Nothing(14, why) if why.contains("another replica"));
    assert!(told.contains(&Told::Something), "{told:?}");
    assert!(
        told.iter()
            .all(|told| *told == Told::Something || is_sent_on(told)),
        "{told:?}"
    );
    one.shutdown().await;
    two.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn replicas_that_begin_together_share_one_authority() -> Result<()> {
    let Some(cluster) = cluster().await? else {
        return Ok(());
    };
    agent_pod(&cluster, "a").await?;
    // With the empty objects that the chart brings, and its rights.
    share_one(&cluster, true).await?;
    let first = roots(&cluster).await?;
    // It is there already.
    share_one(&cluster, true).await?;
    assert_eq!(roots(&cluster).await?, first);
    // Without the chart's objects, where only an administrator may make them.
    for kind in ["secret", "configmap"] {
        cluster
            .kubectl(&["-n", NAMESPACE, "delete", kind, "weir-ca"])
            .await?;
    }
    share_one(&cluster, false).await?;
    assert_ne!(roots(&cluster).await?, first);
    cluster.shutdown().await
}

/// Writes the published roots into the agent's file again and again, as the
/// kubelet does.
async fn mount(cluster: &Cluster, directory: &std::path::Path) -> Result<JoinHandle<()>> {
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> =
        kube::Api::namespaced(cluster.client().await?, NAMESPACE);
    let (file, fresh) = (directory.join("ca.crt"), directory.join("ca.crt.new"));
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    Ok(tokio::spawn(async move {
        loop {
            looks.tick().await;
            let Ok(map) = maps.get("weir-ca").await else {
                continue;
            };
            if let Some(roots) = map.data.and_then(|data| data.get("ca.crt").cloned()) {
                let written = std::fs::write(&fresh, roots);
                let _ = written.and_then(|()| std::fs::rename(&fresh, &file));
            }
        }
    }))
}

#[tokio::test]
async fn certificates_and_roots_change_under_a_connected_agent() -> Result<()> {
    let Some(cluster) = cluster().await? else {
        return Ok(());
    };
    let pod = agent_pod(&cluster, "a").await?;
    let directory = tempfile::tempdir()?;
    std::fs::write(
        directory.path().join("token"),
        agent_token(&cluster, &pod).await?,
    )?;
    // So short that a root is in its last third at once: one change follows the other.
    let second = Duration::from_secs(1);
    let lifetimes = Lifetimes {
        root: 60 * second,
        server: 3 * second,
        overlap: 2 * second,
        stream: 2 * second,
    };
    let control_plane = control_plane(&cluster, "one", lifetimes).await?;
    let admin = control_plane.admin_addr();
    let first = certificates(&roots(&cluster).await?);
    let mounting = mount(&cluster, directory.path()).await?;
    let agent = agent("a", control_plane.grpc_addr(), directory.path()).await?;
    agent.synced().await;

    let mut seen = first;
    for _ in 0..2 {
        let others = eventually_within(PATIENCE, "all roots to be others", async || {
            let now = certificates(&roots(&cluster).await.map_err(|e| e.to_string())?);
            if now.is_disjoint(&seen) {
                Ok(now)
            } else {
                Err(format!("{} roots", now.len()))
            }
        })
        .await;
        seen = others;
        eventually_within(
            PATIENCE,
            "the agent to be connected",
            async || match figure(agent.admin_addr(), "weir_connected_to_control_plane", "").await {
                Ok(1.0) => Ok(()),
                other => Err(format!("{other:?}")),
            },
        )
        .await;
    }
    // Every server certificate was signed by a root that the agent had by then.
    let refused = figure(
        admin,
        "weir_control_plane_refused_total",
        "{reason=\"handshake\"}",
    )
    .await?;
    assert_eq!(refused, 0.0);
    mounting.abort();
    agent.shutdown().await;
    control_plane.shutdown().await;
    cluster.shutdown().await
}
