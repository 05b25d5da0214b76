//! Where requests go, and who is on a node.

use super::super::*;
use super::full::full;
use crate::config::Probe;

fn said<T: std::fmt::Debug>(decoded: Result<T, Vec<Problem>>) -> Vec<String> {
    let problems = decoded.unwrap_err();
    problems.iter().map(Problem::to_string).collect()
}

#[test]
fn endpoints_are_decoded_or_every_bad_address_is_named() {
    let endpoint = |address: &str| proto::Endpoint {
        address: address.to_owned(),
        zone: "a".to_owned(),
        ..Default::default()
    };
    let mut message = proto::Endpoints {
        namespace: "shop".to_owned(),
        name: "payments".to_owned(),
        ports: vec![proto::PortEndpoints {
            port: 80,
            endpoints: vec![endpoint("10.0.0.1:8080"), endpoint("[fd00::1]:8080")],
        }],
    };
    let decoded = endpoints(&message).unwrap();
    assert_eq!(decoded.ports[0].1[1].address.to_string(), "[fd00::1]:8080");
    message.ports[0]
        .endpoints
        .extend([endpoint("10.0.0.1"), endpoint("10.0.0.1:0")]);
    let problems = endpoints(&message).unwrap_err();
    let paths: Vec<_> = problems
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(
        paths,
        [
            "ports[0].endpoints[2].address",
            "ports[0].endpoints[3].address"
        ]
    );
}

#[test]
fn what_an_endpoint_is_good_for_is_decoded() {
    let endpoint = proto::Endpoint {
        address: "10.0.0.1:8080".to_owned(),
        node: "one".to_owned(),
        terminating: true,
        for_zones: vec!["a".to_owned()],
        for_nodes: vec!["one".to_owned()],
        ..Default::default()
    };
    let mut message = proto::Endpoints {
        namespace: "shop".to_owned(),
        name: "payments".to_owned(),
        ports: vec![proto::PortEndpoints {
            port: 80,
            endpoints: vec![endpoint],
        }],
    };
    let decoded = endpoints(&message).unwrap();
    let endpoint = &decoded.ports[0].1[0];
    assert!(endpoint.terminating && !endpoint.unready);
    assert_eq!(
        (&endpoint.for_zones, &endpoint.for_nodes),
        (&vec!["a".to_owned()], &vec!["one".to_owned()])
    );

    let endpoint = &mut message.ports[0].endpoints[0];
    endpoint.unready = true;
    endpoint.for_zones = vec!["a".to_owned(); 9];
    assert_eq!(
        said(endpoints(&message)),
        [
            "ports[0].endpoints[0].for_zones: 9 entries; at most 8 are allowed",
            "ports[0].endpoints[0].terminating: one that is not ready does not answer any more: leave terminating out, or unready",
        ]
    );
}

#[test]
fn addresses_of_a_service_are_decoded_or_each_bad_one_is_named() {
    let mut message = full();
    message.cluster_addresses = ["10.96.0.7", "None", "10.96.0.7"].map(str::to_owned).into();
    message.existing_connections = 7;
    assert_eq!(
        said(service(&message)),
        [
            "cluster_addresses: 3 entries; at most 2 are allowed",
            "cluster_addresses[1]: \"None\" is not an IP address; write \"10.0.0.1\" or \"fd00::1\"",
            "cluster_addresses[2]: 10.96.0.7 is given already; give it once",
            "existing_connections: 7 is not a value that this version knows",
        ]
    );
    message.cluster_addresses.clear();
    message.existing_connections = proto::ExistingConnections::Unspecified.into();
    let headless = service(&message).unwrap();
    assert!(headless.cluster_addresses.is_empty());
    assert_eq!(headless.existing_connections, None);
}

fn checkout() -> proto::Pod {
    let probe = |port, path: &str, grpc| proto::Probe {
        port,
        path: path.to_owned(),
        grpc,
    };
    proto::Pod {
        namespace: "shop".to_owned(),
        name: "checkout-6d4cf56db6-x7k2p.v1".to_owned(),
        uid: "4c2b8f4e-5a52-4d0f-9a39-5d4c8f1a7b10".to_owned(),
        addresses: vec!["10.1.2.3".to_owned(), "fd00::3".to_owned()],
        service_account: "checkout".to_owned(),
        workload: "Deployment/checkout".to_owned(),
        probes: vec![
            probe(8080, "/healthz?full=1", false),
            probe(9090, "", true),
            probe(7070, "", false),
        ],
    }
}

#[test]
fn a_pod_is_decoded_into_what_it_says() {
    let decoded = pod(&checkout()).unwrap();
    assert_eq!(decoded.name, "checkout-6d4cf56db6-x7k2p.v1");
    assert_eq!(decoded.addresses[1].to_string(), "fd00::3");
    assert_eq!(decoded.workload, "Deployment/checkout");
    let Probe::Http { port, path } = &decoded.probes[0] else {
        panic!("{:?}", decoded.probes[0]);
    };
    assert_eq!((port.get(), path.as_str()), (8080, "/healthz?full=1"));
    assert!(matches!(decoded.probes[1], Probe::Grpc { .. }));
    assert!(matches!(decoded.probes[2], Probe::Tcp { .. }));
    let ports: Vec<_> = (decoded.probes.iter())
        .map(|probe| probe.port().get())
        .collect();
    assert_eq!(ports, [8080, 9090, 7070]);
}

#[test]
fn every_problem_of_a_pod_is_named() {
    let mut message = checkout();
    message.namespace = "Shop".to_owned();
    message.name = "checkout-.x".to_owned();
    message.uid.clear();
    message.addresses = vec!["10.1.2.300".to_owned()];
    message.workload = "checkout".to_owned();
    message.probes[0].port = 0;
    message.probes[1].path = "/".to_owned();
    assert_eq!(
        said(pod(&message)),
        [
            "namespace: \"Shop\" is not a DNS label; write 1 to 63 of a-z, 0-9 and -, not - first or last",
            "name: \"checkout-.x\" is no DNS name; write 1 to 253 of a-z, 0-9, - and ., each part with a-z or 0-9 first and last",
            "uid: must have 1 to 64 characters",
            "addresses[0]: \"10.1.2.300\" is not an IP address; write \"10.0.0.1\" or \"fd00::1\"",
            "workload: \"checkout\" is no kind and name; write \"Deployment/checkout\"",
            "probes[0].port: 0 is not a port; write 1 to 65535",
            "probes[1].path: a probe of gRPC has none: leave it out, or grpc",
        ]
    );
    message = checkout();
    message.addresses.clear();
    assert_eq!(
        said(pod(&message)),
        ["addresses: missing; without one its network namespace cannot be found"]
    );
}

#[test]
fn a_node_is_decoded_or_every_problem_is_named() {
    let mut message = proto::Node {
        name: "node-1.example".to_owned(),
        zone: "a".to_owned(),
        addresses: vec!["192.0.2.1".to_owned(), "2001:db8::1".to_owned()],
    };
    let decoded = node(&message).unwrap();
    assert_eq!(decoded.zone, "a");
    assert_eq!(decoded.addresses[0].to_string(), "192.0.2.1");
    message.name.clear();
    message.addresses.push("node-1".to_owned());
    assert_eq!(said(node(&message)).len(), 2);
}
