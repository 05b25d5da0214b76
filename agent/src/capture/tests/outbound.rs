//! What a pod connects to.

use super::ground::{Ground, NODE, POD, SERVICE, at, eventually, original, talk};
use super::proxy::pod_with;
use crate::capture::wire::Given;

#[test]
fn a_captured_connection_comes_to_the_proxy_and_goes_on_from_the_pod() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let services = SERVICE.map(|address| at(address, 80));
    let mut told = proxy.capture(pod_with(&services, &[])).unwrap();
    assert_eq!(told.given(), [Given::Outbound4, Given::Outbound6]);
    for (n, given) in [Given::Outbound4, Given::Outbound6].into_iter().enumerate() {
        let service = ground.node.listen(services[n]);
        let listener = told.listener(given);
        let application = ground.pod.connect(services[n]).unwrap();
        let (accepted, _) = listener.accept();
        assert_eq!(original(&accepted), services[n]);
        assert_eq!(application.peer_addr().unwrap(), services[n]);
        talk(&application, &accepted);
        assert!(service.is_quiet(), "it went past the proxy");

        // The proxy's own socket is not redirected, and is the pod's.
        let socket = proxy.socket(n == 1, false);
        socket.connect(&services[n].into()).unwrap();
        let (served, from) = service.accept();
        assert_eq!(from.ip(), at(POD[n], 0).ip());
        talk(&socket.into(), &served);
        assert!(listener.is_quiet());
    }
    // Once for each family: the proxy's own were not counted either.
    assert_eq!(ground.pod.rules().matches("counter packets 1").count(), 2);
}

#[test]
fn what_is_not_asked_for_never_meets_the_proxy() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let services = SERVICE.map(|address| at(address, 80));
    let mut told = proxy.capture(pod_with(&services, &[])).unwrap();
    let listeners = [Given::Outbound4, Given::Outbound6].map(|given| told.listener(given));
    for other in [
        at(SERVICE[0], 81),
        at(SERVICE[1], 81),
        at(NODE[0], 80),
        at(NODE[1], 80),
    ] {
        let service = ground.node.listen(other);
        let application = ground.pod.connect(other).unwrap();
        let (served, _) = service.accept();
        talk(&application, &served);
    }
    assert!(listeners.iter().all(super::ground::Server::is_quiet));
    assert!(!ground.pod.rules().contains("counter packets 1"));
    // Another namespace has no rule at all.
    assert_eq!(ground.node.rules(), "");
}

#[test]
fn a_change_leaves_open_connections_alone() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let [first, second] = [80, 81].map(|port| at(SERVICE[0], port));
    let mut told = proxy.capture(pod_with(&[first], &[])).unwrap();
    let listener = told.listener(Given::Outbound4);
    let service = ground.node.listen(second);
    let direct = ground.pod.connect(second).unwrap();
    let (served, _) = service.accept();
    let captured = ground.pod.connect(first).unwrap();
    let (accepted, _) = listener.accept();

    let told = proxy.capture(pod_with(&[second], &[])).unwrap();
    assert_eq!(told.given(), [], "the proxy has its listeners");
    talk(&direct, &served);
    talk(&captured, &accepted);
    let moved = ground.pod.connect(second).unwrap();
    let (accepted, _) = listener.accept();
    assert_eq!(original(&accepted), second);
    talk(&moved, &accepted);
    let service = ground.node.listen(first);
    let untouched = ground.pod.connect(first).unwrap();
    let (served, _) = service.accept();
    talk(&untouched, &served);
}

#[test]
fn thousands_of_addresses_are_captured_at_once_and_exchanged_at_once() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let addresses = |third: u8| -> Vec<_> {
        (0..16_384_u16)
            .map(|n| at(&format!("10.{third}.{}.{}", n / 256, n % 256), 80))
            .collect()
    };
    proxy.capture(pod_with(&addresses(7), &[])).unwrap();
    proxy.capture(pod_with(&addresses(8), &[])).unwrap();
    let rules = ground.pod.rules();
    assert_eq!(rules.matches("10.8.").count(), 16_384);
    assert_eq!(rules.matches("10.7.").count(), 0);
    let mut more = addresses(9);
    more.push(at("10.10.0.1", 80));
    let refused = proxy.capture(pod_with(&more, &[])).err().unwrap();
    assert_eq!(refused, "16385 addresses to redirect, more than 16384");
}

#[test]
fn who_connects_to_the_proxys_port_directly_is_refused() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let mut told = proxy
        .capture(pod_with(&[at(SERVICE[0], 80)], &[8080]))
        .unwrap();
    let listeners = [
        Given::Outbound4,
        Given::Outbound6,
        Given::Inbound4,
        Given::Inbound6,
    ]
    .map(|given| told.listener(given));
    let refused = |connected: std::io::Result<_>| {
        let error = connected.expect_err("refused");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    };
    refused(ground.pod.connect(at("127.0.0.1", 15081)));
    refused(ground.pod.connect(at("::1", 15081)));
    for address in POD {
        refused(ground.node.connect(at(address, 15086)));
        refused(ground.pod.connect(at(address, 15086)));
    }
    assert!(listeners.iter().all(super::ground::Server::is_quiet));
}

#[test]
fn a_pod_without_ipv6_has_no_listener_for_it() {
    let Some(ground) = Ground::make() else { return };
    ground
        .pod
        .says("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1");
    let running = ground.capture();
    let mut proxy = running.proxy();
    let mut pod = pod_with(&SERVICE.map(|address| at(address, 80)), &[8080]);
    pod.addresses.truncate(1);
    let told = proxy.capture(pod).unwrap();
    assert_eq!(told.given(), [Given::Outbound4, Given::Inbound4]);
    assert!(!ground.pod.rules().contains("table ip6"));
}

#[test]
fn a_released_pod_has_nothing_of_ours_and_can_be_captured_again() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    for _ in 0..3 {
        let pod = pod_with(&[at(SERVICE[0], 80)], &[8080]);
        let told = proxy.capture(pod).unwrap();
        assert_eq!(told.given().len(), 4);
        assert!(ground.pod.says("ip rule").contains("fwmark 0x3052"));
        assert!(ground.pod.says("ip -6 rule").contains("fwmark 0x3052"));
        proxy.release("pod");
        eventually("no rules", || ground.pod.rules().is_empty().then_some(()));
        for family in ["-4", "-6"] {
            assert!(
                !ground
                    .pod
                    .says(&format!("ip {family} rule"))
                    .contains("fwmark")
            );
            let routes = ground
                .pod
                .says(&format!("ip {family} route show table 15081"));
            assert!(!routes.contains("local"), "{routes}");
        }
    }
}
