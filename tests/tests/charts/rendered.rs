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
const EVERYTHING: [&str; 13] = [
    r#"image={"repository": "registry.example.com:5000/weir", "tag": "1.2.3", "pullPolicy": "Always"}"#,
    r#"imagePullSecrets=[{"name": "registry"}]"#,
    r#"log={"filter": "info,weir_agent=debug", "format": "json"}"#,
    r#"openshift.enabled=true"#,
    r#"agent.capture.existingConnections="Reset""#,
    r#"agent.capture.namespaces=["/var/run/netns", "/var/run/docker/netns"]"#,
    r#"agent.capture.seLinuxType="weir_t""#,
    r#"agent.proxy.enabled=true"#,
    r#"agent.drainSeconds=120"#,
    r#"agent.priorityClassName="system-node-critical""#,
    r#"agent.affinity={"nodeAffinity": {}}"#,
    r#"controlPlane.podAnnotations={"a": "b"}"#,
    r#"controlPlane.tolerations=[{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]"#,
];

const WITHOUT_CAPTURE: [&str; 1] = ["agent.capture.enabled=false"];

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

/// A pod's containers, with their names: those that run beside the others come first.
fn containers(pod: &Value) -> Vec<(&str, &Value)> {
    let lists = ["initContainers", "containers"].map(|list| pod[list].as_array());
    let containers = lists.into_iter().flatten().flatten();
    containers
        .map(|container| (container["name"].as_str().unwrap(), container))
        .collect()
}

/// A container's arguments.
fn arguments(container: &Value) -> Vec<&str> {
    let arguments = container["args"].as_array().unwrap().iter();
    arguments.map(|text| text.as_str().unwrap()).collect()
}

/// The agents' pod.
fn agent(objects: &[Value]) -> &Value {
    let mut pods = pods(objects);
    pods.find(|(name, _)| *name == "weir-agent").unwrap().1
}

#[tokio::test]
async fn only_capture_has_a_right_on_its_node_and_only_the_control_plane_one_on_the_api() {
    for values in [&[][..], &EVERYTHING, &WITHOUT_CAPTURE] {
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
            for field in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
                assert!(pod.get(field).is_none(), "{name} has {field}");
            }
            for (container, spec) in containers(pod) {
                if container == "capture" {
                    continue;
                }
                assert_eq!(
                    spec["securityContext"],
                    json!({
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    }),
                    "{name}"
                );
                for port in spec["ports"].as_array().into_iter().flatten() {
                    assert!(port.get("hostPort").is_none(), "{name} has {port}");
                }
            }
            let token = &pod["automountServiceAccountToken"];
            assert_eq!(*token == false, name != "weir-control-plane", "{name}");
        }
    }
}

#[tokio::test]
async fn capture_has_three_capabilities_and_sees_of_the_node_only_its_network_namespaces() {
    for (values, directories) in [
        (&[][..], &["/var/run/netns"][..]),
        (&EVERYTHING, &["/var/run/netns", "/var/run/docker/netns"]),
    ] {
        let Some(rendered) = rendered("charts/weir", values).await else {
            return;
        };
        let pod = agent(&rendered);
        let (name, capture) = containers(pod)[0];
        assert_eq!(name, "capture");
        // Started before the proxy, ended after it, and started again by itself.
        assert_eq!(capture["restartPolicy"], "Always");
        assert_eq!(
            capture["securityContext"],
            json!({
                "runAsNonRoot": false,
                "runAsUser": 0,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"]},
            })
        );
        let mounts = capture["volumeMounts"].as_array().unwrap();
        assert_eq!(mounts[0]["name"], "capture");
        assert_eq!(mounts[1]["name"], "handover");
        let seen: Vec<&Value> = mounts[2..]
            .iter()
            .map(|mount| &mount["mountPath"])
            .collect();
        assert_eq!(seen, directories);
        for mount in &mounts[2..] {
            assert_eq!(mount["mountPropagation"], "HostToContainer");
            assert_eq!(mount["readOnly"], true);
        }
        // And the pod as a whole: the cgroups of the node, for the proxy to read, and
        // where the next agent meets it.
        let paths = pod["volumes"].as_array().unwrap().iter();
        let paths = paths.filter_map(|volume| volume.pointer("/hostPath/path"));
        let mut paths: Vec<&str> = paths.map(|path| path.as_str().unwrap()).collect();
        assert_eq!(paths.remove(0), "/run/weir/handover");
        assert_eq!(paths.remove(0), "/sys/fs/cgroup");
        assert_eq!(paths, directories);
        let (name, proxy) = containers(pod)[1];
        assert_eq!(name, "proxy");
        let of_proxy = proxy["volumeMounts"].as_array().unwrap();
        let cgroups = of_proxy.iter().find(|mount| mount["name"] == "cgroups");
        assert_eq!(cgroups.unwrap()["readOnly"], true);
        assert!(
            !of_proxy
                .iter()
                .any(|mount| directories.iter().any(|path| mount["mountPath"] == *path))
        );
    }
}

