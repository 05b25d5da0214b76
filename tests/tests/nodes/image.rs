//! Weir's own image, as a pod that may do nothing.

use weir_tests::eventually;
use weir_tests::image::{Build, weir, weir_name};
use weir_tests::kubernetes::WORKLOAD;

use super::{Namespace, cluster};

#[tokio::test]
async fn weirs_image_runs_without_rights_on_a_read_only_root_and_resolves_names() {
    let Some(cluster) = cluster().await.unwrap() else {
        return;
    };
    cluster
        .load_image(&weir(Build::Dev).unwrap())
        .await
        .unwrap();
    let space = Namespace::new(cluster, "image").await.unwrap();
    let image = weir_name();
    let manifests = format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: server}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  template:
    metadata: {{labels: {{app: server}}}}
    spec:
      containers:
      - name: server
        image: {WORKLOAD}
        args: [serve]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: server}}
spec:
  selector: {{app: server}}
  ports: [{{port: 80, targetPort: 8080}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: weir}}
spec:
  securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: weir
    image: {image}
    # It is there: no registry is asked.
    imagePullPolicy: IfNotPresent
    args: [get, circuitbreakers, --server, "http://server:80"]
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {{drop: [ALL]}}
"#
    );
    space.run(&manifests).await.unwrap();
    // It is run again and again until the Service answers.
    eventually("weir to reach the server", async || {
        let said = space.kubectl(&["logs", "pod/weir"]).await;
        match said {
            Ok(said) if said.contains("server:80 does not answer like a control plane") => Ok(()),
            other => Err(other),
        }
    })
    .await;
}
