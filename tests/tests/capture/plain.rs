//! Without Weir.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use tokio::runtime::Handle;
use tokio::time::Instant;
use weir_tests::pods::{Family, Hook, KubeProxy, Network, Pod, Policy, Topology, end};

use crate::shop::{PORTS, Shop, ask, cases};

/// Runs a test in every topology with every kind of kube-proxy. Topologies have
/// nothing in common, and most of the time is spent in waiting for the kernel.
fn everywhere(test: impl Fn(&Shop, Topology) -> Result<()> + Sync) -> Result<()> {
    let (test, runtime) = (&test, Handle::current());
    thread::scope(|scope| {
        let within = Topology::ALL.map(|topology| {
            let runtime = &runtime;
            scope.spawn(move || {
                let _servers = runtime.enter();
                for proxy in KubeProxy::BOTH {
                    if let Some(shop) = Shop::open(topology, proxy)? {
                        test(&shop, topology)
                            .with_context(|| format!("{topology:?}, {proxy:?}"))?;
                    }
                }
                Ok(())
            })
        });
        let mut ended = within.into_iter().map(|thread| thread.join());
        ended.try_for_each(|end| end.unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_reaches_services_and_endpoints_under_its_own_address() -> Result<()> {
    everywhere(|shop, topology| {
        for case in cases(topology) {
            shop.check(&case)?;
        }
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_spreads_calls_over_its_endpoints_and_changes_while_it_runs() -> Result<()> {
    everywhere(|shop, topology| {
        let (port, target) = PORTS[0];
        for family in Family::BOTH {
            let at = shop.services.both.addresses().port(family, port);
            let endpoints = if topology.filters_neighbours() {
                vec![&shop.near, &shop.far]
            } else {
                vec![&shop.far]
            };
            let pods: Vec<_> = endpoints.iter().map(|endpoint| &endpoint.pod).collect();
            shop.network
                .serve(&shop.services.both.clone().port(port, &pods, target))?;
            // The chance to miss one of two for so long is 2⁻⁶³.
            let mut answers = BTreeSet::new();
            for _ in 0..64 {
                answers.insert(ask(&shop.caller, at)?);
                if answers.len() == pods.len() {
                    break;
                }
            }
            assert_eq!(answers.len(), pods.len(), "{at}: {answers:?}");

            shop.network
                .serve(&shop.services.both.clone().port(port, &[], target))?;
            let refused = shop.caller.inside().connect(at)?.map(drop);
            let refused = refused.expect_err("a Service without endpoints");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{at}");

            shop.network.serve(&shop.services.both)?;
        }
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_reaches_itself_through_its_service_by_the_nodes_address() -> Result<()> {
    everywhere(|shop, _| {
        for family in Family::BOTH {
            for (port, target) in PORTS {
                let at = shop.services.near.addresses().port(family, port);
                let answer = ask(&shop.near.pod, at)?;
                let own = shop.near.pod.addresses().ip(family);
                assert!(answer.starts_with(&format!("near {target} ")), "{answer}");
                assert!(!answer.ends_with(&format!(" {own}")), "{at}: {answer}");
            }
        }
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_reaches_its_pods_and_their_services() -> Result<()> {
    everywhere(|shop, _| {
        let (port, target) = PORTS[0];
        for family in Family::BOTH {
            let near = shop.near.pod.addresses().port(family, target);
            let service = shop.services.far.addresses().port(family, port);
            for at in [near, service] {
                shop.network
                    .node(0)
                    .inside()
                    .curl(&format!("http://{at}/"))?;
            }
        }
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_egress_policy_holds_for_services_and_endpoints() -> Result<()> {
    everywhere(|shop, topology| {
        let [(port, target), (other_port, other_target)] = PORTS;
        for family in Family::BOTH {
            let pod = shop.far.pod.addresses();
            let service = shop.services.far.addresses();
            let near = shop.near.pod.addresses();
            let policy = shop.caller.allow_only_egress(&[pod.port(family, target)])?;
            ask(&shop.caller, pod.port(family, target))?;
            ask(&shop.caller, service.port(family, port))?;
            assert_eq!(policy.refused()?, 0);

            let mut forbidden = vec![
                pod.port(family, other_target),
                service.port(family, other_port),
            ];
            if topology.filters_neighbours() {
                forbidden.push(near.port(family, target));
            }
            for at in forbidden {
                assert_refused(&policy, &shop.caller, at)?;
            }
            drop(policy);
            ask(&shop.caller, pod.port(family, other_target))?;
        }
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_policy_goes_by_who_calls() -> Result<()> {
    everywhere(|shop, _| {
        let [(_, target), (_, other_target)] = PORTS;
        for family in Family::BOTH {
            let pod = shop.far.pod.addresses();
            let allowed = shop.caller.addresses().port(family, target);
            let policy = shop.far.pod.allow_only_ingress(&[allowed])?;
            ask(&shop.caller, pod.port(family, target))?;
            assert_eq!(policy.refused()?, 0);
            assert_refused(&policy, &shop.caller, pod.port(family, other_target))?;
            assert_refused(&policy, &shop.near.pod, pod.port(family, target))?;
        }
        Ok(())
    })
}

/// Looks that the policy refuses the pod's connection, and not the port.
fn assert_refused(policy: &Policy, pod: &Pod, at: SocketAddr) -> Result<()> {
    let before = policy.refused()?;
    let refused = pod.inside().connect(at)?.map(drop);
    let refused = refused.err().with_context(|| format!("{at} was reached"))?;
    let counted = policy.refused()? > before;
    ensure!(counted, "{at}: not by the policy: {refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_sees_what_passes_and_nothing_else() -> Result<()> {
    everywhere(|shop, _| {
        let [(_, target), (_, other_target)] = PORTS;
        let inside = shop.caller.inside();
        let counted = inside.count(Hook::Output, &format!("tcp dport {target}"))?;
        let other = inside.count(Hook::Output, &format!("tcp dport {other_target}"))?;
        let at = shop.far.pod.addresses().port(Family::V4, target);
        ask(&shop.caller, at)?;
        assert!(counted.packets()? >= 3, "SYN, ACK and a request");
        assert!(counted.bytes()? >= 3 * 40);
        assert_eq!(other.packets()?, 0);
        Ok(())
    })
}

/// A measurement, not a promise; the figures are printed.
#[test]
fn networks_and_pods_are_made_in_moments() -> Result<()> {
    for topology in Topology::ALL {
        let start = Instant::now();
        let Some(network) = Network::new(topology, KubeProxy::Nftables, 2)? else {
            return Ok(());
        };
        let nodes = network.nodes().iter();
        let pods = nodes.flat_map(|node| ["a", "b"].map(|name| node.pod(name)));
        let pods = pods.collect::<Result<Vec<_>>>()?;
        println!(
            "{topology:?}: 2 nodes with 2 pods each in {:?}",
            start.elapsed()
        );
        let start = Instant::now();
        drop((pods, network));
        println!("{topology:?}: ended in {:?}", start.elapsed());
    }
    let Some(network) = Network::new(Topology::Ptp, KubeProxy::Nftables, 1)? else {
        return Ok(());
    };
    let names: Vec<_> = (0..110).map(|n| format!("pod-{n}")).collect();
    let start = Instant::now();
    let pods = network.node(0).pods(&names)?;
    println!("110 pods on a node in {:?}", start.elapsed());
    let start = Instant::now();
    end(pods);
    println!("ended in {:?}", start.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_when_a_network_ends() -> Result<()> {
    let topology = Topology::Bridge { br_netfilter: true };
    let Some(shop) = Shop::open(topology, KubeProxy::Nftables)? else {
        return Ok(());
    };
    let netns = shop.network.node(0).netns().to_owned();
    let names = |within: &Path| -> Result<BTreeSet<_>> {
        let names = within.read_dir()?.map(|entry| Ok(entry?.file_name()));
        names.collect()
    };
    assert_eq!(
        names(&netns)?,
        BTreeSet::from(["caller".into(), "near".into()])
    );
    let Shop {
        caller,
        near,
        far,
        services: _,
        network,
    } = shop;
    drop(caller);
    assert_eq!(names(&netns)?, BTreeSet::from(["near".into()]));
    network.node(0).pod("caller")?;
    drop((network, near, far));
    assert!(!netns.exists());
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let netns = netns.to_str().context("a temporary directory")?;
    assert!(!mounts.contains(netns), "{mounts}");
    Ok(())
}
