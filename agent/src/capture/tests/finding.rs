//! Which namespace is a pod's.

use super::ground::{Ground, NODE, POD, SERVICE, at, eventually};
use super::proxy::pod_with;
use crate::capture::{Error, probe, run, table};

#[test]
fn a_namespace_that_does_not_hold_the_pods_addresses_is_never_taken() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let directory = ground.directory.path().display().to_string();
    let mut refused = |addresses: &[&str]| {
        let mut pod = pod_with(&[at(SERVICE[0], 80)], &[]);
        pod.addresses = addresses.iter().map(|&each| each.to_owned()).collect();
        proxy.capture(pod).err().expect("refused")
    };
    assert_eq!(
        refused(&["10.91.0.3"]),
        format!("no network namespace under {directory} holds 10.91.0.3")
    );
    assert_eq!(
        refused(&[POD[0], "10.91.0.3"]),
        format!("no network namespace under {directory} holds 10.91.0.2 and 10.91.0.3")
    );
    assert!(refused(&["127.0.0.1"]).starts_with("no network namespace"));
    assert_eq!(
        refused(&[NODE[0]]),
        "10.91.0.1 is held by the network namespace that capture is in, which is never captured"
    );
    assert!(refused(&[]).starts_with("no address"));
    assert_eq!(refused(&["pod"]), "\"pod\" is no IP address");
    assert_eq!(ground.node.rules() + &ground.pod.rules(), "");
}

#[test]
fn a_namespace_is_one_pods_and_a_pod_has_one() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let _told = proxy.capture(pod_with(&[], &[])).unwrap();
    let mut another = pod_with(&[], &[]);
    another.pod = "another".to_owned();
    let refused = proxy.capture(another).err().unwrap();
    assert!(refused.ends_with("is captured for pod pod"), "{refused}");

    let _one = ground.another_pod("10.91.0.3");
    let two = ground.another_pod("10.91.0.3");
    let mut another = pod_with(&[], &[]);
    another.pod = "another".to_owned();
    another.addresses = vec!["10.91.0.3".to_owned()];
    let refused = proxy.capture(another.clone()).err().unwrap();
    assert!(refused.contains("hold 10.91.0.3"), "{refused}");
    drop(two);
    let _told = proxy.capture(another).unwrap();
}

#[test]
fn a_pod_that_takes_anothers_address_does_not_keep_it_from_being_captured() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let hostile = ground.another_pod("10.91.0.66");
    hostile.ip("addr add 10.91.0.2/24 dev eth0").unwrap();
    let mut pod = pod_with(&[], &[]);
    pod.pod = "hostile".to_owned();
    pod.addresses = vec!["10.91.0.66".to_owned()];
    let _told = proxy.capture(pod).unwrap();
    let mut pod = pod_with(&[], &[]);
    pod.addresses.truncate(1);
    let _told = proxy.capture(pod).unwrap();
    assert!(ground.pod.rules().contains("table ip weir_test"));
}

#[test]
fn an_address_that_comes_later_is_found() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let other = ground.another_pod("10.91.0.3");
    let mut pod = pod_with(&[], &[]);
    pod.addresses = vec!["10.91.0.4".to_owned()];
    assert!(proxy.capture(pod.clone()).is_err());
    other.ip("addr add 10.91.0.4/24 dev eth0").unwrap();
    drop(proxy.capture(pod.clone()).unwrap());
    assert!(other.rules().contains("table ip weir_test"));
    // And one that has gone is not.
    proxy.release("pod");
    other.ip("addr del 10.91.0.4/24 dev eth0").unwrap();
    assert!(proxy.capture(pod).is_err());
    assert_eq!(other.rules(), "");
}

#[test]
fn a_pod_that_has_ended_is_let_go_so_that_its_namespace_ends() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let told = proxy.capture(pod_with(&[], &[8080])).unwrap();
    // The proxy's own are its own to close.
    drop(told);
    let cable = || ground.node.says("ip link").contains("eth0");
    assert!(cable());
    let node = &ground.node;
    drop(ground.pod);
    eventually("the pod's end of the cable is gone", || {
        (!node.says("ip link").contains("eth0")).then_some(())
    });
}

#[test]
fn what_cannot_work_is_said_at_once() {
    let Some(ground) = Ground::make() else { return };
    let (_stop, stopped) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut config = ground.config();
    config.namespaces = vec!["/nowhere".into()];
    let error = run(config, stopped).unwrap_err();
    assert!(matches!(&error, Error::NoNamespaces(named) if named == "/nowhere"));
    assert!(table("___").is_err());
    assert_eq!(table("weir-agent-x7").unwrap(), "weir_weir_agent_x7");
    assert_eq!(table(&"ä".repeat(65)).ok(), None);
}

#[test]
fn what_capture_needs_can_be_tried_without_a_pod() {
    let Some(_ground) = Ground::make() else {
        return;
    };
    for finding in probe() {
        assert_eq!(finding.problem, None, "{}", finding.what);
    }
}
