//! What is kept of Pods and Nodes: of a Pod's 10 kB, some 300 bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{DynamicObject, Object};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sources::pods::{Mesh, Node, Pod, Probe};

/// Label of a Pod or a Namespace; `disabled`: it is not captured.
pub(super) const CAPTURE: &str = "weir.dev/capture";
/// Annotation of a Pod whose connections Istio's node proxy has.
const AMBIENT: &str = "ambient.istio.io/redirection";
/// Label of a Pod of a Deployment's ReplicaSet: what the Deployment's name has
/// behind it in the ReplicaSet's.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Label of a node.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Labels of the Pods of Weir's own agents, in its own namespace.
const AGENT: [(&str, &str); 2] = [
    ("app.kubernetes.io/name", "weir"),
    ("app.kubernetes.io/component", "agent"),
];

/// Probes of one Pod; those of further containers are not known.
const MAX_PROBES: usize = 256;
/// Characters of a probe's path; one with a longer path is not known.
const MAX_PATH: usize = 2048;
/// Addresses of one node.
const MAX_NODE_ADDRESSES: usize = 32;

/// A Pod as its watch gives it: what is not in here is not even read.
pub(crate) type Written = Object<Spec, Status>;

/// As the API server writes it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spec {
    node_name: Option<String>,
    host_network: bool,
    service_account_name: String,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    /// `Always` makes an init container a sidecar, which may have probes.
    restart_policy: Option<String>,
    ports: Vec<Port>,
    liveness_probe: Option<WrittenProbe>,
    readiness_probe: Option<WrittenProbe>,
    startup_probe: Option<WrittenProbe>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    name: String,
    container_port: i32,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct WrittenProbe {
    http_get: Option<Action>,
    tcp_socket: Option<Action>,
    grpc: Option<Action>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Action {
    port: Option<IntOrString>,
    path: String,
    scheme: String,
    host: String,
}

/// As the kubelet writes it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<Address>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Address {
    #[serde(default)]
    ip: String,
}

/// The node of a Pod and what is kept of it; `None` for one that has no node yet,
/// or has ended: its addresses may be another's by now.
pub(super) fn pod(written: &Written) -> Option<(&str, Pod)> {
    let node = node_of(written)?;
    let Written { metadata, spec, .. } = written;
    let labels = metadata.labels.as_ref();
    let pod = Pod {
        uid: metadata.uid.clone().unwrap_or_default(),
        addresses: match spec.host_network {
            true => Vec::new(),
            false => addresses(written.status.as_ref()?),
        },
        host_network: spec.host_network,
        opted_out: word(labels, CAPTURE) == Some("disabled"),
        mesh: mesh(metadata, spec),
        service_account: spec.service_account_name.clone(),
        workload: workload(metadata).unwrap_or_default(),
        probes: probes(spec),
    };
    Some((node, pod))
}

/// The node on which a Pod is, or will be.
fn node_of(written: &Written) -> Option<&str> {
    let status = written.status.as_ref();
    let ended = status.is_some_and(|status| matches!(&*status.phase, "Succeeded" | "Failed"));
    let node = written.spec.node_name.as_deref();
    node.filter(|node| !node.is_empty() && !ended)
}

/// The node for which a Pod speaks, where it is one of Weir's agents and stays.
pub(super) fn agents_node<'w>(written: &'w Written, own_namespace: &str) -> Option<&'w str> {
    let metadata = &written.metadata;
    let labels = metadata.labels.as_ref();
    let is_agent = metadata.namespace.as_deref() == Some(own_namespace)
        && AGENT
            .iter()
            .all(|(name, value)| word(labels, name) == Some(value));
    node_of(written).filter(|_| is_agent && metadata.deletion_timestamp.is_none())
}

fn word<'w>(words: Option<&'w BTreeMap<String, String>>, name: &str) -> Option<&'w str> {
    words?.get(name).map(String::as_str)
}

