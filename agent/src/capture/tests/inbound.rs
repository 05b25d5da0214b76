//! What comes to a pod.

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::ground::{Ground, NODE, POD, at, original, talk};
use super::proxy::pod_with;
use crate::capture::wire::Given;

#[test]
fn a_pod_sees_its_callers_address_though_the_proxy_that_connects_has_no_capability() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let mut told = proxy.capture(pod_with(&[], &[8080])).unwrap();
    for (n, given) in [Given::Inbound4, Given::Inbound6].into_iter().enumerate() {
        let called = at(POD[n], 8080);
        let service = ground.pod.listen(called);
        let listener = told.listener(given);
        let caller = ground.node.connect(called).unwrap();
        let (accepted, from) = listener.accept();
        assert_eq!(original(&accepted), called);
        assert_eq!(from, caller.local_addr().unwrap());
        talk(&caller, &accepted);

        let socket = proxy.socket(n == 1, true);
        // A thread of the test's that may do nothing special.
        let connected = std::thread::spawn(move || {
            let nothing = CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            set_capabilities(None, nothing).unwrap();
            socket.bind(&at(NODE[n], 0).into()).unwrap();
            socket.connect(&called.into()).unwrap();
            socket
        });
        let socket = connected.join().unwrap();
        let (served, from) = service.accept();
        assert_eq!(from.ip(), at(NODE[n], 0).ip());
        talk(&socket.into(), &served);
        assert!(service.is_quiet());
    }
}

#[test]
fn other_ports_and_a_pods_calls_to_itself_are_left_alone() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let _told = proxy.capture(pod_with(&[], &[8080])).unwrap();
    for (from, port) in [(&ground.node, 8081), (&ground.pod, 8080)] {
        let service = ground.pod.listen(at(POD[0], port));
        let caller = from.connect(at(POD[0], port)).unwrap();
        let (served, _) = service.accept();
        talk(&caller, &served);
    }
}

#[test]
fn inbound_ports_come_and_go_and_open_connections_stay() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let told = proxy.capture(pod_with(&[], &[])).unwrap();
    assert_eq!(told.given(), [Given::Outbound4, Given::Outbound6]);
    assert!(!ground.pod.rules().contains("prerouting"));

    let mut told = proxy.capture(pod_with(&[], &[8080])).unwrap();
    assert_eq!(told.given(), [Given::Inbound4, Given::Inbound6]);
    let listener = told.listener(Given::Inbound4);
    let called = at(POD[0], 8080);
    let service = ground.pod.listen(called);
    let caller = ground.node.connect(called).unwrap();
    let (accepted, _) = listener.accept();
    let socket = proxy.socket(false, true);
    socket.bind(&at(NODE[0], 0).into()).unwrap();
    socket.connect(&called.into()).unwrap();
    let (served, _) = service.accept();
    let socket = socket.into();

    proxy.capture(pod_with(&[], &[])).unwrap();
    let direct = ground.node.connect(called).unwrap();
    let (direct_served, _) = service.accept();
    talk(&direct, &direct_served);
    talk(&caller, &accepted);
    talk(&socket, &served);

    // The proxy has the listeners still: a second pair would share their callers.
    let told = proxy.capture(pod_with(&[], &[8080])).unwrap();
    assert!(told.given().is_empty());
    let caller = ground.node.connect(called).unwrap();
    let (accepted, _) = listener.accept();
    talk(&caller, &accepted);
}

#[test]
fn replies_are_routed_as_long_as_one_of_two_instances_needs_it() {
    let Some(ground) = Ground::make() else { return };
    let old = ground.capture();
    let mut config = ground.config();
    config.instance = "other".to_owned();
    config.socket = ground.directory.path().join("other.sock");
    let new = ground.capture_as(config);
    let (mut old_proxy, mut new_proxy) = (old.proxy(), new.proxy());
    let routed = || {
        ["-4", "-6"].map(|family| {
            let rules = ground.pod.says(&format!("ip {family} rule"));
            rules.contains("fwmark 0x3052")
        })
    };
    let _listeners = old_proxy.capture(pod_with(&[], &[8080])).unwrap();
    let _others = new_proxy.capture(pod_with(&[], &[8080])).unwrap();
    old_proxy.release("pod");
    assert_eq!(routed(), [true; 2]);
    assert!(ground.pod.rules().contains("table ip weir_other"));
    assert!(!ground.pod.rules().contains("table ip weir_test"));
    new_proxy.release("pod");
    assert_eq!(routed(), [false; 2]);
}
