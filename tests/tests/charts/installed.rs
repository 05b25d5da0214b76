//! A release in a real cluster, from its beginning to its end.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use weir_crds::crd::{API_VERSION, INSTALL_COMMAND};
use weir_tests::eventually_within;
use weir_tests::kubernetes::Cluster;

use crate::{NAMESPACE, path};

/// The garbage collector looks for new kinds every 30 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// Installs a chart of the checkout, or brings it up to date; what Helm says then.
pub(crate) async fn install(cluster: &Cluster, chart: &str, more: &[&str]) -> Result<String> {
    let path = path(&format!("charts/{chart}"));
    let mut arguments = vec!["upgrade", "--install", chart, &path];
    arguments.extend(["--namespace", NAMESPACE, "--create-namespace"]);
    arguments.extend(more);
    cluster.helm(&arguments).await
}

async fn uninstall(cluster: &Cluster, release: &str) {
    let arguments = ["uninstall", release, "--namespace", NAMESPACE];
    cluster.helm(&arguments).await.unwrap();
}

/// Waits until `kubectl get` with these arguments prints `wanted`.
async fn shows(cluster: &Cluster, arguments: &[&str], wanted: &str) {
    let what = format!("{arguments:?} to print {wanted:?}");
    eventually_within(PATIENCE, &what, async || {
        let mut words = vec!["get", "--namespace", NAMESPACE];
        words.extend(arguments);
        match cluster.kubectl(&words).await?.trim() {
            found if found == wanted => Ok(()),
            found => bail!("{found}"),
        }
    })
    .await;
}

/// Its control plane and an agent on each of the two nodes are about to start: nothing refuses their pods.
async fn pods_are_made(cluster: &Cluster) {
    let component = r"{.metadata.labels.app\.kubernetes\.io/component}";
    let components = format!("--output=jsonpath={{range .items[*]}}{component} {{end}}");
    let pods = ["pods", &components];
    shows(cluster, &pods, "agent agent control-plane control-plane").await;
}

/// Every object of the cluster, but events and what the cluster makes for itself.
async fn everything(cluster: &Cluster) -> Result<Vec<String>> {
    let list = ["api-resources", "--verbs=list", "--output=name"];
    let kinds = cluster.kubectl(&list).await?;
    let theirs = ["events", "componentstatuses"];
    let kinds: Vec<&str> = kinds
        .lines()
        .filter(|kind| !theirs.iter().any(|theirs| kind.starts_with(theirs)))
        .collect();
    let columns = "--output=custom-columns=IN:.metadata.namespace,KIND:.kind,NAME:.metadata.name";
    let kinds = kinds.join(",");
    let list = ["get", &kinds, "--all-namespaces", "--no-headers", columns];
    let objects = cluster.kubectl(&list).await?;
    Ok(objects
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|object| !object.starts_with("kube-"))
        .collect())
}

/// All of it once the cluster has made what belongs to the two namespaces and to the example.
async fn beginning(cluster: &Cluster) -> Vec<String> {
    let mut wanted = vec![
        "shop Endpoints payments".to_owned(),
        "shop EndpointSlice payments-".to_owned(),
        "shop ResiliencePolicy payments".to_owned(),
    ];
    for namespace in ["default", "shop", NAMESPACE] {
        wanted.push(format!("{namespace} ConfigMap kube-root-ca.crt"));
        wanted.push(format!("{namespace} ServiceAccount default"));
    }
    eventually_within(PATIENCE, "the namespaces to be complete", async || {
        let now = everything(cluster).await?;
        let there = |wanted: &String| now.iter().any(|object| object.starts_with(wanted));
        match wanted.iter().find(|wanted| !there(wanted)) {
            Some(missing) => bail!("there is no {missing}"),
            None => Ok(now),
        }
    })
    .await
}

/// Waits until the cluster holds what it held `before`, and nothing else.
async fn left(cluster: &Cluster, before: &[String]) {
    eventually_within(PATIENCE, "the release to be gone", async || {
        let now = everything(cluster).await?;
        let more: Vec<_> = now.iter().filter(|name| !before.contains(name)).collect();
        let less: Vec<_> = before.iter().filter(|name| !now.contains(name)).collect();
        if more.is_empty() && less.is_empty() {
            return Ok(());
        }
        bail!("left behind: {more:?}; taken along: {less:?}")
    })
    .await;
}

