//! The Kubernetes that other tests stand on is a real one: it authorizes, it authenticates, and it comes back with
//! what it knew.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::TokenReview;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use weir_tests::kubernetes::{self, Cluster, Options, machine_address};
use weir_tests::{eventually, eventually_within};

/// How long a cluster may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// For whom the tokens here are.
const AUDIENCE: &str = "weir-control-plane";

const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: agent, namespace: shop}
";

const AGENTS: &str = "\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, namespace: shop}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      serviceAccountName: agent
      hostNetwork: true
      containers: [{name: agent, image: 'weir.test/agent:1'}]
";

const PAYMENTS: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: payments, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: payments}}
  template:
    metadata: {labels: {app: payments}}
    spec:
      containers: [{name: payments, image: 'weir.test/app:1', ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: payments, namespace: shop}
spec:
  selector: {app: payments}
  ports: [{name: http, port: 80, targetPort: http}]
";

async fn apply(cluster: &Cluster, manifests: &str) -> Result<String> {
    cluster.kubectl_in(&["apply", "-f", "-"], manifests).await
}

/// What the API server says of a token.
async fn review(cluster: &Cluster, token: &str, audience: &str) -> Result<Value> {
    let spec = json!({"spec": {"token": token, "audiences": [audience]}});
    let review: TokenReview = serde_json::from_value(spec)?;
    let reviews: Api<TokenReview> = Api::all(cluster.client().await?);
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(serde_json::to_value(answer.status)?)
}

#[tokio::test]
async fn kubectl_and_helm_answer_and_who_has_no_right_is_refused() -> Result<()> {
    let Some(cluster) = Cluster::start().await? else {
        return Ok(());
    };
    apply(&cluster, SHOP).await?;
    let version = cluster.kubectl(&["version"]).await?;
    assert!(version.contains("Server Version: v1."), "{version}");
    assert_eq!(cluster.helm(&["list", "-A", "-q"]).await?.trim(), "");

    let agent = cluster.kubeconfig_of("shop", "agent", None).await?;
    let pods: Api<Pod> = Api::namespaced(kubernetes::client(&agent).await?, "shop");
    let refused = pods.list(&ListParams::default()).await.unwrap_err();
    let who = "system:serviceaccount:shop:agent";
    assert!(refused.to_string().contains(who), "{refused}");

    let wrong = cluster.kubectl(&["get", "nonsense"]).await.unwrap_err();
    let wrong = wrong.to_string();
    assert!(wrong.contains("kubectl get nonsense"), "{wrong}");
    assert!(wrong.contains("doesn't have a resource type"), "{wrong}");
    cluster.shutdown().await
}

#[tokio::test]
async fn pods_look_as_if_they_ran_and_their_tokens_name_their_node() -> Result<()> {
    let Some(cluster) = Cluster::start().await? else {
        return Ok(());
    };
    cluster.node("n1").await?;
    cluster.node("n2").await?;
    let address = machine_address()?;
    let running = cluster.schedule_pods(move |_| Some(address)).await?;
    apply(&cluster, &[SHOP, AGENTS, PAYMENTS].join("---\n")).await?;
    for name in ["daemonset/agent", "deployment/payments"] {
        let status = ["rollout", "status", "-n", "shop", "--timeout=60s", name];
        cluster.kubectl(&status).await?;
    }
    eventually("the endpoints of the service", || async {
        let template = "jsonpath={.items[*].endpoints[*].conditions.ready}";
        let get = ["get", "endpointslices", "-n", "shop", "-o", template];
        match cluster.kubectl(&get).await {
            Ok(ready) if ready == "true true" => Ok(()),
            other => Err(other),
        }
    })
    .await;

    let template = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName}{\"\\n\"}{end}";
    let get = [
        "get",
        "pods",
        "-n",
        "shop",
        "-l",
        "app=agent",
        "-o",
        template,
    ];
    let agents = cluster.kubectl(&get).await?;
    let mut nodes = Vec::new();
    for (pod, node) in agents.lines().filter_map(|line| line.split_once(' ')) {
        let token = cluster
            .token("shop", "agent", Some(AUDIENCE), Some(pod), 600)
            .await?;
        let found = review(&cluster, &token, AUDIENCE).await?;
        let extra = &found["user"]["extra"]["authentication.kubernetes.io/node-name"];
        assert_eq!(extra, &json!([node]), "{found}");
        let elsewhere = review(&cluster, &token, "https://another.example").await?;
        assert_ne!(elsewhere["authenticated"], true, "{elsewhere}");

        // Deleted, a pod takes its tokens with it. What the API server has once believed it believes for ten seconds
        // more, so this token is one that it has not seen.
        let unseen = cluster
            .token("shop", "agent", Some(AUDIENCE), Some(pod), 600)
            .await?;
        cluster
            .kubectl(&["delete", "pod", "-n", "shop", pod])
            .await?;
        let after = review(&cluster, &unseen, AUDIENCE).await?;
        assert_ne!(after["authenticated"], true, "{after}");
        nodes.push(node);
    }
    nodes.sort_unstable();
    assert_eq!(nodes, ["n1", "n2"]);
    drop(running);
    cluster.shutdown().await
}

#[tokio::test]
async fn what_was_applied_is_there_when_api_server_or_etcd_come_back() -> Result<()> {
    let options = Options {
        controller_manager: false,
        ..Options::default()
    };
    let Some(cluster) = Cluster::start_with(options).await? else {
        return Ok(());
    };
    apply(&cluster, SHOP).await?;
    let look = [
        "get",
        "serviceaccount",
        "agent",
        "-n",
        "shop",
        "--request-timeout=2s",
    ];

    cluster.stop_api_server()?;
    let away = cluster.kubectl(&look).await.unwrap_err().to_string();
    assert!(away.contains("refused"), "{away}");
    cluster.start_api_server().await?;
    cluster.kubectl(&look).await?;

    cluster.pause_api_server()?;
    let hung = cluster.kubectl(&look).await.unwrap_err().to_string();
    assert!(hung.contains("imeout"), "{hung}");
    cluster.resume_api_server()?;
    cluster.kubectl(&look).await?;

    cluster.stop_etcd()?;
    cluster.kubectl(&look).await.unwrap_err();
    cluster.start_etcd().await?;
    cluster.kubectl(&look).await?;
    cluster.shutdown().await
}

#[tokio::test]
async fn a_cluster_of_three_etcds_goes_on_when_the_leader_dies() -> Result<()> {
    let options = Options {
        etcd_members: 3,
        controller_manager: false,
        ..Options::default()
    };
    let Some(cluster) = Cluster::start_with(options).await? else {
        return Ok(());
    };
    let first = cluster.stop_etcd_leader().await?;
    eventually("a write", || apply(&cluster, SHOP)).await;
    cluster.start_etcd().await?;
    let second = eventually("another leader", || cluster.stop_etcd_leader()).await;
    println!("etcd {first} led, then etcd {second}");
    eventually("the object", || {
        cluster.kubectl(&["get", "serviceaccount", "agent", "-n", "shop"])
    })
    .await;
    cluster.shutdown().await
}

#[tokio::test]
async fn of_a_cluster_whose_owner_is_killed_nothing_is_left() -> Result<()> {
    if !kubernetes::available()? {
        return Ok(());
    }
    let home = tempfile::tempdir()?;
    let place = home.path().join("cluster");
    let mut owner = tokio::process::Command::new(env!("CARGO_BIN_EXE_weir-cluster"))
        .arg("serve")
        .arg(&place)
        .kill_on_drop(true)
        .spawn()?;
    let ready = place.join("ready");
    eventually_within(PATIENCE, "the cluster", || async {
        if ready.exists() {
            Ok(())
        } else {
            Err("not yet")
        }
    })
    .await;
    let kubeconfig = std::fs::read_to_string(place.join("admin.kubeconfig"))?;
    let url = kubeconfig
        .split('"')
        .find_map(|word| word.strip_prefix("https://"));
    let address: SocketAddr = url.context("a kubeconfig names the server")?.parse()?;
    TcpStream::connect(address).await?;

    owner.kill().await?;
    eventually("the end of the API server", || async {
        let there = TcpStream::connect(address).await.is_ok() || place.exists();
        if there { Err("still there") } else { Ok(()) }
    })
    .await;
    Ok(())
}
