//! Tools that apply what a repository holds, and take away what it holds no more.

use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};

use anyhow::{Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use weir_tests::eventually_within;
use weir_tests::kubernetes::weir::Weir;

use super::{PATIENCE, policy};

const APPLY: [&str; 5] = ["apply", "--server-side", "--field-manager=argo", "-f", "-"];
const PRUNE: [&str; 9] = [
    "-n",
    "shop",
    "apply",
    "--prune",
    "--selector=app=shop",
    "--prune-allowlist=weir.dev/v1alpha1/ResiliencePolicy",
    "--prune-allowlist=weir.dev/v1alpha1/CircuitBreaker",
    "-f",
    "-",
];

/// Who has applied which parts of an object, and through which subresource.
fn managers(object: &Value) -> Vec<(String, String, Vec<String>)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entries = object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten();
    let parts = |entry: &Value| {
        entry["fieldsV1"]
            .as_object()
            .map(|parts| parts.keys().cloned().collect())
            .unwrap_or_default()
    };
    entries
        .map(|entry| {
            (
                word(&entry["manager"]),
                word(&entry["subresource"]),
                parts(entry),
            )
        })
        .collect()
}

async fn with_managers(weir: &Weir, kind: &str, name: &str) -> Result<Value> {
    let get = [
        "-n",
        "shop",
        "get",
        kind,
        name,
        "-o",
        "json",
        "--show-managed-fields",
    ];
    Ok(serde_json::from_str(&weir.cluster.kubectl(&get).await?)?)
}

/// Requests to payments until the breaker shows this state; how the destination answers is set before.
async fn until(weir: &Weir, status: &AtomicU16, answer: u16, state: &str) -> Result<Value> {
    status.store(answer, SeqCst);
    for _ in 0..8 {
        weir.agents["node-a"].get("payments.shop", "/").await?;
    }
    Ok(weir.breaker_is("shop", "payments", state).await)
}

/// Argo applies, Weir writes status, Argo applies again: nobody is in the other's way.
pub(super) async fn server_side_apply(weir: &Weir, status: &AtomicU16) -> Result<()> {
    weir.cluster
        .kubectl_in(&APPLY, &policy("payments", "5s"))
        .await?;
    weir.programmed("shop", "payments").await?;
    weir.breaker_is("shop", "payments", "Closed").await;
    // Waited for from before it happens, as a script would.
    let mut wait = weir.cluster.kubectl_command();
    wait.args([
        "-n",
        "shop",
        "wait",
        "--for=jsonpath={.status.state}=Open",
        "cb/payments",
        "--timeout=60s",
    ]);
    let waiting = wait.stdout(Stdio::null()).spawn()?;
    until(weir, status, 503, "Open").await?;
    ensure!(
        waiting.wait_with_output().await?.status.success(),
        "kubectl wait saw it"
    );

    let before = with_managers(weir, "rp", "payments").await?;
    weir.cluster
        .kubectl_in(&APPLY, &policy("payments", "5s"))
        .await?;
    let after = with_managers(weir, "rp", "payments").await?;
    ensure!(
        before["metadata"]["generation"] == after["metadata"]["generation"],
        "nothing was changed"
    );
    weir.cluster
        .kubectl_in(&APPLY, &policy("payments", "6s"))
        .await?;
    weir.programmed("shop", "payments").await?;
    let object = with_managers(weir, "rp", "payments").await?;
    ensure!(object["spec"]["timeouts"]["request"] == "6s", "{object}");
    ensure!(
        object["metadata"]["labels"] == json!({"app": "shop"}),
        "{object}"
    );
    ensure!(
        object["metadata"]["annotations"] == json!({"argocd.argoproj.io/sync-wave": "1"}),
        "{object}"
    );
    for (manager, subresource, parts) in managers(&object) {
        match manager.as_str() {
            "argo" => ensure!(
                parts == ["f:metadata", "f:spec"] && subresource.is_empty(),
                "{parts:?}"
            ),
            "weir-control-plane" => ensure!(
                parts == ["f:status"] && subresource == "status",
                "{parts:?}"
            ),
            other => anyhow::bail!("{other} was here too"),
        }
    }
    // The edit is taken over by the breaker as it is.
    weir.breaker_is("shop", "payments", "Open").await;
    Ok(())
}

