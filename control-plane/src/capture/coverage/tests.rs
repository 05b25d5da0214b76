use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use weir_proto::v1alpha1 as proto;

use super::super::renew;
use super::*;
use crate::ledger::{Ledger, Presence};
use crate::model::Compiler;
use crate::push::{Holding, OfNodes};
use crate::sources::files::from_text;
use crate::sources::pods::{Mesh, Node, Pod};

/// A Service with four endpoints, policies for either side of it, and a
/// consumer's.
const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: payments, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: payments-1, namespace: shop, labels: {kubernetes.io/service-name: payments}}
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}, {addresses: [10.1.0.3]}, {addresses: [192.0.2.1]}]
---
apiVersion: weir.dev/v1alpha1
kind: ResiliencePolicy
metadata: {name: callers, namespace: shop}
spec: {targetRefs: [{kind: Service, name: payments}], timeouts: {}}
---
apiVersion: weir.dev/v1alpha1
kind: ResiliencePolicy
metadata: {name: pods, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: payments}]
  bulkheads: [{name: default, maxConcurrent: 4}]
---
apiVersion: weir.dev/v1alpha1
kind: ResiliencePolicy
metadata: {name: consumer, namespace: web}
spec: {targetRefs: [{kind: Service, name: payments, namespace: shop}], retries: {}}
---
apiVersion: weir.dev/v1alpha1
kind: ResiliencePolicy
metadata: {name: vain, namespace: shop}
spec: {targetRefs: [{kind: Service, name: gone}], timeouts: {}}
";

struct Shop {
    objects: Objects,
    ledger: Arc<Ledger>,
    agents: Vec<Presence>,
}

impl Shop {
    /// Pods behind the Service on two nodes, and no agent.
    fn new() -> Shop {
        let mut objects = from_text(Path::new("shop.yaml"), SHOP, Timestamp::UNIX_EPOCH);
        assert!(objects.problems.is_empty(), "{:?}", objects.problems);
        objects.agents = Some(["one", "two"].map(str::to_owned).into());
        let mut shop = Shop {
            objects,
            ledger: Arc::default(),
            agents: Vec::new(),
        };
        for (n, node) in ["one", "one", "two"].into_iter().enumerate() {
            shop.pod(node, &format!("payments-{}", n + 1), |_| {});
        }
        shop
    }

    /// The Pod with the address of its number.
    fn pod(&mut self, node: &str, name: &str, change: impl FnOnce(&mut Pod)) {
        let number = name.rsplit_once('-').unwrap().1;
        let mut pod = Pod {
            addresses: vec![format!("10.1.0.{number}").parse().unwrap()],
            ..Pod::default()
        };
        change(&mut pod);
        let on_node = self.objects.pods.entry(node.into()).or_default();
        on_node.insert(format!("shop/{name}").into(), Arc::new(pod));
    }

    fn agent(&mut self, node: &str, captures: bool) {
        let holding = Holding::default();
        let agent = self.ledger.connect(node, &holding, captures).unwrap();
        self.agents.push(agent);
    }

    fn tells(&self, node: &str, coverage: &proto::Coverage) {
        self.ledger.coverage().take(node, 1, coverage);
    }

    /// What is said of a policy.
    fn says(&self, namespace: &str, name: &str) -> Option<String> {
        let objects = Arc::new(self.objects.clone());
        let mut compiler = Compiler::default();
        compiler.update(&objects, Timestamp::UNIX_EPOCH);
        let callers = Callers::default();
        renew(
            &Objects::default(),
            &objects,
            &mut OfNodes::default(),
            &callers,
        );
        let (nodes, told) = (self.ledger.nodes(), self.ledger.coverage().told());
        let scene = Scene::new(&objects, compiler.compiled(), &callers, &told, &nodes);
        let covered = scene.covered(&(namespace.to_owned(), name.to_owned()))?;
        Some(format!(
            "{:?}/{}: {}",
            covered.status, covered.reason, covered.message
        ))
    }

    /// The same of one that something is said of.
    fn of(&self, name: &str) -> String {
        self.says("shop", name).unwrap()
    }
}

fn uncaptured(namespace: &str, name: &str) -> proto::UncapturedPod {
    proto::UncapturedPod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        reason: "no network namespace holds 10.1.0.9".to_owned(),
    }
}

#[test]
fn nothing_is_said_without_a_cluster_or_where_there_is_nothing_to_capture_for() {
    let mut shop = Shop::new();
    assert_eq!(shop.says("shop", "vain"), None);
    assert_eq!(shop.says("shop", "no-such-policy"), None);
    shop.objects.agents = None;
    assert_eq!(shop.says("shop", "callers"), None);
}

#[test]
fn where_no_agent_captures_it_is_unknown_what_is_covered() {
    let mut shop = Shop::new();
    let says = "Unknown/NoCapture: no agent captures connections: those alone are protected that callers make through an agent";
    assert_eq!(shop.of("callers"), says);
    shop.agent("one", false);
    assert_eq!(shop.of("callers"), says);
    shop.agent("two", true);
    shop.agents.pop();
    assert_eq!(
        shop.of("callers"),
        says,
        "one that is away does not capture"
    );
}