#[tokio::test]
async fn the_agents_two_processes_meet_at_one_socket_and_know_each_other() {
    let Some(rendered) = rendered("charts/weir", &EVERYTHING).await else {
        return;
    };
    let pod = agent(&rendered);
    let given: Vec<Vec<&str>> = containers(pod)
        .into_iter()
        .map(|(_, spec)| arguments(spec))
        .collect();
    let value = |process: usize, option: &str| {
        let mut values = given[process]
            .iter()
            .filter_map(|argument| argument.strip_prefix(option));
        values.next().unwrap().to_owned()
    };
    assert_eq!(value(0, "--socket="), value(1, "--capture="));
    assert_eq!(value(0, "--handover="), value(1, "--handover="));
    assert_eq!(
        value(0, "--proxy-user="),
        pod["securityContext"]["runAsUser"].to_string()
    );
    assert_eq!(value(1, "--existing-connections="), "Reset");
    // Two instances overlap while they are updated: each has a name of its own.
    assert_eq!(value(0, "--instance="), "$(POD_NAME)");
}

#[tokio::test]
async fn without_capture_agents_pass_the_strictest_pod_security() {
    let Some(rendered) = rendered("charts/weir", &WITHOUT_CAPTURE).await else {
        return;
    };
    let pod = agent(&rendered);
    assert!(pod.get("initContainers").is_none(), "{pod}");
    let volumes = pod["volumes"].as_array().unwrap();
    assert!(
        !volumes
            .iter()
            .any(|volume| volume.get("hostPath").is_some()),
        "{pod}"
    );
    let (_, proxy) = containers(pod)[0];
    assert!(
        !arguments(proxy)
            .iter()
            .any(|argument| argument.starts_with("--capture")),
        "{proxy}"
    );
}

#[tokio::test]
async fn on_openshift_the_agents_may_be_just_what_they_ask_to_be() {
    let openshift = ["openshift.enabled=true"];
    for (more, type_) in [
        ("agent.capture.enabled=true", Some("spc_t")),
        (WITHOUT_CAPTURE[0], None),
    ] {
        let Some(rendered) = rendered("charts/weir", &[openshift[0], more]).await else {
            return;
        };
        let pod = agent(&rendered);
        assert_eq!(
            pod["securityContext"]["seLinuxOptions"]["type"].as_str(),
            type_
        );
        let constraints = rendered
            .iter()
            .find(|object| object["kind"] == "SecurityContextConstraints");
        let constraints = constraints.unwrap();
        assert_eq!(
            constraints["users"],
            json!([format!("system:serviceaccount:{NAMESPACE}:weir-agent")])
        );
        let mut wanted: Vec<&Value> = Vec::new();
        for (_, spec) in containers(pod) {
            let added = spec.pointer("/securityContext/capabilities/add");
            wanted.extend(added.and_then(Value::as_array).into_iter().flatten());
        }
        let allowed = constraints["allowedCapabilities"]
            .as_array()
            .into_iter()
            .flatten();
        assert_eq!(allowed.collect::<Vec<_>>(), wanted);
        for volume in pod["volumes"].as_array().unwrap() {
            let mut kinds = volume.as_object().unwrap().keys();
            let kind = kinds.find(|key| *key != "name").unwrap();
            let kinds = constraints["volumes"].as_array().unwrap();
            assert!(kinds.iter().any(|allowed| allowed == kind), "{kind}");
        }
    }
}

#[tokio::test]
async fn weir_knows_every_argument_that_its_pods_are_given() {
    for values in [&[][..], &EVERYTHING, &WITHOUT_CAPTURE] {
        let Some(rendered) = rendered("charts/weir", values).await else {
            return;
        };
        for (name, pod) in pods(&rendered) {
            for (container, spec) in containers(pod) {
                let mut weir = Command::new(programs::weir());
                // What comes before is read, and refused where it is wrong; then the help is shown.
                weir.args(arguments(spec)).arg("--help");
                let said = programs::run(&mut weir).await;
                assert!(said.is_ok(), "{name}, {container}: {}", said.unwrap_err());
            }
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
            "agent.capture.existingConnections=Drop",
            "at '/agent/capture/existingConnections': value must be one of 'Keep', 'Reset'",
        ),
        (
            "agent.capture.namespaces={run/netns}",
            "at '/agent/capture/namespaces/0': 'run/netns' does not match pattern",
        ),
        ("agent.capture.namespaces=null", "at '/agent/capture'"),
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
