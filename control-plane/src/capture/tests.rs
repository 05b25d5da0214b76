use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fastrand::Rng;
use prost::Message as _;
use weir_proto::v1alpha1 as proto;

use super::*;
use crate::push::{OfNodes, ResourceId};
use crate::sources::pods::Node;

fn pod(address: &str) -> Pod {
    Pod {
        uid: "u".to_owned(),
        addresses: vec![address.parse().unwrap()],
        service_account: "checkout".to_owned(),
        workload: "Deployment/checkout".to_owned(),
        ..Pod::default()
    }
}

fn put(objects: &mut Objects, node: &str, name: &str, pod: Pod) {
    let on_node = objects.pods.entry(node.into()).or_default();
    on_node.insert(name.into(), Arc::new(pod));
}

fn take(objects: &mut Objects, node: &str, name: &str) {
    if let Some(on_node) = objects.pods.get_mut(node) {
        on_node.remove(name);
    }
}

fn label(objects: &mut Objects, namespace: &str, word: &str) {
    let labels = [(CAPTURE.to_owned(), word.to_owned())].into();
    objects
        .namespaces
        .insert(namespace.to_owned(), Arc::new(labels));
}

/// Names of what each node's agent is told.
fn told(resources: &OfNodes) -> BTreeMap<&str, Vec<&str>> {
    resources
        .iter()
        .map(|(node, of_node)| (&**node, of_node.keys().map(|id| &*id.name).collect()))
        .collect()
}

#[test]
fn an_agent_is_told_of_its_node_and_of_the_pods_on_it_that_may_be_captured() {
    let mut objects = Objects::default();
    put(&mut objects, "one", "shop/checkout", pod("10.1.0.1"));
    put(&mut objects, "two", "shop/payments", pod("10.1.0.2"));
    put(&mut objects, "one", "kube-system/dns", pod("10.1.0.3"));
    put(&mut objects, "one", "weir-system/weir", pod("10.1.0.4"));
    put(&mut objects, "one", "quiet/app", pod("10.1.0.5"));
    label(&mut objects, "quiet", "disabled");
    let others = [
        (
            WhyNot::HostNetwork,
            Pod {
                host_network: true,
                ..Pod::default()
            },
        ),
        (
            WhyNot::OptedOut,
            Pod {
                opted_out: true,
                ..pod("10.1.0.6")
            },
        ),
        (
            WhyNot::OtherMesh(Mesh::Istio),
            Pod {
                mesh: Some(Mesh::Istio),
                ..pod("10.1.0.7")
            },
        ),
        (WhyNot::NoAddress, Pod::default()),
    ];
    for (n, (why, pod)) in others.into_iter().enumerate() {
        let name = format!("shop/other-{n}");
        assert_eq!(why_not(&objects, &name, &pod), Some(why));
        put(&mut objects, "one", &name, pod);
    }
    let node = Node {
        zone: "a".to_owned(),
        addresses: Vec::new(),
    };
    objects.nodes.insert("one".into(), Arc::new(node));

    let (mut resources, callers) = (OfNodes::default(), Callers::default());
    assert!(renew(
        &Objects::default(),
        &objects,
        &mut resources,
        &callers
    ));
    let expected = [
        ("one", vec!["one", "shop/checkout"]),
        ("two", vec!["shop/payments"]),
    ];
    assert_eq!(told(&resources), expected.into());
    assert!(!renew(&objects, &objects, &mut resources, &callers));
}

#[test]
fn a_namespace_takes_its_pods_back_and_gives_them_again() {
    let mut before = Objects::default();
    put(&mut before, "one", "shop/checkout", pod("10.1.0.1"));
    put(&mut before, "one", "other/app", pod("10.1.0.2"));
    let (mut resources, callers) = (OfNodes::default(), Callers::default());
    renew(&Objects::default(), &before, &mut resources, &callers);
    for (word, expected) in [
        ("disabled", vec!["other/app"]),
        ("enabled", vec!["other/app", "shop/checkout"]),
    ] {
        let mut objects = before.clone();
        label(&mut objects, "shop", word);
        renew(&before, &objects, &mut resources, &callers);
        assert_eq!(told(&resources)["one"], expected, "{word}");
        before = objects;
    }
}

