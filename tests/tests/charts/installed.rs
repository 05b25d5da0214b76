//! A release in a real cluster, from its beginning to its end.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::process::{Child, Command};
use weir_crds::crd::INSTALL_COMMAND;
use weir_tests::kubernetes::Cluster;
use weir_tests::{eventually_within, programs};

use crate::{NAMESPACE, path};

/// The garbage collector looks for new kinds every 30 s.
const PATIENCE: Duration = Duration::from_secs(90);

const WITHOUT_CAPTURE: [&str; 2] = ["--set", "agent.capture.enabled=false"];
/// What lets the agents capture in a namespace that enforces Pod Security.
const ADMIT: &str =
    "kubectl label namespace weir-system pod-security.kubernetes.io/enforce=privileged --overwrite";

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

/// What `kubectl get` prints with these arguments.
async fn read(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let mut words = vec!["get", "--namespace", NAMESPACE];
    words.extend(arguments);
    cluster.kubectl(&words).await
}

/// Waits until `kubectl get` with these arguments prints `wanted`.
async fn shows(cluster: &Cluster, arguments: &[&str], wanted: &str) {
    let what = format!("{arguments:?} to print {wanted:?}");
    eventually_within(PATIENCE, &what, async || {
        match read(cluster, arguments).await?.trim() {
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

/// A control plane with the rights of the release's, once it has put in the cluster what it keeps there. Killed when
/// dropped.
async fn control_plane(cluster: &Cluster) -> Child {
    let account = cluster.kubeconfig_of(NAMESPACE, "weir-control-plane", None);
    let mut weir = Command::new(programs::weir());
    weir.args(["control-plane", "--kubernetes", "--kubeconfig"])
        .arg(account.await.unwrap())
        .args(["--namespace", NAMESPACE])
        .args(["--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .kill_on_drop(true);
    let process = weir.spawn().unwrap();
    for (object, namespace, there) in [
        ("secret/weir-ca", NAMESPACE, r"jsonpath={.data.ca\.crt}"),
        ("configmap/weir-ca", NAMESPACE, r"jsonpath={.data.ca\.crt}"),
        (
            "lease/weir-control-plane",
            NAMESPACE,
            "jsonpath={.spec.holderIdentity}",
        ),
        ("circuitbreaker/payments", "shop", "create"),
    ] {
        let (there, patience) = (format!("--for={there}"), "--timeout=90s");
        let wait = ["wait", object, "--namespace", namespace, &there, patience];
        cluster.kubectl(&wait).await.unwrap();
    }
    process
}

/// What it keeps there, but the breakers.
async fn kept(cluster: &Cluster) -> String {
    let kept = [
        "get",
        "secret/weir-ca",
        "configmap/weir-ca",
        "lease/weir-control-plane",
        "--namespace",
        NAMESPACE,
        "--output=jsonpath={range .items[*]}{.data}{.spec.holderIdentity}{.spec.leaseTransitions}{end}",
    ];
    cluster.kubectl(&kept).await.unwrap()
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
    let notes = install(&cluster, "weir", &[]).await.unwrap();
    assert!(notes.contains(ADMIT), "{notes}");
    let without = install(&cluster, "weir", &WITHOUT_CAPTURE).await.unwrap();
    assert!(!without.contains(ADMIT), "{without}");
    pods_are_made(&cluster).await;
    let process = control_plane(&cluster).await;
    let kept_at_first = kept(&cluster).await;
    let breaker = [
        "circuitbreaker",
        "payments",
        "--namespace=shop",
        "--output=jsonpath={.metadata.uid}",
    ];
    let breaker_at_first = read(&cluster, &breaker).await.unwrap();

    let replicas = [
        "deployment",
        "weir-control-plane",
        "--output=jsonpath={.spec.replicas}",
    ];
    let three = [&WITHOUT_CAPTURE[..], &["--set", "controlPlane.replicas=3"]].concat();
    install(&cluster, "weir", &three).await.unwrap();
    shows(&cluster, &replicas, "3").await;
    assert_eq!(kept(&cluster).await, kept_at_first);
    let back = ["rollback", "weir", "2", "--namespace", NAMESPACE];
    cluster.helm(&back).await.unwrap();
    shows(&cluster, &replicas, "2").await;
    assert_eq!(kept(&cluster).await, kept_at_first);

    assert_eq!(read(&cluster, &breaker).await.unwrap(), breaker_at_first);

    // It may end later than its rights: what it kept is not made again.
    uninstall(&cluster, "weir").await;
    uninstall(&cluster, "weir-crds").await;
    left(&cluster, &before).await;
    drop(process);
    cluster
        .kubectl(&ADMIT.split(' ').skip(1).collect::<Vec<_>>())
        .await
        .unwrap();
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
