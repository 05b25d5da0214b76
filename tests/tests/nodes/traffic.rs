//! What pods and Services do on real nodes.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use weir_tests::kubernetes::{BUSYBOX, WORKLOAD};
use weir_tests::{eventually, eventually_within};

use super::{Namespace, cluster};

/// A server on n2 behind a Service, and a pod with a shell on n1.
fn shop() -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: server}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  template:
    metadata: {{labels: {{app: server}}}}
    spec:
      nodeName: n2
      containers:
      - name: server
        image: {WORKLOAD}
        args: [serve]
        resources: {{limits: {{memory: 64Mi, cpu: 500m}}, requests: {{memory: 16Mi, cpu: 10m}}}}
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1, failureThreshold: 1}}
        livenessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: server}}
spec:
  selector: {{app: server}}
  ports: [{{port: 80, targetPort: 8080}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: shell}}
spec:
  selector: {{matchLabels: {{app: shell}}}}
  template:
    metadata: {{labels: {{app: shell}}}}
    spec:
      nodeName: n1
      terminationGracePeriodSeconds: 0
      containers:
      - {{name: shell, image: {BUSYBOX}, command: [sleep, infinity]}}
"#
    )
}

#[tokio::test]
async fn a_service_is_reached_by_its_name_from_another_node_and_sees_the_pod_that_calls() {
    let Some(cluster) = cluster().await.unwrap() else {
        return;
    };
    let space = Namespace::new(cluster, "names").await.unwrap();
    space.run(&shop()).await.unwrap();
    let caller = space.field(
        "pods",
        "{.items[?(@.metadata.labels.app=='shell')].status.podIP}",
    );
    let caller = caller.await.unwrap();
    let ask = ["exec", "deployment/shell", "--", "wget", "-qO-"];
    for url in ["http://server/", "http://server.names.svc.cluster.local/"] {
        let answer = eventually("an answer", async || {
            space.kubectl(&[&ask[..], &[url]].concat()).await
        })
        .await;
        let (host, seen) = answer.trim().split_once(' ').unwrap();
        assert!(host.starts_with("server-"), "{answer}");
        assert_eq!(seen, caller);
    }
}

#[tokio::test]
async fn a_pod_that_fails_its_readiness_probe_leaves_its_service_and_is_not_restarted() {
    let Some(cluster) = cluster().await.unwrap() else {
        return;
    };
    let space = Namespace::new(cluster, "probes").await.unwrap();
    space.run(&shop()).await.unwrap();
    let server = space.field(
        "pods",
        "{.items[?(@.metadata.labels.app=='server')].status.podIP}",
    );
    let server = server.await.unwrap();
    let slices = "endpointslices";
    let ready = async || {
        space
            .field(slices, "{.items[*].endpoints[*].conditions.ready}")
            .await
            .map_err(|error| error.to_string())
    };
    for (path, wanted) in [("break", "false"), ("mend", "true")] {
        let url = format!("http://{server}:8080/{path}");
        space
            .kubectl(&["exec", "deployment/shell", "--", "wget", "-qO-", &url])
            .await
            .unwrap();
        eventually("the probe's effect", async || match ready().await {
            Ok(seen) if seen == wanted => Ok(()),
            other => Err(other),
        })
        .await;
    }
    let restarts = "{.items[*].status.containerStatuses[*].restartCount}";
    assert_eq!(space.field("pods", restarts).await.unwrap(), "0 0");
}

