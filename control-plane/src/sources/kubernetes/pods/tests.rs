use serde_json::{Value, json};

use super::*;

fn written(metadata: &Value, spec: &Value, status: &Value) -> Written {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": metadata, "spec": spec, "status": status,
    });
    serde_json::from_value(pod).unwrap()
}

/// A Pod of `spec` that runs on node `one`.
fn running(metadata: &Value, mut spec: Value) -> Pod {
    spec["nodeName"] = json!("one");
    let status = json!({"phase": "Running", "podIP": "10.1.0.7", "podIPs": [{"ip": "10.1.0.7"}, {"ip": "fd00::7"}]});
    let written = written(metadata, &spec, &status);
    let (node, pod) = super::pod(&written).unwrap();
    assert_eq!(node, "one");
    pod
}

#[test]
fn a_pod_is_kept_with_its_addresses_while_it_has_a_node_and_has_not_ended() {
    let metadata = json!({"name": "checkout", "namespace": "shop", "uid": "u"});
    let spec = json!({"nodeName": "one", "serviceAccountName": "checkout", "containers": []});
    let kept = |status: &Value| {
        let written = written(&metadata, &spec, status);
        super::pod(&written).map(|(_, pod)| pod.addresses.len())
    };
    let addresses = json!({"phase": "Running", "podIP": "10.1.0.7", "podIPs": [{"ip": "10.1.0.7"}, {"ip": "fd00::7"}]});
    assert_eq!(kept(&addresses), Some(2));
    assert_eq!(kept(&json!({"phase": "Pending"})), Some(0));
    for phase in ["Succeeded", "Failed"] {
        let ended = json!({"phase": phase, "podIP": "10.1.0.7"});
        assert_eq!(kept(&ended), None, "{phase}: its address may be another's");
    }
    let nowhere = written(
        &metadata,
        &json!({"containers": []}),
        &json!({"phase": "Pending"}),
    );
    assert_eq!(super::pod(&nowhere), None);
}

#[test]
fn a_pod_on_its_nodes_network_has_no_address_of_its_own() {
    let pod = running(&json!({}), json!({"hostNetwork": true, "containers": []}));
    assert!(pod.host_network && pod.addresses.is_empty());
}

#[test]
fn probes_over_the_network_are_kept_once_each_with_their_ports_resolved() {
    let spec = json!({
        "containers": [{
            "name": "app",
            "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 9090}],
            "livenessProbe": {"httpGet": {"path": "healthz", "port": "http", "scheme": "HTTP"}},
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
            "startupProbe": {"grpc": {"port": 9090, "service": "x"}},
        }, {
            "name": "other",
            "livenessProbe": {"tcpSocket": {"port": "7070"}},
            "readinessProbe": {"httpGet": {"path": "/", "port": 8443, "scheme": "HTTPS"}},
            "startupProbe": {"exec": {"command": ["true"]}},
        }, {
            "name": "elsewhere",
            "livenessProbe": {"httpGet": {"path": "/", "port": 1, "host": "10.9.9.9"}},
            "readinessProbe": {"httpGet": {"path": "/", "port": "no-such"}},
        }],
        "initContainers": [
            {"name": "sidecar", "restartPolicy": "Always", "readinessProbe": {"tcpSocket": {"port": 15}}},
            {"name": "setup", "readinessProbe": {"tcpSocket": {"port": 16}}},
        ],
    });
    let probe = |port, path: &str, grpc| Probe {
        port,
        path: path.to_owned(),
        grpc,
    };
    assert_eq!(
        running(&json!({}), spec).probes,
        [
            probe(15, "", false),
            probe(7070, "", false),
            probe(8080, "/healthz", false),
            // What is said inside TLS cannot be told apart.
            probe(8443, "", false),
            probe(9090, "", true),
        ]
    );
}

#[test]
fn a_pod_belongs_to_what_stands_behind_its_controller() {
    let of = |kind: &str, name: &str| {
        let owner = json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": true});
        let metadata = json!({
            "labels": {"pod-template-hash": "6d4cf56db6"},
            "ownerReferences": [owner],
        });
        running(&metadata, json!({"containers": []})).workload
    };
    assert_eq!(
        of("ReplicaSet", "checkout-6d4cf56db6"),
        "Deployment/checkout"
    );
    assert_eq!(of("ReplicaSet", "checkout"), "ReplicaSet/checkout");
    assert_eq!(of("StatefulSet", "db"), "StatefulSet/db");
    assert_eq!(of("DaemonSet", "logs"), "DaemonSet/logs");
    assert_eq!(of("Job", "report-29384756"), "CronJob/report");
    assert_eq!(of("Job", "report-1"), "Job/report-1");
    assert_eq!(of("Node", "one"), "", "a static Pod belongs to nothing");
    let nobody = running(&json!({}), json!({"containers": []}));
    assert_eq!(nobody.workload, "");
}

#[test]
fn another_mesh_is_known_by_its_sidecar_or_its_annotation() {
    let with = |field: &str, name: &str| {
        let mut spec = json!({"containers": [{"name": "app"}]});
        let sidecar = json!({"name": name});
        match field {
            "containers" => spec["containers"].as_array_mut().unwrap().push(sidecar),
            field => spec[field] = json!([sidecar]),
        }
        running(&json!({}), spec).mesh
    };
    assert_eq!(with("containers", "istio-proxy"), Some(Mesh::Istio));
    assert_eq!(with("initContainers", "linkerd-proxy"), Some(Mesh::Linkerd));
    assert_eq!(with("containers", "kuma-sidecar"), Some(Mesh::Kuma));
    assert_eq!(with("initContainers", "istio-init"), None);
    let ambient = json!({"annotations": {"ambient.istio.io/redirection": "enabled"}});
    let ambient = running(&ambient, json!({"containers": []}));
    assert_eq!(ambient.mesh, Some(Mesh::IstioAmbient));
}

#[test]
fn a_pod_opts_out_by_its_label_and_by_no_other_word() {
    let says = |word: &str| {
        let metadata = json!({"labels": {"weir.dev/capture": word}});
        running(&metadata, json!({"containers": []})).opted_out
    };
    assert!(says("disabled"));
    assert!(!says("enabled"));
}

#[test]
fn a_node_is_kept_with_its_zone_and_its_addresses() {
    let written: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "one", "labels": {"topology.kubernetes.io/zone": "a"}},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
            {"type": "ExternalIP", "address": "192.0.2.1"},
            {"type": "Hostname", "address": "one"},
        ]},
    }))
    .unwrap();
    let node = node(&written);
    assert_eq!((node.zone.as_str(), node.addresses.len()), ("a", 2));
    let bare: DynamicObject = serde_json::from_value(json!({"metadata": {"name": "two"}})).unwrap();
    assert_eq!(super::node(&bare), Node::default());
}
