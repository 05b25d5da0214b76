//! What a Service and its EndpointSlices say: ports, protocols, listeners,
//! endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{self as discovery, EndpointSlice};
use weir_proto::v1alpha1 as proto;

use super::targets::in_namespace;
use crate::sources::{Key, Objects};

/// Annotation that asks for a listener on the one port of a Service.
pub(crate) const LISTEN: &str = "weir.dev/listen";
/// Label that names the Service of an EndpointSlice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What `sessionAffinity: ClientIP` lasts, unless it says so; and at most.
const AFFINITY_SECONDS: u64 = 10_800;
const MAX_AFFINITY_SECONDS: u64 = 86_400;

/// Zones, and nodes, for which one endpoint is meant: Kubernetes gives no more.
const MAX_HINTS: usize = 8;

/// A port that agents can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortPlan {
    pub(super) number: u16,
    /// Empty where it has none.
    pub(super) name: String,
    pub(super) spoken: Spoken,
    pub(super) listen: Option<SocketAddr>,
}

/// What is spoken on a port, as far as its owner says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// Nothing is said: the first bytes tell.
    Detect,
    /// HTTP of either version.
    Http,
    Http1,
    Http2,
    /// Anything else: bytes.
    Tcp,
}

impl Spoken {
    pub(super) fn protocol(self) -> proto::Protocol {
        match self {
            Spoken::Detect | Spoken::Http => proto::Protocol::Detect,
            Spoken::Http1 => proto::Protocol::Http1,
            Spoken::Http2 => proto::Protocol::Http2,
            Spoken::Tcp => proto::Protocol::Tcp,
        }
    }
}

impl PortPlan {
    /// Names the port in keys: its name, else its number.
    pub(super) fn label(&self) -> String {
        if self.name.is_empty() {
            self.number.to_string()
        } else {
            self.name.clone()
        }
    }
}

/// What a Service asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServicePlan {
    /// Its own addresses.
    pub(super) cluster_addresses: Vec<String>,
    /// Callers get endpoints on their own node alone.
    pub(super) local_only: bool,
    /// For how long a caller keeps its endpoint; 0: for one connection.
    pub(super) affinity_us: u64,
    pub(super) ports: Vec<PortPlan>,
    /// Ports whose transport is not served: name and transport.
    pub(super) unserved: Vec<(String, String)>,
    /// What is wrong with its listeners.
    pub(super) problems: Vec<String>,
}

/// The slices of one service, by name.
pub(super) type Slices = BTreeMap<Key, Arc<EndpointSlice>>;

/// All services' plans.
pub(super) type Plans = BTreeMap<Key, ServicePlan>;

impl ServicePlan {
    /// Whether it asks for a listener that it may have.
    pub(super) fn listens(&self) -> bool {
        self.ports.iter().any(|port| port.listen.is_some())
    }
}

/// What the Service asks for, whatever others do.
pub(super) fn plan(service: &Service) -> ServicePlan {
    let mut plan = ServicePlan::default();
    let Some(spec) = &service.spec else {
        return plan;
    };
    plan.cluster_addresses = cluster_addresses(spec);
    plan.local_only = spec.internal_traffic_policy.as_deref() == Some("Local");
    plan.affinity_us = affinity(spec);
    for port in spec.ports.as_deref().unwrap_or_default() {
        match spoken(port) {
            Ok(spoken) => plan
                .ports
                .extend(u16::try_from(port.port).ok().map(|number| PortPlan {
                    number,
                    name: port.name.clone().unwrap_or_default(),
                    spoken,
                    listen: None,
                })),
            Err(transport) => {
                let name = port.name.clone().unwrap_or_else(|| port.port.to_string());
                plan.unserved.push((name, transport));
            }
        }
    }
    listeners(service, &mut plan);
    plan
}

/// By which callers name the Service; "None" for a headless one is no address.
fn cluster_addresses(spec: &ServiceSpec) -> Vec<String> {
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let addresses: BTreeSet<IpAddr> = all.filter_map(|address| address.parse().ok()).collect();
    addresses.iter().map(ToString::to_string).collect()
}

/// Without a time of its own it is three hours, as the API server fills in.
fn affinity(spec: &ServiceSpec) -> u64 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config
        .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| (1..=MAX_AFFINITY_SECONDS).contains(seconds))
        .unwrap_or(AFFINITY_SECONDS);
    seconds * 1_000_000
}

/// Settles who listens where: of two that want one address, the first by name
/// has it.
pub(super) fn settle(plans: &mut Plans) {
    let mut taken: Vec<(SocketAddr, String)> = Vec::new();
    for (key, plan) in plans {
        for port in &mut plan.ports {
            let Some(address) = port.listen else { continue };
            match taken.iter().find(|(other, _)| clash(*other, address)) {
                Some((other, owner)) => {
                    plan.problems.push(format!(
                        "{address} is taken by Service {owner} ({other}): choose another port"
                    ));
                    port.listen = None;
                }
                None => taken.push((address, format!("{}/{}", key.0, key.1))),
            }
        }
    }
}

/// Whether two sockets cannot both listen. Port 0 is a different port each time.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() != 0
        && a.port() == b.port()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// What is spoken on a port; the error is a transport other than TCP.
