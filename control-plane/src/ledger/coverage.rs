//! What agents tell of capture on their nodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use weir_proto::v1alpha1 as proto;

use super::{MAX_NODES, lock};
use crate::sources::Key;

/// Pods and services that one agent may name; it sends no more.
const MAX_PODS: usize = 200;
const MAX_CONNECTIONS: usize = 1_000;
/// And all agents together.
const MAX_ENTRIES: usize = 200_000;
/// Characters of a name, and of a reason.
const MAX_NAME: usize = 253;
const MAX_REASON: usize = 256;

/// See the module. The last word of each node; it outlives the node's stream, which
/// is opened anew from time to time.
#[derive(Default)]
pub(crate) struct Coverage(Mutex<Told>);

/// What was told, by what it is asked for.
#[derive(Debug, Default)]
pub(crate) struct Told {
    nodes: HashMap<String, Node>,
    /// By "namespace/name": the node and the reason.
    pods: BTreeMap<String, (String, String)>,
    /// Past Weir, by service and node.
    connections: HashMap<Key, BTreeMap<String, u32>>,
    /// In `pods` and `connections`.
    entries: usize,
    news: bool,
}

/// Where the words of one node are.
#[derive(Debug, Default)]
struct Node {
    stream: u64,
    failure: String,
    pods: Vec<String>,
    services: Vec<Key>,
}

impl Coverage {
    /// What all have told.
    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.0)
    }

    /// Whether any of it is new since the last call.
    pub(super) fn news(&self) -> bool {
        std::mem::take(&mut self.told().news)
    }

    /// The agent of `node` tells all of it anew. What is too much is left out.
    pub(crate) fn take(&self, node: &str, stream: u64, coverage: &proto::Coverage) {
        let mut told = self.told();
        let told = &mut *told;
        if told.nodes.get(node).is_some_and(|of| of.stream > stream)
            || (told.nodes.len() >= MAX_NODES && !told.nodes.contains_key(node))
        {
            return;
        }
        told.drop_node(node);
        let mut of_node = Node {
            stream,
            failure: cut(&coverage.failure, MAX_REASON),
            ..Node::default()
        };
        for pod in coverage.pods.iter().take(MAX_PODS) {
            let name = format!(
                "{}/{}",
                cut(&pod.namespace, MAX_NAME),
                cut(&pod.name, MAX_NAME)
            );
            if told.entries >= MAX_ENTRIES || told.pods.contains_key(&name) {
                continue;
            }
            told.entries += 1;
            let reason = cut(&pod.reason, MAX_REASON);
            told.pods.insert(name.clone(), (node.to_owned(), reason));
            of_node.pods.push(name);
        }
        for open in coverage.connections.iter().take(MAX_CONNECTIONS) {
            let service = (cut(&open.namespace, MAX_NAME), cut(&open.service, MAX_NAME));
            if told.entries >= MAX_ENTRIES || open.connections == 0 {
                continue;
            }
            let of_service = told.connections.entry(service.clone()).or_default();
            if of_service
                .insert(node.to_owned(), open.connections)
                .is_none()
            {
                told.entries += 1;
                of_node.services.push(service);
            }
        }
        told.nodes.insert(node.to_owned(), of_node);
        told.news = true;
    }

    /// Keeps the words of those nodes alone that are still known.
    pub(super) fn retain(&self, is_known: impl Fn(&str) -> bool) {
        let mut told = self.told();
        let gone = told.nodes.keys().filter(|node| !is_known(node));
        for node in gone.cloned().collect::<Vec<_>>() {
            told.drop_node(&node);
            told.news = true;
        }
    }
}

impl Told {
    fn drop_node(&mut self, node: &str) {
        let Some(of_node) = self.nodes.remove(node) else {
            return;
        };
        self.entries -= of_node.pods.len() + of_node.services.len();
        for pod in of_node.pods {
            self.pods.remove(&pod);
        }
        for service in of_node.services {
            if let Some(of_service) = self.connections.get_mut(&service) {
                of_service.remove(node);
                if of_service.is_empty() {
                    self.connections.remove(&service);
                }
            }
        }
    }