#[test]
fn an_address_is_told_with_who_has_it_and_goes_from_one_pod_to_the_next() {
    let address: IpAddr = "10.1.0.1".parse().unwrap();
    let (mut resources, callers) = (OfNodes::default(), Callers::default());
    let mut first = Objects::default();
    put(&mut first, "one", "shop/checkout-a", pod("10.1.0.1"));
    let node = Node {
        zone: String::new(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
    };
    first.nodes.insert("one".into(), Arc::new(node));
    renew(&Objects::default(), &first, &mut resources, &callers);
    let caller = callers.caller(address);
    let expected = proto::Caller {
        known: true,
        namespace: "shop".to_owned(),
        service_account: "checkout".to_owned(),
        workload: "Deployment/checkout".to_owned(),
        pod: "checkout-a".to_owned(),
    };
    assert_eq!(caller, expected);
    let mapped: IpAddr = "::ffff:10.1.0.1".parse().unwrap();
    assert_eq!(callers.caller(mapped), expected);
    // All that use a node's network have its address.
    let of_node = callers.caller("192.0.2.1".parse().unwrap());
    assert_eq!(of_node, proto::Caller::default());

    // The next one has it before the first one's end is told.
    let mut both = first.clone();
    put(&mut both, "two", "shop/checkout-b", pod("10.1.0.1"));
    renew(&first, &both, &mut resources, &callers);
    let mut second = both.clone();
    take(&mut second, "one", "shop/checkout-a");
    renew(&both, &second, &mut resources, &callers);
    assert_eq!(callers.caller(address).pod, "checkout-b");
    let mut none = second.clone();
    take(&mut none, "two", "shop/checkout-b");
    renew(&second, &none, &mut resources, &callers);
    assert!(!callers.caller(address).known);
}

#[test]
fn what_is_told_after_any_changes_is_what_would_be_told_from_nothing() {
    for seed in 0..30 {
        let mut rng = Rng::with_seed(seed);
        let mut objects = Objects::default();
        let (mut resources, callers) = (OfNodes::default(), Callers::default());
        for step in 0..80 {
            let before = objects.clone();
            for _ in 0..rng.u8(1..4) {
                let node = ["one", "two"][rng.usize(..2)];
                let name = ["shop/a", "shop/b", "quiet/a", "kube-system/a"][rng.usize(..4)];
                let mut pod = pod(&format!("10.1.0.{}", rng.u8(1..250)));
                pod.opted_out = rng.u8(..4) == 0;
                match rng.u8(..6) {
                    0 => take(&mut objects, node, name),
                    1 => drop(objects.pods.remove(node)),
                    2 => label(&mut objects, "quiet", ["disabled", ""][rng.usize(..2)]),
                    3 => {
                        let zone = ["a", "b"][rng.usize(..2)].to_owned();
                        let node_now = Node {
                            zone,
                            addresses: Vec::new(),
                        };
                        objects.nodes.insert(node.into(), Arc::new(node_now));
                    }
                    _ => put(&mut objects, node, name, pod),
                }
            }
            renew(&before, &objects, &mut resources, &callers);
            let mut anew = OfNodes::default();
            renew(
                &Objects::default(),
                &objects,
                &mut anew,
                &Callers::default(),
            );
            assert_eq!(resources, anew, "seed {seed}, step {step}");
        }
    }
}

#[test]
fn what_did_not_change_stays_the_very_same() {
    let mut before = Objects::default();
    put(&mut before, "one", "shop/a", pod("10.1.0.1"));
    put(&mut before, "one", "shop/b", pod("10.1.0.2"));
    let (mut resources, callers) = (OfNodes::default(), Callers::default());
    renew(&Objects::default(), &before, &mut resources, &callers);
    let earlier = resources.clone();
    let mut objects = before.clone();
    put(&mut objects, "one", "shop/b", pod("10.1.0.3"));
    renew(&before, &objects, &mut resources, &callers);
    let (earlier, now) = (&earlier["one"], &resources["one"]);
    let changed: BTreeSet<ResourceId> = earlier
        .differences(now, Arc::ptr_eq)
        .into_iter()
        .map(|(id, _, _)| id.clone())
        .collect();
    let changed: Vec<&str> = changed.iter().map(|id| &*id.name).collect();
    assert_eq!(changed, ["shop/b"]);
}

#[test]
fn what_is_sent_of_a_pod_can_be_read() {
    let mut objects = Objects::default();
    put(&mut objects, "one", "shop/checkout", pod("fd00::1"));
    put(&mut objects, "one", "Shop/wrong", pod("10.1.0.2"));
    let (mut resources, callers) = (OfNodes::default(), Callers::default());
    renew(&Objects::default(), &objects, &mut resources, &callers);
    let of_node = &resources["one"];
    assert_eq!(of_node.len(), 1, "one that no agent could read is not sent");
    let (id, encoded) = of_node.iter().next().unwrap();
    let sent = encoded.to_wire(id);
    let sent = proto::Pod::decode(sent.body).unwrap();
    let read = weir_resilience::config::pod(&sent).unwrap();
    assert_eq!(read.workload, "Deployment/checkout");
    assert_eq!(read.addresses[0].to_string(), "fd00::1");
}

#[test]
#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
fn one_pod_of_many_costs_one_pod() {
    let mut before = Objects::default();
    for n in 0..5_000 {
        let pod = pod(&format!("10.{}.{}.1", n / 250, n % 250));
        put(
            &mut before,
            &format!("node-{}", n % 100),
            &format!("shop/app-{n}"),
            pod,
        );
    }
    let (mut resources, callers) = (OfNodes::default(), Callers::default());
    let start = tokio::time::Instant::now();
    renew(&Objects::default(), &before, &mut resources, &callers);
    println!("5000 pods: {:?}", start.elapsed());
    let earlier = resources.clone();
    let mut objects = before.clone();
    put(&mut objects, "node-7", "shop/app-7", pod("10.99.0.1"));
    let start = tokio::time::Instant::now();
    renew(&before, &objects, &mut resources, &callers);
    println!("one of them: {:?}", start.elapsed());
    let changed = earlier.differences(&resources, crate::sources::Shared::is);
    assert_eq!(changed.len(), 1);
    assert!(callers.caller("10.99.0.1".parse().unwrap()).known);
    assert!(!callers.caller("10.0.7.1".parse().unwrap()).known);
}