fn addresses(status: &Status) -> Vec<IpAddr> {
    let all = status.pod_ips.iter().map(|address| &address.ip);
    let mut addresses: Vec<IpAddr> = all
        .chain(&status.pod_ip)
        .filter_map(|address| address.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn mesh(metadata: &ObjectMeta, spec: &Spec) -> Option<Mesh> {
    let containers = spec.containers.iter().chain(&spec.init_containers);
    let sidecar = containers.filter_map(|container| match &*container.name {
        "istio-proxy" => Some(Mesh::Istio),
        "linkerd-proxy" => Some(Mesh::Linkerd),
        "kuma-sidecar" => Some(Mesh::Kuma),
        _ => None,
    });
    let ambient = word(metadata.annotations.as_ref(), AMBIENT) == Some("enabled");
    sidecar.chain(ambient.then_some(Mesh::IstioAmbient)).next()
}

/// What a Pod belongs to, by the names of its controller.
fn workload(metadata: &ObjectMeta) -> Option<String> {
    let owners = metadata.owner_references.iter().flatten();
    let owner = owners
        .filter(|owner| owner.controller == Some(true))
        .find(|owner| owner.kind != "Node")?;
    let (kind, name) = outermost(owner, word(metadata.labels.as_ref(), TEMPLATE_HASH));
    Some(format!("{kind}/{name}"))
}

/// Deployments and CronJobs stand behind what they make: their names are told
/// from how they name that.
fn outermost<'o>(owner: &'o OwnerReference, hash: Option<&str>) -> (&'o str, &'o str) {
    let deployment = || {
        let name = owner.name.strip_suffix(hash?)?;
        name.strip_suffix('-').filter(|name| !name.is_empty())
    };
    let cron_job = || {
        let (name, minute) = owner.name.rsplit_once('-')?;
        let is_minute =
            (8..=10).contains(&minute.len()) && minute.bytes().all(|byte| byte.is_ascii_digit());
        (is_minute && !name.is_empty()).then_some(name)
    };
    let outer = match &*owner.kind {
        "ReplicaSet" => deployment().map(|name| ("Deployment", name)),
        "Job" => cron_job().map(|name| ("CronJob", name)),
        _ => None,
    };
    outer.unwrap_or((&owner.kind, &owner.name))
}

fn probes(spec: &Spec) -> Vec<Probe> {
    let sidecars = spec.init_containers.iter();
    let sidecars = sidecars.filter(|of| of.restart_policy.as_deref() == Some("Always"));
    let found: BTreeSet<Probe> = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(probes_of)
        .take(MAX_PROBES)
        .collect();
    found.into_iter().collect()
}

fn probes_of(container: &Container) -> impl Iterator<Item = Probe> {
    let probes = [
        &container.liveness_probe,
        &container.readiness_probe,
        &container.startup_probe,
    ];
    let actions = probes.into_iter().flatten().filter_map(|probe| {
        let http = probe.http_get.as_ref().map(|action| (action, false));
        let tcp = probe.tcp_socket.as_ref().map(|action| (action, false));
        let grpc = probe.grpc.as_ref().map(|action| (action, true));
        let is_http = http.is_some();
        let (action, grpc) = http.or(tcp).or(grpc)?;
        Some((action, is_http, grpc))
    });
    actions.filter_map(|(action, is_http, grpc)| {
        // One that names a host goes to that.
        if !action.host.is_empty() {
            return None;
        }
        let path = match (is_http, action.scheme.eq_ignore_ascii_case("https")) {
            (false, _) | (true, true) => String::new(),
            (true, false) if action.path.starts_with('/') => action.path.clone(),
            (true, false) => format!("/{}", action.path),
        };
        (path.len() <= MAX_PATH).then_some(Probe {
            port: port(action.port.as_ref()?, container)?,
            path,
            grpc,
        })
    })
}

fn port(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().find(|port| port.name == *name);
            match named {
                Some(port) => port.container_port,
                None => name.parse().ok()?,
            }
        }
    };
    u16::try_from(number).ok().filter(|number| *number != 0)
}

/// What is kept of a node.
pub(super) fn node(written: &DynamicObject) -> Node {
    let addresses = written.data.pointer("/status/addresses");
    let addresses = addresses.and_then(Value::as_array);
    let mut addresses: Vec<IpAddr> = addresses
        .into_iter()
        .flatten()
        .filter_map(|address| address["address"].as_str()?.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_NODE_ADDRESSES);
    let labels = written.metadata.labels.as_ref();
    Node {
        zone: word(labels, ZONE).unwrap_or_default().to_owned(),
        addresses,
    }
}

#[cfg(test)]
mod tests;
