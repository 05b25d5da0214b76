//! With Weir: the same calls, and what a policy does for them.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use weir_proto::v1alpha1 as proto;
use weir_tests::agents::{Agent, Settings, Told, resource};
use weir_tests::pods::{Family, KubeProxy, Pod, Service, Topology};

use crate::shop::{PORTS, Shop, cases};

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
        Guarded::with(&[], topology, proxy, resources).await
    }

    /// The same with more words for the agent's proxy.
    pub(crate) async fn with(
        words: &[&str],
        topology: Topology,
        proxy: KubeProxy,
        resources: impl FnOnce(&Shop) -> Vec<proto::Resource>,
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
        settings.proxy = words.iter().map(|word| (*word).to_owned()).collect();
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
