//! Which policy's word counts: the golden pairs of the model once more, through kubectl, an API server and agents that
//! enforce them; and how many tries a request then gets.

mod pairs;
mod requests;

use anyhow::Result;
use weir_tests::eventually;
use weir_tests::kubernetes::weir::Weir;

/// The golden pairs that are about merging.
const CASES: [&str; 14] = [
    "conflict-all",
    "conflict-partial",
    "consumer",
    "consumer-alone",
    "consumer-routes",
    "consumer-wrong",
    "disabled",
    "disabled-in-vain",
    "merging",
    "mesh",
    "mesh-conflict",
    "mesh-nobody-asks",
    "mesh-unserved",
    "strategy-overrides",
];
/// The namespaces of their objects that the cluster does not have by itself.
const NAMESPACES: [&str; 5] = ["shop", "warehouse", "web", "quiet", "unlabelled"];
/// Those that it has.
const OWN_NAMESPACES: [&str; 3] = ["default", "kube-system", "weir-system"];

#[tokio::test]
async fn what_the_golden_pairs_say_is_what_kubectl_shows_and_what_agents_do() -> Result<()> {
    let Some(mut weir) = Weir::install(&["node-a", "node-b"]).await? else {
        return Ok(());
    };
    for namespace in NAMESPACES {
        weir.cluster
            .kubectl(&["create", "namespace", namespace])
            .await?;
    }
    // All callers at node-b are of the namespace web.
    if let Some(agent) = weir.agents.get_mut("node-b") {
        agent.process.stop().await?;
    }
    weir.restart_agent_with("node-b", &["--caller-namespace=web"])
        .await?;
    for case in CASES {
        pairs::hold(&weir, case).await?;
        clear(&weir).await?;
    }
    requests::tries(&weir).await?;
    requests::consumers_breaker(&weir).await?;
    weir.shutdown().await
}

/// Everything away that a pair has brought.
async fn clear(weir: &Weir) -> Result<()> {
    let spaces = [&NAMESPACES[..], &OWN_NAMESPACES[..]].concat();
    for namespace in spaces {
        weir.cluster
            .kubectl(&["-n", namespace, "delete", "rp", "--all"])
            .await?;
        let label = ["label", "namespace", namespace, "weir.dev/mesh-policy-"];
        weir.cluster.kubectl(&label).await?;
        if NAMESPACES.contains(&namespace) {
            weir.cluster
                .kubectl(&[
                    "-n",
                    namespace,
                    "delete",
                    "service,endpointslice,cb",
                    "--all",
                ])
                .await?;
        }
    }
    weir.cluster
        .kubectl(&[
            "-n",
            "default",
            "delete",
            "service",
            "web",
            "--ignore-not-found",
        ])
        .await?;
    weir.cluster
        .kubectl(&[
            "-n",
            "kube-system",
            "delete",
            "service",
            "kube-dns",
            "--ignore-not-found",
        ])
        .await?;
    weir.cluster
        .kubectl(&[
            "-n",
            "weir-system",
            "delete",
            "service",
            "control-plane",
            "--ignore-not-found",
        ])
        .await?;
    eventually("no breaker to be left", || async {
        match pairs::statuses(weir).await {
            Ok(left) if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })
    .await;
    Ok(())
}
