//! What Helm makes of the charts, without a cluster.

use anyhow::Result;
use serde_json::{Value, json};
use tokio::process::Command;
use weir_crds::Kind;
use weir_tests::programs;

use crate::{NAMESPACE, objects, path, root};

/// The oldest Kubernetes that the charts are for.
const OLDEST: &str = "1.32.0";

/// Runs helm in the checkout, without a cluster; `None` where there is no helm.
async fn helm(arguments: &[&str]) -> Option<Result<String>> {
    let helm = programs::find("WEIR_HELM", "helm").unwrap()?;
    let mut command = Command::new(helm);
    command.current_dir(root()).args(arguments);
    Some(programs::run(&mut command).await)
}

/// The objects that a chart renders with these values.
async fn rendered(chart: &str, values: &[&str]) -> Option<Vec<Value>> {
    let mut arguments = vec!["template", "weir", chart, "--namespace", NAMESPACE];
    arguments.extend(["--kube-version", OLDEST]);
    for value in values {
        arguments.extend(["--set-json", value]);
    }
    Some(objects(&helm(&arguments).await?.unwrap()))
}

/// Every value that is not set by default.
const EVERYTHING: [&str; 9] = [
    r#"image={"repository": "registry.example.com:5000/weir", "tag": "1.2.3", "pullPolicy": "Always"}"#,
    r#"imagePullSecrets=[{"name": "registry"}]"#,
    r#"log={"filter": "info,weir_agent=debug", "format": "json"}"#,
    r#"agent.proxy.enabled=true"#,
    r#"agent.drainSeconds=120"#,
    r#"agent.priorityClassName="system-node-critical""#,
    r#"agent.affinity={"nodeAffinity": {}}"#,
    r#"controlPlane.podAnnotations={"a": "b"}"#,
    r#"controlPlane.tolerations=[{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]"#,
];

/// The pods that an object makes, with its name.
fn pods(objects: &[Value]) -> impl Iterator<Item = (&str, &Value)> {
    objects.iter().filter_map(|object| {
        let spec = match object["kind"].as_str()? {
            "Pod" => &object["spec"],
            _ => object.pointer("/spec/template/spec")?,
        };
        Some((object["metadata"]["name"].as_str()?, spec))
    })
}

#[tokio::test]
async fn helm_has_nothing_to_say_against_them() {
    for chart in ["charts/weir", "charts/weir-crds"] {
        if let Some(said) = helm(&["lint", "--strict", chart]).await {
            said.unwrap();
        }
    }
}

#[tokio::test]
async fn they_have_the_version_of_weir_and_say_which_kubernetes_they_need() {
    for chart in ["weir", "weir-crds"] {
        let text = std::fs::read_to_string(path(&format!("charts/{chart}/Chart.yaml"))).unwrap();
        let chart: Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
        assert_eq!(chart["kubeVersion"], format!(">={OLDEST}-0"));
    }
}

#[tokio::test]
async fn the_definitions_are_the_generated_ones_and_stay_when_their_chart_goes() {
    let Some(rendered) = rendered("charts/weir-crds", &[]).await else {
        return;
    };
    assert_eq!(rendered.len(), Kind::ALL.len());
    for kind in Kind::ALL {
        let mut wanted = kind.crd().clone();
        wanted["metadata"]["annotations"]["helm.sh/resource-policy"] = json!("keep");
        assert!(rendered.contains(&wanted), "{kind}");
    }
}

#[tokio::test]
async fn no_pod_has_a_right_on_its_node_and_only_the_control_plane_one_on_the_api() {
    for values in [&[][..], &EVERYTHING] {
        let Some(rendered) = rendered("charts/weir", values).await else {
            return;
        };
        assert_eq!(pods(&rendered).count(), 3);
        for (name, pod) in pods(&rendered) {
            let security = &pod["securityContext"];
            assert_eq!(security["runAsNonRoot"], true, "{name}");
            assert_eq!(
                security["seccompProfile"]["type"], "RuntimeDefault",
                "{name}"
            );
            for field in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
                assert!(pod.get(field).is_none(), "{name} has {field}");
            }
            for volume in pod["volumes"].as_array().into_iter().flatten() {
                assert!(volume.get("hostPath").is_none(), "{name} has {volume}");
            }
            for container in pod["containers"].as_array().unwrap() {
                assert_eq!(
                    container["securityContext"],
                    json!({
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    }),
                    "{name}"
                );
                for port in container["ports"].as_array().into_iter().flatten() {
                    assert!(port.get("hostPort").is_none(), "{name} has {port}");
                }
            }
            let token = &pod["automountServiceAccountToken"];
            assert_eq!(*token == false, name != "weir-control-plane", "{name}");
        }
    }
}

#[tokio::test]
async fn weir_knows_every_argument_that_its_pods_are_given() {
    for values in [&[][..], &EVERYTHING] {
        let Some(rendered) = rendered("charts/weir", values).await else {
            return;
        };
        for (name, pod) in pods(&rendered) {
            let arguments = pod["containers"][0]["args"].as_array().unwrap();
            let arguments = arguments.iter().map(|argument| argument.as_str().unwrap());
            let mut weir = Command::new(programs::weir());
            // What comes before is read, and refused where it is wrong; then the help is shown.
            weir.args(arguments).arg("--help");
            let said = programs::run(&mut weir).await;
            assert!(said.is_ok(), "{name}: {}", said.unwrap_err());
        }
    }
}

#[tokio::test]
async fn a_value_that_means_nothing_is_refused_with_its_place() {
    for (value, said) in [
        ("replicas=3", "additional properties 'replicas' not allowed"),
        (
            "agent.proxy.enable=true",
            "at '/agent/proxy': additional properties 'enable'",
        ),
        (
            "controlPlane.replicas=0",
            "at '/controlPlane/replicas': minimum: got 0, want 1",
        ),
        (
            "controlPlane.replicas=two",
            "at '/controlPlane/replicas': got string, want integer",
        ),
        ("image.repository=", "at '/image/repository'"),
        ("image.tag=a:b", "at '/image/tag'"),
        (
            "image.pullPolicy=Sometimes",
            "value must be one of 'IfNotPresent', 'Always', 'Never'",
        ),
        (
            "log.format=xml",
            "at '/log/format': value must be one of 'text', 'json'",
        ),
        (
            "agent.drainSeconds=30s",
            "at '/agent/drainSeconds': got string, want integer",
        ),
        (
            "agent.podAnnotations.scrape=true",
            "at '/agent/podAnnotations/scrape': got boolean",
        ),
        (
            "agent.resources.memory=1Gi",
            "at '/agent/resources': additional properties 'memory'",
        ),
    ] {
        let Some(outcome) = helm(&["template", "weir", "charts/weir", "--set", value]).await else {
            return;
        };
        let error = outcome.expect_err(value).to_string();
        assert!(error.contains(said), "{value}: {error}");
    }
}

#[tokio::test]
async fn the_policy_of_the_example_is_that_of_the_readme() {
    let readme = std::fs::read_to_string(path("README.md")).unwrap();
    let start = readme.find("apiVersion: weir.dev/v1alpha1").unwrap();
    let block = readme[start..].split("```").next().unwrap();
    let example = std::fs::read_to_string(path("examples/kubernetes/policy.yaml")).unwrap();
    assert_eq!(objects(block), objects(&example));
}
