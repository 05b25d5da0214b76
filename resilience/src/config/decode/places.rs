//! What a cluster says of itself: where requests go, and who is on a node.

use std::collections::HashSet;

use weir_proto::v1alpha1 as proto;

use super::at::At;
use super::{MAX_PORTS, Problem, all, finish, port_number, service_id};
use crate::config::{Endpoint, Endpoints, Node, Pod, Probe};

/// Endpoints of one port.
const MAX_ENDPOINTS: usize = u16::MAX as usize;
/// Zones, and nodes, for which one endpoint is meant: as many as Kubernetes
/// gives.
const MAX_HINTS: usize = 8;
/// Addresses of one pod: one of each family.
const MAX_POD_ADDRESSES: usize = 2;
/// Addresses of one node.
const MAX_NODE_ADDRESSES: usize = 32;
/// Probes of one pod.
const MAX_PROBES: usize = 256;
/// Characters of the path of a probe.
const MAX_PATH: usize = 2048;
/// Characters of a UID: Kubernetes' have 36.
const MAX_UID: usize = 64;
/// Characters of a kind, a slash and a name.
const MAX_WORKLOAD: usize = 317;

/// Decodes where a service's requests go, or says all that is wrong.
pub fn endpoints(message: &proto::Endpoints) -> Result<Endpoints, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut at = At::root(&mut problems);
    let id = service_id(&mut at, &message.namespace, &message.name);
    at.at_most("ports", message.ports.len(), MAX_PORTS);
    let mut numbers = HashSet::new();
    let ports: Vec<_> = (message.ports.iter().enumerate())
        .map(|(n, message)| {
            let mut at = at.item("ports", n);
            if !numbers.insert(message.port) {
                at.refuse(
                    "port",
                    format!("{} is used by an earlier entry", message.port),
                )
            }
            let number = port_number(&mut at, "port", message.port);
            at.at_most("endpoints", message.endpoints.len(), MAX_ENDPOINTS);
            let endpoints: Vec<_> = (message.endpoints.iter().enumerate())
                .map(|(n, message)| endpoint(&mut at.item("endpoints", n), message))
                .collect();
            number.zip(all(endpoints))
        })
        .collect();
    let endpoints = all(ports)
        .zip(id)
        .map(|(ports, id)| Endpoints { id, ports });
    finish(endpoints, problems)
}

fn endpoint(at: &mut At<'_>, message: &proto::Endpoint) -> Option<Endpoint> {
    let address = at.address("address", &message.address);
    at.at_most("for_zones", message.for_zones.len(), MAX_HINTS);
    at.at_most("for_nodes", message.for_nodes.len(), MAX_HINTS);
    if message.unready && message.terminating {
        at.refuse(
            "terminating",
            "one that is not ready does not answer any more: leave terminating out, or unready",
        );
    }
    Some(Endpoint {
        address: address?,
        zone: message.zone.clone(),
        node: message.node.clone(),
        unready: message.unready,
        terminating: message.terminating,
        for_zones: message.for_zones.clone(),
        for_nodes: message.for_nodes.clone(),
    })
}

/// Decodes a pod whose connections may be captured, or says all that is wrong.
pub fn pod(message: &proto::Pod) -> Result<Pod, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut at = At::root(&mut problems);
    at.label("namespace", &message.namespace);
    at.subdomain("name", &message.name);
    at.text("uid", &message.uid, MAX_UID);
    if message.addresses.is_empty() {
        at.refuse(
            "addresses",
            "missing; without one its network namespace cannot be found",
        );
    }
    let addresses = at.ips("addresses", &message.addresses, MAX_POD_ADDRESSES);
    if !message.service_account.is_empty() {
        at.subdomain("service_account", &message.service_account);
    }
    if !message.workload.is_empty() && at.text("workload", &message.workload, MAX_WORKLOAD) {
        workload(&mut at, &message.workload);
    }
    at.at_most("probes", message.probes.len(), MAX_PROBES);
    let probes: Vec<_> = (message.probes.iter().enumerate())
        .map(|(n, message)| probe(&mut at.item("probes", n), message))
        .collect();
    let pod = addresses.zip(all(probes)).map(|(addresses, probes)| Pod {
        namespace: message.namespace.clone(),
        name: message.name.clone(),
        uid: message.uid.clone(),
        addresses,
        service_account: message.service_account.clone(),
        workload: message.workload.clone(),
        probes,
    });
    finish(pod, problems)
}

fn workload(at: &mut At<'_>, workload: &str) {
    let kind_and_name = workload.split_once('/');
    if kind_and_name.is_none_or(|(kind, name)| kind.is_empty() || name.is_empty()) {
        at.refuse(
            "workload",
            format!("{workload:?} is no kind and name; write \"Deployment/checkout\""),
        );
    }
}

fn probe(at: &mut At<'_>, message: &proto::Probe) -> Option<Probe> {
    let port = port_number(at, "port", message.port);
    let path = (!message.path.is_empty()).then(|| message.path.clone());
    let length_is_good = path
        .as_ref()
        .is_none_or(|path| at.text("path", path, MAX_PATH));
    let probe = match (path, message.grpc) {
        (Some(_), true) => {
            at.refuse("path", "a probe of gRPC has none: leave it out, or grpc");
            return None;
        }
        (Some(path), false) => Probe::Http { port: port?, path },
        (None, true) => Probe::Grpc { port: port? },
        (None, false) => Probe::Tcp { port: port? },
    };
    length_is_good.then_some(probe)
}

/// Decodes the node of an agent, or says all that is wrong.
pub fn node(message: &proto::Node) -> Result<Node, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut at = At::root(&mut problems);
    at.subdomain("name", &message.name);
    let addresses = at.ips("addresses", &message.addresses, MAX_NODE_ADDRESSES);
    let node = addresses.map(|addresses| Node {
        name: message.name.clone(),
        zone: message.zone.clone(),
        addresses,
    });
    finish(node, problems)
}
