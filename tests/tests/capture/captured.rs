//! With Weir: the same calls, and what a policy does for them.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use weir_proto::v1alpha1 as proto;
use weir_tests::agents::{Agent, Settings, Told, resource};
use weir_tests::eventually;
use weir_tests::pods::{Family, Hook, KubeProxy, Pod, Service, Topology};

use crate::shop::{PORTS, Shop, ask, cases};

/// The node whose pods are captured.
pub(crate) const NODE: &str = "n1";

/// A shop with an agent on its first node.
pub(crate) struct Guarded {
    pub(crate) agent: Agent,
    pub(crate) told: Told,
    pub(crate) shop: Shop,
}

impl Guarded {
    /// With these resources in force for the pods that are there.
    pub(crate) async fn open(
        topology: Topology,
        proxy: KubeProxy,
        resources: impl FnOnce(&Shop) -> Vec<proto::Resource>,
    ) -> Result<Option<Guarded>> {
        Guarded::open_with(topology, proxy, resources, |_| {}).await
    }

    /// The same with more words for the agent's proxy.
    pub(crate) async fn with(
        words: &[&str],
        topology: Topology,
        proxy: KubeProxy,
        resources: impl FnOnce(&Shop) -> Vec<proto::Resource>,
    ) -> Result<Option<Guarded>> {
        Guarded::open_with(topology, proxy, resources, |settings| {
            settings.proxy = words.iter().map(|word| (*word).to_owned()).collect();
        })
        .await
    }

    /// The same with an agent that is started otherwise.
    pub(crate) async fn open_with(
        topology: Topology,
        proxy: KubeProxy,
        resources: impl FnOnce(&Shop) -> Vec<proto::Resource>,
        adjust: impl FnOnce(&mut Settings),
    ) -> Result<Option<Guarded>> {
        let Some(shop) = Shop::open(topology, proxy)? else {
            return Ok(None);
        };
        let told = Told::start().await?;
        for resource in resources(&shop) {
            told.set(resource);
        }
        told.set_on(NODE, pod(&shop.caller));
        told.set_on(NODE, pod(&shop.near.pod));
        let mut settings = Settings::new(shop.network.node(0), NODE, &told);
        adjust(&mut settings);
        let agent = Agent::start(settings).await?;
        told.enforced(NODE).await;
        Ok(Some(Guarded { agent, told, shop }))
    }
}

/// A pod as the control plane tells of it.
pub(crate) fn pod(pod: &Pod) -> proto::Resource {
    let addresses = Family::BOTH.map(|family| pod.addresses().ip(family).to_string());
    let body = proto::Pod {
        namespace: "shop".to_owned(),
        name: pod.name().to_owned(),
        uid: format!("uid-of-{}", pod.name()),
        addresses: addresses.to_vec(),
        ..proto::Pod::default()
    };
    let name = format!("shop/{}", pod.name());
    resource(proto::ResourceKind::Pod, &name, &body)
}

/// A Service with a policy that acts at its callers' side, and its endpoints.
pub(crate) fn service(
    name: &str,
    service: &Service,
    headless: bool,
    endpoints: &[&Pod],
    policy: &proto::Policy,
) -> [proto::Resource; 2] {
    service_at(&PORTS, name, service, headless, endpoints, policy)
}

/// The same with other ports: each with where it leads.
pub(crate) fn service_at(
    ports: &[(u16, u16)],
    name: &str,
    service: &Service,
    headless: bool,
    endpoints: &[&Pod],
    policy: &proto::Policy,
) -> [proto::Resource; 2] {
    let addresses = Family::BOTH.map(|family| service.addresses().ip(family).to_string());
    let port = |(number, _): &(u16, u16)| proto::Port {
        number: (*number).into(),
        name: format!("p{number}"),
        protocol: proto::Protocol::Detect.into(),
        policy: Some(policy.clone()),
        ..proto::Port::default()
    };
    let config = proto::ServiceConfig {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        ports: ports.iter().map(port).collect(),
        cluster_addresses: if headless {
            Vec::new()
        } else {
            addresses.to_vec()
        },
        ..proto::ServiceConfig::default()
    };
    let endpoint = |address: SocketAddr| proto::Endpoint {
        address: address.to_string(),
        ..proto::Endpoint::default()
    };
    let of_port = |(number, target): &(u16, u16)| proto::PortEndpoints {
        port: (*number).into(),
        endpoints: endpoints
            .iter()
            .flat_map(|pod| Family::BOTH.map(|family| pod.addresses().port(family, *target)))
            .map(endpoint)
            .collect(),
    };
    let endpoints = proto::Endpoints {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        ports: ports.iter().map(of_port).collect(),
    };
    let name = format!("shop/{name}");
    [
        resource(proto::ResourceKind::Service, &name, &config),
        resource(proto::ResourceKind::Endpoints, &name, &endpoints),
    ]
}

/// A policy that has something to do for callers, and changes nothing here.
pub(crate) fn retries() -> proto::Policy {
    proto::Policy {
        retries: Some(proto::Retries {
            key: "retries".to_owned(),
            attempts: 1,
            status_codes: vec![proto::StatusRange {
                first: 503,
                last: 503,
            }],
            connection_failure: true,
            methods: vec!["GET".to_owned()],
            backoff_base_us: 1_000,
            backoff_max_us: 1_000,
            jitter: proto::Jitter::Full.into(),
            budget: Some(proto::RetryBudget {
                percent: 100,
                interval_us: 10_000_000,
                min_retry_count: 100,
                min_retry_interval_us: 1_000_000,
            }),
            max_buffered_body: 65_536,
            ..proto::Retries::default()
        }),
        ..proto::Policy::default()
    }
}