/// An override that comes from a repository: the spec and the labels of a breaker are people's.
pub(super) async fn override_by_gitops(weir: &Weir, status: &AtomicU16) -> Result<()> {
    let end = Timestamp::now().checked_add(SignedDuration::from_hours(1))?;
    let breaker = |spec: &str| {
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: CircuitBreaker\n\
             metadata: {{name: payments, namespace: shop, labels: {{app: shop}}}}\nspec: {{{spec}}}\n"
        )
    };
    let held =
        format!("override: {{state: Closed, reason: from the repository, expiresAt: '{end:.0}'}}");
    weir.cluster.kubectl_in(&APPLY, &breaker(&held)).await?;
    weir.breaker_is("shop", "payments", "ForcedClosed").await;
    let object = with_managers(weir, "cb", "payments").await?;
    ensure!(
        object["metadata"]["labels"] == json!({"app": "shop"}),
        "{object}"
    );
    for (manager, _, parts) in managers(&object) {
        let wrong = manager == "weir-control-plane" && parts.iter().any(|part| part == "f:spec");
        ensure!(!wrong, "{manager} has {parts:?}");
    }
    let owners = object["metadata"]["ownerReferences"]
        .as_array()
        .map(Vec::len);
    ensure!(owners == Some(1), "it still goes with Weir: {object}");
    // Out of the repository it is out of force.
    weir.cluster
        .kubectl_in(&APPLY, &breaker("reset: '1'"))
        .await?;
    until(weir, status, 200, "Closed").await?;
    let object = weir.object("shop", "cb", "payments").await?;
    ensure!(object["spec"] == json!({"reset": "1"}), "{object}");
    Ok(())
}

/// A repository loses one of its policies: the policy goes with its breaker, and nothing else does.
pub(super) async fn prune(weir: &Weir) -> Result<()> {
    let uid = async |kind: &str, name: &str| -> Result<Value> {
        Ok(weir.object("shop", kind, name).await?["metadata"]["uid"].clone())
    };
    // Weir's own breaker beside the one that carries the repository's label.
    let own = uid("cb", "orders").await?;
    let all = [policy("payments", "6s"), policy("orders", "5s")].join("---\n");
    let said = weir.cluster.kubectl_in(&PRUNE, &all).await?;
    ensure!(!said.contains("circuitbreaker.weir.dev/orders"), "{said}");
    ensure!(uid("cb", "orders").await? == own, "it was left alone");
    // The label was put there by the repository, and so it may take away what carries it; Weir needs it, and makes it again.
    weir.breaker_is("shop", "payments", "Closed").await;

    let said = weir
        .cluster
        .kubectl_in(&PRUNE, &policy("orders", "5s"))
        .await?;
    println!("{said}");
    ensure!(
        said.contains("resiliencepolicy.weir.dev/payments pruned"),
        "{said}"
    );
    gone(weir, "payments").await;
    weir.programmed("shop", "orders").await?;
    ensure!(uid("cb", "orders").await? == own, "it was left alone");

    // Everything of an application, by its label.
    weir.cluster
        .kubectl(&[
            "-n",
            "shop",
            "delete",
            "rp,cb,service",
            "--selector=app=shop",
        ])
        .await?;
    gone(weir, "orders").await;
    Ok(())
}

async fn gone(weir: &Weir, name: &str) {
    eventually_within(
        PATIENCE,
        &format!("the breaker {name} to be gone"),
        || async {
            let get = [
                "-n",
                "shop",
                "get",
                "cb",
                name,
                "--ignore-not-found",
                "-o",
                "name",
            ];
            match weir.cluster.kubectl(&get).await {
                Ok(found) if found.is_empty() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        },
    )
    .await;
}