/// The control plane's part, with its rights: it fills what the chart brings empty, and makes a breaker that belongs
/// to the release.
async fn act_as_the_control_plane(cluster: &Cluster) {
    let weir = format!("--as=system:serviceaccount:{NAMESPACE}:weir-control-plane");
    let read = async |kind: &str, name: &str| -> Value {
        let get = ["get", kind, name, "-n", NAMESPACE, "-o", "json", &weir];
        serde_json::from_str(&cluster.kubectl(&get).await.unwrap()).unwrap()
    };
    for kind in ["secret", "configmap"] {
        let mut object = read(kind, "weir-ca").await;
        assert!(object.get("data").is_none(), "{object}");
        object["data"] = json!({"ca.crt": "a2VwdA=="});
        let replace = ["replace", "--filename=-", &weir];
        let replaced = cluster.kubectl_in(&replace, &object.to_string()).await;
        replaced.unwrap();
    }
    let mut lease = read("lease", "weir-control-plane").await;
    lease["spec"] = json!({"holderIdentity": "weir-control-plane-0"});
    let replace = ["replace", "--filename=-", &weir];
    cluster
        .kubectl_in(&replace, &lease.to_string())
        .await
        .unwrap();

    let role = read("clusterrole", "weir-control-plane").await;
    let breaker = json!({
        "apiVersion": API_VERSION,
        "kind": "CircuitBreaker",
        "metadata": {
            "name": "payments",
            "namespace": "shop",
            "ownerReferences": [{
                "apiVersion": role["apiVersion"],
                "kind": role["kind"],
                "name": role["metadata"]["name"],
                "uid": role["metadata"]["uid"],
            }],
        },
    });
    let manager = "--field-manager=weir-control-plane";
    let apply = ["apply", "--server-side", manager, "--filename=-", &weir];
    let applied = cluster.kubectl_in(&apply, &breaker.to_string()).await;
    applied.unwrap();
}

/// What it put there is there.
async fn its_part_is_kept(cluster: &Cluster) {
    let kept = [
        "secret,configmap",
        "--field-selector=metadata.name=weir-ca",
        "--output=jsonpath={.items[*].data}",
    ];
    let both = r#"{"ca.crt":"a2VwdA=="} {"ca.crt":"a2VwdA=="}"#;
    shows(cluster, &kept, both).await;
    let holder = "--output=jsonpath={.spec.holderIdentity}";
    let lease = ["lease", "weir-control-plane", holder];
    shows(cluster, &lease, "weir-control-plane-0").await;
    let breakers = ["circuitbreakers", "--all-namespaces", "--output=name"];
    shows(cluster, &breakers, "circuitbreaker.weir.dev/payments").await;
}

#[tokio::test]
async fn a_release_is_upgraded_and_rolled_back_and_leaves_the_kinds_and_nothing_else() {
    let Some(cluster) = Cluster::start().await.unwrap() else {
        return;
    };
    for node in ["node-a", "node-b"] {
        cluster.node(node).await.unwrap();
    }
    // A pod that asks for rights on its node is refused here.
    let strict = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, \
         labels: {{pod-security.kubernetes.io/enforce: restricted}}}}}}"
    );
    let apply = ["apply", "--filename=-"];
    cluster.kubectl_in(&apply, &strict).await.unwrap();

    // The kinds survive their chart, and so does what people wrote.
    install(&cluster, "weir-crds", &[]).await.unwrap();
    let example = ["apply", "--filename", &path("examples/kubernetes")];
    cluster.kubectl(&example).await.unwrap();
    uninstall(&cluster, "weir-crds").await;
    let before = beginning(&cluster).await;

    install(&cluster, "weir-crds", &[]).await.unwrap();
    install(&cluster, "weir", &[]).await.unwrap();
    pods_are_made(&cluster).await;
    act_as_the_control_plane(&cluster).await;

    let replicas = [
        "deployment",
        "weir-control-plane",
        "--output=jsonpath={.spec.replicas}",
    ];
    let three = ["--set", "controlPlane.replicas=3"];
    install(&cluster, "weir", &three).await.unwrap();
    shows(&cluster, &replicas, "3").await;
    its_part_is_kept(&cluster).await;
    let back = ["rollback", "weir", "1", "--namespace", NAMESPACE];
    cluster.helm(&back).await.unwrap();
    shows(&cluster, &replicas, "2").await;
    its_part_is_kept(&cluster).await;

    uninstall(&cluster, "weir").await;
    uninstall(&cluster, "weir-crds").await;
    left(&cluster, &before).await;
    install(&cluster, "weir", &[]).await.unwrap();
    pods_are_made(&cluster).await;
    cluster.shutdown().await.unwrap();
}

#[tokio::test]
async fn without_the_kinds_a_release_says_how_to_get_them_and_a_second_release_is_refused() {
    let Some(cluster) = Cluster::start().await.unwrap() else {
        return;
    };
    let notes = install(&cluster, "weir", &[]).await.unwrap();
    assert!(notes.contains(INSTALL_COMMAND), "{notes}");
    install(&cluster, "weir-crds", &[]).await.unwrap();
    let notes = install(&cluster, "weir", &[]).await.unwrap();
    assert!(!notes.contains(INSTALL_COMMAND), "{notes}");

    let chart = path("charts/weir");
    let second = ["install", "other", &chart, "--namespace", "default"];
    let refused = cluster.helm(&second).await.unwrap_err().to_string();
    assert!(
        refused.contains("weir-control-plane") && refused.contains("release-name"),
        "{refused}"
    );
    cluster.shutdown().await.unwrap();
}
