//! Connections that were open before.

use std::io::Read as _;

use super::ground::{Ground, NODE, POD, SERVICE, at, eventually, talk};
use super::proxy::pod_with;
use crate::capture::wire::Given;

#[test]
fn a_connection_that_was_open_before_goes_on_past_the_proxy() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let services = SERVICE.map(|address| at(address, 80));
    let called = POD.map(|address| at(address, 8080));
    let mut open = Vec::new();
    for n in 0..2 {
        for (from, to, server) in [
            (&ground.pod, services[n], ground.node.listen(services[n])),
            (&ground.node, called[n], ground.pod.listen(called[n])),
        ] {
            let connected = from.connect(to).unwrap();
            open.push((connected, server.accept().0));
        }
    }
    let _told = proxy.capture(pod_with(&services, &[8080])).unwrap();
    for (one, other) in &open {
        talk(one, other);
        talk(other, one);
    }
    assert!(!ground.pod.rules().contains("counter packets 1"));
}

#[test]
fn what_goes_past_the_proxy_is_counted_and_ended_and_nothing_else() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let services = SERVICE.map(|address| at(address, 80));
    let _servers = services.map(|service| ground.node.listen(service));
    let called = POD.map(|address| at(address, 8080));
    // One for both families, as most are.
    let server = ground.pod.listen(at("::", 8080));
    let mut direct = Vec::new();
    for n in 0..2 {
        direct.push(ground.pod.connect(services[n]).unwrap());
        direct.push(ground.node.connect(called[n]).unwrap());
    }
    let mut served = vec![server.accept(), server.accept()];

    let mut told = proxy.capture(pod_with(&services, &[8080])).unwrap();
    let mut captured = Vec::new();
    for (n, (out, into)) in [
        (Given::Outbound4, Given::Inbound4),
        (Given::Outbound6, Given::Inbound6),
    ]
    .into_iter()
    .enumerate()
    {
        let (out, into) = (told.listener(out), told.listener(into));
        let application = ground.pod.connect(services[n]).unwrap();
        captured.push((application, out.accept().0));
        let caller = ground.node.connect(called[n]).unwrap();
        captured.push((caller, into.accept().0));
        // The proxy's own, to where the application would.
        let own = proxy.socket(n == 1, false);
        own.connect(&services[n].into()).unwrap();
        let own = proxy.socket(n == 1, true);
        own.bind(&at(NODE[n], 0).into()).unwrap();
        own.connect(&called[n].into()).unwrap();
        let accepted = server.accept();
        captured.push((own.into(), accepted.0));
    }
    let elsewhere = at(SERVICE[0], 81);
    let asked = [services[0], elsewhere, services[1]];
    assert_eq!(
        proxy.existing("pod", &asked, &[8080, 9090], 0),
        [1, 0, 1, 2, 0]
    );

    assert_eq!(proxy.existing("pod", &asked, &[], 1), [1, 0, 1]);
    let left = proxy.existing("pod", &asked, &[], 0);
    assert_eq!(left.iter().sum::<u32>(), 1);
    assert_eq!(proxy.existing("pod", &asked, &[8080], 10).len(), 4);
    eventually("none is left", || {
        (proxy.existing("pod", &asked, &[8080], 0) == [0; 4]).then_some(())
    });
    for ended in &mut direct {
        assert!(ended.read(&mut [0]).is_err(), "reset");
    }
    served.clear();
    for (one, other) in &captured {
        talk(one, other);
    }
}