    /// Why nothing is captured on `node`; empty: it works. `None`: it has not told.
    pub(crate) fn failure(&self, node: &str) -> Option<&str> {
        self.nodes.get(node).map(|of_node| &*of_node.failure)
    }

    /// Pods that are not captured: name, node and reason.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let pods = self.pods.iter();
        pods.map(|(name, (node, reason))| (&**name, &**node, &**reason))
    }

    /// Whether an agent says that it does not capture the Pod `name`.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.pods.contains_key(name)
    }

    /// Connections to a service that go past Weir, by node.
    pub(crate) fn connections(&self, service: &Key) -> impl Iterator<Item = (&str, u32)> {
        let of_service = self.connections.get(service).into_iter().flatten();
        of_service.map(|(node, connections)| (&**node, *connections))
    }
}

fn cut(text: &str, max: usize) -> String {
    text.chars().take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coverage(pods: &[&str], connections: &[(&str, u32)]) -> proto::Coverage {
        let pods = pods.iter().map(|name| proto::UncapturedPod {
            namespace: "shop".to_owned(),
            name: (*name).to_owned(),
            reason: "no network namespace holds its address".to_owned(),
        });
        let connections = connections
            .iter()
            .map(|(service, connections)| proto::OpenConnections {
                namespace: "shop".to_owned(),
                service: (*service).to_owned(),
                connections: *connections,
            });
        proto::Coverage {
            pods: pods.collect(),
            connections: connections.collect(),
            failure: String::new(),
        }
    }

    fn key(name: &str) -> Key {
        ("shop".to_owned(), name.to_owned())
    }

    #[test]
    fn the_last_word_of_a_node_stands_for_all_before() {
        let coverage_of = Coverage::default();
        coverage_of.take("one", 1, &coverage(&["a", "b"], &[("payments", 3)]));
        coverage_of.take("two", 2, &coverage(&[], &[("payments", 4)]));
        assert!(coverage_of.news() && !coverage_of.news());
        let open = |service: &str| -> u32 {
            let told = coverage_of.told();
            told.connections(&key(service))
                .map(|(_, count)| count)
                .sum()
        };
        assert_eq!(open("payments"), 7);
        assert!(coverage_of.told().names("shop/b"));
        coverage_of.take("one", 1, &coverage(&["a"], &[("orders", 1)]));
        assert_eq!((open("payments"), open("orders")), (4, 1));
        assert!(!coverage_of.told().names("shop/b"));
        // A stream that was superseded has no say any more.
        coverage_of.take("one", 3, &coverage(&[], &[]));
        coverage_of.take("one", 2, &coverage(&["b"], &[]));
        assert_eq!(coverage_of.told().pods().count(), 0);
    }

    #[test]
    fn a_node_that_is_no_longer_known_leaves_nothing() {
        let all = Coverage::default();
        all.take("one", 1, &coverage(&["a"], &[("payments", 3)]));
        all.retain(|_| false);
        let told = all.told();
        assert_eq!(told.entries, 0);
        assert!(told.nodes.is_empty() && told.pods.is_empty() && told.connections.is_empty());
        assert_eq!(told.failure("one"), None);
    }

    #[test]
    fn what_agents_tell_has_an_end() {
        let all = Coverage::default();
        let names: Vec<String> = (0..MAX_PODS + 1).map(|n| n.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        all.take("one", 1, &coverage(&names, &[]));
        assert_eq!(all.told().pods().count(), MAX_PODS);
        let long = "x".repeat(1_000);
        all.take("one", 1, &coverage(&[&long], &[]));
        let told = all.told();
        let (name, _, _) = told.pods().next().unwrap();
        assert_eq!(name.len(), "shop/".len() + MAX_NAME);
    }
}
