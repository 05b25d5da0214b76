//! What the agents of single nodes are told: their node, and the Pods on it that
//! may be captured.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::ResourceKind;
use weir_resilience::config::{self, Problem};

use super::callers::{Callers, Holder};
use super::{namespace_of, opts_out, why_not};
use crate::push::{Encoded, OfNodes, ResourceId};
use crate::sources::pods::{Node, Pod, PodName};
use crate::sources::{Objects, Shared};

/// Where something may be new.
#[derive(Default)]
struct Touched {
    pods: BTreeMap<Arc<str>, BTreeSet<PodName>>,
    nodes: BTreeSet<Arc<str>>,
    gone: Vec<(IpAddr, Holder)>,
    come: Vec<(IpAddr, Holder)>,
}

/// Brings `resources` and `callers` up to date with `objects`, of which `before`
/// was seen last. Whether there was anything new.
pub(crate) fn renew(
    before: &Objects,
    objects: &Objects,
    resources: &mut OfNodes,
    callers: &Callers,
) -> bool {
    let mut touched = Touched::default();
    touched.by_pods(before, objects);
    touched.by_nodes(before, objects);
    touched.by_namespaces(before, objects);
    callers.update(
        std::mem::take(&mut touched.gone),
        std::mem::take(&mut touched.come),
    );
    for (node, pods) in &touched.pods {
        let on_node = objects.pods.get(node);
        for name in pods {
            let pod = on_node.and_then(|on_node| on_node.get(name));
            let pod = pod.filter(|pod| why_not(objects, name, pod).is_none());
            let id = ResourceId {
                name: Arc::clone(name),
                kind: ResourceKind::Pod,
            };
            put(
                resources,
                node,
                id,
                pod.and_then(|pod| encode_pod(name, pod)),
            );
        }
    }
    for name in &touched.nodes {
        let node = objects.nodes.get(name);
        let id = ResourceId {
            name: Arc::clone(name),
            kind: ResourceKind::Node,
        };
        put(
            resources,
            name,
            id,
            node.and_then(|node| encode_node(name, node)),
        );
    }
    !touched.pods.is_empty() || !touched.nodes.is_empty()
}

impl Touched {
    fn by_pods(&mut self, before: &Objects, objects: &Objects) {
        let none = Shared::default();
        let same = |old: &Shared<PodName, Arc<Pod>>, new: &Shared<PodName, Arc<Pod>>| old.is(new);
        for (node, old, new) in before.pods.differences(&objects.pods, same) {
            let (old, new) = (old.unwrap_or(&none), new.unwrap_or(&none));
            for (name, old, new) in old.differences(new, Arc::ptr_eq) {
                let of_node = self.pods.entry(Arc::clone(node)).or_default();
                of_node.insert(Arc::clone(name));
                let places = |pod: &Arc<Pod>| -> Vec<(IpAddr, Holder)> {
                    let holder = Holder::Pod {
                        name: Arc::clone(name),
                        node: Arc::clone(node),
                        pod: Arc::clone(pod),
                    };
                    let addresses = pod.addresses.iter();
                    addresses
                        .map(|address| (*address, holder.clone()))
                        .collect()
                };
                self.gone.extend(old.into_iter().flat_map(places));
                self.come.extend(new.into_iter().flat_map(places));
            }
        }
    }

    fn by_nodes(&mut self, before: &Objects, objects: &Objects) {
        for (name, old, new) in before.nodes.differences(&objects.nodes, Arc::ptr_eq) {
            self.nodes.insert(Arc::clone(name));
            let holder = || Holder::Node(Arc::clone(name));
            let places = |node: &Arc<Node>| -> Vec<(IpAddr, Holder)> {
                let addresses = node.addresses.iter();
                addresses.map(|address| (*address, holder())).collect()
            };
            self.gone.extend(old.into_iter().flat_map(places));
            self.come.extend(new.into_iter().flat_map(places));
        }
    }

    /// A namespace that says another word about capture.
    fn by_namespaces(&mut self, before: &Objects, objects: &Objects) {
        let same = |old: &_, new: &_| opts_out(old) == opts_out(new);
        let changed = before
            .namespaces
            .differences(&objects.namespaces, |old, new| same(old, new));
        let says = |labels: Option<&Arc<_>>| labels.is_some_and(|labels| opts_out(labels));
        let changed: BTreeSet<&str> = changed
            .into_iter()
            .filter(|(_, old, new)| says(*old) != says(*new))
            .map(|(name, _, _)| name.as_str())
            .collect();
        if changed.is_empty() {
            return;
        }
        for (node, pods) in &objects.pods {
            let within = pods
                .keys()
                .filter(|name| changed.contains(namespace_of(name)));
            let within: BTreeSet<PodName> = within.cloned().collect();
            if !within.is_empty() {
                self.pods
                    .entry(Arc::clone(node))
                    .or_default()
                    .extend(within);
            }
        }
    }
}

/// Puts one resource of a node in the place of what was there.
fn put(resources: &mut OfNodes, node: &Arc<str>, id: ResourceId, fresh: Option<Encoded>) {
    let there = resources.get(node).and_then(|of_node| of_node.get(&id));
    if there.map(|there| &**there) == fresh.as_ref() {
        return;
    }
    let of_node = resources.entry(Arc::clone(node)).or_default();
    match fresh {
        Some(fresh) => {
            of_node.insert(id, Arc::new(fresh));
        }
        None => {
            of_node.remove(&id);
        }
    }
    if of_node.is_empty() {
        resources.remove(node);
    }
}

fn encode_pod(name: &str, pod: &Pod) -> Option<Encoded> {
    let (namespace, own_name) = name.split_once('/')?;
    let probes = pod.probes.iter().map(|probe| proto::Probe {
        port: probe.port.into(),
        path: probe.path.clone(),
        grpc: probe.grpc,
    });
    let message = proto::Pod {
        namespace: namespace.to_owned(),
        name: own_name.to_owned(),
        uid: pod.uid.clone(),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        service_account: pod.service_account.clone(),
        workload: pod.workload.clone(),
        probes: probes.collect(),
    };
    readable("Pod", name, config::pod(&message).err().as_deref())
        .then(|| Encoded::new(&message, Vec::new()))
}

fn encode_node(name: &str, node: &Node) -> Option<Encoded> {
    let message = proto::Node {
        name: name.to_owned(),
        zone: node.zone.clone(),
        addresses: node.addresses.iter().map(ToString::to_string).collect(),
    };
    readable("Node", name, config::node(&message).err().as_deref())
        .then(|| Encoded::new(&message, Vec::new()))
}

/// An agent never meets what it cannot read.
fn readable(kind: &str, name: &str, problems: Option<&[Problem]>) -> bool {
    for problem in problems.unwrap_or_default() {
        tracing::warn!(kind, name, %problem, "cannot be captured");
    }
    problems.is_none()
}