#[test]
fn a_policy_is_covered_once_every_agent_has_told_that_it_is() {
    let mut shop = Shop::new();
    shop.agent("one", true);
    shop.agent("two", true);
    shop.tells("one", &proto::Coverage::default());
    assert_eq!(
        shop.of("callers"),
        "Unknown/Pending: 1 of 2 agents have not told yet what they capture"
    );
    shop.tells("two", &proto::Coverage::default());
    assert_eq!(shop.of("callers"), "True/Covered: captured on 2 nodes");
    shop.agent("three", false);
    assert_eq!(
        shop.of("callers"),
        "False/PartiallyCovered: 1 of 3 agents do not capture"
    );
}

#[test]
fn the_pods_behind_a_service_are_counted_one_by_one_with_the_reason_of_each() {
    let mut shop = Shop::new();
    for node in ["one", "two"] {
        shop.agent(node, true);
        shop.tells(node, &proto::Coverage::default());
    }
    // 192.0.2.1 is nobody's yet.
    assert_eq!(
        shop.of("pods"),
        "False/PartiallyCovered: 1 of 4 pods behind it are not captured: 1 no pods of this cluster"
    );
    let node = Node {
        addresses: vec!["192.0.2.1".parse().unwrap()],
        ..Node::default()
    };
    shop.objects.nodes.insert("one".into(), Arc::new(node));
    shop.pod("one", "payments-1", |pod| pod.mesh = Some(Mesh::Istio));
    shop.pod("one", "payments-2", |pod| pod.opted_out = true);
    assert_eq!(
        shop.of("pods"),
        "False/PartiallyCovered: 3 of 4 pods behind it are not captured: 1 hostNetwork, 1 other mesh (istio), 1 weir.dev/capture: disabled"
    );
    assert_eq!(shop.of("callers"), "True/Covered: captured on 2 nodes");

    let mut shop = Shop::new();
    shop.agent("one", true);
    let pods = vec![uncaptured("shop", "payments-2")];
    shop.tells(
        "one",
        &proto::Coverage {
            pods,
            ..proto::Coverage::default()
        },
    );
    assert_eq!(
        shop.of("pods"),
        "False/PartiallyCovered: 3 of 4 pods behind it are not captured: 1 by word of their agents, 1 no pods of this cluster, 1 on nodes without capture"
    );
}

#[test]
fn all_pods_behind_a_service_may_be_captured() {
    let mut shop = Shop::new();
    shop.objects.slices.clear();
    shop.agent("one", true);
    shop.tells("one", &proto::Coverage::default());
    assert_eq!(shop.of("pods"), "True/Covered: captured on 1 node");
    let slice = SHOP.replace(", {addresses: [192.0.2.1]}", "");
    let slices = from_text(Path::new("shop.yaml"), &slice, Timestamp::UNIX_EPOCH).slices;
    shop.objects.slices = slices;
    shop.agent("two", true);
    shop.tells("two", &proto::Coverage::default());
    assert_eq!(
        shop.of("pods"),
        "True/Covered: captured on 2 nodes, and 3 of 3 pods behind it are"
    );
}

#[test]
fn what_agents_cannot_capture_is_told_and_what_went_past_them_counted() {
    let mut shop = Shop::new();
    let open = |connections| {
        vec![proto::OpenConnections {
            namespace: "shop".to_owned(),
            service: "payments".to_owned(),
            connections,
        }]
    };
    shop.agent("one", true);
    shop.agent("two", true);
    let of_one = proto::Coverage {
        pods: vec![uncaptured("shop", "orders-1"), uncaptured("web", "front-1")],
        connections: open(8),
        failure: String::new(),
    };
    shop.tells("one", &of_one);
    let of_two = proto::Coverage {
        connections: open(4),
        failure: "nftables cannot be used: the kernel is older than 5.12".to_owned(),
        ..proto::Coverage::default()
    };
    shop.tells("two", &of_two);
    assert_eq!(
        shop.of("callers"),
        "False/PartiallyCovered: nothing is captured on 1 node, two for one: nftables cannot be used: the kernel is older than 5.12; \
         2 pods may call and cannot be captured, shop/orders-1 for one: no network namespace holds 10.1.0.9; \
         12 connections on 2 nodes were open before"
    );
    // A consumer's policy is about its own namespace's calls.
    let consumers = shop.says("web", "consumer").unwrap();
    assert!(
        consumers.contains("1 pod may call and cannot be captured, web/front-1"),
        "{consumers}"
    );
    // An agent that is away has no say.
    shop.agents.remove(1);
    let alone = shop.of("callers");
    assert!(
        alone.ends_with("8 connections on 1 node were open before"),
        "{alone}"
    );
}
