//! What pods cost.

use tokio::time::Instant;

use super::failing::{Process, child, is_child};
use super::ground::{Ground, at, eventually};
use super::proxy::pod_with;

/// As many as a node has, and as many as times are taken of.
const NODE_FULL: usize = 110;
const PODS: usize = 200;

#[test]
fn a_pod_costs_three_descriptors_and_gives_them_back() {
    if is_child() {
        return;
    }
    let Some(ground) = Ground::make() else { return };
    let test = "capture::tests::weight::a_pod_costs_three_descriptors_and_gives_them_back";
    let (capture, mut proxy) = child(&ground, test);
    let services: Vec<_> = (1..=40)
        .map(|n| at(&format!("10.96.0.{n}"), 80))
        .chain((1..=10).map(|n| at(&format!("fd96::{n}"), 80)))
        .collect();
    // Answered: it has accepted the proxy.
    proxy.release("none");
    let before = descriptors(&capture);
    println!("without pods: {}", memory(&capture));
    let mut namespaces = Vec::new();
    let mut times = Vec::new();
    for n in 0..PODS {
        let address = format!("10.92.{}.{}", n / 200, n % 200 + 1);
        namespaces.push(ground.another_pod(&address));
        let mut pod = pod_with(&services, &[8080]);
        pod.pod = n.to_string();
        pod.addresses = vec![address];
        let begun = Instant::now();
        let told = proxy.capture(pod).unwrap();
        times.push(begun.elapsed());
        assert_eq!(told.given().len(), 4);
        if n + 1 == NODE_FULL {
            println!("{NODE_FULL} pods: {}", memory(&capture));
            has(&capture, before + 3 * NODE_FULL);
        }
    }
    times.sort_unstable();
    println!(
        "captured within: p50 {:?}, p99 {:?}, longest {:?}",
        times[PODS / 2],
        times[PODS * 99 / 100],
        times[PODS - 1]
    );
    // As much as is done for each pod when the proxy hangs.
    let begun = Instant::now();
    for _ in 0..NODE_FULL {
        proxy.existing("0", &services, &[8080], 0);
    }
    println!(
        "connections of {NODE_FULL} pods counted within {:?}",
        begun.elapsed()
    );
    for n in 0..PODS {
        proxy.release(&n.to_string());
    }
    has(&capture, before);
    println!("without pods again: {}", memory(&capture));
}

/// It closes what it has given away a moment after it has given it.
fn has(process: &Process, expected: usize) {
    eventually("as many descriptors", || {
        (descriptors(process) == expected).then_some(())
    });
}

fn descriptors(process: &Process) -> usize {
    let directory = format!("/proc/{}/fd", process.id());
    std::fs::read_dir(directory).unwrap().count()
}

fn memory(process: &Process) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let lines: Vec<_> = status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("RssAnon"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    lines.join(", ")
}