#[tokio::test]
async fn pressure_and_limits_of_a_pod_are_seen_in_its_nodes_cgroups() {
    let Some(cluster) = cluster().await.unwrap() else {
        return;
    };
    let space = Namespace::new(cluster, "pressure").await.unwrap();
    space.run(&shop()).await.unwrap();
    let uid = space.field(
        "pods",
        "{.items[?(@.metadata.labels.app=='server')].metadata.uid}",
    );
    let uid = uid.await.unwrap();
    let look = async |files: [&str; 2]| {
        // v1 and v2 may have other names, and v2 may stand beside v1.
        let find = files.map(|file| format!("-path '*pod{uid}/{file}'"));
        let script = format!("cat $(find /sys/fs/cgroup {})", find.join(" -o "));
        let node = &cluster.nodes()[1];
        node.run(&["sh", "-c", &script]).await.unwrap()
    };
    assert!(look(["cpu.pressure"; 2]).await.starts_with("some avg10="));
    let limit = look(["memory.limit_in_bytes", "memory.max"]).await;
    assert_eq!(limit.trim(), (64 << 20).to_string());
}

#[tokio::test]
async fn a_daemon_set_on_the_hosts_network_is_rolled_with_the_new_pod_beside_the_old() {
    let Some(cluster) = cluster().await.unwrap() else {
        return;
    };
    let space = Namespace::new(cluster, "roll").await.unwrap();
    let agent = |version: &str| {
        format!(
            r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: agent}}
spec:
  selector: {{matchLabels: {{app: agent}}}}
  updateStrategy: {{rollingUpdate: {{maxSurge: 1, maxUnavailable: 0}}}}
  template:
    metadata: {{labels: {{app: agent, version: "{version}"}}}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      containers:
      - name: agent
        image: {BUSYBOX}
        command: [sleep, infinity]
        readinessProbe: {{exec: {{command: ["true"]}}, periodSeconds: 1}}
"#
        )
    };
    space
        .kubectl_in(&["apply", "-f", "-"], &agent("1"))
        .await
        .unwrap();
    space.rolled_out("daemonset").await.unwrap();
    let both = AtomicBool::new(false);
    let rolling = AtomicBool::new(true);
    let watch = async {
        while rolling.load(SeqCst) {
            let versions = "{range .items[*]}{.spec.nodeName}={.status.conditions[?(@.type=='Ready')].status} {end}";
            let seen = space.field("pods", versions).await.unwrap();
            let on = |node: &str| {
                seen.split(' ')
                    .filter(|word| *word == format!("{node}=True"))
                    .count()
            };
            assert!(
                on("n1") >= 1 && on("n2") >= 1,
                "a node without a ready pod: {seen}"
            );
            both.fetch_or(on("n1") > 1 || on("n2") > 1, SeqCst);
        }
    };
    let roll = async {
        space
            .kubectl_in(&["apply", "-f", "-"], &agent("2"))
            .await
            .unwrap();
        space.rolled_out("daemonset").await.unwrap();
        rolling.store(false, SeqCst);
    };
    tokio::join!(watch, roll);
    assert!(both.load(SeqCst), "no node ever had two");
}

#[tokio::test]
async fn a_caller_counts_what_it_gets_while_the_server_breaks_and_mends() {
    let Some(cluster) = cluster().await.unwrap() else {
        return;
    };
    let space = Namespace::new(cluster, "calls").await.unwrap();
    // Never unready: what is broken is to be seen by its caller.
    let shop = shop().replace("path: /, port", "path: /healthz, port");
    space.run(&shop).await.unwrap();
    let caller = format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: caller}}
spec:
  selector: {{matchLabels: {{app: caller}}}}
  template:
    metadata: {{labels: {{app: caller}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {{name: caller, image: {WORKLOAD}, args: [call, "http://server/", 20ms]}}
"#
    );
    space.run(&caller).await.unwrap();
    let shows = async |outcome: &str| {
        eventually_within(std::time::Duration::from_secs(30), outcome, async || {
            let said = space
                .kubectl(&["logs", "deployment/caller", "--tail=1"])
                .await;
            match said {
                Ok(line) if line.contains(outcome) => Ok(()),
                other => Err(other),
            }
        })
        .await;
    };
    shows("200=").await;
    let ask = [
        "exec",
        "deployment/shell",
        "--",
        "wget",
        "-qO-",
        "http://server/break",
    ];
    space.kubectl(&ask).await.unwrap();
    shows("503=").await;
}
