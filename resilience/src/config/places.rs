//! What a cluster says of itself.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use super::ServiceId;

/// Where a service's requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Which service.
    pub id: ServiceId,
    /// By port number, each once.
    pub ports: Vec<(NonZeroU16, Vec<Endpoint>)>,
}

/// One place where a service's requests can go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Its address.
    pub address: SocketAddr,
    /// Its zone; empty where unknown.
    pub zone: String,
    /// Its node; empty where unknown.
    pub node: String,
    /// It gets no requests of anybody, but is known, so that what its own node
    /// does for it has a place.
    pub unready: bool,
    /// It ends, and still answers: used only where no endpoint is ready. Never
    /// together with `unready`.
    pub terminating: bool,
    /// The zones for whose callers it is meant (`trafficDistribution`); none:
    /// for all.
    pub for_zones: Vec<String>,
    /// The nodes for whose callers it is meant; none: for all.
    pub for_nodes: Vec<String>,
}

/// A pod whose connections may be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// A pod of the same name that was made again has another.
    pub uid: String,
    /// All of its addresses, at least one. Its network namespace is the one that
    /// holds them.
    pub addresses: Vec<IpAddr>,
    /// What it runs as; empty where unknown.
    pub service_account: String,
    /// What it belongs to, "Deployment/checkout"; empty: nothing.
    pub workload: String,
    /// The probes of its kubelet, which are never shed, delayed or lost.
    pub probes: Vec<Probe>,
}

/// A probe of a pod over the network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// `GET path`.
    Http {
        /// Of the container.
        port: NonZeroU16,
        /// With what follows it, "/healthz?full=1".
        path: String,
    },
    /// The health service of gRPC.
    Grpc {
        /// Of the container.
        port: NonZeroU16,
    },
    /// A connection, and no more.
    Tcp {
        /// Of the container.
        port: NonZeroU16,
    },
}

impl Probe {
    /// The port of the container that it goes to.
    pub fn port(&self) -> NonZeroU16 {
        match self {
            Probe::Http { port, .. } | Probe::Grpc { port } | Probe::Tcp { port } => *port,
        }
    }
}

/// The node of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its zone (`topology.kubernetes.io/zone`); empty where it has none.
    pub zone: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}