/// Every service of the shop with that policy; headless ones by endpoint.
fn all(shop: &Shop) -> Vec<proto::Resource> {
    let (near, far) = (&shop.near.pod, &shop.far.pod);
    let policy = retries();
    [
        service("near", &shop.services.near, false, &[near], &policy),
        service("far", &shop.services.far, false, &[far], &policy),
        service("both", &shop.services.both, true, &[near, far], &policy),
    ]
    .concat()
}

/// Counts what the proxy has answered with what the destination said.
async fn answered(agent: &Agent) -> Result<u64> {
    agent.metric("weir_responses_total", "class=\"2xx\"").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captured_calls_reach_what_they_reached_before_under_the_pods_own_address() -> Result<()> {
    for topology in Topology::ALL {
        for proxy in KubeProxy::BOTH {
            let Some(guarded) = Guarded::open(topology, proxy, all).await? else {
                return Ok(());
            };
            let mut calls = 0;
            for case in cases(topology) {
                guarded.shop.check(&case).with_context(|| {
                    format!("{topology:?}, {proxy:?}: {}", guarded.agent.proxy.log())
                })?;
                calls += 1;
            }
            let met = answered(&guarded.agent).await?;
            ensure!(met == calls, "{topology:?}: {met} of {calls} met the agent");
        }
    }
    Ok(())
}

/// At most one request at a time at each endpoint.
fn one_at_a_time() -> proto::Policy {
    proto::Policy {
        load_shedding: Some(proto::LoadShedding {
            key: "shedding".to_owned(),
            max_concurrency: 1,
            ..proto::LoadShedding::default()
        }),
        ..proto::Policy::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_not_given_more_than_its_policy_says_and_sees_who_calls() -> Result<()> {
    for topology in Topology::ALL {
        for proxy in KubeProxy::BOTH {
            let limited = |shop: &Shop| {
                let near = [&shop.near.pod];
                service("near", &shop.services.near, false, &near, &one_at_a_time()).to_vec()
            };
            let Some(guarded) = Guarded::open(topology, proxy, limited).await? else {
                return Ok(());
            };
            let Guarded { agent, shop, .. } = &guarded;
            let place = || format!("{topology:?}, {proxy:?}: {}", agent.proxy.log());
            // Nothing is to be done for callers: they reach what they reached before.
            for case in cases(topology) {
                shop.check(&case).with_context(place)?;
            }
            for family in Family::BOTH {
                let at = shop.near.pod.addresses().port(family, PORTS[0].1);
                let url = format!("http://{at}/held");
                let before = shop.near.requests();
                // From the other node, and from this one.
                let first = shop.far.pod.inside().start_curl(&url)?;
                eventually("a request at the pod", async || {
                    let now = shop.near.requests();
                    ensure!(now > before, "{now}");
                    Ok::<_, anyhow::Error>(())
                })
                .await;
                let second = shop.caller.inside().curl(&url);
                let refused = second.expect_err("the second").to_string();
                ensure!(refused.contains("503"), "{refused}; {}", place());
                shop.near.held.add_permits(1);
                let answer = first.answer()?;
                let far = shop.far.pod.addresses().ip(family);
                ensure!(answer.ends_with(&format!(" {far}")), "{answer}");
                // Its place is free again.
                ask(&shop.caller, at).with_context(place)?;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_a_policy_never_meets_the_agent() -> Result<()> {
    let Some(guarded) = Guarded::open(Topology::Routed, KubeProxy::Nftables, all).await? else {
        return Ok(());
    };
    let Guarded { agent, told, shop } = &guarded;
    let (port, _) = PORTS[0];
    for family in Family::BOTH {
        let near = shop.services.near.addresses().port(family, port);
        let far = shop.services.far.addresses().port(family, port);
        let connections = async || agent.metric("weir_upstream_connections_total", "").await;
        ask(&shop.caller, far)?;
        let before = connections().await?;
        ensure!(before > 0, "the policy's service meets it");

        // Its policy goes: what was captured is no longer.
        let [config, endpoints] = service(
            "far",
            &shop.services.far,
            false,
            &[&shop.far.pod],
            &retries(),
        );
        told.remove("", proto::ResourceKind::Service, &config.name);
        told.remove("", proto::ResourceKind::Endpoints, &endpoints.name);
        told.enforced(NODE).await;
        let seen = shop.caller.inside().count(Hook::Input, "tcp dport 15081")?;
        let answer = ask(&shop.caller, far)?;
        ensure!(answer.starts_with("far "), "{answer}");
        ensure!(seen.packets()? == 0, "nothing comes to the agent's port");
        ensure!(connections().await? == before);
        // The other service's does.
        ask(&shop.caller, near)?;
        ensure!(seen.packets()? > 0);

        told.set(config);
        told.set(endpoints);
        told.enforced(NODE).await;
        let before = connections().await?;
        ask(&shop.caller, far)?;
        ensure!(connections().await? > before);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_policy_holds_for_what_the_agent_does_in_a_pods_place() -> Result<()> {
    for topology in Topology::ALL {
        let Some(guarded) = Guarded::open(topology, KubeProxy::Nftables, all).await? else {
            return Ok(());
        };
        let shop = &guarded.shop;
        let [(port, target), (other_port, _)] = PORTS;
        for family in Family::BOTH {
            let allowed = shop.far.pod.addresses().port(family, target);
            let policy = shop.caller.allow_only_egress(&[allowed])?;
            let service = shop.services.far.addresses();
            ask(&shop.caller, service.port(family, port))?;
            ensure!(policy.refused()? == 0);
            let refused = ask(&shop.caller, service.port(family, other_port));
            ensure!(refused.is_err(), "{topology:?}: {refused:?}");
            ensure!(policy.refused()? > 0, "{topology:?}: not by the policy");
        }
    }
    Ok(())
}