///
/// `appProtocol` decides; without it the name of the port, as Istio and Gateway
/// API's implementations read it; else the first bytes of a connection tell.
fn spoken(port: &ServicePort) -> Result<Spoken, String> {
    let transport = port.protocol.as_deref().unwrap_or("TCP");
    if transport != "TCP" {
        return Err(transport.to_owned());
    }
    if let Some(named) = &port.app_protocol {
        return Ok(match named.to_ascii_lowercase().as_str() {
            "kubernetes.io/h2c" | "grpc" | "h2c" | "http2" => Spoken::Http2,
            // Callers of "http" may use either version; a WebSocket begins as HTTP/1.1.
            "http" | "grpc-web" => Spoken::Http,
            "kubernetes.io/ws" => Spoken::Http1,
            // TLS, a database, or what only its owner knows.
            _ => Spoken::Tcp,
        });
    }
    let name = port.name.as_deref().unwrap_or_default();
    let prefix = name.split('-').next().unwrap_or_default();
    Ok(match prefix {
        "grpc" if name == "grpc-web" || name.starts_with("grpc-web-") => Spoken::Http,
        "grpc" | "http2" | "h2c" => Spoken::Http2,
        "http" => Spoken::Http,
        "https" | "tls" | "tcp" | "udp" | "mongo" | "mysql" | "redis" => Spoken::Tcp,
        _ => Spoken::Detect,
    })
}

fn listeners(service: &Service, plan: &mut ServicePlan) {
    for (annotation, text) in service.metadata.annotations.iter().flatten() {
        let port = match annotation.strip_prefix(LISTEN) {
            Some("") => None,
            Some(suffix) if suffix.starts_with('.') => Some(&suffix[1..]),
            _ => continue,
        };
        match listener(port, text, plan) {
            Ok((index, address)) => plan.ports[index].listen = Some(address),
            Err(problem) => plan
                .problems
                .push(format!("annotation {annotation}: {problem}")),
        }
    }
}

/// The address in a `weir.dev/listen` annotation.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address and port: write 127.0.0.1:8081, for example")
    })
}

fn listener(
    port: Option<&str>,
    text: &str,
    plan: &ServicePlan,
) -> Result<(usize, SocketAddr), String> {
    let address = listen_address(text)?;
    let names = || {
        plan.ports
            .iter()
            .map(PortPlan::label)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let unserved = |(name, transport): &(String, String)| {
        format!("port {name} is {transport}, and only TCP is served")
    };
    let index = match port {
        None if plan.ports.len() + plan.unserved.len() > 1 => {
            return Err(format!(
                "the Service has several ports: write {LISTEN}.<name of a port> ({})",
                names()
            ));
        }
        None => (!plan.ports.is_empty()).then_some(0),
        Some(port) => plan.ports.iter().position(|plan| plan.label() == port),
    };
    let no_such = || match plan
        .unserved
        .iter()
        .find(|(name, _)| port.is_none_or(|port| port == name))
    {
        Some(found) => unserved(found),
        None => format!(
            "the Service has no port of that name: its ports are {}",
            names()
        ),
    };
    Ok((index.ok_or_else(no_such)?, address))
}

/// The Service whose endpoints a slice of `namespace` holds.
pub(super) fn service_of(namespace: &str, slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some((namespace.to_owned(), name.clone()))
}

/// The endpoints of each served port, each address once, in order.
pub(super) fn endpoints(key: &Key, plan: &ServicePlan, slices: &Slices) -> proto::Endpoints {
    let ports = plan.ports.iter().map(|port| {
        let mut found: BTreeMap<SocketAddr, proto::Endpoint> = BTreeMap::new();
        for slice in slices.values() {
            let number = slice
                .ports
                .iter()
                .flatten()
                .find(|candidate| candidate.name.as_deref().unwrap_or_default() == port.name)
                .and_then(|candidate| u16::try_from(candidate.port?).ok());
            let Some(number) = number else { continue };
            for written in &slice.endpoints {
                // All addresses of an endpoint are one pod; the first is used.
                let address = written.addresses.first();
                let address = address.and_then(|address| address.parse::<IpAddr>().ok());
                let Some(address) = address else { continue };
                let address = SocketAddr::new(address, number);
                let fresh = endpoint(address, written);
                // A slice that lags behind does not take away what another gives.
                let usable = |of: &proto::Endpoint| (!of.unready, !of.terminating);
                match found.get(&address) {
                    Some(there) if usable(there) >= usable(&fresh) => {}
                    _ => drop(found.insert(address, fresh)),
                }
            }
        }
        proto::PortEndpoints {
            port: port.number.into(),
            endpoints: found.into_values().collect(),
        }
    });
    proto::Endpoints {
        namespace: key.0.clone(),
        name: key.1.clone(),
        ports: ports.collect(),
    }
}

fn endpoint(address: SocketAddr, written: &discovery::Endpoint) -> proto::Endpoint {
    // KEP-1672: a condition that is not given counts as ready, one that serves is
    // like one that is ready, and none ends.
    let conditions = written.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(ready);
    let ends = conditions.terminating.unwrap_or(false);
    let terminating = !ready && serving && ends;
    let hints = written.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_ref());
    let nodes = hints.and_then(|hints| hints.for_nodes.as_ref());
    let zones = zones.into_iter().flatten().map(|zone| zone.name.clone());
    let nodes = nodes.into_iter().flatten().map(|node| node.name.clone());
    proto::Endpoint {
        address: address.to_string(),
        zone: written.zone.clone().unwrap_or_default(),
        node: written.node_name.clone().unwrap_or_default(),
        unready: !ready && !terminating,
        terminating,
        for_zones: zones.take(MAX_HINTS).collect(),
        for_nodes: nodes.take(MAX_HINTS).collect(),
    }
}

/// Names of the services in a namespace, for messages; "none" where there are none.
pub(super) fn known(objects: &Objects, namespace: &str) -> String {
    let mut names = in_namespace(objects, namespace).map(|(_, name)| name.as_str());
    let mut shown: Vec<&str> = names.by_ref().take(10).collect();
    if shown.is_empty() {
        return "there is no Service in this namespace".to_owned();
    }
    if names.next().is_some() {
        shown.push("…");
    }
    format!("known Services: {}", shown.join(", "))
}
