//! What merged policies do to requests.

use anyhow::{Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;
use weir_tests::kubernetes::weir::Weir;
use weir_tests::{Backend, Reply, eventually, netns};

use super::clear;

/// A policy for `target` with these fields.
async fn write(
    weir: &Weir,
    (namespace, name): (&str, &str),
    target: &str,
    fields: &str,
) -> Result<()> {
    let manifest = format!(
        "apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  targetRefs: [{target}]\n  {fields}\n"
    );
    weir.cluster
        .kubectl_in(&["apply", "-f", "-"], &manifest)
        .await?;
    weir.programmed(namespace, name).await
}

/// How many tries a request gets at each node, whose destination never answers well.
async fn tries_are(weir: &Weir, backend: &Backend, wanted: [u64; 2]) -> Result<()> {
    let mut seen = [0; 2];
    for (tries, node) in seen.iter_mut().zip(["node-a", "node-b"]) {
        let before = backend.requests();
        weir.agents[node].get("payments.shop", "/").await?;
        *tries = backend.requests() - before;
    }
    ensure!(
        seen == wanted,
        "a request got {seen:?} tries, not {wanted:?}"
    );
    Ok(())
}

/// Each level in turn, on the requests themselves. `kubectl wait` ends when agents enforce, so nothing is asked twice.
pub(super) async fn tries(weir: &Weir) -> Result<()> {
    let backend = Backend::listen(&format!("{}:0", netns::address(9)), |_| async {
        Reply::status(503)
    })
    .await;
    weir.service("shop", "payments", &backend).await?;
    // Enough budget for every request here.
    let retries = |attempts: u32| {
        format!(
            "retries: {{attempts: {attempts}, backoff: {{base: 1ms}}, budget: {{percent: 100, minRetryRate: {{count: 100, interval: 1s}}}}}}"
        )
    };
    let service = "{kind: Service, name: payments}";
    weir.cluster
        .kubectl(&["label", "namespace", "shop", "weir.dev/mesh-policy=enabled"])
        .await?;
    write(weir, ("weir-system", "mesh"), "{kind: Mesh}", &retries(1)).await?;
    tries_are(weir, &backend, [2, 2]).await?;
    write(
        weir,
        ("shop", "all"),
        "{kind: Namespace, name: shop}",
        &retries(2),
    )
    .await?;
    tries_are(weir, &backend, [3, 3]).await?;
    write(weir, ("shop", "payments"), service, &retries(3)).await?;
    tries_are(weir, &backend, [4, 4]).await?;
    let port = "{kind: Service, name: payments, sectionName: http}";
    write(weir, ("shop", "payments-http"), port, &retries(4)).await?;
    tries_are(weir, &backend, [5, 5]).await?;
    let foreign = "{kind: Service, name: payments, namespace: shop}";
    write(weir, ("web", "payments"), foreign, &retries(5)).await?;
    tries_are(weir, &backend, [5, 6]).await?;

    // Nothing at all, for all but those who protect themselves.
    write(weir, ("shop", "payments-http"), port, "disabled: [retries]").await?;
    tries_are(weir, &backend, [1, 6]).await?;
    // Another word on the same level comes later, and loses that section only.
    write(
        weir,
        ("shop", "z-later"),
        port,
        &format!("timeouts: {{request: 5s}}\n  {}", retries(7)),
    )
    .await?;
    tries_are(weir, &backend, [1, 6]).await?;
    write(
        weir,
        ("shop", "all"),
        "{kind: Namespace, name: shop}",
        &format!("strategy: Overrides\n  {}", retries(2)),
    )
    .await?;
    tries_are(weir, &backend, [3, 3]).await?;
    write(
        weir,
        ("weir-system", "mesh"),
        "{kind: Mesh}",
        &format!("strategy: Overrides\n  {}", retries(1)),
    )
    .await?;
    tries_are(weir, &backend, [2, 2]).await?;

    // The namespace leaves the mesh: what it has itself counts again.
    weir.cluster
        .kubectl(&["label", "namespace", "shop", "weir.dev/mesh-policy-"])
        .await?;
    eventually("the mesh to lose the namespace", || async {
        let found = tries_are(weir, &backend, [3, 3]).await;
        found.map_err(|error| error.to_string())
    })
    .await;
    clear(weir).await
}

/// A consumer's breaker is the consumer's object, opens on its calls alone, and its override is the consumer's too.
pub(super) async fn consumers_breaker(weir: &Weir) -> Result<()> {
    let backend = Backend::listen(&format!("{}:0", netns::address(9)), |_| async {
        Reply::status(503)
    })
    .await;
    weir.service("shop", "payments", &backend).await?;
    let foreign = "{kind: Service, name: payments, namespace: shop}";
    let fields = "circuitBreaker: {minimumRequests: 5, open: {duration: 60s}}";
    weir.policy("shop", "payments", "  timeouts: {request: 5s}")
        .await?;
    weir.programmed("shop", "payments").await?;
    write(weir, ("web", "payments"), foreign, fields).await?;
    let name = "calls.to.shop.payments";
    weir.breaker_is("web", name, "Closed").await;
    for node in ["node-a", "node-b"] {
        for _ in 0..6 {
            weir.agents[node].get("payments.shop", "/").await?;
        }
    }
    let object = weir.breaker_is("web", name, "Open").await;
    ensure!(object["status"]["service"] == "shop/payments", "{object}");
    ensure!(
        object["status"]["openNodes"][0]["node"] == "node-b",
        "{object}"
    );
    let refused = async |node: &str| -> Result<bool> {
        let got = weir.agents[node].get("payments.shop", "/").await?;
        Ok(got.header("proxy-status").contains("circuit breaker"))
    };
    ensure!(
        refused("node-b").await? && !refused("node-a").await?,
        "it is for the calls from web alone"
    );
    let in_shop = weir
        .cluster
        .kubectl(&["-n", "shop", "get", "cb", "-o", "name"])
        .await?;
    ensure!(in_shop.is_empty(), "{in_shop}");

    let end = Timestamp::now().checked_add(SignedDuration::from_hours(1))?;
    let patch = json!({"spec": {"override": {"state": "Closed", "reason": "we know", "expiresAt": format!("{end:.0}")}}});
    weir.cluster
        .kubectl(&[
            "-n",
            "web",
            "patch",
            "cb",
            name,
            "--type=merge",
            "-p",
            &patch.to_string(),
        ])
        .await?;
    weir.breaker_is("web", name, "ForcedClosed").await;
    ensure!(!refused("node-b").await?, "held closed");
    Ok(())
}
